"""Training a kernel model: the dual coefficients of every loss under every dynamics, by the method
that fits.

The trained function is f(z) = f0(z) + sum_n dual_coef_n K(x_n, z). With L the mean loss over n
points (theory: 1),

- identity, l(s) = -s: the gradient never changes; dual_coef = (tau / n) y at effective time tau. No
  Gram matrix.
- squared, L = 1/(2n) sum (f - y)^2: every eigenvector of the Gram matrix evolves by itself
  (`squared`).
- logistic, l(s) = log(1 + e^-s), and exponential, l(s) = e^-s: a differential equation (flow) or
  recurrence (heavy ball) for n numbers (`logistic`).

With targets (n, K) there are K outputs and n x K coefficients. Identity, L = -(1/n) sum <y, f>, and
squared treat every column by itself; softmax, the cross-entropy, couples them (`softmax`).

Up to 2,000 points all but the first hold the n x n Gram matrix in float64 and solve directly.
Beyond, or where four such matrices exceed the memory allowed, products with the matrix are all they
use: docs/solvers.md. Coefficients are always float64, whatever JAX's setting.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from perturbkernel import logistic, softmax, squared
from perturbkernel.dynamics import Dynamics, GradientFlow, Solution
from perturbkernel.gram import available_memory, fits, gram_operator
from perturbkernel.kernels import Kernel
from perturbkernel.logistic import LogisticPath as LogisticPath
from perturbkernel.logistic import logistic_path as logistic_path

LOSSES = ("identity", "logistic", "exponential", "squared")
CLASS_LOSSES = ("identity", "squared", "softmax")  # of targets (n, K)

_DIRECT = 2000  # points up to which the Gram matrix is diagonalised or factored
_ROUNDED = 1e-6  # relative error of a product with a float32 Gram matrix


def solve(
    kernel: Kernel,
    x: Array,
    y: Array,
    f0: Array | None,
    loss: str,
    dynamics: Dynamics,
    memory: float | None = None,
    tolerance: float | None = None,
    mesh: Mesh | None = None,
) -> Solution:
    """Dual coefficients after training on (x, y) from the initial outputs f0, (n,) or (n, K) as y,
    None for zero.

    `memory`: bytes that Gram matrices may take, `gram.available_memory()` if None. `tolerance`:
    relative; 1e-9, or 1e-7 for float32 data, if None. Its meaning depends on the method,
    docs/solvers.md. `mesh`: devices that share the products, and then `memory` is on each; what is
    solved directly is solved on the default device.
    """
    if loss == "identity":
        time = dynamics.effective_time
        return Solution(y * (time / len(y)), "ok", {"effective_time": time})
    single, n = x.dtype == jnp.float32, len(y)
    memory = available_memory(mesh) if memory is None else memory
    tolerance = (1e-7 if single else 1e-9) if tolerance is None else tolerance
    interpolate = (
        loss == "squared" and isinstance(dynamics, GradientFlow) and np.isinf(dynamics.time)
    )
    with jax.enable_x64(True):
        given, x, y = x, jnp.asarray(np.asarray(x), float), jnp.asarray(np.asarray(y), float)
        f0 = jnp.zeros_like(y) if f0 is None else jnp.asarray(np.asarray(f0), float)
        direct = n <= _DIRECT and fits(n, y.dtype, memory, copies=4)
        mesh = None if direct else mesh
        rounded = None
        if direct and loss == "squared":
            solution = squared.dense(kernel.ntk(x), y - f0, dynamics)
        elif interpolate:
            rounded = not fits(n, x.dtype, memory, devices=1 if mesh is None else mesh.size)
            operator = gram_operator(kernel, x.astype(jnp.float32) if rounded else x, memory, mesh)
            exact = gram_operator(kernel, x, 0, mesh) if rounded else None
            solution = squared.interpolate_by_products(
                operator, exact, lambda chosen: kernel.ntk(x, x[chosen]), y - f0, tolerance
            )
        else:
            rounded = single and not direct
            operator = gram_operator(kernel, given if rounded else x, memory, mesh)
            if rounded:
                tolerance = max(tolerance, _ROUNDED)
            if loss == "squared":
                solution = squared.by_products(operator, y - f0, dynamics, tolerance)
            elif loss == "softmax":
                # From the centred targets, or p itself.
                p = y + (1 - y.sum(1, keepdims=True)) / y.shape[1]
                if isinstance(dynamics, GradientFlow):
                    solution = softmax.flow(operator, p, f0, dynamics.time, tolerance)
                else:
                    solution = softmax.heavy_ball(operator, p, f0, dynamics)
            elif isinstance(dynamics, GradientFlow):
                solution = logistic.flow(operator, y, f0, dynamics.time, tolerance, loss)
            else:
                solution = logistic.heavy_ball(operator, y, f0, dynamics, loss)
        stats = {name: float(value) for name, value in solution.stats.items()}
        if not direct:
            stats |= {"tolerance": tolerance, "gram_bits": 32.0 if rounded else 64.0}
            stats |= {"gram_held": float(operator.matrix is not None)}
        return solution._replace(dual_coef=jnp.asarray(np.asarray(solution.dual_coef)), stats=stats)
