"""The figure of the robustness frontier, and its numbers as text, from one summary."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perturbkernel.report.numbers import name_points
from perturbkernel.report.plots import F_COLOUR, G_COLOUR, GREY, MINUS, PLUS, figure, styled
from perturbkernel.reproduce.records import Arrays, Json, Results
from perturbkernel.reproduce.studies.curves import in_percent, spread

_STYLES = {
    "early stopping": ("early stopping: training time", F_COLOUR, "o-"),
    "ridge": ("ridge: its value", GREY, "v-"),
    "perturbed features": ("adversarial training, features: radius", G_COLOUR, "s-"),
    "perturbed inputs": ("adversarial training, inputs, to the end: size", MINUS, "^-"),
    "perturbed inputs, stopped early": ("the same, stopped early: size", PLUS, "D-"),
}


def summarise(results: Results) -> Json:
    """Every number of the figure, as JSON holds it: means over seeds with the least and the
    largest.

    "ways": way -> "values" and "scores", whose "mean", "low" and "high" are (values, 1 + sizes),
    clean accuracy first; "certified" likewise of the ways and values that have it, (values,
    sizes). "setting". Any subset of cells will do.
    """
    if not results:
        return {"ways": {}, "certified": {}, "setting": {}}
    first, _ = results[0]
    all_arrays = [arrays for _, arrays in results]
    found: Json = {}
    certified: Json = {}
    for way, values in first["ways"].items():
        samples = [arrays[way] for arrays in all_arrays]
        scores = spread(np.array(samples))
        found[way] = {"values": values, "scores": scores}
        chosen = first["certified"].get(way, ())
        proved = [value for value in values if value in chosen]
        if proved:
            rows = [values.index(value) for value in proved]
            samples = [_below(arrays, way, rows) for arrays in all_arrays]
            scores = spread(np.array(samples))
            certified[way] = {"values": proved, "scores": scores}
    names = ("n", "test", "digits", "sizes", "steps", "certified_points")
    setting = {name: first[name] for name in names}
    setting["seeds"] = len(results)
    return {"ways": found, "certified": certified, "setting": setting}


def _below(arrays: Arrays, way: str, rows: list[int]) -> np.ndarray:
    """An estimate of certified accuracy: that under attack, of all points, less the share that
    neither decides, of a few.
    """
    attacked = arrays[way][rows, 1:]
    left = attacked - arrays[f"undecided {way}"]
    return np.maximum(left, 0)


@styled
def draw(results: Results) -> Figure:
    """Robust accuracy against clean accuracy along every way, a panel for each size."""
    summary = summarise(results)
    setting = summary["setting"]
    sizes = setting["sizes"]
    panels = len(sizes)
    fig = figure(1.5 + 4.2 * panels, 4.6)
    axes = fig.subplots(1, panels, squeeze=False)[0]
    for place, size in enumerate(sizes, 1):  # place 0 of the scores is clean accuracy
        axis = axes[place - 1]
        for way, found in summary["ways"].items():
            _way(axis, way, found, place)
            if way in summary["certified"]:
                _certified(axis, way, summary, place)
        axis.set_title(f"perturbations of size {size:g} (l2)")
        axis.set_xlabel("clean accuracy")
        axis.set_ylabel("robust accuracy")
        axis.set_ylim(-0.03, 1.0)
    axis = axes[0]
    axis.plot([], [], "--", color=F_COLOUR, lw=1, label=_certified_label(setting))
    lines, labels = axis.get_legend_handles_labels()
    fig.legend(lines, labels, loc="outside lower center", ncols=2, fontsize=8)
    fig.suptitle(_title(setting), fontsize=10, x=0.01, ha="left")
    return fig


def _title(setting: Json) -> str:
    first, second = setting["digits"]
    return (
        "Clean against robust accuracy of wide networks: stopped early, with a ridge, or trained "
        "against perturbed features or inputs.\n"
        f"Digits {first} and {second}, {setting['n']} to learn, {setting['test']} new ones, draws: "
        f"{setting['seeds']}; numbers along a curve are what it varies, as the legend says."
    )


def _way(axis: Axes, way: str, found: Json, place: int) -> None:
    label, colour, line = _STYLES[way]
    mean = np.array(found["scores"]["mean"])
    clean = mean[:, 0]
    robust = mean[:, place]
    (drawn,) = axis.plot(clean, robust, line, color=colour, ms=4, lw=1, label=label)
    name_points(drawn, [_named(value) for value in found["values"]])
    for value, x, y in zip(found["values"], clean, robust, strict=True):
        axis.annotate(
            _named(value),
            (x, y),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=7,
            color=colour,
        )


def _certified(axis: Axes, way: str, summary: Json, place: int) -> None:
    """What is certified, below the same networks' accuracy under attack."""
    of_way = summary["ways"][way]
    found = summary["certified"][way]
    scores = np.array(of_way["scores"]["mean"])
    proved = np.array(found["scores"]["mean"])
    rows = [of_way["values"].index(value) for value in found["values"]]
    clean = scores[rows, 0]
    certified = proved[:, place - 1]
    _, colour, (marker, *_) = _STYLES[way]
    axis.plot(clean, certified, f"{marker}--", color=colour, ms=4, lw=1, mfc="white")


def _certified_label(setting: Json) -> str:
    count = setting["certified_points"]
    return f"solid: under attack; dashed: certified, estimated (gap at {count} points)"


def _named(value: Any) -> str:
    return "∞" if value == "inf" else f"{value:g}"


def text(results: Results) -> str:
    """Every mean of the summary in %, as lines."""
    summary = summarise(results)
    lines = []
    setting = summary["setting"]
    certified = summary["certified"]
    for way, found in summary["ways"].items():
        sizes = ", ".join(f"{size:g}" for size in setting["sizes"])
        words, *_ = _STYLES[way]
        lines.append(f"{words}; clean accuracy, and under attack of size {sizes}")
        lines += _rows(found)
        if way in certified:
            count = setting["certified_points"]
            lines.append(f"  certified for {sizes}, the gap from {count} points")
            lines += _rows(certified[way])
    return "\n".join(lines)


def _rows(found: Json) -> list[str]:
    means = found["scores"]["mean"]
    named = zip(found["values"], means, strict=True)
    return [in_percent(_named(value), row, width=10) for value, row in named]
