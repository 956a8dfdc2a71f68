"""Files and folders of results that are complete or absent, whoever writes or dies meanwhile.

Writing happens under another name, followed by a rename. Who writes holds a lock of the operating
system on what is unfinished, which ends with the process: what is unfinished and not locked was
left by a process that died, and the next writer removes it.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: files are still whole, but writers of one folder do not wait
    fcntl = None

# Unfinished files, `.NAME.TOKEN.part`. Only such names are ever removed.
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}\.part|\..+\.\d+\.\d+\.part")
_UNFINISHED_FOLDER = ".unfinished-"
_LOCK = ".lock"
# Seconds between two attempts at a lock, and before a writer that waits says so.
_PAUSE, _PATIENCE = 0.05, 10.0


def write_whole(path: str | os.PathLike[str], write: Callable[[IO[bytes]], Any]) -> None:
    """Lets `write` fill a binary file, then gives it the name `path`; whoever is killed meanwhile
    leaves no such file.

    Several processes and threads may write the same path: the last one wins, and each file is
    whole. What killed writers of the same path left is removed. An OSError, of a full disk say,
    names the file.

    For example:

        write_whole("numbers.txt", lambda file: file.write(b"1 2 3"))
    """
    path = Path(path)
    unfinished: Path | None = None
    try:
        remove_unfinished(path.parent, path.name)
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
        with _opened_and_locked(unfinished) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows renames no open file
            os.replace(unfinished, path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(unfinished)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)


def write_folder(folder: str | os.PathLike[str], marker: str, write: Callable[[Path], Any]) -> Path:
    """Lets `write` fill an empty folder, then moves its files into `folder`, replacing those of an
    earlier result; files in sub-folders are moved into the same sub-folders.

    The file called `marker`, which makes a folder a result, is removed first and arrives last: a
    run that is killed leaves the earlier result, or none, but never a mixture. Processes that write
    the same folder do so one after the other. Raises ValueError if `folder` is a file.

    For example:

        write_folder("results", "done", lambda folder: (folder / "done").write_text("yes"))
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; results need a folder")
    with locked(folder):
        aside = folder / f"{_UNFINISHED_FOLDER}{secrets.token_hex(8)}"
        try:
            aside.mkdir()
            write(aside)
            (folder / marker).unlink(missing_ok=True)
            found = [path.relative_to(aside) for path in sorted(aside.rglob("*"))]
            # Folders before what is in them, and the marker last.
            for name in sorted(found, key=lambda name: name == Path(marker)):
                if (aside / name).is_dir():
                    (folder / name).mkdir(exist_ok=True)
                else:
                    os.replace(aside / name, folder / name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """While this lasts, no other process or thread that asks for the same is in the folder.

    The folder is made if it does not exist, and what died writers left in it is removed. Whoever
    waits long is told for whom. A lock ends with the process that holds it, however that ends.

    For example:

        with locked("results"):
            print("nobody else is in the folder")
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK
    file, alone = _wait_for(path)
    try:
        remove_unfinished(folder)
        if alone:
            for left in folder.glob(f"{_UNFINISHED_FOLDER}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        # Removed before it is released: whoever waits for it sees that the name is gone.
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()


def remove_unfinished(folder: str | os.PathLike[str], name: str | None = None) -> None:
    """Removes unfinished files in the folder that no living process writes; only those that were to
    become `name`, if given.

    For example:

        remove_unfinished("results", "report.json")
    """
    for entry in _entries(folder):
        if not _UNFINISHED.fullmatch(entry):
            continue
        if name is not None and not entry.startswith(f".{name}."):
            continue
        path = Path(folder) / entry
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            if _lock(file) is True:
                path.unlink()


def _entries(folder: str | os.PathLike[str]) -> Iterable[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return ()


def _lock(file: IO[bytes]) -> bool | None:
    """Takes the lock of an open file without waiting: whether it was free; None where files have
    none (some network file systems, Windows).
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _opened_and_locked(path: Path) -> IO[bytes]:
    """The file, new and ours: one that was removed between opening and locking is made again."""
    while True:
        file = open(path, "wb")  # noqa: SIM115 (the caller closes it)
        free = _lock(file)
        if free is None or (free and _is_named(file, path)):
            return file
        file.close()


def _wait_for(path: Path) -> tuple[IO[bytes], bool]:
    """The lock file, held, and whether that is certain."""
    began, told = time.monotonic(), False
    while True:
        file = open(path, "a+b", buffering=0)  # noqa: SIM115 (the caller closes it)
        free = _lock(file)
        if free is None or (free and _is_named(file, path)):
            _sign(file)
            return file, free is True
        if not told and time.monotonic() - began > _PATIENCE:
            told = True
            file.seek(0)
            holder = file.read().decode(errors="replace") or "another process"
            warnings.warn(f"waiting for {holder}, which writes {path.parent}", stacklevel=4)
        file.close()
        time.sleep(_PAUSE)


def _sign(file: IO[bytes]) -> None:
    """Says in the lock file whose it is; a full disk is no reason to stop here."""
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())


def _is_named(file: IO[bytes], path: Path) -> bool:
    """Whether the open file is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
