"""The law of one neuron: many widths and times on one curve, and a table of the published width.

    python examples/neuron_law.py

Networks of several widths learn digits (1 against 2) by heavy ball with the identity loss, trained
by `networks.ensemble`. Left, the share of gates at training digits that are not what they were at
the start; right, f's standard deviation over networks at held-out digits: each against r = time /
sqrt(width). The lines are the law, from one pool of single neurons that knows neither width nor
time. The table compares the published width and rate with the law and with the kernel limit.
"""

import argparse
from typing import NamedTuple

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import perturbkernel as pk

STEPS = (10, 20, 50, 100)
# (width, learning rate): the published ones, and a faster rate at other widths.
TRAINED = ((25, 0.1), (100, 0.01), (400, 0.1), (1600, 0.1))
# Descent of one pool to r = 20, in steps that grow as time does, and those at which it is kept.
SCHEDULE = pk.HeavyBall(np.diff(20 * np.linspace(0, 1, 301) ** 3).tolist(), momentum=0.0)
RECORDS = (10, 20, 30, 40, 55, 70, 85, 100, 120, 140, 170, 200, 240, 270, 300)
COLOURS = ("#d55e00", "#222222", "#0072b2", "#009e73")


class Networks(NamedTuple):
    """Outputs at test digits, cosines of their gradients with v, (networks, steps, m), and the
    share of gates that flipped, (networks, steps).
    """

    width: int
    rate: float
    outputs: np.ndarray
    cosine: np.ndarray
    flipped: np.ndarray

    @property
    def times(self) -> np.ndarray:
        return np.array([pk.HeavyBall(self.rate, count).effective_time for count in STEPS])

    @property
    def scaled_times(self) -> np.ndarray:
        return self.times / self.width**0.5


def train_networks(train, z, width: int, rate: float, neurons: int) -> Networks:
    """As many networks of a width as `neurons` are enough for, at least four."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), width), max(4, neurons // width))
    v = np.asarray(pk.theory.direction(pk.TwoLayerNTK(), train.inputs, train.targets, z))
    unit = v / np.linalg.norm(v, axis=1, keepdims=True)

    def init(key):
        return pk.networks.TwoLayerNetwork.init(train.d, width, train_bias=True, key=key)

    def seen(net):
        return net(z), net.input_gradient(z)

    _, trace = pk.networks.ensemble(
        jax.vmap(init)(keys),
        train.inputs,
        train.targets,
        learning_rate=rate,
        steps=STEPS[-1],
        trace_at=STEPS,
        observe=seen,
    )
    observed = jax.tree.map(lambda part: np.asarray(part)[:, 1:], trace.observed)
    outputs, gradients = observed  # without step 0
    lengths = np.linalg.norm(gradients, axis=-1)
    cosine = np.sum(gradients * unit, axis=-1) / lengths
    return Networks(width, rate, outputs, cosine, np.asarray(trace.flipped)[:, 1:])


def simulate(kernel, train, neurons: int, dynamics, width: int, records):
    return pk.theory.simulate_neurons(
        kernel,
        train.inputs,
        train.targets,
        dynamics=dynamics,
        width=width,
        neurons=neurons,
        records=records,
        key=jax.random.key(2),
    )


def print_table(found: Networks, law, kernel, train, z, labels) -> None:
    """The published width and rate: limit, law and networks."""
    print(f"width {found.width}, rate {found.rate}: {len(found.outputs)} networks")
    print("steps    T   accuracy: limit   law   networks      gap in errors: limit's ", end="")
    print("own, limit, law  std ratio   cosine: limit   law           networks")
    x, y = train.inputs, train.targets
    f_hat = np.asarray(pk.theory.f_hat(kernel, x, y, z))
    start = np.sqrt(np.diag(np.asarray(kernel.nngp(z))) / len(found.outputs))
    for place, time in enumerate(found.times):
        options = {"width": found.width, "time": time}
        mean, std = law.mean(z, **options), law.std(z, **options)
        outputs = found.outputs[:, place]
        error = outputs.std(axis=0, ddof=1) / len(outputs) ** 0.5
        averages = outputs.mean(axis=0)
        gaps = []
        for gap in (
            (averages - time * f_hat) / start,
            (averages - time * f_hat) / error,
            (averages - mean.value) / np.hypot(error, mean.standard_error),
        ):
            gaps.append(np.sqrt(np.mean(gap**2)))
        right = (np.sign(outputs) == labels).mean(axis=1)
        spread = np.mean(outputs.std(axis=0, ddof=1) / std.value)
        limit = np.mean(
            pk.theory.expected_accuracy(kernel, x, y, z, labels, times=np.array([time]))
        )
        limit_cosine = np.mean(pk.theory.expected_cosine(kernel, x, y, z, time=time))
        cosine = found.cosine[:, place].mean(axis=1)
        accuracy = law.expected_accuracy(z, labels, **options).mean
        own = law.cosine(z, **options)
        print(
            f"{STEPS[place]:5} {time:4.1f} {limit:17.3f} {accuracy:.3f}"
            f"   {told(right)} {gaps[0]:27.1f} {gaps[1]:6.1f} {gaps[2]:4.1f} {spread:10.2f}"
            f"{limit_cosine:18.3f} {own.mean:.3f}±{own.mean_standard_error:.3f}   {told(cosine)}"
        )


def told(values: np.ndarray) -> str:
    return f"{values.mean():.3f}±{values.std(ddof=1) / len(values) ** 0.5:.3f}"


def share_flipped(law, x, r: float) -> float:
    """Of the gates of a pool at the points x."""
    neurons = law.at(r)
    points = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    before = neurons.start @ points.T > 0
    return float(np.mean((neurons.trained @ points.T > 0) != before))


def draw(law, trained: list[Networks], x, z, start: float) -> Figure:
    """`start`: f's standard deviation in the kernel limit, that at the start."""
    matplotlib.rcParams.update({"font.size": 9, "legend.frameon": False})
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    scaled = np.geomspace(0.03, 19, 24)
    flipped = [share_flipped(law, x, r) for r in scaled]
    deviations = [law.std(z, width=1, time=r).mean for r in scaled]
    for axis, line, level in ((left, flipped, 0.0), (right, deviations, start)):
        axis.plot(scaled, line, color="#777777", lw=1.2, zorder=0, label="law of one neuron")
        axis.axhline(level, color="#777777", lw=0.9, ls=":", label="kernel limit")
        axis.set(xscale="log", xlabel=r"$r$ = time / $\sqrt{width}$")
        axis.spines[["top", "right"]].set_visible(False)
    for networks, colour in zip(trained, COLOURS, strict=True):
        style = {"color": colour, "ms": 4, "label": f"width {networks.width:,}"}
        shares = networks.flipped.mean(axis=0)
        spread = networks.outputs.std(axis=0, ddof=1).mean(axis=-1)
        left.plot(networks.scaled_times, shares, "o", **style)
        right.plot(networks.scaled_times, spread, "o", **style)
    left.set_ylabel("share of gates that flipped")
    right.set(ylabel="standard deviation of f", yscale="log")
    left.legend(fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--neurons", type=int, default=4000, help="trained of each width, about")
    parser.add_argument("--digits", type=int, default=1000, help="how many to split 4:1")
    parser.add_argument("--figure", default="neuron_law.png")
    args = parser.parse_args()

    digits = pk.data.mnist5k(classes=(1, 2))
    if args.digits < digits.n:
        digits = digits.subset(args.digits, key=jax.random.key(0))
    train, test = digits.split(test=0.2, key=jax.random.key(0))
    z, labels = test.inputs, np.asarray(test.targets)
    kernel = pk.TwoLayerNTK()
    trained = [train_networks(train, z, *one, args.neurons) for one in TRAINED]
    width, rate = TRAINED[1]
    descent = pk.HeavyBall(rate, STEPS[-1])
    published = simulate(kernel, train, args.neurons, descent, width, STEPS)
    print_table(trained[1], published, kernel, train, z, labels)
    law = simulate(kernel, train, args.neurons, SCHEDULE, 1, RECORDS)
    start = np.sqrt(np.diag(np.asarray(kernel.nngp(z)))).mean()
    draw(law, trained, np.asarray(train.inputs), z, start).savefig(args.figure, dpi=130)
    print(f"figure: {args.figure}")


if __name__ == "__main__":
    main()
