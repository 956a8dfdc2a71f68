"""The figure of the study of carriers, and its numbers as text, from one summary."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from scipy.special import ndtr

from perturbkernel.report.plots import F_COLOUR, G_COLOUR, GREY, MINUS, PLUS, figure, styled
from perturbkernel.reproduce.records import Json, Results
from perturbkernel.reproduce.studies.curves import curve, draw_band, in_percent, spread

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
    squared_margin = ratio / (1 + carriers)
    margin = np.sqrt(squared_margin)
    return ndtr(margin)


def summarise(results: Results) -> Json:
    """Every number of the figure, as JSON holds it: means over seeds with the least and the
    largest.

    "noise": kind -> learner -> "d" and, quantity ->, {"mean", "low", "high"} over dimensions; and
    "leading_order". "digits": loss -> "accuracy_f", a number, and "accuracy" and "control", rides x
    numbers of carriers each. "setting": of either part. Any subset of cells will do.
    """
    return {
        "noise": _of_noise(results),
        "digits": _of_digits(results),
        "setting": _settings(results),
    }


def _of_noise(results: Results) -> Json:
    """Kind -> learner -> `_against_d`."""
    found: Json = {}
    for kind, learner in itertools.product(_VARIANCES, _LEARNERS):
        cells = []
        for config, arrays in results:
            kinds = config.get("kinds", ())
            if kind in kinds and learner in config["learners"]:
                cells.append((config, arrays))
        if cells:
            of_kind = found.setdefault(kind, {})
            of_kind[learner] = _against_d(cells, kind, learner)
    return found


def _of_digits(results: Results) -> Json:
    """Loss -> quantity -> its spread."""
    found: Json = {}
    for config, arrays in results:
        if config["part"] != "digits":
            continue
        for i, loss in enumerate(config["learners"]):
            found[loss] = {}
            for name, values in arrays.items():
                of_loss = values[:, i]
                found[loss][name] = spread(of_loss)
    return found


def _settings(results: Results) -> Json:
    """Of the parts that have cells."""
    found = {}
    for part, names in _SETTINGS.items():
        cells = [config for config, _ in results if config["part"] == part]
        if not cells:
            continue
        first = cells[0]
        setting = {name: first[name] for name in names}
        seeds = 0
        for config in cells:
            end = config["first"] + config["seeds"]
            seeds = max(seeds, end)
        setting["seeds"] = seeds
        found[part] = setting
    return found


def _against_d(cells: Results, kind: str, learner: str) -> Json:
    """Quantity -> {"mean", "low", "high"}, a number for each dimension."""
    config, _ = cells[0]
    n = config["n"]
    m = config["m"]
    dimensions = sorted({config["d"] for config, _ in cells})
    ratios = np.array(dimensions) / n
    theory = leading_order(ratios, config["relative_size"], n, m)
    found: Json = {
        "d": dimensions,
        "ratio": ratios.tolist(),
        "leading_order": theory.tolist(),
    }
    for name in _NOISE:
        parts: dict[int, list[np.ndarray]] = {d: [] for d in dimensions}
        for config, arrays in cells:
            i = config["kinds"].index(kind)
            j = config["learners"].index(learner)
            of_seeds = arrays[name][:, i, j]
            parts[config["d"]].append(of_seeds)
        samples = [np.concatenate(of_d) for of_d in parts.values()]
        found[name] = curve(samples)
    return found


@styled
def draw(results: Results) -> Figure:
    """Accuracy on noise against d / N for both kinds beside the published values; and on digits, by
    their carriers.
    """
    summary = summarise(results)
    noise = summary["noise"]
    digits = summary["digits"]
    setting = summary["setting"]
    fig = figure(13.5, 5.6)
    axes = fig.subplots(1, 4, sharey=True)
    uniform, gaussian, identity, exponential = axes
    for axis, kind in ((uniform, "uniform"), (gaussian, "gaussian")):
        if kind in noise:
            _noise_panel(axis, kind, noise[kind], setting["noise"])
    for axis, loss in ((identity, "identity"), (exponential, "exponential")):
        if loss in digits:
            _digits_panel(axis, loss, digits[loss], setting["digits"])
    uniform.set(ylim=(0.3, 1.03), ylabel="accuracy of g")
    title = _title(setting)
    fig.suptitle(title, fontsize=10, x=0.01, ha="left")
    return fig


def _title(setting: Json) -> str:
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
    axis: Axes, x, accuracy: Json, control: Json, label: str, colour: str, line: str
) -> None:
    axis.plot(x, accuracy["mean"], line, ms=4, color=colour, label=label)
    draw_band(axis, x, accuracy, colour)
    axis.plot(x, control["mean"], "--", lw=1, color=colour)


def _finish(axis: Axes, title: str, xlabel: str, ticks: Sequence[float]) -> None:
    axis.axhline(0.5, color=GREY, lw=0.6, ls=(0, (1, 2)))
    axis.set(xscale="log", title=title, xlabel=xlabel)
    axis.set_xticks(ticks)
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_major_formatter(plain)
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=7.5)


def _noise_panel(axis: Axes, kind: str, found: Json, setting: Json) -> None:
    for learner, curves in found.items():
        label, colour, line = _LEARNERS[learner]
        ratios = curves["ratio"]
        accuracy = curves["accuracy"]
        control = curves["control"]
        _curve(axis, ratios, accuracy, control, label, colour, line)
    n = setting["n"]
    m = setting["m"]
    ratios = np.geomspace(0.08, 13)
    theory = leading_order(ratios, setting["relative_size"], n, m)
    axis.plot(ratios, theory, color="black", lw=0.8, label="leading order, identity loss")
    if kind in PUBLISHED:
        dimensions = np.array(PUBLISHED["d"])
        places = dimensions / PUBLISHED_N
        label = f"published (ICLR 2024); N = {PUBLISHED_N:,} assumed, size fitted"
        published = PUBLISHED[kind]
        axis.plot(places, published, "o", ms=8, mfc="none", color="black", label=label)
    title = f"{kind.capitalize()} noise: labels of unseen points"
    _finish(axis, title, "dimension d / N", (0.1, 1, 10))


def _digits_panel(axis: Axes, loss: str, found: Json, setting: Json) -> None:
    x = np.array(setting["per_point"])
    for i, (words, colour, line) in enumerate(_RIDES):
        accuracy = _of_ride(found["accuracy"], i)
        control = _of_ride(found["control"], i)
        label = words.format(**setting)
        _curve(axis, x, accuracy, control, label, colour, line)
    of_f = found["accuracy_f"]["mean"]
    axis.axhline(of_f, color="black", lw=0.8, label="f itself")
    title = f"New digits, {loss} loss"
    _finish(axis, title, "carriers for each training image", x.tolist())


def _of_ride(spreads: Json, place: int) -> Json:
    """The spread of one of _RIDES."""
    return {name: rides[place] for name, rides in spreads.items()}


def text(results: Results) -> str:
    """Every mean of the summary in %, as lines."""
    summary = summarise(results)
    lines = []
    for kind, learners in summary["noise"].items():
        for learner, found in learners.items():
            lines += _noise_text(kind, learner, found)
    for loss, found in summary["digits"].items():
        setting = summary["setting"]["digits"]
        lines += _digits_text(loss, found, setting)
    return "\n".join(lines)


def _noise_text(kind: str, learner: str, found: Json) -> list[str]:
    words, *_ = _LEARNERS[learner]
    dimensions = ", ".join(map(str, found["d"]))
    named = {name: found[name]["mean"] for name in _NOISE}
    if learner == "identity":
        named["leading order"] = found["leading_order"]
    heading = f"{kind} noise, {words}; d = {dimensions}"
    return [heading, *_rows(named)]


def _digits_text(loss: str, found: Json, setting: Json) -> list[str]:
    of_f = found["accuracy_f"]["mean"]
    named = {"f itself": [of_f]}
    accuracies = found["accuracy"]["mean"]
    controls = found["control"]["mean"]
    for i, (words, *_) in enumerate(_RIDES):
        label = words.format(**setting)
        control = "  control" + " " * i  # each name once
        named[label] = accuracies[i]
        named[control] = controls[i]
    counts = setting["per_point"]
    heading = f"new digits, {loss} loss; carriers a training image: {counts}"
    return [heading, *_rows(named)]


def _rows(named: Mapping[str, Sequence[float]]) -> list[str]:
    return [in_percent(name, row, width=56) for name, row in named.items()]
