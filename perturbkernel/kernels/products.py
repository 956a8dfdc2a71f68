"""Sums of a kernel over pairs of points, their derivatives, and whole kernel matrices.

A kernel supplies dense tiles, ``kernel.tile(name, z, x) -> (rows of z, rows of x)``, and perhaps
quick ones, ``kernel.quick_tile``. `engine.sums` adds them up.

Quick, then mend: where z and x nearly coincide, or are nearly opposite, the fast formula for their
angle cancels, and their pair has to be looked at by itself. Such pairs are few, but to ask of each
pair whether it is one, in a pass of its own, would take as long as the sum. So the quick tile
writes NaN there, which the sum over points carries to its query at no cost, and large tiles go

    256 queries each        quick tile           careful tile
    +---------+
    | block 1 | ----------> sums ------------------------------> result
    | block 2 | ----------> sums, one NaN ---> sums anew ------> result
    | block 3 | ----------> sums ------------------------------> result
    +---------+

Only blocks of `_MENDED` queries whose sums have a NaN are evaluated again, with ``kernel.tile`` and
from the sums before the tile, so that the NaN is gone. Each query's sums are NaN in all columns or
in none, since the kernel value is a factor of them all: one column tells. Points that are
identical, or lie along one direction as perturbations do, are no such pairs (`kernels.angles`). The
quick tile is differentiated like the careful one, by `jax.vjp` inside the function of the tile. Its
rule writes NaN into the derivatives of more pairs, all those whose derivative takes care, and the
gradients that contain such are mended in the same way (`kernels.angles.quick_products_and_angles`).

Tiles of fewer than `LARGE_TILE` pairs are careful at once: to compile two programs costs more than
it saves. So are tiles of kernels without a quick one.
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

from perturbkernel.arrays import as_jax
from perturbkernel.checks import is_traced
from perturbkernel.engine.arguments import argument_value, as_argument
from perturbkernel.engine.memory import footprint
from perturbkernel.engine.sums import plus, sums
from perturbkernel.engine.tiles import (
    TALL,
    exact_matmul,
    leading,
    part_of,
    part_start,
    tile_limits,
    tile_shape,
    tile_size,
    write_part,
)
from perturbkernel.kernels import features, host
from perturbkernel.kernels.dense import careful_tile, prepare, quick_tile_for, tiles_with_nan
from perturbkernel.kernels.pair_sums import (
    PointPullback,
    QueryPullback,
    Setting,
    Weighted,
    careful_sum,
    pair_sum,
)
from perturbkernel.meshes import inside_shard_map, varying_alike

# Queries of a large tile that are evaluated again at once.
_MENDED = 256
_UNROLLED = 16  # tiles of a traced matrix, up to which the program has each by itself


# --- sums over a tile ---


_WEIGHTED = Weighted()


def _first(rows: Array) -> Array:
    """(rows,): NaN where the tile has one, since every column of a row of sums then is."""
    return rows.reshape(len(rows), -1)[:, 0]


def evaluate_tile(
    function: Callable,
    kernel: Any,
    name: str,
    shared: Any,
    queries: Any,
    points: Any,
    before: Any,
    *,
    swapped: bool = False,
) -> Any:
    """The sums before + function(tile, queries, points), `before` None for nothing.

    With the kernel's quick tile first, and for queries that it leaves a NaN in, with its careful
    one; `function` treats queries one by one. Queries, points and `shared` are those of `prepare`;
    `swapped`: the rows of the tile are the points.
    """
    rows = leading(queries)
    queries, of_queries = queries
    points, of_points = points
    careful = careful_tile(kernel, name)
    quick = quick_tile_for(kernel, name, rows * leading(points))
    if quick is None:
        return plus(before, function(careful, queries, points))
    numbers = (of_points, of_queries) if swapped else (of_queries, of_points)
    result = plus(before, function(_with(quick, *numbers, shared), queries, points))
    columns = [_first(leaf) for leaf in jax.tree.leaves(result)]
    missing = jnp.isnan(sum(columns))

    def mended(queries, before):
        return plus(before, function(careful, queries, points))

    return _mend(mended, queries, before, result, missing)


def _with(quick: Callable, of_z: Any, of_x: Any, shared: Any) -> Callable:
    """The quick tile of z and x, given what was prepared for them."""
    if shared is None:
        return quick
    return lambda z, x: quick(z, x, of_z, of_x, shared)


def _mend(
    mended: Callable,
    queries: Any,
    before: Any,
    result: Any,
    missing: Array,
) -> Any:
    """`result` with mended(queries, before) in the blocks of queries where something is missing."""
    rows = len(missing)
    size = tile_size(rows, _MENDED)
    # Not a loop, out of which XLA would move what is the same in every step, and always do it.
    if size == rows:
        return lax.cond(missing.any(), lambda: mended(queries, before), lambda: result)
    blocks = np.arange(-(-rows // size))
    starts = part_start(blocks, size, rows)
    rows_of_blocks = starts[:, None] + np.arange(size)[None, :]
    hit = missing[rows_of_blocks].any(axis=1)
    order = jnp.argsort(~hit)  # those that are hit first

    def mend(step, result):
        block = order[step]
        part = part_of(queries, block, size)
        own = part_of(before, block, size)
        return write_part(result, block, mended(part, own))

    return lax.fori_loop(0, jnp.sum(hit), mend, result)


def _matvec_tile(kernel, name, shared, z, x, coef, before):
    def matvec(tile, z, x):
        return _WEIGHTED(tile, z, x, coef)

    return evaluate_tile(matvec, kernel, name, shared, z, x, before)


def _matvec_pair(kernel, name, shared, z, x, z_coef, x_coef):
    """What x adds at z, and z at x."""
    (z, of_z), (x, of_x) = z, x

    def matvecs(tile):
        values = tile(z, x)
        # Ten times as fast as values.T times a vector.
        at_x = exact_matmul(z_coef.T, values).T
        at_z = exact_matmul(values, x_coef)
        return at_z, at_x

    def careful():
        return matvecs(careful_tile(kernel, name))

    quick = quick_tile_for(kernel, name, len(z) * len(x))
    if quick is None:
        return careful()
    result = matvecs(_with(quick, of_z, of_x, shared))
    at_z, _ = result
    return lax.cond(jnp.isnan(_first(at_z)).any(), careful, lambda: result)


def _query_gradient_tile(kernel, name, shared, query, x, coef, before):
    def gradient(tile, query, x):
        z, cotangent = query
        _, pull_back = jax.vjp(lambda z: _WEIGHTED(tile, z, x, coef), z)
        (z_bar,) = pull_back(cotangent)
        return z_bar

    return evaluate_tile(gradient, kernel, name, shared, query, x, before)


def _point_gradient_tile(kernel, name, shared, query, z, cotangent, before):
    """The gradients in x and coef: now the points are the queries of the sum."""

    def gradients(tile, query, z):
        _, pull_back = jax.vjp(lambda x, coef: _WEIGHTED(tile, z, x, coef), *query)
        return pull_back(cotangent)

    return evaluate_tile(gradients, kernel, name, shared, query, z, before, swapped=True)


def gradient_footprint(kernel: Any, row: tuple[int, ...]) -> tuple[float, float]:
    """(numbers a pair, numbers a row) that a tile of the widest sum, a gradient, holds at once;
    read off its trace.
    """

    def gradient(z, x):
        cotangent = jnp.ones(len(z), z.dtype)
        coef = jnp.ones(len(x), x.dtype)
        before = jnp.zeros(z.shape, z.dtype)
        queries, points, shared = prepare(kernel, (z, cotangent), x)
        return _query_gradient_tile(kernel, "ntk", shared, queries, points, coef, before)

    return footprint(gradient, row)


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
    """sum_n coef_n kernel(x_n, z_j), (m,) for coef (n,) and (m, k) for coef (n, k).

    Differentiable in either mode, any number of times. Where z is x, the very same array, half of
    the tiles are evaluated.
    """
    if features.takes(kernel, name, z, x, coef):
        return features.product(kernel, name, z, x, coef, mesh=mesh, progress=progress)
    same = z is x and mesh is None
    argument = as_argument(kernel)
    setting = Setting(name, same, mesh)
    if inside_shard_map():
        # Which evaluates custom derivatives only as parts of a whole program.
        whole = jax.jit(_differentiable, static_argnums=(0, 1))
        return whole(_WEIGHTED, setting, argument, *varying_alike(z, x, coef))
    if is_traced(z, x, coef, *jax.tree.leaves(argument)):
        return _differentiable(_WEIGHTED, setting, argument, z, x, coef)
    if mesh is None and progress is None and host.takes(kernel, name, z, x, coef):
        return host.matvec(kernel, name, z, x, coef)
    return _evaluate(kernel, name, same, mesh, progress, z, x, coef)


def wide_matvec(kernel: Any, name: str, mesh: Mesh | None, *arrays: Array) -> Array:
    """`matvec` of z, x, coef, for arrays that JAX traces while it is set to float32: computed in
    float64, as its derivatives are, and returned in float32.
    """
    setting = Setting(name, False, mesh, wide=True)
    return _differentiable(_WEIGHTED, setting, as_argument(kernel), *arrays)


def _differentiable(f, setting, argument, queries, points, weights):
    return pair_sum(_sum, f, setting, argument, queries, points, weights)


def _sum(f, setting, argument, queries, points, weights):
    """The sum of f: matvec, its derivatives in reverse mode, or any other."""
    kernel = argument_value(argument)
    name, same, mesh, _ = setting
    if f == _WEIGHTED:
        if features.takes(kernel, name, queries, points, weights):
            return features.product(kernel, name, queries, points, weights, mesh=mesh)
        return _evaluate(kernel, name, same, mesh, None, queries, points, weights)
    if f == _QUERY_GRADIENT:
        z, cotangent = queries
        arrays = z, points, weights, cotangent
        return (_query_gradient(kernel, name, *arrays, mesh=mesh),)
    if isinstance(f, PointPullback) and f.f == _WEIGHTED:
        arrays = queries, points, weights
        bars = sums(_point_gradient_tile, prepare, kernel, name, False, *arrays, mesh=mesh)
        return tuple(bar for bar, asked in zip(bars, f.asked, strict=True) if asked)
    return careful_sum(f, setting, kernel, queries, points, weights)


def _evaluate(kernel, name, same, mesh, progress, z, x, coef):
    if same:
        return sums(_matvec_pair, prepare, kernel, name, False, None, x, coef, progress=progress)
    tall = coef[0].size <= TALL
    return sums(
        _matvec_tile,
        prepare,
        kernel,
        name,
        tall,
        z,
        x,
        coef,
        mesh=mesh,
        progress=progress,
    )


_QUERY_GRADIENT = QueryPullback(_WEIGHTED, (True,))


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

    Differentiable as `matvec` is.
    """
    argument = as_argument(kernel)
    traced = is_traced(z, x, coef, cotangent, *jax.tree.leaves(argument))
    if not traced or inside_shard_map() or features.takes(kernel, name, z, x, coef):
        return _query_gradient(kernel, name, z, x, coef, cotangent, mesh=mesh, progress=progress)
    setting = Setting(name, False, mesh)
    (gradient,) = _differentiable(_QUERY_GRADIENT, setting, argument, (z, cotangent), x, coef)
    return gradient


def _query_gradient(kernel, name, z, x, coef, cotangent, *, mesh=None, progress=None):
    arguments = z, x, coef, cotangent
    if features.takes(kernel, name, z, x, coef):
        return features.product(kernel, name, *arguments, mesh=mesh, progress=progress)
    if inside_shard_map():
        z, x, coef, cotangent = varying_alike(*arguments)
    if mesh is None and progress is None and host.takes(kernel, name, *arguments):
        found = host.query_gradient(kernel, name, *arguments)
        if found is not None:
            return found
    return sums(
        _query_gradient_tile,
        prepare,
        kernel,
        name,
        False,
        (z, cotangent),
        x,
        coef,
        mesh=mesh,
        progress=progress,
    )


# --- whole matrices ---


def matrix(kernel, name: str, x: Array, z: Array) -> Array:
    """The whole matrix, (n, m); temporaries are those of a tile."""
    if host.takes(kernel, name, x, z):
        return as_jax(host.tile(kernel, name, x, z))
    if features.has_features(kernel):
        return features.matrix(kernel, name, x, z)
    argument = as_argument(kernel)
    traced = is_traced(x, z, *jax.tree.leaves(argument))
    return _matrix(argument, name, traced, x, z)


@partial(jax.jit, static_argnums=(1, 2))
def _matrix(argument, name, differentiable, x, z):
    """From the quick tile at once, in place of the matrix product, and tiles in which that leaves a
    NaN once more.
    """
    kernel = argument_value(argument)
    n, m = len(x), len(z)
    careful = careful_tile(kernel, name)
    quick = None if differentiable else quick_tile_for(kernel, name, n * m)
    rows, columns = min(n, _MENDED), min(m, _MENDED)
    if quick is None:
        limits = tile_limits(kernel, x.shape[1:], x.dtype.itemsize, tall=False)
        rows, columns = tile_shape(n, m, limits)
    down, across = -(-n // rows), -(-m // columns)
    # Not a loop, in which JAX drops the rules of derivatives that it differentiates again.
    if differentiable and down * across <= _UNROLLED:
        of_x = jnp.split(x, list(range(rows, n, rows)))
        of_z = jnp.split(z, list(range(columns, m, columns)))
        return jnp.block([[careful(a, b) for b in of_z] for a in of_x])

    def fill(step, matrix):
        i, j = step // across, step % across
        tile = careful(part_of(x, i, rows), part_of(z, j, columns))
        start = part_start(i, rows, n), part_start(j, columns, m)
        return lax.dynamic_update_slice(matrix, tile, start)

    if quick is None:
        return lax.fori_loop(0, down * across, fill, jnp.zeros((n, m), x.dtype))
    matrix = quick(x, z)
    missing = tiles_with_nan(matrix, (rows, columns), (down, across))
    order = jnp.argsort(~missing)  # those with a NaN first

    def mend(k, matrix):
        return fill(order[k], matrix)

    return lax.fori_loop(0, jnp.sum(missing), mend, matrix)
