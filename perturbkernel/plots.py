"""Figures from plain arrays, so that they can be drawn again from a saved result."""

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

PLUS, MINUS, F_COLOUR, G_COLOUR, GREY = "#0072b2", "#d55e00", "#333333", "#009e73", "#999999"
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "svg.hashsalt": "perturbkernel",
}

Arrays = Mapping[str, np.ndarray]


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


@styled
def render(drawn: Figure, kind: str) -> bytes:
    """The figure as "png" or "svg" bytes, the same for the same figure (no dates, no random
    identifiers).
    """
    buffer = io.BytesIO()
    drawn.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


@styled
def perturbations(
    arrays: Arrays, classes: Sequence[str], image_shape: Sequence[int] | None
) -> Figure:
    """Some points with their perturbations, and the mean perturbation toward each class.

    Uses `sample_inputs`, `sample_deltas`, `sample_labels` where known, `sample_targets`,
    `mean_toward` (2, d), `mean_difference`.
    """
    return (_images if image_shape is not None else _profiles)(arrays, classes, image_shape)


def _images(arrays: Arrays, classes: Sequence[str], image_shape) -> Figure:
    inputs, deltas, means = arrays["sample_inputs"], arrays["sample_deltas"], arrays["mean_toward"]
    count = len(inputs)
    fig = figure(count + 7.2, 2.7)
    grid = fig.add_gridspec(2, count + 4, width_ratios=[1] * count + [0.1, 2.1, 2.1, 2.1])

    def show(cell, image, title: str, limit: float | None = None, ylabel: str = ""):
        axis = fig.add_subplot(cell)
        colours: dict[str, Any] = (
            {"cmap": "gray_r"}
            if limit is None
            else {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        )
        axis.imshow(image.reshape(image_shape), **colours)
        axis.set(xticks=[], yticks=[], title=title, ylabel=ylabel)
        axis.spines[:].set_visible(False)

    limit = float(np.quantile(np.abs(deltas), 0.995)) or 1.0
    labels = arrays.get("sample_labels")
    for i in range(count):
        target = classes[0 if arrays["sample_targets"][i] > 0 else 1]
        name = "carrier" if labels is None else f"a {classes[0 if labels[i] > 0 else 1]}"
        show(grid[0, i], inputs[i], name, ylabel="" if i else "input")
        show(grid[1, i], deltas[i], f"toward {target}", limit, ylabel="" if i else "perturbation")
    for i, name in enumerate(classes):
        show(
            grid[:, count + 1 + i],
            means[i],
            f"mean perturbation toward {name}",
            float(np.abs(means).max()) or 1.0,
        )
    difference = arrays["mean_difference"]
    title = f"the data: mean {classes[0]} minus mean {classes[1]}"
    show(grid[:, count + 3], difference, title, float(np.abs(difference).max()) or 1.0)
    return fig


def _profiles(arrays: Arrays, classes: Sequence[str], image_shape) -> Figure:
    difference, means = arrays["mean_difference"].ravel(), arrays["mean_toward"].reshape(2, -1)
    fig = figure(5.2, 3.4)
    axis = fig.add_subplot()
    scale = [np.abs(v).max() or 1 for v in (difference, means)]
    for mean, name, colour in zip(means, classes, (PLUS, MINUS), strict=True):
        axis.scatter(
            difference / scale[0],
            mean / scale[1],
            s=8,
            color=colour,
            label=f"mean perturbation toward {name}",
        )
    axis.axhline(0, color=GREY, lw=0.5)
    axis.axvline(0, color=GREY, lw=0.5)
    axis.set_xlabel("difference of the class means, coordinate by coordinate (scaled)")
    axis.set_ylabel("mean perturbation (scaled)")
    axis.legend()
    return fig


@styled
def outputs(arrays: Arrays, classes: Sequence[str], agreement: float) -> Figure:
    """Outputs of g against those of f on fresh points. Uses `fresh_f`, `fresh_g`, and
    `fresh_labels` where known.
    """
    f, g = (arrays[name] / (np.abs(arrays[name]).max() or 1) for name in ("fresh_f", "fresh_g"))
    labels = arrays.get("fresh_labels")
    fig = figure(4.2, 3.9)
    axis = fig.add_subplot()
    axis.fill_between([0, 1.05], 0, 1.05, color=GREY, alpha=0.12, lw=0)
    axis.fill_between([-1.05, 0], -1.05, 0, color=GREY, alpha=0.12, lw=0)
    if labels is None:
        axis.scatter(f, g, s=7, color=F_COLOUR, alpha=0.5, lw=0)
    else:
        for value, name, colour in ((1, classes[0], PLUS), (-1, classes[1], MINUS)):
            axis.scatter(
                f[labels == value],
                g[labels == value],
                s=9,
                color=colour,
                alpha=0.6,
                lw=0,
                label=f"a {name}",
            )
        axis.legend(loc="lower right")
    axis.axhline(0, color=GREY, lw=0.7)
    axis.axvline(0, color=GREY, lw=0.7)
    axis.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
    axis.set_xlabel("first network, trained on clean data (scaled output)")
    axis.set_ylabel("second network, trained on perturbations (scaled)")
    axis.set_title(f"Fresh points: same sign at {agreement:.1%} (shaded)")
    return fig


@styled
def decision_map(arrays: Arrays, classes: Sequence[str]) -> Figure:
    """Both decision boundaries on a plane through the data. Uses `map_*` (see studies.DecisionMap)."""
    first, second, f, g = (arrays[f"map_{name}"] for name in ("first", "second", "f", "g"))
    points, labels = arrays["map_points"], arrays["map_labels"]
    fig = figure(4.8, 4.2)
    axis = fig.add_subplot()
    boundaries = [(f, F_COLOUR, "-", "f = 0"), (g, G_COLOUR, "--", "g = 0")]
    same = map_axes(axis, first, second, f, g, points, labels, classes, boundaries)
    axis.set_xlabel("along the difference of the class means")
    axis.set_ylabel("leading direction orthogonal to it")
    axis.set_title(f"Same decision on {same:.1%} of the plane; grey: different")
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=2)
    return fig


def map_axes(
    axis, first, second, f, g, points, labels, classes: Sequence[str], boundaries: Sequence[tuple]
) -> float:
    """Draws where f and g decide alike (grey: differently), `boundaries` (values, colour, line
    style, name) as their zero lines, and the points; returns the share of the plane with the same
    decision.
    """
    region = np.where(np.sign(f) != np.sign(g), 1, np.where(f > 0, 2, 0))
    colours = ListedColormap(["#fbe3d3", "#8c8c8c", "#d3e6f3"])
    axis.pcolormesh(
        first, second, region, cmap=colours, vmin=0, vmax=2, shading="nearest", rasterized=True
    )
    for values, colour, style, name in boundaries:
        if values.min() < 0 < values.max():
            axis.contour(
                first, second, values, [0], colors=colour, linestyles=style, linewidths=1.6
            )
        axis.plot([], [], color=colour, ls=style, label=name)
    shown = np.random.default_rng(0).permutation(len(points))[:1500]
    for value, name, colour in ((1, classes[0], PLUS), (-1, classes[1], MINUS)):
        chosen = shown[labels[shown] == value]
        axis.scatter(
            points[chosen, 0], points[chosen, 1], s=5, color=colour, alpha=0.7, lw=0, label=name
        )
    axis.set_aspect("equal")
    return float(np.mean(region != 1))


@styled
def accuracy_against_size(arrays: Arrays, size: float, f_accuracy: float) -> Figure:
    """Accuracy of g against perturbation size. Uses `curve_size`, `curve_accuracy`, and
    `curve_expected` if known.
    """
    fig = figure(4.8, 3.6)
    axis = fig.add_subplot()
    axis.axhline(f_accuracy, color=F_COLOUR, lw=1, label="first network, f")
    axis.axhline(0.5, color=GREY, lw=0.8, ls=":", label="chance")
    if "curve_expected" in arrays:
        axis.plot(
            arrays["curve_size"],
            arrays["curve_expected"],
            color=G_COLOUR,
            lw=4,
            alpha=0.3,
            label="g, expected over target draws (closed form)",
        )
    axis.plot(
        arrays["curve_size"],
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
        ylabel="accuracy on clean test data",
    )
    axis.legend(loc="lower right", fontsize=8)
    return fig
