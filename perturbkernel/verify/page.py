"""Verdicts on disk: `verify.json`, `verify.npz` with the arrays of its figures, and a page.

The page, `verify.html`, needs nothing beside it. It is drawn once the results are written.
"""

import dataclasses
import html
import json
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from perturbkernel import report as reports
from perturbkernel.display import html_table
from perturbkernel.report import plots
from perturbkernel.report.html import html_figure, html_page, html_settings
from perturbkernel.report.results import write_whole
from perturbkernel.verify.protocol import Verdict
from perturbkernel.verify.runner import EXPLANATION, HEAD, SECTIONS, row, summary

_ARRAYS = ("expected", "observed", "allowed")
_COLOURS = {"holds": plots.G_COLOUR, "fails": plots.MINUS, "vacuous": plots.GREY}
_CSS = """
.fails td:last-child { color: var(--bad); font-weight: bold; } .vacuous { color: var(--soft); }
.holds td:last-child { color: var(--good); }
td:nth-child(2) { min-width: 13rem; } td:nth-child(3) { min-width: 9rem; }
"""


def save(
    verdicts: Sequence[Verdict],
    folder: str | os.PathLike[str],
    configuration: Mapping[str, Any] | None = None,
) -> Path:
    """Writes verdicts into `folder`, then the page with their figures; returns the folder.

    `verify.npz` and `verify.json` are complete before the first figure is drawn. A figure that
    cannot be drawn is left out: a warning and the page say so. An earlier result is replaced, other
    files are left.

        pk.verify.save(pk.verify.verify("3.2"), "out", {"asked for": "3.2"})

    Raises ValueError if `folder` is a file.
    """
    folder = Path(folder)
    content = {
        "configuration": dict(configuration or {}),
        "summary": summary(verdicts),
        "environment": reports.environment(),
        "verdicts": [_plain(verdict) for verdict in verdicts],
    }

    def write_results(aside: Path) -> None:
        np.savez(aside / "verify.npz", **_arrays(verdicts))
        text = json.dumps(content, indent=2, allow_nan=False)
        (aside / "verify.json").write_text(text + "\n", encoding="utf-8")
        (folder / "verify.html").unlink(missing_ok=True)  # of an earlier result

    def draw(aside: Path) -> None:
        (aside / "verify.html").write_text(_page(verdicts, content), encoding="utf-8")

    write_whole(folder, "verify.json", write_results)
    return write_whole(folder, "verify.html", draw)


def _arrays(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The arrays of all verdicts, numbered in their order."""
    arrays = {}
    for i, verdict in enumerate(verdicts):
        for name in _ARRAYS:
            arrays[f"{i:03d}_{name}"] = getattr(verdict, name)
    return arrays


def load(folder: str | os.PathLike[str]) -> list[Verdict]:
    """Reads saved verdicts back. Raises FileNotFoundError if the folder holds none.

    Example:
        >>> import tempfile, perturbkernel as pk
        >>> folder = pk.verify.save(pk.verify.verify("8.3"), tempfile.mkdtemp())
        >>> [verdict.verdict for verdict in pk.verify.load(folder)]
        ['holds']
    """
    folder = Path(folder)
    try:
        text = (folder / "verify.json").read_text(encoding="utf-8")
        content = json.loads(text)
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} holds no finished result (no verify.json)") from None
    verdicts = []
    with np.load(folder / "verify.npz", allow_pickle=False) as arrays:
        for i, fields in enumerate(content["verdicts"]):
            if fields["interval"] is not None:
                fields["interval"] = tuple(fields["interval"])
            for name in _ARRAYS:
                fields[name] = arrays[f"{i:03d}_{name}"]
            verdicts.append(Verdict(**fields))
    return verdicts


def _plain(verdict: Verdict) -> dict[str, Any]:
    """The verdict as strict JSON, without its arrays: what is not finite becomes null."""
    plain = {}
    for field in dataclasses.fields(verdict):
        value = getattr(verdict, field.name)
        if isinstance(value, float) and not np.isfinite(value):
            value = None
        if field.name not in _ARRAYS:
            plain[field.name] = value
    return plain


def figure(verdicts: Sequence[Verdict]) -> Figure:
    """The figure of one result, a panel for each of its verdicts.

    What was observed against the bound or expectation, or against width. For example:

        figure([v for v in load("results") if v.id == "3.2"]).savefig("3.2.pdf")
    """
    columns = min(len(verdicts), 3)
    rows = math.ceil(len(verdicts) / columns)
    with matplotlib.rc_context(plots.STYLE):
        drawing = plots.figure(3.7 * columns + 0.3, 2.6 * rows)
        drawing.subplots(rows, columns)
        for axis, verdict in zip(drawing.axes, verdicts, strict=False):
            _panel(axis, verdict)
        empty = drawing.axes[len(verdicts) :]
        for axis in empty:
            axis.set_visible(False)
    return drawing


def _has_points(v: Verdict) -> bool:
    """Whether there is something to draw; what is claimed of gates is numbers of the table."""
    expected, observed = np.asarray(v.expected, float), np.asarray(v.observed, float)
    return not v.claim and bool((np.isfinite(expected) & np.isfinite(observed)).any())


def _panel(axis, v: Verdict) -> None:
    axis.set_title(f"{v.name}: {v.verdict}\n{v.setting}", color=_COLOURS[v.verdict], fontsize=7)
    expected = np.asarray(v.expected, float)
    observed = np.asarray(v.observed, float)
    kept = np.isfinite(expected) & np.isfinite(observed)
    if not _has_points(v):
        said = f"{v.measured}\n{v.violations} violations"
        axis.text(0.5, 0.5, said, ha="center", va="center", wrap=True)
        axis.set_axis_off()
    elif v.kind == "rate":
        _rate_panel(axis, v, expected[kept], observed[kept])
    elif v.kind == "expectation":
        _mean_panel(axis, v, expected[kept], observed[kept], v.allowed[kept])
    else:
        _bound_panel(axis, v, expected[kept], observed[kept])


def _rate_panel(axis, v: Verdict, width: np.ndarray, size: np.ndarray) -> None:
    """Root mean squares against width, with lines of the fitted power and of the interval."""
    axis.loglog(width, size, "o", color=plots.F_COLOUR, ms=4)
    lines = [(v.median, "-")]
    for edge in v.interval or ():
        lines.append((edge, ":"))
    wider = width / width[0]
    for power, style in lines:
        line = size[0] * wider**power
        axis.loglog(width, line, style, color=plots.GREY, lw=1)
    axis.set(xlabel=f"width (power {v.median:.3f} ± {v.worst:.3f})", ylabel="root mean square")
    axis.minorticks_off()
    axis.set_xticks(width, [f"{one:g}" for one in width])


def _mean_panel(
    axis,
    v: Verdict,
    expected: np.ndarray,
    mean: np.ndarray,
    allowed: np.ndarray,
) -> None:
    """Means over draws beside what was expected."""
    place = np.arange(len(expected))
    axis.errorbar(place, expected, allowed, fmt="none", color=plots.GREY, capsize=3, lw=1)
    axis.scatter(place, mean, s=12, color=_COLOURS[v.verdict], zorder=3)
    axis.set(
        xticks=[],
        xlim=(-1, len(expected)),
        xlabel="expected and what is allowed (bars)",
        ylabel="mean over draws",
    )


def _bound_panel(axis, v: Verdict, x: np.ndarray, y: np.ndarray) -> None:
    """What was observed, y, against its bound, x: below the diagonal it holds."""
    low = min(x.min(), y.min())
    high = max(x.max(), y.max())
    if y.min() >= 0 and x.min() > 0:
        # In logarithms a ratio is a distance from the diagonal. Down to the smallest half percent
        # of what was observed; what lies below, zeros included, is drawn at the edge.
        positive = y[y > 0]
        smallest = x.min() / 10
        if len(positive):
            smallest = float(np.quantile(positive, 0.005))
        low = min(smallest, x.min()) / 1.5
        high *= 1.5
        y = np.maximum(y, low)
        axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        for direction in (axis.xaxis, axis.yaxis):
            direction.set_minor_formatter(NullFormatter())
    axis.scatter(x, y, s=5, color=_COLOURS[v.verdict], alpha=0.4, lw=0, rasterized=True)
    axis.axline((low, low), (high, high), color=plots.F_COLOUR, lw=0.8)
    label = "tolerance" if v.kind == "identity" else "bound"
    axis.set(xlabel=label, ylabel="observed")


def theory_link(number: str) -> str:
    """Where the manual proves a result, from a page beside it.

    Example:
        >>> theory_link("3.2")
        'theory.html#s3-2'
    """
    anchor = number.replace(".", "-")
    anchor = anchor.replace("'", "-prime")
    return f"theory.html#s{anchor}"


def _link_numbers(table: str) -> str:
    """The number that begins each row of the table leads to its statement and proof."""

    def link(row: re.Match[str]) -> str:
        begin, number = row.groups()
        address = theory_link(html.unescape(number))
        return f'{begin}<a href="{address}">{number}</a>'

    return re.sub(r"(<tr[^>]*><td>)(\d+\.\d+(?:&#x27;)?)", link, table)


def _page(verdicts: Sequence[Verdict], content: Mapping[str, Any]) -> str:
    e = html.escape
    sections = groupby(verdicts, lambda verdict: verdict.id.partition(".")[0])
    parts = [_section(number, list(members)) for number, members in sections]
    body = f"""<h1>The theory, tried on finite networks</h1>
<p>{e(content["summary"])}.</p><p>{e(EXPLANATION)} In the figures every point is one observation;
below the diagonal a bound holds.</p>
<p>Statements and proofs are in the manual, docs/theory.md. Numbers of results lead there when this
page lies in the manual as built: <code>make docs</code>, then
<code>perturbkernel verify --out site</code>.</p>
{"".join(parts)}
<h2>What was asked</h2>{html_settings(content["configuration"])}
<h2>Versions and machine</h2>{html_settings(content["environment"])}"""
    return html_page("perturbkernel verify", body, _CSS)


def _section(number: str, verdicts: list[Verdict]) -> str:
    """The table of a section, its reasons and its figures."""
    e = html.escape
    kinds = [verdict.verdict for verdict in verdicts]
    table = html_table(map(row, verdicts), HEAD, kinds)
    parts = [f"<h2>{number}. {e(SECTIONS[number])}</h2>", _link_numbers(table)]
    for verdict in verdicts:
        if verdict.reason:
            parts.append(f"<p>{e(verdict.name)} {verdict.verdict}: {e(verdict.reason)}.</p>")
    figures = []
    for result, of_result in groupby(verdicts, lambda verdict: verdict.id):
        drawn = [verdict for verdict in of_result if _has_points(verdict)]
        if drawn:
            figures.append(_figure(result, drawn))
    return f'{"".join(parts)}<div class="figures">{"".join(figures)}</div>'


def _figure(number: str, verdicts: list[Verdict]) -> str:
    """The figure of a result; one that cannot be drawn costs no more than itself."""
    try:
        picture = plots.picture(figure(verdicts))
    except Exception as error:
        said = f"the figure of {number} could not be drawn ({type(error).__name__}: {error})"
        warnings.warn(said, stacklevel=2)
        return f"<p>{html.escape(said)}</p>"
    statements = dict.fromkeys(verdict.statement for verdict in verdicts)
    return html_figure(f"result {number}", picture, f"{number}: {'; '.join(statements)}.")
