"""How many points, how many dimensions, how large a perturbation? The scaling laws, tried.

    python examples/scaling_laws.py

Two Gaussian classes, networks trained from zero on the identity loss. For nine settings of dimension,
number of points and distance of the classes, a second network learns perturbations of many sizes: alone
with trained biases (a), and on top of the data (b). Left, its accuracy against the size in four of the
cases; right, all cases on the one curve that theory.scaling says. No parameter is fitted.
"""

import argparse
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.special import ndtri

import perturbkernel as pk
from perturbkernel.theory import scaling

# (d, n, half of the distance between the class means)
SETTINGS = (
    (100, 100, 1.5),
    (100, 400, 1.0),
    (100, 1600, 0.7),
    (300, 100, 2.0),
    (300, 400, 1.5),
    (300, 1600, 1.0),
    (1000, 100, 2.5),
    (1000, 400, 2.0),
    (1000, 1600, 1.5),
)
COLOURS = ("#0072b2", "#009e73", "#d55e00")  # by dimension
MARKERS = ("o", "s", "^")  # by number of points
RATIOS = np.array([0.1, 0.3, 1.0, 3.0, 10.0])  # sizes in units of the critical one,
SPREAD = 1.13  # times a power of this, so that no two settings have the same
SHOWN = ((0, "a"), (8, "a"), (1, "b"), (5, "b"))


class Curve(NamedTuple):
    """One setting and scenario: sizes, and accuracies, means over draws of the data."""

    setting: int
    scenario: str
    size: np.ndarray
    first: float
    second: np.ndarray


def ratios(setting: int) -> np.ndarray:
    return RATIOS * SPREAD ** (setting - len(SETTINGS) // 2)


def shared(setting: int) -> dict[str, Any]:
    d, n, distance = SETTINGS[setting]
    return {"n": n, "d": d, "distance": distance}


def draw(setting: int, seed: int):
    """Training and test data."""
    d, n, distance = SETTINGS[setting]
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), setting))
    shift = distance / np.sqrt(d)
    return (
        pk.data.shifted_gaussian(count, d, shift, key=key)
        for count, key in zip((n, 1000), keys, strict=True)
    )


def measure(setting: int, scenario: str, draws: int) -> Curve:
    """Accuracy of f and, in its mean over coin-flip targets, of g."""
    kernel = pk.TwoLayerNTK(train_bias=scenario == "a")
    options: dict[str, Any] = {"scenario": scenario, "train_bias": kernel.train_bias}
    size = ratios(setting) * scaling.critical_size(**options, **shared(setting))
    first = []
    second = []
    for seed in range(draws):
        train, test = draw(setting, seed)
        f = pk.fit(kernel, train.inputs, train.targets)
        first.append(np.mean(np.sign(f(test.inputs)) == test.targets))
        u = pk.perturb(f, train.inputs, np.ones(train.n), size=1.0).delta
        carrier = train.inputs if scenario == "b" else np.zeros_like(train.inputs)
        moments = [
            pk.theory.target_moments(kernel, carrier, u, test.inputs, size=float(one))
            for one in size
        ]
        right = [np.where(test.targets > 0, m.positive, 1 - m.positive).mean() for m in moments]
        second.append(right)
    return Curve(setting, scenario, size, float(np.mean(first)), np.mean(second, axis=0))


def law(curve: Curve, size: np.ndarray) -> np.ndarray:
    scenario = curve.scenario
    options: dict[str, Any] = {"scenario": scenario, "train_bias": scenario == "a"}
    return scaling.second_accuracy(size=size, **options, **shared(curve.setting))


def style(curve: Curve) -> dict[str, Any]:
    colour = COLOURS[curve.setting // 3]
    fill = colour if curve.scenario == "a" else "white"
    return {"marker": MARKERS[curve.setting % 3], "color": colour, "mfc": fill, "ms": 5, "ls": ""}


def draw_figure(curves: list[Curve]) -> Figure:
    matplotlib.rcParams.update({"font.size": 9, "axes.titlesize": 9, "legend.frameon": False})
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for curve in curves:
        if (curve.setting, curve.scenario) in SHOWN:
            d, n, _ = SETTINGS[curve.setting]
            fine = np.geomspace(curve.size[0], curve.size[-1], 100)
            left.plot(fine, law(curve, fine), color=COLOURS[curve.setting // 3], lw=1)
            label = f"({curve.scenario}) d = {d}, n = {n}"
            left.plot(curve.size, curve.second, label=label, **style(curve))
        ratio = ndtri(curve.second) / ndtri(curve.first)
        right.plot(ratios(curve.setting), ratio, **style(curve))
    fine = np.geomspace(RATIOS[0] / 2, RATIOS[-1] * 2, 100)
    right.plot(fine, fine / np.hypot(1, fine), color="#333333", lw=1.2, zorder=0)
    right.text(0.12, 0.78, r"$x/\sqrt{1+x^2}$", fontsize=11, transform=right.transAxes)
    right.plot([], [], "o", color="#777777", label="(a) perturbations alone, biases trained")
    right.plot([], [], "o", color="#777777", mfc="white", label="(b) on top of the data")
    left.set(xscale="log", xlabel="size of the perturbations (l2)", ylabel="accuracy of g")
    left.set_title("lines: the law; points: kernel limit")
    right.set(xscale="log", xlabel="size / critical size, x", ylim=(0, 1.3))
    right.set_ylabel("normal quantile of g's accuracy / of f's")
    right.set_title(f"all {len(curves)} cases")
    left.legend(loc="lower right", fontsize=8)
    right.legend(loc="lower right", fontsize=8)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", type=int, nargs="+", default=list(range(len(SETTINGS))))
    parser.add_argument("--draws", type=int, default=4, help="of the data (default 4)")
    parser.add_argument("--figure", default="scaling_laws.png")
    args = parser.parse_args()

    curves = []
    gaps = []
    for setting in args.settings:
        d, n, distance = SETTINGS[setting]
        for scenario in ("a", "b"):
            curve = measure(setting, scenario, args.draws)
            curves.append(curve)
            gap = np.abs(curve.second - law(curve, curve.size)).max()
            gaps.append(gap)
            expected = scaling.first_accuracy(**shared(setting))
            print(
                f"d {d}, n {n}, distance {distance:g}: f {curve.first:.3f} (law {expected:.3f}); "
                f"({scenario}) g off by {gap:.3f} at most over {len(RATIOS)} sizes"
            )
    print(f"largest distance of a law from the kernel limit {max(gaps):.3f}")
    draw_figure(curves).savefig(args.figure, dpi=130)
    print(f"figure: {args.figure}")


if __name__ == "__main__":
    main()
