"""Distances between all pairs of points, right to rounding where points nearly coincide."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.engine.sums import row_sums
from perturbkernel.engine.tiles import exact_matmul, visit_flagged
from perturbkernel.kernels.rows import marks

# Rounding leaves |z - x|^2 = |z|^2 + |x|^2 - 2 <z, x> with an error of a few eps times the sum of
# the two squares. Below this share of it the distance is taken from z - x itself.
_CLOSE = 1e-3
# Coordinates that one pass over a tile takes.
_UNROLLED = 8


@jax.custom_vjp
def distances(z: Float[Array, "r d"], x: Float[Array, "c d"]) -> Array:
    """|z_i - x_j|, (rows of z, rows of x), in the Euclidean norm; 0 exactly for identical points.

    The mean of z is subtracted from both first, which changes no distance, so that what cancels in
    the squares is no more than the spread of the points. The derivative (z - x) / |z - x| is 0
    where the two coincide: the symmetric one.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1e4, 0.0], [1e4, 3.0]])
        >>> distances(x, x).tolist()
        [[0.0, 3.0], [3.0, 0.0]]
    """
    far, _, _ = _distances(z, x)
    return far


def _distances(z: Array, x: Array) -> tuple[Array, Array, Array]:
    """The distances, which pairs are close without being identical, and which are identical."""
    centre = jnp.mean(z, axis=0, keepdims=True)
    z_centred, x_centred = z - centre, x - centre
    # Squares of tiny points vanish.
    largest = jnp.maximum(jnp.abs(z_centred).max(), jnp.abs(x_centred).max())
    unit = jnp.where(largest > 0, largest, 1)
    z_unit, x_unit = z_centred / unit, x_centred / unit
    of_z, of_x = row_sums(z_unit**2), row_sums(x_unit**2)
    squares = of_z[:, None] + of_x[None, :]
    apart = squares - 2 * exact_matmul(z_unit, x_unit.T)
    near = apart <= _CLOSE * squares
    identical = near & (marks(z)[:, None] == marks(x)[None, :])
    close = near & ~identical
    quick = jnp.sqrt(jnp.where(near, 0, apart)) * unit
    row = jnp.arange(len(z))

    def repair(column, hit, found):
        exact = _lengths(z - x[column])
        repaired = jnp.where(hit, exact, found[row, column])
        return found.at[row, column].set(repaired)

    return visit_flagged(close, repair, quick), close, identical


def _lengths(differences: Array) -> Array:
    """The lengths of rows, however tiny."""
    largest = jnp.abs(differences).max(axis=1)
    unit = jnp.where(largest > 0, largest, 1)
    scaled = differences / unit[:, None]
    return unit * jnp.sqrt(jnp.sum(scaled**2, axis=1))


def _forward(z, x):
    found, close, identical = _distances(z, x)
    return found, (z, x, found, close, identical)


def _backward(residuals, cotangent):
    z, x, found, close, identical = residuals
    z_bar = _gradient(z, x, found, close, identical, cotangent)
    x_bar = _gradient(x, z, found.T, close.T, identical.T, cotangent.T)
    return z_bar, x_bar


def _gradient(
    z: Array, x: Array, found: Array, close: Array, identical: Array, cotangent: Array
) -> Array:
    """sum_j cotangent_j (z - x_j) / |z - x_j| for every row of z; close pairs one by one."""
    left_out = close | identical
    weight = jnp.where(left_out, 0, cotangent / jnp.where(left_out, 1, found))
    centre = jnp.mean(z, axis=0, keepdims=True)
    smooth = row_sums(weight)[:, None] * (z - centre) - exact_matmul(weight, x - centre)
    row = jnp.arange(len(z))

    def add(column, hit, total):
        difference = z - x[column]
        length = found[row, column]
        differs = hit & (length > 0)
        direction = difference / jnp.where(differs, length, 1)[:, None]
        factor = jnp.where(differs, cotangent[row, column], 0)
        return total + factor[:, None] * direction

    return visit_flagged(close, add, smooth)


distances.defvjp(_forward, _backward)


@jax.custom_vjp
def cityblock_distances(z: Float[Array, "r d"], x: Float[Array, "c d"]) -> Array:
    """sum_k |z_ik - x_jk|, (rows of z, rows of x), a few coordinates at a time: nothing of the size
    of r c d is held, and nothing cancels.

    Where coordinates of two points are equal, the derivative in them is 0, the symmetric one.

    Example:
        >>> import jax.numpy as jnp
        >>> cityblock_distances(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 1.0]])).tolist()
        [[3.0]]
    """

    def add(total, coordinate):
        of_z, of_x = coordinate
        return total + jnp.abs(of_z[:, None] - of_x[None, :]), None

    # Zeros of the tile, which vary over devices as its points do.
    start = jnp.abs(z[:, :1] - z[:, :1]) + jnp.abs(x[:, :1] - x[:, :1]).T
    total, _ = lax.scan(add, start, (z.T, x.T), unroll=_UNROLLED)
    return total


def _cityblock_forward(z, x):
    return cityblock_distances(z, x), (z, x)


def _cityblock_backward(residuals, cotangent):
    z, x = residuals

    def gradients(_, coordinate):
        of_z, of_x = coordinate
        signed = cotangent * jnp.sign(of_z[:, None] - of_x[None, :])
        return None, (jnp.sum(signed, axis=1), -jnp.sum(signed, axis=0))

    _, (z_bar, x_bar) = lax.scan(gradients, None, (z.T, x.T), unroll=_UNROLLED)
    return z_bar.T, x_bar.T


cityblock_distances.defvjp(_cityblock_forward, _cityblock_backward)
