"""The minimum of a penalised loss, which flow reaches in infinite time, by Newton's method.

    J(f) = (1/n) sum_n w_n l(f(x_n)) + ridge/2 |f - f0|^2,    f = f0 + sum_n dual_coef_n K(x_n, .),

in the norm of the kernel's function space. With F the weighted forces over n and H = C C^T minus
their derivative, the minimum has ridge dual_coef = F(f0 + K dual_coef), and Newton's step for
g = ridge dual_coef - F is, with a matrix that is symmetric and at least `ridge`,

    -(ridge + H K)^-1 g = -(g - C (ridge + C^T K C)^-1 C^T K g) / ridge.

J is strongly convex, so that sqrt(g^T K g) / ridge bounds how far f is from the minimum, in that
norm, wherever f is (theory: 1.5).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.arrays import quotient
from perturbkernel.engine.tiles import EXACT
from perturbkernel.training.dynamics import Solution
from perturbkernel.training.gram import GramOperator, scale_rows
from perturbkernel.training.losses import Kind, Loss

_STEPS = 100  # of Newton's method
_INNER = 1000  # iterations of conjugate gradients in a step, at most
_DIRECT = 2000  # coefficients up to which the matrix of a step is factored
_HALVED = 40  # times, at most, until a step is short enough


class Minimum(NamedTuple):
    """Where Newton's method stopped.

    Attributes:
        dual_coef: shaped like the outputs.
        left: a bound of the distance to the minimum, relative to f - f0, in the kernel's norm.
        steps: Newton steps.
    """

    dual_coef: Float[Array, "n ..."]
    left: Float[Array, ""]
    steps: Array


class Curvature(NamedTuple):
    """C of the module's formula, H = C C^T. `apply`, `adjoint`: v -> C v and C^T v."""

    apply: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]


def curvature_root(loss: Loss, y: Array, outputs: Array, shares: Array) -> Curvature:
    """The root of minus the derivative of the forces. `shares`: (n,), weights over n.

    Of softmax with probabilities p, diag(p) - p p^T = C C^T for C = diag(s) - p s^T, s = sqrt(p).
    """
    if loss.kind is not Kind.SOFTMAX:
        assert loss.margin is not None
        root = jnp.sqrt(shares * loss.margin.bend(y * outputs))
        return Curvature(partial(scale_rows, root), partial(scale_rows, root))
    p = jax.nn.softmax(outputs, axis=1)
    s = jnp.sqrt(p)
    outer = jnp.sqrt(shares)

    def apply(v):
        scaled = s * v
        total = jnp.sum(scaled, axis=1, keepdims=True)
        return scale_rows(outer, scaled - p * total)

    def adjoint(v):
        v = scale_rows(outer, v)
        mean = jnp.sum(p * v, axis=1, keepdims=True)
        return s * (v - mean)

    return Curvature(apply, adjoint)


def shifted_matrix(gram: Array, root: Curvature, like: Array, ridge: Array) -> Array:
    """ridge + C^T K C, for coefficients shaped like `like`, whose entries are rows and columns."""
    size = like.size

    def column(unit):
        v = root.apply(unit.reshape(like.shape))
        return root.adjoint(jnp.matmul(gram, v, precision=EXACT)).ravel()

    identity = jnp.eye(size, dtype=like.dtype)
    return ridge * identity + jax.vmap(column)(identity)


class _State(NamedTuple):
    dual: Array
    image: Array  # K dual
    gradient: Array  # g
    gradient_image: Array  # K g
    value: Array  # of J
    left: Array
    steps: Array
    moving: Array


@partial(jax.jit, static_argnames="loss")
def minimise(
    operator: Callable,
    y: Array,
    f0: Array,
    ridge: Array,
    weights: Array,
    tolerance: Array,
    *,
    loss: Loss,
) -> Minimum:
    """From f = f0. `operator`: V (n,) or (n, k) -> K v, a pytree; `weights`: (n,), of mean one."""
    shares = weights / len(y)

    def objective(dual, image):
        values = loss.value(f0 + image, y)
        of_outputs = jnp.sum(shares * values)
        square = jnp.sum(dual * image)
        return of_outputs + ridge / 2 * square

    def examined(dual, steps) -> _State:
        image = operator(dual)
        gradient = ridge * dual - scale_rows(shares, loss.force(y, f0 + image))
        gradient_image = operator(gradient)
        size = _norm(gradient, gradient_image)
        length = _norm(dual, image)
        distance = size / ridge
        left = quotient(distance, length, length > 0, jnp.inf)
        left = jnp.where(size > 0, left, 0)
        value = objective(dual, image)
        moving = jnp.array(True)
        return _State(dual, image, gradient, gradient_image, value, left, steps, moving)

    def unfinished(state: _State) -> Array:
        return (state.left > tolerance) & (state.steps < _STEPS) & state.moving

    def iterate(state: _State) -> _State:
        root = curvature_root(loss, y, f0 + state.image, shares)
        accuracy = jnp.clip(state.left / 10, 1e-10, 1e-2)
        step, step_image = _newton_step(operator, root, state, ridge, accuracy)
        length = _step_length(objective, state, step, step_image)
        new = examined(state.dual + length * step, state.steps + 1)
        better = (new.value < state.value) | (new.left < state.left / 2)
        keep = better | (new.left <= state.left)
        kept = jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, state)
        return kept._replace(steps=new.steps, moving=better)

    none = jnp.zeros((), int)
    begin = examined(jnp.zeros_like(f0), none)
    end = lax.while_loop(unfinished, iterate, begin)
    return Minimum(end.dual, end.left, end.steps)


def _norm(dual: Array, image: Array) -> Array:
    """Of the function with these coefficients, in the kernel's space."""
    square = jnp.sum(dual * image)
    return jnp.sqrt(jnp.maximum(square, 0))


def _newton_step(
    operator: Callable, root: Curvature, state: _State, ridge: Array, accuracy: Array
) -> tuple[Array, Array]:
    """The step of the coefficients, and its image: by a Cholesky factor where the matrix is held
    and is not too large, or by conjugate gradients to a relative residual of `accuracy`.
    """
    gram = operator.matrix if isinstance(operator, GramOperator) else None
    if gram is None or state.dual.size > _DIRECT:
        return _conjugate_gradients(operator, root, state, ridge, accuracy)
    matrix = shifted_matrix(gram, root, state.dual, ridge)
    factor = jax.scipy.linalg.cho_factor(matrix, lower=True)
    right = root.adjoint(state.gradient_image)
    inner = jax.scipy.linalg.cho_solve(factor, right.ravel())
    across = root.apply(inner.reshape(right.shape))
    step = (across - state.gradient) / ridge
    image = (operator(across) - state.gradient_image) / ridge
    return step, image


class _Descent(NamedTuple):
    """Of conjugate gradients; each vector with its image under K, (2, n, ...)."""

    step: Array
    residual: Array
    direction: Array
    square: Array  # of the residual, in the kernel's norm
    count: Array


def _conjugate_gradients(
    operator: Callable, root: Curvature, state: _State, ridge: Array, accuracy: Array
) -> tuple[Array, Array]:
    """(ridge + H K) step = -g in the kernel's inner product <u, K v>, for which that matrix is
    symmetric: whatever the accuracy, the step leads down. One product an iteration.
    """

    def inner(a, b):
        return jnp.sum(a[0] * b[1])

    def matrix(pair):
        bent = root.apply(root.adjoint(pair[1]))
        return ridge * pair + jnp.stack([bent, operator(bent)])

    def unfinished(now: _Descent) -> Array:
        return (now.square > goal) & (now.count < _INNER)

    def iterate(now: _Descent) -> _Descent:
        product = matrix(now.direction)
        length = now.square / inner(product, now.direction)
        residual = now.residual - length * product
        square = inner(residual, residual)
        return _Descent(
            step=now.step + length * now.direction,
            residual=residual,
            direction=residual + square / now.square * now.direction,
            square=square,
            count=now.count + 1,
        )

    right = -jnp.stack([state.gradient, state.gradient_image])
    square = inner(right, right)
    goal = accuracy**2 * square
    start = _Descent(jnp.zeros_like(right), right, right, square, jnp.zeros((), int))
    step = lax.while_loop(unfinished, iterate, start).step
    return step[0], step[1]


def _step_length(objective: Callable, state: _State, step: Array, image: Array) -> Array:
    """1, halved until J falls by a ten-thousandth of what its slope says, rounding aside."""
    slope = jnp.sum(state.gradient_image * step)
    rounding = 8 * jnp.finfo(state.value.dtype).eps * jnp.abs(state.value)

    def too_long(carry):
        length, halved = carry
        value = objective(state.dual + length * step, state.image + length * image)
        enough = value <= state.value + 1e-4 * length * slope + rounding
        return ~enough & (halved < _HALVED)

    def halve(carry):
        length, halved = carry
        return length / 2, halved + 1

    start = jnp.ones((), state.value.dtype), jnp.zeros((), int)
    length, _ = lax.while_loop(too_long, halve, start)
    return length


def solve(
    operator: Callable,
    y: Array,
    f0: Array,
    loss: Loss,
    ridge: float,
    weights: Array | None,
    tolerance: float,
) -> Solution:
    """Dual coefficients at the minimum; `tolerance` bounds the distance to it, relative."""
    weights = jnp.ones(len(y), y.dtype) if weights is None else weights
    limits = jnp.asarray(ridge, y.dtype), weights, jnp.asarray(tolerance, y.dtype)
    found = minimise(operator, y, f0, *limits, loss=loss)
    left, steps = float(found.left), int(found.steps)
    status = "ok"
    if not left <= tolerance:
        status = (
            f"Newton's method for the {loss.name} loss stopped after {steps} steps, where the "
            f"minimum may be {left:.2g} of the function away, above the tolerance {tolerance:g}"
        )
    stats = {"effective_time": jnp.inf, "residual": left, "solver_steps": steps}
    return Solution(found.dual_coef, status, stats)
