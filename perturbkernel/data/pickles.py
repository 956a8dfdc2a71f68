"""Pickled dictionaries of arrays, words and numbers, read without executing anything.

A pickle is a program: it may call whatever can be imported. Here it finds nothing to call but the
stand-ins below, made anew for each file, which note what an array is made of. The interpreter is
the one in Python, whose memory is bounded by the file; that in C keeps what it was given under any
number that the file says.
"""

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from perturbkernel.data.array_files import check_memory

_RECONSTRUCT = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}
_FROM_BUFFER = {("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer")}
_BYTES = {("__builtin__", "bytes"), ("builtins", "bytes")}
_WANTED = "a pickled dict of NumPy arrays, words, numbers, lists and dicts"
_NUMBERS = re.compile(r"[|<>=]?(b1|[iu][1248]|f[248])")


class _Refused(ValueError):
    """What a file asks for that is not there, in words."""


def read_pickle(path: str | Path) -> dict[str, Any]:
    """The dict of a pickle file, by names; of NumPy arrays, words, numbers, lists and dicts only.

    Raises FileNotFoundError, or a ValueError that names the file, for anything else: nothing that
    the file asks for is imported or called. For example:

        read_pickle("cifar-10-batches-py/test_batch")["data"].shape
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; wanted {_WANTED}")
    try:
        size = file.stat().st_size
        check_memory(2 * size, "the file")
        return _as_dict(_Unpickler(file.read_bytes()).load())
    except _Refused as error:
        raise ValueError(f"{file}: {error}") from None
    # What an interpreter raises for bytes that are no program: almost anything.
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file}: cannot be read ({told}); wanted {_WANTED}") from None


def _as_dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Refused(f"it holds {type(value).__name__}; wanted {_WANTED}")
    found = {}
    for key, entry in value.items():
        is_array = isinstance(entry, _ArrayNotes)
        found[_text(key)] = entry.array() if is_array else _checked(entry)
    return found


def _checked(entry: Any) -> Any:
    """The entry; raises unless it is made of words, numbers, lists and dicts."""
    left, seen = [entry], set()
    while left:
        value = left.pop()
        if id(value) in seen:  # a list may hold itself
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            left += value
        elif value is not None and not isinstance(value, str | bytes | int | float):
            raise _Refused(f"it holds {type(value).__name__}; wanted {_WANTED}")
    return entry


class _Unpickler(pickle._Unpickler):  # pyright: ignore[reportAttributeAccessIssue]
    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.stand_ins: dict[str, Any] = {}

    def find_class(self, module: Any, name: Any) -> Any:
        """A stand-in for what makes an array; raises for every other name."""
        asked = _text(module), _text(name)
        if asked in _RECONSTRUCT:
            return _array_notes()
        if asked in _FROM_BUFFER:
            return _array_from_buffer()
        if asked == ("numpy", "ndarray"):
            return "ndarray"  # an argument of the first
        if asked == ("numpy", "dtype"):
            return _dtype_notes()
        if asked == ("_codecs", "encode"):
            return _latin_bytes()
        if asked in _BYTES:
            return _no_bytes()
        raise _Refused(
            f"it asks for {'.'.join(asked)}, which is not loaded; wanted {_WANTED}, and nothing of "
            "it was executed"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused(f"it refers to what is not in it; wanted {_WANTED}")

    def get_extension(self, code: Any) -> Any:
        raise _Refused(f"it asks for the extension {code}, which is not loaded; wanted {_WANTED}")


def _text(name: Any) -> str:
    text = name.decode("ascii", "backslashreplace") if isinstance(name, bytes) else str(name)
    shown = ""
    for character in text:
        escaped = ascii(character)[1:-1]
        shown += character if character.isprintable() else escaped
    return shown


# A program may set attributes of what it is given: each of these is made for one file.


def _array_notes() -> Any:
    return lambda *_: _ArrayNotes()


def _array_from_buffer() -> Any:
    def from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> "_ArrayNotes":
        notes = _ArrayNotes()
        notes.__setstate__((1, shape, dtype, order == "F", bytes(memoryview(raw))))
        return notes

    return from_buffer


def _dtype_notes() -> Any:
    return lambda code, *_: _DtypeNotes(code)


def _latin_bytes() -> Any:
    """Bytes, as the oldest protocols of Python 3 write them."""

    def encode(text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise _Refused(f"it asks for another encoding than latin1; wanted {_WANTED}")
        return text.encode("latin1")

    return encode


def _no_bytes() -> Any:
    """Empty bytes, as those protocols write them: a call without arguments."""
    return lambda: b""


class _DtypeNotes:
    """What a file says of a dtype: its code, and its byte order."""

    def __init__(self, code: Any):
        self.code = _text(code)
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        _, order, *_ = state
        self.order = _text(order)

    def dtype(self) -> np.dtype:
        code = self.code if self.order == "|" else self.order + self.code.lstrip("|<>=")
        if not _NUMBERS.fullmatch(code):
            raise _Refused(f"it holds an array of dtype {code}; wanted numbers")
        return np.dtype(code)


class _ArrayNotes:
    """What a file says of an array."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        """The array, once shape and bytes are known to belong together."""
        _, shape, notes, is_fortran, raw = self.state
        if not isinstance(notes, _DtypeNotes) or not isinstance(raw, bytes):
            raise _Refused("it holds an array that is none of numbers")
        sizes = tuple(shape)
        dtype = notes.dtype()
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise _Refused(f"it holds an array of shape {sizes}")
        declared = math.prod(sizes) * dtype.itemsize
        if declared != len(raw):
            raise _Refused(
                f"it declares an array of shape {sizes} of {dtype}, {declared:,} bytes; it holds "
                f"{len(raw):,}"
            )
        values = np.frombuffer(raw, dtype)
        return values.reshape(sizes, order="F" if is_fortran else "C")
