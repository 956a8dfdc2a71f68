"""A figure for a group from its rows alone: marks on a logarithmic axis, or growth curves."""

from collections.abc import Sequence
from textwrap import fill

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from perturbkernel.report import plots

from .harness import Group, Row

_OURS = "perturbkernel"
_MARKS = ("s", "D", "^", "v", "P", "X")
_COLOURS = (plots.MINUS, plots.G_COLOUR, "#cc79a7", "#e69f00", plots.F_COLOUR, plots.GREY)


def figure(group: Group, rows: Sequence[Row]) -> Figure | None:
    """The figure of a group, None if no row has a number to show."""
    shown = [row for row in rows if row.samples]
    if not shown:
        return None
    with matplotlib.rc_context(plots.STYLE):
        curves = [row for row in shown if row.curve]
        return _curves(curves) if curves else _marks(group, shown)


def _styles(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Colour and mark of every method, perturbkernel's always the same."""
    others = [name for name in dict.fromkeys(row.subject for row in rows) if name != _OURS]
    styles = {
        name: (_COLOURS[i % len(_COLOURS)], _MARKS[i % len(_MARKS)])
        for i, name in enumerate(others)
    }
    return {_OURS: (plots.PLUS, "o")} | styles


def _marks(group: Group, rows: Sequence[Row]) -> Figure:
    """A panel a computation, a line a size, a mark a method with its quartiles; NaN at the right
    edge.
    """
    panels = list(dict.fromkeys(row.what for row in rows))
    lines = {
        what: list(dict.fromkeys(row.sizes for row in rows if row.what == what)) for what in panels
    }
    heights = [len(lines[what]) + 0.9 for what in panels]
    drawing = Figure(figsize=(7.2, 0.36 * sum(heights) + 0.9), layout="constrained")
    axes = drawing.subplots(
        len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    values = [v for row in rows if row.quartiles for v in row.quartiles if v > 0] or [1.0]
    low, high = min(values) / 1.6, max(values) * 1.6
    if group.one:
        low, high = min(low, 0.8), max(high, 1.25)
    unbounded = any(row.quartiles is None for row in rows)
    edge = high
    high = high * (high / low) ** 0.06 if unbounded else high
    styles = {
        name: style
        for name, style in _styles(rows).items()
        if any(row.subject == name for row in rows)
    }
    for axis, what in zip(axes, panels, strict=True):
        sizes = lines[what]
        axis.set(xscale="log", xlim=(low, high), ylim=(len(sizes) - 0.5, -0.5))
        axis.set_yticks(range(len(sizes)), sizes)
        axis.set_title(what, loc="left", fontweight="bold")
        axis.grid(axis="x", color="#e5e5e5", lw=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(axis="y", length=0)
        axis.tick_params(axis="x", which="minor", length=0)
        axis.spines["left"].set_visible(False)
        if group.one:
            axis.axvline(1, color=plots.F_COLOUR, lw=1)
        for row in rows:
            if row.what != what:
                continue
            colour, mark = styles[row.subject]
            place = list(styles).index(row.subject)
            y = sizes.index(row.sizes) + 0.14 * (place - (len(styles) - 1) / 2)
            if row.quartiles is None:
                axis.plot([edge], [y], mark, color=colour, ms=6, mfc="white", clip_on=False)
                axis.annotate(
                    "NaN", (edge, y), (6, 0), textcoords="offset points", va="center", color=colour
                )
                continue
            first, median, third = row.quartiles
            axis.plot([first, third], [y, y], color=colour, lw=2, alpha=0.5, solid_capstyle="butt")
            hollow = {"mfc": "white"} if row.status != "ok" else {}
            axis.plot(
                [median],
                [y],
                mark,
                color=colour,
                ms=7 if row.subject == _OURS else 6,
                zorder=4 if row.subject == _OURS else 3,
                **hollow,
            )
    last = axes[-1]
    last.set_xlabel(fill(group.measures, 60) + (f"\n1 = {group.one}" if group.one else ""))
    if high / low < 1000:
        last.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        last.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axis in axes:
        axis.xaxis.set_minor_formatter(NullFormatter())
    handles = [
        last.plot([], [], mark, color=colour, label=name)[0]
        for name, (colour, mark) in styles.items()
    ]
    drawing.legend(handles=handles, loc="outside upper right", ncols=4)
    return drawing


def _curves(rows: Sequence[Row]) -> Figure:
    """A panel a variable: median seconds against size, with the fitted power."""
    symbols = list(dict.fromkeys(row.reference[0] for row in rows))
    drawing = Figure(figsize=(3.8 * len(symbols) + 0.4, 3.4), layout="constrained")
    names = list(dict.fromkeys(row.what for row in rows))
    for axis, symbol in zip(
        drawing.subplots(1, len(symbols), squeeze=False)[0], symbols, strict=True
    ):
        for row in rows:
            if row.reference[0] != symbol:
                continue
            place = names.index(row.what)
            colour, mark = (plots.PLUS, *_COLOURS)[place], ("o", *_MARKS)[place]
            x, y = np.array(row.curve).T
            low, power, high = row.quartiles or (np.nan,) * 3
            fixed = row.sizes.partition("; ")[2]
            label = f"{row.what}: {symbol}$^{{{power:.2f}}}$ ({low:.2f} to {high:.2f})\n{fixed}"
            axis.loglog(x, y, mark, color=colour, ms=5, label=label)
            middle = np.exp(np.log(x).mean()), np.exp(np.log(y).mean())
            axis.loglog(x, middle[1] * (x / middle[0]) ** power, "-", color=colour, lw=1, alpha=0.6)
        ticks = sorted(
            {size for row in rows if row.reference[0] == symbol for size, _ in row.curve}
        )
        axis.set_xticks(ticks[:: max(1, len(ticks) // 5)])
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(axis="x", which="minor", length=0)
        axis.grid(color="#e5e5e5", lw=0.6)
        axis.set(
            xlabel={"n": "training points n", "d": "dimension d"}.get(symbol, symbol),
            ylabel="seconds",
        )
        axis.legend(fontsize=7, loc="upper left")
        bottom, top = axis.get_ylim()
        axis.set_ylim(bottom, top * (top / bottom) ** 0.5)
    return drawing
