"""Time to the first result: whole processes, from the start of Python to the answer.

Against a process that does nothing but start JAX. Each process begins without compiled programs of
earlier ones, unless its row says "cached": then one process before it has filled the folder.
"""

import importlib.util
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import first
from .harness import Case, Group, NotHere, Row, Settings, Times, python, ratios

JAX = "python that starts JAX"
DIMENSION = 784
# Points of the published small scale.
N, QUICK_N = 800, 200
_NOTHING = ["-c", "import jax; jax.numpy.ones(3).sum().block_until_ready()"]
# Nothing of earlier processes, whatever this one was told to keep.
_COLD = {"PERTURBKERNEL_COMPILATION_CACHE": "off", "JAX_ENABLE_COMPILATION_CACHE": "false"}


class Start(NamedTuple):
    """A process: the method's name, the arguments of Python, and whether compiled programs of an
    earlier one are there.
    """

    subject: str
    arguments: Sequence[str]
    cached: bool = False


def _environment(cached: bool, folder: Path) -> dict[str, str]:
    """What the process is told about compiled programs; those kept are below `folder`."""
    if not cached:
        return _COLD
    return {
        "PERTURBKERNEL_COMPILATION_CACHE": "on",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": "",
        "XDG_CACHE_HOME": str(folder),
    }


class Spent(NamedTuple):
    """Of a process: seconds of the clock and of the processor, and the last line that it prints."""

    seconds: float
    processor: float
    printed: str


def spend(arguments: Sequence[str], environment: Mapping[str, str]) -> Spent:
    """Runs Python with these arguments and waits for it."""
    worked = _processor_of_children()
    began = time.perf_counter()
    printed = python(arguments, environment)
    seconds = time.perf_counter() - began
    return Spent(seconds, _processor_of_children() - worked, printed)


def _processor_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def rows(
    what: str, sizes: str, starts: Sequence[Start], rounds: int, run: Callable[..., Spent] = spend
) -> Iterator[Row]:
    """A row for each start, in rounds of JAX, start, JAX, start, ...; one that fails says so."""
    for start in starts:
        row = Row(what, sizes, start.subject, JAX)
        try:
            yield _measured(row, start, rounds, run)
        except Exception as error:
            yield row.but(error)


def _measured(row: Row, start: Start, rounds: int, run: Callable[..., Spent]) -> Row:
    """The row with its ratios; the first run of each process, of files not read yet, is left
    out.
    """
    if start.subject == "neural-tangents" and importlib.util.find_spec("neural_tangents") is None:
        raise NotHere("neural-tangents is not installed")
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        environment = _environment(start.cached, folder)
        for _ in range(1 + rounds):
            bare = run(_NOTHING, _COLD)
            arguments = [word.replace("{scratch}", scratch) for word in start.arguments]
            own = run(arguments, environment)
            found.append((bare, own))
    kept = found[1:]
    numbers = [[(spent.seconds, spent.processor) for spent in pair] for pair in kept]
    # (rounds, two processes, two clocks)
    table = np.array(numbers)
    seconds = table[:, :, 0]
    processor = table[:, :, 1]
    fields = ratios(Times(seconds, processor), subject=1, reference=0)
    _, last = kept[-1]
    bare = np.median(seconds[:, 0])
    notes = [f"JAX alone {bare:.2g} s"]
    if _is_number(last.printed):
        notes.insert(0, f"accuracy of g {float(last.printed):.3f}")
    return replace(row, **fields, note="; ".join(notes))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _perturb(n: int, seed: int) -> list[Start]:
    """Training, perturbations and accuracy by each method."""
    script = str(Path(first.__file__))
    starts = []
    for subject, method, cached in (
        ("perturbkernel", "perturbkernel", False),
        ("perturbkernel, cached", "perturbkernel-cached", True),
        ("neural-tangents", "neural-tangents", False),
        ("NumPy", "NumPy", False),
    ):
        numbers = map(str, (n, DIMENSION, seed))
        arguments = ["-P", script, method, *numbers]
        starts.append(Start(subject, arguments, cached))
    return starts


def _command(n: int, seed: int) -> list[Start]:
    """`perturbkernel run` on digits, with its report."""
    out = os.path.join("{scratch}", "out")
    words = ["-m", "perturbkernel", "run", "--n", str(n), "--seed", str(seed), "--out", out]
    return [
        Start("perturbkernel", words),
        Start("perturbkernel, cached", words, cached=True),
    ]


def _measure(what: str, sizes: str, starts: Sequence[Start], settings: Settings) -> Iterator[Row]:
    return rows(what, sizes, starts, settings.rounds(5, 1))


def _cases(settings: Settings) -> list[Case]:
    n = QUICK_N if settings.quick else N
    factor = 1 if settings.quick else 6
    perturb = _perturb(n, settings.seed)
    command = _command(n, settings.seed)
    drawn = f"{n} x {DIMENSION}, a fresh process"
    digits = f"{n} digits, a fresh process"
    # f, all perturbations, g and its accuracy.
    named = "fit and perturb"
    return [
        Case("perturb", drawn, partial(_measure, named, drawn, perturb, settings), cost=8 * factor),
        Case(
            "run",
            digits,
            partial(_measure, "perturbkernel run", digits, command, settings),
            cost=8 * factor,
        ),
    ]


GROUP = Group(
    "start",
    "Time to the first result",
    "time of a whole process / time of one that only starts JAX",
    _cases,
    one="import jax; jax.numpy.ones(3).sum()",
)
