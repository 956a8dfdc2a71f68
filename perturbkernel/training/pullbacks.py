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
    found = outputs.shape
    m = len(z)
    if columns is not None:
        wanted = (m, columns)
        if found != wanted:
            raise ValueError(f"{name} must map inputs {z.shape} to {wanted}; it gave {found}")
    else:
        wanted = (m,)
        if found not in (wanted, (m, 1)):
            raise ValueError(
                f"{name} must map inputs {z.shape} to one output a row, {wanted}; it gave {found}"
            )

    def pull_back(cotangent: Array) -> Array:
        (at_z,) = pullback(cotangent.reshape(found))
        return at_z

    return outputs.reshape(wanted), pull_back


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
        of_weights = () if weights is None else (weights,)
        return predictor.input_gradient(z, *of_weights)
    if weights is None:
        outputs, pullback = value_and_pullback(predictor, z, "predictor")
        return pullback(jnp.ones_like(outputs))
    outputs, pullback = value_and_pullback(predictor, z, "predictor", weights.shape[1])
    return pullback(weights.astype(outputs.dtype))


def as_pytree(function: Callable[..., Any] | None) -> Callable | None:
    """A plain function is wrapped so that a predictor that holds it passes through `jit` as an
    argument.
    """
    if function is None:
        return None
    a_leaf = jax.tree.structure(0)
    if jax.tree.structure(function) != a_leaf:
        return function
    return jax.tree_util.Partial(function)
