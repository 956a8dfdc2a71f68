"""The kernel of `alternatives` as a person would write it in NumPy, which is all that it needs.

In place and in blocks of queries; the arrays keep their dtype.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Of queries at once in NumPy: the block then stays in the cache between the elementwise passes.
ROWS = 1024


class _Block(NamedTuple):
    """Some queries z (rows, d) with s_z; <z, x> + 1 and rho, (rows, n), to be overwritten."""

    rows: slice
    z: np.ndarray
    s_z: np.ndarray
    product: np.ndarray
    rho: np.ndarray


def _blocks(z: np.ndarray, x: np.ndarray, s_x: np.ndarray) -> Iterator[_Block]:
    """One after the other, in place wherever possible."""
    d = np.float32(x.shape[1])
    s_z = _lengths(z)
    for start in range(0, len(z), ROWS):
        rows = slice(start, start + ROWS)
        queries = z[rows]
        lengths = s_z[rows]
        product = queries @ x.T
        rho = product / d
        rho += 1
        rho /= lengths[:, None]
        rho /= s_x
        np.clip(rho, -1, 1, out=rho)
        product += 1
        yield _Block(rows, queries, lengths, product, rho)


def numpy_phi(rho: np.ndarray) -> np.ndarray:
    """Phi = 1/2 - arccos(rho)/(2 pi)."""
    turn = 2 * np.pi
    phi = np.arccos(rho)
    phi *= np.float32(-1 / turn)
    phi += np.float32(0.5)
    return phi


def _lengths(x: np.ndarray) -> np.ndarray:
    d = np.float32(x.shape[1])
    squares = np.einsum("nd,nd->n", x, x)
    return np.sqrt(1 + squares / d)


def numpy_ntk(z: np.ndarray, x: np.ndarray) -> np.ndarray:
    """K(x, z), (m, n), in the dtype of x."""
    s_x = _lengths(x)
    shape = (len(z), len(x))
    out = np.empty(shape, x.dtype)
    for block in _blocks(z, x, s_x):
        phi = numpy_phi(block.rho)
        into = out[block.rows]
        np.multiply(block.product, phi, out=into)
    return out


def numpy_matvec(z: np.ndarray, x: np.ndarray, coef: np.ndarray) -> np.ndarray:
    """sum_n coef_n K(x_n, z_j), (m,)."""
    s_x = _lengths(x)
    out = np.empty(len(z), np.float32)
    for block in _blocks(z, x, s_x):
        values = block.product
        values *= numpy_phi(block.rho)
        out[block.rows] = values @ coef
    return out


def numpy_input_gradient(
    z: np.ndarray, x: np.ndarray, coef: np.ndarray, at_points: bool = False
) -> np.ndarray:
    """Its gradient in z, (m, d).

    grad K = Phi x + (<x, z> + 1) (xbar - rho zbar) / (2 pi d s_z sin theta)

    The formula fails where a query is a point, as it stands; `at_points` leaves the second term out
    where the sine vanishes.
    """
    d = np.float32(x.shape[1])
    scale = np.float32(2 * np.pi) * d
    s_x = _lengths(x)
    out = np.empty_like(z)
    for rows, queries, s_z, product, rho in _blocks(z, x, s_x):
        weight = product
        weight *= coef
        with np.errstate(divide="ignore", invalid="ignore"):
            sine = np.sqrt(1 - rho * rho)
            weight /= sine
        if at_points:
            weight[sine == 0] = 0
        divisor = scale * s_z
        weight /= divisor[:, None]
        along = np.einsum("mn,mn->m", weight, rho) / s_z
        weight /= s_x
        phi = numpy_phi(rho)
        phi *= coef
        phi += weight
        with np.errstate(invalid="ignore"):
            toward_queries = along[:, None] * queries
            out[rows] = phi @ x - toward_queries
    return out
