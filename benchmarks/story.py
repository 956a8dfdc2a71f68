"""What the page begins with, from the rows alone: three figures, and which tool for which size."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from perturbkernel.kernels.forecast import in_time
from perturbkernel.report import plots

from .figures import subject_styles
from .harness import Row

# Inches: three stand side by side on a wide page, and one fills a telephone.
_WIDTH, _HEIGHT = 4.2, 4.0
# Groups whose rows of the same sizes are methods that a person chooses between.
_CHOICES = ("start", "sizes", "products", "memory")
# And those whose reference is a method, too.
_DUELS = ("predictors", "compile")


class Picture(NamedTuple):
    """A figure, its name as a file, and its caption."""

    name: str
    figure: Figure
    caption: str


def pictures(rows: Sequence[Row]) -> list[Picture]:
    """The figures whose rows were measured."""
    found = []
    for group, draw, caption in _STORY:
        mine = _shown(group, rows)
        if mine:
            with matplotlib.rc_context(plots.STYLE):
                found.append(Picture(f"story-{group}", draw(mine), caption))
    return found


def missing(rows: Sequence[Row]) -> list[str]:
    """The groups of the figures that were not measured."""
    return [group for group, *_ in _STORY if not _shown(group, rows)]


def _shown(group: str, rows: Sequence[Row]) -> list[Row]:
    """The rows of a group that its figure can show."""
    needed = {"start": "samples", "sizes": "size", "million": "curve"}[group]
    mine = [row for row in rows if row.group == group and row.quartiles]
    return [row for row in mine if getattr(row, needed)]


# --- the first result ---


def _start(rows: Sequence[Row]) -> Figure:
    """A panel a task, a bar a method."""
    tasks = list(dict.fromkeys(row.what for row in rows))
    members = [[row for row in rows if row.what == what] for what in tasks]
    drawing = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    heights = [len(mine) + 0.8 for mine in members]
    grid = drawing.subplots(
        len(tasks), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axis, what, mine in zip(grid[:, 0], tasks, members, strict=True):
        _bars(axis, mine)
        sizes, _, _ = mine[0].sizes.partition(",")
        axis.set_title(f"{what}, {sizes}", loc="left", fontweight="bold")
    grid[-1, 0].set_xlabel("time of the process / of one that only starts JAX")
    return drawing


def _bars(axis: Axes, rows: Sequence[Row]) -> None:
    styles = subject_styles(rows)
    longest = max(row.quartiles[2] for row in rows if row.quartiles)
    for place, row in enumerate(rows):
        low, median, high = row.quartiles or (np.nan,) * 3
        colour, _ = styles[row.subject]
        ours = row.subject.startswith("perturbkernel")
        axis.barh(place, median, 0.6, color=plots.PLUS if ours else colour)
        axis.plot([low, high], [place, place], color=plots.F_COLOUR, lw=1)
        axis.annotate(
            f"{median:.2g}", (high, place), (3, 0), textcoords="offset points", va="center"
        )
    axis.axvline(1, color=plots.F_COLOUR, lw=1, ls=":")
    axis.set_yticks(range(len(rows)), [row.subject for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    left, right = axis.get_xlim()
    axis.set_xlim(left, max(right, longest * 1.15))
    axis.tick_params(axis="y", length=0)


# --- every size ---


def _sizes(rows: Sequence[Row]) -> Figure:
    """A panel a sum, a line a method: the ratio to the bare product over n."""
    sums = list(dict.fromkeys(row.what for row in rows))
    styles = subject_styles(rows)
    drawing = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    grid = drawing.subplots(len(sums), 1, sharex=True, squeeze=False)
    for axis, what in zip(grid[:, 0], sums, strict=True):
        for subject, (colour, mark) in styles.items():
            mine = [row for row in rows if (row.what, row.subject) == (what, subject)]
            if mine:
                _line(axis, mine, colour, mark)
        axis.set_title(what, loc="left", fontweight="bold")
        axis.axhline(1, color=plots.F_COLOUR, lw=1, ls=":")
        axis.grid(color="#e5e5e5", lw=0.6)
        axis.set(xscale="log", yscale="log")
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_major_formatter(plain)
        axis.yaxis.set_minor_formatter(NullFormatter())
    last = grid[-1, 0]
    last.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    last.set_xlabel("points n")
    drawing.supylabel("time / of one x @ z.T", fontsize=9)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside upper left", ncols=3, fontsize=8)
    return drawing


def _line(axis: Axes, rows: Sequence[Row], colour: str, mark: str) -> None:
    """Medians with their quartiles; hollow where the result is wrong."""
    points = sorted((row.size or np.nan, row) for row in rows)
    sizes = [size for size, _ in points]
    quartiles = np.array([row.quartiles for _, row in points])
    low, median, high = quartiles.T
    axis.plot(sizes, median, "-", color=colour, lw=1.2)
    axis.fill_between(sizes, low, high, color=colour, alpha=0.2, lw=0)
    for size, row in points:
        filling = colour if row.status == "ok" else "white"
        middle = row.quartiles[1] if row.quartiles else np.nan
        axis.plot([size], [middle], mark, color=colour, mfc=filling, ms=5)
    axis.plot([], [], mark, color=colour, label=rows[0].subject)


# --- to a million ---


def _million(rows: Sequence[Row]) -> Figure:
    """Seconds over N, measured and planned."""
    drawing = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axis = drawing.subplots()
    (row, *_) = rows
    measured = np.array(row.curve).reshape(-1, 2)
    planned = np.array(row.planned).reshape(-1, 2)
    axis.loglog(*measured.T, "o-", color=plots.PLUS, label="measured")
    if len(planned):
        joined = np.concatenate([measured[-1:], planned])
        axis.loglog(*joined.T, ":", color=plots.PLUS)
        axis.loglog(*planned.T, "o", color=plots.PLUS, mfc="white", label="planned, not run")
    for size, seconds in (*row.curve[-1:], *row.planned[-1:]):
        axis.annotate(
            in_time(seconds),
            (size, seconds),
            (-8, 2),
            textcoords="offset points",
            ha="right",
        )
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: in_time(value)))
    axis.grid(color="#e5e5e5", lw=0.6)
    axis.set_xlabel("points N")
    axis.set_title("all N perturbations, d = 784", loc="left", fontweight="bold")
    axis.legend(loc="lower right")
    return drawing


_STORY: tuple[tuple[str, Callable[[Sequence[Row]], Figure], str], ...] = (
    (
        "start",
        _start,
        "How long until the first result: whole processes, from the start of Python. Cached: with "
        "the compiled programs of an earlier process.",
    ),
    (
        "sizes",
        _sizes,
        "How near to the bare matrix product, from small to large. Bands are quartiles; hollow: the "
        "result differs.",
    ),
    (
        "million",
        _million,
        "How it grows: the gradient at every one of N points of a sum over all N.",
    ),
)


# --- which tool ---


class Choice(NamedTuple):
    """Of one computation at one size: the quickest methods, and how the others compare, in words."""

    what: str
    sizes: str
    best: str
    others: str


def choices(rows: Sequence[Row]) -> list[Choice]:
    """Which tool needs least, for everything that several compute; those whose quartiles meet are
    level, and those with another result do not take part.
    """
    found = []
    for _, members in _alternatives(rows):
        right = sorted(
            (row for row in members if row.status == "ok"), key=lambda row: _quartile(row, 1)
        )
        if len(right) > 1 or (right and len(members) > 1):
            found.append(_choice(right, members))
    return found


def _quartile(row: Row, which: int) -> float:
    return row.quartiles[which] if row.quartiles else np.inf


def _alternatives(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, ...], list[Row]]]:
    """Rows of the same computation at the same size against the same reference, together."""
    together: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.quartiles is None or row.group not in _CHOICES + _DUELS:
            continue
        place = (row.group, row.what, row.sizes, row.reference)
        members = together.setdefault(place, [])
        if row.group in _DUELS and not members:
            itself = Row(row.what, row.sizes, row.reference, row.reference, (1.0,), group=row.group)
            members.append(itself)
        members.append(row)
    yield from together.items()


def _choice(right: Sequence[Row], members: Sequence[Row]) -> Choice:
    first = right[0]
    level = [row for row in right if _quartile(row, 0) <= _quartile(first, 2)]
    others = []
    for row in right:
        if row not in level:
            times = _quartile(row, 1) / _quartile(first, 1)
            others.append(f"{row.subject} {times:.2g} times")
    others += [f"{row.subject}: another result" for row in members if row.status == "differs"]
    what = f"{first.what}, {_MEASURES[first.group]}"
    names = " or ".join(row.subject for row in level)
    return Choice(what, first.sizes, names, ", ".join(others))


_MEASURES = {
    "start": "first result",
    "sizes": "time",
    "products": "time",
    "memory": "memory",
    "predictors": "time",
    "compile": "compile time",
}
