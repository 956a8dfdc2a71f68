"""Flows on losses of the margin to any time, by an implicit method in log(time).

Backward differentiation of variable order 1 to 5 and variable step (Shampine and Reichelt, The
MATLAB ODE suite, SIAM J. Sci. Comput. 1997, in the quasi-constant form). Every mode decays without
oscillation, so all orders are stable for every step. Each step is a Newton iteration whose systems
are symmetric, positive definite and well enough conditioned for conjugate gradients.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.engine.tiles import EXACT
from perturbkernel.training.losses import Loss
from perturbkernel.training.shifted_solve import conjugate_gradients

PRODUCTS = 20_000  # with the Gram matrix, at most
_ORDERS = 5
_ROWS = _ORDERS + 3  # the state, its differences 1 to 5, and two more that choose the next order
_NEWTON = 4  # iterations, at most: beyond, a shorter step is cheaper
_INNER = 1 / 4  # what Newton and conjugate gradients may leave, of the error allowed a step
# A new step is a bit shorter than the error would allow, at most five times longer and at least a
# fifth of the old one.
_SAFETY, _LONGEST, _SHORTEST = 0.9, 5, 0.2

# Of each order k: gamma, the sum of 1/j for j <= k; the coefficient kappa that makes the formulas
# of Shampine and Reichelt a bit more accurate than plain backward differentiation; alpha, both
# combined; the constant of the local error.
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


class _Equation(NamedTuple):
    """d alpha / d time = speed(margin) / n, for alpha and its image y K (y alpha), (n,) each.

    `velocity` and `steepness`, minus its derivative, are functions of the image.
    """

    image: Callable[[Array], Array]
    velocity: Callable[[Array], Array]
    steepness: Callable[[Array], Array]


class _Clock(NamedTuple):
    """Progress is made in s = log(1 + time / unit).

    `stops`: (k,), the times asked for, ascending, in s; `close`: what is no more than rounding.
    """

    unit: Array
    stops: Array
    end: Array
    close: Array


class _State(NamedTuple):
    differences: Array  # (_ROWS, 2, n): of alpha, and of its image, which is carried along
    s: Array
    step: Array
    order: Array
    equal: Array  # accepted steps since step or order changed
    steps: Array
    products: Array
    filled: Array  # how many of the times are done
    path: Array  # (k, 2, n)


class _Trial(NamedTuple):
    """A step, not yet accepted. `correction`: (2, n), of what the differences predict."""

    s: Array
    correction: Array
    converged: Array
    products: Array
    allowed: Array  # (2,), errors of alpha, in norm, and of its image, at every point
    error: Array  # (_ORDERS + 1,), the constants of the local errors

    def size(self, error: Array) -> Array:
        """Of an error (2, n), in units of what is allowed."""
        sizes = jnp.array([jnp.linalg.norm(error[0]), jnp.abs(error[1]).max()])
        relative = sizes / jnp.where(self.allowed > 0, self.allowed, 1)
        return jnp.where(jnp.isfinite(relative).all(), relative.max(), jnp.inf)


@partial(jax.jit, static_argnames="loss")
def integrate(
    operator: Callable,
    y: Array,
    f0: Array,
    times: Array,
    rtol: Array,
    max_products: Array,
    *,
    loss: Loss,
) -> LogisticPath:
    """The flow of a loss of the margin at `times`, in any order; see `logistic_path`."""
    equation = _equation(operator, y, f0, loss)
    velocity = equation.velocity(jnp.zeros_like(y))
    first = jnp.stack([velocity, equation.image(velocity)])
    order_of_times = jnp.argsort(times)
    clock = _clock(first, times[order_of_times])

    def unfinished(state: _State) -> Array:
        far = clock.end - state.s > clock.close
        return far & (state.products < max_products) & (state.step > clock.close)

    def attempt(state: _State) -> _State:
        trial = _trial(equation, clock, state, rtol)
        now = trial.size(trial.error[state.order] * trial.correction)
        accepted = trial.converged & (now <= 1)
        state = _fill(clock, _moved(state, trial, accepted))
        return _next_step(clock, state, trial, now, accepted)

    state = _fill(clock, _initial_state(clock, first, len(times), rtol))
    state = lax.while_loop(unfinished, attempt, state)

    last = state.differences[0]
    largest = jnp.abs(last[1]).max()
    difference = jnp.abs(equation.image(last[0]) - last[1]).max()
    path = jnp.zeros_like(state.path).at[order_of_times].set(state.path)
    reached = clock.unit * jnp.expm1(state.s)
    return LogisticPath(
        dual_coef=y[None] * path[:, 0],
        outputs=f0[None] + y[None] * path[:, 1],
        time=jnp.where(clock.end - state.s > clock.close, reached, times.max()),
        products=state.products + 1,
        steps=state.steps,
        last=y * last[0],
        drift=difference / jnp.where(largest > 0, largest, 1),
    )


def _equation(operator: Callable, y: Array, f0: Array, loss: Loss) -> _Equation:
    assert loss.margin is not None
    n, start = len(y), y * f0
    speed, bend = loss.margin.speed, loss.margin.bend

    def image(v):
        return y * operator(y * v).astype(y.dtype)

    def velocity(change):
        return speed(start + change) / n

    def steepness(change):
        return bend(start + change) / n

    return _Equation(image, velocity, steepness)


def _clock(first: Array, times: Array) -> _Clock:
    """Time begins to be logarithmic when outputs have changed by about one.

    `first`: (2, n), the first velocities.
    """
    fastest = jnp.abs(first[1]).max()
    latest = times.max()
    unit = jnp.where(fastest > 0, 1 / jnp.where(fastest > 0, fastest, 1), jnp.maximum(latest, 1))
    stops = jnp.log1p(times / unit)
    end = stops[-1]
    return _Clock(unit, stops, end, 8 * jnp.finfo(end.dtype).eps * end)


def _initial_state(clock: _Clock, first: Array, count: int, rtol: Array) -> _State:
    n, dtype = first.shape[1], first.dtype
    # The first order's error is about the square of the step.
    step = jnp.where(clock.end > 0, jnp.minimum(0.3 * jnp.sqrt(rtol), clock.end), 1)
    zero, one = jnp.zeros((), int), jnp.ones((), int)
    return _State(
        differences=jnp.zeros((_ROWS, 2, n), dtype).at[1].set(first * clock.unit * step),
        s=jnp.zeros((), dtype),
        step=step,
        order=one,
        equal=zero,
        steps=zero,
        products=one,
        filled=zero,
        path=jnp.full((count, 2, n), jnp.nan, dtype),
    )


def _fill(clock: _Clock, state: _State) -> _State:
    """With the rows of the path up to the present s, by the polynomial through the last steps."""
    count = len(clock.stops)

    def pending(carry):
        filled, _ = carry
        passed = clock.stops[jnp.minimum(filled, count - 1)] <= state.s + clock.close
        return (filled < count) & passed

    def one(carry):
        filled, path = carry
        back = (clock.stops[filled] - state.s) / state.step
        j = jnp.arange(_ORDERS)
        number = j.astype(back.dtype)
        weights = jnp.cumprod((back + number) / (1 + number))
        weights = jnp.where(j < state.order, weights, 0)
        past = state.differences[1 : _ORDERS + 1]
        value = state.differences[0] + jnp.tensordot(weights, past, 1, precision=EXACT)
        return filled + 1, path.at[filled].set(value)

    filled, path = lax.while_loop(pending, one, (state.filled, state.path))
    return state._replace(filled=filled, path=path)


def _trial(equation: _Equation, clock: _Clock, state: _State, rtol: Array) -> _Trial:
    """The next step at the present order and length."""
    order, differences, s = state.order, state.differences, state.s + state.step
    dtype = differences.dtype
    gamma, error = jnp.asarray(_GAMMA, dtype), jnp.asarray(_ERROR, dtype)
    alpha = jnp.asarray(_ALPHA, dtype)[order]
    used = jnp.arange(_ROWS) <= order
    predicted = jnp.tensordot(used.astype(dtype), differences, 1, precision=EXACT)
    weights = jnp.where(used[: _ORDERS + 1], gamma, 0) / alpha
    memory = jnp.tensordot(weights, differences[: _ORDERS + 1], 1, precision=EXACT)
    scale = state.step / alpha * clock.unit * jnp.exp(s)  # d time / d s is unit exp(s)
    largest = jnp.maximum(jnp.abs(predicted[1]).max(), jnp.abs(differences[0, 1]).max())
    allowed = rtol * jnp.array([jnp.linalg.norm(predicted[0]), largest])
    correction, converged, products = _newton(
        equation, predicted, memory, scale, _INNER * allowed[1]
    )
    return _Trial(s, correction, converged, products, allowed, error)


def _moved(state: _State, trial: _Trial, accepted: Array) -> _State:
    """With the differences of all orders at the new point, if the step is accepted."""
    order, dtype = state.order, state.differences.dtype
    new, old = jnp.arange(_ROWS)[:, None], jnp.arange(_ROWS)[None, :]
    upper = (new <= old) & (old <= order) & (new <= order)
    keep = (new == old) & (new > order + 2)
    subtract = (new == order + 2) & (old == order + 1)
    update = upper.astype(dtype) + keep.astype(dtype) - subtract.astype(dtype)
    moved = jnp.tensordot(update, state.differences, 1, precision=EXACT)
    corrected = (jnp.arange(_ROWS) <= order + 2).astype(dtype)
    moved = moved + corrected[:, None, None] * trial.correction[None]
    return state._replace(
        differences=jnp.where(accepted, moved, state.differences),
        s=jnp.where(accepted, trial.s, state.s),
        equal=jnp.where(accepted, state.equal + 1, 0),
        steps=state.steps + accepted.astype(state.steps.dtype),
        products=state.products + trial.products,
    )


def _next_step(clock: _Clock, state: _State, trial: _Trial, now: Array, accepted: Array) -> _State:
    """With the order, among the present one and its neighbours, that allows the longest step."""
    order, differences, error = state.order, state.differences, trial.error
    below = trial.size(error[order - 1] * differences[order])
    above = trial.size(error[order + 1] * differences[order + 2])
    lower = jnp.where(order > 1, below, jnp.inf)
    higher = jnp.where(order < _ORDERS, above, jnp.inf)
    sizes = jnp.stack([lower, now, higher])
    powers = -1 / (order + jnp.arange(3)).astype(differences.dtype)
    factors = jnp.maximum(sizes, 1e-10) ** powers
    best = jnp.argmax(factors)

    settled = accepted & (state.equal > order)
    new_order = jnp.where(settled, order + best - 1, order)
    factor = jnp.where(settled, jnp.minimum(_LONGEST, _SAFETY * factors[best]), 1)
    shorter = jnp.maximum(_SHORTEST, _SAFETY * factors[1])
    shrink = jnp.where(trial.converged, shorter, 0.5)
    factor = jnp.where(accepted, factor, shrink)
    left = clock.end - state.s
    factor = jnp.where(left > clock.close, jnp.minimum(factor, left / state.step), 1)

    changed = (factor != 1) | (new_order != order)
    differences = lax.cond(
        factor != 1, _rescaled, lambda same, *_: same, differences, new_order, factor
    )
    return state._replace(
        differences=differences,
        step=state.step * factor,
        order=new_order,
        equal=jnp.where(changed, 0, state.equal),
    )


def _rescaled(differences: Array, order: Array, factor: Array) -> Array:
    """The backward differences of the same polynomial for a step `factor` times as long."""
    i = jnp.arange(_ORDERS + 1, dtype=differences.dtype)
    row, column = i[:, None], i[None, :]

    def table(factor):
        """R_ij = prod_{k <= i} (k - 1 - factor j) / k."""
        ratios = (row - 1 - factor * column) / jnp.maximum(row, 1)
        return jnp.cumprod(ratios.at[0].set(1), axis=0)

    change = jnp.matmul(table(factor), table(jnp.ones_like(factor)), precision=EXACT)
    kept = (jnp.arange(_ORDERS + 1) <= order)[:, None]
    change = jnp.where(kept, change, 0)
    old = differences[: _ORDERS + 1]
    new = jnp.tensordot(change.T, old, 1, precision=EXACT)
    return differences.at[: _ORDERS + 1].set(jnp.where(kept[:, None], new, old))


class _Newton(NamedTuple):
    correction: Array  # (2, n)
    done: Array
    count: Array
    products: Array


def _newton(
    equation: _Equation, predicted: Array, memory: Array, scale: Array, allowed: Array
) -> tuple[Array, Array, Array]:
    """Solves x = scale velocity(x) - memory for x = predicted + correction.

    x = (alpha, its image). With w = scale steepness and S = diag(sqrt(w)), the Newton system

        (1 + w K) delta = r    becomes    (1 + S K S) q = S K r,    delta = r - S q:

    symmetric, no eigenvalue below one. What Newton leaves is at most half the square of the last
    change of an output (to leading order), since |l'''| <= l''.

    Returns the correction, whether found, products spent.
    """

    def iterate(state: _Newton) -> _Newton:
        change = predicted[1] + state.correction[1]
        velocity = equation.velocity(change)
        wanted = scale * jnp.stack([velocity, equation.image(velocity)])
        residual = wanted - memory - state.correction
        root = jnp.sqrt(scale * equation.steepness(change))

        def half(p):
            return equation.image(root * p)

        found = conjugate_gradients(half, root, root * residual[1], allowed)
        solved = found.last <= allowed
        delta = jnp.stack([residual[0] - root * found.q, residual[1] - found.image])
        largest = jnp.minimum(jnp.abs(delta[1]).max(), 1)
        return _Newton(
            correction=state.correction + delta,
            done=solved & (largest**2 / 2 <= allowed),
            count=jnp.where(solved, state.count + 1, _NEWTON),
            products=state.products + found.count + 1,
        )

    def unfinished(state: _Newton) -> Array:
        return ~state.done & (state.count < _NEWTON)

    none = jnp.zeros((), int)
    start = _Newton(jnp.zeros_like(predicted), jnp.array(False), none, none)
    found = lax.while_loop(unfinished, iterate, start)
    return found.correction, found.done, found.products
