"""Accuracy, agreement and cosine: one implementation of each."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from perturbkernel.arrays import as_jax, namespace, on_host
from perturbkernel.data.dataset import Dataset
from perturbkernel.data.labels import one_hot


def decisions(outputs: Float[Array, "... m k"]) -> Float[Array, "... m k"]:
    """The class of the largest output, a row of zeros and a one; r that tie get 1/r each."""
    largest = outputs == outputs.max(-1, keepdims=True)
    largest = largest.astype(outputs.dtype)
    count = largest.sum(-1, keepdims=True)
    return largest / jnp.maximum(count, 1)


def class_accuracy(
    outputs: Float[Array, "... m k"], labels: Int[Array, " m"]
) -> Float[Array, "..."]:
    """The share of points whose largest output is that of their class; a tie of r counts 1/r."""
    return right(outputs, labels).mean(-1)


def right(outputs: Float[Array, "... m k"], labels: Int[Array, " m"]) -> Float[Array, "... m"]:
    """`class_accuracy`, point by point."""
    members = jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
    members = jnp.broadcast_to(members, outputs.shape)
    return jnp.sum(decisions(outputs) * members, axis=-1)


def class_agreement(
    f: Float[Array, "... m k"], g: Float[Array, "... m k"]
) -> Float[Array, "... m"]:
    """The probability that two predictors decide for one class, point by point.

    It is 0 or 1, but for ties, which are broken at random.
    """
    decisions_g = decisions(g).astype(f.dtype)
    return jnp.sum(decisions(f) * decisions_g, axis=-1)


def accuracy(
    outputs: Float[ArrayLike, "... m"], labels: Float[ArrayLike, " m"]
) -> Float[Array, "..."]:
    """The share of points where the output has the sign of the label in {-1, +1}.

    An output of 0 counts one half. Several predictors' outputs at once, (..., m), give one share
    each:

        pk.accuracy(f(test.inputs), test.targets)
    """
    values, given = on_host(jnp.asarray(outputs), jnp.asarray(labels))
    xp = namespace(values)
    signs = xp.broadcast_to(given.astype(values.dtype), values.shape)
    twice_right = 1 + xp.sign(values) * signs
    return as_jax(twice_right.mean(-1) / 2)


def agreement(f: Float[ArrayLike, "... m"], g: Float[ArrayLike, " m"]) -> Float[Array, "..."]:
    """The share of points where two outputs have the same sign; an output of 0 counts one half."""
    other = on_host(jnp.asarray(g))
    return accuracy(f, as_jax(namespace(other).sign(other)))


def share_right(outputs: Array, data: Dataset) -> Array:
    """1 where the outputs, (m,) or (m, K), decide for the class of the row, (m,).

    Ties count their fair share.
    """
    if len(data.classes) > 2:
        return right(outputs, data.targets)
    outputs, targets = on_host(outputs, data.targets)
    signs = targets.astype(outputs.dtype)
    return as_jax((1 + namespace(outputs).sign(outputs) * signs) / 2)


def class_means(values: Array, data: Dataset) -> Array:
    """The mean over the rows of each class, (K,), NaN for one without rows."""
    members = one_hot(data.labels, len(data.classes), centred=False)
    members = members.astype(values.dtype)
    sums = jnp.sum(members * values[:, None], axis=0)
    return sums / members.sum(0)


def unit_rows(v: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """Each row of v divided by its l2 norm over all further axes; 0 where the row is 0."""
    v = on_host(v)
    xp = namespace(v)
    axes = tuple(range(1, v.ndim))
    # Divided by its largest entry first, a tiny row does not underflow when squared.
    largest = xp.abs(v).max(axes, keepdims=True)
    scaled = v / xp.where(largest > 0, largest, 1)
    length = xp.sqrt(xp.sum(scaled**2, axis=axes, keepdims=True))
    return as_jax(scaled / xp.where(length > 0, length, 1))


def cosine(a: Float[Array, "n ..."], b: Float[Array, "n ..."]) -> Float[Array, " n"]:
    """The signed cosine of each row of a with that of b, (n,).

    NaN where either is zero and no angle exists.
    """
    a, b = on_host(unit_rows(a), unit_rows(b))
    xp = namespace(a)
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    exists = a.any(1) & b.any(1)
    products = xp.sum(a * b, axis=1)
    return as_jax(xp.where(exists, products, xp.nan))
