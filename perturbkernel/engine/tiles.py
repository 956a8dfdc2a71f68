"""How sums over pairs of points are cut into tiles, so that no n x m matrix is ever held.

A tile is a function of some queries and some points. Memory is that of one tile, whatever n and m.
This module says how large a tile is, and cuts arrays into the rows that belong to one; `sums` adds
the tiles up.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool

from perturbkernel.engine.memory import default_memory

# Accelerators would otherwise round the inputs of float32 products.
EXACT = lax.Precision.HIGHEST


def exact_matmul(a: Array, b: Array) -> Array:
    """The matrix product a @ b in the full precision of its arguments, on every device."""
    return jnp.matmul(a, b, precision=EXACT)


# --- tiles and their memory ---

# Temporaries of the widest sum (a gradient) of a two-layer kernel, from XLA's own account: arrays
# of the size of the tile, and copies of the rows that meet in it.
ARRAYS, COPIES = 10, 6
# Pairs of a tile, at most. On a CPU more of them leave the cache.
_PAIRS, _PAIRS_OF_ACCELERATOR = 2**20, 2**25
# Queries for each point of a tall tile.
TALL = 16
# Pairs of a tile from which on it is worth compiling its evaluation twice, quick and careful.
LARGE_TILE = 2**18


def tile_limits(
    kernel: Any,
    row: tuple[int, ...],
    itemsize: int,
    memory: int | None = None,
    *,
    tall: bool,
) -> tuple[int, int]:
    """The largest (rows of queries, rows of points) of a tile: `kernel.block`, or what fits into
    `memory` bytes.

    `memory` None: the kernel's own, or the device's default. Each tile reads its points, d numbers
    each, and adds what each of its queries gets to the sums: `tall` tiles are best where that is a
    number or a few, square ones where it is d of them, where pairs are taken once, and where memory
    is short.

    With (a, b) = kernel.footprint(row), q queries for each point and c points, a tile takes

        a q c^2 + b (q + 1) c

    numbers.
    """
    if kernel.block is not None:
        return kernel.block
    numbers = (memory or kernel.memory or default_memory()) / itemsize
    on_cpu = jax.default_backend() == "cpu"
    most = _PAIRS if on_cpu else _PAIRS_OF_ACCELERATOR
    aspect = TALL if tall else 1
    pair, each = _footprint(kernel, row, tall)
    # The root c of  quadratic c^2 + linear c = numbers,  safe from rounding.
    quadratic = pair * aspect
    linear = each * (aspect + 1)
    root = np.sqrt(linear**2 + 4 * quadratic * numbers)
    columns = int((root - linear) / (2 * quadratic) + 1e-6)
    columns = min(columns, int(np.sqrt(most / aspect)))
    columns = _whole_vectors(columns)
    if tall and aspect * columns**2 < LARGE_TILE:
        return tile_limits(kernel, row, itemsize, memory, tall=False)
    return aspect * columns, columns


def _whole_vectors(count: int) -> int:
    """`count` rounded down to a multiple of 64, or of 8, where it is not less than that."""
    for whole in (64, 8):
        if count >= whole:
            return count // whole * whole
    return max(count, 1)


def _footprint(kernel: Any, row: tuple[int, ...], tall: bool) -> np.ndarray:
    numbers = np.array(kernel.footprint(row))
    # A tall tile is large, so that few of its rows are mended at once, and not that of a gradient.
    return numbers / 2 if tall else numbers


def tile_bytes(
    kernel: Any,
    tile: tuple[int, int],
    row: tuple[int, ...],
    itemsize: int,
) -> int:
    """The bytes held beside arguments and results while a tile is evaluated, at most."""
    rows, columns = tile
    tall = rows > TALL / 2 * columns
    pair, each = _footprint(kernel, row, tall)
    numbers = pair * rows * columns + each * (rows + columns)
    return int(itemsize * numbers)


def tile_shape(
    m: int,
    n: int,
    limits: tuple[int, int],
) -> tuple[int, int]:
    """(rows of queries, rows of points) of equal tiles that cover m x n pairs.

    Where there are fewer queries than a tile may have, it may have more points.
    """
    most_rows, most_columns = limits
    rows = tile_size(m, most_rows)
    as_large = most_rows * most_columns // rows
    most = max(most_columns, min(as_large, most_rows))
    columns = tile_size(n, most)
    return rows, columns


def tile_size(count: int, limit: int) -> int:
    """The size of equal tiles, at most about `limit` long, that waste the fewest rows.

    Sizes are whole vectors of 8, or of 64 in narrow tiles: with 248 points instead of 256 a product
    is a fifth slower.
    """
    tiles = -(-count // limit)
    size = -(-count // tiles)
    if tiles == 1 or limit < 8:
        return size
    narrow = limit in (128, 192, 256)
    whole = 64 if narrow else 8
    rounded_up = -(-size // whole) * whole
    return min(rounded_up, count)


def leading(tree: Any) -> int:
    """How many rows the arrays of the tree have."""
    first = jax.tree.leaves(tree)[0]
    return first.shape[0]


# --- parts of arrays ---

# Arrays are cut into parts of one size. The last part starts early instead of being padded, so that
# nothing is copied; `own_rows` says which of its rows no earlier part has.


def part_start(
    index: Any,
    size: int,
    count: int,
) -> Any:
    """The first row of part `index`."""
    return jnp.minimum(index * size, count - size)


def part_of(tree: Any, index: Any, size: int) -> Any:
    """Part `index` of every array."""

    def cut(array):
        start = part_start(index, size, len(array))
        return lax.dynamic_slice_in_dim(array, start, size)

    return jax.tree.map(cut, tree)


def own_rows(
    index: Any,
    size: int,
    count: int,
) -> Bool[Array, " size"]:
    """Which rows of part `index` no earlier part has."""
    start = part_start(index, size, count)
    offsets = jnp.arange(size, dtype=start.dtype)
    rows = start + offsets
    return rows >= index * size


def keep_rows(rows: Bool[Array, " size"], tree: Any) -> Any:
    """The arrays with zeros in the rows that are not kept."""

    def keep(array):
        columns = (1,) * (array.ndim - 1)
        kept = rows.reshape(-1, *columns)
        return jnp.where(kept, array, 0)

    return jax.tree.map(keep, tree)


def add_part(total: Any, index: Any, part: Any) -> Any:
    """`total` with `part` added to its part `index`."""

    def add(whole, own):
        start = part_start(index, len(own), len(whole))
        before = lax.dynamic_slice_in_dim(whole, start, len(own))
        after = before + own
        return lax.dynamic_update_slice_in_dim(whole, after, start, 0)

    return jax.tree.map(add, total, part)


def write_part(whole: Any, index: Any, part: Any) -> Any:
    """`whole` with part `index` replaced."""

    def write(array, own):
        start = part_start(index, len(own), len(array))
        return lax.dynamic_update_slice_in_dim(array, own, start, 0)

    return jax.tree.map(write, whole, part)


def zero_rows(shapes: Any, rows: int) -> Any:
    """Zeros like the arrays, with so many rows."""

    # "Like" what they are to be added to, also in how they vary over the devices of a `shard_map`.
    def zeros(like):
        shape = (rows, *like.shape[1:])
        return jnp.zeros_like(like, shape=shape)

    return jax.tree.map(zeros, shapes)


def by_rows(function: Callable, tree: Any, limit: int) -> Any:
    """function(tree), for a function that treats rows one by one, about `limit` rows at once."""
    n = leading(tree)
    size = tile_size(n, limit)
    if size == n:
        return function(tree)

    def fill(i, result):
        own = function(part_of(tree, i, size))
        return write_part(result, i, own)

    parts = -(-n // size)
    shapes = jax.eval_shape(function, part_of(tree, 0, size))
    return lax.fori_loop(0, parts, fill, zero_rows(shapes, n))


def visit_flagged(
    flagged: Bool[Array, "rows columns"],
    visit: Callable,
    state: Any,
) -> Any:
    """The last of the states `state = visit(column, hit, state)`, one flagged pair of each row at a
    time, until all were seen.

    `column` (rows,) is a flagged column of each row, the last one first, and `hit` (rows,) false
    where the row has none left. Few pairs are flagged in practice (each point with itself,
    duplicates), and then this costs next to nothing.
    """
    # Floating-point numbers, since their maximum is quick, unlike that of integers.
    columns = jnp.arange(flagged.shape[1], dtype=jnp.float32)

    def before(column):
        """The last flagged column before `column` in each row; -1 if there is none."""
        earlier = columns[None, :] < column[:, None]
        found = jnp.where(flagged & earlier, columns, -1)
        return jnp.max(found, axis=1)

    def body(carry):
        column, state = carry
        hit = column >= 0
        earlier = before(column)
        index = jnp.where(hit, column, 0)
        state = visit(index.astype(int), hit, state)
        return earlier, state

    def unfinished(carry):
        column, _ = carry
        return jnp.any(column >= 0)

    beyond = jnp.full(flagged.shape[0], jnp.inf, jnp.float32)
    start = before(beyond), state
    _, state = lax.while_loop(unfinished, body, start)
    return state
