"""What the subcommands share: the parser's manner and the meaning of exit codes."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

EXIT_CODES = """\
exit status: 0 done; 1 the computation, or a check, failed; 2 wrong usage, input or file;
130 interrupted
"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose options may wait until they are needed.

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
        super().__init__(*others, **named)
        self._options = options

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Adds the options that waited, and reads the arguments."""
        add_options, self._options = self._options, None
        if add_options is not None:
            add_options(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        """Ends the program with status 2 and one line."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")
