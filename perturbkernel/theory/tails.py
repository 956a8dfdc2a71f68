"""The probability that a finite network has the wrong sign at a point, in closed form.

Identity loss, gradient flow or heavy ball to (effective) time T, m the width, s the predicted sign,
that of f_hat(z). For every real x and every 0 < t < 1/c,

    P(s (f - f0)(z; T) <= T x)
        <= exp(m log[1 - t mean/T + (t^2/2) (v/T^2) / (1 - c t)] + t m x),       (tail)

    mean = T |f_hat| - 2 sqrt(2/pi) j1/sqrt(m) - 3 j2/m
    v    = (sqrt(3) S_f T + sqrt(8 sqrt(2/pi) k1/sqrt(m) + 15 k2/m))^2
    c    = 7/3 lo(z) for s = +1, 7/3 hi(z) for s = -1

with hi and lo of `Speeds` and j1, j2, k1, k2 of `LazyMoments`. Doubled networks have m/2 pairs,
which take the place of both m in the exponent. With the initial function left in, for every w >= 0,

    P(s f <= 0) <= P(s f0 <= -w) + (tail with x = w/T).

Theory: 6.5, with the proof.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from perturbkernel.arrays import quotient
from perturbkernel.theory.arguments import gate_mean_square, log_ndtr, ndtri
from perturbkernel.theory.concentration import independent_neurons
from perturbkernel.theory.constants import Constants
from perturbkernel.theory.pairs import row_sums

#: Of the rate that is best for the leading terms: every bound is the best over these multiples of
#: it. They are relative to each point's own rate, so that no unit enters; 1 is one of them.
_MULTIPLES = np.geomspace(1e-2, 1e3, 401)[:, None]
#: Of the largest shift w that could help: how much of it is left to the initial function.
_SHARES = np.concatenate([[0.0], np.geomspace(1e-3, 1, 60)])[:, None]
#: Rates of the initial function's tail, in units of sqrt(m) / s_z; its moments end at 1.
_RATES = np.geomspace(1e-4, 0.98, 300)[:, None]
#: Log probabilities to pay for a variance bound given the weights.
_EXPONENTS = (8.0, 11.0, 14.0, 18.0, 25.0)
_ROOT_TWO_PI = np.sqrt(2 * np.pi)
_ROOT_TWO_OVER_PI = np.sqrt(2 / np.pi)


@dataclass(frozen=True)
class Speeds:
    """hi and lo of a training set, at its own inputs (n,) and at the query points (m,).

    The pre-activation at z moves by at most |a| T hi(z) toward the sign of a neuron's readout a,
    and by at most |a| T lo(z) away from it.
    """

    input_high: Float[np.ndarray, " n"]
    input_low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " m"]
    low: Float[np.ndarray, " m"]


def derive_speeds(constants: Constants) -> Speeds:
    """hi(z) = [P - slope M]_+ and lo(z) = [M - slope P]_+, from one pass over n x n pairs.

    P and M are the sums over n of the positive and negative parts of y_n k_n(z) / N.
    """
    c = constants
    slope = c.kernel.slope

    def parts(rows, columns, product, theta):
        signed = (product + c.kernel.train_bias) * c.y[columns]
        positive = np.maximum(signed, 0)
        negative = np.maximum(-signed, 0)
        return positive.sum(1), negative.sum(1)

    def speed(along, against):
        total = np.maximum(along - slope * against, 0)
        return total / c.count

    positive, negative = row_sums(c.x, c.x, parts)
    return Speeds(
        input_high=speed(positive, negative),
        input_low=speed(negative, positive),
        high=speed(c.positive, c.negative),
        low=speed(c.negative, c.positive),
    )


def has_sign(constants: Constants) -> Bool[np.ndarray, " m"]:
    """Where f_hat is not zero to rounding, (m,): elsewhere no sign is predicted.

    It is zero where opposite labels cancel.
    """
    c = constants
    lengths = c.input_norm.mean() * c.norm
    size = gate_mean_square(c.kernel) * (lengths + c.kernel.train_bias)
    # A sum of n products of length d: a few ulp of its absolute terms each, added in pairs.
    rounding = 32 * np.finfo(float).eps * size
    return np.abs(c.f_hat) > rounding


class LazyMoments(NamedTuple):
    """Bounds on the moments of a neuron's lazy loss X given its readout a, (m,) each.

    E[X | a] <= |a| j1 + a^2 j2 and E[X^2 | a] <= |a| k1 + a^2 k2.
    """

    j1: Float[np.ndarray, " m"]
    j2: Float[np.ndarray, " m"]
    k1: Float[np.ndarray, " m"]
    k2: Float[np.ndarray, " m"]


def _price(c: Constants, speeds: Speeds, columns, factor, theta) -> np.ndarray:
    """p kappa_n m2 on a tile: what it costs that the gate at z may be open when that at x_n flips.

    `factor` is s A_n. kappa_n = [sgn(s A_n) cos(theta)]_+ / (sqrt(2 pi) s_n sin(theta)).
    """
    s_n = c.input_length[columns]
    high = speeds.input_high[columns]
    low = speeds.input_low[columns]
    m2 = (high**2 + low**2) / 2
    p = 1 / (_ROOT_TWO_PI * s_n)
    favour = np.maximum(np.sign(factor) * np.cos(theta), 0)
    favour_over_sine = np.where(favour > 0, favour / np.sin(theta), 0)
    kappa = favour_over_sine / (_ROOT_TWO_PI * s_n)
    return p * kappa * m2


class _Choice(NamedTuple):
    """The coefficients of |a| and a^2 in a bound on a moment of the time a gate has changed."""

    plain: np.ndarray
    square: np.ndarray


def _mean_time(flips, price, slope: float, time: float, readout) -> _Choice:
    """Of E[phi'(u_z) I_n side], the better of two bounds at the typical readout.

    Either |a| mean, or half of the gates at a price in a^2.
    """
    q = 1 - slope
    mean = flips * time**2 / 2
    halved = mean * (1 + slope) / 2
    mean_price = q * price * time**3 / 6
    better = halved + readout * mean_price < mean
    return _Choice(
        plain=np.where(better, halved, mean),
        square=np.where(better, mean_price, 0),
    )


def _mean_square_time(flips, price, slope: float, time: float, readout) -> _Choice:
    """The same of E[phi'(u_z)^2 I_n^2 side], judged and added up root by root."""
    square = flips * time**3 / 3
    halved = square * (1 + slope**2) / 2
    square_price = (1 - slope**2) * price * time**4 / 12
    root_halved = np.sqrt(halved)
    root_price = np.sqrt(readout * square_price)
    better = root_halved + root_price < np.sqrt(square)
    return _Choice(
        plain=np.where(better, halved, square),
        square=np.where(better, square_price, 0),
    )


def lazy_moments(
    constants: Constants,
    speeds: Speeds,
    *,
    width: int,
    time: float,
) -> LazyMoments:
    """Bounds on the moments of a neuron's lazy loss, for the sign of f_hat. Theory: 6.5."""
    c = constants
    slope = c.kernel.slope
    q = 1 - slope
    sign = np.where(c.f_hat < 0, -1.0, 1.0)
    first = (speeds.input_high + speeds.input_low) / 2
    density = 1 / (_ROOT_TWO_PI * c.input_length)
    input_flips = density * first
    # A typical |a|, by which the better of two bounds is chosen.
    readout = np.sqrt(8 / np.pi / width)

    def terms(rows, columns, product, theta):
        labelled = (product + c.kernel.train_bias) * c.y[columns]
        factor = labelled / c.count * sign[rows, None]
        size = np.abs(factor)
        flips = input_flips[columns]
        # Where sin(theta) is 0 the price is infinite, and the plain bound is taken.
        with np.errstate(divide="ignore", invalid="ignore"):
            price = _price(c, speeds, columns, factor, theta)
            mean = _mean_time(flips, price, slope, time, readout)
            square = _mean_square_time(flips, price, slope, time, readout)
        bounds = (
            mean.plain,
            mean.square,
            np.sqrt(square.plain),
            np.sqrt(square.square),
        )
        return tuple((size * bound).sum(1) for bound in bounds)

    mean_1, mean_2, root_1, root_2 = row_sums(c.z, c.x, terms)
    # What the gate at z itself adds.
    density = 1 / (_ROOT_TWO_PI * c.length)
    squares = speeds.high**2 + speeds.low**2
    cubes = speeds.high**3 + speeds.low**3
    own_mean = density * time**2 * squares / 4
    own_square = density * time**3 * cubes / 6
    large = q * (root_1 + np.sqrt(own_square))
    small = q * root_2
    # (sqrt|a| large + |a| small)^2, its mixed term split by Young's inequality.
    trade = width**-0.25
    return LazyMoments(
        j1=q * (mean_1 + own_mean),
        j2=q * mean_2,
        k1=large * (large + trade * small),
        k2=small * (small + large / trade),
    )


@dataclass(frozen=True)
class Tail:
    """The bound (tail) for one training set, width and time, at every query point.

    Made by `derive_tail`.

    Attributes:
        constants: of the training set at the points; the predicted sign is that of its f_hat.
        mean: mean / T, (m,): |f_hat| less `lazy`.
        lazy: (m,), (2 sqrt(2/pi) j1/sqrt(m) + 3 j2/m) / T, the largest bias that moving gates can
            cause.
        variance, scale: v / T^2 and c, (m,).
        width, time, start: "centred", "doubled" or "random" (the initial function stays).
    """

    constants: Constants
    mean: Float[np.ndarray, " m"]
    lazy: Float[np.ndarray, " m"]
    variance: Float[np.ndarray, " m"]
    scale: Float[np.ndarray, " m"]
    width: int
    time: float
    start: str

    @property
    def neurons(self) -> int:
        """The number of i.i.d. summands: the width, or the width / 2 pairs of a doubled network."""
        return independent_neurons(self.width, self.start)

    def _grid(self, centre: np.ndarray) -> np.ndarray:
        """Values of t, (k, m), around r = centre (m,) in t = r / (1 + c r), which is below 1/c."""
        r = _MULTIPLES * centre
        return r / (1 + self.scale * r)

    def _log_moment(self, t: np.ndarray) -> np.ndarray:
        """log of the bound on E exp(-lambda s Y) of a neuron, or a pair, times their number."""
        room = 1 - self.scale * t
        spread = t**2 / 2 * self.variance / room
        moved = spread - t * self.mean
        # Rounding must not leave the logarithm of a negative number.
        moved = np.maximum(moved, -1 + 1e-15)
        return self.neurons * np.log1p(moved)

    def log_failure(self) -> Float[np.ndarray, " m"]:
        """log of the bound on the probability that the network's sign is not the predicted one."""
        mean = np.maximum(self.mean, 0)
        gain = quotient(mean, self.variance, self.variance > 0)
        # Where the bracket is smallest, in closed form (theory: 6.5).
        root = np.sqrt(1 + 2 * self.scale * gain)
        best_rate = 2 * gain / (1 + root)
        t = self._grid(best_rate)
        moment = self._log_moment(t)
        if self.start != "random":
            return np.minimum(moment.min(0), 0)
        # Of each shift w what f0 and the rest may fail to keep: the best w is taken.
        shifts = _SHARES * mean * self.time
        initial = log_initial_tail(self.constants, shifts, width=self.width)
        best = np.zeros(len(self.mean))
        neurons = self.neurons
        for log_initial, w in zip(initial, shifts, strict=True):
            moved = moment + t * neurons * w / self.time
            log_rest = np.minimum(moved.min(0), 0)
            either = np.logaddexp(log_initial, log_rest)
            best = np.minimum(best, either)
        return best

    def constant(self, level: float) -> dict[str, Float[np.ndarray, " m"]]:
        """The parts of C(z), (m,) each, with P(s (f/T - f_hat)(z) <= -C(z)) <= level at each point.

        "initial": of the initial function, at half of the level; "lazy": the bias of moving gates;
        "concentration": fluctuation of kernel and gates.
        """
        share = level / 2 if self.start == "random" else level
        rate = -np.log(share) / self.neurons
        square = quotient(2 * rate, self.variance, self.variance > 0)
        t = self._grid(np.sqrt(square))
        # The largest x with (tail) at most the share. Without variance (t = 0) nothing fluctuates.
        needed = rate + self._log_moment(t) / self.neurons
        per_rate = quotient(needed, t, t > 0)
        reached = -per_rate.min(0)
        x = np.where(self.variance > 0, reached, self.mean)
        parts = {
            "initial": np.zeros_like(x),
            "lazy": self.lazy,
            "concentration": self.mean - x,
        }
        if self.start == "random":
            radius = initial_tail_radius(self.constants, share, width=self.width)
            parts["initial"] = radius / self.time
        return parts


def derive_tail(
    constants: Constants,
    speeds: Speeds,
    *,
    width: int,
    time: float,
    start: str = "centred",
) -> Tail:
    """The bound (tail) at every point of `constants`. Refuses odd widths for start "doubled"."""
    independent_neurons(width, start)
    j1, j2, k1, k2 = lazy_moments(constants, speeds, width=width, time=time)
    root = np.sqrt(width)
    lazy = (2 * _ROOT_TWO_OVER_PI * j1 / root + 3 * j2 / width) / time
    # S_f^2 is the mean of a square whose mean is f_hat; the floor is for its cancellation.
    second_moment = np.maximum(constants.f_second_moment, constants.f_hat**2)
    deviation = np.sqrt(3 * second_moment)
    gate_square = 8 * _ROOT_TWO_OVER_PI * k1 / root + 15 * k2 / width
    gates = np.sqrt(gate_square) / time
    against = np.where(constants.f_hat < 0, speeds.high, speeds.low)
    scale = 7 / 3 * against
    return Tail(
        constants=constants,
        mean=np.abs(constants.f_hat) - lazy,
        lazy=lazy,
        variance=(deviation + gates) ** 2,
        scale=scale,
        width=width,
        time=time,
        start=start,
    )


def _log_initial_moment(constants: Constants, width: int) -> np.ndarray:
    """m log E exp(lambda a phi(u)), lambda = w sqrt(m) / s_z, on the grid of w: exact, (w, 1)."""
    squares = _RATES**2
    above = (1 - squares) ** -0.5
    below = (1 - constants.kernel.slope**2 * squares) ** -0.5
    return width * np.log((above + below) / 2)


class _GivenWeights(NamedTuple):
    """A bound on the deviation of f0 given the weights, (m,), and log of how often it fails."""

    deviation: np.ndarray
    failure: float


def _initial_deviations(constants: Constants, width: int) -> list[_GivenWeights]:
    """Bounds on the deviation of f0 at each point, a list for `_EXPONENTS`. Theory: 4.1."""
    mean = gate_mean_square(constants.kernel)
    fourth = 1 + constants.kernel.slope**4
    bounds = []
    for exponent in _EXPONENTS:
        spread = np.sqrt(3 * fourth * exponent / width)
        variance = mean + spread + 2 * exponent / width
        bounds.append(_GivenWeights(constants.length * np.sqrt(variance), -exponent))
    return bounds


def log_initial_tail(constants: Constants, w: np.ndarray, *, width: int) -> np.ndarray:
    """log of a bound on P(s f0(z) <= -w), (k, m), for w (k, m) >= 0.

    The smaller of Chernoff's with the exact moments and Gaussian ones given the weights.
    """
    moment = _log_initial_moment(constants, width)
    rate = _RATES * np.sqrt(width) / constants.length
    bound = np.stack([np.min(moment - rate * row, axis=0) for row in w])
    given = _initial_deviations(constants, width)
    sizes = [-w / deviation for deviation, _ in given]
    for tail, (_, failure) in zip(log_ndtr(sizes), given, strict=True):
        gaussian = np.logaddexp(tail, failure)
        bound = np.minimum(bound, gaussian)
    return np.minimum(bound, 0)


def initial_tail_radius(
    constants: Constants, level: float, *, width: int
) -> Float[np.ndarray, " m"]:
    """The w with P(s f0(z) <= -w) <= level at each point, (m,)."""
    moment = _log_initial_moment(constants, width)
    rate = _RATES * np.sqrt(width)
    scaled = (moment - np.log(level)) / rate
    radius = scaled.min(0) * constants.length
    for deviation, log_failure in _initial_deviations(constants, width):
        failure = np.exp(log_failure)
        if failure < level:
            quantile = ndtri(level - failure)
            radius = np.minimum(radius, -deviation * quantile)
    return radius
