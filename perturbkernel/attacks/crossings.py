"""Where piecewise linear sums over the entries of a row cross a level, by sorted break points.

Rows are flat, (m, d), and treated one by one.
"""

import jax.numpy as jnp
from jaxtyping import Array

from perturbkernel.arrays import or_one


def largest_first(values: Array) -> Array:
    """The order of every row, (m, d), from its largest entry to its smallest; stable.

    Example:
        >>> largest_first(jnp.asarray([[2.0, 9.0, 5.0]])).tolist()
        [[1, 2, 0]]
    """
    return jnp.argsort(-values, axis=1, stable=True)


def rank(values: Array) -> Array:
    """The place of every entry in the order of its row, the largest first.

    Of two that are equal, the earlier comes first.

    Example:
        >>> rank(jnp.asarray([[2.0, 9.0, 5.0]])).tolist()
        [[2, 0, 1]]
    """
    order = largest_first(values)
    return jnp.argsort(order, axis=1)


def taken(values: Array, order: Array) -> Array:
    """The entries of every row in the given order, or at the given places.

    Example:
        >>> taken(jnp.asarray([[2.0, 9.0, 5.0]]), jnp.asarray([[1, 2, 0]])).tolist()
        [[9.0, 5.0, 2.0]]
    """
    return jnp.take_along_axis(values, order, 1)


def put_back(values: Array, order: Array) -> Array:
    """The entries of every row where they were before `taken(values, order)`.

    Example:
        >>> put_back(jnp.asarray([[9.0, 5.0, 2.0]]), jnp.asarray([[1, 2, 0]])).tolist()
        [[2.0, 9.0, 5.0]]
    """
    places = jnp.argsort(order, axis=1)
    return taken(values, places)


def before(values: Array) -> Array:
    """Sums of the entries before each. Not cumsum(a) - a: entries may be infinite.

    Example:
        >>> before(jnp.asarray([[2.0, 9.0, jnp.inf]])).tolist()
        [[0.0, 2.0, 11.0]]
    """
    first = values[:, :1]
    nothing = jnp.zeros_like(first)
    sums = jnp.cumsum(values, axis=1)
    return _beside(nothing, sums[:, :-1])


def _beside(left: Array, right: Array) -> Array:
    """The entries of both in one row."""
    return jnp.concatenate([left, right], axis=1)


def where_rows(condition: Array, rows: Array | float, others: Array | float) -> Array:
    """The `rows` where the condition, (m,), holds, and the `others` elsewhere, (m, d).

    Example:
        >>> where_rows(jnp.asarray([True, False]), jnp.ones((2, 3)), 0.0).tolist()
        [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    column = condition[:, None]
    return jnp.where(column, rows, others)


def crossing(breaks: Array, constant: Array, slope: Array, level: Array | float) -> Array:
    """The t >= 0 where sum_i f_i(t) is `level`, (m, 1); inf if it never is.

        f_i(t) = slope_i t up to breaks_i,  constant_i = slope_i breaks_i beyond:

    each term rises to its break and stays there.

    Example:
        >>> import jax
        >>> breaks, one = jnp.asarray([[1.0, 3.0]]), jnp.asarray([[1.0, 1.0]])
        >>> jax.jit(crossing)(breaks, breaks, one, 3.0).tolist()
        [[2.0]]
    """
    order = jnp.argsort(breaks, axis=1)
    breaks = taken(breaks, order)
    constant = taken(constant, order)
    slope = taken(slope, order)
    # Of the terms in the order of their breaks: what those before have reached, and the slope of
    # those that still rise.
    saturated = before(constant)
    rising = jnp.cumsum(slope[:, ::-1], axis=1)
    rising = rising[:, ::-1]
    risen = jnp.where(rising > 0, breaks * rising, 0)
    reached = saturated + risen >= level
    first = jnp.argmax(reached, axis=1, keepdims=True)
    saturated = taken(saturated, first)
    rising = taken(rising, first)
    missing = jnp.maximum(level - saturated, 0)
    t = missing / or_one(rising)
    ever = reached.any(1, keepdims=True)
    return jnp.where(ever, t, jnp.inf)


def threshold(m: Array, room: Array, size: Array | float) -> Array:
    """The smallest lambda >= 0 with sum_i min((m_i - lambda)_+, room_i) <= size, (m, 1).

    Example:
        >>> import jax
        >>> room = jnp.asarray([[jnp.inf, jnp.inf]])
        >>> jax.jit(threshold)(jnp.asarray([[5.0, 3.0]]), room, 4.0).tolist()
        [[2.0]]
    """
    # Downward from the largest break: entry i begins to add at m_i, and has filled its room at
    # m_i - room_i.
    breaks = _beside(m, m - room)
    begins = jnp.ones_like(m)
    sign = _beside(begins, -begins)
    order = jnp.argsort(-breaks, axis=1)
    breaks = taken(breaks, order)
    sign = taken(sign, order)
    rising = jnp.cumsum(sign, axis=1)
    # The sum at lambda = breaks_j: nothing is added between breaks where no entry rises, so that
    # rounding cannot put the crossing there.
    next_breaks = jnp.roll(breaks, -1, axis=1)
    gaps = breaks - next_breaks
    risen = before(rising * gaps)
    beyond = risen > size
    after = jnp.argmax(beyond, axis=1, keepdims=True)
    previous = jnp.maximum(after - 1, 0)
    missing = size - taken(risen, previous)
    count = taken(rising, previous)
    count = jnp.maximum(count, 1)
    crossed = taken(breaks, previous) - missing / count
    lowest = taken(breaks, after)
    crossed = jnp.maximum(crossed, lowest)
    anywhere = beyond.any(1, keepdims=True)
    crossed = jnp.where(anywhere, crossed, 0)
    return jnp.maximum(crossed, 0)
