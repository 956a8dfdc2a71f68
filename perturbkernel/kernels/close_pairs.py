"""Pairs of points that nearly coincide, row by row, from their difference."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from perturbkernel.arrays import or_one
from perturbkernel.kernels.rows import lengths


def sine_and_direction(z: Array, x: Array) -> tuple[Array, Array]:
    """sin(theta) and w = x / s_x - rho z / s_z, row by row, with no cancellation beyond that of
    x - z.

    With x - z = along + across, parallel and orthogonal to z,

        w = (across + along / s_z^2) / s_x,
        d s_x^2 sin^2(theta) = |across|^2 + |along|^2 / s_z^2.

    Example:
        >>> import jax.numpy as jnp
        >>> sine, w = sine_and_direction(jnp.ones((1, 3)), jnp.ones((1, 3)))
        >>> sine.tolist(), w.tolist()
        ([0.0], [[0.0, 0.0, 0.0]])
    """
    eps = float(jnp.finfo(x.dtype).eps)
    s_z = lengths(z)
    s_x = lengths(x)
    d = z.shape[1]
    norm = jnp.linalg.norm(z, axis=1, keepdims=True)
    unit = z / or_one(norm)
    difference = x - z
    along = jnp.sum(difference * unit, axis=1, keepdims=True)
    # x and x - z have the same part across z. x - z was itself rounded, by eps |x - z|: it is the
    # better start only where it is so short that this is below the error of projecting x.
    square = jnp.sum(x**2, axis=1, keepdims=True)
    square_apart = jnp.sum(difference**2, axis=1, keepdims=True)
    is_short = square_apart < eps * square
    start = jnp.where(is_short, difference, x)
    across = _across(start, z)
    scaled_along = along / s_z[:, None] ** 2
    w = (across + scaled_along * unit) / s_x[:, None]
    square_across = jnp.sum(across**2, axis=1)
    square_of_w = square_across + (along[:, 0] / s_z) ** 2
    mean_square = square_of_w / d
    sine = jnp.sqrt(mean_square) / s_x
    return sine, w


def _split(a: Array) -> tuple[Array, Array]:
    """(high, low), whose sum is a, each with at most half of the significand.

    Products of two such parts are exact.
    """
    # All bits but the last 12 of 24, or the last 27 of 53.
    if a.dtype == jnp.float32:
        bits = jnp.uint32
        mask = 0xFFFFF000
    else:
        bits = jnp.uint64
        mask = 0xFFFFFFFFF8000000
    integer = lax.bitcast_convert_type(a, bits)
    kept = integer & jnp.array(mask, bits)
    high = lax.bitcast_convert_type(kept, a.dtype)
    return high, a - high


def _across(x: Array, z: Array) -> Array:
    """The part of x orthogonal to z, row by row, to an error of about eps^1.5 |x|.

    x - ratio z from exact partial products; the second round removes what the rounding of the ratio
    left along z.
    """
    square = jnp.sum(z**2, axis=1, keepdims=True)
    square = or_one(square)
    z_high, z_low = _split(z)
    for _ in range(2):
        product = jnp.sum(x * z, axis=1, keepdims=True)
        high, low = _split(product / square)
        for part in (high, low):
            x = x - part * z_high - part * z_low
    return x
