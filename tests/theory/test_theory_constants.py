import dataclasses
import itertools

import numpy as np
import oracle
import pytest
from theory_tools import draw, gate, problem, unit_gradients

import perturbkernel.theory as theory
from perturbkernel.theory import pairs
from perturbkernel.verify import by_hand

CASES = [(0.0, False), (0.2, True), (0.5, False), (1.0, True)]


@pytest.fixture(params=CASES, ids=str, scope="module")
def case(request):
    p = problem(*request.param)
    return p, theory.derive_constants(*p.data)


def test_plain_sums(case):
    p, c = case
    n, d = p.x.shape
    k = p.factor
    signed = p.y[:, None] * k
    same = (p.x[:, None] == p.z[None]).all(-1)
    expected = {
        "norm": np.linalg.norm(p.z, axis=1),
        "length": np.sqrt(1 + (p.z**2).sum(1) / d),
        "input_norm": np.linalg.norm(p.x, axis=1),
        "operator_norm": np.linalg.svd(p.x, compute_uv=False)[0],
        "radius": min(
            np.linalg.norm(p.x, axis=1).mean(), np.linalg.svd(p.x, compute_uv=False)[0] / np.sqrt(n)
        ),
        "positive": np.maximum(signed, 0).sum(0),
        "negative": np.maximum(-signed, 0).sum(0),
        "absolute": np.abs(k).mean(0),
        "absolute_apart": np.where(same, 0, np.abs(k)).sum(0) / n,
        "mean_factor": signed.mean(0),
        "f_hat": oracle.matvec(p.z, p.x, p.y / n, p.kernel.slope, p.kernel.train_bias),
        "direction": oracle.frozen_gate_direction(p.z, p.x, p.y / n, p.kernel.slope),
        "input_direction": oracle.frozen_gate_direction(p.x, p.x, p.y / n, p.kernel.slope),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(c, name), value, atol=1e-11, err_msg=name)
    # Q is Phi with the squared slope.
    fourth = oracle.phi(p.x, p.z, p.kernel.slope**2)
    np.testing.assert_allclose(c.gate_fourth, fourth.mean(0), atol=1e-12)
    np.testing.assert_allclose(c.gate_root, np.sqrt(fourth).mean(0), atol=1e-12)
    np.testing.assert_allclose(c.kernel_root, (np.sqrt(fourth) * np.abs(k)).mean(0), atol=1e-12)


def test_speed_is_the_supremum_over_weights(case):
    p, _ = case
    few = dataclasses.replace(p, x=p.x[:6], y=p.y[:6])
    c = theory.derive_constants(*few.data)
    for loss, low in (("identity", p.kernel.slope), ("logistic", 0.0)):
        corners = np.array(list(itertools.product((low, 1.0), repeat=6)))
        largest = np.abs(corners @ (few.y[:, None] * few.factor)).max(0) / 6
        np.testing.assert_allclose(c.speed(loss), largest, atol=1e-12)
        at_x = (
            np.abs(corners @ (few.y[:, None] * (few.x @ few.x.T + p.kernel.train_bias))).max(0) / 6
        )
        np.testing.assert_allclose(c.input_speeds[loss], at_x, atol=1e-12)
        coupling = (np.abs(few.factor) * (at_x / c.input_length)[:, None]).mean(0)
        np.testing.assert_allclose(c.couplings[loss], coupling, atol=1e-12)


def test_second_moments_by_monte_carlo(case):
    p, c = case
    rng, samples = np.random.default_rng(3), 200_000
    w, b, _ = draw(rng, samples, p.x.shape[1])
    at_x, at_z = (
        gate(w @ p.x.T + b[:, None], p.kernel.slope),
        gate(w @ p.z.T + b[:, None], p.kernel.slope),
    )
    values = (at_z * (at_x @ (p.y[:, None] * p.factor / len(p.x)))) ** 2
    error = 5 * values.std(0) / np.sqrt(samples) + 1e-10
    assert (np.abs(values.mean(0) - c.f_second_moment) <= error).all()
    assert (error[c.f_second_moment > 0] <= 0.05 * values.mean(0).max()).all()
    pull = ((at_x @ (p.y[:, None] * p.x / len(p.x))) ** 2).sum(1)
    vectors = at_z**2 * pull[:, None]
    error = 5 * vectors.std(0) / np.sqrt(samples) + 1e-10
    assert (np.abs(vectors.mean(0) - c.direction_second_moment) <= error).all()


def test_second_moments_by_their_double_sum(case):
    """Theory 2.2 and 2.3 as written, with the sign covariance."""
    p, c = case
    slope, n = p.kernel.slope, len(p.x)
    a, b, half_sum, half_gap = (
        (1 + slope**2) / 2,
        (1 - slope**2) / 2,
        (1 + slope) / 2,
        (1 - slope) / 2,
    )
    gram = oracle.phi(p.x, p.x, slope)
    sign = 1 - 2 * oracle.angle(p.x, p.z) / np.pi
    weighted = p.y[:, None] * p.factor
    square = a / n**2 * np.einsum("nm,km,nk->m", weighted, weighted, gram)
    square += 2 * b * half_sum * half_gap * weighted.mean(0) * (weighted * sign).mean(0)
    np.testing.assert_allclose(c.f_second_moment, square, atol=1e-10)
    labelled = p.y[:, None] * p.x
    vector = a / n**2 * np.einsum("ni,ki,nk->", labelled, labelled, gram)
    vector += 2 * b * half_sum * half_gap * (sign.T @ labelled / n) @ labelled.mean(0)
    np.testing.assert_allclose(c.direction_second_moment, vector, atol=1e-10)


def test_wide_inputs_and_opposite_duplicates():
    p = problem(n=4, d=30, m=3)
    c = theory.derive_constants(*p.data)
    np.testing.assert_allclose(c.operator_norm, np.linalg.norm(p.x, 2), rtol=1e-12)
    x, y = np.repeat(p.x[:1], 2, axis=0), np.array([1.0, -1.0])
    nothing = theory.derive_constants(p.kernel, x, y, p.z)
    assert (nothing.f_second_moment >= 0).all() and nothing.f_second_moment.max() < 1e-14
    assert np.abs(nothing.input_direction).max() < 1e-15


def test_tiles_add_up(monkeypatch):
    p = problem(0.2, True, n=45, m=19)
    whole = theory.derive_constants(*p.data)
    monkeypatch.setattr(pairs, "LIMIT", 16)
    tiled = theory.derive_constants(*p.data)
    for one in dataclasses.fields(whole):
        if one.name not in ("kernel", "x", "y", "z", "speeds", "input_speeds", "couplings"):
            np.testing.assert_allclose(
                getattr(tiled, one.name), getattr(whole, one.name), atol=1e-12
            )
    for name in ("speeds", "input_speeds", "couplings"):
        for loss in ("identity", "logistic"):
            np.testing.assert_allclose(
                getattr(tiled, name)[loss], getattr(whole, name)[loss], atol=1e-12
            )
    u = unit_gradients(p)
    terms = []
    for limit in (16, 1024):
        monkeypatch.setattr(pairs, "LIMIT", limit)
        term = theory.bounds.label_term(p.kernel, p.x, u, p.z, size=1.0, delta=0.1)
        moments = theory.target_moments(p.kernel, p.x, u, p.z, size=1.0)
        zeta = theory.gate_motion(*p.data)
        psi = theory.psi(p.kernel, p.x + u, p.x, p.y, p.z)
        terms.append(
            np.concatenate([term.bound, moments.mean, moments.variance, zeta.ravel(), psi])
        )
    np.testing.assert_allclose(*terms, atol=1e-12)


@pytest.mark.parametrize(("slope", "train_bias"), [(0.0, False), (0.5, True)])
def test_speeds_are_the_extremes_of_each_loss(slope, train_bias):
    """Weights in [slope, 1] for the identity loss; in [0, 1], whatever the slope, for the logistic:
    its weights may vanish.
    """
    p = problem(slope, train_bias, shift=0.3)
    c = theory.derive_constants(*p.data)
    data = by_hand.Data(slope, int(train_bias), p.x, p.y, p.z)
    for loss, low in (("identity", slope), ("logistic", 0.0)):
        np.testing.assert_allclose(c.speeds[loss], data.speed(low), rtol=1e-12)
        np.testing.assert_allclose(c.input_speeds[loss], data.at_inputs.speed(low), rtol=1e-12)
        rates = c.input_speeds[loss] / by_hand.lengths(p.x)
        coupling = np.mean(np.abs(data.factors) * rates[:, None], axis=0)
        np.testing.assert_allclose(c.couplings[loss], coupling, rtol=1e-12)
