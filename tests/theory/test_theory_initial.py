import numpy as np
import pytest
from theory_tools import DELTA, check_protocol, draw, gradients, outputs, problem

import perturbkernel.theory as theory

WIDTH, DRAWS = 400, 300
BOUNDS = theory.bounds


@pytest.fixture(params=[(0.0, False), (0.3, True)], ids=str, scope="module")
def case(request):
    p = problem(*request.param)
    rng = np.random.default_rng(6)
    networks = [draw(rng, WIDTH, 6) for _ in range(DRAWS)]
    f0 = np.array([outputs(net, p.z, p.kernel.slope) for net in networks])
    at_z, at_x = (
        np.array([gradients(net, q, p.kernel.slope) for net in networks]) for q in (p.z, p.x)
    )
    return p, networks, f0, at_z, at_x


def test_outputs_and_gradients_of_arrays(case):
    p, networks, f0, at_z, _ = case
    w, b, a = networks[0]
    np.testing.assert_allclose(theory.output(p.kernel, w, b, a, p.z), f0[0], atol=1e-12)
    np.testing.assert_allclose(theory.gradient(p.kernel, w, b, a, p.z), at_z[0], atol=1e-12)


def test_second_moments_are_exact_at_every_width():
    p = problem(0.3)
    rng = np.random.default_rng(7)
    w, b = rng.normal(size=(20_000, 8, 6)) / np.sqrt(6), rng.normal(size=(20_000, 8))
    a = rng.normal(size=(20_000, 8)) / np.sqrt(8)
    u = np.einsum("rid,md->rim", w, p.z) + b[:, :, None]
    f0 = np.einsum("ri,rim->rm", a, np.where(u > 0, u, 0.3 * u))
    ratio = (f0**2).mean(0) / theory.initial_output_variance(p.kernel, p.z)
    assert np.abs(ratio - 1).max() < 0.06
    square = (np.einsum("ri,rim,rid->rmd", a, np.where(u > 0, 1, 0.3), w) ** 2).sum(2).mean(0)
    assert np.abs(square / theory.initial_gradient_second_moment(p.kernel) - 1).max() < 0.06


def test_output_bounds(case):
    p, networks, f0, _, _ = case
    bound = BOUNDS.initial_output_bound(p.kernel, p.z, width=WIDTH, delta=DELTA)
    check_protocol((np.abs(f0) / bound).max(1), low=0.3, high=0.6)
    measured = [
        BOUNDS.initial_output_bound_measured(p.kernel, w, b, p.z, delta=DELTA)
        for w, b, _ in networks
    ]
    check_protocol((np.abs(f0) / measured).max(1), low=0.35, high=0.7)


def test_gradient_bounds(case):
    p, networks, _, at_z, _ = case
    size = np.linalg.norm(at_z, axis=2)
    bound = BOUNDS.initial_gradient_bound(p.kernel, 6, width=WIDTH, delta=DELTA, points=7)
    check_protocol(size.max(1) / bound, low=0.25, high=0.6)
    measured = [
        BOUNDS.initial_gradient_bound_measured(p.kernel, w, b, p.z, delta=DELTA)
        for w, b, _ in networks
    ]
    check_protocol((size / measured).max(1), low=0.4, high=0.8)


def test_projection_bounds(case):
    p, networks, _, _, at_x = case
    size = np.abs(at_x @ p.z.T)
    bound = BOUNDS.initial_projection_bound(p.z, inputs=12, width=WIDTH, delta=DELTA)
    check_protocol((size / bound).max((1, 2)), low=0.25, high=0.6)
    measured = [
        BOUNDS.initial_projection_bound_measured(w, p.z, inputs=12, delta=DELTA)
        for w, _, _ in networks
    ]
    check_protocol((size / np.array(measured)[:, None]).max((1, 2)), low=0.25, high=0.6)


def test_bounds_by_hand():
    p = problem(0.3)
    slope, width, d = 0.3, 50, 6
    s = np.sqrt(1 + (p.z**2).sum(1) / d)
    half, log = (1 + slope**2) / 2, np.log(14 / DELTA)
    b0 = s * np.sqrt(
        2
        * np.log(28 / DELTA)
        * (half + np.sqrt(3 * (1 + slope**4) * log / width) + 2 * log / width)
    )
    np.testing.assert_allclose(
        BOUNDS.initial_output_bound(p.kernel, p.z, width=width, delta=DELTA), b0, rtol=1e-12
    )
    log, log3 = np.log(28 / DELTA), np.log(4 / DELTA)
    trace = (
        half
        + (1 - slope**2) * np.sqrt(log / 2 / width)
        + 2 * np.sqrt(log / width / d)
        + 2 * log / width / d
    )
    norm = np.sqrt(2 * log / d) * (1 + np.sqrt(d / width) + np.sqrt(2 * log3 / width))
    found = BOUNDS.initial_gradient_bound(p.kernel, d, width=width, delta=DELTA, points=7)
    np.testing.assert_allclose(found, np.sqrt(trace) + norm, rtol=1e-12)
    log, log2 = np.log(4 * 12 * 7 / DELTA), np.log(14 / DELTA)
    size = np.linalg.norm(p.z, axis=1) / np.sqrt(d)
    projection = size * np.sqrt(2 * log * (1 + 2 * np.sqrt(log2 / width) + 2 * log2 / width))
    found = BOUNDS.initial_projection_bound(p.z, inputs=12, width=width, delta=DELTA)
    np.testing.assert_allclose(found, projection, rtol=1e-12)


def test_doubling_removes_the_initial_function():
    p = problem(0.2)
    network = theory.doubled(*draw(np.random.default_rng(8), 500, 6, total=1000))
    assert np.abs(theory.output(p.kernel, *network, p.z)).max() < 1e-14
    assert np.abs(theory.gradient(p.kernel, *network, p.z)).max() < 1e-14


def test_bad_networks_are_named():
    p = problem()
    w, b, a = draw(np.random.default_rng(0), 5, 6)
    with pytest.raises(ValueError, match="weights must have rows of shape"):
        theory.output(p.kernel, w[:, :3], b, a, p.z)
    with pytest.raises(ValueError, match="biases must have shape"):
        theory.output(p.kernel, w, b[:3], a, p.z)
    with pytest.raises(ValueError, match="readout must be finite"):
        theory.output(p.kernel, w, b, a * np.nan, p.z)
