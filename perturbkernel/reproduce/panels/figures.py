"""Figures of the reproduction: a panel's curves beside the published values, and the decision maps."""

from collections.abc import Mapping
from typing import Any

import numpy as np
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
from perturbkernel.reproduce.panels.assemble import Curve
from perturbkernel.reproduce.panels.specification import Map, Panel

LIMIT, NETWORK = PLUS, MINUS

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

# Curve -> (label, colour, line, whether its band is drawn).
_LOOKS = {
    "limit": ("kernel limit, random initial functions", LIMIT, "-", True),
    "limit_zero": ("kernel limit, initial functions zero", LIMIT, ":", False),
    "limit_balanced": ("kernel limit, balanced targets", G_COLOUR, "-.", False),
    "network": ("networks, best of the rates", NETWORK, "-", True),
    "network_grid": ("networks, mean over rates", NETWORK, ":", False),
}


def curve_label(name: str) -> str:
    """A curve's name in the legend."""
    base, _, scaled = name.partition(" ")
    return _LOOKS[base][0] + (", scaled sizes" if scaled else "")


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
    carrier = "perturbations alone" if s.scenario == "a" else "perturbed data"
    return (
        f"{s.data.replace('_', ' ')}, scenario ({s.scenario}): {carrier}, {s.loss} loss; "
        + ", ".join(text for name, text in told.items() if name != p.varies)
    )


@styled
def panel_figure(p: Panel, curves: Mapping[str, Mapping[str, Curve]], note: str = "") -> Figure:
    """One small axis a quantity: published values, kernel limit and finite networks against what
    the panel varies.
    """
    quantities = list(p.curves)
    fig = figure(3.1 * len(quantities) + 0.6 if len(quantities) > 1 else 5.2, 3.9)
    axes = fig.subplots(1, len(quantities), sharey=True, squeeze=False)[0]
    positive = [v for v in (*p.values, *(v * p.axis_factor for v in p.published_values)) if v > 0]
    logarithmic = p.varies not in ("slope", "size") and max(positive) / min(positive) > 15
    for axis, quantity in zip(axes, quantities, strict=True):
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
        for name, curve in curves[quantity].items():
            base, _, scaled = name.partition(" ")
            _, colour, line, band = _LOOKS[base]
            if scaled and base not in ("limit", "network"):
                continue
            style = {
                "color": colour,
                "ls": "--" if scaled else line,
                "lw": 1.1 if line == ":" or scaled else 1.7,
            }
            if base == "limit" and quantity == "standard" and "limit_zero" in curves[quantity]:
                style["zorder"] = 3
            axis.plot(p.values, curve["mean"], marker=".", ms=5, label=curve_label(name), **style)
            if band and not scaled:
                axis.fill_between(
                    p.values, curve["low"], curve["high"], color=colour, alpha=0.15, lw=0
                )
        if logarithmic:
            axis.set_xscale("log")
        axis.set(
            title=TITLES[quantity],
            xlabel=_AXES[p.varies],
            ylim=(-0.03 if quantity == "cosine" else 0.2, 1.04),
        )
    axes[0].set_ylabel("cosine" if quantities == ["cosine"] else "share of points")
    handles: dict[str, Any] = {}
    for axis in axes:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    fig.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=3 if len(axes) > 1 else 2,
        fontsize=7.5,
    )
    lines = [
        p.id,
        describe(p),
        *([f"reduced: {p.reduction}"] if p.reduction else []),
        *([note] if note else []),
    ]
    fig.suptitle("\n".join(lines), fontsize=8.5, x=0.01, ha="left")
    return fig


@styled
def map_figure(m: Map, maps: Mapping[str, Mapping[str, np.ndarray]], note: str = "") -> Figure:
    """Where both networks decide alike, the theory's two boundaries, and the inputs; one axis a
    mode.
    """
    fig = figure(4.3 * len(maps) + 0.9, 4.9)
    axes = fig.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    ticks = np.linspace(*m.limits, m.grid)
    for axis, (mode, values) in zip(axes, maps.items(), strict=True):
        lines = (
            ("f_hat", F_COLOUR, "-", "theory: f-hat = 0"),
            ("g_hat", G_COLOUR, "--", "theory: g-hat = 0"),
        )
        same = map_axes(
            axis,
            ticks,
            ticks,
            values["f"],
            values["g"],
            values["points"],
            values["labels"],
            ("+1", "-1"),
            [(values[name], *look) for name, *look in lines],
        )
        title = "kernel limit" if mode == "limit" else f"networks of width {m.setting.width:,}"
        axis.set(
            title=f"{title}: same decision on {same:.1%} of the plane", xlim=m.limits, ylim=m.limits
        )
        axis.set_xlabel("along the mean of the +1 inputs")
    axes[0].set_ylabel("along the mean of the -1 inputs")
    handles, labels = axes[-1].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, markerscale=2)
    s = m.setting
    told = f"scenario ({s.scenario}), n = {s.n:,}, d = {s.d:,}, size {s.size:g}; grey: different decisions"
    lines = [m.id, told, f"published look: {m.published_look.replace('^', '-hat')}"]
    lines += [f"reduced: {m.reduction}"] if m.reduction else []
    fig.suptitle(
        "\n".join(lines + ([note] if note else [])), fontsize=8, x=0.01, ha="left", wrap=True
    )
    return fig
