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
from perturbkernel.words import did_you_mean


def is_traced(*arrays: Any) -> bool:
    """Whether any of these is an array without values, of a function that JAX traces.

    Example:
        >>> is_traced(jnp.ones(3)), bool(jax.jit(lambda x: x * is_traced(x))(1))
        (False, True)
    """
    return any(isinstance(a, Tracer) for a in arrays)


def is_readable(array: Any) -> bool:
    """Whether there are values to look at: neither traced nor spread over other hosts.

    Example:
        >>> is_readable(jnp.ones(3))
        True
    """
    if is_traced(array):
        return False
    return getattr(array, "is_fully_addressable", True)


def as_array(value: Any, name: str) -> Array | np.ndarray:
    """`value` as a JAX or NumPy array of any dtype; raises for what would lose values on the way.

    Those are sparse matrices, which NumPy would wrap whole, and masked entries, whose fill values
    it would take.

    Example:
        >>> as_array([1, 2], "labels").tolist()
        [1, 2]
    """
    if isinstance(value, jax.Array):
        return value
    is_array = hasattr(value, "__array__")
    for method in ("toarray", "todense"):
        if hasattr(value, method) and not is_array:
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
    if array.dtype.isnative:
        return array
    # JAX knows one byte order only.
    native = array.dtype.newbyteorder("=")
    return array.astype(native)


def _not_real(value: Any, name: str) -> str:
    given = f"dtype {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
    return f"{name} must be an array of real numbers; got {given}"


def _has_masked_entries(value: Any) -> bool:
    if isinstance(value, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(value)
        return bool(mask.any())
    if isinstance(value, list | tuple):
        return any(map(_has_masked_entries, value))
    return False


def as_float(value: Any, name: str) -> Array:
    """`value` as a JAX array of a floating-point dtype, on automatic axes where it is on a mesh.

    Integers and booleans take JAX's default dtype. Floating-point numbers keep theirs, but half
    precision, which cannot resolve an angle between two images, becomes float32, and longdouble
    float64. Without x64, JAX makes float64 float32.

    Example:
        >>> as_float([1, 2], "inputs").tolist()
        [1.0, 2.0]
    """
    array = as_array(value, name)
    if not _is_real(array.dtype):
        hint = ""
        if getattr(array.dtype, "kind", "") == "O" and hasattr(value, "to_numpy"):
            hint = f"; use {name}.to_numpy(float), without missing values"
        raise TypeError(_not_real(value, name) + hint)
    wanted = _floating(array.dtype)
    if isinstance(array, np.ndarray):
        # NumPy casts widths that JAX does not know. A copy, which the caller cannot write to.
        with np.errstate(over="ignore"):  # what overflows is reported as not finite
            return as_jax(array.astype(wanted))
    array = meshes.with_automatic_axes(array)
    return jnp.asarray(array, wanted)


def _is_real(dtype: Any) -> bool:
    for kind in (jnp.floating, jnp.integer, jnp.bool_):
        if jnp.issubdtype(dtype, kind):
            # NumPy counts spans of time among the integers.
            return dtype.kind != "m"
    return False


def _floating(dtype: Any) -> np.dtype:
    """The floating-point dtype that numbers of a real dtype become."""
    if not jnp.issubdtype(dtype, jnp.floating):
        wanted = jnp.result_type(float)
    elif dtype.itemsize < 4:
        wanted = np.dtype(np.float32)
    else:
        size = min(dtype.itemsize, 8)
        wanted = np.dtype(f"f{size}")
    return jax.dtypes.canonicalize_dtype(wanted)


def common_dtype(*arrays: Any) -> np.dtype:
    """The widest dtype of the floating-point arrays among these, also in JAX's strict mode.

    Example:
        >>> common_dtype(np.ones(2, np.float32), np.ones(2, int)).name
        'float32'
    """
    dtypes = [array.dtype for array in arrays]
    floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    widest = max(floating, key=lambda dtype: dtype.itemsize)
    return jax.dtypes.canonicalize_dtype(widest)


def _sum_of_squares(host: np.ndarray) -> float:
    """The sum of squares in one pass: a finite one tells that all is finite, and how large at most.

    Not by BLAS, whose threads would go on spinning when the kernel needs the cores.
    """
    flat = host.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.einsum("i,i->", flat, flat))


def check_finite(array: Array | np.ndarray, name: str) -> None:
    """Raises ValueError for NaN and infinite values, with the first row that has one.

    Example:
        >>> check_finite(np.ones(3), "inputs")
    """
    if not is_readable(array):
        return
    host = np.asarray(array)
    if np.isfinite(_sum_of_squares(host)):
        return
    # NaN passes through both; unlike a mask, two numbers need no memory when the data is large.
    extremes = [host.max(), host.min()]
    if np.isfinite(extremes).all():
        return
    bad = ~np.isfinite(host)
    row = 0
    if bad.ndim:
        places = np.argwhere(bad)
        row = int(places[0][0])
    largest = np.finfo(array.dtype).max
    raise ValueError(
        f"{name} must be finite; got {bad.sum()} NaN or infinite values, the first in row "
        f"{row} ({array.dtype} holds numbers up to {largest:.2g})"
    )


def as_inputs(
    value: Any,
    name: str,
    *,
    like: tuple[int, ...] | None = None,
    flat: bool = False,
) -> Array:
    """Finite inputs, (n, ...), of the trailing shape `like`; `flat` asks for (n, d).

    Example:
        >>> as_inputs([[1, 2], [3, 4]], "inputs").shape
        (2, 2)
    """
    array = as_float(value, name)
    if array.ndim < 2 or (flat and array.ndim != 2):
        wanted = "(n, d)," if flat else "(n, d), or (n, h, w, c) for images,"
        hint = ""
        if array.ndim == 1:
            hint = f"; a single point is {name}[None]"
        raise ValueError(
            f"{name} must have shape {wanted} one row per point; got shape {array.shape}{hint}"
        )
    if array.size == 0:
        raise ValueError(f"{name} must not be empty; got shape {array.shape}")
    row = array.shape[1:]
    if like is not None and row != like:
        raise ValueError(
            f"{name} must have rows of shape {like}, as the training inputs; got {row}"
        )
    if is_readable(array):
        _check_squares(array, name)
    return array


def _check_squares(array: Array, name: str) -> None:
    """Raises ValueError for what is not finite, or whose squared length is not: angles need it."""
    entries = array.size // len(array)
    most = np.finfo(array.dtype).max / entries
    limit = float(np.sqrt(most)) / 4
    host = np.asarray(array)
    if _sum_of_squares(host) <= limit**2:
        return
    check_finite(array, name)
    largest = float(max(host.max(), -host.min()))
    if largest > limit:
        raise ValueError(
            f"{name} must stay below {limit:.1e} in {array.dtype}, or squares overflow; "
            f"got {largest:.1e}"
        )


def as_targets(value: Any, name: str, n: int, *, labels: bool = True) -> Array:
    """Targets, (n,); `labels` asks for -1 and +1.

    Example:
        >>> as_targets([1, -1], "targets", 2).tolist()
        [1.0, -1.0]
    """
    given = as_array(value, name)
    if given.shape != (n,):
        hint = ""
        if given.shape in ((n, 1), (1, n)):
            hint = f"; use {name}.ravel()"
        raise ValueError(
            f"{name} must have shape ({n},), one number a row of the inputs; "
            f"got {given.shape}{hint}"
        )
    if labels and getattr(given.dtype, "kind", "") in ("U", "S", "T"):
        raise TypeError(f"{_not_real(value, name)}. {_classes_advice(name)}")
    array = as_float(given, name)
    check_finite(array, name)
    if labels and is_readable(array):
        _check_labels(np.asarray(given), name)
    return array


def _check_labels(given: np.ndarray, name: str) -> None:
    found = np.unique(given)
    # True is no label, though it becomes 1.
    truths = given.dtype == bool
    if np.isin(found, (-1, 1)).all() and not truths:
        return
    form = "" if truths else "g"
    shown = ", ".join(format(label, form) for label in found[:5])
    if len(found) > 5:
        shown += ", ..."
    raise ValueError(f"{name} must be -1 or +1; found {shown}. {_classes_advice(name)}")


def _classes_advice(name: str) -> str:
    return (
        f"Two classes a, b become +1, -1 with pk.data.from_arrays(inputs, {name}, classes=(a, b)); "
        f"more than two are pk.one_hot(labels, K)"
    )


def as_class_targets(value: Any, name: str, n: int) -> Array:
    """Targets of K >= 2 outputs, (n, K), any real numbers.

    Example:
        >>> as_class_targets([[1, 0], [0, 1]], "targets", 2).shape
        (2, 2)
    """
    array = as_float(value, name)
    is_table = array.ndim == 2 and array.shape[0] == n
    if not is_table or array.shape[1] < 2:
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
    """Raises unless `value` is a real number (or traced scalar) in [low, high], or (low, high].

    Example:
        >>> check_number(0.1, "size", high=1)
    """
    if is_traced(value):
        if value.shape != ():
            raise ValueError(f"{name} must be one number; got shape {value.shape}")
        return
    is_scalar = isinstance(value, np.ndarray | jax.Array) and value.ndim == 0
    is_number = is_scalar or isinstance(value, Real)
    if not is_number or isinstance(value, bool):
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
    endless = finite and np.isinf(number)
    if not inside or endless:
        raise ValueError(f"{name} must be {bound}; got {number:g}")


def check_count(value: Any, name: str, *, low: int = 1) -> None:
    """Raises unless `value` is a whole number of at least `low`.

    Example:
        >>> check_count(3, "steps")
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a whole number; got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}; got {value}")


def check_choice(value: Any, name: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of the choices.

    Example:
        >>> check_choice("l2", "norm", ("l2", "linf"))
    """
    if value not in choices:
        wanted = ", ".join(map(repr, choices))
        hint = did_you_mean(str(value), choices)
        raise ValueError(f"{name} must be one of {wanted}; got {value!r}{hint}")


def check_key(key: Any) -> None:
    """Raises TypeError unless `key` is one JAX random key, of either kind.

    Example:
        >>> check_key(jax.random.key(0))
    """
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
    """Raises TypeError unless `mesh` is a mesh or None.

    Example:
        >>> check_mesh(jax.make_mesh((1,), ("i",)))
    """
    if mesh is not None and not isinstance(mesh, jax.sharding.Mesh):
        raise TypeError(
            f"mesh must be a jax.sharding.Mesh such as jax.make_mesh((8,), ('i',)); got {mesh!r}"
        )


def check_progress(progress: Any) -> None:
    """Raises TypeError unless `progress` has a method `update`, as tqdm's bars have, or is None.

    Example: check_progress(None)
    """
    if progress is not None and not hasattr(progress, "update"):
        raise TypeError(
            f"progress must have a method update(k), as tqdm.tqdm(total=m) has; got {progress!r}"
        )
