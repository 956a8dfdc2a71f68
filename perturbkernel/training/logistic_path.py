"""The logistic flow at many times from one integration: `logistic_path`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from perturbkernel.checks import (
    as_float,
    as_targets,
    check_count,
    check_finite,
    check_number,
    common_dtype,
    is_traced,
)
from perturbkernel.training.implicit import PRODUCTS, LogisticPath, integrate
from perturbkernel.training.losses import LOSSES


def logistic_path(
    operator: Callable[[Array], Array],
    y: Float[ArrayLike, " n"],
    f0: Float[ArrayLike, " n"] | None,
    times: Float[ArrayLike, " k"],
    rtol: float = 1e-4,
    max_products: int = PRODUCTS,
) -> LogisticPath:
    """Dual coefficients of gradient flow on the logistic loss at several times, from one
    integration.

    Args:
        operator: v (n,) -> K v, symmetric positive semidefinite. A pytree (`gram_operator` makes
            one, or `jax.tree_util.Partial(jnp.matmul, gram)`), so that its arrays are arguments of
            the compiled function; a plain function works and compiles anew for each function
            object.
        y: (n,), -1 or +1.
        f0: (n,), outputs before training; None for zero.
        times: (k,), >= 0 and finite, in any order; time = learning rate x steps.
        rtol: the local error of each step, relative to the largest change of an output at a
            training point and to the norm of alpha. Errors at the times asked for stay within four
            times this (tests/test_logistic.py).
        max_products: the integration stops there, and `time` says how far it came.

    Raises:
        ValueError, TypeError: bad arguments, before any computation.

    Everything is in the common dtype of y and f0: float32 unless those are float64; then rtol is at
    least 1e-5. Can be called inside `jit`. Cost: some 100 products to time 1e4 where the classes
    are separable, some 400 to time 1e5 where they are not, at rtol=1e-3.

    Example:
        path = logistic_path(gram_operator(kernel, x), y, None, times=[1.0, 10.0, 100.0])
    """
    y = as_float(y, "y")
    y = as_targets(y, "y", y.size)
    f0 = jnp.zeros_like(y) if f0 is None else as_targets(f0, "f0", y.size, labels=False)
    times = _checked_times(times)
    dtype = common_dtype(y, f0)
    check_number(rtol, "rtol", low=1e-5 if dtype == jnp.float32 else 1e-12, high=0.1)
    check_count(max_products, "max_products")
    operator = _checked_operator(operator, y)
    y = y.astype(dtype)
    f0 = f0.astype(dtype)
    times = times.astype(dtype)
    relative, most = jnp.asarray(rtol, dtype), jnp.asarray(max_products)
    return integrate(operator, y, f0, times, relative, most, loss=LOSSES["logistic"])


def _checked_times(times: Any) -> Array:
    times = as_float(times, "times")
    if times.ndim != 1 or times.size == 0:
        raise ValueError(f"times must have shape (k,) with k >= 1; got {times.shape}")
    check_finite(times, "times")
    if not is_traced(times) and (np.asarray(times) < 0).any():
        raise ValueError(f"times must be >= 0; got {np.asarray(times).min():g}")
    return times


def _checked_operator(operator: Any, y: Array) -> Callable:
    """As a pytree, checked to map (n,) to (n,)."""
    if not callable(operator):
        raise TypeError(f"operator must be a function (n,) -> (n,); got {operator!r}")
    if jax.tree.structure(operator) == jax.tree.structure(0):
        operator = jax.tree_util.Partial(operator)
    product: Any = jax.eval_shape(operator, y)
    if product.shape != y.shape:
        raise ValueError(f"operator must map {y.shape} to {y.shape}; it gave {product.shape}")
    return operator
