"""The numbers that a figure shows, as tables whose cells know where they are in the picture."""

import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FuncFormatter

from perturbkernel.report.html import Numbers

# Of a cloud of more points none can be pointed at.
_CLOUD = 1000
_names: WeakKeyDictionary[Artist, tuple[Sequence[str], Sequence[np.ndarray]]] = WeakKeyDictionary()

Places = list[tuple[int, int] | None]


def name_points(drawn: Artist, names: Sequence[str], pictures: Sequence[np.ndarray] = ()) -> None:
    """Names the points of a curve or a cloud, one by one: its table begins with them.

    `pictures`: of the first points, shown beside the names, (h, w) or (h, w, 3) of eight bits.

    Example:
        >>> import matplotlib.figure
        >>> axis = matplotlib.figure.Figure().add_subplot()
        >>> name_points(axis.scatter([1, 2], [3, 4], label="digits"), ["a 1", "a 2"])
        >>> numbers(axis.figure)[0].rows[0]
        ['a 1', '1', '3']
    """
    _names[drawn] = names, pictures


def numbers(drawn: Figure) -> list[Numbers]:
    """The tables of a figure that was rendered: of curves in its legends, and of named points.

    Curves over the same places share a table, a column each.

    Example:
        >>> import matplotlib.figure
        >>> axis = matplotlib.figure.Figure().add_subplot()
        >>> line = axis.plot([0, 1], [0.5, 0.25], label="f")
        >>> numbers(axis.figure)[0].rows
        [['0', '0.5'], ['1', '0.25']]
    """
    found = []
    for axis in drawn.axes:
        found += _of_axis(axis)
    return found


def _of_axis(axis: Axes) -> list[Numbers]:
    named: list[Numbers] = []
    # Curves by the places at which they are known.
    shared: dict[bytes, list[tuple[str, np.ndarray]]] = {}
    handles, labels = axis.get_legend_handles_labels()
    for drawn, label in zip(handles, labels, strict=True):
        line = _line(drawn)
        points = _points(axis, line)
        if points is None or len(points) == 0:
            continue
        if line in _names:
            if len(points) <= _CLOUD:
                table = _of_named(axis, label, line, points)
                named.append(table)
        elif hasattr(line, "get_xdata"):
            x = points[:, 0]
            curves = shared.setdefault(x.tobytes(), [])
            curves.append((label, points))
    tables = [_of_curves(axis, curves) for curves in shared.values()]
    return tables + named


def _line(drawn: Any) -> Any:
    """The line itself of one with bars."""
    return drawn[0] if isinstance(drawn, tuple) else drawn


def _points(axis: Axes, line: Any) -> np.ndarray | None:
    """The points in units of the axes, (n, 2); None of what is not drawn in them."""
    if hasattr(line, "get_xdata"):
        # A line across the axes, as of chance, is not in units of them.
        transform = line.get_transform()
        in_units = transform.contains_branch_seperately(axis.transData)
        if not all(in_units):
            return None
        x = line.get_xdata(orig=False)
        y = line.get_ydata(orig=False)
        return np.column_stack([x, y])
    if hasattr(line, "get_offsets"):
        return np.asarray(line.get_offsets(), float)
    return None


def _of_curves(axis: Axes, curves: Sequence[tuple[str, np.ndarray]]) -> Numbers:
    _, first = curves[0]
    x = first[:, 0]
    head = [_label(axis, "x") or "place"]
    columns = [_x_texts(axis, x)]
    places: list[Places] = [[None] * len(x)]
    for label, points in curves:
        head.append(_plain(label))
        columns.append([_text(y) for y in points[:, 1]])
        places.append(_places(axis, points))
    return Numbers(_title(axis), head, _turned(columns), _turned(places))


def _of_named(axis: Axes, label: str, line: Artist, points: np.ndarray) -> Numbers:
    names, pictures = _names[line]
    along = _label(axis, "x") or "x"
    up = _label(axis, "y") or "y"
    head = [_plain(label), along, up]
    x, y = points.T
    heights = [_text(value) for value in y]
    columns = [list(names), _x_texts(axis, x), heights]
    # A point is pointed at once: by its height.
    nowhere: Places = [None] * len(x)
    places = [nowhere, nowhere, _places(axis, points)]
    return Numbers(_title(axis), head, _turned(columns), _turned(places), pictures)


def _turned(columns: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The rows of columns."""
    return [list(row) for row in zip(*columns, strict=True)]


def _x_texts(axis: Axes, x: np.ndarray) -> list[str]:
    """Places along the axis in its own words, where its ticks have words."""
    words: dict[float, str] = {}
    formatter = axis.xaxis.get_major_formatter()
    if isinstance(formatter, FixedFormatter | FuncFormatter):
        for place, tick in zip(axis.get_xticks(), axis.get_xticklabels(), strict=False):
            words[place] = _plain(tick.get_text())
    texts = []
    for value in x:
        word = words.get(value, "")
        texts.append(word or _text(value))
    return texts


def _text(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else ""


def _places(axis: Axes, points: np.ndarray) -> Places:
    """Where points are in the picture, of those that are in sight."""
    pixels = axis.transData.transform(points)
    of_figure = axis.figure.transFigure.inverted()
    of_axis = axis.transAxes.inverted()
    in_figure = of_figure.transform(pixels)
    in_axis = of_axis.transform(pixels)
    found: Places = []
    for (x, y), place in zip(in_figure, in_axis, strict=True):
        off_centre = abs(place - 0.5)
        # Points on the frame are in sight. NaN is not less than anything.
        if (off_centre < 0.51).all():
            # Thousandths, from the left and from the top.
            found.append((round(1000 * x), round(1000 * (1 - y))))
        else:
            found.append(None)
    return found


def _title(axis: Axes) -> str:
    title = axis.get_title() or axis.get_title("left")
    parts = [_plain(title), _label(axis, "y")]
    return ": ".join(part for part in parts if part)


def _label(axis: Axes, way: str) -> str:
    """The label of an axis, or that of one which shares it."""
    shared = axis.get_shared_x_axes() if way == "x" else axis.get_shared_y_axes()
    for each in (axis, *shared.get_siblings(axis)):
        label = getattr(each, f"get_{way}label")()
        if label:
            return _plain(label)
    return ""


def _plain(text: str) -> str:
    """Text of a figure without its line breaks and the marks of mathematics."""
    text = re.sub(r"\$\^\{(.*?)\}\$", r"^\1", text)
    return text.replace(r"\$", "$").replace("\n", " ")
