"""When a check holds: the one place where observations become a verdict.

`protocol` says what each kind of statement fails by.
"""

import math
from dataclasses import replace
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from perturbkernel.verify.protocol import Check, Sample, Setting, Verdict

#: A verdict of "fails" by chance has at most this probability a check.
FALSE_ALARM = 1e-4
#: What rounding may add to a deterministic bound, relative to it.
ROUNDING = 1e-9
#: How many observed points a verdict keeps for its figure.
KEPT = 1500


def binomial_tail(trials: int, probability: float, count: int) -> float:
    """P(Bin(trials, probability) >= count).

    Example:
        >>> binomial_tail(2, 0.5, 1)
        0.7499999999999998
    """
    if count <= 0 or probability >= 1:
        return 1.0 if count <= trials else 0.0
    log = math.log(probability)
    log_other = math.log1p(-probability)
    terms = []
    for k in range(count, trials + 1):
        others = trials - k
        log_ways = _log_factorial(trials) - _log_factorial(k) - _log_factorial(others)
        log_chance = log_ways + k * log + others * log_other
        terms.append(math.exp(log_chance))
    return min(1.0, math.fsum(terms))


def _log_factorial(n: int) -> float:
    return math.lgamma(n + 1)


def allowed_errors(statistics: int, draws: int) -> float:
    """How many standard errors one of `statistics` means over `draws` may be off.

    Chance exceeds it with probability FALSE_ALARM (Student's t, by its expansion about the normal
    quantile).

    Example:
        >>> round(allowed_errors(1, 100), 2)
        4.05
    """
    tail = FALSE_ALARM / (2 * statistics)
    z = NormalDist().inv_cdf(1 - tail)
    nu = draws - 1
    first = (z**3 + z) / (4 * nu)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
    return z + first + second


def judge(check: Check, setting: Setting, samples: list[Sample]) -> Verdict:
    """The verdict on a check from its draws."""
    base = Verdict(
        id=check.id,
        part=check.part,
        statement=check.statement,
        kind=check.kind,
        setting=setting.describe(check.shown),
        draws=len(samples),
        verdict="holds",
        measured="",
        resolves=check.resolves,
        claim=check.claim,
    )
    if check.kind == "expectation":
        return _judge_expectation(check, samples, base)
    if check.kind == "rate":
        return _judge_rate(check, setting, samples, base)
    return _judge_bound(check, setting, samples, base)


def _ratio(observed: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Observed / bound, with 0 / 0 = 0.

    NaN where nothing is claimed, infinite where the observation is undefined.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(observed == 0, 0.0, observed / bound)
    ratio = np.where(np.isfinite(observed), ratio, np.inf)
    return np.where(np.isnan(bound), np.nan, ratio)


def _judge_bound(check: Check, setting: Setting, samples: list[Sample], base: Verdict) -> Verdict:
    """Compares at every point, and counts the draws in which a point violates the statement."""
    pairs = [_pair(sample) for sample in samples]
    ratios = [_ratio(pair.observed, pair.bound) for pair in pairs]
    largest = np.array([_largest(ratio) for ratio in ratios])
    allowance = 1.0
    if check.kind == "surely":
        allowance += ROUNDING
    everything = _joined(ratios)
    observed = _joined([pair.observed for pair in pairs])
    bound = _joined([pair.bound for pair in pairs])
    kept = _subset(len(observed))
    base = replace(
        base,
        violations=int(np.sum(largest > allowance)),
        median=float(np.median(largest)),
        worst=float(largest.max()),
        claimed=float(np.mean(~np.isnan(everything))),
        observed=observed[kept],
        expected=bound[kept],
    )
    base = replace(base, measured=_measured(check, base, float(np.max(observed))))
    reason = _contradiction(check, setting, base)
    if reason:
        return replace(base, verdict="fails", reason=reason)
    if base.claimed == 0:
        return replace(base, verdict="vacuous", reason="its conditions are met at no point")
    return _resolved(check, samples, pairs, base)


class _Pair(NamedTuple):
    """What was observed and its bound, of one shape, in float64."""

    observed: np.ndarray
    bound: np.ndarray


def _pair(sample: Sample) -> _Pair:
    observed = np.asarray(sample.observed, float)
    bound = np.asarray(sample.bound, float)
    observed, bound = np.broadcast_arrays(observed, bound)
    return _Pair(observed, bound)


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    """All entries in one row."""
    return np.concatenate([array.ravel() for array in arrays])


def _largest(ratio: np.ndarray) -> float:
    """The largest ratio where something is claimed, 0 where nothing is."""
    claimed = ~np.isnan(ratio)
    return np.max(ratio[claimed], initial=0.0)


def _measured(check: Check, base: Verdict, largest: float) -> str:
    """The outcome of a bound in words."""
    if check.claim:
        return f"claimed at {base.claimed:.0%} of points"
    if check.kind == "identity":
        return f"largest residual {largest:.1e}"
    return f"{base.median:.3g} (worst {base.worst:.3g})"


def _contradiction(check: Check, setting: Setting, base: Verdict) -> str:
    """Why the violations contradict the statement, empty if they do not."""
    share = f"in {base.violations} of {base.draws} draws"
    if check.kind == "probability":
        if binomial_tail(base.draws, setting.delta, base.violations) < FALSE_ALARM:
            return f"violated {share}, more than a chance of {setting.delta:g} explains"
        return ""
    if not base.violations:
        return ""
    if check.kind == "identity":
        return f"a residual above its tolerance {share}"
    return f"a bound that holds surely, violated, {share}"


def _resolved(
    check: Check,
    samples: list[Sample],
    pairs: list[_Pair],
    base: Verdict,
) -> Verdict:
    """The verdict with its resolution: vacuous where the bound exceeds what it is to resolve."""
    scales = [sample.scale for sample in samples if sample.scale is not None]
    if not scales:
        return base
    ratios = []
    for scale, pair in zip(scales, pairs, strict=True):
        sizes = np.broadcast_to(scale, pair.bound.shape)
        ratios.append(pair.bound / _or_nan(sizes))
    resolution = float(np.nanmedian(_joined(ratios)))
    base = replace(base, resolution=resolution)
    if resolution <= 1:
        return base
    reason = f"the bound is {resolution:.3g} times {check.resolves}"
    if check.hopeless:
        reason += "; no practical size is known where it is smaller"
    return replace(base, verdict="vacuous", reason=reason)


def _or_nan(sizes: np.ndarray) -> np.ndarray:
    """The sizes, NaN where they are not positive: there nothing is resolved."""
    return np.where(sizes > 0, sizes, np.nan)


def _judge_expectation(check: Check, samples: list[Sample], base: Verdict) -> Verdict:
    """Compares the mean over draws of every number with the bound."""
    values = np.array([np.ravel(sample.observed) for sample in samples], float)
    shape = np.shape(samples[0].observed)
    targets = np.array([np.broadcast_to(s.bound, shape).ravel() for s in samples], float)
    slack = np.broadcast_to(samples[0].slack, shape).ravel()
    scale = np.abs(targets).mean(0)
    gaps = values - targets
    mean = gaps.mean(0)
    if check.one_sided:
        mean = np.maximum(mean, 0)
    draws = len(samples)
    error = np.std(gaps, axis=0, ddof=1) / np.sqrt(draws)
    errors = allowed_errors(values.shape[1], draws)
    allowed = slack + errors * error + 1e-12 * scale  # the last is rounding
    deviation = np.abs(mean) / allowed
    deviation = np.where(np.isfinite(mean), deviation, np.inf)
    worst = int(np.argmax(deviation))
    average = values.mean(0)
    target = targets.mean(0)
    sign = "at most" if check.one_sided else "expected"
    measured = f"{average[worst]:.4g}, {sign} {target[worst]:.4g} ± {allowed[worst]:.2g}"
    relative = allowed / _or_nan(scale)
    resolution = float(np.median(relative))
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
        reason = "the mean over draws is further off than chance and slack explain"
        return replace(base, verdict="fails", reason=reason)
    if resolution <= 1:
        return base
    reason = f"too few draws: the error is {resolution:.3g} times the number"
    return replace(base, verdict="vacuous", reason=reason)


def _power(widths: np.ndarray, squares: np.ndarray) -> float:
    """The power of width in the root mean square over draws, squares (draws, widths)."""
    mean = squares.mean(0)
    log_rms = np.log(mean) / 2
    log_width = np.log(widths)
    slope, _ = np.polyfit(log_width, log_rms, 1)
    return float(slope)


def _judge_rate(check: Check, setting: Setting, samples: list[Sample], base: Verdict) -> Verdict:
    """Fits the power of width, and compares it with its interval."""
    widths = np.array(setting.widths, float)
    squares = np.array([np.asarray(sample.observed, float) ** 2 for sample in samples])
    low, high = check.interval
    power = _power(widths, squares)
    error = _jackknife_error(widths, squares)
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
    margin = allowed_errors(1, len(squares)) * error
    if not low - margin <= power <= high + margin:
        reason = "the power is further outside than chance explains"
        return replace(base, verdict="fails", violations=1, reason=reason)
    if margin > (high - low) / 2:
        reason = "too few draws: the power is not known to within the interval"
        return replace(base, verdict="vacuous", reason=reason)
    return base


def _jackknife_error(widths: np.ndarray, squares: np.ndarray) -> float:
    """The standard error of the power, by leaving out one draw at a time."""
    count = len(squares)
    powers = []
    for i in range(count):
        others = np.delete(squares, i, axis=0)
        powers.append(_power(widths, others))
    deviations = np.array(powers) - np.mean(powers)
    scatter = np.sum(deviations**2)
    return float(np.sqrt((count - 1) / count * scatter))


def _subset(count: int) -> np.ndarray:
    """Which of the observed points are kept for the figure, evenly spread."""
    spread = np.linspace(0, count - 1, min(count, KEPT))
    return np.unique(spread.astype(int))
