"""What a check is, and what its verdict says.

A check makes independent draws and compares, at every point of every draw, something observed with
what the theory says. Five kinds of statement:

- "probability": observed <= bound at all points at once, with probability >= 1 - delta. Fails if so
  many of the R draws violate it that P(Bin(R, delta) >= violations) < 1e-4.
- "surely": observed <= bound, always. Fails if any draw violates it by more than 1e-9 of the bound,
  which is rounding.
- "identity": observed = 0. Fails if any residual exceeds the stated tolerance (the bound).
- "expectation": a mean over draws equals (or, one-sided, is at most) the bound. Fails if the mean
  is off by more than the stated slack and the standard errors that chance exceeds with probability
  1e-4.
- "rate": the root mean square falls as a power of width. Fails if the fitted power is outside the
  stated interval by more than chance (1e-4) explains.

A bound that holds and says nothing is called vacuous and is not a pass: one larger than the
quantity that it is to resolve, or one that makes no claim (NaN) at any point.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

KINDS = ("probability", "surely", "identity", "expectation", "rate")


@dataclass(frozen=True)
class Setting:
    """One size at which a check is run.

    n training points of dimension d, `points` queries, the first few of which are training points;
    the classes' means are at +-shift in every coordinate. `time` and `size` are those of section 6.
    """

    draws: int = 50
    width: int = 2000
    widths: tuple[int, ...] = ()
    n: int = 20
    d: int = 20
    points: int = 20
    shift: float = 1.0
    slope: float = 0.0
    bias: bool = False
    loss: str = "identity"
    time: float = 0.3
    time_g: float = 0.3
    size: float = 1.0
    scenario: str = "a"
    start: str = "random"
    targets: str = "coin_flip"
    steps: int = 8
    momentum: float = 0.9
    delta: float = 0.1
    samples: int = 0

    def describe(self, shown: Sequence[str] = ()) -> str:
        """N, d, and whatever else was chosen, as text."""
        parts = [f"N={self.n} d={self.d}"]
        for one in fields(self):
            value = getattr(self, one.name)
            chosen = one.name in shown or value != one.default
            if one.name in _SHOWN and chosen:
                parts.append(_SHOWN[one.name](value))
        return " ".join(parts)


def _words(value: str) -> str:
    return value.replace("_", " ")


# How `Setting.describe` writes the fields that it shows.
_SHOWN: dict[str, Callable[[Any], str]] = {
    "width": "m={:g}".format,
    "widths": lambda widths: f"m={widths[0]}..{widths[-1]}",
    "slope": "slope={:g}".format,
    "bias": "c={:g}".format,
    "loss": _words,
    "time": "T={:g}".format,
    "time_g": "T_g={:g}".format,
    "size": "eps={:g}".format,
    "scenario": "({})".format,
    "start": _words,
    "targets": _words,
}


@dataclass(frozen=True)
class Sample:
    """What one draw saw: arrays of one shape.

    Attributes:
        observed, bound: compared entry by entry. A NaN bound claims nothing there; a NaN
            observation is a failure. "rate": `observed` holds one value a width and the bound is
            not used.
        scale: the quantity that the bound is to resolve, None if it bounds just that quantity.
        slack: "expectation": the error allowed beyond chance, where the theory's value is a leading
            order.
    """

    observed: Any
    bound: Any = np.nan
    scale: Any = None
    slack: Any = 0.0


@dataclass(frozen=True)
class Check:
    """One statement of the theory and how it is tried.

    Attributes:
        id: the number of the result.
        part: which of its statements, if there are several.
        statement: what is checked, in words.
        draw: (rng, setting, prepared) -> Sample, or whatever `compare` makes one of. Checks with
            the same draw at the same setting share its draws.
        compare: (drawn, setting, prepared) -> Sample, where the theory comes in; by default what
            was drawn is one.
        prepare: (rng, setting) -> prepared, the data; for every draw anew, or once if `fixed`.
        settings, full: the sizes of a default and of a full run (the same where `full` is left
            out).
        shown: names of settings that are shown even at their default.
        resolves: what `Sample.scale` is, in words.
        claim: the statement is "where the condition is met, the signs agree"; a bound of NaN marks
            where it is not.
        one_sided: of an expectation: it is at most the bound.
        interval: "rate": where the power must lie.
        hopeless: no setting of practical size is known in which the bound says something.
    """

    id: str
    statement: str
    kind: str
    draw: Callable[[np.random.Generator, Setting, Any], Any]
    settings: tuple[Setting, ...]
    full: tuple[Setting, ...] = ()
    part: str = ""
    compare: Callable[[Any, Setting, Any], Sample] = lambda drawn, setting, prepared: drawn
    prepare: Callable[[np.random.Generator, Setting], Any] = lambda rng, setting: None
    fixed: bool = False
    shown: tuple[str, ...] = ()
    resolves: str = ""
    claim: bool = False
    one_sided: bool = False
    interval: tuple[float, float] = (-np.inf, np.inf)
    hopeless: bool = False

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}")

    @property
    def name(self) -> str:
        return f"{self.id} {self.part}".strip()


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check at one setting.

    Attributes:
        id, part, statement, kind: of the check.
        setting: in words.
        draws: how many were made.
        verdict: "holds", "fails" or "vacuous".
        measured: the outcome in words; `reason`: why it fails or is vacuous.
        violations: draws (expectations: numbers; rates: 0 or 1) that contradict the statement.
        median, worst: over draws, of each draw's largest observed / bound. Expectations: of the
            deviation / allowed deviation; rates: the power and its standard error.
        resolution: median of bound / the quantity it is to resolve, None if there is no such
            quantity; above 1 it is vacuous. `claimed`: the share of points at which something is
            claimed.
        expected, observed: arrays for the figure: bound and observed (rates: width and root mean
            square).
        allowed: expectations: the deviation allowed of each number, for the figure too.
    """

    id: str
    part: str
    statement: str
    kind: str
    setting: str
    draws: int
    verdict: str
    measured: str
    reason: str = ""
    violations: int = 0
    median: float | None = None
    worst: float | None = None
    resolution: float | None = None
    resolves: str = ""
    claimed: float | None = None
    claim: bool = False
    interval: tuple[float, float] | None = None
    seconds: float = 0.0
    expected: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    observed: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    allowed: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)

    @property
    def name(self) -> str:
        return f"{self.id} {self.part}".strip()
