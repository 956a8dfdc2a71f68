"""The command `perturbkernel cite`: the paper and this software, as BibTeX."""

from perturbkernel._version import __version__

PAPER = """\
@inproceedings{kumano2024wide,
  title     = {Wide Two-Layer Networks can Learn from Adversarial Perturbations},
  author    = {Kumano, Soichiro and Kera, Hiroshi and Yamasaki, Toshihiko},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  note      = {arXiv:2410.23677}
}
"""

SOFTWARE = f"""\
@software{{perturbkernel,
  title   = {{perturbkernel: learning from adversarial perturbations in closed form}},
  author  = {{{{The perturbkernel developers}}}},
  version = {{{__version__}}},
  license = {{Apache-2.0}}
}}
"""


def add_command(commands) -> None:
    """Adds the command to the subparsers of `perturbkernel`."""
    commands.add_parser(
        "cite",
        help="print BibTeX entries for the paper and this software",
        description="Print BibTeX entries for the paper and this software.",
    )


def show() -> int:
    """Prints both entries; returns 0."""
    print(PAPER)
    print(SOFTWARE, end="")
    return 0
