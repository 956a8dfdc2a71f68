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
    """s_x of each row."""
    return np.sqrt(1 + np.sum(x**2, axis=1) / x.shape[1])


def angles(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """theta(x_n, z_j), (n, m), by Kahan's formula; theory: 0.5."""
    root = math.sqrt(x.shape[1])
    left = np.hstack([x / root, np.ones((len(x), 1))]) / lengths(x)[:, None]
    right = np.hstack([z / root, np.ones((len(z), 1))]) / lengths(z)[:, None]
    apart = np.linalg.norm(left[:, None] - right[None], axis=2)
    together = np.linalg.norm(left[:, None] + right[None], axis=2)
    return 2 * np.arctan2(apart, together)


def gate_moment(slope: float, theta: np.ndarray) -> np.ndarray:
    """Phi; with the slope's square, Q. Theory: 0.1."""
    return (1 + slope**2) / 2 - (1 - slope) ** 2 * theta / (2 * np.pi)


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
        p, q, a, b = (1 + g) / 2, (1 - g) / 2, (1 + g**2) / 2, (1 - g**2) / 2
        square = np.einsum("nm,nk,km->m", self.parts, self.at_inputs.phi, self.parts)
        sign_covariance = 1 - 2 * self.theta / np.pi
        cross = self.parts.sum(0) * np.sum(self.parts * sign_covariance, axis=0)
        return a * square + 2 * b * p * q * cross


def predictor_bound(data: Data, neurons: int, level: float, points: int) -> np.ndarray:
    """B_pred. Theory: 2.2."""
    log = math.log(2 * points / level)
    scale = 2 * data.speed(data.slope) * log / neurons
    return np.sqrt(6 * data.second_moment * log / neurons) + scale


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
    """B_lazy, with weights in [low, 1]. Theory: 3.3, 4.4."""
    h, width, log = 1 - data.slope, run.width, math.log(run.points / run.level)
    reach = run.time * data.speed(low)
    input_reach = run.time * data.at_inputs.speed(low)
    sizes = np.abs(data.factors) * run.time / data.count
    j = reach**2 / (math.sqrt(2 * np.pi) * lengths(data.z))
    j += math.sqrt(2 / np.pi) * (input_reach / lengths(data.x)) @ sizes
    largest = reach + sizes.sum(0)
    twice = 2 if run.doubled else 1
    variance = twice * 2**3.5 / math.sqrt(np.pi) * h**2 * largest * j / width**1.5
    mean = 2 * math.sqrt(2 / np.pi) * h * j / math.sqrt(width)
    return mean + np.sqrt(2 * variance * log) + twice * 2 * h * largest * log / width


def initial_bound(data: Data, run: Run) -> np.ndarray:
    """B_0. Theory: 4.1."""
    first, second = (math.log(k * run.points / run.level) for k in (4, 2))
    fourth = 3 * (1 + data.slope**4)
    square = (1 + data.slope**2) / 2 + math.sqrt(fourth * second / run.width)
    return lengths(data.z) * np.sqrt(2 * first * (square + 2 * second / run.width))


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
    """B_psi, or |psi| for rule "fixed". Theory: 6.3."""
    kappa = given.carrier @ data.z.T + data.bias
    above, below, drawn = (
        gate_moment(data.slope, angles(given.carrier + shift[:, None] * given.u, data.z)) * kappa
        for shift in given.size * np.stack([0 * data.y + 1, 0 * data.y - 1, given.targets])
    )
    if rule == "fixed":
        return np.abs(np.mean(given.targets[:, None] * drawn, axis=0))
    b = (above + below) / 2
    square = np.sum(b**2, axis=0)
    if rule == "balanced":
        square = 2 * np.sum((b - b.mean(0)) ** 2, axis=0)
    radius = np.sqrt(2 * math.log(2 * run.points / run.level) * square) / data.count
    return np.abs(np.mean((above - below) / 2, axis=0)) + radius


def projection(data: Data, r: np.ndarray, vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Summands over n of g_hat: weights_n Phi(r_n, z) <vectors_n, z> / n, (n, m)."""
    phi = gate_moment(data.slope, angles(r, data.z))
    return weights[:, None] * phi * (vectors @ data.z.T) / data.count


def direction(data: Data, beta: np.ndarray | float = 1.0) -> np.ndarray:
    """v_beta(x_n), (n, d). Theory: 2.3, 7."""
    return data.at_inputs.phi @ ((beta * data.y)[:, None] * data.x) / data.count


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


def tail(data: Data, width: int, time: float) -> Tail:
    """The moments j1, j2, k1, k2 point by point, and what follows from them. Source: the theorem of
    `perturbkernel.theory.tails`.
    """
    g, q, root = data.slope, 1 - data.slope, math.sqrt(2 * np.pi)
    inputs, readout = data.at_inputs, math.sqrt(8 / (np.pi * width))
    input_high, input_low, s = inputs.high(g), inputs.low(g), lengths(data.x)
    mean_speed, mean_square = (input_high + input_low) / 2, (input_high**2 + input_low**2) / 2
    columns = []
    for j in range(data.points):
        sign = 1.0 if data.f_hat[j] >= 0 else -1.0
        a, theta = data.parts[:, j], data.theta[:, j]
        toward = np.maximum(np.sign(sign * a) * np.cos(theta), 0)
        sine = np.maximum(np.sin(theta), 1e-300)
        kappa = toward / (sine * s * root)
        density = 1 / (root * s)
        flip = density * mean_speed
        price = density * kappa * mean_square
        one, two = _smaller(
            flip * time**2 / 2,
            flip * time**2 / 2 * (1 + g) / 2,
            q * price * time**3 / 6,
            readout,
        )
        three, four = _smaller(
            np.sqrt(flip * time**3 / 3),
            np.sqrt(flip * time**3 / 3 * (1 + g**2) / 2),
            np.sqrt((1 - g**2) * price * time**4 / 12),
            math.sqrt(readout),
        )
        high, low = data.high(g)[j], data.low(g)[j]
        own = 1 / (root * lengths(data.z)[j])
        size = np.abs(a)
        j1 = q * (size @ one + own * time**2 * (high**2 + low**2) / 4)
        j2 = q * (size @ two)
        large = q * (size @ three + math.sqrt(own * time**3 * (high**3 + low**3) / 6))
        small = q * (size @ four)
        k1 = large**2 + large * small * width**-0.25
        k2 = small**2 + large * small * width**0.25
        lazy = 2 * math.sqrt(2 / np.pi) * j1 / math.sqrt(width) + 3 * j2 / width
        gates = 8 * math.sqrt(2 / np.pi) * k1 / math.sqrt(width) + 15 * k2 / width
        deviation = math.sqrt(3 * data.second_moment[j]) * time + math.sqrt(gates)
        mean = abs(data.f_hat[j]) * time - lazy
        scale = 7 / 3 * (low if sign > 0 else high)
        columns.append((mean / time, lazy / time, (deviation / time) ** 2, scale))
    return Tail(*np.array(columns).T)


def log_moments(one: Tail, t: np.ndarray) -> np.ndarray:
    """log of the bracket of (tail), infinite from t = 1/c on, (len(t), m)."""
    room = 1 - one.scale * t
    safe = np.where(room > 0, room, 1)
    inside = 1 - t * one.mean + t**2 * one.variance / (2 * safe)
    return np.where(room > 0, np.log(np.maximum(inside, 1e-300)), np.inf)


def rates(one: Tail) -> np.ndarray:
    """A fine grid of t over twelve decades, in units of 1 / sqrt(v / T^2)."""
    return np.geomspace(1e-6, 1e6, 8000)[:, None] / np.sqrt(one.variance)


def log_initial_tail(data: Data, w: np.ndarray, width: int) -> np.ndarray:
    """log of the bound on P(s f0 <= -w), w (m,): Chernoff with the exact moments, rates up to .98
    sqrt(m)/s; or Gaussian given the weights, whose variance bound fails with probability e^-8, ..
    """
    g, s = data.slope, lengths(data.z)
    rate = np.geomspace(1e-4, 0.98, 3000)[:, None]
    moment = np.log(0.5 / np.sqrt(1 - rate**2) + 0.5 / np.sqrt(1 - (g * rate) ** 2))
    best = np.min(width * moment - rate * math.sqrt(width) * w / s, axis=0)
    for log in (8.0, 11.0, 14.0, 18.0, 25.0):
        square = (1 + g**2) / 2 + math.sqrt(3 * (1 + g**4) * log / width) + 2 * log / width
        normal = [0.5 * math.erfc(v / math.sqrt(2)) for v in w / (s * math.sqrt(square))]
        best = np.minimum(best, np.log(np.array(normal) + math.exp(-log)))
    return np.minimum(best, 0)


def log_failure(data: Data, one: Tail, width: int, time: float, start: str) -> np.ndarray:
    """log of the bound on the probability of the other sign, (m,)."""
    t = rates(one)
    moments = (width / 2 if start == "doubled" else width) * log_moments(one, t)
    if start != "random":
        return np.minimum(moments.min(0), 0)
    best = np.zeros(data.points)
    for share in (0.0, *np.geomspace(1e-3, 1, 60)):
        w = share * np.maximum(one.mean, 0) * time
        moved = np.minimum(np.min(moments + t * width * w / time, axis=0), 0)
        initial = log_initial_tail(data, w, width)
        best = np.minimum(best, np.logaddexp(initial, moved))
    return best


def concentration(one: Tail, neurons: float, level: float) -> np.ndarray:
    """mean/T - x, x the largest at which (tail) is at most the level, (m,)."""
    t = rates(one)
    return one.mean - np.max((math.log(level) / neurons - log_moments(one, t)) / t, axis=0)


def within_budget(p: np.ndarray, allowed: np.ndarray, budget: float) -> np.ndarray:
    """The surest of the allowed points, one by one while their sum stays within the budget."""
    chosen, spent = np.zeros(len(p), bool), 0.0
    for j in sorted(np.flatnonzero(allowed), key=lambda j: p[j]):
        spent += p[j]
        if spent > budget:
            break
        chosen[j] = True
    return chosen
