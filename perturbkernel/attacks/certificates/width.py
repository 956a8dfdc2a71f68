"""What the networks of one width may lose within a ball beyond their limit, all but a few of them.

A doubled network of width m has m/2 independent pairs of neurons (w, b, a) and (w, b, -a). After
training the pair's output is 2 a^2 s <D, z>, D = sum_n coef_n phi'(u(x_n)) x_n, with s the gate at
z but for gates that training may turn. Four events, each with a quarter of the failure (theory:
17.4): the sum at the input with its gates, its gradient with the gates at the input, gates at the
training points that training turns, and gates that a perturbation turns: the last for all
perturbations at once, by an average over balls of radius `radius` about each of them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perturbkernel.attacks.certificates.points import Query, Seen, angle_reach
from perturbkernel.engine import tiles
from perturbkernel.kernels.angles import products_and_angles

# Of the size to the radius of the balls that are averaged over. Every value gives a bound.
_SHARES = np.geomspace(1e-3, 1e4, 64)[:, None]
# Rates of the exponential moment, in units where a squared Gaussian's ends at 1/2.
_RATES = np.concatenate([np.geomspace(1e-4, 0.3, 40), np.linspace(0.32, 0.48, 9)])[None]
# Half the width of the band about a boundary, in standard deviations of a step within the ball.
_BAND = 2.0
_ROUNDED_UP = 1 + 1e-6
_ROOT_TWO_PI = np.sqrt(2 * np.pi)
_ROOT_TWO_OVER_PI = np.sqrt(2 / np.pi)


class Wide(NamedTuple):
    """Networks of one width, and what their training set says of all of them.

    Attributes:
        pairs: m/2. level: log(4 / failure). slope: of the activation.
        second: (d + 1, d + 1), the second moments of sum_n coef_n phi'(u(x_n)) (x_n, c).
        pull: the most |sum_n p_n coef_n x_n|_2 can be over gates p.
        turning: (n,), |coef_n| (hi_n + lo_n) / (4 sqrt(2 pi) s_n), which sums to the expected loss
            by gates that training turns at the training points.
    """

    pairs: Array
    level: Array
    slope: Array
    second: Float[Array, "e e"]
    pull: Array
    turning: Float[Array, " n"]


class Gates(NamedTuple):
    """Of the processes of gates near the input, at one size.

    Attributes:
        distance: the size in l2. angle: by which it turns the input.
        high, low: the most sum_n p_n coef_n k_n can be over gates p, and the most below 0.
        absolute: sum_n |coef_n k_n|, at the most within the ball.
    """

    distance: Array
    angle: Array
    high: Array
    low: Array
    absolute: Array


def wide_of(
    x: Float[Array, "n d"],
    coef: Float[Array, " n"],
    numbers: Any,
    width: int,
    failure: float,
    slope: float,
    memory: int,
) -> Wide:
    """The record of a training set, in one pass over its pairs of points, in tiles."""
    n, d = x.shape
    column = jnp.full((n, 1), numbers.bias, x.dtype)
    pulls = coef[:, None] * jnp.hstack([x, column])

    def one_tile(rows):
        product, theta = products_and_angles(rows, x)
        gates = numbers.gate - numbers.cone * theta
        factors = product + numbers.bias
        high, low = extremes(factors * coef[None], slope)
        absolute = jnp.abs(product)
        return gates @ pulls, high + low, absolute @ jnp.abs(coef)

    limit = max(8, memory // (8 * 16 * n))
    weighted, span, overlap = tiles.by_rows(one_tile, x, limit)
    squares = jnp.sum(x**2, axis=1)
    length = jnp.sqrt(1 + squares / d)
    size = jnp.abs(coef)
    # |sum t_n coef_n x_n|^2 <= sum |coef_n coef_k <x_n, x_k>| for all |t_n| <= 1.
    any_signs = jnp.sqrt(size @ overlap)
    mean = jnp.linalg.norm(coef @ x)
    # A gate p in [slope, 1] is their middle and t times half their difference, |t| <= 1.
    middle = (1 + slope) / 2
    half = (1 - slope) / 2
    return Wide(
        pairs=jnp.asarray(width) / 2,
        level=jnp.log(4 / jnp.asarray(failure)),
        slope=jnp.asarray(slope),
        second=pulls.T @ weighted,
        pull=middle * mean + half * any_signs,
        turning=size * span / (4 * _ROOT_TWO_PI * length),
    )


def extremes(terms: Array, slope: Any) -> tuple[Array, Array]:
    """(hi, lo): sum_n p_n terms_n lies in [-lo, hi] for gates p in [slope, 1]; of the last axis.

    Example:
        >>> [float(end) for end in extremes(jnp.asarray([3.0, -1.0]), 0.5)]
        [2.5, 0.0]
    """
    positive = jnp.maximum(terms, 0).sum(-1)
    negative = jnp.maximum(-terms, 0).sum(-1)
    high = positive - slope * negative
    low = negative - slope * positive
    return jnp.maximum(high, 0), jnp.maximum(low, 0)


def width_loss(
    wide: Wide, query: Query, seen: Seen, coef: Float[Array, " n"], numbers: Any, size: Array
) -> Array:
    """How much less than its limit a network may have anywhere within the ball, at most, but for
    draws of probability `failure`. Increases in the size.
    """
    distance = size * numbers.reach
    terms = coef * seen.factor
    high, low = extremes(terms, wide.slope)
    factor = jnp.abs(seen.factor)
    change = size * seen.dual
    at_most = factor + change
    gates = Gates(
        distance=distance,
        angle=angle_reach(query, distance),
        high=high,
        low=low,
        absolute=jnp.sum(jnp.abs(coef) * at_most),
    )
    # A factor that may change its sign lets gates do harm from either side.
    sides = jnp.where(factor > change, 1, 2)
    turned = jnp.sum(wide.turning * at_most * sides)
    d = len(query.point)
    by_perturbations = turned_by_perturbations(wide, gates, numbers.cone, d)
    total = at_the_input(wide, query, gates)
    total += turned_by_training(wide, turned, gates.absolute)
    total += by_perturbations.min()
    return total * _ROUNDED_UP


def at_the_input(wide: Wide, query: Query, gates: Gates) -> Array:
    """Bernstein's bounds for the value and for the gradient with the gates at the input."""
    point = jnp.append(query.point, 1.0)
    square = point @ wide.second @ point
    square = jnp.maximum(square, 0)
    of_inputs = wide.second[:-1, :-1]
    squares = jnp.trace(of_inputs)
    rate = wide.level / wide.pairs
    most = jnp.maximum(gates.high, gates.low)
    value = jnp.sqrt(6 * square * rate) + 2 * most * rate
    # Norms have two tails.
    rate = (wide.level + np.log(2)) / wide.pairs
    gradient = jnp.sqrt(6 * squares * rate) + 27 * wide.pull * rate
    return value + gates.distance * gradient


def turned_by_training(wide: Wide, turned: Array, absolute: Array) -> Array:
    """Of gates at the training points: mean, and Bernstein's bound."""
    width = 2 * wide.pairs
    gap = 1 - wide.slope
    mean = 2 * _ROOT_TWO_OVER_PI * gap * turned / jnp.sqrt(width)
    constant = 2**4.5 / np.sqrt(np.pi)
    variance = constant * gap**2 * absolute * turned / width**1.5
    largest = 4 * gap * absolute / width
    return mean + jnp.sqrt(2 * variance * wide.level) + largest * wide.level


def turned_by_perturbations(
    wide: Wide, gates: Gates, cone: Array, d: int
) -> Float[Array, "shares 1"]:
    """Of gates near the input, for every perturbation at once: a bound for every radius."""
    gap = 1 - wide.slope
    pull = wide.pull
    distance = gates.distance
    most = jnp.maximum(gates.high, gates.low)
    root_d = np.sqrt(d)
    radius = distance / _SHARES
    entropy = wide.level + d * jnp.log1p(_SHARES)
    half_width, rise = band_of(d)
    band = half_width * radius
    # Training moves a pre-activation by |xi| moved at most.
    speed = most + distance * pull
    moved = speed / jnp.sqrt(2 * wide.pairs)
    # The share of gates that one perturbation, and one step in a ball about it, turn.
    by_angle = gates.angle + radius / root_d
    directly = jnp.hypot(distance, radius) / root_d
    flips = jnp.minimum(by_angle, directly) / np.pi
    flips = jnp.minimum(flips, 1)

    # The mean: of gates in the band, and of the average in place of the perturbation itself.
    span = gates.high + gates.low + 2 * (distance + 2 * radius) * pull
    trained = 2 * _ROOT_TWO_OVER_PI * moved * (speed + 2 * radius * pull)
    in_band = rise * gap / _ROOT_TWO_PI * (band * span + trained)
    turned = 2 * gap * radius * pull * flips
    averaged = cone * radius / root_d * gates.absolute + turned

    # The deviation, at the best rate.
    largest = gap * (most + (distance + 3 * radius) * pull)
    rates = _RATES / rise
    plain, _ = excess_moments(rates)
    even, odd = excess_moments(_RATES)
    of_band = band * even + moved * odd
    exponent = flips * plain + 2 / _ROOT_TWO_PI * of_band
    bounds = (entropy / wide.pairs + exponent) / rates
    best = bounds.min(axis=1, keepdims=True)
    return in_band + averaged + largest * best


def band_of(d: int) -> tuple[float, Array]:
    """(beta, C): a coordinate of a point drawn from the unit ball of d dimensions is within beta
    of 0 with probability 1 / C.

    Example:
        >>> beta, rise = band_of(62)
        >>> beta, round(float(rise), 3)
        (0.25, 1.047)
    """
    deviation = 1 / float(np.sqrt(d + 2))
    beta = min(1.0, _BAND * deviation)
    probability = jax.scipy.special.betainc(0.5, (d + 1) / 2, beta**2)
    return beta, 1 / probability


def excess_moments(rate: Any) -> tuple[Any, Any]:
    """E[e] and E[|xi| e] of e = exp(rate xi^2) - 1 - rate xi^2, xi a standard Gaussian.

    Example:
        >>> [round(float(moment), 3) for moment in excess_moments(0.25)]
        [0.164, 0.399]
    """
    left = 1 - 2 * rate
    even = left**-0.5 - 1 - rate
    odd = 1 / left - 1 - 2 * rate
    return even, _ROOT_TWO_OVER_PI * odd
