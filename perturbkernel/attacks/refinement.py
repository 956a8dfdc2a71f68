"""How `minimum_norm` searches: closer and closer points beyond the boundary."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from perturbkernel.arrays import or_one, quotient
from perturbkernel.attacks.boundary import Boundary, Row, no_order, path
from perturbkernel.attacks.boxes import Box, Rows, clip, headroom
from perturbkernel.attacks.crossings import rank, where_rows
from perturbkernel.attacks.host import part
from perturbkernel.attacks.linearised import Seen
from perturbkernel.attacks.norms import counts, euclidean_reach, lengths, shorten

_LINE = 5  # values along a line, for every gradient
EVALUATIONS_OF_A_STEP = _LINE + 2
_SHRINK = 4.0  # of a step that does not get closer
# Times the scale of the data: the longest first step into the unknown. Later ones double.
_FAR = 10.0
OVERSHOOT = 1.02  # of a step to a linearised boundary, so that it ends beyond
_OVERSHOOT_GROWTH = 0.1  # more of it at every step: a boundary that keeps receding is bent
_EDGE = 0.02  # of the bracket: interpolated points are no nearer to either end


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

    steps: Array
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
        own: (m,), whether that is the first point, short of the boundary.
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


class _Trial(NamedTuple):
    """The point of a line that is looked at next.

    Attributes:
        p, order: (m, d), the end of the path, as in `path`. t: (m,), how far along it.
        point: (m, d), there.
    """

    p: Rows
    order: Array
    t: Row
    point: Rows


def _order(score: Array, p: Rows) -> Array:
    """The order in which the entries of p are kept: the largest score first, zeros last."""
    size = jnp.abs(score)
    size = jnp.where(p != 0, size, -1.0)
    return rank(size)


def refine(boundary: Boundary, start: Rows, steps: Array, tolerance: Array) -> Nearest:
    """Closer and closer points beyond the boundary, from the perturbation `start`.

    Until one is found: to the nearest point of the linearised boundary; where that is not beyond,
    Euclidean steps to the boundary from point to point; each also twice, four times as far, and so
    on. From then on the gradient at the boundary gives the nearest point of the linearised
    boundary; a part of the way there, as much as gets closer, and back along the line from the
    input to the boundary.
    """
    at_zero, norm, box = boundary.at_zero, boundary.norm, boundary.box

    def unfinished(search: _Search) -> Array:
        return _unfinished(search, steps)

    def step(search: _Search) -> _Search:
        seen = boundary.evaluate(search.delta)
        nearest = boundary.nearest_beyond(search.delta, seen)
        local = _linearised(search, seen, nearest, boundary.scale, norm)
        line = _along_line(boundary, search, local, tolerance)
        return _moved(search, local, line, at_zero, tolerance, norm, box)

    search = lax.while_loop(unfinished, step, _begun(start, at_zero, norm))
    return Nearest(search.delta, search.order, search.size)


@part("norm")
def _begun(start: Rows, at_zero: Row, norm: str) -> _Search:
    size = jnp.full(len(start), jnp.inf, start.dtype)
    return _Search(
        steps=jnp.asarray(0),
        delta=start,
        order=no_order(start, norm),
        size=size,
        part=jnp.ones_like(size),
        done=at_zero >= 0,
    )


@part()
def _unfinished(search: _Search, steps: Array) -> Array:
    some = ~search.done.all()
    return (search.steps < steps) & some


@part("norm")
def _linearised(search: _Search, seen: Seen, nearest: Rows, scale: Row, norm: str) -> _Local:
    found = jnp.isfinite(search.size)
    gap, g, zero = seen.gap, seen.gradient, seen.zero
    still = zero | (gap > 0)
    nearest = where_rows(zero, 0, nearest)
    # Beyond the linearised boundary: where the first step falls short, more so from step to step.
    overshoot = OVERSHOOT + _OVERSHOOT_GROWTH * search.steps
    missing = jnp.maximum(-gap, 0)
    outward = euclidean_reach(g, missing * overshoot)
    outward = where_rows(still, 0, outward)
    if not counts(norm):
        furthest = _FAR * scale * 2.0**search.steps
        furthest = furthest[:, None]
        limited = shorten(nearest, furthest, norm)
        nearest = where_rows(found, nearest, limited)
        outward = shorten(outward, furthest, norm)
    own = (search.steps == 0) & ~still
    return _Local(
        gradient=g,
        nearest=nearest,
        outward=outward,
        own=own,
        found=found,
    )


def _along_line(boundary: Boundary, search: _Search, local: _Local, tolerance: Array) -> _Line:
    """Tries ends of lines until one is beyond the boundary, then goes back along that line."""
    norm, box = boundary.norm, boundary.box

    def step(j: Array, line: _Line) -> _Line:
        trial = _trial(search, local, line, j, tolerance, norm, box)
        return _judged(line, trial, boundary.value(trial.point), local.found)

    return lax.fori_loop(0, _LINE, step, _first_line(search, boundary.at_zero))


@part()
def _first_line(search: _Search, at_zero: Row) -> _Line:
    none = jnp.zeros_like(search.size)
    return _Line(
        p=search.delta,
        order=search.order,
        part=search.part,
        hit=none > 0,
        low=none,
        high=none + 1,
        gap_low=at_zero,
        gap_high=none + 1,
    )


@part("norm")
def _trial(
    search: _Search,
    local: _Local,
    line: _Line,
    j: Array,
    tolerance: Array,
    norm: str,
    box: Box,
) -> _Trial:
    """The end of a new line, or of one that hit the next point on the way back."""
    hit = line.hit
    new, new_order = _proposal(search, local, j, line.part, tolerance, norm, box)
    p = where_rows(hit, line.p, new)
    order = where_rows(hit, line.order, new_order)
    between = _between(line, norm)
    t = jnp.where(hit, between, 1.0)
    return _Trial(p=p, order=order, t=t, point=path(p, order, t, norm, box))


@part()
def _judged(line: _Line, trial: _Trial, here: Row, found: Array) -> _Line:
    """The line after a trial, where the value is `here`."""
    hit = line.hit
    beyond = here > 0
    # Illinois: the end that stays is given half its weight.
    short = jnp.where(hit, here, line.gap_low)
    stays = jnp.where(hit, line.gap_high / 2, line.gap_high)
    # What does not get closer is tried with a smaller part of the way.
    keep = hit | beyond
    whole = keep | ~found
    return _Line(
        p=trial.p,
        order=trial.order,
        part=jnp.where(whole, line.part, line.part / _SHRINK),
        hit=keep,
        low=jnp.where(hit & ~beyond, trial.t, line.low),
        high=jnp.where(beyond, trial.t, line.high),
        gap_low=jnp.where(hit & beyond, line.gap_low / 2, short),
        gap_high=jnp.where(beyond, here, stays),
    )


def _between(line: _Line, norm: str) -> Row:
    """Where the boundary is expected between low and high: by interpolation, for l0 halfway."""
    if counts(norm):
        share = jnp.full_like(line.low, 0.5)
    else:
        # Values near 0 may round to it at both ends.
        rise = line.gap_high - line.gap_low
        share = quotient(-line.gap_low, rise, rise > 0, 0.5)
    share = jnp.clip(share, _EDGE, 1 - _EDGE)
    width = line.high - line.low
    return line.low + width * share


def _proposal(
    search: _Search,
    local: _Local,
    j: Array,
    part: Row,
    tolerance: Array,
    norm: str,
    box: Box,
) -> tuple[Rows, Array]:
    """The end of line j, and the order of its entries: closer, or further where none is found."""
    found = local.found
    further = _further(box, search, local, j)
    if not counts(norm):
        closer = _closer(search, local, part, tolerance, norm, box)
        return where_rows(found, closer, further), search.order
    closer, score = _fewer(box, search, local, part)
    p = where_rows(found, closer, further)
    gains = local.gradient * further
    score = where_rows(found, score, gains)
    return p, _order(score, p)


def _further(box: Box, search: _Search, local: _Local, j: Array) -> Rows:
    """2^j times a step: of the first, from the input to its nearest point; of others, outward."""
    beyond = OVERSHOOT * local.nearest
    step = where_rows(local.own, beyond, local.outward)
    origin = where_rows(local.own, 0, search.delta)
    end = 2.0**j * step + origin
    return clip(end, box)


def _closer(
    search: _Search, local: _Local, part: Row, tolerance: Array, norm: str, box: Box
) -> Rows:
    """A part of the way to the nearest point, scaled to a size that is a little smaller."""
    limit = search.size * (1 - tolerance / 4)
    way = local.nearest - search.delta
    here = search.delta + part[:, None] * way
    length = lengths(here, norm)
    scale = limit / or_one(length)
    scaled = here * scale[:, None]
    return clip(scaled, box)


def _fewer(box: Box, search: _Search, local: _Local, part: Row) -> tuple[Rows, Array]:
    """One entry fewer (l0), those with the largest gain, and what each gains.

    Entries that moved go on a part of the way to their corner; others go there at once. The smaller
    the part, the more those that moved count: fewer are exchanged.
    """
    g = local.gradient
    delta = search.delta
    part = part[:, None]
    moves = delta != 0
    room = headroom(g, box)
    corner = jnp.sign(g) * room
    gain = jnp.abs(g) * room
    weight = jnp.where(moves, 1 / part, 1)
    score = gain * weight
    on_the_way = delta + part * (corner - delta)
    moved = jnp.where(moves, on_the_way, corner)
    places = rank(score)
    places = places.astype(search.size.dtype)
    kept = places < search.size[:, None] - 1
    return jnp.where(kept, moved, 0), score


@part("norm")
def _moved(
    search: _Search,
    local: _Local,
    line: _Line,
    at_zero: Row,
    tolerance: Array,
    norm: str,
    box: Box,
) -> _Search:
    """The search after a line: at its point beyond the boundary, or else outward."""
    found = local.found
    hit = line.hit
    size = search.size
    closer = path(line.p, line.order, line.high, norm, box)
    outward = clip(search.delta + local.outward, box)
    onward = where_rows(local.own, search.delta, outward)
    if counts(norm):
        stationary = size <= 1
    else:
        gained = size - lengths(local.nearest, norm)
        stationary = found & (gained <= tolerance * size)
    stays = where_rows(found, search.delta, onward)
    larger = jnp.minimum(1, 2 * line.part)
    part = jnp.where(hit, larger, line.part)
    stuck = stationary & ~hit
    ended = stuck | (part < tolerance)
    smaller = lengths(closer, norm)
    return _Search(
        steps=search.steps + 1,
        delta=where_rows(hit, closer, stays),
        order=where_rows(hit, line.order, search.order),
        size=jnp.where(hit, smaller, size),
        part=part,
        done=ended | (at_zero >= 0),
    )
