"""Finished cells on disk: one whole file each, under the hash of its configuration and of the code
that computes it.
"""

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import perturbkernel
from perturbkernel.files import write_whole

# Modules that only show what was computed: a change in them leaves results valid.
_PRESENTATION = {
    *("bench", "cli", "files", "plots", "report"),
    *(
        f"reproduce/{name}"
        for name in (
            "__init__",
            "assemble",
            "command",
            "figures",
            "page",
            "plan",
            "runner",
            "store",
        )
    ),
    *(
        "reproduce/specification",
        "reproduce/architectures_figure",
        "reproduce/carriers_figure",
        "reproduce/width_figure",
    ),
}
_PRESENTATION_FOLDERS = ("verify",)


@functools.cache
def code_version() -> str:
    """A hash of the source of every module of the package that computes something."""
    package = Path(perturbkernel.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).with_suffix("").as_posix()
        if name in _PRESENTATION or name.split("/")[0] in _PRESENTATION_FOLDERS:
            continue
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def cell_path(folder: str | os.PathLike, cell: dict[str, Any]) -> Path:
    """Where the result of a cell is, or will be."""
    content = json.dumps([cell, code_version()], sort_keys=True)
    return Path(folder) / "cells" / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.npz"


def save(
    folder: str | os.PathLike, cell: dict[str, Any], arrays: dict[str, np.ndarray], seconds: float
) -> None:
    path = cell_path(folder, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {
        "cell": cell,
        "code": code_version(),
        "seconds": round(seconds, 3),
        "finished": time.strftime("%F %T"),
    }
    contents: dict[str, Any] = {"header": np.array(json.dumps(header)), **arrays}
    write_whole(path, lambda file: np.savez_compressed(file, **contents))


def is_finished(folder: str | os.PathLike, cell: dict[str, Any]) -> bool:
    return cell_path(folder, cell).is_file()


def load(folder: str | os.PathLike, cell: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a finished cell. Raises FileNotFoundError if it is not finished."""
    with np.load(cell_path(folder, cell), allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name != "header"}


def seconds(folder: str | os.PathLike, cell: dict[str, Any]) -> float:
    """What a finished cell took to compute."""
    with np.load(cell_path(folder, cell), allow_pickle=False) as file:
        return float(json.loads(str(file["header"]))["seconds"])


def compute(
    functions: dict[str, Callable], cell: dict[str, Any]
) -> tuple[dict[str, np.ndarray], float]:
    """Runs a cell: its arrays and the seconds that took."""
    began = time.perf_counter()
    arrays = functions[cell["function"]](cell["config"])
    return {name: np.asarray(value) for name, value in arrays.items()}, time.perf_counter() - began
