"""Any optax optimizer trains a network: as in optax's own loop, with whatever it asks for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from perturbkernel import networks

train: Any = networks.train
RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3))
Y = np.sign(X[:, 0])
SEARCH = ("value", "grad", "value_fn")


def network() -> Any:
    make: Any = networks.TwoLayerNetwork
    return make(RNG.normal(size=(4, 3)), RNG.normal(size=4), RNG.normal(size=4), 0.2, True)


NET = network()


def sam(**options) -> Any:
    return optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), **options)


# Each with what it asks for, in words that optax's documentation has.
OPTIMIZERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "sam": (sam(sync_period=3), ()),
    "opaque sam": (sam(opaque_mode=True), ("grad_fn",)),
    "sam in a chain": (optax.chain(optax.clip(0.1), sam(opaque_mode=True)), ("grad_fn",)),
    "MultiSteps": (optax.MultiSteps(optax.adam(0.1), 2), ()),
    "MultiSteps of a search": (optax.MultiSteps(optax.lbfgs(), 2), SEARCH),
    "backtracking": (
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)),
        SEARCH,
    ),
    "Polyak": (optax.polyak_sgd(), ("value",)),
    "schedule-free": (optax.contrib.schedule_free_sgd(0.1), ()),
    "Sophia": (optax.contrib.sophia(0.1), ("obj_fn",)),
    "noise": (optax.noisy_sgd(0.1, key=0), ()),
}


def by_hand(optimizer, asks: tuple[str, ...], steps: int) -> dict[str, jax.Array]:
    def objective(params, value_fn=None):
        u = jnp.asarray(X) @ params["weight"].T + params["bias"][None, :]
        outputs = jnp.where(u > 0, u, 0.2 * u) @ jnp.asarray(NET.readout)
        return ((outputs - jnp.asarray(Y)) ** 2).mean() / 2

    params = {"weight": jnp.asarray(NET.weight), "bias": jnp.asarray(NET.bias)}
    gradient_of = jax.jit(jax.grad(objective))
    offered = {
        "value_fn": objective,
        "obj_fn": objective,
        "grad_fn": lambda params, _: gradient_of(params),
    }

    def update(params, state):
        value, grad = jax.value_and_grad(objective)(params)
        available = {"value": value, "grad": grad} | offered
        extra = {name: available[name] for name in asks}
        updates, state = optimizer.update(grad, state, params, **extra)
        return optax.apply_updates(params, updates), state

    state, update = optimizer.init(params), jax.jit(update)
    for _ in range(steps):
        params, state = update(params, state)
    return params


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_the_loop_of_optax(name, x64):
    optimizer, asks = OPTIMIZERS[name]
    net, trace = train(NET, X, Y, loss="squared", optimizer=optimizer, steps=6, trace_at=())
    wanted = by_hand(optimizer, asks, 6)
    assert trace.status == "ok" and np.abs(net.weight - NET.weight).max() > 0.01
    # Rounding alone, which a line search may enlarge.
    np.testing.assert_allclose(net.weight, wanted["weight"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(net.bias, wanted["bias"], rtol=1e-9, atol=1e-9)


def test_ensembles_and_learners_take_them_too(x64):
    optimizer = OPTIMIZERS["MultiSteps of a search"][0]
    nets = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), NET)
    settings: Any = {"loss": "squared", "optimizer": optimizer, "steps": 6, "trace_at": ()}
    together, _ = networks.ensemble(nets, X, Y, **settings)
    alone, _ = train(NET, X, Y, **settings)
    np.testing.assert_allclose(together.weight[0], alone.weight, rtol=1e-8, atol=1e-8)
    learner: Any = networks.NetworkLearner(4, optimizer=optimizer, steps=2)
    predictor: Any = learner(X, Y, jax.random.key(0))
    assert np.isfinite(predictor(X)).all()


def asking() -> Any:
    def update(updates, state, params=None, *, labels):
        return updates, state

    make: Any = optax.GradientTransformationExtraArgs
    return make(lambda params: optax.EmptyState(), update)


@pytest.mark.parametrize(
    ("optimizer", "error", "match"),
    [
        (
            optax.contrib.differentially_private_aggregate(1.0, 0.1, key=0),
            ValueError,
            "shapes of the parameters.*dpsgd",
        ),
        (asking(), TypeError, "optimizer asks for 'labels' with every gradient, which training"),
        (optax.chain(asking()), TypeError, "optimizer asks for 'labels'"),
        (optax.sgd, TypeError, "optimizer must be an optax one.*got <function sgd"),
        (0.1, TypeError, "optimizer must be an optax one.*got 0.1"),
    ],
)
def test_what_cannot_be_done_is_said(optimizer, error, match):
    with pytest.raises(error, match=match):
        train(NET, X, Y, optimizer=optimizer, steps=2)
