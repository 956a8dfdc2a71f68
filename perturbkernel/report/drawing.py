"""What all figures share: their style, their colours, and how they become bytes."""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perturbkernel.report.html import Picture
from perturbkernel.report.numbers import numbers

PLUS = "#0072b2"
MINUS = "#d55e00"
F_COLOUR = "#333333"
G_COLOUR = "#009e73"
GREY = "#999999"
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "svg.hashsalt": "perturbkernel",
    "text.usetex": False,  # whatever the user's own settings: names of classes are no TeX
}
# For print, letters stay letters in the file.
PAPER: Any = STYLE | {
    "pdf.fonttype": 42,
    "font.family": "sans-serif",
    "lines.linewidth": 1.5,
    "lines.markersize": 6.0,
}
COLUMN, PAGE = 3.25, 6.75  # inches
# A figure that is drawn wider than this on a screen goes across the page.
_WIDE = 5.5
_DPI = 150  # of a PNG
_SHRINKING = ("font.size", "axes.titlesize", "lines.linewidth", "lines.markersize")
_in_print = ContextVar("in_print", default=False)
# Up to so many classes their names are written beside the figure.
LABELLED = 20
Arrays = Mapping[str, np.ndarray]


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run in the style of all figures, whatever the user's own.

    Example:
        >>> styled(lambda: matplotlib.rcParams["font.size"])()
        9.0
    """

    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        with matplotlib.rc_context(PAPER if _in_print.get() else STYLE):
            return draw(*args, **kwargs)

    return drawn


@contextlib.contextmanager
def for_print() -> Iterator[None]:
    """Figures that are drawn meanwhile have the sizes of print.

    Example:
        >>> with for_print():
        ...     figure(4, 3).get_size_inches().tolist()
        [3.25, 2.4375]
    """
    token = _in_print.set(True)
    try:
        with matplotlib.rc_context(PAPER):
            yield
    finally:
        _in_print.reset(token)


@styled
def render(drawn: Figure, kind: str) -> bytes:
    """The figure as "png", "svg" or "pdf" bytes, the same for the same figure (no dates, no random
    identifiers).

    Example:
        >>> render(figure(4, 3), "png")[1:4]
        b'PNG'
    """
    buffer = io.BytesIO()
    metadata: Any = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    drawn.savefig(buffer, format=kind, dpi=_DPI, metadata=metadata)
    return buffer.getvalue()


@styled
def _lay_out(drawn: Figure) -> None:
    drawn.set_dpi(_DPI)
    layout = drawn.get_layout_engine()
    if layout is not None and drawn.axes:
        layout.execute(drawn)
        if any(axis.get_aspect() != "auto" for axis in drawn.axes):
            # Axes of a fixed shape got smaller, and cut off the labels of their ticks.
            layout.execute(drawn)
    drawn.set_layout_engine(None)


def picture(drawn: Figure) -> Picture:
    """The figure as a page shows it. Its layout, which takes half the time, is then fixed.

    Matplotlib would draw a figure that has a layout engine twice for each file, once unseen.

    Example:
        >>> picture(figure(4, 3)).numbers
        []
    """
    _lay_out(drawn)
    png = render(drawn, "png")
    return Picture(png, numbers(drawn))


def figure(width: float, height: float) -> Figure:
    """An empty figure, inches wide and high.

    Example:
        >>> figure(4, 3).get_size_inches().tolist()
        [4.0, 3.0]
    """
    if _in_print.get():
        scale = (PAGE if width > _WIDE else COLUMN) / width
        width, height = scale * width, scale * height
        # What is drawn next shrinks with the figure, so that nothing collides.
        for name in _SHRINKING:
            matplotlib.rcParams[name] = scale * PAPER[name]
    return Figure(figsize=(width, height), layout="constrained")


def points(size: float) -> float:
    """A size of text beside the nine points of the rest, smaller where all is smaller, in print.

    Example:
        >>> styled(points)(7)
        7.0
    """
    return size * matplotlib.rcParams["font.size"] / STYLE["font.size"]


def plain(name: str, longest: int = 24) -> str:
    """A name as text that a figure shows as it is: no mathematics between dollars, not too long.

    Example:
        >>> plain("a long name", longest=6)
        'a lon…'
    """
    if len(name) > longest:
        name = name[: longest - 1] + "…"
    return name.replace("$", r"\$")


def class_colours(classes: Sequence[str]) -> list[Any]:
    """The colour of each class.

    Example:
        >>> class_colours(("cat", "dog"))
        ['#0072b2', '#d55e00']
    """
    if len(classes) == 2:
        return [PLUS, MINUS]
    colours = matplotlib.colormaps["tab20"]
    return [colours(i % 20) for i in range(len(classes))]


def largest(values: np.ndarray) -> float:
    """The largest absolute value, or 1 where all are zero.

    Example:
        >>> largest(np.array([1.0, -2.0])), largest(np.zeros(2))
        (2.0, 1.0)
    """
    sizes = np.abs(values)
    return float(sizes.max()) or 1.0


def scaled(values: np.ndarray) -> np.ndarray:
    """The values in units of the largest.

    Example:
        >>> scaled(np.array([1.0, -2.0])).tolist()
        [0.5, -1.0]
    """
    return values / largest(values)


def cross(axis: Axes, width: float) -> None:
    """Draws the lines where either coordinate is zero.

    Example:
        >>> cross(figure(4, 3).add_subplot(), 0.5)
    """
    axis.axhline(0, color=GREY, lw=width)
    axis.axvline(0, color=GREY, lw=width)
