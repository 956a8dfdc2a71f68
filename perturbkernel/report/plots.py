"""Figures from plain arrays, so that they can be drawn again from a saved result."""

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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
    "text.usetex": False,  # whatever the user's own settings: names of classes are no TeX
}

# Up to so many classes their names are written beside the figure.
_LABELLED = 20
# So many points are drawn on a map, and more would hide it.
_POINTS_ON_MAP = 1500
# Perturbations in grey share a scale that this share of their pixels keeps within.
_WITHIN = 0.995
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


def plain(name: str, longest: int = 24) -> str:
    """A name as text that a figure shows as it is: no mathematics between dollars, not too long."""
    short = name if len(name) <= longest else name[: longest - 1] + "…"
    return short.replace("$", r"\$")


def class_index(values: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """The class of every target: of two, 0 for +1 and 1 for -1; of more they are indices."""
    values = np.asarray(values)
    return np.where(values > 0, 0, 1) if len(classes) == 2 else values


def _class_colours(classes: Sequence[str]) -> list[Any]:
    if len(classes) == 2:
        return [PLUS, MINUS]
    return [matplotlib.colormaps["tab20"](i % 20) for i in range(len(classes))]


@styled
def perturbations(
    arrays: Arrays, classes: Sequence[str], image_shape: Sequence[int] | None
) -> Figure:
    """Some points with their perturbations, and the mean perturbation toward each class.

    Uses `sample_inputs`, `sample_deltas`, `sample_labels` where known, `sample_targets`,
    `mean_toward` (K, d), and of two classes `mean_difference` (d,), of more `mean_of_class` (K, d).
    """
    names = [plain(name) for name in classes]
    if image_shape is None:
        return _profiles(arrays, names)
    if len(classes) == 2:
        return _images(arrays, names, image_shape)
    return _images_of_many(arrays, names, image_shape)


def as_picture(values: np.ndarray, image_shape: Sequence[int]) -> np.ndarray:
    """An image (h, w), or (h, w, 3) in colour; of another number of channels their mean."""
    image = np.asarray(values, float).reshape(image_shape)
    if image.ndim == 3 and image.shape[2] != 3:
        image = image.mean(axis=2)
    return image


def _show(axis, picture: np.ndarray, limit: float | None, title: str, ylabel: str = "") -> None:
    """Draws a picture; with a `limit`, values around zero, which is mid-grey in colours."""
    coloured = picture.ndim == 3
    if coloured and limit is not None:
        picture = np.clip(0.5 + picture / (2 * limit), 0, 1)
    if coloured:
        axis.imshow(picture)
    elif limit is None:
        axis.imshow(picture, cmap="gray_r")
    else:
        axis.imshow(picture, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set(xticks=[], yticks=[], title=title, ylabel=ylabel)
    axis.spines[:].set_visible(False)


def _largest(values: np.ndarray) -> float:
    """The largest absolute value, or 1 where all are zero."""
    return float(np.abs(values).max()) or 1.0


def _scaled(values: np.ndarray) -> np.ndarray:
    return values / _largest(values)


def _in_range(inputs: np.ndarray) -> np.ndarray:
    """Colours between 0 and 1, as pictures need them: all are shifted and scaled alike."""
    low, high = inputs.min(), inputs.max()
    if low >= 0 and high <= 1:
        return inputs
    return (inputs - low) / ((high - low) or 1)


class _Pictures(NamedTuple):
    """Sampled points as pictures, with the titles of their perturbations."""

    inputs: list[np.ndarray]
    deltas: list[np.ndarray]
    limits: list[float]
    names: list[str]
    aims: list[str]


def _pictures(arrays: Arrays, classes: Sequence[str], image_shape: Sequence[int]) -> _Pictures:
    inputs = [as_picture(row, image_shape) for row in _in_range(arrays["sample_inputs"])]
    deltas = [as_picture(row, image_shape) for row in arrays["sample_deltas"]]
    # Grey perturbations share one scale; colours, which have none beside them, are seen best each
    # in its own.
    shared = float(np.quantile(np.abs(deltas), _WITHIN)) or 1.0
    limits = [_largest(delta) if delta.ndim == 3 else shared for delta in deltas]
    labels = arrays.get("sample_labels")
    names = ["carrier"] * len(inputs)
    if labels is not None:
        names = [f"a {classes[i]}" for i in class_index(labels, classes)]
    targets = class_index(arrays["sample_targets"], classes)
    aims = [f"toward {classes[i]}" for i in targets]
    return _Pictures(inputs, deltas, limits, names, aims)


def _images(arrays: Arrays, classes: Sequence[str], image_shape: Sequence[int]) -> Figure:
    shown = _pictures(arrays, classes, image_shape)
    count = len(shown.inputs)
    fig = figure(count + 7.2, 2.7)
    grid = fig.add_gridspec(2, count + 4, width_ratios=[1] * count + [0.1, 2.1, 2.1, 2.1])
    for i in range(count):
        above = fig.add_subplot(grid[0, i])
        below = fig.add_subplot(grid[1, i])
        _show(above, shown.inputs[i], None, shown.names[i], "" if i else "input")
        _show(below, shown.deltas[i], shown.limits[i], shown.aims[i], "" if i else "perturbation")
    axes = [fig.add_subplot(grid[:, count + 1 + i]) for i in range(3)]
    means = [as_picture(mean, image_shape) for mean in arrays["mean_toward"]]
    shared = _largest(np.asarray(means))
    for axis, name, mean in zip(axes[:2], classes, means, strict=True):
        limit = _largest(mean) if mean.ndim == 3 else shared
        _show(axis, mean, limit, f"mean perturbation\ntoward {name}")
    difference = as_picture(arrays["mean_difference"], image_shape)
    title = f"the data: mean {classes[0]}\nminus mean {classes[1]}"
    _show(axes[2], difference, _largest(difference), title)
    return fig


# What the rows of such a figure show, written beside the first column.
_SIDES = ("input", "perturbation", "mean toward", "class mean")


def _images_of_many(arrays: Arrays, classes: Sequence[str], image_shape: Sequence[int]) -> Figure:
    """One column per class, ten at most: a point, its perturbation, and the two means."""
    shown = _pictures(arrays, classes, image_shape)
    count = min(len(classes), 10)
    fig = figure(1.2 * count + 1, 5.4)
    grid = fig.add_gridspec(4, count)
    means = [as_picture(mean, image_shape) for mean in arrays["mean_toward"][:count]]
    own = [as_picture(mean, image_shape) for mean in arrays["mean_of_class"][:count]]
    for i in range(count):
        axes = [fig.add_subplot(grid[row, i]) for row in range(4)]
        sides = _SIDES if i == 0 else ("",) * len(_SIDES)
        if i < len(shown.inputs):
            _show(axes[0], shown.inputs[i], None, shown.names[i], sides[0])
            _show(axes[1], shown.deltas[i], shown.limits[i], shown.aims[i], sides[1])
        else:
            axes[0].set_axis_off()
            axes[1].set_axis_off()
        _show(axes[2], means[i], _largest(means[i]), f"toward {classes[i]}", sides[2])
        _show(axes[3], own[i], _largest(own[i]), classes[i], sides[3])
    return fig


def _profiles(arrays: Arrays, classes: Sequence[str]) -> Figure:
    two = len(classes) == 2
    means = np.asarray(arrays["mean_toward"]).reshape(len(classes), -1)
    reference = np.asarray(arrays["mean_difference" if two else "mean_of_class"])
    reference = np.resize(reference.reshape(-1, means.shape[1]), means.shape)
    fig = figure(5.2, 3.4)
    axis = fig.add_subplot()
    for row, mean, name, colour in zip(
        reference, means, classes, _class_colours(classes), strict=True
    ):
        label = f"mean perturbation toward {name}" if two else f"toward {name}"
        x, y = row / _largest(reference), mean / _largest(means)
        axis.scatter(x, y, s=8, color=colour, label=label)
    axis.axhline(0, color=GREY, lw=0.5)
    axis.axvline(0, color=GREY, lw=0.5)
    what = "difference of the class means" if two else "class mean less the mean of all"
    axis.set_xlabel(f"{what}, coordinate by coordinate (scaled)")
    axis.set_ylabel("mean perturbation (scaled)")
    if two:
        axis.legend()
    elif len(classes) <= _LABELLED:
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7)
    return fig


@styled
def outputs(arrays: Arrays, classes: Sequence[str], agreement: float) -> Figure:
    """Outputs of g against those of f on fresh points; of more than two classes, the decisions.

    Uses `fresh_f`, `fresh_g`, and `fresh_labels` where known.
    """
    names = [plain(name) for name in classes]
    if len(classes) > 2:
        return _decisions(arrays, names, agreement)
    f = _scaled(arrays["fresh_f"])
    g = _scaled(arrays["fresh_g"])
    labels = arrays.get("fresh_labels")
    fig = figure(4.2, 3.9)
    axis = fig.add_subplot()
    axis.fill_between([0, 1.05], 0, 1.05, color=GREY, alpha=0.12, lw=0)
    axis.fill_between([-1.05, 0], -1.05, 0, color=GREY, alpha=0.12, lw=0)
    if labels is None:
        axis.scatter(f, g, s=7, color=F_COLOUR, alpha=0.5, lw=0)
    else:
        for value, name, colour in ((1, names[0], PLUS), (-1, names[1], MINUS)):
            own = labels == value
            axis.scatter(f[own], g[own], s=9, color=colour, alpha=0.6, lw=0, label=f"a {name}")
        axis.legend(loc="lower right")
    axis.axhline(0, color=GREY, lw=0.7)
    axis.axvline(0, color=GREY, lw=0.7)
    axis.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
    axis.set_xlabel("first network, trained on clean data (scaled output)")
    axis.set_ylabel("second network, trained on perturbations (scaled)")
    axis.set_title(f"Fresh points: same sign at {agreement:.1%} (shaded)")
    return fig


def _decisions(arrays: Arrays, classes: Sequence[str], agreement: float) -> Figure:
    """How many fresh points each pair of decisions has."""
    count = len(classes)
    f = np.asarray(arrays["fresh_f"]).argmax(1)
    g = np.asarray(arrays["fresh_g"]).argmax(1)
    pairs = np.zeros((count, count), int)
    np.add.at(pairs, (f, g), 1)
    side = 0.34 * min(count, _LABELLED)
    fig = figure(1.9 + side, 1.7 + side)
    axis = fig.add_subplot()
    axis.imshow(pairs, cmap="Greens")
    if count <= _LABELLED:
        _write_numbers(axis, pairs)
        axis.set_xticks(range(count), classes, rotation=90)
        axis.set_yticks(range(count), classes)
    axis.set_xlabel("decision of g")
    axis.set_ylabel("decision of f")
    axis.set_title(f"Fresh points: same class at {agreement:.1%}")
    return fig


def _write_numbers(axis, pairs: np.ndarray) -> None:
    """Every number but zero in its cell, in white on dark cells."""
    half = pairs.max() / 2
    for (i, j), number in np.ndenumerate(pairs):
        if number:
            colour = "w" if number > half else "k"
            axis.text(j, i, number, ha="center", va="center", color=colour, fontsize=7)


@styled
def decision_map(arrays: Arrays, classes: Sequence[str]) -> Figure:
    """Both decision boundaries on a plane through the data.

    Uses `map_*`, the fields of `learning.curves.DecisionMap`.
    """
    first, second = arrays["map_first"], arrays["map_second"]
    f, g = arrays["map_f"], arrays["map_g"]
    points, labels = arrays["map_points"], arrays["map_labels"]
    fig = figure(4.8, 4.2)
    axis = fig.add_subplot()
    boundaries = [(f, F_COLOUR, "-", "f = 0"), (g, G_COLOUR, "--", "g = 0")]
    # "a NAME", since a legend leaves out what begins with an underscore.
    names = [f"a {plain(name)}" for name in classes]
    same = map_axes(axis, first, second, f, g, points, labels, names, boundaries)
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
    shown = np.random.default_rng(0).permutation(len(points))[:_POINTS_ON_MAP]
    for value, name, colour in ((1, classes[0], PLUS), (-1, classes[1], MINUS)):
        chosen = shown[labels[shown] == value]
        axis.scatter(
            points[chosen, 0],
            points[chosen, 1],
            s=5,
            color=colour,
            alpha=0.7,
            lw=0,
            label=name,
        )
    axis.set_aspect("equal")
    return float(np.mean(region != 1))


@styled
def accuracy_against_size(
    arrays: Arrays, size: float, f_accuracy: float, chance: float = 0.5
) -> Figure:
    """Accuracy of g against perturbation size. Uses `curve_size`, `curve_accuracy`, and
    `curve_expected` if known.
    """
    fig = figure(4.8, 3.6)
    axis = fig.add_subplot()
    axis.axhline(f_accuracy, color=F_COLOUR, lw=1, label="first network, f")
    axis.axhline(chance, color=GREY, lw=0.8, ls=":", label="chance")
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
