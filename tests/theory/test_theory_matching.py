from typing import Any

import numpy as np
import oracle
import pytest
from theory_tools import (
    DELTA,
    check_protocol,
    draw,
    gradients,
    outputs,
    problem,
    train,
    unit_gradients,
)

import perturbkernel.theory as theory
from perturbkernel.theory.matching import conditions

BOUNDS = theory.bounds
RUN = {"rate": 0.03, "steps": 12}


def test_a_match_needs_both_outputs_known_and_one_sign():
    cases = [
        (2.0, 3.0, True),
        (-2.0, -3.0, True),
        (0.5, 3.0, False),
        (2.0, 0.5, False),
        (2.0, -3.0, False),
    ]
    f_hat, g_hat, expected = map(np.array, zip(*cases, strict=True))
    assert conditions(f_hat, 1.0, g_hat, 1.0).tolist() == expected.tolist()


@pytest.mark.parametrize("scenario", ["a", "b"])
@pytest.mark.parametrize("rule", ["coin_flip", "balanced"])
def test_label_term(scenario, rule):
    p = problem(0.1, scenario == "a", n=16)
    u, carrier = unit_gradients(p), p.x if scenario == "b" else 0 * p.x
    size, rng = 0.8, np.random.default_rng(19)
    term = BOUNDS.label_term(p.kernel, carrier, u, p.z, size=size, delta=DELTA, rule=rule)
    plus, minus = (oracle.phi(carrier + s * size * u, p.z, 0.1) for s in (1, -1))
    kappa = carrier @ p.z.T + p.kernel.train_bias
    np.testing.assert_allclose(term.systematic, ((plus - minus) / 2 * kappa).mean(0), atol=1e-12)
    b = (plus + minus) / 2 * kappa
    square = (b**2).sum(0) if rule == "coin_flip" else 2 * ((b - b.mean(0)) ** 2).sum(0)
    np.testing.assert_allclose(
        term.radius, np.sqrt(2 * np.log(14 / DELTA) * square) / 16, rtol=1e-9
    )
    assert (np.abs(term.systematic) <= term.systematic_bound * (1 + 1e-9)).all()
    np.testing.assert_allclose(
        term.systematic_bound,
        size * 0.81 / (2 * np.pi * np.sqrt(6)) * np.abs(kappa).mean(0),
        rtol=1e-12,
    )
    ratios, means = [], []
    for _ in range(400):
        if rule == "coin_flip":
            targets = rng.choice([-1.0, 1.0], size=16)
        else:
            targets = rng.permutation(np.repeat([-1.0, 1.0], 8))
        psi = (np.where(targets[:, None] > 0, plus, minus) * targets[:, None] * kappa).mean(0)
        ratios.append(np.max(np.abs(psi - term.systematic) / term.radius))
        means.append(psi)
        assert (np.abs(psi) <= term.bound).all() or ratios[-1] > 1
    check_protocol(ratios, low=0.1, high=0.75)
    error = 5 * np.std(means, axis=0) / 20
    assert (np.abs(np.mean(means, axis=0) - term.systematic) < error).all()


def test_label_term_vanishes_without_carrier_and_bias():
    p = problem(0.1)
    term = BOUNDS.label_term(p.kernel, 0 * p.x, p.x, p.z, size=1.0, delta=0.1)
    assert not term.bound.any() and not term.systematic_bound.any()
    with pytest.raises(ValueError, match="needs an even number of points"):
        BOUNDS.label_term(p.kernel, p.x[:5], p.x[:5], p.z, size=1.0, delta=0.1, rule="balanced")


@pytest.mark.parametrize("start", ["random", "centred", "doubled"])
def test_predictor_error(start):
    p = problem(0.1, True)
    c, rng, width = theory.derive_constants(*p.data), np.random.default_rng(20), 600
    ratios = []
    for _ in range(60):
        network = draw(rng, width, 6)
        if start == "doubled":
            network = theory.doubled(*draw(rng, width // 2, 6, total=width))
        run = train(network, p.x, p.y, p.kernel, **RUN)
        f = outputs(run.network, p.z, 0.1) - (start == "centred") * outputs(network, p.z, 0.1)
        error = BOUNDS.predictor_error(c, width=width, time=run.time, delta=DELTA, start=start)
        ratios.append(np.max(np.abs(f / run.time - c.f_hat) / error.total))
    check_protocol(ratios, low=0.02, high=0.5)
    np.testing.assert_allclose(error.total, error.initial + error.lazy + error.concentration)
    assert error.initial.any() == (start == "random")
    level = DELTA / (3 if start == "random" else 2)
    lazy = BOUNDS.lazy_bound(c, width=width, time=run.time, delta=level, start=start)
    np.testing.assert_allclose(error.lazy, lazy / run.time)
    np.testing.assert_allclose(
        error.concentration, BOUNDS.predictor_bound(c, width=width, delta=level, start=start)
    )


def experiment(
    p, rng, width, *, carrier=None, size=1.0, start="centred", steps_f=6, steps_g=15, **options
):
    """One draw of both networks; returns the theorem, f/T_f and g/(size T_g) at z."""
    nets = [
        draw(rng, width, 6)
        if start != "doubled"
        else theory.doubled(*draw(rng, width // 2, 6, total=width))
        for _ in "fg"
    ]
    run = train(nets[0], p.x, p.y, p.kernel, rate=0.02, steps=steps_f)
    centred = start == "centred"
    slope = p.kernel.slope
    gradient = gradients(run.network, p.x, slope) - centred * gradients(nets[0], p.x, slope)
    targets = rng.choice([-1.0, 1.0], size=len(p.x))
    c = theory.derive_constants(*p.data)
    unit = gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    r = (0 if carrier is None else carrier) + size * targets[:, None] * unit
    run_g = train(nets[1], r, targets, p.kernel, rate=0.02, steps=steps_g)
    time_g = run_g.time
    found = theory.match(
        c,
        gradient,
        targets,
        size=size,
        carrier=carrier,
        time_f=run.time,
        time_g=time_g,
        width_f=width,
        width_g=width,
        delta=DELTA,
        start=start,
        **options,
    )
    np.testing.assert_allclose(found.perturbed, r, atol=1e-12)
    f = outputs(run.network, p.z, slope) - centred * outputs(nets[0], p.z, slope)
    g = outputs(run_g.network, p.z, slope) - centred * outputs(nets[1], p.z, slope)
    return found, f / run.time, g / (size * time_g)


@pytest.mark.parametrize(
    ("train_bias", "scenario", "start", "version", "size"),
    [
        (False, "a", "centred", "absolute", 1.0),
        (True, "a", "centred", "signed", 4.0),
        (False, "b", "doubled", "absolute", 4.0),
        (False, "a", "random", "absolute", 1.0),
    ],
)
def test_theorem(train_bias, scenario, start, version, size):
    p = problem(0.0, train_bias, n=16, shift=1.5)
    rng, f_ratios, g_ratios, met = np.random.default_rng(21), [], [], 0
    carrier = p.x if scenario == "b" else None
    for _ in range(8):
        found, f, g = experiment(
            p, rng, 2500, carrier=carrier, start=start, version=version, size=size
        )
        assert found.status == "ok"
        f_ratios.append(np.max(np.abs(f - found.f_hat) / found.f_error.total))
        g_ratios.append(np.max(np.abs(g - found.g_hat) / found.g_error))
        assert (np.sign(f) == np.sign(g))[found.holds].all()
        met += found.holds.sum()
        has_psi = train_bias or scenario == "b"
        assert found.events == (6 if start == "random" else 4) + has_psi
        assert found.g_parts["psi"].any() == has_psi and found.g_parts["initial"].any() == (
            start == "random"
        )
    check_protocol(f_ratios, low=0.02, high=0.7)
    check_protocol(g_ratios, low=0.02, high=0.9)
    if (scenario, start, train_bias) == ("a", "centred", False):
        assert met > 0.3 * 8 * 7


def test_theorem_by_hand():
    p = problem(0.1, True)
    n, rng = len(p.x), np.random.default_rng(22)
    c = theory.derive_constants(*p.data)
    gradient, targets = rng.normal(size=p.x.shape), rng.choice([-1.0, 1.0], size=n)
    arguments: dict[str, Any] = {
        "size": 0.7,
        "time_f": 2.0,
        "time_g": 3.0,
        "width_f": 500,
        "width_g": 900,
        "delta": 0.07,
    }
    norm = np.linalg.norm(gradient, axis=1)
    r = p.x + 0.7 * targets[:, None] * gradient / norm[:, None]
    g = theory.derive_constants(p.kernel, r, targets, p.z)
    found = theory.match(c, gradient, targets, carrier=p.x, **arguments)
    assert found.events == 7
    level = 0.01
    v = oracle.frozen_gate_direction(p.x, p.x, p.y / n, 0.1)
    at = oracle.phi(r, p.z, 0.1) / (norm / 2)[:, None]
    xi = gradient / 2 - v
    expected = {
        "xi": (at * np.abs(xi @ p.z.T)).mean(0),
        "psi": BOUNDS.label_term(
            p.kernel, p.x, gradient / norm[:, None], p.z, size=0.7, delta=level
        ).bound
        / 0.7,
        "initial": BOUNDS.initial_output_bound(p.kernel, p.z, width=900, delta=level) / 3 / 0.7,
        "lazy": BOUNDS.lazy_bound(g, width=900, time=3.0, delta=level) / 3 / 0.7,
        "concentration": BOUNDS.predictor_bound(g, width=900, delta=level) / 0.7,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found.g_parts[name], value, rtol=1e-10, err_msg=name)
    np.testing.assert_allclose(found.g_error, sum(expected.values()), rtol=1e-10)
    np.testing.assert_allclose(found.g_hat, (at * (v @ p.z.T)).mean(0), atol=1e-12)
    signed = theory.match(c, gradient, targets, carrier=p.x, version="signed", **arguments)
    np.testing.assert_allclose(
        signed.g_parts["xi"], np.abs((at * (xi @ p.z.T)).mean(0)), atol=1e-12
    )
    fixed = theory.match(c, gradient, targets, carrier=p.x, rule="fixed", **arguments)
    psi = (oracle.phi(r, p.z, 0.1) * targets[:, None] * (p.x @ p.z.T + 1)).mean(0)
    np.testing.assert_allclose(fixed.g_parts["psi"], np.abs(psi) / 0.7, atol=1e-12)
    assert fixed.events == 6


def test_a_priori_version():
    """Linear enough a network for the a priori bound on xi to be below |v|."""
    p = problem(0.97, False)
    c = theory.derive_constants(*p.data)
    rng = np.random.default_rng(23)
    options: dict[str, Any] = {
        "size": 1.0,
        "time_f": 50.0,
        "time_g": 1.0,
        "width_f": 10**10,
        "width_g": 10**10,
        "delta": 0.1,
    }
    gradient = c.input_direction * 50
    targets = rng.choice([-1.0, 1.0], size=12)
    found = theory.match(c, gradient, targets, version="a_priori", start="centred", **options)
    assert found.status == "ok" and found.events == 5
    at_x = theory.derive_constants(p.kernel, p.x, p.y, p.x)
    bound = BOUNDS.gradient_bounds(at_x, width=10**10, time=50.0, delta=0.02, start="centred").total
    norm = np.linalg.norm(at_x.direction, axis=1)
    assert (bound < norm).all()
    phi = oracle.phi(found.perturbed, p.z, 0.97)
    np.testing.assert_allclose(
        found.g_hat, (phi * (at_x.direction @ p.z.T) / norm[:, None]).mean(0), atol=1e-10
    )
    cost = np.sqrt(2) * np.linalg.norm(p.z, axis=1) * (phi * (bound / norm)[:, None]).mean(0)
    np.testing.assert_allclose(found.g_parts["xi"], cost, rtol=1e-9)
    narrow = theory.match(c, gradient, targets, version="a_priori", **{**options, "width_f": 1000})
    assert (
        np.isnan(narrow.g_error).all() and not narrow.holds.any() and "exceeds |v|" in narrow.status
    )
    doubled = theory.match(c, gradient, targets, version="a_priori", start="doubled", **options)
    assert "not stated for doubled" in doubled.status and not doubled.holds.any()


def test_zero_gradient_is_undefined():
    p = problem()
    c = theory.derive_constants(*p.data)
    gradient = np.ones_like(p.x)
    gradient[4] = 0
    options: dict[str, Any] = {
        "size": 1.0,
        "time_f": 1.0,
        "time_g": 1.0,
        "width_f": 50,
        "width_g": 50,
        "delta": 0.1,
    }
    found = theory.match(c, gradient, p.y, **options)
    assert found.status == "undefined: zero gradient at 1 training points"
    assert np.isnan(found.g_error).all() and not found.holds.any()
    with pytest.raises(ValueError, match="time_g must be > 0"):
        theory.match(c, gradient, p.y, **{**options, "time_g": 0.0})
    with pytest.raises(ValueError, match="size must be > 0"):
        theory.match(c, gradient, p.y, **{**options, "size": 0.0})
    with pytest.raises(ValueError, match="targets must be -1 or"):
        theory.match(c, gradient, 0 * p.y, **options)
