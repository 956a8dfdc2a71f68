"""One cell of the reproduction at finite width: the paper's recipe, every learning rate of its grid, one seed."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from perturbkernel import networks
from perturbkernel.kernels import TwoLayerNTK
from perturbkernel.learning import accuracy
from perturbkernel.perturbations import cosine, normalise
from perturbkernel.reproduce.datasets import draw, targets


class _Seen(eqx.Module):
    """Outputs at z and, with x, gradients there. A pytree, not a closure: compiled once for all data of a shape."""

    z: Array
    x: Array | None = None

    def __call__(self, net: networks.TwoLayerNetwork):
        return net(self.z) if self.x is None else (net(self.z), net.input_gradient(self.x))


def network_cell(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Trains first networks at every rate, perturbs after each number of steps, trains second networks on each result.

    Args:
        config: data; scenario, width, slope, loss, targets ("coin_flip" or "balanced"); lists learning_rates_f,
            learning_rates_g, steps_f, steps_g, sizes.

    Returns:
        "standard", "cosine" (rates_f, steps_f); "perturbation", "agreement" (rates_f, steps_f, sizes, rates_g,
        steps_g); "finite_f" (rates_f,) and "finite_g": whether trainings stayed finite.
    """
    drawn = draw(config["data"])
    x, y, n = drawn.x, drawn.y, len(drawn.y)
    z = jnp.concatenate([x, drawn.fresh])
    key_f, key_g = jax.random.split(drawn.key)
    rates_f, rates_g = (jnp.asarray(config[f"learning_rates_{name}"]) for name in "fg")
    target = jnp.asarray(targets(config["data"], n, {config["targets"]: 1})[config["targets"]][:, 0])

    def train(key, rates, inputs, labels, steps, observe, scale=None):
        """One network a rate from the same initialisation, on inputs (times scale, (k, n), for each of them)."""
        net = networks.TwoLayerNetwork.init(x.shape[1], config["width"], config["slope"], True, key=key)
        nets = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(rates), *a.shape)), net)
        _, trace = networks.ensemble(
            nets, inputs, labels, learning_rate=rates, loss=config["loss"], plateau=networks.Plateau(),
            steps=max(steps), trace_at=tuple(sorted(steps)), observe=observe, scale=scale,
        )  # fmt: skip
        chosen = np.array([int(np.flatnonzero(trace.step == step)[0]) for step in steps])
        return jax.tree.map(lambda a: a[:, chosen], trace.observed), np.isfinite(np.asarray(trace.step_loss)).all(1)

    (outputs_f, gradients), finite_f = train(key_f, rates_f, x, y, config["steps_f"], _Seen(z, x))
    direction = TwoLayerNTK(config["slope"], train_bias=True).phi_matmul(x, x, (y / n)[:, None] * x)
    shape = (len(rates_f), len(config["steps_f"]))
    standard, along = np.zeros(shape), np.zeros(shape)
    second = np.zeros((2, *shape, len(config["sizes"]), len(rates_g), len(config["steps_g"])))
    finite_g = True
    for i in range(shape[0]):
        for j in range(shape[1]):
            f, gradient = outputs_f[i, j], gradients[i, j]
            standard[i, j] = accuracy(f[:n], y)
            along[i, j] = np.nan_to_num(jnp.nanmean(jnp.abs(cosine(gradient, direction))))
            if not config["sizes"]:
                continue
            unit = normalise(jnp.nan_to_num(gradient), "l2")
            outputs, finite = _second(train, key_g, config, x, target, unit, rates_g, z)
            finite_g &= finite
            g = jnp.stack(outputs)  # (sizes, rates, steps, m)
            second[:, i, j] = accuracy(g[..., :n], y), accuracy(g[..., n:], jnp.sign(f[n:]))
    return {
        "standard": standard,
        "cosine": along,
        "perturbation": second[0],
        "agreement": second[1],
        "finite_f": np.asarray(finite_f),
        "finite_g": np.asarray(finite_g),
    }


def _second(train, key, config, x, target, unit, rates, z) -> tuple[list[Array], bool]:
    """Outputs (sizes) of (rates, steps, m) of second networks on the perturbations target_n size unit_n."""
    sizes, steps, k, seen = config["sizes"], config["steps_g"], len(rates), _Seen(z)
    if config["scenario"] == "a":
        # All sizes share their directions: one ensemble whose members scale the rows.
        scale = jnp.repeat(jnp.asarray(sizes), k)[:, None] * target[None, :]
        outputs, finite = train(key, jnp.tile(rates, len(sizes)), unit, target, steps, seen, scale)
        return list(outputs.reshape(len(sizes), k, *outputs.shape[1:])), bool(finite.all())
    results = [train(key, rates, x + size * target[:, None] * unit, target, steps, seen) for size in sizes]
    return [outputs for outputs, _ in results], all(bool(finite.all()) for _, finite in results)
