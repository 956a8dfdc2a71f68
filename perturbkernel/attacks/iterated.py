"""Attacks of a given size on any differentiable predictor.

Projected steps for every point, and one direction for all points.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from perturbkernel.arrays import as_jax, namespace, on_host, or_one
from perturbkernel.attacks.ascent import Evaluation, Settings, ascend
from perturbkernel.attacks.boxes import Box, box_around, within
from perturbkernel.attacks.crossings import where_rows
from perturbkernel.attacks.host import HostPredictor, part, small, uncompiled
from perturbkernel.attacks.norms import counts, random_rows, steepest
from perturbkernel.attacks.one_step import Perturbation, is_zero
from perturbkernel.attacks.problem import (
    Problem,
    check_memory,
    check_result,
    check_starts,
    checked_problem,
    gradient_at,
    keys_of_start,
    objective,
    outputs_at,
    rival_weights,
    rows_within,
    softened_weights,
    strongest_rivals,
)
from perturbkernel.checks import check_choice, check_count, check_number
from perturbkernel.engine import sums, tiles

METHODS = ("ascent", "apgd")


@eqx.filter_jit
def _attack(
    problem: Problem, keys, settings: Settings, starts, norm: str, once: bool, memory, method: str
):
    predictor, x, shape, classes, target, away, bounds = problem

    def some(tree):
        x, target, keys, bounds = tree
        box = _box_around(x, bounds)

        def evaluate(delta, share):
            base, step = on_host(x, delta)
            z = as_jax(base + step)
            outputs = outputs_at(predictor, z, shape)
            gain, weights = _aim(outputs, target, away, share)
            gradient = gradient_at(predictor, z, shape, target, weights)
            zero = is_zero(predictor, z.reshape(-1, *shape), weights, gradient)
            rows = on_host(gradient)
            finite = as_jax(namespace(rows).isfinite(rows).all(1))
            return Evaluation(gain.astype(x.dtype), gradient, zero, finite)

        def first_step(gradient):
            if not away or classes is None or classes == 2:
                return _steepest(gradient, settings.size, norm, box)
            return _best_of_rivals(predictor, x, shape, target, settings.size, norm, box)

        def draw(start):
            if keys is None:
                return x
            return _drawn(keys, start, settings.size, norm, box, x)

        best, zero, finite = ascend(
            evaluate, first_step, draw, x, box, norm, once, starts, settings, method == "apgd"
        )
        return _within(x, best, bounds), zero, finite

    rows = rows_within(memory, predictor, x, shape)
    return tiles.by_rows(some, (x, target, keys, bounds), rows)


_box_around, _within = part()(box_around), part()(within)
_steepest = part("norm")(steepest)
_strongest_rivals = part("count")(strongest_rivals)


@part("away")
def _aim(outputs: Array, target: Array, away: bool, share: Array) -> tuple[Array, Array | None]:
    """What increases, and the weights of the outputs in the direction of a step."""
    gain, weights = objective(outputs, target, away)
    if weights is not None and not away:
        weights = softened_weights(outputs, target, share)
    return gain, weights


@part("norm")
def _drawn(keys: Array, start: Array, size: Array, norm: str, box: Box, x: Array) -> Array:
    """Where a random start begins, (m, d)."""
    row_keys = keys_of_start(keys, start)
    return random_rows(row_keys, size, norm, box, x)


@part()
def _weights_of_rival(outputs: Array, rivals: Array, i: Array, target: Array) -> Array:
    """The weights (m, K) of f_k - f_target for the i-th rival k."""
    return rival_weights(outputs, rivals[:, i], target)


@part("norm")
def _better_of(
    best_so_far: tuple[Array, Array],
    outputs: Array,
    weights: Array,
    gradient: Array,
    size: Array,
    norm: str,
    box: Box,
) -> tuple[Array, Array]:
    """The better of two steps to first order, (m, d), and what it gains."""
    best, largest = best_so_far
    step = steepest(gradient, size, norm, box)
    gap = jnp.sum(weights * outputs, axis=1).astype(gradient.dtype)
    gain = gap + jnp.sum(gradient * step, axis=1)
    better = gain > largest
    return where_rows(better, step, best), jnp.where(better, gain, largest)


def _best_of_rivals(
    predictor: Callable[..., Any],
    x: Array,
    shape: tuple[int, ...],
    target: Array,
    size: Array,
    norm: str,
    box: Box,
) -> Array:
    """The best step to first order, (m, d), toward one of the strongest other classes."""
    outputs = outputs_at(predictor, x, shape)
    rivals = _strongest_rivals(outputs, target)

    def consider(i, carry):
        weights = _weights_of_rival(outputs, rivals, i, target)
        gradient = gradient_at(predictor, x, shape, target, weights)
        return _better_of(carry, outputs, weights, gradient, size, norm, box)

    nothing = jnp.zeros_like(x), jnp.full(len(x), -jnp.inf, x.dtype)
    return lax.fori_loop(0, rivals.shape[1], consider, nothing)[0]


def attack(
    predictor: Callable[..., Any],
    inputs: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, " n"] | Int[ArrayLike, " n"],
    *,
    size: float,
    norm: str = "l2",
    steps: int = 20,
    method: str = "ascent",
    step_size: float | None = None,
    momentum: float = 0.0,
    away: bool = False,
    bounds: tuple[ArrayLike, ArrayLike] | None = None,
    starts: int = 1,
    memory: float | None = None,
    key: PRNGKeyArray | None = None,
) -> Perturbation:
    """Finds perturbations of norm at most `size` that move every input toward its target.

    Projected steepest ascent increases target_n f for one output, and for K outputs the margin of
    the decision, f_t - max_{k != t} f_k. Multiplying the outputs by a positive number, or shifting
    all K of them together, changes no perturbation. Steps are

        velocity <- momentum velocity + g / |g|_1,
        delta <- P(delta + step_size velocity / |velocity|),

    g the gradient at inputs + delta, P the Euclidean projection on the ball of the norm and the box
    of the bounds at once, exact for every norm. The velocity is normalised in l2, or for linf by
    its sign. Momentum 1 in linf is MI-FGSM, momentum 0 PGD. The best iterate is kept, the
    unperturbed input among them.

    Toward a class the gradient is that of f_t - sum_{k != t} q_k f_k, q = softmax(f / tau) over the
    other classes, so that rivals that tie count together; tau falls with the steps from the
    standard deviation of the other outputs to 0. Away from a class it is that of f_k - f_t, k the
    strongest other class; the first step is the best of those toward the nine strongest.

    method="apgd" is Auto-PGD of Croce and Hein. Steps begin at twice the radius, along g normalised
    as above, and every one is averaged with the move before it, 3 to 1, and projected again. At
    checkpoints, 22 % to 99 % of the way, a step is halved, and the iteration goes on from the best
    iterate, where fewer than three quarters of the steps since the last gained, or the best did not
    change although the step was not halved then. First step and margin are those above.

    One step maximises the linearised predictor over the ball and the box exactly. Without bounds,
    for one output, it is that of `perturb`; in l1 it moves the entry with the largest |g|.

    Example:
        >>> f = lambda z: z @ jnp.asarray([3.0, 4.0])
        >>> attack(f, jnp.zeros((1, 2)), [1], size=0.5, norm="linf", bounds=(0, 1)).delta.tolist()
        [[0.5, 0.5]]

    Args:
        predictor: a KernelPredictor, a network, or any differentiable function of JAX arrays (n,
            ...) -> (n,), (n, 1) or (n, K) that treats rows independently. It is compiled, once for
            every shape. An object with a method `input_gradient` that JAX cannot trace, of NumPy
            code for instance, is called step by step instead, with all inputs at once.
        inputs: (n, ...).
        targets: (n,) in {-1, +1}, the label each input is moved toward; for K outputs class
            indices.
        size: the largest norm of a perturbation, over all axes but the first; for l0 the number of
            entries.
        norm: "l2", "linf", "l1" or "l0". l0 needs bounds: the chosen entries may take any value
            within them.
        steps: how many; 1 is the closed form above.
        method: "ascent", or "apgd", for which there is no step_size and no momentum to choose.
        step_size: length of a step, in linf for linf, otherwise in l2. Left out: the first step
            from the input is the closed form, and later ones shrink as 1 + cos(pi k / steps) from
            twice the radius of the ball.
        momentum: weight of earlier gradients, >= 0.
        away: move away from `targets`, such as the true labels, instead: what increases is
            -target_n f, or max_{k != t} f_k - f_t.
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

    Sources: Madry et al. (ICLR 2018), PGD; Dong et al. (CVPR 2018), MI-FGSM; Croce and Hein (ICML
    2020), Auto-PGD.
    """
    problem = checked_problem(predictor, inputs, targets, norm, away, bounds)
    settings = _checked_settings(problem, size, norm, steps, step_size, momentum, memory)
    check_choice(method, "method", METHODS)
    if method == "apgd" and (step_size is not None or momentum != 0):
        raise ValueError(
            f'step_size and momentum must be left out for "apgd"; got {step_size}, {momentum}'
        )
    check_count(starts, "starts")
    check_starts(starts, 1, key)
    if starts > 1 and steps == 1:
        raise ValueError(
            f"starts must be 1 for a single step, whose result is not compared; got {starts}"
        )
    keys = None if starts == 1 or key is None else jax.random.split(key, len(problem.x))
    count = jnp.asarray(starts)
    evaluations = starts * (steps + 1)
    problem = problem._replace(predictor=small(problem.predictor, problem.x, evaluations))
    once = steps == 1
    with uncompiled(problem.predictor):
        delta, zero, finite = _attack(problem, keys, settings, count, norm, once, memory, method)
    check_result(finite)
    assert problem.target is not None
    rows = as_jax(delta).reshape(-1, *problem.shape)
    return Perturbation(rows, problem.target, as_jax(zero))


def _checked_settings(problem: Problem, size, norm, steps, step_size, momentum, memory) -> Settings:
    if counts(norm):
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
    return Settings(
        size=jnp.asarray(size, dtype),
        steps=jnp.asarray(steps),
        step_size=step,
        momentum=jnp.asarray(momentum, dtype),
    )


@eqx.filter_jit
def _universal(problem: Problem, settings: Settings, norm: str, once: bool, memory):
    predictor, x, shape, _, target, away, bounds = problem
    limit = rows_within(memory, predictor, x, shape)
    box = None
    if bounds is not None:  # beyond it every point is clipped
        box = (
            jnp.min(bounds[0] - x, axis=0, keepdims=True),
            jnp.max(bounds[1] - x, axis=0, keepdims=True),
        )

    def total(tile, queries, points, weights, limits):
        if isinstance(predictor, HostPredictor):
            return tile(queries, points, weights)
        return sums.accumulate(tile, queries, points, weights, limits)

    def moved_by(delta, x, bounds):
        return x + delta if bounds is None else jnp.clip(x + delta, *bounds)

    def gains(points, delta, weight):
        x, target, bounds = points
        outputs = outputs_at(predictor, moved_by(delta, x, bounds), shape)
        return weight[0] * objective(outputs, target, away)[0].astype(x.dtype)

    def gradient_sums(delta, points, weight):
        """(1, d) twice: the weighted gradients, and their sizes."""
        x, target, bounds = points
        z = moved_by(delta, x, bounds)
        _, weights = objective(outputs_at(predictor, z, shape), target, away)
        g = weight[:, None] * gradient_at(predictor, z, shape, target, weights)
        if bounds is not None:  # entries that are clipped, or would be at once, do not move
            low, high = bounds
            moved = x + delta
            upward = (g > 0) & (moved >= low) & (moved < high)
            downward = (g < 0) & (moved > low) & (moved <= high)
            g = jnp.where(upward | downward, g, 0)
        return g.sum(0, keepdims=True), jnp.abs(g).sum(0, keepdims=True)

    def all_gains(delta):
        points = x, target, bounds
        return total(gains, points, delta, jnp.ones(1, x.dtype), (limit, 1))

    # The loss is one of gains in units of their own size at the inputs.
    unit = jnp.abs(all_gains(jnp.zeros_like(x[:1]))).mean()
    unit = or_one(unit)

    def evaluate(delta, _):
        gain = all_gains(delta) / unit
        # -d log(1 + exp(-gain)) / d gain is sigmoid(-gain). Divided by the largest, it does not
        # underflow.
        log_weight = jax.nn.log_sigmoid(-gain)
        weight = jnp.exp(log_weight - log_weight.max())
        points = x, target, bounds
        gradient, sizes = total(gradient_sums, delta, points, weight, (1, limit))
        finite = jnp.isfinite(gradient).all(1)
        # Or cancelled.
        gradient = jnp.where(abs(gradient) > 8 * jnp.finfo(x.dtype).eps * sizes, gradient, 0)
        fit = jax.nn.log_sigmoid(gain).mean()[None]
        return Evaluation(fit, gradient, ~gradient.any(1), finite)

    def first_step(gradient):
        return steepest(gradient, settings.size, norm, box)

    start = jnp.asarray(1)
    like = x[:1]
    return ascend(
        evaluate, first_step, lambda _: jnp.zeros_like(like), like, box, norm, once, start, settings
    )


def universal(
    predictor: Callable[..., Any],
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
    """Finds one perturbation for all inputs, shaped like one of them, of norm at most `size`.

    It decreases the mean over the inputs of log(1 + exp(-m_n / s)), m_n the margin that `attack`
    increases and s the mean of |m_n| at the inputs, by the same steps. The gradient weighs each
    input by 1/(1 + exp(m_n / s)), so that those already moved count less, whatever the units of the
    outputs. Where the predictor has one gradient for all inputs, or for one input, it is that of
    `attack`. Its norm is 0 where the gradients cancel to rounding: no direction helps all.

    Example:
        >>> w, x = jnp.asarray([3.0, 4.0]), jnp.asarray([[1.0, 0.0], [0.0, 0.1]])
        >>> universal(lambda z: z @ w, x, jnp.asarray([1, 1]), size=0.5, norm="linf").tolist()
        [0.5, 0.5]

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
    with uncompiled(problem.predictor):
        delta, _, finite = _universal(problem, settings, norm, steps == 1, memory)
    check_result(finite)
    return as_jax(delta).reshape(problem.shape)
