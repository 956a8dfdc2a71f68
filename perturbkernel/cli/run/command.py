"""The command `perturbkernel run`: f, its perturbations, g, and a report.

This module reads the command; `perturbkernel.cli.run.experiment` carries it out, and is imported
only then.
"""

import argparse
import json
import shlex
from pathlib import Path

from perturbkernel.cli import options


def add_command(commands, epilog: str) -> None:
    """Adds `run` to the subparsers of the command line."""
    commands.add_parser(
        "run",
        help="learn from perturbations: train, attack, train on the attack",
        description="Train an infinitely wide network f, perturb its training points toward "
        "random labels, train a second network g on the perturbations and these labels alone, and "
        "print how often both classify clean data correctly.",
        epilog="examples:\n"
        "  perturbkernel run                              # digits, scenario (a)\n"
        "  perturbkernel run --scenario b --size 1.4 --out results  # with a page\n"
        "  perturbkernel run --data shifted_gaussian --n 1000 --d 100 --size 0.01\n"
        "  perturbkernel run --data mine.npz --classes cat dog --loss logistic --time 3\n"
        "  perturbkernel run --classes 0 1 2 3 4 5 6 7 8 9 --targets next\n"
        "  perturbkernel run --robust 0.5 1 2             # accuracy under attack\n"
        "  perturbkernel run --loss squared --time inf --ridge 0.1 --robust 1 --certified\n"
        "  perturbkernel run --carrier uniform --carrier-points 4000 --at carrier\n"
        "  perturbkernel run --config results/report.json --seed 1  # repeat a run\n\n" + epilog,
        usage="%(prog)s [options]",
        options=_add_options,
    )


def _add_options(run: argparse.ArgumentParser) -> None:
    _add_data_options(run)
    _add_perturbation_options(run)
    _add_training_options(run)
    _add_second_training_options(run)
    _add_robustness_options(run)
    _add_output_options(run)
    run.set_defaults(function=_run)


def _add_data_options(run: argparse.ArgumentParser) -> None:
    group = run.add_argument_group("data")
    group.add_argument(
        "--data",
        default="mnist5k",
        metavar="NAME|FILE",
        help="the data set, by name: mnist5k and digits (installed), gaussian and "
        "shifted_gaussian (drawn), mnist, fashion_mnist and cifar10 (read from --path). Or a file: "
        ".npz with arrays `inputs`, (n, d) or images (n, h, w) or (n, h, w, c), and `targets`, "
        "(n,); .csv or .tsv with --label; or a folder with one folder of images per class "
        "(default: mnist5k)",
    )
    group.add_argument(
        "--path",
        metavar="DIR",
        help="folder with the files of mnist, fashion_mnist or cifar10 (default: looked for in the "
        "folder that PERTURBKERNEL_DATA names, or in /usr/share/datasets)",
    )
    group.add_argument(
        "--label", metavar="COLUMN", help="name of the column of a table that holds the labels"
    )
    group.add_argument(
        "--classes",
        nargs="+",
        metavar="LABEL",
        help="keep the rows with these labels, written as in the file. Of two labels the first "
        "becomes +1 and the second -1; more than two train one output per class",
    )
    group.add_argument(
        "--n",
        type=options.count,
        help="number of training and test points together (default: 1000 if drawn, else all)",
    )
    group.add_argument("--d", type=options.count, help="dimension of drawn data (default: 100)")
    group.add_argument(
        "--shift",
        type=options.number,
        help="distance of the means of shifted_gaussian from 0, in each coordinate (default: 0.3)",
    )
    group.add_argument(
        "--test",
        type=options.share,
        help="share of the points held out for testing, if the data have no test set of their own "
        "(default: 0.2)",
    )


def _add_perturbation_options(run: argparse.ArgumentParser) -> None:
    from perturbkernel.attacks.one_step import DIRECTIONS, NORMS
    from perturbkernel.data.draws import CLASS_RULES
    from perturbkernel.learning.experiment import PLACES, SCENARIOS

    group = run.add_argument_group("perturbations")
    group.add_argument(
        "--scenario",
        choices=SCENARIOS,
        help="train g on a, the perturbations alone, or b, the perturbed data (default: a)",
    )
    group.add_argument(
        "--carrier",
        metavar="FILE",
        help="add the perturbations to other points, called the carrier: an array in a .npy file, "
        "or the word uniform or gaussian for noise",
    )
    group.add_argument(
        "--carrier-points",
        type=options.count,
        metavar="M",
        help="number of noise points (default: as many as training points)",
    )
    group.add_argument(
        "--at",
        choices=PLACES,
        default="data",
        help="take the gradients at the training points (data) or at the carrier (default: data)",
    )
    group.add_argument(
        "--size",
        type=options.positive,
        default=0.14,
        help="perturbation size, epsilon (default: 0.14)",
    )
    group.add_argument(
        "--norm", choices=NORMS, default="l2", help="norm of the perturbations (default: l2)"
    )
    group.add_argument(
        "--direction",
        choices=DIRECTIONS,
        default="gradient",
        help="perturb along the gradient, or along the gradient with frozen gates, as in the "
        "paper's theory (default: gradient)",
    )
    group.add_argument(
        "--bounds",
        nargs=2,
        type=options.limit,
        metavar=("LOW", "HIGH"),
        help="clip perturbed inputs to this range, such as 0 1 for pixels (default: no clipping)",
    )
    group.add_argument(
        "--targets",
        choices=CLASS_RULES,
        default="coin_flip",
        help="how to draw the labels that perturbations aim at; the last two rules are for more "
        "than two classes (default: coin_flip)",
    )


def _add_training_options(run: argparse.ArgumentParser) -> None:
    group = run.add_argument_group("training of both networks")
    group.add_argument(
        "--slope",
        type=options.slope,
        default=0.0,
        help="slope of the leaky ReLU, 0 to 1 (default: 0)",
    )
    group.add_argument(
        "--train-bias",
        action="store_true",
        help="train the biases as well as the weights, as the paper's code does (default: weights "
        "only, as in its theory)",
    )
    group.add_argument(
        "--loss",
        choices=_losses(),
        default="identity",
        help="training loss; for more than two classes identity, squared or softmax (default: "
        "identity)",
    )
    group.add_argument(
        "--time", type=options.duration, help="training time of gradient flow (default: 10)"
    )
    group.add_argument(
        "--ridge",
        type=options.penalty,
        default=0.0,
        metavar="R",
        help="add R/2 times the squared norm of the network to the mean loss, as weight decay does "
        "(default: 0)",
    )
    group.add_argument(
        "--learning-rate",
        type=options.positive,
        help="train by heavy ball, gradient descent with momentum, at this rate (needs --steps; "
        "default: gradient flow)",
    )
    group.add_argument("--steps", type=options.count, help="number of steps of heavy ball")
    group.add_argument(
        "--momentum", type=options.momentum, help="momentum of heavy ball (default: 0.9)"
    )


def _add_second_training_options(run: argparse.ArgumentParser) -> None:
    group = run.add_argument_group(
        "training of the second network g", "Each of these defaults to the option of both networks."
    )
    group.add_argument("--slope-g", type=options.slope, help="the slope of g")
    group.add_argument(
        "--train-bias-g", action=argparse.BooleanOptionalAction, help="train the biases of g"
    )
    group.add_argument("--loss-g", choices=_losses(), help="the loss of g")
    group.add_argument("--time-g", type=options.duration, help="the training time of g")
    group.add_argument("--ridge-g", type=options.penalty, metavar="R", help="the ridge of g")
    group.add_argument("--learning-rate-g", type=options.positive, help="the learning rate of g")
    group.add_argument("--steps-g", type=options.count, help="the steps of g")
    group.add_argument("--momentum-g", type=options.momentum, help="the momentum of g")


def _add_robustness_options(run: argparse.ArgumentParser) -> None:
    from perturbkernel.attacks.norms import NORMS
    from perturbkernel.attacks.robust_accuracy import ATTACKS

    group = run.add_argument_group("accuracy under attack, of f and of g on the test points")
    group.add_argument(
        "--robust",
        nargs="+",
        type=options.positive,
        metavar="SIZE",
        help="attack both networks with perturbations of these sizes (default: no attack)",
    )
    group.add_argument(
        "--robust-norm",
        nargs="+",
        choices=NORMS,
        default=["l2"],
        help="norms of these perturbations; l0 needs --bounds (default: l2)",
    )
    group.add_argument(
        "--robust-attack",
        choices=ATTACKS,
        default="worst_case",
        help="worst_case takes the worst of all attacks; minimum_norm is the fastest (default: "
        "worst_case)",
    )
    group.add_argument(
        "--robust-points",
        type=options.count,
        metavar="M",
        help="attack at most M test points (default: 500; 100 with --certified)",
    )
    group.add_argument(
        "--certified",
        action="store_true",
        help="also print certified accuracy, below which no attack can bring a network (l2, linf "
        "and l1). Takes half a second per 28 x 28 image and network",
    )


def _add_output_options(run: argparse.ArgumentParser) -> None:
    group = run.add_argument_group("output")
    group.add_argument(
        "--out",
        metavar="DIR",
        help="write report.html, report.json, arrays.npz and the figures to DIR (default: print "
        "only)",
    )
    group.add_argument(
        "--config",
        metavar="FILE",
        help="repeat the run that wrote this report.json; other options replace those of that run",
    )
    group.add_argument(
        "--seed",
        type=options.seed,
        default=0,
        help="split the data by jax.random.key(SEED), and draw all else by "
        "jax.random.key(SEED + 1) (default: 0)",
    )
    group.add_argument(
        "--precision",
        type=int,
        choices=(32, 64),
        default=32,
        help="bits of the floating-point numbers (default: 32)",
    )
    group.add_argument(
        "--control-draws",
        type=options.count,
        default=10,
        help="number of draws of each random control (default: 10)",
    )
    options.add_compilation_cache(group)
    group.add_argument("--quiet", action="store_true", help="show no progress")


def _losses() -> tuple[str, ...]:
    """The names of all losses."""
    from perturbkernel.training.losses import LOSSES

    return tuple(LOSSES)


def words_of_run(file: str) -> list[str]:
    """The words after `perturbkernel run` of the command that wrote a report.json.

    Raises:
        ValueError: the file cannot be read, or is not the report.json of a run.
    """
    try:
        record = json.loads(Path(file).read_text())
        command = shlex.split(record["configuration"]["command"])
    except OSError as error:
        raise ValueError(f"config {file}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError):
        command = []
    if command[:2] != ["perturbkernel", "run"]:
        raise ValueError(f"config must be the report.json of a run; {file} is not")
    return command[2:]


def _run(args: argparse.Namespace) -> int:
    from perturbkernel.cli.run.experiment import run

    return run(args)
