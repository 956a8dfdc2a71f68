"""Sums over tiles: on one device, where queries and points coincide, and on a mesh."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array

from perturbkernel import meshes
from perturbkernel.checks import is_traced
from perturbkernel.engine.arguments import argument_value, as_argument, has_arrays
from perturbkernel.engine.tiles import (
    add_part,
    keep_rows,
    leading,
    own_rows,
    part_of,
    tile_limits,
    tile_shape,
    tile_size,
    zero_rows,
)

# --- sums ---

# A span without tiles.
NOTHING = 0, 0


def plus(before: Any, sums: Any) -> Any:
    """before + sums, array by array; `before` None is nothing."""
    return sums if before is None else jax.tree.map(jnp.add, before, sums)


def accumulate(
    tile: Callable,
    queries: Any,
    points: Any,
    weights: Any,
    limits: tuple[int, int],
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
    """The sums of `accumulate`, by sums = step(queries, points, weights, sums), which may add in
    the loop that makes the terms.

    `total` is what was there before, `span` a range of tiles of queries (default: all). A single
    tile takes no loop, out of which XLA would move what it can, and store it.
    """
    m, n = leading(queries), leading(points)
    rows, columns = tile_shape(m, n, limits)
    if total is None:
        query = part_of(queries, 0, rows)
        point = part_of(points, 0, columns)
        weight = part_of(weights, 0, columns)
        shapes = jax.eval_shape(step, query, point, weight, None)
        total = zero_rows(shapes, m)

    def one_row_of_tiles(i, total):
        query = part_of(queries, i, rows)

        def add(j, here):
            own = own_rows(j, columns, n)
            weight = keep_rows(own, part_of(weights, j, columns))
            point = part_of(points, j, columns)
            return step(query, point, weight, here)

        tiles = -(-n // columns)
        here = lax.fori_loop(0, tiles, add, zero_rows(total, rows))
        own = own_rows(i, rows, m)
        return add_part(total, i, keep_rows(own, here))

    begin, end = span or (0, -(-m // rows))
    if (rows, columns) == (m, n) and span is not NOTHING:
        return step(queries, points, weights, total)
    return lax.fori_loop(begin, end, one_row_of_tiles, total)


def fold_pairs(
    tile: Callable,
    points: Any,
    weights: Any,
    limit: int,
    total: Any,
    span: Any,
) -> Any:
    """The sums of `fold` where queries and points coincide, from the tiles on and above the
    diagonal.

    `tile(points_i, points_j, weights_i, weights_j)` returns what j adds to the sums at i,
    and what i adds at j.
    """
    n = leading(points)
    size = tile_size(n, limit)
    if size == n:
        at_points, _ = tile(points, points, weights, weights)
        return plus(total, at_points)
    if total is None:
        point = part_of(points, 0, size)
        weight = part_of(weights, 0, size)
        shapes, _ = jax.eval_shape(tile, point, point, weight, weight)
        total = zero_rows(shapes, n)

    def one_row_of_tiles(i, total):
        here = part_of(points, i, size)
        own_i = own_rows(i, size, n)
        weights_i = keep_rows(own_i, part_of(weights, i, size))

        def add(j, carry):
            sums, total = carry
            own_j = own_rows(j, size, n)
            there = part_of(points, j, size)
            weights_j = keep_rows(own_j, part_of(weights, j, size))
            at_i, at_j = tile(here, there, weights_i, weights_j)
            sums = plus(sums, at_i)
            # On the diagonal, j is i: each pair was counted there.
            at_j = keep_rows(own_j & (i != j), at_j)
            return sums, add_part(total, j, at_j)

        tiles = -(-n // size)
        start = zero_rows(total, size), total
        sums, total = lax.fori_loop(i, tiles, add, start)
        return add_part(total, i, keep_rows(own_i, sums))

    begin, end = span
    return lax.fori_loop(begin, end, one_row_of_tiles, total)


@partial(jax.jit, static_argnums=(0, 1, 3, 4, 5), donate_argnums=(9,))
def _run(tile, prepare, kernel, name, tall, mesh, queries, points, weights, total, span):
    """The sums of `fold`, of `fold_pairs` where `queries` is None, or on a mesh all devices' shares
    of them.
    """
    argument = kernel
    kernel = argument_value(argument)
    limits = _limits(kernel, points, tall)
    if queries is None:
        _, points, shared = prepare(kernel, points, points)
        tile = partial(tile, kernel, name, shared)
        return fold_pairs(tile, points, weights, limits[0], total, span)
    queries, points, shared = prepare(kernel, queries, points)
    if mesh is None:
        tile = partial(tile, kernel, name, shared)
        return fold(tile, queries, points, weights, limits, total, span)

    # The points go round: each device hands those it had to the next one.
    ring = [(device, (device + 1) % mesh.size) for device in range(mesh.size)]

    def hand_on(array):
        return lax.ppermute(array, mesh.axis_names, ring)

    def share(argument, queries, points, weights, shared, total, span):
        own_tile = partial(tile, argument_value(argument), name, shared)

        def one_step(_, carry):
            points, weights, total = carry
            total = fold(own_tile, queries, points, weights, limits, total, span)
            points, weights = jax.tree.map(hand_on, (points, weights))
            return points, weights, total

        if total is None:
            total = fold(own_tile, queries, points, weights, limits, None, NOTHING)
        start = points, weights, total
        _, _, total = lax.fori_loop(0, mesh.size, one_step, start)
        return total

    split = meshes.rows(mesh)
    shares = jax.shard_map(
        share,
        mesh=mesh,
        in_specs=(meshes.WHOLE, split, split, split, meshes.WHOLE, split, meshes.WHOLE),
        out_specs=split,
        check_vma=False,
    )
    return shares(argument, queries, points, weights, shared, total, span)


def _limits(kernel: Any, points: Any, tall: bool) -> tuple[int, int]:
    leaf = jax.tree.leaves(points)[0]
    return tile_limits(kernel, leaf.shape[1:], leaf.dtype.itemsize, tall=tall)


def sums(
    tile: Callable,
    prepare: Callable,
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
    """The sums of `fold` for tile(kernel, name, shared, queries, points, weights, sums), compiled
    once for each kernel and shapes; arrays that a kernel holds are arguments of the program.

    `prepare(kernel, queries, points)` returns the queries and points of the tiles, with what is
    computed for all of them at once, and what all tiles share.

    `tall`: the shape of the tiles, see `tile_limits`. `queries` None: they are the points, and tile
    is one of `fold_pairs`. `mesh`: every process holds all the arguments and gets the whole result;
    each device computes its share of the queries. `progress.update(k)` is called after every k
    queries; under a trace it is not.
    """
    m = leading(points if queries is None else queries)
    devices = 1
    if mesh is not None:
        mesh = meshes.automatic(mesh)
        devices = mesh.size
        queries = meshes.shard(mesh, "edge", queries)
        points = meshes.shard(mesh, "edge", points)
        weights = meshes.shard(mesh, "constant", weights)
        kernel = meshes.replicate(mesh, kernel) if has_arrays(kernel) else kernel
    argument = as_argument(kernel)
    own = -(-m // devices)
    most_rows, _ = _limits(kernel, points, tall)
    size = tile_size(own, most_rows)
    tiles = -(-own // size)
    # Progress is reported about a hundred times.
    step = tiles if progress is None else -(-tiles // 100)
    total, done = None, 0
    for begin in range(0, tiles, step):
        end = min(begin + step, tiles)
        span = jnp.int32(begin), jnp.int32(end)
        arrays = queries, points, weights, total, span
        total = _run(tile, prepare, argument, name, tall, mesh, *arrays)
        if progress is not None and not is_traced(*jax.tree.leaves(total)):
            jax.block_until_ready(total)
            done_before, done = done, min(end * size * devices, m)
            progress.update(done - done_before)
    if mesh is None:
        return total
    return jax.tree.map(lambda array: meshes.collect(array, m), total)


# --- inside a tile ---


@jax.custom_jvp
def row_sums(terms: Array) -> Array:
    """jnp.sum(terms, axis=1), in the same loop that evaluates the terms."""
    return fused_row_sums(terms)


def fused_row_sums(terms: Array) -> Array:
    """`row_sums`, of whole numbers too, not to be differentiated.

    XLA hands a plain sum to a library, and stores the terms for it; not so a sum next to another
    result, here a flag. The flags are not made of the terms, which would be stored for them.
    """

    def add(a, b):
        (total, flag), (term, other) = a, b
        return total + term, flag | other

    no_flags = jnp.zeros(terms.shape, bool)
    start = jnp.zeros((), terms.dtype), jnp.array(False)
    total, flag = lax.reduce((terms, no_flags), start, add, (1,))
    return jnp.where(flag, jnp.zeros_like(total), total)


@row_sums.defjvp
def _row_sums_jvp(primals, tangents):
    return row_sums(*primals), jnp.sum(*tangents, axis=1)
