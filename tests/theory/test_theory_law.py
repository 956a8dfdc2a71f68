"""The law of one neuron against networks trained by other code: the very same neurons step by step,
and independent networks in distribution (theory: 14.1 to 14.3).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from common import D, M, N, precision
from theory_tools import act, draw, gate, outputs, problem, train

import perturbkernel as pk
from perturbkernel import theory
from perturbkernel.theory.law import gradients

# Both forms of a path: weights where n > d, coefficients where n <= d.
WEIGHTS, COEFFICIENTS = (0.2, True, N, D), (0.2, True, D, 9)
CASES = [WEIGHTS, COEFFICIENTS, (0.0, False, N, D), (0.0, False, D, 9)]
WIDTH = 50
DESCENT = pk.HeavyBall(0.5, 12, 0.9)
FLOW = pk.GradientFlow(20.0)
KEY = jax.random.key(0)
#: Scores of a dozen correlated estimates: 4 is exceeded with probability below 1e-3.
SCORE = 4


@functools.cache
def setting(slope, train_bias, n, d):
    return problem(slope, train_bias, n=n, m=M, d=d)


@functools.cache
def pool(case, neurons=400, dynamics=DESCENT, width=WIDTH, **options):
    p = setting(*case)
    options = {"dynamics": dynamics, "width": width, "neurons": neurons, "key": KEY} | options
    with precision(np.float64):
        return theory.simulate_neurons(p.kernel, p.x, p.y, **options)


def network(neurons, sign=0, width=WIDTH):
    """One sign of a pool as a network: weights, biases, readout."""
    return neurons.start[:, :-1], neurons.start[:, -1], neurons.readout[sign] / width**0.5


def columns(trained):
    return np.column_stack(trained.network[:2])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_neurons_move_as_those_of_a_trained_network(case):
    p, law = setting(*case), pool(case, records=(5, 12))
    for steps in (5, 12):
        time = pk.HeavyBall(0.5, steps, 0.9).effective_time
        neurons = law.neurons(width=WIDTH, time=time)
        for sign in (0, 1):
            net = network(neurons, sign)
            trained = train(net, p.x, p.y, p.kernel, rate=0.5, steps=steps)
            np.testing.assert_allclose(neurons.trained[sign], columns(trained), atol=1e-11)
            np.testing.assert_allclose(trained.time, time, rtol=1e-12)
            total = neurons.terms(p.z)[sign].sum(axis=0) / WIDTH**0.5
            expected = outputs(trained.network, p.z, p.kernel.slope)
            np.testing.assert_allclose(total, expected, atol=1e-10)
            change = neurons.terms(p.z, centred=True)[sign].sum(axis=0) / WIDTH**0.5
            before = outputs(net, p.z, p.kernel.slope)
            np.testing.assert_allclose(change, expected - before, atol=1e-10)


@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_neurons_move_as_optax_moves_them(case):
    p, neurons = setting(*case), pool(case, records=(5, 12)).neurons()
    with precision(np.float64):
        w, b, a = map(jnp.asarray, network(neurons))
        net = pk.networks.TwoLayerNetwork(w, b, a, p.kernel.slope, p.kernel.train_bias)
        optimizer = optax.sgd(0.5, momentum=0.9)
        x, y = jnp.asarray(p.x), jnp.asarray(p.y)
        trained, _ = pk.networks.train(net, x, y, optimizer=optimizer, steps=12)
    np.testing.assert_allclose(neurons.trained[0][:, :-1], trained.weight, atol=1e-11)
    np.testing.assert_allclose(neurons.trained[0][:, -1], trained.bias, atol=1e-11)


def test_flow_is_the_limit_of_small_steps():
    # Many points: G changes in small jumps, so that the midpoint rule has its order.
    case = (0.2, True, 300, D)
    p, law = setting(*case), pool(case, 100, FLOW)
    neurons = law.neurons()

    def euler(steps):
        net = network(neurons)
        moved = train(net, p.x, p.y, p.kernel, rate=20 / steps, steps=steps, momentum=0)
        return columns(moved) - neurons.start

    exact = euler(4000)
    size = np.linalg.norm(exact)
    error = np.linalg.norm(neurons.moved[0] - exact) / size
    # 200 steps of Euler evaluate G as often.
    assert error < 0.5 * np.linalg.norm(euler(200) - exact) / size
    assert error < 2e-3


def test_rates_that_change_and_times_between_records():
    p = setting(*WEIGHTS)
    rates = np.linspace(0.2, 1.0, 12)
    law = pool(WEIGHTS, 100, pk.HeavyBall(rates, momentum=0.5), records=(6, 12))
    net = network(law.neurons())
    w, b, a = net
    v = np.zeros((len(w), p.x.shape[1] + 1))
    theta, points = np.column_stack([w, b]), np.column_stack([p.x, np.ones(N)])
    for rate in rates:
        gates = gate(theta @ points.T, p.kernel.slope)
        v = 0.5 * v + a[:, None] * ((gates * p.y / N) @ points)
        theta = theta + rate * v
    np.testing.assert_allclose(law.neurons().trained[0], theta, atol=1e-11)
    # Between two records on the straight line; before the first one tangent to the drift.
    first, last = law.scaled_times
    between = law.at((first + last) / 2).moved
    np.testing.assert_allclose(between, (law.at(first).moved + law.at(last).moved) / 2, atol=1e-12)
    early = law.at(1e-6)
    tangent = early.readout[:, :, None] * 1e-6 * early.drift
    np.testing.assert_allclose(early.moved, tangent, atol=1e-6 * 1e-5)


@functools.cache
def trained_outputs(case, networks, width=WIDTH, dynamics=DESCENT, seed=1):
    """Outputs (networks, m) and gradients (networks, m, d) of independent networks that a loop in
    NumPy trained, and their outputs before. One loop for all: neurons do not interact.
    """
    p = setting(*case)
    d = p.x.shape[1]
    many = draw(np.random.default_rng(seed), networks * width, d, total=width)
    options = {"rate": 0.5, "steps": 12}
    if isinstance(dynamics, pk.GradientFlow):
        options = {"rate": dynamics.time / 100, "steps": 100, "momentum": 0.0}
    w, b, a = train(many, p.x, p.y, p.kernel, **options).network

    def summed(w, b):
        terms = a[:, None] * act(w @ p.z.T + b[:, None], p.kernel.slope)
        return terms.reshape(networks, width, -1).sum(axis=1)

    gates = a[:, None] * gate(w @ p.z.T + b[:, None], p.kernel.slope)
    grouped = gates.reshape(networks, width, -1)
    slopes = np.einsum("kim,kid->kmd", grouped, w.reshape(networks, width, d), optimize=True)
    return summed(w, b), slopes, summed(*many[:2])


def moments_agree(samples, mean, std):
    """The mean and deviation of independent rows against estimates."""
    count = len(samples)
    away = samples - samples.mean(axis=0)
    square = (away**2).mean(axis=0)
    error = np.hypot(np.sqrt(square / count), mean.standard_error)
    assert np.abs((samples.mean(axis=0) - mean.value) / error).max() < SCORE
    spread = np.sqrt(((away**2 - square) ** 2).mean(axis=0) / count) / (2 * np.sqrt(square))
    error = np.hypot(spread, std.standard_error)
    assert np.abs((np.sqrt(square) - std.value) / error).max() < SCORE
    assert (error < 0.15 * std.value).all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_shares_of_the_gradient_are_what_training_changed(case):
    """Of both signs, over the scaled time, exactly: gates that opened count, too."""
    p, law = setting(*case), pool(case)
    neurons = law.neurons(width=WIDTH)
    signed = []
    for w, readout in zip(neurons.trained, neurons.readout, strict=True):
        ends = []
        for trained in (w, neurons.start):
            gates = gate(trained[:, :-1] @ p.z.T + trained[:, -1:], p.kernel.slope)
            ends.append(np.einsum("k,km,kd->md", readout, gates, trained[:, :-1]))
        signed.append((ends[0] - ends[1]) / (neurons.scaled_time * len(neurons.start)))
    found = sum(share.mean() for share in gradients.vectors(neurons, p.z))
    np.testing.assert_allclose(found, np.mean(signed, axis=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_moments_are_those_of_independent_networks(case):
    p, law = setting(*case), pool(case, 8000)
    after, slopes, before = trained_outputs(case, 300)
    mean = law.mean(p.z, width=WIDTH)
    moments_agree(after, mean, law.std(p.z, width=WIDTH))
    centred = law.std(p.z, width=WIDTH, start="centred")
    moments_agree(after - before, mean, centred)
    pairs: Any = law.networks(width=WIDTH, start="doubled", key=KEY)
    moments_agree(np.asarray(pairs(p.z)), mean, law.std(p.z, width=WIDTH, start="doubled"))
    covariance, error = law.covariance(p.z, width=WIDTH)
    std = law.std(p.z, width=WIDTH)
    np.testing.assert_allclose(np.diag(covariance), std.value**2, rtol=1e-3)
    np.testing.assert_allclose(np.diag(error), 2 * std.value * std.standard_error, rtol=0.5)
    away = after - after.mean(axis=0)
    products = away[:, :, None] * away[:, None, :]
    error = np.hypot(error, products.std(axis=0) / 300**0.5)
    assert np.abs((products.mean(axis=0) - covariance) / error).max() < SCORE + 1

    found = law.gradient(p.z, width=WIDTH)
    error = np.sqrt(slopes.var(axis=0).sum(axis=-1) / 300 + found.standard_error**2)
    off = np.linalg.norm(slopes.mean(axis=0) - found.mean, axis=-1)
    # The root of a mean square; five coordinates or more.
    assert (off < 3 * error).all()
    square = np.sum(slopes**2, axis=-1)
    error = np.hypot(square.std(axis=0) / 300**0.5, found.square_standard_error)
    assert np.abs((square.mean(axis=0) - found.square) / error).max() < SCORE
    assert (found.square_standard_error < 0.1 * found.square).all()

    v = oracle.frozen_gate_direction(p.z, p.x, p.y / len(p.x), p.kernel.slope)
    dots = np.sum(slopes * v, axis=-1)
    cosines = dots / np.sqrt(square) / np.linalg.norm(v, axis=-1)
    cosine = law.cosine(p.z, width=WIDTH)
    error = np.hypot(cosines.std(axis=0) / 300**0.5, cosine.standard_error)
    assert np.abs((cosines.mean(axis=0) - cosine.value) / error).max() < SCORE
    assert abs(cosines.mean() - cosine.mean) < SCORE * (cosine.mean_standard_error + 0.002)
    ratio = law.cosine(p.z, width=WIDTH, method="moments")
    plain = dots.mean(axis=0) / np.linalg.norm(v, axis=-1) / np.sqrt(square.mean(axis=0))
    np.testing.assert_allclose(ratio.value, plain, atol=0.05)

    labels = np.where(np.arange(M) % 2, 1.0, -1.0)
    shares = np.sign(after) == labels
    exact = law.expected_accuracy(p.z, labels, width=WIDTH, method="networks")
    normal = law.expected_accuracy(p.z, labels, width=WIDTH)
    error = shares.mean(axis=1).std() / 300**0.5
    assert abs(shares.mean() - exact.mean) < SCORE * np.hypot(error, exact.mean_standard_error)
    # Sums of 50 terms are not quite normal.
    assert abs(shares.mean() - normal.mean) < SCORE * error + 0.02


@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_width_and_time_enter_through_their_ratio_alone(case):
    p, law = setting(*case), pool(case, 4000, FLOW)
    largest = law.scaled_times[-1]
    for width, networks, scaled in ((25, 200, 1.0), (100, 50, largest)):
        time = scaled * width**0.5
        after, _, _ = trained_outputs(case, networks, width, pk.GradientFlow(time))
        mean = law.mean(p.z, width=width, time=time)
        moments_agree(after, mean, law.std(p.z, width=width, time=time))
        per_time = mean.value / time
        np.testing.assert_allclose(per_time, law.mean(p.z, width=1, time=scaled).value / scaled)
    # Descent depends on rate / sqrt(width), exactly.
    one, other = pool(case), pool(case, dynamics=pk.HeavyBall(1.0, 12, 0.9), width=4 * WIDTH)
    np.testing.assert_allclose(one.paths.moved, other.paths.moved, rtol=1e-12)


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_the_error_vanishes_with_the_scaled_time(case, antithetic):
    p, law = setting(*case), pool(case, 2000, antithetic=antithetic)
    f_hat = oracle.matvec(p.z, p.x, p.y / len(p.x), p.kernel.slope, p.kernel.train_bias)
    sigma = oracle.nngp(p.z, p.z, p.kernel.slope)
    errors = []
    for scaled in (1e-1, 1e-2, 1e-3):
        time = scaled * WIDTH**0.5
        mean, std = law.mean(p.z, width=WIDTH, time=time), law.std(p.z, width=WIDTH, time=time)
        covariance, _ = law.covariance(p.z, width=WIDTH, time=time)
        errors.append(mean.standard_error.max() / time)
        # The law differs from its limit by terms of order r.
        size = scaled * np.abs(f_hat).max()
        np.testing.assert_allclose(mean.value / time, f_hat, atol=2 * size + SCORE * errors[-1])
        np.testing.assert_allclose(std.value, np.sqrt(np.diag(sigma)), atol=5 * size)
        np.testing.assert_allclose(covariance, sigma, atol=20 * size)
    # Gates flip with probability r, so that the error is of order sqrt(r).
    assert errors[0] > 4 * errors[2] > 0
    assert errors[1] > 2 * errors[2]
    assert errors[2] < 5e-3 * np.abs(f_hat).max()


def test_gradients_are_exact():
    p, law = setting(*WEIGHTS), pool(WEIGHTS)
    with precision(np.float64):
        z = jnp.asarray(p.z)
        for net in (law.draw(width=WIDTH, key=KEY), law.mean_network(width=WIDTH)):
            by_jax = jax.grad(lambda z, net=net: net(z).sum())(z)
            np.testing.assert_allclose(net.input_gradient(z), by_jax, atol=1e-12)
            up, down = net(z + 1e-6), net(z - 1e-6)
            slope = np.asarray(net.input_gradient(z)).sum(axis=1)
            np.testing.assert_allclose((up - down) / 2e-6, slope, atol=1e-7)


def test_drawn_networks_are_trained_networks():
    p, law = setting(*WEIGHTS), pool(WEIGHTS, records=(5, 12))
    net: Any = law.draw(width=WIDTH, start="centred", key=jax.random.key(3))
    begin = net.initial
    w, b, a = (np.asarray(v, float) for v in (begin.weight, begin.bias, begin.readout))
    trained = train((w, b, a), p.x, p.y, p.kernel, rate=0.5, steps=12)
    np.testing.assert_allclose(net.network.weight, trained.network[0], atol=1e-6)
    nets: Any = law.networks(width=WIDTH, key=KEY)
    assert nets.weight.shape == (4, WIDTH, D)  # 200 independent starts
    assert len(np.unique(np.asarray(nets.weight)[..., 0])) == 200
    again: Any = law.networks(width=WIDTH, key=KEY)
    np.testing.assert_array_equal(nets.readout, again.readout)
    pairs: Any = law.networks(width=WIDTH, start="doubled", key=KEY)
    assert pairs.weight.shape == (8, WIDTH, D)
    np.testing.assert_allclose(np.asarray(pairs.readout).sum(axis=1), 0, atol=1e-6)


def test_mean_network_is_the_plain_average():
    p, law = setting(*WEIGHTS), pool(WEIGHTS)
    neurons = law.neurons(width=WIDTH)
    average = neurons.terms(p.z).mean(axis=(0, 1)) * WIDTH**0.5
    with precision(np.float64):
        found = law.mean_network(width=WIDTH)(jnp.asarray(p.z))
        np.testing.assert_allclose(found, average, atol=1e-10)
        alone = pool(WEIGHTS, antithetic=False)
        centred = alone.neurons(width=WIDTH).terms(p.z, centred=True).mean(axis=(0, 1))
        found = alone.mean_network(width=WIDTH)(jnp.asarray(p.z))
        np.testing.assert_allclose(found, centred * WIDTH**0.5, atol=1e-10)


class Progress:
    def __init__(self):
        self.done = 0

    def update(self, k):
        self.done += k


@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_tiles_meshes_and_precision_change_nothing(case):
    p, law = setting(*case), pool(case)
    small = pk.TwoLayerNTK(p.kernel.slope, p.kernel.train_bias, memory=2**20)
    progress = Progress()
    mesh = jax.make_mesh((1,), ("i",))
    options = {"dynamics": DESCENT, "width": WIDTH, "neurons": 400, "key": KEY}
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        x, y = np.float32(p.x), np.float32(p.y)
        single = theory.simulate_neurons(small, x, y, **options, mesh=mesh, progress=progress)
    assert progress.done == 400 * 12
    assert single.paths.moved.dtype == np.float32
    # A gate within rounding of its kink may open at another step: for few neurons.
    off = np.abs(single.paths.moved[-1] - law.paths.moved[-1]).max(axis=-1)
    assert np.mean(off < 1e-4) > 0.98


def test_plan_forecasts():
    kernel = pk.TwoLayerNTK(0.0, True)
    plan = theory.plan_neurons(kernel, 12_000, 784, dynamics=pk.HeavyBall(0.01, 100))
    assert plan.operations == 2 * 2 * 12_000 * 785 * 2000 * 100
    assert plan.result == 4 * 2000 * (9 * 785 + 786)
    assert plan.memory <= 2**28
    assert "12,000 points" in str(plan)
    few = theory.plan_neurons(kernel, 100, 784, dynamics=FLOW, steps=50)
    assert few.operations == 2 * 2 * 100 * 100 * 2000 * 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neurons": 401}, "neurons must be even"),
        ({"neurons": 2}, "neurons must be at least 4"),
        ({"dynamics": pk.GradientFlow(0.0)}, "effective_time must be > 0"),
        ({"records": (5, 3)}, "records must be increasing"),
        ({"records": (5, 13)}, "at most 12"),
        ({"width": 0}, "width must be at least 1"),
    ],
    ids=str,
)
def test_bad_arguments_are_told(change, message):
    p = setting(*WEIGHTS)
    options = {"dynamics": DESCENT, "width": WIDTH, "neurons": 400, "key": KEY} | change
    with pytest.raises(ValueError, match=message):
        theory.simulate_neurons(p.kernel, p.x, p.y, **options)


def test_questions_beyond_the_pool_are_told():
    p, law = setting(*WEIGHTS), pool(WEIGHTS, antithetic=False)
    with pytest.raises(ValueError, match=r"time must be at most .* at width 50"):
        law.mean(p.z, width=WIDTH, time=1e3)
    with pytest.raises(ValueError, match=r"at least 500 .* the pool has 400"):
        law.networks(10, width=WIDTH, key=KEY)
    with pytest.raises(ValueError, match="needs both signs"):
        law.std(p.z, width=WIDTH, start="doubled")
    with pytest.raises(ValueError, match="at least 1,000 independent"):
        law.cosine(p.z, width=1000, time=1.0)
    assert "400 independent neurons" in repr(law)
