"""Verdicts on disk: `verify.json`, `verify.npz` with the arrays of its figures, and a
self-contained `verify.html`.
"""

import dataclasses
import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from perturbkernel import report as reports
from perturbkernel.report import plots
from perturbkernel.report.html import html_figure, html_page, html_table
from perturbkernel.report.results import write_whole
from perturbkernel.verify.protocol import Verdict
from perturbkernel.verify.runner import EXPLANATION, HEAD, SECTIONS, row, summary

_ARRAYS = ("expected", "observed", "allowed")


def save(
    verdicts: Sequence[Verdict],
    folder: str | os.PathLike,
    configuration: Mapping[str, Any] | None = None,
) -> Path:
    """Writes verdicts with their figures into `folder`; an earlier result there is replaced, other
    files are left.
    """

    def write(aside: Path) -> None:
        arrays: dict[str, Any] = {
            f"{i:03d}_{name}": getattr(verdict, name)
            for i, verdict in enumerate(verdicts)
            for name in _ARRAYS
        }
        np.savez(aside / "verify.npz", **arrays)
        content = {
            "configuration": dict(configuration or {}),
            "summary": summary(verdicts),
            "environment": reports.environment(),
            "verdicts": [_plain(verdict) for verdict in verdicts],
        }
        (aside / "verify.html").write_text(_page(verdicts, content), encoding="utf-8")
        (aside / "verify.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")

    return write_whole(folder, "verify.json", write)


def load(folder: str | os.PathLike) -> list[Verdict]:
    """Reads saved verdicts back. Raises FileNotFoundError if the folder holds none."""
    folder = Path(folder)
    try:
        content = json.loads((folder / "verify.json").read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} holds no finished result (no verify.json)") from None
    verdicts = []
    with np.load(folder / "verify.npz", allow_pickle=False) as arrays:
        for i, fields in enumerate(content["verdicts"]):
            interval = None if fields["interval"] is None else tuple(fields["interval"])
            own = {name: arrays[f"{i:03d}_{name}"] for name in _ARRAYS}
            verdicts.append(Verdict(**{**fields, "interval": interval, **own}))
    return verdicts


def _plain(verdict: Verdict) -> dict[str, Any]:
    """The verdict as strict JSON, without its arrays: what is not finite becomes null."""

    def finite(value):
        return None if isinstance(value, float) and not np.isfinite(value) else value

    fields = {field.name: getattr(verdict, field.name) for field in dataclasses.fields(verdict)}
    return {name: finite(value) for name, value in fields.items() if name not in _ARRAYS}


_COLOURS = {"holds": plots.G_COLOUR, "fails": plots.MINUS, "vacuous": plots.GREY}


def figure(verdicts: Sequence[Verdict]) -> Figure:
    """One result: for each of its verdicts, what was observed against the bound or expectation, or
    against width.
    """
    columns = min(len(verdicts), 3)
    rows = -(-len(verdicts) // columns)
    with matplotlib.rc_context(plots.STYLE):
        drawing = Figure(figsize=(3.7 * columns + 0.3, 2.6 * rows), layout="constrained")
        for axis, verdict in zip(
            drawing.subplots(rows, columns, squeeze=False).flat, verdicts, strict=False
        ):
            _panel(axis, verdict)
        for axis in drawing.axes[len(verdicts) :]:
            axis.set_visible(False)
    return drawing


def _panel(axis, v: Verdict) -> None:
    axis.set_title(f"{v.name}: {v.verdict}\n{v.setting}", color=_COLOURS[v.verdict], fontsize=7)
    x, y = np.asarray(v.expected, float), np.asarray(v.observed, float)
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    if v.claim or not len(x):
        axis.text(
            0.5,
            0.5,
            f"{v.measured}\n{v.violations} violations",
            ha="center",
            va="center",
            wrap=True,
        )
        axis.set_axis_off()
        return
    if v.kind == "rate" and v.interval is not None and v.median is not None:
        axis.loglog(x, y, "o", color=plots.F_COLOUR, ms=4)
        for power, style in ((v.median, "-"), *((edge, ":") for edge in v.interval)):
            axis.loglog(x, y[0] * (x / x[0]) ** power, style, color=plots.GREY, lw=1)
        axis.set(xlabel=f"width (power {v.median:.3f} ± {v.worst:.3f})", ylabel="root mean square")
        axis.minorticks_off()
        axis.set_xticks(x, [f"{width:g}" for width in x])
        return
    if v.kind == "expectation":
        place = np.arange(len(x))
        axis.errorbar(place, x, v.allowed[kept], fmt="none", color=plots.GREY, capsize=3, lw=1)
        axis.scatter(place, y, s=12, color=_COLOURS[v.verdict], zorder=3)
        axis.set(
            xticks=[],
            xlim=(-1, len(x)),
            xlabel="expected and what is allowed (bars)",
            ylabel="mean over draws",
        )
        return
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    if y.min() >= 0 and x.min() > 0:
        # In logarithms a ratio is a distance from the diagonal. Down to the smallest half percent
        # of what was observed; what lies below, zeros included, is drawn at the edge.
        positive = y[y > 0]
        low = (
            min(float(np.quantile(positive, 0.005)) if len(positive) else x.min() / 10, x.min())
            / 1.5
        )
        y, high = np.maximum(y, low), high * 1.5
        axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        for direction in (axis.xaxis, axis.yaxis):
            direction.set_minor_formatter(NullFormatter())
    axis.scatter(x, y, s=5, color=_COLOURS[v.verdict], alpha=0.4, lw=0, rasterized=True)
    axis.axline((low, low), (high, high), color=plots.F_COLOUR, lw=0.8)
    axis.set(xlabel="tolerance" if v.kind == "identity" else "bound", ylabel="observed")


_CSS = """
.fails { color: #d55e00; font-weight: bold; } .vacuous { color: #777; } .holds { color: #00694c; }
"""


def theory_link(number: str) -> str:
    """Where the manual proves a result, from a page beside it: "3.2" is at theory.html#s3-2."""
    return "theory.html#s" + number.replace(".", "-").replace("'", "-prime")


def _link_numbers(table: str) -> str:
    """The number that begins each row of the table leads to its statement and proof."""

    def link(row: re.Match[str]) -> str:
        return f'{row[1]}<a href="{theory_link(html.unescape(row[2]))}">{row[2]}</a>'

    return re.sub(r"(<tr[^>]*><td>)(\d+\.\d+(?:&#x27;)?)", link, table)


def _page(verdicts: Sequence[Verdict], content: Mapping[str, Any]) -> str:
    e = html.escape
    parts = []
    for section, of_section in groupby(verdicts, lambda verdict: verdict.id.partition(".")[0]):
        members = list(of_section)
        parts.append(f"<h2>{section}. {e(SECTIONS[section])}</h2>")
        kinds = [verdict.verdict for verdict in members]
        parts.append(_link_numbers(html_table(map(row, members), HEAD, kinds)))
        parts += [f"<p>{e(v.name)} {v.verdict}: {e(v.reason)}.</p>" for v in members if v.reason]
        for number, of_result in groupby(members, lambda verdict: verdict.id):
            picture = plots.render(figure(list(of_result)), "png")
            parts.append(html_figure(f"result {number}", picture))
    return html_page(
        "perturbkernel verify",
        f"""<h1>The theory, tried on finite networks</h1>
<p>{e(content["summary"])}.</p><p>{e(EXPLANATION)} In the figures every point is one observation; below the diagonal a
bound holds.</p>
<p>Statements and proofs are in the manual, docs/theory.md. Numbers of results lead there when this page lies in the
manual as built: <code>make docs</code>, then <code>perturbkernel verify --out site</code>.</p>
{"".join(parts)}
<h2>What was asked</h2>{html_table(content["configuration"].items())}
<h2>Versions and machine</h2>{html_table(content["environment"].items())}""",
        _CSS,
    )
