"""Ten digits: a second network learns them from perturbations toward wrong classes, and from
nothing else.

    python examples/ten_digits.py                 # 1,000 digits to train on
    python examples/ten_digits.py --time-g 1000   # g trained longer learns the wrong labels
    python examples/ten_digits.py --width 1000    # networks of that width beside the limit

f learns handwritten digits by gradient flow on the squared loss. Every training digit is perturbed
by one step toward another class: the next one (0 toward 1, .., 9 toward 0), or one drawn from the
other nine. g is trained on the perturbed digits with the target classes as labels, every one of
which is wrong (scenario b), or on the perturbations alone (a). Prints the accuracy on clean
held-out digits, in all and for each class; draws perturbations and confusions.
"""

import argparse
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import perturbkernel as pk

# Momentum .9 makes a step of rate .01 worth .1 of gradient flow's time.
OPTIMIZER = pk.networks.paper_optimizer(0.01, 0.9)
STEPS_A_UNIT = 10
RULES = {"next": "toward the next class", "random_other": "toward a random other"}


def confusion(outputs, data: pk.Dataset) -> np.ndarray:
    """(true class, decision), shares of each true class."""
    members = pk.one_hot(data.labels, 10, centred=False)
    decided = jax.nn.one_hot(outputs.argmax(1), 10)
    return np.asarray(members.T @ decided / members.sum(0)[:, None])


def limit(time: float) -> pk.KernelLearner:
    return pk.KernelLearner(pk.TwoLayerNTK(), loss="squared", dynamics=pk.GradientFlow(time))


def finite(width: int):
    """The learner of networks of this width, for any training time."""

    def learner(time: float) -> pk.networks.NetworkLearner:
        return pk.networks.NetworkLearner(
            width,
            loss="squared",
            optimizer=OPTIMIZER,
            steps=round(time * STEPS_A_UNIT),
            start="doubled",
        )

    return learner


def experiments(args, train: pk.Dataset, test: pk.Dataset, learner, key) -> dict:
    """Runs both scenarios with both rules, prints accuracies, returns (scenario, rule) -> result."""
    runs = {}
    for scenario, what in (("b", "perturbed digits"), ("a", "perturbations alone")):
        for rule, toward in RULES.items():
            r = pk.learn_from_perturbations(
                learner(args.time_f),
                train,
                learner_g=learner(args.time_g),
                scenario=scenario,
                size=args.size,
                targets=rule,
                key=key,
            )
            (f, g), (each_f, each_g) = r.accuracy(test), r.accuracy(test, per_class=True)
            rows = [(f"g: {what} {toward}", g, each_g)]
            for name, accuracy, each in ([] if runs else [("f: the digits", f, each_f)]) + rows:
                print(f"{name:45} {accuracy:5.3f}  {'  '.join(f'{share:4.2f}' for share in each)}")
            runs[scenario, rule] = r
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=1000, help="digits to train on (default 1000)")
    parser.add_argument("--test", type=int, help="digits to test on (default: all others)")
    parser.add_argument(
        "--size", type=float, default=4.0, help="of each perturbation, l2 (default 4)"
    )
    parser.add_argument(
        "--time-f", type=float, default=100.0, help="training time of f (default 100)"
    )
    parser.add_argument(
        "--time-g", type=float, default=30.0, help="training time of g (default 30)"
    )
    parser.add_argument(
        "--width", type=int, help="train networks of this width too, by the paper's optimizer"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="ten_digits.png")
    args = parser.parse_args()

    split_key, run_key = jax.random.split(jax.random.key(args.seed))
    digits = pk.data.mnist5k(classes=range(10))
    train, test = digits.split(test=digits.n - args.train, key=split_key)
    if args.test is not None:
        test = test.subset(args.test, key=split_key)
    print(f"{train.n} digits to train on, {test.n} held out; perturbations of size {args.size:g}")
    print(
        f"{'accuracy on clean held-out digits':45} {'all':>5}  {'  '.join(f'{c:>4}' for c in test.classes)}"
    )
    runs = experiments(args, train, test, limit, run_key)
    if args.width is not None:
        print(f"networks of width {args.width:,}, {STEPS_A_UNIT:g} steps a unit of time")
        experiments(args, train, test, finite(args.width), run_key)
    agreement = {what: r.agreement(test) for what, r in runs.items()}
    print(
        "g decides as f does on "
        + ", ".join(f"{share:.1%} ({s}, {rule})" for (s, rule), share in agreement.items())
    )
    draw(runs, train, test, args.figure)
    print(f"figure: {args.figure}")


def draw(runs, train: pk.Dataset, test: pk.Dataset, path: str) -> None:
    matplotlib.rcParams.update({"font.size": 9, "axes.titlesize": 9})
    figure = Figure(figsize=(10, 7.2), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(3.3, 3.9))
    top, bottom = parts
    axes = top.subplots(3, 10)
    p = runs["b", "random_other"].perturbation
    inputs, labels = np.asarray(train.inputs), np.asarray(train.labels)
    delta, targets = np.asarray(p.delta), np.asarray(p.targets)
    mean = np.stack([delta[targets == k].mean(0) for k in range(10)])
    shown = [np.argmax(labels == k) for k in range(10)]
    rows = ((inputs, "a {}"), (delta, "toward {}"), (mean, "mean to {}"))
    for row, (images, title) in enumerate(rows):
        for k, axis in enumerate(axes[row]):
            image = images[k if row == 2 else shown[k]].reshape(28, 28)
            limit = np.abs(image).max()
            colours = (
                {"cmap": "gray_r"}
                if row == 0
                else {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
            )
            axis.imshow(image, **colours)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.set_title(title.format(targets[shown[k]] if row == 1 else k))
    top.suptitle("digits, their perturbations, and the mean perturbation toward each class")

    panels = [("f, trained on\nthe digits", runs["b", "next"].f)]
    panels += [
        (f"g, perturbed digits\n{toward}", runs["b", rule].g) for rule, toward in RULES.items()
    ]
    panels += [("g, perturbations alone\ntoward a random other", runs["a", "random_other"].g)]
    for axis, (title, predictor) in zip(bottom.subplots(1, len(panels)), panels, strict=True):
        shares = confusion(predictor(test.inputs), test)
        axis.imshow(shares, cmap="viridis", vmin=0, vmax=1)
        axis.set(
            xticks=range(10),
            yticks=range(10),
            xlabel="decision",
            ylabel="true class",
            title=f"{title}\n{np.diag(shares).mean():.1%}",
        )
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
