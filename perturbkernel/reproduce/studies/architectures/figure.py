"""The figure of the study of architectures, and its numbers as text, from one summary."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perturbkernel.report.plots import F_COLOUR, G_COLOUR, GREY, MINUS, PLUS, figure, styled
from perturbkernel.reproduce.records import Arrays, Config, Json, Results
from perturbkernel.reproduce.studies.curves import curve, draw_band, in_percent

_CARRIERS = {
    "alone": ("perturbations alone (a)", G_COLOUR),
    "data": ("perturbed data (b)", PLUS),
    "noise": ("perturbed noise", MINUS),
}
_LAYERS = {"relu": "ReLU"}
_DATA = {"digits": "digits {digits[0]} and {digits[1]}", "gaussian": "two Gaussian classes"}


def summarise(results: Results) -> Json:
    """Every number of the figure, as JSON holds it: means over seeds, against depth with the least
    and the largest.

    "depth": data -> activation -> "depths" and, quantity ->, {"mean", "low", "high"} over depths.
    "transfer": "networks", names; "accuracy_f", a number a network; "cosine", a matrix of sources x
    learners; carrier -> "accuracy" and "agreement", such matrices, and "control_*", a number a
    learner. Both with the sizes as "setting"; any subset of cells will do, and what has none is
    empty.
    """
    return {"depth": _against_depth(results), "transfer": _transfer(results)}


def _cells(results: Results, part: str) -> list[tuple[Json, Arrays]]:
    found = []
    for config, arrays in results:
        if config["part"] == part:
            found.append((config, arrays))
    return found


def _setting(config: Config, seeds: int) -> Json:
    names = ("n", "test", "side", "digits", "size")
    found = {name: config[name] for name in names}
    found["seeds"] = seeds
    return found


def _network(config: Config) -> Json:
    """The one network of a cell of the part "depth"."""
    return config["networks"][0]


def _against_depth(results: Results) -> Json:
    cells = _cells(results, "depth")
    if not cells:
        return {}
    cells = sorted(cells, key=lambda cell: _network(cell[0])["depth"])
    first, _ = cells[0]
    by_activation: dict[str, list] = {}
    for config, arrays in cells:
        activation = _network(config)["activation"]
        rows = by_activation.setdefault(activation, [])
        rows.append((config, arrays))
    setting = _setting(first, first["seeds"])
    found: Json = {"setting": setting}
    for name in _DATA:
        found[name] = {}
        for activation, rows in by_activation.items():
            found[name][activation] = _curves(rows, name)
    return found


def _curves(cells: Results, name: str) -> Json:
    """The curves of a data set over the depths of the cells."""
    first, _ = cells[0]

    def against_depth(quantity: str, carrier: int | None = None) -> dict[str, list[float]]:
        samples = []
        for config, arrays in cells:
            place = config["data"].index(name)
            values = arrays[quantity][place]
            if carrier is not None:
                values = values[:, carrier]
            samples.append(np.ravel(values))
        return curve(samples)

    found: Json = {
        "depths": [_network(config)["depth"] for config, _ in cells],
        "accuracy_f": against_depth("accuracy_f"),
    }
    quantities = ("accuracy", "control_accuracy", "agreement", "control_agreement")
    for i, carrier in enumerate(first["carriers"]):
        for quantity in quantities:
            name_of_curve = f"{quantity}_{carrier}"
            found[name_of_curve] = against_depth(quantity, i)
    return found


def _transfer(results: Results) -> Json:
    cells = _cells(results, "transfer")
    if not cells:
        return {}
    config, arrays = cells[0]
    mean = {name: _mean_over_seeds(cells, name) for name in arrays}
    seeds = sum(config["seeds"] for config, _ in cells)
    found: Json = {
        "setting": _setting(config, seeds),
        "networks": [network["name"] for network in config["networks"]],
        "accuracy_f": mean["accuracy_f"].tolist(),
        "cosine": mean["cosine"].tolist(),
    }
    quantities = ("accuracy", "agreement", "control_accuracy", "control_agreement")
    for i, carrier in enumerate(config["carriers"]):
        found[carrier] = {}
        for name in quantities:
            of_carrier = mean[name][i]
            found[carrier][name] = of_carrier.tolist()
    return found


def _mean_over_seeds(cells: Results, name: str) -> np.ndarray:
    """Of the first data set, over the seeds of all cells."""
    samples = [arrays[name][0] for _, arrays in cells]
    of_seeds = np.concatenate(samples)
    return of_seeds.mean(0)


@styled
def draw(results: Results) -> Figure:
    """Above: accuracy and agreement against depth. Below: which architecture's perturbations teach
    which.
    """
    summary = summarise(results)
    depth = summary["depth"]
    transfer = summary["transfer"]
    fig = figure(12.5, 12)
    halves: Any = fig.subfigures(2, 1, height_ratios=[1.2, 1])
    upper, lower = halves
    if depth:
        _draw_depth(upper, depth)
    if transfer:
        _draw_transfer(lower, transfer)
    return fig


def _draw_depth(fig: Any, depth: Json) -> None:
    panels = []
    for name in _DATA:
        data = _data(name, depth)
        for activation, found in depth[name].items():
            layers = _LAYERS.get(activation, activation)
            title = f"{data}, {layers}"
            panels.append((title, found))
    axes = fig.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False)
    for column, (title, found) in zip(axes.T, panels, strict=True):
        _depth_panels(column, found, title)
    accuracy = axes[0, 0]
    agreement = axes[1, 0]
    accuracy.set_ylabel("accuracy on new points")
    agreement.set_ylabel("agreement of g with f")
    handles, labels = accuracy.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=5)
    title = (
        "Against depth: what fully connected networks g learn from perturbations of an f of their "
        "own kind.  Squared loss, infinite width.\n"
        f"{_sizes(depth)}; bands: all seeds."
    )
    fig.suptitle(title, fontsize=10, x=0.01, ha="left")


def _draw_transfer(fig: Any, transfer: Json) -> None:
    _transfer_panels(fig, transfer)
    digits = _data("digits", transfer)
    title = (
        "Transfer: which architecture's perturbations teach which.  "
        f"{digits.capitalize()}, perturbations alone; numbers in %, means.\n"
        f"{_sizes(transfer)}."
    )
    fig.suptitle(title, fontsize=10, x=0.01, ha="left")


def _data(name: str, found: Json) -> str:
    words = _DATA[name]
    return words.format(**found["setting"])


def _sizes(found: Json) -> str:
    said = (
        "n = {n}, {test} new points, d = {side} x {side}, size {size:g} of the data's length, "
        "{seeds} seeds"
    )
    return said.format(**found["setting"])


def _depth_panels(axes: Sequence[Axes], found: Json, title: str) -> None:
    depths = found["depths"]

    def line(axis: Axes, values: Json, colour: str, label: str) -> None:
        axis.plot(depths, values["mean"], "o-", ms=3.5, lw=1.3, color=colour, label=label)
        draw_band(axis, depths, values, colour)

    accuracy, agreement = axes
    line(accuracy, found["accuracy_f"], F_COLOUR, "f, trained on the data")
    for axis, quantity in ((accuracy, "accuracy"), (agreement, "agreement")):
        for carrier, (label, colour) in _CARRIERS.items():
            of_carrier = found[f"{quantity}_{carrier}"]
            line(axis, of_carrier, colour, f"g, {label}")
        control = found[f"control_{quantity}_alone"]
        label = "g, random directions alone"
        axis.plot(depths, control["mean"], color=GREY, lw=1.3, ls="--", label=label)
        draw_band(axis, depths, control, GREY, alpha=0.1)
        deepest = max(depths)
        axis.set_xticks(range(1, deepest + 1))
        axis.set_ylim(top=1.01)
    accuracy.set_title(title)
    agreement.set_xlabel("hidden layers")


def _transfer_panels(fig: Any, found: Json) -> None:
    accuracy, agreement, cosine = fig.subplots(1, 3)
    names = found["networks"]
    alone = found["alone"]
    below = {
        "random directions": alone["control_accuracy"],
        "the data itself (f)": found["accuracy_f"],
    }
    _heat_map(accuracy, "accuracy of g on new points", names, alone["accuracy"], 0.5, below)
    below = {"random directions": alone["control_agreement"]}
    _heat_map(agreement, "agreement of g with that f", names, alone["agreement"], 0.5, below)
    cosines = found["cosine"]
    _heat_map(cosine, "cosine of two networks' perturbations", names, cosines, 0.0, {})
    accuracy.set_ylabel("f, whose perturbations they are")
    for axis in (accuracy, agreement):
        axis.set_xlabel("g, which learns from them")


def _heat_map(
    axis: Axes, title: str, names: Sequence[str], values, low: float, extra: Json
) -> None:
    """Numbers in %, a row a source, and below them the rows of `extra`."""
    shown = np.array([*values, *extra.values()])
    count = len(names)
    axis.imshow(shown, cmap="viridis", vmin=low, vmax=1, aspect="auto")
    bright = (1 + low) / 2 + 0.05  # from here on the colour map needs dark letters
    for (i, j), value in np.ndenumerate(shown):
        colour = "white" if value < bright else "black"
        number = f"{100 * value:.0f}"
        axis.text(j, i, number, ha="center", va="center", fontsize=8, color=colour)
    rows = [*names, *extra]
    axis.set_xticks(range(count), names, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    if extra:
        axis.axhline(count - 0.5, color="white", lw=4)
    axis.spines[:].set_visible(False)
    axis.set_title(title)


def text(results: Results) -> str:
    """Every mean of the summary in %, as lines."""
    summary = summarise(results)
    depth = summary["depth"]
    transfer = summary["transfer"]
    lines = []
    for name in _DATA:
        for activation, found in depth.get(name, {}).items():
            lines += _depth_text(_data(name, depth), activation, found)
    if transfer:
        lines += _transfer_text(transfer)
    return "\n".join(lines)


def _depth_text(data: str, activation: str, found: Json) -> list[str]:
    depths = ", ".join(map(str, found["depths"]))
    lines = [f"{data}, {activation}; hidden layers {depths}"]
    for name, values in found.items():
        if name != "depths":
            lines.append(_row(name, values["mean"]))
    return lines


def _transfer_text(transfer: Json) -> list[str]:
    names = transfer["networks"]
    columns = f"columns: {', '.join(names)}"
    lines = []
    for carrier in _CARRIERS:
        of_carrier = transfer.get(carrier, {})
        for quantity, values in of_carrier.items():
            heading = f"{carrier}: {quantity}; {columns}"
            if quantity.startswith("control"):
                lines += [heading, _row("", values)]
                continue
            lines.append(f"{heading}; rows: sources")
            lines += map(_row, names, values)
    of_f = transfer["accuracy_f"]
    lines += ["accuracy of f", _row("", of_f)]
    lines.append("cosine of perturbations")
    lines += map(_row, names, transfer["cosine"])
    return lines


def _row(name: str, values: Sequence[float]) -> str:
    return in_percent(name, values, width=26)
