"""Finite networks in plain NumPy, and the protocol for statements that hold with probability 1 -
delta.
"""

from dataclasses import dataclass

import numpy as np
import oracle
from scipy.stats import binom

from perturbkernel.kernels.two_layer import TwoLayerNTK

DELTA = 0.1


@dataclass
class Problem:
    kernel: TwoLayerNTK
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray

    @property
    def data(self) -> tuple[TwoLayerNTK, np.ndarray, np.ndarray, np.ndarray]:
        return self.kernel, self.x, self.y, self.z

    @property
    def factor(self) -> np.ndarray:
        """k_n(z), (n, m)."""
        return self.x @ self.z.T + self.kernel.train_bias


def problem(slope=0.2, train_bias=False, n=12, m=7, d=6, shift=1.0, seed=0) -> Problem:
    """Two shifted Gaussians; the first three query points are training points."""
    rng = np.random.default_rng(seed)
    y = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    mean = shift * np.ones(d) / np.sqrt(d)
    x = y[:, None] * mean + rng.normal(size=(n, d))
    z = np.where(np.arange(m) % 2 == 0, 1.0, -1.0)[:, None] * mean + rng.normal(size=(m, d))
    z[: min(3, m)] = x[: min(3, m)]
    return Problem(TwoLayerNTK(slope, train_bias), x, y, z)


def unit_gradients(p: Problem) -> np.ndarray:
    """The directions of the limit's perturbations at the training inputs, (n, d)."""
    u = oracle.input_gradient(p.x, p.x, p.y / len(p.x), p.kernel.slope, p.kernel.train_bias)
    return u / np.linalg.norm(u, axis=1, keepdims=True)


def draw(rng, width, d, total=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W (width, d), b, a of one initialisation; `total` is the network's width if these are some of
    its neurons.
    """
    return (
        rng.normal(size=(width, d)) / np.sqrt(d),
        rng.normal(size=width),
        rng.normal(size=width) / np.sqrt(total or width),
    )


def act(u, slope):
    return np.where(u > 0, u, slope * u)


def gate(u, slope):
    return np.where(u > 0, 1.0, slope)


def outputs(network, z, slope):
    w, b, a = network
    return act(z @ w.T + b, slope) @ a


def gradients(network, z, slope):
    w, b, a = network
    return (gate(z @ w.T + b, slope) * a) @ w


@dataclass
class Trained:
    network: tuple[np.ndarray, np.ndarray, np.ndarray]
    time: float
    flipped: np.ndarray  # (width, points): the gate differed from its first value at a visited step
    moved: np.ndarray  # (width, points): largest |u_i(z; t) - u_i(z; 0)|
    history: np.ndarray  # (steps, n), outputs at x before each step


def train(
    network, x, y, kernel, *, rate, steps, momentum=0.9, loss="identity", watch=None
) -> Trained:
    """Heavy ball on W (and b if trained), readout frozen, one step after another."""
    w, b, a = network
    slope, n = kernel.slope, len(x)
    watch = x if watch is None else watch
    start = w @ watch.T + b[:, None]
    flipped, moved = np.zeros(start.shape, bool), np.zeros(start.shape)
    vw, vb, unit, time, history = np.zeros_like(w), np.zeros_like(b), 0.0, 0.0, []
    for _ in range(steps):
        u = w @ x.T + b[:, None]
        f = a @ act(u, slope)
        history.append(f)
        pull = np.ones(n) if loss == "identity" else 1 / (1 + np.exp(y * f))
        slopes = a[:, None] * gate(u, slope) * (y * pull / n)
        vw, vb = momentum * vw + slopes @ x, momentum * vb + slopes.sum(1)
        unit = momentum * unit + 1
        w, b, time = w + rate * vw, b + kernel.train_bias * rate * vb, time + rate * unit
        now = w @ watch.T + b[:, None]
        flipped |= (now > 0) != (start > 0)
        moved = np.maximum(moved, np.abs(now - start))
    return Trained((w, b, a), time, flipped, moved, np.array(history))


def check_protocol(ratios, delta=DELTA, low=None, high=None):
    """`ratios`: for every draw the largest observed / bound over all points the statement covers at
    once.

    Violations must be compatible with probability delta, and the median in [low, high]: the bounds
    are loose by known factors, and a median outside says that a constant is wrong."""
    ratios = np.asarray(ratios)
    assert np.isfinite(ratios).all()
    violations = int(np.sum(ratios > 1))
    assert binom.sf(violations - 1, len(ratios), delta) >= 1e-4, (
        f"{violations} violations in {len(ratios)} draws"
    )
    median = np.median(ratios)
    assert low is None or low <= median <= high, f"median ratio {median:.4g} not in [{low}, {high}]"


def check_surely(ratios):
    assert np.nanmax(ratios) <= 1 + 1e-9, f"largest ratio {np.nanmax(ratios):.6g}"
