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
        help="train f, perturb its data, train g on the perturbations, and compare",
        description="Trains a wide network f in closed form, perturbs its training points, "
        "trains a second network g on nothing but the perturbations, and shows how it classifies "
        "clean data.",
        epilog="examples:\n"
        "  perturbkernel run                                          # real digits, scenario (a)\n"
        "  perturbkernel run --scenario b --size 1.4 --out results    # perturbed digits; a page\n"
        "  perturbkernel run --data shifted_gaussian --n 1000 --d 100 --size 0.01 --train-bias\n"
        "  perturbkernel run --carrier uniform --carrier-points 4000 --at carrier   # noise\n"
        "  perturbkernel run --data mine.npz --classes cat dog --loss logistic --time 3\n"
        "  perturbkernel run --robust 0.5 1 2 --robust-attack apgd      # accuracy under attack\n"
        "  perturbkernel run --loss squared --time inf --ridge 0.1 --robust 0.5 1 --certified\n"
        "  perturbkernel run --classes 0 1 2 3 4 5 6 7 8 9 --targets next        # ten digits\n"
        "  perturbkernel run --config results/report.json --seed 1    # that run, another seed\n\n"
        + epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
        help="mnist5k (digits that come with the installation, default), digits (8 x 8, with "
        "scikit-learn), gaussian, shifted_gaussian, mnist, fashion_mnist or cifar10 (with --path), "
        "a .npz file with arrays `inputs`, (n, d) or images (n, h, w) or (n, h, w, c), and "
        "`targets` (n,), a .csv or .tsv file (with --label), or a folder with a folder of images "
        "for each class",
    )
    group.add_argument(
        "--path",
        metavar="DIR",
        help="folder with the files of mnist, fashion_mnist or cifar10; left out, it is looked for "
        "in the folder that PERTURBKERNEL_DATA names, or in /usr/share/datasets",
    )
    group.add_argument(
        "--label", metavar="COLUMN", help="the column of labels, as the table's first line has it"
    )
    group.add_argument(
        "--classes",
        nargs="+",
        metavar="LABEL",
        help="labels as the file has them: of two the first becomes +1, or more than two",
    )
    group.add_argument(
        "--n",
        type=options.count,
        help="training and test points together (synthetic: 1000; otherwise all)",
    )
    group.add_argument("--d", type=options.count, help="dimension of synthetic data (default 100)")
    group.add_argument(
        "--shift",
        type=options.number,
        help="of shifted_gaussian's means (default 0.3)",
    )
    group.add_argument(
        "--test",
        type=options.share,
        help="share held out where the source has no test set (0.2)",
    )


def _add_perturbation_options(run: argparse.ArgumentParser) -> None:
    from perturbkernel.attacks.one_step import DIRECTIONS, NORMS
    from perturbkernel.data.draws import CLASS_RULES
    from perturbkernel.learning.experiment import PLACES, SCENARIOS

    group = run.add_argument_group("perturbations")
    group.add_argument(
        "--scenario",
        choices=SCENARIOS,
        help="a: perturbations alone (default); b: added to the data",
    )
    group.add_argument(
        "--carrier",
        metavar="FILE",
        help="instead of a scenario: what they are added to, a .npy array, or uniform or gaussian "
        "noise",
    )
    group.add_argument(
        "--carrier-points",
        type=options.count,
        metavar="M",
        help="of noise (default: as many as training points)",
    )
    group.add_argument(
        "--at",
        choices=PLACES,
        default="data",
        help="perturb the training points (default), or the carrier itself",
    )
    group.add_argument(
        "--size", type=options.positive, default=0.14, help="of each, in input units (default 0.14)"
    )
    group.add_argument(
        "--norm", choices=NORMS, default="l2", help="in which one step is measured (default l2)"
    )
    group.add_argument(
        "--direction",
        choices=DIRECTIONS,
        default="gradient",
        help="frozen_gates: the paper's theory",
    )
    group.add_argument(
        "--bounds",
        nargs=2,
        type=options.limit,
        metavar=("LOW", "HIGH"),
        help="clip input + perturbation",
    )
    group.add_argument(
        "--targets",
        choices=CLASS_RULES,
        default="coin_flip",
        help="labels that perturbations aim at (default coin_flip); the last two are for more than "
        "two classes",
    )


def _add_training_options(run: argparse.ArgumentParser) -> None:
    group = run.add_argument_group("training of both networks")
    group.add_argument(
        "--slope", type=options.slope, default=0.0, help="of the leaky ReLU, 0 to 1 (default 0)"
    )
    group.add_argument(
        "--train-bias",
        action="store_true",
        help="train the biases too, as the paper's published code does and its theory does not",
    )
    group.add_argument(
        "--loss",
        choices=_losses(),
        default="identity",
        help="default identity; of more than two classes identity, squared or softmax",
    )
    group.add_argument("--time", type=options.duration, help="of gradient flow (default 10)")
    group.add_argument(
        "--ridge",
        type=options.penalty,
        default=0.0,
        metavar="R",
        help="adds R/2 times the squared norm of f to the mean loss: weight decay (default 0)",
    )
    group.add_argument(
        "--learning-rate",
        type=options.positive,
        help="heavy ball instead of gradient flow, with --steps",
    )
    group.add_argument("--steps", type=options.count, help="of heavy ball")
    group.add_argument("--momentum", type=options.momentum, help="of heavy ball (default 0.9)")


def _add_second_training_options(run: argparse.ArgumentParser) -> None:
    group = run.add_argument_group("training of the second network, where it differs")
    group.add_argument("--slope-g", type=options.slope)
    group.add_argument("--train-bias-g", action=argparse.BooleanOptionalAction)
    group.add_argument("--loss-g", choices=_losses())
    group.add_argument("--time-g", type=options.duration)
    group.add_argument("--ridge-g", type=options.penalty, metavar="R")
    group.add_argument("--learning-rate-g", type=options.positive)
    group.add_argument("--steps-g", type=options.count)
    group.add_argument("--momentum-g", type=options.momentum)


def _add_robustness_options(run: argparse.ArgumentParser) -> None:
    from perturbkernel.attacks.norms import NORMS
    from perturbkernel.attacks.robust_accuracy import ATTACKS

    group = run.add_argument_group("accuracy under attack, of f and of g on the test points")
    group.add_argument(
        "--robust",
        nargs="+",
        type=options.positive,
        metavar="SIZE",
        help="attack both networks with perturbations of these sizes",
    )
    group.add_argument(
        "--robust-norm",
        nargs="+",
        choices=NORMS,
        default=["l2"],
        help="default l2; l0 needs bounds",
    )
    group.add_argument(
        "--robust-attack",
        choices=ATTACKS,
        default="worst_case",
        help="default worst_case, the strongest of all; minimum_norm is fast",
    )
    group.add_argument(
        "--robust-points",
        type=options.count,
        metavar="M",
        help="test points that are attacked, at most (default 500; 100 with --certified)",
    )
    group.add_argument(
        "--certified",
        action="store_true",
        help="beside it the accuracy that no attack whatever can go below, in l2, linf and l1: for "
        "images of 28 x 28 half a second or so for each point and network",
    )


def _add_output_options(run: argparse.ArgumentParser) -> None:
    group = run.add_argument_group("output")
    group.add_argument(
        "--out",
        metavar="DIR",
        help="write report.html, report.json, arrays.npz and the figures there",
    )
    group.add_argument(
        "--config",
        metavar="FILE",
        help="repeat the run that wrote this report.json; options given beside it replace its own",
    )
    group.add_argument(
        "--seed",
        type=options.seed,
        default=0,
        help="of the split, jax.random.key(SEED), and of all other draws, jax.random.key(SEED + 1)",
    )
    group.add_argument("--precision", type=int, choices=(32, 64), default=32)
    group.add_argument(
        "--control-draws",
        type=options.count,
        default=10,
        help="draws of each random control (default 10)",
    )
    options.add_compilation_cache(group)
    group.add_argument("--quiet", action="store_true", help="no progress on standard error")


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
