"""The figure of the study of carriers, and its numbers as text, from one summary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from scipy.special import ndtr

from perturbkernel.report.plots import F_COLOUR, G_COLOUR, GREY, MINUS, PLUS, figure, styled

Results = Sequence[tuple[dict[str, Any], dict[str, np.ndarray]]]

#: Published: accuracy of g for L2 perturbations on 10,000 points of uniform noise, against d
#: (Kumano, Kera, Yamasaki, ICLR 2024, figure 2; the control is near .5). The number of training
#: points is taken to be 1,000.
PUBLISHED = {"d": (100, 1000, 5000, 10_000), "uniform": (0.62, 0.80, 0.97, 1.0)}
PUBLISHED_N = 1000

_LEARNERS = {
    "identity": ("kernel limit, identity loss", PLUS, "o-"),
    "exponential": ("kernel limit, exponential loss", G_COLOUR, "s-"),
    "network": ("finite networks, exponential loss", MINUS, "^-"),
}
_VARIANCES = {"uniform": 1 / 3, "gaussian": 1.0}
_RIDES = (
    ("images of {others[0]} and {others[1]}, perturbed where they are", PLUS, "o-"),
    ("the same, with perturbations of the {digits[0]}s and {digits[1]}s", G_COLOUR, "s-"),
    ("uniform noise", MINUS, "^-"),
    ("Gaussian noise", F_COLOUR, "D-"),
)
_SETTINGS = {
    "noise": ("n", "m", "relative_size", "width", "steps"),
    "digits": ("n", "test", "digits", "others", "size", "per_point"),
}
_NOISE = ("accuracy_f", "accuracy", "control", "agreement", "control_agreement")


def leading_order(ratio, relative_size: float, n: int, m: int):
    """The accuracy of g for the identity loss where the kernel is linear, at d / N = ratio; see
    `carriers`.
    """
    carriers = 1 / (m * np.square(relative_size))
    return ndtr(np.sqrt(ratio / (1 + carriers)))


def summarise(results: Results) -> dict[str, Any]:
    """Every number of the figure, as JSON holds it: means over seeds with the least and the
    largest.

    "noise": kind -> learner -> "d" and, quantity ->, {"mean", "low", "high"} over dimensions; and
    "leading_order". "digits": loss -> "accuracy_f", a number, and "accuracy" and "control", rides x
    numbers of carriers each. "setting": of either part. Any subset of cells will do.
    """
    found: dict[str, Any] = {"noise": {}, "digits": {}, "setting": {}}
    for kind in _VARIANCES:
        for learner in _LEARNERS:
            cells = []
            for config, arrays in results:
                if kind in config.get("kinds", ()) and learner in config["learners"]:
                    cells.append((config, arrays))
            if cells:
                of_kind = found["noise"].setdefault(kind, {})
                of_kind[learner] = _against_d(cells, kind, learner)
    for part, names in _SETTINGS.items():
        cells = [config for config, _ in results if config["part"] == part]
        if cells:
            setting = {name: cells[0][name] for name in names}
            setting["seeds"] = max(config["first"] + config["seeds"] for config in cells)
            found["setting"][part] = setting
    for config, arrays in results:
        if config["part"] != "digits":
            continue
        for i, loss in enumerate(config["learners"]):
            found["digits"][loss] = {name: _spread(values[:, i]) for name, values in arrays.items()}
    return found


def _spread(samples: np.ndarray) -> dict[str, Any]:
    """Mean, least and largest over the first axis."""
    return {
        "mean": np.mean(samples, axis=0).tolist(),
        "low": np.min(samples, axis=0).tolist(),
        "high": np.max(samples, axis=0).tolist(),
    }


def _against_d(cells: Results, kind: str, learner: str) -> dict[str, Any]:
    """Quantity -> {"mean", "low", "high"}, a number for each dimension."""
    config, _ = cells[0]
    dimensions = sorted({config["d"] for config, _ in cells})
    n, m = config["n"], config["m"]
    ratios = np.array(dimensions) / n
    theory = leading_order(ratios, config["relative_size"], n, m)
    found: dict[str, Any] = {
        "d": dimensions,
        "ratio": ratios.tolist(),
        "leading_order": theory.tolist(),
    }
    for name in _NOISE:
        spreads = []
        for d in dimensions:
            samples = []
            for config, arrays in cells:
                if config["d"] != d:
                    continue
                i = config["kinds"].index(kind)
                j = config["learners"].index(learner)
                samples.append(arrays[name][:, i, j])
            spreads.append(_spread(np.concatenate(samples)))
        found[name] = {key: [spread[key] for spread in spreads] for key in spreads[0]}
    return found


@styled
def draw(results: Results) -> Figure:
    """Accuracy on noise against d / N for both kinds beside the published values; and on digits, by
    their carriers.
    """
    summary = summarise(results)
    fig = figure(13.5, 5.6)
    axes = fig.subplots(1, 4, sharey=True)
    for axis, kind in zip(axes, _VARIANCES, strict=False):
        if kind in summary["noise"]:
            _noise_panel(axis, kind, summary["noise"][kind], summary["setting"]["noise"])
    for axis, loss in zip(axes[2:], ("identity", "exponential"), strict=True):
        if loss in summary["digits"]:
            _digits_panel(axis, loss, summary["digits"][loss], summary["setting"]["digits"])
    axes[0].set(ylim=(0.3, 1.03), ylabel="accuracy of g")
    fig.suptitle(_title(summary["setting"]), fontsize=10, x=0.01, ha="left")
    return fig


def _title(setting: Mapping[str, Any]) -> str:
    lines = [
        "Perturbations teach, whatever carries them; carriers alone do not (dashed: g trained on "
        "them unperturbed)."
    ]
    if "noise" in setting:
        said = (
            "Left: N = {n:,} points with random labels, {m:,} noise points, {seeds} seeds; "
            "bands: all seeds."
        )
        lines.append(said.format(**setting["noise"]))
    if "digits" in setting:
        said = (
            "Right: {n} images of {digits[0]} and {digits[1]}, {test} new ones, size {size:g}, "
            "{seeds} seeds."
        )
        lines.append(said.format(**setting["digits"]))
    return "\n".join(lines)


def _curve(
    axis: Axes, x, accuracy: Mapping, control: Mapping, label: str, colour: str, line: str
) -> None:
    axis.plot(x, accuracy["mean"], line, ms=4, color=colour, label=label)
    axis.fill_between(x, accuracy["low"], accuracy["high"], color=colour, alpha=0.15, lw=0)
    axis.plot(x, control["mean"], "--", lw=1, color=colour)


def _finish(axis: Axes, title: str, xlabel: str, ticks: Sequence[float]) -> None:
    axis.axhline(0.5, color=GREY, lw=0.6, ls=(0, (1, 2)))
    axis.set(xscale="log", title=title, xlabel=xlabel)
    axis.set_xticks(ticks)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=7.5)


def _noise_panel(
    axis: Axes, kind: str, found: Mapping[str, Any], setting: Mapping[str, Any]
) -> None:
    for learner, curves in found.items():
        _curve(axis, curves["ratio"], curves["accuracy"], curves["control"], *_LEARNERS[learner])
    ratios = np.geomspace(0.08, 13)
    theory = leading_order(ratios, setting["relative_size"], setting["n"], setting["m"])
    axis.plot(ratios, theory, color="black", lw=0.8, label="leading order, identity loss")
    if kind in PUBLISHED:
        places = np.array(PUBLISHED["d"]) / PUBLISHED_N
        label = f"published (ICLR 2024); N = {PUBLISHED_N:,} assumed, size fitted"
        axis.plot(places, PUBLISHED[kind], "o", ms=8, mfc="none", color="black", label=label)
    title = f"{kind.capitalize()} noise: labels of unseen points"
    _finish(axis, title, "dimension d / N", (0.1, 1, 10))


def _digits_panel(
    axis: Axes, loss: str, found: Mapping[str, Any], setting: Mapping[str, Any]
) -> None:
    x = np.array(setting["per_point"])
    for i, (label, colour, line) in enumerate(_RIDES):
        accuracy = {key: value[i] for key, value in found["accuracy"].items()}
        control = {key: value[i] for key, value in found["control"].items()}
        _curve(axis, x, accuracy, control, label.format(**setting), colour, line)
    axis.axhline(found["accuracy_f"]["mean"], color="black", lw=0.8, label="f itself")
    _finish(axis, f"New digits, {loss} loss", "carriers for each training image", x.tolist())


def text(results: Results) -> str:
    """Every mean of the summary in %, as lines."""
    summary = summarise(results)
    lines = []
    for kind, learners in summary["noise"].items():
        for learner, found in learners.items():
            named = {name: found[name]["mean"] for name in _NOISE}
            if learner == "identity":
                named["leading order"] = found["leading_order"]
            dimensions = ", ".join(map(str, found["d"]))
            lines.append(f"{kind} noise, {_LEARNERS[learner][0]}; d = {dimensions}")
            lines += _rows(named)
    for loss, found in summary["digits"].items():
        setting = summary["setting"]["digits"]
        named = {"f itself": [found["accuracy_f"]["mean"]]}
        for i, (label, *_) in enumerate(_RIDES):
            named[label.format(**setting)] = found["accuracy"]["mean"][i]
            named["  control" + " " * i] = found["control"]["mean"][i]
        lines.append(f"new digits, {loss} loss; carriers a training image: {setting['per_point']}")
        lines += _rows(named)
    return "\n".join(lines)


def _rows(named: Mapping[str, Sequence[float]]) -> list[str]:
    """A name and numbers in % on each line."""
    lines = []
    for name, row in named.items():
        numbers = "".join(f"{100 * value:7.1f}" for value in row)
        lines.append(f"  {name:56}{numbers}")
    return lines
