"""Useful and robust: the eigenvectors of a kernel as features, and what perturbations take of them.

    python examples/kernel_features.py                               # two digits
    python examples/kernel_features.py --fashion-mnist DIR --classes 0 9

Each eigenvector of the Gram matrix is a predictor of its own. Prints and draws how often each is
right on new images, before and after an attack on it (Tsilivis and Kempe, NeurIPS 2022, figure 2),
the share of each in what perturbations of f change, and in what g learns from these.
"""

import argparse

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import perturbkernel as pk
from perturbkernel.data.draws import draw_targets

BLUE, RED, BLACK = "#0072b2", "#d55e00", "#333333"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, nargs=2, default=(3, 8))
    parser.add_argument("--fashion-mnist", metavar="DIR", help="folder with the IDX files")
    parser.add_argument("--train", type=int, default=500)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--size", type=float, default=0.1, help="of attacks, linf (default 0.1)")
    parser.add_argument("--features", type=int, default=25, help="how many are attacked")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="kernel_features.png")
    args = parser.parse_args()

    keys = jax.random.split(jax.random.key(args.seed), 3)
    data = pk.data.mnist5k(classes=args.classes)
    if args.fashion_mnist is not None:
        data = pk.data.fashion_mnist(args.fashion_mnist, classes=args.classes)
    rest, test = data.split(test=args.test, key=keys[0])
    train = rest.subset(args.train, key=keys[1])
    x, y, z, labels = train.inputs, train.targets, test.inputs, test.targets
    bounds = float(data.inputs.min()), float(data.inputs.max())
    kernel, limit = pk.TwoLayerNTK(), pk.GradientFlow(float("inf"))
    f = pk.fit(kernel, x, y, loss="squared", dynamics=limit)

    features = pk.kernel_features(kernel, x, y)
    shown = np.arange(min(args.features, len(features)))
    attacked = {"size": args.size, "norm": "linf", "bounds": bounds, "steps": 10}
    useful = np.asarray(features.accuracy(z, labels))[shown]
    robust = features.accuracy_under_attack(z, labels, features=shown, **attacked)

    def right(f, points=z):
        return float(((f(points) > 0) == (labels > 0)).mean())

    away = pk.attack(f, z, labels, away=True, **attacked).delta
    size = args.size * x.shape[1] ** 0.5  # an l2 size as large as the linf attack's
    targets = draw_targets("balanced", len(x), key=keys[2])
    toward = pk.perturb(f, x, targets, size=size).delta
    g = pk.fit(kernel, toward, targets, loss="squared", dynamics=limit)
    change = np.asarray(features.of_change(f, z, away))
    target_share = np.asarray(features.of_outputs(lambda _: y))
    g_share = np.asarray(features.of_outputs(g))

    print(f"f: accuracy {right(f):.2f}, under attack {right(f, z + away):.2f}; g {right(g):.2f}")
    for i in {0, 1, 4, 9, shown[-1]} & set(shown.tolist()):
        print(f"eigenvector {i + 1}: accuracy {useful[i]:.2f}, under attack {robust[i]:.2f}")
    k = len(shown)
    for name, share in (("labels", target_share), ("perturbations of f", change), ("g", g_share)):
        print(f"share of the first {k} eigenvectors in {name}: {share[:k].sum():.2f}")

    matplotlib.rcParams.update({"font.size": 9, "axes.titlesize": 9})
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right_axis = figure.subplots(1, 2)
    left.plot(shown + 1, useful, "o-", ms=4, color=BLUE, label="accuracy of one eigenvector")
    left.plot(shown + 1, robust, "s-", ms=4, color=RED, label=f"under attack, linf {args.size:g}")
    left.axhline(right(f), color=BLUE, lw=0.8, ls="--", label="all together: accuracy of f")
    left.axhline(right(f, z + away), color=RED, lw=0.8, ls="--", label="all together, under attack")
    left.set(
        title="The first eigenvectors are useful and the most robust;\nwhat follows is neither",
        xlabel="eigenvector, the largest eigenvalue first",
        ylabel="on new images",
        ylim=(-0.03, 1.03),
    )
    left.legend(fontsize=7.5)
    curves = ((target_share, BLACK, "the labels"), (change, RED, "what an attack changes in f"))
    for share, colour, name in (*curves, (g_share, BLUE, "g, taught by perturbations alone")):
        places = np.arange(1, len(share) + 1)
        right_axis.semilogx(places, np.cumsum(share), color=colour, label=name)
    right_axis.set(
        title="g learns the first eigenvectors; attacks work through the many others",
        xlabel="so many first eigenvectors",
        ylabel="hold this share",
        ylim=(-0.03, 1.03),
    )
    right_axis.legend(fontsize=7.5)
    for axis in (left, right_axis):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.figure, dpi=130)
    print(f"figure: {args.figure}")


if __name__ == "__main__":
    main()
