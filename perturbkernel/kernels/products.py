"""Sums of a kernel over pairs of points, their derivatives, and whole kernel matrices.

A kernel supplies dense tiles, ``kernel.tile(name, z, x) -> (rows of z, rows of x)``, and perhaps
quick ones, which are NaN at few pairs. `tiles` adds them up.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array

from perturbkernel.checks import is_traced
from perturbkernel.engine.memory import footprint
from perturbkernel.engine.sums import plus, row_sums, sums
from perturbkernel.engine.tiles import (
    EXACT,
    LARGE_TILE,
    TALL,
    leading,
    part_of,
    part_start,
    tile_limits,
    tile_shape,
    tile_size,
    write_part,
)

# Queries of a large tile that are evaluated again at once.
_MENDED = 256


def _weighted(tile: Array, coef: Array) -> Array:
    return (
        row_sums(tile * coef[None, :])
        if coef.ndim == 1
        else jnp.matmul(tile, coef, precision=EXACT)
    )


def _first(rows: Array) -> Array:
    """(rows,): NaN where the tile has one, since every column of a row of sums then is."""
    return rows.reshape(len(rows), -1)[:, 0]


def evaluate_tile(
    function: Callable, kernel: Any, name: str, queries: Any, points: Any, before: Any
) -> Any:
    """before + function(tile, queries, points), `before` None for nothing; `function` treats
    queries one by one.

    With the kernel's quick tile first, and for queries that it leaves a NaN in, with its tile.
    """
    tile, rows = partial(kernel.tile, name), leading(queries)
    if kernel.quick_tile is None or rows * leading(points) < LARGE_TILE:
        return plus(before, function(tile, queries, points))
    result = plus(before, function(partial(kernel.quick_tile, name), queries, points))
    missing = jnp.isnan(sum(_first(leaf) for leaf in jax.tree.leaves(result)))
    size = tile_size(rows, _MENDED)
    if (
        size == rows
    ):  # not a loop, out of which XLA would move what is the same in every step, and always do it
        return lax.cond(
            missing.any(), lambda: plus(before, function(tile, queries, points)), lambda: result
        )
    starts = part_start(np.arange(-(-rows // size)), size, rows)
    hit = missing[starts[:, None] + np.arange(size)[None, :]].any(axis=1)
    order = jnp.argsort(~hit)

    def mend(step, result):
        part, sums = (part_of(tree, order[step], size) for tree in (queries, before))
        return write_part(result, order[step], plus(sums, function(tile, part, points)))

    return lax.fori_loop(0, jnp.sum(hit), mend, result)


def _matvec_tile(kernel, name, z, x, coef, before):
    def matvec(tile, z, points):
        return _weighted(tile(z, points[0]), points[1])

    return evaluate_tile(matvec, kernel, name, z, (x, coef), before)


def _matvec_pair(kernel, name, z, x, z_coef, x_coef, diagonal):
    """The tile on the `diagonal`, where every point meets itself, is not for the quick one."""

    def matvecs(tile):
        values = tile(name, z, x)
        # Ten times as fast as values.T times a vector.
        at_x = jnp.matmul(z_coef.T, values, precision=EXACT).T
        return jnp.matmul(values, x_coef, precision=EXACT), at_x

    def careful():
        return matvecs(kernel.tile)

    if kernel.quick_tile is None or len(z) * len(x) < LARGE_TILE:
        return careful()
    missing = jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), jax.eval_shape(careful))
    result = lax.cond(diagonal, lambda: missing, lambda: matvecs(kernel.quick_tile))
    return lax.cond(jnp.isnan(_first(result[0])).any(), careful, lambda: result)


def _query_gradient_tile(kernel, name, query, x, coef, before):
    def gradient(tile, query, points):
        z, cotangent = query
        return jax.vjp(lambda z: _weighted(tile(z, points[0]), points[1]), z)[1](cotangent)[0]

    return evaluate_tile(gradient, kernel, name, query, (x, coef), before)


def _point_gradient_tile(kernel, name, query, z, cotangent, before):
    """The gradients in x and coef: now the points are the queries of the sum."""

    def gradients(tile, query, points):
        z, cotangent = points
        return jax.vjp(lambda x, coef: _weighted(tile(z, x), coef), *query)[1](cotangent)

    return evaluate_tile(gradients, kernel, name, query, (z, cotangent), before)


def gradient_footprint(kernel: Any, row: tuple[int, ...]) -> tuple[float, float]:
    """(numbers a pair, numbers a row) that a tile of the widest sum, a gradient, holds at once;
    read off its trace.
    """

    def gradient(z, x):
        ones = jnp.ones(len(z), z.dtype), jnp.ones(len(x), x.dtype)
        return _query_gradient_tile(
            kernel, "ntk", (z, ones[0]), x, ones[1], jnp.zeros(z.shape, z.dtype)
        )

    return footprint(gradient, row)


def _inside_shard_map() -> bool:
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def _varying_alike(*arrays: Array) -> tuple[Array, ...]:
    """The same arrays, all of them varying over the devices over which any of them does.

    So that `shard_map` adds up the derivatives in arrays that were the same on every device.
    """
    zero = sum(jnp.zeros_like(a, shape=()) for a in arrays)
    return tuple(a + zero for a in arrays)


def matvec(
    kernel,
    name: str,
    z: Array,
    x: Array,
    coef: Array,
    *,
    mesh: Mesh | None = None,
    progress: Any = None,
) -> Array:
    """sum_n coef_n kernel(x_n, z_j): (m,) for coef (n,), (m, k) for coef (n, k). Reverse-mode
    differentiable, once.

    Where z is x, the very same array, half of the tiles are evaluated.
    """
    same = z is x and mesh is None
    if _inside_shard_map():
        # Which evaluates custom derivatives only as parts of a whole program.
        whole = jax.jit(_matvec, static_argnums=(0, 1, 2, 3))
        return whole(kernel, name, same, mesh, *_varying_alike(z, x, coef))
    if is_traced(z, x, coef):
        return _matvec(kernel, name, same, mesh, z, x, coef)
    return _evaluate(kernel, name, same, mesh, progress, z, x, coef)


def _evaluate(kernel, name, same, mesh, progress, z, x, coef):
    if same:
        return sums(_matvec_pair, kernel, name, False, None, x, coef, progress=progress)
    tall = coef[0].size <= TALL
    return sums(_matvec_tile, kernel, name, tall, z, x, coef, mesh=mesh, progress=progress)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _matvec(kernel, name, same, mesh, z, x, coef):
    return _evaluate(kernel, name, same, mesh, None, z, x, coef)


def query_gradient(
    kernel,
    name: str,
    z: Array,
    x: Array,
    coef: Array,
    cotangent: Array,
    *,
    mesh: Mesh | None = None,
    progress: Any = None,
) -> Array:
    """The gradient in z of sum_j <cotangent_j, matvec(z)_j>, shaped like z; cotangent (m,), (m, k)
    for coef (n, k).
    """
    if _inside_shard_map():
        z, x, coef, cotangent = _varying_alike(z, x, coef, cotangent)
    return sums(
        _query_gradient_tile,
        kernel,
        name,
        False,
        (z, cotangent),
        x,
        coef,
        mesh=mesh,
        progress=progress,
    )


def _matvec_forward(kernel, name, same, mesh, z, x, coef):
    values = z.value, x.value, coef.value
    # None or () : the structure, unlike a value, is known while the backward pass is traced.
    needs = tuple(() if needed else None for needed in (z.perturbed, x.perturbed or coef.perturbed))
    if is_traced(*values):  # by an outer derivative, perhaps, which needs the rule again
        return _matvec(kernel, name, same, mesh, *values), (values, needs)
    return _evaluate(kernel, name, same, mesh, None, *values), (values, needs)


def _matvec_backward(kernel, name, same, mesh, residuals, cotangent):
    (z, x, coef), (needs_z, needs_points) = residuals
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return None, None, None
    z_bar = x_bar = coef_bar = None
    if needs_z is not None:
        z_bar = query_gradient(kernel, name, z, x, coef, cotangent, mesh=mesh)
    if needs_points is not None:
        x_bar, coef_bar = sums(
            _point_gradient_tile, kernel, name, False, (x, coef), z, cotangent, mesh=mesh
        )
    return z_bar, x_bar, coef_bar


_matvec.defvjp(_matvec_forward, _matvec_backward, symbolic_zeros=True)


# --- whole matrices ---


def matrix(kernel, name: str, x: Array, z: Array) -> Array:
    """The whole matrix, (n, m); temporaries are those of a tile."""
    return _matrix(kernel, name, is_traced(x, z), x, z)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _matrix(kernel, name, differentiable, x, z):
    """From the quick tile at once, in place of the matrix product, and tiles in which that leaves a
    NaN once more.
    """
    n, m = len(x), len(z)
    quick = None if differentiable or n * m < LARGE_TILE else kernel.quick_tile
    limits = tile_limits(kernel, x.shape[1:], x.dtype.itemsize, tall=False)
    rows, columns = (
        tile_shape(n, m, limits) if quick is None else (min(n, _MENDED), min(m, _MENDED))
    )
    down, across = -(-n // rows), -(-m // columns)

    def fill(step, matrix):
        i, j = step // across, step % across
        tile = kernel.tile(name, part_of(x, i, rows), part_of(z, j, columns))
        return lax.dynamic_update_slice(
            matrix, tile, (part_start(i, rows, n), part_start(j, columns, m))
        )

    if quick is None:
        return lax.fori_loop(0, down * across, fill, jnp.zeros((n, m), x.dtype))
    matrix = quick(name, x, z)
    # Sums over the columns of each tile: in every row, then in the rows of a tile.
    padded = jnp.pad(matrix, ((0, 0), (0, across * columns - m))).reshape(n * across, columns)
    missing = jnp.isnan(row_sums(padded)).reshape(n, across)
    missing = (
        jnp.pad(missing, ((0, down * rows - n), (0, 0)))
        .reshape(down, rows, across)
        .any(axis=1)
        .ravel()
    )
    order = jnp.argsort(~missing)
    return lax.fori_loop(0, jnp.sum(missing), lambda k, matrix: fill(order[k], matrix), matrix)
