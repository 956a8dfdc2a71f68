"""One cell of the reproduction by the law of one neuron: networks of the published width, many at
once, every learning rate of the grid (theory: 14.1, 14.4).

With the identity loss neurons never interact. A pool of them, followed as flow to the effective
times of the published steps, is as many trained networks as it has neurons for, and one path has
every learning rate and number of steps on it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.reproduce.panels.datasets import accuracy, draw, targets
from perturbkernel.reproduce.panels.directions import direction, normalised
from perturbkernel.reproduce.records import Arrays, Config
from perturbkernel.theory.law.paths import Schedule, simulate
from perturbkernel.training.dynamics import HeavyBall

#: Points are padded to a multiple of this, with rows that no force comes from: data sets of nearly
#: the same size share what is compiled.
_ROUND = 256
#: What tells the pools of one seed apart: that of first networks and that of second ones.
FIRST, SECOND = 14, 15


class Networks(NamedTuple):
    """Trained networks of one width, given by all of their neurons.

    Attributes:
        width: of each network; neurons are theirs one after the other.
        slope: of the leaky ReLU.
        readout: alpha, (k,): readouts are alpha / sqrt(width).
        trained: weights and biases (k, d + 1).
    """

    width: int
    slope: float
    readout: Float[np.ndarray, " k"]
    trained: Float[np.ndarray, "k d+1"]

    def outputs(self, z: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "networks m"]:
        """The output of every network at every query."""
        u = self._before(z)
        active = np.where(u > 0, u, self.slope * u)
        readouts = self._readouts()
        each = readouts[:, None] * active
        by_network = each.reshape(-1, self.width, len(z))
        return by_network.sum(axis=1)

    def gradient(self, x: Float[np.ndarray, "n d"], index: int) -> Float[np.ndarray, "n d"]:
        """The input gradient of one of the networks."""
        first = index * self.width
        own = slice(first, first + self.width)
        network = self._replace(readout=self.readout[own], trained=self.trained[own])
        u = network._before(x)
        gates = np.where(u > 0, 1, self.slope).astype(x.dtype)
        readouts = network._readouts()
        weights = network.trained[:, :-1]
        weighted = readouts[:, None] * weights
        return gates.T @ weighted

    def _before(self, z: np.ndarray) -> np.ndarray:
        """Pre-activations (k, m)."""
        weights = self.trained[:, :-1]
        biases = self.trained[:, -1:]
        return weights @ z.T + biases

    def _readouts(self) -> np.ndarray:
        root = np.float32(self.width**0.5)
        return self.readout / root


class Untrained(NamedTuple):
    """Networks before they are trained, enough for some networks of one width.

    Attributes:
        width, slope: as in `Networks`.
        readout: (k,), alpha, standard normal.
        start: (k, d + 1), weights of variance 1 / d and biases of variance 1.
        steps: of the midpoint rule on a path, about.
    """

    width: int
    slope: float
    readout: Float[np.ndarray, " k"]
    start: Float[np.ndarray, "k d+1"]
    steps: int

    @classmethod
    def of(cls, config: Config, d: int, which: int) -> "Untrained":
        """At least one network, and as many as `neurons` of the config has neurons for."""
        width = config["width"]
        first, second = config["neurons"]
        asked = second if which == SECOND else first
        networks = max(1, asked // width)
        neurons = networks * width
        # In NumPy: for every shape JAX would compile anew.
        seed = [config["data"]["seed"], which]
        rng = np.random.default_rng(seed)
        drawn = rng.standard_normal((neurons, d + 2), np.float32)
        readout = drawn[:, -1]
        start = drawn[:, :-1]
        start[:, :d] /= np.float32(d**0.5)
        return cls(width, config["slope"], readout, start, config["path_steps"])

    @property
    def networks(self) -> int:
        return len(self.readout) // self.width

    def trained(
        self,
        x: Float[np.ndarray, "n d"],
        y: Float[np.ndarray, " n"],
        times: Sequence[float],
    ) -> list[Networks]:
        """The networks after each training time, as `times` has them."""
        points, labels = _padded(x, y)
        distinct = sorted(set(times))
        grid = time_grid(times, self.steps)
        rates = np.diff(grid, prepend=0.0) / self.width**0.5
        places = np.searchsorted(grid, distinct) + 1
        paths = simulate(
            TwoLayerNTK(self.slope, train_bias=True),
            jnp.asarray(points),
            jnp.asarray(labels),
            self.start,
            self.readout,
            Schedule(rates, momentum=0.0, midpoint=True),
            places.tolist(),
        )
        found = {}
        for time, moved in zip(distinct, paths.moved, strict=True):
            found[time] = self._at(moved, points)
        return [found[time] for time in times]

    def _at(self, moved: np.ndarray, points: np.ndarray) -> Networks:
        """The networks whose neurons moved so far, in weights or in coefficients of (x_n, 1)."""
        rows, d = points.shape
        if rows <= d:
            weights = moved @ points
            bias = moved.sum(axis=1, keepdims=True)
            moved = np.hstack([weights, bias])
        return Networks(self.width, self.slope, self.readout, self.start + moved)


def _padded(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points and labels with rows of zeros, up to a multiple of `_ROUND`."""
    n, d = x.shape
    rows = n + -n % _ROUND
    points = np.zeros((rows, d), x.dtype)
    points[:n] = x
    # Forces are labels over the number of points, here with the padding.
    labels = np.zeros(rows, x.dtype)
    labels[:n] = y * (rows / n)
    return points, labels


def time_grid(times: Sequence[float], steps: int) -> Float[np.ndarray, " steps"]:
    """Increasing times of about so many steps, among them all of `times`.

    They are cubes of equal steps, as far as those allow: paths bend early, when gates flip, whether
    they end at r = 0.1 or at r = 1000.
    """
    distinct = np.unique(times)
    last = distinct[-1]
    roots = np.cbrt(distinct / last)
    grid = []
    before = 0.0
    for root, time in zip(roots, distinct, strict=True):
        count = np.ceil(steps * (root - before))
        inner = np.linspace(before, root, max(1, int(count)), endpoint=False)
        cubes = last * inner[1:] ** 3
        grid += cubes.tolist()
        grid.append(time)
        before = root
    return np.array(grid)


def law_cell(config: Config) -> Arrays:
    """Draws networks of the published width from pools of neurons, perturbs by some of them after
    each number of steps, and draws second networks on each result.

    Args:
        config: data; scenario, width, slope, targets ("coin_flip" or "balanced"); lists
            learning_rates_f, learning_rates_g, steps_f, steps_g, sizes; neurons, of the first and
            of the second pool; first, how many first networks have second ones, each with targets
            of its own; path_steps.

    Returns:
        "standard", "cosine" (networks, rates_f, steps_f); "perturbation", "agreement" (pairs of
        networks, rates_f, steps_f, sizes, rates_g, steps_g).

    Steps are counted by the effective time of heavy ball 0.9 without the plateau rule, which the
    identity loss never meets: it falls for ever.
    """
    experiment = _Experiment.of(config)
    d = experiment.x.shape[1]
    times = _times(config["learning_rates_f"], config["steps_f"])
    pool = Untrained.of(config, d, FIRST)
    first = pool.trained(experiment.x, experiment.y, times)
    second = Untrained.of(config, d, SECOND)
    rows = []
    for f in first:
        row = _of_first(experiment, f)
        if config["sizes"]:
            row |= _of_second(experiment, f, second)
        rows.append(row)
    rates = len(config["learning_rates_f"])
    steps = len(config["steps_f"])
    found = {}
    for name in rows[0]:
        columns = [row[name] for row in rows]
        stacked = np.stack(columns, axis=1)
        networks, _, *others = stacked.shape
        found[name] = stacked.reshape(networks, rates, steps, *others)
    return found


def _times(rates: Sequence[float], steps: Sequence[int]) -> list[float]:
    """Effective times of the grid, rates varying slowest."""
    times = []
    for rate in rates:
        for count in steps:
            dynamics = HeavyBall(rate, count)
            times.append(dynamics.effective_time)
    return times


class _Experiment(NamedTuple):
    """What all networks of a cell share.

    Attributes:
        config: as in `law_cell`.
        x, y: training points (n, d), and their labels.
        z: the training points, then the fresh ones.
        labels: (n, first), targets of second networks, a column for each first network.
        direction: the theory's, at the training points.
    """

    config: Config
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    labels: np.ndarray
    direction: np.ndarray

    @classmethod
    def of(cls, config: Config) -> "_Experiment":
        drawn = draw(config["data"])
        x = np.asarray(drawn.x)
        y = np.asarray(drawn.y)
        z = np.concatenate([x, drawn.fresh])
        rule = config["targets"]
        by_rule = targets(config["data"], len(x), {rule: config["first"]})
        toward = direction(config["slope"], x, y)
        return cls(config, x, y, z, by_rule[rule], toward)


def _of_first(experiment: _Experiment, f: Networks) -> Arrays:
    """What is seen of the first networks at one time, (networks,)."""
    x = experiment.x
    outputs = f.outputs(x)
    cosines = []
    for index in range(len(outputs)):
        unit = normalised(f.gradient(x, index))
        products = np.sum(unit * experiment.direction, axis=1)
        cosines.append(np.abs(products).mean())
    standard = accuracy(outputs, experiment.y)
    return {"standard": standard, "cosine": np.array(cosines)}


def _of_second(experiment: _Experiment, f: Networks, pool: Untrained) -> Arrays:
    """What is seen of second networks after some of the first ones at one time, (pairs, sizes,
    rates_g, steps_g).
    """
    config = experiment.config
    x = experiment.x
    z = experiment.z
    n = len(x)
    scenario_b = np.float32(config["scenario"] == "b")
    carrier = scenario_b * x
    times = _times(config["learning_rates_g"], config["steps_g"])
    signs = np.sign(f.outputs(z[n:]))
    perturbation = []
    agreement = []
    for index, sign in enumerate(signs[: config["first"]]):
        target = experiment.labels[:, index]
        unit = normalised(f.gradient(x, index))
        signed = target[:, None] * unit
        right = []
        agreed = []
        for size in config["sizes"]:
            perturbed = carrier + np.float32(size) * signed
            second = pool.trained(perturbed, target, times)
            outputs = [g.outputs(z) for g in second]
            by_time = np.stack(outputs, axis=1)  # (networks, times, m)
            right.append(accuracy(by_time[..., :n], experiment.y))
            agreed.append(accuracy(by_time[..., n:], sign))
        perturbation.append(np.stack(right, axis=1))
        agreement.append(np.stack(agreed, axis=1))
    rates = len(config["learning_rates_g"])
    steps = len(config["steps_g"])
    measured = {"perturbation": perturbation, "agreement": agreement}
    found = {}
    for name, values in measured.items():
        by_time = np.concatenate(values)
        pairs, sizes, _ = by_time.shape
        found[name] = by_time.reshape(pairs, sizes, rates, steps)
    return found
