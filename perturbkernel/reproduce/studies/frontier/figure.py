"""The figure of the robustness frontier, and its numbers as text, from one summary."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perturbkernel.report.plots import F_COLOUR, G_COLOUR, MINUS, PLUS, figure, styled
from perturbkernel.reproduce.records import Json, Results
from perturbkernel.reproduce.studies.curves import in_percent, spread

_STYLES = {
    "early stopping": ("early stopping: training time", F_COLOUR, "o-"),
    "perturbed features": ("adversarial training, features: radius", G_COLOUR, "s-"),
    "perturbed inputs": ("adversarial training, inputs, to the end: size", MINUS, "^-"),
    "perturbed inputs, stopped early": ("the same, stopped early: size", PLUS, "D-"),
}


def summarise(results: Results) -> Json:
    """Every number of the figure, as JSON holds it: means over seeds with the least and the
    largest.

    "ways": way -> "values" and "scores", whose "mean", "low" and "high" are (values, 1 + sizes),
    clean accuracy first. "setting". Any subset of cells will do.
    """
    if not results:
        return {"ways": {}, "setting": {}}
    first, _ = results[0]
    found: Json = {}
    for way, values in first["ways"].items():
        samples = [arrays[way] for _, arrays in results]
        scores = spread(np.array(samples))
        found[way] = {"values": values, "scores": scores}
    names = ("n", "test", "digits", "sizes", "steps")
    setting = {name: first[name] for name in names}
    return {"ways": found, "setting": setting | {"seeds": len(results)}}


@styled
def draw(results: Results) -> Figure:
    """Robust accuracy against clean accuracy along every way, a panel for each size."""
    summary = summarise(results)
    setting = summary["setting"]
    sizes = setting["sizes"]
    fig = figure(1.5 + 4.2 * len(sizes), 4.6)
    axes = np.ravel(fig.subplots(1, len(sizes), squeeze=False))
    for i, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
        for way, found in summary["ways"].items():
            _way(axis, way, found, i + 1)
        axis.set(
            title=f"perturbations of size {size:g} (l2)",
            xlabel="clean accuracy",
            ylabel="robust accuracy (under attack)",
            ylim=(-0.03, 1.0),
        )
    lines, labels = axes[0].get_legend_handles_labels()
    fig.legend(lines, labels, loc="outside lower center", ncols=2, fontsize=8)
    first, second = setting["digits"]
    fig.suptitle(
        "Clean against robust accuracy of wide networks: stopped early, or trained against "
        "perturbed features or inputs.\n"
        f"Digits {first} and {second}, {setting['n']} to learn, {setting['test']} new ones, draws: "
        f"{setting['seeds']}; numbers along a curve are what it varies, as the legend says.",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    return fig


def _way(axis: Axes, way: str, found: Json, place: int) -> None:
    label, colour, line = _STYLES[way]
    mean = np.array(found["scores"]["mean"])
    clean = mean[:, 0]
    robust = mean[:, place]
    axis.plot(clean, robust, line, color=colour, ms=4, lw=1, label=label)
    for value, x, y in zip(found["values"], clean, robust, strict=True):
        place_of = {"xytext": (4, 3), "textcoords": "offset points"}
        axis.annotate(_named(value), (x, y), fontsize=7, color=colour, **place_of)


def _named(value: Any) -> str:
    return "∞" if value == "inf" else f"{value:g}"


def text(results: Results) -> str:
    """Every mean of the summary in %, as lines."""
    summary = summarise(results)
    lines = []
    for way, found in summary["ways"].items():
        numbers = [f"{size:g}" for size in summary["setting"]["sizes"]]
        sizes = ", ".join(numbers)
        words, *_ = _STYLES[way]
        lines.append(f"{words}; clean accuracy, and under attack of size {sizes}")
        rows = found["scores"]["mean"]
        for value, row in zip(found["values"], rows, strict=True):
            name = _named(value)
            line = in_percent(name, row, width=10)
            lines.append(line)
    return "\n".join(lines)
