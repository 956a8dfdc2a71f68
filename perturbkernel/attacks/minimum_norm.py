"""The smallest perturbation that changes a decision, and the bracket around the boundary."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from perturbkernel.arrays import as_jax, namespace, on_host, or_one
from perturbkernel.attacks.boundary import Boundary, bracket, no_order
from perturbkernel.attacks.boxes import Box, box_around, clip, within
from perturbkernel.attacks.crossings import where_rows
from perturbkernel.attacks.host import part, stepped, uncompiled
from perturbkernel.attacks.linearised import Linearised, gap_at, several_rivals
from perturbkernel.attacks.norms import lengths, random_rows
from perturbkernel.attacks.problem import (
    Problem,
    check_memory,
    check_result,
    check_starts,
    checked_problem,
    keys_of_start,
    outputs_at,
    rows_within,
)
from perturbkernel.attacks.refinement import EVALUATIONS_OF_A_STEP, OVERSHOOT, Nearest, refine
from perturbkernel.checks import check_count, check_number
from perturbkernel.display import Displayed
from perturbkernel.engine import tiles

_RADII = 4  # of random starts where no size is known: all of the reach, and 1/2, 1/4, 1/8 of it
# Arrays of the size of the inputs that the programme for several boundaries holds beside the
# others, most of them in float64.
_RIVAL_COPIES = 160


class MinimumNorm(Displayed, eqx.Module):
    """The smallest perturbations found that change the decision, and points just inside the
    boundary.

    Attributes:
        delta: (n, ...), shaped like the inputs: at inputs + delta the decision has changed. 0 where
            none was found.
        size: (n,), the norm of delta: 0 where nothing had to change, inf where no change was found.
        inside: (n, ...), just short of delta on the same path, where the decision has not changed:
            a multiple of delta (l0: delta without its least entry).
        targets: (n,), the sign moved toward; for K outputs the class moved toward, or away from.
    """

    delta: Float[Array, "n ..."]
    size: Float[Array, " n"]
    inside: Float[Array, "n ..."]
    targets: Float[Array, " n"] | Int[Array, " n"]

    def _numbers(self) -> dict[str, Any]:
        size = np.asarray(self.size)
        found = np.isfinite(size)
        return {"points": len(size), "found": int(found.sum()), "size": size[found]}

    @property
    def found(self) -> Bool[Array, " n"]:
        """(n,), whether a change was found."""
        size = on_host(self.size)
        return as_jax(namespace(size).isfinite(size))


class _Numbers(NamedTuple):
    """How long is searched, from how many points, how closely: another value is no other program.

    Attributes:
        steps, starts, tolerance: as of `minimum_norm`.
    """

    steps: Array
    starts: Array
    tolerance: Array


@eqx.filter_jit
def _minimum_norm(problem: Problem, keys, numbers: _Numbers, norm: str, nearest: int, memory):
    """(delta, inside, size, targets, whether the gradient at the input is finite), row by row."""

    def some(tree):
        x, target, keys, bounds, scale = tree
        box = _box_around(x, bounds)
        reachable = _reachable(scale, norm, box)
        outputs = outputs_at(problem.predictor, x, problem.shape)
        if target is None:
            target = _own_decision(outputs, x, problem.away)
        rows = Linearised(problem, x, target, norm, box, reachable)
        at_zero, weights = gap_at(outputs, target, x, problem.away)
        gradient = rows.gradient(x, weights)
        boundary = Boundary(
            value=rows.value,
            evaluate=rows.evaluate,
            nearest_beyond=rows.nearest_beyond,
            at_zero=at_zero,
            scale=reachable,
            norm=norm,
            box=box,
        )
        begin = _starts(rows, outputs, keys, nearest)
        best = _best_of_starts(boundary, begin, x, numbers)
        kept = _is_kept(best, at_zero)
        beyond, short = bracket(boundary, best.delta, best.order, kept, numbers.tolerance)
        found = _result(x, beyond, short, best, at_zero, norm, bounds)
        return *found, target, _is_finite(gradient)

    x = problem.x
    scales = _scales(x, norm)
    copies = 0
    if several_rivals(problem, norm):
        copies = _RIVAL_COPIES
    count = rows_within(memory, problem.predictor, x, problem.shape, copies)
    return tiles.by_rows(some, (x, problem.target, keys, problem.bounds, scales), count)


_box_around = part()(box_around)


@part()
def _is_kept(best: Nearest, at_zero: Array) -> Array:
    """Whether a change was found where one was looked for."""
    return jnp.isfinite(best.size) & (at_zero < 0)


@part()
def _is_finite(gradient: Array) -> Array:
    return jnp.isfinite(gradient).all(1)


@part("norm")
def _result(
    x: Array, beyond: Array, short: Array, best: Nearest, at_zero: Array, norm: str, bounds: Box
) -> tuple[Array, Array, Array]:
    """(delta, inside, size) from the ends of the bracket."""
    kept = _is_kept(best, at_zero)
    outside = where_rows(kept, within(x, beyond, bounds), 0)
    inside = where_rows(kept, within(x, short, bounds), 0)
    found = jnp.isfinite(best.size)
    size = jnp.where(found, lengths(outside, norm), jnp.inf)
    return outside, inside, jnp.where(at_zero >= 0, 0, size)


@part("away")
def _own_decision(outputs: Array, x: Array, away: bool) -> Array:
    """The class to get away from; for one output the other sign."""
    if away:
        return outputs.argmax(1)
    other = jnp.where(outputs > 0, -1, 1)
    return other.astype(x.dtype)


def _starts(
    rows: Linearised, outputs: Array, keys: Array | None, nearest: int
) -> Callable[..., Any]:
    """(number of a start, smallest sizes so far) -> where it begins, (m, d).

    The first `nearest` begin at the boundaries of the nearest classes, or at the input; the others
    at random points.
    """
    x = rows.x
    classes = rows.problem.classes
    chosen = None
    if rows.problem.away and classes is not None and classes > 2:
        chosen = rows.nearest_classes(outputs, classes)

    def at_boundary(start: Array) -> Array:
        if chosen is None:
            return jnp.zeros_like(x)
        other = _row(chosen, start, nearest)
        return _beyond(rows.toward(outputs, other), rows.box)

    def begin(start: Array, size: Array) -> Array:
        fixed = at_boundary(start)
        if keys is None:
            return fixed
        return _fixed_or_drawn(
            fixed, start, size, keys, rows.reachable, x, nearest, rows.norm, rows.box
        )

    return begin


@part("nearest")
def _row(chosen: Array, start: Array, nearest: int) -> Array:
    """The class at whose boundary a start begins, (m,)."""
    return chosen[jnp.minimum(start, nearest - 1)]


@part()
def _beyond(step: Array, box: Box) -> Array:
    """A little further than a step to a boundary; 0 where none leads there."""
    exists = jnp.isfinite(step).all(1)
    return clip(where_rows(exists, OVERSHOOT * step, 0), box)


@part("nearest", "norm")
def _fixed_or_drawn(
    fixed: Array,
    start: Array,
    size: Array,
    keys: Array,
    reachable: Array,
    x: Array,
    nearest: int,
    norm: str,
    box: Box,
) -> Array:
    """Where a start begins: the first at fixed points, the others at random ones."""
    # Where nothing is known, from the whole reach inward.
    radius = reachable / 2.0 ** (start % _RADII)
    known = jnp.where(jnp.isfinite(size), size, radius)
    drawn = random_rows(keys_of_start(keys, start), known[:, None], norm, box, x)
    return jnp.where(start < nearest, fixed, drawn)


def _best_of_starts(
    boundary: Boundary, begin: Callable[..., Any], x: Array, numbers: _Numbers
) -> Nearest:
    def one_start(start: Array, best: Nearest) -> Nearest:
        first = begin(start, best.size)
        found = refine(boundary, first, numbers.steps, numbers.tolerance)
        return _smaller(found, best)

    return lax.fori_loop(0, numbers.starts, one_start, _nothing(x, boundary.norm))


@part()
def _smaller(found: Nearest, best: Nearest) -> Nearest:
    smaller = found.size < best.size
    return Nearest(
        delta=where_rows(smaller, found.delta, best.delta),
        order=where_rows(smaller, found.order, best.order),
        size=jnp.where(smaller, found.size, best.size),
    )


@part("norm")
def _nothing(x: Array, norm: str) -> Nearest:
    return Nearest(
        delta=jnp.zeros_like(x),
        order=no_order(x, norm),
        size=jnp.full(len(x), jnp.inf, x.dtype),
    )


@part("norm")
def _scales(x: Array, norm: str) -> Array:
    """(n,), how far opposite inputs are apart whose entries are all of the data's root mean square;
    of entries of 1 where the data are 0.
    """
    largest = jnp.abs(x).max()
    unit = or_one(largest)
    squares = (x / unit) ** 2
    root_mean_square = jnp.sqrt(squares.sum() / squares.size)
    entry = jnp.where(largest > 0, unit * root_mean_square, 1)
    difference = jnp.full((1, x.shape[1]), 2 * entry)
    scale = lengths(difference, norm)[0]
    return jnp.broadcast_to(scale, len(x))


@part("norm")
def _reachable(scale: Array, norm: str, box: Box) -> Array:
    """(m,), how far a perturbation may sensibly go: to the furthest corner of the box where that is
    finite, elsewhere as far as the data.
    """
    if box is None:
        return scale
    low, high = box
    corner = jnp.maximum(high, -low)
    furthest = lengths(corner, norm)
    known = jnp.isfinite(furthest) & (furthest > 0)
    return jnp.where(known, furthest, scale)


def minimum_norm(
    predictor: Callable[..., Any],
    inputs: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, " n"] | Int[ArrayLike, " n"] | None = None,
    *,
    norm: str = "l2",
    steps: int = 30,
    away: bool = False,
    bounds: tuple[ArrayLike, ArrayLike] | None = None,
    starts: int | None = None,
    tolerance: float | None = None,
    memory: float | None = None,
    key: PRNGKeyArray | None = None,
) -> MinimumNorm:
    """Finds, for every input, the smallest perturbation that changes the decision (sign, or
    argmax).

    Each step goes to the nearest point, in the norm and the box, of the boundary of the linearised
    predictor,

        min |delta|  such that  h(z) + <grad h(z), inputs + delta - z> >= 0,

    exactly, z the last point found beyond it, with h = target f, or f_k - f_t for the largest other
    class k; takes as much of the way there as gets closer; and goes back to the boundary along the
    line to the input. For a linear predictor that is |f| / |w|_dual after one step. Toward one of
    three classes or more, the step goes to the nearest point beyond the linearised boundaries of
    the nine strongest rivals at once, by an interior-point method (for l0, of the strongest one). A
    fixed point is a local minimum to first order; another start may find a smaller one. At the end
    bisection brackets the boundary: at `delta` the decision has changed, at `inside` it has not,
    both evaluated.

    Example:
        >>> found = minimum_norm(lambda z: z @ jnp.asarray([3.0, 4.0]), jnp.asarray([[1.0, 0.5]]))
        >>> found.size.round(2).tolist(), (found.delta < 0).tolist()
        ([1.0], [[True, True]])

    Args:
        predictor, inputs, bounds, memory: as in `attack`.
        targets: the decision to arrive at, (n,) in {-1, +1}, or class indices; with `away`, to get
            away from: true labels, for instance. Left out: the predictor's own decisions, away from
            them. An input whose decision is as wanted already has size 0.
        norm: "l2", "linf", "l1", or "l0", the fewest entries, with bounds: they move to the bounds.
        steps: how many at most, for every start; each takes one gradient and five values.
        starts: how many points the search begins from; the smallest result counts. For one output,
            or toward a class, they are the input, then random points: of the ball of the smallest
            size found, or where none was, of balls as large as the box or the data, 1/2, 1/4 and
            1/8 of that.
            Away from a class: the boundaries of the nearest classes first, at most three unless
            asked for, then random points. Left out: no random ones.
        tolerance: `inside` is smaller than `delta` by at most so much of its size (l0: by one
            entry), and the norm is minimised to a quarter of that. Left out: 1e-4, or 1e-3 for
            float32 inputs.
        key: random key, for random starts.

    Returns:
        MinimumNorm; size inf, and delta 0, where no change was found, as where the gradient is zero
        at all starts. It counts as zero where a step as long as the data, or the box, would change
        the outputs by less than their rounding, as where a softmax saturates: attack the logits.

    Raises as `attack` does.

    Sources: Moosavi-Dezfooli et al. (CVPR 2016), DeepFool; Croce and Hein (ICML 2020), the
    projection in a box.
    """
    problem = checked_problem(predictor, inputs, targets, norm, away, bounds, own=True)
    check_count(steps, "steps")
    dtype = problem.x.dtype
    if tolerance is None:
        tolerance = 1e-4 if dtype == jnp.float64 else 1e-3
    check_number(tolerance, "tolerance", low=1e-6, high=0.1)
    check_memory(memory)
    if starts is not None:
        check_count(starts, "starts")
    nearest = 1
    if problem.away and problem.classes is not None:
        others = problem.classes - 1
        nearest = min(others, 3 if starts is None else starts)
    if starts is None:
        starts = nearest
    check_starts(starts, nearest, key)
    keys = None
    if starts > nearest and key is not None:
        keys = jax.random.split(key, len(problem.x))
    numbers = _Numbers(
        steps=jnp.asarray(steps),
        starts=jnp.asarray(starts),
        tolerance=jnp.asarray(tolerance, dtype),
    )
    evaluations = starts * steps * EVALUATIONS_OF_A_STEP
    problem = problem._replace(predictor=stepped(problem.predictor, problem.x, evaluations))
    with uncompiled(problem.predictor):
        found = _minimum_norm(problem, keys, numbers, norm, nearest, memory)
    delta, inside, size, target, finite = map(as_jax, found)
    check_result(finite)
    shape = (-1, *problem.shape)
    return MinimumNorm(
        delta=delta.reshape(shape),
        size=size,
        inside=inside.reshape(shape),
        targets=target,
    )
