import numpy as np
import oracle
import pytest
from theory_tools import draw, outputs, problem, train, unit_gradients

import perturbkernel.theory as theory
from perturbkernel.kernels.two_layer import TwoLayerNTK

BOUNDS = theory.bounds


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_label_effect(slope):
    p, rng, size = problem(slope), np.random.default_rng(27), 1.5
    u = unit_gradients(p)
    middle, outer = BOUNDS.label_effect_bound(p.kernel, u, p.z, size=size)
    plus, minus = (oracle.phi(s * size * u, p.z, slope) for s in (1, -1))
    np.testing.assert_allclose(
        middle, (np.abs(plus - minus) * np.abs(u @ p.z.T)).mean(0), atol=1e-12
    )
    assert (middle <= outer * (1 + 1e-9)).all() and middle.max() > 0.3 * outer.max()
    values = []
    for _ in range(100):
        targets = rng.choice([-1.0, 1.0], size=12)
        values.append(theory.g_hat_u(p.kernel, size * targets[:, None] * u, u, p.z))
    spread = np.ptp(values, axis=0)
    assert (spread <= middle * (1 + 1e-9)).all() and (spread > 0.2 * middle).all()
    # The two worst label vectors reach it.
    signs = np.sign((plus - minus) * (u @ p.z.T))[:, 0]
    worst = [
        theory.g_hat_u(p.kernel, s * size * signs[:, None] * u, u, p.z[:1])[0] for s in (1, -1)
    ]
    np.testing.assert_allclose(worst[0] - worst[1], middle[0], rtol=1e-10)


def test_bias_offset_deviation():
    p, rng = problem(0.1, True, n=16), np.random.default_rng(28)
    u = unit_gradients(p)
    for size, tolerance in ((0.01, 0.15), (1.0, 0.3)):
        draws = []
        for _ in range(300):
            targets = rng.choice([-1.0, 1.0], size=16)
            draws.append(
                theory.psi(p.kernel, size * targets[:, None] * u, 0 * u, targets, p.z) / size
            )
        ratio = np.std(draws, axis=0) / theory.bias_offset_deviation(
            p.kernel, p.z, count=16, size=size
        )
        assert np.abs(ratio - 1).max() < tolerance
    assert not theory.bias_offset_deviation(TwoLayerNTK(0.1), p.z, count=16, size=0.1).any()


@pytest.mark.parametrize("train_bias", [False, True])
def test_linear_limit(train_bias):
    for slope in (0.0, 0.6, 0.99, 1.0):
        p = problem(slope, train_bias)
        c = theory.derive_constants(*p.data)
        gap = np.abs(c.f_hat - theory.linear_predictor(*p.data))
        bound = BOUNDS.linear_gap_bound(c)
        assert (gap <= bound + 1e-14).all()
        if 0 < slope < 1:
            assert gap.max() > 0.02 * bound.max()
    # One point opposite to z: Phi goes to the slope, and the bound is reached.
    kernel, x = TwoLayerNTK(0.3, train_bias), np.full((1, 4), 1e7)
    one = np.ones(1)
    far = theory.derive_constants(kernel, x, one, -x)
    gap = np.abs(far.f_hat - theory.linear_predictor(kernel, x, one, -x))
    np.testing.assert_allclose(gap, BOUNDS.linear_gap_bound(far), rtol=1e-5)


@pytest.mark.parametrize("train_bias", [False, True])
def test_symmetries_and_what_is_false(train_bias):
    p = problem(0.2, train_bias)
    f = theory.f_hat(*p.data)
    np.testing.assert_allclose(theory.f_hat(p.kernel, -p.x, -p.y, -p.z), -f, atol=1e-13)
    np.testing.assert_allclose(theory.f_hat(p.kernel, p.x, -p.y, p.z), -f, atol=1e-13)
    assert np.abs(theory.f_hat(p.kernel, -p.x, -p.y, p.z) - f).max() > 0.01
    x, y = np.concatenate([p.x, -p.x]), np.concatenate([p.y, -p.y])
    odd = theory.f_hat(p.kernel, x, y, p.z)
    np.testing.assert_allclose(theory.f_hat(p.kernel, x, y, -p.z), -odd, atol=1e-13)
    linear = theory.symmetric_predictor_without_bias_input(x, y, p.z, slope=0.2)
    assert np.abs(odd - linear).max() > 0.01  # true only without a bias input, see below


def test_symmetric_data_without_bias_input():
    """Phi from the plain angle between x and z, as of a network without biases."""
    p = problem(0.2)
    x, y = np.concatenate([p.x, -p.x]), np.concatenate([p.y, -p.y])
    norms = np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(p.z, axis=1))
    phi = 1.04 / 2 - 0.64 / (2 * np.pi) * np.arccos(np.clip(x @ p.z.T / norms, -1, 1))
    f = (y[:, None] * phi * (x @ p.z.T)).mean(0)
    np.testing.assert_allclose(
        theory.symmetric_predictor_without_bias_input(x, y, p.z, slope=0.2), f, atol=1e-8
    )


def test_variance_of_trained_outputs():
    p, rng, width = problem(0.0, True), np.random.default_rng(29), 1000
    c, changes = theory.derive_constants(*p.data), []
    for _ in range(200):
        start = draw(rng, width, 6)
        run = train(start, p.x, p.y, p.kernel, rate=0.02, steps=4)
        changes.append(outputs(run.network, p.z, 0.0) - outputs(start, p.z, 0.0))
    ratio = np.var(changes, axis=0) / theory.output_change_variance(c, width=width, time=run.time)
    assert abs(np.mean(ratio) - 1) < 0.12 and (ratio > 0.6).all() and (ratio < 1.5).all()


def test_labels_do_not_enter_the_perturbation():
    """Theory 8.1 and 8.3, through the pieces given here."""
    p = problem(0.1)
    assert set(theory.WIDTH_RATES) == {
        "kernel",
        "flipped_fraction",
        "output",
        "gradient",
        "initial_output",
    }
    half = sum(
        6 * theory.f_hat(p.kernel, p.x[part], p.y[part], p.z) for part in (slice(6), slice(6, 12))
    )
    np.testing.assert_allclose(half, 12 * theory.f_hat(*p.data), atol=1e-12)
