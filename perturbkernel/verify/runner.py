"""Runs the checks that were asked for, and shows their verdicts as text."""

import textwrap
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from perturbkernel._moved import renamed
from perturbkernel.checks import check_count
from perturbkernel.display import text_row
from perturbkernel.verify import (
    certificates,
    concentration,
    constants,
    facts,
    gradients,
    initial,
    kernels,
    law_certificates,
    lazy,
    limits,
    linearised,
    matching,
    neuron_law,
    randomness,
    robustness,
    second_network,
)
from perturbkernel.verify.judgement import judge
from perturbkernel.verify.protocol import Check, Sample, Setting, Verdict

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
    "14": "The law of one neuron",
    "15": "What perturbations alone can teach",
    "16": "Scaling laws",
    "17": "Certificates, bugs and features",
}
# Checks of one number follow each other in the order of these modules.
_MODULES = (
    kernels,
    linearised,
    concentration,
    lazy,
    initial,
    gradients,
    matching,
    second_network,
    constants,
    certificates,
    facts,
    randomness,
    neuron_law,
    law_certificates,
    limits,
    robustness,
)
# Draws are seeded by the name of the function that makes them. Where it has moved to another module
# it keeps the seed of its first one, so that the same seed still gives the same draws.
_FIRST_MODULE = {
    "perturbkernel.verify.linearised": "perturbkernel.verify.kernels",
    "perturbkernel.verify.initial": "perturbkernel.verify.lazy",
    "perturbkernel.verify.second_network": "perturbkernel.verify.matching",
    "perturbkernel.verify.constants": "perturbkernel.verify.certificates",
}


def _section(number: str) -> str:
    """The section of a result: "3" of "3.2"."""
    return number.partition(".")[0]


def _order(check: Check) -> tuple[int, int, str]:
    section, _, rest = check.id.partition(".")
    return int(section), int(rest.rstrip("'")), rest


def checks() -> tuple[Check, ...]:
    """All checks in the order of the theory.

    Example:
        >>> [check.id for check in checks()][:2]
        ['0.1', '0.1']
    """
    everything = [check for module in _MODULES for check in module.CHECKS]
    return tuple(sorted(everything, key=_order))


def select(only: str | Iterable[str] | None = None) -> tuple[Check, ...]:
    """The checks with the given numbers, "3.2,5.1" or a list; all of them if None.

    The number of a section stands for all of it.
    """
    everything = checks()
    if only is None:
        return everything
    numbers = only.split(",") if isinstance(only, str) else only
    wanted = [number.strip() for number in numbers]
    unknown = [
        number for number in wanted if not any(_named(check, number) for check in everything)
    ]
    if unknown or not wanted:
        known = ", ".join(dict.fromkeys(check.id for check in everything))
        raise ValueError(
            f"only must name results of the theory: {known}; or their sections; "
            f"got {', '.join(unknown)!r}"
        )
    return tuple(check for check in everything if any(_named(check, number) for number in wanted))


def _named(check: Check, number: str) -> bool:
    """Whether the number is that of the check, or of its section."""
    rest = check.id.removeprefix(number)
    return check.id.startswith(number) and not rest[:1].isdigit() and number != ""


def run(group: Sequence[Check], setting: Setting, seed: int = 0) -> list[Verdict]:
    """The verdicts on checks that share their draws, at one setting.

    The same seed gives the same draws, whatever else is run.
    """
    first = group[0]
    began = time.perf_counter()
    sources = _sources(first, setting, seed)
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


def _sources(check: Check, setting: Setting, seed: int) -> list[np.random.Generator]:
    """A random generator for the data, then one for every draw."""
    module = check.draw.__module__
    module = _FIRST_MODULE.get(module, module)
    label = zlib.crc32(f"{module}.{check.draw.__qualname__} {setting}".encode())
    seeds = np.random.SeedSequence([seed, label]).spawn(setting.draws + 1)
    return [np.random.default_rng(one) for one in seeds]


def _groups(
    chosen: Sequence[Check], full: bool
) -> Iterator[tuple[list[tuple[int, Check]], Setting]]:
    """Checks, each with its place in the theory, by what they draw and at which setting."""
    groups: dict[tuple, list] = {}
    for place, check in enumerate(chosen):
        settings = check.full if full and check.full else check.settings
        for i, setting in enumerate(settings):
            key = (check.draw, check.prepare, check.fixed, setting)
            groups.setdefault(key, []).append((place + i / 100, check))
    for (*_, setting), members in groups.items():
        yield members, setting


@renamed(progress="on_stage")
def verify(
    only: str | Iterable[str] | None = None,
    *,
    full: bool = False,
    seed: int = 0,
    on_stage: Callable[[str], None] | None = None,
) -> list[Verdict]:
    """Tries results of the theory on independent draws, and says whether each of them holds.

    Args:
        only: numbers of results or sections, "3.2,5.1" or ["3"]; all if left out.
        full: at the sizes for which the theory quotes its numbers, which takes an hour or so
            instead of two minutes.
        seed: of all draws; every result has draws of its own, whatever else is run.
        on_stage: called with the name of each result as it begins.

    Returns:
        One verdict per result and setting, in the theory's order.

    Raises:
        ValueError: a number that is no result; the message lists the known ones.

    Examples:
        >>> [verdict.verdict for verdict in verify("8.3")]
        ['holds']
    """
    check_count(seed, "seed", low=0)
    verdicts = []
    for members, setting in _groups(select(only), full):
        if on_stage is not None:
            on_stage(", ".join(dict.fromkeys(check.name for _, check in members)))
        places = [place for place, _ in members]
        group = [check for _, check in members]
        verdicts += zip(places, run(group, setting, seed), strict=True)
    return [verdict for _, verdict in sorted(verdicts, key=lambda pair: pair[0])]


def trials(only: str | Iterable[str] | None = None, *, full: bool = False) -> int:
    """How many times `verify` calls `on_stage` for these results.

    Example:
        >>> trials("8.3")
        1
    """
    return sum(1 for _ in _groups(select(only), full))


def failed(verdicts: Sequence[Verdict]) -> bool:
    """Whether any result fails. A vacuous result neither passes nor fails.

    Example:
        >>> failed(verify("8.3"))
        False
    """
    return any(verdict.verdict == "fails" for verdict in verdicts)


def listing() -> str:
    """The numbers and statements of all checks, as text.

    Example:
        >>> "8.3" in listing()
        True
    """
    lines = []
    section = None
    for check in checks():
        if _section(check.id) != section:
            section = _section(check.id)
            lines.append(f"\n{section}  {SECTIONS[section]}")
        lines.append(f"  {check.name:<22} {check.statement}")
    return "\n".join(lines).strip()


EXPLANATION = (
    "measured: observed / bound, the median over draws of each draw's largest (and the worst of "
    "all): up to 1 a bound holds; powers (their interval), residuals and means are named as such. "
    "violations: draws that contradict the statement, of those made (of means: numbers). "
    "Statements that hold with probability 0.9 fail only if more draws violate them than a chance "
    "of 0.1 explains, at level 1e-4. vacuous: a bound that holds but says nothing here, being "
    "larger than the quantity that it is to resolve, or its conditions are met nowhere: no pass, "
    "and no failure."
)
HEAD = ("result", "what is checked", "setting", "measured", "violations", "verdict")


def summary(verdicts: Sequence[Verdict]) -> str:
    """How many results hold, are vacuous and fail, and how long they took, in a sentence."""
    count = Counter(verdict.verdict for verdict in verdicts)
    seconds = sum(verdict.seconds for verdict in verdicts)
    return (
        f"{len(verdicts)} checks in {seconds:.0f} s: {count['holds']} hold, "
        f"{count['vacuous']} vacuous, {count['fails']} fail"
    )


def row(v: Verdict) -> tuple[str, ...]:
    """The verdict as text, a cell for each word of `HEAD`."""
    tried = v.draws
    if v.kind == "expectation":
        tried = max(len(v.observed), 1)
    elif v.kind == "rate":
        tried = 1
    violations = f"{v.violations}/{tried}"
    return v.name, v.statement, v.setting, v.measured, violations, v.verdict


def table(verdicts: Sequence[Verdict], width: int = 150) -> str:
    """One row per result: what it says, where it was tried, what came out, the verdict.

    Reasons and a legend follow below.

    Example:
        >>> print(table(verify("8.3"), width=72).splitlines()[3].split()[-1])
        holds
    """
    rows = []
    for verdict in verdicts:
        *cells, outcome = row(verdict)
        rows.append((*cells, outcome.upper() if outcome == "fails" else outcome))
    sizes = _column_sizes(rows, width)
    lines = [*text_row(HEAD, sizes), "-" * (sum(sizes) + _GAPS)]
    section = None
    for cells in rows:
        if _section(cells[0]) != section:
            section = _section(cells[0])
            lines.append(f"[{section}] {SECTIONS[section]}")
        lines += text_row(cells, sizes)
    lines.append("")
    for verdict in verdicts:
        if verdict.reason:
            reason = f"{verdict.name} {verdict.verdict}: {verdict.reason}."
            lines += textwrap.wrap(reason, width)
    lines += textwrap.wrap(EXPLANATION, width)
    return "\n".join([*lines, "", summary(verdicts)])


_GAPS = 2 * (len(HEAD) - 1)  # two spaces between columns


def _column_sizes(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """How many characters each column is wide; what is checked gets what the others leave."""
    sizes = [max(len(cell) for cell in column) for column in zip(HEAD, *rows, strict=True)]
    sizes[2] = min(sizes[2], 34)
    sizes[1] = max(30, width - sum(sizes) + sizes[1] - _GAPS)
    return sizes
