"""The study of trained networks' kernels: its predictions against explicit Jacobians in NumPy, its
training against heavy ball written out.
"""

import json
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import assert_nothing_is_cut_off

import perturbkernel as pk
from perturbkernel.reproduce import plan
from perturbkernel.reproduce.studies.settings import from_config
from perturbkernel.reproduce.studies.trained_kernels import network
from perturbkernel.reproduce.studies.trained_kernels import study as trained_kernels

CONFIG: dict[str, Any] = {
    "n": 40,
    "test": 40,
    "width": 8,
    "epochs": [0, 2],
    "second": 3,
    "batch": 20,
    "digits": [4, 9],
    "size": 1.5,
    "radius": 1.0,
    "steps": 2,
    "seed": 0,
}
SETTING = from_config(trained_kernels.Setting, CONFIG)
Checkpoint: Any = trained_kernels.Checkpoint  # for the type checker: some need no kernel


@pytest.fixture(scope="module")
def problem():
    return trained_kernels.problem(SETTING, seed=0)


@pytest.fixture(scope="module")
def arrays():
    return trained_kernels.measure(CONFIG)


# One program: by itself each operation of the derivative is one.
JACOBIAN = jax.jit(jax.jacrev(network.apply))


def jacobian(params, x):
    """(n, parameters), float64."""
    leaves = jax.tree.leaves(JACOBIAN(params, x))
    return np.concatenate([np.asarray(leaf, float).reshape(len(x), -1) for leaf in leaves], axis=1)


def test_predictions_are_the_flow_of_the_linearised_network(problem):
    """By eigenvectors of J J^T; 1e-3 of the outputs is float32 in Jacobians."""
    x, z = problem.train.inputs, problem.test.inputs
    _, closed = trained_kernels.second(SETTING, problem, problem.start, x)
    y = np.asarray(problem.targets, float)
    steps = 3 * 2
    for start, g, own in ((problem.fresh, closed[0], 1), (problem.start, closed[1], 0)):
        at_x, at_z = jacobian(start, x), jacobian(start, z)
        gram = at_x @ at_x.T
        rate = network.unit_rate(start, x)
        assert rate == pytest.approx(1 / np.diag(gram).mean(), rel=1e-5)
        time = trained_kernels.SECOND_RATE * rate * steps / (1 - 0.9)
        before = own * np.asarray(network.apply(start, x), float)
        values, vectors = np.linalg.eigh(gram)
        gain = -np.expm1(-values * time / len(x)) / values
        dual = vectors @ (gain * (vectors.T @ (y - before)))
        exact = own * np.asarray(network.apply(start, z), float) + at_z @ (at_x.T @ dual)
        np.testing.assert_allclose(g(z), exact, atol=1e-3 * np.abs(exact).max())


@pytest.mark.parametrize("centred", [0.0, 1.0])
def test_training_is_heavy_ball_on_the_squared_loss(problem, centred):
    """Three epochs of one batch of everything, written out; 1e-4 is rounding."""
    x, y = problem.train.inputs, problem.train.targets
    start, rate = problem.start, 0.02
    learner = network.Learner(start, centred)
    begun = network.begin(learner)
    key = jax.random.key(3)
    state = network.train(learner, begun, (x, y), rate, None, key, epochs=3, batch=40)
    origin = centred * network.apply(start, x)

    @jax.jit
    @jax.grad
    def gradient(params):
        return 0.5 * jnp.mean((network.apply(params, x) - origin - y) ** 2)

    params = jax.tree.map(np.asarray, start)
    velocity = jax.tree.map(np.zeros_like, params)
    for _ in range(3):
        slopes = jax.tree.map(np.asarray, gradient(params))
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, slopes)
        params = jax.tree.map(lambda p, v: p - rate * v, params, velocity)
    for found, expected in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max() + 1e-7)


def test_adversarial_training_moves_against_the_label(problem):
    """The found inputs keep the radius, and beat random ones and the single step."""
    x, y = problem.train.inputs, problem.train.targets
    learner = network.Learner(problem.start, 0.0)
    delta = np.asarray(network._worst(learner, problem.start, x, y, 1.0))
    length = np.linalg.norm(delta, axis=1)
    assert length.max() <= 1 + 1e-5 and length.min() > 0.5

    def margin(step):
        return np.asarray(y * network.apply(problem.start, x + step))

    random = np.random.default_rng(0).normal(size=x.shape)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    one = pk.perturb(jax.tree_util.Partial(network.apply, problem.start), x, -y, size=1.0).delta
    assert (margin(delta) < margin(random)).mean() > 0.95
    assert margin(delta).mean() < margin(one).mean()


def test_a_cell(arrays, problem):
    """Its parts, from the checkpoints: shapes, and numbers that need no more than a network."""
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes == {
        "alignment": (2,),
        "first": (2, 2),
        "learned": (2, 2, 2, 2),
        "predicted": (2, 2, 2, 2),
        "agreement": (2, 2, 2, 2, 2),
        "by_chance": (2, 2, 2, 2, 2),
        "moved": (2, 2, 3),
        "clean": (2, 2, 2),
        "robust": (2, 2, 2),
    }
    assert all(np.isfinite(array).all() for array in arrays.values())
    x, y = np.asarray(problem.train.inputs), np.asarray(problem.train.targets, float)
    z, labels = problem.test.inputs, np.asarray(problem.test.targets)
    at_x = jacobian(problem.start, x)
    gram = at_x @ at_x.T
    aligned = y @ gram @ y / (np.linalg.norm(gram) * len(y))
    assert arrays["alignment"][0] == pytest.approx(aligned, rel=1e-4)
    right = np.mean(np.sign(network.apply(problem.start, z)) == labels)
    assert arrays["first"][0, 0] == pytest.approx(right)
    # f interpolates: signs of the closed form, one of them perhaps on zero.
    f = jacobian(problem.start, z) @ at_x.T @ np.linalg.solve(gram, y)
    assert abs(arrays["first"][0, 1] - np.mean(np.sign(f) == labels)) < 1.1 / len(z)
    # Before training both networks are the same one, and each is clean as it is first.
    np.testing.assert_array_equal(arrays["robust"][0, :, 0], arrays["robust"][0, :, 1])
    np.testing.assert_array_equal(arrays["clean"][:, :, 0], arrays["first"])
    assert (arrays["robust"] <= arrays["clean"]).all()


def test_accuracies_are_those_of_the_new_digits(problem, monkeypatch):
    """Of one network that knows their labels, and nothing of any other digit, and its opposite."""
    new, labels = np.asarray(problem.test.inputs), np.asarray(problem.test.targets)

    def right(z):
        return jnp.where((z == new).all(1), labels, 0)

    def wrong(z):
        return -right(z)

    def attack(f, z, given, **_):
        """Moves a digit whose label is another one."""
        return types.SimpleNamespace(delta=jnp.where(right(z) == given, 0.0, 1.0)[:, None])

    monkeypatch.setattr(trained_kernels, "second", lambda *_: ([right, right], [wrong, wrong]))
    monkeypatch.setattr(trained_kernels, "attack", attack)
    either = Checkpoint(None, right, None, wrong)
    # Attacked digits stay where they are; at random ones nothing is known, which counts one half.
    moved = trained_kernels._moved(SETTING, problem, either)
    np.testing.assert_array_equal(moved, [[1, 1, 0.5], [0, 0, 0.5]])

    def total(z):
        return z.sum(1)

    either = Checkpoint(None, total, None, total)
    taught = trained_kernels._taught(SETTING, problem, either)
    np.testing.assert_array_equal(taught["learned"], np.ones((2, 2, 2)))
    np.testing.assert_array_equal(taught["predicted"], np.zeros((2, 2, 2)))


def test_agreement_by_chance():
    """Of two that are right on 3/4 and 1/2 of one digit and on all of the other, by hand."""
    labels = jnp.array([1.0] * 4 + [-1.0] * 4)
    f = labels.at[0].set(-1.0)
    g = labels.at[:2].set(-1.0)
    expected = 0.5 * (0.75 * 0.5 + 0.25 * 0.5) + 0.5
    assert trained_kernels._by_chance(f, g, labels) == pytest.approx(expected)


def test_a_run_gives_the_same_again(arrays, tmp_path, monkeypatch):
    cell = {"function": "trained-kernels", "config": CONFIG}
    monkeypatch.setattr(trained_kernels, "cells", lambda scale, seeds: [CONFIG])
    assert plan.study_cells("trained-kernels", plan.Options(("trained-kernels",))) == [cell]
    done = pk.reproduce.reproduce("trained-kernels", tmp_path, workers=0)
    for name, array in arrays.items():
        np.testing.assert_array_equal(done.study("trained-kernels")[0][1][name], array)
    assert plan.STUDIES["trained-kernels"].about[1:] in (tmp_path / "index.html").read_text()


def test_summary_figure_and_text(arrays):
    results = [(CONFIG, arrays), ({**CONFIG, "seed": 1}, {k: v / 2 for k, v in arrays.items()})]
    summary = trained_kernels.summarise(results)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    curves = summary["curves"]
    assert len(curves) == sum(array[0].size for array in arrays.values())
    learned = curves["second network, perturbed digits of f; checkpoint"]
    np.testing.assert_allclose(learned["high"], arrays["learned"][:, 1, 1, 1])
    np.testing.assert_allclose(learned["mean"], 0.75 * arrays["learned"][:, 1, 1, 1])
    robust = curves["f, trained on perturbed digits: attacked"]
    np.testing.assert_allclose(robust["low"], arrays["robust"][:, 1, 1] / 2)
    assert_nothing_is_cut_off(trained_kernels.draw(results))
    assert_nothing_is_cut_off(trained_kernels.draw([]))
    assert f"{100 * learned['mean'][1]:7.1f}" in trained_kernels.text(results)
    assert trained_kernels.text([]) == ""


def test_cells_are_draws():
    small = trained_kernels.cells("small", 3)
    assert json.loads(json.dumps(small)) == small and [c["seed"] for c in small] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"scale must be .*small.*paper.*huge"):
        trained_kernels.cells("huge", 1)
    with pytest.raises(ValueError, match="seeds must be"):
        trained_kernels.cells("small", 0)
