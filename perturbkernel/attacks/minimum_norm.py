"""The smallest perturbation that changes a decision, and the bracket around the boundary."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from perturbkernel.attacks.halfspaces import nearest_of_all
from perturbkernel.attacks.host import uncompiled
from perturbkernel.attacks.norms import DUAL, Box, clip, lengths, reach, within
from perturbkernel.attacks.one_step import is_zero
from perturbkernel.attacks.problem import (
    Problem,
    check_memory,
    check_result,
    check_starts,
    checked_problem,
    gradient_at,
    objective,
    outputs_at,
    random_rows,
    rival_weights,
    rows_within,
    strongest_rivals,
)
from perturbkernel.attacks.refinement import (
    OVERSHOOT,
    Boundary,
    Nearest,
    bracket,
    no_order,
    refine,
)
from perturbkernel.checks import check_count, check_number
from perturbkernel.engine import tiles

_RADII = 4  # of random starts where no size is known: all of the reach, and 1/2, 1/4, 1/8 of it
# Arrays of the size of the inputs that the programme for several boundaries holds beside the
# others, most of them in float64.
_RIVAL_COPIES = 160
_VISIBLE = 8  # units of rounding of the largest output: a change that can be seen


class MinimumNorm(eqx.Module):
    """The smallest perturbations found that change the decision, and what proves that they do.

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

    @property
    def found(self) -> Bool[Array, " n"]:
        """(n,), whether a change was found."""
        return jnp.isfinite(self.size)


class _Rows(NamedTuple):
    """Some rows of the problem: their values, gradients, and steps to linearised boundaries.

    Attributes:
        problem: all rows; of it only what they share is read.
        x, target: of these rows, (m, d) and (m,).
        norm, box: what is small, and where perturbations may lie.
        reachable: (m,), how far a perturbation may sensibly go.
    """

    problem: Problem
    x: Array
    target: Array
    norm: str
    box: Box
    reachable: Array

    def outputs(self, delta: Array) -> Array:
        return outputs_at(self.problem.predictor, self.x + delta, self.problem.shape)

    def gradient(self, z: Array, weights: Array | None) -> Array:
        predictor, shape = self.problem.predictor, self.problem.shape
        return gradient_at(predictor, z, shape, self.target, weights)

    def value(self, delta: Array) -> Array:
        gap, _ = objective(self.outputs(delta), self.target, self.problem.away)
        return gap.astype(self.x.dtype)

    def evaluate(self, delta: Array) -> tuple[Array, Array, Array]:
        """The value (m,), its gradient (m, d), and whether that is zero to rounding (m,)."""
        x, problem = self.x, self.problem
        outputs = self.outputs(delta)
        gap, weights = objective(outputs, self.target, problem.away)
        z = x + delta
        g = self.gradient(z, weights)
        zero = is_zero(problem.predictor, z.reshape(-1, *problem.shape), weights, g)
        # Or a step as long as the data changes no more than the rounding of the outputs.
        largest = jnp.abs(outputs.reshape(len(x), -1)).max(1)
        visible = _VISIBLE * jnp.finfo(x.dtype).eps * largest
        change = lengths(g, DUAL[self.norm]) * self.reachable
        zero = zero | (change <= visible.astype(x.dtype))
        return gap.astype(x.dtype), g, zero

    def nearest_beyond(self, delta: Array, gap: Array, g: Array) -> Array:
        """The smallest perturbation beyond the boundaries, linearised at delta."""
        missing = jnp.sum(g * delta, axis=1) - gap
        single = reach(g, jnp.maximum(missing, 0), self.norm, self.box)
        if not _several_rivals(self.problem, self.norm):
            return single
        outputs = self.outputs(delta)
        rivals = strongest_rivals(outputs, self.target)

        def boundary(rival):
            weights = rival_weights(outputs, self.target, rival)
            gradient = self.gradient(self.x + delta, weights)
            gap = jnp.sum(weights * outputs, axis=1).astype(self.x.dtype)
            return gradient, jnp.sum(gradient * delta, axis=1) - gap

        rows, least = lax.map(boundary, rivals.T)
        nearest, met = nearest_of_all(jnp.swapaxes(rows, 0, 1), least.T, self.norm, self.box)
        return jnp.where(met[:, None], nearest, single)

    def toward(self, outputs: Array, other: Array) -> Array:
        """From the inputs to the boundary of class `other`, to first order, (m, d).

        Infinite where no step leads there.
        """
        weights = rival_weights(outputs, other, self.target)
        gap = -jnp.sum(weights * outputs, axis=1).astype(self.x.dtype)
        gradient = self.gradient(self.x, weights)
        step = reach(gradient, gap, self.norm, self.box)
        exists = (gap > 0) & step.any(1)
        return jnp.where(exists[:, None], step, jnp.inf)

    def nearest_classes(self, outputs: Array, classes: int) -> Array:
        """The other classes, (K - 1, m), the one with the nearest boundary first."""
        shifts = jnp.arange(1, classes)

        def distance(shift):
            other = (self.target + shift) % outputs.shape[1]
            return lengths(self.toward(outputs, other), self.norm)

        distances = lax.map(distance, shifts)
        nearest_first = shifts[jnp.argsort(distances, axis=0)]
        return (self.target[None] + nearest_first) % outputs.shape[1]


def _several_rivals(problem: Problem, norm: str) -> bool:
    """Whether a step must pass several boundaries at once."""
    several = problem.classes is not None and problem.classes > 2
    return several and not problem.away and norm != "l0"


@eqx.filter_jit
def _minimum_norm(
    problem: Problem, keys, steps, starts, tolerance, norm: str, nearest: int, memory
):
    """(delta, inside, size, targets, whether the gradient at the input is finite), row by row."""

    def part(tree):
        x, target, keys, bounds, scale = tree
        box = None if bounds is None else (bounds[0] - x, bounds[1] - x)
        reachable = _reachable(scale, norm, box)
        outputs = outputs_at(problem.predictor, x, problem.shape)
        if target is None:
            target = _own_decision(outputs, x, problem.away)
        rows = _Rows(problem, x, target, norm, box, reachable)
        at_zero, weights = objective(outputs, target, problem.away)
        finite = jnp.isfinite(rows.gradient(x, weights)).all(1)
        boundary = Boundary(
            value=rows.value,
            evaluate=rows.evaluate,
            nearest_beyond=rows.nearest_beyond,
            at_zero=at_zero.astype(x.dtype),
            scale=reachable,
            norm=norm,
            box=box,
        )
        begin = _starts(rows, outputs, keys, nearest)
        best = _best_of_starts(boundary, begin, x, (steps, starts, tolerance))
        found, already = jnp.isfinite(best.size), boundary.at_zero >= 0
        kept = found & ~already
        beyond, short = bracket(boundary, best.delta, best.order, kept, tolerance)
        outside = jnp.where(kept[:, None], within(x, beyond, bounds), 0)
        inside = jnp.where(kept[:, None], within(x, short, bounds), 0)
        size = jnp.where(found, lengths(outside, norm), jnp.inf)
        return outside, inside, jnp.where(already, 0, size), target, finite

    x = problem.x
    scale = jnp.broadcast_to(_scale(x, norm), len(x))
    copies = _RIVAL_COPIES if _several_rivals(problem, norm) else 0
    count = rows_within(memory, problem.predictor, x, problem.shape, copies)
    return tiles.by_rows(part, (x, problem.target, keys, problem.bounds, scale), count)


def _own_decision(outputs: Array, x: Array, away: bool) -> Array:
    """The class to get away from; for one output the other sign."""
    if away:
        return outputs.argmax(1)
    return jnp.where(outputs > 0, -1, 1).astype(x.dtype)


def _starts(rows: _Rows, outputs: Array, keys: Array | None, nearest: int) -> Callable:
    """(number of a start, smallest sizes so far) -> where it begins, (m, d).

    The first `nearest` begin at the boundaries of the nearest classes, or at the input; the others
    at random points.
    """
    x, norm, box = rows.x, rows.norm, rows.box
    classes = rows.problem.classes
    chosen = None
    if rows.problem.away and classes is not None and classes > 2:
        chosen = rows.nearest_classes(outputs, classes)

    def begin(start: Array, size: Array) -> Array:
        fixed = jnp.zeros_like(x)
        if chosen is not None:
            step = rows.toward(outputs, chosen[jnp.minimum(start, nearest - 1)])
            exists = jnp.isfinite(step).all(1, keepdims=True)
            fixed = clip(jnp.where(exists, OVERSHOOT * step, 0), box)
        if keys is None:
            return fixed
        # Where nothing is known, from the whole reach inward.
        radius = rows.reachable / 2.0 ** (start % _RADII)
        known = jnp.where(jnp.isfinite(size), size, radius)
        row_keys = jax.vmap(lambda key: jax.random.fold_in(key, start))(keys)
        drawn = random_rows(row_keys, known[:, None], norm, box, x)
        return jnp.where(start < nearest, fixed, drawn)

    return begin


def _best_of_starts(boundary: Boundary, begin: Callable, x: Array, numbers: tuple) -> Nearest:
    steps, starts, tolerance = numbers

    def one_start(start: Array, best: Nearest) -> Nearest:
        found = refine(boundary, begin(start, best.size), steps, tolerance)
        smaller = found.size < best.size
        return Nearest(
            jnp.where(smaller[:, None], found.delta, best.delta),
            jnp.where(smaller[:, None], found.order, best.order),
            jnp.where(smaller, found.size, best.size),
        )

    none = jnp.full(len(x), jnp.inf, x.dtype)
    best = Nearest(jnp.zeros_like(x), no_order(x, boundary.norm), none)
    return lax.fori_loop(0, starts, one_start, best)


def _scale(x: Array, norm: str) -> Array:
    """How far opposite inputs are apart whose entries are all of the data's root mean square; of
    entries of 1 where the data are 0.
    """
    largest = jnp.abs(x).max()
    unit = jnp.where(largest > 0, largest, 1)
    entry = jnp.where(largest > 0, unit * jnp.sqrt(jnp.mean((x / unit) ** 2)), 1)
    return lengths(jnp.full((1, x.shape[1]), 2 * entry), norm)[0]


def _reachable(scale: Array, norm: str, box: Box) -> Array:
    """(m,), how far a perturbation may sensibly go: to the furthest corner of the box where that is
    finite, elsewhere as far as the data.
    """
    if box is None:
        return scale
    low, high = box
    corner = lengths(jnp.maximum(high, -low), norm)
    return jnp.where(jnp.isfinite(corner) & (corner > 0), corner, scale)


def minimum_norm(
    predictor: Callable,
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
    """The smallest perturbation of every input that changes the decision (sign, or argmax).

    Each step goes to the nearest point, in the norm and the box, of the boundary of the linearised
    predictor,

        min |delta|  such that  h(z) + <grad h(z), inputs + delta - z> >= 0,

    exactly, z the last point found beyond it, with h = target f, or f_k - f_t for the largest other
    class k; takes as much of the way there as gets closer; and goes back to the boundary along the
    line to the input. For a linear predictor that is |f| / |w|_dual after one step. Toward one of K
    > 2 classes the step is to the nearest point beyond the linearised boundaries of the nine
    strongest rivals at once, by an interior-point method (for l0, of the strongest one). A fixed
    point is a local minimum to first order; another start may find a smaller one. At the end
    bisection brackets the boundary: at `delta` the decision has changed, at `inside` it has not,
    both evaluated.

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
    if tolerance is None:
        tolerance = 1e-4 if problem.x.dtype == jnp.float64 else 1e-3
    check_number(tolerance, "tolerance", low=1e-6, high=0.1)
    check_memory(memory)
    if starts is not None:
        check_count(starts, "starts")
    nearest = 1
    if problem.away and problem.classes is not None:
        nearest = min(problem.classes - 1, 3 if starts is None else starts)
    starts = nearest if starts is None else starts
    check_starts(starts, nearest, key)
    keys = None
    if starts > nearest and key is not None:
        keys = jax.random.split(key, len(problem.x))
    numbers = jnp.asarray(steps), jnp.asarray(starts), jnp.asarray(tolerance, problem.x.dtype)
    with uncompiled(problem.predictor):
        delta, inside, size, target, finite = _minimum_norm(
            problem, keys, *numbers, norm, nearest, memory
        )
    check_result(finite)
    shape = (-1, *problem.shape)
    return MinimumNorm(delta.reshape(shape), size, inside.reshape(shape), target)
