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

# Of queries at once in NumPy: the block then stays in the cache between the elementwise passes.
ROWS = 1024


def _numpy_block(
    z: np.ndarray, x: np.ndarray, s_z: np.ndarray, s_x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """<z, x> + 1 and rho, in place wherever possible."""
    product = z @ x.T
    rho = product / np.float32(x.shape[1])
    rho += 1
    rho /= s_z[:, None]
    rho /= s_x
    np.clip(rho, -1, 1, out=rho)
    product += 1
    return product, rho


def _phi(rho: np.ndarray) -> np.ndarray:
    phi = np.arccos(rho)
    phi *= np.float32(-1 / (2 * np.pi))
    phi += np.float32(0.5)
    return phi


def _lengths(x: np.ndarray) -> np.ndarray:
    return np.sqrt(1 + np.einsum("nd,nd->n", x, x) / np.float32(x.shape[1]))


def _blocks(z: np.ndarray):
    return [slice(i, i + ROWS) for i in range(0, len(z), ROWS)]


def numpy_ntk(z: np.ndarray, x: np.ndarray) -> np.ndarray:
    """K(x, z), (m, n), in the dtype of x."""
    s_z, s_x = _lengths(z), _lengths(x)
    out = np.empty((len(z), len(x)), x.dtype)
    for rows in _blocks(z):
        product, rho = _numpy_block(z[rows], x, s_z[rows], s_x)
        np.multiply(product, _phi(rho), out=out[rows])
    return out


def numpy_matvec(z: np.ndarray, x: np.ndarray, coef: np.ndarray) -> np.ndarray:
    """sum_n coef_n K(x_n, z_j), (m,)."""
    s_z, s_x = _lengths(z), _lengths(x)
    out = np.empty(len(z), np.float32)
    for rows in _blocks(z):
        product, rho = _numpy_block(z[rows], x, s_z[rows], s_x)
        product *= _phi(rho)
        out[rows] = product @ coef
    return out


def numpy_input_gradient(z: np.ndarray, x: np.ndarray, coef: np.ndarray) -> np.ndarray:
    """Its gradient in z, (m, d).

    grad K = Phi x + (<x, z> + 1) (xbar - rho zbar) / (2 pi d s_z sin theta)
    """
    d = np.float32(x.shape[1])
    s_z, s_x = _lengths(z), _lengths(x)
    out = np.empty_like(z)
    for rows in _blocks(z):
        product, rho = _numpy_block(z[rows], x, s_z[rows], s_x)
        weight = product
        weight *= coef
        # The formula fails at coincident points, as it stands.
        with np.errstate(divide="ignore", invalid="ignore"):
            weight /= np.sqrt(1 - rho * rho)
        weight /= (np.float32(2 * np.pi) * d * s_z[rows])[:, None]
        along = np.einsum("mn,mn->m", weight, rho) / s_z[rows]
        weight /= s_x
        phi = _phi(rho)
        phi *= coef
        phi += weight
        with np.errstate(invalid="ignore"):
            out[rows] = phi @ x - along[:, None] * z[rows]
    return out


def sklearn_ntk(z: np.ndarray, x: np.ndarray) -> Callable[[], np.ndarray]:
    """Returns the call of K(x, z), (m, n), from scikit-learn's pairwise kernels.

    Raises NotHere without scikit-learn.
    """
    try:
        from sklearn.metrics.pairwise import cosine_similarity, linear_kernel
    except ModuleNotFoundError:
        raise NotHere("scikit-learn is not installed") from None

    def augmented(a):
        one = np.ones((len(a), 1), np.float32)
        root_d = np.float32(np.sqrt(a.shape[1]))
        return np.hstack([a / root_d, one])

    def ntk():
        rho = np.clip(cosine_similarity(augmented(z), augmented(x)), -1, 1)
        return _phi(rho) * (linear_kernel(z, x) + 1)

    return ntk


def tangents() -> Callable[..., Any]:
    """neural-tangents' kernel function of the same network, kernel(z, x, "ntk").

    Raises NotHere without it.
    """
    stax = neural_tangents("stax")
    dense = stax.Dense(1, W_std=1, b_std=1, parameterization="standard")
    return stax.serial(dense, stax.LeakyRelu(0.0))[2]


def neural_tangents(module: str) -> Any:
    """`neural_tangents.stax` or `.predict`; raises NotHere if they are not installed."""
    try:
        return load_neural_tangents(module)
    except ModuleNotFoundError as error:
        raise NotHere(str(error).partition(":")[0]) from None


def tangents_ntk() -> Callable[..., jax.Array]:
    """(z, x) -> K, (m, n), jitted."""
    kernel = tangents()
    return jax.jit(lambda z, x: kernel(z, x, "ntk"))


def tangents_matvec() -> Callable[..., jax.Array]:
    """(z, x, coef) -> (m,), jitted."""
    kernel = tangents()
    return jax.jit(lambda z, x, coef: kernel(z, x, "ntk") @ coef)


def tangents_input_gradient() -> Callable[..., jax.Array]:
    """(z, x, coef) -> (m, d), by autodiff, jitted."""
    kernel = tangents()
    return jax.jit(jax.grad(lambda z, x, coef: jnp.sum(kernel(z, x, "ntk") @ coef)))
