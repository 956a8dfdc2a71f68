"""Points as a query sees them, and how far a Taylor expansion in the query can be off (theory:
17.1).

All angles are between (x/sqrt(d), 1) and (z/sqrt(d), 1), vectors in d + 1 dimensions. A query moves
along a straight line with |delta| <= r in the norm of the attack, |delta|_2 <= reach r.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

# Angles below are not divided by: such points are expanded to order 0.
NEAREST = 1e-5
# An angle may shrink to this share of itself, which costs ten bits of its cotangent.
_LEFT = 1 / 1024
# Factor of all remainders that pays for their own rounding.
_ROUNDED_UP = 1 + 1e-6
# max |x (1 - x^2)|, which is also that of cos^2 sin.
_CUBIC = 0.3850


class Query(NamedTuple):
    """One point z, (d,).

    Attributes:
        length: |z|. root: sqrt(d + |z|^2), the length of (z, sqrt(d)).
        dual: |z| in the norm dual to that of the attack.
    """

    point: Array
    length: Array
    root: Array
    dual: Array


class Seen(NamedTuple):
    """n points x_n seen from a query.

    Attributes:
        factor: <x_n, z> + c. theta: the angles. root: sqrt(d + |x_n|^2).
        dual: |x_n| in the norm dual to that of the attack.
    """

    factor: Array
    theta: Array
    root: Array
    dual: Array


def angle_reach(query: Query, distance: Array) -> Array:
    """The largest angle by which a step of so much (l2) turns the query.

    Example:
        >>> one = jnp.ones(1)
        >>> query = Query(one, jnp.asarray(1.0), jnp.asarray(2.0), one)
        >>> [round(float(angle_reach(query, jnp.asarray(step))), 3) for step in (1.0, 3.0)]
        [0.524, 3.142]
    """
    ratio = distance / query.root
    sine = jnp.minimum(ratio, 1)
    angle = jnp.arcsin(sine) * _ROUNDED_UP
    return jnp.where(ratio < 1, angle, jnp.pi)


def turning_speed(query: Query, distance: Array) -> Array:
    """At least 1/sqrt(d + |z + delta|^2) for |delta|_2 <= distance: radians a unit of length."""
    d = len(query.point)
    left = jnp.maximum(query.length - distance, 0)
    return _ROUNDED_UP / jnp.sqrt(d + left**2)


def cotangent_bound(theta: Array, angle: Array) -> Array:
    """At least |cot| of all angles within `angle` of theta; inf where they may come near 0 or pi.

    Example:
        >>> bounds = cotangent_bound(jnp.asarray([0.1, 1.0]), jnp.asarray(0.2))
        >>> [round(float(bound), 3) for bound in bounds]
        [inf, 0.971]
    """
    low = theta - angle
    high = theta + angle
    above_zero = low > _LEFT * theta
    below_pi = jnp.pi - high > _LEFT * (jnp.pi - theta)
    inside = above_zero & below_pi
    # |cot| falls to pi / 2 and rises from there: it is largest at an end.
    at_low = 1 / jnp.tan(jnp.where(inside, low, 1))
    at_high = 1 / jnp.tan(jnp.where(inside, high, 1))
    largest = jnp.maximum(jnp.abs(at_low), jnp.abs(at_high))
    return jnp.where(inside, largest, jnp.inf)


def kernel_remainders(
    query: Query,
    seen: Seen,
    coef: Float[Array, " n"],
    cone: Array,
    size: Array,
    reach: Array,
) -> Float[Array, "3 n"]:
    """How much more coef_n K(x_n, .) can grow within the ball than its expansion to order 0, 1, 2.

    Order 0 holds the gates still and keeps Phi(x_n, z) <x_n, delta>; orders 1 and 2 are those of
    Taylor. inf where the ball comes too near x_n, or -x_n.

    Args:
        coef: signed. cone: -d Phi / d theta. size: r, in the norm of the attack.
        reach: |delta|_2 <= reach |delta|.
    """
    distance = size * reach
    angle = angle_reach(query, distance)
    # Bounds of the derivatives of theta along a line, of order 1, 2 and 3.
    speed = turning_speed(query, distance) * reach
    cotangent = cotangent_bound(seen.theta, angle)
    second = jnp.maximum(cotangent, 1) * speed**2
    cubic = _CUBIC * (1 + 6 * cotangent + 3 * cotangent**2)
    third = (cubic + 2) * speed**3
    # The factor <x_n, z> + c, and how fast it changes.
    factor = jnp.abs(seen.factor)
    slope = seen.dual
    # Toward x_n the angle shrinks by at most theta; which way counts is known where the factor
    # keeps its sign.
    is_growing = (coef * seen.factor > 0) & (factor > size * slope)
    shrinking = jnp.minimum(angle, seen.theta)
    turned = jnp.where(is_growing, shrinking, angle)
    of_order_0 = turned * (factor + size * slope)
    by_factor = factor * size**2 / 2
    by_slope = slope * size**3 / 6
    of_order_1 = second * (by_factor + by_slope)
    of_order_1 += speed * slope * size**2
    by_factor = factor * size**3 / 6
    by_slope = slope * size**4 / 24
    of_order_2 = third * (by_factor + by_slope)
    of_order_2 += 3 * second * slope * size**3 / 6
    # Next to x_n and -x_n theta has no derivatives.
    from_poles = jnp.minimum(seen.theta, jnp.pi - seen.theta)
    is_near = from_poles < NEAREST
    of_order_1 = jnp.where(is_near, jnp.inf, of_order_1)
    of_order_2 = jnp.where(is_near, jnp.inf, of_order_2)
    scale = cone * jnp.abs(coef)[None]
    bounds = scale * jnp.stack([of_order_0, of_order_1, of_order_2])
    # Not 0 * inf.
    bounds = jnp.where(scale > 0, bounds, 0)
    return bounds * _ROUNDED_UP


def initial_remainder(
    query: Query, seen: Seen, coef: Array, cone: Array, size: Array, reach: Array
) -> Array:
    """How much more sum_n coef_n Sigma(x_n, .) can grow than its expansion to order 2: Sigma has a
    bounded third derivative, 2.6 at most in its own units.
    """
    d = len(query.point)
    distance = size * reach
    speed = turning_speed(query, distance)
    lengths = jnp.sum(jnp.abs(coef) * seen.root)
    third = 2.6 * cone * lengths * speed**2 / d
    return third / 6 * distance**3 * _ROUNDED_UP
