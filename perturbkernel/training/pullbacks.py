"""Outputs and input gradients of any differentiable function of JAX arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def value_and_pullback(
    function: Callable[..., Any], z: Array, name: str, columns: int | None = None
) -> tuple[Array, Callable[..., Any]]:
    """function(z) as (m,), or (m, columns), checked, and the vector-Jacobian product from there to
    the shape of z.
    """
    outputs, pullback = jax.vjp(function, z)
    if columns is not None:
        if outputs.shape != (len(z), columns):
            raise ValueError(
                f"{name} must map inputs {z.shape} to ({len(z)}, {columns}); it gave "
                f"{outputs.shape}"
            )
        return outputs, lambda cotangent: pullback(cotangent)[0]
    if outputs.shape not in ((len(z),), (len(z), 1)):
        raise ValueError(
            f"{name} must map inputs {z.shape} to one output a row, ({len(z)},); it gave "
            f"{outputs.shape}"
        )
    return outputs.reshape(len(z)), lambda cotangent: pullback(cotangent.reshape(outputs.shape))[0]


def input_gradient(
    predictor: Callable[..., Any],
    z: Float[Array, "m ..."],
    weights: Float[Array, "m k"] | None = None,
) -> Float[Array, "m ..."]:
    """The gradient of each row's output with respect to that row, shaped like z; of K outputs, of
    <weights_j, f(z_j)>.

    For a predictor with a method `input_gradient` that is it; otherwise one reverse pass, for any
    function of JAX arrays that treats rows independently and returns (m,) or (m, 1), or with
    `weights` (m, K) returns (m, K).
    """
    if hasattr(predictor, "input_gradient"):
        return (
            predictor.input_gradient(z) if weights is None else predictor.input_gradient(z, weights)
        )
    columns = None if weights is None else weights.shape[1]
    outputs, pullback = value_and_pullback(predictor, z, "predictor", columns)
    return pullback(jnp.ones_like(outputs) if weights is None else weights.astype(outputs.dtype))


def as_pytree(function: Callable[..., Any] | None) -> Callable | None:
    """A plain function is wrapped so that a predictor that holds it passes through `jit` as an
    argument.
    """
    is_leaf = function is not None and jax.tree.structure(function) == jax.tree.structure(0)
    return jax.tree_util.Partial(function) if is_leaf else function
