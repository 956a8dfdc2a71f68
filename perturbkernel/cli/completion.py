"""The command `perturbkernel completion`: what a shell completes after `perturbkernel`."""

from perturbkernel.cli.parser import Parser

_SHELLS = ("bash", "zsh", "tcsh")


def add_command(commands) -> None:
    """Adds the command to the subparsers of `perturbkernel`."""
    parser = commands.add_parser(
        "completion",
        help="print a script with which the shell completes commands and options",
        description="Print a script with which the shell completes commands and options.",
        epilog="examples:\n"
        '  eval "$(perturbkernel completion bash)"        # in ~/.bashrc\n'
        "  perturbkernel completion zsh > ~/.zfunc/_perturbkernel\n",
    )
    parser.add_argument("shell", choices=_SHELLS, help="your shell")


def show(parser: Parser, shell: str) -> int:
    """Prints the script for a shell, with the options of every command; returns 0."""
    import shtab

    parser.add_all_options()
    print(shtab.complete(parser, shell))
    return 0
