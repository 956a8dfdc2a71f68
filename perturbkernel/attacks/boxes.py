"""Boxes low <= d <= high that hold 0: where perturbations may lie.

Rows are flat, (m, d), and treated one by one. Without a box, None, there is all of space.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

Rows = Float[Array, "m d"]
Box = tuple[Rows, Rows] | None


def clip(d: Rows, box: Box) -> Rows:
    """The entries of d, in the box.

    Example:
        >>> d = jnp.asarray([[3.0, -4.0]])
        >>> clip(d, (jnp.full((1, 2), -1.0), jnp.full((1, 2), 2.0))).tolist()
        [[2.0, -1.0]]
    """
    if box is None:
        return d
    low, high = box
    return jnp.clip(d, low, high)


def box_around(x: Array, bounds: Box) -> Box:
    """Where perturbations of x may lie: (low - x, high - x) for bounds (low, high).

    Example:
        >>> x = jnp.asarray([[0.25, 1.0]])
        >>> low, high = box_around(x, (jnp.zeros((1, 2)), jnp.ones((1, 2))))
        >>> low.tolist(), high.tolist()
        ([[-0.25, -1.0]], [[0.75, 0.0]])
    """
    if bounds is None:
        return None
    low, high = bounds
    return low - x, high - x


def headroom(g: Array, box: Box) -> Array:
    """How far each entry can move along the sign of g in the box; 0 where g is 0.

    Example:
        >>> headroom(jnp.asarray([[3.0, 0.0]]), None).tolist()
        [[inf, 0.0]]
    """
    if box is None:
        room = jnp.where(g == 0, 0, jnp.inf)
        return room.astype(g.dtype)
    low, high = box
    downward = jnp.where(g < 0, -low, 0)
    return jnp.where(g > 0, high, downward)


def within(x: Array, delta: Array, bounds: Box) -> Array:
    """delta, moved by its last bit where its sum with x would round to beyond the bounds.

    One bit is enough where delta is in the box (low - x, high - x): without the rounding of that
    difference the sum is within, and rounding is monotone.

    Example:
        >>> x = jnp.asarray([[0.5]])
        >>> within(x, jnp.asarray([[0.25]]), (jnp.zeros((1, 1)), jnp.ones((1, 1)))).tolist()
        [[0.25]]
    """
    if bounds is None:
        return delta
    low, high = bounds
    above = x + delta > high
    below = x + delta < low
    inward = jnp.where(below, jnp.inf, delta)
    inward = jnp.where(above, -jnp.inf, inward)
    inward = inward.astype(delta.dtype)
    return jnp.nextafter(delta, inward)
