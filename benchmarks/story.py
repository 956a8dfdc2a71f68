"""What the page begins with, from the rows alone: three figures, and which tool for which size."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
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
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        sizes, _, _ = row.sizes.partition(",")
        members = tasks.setdefault(f"{row.what}, {sizes}", [])
        members.append(row)
    heights = [len(members) + 0.8 for members in tasks.values()]
    # A task that takes ten times as long does not flatten the others: an axis for each.
    drawing, axes = _panels(len(tasks), heights, shared=False)
    for axis, (title, members) in zip(axes, tasks.items(), strict=True):
        _bars(axis, members)
        _title(axis, title)
    axes[-1].set_xlabel("time / of one that only starts JAX")
    return drawing


def _panels(
    count: int, heights: Sequence[float] | None = None, shared: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure of the story with panels above each other."""
    size = (_WIDTH, _HEIGHT)
    drawing = Figure(figsize=size, layout="constrained")
    grid = drawing.subplots(
        count,
        1,
        sharex=shared,
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )
    return drawing, list(grid[:, 0])


def _title(axis: Axes, words: str) -> None:
    axis.set_title(words, loc="left", fontweight="bold")


def _grid(axis: Axes) -> None:
    axis.grid(color="#e5e5e5", lw=0.6)


def _bars(axis: Axes, rows: Sequence[Row]) -> None:
    styles = subject_styles(rows)
    for place, row in enumerate(rows):
        colour, _ = styles[row.subject]
        if row.subject.startswith("perturbkernel"):
            colour = plots.PLUS
        _bar(axis, row, place, colour)
    axis.axvline(1, color=plots.F_COLOUR, lw=1, ls=":")
    names = [row.subject for row in rows]
    count = len(rows)
    axis.set_yticks(range(count), names)
    axis.set_ylim(count - 0.5, -0.5)
    # Room for the number beside the longest bar.
    longest = max(quartile(row, 2) for row in rows)
    _, right = axis.get_xlim()
    most = max(right, longest * 1.15)
    axis.set_xlim(0, most)
    axis.tick_params(axis="y", length=0)


def _bar(axis: Axes, row: Row, place: int, colour: str) -> None:
    """The median, its quartiles and its number."""
    low = quartile(row, 0)
    median = quartile(row, 1)
    high = quartile(row, 2)
    axis.barh(place, median, 0.6, color=colour)
    axis.plot([low, high], [place, place], color=plots.F_COLOUR, lw=1)
    axis.annotate(
        f"{median:.2g}",
        (high, place),
        (3, 0),
        textcoords="offset points",
        va="center",
    )


def quartile(row: Row, which: int) -> float:
    """The lower quartile (0), the median (1) or the upper quartile (2); inf without samples."""
    return row.quartiles[which] if row.quartiles else np.inf


# --- every size ---

_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
_WHOLE = FuncFormatter(lambda value, _: f"{value:,.0f}")


def _sizes(rows: Sequence[Row]) -> Figure:
    """A panel a sum, a line a method: the ratio to the bare product over n."""
    sums = list(dict.fromkeys(row.what for row in rows))
    styles = subject_styles(rows)
    drawing, axes = _panels(len(sums))
    for axis, what in zip(axes, sums, strict=True):
        of_sum = [row for row in rows if row.what == what]
        for subject, (colour, mark) in styles.items():
            mine = [row for row in of_sum if row.subject == subject]
            if mine:
                _line(axis, mine, colour, mark)
        _title(axis, what)
        axis.axhline(1, color=plots.F_COLOUR, lw=1, ls=":")
        _grid(axis)
        axis.set(xscale="log", yscale="log")
        axis.yaxis.set_major_formatter(_PLAIN)
        axis.yaxis.set_minor_formatter(NullFormatter())
    first, *_, last = axes * 2
    last.xaxis.set_major_formatter(_WHOLE)
    last.set_xlabel("points n")
    drawing.supylabel("time / of one x @ z.T", fontsize=9)
    handles, labels = first.get_legend_handles_labels()
    drawing.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=3,
        fontsize=8,
    )
    return drawing


def _line(axis: Axes, rows: Sequence[Row], colour: str, mark: str) -> None:
    """Medians with their quartiles; hollow where the result is wrong."""
    ordered = sorted(rows, key=lambda row: row.size or 0)
    sizes = np.array([row.size for row in ordered], float)
    quartiles = np.array([row.quartiles for row in ordered])
    low, median, high = quartiles.T
    axis.plot(sizes, median, "-", color=colour, lw=1.2)
    axis.fill_between(sizes, low, high, color=colour, alpha=0.2, lw=0)
    for place, row in enumerate(ordered):
        filling = colour if row.status == "ok" else "white"
        axis.plot(
            sizes[place],
            median[place],
            mark,
            color=colour,
            mfc=filling,
            ms=5,
        )
    first = ordered[0]
    axis.plot([], [], mark, color=colour, label=first.subject)


# --- to a million ---

# Seconds.
_TICKS = {
    "1 ms": 1e-3,
    "10 ms": 1e-2,
    "0.1 s": 0.1,
    "1 s": 1,
    "10 s": 10,
    "1 min": 60,
    "10 min": 600,
    "1 h": 3600,
    "10 h": 36_000,
    "4 d": 4 * 86_400,
}


def _million(rows: Sequence[Row]) -> Figure:
    """Seconds over N, measured and planned."""
    drawing, (axis,) = _panels(1)
    row, *_ = rows
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
    axis.xaxis.set_major_formatter(_WHOLE)
    low, high = axis.get_ylim()
    ticks = {words: at for words, at in _TICKS.items() if low <= at <= high}
    places = list(ticks.values())
    axis.set_yticks(places, list(ticks))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="y", which="minor", length=0)
    _grid(axis)
    axis.set_xlabel("points N")
    _title(axis, "all N perturbations, d = 784")
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
        "How near to the bare matrix product, from small to large. Bands are quartiles; hollow: "
        "the result differs.",
    ),
    (
        "million",
        _million,
        "How it grows: the gradient at every one of N points of a sum over all N.",
    ),
)


# --- which tool ---


class Choice(NamedTuple):
    """Of one computation at one size: the methods that need least, and the others, in words."""

    what: str
    sizes: str
    best: str
    others: str


def choices(rows: Sequence[Row]) -> list[Choice]:
    """Which tool needs least, for everything that several compute; those whose quartiles meet are
    level, and those with another result do not take part.
    """
    found = []
    for members in _alternatives(rows):
        right = [row for row in members if row.status == "ok"]
        if right and len(members) > 1:
            choice = _choice(right, members)
            found.append(choice)
    return found


def _alternatives(rows: Sequence[Row]) -> Iterable[list[Row]]:
    """Rows of the same computation at the same size against the same reference, together."""
    together: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.quartiles is None or row.group not in _CHOICES + _DUELS:
            continue
        place = (row.group, row.what, row.sizes, row.reference)
        members = together.setdefault(place, [])
        if row.group in _DUELS and not members:
            itself = replace(row, subject=row.reference, samples=(1.0,), status="ok")
            members.append(itself)
        members.append(row)
    return together.values()


def _choice(right: Sequence[Row], members: Sequence[Row]) -> Choice:
    ordered = sorted(right, key=lambda row: quartile(row, 1))
    first = ordered[0]
    most = quartile(first, 2)
    level = [row for row in ordered if quartile(row, 0) <= most]
    others = []
    for row in ordered:
        if row not in level:
            times = quartile(row, 1) / quartile(first, 1)
            said = f"{times:,.0f}" if times >= 10 else f"{times:.2g}"
            others.append(f"{row.subject} {said} times")
    others += [f"{row.subject}: another result" for row in members if row.status == "differs"]
    what = f"{first.what}, {_MEASURES[first.group]}"
    names = " or ".join(row.subject for row in level)
    return Choice(what, first.sizes, names, "; ".join(others))


_MEASURES = {
    "start": "first result",
    "sizes": "time",
    "products": "time",
    "memory": "memory",
    "predictors": "time",
    "compile": "compile time",
}
