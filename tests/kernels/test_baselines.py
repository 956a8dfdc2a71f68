"""kernels/baselines.py: against scikit-learn and NumPy in float64, near coincident points too."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from common import DTYPES, D, M, N, awkward_points, points, precision, representable
from hypothesis import given
from hypothesis import strategies as st
from sklearn.gaussian_process.kernels import RBF as SklearnRBF
from sklearn.gaussian_process.kernels import Matern
from sklearn.metrics.pairwise import laplacian_kernel, rbf_kernel

import perturbkernel as pk
from perturbkernel.kernels.distances import cityblock_distances, distances

BASELINES: list[Any] = [
    pk.RBF(1.7),
    pk.Laplace(1.7),
    pk.Laplace(1.7, norm="l1"),
    pk.ArcCosine(0),
    pk.ArcCosine(1),
    pk.ArcCosine(2),
]
EPS = {np.float32: 2.0**-24, np.float64: 2.0**-53}
RNG = np.random.default_rng(3)


def exact_distances(z, x):
    """In long double, from the differences."""
    apart = z.astype(np.longdouble)[:, None] - x.astype(np.longdouble)[None]
    return np.sqrt((apart**2).sum(-1)), np.abs(apart).sum(-1)


def exact_arc_cosine(x, z, order):
    """E[2 phi(<w, x>) phi(<w, z>)] in long double: the closed form, the angle by atan2."""
    x, z = x.astype(np.longdouble), z.astype(np.longdouble)
    norm_x, norm_z = np.linalg.norm(x, axis=1), np.linalg.norm(z, axis=1)
    u = x / np.where(norm_x > 0, norm_x, 1)[:, None]
    v = z / np.where(norm_z > 0, norm_z, 1)[:, None]
    less = np.sqrt(((u[:, None] - v[None]) ** 2).sum(-1))
    more = np.sqrt(((u[:, None] + v[None]) ** 2).sum(-1))
    theta = 2 * np.arctan2(less, more)
    theta[(norm_x == 0)[:, None] | (norm_z == 0)[None]] = np.pi / 2
    sine, cosine = np.sin(theta), np.cos(theta)
    angular = [
        np.pi - theta,
        sine + (np.pi - theta) * cosine,
        3 * sine * cosine + (np.pi - theta) * (1 + 2 * cosine**2),
    ][order]
    return np.outer(norm_x, norm_z) ** order * angular / np.pi


def test_values_are_those_of_scikit_learn(x64):
    x, z = awkward_points()
    for scale in (0.3, 20.0):
        kernel = pk.RBF(scale)
        gaussian: Any = SklearnRBF(scale)
        np.testing.assert_allclose(kernel.ntk(x, z), gaussian(x, z), atol=1e-15)
        np.testing.assert_allclose(kernel.ntk(x, z), rbf_kernel(x, z, 0.5 / scale**2), atol=1e-14)
        matern: Any = Matern(scale, nu=0.5)
        np.testing.assert_allclose(pk.Laplace(scale).ntk(x, z), matern(x, z), atol=1e-15)
        cityblock = laplacian_kernel(x, z, 1 / scale)
        np.testing.assert_allclose(pk.Laplace(scale, "l1").ntk(x, z), cityblock, atol=1e-15)


def test_arc_cosine_kernels_are_moments_of_rectified_normals():
    """The oracle of the other tests against the definition, an expectation, by draws; and the
    kernels against covariance and gates of the two-layer network, whose first layer sees
    (x / sqrt(d), 1)."""
    x = RNG.normal(size=(4, 2))
    u = x @ RNG.normal(size=(2, 400_000))
    for order in (0, 1, 2):
        features = np.where(u > 0, u, 0) ** order * (u > 0)
        drawn = 2 * features @ features.T / u.shape[1]
        wanted = exact_arc_cosine(x, x, order).astype(float)
        # A few times the error of 400,000 draws.
        np.testing.assert_allclose(drawn, wanted, rtol=0.05, atol=0.05)
    with precision(np.float64):
        x, _ = awkward_points()
        augmented = np.concatenate([x / D**0.5, np.ones((N, 1))], axis=1)
        network = pk.TwoLayerNTK()
        for order, wanted in ((0, network.phi(x)), (1, network.nngp(x))):
            found = pk.ArcCosine(order).ntk(augmented)
            np.testing.assert_allclose(found, 2 * wanted, atol=1e-13)


@jax.jit
def _both_distances(z, x):
    return distances(z, x), cityblock_distances(z, x)


@given(
    seed=st.integers(0, 2**32 - 1),
    category=st.sampled_from(["near duplicates", "duplicates", "far cluster", "collinear", "all"]),
    power=st.integers(-20, 6),
    dtype=st.sampled_from(DTYPES),
)
def test_distances_are_right_relative_to_themselves(seed, category, power, dtype):
    """Where points nearly coincide, however far from the origin, and however small they are."""
    x, z = points(np.random.default_rng(seed), category, 10.0**power)
    x, z = representable(x, dtype), representable(z, dtype)
    euclidean, cityblock = exact_distances(z, x)
    with precision(dtype):
        values = _both_distances(z.astype(dtype), x.astype(dtype))
        found, other = (np.asarray(value, float) for value in values)
    # Squares are rounded by a few eps of up to a thousand times what is left of them.
    assert (np.abs(found - euclidean) <= 4e4 * EPS[dtype] * euclidean).all()
    assert (found[euclidean == 0] == 0).all()
    assert (np.abs(other - cityblock) <= 4 * D * EPS[dtype] * cityblock + 1e-44).all()


def exact(kernel, x, z):
    """The kernel between z and x, (m, n), in long double."""
    if isinstance(kernel, pk.ArcCosine):
        return exact_arc_cosine(z, x, kernel.order)
    euclidean, cityblock = exact_distances(z, x)
    if isinstance(kernel, pk.RBF):
        return np.exp(-((euclidean / kernel.length_scale) ** 2) / 2)
    far = euclidean if kernel.norm == "l2" else cityblock
    return np.exp(-far / kernel.length_scale)


def exact_gradient(kernel, x, z, coef, step):
    """Central differences in long double: across a cone they are off by O(step), extrapolated by
    O(step^2)."""

    def difference(step):
        columns = []
        for axis in np.eye(D, dtype=np.longdouble) * step:
            rise = exact(kernel, x, z + axis) - exact(kernel, x, z - axis)
            columns.append(rise @ coef / (2 * step))
        return np.stack(columns, axis=1)

    return 2 * difference(step / 2) - difference(step)


@functools.cache
def evaluator(kernel):
    """The matrix, the gradient of a sum, and those of a weighted matrix in both arguments."""

    def evaluate(x, z, coef, weights):
        matrix, pull_back = jax.vjp(kernel.ntk, x, z)
        return matrix, kernel.input_gradient(z, x, coef), *pull_back(weights)

    return jax.jit(evaluate)


def evaluate(kernel, x, z, coef, dtype):
    with precision(dtype):
        weights = np.tile(coef[:, None], (1, M))
        arguments = (np.asarray(a, dtype) for a in (x, z, coef, weights))
        values = evaluator(kernel)(*arguments)
        assert {value.dtype for value in values} == {np.dtype(dtype)}
        return [np.asarray(value, float) for value in values]


# Each is a program that takes seconds to compile: of the arc-cosines one order is also tested in
# float32.
SINGLE = [kernel for kernel in BASELINES if kernel not in (pk.ArcCosine(0), pk.ArcCosine(2))]
CASES = [(kernel, np.float64) for kernel in BASELINES]
CASES += [(kernel, np.float32) for kernel in SINGLE]


@pytest.mark.parametrize(("kernel", "dtype"), CASES, ids=str)
def test_values_and_gradients_where_points_coincide_too(kernel, dtype):
    """And at zero, where order 1 has the symmetric derivative x / 2, and nothing is NaN."""
    x, z = awkward_points(dtype)
    coef = representable(RNG.normal(size=N), dtype)
    matrix, gradient, by_x, by_z = evaluate(kernel, x, z, coef, dtype)
    wanted = exact(kernel, x, z).astype(float)
    unit = EPS[dtype] * wanted.max()
    np.testing.assert_allclose(matrix.T, wanted, atol=300 * unit)
    expected = exact_gradient(kernel, x, z, coef, 1e-6).astype(float)
    of_points = (exact_gradient(kernel, z, x, np.ones(M), 1e-6) * coef[:, None]).astype(float)
    if kernel == pk.ArcCosine(0):
        expected[5] = of_points[7] = 0  # it is discontinuous at 0
    np.testing.assert_allclose(gradient, expected, atol=max(3e3 * unit, 1e-9))
    np.testing.assert_allclose(by_z, gradient, atol=3e3 * unit)
    np.testing.assert_allclose(by_x, of_points, atol=max(3e3 * unit, 1e-9))


@pytest.mark.parametrize("kernel", SINGLE, ids=repr)
def test_float32_at_near_duplicates_is_that_of_differences(kernel):
    """Rounded to 1e-7 of each other, points have a direction from one to the other all the same:
    the gradient of a cone is of order one there, and has to be right."""
    rng = np.random.default_rng(8)
    x, z = (representable(a, np.float32) for a in points(rng, "near duplicates"))
    coef = representable(rng.normal(size=N), np.float32)
    found = evaluate(kernel, x, z, coef, np.float32)
    wanted = evaluate(kernel, x, z, coef, np.float64)
    for single, double in zip(found[:2], wanted[:2], strict=True):
        np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-3)


def test_order_0_between_points_at_zero_is_a_kernel():
    x = np.concatenate([RNG.normal(size=(N, D)), np.zeros((1, D))])
    with precision(np.float64):
        matrix = np.asarray(pk.ArcCosine(0).ntk(x))
    assert np.linalg.eigvalsh(matrix).min() > -1e-12


@pytest.mark.parametrize("kernel", BASELINES[:3], ids=repr)
def test_the_bound_is_at_least_the_gradient(kernel):
    """Of every single term, the steepest length of z - x included."""
    x, z = RNG.normal(size=(N, D)), RNG.normal(size=(M, D))
    z[0] = x[0] + 1e-3  # the steepest place of a cone
    z[1] = x[1] + np.array([1.7, 0, 0, 0, 0])  # of a Gaussian
    steepest = 1 if isinstance(kernel, pk.RBF) else 0
    for n in range(3):
        coef = np.zeros(N)
        coef[n] = 2.0
        _, gradient, *_ = evaluate(kernel, x, z, coef, np.float64)
        bound = np.asarray(kernel.gradient_bound(z, x, coef))
        assert (np.linalg.norm(gradient, axis=1) <= bound * (1 + 1e-12)).all()
        if n == steepest:
            assert np.linalg.norm(gradient[n]) > 0.99 * bound[n]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: pk.RBF(0.0), ValueError, "length_scale must be > 0"),
        (lambda: pk.RBF(float("inf")), ValueError, "length_scale must be > 0 and finite"),
        (lambda: pk.Laplace("1"), TypeError, "length_scale must be a number"),  # pyright: ignore
        (lambda: pk.Laplace(norm="linf"), ValueError, "norm must be"),
        (lambda: pk.ArcCosine(3), ValueError, "order must be 0, 1 or 2; got 3"),
        (lambda: pk.ArcCosine(1.0), TypeError, "order must be a whole"),  # pyright: ignore
        (lambda: pk.RBF(memory=10), ValueError, "memory must be at least"),
        (lambda: pk.RBF().ntk(np.ones((2, 3, 3))), ValueError, r"x must have shape \(n, d\)"),
        (
            lambda: pk.RBF().phi(np.ones((2, 3))),
            TypeError,
            "phi is not known of this kernel, which has ntk, nngp",
        ),
    ],
)
def test_wrong_arguments_are_told_in_words(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_memory_bounds_the_tiles():
    for make in (pk.RBF, pk.Laplace, pk.ArcCosine):
        small = make(memory=2**20).plan(60_000, 10_000, 784, what="input_gradient", rate=1e9)
        large = make().plan(60_000, 10_000, 784, what="input_gradient", rate=1e9)
        assert small.memory <= 2**20 and small.tiles > large.tiles
