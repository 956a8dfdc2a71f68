"""Accuracy, agreement and cosine: one implementation of each."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from perturbkernel.arrays import as_jax, by_rows, namespace, on_host, or_one
from perturbkernel.data.dataset import Dataset
from perturbkernel.data.labels import one_hot

Outputs = Float[Array, "... m k"]
Classes = Int[Array, " m"]
Points = Float[Array, "... m"]  # one number a point
Shares = Float[Array, "..."]
Rows = Float[Array, "n ..."]


def decisions(outputs: Outputs) -> Outputs:
    """The class of the largest output, a row of zeros and a one; r that tie get 1/r each.

    Example:
        >>> decisions(jnp.asarray([[0.1, 0.3, 0.2], [1.0, 0.0, 1.0]])).tolist()
        [[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]
    """
    highest = outputs.max(-1, keepdims=True)
    winners = outputs == highest
    winners = winners.astype(outputs.dtype)
    count = winners.sum(-1, keepdims=True)
    count = jnp.maximum(count, 1)
    return winners / count


def class_accuracy(outputs: Outputs, labels: Classes) -> Shares:
    """The share of points whose largest output is that of their class; a tie of r counts 1/r.

    Example:
        >>> outputs = jnp.asarray([[0.1, 0.3], [1.0, 1.0]])
        >>> float(class_accuracy(outputs, jnp.asarray([1, 0])))
        0.75
    """
    return right(outputs, labels).mean(-1)


def right(outputs: Outputs, labels: Classes) -> Points:
    """`class_accuracy`, point by point.

    Example:
        >>> outputs = jnp.asarray([[0.1, 0.3], [1.0, 1.0]])
        >>> right(outputs, jnp.asarray([1, 0])).tolist()
        [1.0, 0.5]
    """
    classes = outputs.shape[-1]
    members = jax.nn.one_hot(labels, classes, dtype=outputs.dtype)
    members = jnp.broadcast_to(members, outputs.shape)
    chosen = decisions(outputs)
    return jnp.sum(chosen * members, axis=-1)


def class_agreement(f: Outputs, g: Outputs) -> Points:
    """The probability that two predictors decide for one class, point by point.

    It is 0 or 1, but for ties, which are broken at random.

    Example:
        >>> f = jnp.asarray([[0.1, 0.3], [1.0, 1.0]])
        >>> class_agreement(f, f[:, ::-1]).tolist()
        [0.0, 0.5]
    """
    decisions_g = decisions(g)
    decisions_g = decisions_g.astype(f.dtype)
    decisions_f = decisions(f)
    return jnp.sum(decisions_f * decisions_g, axis=-1)


def accuracy(outputs: Float[ArrayLike, "... m"], labels: Float[ArrayLike, " m"]) -> Shares:
    """The share of points where the output has the sign of the label in {-1, +1}.

    An output of 0 counts one half. Several predictors' outputs at once, (..., m), give one share
    each.

    Example:
        >>> float(accuracy([0.3, -2.0, 0.0, 1.0], [1, -1, 1, -1]))
        0.625
    """
    values, given = on_host(jnp.asarray(outputs), jnp.asarray(labels))
    xp = namespace(values)
    signs = given.astype(values.dtype)
    signs = xp.broadcast_to(signs, values.shape)
    twice_right = 1 + xp.sign(values) * signs
    share = twice_right.mean(-1) / 2
    return as_jax(share)


def agreement(f: Float[ArrayLike, "... m"], g: Float[ArrayLike, " m"]) -> Shares:
    """The share of points where two outputs have the same sign; an output of 0 counts one half.

    Example:
        >>> f = jnp.asarray([0.3, -2.0, 1.0, 1.0])
        >>> float(agreement(f, jnp.asarray([5.0, -0.1, 0.0, -1.0])))
        0.625
    """
    other = on_host(jnp.asarray(g))
    signs = namespace(other).sign(other)
    return accuracy(f, as_jax(signs))


def share_right(outputs: Array, data: Dataset) -> Array:
    """1 where the outputs, (m,) or (m, K), decide for the class of the row, (m,).

    Ties count their fair share.

    Example:
        >>> data = Dataset([[1.0], [2.0], [3.0]], [1, -1, 1])
        >>> share_right(jnp.asarray([0.3, 2.0, 0.0]), data).tolist()
        [1.0, 0.0, 0.5]
    """
    if len(data.classes) > 2:
        return right(outputs, data.targets)
    outputs, targets = on_host(outputs, data.targets)
    decided = namespace(outputs).sign(outputs)
    signs = targets.astype(outputs.dtype)
    twice_right = 1 + decided * signs
    return as_jax(twice_right / 2)


def class_means(values: Array, data: Dataset) -> Array:
    """The mean over the rows of each class, (K,), NaN for one without rows.

    Example:
        >>> data = Dataset([[1.0], [2.0], [3.0]], [1, -1, 1])
        >>> class_means(jnp.asarray([1.0, 5.0, 2.0]), data).tolist()
        [1.5, 5.0]
    """
    classes = len(data.classes)
    members = one_hot(data.labels, classes, centred=False)
    members = members.astype(values.dtype)
    column = values[:, None]
    sums = jnp.sum(members * column, axis=0)
    counts = members.sum(0)
    return sums / counts


def unit_rows(v: Float[Array | np.ndarray, "n ..."]) -> Rows:
    """Each row of v divided by its l2 norm over all further axes; 0 where the row is 0.

    Example:
        >>> unit_rows(jnp.asarray([[0.0, -3.0], [0.0, 0.0]])).tolist()
        [[0.0, -1.0], [0.0, 0.0]]
    """
    return as_jax(by_rows(_unit_rows, on_host(v)))


def _unit_rows(v: Any) -> Any:
    xp = namespace(v)
    axes = tuple(range(1, v.ndim))
    # Divided by its largest entry first, a tiny row does not underflow when squared.
    largest = xp.abs(v).max(axes, keepdims=True)
    scaled = v / or_one(largest)
    square = xp.sum(scaled**2, axis=axes, keepdims=True)
    length = xp.sqrt(square)
    return scaled / or_one(length)


def cosine(a: Rows, b: Rows) -> Float[Array, " n"]:
    """The signed cosine of each row of a with that of b, (n,).

    NaN where either is zero and no angle exists.

    Example:
        >>> a = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
        >>> cosine(a, jnp.asarray([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])).tolist()
        [1.0, 0.0, nan]
    """
    a, b = on_host(unit_rows(a), unit_rows(b))
    xp = namespace(a)
    a = a.reshape(len(a), -1)
    b = b.reshape(len(b), -1)
    exists = a.any(1) & b.any(1)
    products = xp.sum(a * b, axis=1)
    return as_jax(xp.where(exists, products, xp.nan))
