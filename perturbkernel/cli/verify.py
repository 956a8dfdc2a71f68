"""The command `perturbkernel verify`."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from perturbkernel.cli import options
from perturbkernel.cli.progress import progress


def add_command(commands, epilog: str) -> None:
    check = commands.add_parser(
        "verify",
        help="check every result of the theory on independent draws",
        description="Check every numbered result of the theory on independent draws of data and "
        "networks: bounds with their constants, identities and rates. A result holds, fails, or "
        "is vacuous: true, but too large to say anything. The exit status is 1 if one fails.",
        epilog="examples:\n"
        "  perturbkernel verify                         # all results, a minute or two\n"
        "  perturbkernel verify --only 3.2,5 --out DIR  # result 3.2 and section 5\n\n" + epilog,
    )
    check.add_argument(
        "--only", metavar="IDS", help="check only these results or sections, such as 3.2,5"
    )
    check.add_argument("--list", action="store_true", help="list the results and exit")
    check.add_argument(
        "--full",
        action="store_true",
        help="use the sizes for which the theory quotes its numbers; takes about an hour",
    )
    check.add_argument(
        "--seed", type=options.seed, default=0, help="seed of all draws (default: 0)"
    )
    check.add_argument(
        "--out", metavar="DIR", help="write verify.html, verify.json and the figures to DIR"
    )
    options.add_compilation_cache(check)
    check.add_argument("--quiet", action="store_true", help="show no progress")
    check.set_defaults(function=_verify)


def _verify(args: argparse.Namespace) -> int:
    from perturbkernel import verify as verification

    if args.list:
        print(verification.listing())
        return 0
    options.check_out(args.out)
    verdicts = _verdicts(args)
    if args.out is not None:
        verification.save(verdicts, args.out, _configuration(args))
    print(verification.table(verdicts))
    if args.out is not None:
        print(f"\nreport: {Path(args.out) / 'verify.html'}")
    return int(verification.failed(verdicts))


def _verdicts(args: argparse.Namespace) -> Any:
    """One verdict for each result that was asked for, with a progress bar meanwhile."""
    from perturbkernel import verify as verification

    total = verification.trials(args.only, full=args.full)
    with progress(total, "draw", args.quiet) as bar:

        def on_stage(name: str) -> None:
            bar.set_description(name)
            bar.update()

        return verification.verify(args.only, full=args.full, seed=args.seed, on_stage=on_stage)


def _configuration(args: argparse.Namespace) -> dict[str, Any]:
    command = shlex.join(["perturbkernel", *args.argv])
    return {"command": command}
