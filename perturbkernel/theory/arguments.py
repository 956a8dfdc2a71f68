"""What every formula of this package does with its arguments: checks them, and computes in float64.

Checks raise as elsewhere in perturbkernel, in terms of the argument's name. Everything comes out as
NumPy float64 arrays, whatever JAX's precision setting, which is never changed. None of these
functions can be traced by JAX.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.scipy.special as special
import numpy as np

from perturbkernel.checks import (
    as_float,
    as_inputs,
    as_targets,
    check_choice,
    check_count,
    check_finite,
    check_number,
)
from perturbkernel.kernels.two_layer import TwoLayerNTK

LOSSES = ("identity", "logistic")


def double(function: Callable, *arguments: Any) -> Any:
    """The value of function(*arguments) in float64 whatever JAX's setting, as NumPy arrays."""
    with jax.enable_x64(True):
        value = function(*arguments)
        return jax.tree.map(np.asarray, value)


def compiled(function: Callable) -> Callable[..., np.ndarray]:
    """A function of numbers in JAX as one of NumPy float64 arrays of a common shape.

    One program does all of it, for any shape whose size is up to the same power of two, where JAX
    would compile, and call, one for every operation within and every shape.
    """
    program = jax.jit(function)

    def apply(*arguments: Any) -> np.ndarray:
        arrays = np.broadcast_arrays(*arguments)
        shape, size = arrays[0].shape, arrays[0].size
        padded = np.full((len(arrays), max(8, 1 << (size - 1).bit_length())), 0.5)
        for row, array in zip(padded, arrays, strict=True):
            row[:size] = array.ravel()
        return double(program, *padded)[:size].reshape(shape)

    return apply


#: The normal distribution's function, its logarithm, and its quantiles.
ndtr = compiled(special.ndtr)
log_ndtr = compiled(special.log_ndtr)
ndtri = compiled(special.ndtri)


def check_kernel(kernel: Any) -> None:
    """Raises for anything but the paper's kernel."""
    if not isinstance(kernel, TwoLayerNTK):
        raise TypeError(
            f"kernel must be a TwoLayerNTK, whose network the theory is about; got {kernel!r}"
        )


def _is_double(value: Any) -> bool:
    """Whether it is what comes out: then JAX, at 0.2 ms an array, need not see it."""
    return type(value) is np.ndarray and value.dtype == np.float64


def _is_moderate(points: np.ndarray) -> bool:
    """Whether there are points, and neither NaN nor numbers whose squares come near overflowing."""
    return points.size > 0 and bool(np.abs(points).max() < 1e100)


def as_points(
    value: Any, name: str, *, like: np.ndarray | None = None, rows: int | None = None
) -> np.ndarray:
    """(n, d) finite float64; `like` has the wanted row length, `rows` is the number of rows."""
    row = None if like is None else like.shape[1:]

    def checked(v):
        return as_inputs(v, name, like=row, flat=True)

    fits = _is_double(value) and value.ndim == 2 and row in (None, value.shape[1:])
    array = value if fits and _is_moderate(value) else double(checked, value)
    if rows is not None and len(array) != rows:
        raise ValueError(f"{name} must have {rows} rows; got shape {array.shape}")
    return array.astype(np.float64)


def as_labels(value: Any, name: str, n: int) -> np.ndarray:
    """(n,) of -1 and +1."""
    if _is_double(value) and value.shape == (n,) and (np.abs(value) == 1).all():
        return value.copy()
    return double(lambda v: as_targets(v, name, n), value).astype(np.float64)


def as_vector(
    value: Any, name: str, n: int, *, low: float = -np.inf, high: float = np.inf
) -> np.ndarray:
    """(n,) finite numbers within [low, high]; a single number is repeated."""
    array = value if _is_double(value) else double(lambda v: as_float(v, name), value)
    array = array.astype(np.float64)
    if array.shape not in ((), (n,)):
        raise ValueError(f"{name} must have shape ({n},); got {array.shape}")
    check_finite(array, name)
    if array.size and (array.min() < low or array.max() > high):
        raise ValueError(
            f"{name} must lie in [{low:g}, {high:g}]; "
            f"got values from {array.min():g} to {array.max():g}"
        )
    return np.broadcast_to(array, (n,))


def as_network(
    weights: Any, biases: Any, readout: Any, d: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (width, d), biases (width,), readout (width,) in float64."""
    weights = as_points(weights, "weights", like=np.empty((0, d)))
    width = len(weights)
    for name, value in (("biases", biases), ("readout", readout)):
        if np.shape(value) != (width,):
            raise ValueError(
                f"{name} must have shape ({width},), one number a row of weights; "
                f"got {np.shape(value)}"
            )
    biases = as_vector(biases, "biases", width)
    readout = as_vector(readout, "readout", width)
    return weights, biases, readout


def check_statement(delta: Any, width: Any = 1, *, points: Any = None) -> None:
    """A failure probability in (0, 1], a width, and how many points a statement covers."""
    check_number(delta, "delta", low=0.0, high=1.0, open_low=True)
    check_count(width, "width")
    if points is not None:
        check_count(points, "points")


def check_time(time: Any, name: str = "time", *, positive: bool = False) -> None:
    check_number(time, name, open_low=positive)


def check_loss(loss: Any) -> None:
    check_choice(loss, "loss", LOSSES)


def neuron_blocks(width: int, columns: int) -> Iterator[slice]:
    """Slices of neurons whose (neurons, columns) temporaries stay near 32 MB."""
    size = max(1, 2**22 // max(columns, 1))
    for start in range(0, width, size):
        yield slice(start, min(start + size, width))


def cone_slope(kernel: TwoLayerNTK) -> float:
    """(1 - slope)^2 / (2 pi), minus the derivative of Phi in theta. Theory: 0.1."""
    return (1 - kernel.slope) ** 2 / (2 * np.pi)


def gate_mean_square(kernel: TwoLayerNTK) -> float:
    """E[phi'(u)^2] = (1 + slope^2) / 2, the largest value of Phi. Theory: 0.1."""
    return (1 + kernel.slope**2) / 2


def lengths(z: np.ndarray) -> np.ndarray:
    """s_z = sqrt(1 + |z|^2 / d), (m,): the standard deviation of a pre-activation at z."""
    squares = np.sum(z * z, axis=1)
    return np.sqrt(1 + squares / z.shape[1])
