import numpy as np
import pytest
from theory_tools import DELTA, check_protocol, draw, gate, gradients, problem, train

import perturbkernel.theory as theory

BOUNDS = theory.bounds
DRAWS, WIDTH = 40, 500


@pytest.fixture(params=[(0.0, False), (0.2, True)], ids=str, scope="module")
def case(request):
    p = problem(*request.param)
    rng, results = np.random.default_rng(14), []
    for _ in range(DRAWS):
        w, b, a = start = draw(rng, WIDTH, 6)
        run = train(start, p.x, p.y, p.kernel, rate=0.03, steps=12)
        end, end_biases, _ = run.network
        parts = theory.decompose_gradient(*p.data, w, b, a, end, end_biases, time=run.time)
        results.append((start, run, parts))
    return p, theory.derive_constants(*p.data), results


def test_decomposition_is_exact(case):
    p, c, results = case
    for start, run, parts in results[:5]:
        trained = gradients(run.network, p.z, p.kernel.slope)
        np.testing.assert_allclose(parts.total, trained / run.time - c.direction, atol=1e-12)
        total = parts.initial + parts.flips + parts.concentration + parts.lazy
        np.testing.assert_allclose(total, parts.total, atol=1e-10)
        np.testing.assert_allclose(
            parts.initial, gradients(start, p.z, p.kernel.slope) / run.time, atol=1e-12
        )
        w, b, a = start
        _, finite = theory.tangent_predictor(p.kernel, w, b, a, p.x, p.y, p.z)
        np.testing.assert_allclose(parts.concentration, finite - c.direction, atol=1e-12)


def test_a_priori_bounds(case):
    _, c, results = case
    time = results[0][1].time
    bounds = BOUNDS.gradient_bounds(c, width=WIDTH, time=time, delta=DELTA)
    windows = {
        "initial": (0.2, 0.8),
        "flips": (0.01, 0.3),
        "concentration": (0.08, 0.35),
        "lazy": (0.01, 0.1),
    }
    for name, (low, high) in (windows | {"total": (0.01, 0.4)}).items():
        size = [
            np.max(np.linalg.norm(getattr(parts, name), axis=1) / getattr(bounds, name))
            for *_, parts in results
        ]
        check_protocol(size, low=low, high=high)
    centred = BOUNDS.gradient_bounds(c, width=WIDTH, time=time, delta=DELTA, start="centred")
    np.testing.assert_allclose(centred.total, bounds.total - bounds.initial)


def test_a_priori_bounds_by_hand(case):
    """Theory 5.2, point by point."""
    p, c, _ = case
    n, d, width, time, h = 12, 6, 1000, 2.0, 1 - p.kernel.slope
    log = np.log(16 * (7 + n) / DELTA)

    def square(move, s):
        return (
            4 * move / (np.pi * s * np.sqrt(width))
            + np.sqrt(32 * move * log / (np.pi * s * width**1.5))
            + 2 * log / width
        )

    at_x = square(time * c.input_speeds["identity"], c.input_length)
    found = BOUNDS.gradient_bounds(c, width=width, time=time, delta=DELTA)
    for j in range(7):
        move, s = time * c.speeds["identity"][j], c.length[j]
        lam = 2 / np.pi * np.sqrt(width) * move / s
        count = lam + np.sqrt(2 * lam * log) + log / 3
        absolute = (
            np.sqrt(2 / np.pi) * move / s
            + np.sqrt(8 * move * log / (np.pi * s * np.sqrt(width)))
            + log / np.sqrt(width)
        )
        a2 = square(move, s)
        first = np.sqrt(a2) * (np.sqrt(count) + np.sqrt(d) + np.sqrt(2 * log)) / np.sqrt(d)
        second = np.sqrt(2 / np.pi / d) * absolute + np.sqrt(a2) * (2 + np.sqrt(2 * log / d))
        b2 = h / time * (min(first, second) + move * c.norm[j] * a2 / (d * s**2))
        np.testing.assert_allclose(found.flips[j], b2, rtol=1e-12)
        sums = min(
            np.mean(c.input_norm * at_x), c.operator_norm / np.sqrt(n) * np.sqrt(np.mean(at_x**2))
        )
        np.testing.assert_allclose(found.lazy[j], h * (c.radius * a2 + sums), rtol=1e-12)
    initial = (
        BOUNDS.initial_gradient_bound(p.kernel, d, width=width, delta=DELTA / 4, points=7) / time
    )
    np.testing.assert_allclose(found.initial, initial, rtol=1e-12)
    both = [
        BOUNDS.direction_bound(c, width=width, delta=DELTA / 8, method=one)
        for one in ("bernstein", "operator")
    ]
    np.testing.assert_allclose(found.concentration, np.minimum(*both), rtol=1e-12)


def test_limit_of_the_a_priori_bound(case):
    """As width grows it tends to B_1 and the size of the gates' motion, not to 0."""
    p, c, _ = case
    found = BOUNDS.gradient_bounds(c, width=10**18, time=3.0, delta=DELTA, start="centred")
    limit = 2 / np.pi * (1 - p.kernel.slope) * c.speeds["identity"] / c.length / np.sqrt(6)
    np.testing.assert_allclose(found.total, limit, rtol=2e-3)
    assert (np.linalg.norm(theory.gate_motion(*p.data), axis=1) < limit).all()


def test_flips_bound_from_the_initialisation(case):
    p, _, results = case
    ratios = []
    for start, run, parts in results[:15]:
        certified = theory.certified_gates(*p.data, *start, time=run.time, keep_sets=True)
        bound = BOUNDS.flips_bound_measured(
            p.kernel, start[0], start[2], certified.sets, time=run.time
        )
        size = np.linalg.norm(parts.flips, axis=1)
        assert (size <= bound * (1 + 1e-9)).all()
        ratios.append(np.max(size / bound))
    assert max(ratios) > 0.1


def test_measured_cosine_bound_is_nearly_tight():
    p = problem(0.1, n=16)
    c, rng, excess = theory.derive_constants(*p.data), np.random.default_rng(15), []
    norm = np.linalg.norm(c.direction, axis=1)
    for _ in range(5):
        start = draw(rng, 4000, 6)
        run = train(start, p.x, p.y, p.kernel, rate=0.2, steps=15)
        after = gradients(run.network, p.z, 0.1)
        bound = BOUNDS.measured_cosine_bound(c, after, time=run.time)
        cosine = (after * c.direction).sum(1) / np.linalg.norm(after, axis=1) / norm
        claimed = ~np.isnan(bound)
        assert claimed.any() and (cosine[claimed] >= bound[claimed] - 1e-9).all()
        excess.append(np.min((cosine - bound)[claimed]))
        xi = np.linalg.norm(after / run.time - c.direction, axis=1)
        assert ((xi < norm) == claimed).all()
    assert min(excess) < 0.01


def test_mean_gradient_is_nearer_to_the_limit_than_to_the_direction():
    """Theory 5.3, with 10^5 decoupled neurons of a network of width 1000."""
    p = problem(0.0, n=16)
    rng, width, chunks = np.random.default_rng(16), 1000, 10
    total = np.zeros(p.z.shape)
    for _ in range(chunks):
        w, b, a = draw(rng, 10_000, 6, total=width)
        run = train((w, b, a), p.x, p.y, p.kernel, rate=0.1, steps=6, momentum=0.0)
        # A neuron and its mirror image (readout -a): averages out f0 and, to first order, more.
        after = gradients(run.network, p.z, 0.0) - gradients((w, b, a), p.z, 0.0)
        total += after * width / 10_000 / run.time / chunks
    v, zeta = theory.direction(*p.data), theory.gate_motion(*p.data)
    near, far = np.linalg.norm(total - v - zeta), np.linalg.norm(total - v)
    assert near < 0.5 * far, (near, far)


def test_logistic_direction_is_around_realised_weights():
    p = problem(0.2, True)
    c, rng, ratios = theory.derive_constants(*p.data), np.random.default_rng(17), []
    for _ in range(30):
        start = draw(rng, WIDTH, 6)
        run = train(start, p.x, p.y, p.kernel, rate=0.05, steps=12, loss="logistic")
        beta = theory.realised_weights(run.history, p.y, np.full(12, 0.05), 0.9)
        xi = gradients(run.network, p.z, 0.2) / run.time - theory.weighted_direction(c, beta)
        bounds = BOUNDS.gradient_bounds(c, width=WIDTH, time=run.time, delta=DELTA, loss="logistic")
        ratios.append(np.max(np.linalg.norm(xi, axis=1) / bounds.total))
        finite = (
            theory.gate_moment(p.kernel, *start, p.x, p.z).T @ ((beta * p.y)[:, None] * p.x) / 12
        )
        off = (
            np.linalg.norm(finite - theory.weighted_direction(c, beta), axis=1)
            / bounds.concentration
        )
        assert off.max() < 1
    operator = BOUNDS.direction_bound(c, width=WIDTH, delta=DELTA / 4, method="operator")
    np.testing.assert_allclose(bounds.concentration, operator, rtol=1e-12)
    check_protocol(ratios, low=0.01, high=0.5)


def test_undefined_and_bad_arguments():
    p = problem()
    c = theory.derive_constants(*p.data)
    doubled = BOUNDS.gradient_bounds(c, width=100, time=1.0, delta=0.1, start="doubled")
    assert np.isnan(doubled.total).all() and "not stated for doubled" in doubled.status
    with pytest.raises(ValueError, match="time must be > 0"):
        BOUNDS.gradient_bounds(c, width=100, time=0.0, delta=0.1)
    with pytest.raises(ValueError, match="gradients must have 7 rows"):
        BOUNDS.measured_cosine_bound(c, p.x, time=1.0)
    np.testing.assert_array_equal(
        BOUNDS.cosine_bound(np.array([0.6, 1.0, 2.0, 0.0]), np.array([1.0, 1.0, 1.0, 0.0])),
        [0.8, *[np.nan] * 3],
    )
    assert np.isnan(BOUNDS.measured_cosine_bound(c, 0 * p.z, time=1.0)).all()
    with pytest.raises(ValueError, match="sets must be booleans"):
        BOUNDS.flips_bound_measured(p.kernel, p.x, p.y, np.ones((12, 3)), time=1.0)
    assert gate(np.zeros(1), 0.3)[0] == 0.3
