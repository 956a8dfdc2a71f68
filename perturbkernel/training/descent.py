"""Descent on a loss of the outputs by products with the Gram matrix: heavy ball, and flow that is
not stiff.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from perturbkernel.engine.krylov import largest_eigenvalue
from perturbkernel.training.dynamics import HeavyBall, Solution, diverges, stable_rate
from perturbkernel.training.gram import Scaled, scale_rows
from perturbkernel.training.losses import Loss

_STEPS = 10_000
_CURVATURES = 257  # between zero and the largest, at which the stability of a schedule is examined


def weighted_force(loss: Loss, targets: Array, weights: Array) -> Callable[[Array], Array]:
    """Outputs -> weights times the force, a pytree; `weights` (n,) of mean one."""
    force = jax.tree_util.Partial(loss.force, targets)
    return jax.tree_util.Partial(_weighted, force, weights)


def _weighted(force: Callable, weights: Array, outputs: Array) -> Array:
    return scale_rows(weights, force(outputs))


def heavy_ball(
    operator: Callable,
    targets: Array,
    f0: Array,
    dynamics: HeavyBall,
    loss: Loss,
    ridge: float = 0.0,
    weights: Array | None = None,
) -> Solution:
    """Dual coefficients, shaped like f0, after the steps of heavy ball themselves.

        v <- momentum v + force(f0 + K dual) / n - ridge dual,    dual <- dual + rate v,

    from zero. `operator`: V (n,) or (n, k) -> K v, a pytree. The second derivative of the loss is
    at most `loss.curvature`: steps that diverge on a quadratic of that curvature may oscillate, or
    diverge as well; both are in the status, and make the solution `unstable`.
    """
    n = len(f0)
    weighted = operator if weights is None else Scaled(operator, jnp.sqrt(weights))
    weights = jnp.ones(n, f0.dtype) if weights is None else weights
    largest, products = largest_eigenvalue(weighted, f0.reshape(n, -1)[:, 0])
    curvature = float(loss.curvature(targets, f0))
    steepest = curvature * largest / n + ridge
    too_long = diverges(dynamics, jnp.linspace(0, steepest, _CURVATURES))
    rates, momentum = jnp.asarray(dynamics.rates), jnp.asarray(dynamics.momentum)
    force = weighted_force(loss, targets, weights)
    decay = jnp.asarray(ridge, f0.dtype)
    dual = iterate(operator, force, f0, rates, momentum, decay)

    happened = None
    if not bool(jnp.isfinite(dual).all()):
        happened = f"heavy ball on the {loss.name} loss diverged: coefficients are not finite"
    elif too_long:
        happened = f"heavy ball on the {loss.name} loss may oscillate"
    status = happened or "ok"
    if too_long:
        status = (
            f"learning_rate {dynamics.rates.max():g} is beyond {_stable(curvature, ridge)} = "
            f"{stable_rate(dynamics, steepest):.6g}: {happened}"
        )
    stats = {
        "effective_time": dynamics.effective_time,
        "lambda_max": largest,
        "products": products + dynamics.steps,
    }
    return Solution(dual, status, stats, unstable=happened is not None)


def _stable(curvature: float, ridge: float) -> str:
    """The formula of the largest stable rate."""
    if ridge == 0:
        return f"{2 / curvature:g} (1 + momentum) n / lambda_max"
    return f"2 (1 + momentum) / ({curvature:g} lambda_max / n + ridge)"


@jax.jit
def iterate(operator, force, f0: Array, rates: Array, momentum: Array, ridge: Array) -> Array:
    """The steps of `heavy_ball`, differentiable."""

    def step(carry, rate):
        dual, velocity = carry
        pull = force(f0 + operator(dual)) / len(f0) - ridge * dual
        velocity = momentum * velocity + pull
        return (dual + rate * velocity, velocity), None

    zero = jnp.zeros_like(f0)
    (dual, _), _ = lax.scan(step, (zero, zero), rates)
    return dual


@jax.jit
def flow(
    operator: Callable, force: Callable, f0: Array, time: Array, tolerance: Array, ridge: Array
) -> tuple[Array, Array, Array, Array]:
    """Gradient flow, d dual / dt = force(f0 + K dual) / n - ridge dual from zero, by the explicit
    method of Dormand and Prince of order 8: 13 products a step, and about two steps for each unit
    of curvature lambda_max time / n.

    Returns dual coefficients shaped like f0, the steps, the share of the time that was reached, and
    whether all of it.
    """
    import diffrax  # slow to import, and only this needs it

    scale = time / len(f0)

    def velocity(s, beta, args):
        """Of beta(s) = n dual / time over s = t / time in [0, 1], which is of order one."""
        return force(f0 + scale * operator(beta)) - time * ridge * beta

    solution: Any = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        diffrax.Dopri8(),
        t0=0.0,
        t1=1.0,
        dt0=None,
        y0=jnp.zeros_like(f0),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance / 100),
        max_steps=_STEPS,
        throw=False,
    )
    done = solution.result == diffrax.RESULTS.successful
    return solution.ys[-1] * scale, solution.stats["num_steps"], solution.ts[-1], done
