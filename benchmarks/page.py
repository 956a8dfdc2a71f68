"""Rows as a table on the terminal, and on disk: `bench.json`, figures, and a self-contained
`bench.html`.
"""

import html
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perturbkernel.display import html_table, text_row
from perturbkernel.files import write_folder
from perturbkernel.report.html import html_figure, html_page, html_settings
from perturbkernel.report.results import write_figure

from . import figures, history, story
from .harness import Group, Outcome, Row

PACKAGES = ("scikit-learn", "scipy", "torch")  # beside those that every result names
HEAD = (
    "what",
    "sizes",
    "method",
    "against",
    "result (quartiles)",
    "processor",
    "seconds",
    "remark",
)

CHANGE_HEAD = ("what", "sizes", "method", "before", "now", "now / before", "", "since commit")

EXPLANATION = (
    "The result is the median, with quartiles, over rounds in which method and reference ran right "
    "after each other, warmed up before; processor is the median ratio of processor times, seconds "
    "are the method's median. Below 1 the method needs less than its reference. Growth: the "
    "exponent. Precision: the largest error of each of several draws."
)

_CSS = (
    ".story { display: grid; gap: 0 1.5rem; "
    "grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); } "
    ".worse { color: var(--bad); font-weight: bold; } .better { color: var(--good); } "
    ".failed { color: var(--bad); font-weight: bold; } .skipped { color: var(--soft); } "
    ".differs { color: var(--bad); }"
)


def today() -> str:
    """The date in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def result(row: Row) -> str:
    """Median and quartiles, or in words why there are none."""
    quartiles = row.quartiles
    if quartiles is None:
        return row.status if row.status != "ok" else "not finite"
    low, median, high = quartiles
    if len(row.samples) == 1:
        return f"{median:.3g}"
    return f"{median:.3g} ({low:.3g} to {high:.3g})"


def cells(row: Row) -> tuple[str, ...]:
    """The row as text, a cell for each word of `HEAD`."""
    return (
        row.what,
        row.sizes,
        row.subject,
        row.reference,
        result(row),
        _number(row.processor),
        _number(row.seconds),
        "; ".join(filter(None, (row.note, row.reason))),
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def summary(outcome: Outcome) -> str:
    """How many rows, and how they ended."""
    said = f"{len(outcome.rows)} rows in {outcome.seconds:.0f} s"
    ended = {"differs": "with another result", "skipped": "skipped", "failed": "failed"}
    for status, words in ended.items():
        ending = [row for row in outcome.rows if row.status == status]
        number = len(ending)
        if number:
            said += f", {number} {words}"
    return said


def machine(environment: Mapping[str, Any]) -> str:
    """Processor, device and versions in a line."""
    own = environment["perturbkernel"]
    packages = {"perturbkernel": own, **environment["versions"]}
    versions = []
    for name, version in packages.items():
        if version is not None:
            versions.append(f"{name} {version}")
    parts = (
        f"{environment['processor']}, {environment['cores']} cores",
        f"JAX on {environment['backend']} ({environment['device']})",
        f"Python {environment['python']}",
        ", ".join(versions),
    )
    return "; ".join(parts)


def _members(groups: Sequence[Group], outcome: Outcome) -> list[tuple[Group, list[Row]]]:
    """The groups that have rows, with them."""
    found = []
    for group in groups:
        rows = [row for row in outcome.rows if row.group == group.name]
        if rows:
            found.append((group, rows))
    return found


def text(
    groups: Sequence[Group], outcome: Outcome, environment: Mapping[str, Any], width: int = 170
) -> str:
    """The table for the terminal."""
    widths = _widths(outcome, width)
    gaps = 2 * (len(widths) - 1)
    rule = "-" * (sum(widths) + gaps)
    lines = [*text_row(HEAD, widths), rule]
    for group, members in _members(groups, outcome):
        lines.append(f"[{group.name}] {group.title}: {group.measures}")
        for row in members:
            lines += text_row(cells(row), widths)
    lines += ["", *text_row([EXPLANATION], [width])]
    lines += [machine(environment), summary(outcome)]
    return "\n".join(lines)


def _widths(outcome: Outcome, width: int) -> list[int]:
    """Of the columns of a table on lines of `width` characters, two of them between columns."""
    rows = [HEAD]
    rows += [cells(row) for row in outcome.rows]
    widths = []
    for column in zip(*rows, strict=True):
        longest = max(map(len, column))
        widths.append(longest)
    # Long names and sizes are wrapped, and the remark has what is left of the line.
    for column, most in ((0, 32), (1, 34)):
        widths[column] = min(widths[column], most)
    others = sum(widths[:-1])
    left = width - others - 2 * len(widths)
    widths[-1] = max(24, left)
    return widths


def save(
    groups: Sequence[Group],
    outcome: Outcome,
    configuration: Mapping[str, Any],
    environment: Mapping[str, Any],
    folder: str | os.PathLike,
    found: Sequence[history.Change] | None = None,
) -> Path:
    """Writes rows, figures and page into `folder`, whole or not at all; other files there are left.
    `found` are changes since an earlier run, if runs are kept.

    The results are in the folder before anything is drawn: a figure that fails costs no numbers.
    """
    described = {}
    for group in groups:
        described[group.name] = {"title": group.title, "measures": group.measures}
    content = {
        "configuration": dict(configuration),
        "summary": summary(outcome),
        "environment": dict(environment),
        "groups": described,
        "rows": [history.plain(row) for row in outcome.rows],
    }
    results = json.dumps(content, indent=2, allow_nan=False) + "\n"

    def write_results(aside: Path) -> None:
        (aside / "bench.json").write_text(results)

    def write_page(aside: Path) -> None:
        write_results(aside)
        page = _page(groups, outcome, configuration, environment, aside, found)
        (aside / "bench.html").write_text(page, encoding="utf-8")

    write_folder(folder, "bench.json", write_results)
    return write_folder(folder, "bench.json", write_page)


def _page(
    groups: Sequence[Group],
    outcome: Outcome,
    configuration: Mapping[str, Any],
    environment: Mapping[str, Any],
    folder: Path,
    found: Sequence[history.Change] | None,
) -> str:
    """The page; its figures are written into `folder` too."""
    where = html.escape(machine(environment))
    body = f"""<h1>Benchmarks</h1>
<p>{html.escape(summary(outcome))}, on {where}.</p>
<p>{html.escape(accelerator(environment))}</p>
{_story(outcome.rows, folder)}
{_tools(outcome.rows)}
{_changes(found)}
<h2>How to read the rows</h2><p>{html.escape(EXPLANATION)}</p>
{_groups(groups, outcome, folder)}
<h2>What was asked</h2>{html_settings(configuration)}
<h2>Versions and machine</h2>{html_settings(environment)}"""
    return html_page("perturbkernel bench", body, _CSS)


def accelerator(environment: Mapping[str, Any]) -> str:
    """Whether an accelerator was measured."""
    if environment["backend"] == "cpu":
        return (
            "Nothing on an accelerator is measured yet: all of this is a CPU. Where one is at "
            "hand, make bench CUDA=1 measures everything on it."
        )
    return f"Measured on an accelerator: {environment['device']} ({environment['backend']})."


def _story(rows: Sequence[Row], folder: Path) -> str:
    """The three figures beside each other, and which were not measured."""
    parts = []
    for name, drawing, caption in story.pictures(rows):
        picture = write_figure(drawing, folder, name)
        parts.append(html_figure(name, picture, caption))
    said = ""
    absent = story.missing(rows)
    if absent:
        names = ", ".join(absent)
        option = f"<code>--only {','.join(absent)}</code>"
        said = f"<p>Not measured in this run: {names} ({option}).</p>"
    shown = f'<div class="story">{"".join(parts)}</div>' if parts else ""
    return shown + said


def _tools(rows: Sequence[Row]) -> str:
    """Which tool for which size."""
    found = story.choices(rows)
    if not found:
        return ""
    table = html_table(found, ("computation", "size", "needs least", "the others"))
    return (
        "<h2>Which tool for which size</h2><p>From the rows below: the method of the smallest "
        "median; those whose quartiles meet are level.</p>" + table
    )


def _changes(found: Sequence[history.Change] | None) -> str:
    """What changed since the last run, if runs are kept; the worse rows first."""
    if found is None:
        return ""
    ordered = sorted(found, key=lambda change: -change.ratio)
    rows, kinds = [], []
    for change in ordered:
        rows.append(change_cells(change))
        kinds.append(change.verdict if change.verdict in ("worse", "better") else "")
    table = html_table(rows, CHANGE_HEAD, kinds) if rows else ""
    said = html.escape(history.summary(found))
    return f"<h2>Since the last run</h2><p>{said}.</p>{table}"


def change_cells(change: history.Change) -> tuple[str, ...]:
    """The change as text, a cell for each word of `CHANGE_HEAD`."""
    now, before = change.now, change.before
    return (
        f"{now.group}: {now.what}",
        now.sizes,
        now.subject,
        result(before),
        result(now),
        f"{change.ratio:.3g}",
        change.verdict,
        change.commit,
    )


def changes_text(found: Sequence[history.Change]) -> str:
    """How many rows changed, and those that did, for the terminal."""
    lines = [f"history: {history.summary(found)}"]
    for change in found:
        if change.verdict in ("worse", "better"):
            where, sizes, subject, before, now, ratio, verdict, commit = change_cells(change)
            lines.append(
                f"  {verdict}: {where}, {sizes}, {subject}: {before} -> {now}, x {ratio} "
                f"(since {commit or 'a run without commit'})"
            )
    return "\n".join(lines)


def _groups(groups: Sequence[Group], outcome: Outcome, folder: Path) -> str:
    """A figure and a table for each group."""
    parts = []
    for group, rows in _members(groups, outcome):
        title = html.escape(group.title)
        measures = html.escape(group.measures)
        parts.append(f"<h2>{title}</h2><p>{measures}</p>")
        drawing = figures.figure(group, rows)
        if drawing is not None:
            picture = write_figure(drawing, folder, group.name)
            parts.append(html_figure(group.title, picture))
        classes = [row.status for row in rows]
        table = html_table(map(cells, rows), HEAD, classes)
        parts.append(table)
    return "".join(parts)
