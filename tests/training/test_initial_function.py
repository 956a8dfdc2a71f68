"""gaussian_process.py and KernelPredictor.distribution, against neural-tangents, draws, and finite
networks.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from common import D, M, N, precision

import perturbkernel as pk
from perturbkernel.kernels.stax_kernels import load_neural_tangents
from perturbkernel.training.initial_function import trained_covariance
from perturbkernel.training.losses import LOSSES
from perturbkernel.training.smoother import Training

KERNEL: Any = pk.TwoLayerNTK(0.2, True)
RNG = np.random.default_rng(7)
X, Z = RNG.normal(size=(N, D)), RNG.normal(size=(M, D))
Z[:2] = X[:2]
Y = np.where(X[:, 0] > 0, 1.0, -1.0)
BOTH = np.concatenate([X, Z])
INF = float("inf")
RATES = np.random.default_rng(2).uniform(0, 0.3, size=25)
DYNAMICS: dict[str, Any] = {
    "flow": (pk.GradientFlow(20.0), ("flow", 20.0)),
    "infinite": (pk.GradientFlow(INF), ("flow", INF)),
    "heavy ball": (pk.HeavyBall(0.1, 25), ("heavy_ball", np.full(25, 0.1), 0.9)),
    "rates": (pk.HeavyBall(RATES.tolist(), momentum=0.5), ("heavy_ball", RATES, 0.5)),
}
fit: Any = pk.fit


@functools.cache
def ensemble(columns: int) -> Any:
    """neural-tangents' own mean and covariance of the same network on the same data."""
    stax = load_neural_tangents()
    first = stax.Dense(1, W_std=1, b_std=1, parameterization="standard")
    # Hundreds of small programs otherwise.
    kernel_fn = jax.jit(stax.serial(first, stax.LeakyRelu(0.2))[2], static_argnums=2)
    targets = np.stack([Y, X[:, 1], X[:, 2] ** 2], axis=1)[:, :columns]
    return load_neural_tangents("predict").gradient_descent_mse_ensemble(
        kernel_fn, X, targets
    ), targets


@pytest.mark.parametrize("time", [20.0, INF])
@pytest.mark.parametrize("columns", [1, 3])
def test_squared_loss_equals_neural_tangents_ensemble(time, columns, x64):
    predict, targets = ensemble(columns)
    f = fit(
        KERNEL, X, targets if columns > 1 else Y, loss="squared", dynamics=pk.GradientFlow(time)
    )
    found = f.distribution(Z)
    # Its time is divided by the number of targets, ours by the number of points.
    exact = predict(None if time == INF else time * columns, Z, "ntk", compute_cov=True)
    # At training points its angles are rounded: 1e-8, times the condition of the kernel matrix when
    # it is inverted.
    limit = 1e-5 if time == INF else 1e-6
    np.testing.assert_allclose(found.mean.reshape(M, columns), exact.mean, rtol=0, atol=limit)
    np.testing.assert_allclose(found.covariance, exact.covariance, rtol=0, atol=limit)
    assert found.covariance.shape == (M, M)
    # For data of this size the ensemble is far from certain: a missing term would be seen.
    assert np.abs(exact.covariance - oracle.nngp(Z, Z, 0.2)).max() > 0.1


@pytest.mark.parametrize("name", DYNAMICS)
def test_squared_loss_is_linear_in_the_initial_function(name, x64):
    """A(z) column by column, from training step by step on unit residuals in NumPy."""
    dynamics, steps = DYNAMICS[name]
    units = [
        oracle.dual_coef(X, unit, 0.2, True, "squared", steps, np.zeros(N)) for unit in np.eye(N)
    ]
    weights = oracle.matvec(Z, X, np.stack(units, axis=1), 0.2, True)  # (M, N)
    both = np.concatenate([-weights, np.eye(M)], axis=1)
    exact = both @ oracle.nngp(BOTH, BOTH, 0.2) @ both.T
    f = fit(KERNEL, X, Y, loss="squared", dynamics=dynamics)
    found = f.distribution(Z)
    np.testing.assert_allclose(found.covariance, exact, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.mean, weights @ Y, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.std**2, np.maximum(np.diag(exact), 0), rtol=0, atol=1e-10)
    spectrum = np.linalg.eigvalsh(np.asarray(found.covariance))
    assert spectrum[0] > -1e-13 * spectrum[-1]  # positive semidefinite to rounding
    if name == "infinite":
        assert np.all(found.std[:2] < 1e-6)  # interpolated, whatever the initial function


def test_identity_loss_keeps_the_initial_covariance(x64):
    f = fit(KERNEL, X, Y, dynamics=pk.HeavyBall(0.1, 25))
    found = f.distribution(Z)
    np.testing.assert_array_equal(found.mean, f(Z))
    np.testing.assert_allclose(found.covariance, oracle.nngp(Z, Z, 0.2), rtol=1e-12)


def test_draws_of_the_initial_function_trained_one_by_one_have_that_distribution(x64):
    """20,000 initial functions, trained by `fit` as the outputs of one network; the identity loss
    shares the draws.
    """
    count = 20_000
    initial = pk.sample_initial(KERNEL, BOTH, count, key=jax.random.key(0))
    for loss in ("identity", "squared"):
        targets = np.repeat(Y[:, None], count, axis=1)
        trained = fit(KERNEL, X, targets, loss=loss, dynamics=pk.GradientFlow(5.0), initial=initial)
        found = fit(KERNEL, X, Y, loss=loss, dynamics=pk.GradientFlow(5.0)).distribution(Z)
        check_moments(
            np.asarray(trained(Z)).T, np.asarray(found.mean), np.asarray(found.covariance)
        )


def check_moments(draws: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Within five standard errors, of the mean and of each covariance, (c_ij^2 + c_ii c_jj) /
    count.
    """
    count, variance = len(draws), np.diag(covariance)
    assert np.all(np.abs(draws.mean(0) - mean) <= 5 * np.sqrt(variance / count))
    error = np.sqrt((covariance**2 + variance[:, None] * variance) / count)
    assert np.all(np.abs((draws - mean).T @ (draws - mean) / count - covariance) <= 5 * error)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_initial_functions_at_points_that_coincide(dtype):
    """A singular covariance: 28 points of which 15 are different."""
    points = np.concatenate([X, X[:9], Z[:2]]).astype(dtype)
    with precision(dtype):
        initial = pk.sample_initial(KERNEL, points, 4000, key=jax.random.key(1))
        values = np.asarray(initial(points), float)
        again = pk.sample_initial(KERNEL, points, 4000, key=jax.random.key(1))(points)
        single = pk.sample_initial(KERNEL, points, key=jax.random.key(1))
        assert single(points).shape == (len(points),)
        assert single(points).dtype == dtype
        other = pk.sample_initial(KERNEL, points, key=jax.random.key(2))(points)
        assert np.abs(np.asarray(other - single(points))).max() > 0.1
    np.testing.assert_array_equal(values, again)
    np.testing.assert_allclose(
        values[N : N + 9], values[:9], atol=1e-3 if dtype == np.float32 else 1e-7
    )
    check_moments(
        values[:N].T,
        np.zeros(N),
        oracle.nngp(points[:N].astype(float), points[:N].astype(float), 0.2),
    )


def test_an_initial_function_can_be_trained_from_and_attacked(x64):
    initial = pk.sample_initial(KERNEL, BOTH, key=jax.random.key(3))
    f = fit(KERNEL, X, Y, dynamics=pk.GradientFlow(5.0), initial=initial)
    step = 1e-6 * np.eye(D)
    rise = [(f(Z + e) - f(Z - e)) / 2e-6 for e in step]
    np.testing.assert_allclose(np.stack(rise, axis=1)[2:], f.input_gradient(Z)[2:], atol=1e-6)
    targets = -np.sign(f(Z))
    moved = Z + np.asarray(pk.perturb(f, Z, targets, size=0.1).delta)
    assert np.all(targets * np.asarray(f(moved)) > targets * np.asarray(f(Z)))


@pytest.mark.parametrize("columns", [None, 2])
def test_samples_of_the_distribution(columns, x64):
    y = Y if columns is None else np.stack([Y, -Y], axis=1)
    found = fit(KERNEL, X, y, loss="squared", dynamics=pk.GradientFlow(INF)).distribution(Z)
    draws = np.asarray(found.sample(20_000, key=jax.random.key(0)))
    assert draws.shape == (20_000, *found.mean.shape)
    free = slice(2, None)  # the first two points are interpolated
    for column in range(columns or 1):
        each, mean = (
            np.asarray(a).reshape(*a.shape, -1)[..., :1] if columns is None else np.asarray(a)
            for a in (draws, found.mean)
        )
        check_moments(
            each[:, free, column], mean[free, column], np.asarray(found.covariance)[free, free]
        )
    if columns is not None:
        cross = np.mean(
            (draws - np.asarray(found.mean))[..., 0] * (draws - np.asarray(found.mean))[..., 1],
            axis=0,
        )
        assert np.all(np.abs(cross) <= 5 * np.asarray(found.std) ** 2 / np.sqrt(20_000) + 1e-12)
    np.testing.assert_allclose(
        draws[:, :2], np.broadcast_to(found.mean[:2], draws[:, :2].shape), atol=1e-5
    )


def test_wide_networks_spread_as_the_distribution_says():
    """256 networks of width 512, each from its own initial function, by gradient descent on the
    squared loss.
    """
    count, width, rate, steps = 256, 512, 0.5, 40
    keys = jax.random.split(jax.random.key(0), count)
    nets = jax.vmap(lambda key: pk.networks.TwoLayerNetwork.init(D, width, 0.2, True, key=key))(
        keys
    )
    trained, _ = pk.networks.ensemble(
        nets, X, Y, learning_rate=rate, momentum=0.0, loss="squared", steps=steps
    )
    found = fit(KERNEL, X, Y, loss="squared", dynamics=pk.HeavyBall(rate, steps, 0.0)).distribution(
        Z
    )
    draws = np.asarray(trained(jnp.asarray(Z)))
    ratio = draws.std(0) / np.asarray(found.std)
    # The error of a standard deviation is 1 / sqrt(2 count) = 4.4 %; finite width adds a few
    # percent.
    assert np.all(np.abs(ratio - 1) < 0.25)
    assert abs(ratio.mean() - 1) < 0.07
    assert np.all(
        np.abs(draws.mean(0) - np.asarray(found.mean))
        < 5 * np.asarray(found.std) / np.sqrt(count) + 0.05
    )
    untrained = np.sqrt(np.diag(oracle.nngp(Z, Z, 0.2)))
    assert np.all(np.asarray(found.std)[:2] < 0.8 * untrained[:2])


def test_what_is_saved_and_what_went_through_jit_keeps_its_distribution(tmp_path, x64):
    for dynamics, _ in DYNAMICS.values():
        f = fit(KERNEL, X, Y, loss="squared", dynamics=dynamics)
        exact = np.asarray(f.distribution(Z).covariance)
        f.save(tmp_path / "f.npz")
        for other in (pk.KernelPredictor.load(tmp_path / "f.npz"), jax.jit(lambda f: f)(f)):
            np.testing.assert_allclose(other.distribution(Z).covariance, exact, rtol=0, atol=1e-13)


def test_other_times_compile_nothing_anew():
    traces = []

    @jax.jit
    def evaluate(f):
        traces.append(f)
        return f(Z)

    for time in (1.0, 2.0):
        evaluate(fit(KERNEL, X, Y, dynamics=pk.GradientFlow(time)))
        evaluate(fit(KERNEL, X, Y, dynamics=pk.HeavyBall(time, 5)))
    assert len(traces) == 2


def test_float32_predictors_answer_in_float32():
    found = fit(KERNEL, X, Y, loss="squared", dynamics=pk.GradientFlow(20.0)).distribution(Z)
    assert (
        found.mean.dtype
        == found.covariance.dtype
        == found.sample(2, key=jax.random.key(0)).dtype
        == jnp.float32
    )


def test_bad_requests_say_what_is_wrong(monkeypatch):
    key = jax.random.key(0)
    with pytest.raises(
        ValueError, match="known for loss 'identity' and 'squared', not for 'logistic'"
    ):
        fit(KERNEL, X, Y, loss="logistic").distribution(Z)
    with pytest.raises(ValueError, match="which this predictor does not say"):
        pk.KernelPredictor(KERNEL, jnp.asarray(X), jnp.asarray(Y)).distribution(Z)
    with pytest.raises(ValueError, match="needs a predictor trained without initial"):
        fit(KERNEL, X, Y, initial=pk.sample_initial(KERNEL, X, key=key)).distribution(Z)
    with pytest.raises(ValueError, match=r"z must have rows of shape \(5,\)"):
        fit(KERNEL, X, Y).distribution(Z[:, :4])
    with pytest.raises(ValueError, match="outputs must be at least 1; got 0"):
        pk.sample_initial(KERNEL, X, 0, key=key)
    with pytest.raises(ValueError, match="points must be finite"):
        pk.sample_initial(KERNEL, X * np.nan, key=key)
    with pytest.raises(TypeError, match="key must be one JAX random key"):
        pk.sample_initial(KERNEL, X, key=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"count must be a whole number; got 0\.5"):
        fit(KERNEL, X, Y).distribution(Z).sample(0.5, key=key)
    monkeypatch.setattr(
        "perturbkernel.training.initial_function.available_memory", lambda: 8 * 4 * N**2 - 1
    )
    with pytest.raises(
        ValueError, match=r"the covariance of 17 training points takes four 17 x 17 matrices"
    ):
        trained_covariance(
            KERNEL,
            jnp.asarray(X),
            jnp.asarray(Z),
            Training(LOSSES["squared"], pk.GradientFlow(1.0)),
        )
