"""The margin of a class over its rivals."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def margin(outputs: Float[Array, "m k"], targets: Int[Array, " m"]) -> Float[Array, " m"]:
    """The log odds of class t = targets_j under softmax(f), (m,).

        M_t(f) = f_t - log sum_{k != t} exp f_k

    The cross-entropy toward t is log(1 + exp(-M_t)), a decreasing function of M_t: both have the
    same direction of steepest change. For two classes M_t is f_t - f_other.

    Example:
        >>> margin(jnp.asarray([[3.0, 1.0]]), jnp.asarray([0])).tolist()
        [2.0]
    """
    is_own, others = own_and_others(outputs, targets)
    own = jnp.where(is_own, outputs, 0)
    own = jnp.sum(own, axis=1)
    rivals = jax.nn.logsumexp(others, axis=1)
    return own - rivals


def margin_weights(outputs: Float[Array, "m k"], targets: Int[Array, " m"]) -> Float[Array, "m k"]:
    """The derivative d M_t / d f = e_t - q, (m, K), q the softmax over the other classes.

    No entry of order one ever underflows.

    Example:
        >>> margin_weights(jnp.asarray([[9.0, 2.0, 2.0]]), jnp.asarray([0])).tolist()
        [[1.0, -0.5, -0.5]]
    """
    is_own, others = own_and_others(outputs, targets)
    shares = jax.nn.softmax(others, axis=1)
    return is_own.astype(outputs.dtype) - shares


def own_and_others(outputs: Array, targets: Array) -> tuple[Array, Array]:
    """Which output is that of the target, and the outputs with -inf in its place, (m, K) each.

    Example:
        >>> own_and_others(jnp.asarray([[9.0, 2.0]]), jnp.asarray([0]))[1].tolist()
        [[-inf, 2.0]]
    """
    classes = outputs.shape[1]
    is_own = jax.nn.one_hot(targets, classes, dtype=bool)
    others = jnp.where(is_own, -jnp.inf, outputs)
    return is_own, others
