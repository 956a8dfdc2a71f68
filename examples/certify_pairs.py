"""Certified is not correct: all 45 pairs of digits, and how many held-out ones are proven.

    python examples/certify_pairs.py                            # widths 10,000 and 100,000; minutes
    python examples/certify_pairs.py --pairs 1,2 4,9 --digits 200           # some of them, smaller
    python examples/certify_pairs.py --law 100            # networks of width 100 too; an hour

For every pair of digits f learns 800 of them and g nothing but f's perturbations, labelled by coin
flips. `theory.certify` says, before anything is trained, at which of 200 held-out digits both
networks have the same sign; it is the sign of f_hat there. Whether that sign is the digit's label
is another question, which the accuracy of f_hat answers. Draws both, a row for each pair.

`--law` adds networks of the published kind, so narrow that they move far: initial function left in,
biases trained, as many labels of each class. `theory.certify_experiment` draws pairs of them and
says where both have one known sign; few and long steps (`DESCENTS`) take less time to draw.
"""

import argparse
import itertools

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import perturbkernel as pk

# Of f and g: effective times 4.1 and 12.
DESCENTS = (pk.HeavyBall(0.1, 10), pk.HeavyBall(0.3, 10))


def pair(text: str) -> tuple[int, int]:
    first, second = map(int, text.split(","))
    return first, second


def split(classes: tuple[int, int], args):
    digits = pk.data.mnist5k(classes=classes)
    if args.digits < digits.n:
        digits = digits.subset(args.digits, key=jax.random.key(0))
    return digits.split(test=0.2, key=jax.random.key(0))


def certify_by_law(classes: tuple[int, int], args) -> float:
    """The share certified at width `args.law`, where networks are not lazy."""
    train, test = split(classes, args)
    target_key, draw_key = jax.random.split(jax.random.key(args.seed))
    c = pk.theory.certify_experiment(
        pk.TwoLayerNTK(train_bias=True),
        train.inputs,
        train.targets,
        test.inputs,
        width=args.law,
        dynamics=DESCENTS,
        size=args.size,
        targets=pk.data.draw_targets("balanced", train.n, key=target_key),
        delta=args.delta,
        draws=args.draws,
        pilot=max(2, args.draws // 3),
        key=draw_key,
    )
    return c.share


def certify_pair(classes: tuple[int, int], args) -> tuple[list[float], float, float]:
    """The share certified at each width; the accuracy of f_hat on held-out digits, and on those of
    them that are certified at the last width.
    """
    train, test = split(classes, args)
    targets = jax.random.rademacher(jax.random.key(args.seed), (train.n,), train.inputs.dtype)
    shares, certified = [], np.zeros(test.n, bool)
    right = np.zeros(test.n, bool)
    for width in args.width:
        c = pk.theory.certify(
            pk.TwoLayerNTK(),
            train.inputs,
            train.targets,
            test.inputs,
            width=width,
            size=args.size,
            targets=targets,
            delta=args.delta,
        )
        shares.append(c.share)
        certified = c.certified
        right = np.sign(c.f.leading) == np.asarray(test.targets)
    return shares, float(right.mean()), float(right[certified].mean()) if certified.any() else 1.0


def draw(rows, widths: list[int], law: int | None, path: str) -> None:
    matplotlib.rcParams.update(
        {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    )
    figure = Figure(figsize=(6.4, 1.6 + 0.19 * len(rows)), layout="constrained")
    axis = figure.add_subplot(xlim=(-0.02, 1.02), xlabel="share of held-out digits")
    heights = np.arange(len(rows))
    shares = np.array([row[1] for row in rows])
    axis.hlines(heights, shares.min(1), shares.max(1), color="#cccccc", lw=2, zorder=1)
    colours = ("#9ecae1", "#2171b5", "#08306b")
    for i, width in enumerate(widths):
        label = f"certified at width {width:,}"
        axis.scatter(shares[:, i], heights, s=26, color=colours[i % 3], label=label, zorder=2)
    if law is not None:
        label = f"width {law:,}, not lazy"
        drawn = [row[3] for row in rows]
        axis.scatter(drawn, heights, s=30, marker="D", color="#31a354", label=label, zorder=2)
    accuracy = [row[2] for row in rows]
    axis.scatter(
        accuracy, heights, s=60, marker="|", color="#d94801", label="accuracy of f", zorder=3
    )
    axis.set_yticks(heights, [f"{a} / {b}" for (a, b), *_ in rows], fontsize=7.5)
    axis.set_ylim(-0.8, len(rows) - 0.2)
    axis.grid(axis="x", color="#eeeeee")
    axis.set_axisbelow(True)
    columns = len(widths) + 1 if law is None else 2
    figure.legend(loc="outside upper center", ncols=columns, fontsize=8)
    figure.savefig(path, dpi=150)
    print(f"figure: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = list(itertools.combinations(range(10), 2))
    parser.add_argument("--width", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--pairs", type=pair, nargs="+", default=every, metavar="A,B")
    parser.add_argument("--delta", type=float, default=0.1)
    parser.add_argument("--size", type=float, default=1.0)
    parser.add_argument(
        "--digits", type=int, default=1000, help="how many to split 4:1 (default 1000, all)"
    )
    parser.add_argument("--law", type=int, metavar="WIDTH", help="of networks that are not lazy")
    parser.add_argument("--draws", type=int, default=100, help="pairs of them that are drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="certified_pairs.png")
    args = parser.parse_args()

    print("pair   " + "".join(f"{f'width {width:,}':>15}" for width in args.width), end="")
    print("  accuracy of f  of those certified", end="")
    print("" if args.law is None else f"{f'law, {args.law:,}':>14}")
    rows = []
    for classes in args.pairs:
        shares, accuracy, proven = certify_pair(classes, args)
        drawn = None if args.law is None else certify_by_law(classes, args)
        rows.append((classes, shares, accuracy, drawn))
        cells = "".join(f"{share:>15.1%}" for share in shares)
        last = "" if drawn is None else f"{drawn:>14.1%}"
        print(
            f"{classes[0]} / {classes[1]}  {cells}{accuracy:>15.1%}{proven:>20.1%}{last}",
            flush=True,
        )
    means = np.mean([row[1] for row in rows], axis=0)
    lows = np.min([row[1] for row in rows], axis=0)
    for width, mean, low in zip(args.width, means, lows, strict=True):
        print(f"width {width:,}: {mean:.1%} certified on average, {low:.1%} at the hardest pair")
    if args.law is not None:
        drawn = [row[3] for row in rows]
        print(
            f"width {args.law:,}, not lazy: {np.mean(drawn):.1%} certified on average, "
            f"{min(drawn):.1%} at the hardest pair"
        )
    print(f"accuracy of f: {np.mean([row[2] for row in rows]):.1%} on average")
    draw(sorted(rows, key=lambda row: row[1]), args.width, args.law, args.figure)


if __name__ == "__main__":
    main()
