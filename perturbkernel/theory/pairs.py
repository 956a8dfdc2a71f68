"""Sums over pairs of points, tile by tile in float64: no n x m matrix is held.

JAX supplies products and angles, for tiles padded to a few sizes so that a new problem or slope
seldom compiles anything; what is done with them is NumPy.
"""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from perturbkernel.kernels.angles import products_and_angles
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import cone_slope, double, gate_mean_square

LIMIT = 1024  # rows and columns of a tile


@jax.jit
def _angles(z, x):
    return products_and_angles(z, x)


@jax.jit
def _angle_pullback(z, x, weights):
    return jax.vjp(lambda z: products_and_angles(z, x)[1], z)[1](weights)[0]


def _slices(count: int) -> list[slice]:
    return [slice(start, min(start + LIMIT, count)) for start in range(0, count, LIMIT)]


def _pad(array: np.ndarray, axis: int = 0) -> np.ndarray:
    """Repeats the last row up to a power of two, at least 8."""
    count = array.shape[axis]
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, max(8, 1 << (count - 1).bit_length()) - count)
    return np.pad(array, padding, mode="edge")


def tiles(z: np.ndarray, x: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray, np.ndarray]]:
    """(rows of z, rows of x, <z, x>, theta(z, x)) for every tile; the matrices have one row a row
    of z.
    """
    for rows in _slices(len(z)):
        for columns in _slices(len(x)):
            part = slice(rows.stop - rows.start), slice(columns.stop - columns.start)
            product, theta = double(_angles, _pad(z[rows]), _pad(x[columns]))
            yield rows, columns, product[part], theta[part]


def row_sums(
    z: np.ndarray,
    x: np.ndarray,
    terms: Callable[[slice, slice, np.ndarray, np.ndarray], tuple[np.ndarray, ...]],
) -> tuple[np.ndarray, ...]:
    """Sums over all tiles of `terms(rows, columns, product, theta)`, a tuple of arrays with leading
    axis rows.
    """
    sums: tuple[np.ndarray, ...] = ()
    for rows, columns, product, theta in tiles(z, x):
        parts = terms(rows, columns, product, theta)
        sums = sums or tuple(np.zeros((len(z), *part.shape[1:])) for part in parts)
        for total, part in zip(sums, parts, strict=True):
            total[rows] += part
    return sums


def angle_gradient(
    z: np.ndarray, x: np.ndarray, weights: Callable[[np.ndarray, slice], np.ndarray]
) -> np.ndarray:
    """sum_n w_n(z) grad_z theta(x_n, z), (m, d); `weights(product, columns)` gives w on a tile. 0
    where z = x_n.
    """
    total = np.zeros(z.shape)
    for rows, columns, product, _ in tiles(z, x):
        at, points = _pad(z[rows]), _pad(x[columns])
        padded = np.zeros((len(at), len(points)))
        padded[: len(product), : product.shape[1]] = weights(product, columns)
        total[rows] += double(_angle_pullback, at, points, padded)[: len(product)]
    return total


def phi(kernel: TwoLayerNTK, theta: np.ndarray) -> np.ndarray:
    """Phi = (1 + slope^2)/2 - (1 - slope)^2 theta / (2 pi). Theory: 0.1."""
    return gate_mean_square(kernel) - cone_slope(kernel) * theta


def gate_matrix(kernel: TwoLayerNTK, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Phi(x_n, z_j), (n, m), held whole."""
    matrix = np.empty((len(x), len(z)))
    for rows, columns, _, theta in tiles(x, z):
        matrix[rows, columns] = phi(kernel, theta)
    return matrix


def gate_matmul(kernel: TwoLayerNTK, z: np.ndarray, x: np.ndarray, b: np.ndarray) -> np.ndarray:
    """sum_n Phi(x_n, z_j) b_n, (m,) or (m, k) for b (n,) or (n, k)."""
    return row_sums(z, x, lambda rows, columns, _, theta: (phi(kernel, theta) @ b[columns],))[0]


def gate_fourth(slope: float, theta: np.ndarray) -> np.ndarray:
    """Q = E[(phi'(u(x)) phi'(u(z)))^2] = (1 + g^4)/2 - (1 - g^2)^2 theta / (2 pi), g the slope.
    Theory: 0.1.
    """
    return (1 + slope**4) / 2 - (1 - slope**2) ** 2 / (2 * np.pi) * theta


def kernel_sum(kernel: TwoLayerNTK, z: np.ndarray, x: np.ndarray, coef: np.ndarray) -> np.ndarray:
    """sum_n coef_n K(x_n, z_j), (m,)."""
    return row_sums(
        z,
        x,
        lambda rows, columns, product, theta: (
            (phi(kernel, theta) * (product + kernel.train_bias)) @ coef[columns],
        ),
    )[0]
