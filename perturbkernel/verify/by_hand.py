"""The constants of sections 2 to 7, written out a second time; `tails_by_hand` has the tails.

Whole matrices and plain NumPy in float64, from the formulas alone: nothing is shared with
`perturbkernel.theory`, which is held against this. Bounds are loose by known factors, so that a
wrong constant seldom shows in simulated networks; here it does. For small problems: memory and time
are those of (n, n) and (n, m) matrices.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

ROOT_TWO_PI = math.sqrt(2 * np.pi)
# The mean of |a| for a standard normal a.
MEAN_SIZE = math.sqrt(2 / np.pi)


def lengths(x: np.ndarray) -> np.ndarray:
    """s_x = sqrt(1 + |x|^2 / d) of each row, (n,)."""
    d = x.shape[1]
    squares = np.sum(x**2, axis=1)
    return np.sqrt(1 + squares / d)


def _lifted(x: np.ndarray) -> np.ndarray:
    """The rows (x / sqrt(d), 1) as unit vectors, (n, d + 1)."""
    n, d = x.shape
    scaled = x / math.sqrt(d)
    ones = np.ones((n, 1))
    lifted = np.hstack([scaled, ones])
    length = lengths(x)
    return lifted / length[:, None]


def angles(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """theta(x_n, z_j), (n, m), by Kahan's formula; theory: 0.5."""
    left = _lifted(x)[:, None]
    right = _lifted(z)[None]
    apart = np.linalg.norm(left - right, axis=2)
    together = np.linalg.norm(left + right, axis=2)
    return 2 * np.arctan2(apart, together)


def gate_moment(slope: float, theta: np.ndarray) -> np.ndarray:
    """Phi at the angles theta; with the slope's square, Q. Theory: 0.1."""
    at_zero = (1 + slope**2) / 2
    lost = (1 - slope) ** 2 * theta
    return at_zero - lost / (2 * np.pi)


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
        signed = self.y[:, None] * self.factors
        return signed / self.count

    @cached_property
    def theta(self) -> np.ndarray:
        return angles(self.x, self.z)

    @cached_property
    def phi(self) -> np.ndarray:
        return gate_moment(self.slope, self.theta)

    @cached_property
    def f_hat(self) -> np.ndarray:
        terms = self.parts * self.phi
        return np.sum(terms, axis=0)

    @cached_property
    def at_inputs(self) -> "Data":
        return replace(self, z=self.x)

    def high(self, low: float) -> np.ndarray:
        """The most that sum_n p_n A_n(z) can be over p in [low, 1]^n, or 0 if that is negative."""
        parts = self.parts
        best = np.where(parts > 0, parts, low * parts)
        return np.maximum(best.sum(0), 0)

    def low(self, low: float) -> np.ndarray:
        """The same of its negative."""
        parts = self.parts
        worst = np.where(parts < 0, -parts, -low * parts)
        return np.maximum(worst.sum(0), 0)

    def speed(self, low: float) -> np.ndarray:
        """R_z. Theory: 2.2."""
        upward = self.high(low)
        downward = self.low(low)
        return np.maximum(upward, downward)

    @cached_property
    def second_moment(self) -> np.ndarray:
        """S_f^2, with the covariance of three gates written in signs. Theory: 2.2."""
        g = self.slope
        # A gate is p + q sign(u), and its square is a + b sign(u).
        p = (1 + g) / 2
        q = (1 - g) / 2
        a = (1 + g**2) / 2
        b = (1 - g**2) / 2
        parts = self.parts
        square = np.einsum("nm,nk,km->m", parts, self.at_inputs.phi, parts)
        sign_covariance = 1 - 2 * self.theta / np.pi
        covariance = np.sum(parts * sign_covariance, axis=0)
        cross = parts.sum(0) * covariance
        third = 2 * b * p * q
        return a * square + third * cross


def predictor_bound(data: Data, neurons: int, level: float, points: int) -> np.ndarray:
    """B_pred, (m,). Theory: 2.2."""
    log = math.log(2 * points / level)
    variance = 6 * data.second_moment * log / neurons
    gaussian = np.sqrt(variance)
    speed = data.speed(data.slope)
    exponential = 2 * speed * log / neurons
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
        if self.doubled:
            return self.width // 2
        return self.width


def lazy_bound(data: Data, run: Run, low: float) -> np.ndarray:
    """B_lazy with weights in [low, 1], (m,). Theory: 3.3, 4.4."""
    h = 1 - data.slope
    width = run.width
    log = math.log(run.points / run.level)
    reach = run.time * data.speed(low)
    input_reach = run.time * data.at_inputs.speed(low)
    sizes = np.abs(data.factors) * run.time / data.count
    # Gates that flip at the query, then those that flip at a training point.
    own = reach**2 / (ROOT_TWO_PI * lengths(data.z))
    at_inputs = input_reach / lengths(data.x)
    others = MEAN_SIZE * at_inputs @ sizes
    j = own + others
    largest = reach + sizes.sum(0)
    twice = 2 if run.doubled else 1
    mean = 2 * MEAN_SIZE * h * j / math.sqrt(width)
    constant = twice * 2**3.5 / math.sqrt(np.pi)
    variance = constant * h**2 * largest * j / width**1.5
    spread = np.sqrt(2 * variance * log)
    exponential = twice * 2 * h * largest * log / width
    return mean + spread + exponential


def initial_bound(data: Data, run: Run) -> np.ndarray:
    """B_0, (m,). Theory: 4.1."""
    first = math.log(4 * run.points / run.level)
    second = math.log(2 * run.points / run.level)
    square = square_bound(data.slope, second, run.width)
    deviation = np.sqrt(2 * first * square)
    return lengths(data.z) * deviation


def square_bound(slope: float, log: float, width: int) -> float:
    """What the mean square of the initial gates stays below, but for a chance e^-log."""
    mean = (1 + slope**2) / 2
    fourth = 3 * (1 + slope**4)
    deviation = math.sqrt(fourth * log / width)
    return mean + deviation + 2 * log / width


class Given(NamedTuple):
    """Perturbed points r = carrier + size target u, (n, d), and their labels."""

    carrier: np.ndarray
    u: np.ndarray
    targets: np.ndarray
    size: float

    @property
    def points(self) -> np.ndarray:
        steps = self.size * self.targets[:, None]
        return self.carrier + steps * self.u

    def toward(self, targets: np.ndarray) -> np.ndarray:
        """The points perturbed toward these targets, (n, d)."""
        steps = self.size * targets
        return self.carrier + steps[:, None] * self.u


def label_bound(data: Data, given: Given, rule: str, run: Run) -> np.ndarray:
    """B_psi, or |psi| for rule "fixed", (m,). Theory: 6.3."""
    kappa = given.carrier @ data.z.T + data.bias

    def carried(targets: np.ndarray) -> np.ndarray:
        """Phi kappa at the points perturbed toward these targets, (n, m)."""
        theta = angles(given.toward(targets), data.z)
        return gate_moment(data.slope, theta) * kappa

    if rule == "fixed":
        drawn = given.targets[:, None] * carried(given.targets)
        return np.abs(np.mean(drawn, axis=0))
    above = carried(np.ones(data.count))
    below = carried(-np.ones(data.count))
    b = (above + below) / 2
    if rule == "balanced":
        deviations = b - b.mean(0)
        square = 2 * np.sum(deviations**2, axis=0)
    else:
        square = np.sum(b**2, axis=0)
    log = math.log(2 * run.points / run.level)
    radius = np.sqrt(2 * log * square) / data.count
    odd = (above - below) / 2
    systematic = np.mean(odd, axis=0)
    return np.abs(systematic) + radius


def projection(data: Data, r: np.ndarray, vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Summands over n of g_hat: weights_n Phi(r_n, z) <vectors_n, z> / n, (n, m)."""
    theta = angles(r, data.z)
    phi = gate_moment(data.slope, theta)
    along = vectors @ data.z.T
    summands = weights[:, None] * phi * along
    return summands / data.count


def direction(data: Data, beta: np.ndarray | float = 1.0) -> np.ndarray:
    """v_beta(x_n), (n, d). Theory: 2.3, 7."""
    weights = beta * data.y
    weighted = weights[:, None] * data.x
    return data.at_inputs.phi @ weighted / data.count
