"""What checks draw: data, finite networks as plain arrays, and their training in float64 NumPy."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from perturbkernel import theory
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory import arguments
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

    @cached_property
    def f_hat(self) -> np.ndarray:
        """Of the limit at the queries, (m,)."""
        return theory.f_hat(*self.data)

    @cached_property
    def limit_gradient(self) -> np.ndarray:
        """Of the limit at the queries, (m, d)."""
        return theory.limit_gradient(*self.data)

    @cached_property
    def gates(self) -> np.ndarray:
        """Phi(x_n, z), (n, m)."""
        return arguments.double(self.kernel.phi, self.x, self.z)

    @property
    def factor(self) -> np.ndarray:
        """k_n(z) = <x_n, z> + c, (n, m)."""
        return self.x @ self.z.T + self.kernel.train_bias


def problem(rng: np.random.Generator, s: Setting) -> Problem:
    """Draws two Gaussian classes of equal size with means +-shift in every coordinate.

    The first quarter of the queries are training points.
    """
    y = _alternating(s.n)
    noise = rng.normal(size=(s.n, s.d))
    x = s.shift * y[:, None] + noise
    means = s.shift * _alternating(s.points)[:, None]
    z = means + rng.normal(size=(s.points, s.d))
    known = min(s.points // 4, s.n)
    z[:known] = x[:known]
    return Problem(TwoLayerNTK(s.slope, s.bias), x, y, z)


def _alternating(count: int) -> np.ndarray:
    """+1, -1, +1, ..., (count,)."""
    return np.where(np.arange(count) % 2 == 0, 1.0, -1.0)


class Network(NamedTuple):
    """Neurons: weights (width, d), biases and readout (width,)."""

    weights: np.ndarray
    biases: np.ndarray
    readout: np.ndarray


def network(rng: np.random.Generator, neurons: int, d: int, width: int | None = None) -> Network:
    """Draws neurons of a fresh network: w ~ N(0, I/d), b ~ N(0, 1), a ~ N(0, 1/width).

    `width` is that of the whole network if these neurons are only some of it.
    """
    normal = rng.normal(size=(neurons, d + 2))
    weights = normal[:, :d] / np.sqrt(d)
    biases = normal[:, d]
    readout = normal[:, d + 1] / np.sqrt(width or neurons)
    return Network(weights, biases, readout)


def preactivations(net: Network, z: np.ndarray) -> np.ndarray:
    """u_i(z) = <w_i, z> + b_i of every neuron, (width, m)."""
    return net.weights @ z.T + net.biases[:, None]


def readout_sum(readout: np.ndarray, u: np.ndarray, slope: float) -> np.ndarray:
    """The sum over neurons of a phi(u), (m,), for readouts (width, 1) and u (width, m)."""
    activated = np.where(u > 0, u, slope * u)
    return np.sum(readout * activated, axis=0)


def blocks(neurons: int, columns: int) -> Iterator[slice]:
    """Neurons, so few at a time that products with `columns` numbers each stay in cache and on one
    core: threads in such small products wait for each other more than they work, above all on a
    busy machine.
    """
    size = max(32, 2**18 // max(columns, 1))  # 2 MiB of float64, as a core's cache holds
    for start in range(0, neurons, size):
        yield slice(start, min(start + size, neurons))


def outputs(net: Network, z: np.ndarray, slope: float) -> np.ndarray:
    """f(z), (m,)."""
    total = np.zeros(len(z))
    for part in blocks(len(net.weights), z.size):
        some = _neurons(net, part)
        u = preactivations(some, z)
        total += readout_sum(some.readout[:, None], u, slope)
    return total


def _neurons(net: Network, part: slice) -> Network:
    return Network(net.weights[part], net.biases[part], net.readout[part])


def gradients(net: Network, z: np.ndarray, slope: float) -> np.ndarray:
    """Input gradients, (m, d)."""
    total = np.zeros(z.shape)
    for part in blocks(len(net.weights), z.size):
        some = _neurons(net, part)
        u = preactivations(some, z)
        active = (u > 0).astype(float)
        scaled = some.readout[:, None] * some.weights
        # A gate is slope, and 1 - slope more where the neuron is active.
        total += slope * scaled.sum(0)
        total += (1 - slope) * (active.T @ scaled)
    return total


@dataclass
class Trained:
    """A network after training.

    Attributes:
        rates: (steps,).
        time: the effective time.
        history: (steps, n), outputs at x before each step (logistic loss).
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
    """Heavy ball on W (and b if the kernel trains it) with the readout frozen.

    The effective time after the last step is `time`. At the points `watch` it is recorded how far
    pre-activations move and which gates flip.
    """
    n = len(x)
    slope = kernel.slope
    rate = time / HeavyBall(1.0, s.steps, s.momentum).effective_time
    # The bias is the weight of one more input, constantly 1, whose gradient is 0 if not trained.
    features = _with_column(x, 1.0)
    labels = (y / n)[:, None]
    pulls = labels * _with_column(x, float(kernel.train_bias))
    weights = np.hstack([net.weights, net.biases[:, None]])
    readout = net.readout[:, None]
    if watch is None:
        watch = np.empty((0, x.shape[1]))
    watched = _with_column(watch, 1.0)
    parts = list(blocks(len(weights), features.size))

    start = np.vstack([weights[part] @ watched.T for part in parts])
    flipped = np.zeros(start.shape, bool)
    moved = np.zeros(start.shape)
    path = [readout_sum(readout, start, slope)]
    history = []
    velocity = np.zeros_like(weights)
    for _ in range(s.steps):
        at_x = [weights[part] @ features.T for part in parts]
        weighted = pulls
        if s.loss == "logistic":
            outputs_at_x = np.zeros(n)
            for u, part in zip(at_x, parts, strict=True):
                outputs_at_x += readout_sum(readout[part], u, slope)
            history.append(outputs_at_x)
            shares = 1 / (1 + np.exp(y * outputs_at_x))
            weighted = pulls * shares[:, None]
        everywhere = slope * weighted.sum(0)
        now = []
        for u, part in zip(at_x, parts, strict=True):
            active = (u > 0).astype(float)
            pull = (1 - slope) * (active @ weighted) + everywhere
            velocity[part] = s.momentum * velocity[part] + readout[part] * pull
            weights[part] += rate * velocity[part]
            now.append(weights[part] @ watched.T)
        if len(watched):
            current = np.vstack(now)
            flipped |= (current > 0) != (start > 0)
            moved = np.maximum(moved, np.abs(current - start))
            path.append(readout_sum(readout, current, slope))
    return Trained(
        net=Network(weights[:, :-1], weights[:, -1], net.readout),
        rates=np.full(s.steps, rate),
        time=time,
        history=np.array(history),
        flipped=flipped,
        moved=moved,
        path=np.array(path),
    )


def _with_column(points: np.ndarray, value: float) -> np.ndarray:
    """The points with one more coordinate, the same for all, (n, d + 1)."""
    column = np.full((len(points), 1), value)
    return np.hstack([points, column])


@dataclass
class Sums:
    """Sums over the neurons of one fresh network, trained with the identity loss in chunks of
    neurons (fact S1).

    Attributes:
        before, after: (m,), outputs at z.
        linear: (m,), T f_hat of its own tangent kernel.
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
    """Draws a network of any width, trains it and sums up, a chunk of neurons at a time.

    `at`: points for gradients; `linear`: also its tangent predictor.
    """
    kernel = p.kernel
    slope = kernel.slope
    m, d = p.z.shape
    if at is None:
        at = np.empty((0, d))
    total = Sums(
        before=np.zeros(m),
        after=np.zeros(m),
        linear=np.zeros(m),
        gradient_before=np.zeros(at.shape),
        gradient_after=np.zeros(at.shape),
        flipped=np.zeros(m),
    )
    columns = max(p.x.size, p.z.size, at.size)
    for part in blocks(width, columns):
        neurons = part.stop - part.start
        net = network(rng, neurons, d, width)
        done = train(net, p.x, p.y, kernel, s, time=time).net
        readout = net.readout[:, None]
        u = preactivations(net, p.z)
        v = preactivations(done, p.z)
        total.before += readout_sum(readout, u, slope)
        total.after += readout_sum(readout, v, slope)
        total.flipped += np.sum((u > 0) != (v > 0), axis=0)
        if linear:
            f_hat, _ = theory.tangent_predictor(kernel, *net, p.x, p.y, p.z)
            total.linear += time * f_hat
        if len(at):
            total.gradient_before += gradients(net, at, slope)
            total.gradient_after += gradients(done, at, slope)
    return total


def row_norms(array: np.ndarray) -> np.ndarray:
    """The lengths of the rows, (n,)."""
    return np.linalg.norm(array, axis=-1)


def row_cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cosine of each row of a with that of b, (n,)."""
    products = np.sum(a * b, axis=1)
    return products / (row_norms(a) * row_norms(b))


def units(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """(n, d), random unit vectors."""
    vectors = rng.normal(size=(n, d))
    return vectors / row_norms(vectors)[:, None]


def signs(rng: np.random.Generator, n: int, rule: str = "coin_flip") -> np.ndarray:
    """Targets: independent coin flips, or uniform among those with sum zero."""
    if rule == "balanced":
        return rng.permutation(_alternating(n))
    return rng.choice([-1.0, 1.0], size=n)
