"""Colour images as arrays of bytes: the two formats of CIFAR-10, and folders of image files."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perturbkernel.data.array_files import check_memory
from perturbkernel.data.image_files import CIFAR10
from perturbkernel.data.pickles import read_pickle

# A record of the binary format: the label, then 32 x 32 reds, greens and blues.
_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_RECORD = 1 + _PIXELS
_BATCHES = {
    "train": [f"data_batch_{i}" for i in range(1, 6)],
    "test": ["test_batch"],
}
_ADVICE = f"get CIFAR-10 from {CIFAR10.home} (nothing is downloaded)"

# What PIL may take a file for, by its suffix. Not PostScript, which is a program.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in ["png", "jpg", "jpeg", "bmp", "gif", "ppm", "pgm", "pbm", "tif", "tiff", "webp"]
)

# PIL's names of modes of 8 bits a channel. Those that have an alpha channel may be opaque or not.
_GREY = ("1", "L")
_COLOUR = ("RGB", "P", "CMYK", "YCbCr", "LAB", "HSV")
_WITH_ALPHA = ("RGBA", "LA")


def read_cifar10(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(pixels (n, 32, 32, 3), labels (n,)) in bytes, from either format, in the files' order.

    Raises FileNotFoundError, or a ValueError that names the file. For example:

        pixels, labels = read_cifar10(Path("cifar-10-batches-bin"), "test")
    """
    names = _BATCHES[split]
    binary = [folder / f"{name}.bin" for name in names]
    is_binary = any(file.is_file() for file in binary)
    files = binary if is_binary else [folder / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        told = ", ".join(missing)
        if len(missing) == len(files):
            told = f"neither {names[0]}.bin, nor {names[0]}"
        raise FileNotFoundError(f"{folder}: found no {told}; {_ADVICE}")
    read = _binary_batch if is_binary else _pickled_batch
    batches = [read(file) for file in files]
    records = np.concatenate([pixels for pixels, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    # Channels last: the files have all reds, then all greens, then all blues.
    planes = records.reshape(-1, 3, _SIDE, _SIDE)
    return planes.transpose(0, 2, 3, 1), labels


def _binary_batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
    size = file.stat().st_size
    if size == 0 or size % _RECORD:
        raise ValueError(
            f"{file}: found {size:,} bytes, wanted a multiple of {_RECORD:,}, a label and "
            f"{_PIXELS:,} pixels an image; {_ADVICE}"
        )
    check_memory(size, f"{file}: the file")
    content = np.frombuffer(file.read_bytes(), np.uint8)
    records = content.reshape(-1, _RECORD)
    labels = _checked_labels(file, records[:, 0])
    return records[:, 1:], labels


def _pickled_batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
    batch = read_pickle(file)
    pixels: Any = batch.get("data")
    labels: Any = batch.get("labels")
    is_bytes = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8
    if not is_bytes or pixels.shape != (len(pixels), _PIXELS) or len(pixels) == 0:
        raise ValueError(f"{file}: found no array 'data' of (n, {_PIXELS}) bytes; {_ADVICE}")
    is_list = isinstance(labels, list) and len(labels) == len(pixels)
    # A bool is an int to isinstance.
    if not is_list or not all(type(label) is int for label in labels):
        raise ValueError(f"{file}: found no list 'labels' of {len(pixels)} integers; {_ADVICE}")
    # As objects: integers may be larger than any that NumPy has.
    return pixels, _checked_labels(file, np.array(labels, object))


def _checked_labels(file: Path, labels: np.ndarray) -> np.ndarray:
    lowest = min(labels)
    largest = max(labels)
    if lowest < 0 or largest > 9:
        raise ValueError(
            f"{file}: found labels from {lowest} to {largest}, wanted 0 to 9; {_ADVICE}"
        )
    return labels.astype(np.uint8)


def read_image_folder(
    folder: Path, classes: Sequence[str] | None
) -> tuple[np.ndarray, list[str], list[str]]:
    """(pixels, in bytes, (n, h, w) or (n, h, w, 3); the class of each image; all classes).

    Classes are the folders in this one, in the order of their names unless `classes` names some.
    Raises FileNotFoundError, or a ValueError that names the file. For example:

        pixels, labels, classes = read_image_folder(Path("pets"), None)
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; wanted one with a folder for each class"
        )
    names = _class_folders(folder, classes)
    files: list[Path] = []
    labels: list[str] = []
    for name in names:
        images = _images_of(folder / name)
        files += images
        labels += [name] * len(images)
    (width, height), is_grey = _common_header(files)
    mode = "L" if is_grey else "RGB"
    channels = () if is_grey else (3,)
    shape = (height, width, *channels)
    count = len(files) * math.prod(shape)
    check_memory(9 * count, f"{folder}: {len(files)} images")
    pixels = np.empty((len(files), *shape), np.uint8)
    for place, file in enumerate(files):
        pixels[place] = _pixels(file, mode, shape)
    return pixels, labels, names


def _class_folders(folder: Path, classes: Sequence[str] | None) -> list[str]:
    """The names of the folders to read, after a check that they exist."""
    found = [place.name for place in _shown(folder) if place.is_dir()]
    names = found if classes is None else list(classes)
    unknown = [name for name in names if name not in found]
    if not unknown and len(found) >= 2:
        return names
    wanted = "two or more, one for each class"
    if unknown:
        wanted = f"one called {unknown[0]}"
    shown = ", ".join(found[:10]) or "none"
    raise ValueError(f"{folder}: found the folders {shown}; wanted {wanted}")


def _shown(folder: Path) -> list[Path]:
    """What is in a folder and not hidden, in the order of the names."""
    places = [place for place in folder.iterdir() if not place.name.startswith(".")]
    return sorted(places)


def _images_of(folder: Path) -> list[Path]:
    files = [file for file in _shown(folder) if file.is_file()]
    images = [file for file in files if file.suffix.lower() in _SUFFIXES]
    if not images:
        kinds = ", ".join(sorted(_SUFFIXES))
        raise ValueError(f"{folder}: found {len(files)} files and no image; wanted {kinds}")
    return images


def _common_header(files: Sequence[Path]) -> tuple[tuple[int, int], bool]:
    """(width, height) of all images, and whether all of them are grey."""
    first, *_ = files
    size, _ = _header(first)
    is_grey = True
    for file in files:
        own_size, mode = _header(file)
        is_grey = is_grey and mode in _GREY
        if own_size != size:
            raise ValueError(
                f"{file}: it is {_by(own_size)} pixels, and {first} is {_by(size)}; wanted all of "
                "one size: crop or resize them first"
            )
    return size, is_grey


def _by(size: tuple[int, int]) -> str:
    width, height = size
    return f"{width} x {height}"


def _header(file: Path) -> tuple[tuple[int, int], str]:
    """(width, height) and mode of an image, whose pixels are not read."""
    size, mode, _ = _opened(file, None)
    if mode not in (*_GREY, *_COLOUR, *_WITH_ALPHA):
        raise ValueError(f"{file}: its pixels are of mode {mode}; wanted 8 bits a channel")
    return size, mode


def _pixels(file: Path, mode: str, shape: tuple[int, ...]) -> np.ndarray:
    _, _, pixels = _opened(file, mode)
    if pixels is None or pixels.shape != shape:
        raise ValueError(f"{file}: its pixels are not those of its header")
    return pixels


def _opened(file: Path, mode: str | None) -> tuple[tuple[int, int], str, np.ndarray | None]:
    """Size, mode, and the pixels in another mode, if any is asked for."""
    from PIL import Image  # slow to import, and seldom needed

    try:
        with warnings.catch_warnings():
            # A header of more pixels than PIL holds for harmless is refused, not warned of.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            with Image.open(file, formats=_FORMATS) as image:
                if mode is None:
                    return image.size, image.mode, None
                _check_opaque(image)
                return image.size, image.mode, np.asarray(image.convert(mode))
    except _Transparent as error:
        raise ValueError(f"{file}: {error}") from None
    # PIL's readers raise almost anything for files that are damaged.
    except Exception as error:
        raise ValueError(f"{file}: cannot be read as an image ({error})") from None


class _Transparent(ValueError):
    pass


def _check_opaque(image: Any) -> None:
    if image.mode not in _WITH_ALPHA and "transparency" not in image.info:
        return
    red_green_blue_alpha = np.asarray(image.convert("RGBA"))
    alpha = red_green_blue_alpha[..., 3]
    if alpha.min() < 255:
        raise _Transparent("parts of it are transparent; lay it on a background first")
