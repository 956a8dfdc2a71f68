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

Rows = Float[Array, "m d"]
Column = Float[Array, "m 1"]
Size = Array | float  # one number, or (m, 1)
Box = tuple[Rows, Rows] | None


def normalise(gradient: Float[Array, "n ..."], norm: str) -> Float[Array, "n ..."]:
    """The direction of unit norm that increases a function fastest; 0 for g = 0.

    g / |g| for l2, sign(g) for linf.
    """
    if norm != "linf":
        return unit_rows(gradient)
    gradient = on_host(gradient)
    return as_jax(namespace(gradient).sign(gradient))


def lengths(delta: Rows, norm: str) -> Float[Array, " m"]:
    """The norm of every row, (m,); l0 counts its entries that are not zero."""
    return _GEOMETRY[norm].lengths(delta)


def steepest(g: Rows, size: Size, norm: str, box: Box = None) -> Rows:
    """The d of norm at most `size` in the box with the largest <g, d>; 0 where g is 0.

    Without a box: size g / |g| (l2), size sign(g) (linf), all in the entry with the largest |g|
    (l1); l0 needs a box. In a box: clip(t g) with t such that the norm is `size`, or all entries
    saturate (l2); clip(size sign g) (linf); the largest |g| filled first (l1); the `size` entries
    with the largest gain (l0).
    """
    return _GEOMETRY[norm].steepest(g, size, box)


def project(u: Rows, size: Size, norm: str, box: Box = None) -> Rows:
    """The point nearest to u, in Euclidean distance, of those of norm at most `size` in the box.

    clip(s u), s <= 1, such that the norm is `size` (l2); clip(clip(u, -size, size)) (linf);
    clip(sign(u) (|u| - lambda)_+) with lambda >= 0 such that the norm is `size` (l1); the `size`
    entries whose clipped values save the most distance, the others 0 (l0).
    """
    return _GEOMETRY[norm].project(u, size, box)


def reach(g: Rows, gain: Float[Array, " m"], norm: str, box: Box = None) -> Rows:
    """The smallest d, in the norm, with <g, d> = gain >= 0 in the box (l0: >= gain).

    Its size is gain / |g|_dual. Where the box does not reach so far, its corner with the largest
    <g, d>; 0 where g is 0.
    """
    # In units of the largest entry: squares of the others do not underflow.
    largest = or_one(jnp.abs(g).max(1, keepdims=True))
    return _GEOMETRY[norm].reach(g / largest, gain[:, None] / largest, box)


def shorten(d: Rows, size: Size, norm: str) -> Rows:
    """d, scaled down where it is longer than `size`, in l2, linf or l1; it stays in a box.

    The sums behind an exact answer round. After this its norm is within `size` to the rounding of
    the norm itself.
    """
    length = lengths(d, norm)[:, None]
    return d * jnp.minimum(1, size / or_one(length))


def clip(d: Rows, box: Box) -> Rows:
    """The entries of d, in the box."""
    return d if box is None else jnp.clip(d, *box)


def within(x: Array, delta: Array, bounds: Box) -> Array:
    """delta, moved by its last bit where its sum with x would round to beyond the bounds.

    One bit is enough where delta is in the box (low - x, high - x): without the rounding of that
    difference the sum is within, and rounding is monotone.
    """
    if bounds is None:
        return delta
    low, high = bounds
    above = x + delta > high
    below = x + delta < low
    inward = jnp.where(below, jnp.inf, delta)
    inward = jnp.where(above, -jnp.inf, inward)
    return jnp.nextafter(delta, inward.astype(delta.dtype))


def headroom(g: Array, box: Box) -> Array:
    """How far each entry can move along the sign of g in the box; 0 where g is 0."""
    if box is None:
        return jnp.where(g == 0, 0, jnp.inf).astype(g.dtype)
    low, high = box
    downward = jnp.where(g < 0, -low, 0)
    return jnp.where(g > 0, high, downward)


# --- l2 ---


def _lengths_l2(d: Rows) -> Array:
    # In units of the largest entry: squares neither underflow nor overflow.
    largest = jnp.abs(d).max(1)
    scaled = d / or_one(largest)[:, None]
    return largest * jnp.sqrt(jnp.sum(scaled**2, axis=1))


def _steepest_l2(g: Rows, size: Size, box: Box) -> Rows:
    if box is None:
        return size * normalise(g, "l2")
    t = _stretch(g, size, box)
    return shorten(_stretched(g, t, size, box), size, "l2")


def _project_l2(u: Rows, size: Size, box: Box) -> Rows:
    if box is None:
        return shorten(u, size, "l2")
    t = jnp.minimum(1, _stretch(u, size, box))
    return shorten(_stretched(u, t, size, box), size, "l2")


def _reach_l2(g: Rows, gain: Column, box: Box) -> Rows:
    if box is None:
        return _along(g, g, gain)
    m, room = jnp.abs(g), headroom(g, box)
    t = crossing(room / or_one(m), m * room, m**2, gain)
    return _stretched(g, t, jnp.inf, box)


def _along(direction: Rows, g: Rows, gain: Column) -> Rows:
    """The multiple of `direction` with <g, d> = gain."""
    rise = jnp.sum(direction * g, axis=1, keepdims=True)
    return direction * (gain / or_one(rise))


def _stretch(u: Rows, size: Size, box: Box) -> Column:
    """The largest t with |clip(t u)|_2 <= size; inf if every t has it."""
    room = headroom(u, box)
    # In units of the largest entry that can move: squares of the others do not underflow.
    m = jnp.where(room > 0, jnp.abs(u), 0)
    largest = or_one(m.max(1, keepdims=True))
    m = m / largest
    unit = jnp.where(jnp.asarray(size) > 0, size, 1)
    room = jnp.minimum(room, size) / unit
    breaks = (room / or_one(m)) ** 2
    t_squared = crossing(breaks, room**2, m**2, (size / unit) ** 2)
    return jnp.sqrt(t_squared) * unit / largest


def _stretched(u: Rows, t: Column, size: Size, box: Box) -> Rows:
    """clip(t u), no entry larger than `size`; t may be infinite."""
    limited = jnp.clip(t * u, -size, size)
    return jnp.where(u == 0, 0, clip(limited, box))


# --- linf ---


def _lengths_linf(d: Rows) -> Array:
    return jnp.abs(d).max(1)


def _steepest_linf(g: Rows, size: Size, box: Box) -> Rows:
    return clip(size * jnp.sign(g), box)


def _project_linf(u: Rows, size: Size, box: Box) -> Rows:
    return clip(jnp.clip(u, -size, size), box)


def _reach_linf(g: Rows, gain: Column, box: Box) -> Rows:
    if box is None:
        return _along(jnp.sign(g), g, gain)
    m, room = jnp.abs(g), headroom(g, box)
    # All entries move by the same amount, as far as the box lets them.
    amount = crossing(room, m * room, m, gain)
    return jnp.sign(g) * jnp.minimum(amount, room)


# --- l1 ---


def _lengths_l1(d: Rows) -> Array:
    return jnp.sum(jnp.abs(d), axis=1, dtype=d.dtype)


def _steepest_l1(g: Rows, size: Size, box: Box) -> Rows:
    order = largest_first(jnp.abs(g))
    room = taken(headroom(g, box), order)
    room = jnp.minimum(room, size)
    filled = jnp.clip(size - before(room), 0, room)
    return shorten(jnp.sign(g) * put_back(filled, order), size, "l1")


def _project_l1(u: Rows, size: Size, box: Box) -> Rows:
    room = jnp.minimum(headroom(u, box), size)
    m = jnp.abs(u)
    left = jnp.clip(m - threshold(m, room, size), 0, room)
    return shorten(jnp.sign(u) * left, size, "l1")


def _reach_l1(g: Rows, gain: Column, box: Box) -> Rows:
    m, room = jnp.abs(g), headroom(g, box)
    order = largest_first(m)
    m, room = taken(m, order), taken(room, order)
    missing = gain - before(m * room)
    moved = jnp.clip(missing / or_one(m), 0, room)
    return jnp.sign(g) * put_back(moved, order)


# --- l0: an entry that moves goes to the edge of the box, at no further cost ---


def _lengths_l0(d: Rows) -> Array:
    return jnp.sum(d != 0, axis=1, dtype=d.dtype)


def _steepest_l0(g: Rows, size: Size, box: Box) -> Rows:
    room = headroom(g, box)
    gain = jnp.abs(g) * room
    chosen = (_places(gain) < size) & (gain > 0)
    return jnp.where(chosen, jnp.sign(g) * room, 0)


def _project_l0(u: Rows, size: Size, box: Box) -> Rows:
    inside = clip(u, box)
    saved = inside * (2 * u - inside)  # u^2 - (u - inside)^2
    return jnp.where(_places(saved) < size, inside, 0)


def _reach_l0(g: Rows, gain: Column, box: Box) -> Rows:
    m, room = jnp.abs(g), headroom(g, box)
    order = largest_first(m * room)
    m, room = taken(m, order), taken(room, order)
    missing = gain - before(m * room)
    wanted = jnp.where(missing > 0, room, 0)
    moved = jnp.clip(wanted, 0, room)
    return jnp.sign(g) * put_back(moved, order)


def _places(values: Rows) -> Rows:
    """`rank`, in the dtype of the values."""
    return rank(values).astype(values.dtype)


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
    "l2": _Norm("l2", _lengths_l2, _steepest_l2, _project_l2, _reach_l2),
    "linf": _Norm("l1", _lengths_linf, _steepest_linf, _project_linf, _reach_linf),
    "l1": _Norm("linf", _lengths_l1, _steepest_l1, _project_l1, _reach_l1),
    # l0 has no dual norm; l2 stands in for it.
    "l0": _Norm("l2", _lengths_l0, _steepest_l0, _project_l0, _reach_l0),
}
NORMS = tuple(_GEOMETRY)
DUAL = {name: norm.dual for name, norm in _GEOMETRY.items()}
