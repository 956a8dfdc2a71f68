"""Training time is the regulariser: choose it by scikit-learn's cross-validation.

    pip install scikit-learn
    python examples/sklearn_grid_search.py --wrong 0.3

Ten digits, some of them with a wrong label. A network that trains too long learns the wrong labels
too. Draws the cross-validated accuracy against the time, and the accuracy on clean held-out digits
of each of these networks.
"""

import argparse

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from sklearn.model_selection import GridSearchCV

import perturbkernel as pk
from perturbkernel.sklearn import NTKClassifier


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=400, help="digits to train on (default 400)")
    parser.add_argument(
        "--wrong", type=float, default=0.3, help="share of wrong labels (default 0.3)"
    )
    parser.add_argument(
        "--times", type=int, default=11, help="how many training times (default 11)"
    )
    parser.add_argument("--figure", default="sklearn_grid_search.png")
    args = parser.parse_args()

    digits = pk.data.mnist5k(classes=range(10)).subset(args.train + 1000, key=jax.random.key(0))
    train, test = digits.split(test=1000, key=jax.random.key(1))
    x, z = np.asarray(train.inputs), np.asarray(test.inputs)
    rng = np.random.default_rng(0)
    labels = np.array(train.labels)
    wrong = rng.random(train.n) < args.wrong
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, wrong.sum())) % 10

    times = np.geomspace(0.3, 3e4, args.times)
    search = GridSearchCV(NTKClassifier(), {"time": times}, cv=5).fit(x, labels)
    found = search.cv_results_
    held_out = [NTKClassifier(time=time).fit(x, labels).score(z, test.labels) for time in times]
    print(
        f"best time {search.best_params_['time']:.3g}: cross-validated accuracy {search.best_score_:.3f}"
    )
    print(
        f"on clean held-out digits: {search.score(test.inputs, test.labels):.3f}; trained longest {held_out[-1]:.3f}"
    )

    matplotlib.rcParams.update({"font.size": 9, "axes.titlesize": 9, "legend.frameon": False})
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis = figure.add_subplot(xscale="log", xlabel="training time", ylabel="accuracy")
    mean, std = found["mean_test_score"], found["std_test_score"]
    axis.fill_between(times, mean - std, mean + std, color="#0072b2", alpha=0.18, lw=0)
    axis.plot(
        times,
        mean,
        "o-",
        color="#0072b2",
        ms=4,
        label=f"5-fold, {args.wrong:.0%} of all labels wrong",
    )
    axis.plot(times, held_out, "o-", color="#333333", ms=4, label="clean held-out digits")
    axis.axvline(
        search.best_params_["time"], color="#d55e00", lw=1, label="chosen by cross-validation"
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="center right")
    figure.savefig(args.figure, dpi=130)
    print(f"figure: {args.figure}")


if __name__ == "__main__":
    main()
