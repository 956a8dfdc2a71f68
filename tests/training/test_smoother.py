"""`KernelPredictor.weights` and `pk.smoother`, against training in NumPy and training again."""

from typing import Any

import jax
import numpy as np
import oracle
import pytest
from common import D, M, N, precision

import perturbkernel as pk
from perturbkernel.training import smoother as smoothers

RNG = np.random.default_rng(11)
KERNEL: Any = pk.TwoLayerNTK(0.2, True)
X, Z = RNG.normal(size=(N, D)), RNG.normal(size=(M, D))
Z[:2] = X[:2]
Y = np.where(X[:, 0] > 0, 1.0, -1.0)
LABELS = np.arange(N) % 3
INF = float("inf")
RATES = np.random.default_rng(2).uniform(0, 0.3, size=25)
CASES: dict[str, Any] = {
    "identity": ("identity", pk.GradientFlow(3.0)),
    "identity, heavy ball": ("identity", pk.HeavyBall(0.1, 25)),
    "flow": ("squared", pk.GradientFlow(20.0)),
    "no time": ("squared", pk.GradientFlow(0.0)),
    "infinite": ("squared", pk.GradientFlow(INF)),
    "heavy ball": ("squared", pk.HeavyBall(0.1, 25)),
    "rates": ("squared", pk.HeavyBall(RATES.tolist(), momentum=0.5)),
}
fit: Any = pk.fit


def start(z: Any) -> Any:
    """An initial function that is not small."""
    return 2 * z[:, 0] * z[:, 1] - 1


def starts(z: Any) -> Any:
    return start(z)[:, None] * np.array([[1.0, -2.0, 0.5]])


def steps(dynamics: Any) -> tuple:
    if isinstance(dynamics, pk.GradientFlow):
        return ("flow", dynamics.time)
    return ("heavy_ball", np.asarray(dynamics.rates), dynamics.momentum)


@pytest.mark.parametrize("case", CASES)
def test_weights_are_training_on_unit_targets(case, x64):
    """Column n is what NumPy trains, step by step, on the target e_n."""
    loss, dynamics = CASES[case]
    f = fit(KERNEL, X, Y, loss=loss, dynamics=dynamics)
    time = dynamics.effective_time
    if loss == "identity":
        units = np.eye(N) * time / N
    else:
        each = [
            oracle.dual_coef(X, unit, 0.2, True, loss, steps(dynamics), np.zeros(N))
            for unit in np.eye(N)
        ]
        units = np.stack(each, axis=1)
    exact = oracle.matvec(Z, X, units, 0.2, True)
    scale = max(np.abs(exact).max(), 1e-12)
    np.testing.assert_allclose(f.weights(Z), exact, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_outputs_are_what_f0_leaves_plus_weighted_targets(case, dtype):
    loss, dynamics = CASES[case]
    one_hot = np.asarray(pk.one_hot(LABELS, 3))
    for targets, initial in ((Y, None), (Y, start), (one_hot, None), (one_hot, starts)):
        with precision(dtype):
            x, z = X.astype(dtype), Z.astype(dtype)
            y = targets.astype(dtype)
            f = fit(KERNEL, x, y, loss=loss, dynamics=dynamics, initial=initial)
            weights = f.weights(z)
            assert weights.shape == (M, N) and weights.dtype == dtype
            np.testing.assert_array_equal(f.targets, y)
            outputs = np.asarray(f(z), float)
        total = np.asarray(weights, float) @ targets
        if initial is not None:
            at_x = np.asarray(initial(X))
            at_z = np.asarray(initial(Z))
            record = smoothers.linear_loss(loss, "it")
            total += np.asarray(smoothers.initial_part(record, weights, at_z, at_x))
        # float32: rounding of weights, whose sum may cancel.
        eps = 300 * np.finfo(dtype).eps
        np.testing.assert_allclose(outputs, total, atol=eps * (1 + np.abs(total).max()), rtol=0)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_ridge_and_weights_of_points_are_in_the_smoother(case, zeros, x64):
    """Outputs are what f0 leaves plus weighted targets; a label flip is confirmed by retraining."""
    loss, dynamics = CASES[case]
    weights = np.linspace(0.2, 2.0, N)
    if zeros:
        weights[:3] = 0
    how = {"loss": loss, "dynamics": dynamics, "ridge": 0.03, "sample_weight": weights}
    f = fit(KERNEL, X, Y, initial=start, **how)
    rows = np.asarray(f.weights(Z))
    record = smoothers.linear_loss(loss, "it")
    left = np.asarray(smoothers.initial_part(record, rows, start(Z), start(X)))
    np.testing.assert_allclose(f(Z), rows @ Y + left, rtol=0, atol=1e-9)
    if zeros:
        np.testing.assert_array_equal(rows[:, :3], 0)
    flipped = fit(KERNEL, X, np.where(np.arange(N) == 5, -Y, Y), initial=start, **how)
    np.testing.assert_allclose(flipped(Z), f(Z) - 2 * rows[:, 5] * Y[5], rtol=0, atol=1e-9)


def test_beyond_the_direct_size_by_products(x64, monkeypatch):
    for case in ("flow", "infinite", "heavy ball"):
        loss, dynamics = CASES[case]
        f = fit(KERNEL, X, Y, loss=loss, dynamics=dynamics)
        direct = f.weights(Z)
        with monkeypatch.context() as patch:
            patch.setattr(smoothers, "_DIRECT", 5)
            patch.setattr("perturbkernel.training.solve._DIRECT", 5)
            np.testing.assert_allclose(f.weights(Z), direct, rtol=0, atol=1e-7)


def test_weights_of_another_loss_or_tracers_are_refused():
    f = fit(KERNEL, X, Y, loss="logistic")
    with pytest.raises(ValueError, match=r"smoother is known for loss .* not for 'logistic'"):
        f.weights(Z)
    with pytest.raises(ValueError, match="which this predictor does not say"):
        pk.KernelPredictor(KERNEL, f.inputs, f.dual_coef).weights(Z)
    f = fit(KERNEL, X, Y)
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(f.weights)(Z)
    with pytest.raises(ValueError, match="z must"):
        f.weights(np.ones((3, D + 1)))


def test_targets_go_with_files_and_jit(tmp_path):
    for targets in (Y, np.asarray(pk.one_hot(LABELS, 3))):
        f = fit(KERNEL, X, targets, precision=64)
        path = tmp_path / "f.npz"
        f.save(path)
        read = pk.KernelPredictor.load(path)
        assert read.targets is not None and read.targets.dtype == np.float64
        np.testing.assert_array_equal(read.targets, targets)
        # Two sums of float32 outputs.
        np.testing.assert_allclose(jax.jit(lambda f, z: f(z))(f, Z), f(Z), rtol=0, atol=1e-5)


# --- leave-one-out, influence, degrees of freedom ---


def without(n: int, targets: Any, loss: str, dynamics: Any, initial: Any) -> Any:
    keep = np.arange(N) != n
    return fit(KERNEL, X[keep], targets[keep], loss=loss, dynamics=dynamics, initial=initial)


@pytest.mark.parametrize("case", ["identity", "identity, heavy ball", "infinite"])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("started", [False, True])
def test_outputs_without_a_point_are_those_of_training_without_it(case, several, started, x64):
    loss, dynamics = CASES[case]
    targets = np.asarray(pk.one_hot(LABELS, 3)) if several else Y
    initial = None
    if started:
        initial = starts if several else start
    f = fit(KERNEL, X, targets, loss=loss, dynamics=dynamics, initial=initial)
    s = pk.smoother(f)
    moved = np.asarray(s.influence(Z))
    left_out = np.asarray(s.leave_one_out)
    assert moved.shape == (M, N, *targets.shape[1:])
    assert left_out.shape == targets.shape
    for n in (0, 1, 8, N - 1):
        other = without(n, targets, loss, dynamics, initial)
        np.testing.assert_allclose(f(Z) - moved[:, n], other(Z), rtol=0, atol=1e-8)
        np.testing.assert_allclose(left_out[n], other(X[n : n + 1])[0], rtol=0, atol=1e-8)


@pytest.mark.parametrize("case", ["identity", "identity, heavy ball", "infinite"])
@pytest.mark.parametrize(("ridge", "weighted"), [(0.03, False), (0.0, True), (0.03, True)])
def test_a_ridge_and_weights_of_points_are_those_of_the_others(case, ridge, weighted, x64):
    loss, dynamics = CASES[case]
    weights = np.linspace(0.2, 2.0, N) if weighted else np.ones(N)
    if weighted:
        weights[:2] = 0
    targets = np.asarray(pk.one_hot(LABELS, 3))
    how = {"loss": loss, "dynamics": dynamics, "initial": starts, "ridge": ridge}
    f = fit(KERNEL, X, targets, sample_weight=weights if weighted else None, **how)
    s = pk.smoother(f)
    moved, left_out = np.asarray(s.influence(Z)), np.asarray(s.leave_one_out)
    for n in (0, 2, N - 1):
        keep = np.arange(N) != n
        others = weights[keep] if weighted else None
        other = fit(KERNEL, X[keep], targets[keep], sample_weight=others, **how)
        np.testing.assert_allclose(f(Z) - moved[:, n], other(Z), rtol=0, atol=1e-8)
        np.testing.assert_allclose(left_out[n], other(X[n : n + 1])[0], rtol=0, atol=1e-8)


def test_a_single_point_of_positive_weight_is_not_left_out():
    f = fit(KERNEL, X, Y, sample_weight=np.arange(N) == 4)
    with pytest.raises(ValueError, match="two or more points"):
        pk.smoother(f).influence(Z)


@pytest.mark.parametrize("case", CASES)
def test_degrees_of_freedom(case, x64):
    loss, dynamics = CASES[case]
    s = pk.smoother(fit(KERNEL, X, Y, loss=loss, dynamics=dynamics))
    np.testing.assert_allclose(s.weights, s.predictor.weights(X), rtol=0, atol=1e-9)
    eigenvalues = np.linalg.eigvalsh(oracle.ntk(X, X, 0.2, True))
    exact = {
        "no time": 0.0,
        "infinite": float(N),
        "flow": -np.expm1(-20 * eigenvalues / N).sum(),
        "identity": 3 * eigenvalues.sum() / N,
    }
    if case in exact:
        assert s.degrees_of_freedom == pytest.approx(exact[case], abs=1e-6)
    assert s.degrees_of_freedom == pytest.approx(float(np.sum(s.leverage)), abs=1e-9)


def test_what_has_no_closed_form_is_refused():
    s = pk.smoother(fit(KERNEL, X, Y, loss="squared", dynamics=pk.GradientFlow(20.0)))
    with pytest.raises(ValueError, match=r"no closed form .* finite time"):
        s.influence(Z)
    twice = np.concatenate([X[:1], X[:-1]])
    s = pk.smoother(fit(KERNEL, twice, Y, loss="squared", dynamics=pk.GradientFlow(INF)))
    with pytest.raises(ValueError, match="not determined: singular"):
        _ = s.leave_one_out
    with pytest.raises(ValueError, match="two or more points"):
        pk.smoother(fit(KERNEL, X[:1], Y[:1])).influence(Z)
    with pytest.raises(ValueError, match="known for loss"):
        pk.smoother(fit(KERNEL, X, Y, loss="logistic"))
    with pytest.raises(TypeError, match="KernelPredictor"):
        pk.smoother(start)  # pyright: ignore[reportArgumentType]
