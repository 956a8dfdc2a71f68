"""Steps of backward differentiation, of variable order and length: what `implicit` is made of.

A state holds the backward differences of the last points, a trial the next point at the present
order and step, found by Newton's method. An accepted trial moves the state, and the errors at the
neighbouring orders choose the next order and step.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from perturbkernel.arrays import or_one
from perturbkernel.engine.tiles import EXACT
from perturbkernel.training.shifted_solve import conjugate_gradients

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
_NUMBERS = np.arange(1, _ORDERS + 2)
_GAMMA = np.concatenate([[0], np.cumsum(1 / _NUMBERS[:-1])])
_KAPPA = np.array([0, -0.1850, -1 / 9, -0.0823, -0.0415, 0])
_ALPHA = (1 - _KAPPA) * _GAMMA
_ERROR = _KAPPA * _GAMMA + 1 / _NUMBERS


class Equation(NamedTuple):
    """d alpha / d time = speed(margin) / n - decay alpha, for alpha and its image y K (y alpha),
    (n,) each.

    `velocity`, the first term, and `steepness`, minus its derivative, are functions of the image.
    """

    image: Callable[[Array], Array]
    velocity: Callable[[Array], Array]
    steepness: Callable[[Array], Array]
    decay: Array | None  # None: none


class Clock(NamedTuple):
    """Progress is made in s = log(1 + time / unit).

    `stops`: (k,), the times asked for, ascending, in s; `close`: what is no more than rounding.
    """

    unit: Array
    stops: Array
    end: Array
    close: Array


class State(NamedTuple):
    """Where the integration is, and what it will do next.

    The times' rows are filled in by `implicit`.
    """

    differences: Array  # (_ROWS, 2, n): of alpha, and of its image, which is carried along
    s: Array
    step: Array
    order: Array
    equal: Array  # accepted steps since step or order changed
    steps: Array
    products: Array
    filled: Array  # how many of the times are done
    path: Array  # (k, 2, n)


class Trial(NamedTuple):
    """A step, not yet accepted. `correction`: (2, n), of what the differences predict."""

    s: Array
    correction: Array
    converged: Array
    products: Array
    allowed: Array  # (2,), errors of alpha, in norm, and of its image, at every point
    error: Array  # (_ORDERS + 1,), the constants of the local errors

    def size(self, error: Array) -> Array:
        """Of an error (2, n), in units of what is allowed."""
        of_alpha = jnp.linalg.norm(error[0])
        of_image = jnp.abs(error[1]).max()
        sizes = jnp.array([of_alpha, of_image])
        relative = sizes / or_one(self.allowed)
        finite = jnp.isfinite(relative).all()
        return jnp.where(finite, relative.max(), jnp.inf)


def initial_state(clock: Clock, first: Array, count: int, rtol: Array) -> State:
    n = first.shape[1]
    dtype = first.dtype
    # The first order's error is about the square of the step.
    short = 0.3 * jnp.sqrt(rtol)
    step = jnp.where(clock.end > 0, jnp.minimum(short, clock.end), 1)
    differences = jnp.zeros((_ROWS, 2, n), dtype)
    zero = jnp.zeros((), int)
    one = jnp.ones((), int)
    return State(
        differences=differences.at[1].set(first * clock.unit * step),
        s=jnp.zeros((), dtype),
        step=step,
        order=one,
        equal=zero,
        steps=zero,
        products=one,
        filled=zero,
        path=jnp.full((count, 2, n), jnp.nan, dtype),
    )


def interpolated(state: State, back: Array) -> Array:
    """(2, n), the value of the polynomial `back` steps from the present s, in [-1, 0]."""
    j = jnp.arange(_ORDERS)
    number = j.astype(back.dtype)
    ratios = (back + number) / (1 + number)
    weights = jnp.cumprod(ratios)
    weights = jnp.where(j < state.order, weights, 0)
    past = state.differences[1 : _ORDERS + 1]
    change = _combined(weights, past)
    return state.differences[0] + change


def _combined(weights: Array, rows: Array) -> Array:
    """The sum over j of weights_(..)j rows_j."""
    return jnp.tensordot(weights, rows, 1, precision=EXACT)


def trial_step(equation: Equation, clock: Clock, state: State, rtol: Array) -> Trial:
    """The next step at the present order and length."""
    order = state.order
    differences = state.differences
    dtype = differences.dtype
    s = state.s + state.step
    gamma = jnp.asarray(_GAMMA, dtype)
    error = jnp.asarray(_ERROR, dtype)
    alpha = jnp.asarray(_ALPHA, dtype)[order]
    used = jnp.arange(_ROWS) <= order
    predicted = _combined(used.astype(dtype), differences)
    past = _ORDERS + 1
    weights = jnp.where(used[:past], gamma, 0) / alpha
    memory = _combined(weights, differences[:past])
    scale = state.step / alpha * clock.unit * jnp.exp(s)  # d time / d s is unit exp(s)
    allowed = rtol * _magnitudes(predicted, differences[0])
    newton_allowed = _INNER * allowed[1]
    found = _newton(equation, predicted, memory, scale, newton_allowed)
    return Trial(s, found.correction, found.done, found.products, allowed, error)


def _magnitudes(predicted: Array, present: Array) -> Array:
    """(2,), what errors of alpha, in norm, and of its image, at every point, are relative to."""
    largest_predicted = jnp.abs(predicted[1]).max()
    largest_present = jnp.abs(present[1]).max()
    largest = jnp.maximum(largest_predicted, largest_present)
    return jnp.array([jnp.linalg.norm(predicted[0]), largest])


def moved_state(state: State, trial: Trial, accepted: Array) -> State:
    """With the differences of all orders at the new point, if the step is accepted."""
    order = state.order
    dtype = state.differences.dtype
    row = jnp.arange(_ROWS)
    new = row[:, None]
    old = row[None, :]
    upper = (new <= old) & (old <= order) & (new <= order)
    keep = (new == old) & (new > order + 2)
    subtract = (new == order + 2) & (old == order + 1)
    update = upper.astype(dtype) + keep.astype(dtype) - subtract.astype(dtype)
    moved = _combined(update, state.differences)
    corrected = (row <= order + 2).astype(dtype)
    moved = moved + corrected[:, None, None] * trial.correction[None]
    return state._replace(
        differences=jnp.where(accepted, moved, state.differences),
        s=jnp.where(accepted, trial.s, state.s),
        equal=jnp.where(accepted, state.equal + 1, 0),
        steps=state.steps + accepted.astype(state.steps.dtype),
        products=state.products + trial.products,
    )


class _Choice(NamedTuple):
    """The order that allows the longest step.

    `change`: of the order, -1, 0 or 1. How many times longer a step may be: `factor` at that order,
    `same` at the present one.
    """

    change: Array
    factor: Array
    same: Array


def _best_order(state: State, trial: Trial, now: Array) -> _Choice:
    """Among the present order, whose error has the size `now`, and its neighbours."""
    order = state.order
    differences = state.differences
    below = trial.size(trial.error[order - 1] * differences[order])
    above = trial.size(trial.error[order + 1] * differences[order + 2])
    lower = jnp.where(order > 1, below, jnp.inf)
    higher = jnp.where(order < _ORDERS, above, jnp.inf)
    sizes = jnp.stack([lower, now, higher])
    exponents = order + jnp.arange(3)
    powers = -1 / exponents.astype(differences.dtype)
    factors = jnp.maximum(sizes, 1e-10) ** powers
    best = jnp.argmax(factors)
    return _Choice(change=best - 1, factor=factors[best], same=factors[1])


def next_step(clock: Clock, state: State, trial: Trial, now: Array, accepted: Array) -> State:
    """With the order, among the present one and its neighbours, that allows the longest step."""
    order = state.order
    best = _best_order(state, trial, now)
    settled = accepted & (state.equal > order)
    new_order = jnp.where(settled, order + best.change, order)

    longer = jnp.minimum(_LONGEST, _SAFETY * best.factor)
    shorter = jnp.maximum(_SHORTEST, _SAFETY * best.same)
    after_success = jnp.where(settled, longer, 1)
    after_failure = jnp.where(trial.converged, shorter, 0.5)
    factor = jnp.where(accepted, after_success, after_failure)
    left = clock.end - state.s
    no_further = jnp.minimum(factor, left / state.step)
    factor = jnp.where(left > clock.close, no_further, 1)

    other_step = factor != 1
    changed = other_step | (new_order != order)
    differences = lax.cond(
        other_step,
        _rescaled,
        lambda same, *_: same,
        state.differences,
        new_order,
        factor,
    )
    return state._replace(
        differences=differences,
        step=state.step * factor,
        order=new_order,
        equal=jnp.where(changed, 0, state.equal),
    )


def _rescaled(differences: Array, order: Array, factor: Array) -> Array:
    """The backward differences of the same polynomial for a step `factor` times as long."""
    count = _ORDERS + 1
    i = jnp.arange(count, dtype=differences.dtype)
    row = i[:, None]
    column = i[None, :]

    def table(factor):
        """R_ij = prod_{k <= i} (k - 1 - factor j) / k."""
        ratios = (row - 1 - factor * column) / jnp.maximum(row, 1)
        ratios = ratios.at[0].set(1)
        return jnp.cumprod(ratios, axis=0)

    longer = table(factor)
    same = table(jnp.ones_like(factor))
    change = jnp.matmul(longer, same, precision=EXACT)
    kept = (jnp.arange(count) <= order)[:, None]
    change = jnp.where(kept, change, 0)
    old = differences[:count]
    new = _combined(change.T, old)
    chosen = jnp.where(kept[:, None], new, old)
    return differences.at[:count].set(chosen)


class _Newton(NamedTuple):
    correction: Array  # (2, n)
    done: Array
    count: Array
    products: Array


def _newton(
    equation: Equation, predicted: Array, memory: Array, scale: Array, allowed: Array
) -> _Newton:
    """Solves c = scale velocity(x) - memory for the correction c, x = predicted + c.

    x = (alpha, its image). With w = scale steepness and S = diag(sqrt(w)), the Newton system

        (1 + w K) delta = r    becomes    (1 + S K S) q = S K r,    delta = r - S q:

    symmetric, no eigenvalue below one. A decay adds scale decay to the 1, by which w and r are then
    divided. What Newton leaves is at most half the square of the last
    change of an output (to leading order), since |l'''| <= l''.

    Returns the last state: the correction, whether it is right, and the products spent.
    """

    def iterate(state: _Newton) -> _Newton:
        change = predicted[1] + state.correction[1]
        velocity = equation.velocity(change)
        image = equation.image(velocity)
        rate = jnp.stack([velocity, image])
        steepness = equation.steepness(change)
        if equation.decay is not None:
            rate = rate - equation.decay * (predicted + state.correction)
            steepness = steepness / damping
        wanted = scale * rate
        residual = wanted - memory - state.correction
        if equation.decay is not None:
            residual = residual / damping
        root = jnp.sqrt(scale * steepness)

        def half(p):
            return equation.image(root * p)

        found = conjugate_gradients(half, root, root * residual[1], allowed)
        solved = found.last <= allowed
        of_alpha = residual[0] - root * found.q
        of_image = residual[1] - found.image
        delta = jnp.stack([of_alpha, of_image])
        largest = jnp.minimum(jnp.abs(of_image).max(), 1)
        left = largest**2 / 2
        return _Newton(
            correction=state.correction + delta,
            done=solved & (left <= allowed),
            count=jnp.where(solved, state.count + 1, _NEWTON),
            products=state.products + found.count + 1,
        )

    def unfinished(state: _Newton) -> Array:
        return ~state.done & (state.count < _NEWTON)

    damping = 1 if equation.decay is None else 1 + scale * equation.decay

    none = jnp.zeros((), int)
    start = _Newton(
        correction=jnp.zeros_like(predicted),
        done=jnp.array(False),
        count=none,
        products=none,
    )
    return lax.while_loop(unfinished, iterate, start)
