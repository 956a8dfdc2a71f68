"""The geometry of the norms l2, linf, l1 and l0: steepest steps, projections, nearest points of a
half-space, in a box.

Rows are flat, (m, d), and treated one by one. A box low <= d <= high holds 0; without one it is all
of space. Every answer is exact to rounding: each is a one-parameter family, and its parameter
solves an equation that is piecewise linear between sorted break points (`crossings`).

A norm is one record in the table at the end.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from perturbkernel.arrays import as_jax, namespace, on_host
from perturbkernel.attacks.boxes import Box, Rows, clip, headroom
from perturbkernel.attacks.boxes import within as within
from perturbkernel.attacks.crossings import (
    before,
    crossing,
    largest_first,
    or_one,
    put_back,
    rank,
    taken,
    threshold,
)
from perturbkernel.metrics import unit_rows

Column = Float[Array, "m 1"]
Size = Array | float  # one number, or (m, 1)


def normalise(gradient: Float[Array, "n ..."], norm: str) -> Float[Array, "n ..."]:
    """The direction of unit norm that increases a function fastest; 0 for g = 0.

    g / |g| for l2, sign(g) for linf.

    Example:
        >>> normalise(jnp.asarray([[3.0, 0.0], [0.0, 0.0]]), "l2").tolist()
        [[1.0, 0.0], [0.0, 0.0]]
    """
    if norm != "linf":
        return unit_rows(gradient)
    gradient = on_host(gradient)
    return as_jax(namespace(gradient).sign(gradient))


def lengths(delta: Rows, norm: str) -> Float[Array, " m"]:
    """The norm of every row, (m,); l0 counts its entries that are not zero.

    Example:
        >>> lengths(jnp.asarray([[3.0, -4.0]]), "l1").tolist()
        [7.0]
    """
    return _GEOMETRY[norm].lengths(delta)


def steepest(g: Rows, size: Size, norm: str, box: Box = None) -> Rows:
    """The d of norm at most `size` in the box with the largest <g, d>; 0 where g is 0.

    Without a box: size g / |g| (l2), size sign(g) (linf), all in the entry with the largest |g|
    (l1); l0 needs a box. In a box: clip(t g) with t such that the norm is `size`, or all entries
    saturate (l2); clip(size sign g) (linf); the largest |g| filled first (l1); the `size` entries
    with the largest gain (l0).

    Example:
        >>> steepest(jnp.asarray([[3.0, -4.0]]), 0.5, "linf").tolist()
        [[0.5, -0.5]]
    """
    return _GEOMETRY[norm].steepest(g, size, box)


def project(u: Rows, size: Size, norm: str, box: Box = None) -> Rows:
    """The point nearest to u, in Euclidean distance, of those of norm at most `size` in the box.

    clip(s u), s <= 1, such that the norm is `size` (l2); clip(clip(u, -size, size)) (linf);
    clip(sign(u) (|u| - lambda)_+) with lambda >= 0 such that the norm is `size` (l1); the `size`
    entries whose clipped values save the most distance, the others 0 (l0).

    Example:
        >>> project(jnp.asarray([[5.0, 3.0]]), 4.0, "l1").tolist()
        [[3.0, 1.0]]
    """
    return _GEOMETRY[norm].project(u, size, box)


def reach(g: Rows, gain: Float[Array, " m"], norm: str, box: Box = None) -> Rows:
    """The smallest d, in the norm, with <g, d> = gain >= 0 in the box (l0: >= gain).

    Its size is gain / |g|_dual. Where the box does not reach so far, its corner with the largest
    <g, d>; 0 where g is 0.

    Example:
        >>> reach(jnp.asarray([[2.0, 1.0]]), jnp.asarray([3.0]), "linf").tolist()
        [[1.0, 1.0]]
    """
    # In units of the largest entry: squares of the others do not underflow.
    m = jnp.abs(g)
    largest = or_one(m.max(1, keepdims=True))
    g = g / largest
    gain = gain[:, None] / largest
    return _GEOMETRY[norm].reach(g, gain, box)


def shorten(d: Rows, size: Size, norm: str) -> Rows:
    """d, scaled down where it is longer than `size`, in l2, linf or l1; it stays in a box.

    The sums behind an exact answer round. After this its norm is within `size` to the rounding of
    the norm itself.

    Example:
        >>> shorten(jnp.asarray([[3.0, 1.0], [0.5, 0.5]]), 2.0, "l1").tolist()
        [[1.5, 0.5], [0.5, 0.5]]
    """
    length = lengths(d, norm)
    length = length[:, None]
    share = jnp.minimum(1, size / or_one(length))
    return d * share


# --- l2 ---


def _lengths_l2(d: Rows) -> Array:
    # In units of the largest entry: squares neither underflow nor overflow.
    m = jnp.abs(d)
    largest = m.max(1)
    unit = or_one(largest)
    scaled = d / unit[:, None]
    squares = jnp.sum(scaled**2, axis=1)
    return largest * jnp.sqrt(squares)


def _steepest_l2(g: Rows, size: Size, box: Box) -> Rows:
    if box is None:
        return size * normalise(g, "l2")
    t = _stretch(g, size, box)
    d = _stretched(g, t, size, box)
    return shorten(d, size, "l2")


def _project_l2(u: Rows, size: Size, box: Box) -> Rows:
    if box is None:
        return shorten(u, size, "l2")
    t = _stretch(u, size, box)
    t = jnp.minimum(1, t)
    d = _stretched(u, t, size, box)
    return shorten(d, size, "l2")


def _reach_l2(g: Rows, gain: Column, box: Box) -> Rows:
    if box is None:
        return _along(g, g, gain)
    m = jnp.abs(g)
    room = headroom(g, box)
    breaks = room / or_one(m)
    t = crossing(breaks, m * room, m**2, gain)
    return _stretched(g, t, jnp.inf, box)


def _along(direction: Rows, g: Rows, gain: Column) -> Rows:
    """The multiple of `direction` with <g, d> = gain."""
    rise = jnp.sum(direction * g, axis=1, keepdims=True)
    length = gain / or_one(rise)
    return direction * length


def _stretch(u: Rows, size: Size, box: Box) -> Column:
    """The largest t with |clip(t u)|_2 <= size; inf if every t has it."""
    room = headroom(u, box)
    # In units of the largest entry that can move: squares of the others do not underflow.
    m = jnp.abs(u)
    m = jnp.where(room > 0, m, 0)
    largest = or_one(m.max(1, keepdims=True))
    m = m / largest
    positive = jnp.asarray(size) > 0
    unit = jnp.where(positive, size, 1)
    room = jnp.minimum(room, size)
    room = room / unit
    breaks = room / or_one(m)
    t_squared = crossing(
        breaks=breaks**2,
        constant=room**2,
        slope=m**2,
        level=(size / unit) ** 2,
    )
    t = jnp.sqrt(t_squared)
    return t * unit / largest


def _stretched(u: Rows, t: Column, size: Size, box: Box) -> Rows:
    """clip(t u), no entry larger than `size`; t may be infinite."""
    limited = jnp.clip(t * u, -size, size)
    limited = clip(limited, box)
    return jnp.where(u == 0, 0, limited)


# --- linf ---


def _lengths_linf(d: Rows) -> Array:
    m = jnp.abs(d)
    return m.max(1)


def _steepest_linf(g: Rows, size: Size, box: Box) -> Rows:
    corner = size * jnp.sign(g)
    return clip(corner, box)


def _project_linf(u: Rows, size: Size, box: Box) -> Rows:
    limited = jnp.clip(u, -size, size)
    return clip(limited, box)


def _reach_linf(g: Rows, gain: Column, box: Box) -> Rows:
    if box is None:
        corner = jnp.sign(g)
        return _along(corner, g, gain)
    m = jnp.abs(g)
    room = headroom(g, box)
    # All entries move by the same amount, as far as the box lets them.
    amount = crossing(room, m * room, m, gain)
    amounts = jnp.minimum(amount, room)
    return jnp.sign(g) * amounts


# --- l1 ---


def _lengths_l1(d: Rows) -> Array:
    return jnp.sum(jnp.abs(d), axis=1, dtype=d.dtype)


def _steepest_l1(g: Rows, size: Size, box: Box) -> Rows:
    m = jnp.abs(g)
    order = largest_first(m)
    room = headroom(g, box)
    room = taken(room, order)
    room = jnp.minimum(room, size)
    left = size - before(room)
    filled = jnp.clip(left, 0, room)
    d = _moved_by(filled, order, g)
    return shorten(d, size, "l1")


def _project_l1(u: Rows, size: Size, box: Box) -> Rows:
    room = headroom(u, box)
    room = jnp.minimum(room, size)
    m = jnp.abs(u)
    above = m - threshold(m, room, size)
    left = jnp.clip(above, 0, room)
    d = jnp.sign(u) * left
    return shorten(d, size, "l1")


def _reach_l1(g: Rows, gain: Column, box: Box) -> Rows:
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


def _lengths_l0(d: Rows) -> Array:
    return jnp.sum(d != 0, axis=1, dtype=d.dtype)


def _steepest_l0(g: Rows, size: Size, box: Box) -> Rows:
    room = headroom(g, box)
    gain = jnp.abs(g) * room
    first = _places(gain) < size
    chosen = first & (gain > 0)
    corner = jnp.sign(g) * room
    return jnp.where(chosen, corner, 0)


def _project_l0(u: Rows, size: Size, box: Box) -> Rows:
    inside = clip(u, box)
    saved = inside * (2 * u - inside)  # u^2 - (u - inside)^2
    first = _places(saved) < size
    return jnp.where(first, inside, 0)


def _reach_l0(g: Rows, gain: Column, box: Box) -> Rows:
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


class _Norm(NamedTuple):
    """What the attacks need of a norm.

    Attributes:
        dual: the norm in which a gradient bounds what a step of norm 1 gains.
        lengths, steepest, project, reach: the public functions of these names; `reach` is given g
            with a largest entry of 1.
    """

    dual: str
    lengths: Callable
    steepest: Callable
    project: Callable
    reach: Callable


_GEOMETRY = {
    "l2": _Norm(
        dual="l2",
        lengths=_lengths_l2,
        steepest=_steepest_l2,
        project=_project_l2,
        reach=_reach_l2,
    ),
    "linf": _Norm(
        dual="l1",
        lengths=_lengths_linf,
        steepest=_steepest_linf,
        project=_project_linf,
        reach=_reach_linf,
    ),
    "l1": _Norm(
        dual="linf",
        lengths=_lengths_l1,
        steepest=_steepest_l1,
        project=_project_l1,
        reach=_reach_l1,
    ),
    "l0": _Norm(
        dual="l2",  # l0 has none; l2 stands in for it
        lengths=_lengths_l0,
        steepest=_steepest_l0,
        project=_project_l0,
        reach=_reach_l0,
    ),
}
NORMS = tuple(_GEOMETRY)
DUAL = {name: norm.dual for name, norm in _GEOMETRY.items()}
