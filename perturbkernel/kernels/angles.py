"""The angle between augmented points, and its derivative, right to rounding everywhere.

An input x enters the network's first layer as

    x_bar = (x / sqrt(d), 1),   of length   s_x = sqrt(1 + |x|^2 / d).

All moments of a leaky ReLU depend on the angle theta(x, z) between x_bar and z_bar and on the
product <x, z>. In the code, rho is cos(theta) and e is 1 - rho.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.arrays import quotient
from perturbkernel.engine.arguments import is_zero
from perturbkernel.engine.linear import differentiated_as, linear, no_tangent
from perturbkernel.engine.sums import row_sums
from perturbkernel.engine.tiles import exact_matmul, visit_flagged
from perturbkernel.kernels.arccos import arccos_one_minus
from perturbkernel.kernels.close_pairs import sine_and_direction
from perturbkernel.kernels.rows import (
    Rows,
    common_direction,
    lengths,
    numbers_of_rows,
    parts_across,
)

# Rounding leaves 1 - rho = e with an error of eps spread, so the angle sqrt(2 e) with eps spread /
# sqrt(2 e). Derivatives need its relative error: pairs with e below _CLOSE * spread (and opposite
# pairs) are repaired, from the difference of the points. For the angle itself the absolute error
# counts, so that only e below _CLOSE * spread^2 is repaired: few pairs of tiny points, many of
# which are nearly parallel. A few eps * spread is rounding alone: there identical points hide.
_CLOSE, _NOISE = 1e-3, 16


def angle_of_product(
    product: Array,
    square_z: Array,
    square_x: Array,
    d: int | Array,
) -> Array:
    """theta from <z, x>, |z|^2 and |x|^2 alone (broadcast), for sums over many pairs.

    The error is about eps for most pairs but sqrt(eps) where z and x nearly coincide, 3e-4 in
    float32: too large for derivatives, harmless in a sum over n points. `products_and_angles` has
    no such exception.
    """
    s_z = jnp.sqrt(1 + square_z / d)
    s_x = jnp.sqrt(1 + square_x / d)
    a = square_z / d / (1 + s_z) / s_z
    b = square_x / d / (1 + s_x) / s_x
    e = a + b - a * b - product / (d * s_z * s_x)
    return arccos_one_minus(jnp.clip(e, 0, 2))


class _Tile(NamedTuple):
    """The rows of a tile, and the product of their parts across v, (rows of z, rows of x)."""

    of_z: Rows
    of_x: Rows
    across: Array


class _Separation(NamedTuple):
    """How far the pairs of a tile are apart; all (rows of z, rows of x)."""

    e: Array  # 1 - rho; exactly 0 for identical points
    unsure: Array  # whether rounding spoils the angle
    unsure_derivative: Array  # whether it spoils the derivative of the angle
    identical: Array


def _tile(z: Array, x: Array) -> _Tile:
    v = common_direction(z)
    of_z = numbers_of_rows(z, v)
    of_x = numbers_of_rows(x, v)
    return _tile_of_rows(z, x, of_z, of_x, v)


def _tile_of_rows(z: Array, x: Array, of_z: Rows, of_x: Rows, v: Array) -> _Tile:
    across_z = parts_across(z, of_z.s, of_z.beta, v)
    across_x = parts_across(x, of_x.s, of_x.beta, v)
    return _Tile(of_z, of_x, exact_matmul(across_z, across_x.T))


def _product(tile: _Tile, d: int) -> Array:
    """<z, x>."""
    z, x, across = tile
    scale = z.s[:, None] * (d * x.s)[None, :]
    along = z.beta[:, None] * x.beta[None, :]
    return scale * (along + across)


def _separation(tile: _Tile) -> _Separation:
    """The pairs of a tile, and which of them rounding spoils.

    1 - rho is half of the squared distance of the augmented points of length 1. Where many points
    lie along one direction v, as perturbations do, most of |z|^2 cancels in it; so the parts along
    v are subtracted first, and those across v by

        1 - rho = S - <across_z, across_x>,
        2 S = (beta_z - beta_x)^2 + (excess_z - excess_x)^2 + |across_z|^2 + |across_x|^2.

    Rounding leaves errors of eps S, and of eps beta sqrt(2 (1 - rho)) from the parts themselves.
    Both shrink with the points, which are tiny when a network is trained on perturbations alone.
    """
    z, x, across = tile
    root_half = 0.5**0.5
    z_beta, x_beta = root_half * z.beta, root_half * x.beta
    z_excess, x_excess = root_half * z.excess, root_half * x.excess
    along = z_beta[:, None] - x_beta[None, :]
    bias = z_excess[:, None] - x_excess[None, :]
    squares = z.half_square[:, None] + x.half_square[None, :]
    e = along**2 + bias**2 + squares - across
    # The parts of points that nearly coincide are nearly the same: a bound for each row of z does.
    spread = 3 * z.half_square  # at least S where 1 - rho < S / 100
    rounding = _NOISE * float(jnp.finfo(e.dtype).eps)
    of_sum = jnp.maximum(_CLOSE * spread, rounding) * spread
    of_parts = 2 * (rounding * z.beta) ** 2
    least = of_sum + of_parts
    least_of_derivative = _CLOSE * spread + 2 * (_CLOSE * z.beta) ** 2
    near = e <= least[:, None]
    near_for_derivative = e <= least_of_derivative[:, None]
    identical = near & (z.mark[:, None] == x.mark[None, :])
    opposite = e >= 2 - _CLOSE
    return _Separation(
        e=jnp.where(identical, 0, e),
        unsure=(near | opposite) & ~identical,
        unsure_derivative=(near_for_derivative | opposite) & ~identical,
        identical=identical,
    )


@jax.jit  # traced once for a sum and its gradient
def products_and_angles(z: Float[Array, "r d"], x: Float[Array, "c d"]) -> tuple[Array, Array]:
    """<z, x> and theta(z, x), both (rows of z, rows of x).

    theta is 0 exactly for identical points. Its derivative is, with w = x / s_x - rho z / s_z,

        d theta / dz = -w / (d s_z sin theta),

    of length at most 1 / (sqrt(d) s_z); at coincident points, where theta has a cone, it is 0: the
    central difference and the limit of finite networks (theory: sections 0.3 to 0.5).

    Differentiable in either mode, any number of times. At a small angle derivatives of second order
    have a relative error of eps / theta. They grow as 1 / theta; at coincident points they are 0,
    the finite part of the symmetric difference.

    Example:
        >>> import jax, numpy as np
        >>> x = np.array([[1.0, 2.0]])
        >>> product, angle = jax.jit(products_and_angles)(x, x)
        >>> round(float(product[0, 0]), 3), float(angle[0, 0])
        (5.0, 0.0)
    """
    product, theta, _ = _evaluate(z, x)
    return product, theta


@jax.custom_jvp
def _evaluate(z: Array, x: Array) -> tuple[Array, Array, _Tile]:
    """With the tile, of which nothing is differentiated."""
    tile = _tile(z, x)
    product = _product(tile, z.shape[1])
    theta = _angles(z, x, tile)
    return product, theta, tile


def _angles(z: Array, x: Array, tile: _Tile) -> Array:
    apart = _separation(tile)
    row = jnp.arange(z.shape[0])

    def repair(column, hit, theta):
        sine, _ = sine_and_direction(z, x[column])
        cosine = 1 - apart.e[row, column]
        exact = jnp.arctan2(sine, cosine)
        repaired = jnp.where(hit, exact, theta[row, column])
        return theta.at[row, column].set(repaired)

    quick = arccos_one_minus(apart.e)
    return visit_flagged(apart.unsure, repair, quick)


def _rule(primals: Any, tangents: Any) -> Any:
    *values, tile = _evaluate(*primals)
    moving = tuple(None if is_zero(tangent) else tangent for tangent in tangents)
    asked = tuple(tangent is not None for tangent in moving)
    residuals = *primals, tile
    backward = partial(_backward, asked)
    changes = linear(_forward, backward, residuals, moving, like=values)
    of_tile = jax.tree.map(no_tangent, tile)
    return (*values, tile), (*changes, of_tile)


_evaluate.defjvp(_rule, symbolic_zeros=True)


def _plain_forward(residuals, tangents):
    """Of <z, x> and theta, from theta."""
    z, x, _ = residuals
    _, theta = products_and_angles(z, x)
    moved, moved_rho = _moved_product(z, x, jnp.cos(theta), *tangents)
    return [moved, -moved_rho * _inverse_sine(theta)]


def _moved_product(
    z: Array, x: Array, rho: Array, z_moved: Array | None, x_moved: Array | None
) -> tuple[Array, Array]:
    """The tangents of <z, x> and rho."""
    d = z.shape[1]
    s_z = lengths(z)
    s_x = lengths(x)
    moved = jnp.zeros_like(rho)
    stretched = jnp.zeros_like(rho)  # the relative change of s_z s_x
    if z_moved is not None:
        moved = moved + exact_matmul(z_moved, x.T)
        of_z = jnp.sum(z * z_moved, axis=1) / (d * s_z**2)
        stretched = stretched + of_z[:, None]
    if x_moved is not None:
        moved = moved + exact_matmul(z, x_moved.T)
        of_x = jnp.sum(x * x_moved, axis=1) / (d * s_x**2)
        stretched = stretched + of_x[None, :]
    scale = d * s_z[:, None] * s_x[None, :]
    moved_rho = moved / scale - rho * stretched
    return moved, moved_rho


def _inverse_sine(theta: Array) -> Array:
    """0 at coincident points."""
    sine = jnp.sin(theta)
    return quotient(1, sine, theta > 0)


def _over_sine(values: Array, e: Array, left_out: Array) -> Array:
    """values / sin(theta) from e = 1 - cos(theta); 0 for pairs that are left out."""
    square_of_sine = jnp.where(left_out, 1, e * (2 - e))
    return jnp.where(left_out, 0, values * lax.rsqrt(square_of_sine))


def _both_gradients(gradient, z, x, pairs) -> tuple[Array, Array]:
    """gradient(z, x, *pairs), and the same of x with the roles exchanged."""
    exchanged = [array.T for array in pairs]
    return gradient(z, x, *pairs), gradient(x, z, *exchanged)


@differentiated_as(_plain_forward)
def _forward(residuals, tangents):
    z, x, tile = residuals
    z_moved, x_moved = tangents
    apart = _separation(tile)
    left_out = apart.unsure_derivative | apart.identical
    moved, moved_rho = _moved_product(z, x, 1 - apart.e, *tangents)
    smooth = _over_sine(-moved_rho, apart.e, left_out)
    m, d = z.shape
    row = jnp.arange(m)
    s_z = lengths(z)
    s_x = lengths(x)

    def repair(column, hit, found):
        there = x[column]
        sine, w = sine_and_direction(z, there)
        change = jnp.zeros_like(sine)
        if z_moved is not None:
            along = jnp.sum(z_moved * w, axis=1)
            change = change - along / (d * s_z)
        if x_moved is not None:
            _, w = sine_and_direction(there, z)
            along = jnp.sum(x_moved[column] * w, axis=1)
            change = change - along / (d * s_x[column])
        change = quotient(change, sine, sine > 0)
        repaired = jnp.where(hit, change, found[row, column])
        return found.at[row, column].set(repaired)

    return [moved, visit_flagged(apart.unsure_derivative, repair, smooth)]


def _plain_backward(asked, residuals, cotangents):
    z, x, _ = residuals
    product_bar, theta_bar = cotangents
    _, theta = products_and_angles(z, x)
    e = 1 - jnp.cos(theta)
    pairs = e, _inverse_sine(theta), product_bar, theta_bar
    z_bar, x_bar = _both_gradients(_far_gradient, z, x, pairs)
    return z_bar if asked[0] else None, x_bar if asked[1] else None


def _far_gradient(z, x, e, inverse_sine, product_bar, theta_bar):
    kappa = _gradient_weight(z, theta_bar) * inverse_sine
    return _smooth_gradient(z, x, e, kappa, product_bar)


def _backward(asked, residuals, cotangents):
    plain = partial(_plain_backward, asked)
    careful = partial(_careful_backward, asked)
    backward = differentiated_as(plain)(careful)
    return backward(residuals, cotangents)


def _careful_backward(asked, residuals, cotangents):
    z, x, tile = residuals
    product_bar, theta_bar = cotangents
    apart = _separation(tile)
    e = apart.e
    close = apart.unsure_derivative
    left_out = close | apart.identical
    z_bar = x_bar = None
    if asked[0]:
        z_bar = _gradient(z, x, e, close, left_out, product_bar, theta_bar)
    if asked[1]:
        x_bar = _gradient(x, z, e.T, close.T, left_out.T, product_bar.T, theta_bar.T)
    return z_bar, x_bar


def _gradient(z: Array, x: Array, e, close, left_out, product_bar, theta_bar) -> Array:
    """The cotangent of z; all pairs that are not left out through one product with x, and those
    that are close one by one.
    """
    weight = _gradient_weight(z, theta_bar)
    kappa = _over_sine(weight, e, left_out)
    row = jnp.arange(z.shape[0])

    def add(column, hit, total):
        sine, w = sine_and_direction(z, x[column])
        differs = hit & (sine > 0)
        factor = quotient(weight[row, column], sine, differs)
        return total + factor[:, None] * w

    smooth = _smooth_gradient(z, x, e, kappa, product_bar)
    return visit_flagged(close, add, smooth)


def _gradient_weight(z: Array, theta_bar: Array) -> Array:
    """What w / sin(theta) is multiplied by in the gradient of theta, for each pair."""
    d = z.shape[1]
    factor = -1 / (d * lengths(z))
    return theta_bar * factor[:, None]


def _smooth_gradient(z: Array, x: Array, e: Array, kappa: Array, product_bar: Array) -> Array:
    """sum_j product_bar_j x_j + kappa_j w_j for every row of z, w_j = x_j / s_j - rho_j z / s_z."""
    s_z = lengths(z)
    s_x = lengths(x)
    rho = 1 - e
    along_z = row_sums(kappa * rho) / s_z
    along_x = product_bar + kappa * (1 / s_x)[None, :]
    return exact_matmul(along_x, x) - along_z[:, None] * z


@jax.custom_vjp
def quick_products_and_angles(
    z: Float[Array, "r d"],
    x: Float[Array, "c d"],
    of_z: Rows,
    of_x: Rows,
    v: Float[Array, " d"],
) -> tuple[Array, Array]:
    """<z, x> and theta(z, x) as of `products_and_angles`, but NaN for angles that need repair.

    Gradients that contain a pair which needs repair are NaN, too. Whether there are any is then
    seen in the sums, and not in a pass of its own over all pairs (`kernels.products`).
    """
    values, _ = _quick_forward(z, x, of_z, of_x, v)
    return values


def _quick_angles(tile: _Tile) -> Array:
    apart = _separation(tile)
    theta = arccos_one_minus(apart.e)
    return jnp.where(apart.unsure, jnp.nan, theta)


def _quick_forward(z, x, of_z, of_x, v):
    tile = _tile_of_rows(z, x, of_z, of_x, v)
    values = _product(tile, z.shape[1]), _quick_angles(tile)
    residuals = z, x, tile
    return values, residuals


def _quick_backward(residuals, cotangents):
    z, x, tile = residuals
    product_bar, theta_bar = cotangents
    apart = _separation(tile)
    e = apart.e
    inverse_sine = lax.rsqrt(e * (2 - e))
    inverse_sine = jnp.where(apart.identical, 0, inverse_sine)
    inverse_sine = jnp.where(apart.unsure_derivative, jnp.nan, inverse_sine)
    pairs = e, inverse_sine, product_bar, theta_bar
    z_bar, x_bar = _both_gradients(_far_gradient, z, x, pairs)
    return z_bar, x_bar, None, None, None


quick_products_and_angles.defvjp(_quick_forward, _quick_backward)
