"""Computes the cells that are missing, on any `concurrent.futures.Executor`, and stores each as it
finishes.
"""

import contextlib
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from perturbkernel import interrupts
from perturbkernel.files import locked
from perturbkernel.reproduce import store
from perturbkernel.reproduce.functions import FUNCTIONS
from perturbkernel.reproduce.plan import Cell

# Cells given to an executor of unknown size, a cluster's: enough to keep it busy, few enough to
# share a folder.
_IN_FLIGHT = 256

AGAIN = "finished cells are kept: give the command again to compute the rest"


def compute(job: Sequence[Cell]) -> list[store.Result]:
    """Some cells, anywhere: needs nothing but this package."""
    return [store.compute(FUNCTIONS, cell) for cell in job]


def _jobs(cells: Sequence[Cell]) -> list[list[Cell]]:
    """What is handed out at once. Cells of finite width that differ in their seed only run the same
    program, and compiling it takes as long as they do: one process takes them all.
    """

    def program(cell: Cell) -> str:
        if cell["function"] not in ("network", "law"):
            return json.dumps(cell)
        config = cell["config"]
        seedless = config | {"data": config["data"] | {"seed": None}}
        return json.dumps(cell | {"config": seedless})

    return [list(job) for _, job in itertools.groupby(cells, program)]


# Threads of NumPy's products, read when it is loaded: before a worker runs anything of ours.
_NUMPY_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


def _prepare_worker(threads: int, parent: Connection) -> None:
    """In a local worker, before JAX starts: so many threads, and no life without the parent."""
    os.environ["NPROC"] = str(threads)  # what XLA's CPU backend sizes its thread pool by

    def follow() -> None:
        # Nothing is ever sent: this ends when the parent closes its end, or has died.
        multiprocessing.connection.wait([parent])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class _LocalProcesses(ProcessPoolExecutor):
    """A pool whose processes never see an interrupt: the parent alone answers it."""

    def submit(self, fn, /, *args, **kwargs):
        # The pool starts processes here, and a blocked signal stays blocked in them from their
        # first instruction.
        with interrupts.deferred():
            return super().submit(fn, *args, **kwargs)

    def kill(self) -> None:
        """Ends the processes, whatever they do."""
        for process in list((self._processes or {}).values()):
            process.kill()


@contextlib.contextmanager
def local_processes(workers: int | None = None) -> Iterator[Executor]:
    """Processes of this machine, a core each if left out, that end with this block or this process,
    however either ends.
    """
    cores = _cores()
    workers = cores if workers is None else workers
    threads = max(1, cores // workers)
    theirs, ours = multiprocessing.Pipe(duplex=False)
    spawn = multiprocessing.get_context("spawn")
    pool = _LocalProcesses(workers, spawn, _prepare_worker, (threads, theirs))
    before = dict(os.environ)
    os.environ.update({name: str(threads) for name in _NUMPY_THREADS if name not in before})
    try:
        yield pool
    except BaseException:
        pool.kill()
        raise
    finally:
        pool.shutdown(wait=False)
        ours.close()
        theirs.close()
        for name in set(_NUMPY_THREADS) - set(before):
            os.environ.pop(name, None)


def _cores() -> int:
    """Of this machine, those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Here(Executor):
    """Computes in this process, at once."""

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class _Progress:
    """How many cells are finished, told whenever that changes."""

    def __init__(self, total: int, tell: Callable[[int, int], None] | None):
        self.finished = 0
        self.total = total
        self._tell = tell

    def add(self, count: int) -> None:
        self.finished += count
        if self._tell is not None:
            self._tell(self.finished, self.total)


class _Failure(NamedTuple):
    cell: Cell
    error: BaseException


def run(
    cells: Sequence[Cell],
    folder: str | os.PathLike[str],
    executor: Executor,
    on_cell: Callable[[int, int], None] | None = None,
) -> None:
    """Computes every cell of which `folder` has no result.

    Cells are handed out a few at a time, each looked up again just before, so that processes
    working on one folder share the work; should two compute the same cell, the results are equal
    and either file is whole. Damaged files are set aside, with a warning. `on_cell(finished, all)`
    is called at the start and after each cell.

    Raises:
        RuntimeError: a cell failed, raised after all the others were computed and stored; or a
        worker was killed, or has another version of the package.
    """
    with locked(Path(folder) / "cells"):
        pass  # it can be written to, and what killed runs left there is gone
    missing = [cell for cell in cells if not store.is_finished(folder, cell)]
    for cell in missing:
        if store.cell_path(folder, cell).exists():
            store.set_aside_damaged(folder, cell)
    told = _Progress(len(cells), on_cell)
    told.add(len(cells) - len(missing))
    if not missing:
        return
    # Another process on this folder begins elsewhere in the list.
    start = os.getpid() % len(missing) if any(Path(folder).glob("cells/*.npz")) else 0
    jobs = iter(_jobs(missing[start:] + missing[:start]))
    running: dict[Future, list[Cell]] = {}
    try:
        failures = _compute_all(jobs, Path(folder), executor, running, told)
    finally:
        # None unless this was interrupted. Local processes are killed instead: their pool stumbles
        # over futures that are cancelled before it breaks.
        if not isinstance(executor, _LocalProcesses):
            for future in running:
                future.cancel()
    for _, error in failures:
        if isinstance(error, BrokenExecutor):
            raise RuntimeError(
                f"a worker process ended unexpectedly, killed perhaps for want of memory; "
                f"{told.finished} of {told.total} cells are finished. The {AGAIN}, with fewer "
                f"--workers if memory is short"
            ) from error
    if failures:
        cell, error = failures[0]
        raise RuntimeError(
            f"{len(failures)} of {len(cells)} cells failed; the first, {cell['function']} "
            f"{cell['config']}: {type(error).__name__}: {error}"
        ) from error


def _compute_all(
    jobs: Iterator[list[Cell]],
    folder: Path,
    executor: Executor,
    running: dict[Future, list[Cell]],
    told: _Progress,
) -> list[_Failure]:
    """Returns what failed of the jobs, of which results are stored as they come; `running` holds
    what is handed out.
    """
    failures: list[_Failure] = []
    in_flight, broken = _in_flight(executor), False
    while True:
        while not broken and len(running) < in_flight and (job := next(jobs, None)) is not None:
            left = [cell for cell in job if not store.is_finished(folder, cell)]
            try:
                if left:
                    running[executor.submit(compute, left)] = left
            except BrokenExecutor as error:
                broken = True
                failures += [_Failure(cell, error) for cell in left]
            if len(left) < len(job):
                told.add(len(job) - len(left))
        if not running:
            return failures
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            error = future.exception()
            if error is not None:
                broken = broken or isinstance(error, BrokenExecutor)
                failures += [_Failure(cell, error) for cell in job]
                continue
            for cell, result in zip(job, future.result(), strict=True):
                store.save_result(folder, cell, result)
                told.add(1)


def _in_flight(executor: Executor) -> int:
    """How many jobs are handed out before the first is finished."""
    if isinstance(executor, Here):
        return 1
    if isinstance(executor, ProcessPoolExecutor):
        return 2 * (os.cpu_count() or 1)
    return _IN_FLIGHT
