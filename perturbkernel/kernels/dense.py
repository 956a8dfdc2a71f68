"""The dense tiles of a kernel, careful and quick, with a check of what they return."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from perturbkernel.engine.sums import row_sums
from perturbkernel.engine.tiles import LARGE_TILE


def careful_tile(kernel: Any, name: str) -> Callable[[Array, Array], Array]:
    """The function (z, x) -> (rows of z, rows of x) that is `kernel.tile`.

    Where it is traced, TypeError tells the author of a kernel what is wrong with its result.
    """
    return partial(_checked_tile, kernel, "tile", name)


def quick_tile(kernel: Any, name: str) -> Callable[..., Array] | None:
    """The function that is `kernel.quick_tile`; None where the class that defines the kernel's
    `tile` has none.
    """
    if not defines(kernel, "quick_tile"):
        return None
    return partial(_checked_tile, kernel, "quick_tile", name)


def prepare(kernel: Any, queries: Any, points: Any) -> tuple[Any, Any, Any]:
    """((queries, numbers of them), (points, numbers of them), what all tiles share), by
    `kernel.prepare`; None where the kernel has nothing to prepare.

    What queries and points hold first are z and x.
    """
    of_queries = of_points = shared = None
    if defines(kernel, "prepare"):
        z = jax.tree.leaves(queries)[0]
        x = jax.tree.leaves(points)[0]
        of_queries, of_points, shared = kernel.prepare(z, x)
    return (queries, of_queries), (points, of_points), shared


def defines(kernel: Any, method: str) -> bool:
    """Whether the class that defines the kernel's `tile` defines the method, too: one that is
    inherited from further up belongs to another tile.
    """
    owners = [cls for cls in type(kernel).__mro__ if "tile" in vars(cls)]
    return method in vars(owners[0])


def _checked_tile(
    kernel: Any,
    method: str,
    name: str,
    z: Array,
    x: Array,
    *prepared: Any,
) -> Array:
    evaluate = getattr(kernel, method)
    called = f"{type(kernel).__name__}.{method}({name!r}, z, x)"
    _check_signature(evaluate, called, (name, z, x, *prepared))
    tile = evaluate(name, z, x, *prepared)
    wanted = f"{(len(z), len(x))}, {z.dtype}"
    got = _described(tile)
    if got != wanted:
        raise TypeError(
            f"{called} must return an array of shape (rows of z, rows of x) and of the dtype of z, "
            f"here {wanted}; got {got}"
        )
    return tile


def _check_signature(evaluate: Callable, called: str, arguments: tuple) -> None:
    """Raises TypeError where the method cannot be called so."""
    try:
        signature = inspect.signature(evaluate)
    except ValueError:  # not written in Python
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(
            f"{called} is how tiles are evaluated, with the kernel's name, queries z and points x, "
            f"and what `prepare` returned, if there is one; but the method has the signature "
            f"{signature}: {error}"
        ) from None


def _described(value: Any) -> str:
    """Shape and dtype of an array; the type of what is none."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.shape}, {value.dtype}"
    return type(value).__name__


def quick_tile_for(
    kernel: Any,
    name: str,
    pairs: int,
) -> Callable[..., Array] | None:
    """The quick tile, where a tile has enough pairs for it to be worth its compilation."""
    return quick_tile(kernel, name) if pairs >= LARGE_TILE else None


def tiles_with_nan(
    matrix: Array,
    tile: tuple[int, int],
    counts: tuple[int, int],
) -> Array:
    """(down * across,): which tiles have a NaN.

    By sums over the columns of each tile, in every row, and then in the rows of a tile.
    """
    n, m = matrix.shape
    rows, columns = tile
    down, across = counts
    padded = jnp.pad(matrix, ((0, 0), (0, across * columns - m)))
    totals = row_sums(padded.reshape(n * across, columns))
    missing = jnp.isnan(totals).reshape(n, across)
    missing = jnp.pad(missing, ((0, down * rows - n), (0, 0)))
    missing = missing.reshape(down, rows, across).any(axis=1)
    return missing.ravel()
