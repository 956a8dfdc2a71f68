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
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.arrays import or_one
from perturbkernel.training.implicit_steps import (
    Clock,
    Equation,
    State,
    initial_state,
    interpolated,
    moved_state,
    next_step,
    trial_step,
)
from perturbkernel.training.losses import Loss

PRODUCTS = 20_000  # with the Gram matrix, at most


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


@partial(jax.jit, static_argnames="loss")
def integrate(
    operator: Callable,
    y: Array,
    f0: Array,
    times: Array,
    rtol: Array,
    max_products: Array,
    ridge: Array | None = None,
    weights: Array | None = None,
    *,
    loss: Loss,
) -> LogisticPath:
    """The flow of a loss of the margin at `times`, in any order; see `logistic_path`.

    `weights`: (n,), of mean one. None: no ridge, equal weights.
    """
    equation = _equation(operator, y, f0, loss, ridge, weights)
    velocity = equation.velocity(jnp.zeros_like(y))
    image = equation.image(velocity)
    first = jnp.stack([velocity, image])
    order_of_times = jnp.argsort(times)
    clock = _clock(first, times[order_of_times])

    def unfinished(state: State) -> Array:
        far = _is_before_end(clock, state)
        affordable = state.products < max_products
        moving = state.step > clock.close
        return far & affordable & moving

    def attempt(state: State) -> State:
        trial = trial_step(equation, clock, state, rtol)
        error = trial.error[state.order] * trial.correction
        now = trial.size(error)
        accepted = trial.converged & (now <= 1)
        state = moved_state(state, trial, accepted)
        state = _fill(clock, state)
        return next_step(clock, state, trial, now, accepted)

    state = initial_state(clock, first, len(times), rtol)
    state = _fill(clock, state)
    state = lax.while_loop(unfinished, attempt, state)

    last_alpha, last_image = state.differences[0]
    path = jnp.zeros_like(state.path)
    path = path.at[order_of_times].set(state.path)
    labels = y[None]
    change = labels * path[:, 1]
    reached = clock.unit * jnp.expm1(state.s)
    return LogisticPath(
        dual_coef=labels * path[:, 0],
        outputs=f0[None] + change,
        time=jnp.where(_is_before_end(clock, state), reached, times.max()),
        products=state.products + 1,
        steps=state.steps,
        last=y * last_alpha,
        drift=_drift(equation, last_alpha, last_image),
    )


def _is_before_end(clock: Clock, state: State) -> Array:
    left = clock.end - state.s
    return left > clock.close


def _drift(equation: Equation, alpha: Array, image: Array) -> Array:
    """How far the image that was carried along is from that of alpha, relative to its largest."""
    largest = jnp.abs(image).max()
    off = equation.image(alpha) - image
    return jnp.abs(off).max() / or_one(largest)


def _equation(
    operator: Callable,
    y: Array,
    f0: Array,
    loss: Loss,
    ridge: Array | None,
    weights: Array | None,
) -> Equation:
    assert loss.margin is not None
    speed = loss.margin.speed
    bend = loss.margin.bend
    n = len(y)
    start = y * f0

    def weighted(v):
        return v if weights is None else weights * v

    def image(v):
        product = operator(y * v)
        return y * product.astype(y.dtype)

    def velocity(change):
        margin = start + change
        return weighted(speed(margin) / n)

    def steepness(change):
        margin = start + change
        return weighted(bend(margin) / n)

    return Equation(image, velocity, steepness, ridge)


def _clock(first: Array, times: Array) -> Clock:
    """Time begins to be logarithmic when outputs have changed by about one.

    `first`: (2, n), the first velocities.
    """
    fastest = jnp.abs(first[1]).max()
    moves = fastest > 0
    latest = times.max()
    until_changed = 1 / jnp.where(moves, fastest, 1)
    unit = jnp.where(moves, until_changed, jnp.maximum(latest, 1))
    stops = jnp.log1p(times / unit)
    end = stops[-1]
    rounding = 8 * jnp.finfo(end.dtype).eps
    return Clock(unit, stops, end, close=rounding * end)


class _Filled(NamedTuple):
    count: Array  # of the times that are done
    path: Array


def _fill(clock: Clock, state: State) -> State:
    """With the rows of the path up to the present s, by the polynomial through the last steps."""
    times = len(clock.stops)

    def pending(filled: _Filled) -> Array:
        following = jnp.minimum(filled.count, times - 1)
        passed = clock.stops[following] <= state.s + clock.close
        return (filled.count < times) & passed

    def one(filled: _Filled) -> _Filled:
        back = (clock.stops[filled.count] - state.s) / state.step
        value = interpolated(state, back)
        path = filled.path.at[filled.count].set(value)
        return _Filled(filled.count + 1, path)

    found = lax.while_loop(pending, one, _Filled(state.filled, state.path))
    return state._replace(filled=found.count, path=found.path)
