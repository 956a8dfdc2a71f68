"""One perturbation that grows: a row of pictures, and the same with a slider inside a page."""

import base64
import html
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perturbkernel.report.captions import title_of_sample
from perturbkernel.report.drawing import (
    F_COLOUR,
    G_COLOUR,
    GREY,
    Arrays,
    figure,
    largest,
    plain,
    points,
    styled,
)
from perturbkernel.report.pictures import as_picture, in_range

_FRAMES = 6
# So many entries of pictures are sent with a page at most, some hundred kilobytes.
_ENTRIES = 150_000


@styled
def growing(
    arrays: Arrays, classes: Sequence[str], image_shape: Sequence[int], size: float
) -> Figure:
    """A sampled point under its perturbation of several sizes, and the margins of both networks.

    Uses `growth_*`, the fields of `learning.curves.Growth`, and `growth_sample`, the places of its
    points among `sample_inputs`, `sample_deltas` of `size`, `sample_targets`, and `sample_labels`
    if known.

    Example:
        >>> sample = {"sample_inputs": np.eye(4)[:1], "sample_deltas": np.ones((1, 4))}
        >>> sample |= {"sample_targets": np.array([-1]), "growth_sample": np.array([0])}
        >>> margins = np.array([[-1.0, 1.0]])
        >>> found = {"growth_size": np.arange(2), "growth_margin_f": margins}
        >>> found |= {"growth_margin_g": margins, "growth_decision_f": np.array([[0, 1]])}
        >>> found["growth_decision_g"] = found["growth_decision_f"]
        >>> growing(sample | found, ("cat", "dog"), (2, 2), 1.0).axes[-1].get_ylabel()
        'margin toward dog (scaled)'
    """
    names = [plain(name) for name in classes]
    inputs, delta = _in_units_of_pictures(arrays, image_shape, size)
    sizes = arrays["growth_size"]
    steps = np.linspace(0, len(sizes) - 1, _FRAMES).round().astype(int)
    fig = figure(1.25 * _FRAMES + 3.6, 2.1)
    grid = fig.add_gridspec(1, _FRAMES + 1, width_ratios=[1] * _FRAMES + [2.2])
    last = len(sizes) - 1
    for i, step in enumerate(steps):
        axis = fig.add_subplot(grid[0, i])
        part = step / last
        frame = np.clip(inputs[0] + part * delta[0], 0, 1)
        axis.imshow(frame, cmap="gray_r", vmin=0, vmax=1)
        decided = []
        for network in "fg":
            decision = arrays[f"growth_decision_{network}"][0, step]
            decided.append(f"{network}: {names[decision]}")
        axis.set_title(f"size {sizes[step]:.3g}", fontsize=points(8))
        axis.set_xlabel("\n".join(decided), fontsize=points(8))
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    _, aim = title_of_sample(arrays, names, arrays["growth_sample"][0])
    _margins(fig.add_subplot(grid[0, -1]), arrays, aim)
    return fig


def _margins(axis: Axes, arrays: Arrays, aim: str) -> None:
    axis.axhline(0, color=GREY, lw=0.7)
    for name, colour, line in (("f", F_COLOUR, "-"), ("g", G_COLOUR, "--")):
        margin = arrays[f"growth_margin_{name}"][0]
        label = f"{name}, scaled"
        axis.plot(arrays["growth_size"], margin / largest(margin), line, color=colour, label=label)
    axis.set(xlabel="size of the perturbation", ylabel=f"margin toward {aim} (scaled)")
    axis.legend(fontsize=points(8))


def _in_units_of_pictures(
    arrays: Arrays, image_shape: Sequence[int], size: float
) -> tuple[np.ndarray, np.ndarray]:
    """Points, between 0 and 1, and their perturbations at the largest size."""
    sample = arrays["growth_sample"]
    every = np.asarray(arrays["sample_inputs"], float)
    scaled = in_range(every)
    width = np.ptp(every) / (np.ptp(scaled) or 1) or 1
    deltas = np.asarray(arrays["sample_deltas"], float)[sample] / width
    unit = arrays["growth_size"][-1] / size
    inputs = np.stack([as_picture(row, image_shape) for row in scaled[sample]])
    return inputs, unit * np.stack([as_picture(row, image_shape) for row in deltas])


def slider(arrays: Arrays, classes: Sequence[str], image_shape: Sequence[int], size: float) -> str:
    """The same of every point of the sample, drawn by `slider.js`; "" if pictures are too large.

    For example:

        html_figure("growing", picture, stage=slider(arrays, classes, image_shape, size))
    """
    inputs, delta = _in_units_of_pictures(arrays, image_shape, size)
    count = min(len(inputs), _ENTRIES // (2 * inputs[0].size))
    if count == 0:
        return ""
    shape = inputs.shape[1:] + (() if inputs.ndim == 4 else (1,))
    sizes = arrays["growth_size"]
    told = {
        "shape": shape,
        "sizes": len(sizes),
        "largest": float(sizes[-1]),
        "classes": list(classes),
        "points": [
            {"name": f"{i + 1}: {name}"} | _point(arrays, i, inputs[i], delta[i])
            for i, name in enumerate(_names(arrays, classes)[:count])
        ],
    }
    # Inside a script nothing is escaped, and no "</script>" may be.
    text = json.dumps(told, separators=(",", ":")).replace("<", "\\u003c")
    return f"""<div class="growth" hidden><script type="application/json">{text}</script>
<div class="part"><canvas role="img" aria-label="the perturbed picture"></canvas>
<small>perturbed</small></div>
<div class="part"><canvas role="img" aria-label="the perturbation"></canvas>
<small>perturbation</small></div>
<div class="controls"><label>Point <select></select></label>
<label>Size of its perturbation <input type="range" min="0" value="0"></label>
<output aria-live="polite"></output>
<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="margins of f and g"
height="120"><line x1="0" x2="100" y1="50" y2="50"/><line class="now" y1="0" y2="100"/>
<polyline class="f"/><polyline class="g"/></svg>
<small>{
        html.escape(
            "Margins toward the target: f solid, g dashed, each scaled; above the line "
            "it reads the target."
        )
    }</small></div></div>"""


def _names(arrays: Arrays, classes: Sequence[str]) -> list[str]:
    titles = [title_of_sample(arrays, classes, i) for i in arrays["growth_sample"]]
    return [f"{name}, toward {aim}" for name, aim in titles]


def _point(arrays: Arrays, i: int, inputs: np.ndarray, delta: np.ndarray) -> dict[str, Any]:
    """Pictures of a point and of its perturbation, and what both networks say of it."""
    limit = largest(delta)
    told: dict[str, Any] = {
        "inputs": _bytes(255 * inputs),
        "delta": _bytes(128 + 127 * delta / limit),
        "limit": round(limit, 5),
        "decisions": {},
    }
    for network in "fg":
        margin = arrays[f"growth_margin_{network}"][i]
        told[network] = [round(float(value), 3) for value in margin / largest(margin)]
        told["decisions"][network] = arrays[f"growth_decision_{network}"][i].tolist()
    return told


def _bytes(values: np.ndarray) -> str:
    whole = np.clip(np.round(values), 0, 255).astype(np.uint8)
    return base64.b64encode(whole.tobytes()).decode()
