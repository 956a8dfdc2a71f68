"""The cross-entropy of K classes, -(1/n) sum_n <p_n, log softmax f(x_n)>, in n x K dual coefficients.

Its gradient in the outputs of point n is (softmax f(x_n) - p_n) / n, so that dual_coef (n, K) grows at
(p_n - softmax f(x_n)) / n with f = f0 + K dual_coef. Rows of dual_coef sum to zero, as do those of p - softmax.

For two classes and f0 = 0, dual_coef_1 = -dual_coef_2 = a and f_1 - f_2 = 2 K a: with y = +1 for the first class, a
grows at y sigmoid(-y (f_1 - f_2)) / n, which is the logistic loss of f_1 - f_2 under the doubled kernel.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array

from perturbkernel import descent
from perturbkernel.dynamics import HeavyBall, Solution

_STEPS = 10_000


def flow(operator: Callable, p: Array, f0: Array, time: float, tolerance: float) -> Solution:
    """Gradient flow by Tsitouras' method of order 5: explicit, some time lambda_max / (6 n) steps of six products."""
    dual, steps, reached, done = jax.device_get(_flow(operator, p, f0, jnp.asarray(time), jnp.asarray(tolerance)))
    status = "ok"
    if not done:
        status = (
            f"the integration of the softmax flow stopped early, at time {float(reached) * time:.4g} of {time:.4g}, "
            f"after {int(steps)} steps"
        )
    return Solution(dual, status, {"effective_time": time, "solver_steps": int(steps)})


@jax.jit
def _flow(operator, p: Array, f0: Array, time: Array, tolerance: Array) -> tuple[Array, ...]:
    scale = time / len(p)

    def velocity(s, beta, args):
        """Of beta(s) = n dual_coef / time over s = t / time in [0, 1], of order one whatever n and time."""
        return p - jax.nn.softmax(f0 + scale * operator(beta), axis=1)

    solution: Any = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        diffrax.Tsit5(),
        t0=0.0,
        t1=1.0,
        dt0=None,
        y0=jnp.zeros_like(p),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance / 100),
        max_steps=_STEPS,
        throw=False,
    )
    done = solution.result == diffrax.RESULTS.successful
    return solution.ys[-1] * scale, solution.stats["num_steps"], solution.ts[-1], done


def heavy_ball(operator: Callable, p: Array, f0: Array, dynamics: HeavyBall) -> Solution:
    """The recurrence itself; softmax has curvature at most 1/2, twice that of the logistic loss."""
    pull = jax.tree_util.Partial(_pull, p)
    return descent.heavy_ball(operator, pull, f0, dynamics, loss="softmax", curvature=1 / 2)


def _pull(p: Array, outputs: Array) -> Array:
    return p - jax.nn.softmax(outputs, axis=1)
