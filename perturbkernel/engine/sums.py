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
        total = zero_rows(jax.eval_shape(step, *first, None), m)

    def one_row_of_tiles(i, total):
        query = part_of(queries, i, rows)

        def add(j, here):
            weight = keep_rows(own_rows(j, columns, n), part_of(weights, j, columns))
            return step(query, part_of(points, j, columns), weight, here)

        here = lax.fori_loop(0, -(-n // columns), add, zero_rows(total, rows))
        return add_part(total, i, keep_rows(own_rows(i, rows, m), here))

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
        total = zero_rows(jax.eval_shape(tile, *first, True)[0], n)

    def one_row_of_tiles(i, total):
        here = part_of(points, i, size)
        own_i = own_rows(i, size, n)
        weights_i = keep_rows(own_i, part_of(weights, i, size))

        def add(j, carry):
            sums, total = carry
            own_j = own_rows(j, size, n)
            at_i, at_j = tile(
                here,
                part_of(points, j, size),
                weights_i,
                keep_rows(own_j, part_of(weights, j, size)),
                i == j,
            )
            return jax.tree.map(jnp.add, sums, at_i), add_part(
                total, j, keep_rows(own_j & (i != j), at_j)
            )

        sums, total = lax.fori_loop(i, -(-n // size), add, (zero_rows(total, size), total))
        return add_part(total, i, keep_rows(own_i, sums))

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
