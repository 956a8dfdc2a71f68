"""Sums over points of a function of pairs, differentiated in every mode and any number of times.

A sum is

    S(queries, points, weights)_j = sum_n f(queries_j, points_n, weights_n),

f a function of the kernel's tile and linear in the weights. So are its derivatives, which is why
they take no more memory than it does:

- forward mode: queries, points and weights together with their tangents, and f its tangent;
- reverse mode, in the queries: queries together with their cotangents, and f its pull-back;
- reverse mode, in points and weights: they are the queries of a sum over what were the queries,
  with the cotangents for weights.

`Tangent`, `QueryPullback` and `PointPullback` are these functions f, made from that of the sum; so
are theirs, for derivatives of second order and beyond.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from perturbkernel.engine.arguments import check_undifferentiated, is_zero
from perturbkernel.engine.linear import linear
from perturbkernel.engine.sums import plus, row_sums, sums
from perturbkernel.engine.tiles import exact_matmul
from perturbkernel.kernels.dense import careful_tile


class Setting(NamedTuple):
    """What of a sum is constant: the kernel's name, whether queries and points are the very same
    array, the devices, and whether it is evaluated in float64 while JAX is set to float32.
    """

    name: str
    same: bool = False
    mesh: Mesh | None = None
    wide: bool = False


# --- functions of pairs ---


@dataclass(frozen=True)
class Weighted:
    """sum_n coef_n tile(z_j, x_n)."""

    def __call__(self, tile: Callable, z: Array, x: Array, coef: Array) -> Array:
        values = tile(z, x)
        if coef.ndim == 1:
            return row_sums(values * coef[None, :])
        return exact_matmul(values, coef)

    def dtypes(self, queries: Any) -> Any:
        """Of its result where JAX is set to float32."""
        return np.dtype(np.float32)


@dataclass(frozen=True)
class Tangent:
    """The tangent of f. Queries, points and weights are pairs of a tree and the tangents of its
    arrays, None for those that do not move.
    """

    f: Any

    def __call__(self, tile: Callable, queries: Any, points: Any, weights: Any) -> Any:
        queries, *a = queries
        points, *b = points
        weights, *c = weights
        values, tree = jax.tree.flatten((queries, points, weights))
        tangents = [tangent for (group,) in (a, b, c) for tangent in group]
        which = [i for i, tangent in enumerate(tangents) if tangent is not None]

        def of_those(*moving):
            return self.f(tile, *tree.unflatten(_replaced(values, which, moving)))

        at = [values[i] for i in which]
        along = [tangents[i] for i in which]
        _, change = jax.jvp(of_those, at, along)
        return change

    def dtypes(self, queries: Any) -> Any:
        """Of its result where JAX is set to float32."""
        return self.f.dtypes(queries[0])


@dataclass(frozen=True)
class QueryPullback:
    """The cotangents of those queries of f that are asked for; queries are those of f and the
    cotangents of its result.
    """

    f: Any
    asked: tuple[bool, ...]

    def __call__(self, tile: Callable, queries: Any, points: Any, weights: Any) -> Any:
        queries, cotangents = queries
        values, tree = jax.tree.flatten(queries)
        which = np.flatnonzero(self.asked)

        def of_those(*moving):
            return self.f(tile, tree.unflatten(_replaced(values, which, moving)), points, weights)

        _, pull_back = jax.vjp(of_those, *(values[i] for i in which))
        return pull_back(cotangents)

    def dtypes(self, queries: Any) -> Any:
        """Of its result where JAX is set to float32."""
        values = jax.tree.leaves(queries[0])
        return tuple(values[i].dtype for i in np.flatnonzero(self.asked))


@dataclass(frozen=True)
class PointPullback:
    """The cotangents of those points and weights of f that are asked for, which are its queries;
    its points are the queries of f, its weights the cotangents of the result.
    """

    f: Any
    asked: tuple[bool, ...]

    def __call__(self, tile: Callable, queries: Any, points: Any, cotangents: Any) -> Any:
        values, tree = jax.tree.flatten(queries)
        which = np.flatnonzero(self.asked)

        def of_those(*moving):
            own = tree.unflatten(_replaced(values, which, moving))
            return self.f(tile, points, *own)

        _, pull_back = jax.vjp(of_those, *(values[i] for i in which))
        return pull_back(cotangents)

    def dtypes(self, queries: Any) -> Any:
        """Of its result where JAX is set to float32."""
        values = jax.tree.leaves(queries)
        return tuple(values[i].dtype for i in np.flatnonzero(self.asked))


def _replaced(values: list, which: Any, moving: Any) -> list:
    values = list(values)
    for i, value in zip(which, moving, strict=True):
        values[i] = value
    return values


# --- their sums ---


def careful_sum(f: Any, setting: Setting, kernel: Any, *arrays: Any) -> Any:
    """The sum of any f, of careful tiles: queries, points, weights."""
    name, _, mesh, _ = setting
    return sums(_Tile(f), _unprepared, kernel, name, False, *arrays, mesh=mesh)


@dataclass(frozen=True)
class _Tile:
    f: Any

    def __call__(self, kernel, name, _, queries, points, weights, before):
        return plus(before, self.f(careful_tile(kernel, name), queries, points, weights))


def _unprepared(kernel: Any, queries: Any, points: Any) -> tuple[Any, Any, Any]:
    return queries, points, None


_WIDE = np.dtype(np.float64)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def pair_sum(
    evaluate: Callable,
    f: Any,
    setting: Setting,
    argument: Any,
    queries: Any,
    points: Any,
    weights: Any,
) -> Any:
    """evaluate(f, setting, argument, queries, points, weights), which is the sum of f over points.

    Differentiable in queries, points and weights, not in what the kernel, of `as_argument`, holds.
    """
    arrays = queries, points, weights
    if not setting.wide:
        return evaluate(f, setting, argument, *arrays)
    with jax.enable_x64(True):
        widened = jax.tree.map(lambda array: jnp.asarray(array, _WIDE), arrays)
        result = evaluate(f, setting, argument, *widened)
        return jax.tree.map(lambda array, dtype: array.astype(dtype), result, f.dtypes(queries))


def _rule(evaluate, f, setting, primals, tangents):
    check_undifferentiated(tangents[0])
    groups = [
        tuple(None if is_zero(one) else one for one in jax.tree.leaves(group, is_leaf=is_zero))
        for group in tangents[1:]
    ]
    result = pair_sum(evaluate, f, setting, *primals)
    asked = tuple(tuple(tangent is not None for tangent in group) for group in groups)
    if not any(map(any, asked)):
        return result, jax.tree.map(jnp.zeros_like, result)
    total = partial(pair_sum, evaluate)
    forward = partial(_forward, total, f, setting)
    backward = partial(_backward, total, f, setting, asked)
    return result, linear(forward, backward, primals, groups, like=result)


pair_sum.defjvp(_rule, symbolic_zeros=True)


def _forward(total, f, setting, residuals, tangents):
    argument, *groups = residuals
    pairs = zip(groups, tangents, strict=True)
    return total(Tangent(f), setting, argument, *pairs)


def _backward(total, f, setting, asked, residuals, cotangents):
    """Cotangents as `_rule` has tangents: a list of groups."""
    argument, queries, points, weights = residuals
    of_queries, of_points, of_weights = asked
    to_queries = to_points = ()
    if any(of_queries):
        pullback = QueryPullback(f, of_queries)
        to_queries = total(pullback, setting, argument, (queries, cotangents), points, weights)
    if any(of_points + of_weights):
        pullback = PointPullback(f, of_points + of_weights)
        own = points, weights
        to_points = total(pullback, setting, argument, own, queries, cotangents)
    found = iter((*to_queries, *to_points))
    return [tuple(next(found) if one else None for one in group) for group in asked]
