"""The one tiled engine: sums over pairs of points without ever holding an n x m matrix.

A kernel supplies dense tiles, ``kernel.tile(name, z, x) -> (rows of z, rows of x)``. This module cuts queries and
points into tiles, adds the tiles up, and differentiates the sums. Memory is that of one tile, whatever n and m.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

EXACT = lax.Precision.HIGHEST  # accelerators would otherwise round the inputs of float32 products


def _tile_size(count: int, limit: int) -> int:
    """The size of equal tiles, at most about `limit` long, that waste the fewest padded rows."""
    tiles = -(-count // limit)
    size = -(-count // tiles)
    return size if tiles == 1 else -(-size // 8) * 8


def _cut(array: Array, size: int, mode: str) -> Array:
    """(n, ...) -> (tiles, size, ...)."""
    tiles = -(-array.shape[0] // size)
    padding = [(0, tiles * size - array.shape[0])] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, padding, mode=mode).reshape(tiles, size, *array.shape[1:])


def accumulate(tile: Callable, queries: Any, points: Any, weights: Any, block: tuple[int, int]) -> Any:
    """Sums `tile(queries, points, weights)` over tiles of points, for every tile of queries.

    `queries` (leading axis m), `points` and `weights` (leading axis n) are pytrees; the result has leading axis m.
    `block` limits the tile to (rows of queries, rows of points). The tile must be linear in `weights`: padded points
    repeat the last one (zero could be a singular point of a kernel) and count for nothing as their weights are 0.
    """
    m, n = (jax.tree.leaves(tree)[0].shape[0] for tree in (queries, points))
    rows, columns = _tile_size(m, block[0]), _tile_size(n, block[1])
    queries = jax.tree.map(lambda a: _cut(a, rows, "edge"), queries)
    points = jax.tree.map(lambda a: _cut(a, columns, "edge"), points)
    weights = jax.tree.map(lambda a: _cut(a, columns, "constant"), weights)

    def one_row_of_tiles(query):
        def add(total, part):
            return jax.tree.map(jnp.add, total, tile(query, *part)), None

        first = jax.tree.map(lambda a: a[0], (points, weights))
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(tile, query, *first))
        return lax.scan(add, zero, (points, weights))[0]

    sums = lax.map(one_row_of_tiles, queries)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:m], sums)


def _weighted_row_sums(kernel, name: str, z: Array, x: Array, coef: Array) -> Array:
    tile = kernel.tile(name, z, x)
    # A row sum fuses with the evaluation of the tile, which is then never written; a product with (n, 1) is not.
    return jnp.sum(tile * coef[None, :], axis=1) if coef.ndim == 1 else jnp.matmul(tile, coef, precision=EXACT)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
@partial(jax.jit, static_argnums=(0, 1))
def matvec(kernel, name: str, z: Array, x: Array, coef: Array) -> Array:
    """sum_n coef_n kernel(x_n, z_j): (m,) for coef (n,), (m, k) for coef (n, k). Reverse-mode differentiable, once."""
    return accumulate(partial(_weighted_row_sums, kernel, name), z, x, coef, kernel.block)


@partial(jax.jit, static_argnums=(0, 1))
def query_gradient(kernel, name: str, z: Array, x: Array, coef: Array, cotangent: Array) -> Array:
    """The gradient in z of sum_j cotangent_j matvec(z)_j, shaped like z."""

    def tile(query, points, weights):
        z, cotangent = query
        return jax.vjp(lambda z: _weighted_row_sums(kernel, name, z, points, weights), z)[1](cotangent)[0]

    return accumulate(tile, (z, cotangent), x, coef, kernel.block)


@partial(jax.jit, static_argnums=(0, 1))
def _point_gradient(kernel, name: str, z: Array, x: Array, coef: Array, cotangent: Array) -> tuple[Array, Array]:
    """The same in x and in coef: now the points are the queries of the sum."""

    def tile(query, z, cotangent):
        return jax.vjp(lambda x, coef: _weighted_row_sums(kernel, name, z, x, coef), *query)[1](cotangent)

    return accumulate(tile, (x, coef), z, cotangent, kernel.block)


def _matvec_forward(kernel, name, z, x, coef):
    values = z.value, x.value, coef.value
    # None or () : the structure, unlike a value, is known while the backward pass is traced.
    needs = tuple(() if needed else None for needed in (z.perturbed, x.perturbed or coef.perturbed))
    return matvec(kernel, name, *values), (values, needs)


def _matvec_backward(kernel, name, residuals, cotangent):
    values, (needs_z, needs_points) = residuals
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return None, None, None
    z_bar = None if needs_z is None else query_gradient(kernel, name, *values, cotangent)
    x_bar, coef_bar = (None, None) if needs_points is None else _point_gradient(kernel, name, *values, cotangent)
    return z_bar, x_bar, coef_bar


matvec.defvjp(_matvec_forward, _matvec_backward, symbolic_zeros=True)


@partial(jax.jit, static_argnums=(0, 1))
def matrix(kernel, name: str, x: Array, z: Array) -> Array:
    """The whole matrix, (n, m), filled in rows of about one tile's entries each so that temporaries stay small."""
    rows = _tile_size(x.shape[0], max(8, kernel.block[0] * kernel.block[1] // z.shape[0]))
    filled = lax.map(lambda part: kernel.tile(name, part, z), _cut(x, rows, "edge"))
    return filled.reshape(-1, z.shape[0])[: x.shape[0]]


def visit_flagged(flagged: Bool[Array, "rows columns"], visit: Callable, state: Any) -> Any:
    """Calls `state = visit(column, hit, state)` until every flagged pair was seen, one pair of each row at a time.

    `column` (rows,) is a flagged column of each row, `hit` (rows,) false where the row has none left. Few pairs are
    flagged in practice (each point with itself, duplicates), and then this costs next to nothing.
    """
    row = jnp.arange(flagged.shape[0])

    def body(carry):
        flagged, state = carry
        column = jnp.argmax(flagged, axis=1)
        state = visit(column, flagged[row, column], state)
        return flagged.at[row, column].set(False), state

    return lax.while_loop(lambda carry: jnp.any(carry[0]), body, (flagged, state))[1]
