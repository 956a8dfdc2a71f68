"""The figure of the study of architectures, and its numbers as text, from one summary."""

from collections.abc import Callable, Mapping, Sequence
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
    return {name: config[name] for name in ("n", "test", "side", "digits", "size")} | {
        "seeds": seeds
    }


def _against_depth(results: Results) -> dict[str, Any]:
    cells = sorted(_cells(results, "depth"), key=lambda cell: cell[0]["networks"][0]["depth"])
    found: dict[str, Any] = (
        {"setting": _setting(cells[0][0], cells[0][0]["seeds"])} if cells else {}
    )
    for name in _DATA if cells else ():
        for activation in dict.fromkeys(config["networks"][0]["activation"] for config, _ in cells):
            rows = [(c, a) for c, a in cells if c["networks"][0]["activation"] == activation]

            def curve(of: Callable, rows=rows, name=name) -> dict[str, list[float]]:
                samples = [of(arrays)[config["data"].index(name)] for config, arrays in rows]
                statistics = (("mean", np.mean), ("low", np.min), ("high", np.max))
                return {
                    key: [float(statistic(sample)) for sample in samples]
                    for key, statistic in statistics
                }

            curves = {"accuracy_f": curve(lambda a: a["accuracy_f"])}
            for i, carrier in enumerate(rows[0][0]["carriers"]):
                for quantity in ("accuracy", "control_accuracy", "agreement", "control_agreement"):
                    curves[f"{quantity}_{carrier}"] = curve(
                        lambda a, i=i, q=quantity: a[q][:, :, i]
                    )
            depths = [config["networks"][0]["depth"] for config, _ in rows]
            found.setdefault(name, {})[activation] = {"depths": depths, **curves}
    return found


def _transfer(results: Results) -> dict[str, Any]:
    cells = _cells(results, "transfer")
    if not cells:
        return {}
    config = cells[0][0]
    # The first data set; the mean over the seeds of all cells.
    mean = {
        name: np.concatenate([arrays[name][0] for _, arrays in cells]).mean(0)
        for name in cells[0][1]
    }
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


_SIZES = "n = {n}, {test} new points, d = {side} x {side}, size {size:g} of the data's length, {seeds} seeds"


@styled
def draw(results: Results) -> Figure:
    """Above: accuracy and agreement against depth. Below: which architecture's perturbations teach
    which.
    """
    summary = summarise(results)
    depth, transfer = summary["depth"], summary["transfer"]
    fig = figure(12.5, 12)
    upper, lower = fig.subfigures(2, 1, height_ratios=[1.2, 1])  # pyright: ignore[reportGeneralTypeIssues]
    panels = [(name, activation) for name in _DATA for activation in depth.get(name, ())]
    if panels:
        axes = upper.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False)
        for column, (name, activation) in zip(axes.T, panels, strict=True):
            title = (
                f"{_DATA[name].format(**depth['setting'])}, {_LAYERS.get(activation, activation)}"
            )
            _depth_panels(column, depth[name][activation], title)
        axes[0, 0].set_ylabel("accuracy on new points")
        axes[1, 0].set_ylabel("agreement of g with f")
        upper.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        upper.suptitle(
            "Against depth: what fully connected networks g learn from perturbations of an f of their own kind.  "
            "Squared loss, infinite width.\n"
            f"{_SIZES.format(**depth['setting'])}; bands: all seeds.",
            fontsize=10,
            x=0.01,
            ha="left",
        )
    if transfer:
        _transfer_panels(lower, transfer)
        lower.suptitle(
            "Transfer: which architecture's perturbations teach which.  "
            f"{_DATA['digits'].format(**transfer['setting']).capitalize()}, perturbations alone; numbers in %, means.\n"
            f"{_SIZES.format(**transfer['setting'])}.",
            fontsize=10,
            x=0.01,
            ha="left",
        )
    return fig


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
    axes, names, alone = fig.subplots(1, 3), found["networks"], found["alone"]
    _heat_map(
        axes[0],
        "accuracy of g on new points",
        names,
        alone["accuracy"],
        0.5,
        {
            "random directions": alone["control_accuracy"],
            "the data itself (f)": found["accuracy_f"],
        },
    )
    axes[0].set_ylabel("f, whose perturbations they are")
    _heat_map(
        axes[1],
        "agreement of g with that f",
        names,
        alone["agreement"],
        0.5,
        {"random directions": alone["control_agreement"]},
    )
    _heat_map(axes[2], "cosine of two networks' perturbations", names, found["cosine"], 0.0, {})
    for axis in axes[:2]:
        axis.set_xlabel("g, which learns from them")


def _heat_map(
    axis: Axes, title: str, names: Sequence[str], values, low: float, extra: Mapping[str, Any]
) -> None:
    shown, count = np.array([*values, *extra.values()]), len(names)
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
    summary, lines = summarise(results), []

    def rows(title: str, names: Sequence[str], values: Any) -> None:
        lines.append(title)
        lines.extend(
            f"  {name:26}" + "".join(f"{100 * v:7.1f}" for v in row)
            for name, row in zip(names, values, strict=True)
        )

    for name in _DATA:
        for activation, found in summary["depth"].get(name, {}).items():
            curves = {key: curve["mean"] for key, curve in found.items() if key != "depths"}
            depths = ", ".join(map(str, found["depths"]))
            title = f"{_DATA[name].format(**summary['depth']['setting'])}, {activation}; hidden layers {depths}"
            rows(title, list(curves), list(curves.values()))
    if transfer := summary["transfer"]:
        names = transfer["networks"]
        for carrier in (carrier for carrier in _CARRIERS if carrier in transfer):
            for quantity, values in transfer[carrier].items():
                control = quantity.startswith("control")
                title = f"{carrier}: {quantity}; columns: {', '.join(names)}{'' if control else '; rows: sources'}"
                rows(title, [""] if control else names, [values] if control else values)
        rows("accuracy of f", [""], [transfer["accuracy_f"]])
        rows("cosine of perturbations", names, transfer["cosine"])
    return "\n".join(lines)
