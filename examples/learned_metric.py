"""Does g still learn from perturbations once the metric has been learned?

    python examples/learned_metric.py

A kernel machine learns features through its average gradient outer product (AGOP), the second
moment of its input gradients,

    M = mean over x of grad f(x) grad f(x)^T,

which is that of the perturbations before they are normalised. A recursive feature machine measures
lengths by M from then on, and trains again: a kernel on the inputs x M^(1/2). After each round the
perturbations of f are taken in that metric, and g is trained on nothing but these, or on noise that
was perturbed. Two tasks: the sign of a product of two out of many coordinates, which no linear
classifier learns, and digits.

Source: Radhakrishnan, Beaglehole, Pandit, Belkin, Mechanism for feature learning in neural networks
and backpropagation-free machine learning models (Science 383, 2024).
"""

import argparse
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import perturbkernel as pk

COLOURS = {"f": "#333333", "g, perturbations alone": "#0072b2", "g, perturbed noise": "#009e73"}


class Round(NamedTuple):
    """Accuracies on new points, the share of M's trace in its two largest directions, and of
    training points where f rises toward the first class, along the difference of the means.
    """

    f: float
    alone: float
    noise: float
    share: float
    uphill: float


def products(count: int, d: int, key: Any) -> pk.Dataset:
    """Labels sign(x_1 x_2) of Gaussian points."""
    x = np.asarray(jax.random.normal(key, (count, d)))
    return pk.Dataset(x, np.where(x[:, 0] * x[:, 1] > 0, 1, -1), name="product of two coordinates")


def transformed(data: pk.Dataset, root: np.ndarray) -> pk.Dataset:
    return pk.Dataset(np.asarray(data.inputs) @ root, data.targets, name=data.name)


def root_of(moment: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """M^(1/2), scaled so that the inputs keep their mean square length: the kernel's length scale
    then stays right for them.
    """
    values, vectors = np.linalg.eigh(moment)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root * np.linalg.norm(inputs) / np.linalg.norm(inputs @ root)


def rounds(train: pk.Dataset, test: pk.Dataset, args: argparse.Namespace) -> list[Round]:
    """The experiment after 0, 1, .. updates of the metric."""
    typical = np.sqrt(2 * np.mean(np.sum(np.asarray(train.inputs) ** 2, axis=1)))
    kernel = KERNELS[args.kernel](float(typical))
    end = pk.GradientFlow(args.time)
    learner = pk.KernelLearner(kernel, loss="squared", dynamics=end)
    root, found = np.eye(train.d), []
    for _ in range(args.rounds + 1):
        here, new = transformed(train, root), transformed(test, root)
        length = float(np.sqrt(np.mean(np.sum(np.asarray(here.inputs) ** 2, axis=1))))
        options: Any = {"size": args.size * length, "targets": "balanced"}
        draws = []
        for draw in range(args.draws):
            key, noise_key = jax.random.split(jax.random.key(args.seed + draw))
            # Of the covariance of the points, so that it has their metric.
            normal = np.asarray(jax.random.normal(noise_key, (args.noise, here.n)))
            noise = normal @ np.asarray(here.inputs) / here.n**0.5
            alone = pk.learn_from_perturbations(learner, here, key=key, **options)
            carried = pk.learn_from_perturbations(
                learner, here, carrier=noise, at="carrier", key=key, **options
            )
            draws.append([r.accuracy(new).g for r in (alone, carried)])
        f = pk.fit(kernel, here.inputs, here.targets, loss="squared", dynamics=end)
        accuracy = float(np.mean(np.sign(f(new.inputs)) == np.asarray(new.targets)))
        moment = root @ root
        values = np.linalg.eigvalsh(moment)
        share = values[-2:].sum() / values.sum()
        g_alone, g_noise = np.mean(draws, axis=0)
        gradient = np.asarray(f.input_gradient(here.inputs), float)
        toward = np.asarray(here.targets) @ np.asarray(here.inputs)
        uphill = np.mean(gradient @ toward > 0)
        numbers = (accuracy, g_alone, g_noise, share, uphill)
        found.append(Round(*[float(number) for number in numbers]))
        # Chain rule: the gradient in the original inputs.
        gradient = gradient @ root
        root = root_of(gradient.T @ gradient, np.asarray(train.inputs, float))
    return found


KERNELS = {
    "laplace": lambda length: pk.Laplace(length),
    "rbf": lambda length: pk.RBF(length),
    "two_layer": lambda length: pk.TwoLayerNTK(),
}


def draw(results: dict[str, list[Round]], file: str) -> None:
    matplotlib.rcParams.update({"font.size": 9, "axes.titlesize": 9})
    figure = Figure(figsize=(3.6 * len(results), 2.9), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(results), sharey=True))
    for axis, (name, found) in zip(axes, results.items(), strict=True):
        steps = range(len(found))
        for label, values in zip(COLOURS, np.transpose(found)[:3], strict=True):
            axis.plot(steps, values, "o-", ms=4, color=COLOURS[label], label=label)
        shares = [r.share for r in found]
        axis.plot(steps, shares, "s--", ms=3, lw=1, color="#999999", label="two directions of M")
        axis.axhline(0.5, color="#cccccc", lw=0.8, zorder=0)
        axis.set(title=name, xlabel="updates of the metric", xticks=list(steps), ylim=(-0.03, 1.03))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("accuracy on new points; share")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=300, help="to train on, of either task")
    parser.add_argument("--dimension", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=float, default=0.3, help="in lengths of the points")
    parser.add_argument("--time", type=float, default=float("inf"), help="of training")
    parser.add_argument("--kernel", choices=KERNELS, default="laplace")
    parser.add_argument("--noise", type=int, default=1200, help="points of it")
    parser.add_argument("--draws", type=int, default=2, help="of target labels and noise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="learned_metric.png")
    args = parser.parse_args()

    keys = jax.random.split(jax.random.key(args.seed), 3)
    digits = pk.data.mnist5k(classes=(3, 8)).subset(args.points + 400, key=keys[2])
    tasks = {
        "sign of a product of two coordinates": (
            products(args.points, args.dimension, keys[0]),
            products(1000, args.dimension, keys[1]),
        ),
        "digits 3 and 8": digits.split(test=400, key=keys[0]),
    }
    results = {}
    for name, (train, test) in tasks.items():
        results[name] = rounds(train, test, args)
        for step, r in enumerate(results[name]):
            print(
                f"{name}, {step} updates: f {r.f:.3f}, g alone {r.alone:.3f}, on noise {r.noise:.3f}; "
                f"two directions have {r.share:.2f} of M, f rises along the means at {r.uphill:.2f}"
            )
    draw(results, args.figure)
    print(f"figure: {args.figure}")


if __name__ == "__main__":
    main()
