"""Figures from plain arrays, so that they can be drawn again from a saved result."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from perturbkernel.report.drawing import F_COLOUR as F_COLOUR
from perturbkernel.report.drawing import G_COLOUR as G_COLOUR
from perturbkernel.report.drawing import GREY as GREY
from perturbkernel.report.drawing import LABELLED, cross, points, scaled
from perturbkernel.report.drawing import MINUS as MINUS
from perturbkernel.report.drawing import PLUS as PLUS
from perturbkernel.report.drawing import STYLE as STYLE
from perturbkernel.report.drawing import Arrays as Arrays
from perturbkernel.report.drawing import figure as figure
from perturbkernel.report.drawing import picture as picture
from perturbkernel.report.drawing import plain as plain
from perturbkernel.report.drawing import render as render
from perturbkernel.report.drawing import styled as styled
from perturbkernel.report.numbers import name_points
from perturbkernel.report.pictures import as_eight_bits
from perturbkernel.report.pictures import as_picture as as_picture
from perturbkernel.report.pictures import perturbations as perturbations

# So many points are drawn on a map, and more would hide it.
_POINTS_ON_MAP = 1500


@styled
def outputs(
    arrays: Arrays,
    classes: Sequence[str],
    agreement: float,
    image_shape: Sequence[int] | None = None,
) -> Figure:
    """Outputs of g against those of f on fresh points; of more than two classes, the decisions.

    Uses `fresh_f`, `fresh_g`, `fresh_labels` where known, and of images `fresh_inputs`, the first
    of them, which a page shows beside their points.

    Example:
        >>> arrays = {"fresh_f": np.array([1.0, -2.0]), "fresh_g": np.array([0.5, 1.0])}
        >>> outputs(arrays, ("cat", "dog"), 0.5).axes[0].get_title()
        'Same sign at 50.0% of the points (shaded)'
    """
    names = [plain(name) for name in classes]
    if len(classes) > 2:
        return _decisions(arrays, names, agreement)
    f = scaled(arrays["fresh_f"])
    g = scaled(arrays["fresh_g"])
    labels = arrays.get("fresh_labels")
    pictures = as_eight_bits(arrays.get("fresh_inputs", ()), image_shape)
    fig = figure(4.2, 3.9)
    axis = fig.add_subplot()
    axis.fill_between([0, 1.05], 0, 1.05, color=GREY, alpha=0.12, lw=0)
    axis.fill_between([-1.05, 0], -1.05, 0, color=GREY, alpha=0.12, lw=0)
    if labels is None:
        axis.scatter(f, g, s=7, color=F_COLOUR, alpha=0.5, lw=0)
    else:
        for value, name, colour in zip((1, -1), names, (PLUS, MINUS), strict=True):
            # Those of which there are pictures come first, as they are.
            own = np.flatnonzero(labels == value)
            look = {"s": 9, "color": colour, "alpha": 0.6, "lw": 0}
            drawn = axis.scatter(f[own], g[own], label=f"a {name}", **look)
            shown = own[own < len(pictures)]
            name_points(drawn, _numbered(own), list(pictures[shown]))
        axis.legend(loc="lower right")
    cross(axis, 0.7)
    ticks = (-1, -0.5, 0, 0.5, 1)
    axis.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xticks=ticks, yticks=ticks)
    axis.set_xlabel("first network, trained on clean data (scaled output)")
    axis.set_ylabel("second network, trained on perturbations (scaled)")
    axis.set_title(f"Same sign at {agreement:.1%} of the points (shaded)")
    return fig


def _numbered(rows: np.ndarray) -> list[str]:
    """Points by their rows in the data."""
    return [f"point {row}" for row in rows]


def _decisions(arrays: Arrays, classes: Sequence[str], agreement: float) -> Figure:
    """How many fresh points each pair of decisions has."""
    count = len(classes)
    f = np.argmax(arrays["fresh_f"], 1)
    g = np.argmax(arrays["fresh_g"], 1)
    pairs = np.zeros((count, count), int)
    np.add.at(pairs, (f, g), 1)
    side = 0.34 * min(count, LABELLED)
    fig = figure(1.9 + side, 1.7 + side)
    axis = fig.add_subplot()
    axis.imshow(pairs, cmap="Greens")
    if count <= LABELLED:
        _write_numbers(axis, pairs)
        axis.set_xticks(range(count), classes, rotation=90)
        axis.set_yticks(range(count), classes)
    axis.set_xlabel("decision of g")
    axis.set_ylabel("decision of f")
    axis.set_title(f"Same class at {agreement:.1%} of the points")
    return fig


def _write_numbers(axis: Axes, pairs: np.ndarray) -> None:
    """Every number but zero in its cell, in white on dark cells."""
    half = pairs.max() / 2
    for (i, j), number in np.ndenumerate(pairs):
        if number:
            colour = "w" if number > half else "k"
            axis.text(j, i, number, ha="center", va="center", color=colour, fontsize=points(7))


@styled
def decision_map(arrays: Arrays, classes: Sequence[str]) -> Figure:
    """Both decision boundaries on a plane through the data.

    Uses `map_*`, the fields of `learning.curves.DecisionMap`.

    Example:
        >>> f = np.outer([1.0, 1.0], [-1.0, 1.0])
        >>> plane = {"map_first": np.arange(2), "map_second": np.arange(2), "map_f": f, "map_g": f}
        >>> points = {"map_points": np.eye(2), "map_labels": np.array([1, -1])}
        >>> decision_map(plane | points, ("cat", "dog")).axes[0].get_title()
        'Same decision on 100.0% of the plane; grey: different'
    """
    f = arrays["map_f"]
    g = arrays["map_g"]
    fig = figure(4.8, 4.2)
    axis = fig.add_subplot()
    same = map_axes(
        axis,
        first=arrays["map_first"],
        second=arrays["map_second"],
        f=f,
        g=g,
        points=arrays["map_points"],
        labels=arrays["map_labels"],
        # "a NAME", since a legend leaves out what begins with an underscore.
        classes=[f"a {plain(name)}" for name in classes],
        boundaries=[(f, F_COLOUR, "-", "f = 0"), (g, G_COLOUR, "--", "g = 0")],
    )
    axis.set_xlabel("along the difference of the class means")
    axis.set_ylabel("leading direction orthogonal to it")
    axis.set_title(f"Same decision on {same:.1%} of the plane; grey: different")
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=2)
    return fig


def map_axes(
    axis: Axes,
    first: np.ndarray,
    second: np.ndarray,
    f: np.ndarray,
    g: np.ndarray,
    points: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    boundaries: Sequence[tuple],
) -> float:
    """Draws where f and g decide alike (grey: differently), `boundaries` (values, colour, line
    style, name) as their zero lines, and the points; returns the share of the plane with the same
    decision.

    Example:
        >>> f, axis = np.outer([1.0, 1.0], [-1.0, 1.0]), figure(4, 3).add_subplot()
        >>> points = np.eye(2), np.array([1, -1]), ("cat", "dog")
        >>> map_axes(axis, np.arange(2), np.arange(2), f, f.T, *points, boundaries=())
        0.5
    """
    differ = np.sign(f) != np.sign(g)
    decision = np.where(f > 0, 2, 0)
    region = np.where(differ, 1, decision)
    axis.pcolormesh(
        first,
        second,
        region,
        cmap=ListedColormap(["#fbe3d3", "#8c8c8c", "#d3e6f3"]),
        vmin=0,
        vmax=2,
        shading="nearest",
        rasterized=True,
    )
    for values, colour, style, name in boundaries:
        if values.min() < 0 < values.max():
            axis.contour(
                first,
                second,
                values,
                [0],
                colors=colour,
                linestyles=style,
                linewidths=1.6,
            )
        axis.plot([], [], color=colour, ls=style, label=name)
    order = np.random.default_rng(0).permutation(len(points))
    shown = order[:_POINTS_ON_MAP]
    for value, name, colour in zip((1, -1), classes, (PLUS, MINUS), strict=True):
        chosen = shown[labels[shown] == value]
        look = {"s": 5, "color": colour, "alpha": 0.7, "lw": 0}
        drawn = axis.scatter(points[chosen, 0], points[chosen, 1], label=name, **look)
        name_points(drawn, _numbered(chosen))
    axis.set_aspect("equal")
    same = region != 1
    return float(np.mean(same))


@styled
def accuracy_against_size(
    arrays: Arrays, size: float, f_accuracy: float, chance: float = 0.5
) -> Figure:
    """Accuracy of g against perturbation size. Uses `curve_size`, `curve_accuracy`, and
    `curve_expected` if known.

    Example:
        >>> curve = {"curve_size": np.array([0.1, 1.0]), "curve_accuracy": np.array([0.6, 0.9])}
        >>> accuracy_against_size(curve, 0.5, f_accuracy=0.98).axes[0].get_xscale()
        'log'
    """
    sizes = arrays["curve_size"]
    fig = figure(4.8, 3.6)
    axis = fig.add_subplot()
    axis.axhline(f_accuracy, color=F_COLOUR, lw=1, label="first network, f")
    axis.axhline(chance, color=GREY, lw=0.8, ls=":", label="chance")
    if "curve_expected" in arrays:
        axis.plot(
            sizes,
            arrays["curve_expected"],
            color=G_COLOUR,
            lw=4,
            alpha=0.3,
            label="g, expected over target draws (closed form)",
        )
    axis.plot(
        sizes,
        arrays["curve_accuracy"],
        "o-",
        color=G_COLOUR,
        ms=4,
        label="g, these targets",
    )
    axis.axvline(size, color=GREY, lw=0.8, label=f"size of this run, {size:g}")
    axis.set_xscale("log")
    axis.set(
        ylim=(-0.02, 1.03),
        xlabel="perturbation size (input units)",
        ylabel="accuracy on clean data",
    )
    axis.legend(loc="lower right", fontsize=points(8))
    return fig


def certified_accuracy(
    axis: Axes, sizes: np.ndarray, certified: np.ndarray, attacked: np.ndarray
) -> None:
    """Draws certified accuracy under accuracy under attack, all (s,), and what lies between.

    Example:
        >>> axis = figure(3, 2).add_subplot()
        >>> sizes = np.array([0.0, 1.0])
        >>> certified_accuracy(axis, sizes, np.array([0.9, 0.5]), np.array([0.9, 0.6]))
        >>> [line.get_label() for line in axis.lines]
        ['under attack', 'certified']
    """
    axis.plot(sizes, attacked, color=F_COLOUR, lw=1.5, label="under attack")
    axis.plot(sizes, certified, color=G_COLOUR, lw=1.5, label="certified")
    axis.fill_between(sizes, certified, attacked, color=GREY, alpha=0.3, lw=0, label="not known")
    axis.set_ylim(-0.02, 1.03)
    axis.spines[["top", "right"]].set_visible(False)
