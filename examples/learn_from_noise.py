"""A network that has seen nothing but noise, with labels by coin flip, reads handwritten digits.

    python examples/learn_from_noise.py

f learns digits. Noise is perturbed by one step toward a random label each; g learns these noise
images with these labels. Draws what g was trained on, and its accuracy on real digits against the
size of the step: mean, least and largest over draws of noise and labels. Without perturbations
(size 0) noise teaches nothing.
"""

import argparse
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import perturbkernel as pk


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--noise", type=int, default=10_000, help="noise images (default 10000)")
    parser.add_argument("--draws", type=int, default=5, help="of noise and labels (default 5)")
    parser.add_argument("--figure", default="learn_from_noise.png")
    args = parser.parse_args()

    train, test = pk.data.mnist5k(classes=(1, 2)).split(test=0.2, key=jax.random.key(0))
    f = pk.fit(pk.TwoLayerNTK(), train.inputs, train.targets)
    sizes = np.concatenate([[0], np.geomspace(1e-2, 3, 7)])
    accuracy = np.zeros((args.draws, len(sizes)))
    for draw in range(args.draws):
        noise_key, label_key = jax.random.split(jax.random.key(draw))
        noise = jax.random.uniform(noise_key, (args.noise, train.d), minval=-1)
        labels = jax.random.rademacher(label_key, (args.noise,), noise.dtype)
        direction = pk.perturb(f, noise, labels, size=1.0).delta
        for k, size in enumerate(sizes):
            g = pk.fit(pk.TwoLayerNTK(), noise + size * direction, labels)
            accuracy[draw, k] = (np.sign(g(test.inputs)) == test.targets).mean()
    for size, values in zip(sizes, accuracy.T, strict=True):
        print(
            f"size {size:.3f}, noise of length {np.sqrt(train.d / 3):.0f}: accuracy {values.mean():.3f}"
        )

    matplotlib.rcParams.update({"font.size": 9, "axes.titlesize": 9, "legend.frameon": False})
    figure = Figure(figsize=(7.6, 2.9), layout="constrained")
    grid = figure.add_gridspec(2, 4, width_ratios=[1, 1, 1, 3.2])
    for k, i in enumerate(np.argsort(labels)[[0, -1, 1]]):
        for row, image in enumerate((noise[i] + direction[i], direction[i])):
            axis = figure.add_subplot(grid[row, k], xticks=[], yticks=[])
            limit = float(np.abs(image).max())
            colours: dict[str, Any] = (
                {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit} if row else {"cmap": "gray_r"}
            )
            axis.imshow(np.asarray(image).reshape(28, 28), **colours)
            axis.set(title="" if row else f'labelled "{test.classes[int(labels[i] < 0)]}"')
            axis.set_ylabel(("what g sees", "perturbation in it")[row] if k == 0 else "")
            axis.spines[:].set_visible(False)
    axis = figure.add_subplot(
        grid[:, 3], ylim=(-0.02, 1.04), xlabel="size of the perturbation (l2)"
    )
    axis.set_xscale("symlog", linthresh=0.01)
    axis.set_ylabel("accuracy on real digits")
    on_digits = (np.sign(f(test.inputs)) == test.targets).mean()
    axis.axhline(on_digits, color="#333333", lw=1, label="f, trained on digits")
    axis.fill_between(sizes, accuracy.min(0), accuracy.max(0), color="#009e73", alpha=0.2, lw=0)
    axis.plot(sizes, accuracy.mean(0), "o-", color="#009e73", ms=4, label="g, trained on noise")
    axis.axhline(0.5, color="#999999", lw=0.8, ls=":", label="chance")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower right")
    figure.savefig(args.figure, dpi=130)
    print(f"figure: {args.figure}")


if __name__ == "__main__":
    main()
