"""Weights of points: whole weights are copies, zero is absence, and only ratios count."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from common import D, M, N, representable
from sklearn.kernel_ridge import KernelRidge

import perturbkernel as pk

fit: Any = pk.fit
Flow: Any = pk.GradientFlow
KERNEL: Any = pk.TwoLayerNTK(0.2, True)
INF = float("inf")
OUTPUTS = 3
RNG = np.random.default_rng(8)
X, Z = (representable(RNG.normal(size=(k, D)), np.float32) for k in (N, M))
Y = np.where(X[:, 0] + RNG.normal(size=N) > 0, 1.0, -1.0)
CODES = np.eye(OUTPUTS)[RNG.integers(OUTPUTS, size=N)] - 1 / OUTPUTS
COPIES = np.array([1, 2, 3] * N)[:N]

BALL = pk.HeavyBall(0.1, 20)
CASES: dict[str, Any] = {
    f"{loss} {name}{' ridge' * (ridge > 0)}": (loss, dynamics, ridge)
    for loss in ("identity", "squared", "logistic", "exponential", "softmax")
    for name, dynamics, ridge in (
        ("flow", Flow(10.0), 0.0),
        ("ball", BALL, 0.05),
        ("minimum", Flow(INF), 0.05),
    )
}


def start(z):
    return jnp.sin(z[:, 0])


def start_of_classes(z):
    return jnp.sin(z[:, :OUTPUTS])


def outputs(case: str, rows: Any, weights: Any, **options: Any) -> np.ndarray:
    loss, dynamics, ridge = CASES[case]
    several = loss == "softmax"
    targets = CODES if several else Y
    options |= {"loss": loss, "dynamics": dynamics, "ridge": ridge}
    initial = start_of_classes if several else start
    f = fit(KERNEL, X[rows], targets[rows], initial=initial, sample_weight=weights, **options)
    assert f.status == "ok"
    return np.asarray(f(Z))


@pytest.mark.parametrize("case", CASES)
def test_whole_weights_are_copies(case, x64):
    weighted = outputs(case, np.arange(N), COPIES)
    repeated = outputs(case, np.repeat(np.arange(N), COPIES), None)
    # Both are integrated to 1e-9 a step.
    np.testing.assert_allclose(weighted, repeated, rtol=0, atol=1e-7)
    assert np.abs(weighted - outputs(case, np.arange(N), None)).max() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_zero_is_absence(case, x64):
    weights = np.where(np.arange(N) % 3, COPIES, 0)
    rows = np.flatnonzero(weights)
    weighted = outputs(case, np.arange(N), weights)
    # The same sums, rounded in another order, which integration carries on.
    np.testing.assert_allclose(weighted, outputs(case, rows, weights[rows]), rtol=0, atol=1e-11)


def test_a_point_of_weight_zero_may_contradict_another(x64):
    """Twice the same point, of two labels, has no interpolation."""
    x, y = np.concatenate([X, X[:1]]), np.append(Y, -Y[0])
    weights = np.append(np.ones(N), 0.0)
    f = fit(KERNEL, x, y, loss="squared", dynamics=Flow(INF), sample_weight=weights)
    assert f.status == "ok" and f.dual_coef[-1] == 0
    np.testing.assert_allclose(f(X), Y, atol=1e-9)
    both = fit(KERNEL, x, y, loss="squared", dynamics=Flow(INF), sample_weight=weights + 1)
    assert both.status.startswith("singular kernel matrix")

    @jax.jit
    def traced(x):
        how = {"loss": "squared", "dynamics": Flow(INF), "sample_weight": weights}
        return fit(KERNEL, x, y, **how).dual_coef

    np.testing.assert_allclose(traced(x), f.dual_coef, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", ["squared minimum ridge", "logistic flow", "identity flow"])
def test_only_ratios_count(case, x64):
    weights = RNG.random(N) + 0.1
    first = outputs(case, np.arange(N), weights)
    np.testing.assert_allclose(first, outputs(case, np.arange(N), 1e6 * weights), rtol=1e-9)
    equal = outputs(case, np.arange(N), np.full(N, 3))
    np.testing.assert_array_equal(equal, outputs(case, np.arange(N), None))


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize(("name", "ridge"), [("flow", 0.0), ("ball", 0.05), ("minimum", 0.05)])
def test_without_memory_the_same_outputs_come_out(loss, name, ridge, x64):
    case = f"{loss} {name}{' ridge' * (ridge > 0)}"
    exact = outputs(case, np.arange(N), COPIES)
    found = outputs(case, np.arange(N), COPIES, memory=0)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-7 * np.abs(exact).max())


def test_kernel_ridge_with_weights(x64):
    """scikit-learn minimises a sum: alpha is the ridge times the sum of the weights."""
    weights = RNG.random(N)
    f = fit(KERNEL, X, Y, loss="squared", dynamics=Flow(INF), ridge=0.05, sample_weight=weights)
    model = KernelRidge(alpha=0.05 * weights.sum(), kernel="precomputed")
    model.fit(oracle.ntk(X, X, 0.2, True), Y, sample_weight=weights)
    exact = model.predict(oracle.ntk(Z, X, 0.2, True))
    np.testing.assert_allclose(f(Z), exact, rtol=0, atol=1e-12)


def test_the_distribution_with_weights_is_that_of_copies(x64):
    how: Any = {"loss": "squared", "dynamics": Flow(10.0), "ridge": 0.05}
    rows = np.repeat(np.arange(N), COPIES)
    weighted = fit(KERNEL, X, Y, sample_weight=COPIES, **how).distribution(Z)
    repeated = fit(KERNEL, X[rows], Y[rows], **how).distribution(Z)
    np.testing.assert_allclose(weighted.covariance, repeated.covariance, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (-np.ones(N), r"sample_weight must be >= 0, and not zero for all points; got -1 in row 0"),
        (np.zeros(N), r"sample_weight must be >= 0, and not zero for all points; got 0 in row 0"),
        (np.ones(3), r"sample_weight must have shape \(17,\)"),
        (np.full(N, np.nan), "sample_weight must be finite"),
    ],
)
def test_bad_weights_say_what_is_wrong(weights, message):
    with pytest.raises(ValueError, match=message):
        fit(KERNEL, X, Y, sample_weight=weights)
