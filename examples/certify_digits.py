"""The matching theorem on real digits: which signs are proven before anything is trained, and do
they hold?

    python examples/certify_digits.py                       # widths 1,000 and 10,000, centred, with
    training python examples/certify_digits.py --width 100000        # a few minutes and 3 GiB
    python examples/certify_digits.py --start random --width 100000 --no-training

Two networks of finite width: f learns 800 digits (1 against 2), g learns nothing but f's
perturbations of them, labelled by coin flips. For every held-out digit the theorem bounds, from the
data and the width alone, the probability that a network's sign differs from the prediction; digits
are certified while these add up to less than delta. Then both networks are trained and every
certified sign is checked. Draws the certified share against the training time.
"""

import argparse

import jax
import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure

import perturbkernel as pk

STEPS = 24


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--start", choices=("centred", "doubled", "random"), default="centred")
    parser.add_argument("--delta", type=float, default=0.1)
    parser.add_argument("--size", type=float, default=1.0)
    parser.add_argument("--training", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--digits", type=int, default=1000, help="how many to split 4:1 (default 1000, all)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="certified_digits.png")
    args = parser.parse_args()

    digits = pk.data.mnist5k(classes=(1, 2))
    if args.digits < digits.n:
        digits = digits.subset(args.digits, key=jax.random.key(0))
    train, test = digits.split(test=0.2, key=jax.random.key(0))
    x, y, z = train.inputs, train.targets, test.inputs
    f_key, g_key, target_key = jax.random.split(jax.random.key(args.seed), 3)
    targets = jax.random.rademacher(target_key, (train.n,), x.dtype)
    kernel = pk.TwoLayerNTK()
    common = {"delta": args.delta, "start": args.start}
    styles = {"centred": {"centred": True}, "doubled": {"doubled": True}, "random": {}}

    matplotlib.rcParams.update(
        {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    )
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.add_subplot(
        xscale="log",
        xlabel="how far training has come, median T |f_hat|",
        ylabel="share of digits with a certified sign",
    )
    for width in args.width:

        def learner(time, width=width):
            return pk.networks.NetworkLearner(
                width, optimizer=optax.sgd(time / STEPS), steps=STEPS, **styles[args.start]
            )

        time_f = pk.theory.best_time(kernel, x, y, z, width=width, **common)
        f = learner(time_f)(x, y, f_key) if args.training else None
        times = (time_f, "best")
        c = pk.theory.certify(
            kernel,
            x,
            y,
            z,
            width=width,
            size=args.size,
            targets=targets,
            times=times,
            f=f,
            **common,
        )
        print(c)
        if f is not None:
            g = learner(c.g.time)(c.perturbed, targets, g_key)
            same = np.sign(f(z)) == np.sign(g(z))
            print(
                f"trained: f and g agree on {same.mean():.1%} of the digits, "
                f"on {(same & c.certified).sum()} of the {c.certified.sum()} certified"
            )
        print()
        grid = time_f * np.geomspace(0.02, 20, 25)
        share, outputs = pk.theory.certified_share(kernel, x, y, z, grid, width=width, **common)
        axis.plot(outputs, share, label=f"width {width:,}")
    axis.axvline(1, color="#999999", lw=0.8)
    axis.set_ylim(-0.02, 1.03)
    axis.legend()
    figure.savefig(args.figure, dpi=150)
    print(f"figure: {args.figure}")


if __name__ == "__main__":
    main()
