"""The constants of sections 2 to 7 and of the one-sided tails, written out a second time.

Whole matrices and plain NumPy in float64, from the formulas alone: nothing is shared with
`perturbkernel.theory`, which is held against this. Bounds are loose by known factors, so that a
wrong constant seldom shows in simulated networks; here it does. For small problems: memory and time
are those of (n, n) and (n, m) matrices.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np


def lengths(x: np.ndarray) -> np.ndarray:
    """s_x = sqrt(1 + |x|^2 / d) of each row, (n,)."""
    return np.sqrt(1 + np.sum(x**2, axis=1) / x.shape[1])


def _lifted(x: np.ndarray) -> np.ndarray:
    """The rows (x / sqrt(d), 1) as unit vectors, (n, d + 1)."""
    scaled = x / math.sqrt(x.shape[1])
    ones = np.ones((len(x), 1))
    return np.hstack([scaled, ones]) / lengths(x)[:, None]


def angles(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """theta(x_n, z_j), (n, m), by Kahan's formula; theory: 0.5."""
    left = _lifted(x)
    right = _lifted(z)
    apart = np.linalg.norm(left[:, None] - right[None], axis=2)
    together = np.linalg.norm(left[:, None] + right[None], axis=2)
    return 2 * np.arctan2(apart, together)


def gate_moment(slope: float, theta: np.ndarray) -> np.ndarray:
    """Phi at the angles theta; with the slope's square, Q. Theory: 0.1."""
    at_zero = (1 + slope**2) / 2
    return at_zero - (1 - slope) ** 2 * theta / (2 * np.pi)


@dataclass(frozen=True)
class Data:
    """A training set (x, y) at queries z, for slope g and bias c (0 or 1)."""

    slope: float
    bias: int
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray

    @property
    def count(self) -> int:
        return len(self.x)

    @property
    def points(self) -> int:
        return len(self.z)

    @cached_property
    def factors(self) -> np.ndarray:
        """k_n(z), (n, m)."""
        return self.x @ self.z.T + self.bias

    @cached_property
    def parts(self) -> np.ndarray:
        """A_n(z) = y_n k_n(z) / n, (n, m)."""
        return self.y[:, None] * self.factors / self.count

    @cached_property
    def theta(self) -> np.ndarray:
        return angles(self.x, self.z)

    @cached_property
    def phi(self) -> np.ndarray:
        return gate_moment(self.slope, self.theta)

    @cached_property
    def f_hat(self) -> np.ndarray:
        return np.sum(self.parts * self.phi, axis=0)

    @cached_property
    def at_inputs(self) -> "Data":
        return Data(self.slope, self.bias, self.x, self.y, self.x)

    def high(self, low: float) -> np.ndarray:
        """The most that sum_n p_n A_n(z) can be over p in [low, 1]^n, or 0 if that is negative."""
        best = np.where(self.parts > 0, self.parts, low * self.parts)
        return np.maximum(best.sum(0), 0)

    def low(self, low: float) -> np.ndarray:
        """The same of its negative."""
        worst = np.where(self.parts < 0, -self.parts, -low * self.parts)
        return np.maximum(worst.sum(0), 0)

    def speed(self, low: float) -> np.ndarray:
        """R_z. Theory: 2.2."""
        return np.maximum(self.high(low), self.low(low))

    @cached_property
    def second_moment(self) -> np.ndarray:
        """S_f^2, with the covariance of three gates written in signs. Theory: 2.2."""
        g = self.slope
        # A gate is p + q sign(u), and its square is a + b sign(u).
        p = (1 + g) / 2
        q = (1 - g) / 2
        a = (1 + g**2) / 2
        b = (1 - g**2) / 2
        square = np.einsum("nm,nk,km->m", self.parts, self.at_inputs.phi, self.parts)
        sign_covariance = 1 - 2 * self.theta / np.pi
        cross = self.parts.sum(0) * np.sum(self.parts * sign_covariance, axis=0)
        return a * square + 2 * b * p * q * cross


def predictor_bound(data: Data, neurons: int, level: float, points: int) -> np.ndarray:
    """B_pred, (m,). Theory: 2.2."""
    log = math.log(2 * points / level)
    gaussian = np.sqrt(6 * data.second_moment * log / neurons)
    exponential = 2 * data.speed(data.slope) * log / neurons
    return gaussian + exponential


class Run(NamedTuple):
    """A network and how long it is trained; `level` is that of each event, at `points` at once."""

    width: int
    time: float
    level: float
    points: int
    doubled: bool = False

    @property
    def neurons(self) -> int:
        """Independent summands. Theory: 4.4."""
        return self.width // 2 if self.doubled else self.width


def lazy_bound(data: Data, run: Run, low: float) -> np.ndarray:
    """B_lazy with weights in [low, 1], (m,). Theory: 3.3, 4.4."""
    h = 1 - data.slope
    width = run.width
    log = math.log(run.points / run.level)
    reach = run.time * data.speed(low)
    input_reach = run.time * data.at_inputs.speed(low)
    sizes = np.abs(data.factors) * run.time / data.count
    # Gates that flip at the query, then those that flip at a training point.
    j = reach**2 / (math.sqrt(2 * np.pi) * lengths(data.z))
    at_inputs = input_reach / lengths(data.x)
    j += math.sqrt(2 / np.pi) * at_inputs @ sizes
    largest = reach + sizes.sum(0)
    twice = 2 if run.doubled else 1
    mean = 2 * math.sqrt(2 / np.pi) * h * j / math.sqrt(width)
    variance = twice * 2**3.5 / math.sqrt(np.pi) * h**2 * largest * j / width**1.5
    spread = np.sqrt(2 * variance * log)
    exponential = twice * 2 * h * largest * log / width
    return mean + spread + exponential


def initial_bound(data: Data, run: Run) -> np.ndarray:
    """B_0, (m,). Theory: 4.1."""
    first = math.log(4 * run.points / run.level)
    second = math.log(2 * run.points / run.level)
    fourth = 3 * (1 + data.slope**4)
    square = (1 + data.slope**2) / 2 + math.sqrt(fourth * second / run.width)
    variance = square + 2 * second / run.width
    return lengths(data.z) * np.sqrt(2 * first * variance)


class Given(NamedTuple):
    """Perturbed points r = carrier + size target u, (n, d), and their labels."""

    carrier: np.ndarray
    u: np.ndarray
    targets: np.ndarray
    size: float

    @property
    def points(self) -> np.ndarray:
        return self.carrier + self.size * self.targets[:, None] * self.u


def label_bound(data: Data, given: Given, rule: str, run: Run) -> np.ndarray:
    """B_psi, or |psi| for rule "fixed", (m,). Theory: 6.3."""
    kappa = given.carrier @ data.z.T + data.bias

    def carried(targets: np.ndarray) -> np.ndarray:
        """Phi kappa at the points perturbed toward these targets, (n, m)."""
        r = given.carrier + (given.size * targets)[:, None] * given.u
        return gate_moment(data.slope, angles(r, data.z)) * kappa

    if rule == "fixed":
        drawn = carried(given.targets)
        return np.abs(np.mean(given.targets[:, None] * drawn, axis=0))
    above = carried(np.ones(data.count))
    below = carried(-np.ones(data.count))
    b = (above + below) / 2
    square = np.sum(b**2, axis=0)
    if rule == "balanced":
        square = 2 * np.sum((b - b.mean(0)) ** 2, axis=0)
    log = math.log(2 * run.points / run.level)
    radius = np.sqrt(2 * log * square) / data.count
    systematic = np.mean((above - below) / 2, axis=0)
    return np.abs(systematic) + radius


def projection(data: Data, r: np.ndarray, vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Summands over n of g_hat: weights_n Phi(r_n, z) <vectors_n, z> / n, (n, m)."""
    phi = gate_moment(data.slope, angles(r, data.z))
    along = vectors @ data.z.T
    return weights[:, None] * phi * along / data.count


def direction(data: Data, beta: np.ndarray | float = 1.0) -> np.ndarray:
    """v_beta(x_n), (n, d). Theory: 2.3, 7."""
    weighted = (beta * data.y)[:, None] * data.x
    return data.at_inputs.phi @ weighted / data.count


class Tail(NamedTuple):
    """What the one-sided tail is made of, (m,) each: mean/T, its lazy part, v/T^2 and c."""

    mean: np.ndarray
    lazy: np.ndarray
    variance: np.ndarray
    scale: np.ndarray


def _smaller(plain, halved, price, readout) -> tuple[np.ndarray, np.ndarray]:
    """(coefficient of |a|, of a^2) of the bound on one moment of the time in the other state that
    is smaller at a typical |a|; root by root, as the second moments are added.
    """
    take = halved + readout * price < plain
    return np.where(take, halved, plain), np.where(take, price, 0)


class _Flips(NamedTuple):
    """At one query: how often the gates at each training point flip, and what that costs, (n,)."""

    flip: np.ndarray
    price: np.ndarray


def _flips(data: Data, j: int) -> _Flips:
    """The gates at the training points, seen from query j."""
    root = math.sqrt(2 * np.pi)
    s = lengths(data.x)
    high = data.at_inputs.high(data.slope)
    low = data.at_inputs.low(data.slope)
    sign = 1.0 if data.f_hat[j] >= 0 else -1.0
    theta = data.theta[:, j]
    toward = np.maximum(np.sign(sign * data.parts[:, j]) * np.cos(theta), 0)
    sine = np.maximum(np.sin(theta), 1e-300)  # no division by zero at the query itself
    kappa = toward / (sine * s * root)
    density = 1 / (root * s)
    mean_speed = (high + low) / 2
    mean_square = (high**2 + low**2) / 2
    return _Flips(density * mean_speed, density * kappa * mean_square)


class _Moments(NamedTuple):
    """The moments of the lazy error at one query."""

    j1: float
    j2: float
    k1: float
    k2: float


def _moments(data: Data, j: int, width: int, time: float) -> _Moments:
    g = data.slope
    q = 1 - g
    readout = math.sqrt(8 / (np.pi * width))
    flip, price = _flips(data, j)
    first = flip * time**2 / 2
    one, two = _smaller(first, first * (1 + g) / 2, q * price * time**3 / 6, readout)
    second = flip * time**3 / 3
    three, four = _smaller(
        np.sqrt(second),
        np.sqrt(second * (1 + g**2) / 2),
        np.sqrt((1 - g**2) * price * time**4 / 12),
        math.sqrt(readout),
    )
    high = data.high(g)[j]
    low = data.low(g)[j]
    density = 1 / (math.sqrt(2 * np.pi) * lengths(data.z)[j])
    own_first = density * time**2 * (high**2 + low**2) / 4
    own_second = math.sqrt(density * time**3 * (high**3 + low**3) / 6)
    size = np.abs(data.parts[:, j])
    j1 = q * (size @ one + own_first)
    j2 = float(q * (size @ two))
    large = q * (size @ three + own_second)
    small = q * (size @ four)
    k1 = large**2 + large * small * width**-0.25
    k2 = small**2 + large * small * width**0.25
    return _Moments(j1, j2, k1, k2)


def tail(data: Data, width: int, time: float) -> Tail:
    """The tail of every query, from the moments j1, j2, k1, k2. Source: the theorem of
    `perturbkernel.theory.tails`.
    """
    root = math.sqrt(width)
    columns = []
    for j in range(data.points):
        moments = _moments(data, j, width, time)
        lazy = 2 * math.sqrt(2 / np.pi) * moments.j1 / root + 3 * moments.j2 / width
        gates = 8 * math.sqrt(2 / np.pi) * moments.k1 / root + 15 * moments.k2 / width
        deviation = math.sqrt(3 * data.second_moment[j]) * time + math.sqrt(gates)
        mean = abs(data.f_hat[j]) * time - lazy
        against = data.low(data.slope) if data.f_hat[j] >= 0 else data.high(data.slope)
        scale = 7 / 3 * against[j]
        columns.append((mean / time, lazy / time, (deviation / time) ** 2, scale))
    return Tail(*np.array(columns).T)


def log_moments(one: Tail, t: np.ndarray) -> np.ndarray:
    """log of the bracket of (tail), infinite from t = 1/c on, (len(t), m)."""
    room = 1 - one.scale * t
    safe = np.where(room > 0, room, 1)
    bracket = 1 - t * one.mean + t**2 * one.variance / (2 * safe)
    finite = np.log(np.maximum(bracket, 1e-300))
    return np.where(room > 0, finite, np.inf)


def rates(one: Tail) -> np.ndarray:
    """A fine grid of t over twelve decades, in units of 1 / sqrt(v / T^2)."""
    return np.geomspace(1e-6, 1e6, 8000)[:, None] / np.sqrt(one.variance)


def log_initial_tail(data: Data, w: np.ndarray, width: int) -> np.ndarray:
    """log of the bound on P(s f0 <= -w), (m,), for w (m,).

    The better of two: Chernoff with the exact moments, at rates up to 0.98 sqrt(width) / s; or
    Gaussian given the weights, whose variance bound fails with probability e^-8, ..., e^-25.
    """
    g = data.slope
    s = lengths(data.z)
    rate = np.geomspace(1e-4, 0.98, 3000)[:, None]
    active = 0.5 / np.sqrt(1 - rate**2)
    inactive = 0.5 / np.sqrt(1 - (g * rate) ** 2)
    exponent = rate * math.sqrt(width) * w / s
    best = np.min(width * np.log(active + inactive) - exponent, axis=0)
    for log in (8.0, 11.0, 14.0, 18.0, 25.0):
        square = (1 + g**2) / 2 + math.sqrt(3 * (1 + g**4) * log / width) + 2 * log / width
        standard = w / (s * math.sqrt(square))
        normal = np.array([0.5 * math.erfc(v / math.sqrt(2)) for v in standard])
        best = np.minimum(best, np.log(normal + math.exp(-log)))
    return np.minimum(best, 0)


def log_failure(data: Data, one: Tail, width: int, time: float, start: str) -> np.ndarray:
    """log of the bound on the probability of the other sign, (m,)."""
    t = rates(one)
    neurons = width / 2 if start == "doubled" else width
    moments = neurons * log_moments(one, t)
    if start != "random":
        return np.minimum(moments.min(0), 0)
    best = np.zeros(data.points)
    for share in (0.0, *np.geomspace(1e-3, 1, 60)):
        w = share * np.maximum(one.mean, 0) * time
        shifted = moments + t * width * w / time
        moved = np.minimum(np.min(shifted, axis=0), 0)
        initial = log_initial_tail(data, w, width)
        best = np.minimum(best, np.logaddexp(initial, moved))
    return best


def concentration(one: Tail, neurons: float, level: float) -> np.ndarray:
    """mean/T - x, x the largest at which (tail) is at most the level, (m,)."""
    t = rates(one)
    reached = (math.log(level) / neurons - log_moments(one, t)) / t
    return one.mean - np.max(reached, axis=0)


def within_budget(p: np.ndarray, allowed: np.ndarray, budget: float) -> np.ndarray:
    """The surest of the allowed points, one by one while their sum stays within the budget."""
    chosen = np.zeros(len(p), bool)
    spent = 0.0
    for j in sorted(np.flatnonzero(allowed), key=lambda j: p[j]):
        spent += p[j]
        if spent > budget:
            break
        chosen[j] = True
    return chosen
