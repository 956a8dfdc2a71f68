"""predictors.py, solvers.py, dynamics.py: trained kernel models against step-by-step training,
limits, round trips.
"""

import copy
import functools
import io
import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from common import (
    DTYPES,
    D,
    M,
    N,
    awkward_points,
    compilations,
    largest_row,
    precision,
    representable,
)
from scipy.special import expit

import perturbkernel as pk
from perturbkernel.kernels.stax_kernels import load_neural_tangents
from perturbkernel.training import logistic

# Any, for the type checker: NumPy arrays and lists are welcome where signatures say Array; bad
# input is meant here.
fit: Any = pk.fit
load: Any = pk.KernelPredictor.load
HeavyBall: Any = pk.HeavyBall
GradientFlow: Any = pk.GradientFlow
KernelLearner: Any = pk.KernelLearner
W_ONLY: Any = pk.TwoLayerNTK(0.2)
BIASED: Any = pk.TwoLayerNTK(0.2, True)
LOSSES = ("identity", "logistic", "squared")
INF, NAN = float("inf"), float("nan")


@functools.cache
def paper_network() -> Any:
    """The same kernel as BIASED, by neural-tangents."""
    stax: Any = load_neural_tangents()
    first = stax.Dense(1, W_std=1, b_std=1, parameterization="standard")
    return pk.ArchitectureNTK(stax.serial(first, stax.LeakyRelu(0.2)), name="paper")


KERNELS = {"W": lambda: W_ONLY, "W and b": lambda: BIASED, "network": paper_network}


@functools.cache
def problem(dtype: Any = np.float32) -> Any:
    """x (N, D), y (N,), z (M, D); x representable in float32, so that one reference serves every
    precision.
    """
    rng = np.random.default_rng(1)
    x, z = (representable(rng.normal(size=(k, D)), dtype) for k in (N, M))
    return x, np.where(x[:, 0] + rng.normal(size=N) > 0, 1.0, -1.0), z


X, Y, Z = problem()
CONFLICT_X = np.concatenate([X[:14], X[:3]])  # three points are there twice, with opposite labels
CONFLICT_Y = np.concatenate([Y[:14], -Y[:3]])


def start(z):
    """An initial function; not a lambda, so that predictors which hold it can be pickled."""
    return jnp.sin(z[:, 0]) + 0.3


RATES = np.random.default_rng(2).uniform(0, 0.3, size=25)
DYNAMICS: dict[str, Any] = {
    "flow 2": (GradientFlow(2.0), ("flow", 2.0)),
    "flow 50": (GradientFlow(50), ("flow", 50.0)),
    "flow inf": (GradientFlow(INF), ("flow", INF)),
    "constant rate": (HeavyBall(0.1, 25), ("heavy_ball", np.full(25, 0.1), 0.9)),
    "rates": (HeavyBall(RATES, momentum=0.5), ("heavy_ball", RATES, 0.5)),
    "no momentum": (HeavyBall(0.2, 25, 0.0), ("heavy_ball", np.full(25, 0.2), 0.0)),
    "no steps": (HeavyBall(0.2, 0), ("heavy_ball", [], 0.9)),
}


@functools.cache
def reference(train_bias: bool, loss: str, dynamics: str, initial: bool) -> np.ndarray:
    """Outputs at Z, (M,), of training step by step (or through a matrix exponential, an ODE solver)
    in NumPy.
    """
    f0 = np.asarray(np.sin(X[:, 0]) + 0.3) if initial else None
    dual = oracle.dual_coef(X, Y, 0.2, train_bias, loss, DYNAMICS[dynamics][1], f0)
    return oracle.matvec(Z, X, dual, 0.2, train_bias) + (np.sin(Z[:, 0]) + 0.3 if initial else 0)


def off(outputs: Any, exact: np.ndarray) -> float:
    """Largest error relative to the largest value."""
    return np.abs(np.asarray(outputs, float) - exact).max() / np.abs(exact).max()


# --- the cross product ---


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_outputs_equal_those_of_training_step_by_step(kernel, dtype, loss):
    kernel = KERNELS[kernel]()
    bias = getattr(kernel, "train_bias", True)
    for name, (dynamics, _) in DYNAMICS.items():
        if name == "flow inf" and loss != "squared":
            continue
        # float64: rounding; the tolerances of both ODE solvers for the logistic flow. float32: a
        # sum of N products, near-interpolating coefficients of order 10 included.
        limit = (
            1e-5
            if dtype == np.float32
            else 5e-9
            if loss == "logistic" and name.startswith("flow")
            else 1e-12
        )
        for initial in (None, start):
            exact = reference(bias, loss, name, initial is not None)
            with precision(dtype):
                f = fit(kernel, X, Y, loss=loss, dynamics=dynamics, initial=initial)
                outputs = f(Z)
            assert outputs.dtype == f.dual_coef.dtype == f.inputs.dtype == dtype
            assert f.status == "ok"
            if name == "no steps" and initial is None:
                assert not np.asarray(outputs).any()
            else:
                assert off(outputs, exact) <= limit, (name, initial)


@pytest.mark.parametrize("loss", LOSSES)
def test_dual_coefficients_do_not_depend_on_the_precision_setting(loss):
    """The solvers run in float64 regardless: without x64 the same coefficients come out, rounded
    once.
    """
    rounded = []
    for dtype in DTYPES:
        with precision(dtype):
            f = fit(BIASED, X.astype(np.float32), Y, loss=loss, dynamics=HeavyBall(0.1, 25))
            rounded.append(np.asarray(f.dual_coef, np.float32))
    # Identity: a quotient, rounded twice.
    np.testing.assert_allclose(rounded[0], rounded[1], rtol=2**-22)


# --- dynamics ---


@pytest.mark.parametrize("momentum", [0.0, 1e-12, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(
    "rates", [0.1, RATES, [0.3], [0.0, 0.2, 0.0]], ids=["constant", "each", "one", "zeros"]
)
def test_effective_time_is_the_displacement_under_a_unit_gradient(rates, momentum):
    steps = 100 if np.ndim(rates) == 0 else None
    dynamics = HeavyBall(rates, steps, momentum)
    # Up to 100 steps of simulation; (1 - mu^j)/(1 - mu) adds 1/(1 - mu) eps.
    assert dynamics.effective_time == pytest.approx(
        oracle.effective_time(dynamics.rates, momentum), rel=1e-12
    )
    if steps and momentum:
        closed = (
            rates / (1 - momentum) * (steps - momentum * (1 - momentum**steps) / (1 - momentum))
        )
        assert dynamics.effective_time == pytest.approx(closed, rel=1e-9)  # the closed form cancels


def test_effective_time_of_flow_and_of_no_steps():
    assert GradientFlow(np.float32(2)).effective_time == 2.0
    assert HeavyBall(0.1, 0).effective_time == 0
    assert HeavyBall(0.1, 7, 0).effective_time == pytest.approx(0.7)


def test_dynamics_are_values():
    twins = (
        HeavyBall([0.1, 0.2]),
        HeavyBall(jnp.array([0.1, 0.2]).astype(float).tolist(), 2, np.float64(0.9)),
    )
    assert HeavyBall((0.1, 0.2)) == twins[0]
    assert hash(HeavyBall((0.1, 0.2))) == hash(twins[0])
    assert GradientFlow(1) == GradientFlow(1.0) != GradientFlow(2)
    for dynamics in (*twins, GradientFlow(INF)):
        assert pickle.loads(pickle.dumps(dynamics)) == copy.deepcopy(dynamics) == dynamics
        assert jax.tree.leaves(dynamics) == []
    with pytest.raises(AttributeError):
        twins[0].steps = 3


@pytest.mark.parametrize("kernel", [W_ONLY, BIASED], ids=["W", "W and b"])
def test_identity_loss_is_linear_in_time_and_targets(kernel, x64):
    """Theory 8.3; the momentum only changes the clock."""
    once = fit(kernel, X, Y, dynamics=GradientFlow(1.0))(Z)
    dynamics = HeavyBall(0.1, 25)
    np.testing.assert_allclose(
        fit(kernel, X, Y, dynamics=dynamics)(Z), dynamics.effective_time * once, rtol=1e-12
    )
    np.testing.assert_array_equal(fit(kernel, X, -Y)(Z), -once)
    # Theory 8.5: the data turned around, labels too, gives the predictor turned around; with and
    # without c.
    np.testing.assert_allclose(
        fit(kernel, -X, -Y)(-Z), -once, rtol=0, atol=1e-13 * np.abs(once).max()
    )


# --- squared loss ---


@pytest.mark.parametrize("time", [1e-3, 1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("inputs", ["distinct", "conflicting duplicates"])
def test_squared_flow_at_every_time(time, inputs, x64):
    """Duplicates with opposite labels make the Gram matrix singular; their coefficients grow,
    outputs do not.
    """
    x, y = (X, Y) if inputs == "distinct" else (CONFLICT_X, CONFLICT_Y)
    f = fit(BIASED, x, y, loss="squared", dynamics=GradientFlow(time))
    assert f.status == "ok"
    # Filters of an eigendecomposition in NumPy; null directions grow to time / n, which costs its
    # rounding.
    values, vectors = np.linalg.eigh(oracle.ntk(x, x, 0.2, True))
    null = values < 1e-12 * values[-1]
    filters = np.where(null, time / N, -np.expm1(-time * values / N) / np.where(null, 1, values))
    dual = vectors @ (filters * (vectors.T @ y))
    exact = oracle.matvec(Z, x, dual, 0.2, True)
    assert off(f(Z), exact) <= 1e-11 + 1e-15 * time
    assert off(f.dual_coef, dual) <= 1e-9
    if inputs != "distinct":
        difference = np.asarray(f.dual_coef[:3] - f.dual_coef[14:])
        np.testing.assert_allclose(difference, 2 * time / N * y[:3], rtol=1e-9)
        if time == 1e6:  # least squares: between the two labels
            np.testing.assert_allclose(f(x[:3]), 0, atol=1e-3)
    assert f.stats["lambda_max"] == pytest.approx(values[-1], rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_time_interpolates(dtype):
    targets = representable(np.random.default_rng(3).normal(size=N), np.float32)  # any real numbers
    with precision(dtype):
        f = fit(BIASED, X, targets, loss="squared", dynamics=GradientFlow(INF))
        outputs = f(X)
    assert f.status == "ok"
    condition = np.linalg.cond(oracle.ntk(X, X, 0.2, True))
    # A bound from below.
    assert condition / 2 < f.stats["condition_number"] <= condition * (1 + 1e-9)
    # An error of condition x eps in float64, of eps sum |dual| |K| in float32.
    assert off(outputs, targets) <= (1e-5 if dtype == np.float32 else 1e-12)


def test_infinite_time_with_conflicting_duplicates_is_least_squares(x64):
    f = fit(BIASED, CONFLICT_X, CONFLICT_Y, loss="squared", dynamics=GradientFlow(INF))
    assert f.status == (
        "singular kernel matrix (numerical rank 14 of 17): the limit of gradient flow, by the pseudo-inverse, "
        "leaves a largest training error of 1"
    )
    assert f.stats["condition_number"] == INF
    dual = oracle.dual_coef(CONFLICT_X, CONFLICT_Y, 0.2, True, "squared", ("flow", INF))
    assert off(f.dual_coef, dual) <= 1e-10  # the minimum norm: no null part
    exact = np.where(np.arange(14) < 3, 0, CONFLICT_Y[:14])
    np.testing.assert_allclose(f(X[:14]), exact, atol=1e-11)
    late = fit(BIASED, CONFLICT_X, CONFLICT_Y, loss="squared", dynamics=GradientFlow(1e7))
    assert off(late(Z), np.asarray(f(Z))) <= 1e-6  # null parts of 1e7 / n cancel to 1e-16 of that


def test_infinite_time_with_agreeing_duplicates_leaves_no_error(x64):
    f = fit(
        BIASED,
        CONFLICT_X,
        np.concatenate([Y[:14], Y[:3]]),
        loss="squared",
        dynamics=GradientFlow(INF),
    )
    assert "numerical rank 14 of 17" in f.status
    assert float(f.status.rsplit(" ", 1)[1]) < 1e-10
    np.testing.assert_allclose(f(X[:14]), Y[:14], atol=1e-11)


def test_inputs_that_are_all_zero_and_untrained_biases_teach_nothing():
    for dynamics in (GradientFlow(INF), GradientFlow(2.0), HeavyBall(1e6, 25)):
        f = fit(W_ONLY, 0 * X, Y, loss="squared", dynamics=dynamics)
        assert not np.asarray(f(Z)).any()
        assert np.isfinite(f.dual_coef).all()
        assert ("numerical rank 0 of 17" in f.status) == (dynamics == GradientFlow(INF))


# --- logistic loss ---


@functools.cache
def gram() -> np.ndarray:
    return oracle.ntk(X, X, 0.2, True)


def softplus(s):
    return np.logaddexp(0, s)


@pytest.mark.parametrize("initial", [None, start])
@pytest.mark.parametrize("time", [1e-6, 0.1, 3.0, 30.0, 1e4])
def test_logistic_coefficients_lie_within_the_bounds_of_theory(time, initial, x64):
    """Theory 1.3 (i) to (iii), without exception; the ODE solver's tolerance is 1e-9 relative."""
    f = fit(BIASED, X, Y, loss="logistic", dynamics=GradientFlow(time), initial=initial)
    assert f.status == "ok"
    alpha, slack = np.asarray(f.dual_coef) * Y, 1e-8 * time / N
    assert (alpha > 0).all()
    assert (alpha < time / N).all()
    margins0 = Y * np.asarray(start(X) if initial else np.zeros(N))
    terms = Y[:, None] * Y * gram()
    up, down = np.maximum(terms, 0).sum(1) / N, np.maximum(-terms, 0).sum(1) / N
    most = np.abs(margins0) + time * (up + down)
    assert (time / N * expit(-most) <= alpha + slack).all()
    assert (alpha <= time / N * expit(most) + slack).all()
    if time < 1e-3:
        return  # the quotients of the closed form cancel
    low = (softplus(-margins0) - softplus(-margins0 - time * up)) / (N * up)
    high = (softplus(-margins0 + time * down) - softplus(-margins0)) / (N * down)
    assert (low <= alpha + slack).all()
    assert (alpha <= high + slack).all()


def test_logistic_is_identity_at_half_time_for_short_times(x64):
    """Theory 1.3 (iv), with the a-priori bound on every |e_n|: at time 1e-3 the two differ by 1e-3
    relative.
    """
    time = 1e-3
    logistic = fit(BIASED, X, Y, loss="logistic", dynamics=GradientFlow(time))(Z)
    half = fit(BIASED, X, Y, dynamics=GradientFlow(time / 2))(Z)
    bound = np.tanh(time * np.abs(gram()).sum(1) / N / 2)
    allowed = time / 2 * (bound @ np.abs(oracle.ntk(X, Z, 0.2, True))) / N
    assert (np.abs(logistic - half) <= allowed).all()
    assert allowed.max() < 5e-3 * np.abs(half).max()


def test_a_saturated_logistic_loss_stays_finite():
    """log(1 + exp(s)) would overflow float32 from s = 88 on; margins here reach thousands, of
    either sign.
    """
    f = fit(
        BIASED, X, Y, loss="logistic", dynamics=GradientFlow(10.0), initial=lambda z: 1e4 * z[:, 0]
    )
    wrong = Y * X[:, 0] < 0
    alpha = np.asarray(f.dual_coef) * Y
    np.testing.assert_allclose(alpha[wrong], 10 / N, rtol=1e-6)
    np.testing.assert_allclose(alpha[~wrong], 0, atol=1e-9)


def test_a_logistic_flow_that_cannot_finish_says_so_in_words(monkeypatch, x64):
    """Conflicting duplicates keep the equation stiff for ever, which the implicit method takes in
    few products.
    """
    flow = {"loss": "logistic", "dynamics": GradientFlow(1e8)}
    f = fit(BIASED, CONFLICT_X, CONFLICT_Y, **flow)
    assert f.status == "ok"
    np.testing.assert_allclose(f(X[:3]), 0, atol=1e-4)  # two opposite labels: undecided
    assert (f(X[3:14]) * Y[3:14] > 5).all()
    monkeypatch.setattr(logistic, "PRODUCTS", 200)
    f = fit(BIASED, CONFLICT_X, CONFLICT_Y, **flow)
    assert re.match(
        r"the integration of the logistic flow stopped early, at time .* of 1e\+08, after 2",
        f.status,
    )
    assert f.stats["products"] >= 200 and np.isfinite(f(Z)).all()


# --- unstable rates ---


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_squared_loss_raises_beyond_the_stable_rate(momentum, x64):
    limit = 2 * (1 + momentum) * N / np.linalg.eigvalsh(gram())[-1]
    f = fit(BIASED, X, Y, loss="squared", dynamics=HeavyBall(0.999 * limit, 2000, momentum))
    assert np.abs(f(X) - Y).max() < 3  # bounded: it oscillates, but converges
    for rates in ([1.001 * limit] * 3, [0.1 * limit] + [1.001 * limit] * 2000):
        with pytest.raises(
            ValueError, match=r"^learning_rate must be below 2 \(1 \+ momentum\) n / lambda_max"
        ) as error:
            fit(BIASED, X, Y, loss="squared", dynamics=HeavyBall(rates, momentum=momentum))
        message = f"= {limit:.6g}, beyond which the squared loss diverges on this data"
        assert message in str(error.value)
        assert str(error.value).endswith(f"got {1.001 * limit:g}")


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_logistic_loss_warns_beyond_the_stable_rate_at_the_callers_line(momentum):
    limit = 8 * (1 + momentum) * N / np.linalg.eigvalsh(gram())[-1]
    assert (
        fit(BIASED, X, Y, loss="logistic", dynamics=HeavyBall(0.99 * limit, 5, momentum)).status
        == "ok"
    )
    with pytest.warns(UserWarning, match="heavy ball on the logistic loss may oscillate") as record:
        f = fit(BIASED, X, Y, loss="logistic", dynamics=HeavyBall(1.01 * limit, 5, momentum))
    assert f"is beyond 8 (1 + momentum) n / lambda_max = {limit:.6g}" in f.status
    assert str(record[0].message) == f.status
    assert Path(record[0].filename).name == Path(__file__).name


# --- predictors as values ---


@functools.cache
def trained(
    initial: bool = False, loss: str = "squared", dtype: Any = np.float32, kernel: str = "W and b"
) -> Any:
    with precision(dtype):
        return fit(
            KERNELS[kernel](),
            X.astype(dtype),
            Y,
            loss=loss,
            dynamics=HeavyBall(0.1, 25),
            initial=start if initial else None,
        )


TRIPS = {
    "pickle": lambda f: pickle.loads(pickle.dumps(f)),
    "deepcopy": copy.deepcopy,
    "flatten": lambda f: jax.tree.unflatten(jax.tree.structure(f), jax.tree.leaves(f)),
    "jit": jax.jit(lambda f: f),
}


@pytest.mark.parametrize("trip", TRIPS)
@pytest.mark.parametrize("initial", [False, True])
def test_predictors_survive_round_trips(trip, initial):
    f = trained(initial)
    other = TRIPS[trip](f)
    assert type(other) is pk.KernelPredictor
    np.testing.assert_array_equal(other(Z), f(Z))
    assert other.status == "ok"
    assert other.kernel == f.kernel
    assert {name: float(value) for name, value in other.stats.items()} == pytest.approx(f.stats)


@pytest.mark.parametrize("initial", [False, True])
def test_predictors_are_arguments_of_compiled_functions(initial):
    f = trained(initial)
    traced = eqx.debug.assert_max_traces(lambda f, z: f(z), max_traces=1)
    evaluate = jax.jit(traced)
    np.testing.assert_allclose(evaluate(f, Z), f(Z), rtol=1e-5, atol=1e-6)
    twice = jax.tree.map(lambda leaf: leaf, f)
    twice = eqx.tree_at(lambda f: f.dual_coef, twice, 2 * f.dual_coef)
    base = start(Z.astype(np.float32)) if initial else 0
    np.testing.assert_allclose(evaluate(twice, Z) - base, 2 * (f(Z) - base), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["identity", "squared"])
def test_predictors_are_functions_of_jax(loss, x64):
    """Transformed themselves, and inside a function that is; at training points too."""
    f = fit(BIASED, X, Y, loss=loss)
    z = jnp.asarray(np.concatenate([Z, X[:3]]))
    values, gradients = np.asarray(f(z)), np.asarray(f.input_gradient(z))
    at = lambda point: f(point[None])[0]  # noqa: E731
    for outputs in (
        jax.jit(f)(z),
        jax.vmap(at)(z),
        jax.vmap(f)(z[:, None])[:, 0],
        jax.jit(lambda z: f(2 * z / 2))(z),
    ):
        np.testing.assert_allclose(outputs, values, rtol=0, atol=1e-12)
    for outputs in (
        jax.jit(f.input_gradient)(z),
        jax.vmap(jax.grad(at))(z),
        jax.grad(lambda z: jax.jit(f)(z).sum())(z),
    ):
        np.testing.assert_allclose(outputs, gradients, rtol=0, atol=1e-12)
    assert jax.grad(at)(z[0]).shape == (D,)
    # Compared as functions are, so that compiled ones are not mixed up.
    assert f != fit(BIASED, X, Y, loss=loss)


def test_arrays_of_every_kind_train_and_attack_alike(x64):
    for loss in LOSSES:
        results = []
        for kind in (np.asarray, jnp.asarray, lambda a: np.asarray(a).tolist()):
            f = fit(W_ONLY, kind(X), kind(Y), loss=loss)
            delta = pk.perturb(f, kind(X), kind(Y), size=0.5).delta
            results.append([f(kind(Z)), f.input_gradient(kind(Z)), delta])
        for other in results[1:]:
            for one, first in zip(other, results[0], strict=True):
                np.testing.assert_array_equal(one, first)


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("kernel", ["W and b", "network"])
def test_gradients_at_training_points_duplicates_and_zero(kernel, initial):
    """Both ways to the gradient, finite, the reference's at that."""
    x, z = awkward_points()
    with precision(np.float64):
        f = fit(
            KERNELS[kernel](), x, Y, dynamics=GradientFlow(3.0), initial=start if initial else None
        )
        gradient = np.asarray(f.input_gradient(z))
        # Under vmap every query is a computation of its own; compiled once per kernel.
        each = jax.vmap(lambda p: f(p[None])[0]) if initial else f
        differentiated = jax.jit(jax.grad(lambda z: each(z).sum()))(z)
    exact = oracle.input_gradient(z, x, 3 * Y / N, 0.2, True)
    if initial:
        exact[:, 0] += np.cos(z[:, 0])
    # neural-tangents' angles of points that coincide are clipped, of opposite ones lose digits:
    # 1e-8 (float64).
    limit = 1e-12 if kernel == "W and b" else 1e-7
    for value in (gradient, differentiated):
        assert value.shape == z.shape
        assert largest_row(np.asarray(value) - exact) <= limit * largest_row(exact)


def test_frozen_gate_gradient_leaves_out_the_motion_of_the_gates(x64):
    for initial in (None, start):
        f = fit(BIASED, X, Y, dynamics=GradientFlow(3.0), initial=initial)
        exact = oracle.frozen_gate_direction(Z, X, 3 * Y / N, 0.2)
        exact[:, 0] += np.cos(Z[:, 0]) * (initial is not None)
        assert largest_row(np.asarray(f.frozen_gate_gradient(Z)) - exact) <= 1e-12 * largest_row(
            exact
        )
        assert largest_row(np.asarray(f.input_gradient(Z)) - exact) > 1e-3 * largest_row(exact)


def test_frozen_gates_belong_to_the_two_layer_kernel():
    with pytest.raises(
        TypeError,
        match=r'frozen gates belong to TwoLayerNTK.*ArchitectureNTK.*direction="gradient"',
    ):
        trained(kernel="network").frozen_gate_gradient(Z)


@pytest.mark.parametrize("loss", ["identity", "squared"])
def test_a_predictor_may_be_the_initial_function_of_another(loss, x64):
    """Training in two stages: by flow for time 1, then 2, is training for time 3."""
    first = fit(BIASED, X, Y, loss=loss, dynamics=GradientFlow(1.0))
    second = fit(BIASED, X, Y, loss=loss, dynamics=GradientFlow(2.0), initial=first)
    whole = fit(BIASED, X, Y, loss=loss, dynamics=GradientFlow(3.0))
    assert off(second(Z), np.asarray(whole(Z))) <= 1e-12
    gradient = np.asarray(whole.input_gradient(Z))
    assert largest_row(second.input_gradient(Z) - gradient) <= 1e-12 * largest_row(gradient)
    differentiated = jax.jit(jax.grad(lambda f, z: f(z).sum(), argnums=1))(second, Z)
    assert largest_row(differentiated - gradient) <= 1e-12 * largest_row(gradient)


def test_initial_functions_of_every_kind():
    """A lambda, a model with outputs (m, 1), a compiled function, a function without reverse
    derivative.
    """
    model = eqx.nn.MLP(D, 1, 4, 1, key=jax.random.key(0))

    def looped(z):
        return jax.lax.while_loop(lambda c: c[1] < 2, lambda c: (2 * c[0], c[1] + 1), (z[:, 0], 0))[
            0
        ]

    for initial in (lambda z: z[:, :1] ** 2, jax.vmap(model), jax.jit(start), looped):
        f = fit(W_ONLY, X, Y, loss="squared", dynamics=HeavyBall(0.1, 25), initial=initial)
        base = np.asarray(initial(jnp.asarray(Z, jnp.float32)), float).reshape(M)
        np.testing.assert_allclose(
            f(Z) - f.kernel.matvec(Z, f.inputs, f.dual_coef), base, atol=1e-5
        )
        # F is an argument of a traced function.
        assert jax.eval_shape(lambda f, z: f(z), f, Z).shape == (M,)


def test_queries_must_match_the_training_inputs():
    f = trained()
    for call in (f, f.input_gradient, f.frozen_gate_gradient, f.gradient_rounding):
        with pytest.raises(
            ValueError,
            match=r"z must have rows of shape \(5,\), as the training inputs; got \(4,\)",
        ):
            call(Z[:, :4])
        with pytest.raises(ValueError, match=r"a single point is z\[None\]"):
            call(Z[0])
        with pytest.raises(ValueError, match="z must be finite"):
            call(Z * NAN)


def test_outputs_are_those_of_float32_for_every_dtype_of_queries():
    f = trained()
    whole = np.round(Z)
    exact = np.asarray(f(whole))
    for dtype in (np.float16, np.int32, np.float64):
        outputs = f(whole.astype(dtype))
        assert outputs.dtype == np.float32
        np.testing.assert_array_equal(outputs, exact)


# --- identity loss inside other transformations ---


def test_the_identity_loss_can_be_traced(x64):
    """Influence of a target: d f(z) / d y_n = time K(x_n, z) / n."""
    influence = jax.jit(jax.jacobian(lambda y: fit(BIASED, X, y, dynamics=GradientFlow(3.0))(Z)))(Y)
    np.testing.assert_allclose(
        influence, 3 / N * oracle.ntk(X, Z, 0.2, True).T, rtol=1e-12, atol=1e-14
    )
    several = jax.vmap(lambda y: fit(BIASED, X, y, dynamics=GradientFlow(3.0)).dual_coef)(
        np.stack([Y, -Y])
    )
    np.testing.assert_allclose(several, 3 / N * np.stack([Y, -Y]), rtol=1e-15)


def test_a_nonlinear_flow_cannot_be_traced_and_says_so():
    with pytest.raises(TypeError, match=r'fit\(loss="logistic"\) integrates a flow .* traced'):
        jax.jit(lambda y: fit(BIASED, X, y, loss="logistic").dual_coef)(Y)


# --- learners ---


@pytest.mark.parametrize("loss", LOSSES)
def test_a_learner_is_fit_configured(loss):
    dynamics = HeavyBall(0.1, 25)
    learner = KernelLearner(BIASED, loss, dynamics)
    exact = fit(BIASED, X, Y, loss=loss, dynamics=dynamics)
    for f in (
        learner(X, Y),
        learner(X, Y, jax.random.key(0)),
        pickle.loads(pickle.dumps(learner))(X, Y, key=None),
    ):
        np.testing.assert_array_equal(f.dual_coef, exact.dual_coef)
    assert jax.tree.leaves(learner) == []
    assert learner.kernel == BIASED


# --- files ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["f.npz", "f", "a b.model"])
def test_what_is_loaded_predicts_the_same_bits(tmp_path, dtype, name):
    f = trained(dtype=dtype)
    with precision(dtype):
        f.save(tmp_path / name)
        other = load(str(tmp_path / name))
        np.testing.assert_array_equal(other(Z), f(Z))
    assert other.kernel == f.kernel
    assert (other.status, other.stats) == (f.status, f.stats)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_status_and_infinite_numbers_are_loaded(tmp_path):
    f = fit(BIASED, CONFLICT_X, CONFLICT_Y, loss="squared", dynamics=GradientFlow(INF))
    f.save(tmp_path / "f.npz")
    other = load(tmp_path / "f.npz")
    assert other.status == f.status != "ok"
    assert other.stats == f.stats
    assert f.stats["condition_number"] == f.stats["effective_time"] == INF


def test_an_initial_function_is_given_again(tmp_path):
    f = trained(initial=True)
    f.save(tmp_path / "f.npz")
    with pytest.raises(
        ValueError, match=r"f\.npz was trained from an initial function; give it as initial="
    ):
        load(tmp_path / "f.npz")
    np.testing.assert_array_equal(load(tmp_path / "f.npz", initial=start)(Z), f(Z))


def test_a_network_is_given_again(tmp_path):
    f = trained(kernel="network")
    f.save(tmp_path / "f.npz")
    with pytest.raises(
        ValueError, match=r"trained with a kernel of class ArchitectureNTK; give it as kernel="
    ):
        load(tmp_path / "f.npz")
    np.testing.assert_array_equal(load(tmp_path / "f.npz", kernel=paper_network())(Z), f(Z))


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def without_header(content: bytes) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, inputs=X, dual_coef=Y)
    return stream.getvalue()


def with_another_header(content: bytes) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, header=np.array("{}"), inputs=X, dual_coef=Y)
    return stream.getvalue()


def rewritten(change: Any) -> Any:
    """Damage that leaves a well-formed archive: `change` edits its arrays and header in place."""

    def damage(content: bytes) -> bytes:
        with np.load(io.BytesIO(content)) as file:
            arrays: dict[str, Any] = dict(file)
        header = json.loads(str(arrays["header"]))
        change(arrays, header)
        stream = io.BytesIO()
        arrays["header"] = np.array(json.dumps(header))
        np.savez(stream, **arrays)
        return stream.getvalue()

    return damage


def flipped(content: bytes) -> bytes:
    middle = content.index(b"dual_coef.npy") + 200
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def older(arrays, header):
    """As format 1 was written."""
    header["format"] = 1
    for name in ("digest", "kernel_values", "initial_values"):
        del header[name]
    del arrays["targets"]


def older_with_nan(arrays, header):
    older(arrays, header)
    arrays["dual_coef"][0] = np.nan


def shortened(arrays, header):
    arrays["dual_coef"] = arrays["dual_coef"][:-1]


def older_shortened(arrays, header):
    older(arrays, header)
    shortened(arrays, header)


def with_one_coefficient_changed(arrays, header):
    arrays["dual_coef"][3] *= 1.001


def with_words(arrays, header):
    arrays["dual_coef"] = np.array(["a"] * N)


def with_an_impossible_slope(arrays, header):
    header["kernel"]["slope"] = 2.0


def with_no_format(arrays, header):
    del header["format"]


CHANGES = [
    older_with_nan,
    shortened,
    older_shortened,
    with_one_coefficient_changed,
    with_words,
    with_an_impossible_slope,
    with_no_format,
]


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        flipped,
        without_header,
        with_another_header,
        lambda _: b"",
        lambda _: b"text",
        *(rewritten(change) for change in CHANGES),
    ],
)
def test_damaged_files_say_what_they_are_not(tmp_path, damage):
    path = tmp_path / "f.npz"
    trained().save(path)
    path.write_bytes(damage(path.read_bytes()))
    with warnings.catch_warnings():
        # NumPy leaves a file that is no archive to the collector.
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(
            ValueError, match=r"f\.npz is not a predictor that KernelPredictor\.save wrote"
        ):
            load(path)


def test_files_of_other_formats(tmp_path):
    f, path = trained(), tmp_path / "f.npz"
    f.save(path)
    content = path.read_bytes()
    path.write_bytes(rewritten(older)(content))
    np.testing.assert_array_equal(load(path)(Z), f(Z))
    assert load(path).targets is None
    path.write_bytes(rewritten(lambda _, header: header.update(format=4))(content))
    with pytest.raises(ValueError, match=r"f\.npz has format 4, and this version .* up to 3"):
        load(path)


def test_another_kernel_or_initial_function_is_refused(tmp_path):
    f, path = trained(initial=True), tmp_path / "f.npz"
    f.save(path)
    for kernel in (pk.TwoLayerNTK(0.2001, True), pk.TwoLayerNTK(0.2, False)):
        with pytest.raises(ValueError, match=r"f\.npz was trained with another kernel than"):
            load(path, kernel=kernel, initial=start)
    # The same function with another limit of memory, and from another library.
    for kernel in (pk.TwoLayerNTK(0.2, True, memory=2**24), paper_network()):
        other = load(path, kernel=kernel, initial=start)
        np.testing.assert_allclose(other(Z), f(Z), rtol=1e-3)
    for initial in (jnp.zeros_like, lambda z: 1.01 * start(z), lambda z: jnp.zeros((len(z), 2))):
        with pytest.raises(ValueError, match=r"f\.npz was trained from another initial function"):
            load(path, initial=initial)
    trained().save(path)
    with pytest.raises(ValueError, match=r"f\.npz was trained without an initial function"):
        load(path, initial=start)


@pytest.mark.parametrize("loss", ["identity", "squared", "softmax", "exponential"])
def test_every_kind_of_predictor_is_loaded(tmp_path, loss):
    """K outputs, with initial functions; and coefficients of a training that diverged."""
    several = loss == "softmax"
    dynamics = HeavyBall(1e6, 40) if loss == "exponential" else HeavyBall(0.05, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        f = fit(
            BIASED,
            X,
            pk.one_hot(np.arange(N) % 3, 3) if several else Y,
            loss=loss,
            dynamics=dynamics,
            initial=(lambda z: z[:, :3]) if several else start,
        )
    f.save(tmp_path / "f.npz")
    other = load(tmp_path / "f.npz", initial=f.initial)
    assert (other.status, other.stats, other.loss) == (f.status, f.stats, f.loss)
    np.testing.assert_array_equal(other.dual_coef, f.dual_coef)
    if loss != "exponential":
        np.testing.assert_array_equal(other(Z), f(Z))
    else:
        assert "diverged" in f.status


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "f.npz")


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "f.npz"
    trained().save(path)
    before = path.read_bytes()

    def half(file, **arrays):
        file.write(b"half of a file")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(OSError, match="no space left"):
        trained(loss="identity").save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["f.npz"]
    assert path.read_bytes() == before


# --- configuration and compilation ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_fits_leave_jax_configuration_alone(dtype, loss):
    before = dict(jax.config.values)
    with precision(dtype):
        inside = dict(jax.config.values)
        fit(BIASED, X, Y, loss=loss, dynamics=HeavyBall(0.1, 25))
        with pytest.raises((ValueError, TypeError)):
            fit(BIASED, X, Y, loss=loss, dynamics=GradientFlow(1.0), initial=lambda z: z)(Z)
        assert dict(jax.config.values) == inside
    assert dict(jax.config.values) == before


@pytest.mark.parametrize(
    "dynamics", [GradientFlow(2.0), HeavyBall(0.1, 25)], ids=["flow", "heavy ball"]
)
@pytest.mark.parametrize("loss", LOSSES)
def test_equal_shapes_compile_once(loss, dynamics):
    """Other data, another time or rate of the same kind: nothing is compiled again."""

    def everything(x, y, dynamics):
        f = fit(BIASED, x, y, loss=loss, dynamics=dynamics)
        return f(Z), f.input_gradient(Z)

    everything(X, Y, dynamics)
    other = GradientFlow(3.0) if isinstance(dynamics, pk.GradientFlow) else HeavyBall(0.05, 25, 0.5)
    with compilations() as count:
        everything(X + 1, -Y, other)
    assert count() == 0


# --- bad input ---


def spoiled(array: np.ndarray, value: Any) -> np.ndarray:
    array = array.copy()
    array[-1] = value
    return array


FIT: dict[str, Any] = {"kernel": BIASED, "inputs": X, "targets": Y}
BAD_FITS = [
    (
        {"kernel": "relu"},
        TypeError,
        r"kernel must be a perturbkernel kernel such as TwoLayerNTK\(\); got 'relu'",
    ),
    ({"kernel": pk.TwoLayerNTK}, TypeError, "kernel must be a perturbkernel kernel"),
    (
        {"loss": "mse"},
        ValueError,
        "loss must be one of 'identity', 'logistic', 'exponential', 'squared'; got 'mse'",
    ),
    ({"loss": None}, ValueError, "loss must be one of .*; got None"),
    ({"dynamics": 1.0}, TypeError, "dynamics must be a GradientFlow or a HeavyBall; got 1.0"),
    (
        {"dynamics": GradientFlow(INF)},
        ValueError,
        "time must be finite for the identity loss.*; got inf",
    ),
    (
        {"dynamics": GradientFlow(INF), "loss": "logistic"},
        ValueError,
        "time must be finite for the logistic loss",
    ),
    (
        {"inputs": X[0]},
        ValueError,
        r"inputs must have shape \(n, d\).*single point is inputs\[None\]",
    ),
    (
        {"inputs": X[:, :, None]},
        ValueError,
        r"inputs must have shape \(n, d\).*got shape \(17, 5, 1\)",
    ),
    (
        {"inputs": X[:0], "targets": Y[:0]},
        ValueError,
        r"inputs must not be empty; got shape \(0, 5\)",
    ),
    (
        {"inputs": spoiled(X, NAN)},
        ValueError,
        "inputs must be finite; got 5 NaN or infinite values, the first in row 16",
    ),
    ({"inputs": spoiled(X, INF)}, ValueError, "inputs must be finite"),
    ({"inputs": None}, TypeError, "inputs must be an array of real numbers; got NoneType"),
    ({"inputs": X * 1j}, TypeError, "inputs must be an array of real numbers; got dtype complex"),
    (
        {"inputs": pk.Dataset(X, Y)},
        TypeError,
        "inputs must be an array of real numbers; got Dataset",
    ),
    (
        {"targets": Y[:-1]},
        ValueError,
        r"targets must have shape \(17,\), one number a row of the inputs; got \(16,\)$",
    ),
    (
        {"targets": Y[:, None]},
        ValueError,
        r"targets must have shape \(17,\).*got \(17, 1\); use targets\.ravel\(\)",
    ),
    ({"targets": spoiled(Y, NAN)}, ValueError, "targets must be finite; got 1 NaN"),
    ({"targets": spoiled(Y, NAN), "loss": "squared"}, ValueError, "targets must be finite"),
    (
        {"targets": Y > 0},
        ValueError,
        r"targets must be -1 or \+1; found False, True\. .*from_arrays\(.*classes=\(a, b\)\)",
    ),
    (
        {"targets": np.arange(N), "loss": "logistic"},
        ValueError,
        r"must be -1 or \+1; found 0, 1, 2, 3, 4, \.\.\.",
    ),
    ({"targets": ["one"] * N}, TypeError, "targets must be an array of real numbers; got list"),
    (
        {"initial": lambda z: z, "loss": "squared"},
        ValueError,
        r"initial must map inputs \(17, 5\) to one output a row",
    ),
]


@pytest.mark.parametrize(
    ("changes", "error", "message"), BAD_FITS, ids=[m[:30] for *_, m in BAD_FITS]
)
def test_bad_fits_say_what_is_wrong(changes, error, message):
    arguments = FIT | changes
    with pytest.raises(error, match=message):
        fit(arguments.pop("kernel"), arguments.pop("inputs"), arguments.pop("targets"), **arguments)


def test_squared_loss_takes_any_real_targets_and_the_others_integers():
    assert np.isfinite(fit(BIASED, X, np.arange(N), loss="squared")(Z)).all()
    assert fit(BIASED, X, Y.astype(int)).dual_coef.dtype == np.float32


BAD_DYNAMICS = [
    (lambda: GradientFlow(-1.0), ValueError, "time must be >= 0; got -1"),
    (lambda: GradientFlow(NAN), ValueError, "time must be >= 0; got nan"),
    (lambda: GradientFlow("1"), TypeError, "time must be a number; got '1'"),
    (lambda: GradientFlow(True), TypeError, "time must be a number; got True"),
    (lambda: GradientFlow([1.0]), TypeError, r"time must be a number; got \[1.0\]"),
    (lambda: HeavyBall(-0.1, 3), ValueError, "learning_rate must be >= 0 and finite; got -0.1"),
    (lambda: HeavyBall(INF, 3), ValueError, "learning_rate must be >= 0 and finite; got inf"),
    (lambda: HeavyBall("a", 3), TypeError, "learning_rate must be a number; got 'a'"),
    (lambda: HeavyBall(None, 3), TypeError, "learning_rate must be a number; got None"),
    (
        lambda: HeavyBall(0.1),
        ValueError,
        "steps must be given with a constant learning_rate; got None",
    ),
    (lambda: HeavyBall(0.1, -1), ValueError, "steps must be at least 0; got -1"),
    (lambda: HeavyBall(0.1, 2.0), TypeError, "steps must be a whole number; got 2.0"),
    (lambda: HeavyBall(0.1, True), TypeError, "steps must be a whole number; got True"),
    (
        lambda: HeavyBall([0.1, -0.2]),
        ValueError,
        "learning_rate must be >= 0 at every step; got -0.2",
    ),
    (
        lambda: HeavyBall([0.1, NAN]),
        ValueError,
        "learning_rate must be finite; got 1 NaN or infinite values.*row 1",
    ),
    (
        lambda: HeavyBall([]),
        ValueError,
        r"learning_rate must be one number or \(steps,\); got shape \(0,\)",
    ),
    (
        lambda: HeavyBall([[0.1]]),
        ValueError,
        r"learning_rate must be one number or \(steps,\); got shape \(1, 1\)",
    ),
    (
        lambda: HeavyBall([0.1, 0.2], 3),
        ValueError,
        "learning_rate must have one rate a step; got 2 rates for 3 steps",
    ),
    (lambda: HeavyBall(["a"]), (ValueError, TypeError), "learning_rate"),
    (lambda: HeavyBall(0.1, 3, -0.1), ValueError, "momentum must be >= 0 and <= 1; got -0.1"),
    (lambda: HeavyBall(0.1, 3, 1), ValueError, "momentum must be < 1; got 1"),
    (lambda: HeavyBall(0.1, 3, NAN), ValueError, "momentum must be >= 0 and <= 1; got nan"),
    (lambda: HeavyBall(0.1, 3, None), TypeError, "momentum must be a number; got None"),
]


@pytest.mark.parametrize(
    ("make", "error", "message"), BAD_DYNAMICS, ids=[m[:50] for *_, m in BAD_DYNAMICS]
)
def test_bad_dynamics_say_what_is_wrong(make, error, message):
    with pytest.raises(error, match=message):
        make()
