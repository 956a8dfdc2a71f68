"""Small sums by NumPy: the same answers as the compiled programs, where those are right."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from perturbkernel import TwoLayerNTK
from perturbkernel.kernels import host
from perturbkernel.theory import pairs

N, M, D = 12, 9, 5


def points(kind: str, rng: np.random.Generator, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Queries and points: apart, or tiny and nearly on one line, with duplicates among them."""
    if kind == "apart":
        return rng.normal(size=(M, D)).astype(dtype), rng.normal(size=(N, D)).astype(dtype)
    signs = rng.choice([-1.0, 1.0], size=(N, 1))
    x = 1e-2 * signs * (rng.normal(size=D) + 1e-2 * rng.normal(size=(N, D)))
    x[3], x[4] = x[1], 2 * x[1]
    x[5] = x[1] * (1 + 1e-6)
    x = x.astype(dtype)
    return x[:M].copy(), x


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch):
    """Evaluates a function in float64, by compiled programs."""

    def evaluate(function, *arrays):
        with monkeypatch.context() as patch, jax.enable_x64(True):
            patch.setattr(host, "PAIRS", 0)
            wide = [jnp.asarray(a, np.float64) for a in arrays]
            return np.asarray(function(*wide))

    return evaluate


@pytest.mark.parametrize("kind", ["apart", "perturbations"])
@pytest.mark.parametrize("train_bias", [False, True])
def test_sums_and_gradients_are_those_of_compiled_programs(kind, train_bias, compiled, rng):
    kernel = TwoLayerNTK(0.2, train_bias)
    z, x = points(kind, rng, np.float32)
    coef = rng.normal(size=N).astype(np.float32)
    for function in (kernel.matvec, kernel.input_gradient, kernel.phi_matmul):
        b = coef if function != kernel.phi_matmul else np.outer(coef, [1, 2, 3])
        right = compiled(function, z, x, b)
        assert host.takes(kernel, "ntk", z, x, b)
        found = function(z, x, jnp.asarray(b, np.float32))
        assert found.dtype == np.float32
        # Terms that cancel in a sum: rounding is relative to the largest result.
        np.testing.assert_allclose(found, right, rtol=0, atol=5e-6 * np.abs(right).max())


@pytest.mark.parametrize("kind", ["apart", "perturbations"])
def test_float64_angles_are_right_to_rounding(kind, compiled, rng, x64):
    z, x = points(kind, rng, np.float64)
    kernel = TwoLayerNTK()
    found = kernel.phi(z, x)
    assert host.takes(kernel, "phi", z, x)
    np.testing.assert_allclose(found, compiled(kernel.phi, z, x), rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", ["apart", "perturbations"])
@pytest.mark.parametrize("many", [False, True])
def test_float64_gradients_are_right_to_rounding(kind, many, compiled, rng, x64, monkeypatch):
    z, x = points(kind, rng, np.float64)
    coef = rng.normal(size=N)
    kernel = TwoLayerNTK(0.2)
    if many:
        # Points that nearly coincide, more than are taken pair by pair.
        monkeypatch.setattr(host, "_CROWD", 1)
        x[3:9] = x[3] * (1 + 1e-5 * rng.normal(size=(6, D)))
        z[3:] = x[3:9]
        assert host.query_gradient(kernel, "ntk", z, x, coef, np.ones(M)) is None
    found = kernel.input_gradient(z, x, coef)
    assert found.dtype == np.float64
    right = compiled(kernel.input_gradient, z, x, coef)
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-11 * np.abs(right).max())


def test_crowds_are_left_to_programs(rng):
    """Differences of all pairs, one by one, would take a hundred times as long."""
    x = rng.normal(size=D) + 1e-7 * rng.normal(size=(2 * N, D))
    assert host.products_and_angles(x, x) is None
    assert host.angle_gradient(x, x, np.ones((len(x), len(x)))) is None
    (tile,) = pairs.tiles(x, x)
    exact = np.asarray(oracle.angle(x, x), float)
    np.testing.assert_allclose(tile.theta, exact, rtol=1e-6, atol=1e-14)
    assert np.isfinite(pairs.angle_gradient(x, x, lambda product, columns: product)).all()


def test_gradient_of_many_outputs_is_the_sum_of_single_ones(rng):
    z, x = points("apart", rng, np.float32)
    coef, weights = rng.normal(size=(N, 3)), rng.normal(size=(M, 3))
    coef, weights = coef.astype(np.float32), weights.astype(np.float32)
    kernel = TwoLayerNTK()
    each = [
        weights[:, k, None] * np.asarray(kernel.input_gradient(z, x, coef[:, k])) for k in range(3)
    ]
    np.testing.assert_allclose(
        kernel.input_gradient(z, x, coef, weights), np.sum(each, axis=0), rtol=0, atol=2e-6
    )


def test_identical_points_have_angle_zero_exactly(rng):
    _, x = points("apart", rng, np.float32)
    assert np.all(np.diag(TwoLayerNTK().phi(x)) == 0.5)


def test_what_is_not_small_or_not_at_hand_is_compiled(rng):
    z, x = points("apart", rng, np.float32)
    kernel = TwoLayerNTK()
    assert not host.takes(kernel, "nngp", z, x)
    assert not host.takes(TwoLayerNTK(memory=2**20), "ntk", z, x)
    large = np.empty((2**11, 1), np.float32)
    assert not host.takes(kernel, "ntk", large, large)

    class Own(TwoLayerNTK):
        def tile(self, name, z, x):
            return super().tile(name, z, x) + 1

    assert not host.takes(Own(), "ntk", z, x)
    traced = []
    jax.jit(lambda z: traced.append(host.takes(kernel, "ntk", z, x)) or z)(z)
    assert traced == [False]


def test_blocks_do_not_show(monkeypatch, rng):
    z, x = points("perturbations", rng, np.float32)
    coef = rng.normal(size=N).astype(np.float32)
    kernel = TwoLayerNTK()
    whole = kernel.matvec(z, x, coef), kernel.input_gradient(z, x, coef)
    monkeypatch.setattr(host, "_BLOCK", 2 * N)
    monkeypatch.setattr(host, "_DIFFERENCES", 2 * D)
    parts = kernel.matvec(z, x, coef), kernel.input_gradient(z, x, coef)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)
