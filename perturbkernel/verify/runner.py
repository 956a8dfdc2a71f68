"""Runs the checks that were asked for, and shows their verdicts as text."""

import textwrap
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from perturbkernel.checks import check_count
from perturbkernel.report.html import text_row
from perturbkernel.verify import (
    certificates,
    concentration,
    facts,
    gradients,
    kernels,
    lazy,
    matching,
    randomness,
)
from perturbkernel.verify.protocol import Check, Sample, Setting, Verdict, judge

SECTIONS = {
    "0": "The kernel in closed form",
    "1": "The linearised model in training",
    "2": "The tangent kernel of a finite network",
    "3": "Lazy training",
    "4": "The function before training",
    "5": "The direction of perturbations",
    "6": "Prediction matching",
    "7": "The logistic loss",
    "8": "Exact facts and rates",
    "12": "What stays random at infinite width",
}


def _order(check: Check) -> tuple:
    section, _, rest = check.id.partition(".")
    return int(section), int(rest.rstrip("'")), rest


def checks() -> tuple[Check, ...]:
    """All checks in the order of the theory."""
    modules = (
        kernels,
        concentration,
        lazy,
        gradients,
        matching,
        certificates,
        facts,
        randomness,
    )
    return tuple(sorted((check for module in modules for check in module.CHECKS), key=_order))


def select(only: str | Iterable[str] | None = None) -> tuple[Check, ...]:
    """The checks with the given numbers, "3.2,5.1" or a list; a section stands for all of it. All
    if None.
    """
    everything = checks()
    if only is None:
        return everything
    wanted = [one.strip() for one in (only.split(",") if isinstance(only, str) else only)]

    def chosen(check: Check, number: str) -> bool:
        rest = check.id.removeprefix(number)
        return check.id.startswith(number) and not rest[:1].isdigit() and number != ""

    unknown = [
        number for number in wanted if not any(chosen(check, number) for check in everything)
    ]
    if unknown or not wanted:
        known = ", ".join(dict.fromkeys(check.id for check in everything))
        raise ValueError(
            f"only must name results of the theory: {known}; or their sections; got {', '.join(unknown)!r}"
        )
    return tuple(check for check in everything if any(chosen(check, number) for number in wanted))


def run(group: Sequence[Check], setting: Setting, seed: int = 0) -> list[Verdict]:
    """Checks that share their draws, at one setting. The same seed gives the same draws, whatever
    else is run.
    """
    first, began = group[0], time.perf_counter()
    label = zlib.crc32(f"{first.draw.__module__}.{first.draw.__qualname__} {setting}".encode())
    sources = [
        np.random.default_rng(one)
        for one in np.random.SeedSequence([seed, label]).spawn(setting.draws + 1)
    ]
    samples: list[list[Sample]] = [[] for _ in group]
    prepared = first.prepare(sources[0], setting) if first.fixed else None
    for rng in sources[1:]:
        prepared = prepared if first.fixed else first.prepare(rng, setting)
        drawn = first.draw(rng, setting, prepared)
        for check, seen in zip(group, samples, strict=True):
            seen.append(check.compare(drawn, setting, prepared))
    verdicts = [judge(check, setting, seen) for check, seen in zip(group, samples, strict=True)]
    seconds = (time.perf_counter() - began) / len(group)
    return [replace(verdict, seconds=seconds) for verdict in verdicts]


def _groups(
    chosen: Sequence[Check], full: bool
) -> Iterator[tuple[list[tuple[int, Check]], Setting]]:
    """Checks, each with its place in the theory, by what they draw and at which setting."""
    groups: dict[tuple, list] = {}
    for place, check in enumerate(chosen):
        for i, setting in enumerate((check.full or check.settings) if full else check.settings):
            key = (check.draw, check.prepare, check.fixed, setting)
            groups.setdefault(key, []).append((place + i / 100, check))
    for (*_, setting), members in groups.items():
        yield members, setting


def verify(
    only: str | Iterable[str] | None = None,
    *,
    full: bool = False,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[Verdict]:
    """Tries results of the theory on independent draws and says of each whether it holds.

    Args:
        only: numbers of results or sections, "3.2,5.1" or ["3"]; all if left out.
        full: the sizes at which the theory quotes its numbers, which take an hour or so, instead of
            two minutes.
        seed: of all draws; every result has draws of its own, whatever else is run.
        progress: called with the name of each result as it begins.

    Returns:
        One verdict a result and setting, in the theory's order.

    Raises:
        ValueError: a number that is no result; the message lists the known ones.
    """
    check_count(seed, "seed", low=0)
    verdicts = []
    for members, setting in _groups(select(only), full):
        if progress is not None:
            progress(", ".join(dict.fromkeys(check.name for _, check in members)))
        group = [check for _, check in members]
        verdicts += zip((place for place, _ in members), run(group, setting, seed), strict=True)
    return [verdict for _, verdict in sorted(verdicts, key=lambda pair: pair[0])]


def trials(only: str | Iterable[str] | None = None, *, full: bool = False) -> int:
    """How often `verify` calls its `progress`."""
    return sum(1 for _ in _groups(select(only), full))


def failed(verdicts: Sequence[Verdict]) -> bool:
    """Whether any result fails. Vacuous ones do not, though they are no passes either."""
    return any(verdict.verdict == "fails" for verdict in verdicts)


def listing() -> str:
    """The numbers and statements of all checks, as text."""
    lines, section = [], None
    for check in checks():
        if (number := check.id.partition(".")[0]) != section:
            section = number
            lines.append(f"\n{section}  {SECTIONS[section]}")
        lines.append(f"  {check.name:<22} {check.statement}")
    return "\n".join(lines).strip()


EXPLANATION = (
    "measured: observed / bound, the median over draws of each draw's largest (and the worst of all): up to 1 a bound "
    "holds; powers (their interval), residuals and means are named as such. violations: draws that contradict the "
    "statement, of those made (of means: numbers). Statements that hold with probability 0.9 fail only if more draws "
    "violate them than a chance of 0.1 explains, at level 1e-4. vacuous: a bound that holds but says nothing here, "
    "being larger than the quantity that it is to resolve, or its conditions are met nowhere: no pass, and no failure."
)


def summary(verdicts: Sequence[Verdict]) -> str:
    count = Counter(verdict.verdict for verdict in verdicts)
    parts = [f"{count['holds']} hold", f"{count['vacuous']} vacuous", f"{count['fails']} fail"]
    return f"{len(verdicts)} checks in {sum(v.seconds for v in verdicts):.0f} s: " + ", ".join(
        parts
    )


HEAD = ("result", "what is checked", "setting", "measured", "violations", "verdict")


def row(v: Verdict) -> tuple[str, ...]:
    """The verdict as text, a cell for each word of `HEAD`."""
    tried = {"expectation": max(len(v.observed), 1), "rate": 1}.get(v.kind, v.draws)
    return v.name, v.statement, v.setting, v.measured, f"{v.violations}/{tried}", v.verdict


def table(verdicts: Sequence[Verdict], width: int = 150) -> str:
    """One row a result: what it says, where it was tried, what came out, the verdict; reasons and a
    legend below.
    """
    rows = [row(verdict) for verdict in verdicts]
    rows = [
        (*cells[:-1], cells[-1].upper() if cells[-1] == "fails" else cells[-1]) for cells in rows
    ]
    sizes = [max(len(cells[i]) for cells in [HEAD, *rows]) for i in range(len(HEAD))]
    sizes[2] = min(sizes[2], 34)
    sizes[1] = max(30, width - sum(sizes) + sizes[1] - 2 * (len(HEAD) - 1))
    lines, section = [*text_row(HEAD, sizes), "-" * (sum(sizes) + 2 * (len(HEAD) - 1))], None
    for cells in rows:
        if (number := cells[0].partition(".")[0]) != section:
            section = number
            lines.append(f"[{section}] {SECTIONS[section]}")
        lines += text_row(cells, sizes)
    lines.append("")
    for verdict in verdicts:
        if verdict.reason:
            lines += textwrap.wrap(f"{verdict.name} {verdict.verdict}: {verdict.reason}.", width)
    return "\n".join([*lines, *textwrap.wrap(EXPLANATION, width), "", summary(verdicts)])
