"""The benchmark suite behind `perturbkernel bench`; docs/benchmarks.md says how to read it and how
to add to it.

`harness` measures, `alternatives` holds the competitors, `page` shows and saves; every other module
is a group. Every installation contains this folder as perturbkernel.benchmarks;
`perturbkernel.cli.bench.suite` imports it.
"""

import argparse
import itertools
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from perturbkernel import report
from perturbkernel.checks import check_count
from perturbkernel.words import did_you_mean

from . import (
    arithmetic,
    closed_form,
    compiling,
    empirical,
    growth,
    history,
    memory,
    million,
    page,
    precision,
    predictors,
    products,
    scale,
    sizes,
    solvers,
    start,
    training,
)
from .harness import Case as Case
from .harness import Group as Group
from .harness import Outcome as Outcome
from .harness import Row as Row
from .harness import Settings as Settings
from .harness import compare as compare
from .harness import run as run

#: all groups, in the order of table and page; a new group is one entry here
GROUPS: tuple[Group, ...] = (
    start.GROUP,
    sizes.GROUP,
    products.GROUP,
    predictors.GROUP,
    closed_form.GROUP,
    solvers.GROUP,
    training.GROUP,
    growth.GROUP,
    million.GROUP,
    memory.GROUP,
    empirical.GROUP,
    scale.LARGE,
    scale.DEVICES,
    compiling.GROUP,
    precision.GROUP,
    arithmetic.GROUP,
)


def select(only: str | None, settings: Settings) -> list[tuple[Group, Case]]:
    """The cases named by "group" or "group.case", separated by commas; all if None. An unknown name
    is a ValueError.
    """
    everything = [(group, case) for group in GROUPS for case in group.cases(settings)]
    if only is None:
        return everything
    wanted = [name.strip() for name in only.split(",")]
    known = dict.fromkeys(
        name for group, case in everything for name in (group.name, f"{group.name}.{case.name}")
    )
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(
            f"--only must name groups or cases: {', '.join(known)}; got {', '.join(unknown)!r}"
            f"{did_you_mean(unknown[0], known)}"
        )
    chosen = []
    for group, case in everything:
        if group.name in wanted or f"{group.name}.{case.name}" in wanted:
            chosen.append((group, case))
    return chosen


def listing(chosen: Sequence[tuple[Group, Case]]) -> str:
    """Groups and cases with their sizes and what they take, as text."""
    lines = []
    last = None
    for group, case in chosen:
        if group is not last:
            lines.append("")
            lines.append(f"{group.name}: {group.title}")
            lines.append(f"  ({group.measures})")
            last = group
        name = f"{group.name}.{case.name}"
        line = f"  {name:<32} {case.sizes:<56} {case.about}"
        if line != lines[-1]:
            lines.append(line)
    return "\n".join(lines[1:])


def on_event(total: int) -> Callable[[Group, Case | Row], None]:
    """Prints every case, with what it takes, before it begins, and every row when it is there, on
    standard error.
    """
    begun = itertools.count(1)

    def tell(group: Group, event: Case | Row) -> None:
        if isinstance(event, Case):
            line = (
                f"[{next(begun)}/{total}] {group.name}.{event.name}: {event.sizes} ({event.about})"
            )
        else:
            line = f"    {event.what}, {event.subject}: {page.result(event)}"
        print(line, file=sys.stderr, flush=True)

    return tell


def command(args: argparse.Namespace) -> int:
    """`perturbkernel bench`: returns the exit status. Bad arguments are a ValueError before
    anything is measured.
    """
    if args.repeats is not None:
        check_count(args.repeats, "--repeats")
    check_count(args.seed, "--seed", low=0)
    if args.out is not None and Path(args.out).is_file():
        raise ValueError(f"--out must be a folder; {args.out} is a file")
    kept = args.history
    runs = [] if kept is None else _history(kept, args.out)
    settings = Settings(args.quick, args.seed, args.repeats)
    chosen = select(args.only, settings)
    if args.list:
        print(listing(chosen))
        return 0
    outcome = run(chosen, None if args.quiet else on_event(len(chosen)))
    environment = report.environment(page.PACKAGES)
    print(page.text(GROUPS, outcome, environment))
    configuration = {"command": shlex.join(["perturbkernel", *args.argv]), "date": page.today()}
    found = None
    if kept is not None:
        found = history.changes(outcome.rows, runs, environment)
        path = history.add(kept, outcome, configuration, environment)
        print(f"\n{page.changes_text(found)}\nkept: {path}")
    if args.out is not None:
        folder = page.save(GROUPS, outcome, configuration, environment, args.out, found)
        print(f"\nreport: {folder / 'bench.html'}")
    return int(outcome.failed)


def _history(folder: str, out: str | None) -> list[history.Run]:
    """The runs that are kept; a wrong folder is a ValueError."""
    if out is not None and Path(out).resolve() == Path(folder).resolve():
        raise ValueError(f"--history and --out must be two folders; got {folder} for both")
    return history.read(folder)
