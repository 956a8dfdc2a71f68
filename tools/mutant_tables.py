"""What `tools/mutants.py` breaks, one text at a time, and which tests should notice.

Whoever edits a line that is quoted here edits it here too; `python tools/mutants.py --check` says
which texts are lost.
"""

from typing import NamedTuple

from mutants_elsewhere import ELSEWHERE
from mutants_of_attacks import ATTACKS
from mutants_of_kernels import KERNELS
from mutants_of_the_law import LAW
from mutants_of_training import TRAINING
from theory_mutants import LABELS, LINEAR, LINEARITY, SCALING


class Mutant(NamedTuple):
    """One text of one file, what replaces it, and the arguments of pytest that should fail then."""

    name: str
    file: str  # below perturbkernel/
    old: str
    new: str
    tests: tuple[str, ...]


_TAILS = [
    ("7/3 is 1", "scale = 7 / 3 * ", "scale = "),
    ("hi and lo swapped in c", "s.f_hat < 0, speeds.high", "s.f_hat > 0, speeds.high"),
    ("gates do not fluctuate", "variance=(deviation + gates) ** 2", "variance=deviation**2"),
    ("no own gate, mean", "j1=q * (mean_1 + own_mean)", "j1=q * mean_1"),
    ("no own gate, square", "q * (root_1 + np.sqrt(own_square))", "q * root_1"),
    ("no 3 j2/m", " + 3 * j2 / width) / time", ") / time"),
    ("no 15 k2/m", "/ root + 15 * k2 / width", "/ root"),
    ("v not divided by T", "np.sqrt(gate_square) / time", "np.sqrt(gate_square)"),
    ("lazy part not divided by T", "+ 3 * j2 / width) / time", "+ 3 * j2 / width)"),
    ("shift not divided by T", "neurons * w / self.time", "neurons * w"),
    ("no shift", "moved = moment + t * neurons * w / self.time", "moved = moment"),
    ("weight event unpaid", "np.logaddexp(tail, failure)", "np.logaddexp(tail, -np.inf)"),
    ("radius without its event", "ndtri(level - failure)", "ndtri(level)"),
    ("level not halved for f0", 'level / 2 if self.start == "random" else level', "level"),
    ("f0 not divided by T", "= radius / self.time", "= radius"),
    ("doubled counts its width", "(self.width, self.start)", "(self.width, 'random')"),
    ("no lazy bias", "mean=np.abs(constants.f_hat) - lazy", "mean=np.abs(constants.f_hat)"),
    ("sqrt(3) is 1", "np.sqrt(3 * second_moment)", "np.sqrt(second_moment)"),
    ("t^2/2 is t^2/4", "t**2 / 2 * self.variance", "t**2 / 4 * self.variance"),
    ("no 1/(1 - c t)", "self.variance / room", "self.variance"),
    ("half for both sides", "halved = mean * (1 + slope) / 2", "halved = mean * (1 + slope) / 4"),
    ("free halving, mean", "q * price * time**3 / 6", "0 * price"),
    ("free halving, square", "(1 - slope**2) * price * time**4 / 12", "0 * price"),
    ("favour of the other side", "np.sign(factor) * np.cos(theta)", "-np.sign(factor)"),
    ("speed: no slope", "along - slope * against", "along - against"),
    ("fast in one direction", "(speeds.input_high + speeds.input_low) / 2", "speeds.input_low"),
    ("no Young, k1", "k1=large * (large + trade * small)", "k1=large * large"),
    ("no Young, k2", "k2=small * (small + large / trade)", "k2=small * small"),
    ("rates of absolute size", "r = _MULTIPLES * centre", "r = _MULTIPLES"),
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
    ("odd doubled widths", "    independent_neurons(width, start)", "    pass"),
    ("g at f's time", "derive_speeds(second), wanted_g", "derive_speeds(second), wanted_f"),
]
_MATCHING = [
    ("sign condition dropped", "f_known & g_known & agree", "f_known & g_known"),
    ("C_g ignored", "f_known & g_known & agree", "f_known & agree"),
    ("C_f ignored", "f_known & g_known & agree", "g_known & agree"),
    ("delta not split", "level = delta / events", "level = delta"),
    ("no event for the labels", ' + (has_psi and rule != "fixed")', ""),
    ("psi not divided by size", '"psi": label / size', '"psi": label'),
    ("lazy not divided by size", '"lazy": g.lazy / size', '"lazy": g.lazy'),
    ("no concentration of g", "g.concentration / size", "0 * g.concentration"),
    ("no initial function of g", "g.initial / size", "0 * g.initial"),
    ("lazy not divided by T", "start=start, **options) / time", "start=start, **options)"),
    ("f0 not divided by T", "c.z, **options) / time if", "c.z, **options) if"),
    ("concentration not doubled", "predictor_bound(c, start=start, ", "predictor_bound(c, "),
    ("sqrt(2) dropped a priori", "np.sqrt(2) * f.norm * gates", "f.norm * gates"),
    ("xi not measured", "_XiPart(leading, np.abs(cost))", "_XiPart(leading, 0 * np.abs(cost))"),
]
_PAIRS = "(4 * pairs / delta) / independent_neurons(width, start)"
_SQUARE = "neurons = independent_neurons(width, start)\n    square"
_OTHERS = [
    ("constants", "R_z of the logistic loss", '"logistic": 0.0', '"logistic": kernel.slope'),
    (
        "constants",
        "S_f^2 without its cross term",
        "f_square = a * square + ",
        "f_square = a * square + 0 * ",
    ),
    ("concentration", "minimum without delta/2", "delta=delta / 2, points", "delta=delta, points"),
    ("concentration", "kernel bound not doubled", "pairs=pairs, start=start", "pairs=pairs"),
    ("concentration", "split bound not doubled", _PAIRS, _PAIRS.replace("start", "'random'")),
    (
        "concentration",
        "direction variance not doubled",
        _SQUARE,
        _SQUARE.replace("start", "'random'"),
    ),
    ("lazy", "spread not doubled", '"identity", start)[2]', '"identity", "random")[2]'),
    (
        "lazy",
        "last term not doubled",
        "exponential = twice * 2 * largest",
        "exponential = 2 * largest",
    ),
    (
        "randomness",
        "sign of f without f0",
        "np.sign(outputs[i] + time_f * f_hat)",
        "np.sign(f_hat)",
    ),
    (
        "logistic_matching",
        "sign condition dropped",
        "g_beta, g_error)",
        "np.copysign(g_beta, error_f.f_hat), g_error)",
    ),
    ("logistic_matching", "weights taken for 1/2", "+ e_g / 2 * row", "+ 0 * row"),
    ("logistic_matching", "C_f for half the time", "2 * error_f.total + ", "error_f.total + "),
]


def _of_theory(module: str, name: str, old: str, new: str) -> Mutant:
    tests = f"tests/theory/test_theory_{_TESTED_WITH.get(module, module)}.py"
    more = _MORE_TESTS.get(module, ())
    return Mutant(name, f"theory/{module}.py", old, new, (tests, *more))


#: Modules that share the tests of another one.
_TESTED_WITH = {"labels": "matching", "logistic_matching": "logistic"}
_VERIFY = "tests/verify/test_verify.py"
#: Beside the module's own tests: pytest's arguments, which choose among both files.
_MORE_TESTS = {
    "certify": (_VERIFY, "-k", "6.6 or certif or tim"),
    "matching": (_VERIFY, "-k", "theory or 6.4"),
    "logistic_matching": (_VERIFY, "-k", "theory or 7.3"),
}
#: What `verify` checks of a module's constants.
VERIFIED_BY = {
    "tails": "6.5",
    "certify": "6.6",
    "matching": "6.4",
    "labels": "6.3,6.4",
    "logistic_matching": "7.3",
    **dict.fromkeys(("paths", "moments", "neurons", "estimates", "pool", "cuts"), "14"),
    **dict.fromkeys(("holdout", "drawn"), "14.5"),
    "linear": "15",
    "scaling": "16",
}

MUTANTS = [_of_theory("tails", *one) for one in _TAILS]
MUTANTS += [_of_theory("certify", *one) for one in _CERTIFY]
MUTANTS += [_of_theory("matching", *one) for one in _MATCHING]
MUTANTS += [_of_theory("labels", *one) for one in LABELS]
MUTANTS += [_of_theory("linear", *one) for one in LINEAR]
MUTANTS += [_of_theory("scaling", *one) for one in SCALING]
MUTANTS += [_of_theory(*one) for one in _OTHERS]
MUTANTS += [Mutant(*one) for one in (*LAW, *ATTACKS, *TRAINING, *KERNELS)]
MUTANTS += [Mutant(name, file, old, new, tests) for file, name, old, new, tests in ELSEWHERE]
MUTANTS += [Mutant(name, file, old, new, tests) for file, name, old, new, tests in LINEARITY]
