"""The geometry of the norms l2, linf, l1 and l0: steepest steps, projections, nearest points of a
half-space, in a box.

Rows are flat, (m, d), and treated one by one. A box low <= d <= high holds 0; without one it is all
of space. Every answer is exact to rounding: each is a one-parameter family, and its parameter
solves an equation that is piecewise linear between sorted break points.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from perturbkernel.metrics import unit_rows

NORMS = ("l2", "linf", "l1", "l0")
# The norm in which a gradient bounds what a step of norm 1 gains. l0 has none; l2 stands in for it.
DUAL = {"l2": "l2", "linf": "l1", "l1": "linf", "l0": "l2"}
Box = tuple[Float[Array, "m d"], Float[Array, "m d"]] | None


def normalise(gradient: Float[Array, "n ..."], norm: str) -> Float[Array, "n ..."]:
    """The direction of unit norm that increases a function fastest: g / |g| for l2, sign(g) for
    linf; 0 for g = 0.
    """
    return jnp.sign(gradient) if norm == "linf" else unit_rows(gradient)


def lengths(delta: Float[Array, "m d"], norm: str) -> Float[Array, " m"]:
    """(m,), the norm of every row; l0 counts its entries that are not zero."""
    if norm == "l2":
        largest = jnp.abs(delta).max(1)
        scaled = delta / jnp.where(largest > 0, largest, 1)[:, None]
        return largest * jnp.sqrt(jnp.sum(scaled**2, axis=1))
    if norm == "linf":
        return jnp.abs(delta).max(1)
    return jnp.sum(jnp.abs(delta) if norm == "l1" else delta != 0, axis=1, dtype=delta.dtype)


def steepest(
    g: Float[Array, "m d"], size: Array | float, norm: str, box: Box = None
) -> Float[Array, "m d"]:
    """The d of norm at most `size` in the box with the largest <g, d>; `size` is one number or (m,
    1).

    Without a box: size g / |g| (l2), size sign(g) (linf), all in the entry with the largest |g|
    (l1); l0 needs a box. Entries where g is 0 stay 0. In a box: clip(t g) with t such that the norm
    is `size`, or all entries saturate (l2); clip(size sign g) (linf); the largest |g| filled first
    (l1); the `size` entries with the largest gain (l0).
    """
    if norm == "linf":
        return clip(size * jnp.sign(g), box)
    if norm == "l2":
        if box is None:
            return size * normalise(g, "l2")
        return shorten(_stretched(g, _stretch(g, size, box), size, box), size, norm)
    room = headroom(g, box)
    if norm == "l0":
        gain = jnp.abs(g) * room
        return jnp.where((rank(gain).astype(g.dtype) < size) & (gain > 0), jnp.sign(g) * room, 0)
    order = jnp.argsort(-jnp.abs(g), axis=1, stable=True)
    room = jnp.minimum(jnp.take_along_axis(room, order, 1), size)
    filled = jnp.clip(size - _before(room), 0, room)
    return shorten(jnp.sign(g) * _put_back(filled, order), size, norm)


def project(
    u: Float[Array, "m d"], size: Array | float, norm: str, box: Box = None
) -> Float[Array, "m d"]:
    """The point nearest to u, in Euclidean distance, of those of norm at most `size` in the box.

    clip(s u), s <= 1, such that the norm is `size` (l2); clip(clip(u, -size, size)) (linf);
    clip(sign(u) (|u| - lambda)_+) with lambda >= 0 such that the norm is `size` (l1); the `size`
    entries whose clipped values save the most distance, the others 0 (l0).
    """
    if norm == "linf":
        return clip(jnp.clip(u, -size, size), box)
    if norm == "l0":
        inside = clip(u, box)
        saved = inside * (2 * u - inside)  # u^2 - (u - inside)^2
        return jnp.where(rank(saved).astype(u.dtype) < size, inside, 0)
    if norm == "l2":
        if box is None:
            return shorten(u, size, norm)
        t = jnp.minimum(1, _stretch(u, size, box))
        return shorten(_stretched(u, t, size, box), size, norm)
    room = jnp.minimum(headroom(u, box), size)
    m = jnp.abs(u)
    d = jnp.sign(u) * jnp.clip(m - _threshold(m, room, size), 0, room)
    return shorten(d, size, norm)


def shorten(d: Float[Array, "m d"], size: Array | float, norm: str) -> Float[Array, "m d"]:
    """d, scaled down where it is longer than `size`, in l2, linf or l1; it stays in a box that
    holds 0.

    The sums behind an exact answer round. After this its norm is within `size` to the rounding of
    the norm itself.
    """
    length = lengths(d, norm)[:, None]
    return d * jnp.minimum(1, size / jnp.where(length > 0, length, 1))


def reach(
    g: Float[Array, "m d"], gain: Float[Array, " m"], norm: str, box: Box = None
) -> Float[Array, "m d"]:
    """The smallest d, in the norm, with <g, d> = gain >= 0 in the box (l0: >= gain); its size is
    gain / |g|_dual.

    Where the box does not reach so far, its corner with the largest <g, d>; 0 where g is 0.
    """
    largest = jnp.abs(g).max(1, keepdims=True)
    g = g / jnp.where(largest > 0, largest, 1)
    gain = gain[:, None] / jnp.where(largest > 0, largest, 1)
    m, room = jnp.abs(g), headroom(g, box)
    if norm in ("l2", "linf") and box is None:
        direction = g if norm == "l2" else jnp.sign(g)
        rise = jnp.sum(direction * g, axis=1, keepdims=True)
        return direction * (gain / jnp.where(rise > 0, rise, 1))
    if norm == "l2":
        t = _crossing(room / jnp.where(m > 0, m, 1), m * room, m**2, gain)
        return _stretched(g, t, jnp.inf, box)
    if norm == "linf":
        return jnp.sign(g) * jnp.minimum(_crossing(room, m * room, m, gain), room)
    order = jnp.argsort(-(m if norm == "l1" else m * room), axis=1, stable=True)
    m, room = (jnp.take_along_axis(a, order, 1) for a in (m, room))
    missing = gain - _before(m * room)
    least = missing / jnp.where(m > 0, m, 1) if norm == "l1" else jnp.where(missing > 0, room, 0)
    return jnp.sign(g) * _put_back(jnp.clip(least, 0, room), order)


def clip(d: Float[Array, "m d"], box: Box) -> Float[Array, "m d"]:
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
    above, below = x + delta > high, x + delta < low
    inward = jnp.where(above, -jnp.inf, jnp.where(below, jnp.inf, delta)).astype(delta.dtype)
    return jnp.nextafter(delta, inward)


def headroom(g: Array, box: Box) -> Array:
    """How far each entry can move along the sign of g in the box; 0 where g is 0."""
    if box is None:
        return jnp.where(g == 0, 0, jnp.inf).astype(g.dtype)
    low, high = box
    return jnp.where(g > 0, high, jnp.where(g < 0, -low, 0))


def rank(values: Array) -> Array:
    """The place of every entry in the order of its row, the largest first; the earlier of two that
    are equal.
    """
    return jnp.argsort(jnp.argsort(-values, axis=1, stable=True), axis=1)


def _put_back(values: Array, order: Array) -> Array:
    return jnp.take_along_axis(values, jnp.argsort(order, axis=1), 1)


def _before(a: Array) -> Array:
    """Sums of the entries before each. Not cumsum(a) - a: entries may be infinite."""
    return jnp.concatenate([jnp.zeros_like(a[:, :1]), jnp.cumsum(a, axis=1)[:, :-1]], axis=1)


def _crossing(breaks: Array, constant: Array, slope: Array, level: Array | float) -> Array:
    """(m, 1), the t >= 0 where sum_i (constant_i if t > breaks_i else slope_i t) is `level`; inf if
    it never is.

    constant_i = slope_i breaks_i: each term rises to its break and stays there.
    """
    order = jnp.argsort(breaks, axis=1)
    breaks, constant, slope = (jnp.take_along_axis(a, order, 1) for a in (breaks, constant, slope))
    saturated = _before(constant)
    rising = jnp.cumsum(slope[:, ::-1], axis=1)[:, ::-1]
    reached = saturated + jnp.where(rising > 0, breaks * rising, 0) >= level
    first = jnp.argmax(reached, axis=1, keepdims=True)
    saturated, rising = (jnp.take_along_axis(a, first, 1) for a in (saturated, rising))
    t = jnp.maximum(level - saturated, 0) / jnp.where(rising > 0, rising, 1)
    return jnp.where(reached.any(1, keepdims=True), t, jnp.inf)


def _stretch(u: Array, size: Array | float, box: Box) -> Array:
    """(m, 1), the largest t with |clip(t u)|_2 <= size; inf if every t has it."""
    room = headroom(u, box)
    # In units of the largest entry that can move: squares of the others do not underflow.
    m = jnp.where(room > 0, jnp.abs(u), 0)
    largest = m.max(1, keepdims=True)
    m = m / jnp.where(largest > 0, largest, 1)
    unit = jnp.where(jnp.asarray(size) > 0, size, 1)
    room = jnp.minimum(room, size) / unit
    t_squared = _crossing((room / jnp.where(m > 0, m, 1)) ** 2, room**2, m**2, (size / unit) ** 2)
    return jnp.sqrt(t_squared) * unit / jnp.where(largest > 0, largest, 1)


def _stretched(u: Array, t: Array, size: Array | float, box: Box) -> Array:
    """clip(t u), no entry larger than `size`; t may be infinite."""
    return jnp.where(u == 0, 0, clip(jnp.clip(t * u, -size, size), box))


def _threshold(m: Array, room: Array, size: Array | float) -> Array:
    """(m, 1), the smallest lambda >= 0 with sum_i min((m_i - lambda)_+, room_i) <= size."""
    breaks = jnp.concatenate([m, m - room], axis=1)
    sign = jnp.concatenate([jnp.ones_like(m), -jnp.ones_like(m)], axis=1)
    order = jnp.argsort(-breaks, axis=1)
    breaks = jnp.take_along_axis(breaks, order, 1)
    sign = jnp.take_along_axis(sign, order, 1)
    rising = jnp.cumsum(sign, axis=1)
    # The sum at lambda = breaks_j: nothing is added between breaks where no entry rises, so that
    # rounding cannot put the crossing there.
    risen = _before(rising * (breaks - jnp.roll(breaks, -1, axis=1)))
    beyond = risen > size
    after = jnp.argmax(beyond, axis=1, keepdims=True)
    before = jnp.maximum(after - 1, 0)
    missing = size - jnp.take_along_axis(risen, before, 1)
    count = jnp.maximum(jnp.take_along_axis(rising, before, 1), 1)
    crossing = jnp.take_along_axis(breaks, before, 1) - missing / count
    crossing = jnp.maximum(crossing, jnp.take_along_axis(breaks, after, 1))
    return jnp.maximum(jnp.where(beyond.any(1, keepdims=True), crossing, 0), 0)
