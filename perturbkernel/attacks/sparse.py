"""The geometry of the norms that favour few entries, l1 and l0; see `norms`.

Rows are flat, (m, d), and treated one by one.
"""

import jax.numpy as jnp
from jaxtyping import Array

from perturbkernel.attacks.boxes import Box, Rows, clip, headroom
from perturbkernel.attacks.crossings import (
    before,
    largest_first,
    or_one,
    put_back,
    rank,
    taken,
    threshold,
)
from perturbkernel.attacks.stretches import shortened


def lengths_l1(d: Rows) -> Array:
    """The sum of |d_i|, (m,).

    Example:
        >>> lengths_l1(jnp.asarray([[3.0, -4.0]])).tolist()
        [7.0]
    """
    return jnp.sum(jnp.abs(d), axis=1, dtype=d.dtype)


def steepest_l1(g: Rows, size: Array | float, box: Box) -> Rows:
    """The entries with the largest |g| filled first.

    Example:
        >>> steepest_l1(jnp.asarray([[3.0, -4.0]]), 0.5, None).tolist()
        [[0.0, -0.5]]
    """
    m = jnp.abs(g)
    order = largest_first(m)
    room = headroom(g, box)
    room = taken(room, order)
    room = jnp.minimum(room, size)
    left = size - before(room)
    filled = jnp.clip(left, 0, room)
    d = _moved_by(filled, order, g)
    return shortened(d, size, lengths_l1(d))


def project_l1(u: Rows, size: Array | float, box: Box) -> Rows:
    """clip(sign(u) (|u| - lambda)_+), lambda >= 0 such that the norm is `size`.

    Example:
        >>> project_l1(jnp.asarray([[5.0, 3.0]]), 4.0, None).tolist()
        [[3.0, 1.0]]
    """
    room = headroom(u, box)
    room = jnp.minimum(room, size)
    m = jnp.abs(u)
    above = m - threshold(m, room, size)
    left = jnp.clip(above, 0, room)
    d = jnp.sign(u) * left
    return shortened(d, size, lengths_l1(d))


def reach_l1(g: Rows, gain: Array, box: Box) -> Rows:
    """The entries with the largest |g| moved first, until <g, d> = gain.

    Example:
        >>> reach_l1(jnp.asarray([[1.0, 0.5]]), jnp.asarray([[3.0]]), None).tolist()
        [[3.0, 0.0]]
    """
    m = jnp.abs(g)
    room = headroom(g, box)
    order = largest_first(m)
    m = taken(m, order)
    room = taken(room, order)
    missing = gain - before(m * room)
    wanted = missing / or_one(m)
    moved = jnp.clip(wanted, 0, room)
    return _moved_by(moved, order, g)


def _moved_by(amounts: Rows, order: Array, g: Rows) -> Rows:
    """Moves along the sign of g by amounts that are given in an order of the entries."""
    amounts = put_back(amounts, order)
    return jnp.sign(g) * amounts


# --- l0: an entry that moves goes to the edge of the box, at no further cost ---


def lengths_l0(d: Rows) -> Array:
    """How many entries are not zero, (m,).

    Example:
        >>> lengths_l0(jnp.asarray([[3.0, 0.0]])).tolist()
        [1.0]
    """
    return jnp.sum(d != 0, axis=1, dtype=d.dtype)


def steepest_l0(g: Rows, size: Array | float, box: Box) -> Rows:
    """The `size` entries with the largest gain, at the edge of the box.

    Example:
        >>> box = -jnp.ones((1, 2)), jnp.ones((1, 2))
        >>> steepest_l0(jnp.asarray([[3.0, -4.0]]), 1, box).tolist()
        [[0.0, -1.0]]
    """
    room = headroom(g, box)
    gain = jnp.abs(g) * room
    first = _places(gain) < size
    chosen = first & (gain > 0)
    corner = jnp.sign(g) * room
    return jnp.where(chosen, corner, 0)


def project_l0(u: Rows, size: Array | float, box: Box) -> Rows:
    """The `size` entries whose clipped values save the most distance, the others 0.

    Example:
        >>> box = -jnp.ones((1, 2)), jnp.ones((1, 2))
        >>> project_l0(jnp.asarray([[3.0, -4.0]]), 1, box).tolist()
        [[0.0, -1.0]]
    """
    inside = clip(u, box)
    saved = inside * (2 * u - inside)  # u^2 - (u - inside)^2
    first = _places(saved) < size
    return jnp.where(first, inside, 0)


def reach_l0(g: Rows, gain: Array, box: Box) -> Rows:
    """The fewest entries with <g, d> >= gain, those with the largest gain.

    Example:
        >>> box = -jnp.ones((1, 2)), jnp.ones((1, 2))
        >>> reach_l0(jnp.ones((1, 2)), jnp.full((1, 1), 1.5), box).tolist()
        [[1.0, 1.0]]
    """
    m = jnp.abs(g)
    room = headroom(g, box)
    order = largest_first(m * room)
    m = taken(m, order)
    room = taken(room, order)
    missing = gain - before(m * room)
    wanted = jnp.where(missing > 0, room, 0)
    moved = jnp.clip(wanted, 0, room)
    return _moved_by(moved, order, g)


def _places(values: Rows) -> Rows:
    """`rank`, in the dtype of the values."""
    places = rank(values)
    return places.astype(values.dtype)
