"""Sums, products and multiples of kernels, as values, as trees, and through fit, attack and files."""

import copy
import json
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import D, N, awkward_points, precision

import perturbkernel as pk
from perturbkernel.kernels.algebra import KernelProduct, KernelSum, ScaledKernel
from perturbkernel.kernels.descriptions import described, from_description

A, B, C = pk.RBF(1.5), pk.RBF(0.7), pk.Laplace(2.0)
TWO_LAYERS = pk.TwoLayerNTK(0.2)
MIXED: Any = 0.5 * A + B * (C + 2.0 * A)
RNG = np.random.default_rng(4)


def test_a_combination_is_that_of_matrices_and_gradients():
    """Gradients by the rules of sums and products, from those of the parts."""
    x, z = awkward_points()
    coef = RNG.normal(size=N)
    with precision(np.float64):
        a, b, c = (np.asarray(kernel.ntk(z, x)) for kernel in (A, B, C))
        mixed = 0.5 * a + b * (c + 2 * a)
        np.testing.assert_allclose(MIXED.ntk(z, x), mixed, atol=1e-13)
        np.testing.assert_allclose(MIXED.matvec(z, x, coef), mixed @ coef, atol=1e-12)

        weights = {A: coef * (0.5 + 2 * b), B: coef * (c + 2 * a), C: coef * b}

        def total(z):
            """Whose gradient at z_j is sum_n weights_jn grad K(x_n, z_j), of each kernel."""
            return sum(jnp.sum(w * kernel.ntk(z, x)) for kernel, w in weights.items())

        wanted = jax.jit(jax.grad(total))(z)
        np.testing.assert_allclose(MIXED.input_gradient(z, x, coef), wanted, atol=1e-12)
        # Each has its own covariance, too.
        mixed = a + 3 * np.asarray(TWO_LAYERS.nngp(z, x))
        np.testing.assert_allclose((A + 3.0 * TWO_LAYERS).nngp(z, x), mixed, atol=1e-13)


def test_the_bound_of_a_gradient_adds_up_and_is_multiplied():
    x, z = awkward_points()
    coef = np.abs(RNG.normal(size=N))
    a, c = (np.asarray(kernel.gradient_bound(z, x, coef)) for kernel in (A, C))
    found = (A + 3.0 * C).gradient_bound(z, x, coef)
    np.testing.assert_allclose(found, a + 3 * c, rtol=1e-6)


def test_combinations_are_values():
    again = 0.5 * pk.RBF(1.5) + pk.RBF(0.7) * (pk.Laplace(2.0) + pk.RBF(1.5) * 2.0)
    assert again == MIXED and hash(again) == hash(MIXED) and {again: 1}[MIXED] == 1
    assert A + B != B + A and A + B != A * B and 2.0 * A != 3.0 * A
    assert (A + B) + C == A + (B + C) and (A * B) * C == A * (B * C)
    assert 2.0 * (3.0 * A) == 6.0 * A == A * np.float32(6) == np.float64(6) * A
    for value in (copy.copy(MIXED), copy.deepcopy(MIXED), pickle.loads(pickle.dumps(MIXED))):
        assert value == MIXED
    with pytest.raises(AttributeError):
        MIXED.parts = ()
    assert jax.tree.leaves(MIXED) == [] and jax.tree.structure(MIXED) == jax.tree.structure(again)
    assert jax.jit(lambda kernel: kernel)(MIXED) == MIXED
    assert repr(MIXED) == (
        "0.5 * RBF(length_scale=1.5) + RBF(length_scale=0.7) * "
        "(Laplace(length_scale=2.0, norm='l2') + 2 * RBF(length_scale=1.5))"
    )
    assert repr(3.0 * TWO_LAYERS) == "3 * TwoLayerNTK(slope=0.2, train_bias=False)"


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: -1.0 * A, ValueError, "a kernel's factor must be > 0 and finite; got -1"),
        (lambda: 0 * A, ValueError, "a kernel's factor must be > 0"),
        (lambda: A * float("nan"), ValueError, "a kernel's factor must be > 0"),
        (lambda: 1e300 * (1e300 * A), ValueError, "a kernel's factor must be > 0 and finite"),
        (lambda: A + 1, TypeError, "unsupported operand"),  # pyright: ignore
        (lambda: True * A, TypeError, "unsupported operand"),
        (lambda: A * "2", TypeError, "unsupported operand|can't multiply"),
        (lambda: np.ones(2) * A, TypeError, "unsupported operand|does not support"),
        (lambda: jax.jit(lambda s: A * s)(1.0), TypeError, "must not be traced"),
    ],
)
def test_what_is_no_kernel_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_kernels_that_take_different_inputs_are_refused():
    """Images that one of them takes whole, and the other flat."""
    image = pk.ArchitectureNTK.convolutional((2, 2, 1), depth=1, pooling=False)
    mixed, flat = image + A, np.ones((3, 4), np.float32)
    assert mixed.ntk(flat).shape == (3, 3)  # it takes flat ones, too
    with pytest.raises(
        ValueError, match=r"kernels are combined that take different inputs: .*, and RBF"
    ):
        mixed.ntk(np.ones((3, 2, 2, 1)))
    with pytest.raises(ValueError, match=r"different inputs: RBF.*\(5,\).*, and ArchitectureNTK"):
        (A + image).ntk(np.ones((3, 5)))
    with pytest.raises(ValueError, match=r"^x must not be empty"):
        mixed.ntk(np.ones((0, 4)))


def test_memory_is_that_of_the_strictest_part():
    small = pk.RBF(memory=2**21)
    assert (small + TWO_LAYERS).memory == 2**21 and (B * C).memory is None
    assert (2.0 * (small + pk.Laplace(memory=2**20))).memory == 2**20
    pair, row = (small + TWO_LAYERS).footprint((784,))
    of_a, of_b = small.footprint((784,)), TWO_LAYERS.footprint((784,))
    assert pair > of_a[0] + of_b[0] and row == of_a[1] + of_b[1]
    plan = (small + TWO_LAYERS).plan(60_000, 10_000, 784, what="input_gradient", rate=1e9)
    assert plan.memory <= 2**21


def test_a_combination_is_fitted_attacked_and_kept(tmp_path):
    # As many queries as points, to compile no more.
    x, z = RNG.normal(size=(2, N, D)).astype(np.float32)
    y = np.resize([1.0, -1.0], N).astype(np.float32)
    kernel = 0.5 * A + A * C
    f = pk.fit(kernel, x, y, loss="squared", dynamics=pk.GradientFlow(float("inf")))
    assert f.status == "ok"
    matrix = np.asarray(kernel.ntk(x), float)
    wanted = np.asarray(kernel.ntk(z, x), float) @ np.linalg.solve(matrix, y)
    np.testing.assert_allclose(f(z), wanted, atol=2e-3)
    step = pk.perturb(f, x, -y, size=0.1)
    assert (y * np.asarray(f(x + step.delta)) < y * np.asarray(f(x))).all()
    nearest = pk.minimum_norm(f, x, y)
    assert np.asarray(nearest.found).all()
    f.save(tmp_path / "f.npz")
    again = pk.KernelPredictor.load(tmp_path / "f.npz")
    assert again.kernel == kernel
    np.testing.assert_array_equal(again(z), f(z))
    with pytest.raises(ValueError, match="trained with another kernel"):
        pk.KernelPredictor.load(tmp_path / "f.npz", kernel=A + B)


def test_a_file_says_what_a_kernel_is_where_it_can():
    kernels = (
        A,
        C,
        pk.Laplace(1.0, "l1"),
        pk.ArcCosine(2),
        TWO_LAYERS,
        MIXED,
        3.0 * (A * TWO_LAYERS),
    )
    for kernel in kernels:
        assert from_description(json.loads(json.dumps(described(kernel)))) == kernel
    assert from_description(described(pk.RBF(memory=2**20))) == pk.RBF()

    class RBF(pk.Kernel):  # of the user's own
        def tile(self, name, z, x):
            return z @ x.T

    assert described(A + RBF())["parts"][1] == {"class": "RBF"}
    assert from_description(described(A + RBF())) is None
    assert isinstance(from_description(described(A + B)), KernelSum)
    assert isinstance(from_description(described(A * B)), KernelProduct)
    assert isinstance(from_description(described(2.0 * B)), ScaledKernel)
