"""The command `perturbkernel bench`, and where its suite is.

The suite is the folder benchmarks/ of a checkout. Every installation, editable ones too, has it as
the package perturbkernel.benchmarks.
"""

import argparse
import importlib
from types import ModuleType

from perturbkernel.cli import options

_NAME = "perturbkernel.benchmarks"
_DESCRIPTION = (
    "Measure how fast, how large and how precise perturbkernel is, next to a plain matrix "
    "product, NumPy, scikit-learn, neural-tangents and PyTorch. Competing methods take turns, and "
    "the results are ratios of neighbouring runs. Packages that are not installed are skipped. "
    "The exit status is 1 if a benchmark fails. docs/benchmarks.md explains every group."
)
_EXAMPLES = (
    "examples:\n"
    "  perturbkernel bench --quick                    # all groups, a few minutes\n"
    "  perturbkernel bench --only products --out DIR  # one group, with a page\n"
    "  perturbkernel bench --history DIR              # compare with the last run\n"
    "  perturbkernel bench --only products.matvec --repeats 21\n\n"
)


def suite() -> ModuleType:
    """Returns the benchmark suite, the package `perturbkernel.benchmarks`.

    A checkout that is only on PYTHONPATH has no package of that name, as its folder benchmarks/
    lies beside perturbkernel/: run `pip install -e .` in it once. Where another copy of
    perturbkernel is installed as well, it is the suite of that one that is found.

        suite().select("products.ntk", suite().Settings(quick=True))

    Raises FileNotFoundError if there is none.
    """
    try:
        return importlib.import_module(_NAME)
    except ModuleNotFoundError as error:
        if error.name != _NAME:  # the suite is there, and misses something
            raise
        raise FileNotFoundError(
            f"the benchmark suite, {_NAME}, is missing, as perturbkernel is not installed: run "
            "`pip install .` in a checkout, or `pip install -e .` to work on it"
        ) from error


def add_command(commands, epilog: str) -> None:
    """Adds `bench` to the subparsers; the suite is imported only when it runs."""
    bench = commands.add_parser(
        "bench",
        help="measure speed, memory and precision against the alternatives",
        description=_DESCRIPTION,
        epilog=_EXAMPLES + epilog,
    )
    bench.add_argument("--quick", action="store_true", help="use small sizes")
    only = "run only these groups or cases (group.case), separated by commas"
    bench.add_argument("--only", metavar="NAMES", help=only)
    bench.add_argument("--list", action="store_true", help="list groups and cases and exit")
    repeats = "run every case K times (default: each case has its own number)"
    bench.add_argument("--repeats", type=options.count, metavar="K", help=repeats)
    bench.add_argument("--seed", type=options.seed, default=0, help="seed of all data (default: 0)")
    out = "write bench.html, bench.json and the figures to DIR"
    bench.add_argument("--out", metavar="DIR", help=out)
    history = "keep this run in DIR, and show what changed since the last run on this machine"
    bench.add_argument("--history", metavar="DIR", help=history)
    bench.add_argument("--quiet", action="store_true", help="show no progress")
    bench.set_defaults(function=_bench)


def _bench(args: argparse.Namespace) -> int:
    if not args.list:
        options.check_out(args.out)
        options.check_out(args.history, "--history")
    return suite().command(args)
