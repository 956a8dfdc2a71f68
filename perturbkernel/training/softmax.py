"""The cross-entropy of K classes, -(1/n) sum_n <p_n, log softmax f(x_n)>, in n x K dual
coefficients.

Its gradient in the outputs of point n is (softmax f(x_n) - p_n) / n, so that dual_coef (n, K) grows
at (p_n - softmax f(x_n)) / n with f = f0 + K dual_coef. Rows of dual_coef sum to zero, as do those
of p - softmax.

For two classes and f0 = 0, dual_coef_1 = -dual_coef_2 = a and f_1 - f_2 = 2 K a: with y = +1 for
the first class, a grows at y sigmoid(-y (f_1 - f_2)) / n, which is the logistic loss of f_1 - f_2
under the doubled kernel.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from perturbkernel.training import descent
from perturbkernel.training.dynamics import Solution
from perturbkernel.training.losses import Loss


def flow(
    operator: Callable,
    targets: Array,
    f0: Array,
    time: float,
    tolerance: float,
    loss: Loss,
    ridge: float = 0.0,
    weights: Array | None = None,
) -> Solution:
    """Dual coefficients (n, K) of gradient flow by an explicit method, in many steps if long."""
    weights = jnp.ones(len(f0), f0.dtype) if weights is None else weights
    force = descent.weighted_force(loss, targets, weights)
    limits = jnp.asarray(time), jnp.asarray(tolerance)
    found = descent.flow(operator, force, f0, *limits, jnp.asarray(ridge))
    dual, steps, reached, done = jax.device_get(found)
    status = "ok"
    if not done:
        stopped = float(reached) * time
        status = (
            f"the integration of the {loss.name} flow stopped early, at time "
            f"{stopped:.4g} of {time:.4g}, after {int(steps)} steps"
        )
    return Solution(dual, status, {"effective_time": time, "solver_steps": int(steps)})
