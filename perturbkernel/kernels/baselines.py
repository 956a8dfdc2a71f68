"""Kernels to compare networks with: Gaussian, Laplace and arc-cosine.

They are no tangent kernels of a network with these inputs, but gradient flow in their space of
functions is that of `fit`, and everything that takes a kernel takes them. Both `ntk` and `nngp` are
the kernel itself: the initial function of `sample_initial` is the Gaussian process with this
covariance, and `distribution` at infinite time its posterior.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from perturbkernel.arrays import namespace
from perturbkernel.checks import as_inputs, check_choice, check_count, check_number
from perturbkernel.engine.tiles import exact_matmul
from perturbkernel.kernels.base import Kernel
from perturbkernel.kernels.distances import cityblock_distances, distances, square_distances
from perturbkernel.kernels.products import gradient_footprint

AnyArray = Array | np.ndarray

_NORMS = ("l2", "l1")
_ORDERS = (0, 1, 2)


class _OfRows(Kernel):
    """A kernel between rows (n, d), whose tiles are what they seem."""

    def check_inputs(self, value, name: str, like: tuple[int, ...] | None = None) -> Array:
        """The inputs (n, d), as an array; images are to be flattened."""
        return as_inputs(value, name, like=like, flat=True)

    def footprint(self, row: tuple[int, ...]) -> tuple[float, float]:
        """(numbers a pair of points, numbers a row) of the widest sum, an input gradient."""
        return _footprint(self, tuple(row))


@functools.lru_cache(maxsize=64)
def _footprint(kernel: Kernel, row: tuple[int, ...]) -> tuple[float, float]:
    return gradient_footprint(kernel, row)


def _check_scale(kernel: Any) -> None:
    check_number(kernel.length_scale, "length_scale", open_low=True)
    object.__setattr__(kernel, "length_scale", float(kernel.length_scale))
    _check_memory(kernel)


def _check_memory(kernel: Any) -> None:
    if kernel.memory is not None:
        check_count(kernel.memory, "memory", low=2**20)


@jax.tree_util.register_static
@dataclass(frozen=True)
class RBF(_OfRows):
    """The Gaussian kernel, exp(-|x - z|^2 / (2 length_scale^2)).

    That is scikit-learn's `gaussian_process.kernels.RBF(length_scale)`, and its
    `rbf_kernel(gamma=1 / (2 * length_scale**2))`. Distances of points that nearly coincide are
    taken from their difference, so that values and gradients are right there.

    Args:
        length_scale: positive, in the units of the inputs. Try the median distance between them
            first.
        memory: bytes for the temporaries of a sum, on each device, as of `TwoLayerNTK`.

    Raises ValueError or TypeError for another length scale or memory.

    Example:
        >>> import perturbkernel as pk
        >>> kernel = pk.RBF(length_scale=5.0)
        >>> round(float(kernel.ntk([[0.0, 0.0]], [[3.0, 4.0]])[0, 0]), 4)
        0.6065
    """

    length_scale: float = 1.0
    memory: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self):
        _check_scale(self)

    def tile(self, name: str, z: Array, x: Array) -> Array:
        """The kernel, (rows of z, rows of x), whatever its name."""
        return jnp.exp(-square_distances(z, x, self.length_scale) / 2)

    def gradient_bound(self, z: AnyArray, x: AnyArray, coef: AnyArray) -> AnyArray:
        """(m,), at least sum_n coef_n |grad_z K(x_n, z)|: the slope is at most e^(-1/2) / scale."""
        return _bound(z, coef, math.exp(-0.5) / self.length_scale)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Laplace(_OfRows):
    """The Laplace kernel, exp(-|x - z| / length_scale).

    With norm="l2", the Euclidean length, it is the Matern kernel of order 1/2, scikit-learn's
    `gaussian_process.kernels.Matern(length_scale, nu=0.5)`; with norm="l1", the sum of absolute
    differences, its `laplacian_kernel(gamma=1 / length_scale)`. It has a cone where z = x, as
    kernels of ReLU networks have; the symmetric derivative, 0, is taken there.

    Args:
        length_scale: positive, in the units of the inputs.
        norm: "l2" or "l1", which takes a pass over a tile for every eight coordinates and no
            product of matrices.
        memory: as of `RBF`.

    Raises ValueError or TypeError for another length scale, norm or memory.

    Example:
        >>> import perturbkernel as pk
        >>> kernel = pk.Laplace(length_scale=5.0)
        >>> round(float(kernel.ntk([[0.0, 0.0]], [[3.0, 4.0]])[0, 0]), 4)
        0.3679

    Source: for its likeness to tangent kernels, Geifman et al., On the Similarity between the
    Laplace and Neural Tangent Kernels (NeurIPS 2020).
    """

    length_scale: float = 1.0
    norm: str = "l2"
    memory: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self):
        check_choice(self.norm, "norm", _NORMS)
        _check_scale(self)

    def tile(self, name: str, z: Array, x: Array) -> Array:
        """The kernel, (rows of z, rows of x), whatever its name."""
        measure = distances if self.norm == "l2" else cityblock_distances
        return jnp.exp(-measure(z, x) / self.length_scale)

    def gradient_bound(self, z: AnyArray, x: AnyArray, coef: AnyArray) -> AnyArray:
        """(m,), at least sum_n coef_n |grad_z K(x_n, z)|: the slope is at most 1 / scale, and
        d^(1/2) / scale with norm="l1".
        """
        steepest = 1.0 if self.norm == "l2" else x.shape[1] ** 0.5
        return _bound(z, coef, steepest / self.length_scale)


def _bound(z: AnyArray, coef: AnyArray, slope: float) -> AnyArray:
    """slope sum_n coef_n, for every row of z."""
    xp = namespace(coef)
    ones = xp.ones(z.shape[0], coef.dtype)
    return ones * xp.sum(coef) * slope


@jax.tree_util.register_static
@dataclass(frozen=True)
class ArcCosine(_OfRows):
    """The arc-cosine kernel of order 0, 1 or 2.

    With theta the angle between x and z it is

        K(x, z) = |x|^order |z|^order J(theta) / pi,
        J = pi - theta                                       (order 0),
        J = sin(theta) + (pi - theta) cos(theta)             (order 1),
        J = 3 sin(theta) cos(theta) + (pi - theta) (1 + 2 cos(theta)^2)   (order 2).

    It is 2 E[phi(<w, x>) phi(<w, z>)] for w ~ N(0, I) and phi(u) = max(u, 0)^order (of order 0 the
    step), a ReLU network without biases of which only the readout is trained (order 1). With a
    column of ones beside the inputs it has biases: of rows (x / sqrt(d), 1) order 1 is
    2 `TwoLayerNTK().nngp`, and order 0 is 2 `TwoLayerNTK().phi`.

    Angles of points that are nearly parallel, or nearly opposite, are taken from the difference of
    their directions. Where z is parallel to x order 0 has a cone; there, and at z = 0, derivatives
    are the symmetric ones. A point at 0 makes a right angle with every other; order 0, which is
    discontinuous there, has derivative 0 in it.

    Args:
        order: 0, 1 or 2.
        memory: as of `RBF`.

    Raises ValueError or TypeError for another order or memory.

    Example:
        >>> import perturbkernel as pk
        >>> pk.ArcCosine(order=0).ntk([[1.0, 0.0]], [[0.0, 2.0], [3.0, 0.0]]).tolist()
        [[0.5, 1.0]]

    Source: Cho, Saul, Kernel Methods for Deep Learning (NeurIPS 2009).
    """

    order: int = 1
    memory: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self):
        check_count(self.order, "order", low=0)
        if self.order not in _ORDERS:
            raise ValueError(f"order must be 0, 1 or 2; got {self.order}")
        object.__setattr__(self, "order", int(self.order))
        _check_memory(self)

    def tile(self, name: str, z: Array, x: Array) -> Array:
        """The kernel, (rows of z, rows of x), whatever its name."""
        z_norm, z_unit = _polar(z)
        x_norm, x_unit = _polar(x)
        angle, acute = _angles(z_unit, x_unit)
        norms = z_norm[:, None] * x_norm[None, :]
        if self.order == 0:
            return jnp.where(acute, 1 - angle / math.pi, angle / math.pi)
        # Half of it at z = 0: the symmetric derivative.
        some_z = z_norm[:, None] > 0
        some_x = x_norm[None, :] > 0
        share = jnp.where(some_z & some_x, acute.astype(z.dtype), 0.5)
        product = exact_matmul(z, x.T)
        if self.order == 1:
            rest = _first_rest(angle)
            return share * product + norms * rest / math.pi
        z_square = jnp.sum(z**2, axis=1)
        x_square = jnp.sum(x**2, axis=1)
        squares = z_square[:, None] * x_square[None, :]
        sign = jnp.where(acute, 1, -1)
        rest = sign * _second_rest(angle)
        return share * (squares + 2 * product**2) + norms**2 * rest / math.pi


# With t the angle between the lines of x and z, J of order 1 and 2 is a polynomial where theta is
# acute plus or minus a rest of order t^3 and t^5. At t = 0, where t has no derivative and 0 stands
# for it, the rest has none either: derivatives are right there, of second order too.


@jax.custom_jvp
def _first_rest(t: Array) -> Array:
    """sin(t) - t cos(t), without cancellation: t^3 / 3 - t^5 / 30 + .. where t is small."""
    terms = []
    for k in range(1, 9):
        sign = (-1) ** (k + 1)
        factorial = math.factorial(2 * k + 1)
        terms.append(sign * 2 * k / factorial)
    small = t < 0.5
    series = t**3 * _polynomial(t, small, terms)
    plain = jnp.sin(t) - t * jnp.cos(t)
    return jnp.where(small, series, plain)


_first_rest.defjvps(lambda moved, _, t: moved * t * jnp.sin(t))


@jax.custom_jvp
def _second_rest(t: Array) -> Array:
    """3 sin(t) cos(t) - t (1 + 2 cos(t)^2), without cancellation: -4 t^5 / 15 + .. where t is
    small.
    """
    # In u = 2 t it is 3 sin(u) / 2 - u - u cos(u) / 2.
    terms = []
    for k in range(2, 13):
        power = 2 * k + 1
        in_u = (-1) ** k * (1.5 - power / 2) / math.factorial(power)
        terms.append(in_u * 2**power)
    small = t < 0.5
    series = t**5 * _polynomial(t, small, terms)
    sine, cosine = jnp.sin(t), jnp.cos(t)
    plain = 3 * sine * cosine - t * (1 + 2 * cosine**2)
    return jnp.where(small, series, plain)


_second_rest.defjvps(lambda moved, _, t: -4 * moved * jnp.sin(t) * _first_rest(t))


def _polynomial(t: Array, wanted: Array, terms: list[float]) -> Array:
    """sum_k terms_k t^(2 k), where it is wanted."""
    square = jnp.where(wanted, t, 0) ** 2
    *lower, last = terms
    total = jnp.full_like(square, last)
    for term in reversed(lower):
        total = total * square + term
    return total


def _polar(x: Array) -> tuple[Array, Array]:
    """Lengths (n,) and directions (n, d) of rows; of a row at 0, 0 and 0, with derivatives 0."""
    largest = jax.lax.stop_gradient(jnp.abs(x).max(axis=1, keepdims=True))
    is_zero = largest == 0
    scaled = x / jnp.where(is_zero, 1, largest)
    square = jnp.sum(scaled**2, axis=1, keepdims=True)
    square = jnp.where(is_zero, 1, square)  # whose root has a derivative
    root = jnp.sqrt(square)
    unit = jnp.where(is_zero, 0, scaled / root)
    norm = jnp.where(is_zero, 0, root * largest)
    return norm[:, 0], unit


def _angles(z: Array, x: Array) -> tuple[Array, Array]:
    """The angle between the lines along rows of length 1, at most pi / 2, by Kahan's formula
    2 atan(|z - x| / |z + x|), and whether that between the rows is not larger than pi / 2; a row
    at 0 makes a right angle with every other.

    An angle that is no more than the rounding of the rows is 0, with derivative 0: the same point
    need not have the same direction, bit by bit, in two programs.
    """
    both_signs = jnp.concatenate([x, -x])
    apart, together = jnp.split(distances(z, both_signs), 2, axis=1)
    acute = apart <= together
    near = jnp.where(acute, apart, together)
    far = jnp.where(acute, together, apart)
    units = 8 + z.shape[1] ** 0.5 / 2
    rounding = units * float(jnp.finfo(z.dtype).eps)
    near = jnp.where(near <= rounding, 0, near)
    # At (0, 0) arctan2 has no derivative: there (1, 1) stands in, a right angle.
    both_zero = (apart == 0) & (together == 0)
    near = jnp.where(both_zero, 1, near)
    far = jnp.where(both_zero, 1, far)
    return 2 * jnp.arctan2(near, far), acute
