"""The law of one neuron against networks trained by other code: the very same neurons, step by
step, and independent ones in distribution (theory: 14.1, 14.2).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import D, M, N, precision
from theory_tools import draw, outputs, problem, train

import perturbkernel as pk
from perturbkernel import theory

# Both forms of a path: weights where n > d, coefficients where n <= d; a multiple of tiles or not.
CASES = [(0.0, False, N, D), (0.2, True, N, D), (0.2, True, D, 9), (0.0, False, D, 9)]
WIDTH = 50
DESCENT = pk.HeavyBall(0.5, 12, 0.9)
KEY = jax.random.key(0)


@functools.cache
def setting(slope, train_bias, n, d):
    return problem(slope, train_bias, n=n, m=M, d=d)


@functools.cache
def pool(case, neurons=400, dynamics=DESCENT, **options):
    p = setting(*case)
    with precision(np.float64):
        return theory.simulate_neurons(
            p.kernel,
            p.x,
            p.y,
            dynamics=dynamics,
            width=WIDTH,
            neurons=neurons,
            key=KEY,
            **options,
        )


def network(neurons, width=WIDTH):
    """The first sign of a pool as one network of its width: weights, biases, readout."""
    return neurons.start[:, :-1], neurons.start[:, -1], neurons.readout[0] / width**0.5


@pytest.mark.parametrize("case", CASES, ids=str)
def test_neurons_move_as_those_of_a_trained_network(case):
    p, law = setting(*case), pool(case, records=(5, 12))
    for steps in (5, 12):
        time = pk.HeavyBall(0.5, steps, 0.9).effective_time
        neurons = law.neurons(width=WIDTH, time=time)
        w, b, a = network(neurons)
        trained = train((w, b, a), p.x, p.y, p.kernel, rate=0.5, steps=steps)
        expected = np.column_stack(trained.network[:2])
        np.testing.assert_allclose(trained.time, time, rtol=1e-12)
        np.testing.assert_allclose(neurons.trained[0], expected, atol=1e-11)
        # The other sign of each readout is a neuron of its own.
        mirrored = train((w, b, -a), p.x, p.y, p.kernel, rate=0.5, steps=steps)
        expected = np.column_stack(mirrored.network[:2])
        np.testing.assert_allclose(neurons.trained[1], expected, atol=1e-11)
        total = neurons.terms(p.z)[0].sum(axis=0) / WIDTH**0.5
        np.testing.assert_allclose(total, outputs(trained.network, p.z, p.kernel.slope), atol=1e-10)


@pytest.mark.parametrize("case", CASES[1:3], ids=str)
def test_neurons_move_as_optax_moves_them(case):
    p, law = setting(*case), pool(case, records=(5, 12))
    neurons = law.neurons(width=WIDTH)
    w, b, a = network(neurons)
    with precision(np.float64):
        w, b, a = map(jnp.asarray, (w, b, a))
        net = pk.networks.TwoLayerNetwork(w, b, a, p.kernel.slope, p.kernel.train_bias)
        optimizer = optax.sgd(0.5, momentum=0.9)
        trained, _ = pk.networks.train(
            net, jnp.asarray(p.x), jnp.asarray(p.y), optimizer=optimizer, steps=12
        )
    np.testing.assert_allclose(neurons.trained[0][:, :-1], trained.weight, atol=1e-11)
    np.testing.assert_allclose(neurons.trained[0][:, -1], trained.bias, atol=1e-11)


@functools.cache
def trained_outputs(case, networks, dynamics=DESCENT, seed=1):
    """Outputs (networks, m) of independent networks, trained by a loop in NumPy, before and after.

    One loop for all of them: neurons of the identity loss do not interact.
    """
    p = setting(*case)
    many = draw(np.random.default_rng(seed), networks * WIDTH, p.x.shape[1], total=WIDTH)
    if isinstance(dynamics, pk.HeavyBall):
        options = {"rate": 0.5, "steps": dynamics.steps, "momentum": dynamics.momentum}
    else:
        options = {"rate": dynamics.time / 400, "steps": 400, "momentum": 0.0}
    w, b, a = train(many, p.x, p.y, p.kernel, **options).network

    def summed(w, b):
        u = w @ p.z.T + b[:, None]
        terms = a[:, None] * np.where(u > 0, u, p.kernel.slope * u)
        return terms.reshape(networks, WIDTH, -1).sum(axis=1)

    return summed(*many[:2]), summed(w, b)


@pytest.mark.parametrize("case", CASES[1:3], ids=str)
@pytest.mark.parametrize("dynamics", [DESCENT, pk.GradientFlow(20.0)], ids=["descent", "flow"])
def test_mean_and_deviation_are_those_of_independent_networks(case, dynamics):
    p, law = setting(*case), pool(case, 8000, dynamics)
    before, after = trained_outputs(case, 300, dynamics)
    mean = law.mean(p.z, width=WIDTH)
    error = np.hypot(after.std(axis=0) / 300**0.5, mean.standard_error)
    # Eleven correlated scores; 4 is exceeded with probability below 1e-3.
    assert np.abs((after.mean(axis=0) - mean.value) / error).max() < 4
    for start, samples in (("random", after), ("centred", after - before)):
        std = law.std(p.z, width=WIDTH, start=start)
        away = samples - samples.mean(axis=0)
        square = (away**2).mean(axis=0)
        spread = np.sqrt(((away**2 - square) ** 2).mean(axis=0) / 300)
        error = np.hypot(spread / (2 * np.sqrt(square)), std.standard_error)
        assert np.abs((np.sqrt(square) - std.value) / error).max() < 4
        assert (error < 0.15 * std.value).all()
