"""How the suite measures: interleaved runs, ratios of neighbouring times, and rows that fail in
words.

A group of the suite is a `Group`: a name, what its numbers mean, and cases. A case measures one
thing at one size and returns `Row`s; `compare` makes them from competing functions.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import perturbkernel

# Threads of a BLAS or of XLA spin for a while after a product, and would take the next method's
# cores.
PAUSE = 0.02


@dataclass(frozen=True)
class Settings:
    """What the user asked: small sizes, the seed of all data, the number of rounds (None: a group's
    own).
    """

    quick: bool = False
    seed: int = 0
    repeats: int | None = None

    def rounds(self, full: int, quick: int) -> int:
        """How many rounds to run."""
        return self.repeats or (quick if self.quick else full)


@dataclass(frozen=True)
class Row:
    """One line of the result: `subject` against `reference`, on `sizes`.

    Attributes:
        what: the thing that is computed.
        sizes: shapes, dtype, data.
        subject: the method that is measured.
        reference: what its numbers are relative to.
        samples: the numbers, one a round; what they are, the group says. Their median and quartiles
            are shown.
        seconds: median time of one run of the subject, where times are measured.
        processor: the ratio of processor times of this process, its median; other programs disturb
            it less.
        curve: for growth, (size, median seconds) pairs.
        planned: as `curve`, of sizes that were not run, from `kernel.plan`.
        size: the number of points, for figures over it.
        note: a remark.
        status: "ok"; "differs", an alternative that computes something else; "skipped", not
            measurable here; "failed".
        reason: why, unless ok.
        group: filled in by the suite.
    """

    what: str
    sizes: str
    subject: str
    reference: str
    samples: tuple[float, ...] = ()
    seconds: float | None = None
    processor: float | None = None
    curve: tuple[tuple[float, float], ...] = ()
    planned: tuple[tuple[float, float], ...] = ()
    size: float | None = None
    note: str = ""
    status: str = "ok"
    reason: str = ""
    group: str = ""

    @property
    def quartiles(self) -> tuple[float, float, float] | None:
        """Lower quartile, median, upper quartile of the samples; None without samples or if one is
        not finite.
        """
        finite = np.isfinite(self.samples)
        if not self.samples or not finite.all():
            return None
        quartiles = np.quantile(self.samples, [0.25, 0.5, 0.75])
        low, median, high = quartiles.tolist()
        return low, median, high

    def but(self, error: Exception) -> "Row":
        """This row with the error in words; what is not installed is skipped, everything else
        failed.
        """
        if isinstance(error, NotHere):
            return replace(self, status="skipped", reason=str(error))
        kind = type(error).__name__
        words = " ".join(str(error).split())
        return replace(self, status="failed", reason=f"{kind}: {words[:300]}")


class NotHere(Exception):
    """A method that cannot be measured on this machine, in words: not installed, no such
    operation.
    """


@dataclass(frozen=True)
class Case:
    """One thing at one size.

    Attributes:
        name: what `--only group.name` selects.
        sizes: as its rows say them.
        measure: its rows, one after the other.
        cost: seconds that it takes on two idle cores, very roughly.
    """

    name: str
    sizes: str
    measure: Callable[[], Iterable[Row]]
    cost: float

    @property
    def about(self) -> str:
        """The cost in words."""
        if self.cost < 60:
            return f"about {self.cost:.0f} s"
        minutes = self.cost / 60
        return f"minutes: about {minutes:.0f}"


@dataclass(frozen=True)
class Group:
    """Cases that belong together.

    Attributes:
        name: for `--only`.
        title: a heading.
        measures: what the rows' numbers are, the axis of their figure.
        cases: from the settings.
        one: what 1 means in the figure, if it means something.
    """

    name: str
    title: str
    measures: str
    cases: Callable[[Settings], Sequence[Case]]
    one: str = ""


Builder = Callable[[], Callable[[], Any]]


class Times(NamedTuple):
    """Of the clock and of the processor, (rounds, calls) each."""

    seconds: np.ndarray
    processor: np.ndarray


def times(
    calls: Sequence[Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    pause: float = PAUSE,
) -> Times:
    """Seconds of the clock and of the processor, (rounds, calls) each, in the order A B C A B C.

    Each result is waited for. Warm up the calls before. The processor time is that of all threads
    of this process.
    """
    shape = (rounds, len(calls))
    seconds = np.empty(shape)
    processor = np.empty(shape)
    for i, j in np.ndindex(shape):
        time.sleep(pause)
        worked = time.process_time()
        began = clock()
        jax.block_until_ready(calls[j]())
        seconds[i, j] = clock() - began
        processor[i, j] = time.process_time() - worked
    return Times(seconds, processor)


def ratios(times: tuple[np.ndarray, np.ndarray], subject: int, reference: int) -> dict[str, Any]:
    """The fields "samples", "seconds" and "processor" of a row, from `times`."""
    seconds, processor = times
    own = seconds[:, subject]
    samples = own / seconds[:, reference]
    # A reference that is too quick for the processor's clock takes a nanosecond.
    least = np.maximum(processor[:, reference], 1e-9)
    worked = processor[:, subject] / least
    return {
        "samples": tuple(samples.tolist()),
        "seconds": float(np.median(own)),
        "processor": float(np.median(worked)),
    }


def fresh_process(code: str, **environment: str) -> str:
    """What Python prints on its last line, run in a process of its own that finds this copy of the
    package.

    Raises RuntimeError with the end of its errors if it fails.
    """
    return python(["-c", code], environment)


def python(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """What Python prints on its last line, given these arguments; as `fresh_process`."""
    # The package that runs here is found there first, wherever that process starts.
    package = Path(perturbkernel.__file__).parent
    others = os.environ.get("PYTHONPATH", "")
    paths = filter(None, (str(package.parent), others))
    path = os.pathsep.join(paths)
    # Two processes share an accelerator, of which each would take three quarters.
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    variables = shared | os.environ | {"PYTHONPATH": path} | dict(environment)
    command = [sys.executable, "-W", "ignore", *arguments]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode:
        errors = done.stderr.strip()
        raise RuntimeError(f"the process ended with {done.returncode}: {errors[-200:]}")
    lines = done.stdout.strip().splitlines()
    return lines[-1] if lines else ""


def difference(result: Any, truth: Any) -> float:
    """Largest difference of two arrays, relative to the largest entry of `truth`; infinite if one
    is not finite.
    """
    result = np.asarray(result, float)
    truth = np.asarray(truth, float)
    if result.shape != truth.shape or not np.isfinite(result).all():
        return np.inf
    off = np.abs(result - truth).max()
    largest = np.abs(truth).max()
    return float(off / (largest or 1))


def compare(
    what: str,
    sizes: str,
    reference: tuple[str, Builder],
    methods: Mapping[str, Builder],
    rounds: int,
    *,
    tolerance: float | None = None,
    same_result: bool = False,
    remark: Callable[[Any, Any], str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    pause: float = PAUSE,
) -> Iterator[Row]:
    """Yields a row for each method, timed against a reference, A B A B ..., in this process.

    Times are divided by that of the neighbour. Each row comes as soon as it is measured.

        list(compare("sum", "n = 9", ("NumPy", lambda: x.sum), {"Python": lambda: python_sum}, 5))

    Args:
        what, sizes: for the rows.
        reference: name and builder of what the times are divided by. If it raises, no row can be
            measured.
        methods: name -> builder. A builder prepares and returns the function to be timed, which is
            called once before (compilation). One that raises has a row that says so, and the others
            go on.
        rounds: how often each is timed.
        tolerance: results are compared, with this relative difference allowed.
        same_result: with that of the reference, and a method that differs fails; otherwise with
            that of the first method, and one that differs is timed all the same, its row says what
            is wrong with the result.
        remark: from the results of method and reference, a note for the row.
        clock, pause: of `times`.
    """
    name, build = reference
    try:
        base = build()
        of_base = jax.block_until_ready(base())
    except Exception as error:
        for subject in methods:
            row = Row(what, sizes, subject, name)
            yield row.but(error)
        return
    truth = of_base if same_result else None
    of_whom = name if same_result else next(iter(methods), name)
    for subject, builder in methods.items():
        row = Row(what, sizes, subject, name)
        try:
            call = builder()
            result = jax.block_until_ready(call())
            note = "" if remark is None else remark(result, of_base)
            found = replace(row, note=note)
            if tolerance is not None and truth is not None:
                found = _judged(found, result, truth, tolerance, of_whom)
            if same_result and found.status == "differs":
                raise ArithmeticError(found.reason)
            truth = result if truth is None else truth
            measured = times((base, call), rounds, clock, pause)
            fields = ratios(measured, subject=1, reference=0)
            row = replace(found, **fields)
        except Exception as error:
            row = row.but(error)
        yield row


def _judged(row: Row, result: Any, truth: Any, tolerance: float, of_whom: str) -> Row:
    """The row with how far its result is from that of another method."""
    off = difference(result, truth)
    if off <= tolerance:
        said = f"results differ by {off:.0e}"
        notes = filter(None, (row.note, said))
        return replace(row, note="; ".join(notes))
    words = "being not finite"
    if np.isfinite(off):
        words = f"by {off:.0e} of the largest entry"
    reason = f"its result differs from that of {of_whom}, {words}"
    return replace(row, status="differs", reason=reason)


def power(sizes: Sequence[float], seconds: np.ndarray) -> tuple[float, ...]:
    """The exponent p of seconds ~ size^p by least squares in logarithms, one a round; seconds
    (rounds, sizes).
    """
    x = np.log(np.asarray(sizes, float))
    x = x - x.mean()
    y = np.log(seconds)
    slopes = y @ x / (x @ x)
    return tuple(slopes.tolist())


@dataclass
class Outcome:
    """All rows of a run, and how long it took."""

    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether a row failed; skipped and differing ones did not."""
        return any(row.status == "failed" for row in self.rows)


def run(
    chosen: Sequence[tuple[Group, Case]],
    on_event: Callable[[Group, Case | Row], None] | None = None,
) -> Outcome:
    """Measures the cases one after the other; a case that raises becomes a failed row, after those
    that it had.

    `on_event` is given every case before it begins, and every row when it is there.
    """
    outcome = Outcome()
    began = time.perf_counter()
    tell = on_event or (lambda group, event: None)

    def rows(case: Case) -> Iterator[Row]:
        try:
            yield from case.measure()
        except Exception as error:
            row = Row(case.name, case.sizes, "perturbkernel", "")
            yield row.but(error)

    for group, case in chosen:
        tell(group, case)
        for row in rows(case):
            complete = replace(row, group=group.name)
            outcome.rows.append(complete)
            tell(group, row)
    outcome.seconds = time.perf_counter() - began
    return outcome
