"""A figure for a group from its rows alone: marks on a logarithmic axis, or growth curves."""

import itertools
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

Style = tuple[str, str]  # colour and mark
Styles = dict[str, Style]

_OURS = "perturbkernel"
_VARIABLES = {"n": "training points n", "d": "dimension d"}
_MARKS = ("s", "D", "^", "v", "P", "X")
_COLOURS = (plots.MINUS, plots.G_COLOUR, "#cc79a7", "#e69f00", plots.F_COLOUR, plots.GREY)


def figure(group: Group, rows: Sequence[Row]) -> Figure | None:
    """The figure of a group, None if no row has a number to show."""
    shown = [row for row in rows if row.samples]
    if not shown:
        return None
    curves = [row for row in shown if row.curve and row.reference.endswith("^p")]
    with matplotlib.rc_context(plots.STYLE):
        if curves:
            return _curves(curves)
        return _marks(group, shown)


def _styles(rows: Sequence[Row]) -> Styles:
    """Of every method, and of perturbkernel in any case."""
    subjects = dict.fromkeys(row.subject for row in rows)
    others = [name for name in subjects if name != _OURS]
    styles = {_OURS: (plots.PLUS, "o")}
    colours = itertools.cycle(_COLOURS)
    marks = itertools.cycle(_MARKS)
    for name, colour, mark in zip(others, colours, marks, strict=False):
        styles[name] = (colour, mark)
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
    lines = _lines(rows)
    shown = _range(group, rows)
    styles = subject_styles(rows)
    heights = [len(sizes) + 0.9 for sizes in lines.values()]
    height = 0.36 * sum(heights) + 0.9
    drawing = Figure(figsize=(7.2, height), layout="constrained")
    grid = drawing.subplots(
        len(lines),
        1,
        sharex=True,
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )
    axes = grid[:, 0]
    for axis, what in zip(axes, lines, strict=True):
        sizes = lines[what]
        mine = [row for row in rows if row.what == what]
        _prepare(axis, what, sizes, shown)
        if group.one:
            axis.axvline(1, color=plots.F_COLOUR, lw=1)
        _mark_rows(axis, mine, sizes, styles, shown.edge)
    last = axes[-1]
    _label(last, group, shown)
    for axis in axes:
        axis.xaxis.set_minor_formatter(NullFormatter())
    handles = []
    for name, (colour, mark) in styles.items():
        handles += last.plot([], [], mark, color=colour, label=name)
    drawing.legend(handles=handles, loc="outside upper right", ncols=4)
    return drawing


def _lines(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Computation -> its sizes, in the order of the rows."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        sizes = lines.setdefault(row.what, [])
        if row.sizes not in sizes:
            sizes.append(row.sizes)
    return lines


def subject_styles(rows: Sequence[Row]) -> Styles:
    """Colour and mark of every method that has a row, perturbkernel's always the same."""
    styles = _styles(rows)
    subjects = {row.subject for row in rows}
    if _OURS not in subjects:
        del styles[_OURS]
    return styles


def _prepare(axis: Axes, what: str, sizes: Sequence[str], shown: "_Range") -> None:
    """The axis of a computation, without its marks."""
    count = len(sizes)
    axis.set_xscale("log")
    axis.set_xlim(shown.low, shown.high)
    axis.set_ylim(count - 0.5, -0.5)
    axis.set_yticks(range(count), sizes)
    axis.set_title(what, loc="left", fontweight="bold")
    _quiet(axis)


def _mark_rows(
    axis: Axes,
    rows: Sequence[Row],
    sizes: Sequence[str],
    styles: Styles,
    edge: float,
) -> None:
    """The methods of a size above each other, around its line."""
    names = list(styles)
    last = len(names) - 1
    middle = last / 2
    for row in rows:
        place = names.index(row.subject)
        line = sizes.index(row.sizes)
        style = styles[row.subject]
        offset = 0.14 * (place - middle)
        _mark(axis, row, line + offset, style, edge)


def _label(axis: Axes, group: Group, shown: "_Range") -> None:
    """What the numbers are, below the last axis."""
    one = f"\n1 = {group.one}" if group.one else ""
    words = fill(group.measures, 60)
    axis.set_xlabel(words + one)
    if shown.high / shown.low < 1000:
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        one_two_five = LogLocator(subs=(1, 2, 5))
        axis.xaxis.set_major_locator(one_two_five)
        axis.xaxis.set_major_formatter(plain)


def _range(group: Group, rows: Sequence[Row]) -> _Range:
    """Around all quartiles, and 1 where that means something; with a margin for NaN if needed."""
    values = []
    for row in rows:
        values += [value for value in row.quartiles or () if value > 0]
    if not values:
        values = [1.0]
    low = min(values) / 1.6
    high = max(values) * 1.6
    if group.one:
        low = min(low, 0.8)
        high = max(high, 1.25)
    edge = high
    without = [row for row in rows if row.quartiles is None]
    if without:
        ratio = high / low
        high *= ratio**0.06
    return _Range(low, high, edge)


def _quiet(axis: Axes) -> None:
    """A grid behind the marks, and no ticks or line on the left."""
    axis.grid(axis="x", color="#e5e5e5", lw=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", which="minor", length=0)
    axis.spines["left"].set_visible(False)


def _mark(axis: Axes, row: Row, y: float, style: Style, edge: float) -> None:
    """One row: its median and quartiles, hollow unless ok."""
    colour, mark = style
    if row.quartiles is None:
        axis.plot([edge], [y], mark, color=colour, ms=6, mfc="white", clip_on=False)
        place = (edge, y)
        offset = (6, 0)
        axis.annotate(
            "NaN",
            place,
            offset,
            textcoords="offset points",
            va="center",
            color=colour,
        )
        return
    first, median, third = row.quartiles
    axis.plot([first, third], [y, y], color=colour, lw=2, alpha=0.5, solid_capstyle="butt")
    ours = row.subject == _OURS
    size = 7 if ours else 6
    order = 4 if ours else 3
    filling = colour if row.status == "ok" else "white"
    axis.plot([median], [y], mark, color=colour, mfc=filling, ms=size, zorder=order)


def _curves(rows: Sequence[Row]) -> Figure:
    """A panel a variable: median seconds against size, with the fitted power."""
    symbols = list(dict.fromkeys(_symbol(row) for row in rows))
    names = list(dict.fromkeys(row.what for row in rows))
    colours = (plots.PLUS, *_COLOURS)
    marks = ("o", *_MARKS)
    count = len(symbols)
    width = 3.8 * count + 0.4
    drawing = Figure(figsize=(width, 3.4), layout="constrained")
    grid = drawing.subplots(1, count, squeeze=False)
    for axis, symbol in zip(grid[0], symbols, strict=True):
        mine = [row for row in rows if _symbol(row) == symbol]
        for row in mine:
            place = names.index(row.what)
            colour = colours[place]
            mark = marks[place]
            _curve(axis, row, colour, mark)
        _finish_curves(axis, symbol, mine)
    return drawing


def _symbol(row: Row) -> str:
    """Of what grows: the reference of a growth row is its power."""
    return row.reference[0]


def _finish_curves(axis: Axes, symbol: str, rows: Sequence[Row]) -> None:
    """Ticks at measured sizes, a grid, labels and a legend."""
    sizes = set()
    for row in rows:
        sizes |= {size for size, _ in row.curve}
    ticks = sorted(sizes)
    every = len(ticks) // 5
    step = max(1, every)
    whole = FuncFormatter(lambda value, _: f"{value:,.0f}")
    axis.set_xticks(ticks[::step])
    axis.xaxis.set_major_formatter(whole)
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", which="minor", length=0)
    axis.grid(color="#e5e5e5", lw=0.6)
    variable = _VARIABLES.get(symbol, symbol)
    axis.set(xlabel=variable, ylabel="seconds")
    axis.legend(fontsize=7, loc="upper left")
    # Room for the legend.
    bottom, top = axis.get_ylim()
    ratio = top / bottom
    room = ratio**0.5
    axis.set_ylim(bottom, top * room)


def _curve(axis: Axes, row: Row, colour: str, mark: str) -> None:
    """Seconds against size, and the power through their middle."""
    points = np.array(row.curve)
    x, y = points.T
    unknown = (np.nan, np.nan, np.nan)
    low, power, high = row.quartiles or unknown
    symbol = _symbol(row)
    _, _, fixed = row.sizes.partition("; ")
    fitted = f"{symbol}$^{{{power:.2f}}}$ ({low:.2f} to {high:.2f})"
    label = f"{row.what}: {fitted}\n{fixed}"
    axis.loglog(x, y, mark, color=colour, ms=5, label=label)
    # Geometric means.
    logarithms = np.log(points).mean(axis=0)
    size, seconds = np.exp(logarithms)
    relative = x / size
    line = seconds * relative**power
    axis.loglog(x, line, "-", color=colour, lw=1, alpha=0.6)
