"""The linear classifier of scenario (a), against a NumPy reference that forms every angle."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from common import D, M, N
from theory_tools import draw, outputs, problem, train, unit_gradients

import perturbkernel.theory as theory
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory import tails
from perturbkernel.theory.linear import linear_sums
from perturbkernel.training.dynamics import GradientFlow
from perturbkernel.training.fit import fit
from perturbkernel.training.predictors import KernelPredictor


def predictor(kernel, r, coef) -> KernelPredictor:
    with jax.enable_x64(True):
        return KernelPredictor(kernel, jnp.asarray(r), jnp.asarray(coef))


def cases(count: int, seed: int):
    """Random networks of any kind: (kernel, r, coef, z), with points at, against and beside r."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        n, d = int(rng.integers(1, 20)), int(rng.integers(1, 30))
        kernel = TwoLayerNTK(float(rng.choice([0, 0.1, 0.5, 0.9, 1])), bool(rng.integers(2)))
        r = rng.normal(size=(n, d))
        r /= np.linalg.norm(r, axis=1)[:, None]
        r *= 10.0 ** rng.uniform(-6, 3, size=(n, 1) if i % 2 else ())
        z = rng.normal(size=(10, d)) * 10.0 ** rng.uniform(-3, 3, size=(10, 1))
        if i % 3 == 0:
            z[: min(n, 10)] = r[: min(n, 10)] * rng.choice([-1, 1, 30])
        yield kernel, r, rng.normal(size=n) * 10.0 ** rng.uniform(-9, 9), z


def exact(kernel, r, coef, z):
    """g at z, and what rounding of its terms may add."""
    terms = np.abs(coef) @ (np.outer(*(np.linalg.norm(a, axis=1) for a in (r, z))) + 1)
    g = oracle.matvec(z, r, coef, kernel.slope, kernel.train_bias)
    return g, 1e-12 * terms


def test_the_inequality_is_never_violated_and_is_reached():
    """10,000 points; at one training point in line with z it is an equality."""
    largest, claims = 0.0, 0
    for kernel, r, coef, z in cases(1000, 0):
        found = linear_sums(kernel, r, coef, z)
        g, rounding = exact(kernel, r, coef, z)
        gap = np.abs(g - found.output)
        assert (gap <= found.error + rounding).all()
        assert (np.sign(g) == np.sign(found.output))[found.certified].all()
        claims += found.certified.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            sharp = (found.error > 1e6 * rounding) & (found.error > 0)
            largest = max(largest, np.max(gap / found.error, where=sharp, initial=0))
    assert claims > 5000
    assert 0.99 < largest < 1 + 1e-6


def test_the_classifier_is_the_weighted_sum_of_the_inputs():
    rng = np.random.default_rng(1)
    r, coef, z = rng.normal(size=(N, D)), rng.normal(size=N), rng.normal(size=(M, D))
    for train_bias in (False, True):
        part = theory.linear_part(predictor(TwoLayerNTK(0.2, train_bias), r, coef), z)
        np.testing.assert_allclose(part.weights, (coef[:, None] * r).sum(0), rtol=1e-12)
        assert part.bias == pytest.approx(train_bias * coef.sum(), rel=1e-12)
        gates = oracle.phi(np.zeros((1, D)), z, 0.2)[0]
        np.testing.assert_allclose(part.output, gates * (z @ part.weights + part.bias), rtol=1e-12)
        assert not part.failure.any()
        assert part.share == part.certified.mean()


@pytest.mark.parametrize("train_bias", [False, True])
def test_units_do_not_matter(train_bias):
    """Coefficients of any scale; with c = 0 inputs as short as one likes."""
    rng = np.random.default_rng(2)
    r, coef, z = rng.normal(size=(N, D)), rng.normal(size=N), rng.normal(size=(M, D))
    coef -= coef.mean()
    kernel = TwoLayerNTK(0.1, train_bias)
    expected = linear_sums(kernel, r, coef, z).certified
    assert 0 < expected.mean() < 1
    for factor in (1e-250, 1e250):
        assert (linear_sums(kernel, r, factor * coef, z).certified == expected).all()
    if not train_bias:
        tiny = linear_sums(kernel, 1e-200 * r, coef, z)
        assert tiny.certified.all()
        assert (tiny.error < 1e-180).all()


def test_cancelling_terms_are_not_certified():
    """Opposite copies: g is zero, and so would the error be for slope 1."""
    r = np.repeat(np.random.default_rng(3).normal(size=(8, D)), 2, axis=0)
    coef = np.tile([1.0, -1.0], 8) * 0.1
    z = np.random.default_rng(4).normal(size=(M, D))
    for slope in (0.0, 1.0):
        found = linear_sums(TwoLayerNTK(slope, True), r, coef, z)
        assert not found.certified.any()
    # 0.1 + 0.2 - 0.3 is not zero in float64, and says nothing.
    thirds = linear_sums(
        TwoLayerNTK(1.0, True), np.repeat(r[:1], 3, 0), np.array([0.1, 0.2, -0.3]), z
    )
    assert thirds.output.any() and not thirds.certified.any()


def scenario_a(slope=0.0, train_bias=False, size=0.1, d=6):
    p = problem(slope, train_bias, d=d)
    targets = np.where(np.arange(12) % 3 == 0, 1.0, -1.0)
    return p, size * targets[:, None] * unit_gradients(p), targets


def test_scenario_a_is_certified_and_long_inputs_are_not():
    p, r, targets = scenario_a()
    coef = targets / 12
    assert theory.linear_part(predictor(p.kernel, r, coef), p.z).share > 0.8
    rng = np.random.default_rng(6)
    long, signs = 5 * rng.normal(size=(300, 6)), rng.choice([-1.0, 1.0], size=300)
    assert theory.linear_part(predictor(p.kernel, long, signs / 300), p.z).share < 0.3


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_any_loss(loss):
    p, r, targets = scenario_a(0.1)
    with jax.enable_x64(True):
        g = fit(p.kernel, r, targets, loss=loss, dynamics=GradientFlow(5.0))
        signs = np.sign(np.asarray(g(jnp.asarray(p.z))))
    part = theory.linear_part(g, p.z)
    assert part.share > 0.5
    assert (signs == np.sign(part.output))[part.certified].all()


def test_images_and_float32():
    p, r, targets = scenario_a()
    with jax.enable_x64(False):
        g = fit(p.kernel, r.astype(np.float32).reshape(12, 6), targets.astype(np.float32))
        part = theory.linear_part(g, p.z.astype(np.float32))
    wide = theory.linear_part(predictor(p.kernel, r, np.asarray(g.dual_coef, float)), p.z)
    np.testing.assert_allclose(part.output, wide.output, rtol=1e-5)
    assert part.output.dtype == np.float64


def test_networks_of_finite_width_have_the_signs_that_are_certified():
    """Trained networks, centred; too narrow a network is certified nowhere."""
    p, r, targets = scenario_a(train_bias=True, size=0.5)
    width, time, rng = 3000, 0.5, np.random.default_rng(5)
    g = predictor(p.kernel, r, time * targets / 12)
    part = theory.linear_part(g, p.z, width=width, delta=0.1)
    limit = theory.linear_part(g, p.z)
    assert 0 < part.share <= limit.share
    # Bounds are those of the tails at g's own time and targets.
    constants = theory.derive_constants(p.kernel, r, targets, p.z)
    speeds = tails.derive_speeds(constants)
    tail = tails.derive_tail(constants, speeds, width=width, time=time)
    np.testing.assert_allclose(part.failure, np.exp(tail.log_failure()), rtol=1e-6)
    assert not theory.linear_part(g, p.z, width=2).certified.any()
    wrong = 0
    for _ in range(20):
        start = draw(rng, width, 6)
        run = train(start, r, targets, p.kernel, rate=time / 8, steps=8, momentum=0.0)
        change = outputs(run.network, p.z, 0.0) - outputs(start, p.z, 0.0)
        wrong += (np.sign(change) != np.sign(part.output))[part.certified].any()
    assert wrong <= 2  # at most one in ten, by the statement; none is seen


def test_the_points_share_one_delta():
    """At twenty points alike, each of which costs p, two and a half p pay for two."""
    p, r, targets = scenario_a(size=0.5)
    g = predictor(p.kernel, r, 0.5 * targets / 12)
    z = np.repeat(p.z[:1], 20, axis=0)
    price = theory.linear_part(g, z, width=1000).failure[0]
    assert 0 < price < 0.4
    for delta, count in ((0.9 * price, 0), (2.5 * price, 2)):
        assert theory.linear_part(g, z, width=1000, delta=delta).certified.sum() == count


def test_the_initial_function_costs_certificates():
    p, r, targets = scenario_a(size=0.5)
    g = predictor(p.kernel, r, 0.5 * targets / 12)
    shares = [
        theory.linear_part(g, p.z, width=100_000, start=start).share
        for start in ("centred", "doubled", "random")
    ]
    assert shares[0] >= shares[1] >= shares[2] == 0


def test_what_is_refused():
    p, r, targets = scenario_a()
    g = predictor(p.kernel, r, targets / 12)
    with pytest.raises(TypeError, match="g must be a KernelPredictor"):
        theory.linear_part(lambda z: z, p.z)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="g must start from zero"):
        theory.linear_part(dataclasses.replace(g, initial=lambda z: z[:, 0]), p.z)
    with pytest.raises(ValueError, match="g must have one output; it has 2"):
        theory.linear_part(dataclasses.replace(g, dual_coef=jnp.ones((12, 2))), p.z)
    with pytest.raises(ValueError, match="z must have rows of shape"):
        theory.linear_part(g, p.z[:, :-1])
    uneven = dataclasses.replace(g, dual_coef=jnp.arange(1.0, 13.0))
    with pytest.raises(ValueError, match="identity loss"):
        theory.linear_part(uneven, p.z, width=100)
    with pytest.raises(ValueError, match="delta"):
        theory.linear_part(g, p.z, width=100, delta=0.0)
    with pytest.raises(ValueError, match="even"):
        theory.linear_part(g, p.z, width=101, start="doubled")
