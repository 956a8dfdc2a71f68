"""From lazy to rich: the whole experiment while features move, in both networks.

    python examples/lazy_to_rich.py

The limit of many neurons at fixed r = time / sqrt(width), identity loss: r to 0 is the kernel
limit, where neurons hardly move; at large r they forget where they began. f learns digits (1
against 2) or XOR of two coordinates out of 20, g learns f's perturbations, alone (a) or on top of
the data (b), with as many labels of either class, trained as long as f. Left, the accuracy of f and
of both g on test data; right, how often they agree with f, and the cosine of f's gradients with the
theory's direction v for gates that stay. Does (a) teach XOR when features move?
"""

import argparse
from typing import NamedTuple

import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import perturbkernel as pk

TIMES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
COLOURS = {"f": "#222222", "a": "#d55e00", "b": "#0072b2", "cosine": "#009e73"}


class Seen(NamedTuple):
    """What is seen at one r: accuracy of f; of g and agreement, (scenario -> a number a draw of
    targets); |cosine|.
    """

    f: float
    g: dict[str, np.ndarray]
    agreement: dict[str, np.ndarray]
    cosine: float


def digits(n: int):
    images = pk.data.mnist5k(classes=(1, 2))
    train, test = images.split(test=0.2, key=jax.random.key(0))
    return train.subset(min(n, train.n), key=jax.random.key(1)), test


def xor(n: int, d: int = 20):
    """Standard normal points, of which the label is the sign of the first two coordinates'
    product; half of each label, and each training point beside its negative.

    Otherwise a linear function, which is noise here, hides XOR in the kernel limit.
    """
    key = jax.random.key(0)
    parts = []
    for count in (n // 2, 1000):
        key, own = jax.random.split(key)
        drawn = np.array(jax.random.normal(own, (count, d)))
        wanted = np.where(np.arange(count) % 2 == 0, 1, -1)
        drawn[:, 0] *= np.sign(drawn[:, 0] * drawn[:, 1]) * wanted
        parts.append((drawn, wanted.astype(np.float32)))
    (x, y), test = parts
    train = pk.data.from_arrays(np.concatenate([x, -x]), np.concatenate([y, y]))
    return train, pk.data.from_arrays(*test)


def measure(learner, train, test, size: float, draws: int) -> Seen:
    """The experiment with both networks trained by `learner`, one f for all draws of targets."""
    x, y = train.inputs, train.targets
    f_key, g_key, key = jax.random.split(jax.random.key(2), 3)
    f = learner(x, y, f_key)
    f_sign = np.sign(np.asarray(f(test.inputs)))
    accuracy = {"a": [], "b": []}
    agreement = {"a": [], "b": []}
    for target_key in jax.random.split(key, draws):
        target = pk.data.draw_targets("balanced", train.n, key=target_key)
        delta = pk.perturb(f, x, target, size=size).delta
        for scenario, carrier in (("a", 0.0), ("b", 1.0)):
            g = learner(carrier * x + delta, target, g_key)
            g_sign = np.sign(np.asarray(g(test.inputs)))
            accuracy[scenario].append((g_sign == np.asarray(test.targets)).mean())
            agreement[scenario].append((g_sign == f_sign).mean())
    gradients = np.asarray(f.input_gradient(x))
    v = np.asarray(pk.theory.direction(learner.kernel, x, y, x))
    lengths = np.linalg.norm(gradients, axis=1) * np.linalg.norm(v, axis=1)
    cosines = np.abs(np.sum(gradients * v, axis=1)) / lengths
    return Seen(
        float((f_sign == np.asarray(test.targets)).mean()),
        {scenario: np.array(values) for scenario, values in accuracy.items()},
        {scenario: np.array(values) for scenario, values in agreement.items()},
        float(cosines.mean()),
    )


def draw_curve(axis: Axes, colour: str, label: str, times, lazy, values) -> None:
    """Means over draws of targets with their range; the kernel limit dotted."""
    axis.axhline(np.mean(lazy), color=COLOURS[colour], lw=0.8, ls=":")
    means = [np.mean(value) for value in values]
    axis.plot(times, means, ".-", color=COLOURS[colour], label=label)
    lowest, highest = [np.min(v) for v in values], [np.max(v) for v in values]
    axis.fill_between(times, lowest, highest, color=COLOURS[colour], alpha=0.15, lw=0)


def draw_row(axes: list[Axes], name: str, times, lazy: Seen, rows: list[Seen]) -> None:
    left, right = axes
    draw_curve(left, "f", "f", times, lazy.f, [s.f for s in rows])
    for scenario, what in (("a", "perturbations alone"), ("b", "perturbed data")):
        label = f"g, ({scenario}): {what}"
        own = lazy.g[scenario], [s.g[scenario] for s in rows]
        draw_curve(left, scenario, label, times, *own)
        both = lazy.agreement[scenario], [s.agreement[scenario] for s in rows]
        draw_curve(right, scenario, f"agreement of f and g, ({scenario})", times, *both)
    label = "cosine of f's gradients with v"
    draw_curve(right, "cosine", label, times, lazy.cosine, [s.cosine for s in rows])
    for axis in axes:
        axis.axhline(0.5, color="#999999", lw=0.6)
        axis.set(xscale="log", ylim=(0.44, 1.02), title=name)
        axis.spines[["top", "right"]].set_visible(False)


def draw(results, times) -> Figure:
    figure = Figure(figsize=(8.5, 2.9 * len(results)), layout="constrained")
    grid = figure.subplots(len(results), 2, squeeze=False, sharex=True)
    for axes, (name, (lazy, rows)) in zip(grid, results.items(), strict=True):
        draw_row(list(axes), name, times, lazy, rows)
        axes[0].set_ylabel("accuracy on test data")
    for axis in grid[-1]:
        axis.set_xlabel(
            "r = time / $\\sqrt{width}$ of both networks: lazy to rich (dotted: r to 0)"
        )
    for axis in grid[0]:
        axis.legend(fontsize=8, frameon=False, loc="center")
    return figure


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=float, nargs="+", default=list(TIMES))
    parser.add_argument("--neurons", type=int, default=3000)
    parser.add_argument(
        "--points", type=int, nargs=2, default=[400, 4000], metavar=("DIGITS", "XOR")
    )
    parser.add_argument("--size", type=float, default=2.0)
    parser.add_argument("--draws", type=int, default=2, help="of the targets (default 2)")
    parser.add_argument("--figure", default="lazy_to_rich.png")
    return parser.parse_args()


def main() -> None:
    args = parse()
    matplotlib.rcParams["font.size"] = 8.5
    kernel = pk.TwoLayerNTK()
    points = dict(zip(("digits, 1 against 2", "XOR of two coordinates"), args.points, strict=True))
    results = {}
    for (name, n), make in zip(points.items(), (digits, xor), strict=True):
        train, test = make(n)
        lazy = measure(pk.KernelLearner(kernel), train, test, args.size, args.draws)
        print(f"{name}: r to 0: {told(lazy)}", flush=True)
        rows = []
        for time in args.times:
            learner = pk.theory.MeanFieldLearner(
                kernel, dynamics=pk.GradientFlow(time), neurons=args.neurons
            )
            rows.append(measure(learner, train, test, args.size, args.draws))
            print(f"{name}: r = {time:g}: {told(rows[-1])}", flush=True)
        results[name] = lazy, rows
    draw(results, args.times).savefig(args.figure, dpi=130)
    print(f"figure: {args.figure}")


def told(s: Seen) -> str:
    g = ", ".join(
        f"g ({k}) {v.mean():.3f} ({v.min():.2f} to {v.max():.2f})" for k, v in s.g.items()
    )
    agreement = " and ".join(f"{v.mean():.3f}" for v in s.agreement.values())
    return f"f {s.f:.3f}, {g}, agreement {agreement}, cosine with v {s.cosine:.3f}"


if __name__ == "__main__":
    main()
