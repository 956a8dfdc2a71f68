"""The same kernels and predictors as others compute them: neural-tangents, explicit Jacobians as its
documentation defines its empirical kernels, and scikit-learn on kernel matrices.

One convolutional network of infinite width, in float64: every difference is rounding, but where a
tolerance says otherwise.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel as SklearnKernel
from sklearn.kernel_ridge import KernelRidge

import perturbkernel as pk
from perturbkernel.kernels.stax_kernels import load_neural_tangents

stax: Any = load_neural_tangents()
predict: Any = load_neural_tangents("predict")
Ridge: Any = KernelRidge
Regressor: Any = GaussianProcessRegressor

RNG = np.random.default_rng(0)
SHAPE = (4, 4, 1)
N, M, K = 10, 4, 3
X = RNG.normal(size=(N, 16))
Z = RNG.normal(size=(M, 16))
Y = RNG.normal(size=(N, 1))
F0 = RNG.normal(size=(N + M, 1)) / 2
LABELS = RNG.integers(K, size=N)
KERNEL = pk.ArchitectureNTK.convolutional(SHAPE, depth=1, pooling=False)
TIME = 7.0
ENDLESS = pk.GradientFlow(np.inf)
BOTH = ("nngp", "ntk")


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def matrices() -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(KERNEL.ntk(X)), np.asarray(KERNEL.ntk(Z, X))


# Hundreds of small programs otherwise.
_THEIRS: Any = jax.jit(KERNEL.network[2], static_argnums=2)


def theirs(*points: Any) -> Any:
    """Both kernels as neural-tangents computes them, on images."""
    images = [None if a is None else a.reshape(-1, *SHAPE) for a in points]
    return _THEIRS(*images, BOTH)


class Start:
    """A function that has given values at X and Z."""

    def __call__(self, z):
        return jnp.asarray(F0[:N, 0] if len(z) == N else F0[N:, 0])


# --- neural-tangents' predictions ---


def test_both_kernels_are_theirs():
    for points in ((X, None), (Z, X)):
        expected = theirs(*points)
        own = [a for a in points if a is not None]
        assert_allclose(KERNEL.nngp(*own), expected.nngp, rtol=1e-12)
        # They know the angle of a point with itself to 1e-8.
        assert_allclose(KERNEL.ntk(*own), expected.ntk, rtol=1e-7)


@pytest.mark.parametrize("time", [TIME, np.inf])
@pytest.mark.parametrize("start", [False, True])
def test_fit_is_gradient_descent_mse(time, start):
    k_train, k_test = matrices()
    f = pk.fit(
        KERNEL,
        X,
        Y[:, 0],
        loss="squared",
        dynamics=pk.GradientFlow(time),
        initial=Start() if start else None,
    )
    prediction = predict.gradient_descent_mse(k_train, Y)
    t = None if np.isinf(time) else time
    at_start = (F0[:N], F0[N:]) if start else (0.0, 0.0)
    train, test = prediction(t, *at_start, k_test)
    assert_allclose(f(X), train[:, 0], atol=1e-10)
    assert_allclose(f(Z), test[:, 0], atol=1e-10)


@pytest.mark.parametrize("time", [TIME, np.inf])
def test_ridge_is_their_diagonal_regularisation(time):
    """n ridge = diag_reg, absolute, or times the mean of the diagonal; at a finite time too."""
    k_train, k_test = matrices()
    t = None if np.isinf(time) else time
    for absolute in (True, False):
        added = 0.3 if absolute else 0.3 * np.trace(k_train) / N
        dynamics = pk.GradientFlow(time)
        f = pk.fit(KERNEL, X, Y[:, 0], loss="squared", dynamics=dynamics, ridge=added / N)
        options = {"diag_reg": 0.3, "diag_reg_absolute_scale": absolute}
        prediction = predict.gradient_descent_mse(k_train, Y, **options)
        expected = prediction(t, None, 0.0, k_test)
        assert_allclose(f(Z), expected[:, 0], atol=1e-10)


def test_of_k_outputs_they_divide_the_loss_by_k():
    k_train, k_test = matrices()
    y = np.asarray(pk.one_hot(LABELS, K), float)
    f = pk.fit(KERNEL, X, y, loss="squared", dynamics=pk.GradientFlow(TIME / K))
    _, test = predict.gradient_descent_mse(k_train, y)(TIME, 0.0, 0.0, k_test)
    assert_allclose(f(Z), test, atol=1e-10)
    rate = 0.3  # "absolute time" is rate times steps
    _, test = predict.gradient_descent_mse(k_train, y, rate)(TIME / rate, 0.0, 0.0, k_test)
    assert_allclose(f(Z), test, atol=1e-10)


def test_softmax_is_gradient_descent_on_the_cross_entropy():
    """Both integrate; ours to 1e-9, theirs to 1.4e-8 a step."""
    k_train, k_test = matrices()
    y = np.eye(K)[LABELS]

    def cross_entropy(f, y):
        return -jnp.mean(jax.nn.log_softmax(f) * y)

    f = pk.fit(KERNEL, X, y, loss="softmax", dynamics=pk.GradientFlow(TIME / K))
    prediction = predict.gradient_descent(cross_entropy, k_train, y)
    _, test = prediction(TIME, 0.0, 0.0, k_test)
    assert_allclose(f(Z), test, atol=1e-6)


def test_their_momentum_is_the_limit_of_small_steps():
    """They solve f'' = -(1 - mu) f' / sqrt(rate) - K grad at times sqrt(rate) steps; heavy ball
    takes the steps. With the friction held, the difference falls as the step does.
    """
    k_train, k_test = matrices()
    distances = []
    for rate in (1e-2, 2.5e-3):
        step = rate**0.5
        mu, steps = 1 - 0.5 * step, round(TIME / step)
        f = pk.fit(KERNEL, X, Y[:, 0], loss="squared", dynamics=pk.HeavyBall(rate, steps, mu))
        prediction = predict.gradient_descent(
            lambda f, y: jnp.mean((f - y) ** 2) / 2, k_train, Y, rate, mu
        )
        _, test = prediction(float(steps), 0.0, 0.0, k_test)
        distances.append(np.abs(f(Z) - test[:, 0]).max())
    assert distances[1] < 0.6 * distances[0] and distances[0] < 0.1


@pytest.mark.parametrize("time", [TIME, np.inf])
def test_distribution_is_their_ensemble(time):
    f = pk.fit(KERNEL, X, Y[:, 0], loss="squared", dynamics=pk.GradientFlow(time))
    prediction = predict.gradient_descent_mse_ensemble(_THEIRS, X.reshape(-1, *SHAPE), Y)
    t = None if np.isinf(time) else time
    expected = prediction(t, Z.reshape(-1, *SHAPE), "ntk", True)
    found = f.distribution(Z)
    # Of their diagonal, right to 1e-8.
    assert_allclose(found.mean, expected.mean[:, 0], atol=1e-7)
    assert_allclose(found.covariance, expected.covariance, atol=1e-7)


@pytest.mark.parametrize(("theirs_name", "name"), [("nngp", "nngp"), ("ntkgp", "ntk")])
def test_posterior_is_gp_inference(theirs_name, name):
    noise = 0.2
    posterior = pk.gaussian_process(KERNEL, X, Y[:, 0], noise=noise, kernel_name=name)
    found = posterior.distribution(Z)
    inference = predict.gp_inference(
        theirs(X, None), Y, diag_reg=noise, diag_reg_absolute_scale=True
    )
    expected = inference(get=(theirs_name,), k_test_train=theirs(Z, X), k_test_test=theirs(Z, None))
    expected = getattr(expected, theirs_name)
    assert_allclose(found.mean, expected.mean[:, 0], atol=1e-7)
    assert_allclose(found.covariance, expected.covariance, atol=1e-7)


def test_steps_beyond_their_largest_rate_are_refused():
    """2 (1 + momentum) N K / lambda_max of the mean over outputs, which for one is ours."""
    k_train, _ = matrices()
    largest = 2 * 1.9 * N / np.linalg.eigvalsh(k_train)[-1]
    for share in (0.99, 1.01):
        dynamics = pk.HeavyBall(share * largest, 50, 0.9)
        if share < 1:
            assert pk.fit(KERNEL, X, Y[:, 0], loss="squared", dynamics=dynamics).status
            continue
        with pytest.raises(ValueError, match=r"learning_rate must be below 2 \(1 \+ momentum\)"):
            pk.fit(KERNEL, X, Y[:, 0], loss="squared", dynamics=dynamics)


# --- empirical kernels, by the definitions in neural-tangents' documentation ---


def finite_network(outputs: int, width: int = 6) -> Any:
    """With the apply_fn in JAX's ordinary promotion of dtypes, which it needs and tests do not have."""
    init, theirs, infinite = stax.serial(
        stax.Conv(width, (3, 3), padding="SAME", b_std=0.1, W_std=2**0.5),
        stax.Relu(),
        stax.Flatten(),
        stax.Dense(outputs, b_std=0.1, W_std=2**0.5),
    )

    def apply(params, x):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return theirs(params, x)

    def parameters(seed):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return init(jax.random.PRNGKey(seed), (-1, *SHAPE))[1]

    return parameters, apply, infinite


def test_empirical_kernels_are_jacobians_with_their_output_axes():
    """Of (N, K, M, K) theirs traces the outputs by default, trace_axes=(-1,), and means the mean of
    the diagonal; diagonal_axes=(-1,) is one kernel an output.
    """
    parameters, apply, _ = finite_network(K)
    params = parameters(0)
    x, z = X.reshape(-1, *SHAPE), Z.reshape(-1, *SHAPE)

    def jacobian(points):
        leaves = jax.tree.leaves(jax.jit(jax.jacrev(apply))(params, points))
        return np.concatenate([np.asarray(a).reshape(len(points), K, -1) for a in leaves], axis=2)

    whole = np.einsum("ikp,jlp->ijkl", jacobian(x), jacobian(z))
    traced = np.trace(whole, axis1=2, axis2=3) / K
    assert_allclose(pk.EmpiricalNTK(apply, params).ntk(x, z), traced, rtol=1e-10)
    for k in range(K):
        kernel = pk.EmpiricalNTK(apply, params, output=k)
        assert_allclose(kernel.ntk(x, z), whole[:, :, k, k], rtol=1e-10, atol=1e-12)
    # The product of `empirical_ntk_vp_fn` with a vector of one output.
    vector = np.zeros((N, K))
    vector[:, 1] = Y[:, 0]

    @jax.jit
    def product_with(vector):
        (pulled,) = jax.vjp(lambda p: apply(p, x), params)[1](vector)
        return jax.jvp(lambda p: apply(p, z), (params,), (pulled,))[1]

    product = product_with(jnp.asarray(vector))
    kernel = pk.EmpiricalNTK(apply, params, output=1)
    assert_allclose(kernel.matvec(z, x, Y[:, 0]), product[:, 1], rtol=1e-10, atol=1e-12)


def test_the_mean_over_wide_networks_is_the_kernel_of_infinite_width():
    """What `monte_carlo_kernel_fn` does. Each entry is within five standard errors of the limit,
    but for the bias of the finite width, 1 / width or so.
    """
    parameters, apply, infinite = finite_network(1, width=128)
    x = X.reshape(-1, *SHAPE)
    kernels = [pk.EmpiricalNTK(apply, parameters(seed)) for seed in range(40)]
    draws = np.stack([kernel.ntk(x) for kernel in kernels])
    limit = np.asarray(infinite(x, None, "ntk"))
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0) - limit) < 5 * error + 2 * limit / 128).all()
    assert error.max() < 0.03 * limit.max()


# --- scikit-learn on the same matrices ---


class Given(SklearnKernel):
    """A kernel between numbered points, whose matrix is known."""

    def __init__(self, matrix):
        self.matrix = matrix

    def __call__(self, rows, columns=None, eval_gradient=False):
        columns = rows if columns is None else columns
        found = self.matrix[np.ix_(rows[:, 0].astype(int), columns[:, 0].astype(int))]
        return (found, np.empty((*found.shape, 0))) if eval_gradient else found

    def diag(self, rows):
        return np.diagonal(self(rows))

    def is_stationary(self):
        return False


@pytest.mark.parametrize("name", BOTH)
def test_exact_gaussian_processes_are_those_of_scikit_learn(name):
    noise = 0.2
    points = np.concatenate([X, Z])
    whole = np.asarray(getattr(KERNEL, name)(points))
    numbers = np.arange(N + M, dtype=float)[:, None]
    model = Regressor(Given(whole), alpha=noise, optimizer=None).fit(numbers[:N], Y[:, 0])
    mean, covariance = model.predict(numbers[N:], return_cov=True)
    posterior = pk.gaussian_process(KERNEL, X, Y[:, 0], noise=noise, kernel_name=name)
    found = posterior.distribution(Z)
    assert_allclose(found.mean, mean, atol=1e-10)
    assert_allclose(found.covariance, covariance, atol=1e-10)
    likelihood = model.log_marginal_likelihood_value_
    assert_allclose(posterior.log_marginal_likelihood, likelihood, rtol=1e-10)
    likelihood = pk.log_marginal_likelihood(KERNEL, X, Y[:, 0], noise=noise, kernel_name=name)
    assert_allclose(likelihood, model.log_marginal_likelihood_value_, rtol=1e-10)


@pytest.mark.parametrize("outputs", [1, K])
def test_ridge_regression_is_that_of_scikit_learn(outputs):
    k_train, k_test = matrices()
    y = Y[:, 0] if outputs == 1 else np.asarray(pk.one_hot(LABELS, K), float)
    f = pk.fit(KERNEL, X, y, loss="squared", dynamics=ENDLESS, ridge=0.05)
    model = Ridge(alpha=0.05 * N, kernel="precomputed").fit(k_train, y)
    assert_allclose(f.dual_coef, model.dual_coef_, rtol=1e-9, atol=1e-11)
    assert_allclose(f(Z), model.predict(k_test), rtol=1e-9, atol=1e-11)


# --- the page about it ---

# What `import neural_tangents` offers beside its modules, and the functions for TensorFlow.
NAMES = """batch empirical_kernel_fn empirical_nngp_fn empirical_ntk_fn empirical_ntk_vp_fn linearize
NtkImplementation taylor_expand monte_carlo_kernel_fn Kernel empirical_ntk_fn_tf
get_apply_fn_and_params"""


def test_the_page_names_everything_public():
    root = Path(__file__).parent.parent.parent
    page = (root / "docs" / "coming-from-neural-tangents.md").read_text(encoding="utf-8")
    public = [
        name
        for module in (stax, predict)
        for name in vars(module)
        if not name.startswith("_") and name != "annotations"
    ]
    assert len(public) > 60
    missing = [name for name in [*public, *NAMES.split()] if f"`{name}" not in page]
    assert not missing
