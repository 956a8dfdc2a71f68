"""Argument checks: each raises before any computation.

The message names the argument, what was given and what was wanted. Shapes are checked always;
values only where they are known, that is not while JAX traces a function.
"""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from perturbkernel import meshes
from perturbkernel.arrays import as_jax


def is_traced(*arrays: Any) -> bool:
    """Whether any of these is an array without values, of a function that JAX traces."""
    return any(isinstance(a, Tracer) for a in arrays)


def is_readable(array: Any) -> bool:
    """Whether there are values to look at: neither traced nor spread over other hosts."""
    return not is_traced(array) and getattr(array, "is_fully_addressable", True)


def as_array(value: Any, name: str) -> Array | np.ndarray:
    """`value` as a JAX or NumPy array of any dtype; raises for what would lose values on the way.

    Those are sparse matrices, which NumPy would wrap whole, and masked entries, whose fill values
    it would take.
    """
    if isinstance(value, jax.Array):
        return value
    for method in ("toarray", "todense"):
        if hasattr(value, method) and not hasattr(value, "__array__"):
            raise TypeError(
                f"{name} must be a dense array; got {type(value).__name__}: use {name}.{method}()"
            )
    if _has_masked_entries(value):
        raise ValueError(
            f"{name} must not have masked entries; use {name}.filled(number), or drop the rows"
        )
    # PyTorch raises a RuntimeError for tensors on an accelerator or with a gradient.
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{_not_real(value, name)}: {error}") from None
    # JAX knows one byte order only.
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _not_real(value: Any, name: str) -> str:
    given = f"dtype {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
    return f"{name} must be an array of real numbers; got {given}"


def _has_masked_entries(value: Any) -> bool:
    if isinstance(value, np.ma.MaskedArray):
        return bool(np.ma.getmaskarray(value).any())
    return isinstance(value, list | tuple) and any(map(_has_masked_entries, value))


def as_float(value: Any, name: str) -> Array:
    """`value` as a JAX array of a floating-point dtype, on automatic axes where it is on a mesh.

    Integers and booleans take JAX's default dtype. Floating-point numbers keep theirs, but half
    precision, which cannot resolve an angle between two images, becomes float32, and longdouble
    float64. Without x64, JAX makes float64 float32.
    """
    array = as_array(value, name)
    dtype = array.dtype
    real = any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    # NumPy counts spans of time among the integers.
    if not real or dtype.kind == "m":
        tabular = getattr(dtype, "kind", "") == "O" and hasattr(value, "to_numpy")
        hint = f"; use {name}.to_numpy(float), without missing values" if tabular else ""
        raise TypeError(_not_real(value, name) + hint)
    floating = jnp.issubdtype(dtype, jnp.floating)
    if not floating:
        wanted = jnp.result_type(float)
    elif dtype.itemsize < 4:
        wanted = np.dtype(np.float32)
    else:
        wanted = np.dtype(f"f{min(dtype.itemsize, 8)}")
    wanted = jax.dtypes.canonicalize_dtype(wanted)
    if isinstance(array, np.ndarray):
        # NumPy casts widths that JAX does not know. A copy, which the caller cannot write to.
        with np.errstate(over="ignore"):  # what overflows is reported as not finite
            return as_jax(array.astype(wanted))
    return jnp.asarray(meshes.with_automatic_axes(array), wanted)


def common_dtype(*arrays: Any) -> np.dtype:
    """The widest dtype of the floating-point arrays among these, also in JAX's strict mode."""
    dtypes = [a.dtype for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)]
    return jax.dtypes.canonicalize_dtype(max(dtypes, key=lambda dtype: dtype.itemsize))


def _sum_of_squares(host: np.ndarray) -> float:
    """The sum of squares in one pass: a finite one tells that all is finite, and how large at most.

    Not by BLAS, whose threads would go on spinning when the kernel needs the cores.
    """
    flat = host.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.einsum("i,i->", flat, flat))


def check_finite(array: Array | np.ndarray, name: str) -> None:
    """Raises ValueError for NaN and infinite values, with the first row that has one."""
    if not is_readable(array):
        return
    host = np.asarray(array)
    if np.isfinite(_sum_of_squares(host)):
        return
    # NaN passes through both; unlike a mask, two numbers need no memory when the data is large.
    if not np.isfinite([host.max(), host.min()]).all():
        bad = ~np.isfinite(host)
        row = int(np.argwhere(bad)[0][0]) if bad.ndim else 0
        raise ValueError(
            f"{name} must be finite; got {bad.sum()} NaN or infinite values, the first in row "
            f"{row} ({array.dtype} holds numbers up to {np.finfo(array.dtype).max:.2g})"
        )


def as_inputs(
    value: Any, name: str, *, like: tuple[int, ...] | None = None, flat: bool = False
) -> Array:
    """Finite inputs, (n, ...), of the trailing shape `like`; `flat` asks for (n, d)."""
    array = as_float(value, name)
    if array.ndim < 2 or (flat and array.ndim != 2):
        wanted = "(n, d)," if flat else "(n, d), or (n, h, w, c) for images,"
        hint = f"; a single point is {name}[None]" if array.ndim == 1 else ""
        raise ValueError(
            f"{name} must have shape {wanted} one row per point; got shape {array.shape}{hint}"
        )
    if array.size == 0:
        raise ValueError(f"{name} must not be empty; got shape {array.shape}")
    if like is not None and array.shape[1:] != like:
        raise ValueError(
            f"{name} must have rows of shape {like}, as the training inputs; got {array.shape[1:]}"
        )
    if is_readable(array):
        # Angles need squared lengths.
        entries = array.size // len(array)
        limit = float(np.sqrt(np.finfo(array.dtype).max / entries)) / 4
        host = np.asarray(array)
        if _sum_of_squares(host) <= limit**2:
            return array
        check_finite(array, name)
        largest = float(max(host.max(), -host.min()))
        if largest > limit:
            raise ValueError(
                f"{name} must stay below {limit:.1e} in {array.dtype}, or squares overflow; "
                f"got {largest:.1e}"
            )
    return array


def as_targets(value: Any, name: str, n: int, *, labels: bool = True) -> Array:
    """Targets, (n,); `labels` asks for -1 and +1."""
    given = as_array(value, name)
    if given.shape != (n,):
        hint = f"; use {name}.ravel()" if given.shape in ((n, 1), (1, n)) else ""
        raise ValueError(
            f"{name} must have shape ({n},), one number a row of the inputs; "
            f"got {given.shape}{hint}"
        )
    if labels and getattr(given.dtype, "kind", "") in ("U", "S", "T"):
        raise TypeError(f"{_not_real(value, name)}. {_classes_advice(name)}")
    array = as_float(given, name)
    check_finite(array, name)
    if labels and is_readable(array):
        found = np.unique(np.asarray(given))
        # True is no label, though it becomes 1.
        if given.dtype == bool or not np.isin(found, (-1, 1)).all():
            shown = ", ".join(f"{v}" if found.dtype == bool else f"{v:g}" for v in found[:5])
            shown += ", ..." if len(found) > 5 else ""
            raise ValueError(f"{name} must be -1 or +1; found {shown}. {_classes_advice(name)}")
    return array


def _classes_advice(name: str) -> str:
    return (
        f"Two classes a, b become +1, -1 with pk.data.from_arrays(inputs, {name}, classes=(a, b)); "
        f"more than two are pk.one_hot(labels, K)"
    )


def as_class_targets(value: Any, name: str, n: int) -> Array:
    """Targets of K >= 2 outputs, (n, K), any real numbers."""
    array = as_float(value, name)
    if array.ndim != 2 or array.shape[0] != n or array.shape[1] < 2:
        raise ValueError(
            f"{name} must have shape ({n},) or ({n}, K), one row a row of the inputs; "
            f"got {array.shape}"
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
    if high != np.inf:
        bound = f"{bound} and <= {high:g}"
    elif finite:
        bound = f"{bound} and finite"
    # Comparisons that NaN fails.
    above = number > low if open_low else number >= low
    inside = above and number <= high
    if not inside or (finite and np.isinf(number)):
        raise ValueError(f"{name} must be {bound}; got {number:g}")


def check_count(value: Any, name: str, *, low: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a whole number; got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}; got {value}")


def check_choice(value: Any, name: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_key(key: Any) -> None:
    is_key = False
    if isinstance(key, jax.Array):
        new_style = jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()
        old_style = key.dtype == jnp.uint32 and key.shape == (2,)
        is_key = new_style or old_style
    if not is_key:
        raise TypeError(
            "key must be one JAX random key, as jax.random.key(0) makes it; "
            f"got {type(key).__name__}"
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
