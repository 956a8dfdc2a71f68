"""The command `perturbkernel bench`, and where its suite is.

In a checkout that is the folder benchmarks/ at the top, in an installation the package
perturbkernel.benchmarks, which is made from it.
"""

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from perturbkernel.cli import options

_NAME = "perturbkernel.benchmarks"


def suite() -> ModuleType:
    """The benchmark suite, `perturbkernel.benchmarks`, wherever it lies.

    Raises FileNotFoundError if this copy of the package has none.
    """
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    package = Path(__file__).parents[1]
    if (package / "benchmarks" / "__init__.py").is_file():
        return importlib.import_module(_NAME)
    # A checkout runs the suite that lies beside it, not that of another one that happens to be
    # installed.
    source = package.parent / "benchmarks" / "__init__.py"
    if not source.is_file():
        raise FileNotFoundError(
            f"the benchmark suite is missing: neither {package / 'benchmarks'} nor "
            f"{source.parent} holds it; it comes with every wheel "
            "(pip install .) and every checkout of perturbkernel"
        )
    spec = importlib.util.spec_from_file_location(
        _NAME, source, submodule_search_locations=[str(source.parent)]
    )
    assert spec is not None and spec.loader is not None
    module = sys.modules[_NAME] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[_NAME]
        raise
    return module


def add_command(commands, epilog: str) -> None:
    """Adds `bench` to the subparsers; the suite is imported only when it runs."""
    bench = commands.add_parser(
        "bench",
        help="measure speed, memory, compile time and precision against what one would use instead",
        description="Measures ratios in interleaved runs: kernel products against a matrix "
        "product, NumPy, scikit-learn and neural-tangents; training and attacks; solvers; growth; memory; "
        "devices; compile time; precision. See docs/benchmarks.md. Exit status 1 if one fails; "
        "what is not installed is skipped.",
        epilog="examples:\n"
        "  perturbkernel bench --quick                       # everything small, two minutes\n"
        "  perturbkernel bench --only products --out DIR       # a group; page and figures in DIR\n"
        "  perturbkernel bench --only products.matvec --repeats 21  # one case, more rounds\n\n"
        + epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_argument("--quick", action="store_true", help="small sizes")
    bench.add_argument("--only", metavar="NAMES", help="groups, or group.case, separated by commas")
    bench.add_argument("--list", action="store_true", help="list groups and cases and stop")
    bench.add_argument(
        "--repeats",
        type=options.count,
        metavar="K",
        help="rounds of every case, instead of its own number",
    )
    bench.add_argument("--seed", type=options.seed, default=0, help="of all data (default 0)")
    bench.add_argument(
        "--out", metavar="DIR", help="write bench.html, bench.json and the figures there"
    )
    bench.add_argument("--quiet", action="store_true", help="no progress on standard error")
    bench.set_defaults(function=_bench)


def _bench(args: argparse.Namespace) -> int:
    if not args.list:
        options.check_out(args.out)
    return suite().command(args)
