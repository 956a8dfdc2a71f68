"""How `minimum_norm` searches: closer and closer points beyond the boundary, and a bracket."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from perturbkernel.attacks.crossings import or_one, rank
from perturbkernel.attacks.norms import Box, Rows, clip, headroom, lengths, reach, shorten

Row = Float[Array, " m"]
_LINE = 5  # values along a line, for every gradient
_SHRINK = 4.0  # of a step that does not get closer
# Times the scale of the data: the longest first step into the unknown. Later ones double.
_FAR = 10.0
OVERSHOOT = 1.02  # of a step to a linearised boundary, so that it ends beyond
_OVERSHOOT_GROWTH = 0.1  # more of it at every step: a boundary that keeps receding is bent
_EDGE = 0.02  # of the bracket: interpolated points are no nearer to either end
_BISECTIONS = 60  # at most: more than the digits of float64


class Boundary(NamedTuple):
    """The boundary of the decisions at m inputs, in terms of perturbations of them.

    Attributes:
        value: delta -> how far beyond the boundary, (m,).
        evaluate: delta -> the value, its gradient (m, d), whether that is zero (m,).
        nearest_beyond: (delta, value, gradient) -> the smallest perturbation beyond the boundary of
            the predictor linearised at delta.
        at_zero: (m,), the value at 0.
        scale: (m,), of the data, in the norm; a step into the unknown is at most so many times as
            long as it is likely to make sense.
        norm, box: what is small, and where perturbations may lie.
    """

    value: Callable
    evaluate: Callable
    nearest_beyond: Callable
    at_zero: Row
    scale: Row
    norm: str
    box: Box


class Nearest(NamedTuple):
    """The smallest perturbations found: delta (m, d), the order of its entries (l0), and the size.

    The size is (m,), inf where none was found.
    """

    delta: Rows
    order: Array
    size: Row


class _Search(NamedTuple):
    """Where a search is.

    Attributes:
        steps: how many were taken.
        delta, order, size: as in `Nearest`; delta is the last point where none was found.
        part: (m,), of the way to the next point that is tried first.
        done: (m,).
    """

    steps: Array | int
    delta: Rows
    order: Array
    size: Row
    part: Row
    done: Bool[Array, " m"]


class _Local(NamedTuple):
    """The predictor linearised where a search is.

    Attributes:
        gradient: (m, d).
        nearest: (m, d), the nearest point beyond the linearised boundary, from the input.
        outward: (m, d), a Euclidean step beyond it from where the search is.
        own: (m, 1), whether that is the first point, short of the boundary.
        found: (m,), whether a point beyond the boundary is known.
    """

    gradient: Rows
    nearest: Rows
    outward: Rows
    own: Array
    found: Array


class _Line(NamedTuple):
    """A search along the path from the input to p.

    Attributes:
        p, order: (m, d), the end of the path, as in `path`.
        part: (m,), as in `_Search`.
        hit: (m,), whether a point beyond the boundary was found: from then on p stays.
        low, high: (m,), short of the boundary and beyond it. gap_low, gap_high: values there.
    """

    p: Rows
    order: Array
    part: Row
    hit: Array
    low: Row
    high: Row
    gap_low: Row
    gap_high: Row


def path(p: Rows, order: Array, t: Row, norm: str, box: Box) -> Rows:
    """From 0 at t = 0 to p at t = 1: t p, or for l0 the first entries of p in their order."""
    if norm != "l0":
        return clip(t[:, None] * p, box)
    count = jnp.ceil(t * lengths(p, "l0"))
    kept = order.astype(t.dtype) < count[:, None]
    return jnp.where(kept, p, 0)


def _order(score: Array, p: Rows) -> Array:
    """The order in which the entries of p are kept: the largest score first, zeros last."""
    return rank(jnp.where(p != 0, jnp.abs(score), -1.0))


def no_order(like: Rows, norm: str) -> Array:
    """The order of entries before there is one; of a single column where the norm needs none."""
    shape = like.shape if norm == "l0" else (len(like), 1)
    return jnp.zeros(shape, int)


def refine(boundary: Boundary, start: Rows, steps: Array, tolerance: Array) -> Nearest:
    """Closer and closer points beyond the boundary, from the perturbation `start`.

    Until one is found: to the nearest point of the linearised boundary; where that is not beyond,
    Euclidean steps to the boundary from point to point; each also twice, four times as far, and so
    on. From then on the gradient at the boundary gives the nearest point of the linearised
    boundary; a part of the way there, as much as gets closer, and back along the line from the
    input to the boundary.
    """

    def unfinished(search: _Search):
        return (search.steps < steps) & ~search.done.all()

    def step(search: _Search) -> _Search:
        local = _linearised(boundary, search)
        line = _along_line(boundary, search, local, tolerance)
        return _moved(boundary, search, local, line, tolerance)

    size = jnp.full(len(start), jnp.inf, start.dtype)
    order = no_order(start, boundary.norm)
    whole = jnp.ones_like(size)
    search = _Search(0, start, order, size, whole, boundary.at_zero >= 0)
    search = lax.while_loop(unfinished, step, search)
    return Nearest(search.delta, search.order, search.size)


def _linearised(boundary: Boundary, search: _Search) -> _Local:
    norm = boundary.norm
    found = jnp.isfinite(search.size)
    gap, g, zero = boundary.evaluate(search.delta)
    still = zero | (gap > 0)
    nearest = boundary.nearest_beyond(search.delta, gap, g)
    nearest = jnp.where(zero[:, None], 0, nearest)
    # Beyond the linearised boundary: where the first step falls short, more so from step to step.
    overshoot = OVERSHOOT + _OVERSHOOT_GROWTH * search.steps
    outward = reach(g, jnp.maximum(-gap, 0) * overshoot, "l2")
    outward = jnp.where(still[:, None], 0, outward)
    if norm != "l0":
        furthest = _FAR * boundary.scale * 2.0**search.steps
        limited = shorten(nearest, furthest[:, None], norm)
        nearest = jnp.where(found[:, None], nearest, limited)
        outward = shorten(outward, furthest[:, None], norm)
    own = (search.steps == 0) & ~still
    return _Local(g, nearest, outward, own[:, None], found)


def _along_line(boundary: Boundary, search: _Search, local: _Local, tolerance: Array) -> _Line:
    """Tries ends of lines until one is beyond the boundary, then goes back along that line."""
    norm, box = boundary.norm, boundary.box

    def step(j: Array, line: _Line) -> _Line:
        hit = line.hit
        new, new_order = _proposal(boundary, search, local, j, line.part, tolerance)
        p = jnp.where(hit[:, None], line.p, new)
        order = jnp.where(hit[:, None], line.order, new_order)
        t = jnp.where(hit, _between(line, norm), 1.0)
        here = boundary.value(path(p, order, t, norm, box))
        beyond = here > 0
        # Illinois: the end that stays is given half its weight.
        short = jnp.where(hit, here, line.gap_low)
        gap_low = jnp.where(hit & beyond, line.gap_low / 2, short)
        stays = jnp.where(hit, line.gap_high / 2, line.gap_high)
        gap_high = jnp.where(beyond, here, stays)
        low = jnp.where(hit & ~beyond, t, line.low)
        high = jnp.where(beyond, t, line.high)
        keep = hit | beyond
        part = jnp.where(keep | ~local.found, line.part, line.part / _SHRINK)
        return _Line(p, order, part, keep, low, high, gap_low, gap_high)

    none = jnp.zeros_like(search.size)
    begin = _Line(
        p=search.delta,
        order=search.order,
        part=search.part,
        hit=none > 0,
        low=none,
        high=none + 1,
        gap_low=boundary.at_zero,
        gap_high=none + 1,
    )
    return lax.fori_loop(0, _LINE, step, begin)


def _between(line: _Line, norm: str) -> Row:
    """Where the boundary is expected between low and high: by interpolation, for l0 halfway."""
    share = jnp.full_like(line.low, 0.5)
    if norm != "l0":
        share = -line.gap_low / (line.gap_high - line.gap_low)
    return line.low + (line.high - line.low) * jnp.clip(share, _EDGE, 1 - _EDGE)


def _proposal(
    boundary: Boundary,
    search: _Search,
    local: _Local,
    j: Array,
    part: Row,
    tolerance: Array,
) -> tuple[Rows, Array]:
    """The end of line j, and the order of its entries: closer, or further where none is found."""
    found = local.found[:, None]
    further = _further(boundary.box, search, local, j)
    if boundary.norm != "l0":
        closer = _closer(boundary, search, local, part, tolerance)
        return jnp.where(found, closer, further), search.order
    closer, score = _fewer(boundary.box, search, local, part)
    p = jnp.where(found, closer, further)
    score = jnp.where(found, score, local.gradient * further)
    return p, _order(score, p)


def _further(box: Box, search: _Search, local: _Local, j: Array) -> Rows:
    """2^j times a step: of the first, from the input to its nearest point; of others, outward."""
    step = jnp.where(local.own, OVERSHOOT * local.nearest, local.outward)
    origin = jnp.where(local.own, 0, search.delta)
    return clip(2.0**j * step + origin, box)


def _closer(
    boundary: Boundary, search: _Search, local: _Local, part: Row, tolerance: Array
) -> Rows:
    """A part of the way to the nearest point, scaled to a size that is a little smaller."""
    limit = search.size * (1 - tolerance / 4)
    here = search.delta + part[:, None] * (local.nearest - search.delta)
    length = lengths(here, boundary.norm)
    scaled = here * (limit / or_one(length))[:, None]
    return clip(scaled, boundary.box)


def _fewer(box: Box, search: _Search, local: _Local, part: Row) -> tuple[Rows, Array]:
    """One entry fewer (l0), those with the largest gain, and what each gains.

    Entries that moved go on a part of the way to their corner; others go there at once. The smaller
    the part, the more those that moved count: fewer are exchanged.
    """
    g, delta = local.gradient, search.delta
    moves = delta != 0
    room = headroom(g, box)
    corner = jnp.sign(g) * room
    score = jnp.abs(g) * room * jnp.where(moves, 1 / part[:, None], 1)
    moved = jnp.where(moves, delta + part[:, None] * (corner - delta), corner)
    places = rank(score).astype(search.size.dtype)
    kept = places < search.size[:, None] - 1
    return jnp.where(kept, moved, 0), score


def _moved(
    boundary: Boundary, search: _Search, local: _Local, line: _Line, tolerance: Array
) -> _Search:
    """The search after a line: at its point beyond the boundary, or else outward."""
    norm, box = boundary.norm, boundary.box
    found, hit, size = local.found, line.hit, search.size
    closer = path(line.p, line.order, line.high, norm, box)
    outward = clip(search.delta + local.outward, box)
    onward = jnp.where(local.own, search.delta, outward)
    if norm == "l0":
        stationary = size <= 1
    else:
        gained = size - lengths(local.nearest, norm)
        stationary = found & (gained <= tolerance * size)
    stays = jnp.where(found[:, None], search.delta, onward)
    part = jnp.where(hit, jnp.minimum(1, 2 * line.part), line.part)
    ended = (stationary & ~hit) | (part < tolerance)
    return _Search(
        steps=search.steps + 1,
        delta=jnp.where(hit[:, None], closer, stays),
        order=jnp.where(hit[:, None], line.order, search.order),
        size=jnp.where(hit, lengths(closer, norm), size),
        part=part,
        done=ended | (boundary.at_zero >= 0),
    )


def bracket(
    boundary: Boundary, p: Rows, order: Array, wanted: Array, tolerance: Array
) -> tuple[Rows, Rows]:
    """Two points of the path to p, beyond the boundary and short of it, by bisection, where wanted.

    They differ by `tolerance` of their size, or one entry. What is in between is cut down to a
    third, and widened on both sides: a value that rounds differently elsewhere has the same sign.
    """
    norm, box = boundary.norm, boundary.box
    one = jnp.ones(len(p), p.dtype)
    # For l0 a little less than one entry; else relative to high.
    allowed = 0.99 / jnp.maximum(lengths(p, "l0"), 1) if norm == "l0" else tolerance / 3 * one

    def is_beyond(t):
        return boundary.value(path(p, order, t, norm, box)) > 0

    def wide(low, high):
        limit = allowed if norm == "l0" else allowed * high
        return wanted & (high - low > limit)

    def narrow(carry):
        i, low, high = carry
        t = (low + high) / 2
        beyond = is_beyond(t)
        moves = wide(low, high)
        low, high = jnp.where(moves & ~beyond, t, low), jnp.where(moves & beyond, t, high)
        return i + 1, low, high

    def unfinished(carry):
        i, low, high = carry
        return (i < _BISECTIONS) & jnp.any(wide(low, high))

    _, low, high = lax.while_loop(unfinished, narrow, (0, 0 * one, one))
    if norm != "l0":
        width = high - low

        def widen(side, carry):
            low, high = carry
            t = jnp.where(side == 0, high + width, low - width)
            beyond = is_beyond(t)
            lower = (side == 1) & ~beyond & (t > 0)
            higher = (side == 0) & beyond
            return jnp.where(lower, t, low), jnp.where(higher, t, high)

        low, high = lax.fori_loop(0, 2, widen, (low, high))
    outside = path(p, order, high, norm, box)
    return outside, path(p, order, low, norm, box)
