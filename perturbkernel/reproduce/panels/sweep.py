"""Second networks for many perturbation sizes, training times and target draws from one pass over
the data.

Perturbed points are combinations of the rows of a few matrices B_b (the inputs, gradients),

    r_n = sum_b c_bn B_bn.

A tile of products <B_bn, z> therefore serves every combination, and the kernel of
each costs one arccos a pair. With h_n^+-(z) = K(o_n +- delta_n, z), a second network trained on
(o_n + y_n delta_n, y_n) by the identity loss from zero is, per unit of time,

    g(z) = (1/N) sum_n y_n K(o_n + y_n delta_n, z)
         = (1/N) [sum_{y_n = 1} h_n^+(z) - sum_{y_n = -1} h_n^-(z)],

so that the targets enter through one matrix product each, all draws at once.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.engine.sums import accumulate
from perturbkernel.engine.tiles import EXACT
from perturbkernel.kernels.angles import angle_of_product, products_and_angles
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
    added = [(0, -len(array) % _ROUND)]
    nothing = [(0, 0)] * (array.ndim - 1)
    return np.pad(array, added + nothing, mode="edge")


def _padded_with_zeros(array: Array | np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rows of zeros added up to the same number: coefficients of points that do not count."""
    array = np.asarray(array)
    rows = -(-len(array) // _ROUND) * _ROUND
    result = np.zeros((rows, array.shape[1]), dtype)
    result[: len(array)] = array
    return result


def inner_products(
    z: Float[np.ndarray, "m d"], x: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "m n"]:
    """<z_i, x_j> by NumPy, which compiles nothing anew for each size; where z begins with x, half
    of that part.
    """
    n = len(x)
    products = np.empty((len(z), n), x.dtype)
    symmetric = n if np.array_equal(z[:n], x) else 0
    if symmetric:
        np.matmul(x, x.T, out=products[:n])
    np.matmul(z[symmetric:], x.T, out=products[symmetric:])
    return products


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
    queries, points = jnp.asarray(padded(z)), jnp.asarray(padded(x))
    found = _first(kernel, direction, queries, points, jnp.asarray(coef))
    outputs, gradients, fixed = jax.tree.map(lambda a: np.asarray(a)[: len(z)], found)
    return FirstNetworks(outputs.T, gradients.transpose(1, 0, 2), fixed)


@partial(jax.jit, static_argnums=(0, 1))
def _first(kernel: TwoLayerNTK, direction: bool, z: Array, x: Array, coef: Array):
    cone = (1 - kernel.slope) ** 2 / (2 * np.pi)
    bias = float(kernel.train_bias)

    def tile(z, x, coef):
        (product, theta), pullback = jax.vjp(lambda z: products_and_angles(z, x), z)
        phi = (1 + kernel.slope**2) / 2 - cone * theta
        linear = product + bias

        def gradient(column):
            return pullback((phi * column, -cone * linear * column))[0]

        count = coef.shape[1]
        gradients = jnp.stack([gradient(coef[:, j]) for j in range(count)], axis=1)
        fixed = jnp.matmul(phi * coef[:, 0], x, precision=EXACT) if direction else None
        outputs = jnp.matmul(phi * linear, coef, precision=EXACT)
        return outputs, gradients, fixed

    return accumulate(tile, z, x, coef, _BLOCK)


def kernel_of_product(
    kernel: TwoLayerNTK, product: Array, square_z: Array, square_x: Array, d: int | Array
) -> Array:
    """K(x, z) from <x, z> and the squared lengths (broadcast); right to 1e-4 where z and x nearly
    coincide.
    """
    theta = angle_of_product(product, square_z, square_x, d)
    cone = (1 - kernel.slope) ** 2 / (2 * np.pi)
    phi = (1 + kernel.slope**2) / 2 - cone * theta
    return phi * (product + float(kernel.train_bias))


def second_networks(
    kernel: TwoLayerNTK,
    z: Float[Array | np.ndarray, "m d"],
    matrices: Sequence[Float[Array | np.ndarray, "n d"]],
    combinations: Sequence[Combination],
    targets: Float[np.ndarray, "n s"],
) -> Float[np.ndarray, "j m s"]:
    """g(z) a unit of training time, for every combination j and every column of targets."""
    rows = [np.asarray(m) for m in matrices]
    dtype = rows[0].dtype
    queries = padded(z)
    # <B_an, B_bn>, (b, b, n), for the lengths of the perturbed points.
    inner = np.array([[np.einsum("nd,nd->n", a, b) for b in rows] for a in rows])
    coefficients, squares, weights = [], [], []
    for sign in (1, -1):
        # (j, b, n): o_n +- delta_n.
        moved = np.stack([c.carrier + sign * c.delta for c in combinations])
        square = np.einsum("jbn,abn,jan->nj", moved, inner, moved)
        squares.append(np.maximum(square, 0))
        coefficients.append(moved.transpose(2, 0, 1))
        # Of h+ and h- a draw of targets takes one for each n: h+ with weight 1 where y = 1, h-
        # with -1 elsewhere.
        chosen = (np.asarray(targets) + sign) / 2
        weights.append(_padded_with_zeros(chosen, dtype))
    points = (rows, coefficients, squares)
    points = jax.tree.map(lambda a: jnp.asarray(padded(a), dtype), points)
    lengths = jnp.asarray(np.sum(queries**2, axis=1))
    sums = np.asarray(_sweep(kernel, jnp.asarray(queries), lengths, points, weights))
    return sums[: len(z)].transpose(1, 0, 2) / len(targets)


@partial(jax.jit, static_argnums=0)
def _sweep(kernel: TwoLayerNTK, z: Array, z_square: Array, points, weights) -> Array:
    d = z.shape[1]

    def tile(query, points, weights):
        z, z_square = query
        matrices, coefficients, squares = points
        products = [jnp.matmul(z, m.T, precision=EXACT) for m in matrices]
        # (j, b, n): read along the points.
        coefficients = [c.transpose(1, 2, 0) for c in coefficients]

        def one(choice):
            def weighted(c, square, weight):
                # The row of one combination, by a product with a unit vector: XLA would fuse the
                # slice of a loop into the arithmetic of the tile, which is then not vectorised (6
                # times slower on a CPU).
                c = jnp.tensordot(choice, c, 1)
                square = jnp.matmul(square, choice)
                product = jnp.zeros_like(products[0])
                for b, of_matrix in enumerate(products):
                    product = product + of_matrix * c[b][None, :]
                values = kernel_of_product(kernel, product, z_square[:, None], square[None, :], d)
                return jnp.matmul(values, weight, precision=EXACT)

            plus = weighted(coefficients[0], squares[0], weights[0])
            minus = weighted(coefficients[1], squares[1], weights[1])
            return plus + minus

        unit_vectors = jnp.eye(len(coefficients[0]), dtype=z.dtype)
        return lax.map(one, unit_vectors).transpose(1, 0, 2)

    return accumulate(tile, (z, z_square), points, weights, _BLOCK)
