"""Carriers of perturbations against NumPy, the exponential loss against SciPy, and the study of
both.
"""

import dataclasses
import functools
import json
from typing import Any

import jax
import numpy as np
import optax
import oracle
import pytest
from common import D, N
from pages import assert_nothing_is_cut_off
from scipy.integrate import solve_ivp
from scipy.special import ndtr

import perturbkernel as pk
from perturbkernel.data import draws
from perturbkernel.learning import curves as studies
from perturbkernel.reproduce import plan, store
from perturbkernel.reproduce.studies.carriers import figure as carriers_figure
from perturbkernel.reproduce.studies.carriers import study as carriers
from perturbkernel.training import logistic
from perturbkernel.training.gram import gram_operator
from perturbkernel.training.losses import LOSSES

learn: Any = pk.learn_from_perturbations
fit: Any = pk.fit
train: Any = pk.networks.train
KEY = jax.random.key(3)
SLOPE, TIME, SIZE = 0.2, 3.0, 0.5
KERNEL = pk.TwoLayerNTK(SLOPE, train_bias=True)
LEARNER = pk.KernelLearner(KERNEL, dynamics=pk.GradientFlow(TIME))
RNG = np.random.default_rng(12)
X = RNG.normal(size=(N, D)).astype(np.float32).astype(float)
Z = RNG.normal(size=(N, D)).astype(np.float32).astype(float)
Y = np.where(X[:, 0] > 0, 1.0, -1.0)
LABELS = np.where(Z[:, 0] > 0, 1.0, -1.0)


# --- carriers ---


@functools.cache
def others(m: int) -> np.ndarray:
    return np.random.default_rng(13).normal(size=(m, D)).astype(np.float32).astype(float)


@pytest.mark.parametrize(
    ("option", "m"),
    [
        ({"carrier": others(N + 3), "at": "carrier"}, N + 3),
        ({"carrier": "uniform", "carrier_points": N + 3, "at": "carrier"}, N + 3),
    ],
    ids=["images", "noise"],
)
def test_perturbed_carriers_and_their_control_against_the_formulas(option, m, x64):
    """1e-10: rounding, through a normalisation and two sums."""
    r = learn(LEARNER, (X, Y), size=SIZE, key=KEY, **option)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
    targets, carrier = np.asarray(r.perturbation.targets), np.asarray(r.carrier)
    assert targets.shape == (m,) and set(targets) == {-1.0, 1.0}
    if not isinstance(option["carrier"], str):
        np.testing.assert_array_equal(carrier, option["carrier"])
    gradient = oracle.input_gradient(carrier, X, TIME * Y / N, SLOPE, True)
    unit = gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    delta = SIZE * targets[:, None] * unit
    close(r.perturbation.delta, delta)
    g = oracle.matvec(Z, carrier + delta, TIME * targets / m, SLOPE, True)
    close(r.g(Z), g)
    bare = oracle.matvec(Z, carrier, TIME * targets / m, SLOPE, True)
    close(r.control("unperturbed")(Z), bare)
    v = oracle.frozen_gate_direction(carrier, X, Y / N, SLOPE)
    close(r.cosine, np.sum(unit * v, axis=1) / np.linalg.norm(v, axis=1))
    assert float(r.accuracy(pk.Dataset(Z, LABELS)).g) == pytest.approx(
        np.mean(np.sign(g) == LABELS)
    )
    # The part of g that follows the perturbations whatever the targets, at the training points.
    ends = (
        oracle.matvec(X, carrier + sign * SIZE * unit, np.full(m, 0.5 / m), SLOPE, True)
        for sign in (1, -1)
    )
    close(r.diagnosis.signal, next(ends) - next(ends))


@pytest.mark.parametrize(("at", "m"), [("carrier", 7), ("data", 2 * N)])
def test_what_is_attacked_and_what_carries(at, m):
    """By hand, for f(z) = sum z^3, and again at another size; 1e-6 is rounding. No kernel: nothing
    else is computed.
    """

    def learner(x, y, key):
        return lambda z: jax.numpy.sum(z**3, axis=1) - x.sum()

    r = learn(learner, (X, Y), size=SIZE, carrier=others(m), at=at, key=KEY)
    seen = []

    def second(x, y, key):
        seen.append(np.asarray(x))
        return learner(x, y, key)

    studies.accuracy_against_size(
        dataclasses.replace(r, learner_g=second), pk.Dataset(Z, LABELS), [0.2]
    )
    gradient = 3 * (others(m) if at == "carrier" else np.concatenate([X, X])) ** 2
    step = (
        np.asarray(r.perturbation.targets)[:, None]
        * gradient
        / np.linalg.norm(gradient, axis=1)[:, None]
    )
    np.testing.assert_allclose(r.perturbed, others(m) + SIZE * step, atol=1e-6)
    np.testing.assert_allclose(seen[0], others(m) + 0.2 * step, atol=1e-6)


def test_noise_has_the_moments_it_promises():
    """Of 40,000 entries: deviations of mean, variance and kurtosis are below 0.03."""
    for name, variance, fourth, largest in (
        ("uniform", 1 / 3, 1 / 5, 1.0),
        ("gaussian", 1.0, 3.0, np.inf),
    ):
        noise = np.asarray(draws.draw_noise(name, 400, (10, 10), key=KEY))
        assert noise.shape == (400, 10, 10) and np.abs(noise).max() <= largest
        assert abs(noise.mean()) < 0.03 and noise.var() == pytest.approx(variance, rel=0.03)
        assert np.mean(noise**4) == pytest.approx(fourth, rel=0.1)
        np.testing.assert_array_equal(noise, draws.draw_noise(name, 400, (10, 10), key=KEY))


def test_many_classes_ride_too():
    x, y, weights = others(12), np.arange(12) % 3, np.eye(D)[:, :3]
    train = pk.data.from_arrays(x, y, classes=(0, 1, 2))

    def learner(x, y, key):
        assert y.shape == (len(x), 3)
        return lambda z: z @ weights

    r = learn(
        learner, train, size=SIZE, carrier="gaussian", carrier_points=24, targets="next", key=KEY
    )
    np.testing.assert_array_equal(r.perturbation.targets, np.tile((y + 1) % 3, 2))
    np.testing.assert_array_equal(r.attacked, np.tile(train.inputs, (2, 1)))
    r = learn(
        learner, train, size=SIZE, carrier="gaussian", carrier_points=7, at="carrier", key=KEY
    )
    assert r.perturbation.delta.shape == (7, D)
    with pytest.raises(ValueError, match='targets="next" needs a true class'):
        learn(learner, train, size=SIZE, carrier="uniform", at="carrier", targets="next", key=KEY)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"carrier": "pink"}, "carrier must be one of 'uniform', 'gaussian'; got 'pink'"),
        (
            {"carrier": others(N + 3)},
            f"carrier must have one row a training point, {N}, or a multiple; got {N + 3}",
        ),
        ({"carrier": others(N)[:, :2], "at": "carrier"}, "carrier must have rows of shape"),
        (
            {"carrier": "uniform", "carrier_points": 0, "at": "carrier"},
            "carrier_points must be at least 1; got 0",
        ),
        ({"carrier": others(N), "carrier_points": N}, "carrier_points is for noise"),
        ({"carrier_points": N}, "carrier_points is for noise"),
        ({"carrier": "uniform", "at": "noise"}, "at must be one of 'data', 'carrier'; got 'noise'"),
        ({"scenario": "a", "at": "carrier"}, 'at="carrier" needs a carrier'),
        ({"carrier": "uniform", "scenario": "b"}, "scenario and carrier exclude each other"),
        (
            {"carrier": others(2 * N), "targets": np.ones(N)},
            rf"targets must have shape \({2 * N},\)",
        ),
    ],
)
def test_bad_carriers(option, message):
    """Before any computation: this learner cannot be called."""

    def learner(*_):
        raise AssertionError("called")

    with pytest.raises(ValueError, match=message):
        learn(learner, (X, Y), size=SIZE, key=KEY, **option)


# --- the exponential loss ---


@functools.cache
def exponential_reference(initial: bool) -> Any:
    """alpha at EXPONENTIAL_TIMES by an implicit method of SciPy."""
    gram, f0 = oracle.ntk(X, X, SLOPE, True), X[:, 1] if initial else np.zeros(N)

    def velocity(_, alpha):
        return np.exp(-Y * f0 - Y * (gram @ (Y * alpha))) / N

    found = solve_ivp(
        velocity,
        (0, EXPONENTIAL_TIMES[-1]),
        np.zeros(N),
        "Radau",
        EXPONENTIAL_TIMES,
        rtol=1e-10,
        atol=1e-14,
    )
    assert found.success
    return found.y.T


EXPONENTIAL_TIMES = (0.5, 30.0, 1e4)


@pytest.mark.parametrize("initial", [False, True])
def test_exponential_flow(initial, x64):
    """1e-6: the tolerance of `fit` is 1e-9 a step, over hundreds of steps for the longest time."""
    start = (lambda z: z[:, 1]) if initial else None
    for time, alpha in zip(EXPONENTIAL_TIMES, exponential_reference(initial), strict=True):
        f = fit(KERNEL, X, Y, loss="exponential", dynamics=pk.GradientFlow(time), initial=start)
        assert f.status == "ok"
        np.testing.assert_allclose(Y * f.dual_coef, alpha, rtol=1e-6, atol=1e-6 * alpha.max())


def test_both_methods_of_the_exponential_flow_agree(x64):
    """A wrapped operator has no matrix and goes the implicit way; each is right to 1e-7 or so."""
    operator = gram_operator(KERNEL, jax.numpy.asarray(X), None)
    implicit = jax.tree_util.Partial(lambda held, v: held(v), operator)
    y, none = jax.numpy.asarray(Y), jax.numpy.zeros(N)
    explicit = logistic.flow(operator, y, none, 30.0, 1e-9, LOSSES["exponential"])
    slow = logistic.flow(implicit, y, none, 30.0, 1e-9, LOSSES["exponential"])
    assert "products" not in explicit.stats and "products" in slow.stats
    np.testing.assert_allclose(slow.dual_coef, explicit.dual_coef, rtol=1e-6)


def test_exponential_heavy_ball(x64):
    """Against the recurrence itself; 1e-10 is rounding."""
    gram, dual, velocity = oracle.ntk(X, X, SLOPE, True), np.zeros(N), np.zeros(N)
    for _ in range(40):
        velocity = 0.9 * velocity + Y * np.exp(-Y * (gram @ dual)) / N
        dual = dual + 0.05 * velocity
    f = fit(KERNEL, X, Y, loss="exponential", dynamics=pk.HeavyBall(0.05, 40))
    np.testing.assert_allclose(f.dual_coef, dual, rtol=1e-10, atol=1e-14)
    with pytest.warns(UserWarning, match="beyond 2 .* exponential loss diverged"):
        f = fit(KERNEL, X, Y, loss="exponential", dynamics=pk.HeavyBall(1e4, 50))
    assert "diverged" in f.status


def test_exponential_loss_of_networks(x64):
    """One step of gradient descent in NumPy: outputs and their gradient through the mean of exp(-y
    f).
    """
    net: Any = pk.networks.TwoLayerNetwork.init(D, 16, SLOPE, True, key=KEY)
    after, trace = train(net, X, Y, loss="exponential", optimizer=optax.sgd(0.1), steps=1)
    f = np.asarray(net(X))
    assert trace.loss[0] == pytest.approx(np.exp(-Y * f).mean(), rel=1e-12)
    w, b, a = np.asarray(net.weight), np.asarray(net.bias), np.asarray(net.readout)
    gate = np.where(X @ w.T + b > 0, 1.0, SLOPE) * a  # (n, width)
    pull = Y * np.exp(-Y * f) / N
    np.testing.assert_allclose(
        after.weight, w + 0.1 * (gate * pull[:, None]).T @ X, rtol=1e-10, atol=1e-12
    )


def test_wrong_use_of_the_exponential_loss():
    with pytest.raises(ValueError, match="time must be finite for the exponential loss"):
        fit(KERNEL, X, Y, loss="exponential", dynamics=pk.GradientFlow(np.inf))
    with pytest.raises(ValueError, match="targets must be -1 or"):
        fit(KERNEL, X, 2 * Y, loss="exponential")
    with pytest.raises(ValueError, match='loss="exponential" does not go with these targets'):
        fit(KERNEL, X, np.stack([Y, -Y], axis=1), loss="exponential")


# --- the study ---

NOISE = {
    "part": "noise",
    "n": 20,
    "m": 40,
    "d": 12,
    "relative_size": 0.3,
    "time": 30.0,
    "width": 16,
    "steps": 4,
    "kinds": ["uniform", "gaussian"],
    "learners": ["identity"],
    "first": 0,
    "seeds": 2,
}
DIGITS = {
    "part": "digits",
    "learners": ["identity"],
    "n": 20,
    "test": 20,
    "digits": [3, 8],
    "others": [0, 1],
    "per_point": [1],
    "size": 2.0,
    "time": 30.0,
    "first": 0,
    "seeds": 1,
}


@pytest.fixture(scope="module")
def results():
    return [(config, carriers.measure(config)) for config in (NOISE, DIGITS)]


def test_a_cell_against_numpy(results):
    """The second seed on uniform noise, identity loss, from the formulas; one sign in 20 or 40 may
    be rounding.
    """
    arrays, n, m, d = results[0][1], NOISE["n"], NOISE["m"], NOISE["d"]
    assert arrays["accuracy"].shape == (2, 2, 1) and results[1][1]["accuracy"].shape == (1, 1, 4, 1)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(4), 1), 8)

    def noise(rows, key):
        return np.asarray(draws.draw_noise("uniform", rows, (d,), key=key), float)

    def signs(rows, key):
        return np.asarray(draws.draw_targets("coin_flip", rows, key=key), float)

    x, carrier, new = noise(n, keys[0]), noise(m, keys[2]), noise(m - n, keys[4])
    y, targets = signs(n, keys[1]), signs(m, keys[3])
    gradient = oracle.input_gradient(carrier, x, y / n, carriers.SLOPE, False)
    step = (
        0.3
        * np.sqrt(d / 3)
        * targets[:, None]
        * gradient
        / np.linalg.norm(gradient, axis=1, keepdims=True)
    )
    perturbed = np.clip(carrier + step, -1, 1)

    def outputs(points, dual):
        return oracle.matvec(np.concatenate([x, new]), points, dual, carriers.SLOPE, False)

    f = outputs(x, y / n)
    g, control = outputs(perturbed, targets / m), outputs(carrier, targets / m)
    for name, exact, allowed in (
        ("accuracy_f", np.mean(np.sign(f[:n]) == y), 1 / n),
        ("accuracy", np.mean(np.sign(g[:n]) == y), 1 / n),
        ("control", np.mean(np.sign(control[:n]) == y), 1 / n),
        ("agreement", np.mean(np.sign(g[n:]) == np.sign(f[n:])), 1 / (m - n)),
        ("control_agreement", np.mean(np.sign(control[n:]) == np.sign(f[n:])), 1 / (m - n)),
    ):
        assert abs(arrays[name][1, 0, 0] - exact) < allowed + 1e-6, name


def test_the_leading_order_is_that_of_a_linear_kernel():
    """By simulation: f's gradient along sum y_n x_n, outputs <x, z>. Of 200 x 100 points the mean
    is good to 0.01.
    """
    rng, n, m, d, size, right = np.random.default_rng(1), 100, 400, 60, 0.6, []
    for _ in range(200):
        x, y = rng.uniform(-1, 1, (n, d)), rng.choice([-1.0, 1.0], n)
        direction = y @ x / np.linalg.norm(y @ x)
        noise, targets = rng.uniform(-1, 1, (m, d)), rng.choice([-1.0, 1.0], m)
        right.append(np.sign(x @ (targets @ (noise + size * targets[:, None] * direction))) == y)
    predicted = carriers_figure.leading_order(d / n, size / np.sqrt(d / 3), n, m)
    assert np.mean(right) == pytest.approx(float(predicted), abs=0.02)
    assert predicted == pytest.approx(ndtr(np.sqrt(d / n) / np.sqrt(1 + d / (3 * m * size**2))))


def test_it_is_resumed_and_the_same_again(results, tmp_path, monkeypatch):
    cells = [{"function": "carriers", "config": config} for config in (NOISE, DIGITS)]
    monkeypatch.setattr(carriers, "cells", lambda scale, seeds: [NOISE, DIGITS])
    assert plan.study_cells("carriers", plan.Options(("carriers",))) == cells
    store.save(tmp_path, cells[0], results[0][1], 1.0)
    kept = {path.name for path in (tmp_path / "cells").iterdir()}
    done = pk.reproduce.reproduce("carriers", tmp_path, workers=0)
    assert len({path.name for path in (tmp_path / "cells").iterdir()} - kept) == 1
    for name, array in results[1][1].items():
        np.testing.assert_array_equal(done.study("carriers")[1][1][name], array, err_msg=name)
    assert plan.STUDIES["carriers"].about[1:] in (tmp_path / "index.html").read_text()


def test_summary_figure_and_text(results):
    summary = carriers.summarise(results)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    arrays = results[0][1]
    found = summary["noise"]["gaussian"]["identity"]
    assert found["d"] == [12] and found["ratio"] == [0.6]
    assert found["accuracy"]["mean"][0] == pytest.approx(arrays["accuracy"][:, 1, 0].mean())
    assert found["control"]["high"][0] == pytest.approx(arrays["control"][:, 1, 0].max())
    digits = summary["digits"]["identity"]
    np.testing.assert_allclose(digits["control"]["mean"], results[1][1]["control"][0, 0])
    assert_nothing_is_cut_off(carriers.draw(results))
    assert_nothing_is_cut_off(carriers.draw(results[1:]))
    assert f"{100 * found['accuracy']['mean'][0]:7.1f}" in carriers.text(results)
    assert carriers.text([]) == ""


def test_the_plan_of_the_study():
    with pytest.raises(ValueError, match=r"scale must be .*small.*paper.*huge"):
        carriers.cells("huge", 3)
    with pytest.raises(ValueError, match="seeds must be"):
        carriers.cells("small", 0)
    with pytest.raises(ValueError, match="part must be one of"):
        carriers.measure({**NOISE, "part": "cats"})
    with pytest.raises(ValueError, match="learners must be one of"):
        carriers.measure({**NOISE, "learners": ["cats"]})
    with pytest.raises(ValueError, match="carrier must be one of"):
        carriers.measure({**NOISE, "kinds": ["cats"]})
    net = carriers.learner(NOISE, "network", carriers.SLOPE)
    assert (net.width, net.loss, net.slope, net.steps) == (16, "exponential", 0.01, 4)
    paper = [config for config in carriers.cells("paper", 2) if config["part"] == "noise"]
    assert max(config["d"] for config in paper) == max(config["m"] for config in paper) == 10_000
    small = carriers.cells("small", 2)
    assert json.loads(json.dumps(small)) == small
    published = [d / carriers_figure.PUBLISHED_N for d in carriers_figure.PUBLISHED["d"]]
    assert [config["d"] / config["n"] for config in small[:-1]] == published
