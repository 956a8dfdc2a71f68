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
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from perturbkernel.reproduce import store
from perturbkernel.reproduce.limit import limit_cell
from perturbkernel.reproduce.maps import map_limit_cell, map_network_cell
from perturbkernel.reproduce.network import network_cell
from perturbkernel.reproduce.plan import STUDIES, Cell

# Cells given to an executor of unknown size, a cluster's: enough to keep it busy, few enough to
# share a folder.
_IN_FLIGHT = 256

FUNCTIONS: dict[str, Callable[[dict[str, Any]], dict[str, np.ndarray]]] = {
    "limit": limit_cell,
    "network": network_cell,
    "map_limit": map_limit_cell,
    "map_network": map_network_cell,
    **{name: study.module.measure for name, study in STUDIES.items()},
}


def compute(job: Sequence[Cell]) -> list[tuple[dict[str, np.ndarray], float]]:
    """Some cells, anywhere: needs nothing but this package. Returns the arrays of each and the
    seconds it took.
    """
    return [store.compute(FUNCTIONS, cell) for cell in job]


def _jobs(cells: Sequence[Cell]) -> list[list[Cell]]:
    """What is handed out at once. Networks that differ in their seed only run the same program, and
    compiling it takes as long as they do: one process takes them all.
    """

    def program(cell: Cell) -> str:
        if cell["function"] != "network":
            return json.dumps(cell)
        return json.dumps(
            cell | {"config": cell["config"] | {"data": cell["config"]["data"] | {"seed": None}}}
        )

    return [list(job) for _, job in itertools.groupby(cells, program)]


# Threads of NumPy's products, read when it is loaded: before a worker runs anything of ours.
_NUMPY_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


def _prepare_worker(threads: int) -> None:
    """In a local worker, before JAX starts: so many threads, and no life without the parent."""
    os.environ["NPROC"] = str(threads)  # what XLA's CPU backend sizes its thread pool by
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)  # a killed parent cannot tell its workers to stop

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def local_processes(workers: int | None = None) -> Iterator[Executor]:
    """Processes of this machine, a core each if left out, that end with this one, however it ends."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    workers = cores if workers is None else workers
    threads = max(1, cores // workers)
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _prepare_worker, (threads,)
    )
    before = dict(os.environ)
    os.environ.update({name: str(threads) for name in _NUMPY_THREADS if name not in before})
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for name in set(_NUMPY_THREADS) - set(before):
            os.environ.pop(name, None)


class Here(Executor):
    """Computes in this process, at once."""

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def run(
    cells: Sequence[Cell],
    folder: str | os.PathLike,
    executor: Executor,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Computes every cell of which `folder` has no result.

    Cells are handed out a few at a time, each looked up again just before, so that processes
    working on one folder share the work; should two compute the same cell, the results are equal
    and either file is whole. `progress(finished, all)` is called at the start and after each cell.

    Raises:
        RuntimeError: a cell failed; raised after all the others were computed and stored.
    """
    missing = [cell for cell in cells if not store.is_finished(folder, cell)]
    tell = progress or (lambda finished, total: None)
    done, failures = len(cells) - len(missing), []
    tell(done, len(cells))
    if not missing:
        return
    # Another process on this folder begins elsewhere in the list.
    start = os.getpid() % len(missing) if any(Path(folder).glob("cells/*.npz")) else 0
    queue = iter(_jobs(missing[start:] + missing[:start]))
    running: dict[Future, list[Cell]] = {}
    in_flight = {Here: 1, ProcessPoolExecutor: 2 * (os.cpu_count() or 1)}.get(
        type(executor), _IN_FLIGHT
    )
    while True:
        while len(running) < in_flight and (job := next(queue, None)) is not None:
            left = [cell for cell in job if not store.is_finished(folder, cell)]
            if left:
                running[executor.submit(compute, left)] = left
            if len(left) < len(job):
                done += len(job) - len(left)
                tell(done, len(cells))
        if not running:
            break
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            if (error := future.exception()) is not None:
                failures += [(cell, error) for cell in job]
                continue
            for cell, result in zip(job, future.result(), strict=True):
                store.save(folder, cell, *result)
                done += 1
                tell(done, len(cells))
    if failures:
        cell, error = failures[0]
        raise RuntimeError(
            f"{len(failures)} of {len(cells)} cells failed; the first, {cell['function']} {cell['config']}: "
            f"{type(error).__name__}: {error}"
        ) from error
