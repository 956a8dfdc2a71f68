"""Results that compute in float64 if they are float64, whether or not JAX's x64 mode is enabled.

JAX computes in float32 unless x64 is enabled, and rounds even float64 arguments. Coefficients that
were solved for in float64 may cancel to more digits than float32 has, so what holds them evaluates
within a scoped `jax.enable_x64(True)` and returns outputs in JAX's own precision.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from perturbkernel.checks import is_traced
from perturbkernel.engine.arguments import as_argument
from perturbkernel.kernels import products


def is_wider(*arrays: Any) -> bool:
    """Whether some are float64 while JAX is set to float32."""
    if jnp.result_type(float) == np.float64:
        return False
    return any(a.dtype == np.float64 for a in arrays)


def scope(*arrays: Any) -> contextlib.AbstractContextManager:
    """A context in which JAX keeps the precision of `arrays`, whatever its setting."""
    return jax.enable_x64(True) if is_wider(*arrays) else contextlib.nullcontext()


def as_stored(array: np.ndarray) -> Array:
    """`array` as an array of JAX, float64 if it is float64, whatever JAX's setting."""
    with scope(array):
        return jnp.asarray(array)


def to_ambient(array: Array) -> Array:
    """float64 rounded to float32 where JAX is set to float32; anything else as it is."""
    return array.astype(np.float32) if is_wider(array) else array


def matvec(
    kernel: Any,
    name: str,
    z: Array,
    x: Array,
    coef: Array,
    *,
    mesh: Mesh | None = None,
    progress: Any = None,
) -> Array:
    """`products.matvec` for arrays that are wider than JAX's setting (`is_wider`): computed in
    float64, returned in float32. Differentiable as that is.
    """
    argument = as_argument(kernel)
    if is_traced(z, x, coef, *jax.tree.leaves(argument)):
        return products.wide_matvec(kernel, name, mesh, z, x, coef)
    with jax.enable_x64(True):
        arguments = _widened(z, x, coef)
        outputs = products.matvec(kernel, name, *arguments, mesh=mesh, progress=progress)
        return outputs.astype(np.float32)


def in_float64(function: Callable[[Any], Array], arrays: Any) -> Array:
    """function(arrays) in float64, for a pytree of arrays, whatever JAX's setting.

    Forward- and reverse-mode differentiable where x64 is enabled; where it is not, reverse-mode,
    once, and in float32 outside.
    """
    if jnp.result_type(float) == np.float64:
        return function(_all_widened(arrays))
    return _within_float32(function, arrays)


# A rule of its own for the derivative: JAX would trace the transpose outside the scope.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _within_float32(function, arrays):
    with jax.enable_x64(True):
        return function(_all_widened(arrays)).astype(np.float32)


def _within_forward(function, arrays):
    return _within_float32(function, arrays), arrays


def _within_backward(function, arrays, cotangent):
    with jax.enable_x64(True):
        _, pull_back = jax.vjp(function, _all_widened(arrays))
        (bars,) = pull_back(cotangent.astype(np.float64))
        return (jax.tree.map(lambda a, bar: bar.astype(a.dtype), arrays, bars),)


_within_float32.defvjp(_within_forward, _within_backward)


def _all_widened(arrays: Any) -> Any:
    return jax.tree.map(lambda a: jnp.asarray(a, np.float64), arrays)


def _widened(z: Array, x: Array, coef: Array) -> tuple[Array, Array, Array]:
    """All in float64; what was one array remains one."""
    wide_x = jnp.asarray(x, np.float64)
    wide_z = wide_x if z is x else jnp.asarray(z, np.float64)
    return wide_z, wide_x, jnp.asarray(coef, np.float64)


class KeepsPrecision(eqx.Module):
    """A module whose float64 arrays stay float64 when it is copied or unpickled, whatever JAX's
    setting is then; JAX by itself rounds them to float32.
    """

    def __reduce__(self):
        fields, arrays = {}, []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, jax.Array):
                arrays.append(field.name)
                value = np.asarray(value)
            fields[field.name] = value
        return _restored, (type(self), fields, arrays)


def _restored(cls: type, fields: dict[str, Any], arrays: list[str]) -> Any:
    stored = {name: as_stored(fields[name]) for name in arrays}
    return cls(**fields | stored)
