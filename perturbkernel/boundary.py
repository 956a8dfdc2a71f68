"""The smallest perturbation that changes a decision, and the bracket around the boundary that
proves it.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from perturbkernel import tiles
from perturbkernel.checks import check_count, check_number
from perturbkernel.objectives import (
    Problem,
    check_memory,
    check_result,
    check_starts,
    checked_problem,
    gradient_at,
    objective,
    outputs_at,
    random_rows,
    rows_within,
)
from perturbkernel.perturbations import is_zero
from perturbkernel.projections import Box, clip, headroom, lengths, rank, reach, within

_LINE = 5  # values along a line, for every gradient
_SHRINK = 4.0  # of a step that does not get closer


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


def _path(p: Array, order: Array, t: Array, norm: str, box: Box) -> Array:
    """From 0 at t = 0 to p at t = 1: t p, or for l0 the first entries of p in their order."""
    if norm == "l0":
        return jnp.where(order < jnp.ceil(t * lengths(p, "l0"))[:, None], p, 0)
    return clip(t[:, None] * p, box)


def _order(score: Array, p: Array) -> Array:
    """The order in which the entries of p are kept: the largest score first, entries that are 0
    last.
    """
    return rank(jnp.where(p != 0, jnp.abs(score), -1.0))


def _refine(
    evaluate: Callable,
    value: Callable,
    start: Array,
    at_zero: Array,
    norm: str,
    box: Box,
    steps,
    tolerance,
):
    """Closer and closer points beyond the boundary, from the perturbation `start`: (delta, order,
    size), inf if none.

    Until one is found: to the nearest point of the linearised boundary; where that is not beyond,
    Euclidean steps to the boundary from point to point; each also twice, four times as far, and so
    on. From then on the gradient at the boundary gives the nearest point of the linearised
    boundary; a part of the way there, as much as gets closer, and back along the line from the
    input to the boundary.
    """

    def body(carry):
        i, delta, order, size, part, _ = carry
        found = jnp.isfinite(size)
        gap, g, zero = evaluate(delta)
        still = zero | (gap > 0)
        nearest = reach(g, jnp.maximum(jnp.sum(g * delta, axis=1) - gap, 0), norm, box)
        nearest = jnp.where(zero[:, None], 0, nearest)
        # Beyond the linearised boundary: where the first step falls short, more so from step to
        # step.
        outward = jnp.where(
            still[:, None], 0, reach(g, jnp.maximum(-gap, 0) * (1.02 + 0.1 * i), "l2")
        )
        own = ((i == 0) & ~still)[:, None]
        limit = size * (1 - tolerance / 4)

        def proposal(j, part):
            if norm == "l0":
                score = jnp.abs(g) * headroom(g, box) * jnp.where(delta != 0, 1 / part[:, None], 1)
                corner = jnp.sign(g) * headroom(g, box)
                moved = jnp.where(delta != 0, delta + part[:, None] * (corner - delta), corner)
                here = jnp.where(rank(score) < size[:, None] - 1, moved, 0)
            else:
                here = delta + part[:, None] * (nearest - delta)
                length = lengths(here, norm)
                here = clip(here * (limit / jnp.where(length > 0, length, 1))[:, None], box)
                score = here
            there = clip(
                2.0**j * jnp.where(own, 1.02 * nearest, outward) + jnp.where(own, 0, delta), box
            )
            p = jnp.where(found[:, None], here, there)
            return p, _order(
                jnp.where(found[:, None], score, g * there), p
            ) if norm == "l0" else order

        def line(j, carry):
            p, order, part, hit, low, high, gap_low, gap_high = carry
            new, new_order = proposal(j, part)
            p = jnp.where(hit[:, None], p, new)
            order = jnp.where(hit[:, None], order, new_order)
            share = -gap_low / (gap_high - gap_low) if norm != "l0" else jnp.full_like(low, 0.5)
            t = jnp.where(hit, low + (high - low) * jnp.clip(share, 0.02, 0.98), 1.0)
            here = value(_path(p, order, t, norm, box))
            beyond = here > 0
            # Illinois: the end that stays is given half its weight.
            gap_low, gap_high = (
                jnp.where(hit & beyond, gap_low / 2, jnp.where(hit, here, gap_low)),
                jnp.where(beyond, here, jnp.where(hit, gap_high / 2, gap_high)),
            )
            low, high = jnp.where(hit & ~beyond, t, low), jnp.where(beyond, t, high)
            part = jnp.where(hit | beyond | ~found, part, part / _SHRINK)
            return p, order, part, hit | beyond, low, high, gap_low, gap_high

        none = jnp.zeros_like(size)
        begin = delta, order, part, none > 0, none, none + 1, at_zero, none + 1
        p, p_order, part, hit, _, high, _, _ = lax.fori_loop(0, _LINE, line, begin)
        closer = _path(p, p_order, high, norm, box)
        first_step = jnp.where(own, delta, clip(delta + outward, box))
        stationary = (
            found & (size - lengths(nearest, norm) <= tolerance * size)
            if norm != "l0"
            else size <= 1
        )
        delta = jnp.where(hit[:, None], closer, jnp.where(found[:, None], delta, first_step))
        order = jnp.where(hit[:, None], p_order, order)
        size = jnp.where(hit, lengths(closer, norm), size)
        part = jnp.where(hit, jnp.minimum(1, 2 * part), part)
        return (
            i + 1,
            delta,
            order,
            size,
            part,
            (stationary & ~hit) | (part < tolerance) | (at_zero >= 0),
        )

    size = jnp.full(len(start), jnp.inf, start.dtype)
    order = jnp.zeros(start.shape if norm == "l0" else (len(start), 1), int)
    begin = 0, start, order, size, jnp.ones_like(size), at_zero >= 0
    _, delta, order, size, _, _ = lax.while_loop(
        lambda carry: (carry[0] < steps) & ~carry[-1].all(), body, begin
    )
    return delta, order, size


def _bracket(
    value: Callable, p: Array, order: Array, wanted: Array, norm: str, box: Box, tolerance
):
    """(outside, inside): two points of the path to p, beyond the boundary and short of it, by
    bisection, where wanted.

    They differ by `tolerance` of their size, or one entry. What is in between is cut down to a
    third, and widened on both sides: a value that rounds differently elsewhere has the same sign.
    """
    one = jnp.ones(len(p), p.dtype)
    allowed = 0.99 / jnp.maximum(lengths(p, "l0"), 1) if norm == "l0" else tolerance / 3 * one

    def wide(low, high):
        return wanted & (high - low > (allowed if norm == "l0" else allowed * high))

    def narrow(carry):
        i, low, high = carry
        t = (low + high) / 2
        beyond = value(_path(p, order, t, norm, box)) > 0
        low, high = (
            jnp.where(wide(low, high) & ~beyond, t, low),
            jnp.where(wide(low, high) & beyond, t, high),
        )
        return i + 1, low, high

    def unfinished(carry):
        i, low, high = carry
        return (i < 60) & jnp.any(wide(low, high))

    _, low, high = lax.while_loop(unfinished, narrow, (0, 0 * one, one))
    if norm != "l0":
        width = high - low

        def widen(side, carry):
            low, high = carry
            t = jnp.where(side == 0, high + width, low - width)
            beyond = value(_path(p, order, t, norm, box)) > 0
            return jnp.where((side == 1) & ~beyond & (t > 0), t, low), jnp.where(
                (side == 0) & beyond, t, high
            )

        low, high = lax.fori_loop(0, 2, widen, (low, high))
    return _path(p, order, high, norm, box), _path(p, order, low, norm, box)


@eqx.filter_jit
def _minimum_norm(
    problem: Problem, keys, steps, starts, tolerance, norm: str, nearest: int, memory
):
    predictor, x, shape, classes, target, away, bounds = problem

    def part(tree):
        x, target, keys, bounds = tree
        box = None if bounds is None else (bounds[0] - x, bounds[1] - x)
        outputs = outputs_at(predictor, x, shape)
        if target is None:
            target = outputs.argmax(1) if away else jnp.where(outputs > 0, -1, 1).astype(x.dtype)

        def value(delta):
            outputs = outputs_at(predictor, x + delta, shape)
            return objective(outputs, target, away, hard=True)[0].astype(x.dtype)

        def evaluate(delta):
            z = x + delta
            gap, weights = objective(outputs_at(predictor, z, shape), target, away, hard=True)
            g = gradient_at(predictor, z, shape, target, weights)
            return gap.astype(x.dtype), g, is_zero(predictor, z.reshape(-1, *shape), weights, g)

        at_zero, weights = objective(outputs, target, away, hard=True)
        g = gradient_at(predictor, x, shape, target, weights)
        finite, at_zero = jnp.isfinite(g).all(1), at_zero.astype(x.dtype)

        def toward(other):
            """To the boundary of class `other`, to first order; infinite where no step leads there."""
            own, other = (
                jax.nn.one_hot(k, outputs.shape[1], dtype=outputs.dtype) for k in (target, other)
            )
            gap = jnp.sum((own - other) * outputs, axis=1)
            step = reach(
                gradient_at(predictor, x, shape, target, other - own),
                gap.astype(x.dtype),
                norm,
                box,
            )
            return jnp.where(((gap > 0) & step.any(1))[:, None], step, jnp.inf)

        several = away and classes is not None and classes > 2
        if several:
            shifts = jnp.arange(1, classes)
            distances = lax.map(
                lambda k: lengths(toward((target + k) % outputs.shape[1]), norm), shifts
            )
            # (K - 1, m)
            chosen = (target + shifts[jnp.argsort(distances, axis=0)]) % outputs.shape[1]

        def one_start(start, best):
            begin = jnp.zeros_like(x)
            if several:
                step = toward(chosen[jnp.minimum(start, nearest - 1)])
                begin = jnp.where(jnp.isfinite(step).all(1, keepdims=True), 1.02 * step, 0)
                begin = clip(begin, box)
            if keys is not None:
                known = jnp.where(
                    jnp.isfinite(best[2]),
                    best[2],
                    lengths(reach(g, jnp.abs(at_zero), norm, box), norm),
                )
                row_keys = jax.vmap(lambda key: jax.random.fold_in(key, start))(keys)
                begin = jnp.where(
                    start < nearest, begin, random_rows(row_keys, known[:, None], norm, box, x)
                )
            found = _refine(evaluate, value, begin, at_zero, norm, box, steps, tolerance)
            smaller = found[2] < best[2]
            return jax.tree.map(
                lambda a, b: jnp.where(smaller.reshape(-1, *(1,) * (a.ndim - 1)), a, b), found, best
            )

        order = jnp.zeros(x.shape if norm == "l0" else (len(x), 1), int)
        best = jnp.zeros_like(x), order, jnp.full(len(x), jnp.inf, x.dtype)
        delta, order, size = lax.fori_loop(0, starts, one_start, best)
        found, already = jnp.isfinite(size), at_zero >= 0
        kept = found & ~already
        pair = _bracket(value, delta, order, kept, norm, box, tolerance)
        outside, inside = (jnp.where(kept[:, None], within(x, point, bounds), 0) for point in pair)
        size = jnp.where(already, 0, jnp.where(found, lengths(outside, norm), jnp.inf))
        return outside, inside, size, target, finite

    rows = rows_within(memory, predictor, x, shape)
    return tiles.by_rows(part, (x, target, keys, bounds), rows)


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
    predictor that is |f| / |w|_dual after one step. A fixed point is a local minimum to first
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
            or toward a class, they are the input, then random points at the smallest size found.
            Away from a class: the boundaries of the nearest classes first, at most three unless
            asked for, then random points. Left out: no random ones.
        tolerance: `inside` is smaller than `delta` by at most so much of its size (l0: by one
            entry), and the norm is minimised to a quarter of that. Left out: 1e-4, or 1e-3 for
            float32 inputs.
        key: random key, for random starts.

    Returns:
        MinimumNorm; size inf, and delta 0, where no change was found, as where the gradient is zero
        at all starts.

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
    delta, inside, size, target, finite = _minimum_norm(
        problem, keys, *numbers, norm, nearest, memory
    )
    check_result(finite)
    delta, inside = (a.reshape(-1, *problem.shape) for a in (delta, inside))
    return MinimumNorm(delta, size, inside, target)
