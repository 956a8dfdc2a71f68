"""The margin of a class over its rivals."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def margin(outputs: Float[Array, "m k"], targets: Int[Array, " m"]) -> Float[Array, " m"]:
    """M_t(f) = f_t - log sum_{k != t} exp f_k, (m,): the log odds of class t = targets_j under
    softmax(f).

    The cross-entropy toward t is log(1 + exp(-M_t)), a decreasing function of M_t: both have the
    same direction of steepest change. For two classes M_t is f_t - f_other.
    """
    target = jax.nn.one_hot(targets, outputs.shape[1], dtype=bool)
    others = jnp.where(target, -jnp.inf, outputs)
    return jnp.sum(jnp.where(target, outputs, 0), axis=1) - jax.nn.logsumexp(others, axis=1)


def margin_weights(outputs: Float[Array, "m k"], targets: Int[Array, " m"]) -> Float[Array, "m k"]:
    """d M_t / d f, (m, K): e_t - q, q the softmax over the other classes. No entry of order one
    ever underflows.
    """
    target = jax.nn.one_hot(targets, outputs.shape[1], dtype=bool)
    others = jax.nn.softmax(jnp.where(target, -jnp.inf, outputs), axis=1)
    return target.astype(outputs.dtype) - others
