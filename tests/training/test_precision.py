"""What rounding leaves of a predictor, what it says of that, and predictors that stay float64 where
JAX is set to float32; references are float64 throughout.
"""

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturbkernel as pk
from perturbkernel.training import precision
from perturbkernel.training import solve as solvers
from perturbkernel.training.initial_function import InitialFunction

fit: Any = pk.fit
load: Any = pk.KernelPredictor.load
GradientFlow: Any = pk.GradientFlow
HeavyBall: Any = pk.HeavyBall
KERNEL: Any = pk.TwoLayerNTK(0.0, True)
N, D = 40, 5
INF = float("inf")
RNG = np.random.default_rng(3)
POINTS = RNG.normal(size=(N // 2, D))
# Points and shifted copies, with labels of their own: coefficients of 1e5 that cancel.
X = np.concatenate([POINTS, POINTS + 1e-5 * RNG.normal(size=POINTS.shape)])
Y = np.where(RNG.normal(size=N) > 0, 1.0, -1.0)
Z = RNG.normal(size=(7, D))


def exact_gram(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """K(x, z) by NumPy in float64 from the angles' halves, which keeps near duplicates apart."""
    lift = [np.concatenate([a / np.sqrt(D), np.ones((len(a), 1))], axis=1) for a in (x, z)]
    u, v = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in lift)
    chord = np.linalg.norm(u[:, None] - v[None], axis=2)
    antipodal = np.linalg.norm(u[:, None] + v[None], axis=2)
    theta = 2 * np.arctan2(chord, antipodal)
    return (0.5 - theta / (2 * np.pi)) * (x @ z.T + 1)


def relative(found: Any, exact: np.ndarray) -> float:
    return float(np.abs(np.asarray(found, float) - exact).max() / np.abs(exact).max())


CASES: dict[str, Any] = {
    "copies": (X, "squared", GradientFlow(INF)),
    "late": (X, "squared", GradientFlow(1e6)),
    "small inputs": (1e-3 * X, "squared", GradientFlow(1e8)),
    "many steps": (X, "squared", HeavyBall(0.5, 300_000)),
    "benign": (POINTS, "squared", GradientFlow(INF)),
    "logistic": (POINTS, "logistic", GradientFlow(30.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_rounding_is_measured_and_said(case):
    x, loss, dynamics = CASES[case]
    x: Any = np.float32(x)
    y = Y[: len(x)]
    f = fit(KERNEL, x, y, loss=loss, dynamics=dynamics)
    with jax.enable_x64(True):
        exact = fit(KERNEL, np.float64(x), y, loss=loss, dynamics=dynamics)
        outputs = np.asarray(exact(np.float64(x)))
    off = relative(f(x), outputs)
    rounding = f.stats["rounding"]
    assert off / 3 <= rounding + 1e-6 and rounding <= 3 * off + 1e-6
    said = "rounding: coefficients cancel" in f.status and "precision=64" in f.status
    assert said == (rounding > 1e-3)
    assert case in ("benign", "logistic") or off > 1e-4  # a case in which there is some
    assert "rounding" not in exact.stats
    right = fit(KERNEL, x, y, loss=loss, dynamics=dynamics, precision=64)
    assert right.status == "ok" and relative(right(x), outputs) < 1e-6


def test_interpolation_in_float64_interpolates():
    f = fit(KERNEL, X, Y, loss="squared", dynamics=GradientFlow(INF), precision=64)
    assert f.inputs.dtype == f.dual_coef.dtype == np.float64
    assert f(X).dtype == jnp.float32
    np.testing.assert_allclose(f(X), Y, atol=1e-5)
    reference = exact_gram(Z, X) @ np.linalg.solve(exact_gram(X, X), Y)
    assert relative(f(Z), reference) < 1e-4  # the condition number, 1e10, times eps


def wide() -> Any:
    return fit(KERNEL, X, Y, loss="squared", dynamics=GradientFlow(INF), precision=64)


def test_float64_predictors_are_functions_of_jax():
    f = wide()
    z = jnp.asarray(X[:7], jnp.float32)
    outputs = np.asarray(f(z))
    exact = exact_gram(np.asarray(z, float), X) @ np.asarray(f.dual_coef)
    assert relative(outputs, exact) < 1e-6
    for compiled in (jax.jit(f), jax.jit(lambda z: f(z))):
        np.testing.assert_allclose(compiled(z), outputs, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda f, z: f(z))(f, z), outputs, rtol=1e-6)
    rows = jax.vmap(lambda row: f(row[None])[0])(z)
    np.testing.assert_allclose(rows, outputs, rtol=1e-6)

    gradient = np.asarray(f.input_gradient(z))
    assert gradient.dtype == np.float32
    with jax.enable_x64(True):
        exact = KERNEL.input_gradient(np.asarray(z, float), f.inputs, f.dual_coef)
    assert relative(gradient, np.asarray(exact)) < 1e-6
    for grad in (jax.grad(lambda z: f(z).sum()), jax.jit(jax.grad(lambda z: f(z).sum()))):
        assert relative(grad(z), np.asarray(exact)) < 1e-6
    by_coefficient = jax.grad(lambda c: f_with(f, c)(z).sum())(f.dual_coef)
    exact = exact_gram(np.asarray(z, float), X).sum(0)
    assert relative(by_coefficient, exact) < 1e-6
    assert f.frozen_gate_gradient(z).dtype == jnp.float32
    assert f.gradient_rounding(z).dtype == jnp.float32
    delta = pk.perturb(f, z, -np.sign(outputs), size=0.1).delta
    assert np.isfinite(delta).all()


def f_with(f: Any, coef: Any) -> Any:
    return pk.KernelPredictor(f.kernel, f.inputs, coef)


def test_several_outputs_and_initial_functions_in_float64():
    targets = pk.one_hot(np.arange(N) % 3, 3)

    def start(z):
        return jnp.sin(z[:, :3])

    f = fit(
        KERNEL,
        X,
        targets,
        loss="squared",
        dynamics=GradientFlow(INF),
        initial=start,
        precision=64,
    )
    np.testing.assert_allclose(f(X), targets, atol=1e-5)
    weights = np.ones((N, 3), np.float32)
    np.testing.assert_allclose(
        jax.grad(lambda z: f(z).sum())(jnp.asarray(X, jnp.float32)),
        f.input_gradient(jnp.asarray(X, jnp.float32), weights),
        rtol=1e-3,
    )


@pytest.mark.parametrize("way", ["file", "pickle", "copy", "deep copy"])
def test_what_was_trained_in_float64_stays_float64(way, tmp_path):
    with jax.enable_x64(True):
        f = fit(KERNEL, X, Y, loss="squared", dynamics=GradientFlow(INF))
        exact = np.asarray(f(Z))
        dumped = pickle.dumps(f)
        f.save(tmp_path / "f.npz")
    ways: dict[str, Any] = {
        "file": lambda: load(tmp_path / "f.npz"),
        "pickle": lambda: pickle.loads(dumped),
        "copy": lambda: copy.copy(f),
        "deep copy": lambda: copy.deepcopy(f),
    }
    other = ways[way]()
    assert other.dual_coef.dtype == other.inputs.dtype == np.float64
    assert relative(other(Z), exact) < 1e-6
    with jax.enable_x64(True):
        np.testing.assert_array_equal(other(Z), exact)


def test_initial_functions_drawn_in_float64_stay_float64():
    with jax.enable_x64(True):
        f: Any = pk.sample_initial(KERNEL, X, key=jax.random.key(0))
        exact = np.asarray(f(Z))
    for other in (f, pickle.loads(pickle.dumps(f)), jax.jit(lambda z: f(z))):
        assert relative(other(Z), exact) < 1e-6
    assert isinstance(f, InitialFunction)


def test_a_learner_trains_in_float64_on_request():
    learner: Any = pk.KernelLearner(KERNEL, "squared", GradientFlow(INF), precision=64)
    np.testing.assert_allclose(learner(X, Y)(X), Y, atol=1e-5)
    with pytest.raises(ValueError, match=r"precision must be 64, or left out .*; got 32"):
        fit(KERNEL, X, Y, precision=32)
    with pytest.raises(TypeError, match=r"fit\(precision=64\) cannot be traced"):
        jax.jit(lambda y: fit(KERNEL, X, y, precision=64).dual_coef)(Y)
    assert not precision.is_wider(np.zeros(3, np.float32))


# --- float32 matrices of large problems ---

LINEAR: Any = pk.TwoLayerNTK(1.0, True)
LARGE_X: Any = np.float32(np.random.default_rng(5).normal(size=(150, 4)))
LARGE_Y = np.where(LARGE_X[:, 0] + np.random.default_rng(6).normal(size=150) > 0, 1.0, -1.0)
LARGE: dict[str, Any] = {
    "squared flow": ("squared", LARGE_Y, GradientFlow(1.0)),
    "squared late": ("squared", LARGE_Y, GradientFlow(1e7)),
    "squared steps": ("squared", LARGE_Y, HeavyBall(0.1, 3000)),
    "several outputs": ("squared", np.stack([LARGE_Y, LARGE_X[:, 1]], 1), GradientFlow(1e7)),
    "logistic late": ("logistic", LARGE_Y, GradientFlow(1e4)),
    "logistic steps": ("logistic", LARGE_Y, HeavyBall(0.1, 500)),
    "softmax": ("softmax", pk.one_hot(np.arange(150) % 3, 3), GradientFlow(100.0)),
}


@pytest.mark.parametrize("case", LARGE)
@pytest.mark.parametrize("held", [False, True])
def test_errors_of_float32_products_are_reported_or_mended(case, held, monkeypatch):
    """As beyond 2,000 points. With room for a float64 matrix the tolerance is reached; with room
    for a float32 one only, what is reached is said.
    """
    loss, y, dynamics = LARGE[case]
    with jax.enable_x64(True):
        x = LARGE_X.astype(float)
        exact = np.asarray(fit(LINEAR, x, y, loss=loss, dynamics=dynamics)(x))
    monkeypatch.setattr(solvers, "_DIRECT", 0)
    memory = None if held else 5.0 * len(y) ** 2
    f = fit(LINEAR, LARGE_X, y, loss=loss, dynamics=dynamics, memory=memory)
    with jax.enable_x64(True):  # of the coefficients, whatever evaluates them
        outputs = np.asarray(LINEAR.ntk(x)) @ np.asarray(f.dual_coef, float)
    off = np.linalg.norm(outputs - exact) / np.linalg.norm(exact)
    reached = f.stats.get("error", 0.0) + f.stats["rounding"]
    # The explicit integrator leaves 1e-6 of the largest coefficients in each of 13 steps.
    integrated = 1e-4 if case == "softmax" else 1e-5
    assert off <= 5 * reached + integrated
    if not held:
        assert f.stats["gram_bits"] == 32
        if f.stats["error"] > 1e-5:  # more than is asked of float32
            assert "float32 kernel matrix leave" in f.status or "Lanczos" in f.status
    elif case == "squared late":
        assert f.stats["gram_bits"] == 64 and f.stats["error"] <= 1e-6
