"""Attacks of a given size on any differentiable predictor: projected steps, and one direction for
all points.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

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
from perturbkernel.perturbations import Perturbation, is_zero
from perturbkernel.projections import Box, lengths, normalise, project, steepest, within


class _Settings(NamedTuple):
    """The numbers are arrays: another value is no other program."""

    size: Array
    steps: Array
    step_size: Array | None
    momentum: Array


def _ascend(
    evaluate: Callable,
    draw: Callable,
    like: Array,
    box: Box,
    norm: str,
    once: bool,
    starts: Array,
    settings,
):
    """The best of the iterates of `starts` starts, (m, d), and the flags of `evaluate` at 0.

    evaluate(delta) -> gain (m,), gradient (m, d), whether the gradient is zero (m,), and whether it
    is finite (m,).
    """
    size, steps, step_size, momentum = settings
    unit = jnp.ones((len(like), 1), like.dtype) * size
    if box is not None and norm in (
        "l1",
        "l0",
    ):  # the length of the longest step that the ball holds
        low, high = box
        unit = lengths(steepest(jnp.where(high >= -low, high, low), size, norm, box), "l2")[:, None]

    def one_start(start, carry):
        def one_step(k, carry):
            delta, velocity, best, largest, zero, finite = carry
            gain, gradient, zero_here, finite_here = evaluate(delta)
            first = (start == 0) & (k == 0)
            zero, finite = jnp.where(first, zero_here, zero), jnp.where(first, finite_here, finite)
            better = gain > largest
            best, largest = (
                jnp.where(better[:, None], delta, best),
                jnp.where(better, gain, largest),
            )
            total = jnp.abs(gradient).sum(1, keepdims=True)
            velocity = momentum * velocity + gradient / jnp.where(total > 0, total, 1)
            length = unit * (1 + jnp.cos(jnp.pi * k / steps)) if step_size is None else step_size
            moved = project(
                delta + length * normalise(velocity, "linf" if norm == "linf" else "l2"),
                size,
                norm,
                box,
            )
            if step_size is None:
                moved = jnp.where(first, steepest(velocity, size, norm, box), moved)
            moved = jnp.where((zero & (start == 0))[:, None], 0, moved)
            return moved, velocity, best, largest, zero, finite

        best, largest, zero, finite = carry
        delta = jnp.where(start == 0, 0, draw(start))
        carry = (delta, jnp.zeros_like(like), best, largest, zero, finite)
        if once:
            delta, _, _, _, zero, finite = one_step(0, carry)
            return delta, largest, zero, finite
        # One gradient more than steps, which evaluates the last iterate.
        return lax.fori_loop(0, steps + 1, one_step, carry)[2:]

    none = jnp.zeros(len(like), bool)
    begin = jnp.zeros_like(like), jnp.full(len(like), -jnp.inf, like.dtype), none, ~none
    best, _, zero, finite = (
        one_start(0, begin) if once else lax.fori_loop(0, starts, one_start, begin)
    )
    return best, zero, finite


@eqx.filter_jit
def _attack(problem: Problem, keys, settings: _Settings, starts, norm: str, once: bool, memory):
    predictor, x, shape, _, target, away, bounds = problem

    def part(tree):
        x, target, keys, bounds = tree
        box = None if bounds is None else (bounds[0] - x, bounds[1] - x)

        def evaluate(delta):
            gain, weights = objective(
                outputs_at(predictor, x + delta, shape), target, away, hard=False
            )
            gradient = gradient_at(predictor, x + delta, shape, target, weights)
            zero = is_zero(predictor, (x + delta).reshape(-1, *shape), weights, gradient)
            return gain.astype(x.dtype), gradient, zero, jnp.isfinite(gradient).all(1)

        def draw(start):
            if keys is None:
                return jnp.zeros_like(x)
            return random_rows(
                jax.vmap(lambda key: jax.random.fold_in(key, start))(keys),
                settings.size,
                norm,
                box,
                x,
            )

        best, zero, finite = _ascend(evaluate, draw, x, box, norm, once, starts, settings)
        return within(x, best, bounds), zero, finite

    rows = rows_within(memory, predictor, x, shape)
    return tiles.by_rows(part, (x, target, keys, bounds), rows)


def attack(
    predictor: Callable,
    inputs: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, " n"] | Int[ArrayLike, " n"],
    *,
    size: float,
    norm: str = "l2",
    steps: int = 20,
    step_size: float | None = None,
    momentum: float = 0.0,
    away: bool = False,
    bounds: tuple[ArrayLike, ArrayLike] | None = None,
    starts: int = 1,
    memory: float | None = None,
    key: PRNGKeyArray | None = None,
) -> Perturbation:
    """Perturbations of norm at most `size` that carry every input toward its target: projected
    steepest ascent.

    What increases is target_n f for one output and the margin M_t = f_t - log sum_{k != t} exp f_k
    for K outputs; the logistic loss, or the cross-entropy, toward the target is log(1 +
    exp(-that)), so both are decreased. Steps are

        velocity <- momentum velocity + g / |g|_1,     delta <- P(delta + step_size velocity /
        |velocity|),

    g the gradient at inputs + delta, P the Euclidean projection on the ball of the norm and the box
    of the bounds at once, exact for every norm. The velocity is normalised in l2, or for linf by
    its sign. With momentum 1 and linf that is MI-FGSM, with momentum 0 PGD. The best iterate is
    kept, the unperturbed input among them.

    One step maximises the linearised predictor over the ball and the box: without bounds it is that
    of `perturb` (l2: size g / |g|, linf: size sign(g), l1: all in the entry with the largest |g|);
    with bounds, the exact maximiser.

    Args:
        predictor: a KernelPredictor, a network, or any differentiable function of JAX arrays (n,
            ...) -> (n,), (n, 1) or (n, K) that treats rows independently. It is compiled, once for
            every shape.
        inputs: (n, ...).
        targets: (n,) in {-1, +1}, the label each input is moved toward; for K outputs class
            indices.
        size: the largest norm of a perturbation, over all axes but the first; for l0 the number of
            entries.
        norm: "l2", "linf", "l1" or "l0". l0 needs bounds: the chosen entries may take any value
            within them.
        steps: how many; 1 is the closed form above.
        step_size: length of a step, in linf for linf, otherwise in l2. Left out: the first step
            from the input is the closed form, and later ones shrink as 1 + cos(pi k / steps) from
            twice the radius of the ball.
        momentum: weight of earlier gradients, >= 0.
        away: move away from `targets`, such as the true labels, instead: -target_n f, or -M_t.
        bounds: (low, high), numbers or arrays that broadcast to the inputs: inputs + delta stays
            within, exactly. The inputs must lie within.
        starts: how many times the iteration is run: from the input, then from random points of the
            ball. The best result is kept.
        memory: bytes for temporaries; points are attacked in parts that fit. Left out: the device's
            default. What evaluating a KernelPredictor takes is its kernel's.
        key: random key, for starts > 1.

    Returns:
        A Perturbation. `targets` as given (for one output with `away` turned around: moved toward).
        `zero_gradient` where the gradient at the input is zero to rounding: there delta is 0 unless
        a random start found better.

    Raises:
        ValueError, TypeError: bad arguments, before any computation; a gradient that is not finite
        at an input.

    Sources: Madry et al. (ICLR 2018), PGD; Dong et al. (CVPR 2018), MI-FGSM.
    """
    problem = checked_problem(predictor, inputs, targets, norm, away, bounds)
    settings = _checked_settings(problem, size, norm, steps, step_size, momentum, memory)
    check_count(starts, "starts")
    check_starts(starts, 1, key)
    if starts > 1 and steps == 1:
        raise ValueError(
            f"starts must be 1 for a single step, whose result is not compared; got {starts}"
        )
    keys = None if starts == 1 or key is None else jax.random.split(key, len(problem.x))
    count = jnp.asarray(starts)
    delta, zero, finite = _attack(problem, keys, settings, count, norm, steps == 1, memory)
    check_result(finite)
    assert problem.target is not None
    return Perturbation(delta.reshape(-1, *problem.shape), problem.target, zero)


def _checked_settings(
    problem: Problem, size, norm, steps, step_size, momentum, memory
) -> _Settings:
    if norm == "l0":
        check_count(size, "size", low=0)
    else:
        check_number(size, "size")
    check_count(steps, "steps")
    if step_size is not None:
        check_number(step_size, "step_size", open_low=True)
    check_number(momentum, "momentum")
    check_memory(memory)
    dtype = problem.x.dtype
    step = None if step_size is None else jnp.asarray(step_size, dtype)
    return _Settings(
        jnp.asarray(size, dtype), jnp.asarray(steps), step, jnp.asarray(momentum, dtype)
    )


@eqx.filter_jit
def _universal(problem: Problem, settings: _Settings, norm: str, once: bool, memory):
    predictor, x, shape, _, target, away, bounds = problem
    limit = rows_within(memory, predictor, x, shape)
    box = None
    if bounds is not None:  # beyond it every point is clipped
        box = (
            jnp.min(bounds[0] - x, axis=0, keepdims=True),
            jnp.max(bounds[1] - x, axis=0, keepdims=True),
        )

    def gains(points, delta, weight):
        x, target, bounds = points
        z = x + delta if bounds is None else jnp.clip(x + delta, *bounds)
        return weight[0] * objective(outputs_at(predictor, z, shape), target, away, hard=False)[0]

    def gradient_sums(delta, points, weight):
        """(1, d) twice: the weighted gradients, and their sizes."""
        x, target, bounds = points
        moved = x + delta
        z = moved if bounds is None else jnp.clip(moved, *bounds)
        _, weights = objective(outputs_at(predictor, z, shape), target, away, hard=False)
        g = weight[:, None] * gradient_at(predictor, z, shape, target, weights)
        if bounds is not None:  # entries that are clipped, or would be at once, do not move
            low, high = bounds
            g = jnp.where(
                (g > 0) & (moved >= low) & (moved < high)
                | (g < 0) & (moved > low) & (moved <= high),
                g,
                0,
            )
        return g.sum(0, keepdims=True), jnp.abs(g).sum(0, keepdims=True)

    def evaluate(delta):
        points = x, target, bounds
        gain = tiles.accumulate(gains, points, delta, jnp.ones(1, x.dtype), (limit, 1)).astype(
            x.dtype
        )
        # -d log(1 + exp(-gain)) / d gain is sigmoid(-gain). Divided by the largest, it does not
        # underflow.
        log_weight = jax.nn.log_sigmoid(-gain)
        weight = jnp.exp(log_weight - log_weight.max())
        gradient, sizes = tiles.accumulate(gradient_sums, delta, points, weight, (1, limit))
        finite = jnp.isfinite(gradient).all(1)
        # Or cancelled.
        gradient = jnp.where(jnp.abs(gradient) > 8 * jnp.finfo(x.dtype).eps * sizes, gradient, 0)
        return jax.nn.log_sigmoid(gain).mean()[None], gradient, ~gradient.any(1), finite

    return _ascend(
        evaluate, lambda start: 0 * x[:1], x[:1], box, norm, once, jnp.asarray(1), settings
    )


def universal(
    predictor: Callable,
    inputs: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, " n"] | Int[ArrayLike, " n"],
    *,
    size: float,
    norm: str = "l2",
    steps: int = 20,
    step_size: float | None = None,
    momentum: float = 0.0,
    away: bool = False,
    bounds: tuple[ArrayLike, ArrayLike] | None = None,
    memory: float | None = None,
) -> Float[Array, "..."]:
    """One perturbation for all inputs, shaped like one of them, of norm at most `size`: what moves
    them all at once.

    It decreases the mean over the inputs of the loss of `attack`, log(1 + exp(-target_n f)) or with
    M_t, by the same steps; its gradient weighs each input by 1/(1 + exp(target_n f)), so that those
    already moved count less. Where the predictor has one gradient for all inputs, or for one input,
    it is that of `attack`. Its norm is 0 where the gradients cancel to rounding: no direction helps
    all.

    Args:
        bounds: an input moved is clip(inputs + delta, low, high), and so it is while delta is
            sought; delta itself is limited to what moves some input.
        predictor, inputs, targets, size, norm, steps, step_size, momentum, away, memory: as in
            `attack`.

    Raises as `attack` does.

    Sources: Moosavi-Dezfooli et al. (CVPR 2017); the loss of Shafahi et al. (AAAI 2020), without
    its clipping.
    """
    problem = checked_problem(predictor, inputs, targets, norm, away, bounds)
    settings = _checked_settings(problem, size, norm, steps, step_size, momentum, memory)
    delta, _, finite = _universal(problem, settings, norm, steps == 1, memory)
    check_result(finite)
    return delta.reshape(problem.shape)
