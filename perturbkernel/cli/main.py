"""The command `perturbkernel`.

What only some commands need is imported where they run: help, and a refusal, come at once.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perturbkernel import compilation_cache, interrupts
from perturbkernel._version import __version__
from perturbkernel.cli import bench, cite, completion, reproduce, verify
from perturbkernel.cli.parser import EXIT_CODES, Parser
from perturbkernel.cli.run import command as run
from perturbkernel.cli.streams import readers_may_leave


def build_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="perturbkernel",
        description="Train, attack and certify infinitely wide networks in closed form, and test "
        "what a second network learns from adversarial perturbations alone.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"perturbkernel {__version__}")
    commands = parser.add_subparsers(dest="command", parser_class=Parser, metavar="COMMAND")
    run.add_command(commands, EXIT_CODES)
    verify.add_command(commands, EXIT_CODES)
    reproduce.add_command(commands, EXIT_CODES)
    bench.add_command(commands, EXIT_CODES)
    page = commands.add_parser(
        "report",
        help="draw the figures and the page of a saved result again",
        description="Draw the figures and the page of a saved result again. Nothing is computed "
        "anew.",
    )
    page.add_argument(
        "folder", metavar="DIR", help="the folder that `run --out` or `reproduce --out` wrote"
    )
    page.add_argument(
        "--style",
        choices=("screen", "paper"),
        default="screen",
        help="screen draws pictures and the page; paper writes every figure as a PDF in print "
        "size to DIR/paper (default: screen)",
    )
    page.set_defaults(function=_report)
    cite.add_command(commands)
    completion.add_command(commands)
    return parser


def _repeated(parser: Parser, words: Sequence[str], args: argparse.Namespace) -> argparse.Namespace:
    """The arguments of the run that --config names, with those of `words` in place of its own.

    The folder of the earlier results is not taken over: they stay as they are.
    """
    words = [words[0], *run.words_of_run(args.config), *words[1:]]
    repeated = parser.parse_args(words)
    repeated.out = args.out
    repeated.argv = words
    return repeated


def _report(args: argparse.Namespace) -> int:
    from perturbkernel import report, reproduce
    from perturbkernel.report.results import REPRODUCTION

    if args.style == "paper":
        files = report.write_for_print(_drawings(args.folder), Path(args.folder) / "paper")
        print(*files, sep="\n")
        return 0
    if (Path(args.folder) / REPRODUCTION).is_file():
        print(f"page: {reproduce.load(args.folder).save()}")
    else:
        print(f"report: {report.redraw(args.folder) / 'report.html'}")
    return 0


def _drawings(folder: str) -> dict[str, Any]:
    """The figures of a saved result by name, each drawn when called."""
    from functools import partial

    from perturbkernel import report, reproduce
    from perturbkernel.report.results import REPRODUCTION

    if not (Path(folder) / REPRODUCTION).is_file():
        return report.figures(report.load(folder))
    saved = reproduce.load(folder)
    return {name.replace("/", "_"): partial(saved.figure, name) for name in saved.names}


def _perform(args: argparse.Namespace, *, command: bool) -> int:
    """Does what the command line asks for, and returns its exit status.

    `command`: in a process of its own, whose configuration of JAX may be changed.
    """
    import jax

    if command and getattr(args, "compilation_cache", False):
        _keep_programs()
    with jax.enable_x64(getattr(args, "precision", 32) == 64):
        if args.command != "report" and not getattr(args, "list", False):
            _check_device()
        return args.function(args)


def _keep_programs() -> None:
    """Lets JAX keep compiled programs; what it finds broken there is removed."""
    folder = compilation_cache.use_compilation_cache()
    if folder is None:
        return
    show = warnings.showwarning

    def show_others(message: Warning | str, *others: Any, **named: Any) -> None:
        if compilation_cache.FAULT not in str(message):
            show(message, *others, **named)
        elif folder == compilation_cache.default_folder():
            compilation_cache.forget(folder)

    warnings.showwarning = show_others


def _check_device() -> None:
    """Raises ValueError if JAX finds no device to compute on, whatever JAX raises then."""
    import jax

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


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"perturbkernel: warning: {message}", file=sys.stderr)


@readers_may_leave()
def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status; errors are one line on standard error.

    Without arguments it prints the help, and the status is 0.
    """
    command = argv is None
    words = sys.argv[1:] if argv is None else argv
    args = argparse.Namespace()
    show = warnings.showwarning
    warnings.showwarning = _print_warning
    try:
        with interrupts.answered(command=command):
            parser = build_parser()
            args = parser.parse_args(words)
            args.argv = words
            if getattr(args, "config", None) is not None:
                args = _repeated(parser, words, args)
            if args.command is None:
                parser.print_help()
                return 0
            if args.command == "cite":
                return cite.show()
            if args.command == "completion":
                return completion.show(parser, args.shell)
            return _perform(args, command=command)
    except KeyboardInterrupt:
        print("perturbkernel: interrupted; results are whole or absent", file=sys.stderr)
        return interrupts.STATUS
    except (ValueError, TypeError, OSError) as error:
        print(f"perturbkernel: error: {_in_shell_words(str(error), args)}", file=sys.stderr)
        return 2
    except Exception as error:
        reason = " ".join(str(error).split())[:500]
        print(f"perturbkernel: failed: {type(error).__name__}: {reason}", file=sys.stderr)
        return 1
    finally:
        # The caller's process goes on; what another thread has set since is its own.
        if not command and warnings.showwarning is _print_warning:
            warnings.showwarning = show
