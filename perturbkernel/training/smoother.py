"""Training as a linear map of the targets (theory: 17.2).

Under the identity and the squared loss

    f(z) = b(z) + sum_n w_n(z) y_n,    w(z) = K(z, X) q(K),

with q(K) = tau / n for the identity loss at effective time tau and the q of the dynamics for the
squared one (`squared`), and b(z) what training makes of f0: f0(z), and f0(z) - w(z) f0(X).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perturbkernel.engine.memory import available_memory, fits
from perturbkernel.engine.tiles import EXACT
from perturbkernel.kernels.base import Kernel
from perturbkernel.training import squared
from perturbkernel.training.dynamics import Dynamics, Solution
from perturbkernel.training.losses import LOSSES, Kind, Loss
from perturbkernel.training.solve import solve

_DIRECT = 10_000  # points up to which the Gram matrix is diagonalised or factored
_LINEAR = (Kind.CONSTANT, Kind.LINEAR)  # forces under which training is linear


def linear_loss(name: str | None, what: str) -> Loss:
    """The record of a loss under which training is linear in targets and f0.

    Raises:
        ValueError: it is another loss, or not known (None): `what` is then not known either.

    Example:
        >>> linear_loss("squared", "the smoother").name
        'squared'
    """
    loss = LOSSES.get(name or "")
    if loss is not None and loss.kind in _LINEAR:
        return loss
    given = f"not for {name!r}"
    if name is None:
        given = "which this predictor does not say"
    raise ValueError(f"{what} is known for loss 'identity' and 'squared', {given}")


def apply_training(
    kernel: Kernel,
    x: Float[Array, "n ..."],
    columns: Float[Array | np.ndarray, "n m"],
    loss: Loss,
    dynamics: Dynamics,
) -> Solution:
    """q(K) columns, float64, as the `dual_coef` of a solution: what training at x makes of targets.

    Up to 10,000 points, if memory has four n x n matrices, by the eigenvectors or the Cholesky
    factor of K, O(n^3 + n^2 m); beyond, by products with K for every column (docs/solvers.md).

    Example:
        >>> from perturbkernel import GradientFlow, TwoLayerNTK
        >>> x, y = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[10.0]])
        >>> loss = linear_loss("squared", "it")
        >>> apply_training(TwoLayerNTK(1.0), x, y, loss, GradientFlow(np.inf)).dual_coef.tolist()
        [[2.0]]
    """
    n = len(x)
    small = n <= _DIRECT and fits(n, np.float64, available_memory(), copies=4)
    if loss.kind is Kind.CONSTANT or not small:
        with jax.enable_x64(True):
            return solve(kernel, x, in_float64(columns), None, loss, dynamics)
    with jax.enable_x64(True):
        gram = kernel.ntk(in_float64(x))
        return squared.dense(gram, in_float64(columns), dynamics)


def smoother_weights(
    kernel: Kernel,
    x: Float[Array, "n ..."],
    z: Float[Array, "m ..."],
    loss: Loss,
    dynamics: Dynamics,
) -> Float[Array, "m n"]:
    """w(z) = K(z, X) q(K), (m, n), float64.

    Example:
        >>> from perturbkernel import GradientFlow, TwoLayerNTK
        >>> x, loss = jnp.asarray([[1.0, 2.0]]), linear_loss("identity", "it")
        >>> smoother_weights(TwoLayerNTK(1.0), x, 2 * x, loss, GradientFlow(1.0)).tolist()
        [[10.0]]
    """
    with jax.enable_x64(True):
        x = in_float64(x)
        columns = kernel.ntk(x, in_float64(z))
        weights = in_float64(apply_training(kernel, x, columns, loss, dynamics).dual_coef)
        return weights.T


def initial_part(
    loss: Loss,
    weights: Float[Array, "m n"],
    at_z: Float[Array | np.ndarray, "m ..."],
    at_x: Float[Array | np.ndarray, "n ..."],
) -> Float[Array, "m ..."]:
    """b(z), what training makes of f0, float64: from the weights at z and the values of f0 at z and
    at the training points.

    Example:
        >>> values = jnp.asarray([1.0])
        >>> weights = jnp.asarray([[0.25]])
        >>> initial_part(linear_loss("squared", "it"), weights, values, values).tolist()
        [0.75]
    """
    with jax.enable_x64(True):
        at_z = in_float64(at_z)
        if loss.kind is Kind.CONSTANT:
            return at_z
        return at_z - jnp.matmul(in_float64(weights), in_float64(at_x), precision=EXACT)


def in_float64(array: Array | np.ndarray) -> Array:
    """The array in float64; for use with 64 bits enabled.

    Example:
        >>> with jax.enable_x64(True):
        ...     print(in_float64(np.ones(2, np.float32)).dtype)
        float64
    """
    on_host = np.asarray(array)
    return jnp.asarray(on_host, float)
