"""Distances between all pairs of points, right to rounding where points nearly coincide."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.engine.linear import differentiated_as, linear, no_tangent
from perturbkernel.engine.sums import row_sums
from perturbkernel.engine.tiles import exact_matmul, visit_flagged
from perturbkernel.kernels.rows import marks

# Rounding leaves |z - x|^2 = |z|^2 + |x|^2 - 2 <z, x> with an error of a few eps times the sum of
# the two squares. Below this share of it the distance is taken from z - x itself.
_CLOSE = 1e-3
# Coordinates that one pass over a tile takes.
_UNROLLED = 8


def distances(z: Float[Array, "r d"], x: Float[Array, "c d"]) -> Array:
    """|z_i - x_j|, (rows of z, rows of x), in the Euclidean norm; 0 exactly for identical points.

    The mean of z is subtracted from both first, which changes no distance, so that what cancels in
    the squares is no more than the spread of the points. The derivative (z - x) / |z - x| is 0
    where the two coincide: the symmetric one. Differentiable in either mode, any number of times;
    of second order it grows as 1 / |z - x|, and is 0 where the two coincide.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1e4, 0.0], [1e4, 3.0]])
        >>> distances(x, x).tolist()
        [[0.0, 3.0], [3.0, 0.0]]
    """
    far, _ = _evaluate(z, x)
    return far


def square_distances(z: Float[Array, "r d"], x: Float[Array, "c d"], unit: float = 1.0) -> Array:
    """|z_i - x_j|^2 / unit^2, (rows of z, rows of x), as right as `distances`; smooth where points
    coincide.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> f = lambda z: square_distances(z[None], jnp.ones((1, 2)))[0, 0]
        >>> jax.hessian(f)(jnp.ones(2)).tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    squares, _ = _evaluate_squares(float(unit), z, x)
    return squares


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


class _Pairs(NamedTuple):
    """The distances of a tile, which are close without being 0, and which are."""

    found: Array
    close: Array
    identical: Array


@jax.custom_jvp
def _evaluate(z: Array, x: Array) -> tuple[Array, _Pairs]:
    pairs = _Pairs(*_distances(z, x))
    return pairs.found, pairs


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _evaluate_squares(unit: float, z: Array, x: Array) -> tuple[Array, _Pairs]:
    pairs = _Pairs(*_distances(z, x))
    return (pairs.found / unit) ** 2, pairs


def _rule(evaluate, forward, backward, primals, tangents):
    found, pairs = evaluate(*primals)
    residuals = *primals, pairs
    change = linear(forward, backward, residuals, tangents, like=found)
    return (found, pairs), (change, jax.tree.map(no_tangent, pairs))


def _plain_forward(residuals, tangents):
    z, x, _ = residuals
    found = distances(z, x)
    apart = found > 0
    half = _half_squares_forward(residuals, tangents)
    return jnp.where(apart, half / jnp.where(apart, found, 1), 0)


def _half_squares_forward(residuals, tangents):
    """<z - x, the tangent of z - x>."""
    z, x, _ = residuals
    z_moved, x_moved = tangents
    centre = lax.stop_gradient(jnp.mean(z, axis=0, keepdims=True))
    z, x = z - centre, x - centre
    at_z = jnp.sum(z * z_moved, axis=1)[:, None] - exact_matmul(z_moved, x.T)
    at_x = jnp.sum(x * x_moved, axis=1)[None, :] - exact_matmul(z, x_moved.T)
    return at_z + at_x


@differentiated_as(_plain_forward)
def _forward(residuals, tangents):
    z, x, pairs = residuals
    z_moved, x_moved = tangents
    left_out = pairs.close | pairs.identical
    half = _half_squares_forward(residuals, tangents)
    smooth = jnp.where(left_out, 0, half / jnp.where(left_out, 1, pairs.found))
    row = jnp.arange(len(z))

    def repair(column, hit, change):
        apart = jnp.where(hit & (pairs.found[row, column] > 0), pairs.found[row, column], 1)
        direction = (z - x[column]) / apart[:, None]
        exact = jnp.sum(direction * (z_moved - x_moved[column]), axis=1)
        return change.at[row, column].set(jnp.where(hit, exact, change[row, column]))

    return visit_flagged(pairs.close, repair, smooth)


def _plain_backward(residuals, cotangent):
    z, x, _ = residuals
    found = distances(z, x)
    apart = found > 0
    weight = jnp.where(apart, cotangent / jnp.where(apart, found, 1), 0)
    return _half_squares_backward(residuals, weight)


def _half_squares_backward(residuals, weight):
    z, x, _ = residuals
    return _weighted_differences(z, x, weight), _weighted_differences(x, z, weight.T)


@differentiated_as(_plain_backward)
def _backward(residuals, cotangent):
    z, x, (found, close, identical) = residuals
    z_bar = _gradient(z, x, found, close, identical, cotangent)
    x_bar = _gradient(x, z, found.T, close.T, identical.T, cotangent.T)
    return z_bar, x_bar


def _squares_rule(unit, primals, tangents):
    def plain_forward(residuals, tangents):
        return 2 * (_half_squares_forward(residuals, tangents) / unit**2)

    def plain_backward(residuals, cotangent):
        return _half_squares_backward(residuals, 2 * (cotangent / unit**2))

    @differentiated_as(plain_forward)
    def forward(residuals, tangents):
        _, _, pairs = residuals
        return 2 * (pairs.found / unit) * (_forward(residuals, tangents) / unit)

    @differentiated_as(plain_backward)
    def backward(residuals, cotangent):
        _, _, pairs = residuals
        return _backward(residuals, 2 * (pairs.found / unit) * (cotangent / unit))

    return _rule(partial(_evaluate_squares, unit), forward, backward, primals, tangents)


def _weighted_differences(z: Array, x: Array, weight: Array) -> Array:
    """sum_j weight_j (z - x_j) for every row of z."""
    centre = lax.stop_gradient(jnp.mean(z, axis=0, keepdims=True))
    return row_sums(weight)[:, None] * (z - centre) - exact_matmul(weight, x - centre)


def _gradient(
    z: Array, x: Array, found: Array, close: Array, identical: Array, cotangent: Array
) -> Array:
    """sum_j cotangent_j (z - x_j) / |z - x_j| for every row of z; close pairs one by one."""
    left_out = close | identical
    weight = jnp.where(left_out, 0, cotangent / jnp.where(left_out, 1, found))
    smooth = _weighted_differences(z, x, weight)
    row = jnp.arange(len(z))

    def add(column, hit, total):
        difference = z - x[column]
        length = found[row, column]
        differs = hit & (length > 0)
        direction = difference / jnp.where(differs, length, 1)[:, None]
        factor = jnp.where(differs, cotangent[row, column], 0)
        return total + factor[:, None] * direction

    return visit_flagged(close, add, smooth)


_evaluate.defjvp(partial(_rule, _evaluate, _forward, _backward))
_evaluate_squares.defjvp(_squares_rule)


@jax.custom_jvp
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


def _cityblock_rule(primals, tangents):
    found = cityblock_distances(*primals)
    change = linear(_cityblock_forward, _cityblock_backward, primals, tangents, like=found)
    return found, change


def _cityblock_forward(residuals, tangents):
    def add(total, coordinate):
        of_z, of_x, z_moved, x_moved = coordinate
        signs = jnp.sign(of_z[:, None] - of_x[None, :])
        return total + signs * (z_moved[:, None] - x_moved[None, :]), None

    (z, x), (z_moved, x_moved) = residuals, tangents
    rows = z.T, x.T, z_moved.T, x_moved.T
    start = z_moved[:, :1] * 0 + (x_moved[:, :1] * 0).T
    total, _ = lax.scan(add, start, rows, unroll=_UNROLLED)
    return total


def _cityblock_backward(residuals, cotangent):
    z, x = residuals

    def gradients(_, coordinate):
        of_z, of_x = coordinate
        signed = cotangent * jnp.sign(of_z[:, None] - of_x[None, :])
        return None, (jnp.sum(signed, axis=1), -jnp.sum(signed, axis=0))

    _, (z_bar, x_bar) = lax.scan(gradients, None, (z.T, x.T), unroll=_UNROLLED)
    return z_bar.T, x_bar.T


cityblock_distances.defjvp(_cityblock_rule)
