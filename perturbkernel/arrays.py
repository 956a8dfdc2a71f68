"""Arrays that NumPy works on, where JAX would compile a program for every small operation.

JAX compiles each operation on arrays once for each shape, 20 ms or more for what takes
microseconds. What is done once, to labels, lengths or metrics, is done by NumPy where the values
are at hand, and by JAX where they are traced, or lie on an accelerator or several devices:

    values = on_host(values)
    return as_jax(namespace(values).sqrt(values))
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def is_at_hand(array: Any) -> bool:
    """Whether NumPy can read the array where it lies, without a copy."""
    if isinstance(array, Tracer) or not isinstance(array, jax.Array):
        return isinstance(array, np.ndarray | np.generic)
    devices = array.devices()
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


def on_host(*arrays: Any) -> Any:
    """The array as one of NumPy, or several of them; as they are unless all are at hand."""
    found: Any = arrays
    if all(map(is_at_hand, arrays)):
        found = tuple(map(np.asarray, arrays))
    return found if len(found) > 1 else found[0]


def namespace(array: Any) -> Any:
    """NumPy or `jax.numpy`, whichever the array belongs to."""
    return jnp if isinstance(array, jax.Array) else np


# Numbers that are worked on at once: temporaries stay in the processor's cache.
_BLOCK = 2**20


def by_rows(function: Callable[..., Any], *arrays: Any) -> Any:
    """function(*arrays), for a function that treats rows one by one; of NumPy's arrays some rows at
    once, so that temporaries as large as the arrays never exist.

    Example:
        >>> by_rows(lambda a, b: (a * b).sum(1), np.ones((2, 3)), np.full((2, 1), 2.0)).tolist()
        [6.0, 6.0]
    """
    first, *_ = arrays
    rows = max(len(first), 1)
    sizes = [np.size(array) for array in arrays]
    longest = max(sizes) // rows
    step = max(_BLOCK // max(longest, 1), 1)
    on_host = all(isinstance(array, np.ndarray) for array in arrays)
    if len(first) <= step or not on_host:
        return function(*arrays)
    found: Any = None
    for begin in range(0, len(first), step):
        here = slice(begin, begin + step)
        part = function(*(array[here] for array in arrays))
        if not isinstance(part, np.ndarray):  # what else the function reads is traced
            return function(*arrays)
        if found is None:
            shape = len(first), *part.shape[1:]
            found = np.empty(shape, part.dtype)
        found[here] = part
    return found


def or_one(values: Any) -> Any:
    """The values, with 1 in place of those that are not positive: what may be divided by.

    Example:
        >>> or_one(np.array([2.0, 0.0])).tolist()
        [2.0, 1.0]
    """
    return namespace(values).where(values > 0, values, 1)


def quotient(a: Any, b: Any, where: Any, otherwise: Any = 0) -> Any:
    """a / b where that holds, and `otherwise` elsewhere, in its derivatives too.

    Example:
        >>> quotient(1.0, np.array([2.0, 0.0]), np.array([True, False])).tolist()
        [0.5, 0.0]
    """
    xp = namespace(b)
    # Of where(.., a / b, ..) alone JAX's derivatives are 0 * inf, NaN, where b is 0.
    divisor = xp.where(where, b, 1)
    return xp.where(where, a / divisor, otherwise)


def as_jax(array: Any) -> Any:
    """The array as one of JAX, in JAX's precision, without a program; it may share its memory, and
    must not be written to any more.
    """
    return array if isinstance(array, jax.Array) else jax.device_put(array)
