"""The one tiled engine: sums over pairs of points without ever holding an n x m matrix.

A tile is a function of some queries and some points. This module cuts queries and points into tiles
and adds the tiles up. Memory is that of one tile, whatever n and m. Where queries and points are
the same array, every pair of points is evaluated once. On a mesh each device holds its share of the
queries, and the points go round in a ring.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool

from perturbkernel.engine.memory import default_memory

EXACT = lax.Precision.HIGHEST  # accelerators would otherwise round the inputs of float32 products


# --- tiles and their memory ---

# Temporaries of the widest sum (a gradient) of a two-layer kernel, from XLA's own account: arrays
# of the size of the tile, and copies of the rows that meet in it.
ARRAYS, COPIES = 10, 6


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
# nothing is copied; `own_rows` says which of its rows no earlier part has.


def part_start(index: Any, size: int, count: int) -> Any:
    """The first row of part `index`."""
    return jnp.minimum(index * size, count - size)


def part_of(tree: Any, index: Any, size: int) -> Any:
    """Part `index` of every array."""
    return jax.tree.map(
        lambda a: lax.dynamic_slice_in_dim(a, part_start(index, size, len(a)), size), tree
    )


def own_rows(index: Any, size: int, count: int) -> Bool[Array, " size"]:
    start = part_start(index, size, count)
    return start + jnp.arange(size, dtype=start.dtype) >= index * size


def keep_rows(rows: Bool[Array, " size"], tree: Any) -> Any:
    return jax.tree.map(lambda a: jnp.where(rows.reshape(-1, *(1,) * (a.ndim - 1)), a, 0), tree)


def add_part(total: Any, index: Any, part: Any) -> Any:
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


def zero_rows(shapes: Any, rows: int) -> Any:
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
        0, -(-n // size), fill, zero_rows(jax.eval_shape(function, part_of(tree, 0, size)), n)
    )


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
