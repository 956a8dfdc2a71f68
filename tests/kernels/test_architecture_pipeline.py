"""Every family of architectures through the whole pipeline: kernel, gradient, perturbations,
learning; tiles, memory.

References: `architecture_oracle`, layer by layer in NumPy float64, and its central differences.
"""

import functools
from typing import Any

import architecture_oracle as by_hand
import jax
import numpy as np
import pytest
from common import largest_row
from scipy.special import erf

import perturbkernel as pk
from perturbkernel.engine.memory import footprint

# Any, for the type checker: NumPy arrays are welcome, and bad input meant.
ArchitectureNTK: Any = pk.ArchitectureNTK
fit: Any = pk.fit
# As many queries as points, so that gradients at either are one program.
SIDE, N, M = 6, 8, 8
D = SIDE**2
KEY = jax.random.key(3)
B = 0.1


def _points() -> tuple[np.ndarray, np.ndarray]:
    """Small pictures with a dark frame, so that patches of different images and places coincide, as
    digits have them; among the queries training points, one of them twice, and a dark image."""
    rng = np.random.default_rng(0)
    x, z = np.full((N, SIDE, SIDE), -0.2), np.full((M, SIDE, SIDE), -0.2)
    x[:, 2:, 1:5], z[:, 2:, 1:5] = (
        rng.normal(size=(N, SIDE - 2, 4)),
        rng.normal(size=(M, SIDE - 2, 4)),
    )
    x[3] = x[2]
    z[0], z[1], z[2] = x[0], x[2], -0.2
    return x.reshape(N, D).astype(np.float32), z.reshape(M, D).astype(np.float32)


X, Z = _points()
Y = np.array([1.0, -1, 1, 1, -1, -1, 1, -1], np.float32)
DIRECTIONS = np.random.default_rng(1).normal(size=(M, D)) / SIDE

PHI = {
    "relu": (by_hand.leaky_relu(0.0), 0.5),
    "leaky_relu": (by_hand.leaky_relu(0.2), 0.52),
    "erf": (by_hand.smooth(erf, lambda u: 2 / np.sqrt(np.pi) * np.exp(-(u**2))), 0.46456),
    "gelu": (
        by_hand.smooth(
            lambda u: u * (1 + erf(u / 2**0.5)) / 2,
            lambda u: (1 + erf(u / 2**0.5)) / 2 + u * np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi),
        ),
        0.42522,
    ),
}


def dense_by_hand(depth: int, name: str, x: np.ndarray, z: np.ndarray) -> by_hand.State:
    phi, moment = PHI[name]
    s = by_hand.inputs(x, z)
    for _ in range(depth):
        s = by_hand.activation(by_hand.dense(s, moment**-0.5, B), phi)
    return by_hand.dense(s, moment**-0.5, B)


def residual_by_hand(x: np.ndarray, z: np.ndarray) -> by_hand.State:
    phi, moment = PHI["relu"]
    w = moment**-0.5

    def branch(s):
        return by_hand.dense(by_hand.activation(s, phi), w, B)

    s = by_hand.dense(by_hand.inputs(x, z), w, B)
    return branch(by_hand.residual(by_hand.residual(s, branch), branch))


def convolution_by_hand(pooled: bool, x: np.ndarray, z: np.ndarray) -> by_hand.State:
    phi, moment = PHI["relu"]
    w, s = moment**-0.5, by_hand.inputs(*(a.reshape(-1, SIDE, SIDE, 1) for a in (x, z)))
    for side, stride in ((SIDE, 2), (SIDE // 2, 1)):
        s = by_hand.activation(by_hand.convolution(s, w, B, side, stride), phi)
    return by_hand.dense(by_hand.mean_over_places(s, pooled), w, B)


def convolutional(pooling: bool) -> Any:
    return ArchitectureNTK.convolutional((SIDE, SIDE, 1), 2, stride=2, pooling=pooling)


FAMILIES: dict[str, tuple[Any, Any]] = {
    "relu": (
        lambda: ArchitectureNTK.fully_connected(3),
        functools.partial(dense_by_hand, 3, "relu"),
    ),
    "leaky": (
        lambda: ArchitectureNTK.fully_connected(2, "leaky_relu"),
        functools.partial(dense_by_hand, 2, "leaky_relu"),
    ),
    "erf": (
        lambda: ArchitectureNTK.fully_connected(2, "erf"),
        functools.partial(dense_by_hand, 2, "erf"),
    ),
    "gelu": (
        lambda: ArchitectureNTK.fully_connected(2, "gelu"),
        functools.partial(dense_by_hand, 2, "gelu"),
    ),
    "residual": (lambda: ArchitectureNTK.residual(2), residual_by_hand),
    "flattened": (lambda: convolutional(False), functools.partial(convolution_by_hand, False)),
    "pooled": (lambda: convolutional(True), functools.partial(convolution_by_hand, True)),
}


def reference(name: str):
    """(x, z) -> the tangent kernel (n, m), float64."""
    return lambda x, z: FAMILIES[name][1](np.asarray(x, float), np.asarray(z, float)).ntk[
        :, :, 0, 0
    ]


@functools.cache
def trained(name: str) -> Any:
    """f on the data by the identity loss to time N: its coefficients are the targets. All that
    follows uses these shapes, so that each kernel is compiled twice, its sums and their
    gradient."""
    return fit(FAMILIES[name][0](), X, Y, dynamics=pk.GradientFlow(float(N)))


# --- one family after another ---


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_and_gradients_at_training_points_duplicates_and_equal_patches(name):
    """float32 against float64 by hand: values 1e-5 or so; gradients carry angles, which float32
    knows to 3e-4, of equal patches of convolutions, and of ReLUs' coincident points not even that
    error."""
    f, kernel = trained(name), reference(name)
    exact = Y @ kernel(X, Z)
    assert np.abs(np.asarray(f(Z)) - exact).max() <= 2e-5 * np.abs(exact).max()
    for z in (Z, X[:M]):
        gradient = np.asarray(f.input_gradient(z))
        assert gradient.shape == z.shape
        assert np.isfinite(gradient).all()
        # Along itself, where it says how large it is, and along a random direction, where it says
        # nothing but zero.
        for direction in (gradient / largest_row(gradient), DIRECTIONS):
            exact = by_hand.slope(
                kernel, z.astype(float), X.astype(float), Y, direction.astype(float)
            )
            error = np.abs(np.sum(gradient * direction, axis=1) - exact)
            assert error.max() <= 1e-3 * largest_row(gradient)


@pytest.mark.parametrize("name", FAMILIES)
def test_perturbations_and_learning_from_them(name):
    """The whole experiment on flat rows, images included; outputs of g against sums by hand."""
    kernel = trained(name).kernel
    data = pk.Dataset(X, Y, image_shape=(SIDE, SIDE))
    learner = pk.KernelLearner(kernel, dynamics=pk.GradientFlow(float(N)))
    r: Any = pk.learn_from_perturbations(
        lambda x, y, key: learner(x, y), data, size=0.5, scenario="b", key=KEY
    )
    delta = np.asarray(r.perturbation.delta)
    assert delta.shape == X.shape
    np.testing.assert_allclose(np.linalg.norm(delta, axis=1), 0.5, rtol=1e-5)
    targets = np.asarray(r.perturbation.targets)
    gradient = np.asarray(r.f.input_gradient(X))
    np.testing.assert_allclose(
        np.sum(delta * gradient, axis=1) * targets,
        0.5 * np.linalg.norm(gradient, axis=1),
        rtol=1e-5,
    )
    exact = targets @ reference(name)(X + delta, Z)
    assert np.abs(np.asarray(r.g(Z)) - exact).max() <= 1e-4 * np.abs(exact).max()


def test_several_outputs_images_and_controls():
    """(n, K) targets; rows (n, h, w, c) in place of flat ones; a control of the experiment, which
    is trained anew.
    """
    f = trained("flattened")
    several = fit(f.kernel, X, np.stack([Y, -2 * Y], axis=1), dynamics=pk.GradientFlow(float(N)))
    np.testing.assert_allclose(
        several(Z), np.asarray(f(Z))[:, None] * [1, -2], rtol=1e-5, atol=1e-5
    )
    weights = np.tile([[0.5, 0.25]], (M, 1))
    assert (
        np.abs(several.input_gradient(Z, weights)).max() < 1e-5 * np.abs(f.input_gradient(Z)).max()
    )
    images = fit(f.kernel, X.reshape(N, SIDE, SIDE, 1), Y, dynamics=pk.GradientFlow(float(N)))
    np.testing.assert_allclose(images(Z.reshape(M, SIDE, SIDE, 1)), f(Z), rtol=1e-5, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"inputs must have .* \(6, 6, 1\), or \(36,\) if flat; got \(35,\)"
    ):
        fit(f.kernel, X[:, 1:], Y)
    r: Any = pk.learn_from_perturbations(pk.KernelLearner(f.kernel), (X, Y), size=0.5, key=KEY)
    assert r.cosine is None
    assert r.diagnosis is not None and np.isfinite(r.diagnosis.probability).all()


# --- losses ---


@pytest.mark.parametrize("memory", [None, 0], ids=["direct", "products"])
def test_every_loss_trains_an_architecture(memory):
    """Three steps of heavy ball, as NumPy makes them with the Gram matrix by hand. `memory=0`:
    products in float32 tiles inside a float64 solver."""
    kernel = trained("relu").kernel
    gram = dense_by_hand(3, "relu", X.astype(float), X.astype(float)).ntk[:, :, 0, 0]
    rate, steps, momentum = 0.05, 3, 0.5
    classes = np.stack([Y > 0, Y < 0], axis=1).astype(np.float32)

    def softmax(f):
        return np.exp(f) / np.exp(f).sum(1, keepdims=True)

    slopes = {
        "logistic": lambda f: -Y / (1 + np.exp(Y * f)),
        "squared": lambda f: f - Y,
        "softmax": lambda f: softmax(f) - classes,
    }
    for loss, slope in slopes.items():
        targets = classes if loss == "softmax" else Y
        coef, velocity = np.zeros(targets.shape), np.zeros(targets.shape)
        for _ in range(steps):
            velocity = momentum * velocity - rate * slope(gram @ coef) / N
            coef = coef + velocity
        f = fit(
            kernel,
            X,
            targets,
            loss=loss,
            dynamics=pk.HeavyBall(rate, steps, momentum),
            memory=memory,
        )
        np.testing.assert_allclose(
            f.dual_coef, coef, rtol=0, atol=2e-6 * np.abs(coef).max(), err_msg=loss
        )


def test_interpolation():
    """The squared loss without end, from the Gram matrix that float32 inputs have under x64."""
    x = X.copy()
    x[3] *= -1  # a duplicate with another label
    f = fit(trained("relu").kernel, x, Y, loss="squared", dynamics=pk.GradientFlow(np.inf))
    np.testing.assert_allclose(f(x), Y, atol=1e-4)
    with jax.enable_x64(True):
        assert jax.eval_shape(f.kernel.ntk, x).dtype == np.float32


# --- tiles and memory ---


def test_tiles_change_nothing_but_rounding():
    """1 MiB holds a few pairs of a pooled network; the last tiles overlap those before, where points
    coincide.
    """
    kernel = trained("pooled").kernel
    small = ArchitectureNTK(kernel.network, "small", kernel.input_shape, memory=2**20)
    n, m = N - 1, M - 1
    plan = small.plan(n, m, D, rate=1e9)
    assert plan.tiles == 4 and plan.tile == (4, 4) and plan.memory <= 2**20
    assert kernel.plan(N, M, D, rate=1e9).tiles == 1
    # The whole is of the shapes of `trained`, for which it is compiled already.
    coef = np.append(Y[:n], np.float32(0))
    # Errors of either, as above: gradients carry angles of coincident points.
    for name, rounding in (("matvec", 2e-5), ("input_gradient", 1e-3)):
        whole = np.asarray(getattr(kernel, name)(Z, X, coef))[:m]
        tiled = np.asarray(getattr(small, name)(Z[:m], X[:n], coef[:n]))
        np.testing.assert_allclose(tiled, whole, rtol=0, atol=rounding * np.abs(whole).max())


@pytest.mark.parametrize("name", ["relu", "flattened"])
def test_the_plans_bytes_are_not_exceeded(name):
    """XLA's own account of what a gradient holds beside arguments and result; not less than a tenth
    of the plan, or the footprint says nothing."""
    kernel = FAMILIES[name][0]()
    kernel = ArchitectureNTK(kernel.network, name, kernel.input_shape, memory=2**23)
    plan = kernel.plan(5000, 4000, D, what="input_gradient", rate=1e9)
    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((4000, D), (5000, D), (5000,))]
    compiled = jax.jit(kernel.input_gradient).lower(*shapes).compile()
    used = compiled.memory_analysis().temp_size_in_bytes  # pyright: ignore[reportOptionalMemberAccess]
    assert plan.memory / 10 < used <= plan.memory <= 2**23


def test_footprints_count_what_lives_at_once():
    """Three arrays of pairs at most: the product, its square, their sum; one of them is dead by the
    sine.
    """

    def tile(z, x):
        product = z @ x.T
        return jax.numpy.sin(product**2 + product).sum(1)

    pair, each = footprint(tile, (5,))
    assert pair == 3
    assert 15 <= each <= 16  # rows of either kind, a transpose, and one number a result
    assert footprint(jax.jit(tile), (5,))[0] == 3  # what a function within holds counts too
    deep, deeper = (ArchitectureNTK.fully_connected(depth).footprint((5,)) for depth in (1, 2))
    assert deep[0] < deeper[0]


# --- constructors ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ArchitectureNTK.fully_connected(0), "depth must be at least 1"),
        (
            lambda: ArchitectureNTK.fully_connected(activation="tanh"),
            "activation must be one of 'relu'",
        ),
        (lambda: ArchitectureNTK.fully_connected(b_std=-1.0), "b_std must be >= 0"),
        (lambda: ArchitectureNTK.residual(1.5), "blocks must be a whole number"),
        (
            lambda: ArchitectureNTK.convolutional((6, 6)),
            r"input_shape must be \(h, w, c\); got \(6, 6\)",
        ),
        (
            lambda: ArchitectureNTK.convolutional((6, 6, 1), pooling=2),
            "pooling must be True or False",
        ),
        (lambda: ArchitectureNTK.convolutional((6, 6, 1), stride=0), "stride must be at least 1"),
    ],
)
def test_bad_networks(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_equal_constructions_are_one_kernel_and_say_what_they_are():
    one, twin = (ArchitectureNTK.fully_connected(3, "gelu") for _ in range(2))
    assert one == twin and hash(one) == hash(twin)
    assert one != ArchitectureNTK.fully_connected(2, "gelu")
    assert "3 hidden layers, gelu" in repr(one)
    assert "2 convolutions, relu, pooled" in repr(convolutional(True))
