"""A direction followed until a box and a Euclidean length stop it, and rows scaled down to a size.

Rows are flat, (m, d), and treated one by one.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from perturbkernel.arrays import or_one
from perturbkernel.attacks.boxes import Box, Rows, clip, headroom
from perturbkernel.attacks.crossings import crossing


def stretch(u: Rows, size: Array | float, box: Box) -> Float[Array, "m 1"]:
    """The largest t with |clip(t u)|_2 <= size; inf if every t has it.

    Example:
        >>> box = jnp.full((1, 2), -1.0), jnp.full((1, 2), 1.0)
        >>> stretch(jnp.asarray([[3.0, 4.0]]), 0.5, box).round(6).tolist()
        [[0.10000000149011612]]
    """
    room = headroom(u, box)
    # In units of the largest entry that can move: squares of the others do not underflow.
    m = jnp.abs(u)
    m = jnp.where(room > 0, m, 0)
    largest = or_one(m.max(1, keepdims=True))
    m = m / largest
    positive = jnp.asarray(size) > 0
    unit = jnp.where(positive, size, 1)
    room = jnp.minimum(room, size)
    room = room / unit
    breaks = room / or_one(m)
    t_squared = crossing(
        breaks=breaks**2,
        constant=room**2,
        slope=m**2,
        level=(size / unit) ** 2,
    )
    t = jnp.sqrt(t_squared)
    return t * unit / largest


def stretched(u: Rows, t: Float[Array, "m 1"], size: Array | float, box: Box) -> Rows:
    """clip(t u), no entry larger than `size`; t may be infinite.

    Example:
        >>> box = jnp.full((1, 2), -1.0), jnp.full((1, 2), 1.0)
        >>> stretched(jnp.asarray([[3.0, 0.0]]), jnp.full((1, 1), jnp.inf), 2.0, box).tolist()
        [[1.0, 0.0]]
    """
    limited = jnp.clip(t * u, -size, size)
    limited = clip(limited, box)
    return jnp.where(u == 0, 0, limited)


def shortened(d: Rows, size: Array | float, length: Float[Array, " m"]) -> Rows:
    """d, whose norm is `length`, scaled down where that is longer than `size`.

    Example:
        >>> shortened(jnp.asarray([[3.0, 1.0]]), 2.0, jnp.asarray([4.0])).tolist()
        [[1.5, 0.5]]
    """
    share = jnp.minimum(1, size / or_one(length[:, None]))
    return d * share
