"""What a check is, and when it holds: the one place where observations become a verdict.

A check makes independent draws and compares, at every point of every draw, something observed with
what the theory says. Five kinds of statement:

| kind | the theory says | it fails if |
| --- | --- | --- |
| "probability" | observed <= bound at all points at once, with probability >= 1 - delta | so many of the R draws violate it that P(Bin(R, delta) >= violations) < 1e-4 |
| "surely" | observed <= bound, always | any draw violates it by more than 1e-9 of the bound, which is rounding |
| "identity" | observed = 0 | any residual exceeds the stated tolerance (the bound) |
| "expectation" | a mean over draws equals (or, one-sided, is at most) the bound | the mean is off by more than the stated slack and the standard errors that chance exceeds with probability 1e-4 |
| "rate" | the root mean square falls as a power of width | the fitted power is outside the stated interval by more than chance (1e-4) explains |

A bound that holds and says nothing is called vacuous and is not a pass: one larger than the
quantity that it is to resolve, or one that makes no claim (NaN) at any point.
"""  # noqa: E501

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from statistics import NormalDist
from typing import Any

import numpy as np

#: A verdict of "fails" by chance has at most this probability a check.
FALSE_ALARM = 1e-4
#: What rounding may add to a deterministic bound, relative to it.
ROUNDING = 1e-9
KINDS = ("probability", "surely", "identity", "expectation", "rate")
#: How many observed points a verdict keeps for its figure.
KEPT = 1500


@dataclass(frozen=True)
class Setting:
    """One size at which a check is run. n training points of dimension d, `points` queries, the
    first few of which are training points; the classes' means are at +-shift in every coordinate.
    `time` and `size` are those of section 6.
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
        names = {
            "width": "m",
            "bias": "c",
            "slope": "slope",
            "time": "T",
            "time_g": "T_g",
            "size": "eps",
        }
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in (
                "draws",
                "n",
                "d",
                "points",
                "delta",
                "steps",
                "momentum",
                "samples",
                "shift",
            ):
                continue
            if one.name not in shown and value == one.default:
                continue
            if isinstance(value, tuple):
                parts.append(f"m={value[0]}..{value[-1]}")
            elif one.name in ("scenario", "start", "targets", "loss"):
                parts.append(
                    f"({value})" if one.name == "scenario" else str(value).replace("_", " ")
                )
            else:
                parts.append(f"{names.get(one.name, one.name)}={value:g}")
        return " ".join(parts)


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
        id: the number of the result.  part: which of its statements, if there are several.
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
    """What came of one check at one setting.

    Attributes:
        id, part, statement, kind: of the check.  setting: in words.  draws: how many were made.
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


def binomial_tail(trials: int, probability: float, count: int) -> float:
    """P(Bin(trials, probability) >= count)."""
    if count <= 0 or probability >= 1:
        return 1.0 if count <= trials else 0.0
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(probability)
        + (trials - k) * math.log1p(-probability)
        for k in range(count, trials + 1)
    ]
    return min(1.0, math.fsum(math.exp(value) for value in logs))


def allowed_errors(statistics: int, draws: int) -> float:
    """How many standard errors one of `statistics` means over `draws` may be off: chance exceeds it
    with probability FALSE_ALARM (Student's t, by its expansion about the normal quantile).
    """
    z, nu = NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * statistics)), draws - 1
    return z + (z**3 + z) / (4 * nu) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)


def judge(check: Check, setting: Setting, samples: list[Sample]) -> Verdict:
    """The verdict on a check from its draws."""
    base = Verdict(
        check.id,
        check.part,
        check.statement,
        check.kind,
        setting.describe(check.shown),
        len(samples),
        "holds",
        "",
        resolves=check.resolves,
        claim=check.claim,
    )
    judged = {"expectation": _judge_expectation, "rate": _judge_rate}.get(check.kind, _judge_bound)
    return judged(check, setting, samples, base)


def _ratio(observed: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Observed / bound, with 0 / 0 = 0; NaN where nothing is claimed, infinite where the
    observation is undefined.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(observed == 0, 0.0, observed / bound)
    ratio = np.where(np.isfinite(observed), ratio, np.inf)
    return np.where(np.isnan(bound), np.nan, ratio)


def _judge_bound(check: Check, setting: Setting, samples: list[Sample], base: Verdict) -> Verdict:
    pairs = [
        np.broadcast_arrays(*(np.asarray(v, float) for v in (s.observed, s.bound))) for s in samples
    ]
    ratios = [_ratio(*pair).ravel() for pair in pairs]
    largest = np.array([np.max(r[~np.isnan(r)], initial=0.0) for r in ratios])
    allowance = {"probability": 1.0, "surely": 1 + ROUNDING, "identity": 1.0}[check.kind]
    violations = int(np.sum(largest > allowance))
    everything = np.concatenate(ratios)
    claimed = float(np.mean(~np.isnan(everything)))
    observed, bound = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    kept = _subset(len(observed))
    base = replace(
        base,
        violations=violations,
        median=float(np.median(largest)),
        worst=float(largest.max()),
        claimed=claimed,
        observed=observed[kept],
        expected=bound[kept],
    )
    if check.claim:
        measured = f"claimed at {claimed:.0%} of points"
    elif check.kind == "identity":
        measured = f"largest residual {np.max(observed):.1e}"
    else:
        measured = f"{base.median:.3g} (worst {base.worst:.3g})"
    base = replace(base, measured=measured)
    if check.kind == "probability":
        if binomial_tail(len(samples), setting.delta, violations) < FALSE_ALARM:
            chance = f"more than a chance of {setting.delta:g} explains"
            return replace(
                base,
                verdict="fails",
                reason=f"violated in {violations} of {len(samples)} draws, {chance}",
            )
    elif violations:
        what = (
            "a residual above its tolerance"
            if check.kind == "identity"
            else "a bound that holds surely, violated,"
        )
        return replace(
            base, verdict="fails", reason=f"{what} in {violations} of {len(samples)} draws"
        )
    if claimed == 0:
        return replace(base, verdict="vacuous", reason="its conditions are met at no point")
    scales = [s.scale for s in samples if s.scale is not None]
    if scales:
        sizes = np.concatenate(
            [
                np.broadcast_to(scale, p[1].shape).ravel()
                for scale, p in zip(scales, pairs, strict=True)
            ]
        )
        base = replace(
            base, resolution=float(np.nanmedian(bound / np.where(sizes > 0, sizes, np.nan)))
        )
        if base.resolution is not None and not base.resolution <= 1:
            known = "; no practical size is known where it is smaller" if check.hopeless else ""
            reason = f"the bound is {base.resolution:.3g} times {check.resolves}{known}"
            return replace(base, verdict="vacuous", reason=reason)
    return base


def _judge_expectation(
    check: Check, setting: Setting, samples: list[Sample], base: Verdict
) -> Verdict:
    values = np.array([np.ravel(s.observed) for s in samples], float)
    targets = np.array(
        [np.broadcast_to(s.bound, np.shape(s.observed)).ravel() for s in samples], float
    )
    slack = np.broadcast_to(samples[0].slack, np.shape(samples[0].observed)).ravel()
    scale = np.abs(targets).mean(0)
    gaps = values - targets
    mean = gaps.mean(0)
    if check.one_sided:
        mean = np.maximum(mean, 0)
    error = np.std(gaps, axis=0, ddof=1) / np.sqrt(len(samples))
    allowed = slack + allowed_errors(values.shape[1], len(samples)) * error + 1e-12 * scale
    deviation = np.where(np.isfinite(mean), np.abs(mean) / allowed, np.inf)
    worst = int(np.argmax(deviation))
    average, target = values.mean(0), targets.mean(0)
    sign = "at most" if check.one_sided else "expected"
    measured = f"{average[worst]:.4g}, {sign} {target[worst]:.4g} ± {allowed[worst]:.2g}"
    resolution = float(np.median(allowed / np.where(scale > 0, scale, np.nan)))
    base = replace(
        base,
        measured=measured,
        violations=int(np.sum(deviation > 1)),
        median=float(np.median(deviation)),
        worst=float(deviation[worst]),
        resolution=resolution,
        observed=average,
        expected=target,
        allowed=allowed,
        resolves=check.resolves or "the number itself",
    )
    if base.violations:
        return replace(
            base,
            verdict="fails",
            reason="the mean over draws is further off than chance and slack explain",
        )
    if not resolution <= 1:
        return replace(
            base,
            verdict="vacuous",
            reason=f"too few draws: the error is {resolution:.3g} times the number",
        )
    return base


def _power(widths: np.ndarray, squares: np.ndarray) -> float:
    return float(np.polyfit(np.log(widths), np.log(squares.mean(0)) / 2, 1)[0])


def _judge_rate(check: Check, setting: Setting, samples: list[Sample], base: Verdict) -> Verdict:
    widths = np.array(setting.widths, float)
    squares = np.array([np.asarray(s.observed, float) ** 2 for s in samples])
    low, high = check.interval
    power = _power(widths, squares)
    # Jackknife over draws.
    count = len(squares)
    without = np.array([_power(widths, np.delete(squares, i, axis=0)) for i in range(count)])
    error = float(np.sqrt((count - 1) / count * np.sum((without - without.mean()) ** 2)))
    measured = f"power {power:.3f} ± {error:.3f} ({low:g} to {high:g})"
    base = replace(
        base,
        measured=measured,
        median=power,
        worst=error,
        interval=(low, high),
        expected=widths,
        observed=np.sqrt(squares.mean(0)),
    )
    margin = allowed_errors(1, count) * error
    if not low - margin <= power <= high + margin:
        return replace(
            base,
            verdict="fails",
            violations=1,
            reason="the power is further outside than chance explains",
        )
    if margin > (high - low) / 2:
        return replace(
            base,
            verdict="vacuous",
            reason="too few draws: the power is not known to within the interval",
        )
    return base


def _subset(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, KEPT)).astype(int))
