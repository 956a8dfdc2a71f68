"""The command `perturbkernel run`: f, its perturbations, g, and a report."""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from perturbkernel import report as reports
from perturbkernel.attacks.one_step import DIRECTIONS, NORMS
from perturbkernel.cli import options
from perturbkernel.cli.run.inputs import (
    SYNTHETIC,
    SYNTHETIC_POINTS,
    check_classes,
    check_options,
    draw,
    load,
    load_carrier,
)
from perturbkernel.cli.run.results import arrays_of, configuration_of, curve_of, map_of, metrics_of
from perturbkernel.data.draws import CLASS_RULES
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.learning.experiment import PLACES, SCENARIOS, learn_from_perturbations
from perturbkernel.report.html import text_row
from perturbkernel.training.dynamics import GradientFlow, HeavyBall
from perturbkernel.training.fit import KernelLearner
from perturbkernel.training.losses import LOSSES

_MOMENTUM = 0.9  # of the paper's experiments


def add_command(commands, epilog: str) -> None:
    """Adds `run` to the subparsers of the command line."""
    run = commands.add_parser(
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
        "  perturbkernel run --classes 0 1 2 3 4 5 6 7 8 9 --targets next        # ten digits\n\n"
        + epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = run.add_argument_group("data")
    group.add_argument(
        "--data",
        default="mnist5k",
        metavar="NAME|FILE",
        help="mnist5k (digits that come with the installation, default), gaussian, "
        "shifted_gaussian, mnist or fashion_mnist (with --path), or a .npz file with arrays "
        "`inputs`, (n, d) or images (n, h, w) or (n, h, w, c), and `targets` (n,)",
    )
    group.add_argument(
        "--path", metavar="DIR", help="folder with the IDX files of mnist or fashion_mnist"
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
    group.add_argument("--norm", choices=NORMS, default="l2")
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
        choices=tuple(LOSSES),
        default="identity",
        help="default identity; of more than two classes identity, squared or softmax",
    )
    group.add_argument("--time", type=options.duration, help="of gradient flow (default 10)")
    group.add_argument(
        "--learning-rate",
        type=options.positive,
        help="heavy ball instead of gradient flow, with --steps",
    )
    group.add_argument("--steps", type=options.count, help="of heavy ball")
    group.add_argument("--momentum", type=options.momentum, help="of heavy ball (default 0.9)")
    group = run.add_argument_group("training of the second network, where it differs")
    group.add_argument("--slope-g", type=options.slope)
    group.add_argument("--train-bias-g", action=argparse.BooleanOptionalAction)
    group.add_argument("--loss-g", choices=tuple(LOSSES))
    group.add_argument("--time-g", type=options.duration)
    group.add_argument("--learning-rate-g", type=options.positive)
    group.add_argument("--steps-g", type=options.count)
    group.add_argument("--momentum-g", type=options.momentum)

    group = run.add_argument_group("output")
    group.add_argument(
        "--out",
        metavar="DIR",
        help="write report.html, report.json, arrays.npz and the figures there",
    )
    group.add_argument("--seed", type=options.seed, default=0)
    group.add_argument("--precision", type=int, choices=(32, 64), default=32)
    group.add_argument(
        "--control-draws",
        type=options.count,
        default=10,
        help="draws of each random control (default 10)",
    )
    group.add_argument("--quiet", action="store_true", help="no progress on standard error")
    run.set_defaults(function=_run)


def _learner(args: argparse.Namespace, suffix: str = "") -> KernelLearner:
    """The learner of f; with suffix "_g" that of g, which takes what is not given from f."""

    def option(name: str) -> Any:
        own = getattr(args, name + suffix)
        return getattr(args, name) if own is None else own

    names = ("time", "learning_rate", "steps")
    given = suffix if any(getattr(args, name + suffix) is not None for name in names) else ""
    duration, rate, steps = (getattr(args, name + given) for name in names)
    dash = given.replace("_", "-")
    if rate is None and getattr(args, "momentum" + suffix) is not None:
        own = suffix.replace("_", "-")
        raise ValueError(f"--momentum{own} is of heavy ball: --learning-rate and --steps")
    if rate is None and steps is None:
        dynamics = GradientFlow(10.0 if duration is None else duration)
    elif duration is not None:
        raise ValueError(
            f"--time{dash} is for gradient flow; with --learning-rate{dash} give --steps{dash} "
            "instead"
        )
    elif rate is None or steps is None:
        raise ValueError(f"heavy ball needs both --learning-rate{dash} and --steps{dash}")
    else:
        momentum = option("momentum")
        dynamics = HeavyBall(rate, steps, _MOMENTUM if momentum is None else momentum)
    loss = option("loss")
    if not LOSSES[loss].has_minimum and math.isinf(dynamics.effective_time):
        raise ValueError(
            f"--time inf needs --loss squared: the {loss} loss has no minimum to train to"
        )
    return KernelLearner(TwoLayerNTK(option("slope"), option("train_bias")), loss, dynamics)


def _run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    check_options(args)
    learner, learner_g = _learner(args), _learner(args, "_g")
    key_data, key_run, key_fresh = jax.random.split(jax.random.key(args.seed), 3)
    train, test = load(args, key_data)
    check_classes(args, train)
    carrier = load_carrier(args, train)
    stages = 8 if args.out is not None else 5
    with tqdm(total=stages, disable=args.quiet or None, leave=False, unit="stage") as bar:

        def progress(stage: str) -> None:
            bar.set_description(stage)
            bar.update()

        r = learn_from_perturbations(
            learner,
            train,
            size=args.size,
            scenario=args.scenario,
            carrier=carrier,
            carrier_points=args.carrier_points,
            at=args.at,
            targets=args.targets,
            learner_g=learner_g,
            norm=args.norm,
            direction=args.direction,
            bounds=None if args.bounds is None else tuple(args.bounds),
            progress=progress,
            key=key_run,
        )
        fresh = test
        if args.data in SYNTHETIC:
            fresh = draw(args, SYNTHETIC_POINTS, key_fresh)
        progress("evaluating, with controls")
        metrics = metrics_of(r, test, fresh, args.control_draws)
        configuration = configuration_of(args, r, test, learner)
        if args.out is not None:
            arrays = arrays_of(r, test, fresh)
            progress("accuracy against size")
            arrays |= curve_of(r, test, args.size, metrics["status"])
            progress("decision map")
            arrays |= map_of(r, metrics["status"])
            progress("figures and page")
            metrics["seconds"] = round(time.perf_counter() - began, 1)
            result = reports.Report(configuration, metrics, reports.environment(), arrays)
            reports.save(result, args.out)
    _print(configuration, metrics)
    if args.out is not None:
        print(f"\nreport: {Path(args.out) / 'report.html'}")
    return 0


def _print(c: dict[str, Any], metrics: dict[str, Any]) -> None:
    names = " against ".join(c["classes"]) if len(c["classes"]) == 2 else ", ".join(c["classes"])
    print(
        f"{c['data']}: {names}, {c['n_train']} training and {c['n_test']} test "
        f"points, d = {c['d']}; {c['carrier']}, size {c['size']:g} ({c['norm']}), "
        f"{c['targets']} targets\n"
    )
    rows = reports.table(metrics)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print(*text_row(row, widths), sep="\n")
    print()
    for sentence in reports.sentences(c, metrics):
        print(sentence)
