"""The power of width by which an error falls, from independent networks at each width, with a
confidence interval.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from perturbkernel.checks import check_choice, check_number

#: What one number is made of the errors e_sp of networks s at points p.
STATISTICS = {
    "rms": "sqrt(mean over s and p of e^2)",
    "mean": "mean over s and p of e",
    "spread": "sqrt(mean over p of the variance of e over s)",
    "common": "sqrt(mean over p of (mean over s of e)^2), the mean's own noise subtracted",
}


@dataclass(frozen=True)
class Rate:
    """A statistic against width, (w,) each, and the line log(value) = rate log(width) + const.

    Attributes:
        widths, networks: ascending, and how many networks each had.
        values: the statistic; NaN where `common` is not told from zero.
        errors: its relative standard error.
        rate: least squares; NaN with fewer than two values that a logarithm exists of.
        interval: (low, high) of the rate; NaN with one network a width.
        constant: of the line.
    """

    widths: np.ndarray
    networks: np.ndarray
    values: np.ndarray
    errors: np.ndarray
    rate: float
    interval: tuple[float, float]
    constant: float


def fit_rate(
    samples: Mapping[int, Float[np.ndarray, "s ..."]],
    statistic: str = "rms",
    confidence: float = 0.95,
) -> Rate:
    """Fits log(statistic) = rate log(width) + const by least squares, every width with the same
    weight.

    Args:
        samples: width -> errors, one row a network; networks are independent within and between
            widths.
        statistic: one of STATISTICS.
        confidence: of the interval, which is rate -+ t se: se from the delete-one jackknife of the
            logarithm over the networks of each width, t of Student with Satterthwaite's degrees of
            freedom. It says what chance does to the fitted power, not how far that is from the
            power at infinite width.
    """
    check_choice(statistic, "statistic", tuple(STATISTICS))
    check_number(confidence, "confidence", high=1.0, open_low=True)
    widths = np.array(sorted(samples))
    rows = [
        np.reshape(samples[width], (len(samples[width]), -1)).astype(float)
        for width in widths.tolist()
    ]
    networks = np.array([len(row) for row in rows])
    values, variances = (
        np.array([_log_with_variance(row, statistic) for row in rows]).reshape(-1, 2).T
    )
    known = np.isfinite(values)
    rate, constant, interval = np.nan, np.nan, (np.nan, np.nan)
    if known.sum() > 1:
        place = np.log(widths[known])
        leverage = (place - place.mean()) / np.sum((place - place.mean()) ** 2)
        rate = float(leverage @ values[known])
        constant = float(values[known].mean() - rate * place.mean())
        parts = leverage**2 * variances[known]
        if np.isfinite(parts).all():
            total = parts.sum()
            spread = np.sum(parts**2 / (networks[known] - 1))
            half = student(confidence, total**2 / spread) * np.sqrt(total) if total > 0 else 0.0
            interval = (float(rate - half), float(rate + half))
    return Rate(widths, networks, np.exp(values), np.sqrt(variances), rate, interval, constant)


def _log_with_variance(e: np.ndarray, statistic: str) -> tuple[float, float]:
    """log of the statistic of e (s, p), and the jackknife's variance of it; NaN where undefined."""
    s = len(e)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.log(_statistic(e.mean(0), np.mean(e * e, axis=0), s, statistic))
        without = np.full(s, np.nan)
        if s > 1:
            means, squares = ((p.sum(0) - p) / (s - 1) for p in (e, e * e))
            without = np.log(_statistic(means, squares, s - 1, statistic))
        variance = (s - 1) * np.var(without)
    return (float(whole) if np.isfinite(whole) else np.nan), float(variance)


def _statistic(mean: np.ndarray, square: np.ndarray, s: int, statistic: str) -> np.ndarray:
    """From the mean and mean square over s networks, (..., p)."""
    if statistic == "rms":
        return np.sqrt(square.mean(-1))
    if statistic == "mean":
        return mean.mean(-1)
    noise = (square - mean**2) / np.float64(s - 1)  # the variance of the mean
    if statistic == "spread":
        return np.sqrt((s * noise).mean(-1))
    return np.sqrt((mean**2 - noise).mean(-1))


def student(confidence: float, freedom: float) -> float:
    """The two-sided quantile of Student's t, by its expansion about the normal one: to 2 % from 3
    degrees on.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
