"""Second networks for many perturbation sizes, training times and target draws from one pass over
the data.

Perturbed points are combinations of the rows of a few matrices B_b (the inputs, gradients),

    r_n = sum_b c_bn B_bn.

A tile of products <B_bn, z> therefore serves every combination, and the kernel of each costs one
arccos a pair. The gradients of an untrained network of width r are sums of its r weight vectors,
and their products with z those of rows of r numbers. A second network trained on (o_n + y_n
delta_n, y_n) by the identity loss from zero is, per unit of time,

    g(z) = (1/N) sum_n y_n K(o_n + y_n delta_n, z) = (1/N) sum_n [s_n(z) + y_n b_n(z)],

the halves s and b of `kernels.target_sums`, so that the targets enter through one matrix product,
all draws at once.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.arrays import as_jax
from perturbkernel.engine.sums import accumulate
from perturbkernel.engine.tiles import EXACT
from perturbkernel.kernels.angles import angle_of_product, products_and_angles
from perturbkernel.kernels.target_sums import halves
from perturbkernel.kernels.two_layer import TwoLayerNTK

# Rows of queries and of points in a tile: the products of every matrix and the draws' sums stay in
# the cache.
_BLOCK = (512, 1024)
_ROUND = 256


class Combination(NamedTuple):
    """Carrier and perturbation of every point as combinations of the matrices: o_n = sum_b
    carrier_bn B_bn, delta_n alike.
    """

    carrier: Float[np.ndarray, "b n"]
    delta: Float[np.ndarray, "b n"]


def padded(array: Array | np.ndarray) -> np.ndarray:
    """The rows, the last one repeated up to a round number: data sets of nearly the same size share
    what is compiled.
    """
    array = np.asarray(array)
    missing = -len(array) % _ROUND
    added = [(0, missing)]
    nothing = [(0, 0)] * (array.ndim - 1)
    return np.pad(array, added + nothing, mode="edge")


def _padded_with_zeros(array: Array | np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rows of zeros added up to the same number: coefficients of points that do not count."""
    array = np.asarray(array)
    count, columns = array.shape
    missing = -count % _ROUND
    result = np.zeros((count + missing, columns), dtype)
    result[:count] = array
    return result


def inner_products(
    z: Float[np.ndarray, "m d"], x: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "m n"]:
    """<z_i, x_j> by NumPy, which compiles nothing anew for each size; where z begins with x, half
    of that part.
    """
    n = len(x)
    columns = x.T
    products = np.empty((len(z), n), x.dtype)
    done = 0
    if np.array_equal(z[:n], x):
        np.matmul(x, columns, out=products[:n])
        done = n
    np.matmul(z[done:], columns, out=products[done:])
    return products


class Directions(NamedTuple):
    """The rows B_bn of a matrix.

    `factors`: (m, r) and (n, r), the products of whose rows are <z_i, B_bn>; None: z and the rows
    themselves.
    """

    rows: Float[np.ndarray, "n d"]
    factors: tuple[Float[np.ndarray, "m r"], Float[np.ndarray, "n r"]] | None = None


class FirstNetworks(NamedTuple):
    """k networks at m points: outputs, input gradients, and of the first gradient the part with
    gates held fixed.
    """

    outputs: Float[np.ndarray, "k m"]
    gradients: Float[np.ndarray, "k m d"]
    direction: Float[np.ndarray, "m d"] | None


def first_networks(
    kernel: TwoLayerNTK,
    z: Float[Array | np.ndarray, "m d"],
    x: Float[Array | np.ndarray, "n d"],
    dual_coef: Float[Array | np.ndarray, "n k"],
    *,
    direction: bool = False,
) -> FirstNetworks:
    """f_j(z) = sum_n dual_coef_nj K(x_n, z) and its gradient in z for every j, from k + 1 products.

    `direction`: also sum_n dual_coef_n0 Phi(x_n, z) x_n, the paper's direction v for dual_coef = y
    / n.
    """
    coef = _padded_with_zeros(dual_coef, np.asarray(x).dtype)
    queries, points = as_jax(padded(z)), as_jax(padded(x))
    found = _first(kernel, direction, queries, points, as_jax(coef))

    def without_padding(rows: Array) -> np.ndarray:
        return np.asarray(rows)[: len(z)]

    outputs, gradients, fixed = jax.tree.map(without_padding, found)
    by_network = gradients.transpose(1, 0, 2)
    return FirstNetworks(outputs.T, by_network, fixed)


@partial(jax.jit, static_argnums=(0, 1))
def _first(kernel: TwoLayerNTK, direction: bool, z: Array, x: Array, coef: Array):
    cone = _cone(kernel)
    bias = float(kernel.train_bias)

    def tile(z, x, coef):
        def of_queries(z):
            return products_and_angles(z, x)

        (product, theta), pullback = jax.vjp(of_queries, z)
        phi = _phi(kernel, theta)
        linear = product + bias

        def gradient(column):
            by_product = phi * column
            by_angle = -cone * linear * column
            return pullback((by_product, by_angle))[0]

        networks = coef.shape[1]
        columns = [coef[:, j] for j in range(networks)]
        of_columns = [gradient(column) for column in columns]
        gradients = jnp.stack(of_columns, axis=1)
        fixed = None
        if direction:
            weighted = phi * columns[0]
            fixed = jnp.matmul(weighted, x, precision=EXACT)
        values = phi * linear
        outputs = jnp.matmul(values, coef, precision=EXACT)
        return outputs, gradients, fixed

    return accumulate(tile, z, x, coef, _BLOCK)


def _cone(kernel: TwoLayerNTK) -> float:
    """Minus the derivative of Phi in theta."""
    bend = 1 - kernel.slope
    return bend**2 / (2 * np.pi)


def _phi(kernel: TwoLayerNTK, theta: Array) -> Array:
    largest = (1 + kernel.slope**2) / 2
    return largest - _cone(kernel) * theta


def kernel_of_product(
    kernel: TwoLayerNTK, product: Array, square_z: Array, square_x: Array, d: int | Array
) -> Array:
    """K(x, z) from <x, z> and the squared lengths (broadcast); right to 1e-4 where z and x nearly
    coincide.
    """
    theta = angle_of_product(product, square_z, square_x, d)
    bias = float(kernel.train_bias)
    return _phi(kernel, theta) * (product + bias)


class _Signed(NamedTuple):
    """The points o_n + delta_n, or o_n - delta_n, of all combinations.

    Attributes:
        coefficients: of the matrices, rows first so that they can be padded.
        squares: the points' squared lengths.
    """

    coefficients: Float[np.ndarray, "n j b"]
    squares: Float[np.ndarray, "n j"]


class _Moved(NamedTuple):
    """The points' factors of the products with every matrix, and both kinds of points that are
    combined from its rows.
    """

    factors: list[Any]
    plus: _Signed
    minus: _Signed


def second_networks(
    kernel: TwoLayerNTK,
    z: Float[Array | np.ndarray, "m d"],
    matrices: Sequence[Directions],
    combinations: Sequence[Combination],
    targets: Float[np.ndarray, "n s"],
) -> Float[np.ndarray, "j m s"]:
    """g(z) a unit of training time, for every combination j and every column of targets."""
    dtype = matrices[0].rows.dtype
    inner = _inner_products_of_rows([matrix.rows for matrix in matrices])
    plus = _signed(combinations, inner, 1)
    minus = _signed(combinations, inner, -1)

    def on_device(array: np.ndarray) -> Array:
        return jnp.asarray(padded(array), dtype)

    of_points = []
    for matrix in matrices:
        point = matrix.rows if matrix.factors is None else matrix.factors[1]
        of_points.append(point)
    moved = _Moved(of_points, plus, minus)
    moved = jax.tree.map(on_device, moved)
    # The last column counts the points, the others are the targets.
    once = np.ones((len(targets), 1))
    columns = np.hstack([targets, once])
    weights = _padded_with_zeros(columns, dtype)
    points = padded(z)
    squares = np.sum(points**2, axis=1)
    itself = jnp.asarray(points)
    of_queries = [itself if m.factors is None else on_device(m.factors[0]) for m in matrices]
    queries = of_queries, jnp.asarray(squares)
    d = points.shape[1]
    found = _sweep(kernel, d, queries, moved, weights)
    sums = np.asarray(found)[: len(z)]
    by_combination = sums.transpose(1, 0, 2)
    return by_combination / len(targets)


def _inner_products_of_rows(matrices: Sequence[np.ndarray]) -> Float[np.ndarray, "b b n"]:
    """<B_an, B_bn>, for the lengths of the perturbed points."""
    inner = []
    for a in matrices:
        of_a = [np.einsum("nd,nd->n", a, b) for b in matrices]
        inner.append(of_a)
    return np.array(inner)


def _signed(
    combinations: Sequence[Combination], inner: Float[np.ndarray, "b b n"], sign: int
) -> _Signed:
    each = [c.carrier + sign * c.delta for c in combinations]
    moved = np.stack(each)  # (j, b, n)
    squares = np.einsum("jbn,abn,jan->nj", moved, inner, moved)
    squares = np.maximum(squares, 0)
    coefficients = moved.transpose(2, 0, 1)
    return _Signed(coefficients, squares)


@partial(jax.jit, static_argnums=(0, 1))
def _sweep(kernel: TwoLayerNTK, d: int, queries, moved: _Moved, weights: Array) -> Array:
    """The sums over n; queries: the factors of z for every matrix, and its squared lengths."""

    def tile(query, moved, weights):
        of_queries, z_square = query
        products = []
        for of_query, of_point in zip(of_queries, moved.factors, strict=True):
            product = jnp.matmul(of_query, of_point.T, precision=EXACT)
            products.append(product)

        def weighted(signed, choice):
            """The kernel at the points of one combination, summed with each column of weights."""
            # The row of one combination, by a product with a unit vector: XLA would fuse the slice
            # of a loop into the arithmetic of the tile, which is then not vectorised (6 times
            # slower on a CPU).
            by_combination = signed.coefficients.transpose(1, 2, 0)  # read along the points
            coefficients = jnp.tensordot(choice, by_combination, 1)
            square = jnp.matmul(signed.squares, choice)
            product = jnp.zeros_like(products[0])
            for of_matrix, coefficient in zip(products, coefficients, strict=True):
                product = product + of_matrix * coefficient[None, :]
            z_column = z_square[:, None]
            x_row = square[None, :]
            values = kernel_of_product(kernel, product, z_column, x_row, d)
            return jnp.matmul(values, weights, precision=EXACT)

        def one(choice):
            # Sums first, then their halves: of the tiles both halves would take every arccos twice.
            plus = weighted(moved.plus, choice)
            minus = weighted(moved.minus, choice)
            half = halves(plus, minus)
            signal = half.signal[:, -1:]
            offsets = half.b[:, :-1]
            return signal + offsets

        combinations = moved.plus.squares.shape[1]
        unit_vectors = jnp.eye(combinations, dtype=z_square.dtype)
        by_combination = lax.map(one, unit_vectors)
        return by_combination.transpose(1, 0, 2)

    return accumulate(tile, queries, moved, weights, _BLOCK)
