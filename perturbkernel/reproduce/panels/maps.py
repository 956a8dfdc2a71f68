"""Decision maps: both networks, and the theory's predictors, on the plane of the class means.

A point of the map is s e1 + t e2 with e1, e2 the unit vectors along the mean of the +1 and of the
-1 inputs, not orthogonalised; inputs are shown by their inner products with e1 and e2.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from perturbkernel.attacks.norms import normalise
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.learning.experiment import learn_from_perturbations
from perturbkernel.networks.ensembles import NetworkLearner
from perturbkernel.networks.optimizers import Plateau, paper_optimizer
from perturbkernel.reproduce.panels.datasets import draw
from perturbkernel.reproduce.panels.setting import Setting, from_config
from perturbkernel.reproduce.records import Arrays, Config, Json
from perturbkernel.training.dynamics import GradientFlow
from perturbkernel.training.fit import KernelLearner

_SLICE = 4096  # points of the plane at a time: the plane itself need not fit beside everything else


def _plane(x: Array, y: Array, limits, grid: int) -> tuple[Array, Array]:
    """The unit vectors (2, d) and the coordinates (grid^2, 2), s varying fastest."""
    positive = x[y == 1].mean(0)
    negative = x[y == -1].mean(0)
    means = jnp.stack([positive, negative])
    low, high = limits
    ticks = jnp.linspace(low, high, grid)
    coordinates = jnp.stack(jnp.meshgrid(ticks, ticks), axis=-1)
    return normalise(means, "l2"), coordinates.reshape(-1, 2)


def _evaluate(functions: Json, axes: Array, coordinates: Array, grid: int) -> Arrays:
    parts: dict[str, list] = {name: [] for name in functions}
    for start in range(0, len(coordinates), _SLICE):
        z = coordinates[start : start + _SLICE] @ axes
        for name, function in functions.items():
            parts[name].append(np.asarray(function(z)))
    return {name: np.concatenate(values).reshape(grid, grid) for name, values in parts.items()}


def _map(config: Config, learner, learner_g) -> Arrays:
    drawn = draw(config["data"])
    setting = from_config(config["setting"])
    x, y, n = drawn.x, drawn.y, len(drawn.y)
    r = learn_from_perturbations(
        learner,
        (x, y),
        scenario=setting.scenario,
        size=setting.size,
        targets=config["targets"],
        learner_g=learner_g,
        key=jax.random.fold_in(drawn.key, 3),
    )
    # The paper's f-hat and g-hat leave the bias out.
    theory = TwoLayerNTK(setting.slope, train_bias=False)
    v = theory.phi_matmul(x, x, (y / n)[:, None] * x)

    def f_hat(z):
        return theory.matvec(z, x, y / n)

    def g_hat(z):
        return jnp.sum(theory.phi_matmul(z, r.perturbed, v / n) * z, axis=1)

    axes, coordinates = _plane(x, y, config["limits"], config["grid"])
    values = _evaluate(
        {"f": r.f, "g": r.g, "f_hat": f_hat, "g_hat": g_hat}, axes, coordinates, config["grid"]
    )
    return values | {"points": np.asarray(x @ axes.T), "labels": np.asarray(y)}


def map_limit_cell(config: Config) -> Arrays:
    """The infinitely wide networks from zero, whose signs no time changes.

    "f", "g" on the grid (rows: second axis), the theory's "f_hat", "g_hat" without bias, inputs as
    "points", "labels".
    """
    setting = from_config(config["setting"])
    learner = KernelLearner(
        TwoLayerNTK(setting.slope, train_bias=True), "identity", GradientFlow(1.0)
    )
    return _map(config, learner, learner)


def map_network_cell(config: Config) -> Arrays:
    """The same with networks of finite width, trained by the paper's recipe."""

    def learner(setting: Setting, rate: float, steps: int) -> NetworkLearner:
        return NetworkLearner(
            setting.width,
            setting.slope,
            True,
            setting.loss,
            optimizer=paper_optimizer(rate),
            steps=steps,
            plateau=Plateau(),
        )

    setting = from_config(config["setting"])
    return _map(
        config,
        learner(setting, setting.learning_rates_f[0], setting.steps_f),
        learner(setting, setting.learning_rates_g[0], setting.steps_g),
    )
