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
    def angles(z):
        return products_and_angles(z, x)[1]

    _, pullback = jax.vjp(angles, z)
    return pullback(weights)[0]


def _slices(count: int) -> list[slice]:
    """Parts of at most LIMIT, in order."""
    starts = range(0, count, LIMIT)
    return [slice(start, min(start + LIMIT, count)) for start in starts]


def _pad(array: np.ndarray, axis: int = 0) -> np.ndarray:
    """Repeats the last row up to a power of two, at least 8."""
    count = array.shape[axis]
    wanted = max(8, 1 << (count - 1).bit_length())
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, wanted - count)
    return np.pad(array, padding, mode="edge")


def tiles(z: np.ndarray, x: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray, np.ndarray]]:
    """Every tile: its rows of z, its rows of x, <z, x> and theta(z, x).

    The two matrices have one row per point z.
    """
    for rows in _slices(len(z)):
        queries = z[rows]
        for columns in _slices(len(x)):
            points = x[columns]
            part = slice(len(queries)), slice(len(points))
            product, theta = double(_angles, _pad(queries), _pad(points))
            yield rows, columns, product[part], theta[part]


def row_sums(
    z: np.ndarray,
    x: np.ndarray,
    terms: Callable[[slice, slice, np.ndarray, np.ndarray], tuple[np.ndarray, ...]],
) -> tuple[np.ndarray, ...]:
    """Sums over x of several terms, arrays with one row per point z.

    `terms(rows, columns, product, theta)` gives their sums over the columns of one tile.
    """
    sums: tuple[np.ndarray, ...] = ()
    for rows, columns, product, theta in tiles(z, x):
        parts = terms(rows, columns, product, theta)
        if not sums:
            shapes = [(len(z), *part.shape[1:]) for part in parts]
            sums = tuple(np.zeros(shape) for shape in shapes)
        for total, part in zip(sums, parts, strict=True):
            total[rows] += part
    return sums


def angle_gradient(
    z: np.ndarray, x: np.ndarray, weights: Callable[[np.ndarray, slice], np.ndarray]
) -> np.ndarray:
    """The sum over n of w_n(z) grad_z theta(x_n, z), (m, d), where the gradient is 0 for z = x_n.

    `weights(product, columns)` gives w on a tile.
    """
    total = np.zeros(z.shape)
    for rows, columns, product, _ in tiles(z, x):
        queries = _pad(z[rows])
        points = _pad(x[columns])
        count, width = product.shape
        padded = np.zeros((len(queries), len(points)))
        padded[:count, :width] = weights(product, columns)
        gradient = double(_angle_pullback, queries, points, padded)
        total[rows] += gradient[:count]
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
    """The sum over n of Phi(x_n, z_j) b_n, (m,) or (m, k) for b (n,) or (n, k)."""

    def terms(rows, columns, _, theta):
        return (phi(kernel, theta) @ b[columns],)

    return row_sums(z, x, terms)[0]


def gate_fourth(slope: float, theta: np.ndarray) -> np.ndarray:
    """The second moment of a product of gates, Q = E[(phi'(u(x)) phi'(u(z)))^2].

        Q = (1 + g^4)/2 - (1 - g^2)^2 theta / (2 pi),  g the slope

    Theory: 0.1.
    """
    cone = (1 - slope**2) ** 2 / (2 * np.pi)
    return (1 + slope**4) / 2 - cone * theta


def kernel_sum(kernel: TwoLayerNTK, z: np.ndarray, x: np.ndarray, coef: np.ndarray) -> np.ndarray:
    """The sum over n of coef_n K(x_n, z_j), (m,)."""

    def terms(rows, columns, product, theta):
        values = phi(kernel, theta) * (product + kernel.train_bias)
        return (values @ coef[columns],)

    return row_sums(z, x, terms)[0]
