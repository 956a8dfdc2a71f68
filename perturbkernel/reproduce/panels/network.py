"""One cell of the reproduction at finite width: the paper's recipe, every learning rate of its
grid, one seed.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from perturbkernel import networks
from perturbkernel.reproduce.panels.datasets import accuracy, draw, targets
from perturbkernel.reproduce.panels.directions import direction, normalised
from perturbkernel.reproduce.records import Arrays, Config


class _Seen(eqx.Module):
    """Outputs at z and, with x, gradients there. A pytree, not a closure: compiled once for all
    data of a shape.
    """

    z: Array
    x: Array | None = None

    def __call__(self, net: networks.TwoLayerNetwork):
        outputs = net(self.z)
        if self.x is None:
            return outputs
        gradients = net.input_gradient(self.x)
        return outputs, gradients


class _Training(NamedTuple):
    """What is seen of k networks, a pytree of (k, steps, ...), and which of them stayed finite."""

    seen: Any
    finite: np.ndarray


class _Ensembles(NamedTuple):
    """Trains networks of one width, slope and loss on d inputs."""

    d: int
    width: int
    slope: float
    loss: str

    def train(
        self,
        key: PRNGKeyArray,
        rates: np.ndarray,
        inputs: np.ndarray,
        labels: np.ndarray,
        steps: Sequence[int],
        observe: _Seen,
        scale: np.ndarray | None,
    ) -> _Training:
        """One network a rate from the same initialisation, seen after each number of steps.

        scale: (k, n), for each of the k networks what its inputs are multiplied by.
        """
        count = len(rates)

        def repeated(weights: np.ndarray) -> np.ndarray:
            return np.broadcast_to(weights, (count, *weights.shape))

        net = _network(self.d, self.width, self.slope, key)
        nets = jax.tree.map(repeated, net)
        _, trace = networks.ensemble(
            nets,
            inputs,
            labels,
            learning_rate=rates,
            loss=self.loss,
            plateau=networks.Plateau(),
            steps=max(steps),
            trace_at=tuple(sorted(steps)),
            observe=observe,
            scale=scale,
        )
        places = []
        for step in steps:
            there = np.flatnonzero(trace.step == step)
            places.append(int(there[0]))
        chosen = np.array(places)

        def at_steps(observed: Array) -> np.ndarray:
            return np.asarray(observed)[:, chosen]

        seen = jax.tree.map(at_steps, trace.observed)
        finite = np.isfinite(np.asarray(trace.step_loss))
        return _Training(seen, np.all(finite, axis=1))


def network_cell(config: Config) -> Arrays:
    """Trains first networks at every rate, perturbs after each number of steps, trains second
    networks on each result.

    Args:
        config: data; scenario, width, slope, loss, targets ("coin_flip" or "balanced"); lists
            learning_rates_f, learning_rates_g, steps_f, steps_g, sizes.

    Returns:
        "standard", "cosine" (rates_f, steps_f); "perturbation", "agreement" (rates_f, steps_f,
        sizes, rates_g, steps_g); "finite_f" (rates_f,) and "finite_g": whether trainings stayed
        finite.

    Everything but the training is NumPy: cells have shapes of their own, for which JAX would
    compile every operation.
    """
    drawn = draw(config["data"])
    x = np.asarray(drawn.x)
    y = np.asarray(drawn.y)
    z = np.concatenate([x, drawn.fresh])
    key_f, key_g = jax.random.split(drawn.key)
    d = x.shape[1]
    width = config["width"]
    ensembles = _Ensembles(d, width, config["slope"], config["loss"])
    first = _train_first(ensembles, config, key_f, x, y, z)
    second = _second(ensembles, config, key_g, x, z)
    return _measured(first, second, y)


def _train_first(
    ensembles: _Ensembles,
    config: Config,
    key: PRNGKeyArray,
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
) -> _Training:
    """First networks, seen at z and by their gradients at x."""
    rates = np.asarray(config["learning_rates_f"], x.dtype)
    # Scenario (a) scales its inputs; with a scale of one here, both trainings are the same program.
    scale = None
    if config["scenario"] == "a":
        members = len(rates)
        scale = np.ones((members, len(x)), x.dtype)
    steps = config["steps_f"]
    queries = jnp.asarray(z)
    points = jnp.asarray(x)
    at = _Seen(queries, points)
    return ensembles.train(key, rates, x, y, steps, at, scale)


def _second(
    ensembles: _Ensembles,
    config: Config,
    key: PRNGKeyArray,
    x: np.ndarray,
    z: np.ndarray,
) -> "_SecondNetworks":
    rates = np.asarray(config["learning_rates_g"], x.dtype)
    rule = config["targets"]
    n = len(x)
    drawn = targets(config["data"], n, {rule: 1})
    target = drawn[rule][:, 0]
    return _SecondNetworks(ensembles, config, key, rates, x, z, target)


def _measured(first: _Training, second: "_SecondNetworks", y: np.ndarray) -> Arrays:
    """The result of `network_cell`."""
    n = len(y)
    config = second.config
    outputs_f, gradients = first.seen
    along_v = direction(config["slope"], second.x, y)
    shape = outputs_f.shape[:2]
    shape_g = (*shape, *second.shape)
    standard = np.zeros(shape)
    along = np.zeros(shape)
    perturbation = np.zeros(shape_g)
    agreement = np.zeros(shape_g)
    finite_g = True
    for place in np.ndindex(shape):
        f = outputs_f[place]
        unit = normalised(gradients[place])
        cosines = np.sum(unit * along_v, axis=1)
        at_training = f[:n]
        standard[place] = accuracy(at_training, y)
        along[place] = np.abs(cosines).mean()
        if not config["sizes"]:
            continue
        g, finite = second.trained(unit)
        finite_g &= finite
        g_training = g[..., :n]
        g_fresh = g[..., n:]
        f_sign = np.sign(f[n:])
        perturbation[place] = accuracy(g_training, y)
        agreement[place] = accuracy(g_fresh, f_sign)
    return {
        "standard": standard,
        "cosine": along,
        "perturbation": perturbation,
        "agreement": agreement,
        "finite_f": first.finite,
        "finite_g": np.asarray(finite_g),
    }


class _SecondNetworks(NamedTuple):
    """Trains second networks on perturbations target_n size unit_n, for every size and rate.

    The config is that of `network_cell`; x (n, d) training points, z (m, d) where outputs are
    wanted, target (n,).
    """

    ensembles: _Ensembles
    config: Config
    key: PRNGKeyArray
    rates: np.ndarray
    x: np.ndarray
    z: np.ndarray
    target: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(sizes, rates, steps) of what is trained on one set of perturbations."""
        sizes = len(self.config["sizes"])
        steps = len(self.config["steps_g"])
        return sizes, len(self.rates), steps

    def trained(self, unit: np.ndarray) -> tuple[np.ndarray, bool]:
        """Outputs (sizes, rates, steps, m), and whether all stayed finite."""
        how: dict[str, Callable] = {"a": self._alone, "b": self._added}
        train = how[self.config["scenario"]]
        return train(unit)

    def _alone(self, unit: np.ndarray) -> tuple[np.ndarray, bool]:
        """Scenario (a). All sizes share their directions: one ensemble whose members scale the
        rows.
        """
        sizes = np.asarray(self.config["sizes"], self.x.dtype)
        rates = np.tile(self.rates, len(sizes))
        of_member = np.repeat(sizes, len(self.rates))
        # (members, n)
        scale = of_member[:, None] * self.target[None, :]
        outputs, finite = self._train(rates, unit, scale)
        points = len(self.z)
        by_size = outputs.reshape(*self.shape, points)
        return by_size, bool(finite.all())

    def _added(self, unit: np.ndarray) -> tuple[np.ndarray, bool]:
        """Scenario (b), an ensemble for each size."""
        outputs = []
        all_finite = True
        for size in self.config["sizes"]:
            length = np.asarray(size, self.x.dtype)
            signed = length * self.target
            delta = signed[:, None] * unit
            perturbed = self.x + delta
            found = self._train(self.rates, perturbed, None)
            outputs.append(found.seen)
            all_finite &= bool(found.finite.all())
        return np.stack(outputs), all_finite

    def _train(self, rates: np.ndarray, rows: np.ndarray, scale: np.ndarray | None) -> _Training:
        seen = _Seen(jnp.asarray(self.z))
        steps = self.config["steps_g"]
        train = self.ensembles.train
        return train(self.key, rates, rows, self.target, steps, seen, scale)


def _network(d: int, width: int, slope: float, key: PRNGKeyArray) -> networks.TwoLayerNetwork:
    """`TwoLayerNetwork.init` with a trained bias, to rounding, from a generator compiled for powers
    of two only: the threefry bits of a number depend on its place alone.
    """
    of_neuron = d + 2
    count = width * of_neuron
    power_of_two = 1 << (count - 1).bit_length()
    normal = jax.random.normal(key, (power_of_two,))
    needed = np.asarray(normal)[:count]
    drawn = needed.reshape(width, of_neuron)
    roots = np.sqrt([d, width])
    root_d, root_width = roots.astype(drawn.dtype)
    weight = drawn[:, :d] / root_d
    bias = drawn[:, d]
    readout = drawn[:, -1] / root_width
    return networks.TwoLayerNetwork(weight, bias, readout, slope, True)  # type: ignore[arg-type]
