"""Attacks on small kernel predictors, step by step, are those of the compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import compilations

import perturbkernel as pk
from perturbkernel.attacks import host

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
    evaluate = host.SmallPredictor.input_gradient

    def counted(self, *arguments, **_):
        seen.append(len(arguments))
        return evaluate(self, *arguments)

    monkeypatch.setattr(host.SmallPredictor, "input_gradient", counted)
    found = pk.attack(f, inputs, targets, size=0.3, steps=5, **options)
    assert len(seen) >= 6
    monkeypatch.setattr(host, "_PAIRS", 0)
    count = len(seen)
    whole = pk.attack(f, inputs, targets, size=0.3, steps=5, **options)
    assert len(seen) == count
    # Rounding of float32, which ten steps carry on.
    np.testing.assert_allclose(found.delta, whole.delta, rtol=0, atol=2e-4)
    np.testing.assert_array_equal(found.zero_gradient, whole.zero_gradient)


def test_step_numbers_and_sizes_are_no_constants_of_programs(inputs):
    f = predictor(None)
    pk.attack(f, inputs, np.ones(M), size=0.3, steps=4)
    with compilations() as count:
        pk.attack(f, inputs, -np.ones(M), size=0.2, steps=6)
        assert count() == 0


def test_what_is_long_or_traced_or_has_an_initial_function_is_compiled(inputs):
    f = predictor(None)
    assert isinstance(host.small(f, inputs, 10), host.SmallPredictor)
    assert host.small(f, inputs, 10**6) is f
    assert host.small(f, inputs.astype(jnp.float16), 10) is f
    moved = pk.KernelPredictor(f.kernel, f.inputs, f.dual_coef, lambda z: z.sum(1))
    assert host.small(moved, inputs, 10) is moved
    traced = []
    jax.jit(lambda x: traced.append(host.small(f, x, 10) is f) or x)(inputs)
    assert traced == [True]
