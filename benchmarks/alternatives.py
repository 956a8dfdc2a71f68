"""What a person would use instead: NumPy, scikit-learn and neural-tangents for the kernel with
trained biases.

The kernel is K(x, z) = Phi(x, z) (<x, z> + 1), Phi = 1/2 - theta/(2 pi), theta the angle of
(x/sqrt(d), 1) and (z/sqrt(d), 1): ReLU, biases trained, the one that all four can compute. z (m, d)
are queries, x (n, d) points, as in `TwoLayerNTK.matvec(z, x, coef)`.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturbkernel.kernels.stax_kernels import load_neural_tangents

from .harness import NotHere

# Of queries at once in NumPy: the block then stays in the cache between the elementwise passes.
ROWS = 1024


class _Block(NamedTuple):
    """Some queries z (rows, d) with s_z; <z, x> + 1 and rho, (rows, n), to be overwritten."""

    rows: slice
    z: np.ndarray
    s_z: np.ndarray
    product: np.ndarray
    rho: np.ndarray


def _blocks(z: np.ndarray, x: np.ndarray, s_x: np.ndarray) -> Iterator[_Block]:
    """One after the other, in place wherever possible."""
    d = np.float32(x.shape[1])
    s_z = _lengths(z)
    for start in range(0, len(z), ROWS):
        rows = slice(start, start + ROWS)
        queries = z[rows]
        lengths = s_z[rows]
        product = queries @ x.T
        rho = product / d
        rho += 1
        rho /= lengths[:, None]
        rho /= s_x
        np.clip(rho, -1, 1, out=rho)
        product += 1
        yield _Block(rows, queries, lengths, product, rho)


def _phi(rho: np.ndarray) -> np.ndarray:
    turn = 2 * np.pi
    phi = np.arccos(rho)
    phi *= np.float32(-1 / turn)
    phi += np.float32(0.5)
    return phi


def _lengths(x: np.ndarray) -> np.ndarray:
    d = np.float32(x.shape[1])
    squares = np.einsum("nd,nd->n", x, x)
    return np.sqrt(1 + squares / d)


def numpy_ntk(z: np.ndarray, x: np.ndarray) -> np.ndarray:
    """K(x, z), (m, n), in the dtype of x."""
    s_x = _lengths(x)
    shape = (len(z), len(x))
    out = np.empty(shape, x.dtype)
    for block in _blocks(z, x, s_x):
        phi = _phi(block.rho)
        into = out[block.rows]
        np.multiply(block.product, phi, out=into)
    return out


def numpy_matvec(z: np.ndarray, x: np.ndarray, coef: np.ndarray) -> np.ndarray:
    """sum_n coef_n K(x_n, z_j), (m,)."""
    s_x = _lengths(x)
    out = np.empty(len(z), np.float32)
    for block in _blocks(z, x, s_x):
        values = block.product
        values *= _phi(block.rho)
        out[block.rows] = values @ coef
    return out


def numpy_input_gradient(z: np.ndarray, x: np.ndarray, coef: np.ndarray) -> np.ndarray:
    """Its gradient in z, (m, d).

    grad K = Phi x + (<x, z> + 1) (xbar - rho zbar) / (2 pi d s_z sin theta)
    """
    d = np.float32(x.shape[1])
    scale = np.float32(2 * np.pi) * d
    s_x = _lengths(x)
    out = np.empty_like(z)
    for rows, queries, s_z, product, rho in _blocks(z, x, s_x):
        weight = product
        weight *= coef
        # The formula fails at coincident points, as it stands.
        with np.errstate(divide="ignore", invalid="ignore"):
            sine = np.sqrt(1 - rho * rho)
            weight /= sine
        divisor = scale * s_z
        weight /= divisor[:, None]
        along = np.einsum("mn,mn->m", weight, rho) / s_z
        weight /= s_x
        phi = _phi(rho)
        phi *= coef
        phi += weight
        with np.errstate(invalid="ignore"):
            toward_queries = along[:, None] * queries
            out[rows] = phi @ x - toward_queries
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
        return _phi(rho) * linear

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
