"""The command `perturbkernel`."""

import argparse
import contextlib
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from perturbkernel import bench, interrupts
from perturbkernel import data as datasets
from perturbkernel import report as reports
from perturbkernel import verify as verification
from perturbkernel._version import __version__
from perturbkernel.data import Dataset
from perturbkernel.dynamics import GradientFlow, HeavyBall
from perturbkernel.kernels import TwoLayerNTK
from perturbkernel.learning import NOISES, PLACES, SCENARIOS, TARGET_RULES, learn_from_perturbations
from perturbkernel.perturbations import DIRECTIONS, NORMS
from perturbkernel.predictors import KernelLearner
from perturbkernel.reproduce import command as reproduction
from perturbkernel.solvers import LOSSES
from perturbkernel.studies import accuracy_against_size, decision_map

_EXIT_CODES = """\
exit status: 0 done; 1 the computation, or a check, failed; 2 wrong usage, input or file; 130 interrupted
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line instead of the whole usage."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="perturbkernel",
        description="Learning from adversarial perturbations, in closed form.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"perturbkernel {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, parser_class=_Parser, metavar="COMMAND"
    )
    _add_run(commands)
    _add_verify(commands)
    reproduction.add_command(commands, _EXIT_CODES)
    bench.add_command(commands, _EXIT_CODES)
    page = commands.add_parser("report", help="draw the figures and page of a saved result again")
    page.add_argument(
        "folder", metavar="DIR", help="what `run --out DIR` or `reproduce --out DIR` wrote"
    )
    page.set_defaults(function=_report)
    return parser


def _add_run(commands) -> None:
    run = commands.add_parser(
        "run",
        help="train f, perturb its data, train g on the perturbations, and compare",
        description="Trains a wide network f in closed form, perturbs every training point, trains a second network g "
        "on nothing but the perturbations, and shows how it classifies clean data.",
        epilog="examples:\n"
        "  perturbkernel run                                          # real digits, scenario (a)\n"
        "  perturbkernel run --scenario b --size 1.4 --out results    # perturbed digits; page and figures\n"
        "  perturbkernel run --data shifted_gaussian --n 1000 --d 100 --size 0.01 --train-bias\n"
        "  perturbkernel run --carrier uniform --carrier-points 4000 --at carrier    # perturbed noise\n"
        "  perturbkernel run --data mine.npz --classes cat dog --loss logistic --time 3\n\n"
        + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = run.add_argument_group("data")
    group.add_argument(
        "--data",
        default="mnist5k",
        metavar="NAME|FILE",
        help="mnist5k (digits that come with the installation, default), gaussian, shifted_gaussian, mnist or "
        "fashion_mnist (with --path), or a .npz file with arrays `inputs` (n, d) and `targets` (n,)",
    )
    group.add_argument(
        "--path", metavar="DIR", help="folder with the IDX files of mnist or fashion_mnist"
    )
    group.add_argument(
        "--classes", nargs=2, metavar=("PLUS", "MINUS"), help="two classes; the first becomes +1"
    )
    group.add_argument(
        "--n", type=int, help="training and test points together (synthetic: 1000; otherwise all)"
    )
    group.add_argument(
        "--d", type=int, default=100, help="dimension of synthetic data (default 100)"
    )
    group.add_argument(
        "--shift", type=float, default=0.3, help="of shifted_gaussian's means (default 0.3)"
    )
    group.add_argument(
        "--test",
        type=float,
        default=0.2,
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
        help="instead of a scenario: what they are added to, a .npy array, or uniform or gaussian noise",
    )
    group.add_argument(
        "--carrier-points",
        type=int,
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
        "--size", type=float, default=0.14, help="of each, in input units (default 0.14)"
    )
    group.add_argument("--norm", choices=NORMS, default="l2")
    group.add_argument(
        "--direction",
        choices=DIRECTIONS,
        default="gradient",
        help="frozen_gates: the paper's theory",
    )
    group.add_argument(
        "--bounds", nargs=2, type=float, metavar=("LOW", "HIGH"), help="clip input + perturbation"
    )
    group.add_argument("--targets", choices=TARGET_RULES, default="coin_flip")

    group = run.add_argument_group("training of both networks")
    group.add_argument(
        "--slope", type=float, default=0.0, help="of the leaky ReLU, 0 to 1 (default 0)"
    )
    group.add_argument(
        "--train-bias",
        action="store_true",
        help="train the biases too, as the paper's published code does and its theory does not",
    )
    group.add_argument("--loss", choices=LOSSES, default="identity", help="default identity")
    group.add_argument("--time", type=float, help="of gradient flow (default 10)")
    group.add_argument(
        "--learning-rate", type=float, help="heavy ball instead of gradient flow, with --steps"
    )
    group.add_argument("--steps", type=int, help="of heavy ball")
    group.add_argument("--momentum", type=float, default=0.9, help="of heavy ball (default 0.9)")
    group = run.add_argument_group("training of the second network, where it differs")
    group.add_argument("--slope-g", type=float)
    group.add_argument("--train-bias-g", action=argparse.BooleanOptionalAction)
    group.add_argument("--loss-g", choices=LOSSES)
    group.add_argument("--time-g", type=float)
    group.add_argument("--learning-rate-g", type=float)
    group.add_argument("--steps-g", type=int)
    group.add_argument("--momentum-g", type=float)

    group = run.add_argument_group("output")
    group.add_argument(
        "--out",
        metavar="DIR",
        help="write report.html, report.json, arrays.npz and the figures there",
    )
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--precision", type=int, choices=(32, 64), default=32)
    group.add_argument(
        "--control-draws", type=int, default=10, help="draws of each random control (default 10)"
    )
    group.add_argument("--quiet", action="store_true", help="no progress on standard error")
    run.set_defaults(function=_run)


def _add_verify(commands) -> None:
    check = commands.add_parser(
        "verify",
        help="check the theory's results, constants and all, on independent draws",
        description="Checks every numbered result of the theory on independent draws: bounds with their constants, "
        "identities, rates. Exit status 1 if one fails; a vacuous bound, true but saying nothing, is no pass.",
        epilog="examples:\n"
        "  perturbkernel verify                         # everything, a few minutes\n"
        "  perturbkernel verify --only 3.2,5 --out DIR  # one result and one section; page and figures in DIR\n\n"
        + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("--only", metavar="IDS", help="results or sections, separated by commas")
    check.add_argument("--list", action="store_true", help="list the results and stop")
    check.add_argument(
        "--full",
        action="store_true",
        help="the sizes at which the theory quotes its numbers (long)",
    )
    check.add_argument("--seed", type=int, default=0)
    check.add_argument(
        "--out", metavar="DIR", help="write verify.html, verify.json and the figures there"
    )
    check.add_argument("--quiet", action="store_true", help="no progress on standard error")
    check.set_defaults(function=_verify)


def _verify(args: argparse.Namespace) -> int:
    if args.list:
        print(verification.listing())
        return 0
    with tqdm(
        total=verification.trials(args.only, full=args.full),
        disable=args.quiet or None,
        leave=False,
    ) as bar:

        def progress(name: str) -> None:
            bar.set_description(name)
            bar.update()

        verdicts = verification.verify(args.only, full=args.full, seed=args.seed, progress=progress)
    print(verification.table(verdicts))
    if args.out is not None:
        configuration = {
            "command": shlex.join(["perturbkernel", *args.argv]),
            "environment": reports.environment(),
        }
        folder = verification.save(verdicts, args.out, configuration)
        print(f"\nreport: {folder / 'verify.html'}")
    return int(verification.failed(verdicts))


def _load(args: argparse.Namespace, key) -> tuple[Dataset, Dataset]:
    """Training and test data."""
    split_key, data_key = jax.random.split(key)
    classes = args.classes and tuple(int(c) if c.lstrip("-").isdigit() else c for c in args.classes)
    chosen = {} if classes is None else {"classes": classes}
    if args.path is not None and args.data not in ("mnist", "fashion_mnist"):
        raise ValueError(f"--path goes with --data mnist or fashion_mnist; got --data {args.data}")
    if args.data in ("mnist", "fashion_mnist"):
        if args.path is None:
            raise ValueError(f"--data {args.data} needs --path DIR, the folder with its IDX files")
        read = getattr(datasets, args.data)
        train, test = (read(args.path, split=split, **chosen) for split in ("train", "test"))
        return (train if args.n is None else train.subset(args.n, key=split_key)), test
    if args.data in ("gaussian", "shifted_gaussian"):
        if classes is not None:
            raise ValueError(f"--classes does not apply to {args.data}")
        shift = {"shift": args.shift} if args.data == "shifted_gaussian" else {}
        data = getattr(datasets, args.data)(args.n or 1000, args.d, **shift, key=data_key)
    else:
        if args.data == "mnist5k":
            data = datasets.mnist5k(**chosen)
        elif Path(args.data).suffix == ".npz":
            data = datasets.from_npz(args.data, **chosen)
        else:
            known = "mnist5k, gaussian, shifted_gaussian, mnist, fashion_mnist"
            raise ValueError(f"--data must be one of {known}, or a .npz file; got {args.data!r}")
        if args.n is not None:
            data = data.subset(args.n, key=data_key)
    return data.split(test=args.test, key=split_key)


def _learner(args: argparse.Namespace, suffix: str = "") -> KernelLearner:
    """The learner of f; with suffix "_g" that of g, which takes what is not given from f."""

    def option(name: str) -> Any:
        own = getattr(args, name + suffix)
        return getattr(args, name) if own is None else own

    names = ("time", "learning_rate", "steps")
    given = suffix if any(getattr(args, name + suffix) is not None for name in names) else ""
    duration, rate, steps = (getattr(args, name + given) for name in names)
    dash = given.replace("_", "-")
    if rate is None and steps is None:
        dynamics = GradientFlow(10.0 if duration is None else duration)
    elif duration is not None:
        raise ValueError(
            f"--time{dash} is for gradient flow; with --learning-rate{dash} give --steps{dash} instead"
        )
    elif rate is None or steps is None:
        raise ValueError(f"heavy ball needs both --learning-rate{dash} and --steps{dash}")
    else:
        dynamics = HeavyBall(rate, steps, option("momentum"))
    return KernelLearner(
        TwoLayerNTK(option("slope"), option("train_bias")), option("loss"), dynamics
    )


def _run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    if args.out is not None and Path(args.out).is_file():
        raise ValueError(f"--out must be a folder; {args.out} is a file")
    key_data, key_run, key_fresh = jax.random.split(jax.random.key(args.seed), 3)
    learner, learner_g = _learner(args), _learner(args, "_g")
    stages = 8 if args.out is not None else 5
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=stages, disable=args.quiet or None, leave=False, unit="stage")
        )

        def progress(stage: str) -> None:
            bar.set_description(stage)
            bar.update()

        train, test = _load(args, key_data)
        carrier = args.carrier
        if carrier is not None and carrier not in NOISES:
            carrier = np.load(carrier, allow_pickle=False)
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
        if args.data in ("gaussian", "shifted_gaussian"):
            shift = {"shift": args.shift} if args.data == "shifted_gaussian" else {}
            fresh = getattr(datasets, args.data)(1000, args.d, **shift, key=key_fresh)
        progress("evaluating, with controls")
        metrics = r.evaluate(test, fresh.inputs, control_draws=args.control_draws)
        metrics["status"] = {
            name: getattr(p, "status", "ok") for name, p in (("f", r.f), ("g", r.g))
        }
        carrier_name = f"scenario ({args.scenario or 'a'})"
        if args.carrier is not None:
            there = ", perturbed there" if args.at == "carrier" else ""
            carrier_name = f"carrier {args.carrier}, {len(r.carrier)} points{there}"
        configuration = {
            "command": shlex.join(["perturbkernel", *args.argv]),
            "data": train.name,
            "classes": list(train.classes),
            "image_shape": train.image_shape,
            "n_train": train.n,
            "n_test": test.n,
            "d": train.d,
            "carrier": carrier_name,
            "at": args.at,
            "size": args.size,
            "norm": args.norm,
            "direction": args.direction,
            "bounds": args.bounds,
            "targets": args.targets,
            "f": f"{learner.kernel!r}, {learner.loss} loss, {learner.dynamics!r}",
            "g": f"{learner_g.kernel!r}, {learner_g.loss} loss, {learner_g.dynamics!r}",
            "seed": args.seed,
            "precision": args.precision,
        }
        if args.out is not None:
            progress("accuracy against size")
            curve = accuracy_against_size(r, test, np.geomspace(args.size / 30, args.size * 30, 13))
            progress("decision map")
            plane = decision_map(r)
            progress("figures and page")
            metrics["seconds"] = round(time.perf_counter() - began, 1)
            arrays = _arrays(r, test, fresh, curve, plane)
            reports.save(
                reports.Report(configuration, metrics, reports.environment(), arrays), args.out
            )
    _print(configuration, metrics)
    if args.out is not None:
        print(f"\nreport: {Path(args.out) / 'report.html'}")
    return 0


def _arrays(r, test: Dataset, fresh: Dataset, curve, plane) -> dict[str, Any]:
    """What the figures need, and what a user would want to compute with."""
    p, x, y = r.perturbation, r.train.inputs, r.train.targets
    # Of a carrier that was perturbed itself no true label is known.
    known = r.options["at"] == "data"
    chosen = np.asarray(y if known else p.targets)
    sample = np.concatenate([np.flatnonzero(chosen == label)[:4] for label in (1, -1)])
    arrays = {
        "delta": p.delta,
        "targets": p.targets,
        "zero_gradient": p.zero_gradient,
        "f_dual_coef": r.f.dual_coef,
        "g_dual_coef": r.g.dual_coef,
        "test_f": r.f(test.inputs),
        "test_g": r.g(test.inputs),
        "test_labels": test.targets,
        "fresh_f": r.f(fresh.inputs),
        "fresh_g": r.g(fresh.inputs),
        "fresh_labels": fresh.targets,
        "sample_inputs": r.attacked[sample],
        "sample_deltas": p.delta[sample],
        **({"sample_labels": y[sample]} if known else {}),
        "sample_targets": p.targets[sample],
        "mean_toward": jnp.stack([_mean_where(p.delta, p.targets == label) for label in (1, -1)]),
        "mean_difference": _mean_where(x, y > 0) - _mean_where(x, y < 0),
        "diagnosis_signal": r.diagnosis.signal,
        "diagnosis_offset": r.diagnosis.offset,
        "diagnosis_offset_std": r.diagnosis.offset_std,
        "diagnosis_probability": r.diagnosis.probability,
        **{f"map_{name}": value for name, value in plane._asdict().items()},
        **{f"curve_{name}": value for name, value in curve._asdict().items() if value is not None},
    }
    return arrays | ({} if r.cosine is None else {"cosine": r.cosine})


def _mean_where(rows, chosen):
    weights = chosen / jnp.maximum(chosen.sum(), 1)
    return jnp.tensordot(weights.astype(rows.dtype), rows, 1)


def _print(configuration: dict[str, Any], metrics: dict[str, Any]) -> None:
    c = configuration
    print(
        f"{c['data']}: {c['classes'][0]} against {c['classes'][1]}, {c['n_train']} training and {c['n_test']} test "
        f"points, d = {c['d']}; {c['carrier']}, size {c['size']:g} ({c['norm']}), {c['targets']} targets\n"
    )
    rows = reports.table(metrics)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print(*reports.text_row(row, widths), sep="\n")
    print()
    for sentence in reports.sentences(c, metrics):
        print(sentence)


def _report(args: argparse.Namespace) -> int:
    if (Path(args.folder) / reproduction.RECORD).is_file():
        print(f"page: {reproduction.load(args.folder).save()}")
    else:
        print(f"report: {reports.redraw(args.folder) / 'report.html'}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status; errors are one line on standard error."""
    command, argv = argv is None, sys.argv[1:] if argv is None else argv
    warnings.showwarning = lambda message, *_, **__: print(
        f"perturbkernel: warning: {message}", file=sys.stderr
    )
    try:
        with interrupts.answered(command=command):
            args = _parser().parse_args(argv)
            args.argv = argv
            with jax.enable_x64(getattr(args, "precision", 32) == 64):
                return args.function(args)
    except KeyboardInterrupt:
        print("perturbkernel: interrupted; results are whole or absent", file=sys.stderr)
        return interrupts.STATUS
    except (ValueError, TypeError, OSError) as error:
        print(f"perturbkernel: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Exception as error:
        print(
            f"perturbkernel: failed: {type(error).__name__}: {' '.join(str(error).split())[:500]}",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
