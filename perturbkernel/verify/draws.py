"""What checks draw: data, finite networks as plain arrays, and their training in float64 NumPy."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from perturbkernel import theory
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.training.dynamics import HeavyBall
from perturbkernel.verify.protocol import Setting


@dataclass(frozen=True)
class Problem:
    """A kernel, training data (x, y) and queries z, the first of which are training points."""

    kernel: TwoLayerNTK
    x: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    z: np.ndarray = field(repr=False)

    @property
    def data(self) -> tuple[TwoLayerNTK, np.ndarray, np.ndarray, np.ndarray]:
        return self.kernel, self.x, self.y, self.z

    @cached_property
    def constants(self) -> theory.Constants:
        return theory.derive_constants(*self.data)

    @property
    def factor(self) -> np.ndarray:
        """k_n(z) = <x_n, z> + c, (n, m)."""
        return self.x @ self.z.T + self.kernel.train_bias


def problem(rng: np.random.Generator, s: Setting) -> Problem:
    """Two Gaussian classes of equal size with means +-shift in every coordinate; a quarter of the
    queries are training points.
    """

    def labels(count):
        return np.where(np.arange(count) % 2 == 0, 1.0, -1.0)

    y = labels(s.n)
    x = s.shift * y[:, None] + rng.normal(size=(s.n, s.d))
    z = s.shift * labels(s.points)[:, None] + rng.normal(size=(s.points, s.d))
    known = min(s.points // 4, s.n)
    z[:known] = x[:known]
    return Problem(TwoLayerNTK(s.slope, s.bias), x, y, z)


class Network(NamedTuple):
    """Neurons: weights (width, d), biases and readout (width,)."""

    weights: np.ndarray
    biases: np.ndarray
    readout: np.ndarray


def network(rng: np.random.Generator, neurons: int, d: int, width: int | None = None) -> Network:
    """Neurons of a fresh network: w ~ N(0, I/d), b ~ N(0, 1), a ~ N(0, 1/width); `width` if these
    are only some.
    """
    normal = rng.normal(size=(neurons, d + 2))
    return Network(
        normal[:, :d] / np.sqrt(d), normal[:, d], normal[:, d + 1] / np.sqrt(width or neurons)
    )


def blocks(neurons: int, columns: int) -> Iterator[slice]:
    """Neurons, so few at a time that products with `columns` numbers each stay in cache and on one
    core: threads in such small products wait for each other more than they work, above all on a
    busy machine.
    """
    size = max(32, 2**18 // max(columns, 1))
    for start in range(0, neurons, size):
        yield slice(start, min(start + size, neurons))


def outputs(net: Network, z: np.ndarray, slope: float) -> np.ndarray:
    total = np.zeros(len(z))
    for part in blocks(len(net.weights), z.size):
        u = net.weights[part] @ z.T + net.biases[part, None]
        total += np.sum(net.readout[part, None] * np.where(u > 0, u, slope * u), axis=0)
    return total


def gradients(net: Network, z: np.ndarray, slope: float) -> np.ndarray:
    """Input gradients, (m, d)."""
    total = np.zeros(z.shape)
    for part in blocks(len(net.weights), z.size):
        active = (net.weights[part] @ z.T + net.biases[part, None] > 0).astype(float)
        scaled = net.readout[part, None] * net.weights[part]
        total += (1 - slope) * (active.T @ scaled) + slope * scaled.sum(0)
    return total


@dataclass
class Trained:
    """A network after training.

    Attributes:
        rates: (steps,).  time: effective time.  history: (steps, n), outputs at x before each step
            (logistic loss).
        flipped, moved: (width, watch), whether a gate differed from its first state at a visited
            step, and how far its pre-activation went.
        path: (steps + 1, watch), outputs at the watched points.
    """

    net: Network
    rates: np.ndarray
    time: float
    history: np.ndarray
    flipped: np.ndarray
    moved: np.ndarray
    path: np.ndarray


def train(
    net: Network,
    x: np.ndarray,
    y: np.ndarray,
    kernel: TwoLayerNTK,
    s: Setting,
    *,
    time: float,
    watch: np.ndarray | None = None,
) -> Trained:
    """Heavy ball on W (and b if the kernel trains it) with the readout frozen, to the effective
    time `time`.
    """
    n, slope, loss = len(x), kernel.slope, s.loss
    rate = time / HeavyBall(1.0, s.steps, s.momentum).effective_time
    features = np.hstack([x, np.ones((n, 1))])
    pulls = np.hstack([x, np.full((n, 1), float(kernel.train_bias))]) * (y / n)[:, None]
    weights = np.hstack([net.weights, net.biases[:, None]])
    readout = net.readout[:, None]
    watch = np.empty((0, x.shape[1])) if watch is None else watch
    watched = np.hstack([watch, np.ones((len(watch), 1))])
    parts = list(blocks(len(weights), features.size))

    def summed(u: np.ndarray, part: slice) -> np.ndarray:
        return np.sum(readout[part] * np.where(u > 0, u, slope * u), axis=0)

    start = np.vstack([weights[part] @ watched.T for part in parts])
    flipped, moved = np.zeros(start.shape, bool), np.zeros(start.shape)
    history, path = [], [summed(start, slice(None))]
    velocity = np.zeros_like(weights)
    for _ in range(s.steps):
        at_x = [weights[part] @ features.T for part in parts]
        weighted = pulls
        if loss == "logistic":
            history.append(
                np.sum([summed(u, part) for u, part in zip(at_x, parts, strict=True)], axis=0)
            )
            weighted = pulls / (1 + np.exp(y * history[-1]))[:, None]
        everywhere, now = slope * weighted.sum(0), []
        for u, part in zip(at_x, parts, strict=True):
            pull = (1 - slope) * ((u > 0).astype(float) @ weighted) + everywhere
            velocity[part] = s.momentum * velocity[part] + readout[part] * pull
            weights[part] += rate * velocity[part]
            now.append(weights[part] @ watched.T)
        if len(watch):
            current = np.vstack(now)
            flipped |= (current > 0) != (start > 0)
            moved = np.maximum(moved, np.abs(current - start))
            path.append(summed(current, slice(None)))
    done = Network(weights[:, :-1], weights[:, -1], net.readout)
    return Trained(
        done, np.full(s.steps, rate), time, np.array(history), flipped, moved, np.array(path)
    )


@dataclass
class Sums:
    """Sums over the neurons of one fresh network, trained with the identity loss in chunks of
    neurons (fact S1).

    Attributes:
        before, after: (m,), outputs at z.  linear: (m,), T f_hat of its own tangent kernel.
        gradient_before, gradient_after: (n', d), input gradients at the points asked for.
        flipped: (m,), gates at z that differ at the end.
    """

    before: np.ndarray
    after: np.ndarray
    linear: np.ndarray
    gradient_before: np.ndarray
    gradient_after: np.ndarray
    flipped: np.ndarray

    @property
    def change(self) -> np.ndarray:
        return self.after - self.before


def fresh_and_trained(
    rng: np.random.Generator,
    p: Problem,
    s: Setting,
    *,
    width: int,
    time: float,
    at: np.ndarray | None = None,
    linear: bool = False,
) -> Sums:
    """Draws a network of any width, trains it and sums up, a chunk of neurons at a time. `at`:
    points for gradients; `linear`: also its tangent predictor.
    """
    kernel, slope, m = p.kernel, p.kernel.slope, len(p.z)
    at = np.empty((0, p.x.shape[1])) if at is None else at
    total = Sums(
        np.zeros(m), np.zeros(m), np.zeros(m), np.zeros(at.shape), np.zeros(at.shape), np.zeros(m)
    )
    for part in blocks(width, max(p.x.size, p.z.size, at.size)):
        net = network(rng, part.stop - part.start, p.x.shape[1], width)
        done = train(net, p.x, p.y, kernel, s, time=time).net
        u, v = (one.weights @ p.z.T + one.biases[:, None] for one in (net, done))
        total.before += np.sum(net.readout[:, None] * np.where(u > 0, u, slope * u), axis=0)
        total.after += np.sum(net.readout[:, None] * np.where(v > 0, v, slope * v), axis=0)
        total.flipped += np.sum((u > 0) != (v > 0), axis=0)
        if linear:
            total.linear += time * theory.tangent_predictor(kernel, *net, p.x, p.y, p.z)[0]
        if len(at):
            total.gradient_before += gradients(net, at, slope)
            total.gradient_after += gradients(done, at, slope)
    return total


def row_norms(array: np.ndarray) -> np.ndarray:
    return np.linalg.norm(array, axis=-1)


def units(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """(n, d), random unit vectors."""
    vectors = rng.normal(size=(n, d))
    return vectors / row_norms(vectors)[:, None]


def signs(rng: np.random.Generator, n: int, rule: str = "coin_flip") -> np.ndarray:
    """Targets: independent coin flips, or uniform among those with sum zero."""
    if rule == "balanced":
        return rng.permutation(np.where(np.arange(n) % 2 == 0, 1.0, -1.0))
    return rng.choice([-1.0, 1.0], size=n)
