"""Gradients through `fit` against central differences of fits that are not traced."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import D, M, N

import perturbkernel as pk
from perturbkernel.training import differentiable

fit: Any = pk.fit
Flow: Any = pk.GradientFlow
KERNEL: Any = pk.TwoLayerNTK(0.2, True)
INF = float("inf")
OUTPUTS = 3
RNG = np.random.default_rng(4)
X, Z, MOVES = RNG.normal(size=(N, D)), RNG.normal(size=(M, D)), RNG.normal(size=(N, D))
Y = np.where(X[:, 0] + RNG.normal(size=N) > 0, 1.0, -1.0)
CODES = np.eye(OUTPUTS)[RNG.integers(OUTPUTS, size=N)] - 1 / OUTPUTS
BALL = pk.HeavyBall(0.1, 20)
CASES: dict[str, Any] = {
    "identity flow": ("identity", None),
    "squared flow": ("squared", None),
    "squared minimum": ("squared", Flow(INF)),
    "squared ball": ("squared", BALL),
    "logistic minimum": ("logistic", Flow(INF)),
    "exponential minimum": ("exponential", Flow(INF)),
    "softmax minimum": ("softmax", Flow(INF)),
    "logistic ball": ("logistic", BALL),
}


def start(z):
    return jnp.sin(z[:, 0])


def start_of_classes(z):
    return jnp.sin(z[:, :OUTPUTS])


def trained(case: str, x: Any, y: Any, ridge: Any, time: Any, **options: Any) -> Any:
    loss, dynamics = CASES[case]
    dynamics = Flow(time) if dynamics is None else dynamics
    options |= {"loss": loss, "dynamics": dynamics, "ridge": ridge}
    initial = start_of_classes if loss == "softmax" else start
    return fit(KERNEL, x, y, initial=initial, **options)


def outputs(case: str, *arguments: Any, **options: Any) -> Any:
    return trained(case, *arguments, **options)(Z)


def point(case: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Arguments, and a direction in which they move: labels stay what they are."""
    loss = CASES[case][0]
    y = CODES if loss == "softmax" else Y
    dy = 0.3 * MOVES[:, 1] if loss in ("identity", "squared") else np.zeros_like(y)
    if loss == "identity":
        dy = 0 * dy
    return (X, y, 0.05, 20.0), (MOVES, dy, 0.01, 1.0)


def difference(case: str, **options: Any) -> Any:
    """The central difference of outputs along the direction, in float64."""
    at, along = point(case)
    h = 1e-5
    with jax.enable_x64(True):
        up, down = (
            np.asarray(
                outputs(case, *(a + s * h * b for a, b in zip(at, along, strict=True)), **options)
            )
            for s in (1, -1)
        )
    return (up - down) / (2 * h)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_differences(case, weighted, x64):
    options = {"sample_weight": np.arange(1.0, N + 1)} if weighted else {}
    at, along = point(case)
    exact = difference(case, **options)
    cotangent = np.cos(np.arange(exact.size)).reshape(exact.shape)

    def score(*arguments):
        return jnp.sum(cotangent * outputs(case, *arguments, **options))

    gradients = jax.grad(score, argnums=(0, 1, 2, 3))(*map(jnp.asarray, at))
    found = sum(float(jnp.sum(g * b)) for g, b in zip(gradients, along, strict=True))
    assert np.isfinite(gradients[0]).all()
    # Differences: h^2 = 1e-10, and the tolerance 1e-9 of a minimum over h.
    limit = 1e-6 * np.abs(exact).sum()
    assert abs(found - np.sum(cotangent * exact)) <= limit


@pytest.mark.parametrize("case", CASES)
def test_forward_mode_is_that_of_differences(case, x64):
    """Of coefficients, in targets, ridge and time: kernels know reverse mode alone."""
    (x, *at), (_, *along) = point(case)
    h = 1e-5

    def dual_coef(*arguments):
        return trained(case, x, *arguments).dual_coef

    moved = [[a + s * h * b for a, b in zip(at, along, strict=True)] for s in (1, -1)]
    up, down = (np.asarray(dual_coef(*where)) for where in moved)
    primals, tangents = (tuple(map(jnp.asarray, values)) for values in (at, along))
    value, change = jax.jvp(dual_coef, primals, tangents)
    np.testing.assert_allclose(value, dual_coef(*at), rtol=0, atol=1e-8 * np.abs(up).max())
    # The tolerance 1e-9 of a minimum over h.
    scale = np.abs(up).max()
    np.testing.assert_allclose(change, (up - down) / (2 * h), rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("case", ["squared flow", "squared minimum", "softmax minimum"])
def test_gradients_where_jax_is_set_to_float32(case):
    at, along = point(case)
    exact = difference(case)

    def score(*arguments):
        return jnp.sum(outputs(case, *arguments))

    arguments = [jnp.asarray(a, np.float32) for a in at]
    gradients = jax.jit(jax.grad(score, argnums=(0, 1, 2, 3)))(*arguments)
    assert all(g.dtype == np.float32 for g in gradients)
    found = sum(float(jnp.sum(g * np.float32(b))) for g, b in zip(gradients, along, strict=True))
    # Inputs and outputs are rounded to float32, the solver is not.
    assert abs(found - exact.sum()) <= 1e-4 * np.abs(exact).sum()


def test_eigenvalues_that_coincide_do_no_harm(x64):
    """Orthogonal points of one length have a Gram matrix with few eigenvalues, and duplicates have
    zeros."""
    x = np.concatenate([np.eye(D), np.eye(D)[:2]])
    y = np.arange(len(x), dtype=float)
    moves = RNG.normal(size=x.shape)
    moves[-2:] = moves[:2]  # duplicates stay together, where the kernel is smooth

    def score(x):
        return jnp.sum(fit(KERNEL, x, y, loss="squared", dynamics=Flow(30.0))(Z) ** 2)

    gradient = jax.jit(jax.grad(score))(x)
    h = 1e-5
    exact = (score(x + h * moves) - score(x - h * moves)) / (2 * h)
    assert float(jnp.sum(gradient * moves)) == pytest.approx(float(exact), rel=1e-6)


def test_divided_differences_of_close_numbers(x64):
    values = jnp.array([0.0, 1e-9, 1.0, 1.0 + 1e-7, 1.0 + 1e-3, 50.0])
    found = differentiable._divided_differences(jnp.exp, values / 50)
    gap = np.asarray(values[:, None] - values[None, :]) / 50
    mean = np.asarray(values[:, None] + values[None, :]) / 100
    half = np.where(gap == 0, 1, gap / 2)
    exact = np.exp(mean) * np.where(gap == 0, 1, np.sinh(half) / half)
    np.testing.assert_allclose(found, exact, rtol=1e-9)


def test_a_traced_fit_says_what_it_does_not_know(x64):
    @jax.jit
    def trained(y):
        return fit(KERNEL, X, y, loss="squared", dynamics=Flow(INF), ridge=0.1)

    f = trained(Y)
    assert f.status == "traced by JAX: what training met is not known"
    exact = fit(KERNEL, X, Y, loss="squared", dynamics=Flow(INF), ridge=0.1)
    np.testing.assert_allclose(f.dual_coef, exact.dual_coef, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "n", "message"),
    [
        ("squared", 2001, r"fit can be traced for up to 2,000 points, .*; got 2,001"),
        ("logistic", 3, r"integrates a flow to a finite time, which cannot be traced"),
    ],
)
def test_what_is_not_differentiated_is_refused(loss, n, message):
    def traced(y):
        return fit(KERNEL, np.ones((n, D)), y, loss=loss, dynamics=Flow(3.0)).dual_coef

    with pytest.raises(TypeError, match=message):
        jax.eval_shape(traced, np.ones(n))
