"""Distances between all pairs of points, right to rounding where points nearly coincide."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.arrays import or_one, quotient
from perturbkernel.engine.linear import differentiated_as, linear, no_tangent
from perturbkernel.engine.sums import row_sums
from perturbkernel.engine.tiles import exact_matmul, visit_flagged
from perturbkernel.kernels.rows import marks

# Rounding leaves |z - x|^2 = |z|^2 + |x|^2 - 2 <z, x> with an error of a few eps times the sum of
# the two squares. Below this share of it the distance is taken from z - x itself.
_CLOSE = 1e-3
# Coordinates that one pass over a tile takes.
_UNROLLED = 8


@jax.jit  # traced once for a sum and its gradient
def distances(z: Float[Array, "r d"], x: Float[Array, "c d"]) -> Array:
    """|z_i - x_j|, (rows of z, rows of x), in the Euclidean norm; 0 exactly for identical points.

    The mean of z is subtracted from both first, which changes no distance, so that what cancels in
    the squares is no more than the spread of the points. The derivative (z - x) / |z - x| is 0
    where the two coincide: the symmetric one. Differentiable in either mode, any number of times;
    of second order it grows as 1 / |z - x|, and is 0 where the two coincide.

    Example:
        >>> import jax, numpy as np
        >>> x = np.array([[1e4, 0.0], [1e4, 3.0]])
        >>> jax.jit(distances)(x, x).tolist()
        [[0.0, 3.0], [3.0, 0.0]]
    """
    found, _ = _evaluate(z, x)
    return found


@partial(jax.jit, static_argnums=2)
def square_distances(z: Float[Array, "r d"], x: Float[Array, "c d"], unit: float = 1.0) -> Array:
    """|z_i - x_j|^2 / unit^2, (rows of z, rows of x), as right as `distances`; smooth where points
    coincide.

    Example:
        >>> import jax, numpy as np
        >>> f = lambda z: square_distances(z[None], np.ones((1, 2)))[0, 0]
        >>> jax.jit(jax.hessian(f))(np.ones(2)).tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    squares, _ = _evaluate_squares(float(unit), z, x)
    return squares


class _Pairs(NamedTuple):
    """The distances of a tile, which are close without being 0, and which are."""

    found: Array
    close: Array
    identical: Array


def _distances(z: Array, x: Array) -> _Pairs:
    """By one product of matrices, then once more, from differences, where pairs are close."""
    centre = jnp.mean(z, axis=0, keepdims=True)
    z_centred = z - centre
    x_centred = x - centre
    # Squares of tiny points vanish.
    largest_z = jnp.abs(z_centred).max()
    largest_x = jnp.abs(x_centred).max()
    largest = jnp.maximum(largest_z, largest_x)
    unit = or_one(largest)
    z_unit = z_centred / unit
    x_unit = x_centred / unit
    of_z = row_sums(z_unit**2)
    of_x = row_sums(x_unit**2)
    squares = of_z[:, None] + of_x[None, :]
    apart = squares - 2 * exact_matmul(z_unit, x_unit.T)
    near = apart <= _CLOSE * squares
    mark_z = marks(z)[:, None]
    mark_x = marks(x)[None, :]
    identical = near & (mark_z == mark_x)
    close = near & ~identical
    far_apart = jnp.where(near, 0, apart)
    quick = jnp.sqrt(far_apart) * unit
    row = jnp.arange(len(z))

    def repair(column, hit, found):
        exact = _lengths(z - x[column])
        repaired = jnp.where(hit, exact, found[row, column])
        return found.at[row, column].set(repaired)

    found = visit_flagged(close, repair, quick)
    return _Pairs(found, close, identical)


def _lengths(differences: Array) -> Array:
    """The lengths of rows, however tiny."""
    largest = jnp.abs(differences).max(axis=1)
    unit = or_one(largest)
    scaled = differences / unit[:, None]
    squares = jnp.sum(scaled**2, axis=1)
    return unit * jnp.sqrt(squares)


# --- derivatives ---
#
# A derivative is linear in the tangents, and has two rules: forward, and backward, its transpose.
# Both look at close pairs one by one, which JAX cannot differentiate again: their own derivatives
# are those of the plain rules (`differentiated_as`), the same functions in ordinary operations.


@jax.custom_jvp
def _evaluate(z: Array, x: Array) -> tuple[Array, _Pairs]:
    """The distances, and the pairs, of which nothing is differentiated."""
    pairs = _distances(z, x)
    return pairs.found, pairs


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _evaluate_squares(unit: float, z: Array, x: Array) -> tuple[Array, _Pairs]:
    pairs = _distances(z, x)
    return (pairs.found / unit) ** 2, pairs


def _rule(evaluate, forward, backward, primals, tangents):
    found, pairs = evaluate(*primals)
    residuals = *primals, pairs
    change = linear(forward, backward, residuals, tangents, like=found)
    return (found, pairs), (change, jax.tree.map(no_tangent, pairs))


def _plain_forward(residuals, tangents):
    z, x, _ = residuals
    found = distances(z, x)
    half = _half_squares_forward(residuals, tangents)
    return quotient(half, found, found > 0)


def _half_squares_forward(residuals, tangents):
    """<z - x, the tangent of z - x>."""
    z, x, _ = residuals
    z_moved, x_moved = tangents
    centre = lax.stop_gradient(jnp.mean(z, axis=0, keepdims=True))
    z = z - centre
    x = x - centre
    own_z = jnp.sum(z * z_moved, axis=1)
    own_x = jnp.sum(x * x_moved, axis=1)
    at_z = own_z[:, None] - exact_matmul(z_moved, x.T)
    at_x = own_x[None, :] - exact_matmul(z, x_moved.T)
    return at_z + at_x


@differentiated_as(_plain_forward)
def _forward(residuals, tangents):
    z, x, pairs = residuals
    z_moved, x_moved = tangents
    far = ~(pairs.close | pairs.identical)
    half = _half_squares_forward(residuals, tangents)
    smooth = quotient(half, pairs.found, far)
    row = jnp.arange(len(z))

    def repair(column, hit, change):
        length = pairs.found[row, column]
        divisor = jnp.where(hit & (length > 0), length, 1)
        direction = (z - x[column]) / divisor[:, None]
        moved = z_moved - x_moved[column]
        exact = jnp.sum(direction * moved, axis=1)
        repaired = jnp.where(hit, exact, change[row, column])
        return change.at[row, column].set(repaired)

    return visit_flagged(pairs.close, repair, smooth)


def _plain_backward(residuals, cotangent):
    z, x, _ = residuals
    found = distances(z, x)
    weight = quotient(cotangent, found, found > 0)
    return _half_squares_backward(residuals, weight)


def _half_squares_backward(residuals, weight):
    z, x, _ = residuals
    z_bar = _weighted_differences(z, x, weight)
    x_bar = _weighted_differences(x, z, weight.T)
    return z_bar, x_bar


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
        change = _forward(residuals, tangents)
        return 2 * (pairs.found / unit) * (change / unit)

    @differentiated_as(plain_backward)
    def backward(residuals, cotangent):
        _, _, pairs = residuals
        weight = 2 * (pairs.found / unit) * (cotangent / unit)
        return _backward(residuals, weight)

    evaluate = partial(_evaluate_squares, unit)
    return _rule(evaluate, forward, backward, primals, tangents)


def _weighted_differences(z: Array, x: Array, weight: Array) -> Array:
    """sum_j weight_j (z - x_j) for every row of z."""
    centre = lax.stop_gradient(jnp.mean(z, axis=0, keepdims=True))
    total = row_sums(weight)[:, None]
    return total * (z - centre) - exact_matmul(weight, x - centre)


def _gradient(
    z: Array, x: Array, found: Array, close: Array, identical: Array, cotangent: Array
) -> Array:
    """sum_j cotangent_j (z - x_j) / |z - x_j| for every row of z; close pairs one by one."""
    far = ~(close | identical)
    weight = quotient(cotangent, found, far)
    smooth = _weighted_differences(z, x, weight)
    row = jnp.arange(len(z))

    def add(column, hit, total):
        length = found[row, column]
        differs = hit & (length > 0)
        divisor = jnp.where(differs, length, 1)
        direction = (z - x[column]) / divisor[:, None]
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
        difference = of_z[:, None] - of_x[None, :]
        return total + jnp.abs(difference), None

    # Zeros of the tile, which vary over devices as its points do.
    first_z = z[:, :1]
    zero_z = jnp.abs(first_z - first_z)
    first_x = x[:, :1]
    zero_x = jnp.abs(first_x - first_x)
    start = zero_z + zero_x.T
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
        moved = z_moved[:, None] - x_moved[None, :]
        return total + signs * moved, None

    z, x = residuals
    z_moved, x_moved = tangents
    rows = z.T, x.T, z_moved.T, x_moved.T
    zero_z = z_moved[:, :1] * 0
    zero_x = x_moved[:, :1] * 0
    start = zero_z + zero_x.T
    total, _ = lax.scan(add, start, rows, unroll=_UNROLLED)
    return total


def _cityblock_backward(residuals, cotangent):
    z, x = residuals

    def gradients(_, coordinate):
        of_z, of_x = coordinate
        signs = jnp.sign(of_z[:, None] - of_x[None, :])
        signed = cotangent * signs
        at_z = jnp.sum(signed, axis=1)
        at_x = -jnp.sum(signed, axis=0)
        return None, (at_z, at_x)

    _, (z_bar, x_bar) = lax.scan(gradients, None, (z.T, x.T), unroll=_UNROLLED)
    return z_bar.T, x_bar.T


cityblock_distances.defjvp(_cityblock_rule)
