"""Predictors that JAX cannot trace, such as an object of NumPy code with a gradient of its own."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from perturbkernel.training.predictors import KernelPredictor


class HostPredictor:
    """A predictor with one output and `input_gradient`, both of NumPy arrays.

    It is called with concrete arrays only: the loops around it run uncompiled, in `uncompiled`.
    """

    def __init__(self, predictor: Any, dtype: Any):
        self.predictor = predictor
        self.dtype = dtype

    def __call__(self, z: Array) -> Array:
        return self._call(self.predictor, z)

    def input_gradient(self, z: Array) -> Array:
        return self._call(self.predictor.input_gradient, z)

    def _call(self, function: Callable, z: Array) -> Array:
        with jax.disable_jit(False):  # what it compiles itself stays so
            return jnp.asarray(np.asarray(function(np.asarray(z))), self.dtype)


def traced_shape(function: Callable, x: Array) -> Any:
    """What `function` returns at x, as shapes and dtypes, without a run.

    Example:
        >>> traced_shape(lambda z: z.sum(1), jnp.ones((5, 3), jnp.float32))
        ShapeDtypeStruct(shape=(5,), dtype=float32)

    Raises:
        TypeError: where JAX cannot trace it, with the remedy; what its own code raises otherwise.
    """
    try:
        return jax.eval_shape(function, x)
    except jax.errors.JAXTypeError as error:
        raise TypeError(
            "predictor must be a function of JAX arrays (jax.numpy, not NumPy), which is "
            "differentiated by tracing it, or have a method input_gradient(z) of its own, shaped "
            f"like z, and may then be of any code; {type(function).__name__} cannot be traced: "
            f"{str(error).splitlines()[0]}"
        ) from error


def traceable(predictor: Any, x: Array) -> Any:
    """The predictor, wrapped where it has `input_gradient` and JAX cannot trace it.

    Example:
        >>> traceable(jnp.sum, jnp.ones(3)) is jnp.sum
        True
    """
    if isinstance(predictor, KernelPredictor) or not hasattr(predictor, "input_gradient"):
        return predictor
    try:
        jax.eval_shape(lambda z: (predictor(z), predictor.input_gradient(z)), x)
    except Exception:
        # Whatever it is that its code does to an array without values. A fault of its own shows
        # again when it is called with values.
        return HostPredictor(predictor, x.dtype)
    return predictor


def uncompiled(predictor: Any) -> AbstractContextManager:
    """Where loops around the predictor run: step by step for one that JAX cannot trace.

    Example:
        >>> with uncompiled(jnp.sum):
        ...     jax.config.jax_disable_jit
        False
    """
    return jax.disable_jit() if isinstance(predictor, HostPredictor) else nullcontext()
