"""More than two classes: their names, their indices and their encoding.

A label is a class index in {0, .., K - 1}, the position in `Dataset.classes`. Class y is trained on
as e_y - 1/K (1 - 1/K in its own column, -1/K in the others), and the decision is the argmax of the
K outputs. At f = 0 every loss of `fit` then pulls the outputs of point n along e_y - 1/K, so that
all agree at small times.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from perturbkernel.arrays import as_jax, namespace, on_host
from perturbkernel.checks import as_array, check_count, is_readable


def class_name(label: Any) -> str:
    """The words that name the class of a label: bytes decoded, what cannot be printed escaped.

    Example:
        >>> class_name(b"cat"), class_name(7)
        ('cat', '7')
    """
    text = str(label)
    if isinstance(label, bytes):
        text = label.decode("utf-8", "backslashreplace")
    return "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return ascii(character)[1:-1]


def class_indices(value: ArrayLike, name: str, n: int | None, classes: int) -> Int[Array, " n"]:
    """Class indices, (n,), integers from 0 to classes - 1; raises ValueError for others.

    Example:
        >>> class_indices([0, 2], "labels", 2, 3).tolist()
        [0, 2]
    """
    array = as_array(value, name)
    another = n is not None and array.shape != (n,)
    if array.ndim != 1 or another:
        wanted = "(n,)" if n is None else f"({n},)"
        raise ValueError(
            f"{name} must have shape {wanted}, one class index a row; got {array.shape}"
        )
    is_integer = jnp.issubdtype(array.dtype, jnp.integer)
    # NumPy counts spans of time among the integers.
    if not is_integer or array.dtype.kind == "m":
        raise ValueError(
            f"{name} must be integers from 0 to {classes - 1}, class indices; "
            f"got dtype {array.dtype}"
        )
    if is_readable(array):
        found = np.unique(np.asarray(array))
        is_outside = (found < 0) | (found >= classes)
        outside = found[is_outside]
        if outside.size:
            raise ValueError(
                f"{name} must be class indices from 0 to {classes - 1}; found {outside[0]}"
            )
    return as_jax(on_host(array).astype(int))


def one_hot(
    labels: Int[ArrayLike, " n"],
    classes: int,
    *,
    centred: bool = True,
) -> Float[Array, "n k"]:
    """Targets for training on K classes: e_y - 1/K, (n, K).

    That is 1 - 1/K for the class and -1/K for the others.

    Example:
        >>> one_hot([0, 3], 4).tolist()
        [[0.75, -0.25, -0.25, -0.25], [-0.25, -0.25, -0.25, 0.75]]

    Args:
        labels: (n,), class indices.
        classes: K >= 2.
        centred: False gives plain e_y, 1 and 0.

    Raises:
        ValueError, TypeError: labels that are no integers from 0 to K - 1.
    """
    check_count(classes, "classes", low=2)
    indices = class_indices(labels, "labels", None, classes)
    indices = on_host(indices)
    xp = namespace(indices)
    members = indices[:, None] == xp.arange(classes)
    members = members.astype(jnp.result_type(float))
    if centred:
        members = members - 1 / classes
    return as_jax(members)


def encoded(targets: Array, classes: int) -> Array:
    """What a learner is given: two classes' targets (n,) as they are, or `one_hot`, (n, K).

    Example:
        >>> encoded(jnp.asarray([1, -1]), 2).tolist(), encoded(jnp.asarray([0, 2]), 3).shape
        ([1, -1], (2, 3))
    """
    if classes == 2:
        return targets
    return one_hot(targets, classes)
