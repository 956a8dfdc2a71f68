"""Everything that computes works where JAX forbids implicit promotion of ranks and of dtypes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import perturbkernel as pk
from perturbkernel import networks
from perturbkernel.learning import curves as studies

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, Z = (RNG.normal(size=(n, 4)).astype(np.float32) for n in (9, 5))
Y = np.where(X[:, 0] > 0, 1.0, -1.0).astype(np.float32)
COEF = RNG.normal(size=9).astype(np.float32)
LABELS = np.arange(9) % 3
KERNEL = pk.TwoLayerNTK(0.2, train_bias=True)
NETWORK: Any = networks.TwoLayerNetwork.init(4, 8, 0.2, True, key=KEY)
FLOW, STEPS = pk.GradientFlow(0.5), pk.HeavyBall(0.1, 5)
train: Any = networks.train
ensemble: Any = networks.ensemble


def fitted(loss: str, dynamics: Any = FLOW, **settings) -> Callable:
    def call():
        targets = pk.one_hot(LABELS, 3) if loss == "softmax" else Y
        f = pk.fit(KERNEL, X, targets, loss=loss, dynamics=dynamics, **settings)
        return f(Z), f.dual_coef

    return call


def learned(data: Any = (X, Y), learner: Any = None, **settings) -> Any:
    learner = pk.KernelLearner(KERNEL) if learner is None else learner
    return pk.learn_from_perturbations(learner, data, size=0.5, key=KEY, **settings)


def evaluated(data: Any = (X, Y), **settings) -> Any:
    r = learned(data, **settings)
    whole = data if isinstance(data, pk.Dataset) else pk.Dataset(*data)
    return r.evaluate(whole)["accuracy"], r.accuracy(whole, per_class=True), r.agreement(Z)


def three_classes() -> Any:
    return pk.data.from_arrays(X, LABELS, classes=(0, 1, 2))


def on_points(attack: Any, **settings) -> Callable:
    def call():
        f = pk.fit(KERNEL, X, Y)
        return attack(f, X, Y, **settings)

    return call


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
    "kernel": lambda: (KERNEL.ntk(X, Z), KERNEL.nngp(X), KERNEL.phi(X, Z)),
    "large matrix": lambda: KERNEL.ntk(many()),
    "large sums": lambda: KERNEL.matvec(many(), many(), np.ones(600)),
    "large gradients": lambda: KERNEL.input_gradient(many(), many(), np.ones(600)),
    "mixed precision": lambda: KERNEL.matvec(Z.astype(float), X, np.arange(9)),
    "columns": lambda: KERNEL.matvec(Z, X, COEF[:, None]),
    "gates": lambda: KERNEL.phi_matmul(Z, X, X),
    "architecture": lambda: pk.ArchitectureNTK.fully_connected(2).input_gradient(X, X, COEF),
    "gradients": lambda: KERNEL.input_gradient(X, X, COEF),
    "weighted": lambda: KERNEL.input_gradient(Z, X, np.ones((9, 2)), np.ones((5, 2))),
    "derivatives": lambda: jax.grad(lambda *a: KERNEL.matvec(*a).sum(), (0, 1, 2))(
        jnp.asarray(Z), jnp.asarray(X), jnp.asarray(COEF)
    ),
    "jit": lambda: jax.jit(lambda z: KERNEL.matvec(z, X, COEF))(Z),
    "network": lambda: (NETWORK(Z), NETWORK.input_gradient(Z), NETWORK.empirical_ntk(Z)),
    "networks": lambda: (drawn()(Z), drawn(doubled=True).empirical_ntk(X, Z)),
    "train": lambda: train(NETWORK, X, Y, optimizer=networks.paper_optimizer(0.1), steps=3),
    "train in batches": lambda: train(NETWORK, X, Y, optimizer=optax.adam(0.1), steps=3, **BATCHES),
    "ensemble": lambda: ensemble(drawn(), X, Y, scale=np.ones((2, 9)), learning_rate=0.1, steps=3),
    "network learner": lambda: evaluated(
        learner=networks.NetworkLearner(8, optimizer=optax.sgd(0.1), steps=2, members=2)
    ),
    "identity": fitted("identity", STEPS),
    "squared": fitted("squared"),
    "interpolation": fitted("squared", pk.GradientFlow(np.inf)),
    "squared, iterative": fitted("squared", memory=0),
    "logistic": fitted("logistic"),
    "logistic, iterative": fitted("logistic", STEPS, memory=0),
    "exponential": fitted("exponential", STEPS),
    "softmax": fitted("softmax"),
    "initial function": fitted("squared", initial=lambda z: jnp.sin(z[:, 0])),
    "scenario a": evaluated,
    "scenario b": lambda: evaluated(scenario="b", targets="balanced", norm="linf"),
    "noise": lambda: evaluated(carrier="uniform", at="carrier", carrier_points=5),
    "controls": lambda: [learned().control(name)(Z) for name in ("random", "shuffled")],
    "classes": lambda: evaluated(three_classes(), targets="random_other"),
    "shuffled classes": lambda: learned(three_classes()).control("shuffled")(Z),
    "sizes": lambda: studies.accuracy_against_size(learned(), pk.Dataset(X, Y), [0.1, 0.2]),
    "decision map": lambda: studies.decision_map(learned(), 5),
    "data": lambda: pk.data.shifted_gaussian(6, 3, key=KEY).split(0.5, key=KEY),
    "perturb": on_points(pk.perturb, size=0.1, direction="frozen_gates", norm="linf"),
    "attack": on_points(pk.attack, size=0.1, steps=2, starts=2, bounds=(-3.0, 3.0), key=KEY),
    "attack, l0": on_points(pk.attack, size=2, norm="l0", steps=2, bounds=(-3.0, 3.0)),
    "attack, l1": on_points(pk.attack, size=0.1, norm="l1", steps=2),
    "universal": on_points(pk.universal, size=0.1, norm="linf", steps=2),
    "minimum norm": lambda: pk.minimum_norm(pk.fit(KERNEL, X, Y), X, steps=2),
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
