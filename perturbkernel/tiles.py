"""The one tiled engine: sums over pairs of points without ever holding an n x m matrix.

A kernel supplies dense tiles, ``kernel.tile(name, z, x) -> (rows of z, rows of x)``. This module cuts queries and
points into tiles, adds the tiles up, and differentiates the sums. Memory is that of one tile, whatever n and m. Where
queries and points are the same array, every pair of points is evaluated once. On a mesh each device holds its share of
the queries, and the points go round in a ring.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from perturbkernel import meshes
from perturbkernel.checks import is_traced
from perturbkernel.footprints import footprint

EXACT = lax.Precision.HIGHEST  # accelerators would otherwise round the inputs of float32 products


# --- tiles and their memory ---

# Temporaries of the widest sum (a gradient) of a two-layer kernel, from XLA's own account: arrays of the size of the
# tile, and copies of the rows that meet in it.
ARRAYS, COPIES = 10, 6


def default_memory() -> int:
    """Bytes for the temporaries of a sum: 128 MiB on a CPU; a sixteenth of an accelerator's memory, at most 1 GiB."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return min(stats.get("bytes_limit", 2**31) // 16, 2**30)


def tile_limits(kernel: Any, row: tuple[int, ...], itemsize: int, memory: int | None = None) -> tuple[int, int]:
    """The largest (rows of queries, rows of points) of a tile: `kernel.block`, or what fits into `memory` bytes.

    `memory` None: the kernel's own, or the device's default.

    With (a, b) = kernel.footprint(row) and c = 2 r, the tile takes 2 a r^2 + 3 b r numbers. On a CPU a tile beyond
    512 x 1024 leaves the cache and is slower.
    """
    if kernel.block is not None:
        return kernel.block
    numbers = (memory or kernel.memory or default_memory()) / itemsize
    pair, each = kernel.footprint(row)
    rows = int((np.sqrt(9 * each**2 + 8 * pair * numbers) - 3 * each) / (4 * pair) + 1e-6)
    rows = min(rows // 8 * 8 or max(rows, 1), 512 if jax.default_backend() == "cpu" else 4096)
    return rows, 2 * rows


def tile_bytes(kernel: Any, tile: tuple[int, int], row: tuple[int, ...], itemsize: int) -> int:
    """At most so much is held beside arguments and results."""
    pair, each = kernel.footprint(row)
    return int(itemsize * (pair * tile[0] * tile[1] + each * sum(tile)))


def tile_size(count: int, limit: int) -> int:
    """The size of equal tiles, at most about `limit` long, that waste the fewest rows."""
    tiles = -(-count // limit)
    size = -(-count // tiles)
    return size if tiles == 1 or limit < 8 else min(-(-size // 8) * 8, count)


def _rows(tree: Any) -> int:
    return jax.tree.leaves(tree)[0].shape[0]


# Arrays are cut into parts of one size. The last part starts early instead of being padded, so that nothing is copied;
# `_own` says which of its rows no earlier part has.


def _start(index: Any, size: int, count: int) -> Any:
    return jnp.minimum(index * size, count - size)


def _part(tree: Any, index: Any, size: int) -> Any:
    return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, _start(index, size, len(a)), size), tree)


def _own(index: Any, size: int, count: int) -> Bool[Array, " size"]:
    return _start(index, size, count) + jnp.arange(size) >= index * size


def _keep(rows: Bool[Array, " size"], tree: Any) -> Any:
    return jax.tree.map(lambda a: jnp.where(rows.reshape(-1, *(1,) * (a.ndim - 1)), a, 0), tree)


def _add(total: Any, index: Any, part: Any) -> Any:
    def add(a, b):
        start = _start(index, len(b), len(a))
        return lax.dynamic_update_slice_in_dim(a, lax.dynamic_slice_in_dim(a, start, len(b)) + b, start, 0)

    return jax.tree.map(add, total, part)


def _zeros(shapes: Any, rows: int) -> Any:
    return jax.tree.map(lambda s: jnp.zeros((rows, *s.shape[1:]), s.dtype), shapes)


def by_rows(function: Callable, tree: Any, limit: int) -> Any:
    """function(tree), which treats rows one by one, for about `limit` rows at once."""
    n = _rows(tree)
    size = tile_size(n, limit)
    if size == n:
        return function(tree)

    def write(i, result):
        part = function(_part(tree, i, size))
        return jax.tree.map(lambda a, b: lax.dynamic_update_slice_in_dim(a, b, _start(i, size, n), 0), result, part)

    return lax.fori_loop(0, -(-n // size), write, _zeros(jax.eval_shape(function, _part(tree, 0, size)), n))


# --- sums ---


def accumulate(
    tile: Callable,
    queries: Any,
    points: Any,
    weights: Any,
    limits: tuple[int, int],
    total: Any = None,
    span: Any = None,
) -> Any:
    """Adds `tile(queries, points, weights)` over tiles of points to `total`, for every tile of queries.

    `queries` (leading axis m), `points` and `weights` (leading axis n) are pytrees; the result has leading axis m.
    `limits` bounds the tile by (rows of queries, rows of points); `span` is a range of tiles of queries (default: all).
    The tile must be linear in `weights`: where the last tile repeats points of the one before, its weights are 0.
    """
    m, n = _rows(queries), _rows(points)
    rows, columns = tile_size(m, limits[0]), tile_size(n, limits[1])
    if total is None:
        first = _part(queries, 0, rows), *(_part(tree, 0, columns) for tree in (points, weights))
        total = _zeros(jax.eval_shape(tile, *first), m)

    def one_row_of_tiles(i, total):
        query = _part(queries, i, rows)

        def add(j, here):
            weight = _keep(_own(j, columns, n), _part(weights, j, columns))
            return jax.tree.map(jnp.add, here, tile(query, _part(points, j, columns), weight))

        here = lax.fori_loop(0, -(-n // columns), add, _zeros(total, rows))
        return _add(total, i, _keep(_own(i, rows, m), here))

    begin, end = span or (0, -(-m // rows))
    return lax.fori_loop(begin, end, one_row_of_tiles, total)


def accumulate_pairs(tile: Callable, points: Any, weights: Any, limit: int, total: Any, span: Any) -> Any:
    """The same where queries and points coincide, from the tiles on and above the diagonal.

    `tile(points_i, points_j, weights_i, weights_j)` returns what j adds to the sums at i, and what i adds at j.
    """
    n = _rows(points)
    size = tile_size(n, limit)
    if total is None:
        first = (_part(tree, 0, size) for tree in (points, points, weights, weights))
        total = _zeros(jax.eval_shape(tile, *first)[0], n)

    def one_row_of_tiles(i, total):
        here = _part(points, i, size)
        own_i = _own(i, size, n)
        weights_i = _keep(own_i, _part(weights, i, size))

        def add(j, carry):
            sums, total = carry
            own_j = _own(j, size, n)
            at_i, at_j = tile(here, _part(points, j, size), weights_i, _keep(own_j, _part(weights, j, size)))
            return jax.tree.map(jnp.add, sums, at_i), _add(total, j, _keep(own_j & (i != j), at_j))

        sums, total = lax.fori_loop(i, -(-n // size), add, (_zeros(total, size), total))
        return _add(total, i, _keep(own_i, sums))

    return lax.fori_loop(span[0], span[1], one_row_of_tiles, total)


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=(7,))
def _run(tile, kernel, name, mesh, queries, points, weights, total, span):
    """`accumulate`, `accumulate_pairs` where `queries` is None, or on a mesh all devices' shares of it."""
    tile = partial(tile, kernel, name)
    leaf = jax.tree.leaves(points)[0]
    limits = tile_limits(kernel, leaf.shape[1:], leaf.dtype.itemsize)
    if queries is None:
        return accumulate_pairs(tile, points, weights, limits[0], total, span)
    if mesh is None:
        return accumulate(tile, queries, points, weights, limits, total, span)

    def share(queries, points, weights, total, span):
        def one_step(_, carry):
            (points, weights), total = carry
            total = accumulate(tile, queries, points, weights, limits, total, span)
            ring = [(device, (device + 1) % mesh.size) for device in range(mesh.size)]
            return jax.tree.map(lambda a: lax.ppermute(a, mesh.axis_names, ring), (points, weights)), total

        if total is None:
            total = accumulate(tile, queries, points, weights, limits, None, (0, 0))
        return lax.fori_loop(0, mesh.size, one_step, ((points, weights), total))[1]

    split = meshes.rows(mesh)
    shares = jax.shard_map(
        share, mesh=mesh, in_specs=(split, split, split, split, meshes.WHOLE), out_specs=split, check_vma=False
    )
    return shares(queries, points, weights, total, span)


def sums(
    tile: Callable,
    kernel: Any,
    name: str,
    queries: Any,
    points: Any,
    weights: Any,
    *,
    mesh: Mesh | None = None,
    progress: Any = None,
) -> Any:
    """`accumulate` for tile(kernel, name, queries, points, weights), compiled once for each kernel and shapes.

    `queries` None: they are the points, and tile is one of `accumulate_pairs`. `mesh`: every process holds all the
    arguments and gets the whole result; each device computes its share of the queries. `progress.update(k)` is called
    after every k queries; under a trace it is not.
    """
    m = _rows(points if queries is None else queries)
    if mesh is not None:
        mesh = meshes.automatic(mesh)
        queries, points, weights = (
            meshes.shard(mesh, mode, tree)
            for mode, tree in (("edge", queries), ("edge", points), ("constant", weights))
        )
    leaf = jax.tree.leaves(points)[0]
    devices = 1 if mesh is None else mesh.size
    own = -(-m // devices)
    size = tile_size(own, tile_limits(kernel, leaf.shape[1:], leaf.dtype.itemsize)[0])
    tiles = -(-own // size)
    step = tiles if progress is None else -(-tiles // 100)
    total, done = None, 0
    for begin in range(0, tiles, step):
        end = min(begin + step, tiles)
        span = jnp.int32(begin), jnp.int32(end)
        total = _run(tile, kernel, name, mesh, queries, points, weights, total, span)
        if progress is not None and not is_traced(*jax.tree.leaves(total)):
            jax.block_until_ready(total)
            progress.update(min(end * size * devices, m) - done)
            done = min(end * size * devices, m)
    return total if mesh is None else jax.tree.map(lambda a: meshes.collect(a, m), total)


# --- sums of a kernel, and their derivatives ---


def _row_sums(tile: Array, coef: Array) -> Array:
    # A row sum fuses with the evaluation of the tile, which is then never written; a product with (n, 1) is not.
    return jnp.sum(tile * coef[None, :], axis=1) if coef.ndim == 1 else jnp.matmul(tile, coef, precision=EXACT)


def _matvec_tile(kernel, name, z, x, coef):
    return kernel.reduced(name, lambda tile: _row_sums(tile, coef), z, x)


def _matvec_pair(kernel, name, z, x, z_coef, x_coef):
    return kernel.reduced(name, lambda tile: (_row_sums(tile, x_coef), _row_sums(tile.T, z_coef)), z, x)


def _differentiable_tile(kernel, name, z, x, coef):
    return _row_sums(kernel.tile(name, z, x), coef)


def _query_gradient_tile(kernel, name, query, x, coef):
    z, cotangent = query
    return jax.vjp(lambda z: _differentiable_tile(kernel, name, z, x, coef), z)[1](cotangent)[0]


def _point_gradient_tile(kernel, name, query, z, cotangent):
    """The gradients in x and coef: now the points are the queries of the sum."""
    return jax.vjp(lambda x, coef: _differentiable_tile(kernel, name, z, x, coef), *query)[1](cotangent)


def gradient_footprint(kernel: Any, row: tuple[int, ...]) -> tuple[float, float]:
    """(numbers a pair, numbers a row) that a tile of the widest sum, a gradient, holds at once; read off its trace."""

    def gradient(z, x):
        ones = jnp.ones(len(z), z.dtype), jnp.ones(len(x), x.dtype)
        return _query_gradient_tile(kernel, "ntk", (z, ones[0]), x, ones[1])

    return footprint(gradient, row)


def matvec(
    kernel, name: str, z: Array, x: Array, coef: Array, *, mesh: Mesh | None = None, progress: Any = None
) -> Array:
    """sum_n coef_n kernel(x_n, z_j): (m,) for coef (n,), (m, k) for coef (n, k). Reverse-mode differentiable, once.

    Where z is x, the very same array, half of the tiles are evaluated.
    """
    same = z is x and mesh is None
    if is_traced(z, x, coef):
        return _matvec(kernel, name, same, mesh, z, x, coef)
    return _evaluate(kernel, name, same, mesh, progress, z, x, coef)


def _evaluate(kernel, name, same, mesh, progress, z, x, coef):
    if same:
        return sums(_matvec_pair, kernel, name, None, x, coef, progress=progress)
    return sums(_matvec_tile, kernel, name, z, x, coef, mesh=mesh, progress=progress)


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
    """The gradient in z of sum_j <cotangent_j, matvec(z)_j>, shaped like z; cotangent (m,), (m, k) for coef (n, k)."""
    return sums(_query_gradient_tile, kernel, name, (z, cotangent), x, coef, mesh=mesh, progress=progress)


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
        x_bar, coef_bar = sums(_point_gradient_tile, kernel, name, (x, coef), z, cotangent, mesh=mesh)
    return z_bar, x_bar, coef_bar


_matvec.defvjp(_matvec_forward, _matvec_backward, symbolic_zeros=True)


# --- whole matrices ---


def matrix(kernel, name: str, x: Array, z: Array) -> Array:
    """The whole matrix, (n, m), filled in tiles so that temporaries stay small; where z is x, half of them."""
    return _matrix(kernel, name, is_traced(x, z), x, None if z is x else z)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _matrix(kernel, name, differentiable, x, z):
    limits = tile_limits(kernel, x.shape[1:], x.dtype.itemsize)
    other = x if z is None else z
    rows = tile_size(len(x), limits[0])
    columns = rows if z is None else tile_size(len(other), limits[1])
    i, j = np.indices((-(-len(x) // rows), -(-len(other) // columns))).reshape(2, -1)
    if z is None:
        i, j = i[i <= j], j[i <= j]
    i, j = jnp.asarray(i), jnp.asarray(j)

    def fill(step, matrix):
        pair = _part(x, i[step], rows), _part(other, j[step], columns)
        start = _start(i[step], rows, len(x)), _start(j[step], columns, len(other))
        tile = kernel.tile(name, *pair) if differentiable else kernel.reduced(name, lambda tile: tile, *pair)
        matrix = lax.dynamic_update_slice(matrix, tile, start)
        return lax.dynamic_update_slice(matrix, tile.T, start[::-1]) if z is None else matrix

    return lax.fori_loop(0, len(i), fill, jnp.zeros((len(x), len(other)), x.dtype))


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
