"""The boundary of the decisions, paths from the inputs across it, and a bracket around it."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.attacks.boxes import Box, Rows, clip
from perturbkernel.attacks.host import part
from perturbkernel.attacks.norms import counts, lengths

Row = Float[Array, " m"]
_BISECTIONS = 60  # at most: more than the digits of float64


class Boundary(NamedTuple):
    """The boundary of the decisions at m inputs, in terms of perturbations of them.

    Attributes:
        value: delta -> how far beyond the boundary, (m,).
        evaluate: delta -> `Seen`: the value, its gradient, whether that is zero.
        nearest_beyond: (delta, Seen) -> the smallest perturbation beyond the boundary of the
            predictor linearised at delta.
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
    bounds = _bisected(boundary, p, order, wanted, tolerance)
    if not counts(boundary.norm):
        bounds = _widened(boundary, bounds, p, order)
    return _both_ends(bounds, p, order, boundary.norm, boundary.box)


@part("norm")
def _both_ends(bounds: _Bracket, p: Rows, order: Array, norm: str, box: Box) -> tuple[Rows, Rows]:
    outside = path(p, order, bounds.high, norm, box)
    return outside, path(p, order, bounds.low, norm, box)


def _wide(bounds: _Bracket, p: Rows, wanted: Array, tolerance: Array, norm: str) -> Array:
    """Where the bracket is wider than wanted, (m,)."""
    width = bounds.high - bounds.low
    if counts(norm):
        # A little less than one entry.
        entries = jnp.maximum(lengths(p, norm), 1)
        allowed = 0.99 / entries
    else:
        # A third, to which another is added on both sides.
        allowed = tolerance / 3 * bounds.high
    return wanted & (width > allowed)


def _bisected(
    boundary: Boundary, p: Rows, order: Array, wanted: Array, tolerance: Array
) -> _Bracket:
    """The bracket of the whole path, halved where and as long as it is wide."""
    norm = boundary.norm

    def unfinished(carry: tuple[Array | int, _Bracket]) -> Array:
        i, bounds = carry
        return _unfinished(i, bounds, p, wanted, tolerance, norm)

    def narrow(carry: tuple[Array | int, _Bracket]) -> tuple[Array | int, _Bracket]:
        i, bounds = carry
        here = boundary.value(_halfway(bounds, p, order, norm, boundary.box))
        return i + 1, _halved(bounds, here, p, wanted, tolerance, norm)

    _, bounds = lax.while_loop(unfinished, narrow, (0, _whole(p)))
    return bounds


@part()
def _whole(p: Rows) -> _Bracket:
    one = jnp.ones(len(p), p.dtype)
    return _Bracket(low=0 * one, high=one)


@part("norm")
def _unfinished(
    i: Array | int, bounds: _Bracket, p: Rows, wanted: Array, tolerance: Array, norm: str
) -> Array:
    some = jnp.any(_wide(bounds, p, wanted, tolerance, norm))
    return (i < _BISECTIONS) & some


def _middle(bounds: _Bracket) -> Row:
    return (bounds.low + bounds.high) / 2


@part("norm")
def _halfway(bounds: _Bracket, p: Rows, order: Array, norm: str, box: Box) -> Rows:
    return path(p, order, _middle(bounds), norm, box)


@part("norm")
def _halved(
    bounds: _Bracket, here: Row, p: Rows, wanted: Array, tolerance: Array, norm: str
) -> _Bracket:
    """The half of the bracket that holds the boundary: `here` is the value halfway."""
    t = _middle(bounds)
    beyond = here > 0
    moves = _wide(bounds, p, wanted, tolerance, norm)
    return _Bracket(
        low=jnp.where(moves & ~beyond, t, bounds.low),
        high=jnp.where(moves & beyond, t, bounds.high),
    )


def _widened(boundary: Boundary, bounds: _Bracket, p: Rows, order: Array) -> _Bracket:
    """The bracket, its width added above, then below, where the values there allow it."""

    def widen(side: Array, wider: _Bracket) -> _Bracket:
        here = boundary.value(_outside(bounds, side, p, order, boundary.norm, boundary.box))
        return _with_end(wider, bounds, side, here)

    # A loop: the value, which may be large, is compiled once for both sides.
    return lax.fori_loop(0, 2, widen, bounds)


def _next_to(bounds: _Bracket, side: Array) -> Row:
    """Above the bracket on side 0, below it on side 1."""
    width = bounds.high - bounds.low
    return jnp.where(side == 0, bounds.high + width, bounds.low - width)


@part("norm")
def _outside(bounds: _Bracket, side: Array, p: Rows, order: Array, norm: str, box: Box) -> Rows:
    return path(p, order, _next_to(bounds, side), norm, box)


@part()
def _with_end(wider: _Bracket, bounds: _Bracket, side: Array, here: Row) -> _Bracket:
    t = _next_to(bounds, side)
    beyond = here > 0
    lower = (side == 1) & ~beyond & (t > 0)
    higher = (side == 0) & beyond
    return _Bracket(
        low=jnp.where(lower, t, wider.low),
        high=jnp.where(higher, t, wider.high),
    )
