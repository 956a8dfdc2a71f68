"""Rows as a table on the terminal, and on disk: `bench.json`, figures, and a self-contained
`bench.html`.
"""

import dataclasses
import html
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perturbkernel.report.html import html_figure, html_page, html_table, text_row
from perturbkernel.report.results import write_figure, write_whole

from . import figures
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

EXPLANATION = (
    "The result is the median, with quartiles, over rounds in which method and reference ran right after each other, "
    "warmed up before; processor is the median ratio of processor times, seconds are the method's median. Below 1 the "
    "method needs less than its reference. Growth: the exponent. Precision: the largest error of each of several draws."
)


def today() -> str:
    """The date in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def result(row: Row) -> str:
    """Median and quartiles, or in words why there are none."""
    quartiles = row.quartiles
    if quartiles is None:
        return row.status if row.status != "ok" else "not finite"
    low, median, high = (f"{value:.3g}" for value in quartiles)
    return f"{median} ({low} to {high})" if len(row.samples) > 1 else median


def cells(row: Row) -> tuple[str, ...]:
    """The row as text, a cell for each word of `HEAD`."""
    processor, seconds = (
        "" if value is None else f"{value:.3g}" for value in (row.processor, row.seconds)
    )
    remark = "; ".join(filter(None, (row.note, row.reason)))
    return row.what, row.sizes, row.subject, row.reference, result(row), processor, seconds, remark


def summary(outcome: Outcome) -> str:
    """How many rows, and how they ended."""
    count = {
        status: sum(row.status == status for row in outcome.rows)
        for status in ("differs", "skipped", "failed")
    }
    ended = {"differs": "with another result", "skipped": "skipped", "failed": "failed"}
    said = "".join(f", {number} {ended[status]}" for status, number in count.items() if number)
    return f"{len(outcome.rows)} rows in {outcome.seconds:.0f} s{said}"


def machine(environment: Mapping[str, Any]) -> str:
    """Processor, device and versions in a line."""
    e = environment
    versions = ", ".join(
        f"{name} {version}" for name, version in e["versions"].items() if version is not None
    )
    return (
        f"{e['processor']}, {e['cores']} cores; JAX on {e['backend']} ({e['device']}); Python {e['python']}; "
        f"perturbkernel {e['perturbkernel']}, {versions}"
    )


def _members(groups: Sequence[Group], outcome: Outcome) -> list[tuple[Group, list[Row]]]:
    found = [(group, [row for row in outcome.rows if row.group == group.name]) for group in groups]
    return [(group, rows) for group, rows in found if rows]


def text(
    groups: Sequence[Group], outcome: Outcome, environment: Mapping[str, Any], width: int = 170
) -> str:
    """The table for the terminal."""
    rows = [cells(row) for row in outcome.rows]
    widths = [max(len(row[i]) for row in [HEAD, *rows]) for i in range(len(HEAD))]
    for column, most in ((0, 32), (1, 34)):
        widths[column] = min(widths[column], most)
    widths[-1] = max(24, width - sum(widths[:-1]) - 2 * len(widths))
    lines = [*text_row(HEAD, widths), "-" * (sum(widths) + 2 * len(widths) - 2)]
    for group, members in _members(groups, outcome):
        lines.append(f"[{group.name}] {group.title}: {group.measures}")
        for row in members:
            lines += text_row(cells(row), widths)
    return "\n".join(
        [
            *lines,
            "",
            *text_row([EXPLANATION], [width]),
            machine(environment),
            summary(outcome),
        ]
    )


def _plain(row: Row) -> dict[str, Any]:
    """The row as strict JSON, with its quartiles; what is not finite becomes null."""
    fields = dataclasses.asdict(row)
    fields["samples"] = [sample if np.isfinite(sample) else None for sample in row.samples]
    low, median, high = row.quartiles or (None, None, None)
    return {**fields, "median": median, "lower_quartile": low, "upper_quartile": high}


_CSS = ".failed { color: #d55e00; font-weight: bold; } .skipped { color: #777; } .differs { color: #9a5b00; }"


def save(
    groups: Sequence[Group],
    outcome: Outcome,
    configuration: Mapping[str, Any],
    environment: Mapping[str, Any],
    folder: str | os.PathLike,
) -> Path:
    """Writes rows, figures and page into `folder`, whole or not at all; other files there are left."""

    def write(aside: Path) -> None:
        content = {
            "configuration": dict(configuration),
            "summary": summary(outcome),
            "environment": dict(environment),
            "groups": {
                group.name: {"title": group.title, "measures": group.measures} for group in groups
            },
            "rows": [_plain(row) for row in outcome.rows],
        }
        parts = []
        for group, rows in _members(groups, outcome):
            parts.append(f"<h2>{html.escape(group.title)}</h2><p>{html.escape(group.measures)}</p>")
            if (drawing := figures.figure(group, rows)) is not None:
                picture = write_figure(drawing, aside, group.name)
                parts.append(html_figure(group.title, picture))
            parts.append(html_table(map(cells, rows), HEAD, [row.status for row in rows]))
        body = f"""<h1>Benchmarks</h1>
<p>{html.escape(summary(outcome))}, on {html.escape(machine(environment))}.</p><p>{html.escape(EXPLANATION)}</p>
{"".join(parts)}
<h2>What was asked</h2>{html_table(configuration.items())}
<h2>Versions and machine</h2>{html_table(environment.items())}"""
        (aside / "bench.html").write_text(
            html_page("perturbkernel bench", body, _CSS), encoding="utf-8"
        )
        (aside / "bench.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")

    return write_whole(folder, "bench.json", write)
