"""losses.py: every record against derivatives of its value, and a loss that is added as one entry."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import DTYPES, precision

import perturbkernel as pk
from perturbkernel.cli.main import build_parser
from perturbkernel.training.losses import LOSSES, Kind, Margin, loss_names, margin_loss

fit: Any = pk.fit
train: Any = pk.networks.train
N, D, K = 30, 3, 4
RNG = np.random.default_rng(6)
X = RNG.normal(size=(N, D))
Y = np.where(X[:, 0] + RNG.normal(size=N) > 0, 1.0, -1.0)
CLASSES = RNG.integers(K, size=N)


def drawn(name: str, several: bool, dtype: Any) -> tuple[Any, Any]:
    """Outputs and targets, (N,) or (N, K), that are allowed for the loss."""
    shape = (N, K) if several else (N,)
    outputs = 3 * RNG.normal(size=shape)
    targets = np.where(RNG.random(shape) < 0.5, -1.0, 1.0)
    if LOSSES[name].kind is Kind.SOFTMAX:
        targets = np.asarray(pk.one_hot(CLASSES, K))
    elif not LOSSES[name].labels:
        targets = RNG.normal(size=shape)
    return jnp.asarray(outputs, dtype), jnp.asarray(targets, dtype)


CASES = [(name, several) for several in (False, True) for name in loss_names(several)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "several"), CASES)
def test_force_and_curvature_are_those_of_the_value(name, several, dtype):
    loss = LOSSES[name]
    limit = 1e-5 if dtype == np.float32 else 1e-12

    def of_one_point(output, target):
        return loss.value(output[None], target[None])[0]

    @jax.jit
    def everything(outputs, targets):
        return (
            loss.value(outputs, targets),
            loss.force(targets, outputs),
            loss.curvature(targets, outputs),
            jax.grad(lambda f: loss.value(f, targets).sum())(outputs),
            jax.vmap(jax.hessian(of_one_point))(outputs, targets),
        )

    with precision(dtype):
        outputs, targets = drawn(name, several, dtype)
        value, force, curvature, gradient, hessians = everything(outputs, targets)
    curvature = float(curvature)
    assert value.shape == (N,) and value.dtype == force.dtype == dtype
    assert force.shape == outputs.shape
    np.testing.assert_allclose(force, -gradient, rtol=limit, atol=limit)
    outputs_a_point = outputs[0].size
    steepest = np.linalg.eigvalsh(hessians.reshape(N, outputs_a_point, outputs_a_point)).max()
    # A bound that is not far off: only at the worst outputs is it reached.
    assert 0.5 * curvature <= steepest + limit
    assert steepest <= curvature * (1 + limit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].margin])
def test_margins_are_derivatives_of_one_another(name, dtype):
    margin = LOSSES[name].margin
    assert margin is not None

    @jax.jit
    def both(s):
        derivatives = jax.vmap(jax.grad(margin.value))(s), jax.vmap(jax.grad(margin.speed))(s)
        return derivatives, (margin.speed(s), margin.bend(s))

    with precision(dtype):
        # Not at 1, where a kink would lie.
        derivatives, given = both(np.linspace(-20, 20, 40, dtype=dtype))
    speed, bend = (-np.asarray(derivative) for derivative in derivatives)
    limit = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(given, (speed, bend), rtol=limit, atol=limit)
    assert all((np.asarray(values) >= 0).all() for values in given)


@pytest.mark.parametrize("name", ["identity", "softmax"])
def test_centred_targets_and_probabilities_are_the_same_training(name, x64):
    """The loss itself changes by a constant for softmax only where rows of targets are centred."""
    outputs, _ = drawn(name, True, np.float64)
    centred = jnp.asarray(pk.one_hot(CLASSES, K))
    probabilities = centred + 1 / K
    difference = LOSSES[name].force(probabilities, outputs) - LOSSES[name].force(centred, outputs)
    wanted = 0.0 if name == "softmax" else 1 / K
    np.testing.assert_allclose(difference, wanted, atol=1e-15)


# --- a loss that is added ---


def hinge(s):
    return jnp.maximum(1 - s, 0)


SQUARED_HINGE = margin_loss(
    "squared_hinge",
    "mean of max(0, 1 - y f)^2 / 2",
    Margin(lambda s: hinge(s) ** 2 / 2, hinge, lambda s: jnp.where(s < 1, 1.0, 0.0)),
    curvature=1.0,
)


@pytest.fixture
def added(monkeypatch):
    monkeypatch.setitem(LOSSES, "squared_hinge", SQUARED_HINGE)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Linear(pk.Kernel):
    """x . z: the tangent kernel of a linear model, whose descent is a few lines of NumPy."""

    def tile(self, name, z, x):
        return z @ x.T


def pull(weights: np.ndarray) -> np.ndarray:
    """Minus the gradient of the mean squared hinge loss in the weights of the linear model, (D,)."""
    margins = Y * (X @ weights)
    force = Y * np.maximum(1 - margins, 0)
    return X.T @ force / N


def test_an_added_loss_is_trained_by_heavy_ball(added, x64):
    weights, velocity = np.zeros(D), np.zeros(D)
    for _ in range(60):
        velocity = 0.9 * velocity + pull(weights)
        weights = weights + 0.05 * velocity
    dynamics = pk.HeavyBall(0.05, 60)
    f = fit(Linear(), X, Y, loss="squared_hinge", dynamics=dynamics)
    assert f.status == "ok"
    np.testing.assert_allclose(f(X), X @ weights, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("memory", [None, 0], ids=["held", "in tiles"])
def test_an_added_loss_is_trained_by_flow(added, memory, x64):
    """By both methods for flows: explicit with a matrix, implicit without. Small steps of descent
    are right to their length, which extrapolation from two lengths squares.
    """
    found = {}
    for steps in (4000, 8000):
        weights = np.zeros(D)
        for _ in range(steps):
            weights = weights + 4.0 / steps * pull(weights)
        found[steps] = weights
    weights = 2 * found[8000] - found[4000]
    dynamics = pk.GradientFlow(4.0)
    f = fit(Linear(), X, Y, loss="squared_hinge", dynamics=dynamics, memory=memory, tolerance=1e-7)
    assert f.status == "ok"
    assert ("products" in f.stats) == (memory == 0)
    np.testing.assert_allclose(f(X), X @ weights, rtol=1e-4, atol=1e-5)


def test_an_added_loss_is_known_everywhere(added):
    assert "squared_hinge" in loss_names() and "squared_hinge" not in loss_names(several=True)
    test_every_loss_is_accepted_by_networks("squared_hinge")
    test_every_loss_is_a_choice_of_the_command("squared_hinge")
    with pytest.raises(ValueError, match=r"squared_hinge.* does not go with these targets"):
        fit(Linear(), X, pk.one_hot(CLASSES, K), loss="squared_hinge")
    with pytest.raises(ValueError, match="time must be finite for the squared_hinge loss"):
        fit(Linear(), X, Y, loss="squared_hinge", dynamics=pk.GradientFlow(float("inf")))
    with pytest.raises(ValueError, match="'squared_hinge'; got 'no_such_loss'"):
        fit(Linear(), X, Y, loss="no_such_loss")


# --- every loss ---


@pytest.mark.parametrize(("name", "several"), CASES)
@pytest.mark.parametrize("dynamics", [pk.GradientFlow(0.5), pk.HeavyBall(0.1, 3)])
def test_every_loss_is_accepted_by_fit(name, several, dynamics):
    targets = pk.one_hot(CLASSES, K) if several else Y
    f = fit(pk.TwoLayerNTK(), X, targets, loss=name, dynamics=dynamics)
    assert f.status == "ok" and f.loss == name
    outputs, targets = f(X), jnp.asarray(targets, np.float32)
    value = LOSSES[name].value
    assert value(outputs, targets).mean() < value(jnp.zeros_like(outputs), targets).mean()


@pytest.mark.parametrize("name", loss_names())
def test_every_loss_is_accepted_by_networks(name):
    net: Any = pk.networks.TwoLayerNetwork.init(D, 8, key=jax.random.key(0))
    _, trace = train(net, X, Y, loss=name, optimizer=optax.sgd(0.01), steps=2)
    value = LOSSES[name].value(net(X), jnp.asarray(Y, np.float32)).mean()
    assert trace.loss[0] == pytest.approx(float(value), rel=1e-5)
    assert trace.loss[-1] < trace.loss[0]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_a_choice_of_the_command(name):
    args = build_parser().parse_args(["run", "--loss", name, "--loss-g", name])
    assert (args.loss, args.loss_g) == (name, name)


@pytest.mark.parametrize("dynamics", [pk.GradientFlow(0.5), pk.HeavyBall(0.1, 3)])
@pytest.mark.parametrize(("name", "several"), CASES)
def test_float32_inputs_where_x64_is_enabled_and_promotion_is_strict(name, several, dynamics, x64):
    inputs = X.astype(np.float32)
    targets = np.asarray(pk.one_hot(CLASSES, K)) if several else Y
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        f = fit(pk.TwoLayerNTK(), inputs, targets, loss=name, dynamics=dynamics)
        outputs, narrow = f(X), f(inputs)
    assert outputs.dtype == np.float64
    np.testing.assert_allclose(narrow, outputs, rtol=1e-4, atol=1e-5)
