"""`pk.certified_flips`, against all subsets, and training again on changed labels."""

import itertools
from typing import Any

import jax
import numpy as np
import pytest
from common import D, M, N

import perturbkernel as pk
from perturbkernel.display import number

RNG = np.random.default_rng(23)
KERNEL: Any = pk.TwoLayerNTK(0.2, True)
X, Z = RNG.normal(size=(N, D)), RNG.normal(size=(M, D))
Y = np.where(X[:, 0] + 0.5 * RNG.normal(size=N) > 0, 1.0, -1.0)
LABELS = np.where(Y > 0, 0, 1 + (X[:, 1] > 0))
INF = float("inf")
CASES: dict[str, Any] = {
    "identity": ("identity", pk.GradientFlow(3.0)),
    "flow": ("squared", pk.GradientFlow(20.0)),
    "infinite": ("squared", pk.GradientFlow(INF)),
    "heavy ball": ("squared", pk.HeavyBall(0.1, 25)),
}
fit: Any = pk.fit


def start(z: Any) -> Any:
    return 0.3 * z[:, 0] * z[:, 1] - 0.1


def starts(z: Any) -> Any:
    return start(z)[:, None] * np.array([[1.0, -2.0, 0.5]])


def decides(f: Any, z: np.ndarray) -> np.ndarray:
    outputs = np.asarray(f(z))
    return np.where(outputs < 0, -1, 1) if outputs.ndim == 1 else outputs.argmax(1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("started", [False, True])
def test_flips_change_the_decision_and_fewer_do_not(case, started, x64):
    """Every query: training again on the labels that are named changes the decision; on all but
    one of them, and on random sets of as many labels as that, it does not.
    """
    loss, dynamics = CASES[case]
    options = {"loss": loss, "dynamics": dynamics, "initial": start if started else None}
    f = fit(KERNEL, X, Y, **options)
    r = pk.certified_flips(f, Z)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(r.decision, decides(f, Z))
    np.testing.assert_allclose(r.weights, f.weights(Z), rtol=0, atol=1e-12)
    for j in range(M):
        flips = int(r.flips[j])
        here = Z[j : j + 1]
        if flips > N:
            everything = fit(KERNEL, X, r.relabelled(j, N), **options)
            assert decides(everything, here) == r.decision[j]
            continue
        changed = np.flatnonzero(np.asarray(r.relabelled(j)) != Y)
        assert set(changed) == set(np.asarray(r.order)[j, :flips].tolist())
        assert decides(fit(KERNEL, X, r.relabelled(j), **options), here) == r.rival[j]
        fewer = [np.asarray(r.relabelled(j, flips - 1))]
        for _ in range(2):
            other = Y.copy()
            other[rng.choice(N, flips - 1, replace=False)] *= -1
            fewer.append(other)
        for targets in fewer:
            assert decides(fit(KERNEL, X, targets, **options), here) == r.decision[j]


def test_two_classes_against_all_subsets(x64):
    """8 points: the smallest of all 256 subsets, in NumPy."""
    f = fit(KERNEL, X[:8], Y[:8], loss="squared", dynamics=pk.GradientFlow(5.0), initial=start)
    r = pk.certified_flips(f, Z)
    w = np.asarray(f.weights(Z))
    begun = np.asarray(f(Z)) - w @ Y[:8]
    least = np.full(M, 9)
    for subset in itertools.product([0, 1], repeat=8):
        flipped = np.array(subset)
        outputs = begun + w @ (Y[:8] * (1 - 2 * flipped))
        changed = outputs * np.asarray(r.decision) <= 0
        least = np.where(changed, np.minimum(least, flipped.sum()), least)
    np.testing.assert_array_equal(r.flips, least)
    # Some are out of reach, some are not: the test can fail both ways.
    assert (least < 9).any()


@pytest.mark.parametrize("started", [False, True])
def test_three_classes_against_all_relabellings(started, x64):
    """7 points near one another, most of them of one class, so that several have to change; some
    weights are negative: the smallest number of changes among all 3^7 labellings, in NumPy.
    """
    few, labels = X[:7] + 1, np.array([0, 0, 1, 0, 0, 2, 0])
    targets = np.asarray(pk.one_hot(labels, 3))
    flow = pk.GradientFlow(5.0)
    initial = starts if started else None
    f = fit(KERNEL, few, targets, loss="squared", dynamics=flow, initial=initial)
    r = pk.certified_flips(f, Z)
    w = np.asarray(f.weights(Z))
    begun = np.asarray(f(Z)) - w @ targets
    decision = np.asarray(f(Z)).argmax(1)
    rows = np.arange(M)
    least = np.full(M, 8)
    for other in itertools.product(range(3), repeat=7):
        relabelled = np.array(other)
        outputs = begun + w @ np.eye(3)[relabelled]
        own = outputs[rows, decision].copy()
        outputs[rows, decision] = -np.inf
        changed = outputs.max(1) >= own
        count = (relabelled != labels).sum()
        least = np.where(changed, np.minimum(least, count), least)
    np.testing.assert_array_equal(r.flips, least)
    if not started:
        assert (least > 1).any() and (w < 0).any()
    for j in np.flatnonzero(least <= 7).tolist():
        again = fit(KERNEL, few, r.relabelled(j), loss="squared", dynamics=flow, initial=initial)
        assert decides(again, Z[j : j + 1]) == r.rival[j]
        assert (np.asarray(r.relabelled(j)).argmax(1) != labels).sum() == least[j]


def test_two_classes_as_one_output_or_two_agree(x64):
    for case in CASES.values():
        loss, dynamics = case
        one = pk.certified_flips(fit(KERNEL, X, Y, loss=loss, dynamics=dynamics), Z)
        columns = 3 * pk.one_hot((Y > 0).astype(int), 2)  # of any height
        two = pk.certified_flips(fit(KERNEL, X, columns, loss=loss, dynamics=dynamics), Z)
        np.testing.assert_array_equal(one.flips, two.flips)
        np.testing.assert_array_equal(one.decision, 2 * two.decision - 1)


def test_what_is_said():
    f = fit(KERNEL, X, Y, loss="squared", dynamics=pk.GradientFlow(20.0))
    r = pk.certified_flips(f, Z)
    flips = np.asarray(r.flips)
    reached = flips[flips <= N]
    assert str(r).startswith(f"LabelFlips(decisions {M}, training labels {N}, changed by none ")
    assert f"flips {number(reached)}, status ok" in str(r)
    assert r.status == "ok"
    # Outputs that no label can change.
    far = fit(KERNEL, X, Y, initial=lambda z: 1e3 + z[:, 0])
    r = pk.certified_flips(far, Z)
    assert (np.asarray(r.flips) == N + 1).all() and f"changed by none {M}, flips []" in str(r)
    # A tie from the start.
    still = fit(KERNEL, X, Y, loss="squared", dynamics=pk.GradientFlow(0.0))
    r = pk.certified_flips(still, Z)
    assert (np.asarray(r.flips) == 0).all() and f"at {M} points a tie" in r.status


def test_ties_within_the_rounding_of_weights_are_said():
    """Three like points, two against one of the weight of both: a tie but for float32."""
    alike = np.ones((3, 2))
    for loss in ("identity", "squared"):
        weights = [1, 4, 5]
        f = fit(pk.RBF(), alike, [1, 1, -1], loss=loss, sample_weight=weights, ridge=0.1)
        r = pk.certified_flips(f, alike[:1])
        assert int(r.flips[0]) <= 1 and "a tie" in r.status


def test_a_tie_with_one_rival_is_said_where_another_needs_as_many():
    """Labels 0, 0, 1, 2 at points that a linear kernel weighs 1, 1 - 1e-12, 1 and 2."""
    x = np.array([[1.0], [1.0 - 1e-12], [1.0], [2.0 - 1e-12]])
    with jax.enable_x64(True):
        f = fit(pk.TwoLayerNTK(1.0), x, pk.one_hot(np.array([0, 0, 1, 2]), 3))
        r = pk.certified_flips(f, x[:1])
    assert "a tie" in r.status


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"known for loss .* not for 'logistic'"):
        pk.certified_flips(fit(KERNEL, X, Y, loss="logistic"), Z)
    with pytest.raises(ValueError, match="labels -1 and"):
        pk.certified_flips(fit(KERNEL, X, X[:, 0], loss="squared"), Z)
    with pytest.raises(ValueError, match="one_hot"):
        pk.certified_flips(fit(KERNEL, X, X, loss="squared"), Z)
    with pytest.raises(TypeError, match="KernelPredictor"):
        pk.certified_flips(start, Z)  # pyright: ignore[reportArgumentType]
    f = fit(KERNEL, X, Y)
    old = pk.KernelPredictor(KERNEL, f.inputs, f.dual_coef, loss=f.loss, dynamics=f.dynamics)
    with pytest.raises(ValueError, match="does not hold the targets"):
        pk.certified_flips(old, Z)
    with pytest.raises(ValueError, match="z must"):
        pk.certified_flips(f, Z[:, :2])
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda z: pk.certified_flips(f, z).flips)(Z)
