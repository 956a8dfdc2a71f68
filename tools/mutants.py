"""Do the tests notice a wrong formula? Breaks the package in one place at a time, and looks.

    python tools/mutants.py                            # all of them: two cores take half an hour
    python tools/mutants.py --only tails psi           # those with such a word in file or name
    python tools/mutants.py --only certify --verify    # by `verify` in place of tests
    python tools/mutants.py --list
    python tools/mutants.py --check                    # is each text there, and once: a second

Each mutant replaces one text in a temporary copy of the package and runs the tests that should
notice; every core has a copy, and all share the programs that they compile. Prints which are
killed; the exit status is 1 if one survives, 2 if nothing can be said of one: its text is not
there, or there twice, or its tests fail as things are.
"""

import argparse
import ast
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from mutant_tables import MUTANTS, VERIFIED_BY, Mutant

ROOT = Path(__file__).parent.parent


def occurrences(mutant: Mutant) -> int:
    """How often the mutant's text is in its file; 0 where there is no such file."""
    path = ROOT / "perturbkernel" / mutant.file
    return path.read_text().count(mutant.old) if path.exists() else 0


def is_readable(mutant: Mutant) -> bool:
    """Whether the file with the mutant in it is Python."""
    source = (ROOT / "perturbkernel" / mutant.file).read_text()
    try:
        ast.parse(source.replace(mutant.old, mutant.new))
    except SyntaxError:
        return False
    return True


def check(chosen: list[Mutant]) -> int:
    """Names the mutants whose text does not occur once, that are no Python, or whose tests are
    gone: 2, or else 0.
    """
    lost = 0
    for mutant in chosen:
        count = occurrences(mutant)
        gone = [
            test for test in mutant.tests if test.endswith(".py") and not (ROOT / test).exists()
        ]
        if count != 1:
            print(f"{mutant.file}: {mutant.name}: {mutant.old!r} occurs {count} times")
        for file in gone:
            print(f"{mutant.file}: {mutant.name}: there is no {file}")
        readable = count != 1 or is_readable(mutant)
        if not readable:
            print(f"{mutant.file}: {mutant.name}: {mutant.new!r} there is no Python")
        lost += count != 1 or bool(gone) or not readable
    print(f"{len(chosen) - lost} of {len(chosen)} texts occur once")
    return 2 if lost else 0


def run_tests(mutant: Mutant, copy: Path, by_verify: bool) -> int:
    """The exit status of the mutant's tests, or of `verify`, in the copy as it is."""
    if by_verify:
        only = VERIFIED_BY.get(Path(mutant.file).stem, "2,3,6,7,12")
        program = "import sys; from perturbkernel import verify as v; "
        command = ["-c", program + f"sys.exit(v.failed(v.verify({only!r})))"]
    else:
        command = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests]
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(copy.parent / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "OPENBLAS_NUM_THREADS": "1",
        **os.environ,
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, *command]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, check=False)
    return done.returncode


def outcome(mutant: Mutant, copy: Path, by_verify: bool) -> str:
    """What becomes of the mutant: "killed", "SURVIVES", or why nothing can be said."""
    path = copy / "perturbkernel" / mutant.file
    source = path.read_text()
    path.write_text(source.replace(mutant.old, mutant.new))
    status = run_tests(mutant, copy, by_verify)
    path.write_text(source)
    # verify: 1 is "a check fails"; pytest: 1 is "a test fails", more is no verdict.
    return {0: "SURVIVES", 1: "killed"}.get(status, f"no verdict ({status})")


def run_all(chosen: list[Mutant], by_verify: bool) -> int:
    """Runs the mutants in copies of the package, one a core: the exit status."""
    copies: queue.SimpleQueue[Path] = queue.SimpleQueue()

    def in_a_copy(function: Callable[[Mutant, Path, bool], Any], mutant: Mutant) -> Any:
        copy = copies.get()
        try:
            return function(mutant, copy, by_verify)
        finally:
            copies.put(copy)

    cores = os.cpu_count() or 1
    pool = ThreadPoolExecutor(cores)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as at_the_end:
        at_the_end.callback(pool.shutdown, cancel_futures=True)
        for number in range(cores):
            copy = Path(folder) / str(number)
            ignored = shutil.ignore_patterns("__pycache__")
            for name in ("perturbkernel", "tests"):
                shutil.copytree(ROOT / name, copy / name, ignore=ignored)
            shutil.copy(ROOT / "pyproject.toml", copy)
            copies.put(copy)
        # A mutant of each set of tests stands for them: unbroken, they must pass.
        unbroken = list({mutant.tests: mutant for mutant in chosen}.values())
        statuses = pool.map(partial(in_a_copy, run_tests), unbroken)
        for mutant, status in zip(unbroken, statuses, strict=True):
            if status != 0:
                tests = " ".join(mutant.tests)
                print(f"{tests} fails as it is: nothing can be said of its mutants")
                return 2
        outcomes = []
        found = pool.map(partial(in_a_copy, outcome), chosen)
        for mutant, said in zip(chosen, found, strict=True):
            outcomes.append(said)
            print(f"{mutant.file:<28} {mutant.name:<32} {said}", flush=True)
    killed, survive = outcomes.count("killed"), outcomes.count("SURVIVES")
    print(f"{killed} of {len(chosen)} killed, {survive} survive")
    if killed + survive < len(chosen):
        return 2
    return int(survive > 0)


def main() -> int:
    """Parses the command line and does what it asks: the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="words in the file or the name")
    parser.add_argument("--list", action="store_true", help="names them and their tests")
    parser.add_argument("--check", action="store_true", help="is each text there, and once?")
    parser.add_argument("--verify", action="store_true", help="run `verify` in place of the tests")
    args = parser.parse_args()
    chosen = [
        mutant
        for mutant in MUTANTS
        if args.only is None or any(word in f"{mutant.file} {mutant.name}" for word in args.only)
    ]
    if args.verify:
        chosen = [mutant for mutant in chosen if mutant.file.startswith("theory/")]
    if not chosen:
        parser.error("no mutant has such a word in its file or name; --list names them all")
    if args.list:
        for mutant in chosen:
            print(f"{mutant.file:<28} {mutant.name:<32} {' '.join(mutant.tests)}")
        return 0
    status = check(chosen)
    return status if args.check or status else run_all(chosen, args.verify)


if __name__ == "__main__":
    sys.exit(main())
