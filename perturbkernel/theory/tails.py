"""The probability that a finite network has the wrong sign at a point: the sharpest a priori bound,
in closed form.

Theorem. Identity loss, gradient flow or heavy ball to (effective) time T, f - f0 = sum over m
i.i.d. neurons. Let s be a predicted sign, mu = s f_hat(z) > 0, g the slope, q = 1 - g, A_n(z) = y_n
k_n(z) / N, P and M the sums of its positive and negative parts, hi(z) = [P - g M]_+, lo(z) = [M - g
P]_+ (the pre-activation at z moves by at most |a| T hi toward the sign of a, |a| T lo away from
it), p = 1 / (sqrt(2 pi) s_x) the largest density of a pre-activation. For every real x and every 0
< t < 1/c,

    P(s (f - f0)(z; T) <= T x) <= exp(m log[1 - t mean/T + (t^2/2) (v/T^2) / (1 - c t)] + t m x),
    (tail)

    mean = T mu - 2 sqrt(2/pi) j1/sqrt(m) - 3 j2/m,   v = (sqrt(3) S_f T + sqrt(8 sqrt(2/pi)
    k1/sqrt(m) + 15 k2/m))^2,

c = (7/3) lo(z) for s = +1, (7/3) hi(z) for s = -1. j1, j2, k1, k2 bound the moments of a neuron's lazy loss X given
|a|: E[X | a] <= |a| j1 + a^2 j2, E[X^2 | a] <= |a| k1 + a^2 k2.

Proof. (1) A gate of a training point can only change one way, by q for the time I_n that it has
changed, and a neuron's contribution per a^2 is T phi'(u_z) g_0(z) + phi'(u_z) sum_n A_n J_n + r,
J_n = +-q I_n, with r the convexity remainder of phi. Against the predicted sign count only the
gates with +-s A_n < 0, so s (contribution)/a^2 >= s T V - X, V the frozen velocity, X = q (sum_n
|A_n| phi'(u_z) I_n [side] + remainder [sgn a = -s]). (2) With S the speed of u(x_n) toward zero,
I_n <= (T - |u_n| / (|a| S))_+, for heavy ball by sum_(r<s) omega_(k,r) >= tau_s. S is hi(x_n) or
lo(x_n) according to the sign of a, which is independent of the rest: E S = m1 = (hi + lo)/2, E S^2
= m2. Integrating over the density p: E[I_n side] <= |a| p m1 T^2/2 and E[I_n^2 side] <= |a| p m1
T^3/3; with the factor phi'(u_z), P(u_z > 0 | u_n = v) <= 1/2 + kappa |v|, kappa = [sgn(s A_n)
rho]_+ / (sqrt(1 - rho^2) s_n sqrt(2 pi)), halves the first at the price of a term in a^2:

    E[phi' I_n side] <= |a| p m1 T^2/2 (1 + g)/2 + a^2 q p kappa m2 T^3/6,
    E[phi'^2 I_n^2 side] <= |a| p m1 T^3/3 (1 + g^2)/2 + a^2 (1 - g^2) p kappa m2 T^4/12.

Of the two bounds on each moment the one is taken for each n that is smaller at |a| = sqrt(8 / (pi
m)). The remainder adds p T^2 (hi^2 + lo^2)/4 to the first moment (over q |a|) and p T^3 (hi^3 +
lo^3)/6 to the second, p, hi and lo at z. Minkowski adds the roots of the second moments: E[X^2 |
a] <= (sqrt|a| L + |a| S)^2 <= |a| L (L + S m^(-1/4)) + a^2 S (S + L m^(1/4)). (3) phi is monotone, so
the contribution is at least -a^2 T times the worst speed: H = max(s T V - X, -T c 3/7) has E a^2 H
>= mean/m, H^2 <= (s T V - X)^2. Expand e^(-lambda a^2 H), lambda = t m / T, with e^-x <= 1 - x +
x^2/2 + sum_(r>=3) (x_-)^r/r!, E a^(2r) <= 3 (r!/2) 2^(r-2)/m^r, E |a|^(2r+1) = 8 sqrt(2/pi) (r!/2)
2^(r-2)/m^(r+1/2), E a^(2r+2) <= 15 (r!/2) (7/3)^(r-2)/m^(r+1): a geometric series of ratio c t.
Take the m-th power; Markov. QED

The number t has the units of 1/f_hat. With t = r / (1 + c r) and r over all positive numbers the
bracket is smallest at r = 2 mu' / (v' (1 + sqrt(1 + 2 c mu' / v'))), mu' = mean/T, v' = v/T^2.

Doubled networks have f0 = 0 and m/2 i.i.d. pairs, whose two neurons share a^2 and V. With P = m/2
a pair has E a^2 H >= mean/P, root of E a^4 H^2 <= sqrt(v)/P and twice the worst speed, so that
lambda = t P / T gives (tail) with the power P and the factor P of x; j1 .. k2 and the 1/sqrt(m) of
mean and v keep the width m, which is the variance of a. With the initial function left in,
P(s f <= 0) <= P(s f0 <= -w) + (tail with x = w/T) for every w.

Beside theory 3.3 and 2.2, whose sum it replaces: one event instead of two, one sign instead of
both, half of the gates, and a leading lazy term about nine times smaller at slope 0.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.scipy.special as special
import numpy as np
from jaxtyping import Bool, Float

from perturbkernel.theory.arguments import double, gate_mean_square
from perturbkernel.theory.concentration import independent_neurons
from perturbkernel.theory.constants import Constants
from perturbkernel.theory.pairs import row_sums

#: Of the rate that is best for the leading terms: every bound is the best over these multiples of
#: it. They are relative to each point's own rate, so that no unit enters; 1 is one of them.
_MULTIPLES = np.geomspace(1e-2, 1e3, 401)[:, None]


@dataclass(frozen=True)
class Speeds:
    """hi and lo of a training set, at its own inputs (n,) and at the query points (m,)."""

    input_high: Float[np.ndarray, " n"]
    input_low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " m"]
    low: Float[np.ndarray, " m"]


def derive_speeds(constants: Constants) -> Speeds:
    """hi(z) = [P - slope M]_+, lo(z) = [M - slope P]_+, P and M the means of the parts of y_n k_n:
    one n x n pass.
    """
    c, slope = constants, constants.kernel.slope

    def parts(rows, columns, product, theta):
        signed = (product + c.kernel.train_bias) * c.y[columns]
        return np.maximum(signed, 0).sum(1), np.maximum(-signed, 0).sum(1)

    def speed(along, against):
        return np.maximum(along - slope * against, 0) / c.count

    positive, negative = row_sums(c.x, c.x, parts)
    return Speeds(
        input_high=speed(positive, negative),
        input_low=speed(negative, positive),
        high=speed(c.positive, c.negative),
        low=speed(c.negative, c.positive),
    )


def has_sign(constants: Constants) -> Bool[np.ndarray, " m"]:
    """(m,), where f_hat is not zero to rounding: elsewhere no sign is predicted. It is zero where
    opposite labels cancel.
    """
    c = constants
    size = c.input_norm.mean() * c.norm + c.kernel.train_bias
    # A sum of n products of length d: a few ulp of its absolute terms each, added in pairs.
    rounding = 32 * np.finfo(float).eps * gate_mean_square(c.kernel) * size
    return np.abs(c.f_hat) > rounding


class LazyMoments(NamedTuple):
    """j1, j2, k1, k2, (m,) each: E[X | a] <= |a| j1 + a^2 j2, E[X^2 | a] <= |a| k1 + a^2 k2."""

    j1: Float[np.ndarray, " m"]
    j2: Float[np.ndarray, " m"]
    k1: Float[np.ndarray, " m"]
    k2: Float[np.ndarray, " m"]


def lazy_moments(constants: Constants, speeds: Speeds, *, width: int, time: float) -> LazyMoments:
    """Bounds on the moments of a neuron's lazy loss X, (m,) each, for the predicted sign sgn
    f_hat(z). The module docstring has the derivation.
    """
    c, slope = constants, constants.kernel.slope
    q, root = 1 - slope, np.sqrt(2 * np.pi)
    sign = np.where(c.f_hat < 0, -1.0, 1.0)
    density = 1 / (root * c.input_length)
    first = (speeds.input_high + speeds.input_low) / 2
    second = (speeds.input_high**2 + speeds.input_low**2) / 2
    # A typical |a|, by which the better of two bounds is chosen.
    readout = np.sqrt(8 / np.pi / width)

    def terms(rows, columns, product, theta):
        factor = (product + c.kernel.train_bias) * c.y[columns] / c.count * sign[rows, None]
        favour = np.maximum(np.sign(factor) * np.cos(theta), 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            tangent = np.where(favour > 0, favour / np.sin(theta), 0)
            price = density[columns] * second[columns] * tangent / (c.input_length[columns] * root)
            flips = density[columns] * first[columns]
            mean, mean_price = flips * time**2 / 2, q * price * time**3 / 6
            halved = mean * (1 + slope) / 2
            better = halved + readout * mean_price < mean
            mean_1 = np.where(better, halved, mean)
            mean_2 = np.where(better, mean_price, 0)
            square, square_price = flips * time**3 / 3, (1 - slope**2) * price * time**4 / 12
            halved = square * (1 + slope**2) / 2
            better = np.sqrt(halved) + np.sqrt(readout * square_price) < np.sqrt(square)
            root_1 = np.sqrt(np.where(better, halved, square))
            root_2 = np.sqrt(np.where(better, square_price, 0))
        size = np.abs(factor)
        return tuple((size * term).sum(1) for term in (mean_1, mean_2, root_1, root_2))

    mean_1, mean_2, root_1, root_2 = row_sums(c.z, c.x, terms)
    p, high, low = 1 / (root * c.length), speeds.high, speeds.low
    own_mean = p * time**2 * (high**2 + low**2) / 4
    own_square = p * time**3 * (high**3 + low**3) / 6
    large, small = q * (root_1 + np.sqrt(own_square)), q * root_2
    trade = width**-0.25
    return LazyMoments(
        j1=q * (mean_1 + own_mean),
        j2=q * mean_2,
        k1=large * (large + trade * small),
        k2=small * (small + large / trade),
    )


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, 0 where the denominator is 0."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.zeros(shape), where=denominator > 0)


@dataclass(frozen=True)
class Tail:
    """The bound (tail) for one training set, width and time, at every query point. Made by
    `derive_tail`.

    Attributes:
        constants: of the training set at the points; the predicted sign is that of its f_hat.
        mean: mean / T, (m,): f_hat of the predicted sign less `lazy`, the largest bias that moving
            gates can cause.
        lazy: (m,), (2 sqrt(2/pi) j1/sqrt(m) + 3 j2/m) / T.
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
        return independent_neurons(self.width, self.start == "doubled")

    def _grid(self, centre: np.ndarray) -> np.ndarray:
        """Values of t, (k, m), around r = centre (m,) in t = r / (1 + c r), which is below 1/c."""
        rate = _MULTIPLES * centre
        return rate / (1 + self.scale * rate)

    def _log_moment(self, t: np.ndarray) -> np.ndarray:
        """log of the bound on E exp(-lambda s Y) of a neuron (a pair) times their number, (k, m)."""
        moved = -t * self.mean + t**2 / 2 * self.variance / (1 - self.scale * t)
        return self.neurons * np.log1p(np.maximum(moved, -1 + 1e-15))

    def log_failure(self) -> Float[np.ndarray, " m"]:
        """log of the bound on the probability that the network has not the predicted sign at each
        point, (m,).
        """
        gain = _divide(np.maximum(self.mean, 0), self.variance)
        t = self._grid(2 * gain / (1 + np.sqrt(1 + 2 * self.scale * gain)))
        moment = self._log_moment(t)
        if self.start != "random":
            return np.minimum(moment.min(0), 0)
        shares = np.concatenate([[0.0], np.geomspace(1e-3, 1, 60)])[:, None]
        shifts = shares * np.maximum(self.mean, 0) * self.time
        initial = log_initial_tail(self.constants, shifts, width=self.width)
        best = np.zeros(len(self.mean))
        for start, shift in zip(initial, shifts, strict=True):
            rest = (moment + t * self.neurons * shift / self.time).min(0)
            best = np.minimum(best, np.logaddexp(start, np.minimum(rest, 0)))
        return best

    def constant(self, level: float) -> dict[str, Float[np.ndarray, " m"]]:
        """The parts of C(z), (m,) each: P(s (f/T - f_hat)(z) <= -(sum of the parts)) <= level at
        each point.

        "initial": of the initial function, at half of the level; "lazy": the bias of moving gates;
        "concentration": fluctuation of kernel and gates.
        """
        share = level / 2 if self.start == "random" else level
        rate = -np.log(share) / self.neurons
        t = self._grid(np.sqrt(_divide(np.asarray(2 * rate), self.variance)))
        # The largest x with (tail) at most the share. Without variance (t = 0) nothing fluctuates.
        needed = rate + self._log_moment(t) / self.neurons
        x = np.where(self.variance > 0, -_divide(needed, t).min(0), self.mean)
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
    constants: Constants, speeds: Speeds, *, width: int, time: float, start: str = "centred"
) -> Tail:
    """The bound (tail) at every point of `constants`. An odd width is refused for start "doubled"."""
    independent_neurons(width, start == "doubled")
    j1, j2, k1, k2 = lazy_moments(constants, speeds, width=width, time=time)
    lazy = (2 * np.sqrt(2 / np.pi) * j1 / np.sqrt(width) + 3 * j2 / width) / time
    # S_f^2 is the mean of a square whose mean is f_hat; the floor is for its cancellation.
    second_moment = np.maximum(constants.f_second_moment, constants.f_hat**2)
    deviation = np.sqrt(3 * second_moment)
    gates = np.sqrt(8 * np.sqrt(2 / np.pi) * k1 / np.sqrt(width) + 15 * k2 / width) / time
    scale = 7 / 3 * np.where(constants.f_hat < 0, speeds.high, speeds.low)
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


#: Rates of the initial function's tail, in units of sqrt(m) / s_z; its moments end at 1.
_RATES = np.geomspace(1e-4, 0.98, 300)[:, None]
#: Log probabilities to pay for a variance bound given the weights.
_EXPONENTS = (8.0, 11.0, 14.0, 18.0, 25.0)


def _log_moment(constants: Constants, width: int) -> np.ndarray:
    """m log E exp(lambda a phi(u)) with lambda = w sqrt(m) / s_z, on the grid of w: exact. (w, 1)."""
    squares = _RATES**2
    terms = (1 - squares) ** -0.5 + (1 - constants.kernel.slope**2 * squares) ** -0.5
    return width * np.log(terms / 2)


def _initial_deviations(constants: Constants, width: int) -> list[tuple[np.ndarray, float]]:
    """(standard deviation bound of f0 given the weights, log probability that it fails), theory
    4.1, one point.
    """
    mean, fourth = gate_mean_square(constants.kernel), 1 + constants.kernel.slope**4
    pairs = []
    for exponent in _EXPONENTS:
        variance = mean + np.sqrt(3 * fourth * exponent / width) + 2 * exponent / width
        pairs.append((constants.length * np.sqrt(variance), -exponent))
    return pairs


def log_initial_tail(constants: Constants, w: np.ndarray, *, width: int) -> np.ndarray:
    """log of a bound on P(s f0(z) <= -w), for w (k, m) >= 0: exact Chernoff, or Gaussian given the
    weights.
    """
    moment = _log_moment(constants, width)
    rate = _RATES * np.sqrt(width)
    bound = np.stack([(moment - rate * row / constants.length).min(0) for row in w])
    for deviation, failure in _initial_deviations(constants, width):
        bound = np.minimum(bound, np.logaddexp(double(special.log_ndtr, -w / deviation), failure))
    return np.minimum(bound, 0)


def initial_tail_radius(
    constants: Constants, level: float, *, width: int
) -> Float[np.ndarray, " m"]:
    """w with P(s f0(z) <= -w) <= level at each point, (m,)."""
    moment = _log_moment(constants, width)
    radius = ((moment - np.log(level)) / (_RATES * np.sqrt(width))).min(0) * constants.length
    for deviation, failure in _initial_deviations(constants, width):
        if np.exp(failure) < level:
            radius = np.minimum(radius, -deviation * double(special.ndtri, level - np.exp(failure)))
    return radius
