import numpy as np
import oracle
import pytest
from scipy.stats import chi2
from theory_tools import DELTA, check_protocol, draw, gate, problem

import perturbkernel.theory as theory

BOUNDS = theory.bounds

WIDTH, DRAWS = 600, 300


@pytest.fixture(params=[(0.0, False), (0.3, True)], ids=str, scope="module")
def case(request):
    """One problem and Phi_width, f_hat_width and v_width of many independent networks."""
    p = problem(*request.param)
    rng, n = np.random.default_rng(4), len(p.x)
    moments = np.empty((DRAWS, n, len(p.z)))
    for i in range(DRAWS):
        w, b, a = draw(rng, WIDTH, p.x.shape[1])
        at_x, at_z = (
            gate(w @ p.x.T + b[:, None], p.kernel.slope),
            gate(w @ p.z.T + b[:, None], p.kernel.slope),
        )
        moments[i] = at_x.T @ (a[:, None] ** 2 * at_z)
        if i == 0:
            np.testing.assert_allclose(
                theory.gate_moment(p.kernel, w, b, a, p.x, p.z), moments[0], atol=1e-12
            )
            predictor, vector = theory.tangent_predictor(p.kernel, w, b, a, p.x, p.y, p.z)
    weighted = p.y[:, None] * p.factor / n
    predictors, vectors = (
        (moments * weighted).sum(1),
        np.einsum("rnm,nd->rmd", moments, p.y[:, None] * p.x / n),
    )
    np.testing.assert_allclose(predictor, predictors[0], atol=1e-12)
    np.testing.assert_allclose(vector, vectors[0], atol=1e-12)
    return p, theory.derive_constants(*p.data), moments, predictors, vectors


def within_chi_square(ratios):
    """Mean squares / variances of DRAWS draws; heavier tails than a Gaussian's, so at a small
    level.
    """
    low, high = chi2.ppf([1e-5, 1 - 1e-5], DRAWS) / DRAWS
    assert (ratios > low).all() and (ratios < high).all(), ratios
    assert abs(np.mean(ratios) - 1) < 0.15


def test_variances_are_exact(case):
    p, c, moments, predictors, vectors = case
    phi = oracle.phi(p.x, p.z, p.kernel.slope)
    within_chi_square(
        ((moments - phi) ** 2).mean(0)
        / theory.gate_moment_variance(p.kernel, p.x, p.z, width=WIDTH)
    )
    within_chi_square(
        ((predictors - c.f_hat) ** 2).mean(0) / theory.predictor_variance(c, width=WIDTH)
    )
    within_chi_square(
        ((vectors - c.direction) ** 2).sum(2).mean(0) / theory.direction_variance(c, width=WIDTH)
    )


def test_entrywise_bounds(case):
    p, _, moments, _, _ = case
    error = np.abs(moments - oracle.phi(p.x, p.z, p.kernel.slope))
    bound = theory.bounds.gate_moment_bound(p.kernel, p.x, p.z, width=WIDTH, delta=DELTA)
    check_protocol((error / bound).max((1, 2)), low=0.3, high=0.6)
    kernels = theory.bounds.kernel_bound(p.kernel, p.x, p.z, width=WIDTH, delta=DELTA)
    np.testing.assert_allclose(kernels, np.abs(p.factor) * bound, rtol=1e-12)
    split = theory.bounds.gate_moment_bound_split(
        p.kernel, width=WIDTH, delta=DELTA, pairs=bound.size
    )
    check_protocol(error.max((1, 2)) / split, low=0.14, high=0.35)


def test_entrywise_bound_by_hand(case):
    p, c = case[:2]
    log, fourth = np.log(2 * 84 / DELTA), oracle.phi(p.x, p.z, p.kernel.slope**2)
    by_hand = np.sqrt(6 * fourth * log / WIDTH) + 2 * log / WIDTH
    np.testing.assert_allclose(
        theory.bounds.gate_moment_bound(p.kernel, p.x, p.z, width=WIDTH, delta=DELTA),
        by_hand,
        rtol=1e-12,
    )
    rate = np.log(2 * 7 / DELTA) / WIDTH
    hilbert = np.sqrt(6 * c.direction_second_moment * rate) + 27 * c.radius * rate
    np.testing.assert_allclose(
        theory.bounds.direction_bound(c, width=WIDTH, delta=DELTA, method="bernstein"),
        hilbert,
        rtol=1e-12,
    )
    operator = np.linalg.norm(p.x, 2) / np.sqrt(12) * np.sqrt((by_hand**2).mean(0))
    np.testing.assert_allclose(
        theory.bounds.direction_bound(c, width=WIDTH, delta=DELTA, method="operator"),
        operator,
        rtol=1e-12,
    )


def test_predictor_bound(case):
    _, c, _, predictors, _ = case
    bound = theory.bounds.predictor_bound(c, width=WIDTH, delta=DELTA)
    check_protocol((np.abs(predictors - c.f_hat) / bound).max(1), low=0.25, high=0.55)


@pytest.mark.parametrize(
    ("method", "low", "high"),
    [("bernstein", 0.05, 0.3), ("operator", 0.1, 0.35), ("minimum", 0.1, 0.35)],
)
def test_direction_bounds(case, method, low, high):
    _, c, _, _, vectors = case
    bound = theory.bounds.direction_bound(c, width=WIDTH, delta=DELTA, method=method)
    check_protocol(
        (np.linalg.norm(vectors - c.direction, axis=2) / bound).max(1), low=low, high=high
    )


def test_doubled_networks_count_their_pairs():
    p = problem(0.1)
    c = theory.derive_constants(*p.data)
    rng, ratios, squares = np.random.default_rng(5), [], []
    for _ in range(200):
        w, b, a = draw(rng, 200, 6, total=400)
        network = theory.doubled(w, b, a)
        predictor, _ = theory.tangent_predictor(p.kernel, *network, p.x, p.y, p.z)
        bound = theory.bounds.predictor_bound(c, width=400, delta=DELTA, start="doubled")
        ratios.append(np.max(np.abs(predictor - c.f_hat) / bound))
        squares.append(
            (predictor - c.f_hat) ** 2 / theory.predictor_variance(c, width=400, start="doubled")
        )
    check_protocol(ratios, low=0.25, high=0.55)
    assert abs(np.mean(squares) - 1) < 0.15
    with pytest.raises(ValueError, match="width of a doubled network must be even"):
        theory.bounds.predictor_bound(c, width=401, delta=DELTA, start="doubled")


def test_more_points_and_smaller_delta_cost_more(case):
    _, c = case[:2]
    base = theory.bounds.predictor_bound(c, width=WIDTH, delta=DELTA)
    assert (theory.bounds.predictor_bound(c, width=WIDTH, delta=DELTA / 2, points=7) > base).all()
    np.testing.assert_allclose(
        theory.bounds.predictor_bound(c, width=WIDTH, delta=DELTA / 2),
        theory.bounds.predictor_bound(c, width=WIDTH, delta=DELTA, points=14),
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"delta": 0.0}, ValueError, "delta must be > 0"),
        ({"delta": 1.5}, ValueError, "delta must be"),
        ({"width": 0}, ValueError, "width must be at least 1"),
        ({"width": 2.5}, TypeError, "width must be a whole number"),
        ({"points": 0}, ValueError, "points must be at least 1"),
    ],
)
def test_bad_statements_are_named(case, change, error, message):
    with pytest.raises(error, match=message):
        theory.bounds.predictor_bound(case[1], **({"width": 10, "delta": 0.1} | change))


def test_a_doubled_network_counts_for_its_pairs():
    """Every bound of a doubled network is that of half of its width; odd widths are refused."""
    p = problem(0.2, True)
    c = theory.derive_constants(*p.data)
    named = {
        "kernel_bound": lambda **o: BOUNDS.kernel_bound(p.kernel, p.x, p.z, delta=DELTA, **o),
        "gate_moment_bound": lambda **o: BOUNDS.gate_moment_bound(
            p.kernel, p.x, p.z, delta=DELTA, **o
        ),
        "split": lambda **o: BOUNDS.gate_moment_bound_split(p.kernel, delta=DELTA, pairs=9, **o),
        "predictor_bound": lambda **o: BOUNDS.predictor_bound(c, delta=DELTA, **o),
        "direction_bound": lambda **o: BOUNDS.direction_bound(c, delta=DELTA, **o),
        "predictor_variance": lambda **o: theory.predictor_variance(c, **o),
        "direction_variance": lambda **o: theory.direction_variance(c, **o),
    }
    for name, bound in named.items():
        found, wanted = bound(width=700, start="doubled"), bound(width=350)
        np.testing.assert_allclose(found, wanted, rtol=1e-12, err_msg=name)
        with pytest.raises(ValueError, match="must be even; got 701"):
            bound(width=701, start="doubled")


def test_the_minimum_pays_half_for_each_method():
    c = theory.derive_constants(*problem(0.2, True).data)
    for width in (50, 5_000, 10**7):
        both = [
            BOUNDS.direction_bound(c, width=width, delta=DELTA / 2, method=method)
            for method in ("bernstein", "operator")
        ]
        found = BOUNDS.direction_bound(c, width=width, delta=DELTA)
        np.testing.assert_allclose(found, np.minimum(*both), rtol=1e-12)
