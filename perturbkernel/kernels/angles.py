"""The angle between augmented points, and its derivative, right to rounding everywhere.

An input x enters the network's first layer as

    x_bar = (x / sqrt(d), 1),   of length   s_x = sqrt(1 + |x|^2 / d).

All moments of a leaky ReLU depend on the angle theta(x, z) between x_bar and z_bar and on the
product <x, z>. In the code, rho is cos(theta) and e is 1 - rho.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.engine.sums import row_sums
from perturbkernel.engine.tiles import exact_matmul, visit_flagged
from perturbkernel.kernels.arccos import arccos_one_minus

# Rounding leaves 1 - rho = e with an error of eps spread, so the angle sqrt(2 e) with eps spread /
# sqrt(2 e). Derivatives need its relative error: pairs with e below _CLOSE * spread (and opposite
# pairs) are repaired, from the difference of the points. For the angle itself the absolute error
# counts, so that only e below _CLOSE * spread^2 is repaired: few pairs of tiny points, many of
# which are nearly parallel. A few eps * spread is rounding alone: there identical points hide.
_CLOSE, _NOISE = 1e-3, 16
# Repairs of a row, one after the other, up to which they cost less than a better product for the
# whole tile.
_CROWD = 8


def _lengths(x: Float[Array, "n d"]) -> Array:
    """s_x, (n,)."""
    s, _ = _lengths_and_excesses(x)
    return s


def _lengths_and_excesses(x: Float[Array, "n d"]) -> tuple[Array, Array]:
    """s_x, and 1 - 1 / s_x without cancellation for small x, both (n,)."""
    square = jnp.sum(x * x, axis=1) / x.shape[1]
    s = jnp.sqrt(1 + square)
    return s, square / (1 + s) / s


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


def _separation(z: Array, x: Array, product: Array) -> tuple[Array, Array]:
    """e = 1 - rho, and `spread`, the size of the terms that it is the difference of; both (rows of
    z, rows of x).

    With a = 1 - 1/s_z and b = 1 - 1/s_x,

        1 - rho = a + b - a b - <z, x> / (d s_z s_x),

    whose error shrinks with the points, unlike that of 1 - (1 + <z, x>/d)/(s_z s_x); points are
    tiny when a network is trained on perturbations alone.
    """
    root_d = z.shape[1] ** 0.5
    s_z, a = _lengths_and_excesses(z)
    s_x, b = _lengths_and_excesses(x)
    # A division of pairs would cost more.
    inverse_z = 1 / (s_z * root_d)
    inverse_x = 1 / (s_x * root_d)
    spread = a[:, None] + b[None, :] - a[:, None] * b[None, :]
    scale = inverse_z[:, None] * inverse_x[None, :]
    return spread - product * scale, spread


def _unresolved(e: Array, spread: Array, *, derivative: bool) -> Array:
    """Which pairs need their angle, or its derivative, from `_pair`: more of them for the
    derivative.
    """
    near = jnp.where(e > 1, 2 - e, e)
    if derivative:
        return near <= _CLOSE * spread
    rounding = _NOISE * float(jnp.finfo(e.dtype).eps)
    return near <= jnp.maximum(_CLOSE * spread, rounding) * spread


class _Parts(NamedTuple):
    """Points = alpha v + across, (n, d), all in units of sqrt(d), and their lengths."""

    s: Array  # (n,)
    alpha: Array  # (n,)
    across: Array  # (n, d)
    square: Array  # (n,), |across|^2


def _parts(points: Array, v: Array) -> _Parts:
    d = points.shape[1]
    s = _lengths(points)
    alpha = exact_matmul(points, v)
    across = points - alpha[:, None] * v[None, :]
    square = jnp.sum(across**2, axis=1) / d
    return _Parts(s, alpha / d**0.5, across / d**0.5, square)


def _common_direction(x: Array) -> Array:
    """v, (d,): one step of the power method from the longest of the points."""
    squares = jnp.sum(x**2, axis=1)
    index = jnp.arange(len(x))
    # Not argmax: within `jit` it is lowered by the x64 setting outside of a scoped `enable_x64`.
    longest = jnp.where(squares == squares.max(), index, len(x) - 1).min()
    v = exact_matmul(exact_matmul(x, x[longest]), x)
    length = jnp.linalg.norm(v)
    return v / jnp.maximum(length, jnp.finfo(v.dtype).tiny)


def _deflated(
    z: Array,
    x: Array,
    e: Array,
    close: Array,
) -> tuple[Array, Array]:
    """e = 1 - rho and which pairs need repair, where many points lie along one direction v, as
    perturbations do.

    With z = alpha_z v + z' and x = alpha_x v + x', without the terms that cancel,

        s_z^2 s_x^2 (1 - rho^2) = |z - x|^2 / d + G / d^2,
        |z - x|^2 = (alpha_z - alpha_x)^2 + |z' - x'|^2,
        G = |z|^2 |x|^2 - <z, x>^2
          = alpha_z^2 |x'|^2 + alpha_x^2 |z'|^2 + |z'|^2 |x'|^2
            - 2 alpha_z alpha_x <z', x'> - <z', x'>^2,

    so that rounding leaves errors of eps |z'|^2 and eps alpha |alpha_z - alpha_x| instead of eps
    |z|^2.
    """
    v = _common_direction(x)
    of_z, of_x = _parts(z, v), _parts(x, v)
    s_z, s_x = of_z.s[:, None], of_x.s[None, :]
    alpha_z, alpha_x = of_z.alpha[:, None], of_x.alpha[None, :]
    square_z, square_x = of_z.square[:, None], of_x.square[None, :]
    product = exact_matmul(of_z.across, of_x.across.T)
    spread = square_z + square_x
    spread = spread + alpha_z**2 * square_x
    spread = spread + alpha_x**2 * square_z
    spread = spread + square_z * square_x
    along = alpha_z * alpha_x
    apart = (alpha_z - alpha_x) ** 2
    square = spread + apart - (2 + 2 * along + product) * product
    square = jnp.clip(square, 0)  # s_z^2 s_x^2 (1 - rho^2)
    rho = (1 + along + product) / (s_z * s_x)
    better = rho > 0
    resolved = jnp.maximum(_CLOSE * spread, _CLOSE**2 * (alpha_z**2 + alpha_x**2))
    exact = square / (s_z * s_x) ** 2 / jnp.where(better, 1 + rho, 1)
    e = jnp.where(better, exact, e)
    return e, jnp.where(better, square <= resolved, close)


def _split(a: Array) -> tuple[Array, Array]:
    """(high, low), whose sum is a, each with at most half of the significand.

    Products of two such parts are exact.
    """
    if a.dtype == jnp.float32:
        bits, mask = jnp.uint32, 0xFFFFF000
    else:
        bits, mask = jnp.uint64, 0xFFFFFFFFF8000000
    integer = lax.bitcast_convert_type(a, bits)
    integer = integer & jnp.array(mask, bits)
    high = lax.bitcast_convert_type(integer, a.dtype)
    return high, a - high


def _across(x: Array, z: Array) -> Array:
    """The part of x orthogonal to z, row by row, to an error of about eps^1.5 |x|.

    x - ratio z from exact partial products; the second round removes what the rounding of the ratio
    left along z.
    """
    square = jnp.sum(z**2, axis=1, keepdims=True)
    square = jnp.where(square > 0, square, 1)
    z_high, z_low = _split(z)
    for _ in range(2):
        ratio = jnp.sum(x * z, axis=1, keepdims=True) / square
        high, low = _split(ratio)
        x = x - high * z_high - high * z_low
        x = x - low * z_high - low * z_low
    return x


def _pair(z: Array, x: Array) -> tuple[Array, Array]:
    """sin(theta) and w = x / s_x - rho z / s_z, row by row, with no cancellation beyond that of
    x - z.

    With x - z = along + across, parallel and orthogonal to z,

        w = (across + along / s_z^2) / s_x,
        d s_x^2 sin^2(theta) = |across|^2 + |along|^2 / s_z^2.
    """
    eps = float(jnp.finfo(x.dtype).eps)
    s_z, s_x = _lengths(z), _lengths(x)
    norm = jnp.linalg.norm(z, axis=1, keepdims=True)
    unit = z / jnp.where(norm > 0, norm, 1)
    difference = x - z
    along = jnp.sum(difference * unit, axis=1, keepdims=True)
    # x and x - z have the same part across z. x - z was itself rounded, by eps |x - z|: it is the
    # better start only where it is so short that this is below the error of projecting x.
    square = jnp.sum(x**2, axis=1, keepdims=True)
    square_apart = jnp.sum(difference**2, axis=1, keepdims=True)
    start = jnp.where(square_apart < eps * square, difference, x)
    across = _across(start, z)
    w = (across + along / s_z[:, None] ** 2 * unit) / s_x[:, None]
    square_of_w = jnp.sum(across**2, axis=1) + (along[:, 0] / s_z) ** 2
    sine = jnp.sqrt(square_of_w / z.shape[1]) / s_x
    return sine, w


def _pair_where(hit: Array, z: Array, x: Array) -> tuple[Array, Array]:
    """What `_pair` is in the rows that are hit; 0 at once if all of them coincide, as each point
    does with itself.
    """
    distance = jnp.where(hit[:, None], jnp.abs(x - z), 0)
    differs = jnp.max(distance) > 0

    def coincident(z: Array, x: Array) -> tuple[Array, Array]:
        zeros = jnp.zeros_like(x - z)  # which varies over devices where either does
        return zeros[:, 0], zeros

    return lax.cond(differs, _pair, coincident, z, x)


@jax.custom_vjp
def products_and_angles(
    z: Float[Array, "r d"],
    x: Float[Array, "c d"],
) -> tuple[Array, Array]:
    """<z, x> and theta(z, x), both (rows of z, rows of x).

    theta is 0 exactly for identical points. Its derivative is, with w = x / s_x - rho z / s_z,

        d theta / dz = -w / (d s_z sin theta),

    of length at most 1 / (sqrt(d) s_z); at coincident points, where theta has a cone, it is 0: the
    central difference and the limit of finite networks (theory: sections 0.3 to 0.5).

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0, 2.0]])
        >>> product, angle = products_and_angles(x, x)
        >>> float(product[0, 0]), float(angle[0, 0])
        (5.0, 0.0)
    """
    product = exact_matmul(z, x.T)
    return product, _angles(z, x, product)


def _angles(z: Array, x: Array, product: Array) -> Array:
    e, spread = _separation(z, x, product)
    row = jnp.arange(z.shape[0])

    def repair(column, hit, theta):
        sine, _ = _pair_where(hit, z, x[column])
        exact = jnp.arctan2(sine, 1 - e[row, column])
        repaired = jnp.where(hit, exact, theta[row, column])
        return theta.at[row, column].set(repaired)

    flagged = _unresolved(e, spread, derivative=False)
    return visit_flagged(flagged, repair, arccos_one_minus(e))


def _forward(z, x):
    return products_and_angles(z, x), (z, x)


def _backward(residuals, cotangents):
    z, x = residuals
    product_bar, theta_bar = cotangents
    e, spread = _separation(z, x, exact_matmul(z, x.T))
    close = _unresolved(e, spread, derivative=True)
    # Far out the products of lengths outgrow the small angles, and only pairs one by one are right.
    longest_z = jnp.sum(z**2, axis=1).max()
    longest_x = jnp.sum(x**2, axis=1).max()
    near = jnp.maximum(longest_z, longest_x) <= 4 * z.shape[1]
    crowded = near & jnp.any(jnp.sum(close, axis=1) > _CROWD)

    def as_they_are(z, x, e, close):
        return e, close

    e, close = lax.cond(crowded, _deflated, as_they_are, z, x, e, close)
    z_bar = _gradient(z, x, e, close, product_bar, theta_bar)
    x_bar = _gradient(x, z, e.T, close.T, product_bar.T, theta_bar.T)
    return z_bar, x_bar


def _gradient(
    z: Array,
    x: Array,
    e: Array,
    close: Array,
    product_bar: Array,
    theta_bar: Array,
) -> Array:
    """The cotangent of z; all pairs that are not close through one product with x, the others one
    by one.
    """
    weight = _gradient_weight(z, theta_bar)
    square_of_sine = jnp.where(close, 1, e * (2 - e))
    kappa = jnp.where(close, 0, weight * lax.rsqrt(square_of_sine))
    rows = jnp.arange(z.shape[0])

    def add(column, hit, total):
        sine, w = _pair_where(hit, z, x[column])
        differs = hit & (sine > 0)
        divisor = jnp.where(differs, sine, 1)
        factor = jnp.where(differs, weight[rows, column] / divisor, 0)
        return total + factor[:, None] * w

    smooth = _smooth_gradient(z, x, e, kappa, product_bar)
    return visit_flagged(close, add, smooth)


def _gradient_weight(z: Array, theta_bar: Array) -> Array:
    """What w / sin(theta) is multiplied by in the gradient of theta, for each pair."""
    d = z.shape[1]
    factor = -1 / (d * _lengths(z))
    return theta_bar * factor[:, None]


def _smooth_gradient(
    z: Array,
    x: Array,
    e: Array,
    kappa: Array,
    product_bar: Array,
) -> Array:
    """sum_j product_bar_j x_j + kappa_j w_j for every row of z, w_j = x_j / s_j - rho_j z / s_z."""
    s_z, s_x = _lengths(z), _lengths(x)
    along_z = row_sums(kappa * (1 - e)) / s_z
    along_x = product_bar + kappa * (1 / s_x)[None, :]
    return exact_matmul(along_x, x) - along_z[:, None] * z


products_and_angles.defvjp(_forward, _backward)


@jax.custom_vjp
def quick_products_and_angles(
    z: Float[Array, "r d"],
    x: Float[Array, "c d"],
) -> tuple[Array, Array]:
    """<z, x> and theta(z, x) as of `products_and_angles`, but NaN for angles that need repair.

    Gradients that contain a pair which needs repair are NaN, too. Whether there are any is then
    seen in the sums, and not in a pass of its own over all pairs (`kernels.products`).
    """
    product = exact_matmul(z, x.T)
    e, spread = _separation(z, x, product)
    unresolved = _unresolved(e, spread, derivative=False)
    return product, jnp.where(unresolved, jnp.nan, arccos_one_minus(e))


def _quick_forward(z, x):
    return quick_products_and_angles(z, x), (z, x)


def _quick_backward(residuals, cotangents):
    z, x = residuals
    product_bar, theta_bar = cotangents
    e, spread = _separation(z, x, exact_matmul(z, x.T))
    unresolved = _unresolved(e, spread, derivative=True)
    inverse_sine = jnp.where(unresolved, jnp.nan, lax.rsqrt(e * (2 - e)))

    def gradient(z, x, e, inverse_sine, product_bar, theta_bar):
        kappa = _gradient_weight(z, theta_bar) * inverse_sine
        return _smooth_gradient(z, x, e, kappa, product_bar)

    z_bar = gradient(z, x, e, inverse_sine, product_bar, theta_bar)
    x_bar = gradient(x, z, e.T, inverse_sine.T, product_bar.T, theta_bar.T)
    return z_bar, x_bar


quick_products_and_angles.defvjp(_quick_forward, _quick_backward)
