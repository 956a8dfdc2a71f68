"""gaussian_process.py against scikit-learn, SciPy, `fit` and differences."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from common import D, M, N
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import PairwiseKernel

import perturbkernel as pk
from perturbkernel.kernels.stax_kernels import load_neural_tangents

Pairwise: Any = PairwiseKernel
Regressor: Any = GaussianProcessRegressor
normal: Any = multivariate_normal
KERNEL: Any = pk.TwoLayerNTK(0.2, True)
NOISE = 0.3
RNG = np.random.default_rng(4)
X, Z = RNG.normal(size=(N, D)), RNG.normal(size=(M, D))
Y = np.stack([X[:, 0] + RNG.normal(size=N), np.sin(X[:, 1])], axis=1)


def reference(name: str, x: Any, z: Any, slope: float = 0.2) -> np.ndarray:
    return oracle.nngp(x, z, slope) if name == "nngp" else oracle.ntk(x, z, slope, True)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", ["nngp", "ntk"])
def test_the_posterior_is_that_of_scikit_learn(name, several):
    y = Y if several else Y[:, 0]
    kernel = Pairwise(metric=lambda a, b, gamma: reference(name, a[None], b[None])[0, 0])
    model = Regressor(kernel, alpha=NOISE, optimizer=None).fit(X, y)
    exact_mean, exact = map(np.asarray, model.predict(Z, return_cov=True))
    found = pk.gaussian_process(KERNEL, X, y, noise=NOISE, kernel_name=name)
    assert found.status == "ok"
    each = exact[..., 0] if several else exact
    with jax.enable_x64(True):
        distribution = found.distribution(Z)
        np.testing.assert_allclose(distribution.mean, exact_mean, rtol=0, atol=1e-11)
        np.testing.assert_allclose(distribution.covariance, each, rtol=0, atol=1e-11)
    assert found.log_marginal_likelihood == pytest.approx(
        model.log_marginal_likelihood_value_, rel=1e-11
    )
    outputs = found(Z)
    assert outputs.dtype == np.float32  # JAX's own rule
    np.testing.assert_allclose(outputs, exact_mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("x", [2.0, 3.7])
def test_a_singular_matrix_is_said(x):
    """The last pivot of a point that is there twice is 0, or rounding that looks like noise."""
    twice, y = np.array([[x], [x]]), np.array([1, -1])
    found = pk.gaussian_process(pk.TwoLayerNTK(1.0), twice, y, noise=1e-20, kernel_name="ntk")
    assert found.status == "the kernel matrix is singular to rounding with noise 1e-20"


def test_the_mean_of_the_ntk_is_that_of_training_with_a_ridge(x64):
    found = pk.gaussian_process(KERNEL, X, Y, noise=NOISE, kernel_name="ntk")
    how: Any = {"loss": "squared", "dynamics": pk.GradientFlow(float("inf"))}
    f = pk.fit(KERNEL, X, Y, ridge=NOISE / N, **how)
    np.testing.assert_allclose(found.coef, f.dual_coef, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found(Z), f(Z), rtol=0, atol=1e-12)


def test_neural_tangents_agrees(x64):
    """Its posterior of the NNGP, and its flow on the squared loss, whose `diag_reg` is n ridge."""
    load_neural_tangents()
    predict: Any = importlib.import_module("neural_tangents.predict")
    y = jnp.asarray(Y)
    options: Any = {"diag_reg": NOISE, "diag_reg_absolute_scale": True}
    inference = predict.gp_inference(KERNEL.nngp(X), y, **options)
    exact = inference("nngp", KERNEL.nngp(Z, X), KERNEL.nngp(Z))
    found = pk.gaussian_process(KERNEL, X, Y, noise=NOISE).distribution(Z)
    np.testing.assert_allclose(found.mean, exact.mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.covariance, exact.covariance, rtol=0, atol=1e-12)
    descent = predict.gradient_descent_mse(KERNEL.ntk(X), y, **options)
    time = 30.0 * Y.shape[1]  # its loss is a mean over outputs, too
    _, outputs = descent(time, 0.0, 0.0, KERNEL.ntk(Z, X))
    how: Any = {"loss": "squared", "dynamics": pk.GradientFlow(30.0)}
    f = pk.fit(KERNEL, X, Y, ridge=NOISE / N, **how)
    np.testing.assert_allclose(f(Z), outputs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("slope", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ["nngp", "ntk"])
def test_the_likelihood_is_that_of_scipy(name, slope, x64):
    covariance = reference(name, X, X, slope) + NOISE * np.eye(N)
    exact = normal(np.zeros(N), covariance).logpdf(Y.T).sum()
    options: Any = {"noise": NOISE, "kernel_name": name}
    found = pk.log_marginal_likelihood(KERNEL, X, Y, slope=slope, **options)
    assert float(found) == pytest.approx(exact, rel=1e-12)
    own = pk.log_marginal_likelihood(pk.TwoLayerNTK(slope, True), X, Y, **options)
    assert float(own) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("x64_enabled", [False, True])
def test_the_gradient_of_the_likelihood(x64_enabled):
    """In slope, noise and inputs, under jit."""
    move = RNG.normal(size=X.shape)
    h = 1e-5

    def likelihood(slope, noise, x):
        return pk.log_marginal_likelihood(KERNEL, x, Y[:, 0], noise=noise, slope=slope)

    with jax.enable_x64(True):
        at = (0.4, NOISE, X)
        along = (1.0, 0.5, move)
        up, down = (
            likelihood(*(a + s * h * b for a, b in zip(at, along, strict=True))) for s in (1, -1)
        )
        exact = float(up - down) / (2 * h)
    with jax.enable_x64(x64_enabled):
        arguments = [jnp.asarray(a, float) for a in at]
        gradients = jax.jit(jax.grad(likelihood, argnums=(0, 1, 2)))(*arguments)
        found = sum(float(np.sum(np.asarray(g) * b)) for g, b in zip(gradients, along, strict=True))
    assert found == pytest.approx(exact, rel=1e-7 if x64_enabled else 1e-4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"noise": 0}, ValueError, "noise must be > 0 and finite; got 0"),
        ({"kernel_name": "phi"}, ValueError, "kernel_name must be one of 'nngp', 'ntk'"),
        ({"kernel": "relu"}, TypeError, "kernel must be a perturbkernel kernel"),
    ],
)
def test_bad_choices_say_what_is_wrong(changes, error, message):
    arguments: Any = {"kernel": KERNEL, "inputs": X, "targets": Y, "noise": 1.0} | changes
    for function in (pk.gaussian_process, pk.log_marginal_likelihood):
        with pytest.raises(error, match=message):
            function(**arguments)
    with pytest.raises(ValueError, match="slope must be >= 0 and <= 1; got 2"):
        pk.log_marginal_likelihood(KERNEL, X, Y, noise=1.0, slope=2.0)
