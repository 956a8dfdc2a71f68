"""Argument checks: each raises before any computation and names the argument, what was given and
what was wanted.

Shapes are checked always; values only where they are known, that is not while JAX traces a
function.
"""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array


def is_traced(*arrays: Any) -> bool:
    return any(isinstance(a, Tracer) for a in arrays)


def as_float(value: Any, name: str) -> Array:
    """`value` as an array of a floating-point dtype: JAX's default for integers, at least float32
    for floats.
    """
    wanted = f"{name} must be an array of real numbers; got"
    try:
        array = value if isinstance(value, jax.Array) else np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{wanted} {type(value).__name__}: {error}") from None
    if not any(
        jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)
    ):
        raise TypeError(
            f"{wanted} {f'dtype {array.dtype}' if hasattr(value, 'dtype') else type(value).__name__}"
        )
    # Half precision cannot resolve an angle between two images; everything narrower computes in
    # float32.
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    dtype = jnp.promote_types(array.dtype, jnp.float32) if floating else jnp.result_type(float)
    with np.errstate(over="ignore"):  # what overflows float32 is reported as not finite
        return jnp.asarray(array, jax.dtypes.canonicalize_dtype(dtype))


def _sum_of_squares(host: np.ndarray) -> float:
    """One pass over the data: a finite sum tells at once that everything is finite, and how large
    at most.

    Not by BLAS, whose threads would go on spinning when the kernel needs the cores.
    """
    flat = host.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.einsum("i,i->", flat, flat))


def check_finite(array: Array | np.ndarray, name: str) -> None:
    if is_traced(array) or np.isfinite(_sum_of_squares(host := np.asarray(array))):
        return
    # NaN passes through both; unlike a mask, two numbers need no memory when the data is large.
    if not np.isfinite([host.max(), host.min()]).all():
        bad = ~np.isfinite(host)
        row = int(np.argwhere(bad)[0][0]) if bad.ndim else 0
        raise ValueError(
            f"{name} must be finite; got {bad.sum()} NaN or infinite values, the first in row {row}"
        )


def as_inputs(
    value: Any, name: str, *, like: tuple[int, ...] | None = None, flat: bool = False
) -> Array:
    """(n, ...) finite inputs; `like` is the trailing shape they must have, `flat` asks for (n, d)."""
    array = as_float(value, name)
    if array.ndim < 2 or (flat and array.ndim != 2):
        wanted = "(n, d)" if flat else "(n, d), or (n, h, w, c) for convolutional kernels,"
        hint = f"; a single point is {name}[None]" if array.ndim == 1 else ""
        raise ValueError(
            f"{name} must have shape {wanted} one row a point; got shape {array.shape}{hint}"
        )
    if array.size == 0:
        raise ValueError(f"{name} must not be empty; got shape {array.shape}")
    if like is not None and array.shape[1:] != like:
        raise ValueError(
            f"{name} must have rows of shape {like}, as the training inputs; got {array.shape[1:]}"
        )
    if not is_traced(array):
        # Angles need squared lengths.
        limit = float(np.sqrt(np.finfo(array.dtype).max / (array.size // len(array)))) / 4
        host = np.asarray(array)
        if _sum_of_squares(host) <= limit**2:
            return array
        check_finite(array, name)
        largest = float(max(host.max(), -host.min()))
        if largest > limit:
            raise ValueError(
                f"{name} must stay below {limit:.1e} in {array.dtype}, or squares overflow; got {largest:.1e}"
            )
    return array


def as_targets(value: Any, name: str, n: int, *, labels: bool = True) -> Array:
    """(n,) targets; `labels` asks for -1 and +1."""
    array = as_float(value, name)
    if array.shape != (n,):
        hint = f"; use {name}.ravel()" if array.shape in ((n, 1), (1, n)) else ""
        raise ValueError(
            f"{name} must have shape ({n},), one number a row of the inputs; got {array.shape}{hint}"
        )
    check_finite(array, name)
    if labels and not is_traced(array):
        found = np.unique(np.asarray(array))
        if not np.isin(found, (-1, 1)).all():
            shown = ", ".join(f"{v:g}" for v in found[:5]) + (", ..." if len(found) > 5 else "")
            raise ValueError(
                f"{name} must be -1 or +1; found {shown}. Two classes a, b become +1, -1 with "
                f"pk.data.from_arrays(inputs, targets, classes=(a, b)); more than two are pk.one_hot(labels, K)"
            )
    return array


def as_class_targets(value: Any, name: str, n: int) -> Array:
    """(n, K) targets of K >= 2 outputs, any real numbers."""
    array = as_float(value, name)
    if array.ndim != 2 or array.shape[0] != n or array.shape[1] < 2:
        raise ValueError(
            f"{name} must have shape ({n},) or ({n}, K), one row a row of the inputs; got {array.shape}"
        )
    check_finite(array, name)
    return array


def check_number(
    value: Any,
    name: str,
    *,
    low: float = 0,
    high: float = np.inf,
    open_low: bool = False,
    finite: bool = True,
) -> None:
    """A real number (or traced scalar) within [low, high], or (low, high]."""
    if is_traced(value):
        if value.shape != ():
            raise ValueError(f"{name} must be one number; got shape {value.shape}")
        return
    array = isinstance(value, np.ndarray | jax.Array) and value.ndim == 0
    if not (array or isinstance(value, Real)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number; got {value!r}")
    number = float(value)
    bound = f"> {low:g}" if open_low else f">= {low:g}"
    wanted = bound if high == np.inf else f"{bound} and <= {high:g}"
    if (
        not (number > low if open_low else number >= low)
        or number > high
        or (finite and np.isinf(number))
    ):
        raise ValueError(
            f"{name} must be {wanted}{' and finite' if finite and high == np.inf else ''}; got {number:g}"
        )


def check_count(value: Any, name: str, *, low: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a whole number; got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}; got {value}")


def check_choice(value: Any, name: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_key(key: Any) -> None:
    is_key = isinstance(key, jax.Array) and (
        (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ())
        or (key.dtype == jnp.uint32 and key.shape == (2,))
    )
    if not is_key:
        raise TypeError(
            f"key must be one JAX random key, as jax.random.key(0) makes it; got {type(key).__name__}"
        )


def check_mesh(mesh: Any) -> None:
    if mesh is not None and not isinstance(mesh, jax.sharding.Mesh):
        raise TypeError(
            f"mesh must be a jax.sharding.Mesh such as jax.make_mesh((8,), ('i',)); got {mesh!r}"
        )


def check_progress(progress: Any) -> None:
    if progress is not None and not hasattr(progress, "update"):
        raise TypeError(
            f"progress must have a method update(k), as tqdm.tqdm(total=m) has; got {progress!r}"
        )
