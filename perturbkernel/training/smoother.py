"""Training as a linear map of the targets (theory: 17.2).

Under the identity and the squared loss

    f(z) = b(z) + sum_n w_n(z) y_n,    w(z) = K(z, X) q(K),

with q(K) = tau / n for the identity loss at effective time tau and the q of the dynamics, the ridge
and the weights of points for the squared one (`squared`), and b(z) what training makes of f0:
f0(z), and f0(z) - w(z) f0(X).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perturbkernel.arrays import as_jax
from perturbkernel.engine.memory import available_memory, fits
from perturbkernel.engine.tiles import EXACT
from perturbkernel.kernels.base import Kernel
from perturbkernel.training import squared
from perturbkernel.training.dynamics import Dynamics, Solution, from_numbers
from perturbkernel.training.losses import LOSSES, Kind, Loss
from perturbkernel.training.solve import solve
from perturbkernel.words import about

_DIRECT = 10_000  # points up to which the Gram matrix is diagonalised or factored
_LINEAR = (Kind.CONSTANT, Kind.LINEAR)  # forces under which training is linear


class Computed(NamedTuple):
    """An array, and "ok" or in words what the solver met that it comes from."""

    value: Array
    status: str


class Training(NamedTuple):
    """How a predictor was trained, under a loss that makes training linear.

    Attributes:
        loss: a record of constant or linear force.
        dynamics: gradient flow or heavy ball.
        ridge, weights: as in `fit`; weights (n,) of mean one, or None for equal ones.
    """

    loss: Loss
    dynamics: Dynamics
    ridge: float = 0.0
    weights: Any = None

    @property
    def constant(self) -> bool:
        """Whether the force does not depend on the outputs, nor f's own part on the training."""
        return self.loss.kind is Kind.CONSTANT


def training_of(f: Any, what: str) -> Training:
    """How the KernelPredictor f was trained.

    Raises:
        ValueError: not linearly, or f does not say: `what` is then not known.
    """
    loss = linear_loss(f.loss, what)
    return Training(loss, from_numbers(f.dynamics), float(f.ridge), f.sample_weight)


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
    training: Training,
) -> Solution:
    """q(K) columns, float64, as the `dual_coef` of a solution: what training at x makes of targets.

    Its `status` is about all of the columns; the caller hands it on.

    Up to 10,000 points, if memory has four n x n matrices, by the eigenvectors or the Cholesky
    factor of K, O(n^3 + n^2 m); beyond, by products with K for every column (docs/solvers.md), in
    float64 whatever the dtype of x.

    Example:
        >>> from perturbkernel import GradientFlow, TwoLayerNTK
        >>> x, y = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[10.0]])
        >>> training = Training(linear_loss("squared", "it"), GradientFlow(np.inf))
        >>> apply_training(TwoLayerNTK(1.0), x, y, training).dual_coef.tolist()
        [[2.0]]
    """
    n = len(x)
    loss, dynamics, ridge, weights = training
    small = n <= _DIRECT and fits(n, np.float64, available_memory(), copies=4)
    left_out = weights is not None and not np.all(weights)  # which `solve` takes away before
    with jax.enable_x64(True):
        x = in_float64(x)
        columns = in_float64(columns)
        if weights is not None:
            weights = in_float64(weights)
        if training.constant or left_out or not small:
            how = {"ridge": ridge, "weights": weights}
            return solve(kernel, x, columns, None, loss, dynamics, **how)
        gram = kernel.ntk(x)
        return squared.dense(gram, columns, dynamics, ridge, weights)


def smoother_weights(
    kernel: Kernel,
    x: Float[Array, "n ..."],
    z: Float[Array, "m ..."],
    training: Training,
) -> Computed:
    """w(z) = K(z, X) q(K), (m, n), float64, and what its solver met.

    Example:
        >>> from perturbkernel import GradientFlow, TwoLayerNTK
        >>> x = jnp.asarray([[1.0, 2.0]])
        >>> training = Training(linear_loss("identity", "it"), GradientFlow(1.0))
        >>> found = smoother_weights(TwoLayerNTK(1.0), x, 2 * x, training)
        >>> found.value.tolist(), found.status
        ([[10.0]], 'ok')
    """
    with jax.enable_x64(True):
        x = in_float64(x)
        columns = kernel.ntk(x, in_float64(z))
        found = apply_training(kernel, x, columns, training)
        weights = in_float64(found.dual_coef)
        status = about("weights of the targets", found.status)
        return Computed(weights.T, status)


def initial_part(
    loss: Loss,
    weights: Float[Array | np.ndarray, "m n"],
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
    return as_jax(np.asarray(array, float))
