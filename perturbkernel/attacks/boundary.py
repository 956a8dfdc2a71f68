"""The boundary of the decisions, paths from the inputs across it, and a bracket around it."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.attacks.boxes import Box, Rows, clip
from perturbkernel.attacks.norms import counts, lengths

Row = Float[Array, " m"]
_BISECTIONS = 60  # at most: more than the digits of float64


class Boundary(NamedTuple):
    """The boundary of the decisions at m inputs, in terms of perturbations of them.

    Attributes:
        value: delta -> how far beyond the boundary, (m,).
        evaluate: delta -> the value, its gradient (m, d), whether that is zero (m,).
        nearest_beyond: (delta, value, gradient) -> the smallest perturbation beyond the boundary of
            the predictor linearised at delta.
        at_zero: (m,), the value at 0.
        scale: (m,), of the data, in the norm; a step into the unknown is at most so many times as
            long as it is likely to make sense.
        norm, box: what is small, and where perturbations may lie.
    """

    value: Callable
    evaluate: Callable
    nearest_beyond: Callable
    at_zero: Row
    scale: Row
    norm: str
    box: Box


class _Bracket(NamedTuple):
    """Two points of a path, (m,) each: short of the boundary and beyond it."""

    low: Row
    high: Row


def path(p: Rows, order: Array, t: Row, norm: str, box: Box) -> Rows:
    """From 0 at t = 0 to p at t = 1: t p, or for l0 the first entries of p in their order.

    Example:
        >>> p = jnp.asarray([[4.0, -2.0]])
        >>> path(p, no_order(p, "l2"), jnp.asarray([0.5]), "l2", None).tolist()
        [[2.0, -1.0]]
    """
    if not counts(norm):
        part = t[:, None]
        return clip(part * p, box)
    count = jnp.ceil(t * lengths(p, norm))
    place = order.astype(t.dtype)
    kept = place < count[:, None]
    return jnp.where(kept, p, 0)


def no_order(like: Rows, norm: str) -> Array:
    """The order of entries before there is one; of a single column where the norm needs none.

    Example:
        >>> no_order(jnp.ones((2, 3)), "l2").shape
        (2, 1)
    """
    shape = like.shape
    if not counts(norm):
        shape = (len(like), 1)
    return jnp.zeros(shape, int)


def bracket(
    boundary: Boundary, p: Rows, order: Array, wanted: Array, tolerance: Array
) -> tuple[Rows, Rows]:
    """Two points of the path to p, beyond the boundary and short of it, by bisection, where wanted.

    They differ by `tolerance` of their size, or one entry. What is in between is cut down to a
    third, and widened on both sides: a value that rounds differently elsewhere has the same sign.

    Example:
        >>> half, one = jnp.asarray([[0.5]]), jnp.asarray([1.0])
        >>> def value(delta):
        ...     return delta[:, 0] - 0.25
        >>> boundary = Boundary(value, value, value, -one / 4, one, "l2", None)
        >>> beyond, short = bracket(boundary, half, no_order(half, "l2"), one > 0, jnp.asarray(0.1))
        >>> bool(short[0, 0] < 0.25 < beyond[0, 0])
        True
    """
    norm = boundary.norm
    is_l0 = counts(norm)
    one = jnp.ones(len(p), p.dtype)

    def at(t: Row) -> Rows:
        return path(p, order, t, norm, boundary.box)

    def is_beyond(t: Row) -> Array:
        return boundary.value(at(t)) > 0

    def wide(bounds: _Bracket) -> Array:
        width = bounds.high - bounds.low
        if is_l0:
            # A little less than one entry.
            entries = jnp.maximum(lengths(p, norm), 1)
            allowed = 0.99 / entries
        else:
            # A third, to which another is added on both sides.
            allowed = tolerance / 3 * bounds.high
        return wanted & (width > allowed)

    bounds = _bisected(is_beyond, wide, _Bracket(0 * one, one))
    if not is_l0:
        bounds = _widened(is_beyond, bounds)
    outside = at(bounds.high)
    return outside, at(bounds.low)


def _bisected(is_beyond: Callable, wide: Callable, bounds: _Bracket) -> _Bracket:
    """The bracket, halved where and as long as it is wide."""

    def unfinished(carry: tuple[Array | int, _Bracket]) -> Array:
        i, bounds = carry
        some = jnp.any(wide(bounds))
        return (i < _BISECTIONS) & some

    def narrow(carry: tuple[Array | int, _Bracket]) -> tuple[Array | int, _Bracket]:
        i, bounds = carry
        t = (bounds.low + bounds.high) / 2
        beyond = is_beyond(t)
        moves = wide(bounds)
        halved = _Bracket(
            low=jnp.where(moves & ~beyond, t, bounds.low),
            high=jnp.where(moves & beyond, t, bounds.high),
        )
        return i + 1, halved

    _, bounds = lax.while_loop(unfinished, narrow, (0, bounds))
    return bounds


def _widened(is_beyond: Callable, bounds: _Bracket) -> _Bracket:
    """The bracket, its width added above, then below, where the values there allow it."""
    width = bounds.high - bounds.low

    def widen(side: Array, bounds: _Bracket) -> _Bracket:
        above = side == 0
        t = jnp.where(above, bounds.high + width, bounds.low - width)
        beyond = is_beyond(t)
        lower = (side == 1) & ~beyond & (t > 0)
        higher = above & beyond
        return _Bracket(
            low=jnp.where(lower, t, bounds.low),
            high=jnp.where(higher, t, bounds.high),
        )

    # A loop: the value, which may be large, is compiled once for both sides.
    return lax.fori_loop(0, 2, widen, bounds)
