"""Logistic and exponential flows to any time, by an implicit method."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from perturbkernel.checks import (
    as_float,
    as_targets,
    check_count,
    check_finite,
    check_number,
    is_traced,
)
from perturbkernel.engine.tiles import EXACT

SPEED: dict[str, Callable[[Array], Array]] = {
    "logistic": lambda s: jax.nn.sigmoid(-s),
    "exponential": lambda s: jnp.exp(-s),
}


_ORDERS = 5


_ROWS = _ORDERS + 3  # the state, its differences 1 to 5, and two more that choose the next order


_NEWTON = 4


_CG = 200


_INNER = 1 / 4  # what Newton and conjugate gradients may leave, of the error allowed a step


PRODUCTS = 20_000  # with the Gram matrix, at most


STIFF = 200  # time lambda_max / (4 n) up to which an explicit method needs fewer products: about two for each unit


DRIFT = 100  # times the tolerance: rounding beyond this is reported


# Of each order k: sum of 1/j for j <= k; the coefficient kappa that makes the formulas of Shampine
# and Reichelt a bit more accurate than plain backward differentiation; both combined; the constant
# of the local error.
_GAMMA = np.concatenate([[0], np.cumsum(1 / np.arange(1, _ORDERS + 1))])


_KAPPA = np.array([0, -0.1850, -1 / 9, -0.0823, -0.0415, 0])


_ALPHA = (1 - _KAPPA) * _GAMMA


_ERROR = _KAPPA * _GAMMA + 1 / np.arange(1, _ORDERS + 2)


class LogisticPath(NamedTuple):
    """The logistic flow at k times, and what the integration met.

    Attributes:
        dual_coef: (k, n), y_n alpha_n; rows of NaN for times that were not reached.
        outputs: (k, n), f at the training points.
        time: up to which the integration came; the largest of the times if all went well.
        products: how many products with the Gram matrix were spent.
        steps: accepted steps.
        last: (n,), dual coefficients at `time`.
        drift: |K dual_coef + f0 - f| at the last time, relative to the largest change of f: the
            rounding of all products, since f is carried along and not computed anew.
    """

    dual_coef: Float[Array, "k n"]
    outputs: Float[Array, "k n"]
    time: Float[Array, ""]
    products: Any
    steps: Any
    last: Float[Array, " n"]
    drift: Float[Array, ""]


def logistic_path(
    operator: Callable[[Array], Array],
    y: Float[ArrayLike, " n"],
    f0: Float[ArrayLike, " n"] | None,
    times: Float[ArrayLike, " k"],
    rtol: float = 1e-4,
    max_products: int = PRODUCTS,
) -> LogisticPath:
    """Dual coefficients of gradient flow on the logistic loss at several times, from one
    integration.

    Args:
        operator: v (n,) -> K v, symmetric positive semidefinite. A pytree (`gram_operator` makes
            one, or `jax.tree_util.Partial(jnp.matmul, gram)`), so that its arrays are arguments of
            the compiled function; a plain function works and compiles anew for each function
            object.
        y: (n,), -1 or +1.
        f0: (n,), outputs before training; None for zero.
        times: (k,), >= 0 and finite, in any order; time = learning rate x steps.
        rtol: the local error of each step, relative to the largest change of an output at a
            training point and to the norm of alpha. Errors at the times asked for stay within four
            times this (tests/test_logistic.py).
        max_products: the integration stops there, and `time` says how far it came.

    Raises:
        ValueError, TypeError: bad arguments, before any computation.

    Everything is in the common dtype of y and f0: float32 unless those are float64; then rtol is at
    least 1e-5. Can be called inside `jit`. Cost: some 100 products to time 1e4 where the classes
    are separable, some 400 to time 1e5 where they are not, at rtol=1e-3.
    """
    y = as_float(y, "y")
    y = as_targets(y, "y", y.size)
    f0 = jnp.zeros_like(y) if f0 is None else as_targets(f0, "f0", y.size, labels=False)
    times = as_float(times, "times")
    if times.ndim != 1 or times.size == 0:
        raise ValueError(f"times must have shape (k,) with k >= 1; got {times.shape}")
    check_finite(times, "times")
    if not is_traced(times) and (np.asarray(times) < 0).any():
        raise ValueError(f"times must be >= 0; got {np.asarray(times).min():g}")
    dtype = jnp.result_type(y, f0)
    check_number(rtol, "rtol", low=1e-5 if dtype == jnp.float32 else 1e-12, high=0.1)
    check_count(max_products, "max_products")
    if not callable(operator):
        raise TypeError(f"operator must be a function (n,) -> (n,); got {operator!r}")
    if jax.tree.structure(operator) == jax.tree.structure(0):
        operator = jax.tree_util.Partial(operator)
    product: Any = jax.eval_shape(operator, y)
    if product.shape != y.shape:
        raise ValueError(f"operator must map {y.shape} to {y.shape}; it gave {product.shape}")
    y, f0, times, relative = (jnp.asarray(a, dtype) for a in (y, f0, times, rtol))
    return integrate(operator, y, f0, times, relative, jnp.asarray(max_products), loss="logistic")


class _State(NamedTuple):
    differences: (
        Array  # (_ROWS, 2, n): of alpha, and of its image y K (y alpha), which is carried along
    )
    s: Array  # log(1 + time / unit)
    step: Array
    order: Array
    equal: Array  # accepted steps since step or order changed
    steps: Array
    products: Array
    filled: Array  # how many of the times are done
    path: Array  # (k, 2, n)


@partial(jax.jit, static_argnames="loss")
def integrate(
    operator, y: Array, f0: Array, times: Array, rtol: Array, max_products: Array, *, loss: str
) -> LogisticPath:
    n, dtype = len(y), y.dtype
    start = y * f0

    def image(v):
        return y * operator(y * v).astype(dtype)

    def velocity(change):
        return SPEED[loss](start + change) / n

    def steepness(speed):
        """Minus the derivative of the velocity, from the velocity."""
        return speed * (1 - n * speed) if loss == "logistic" else speed

    # Time begins to be logarithmic when outputs have changed by about one.
    first = jnp.stack([velocity(0), image(velocity(0))])
    fastest = jnp.abs(first[1]).max()
    latest = times.max()
    unit = jnp.where(fastest > 0, 1 / jnp.where(fastest > 0, fastest, 1), jnp.maximum(latest, 1))
    order_of_times = jnp.argsort(times)
    stops = jnp.log1p(times[order_of_times] / unit)
    end, close = stops[-1], 8 * jnp.finfo(dtype).eps * stops[-1]

    def fill(state: _State) -> _State:
        """Rows of the path up to the present s, by the polynomial through the last steps."""

        def pending(carry):
            filled, _ = carry
            return (filled < len(stops)) & (
                stops[jnp.minimum(filled, len(stops) - 1)] <= state.s + close
            )

        def one(carry):
            filled, path = carry
            back = (stops[filled] - state.s) / state.step
            j = jnp.arange(_ORDERS)
            weights = jnp.cumprod((back + j.astype(dtype)) / (1 + j.astype(dtype)))
            weights = jnp.where(j < state.order, weights, 0)
            value = state.differences[0] + jnp.tensordot(
                weights, state.differences[1 : _ORDERS + 1], 1, precision=EXACT
            )
            return filled + 1, path.at[filled].set(value)

        filled, path = lax.while_loop(pending, one, (state.filled, state.path))
        return state._replace(filled=filled, path=path)

    def attempt(state: _State) -> _State:
        order, differences, s = state.order, state.differences, state.s + state.step
        row = jnp.arange(_ROWS)
        table = [jnp.asarray(a, dtype) for a in (_GAMMA, _ALPHA, _ERROR)]
        gamma, alpha, error = table[0], table[1][order], table[2]
        predicted = jnp.tensordot((row <= order).astype(dtype), differences, 1, precision=EXACT)
        memory = jnp.where(row[: _ORDERS + 1] <= order, gamma, 0) / alpha
        memory = jnp.tensordot(memory, differences[: _ORDERS + 1], 1, precision=EXACT)
        scale = state.step / alpha * unit * jnp.exp(s)  # d time / d s is unit exp(s)
        allowed = rtol * jnp.array(
            [
                jnp.linalg.norm(predicted[0]),
                jnp.maximum(jnp.abs(predicted[1]).max(), jnp.abs(differences[0, 1]).max()),
            ]
        )

        correction, converged, products = _newton(
            image, velocity, steepness, predicted, memory, scale, _INNER * allowed[1]
        )

        def size(e):
            """Of an error, in units of what is allowed."""
            relative = jnp.array([jnp.linalg.norm(e[0]), jnp.abs(e[1]).max()]) / jnp.where(
                allowed > 0, allowed, 1
            )
            return jnp.where(jnp.isfinite(relative).all(), relative.max(), jnp.inf)

        now = size(error[order] * correction)
        accepted = converged & (now <= 1)

        # Accepted: differences of all orders at the new point.
        upper = (row[:, None] <= row[None, :]) & (row[None, :] <= order) & (row[:, None] <= order)
        keep = (row[:, None] == row[None, :]) & (row[:, None] > order + 2)
        subtract = (row[:, None] == order + 2) & (row[None, :] == order + 1)
        update = upper.astype(dtype) + keep.astype(dtype) - subtract.astype(dtype)
        moved = jnp.tensordot(update, differences, 1, precision=EXACT)
        moved = moved + (row <= order + 2).astype(dtype)[:, None, None] * correction[None]
        differences = jnp.where(accepted, moved, differences)
        state = state._replace(
            differences=differences,
            s=jnp.where(accepted, s, state.s),
            equal=jnp.where(accepted, state.equal + 1, 0),
            steps=state.steps + accepted.astype(state.steps.dtype),
            products=state.products + products,
        )
        state = fill(state)

        # The order among the present one and its neighbours that allows the longest step.
        lower = jnp.where(order > 1, size(error[order - 1] * differences[order]), jnp.inf)
        higher = jnp.where(
            order < _ORDERS, size(error[order + 1] * differences[order + 2]), jnp.inf
        )
        sizes = jnp.stack([lower, now, higher])
        powers = -1 / (order + jnp.arange(3)).astype(dtype)
        factors = jnp.maximum(sizes, 1e-10) ** powers
        best = jnp.argmax(factors)
        settled = accepted & (state.equal > order)
        new_order = jnp.where(settled, order + best - 1, order)
        factor = jnp.where(settled, jnp.minimum(5, 0.9 * factors[best]), 1)
        shrink = jnp.where(converged, jnp.maximum(0.2, 0.9 * factors[1]), 0.5)
        factor = jnp.where(accepted, factor, shrink)
        left = end - state.s
        factor = jnp.where(left > close, jnp.minimum(factor, left / state.step), 1)
        changed = (factor != 1) | (new_order != order)
        return state._replace(
            differences=lax.cond(
                factor != 1, _rescaled, lambda d, *_: d, state.differences, new_order, factor
            ),
            step=state.step * factor,
            order=new_order,
            equal=jnp.where(changed, 0, state.equal),
        )

    def unfinished(state: _State):
        return (end - state.s > close) & (state.products < max_products) & (state.step > close)

    step = jnp.where(end > 0, jnp.minimum(0.3 * jnp.sqrt(rtol), end), 1)
    differences = jnp.zeros((_ROWS, 2, n), dtype).at[1].set(first * unit * step)
    zero, one = jnp.zeros((), int), jnp.ones((), int)
    path = jnp.full((len(times), 2, n), jnp.nan, dtype)
    state = _State(differences, jnp.zeros((), dtype), step, one, zero, zero, one, zero, path)
    state = lax.while_loop(unfinished, attempt, fill(state))
    last = state.differences[0]
    largest = jnp.abs(last[1]).max()
    drift = jnp.abs(image(last[0]) - last[1]).max() / jnp.where(largest > 0, largest, 1)
    path = jnp.zeros_like(path).at[order_of_times].set(state.path)
    time = jnp.where(end - state.s > close, unit * jnp.expm1(state.s), latest)
    return LogisticPath(
        y[None] * path[:, 0],
        f0[None] + y[None] * path[:, 1],
        time,
        state.products + 1,
        state.steps,
        y * last[0],
        drift,
    )


def _rescaled(differences: Array, order: Array, factor: Array) -> Array:
    """The backward differences of the same polynomial for a step `factor` times as long."""
    i = jnp.arange(_ORDERS + 1, dtype=differences.dtype)

    def table(factor):
        """R_ij = prod_{k <= i} (k - 1 - factor j) / k."""
        ratios = (i[:, None] - 1 - factor * i[None, :]) / jnp.maximum(i, 1)[:, None]
        return jnp.cumprod(ratios.at[0].set(1), axis=0)

    change = jnp.matmul(table(factor), table(jnp.ones_like(factor)), precision=EXACT)
    kept = (jnp.arange(_ORDERS + 1) <= order)[:, None]
    change = jnp.where(kept, change, 0)
    new = jnp.tensordot(change.T, differences[: _ORDERS + 1], 1, precision=EXACT)
    new = jnp.where(kept[:, None], new, differences[: _ORDERS + 1])
    return differences.at[: _ORDERS + 1].set(new)


def _newton(image, velocity, steepness, predicted, memory, scale, allowed):
    """Solves x = scale velocity(x) - memory for x = predicted + correction.

    x = (alpha, its image). With w = scale steepness and S = diag(sqrt(w)), the Newton system (1 + w
    K) delta = r becomes (1 + S K S) q = S K r, delta = r - S q: symmetric, no eigenvalue below one.
    What Newton leaves is at most half the square of the last change of an output (to leading
    order), since |l'''| <= l''.

    Returns the correction, whether found, products spent.
    """

    def iterate(carry):
        correction, _, count, products = carry
        change = predicted[1] + correction[1]
        speed = velocity(change)
        residual = scale * jnp.stack([speed, image(speed)]) - memory - correction
        root = jnp.sqrt(scale * steepness(speed))
        q, step, solved, spent = _conjugate_gradients(
            lambda p: image(root * p), root, root * residual[1], allowed
        )
        delta = jnp.stack([residual[0] - root * q, residual[1] - step])
        largest = jnp.minimum(jnp.abs(delta[1]).max(), 1)
        done = solved & (largest**2 / 2 <= allowed)
        return correction + delta, done, jnp.where(solved, count + 1, _NEWTON), products + spent + 1

    def unfinished(carry):
        _, done, count, _ = carry
        return ~done & (count < _NEWTON)

    zero, none = jnp.zeros_like(predicted), jnp.zeros((), int)
    correction, done, _, products = lax.while_loop(
        unfinished, iterate, (zero, jnp.array(False), none, none)
    )
    return correction, done, products


def _conjugate_gradients(half: Callable, root: Array, right: Array, allowed: Array):
    """Solves (1 + root half) q = right, until the image half(q) moves by less than `allowed` at
    every point.

    Returns q, half(q), whether solved, products spent.
    """

    def iterate(carry):
        q, moved, residual, direction, square, _, count = carry
        u = half(direction)
        product = direction + root * u
        length = square / jnp.maximum(jnp.sum(direction * product), jnp.finfo(right.dtype).tiny)
        residual = residual - length * product
        new = jnp.sum(residual**2)
        next_direction = (
            residual + new / jnp.maximum(square, jnp.finfo(right.dtype).tiny) * direction
        )
        last = jnp.abs(length * u).max()
        return (
            q + length * direction,
            moved + length * u,
            residual,
            next_direction,
            new,
            last,
            count + 1,
        )

    def unfinished(carry):
        *_, last, count = carry
        return (last > allowed) & (count < _CG)  # no longer if last is NaN

    zero = jnp.zeros_like(right)
    carry = (
        zero,
        zero,
        right,
        right,
        jnp.sum(right**2),
        jnp.array(jnp.inf, right.dtype),
        jnp.zeros((), int),
    )
    q, moved, *_, last, count = lax.while_loop(unfinished, iterate, carry)
    return q, moved, last <= allowed, count
