"""Runs that are kept, and what changed since the last one on the same machine.

A folder holds one file a run, `run-TIME-TOKEN.json`: commit, machine, versions, rows. Files are
added, and never replaced or removed.
"""

import dataclasses
import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import perturbkernel
from perturbkernel.files import write_whole

from .harness import Outcome, Row

_PATTERN = "run-*.json"
# What makes two runs comparable.
_MACHINE = ("processor", "cores", "backend", "device")
# Two runs of one commit differ by some per cent: other addresses, another clock of the processor.
LEAST = 1.05
# From so many samples on, quartiles say how far they scatter; fewer are taken as a whole.
_MANY = 5

Key = tuple[str, str, str, str, str]


class Run(NamedTuple):
    """One file: when it ran, the commit, the machine, the configuration and the rows."""

    date: str
    commit: str
    machine: dict[str, Any]
    rows: tuple[Row, ...]


class Change(NamedTuple):
    """A row against the same row of an earlier run, `before` of `commit`."""

    now: Row
    before: Row
    commit: str

    @property
    def ratio(self) -> float:
        """Median now / median before."""
        _, now, _ = self.now.quartiles or (np.nan,) * 3
        _, before, _ = self.before.quartiles or (np.nan,) * 3
        return now / before if before else np.nan

    @property
    def verdict(self) -> str:
        """Whether it is "worse" or "better", larger or smaller beyond the spread of both, else "";
        "one sample" where nothing tells the spread. All numbers of rows are better if smaller.
        """
        now, before = spread(self.now), spread(self.before)
        if now is None or before is None:
            return "one sample"
        low, high = now
        low_before, high_before = before
        ratio = self.ratio
        if low > high_before and ratio > LEAST:
            return "worse"
        if high < low_before and ratio * LEAST < 1:
            return "better"
        return ""


def spread(row: Row) -> tuple[float, float] | None:
    """The quartiles of a row's samples; the least and the largest of fewer than 5; None of one."""
    if len(row.samples) < 2 or row.quartiles is None:
        return None
    if len(row.samples) < _MANY:
        return min(row.samples), max(row.samples)
    low, _, high = row.quartiles
    return low, high


def key(row: Row) -> Key:
    """What makes two rows the same measurement."""
    return row.group, row.what, row.sizes, row.subject, row.reference


def machine(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an environment that makes runs comparable."""
    return {name: environment.get(name) for name in _MACHINE}


def commit() -> str:
    """The commit of the checkout that runs, with "+" if its files differ; "" if it is none."""
    package = Path(perturbkernel.__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(package), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # An installation inside another project is no checkout of this one.
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--untracked-files=no")
        name = git("rev-parse", "--short=12", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{name}+" if changed else name


def read(folder: str | os.PathLike) -> list[Run]:
    """The runs of a folder, the earliest first; none if it is empty or does not exist.

    Raises ValueError for a file, for a folder of other things, and for a run that cannot be read.
    """
    folder = Path(folder)
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise ValueError(f"--history must be a folder; {folder} is a file")
    found = sorted(folder.glob(_PATTERN))
    others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if others and not found:
        raise ValueError(
            f"--history {folder} holds {min(others)} and no run of `perturbkernel bench "
            "--history`; runs need a folder of their own"
        )
    runs = [_read(path) for path in found]
    return sorted(runs, key=lambda run: run.date)


def _read(path: Path) -> Run:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        rows = tuple(map(_row, content["rows"]))
        where = machine(content["environment"])
        return Run(content["date"], content["commit"], where, rows)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ValueError(
            f"--history: {path} is no run of `perturbkernel bench --history` "
            f"({type(error).__name__}: {error}); move it elsewhere"
        ) from error


_FIELDS = {field.name for field in dataclasses.fields(Row)}


def _row(fields: Mapping[str, Any]) -> Row:
    """The row that `plain` wrote; fields of later versions are left out."""
    known = {name: value for name, value in fields.items() if name in _FIELDS}
    samples = [np.nan if sample is None else float(sample) for sample in known["samples"]]
    for name in ("curve", "planned"):
        known[name] = tuple(map(tuple, known.get(name, ())))
    known["samples"] = tuple(samples)
    return Row(**known)


def plain(row: Row) -> dict[str, Any]:
    """The row as strict JSON, with its quartiles; what is not finite becomes null."""
    fields = dataclasses.asdict(row)
    samples = []
    for sample in row.samples:
        samples.append(sample if np.isfinite(sample) else None)
    fields["samples"] = samples
    low, median, high = row.quartiles or (None, None, None)
    return {**fields, "median": median, "lower_quartile": low, "upper_quartile": high}


def add(
    folder: str | os.PathLike,
    outcome: Outcome,
    configuration: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> Path:
    """Writes the run as one more file of the folder; returns its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    now = time.gmtime()
    content = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", now),
        "commit": commit(),
        "configuration": dict(configuration),
        "environment": dict(environment),
        "rows": [plain(row) for row in outcome.rows],
    }
    stamp = time.strftime("%Y%m%dT%H%M%SZ", now)
    path = folder / f"run-{stamp}-{secrets.token_hex(4)}.json"
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))
    return path


def changes(
    rows: Iterable[Row], runs: Sequence[Run], environment: Mapping[str, Any]
) -> list[Change]:
    """Every row against the last run on the same machine that has it, if one does."""
    here = machine(environment)
    last: dict[Key, tuple[Row, str]] = {}
    for run in runs:
        if run.machine == here:
            last |= {key(row): (row, run.commit) for row in run.rows if row.quartiles}
    found = []
    for row in rows:
        if row.quartiles and key(row) in last:
            before, of_commit = last[key(row)]
            found.append(Change(row, before, of_commit))
    return found


def summary(found: Sequence[Change]) -> str:
    """How many rows changed, in words."""
    if not found:
        return "no earlier run on this machine has these rows"
    verdicts = [change.verdict for change in found]
    worse = verdicts.count("worse")
    better = verdicts.count("better")
    return (
        f"{len(found)} rows against the last run on this machine: {worse} worse, {better} better "
        "beyond the spread of both"
    )
