"""angles.py: the angle between augmented points and its derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from common import (
    DTYPES,
    D,
    M,
    N,
    angle_gradients,
    awkward_points,
    central_difference,
    coincident,
    points,
    precision,
    representable,
)
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import Chebyshev, Polynomial

from perturbkernel import TwoLayerNTK
from perturbkernel.kernels import angles, arccos, rows
from perturbkernel.kernels.angles import products_and_angles

EPS = {np.float32: 2.0**-24, np.float64: 2.0**-53}
SCALES = st.floats(-6, 6).map(lambda power: 10.0**power)

RELU = TwoLayerNTK()

evaluate = jax.jit(products_and_angles)


def arccos_over_root(e: np.ndarray) -> np.ndarray:
    """arccos(1 - e) / sqrt(e), sqrt(2) at 0."""
    positive = np.where(e > 0, e, 1)
    return np.where(e > 0, 2 * np.arcsin(np.sqrt(positive / 2)) / np.sqrt(positive), np.sqrt(2))


# Dense Chebyshev nodes of [0, 1], both ends included.
NODES = (1 + np.cos(np.linspace(0, np.pi, 20_001))) / 2


# --- arccos ---


def test_arccos_coefficients_are_the_degree_7_chebyshev_fit():
    fit = Chebyshev.fit(NODES, arccos_over_root(NODES), 7, domain=[0, 1]).convert(kind=Polynomial)
    # The power basis magnifies how the nodes were chosen; 1e-7 is far below the 1e-5 that adjacent
    # fits differ by.
    np.testing.assert_allclose(
        arccos.COEFFICIENTS_32, np.asarray(fit.coef, float), rtol=0, atol=1e-7
    )


def test_arccos_polynomial_error_is_below_3e_8():
    error = np.sqrt(NODES) * (Polynomial(arccos.COEFFICIENTS_32)(NODES) - arccos_over_root(NODES))
    assert np.abs(error).max() < 3e-8
    # It is the least that eight coefficients give: one fewer is several times worse.
    shorter = Chebyshev.fit(NODES, arccos_over_root(NODES), 6, domain=[0, 1])
    assert np.abs(np.sqrt(NODES) * (shorter(NODES) - arccos_over_root(NODES))).max() > 6e-8


@pytest.mark.parametrize("dtype", DTYPES)
def test_arccos_of_one_minus_e_over_its_whole_range(dtype):
    e = representable(np.concatenate([NODES, 2 - NODES, 10.0 ** np.linspace(-30, 0, 200)]), dtype)
    with precision(dtype):
        angle = np.asarray(arccos.arccos_one_minus(jnp.asarray(e, dtype)), float)
    exact = 2 * np.arctan2(np.sqrt(e), np.sqrt(2 - e))
    # Rounding of pi and of a polynomial's eight steps, each at most a few eps of the angle, and the
    # fit's 3e-8.
    assert (
        np.abs(angle - exact)
        <= 8 * EPS[dtype] * exact + (3e-8 * np.sqrt(e) if dtype == np.float32 else 0)
    ).all()
    assert angle[NODES.size - 1] == 0  # e = 0
    assert (angle <= np.asarray(np.pi, dtype)).all()


# --- its derivative ---


@jax.jit
def separation(z, x):
    return angles._separation(angles._tile(z, x))


@jax.jit
def pullback(z, x, product_bar, theta_bar):
    return jax.vjp(products_and_angles, z, x)[1]((product_bar, theta_bar))


# 1 - rho is known to a few eps of its largest terms, and used down to 1e-3 of them: a few 1e3 eps
# of the gradient.
@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 1e-4), (np.float64, 1e-12)])
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=SCALES,
    category=st.sampled_from(["generic", "all", "mixed norms"]),
)
def test_theta_gradient_against_the_reference(dtype, error, seed, scale, category):
    rng = np.random.default_rng(seed)
    x, z = (representable(a, dtype) for a in points(rng, category, scale))
    w = representable(rng.normal(size=(M, N)), dtype)
    with precision(dtype):
        gradients = pullback(z, x, np.zeros((M, N)), w)
    for gradient, (a, b, weights) in zip(gradients, ((z, x, w), (x, z, w.T)), strict=True):
        exact = np.stack([row @ angle_gradients(b, q) for row, q in zip(weights, a, strict=True)])
        # Each pair's gradient has length 1 / (sqrt(d) s_z) at most: the unit in which a row's
        # rounding is counted.
        unit = np.abs(weights).sum(axis=1) / np.sqrt(D + np.sum(a**2, axis=1))
        assert np.isfinite(gradient).all()
        assert (np.linalg.norm(np.asarray(gradient, float) - exact, axis=1) <= error * unit).all()


def test_theta_gradient_against_central_differences(x64):
    x, z = awkward_points()
    rng = np.random.default_rng(3)
    w, u, v = rng.normal(size=(M, N)), rng.normal(size=(M, D)), rng.normal(size=(N, D))

    def total(z, x):
        return np.sum(w * np.asarray(evaluate(z, x)[1]))

    z_bar, x_bar = pullback(z, x, np.zeros((M, N)), w)
    assert np.sum(z_bar * u) == pytest.approx(
        central_difference(lambda h: total(z + h * u, x)), abs=1e-7
    )
    assert np.sum(x_bar * v) == pytest.approx(
        central_difference(lambda h: total(z, x + h * v)), abs=1e-7
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_theta_gradient_is_exactly_zero_at_coincident_points(dtype):
    x = np.tile(representable(np.random.default_rng(4).normal(size=(1, D)), dtype), (N, 1))
    ones, none = np.ones((M, N)), np.zeros((M, N))
    with precision(dtype):
        for a in (x, 0 * x):
            assert not any(np.asarray(bar).any() for bar in pullback(a[:M], a, none, ones))
            z_bar, x_bar = pullback(a[:M], a, ones, none)  # the product's derivative is untouched
            np.testing.assert_allclose(z_bar, np.tile(N * a[0], (M, 1)), rtol=4 * N * EPS[dtype])
            np.testing.assert_allclose(x_bar, np.tile(M * a[0], (N, 1)), rtol=4 * N * EPS[dtype])


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 1e-4), (np.float64, 1e-12)])
@pytest.mark.parametrize(("length", "offset"), [(1e-3, 0.0), (1.0, 0.0), (30.0, 0.0), (1.0, 1e-3)])
def test_theta_gradient_where_all_points_lie_along_one_direction(dtype, error, length, offset):
    """As perturbations do: +- one direction, 1 % off it, lengths 2 % apart; two of them the same
    point.
    """
    rng = np.random.default_rng(7)
    count, d = 40, 64
    direction, noise = rng.normal(size=d), rng.normal(size=(count, d))
    sign, scale = rng.choice([-1, 1], (count, 1)), 1 + 0.02 * rng.normal(size=(count, 1))
    x = length * sign * scale * (direction + 0.01 * noise) + offset * rng.normal(size=d)
    x[-1] = x[0]
    x = representable(x, dtype)
    z, w = x[::-1][:20], representable(rng.normal(size=(20, count)), dtype)
    with precision(dtype):
        # By the product alone: identical points are known, and no other pair is left for repair
        # but large opposite ones.
        apart = separation(z, x)
        left = np.asarray(apart.unsure_derivative)
        assert not (left & (np.sign(z @ x.T) > 0)).any()
        assert (np.asarray(apart.identical) == coincident(z, x)).all()
        gradients = pullback(z, x, np.zeros(w.shape), w)
    for gradient, (a, b, weights) in zip(gradients, ((z, x, w), (x, z, w.T)), strict=True):
        exact = np.stack([row @ angle_gradients(b, q) for row, q in zip(weights, a, strict=True)])
        unit = np.abs(weights).sum(axis=1) / np.sqrt(d + np.sum(a**2, axis=1))
        assert (np.linalg.norm(np.asarray(gradient, float) - exact, axis=1) <= error * unit).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_quick_angles_are_the_same_or_missing(dtype):
    """Where points nearly coincide or are opposite, angles are NaN, and gradients in their rows and
    columns; where they coincide, the angle is 0.
    """
    rng = np.random.default_rng(9)
    z, x = (representable(rng.normal(size=(size, 6)), dtype) for size in (9, 12))
    z[:3] = representable(np.stack([x[0], -300 * x[1], x[2] * (1 + 1e-5)]), dtype)
    x[1] *= 300
    bars = tuple(representable(rng.normal(size=(9, 12)), dtype) for _ in range(2))

    def quickly(z, x):
        return angles.quick_products_and_angles(z, x, *RELU.prepare(z, x))

    @jax.jit
    def everything(z, x):
        both = products_and_angles, quickly
        return [(values, pull(bars)) for values, pull in (jax.vjp(f, z, x) for f in both)]

    with precision(dtype):
        ((product, theta), gradients), ((same_product, quick), quick_gradients) = everything(z, x)
    np.testing.assert_allclose(same_product, product, rtol=0, atol=1e3 * EPS[dtype])
    quick = np.asarray(quick)
    missing = np.isnan(quick)
    assert missing[[1, 2], [1, 2]].all() and missing.sum() == 2
    assert quick[0, 0] == 0
    np.testing.assert_allclose(quick[~missing], np.asarray(theta)[~missing], rtol=4 * EPS[dtype])
    for gradient, own in zip(gradients, quick_gradients, strict=True):
        spoiled = np.isin(np.arange(len(own)), [1, 2])
        assert (np.isnan(own) == spoiled[:, None]).all()
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(
            own[~spoiled], gradient[~spoiled], rtol=0, atol=50 * EPS[dtype] * scale
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_points_have_the_same_mark_only_where_they_are_identical(dtype):
    """Neighbours in floating point, in one coordinate or in two that balance, have other marks."""
    x = representable(np.random.default_rng(10).normal(size=(200, D)), dtype)
    up, balanced, zero = x.astype(dtype), x.astype(dtype), x.astype(dtype)
    up[:, 0] = np.nextafter(up[:, 0], np.inf, dtype=dtype)
    balanced[:, :2] = balanced[:, 1::-1]
    zero[:, 1] = 0
    minus = zero.copy()
    minus[:, 1] = -zero[:, 1]
    with precision(dtype):
        original, again, *others = (
            np.asarray(rows.marks(jnp.asarray(points, dtype)))
            for points in (x, x[::-1], up, balanced, zero)
        )
        of_minus = np.asarray(rows.marks(jnp.asarray(minus)))
    np.testing.assert_array_equal(original, again[::-1])
    np.testing.assert_array_equal(others[-1], of_minus)
    assert not any((other == original).any() for other in others)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12])
def test_the_common_direction_has_length_1_or_is_0(scale):
    rng = np.random.default_rng(12)
    direction = rng.normal(size=D) / D**0.5
    noise = rng.normal(size=(N, D)) / D**0.5
    for off, found in ((0.05, scale > 1e-20), (1.0, False)):
        x = scale * (rng.choice([-1, 1], (N, 1)) * direction + off * noise)
        v = np.asarray(rows.common_direction(jnp.asarray(x, jnp.float32)))
        assert np.linalg.norm(v) == pytest.approx(float(found), abs=1e-6)


# --- rounding ---


# The last of this module, so that few programs are compiled once more.
@pytest.mark.usefixtures("optimised")
class TestRounding:
    """Contraction leaves errors in what cancels exactly without it, and adds up products better."""

    @pytest.mark.parametrize("dtype", DTYPES)
    @given(
        seed=st.integers(0, 2**32 - 1),
        scale=SCALES,
        category=st.sampled_from(["duplicates", "all", "far cluster"]),
    )
    def test_theta_is_exactly_zero_for_identical_rows_and_only_for_them(
        self, dtype, seed, scale, category
    ):
        rng = np.random.default_rng(seed)
        x = representable(points(rng, category, scale)[0], dtype)
        # The rows of z meet those of x in another tile position and order of summation.
        z = x[rng.permutation(N)[:M]]
        with precision(dtype):
            product, theta = evaluate(z, x)
        same = coincident(z, x)
        assert same.any(axis=1).all()
        assert (np.asarray(theta)[same] == 0).all()
        # Two rows that differ by one bit of a large number still differ in angle by more than
        # underflow.
        assert (np.asarray(theta)[~same] > 0).all()
        np.testing.assert_allclose(
            product, z @ x.T, rtol=0, atol=4 * D * EPS[dtype] * np.linalg.norm(x, axis=1).max() ** 2
        )

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_theta_of_rows_that_are_all_the_same_point(self, dtype):
        x = np.tile(representable(np.random.default_rng(1).normal(size=(1, D)), dtype), (N, 1))
        with precision(dtype):
            assert not np.asarray(evaluate(x[:M], x)[1]).any()
            assert not np.asarray(evaluate(np.zeros((M, D)), np.zeros((N, D)))[1]).any()

    def test_theta_table_in_float32(self):
        """The pairs of theory 0.5; Gram + arccos is wrong there by up to 6e-4."""
        rng = np.random.default_rng(2)
        count, d = 60, 784
        x, g = rng.normal(size=(2, count, d))
        kinds = {  # z of x, the angle it should have, the error allowed
            "near, 1e-4": (
                x,
                x + 1e-4 * g,
                7e-5,
                1e-10,
            ),  # the points differ by 2 % of a float32: 1e-6 of their angle
            "near, 1e-2": (x, x + 1e-2 * g, 7e-3, 1e-8),
            "independent": (x, g, 1.05, 5e-7),
            "antipodal": (
                30 * x,
                -30 * x,
                3.07,
                1.2e-5,
            ),  # 1 + rho = 2e-3 is known to a few eps, as products are summed: 7 eps / sin(theta)
            "radial": (30 * x, 60 * x, 1.7e-2, 1e-8),  # 1e-6 of the angle
        }
        left = representable(np.concatenate([k[0] for k in kinds.values()]), np.float32)
        right = representable(np.concatenate([k[1] for k in kinds.values()]), np.float32)
        with precision(np.float32):
            theta = np.asarray(evaluate(left, right)[1], float).diagonal()
        exact = np.array(
            [oracle.angle(a[None], b[None])[0, 0] for a, b in zip(left, right, strict=True)]
        )
        for i, (name, (_, _, size, error)) in enumerate(kinds.items()):
            part = slice(i * count, (i + 1) * count)
            assert np.allclose(exact[part], size, rtol=0.15), name
            assert np.abs(theta - exact)[part].max() < error, name
