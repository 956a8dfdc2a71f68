"""What the angles of all pairs use of each point: its length, its part along the common direction,
and a mark by which identical points are known.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.engine.sums import fused_row_sums, row_sums
from perturbkernel.engine.tiles import exact_matmul

# The mean share of |x|^2 along one direction from which on it is subtracted. It leaves errors of
# eps in the angles between points along it, which are eps |x - z| otherwise.
_MOST = 0.9


class Rows(NamedTuple):
    """Numbers of points, (n,) each, that all their tiles use.

    The augmented points of length 1 are x_bar / s = (beta v + across, 1 - excess) for a unit vector
    v of which `across` is orthogonal.
    """

    s: Array
    beta: Array
    excess: Array
    half_square: Array  # |across|^2 / 2
    mark: Array  # the same for identical points


def lengths(x: Float[Array, "n d"]) -> Array:
    """s_x, (n,)."""
    s, _ = lengths_and_excesses(x)
    return s


def lengths_and_excesses(x: Float[Array, "n d"]) -> tuple[Array, Array]:
    """s_x, and 1 - 1 / s_x without cancellation for small x, both (n,)."""
    square = row_sums(x * x) / x.shape[1]
    s = jnp.sqrt(1 + square)
    return s, square / (1 + s) / s


def common_direction(x: Array) -> Array:
    """v, (d,), of length 1, along which most points lie; 0 where there is none.

    One step of the power method from the longest of the points.
    """
    squares = row_sums(x * x)
    largest = squares.max()
    # Not argmax: within `jit` it is lowered by the x64 setting outside of a scoped `enable_x64`.
    last = len(x) - 1
    places = jnp.where(squares == largest, jnp.arange(len(x)), last)
    longest = places.min()
    tiny = jnp.finfo(x.dtype).tiny
    square = jnp.maximum(largest, tiny)
    norm = jnp.sqrt(square)
    start = x[longest] / norm
    along = exact_matmul(x, start)
    v = exact_matmul(along / norm, x)
    length = jnp.linalg.norm(v)
    v = v / jnp.maximum(length, tiny)
    squares_along = exact_matmul(x, v) ** 2
    shares = squares_along / jnp.maximum(squares, tiny)
    # Squares of the tiniest points vanish: nothing is subtracted from those.
    found = (length > tiny**0.5) & (jnp.mean(shares) > _MOST)
    return jnp.where(found, v, 0)


def numbers_of_rows(points: Float[Array, "n d"], v: Float[Array, " d"]) -> Rows:
    """The numbers of points, with v of `common_direction`."""
    root_d = points.shape[1] ** 0.5
    s, excess = lengths_and_excesses(points)
    along = exact_matmul(points, v)
    beta = along / (s * root_d)
    across = parts_across(points, s, beta, v)
    # Not a plain sum, with which XLA would evaluate the product of a tile once more.
    half_square = 0.5 * row_sums(across * across)
    return Rows(
        s=s,
        beta=beta,
        excess=excess,
        half_square=half_square,
        mark=marks(points),
    )


def parts_across(points: Array, s: Array, beta: Array, v: Array) -> Array:
    """`across`, (n, d)."""
    root_d = points.shape[1] ** 0.5
    scale = 1 / (s * root_d)
    directions = points * scale[:, None]
    along = beta[:, None] * v[None, :]
    return directions - along


def marks(points: Array) -> Array:
    """(n,): a number for each point, of which 2^30 are equally likely; identical points have the
    same, in whatever tile and place.
    """
    points = jnp.where(points == 0, 0, points)  # -0 is 0
    bits = lax.bitcast_convert_type(points, jnp.uint32)
    if bits.ndim == 3:
        # Float64 has two words a number.
        low = bits[..., 0]
        high = bits[..., 1]
        bits = low + high * _uint32(0xC2B2AE35)
    # A sum of the coordinates' bits, stirred, with odd weights that differ from place to place.
    mixed = bits ^ (bits >> 16)
    mixed = mixed * _uint32(0x85EBCA6B)
    mixed = mixed ^ (mixed >> 15)
    index = lax.iota(jnp.uint32, bits.shape[1])
    weights = (2 * index + 1) * _uint32(0x9E3779B1)
    weights = weights ^ (weights >> 16)
    weights = weights | _uint32(1)
    terms = mixed * weights[None, :]

    total = fused_row_sums(terms)
    # The bits of a float of ordinary size: under shard_map JAX cannot type the tangents of whole
    # numbers.
    ordinary = total & _uint32(0xBFFFFFFF)
    ordinary = ordinary | _uint32(0x20000000)
    return lax.bitcast_convert_type(ordinary, jnp.float32)


def _uint32(number: int) -> Array:
    return jnp.array(number, jnp.uint32)
