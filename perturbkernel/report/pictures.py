"""Sampled points, their perturbations and the mean perturbations, as pictures or coordinates."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from perturbkernel.report.captions import title_of_sample
from perturbkernel.report.drawing import (
    LABELLED,
    Arrays,
    class_colours,
    cross,
    figure,
    largest,
    plain,
    points,
    scaled,
    styled,
)
from perturbkernel.report.numbers import name_points

# Perturbations in grey share a scale that this share of their pixels keeps within.
_WITHIN = 0.995
# What the rows of sampled points and means show, written beside the first column.
_SIDES = ("input", "perturbation", "mean toward", "class mean")


class _Pictures(NamedTuple):
    """Sampled points as pictures, with the titles of their perturbations."""

    inputs: list[np.ndarray]
    deltas: list[np.ndarray]
    limits: list[float]
    names: list[str]
    aims: list[str]


@styled
def perturbations(
    arrays: Arrays, classes: Sequence[str], image_shape: Sequence[int] | None
) -> Figure:
    """Some points with their perturbations, and the mean perturbation toward each class.

    Uses `sample_inputs`, `sample_deltas`, `sample_labels` where known, `sample_targets`,
    `mean_toward` (K, d), and of two classes `mean_difference` (d,), of more `mean_of_class` (K, d).

    Example:
        >>> arrays = {"mean_toward": np.eye(2), "mean_difference": np.ones(2)}
        >>> perturbations(arrays, ("cat", "dog"), None).axes[0].get_ylabel()
        'mean perturbation (scaled)'
    """
    names = [plain(name) for name in classes]
    if image_shape is None:
        return _profiles(arrays, names)
    if len(classes) == 2:
        return _images(arrays, names, image_shape)
    return _images_of_many(arrays, names, image_shape)


def as_picture(values: np.ndarray, image_shape: Sequence[int]) -> np.ndarray:
    """An image (h, w), or (h, w, 3) in colour; of another number of channels their mean.

    Example:
        >>> as_picture(np.zeros(12), (2, 2, 3)).shape, as_picture(np.zeros(8), (2, 2, 2)).shape
        ((2, 2, 3), (2, 2))
    """
    image = np.asarray(values, float)
    image = image.reshape(image_shape)
    if image.ndim == 3 and image.shape[2] != 3:
        image = image.mean(axis=2)
    return image


def as_eight_bits(rows: ArrayLike, image_shape: Sequence[int] | None) -> np.ndarray:
    """Images as bytes, (n, h, w), black on white, or (n, h, w, 3) in colour; of none (0,).

    Example:
        >>> as_eight_bits(np.eye(4)[:1], (2, 2)).tolist()
        [[[0, 255], [255, 255]]]
    """
    rows = np.asarray(rows, float)
    if image_shape is None or not rows.size:
        return np.empty(0, np.uint8)
    pictures = np.stack([as_picture(row, image_shape) for row in in_range(rows)])
    if pictures.ndim == 3:
        pictures = 1 - pictures
    return np.round(255 * pictures).astype(np.uint8)


def _show(
    axis: Axes,
    picture: np.ndarray,
    limit: float | None,
    title: str,
    ylabel: str = "",
) -> None:
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


def in_range(inputs: np.ndarray) -> np.ndarray:
    """Colours between 0 and 1, as pictures need them: all are shifted and scaled alike.

    Example:
        >>> in_range(np.array([-1.0, 3.0])).tolist()
        [0.0, 1.0]
    """
    low = inputs.min()
    high = inputs.max()
    if low >= 0 and high <= 1:
        return inputs
    width = (high - low) or 1
    return (inputs - low) / width


def _pictures(arrays: Arrays, classes: Sequence[str], image_shape: Sequence[int]) -> _Pictures:
    inputs = in_range(arrays["sample_inputs"])
    deltas = _as_pictures(arrays["sample_deltas"], image_shape)
    # Grey perturbations share one scale; colours, which have none beside them, are seen best each
    # in its own.
    shared = float(np.quantile(np.abs(deltas), _WITHIN)) or 1.0
    titles = [title_of_sample(arrays, classes, i) for i in range(len(inputs))]
    return _Pictures(
        inputs=_as_pictures(inputs, image_shape),
        deltas=deltas,
        limits=_limits(deltas, shared),
        names=[name for name, _ in titles],
        aims=[f"toward {aim}" for _, aim in titles],
    )


def _as_pictures(rows: np.ndarray, image_shape: Sequence[int]) -> list[np.ndarray]:
    return [as_picture(row, image_shape) for row in rows]


def _limits(pictures: Sequence[np.ndarray], shared: float) -> list[float]:
    """Up to where each is drawn: `shared` for grey, its own largest entry for colours."""
    limits = []
    for picture in pictures:
        coloured = picture.ndim == 3
        limits.append(largest(picture) if coloured else shared)
    return limits


def _images(arrays: Arrays, classes: Sequence[str], image_shape: Sequence[int]) -> Figure:
    shown = _pictures(arrays, classes, image_shape)
    count = len(shown.inputs)
    fig = figure(count + 7.2, 2.7)
    widths = [1] * count + [0.1, 2.1, 2.1, 2.1]
    grid = fig.add_gridspec(2, len(widths), width_ratios=widths)
    for i in range(count):
        above = fig.add_subplot(grid[0, i])
        below = fig.add_subplot(grid[1, i])
        _show_sample(above, below, shown, i)
    first = fig.add_subplot(grid[:, count + 1])
    second = fig.add_subplot(grid[:, count + 2])
    third = fig.add_subplot(grid[:, count + 3])
    means = _as_pictures(arrays["mean_toward"], image_shape)
    limits = _limits(means, largest(np.asarray(means)))
    for axis, name, mean, limit in zip((first, second), classes, means, limits, strict=True):
        _show(axis, mean, limit, f"mean perturbation\ntoward {name}")
    difference = as_picture(arrays["mean_difference"], image_shape)
    title = f"the data: mean {classes[0]}\nminus mean {classes[1]}"
    _show(third, difference, largest(difference), title)
    return fig


def _show_sample(above: Axes, below: Axes, shown: _Pictures, i: int) -> None:
    """A sampled point and its perturbation; what they are stands beside the first."""
    sides = ("", "")
    if i == 0:
        sides = _SIDES[:2]
    _show(above, shown.inputs[i], None, shown.names[i], sides[0])
    _show(below, shown.deltas[i], shown.limits[i], shown.aims[i], sides[1])


def _images_of_many(arrays: Arrays, classes: Sequence[str], image_shape: Sequence[int]) -> Figure:
    """One column per class, ten at most: a point, its perturbation, and the two means."""
    shown = _pictures(arrays, classes, image_shape)
    count = min(len(classes), 10)
    fig = figure(1.2 * count + 1, 5.4)
    grid = fig.add_gridspec(4, count)
    means = _as_pictures(arrays["mean_toward"][:count], image_shape)
    own = _as_pictures(arrays["mean_of_class"][:count], image_shape)
    sides = _SIDES[2:]
    for i in range(count):
        first, second, third, fourth = [fig.add_subplot(grid[row, i]) for row in range(4)]
        if i < len(shown.inputs):
            _show_sample(first, second, shown, i)
        else:
            first.set_axis_off()
            second.set_axis_off()
        name = classes[i]
        _show(third, means[i], largest(means[i]), f"toward {name}", sides[0])
        _show(fourth, own[i], largest(own[i]), name, sides[1])
        sides = ("", "")
    return fig


def _profiles(arrays: Arrays, classes: Sequence[str]) -> Figure:
    two = len(classes) == 2
    means = np.asarray(arrays["mean_toward"])
    means = means.reshape(len(classes), -1)
    if two:
        reference = arrays["mean_difference"]
        what = "difference of the class means"
        toward = "mean perturbation toward"
    else:
        reference = arrays["mean_of_class"]
        what = "class mean less the mean of all"
        toward = "toward"
    # One difference is that of both classes.
    reference = np.reshape(reference, (-1, means.shape[1]))
    reference = np.resize(reference, means.shape)
    colours = class_colours(classes)
    fig = figure(5.2, 3.4)
    axis = fig.add_subplot()
    x = scaled(reference)
    y = scaled(means)
    for row, mean, name, colour in zip(x, y, classes, colours, strict=True):
        drawn = axis.scatter(row, mean, s=8, color=colour, label=f"{toward} {name}")
        name_points(drawn, [f"coordinate {i}" for i in range(len(row))])
    cross(axis, 0.5)
    axis.set_xlabel(f"{what}, coordinate by coordinate (scaled)")
    axis.set_ylabel("mean perturbation (scaled)")
    if two:
        axis.legend()
    elif len(classes) <= LABELLED:
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=points(7))
    return fig
