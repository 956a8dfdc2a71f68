"""The figure of the study of trained networks' kernels, and its numbers as text, from one
summary.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perturbkernel.report.plots import F_COLOUR, G_COLOUR, GREY, MINUS, PLUS, figure, styled
from perturbkernel.reproduce.records import Json, Results
from perturbkernel.reproduce.studies.curves import curve, draw_band, in_percent

_SCENARIOS = ("perturbations alone", "perturbed digits")
_SOURCES = ("of the network", "of f")
_STARTS = ("fresh start", "checkpoint")
_VICTIMS = ("network", "f")
_ATTACKS = ("attack on the network", "attack on f", "random directions")
_TRAININGS = ("trained on digits", "trained on perturbed digits")
_ALIGNMENT = "alignment of the kernel with the labels"
_COLOURS = (PLUS, MINUS)
_LINES = ("o-", "s--")


def summarise(results: Results) -> Json:
    """Every number of the figure, as JSON holds it: means over seeds with the least and the
    largest.

    "epochs", "curves": label -> {"mean", "low", "high"}, a number a checkpoint, in the order of the
    text; "setting". Any subset of cells will do.
    """
    if not results:
        return {"epochs": [], "curves": {}, "setting": {}}
    config, _ = results[0]
    names = ("n", "test", "digits", "size", "radius", "width", "second")
    setting = {name: config[name] for name in names}
    setting["seeds"] = len(results)
    stacked = {}
    for name in results[0][1]:
        arrays = [arrays[name] for _, arrays in results]
        stacked[name] = np.stack(arrays)
    curves = {}
    for label, (name, *place) in _places().items():
        samples = stacked[name][..., *place]
        curves[label] = curve(samples.T)
    return {"epochs": config["epochs"], "curves": curves, "setting": setting}


def _places() -> dict[str, tuple[Any, ...]]:
    """Label of a curve -> the array that has it, and where past seeds and checkpoints."""
    found: dict[str, tuple[Any, ...]] = {_ALIGNMENT: ("alignment",)}
    for i, victim in enumerate(_VICTIMS):
        found[f"{victim}, new digits"] = ("first", i)
    for j, source in enumerate(_SOURCES):
        for k, scenario in enumerate(_SCENARIOS):
            found |= _places_of_second(f"{scenario} {source}", (j, k))
    for i, victim in enumerate(_VICTIMS):
        for j, attack in enumerate(_ATTACKS):
            found[f"{victim}, {attack}"] = ("moved", i, j)
        for j, training in enumerate(_TRAININGS):
            label = f"{victim}, {training}"
            found[f"{label}: clean"] = ("clean", i, j)
            found[f"{label}: attacked"] = ("robust", i, j)
    return found


def _places_of_second(what: str, place: tuple[int, int]) -> dict[str, tuple[Any, ...]]:
    """Those of the second networks that one kind of perturbations teaches."""
    found: dict[str, tuple[Any, ...]] = {}
    for i, start in enumerate(_STARTS):
        found[f"second network, {what}; {start}"] = ("learned", *place, i)
        found[f"its kernel's g, {what}; {start}"] = ("predicted", *place, i)
    for i, start in enumerate(_STARTS):
        for j, at in enumerate(_STARTS):
            end = f"{what}; network {start}, kernel {at}"
            found[f"same sign, {end}"] = ("agreement", *place, i, j)
            found[f"by chance, {end}"] = ("by_chance", *place, i, j)
    return found


@styled
def draw(results: Results) -> Figure:
    """Above: what second networks learn, beside g. Below: signs of both, the attack on one against
    the other, and kernels of adversarial training.
    """
    summary = summarise(results)
    fig = figure(15, 8.6)
    if not results:
        return fig
    above, below = fig.subplots(2, 4, sharey=True)
    kinds = itertools.product(_SCENARIOS, _SOURCES)
    for axis, (scenario, source) in zip(above, kinds, strict=True):
        _learned(_Panel(axis, summary), f"{scenario} {source}")
    drawings = (_agreement, _transfer, _robust, _first)
    for axis, draw_panel in zip(below, drawings, strict=True):
        draw_panel(_Panel(axis, summary))
    for axis in (*above, *below):
        _finish(axis, summary["epochs"])
    above[0].set_ylabel("accuracy on new digits")
    below[0].set_ylabel("share of new digits")
    fig.suptitle(_title(summary["setting"]), fontsize=10, x=0.01, ha="left")
    return fig


def _title(setting: Json) -> str:
    first, second = setting["digits"]
    return (
        "The kernel of a network in training: what second networks learn from perturbations, and "
        "what the kernel at their start predicts.\n"
        f"Digits {first} and {second}, {setting['n']} to learn and {setting['test']} new ones; "
        f"perturbations of l2 length {setting['size']:g}; {setting['seeds']} seeds, bands: all of "
        "them."
    )


class _Panel(NamedTuple):
    """A panel, and the summary whose curves are drawn in it."""

    axis: Axes
    summary: Json

    def plot(self, curve: str, line: str, colour: str, label: str) -> None:
        """Draws one curve with its band."""
        values = self.summary["curves"][curve]
        x = np.arange(len(self.summary["epochs"]))
        self.axis.plot(x, values["mean"], line, ms=4, color=colour, label=label)
        draw_band(self.axis, x, values, colour)


def _learned(panel: _Panel, what: str) -> None:
    for start, colour in zip(_STARTS, _COLOURS, strict=True):
        end = f"{what}; {start}"
        panel.plot(f"second network, {end}", "o-", colour, label=f"network, {start}")
        panel.plot(f"its kernel's g, {end}", "s--", colour, label=f"g, {start}")
    panel.axis.set_title(what)


def _agreement(panel: _Panel) -> None:
    """Perturbations of f alone: what the closed form is about."""
    what = f"{_SCENARIOS[0]} {_SOURCES[1]}"
    curves = panel.summary["curves"]
    pairs = itertools.product(_STARTS, _STARTS)
    colours = (PLUS, F_COLOUR, G_COLOUR, MINUS)
    for (start, at), colour in zip(pairs, colours, strict=True):
        label = f"network {start}, kernel {at}"
        panel.plot(f"same sign, {what}; {label}", "o-", colour, label)
        chance = curves[f"by chance, {what}; {label}"]
        panel.axis.plot(chance["mean"], ":", color=colour, lw=1)
    panel.axis.set_title(f"network and g: same sign\n({what}; dotted: by chance)")


def _transfer(panel: _Panel) -> None:
    colours = (PLUS, MINUS, GREY)
    for victim, line in zip(_VICTIMS, _LINES, strict=True):
        for attack, colour in zip(_ATTACKS, colours, strict=True):
            label = f"{victim}, {attack}"
            panel.plot(label, line, colour, label)
    size = panel.summary["setting"]["size"]
    panel.axis.set_title(f"moved by {size:g}")


def _robust(panel: _Panel) -> None:
    for victim, line in zip(_VICTIMS, _LINES, strict=True):
        for training, colour in zip(_TRAININGS, _COLOURS, strict=True):
            label = f"{victim}, {training}"
            panel.plot(f"{label}: attacked", line, colour, label)
    radius = panel.summary["setting"]["radius"]
    panel.axis.set_title(f"each under its own attack of {radius:g}")


def _first(panel: _Panel) -> None:
    for victim, colour in zip(_VICTIMS, _COLOURS, strict=True):
        panel.plot(f"{victim}, new digits", "o-", colour, label=f"{victim}: accuracy")
    panel.plot(_ALIGNMENT, "^-", G_COLOUR, label="alignment of kernel and labels")
    panel.axis.set_title("first network, f, and the kernel")


def _finish(axis: Axes, epochs: list[int]) -> None:
    axis.axhline(0.5, color=GREY, lw=0.6, ls=(0, (1, 2)))
    axis.set_xlabel("epochs of the first network")
    axis.set_ylim(-0.04, 1.04)
    ticks = [str(epoch) for epoch in epochs]
    axis.set_xticks(range(len(epochs)), ticks)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=7, ncols=1)


def text(results: Results) -> str:
    """Every mean of the summary in %, as lines."""
    summary = summarise(results)
    if not results:
        return ""
    places = ", ".join(map(str, summary["epochs"]))
    lines = [f"epochs = {places}"]
    for label, values in summary["curves"].items():
        lines.append(in_percent(label, values["mean"], width=88))
    return "\n".join(lines)
