import itertools

import jax
import numpy as np
import oracle
import pytest
from scipy.stats import norm
from theory_tools import draw, gradients, outputs, problem, train, unit_gradients

import perturbkernel.theory as theory

KEY = jax.random.key(0)


@pytest.mark.parametrize(("slope", "train_bias"), [(0.0, False), (0.3, True)])
def test_sign_probability_and_expected_accuracy(slope, train_bias):
    p, rng = problem(slope, train_bias), np.random.default_rng(30)
    times = np.array([0.0, 0.5, 2.0])
    probability = theory.sign_probability(*p.data, times=times)
    f_hat = oracle.matvec(p.z, p.x, p.y / 12, slope, train_bias)
    expected = norm.cdf(times[:, None] * f_hat / np.sqrt(np.diag(oracle.nngp(p.z, p.z, slope))))
    np.testing.assert_allclose(probability, expected, atol=1e-12)
    np.testing.assert_allclose(theory.sign_probability(*p.data, times=2.0), expected[2], atol=1e-12)
    labels = np.where(np.arange(7) % 2 == 0, 1.0, -1.0)
    accuracy = theory.expected_accuracy(*p.data, labels, times=times)
    np.testing.assert_allclose(
        accuracy, np.where(labels > 0, expected, 1 - expected).mean(1), atol=1e-12
    )
    assert accuracy[0] == 0.5
    # Trained wide networks: one run to time T gives f0 + T f_hat up to 1/sqrt(width).
    positive = []
    for _ in range(150):
        run = train(draw(rng, 1500, 6), p.x, p.y, p.kernel, rate=0.1, steps=5, momentum=0.0)
        positive.append(outputs(run.network, p.z, slope) > 0)
    predicted = theory.sign_probability(*p.data, times=0.5)
    assert np.abs(np.mean(positive, axis=0) - predicted).max() < 4.5 * np.sqrt(0.25 / 150)
    np.testing.assert_allclose(theory.reproducibility(np.array([0.0, 0.5, 0.9])), [1, 0.5, 0.82])
    with pytest.raises(ValueError, match="probability must lie"):
        theory.reproducibility(1.2)


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
def test_initial_covariance(slope):
    p = problem(slope, n=3, m=4)
    z, x, d = p.z, np.concatenate([p.z[3:], p.x[1:]]), 6
    covariance = theory.initial_covariance(p.kernel, z, x)
    m, n = len(z), len(x)
    np.testing.assert_allclose(covariance[:m, :m], oracle.nngp(z, z, slope), atol=1e-12)
    # Cov(f0(z), grad f0(x)) = grad_x Sigma(x, z), from theory 0.3.
    phi, angle = oracle.phi(z, x, slope), oracle.angle(z, x)
    s_z, s_x = (np.sqrt(1 + (q**2).sum(1) / d) for q in (z, x))
    cone = (1 - slope) ** 2 / 2 / np.pi
    cross = (
        phi[:, :, None] * z[:, None]
        + cone * (np.outer(s_z, 1 / s_x) * np.sin(angle))[:, :, None] * x[None]
    )
    np.testing.assert_allclose(covariance[:m, m:], cross.reshape(m, n * d) / d, atol=1e-12)
    # Cov of gradients: derivatives of that in z, by differences.
    step, block = 1e-5, covariance[m:, m:].reshape(n, d, n, d)
    for k in range(d):
        shifted = [x + s * step * np.eye(d)[k] for s in (1, -1)]
        rows = [theory.initial_covariance(p.kernel, q, x)[:n, n:].reshape(n, n, d) for q in shifted]
        difference = (rows[0] - rows[1]) / 2 / step
        np.testing.assert_allclose(block[:, k], difference, atol=2e-5)
    np.testing.assert_allclose(
        np.einsum("ikik->i", block), theory.initial_gradient_second_moment(p.kernel), atol=1e-12
    )
    assert np.linalg.eigvalsh(covariance).min() > -1e-12


@pytest.mark.parametrize("method", ["network", "gaussian"])
def test_samples_have_that_covariance(method):
    p = problem(0.2, n=3, m=3)
    f0, slopes = theory.sample_initial(
        p.kernel, p.z, p.x, draws=1500, method=method, width=32, key=KEY
    )
    sample = np.hstack([f0, slopes.reshape(1500, -1)])
    covariance = theory.initial_covariance(p.kernel, p.z, p.x)
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    assert np.abs((sample.T @ sample / 1500 - covariance) / scale).max() < 0.16
    again = theory.sample_initial(p.kernel, p.z, p.x, draws=1500, method=method, width=32, key=KEY)[
        0
    ]
    np.testing.assert_array_equal(f0, again)


def test_expected_agreement_minds_the_shared_initial_function():
    """Trained networks against the formula, and against the product of the two sign probabilities,
    which is wrong.
    """
    p = problem(0.0, n=16)
    rng, width, size, steps_f, steps_g = np.random.default_rng(31), 1200, 1.0, 3, 30
    agree, time_f, time_g = [], 0.3, 6.0
    for _ in range(80):
        start, fresh = draw(rng, width, 6), draw(rng, width, 6)
        run = train(start, p.x, p.y, p.kernel, rate=time_f / steps_f, steps=steps_f, momentum=0.0)
        slopes = gradients(run.network, p.x, 0.0)
        targets = rng.choice([-1.0, 1.0], size=16)
        r = size * targets[:, None] * slopes / np.linalg.norm(slopes, axis=1, keepdims=True)
        run_g = train(
            fresh, r, targets, p.kernel, rate=time_g / steps_g, steps=steps_g, momentum=0.0
        )
        agree.append(
            np.mean(
                np.sign(outputs(run.network, p.z, 0.0)) == np.sign(outputs(run_g.network, p.z, 0.0))
            )
        )
    found = theory.expected_agreement(
        *p.data, size=size, time_f=time_f, time_g=time_g, draws=100, width=500, key=KEY
    )
    error = np.hypot(np.std(agree) / np.sqrt(80), found.mean_standard_error)
    assert abs(np.mean(agree) - found.mean) < 4 * error
    np.testing.assert_allclose(found.mean, found.probability.mean())
    assert found.undefined == 0 and (found.standard_error > 0).all()
    # Wrong: as if the two were independent.
    positive = theory.sign_probability(*p.data, times=time_f)
    r = size * unit_gradients(p)
    second = theory.sign_probability(p.kernel, r, np.ones(16), p.z, times=time_g)
    product = np.mean(positive * second + (1 - positive) * (1 - second))
    assert np.mean(agree) - product > 3 * error


def test_expected_agreement_by_hand():
    """Early, where the sign of f is often that of its initial function."""
    p, size, time_f, time_g, key = problem(0.2, True), 1.5, 0.2, 3.0, jax.random.key(5)
    targets = np.where(np.arange(len(p.x)) % 3 == 0, 1.0, -1.0)
    found = theory.expected_agreement(
        *p.data,
        size=size,
        time_f=time_f,
        time_g=time_g,
        targets=targets,
        draws=20,
        width=64,
        key=key,
    )
    start, slopes = theory.sample_initial(
        p.kernel, p.z, p.x, draws=20, width=64, key=jax.random.split(key)[0]
    )
    coef = p.y / len(p.x)
    mean = coef @ oracle.ntk(p.x, p.z, 0.2, True)
    limit = oracle.input_gradient(p.x, p.x, coef, 0.2, True)
    wanted = np.zeros(len(p.z))
    for f0, slope in zip(start, slopes, strict=True):
        u = slope + time_f * limit
        r = size * targets[:, None] * u / np.linalg.norm(u, axis=1, keepdims=True)
        g = targets / len(p.x) @ oracle.ntk(r, p.z, 0.2, True)
        deviation = np.sqrt(0.52 * (1 + np.sum(p.z**2, axis=1) / 6))
        wanted += norm.cdf(np.sign(f0 + time_f * mean) * time_g * g / deviation) / 20
    np.testing.assert_allclose(found.probability, wanted, rtol=1e-8)
    assert (np.sign(start + time_f * mean) != np.sign(mean)).mean() > 0.2


def test_expected_agreement_without_a_start():
    """At a late time of f its initial function no longer matters: the probability for g alone."""
    p = problem(0.1, True)
    targets = np.where(np.arange(12) % 3 == 0, 1.0, -1.0)
    r = p.x + 0.5 * targets[:, None] * unit_gradients(p)
    second = theory.sign_probability(p.kernel, r, targets, p.z, times=2.0)
    f_hat = theory.derive_constants(*p.data).f_hat
    expected = np.where(f_hat > 0, second, 1 - second)
    for method in ("network", "gaussian"):
        found = theory.expected_agreement(
            *p.data,
            size=0.5,
            carrier=p.x,
            time_f=1e9,
            time_g=2.0,
            targets=targets,
            draws=2,
            method=method,
            width=8,
            key=KEY,
        )
        np.testing.assert_allclose(found.probability, expected, atol=1e-7)
    with pytest.raises(ValueError, match="targets must be one of 'coin_flip', 'balanced'"):
        theory.expected_agreement(
            *p.data, size=0.5, time_f=1.0, time_g=1.0, targets="random", key=KEY
        )


def test_expected_cosine():
    p, rng = problem(0.0, n=12, m=7, d=30), np.random.default_rng(32)
    c = theory.derive_constants(*p.data)
    v, limit = c.direction, oracle.input_gradient(p.z, p.x, p.y / 12, 0.0, False)
    start = np.array([gradients(draw(rng, 500, 30), p.z, 0.0) for _ in range(250)])
    for time in (0.5, 3.0):
        after = start + time * limit
        cosines = (after * v).sum(2) / np.linalg.norm(after, axis=2) / np.linalg.norm(v, axis=1)
        found = theory.expected_cosine(*p.data, time=time)
        assert (
            np.abs(cosines.mean(0) - found).max() < 0.05
            and np.abs(cosines.mean() - found.mean()) < 0.02
        )
    run = train(draw(rng, 8000, 30), p.x, p.y, p.kernel, rate=1.0, steps=4, momentum=0.0)
    trained = gradients(run.network, p.z, 0.0)
    cosine = (trained * v).sum(1) / np.linalg.norm(trained, axis=1) / np.linalg.norm(v, axis=1)
    assert abs(cosine.mean() - theory.expected_cosine(*p.data, time=4.0).mean()) < 0.05
    assert not theory.expected_cosine(*p.data, time=0.0).any()
    opposite = theory.expected_cosine(
        p.kernel, np.repeat(p.x[:1], 2, 0), np.array([1.0, -1.0]), p.z, time=1.0
    )
    assert np.isnan(opposite).all()


@pytest.mark.parametrize("n", [8, 9])
@pytest.mark.parametrize("rule", ["coin_flip", "balanced"])
@pytest.mark.parametrize("carried", [False, True])
def test_target_moments_by_enumeration(n, rule, carried):
    p = problem(0.2, True, n=n)
    u = np.random.default_rng(33).normal(size=p.x.shape)
    carrier = p.x if carried else 0 * p.x
    found = theory.target_moments(p.kernel, carrier, u, p.z, size=0.4, rule=rule)
    targets = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
    if rule == "balanced":
        targets = targets[np.abs(targets.sum(1)) == n % 2]
    plus, minus = (oracle.ntk(carrier + s * 0.4 * u, p.z, 0.2, True) for s in (1, -1))
    values = (np.where(targets[:, :, None] > 0, plus, minus) * targets[:, :, None]).mean(1)
    np.testing.assert_allclose(found.mean, values.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.variance, values.var(0), atol=1e-12)
    assert np.abs(found.positive - (values > 0).mean(0)).max() < 0.2
