"""Progress on standard error: a bar on a terminal, a line a minute in a log file."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

_SECONDS = 60.0


class Lines:
    """Has the methods of a tqdm bar that the commands use, and can say how far it is.

    Example:
        >>> lines = Lines(total=4, unit="cell")
        >>> lines.set_description("digits")
        >>> lines.update()
        >>> lines.said(seconds=61)
        '1 of 4 cells after 1 min 01 s: digits'
    """

    def __init__(self, total: int, unit: str):
        self.total = total
        self.n = 0
        self._unit = unit
        self._description = ""

    def update(self, k: int = 1) -> None:
        """Counts k more."""
        self.n += k

    def set_description(self, description: str) -> None:
        """Names what is being done."""
        self._description = description

    def refresh(self) -> None:
        """Nothing: the next line says it."""

    def said(self, seconds: float) -> str:
        """How far it is, after so many seconds."""
        minutes, rest = divmod(int(seconds), 60)
        description = f": {self._description}" if self._description else ""
        return (
            f"{self.n} of {self.total} {self._unit}s after {minutes} min {rest:02} s{description}"
        )


@contextlib.contextmanager
def progress(total: int, unit: str, quiet: bool) -> Iterator[Any]:
    """A tqdm bar on a terminal, else `Lines` of which one is written every minute.

    For example:

        with progress(3, "stage", quiet=False) as bar:
            bar.set_description("training f")
            bar.update()
    """
    if quiet:
        yield Lines(total, unit)
        return
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, leave=False, unit=unit) as bar:
            yield bar
        return
    lines = Lines(total, unit)
    done = threading.Event()
    began = time.monotonic()

    def write() -> None:
        while not done.wait(_SECONDS):
            print(lines.said(time.monotonic() - began), file=sys.stderr, flush=True)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        done.set()
        thread.join()
