"""The deterministic limit with moving features: its pools of neurons that interact against a loop
in NumPy, and the experiment of the paper in it (theory: 14.4, 14.6).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import D, M, N, precision
from theory_tools import act, gate, problem

import perturbkernel as pk
from perturbkernel import theory

WIDTH, NEURONS = 50, 200
DESCENT = pk.HeavyBall(0.5, 12, 0.9)
KEY = jax.random.key(0)
FORCES = {
    "identity": lambda f, y: y,
    "logistic": lambda f, y: y / (1 + np.exp(y * f)),
    "squared": lambda f, y: y - f,
}


def pool(p, dynamics=DESCENT):
    """The start of the neurons that the learner draws from the same key, both signs."""
    options = {"dynamics": dynamics, "width": WIDTH, "neurons": NEURONS, "key": KEY}
    law = theory.simulate_neurons(p.kernel, p.x, p.y, **options)
    start = np.concatenate([law.start, law.start]).astype(float)
    return start, law.readout.reshape(-1).astype(float)


def interacting(p, loss, rates, momentum):
    """Mean-field outputs at z after descent of all neurons together."""
    theta, alpha = pool(p)
    points = np.column_stack([p.x, np.ones(len(p.x))])
    pulled = np.column_stack([p.x, np.full(len(p.x), float(p.kernel.train_bias))])
    velocity = np.zeros_like(theta)

    def output(z):
        terms = alpha[:, None] * act(theta @ z.T, p.kernel.slope)
        return WIDTH**0.5 * terms.mean(axis=0)

    for rate in rates:
        force = FORCES[loss](output(points), p.y) / len(p.x)
        drift = (gate(theta @ points.T, p.kernel.slope) * force) @ pulled
        velocity = momentum * velocity + drift
        theta = theta + rate / WIDTH**0.5 * alpha[:, None] * velocity
    return output(np.column_stack([p.z, np.ones(len(p.z))]))


@pytest.mark.parametrize("loss", FORCES)
def test_neurons_that_interact(loss):
    p = problem(0.2, True, n=N, m=M, d=D)
    learner = theory.MeanFieldLearner(
        p.kernel, dynamics=DESCENT, width=WIDTH, neurons=NEURONS, loss=loss
    )
    with precision(np.float64):
        f = learner(jnp.asarray(p.x), jnp.asarray(p.y), KEY)
        found = np.asarray(f(jnp.asarray(p.z)))
    expected = interacting(p, loss, DESCENT.rates, DESCENT.momentum)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_flow_of_neurons_that_interact():
    p = problem(0.2, True, n=N, m=M, d=D)
    options = {"dynamics": pk.GradientFlow(5.0), "width": WIDTH, "neurons": NEURONS}
    learner = theory.MeanFieldLearner(p.kernel, loss="logistic", steps=50, **options)
    f = learner(jnp.asarray(p.x, "float32"), jnp.asarray(p.y, "float32"), KEY)
    expected = interacting(p, "logistic", np.full(50, 0.1), 0.0)
    np.testing.assert_allclose(f(jnp.asarray(p.z, "float32")), expected, rtol=2e-3, atol=2e-4)


def test_small_scaled_time_is_the_kernel_limit():
    p = problem(0.2, True, n=N, m=M, d=D)
    learner = theory.MeanFieldLearner(p.kernel, dynamics=pk.GradientFlow(0.02), neurons=8_000)
    f = learner(p.x, p.y, KEY)
    f_hat = theory.f_hat(*p.data)
    # 10^4 pairs: 2 % of the largest.
    off = np.asarray(f(jnp.asarray(p.z, "float32"))) / 0.02 - f_hat
    assert np.abs(off).max() < 0.06 * np.abs(f_hat).max()


@pytest.mark.slow
def test_the_whole_experiment_with_moving_features():
    """f and g of the limit are those of wide networks with the same scaled times."""
    train = pk.data.shifted_gaussian(N, D, shift=0.6, key=jax.random.key(1))
    kernel = pk.TwoLayerNTK(0.0, True)
    rich = theory.MeanFieldLearner(kernel, dynamics=pk.GradientFlow(2.0), neurons=8_000)
    rich_g = theory.MeanFieldLearner(kernel, dynamics=pk.GradientFlow(6.0), neurons=8_000)
    options = {"size": 1.0, "targets": "balanced", "key": KEY}
    result = pk.learn_from_perturbations(rich, train, learner_g=rich_g, **options)
    width = 16_000
    wide = {"width": width, "train_bias": True, "start": "doubled"}

    def learner(time):
        # The same number of steps as the limit's midpoints: Euler is close enough here.
        rate = time * width**0.5 / 200
        optimizer = pk.networks.paper_optimizer(rate, momentum=0.0)
        return pk.networks.NetworkLearner(**wide, optimizer=optimizer, steps=200)

    networks = pk.learn_from_perturbations(learner(2.0), train, learner_g=learner(6.0), **options)
    for one, other in ((result.f, networks.f), (result.g, networks.g)):
        limit = np.asarray(one(train.inputs))
        network = np.asarray(other(train.inputs)) / width**0.5
        assert np.corrcoef(limit, network)[0, 1] > 0.99
        np.testing.assert_allclose(limit, network, atol=0.1 * np.abs(limit).max())
    assert result.cosine is not None and networks.cosine is not None
    np.testing.assert_allclose(result.cosine, networks.cosine, atol=0.03)
    assert result.diagnosis is not None


def test_bad_arguments_are_told():
    kernel = pk.TwoLayerNTK()
    with pytest.raises(ValueError, match="loss must be one of"):
        theory.MeanFieldLearner(kernel, dynamics=DESCENT, loss="hinge")
    with pytest.raises(ValueError, match="neurons must be even"):
        theory.MeanFieldLearner(kernel, dynamics=DESCENT, neurons=101)
    with pytest.raises(ValueError, match="mesh must be None for the squared loss"):
        mesh = jax.make_mesh((1,), ("i",))
        theory.MeanFieldLearner(kernel, dynamics=DESCENT, loss="squared", mesh=mesh)
