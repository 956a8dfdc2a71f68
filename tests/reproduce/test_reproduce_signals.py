"""What a reproduction does when its workers die and when signals arrive."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

import perturbkernel as pk
from perturbkernel.cli.main import main
from perturbkernel.reproduce import runner

PROGRAM = """
import sys, time
import numpy as np
import perturbkernel.reproduce as reproduction
from perturbkernel.cli.main import main
from perturbkernel.reproduce import runner

def sleep(config):
    time.sleep(config["seconds"])
    return {"x": np.arange(3.0)}

runner.FUNCTIONS["limit"] = sleep
reproduction.cells = lambda options: [
    {"function": "limit", "config": {"number": number, "seconds": 0.01 if number < 3 else 300}}
    for number in range(8)
]

if __name__ == "__main__":
    folder, workers = sys.argv[1:]
    sys.argv[1:] = ["reproduce", "map", "--workers", workers, "--quiet", "--out", folder]
    print("begin", flush=True)
    sys.exit(main())
"""


@contextlib.contextmanager
def started(tmp_path, workers):
    """`perturbkernel reproduce` with eight cells, three of them quick, in a session of its own."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, program, tmp_path / "out", str(workers)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begin\n"
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def await_cells(tmp_path, process, count=3):
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "out" / "cells").glob("*.npz"))) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def ended(tmp_path, process):
    """The one line that it said; nothing of it is left."""
    error = process.communicate(timeout=60)[1]
    assert error.count("\n") == 1, error
    assert not list((tmp_path / "out").rglob(".*"))
    # Workers may still be on their way out: the parent does not wait for them.
    deadline = time.monotonic() + 60
    while left := alive(process.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    return error


def alive(group):
    """States of the processes in a group, without those that have ended."""
    listed = subprocess.run(["ps", "-eo", "pgid,stat"], capture_output=True, text=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [state for pgid, state in rows if pgid == str(group) and state[0] != "Z"]


def test_a_killed_worker(tmp_path):
    with started(tmp_path, 2) as process:
        await_cells(tmp_path, process)
        listed = subprocess.run(
            ["ps", "-wweo", "pid,ppid,args"], capture_output=True, text=True
        ).stdout
        rows = [line.split(maxsplit=2) for line in listed.splitlines()]
        workers = [r[0] for r in rows if r[1] == str(process.pid) and "spawn_main" in r[2]]
        os.kill(int(workers[0]), signal.SIGKILL)
        error = ended(tmp_path, process)
        assert process.returncode == 1
    assert "a worker process ended unexpectedly" in error and "3 of 8 cells are finished" in error
    assert "give the command again" in error


# Every worker imports JAX: two are asked for once.
@pytest.mark.parametrize(
    ("whom", "workers"), [("group", 2), ("parent", 1), ("early", 1), ("twice", 1)]
)
def test_interrupts_are_one_line(tmp_path, whom, workers):
    """Ctrl-C, which goes to the workers too; SIGTERM to the parent; while workers start; twice."""
    with started(tmp_path, workers) as process:
        if whom == "early":
            time.sleep(0.3)
        else:
            await_cells(tmp_path, process)
        if whom == "parent":
            os.kill(process.pid, signal.SIGTERM)
        else:
            os.killpg(process.pid, signal.SIGINT)
        if whom == "twice":
            time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)
        error = ended(tmp_path, process)
        assert process.returncode == 130
    assert error == "perturbkernel: interrupted; results are whole or absent\n"
    assert len(list((tmp_path / "out" / "cells").glob("*.npz"))) == (0 if whom == "early" else 3)


def test_an_interrupt_in_a_finaliser_is_not_lost(tmp_path, monkeypatch, capsys):
    """Python drops what is raised there, and JAX has callbacks of the garbage collector."""

    class Finalised:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def function(config):
        Finalised()
        time.sleep(10)

    cell = {"function": "limit", "config": {"number": 0}}
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setitem(runner.FUNCTIONS, "limit", function)
    monkeypatch.setattr(pk.reproduce, "cells", lambda options: [cell])
    began = time.monotonic()
    assert main(["reproduce", "map", "--workers", "0", "--quiet", "--out", str(tmp_path)]) == 130
    assert time.monotonic() - began < 9 and signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err == "perturbkernel: interrupted; results are whole or absent\n"


def test_an_interrupt_that_a_library_wraps_is_one(monkeypatch, capsys):
    def function(config):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise RuntimeError("callback failed") from error

    monkeypatch.setattr("perturbkernel.reproduce.reproduce", lambda *a, **k: function({}))
    assert main(["reproduce", "map", "--quiet"]) == 130
    assert capsys.readouterr().err == "perturbkernel: interrupted; results are whole or absent\n"
