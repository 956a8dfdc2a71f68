"""The margin of a class over its rivals."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def margin(outputs: Float[Array, "m k"], targets: Int[Array, " m"]) -> Float[Array, " m"]:
    """The log odds of class t = targets_j under softmax(f), (m,).

        M_t(f) = f_t - log sum_{k != t} exp f_k

    The cross-entropy toward t is log(1 + exp(-M_t)), a decreasing function of M_t: both have the
    same direction of steepest change. For two classes M_t is f_t - f_other.
    """
    target, others = _own_and_others(outputs, targets)
    own = jnp.sum(jnp.where(target, outputs, 0), axis=1)
    return own - jax.nn.logsumexp(others, axis=1)


def margin_weights(outputs: Float[Array, "m k"], targets: Int[Array, " m"]) -> Float[Array, "m k"]:
    """The derivative d M_t / d f = e_t - q, (m, K), q the softmax over the other classes.

    No entry of order one ever underflows.
    """
    target, others = _own_and_others(outputs, targets)
    shares = jax.nn.softmax(others, axis=1)
    return target.astype(outputs.dtype) - shares


def _own_and_others(outputs: Array, targets: Array) -> tuple[Array, Array]:
    """Which output is that of the target, and the outputs with -inf in its place, (m, K) each."""
    target = jax.nn.one_hot(targets, outputs.shape[1], dtype=bool)
    return target, jnp.where(target, -jnp.inf, outputs)
