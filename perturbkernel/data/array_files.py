"""NumPy's .npy and .npz files, read after a look at what their headers declare.

That is compared with what the file and the machine can hold.
"""

import math
import os
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np

# Deflate, the compression of .npz and gzip, turns one byte into at most 1032.
DEFLATE_RATIO = 1032
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_PAIRS = (("inputs", "targets"), ("x", "y"))
_WANTED = "an .npz file with inputs and targets, or x and y"
_UNREADABLE = (EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error)


def machine_memory() -> float:
    """Bytes of memory that the machine has; infinite where its system does not say.

    Example:
        >>> machine_memory() > 1e8
        True
    """
    try:
        pages = os.sysconf("SC_PHYS_PAGES")
        page = os.sysconf("SC_PAGE_SIZE")
        return pages * page
    except (AttributeError, OSError, ValueError):
        return math.inf


def check_memory(size: int, what: str) -> None:
    """Raises ValueError if `size` bytes are more than the machine's memory.

    Example:
        >>> check_memory(1000, "the array")
    """
    memory = machine_memory()
    if size > memory:
        raise ValueError(
            f"{what} takes {size / 1e9:,.1f} GB; this machine has {memory / 1e9:,.1f} GB"
        )


def read_npy(path: str | Path) -> np.ndarray:
    """The array of an .npy file. Pickled objects are never loaded.

    Raises FileNotFoundError, or a ValueError that names the file. For example:

        read_npy("outputs.npy").shape
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; wanted an .npy file")
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            _check_header(stream, size, "the array")
            stream.seek(0)
            return np.lib.format.read_array(stream, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    except _UNREADABLE as error:
        raise ValueError(f"{file}: cannot be read ({error}); wanted an .npy file") from error


def read_labelled(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets) of an .npz file, its arrays `inputs` and `targets`, or `x` and `y`.

    Other arrays are not read, and pickled objects never loaded. Raises FileNotFoundError, or a
    ValueError that names the file. For example:

        inputs, targets = read_labelled("digits.npz")
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; wanted {_WANTED}")
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"found no arrays, this is no .npz file; wanted {_WANTED}")
        with zipfile.ZipFile(file) as archive:
            return _read_pair(archive)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    except _UNREADABLE as error:
        raise ValueError(f"{file}: cannot be read ({error}); wanted {_WANTED}") from error


def _read_pair(archive: zipfile.ZipFile) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets), both checked before either is read."""
    members = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        members[name] = member
    inputs_name, targets_name = _pair_of_names(members)
    inputs = members[inputs_name]
    targets = members[targets_name]
    _check_member(archive, inputs, inputs_name)
    _check_member(archive, targets, targets_name)
    values = _read_member(archive, inputs)
    return values, _read_member(archive, targets)


def _pair_of_names(names: Collection[str]) -> tuple[str, str]:
    for inputs, targets in _PAIRS:
        if inputs in names and targets in names:
            return inputs, targets
    raise ValueError(f"found the arrays {list(names)}; wanted {_WANTED}")


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> None:
    declared = member.file_size
    compressed = member.compress_size
    most = DEFLATE_RATIO * (compressed + 1)
    is_deflated = member.compress_type == zipfile.ZIP_DEFLATED
    if is_deflated and declared > most:
        raise ValueError(
            f"{name} declares {declared:,} bytes; its {compressed:,} compressed "
            f"bytes hold at most {most:,}"
        )
    with archive.open(member) as stream:
        _check_header(stream, declared, name)


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _check_header(stream: IO[bytes], size: int, name: str) -> None:
    """Raises ValueError for an array that declares more than there is, or than the memory holds.

    Also for one of Python objects. It is at the beginning of `stream`, `size` bytes long.
    """
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"{name} has .npy format {version}; wanted plain numbers or words")
    try:
        shape, _, dtype = _HEADERS[version](stream)
    except Exception as error:  # NumPy parses it as Python: whatever that raises
        raise ValueError(f"{name} has a broken header ({error})") from error
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are not loaded (allow_pickle=False)")
    entries = math.prod(shape)
    declared = entries * dtype.itemsize
    held = size - stream.tell()
    smallest = min(shape, default=0)
    if smallest < 0 or declared > held:
        raise ValueError(
            f"{name} declares shape {shape} of {dtype}, {declared:,} bytes; it holds {held:,}"
        )
    check_memory(declared, name)
