"""A perturbation is made of training data: a mean of the class it moves toward minus a mean of the
other.

    python examples/perturbations_are_training_data.py

The gradient of an infinitely wide network at z is, up to the motion of its gates, the sum over the
training data of y_n Phi(x_n, z) x_n: both means are weighted by how alike x_n and z are. Draws a
held-out digit of each pair of classes, the perturbation that moves it toward the other class, and
the two means that it is the difference of.
"""

import argparse
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import perturbkernel as pk

TITLES = (
    "held-out {own}",
    "perturbation,\ncosine {cosine:.4f}",
    "= weighted mean\nof the {other}s",
    "minus weighted mean\nof the {own}s",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pairs", nargs="+", default=["21", "35", "49"], help="from, toward (default 21 35 49)"
    )
    parser.add_argument("--figure", default="perturbations_are_training_data.png")
    args = parser.parse_args()

    matplotlib.rcParams.update({"font.size": 9, "axes.titlesize": 9})
    figure = Figure(figsize=(5.6, 1.8 * len(args.pairs)), layout="constrained")
    axes = figure.subplots(len(args.pairs), len(TITLES), squeeze=False)
    kernel = pk.TwoLayerNTK()
    for row, pair in enumerate(args.pairs):
        own, other = (int(digit) for digit in pair)
        train, test = pk.data.mnist5k(classes=(other, own)).split(test=0.2, key=jax.random.key(0))
        x, y = np.asarray(train.inputs), np.asarray(train.targets)
        f = pk.fit(kernel, x, y)
        z = np.asarray(test.inputs)[np.asarray(test.targets) < 0][:1]
        delta = np.asarray(pk.perturb(f, z, np.ones(1), size=1.0).delta)[0]
        toward, away = (
            np.asarray(kernel.phi_matmul(z, x, (y == s)[:, None] * x / np.float32(train.n)))[0]
            for s in (1, -1)
        )
        cosine = delta @ (toward - away) / np.linalg.norm(toward - away)
        print(
            f"from {own} toward {other}: cosine of the perturbation with the difference of the means {cosine:.5f}"
        )
        for k, (axis, image) in enumerate(zip(axes[row], (z, delta, toward, away), strict=True)):
            limit = np.abs(image).max()
            colours: dict[str, Any] = (
                {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit} if k == 1 else {"cmap": "gray_r"}
            )
            axis.imshow(image.reshape(28, 28), **colours)
            axis.set(
                xticks=[], yticks=[], title=TITLES[k].format(own=own, other=other, cosine=cosine)
            )
            axis.spines[:].set_visible(False)
    figure.savefig(args.figure, dpi=130)
    print(f"figure: {args.figure}")


if __name__ == "__main__":
    main()
