"""What a person would use instead: NumPy, scikit-learn and neural-tangents for the kernel with
trained biases.

The kernel is K(x, z) = Phi(x, z) (<x, z> + 1), Phi = 1/2 - theta/(2 pi), theta the angle of
(x/sqrt(d), 1) and (z/sqrt(d), 1): ReLU, biases trained, the one that all four can compute. z (m, d)
are queries, x (n, d) points, as in `TwoLayerNTK.matvec(z, x, coef)`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbkernel.kernels.stax_kernels import load_neural_tangents

from .harness import NotHere
from .numpy_kernel import numpy_input_gradient as numpy_input_gradient
from .numpy_kernel import numpy_matvec as numpy_matvec
from .numpy_kernel import numpy_ntk as numpy_ntk
from .numpy_kernel import numpy_phi


def sklearn_ntk(z: np.ndarray, x: np.ndarray) -> Callable[[], np.ndarray]:
    """Returns the call of K(x, z), (m, n), from scikit-learn's pairwise kernels.

    Raises NotHere without scikit-learn.
    """
    try:
        from sklearn.metrics.pairwise import cosine_similarity, linear_kernel
    except ModuleNotFoundError:
        raise NotHere("scikit-learn is not installed") from None

    def augmented(a):
        count, d = a.shape
        one = np.ones((count, 1), np.float32)
        root_d = np.float32(np.sqrt(d))
        return np.hstack([a / root_d, one])

    def ntk():
        queries = augmented(z)
        points = augmented(x)
        cosine = cosine_similarity(queries, points)
        rho = np.clip(cosine, -1, 1)
        linear = linear_kernel(z, x) + 1
        return numpy_phi(rho) * linear

    return ntk


def tangents() -> Callable[..., Any]:
    """neural-tangents' kernel function of the same network, kernel(z, x, "ntk").

    Raises NotHere without it.
    """
    stax = neural_tangents("stax")
    dense = stax.Dense(1, W_std=1, b_std=1, parameterization="standard")
    relu = stax.LeakyRelu(0.0)
    _, _, kernel = stax.serial(dense, relu)
    return kernel


def neural_tangents(module: str) -> Any:
    """`neural_tangents.stax` or `.predict`; raises NotHere if they are not installed."""
    try:
        return load_neural_tangents(module)
    except ModuleNotFoundError as error:
        missing, _, _ = str(error).partition(":")
        raise NotHere(missing) from None


def tangents_ntk() -> Callable[..., jax.Array]:
    """(z, x) -> K, (m, n), jitted."""
    kernel = tangents()
    return jax.jit(lambda z, x: kernel(z, x, "ntk"))


def tangents_matvec() -> Callable[..., jax.Array]:
    """(z, x, coef) -> (m,), jitted."""
    kernel = tangents()

    def matvec(z, x, coef):
        return kernel(z, x, "ntk") @ coef

    return jax.jit(matvec)


def tangents_input_gradient() -> Callable[..., jax.Array]:
    """(z, x, coef) -> (m, d), by autodiff, jitted."""
    kernel = tangents()

    def total(z, x, coef):
        outputs = kernel(z, x, "ntk") @ coef
        return jnp.sum(outputs)

    gradient = jax.grad(total)
    return jax.jit(gradient)
