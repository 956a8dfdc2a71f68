"""Logistic and exponential loss without an eigendecomposition: gradient flow to any time from few
Gram products.

With alpha_n >= 0 the dual coefficients are y_n alpha_n and alpha_n grows at sigmoid(-y_n f(x_n)) /
n (theory: 1.3), for the exponential loss exp(-y f) at exp(-y_n f(x_n)) / n. The equation is stiff,
and progress is made in log(time): classes that a kernel hardly separates take times of 1e5, while
the fastest mode lasts 4 n / lambda_max. So the integrator is implicit and works in log(time):
backward differentiation of variable order 1 to 5 and variable step (Shampine and Reichelt, The
MATLAB ODE suite, SIAM J. Sci. Comput. 1997, in the quasi-constant form). Every mode decays without
oscillation, so all orders are stable for every step. Each step is a Newton iteration whose systems
are symmetric, positive definite and well enough conditioned for conjugate gradients.
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
from perturbkernel.training.logistic_path import DRIFT, PRODUCTS, SPEED, STIFF, integrate

# -l'(s) at the margin s = y f. Both losses have |l'''| <= l'', which Newton's iteration relies on.


def flow(
    operator: Callable, y: Array, f0: Array, time: float, tolerance: float, loss: str = "logistic"
) -> Solution:
    """Dual coefficients at one time: an explicit method while the equation is not stiff, otherwise
    as `logistic_path`.

    `loss`: "logistic" or "exponential".
    """
    if isinstance(operator, GramOperator) and operator.matrix is not None:
        found = _short_flow(operator, y, f0, jnp.asarray(time), jnp.asarray(tolerance), loss=loss)
        dual, steps, done = jax.device_get(found)
        if done:
            return Solution(dual, "ok", {"effective_time": time, "solver_steps": int(steps)})
    found = integrate(
        operator,
        y,
        f0,
        jnp.array([time]),
        jnp.asarray(tolerance),
        jnp.asarray(PRODUCTS),
        loss=loss,
    )
    status, drift = "ok", float(found.drift)
    if not found.time >= time:
        status = (
            f"the integration of the {loss} flow stopped early, at time {float(found.time):.4g} of "
            f"{time:.4g}, after {int(found.products)} products with the kernel matrix"
        )
    elif drift > DRIFT * tolerance:
        status = (
            f"rounding in the {loss} flow: outputs are known to {drift:.2g} of their change only"
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
    operator: GramOperator, y: Array, f0: Array, time: Array, tolerance: Array, *, loss: str
) -> tuple[Array, Array, Array]:
    """By an explicit method, if time lambda_max curvature / n is small enough: (n,), steps, whether
    done.
    """

    def integrate():
        dual, steps, _, done = descent.flow(
            operator, jax.tree_util.Partial(_PULLS[loss], y), f0, time, tolerance
        )
        return dual, steps, done

    # The curvature of the exponential loss is the loss itself, which falls.
    curvature = 1 / 4 if loss == "logistic" else jnp.exp(-y * f0).max()
    # The norm bounds lambda_max.
    largest = jnp.linalg.norm(operator.matrix).astype(time.dtype)
    stiff = time / len(y) * largest * curvature > STIFF
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(integrate))
    return lax.cond(stiff, lambda: nothing, integrate)


def heavy_ball(
    operator: Callable, y: Array, f0: Array, dynamics: HeavyBall, loss: str = "logistic"
) -> Solution:
    """The recurrence itself. The logistic loss has curvature at most 1/4; the exponential one has
    no bound but, while it falls, that of its start; steps that are too long end in infinities,
    which the status says.
    """
    curvature = 1 / 4 if loss == "logistic" else float(jnp.exp(-y * f0).max())
    pull = jax.tree_util.Partial(_PULLS[loss], y)
    found = descent.heavy_ball(operator, pull, f0, dynamics, loss=loss, curvature=curvature)
    if not bool(jnp.isfinite(found.dual_coef).all()):
        status = f"heavy ball on the {loss} loss diverged: coefficients are not finite"
        found = found._replace(status=status, unstable=True)
    return found


def _pull_logistic(y: Array, outputs: Array) -> Array:
    return y * SPEED["logistic"](y * outputs)


def _pull_exponential(y: Array, outputs: Array) -> Array:
    return y * SPEED["exponential"](y * outputs)


_PULLS = {"logistic": _pull_logistic, "exponential": _pull_exponential}  # objects that compile once
