"""More than two classes: their encoding, random targets, the margin that an attack increases, what
counts as right.

A label is a class index in {0, .., K - 1}, the position in `Dataset.classes`. Class y is trained on
as e_y - 1/K (1 - 1/K in its own column, -1/K in the others), and the decision is the argmax of the
K outputs. At f = 0 every loss of `fit` then pulls the outputs of point n along e_y - 1/K, so that
all agree at small times.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from perturbkernel.checks import as_array, check_choice, check_count, check_key, is_readable

CLASS_RULES = ("coin_flip", "balanced", "random_other", "next")


def class_name(label: Any) -> str:
    """A label as the words that name its class: bytes are decoded, what cannot be printed is
    escaped.
    """
    text = label.decode("utf-8", "backslashreplace") if isinstance(label, bytes) else str(label)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def class_indices(value: ArrayLike, name: str, n: int | None, classes: int) -> Int[Array, " n"]:
    """(n,) class indices, integers from 0 to classes - 1."""
    array = as_array(value, name)
    if array.ndim != 1 or (n is not None and len(array) != n):
        wanted = "(n,)" if n is None else f"({n},)"
        raise ValueError(
            f"{name} must have shape {wanted}, one class index a row; got {array.shape}"
        )
    if not jnp.issubdtype(array.dtype, jnp.integer) or array.dtype.kind == "m":
        raise ValueError(
            f"{name} must be integers from 0 to {classes - 1}, class indices; got dtype {array.dtype}"
        )
    if is_readable(array):
        found = np.unique(np.asarray(array))
        outside = found[(found < 0) | (found >= classes)]
        if outside.size:
            raise ValueError(
                f"{name} must be class indices from 0 to {classes - 1}; found {outside[0]}"
            )
    return jnp.asarray(array, int)


def one_hot(
    labels: Int[ArrayLike, " n"], classes: int, *, centred: bool = True
) -> Float[Array, "n k"]:
    """What K-class predictors are trained on: e_y - 1/K, that is 1 - 1/K for the class and -1/K for
    the others.

    Args:
        labels: (n,), class indices.
        classes: K >= 2.
        centred: False gives plain e_y, 1 and 0.

    Raises:
        ValueError, TypeError: labels that are no integers from 0 to K - 1.
    """
    check_count(classes, "classes", low=2)
    encoded = jax.nn.one_hot(
        class_indices(labels, "labels", None, classes), classes, dtype=jnp.result_type(float)
    )
    return encoded - 1 / classes if centred else encoded


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


def decisions(outputs: Float[Array, "... m k"]) -> Float[Array, "... m k"]:
    """The class of the largest output as a row of zeros and a one; r classes that tie get 1/r each."""
    largest = (outputs == outputs.max(-1, keepdims=True)).astype(outputs.dtype)
    return largest / jnp.maximum(largest.sum(-1, keepdims=True), 1)


def class_accuracy(
    outputs: Float[Array, "... m k"], labels: Int[Array, " m"]
) -> Float[Array, "..."]:
    """The share of points whose largest output is that of their class; a tie of r classes counts
    1/r.
    """
    return right(outputs, labels).mean(-1)


def right(outputs: Float[Array, "... m k"], labels: Int[Array, " m"]) -> Float[Array, "... m"]:
    """`class_accuracy`, point by point."""
    members = jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
    return jnp.sum(decisions(outputs) * jnp.broadcast_to(members, outputs.shape), axis=-1)


def class_agreement(
    f: Float[Array, "... m k"], g: Float[Array, "... m k"]
) -> Float[Array, "... m"]:
    """Whether two predictors decide for one class, point by point: the probability of it, ties
    broken at random.
    """
    return jnp.sum(decisions(f) * decisions(g).astype(f.dtype), axis=-1)


def draw_classes(
    rule: str, labels: Int[Array, " n"], classes: int, *, key: PRNGKeyArray
) -> Int[Array, " n"]:
    """Target classes (n,) for points of the given labels.

    "coin_flip": each uniform among all K, whatever its label. "balanced": uniform among the draws
    in which the classes' counts differ by at most one. "random_other": uniform among the K - 1
    other classes, independently. "next": (label + 1) mod K, nothing random. Source of the last two:
    Ilyas et al., Adversarial Examples Are Not Bugs, They Are Features (NeurIPS 2019), its D_rand
    and D_det; there random targets are drawn from all classes, as "coin_flip".
    """
    check_choice(rule, "targets", CLASS_RULES)
    check_key(key)
    n = len(labels)
    if rule == "coin_flip":
        return jax.random.randint(key, (n,), 0, classes)
    if rule == "balanced":
        order, names = jax.random.split(key)
        return jax.random.permutation(names, classes)[jax.random.permutation(order, n) % classes]
    shift = 1 if rule == "next" else jax.random.randint(key, (n,), 1, classes)
    return (labels + jnp.asarray(shift, labels.dtype)) % classes
