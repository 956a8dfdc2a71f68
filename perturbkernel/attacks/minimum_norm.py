"""The smallest perturbation that changes a decision, and the bracket around the boundary that
proves it.
"""

from collections.abc import Callable

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
from perturbkernel.attacks.refinement import bracket, refine
from perturbkernel.checks import check_count, check_number
from perturbkernel.engine import tiles

_RADII = 4  # of random starts where no size is known: all of the reach, and 1/2, 1/4, 1/8 of it
# Arrays of the size of the inputs that the programme for several boundaries holds beside the
# others, most of them in float64.
_RIVAL_COPIES = 160


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


@eqx.filter_jit
def _minimum_norm(
    problem: Problem, keys, steps, starts, tolerance, norm: str, nearest: int, memory
):
    predictor, x, shape, classes, target, away, bounds = problem
    several_rivals = not away and classes is not None and classes > 2 and norm != "l0"

    def part(tree):
        x, target, keys, bounds, scale = tree
        box = None if bounds is None else (bounds[0] - x, bounds[1] - x)
        reachable = _reachable(scale, norm, box)
        outputs = outputs_at(predictor, x, shape)
        if target is None:
            target = outputs.argmax(1) if away else jnp.where(outputs > 0, -1, 1).astype(x.dtype)

        def value(delta):
            outputs = outputs_at(predictor, x + delta, shape)
            return objective(outputs, target, away)[0].astype(x.dtype)

        def evaluate(delta):
            z = x + delta
            outputs = outputs_at(predictor, z, shape)
            gap, weights = objective(outputs, target, away)
            g = gradient_at(predictor, z, shape, target, weights)
            zero = is_zero(predictor, z.reshape(-1, *shape), weights, g)
            # Or a step as long as the data changes no more than the rounding of the outputs.
            visible = 8 * jnp.finfo(x.dtype).eps * jnp.abs(outputs.reshape(len(x), -1)).max(1)
            zero = zero | (lengths(g, DUAL[norm]) * reachable <= visible.astype(x.dtype))
            return gap.astype(x.dtype), g, zero

        def nearest_beyond(delta, gap, g):
            single = reach(g, jnp.maximum(jnp.sum(g * delta, axis=1) - gap, 0), norm, box)
            if not several_rivals:
                return single
            outputs = outputs_at(predictor, x + delta, shape)
            rivals = strongest_rivals(outputs, target)

            def boundary(rival):
                weights = rival_weights(outputs, target, rival)
                gradient = gradient_at(predictor, x + delta, shape, target, weights)
                gap = jnp.sum(weights * outputs, axis=1).astype(x.dtype)
                return gradient, jnp.sum(gradient * delta, axis=1) - gap

            rows, least = lax.map(boundary, rivals.T)
            nearest, met = nearest_of_all(jnp.swapaxes(rows, 0, 1), least.T, norm, box)
            return jnp.where(met[:, None], nearest, single)

        at_zero, weights = objective(outputs, target, away)
        g = gradient_at(predictor, x, shape, target, weights)
        finite, at_zero = jnp.isfinite(g).all(1), at_zero.astype(x.dtype)

        def toward(other):
            """To the boundary of class `other`, to first order; infinite where no step leads there."""
            weights = rival_weights(outputs, other, target)
            gap = -jnp.sum(weights * outputs, axis=1).astype(x.dtype)
            gradient = gradient_at(predictor, x, shape, target, weights)
            step = reach(gradient, gap, norm, box)
            return jnp.where(((gap > 0) & step.any(1))[:, None], step, jnp.inf)

        several = away and classes is not None and classes > 2
        if several:
            shifts = jnp.arange(1, classes)
            distances = lax.map(
                lambda k: lengths(toward((target + k) % outputs.shape[1]), norm), shifts
            )
            # (K - 1, m)
            nearest_first = shifts[jnp.argsort(distances, axis=0)]
            chosen = (target[None] + nearest_first) % outputs.shape[1]

        def one_start(start, best):
            begin = jnp.zeros_like(x)
            if several:
                step = toward(chosen[jnp.minimum(start, nearest - 1)])
                begin = jnp.where(jnp.isfinite(step).all(1, keepdims=True), 1.02 * step, 0)
                begin = clip(begin, box)
            if keys is not None:
                # Where nothing is known, from the whole reach inward.
                radius = reachable / 2.0 ** (start % _RADII)
                known = jnp.where(jnp.isfinite(best[2]), best[2], radius)
                row_keys = jax.vmap(lambda key: jax.random.fold_in(key, start))(keys)
                begin = jnp.where(
                    start < nearest, begin, random_rows(row_keys, known[:, None], norm, box, x)
                )
            found = refine(
                evaluate,
                nearest_beyond,
                value,
                begin,
                at_zero,
                reachable,
                norm,
                box,
                steps,
                tolerance,
            )
            smaller = found[2] < best[2]
            return jax.tree.map(
                lambda a, b: jnp.where(smaller.reshape(-1, *(1,) * (a.ndim - 1)), a, b), found, best
            )

        order = jnp.zeros(x.shape if norm == "l0" else (len(x), 1), int)
        best = jnp.zeros_like(x), order, jnp.full(len(x), jnp.inf, x.dtype)
        delta, order, size = lax.fori_loop(0, starts, one_start, best)
        found, already = jnp.isfinite(size), at_zero >= 0
        kept = found & ~already
        pair = bracket(value, delta, order, kept, norm, box, tolerance)
        outside, inside = (jnp.where(kept[:, None], within(x, point, bounds), 0) for point in pair)
        size = jnp.where(already, 0, jnp.where(found, lengths(outside, norm), jnp.inf))
        return outside, inside, size, target, finite

    scale = jnp.broadcast_to(_scale(x, norm), len(x))
    rows = rows_within(memory, predictor, x, shape, _RIVAL_COPIES if several_rivals else 0)
    return tiles.by_rows(part, (x, target, keys, bounds, scale), rows)


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
    """The smallest perturbation of every input that changes the decision: the sign, or for K
    outputs the argmax.

    Each step goes to the nearest point, in the norm and the box, of the boundary of the linearised
    predictor,

        min |delta|  such that  h(z) + <grad h(z), inputs + delta - z> >= 0,     z the last point
        found beyond it,

    exactly, with h = target f, or f_k - f_t for the largest other class k; takes as much of the way
    there as gets closer; and goes back to the boundary along the line to the input. For a linear
    predictor that is |f| / |w|_dual after one step. Toward one of K > 2 classes the step is to the
    nearest point beyond the linearised boundaries of the nine strongest rivals at once, by an
    interior-point method (for l0, of the strongest one). A fixed point is a local minimum to first
    order; another start may find a smaller one. At the end bisection brackets the boundary: at
    `delta` the decision has changed, at `inside` it has not, both evaluated.

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
    tolerance = (
        (1e-4 if problem.x.dtype == jnp.float64 else 1e-3) if tolerance is None else tolerance
    )
    check_number(tolerance, "tolerance", low=1e-6, high=0.1)
    check_memory(memory)
    if starts is not None:
        check_count(starts, "starts")
    nearest = 1
    if problem.away and problem.classes is not None:
        nearest = min(problem.classes - 1, 3 if starts is None else starts)
    starts = nearest if starts is None else starts
    check_starts(starts, nearest, key)
    keys = jax.random.split(key, len(problem.x)) if starts > nearest and key is not None else None
    numbers = jnp.asarray(steps), jnp.asarray(starts), jnp.asarray(tolerance, problem.x.dtype)
    with uncompiled(problem.predictor):
        delta, inside, size, target, finite = _minimum_norm(
            problem, keys, *numbers, norm, nearest, memory
        )
    check_result(finite)
    delta, inside = (a.reshape(-1, *problem.shape) for a in (delta, inside))
    return MinimumNorm(delta, size, inside, target)
