"""What all figures share: their style, their colours, and how they become bytes."""

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


@styled
def render(drawn: Figure, kind: str) -> bytes:
    """The figure as "png" or "svg" bytes, the same for the same figure (no dates, no random
    identifiers).

    Example:
        >>> render(figure(4, 3), "png")[1:4]
        b'PNG'
    """
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    drawn.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def figure(width: float, height: float) -> Figure:
    """An empty figure, inches wide and high.

    Example:
        >>> figure(4, 3).get_size_inches().tolist()
        [4.0, 3.0]
    """
    return Figure(figsize=(width, height), layout="constrained")


def plain(name: str, longest: int = 24) -> str:
    """A name as text that a figure shows as it is: no mathematics between dollars, not too long.

    Example:
        >>> plain("a long name", longest=6)
        'a lon…'
    """
    if len(name) > longest:
        name = name[: longest - 1] + "…"
    return name.replace("$", r"\$")


def class_index(values: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """The class of every target: of two, 0 for +1 and 1 for -1; of more they are indices.

    Example:
        >>> class_index(np.array([1, -1]), ("cat", "dog")).tolist()
        [0, 1]
    """
    values = np.asarray(values)
    if len(classes) == 2:
        return np.where(values > 0, 0, 1)
    return values


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
