"""Which signs hold together, from independent draws: exact binomial bounds (theory: 14.5).

A nested family of sets of points is chosen beforehand. A draw fails a set if any sign in it is
wrong, so the larger a set, the more draws fail it, and the largest set that few enough draws fail
is found at no cost in confidence.
"""

import math

import jax
import jax.numpy as jnp
import jax.scipy.special as special
import numpy as np
from jaxtyping import Bool, Float, Int

from perturbkernel.theory.arguments import compiled

#: Halvings of [0, 1]: to the last digit of a float64.
_HALVINGS = 60
#: Of a number of draws that should be whole.
_ROUNDING = 1e-9


def _at_most(draws, probability, count):
    """P(Bin(draws, probability) <= count) for counts below `draws`."""
    return special.betainc(draws - count, count + 1, 1 - probability)


def _upper_bound(failures, draws, error):
    """The p with P(Bin(draws, p) <= failures) = error, by bisection."""

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        unlikely = _at_most(draws, middle, failures) <= error
        return jnp.where(unlikely, low, middle), jnp.where(unlikely, middle, high)

    ends = jnp.zeros_like(error), jnp.ones_like(error)
    return jax.lax.fori_loop(0, _HALVINGS, halve, ends)[1]


_chances = compiled(_at_most)
_upper_bounds = compiled(_upper_bound)


def allowed_failures(draws: int, level: float, error: float) -> int:
    """The largest V with P(Bin(draws, level) <= V) <= error; -1 if there is none.

    If more than a share `level` of all networks fail, V or fewer of `draws` do so with probability
    `error` at most. Clopper and Pearson (1934).
    """
    counts = np.arange(draws)
    chance = _chances(draws, level, counts)
    unlikely = chance <= error
    return int(unlikely.sum()) - 1


def least_draws(level: float, error: float) -> int:
    """The fewest draws with which anything can be certified: all of them succeed by chance with
    probability (1 - level)^draws <= error.
    """
    exact = math.log(error) / math.log1p(-level)
    return math.ceil(exact - _ROUNDING)


def failure_bounds(
    failures: Int[np.ndarray, " m"], draws: int, error: float
) -> Float[np.ndarray, " m"]:
    """Upper bounds on the probabilities of failure, (m,), each right with confidence 1 - error.

    The p with P(Bin(draws, p) <= failures) = error; 1 where all draws fail.
    """
    failures = np.asarray(failures)
    inside = np.minimum(failures, draws - 1)
    return np.where(failures >= draws, 1.0, _upper_bounds(inside, draws, error))


def largest_set(
    order: Int[np.ndarray, " m"], wrong: Bool[np.ndarray, "draws m"], allowed: int
) -> tuple[Bool[np.ndarray, " m"], int]:
    """The longest beginning of `order` that at most `allowed` draws fail, as a mask (m,); and how
    many do fail it.
    """
    ordered = wrong[:, order]
    anywhere = np.logical_or.accumulate(ordered, axis=1)
    failed = anywhere.sum(axis=0)
    few = failed <= allowed
    count = int(few.sum())
    chosen = np.zeros(len(order), bool)
    chosen[order[:count]] = True
    if count == 0:
        return chosen, 0
    return chosen, int(failed[count - 1])
