"""Sums, products and positive multiples of kernels: kernels again.

`k1 + k2`, `k1 * k2` and `2.0 * k` make these. The parts may be of any kind that takes the same
inputs; those that are constants under `jit` make a constant.
"""

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array

from perturbkernel.checks import check_number, is_traced
from perturbkernel.display import in_short
from perturbkernel.kernels.base import Kernel
from perturbkernel.kernels.dense import careful_tile

# Arrays of the size of a tile, beside those of the parts, that a gradient of a combination holds.
_COMBINED = 2
AnyArray = Array | np.ndarray
_Class = TypeVar("_Class", bound=type)


class Combination(Kernel):
    """A kernel made of others, which take the same inputs and share its memory."""

    parts: tuple[Kernel, ...]

    @property
    def memory(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The least of what the parts may use; None where none has a limit."""
        given = [part.memory for part in self.parts if part.memory is not None]
        return min(given, default=None)

    @property
    def block(self) -> tuple[int, int] | None:  # pyright: ignore
        """The largest tile that is none too large for a part."""
        given = [part.block for part in self.parts if part.block is not None]
        if not given:
            return None
        rows, columns = zip(*given, strict=True)
        return min(rows), min(columns)

    def footprint(self, row: tuple[int, ...]) -> tuple[float, float]:
        """(numbers a pair, numbers a row): those of all parts together, and the results."""
        pairs, rows = zip(*(part.footprint(row) for part in self.parts), strict=True)
        return sum(pairs) + _COMBINED, sum(rows)

    def check_inputs(self, value, name: str, like: tuple[int, ...] | None = None) -> Array:
        """The inputs as an array that every part takes; raises ValueError or TypeError where one
        does not.
        """
        first, *others = self.parts
        array = first.check_inputs(value, name, like)
        for part in others:
            try:
                array = part.check_inputs(array, name, like)
            except (ValueError, TypeError) as error:
                row = array.shape[1:]
                raise ValueError(
                    f"kernels are combined that take different inputs: {in_short(first)} takes "
                    f"rows of shape {row}, and {in_short(part)} says {error}"
                ) from error
        return array

    def _tiles(self, name: str, z: Array, x: Array) -> list[Array]:
        return [careful_tile(part, name)(z, x) for part in self.parts]


def _parts_are_children(*constants: str) -> Callable[[_Class], _Class]:
    """A decorator of classes that makes a tree of a kernel and its parts: without leaves where the
    parts have none.
    """

    def register(cls: _Class) -> _Class:
        jax.tree_util.register_dataclass(cls, data_fields=["parts"], meta_fields=constants)
        return cls

    return register


@_parts_are_children()
@dataclass(frozen=True, repr=False)
class KernelSum(Combination):
    """K_1 + K_2 + ..: of independent networks, the tangent kernel of the sum of their outputs.

    Example:
        >>> import perturbkernel as pk
        >>> kernel = pk.RBF() + 2.0 * pk.ArcCosine()
        >>> kernel, kernel.ntk([[1.0, 0.0]]).tolist()
        (RBF(length_scale=1.0) + 2 * ArcCosine(order=1), [[3.0]])
    """

    parts: tuple[Kernel, ...]

    def __repr__(self) -> str:
        return " + ".join(map(in_short, self.parts))

    def tile(self, name: str, z: Array, x: Array) -> Array:
        """The sum of the parts' tiles called `name`."""
        return functools.reduce(operator.add, self._tiles(name, z, x))

    def gradient_bound(self, z: AnyArray, x: AnyArray, coef: AnyArray) -> AnyArray:
        """The sum of the parts' bounds; where one is not known it counts 0."""
        bounds = [part.gradient_bound(z, x, coef) for part in self.parts]
        return functools.reduce(operator.add, bounds)


@_parts_are_children()
@dataclass(frozen=True, repr=False)
class KernelProduct(Combination):
    """K_1 K_2 .., point by point: the covariance of the product of independent Gaussian processes.

    Example:
        >>> import perturbkernel as pk
        >>> kernel = pk.RBF(2.0) * (pk.ArcCosine() + pk.RBF())
        >>> kernel, kernel.ntk([[1.0, 0.0]]).tolist()
        (RBF(length_scale=2.0) * (ArcCosine(order=1) + RBF(length_scale=1.0)), [[2.0]])
    """

    parts: tuple[Kernel, ...]

    def __repr__(self) -> str:
        return " * ".join(map(_factor_named, self.parts))

    def tile(self, name: str, z: Array, x: Array) -> Array:
        """The product of the parts' tiles called `name`."""
        return functools.reduce(operator.mul, self._tiles(name, z, x))


@_parts_are_children("factor")
@dataclass(frozen=True, repr=False)
class ScaledKernel(Combination):
    """factor K, for a factor > 0: that many times the outputs' variance, and the speed of training.

    Example:
        >>> import perturbkernel as pk
        >>> kernel = 0.5 * (2.0 * pk.RBF())
        >>> kernel == 1.0 * pk.RBF(), kernel.ntk([[1.0, 0.0]]).tolist()
        (True, [[1.0]])
    """

    parts: tuple[Kernel, ...]
    factor: float = 1.0

    def __repr__(self) -> str:
        return f"{self.factor:g} * {_factor_named(self.parts[0])}"

    def tile(self, name: str, z: Array, x: Array) -> Array:
        """The factor times the part's tile called `name`."""
        (tile,) = self._tiles(name, z, x)
        return self.factor * tile

    def gradient_bound(self, z: AnyArray, x: AnyArray, coef: AnyArray) -> AnyArray:
        """The factor times the bound of the part."""
        return self.factor * self.parts[0].gradient_bound(z, x, coef)


def _factor_named(kernel: Kernel) -> str:
    name = in_short(kernel)
    return f"({name})" if isinstance(kernel, KernelSum) else name


def added(first: Kernel, second: Any) -> Any:
    """first + second, of terms in a row; NotImplemented unless the second is a kernel.

    Example:
        >>> import perturbkernel as pk
        >>> added(pk.RBF() + pk.RBF(2.0), pk.RBF(3.0)).parts[2]
        RBF(length_scale=3.0, memory=None)
    """
    if not isinstance(second, Kernel):
        return NotImplemented
    return KernelSum(_in_a_row(KernelSum, first, second))


def multiplied(first: Kernel, second: Any) -> Any:
    """first * second, of factors in a row, or a multiple of the first if the second is a number.

    NotImplemented for anything else; raises ValueError for a number that is not positive and
    finite, and TypeError for a traced one.

    Example:
        >>> import perturbkernel as pk
        >>> multiplied(pk.RBF(), 3)
        3 * RBF(length_scale=1.0)
    """
    if isinstance(second, Kernel):
        return KernelProduct(_in_a_row(KernelProduct, first, second))
    if is_traced(second):
        raise TypeError(
            "a kernel's factor is a constant and must not be traced; multiply the coefficients, or "
            "make the kernel outside jit and vmap"
        )
    is_scalar = isinstance(second, np.ndarray | jax.Array) and second.ndim == 0
    if isinstance(second, bool) or not (is_scalar or isinstance(second, Real)):
        return NotImplemented
    factor = float(second)
    if isinstance(first, ScaledKernel):
        return ScaledKernel(first.parts, _checked_factor(factor * first.factor))
    return ScaledKernel((first,), _checked_factor(factor))


def _checked_factor(factor: float) -> float:
    check_number(factor, "a kernel's factor", open_low=True)
    return factor


def _in_a_row(cls: type[Combination], *kernels: Kernel) -> tuple[Kernel, ...]:
    """The kernels, with the parts of those that are combined in the same way."""
    parts: list[Kernel] = []
    for kernel in kernels:
        parts += kernel.parts if isinstance(kernel, cls) else [kernel]
    return tuple(parts)
