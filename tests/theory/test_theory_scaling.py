"""The scaling laws against the kernel limit in plain NumPy, and what follows from them."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from perturbkernel.theory import scaling

# (d, n, distance, size): the nine settings, half of them at the edge of what the laws assume.
GRID = (
    (100, 100, 1.5, 0.3),
    (100, 400, 1.0, 1.0),
    (100, 1600, 0.7, 0.1),
    (300, 100, 2.0, 1.0),
    (300, 400, 1.5, 3.0),
    (300, 1600, 1.0, 0.3),
    (1000, 100, 2.5, 3.0),
    (1000, 400, 2.0, 1.0),
    (1000, 1600, 1.5, 0.1),
)
CASES = (("a", False), ("a", True), ("b", False), ("b", True))


def angles(x, z):
    """Products, lengths of (x, sqrt(d)) and (z, sqrt(d)), the cosine, and Phi for slope 0."""
    d = x.shape[1]
    s_x, s_z = (np.sqrt(1 + np.sum(a * a, axis=1) / d) for a in (x, z))
    product = z @ x.T
    rho = np.clip((1 + product / d) / np.outer(s_z, s_x), -1, 1)
    return product, s_x, s_z, rho, 0.5 - np.arccos(rho) / (2 * np.pi)


def output(x, z, coef, bias):
    """sum_n coef_n K(x_n, z)."""
    product, _, _, _, phi = angles(x, z)
    return (phi * (product + bias)) @ coef


def gradients(x, coef):
    """Of the output in z, where z are the points themselves; without a bias and with one.

    A point's own angle is 0 but for rounding: no two points are so near each other.
    """
    product, s_x, s_z, rho, phi = angles(x, x)
    sine = np.sqrt(1 - rho**2)
    change = np.divide(1, 2 * np.pi * sine, out=np.zeros_like(sine), where=sine > 1e-2)
    found = []
    for bias in (0, 1):
        factor = coef * (product + bias) * change / s_z[:, None] / x.shape[1]
        along_z = (factor * rho).sum(1) / s_z
        found.append((factor / s_x + phi * coef) @ x - along_z[:, None] * x)
    return found


def accuracies(rng, d, n, distance, size, m=600):
    """One draw: accuracy of f, and of g in every case, with coin-flip targets.

    In single precision, which costs half and turns no sign that counts.
    """
    y, labels = np.where(np.arange(n) % 2 == 0, 1.0, -1.0), rng.choice([-1.0, 1.0], size=m)
    mean = np.zeros(d)
    mean[0] = distance
    x, z = (np.outer(c, mean) + rng.normal(size=(len(c), d)) for c in (y, labels))
    targets = rng.choice([-1.0, 1.0], size=n)
    x, z, y, targets = (part.astype(np.float32) for part in (x, z, y, targets))
    right = [np.mean(output(x, z, y / n, 0) * labels > 0)]
    units = [u / np.linalg.norm(u, axis=1)[:, None] for u in gradients(x, y / n)]
    for scenario, bias in CASES:
        r = size * targets[:, None] * units[bias] + (x if scenario == "b" else 0)
        right.append(np.mean(output(r, z, targets / n, bias) * labels > 0))
    return right


def laws(d, n, distance, size):
    shared: dict[str, Any] = {"n": n, "d": d, "distance": distance}
    g = [
        scaling.second_accuracy(size=size, scenario=scenario, train_bias=bias, **shared)
        for scenario, bias in CASES
    ]
    return np.array([scaling.first_accuracy(**shared), *g])


def check(setting, draws, seed):
    rng = np.random.default_rng(seed)
    seen = np.array([accuracies(rng, *setting) for _ in range(draws)])
    error = seen.std(0, ddof=1) / np.sqrt(draws)
    # Leading order: 0.01. Chance: four standard errors; of 50 numbers in all one in 300 is beyond.
    gap = np.abs(seen.mean(0) - laws(*setting))
    assert (gap <= 0.01 + 4 * error).all(), (setting, gap, error)
    assert error[:3].max() < 0.02  # the test can see a law that is off by a few percent


def test_the_laws_against_the_kernel_limit():
    check(GRID[0], 16, 1)
    check(GRID[1], 6, 2)


@pytest.mark.slow
@pytest.mark.parametrize("setting", GRID, ids=str)
def test_the_laws_on_the_grid(setting):
    check(setting, 10, 3)


def test_the_laws_are_one_curve():
    """N_c^-1(accuracy of g) / N_c^-1(accuracy of f) = x/sqrt(1 + x^2) over x = size / critical."""
    options: dict[str, Any] = {"n": np.array([100, 900]), "d": 200, "distance": 1.7}
    f = scaling.first_accuracy(**options)
    choices: list[dict[str, Any]] = [{"scenario": "a", "train_bias": True}, {"scenario": "b"}]
    for choice in choices:
        critical = scaling.critical_size(**options, **choice)
        for x in (0.1, 1.0, 7.0):
            g = scaling.second_accuracy(**options, **choice, size=x * critical)
            np.testing.assert_allclose(norm.ppf(g) / norm.ppf(f), x / np.hypot(1, x), rtol=1e-9)


def test_critical_sizes_by_hand():
    options: dict[str, Any] = {"n": 100, "d": 300, "distance": 2.0}
    size = scaling.critical_size
    assert size(**options) == size(train_bias=True, targets="balanced", **options) == 0
    assert size(train_bias=True, **options) == pytest.approx(0.1)
    # M = 2: (25 - 1 + 300) / 100; trained biases add one.
    for choice, square in (({}, 3.24), ({"train_bias": True}, 3.25)):
        assert size(scenario="b", **choice, **options) ** 2 == pytest.approx(square)
    balanced = size(scenario="b", train_bias=True, targets="balanced", **options)
    assert balanced**2 == pytest.approx(3.24)
    accuracy = scaling.second_accuracy(size=0.01, **options)
    assert accuracy == pytest.approx(scaling.first_accuracy(**options))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n": 0}, "n must be finite and positive; got 0"),
        ({"d": -1}, "d must be finite and positive; got -1"),
        ({"distance": -0.1}, "distance must be finite and non-negative; got -0.1"),
        ({"size": 0}, "size must be finite and positive; got 0"),
        ({"size": [1, np.inf]}, "size must be finite and positive"),
        ({"scenario": "c"}, "scenario must be"),
        ({"targets": "fixed"}, "targets must be"),
    ],
)
def test_what_is_refused(change, said):
    options: dict[str, Any] = {"n": 10, "d": 10, "distance": 1.0, "size": 1.0}
    with pytest.raises(ValueError, match=said):
        scaling.second_accuracy(**{**options, **change})


def test_no_distance_is_no_class():
    options: dict[str, Any] = {"n": 10, "d": np.array([[5], [50]]), "distance": [0.0, 1.0, 4.0]}
    found = scaling.second_accuracy(size=1.0, scenario="b", **options)
    assert found.shape == (2, 3)
    assert (found[:, 0] == 0.5).all()
    assert (np.diff(found, axis=1) > 0).all() and (np.diff(found, axis=0) <= 0).all()
