"""Data sets from arrays and .npz files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.core import Tracer

from perturbkernel.checks import as_array, as_inputs
from perturbkernel.data.array_files import read_labelled
from perturbkernel.data.dataset import Dataset, distinct_classes
from perturbkernel.data.labels import class_name

_CHANNELS = (1, 3, 4)  # grey, colours, and colours with transparency


def from_arrays(
    inputs: Any, targets: Any, *, classes: Sequence[Any] | None = None, name: str = "arrays"
) -> Dataset:
    """A data set from NumPy or JAX arrays. Values stay as they are: pixels are not rescaled.

    Args:
        inputs: (n, d), or images (n, h, w) or (n, h, w, c), channels last, which are flattened.
        targets: (n,), in {-1, +1}; or of any kind, when `classes` says which to keep.
        classes: (a, b) keeps the rows with target a, which becomes +1, or b, which becomes -1; K >
            2 classes (a, b, c, ..) become the indices 0, 1, 2, ..
        name: what to call it.

    Raises:
        ValueError, TypeError: as `Dataset`; also equal classes, a class that no row has, images
            with channels first.
    """
    inputs = as_inputs(inputs, "inputs")
    if inputs.ndim > 4:
        raise ValueError(
            "inputs must have shape (n, d), (n, h, w) or (n, h, w, c), one row per point; "
            f"got shape {inputs.shape}"
        )
    image_shape = inputs.shape[1:] if inputs.ndim > 2 else None
    _check_channels_last(inputs.shape)
    inputs = inputs.reshape(len(inputs), -1)
    if classes is None:
        return Dataset(inputs, targets, name, image_shape=image_shape)
    if isinstance(targets, Tracer):
        raise ValueError("targets is traced; choosing classes works outside jit and vmap")
    labels = as_labels(targets, len(inputs))
    rows, targets = choose(labels, classes)
    names = tuple(map(class_name, classes))
    return Dataset(inputs[rows], targets, name, names, image_shape)


def from_npz(path: str | Path, *, classes: Sequence[Any] | None = None) -> Dataset:
    """`from_arrays` of the arrays `inputs` and `targets` (or `x` and `y`) in an .npz file.

    Pickled objects are never loaded. Raises FileNotFoundError, or a ValueError or TypeError that
    names the file.
    """
    inputs, targets = read_labelled(path)
    file = Path(path).expanduser()
    try:
        return from_arrays(inputs, targets, classes=classes, name=file.stem)
    except (ValueError, TypeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{file}: {error}") from error


def _check_channels_last(shape: tuple[int, ...]) -> None:
    """Raises ValueError for images whose channels are where PyTorch has them."""
    few = max(_CHANNELS)
    if len(shape) == 4 and shape[1] in _CHANNELS and min(shape[2:]) > few:
        raise ValueError(
            f"inputs has shape {shape}, which looks like (n, c, h, w); wanted (n, h, w, c), as "
            f"np.moveaxis(inputs, 1, -1) makes it. Images {shape[1]} high with {shape[3]} "
            f"channels are Dataset(rows, targets, image_shape={tuple(shape[1:])})"
        )


def as_labels(targets: Any, n: int) -> Any:
    """The labels, (n,), of any kind; raises ValueError for another shape."""
    labels = as_array(targets, "targets")
    if labels.shape != (n,):
        raise ValueError(
            f"targets must have shape ({n},), one label per row of the inputs; got {labels.shape}"
        )
    return labels


def choose(labels: Any, classes: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the classes in their order, and the target of each: +1 or -1, or an index."""
    labels = np.asarray(labels)
    members = np.stack([labels == c for c in distinct_classes(classes)])
    present = members.any(1)
    if not present.all():
        missing = classes[int(np.argmin(present))]
        wanted = ""
        if len(members) > 2:
            wanted = f"={classes!r}: wanted two different ones or more, all with rows"
        raise ValueError(
            f"classes{wanted}: no row has target {missing!r}; targets are {_distinct(labels)}"
        )
    rows = np.flatnonzero(members.any(0))
    index = members[:, rows].argmax(0)
    if len(members) > 2:
        return rows, index
    return rows, np.where(index == 0, 1.0, -1.0)


def _distinct(labels: Any) -> str:
    """The first ten distinct labels, as text."""
    values = list(dict.fromkeys(np.asarray(labels).tolist()))
    shown = ", ".join(map(repr, values[:10]))
    return shown + (", ..." if len(values) > 10 else "")
