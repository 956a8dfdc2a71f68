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


class _Seen(eqx.Module):
    """Outputs at z and, with x, gradients there. A pytree, not a closure: compiled once for all
    data of a shape.
    """

    z: Array
    x: Array | None = None

    def __call__(self, net: networks.TwoLayerNetwork):
        if self.x is None:
            return net(self.z)
        return net(self.z), net.input_gradient(self.x)


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
        net = _network(self.d, self.width, self.slope, key)
        count = len(rates)
        nets = jax.tree.map(lambda a: np.broadcast_to(a, (count, *a.shape)), net)
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
        places = [int(np.flatnonzero(trace.step == step)[0]) for step in steps]
        chosen = np.array(places)
        seen = jax.tree.map(lambda a: np.asarray(a)[:, chosen], trace.observed)
        losses = np.asarray(trace.step_loss)
        return _Training(seen, np.all(np.isfinite(losses), axis=1))


def network_cell(config: dict[str, Any]) -> dict[str, np.ndarray]:
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
    x, y = np.asarray(drawn.x), np.asarray(drawn.y)
    n, d = x.shape
    z = np.concatenate([x, drawn.fresh])
    key_f, key_g = jax.random.split(drawn.key)
    rates_f = np.asarray(config["learning_rates_f"], x.dtype)
    rates_g = np.asarray(config["learning_rates_g"], x.dtype)
    rule = config["targets"]
    target = targets(config["data"], n, {rule: 1})[rule][:, 0]
    ensembles = _Ensembles(d, config["width"], config["slope"], config["loss"])

    # Scenario (a) scales its inputs; with a scale of one here, both trainings are the same program.
    scale = np.ones((len(rates_f), n), x.dtype) if config["scenario"] == "a" else None
    at = _Seen(jnp.asarray(z), jnp.asarray(x))
    first = ensembles.train(key_f, rates_f, x, y, config["steps_f"], at, scale)
    outputs_f, gradients = first.seen

    second = _SecondNetworks(ensembles, config, key_g, rates_g, x, z, target)
    direction = _direction(config["slope"], x, y)
    shape = (len(rates_f), len(config["steps_f"]))
    shape_g = (*shape, len(config["sizes"]), len(rates_g), len(config["steps_g"]))
    standard, along = np.zeros(shape), np.zeros(shape)
    perturbation, agreement = np.zeros(shape_g), np.zeros(shape_g)
    finite_g = True
    for place in np.ndindex(shape):
        f = outputs_f[place]
        unit = _normalised(gradients[place])
        standard[place] = accuracy(f[:n], y)
        along[place] = np.abs(np.sum(unit * direction, axis=1)).mean()
        if not config["sizes"]:
            continue
        g, finite = second.trained(unit)
        finite_g &= finite
        perturbation[place] = accuracy(g[..., :n], y)
        agreement[place] = accuracy(g[..., n:], np.sign(f[n:]))
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
    config: dict[str, Any]
    key: PRNGKeyArray
    rates: np.ndarray
    x: np.ndarray
    z: np.ndarray
    target: np.ndarray

    def trained(self, unit: np.ndarray) -> tuple[np.ndarray, bool]:
        """Outputs (sizes, rates, steps, m), and whether all stayed finite."""
        how: dict[str, Callable] = {"a": self._alone, "b": self._added}
        return how[self.config["scenario"]](unit)

    def _alone(self, unit: np.ndarray) -> tuple[np.ndarray, bool]:
        """Scenario (a). All sizes share their directions: one ensemble whose members scale the
        rows.
        """
        sizes = np.asarray(self.config["sizes"], self.x.dtype)
        rates = np.tile(self.rates, len(sizes))
        of_member = np.repeat(sizes, len(self.rates))
        scale = of_member[:, None] * self.target[None, :]
        outputs, finite = self._train(rates, unit, scale)
        by_size = outputs.reshape(len(sizes), len(self.rates), *outputs.shape[1:])
        return by_size, bool(finite.all())

    def _added(self, unit: np.ndarray) -> tuple[np.ndarray, bool]:
        """Scenario (b), an ensemble for each size."""
        outputs, all_finite = [], True
        for size in self.config["sizes"]:
            signed = np.asarray(size, self.x.dtype) * self.target[:, None]
            found = self._train(self.rates, self.x + signed * unit, None)
            outputs.append(found.seen)
            all_finite &= bool(found.finite.all())
        return np.stack(outputs), all_finite

    def _train(self, rates: np.ndarray, rows: np.ndarray, scale: np.ndarray | None) -> _Training:
        seen = _Seen(jnp.asarray(self.z))
        steps = self.config["steps_g"]
        return self.ensembles.train(self.key, rates, rows, self.target, steps, seen, scale)


def _network(d: int, width: int, slope: float, key: PRNGKeyArray) -> networks.TwoLayerNetwork:
    """`TwoLayerNetwork.init` with a trained bias, to rounding, from a generator compiled for powers
    of two only: the threefry bits of a number depend on its place alone.
    """
    count = width * (d + 2)
    power_of_two = 1 << (count - 1).bit_length()
    normal = np.asarray(jax.random.normal(key, (power_of_two,)))
    drawn = normal[:count].reshape(width, d + 2)
    root_d, root_width = np.sqrt([d, width]).astype(drawn.dtype)
    weight = drawn[:, :d] / root_d
    bias = drawn[:, d]
    readout = drawn[:, d + 1] / root_width
    return networks.TwoLayerNetwork(weight, bias, readout, slope, True)  # type: ignore[arg-type]


def _normalised(v: np.ndarray) -> np.ndarray:
    """Rows of length one; zero where a row is zero or, after a training that diverged, not
    finite.
    """
    length = np.linalg.norm(v, axis=1, keepdims=True)
    good = np.isfinite(length) & (length > 0)
    return np.where(good, v, 0) / np.where(good, length, 1)


def _direction(slope: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The paper's direction at the training points, normalised (theory: 2.1).

    sum_n y_n Phi(x_n, x) x_n
    """
    d = x.shape[1]
    s = np.sqrt(1 + np.sum(x**2, axis=1) / d)
    rho = (1 + x @ x.T / d) / (s[:, None] * s)
    theta = np.arccos(np.clip(rho, -1, 1))
    phi = (1 + slope**2) / 2 - (1 - slope) ** 2 / (2 * np.pi) * theta
    return _normalised(phi @ (y[:, None] * x))
