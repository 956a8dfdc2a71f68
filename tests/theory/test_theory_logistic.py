from typing import Any

import numpy as np
import oracle
import pytest
from scipy.integrate import solve_ivp
from theory_tools import (
    DELTA,
    check_protocol,
    check_surely,
    draw,
    gradients,
    outputs,
    problem,
    train,
)

import perturbkernel.theory as theory

BOUNDS = theory.bounds


def unit_rows(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def flow(p, gram, f0, times):
    """alpha (n, times) of the kernel model's logistic flow."""

    def velocity(_, alpha):
        return 1 / (1 + np.exp(p.y * (f0 + gram @ (alpha * p.y)))) / len(p.y)

    return solve_ivp(
        velocity,
        (0, max(times)),
        np.zeros(len(p.y)),
        t_eval=times,
        method="DOP853",
        rtol=1e-11,
        atol=1e-13,
    ).y


def cases():
    rng = np.random.default_rng(24)
    for seed in range(20):
        p = problem(rng.choice([0.0, 0.3]), bool(seed % 2), shift=rng.choice([0.2, 1.0]), seed=seed)
        yield (
            p,
            oracle.ntk(p.x, p.x, p.kernel.slope, p.kernel.train_bias),
            rng.normal(size=12) * rng.choice([0.0, 1.0]),
        )


def test_coefficient_bounds_hold_along_the_flow():
    times = [0.01, 0.3, 3.0, 30.0]
    tight, errors = [], []
    for p, gram, f0 in cases():
        alpha = flow(p, gram, f0, times)
        for t, at in zip(times, alpha.T, strict=True):
            found = BOUNDS.coefficient_bounds(p.kernel, p.x, p.y, time=t, initial=f0)
            check_surely(found.low / at)
            check_surely(at / found.high)
            assert (found.low > 0).all() and (found.high < t / 12).all()
            e = np.abs(2 * 12 * at / t - 1)
            check_surely(e / found.error)
            assert (found.error <= BOUNDS.weight_error_bound(found.margin) + 1e-12).all()
            tight.append([np.median(found.low / at), np.median(at / found.high)])
            errors.append(np.max(e / found.error))
    early = np.array(tight).reshape(20, 4, 2)[:, 0]
    assert (early > 0.9).all() and np.max(errors) > 0.8


def test_coefficient_bounds_by_hand():
    p, gram, f0 = next(cases())
    n, t = 12, 1.3
    signed = gram * np.outer(p.y, p.y) / n
    up, down, start = np.maximum(signed, 0).sum(1), np.maximum(-signed, 0).sum(1), p.y * f0

    def sp(s):
        return np.log1p(np.exp(s))

    found = BOUNDS.coefficient_bounds(p.kernel, p.x, p.y, time=t, initial=f0)
    np.testing.assert_allclose(found.low, (sp(-start) - sp(-start - t * up)) / (n * up), rtol=1e-10)
    np.testing.assert_allclose(
        found.high, (sp(-start + t * down) - sp(-start)) / (n * down), rtol=1e-10
    )
    h, a = up + down, np.abs(start)
    error = 2 / (h * t) * np.log(np.cosh((a + h * t) / 2) / np.cosh(a / 2))
    np.testing.assert_allclose(found.error, error, rtol=1e-10)
    np.testing.assert_allclose(found.margin, a + t * h, rtol=1e-12)


def test_coefficient_bounds_at_the_ends():
    p, _, f0 = next(cases())
    at_zero = BOUNDS.coefficient_bounds(p.kernel, p.x, p.y, time=0.0, initial=3 + f0)
    np.testing.assert_allclose(at_zero.error, np.tanh(np.abs(3 + f0) / 2), rtol=1e-12)
    assert not at_zero.low.any() and not at_zero.high.any()
    tiny = BOUNDS.coefficient_bounds(p.kernel, p.x, p.y, time=1e-12, initial=2.0)
    np.testing.assert_allclose(tiny.low / tiny.high, 1, rtol=1e-9)
    np.testing.assert_allclose(12 * tiny.low / 1e-12, 1 / (1 + np.exp(2 * p.y)), rtol=1e-9)
    huge = BOUNDS.coefficient_bounds(p.kernel, p.x, p.y, time=1e6, initial=-900.0)
    assert (
        np.isfinite([huge.low, huge.high, huge.error]).all()
        and (huge.low >= 0).all()
        and (huge.error <= 1).all()
    )


def test_half_time_and_equal_signs():
    met, ratios = 0, []
    for p, gram, _ in cases():
        c = theory.derive_constants(*p.data)
        cross = oracle.ntk(p.x, p.z, p.kernel.slope, p.kernel.train_bias)
        t = 0.4
        alpha = flow(p, gram, 0.0, [t])[:, 0]
        f = (alpha * p.y) @ cross
        error = BOUNDS.coefficient_bounds(p.kernel, p.x, p.y, time=t).error
        gap = BOUNDS.half_time_gap(p.kernel, p.x, p.z, error)
        np.testing.assert_allclose(gap, (error[:, None] * np.abs(cross)).mean(0), atol=1e-12)
        ratios.append(np.max(np.abs(2 * f / t - c.f_hat) / gap))
        same = theory.same_sign_as_identity(c, error)
        assert (np.sign(f) == np.sign(c.f_hat))[same].all()
        np.testing.assert_array_equal(same, np.abs(c.f_hat) > error.max() * np.abs(cross).mean(0))
        met += same.sum()
    check_surely(ratios)
    assert max(ratios) > 0.4 and 0 < met < 20 * 7


@pytest.fixture(scope="module", params=[(0.0, False), (0.2, True)], ids=str)
def runs(request):
    p = problem(*request.param)
    rng, results = np.random.default_rng(25), []
    for _ in range(40):
        start = draw(rng, 500, 6)
        run = train(start, p.x, p.y, p.kernel, rate=0.05, steps=10, loss="logistic")
        results.append(
            (start, run, theory.realised_weights(run.history, p.y, np.full(10, 0.05), 0.9))
        )
    return p, theory.derive_constants(*p.data), results


def test_realised_weights(runs):
    """Weights of the last layer's displacement: w_i moves along them if no gate flips. Theory 13.4."""
    p, _, results = runs
    _, run, beta = results[0]
    rates, mu, steps = np.full(10, 0.05), 0.9, 10
    omega = [sum(rates[j] * mu ** (j - s) for j in range(s, steps)) for s in range(steps)]
    pull = 1 / (1 + np.exp(p.y * run.history))
    np.testing.assert_allclose(sum(omega), run.time, rtol=1e-12)
    np.testing.assert_allclose(beta, omega @ pull / run.time, rtol=1e-12)
    margin = np.abs(run.history).max(0)
    check_surely(np.abs(2 * beta - 1) / BOUNDS.weight_error_bound(margin))
    assert np.isnan(theory.realised_weights(run.history, p.y, np.zeros(10), 0.9)).all()


@pytest.mark.parametrize("start", ["random", "centred"])
def test_predictor_error(runs, start):
    centred = start == "centred"
    p, c, results = runs
    ratios = []
    for initial, run, beta in results:
        before = outputs(initial, p.z, p.kernel.slope)
        f = outputs(run.network, p.z, p.kernel.slope) - centred * before
        error = BOUNDS.logistic_predictor_error(
            c, beta, width=500, time=run.time, delta=DELTA, start=start
        )
        ratios.append(np.max(np.abs(f / run.time - error.f_hat) / error.total))
    check_protocol(ratios, low=0.02, high=0.6)
    level = DELTA / (2 if centred else 3)
    phi = BOUNDS.gate_moment_bound(p.kernel, p.x, p.z, width=500, delta=level)
    np.testing.assert_allclose(
        error.concentration, (beta[:, None] * np.abs(p.factor) * phi).mean(0), rtol=1e-10
    )
    np.testing.assert_allclose(
        error.f_hat,
        oracle.matvec(p.z, p.x, beta * p.y / 12, p.kernel.slope, p.kernel.train_bias),
        atol=1e-12,
    )


def test_weighted_direction_gap(runs):
    p, c, results = runs
    for *_, beta in results[:10]:
        error = np.max(np.abs(2 * beta - 1))
        gap = np.linalg.norm(2 * theory.weighted_direction(c, beta) - c.direction, axis=1)
        bound = BOUNDS.weighted_direction_gap(c, error)
        assert (gap <= bound * (1 + 1e-9)).all() and (gap > 0.02 * bound).all()
    phi = oracle.phi(p.x, p.z, p.kernel.slope)
    by_hand = error * np.linalg.norm(p.x, 2) / np.sqrt(12) * np.sqrt((phi**2).mean(0))
    np.testing.assert_allclose(bound, by_hand, rtol=1e-12)


@pytest.mark.parametrize(
    ("train_bias", "scenario", "rule"),
    [(False, "a", "coin_flip"), (True, "a", "fixed"), (False, "b", "coin_flip")],
)
def test_theorem(train_bias, scenario, rule):
    p = problem(0.0, train_bias, n=16, shift=1.5)
    c, rng, width, size = theory.derive_constants(*p.data), np.random.default_rng(26), 1500, 2.0
    carrier = p.x if scenario == "b" else None
    f_ratios, g_ratios = [], []
    beta_f, beta_g, targets = np.zeros((3, 16))
    for _ in range(10):
        starts = [draw(rng, width, 6) for _ in "fg"]
        run = train(starts[0], p.x, p.y, p.kernel, rate=0.01, steps=6, loss="logistic")
        gradient = gradients(run.network, p.x, 0.0) - gradients(starts[0], p.x, 0.0)
        targets = rng.choice([-1.0, 1.0], size=16)
        unit = gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
        r = (0 if carrier is None else p.x) + size * targets[:, None] * unit
        run_g = train(starts[1], r, targets, p.kernel, rate=0.02, steps=8, loss="logistic")
        beta_f = theory.realised_weights(run.history, p.y, np.full(6, 0.01), 0.9)
        beta_g = theory.realised_weights(run_g.history, targets, np.full(8, 0.02), 0.9)
        found = theory.logistic_match(
            c,
            gradient,
            targets,
            beta_f,
            beta_g,
            size=size,
            carrier=carrier,
            time_f=run.time,
            time_g=run_g.time,
            width_f=width,
            width_g=width,
            delta=DELTA,
            rule=rule,
            start="centred",
        )
        f, g = (
            outputs(one.network, p.z, 0.0) - outputs(start, p.z, 0.0)
            for one, start in zip((run, run_g), starts, strict=True)
        )
        f_ratios.append(np.max(np.abs(f / run.time - found.f_hat_beta) / found.f_error))
        g_ratios.append(np.max(np.abs(g / run_g.time / size - found.g_hat_beta) / found.g_error))
        same = np.sign(f) == np.sign(g)
        assert same[found.holds].all() and same[found.holds_unweighted].all()
        assert found.events == 4 + (scenario == "b")
    check_protocol(f_ratios, low=0.02, high=0.6)
    check_protocol(g_ratios, low=0.02, high=0.8)
    expected = (np.abs(found.f_hat_beta) > found.f_error) & (
        np.abs(found.g_hat_beta) > found.g_error
    )
    np.testing.assert_array_equal(found.holds, expected & (found.f_hat_beta * found.g_hat_beta > 0))
    if scenario == "a" and not train_bias:  # not vacuous for wide networks
        widths = {"width_f": 10**7, "width_g": 10**7, "time_f": run.time, "time_g": run_g.time}
        wide = theory.logistic_match(
            c, gradient, targets, beta_f, beta_g, size=size, delta=DELTA, start="centred", **widths
        )
        assert wide.holds.mean() > 0.5

    # The inequalities behind the unweighted criteria, which are deterministic given the weights.
    e_f, e_g = (np.max(np.abs(2 * b - 1)) for b in (beta_f, beta_g))
    phi, nu = oracle.phi(r, p.z, 0.0), np.linalg.norm(gradient, axis=1) / run.time
    v_beta = oracle.frozen_gate_direction(p.x, p.x, beta_f * p.y / 16, 0.0)
    g_prime = (phi * (v_beta @ p.z.T) / nu[:, None]).mean(0)
    inner = oracle.phi(p.x, p.x, 0.0) @ np.abs(p.x @ p.z.T) / 16
    cost = e_f / 2 * (phi / nu[:, None] * inner).mean(0)
    check_surely(np.abs(g_prime - found.g_hat / 2) / cost)
    spread = e_g * (phi * np.abs(v_beta @ p.z.T) / nu[:, None]).mean(0)
    check_surely(np.abs(2 * found.g_hat_beta - g_prime) / spread)
    kappa = (p.x @ p.z.T if scenario == "b" else 0) + train_bias
    psi = np.abs((beta_g * targets) @ (phi * kappa)) / 16
    assert (psi / size <= found.g_parts["psi"] * (1 + 1e-9) + 1e-15).all()
    if scenario == "b":
        term = BOUNDS.label_term(
            p.kernel, p.x, unit_rows(gradient), p.z, size=size, delta=DELTA / 5
        )
        label = term.bound / 2 + e_g / 2 * (phi * np.abs(kappa)).mean(0)
        np.testing.assert_allclose(found.g_parts["psi"], label / size, rtol=1e-10)
    holds = np.abs(found.f_hat) > 2 * found.f_error + e_f * np.abs(
        oracle.ntk(p.x, p.z, 0.0, train_bias)
    ).mean(0)
    holds &= np.abs(found.g_hat) / 2 > 2 * found.g_error + spread + cost
    np.testing.assert_array_equal(found.holds_unweighted, holds & (found.f_hat * found.g_hat > 0))


@pytest.mark.parametrize("seed", range(4))
def test_opposite_signs_are_no_match(seed):
    """With trained biases and lopsided labels f_hat and g_hat differ in sign at some points, both
    far beyond their errors in networks as wide as these.
    """
    p = problem(0.1, True, n=16, seed=seed)
    y = np.where(np.arange(16) % 4 == 0, -1.0, 1.0)
    targets = np.where(np.arange(16) % 2 == 0, -1.0, 1.0)
    c = theory.derive_constants(p.kernel, 0.3 * p.x, y, 0.3 * p.z)
    options: dict[str, Any] = {
        "size": 30.0,
        "time_f": 1.0,
        "time_g": 1.0,
        "width_f": 10**14,
        "width_g": 10**14,
        "delta": DELTA,
        "rule": "fixed",
        "start": "centred",
    }
    found = theory.logistic_match(c, c.input_direction / 2, targets, 0.5, 0.5, **options)
    assert (np.abs(found.f_hat_beta) > found.f_error).all()
    assert (np.abs(found.g_hat_beta) > found.g_error).all()
    agree = found.f_hat_beta * found.g_hat_beta > 0
    assert 0 < agree.sum() < len(agree)
    np.testing.assert_array_equal(found.holds, agree)


def test_unweighted_criterion_by_hand():
    """As the weights leave one half, points drop out exactly where the theory says."""
    p, rng, e_g, kept = problem(0.1), np.random.default_rng(34), 0.05, []
    c = theory.derive_constants(*p.data)
    gradient, targets = (
        c.input_direction / 2 + 0.01 * rng.normal(size=p.x.shape),
        rng.choice([-1.0, 1.0], size=12),
    )
    signs, wide, nu = rng.choice([-1.0, 1.0], size=12), 10**14, np.linalg.norm(gradient, axis=1)
    r = targets[:, None] * unit_rows(gradient)
    phi, gram = oracle.phi(r, p.z, 0.1) / nu[:, None], oracle.phi(p.x, p.x, 0.1)
    inner = gram @ np.abs(p.x @ p.z.T) / 12
    sizes = np.abs(oracle.ntk(p.x, p.z, 0.1, False)).mean(0)
    grid = [(e_f, wide) for e_f in np.linspace(0, 0.6, 40)] + [
        (0.01, int(w)) for w in np.logspace(3, 9, 40)
    ]
    for e_f, width in grid:
        beta = 0.5 * (1 + e_f * signs)
        options: dict[str, Any] = {
            "width_f": width,
            "width_g": wide,
            "time_f": 1.0,
            "time_g": 1.0,
            "delta": DELTA,
        }
        found = theory.logistic_match(
            c,
            gradient,
            targets,
            beta,
            0.5 * (1 + e_g * signs),
            size=1.0,
            start="centred",
            **options,
        )
        v_beta = gram @ ((beta * p.y)[:, None] * p.x) / 12
        spread = e_g * (phi * np.abs(v_beta @ p.z.T)).mean(0)
        cost = e_f / 2 * (phi * inner).mean(0)
        holds = np.abs(found.f_hat) > 2 * found.f_error + e_f * sizes
        holds &= np.abs(found.g_hat) / 2 > 2 * found.g_error + spread + cost
        np.testing.assert_array_equal(
            found.holds_unweighted, holds & (found.f_hat * found.g_hat > 0)
        )
        kept.append(found.holds_unweighted.sum())
    assert kept[0] > kept[39] and kept[40] < kept[-1]


def test_undefined_and_bad_arguments():
    p = problem()
    c = theory.derive_constants(*p.data)
    options: dict[str, Any] = {
        "size": 1.0,
        "time_f": 1.0,
        "time_g": 1.0,
        "width_f": 50,
        "width_g": 50,
        "delta": 0.1,
    }
    found = theory.logistic_match(c, 0 * p.x, p.y, 0.5, 0.5, **options)
    assert found.status.startswith("undefined: zero gradient") and np.isnan(found.g_error).all()
    with pytest.raises(ValueError, match=r"beta_f must lie in \[0, 1\]"):
        theory.logistic_match(c, p.x, p.y, 1.5, 0.5, **options)
    with pytest.raises(ValueError, match="margin must be >= 0"):
        BOUNDS.weight_error_bound(-1.0)
