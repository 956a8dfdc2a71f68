"""Training a kernel model in closed form: the dual coefficients of every loss under every dynamics.

The trained function is f(z) = f0(z) + sum_n dual_coef_n K(x_n, z). With L the mean loss over n points (theory: 1),

- identity, l(s) = -s: the gradient never changes; dual_coef = (tau / n) y at effective time tau. No Gram matrix.
- squared, L = 1/(2n) sum (f - y)^2: every eigenvector of the Gram matrix evolves by itself.
- logistic, l(s) = log(1 + e^-s): a differential equation (flow) or recurrence (heavy ball) for n coefficients.

The last two hold the n x n Gram matrix and compute in float64, whatever JAX's setting.
"""

import warnings
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.dynamics import Dynamics, GradientFlow, HeavyBall
from perturbkernel.kernels import Kernel
from perturbkernel.tiles import EXACT

LOSSES = ("identity", "logistic", "squared")


class Solution(NamedTuple):
    """Dual coefficients, what happened in words ("ok" if nothing to say), and the numbers behind it."""

    dual_coef: Float[Array, " n"]
    status: str
    stats: dict[str, float]


def solve(kernel: Kernel, x: Array, y: Array, f0: Array | None, loss: str, dynamics: Dynamics) -> Solution:
    """Dual coefficients after training on (x, y) from the initial outputs f0 (n,), None for zero."""
    if loss == "identity":
        time = dynamics.effective_time
        return Solution(y * (time / len(y)), "ok", {"effective_time": time})
    with jax.enable_x64(True):
        x, y = jnp.asarray(np.asarray(x), float), jnp.asarray(np.asarray(y), float)
        f0 = jnp.zeros_like(y) if f0 is None else jnp.asarray(np.asarray(f0), float)
        gram = kernel.ntk(x)
        if loss == "squared":
            solution = _squared(gram, y - f0, dynamics)
        elif isinstance(dynamics, GradientFlow):
            solution = _logistic_flow(gram, y, f0, dynamics.time)
        else:
            solution = _logistic_heavy_ball(gram, y, f0, dynamics)
        stats = {name: float(value) for name, value in solution.stats.items()}
        return solution._replace(stats=stats)


def _squared(gram: Array, residual: Array, dynamics: Dynamics) -> Solution:
    """dual_coef = q(K) (y - f0), q(lambda) = (1 - r(lambda)) / lambda, r what training leaves of an eigenvector."""
    if isinstance(dynamics, GradientFlow) and np.isinf(dynamics.time):
        return _interpolate(gram, residual)
    n = len(residual)
    eigenvalues, vectors = jnp.linalg.eigh(gram)
    eigenvalues = jnp.maximum(eigenvalues, 0)
    largest = float(eigenvalues[-1])
    if isinstance(dynamics, HeavyBall):
        stable = 2 * (1 + dynamics.momentum) * n / largest if largest > 0 else np.inf
        if dynamics.steps and dynamics.rates.max() >= stable:
            raise ValueError(
                f"learning_rate must be below 2 (1 + momentum) n / lambda_max = {stable:.6g}, beyond which the squared "
                f"loss diverges on this data; got {dynamics.rates.max():g}"
            )
        q = _heavy_ball_filter(eigenvalues / n, jnp.asarray(dynamics.rates), dynamics.momentum) / n
    else:
        rate = dynamics.time * eigenvalues / n
        q = jnp.where(rate > 0, -jnp.expm1(-rate) / jnp.where(rate > 0, eigenvalues, 1), dynamics.time / n)
    dual = jnp.matmul(vectors, q * jnp.matmul(vectors.T, residual, precision=EXACT), precision=EXACT)
    return Solution(dual, "ok", {"lambda_max": largest, "effective_time": dynamics.effective_time})


@jax.jit
def _heavy_ball_filter(eigenvalues: Array, rates: Array, momentum: float | Array) -> Array:
    """(1 - r) / eigenvalue after the given steps, by the recurrence in this very quantity: no cancellation at 0."""

    def step(carry, rate):
        q, velocity = carry
        velocity = momentum * velocity + 1 - eigenvalues * q
        return (q + rate * velocity, velocity), None

    zero = jnp.zeros_like(eigenvalues)
    return lax.scan(step, (zero, zero), rates)[0][0]


def _interpolate(gram: Array, residual: Array) -> Solution:
    """The limit of infinite time, K^-1 (y - f0); for a singular K it is the pseudo-inverse, and the status says so."""
    n = len(residual)
    factor = jax.scipy.linalg.cho_factor(gram, lower=True)
    dual = jax.scipy.linalg.cho_solve(factor, residual)
    largest = _largest_eigenvalue(gram)
    condition = largest * _largest_eigenvalue(factor)
    if jnp.isfinite(condition) and condition < 1 / (n * np.finfo(float).eps):
        return Solution(dual, "ok", {"condition_number": condition, "effective_time": np.inf})
    eigenvalues, vectors = jnp.linalg.eigh(gram)
    keep = eigenvalues > n * np.finfo(float).eps * eigenvalues[-1]
    inverse = jnp.where(keep, 1 / jnp.where(keep, eigenvalues, 1), 0)
    dual = jnp.matmul(vectors, inverse * jnp.matmul(vectors.T, residual, precision=EXACT), precision=EXACT)
    left = jnp.abs(jnp.matmul(gram, dual, precision=EXACT) - residual).max()
    status = (
        f"singular kernel matrix (numerical rank {int(keep.sum())} of {n}): the limit of gradient flow, by the "
        f"pseudo-inverse, leaves a largest training error of {float(left):.3g}"
    )
    return Solution(dual, status, {"condition_number": np.inf, "effective_time": np.inf})


@jax.jit
def _largest_eigenvalue(operator) -> Array:
    """Of a symmetric matrix, or of the inverse of a Cholesky-factored one: 100 power iterations, from below."""

    def apply(v):
        if isinstance(operator, tuple):
            return jax.scipy.linalg.cho_solve((operator[0], True), v)
        return jnp.matmul(operator, v, precision=EXACT)

    n = jax.tree.leaves(operator)[0].shape[0]
    start = jax.random.normal(jax.random.key(0), (n,))

    def step(v, _):
        w = apply(v)
        norm = jnp.linalg.norm(w)
        return w / jnp.where(norm > 0, norm, 1), norm

    return lax.scan(step, start / jnp.linalg.norm(start), length=100)[1][-1]


# Both logistic solvers integrate alpha_n >= 0 with dual_coef = y alpha: alpha_n grows at sigmoid(-y_n f(x_n)) / n.


def _logistic_flow(gram: Array, y: Array, f0: Array, time: float) -> Solution:
    solution = _integrate_logistic(gram, y, f0, jnp.asarray(time, float))
    done = bool(solution.result == diffrax.RESULTS.successful)
    status = "ok" if done else f"the integration of the logistic flow stopped early: {diffrax.RESULTS[solution.result]}"
    dual = y * solution.ys[-1] * (time / len(y))
    return Solution(dual, status, {"effective_time": time, "solver_steps": solution.stats["num_steps"]})


@jax.jit
def _integrate_logistic(gram: Array, y: Array, f0: Array, time: Array):
    """beta(s) = n alpha / time over s = t / time in [0, 1]: of order one whatever n and time."""
    scale = time / len(y)

    def velocity(s, beta, args):
        return jax.nn.sigmoid(-y * (f0 + scale * jnp.matmul(gram, y * beta, precision=EXACT)))

    return diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        diffrax.Tsit5(),
        t0=0.0,
        t1=1.0,
        dt0=None,
        y0=jnp.zeros_like(y),
        stepsize_controller=diffrax.PIDController(rtol=1e-9, atol=1e-11),
        max_steps=100_000,
        throw=False,
    )


def _logistic_heavy_ball(gram: Array, y: Array, f0: Array, dynamics: HeavyBall) -> Solution:
    largest = float(_largest_eigenvalue(gram))
    stable = 8 * (1 + dynamics.momentum) * len(y) / largest if largest > 0 else np.inf
    status = "ok"
    if dynamics.steps and dynamics.rates.max() > stable:
        status = (
            f"learning_rate {dynamics.rates.max():g} is beyond 8 (1 + momentum) n / lambda_max = {stable:.6g}: "
            f"heavy ball on the logistic loss may oscillate"
        )
        warnings.warn(status, stacklevel=4)
    alpha = _iterate_logistic(gram, y, f0, jnp.asarray(dynamics.rates), dynamics.momentum)
    return Solution(y * alpha, status, {"effective_time": dynamics.effective_time, "lambda_max": largest})


@jax.jit
def _iterate_logistic(gram: Array, y: Array, f0: Array, rates: Array, momentum: float | Array) -> Array:
    def step(carry, rate):
        alpha, velocity = carry
        outputs = f0 + jnp.matmul(gram, y * alpha, precision=EXACT)
        velocity = momentum * velocity + jax.nn.sigmoid(-y * outputs) / len(y)
        return (alpha + rate * velocity, velocity), None

    zero = jnp.zeros_like(y)
    return lax.scan(step, (zero, zero), rates)[0][0]
