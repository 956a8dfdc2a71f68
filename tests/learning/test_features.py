"""`pk.kernel_features`: against NumPy's eigenvectors, interpolation, and attacks on linear kernels."""

from typing import Any

import jax
import numpy as np
import oracle
import pytest
from common import D, M, N, precision

import perturbkernel as pk

RNG = np.random.default_rng(41)
KERNEL: Any = pk.TwoLayerNTK(0.2, True)
X, Z = RNG.normal(size=(N, D)), RNG.normal(size=(M, D))
Z[:2] = X[:2]
Y = np.where(X[:, 0] > 0, 1.0, -1.0)
ONE_HOT = np.asarray(pk.one_hot(np.arange(N) % 3, 3))
LABELS = np.where(Z[:, 0] > 0, 1.0, -1.0)
fit: Any = pk.fit


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_are_eigenvectors_continued(dtype):
    with precision(dtype):
        x, z, y = (array.astype(dtype) for array in (X, Z, Y))
        features = pk.kernel_features(KERNEL, x, y)
        values = np.asarray(features.values(z))
        assert values.dtype == dtype and values.shape == (M, N) and len(features) == N
        alone = np.asarray(features.predictor(3)(z))
    gram = oracle.ntk(X, X, 0.2, True)
    exact, vectors = np.linalg.eigh(gram)
    # float32 inputs are other points, by their rounding.
    near = 100 * np.finfo(dtype).eps * exact[-1]
    np.testing.assert_allclose(features.eigenvalues, exact[::-1], rtol=0, atol=near)
    np.testing.assert_allclose(abs(features.vectors[:, 0]), abs(vectors[:, -1]), atol=near)
    np.testing.assert_allclose(values[:2], features.vectors[:2], rtol=0, atol=near * 10)
    np.testing.assert_allclose(alone, values[:, 3] * features.coefficients[3], atol=near * 10)


@pytest.mark.parametrize("unit", [1e4, 1e6])
def test_features_of_small_eigenvalues_are_right_or_say_that_they_are_not(unit):
    """Eigenvalues of a linear kernel whose first input has a unit of its own, where JAX is set to
    float32."""
    x = (X * np.array([unit, 1, 1, 1, 1])).astype(np.float32)
    features = pk.kernel_features(pk.TwoLayerNTK(slope=1.0), x, Y)
    last = features.predictor(D - 1)
    if unit == 1e4:
        exact = features.vectors[:, -1] * features.coefficients[-1]
        np.testing.assert_allclose(last(x), exact, rtol=0, atol=1e-5 * np.abs(exact).max())
        assert last.status == "ok"
    else:
        assert last.status.startswith("rounding: values of the smallest feature")


@pytest.mark.parametrize("targets", [Y, ONE_HOT])
def test_all_features_interpolate(targets, x64):
    features = pk.kernel_features(KERNEL, X, targets)
    f = fit(KERNEL, X, targets, loss="squared", dynamics=pk.GradientFlow(float("inf")))
    together = features.predictor(range(N))
    np.testing.assert_allclose(together(Z), f(Z), rtol=0, atol=1e-8)
    np.testing.assert_allclose(np.sum(features.of_outputs(f)), 1, rtol=1e-9)
    share = features.coefficients.reshape(N, -1) ** 2
    exact = share.sum(1) / share.sum()
    np.testing.assert_allclose(features.of_outputs(f), exact, rtol=0, atol=1e-9)


def test_shares_of_a_change(x64):
    """A perturbation that moves one feature alone, to first order, has its share there."""
    features = pk.kernel_features(KERNEL, X, Y)
    f = fit(KERNEL, X, Y, loss="squared", dynamics=pk.GradientFlow(20.0))
    delta = 0.1 * RNG.normal(size=Z.shape)
    share = np.asarray(features.of_change(f, Z, delta))
    moved = np.asarray(features.values(Z + delta) - features.values(Z))
    terms = moved * (features.vectors.T @ np.asarray(f.dual_coef)) * features.eigenvalues
    np.testing.assert_allclose(terms.sum(1), f(Z + delta) - f(Z), rtol=0, atol=1e-9)
    exact = np.abs(terms).sum(0) / np.abs(terms).sum()
    np.testing.assert_allclose(share, exact, rtol=0, atol=1e-12)
    assert not np.asarray(features.of_change(f, Z, 0 * delta)).any()


def test_usefulness_and_robustness(x64):
    """A linear kernel's features are linear: an attack of l2 size s lowers them by s times the
    length of their gradient. Rank D: no more features than that.
    """
    linear = pk.TwoLayerNTK(slope=1.0)
    features = pk.kernel_features(linear, X, Y)
    assert len(features) == D
    outputs = np.asarray(features.values(Z)) * features.coefficients
    useful = ((outputs > 0) == (LABELS[:, None] > 0)).mean(0)
    np.testing.assert_allclose(features.accuracy(Z, LABELS), useful, rtol=0, atol=1e-12)
    size = 0.3
    found = features.accuracy_under_attack(Z, LABELS, features=[0, D - 1], size=size, steps=2)
    for i, share in zip((0, D - 1), np.asarray(found), strict=True):
        direction = features.vectors[:, i] @ X / features.eigenvalues[i]
        length = np.linalg.norm(direction * features.coefficients[i])
        margins = LABELS * outputs[:, i] - size * length
        assert share == pytest.approx((margins > 0).mean())


def test_several_classes(x64):
    features = pk.kernel_features(KERNEL, X, ONE_HOT)
    labels = np.arange(M) % 3
    useful = np.asarray(features.accuracy(Z, labels))
    assert useful.shape == (N,)
    for i in (0, 5):
        right = np.asarray(features.predictor(i)(Z)).argmax(1) == labels
        assert useful[i] == pytest.approx(right.mean())
    attacked = features.accuracy_under_attack(Z, labels, features=[5], size=0.3, steps=2)
    assert attacked[0] <= useful[5]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="targets must"):
        pk.kernel_features(KERNEL, X, X[:, 0])
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda x: pk.kernel_features(KERNEL, x, Y).coefficients)(X)
    with pytest.raises(ValueError, match="z must"):
        pk.kernel_features(KERNEL, X, Y).values(np.ones((3, D + 1)))
