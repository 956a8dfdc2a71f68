"""The command `perturbkernel reproduce`."""

import argparse
import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from perturbkernel.cli import options
from perturbkernel.cli.progress import progress

if TYPE_CHECKING:
    from perturbkernel.reproduce import Reproduction

_DEFAULT_OUT = "results/reproduce"
# The column of distances wraps at this width; the others take what they need.
_WIDTH = 90
_DESCRIPTION = (
    "Compute the figures of Kumano, Kera and Yamasaki (NeurIPS 2024) and further studies, and "
    "draw them beside the published values. A figure has panels; each is computed in closed form "
    "for infinite width, and by training networks of finite width as published. Finished cells "
    "are kept: a run that was stopped continues where it stopped."
)
_EXAMPLES = """\
examples:
  perturbkernel reproduce list                     # names of panels and studies
  perturbkernel reproduce mnist_a/size/identity    # one panel at reduced sizes
  perturbkernel reproduce mnist_a --mode limit     # all panels that begin so
  perturbkernel reproduce --all                    # everything at reduced sizes
  perturbkernel reproduce --all --mode limit --scale paper  # published sizes
  perturbkernel reproduce cosine --mode law        # networks of published width
  perturbkernel reproduce theory-vs-width          # rates of finite networks
  perturbkernel reproduce architectures            # deep and convolutional
  perturbkernel reproduce carriers                 # perturbations on noise
  perturbkernel reproduce bugs-and-features        # what networks share
  perturbkernel reproduce frontier                 # robust accuracy
  perturbkernel reproduce trained-kernels          # kernels during training

"""


def add_command(commands, epilog: str) -> None:
    """Adds the command to the subparsers of `perturbkernel`."""
    commands.add_parser(
        "reproduce",
        help="compute the paper's figures and further studies",
        description=_DESCRIPTION,
        epilog=_EXAMPLES + epilog,
        options=_add_options,
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    _add_choices(parser)
    _add_places(parser)
    parser.set_defaults(function=_reproduce)


def _add_choices(parser: argparse.ArgumentParser) -> None:
    """What is reproduced, and how."""
    from perturbkernel.reproduce import plan
    from perturbkernel.reproduce.panels import specification

    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="panels, maps and studies, by name or the beginning of one; `list` prints all names",
    )
    parser.add_argument("--all", action="store_true", help="compute every panel, map and study")
    parser.add_argument(
        "--mode",
        choices=plan.MODES,
        default="both",
        help="limit computes the closed form of infinite width; network trains networks of finite "
        "width; both does both; law draws networks of the published width neuron by neuron "
        "(identity loss only); all does everything (default: both)",
    )
    parser.add_argument(
        "--scale",
        choices=specification.SCALES,
        default="small",
        help="small takes reduced sizes, paper the published ones (default: small)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=2,
        help="number of draws of data, initialisations and targets (default: 2)",
    )
    parser.add_argument(
        "--targets",
        choices=("coin_flip", "balanced"),
        default="coin_flip",
        help="how to draw the target labels of finite networks; the closed form shows both "
        "(default: coin_flip, as published)",
    )
    parser.add_argument(
        "--dynamics",
        choices=("flow", "heavy_ball"),
        default="flow",
        help="how the logistic loss is trained at infinite width: by gradient flow for the "
        "effective time, or by the exact steps (default: flow)",
    )


def _add_places(parser: argparse.ArgumentParser) -> None:
    """Where data come from, where cells are computed, where results go."""
    parser.add_argument(
        "--mnist",
        metavar="DIR",
        help="folder with the IDX files of MNIST (default: mnist in the folder that "
        "PERTURBKERNEL_DATA names, or in /usr/share/datasets; without files, mnist5k is used)",
    )
    parser.add_argument(
        "--fashion-mnist", metavar="DIR", help="the same for Fashion-MNIST, in fashion-mnist"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of local processes; 0 computes in this one (default: one per core)",
    )
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="compute on the Dask cluster with this scheduler"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default=_DEFAULT_OUT,
        help=f"write results and page to DIR (default: {_DEFAULT_OUT})",
    )
    options.add_compilation_cache(parser)
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def _reproduce(args: argparse.Namespace) -> int:
    if args.names == ["list"]:
        print(listing())
        return 0
    if args.all == bool(args.names):
        raise ValueError(
            "name what to reproduce, or give --all (and not both); `perturbkernel reproduce list` "
            "lists it"
        )
    began = time.perf_counter()
    result = _compute(args)
    _print(result, time.perf_counter() - began)
    return 0


def _compute(args: argparse.Namespace) -> "Reproduction":
    """Computes what is missing, with a progress bar meanwhile."""
    from perturbkernel.reproduce import reproduce

    with contextlib.ExitStack() as stack:
        executor = None if args.dask is None else stack.enter_context(_dask(args.dask))
        bar = stack.enter_context(progress(0, "cell", args.quiet))

        def on_cell(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        return reproduce(
            args.names,
            args.out,
            mode=args.mode,
            scale=args.scale,
            seeds=args.seeds,
            targets=args.targets,
            dynamics=args.dynamics,
            mnist=args.mnist,
            fashion_mnist=args.fashion_mnist,
            executor=executor,
            workers=args.workers,
            on_cell=on_cell,
        )


def _print(result: "Reproduction", seconds: float) -> None:
    """Prints the distances from published values, what the studies say, and where the page is."""
    from perturbkernel.display import text_row
    from perturbkernel.reproduce.plan import STUDIES

    if table := result.table():
        rows = [("panel", "quantity", "mean distance from the published values"), *table]
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        for row in rows:
            print(*text_row(row, [*widths, _WIDTH]), sep="\n")
    for name in result.options.studies:
        study = STUDIES[name]
        print(f"\n{name}: {study.about}\n{study.module.text(result.study(name))}")
    if result.options.left_out:
        said = ", ".join(result.options.left_out)
        print(f"\nleft out, as the law has the identity loss only: {said}")
    cells, spent = len(result.cells), result.seconds()
    print(f"\n{cells} cells, {spent:,.0f} s to compute them; {seconds:,.0f} s now")
    print(f"page: {result.folder / 'index.html'}")


@contextlib.contextmanager
def _dask(address: str) -> Iterator[Executor]:
    """The Dask cluster as an executor, as long as this lasts."""
    try:
        from dask.distributed import Client
    except ImportError:
        raise ValueError(
            "--dask needs Dask: pip install 'perturbkernel[dask]', or dask and distributed"
        ) from None
    with Client(address) as client:
        yield client.get_executor()


def listing() -> str:
    """Every name with what it is, as text."""
    from perturbkernel.reproduce import names
    from perturbkernel.reproduce.panels.figures import describe, describe_map
    from perturbkernel.reproduce.panels.specification import (
        decision_map,
        map_ids,
        panel,
        panel_ids,
    )
    from perturbkernel.reproduce.plan import STUDIES

    rows = [(name, describe(panel(name, "paper"))) for name in panel_ids()]
    rows += [(name, describe_map(decision_map(name, "paper"))) for name in map_ids()]
    rows += [(name, study.about) for name, study in STUDIES.items()]
    assert len(rows) == len(names())
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows)
