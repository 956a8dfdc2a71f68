"""Data sets from arrays, .npz files and tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.core import Tracer

from perturbkernel.arrays import as_jax, on_host
from perturbkernel.checks import as_array, as_inputs
from perturbkernel.data.array_files import read_labelled
from perturbkernel.data.dataset import Dataset, distinct_classes
from perturbkernel.data.labels import class_name
from perturbkernel.data.tables import read_table

_CHANNELS = (1, 3, 4)  # grey, colours, and colours with transparency


def from_arrays(
    inputs: Any,
    targets: Any,
    *,
    classes: Sequence[Any] | None = None,
    name: str = "arrays",
) -> Dataset:
    """Makes a data set from NumPy or JAX arrays. Values are not rescaled, pixels included.

    Args:
        inputs: (n, d), or images (n, h, w) or (n, h, w, c), channels last, which are flattened.
        targets: (n,), in {-1, +1}; or of any kind, when `classes` says which to keep.
        classes: (a, b) keeps the rows with target a, which becomes +1, or b, which becomes -1; K >
            2 classes (a, b, c, ..) become the indices 0, 1, 2, ..
        name: what to call it.

    Example:
        >>> images = np.zeros((3, 8, 8))
        >>> from_arrays(images, ["cat", "dog", "bird"], classes=("cat", "dog"))
        Dataset(arrays: n=2, d=64, 1 x cat, 1 x dog)

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
    image_shape = None
    if inputs.ndim > 2:
        image_shape = inputs.shape[1:]
    _check_channels_last(inputs.shape)
    inputs = inputs.reshape(len(inputs), -1)
    if classes is None:
        return Dataset(inputs, targets, name, image_shape=image_shape)
    if isinstance(targets, Tracer):
        raise ValueError("targets is traced; choosing classes works outside jit and vmap")
    labels = as_labels(targets, len(inputs))
    rows, targets = choose(labels, classes)
    names = tuple(map(class_name, classes))
    chosen = as_jax(on_host(inputs)[rows])
    return Dataset(chosen, targets, name, names, image_shape)


def from_npz(path: str | Path, *, classes: Sequence[Any] | None = None) -> Dataset:
    """`from_arrays` of the arrays `inputs` and `targets` (or `x` and `y`) in an .npz file.

    Pickled objects are never loaded. Raises FileNotFoundError, or a ValueError or TypeError that
    names the file.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/digits.npz"
        >>> np.savez(path, inputs=np.zeros((3, 8, 8)), targets=[3, 8, 7])
        >>> from_npz(path, classes=(3, 8))
        Dataset(digits: n=2, d=64, 1 x 3, 1 x 8)
    """
    inputs, targets = read_labelled(path)
    file = Path(path).expanduser()
    try:
        return from_arrays(inputs, targets, classes=classes, name=file.stem)
    except TypeError as error:
        raise TypeError(f"{file}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def csv(
    path: str | Path,
    label: str | int,
    *,
    classes: Sequence[Any] | None = None,
    delimiter: str = ",",
) -> Dataset:
    """Reads a data set from a CSV file with one column of labels; all other columns are numbers,
    which are not rescaled.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "iris.csv")
        >>> rows = ["length,width,species", "5.1,3.5,setosa", "6.3,3.3,virginica"]
        >>> np.savetxt(path, rows, fmt="%s")
        >>> csv(path, label="species", classes=("setosa", "virginica"))
        Dataset(iris: n=2, d=2, 1 x setosa, 1 x virginica)

    Args:
        path: text in UTF-8. Empty lines are skipped.
        label: the column of labels, by the name that the first line gives it, or its position, -1
            for the last. Labels are numbers if all of them are, words otherwise.
        classes: as of `from_arrays`. Left out: -1 and +1 if these are the labels, and otherwise all
            that there are, in order: of two the first is +1.
        delimiter: what separates fields.

    Raises:
        FileNotFoundError: no such file. ValueError: a column that is not there, and, by line and
            column, a missing value, a field that is no number, a line of another length.
    """
    inputs, labels, _ = read_table(path, label, delimiter)
    file = Path(path).expanduser()
    found = np.unique(labels).tolist()
    if classes is None and found != [-1, 1]:
        if len(found) < 2 or len(found) == len(labels) > 2:
            raise ValueError(
                f"{file}: column {label!r} has {len(found)} different labels in {len(labels)} "
                "rows; wanted classes, two or more, most of them with several rows"
            )
        classes = found
    try:
        return from_arrays(inputs, labels, classes=classes, name=file.stem)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _check_channels_last(shape: tuple[int, ...]) -> None:
    """Raises ValueError for images whose channels are where PyTorch has them."""
    if len(shape) != 4:
        return
    _, second, third, last = shape
    few = max(_CHANNELS)
    if second in _CHANNELS and min(third, last) > few:
        raise ValueError(
            f"inputs has shape {shape}, which looks like (n, c, h, w); wanted (n, h, w, c), as "
            f"np.moveaxis(inputs, 1, -1) makes it. Images {second} high with {last} "
            f"channels are Dataset(rows, targets, image_shape={(second, third, last)})"
        )


def as_labels(targets: Any, n: int) -> Any:
    """The labels, (n,), of any kind; raises ValueError for another shape.

    Example:
        >>> as_labels(["cat", "dog"], 2).tolist()
        ['cat', 'dog']
    """
    labels = as_array(targets, "targets")
    if labels.shape != (n,):
        raise ValueError(
            f"targets must have shape ({n},), one label per row of the inputs; got {labels.shape}"
        )
    return labels


def choose(labels: Any, classes: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the classes in their order, and the target of each: +1 or -1, or an index.

    Example:
        >>> rows, targets = choose([7, 3, 8, 7], (3, 7))
        >>> rows.tolist(), targets.tolist()
        ([0, 1, 3], [-1.0, 1.0, -1.0])
    """
    labels = np.asarray(labels)
    wanted_classes = distinct_classes(classes)
    members = np.stack([labels == c for c in wanted_classes])
    present = members.any(1)
    if not present.all():
        first_missing = int(np.argmin(present))
        missing = classes[first_missing]
        wanted = ""
        if len(members) > 2:
            wanted = f"={classes!r}: wanted two different ones or more, all with rows"
        raise ValueError(
            f"classes{wanted}: no row has target {missing!r}; targets are {_distinct(labels)}"
        )
    is_member = members.any(0)
    rows = np.flatnonzero(is_member)
    index = members[:, rows].argmax(0)
    if len(members) > 2:
        return rows, index
    return rows, np.where(index == 0, 1.0, -1.0)


def _distinct(labels: Any) -> str:
    """The first ten distinct labels, as text."""
    given = np.asarray(labels).tolist()
    values = list(dict.fromkeys(given))
    shown = ", ".join(map(repr, values[:10]))
    if len(values) > 10:
        shown += ", ..."
    return shown
