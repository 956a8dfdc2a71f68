"""How a command ends early: SIGTERM as SIGINT, one KeyboardInterrupt, whatever comes after it."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

#: Exit status of a command that was interrupted.
STATUS = 130

# Seconds for cleaning up, during which further signals change nothing; after them the next one ends
# the process at once.
_CLEANING = 5.0
# Seconds after which an interrupt that was lost comes again.
_AGAIN = 0.05


@contextlib.contextmanager
def answered(*, command: bool) -> Iterator[None]:
    """While this lasts, SIGINT and SIGTERM raise one KeyboardInterrupt in the main thread, and no
    error that follows from it takes its place.

    Signals that somebody answers or ignores already (nohup, a notebook) are left alone.

    For example:

        with answered(command=True):
            print("SIGTERM ends this as Ctrl-C does")

    Args:
        command: whether the process ends after this. If so a later signal prints no traceback
            either; otherwise everything is as before.

    Only for the main thread; elsewhere it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: float | None = None

    def answer(number, frame) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - first > _CLEANING:
            os._exit(STATUS)

    def unraisable(what) -> None:
        # Python drops what is raised in a finaliser or a callback of the garbage collector, where
        # JAX has one: the interrupt comes once more.
        if not isinstance(what.exc_value, KeyboardInterrupt):
            return hook(what)
        threading.Timer(_AGAIN, again).start()

    def again() -> None:
        nonlocal first
        first = None
        os.kill(os.getpid(), signal.SIGINT)

    before, hook = {}, sys.unraisablehook
    sys.unraisablehook = unraisable
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
        sys.unraisablehook = hook
        for number, handler in before.items():
            ended = signal.SIG_DFL if first is None else signal.SIG_IGN
            signal.signal(number, ended if command else handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """While this lasts, in the main thread, SIGINT and SIGTERM wait until its end, and processes
    that are started never see SIGINT.

    For example:

        with deferred():
            print("Ctrl-C waits until this is printed")
    """
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, lambda number, frame: came.append(number))
    masks = hasattr(signal, "pthread_sigmask")  # not on Windows
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else set()
    try:
        yield
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)
