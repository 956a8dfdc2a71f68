"""How wide must networks be, for all of them to be robust? Certified sizes over the width, on digits.

    python examples/certified_width.py

Networks of every width learn 3 against 8 (8 x 8 pixels). For each held-out digit the size within
which, with probability 0.9 over the initialisation, no perturbation changes a network's decision.
Draws its ratio to the smallest attack on the infinitely wide network, against the width.
"""

import argparse

import jax
import numpy as np
from matplotlib.figure import Figure

import perturbkernel as pk

TIMES = {"T = 1": 1.0, "T = 0.01": 0.01}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, nargs=2, default=[3, 8])
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--norm", default="l2", choices=["l2", "linf", "l1"])
    parser.add_argument("--failure", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="certified_width.png")
    args = parser.parse_args()

    digits = pk.data.digits(classes=tuple(args.classes))
    train, test = digits.split(test=0.2, key=jax.random.key(args.seed))
    z, labels = test.inputs[: args.test], test.targets[: args.test]
    widths = [10**k for k in range(4, 10)]
    figure = Figure(figsize=(4.2, 3), layout="constrained")
    axis = figure.subplots()
    for name, time in TIMES.items():
        dynamics = pk.GradientFlow(time)
        f = pk.fit(pk.TwoLayerNTK(), train.inputs, train.targets, dynamics=dynamics, precision=64)
        attacked = np.asarray(pk.minimum_norm(f, z, labels, away=True, norm=args.norm).size)
        right = attacked > 0

        def shares(width, f=f, attacked=attacked, right=right):
            found = pk.certified_size(
                f, z, labels, norm=args.norm, width=width, failure=args.failure
            )
            return found.size[right] / attacked[right]

        found = np.array([shares(width) for width in widths])
        limit = shares(None)
        medians = np.median(found, axis=1)
        for width, median in zip(widths, medians, strict=True):
            print(f"{name}, width {width:,}: {median:.3f} of the attack")
        print(
            f"{name}, the limit: {np.median(limit):.3f}; "
            f"{(found > np.minimum(limit, 1)).sum()} sizes above the limit's or an attack"
        )
        (line,) = axis.semilogx(widths, medians, "o-", label=name)
        axis.fill_between(
            widths, *np.quantile(found, [0.25, 0.75], axis=1), color=line.get_color(), alpha=0.2
        )
        axis.axhline(float(np.median(limit)), color=line.get_color(), linestyle=":")
    axis.set(xlabel="width", ylabel=f"certified / attacked, {args.norm}", ylim=(0, 1))
    axis.legend()
    figure.savefig(args.figure, dpi=130)
    print(f"figure: {args.figure}")


if __name__ == "__main__":
    main()
