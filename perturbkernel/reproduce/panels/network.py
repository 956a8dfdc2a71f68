"""One cell of the reproduction at finite width: the paper's recipe, every learning rate of its
grid, one seed.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from perturbkernel import networks
from perturbkernel.reproduce.panels.datasets import accuracy, draw, targets


class _Seen(eqx.Module):
    """Outputs at z and, with x, gradients there. A pytree, not a closure: compiled once for all
    data of a shape.
    """

    z: Array
    x: Array | None = None

    def __call__(self, net: networks.TwoLayerNetwork):
        return net(self.z) if self.x is None else (net(self.z), net.input_gradient(self.x))


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
    x, y, n = np.asarray(drawn.x), np.asarray(drawn.y), len(drawn.y)
    z = np.concatenate([x, drawn.fresh])
    key_f, key_g = jax.random.split(drawn.key)
    rates_f, rates_g = (np.asarray(config[f"learning_rates_{name}"], x.dtype) for name in "fg")
    target = targets(config["data"], n, {config["targets"]: 1})[config["targets"]][:, 0]

    def train(key, rates, inputs, labels, steps, observe, scale):
        """One network a rate from the same initialisation, on inputs times scale (k, n) for each of
        them.
        """
        net = _network(x.shape[1], config["width"], config["slope"], key)
        nets = jax.tree.map(lambda a: np.broadcast_to(a, (len(rates), *a.shape)), net)
        _, trace = networks.ensemble(
            nets,
            inputs,
            labels,
            learning_rate=rates,
            loss=config["loss"],
            plateau=networks.Plateau(),
            steps=max(steps),
            trace_at=tuple(sorted(steps)),
            observe=observe,
            scale=scale,
        )
        chosen = np.array([int(np.flatnonzero(trace.step == step)[0]) for step in steps])
        seen = jax.tree.map(lambda a: np.asarray(a)[:, chosen], trace.observed)
        return seen, np.isfinite(np.asarray(trace.step_loss)).all(1)

    # Scenario (a) scales its inputs; with a scale of one here, both trainings are the same program.
    scale = np.ones((len(rates_f), n), x.dtype) if config["scenario"] == "a" else None
    (outputs_f, gradients), finite_f = train(
        key_f, rates_f, x, y, config["steps_f"], _Seen(jnp.asarray(z), jnp.asarray(x)), scale
    )
    direction = _direction(config["slope"], x, y)
    shape = (len(rates_f), len(config["steps_f"]))
    standard, along = np.zeros(shape), np.zeros(shape)
    second = np.zeros((2, *shape, len(config["sizes"]), len(rates_g), len(config["steps_g"])))
    finite_g = True
    for i in range(shape[0]):
        for j in range(shape[1]):
            f, unit = outputs_f[i, j], _normalised(gradients[i, j])
            standard[i, j] = accuracy(f[:n], y)
            along[i, j] = np.abs(np.sum(unit * direction, axis=1)).mean()
            if not config["sizes"]:
                continue
            outputs, finite = _second(train, key_g, config, x, target, unit, rates_g, z)
            finite_g &= finite
            g = np.stack(outputs)  # (sizes, rates, steps, m)
            second[:, i, j] = accuracy(g[..., :n], y), accuracy(g[..., n:], np.sign(f[n:]))
    return {
        "standard": standard,
        "cosine": along,
        "perturbation": second[0],
        "agreement": second[1],
        "finite_f": np.asarray(finite_f),
        "finite_g": np.asarray(finite_g),
    }


def _network(d: int, width: int, slope: float, key: Array) -> networks.TwoLayerNetwork:
    """`TwoLayerNetwork.init` with a trained bias, to rounding, from a generator compiled for powers
    of two only: the threefry bits of a number depend on its place alone.
    """
    count = width * (d + 2)
    drawn = np.asarray(jax.random.normal(key, (1 << (count - 1).bit_length(),)))[:count].reshape(
        width, d + 2
    )
    root_d, root_width = np.sqrt([d, width]).astype(drawn.dtype)
    weight, bias, readout = drawn[:, :d] / root_d, drawn[:, d], drawn[:, d + 1] / root_width
    return networks.TwoLayerNetwork(weight, bias, readout, slope, True)  # type: ignore[arg-type]


def _normalised(v: np.ndarray) -> np.ndarray:
    """Rows of length one; zero where a row is zero or, after a training that diverged, not finite."""
    length = np.linalg.norm(v, axis=1, keepdims=True)
    good = np.isfinite(length) & (length > 0)
    return np.where(good, v, 0) / np.where(good, length, 1)


def _direction(slope: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The paper's direction sum_n y_n Phi(x_n, x) x_n at the training points, normalised (theory:
    2.1).
    """
    s = np.sqrt(1 + np.sum(x**2, axis=1) / x.shape[1])
    rho = np.clip((1 + x @ x.T / x.shape[1]) / (s[:, None] * s), -1, 1)
    phi = (1 + slope**2) / 2 - (1 - slope) ** 2 / (2 * np.pi) * np.arccos(rho)
    return _normalised(phi @ (y[:, None] * x))


def _second(train, key, config, x, target, unit, rates, z) -> tuple[list[np.ndarray], bool]:
    """Outputs (sizes) of (rates, steps, m) of second networks on the perturbations target_n size
    unit_n.
    """
    sizes, steps, k, seen = config["sizes"], config["steps_g"], len(rates), _Seen(jnp.asarray(z))
    if config["scenario"] == "a":
        # All sizes share their directions: one ensemble whose members scale the rows.
        scale = np.repeat(np.asarray(sizes, x.dtype), k)[:, None] * target[None, :]
        outputs, finite = train(key, np.tile(rates, len(sizes)), unit, target, steps, seen, scale)
        return list(outputs.reshape(len(sizes), k, *outputs.shape[1:])), bool(finite.all())
    inputs = [x + np.asarray(size, x.dtype) * target[:, None] * unit for size in sizes]
    results = [train(key, rates, rows, target, steps, seen, None) for rows in inputs]
    return [outputs for outputs, _ in results], all(bool(finite.all()) for _, finite in results)
