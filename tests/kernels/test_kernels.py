"""kernels.py: the closed forms, their derivatives, dtypes, messages, and kernels as values."""

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from common import (
    CATEGORIES,
    DTYPES,
    KERNELS,
    SLOPES,
    D,
    M,
    N,
    allowed,
    awkward_points,
    central_difference,
    coincident,
    differentiator,
    evaluate,
    label,
    largest_row,
    matrix_gradient,
    points,
    precision,
    reference,
    representable,
    sample,
)
from hypothesis import example, given
from hypothesis import strategies as st

from perturbkernel.engine.tiles import LARGE_TILE
from perturbkernel.kernels.base import Kernel
from perturbkernel.kernels.dense import quick_tile
from perturbkernel.kernels.two_layer import TwoLayerNTK

# Any, for the type checker: NumPy arrays and lists are welcome where signatures say Array; bad
# input is meant here.
KERNEL: Any = TwoLayerNTK(0.2, True)
RELU: Any = TwoLayerNTK()
# Each slope and either bias: what is evaluated takes seconds to compile, and the bias is only added
# to products, whatever the slope.
EVALUATED = [KERNELS[i] for i in (0, 3, 4, 7)]
SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.floats(-6, 6).map(lambda power: 10.0**power)
EPS = {np.float32: 2.0**-24, np.float64: 2.0**-53}


# float32: Phi is good to 2e-6 (an angle just not close enough to be computed again), products to a
# few eps; a gradient loses a few 100 eps there. float64: the same counts of eps. Units: `allowed`.
ERROR = {np.float32: 4e-6, np.float64: 2e-14}
GRADIENT_ERROR = {np.float32: 2e-5, np.float64: 1e-13}


def assert_close_to_reference(kernel, dtype, x, z, coef, b):
    values, wanted = evaluate(kernel, x, z, coef, b, dtype=dtype), reference(kernel, x, z, coef, b)
    unit = allowed(kernel, x, z, coef, b)
    for name, exact in wanted.items():
        assert values[name].shape == exact.shape
        off = np.abs(values[name] - exact)
        if name == "input_gradient":
            assert np.linalg.norm(off, axis=1).max() <= GRADIENT_ERROR[dtype] * unit[name]
        else:
            assert (off <= ERROR[dtype] * unit[name]).all(), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [RELU, KERNEL], ids=label)
def test_ordinary_data_is_right_relative_to_the_results_themselves(kernel, dtype):
    """Not to bounds on them: outputs to 1e-5 of the largest, gradients to 1e-4 (float64: 1e-12)."""
    for category in ("generic", "duplicates", "antipodal", "mixed norms"):
        x, z, coef, b = sample(20, category, 1.0, dtype)
        values, wanted = (
            evaluate(kernel, x, z, coef, b, dtype=dtype),
            reference(kernel, x, z, coef, b),
        )
        for name, exact in wanted.items():
            error = (1e-4 if name == "input_gradient" else 1e-5) if dtype == np.float32 else 1e-12
            assert np.abs(values[name] - exact).max() <= error * np.abs(exact).max(), (
                category,
                name,
            )


def test_a_subclass_with_tiles_of_its_own_does_not_keep_the_quick_ones():
    class Doubled(TwoLayerNTK):
        def tile(self, name, z, x):
            return 2 * super().tile(name, z, x)

    rng = np.random.default_rng(12)
    x, z = (rng.normal(size=(size, 4)).astype(np.float32) for size in (600, 500))
    doubled: Any = Doubled()
    np.testing.assert_allclose(doubled.ntk(x, z), 2 * RELU.ntk(x, z), rtol=1e-5, atol=1e-5)
    assert quick_tile(doubled, "ntk") is None and quick_tile(RELU, "ntk") is not None


@pytest.mark.parametrize(
    ("tile", "got"),
    [
        (lambda z, x: (x @ z.T) ** 2, r"\(5, 4\), float32"),
        (lambda z, x: jnp.sum(z, axis=1), r"\(4,\), float32"),
        (lambda z, x: (z @ x.T).astype(jnp.float16), r"\(4, 5\), float16"),
        (lambda z, x: None, "NoneType"),
    ],
    ids=["transposed", "a vector", "half precision", "nothing"],
)
@pytest.mark.parametrize("call", ["ntk", "matvec", "input_gradient"])
def test_a_tile_of_the_wrong_kind_is_told_in_words(tile, got, call):
    class Mine(Kernel):
        def tile(self, name, z, x):
            return tile(z, x)

    z, x, coef = np.ones((4, 3), np.float32), np.ones((5, 3), np.float32), np.ones(5, np.float32)
    arguments = (z, x) if call == "ntk" else (z, x, coef)
    with pytest.raises(
        TypeError,
        match=r"Mine\.tile\('ntk', z, x\) must return an array of shape \(rows of z, rows of x\)"
        rf" .* here \(4, 5\), float32; got {got}",
    ):
        getattr(Mine(), call)(*arguments)


@pytest.mark.parametrize("call", ["ntk", "matvec", "input_gradient"])
def test_a_tile_of_the_wrong_signature_is_told_in_words(call):
    class Mine(Kernel):
        def tile(self, z, x):  # pyright: ignore[reportIncompatibleMethodOverride]
            return z @ x.T

    x, coef = np.ones((4, 3), np.float32), np.ones(4, np.float32)
    with pytest.raises(
        TypeError,
        match=r"Mine\.tile\('ntk', z, x\) is how tiles are evaluated.* signature \(z, x\)",
    ):
        getattr(Mine(), call)(*((x, x) if call == "ntk" else (x, x, coef)))


def test_what_a_kernel_does_not_have_is_told_in_words():
    class Mine(Kernel):
        def tile(self, name, z, x):
            return z @ x.T

    x = np.ones((4, 3), np.float32)
    with pytest.raises(
        TypeError, match=r"phi is not known of this kernel, which has ntk, nngp; it is .*Mine"
    ):
        Mine().phi(x)
    with pytest.raises(
        TypeError, match="phi_matmul is not known of this kernel, which has ntk, nngp"
    ):
        Mine().phi_matmul(x, x, x)


def points_of_large_tiles(n, m):
    """More pairs than `LARGE_TILE`, with two equal points, two opposite ones, and two close."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    x[7], x[500], x[8] = x[400], -100 * x[550], np.float32(1.0001) * x[401]
    z = rng.normal(size=(m, 4)).astype(np.float32)
    return x, z, rng.normal(size=(n, 2)).astype(np.float32)


def agree(found: dict, wanted: dict) -> None:
    """Largest errors relative to the largest entry: 1e-5, for gradients 1e-4."""
    for name, value in wanted.items():
        error = 1e-4 if "gradient" in name else 1e-5
        assert np.abs(found[name] - value).max() <= error * np.abs(value).max(), name


@pytest.mark.parametrize("which", ["new points", "some of the points", "the points"])
def test_large_tiles_with_and_without_pairs_to_repair(which):
    """They are evaluated quickly first: right at new points and at the points."""
    x, z, coef = points_of_large_tiles(617, 443)  # a little more; blocks that are mended overlap
    assert len(x) * len(z) >= LARGE_TILE
    if which == "some of the points":
        z[-20:] = x[:20]
    if which == "the points":
        z = x[-443:].copy()
    bar = np.random.default_rng(12).normal(size=len(z)).astype(np.float32)
    wide_x, wide_z, kind = x.astype(float), z.astype(float), (KERNEL.slope, KERNEL.train_bias)
    exact = oracle.ntk(wide_x, wide_z, *kind)
    gradient = oracle.input_gradient(wide_z, wide_x, coef[:, 0], *kind)
    at_points = coef[:, :1] * oracle.input_gradient(wide_x, wide_z, bar, *kind)
    wanted = {
        "ntk": exact,
        "matvec, (n, 2)": exact.T @ coef,
        "matvec": exact.T @ coef[:, 0],
        "input_gradient": gradient,
        # Of a sum over queries, each with its factor.
        "gradient in z": bar[:, None] * gradient,
        "gradient in x": at_points,
    }
    at_z, at_x = jax.grad(lambda z, x: jnp.sum(bar * KERNEL.matvec(z, x, coef[:, 0])), (0, 1))(
        jnp.asarray(z), jnp.asarray(x)
    )
    found = {
        "ntk": KERNEL.ntk(x, z),
        "matvec, (n, 2)": KERNEL.matvec(z, x, coef),
        "matvec": KERNEL.matvec(z, x, coef[:, 0]),
        "input_gradient": KERNEL.input_gradient(z, x, coef[:, 0]),
        "gradient in z": at_z,
        "gradient in x": at_x,
    }
    agree(found, wanted)


def test_large_tiles_of_an_array_with_itself():
    """Whose symmetry sums use; more than one tile."""
    x, _, coef = points_of_large_tiles(1100, 1)
    wide, kind = x.astype(float), (KERNEL.slope, KERNEL.train_bias)
    exact = oracle.ntk(wide, wide, *kind)
    wanted = {
        "ntk": exact,
        "matvec, (n, 2)": exact @ coef,
        "matvec": exact @ coef[:, 0],
        "input_gradient": oracle.input_gradient(wide, wide, coef[:, 0], *kind),
    }
    found = {
        "ntk": KERNEL.ntk(x),
        "matvec, (n, 2)": KERNEL.matvec(x, x, coef),
        "matvec": KERNEL.matvec(x, x, coef[:, 0]),
        "input_gradient": KERNEL.input_gradient(x, x, coef[:, 0]),
    }
    agree(found, wanted)


@pytest.mark.parametrize("kernel", EVALUATED, ids=label)
@given(seed=SEEDS, category=st.sampled_from(CATEGORIES), scale=SCALES)
@example(seed=1, category="collinear", scale=1e5)
@example(seed=1, category="far cluster", scale=1e-3)
def test_everything_against_the_reference_in_float64(kernel, seed, category, scale):
    assert_close_to_reference(kernel, np.float64, *sample(seed, category, scale, np.float64))


@pytest.mark.parametrize("kernel", [RELU, KERNEL], ids=label)
@given(seed=SEEDS, category=st.sampled_from(CATEGORIES), scale=SCALES)
@example(seed=1, category="collinear", scale=1e5)
@example(seed=1, category="far cluster", scale=1e-3)
def test_everything_against_the_reference_in_float32(kernel, seed, category, scale):
    assert_close_to_reference(kernel, np.float32, *sample(seed, category, scale, np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=SEEDS, scale=SCALES, kind=st.sampled_from(["generic", "zeros", "antipodal"]))
@example(seed=0, scale=1.0, kind="antipodal")
def test_one_point_in_one_dimension(dtype, seed, scale, kind):
    x, z, coef, b = sample(seed, kind, scale, dtype, n=1, m=1, d=1)
    assert_close_to_reference(KERNEL, dtype, x, z, coef, b)
    same = evaluate(KERNEL, x, x, coef, b, dtype=dtype)
    assert same["phi"] == np.asarray((1 + 0.2**2) / 2, dtype)


@given(seed=SEEDS, category=st.sampled_from(CATEGORIES), scale=SCALES)
def test_many_dimensions_in_float32(seed, category, scale):
    assert_close_to_reference(KERNEL, np.float32, *sample(seed, category, scale, np.float32, d=101))


@pytest.mark.parametrize("kernel", EVALUATED, ids=label)
def test_phi_is_exactly_its_maximum_at_coincident_points(kernel):
    for category in ("duplicates", "all", "far cluster", "zeros"):
        x, z = points(np.random.default_rng(9), category)
        same = coincident(x, z)
        assert same.any()
        assert (evaluate(kernel, x, z)["phi"][same] == (1 + kernel.slope**2) / 2).all()


@jax.jit
def square_matrices(x):
    return KERNEL.phi(x), KERNEL.ntk(x), KERNEL.nngp(x)


@pytest.mark.parametrize("kernel", EVALUATED, ids=label)
@given(seed=SEEDS, category=st.sampled_from(CATEGORIES), scale=SCALES)
def test_phi_lies_between_slope_and_its_maximum(kernel, seed, category, scale):
    x, z = points(np.random.default_rng(seed), category, scale)
    phi = evaluate(kernel, x, z)["phi"]
    assert (phi <= (1 + kernel.slope**2) / 2).all()
    # Theta near pi, and its factor, are rounded.
    assert (phi >= kernel.slope - 2 * EPS[np.float64]).all()


@pytest.mark.parametrize("slope", SLOPES)
@given(seed=SEEDS, scale=SCALES, log_distance=st.floats(-8, 2))
def test_phi_is_lipschitz_with_the_constant_of_theory(slope, seed, scale, log_distance):
    rng = np.random.default_rng(seed)
    x, z = points(rng, "all", scale)
    moved = z + rng.normal(size=z.shape) * scale * 10.0**log_distance
    kernel = TwoLayerNTK(slope)
    change = np.abs(evaluate(kernel, x, z)["phi"] - evaluate(kernel, x, moved)["phi"])
    constant = (1 - slope) ** 2 / (2 * np.pi * np.sqrt(D))
    assert (change <= constant * np.linalg.norm(moved - z, axis=1) * (1 + 1e-9) + 1e-14).all()


@pytest.mark.parametrize("slope", SLOPES)
def test_phi_falls_from_coincident_points_as_a_cone(slope, rng):
    """Theory 0.4: -cone |P h| / s_x in every direction h, P orthogonal to the augmented x."""
    x, direction, step = rng.normal(size=(N, D)), rng.normal(size=(M, D)), 1e-6
    at = x[:M]
    s = np.sqrt(1 + np.sum(at**2, axis=1) / D)
    along = np.sum(at * direction, axis=1) / (D * s)
    across = np.sqrt(np.sum(direction**2, axis=1) / D - along**2)
    falls = [
        (evaluate(TwoLayerNTK(slope), x, at + h * direction)["phi"].diagonal() - (1 + slope**2) / 2)
        / step
        for h in (step, -step)
    ]
    for fall in falls:  # the curvature leaves O(step), rounding 1e-16 / step
        np.testing.assert_allclose(
            fall, -((1 - slope) ** 2) / (2 * np.pi * s) * across, rtol=1e-5, atol=1e-9
        )


# --- third references: random networks ---


@pytest.mark.parametrize("slope", SLOPES)
def test_phi_is_the_mean_of_random_gates(slope):
    samples = 100_000
    x, z = awkward_points()
    estimate = oracle.monte_carlo_phi(x, z, slope, samples, seed=11)
    # The product of two gates is in [0, 1], its deviation at most 1/2: ten standard errors.
    assert np.abs(evaluate(TwoLayerNTK(slope), x, z)["phi"] - estimate).max() < 5 / np.sqrt(samples)


def leaky(u, slope):
    return jnp.where(u > 0, u, slope * u)


@pytest.mark.parametrize("kernel", [RELU, KERNEL], ids=label)
def test_tangent_kernel_of_a_wide_network(kernel, x64, rng):
    """Autodiff of a finite network with frozen readout: the parameterization, c and the initial
    covariance.
    """
    width, count = 20_000, 4
    x = rng.normal(size=(N, D))
    weights, biases = rng.normal(size=(width, D)) / np.sqrt(D), rng.normal(size=width)
    readout = rng.normal(size=width) / np.sqrt(width)

    def network(trained, point):
        w, b = trained if kernel.train_bias else (trained[0], biases)
        return readout @ leaky(w @ point + b, kernel.slope)

    trained = (weights, biases) if kernel.train_bias else (weights,)
    jacobians = jax.vmap(jax.grad(network), (None, 0))(trained, x[:count])
    flat = np.concatenate([np.asarray(j).reshape(count, -1) for j in jacobians], axis=1)
    values = evaluate(kernel, x, x[:M])
    linear = x[:count] @ x[:count].T + kernel.train_bias
    # The kernel is a sum of `width` terms a^2 phi' phi' (<x, z> + c) of deviation below sqrt(3)
    # |<x, z> + c| / width.
    error = np.abs(flat @ flat.T - values["ntk"][:count, :count])
    assert (error <= 5 * np.sqrt(3 / width) * np.abs(linear)).all()
    hidden = np.asarray(leaky(x[:count] @ weights.T + biases, kernel.slope))
    lengths = np.sum(x[:count] ** 2, axis=1) / D + 1  # E[(phi phi)^2] <= 3 s_x^2 s_z^2
    error = np.abs(hidden @ hidden.T / width - values["nngp"][:count, :count])
    assert (error <= 5 * np.sqrt(3 * np.outer(lengths, lengths) / width)).all()


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_finite_width_kernel_converges_at_the_predicted_rate(slope, rng):
    """Var[sum_i a_i^2 phi' phi'] = (3 Q - Phi^2) / width, Q = Phi with slope^2 (theory 0.1)."""
    x, draws = rng.normal(size=(N, D)), 2000
    phi = evaluate(TwoLayerNTK(slope), x, x[:M])["phi"][0, 1]
    squared = (
        evaluate(TwoLayerNTK(slope**2), x, x[:M])["phi"][0, 1]
        if slope == 0
        else oracle.phi(x, x, slope**2)[0, 1]
    )
    for width in (50, 800):
        u = rng.normal(size=(draws, width, D)).astype(np.float32) @ x[:2].T / np.sqrt(
            D
        ) + rng.normal(size=(draws, width, 1))
        gates = np.where(u > 0, 1, slope)
        sums = np.sum(rng.normal(size=(draws, width)) ** 2 * gates.prod(axis=2), axis=1) / width
        predicted = (3 * squared - phi**2) / width
        assert abs(np.mean(sums) - phi) < 5 * np.sqrt(predicted / draws)
        # A variance over 2,000 draws of a kurtosis near 3 has a relative deviation of sqrt(2 /
        # 2000) = 0.03.
        assert np.var(sums) == pytest.approx(predicted, rel=0.2)


# --- derivatives ---


# One matrix in float32, to save compilations; errors are relative to the largest gradient.
@pytest.mark.parametrize(
    ("dtype", "error", "names"),
    [(np.float32, 1e-4, ("ntk",)), (np.float64, 1e-12, ("phi", "ntk", "nngp"))],
)
def test_matrix_gradients_at_training_points_duplicates_and_zero(dtype, error, names):
    x, z = awkward_points(dtype)
    w = representable(np.random.default_rng(12).normal(size=(N, M)), dtype)
    with precision(dtype):
        gradients = differentiator(KERNEL, *names)(x, z, w)
    for name, (x_bar, z_bar) in gradients.items():
        for bar, exact in (
            (z_bar, matrix_gradient(name, KERNEL, x, z, w)),
            (x_bar, matrix_gradient(name, KERNEL, z, x, w.T)),
        ):
            assert bar.dtype == dtype
            assert np.isfinite(bar).all()
            assert largest_row(np.asarray(bar, float) - exact) <= error * largest_row(exact), name


def test_matrix_gradients_against_central_differences(x64, rng):
    x, z = awkward_points()
    w, u, v = rng.normal(size=(N, M)), rng.normal(size=(M, D)), rng.normal(size=(N, D))
    for name, (x_bar, z_bar) in differentiator(KERNEL, "phi", "ntk", "nngp")(x, z, w).items():

        def total(x, z, name=name):
            return np.sum(w * evaluate(KERNEL, x, z)[name])

        assert np.sum(z_bar * u) == pytest.approx(
            central_difference(lambda h: total(x, z + h * u)), rel=1e-6
        ), name
        assert np.sum(x_bar * v) == pytest.approx(
            central_difference(lambda h: total(x + h * v, z)), rel=1e-6
        ), name


@pytest.mark.parametrize("at", ["a training point", "zero"])
def test_gradient_of_phi_is_exactly_zero_at_coincident_points(at, x64):
    x = np.tile(np.random.default_rng(13).normal(size=(1, D)) * (at != "zero"), (N, 1))
    for bar in differentiator(KERNEL, "phi", "ntk", "nngp")(x, x[:M], np.ones((N, M)))["phi"]:
        assert not np.asarray(bar).any()


@pytest.mark.parametrize("kernel", EVALUATED, ids=label)
def test_input_gradient_at_zero_and_duplicates(kernel):
    """At coincident points only Phi x_n is left: all points equal, grad = sum(coef) (1 + slope^2)/2
    x.
    """
    x = np.tile(np.random.default_rng(14).normal(size=(1, D)), (N, 1))
    coef = np.random.default_rng(15).normal(size=N)
    for at in (x, 0 * x):
        gradient = evaluate(kernel, at, at[:M], coef)["input_gradient"]
        exact = coef.sum() * (1 + kernel.slope**2) / 2 * at[:M]
        np.testing.assert_allclose(gradient, exact, rtol=0, atol=1e-14 * N)


def test_gradient_of_a_single_point_under_jit_and_vmap(x64):
    x, z = awkward_points()
    coef = np.random.default_rng(16).normal(size=N)
    single = jax.jit(jax.vmap(jax.grad(lambda point: KERNEL.matvec(point[None], x, coef)[0])))(z)
    exact = oracle.input_gradient(z, x, coef, KERNEL.slope, KERNEL.train_bias)
    assert largest_row(np.asarray(single) - exact) <= 1e-12 * largest_row(exact)


# --- dtypes and configuration ---


@pytest.mark.parametrize(
    ("x64_enabled", "given", "wanted"),
    [
        (False, np.float64, "float32"),
        (False, np.float32, "float32"),
        (False, np.float16, "float32"),
        (False, jnp.bfloat16, "float32"),
        (False, np.int32, "float32"),
        (False, np.int64, "float32"),
        (False, np.uint8, "float32"),
        (True, np.float64, "float64"),
        (True, np.float32, "float32"),
        (True, np.float16, "float32"),
    ],
)
def test_dtype_of_results(x64_enabled, given, wanted):
    rng = np.random.default_rng(17)
    x, z, c = (rng.integers(0, 4, size=s).astype(given) for s in ((N, D), (M, D), (N,)))
    exact = oracle.matvec(
        z.astype(float), x.astype(float), c.astype(float), KERNEL.slope, KERNEL.train_bias
    )

    def everything():
        return (
            KERNEL.phi(x, z),
            KERNEL.nngp(x),
            KERNEL.matvec(z, x, c),
            KERNEL.input_gradient(z, x, c),
        )

    with jax.enable_x64(x64_enabled):
        assert {str(s.dtype) for s in jax.eval_shape(everything)} == {wanted}
        if not x64_enabled:  # one compilation serves every row
            value = np.asarray(KERNEL.matvec(z, x, c), float)
            assert np.abs(value - exact).max() <= 1e-5 * np.abs(exact).max()


def test_mixed_dtypes_take_the_wider_one(x64):
    x, z, c = np.ones((N, D), np.float32), np.zeros((M, D)), np.ones(N, int)
    assert jax.eval_shape(lambda: KERNEL.matvec(z, x, c)).dtype == np.float64
    assert jax.eval_shape(lambda: KERNEL.ntk(x, z)).dtype == np.float64
    assert jax.eval_shape(lambda: KERNEL.ntk(x)).dtype == np.float32


def test_lists_are_accepted():
    assert jax.eval_shape(lambda: KERNEL.matvec([[0, 1.5]], [[1, 2], [3, 4]], [1, -1])).shape == (
        1,
    )


def test_the_users_precision_setting_does_not_reach_the_results(rng):
    """A global or scoped matmul precision below the highest changes nothing: products ask for
    theirs.
    """
    x, z, coef = rng.normal(size=(N, D)), rng.normal(size=(M, D)), rng.normal(size=N)
    with jax.default_matmul_precision("bfloat16"):
        # Another slope than elsewhere, so that JAX traces here.
        text = jax.jit(TwoLayerNTK(0.3).input_gradient).lower(z, x, coef).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


# --- bad input ---

X, Z, C = np.ones((3, 2)), np.zeros((4, 2)), np.ones(3)
NAN, INF = float("nan"), float("inf")


def spoiled(array: np.ndarray, value: Any) -> np.ndarray:
    array = array.copy()
    array[-1] = value
    return array


@pytest.mark.parametrize(
    ("slope", "error", "message"),
    [
        (-0.1, ValueError, "slope must be >= 0 and <= 1; got -0.1"),
        (1.1, ValueError, "slope must be >= 0 and <= 1; got 1.1"),
        (NAN, ValueError, "slope must be >= 0 and <= 1; got nan"),
        (INF, ValueError, "slope must be >= 0 and <= 1; got inf"),
        (-INF, ValueError, "slope must be >= 0 and <= 1; got -inf"),
        ("0.2", TypeError, "slope must be a number; got '0.2'"),
        (None, TypeError, "slope must be a number; got None"),
        (True, TypeError, "slope must be a number; got True"),
        (1j, TypeError, "slope must be a number; got 1j"),
        ([0.2], TypeError, r"slope must be a number; got \[0.2\]"),
        (np.array([0.2]), TypeError, r"slope must be a number; got array\(\[0.2\]\)"),
    ],
)
def test_bad_slopes(slope, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        TwoLayerNTK(slope)


@pytest.mark.parametrize("value", [1, None, "yes", 0.0])
def test_bad_train_bias(value):
    with pytest.raises(TypeError, match=f"train_bias must be True or False; got {value!r}"):
        TwoLayerNTK(0.2, value)


BAD_INPUTS = [
    (
        np.ones(2),
        ValueError,
        r"must have shape \(n, d\).*got shape \(2,\); a single point is {name}\[None\]$",
    ),
    (np.ones((3, 2, 2)), ValueError, r"must have shape \(n, d\).*got shape \(3, 2, 2\)$"),
    (np.float64(1), ValueError, r"must have shape \(n, d\).*got shape \(\)$"),
    (np.ones((0, 2)), ValueError, r"must not be empty; got shape \(0, 2\)"),
    (np.ones((3, 0)), ValueError, r"must not be empty; got shape \(3, 0\)"),
    (
        spoiled(X, NAN),
        ValueError,
        "must be finite; got 2 NaN or infinite values, the first in row 2",
    ),
    (
        spoiled(X, -INF),
        ValueError,
        "must be finite; got 2 NaN or infinite values, the first in row 2",
    ),
    (np.full((1, 2), 1e39), ValueError, "must be finite"),  # beyond float32
    ([["one", "two"]], TypeError, "must be an array of real numbers; got list"),
    (np.ones((3, 2), complex), TypeError, "must be an array of real numbers; got dtype complex128"),
    (None, TypeError, "must be an array of real numbers; got NoneType"),
    ([[1, 2], [3]], TypeError, "must be an array of real numbers; got list"),
]


@pytest.mark.parametrize("name", ["x", "z"])
@pytest.mark.parametrize(
    ("value", "error", "message"), BAD_INPUTS, ids=[m[:40] for *_, m in BAD_INPUTS]
)
def test_bad_inputs(name, value, error, message):
    x, z = (value, Z) if name == "x" else (X, value)
    calls = [
        lambda: KERNEL.matvec(z, x, C),
        lambda: KERNEL.phi_matmul(z, x, C),
        lambda: KERNEL.input_gradient(z, x, C),
    ]
    if value is not None:  # z=None asks for the symmetric matrix
        calls += [lambda: KERNEL.phi(x, z), lambda: KERNEL.ntk(x, z), lambda: KERNEL.nngp(x, z)]
    if name == "x":
        calls += [lambda: KERNEL.phi(x), lambda: KERNEL.ntk(x), lambda: KERNEL.nngp(x)]
    with np.errstate(over="ignore"), precision(np.float32):
        for call in calls:
            with pytest.raises(error, match=f"^{name} {message.replace('{name}', name)}"):
                call()


@pytest.mark.parametrize("call", ["phi", "ntk", "nngp", "matvec", "phi_matmul", "input_gradient"])
def test_dimensions_must_agree(call):
    arguments = (X, np.ones((4, 5))) if call in ("phi", "ntk", "nngp") else (np.ones((4, 5)), X, C)
    with pytest.raises(
        ValueError, match=r"^z must have rows of shape \(2,\), as the training inputs; got \(5,\)"
    ):
        getattr(KERNEL, call)(*arguments)


BAD_COEF = [
    (np.ones(4), ValueError, r"must have shape {shape}, one row a row of x; got \(4,\)"),
    (np.ones((1, 3)), ValueError, r"must have shape {shape}, one row a row of x; got \(1, 3\)"),
    (np.float64(1), ValueError, r"must have shape {shape}, one row a row of x; got \(\)"),
    (
        np.ones((3, 1, 1)),
        ValueError,
        r"must have shape {shape}, one row a row of x; got \(3, 1, 1\)",
    ),
    (
        spoiled(C, NAN),
        ValueError,
        "must be finite; got 1 NaN or infinite values, the first in row 2",
    ),
    (["one", "two", "three"], TypeError, "must be an array of real numbers; got list"),
    (np.ones(3, complex), TypeError, "must be an array of real numbers"),
]


@pytest.mark.parametrize(
    ("call", "name", "shape"),
    [
        ("matvec", "coef", r"\(3,\) or \(3, k\)"),
        ("input_gradient", "coef", r"\(3,\)"),
        ("phi_matmul", "b", r"\(3,\) or \(3, k\)"),
    ],
)
@pytest.mark.parametrize(
    ("value", "error", "message"), BAD_COEF, ids=[m[:40] for *_, m in BAD_COEF]
)
def test_bad_coefficients(call, name, shape, value, error, message):
    with pytest.raises(error, match=f"^{name} {message.replace('{shape}', shape)}"):
        getattr(KERNEL, call)(Z, X, value)


def test_input_gradient_wants_one_column():
    with pytest.raises(
        ValueError, match=r"^coef must have shape \(3,\), one row a row of x; got \(3, 2\)"
    ):
        KERNEL.input_gradient(Z, X, np.ones((3, 2)))


def test_shapes_are_checked_while_tracing_and_values_are_not():
    with pytest.raises(ValueError, match=r"single point is z\[None\]"):
        jax.eval_shape(KERNEL.matvec, Z[0], X, C)
    with pytest.raises(ValueError, match=r"coef must have shape \(3,\) or \(3, k\)"):
        jax.eval_shape(KERNEL.matvec, Z, X, np.ones(4))
    assert jax.eval_shape(KERNEL.matvec, Z, spoiled(X, NAN), C).shape == (4,)


@pytest.mark.parametrize("name", ["ntk", "nngp"])
def test_a_kernel_without_tiles_says_so(name):
    with pytest.raises(
        TypeError, match=r"Kernel does not define tiles; .* tile\(self, name, z, x\)"
    ):
        getattr(Kernel(), name)(X)


# --- kernels as values ---


@pytest.mark.parametrize("kernel", KERNELS, ids=label)
def test_repr_says_what_the_kernel_is(kernel):
    text = repr(kernel)
    assert f"slope={kernel.slope:g}" in text
    assert f"train_bias={kernel.train_bias}" in text
    assert ("trains W and b" in text) == kernel.train_bias
    assert "readout frozen" in text
    assert "standard parameterization" in text
    assert eval(text) == kernel


@pytest.mark.parametrize("kernel", KERNELS, ids=label)
def test_kernels_compare_and_hash_by_value(kernel):
    twin = TwoLayerNTK(np.float64(kernel.slope), np.bool_(kernel.train_bias))  # pyright: ignore[reportArgumentType]
    assert twin == kernel
    assert hash(twin) == hash(kernel)
    assert type(twin.slope) is float
    assert type(twin.train_bias) is bool
    assert [other for other in KERNELS if other == kernel] == [kernel]
    assert len({*KERNELS, twin}) == len(KERNELS)


@pytest.mark.parametrize(
    "number",
    [1, np.int64(1), np.float32(1), np.array(1.0), jnp.array(1.0)],
    ids=lambda n: type(n).__name__,
)
def test_slope_may_be_any_real_number(number):
    assert TwoLayerNTK(number) == TwoLayerNTK(1.0)


def test_kernels_are_immutable():
    with pytest.raises(AttributeError):
        KERNEL.slope = 0.3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "trip",
    [
        lambda k: pickle.loads(pickle.dumps(k)),
        copy.copy,
        copy.deepcopy,
        lambda k: jax.tree.unflatten(jax.tree.structure(k), jax.tree.leaves(k)),
        lambda k: jax.tree.map(lambda leaf: leaf, k),
        jax.jit(lambda k: k),
    ],
    ids=["pickle", "copy", "deepcopy", "flatten", "map", "jit"],
)
@pytest.mark.parametrize("kernel", [RELU, KERNEL], ids=label)
def test_kernels_survive_round_trips(kernel, trip):
    other = trip(kernel)
    assert other == kernel
    assert repr(other) == repr(kernel)
    assert type(other) is TwoLayerNTK


def test_kernels_have_no_leaves_and_are_constants_of_a_compiled_function():
    assert jax.tree.leaves(KERNEL) == []
    seen = []

    @jax.jit
    def total(kernel, x):
        seen.append(kernel)
        return jnp.sum(kernel.slope * x)

    assert total(TwoLayerNTK(0.5), X) == 3
    assert total(TwoLayerNTK(0.5), 2 * X) == 6
    assert total(TwoLayerNTK(0.25), X) == 1.5
    assert seen == [TwoLayerNTK(0.5), TwoLayerNTK(0.25)]


# --- rounding ---


# The last of this module, so that few programs are compiled once more.
@pytest.mark.usefixtures("optimised")
class TestRounding:
    """Contraction leaves errors in what cancels exactly without it."""

    @given(seed=SEEDS, category=st.sampled_from(CATEGORIES), scale=SCALES)
    @example(seed=1, category="collinear", scale=1e5)
    @example(seed=1, category="far cluster", scale=1e-3)
    def test_everything_against_the_reference_in_float32(self, seed, category, scale):
        assert_close_to_reference(KERNEL, np.float32, *sample(seed, category, scale, np.float32))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
    def test_z_omitted_is_symmetric_with_an_exact_diagonal(self, dtype, scale):
        x = representable(points(np.random.default_rng(10), "all", scale)[0], dtype)
        square = np.sum(x**2, axis=1)
        maximum = (1 + 0.2**2) / 2
        with precision(dtype):
            phi, ntk, nngp = map(np.asarray, square_matrices(x))
        assert (phi[coincident(x, x)] == phi.dtype.type(maximum)).all()
        np.testing.assert_allclose(ntk.diagonal(), maximum * (square + 1), rtol=2 * D * EPS[dtype])
        np.testing.assert_allclose(
            nngp.diagonal(), maximum * (1 + square / D), rtol=2 * D * EPS[dtype]
        )
        for matrix, unit in ((phi, 1), (ntk, 1 + square), (nngp, 1 + square / D)):
            root = np.sqrt(unit) * np.ones(N)
            assert (np.abs(matrix - matrix.T) <= 4 * D * EPS[dtype] * np.outer(root, root)).all()
