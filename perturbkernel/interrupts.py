"""How a command ends early: SIGTERM as SIGINT, as one KeyboardInterrupt, whatever comes after it."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

#: Exit status of a command that was interrupted.
STATUS = 130

# Seconds for cleaning up, during which further signals change nothing; after them the next one ends
# the process at once.
_CLEANING = 5.0


@contextlib.contextmanager
def answered(*, command: bool) -> Iterator[None]:
    """While this lasts, SIGINT and SIGTERM raise one KeyboardInterrupt in the main thread, and no
    error that follows from it takes its place.

    Signals that somebody answers or ignores already (nohup, a notebook) are left alone.

    Args:
        command: whether the process ends after this. If so a later signal prints no traceback
            either; otherwise everything is as before.
    """
    first: float | None = None

    def answer(number, frame) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - first > _CLEANING:
            os._exit(STATUS)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, answer)
    try:
        yield
    except Exception:
        if first is not None:  # a library has wrapped the interrupt, or stumbled over it
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in before.items():
            if not command:
                signal.signal(number, handler)
            elif first is None:
                signal.signal(number, signal.SIG_DFL)
