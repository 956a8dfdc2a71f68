"""Figures of the reproduction: a panel's curves beside the published values, and decision maps."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perturbkernel.report.plots import (
    F_COLOUR,
    G_COLOUR,
    GREY,
    MINUS,
    PLUS,
    figure,
    map_axes,
    styled,
)
from perturbkernel.reproduce.panels.assemble import Curve, Curves
from perturbkernel.reproduce.panels.specification import Map, Panel
from perturbkernel.reproduce.records import Json

LIMIT, NETWORK, LAW = PLUS, MINUS, "#7b3294"

TITLES = {
    "standard": "Standard: first network\non its training data",
    "perturbation": "Perturbation: second network\non clean data, true labels",
    "agreement": "Agreement of the two\non fresh points",
    "cosine": "Cosine of perturbations with the theory's direction",
}
_AXES = {
    "d": "dimension d",
    "n": "training points n",
    "size": "perturbation size",
    "width": "width",
    "slope": "slope of the leaky ReLU",
    "steps_f": "training steps of the first network",
    "steps_g": "training steps of the second network",
}


class _Look(NamedTuple):
    """How a curve is drawn; a main one with its band, and again where sizes are scaled."""

    label: str
    colour: str
    line: str
    main: bool = False


_LOOKS = {
    "limit": _Look("kernel limit, random initial functions", LIMIT, "-", main=True),
    "limit_zero": _Look("kernel limit, initial functions zero", LIMIT, ":"),
    "limit_balanced": _Look("kernel limit, balanced targets", G_COLOUR, "-."),
    "network": _Look("networks, best of the rates", NETWORK, "-", main=True),
    "network_grid": _Look("networks, mean over rates", NETWORK, ":"),
    "law": _Look("law of one neuron, best of the rates", LAW, "-", main=True),
    "law_grid": _Look("law of one neuron, mean over rates", LAW, ":"),
}


def curve_label(name: str) -> str:
    """A curve's name in the legend."""
    base, _, scaled = name.partition(" ")
    label = _LOOKS[base].label
    return f"{label}, scaled sizes" if scaled else label


def describe(p: Panel) -> str:
    """The panel's setting in a line."""
    s = p.settings[-1]
    told = {
        "n": f"n = {s.n:,}",
        "d": f"d = {s.d:,}",
        "width": f"width {s.width:,}",
        "size": "size in proportion to √d" if p.varies == "d" else f"size {s.size:g}",
        "steps_f": f"{s.steps_f:,} steps",
        "slope": f"slope {s.slope:g}",
    }
    if s.is_image:
        del told["n"], told["d"]
    told.pop(p.varies, None)
    data = s.data.replace("_", " ")
    carrier = "perturbations alone" if s.scenario == "a" else "perturbed data"
    fixed = ", ".join(told.values())
    return f"{data}, scenario ({s.scenario}): {carrier}, {s.loss} loss; {fixed}"


def describe_map(m: Map) -> str:
    """The setting of a decision map in a line."""
    s = m.setting
    data = s.data.replace("_", " ")
    return f"decision map: {data}, n = {s.n:,}, d = {s.d:,}, size {s.size:g}"


@styled
def panel_figure(p: Panel, curves: Curves, note: str = "") -> Figure:
    """One small axis a quantity: published values, kernel limit and finite networks against what
    the panel varies.
    """
    quantities = list(p.curves)
    width = 3.1 * len(quantities) + 0.6 if len(quantities) > 1 else 5.2
    fig = figure(width, 3.9)
    axes = fig.subplots(1, len(quantities), sharey=True, squeeze=False)[0]
    scale = "log" if _is_logarithmic(p) else "linear"
    for axis, quantity in zip(axes, quantities, strict=True):
        _draw_quantity(axis, p, quantity, curves[quantity])
        lowest = -0.03 if quantity == "cosine" else 0.2
        axis.set(title=TITLES[quantity], xlabel=_AXES[p.varies], xscale=scale, ylim=(lowest, 1.04))
    axes[0].set_ylabel("cosine" if quantities == ["cosine"] else "share of points")
    handles: Json = {}
    for axis in axes:
        drawn, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, drawn, strict=True))
    fig.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=3 if len(axes) > 1 else 2,
        fontsize=7.5,
    )
    reduced = f"reduced: {p.reduction}" if p.reduction else ""
    title = _lines(p.id, describe(p), reduced, note)
    fig.suptitle(title, fontsize=8.5, x=0.01, ha="left")
    return fig


def _lines(*lines: str) -> str:
    """The lines that are not empty."""
    return "\n".join(filter(None, lines))


def _is_logarithmic(p: Panel) -> bool:
    """Whether what the panel varies is one of magnitude and spans more than one."""
    if p.varies in ("slope", "size"):
        return False
    published = [value * p.axis_factor for value in p.published_values]
    positive = [value for value in (*p.values, *published) if value > 0]
    return max(positive) / min(positive) > 15


def _draw_quantity(axis: Axes, p: Panel, quantity: str, curves: Mapping[str, Curve]) -> None:
    """Published values and curves on one axis."""
    if quantity != "cosine":
        axis.axhline(0.5, color=GREY, lw=0.6, ls=(0, (1, 2)))
    published = p.published.get(quantity)
    if published is not None:
        axis.plot(
            np.array(p.published_values) * p.axis_factor,
            published,
            "o",
            ms=4.5,
            mfc="none",
            color=F_COLOUR,
            label="published (best of the rates)",
            zorder=5,
        )
    for name, curve in curves.items():
        base, _, scaled = name.partition(" ")
        look = _LOOKS[base]
        if scaled and not look.main:
            continue
        style: Json = {
            "color": look.colour,
            "ls": "--" if scaled else look.line,
            "lw": 1.1 if look.line == ":" or scaled else 1.7,
        }
        if base == "law" and not scaled:
            # Broad and pale, beneath the line of trained networks, which lies on it.
            style |= {"lw": 4.5, "alpha": 0.5, "zorder": 1.8}
        # The first network's curve without initial functions is dotted upon the solid one.
        if base == "limit" and quantity == "standard" and "limit_zero" in curves:
            style["zorder"] = 3
        axis.plot(p.values, curve["mean"], marker=".", ms=5, label=curve_label(name), **style)
        if look.main and not scaled:
            low, high = curve["low"], curve["high"]
            axis.fill_between(p.values, low, high, color=look.colour, alpha=0.15, lw=0)


@styled
def map_figure(m: Map, maps: Mapping[str, Mapping[str, np.ndarray]], note: str = "") -> Figure:
    """Where both networks decide alike, the theory's two boundaries, and the inputs; one axis a
    mode.
    """
    fig = figure(4.3 * len(maps) + 0.9, 4.9)
    axes = fig.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    ticks = np.linspace(*m.limits, m.grid)
    for axis, (mode, values) in zip(axes, maps.items(), strict=True):
        boundaries = [
            (values["f_hat"], F_COLOUR, "-", "theory: f-hat = 0"),
            (values["g_hat"], G_COLOUR, "--", "theory: g-hat = 0"),
        ]
        same = map_axes(
            axis,
            ticks,
            ticks,
            values["f"],
            values["g"],
            values["points"],
            values["labels"],
            ("+1", "-1"),
            boundaries,
        )
        networks = "kernel limit" if mode == "limit" else f"networks of width {m.setting.width:,}"
        title = f"{networks}: same decision on {same:.1%} of the plane"
        axis.set(title=title, xlim=m.limits, ylim=m.limits)
        axis.set_xlabel("along the mean of the +1 inputs")
    axes[0].set_ylabel("along the mean of the -1 inputs")
    handles, labels = axes[-1].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, markerscale=2)
    s = m.setting
    told = (
        f"scenario ({s.scenario}), n = {s.n:,}, d = {s.d:,}, size {s.size:g}; "
        "grey: different decisions"
    )
    look = f"published look: {m.published_look.replace('^', '-hat')}"
    reduced = f"reduced: {m.reduction}" if m.reduction else ""
    title = _lines(m.id, told, look, reduced, note)
    fig.suptitle(title, fontsize=8, x=0.01, ha="left", wrap=True)
    return fig
