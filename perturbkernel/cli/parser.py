"""What the subcommands share: the parser's manner and the meaning of exit codes."""

import argparse
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from perturbkernel.words import did_you_mean

EXIT_CODES = """\
exit status: 0 done; 1 the computation or a check failed; 2 wrong usage, input
or file; 130 interrupted
"""

# What the field, or other programs, call some options.
_OTHER_NAMES = {
    "--epsilon": "--size",
    "--eps": "--size",
    "--lr": "--learning-rate",
    "--epochs": "--steps",
    "--dataset": "--data",
    "--output": "--out",
    "--samples": "--n",
    "--dimension": "--d",
    "--activation": "--slope",
    "--bias": "--train-bias",
}


def _nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` for a word that is not known, if one is near; otherwise nothing."""
    known = list(known)
    other = _OTHER_NAMES.get(word)
    if other in known:
        return f"; did you mean {other}?"
    return did_you_mean(word, known)


class Help(argparse.HelpFormatter):
    """Wraps text paragraph by paragraph, and leaves examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [
            part if part.startswith("examples:") else textwrap.fill(" ".join(part.split()), width)
            for part in text.strip().split("\n\n")
        ]
        return textwrap.indent("\n\n".join(paragraphs), indent)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and which adds options when they are needed.

    Args:
        options: adds options to the parser when it first reads arguments. The choices of some
            options are defined beside what they choose between, which takes time to import; help on
            all commands, or a run of another command, does not wait for it.
        others: of `argparse.ArgumentParser`.
    """

    def __init__(
        self,
        *others: Any,
        options: Callable[[argparse.ArgumentParser], None] | None = None,
        **named: Any,
    ):
        super().__init__(*others, formatter_class=Help, **named)
        self._options = options
        self._subparsers_action: Any = None

    def add_subparsers(self, **named: Any) -> Any:
        self._subparsers_action = super().add_subparsers(**named)
        return self._subparsers_action

    @property
    def commands(self) -> dict[str, "Parser"]:
        """The parser of each command, by name."""
        return {} if self._subparsers_action is None else self._subparsers_action.choices

    def add_all_options(self) -> None:
        """Adds the options that wait, those of every command too."""
        self.add_waiting_options()
        for command in self.commands.values():
            command.add_all_options()

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Adds the options that waited, and reads the arguments; an unknown option is an error."""
        self.add_waiting_options()
        namespace, others = super().parse_known_args(args, namespace)
        for word in others:
            if word.startswith("-"):
                name = word.split("=")[0]
                self.error(f"no option {name}{_nearest(name, self._option_string_actions)}")
        return namespace, others

    def add_waiting_options(self) -> None:
        """Adds the options that wait until they are needed, if they still do."""
        add_options, self._options = self._options, None
        if add_options is not None:
            add_options(self)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raises an ArgumentError for what is not a choice, with the nearest one."""
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        raise argparse.ArgumentError(
            action,
            f"{value!r} is none of {', '.join(choices)}{_nearest(str(value), choices)}",
        )

    def error(self, message: str):
        """Ends the program with status 2 and one line."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")
