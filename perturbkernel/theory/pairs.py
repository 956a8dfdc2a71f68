"""Sums over pairs of points, tile by tile in float64, by NumPy: no n x m matrix is held.

JAX supplies the products and angles of points of which many nearly coincide, for tiles padded to a
few sizes so that a new problem or slope seldom compiles anything.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from perturbkernel.kernels import host
from perturbkernel.kernels.angles import products_and_angles
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import cone_slope, double, gate_mean_square

LIMIT = 1024  # rows and columns of a tile


@jax.jit
def _angle_pullback(z, x, weights):
    def angles(z):
        return products_and_angles(z, x)[1]

    _, pullback = jax.vjp(angles, z)
    return pullback(weights)[0]


def _slices(count: int) -> list[slice]:
    """Parts of at most LIMIT, in order."""
    slices = []
    for start in range(0, count, LIMIT):
        stop = min(start + LIMIT, count)
        slices.append(slice(start, stop))
    return slices


def _pad(array: np.ndarray, axis: int = 0) -> np.ndarray:
    """Repeats the last row up to a power of two, at least 8."""
    count = array.shape[axis]
    doublings = (count - 1).bit_length()
    wanted = max(8, 1 << doublings)
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, wanted - count)
    return np.pad(array, padding, mode="edge")


class Tile(NamedTuple):
    """A part of the points z, one a row, and of the points x, one a column.

    Attributes:
        rows, columns: which points.
        product, theta: <z, x> and the angles of these points.
    """

    rows: slice
    columns: slice
    product: np.ndarray
    theta: np.ndarray


Terms = Callable[[slice, slice, np.ndarray, np.ndarray], tuple[np.ndarray, ...]]


def tiles(z: np.ndarray, x: np.ndarray) -> Iterator[Tile]:
    """Every tile of the pairs of a point z and a point x.

    Example:
        >>> [tile.product.shape for tile in tiles(np.eye(2), np.ones((1, 2)))]
        [(2, 1)]
    """
    for rows in _slices(len(z)):
        queries = z[rows]
        for columns in _slices(len(x)):
            points = x[columns]
            found = host.products_and_angles(queries, points)
            if found is None:
                part = slice(len(queries)), slice(len(points))
                padded = double(products_and_angles, _pad(queries), _pad(points))
                found = [array[part] for array in padded]
            product, theta = found
            yield Tile(rows=rows, columns=columns, product=product, theta=theta)


def row_sums(z: np.ndarray, x: np.ndarray, terms: Terms) -> tuple[np.ndarray, ...]:
    """Sums over x of several terms, arrays with one row per point z.

    `terms(rows, columns, product, theta)` gives their sums over the columns of one tile.

    Example:
        >>> def terms(rows, columns, product, theta):
        ...     return (product.sum(1),)
        >>> row_sums(np.eye(2), np.ones((3, 2)), terms)[0].round(9).tolist()
        [3.0, 3.0]
    """
    sums: tuple[np.ndarray, ...] = ()
    for tile in tiles(z, x):
        parts = terms(*tile)
        if not sums:
            shapes = [(len(z), *part.shape[1:]) for part in parts]
            sums = tuple(np.zeros(shape) for shape in shapes)
        for total, part in zip(sums, parts, strict=True):
            total[tile.rows] += part
    return sums


def angle_gradient(
    z: np.ndarray, x: np.ndarray, weights: Callable[[np.ndarray, slice], np.ndarray]
) -> np.ndarray:
    """The sum over n of w_n(z) grad_z theta(x_n, z), (m, d), where the gradient is 0 for z = x_n.

    `weights(product, columns)` gives w on a tile.

    Example:
        >>> x = np.ones((1, 2))
        >>> angle_gradient(x, x, lambda product, columns: product).tolist()
        [[0.0, 0.0]]
    """
    total = np.zeros(z.shape)
    for tile in tiles(z, x):
        queries = z[tile.rows]
        points = x[tile.columns]
        of_theta = weights(tile.product, tile.columns)
        found = host.angle_gradient(queries, points, of_theta)
        if found is None:
            padded = _pad(queries), _pad(points)
            count, width = of_theta.shape
            missing = [(0, len(padded[0]) - count), (0, len(padded[1]) - width)]
            gradient = double(_angle_pullback, *padded, np.pad(of_theta, missing))
            found = gradient[:count]
        total[tile.rows] += found
    return total


def phi(kernel: TwoLayerNTK, theta: np.ndarray) -> np.ndarray:
    """Phi = (1 + slope^2)/2 - (1 - slope)^2 theta / (2 pi). Theory: 0.1.

    Example:
        >>> phi(TwoLayerNTK(), np.array([0.0, np.pi])).tolist()
        [0.5, 0.0]
    """
    lost = cone_slope(kernel) * theta
    return gate_mean_square(kernel) - lost


def gate_matrix(kernel: TwoLayerNTK, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Phi(x_n, z_j), (n, m), held whole.

    Example:
        >>> gate_matrix(TwoLayerNTK(), np.ones((1, 2)), np.ones((1, 2))).tolist()
        [[0.5]]
    """
    matrix = np.empty((len(x), len(z)))
    for tile in tiles(x, z):
        matrix[tile.rows, tile.columns] = phi(kernel, tile.theta)
    return matrix


def gate_matmul(kernel: TwoLayerNTK, z: np.ndarray, x: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sum over n of Phi(x_n, z_j) b_n, (m,) or (m, k) for b (n,) or (n, k).

    Example:
        >>> one = np.ones((1, 2))
        >>> gate_matmul(TwoLayerNTK(), one, one, np.array([3.0])).round(9).tolist()
        [1.5]
    """

    def terms(rows, columns, _, theta):
        gates = phi(kernel, theta)
        return (gates @ b[columns],)

    (total,) = row_sums(z, x, terms)
    return total


def gate_fourth(slope: float, theta: np.ndarray) -> np.ndarray:
    """The second moment of a product of gates, Q = E[(phi'(u(x)) phi'(u(z)))^2].

        Q = (1 + g^4)/2 - (1 - g^2)^2 theta / (2 pi),  g the slope

    Theory: 0.1.

    Example:
        >>> float(gate_fourth(0.0, np.pi))
        0.0
    """
    at_zero = (1 + slope**4) / 2
    cone = (1 - slope**2) ** 2 / (2 * np.pi)
    return at_zero - cone * theta


def kernel_sum(kernel: TwoLayerNTK, z: np.ndarray, x: np.ndarray, coef: np.ndarray) -> np.ndarray:
    """The sum over n of coef_n K(x_n, z_j), (m,).

    Example:
        >>> one = np.ones((1, 2))
        >>> kernel_sum(TwoLayerNTK(), one, one, np.array([3.0])).round(9).tolist()
        [3.0]
    """

    def terms(rows, columns, product, theta):
        factor = product + kernel.train_bias
        values = phi(kernel, theta) * factor
        return (values @ coef[columns],)

    (total,) = row_sums(z, x, terms)
    return total
