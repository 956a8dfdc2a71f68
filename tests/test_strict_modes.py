"""What computes works where JAX forbids implicit promotion of ranks and of dtypes.

The tests of attacks, kernels, learning and training run in these modes (_STRICT of conftest.py).
Here is what they leave out: networks, data, noise as a carrier, and that results are the same.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest

import perturbkernel as pk
from perturbkernel import networks

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, Z = (RNG.normal(size=(n, 4)).astype(np.float32) for n in (9, 5))
Y = np.where(X[:, 0] > 0, 1.0, -1.0).astype(np.float32)
KERNEL = pk.TwoLayerNTK(0.2, train_bias=True)
NETWORK: Any = networks.TwoLayerNetwork.init(4, 8, 0.2, True, key=KEY)
train: Any = networks.train
ensemble: Any = networks.ensemble


def evaluated(learner: Any = None, **settings) -> Any:
    learner = pk.KernelLearner(KERNEL) if learner is None else learner
    r = pk.learn_from_perturbations(learner, (X, Y), size=0.5, key=KEY, **settings)
    data = pk.Dataset(X, Y)
    return r.evaluate(data)["accuracy"], r.accuracy(data, per_class=True), r.agreement(Z)


def many(n: int = 600) -> Any:
    """Enough points for large tiles, duplicates and opposite points among them."""
    x = np.random.default_rng(1).normal(size=(n, 4)).astype(np.float32)
    x[1], x[2] = x[0], -x[0]
    return x


def drawn(**settings) -> Any:
    draw = lambda key: networks.TwoLayerNetwork.init(4, 8, key=key, **settings)  # noqa: E731
    return jax.vmap(draw)(jax.random.split(KEY, 2))


BATCHES = {"batch_size": 4, "plateau": networks.Plateau(), "key": KEY}
FUNCTIONS: dict[str, Callable] = {
    "large sums": lambda: KERNEL.matvec(many(), many(), np.ones(600)),
    "weighted": lambda: KERNEL.input_gradient(Z, X, np.ones((9, 2)), np.ones((5, 2))),
    "network": lambda: (NETWORK(Z), NETWORK.input_gradient(Z), NETWORK.empirical_ntk(Z)),
    "networks": lambda: (drawn()(Z), drawn(doubled=True).empirical_ntk(X, Z)),
    "train": lambda: train(NETWORK, X, Y, optimizer=networks.paper_optimizer(0.1), steps=3),
    "train in batches": lambda: train(NETWORK, X, Y, optimizer=optax.adam(0.1), steps=3, **BATCHES),
    "ensemble": lambda: ensemble(drawn(), X, Y, scale=np.ones((2, 9)), learning_rate=0.1, steps=3),
    "network learner": lambda: evaluated(
        learner=networks.NetworkLearner(8, optimizer=optax.sgd(0.1), steps=2, members=2)
    ),
    "logistic": lambda: pk.fit(KERNEL, X, Y, loss="logistic", dynamics=pk.GradientFlow(0.5))(Z),
    "noise": lambda: evaluated(carrier="uniform", at="carrier", carrier_points=5),
    "data": lambda: pk.data.shifted_gaussian(6, 3, key=KEY).split(0.5, key=KEY),
    "attack": lambda: pk.attack(pk.fit(KERNEL, X, Y), X, Y, size=0.1, steps=2, bounds=(-3.0, 3.0)),
}


def strict(function: Callable, *, x64: bool) -> Any:
    with (
        jax.enable_x64(x64),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        return function()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_are_the_same_in_strict_modes(name):
    function = FUNCTIONS[name]
    wanted, found = jax.tree.leaves(function()), jax.tree.leaves(strict(function, x64=False))
    for a, b in zip(wanted, found, strict=True):
        if np.asarray(a).dtype.kind in "fib":
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# In float64 indices and default numbers have other widths than what the callers gave.
@pytest.mark.parametrize("name", ["large sums", "train in batches", "logistic", "network"])
def test_strict_modes_in_float64(name):
    for leaf in jax.tree.leaves(strict(FUNCTIONS[name], x64=True)):
        assert not np.isnan(np.asarray(leaf, float)).any()
