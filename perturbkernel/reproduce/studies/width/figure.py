"""The figure of the study against width, from its summary alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from perturbkernel.report.plots import F_COLOUR, G_COLOUR, GREY, MINUS, PLUS, figure, styled
from perturbkernel.reproduce.records import Json, Results
from perturbkernel.reproduce.studies.width.summary import summarise


class Line(NamedTuple):
    """A quantity of the summary, its name in the legend, its colour.

    fitted: whether it is a power with a line and a rate; slope: whether to draw the theory's slope
    beside it.
    """

    name: str
    label: str
    colour: str
    fitted: bool = True
    slope: bool = True


class Panel(NamedTuple):
    title: str
    lines: Sequence[Line]
    ylabel: str = "relative error"
    unit: float = 1.0


_START = "with f0 and g0, (a)"
PANELS = (
    Panel("The tangent kernel converges", [Line("kernel", "K_m - K", PLUS)]),
    Panel(
        "What training adds converges, f0 stays",
        [Line("initial", "f0", GREY), Line("output", "f - f0 - T f_hat", PLUS)],
        "relative to T f_hat",
    ),
    Panel(
        "Training becomes linear: f - f_lin",
        [
            Line("lazy_bias", "mean, training points", MINUS),
            Line("lazy_spread", "sd, queries", PLUS),
            Line("lazy_test", "rms, queries", G_COLOUR, slope=False),
        ],
        "relative to T f_hat",
    ),
    Panel("Fewer gates flip", [Line("flipped", "share", PLUS)], "share of gates"),
    Panel(
        "Gradients converge to v + zeta, not to v",
        [
            Line("gradient_from_v", "distance from v", MINUS, False),
            Line("gradient", "from v + zeta", PLUS),
            Line("gradient_from_v_common", "mean network from v (dashed: |zeta|)", F_COLOUR, False),
        ],
    ),
    Panel(
        "Perturbations turn to the limit's direction",
        [Line("angle_random", "with f0", GREY), Line("angle", "centred", PLUS)],
        "angle, degrees",
        180 / np.pi,
    ),
    Panel(
        "The second network's output follows",
        [
            Line("g_random_a", _START, GREY),
            Line("g_a", "(a) centred", PLUS),
            Line("g_b", "(b) centred", G_COLOUR, slope=False),
        ],
    ),
    Panel(
        "... and its sign",
        [
            Line("sign_random_a", _START, GREY),
            Line("sign_a", "(a) centred", PLUS),
            Line("sign_b", "(b) centred", G_COLOUR, slope=False),
        ],
        "share with another sign",
    ),
)
TIMES = (
    ("naive", "rate k", MINUS),
    ("late", "rate k / (1 - momentum)", G_COLOUR),
    ("effective", "tau_k", PLUS),
)
#: How far below a fitted line the theory's slope begins.
BESIDE = 0.8


@styled
def draw(results: Results) -> Figure:
    """One figure: each error against width on logarithmic axes with its fitted line, and the
    effective time; panels without results stay empty.
    """
    summary = summarise(results)
    fig = figure(11, 10.2)
    axes = fig.subplots(3, 3).ravel()
    for axis, panel in zip(axes, PANELS, strict=False):
        _against_width(axis, panel, summary["quantities"])
    _against_steps(axes[-1], summary["effective_time"])
    title = (
        "Networks of finite width against the kernel limit.  Points: measured.  Lines: fitted "
        "power, 95 % interval.  Dashed or shaded: the theory."
    )
    fig.suptitle(title, fontsize=10, x=0.01, ha="left")
    return fig


def _legend(axis: Axes, title: str) -> None:
    """Above the axes, where no line is."""
    axis.legend(
        title=title,
        alignment="left",
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        fontsize=8,
        title_fontproperties={"weight": "bold", "size": 9},
        handletextpad=0.3,
        borderaxespad=0.1,
        labelspacing=0.25,
    )


def _axes(axis: Axes, ticks: Sequence[int], **labels: str) -> None:
    axis.set(xscale="log", yscale="log", **labels)
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _against_width(axis: Axes, panel: Panel, quantities: Json) -> None:
    if not quantities:
        axis.set_axis_off()
        return
    shown = [(line, quantities[line.name]) for line in panel.lines]
    widths = np.array(shown[0][1]["widths"], float)
    _axes(
        axis,
        [int(width) for width in widths[:: 1 + len(widths) // 5]],
        xlabel="width",
        ylabel=panel.ylabel,
    )
    for line, q in shown:
        _draw_line(axis, line, q, widths, panel.unit / q["scale"])
    _legend(axis, panel.title)


def _draw_line(axis: Axes, line: Line, q: Json, widths: np.ndarray, unit: float) -> None:
    """What was measured, the fitted power, and the theory: a curve where it is known with its
    constant, otherwise slopes beside the fit.
    """
    values = unit * np.array(q["values"], float)
    errors = np.nan_to_num(np.array(q["relative_errors"], float))
    fitted = line.fitted and q["rate"] is not None
    axis.errorbar(
        widths,
        values,
        values * errors,
        fmt="o" if fitted else "o-",
        ms=4,
        lw=1,
        color=line.colour,
        label=_label(line, q),
    )
    if fitted:
        power = unit * np.exp(q["constant"]) * widths ** q["rate"]
        axis.plot(widths, power, color=line.colour, lw=1)
    if q["closed_form"] is not None:
        closed_form = unit * np.array(q["closed_form"])
        axis.plot(widths, closed_form, color="black", lw=1, ls="--", zorder=3)
    elif fitted and line.slope and q["theory"] != [0.0, 0.0]:
        start = BESIDE * power[0]
        lowest, highest = q["theory"]
        low = start * (widths / widths[0]) ** lowest
        high = start * (widths / widths[0]) ** highest
        if lowest == highest:
            axis.plot(widths, high, color=line.colour, lw=1, ls="--", alpha=0.7)
        axis.fill_between(widths, low, high, color=line.colour, alpha=0.15, lw=0)


def _label(line: Line, q: Json) -> str:
    if not line.fitted or q["rate"] is None:
        return line.label
    low, high = q["interval"]
    half = None if low is None or high is None else (high - low) / 2
    digits = 3 if half is not None and half < 0.005 else 2
    rate = round(q["rate"], digits) + 0.0  # no minus before zero
    chance = "" if half is None else f" ± {half:.{digits}f}"
    theory = " to ".join(_power(power) for power in sorted(set(q["theory"])))
    return f"{line.label}: {rate:.{digits}f}{chance} (theory {theory})"


def _power(power: float) -> str:
    return {-0.25: "-1/4", -0.5: "-1/2", -0.75: "-3/4"}.get(power, f"{power:g}")


def _against_steps(axis: Axes, time: Json | None) -> None:
    if time is None:
        axis.set_axis_off()
        return
    _axes(
        axis,
        time["steps"],
        xlabel=f"steps k (width {time['width']:,})",
        ylabel="relative error of time x f_hat",
    )
    for name, label, colour in TIMES:
        axis.plot(
            time["steps"],
            time["errors"][name],
            "o-",
            ms=4,
            lw=1,
            color=colour,
            label=f"time = {label}",
        )
    axis.axhline(time["finite_width"], color="black", lw=1, ls="--")
    _legend(axis, "Momentum: the time is tau_k")
