"""Small sums over pairs of points at once, by NumPy, where a program is not worth compiling.

A careful tile compiles for a second and runs for a millisecond (`kernels.angles`). For up to
`PAIRS` pairs on a processor, outside `jit`, products of points are one small program each, and
what is done to each pair is NumPy. 1 - rho is that of `kernels.angles`, with no direction taken
off, and so are the thresholds. Pairs that need their angle from the difference of the points take
it in float64, and gradients of float32 points of which many nearly coincide, as perturbations do,
take all angles in float64; gradients of float64 points that do are left to programs.

A kernel that defines `of_angles` beside its `tile`, and `angle_cotangents`, is evaluated here. The
formulas of `theory`, which are NumPy, take products and angles from here, too.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from perturbkernel.arrays import as_jax, is_at_hand, or_one, quotient
from perturbkernel.engine.tiles import EXACT

# Pairs up to which NumPy is worth it: at a million a compiled program takes two thirds of its time.
PAIRS = 3 * 2**18
# Pairs that are evaluated at once: their temporaries stay in the cache.
_BLOCK = 2**16
# Numbers in the differences of points that are held at once.
_DIFFERENCES = 2**20
# As in `kernels.angles`: which angles, and which derivatives, are taken from differences.
_CLOSE = 1e-3
_NOISE = 16
# Close pairs of a row from which on all angles are taken in float64, where eps spread / e, the
# relative error of e, is that of float32 for e beyond _CLOSE_IN_FLOAT64 * spread.
_CROWD = 8
_CLOSE_IN_FLOAT64 = 1e-8
# Multiplications up to which a product is taken by BLAS, which starts no threads for twice as many.
_SMALL_PRODUCT = 2**17
_FLOATS = np.float32, np.float64


def takes(kernel: Any, name: str, *arrays: Any) -> bool:
    """Whether sums over pairs of rows of the first two of these arrays are taken here.

    Not those of a kernel whose tiles were given a size.
    """
    z, x, *_ = arrays
    if not all(map(is_at_hand, arrays)) or z.shape[0] * x.shape[0] > PAIRS:
        return False
    if name not in ("ntk", "phi") or kernel.block is not None or kernel.memory is not None:
        return False
    # `of_angles` must belong to the very class whose tile it stands for.
    for cls in type(kernel).__mro__:
        if "tile" in vars(cls):
            return "of_angles" in vars(cls)
    return False


@partial(jax.jit, static_argnums=2)
def _dot(a: Array, b: Array, axis: int) -> Array:
    return lax.dot_general(a, b, (((1,), (axis,)), ((), ())), precision=EXACT)


def _product(a: Any, b: Any, axis: int = 0) -> np.ndarray:
    """a @ b, or a @ b.T for axis 1. Large ones not by BLAS, whose threads go on spinning after it;
    small ones not by a program, which would be compiled for every shape.
    """
    if a.dtype == b.dtype and a.dtype in _FLOATS and a.shape[0] * b.size <= _SMALL_PRODUCT:
        right = np.asarray(b)
        return np.asarray(a) @ (right.T if axis == 1 else right)
    wide = a.dtype == np.float64 and jnp.result_type(float) != np.float64
    if not wide:
        return np.asarray(_dot(a, b, axis))
    with jax.enable_x64(True):
        return np.asarray(_dot(a, b, axis))


# --- angles ---


class _Points(NamedTuple):
    """Points, (n, d), their lengths s and 1 - 1 / s, (n,)."""

    rows: np.ndarray
    s: np.ndarray
    excess: np.ndarray


def _points(rows: np.ndarray) -> _Points:
    d = rows.dtype.type(rows.shape[1])
    square = np.einsum("ij,ij->i", rows, rows) / d
    s = np.sqrt(1 + square)
    excess = square / (1 + s) / s
    return _Points(rows, s, excess)


class _Pairs(NamedTuple):
    """Of a block of queries: <z, x>, e = 1 - rho, and the size of the terms of e.

    Attributes:
        apart: whether no pair is close to coinciding, or opposite: none needs a look of its own.
    """

    product: np.ndarray
    e: np.ndarray
    spread: np.ndarray
    apart: bool


def _separations(z: _Points, x: _Points, product: np.ndarray, block: slice) -> _Pairs:
    """`kernels.angles._separation`, whose docstring has the formula, for a block of queries."""
    d = z.rows.shape[1]
    root_d = z.rows.dtype.type(d**0.5)
    excess_z = z.excess[block, None]
    s_z = z.s[block, None]
    spread = (1 - excess_z) * x.excess
    spread += excess_z
    # e = spread - <z, x> / (d s_z s_x), in place: the arrays are as large as the block.
    product = product[block]
    e = product * (-1 / (s_z * root_d))
    e *= 1 / (x.s * root_d)
    e += spread
    share = max(_CLOSE, _rounding(e))
    limit = share * max(spread.max(), 1)
    nearest = min(e.min(), 2 - e.max())
    return _Pairs(product, e, spread, apart=bool(nearest > limit))


def _rounding(e: np.ndarray) -> np.floating:
    return _NOISE * np.finfo(e.dtype).eps


def _from_poles(e: np.ndarray) -> np.ndarray:
    """How far e is from 0, where two points coincide, and from 2, where they are opposite."""
    return np.minimum(e, 2 - e)


def _unresolved(pairs: _Pairs) -> np.ndarray:
    allowed = np.maximum(_CLOSE * pairs.spread, _rounding(pairs.e))
    allowed *= pairs.spread
    return _from_poles(pairs.e) <= allowed


def _angles(z: _Points, x: _Points, pairs: _Pairs, block: slice) -> np.ndarray:
    # theta = 2 arcsin(sqrt(e / 2)), in one array.
    theta = np.clip(pairs.e, 0, 2)
    theta *= theta.dtype.type(0.5)
    np.sqrt(theta, out=theta)
    np.arcsin(theta, out=theta)
    theta *= 2
    if pairs.apart:
        return theta
    queries = z.rows[block]
    for i, j in _differing(z, x, _unresolved(pairs), block, theta):
        sine, _ = _apart(queries[i], x.rows[j])
        cosine = 1 - pairs.e[i, j]
        theta[i, j] = np.arctan2(sine, cosine)
    return theta


def _differing(
    z: _Points, x: _Points, chosen: np.ndarray, block: slice, at_identical: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The chosen pairs, a few at a time, whose points differ; 0 is written at the others."""
    # Of one dimension: of two it takes ten times as long.
    places = np.flatnonzero(chosen)
    n, d = x.rows.shape
    step = max(1, _DIFFERENCES // d)
    queries = z.rows[block]
    for begin in range(0, len(places), step):
        some = places[begin : begin + step]
        i, j = np.divmod(some, n)
        differ = np.any(queries[i] != x.rows[j], axis=1)
        at_identical[i[~differ], j[~differ]] = 0
        if differ.any():
            yield i[differ], j[differ]


def _apart(z: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sin(theta) and w = x / s_x - rho z / s_z of pairs, row by row, in float64, from x - z.

    With x - z = along + across, parallel and orthogonal to z,

        w = (across + along / s_z^2) / s_x,
        d s_x^2 sin^2(theta) = |across|^2 + |along|^2 / s_z^2.
    """
    z = z.astype(float)
    x = x.astype(float)
    s_z = _points(z).s[:, None]
    s_x = _points(x).s[:, None]
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    unit = z / or_one(norm)

    def along_z(rows: np.ndarray) -> np.ndarray:
        return np.sum(rows * unit, axis=1, keepdims=True)

    across = x - z
    along = along_z(across)
    across -= along * unit
    # What the rounding of the first projection left along z.
    across -= along_z(across) * unit
    w = (across + along / s_z**2 * unit) / s_x
    square_across = np.sum(across**2, axis=1, keepdims=True)
    square = square_across + (along / s_z) ** 2
    sine = np.sqrt(square / z.shape[1]) / s_x
    return sine[:, 0], w


# --- sums ---


def _blocks(z: _Points, x: _Points) -> Iterator[tuple[slice, _Pairs]]:
    """Blocks of queries, and their pairs with all points."""
    product = _product(z.rows, x.rows, 1)
    m, n = product.shape
    rows = max(1, _BLOCK // n)
    for begin in range(0, m, rows):
        block = slice(begin, min(begin + rows, m))
        yield block, _separations(z, x, product, block)


def products_and_angles(z: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """<z, x> and theta(z, x), (rows of z, rows of x); None where many points nearly coincide.

    Example:
        >>> x = np.array([[1.0, 2.0]])
        >>> product, angle = products_and_angles(x, x)
        >>> round(float(product[0, 0]), 3), float(angle[0, 0])
        (5.0, 0.0)
    """
    of_z = _points(z)
    of_x = _points(x)
    product = np.empty((len(z), len(x)), z.dtype)
    theta = np.empty_like(product)
    for block, pairs in _blocks(of_z, of_x):
        if not pairs.apart and _is_crowd(_unresolved(pairs)):
            return None
        product[block] = pairs.product
        theta[block] = _angles(of_z, of_x, pairs, block)
    return product, theta


def angle_gradient(z: np.ndarray, x: np.ndarray, weights: np.ndarray) -> np.ndarray | None:
    """sum_n weights_jn grad_z theta(z_j, x_n), like z; None where many points nearly coincide.

    Example:
        >>> x = np.array([[1.0, 2.0]])
        >>> angle_gradient(x, x, np.ones((1, 1))).tolist()
        [[0.0, 0.0]]
    """
    of_z = _points(z)
    of_x = _points(x)
    along_x = np.empty(weights.shape)
    left = np.empty(z.shape)
    for block, pairs in _blocks(of_z, of_x):
        if _is_crowded(pairs):
            return None
        of_theta = weights[block]
        parts = _angle_gradient(of_z, of_x, pairs, block, 0.0, of_theta, _CLOSE)
        along_x[block], left[block] = parts
    return left + _product(along_x, x)


def tile(kernel: Any, name: str, z: Any, x: Any) -> np.ndarray:
    """The dense kernel, (rows of z, rows of x)."""
    found = np.empty((len(z), len(x)), z.dtype)
    for block, values in _tiles(kernel, name, z, x):
        found[block] = values
    return found


def _tiles(kernel: Any, name: str, z: Any, x: Any) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of queries, and the kernel in their rows."""
    of_z = _points(np.asarray(z))
    of_x = _points(np.asarray(x))
    for block, pairs in _blocks(of_z, of_x):
        theta = _angles(of_z, of_x, pairs, block)
        values = kernel.of_angles(name, of_z.rows[block], of_x.rows, pairs.product, theta)
        yield block, values


def matvec(kernel: Any, name: str, z: Any, x: Any, coef: Any) -> Array:
    """sum_n coef_n kernel(x_n, z_j), (m,) or (m, k)."""
    if coef.ndim == 2:
        return as_jax(_product(tile(kernel, name, z, x), coef))
    coef = np.asarray(coef)
    found = np.empty(len(z), np.result_type(z.dtype, coef))
    for block, values in _tiles(kernel, name, z, x):
        found[block] = np.einsum("ij,j->i", values, coef)
    return as_jax(found)


def query_gradient(
    kernel: Any, name: str, z: Any, x: Any, coef: Any, cotangent: Any
) -> Array | None:
    """The gradient in z of sum_j <cotangent_j, matvec(z)_j>, shaped like z.

    None for float64 points of which many nearly coincide, and for dtypes that NumPy lacks.
    """
    if z.dtype not in _FLOATS:
        return None
    weights = _outer(np.asarray(cotangent), np.asarray(coef))
    z = np.asarray(z)
    x = np.asarray(x)
    found = _gradient_parts(kernel, name, z, x, weights)
    if found is None and z.dtype == np.float32:
        wide = z.astype(float), x.astype(float)
        found = _gradient_parts(kernel, name, *wide, weights, widened=True)
    if found is None:
        return None
    along_x, left = found
    return as_jax(left + _product(along_x, x))


def _gradient_parts(
    kernel: Any,
    name: str,
    z: np.ndarray,
    x: np.ndarray,
    weights: Callable[[slice], np.ndarray],
    widened: bool = False,
) -> tuple[np.ndarray, np.ndarray] | None:
    """(a, b), where the gradient is a x + b; None where points are crowded, unless `widened`."""
    of_z = _points(z)
    of_x = _points(x)
    dtype = np.float32 if widened else z.dtype
    along_x = np.empty((len(z), len(x)), dtype)
    left = np.empty(z.shape, dtype)
    for block, pairs in _blocks(of_z, of_x):
        if not widened and _is_crowded(pairs):
            return None
        theta = _angles(of_z, of_x, pairs, block).astype(dtype, copy=False)
        product_here = pairs.product.astype(dtype, copy=False)
        of_product, of_theta = kernel.angle_cotangents(name, product_here, theta, weights(block))
        closest = _CLOSE_IN_FLOAT64 if widened else _CLOSE
        parts = _angle_gradient(of_z, of_x, pairs, block, of_product, of_theta, closest)
        along_x[block], left[block] = parts
    return along_x, left


def _outer(cotangent: np.ndarray, coef: np.ndarray) -> Callable[[slice], np.ndarray]:
    """The cotangent of the tile, block by block."""
    if coef.ndim == 1:
        return lambda block: cotangent[block, None] * coef
    whole = _product(cotangent, coef, 1)
    return lambda block: whole[block]


def _is_crowded(pairs: _Pairs) -> bool:
    """Whether some row has many pairs whose derivative takes their difference."""
    if pairs.apart:
        return False
    return _is_crowd(_from_poles(pairs.e) <= _CLOSE * pairs.spread)


def _is_crowd(close: np.ndarray) -> bool:
    return bool(np.count_nonzero(close, axis=1).max() > _CROWD)


def _angle_gradient(
    z: _Points,
    x: _Points,
    pairs: _Pairs,
    block: slice,
    product_bar: np.ndarray | float,
    theta_bar: np.ndarray,
    closest: float,
) -> tuple[np.ndarray, np.ndarray]:
    """What the gradient of a block of queries has to multiply with x, and what is left of it.

    As `kernels.angles._gradient`, pair by pair where e is below `closest` times its terms.
    """
    e = pairs.e
    rows = z.rows[block]
    d = rows.shape[1]
    s_z = z.s[block]
    weight = theta_bar * (-1 / (d * s_z[:, None]))
    # kappa = weight / sin(theta), where sin(theta)^2 = e (2 - e).
    kappa = 2 - e
    kappa *= e
    close = None
    if not pairs.apart:
        close = _from_poles(e) <= closest * pairs.spread
        kappa[close] = np.inf  # left out here
    np.sqrt(kappa, out=kappa)
    np.divide(weight, kappa, out=kappa)
    along_z = np.einsum("ij,ij->i", kappa, 1 - e) / s_z
    left = -along_z[:, None] * rows
    kappa /= x.s
    kappa += product_bar
    if close is None:
        return kappa, left
    for i, j in _differing(z, x, close, block, weight):
        sine, w = _apart(rows[i], x.rows[j])
        factor = quotient(weight[i, j], sine, sine > 0)
        np.add.at(left, i, factor[:, None] * w)
    return kappa, left
