"""The one tiled engine: sums over pairs of points without ever holding an n x m matrix.

A tile is a function of some queries and some points. This module cuts queries and points into tiles
and adds the tiles up. Memory is that of one tile, whatever n and m. Where queries and points are
the same array, every pair of points is evaluated once. On a mesh each device holds its share of the
queries, and the points go round in a ring.
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

EXACT = lax.Precision.HIGHEST  # accelerators would otherwise round the inputs of float32 products


# --- tiles and their memory ---

# Temporaries of the widest sum (a gradient) of a two-layer kernel, from XLA's own account: arrays
# of the size of the tile, and copies of the rows that meet in it.
ARRAYS, COPIES = 10, 6


def default_memory() -> int:
    """Bytes for the temporaries of a sum: 256 MiB on a CPU; a sixteenth of an accelerator's memory,
    at most 1 GiB.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    return min(stats.get("bytes_limit", 2**32) // 16, 2**30)


# Pairs of a tile. On a CPU more of them leave the cache.
_PAIRS, _PAIRS_OF_ACCELERATOR = 2**20, 2**25
# Queries for each point of a tall tile.
TALL = 16
# Pairs of a tile from which on it is worth compiling its evaluation twice, quick and careful.
LARGE_TILE = 2**18


def tile_limits(
    kernel: Any, row: tuple[int, ...], itemsize: int, memory: int | None = None, *, tall: bool
) -> tuple[int, int]:
    """The largest (rows of queries, rows of points) of a tile: `kernel.block`, or what fits into
    `memory` bytes.

    `memory` None: the kernel's own, or the device's default. Each tile reads its points, d numbers
    each, and adds what each of its queries gets to the sums: `tall` tiles are best where that is a
    number or a few, square ones where it is d of them, where pairs are taken once, and where memory
    is short.

    With (a, b) = kernel.footprint(row) and r = q c, a tile takes a q c^2 + b (q + 1) c numbers.
    """
    if kernel.block is not None:
        return kernel.block
    numbers = (memory or kernel.memory or default_memory()) / itemsize
    most = _PAIRS if jax.default_backend() == "cpu" else _PAIRS_OF_ACCELERATOR
    aspect = TALL if tall else 1
    pair, each = _footprint(kernel, row, tall)
    both = each * (aspect + 1)
    columns = int(
        (np.sqrt(both**2 + 4 * pair * aspect * numbers) - both) / (2 * pair * aspect) + 1e-6
    )
    columns = min(columns, int(np.sqrt(most / aspect)))
    columns = columns // 64 * 64 or columns // 8 * 8 or max(columns, 1)
    if tall and aspect * columns**2 < LARGE_TILE:
        return tile_limits(kernel, row, itemsize, memory, tall=False)
    return aspect * columns, columns


def _footprint(kernel: Any, row: tuple[int, ...], tall: bool) -> np.ndarray:
    # A tall tile is large, so that few of its rows are mended at once, and not that of a gradient.
    return np.array(kernel.footprint(row)) / (2 if tall else 1)


def tile_bytes(kernel: Any, tile: tuple[int, int], row: tuple[int, ...], itemsize: int) -> int:
    """At most so much is held beside arguments and results."""
    pair, each = _footprint(kernel, row, tile[0] > TALL / 2 * tile[1])
    return int(itemsize * (pair * tile[0] * tile[1] + each * sum(tile)))


def tile_shape(m: int, n: int, limits: tuple[int, int]) -> tuple[int, int]:
    """(rows of queries, rows of points) of equal tiles that cover m x n pairs; few queries allow
    more points.
    """
    rows = tile_size(m, limits[0])
    return rows, tile_size(n, max(limits[1], min(limits[0] * limits[1] // rows, limits[0])))


def tile_size(count: int, limit: int) -> int:
    """The size of equal tiles, at most about `limit` long, that waste the fewest rows.

    Sizes are whole vectors of 8, or of 64 in narrow tiles: with 248 points instead of 256 a product
    is a fifth slower.
    """
    tiles = -(-count // limit)
    size = -(-count // tiles)
    whole = 64 if limit in (128, 192, 256) else 8
    return size if tiles == 1 or limit < 8 else min(-(-size // whole) * whole, count)


def leading(tree: Any) -> int:
    """How many rows the arrays of the tree have."""
    return jax.tree.leaves(tree)[0].shape[0]


# Arrays are cut into parts of one size. The last part starts early instead of being padded, so that
# nothing is copied; `_own` says which of its rows no earlier part has.


def part_start(index: Any, size: int, count: int) -> Any:
    """The first row of part `index`."""
    return jnp.minimum(index * size, count - size)


def part_of(tree: Any, index: Any, size: int) -> Any:
    """Part `index` of every array."""
    return jax.tree.map(
        lambda a: lax.dynamic_slice_in_dim(a, part_start(index, size, len(a)), size), tree
    )


def _own(index: Any, size: int, count: int) -> Bool[Array, " size"]:
    start = part_start(index, size, count)
    return start + jnp.arange(size, dtype=start.dtype) >= index * size


def _keep(rows: Bool[Array, " size"], tree: Any) -> Any:
    return jax.tree.map(lambda a: jnp.where(rows.reshape(-1, *(1,) * (a.ndim - 1)), a, 0), tree)


def _add(total: Any, index: Any, part: Any) -> Any:
    def add(a, b):
        start = part_start(index, len(b), len(a))
        return lax.dynamic_update_slice_in_dim(
            a, lax.dynamic_slice_in_dim(a, start, len(b)) + b, start, 0
        )

    return jax.tree.map(add, total, part)


def write_part(whole: Any, index: Any, part: Any) -> Any:
    """`whole` with part `index` replaced."""
    return jax.tree.map(
        lambda a, b: lax.dynamic_update_slice_in_dim(a, b, part_start(index, len(b), len(a)), 0),
        whole,
        part,
    )


def _zeros(shapes: Any, rows: int) -> Any:
    # "Like" what they are to be added to, also in how they vary over the devices of a `shard_map`.
    return jax.tree.map(lambda s: jnp.zeros_like(s, shape=(rows, *s.shape[1:])), shapes)


def by_rows(function: Callable, tree: Any, limit: int) -> Any:
    """function(tree), which treats rows one by one, for about `limit` rows at once."""
    n = leading(tree)
    size = tile_size(n, limit)
    if size == n:
        return function(tree)

    def fill(i, result):
        return write_part(result, i, function(part_of(tree, i, size)))

    return lax.fori_loop(
        0, -(-n // size), fill, _zeros(jax.eval_shape(function, part_of(tree, 0, size)), n)
    )


# --- sums ---


def plus(before: Any, sums: Any) -> Any:
    """before + sums, array by array; `before` None is nothing."""
    return sums if before is None else jax.tree.map(jnp.add, before, sums)


def accumulate(
    tile: Callable, queries: Any, points: Any, weights: Any, limits: tuple[int, int]
) -> Any:
    """The sum of `tile(queries, points, weights)` over tiles of points, for every tile of queries.

    `queries` (leading axis m), `points` and `weights` (leading axis n) are pytrees; the result has
    leading axis m. `limits` bounds the tile by (rows of queries, rows of points). The tile must be
    linear in `weights`: where the last tile repeats points of the one before, its weights are 0.
    """

    def step(queries, points, weights, before):
        return plus(before, tile(queries, points, weights))

    return fold(step, queries, points, weights, limits)


def fold(
    step: Callable,
    queries: Any,
    points: Any,
    weights: Any,
    limits: tuple[int, int],
    total: Any = None,
    span: Any = None,
) -> Any:
    """`accumulate` with sums = step(queries, points, weights, sums), which may add in the loop that
    makes the terms.

    `total` is what was there before, and `span` a range of tiles of queries (default: all).
    """
    m, n = leading(queries), leading(points)
    rows, columns = tile_shape(m, n, limits)
    if total is None:
        first = (
            part_of(queries, 0, rows),
            *(part_of(tree, 0, columns) for tree in (points, weights)),
        )
        total = _zeros(jax.eval_shape(step, *first, None), m)

    def one_row_of_tiles(i, total):
        query = part_of(queries, i, rows)

        def add(j, here):
            weight = _keep(_own(j, columns, n), part_of(weights, j, columns))
            return step(query, part_of(points, j, columns), weight, here)

        here = lax.fori_loop(0, -(-n // columns), add, _zeros(total, rows))
        return _add(total, i, _keep(_own(i, rows, m), here))

    begin, end = span or (0, -(-m // rows))
    return lax.fori_loop(begin, end, one_row_of_tiles, total)


def fold_pairs(tile: Callable, points: Any, weights: Any, limit: int, total: Any, span: Any) -> Any:
    """`fold` where queries and points coincide, from the tiles on and above the diagonal.

    `tile(points_i, points_j, weights_i, weights_j, i == j)` returns what j adds to the sums at i,
    and what i adds at j.
    """
    n = leading(points)
    size = tile_size(n, limit)
    if total is None:
        first = (part_of(tree, 0, size) for tree in (points, points, weights, weights))
        total = _zeros(jax.eval_shape(tile, *first, True)[0], n)

    def one_row_of_tiles(i, total):
        here = part_of(points, i, size)
        own_i = _own(i, size, n)
        weights_i = _keep(own_i, part_of(weights, i, size))

        def add(j, carry):
            sums, total = carry
            own_j = _own(j, size, n)
            at_i, at_j = tile(
                here,
                part_of(points, j, size),
                weights_i,
                _keep(own_j, part_of(weights, j, size)),
                i == j,
            )
            return jax.tree.map(jnp.add, sums, at_i), _add(total, j, _keep(own_j & (i != j), at_j))

        sums, total = lax.fori_loop(i, -(-n // size), add, (_zeros(total, size), total))
        return _add(total, i, _keep(own_i, sums))

    return lax.fori_loop(span[0], span[1], one_row_of_tiles, total)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4), donate_argnums=(8,))
def _run(tile, kernel, name, tall, mesh, queries, points, weights, total, span):
    """`fold`, `fold_pairs` where `queries` is None, or on a mesh all devices' shares of it."""
    tile = partial(tile, kernel, name)
    limits = _limits(kernel, points, tall)
    if queries is None:
        return fold_pairs(tile, points, weights, limits[0], total, span)
    if mesh is None:
        return fold(tile, queries, points, weights, limits, total, span)

    def share(queries, points, weights, total, span):
        def one_step(_, carry):
            (points, weights), total = carry
            total = fold(tile, queries, points, weights, limits, total, span)
            ring = [(device, (device + 1) % mesh.size) for device in range(mesh.size)]
            return jax.tree.map(
                lambda a: lax.ppermute(a, mesh.axis_names, ring), (points, weights)
            ), total

        if total is None:
            total = fold(tile, queries, points, weights, limits, None, (0, 0))
        return lax.fori_loop(0, mesh.size, one_step, ((points, weights), total))[1]

    split = meshes.rows(mesh)
    shares = jax.shard_map(
        share,
        mesh=mesh,
        in_specs=(split, split, split, split, meshes.WHOLE),
        out_specs=split,
        check_vma=False,
    )
    return shares(queries, points, weights, total, span)


def _limits(kernel: Any, points: Any, tall: bool) -> tuple[int, int]:
    leaf = jax.tree.leaves(points)[0]
    return tile_limits(kernel, leaf.shape[1:], leaf.dtype.itemsize, tall=tall)


def sums(
    tile: Callable,
    kernel: Any,
    name: str,
    tall: bool,
    queries: Any,
    points: Any,
    weights: Any,
    *,
    mesh: Mesh | None = None,
    progress: Any = None,
) -> Any:
    """`fold` for tile(kernel, name, queries, points, weights, sums), compiled once for each kernel
    and shapes.

    `tall`: the shape of the tiles, see `tile_limits`. `queries` None: they are the points, and tile
    is one of `fold_pairs`. `mesh`: every process holds all the arguments and gets the whole result;
    each device computes its share of the queries. `progress.update(k)` is called after every k
    queries; under a trace it is not.
    """
    m = leading(points if queries is None else queries)
    if mesh is not None:
        mesh = meshes.automatic(mesh)
        queries, points, weights = (
            meshes.shard(mesh, mode, tree)
            for mode, tree in (("edge", queries), ("edge", points), ("constant", weights))
        )
    devices = 1 if mesh is None else mesh.size
    own = -(-m // devices)
    size = tile_size(own, _limits(kernel, points, tall)[0])
    tiles = -(-own // size)
    step = tiles if progress is None else -(-tiles // 100)
    total, done = None, 0
    for begin in range(0, tiles, step):
        end = min(begin + step, tiles)
        span = jnp.int32(begin), jnp.int32(end)
        total = _run(tile, kernel, name, tall, mesh, queries, points, weights, total, span)
        if progress is not None and not is_traced(*jax.tree.leaves(total)):
            jax.block_until_ready(total)
            progress.update(min(end * size * devices, m) - done)
            done = min(end * size * devices, m)
    return total if mesh is None else jax.tree.map(lambda a: meshes.collect(a, m), total)


# --- inside a tile ---


@jax.custom_jvp
def row_sums(terms: Array) -> Array:
    """jnp.sum(terms, axis=1), in the same loop that evaluates the terms.

    XLA hands a plain sum to a library, and stores the terms for it; not so a sum next to another
    result, here a flag.
    """
    none = jnp.zeros(terms.shape, bool)
    start = jnp.zeros((), terms.dtype), jnp.array(False)
    total, flag = lax.reduce((terms, none), start, lambda a, b: (a[0] + b[0], a[1] | b[1]), (1,))
    return jnp.where(flag, 0, total)


@row_sums.defjvp
def _row_sums_jvp(primals, tangents):
    return row_sums(*primals), jnp.sum(*tangents, axis=1)


def visit_flagged(flagged: Bool[Array, "rows columns"], visit: Callable, state: Any) -> Any:
    """Calls `state = visit(column, hit, state)` until every flagged pair was seen, one pair of each
    row at a time.

    `column` (rows,) is a flagged column of each row, the last one first, and `hit` (rows,) false
    where the row has none left. Few pairs are flagged in practice (each point with itself,
    duplicates), and then this costs next to nothing.
    """
    # Whose maximum is quick, unlike that of integers.
    columns = jnp.arange(flagged.shape[1], dtype=jnp.float32)

    def before(column):
        return jnp.max(
            jnp.where(flagged & (columns[None, :] < column[:, None]), columns, -1), axis=1
        )

    def body(carry):
        column, state = carry
        hit = column >= 0
        return before(column), visit(jnp.where(hit, column, 0).astype(int), hit, state)

    start = before(jnp.full(flagged.shape[0], jnp.inf, jnp.float32)), state
    return lax.while_loop(lambda carry: jnp.any(carry[0] >= 0), body, start)[1]
