"""How far is an attack from the best there is? Certified accuracy under the attack's, on digits.

    python examples/certified_size.py

Infinitely wide networks learn 3 against 8. For each held-out digit the smallest attack found, and
the size within which provably none exists. Draws both curves of accuracy against size.
"""

import argparse

import jax
import numpy as np
from matplotlib.figure import Figure

import perturbkernel as pk
from perturbkernel.report.plots import certified_accuracy

TRAININGS = {
    "identity loss, T = 1": ("identity", 1.0),
    "squared loss, T = 30": ("squared", 30.0),
    "squared loss, interpolation": ("squared", np.inf),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, nargs=2, default=[3, 8])
    parser.add_argument("--train", type=int, default=800)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--norm", default="l2", choices=["l2", "linf", "l1"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="certified_size.png")
    args = parser.parse_args()

    digits = pk.data.mnist5k(classes=tuple(args.classes))
    train, test = digits.split(test=0.2, key=jax.random.key(args.seed))
    x, y = train.inputs[: args.train], train.targets[: args.train]
    z, labels = test.inputs[: args.test], test.targets[: args.test]
    curves = {}
    for name, (loss, time) in TRAININGS.items():
        f = pk.fit(pk.TwoLayerNTK(), x, y, loss=loss, dynamics=pk.GradientFlow(time), precision=64)
        certified = pk.certified_size(f, z, labels, norm=args.norm)
        attacked = np.asarray(pk.minimum_norm(f, z, labels, away=True, norm=args.norm).size)
        right = attacked > 0
        medians = np.median(certified.size[right]), np.median(attacked[right])
        print(
            f"{name}: {right.mean():.3f} right; median size {medians[0]:.4g} certified, "
            f"{medians[1]:.4g} attacked, ratio {medians[0] / medians[1]:.3f}; "
            f"{(certified.size > attacked).sum()} certificates above an attack"
        )
        sizes = np.linspace(0, np.quantile(attacked, 0.98), 60)
        stands = (attacked >= sizes[:, None]) & right
        curves[name] = sizes, certified.accuracy(sizes), stands.mean(1)

    figure = Figure(figsize=(3.2 * len(curves), 2.8), layout="constrained")
    for axis, (name, curve) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        certified_accuracy(axis, *curve)
        axis.set(title=name, xlabel=f"{args.norm} size")
    figure.axes[0].set_ylabel("accuracy on held-out digits")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(args.figure, dpi=130)
    print(f"figure: {args.figure}")


if __name__ == "__main__":
    main()
