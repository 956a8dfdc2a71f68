"""The figure of the study of architectures, and its numbers as text, from one summary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perturbkernel.report.plots import F_COLOUR, G_COLOUR, GREY, MINUS, PLUS, figure, styled

Results = Sequence[tuple[dict[str, Any], dict[str, np.ndarray]]]

_CARRIERS = {
    "alone": ("perturbations alone (a)", G_COLOUR),
    "data": ("perturbed data (b)", PLUS),
    "noise": ("perturbed noise", MINUS),
}
_LAYERS = {"relu": "ReLU"}
_DATA = {"digits": "digits {digits[0]} and {digits[1]}", "gaussian": "two Gaussian classes"}


def summarise(results: Results) -> dict[str, Any]:
    """Every number of the figure, as JSON holds it: means over seeds, against depth with the least
    and the largest.

    "depth": data -> activation -> "depths" and, quantity ->, {"mean", "low", "high"} over depths.
    "transfer": "networks", names; "accuracy_f", a number a network; "cosine", a matrix of sources x
    learners; carrier -> "accuracy" and "agreement", such matrices, and "control_*", a number a
    learner. Both with the sizes as "setting"; any subset of cells will do, and what has none is
    empty.
    """
    return {"depth": _against_depth(results), "transfer": _transfer(results)}


def _cells(results: Results, part: str) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    return [(config, arrays) for config, arrays in results if config["part"] == part]


def _setting(config: dict[str, Any], seeds: int) -> dict[str, Any]:
    found = {name: config[name] for name in ("n", "test", "side", "digits", "size")}
    return found | {"seeds": seeds}


def _against_depth(results: Results) -> dict[str, Any]:
    cells = _cells(results, "depth")
    if not cells:
        return {}
    cells = sorted(cells, key=lambda cell: cell[0]["networks"][0]["depth"])
    first, _ = cells[0]
    found: dict[str, Any] = {"setting": _setting(first, first["seeds"])}
    # Every cell has one network.
    networks = [config["networks"][0] for config, _ in cells]
    for activation in dict.fromkeys(network["activation"] for network in networks):
        rows = [
            cell
            for cell, network in zip(cells, networks, strict=True)
            if network["activation"] == activation
        ]
        for name in _DATA:
            found.setdefault(name, {})[activation] = _curves(rows, name)
    return found


def _curves(cells: Results, name: str) -> dict[str, Any]:
    """The curves of a data set over the depths of the cells."""
    places = [config["data"].index(name) for config, _ in cells]

    def curve(quantity: str, carrier: int | None = None) -> dict[str, list[float]]:
        samples = []
        for place, (_, arrays) in zip(places, cells, strict=True):
            values = arrays[quantity][place]
            samples.append(values if carrier is None else values[:, carrier])
        return {
            "mean": [float(np.mean(sample)) for sample in samples],
            "low": [float(np.min(sample)) for sample in samples],
            "high": [float(np.max(sample)) for sample in samples],
        }

    depths = [config["networks"][0]["depth"] for config, _ in cells]
    found: dict[str, Any] = {"depths": depths, "accuracy_f": curve("accuracy_f")}
    for i, carrier in enumerate(cells[0][0]["carriers"]):
        for quantity in ("accuracy", "control_accuracy", "agreement", "control_agreement"):
            found[f"{quantity}_{carrier}"] = curve(quantity, i)
    return found


def _transfer(results: Results) -> dict[str, Any]:
    cells = _cells(results, "transfer")
    if not cells:
        return {}
    config = cells[0][0]
    # The first data set; the mean over the seeds of all cells.
    mean = {}
    for name in cells[0][1]:
        samples = [arrays[name][0] for _, arrays in cells]
        mean[name] = np.concatenate(samples).mean(0)
    found: dict[str, Any] = {
        "setting": _setting(config, sum(c["seeds"] for c, _ in cells)),
        "networks": [network["name"] for network in config["networks"]],
        "accuracy_f": mean["accuracy_f"].tolist(),
        "cosine": mean["cosine"].tolist(),
    }
    for i, carrier in enumerate(config["carriers"]):
        quantities = ("accuracy", "agreement", "control_accuracy", "control_agreement")
        found[carrier] = {name: mean[name][i].tolist() for name in quantities}
    return found


@styled
def draw(results: Results) -> Figure:
    """Above: accuracy and agreement against depth. Below: which architecture's perturbations teach
    which.
    """
    summary = summarise(results)
    depth, transfer = summary["depth"], summary["transfer"]
    fig = figure(12.5, 12)
    halves: Any = fig.subfigures(2, 1, height_ratios=[1.2, 1])
    if depth:
        _draw_depth(halves[0], depth)
    if transfer:
        _draw_transfer(halves[1], transfer)
    return fig


def _draw_depth(fig: Any, depth: Mapping[str, Any]) -> None:
    panels = [(name, activation) for name in _DATA for activation in depth[name]]
    axes = fig.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False)
    for column, (name, activation) in zip(axes.T, panels, strict=True):
        title = f"{_data(name, depth)}, {_LAYERS.get(activation, activation)}"
        _depth_panels(column, depth[name][activation], title)
    axes[0, 0].set_ylabel("accuracy on new points")
    axes[1, 0].set_ylabel("agreement of g with f")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=5)
    title = (
        "Against depth: what fully connected networks g learn from perturbations of an f of their "
        "own kind.  Squared loss, infinite width.\n"
        f"{_sizes(depth)}; bands: all seeds."
    )
    fig.suptitle(title, fontsize=10, x=0.01, ha="left")


def _draw_transfer(fig: Any, transfer: Mapping[str, Any]) -> None:
    _transfer_panels(fig, transfer)
    title = (
        "Transfer: which architecture's perturbations teach which.  "
        f"{_data('digits', transfer).capitalize()}, perturbations alone; numbers in %, means.\n"
        f"{_sizes(transfer)}."
    )
    fig.suptitle(title, fontsize=10, x=0.01, ha="left")


def _data(name: str, found: Mapping[str, Any]) -> str:
    return _DATA[name].format(**found["setting"])


def _sizes(found: Mapping[str, Any]) -> str:
    said = (
        "n = {n}, {test} new points, d = {side} x {side}, size {size:g} of the data's length, "
        "{seeds} seeds"
    )
    return said.format(**found["setting"])


def _depth_panels(axes: Sequence[Axes], found: Mapping[str, Any], title: str) -> None:
    depths = found["depths"]

    def line(axis, curve, colour, label):
        axis.plot(depths, curve["mean"], "o-", ms=3.5, lw=1.3, color=colour, label=label)
        axis.fill_between(depths, curve["low"], curve["high"], color=colour, alpha=0.15, lw=0)

    line(axes[0], found["accuracy_f"], F_COLOUR, "f, trained on the data")
    for axis, quantity in zip(axes, ("accuracy", "agreement"), strict=True):
        for carrier, (label, colour) in _CARRIERS.items():
            line(axis, found[f"{quantity}_{carrier}"], colour, f"g, {label}")
        control = found[f"control_{quantity}_alone"]
        axis.plot(
            depths, control["mean"], color=GREY, lw=1.3, ls="--", label="g, random directions alone"
        )
        axis.fill_between(depths, control["low"], control["high"], color=GREY, alpha=0.1, lw=0)
        axis.set_xticks(range(1, max(depths) + 1))
        axis.set_ylim(top=1.01)
    axes[0].set_title(title)
    axes[1].set_xlabel("hidden layers")


def _transfer_panels(fig: Any, found: Mapping[str, Any]) -> None:
    axes = fig.subplots(1, 3)
    names, alone = found["networks"], found["alone"]
    extra = {
        "random directions": alone["control_accuracy"],
        "the data itself (f)": found["accuracy_f"],
    }
    _heat_map(axes[0], "accuracy of g on new points", names, alone["accuracy"], 0.5, extra)
    axes[0].set_ylabel("f, whose perturbations they are")
    extra = {"random directions": alone["control_agreement"]}
    _heat_map(axes[1], "agreement of g with that f", names, alone["agreement"], 0.5, extra)
    _heat_map(axes[2], "cosine of two networks' perturbations", names, found["cosine"], 0.0, {})
    for axis in axes[:2]:
        axis.set_xlabel("g, which learns from them")


def _heat_map(
    axis: Axes, title: str, names: Sequence[str], values, low: float, extra: Mapping[str, Any]
) -> None:
    """Numbers in %, a row a source, and below them the rows of `extra`."""
    shown = np.array([*values, *extra.values()])
    count = len(names)
    axis.imshow(shown, cmap="viridis", vmin=low, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(shown):
        colour = "white" if value < (1 + low) / 2 + 0.05 else "black"
        axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(count), names, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(shown)), [*names, *extra], fontsize=8)
    if extra:
        axis.axhline(count - 0.5, color="white", lw=4)
    axis.spines[:].set_visible(False)
    axis.set_title(title)


def text(results: Results) -> str:
    """Every mean of the summary in %, as lines."""
    summary = summarise(results)
    depth, transfer = summary["depth"], summary["transfer"]
    lines = []
    for name in _DATA:
        for activation, found in depth.get(name, {}).items():
            depths = ", ".join(map(str, found["depths"]))
            lines.append(f"{_data(name, depth)}, {activation}; hidden layers {depths}")
            for key, curve in found.items():
                if key != "depths":
                    lines.append(_row(key, curve["mean"]))
    if transfer:
        lines += _transfer_text(transfer)
    return "\n".join(lines)


def _transfer_text(transfer: Mapping[str, Any]) -> list[str]:
    names = transfer["networks"]
    columns = f"columns: {', '.join(names)}"
    lines = []
    for carrier in _CARRIERS:
        for quantity, values in transfer.get(carrier, {}).items():
            if quantity.startswith("control"):
                lines += [f"{carrier}: {quantity}; {columns}", _row("", values)]
                continue
            lines.append(f"{carrier}: {quantity}; {columns}; rows: sources")
            lines += map(_row, names, values)
    lines += ["accuracy of f", _row("", transfer["accuracy_f"])]
    lines.append("cosine of perturbations")
    lines += map(_row, names, transfer["cosine"])
    return lines


def _row(name: str, values: Sequence[float]) -> str:
    """A name and numbers in %."""
    return f"  {name:26}" + "".join(f"{100 * value:7.1f}" for value in values)
