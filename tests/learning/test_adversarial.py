"""Adversarial training in the kernel regime against other solvers."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from common import D, N
from scipy.optimize import minimize

import perturbkernel as pk
from perturbkernel.learning import adversarial_training, feature_adversarial

RNG = np.random.default_rng(12)
X = RNG.normal(size=(N, D))
Y = np.where(X[:, 0] + 0.5 * RNG.normal(size=N) > 0, 1.0, -1.0)
# Its features are the inputs themselves.
LINEAR = pk.TwoLayerNTK(1.0, False)


def least(radius: float) -> float:
    """min over w of the mean of (|y - <w, x>| + radius |w|)^2, by another solver.

    Bounds t_n of the residuals and s of |w| make it smooth.
    """

    def split(v):
        return v[:D], v[D : D + N], v[-1]

    def above(v):
        w, t, s = split(v)
        return np.concatenate([t - (Y - X @ w), t + (Y - X @ w), [s - np.sqrt(w @ w + 1e-18)]])

    def cost(v):
        _, t, s = split(v)
        return np.mean((t + radius * s) ** 2)

    w = 0.5 * np.linalg.lstsq(X, Y, rcond=None)[0]
    start = np.concatenate([w, np.abs(Y - X @ w) + 0.1, [np.linalg.norm(w) + 0.1]])
    found = minimize(
        cost,
        start,
        constraints={"type": "ineq", "fun": above},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert found.success
    return found.fun


@pytest.mark.parametrize("radius", [0.02, 0.3, 1.0])
def test_perturbed_features_are_learned_from_by_the_least_objective(radius, x64):
    f = feature_adversarial(LINEAR, X, Y, radius=radius)
    w = X.T @ np.asarray(f.dual_coef)
    np.testing.assert_allclose(f(jnp.asarray(X)), X @ w, atol=1e-12)
    # Perturbed features are perturbed inputs here: the worst of them, one by one.
    residual = Y - X @ w
    worst = -np.sign(residual)[:, None] * radius * w[None] / np.linalg.norm(w)
    objective = np.mean((Y - (X + worst) @ w) ** 2)
    np.testing.assert_allclose(f.stats["objective"], objective, rtol=1e-9)
    # It converges linearly, and stops at a relative gain of 1e-9; SLSQP's answer has seven digits.
    # So large a radius leaves nothing to learn: f = 0, where the other solver meets a kink.
    expected = 1.0 if radius == 1.0 else least(radius)
    np.testing.assert_allclose(objective, expected, rtol=1e-6)
    assert f.status == "ok"


def test_a_larger_radius_learns_less_and_a_tiny_one_interpolates():
    kernel = pk.TwoLayerNTK(0.1, True)
    of_radius = [feature_adversarial(kernel, X, Y, radius=r) for r in (1e-4, 0.1, 0.5, 100.0)]
    lengths = [
        float(f.dual_coef @ kernel.ntk(jnp.asarray(X, jnp.float32)) @ f.dual_coef)
        for f in of_radius
    ]
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] < 1e-3 * lengths[0]
    np.testing.assert_allclose(of_radius[0](jnp.asarray(X, jnp.float32)), Y, atol=0.05)


@pytest.mark.parametrize("targets", [[1.0, 1.0], [0.0, 0.0]])
def test_points_that_coincide_and_targets_of_zero(targets):
    """A singular matrix, and 0 / 0 for the weights."""
    x, y = np.ones((2, 1)), np.array(targets)
    f = feature_adversarial(pk.TwoLayerNTK(1.0), x, y, radius=1e-4)
    assert f.status == "ok"
    np.testing.assert_allclose(f(2 * x), 2 * y, atol=1e-3)


def test_perturbed_inputs_are_learned_from_in_turn(x64):
    learner: Any = pk.KernelLearner(pk.TwoLayerNTK(), "squared", pk.GradientFlow(3.0))
    f = adversarial_training(learner, X, Y, size=0.4, rounds=2, steps=4)
    z: Any = jnp.asarray(X)
    for _ in range(2):
        before = learner(z, Y, None)
        step = pk.attack(before, X, Y, size=0.4, away=True, steps=4).delta
        z = X + step
    np.testing.assert_allclose(f.inputs, z, atol=1e-12)
    assert f(jnp.asarray(X)).shape == (N,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: feature_adversarial(LINEAR, X, Y, radius=0.0), "radius must be"),
        (lambda: feature_adversarial(LINEAR, X, Y[1:], radius=1.0), "targets must"),
        (lambda: adversarial_training(None, X, Y, size=0.1, rounds=0), "rounds must be"),
        (lambda: adversarial_training(None, X, 2 * Y, size=0.1), "targets must"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
