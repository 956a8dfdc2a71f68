"""What the subcommands share: the parser's manner and the meaning of exit codes."""

import argparse

EXIT_CODES = """\
exit status: 0 done; 1 the computation, or a check, failed; 2 wrong usage, input or file;
130 interrupted
"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line instead of the whole usage."""

    def error(self, message: str):
        """Ends the program with status 2 and one line."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")
