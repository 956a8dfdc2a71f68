"""The ridge of every loss under every dynamics: against NumPy, SciPy and scikit-learn in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from common import DTYPES, D, M, N, precision, representable
from scipy.integrate import solve_ivp
from scipy.special import expit, softmax
from sklearn.kernel_ridge import KernelRidge

import perturbkernel as pk

fit: Any = pk.fit
Ridge: Any = KernelRidge
Flow: Any = pk.GradientFlow
KERNEL: Any = pk.TwoLayerNTK(0.2, True)
INF = float("inf")
RIDGE = 0.03
OUTPUTS = 3
RNG = np.random.default_rng(4)
X, Z = (representable(RNG.normal(size=(k, D)), np.float32) for k in (N, M))
Y = np.where(X[:, 0] + RNG.normal(size=N) > 0, 1.0, -1.0)
CODES = np.eye(OUTPUTS)[RNG.integers(OUTPUTS, size=N)] - 1 / OUTPUTS
GRAM = oracle.ntk(X, X, 0.2, True)
LOSSES = ("identity", "squared", "logistic", "exponential", "softmax")


def start(z):
    return jnp.sin(z[:, 0])


def start_of_classes(z):
    return jnp.sin(z[:, :OUTPUTS])


def force(loss: str, outputs: np.ndarray) -> np.ndarray:
    """Minus the derivative of the loss of each point in its outputs."""
    if loss == "identity":
        return Y
    if loss == "squared":
        return Y - outputs
    if loss == "logistic":
        return Y * expit(-Y * outputs)
    if loss == "exponential":
        return Y * np.exp(-Y * outputs)
    return CODES + 1 / OUTPUTS - softmax(outputs, axis=1)


def velocity(loss: str, dual: np.ndarray, ridge: float) -> np.ndarray:
    before = np.sin(X[:, :OUTPUTS]) if loss == "softmax" else np.sin(X[:, 0])
    return force(loss, before + GRAM @ dual) / N - ridge * dual


def flow(loss: str, time: float, ridge: float) -> np.ndarray:
    shape = CODES.shape if loss == "softmax" else Y.shape
    found = solve_ivp(
        lambda _, dual: velocity(loss, dual.reshape(shape), ridge).ravel(),
        (0, time),
        np.zeros(shape).ravel(),
        method="DOP853",
        rtol=1e-11,
        atol=1e-14,
    )
    return found.y[:, -1].reshape(shape)


def trained(loss: str, dynamics: Any, ridge: Any = RIDGE, **options: Any) -> Any:
    several = loss == "softmax"
    initial = start_of_classes if several else start
    targets = CODES if several else Y
    options |= {"loss": loss, "dynamics": dynamics, "initial": initial, "ridge": ridge}
    return fit(KERNEL, X, targets, **options)


@pytest.mark.parametrize("loss", LOSSES)
def test_flow_decays_at_the_rate_of_the_ridge(loss, x64):
    f = trained(loss, Flow(20.0))
    exact = flow(loss, 20.0, RIDGE)
    assert f.status == "ok"
    # Integrators to 1e-9 a step.
    np.testing.assert_allclose(f.dual_coef, exact, rtol=0, atol=1e-7 * np.abs(exact).max())
    without = np.asarray(trained(loss, Flow(20.0), 0.0).dual_coef)
    assert np.abs(without - exact).max() > 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("loss", LOSSES)
def test_heavy_ball_takes_the_steps_themselves(loss, x64):
    ball = pk.HeavyBall(0.1, 30, 0.8)
    dual = np.zeros(CODES.shape if loss == "softmax" else Y.shape)
    speed = np.zeros_like(dual)
    for _ in range(30):
        speed = 0.8 * speed + velocity(loss, dual, RIDGE)
        dual = dual + 0.1 * speed
    f = trained(loss, ball)
    assert f.status == "ok"
    np.testing.assert_allclose(f.dual_coef, dual, rtol=0, atol=1e-12 * np.abs(dual).max())


@pytest.mark.parametrize("ridge", [RIDGE, 1e-6])
@pytest.mark.parametrize("loss", LOSSES)
def test_infinite_time_is_the_stationary_point(loss, ridge, x64):
    f = trained(loss, Flow(INF), ridge)
    left = velocity(loss, np.asarray(f.dual_coef), ridge)
    assert f.status == "ok"
    size = np.abs(ridge * f.dual_coef).max()
    # Of 1e-6, the force is a difference of outputs that are 1e6 times as large.
    assert np.abs(left).max() <= (1e-9 if ridge == RIDGE else 1e-6) * size
    late = np.asarray(trained(loss, Flow(3e3), ridge).dual_coef)
    if ridge == RIDGE:
        np.testing.assert_allclose(late, f.dual_coef, rtol=0, atol=1e-8 * np.abs(late).max())


@pytest.mark.parametrize("loss", ["logistic", "exponential", "softmax"])
def test_the_residual_bounds_the_distance_to_the_minimum(loss, x64):
    exact = np.asarray(trained(loss, Flow(INF)).dual_coef)
    for tolerance in (0.1, 1e-2, 1e-4):
        f = trained(loss, Flow(INF), tolerance=tolerance)
        off = np.asarray(f.dual_coef) - exact
        distance = np.sqrt(np.sum(off * (GRAM @ off)))
        length = np.sqrt(np.sum(f.dual_coef * (GRAM @ f.dual_coef)))
        assert f.status == "ok"
        assert distance <= f.stats["residual"] * length + 1e-12 <= tolerance * length + 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_squared_loss_is_kernel_ridge(dtype):
    with precision(dtype):
        f = fit(KERNEL, X, Y, loss="squared", dynamics=Flow(INF), ridge=RIDGE)
        outputs = np.asarray(f(Z), float)
    model = Ridge(alpha=N * RIDGE, kernel="precomputed").fit(GRAM, Y)
    exact = model.predict(oracle.ntk(Z, X, 0.2, True))
    atol = 1e-12 if dtype == np.float64 else 3e-6
    np.testing.assert_allclose(outputs, exact, rtol=0, atol=atol * np.abs(exact).max())


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
@pytest.mark.parametrize("dynamics", [Flow(20.0), Flow(INF), pk.HeavyBall(0.1, 30)])
def test_without_memory_the_same_coefficients_come_out(loss, dynamics, x64):
    exact = np.asarray(trained(loss, dynamics).dual_coef)
    f = trained(loss, dynamics, memory=0)
    assert f.status == "ok" and f.stats["gram_held"] == 0
    np.testing.assert_allclose(f.dual_coef, exact, rtol=0, atol=1e-7 * np.abs(exact).max())


def test_a_singular_matrix_is_none_with_a_ridge(x64):
    x, y = np.concatenate([X, X]), np.concatenate([Y, -Y])
    f = fit(KERNEL, x, y, loss="squared", dynamics=Flow(INF), ridge=RIDGE)
    assert f.status == "ok" and f.stats["residual"] < 1e-12
    assert np.abs(np.asarray(f(x))).max() < 1e-12  # every point has both labels


def test_the_distribution_of_a_penalised_network(x64):
    """Against networks trained from drawn initial functions."""
    ridge = 0.05
    how: Any = {"loss": "squared", "dynamics": Flow(30.0), "ridge": ridge}
    covariance = np.asarray(fit(KERNEL, X, Y, **how).distribution(Z).covariance)
    points = jnp.concatenate([jnp.asarray(X), jnp.asarray(Z)])
    draws = 4000
    f0 = pk.sample_initial(KERNEL, points, draws, key=jax.random.key(0))
    targets = np.zeros((N, draws))
    outputs = np.asarray(fit(KERNEL, X, targets, initial=f0, **how)(Z))
    spread = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    # Six standard errors of a covariance, at most sqrt(2 / draws).
    assert np.abs(np.cov(outputs) - covariance).max() <= 6 * np.sqrt(2 / draws) * spread.max()
    plain = fit(KERNEL, X, Y, loss="squared", dynamics=Flow(30.0)).distribution(Z).covariance
    assert np.abs(np.cov(outputs) - plain).max() > 6 * np.sqrt(2 / draws) * spread.max()


def test_a_file_keeps_ridge_and_weights(tmp_path):
    weights = np.arange(1.0, N + 1)
    f = trained("squared", Flow(2.0), sample_weight=weights)
    f.save(tmp_path / "f.npz")
    g = pk.KernelPredictor.load(tmp_path / "f.npz", initial=start)
    assert g.ridge == RIDGE
    np.testing.assert_array_equal(g.sample_weight, f.sample_weight)
    np.testing.assert_allclose(f.sample_weight, weights / weights.mean(), rtol=1e-6)


def test_a_learner_passes_it_on():
    learner: Any = pk.KernelLearner(KERNEL, loss="squared", dynamics=Flow(INF), ridge=RIDGE)
    f = fit(KERNEL, X, Y, loss="squared", dynamics=Flow(INF), ridge=RIDGE)
    np.testing.assert_array_equal(learner(X, Y).dual_coef, f.dual_coef)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"ridge": -1}, ValueError, "ridge must be >= 0 and finite; got -1"),
        ({"ridge": INF}, ValueError, "ridge must be >= 0 and finite; got inf"),
        ({"ridge": "some"}, TypeError, "ridge must be a number; got 'some'"),
        (
            {"loss": "logistic", "dynamics": Flow(INF)},
            ValueError,
            "time must be finite for the logistic loss, which has no minimum without ridge; got inf",
        ),
        (
            {"ridge": 100.0, "dynamics": pk.HeavyBall(0.1, 9, 0.0)},
            ValueError,
            r"learning_rate must be below 2 \(1 \+ momentum\) / ridge = 0.02, beyond which the",
        ),
        (
            {"ridge": 100.0, "dynamics": pk.HeavyBall(0.1, 9, 0.0), "loss": "squared"},
            ValueError,
            r"below 2 \(1 \+ momentum\) / \(lambda_max / n \+ ridge\) = 0.019",
        ),
    ],
)
def test_bad_choices_say_what_is_wrong(changes, error, message):
    with pytest.raises(error, match=message):
        fit(KERNEL, X, Y, **changes)


def test_a_minimum_that_is_not_reached_is_reported(x64, monkeypatch):
    from perturbkernel.training import minimum

    monkeypatch.setattr(minimum, "_STEPS", 1)
    jax.clear_caches()
    f = trained("logistic", Flow(INF), 1e-3)
    jax.clear_caches()
    assert f.status.startswith("Newton's method for the logistic loss stopped after 1 steps")
    assert f.stats["residual"] > 1e-9
