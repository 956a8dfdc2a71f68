"""Certificates at width 100: which signs the published networks have, before they are trained.

    python examples/certify_law.py                              # width 100, as published; minutes
    python examples/certify_law.py --width 1000 --draws 150 --pilot 50
    python examples/certify_law.py --start centred --check 200

f learns 800 digits (1 against 2) by the published steps, and g nothing but f's perturbations of
them, with as many labels of each class. Networks of this width move far from where they start, so
that no argument of laziness reaches them. `theory.certify_experiment` draws pairs of networks
neuron by neuron, and says at which of 200 held-out digits f and g have one known sign, with
probability 1 - delta at all of them together. Then `--check` further pairs are trained by other
code, `networks.ensemble`, and those that break the statement are counted. Draws how sure either
network is of every digit.
"""

import argparse
import time

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.special import log_ndtr
from tqdm import tqdm

import perturbkernel as pk

AT_ONCE = 10


def train_pairs(count: int, train, test, targets, descents, args, key):
    """Outputs at the test digits of `count` pairs, (count, m) each, trained as whole networks."""
    centred = args.start == "centred"
    found = []

    def trained(keys, x, y, descent):
        def init(key):
            return pk.networks.TwoLayerNetwork.init(
                train.d, args.width, train_bias=True, doubled=args.start == "doubled", key=key
            )

        before = jax.vmap(init)(keys)
        after, _ = pk.networks.ensemble(
            before,
            x,
            y,
            learning_rate=descent.learning_rate,
            momentum=descent.momentum,
            steps=descent.steps,
        )
        return pk.networks.Centred(after, before) if centred else after

    for begin in tqdm(range(0, count, AT_ONCE), desc="check"):
        now = min(AT_ONCE, count - begin)
        keys = jax.random.split(jax.random.fold_in(key, begin), (2, now))
        f = trained(keys[0], train.inputs, train.targets, descents[0])
        gradients = np.asarray(f.input_gradient(train.inputs))
        lengths = np.linalg.norm(gradients, axis=-1, keepdims=True)
        perturbed = args.size * targets[:, None] * gradients / lengths
        g = trained(keys[1], perturbed, targets, descents[1])
        found.append((np.asarray(f(test.inputs)), np.asarray(g(test.inputs))))
    f, g = zip(*found, strict=True)
    return np.concatenate(f), np.concatenate(g)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, nargs=2, default=[1, 2])
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--start", choices=("random", "centred", "doubled"), default="random")
    parser.add_argument("--delta", type=float, default=0.1)
    parser.add_argument("--size", type=float, default=1.0)
    parser.add_argument("--rates", type=float, nargs=2, default=[0.01, 0.1], metavar=("F", "G"))
    parser.add_argument("--steps", type=int, nargs=2, default=[100, 20], metavar=("F", "G"))
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--pilot", type=int, default=100)
    parser.add_argument("--check", type=int, default=0, help="pairs to train by other code")
    parser.add_argument("--digits", type=int, default=1000, help="how many to split 4:1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="certified_law.png")
    return parser.parse_args()


def count_broken(c, f, g) -> None:
    """Says how many of the trained pairs, outputs (count, m) each, break each statement."""
    for name, certificate, outputs in (
        ("f", c.f, [f]),
        ("g", c.g, [g]),
        ("f and g", c, [f, g]),
    ):
        known = certificate.certified
        signed = np.stack(outputs)[..., known] * c.signs[known]
        broken = int((signed <= 0).any(axis=(0, 2)).sum())
        stated = certificate.simulation.level
        print(
            f"{name}: {known.mean():.1%} certified; {broken} of {len(f)} trained networks "
            f"break it ({broken / len(f):.1%}, at most {stated:.1%} stated)"
        )


def point_by_point(certificate) -> None:
    """Says what adding up the failures of single points would certify."""
    sure = np.sort(certificate.strength)[::-1]
    level = certificate.simulation.level
    gaussian = np.mean(np.cumsum(np.exp(log_ndtr(-sure))) <= level)
    chernoff = np.mean(np.cumsum(np.exp(-(np.maximum(sure, 0) ** 2) / 2)) <= level)
    print(
        f"f, estimates from mean / standard deviation: a union over points would certify "
        f"{gaussian:.1%}, Chernoff's bound {chernoff:.1%}"
    )


def draw(c, path: str) -> None:
    matplotlib.rcParams.update(
        {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    )
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axis = figure.add_subplot(xlabel="f: mean / standard deviation", ylabel="g: the same")
    known = c.certified
    for which, label, colour in (
        (known, f"certified: {known.mean():.1%}", "#2171b5"),
        (~known, "not certified", "#d94801"),
    ):
        axis.scatter(c.f.strength[which], c.g.strength[which], s=14, color=colour, label=label)
    axis.axhline(0, color="#cccccc", lw=1, zorder=0)
    axis.axvline(0, color="#cccccc", lw=1, zorder=0)
    axis.set_title(f"width {c.f.width:,}, start {c.f.start}", fontsize=10)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    print(f"figure: {path}")


def main() -> None:
    args = parse()
    digits = pk.data.mnist5k(classes=tuple(args.classes))
    if args.digits < digits.n:
        digits = digits.subset(args.digits, key=jax.random.key(0))
    train, test = digits.split(test=0.2, key=jax.random.key(0))
    target_key, draw_key, check_key = jax.random.split(jax.random.key(args.seed), 3)
    targets = np.asarray(pk.data.draw_targets("balanced", train.n, key=target_key), np.float32)
    rate_f, rate_g = args.rates
    steps_f, steps_g = args.steps
    descents = (pk.HeavyBall(rate_f, steps_f), pk.HeavyBall(rate_g, steps_g))
    began = time.process_time()
    with tqdm(total=args.pilot + args.draws, desc="pairs of networks") as progress:
        c = pk.theory.certify_experiment(
            pk.TwoLayerNTK(train_bias=True),
            train.inputs,
            train.targets,
            test.inputs,
            width=args.width,
            dynamics=descents,
            size=args.size,
            targets=targets,
            delta=args.delta,
            start=args.start,
            draws=args.draws,
            pilot=args.pilot,
            progress=progress,
            key=draw_key,
        )
    print(c)
    point_by_point(c.f)
    right = c.signs == np.asarray(test.targets)
    print(
        f"the signs are the digits' labels at {right.mean():.1%} of the digits, and at "
        f"{right[c.certified].mean():.1%} of those certified"
    )
    print(f"{time.process_time() - began:.0f} s of processor time")
    if args.check:
        f, g = train_pairs(args.check, train, test, targets, descents, args, check_key)
        count_broken(c, f, g)
    draw(c, args.figure)


if __name__ == "__main__":
    main()
