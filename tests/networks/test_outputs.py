"""Networks of K outputs: K readouts of the same neurons."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import perturbkernel as pk
from perturbkernel.networks import (
    Mean,
    NetworkLearner,
    TwoLayerNetwork,
    ensemble,
    paper_optimizer,
    train,
)

D, K, N = 3, 4, 12
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(N, D)), jnp.float32)
LABELS = np.arange(N) % K
Y = pk.one_hot(LABELS, K)


def network(seed=0, width=10, **options):
    key = jax.random.key(seed)
    return TwoLayerNetwork.init(D, width, 0.2, True, outputs=K, key=key, **options)


def by_hand(net, x):
    """Outputs (n, K) in NumPy."""
    w, b, a = (np.asarray(part, float) for part in (net.weight, net.bias, net.readout))
    u = np.asarray(x, float) @ w.T + b
    return np.where(u > 0, u, net.slope * u) @ a


def test_outputs_and_gradients():
    net = network()
    assert net.num_outputs == K and net.readout.shape == (10, K)
    np.testing.assert_allclose(net(X), by_hand(net, X), rtol=1e-5, atol=1e-6)
    weights = jnp.asarray(RNG.normal(size=(N, K)), jnp.float32)
    expected = jax.grad(lambda z: jnp.sum(weights * net(z)))(X)
    np.testing.assert_allclose(net.input_gradient(X, weights), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(network(doubled=True)(X), 0, atol=1e-6)


def test_one_output_draws_what_it_drew():
    """A network of one output is that of a row of d + 2 normal numbers a neuron."""
    net = TwoLayerNetwork.init(D, 10, key=jax.random.key(3))
    drawn = np.asarray(jax.random.normal(jax.random.key(3), (10, D + 2)))
    np.testing.assert_array_equal(net.readout, drawn[:, -1] / np.float32(10) ** 0.5)
    assert net.num_outputs is None


@pytest.mark.parametrize("loss", ["identity", "squared", "softmax"])
def test_training_is_gradient_descent_on_all_outputs(loss):
    net = network()
    record = pk.training.losses.LOSSES[loss]
    trained, trace = train(net, X, Y, loss=loss, optimizer=optax.sgd(0.3), steps=5)
    parameters = {"weight": net.weight, "bias": net.bias}

    def objective(parameters):
        u = X @ parameters["weight"].T + parameters["bias"]
        outputs = jnp.where(u > 0, u, net.slope * u) @ net.readout
        return record.value(outputs, Y).mean()

    step = jax.jit(jax.grad(objective))
    for _ in range(5):
        parameters = jax.tree.map(lambda p, g: p - 0.3 * g, parameters, step(parameters))
    np.testing.assert_allclose(trained.weight, parameters["weight"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(trained.bias, parameters["bias"], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(trained.readout, net.readout)
    right = np.argmax(by_hand(trained, X), 1) == LABELS
    assert float(trace.accuracy[-1]) == pytest.approx(right.mean(), abs=1e-6)


def test_members_of_an_ensemble_are_trained_as_alone():
    nets = jax.vmap(lambda key: TwoLayerNetwork.init(D, 10, outputs=K, key=key))(
        jax.random.split(jax.random.key(1), 2)
    )
    targets = np.stack([Y, np.roll(Y, 1, axis=0)])
    options = {"loss": "softmax", "steps": 4}
    together, _ = ensemble(nets, X, targets, learning_rate=0.2, momentum=0.9, **options)
    assert together(X).shape == (2, N, K)
    for i in range(2):
        own = jax.tree.map(lambda a, i=i: a[i], nets)
        alone, _ = train(own, X, targets[i], optimizer=paper_optimizer(0.2), **options)
        np.testing.assert_allclose(together(X)[i], alone(X), rtol=1e-4, atol=1e-6)


def test_wide_networks_approach_the_limit():
    """The mean of trained doubled networks, whose f0 is zero, is the kernel limit of K outputs."""
    time, width, members = 0.5, 2000, 16
    learner = NetworkLearner(
        width, optimizer=optax.sgd(time / 5), steps=5, start="doubled", members=members
    )
    f = learner(X, Y, jax.random.key(0))
    assert isinstance(f, Mean)
    networks = f.networks
    limit = pk.fit(pk.TwoLayerNTK(), X, Y, dynamics=pk.GradientFlow(time))
    weights = jnp.broadcast_to(jnp.arange(K, dtype=jnp.float32), (N, K))
    for of_each, expected in (
        (networks(X), limit(X)),
        (networks.input_gradient(X, weights), limit.input_gradient(X, weights)),
    ):
        each = np.asarray(of_each, float)
        error = each.mean(0) - np.asarray(expected)
        deviations = error / (each.std(0, ddof=1) / np.sqrt(members))
        # Student's t with 15 degrees of freedom: beyond 5.5 once in 16,000 of these 84 numbers.
        assert np.abs(deviations).max() < 5.5
        # So small against the limit that another limit would be told from it.
        assert np.linalg.norm(error) < 0.5 * np.linalg.norm(expected)


def test_perturbations_of_many_classes_teach_networks():
    rng = np.random.default_rng(1)
    centres = 3 * np.eye(K, 6)
    labels = np.arange(80) % K
    inputs = centres[labels] + 0.3 * rng.normal(size=(80, 6))
    data = pk.data.from_arrays(inputs, labels, classes=range(K))
    learner = NetworkLearner(400, optimizer=optax.sgd(0.5), steps=20, start="centred")
    r = pk.learn_from_perturbations(learner, data, size=1.0, targets="next", key=jax.random.key(0))
    f, g = r.accuracy()
    assert float(f) > 0.95 and float(g) > 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train(network(), X, Y[:, :2], optimizer=optax.sgd(0.1), steps=1), "a column for"),
        (lambda: train(network(), X, Y[:, 0], optimizer=optax.sgd(0.1), steps=1), "one row a row"),
        (
            lambda: train(network(), X, Y, loss="logistic", optimizer=optax.sgd(0.1), steps=1),
            "loss must be one of",
        ),
        (
            lambda: train(network(), X, 3 * Y, loss="softmax", optimizer=optax.sgd(0.1), steps=1),
            "y of the softmax loss must be pk.one_hot",
        ),
        (lambda: network().input_gradient(X), "weights must be of shape"),
        (lambda: TwoLayerNetwork.init(D, 4, outputs=1, key=jax.random.key(0)), "outputs must be"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
