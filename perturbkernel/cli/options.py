"""Types of command-line options: what is wrong is refused while the command is read, in the words
of the shell.
"""

import argparse
import contextlib
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

# JAX keeps 32 bits of a seed unless x64 is enabled: beyond, two seeds would be one.
SEEDS = 2**32


def _number(text: str, kind: Callable, right: Callable[[float], bool], wanted: str):
    """`text` as a number of the given kind for which `right` holds."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not right(value):
        raise argparse.ArgumentTypeError(f"wanted {wanted}; got {text!r}")
    return value


def count(text: str) -> int:
    """A whole number, 1 or more."""
    return _number(text, int, lambda value: value >= 1, "a whole number, 1 or more")


def seed(text: str) -> int:
    """A seed of JAX's random keys."""
    wanted = f"a whole number from 0 to {SEEDS - 1}"
    return _number(text, int, lambda value: 0 <= value < SEEDS, wanted)


def number(text: str) -> float:
    """A finite number."""
    return _number(text, float, math.isfinite, "a finite number")


def limit(text: str) -> float:
    """A number, or inf or -inf."""
    return _number(text, float, lambda value: not math.isnan(value), "a number")


def positive(text: str) -> float:
    """A finite number above zero."""
    return _number(text, float, lambda value: 0 < value < math.inf, "a finite number above 0")


def duration(text: str) -> float:
    """A number above zero, or inf."""
    return _number(text, float, lambda value: value > 0, "a number above 0, or inf")


def penalty(text: str) -> float:
    """A finite number, 0 or above."""
    return _number(text, float, lambda value: 0 <= value < math.inf, "a finite number, 0 or above")


def slope(text: str) -> float:
    """A number from 0 to 1."""
    return _number(text, float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def momentum(text: str) -> float:
    """A number from 0 to below 1."""
    return _number(text, float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def share(text: str) -> float:
    """A number between 0 and 1."""
    return _number(text, float, lambda value: 0 < value < 1, "a number between 0 and 1")


def add_compilation_cache(parser: argparse._ActionsContainer) -> None:
    """Adds the option that switches the folder of compiled programs off."""
    parser.add_argument(
        "--no-compilation-cache",
        dest="compilation_cache",
        action="store_false",
        help="do not keep compiled programs in your cache folder (default: keep them). "
        "PERTURBKERNEL_COMPILATION_CACHE=off does the same; JAX_COMPILATION_CACHE_DIR names "
        "another folder",
    )


def check_out(folder: str | None, option: str = "--out") -> None:
    """Raises ValueError unless results can be written to the folder of the option; leaves nothing
    there.
    """
    if folder is None:
        return
    path = Path(folder)
    # A broken link exists for no test but that of links.
    missing = [p for p in (path, *path.parents) if not p.exists() and not p.is_symlink()]
    try:
        if path.exists() and not path.is_dir():
            raise ValueError(f"{option} must be a folder; {folder} is a file")
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"{option} {folder}: nothing can be written there ({error})") from error
    finally:
        for made in missing:
            with contextlib.suppress(OSError):
                made.rmdir()
