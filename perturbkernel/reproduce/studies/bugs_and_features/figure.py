"""The figure of the study of bugs and features, and its numbers as text, from one summary."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from perturbkernel.report.plots import GREY, MINUS, PLUS, figure, styled
from perturbkernel.reproduce.records import Json, Results
from perturbkernel.reproduce.studies.curves import curve, draw_band, in_percent

_PARTS = ("bug: its own part", "feature: the shared part", "both: the whole gradient")
_STYLES = ((MINUS, "s-"), (PLUS, "o-"), ("black", "^--"))
_MEASURES = {
    "itself": "the network itself",
    "others": "another network, other start",
    "learned": "g, taught by them alone",
}
#: Part of the study -> what is on the axis, and where a config holds it.
_AXES = {"time": "training time T", "n": "training digits n", "depth": "hidden layers"}


def summarise(results: Results) -> Json:
    """Every number of the figure, as JSON holds it: means over seeds with the least and the
    largest.

    Part ("time", "n", "depth") -> "x", the places on the axis; "accuracy_f" and "share", curves;
    and measure ("itself", "others", "learned") -> three curves, of the own part, the shared part
    and the whole. "setting": of every part. Any subset of cells will do.
    """
    found: Json = {"setting": {}}
    for part in _AXES:
        cells = [(config, arrays) for config, arrays in results if config["part"] == part]
        if cells:
            found[part] = _of_part(part, cells)
            first, _ = cells[0]
            names = ("n", "test", "digits", "size", "width", "times")
            setting = {name: first[name] for name in names}
            found["setting"][part] = setting | {"seeds": _seeds(cells)}
    return found


def _seeds(cells: Results) -> int:
    counted: set[int] = set()
    for config, _ in cells:
        first = config["first"]
        counted |= set(range(first, first + config["seeds"]))
    return len(counted)


def _of_part(part: str, cells: Results) -> Json:
    """Samples of seeds at every place, (s, ...) each."""
    places: dict[float, list[Json]] = {}
    for config, arrays in cells:
        times = config["times"]
        for i, time in enumerate(times):
            place = time if part == "time" else config[part]
            here = {name: array[:, i] for name, array in arrays.items()}
            places.setdefault(place, []).append(here)
    ordered = sorted(places)

    def samples(name: str) -> list[np.ndarray]:
        """Of all seeds, an array for each place."""
        found = []
        for place in ordered:
            cells_there = [cell[name] for cell in places[place]]
            found.append(np.concatenate(cells_there))
        return found

    found: Json = {"x": ordered}
    for name in ("accuracy_f", "share"):
        found[name] = curve(samples(name))
    for name in _MEASURES:
        of_parts = samples(name)
        found[name] = []
        for i in range(len(_PARTS)):
            of_part = [sample[:, i] for sample in of_parts]
            found[name].append(curve(of_part))
    return found


@styled
def draw(results: Results) -> Figure:
    """Rows: against time, points and depth. Columns: what the parts do to the network itself, to
    another one, what they teach, and their shares.
    """
    summary = summarise(results)
    parts = [part for part in _AXES if part in summary]
    rows = max(len(parts), 1)
    fig = figure(12.5, 1.6 + 2.5 * rows)
    grid = fig.subplots(rows, 4, sharey=True, squeeze=False)
    for row, part in zip(grid, parts, strict=False):
        found = summary[part]
        for axis, name in zip(row, _MEASURES, strict=False):
            _accuracies(axis, found, name)
        _share(row[3], found)
        for axis in row:
            _finish(axis, part, found["x"])
        row[0].set_ylabel("accuracy on new digits")
    if parts:
        top = grid[0]
        titles = (*_MEASURES.values(), "share of |gradient|²")
        for axis, title in zip(top, titles, strict=True):
            axis.set_title(title)
        _legend(fig, top)
        fig.suptitle(_title(summary["setting"]), fontsize=10, x=0.01, ha="left")
    return fig


def _accuracies(axis: Axes, found: Json, name: str) -> None:
    x = found["x"]
    for label, (colour, line), values in zip(_PARTS, _STYLES, found[name], strict=True):
        axis.plot(x, values["mean"], line, ms=4, color=colour, label=label)
        draw_band(axis, x, values, colour)
    clean = found["accuracy_f"]["mean"]
    axis.plot(x, clean, color=GREY, lw=1, label="f on digits that are not moved")
    axis.axhline(0.5, color=GREY, lw=0.6, ls=(0, (1, 2)))


def _share(axis: Axes, found: Json) -> None:
    x = found["x"]
    own_name, shared_name, *_ = _PARTS
    of_own, of_shared, *_ = _STYLES
    shared = found["share"]
    colour, line = of_shared
    axis.plot(x, shared["mean"], line, ms=4, color=colour, label=shared_name)
    draw_band(axis, x, shared, colour)
    own = [1 - value for value in shared["mean"]]
    colour, line = of_own
    axis.plot(x, own, line, ms=4, color=colour, label=own_name)


def _finish(axis: Axes, part: str, ticks: list[float]) -> None:
    axis.set_xscale("log")
    axis.set_xlabel(_AXES[part])
    axis.set_ylim(-0.04, 1.04)
    axis.set_xticks(ticks)
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_major_formatter(plain)
    axis.xaxis.set_minor_formatter(NullFormatter())


def _legend(fig: Figure, row: np.ndarray) -> None:
    handles, labels = row[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8.5)


def _title(settings: Json) -> str:
    setting = next(iter(settings.values()))
    first, second = setting["digits"]
    lines = [
        "A network's own part of its gradient (bug) breaks that network, leaves others alone, and "
        "teaches nothing; the part that all share (feature) moves all alike, and teaches.",
        f"Digits {first} and {second}, squared loss, perturbations of l2 length "
        f"{setting['size']:g}, {setting['seeds']} seeds (bands: all of them). By rows: against "
        f"training time, points, and depth.",
    ]
    return "\n".join(lines)


def text(results: Results) -> str:
    """Every mean of the summary in %, as lines."""
    summary = summarise(results)
    lines = []
    for part, axis in _AXES.items():
        if part not in summary:
            continue
        found = summary[part]
        places = ", ".join(f"{place:g}" for place in found["x"])
        lines.append(f"{axis} = {places}")
        rows = {"f, digits that are not moved": found["accuracy_f"]}
        for name, words in _MEASURES.items():
            for said, values in zip(_PARTS, found[name], strict=True):
                rows[f"{words}; {said}"] = values
        rows["features' share of |gradient|^2"] = found["share"]
        for label, values in rows.items():
            lines.append(in_percent(label, values["mean"], width=58))
    return "\n".join(lines)
