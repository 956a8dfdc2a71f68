"""Products, solvers and ensembles on a mesh: many devices in one process, two processes, the death
of one of them.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import pytest

import perturbkernel as pk

ROOT = Path(__file__).parents[2]
X: Any = [[0.0, 1.0], [1.0, 2.0], [2.0, 0.5]]


@contextmanager
def started(devices: int, processes: int) -> Iterator[list[subprocess.Popen]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sizes = [[str(n) for n in (devices, processes, process, port)] for process in range(processes)]
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                str(ROOT / "tests" / "helpers" / "mesh_worker.py"),
                *size,
            ],
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for size in sizes
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def are_those_of_one_device(line: str, least: int) -> None:
    """17 points and 11 queries, and 5 networks: no number of devices divides them.

    In float64 the tolerance of the solvers, 1e-9, and the condition number, far below this limit.
    Sums of 17 terms in another order: a few eps (6e-8). A share left out, or counted twice, is of
    order 0.1.
    """
    differences = json.loads(line)
    assert len(differences) >= least
    assert max(differences.values()) < 3e-6, differences


@pytest.fixture(scope="module")
def one_process() -> list[str]:
    """What a process with eight devices says: starting it costs as much as one test."""
    with started(8, 1) as (worker,):
        output, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors
    return [line for line in output.splitlines() if line.startswith("{")]


def test_results_are_those_of_one_device(one_process):
    are_those_of_one_device(one_process[0], least=14)


def test_arrays_on_explicit_axes_and_predictors_in_shard_map(one_process):
    are_those_of_one_device(one_process[1], least=18)


def test_two_processes_agree_with_one_device_until_one_of_them_dies():
    """It dies in the midst of a solver's compiled iteration: the other ends with an error."""
    with started(1, 2) as workers:
        for worker in workers:
            assert worker.stdout is not None
            said = []
            for line in iter(worker.stdout.readline, ""):  # gloo talks, too
                said.append(line)
                if "done" in line:
                    break
            assert said and "done" in said[-1], worker.communicate()[1]
            are_those_of_one_device(next(line for line in said if line[0] == "{"), least=9)
        workers[1].kill()
        errors = workers[0].communicate(timeout=100)[1]
        assert workers[0].returncode != 0
        assert (
            "gloo" in errors.lower() or "heartbeat" in errors.lower() or "task" in errors.lower()
        ), errors


@pytest.mark.parametrize("call", ["matvec", "input_gradient", "phi_matmul"])
def test_bad_meshes_and_progress(call):
    kernel: Any = pk.TwoLayerNTK()
    with pytest.raises(TypeError, match=r"mesh must be a jax.sharding.Mesh such as .*; got 8"):
        getattr(kernel, call)(X, X, [1.0, 2.0, 3.0], mesh=8)
    with pytest.raises(TypeError, match=r"progress must have a method update\(k\)"):
        getattr(kernel, call)(X, X, [1.0, 2.0, 3.0], progress=print)


def test_fit_checks_its_mesh_first():
    bad: Any = jax.devices()
    with pytest.raises(TypeError, match="mesh must be"):
        pk.fit(pk.TwoLayerNTK(), X, X[0], mesh=bad)
