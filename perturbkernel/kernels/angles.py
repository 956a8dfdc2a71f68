"""The angle between augmented points, and its derivative, right to rounding everywhere.

An input x enters the network's first layer as x_bar = (x / sqrt(d), 1), of length s_x = sqrt(1 +
|x|^2 / d). All moments of a leaky ReLU depend on the angle theta(x, z) between x_bar and z_bar and
on the product <x, z>.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.engine.sums import row_sums
from perturbkernel.engine.tiles import EXACT, visit_flagged

# arccos(1 - e) / sqrt(e) on [0, 1]: the degree-7 Chebyshev fit, lowest power first. The angle's
# error is 2.5e-8, below what float32 resolves.
_ARCCOS = (
    1.4142135437187682,
    0.11785343938986424,
    0.026470001756987122,
    0.0082441960777098,
    0.0013990023264115925,
    0.00345726244413711,
    -0.002078148734444396,
    0.0012370048538673589,
)

# The same in powers of e - 1/2, for float64: the degree-18 Chebyshev fit, right to 1.4e-16
# relative.
_ARCCOS_64 = (
    1.480960979386122,
    0.15203218246933084,
    0.044117253271913064,
    0.017193086871914294,
    0.0077128656093444345,
    0.0037572001469517316,
    0.0019319788745712524,
    0.0010321326230191084,
    0.0005673011573010344,
    0.0003187443501383388,
    0.00018224361459909973,
    0.00010561668625541643,
    6.198746515158411e-05,
    3.7218149420943136e-05,
    2.2229988405199135e-05,
    1.1652074662331296e-05,
    7.105127320085701e-06,
    7.799544714783368e-06,
    4.741069125501733e-06,
)

# Rounding leaves 1 - rho = e with an error of eps spread, so the angle sqrt(2 e) with eps spread /
# sqrt(2 e). Derivatives need its relative error: pairs with e below _CLOSE * spread (and opposite
# pairs) are repaired, from the difference of the points. For the angle itself the absolute error
# counts, so that only e below _CLOSE * spread^2 is repaired: few pairs of tiny points, many of
# which are nearly parallel. A few eps * spread is rounding alone: there identical points hide.
_CLOSE, _NOISE = 1e-3, 16
# Repairs of a row, one after the other, up to which they cost less than a better product for the
# whole tile.
_CROWD = 8


def _lengths(x: Float[Array, "n d"]) -> tuple[Array, Array]:
    """s_x, and 1 - 1 / s_x without cancellation for small x."""
    square = jnp.sum(x * x, axis=1) / x.shape[1]
    s = jnp.sqrt(1 + square)
    return s, square / (1 + s) / s


def _arccos_one_minus(e: Array) -> Array:
    """arccos(1 - e), 0 <= e <= 2; NaN beyond."""
    near = jnp.where(e > 1, 2 - e, e)
    # A polynomial in either precision: XLA's own arcsin takes ten times as long.
    coefficients, at = (_ARCCOS, near) if e.dtype == jnp.float32 else (_ARCCOS_64, near - 0.5)
    polynomial = jnp.full_like(near, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        polynomial = polynomial * at + coefficient
    angle = jnp.sqrt(near) * polynomial
    return jnp.where(e > 1, np.pi - angle, angle)


def angle_of_product(product: Array, square_z: Array, square_x: Array, d: int | Array) -> Array:
    """theta from <z, x>, |z|^2 and |x|^2 alone (broadcast), for sums over many pairs.

    The error is about eps for most pairs but sqrt(eps) where z and x nearly coincide, 3e-4 in
    float32: too large for derivatives, harmless in a sum over n points. `products_and_angles` has
    no such exception.
    """
    s_z, s_x = jnp.sqrt(1 + square_z / d), jnp.sqrt(1 + square_x / d)
    a, b = square_z / d / (1 + s_z) / s_z, square_x / d / (1 + s_x) / s_x
    return _arccos_one_minus(jnp.clip(a + b - a * b - product / (d * s_z * s_x), 0, 2))


def _separation(z: Array, x: Array, product: Array) -> tuple[Array, Array]:
    """1 - rho, and `spread`, the size of the terms that it is the difference of; (rows of z, rows
    of x).

    1 - rho = a + b - a b - <z, x> / (d s_z s_x) with a = 1 - 1/s_z, b = 1 - 1/s_x: unlike 1 - (1 +
    <z, x>/d)/(s_z s_x), its error shrinks with the points, which are tiny when a network is trained
    on perturbations alone.
    """
    (s_z, a), (s_x, b) = _lengths(z), _lengths(x)
    # A division of pairs would cost more.
    inverse_z, inverse_x = (1 / (s * z.shape[1] ** 0.5) for s in (s_z, s_x))
    spread = a[:, None] + b[None, :] - a[:, None] * b[None, :]
    return spread - product * (inverse_z[:, None] * inverse_x[None, :]), spread


def _unresolved(e: Array, spread: Array, *, derivative: bool) -> Array:
    """Which pairs need their angle, or its derivative, from `_pair`: more of them for the
    derivative.
    """
    near = jnp.where(e > 1, 2 - e, e)
    if derivative:
        return near <= _CLOSE * spread
    return near <= jnp.maximum(_CLOSE * spread, _NOISE * float(jnp.finfo(e.dtype).eps)) * spread


def _deflated(z: Array, x: Array, e: Array, close: Array) -> tuple[Array, Array]:
    """1 - rho and which pairs need repair, where many points lie along one direction v, as
    perturbations do.

    With z = alpha_z v + z', x = alpha_x v + x' and G = |z|^2 |x|^2 - <z, x>^2, without the terms
    that cancel,

        s_z^2 s_x^2 (1 - rho^2) = |z - x|^2 / d + G / d^2,   |z - x|^2 = (alpha_z - alpha_x)^2 + |z'
        - x'|^2, G = alpha_z^2 |x'|^2 + alpha_x^2 |z'|^2 + |z'|^2 |x'|^2 - 2 alpha_z alpha_x <z',
        x'> - <z', x'>^2,

    so that rounding leaves errors of eps |z'|^2 and eps alpha |alpha_z - alpha_x| instead of eps
    |z|^2.
    """
    d = z.shape[1]
    squares = jnp.sum(x**2, axis=1)
    # Not argmax: within `jit` it is lowered by the x64 setting outside of a scoped `enable_x64`.
    longest = jnp.where(squares == squares.max(), jnp.arange(len(x)), len(x) - 1).min()
    v = jnp.matmul(jnp.matmul(x, x[longest], precision=EXACT), x, precision=EXACT)
    v = v / jnp.maximum(jnp.linalg.norm(v), jnp.finfo(v.dtype).tiny)

    def parts(points):
        (s, _), alpha = _lengths(points), jnp.matmul(points, v, precision=EXACT)
        across = points - alpha[:, None] * v[None, :]
        return s, alpha / d**0.5, across / d**0.5, jnp.sum(across**2, axis=1) / d

    (s_z, alpha_z, z, square_z), (s_x, alpha_x, x, square_x) = parts(z), parts(x)
    s_z, alpha_z, square_z = s_z[:, None], alpha_z[:, None], square_z[:, None]
    s_x, alpha_x, square_x = s_x[None, :], alpha_x[None, :], square_x[None, :]
    product = jnp.matmul(z, x.T, precision=EXACT)
    spread = (
        square_z + square_x + alpha_z**2 * square_x + alpha_x**2 * square_z + square_z * square_x
    )
    along = alpha_z * alpha_x
    square = jnp.clip(spread + (alpha_z - alpha_x) ** 2 - (2 + 2 * along + product) * product, 0)
    rho = (1 + along + product) / (s_z * s_x)
    better = rho > 0
    resolved = jnp.maximum(_CLOSE * spread, _CLOSE**2 * (alpha_z**2 + alpha_x**2))
    exact = square / (s_z * s_x) ** 2 / jnp.where(better, 1 + rho, 1)
    return jnp.where(better, exact, e), jnp.where(better, square <= resolved, close)


def _split(a: Array) -> tuple[Array, Array]:
    """A = high + low, each with at most half of the significand, so that products of parts are
    exact.
    """
    bits, mask = (
        (jnp.uint32, 0xFFFFF000) if a.dtype == jnp.float32 else (jnp.uint64, 0xFFFFFFFFF8000000)
    )
    integer = lax.bitcast_convert_type(a, bits) & jnp.array(mask, bits)
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
        high, low = _split(jnp.sum(x * z, axis=1, keepdims=True) / square)
        x = x - high * z_high - high * z_low - low * z_high - low * z_low
    return x


def _pair(z: Array, x: Array) -> tuple[Array, Array]:
    """sin(theta) and w = x / s_x - rho z / s_z, row by row, with no cancellation beyond that of x -
    z.

    With x - z = along + across, parallel and orthogonal to z: w = (across + along / s_z^2) / s_x
    and d s_x^2 sin^2(theta) = |across|^2 + |along|^2 / s_z^2.
    """
    (s_z, _), (s_x, _) = _lengths(z), _lengths(x)
    norm = jnp.linalg.norm(z, axis=1, keepdims=True)
    unit = z / jnp.where(norm > 0, norm, 1)
    difference = x - z
    along = jnp.sum(difference * unit, axis=1, keepdims=True)
    # x and x - z have the same part across z. x - z was itself rounded, by eps |x - z|: it is the
    # better start only where it is so short that this is below the error of projecting x.
    square, short = (
        jnp.sum(x**2, axis=1, keepdims=True),
        jnp.sum(difference**2, axis=1, keepdims=True),
    )
    across = _across(jnp.where(short < float(jnp.finfo(x.dtype).eps) * square, difference, x), z)
    w = (across + along / s_z[:, None] ** 2 * unit) / s_x[:, None]
    sine = jnp.sqrt((jnp.sum(across**2, axis=1) + (along[:, 0] / s_z) ** 2) / z.shape[1]) / s_x
    return sine, w


def _pair_where(hit: Array, z: Array, x: Array) -> tuple[Array, Array]:
    """`_pair` of the rows that are hit; 0 at once if all of them coincide, as each point does with
    itself.
    """
    differs = jnp.max(jnp.where(hit[:, None], jnp.abs(x - z), 0)) > 0

    def coincident(z: Array, x: Array) -> tuple[Array, Array]:
        zeros = jnp.zeros_like(x - z)  # which varies over devices where either does
        return zeros[:, 0], zeros

    return lax.cond(differs, _pair, coincident, z, x)


@jax.custom_vjp
def products_and_angles(z: Float[Array, "r d"], x: Float[Array, "c d"]) -> tuple[Array, Array]:
    """<z, x> and theta(z, x), both (rows of z, rows of x).

    theta is 0 exactly for identical points. Its derivative, with w = x / s_x - rho z / s_z, is d
    theta / dz = -w / (d s_z sin theta), of length at most 1 / (sqrt(d) s_z); at coincident points,
    where theta has a cone, it is 0: the central difference and the limit of finite networks
    (theory: sections 0.3 to 0.5).
    """
    product = jnp.matmul(z, x.T, precision=EXACT)
    return product, _angles(z, x, product)


def _angles(z: Array, x: Array, product: Array) -> Array:
    e, spread = _separation(z, x, product)
    row = jnp.arange(z.shape[0])

    def repair(column, hit, theta):
        sine, _ = _pair_where(hit, z, x[column])
        exact = jnp.arctan2(sine, 1 - e[row, column])
        return theta.at[row, column].set(jnp.where(hit, exact, theta[row, column]))

    return visit_flagged(_unresolved(e, spread, derivative=False), repair, _arccos_one_minus(e))


def _forward(z, x):
    return products_and_angles(z, x), (z, x)


def _backward(residuals, cotangents):
    z, x = residuals
    e, spread = _separation(z, x, jnp.matmul(z, x.T, precision=EXACT))
    close = _unresolved(e, spread, derivative=True)
    # Far out the products of lengths outgrow the small angles, and only pairs one by one are right.
    near = jnp.maximum(jnp.sum(z**2, axis=1).max(), jnp.sum(x**2, axis=1).max()) <= 4 * z.shape[1]
    crowded = near & jnp.any(jnp.sum(close, axis=1) > _CROWD)
    e, close = lax.cond(crowded, _deflated, lambda z, x, e, close: (e, close), z, x, e, close)
    product_bar, theta_bar = cotangents
    return (
        _gradient(z, x, e, close, product_bar, theta_bar),
        _gradient(x, z, e.T, close.T, product_bar.T, theta_bar.T),
    )


def _gradient(z, x, e, close, product_bar, theta_bar):
    """The cotangent of z; all pairs that are not close through one product with x, the others one
    by one.
    """
    weight = _gradient_weight(z, theta_bar)
    kappa = jnp.where(close, 0, weight * lax.rsqrt(jnp.where(close, 1, e * (2 - e))))
    rows = jnp.arange(z.shape[0])

    def add(column, hit, total):
        sine, w = _pair_where(hit, z, x[column])
        differs = hit & (sine > 0)
        return (
            total
            + jnp.where(differs, weight[rows, column] / jnp.where(differs, sine, 1), 0)[:, None] * w
        )

    return visit_flagged(close, add, _smooth_gradient(z, x, e, kappa, product_bar))


def _gradient_weight(z, theta_bar):
    """What w / sin(theta) is multiplied by in the gradient of theta, a pair."""
    return theta_bar * (-1 / (z.shape[1] * _lengths(z)[0]))[:, None]


def _smooth_gradient(z, x, e, kappa, product_bar):
    """sum_j product_bar_j x_j + kappa_j w_j for every row of z, w_j = x_j / s_j - rho_j z / s_z."""
    (s_z, _), (s_x, _) = _lengths(z), _lengths(x)
    along_z = row_sums(kappa * (1 - e)) / s_z
    return (
        jnp.matmul(product_bar + kappa * (1 / s_x)[None, :], x, precision=EXACT)
        - along_z[:, None] * z
    )


products_and_angles.defvjp(_forward, _backward)


@jax.custom_vjp
def quick_products_and_angles(
    z: Float[Array, "r d"], x: Float[Array, "c d"]
) -> tuple[Array, Array]:
    """`products_and_angles` for most pairs: angles that need repair are NaN, and so are gradients
    that contain such.

    Whether there are any is then seen in the sums, and not in a pass of its own over all pairs.
    """
    product = jnp.matmul(z, x.T, precision=EXACT)
    e, spread = _separation(z, x, product)
    return product, jnp.where(
        _unresolved(e, spread, derivative=False), jnp.nan, _arccos_one_minus(e)
    )


def _quick_forward(z, x):
    return quick_products_and_angles(z, x), (z, x)


def _quick_backward(residuals, cotangents):
    z, x = residuals
    e, spread = _separation(z, x, jnp.matmul(z, x.T, precision=EXACT))
    inverse_sine = jnp.where(
        _unresolved(e, spread, derivative=True), jnp.nan, lax.rsqrt(e * (2 - e))
    )

    def gradient(z, x, e, inverse_sine, product_bar, theta_bar):
        return _smooth_gradient(z, x, e, _gradient_weight(z, theta_bar) * inverse_sine, product_bar)

    product_bar, theta_bar = cotangents
    return (
        gradient(z, x, e, inverse_sine, product_bar, theta_bar),
        gradient(x, z, e.T, inverse_sine.T, product_bar.T, theta_bar.T),
    )


quick_products_and_angles.defvjp(_quick_forward, _quick_backward)
