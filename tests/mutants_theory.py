"""Do the tests notice a wrong theorem? Breaks `perturbkernel.theory` one constant at a time.

    python tests/mutants_theory.py                       # all of them, a quarter of an hour
    python tests/mutants_theory.py tails certify         # those of some modules
    python tests/mutants_theory.py --verify matching     # by `verify` in place of tests

Each mutant replaces one text in a temporary copy of the package and runs the tests of its module.
Prints which are killed; the exit status is 1 if one survives, 2 if a text is no longer there.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Mutant(NamedTuple):
    name: str
    module: str
    old: str
    new: str


_TAILS = [
    ("7/3 is 1", "scale = 7 / 3 * ", "scale = "),
    (
        "hi and lo swapped in c",
        "s.f_hat < 0, speeds.high, speeds.low",
        "s.f_hat > 0, speeds.high, speeds.low",
    ),
    ("gates do not fluctuate", "variance=(deviation + gates) ** 2", "variance=deviation**2"),
    ("no own gate, mean", "j1=q * (mean_1 + own_mean)", "j1=q * mean_1"),
    ("no own gate, square", "q * (root_1 + np.sqrt(own_square))", "q * root_1"),
    ("no 3 j2/m", " + 3 * j2 / width) / time", ") / time"),
    ("no 15 k2/m", " + 15 * k2 / width) / time", ") / time"),
    ("v not divided by T", "+ 15 * k2 / width) / time", "+ 15 * k2 / width)"),
    ("lazy part not divided by T", "+ 3 * j2 / width) / time", "+ 3 * j2 / width)"),
    ("shift not divided by T", "shift / self.time).min(0)", "shift).min(0)"),
    ("no shift", "moment + t * self.neurons * shift / self.time", "moment"),
    ("weight event unpaid", "-w / deviation), failure)", "-w / deviation), -np.inf)"),
    ("radius without its event", "level - np.exp(failure))", "level)"),
    ("level not halved for f0", 'level / 2 if self.start == "random" else level', "level"),
    ("f0 not divided by T", "= radius / self.time", "= radius"),
    ("doubled counts its width", 'self.start == "doubled")', "False)"),
    ("no lazy bias", "mean=np.abs(constants.f_hat) - lazy", "mean=np.abs(constants.f_hat)"),
    ("sqrt(3) is 1", "np.sqrt(3 * second_moment)", "np.sqrt(second_moment)"),
    ("t^2/2 is t^2/4", "t**2 / 2 * self.variance", "t**2 / 4 * self.variance"),
    ("no 1/(1 - c t)", "self.variance / (1 - self.scale * t)", "self.variance"),
    ("half for both sides", "halved = mean * (1 + slope) / 2", "halved = mean * (1 + slope) / 4"),
    ("free halving, mean", "q * price * time**3 / 6", "0 * price"),
    ("free halving, square", "(1 - slope**2) * price * time**4 / 12", "0 * price"),
    ("favour of the other side", "np.sign(factor) * np.cos(theta)", "-np.sign(factor)"),
    ("speed: no slope", "along - slope * against", "along - against"),
    ("fast in one direction", "(speeds.input_high + speeds.input_low) / 2", "speeds.input_low"),
    ("no Young, k1", "k1=large * (large + trade * small)", "k1=large * large"),
    ("no Young, k2", "k2=small * (small + large / trade)", "k2=small * small"),
    ("rates of absolute size", "rate = _MULTIPLES * centre", "rate = _MULTIPLES"),
    ("every sign predicted", "return np.abs(c.f_hat) > rounding", "return c.f_hat == c.f_hat"),
]
_CERTIFY = [
    (
        "delta for delta/2, f",
        "has_sign(f), delta / 2)\n        return",
        "has_sign(f), delta)\n        return",
    ),
    (
        "delta for delta/2, g",
        "first & agree & predicted, delta / 2",
        "first & agree & predicted, delta",
    ),
    ("delta for delta/2 of parts", "level = delta / 2 / f.points", "level = delta / f.points"),
    ("parts for one point", "level = delta / 2 / f.points", "level = delta / 2"),
    ("C_xi is 0", '"residual": leading.residual', '"residual": 0 * leading.residual'),
    ("psi is 0", '"random labels": leading.labels', '"random labels": 0 * leading.labels'),
    ("psi not divided by size", "carrier, targets, c.z)) / size", "carrier, targets, c.z))"),
    ("parts not divided by size", "name: part / size for", "name: part for"),
    ("predicted dropped", "first & agree & predicted", "first & agree"),
    ("agreement dropped", "first & agree & predicted", "first & predicted"),
    ("f not certified", "first & agree & predicted", "agree & predicted"),
    ("any words are a time", 'elif time != "best":', 'elif time == "":'),
    ("odd doubled widths", 'independent_neurons(width, start == "doubled")', "pass"),
    ("g at f's time", "derive_speeds(second), wanted_g", "derive_speeds(second), wanted_f"),
]
_MATCHING = [
    ("sign condition dropped", " & (f.f_hat * g_hat > 0)", ""),
    ("C_g ignored", " & (np.abs(g_hat) > g_error)", ""),
    ("C_f ignored", "(np.abs(f.f_hat) > f_error.total) & ", ""),
    ("delta not split", "level = delta / events", "level = delta"),
    ("no event for the labels", ' + (has_psi and rule != "fixed")', ""),
    ("psi not divided by size", '"psi": label / size', '"psi": label'),
    ("lazy not divided by size", '"lazy": g.lazy / size', '"lazy": g.lazy'),
    ("no concentration of g", "g.concentration / size", "0 * g.concentration"),
    ("no initial function of g", "g.initial / size", "0 * g.initial"),
    ("lazy not divided by T", "doubled=doubled, **options) / time", "doubled=doubled, **options)"),
    ("f0 not divided by T", "c.z, **options) / time if", "c.z, **options) if"),
    ("concentration not doubled", "predictor_bound(c, doubled=doubled, ", "predictor_bound(c, "),
    (
        "systematic part dropped",
        "return np.abs(self.systematic) + self.radius",
        "return self.radius",
    ),
    (
        "radius for one point",
        "2 * np.log(2 * points / delta) * total",
        "2 * np.log(2 / delta) * total",
    ),
    ("balanced without its 2", "else 2 * np.maximum(rest_square", "else np.maximum(rest_square"),
    ("sqrt(2) dropped a priori", "np.sqrt(2) * f.norm * gates", "f.norm * gates"),
    ("xi not measured", 'np.abs(cost), "ok"', '0 * np.abs(cost), "ok"'),
]
_PAIRS = "(4 * pairs / delta) / independent_neurons(width, doubled)"
_SQUARE = "neurons = independent_neurons(width, doubled)\n    square"
_OTHERS = [
    ("constants", "R_z of the logistic loss", '"logistic": 0.0', '"logistic": kernel.slope'),
    (
        "constants",
        "S_f^2 without its cross term",
        "f_square = a * square + ",
        "f_square = a * square + 0 * ",
    ),
    ("concentration", "minimum without delta/2", "delta=delta / 2, points", "delta=delta, points"),
    ("concentration", "kernel bound not doubled", "pairs=pairs, doubled=doubled", "pairs=pairs"),
    ("concentration", "split bound not doubled", _PAIRS, _PAIRS.replace("doubled", "False")),
    (
        "concentration",
        "direction variance not doubled",
        _SQUARE,
        _SQUARE.replace("doubled", "False"),
    ),
    ("lazy", "spread not doubled", '"identity", doubled)[2]', '"identity", False)[2]'),
    ("lazy", "last term not doubled", "(4 if doubled else 2)", "2"),
    ("randomness", "sign of f without f0", "np.sign(outputs[i] + time_f * mean)", "np.sign(mean)"),
    ("logistic", "sign condition dropped", "        & (error_f.f_hat * g_beta > 0)\n", ""),
    ("logistic", "weights taken for 1/2", "term.bound / 2 + e_g / 2 * ", "term.bound / 2 + 0 * "),
]

MUTANTS = [Mutant(name, "tails", old, new) for name, old, new in _TAILS]
MUTANTS += [Mutant(name, "certify", old, new) for name, old, new in _CERTIFY]
MUTANTS += [Mutant(name, "matching", old, new) for name, old, new in _MATCHING]
MUTANTS += [Mutant(name, module, old, new) for module, name, old, new in _OTHERS]
#: Beside the module's own tests.
TESTS = {
    "tails": ["tests/test_theory_tails.py"],
    "certify": [
        "tests/test_theory_certify.py",
        "tests/test_verify.py",
        "-k",
        "6.6 or certif or tim",
    ],
    "matching": ["tests/test_theory_matching.py", "tests/test_verify.py", "-k", "theory or 6.4"],
    "logistic": ["tests/test_theory_logistic.py", "tests/test_verify.py", "-k", "theory or 7.3"],
}
CHECKS = {"tails": "6.5", "certify": "6.6", "matching": "6.3,6.4", "logistic": "7.3"}


def outcome(mutant: Mutant, copy: Path, by_verify: bool) -> str:
    path = copy / "perturbkernel" / "theory" / f"{mutant.module}.py"
    source = path.read_text()
    if source.count(mutant.old) == 0:
        return "gone"
    path.write_text(source.replace(mutant.old, mutant.new, 1))
    if by_verify:
        only = CHECKS.get(mutant.module, "2,3,6,7,12")
        program = "import sys; from perturbkernel import verify as v; "
        command = ["-c", program + f"sys.exit(v.failed(v.verify({only!r})))"]
    else:
        tests = TESTS.get(mutant.module, [f"tests/test_theory_{mutant.module}.py"])
        command = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=copy, env=environment, capture_output=True, check=False
    )
    path.write_text(source)
    # verify: 1 is "a check fails"; pytest: 1 is "a test fails", more is no verdict.
    return {0: "SURVIVES", 1: "killed"}.get(done.returncode, f"no verdict ({done.returncode})")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", help="of perturbkernel.theory; all if left out")
    parser.add_argument("--verify", action="store_true", help="run verify's checks, not the tests")
    args = parser.parse_args()
    chosen = [m for m in MUTANTS if not args.modules or m.module in args.modules]
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("perturbkernel", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", copy)
        for module in dict.fromkeys(mutant.module for mutant in chosen):
            if (
                outcome(Mutant("nothing", module, "import", "import"), copy, args.verify)
                != "SURVIVES"
            ):
                print(f"{module}: fails as it is, so that nothing can be said of mutants")
                return 2
        for mutant in chosen:
            outcomes.append(outcome(mutant, copy, args.verify))
            print(f"{mutant.module:<14} {mutant.name:<32} {outcomes[-1]}", flush=True)
    killed = outcomes.count("killed")
    print(f"{killed} of {len(chosen)} killed")
    return 2 if "gone" in outcomes else int(killed < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
