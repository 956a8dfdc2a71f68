"""A figure for a group from its rows alone: marks on a logarithmic axis, or growth curves."""

from collections.abc import Sequence
from textwrap import fill
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
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
    styles = {_OURS: (plots.PLUS, "o")}
    for i, name in enumerate(others):
        styles[name] = (_COLOURS[i % len(_COLOURS)], _MARKS[i % len(_MARKS)])
    return styles


class _Range(NamedTuple):
    """Of the axis, and where on it NaN is marked."""

    low: float
    high: float
    edge: float


def _marks(group: Group, rows: Sequence[Row]) -> Figure:
    """A panel a computation, a line a size, a mark a method with its quartiles; NaN at the right
    edge.
    """
    lines: dict[str, list[str]] = {}
    for row in rows:
        sizes = lines.setdefault(row.what, [])
        if row.sizes not in sizes:
            sizes.append(row.sizes)
    heights = [len(sizes) + 0.9 for sizes in lines.values()]
    drawing = Figure(figsize=(7.2, 0.36 * sum(heights) + 0.9), layout="constrained")
    grid = drawing.subplots(
        len(lines), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    axes = grid[:, 0]
    shown = _range(group, rows)
    present = {row.subject for row in rows}
    styles = {name: style for name, style in _styles(rows).items() if name in present}
    for axis, (what, sizes) in zip(axes, lines.items(), strict=True):
        axis.set(xscale="log", xlim=(shown.low, shown.high), ylim=(len(sizes) - 0.5, -0.5))
        axis.set_yticks(range(len(sizes)), sizes)
        axis.set_title(what, loc="left", fontweight="bold")
        _quiet(axis)
        if group.one:
            axis.axvline(1, color=plots.F_COLOUR, lw=1)
        for row in rows:
            if row.what != what:
                continue
            place = list(styles).index(row.subject)
            y = sizes.index(row.sizes) + 0.14 * (place - (len(styles) - 1) / 2)
            _mark(axis, row, y, styles[row.subject], shown.edge)
    last = axes[-1]
    one = f"\n1 = {group.one}" if group.one else ""
    last.set_xlabel(fill(group.measures, 60) + one)
    if shown.high / shown.low < 1000:
        last.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        last.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axis in axes:
        axis.xaxis.set_minor_formatter(NullFormatter())
    handles = []
    for name, (colour, mark) in styles.items():
        handles += last.plot([], [], mark, color=colour, label=name)
    drawing.legend(handles=handles, loc="outside upper right", ncols=4)
    return drawing


def _range(group: Group, rows: Sequence[Row]) -> _Range:
    """Around all quartiles, and 1 where that means something; with a margin for NaN if needed."""
    values = [value for row in rows for value in row.quartiles or () if value > 0] or [1.0]
    low, high = min(values) / 1.6, max(values) * 1.6
    if group.one:
        low, high = min(low, 0.8), max(high, 1.25)
    edge = high
    if any(row.quartiles is None for row in rows):
        high *= (high / low) ** 0.06
    return _Range(low, high, edge)


def _quiet(axis: Axes) -> None:
    """A grid behind the marks, and no ticks or line on the left."""
    axis.grid(axis="x", color="#e5e5e5", lw=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", which="minor", length=0)
    axis.spines["left"].set_visible(False)


def _mark(axis: Axes, row: Row, y: float, style: tuple[str, str], edge: float) -> None:
    """One row: its median and quartiles, hollow unless ok."""
    colour, mark = style
    if row.quartiles is None:
        axis.plot([edge], [y], mark, color=colour, ms=6, mfc="white", clip_on=False)
        axis.annotate(
            "NaN",
            (edge, y),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )
        return
    first, median, third = row.quartiles
    axis.plot([first, third], [y, y], color=colour, lw=2, alpha=0.5, solid_capstyle="butt")
    ours = row.subject == _OURS
    axis.plot(
        [median],
        [y],
        mark,
        color=colour,
        mfc=colour if row.status == "ok" else "white",
        ms=7 if ours else 6,
        zorder=4 if ours else 3,
    )


def _curves(rows: Sequence[Row]) -> Figure:
    """A panel a variable: median seconds against size, with the fitted power."""
    symbols = list(dict.fromkeys(row.reference[0] for row in rows))
    drawing = Figure(figsize=(3.8 * len(symbols) + 0.4, 3.4), layout="constrained")
    names = list(dict.fromkeys(row.what for row in rows))
    axes = drawing.subplots(1, len(symbols), squeeze=False)[0]
    for axis, symbol in zip(axes, symbols, strict=True):
        mine = [row for row in rows if row.reference[0] == symbol]
        for row in mine:
            place = names.index(row.what)
            colour = (plots.PLUS, *_COLOURS)[place]
            _curve(axis, row, colour, ("o", *_MARKS)[place])
        ticks = sorted({size for row in mine for size, _ in row.curve})
        axis.set_xticks(ticks[:: max(1, len(ticks) // 5)])
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(axis="x", which="minor", length=0)
        axis.grid(color="#e5e5e5", lw=0.6)
        variable = {"n": "training points n", "d": "dimension d"}.get(symbol, symbol)
        axis.set(xlabel=variable, ylabel="seconds")
        axis.legend(fontsize=7, loc="upper left")
        # Room for the legend.
        bottom, top = axis.get_ylim()
        axis.set_ylim(bottom, top * (top / bottom) ** 0.5)
    return drawing


def _curve(axis: Axes, row: Row, colour: str, mark: str) -> None:
    """Seconds against size, and the power through their middle."""
    x, y = np.array(row.curve).T
    low, power, high = row.quartiles or (np.nan,) * 3
    symbol = row.reference[0]
    fixed = row.sizes.partition("; ")[2]
    label = f"{row.what}: {symbol}$^{{{power:.2f}}}$ ({low:.2f} to {high:.2f})\n{fixed}"
    axis.loglog(x, y, mark, color=colour, ms=5, label=label)
    size, seconds = np.exp(np.log(x).mean()), np.exp(np.log(y).mean())
    axis.loglog(x, seconds * (x / size) ** power, "-", color=colour, lw=1, alpha=0.6)
