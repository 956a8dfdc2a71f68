"""Which signs hold together, from independent draws: exact binomial bounds (theory: 14.5).

A nested family of sets of points is chosen beforehand. A draw fails a set if any sign in it is
wrong, so the larger a set, the more draws fail it, and the largest set that few enough draws fail
is found at no cost in confidence.
"""

import math

import jax.scipy.special as special
import numpy as np
from jaxtyping import Bool, Float, Int

from perturbkernel.theory.arguments import double

#: Halvings of [0, 1]: to the last digit of a float64.
_HALVINGS = 60
#: Of a number of draws that should be whole.
_ROUNDING = 1e-9


def _at_most(draws: int, probability: np.ndarray, count: np.ndarray) -> np.ndarray:
    """P(Bin(draws, probability) <= count) for counts below `draws`."""
    successes = np.asarray(draws - count, float)
    failures = np.asarray(count + 1, float)
    right = 1 - probability
    return double(special.betainc, successes, failures, right)


def allowed_failures(draws: int, level: float, error: float) -> int:
    """The largest V with P(Bin(draws, level) <= V) <= error; -1 if there is none.

    If more than a share `level` of all networks fail, V or fewer of `draws` do so with probability
    `error` at most. Clopper and Pearson (1934).
    """
    counts = np.arange(draws)
    levels = np.full(draws, float(level))
    chance = _at_most(draws, levels, counts)
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
    low = np.zeros(failures.shape)
    high = np.ones(failures.shape)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        unlikely = _at_most(draws, middle, inside) <= error
        high = np.where(unlikely, middle, high)
        low = np.where(unlikely, low, middle)
    return np.where(failures >= draws, 1.0, high)


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
