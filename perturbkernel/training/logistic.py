"""Losses of the margin (logistic, exponential) without an eigendecomposition: gradient flow to any
time from few Gram products.

With alpha_n >= 0 the dual coefficients are y_n alpha_n, and alpha_n grows at

    -l'(y_n f(x_n)) / n,    for the logistic loss sigmoid(-y_n f(x_n)) / n (theory: 1.3).

The equation is stiff, and progress is made in log(time): classes that a kernel hardly separates
take times of 1e5, while the fastest mode lasts 4 n / lambda_max. So the integrator for long times
is implicit (`implicit`), the one for short times explicit (`descent`).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from perturbkernel.training import descent
from perturbkernel.training.dynamics import HeavyBall, Solution
from perturbkernel.training.gram import GramOperator
from perturbkernel.training.implicit import PRODUCTS, integrate
from perturbkernel.training.losses import LOSSES, Loss

# time lambda_max curvature / n up to which an explicit method needs fewer products: about two for
# each unit.
_STIFF = 200
_DRIFT = 100  # times the tolerance: rounding beyond this is reported


def flow(
    operator: Callable,
    y: Array,
    f0: Array,
    time: float,
    tolerance: float,
    loss: Loss = LOSSES["logistic"],
    ridge: float = 0.0,
    weights: Array | None = None,
) -> Solution:
    """Dual coefficients at one time, for any loss of the margin: by an explicit method while the
    equation is not stiff, otherwise as `logistic_path`.
    """
    weights = jnp.ones_like(y) if weights is None else weights
    decay = jnp.asarray(ridge, y.dtype)
    if isinstance(operator, GramOperator) and operator.matrix is not None:
        limits = jnp.asarray(time), jnp.asarray(tolerance)
        found = _short_flow(operator, y, f0, *limits, decay, weights, loss=loss)
        dual, steps, done = jax.device_get(found)
        if done:
            return Solution(dual, "ok", {"effective_time": time, "solver_steps": int(steps)})
    limits = jnp.array([time]), jnp.asarray(tolerance), jnp.asarray(PRODUCTS)
    found = integrate(operator, y, f0, *limits, decay, weights, loss=loss)
    status, drift = "ok", float(found.drift)
    if not found.time >= time:
        status = (
            f"the integration of the {loss.name} flow stopped early, at time "
            f"{float(found.time):.4g} of {time:.4g}, after {int(found.products)} products with the "
            f"kernel matrix"
        )
    elif drift > _DRIFT * tolerance:
        status = (
            f"rounding in the {loss.name} flow: outputs are known to {drift:.2g} of their change "
            f"only"
        )
    stats = {
        "effective_time": time,
        "solver_steps": found.steps,
        "products": found.products,
        "drift": drift,
    }
    return Solution(found.last, status, stats)


@partial(jax.jit, static_argnames="loss")
def _short_flow(
    operator: GramOperator,
    y: Array,
    f0: Array,
    time: Array,
    tolerance: Array,
    ridge: Array,
    weights: Array,
    *,
    loss: Loss,
) -> tuple[Array, Array, Array]:
    """By an explicit method, if time lambda_max curvature / n is small enough: (n,), steps, whether
    done.
    """

    def explicit():
        force = descent.weighted_force(loss, y, weights)
        dual, steps, _, done = descent.flow(operator, force, f0, time, tolerance, ridge)
        return dual, steps, done

    def nothing():
        shapes = jax.eval_shape(explicit)
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    # The norm bounds lambda_max.
    largest = jnp.linalg.norm(operator.matrix).astype(time.dtype)
    curvature = loss.curvature(y, f0) * weights.max()
    steepest = largest / len(y) * curvature + ridge
    return lax.cond(time * steepest > _STIFF, nothing, explicit)


def heavy_ball(
    operator: Callable,
    y: Array,
    f0: Array,
    dynamics: HeavyBall,
    loss: Loss = LOSSES["logistic"],
) -> Solution:
    """Dual coefficients after the steps of heavy ball themselves, for any loss of the margin."""
    return descent.heavy_ball(operator, y, f0, dynamics, loss)
