"""Labelled data sets: synthetic Gaussians, real images from local files, and arrays of one's own.

The data of the experiments section of Kumano, Kera, Yamasaki, *Wide Two-Layer Networks can Learn
from Adversarial Perturbations* (NeurIPS 2024). Nothing here downloads anything. Rows of `inputs`
are points, images included; a target is +1 for the first of two classes and -1 for the second, and
the class index 0, 1, .. for more than two. Dtypes follow JAX: float32 unless x64 is enabled.
"""

import contextlib
import dataclasses
import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from perturbkernel.arrays import as_jax, namespace, on_host
from perturbkernel.checks import as_inputs, as_targets, is_readable
from perturbkernel.data.draws import shuffled, split_keys
from perturbkernel.data.labels import class_indices

Classes = Int[Array, " n"]


class Dataset(eqx.Module):
    """`n` labelled points in `d` dimensions: a frozen pytree with leaves `inputs` and `targets`.

    Attributes:
        inputs: (n, d), finite.
        targets: (n,), in {-1, +1}, with the dtype of `inputs`; of K > 2 classes, class indices,
            integers from 0 to K - 1 (`pk.one_hot` encodes them for training).
        name: what the data set is called in reports.
        classes: names of the (+1, -1) class, or of K > 2 classes.
        image_shape: (h, w) or (h, w, c) of a row, h w c = d; None when rows are not images.
        pixel_offset: what was subtracted from pixels in [0, 1]; add it back to draw a row.

    Raises:
        ValueError: wrong shapes (checked on tracers too); empty arrays; NaN, infinity or labels
            outside {-1, +1}, or 0 to K - 1 (not checked on tracers). TypeError if `inputs` are not
            real numbers.
    """

    inputs: Float[Array, "n d"]
    targets: Float[Array, " n"] | Classes
    name: str = eqx.field(static=True)
    classes: tuple[str, ...] = eqx.field(static=True)
    image_shape: tuple[int, ...] | None = eqx.field(static=True)
    pixel_offset: float = eqx.field(static=True)

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        name: str = "data",
        classes: Sequence[str] = ("+1", "-1"),
        image_shape: Sequence[int] | None = None,
        pixel_offset: float = 0.0,
    ):
        self.inputs = as_inputs(inputs, "inputs", flat=True)
        names = distinct_classes(classes)
        self.classes = tuple(map(str, names))
        count = len(self.classes)
        if count == 2:
            labels = as_targets(targets, "targets", self.n)
            self.targets = labels.astype(self.inputs.dtype)
        else:
            self.targets = class_indices(targets, "targets", self.n, count)
        self.name = str(name)
        self.image_shape = None
        if image_shape is not None:
            self.image_shape = _checked_image_shape(image_shape, self.d)
        self.pixel_offset = float(pixel_offset)

    @property
    def n(self) -> int:
        """Number of points."""
        return self.inputs.shape[0]

    @property
    def d(self) -> int:
        """Dimension of a point."""
        return self.inputs.shape[1]

    @property
    def labels(self) -> Classes:
        """The class of every row, its position in `classes`: 0 for +1 and 1 for -1."""
        if len(self.classes) > 2:
            return self.targets
        targets = on_host(self.targets)
        return as_jax(namespace(targets).where(targets > 0, 0, 1))

    @property
    def images(self) -> Float[Array, "n h w c"]:
        """`inputs` as (n, h, w, c), c = 1 for grey, as convolutional kernels want them."""
        if self.image_shape is None:
            raise ValueError(
                f"{self.name}: the rows are not images; give Dataset an image_shape, "
                "or from_arrays inputs of shape (n, h, w) or (n, h, w, c)"
            )
        height, width, *channels = self.image_shape
        if not channels:
            channels = [1]
        return self.inputs.reshape(self.n, height, width, *channels)

    def __len__(self) -> int:
        return self.n

    def __repr__(self) -> str:
        # A mapped tree may hold anything; a traced one has nothing to count.
        if not isinstance(self.targets, jax.Array) or not is_readable(self.targets):
            return eqx.tree_pformat(self)
        labels = np.asarray(self.labels)
        counts = np.bincount(labels, minlength=len(self.classes))
        pairs = zip(counts, self.classes, strict=True)
        shown = ", ".join(f"{count} x {name}" for count, name in pairs)
        return f"Dataset({self.name}: n={self.n}, d={self.d}, {shown})"

    def __getitem__(self, index: Any) -> "Dataset":
        """The rows of a slice, an integer array (k,) or a boolean mask (n,), as a data set."""
        # NumPy finds the rows because JAX would clamp those that do not exist, silently.
        chosen = index if isinstance(index, slice) else np.asarray(index)
        rows = np.arange(self.n)[chosen]
        if rows.ndim != 1 or rows.size == 0:
            raise ValueError(
                f"index {index!r} takes rows of shape {rows.shape}; "
                "wanted a slice or an array of at least one row (row i is data[i : i + 1])"
            )
        inputs, targets = on_host(self.inputs, self.targets)
        return dataclasses.replace(self, inputs=as_jax(inputs[rows]), targets=as_jax(targets[rows]))

    def split(
        self, test: float | int | np.number = 0.2, *, key: PRNGKeyArray
    ) -> "tuple[Dataset, Dataset]":
        """Split at random into (train, test), each class in proportion, rows shuffled.

        Example:
            >>> data = Dataset(np.eye(10), [1, -1] * 5)
            >>> data.split(test=0.4, key=jax.random.key(0))[1]
            Dataset(data: n=4, d=10, 2 x +1, 2 x -1)

        Args:
            test: fraction in (0, 1), rounded to whole rows, or integer number of rows to test on.
            key: JAX random key; the same key gives the same split.

        Raises:
            ValueError: another `test`, or a side without rows. TypeError: `key` is no key.
        """
        count = as_int(test)
        is_fraction = isinstance(test, float | np.floating)
        if is_fraction and 0 < test < 1:
            count = round(float(test) * self.n)
        if count is None or not 0 < count < self.n:
            raise ValueError(
                f"test={test!r}: wanted a fraction in (0, 1) or an integer number of rows that "
                f"leaves at least one of the {self.n} rows on either side"
            )
        chosen, rest = self._stratified(count, key)
        return self[rest], self[chosen]

    def subset(self, n: int | np.integer, *, key: PRNGKeyArray) -> "Dataset":
        """`n` rows at random without repetition, each class in proportion, rows shuffled.

        Example:
            >>> Dataset(np.eye(10), [1, -1] * 5).subset(6, key=jax.random.key(0))
            Dataset(data: n=6, d=10, 3 x +1, 3 x -1)
        """
        if positive(n, "n") > self.n:
            raise ValueError(f"n={n}: wanted at most the {self.n} rows of {self.name}")
        chosen, _ = self._stratified(int(n), key)
        return self[chosen]

    def _stratified(self, count: int, key: PRNGKeyArray) -> tuple[np.ndarray, np.ndarray]:
        """The rows chosen and the others, both shuffled, in the class proportions of the whole."""
        if isinstance(self.targets, Tracer) or isinstance(key, Tracer):
            raise ValueError("targets or key is traced; split and subset work outside jit and vmap")
        # The data may be a constant of a traced function.
        with jax.ensure_compile_time_eval(), _told_of_keys(key):
            order = np.asarray(shuffled(key, self.n))
            labels = np.asarray(self.labels)[order]
        members = labels[:, None] == np.arange(len(self.classes))
        # The largest remainders are rounded up, in integers: no class is asked for more rows than
        # it has.
        shares = count * members.sum(0)
        take, remainder = np.divmod(shares, self.n)
        largest = np.argsort(-remainder, kind="stable")
        missing = count - take.sum()
        take[largest[:missing]] += 1
        place = members.cumsum(0)
        is_taken = place <= take
        chosen = (members & is_taken).any(1)
        return order[chosen], order[~chosen]


def _checked_image_shape(image_shape: Sequence[int], d: int) -> tuple[int, ...] | None:
    """As integers; an empty one is none: the rows are not images."""
    try:
        shape = tuple(map(operator.index, image_shape))
    except TypeError as error:
        raise TypeError(
            f"image_shape must be integers, (h, w) or (h, w, c); got {image_shape!r}"
        ) from error
    if not shape:
        return None
    is_image = len(shape) in (2, 3) and min(shape) > 0
    if not is_image or math.prod(shape) != d:
        raise ValueError(f"image_shape={shape}: wanted (h, w) or (h, w, c) with h w c = d = {d}")
    return shape


def distinct_classes(classes: Sequence[Any]) -> Sequence[Any]:
    """The classes; raises ValueError unless they are two different ones or more.

    Example:
        >>> distinct_classes(("cat", "dog"))
        ('cat', 'dog')
    """
    shape = np.shape(classes)
    several = len(shape) == 1 and shape[0] > 1
    if not several or _has_equal(classes):
        raise ValueError(
            f"classes={classes!r}: wanted two different ones, (+1 class, -1 class), or more"
        )
    return classes


def _has_equal(values: Sequence[Any]) -> bool:
    # Not by a set: classes may be of any kind.
    pairs = itertools.combinations(values, 2)
    return any(a == b for a, b in pairs)


def as_int(value: Any) -> int | None:
    """The value as an int; None for what is no whole number, such as True.

    Example:
        >>> as_int(np.int64(3)), as_int(3.0), as_int(True)
        (3, None, None)
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int | np.integer):
        return int(value)
    return None


def positive(value: Any, argument: str) -> int:
    """The value as an int > 0; raises TypeError or ValueError for any other.

    Example:
        >>> positive(3, "n")
        3
    """
    number = as_int(value)
    wrong = f"{argument}={value!r}: wanted an integer > 0"
    if number is None:
        raise TypeError(wrong)
    if number <= 0:
        raise ValueError(wrong)
    return number


def split_key(key: PRNGKeyArray) -> tuple[PRNGKeyArray, ...]:
    """Two keys from one, of either kind that JAX has.

    Example:
        >>> len(split_key(jax.random.key(0)))
        2
    """
    with _told_of_keys(key):
        return split_keys(key, 2)


@contextlib.contextmanager
def _told_of_keys(key: Any) -> Iterator[None]:
    """Raises TypeError in words for what JAX does not take for a key."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise TypeError(f"key: wanted one such as jax.random.key(0), not {key!r}") from error
