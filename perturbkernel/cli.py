"""The command `perturbkernel`."""

import argparse
import contextlib
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from perturbkernel import bench, interrupts, options
from perturbkernel import report as reports
from perturbkernel import verify as verification
from perturbkernel._version import __version__
from perturbkernel.reproduce import command as reproduction
from perturbkernel.run import command as experiment

_EXIT_CODES = """\
exit status: 0 done; 1 the computation, or a check, failed; 2 wrong usage, input or file;
130 interrupted
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
    experiment.add_command(commands, _EXIT_CODES)
    _add_verify(commands)
    reproduction.add_command(commands, _EXIT_CODES)
    bench.add_command(commands, _EXIT_CODES)
    page = commands.add_parser("report", help="draw the figures and page of a saved result again")
    page.add_argument(
        "folder", metavar="DIR", help="what `run --out DIR` or `reproduce --out DIR` wrote"
    )
    page.set_defaults(function=_report)
    return parser


def _add_verify(commands) -> None:
    check = commands.add_parser(
        "verify",
        help="check the theory's results, constants and all, on independent draws",
        description="Checks every numbered result of the theory on independent draws: bounds with "
        "their constants, identities, rates. Exit status 1 if one fails; a vacuous bound, true but "
        "saying nothing, is no pass.",
        epilog="examples:\n"
        "  perturbkernel verify                         # everything, a few minutes\n"
        "  perturbkernel verify --only 3.2,5 --out DIR  # a result and a section; page in DIR\n\n"
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
    check.add_argument("--seed", type=options.seed, default=0)
    check.add_argument(
        "--out", metavar="DIR", help="write verify.html, verify.json and the figures there"
    )
    check.add_argument("--quiet", action="store_true", help="no progress on standard error")
    check.set_defaults(function=_verify)


def _verify(args: argparse.Namespace) -> int:
    if args.list:
        print(verification.listing())
        return 0
    options.check_out(args.out)
    with tqdm(
        total=verification.trials(args.only, full=args.full),
        disable=args.quiet or None,
        leave=False,
    ) as bar:

        def progress(name: str) -> None:
            bar.set_description(name)
            bar.update()

        verdicts = verification.verify(args.only, full=args.full, seed=args.seed, progress=progress)
    if args.out is not None:
        configuration = {
            "command": shlex.join(["perturbkernel", *args.argv]),
            "environment": reports.environment(),
        }
        verification.save(verdicts, args.out, configuration)
    print(verification.table(verdicts))
    if args.out is not None:
        print(f"\nreport: {Path(args.out) / 'verify.html'}")
    return int(verification.failed(verdicts))


def _report(args: argparse.Namespace) -> int:
    if (Path(args.folder) / reproduction.RECORD).is_file():
        print(f"page: {reproduction.load(args.folder).save()}")
    else:
        print(f"report: {reports.redraw(args.folder) / 'report.html'}")
    return 0


class _Stream:
    """A standard stream whose reader may leave before the end, as `| head` does: what comes after
    is dropped, and the command goes on to its own exit status.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        # What is buffered still goes to the descriptor, now or when Python ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _readers_may_leave() -> Iterator[None]:
    out, err = _Stream(sys.stdout), _Stream(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield
        finally:
            out.flush()
            err.flush()


def _check_device() -> None:
    """Raises ValueError if JAX finds no device to compute on, whatever JAX raises then."""
    try:
        jax.devices()
    except Exception as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        where = f"JAX_PLATFORMS={asked}" if asked else "this machine"
        reason = f" ({error})" if str(error) else ""
        raise ValueError(
            f"JAX finds no device for {where}{reason}; unset JAX_PLATFORMS, or install the jaxlib "
            "that supports it"
        ) from error


def _in_shell_words(message: str, args: argparse.Namespace) -> str:
    """A message in one line; an argument that it begins with is named as its option."""
    first, *others = message.split()
    if first.isidentifier() and first in vars(args):
        first = "--" + first.replace("_", "-")
    return " ".join([first, *others])


@_readers_may_leave()
def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status; errors are one line on standard error."""
    command, argv = argv is None, sys.argv[1:] if argv is None else argv
    args = argparse.Namespace()
    warnings.showwarning = lambda message, *_, **__: print(
        f"perturbkernel: warning: {message}", file=sys.stderr
    )
    try:
        with interrupts.answered(command=command):
            args = _parser().parse_args(argv)
            args.argv = argv
            with jax.enable_x64(getattr(args, "precision", 32) == 64):
                if args.command != "report" and not getattr(args, "list", False):
                    _check_device()
                return args.function(args)
    except KeyboardInterrupt:
        print("perturbkernel: interrupted; results are whole or absent", file=sys.stderr)
        return interrupts.STATUS
    except (ValueError, TypeError, OSError) as error:
        print(f"perturbkernel: error: {_in_shell_words(str(error), args)}", file=sys.stderr)
        return 2
    except Exception as error:
        print(
            f"perturbkernel: failed: {type(error).__name__}: {' '.join(str(error).split())[:500]}",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
