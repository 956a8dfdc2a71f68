"""Where piecewise linear sums over the entries of a row cross a level, by sorted break points.

Rows are flat, (m, d), and treated one by one.
"""

import jax.numpy as jnp
from jaxtyping import Array


def largest_first(values: Array) -> Array:
    """The order of every row, (m, d), from its largest entry to its smallest; stable."""
    return jnp.argsort(-values, axis=1, stable=True)


def rank(values: Array) -> Array:
    """The place of every entry in the order of its row, the largest first.

    Of two that are equal, the earlier comes first.
    """
    return jnp.argsort(largest_first(values), axis=1)


def taken(values: Array, order: Array) -> Array:
    """The entries of every row in the given order, or at the given places."""
    return jnp.take_along_axis(values, order, 1)


def put_back(values: Array, order: Array) -> Array:
    """The entries of every row where they were before `taken(values, order)`."""
    return jnp.take_along_axis(values, jnp.argsort(order, axis=1), 1)


def before(values: Array) -> Array:
    """Sums of the entries before each. Not cumsum(a) - a: entries may be infinite."""
    nothing = jnp.zeros_like(values[:, :1])
    sums = jnp.cumsum(values, axis=1)
    return jnp.concatenate([nothing, sums[:, :-1]], axis=1)


def or_one(values: Array) -> Array:
    """The values, with 1 in place of those that are not positive: what may be divided by."""
    return jnp.where(values > 0, values, 1)


def crossing(breaks: Array, constant: Array, slope: Array, level: Array | float) -> Array:
    """The t >= 0 where sum_i f_i(t) is `level`, (m, 1); inf if it never is.

        f_i(t) = slope_i t up to breaks_i,  constant_i = slope_i breaks_i beyond:

    each term rises to its break and stays there.
    """
    order = jnp.argsort(breaks, axis=1)
    breaks = taken(breaks, order)
    constant = taken(constant, order)
    slope = taken(slope, order)
    # Of the terms in the order of their breaks: what those before have reached, and the slope of
    # those that still rise.
    saturated = before(constant)
    rising = jnp.cumsum(slope[:, ::-1], axis=1)[:, ::-1]
    at_breaks = saturated + jnp.where(rising > 0, breaks * rising, 0)
    reached = at_breaks >= level
    first = jnp.argmax(reached, axis=1, keepdims=True)
    saturated = taken(saturated, first)
    rising = taken(rising, first)
    t = jnp.maximum(level - saturated, 0) / or_one(rising)
    return jnp.where(reached.any(1, keepdims=True), t, jnp.inf)


def threshold(m: Array, room: Array, size: Array | float) -> Array:
    """The smallest lambda >= 0 with sum_i min((m_i - lambda)_+, room_i) <= size, (m, 1)."""
    # Downward from the largest break: entry i begins to add at m_i, and has filled its room at
    # m_i - room_i.
    breaks = jnp.concatenate([m, m - room], axis=1)
    begins = jnp.ones_like(m)
    sign = jnp.concatenate([begins, -begins], axis=1)
    order = jnp.argsort(-breaks, axis=1)
    breaks = taken(breaks, order)
    rising = jnp.cumsum(taken(sign, order), axis=1)
    # The sum at lambda = breaks_j: nothing is added between breaks where no entry rises, so that
    # rounding cannot put the crossing there.
    gaps = breaks - jnp.roll(breaks, -1, axis=1)
    risen = before(rising * gaps)
    beyond = risen > size
    after = jnp.argmax(beyond, axis=1, keepdims=True)
    previous = jnp.maximum(after - 1, 0)
    missing = size - taken(risen, previous)
    count = jnp.maximum(taken(rising, previous), 1)
    crossed = taken(breaks, previous) - missing / count
    crossed = jnp.maximum(crossed, taken(breaks, after))
    anywhere = beyond.any(1, keepdims=True)
    return jnp.maximum(jnp.where(anywhere, crossed, 0), 0)
