"""Attacks on kernel predictors, step by step, are those of the compiled program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import compilations

import perturbkernel as pk
from perturbkernel.attacks import host
from perturbkernel.checks import is_traced

N, M, D = 12, 5, 4


def predictor(classes: int | None) -> pk.KernelPredictor:
    rng = np.random.default_rng(3)
    shape = (N,) if classes is None else (N, classes)
    x, coef = rng.normal(size=(N, D)), rng.normal(size=shape)
    return pk.KernelPredictor(
        pk.TwoLayerNTK(0.1, True), jnp.asarray(x, jnp.float32), jnp.asarray(coef, jnp.float32)
    )


@pytest.fixture
def inputs(rng: np.random.Generator) -> jax.Array:
    return jnp.asarray(rng.uniform(size=(M, D)), jnp.float32)


BOUNDED = {"norm": "linf", "bounds": (0, 1), "step_size": 0.1, "momentum": 0.5}
CASES = {
    "one output": (None, {"starts": 2, "key": jax.random.key(0)}),
    "toward a class": (3, BOUNDED),
    "away from a class": (3, {"away": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_step_by_step_is_the_whole_program(case, inputs, monkeypatch):
    classes, options = CASES[case]
    f = predictor(classes)
    targets = np.ones(M) if classes is None else np.arange(M) % classes
    seen = []
    evaluate = host.SteppedPredictor.input_gradient

    def counted(self, *arguments, **_):
        seen.append(len(arguments))
        return evaluate(self, *arguments)

    monkeypatch.setattr(host.SteppedPredictor, "input_gradient", counted)
    found = pk.attack(f, inputs, targets, size=0.3, steps=5, **options)
    assert len(seen) >= 6
    monkeypatch.setattr(host, "_PAIRS", 0)
    count = len(seen)
    whole = pk.attack(f, inputs, targets, size=0.3, steps=5, **options)
    assert len(seen) == count
    # Rounding of float32, which ten steps carry on.
    np.testing.assert_allclose(found.delta, whole.delta, rtol=0, atol=2e-4)
    np.testing.assert_array_equal(found.zero_gradient, whole.zero_gradient)


SEARCHES = {
    "one output": (None, {}),
    "random starts": (None, {"starts": 3, "key": jax.random.key(0), "norm": "l1"}),
    "toward a class": (3, {"targets": np.arange(M) % 3}),
    "away from a class": (3, {"norm": "linf", "bounds": (0, 1), "starts": 2}),
    "fewest entries": (3, {"norm": "l0", "bounds": (0, 1)}),
}


@pytest.mark.parametrize("case", SEARCHES)
def test_the_smallest_change_by_steps_is_that_of_the_whole_program(case, inputs, monkeypatch):
    classes, options = SEARCHES[case]
    f = predictor(classes)
    search = partial(pk.minimum_norm, f, inputs, steps=9, **options)
    seen = []
    evaluate = host.SteppedPredictor.__call__

    def counted(self, z):
        seen.append(z)
        return evaluate(self, z)

    monkeypatch.setattr(host.SteppedPredictor, "__call__", counted)
    by_steps = search()
    assert by_steps.found.any()
    assert not is_traced(*seen)
    with compilations() as count:
        search()
        assert count() == 0  # as nothing of it depends on values
    monkeypatch.setattr(host, "_EVALUATIONS", 0)
    assert seen
    seen.clear()
    whole = search()
    assert not seen
    # To the tolerance of float32, 1e-3 of the size, to which both bracket the boundary.
    np.testing.assert_allclose(by_steps.size, whole.size, rtol=2e-3)
    np.testing.assert_array_equal(by_steps.targets, whole.targets)
    decided = f(inputs + by_steps.delta), f(inputs + by_steps.inside)
    beyond, short = (np.sign(y) if classes is None else np.argmax(y, 1) for y in decided)
    assert (beyond != short)[np.asarray(by_steps.size) > 0].all()


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_an_output_of_zero_leaves_random_starts_finite(norm):
    """Without biases f(0) is 0: boundaries are sought at sizes whose outputs round to 0."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, D)).astype(np.float32)
    f = pk.fit(pk.TwoLayerNTK(), x, np.sign(x[:, 0]))
    z = np.concatenate([np.zeros((1, D), np.float32), x[:3] / 2])
    options = {"norm": norm, "bounds": (-3, 3), "steps": 8, "key": jax.random.key(0)}
    found = pk.minimum_norm(f, z, starts=5, **options)
    assert float(found.size[0]) == 0 and found.found.all()


def test_who_runs_all_uncompiled_gets_arrays_of_jax(inputs):
    """As one does to debug: the predictor is JAX's, and so is what it is called with."""
    with jax.disable_jit():
        found = pk.minimum_norm(lambda z: z.at[:, 0].set(0.0).sum(1) - 1, inputs[:2], steps=2)
    assert isinstance(found.delta, jax.Array) and found.found.all()


def test_step_numbers_and_sizes_are_no_constants_of_programs(inputs):
    f = predictor(None)
    pk.attack(f, inputs, np.ones(M), size=0.3, steps=4)
    with compilations() as count:
        pk.attack(f, inputs, -np.ones(M), size=0.2, steps=6)
        assert count() == 0


def test_what_is_long_or_traced_or_has_an_initial_function_is_compiled(inputs):
    f = predictor(None)
    assert isinstance(host.small(f, inputs, 10), host.SteppedPredictor)
    assert host.small(f, inputs, 10**6) is f
    assert host.stepped(f, inputs, 10**6) is f
    assert host.small(f, inputs.astype(jnp.float16), 10) is f
    moved = pk.KernelPredictor(f.kernel, f.inputs, f.dual_coef, lambda z: z.sum(1))
    assert host.small(moved, inputs, 10) is moved
    traced = []
    jax.jit(lambda x: traced.append(host.small(f, x, 10) is f) or x)(inputs)
    jax.jit(lambda x: traced.append(host.stepped(f, x, 10) is f) or x)(inputs)
    jax.jit(lambda g: traced.append(host.stepped(g, inputs, 10) is g) or inputs)(f)
    assert traced == [True] * 3
