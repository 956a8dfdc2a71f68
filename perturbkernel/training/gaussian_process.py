"""Gaussian process regression with the kernels of wide networks: posterior, likelihood, gradients.

With S the kernel, y = f(x) + noise at n points and A = S(X, X) + noise (theory: 1.7),

    mean(z) = S(z, X) A^-1 y,    covariance(z, z') = S(z, z') - S(z, X) A^-1 S(X, z'),
    log p(y) = -y^T A^-1 y / 2 - log det A / 2 - n log(2 pi) / 2.

Everything is computed in float64, whether or not x64 is enabled.
"""

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from perturbkernel.checks import as_class_targets, as_targets, check_choice, check_number
from perturbkernel.display import Displayed, in_short
from perturbkernel.engine.tiles import EXACT
from perturbkernel.kernels import products
from perturbkernel.kernels.base import Kernel
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.training.initial_function import Gaussian
from perturbkernel.training.precision import (
    KeepsPrecision,
    in_float64,
    is_wider,
    matvec,
    scope,
    to_ambient,
)

KERNEL_NAMES = ("nngp", "ntk")


class GaussianProcess(Displayed, KeepsPrecision):
    """The posterior of a Gaussian process, given noisy values at n points. A function of queries,
    the posterior mean, which can be attacked like a predictor.

    Attributes:
        kernel, kernel_name: S is the kernel's `nngp`, the covariance of networks before training,
            or its `ntk`.
        inputs: (n, ...).
        coef: A^-1 y, (n,) or (n, K).
        factor: (n, n), the lower Cholesky factor of A.
        noise: variance of the noise.
        log_marginal_likelihood: log p(y), summed over K outputs.
        status: "ok", or that A is singular to rounding.
    """

    kernel: Kernel
    inputs: Float[Array, "n ..."]
    coef: Float[Array, "n ..."]
    factor: Float[Array, "n n"]
    noise: float
    log_marginal_likelihood: float
    kernel_name: str = eqx.field(static=True)
    status: str = eqx.field(static=True)

    def _numbers(self) -> dict[str, Any]:
        return {
            "kernel": f"{self.kernel_name} of {in_short(self.kernel)}",
            "training points": len(self.inputs),
            "outputs": self.num_outputs or 1,
            "noise": self.noise,
            "log marginal likelihood": self.log_marginal_likelihood,
            "status": self.status,
        }

    @property
    def num_outputs(self) -> int | None:
        """K, the number of outputs; None for a single one, of shape (m,)."""
        return self.coef.shape[1] if self.coef.ndim == 2 else None

    def __call__(self, z: Float[ArrayLike, "m ..."]) -> Float[Array, "m ..."]:
        """The posterior mean at z (m, ...), (m,) or (m, K). Reverse-mode differentiable."""
        with scope(self.coef):
            z = self.kernel.check_inputs(z, "z", like=self.inputs.shape[1:])
        points = self.inputs, self.coef
        if is_wider(self.coef):
            return matvec(self.kernel, self.kernel_name, z, *points)
        z = z.astype(self.inputs.dtype)
        return products.matvec(self.kernel, self.kernel_name, z, *points)

    def distribution(self, z: Float[ArrayLike, "m ..."]) -> Gaussian:
        """Mean and covariance of f, without noise, at z (m, ...); of K outputs, which are
        independent, each has that covariance. Outside `jit` only. Cost: O(n^2 m).
        """
        mean = self(z)
        with jax.enable_x64(True):
            z = self.kernel.check_inputs(np.asarray(z, float), "z", like=self.inputs.shape[1:])
            between = partial(_covariance, self.kernel, self.kernel_name)
            inputs = jnp.asarray(self.inputs, float)
            half = jax.scipy.linalg.solve_triangular(self.factor, between(inputs, z), lower=True)
            covariance = between(z, z) - jnp.matmul(half.T, half, precision=EXACT)
        return Gaussian(mean, covariance.astype(mean.dtype))


def gaussian_process(
    kernel: Kernel,
    inputs: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, "n ..."],
    *,
    noise: float,
    kernel_name: str = "nngp",
) -> GaussianProcess:
    """The posterior of f ~ GP(0, S) given targets = f(inputs) + noise.

    Args:
        kernel: S is its `nngp`, or its `ntk`.
        inputs: (n, ...).
        targets: (n,) real numbers, or (n, K) for K independent outputs.
        noise: the positive variance of the noise.
        kernel_name: "nngp", or "ntk": then the mean is that of `fit` on the squared loss at
            infinite time with ridge = noise / n.

    Raises:
        ValueError, TypeError: bad arguments, before any computation.

    Cost O(n^3), and one n x n matrix that is kept. Theory: 1.7.

    Example:
        >>> import perturbkernel as pk
        >>> kernel = pk.TwoLayerNTK()
        >>> posterior = pk.gaussian_process(kernel, [[0.0], [1.0]], [0.0, 1.0], noise=0.1)
        >>> bool(posterior.distribution([[0.0]]).std[0] < 0.5)
        True
    """
    with jax.enable_x64(True):
        x, y = _data(kernel, inputs, targets, kernel_name)
        check_number(noise, "noise", open_low=True)
        gram = _covariance(kernel, kernel_name, x, x) + noise * jnp.eye(len(x))
        found = _solved(gram, y)
        status = "ok"
        if not _condition(gram, found.factor) * len(x) * np.finfo(float).eps < 1:
            status = f"the kernel matrix is singular to rounding with noise {noise:g}"
        numbers = float(noise), float(found.likelihood)
        return GaussianProcess(
            kernel, x, found.coef, found.factor, *numbers, kernel_name=kernel_name, status=status
        )


def log_marginal_likelihood(
    kernel: Kernel,
    inputs: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, "n ..."],
    *,
    noise: float | Array,
    slope: float | Array | None = None,
    kernel_name: str = "nngp",
) -> Float[Array, ""]:
    """log p(targets) under f ~ GP(0, S) and noise: differentiable in inputs, targets, noise and
    slope.

    Args:
        kernel, inputs, targets, noise, kernel_name: as of `gaussian_process`; all but kernel and
            name may be traced by JAX.
        slope: of a TwoLayerNTK in place of its own, as a number that may be traced. Since
            S = slope S_1 + (1 - slope)^2 S_0 with the kernels of slopes 1 and 0, the derivative is
            exact.

    Raises:
        ValueError, TypeError: bad arguments, before any computation.

    Theory: 1.7.

    Example:
        >>> import jax
        >>> import perturbkernel as pk
        >>> x, y = [[0.0], [1.0]], [0.0, 1.0]
        >>> def likelihood(slope):
        ...     kernel = pk.TwoLayerNTK()
        ...     return pk.log_marginal_likelihood(kernel, x, y, noise=0.1, slope=slope)
        >>> bool(jax.jit(jax.grad(likelihood))(0.5) < 0)
        True
    """
    x, y = _data(kernel, inputs, targets, kernel_name)
    check_number(noise, "noise", open_low=True)
    if slope is not None:
        check_number(slope, "slope", low=0, high=1)
        if not isinstance(kernel, TwoLayerNTK):
            raise TypeError(f"slope belongs to TwoLayerNTK; this kernel is {kernel!r}")
    slope = None if slope is None else jnp.asarray(slope)
    likelihood = partial(_likelihood, kernel, kernel_name)
    return to_ambient(in_float64(likelihood, (x, y, jnp.asarray(noise), slope)))


def _data(kernel: Kernel, inputs: Any, targets: Any, kernel_name: str) -> tuple[Array, Array]:
    if not isinstance(kernel, Kernel):
        raise TypeError(
            f"kernel must be a perturbkernel kernel such as TwoLayerNTK(); got {kernel!r}"
        )
    check_choice(kernel_name, "kernel_name", KERNEL_NAMES)
    x = kernel.check_inputs(inputs, "inputs")
    if np.ndim(targets) == 2 and np.shape(targets)[1] > 1:
        return x, as_class_targets(targets, "targets", len(x))
    return x, as_targets(targets, "targets", len(x), labels=False)


def _likelihood(kernel: Kernel, kernel_name: str, inputs: Any) -> Array:
    x, y, noise, slope = inputs
    if slope is None:
        gram = _covariance(kernel, kernel_name, x, x)
    else:
        assert isinstance(kernel, TwoLayerNTK)
        of_slope = partial(dataclasses.replace, kernel)
        linear = _covariance(of_slope(slope=1.0), kernel_name, x, x)
        relu = _covariance(of_slope(slope=0.0), kernel_name, x, x)
        gram = slope * linear + (1 - slope) ** 2 * relu
    return _solved(gram + noise * jnp.eye(len(x)), y).likelihood


class _Solved(eqx.Module):
    factor: Array
    coef: Array
    likelihood: Array


@jax.jit
def _solved(covariance: Array, y: Array) -> _Solved:
    factor, _ = jax.scipy.linalg.cho_factor(covariance, lower=True)
    factor = jnp.tril(factor)
    coef = jax.scipy.linalg.cho_solve((factor, True), y)
    n = len(y)
    outputs = y.size // n
    half_log_det = jnp.sum(jnp.log(jnp.diagonal(factor)))
    normaliser = half_log_det + n / 2 * np.log(2 * np.pi)
    square = jnp.sum(y * coef)
    likelihood = -square / 2 - outputs * normaliser
    return _Solved(factor, coef, likelihood)


@jax.jit
def _condition(gram: Array, factor: Array) -> Array:
    """trace(A) trace(A^-1) / n from the Cholesky factor of A: the condition number to a factor n
    either way. NaN for a factor that is not finite.
    """
    identity = jnp.eye(len(gram))
    inverse = jax.scipy.linalg.solve_triangular(factor, identity, lower=True)
    trace = jnp.trace(gram)
    squares = jnp.sum(inverse**2)
    return trace * squares / len(gram)


def _covariance(kernel: Kernel, kernel_name: str, x: Array, z: Array) -> Array:
    """(n, m)."""
    return getattr(kernel, kernel_name)(x, z)
