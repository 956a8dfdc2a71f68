"""Files that are whole or absent: written under another name, then renamed."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_whole(path: str | os.PathLike, write: Callable[[IO[bytes]], Any]) -> None:
    """Lets `write` fill a binary file, then gives it the name `path`; whoever is killed meanwhile
    leaves no such file.

    Several processes and threads may write the same path: the last one wins, and each file is
    whole.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with open(unfinished, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
