"""The power of width by which an error falls, from independent networks at each width, with a
confidence interval.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

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
    """Returns the line log(statistic) = rate log(width) + const, by least squares with the same
    weight for every width.

        fit_rate({256: errors, 512: smaller_errors}).rate  # -0.5 or so

    Args:
        samples: width -> errors, one row a network; networks are independent within and between
            widths.
        statistic: one of STATISTICS.
        confidence: of the interval, which is rate -+ t se: se from the delete-one jackknife of the
            logarithm over the networks of each width, t of Student with Satterthwaite's degrees of
            freedom. It says what chance does to the fitted power, not how far that is from the
            power at infinite width.

    Raises ValueError or TypeError for another statistic, or a confidence outside (0, 1].
    """
    check_choice(statistic, "statistic", tuple(STATISTICS))
    check_number(confidence, "confidence", high=1.0, open_low=True)
    widths = np.array(sorted(samples))
    networks, values, variances = [], [], []
    for width in widths.tolist():
        count = len(samples[width])
        rows = np.reshape(samples[width], (count, -1))
        errors = rows.astype(float)
        value, variance = _log_with_variance(errors, statistic)
        networks.append(count)
        values.append(value)
        variances.append(variance)
    points = _Points(
        place=np.log(widths),
        networks=np.array(networks),
        values=np.array(values),
        variances=np.array(variances),
    )
    line = _line(points, confidence)
    return Rate(
        widths=widths,
        networks=points.networks,
        values=np.exp(points.values),
        errors=np.sqrt(points.variances),
        rate=line.slope,
        interval=line.interval,
        constant=line.constant,
    )


class _Points(NamedTuple):
    """What a line is fitted to, (w,) each: where, how many networks, log of the statistic and the
    variance of that.
    """

    place: np.ndarray
    networks: np.ndarray
    values: np.ndarray
    variances: np.ndarray


class _Line(NamedTuple):
    """value = slope place + constant, and the slope's confidence interval."""

    slope: float = np.nan
    interval: tuple[float, float] = (np.nan, np.nan)
    constant: float = np.nan


def _line(points: _Points, confidence: float) -> _Line:
    """Least squares over the values that are known; NaN with fewer than two of them."""
    known = np.isfinite(points.values)
    if known.sum() < 2:
        return _Line()
    place = points.place[known]
    values = points.values[known]
    networks = points.networks[known]
    centre = place.mean()
    centred = place - centre
    leverage = centred / np.sum(centred**2)
    slope = float(leverage @ values)
    constant = float(values.mean() - slope * centre)
    # What each width adds to the variance of the slope.
    parts = leverage**2 * points.variances[known]
    if not np.isfinite(parts).all():
        return _Line(slope, constant=constant)
    half = 0.0
    total = parts.sum()
    if total > 0:
        squares = parts**2 / (networks - 1)
        freedom = total**2 / np.sum(squares)
        quantile = student(confidence, freedom)
        half = quantile * np.sqrt(total)
    low = float(slope - half)
    high = float(slope + half)
    return _Line(slope, (low, high), constant)


def _log_with_variance(e: np.ndarray, statistic: str) -> tuple[float, float]:
    """log of the statistic of e (s, p), and the jackknife's variance of it; NaN where undefined."""
    s = len(e)
    others = s - 1
    square = e * e
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_square = np.mean(square, axis=0)
        whole = np.log(_statistic(e.mean(0), mean_square, s, statistic))
        without = np.full(s, np.nan)
        if s > 1:
            # Of all networks but one, for each of them.
            means = (e.sum(0) - e) / others
            squares = (square.sum(0) - square) / others
            without = np.log(_statistic(means, squares, others, statistic))
        variance = others * np.var(without)
    value = float(whole) if np.isfinite(whole) else np.nan
    return value, float(variance)


def _statistic(mean: np.ndarray, square: np.ndarray, s: int, statistic: str) -> np.ndarray:
    """From the mean and mean square over s networks, (..., p)."""
    if statistic == "rms":
        return np.sqrt(square.mean(-1))
    if statistic == "mean":
        return mean.mean(-1)
    common = mean**2
    noise = (square - common) / np.float64(s - 1)  # the variance of the mean
    found = common - noise
    if statistic == "spread":
        found = s * noise
    return np.sqrt(found.mean(-1))


def student(confidence: float, freedom: float) -> float:
    """The two-sided quantile of Student's t, to 2 % from 3 degrees of freedom on.

    It is expanded about the normal quantile in powers of 1 / freedom.

        student(0.95, 10.0)  # 2.228
    """
    upper = (1 + confidence) / 2
    z = NormalDist().inv_cdf(upper)
    first = z**3 + z
    second = 5 * z**5 + 16 * z**3 + 3 * z
    third = 3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z
    found = z
    found += first / (4 * freedom)
    found += second / (96 * freedom**2)
    found += third / (384 * freedom**3)
    return found
