"""Compiled programs on disk, so that the next process does not compile them again.

JAX keeps them where it is told to. This module tells it where: in a folder of this user, this
machine and this version of jaxlib,

    $XDG_CACHE_HOME/perturbkernel/HOST-jaxlib-VERSION     ($XDG_CACHE_HOME left out: ~/.cache)

below ~/Library/Caches on macOS and %LOCALAPPDATA% on Windows. It holds 256 MiB at most: the oldest
programs go when a process begins. (JAX's own limit, `jax_compilation_cache_max_size`, locks and
lists the folder for every program, and needs another package.)
"""

import contextlib
import os
import platform
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

# On, unless the variable is one of these words.
VARIABLE = "PERTURBKERNEL_COMPILATION_CACHE"
_OFF = ("0", "off", "no", "false")
_LIMIT = 256 * 2**20
# What JAX says of a program that it could not read or write: it is compiled, and that is all.
FAULT = "persistent compilation cache entry"
# Its files of programs.
_PROGRAMS = "*-cache"
# A program of a few operations takes 20 ms to compile and 5 ms to read.
_SECONDS = 0.0


def use_compilation_cache(folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Lets JAX keep compiled programs in a folder for later processes, and returns the folder.

        pk.use_compilation_cache()

    It changes JAX's global configuration, which nothing else in this package does, unless a folder
    was chosen before: `JAX_COMPILATION_CACHE_DIR`, or `jax_compilation_cache_dir`, then stays.

    Args:
        folder: another one than the user's cache folder for this version of jaxlib.

    Returns:
        The folder in use. None where nothing is kept: the variable
        `PERTURBKERNEL_COMPILATION_CACHE` is `off`, JAX's own caching is switched off, or nothing
        can be written there, which is no error.
    """
    import jax  # slow to import, and the command line refuses bad usage without

    config = jax.config
    chosen = config.values.get("jax_compilation_cache_dir")
    if chosen:
        return Path(chosen)
    off = os.environ.get(VARIABLE, "").strip().lower() in _OFF
    if off or not config.values.get("jax_enable_compilation_cache", True):
        return None
    try:
        path = default_folder() if folder is None else Path(folder).expanduser()
        _prepare(path)
    except (OSError, RuntimeError):  # no home, or nothing can be written there
        return None
    config.update("jax_compilation_cache_dir", str(path))
    config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)
    return path


def default_folder() -> Path:
    """The folder of this user, this machine and this version of jaxlib."""
    import jaxlib.version

    # Programs are made for one processor, and a home may be shared by several machines.
    kept = [c for c in platform.node() if c.isalnum() or c in "-_"]
    host = "".join(kept) or "host"
    name = f"{host}-jaxlib-{jaxlib.version.__version__}"
    return _user_folder() / "perturbkernel" / name


def _user_folder() -> Path:
    """Where programs of this user keep what they can make again."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return Path(given)
    if sys.platform == "darwin":
        return Path("~/Library/Caches").expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")).expanduser()
    return Path("~/.cache").expanduser()


def _prepare(folder: Path) -> None:
    """Makes the folder, private and within its limit; raises OSError if it cannot be written to."""
    # Who can write there decides what this user's processes run.
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryFile(dir=folder):
        pass
    # With those of other versions beside it.
    programs = folder.parent.glob(f"*/{_PROGRAMS}")
    make_room(programs if folder == default_folder() else folder.glob(_PROGRAMS))


def make_room(programs: Iterable[Path], limit: int = _LIMIT) -> None:
    """Removes the oldest of these files, if they exceed the limit, until half of it is free."""
    files = []
    for path in programs:
        with contextlib.suppress(OSError):  # another process may have removed it
            status = path.stat()
            files.append((status.st_mtime, status.st_size, path))
    size = sum(each for _, each, _ in files)
    if size <= limit:
        return
    for _, each, path in sorted(files):
        if size <= limit / 2:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        size -= each


def forget(folder: Path) -> None:
    """Removes all programs of a folder: JAX does not write over one that it cannot read."""
    for path in folder.glob(_PROGRAMS):
        with contextlib.suppress(OSError):
            path.unlink()
