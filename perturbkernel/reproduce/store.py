"""Finished cells on disk: one complete file each, under the hash of what was asked, of the data's
content and of the code that computes it.

A file says what it holds: the cell, the code, the environment and a digest of its arrays. One that
cannot be read, or holds something else, is set aside and computed again.
"""

import functools
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import perturbkernel
from perturbkernel import report as reports
from perturbkernel.files import locked, write_whole
from perturbkernel.reproduce.functions import MODULES
from perturbkernel.reproduce.records import Arrays, Cell, Json
from perturbkernel.reproduce.source import source_hash

# What the names of files that are set aside end in.
DAMAGED = ".damaged"


class Result(NamedTuple):
    """What a worker returns for a cell.

    Attributes:
        arrays: the numbers.
        seconds: what it took to compute them.
        code: the worker's `code_version` of the cell's function.
        environment: the worker's versions and device; see `report.environment`.
    """

    arrays: Arrays
    seconds: float
    code: str
    environment: Json


class Damaged(ValueError):
    """A file that cannot be read, or that holds something else than its name says."""


def code_version(function: str) -> str:
    """A hash of the source that computes the cells of a function, in this process's package."""
    return _code_version(MODULES[function])


@functools.cache
def _code_version(module: str) -> str:
    return source_hash(Path(perturbkernel.__file__).parent, module)


@functools.cache
def local_environment() -> Json:
    """Versions and device of this process."""
    return reports.environment(("mlxtend",))


def _identity(cell: Cell) -> Json:
    """The cell without the folder of its data: their content says what they are."""
    config = cell["config"]
    data = config.get("data")
    if not isinstance(data, dict):
        return cell
    kept = {name: value for name, value in data.items() if name != "path"}
    return cell | {"config": config | {"data": kept}}


def cell_path(folder: str | os.PathLike[str], cell: Cell) -> Path:
    """Where the result of a cell is, or will be."""
    what = [_identity(cell), code_version(cell["function"])]
    content = json.dumps(what, sort_keys=True)
    name = hashlib.sha256(content.encode()).hexdigest()[:32]
    return Path(folder) / "cells" / f"{name}.npz"


def _digest(arrays: Arrays) -> str:
    """A hash of names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def save(
    folder: str | os.PathLike[str],
    cell: Cell,
    arrays: Arrays,
    seconds: float,
) -> None:
    """Stores what this process computed."""
    code = code_version(cell["function"])
    save_result(folder, cell, Result(arrays, seconds, code, local_environment()))


def save_result(folder: str | os.PathLike[str], cell: Cell, result: Result) -> None:
    """Stores what a worker computed.

    Raises RuntimeError if the worker has another version of the code.
    """
    own = code_version(cell["function"])
    arrays, seconds, code, environment = _as_result(result)
    if code != own:
        raise RuntimeError(
            f"a worker has another version of the package, whose result was not kept: it computes "
            f"{cell['function']} cells by perturbkernel {environment['perturbkernel']}, source "
            f"{code}; here it is {perturbkernel.__version__}, {own}. Install the same on both"
        )
    path = cell_path(folder, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {
        "cell": cell,
        "code": code,
        "environment": environment,
        "digest": _digest(arrays),
        "seconds": round(seconds, 3),
        "finished": time.strftime("%F %T"),
    }
    contents: Json = {"header": np.array(json.dumps(header)), **arrays}
    write_whole(path, lambda file: np.savez_compressed(file, **contents))


def _as_result(result: Any) -> Result:
    """The result, or, of a version of the package that returned something else, an empty one."""
    unknown = Result({}, 0.0, "unknown", {"perturbkernel": "unknown"})
    return result if isinstance(result, Result) else unknown


def _read(folder: str | os.PathLike[str], cell: Cell) -> tuple[Json, Arrays]:
    """Header and arrays of a finished cell.

    Raises FileNotFoundError if it is not finished, `Damaged` if its file is not what it should be.
    """
    path = cell_path(folder, cell)
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop("header")))
        held = _identity(header["cell"])
        code, digest = header["code"], header["digest"]
    except FileNotFoundError:
        raise
    except Exception as error:  # damage may surface anywhere between zlib and JSON
        raise Damaged(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    if held != _identity(cell) or code != code_version(cell["function"]):
        raise Damaged(f"{path} holds another cell")
    if digest != _digest(arrays):
        raise Damaged(f"{path} does not hold the arrays that were computed")
    return header, arrays


def is_finished(folder: str | os.PathLike[str], cell: Cell) -> bool:
    """Whether the result of a cell is there and complete."""
    try:
        _read(folder, cell)
    except (FileNotFoundError, Damaged):
        return False
    return True


def set_aside_damaged(folder: str | os.PathLike[str], cell: Cell) -> None:
    """Renames the file of a cell, with a warning, if it is damaged."""
    path = cell_path(folder, cell)
    with locked(path.parent):  # two processes would set aside what the other has just written
        try:
            _read(folder, cell)
        except FileNotFoundError:
            return
        except Damaged as error:
            aside = path.with_name(f"{path.name}.{time.time_ns()}{DAMAGED}")
            path.rename(aside)
            warnings.warn(f"{error}; it is kept as {aside.name}, and computed again", stacklevel=2)


def load(folder: str | os.PathLike[str], cell: Cell) -> Arrays:
    """The arrays of a finished cell.

    Raises FileNotFoundError if it is not finished, ValueError if its file is damaged.
    """
    return _advised(folder, cell)[1]


def header(folder: str | os.PathLike[str], cell: Cell) -> Json:
    """What is known of a finished cell: "cell", "code", "environment", "seconds", "finished".

    Raises as `load` does.
    """
    return _advised(folder, cell)[0]


def seconds(folder: str | os.PathLike[str], cell: Cell) -> float:
    """What a finished cell took to compute."""
    return float(header(folder, cell)["seconds"])


def _advised(folder: str | os.PathLike[str], cell: Cell) -> tuple[Json, Arrays]:
    """What `_read` returns, or an error that says what to do."""
    try:
        return _read(folder, cell)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} holds no result of a {cell['function']} cell for this version of the "
            "package and these data: give the `reproduce` command again, which computes what is "
            "missing"
        ) from None
    except Damaged as error:
        raise Damaged(f"{error}: give the `reproduce` command again") from error


def compute(functions: dict[str, Callable], cell: Cell) -> Result:
    """Runs a cell in this process."""
    code = code_version(cell["function"])
    began = time.perf_counter()
    found = functions[cell["function"]](cell["config"])
    arrays = {name: np.asarray(value) for name, value in found.items()}
    seconds = time.perf_counter() - began
    return Result(arrays, seconds, code, local_environment())
