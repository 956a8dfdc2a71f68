"""architectures.py: networks of neural-tangents against the closed form, recursions in NumPy,
finite differences.
"""

import functools
import importlib.machinery
import pickle
import subprocess
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from common import D, M, N, awkward_points, coincident, largest_row, precision

import perturbkernel as pk
from perturbkernel.kernels import architectures
from perturbkernel.kernels.stax_kernels import load_neural_tangents

# `FanInSum` announces what it assumes whenever it is made or evaluated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`FanIn` layers assume independent inputs:UserWarning"
)

# Any, for the type checker: NumPy arrays and lists are welcome where signatures say Array; bad
# input is meant here.
ArchitectureNTK: Any = pk.ArchitectureNTK
stax: Any = load_neural_tangents()
KEY = jax.random.key(5)
W, B = 1.3, 0.3
X, Z = awkward_points()  # training points among the queries, duplicates, zero, opposite points
COEF = np.random.default_rng(15).normal(size=N)
DIRECTIONS = np.random.default_rng(16).normal(size=Z.shape)
STEP = 1e-5
SHIFTS = (0, STEP, -STEP, STEP / 2, -STEP / 2)


def dense(b_std: float | None = B) -> Any:
    return stax.Dense(1, W_std=W, b_std=b_std)


def hidden(activation: Any) -> Any:
    return stax.serial(dense(), activation, dense(), activation, dense())


def residual() -> Any:
    branch = stax.serial(stax.Relu(), dense())
    return stax.serial(
        dense(), stax.FanOut(2), stax.parallel(branch, stax.Identity()), stax.FanInSum(), dense()
    )


def paper(slope: float) -> Any:
    first = stax.Dense(1, W_std=1, b_std=1, parameterization="standard")
    return stax.serial(first, stax.LeakyRelu(slope))


def convolution() -> Any:
    conv = stax.Conv(1, (3, 3), padding="SAME", W_std=W, b_std=B)
    return stax.serial(conv, stax.Relu(), stax.GlobalAvgPool(), dense())


NETWORKS = {
    "relu": lambda: hidden(stax.Relu()),
    "relu without bias": lambda: stax.serial(dense(None), stax.Relu(), dense(None)),
    "leaky": lambda: hidden(stax.LeakyRelu(0.2)),
    "erf": lambda: stax.serial(dense(), stax.Erf(), dense()),
    "gelu": lambda: stax.serial(dense(), stax.Gelu(), dense()),
    "residual": residual,
}


@functools.cache
def kernel(name: str) -> Any:
    return ArchitectureNTK(NETWORKS[name](), name)


@functools.cache
def evaluator(kernel: Any) -> Any:
    """Sums and their gradients, and through sums with unit vectors the kernel itself: compiling a
    deep kernel takes seconds, so each is compiled once, for queries Z and points around them."""

    @jax.jit
    def evaluate(x, z, coef, around):
        sums = kernel.matvec(around, x, jnp.concatenate([coef[:, None], jnp.eye(len(x))], axis=1))
        ntk = sums[: len(z), 1:].T
        return {
            "matvec": sums[:, 0],
            "ntk": ntk,
            "input_gradient": kernel.input_gradient(z, x, coef),
        }

    def call(x, z, coef, dtype: Any = np.float64, directions=0.0):
        around = np.concatenate([z + h * directions for h in SHIFTS])
        with precision(dtype):
            values = evaluate(*(np.asarray(a, dtype) for a in (x, z, coef, around)))
        assert {str(value.dtype) for value in values.values()} == {np.dtype(dtype).name}
        return {name: np.asarray(value, float) for name, value in values.items()}

    return call


# --- the paper's network ---


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
def test_the_papers_network_is_the_closed_form(slope, x64):
    k = ArchitectureNTK(paper(slope))
    values = evaluator(k)(X, Z, COEF)
    exact = {
        "ntk": oracle.ntk(X, Z, slope, True),
        "matvec": np.tile(oracle.matvec(Z, X, COEF, slope, True), len(SHIFTS)),
        "input_gradient": oracle.input_gradient(Z, X, COEF, slope, True),
    }
    for name, reference in exact.items():
        assert np.abs(values[name] - reference).max() <= 1e-12 * np.abs(reference).max(), name
    assert coincident(X, Z).sum() >= 8
    if slope == 0.2:
        for matrix, reference in (
            (k.nngp(X, Z), oracle.nngp(X, Z, slope)),
            (k.ntk(X), oracle.ntk(X, X, slope, True)),
        ):
            assert np.abs(np.asarray(matrix) - reference).max() <= 1e-12 * np.abs(reference).max()


# --- deep networks against recursions ---


def recursion(
    x: np.ndarray, z: np.ndarray, slope: float, b_std: float
) -> tuple[np.ndarray, np.ndarray]:
    """NNGP and NTK of Dense, activation, Dense, activation, Dense with leaky ReLUs: (n, m) each,
    plain arccos.
    """

    def angle_moments(cross, left, right):
        cosine = np.clip(cross / np.sqrt(np.outer(left, right)), -1, 1)
        theta = np.where(np.isclose(cosine, 1, rtol=0, atol=1e-14), 0, np.arccos(cosine))
        cone = (1 - slope) ** 2 / (2 * np.pi)
        gate = (1 + slope**2) / 2 - cone * theta
        return gate, np.sqrt(np.outer(left, right)) * (cosine * gate + cone * np.sin(theta))

    def affine(covariance):
        return W**2 * covariance + b_std**2

    d, gain = x.shape[1], (1 + slope**2) / 2
    cross, left, right = (
        affine(a / d) for a in (x @ z.T, np.sum(x**2, axis=1), np.sum(z**2, axis=1))
    )
    ntk = cross
    for _ in range(2):
        gate, cross = angle_moments(cross, left, right)
        ntk, cross, left, right = (
            W**2 * gate * ntk,
            affine(cross),
            affine(gain * left),
            affine(gain * right),
        )
        ntk = ntk + cross
    return cross, ntk


@functools.cache
def deep(name: str) -> dict[str, np.ndarray]:
    """Values in float64, sums at Z and around it."""
    return evaluator(kernel(name))(X, Z, COEF, directions=DIRECTIONS)


@pytest.mark.parametrize(("name", "slope"), [("relu", 0.0), ("leaky", 0.2)])
def test_deep_networks_against_a_recursion(name, slope):
    """Coincident points included, of which neural-tangents alone has the angle, 0, only to 1e-8."""
    values = deep(name)
    ntk = recursion(X, Z, slope, B)[1]
    np.testing.assert_allclose(values["ntk"], ntk, rtol=0, atol=1e-12 * np.abs(ntk).max())
    scale = np.abs(COEF) @ np.abs(ntk).max(axis=1)
    np.testing.assert_allclose(values["matvec"][:M], COEF @ ntk, rtol=0, atol=1e-12 * scale)


def test_the_initial_covariance_of_a_deep_network(x64):
    nngp = recursion(X, Z, 0.0, B)[0]
    np.testing.assert_allclose(
        kernel("relu").nngp(X, Z), nngp, rtol=0, atol=1e-12 * np.abs(nngp).max()
    )


@pytest.mark.parametrize("name", ["erf", "residual"])
def test_off_the_coincidences_kernels_are_those_of_neural_tangents(name, x64):
    same = coincident(X, Z)
    own = np.asarray(jax.jit(lambda x, z: kernel(name).network[2](x, z, "ntk"))(X, Z))
    np.testing.assert_allclose(deep(name)["ntk"][~same], own[~same], rtol=1e-13, atol=1e-13)
    # At coincidences the difference is that of neural-tangents' clipped angles, of order sqrt(eps),
    # if there is one.
    np.testing.assert_allclose(deep(name)["ntk"][same], own[same], rtol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_finite_and_right_at_training_points_duplicates_and_zero(name):
    """Against central differences. ReLUs: near a training point neural-tangents' own angles are
    good to 1e-8 or so of STEP, whence 1e-3; elsewhere, and for smooth activations, 1e-6
    (extrapolated differences: 1e-10 / STEP)."""
    values = deep(name)
    gradient = values["input_gradient"]
    assert gradient.shape == Z.shape
    assert np.isfinite(gradient).all()
    _, *around = values["matvec"].reshape(len(SHIFTS), M)
    wide, narrow = (around[0] - around[1]) / (2 * STEP), (around[2] - around[3]) / STEP
    error = np.abs(2 * narrow - wide - np.sum(gradient * DIRECTIONS, axis=1))
    near = coincident(X, Z).any(axis=0) & np.array(name not in ("erf", "gelu"))
    if name == "relu without bias":  # homogeneous: zero is a cone that no gradient describes
        error = error[np.any(Z != 0, axis=1)]
        near = near[np.any(Z != 0, axis=1)]
    scale = largest_row(gradient)
    assert (error <= np.where(near, 1e-3, 1e-6) * scale).all()


def test_float32_agrees():
    single = evaluator(kernel("relu"))(X, Z, COEF, np.float32, DIRECTIONS)
    for quantity, exact in deep("relu").items():
        assert np.isfinite(single[quantity]).all()
        # Angles of nearly opposite or equal points: 3e-4 in float32, times their share of a sum.
        assert np.abs(single[quantity] - exact).max() <= 2e-3 * np.abs(exact).max(), quantity


def test_batches_under_vmap_are_rows_in_float32_too():
    """The diagonal, in float64, is computed when JAX batches: after float64 went out of scope."""
    z = np.random.default_rng(18).normal(size=(2, D)).astype(np.float32)
    coef = jnp.asarray(COEF, jnp.float32)
    f = pk.KernelPredictor(kernel("relu without bias"), jnp.asarray(X, jnp.float32), coef)

    def at_one_point(point):
        return f(point[None])[0]

    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(at_one_point)))(z)
    np.testing.assert_allclose(values, f(z), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradients, f.input_gradient(z), rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match="second derivatives only in float64"):
        jax.jit(jax.hessian(at_one_point)).lower(z[0])


def test_predictors_of_networks_in_shard_map():
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    f = pk.KernelPredictor(
        kernel("relu without bias"), jnp.asarray(X, jnp.float32), jnp.asarray(COEF, jnp.float32)
    )

    def values_and_gradients(z):
        return f(z), f.input_gradient(z)

    z, rows = np.asarray(Z, np.float32), jax.sharding.PartitionSpec("i")
    dealt = jax.shard_map(values_and_gradients, mesh=mesh, in_specs=rows, out_specs=(rows, rows))
    for found, exact in zip(jax.jit(dealt)(z), jax.jit(values_and_gradients)(z), strict=True):
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def test_duplicates_of_a_point_share_their_values_and_gradients():
    """All points equal: only K(x, x) is left, and half the gradient of the diagonal."""
    x = np.tile(X[:1], (N, 1))
    values = evaluator(kernel("relu"))(x, x[:M], COEF)
    np.testing.assert_allclose(values["ntk"], recursion(X[:1], X[:1], 0.0, B)[1][0, 0], rtol=1e-12)
    h = 1e-5
    low, high = (
        recursion(p, p, 0.0, B)[1].diagonal() for p in (X[0] - h * np.eye(D), X[0] + h * np.eye(D))
    )
    exact = COEF.sum() * (high - low) / (2 * h) / 2
    np.testing.assert_allclose(values["input_gradient"], np.tile(exact, (M, 1)), rtol=1e-7)


@pytest.mark.parametrize("scale", [0.0, 1e-3])
def test_the_diagonal_is_exact_for_tiny_inputs_too(scale):
    """Scenario (a) trains on nothing else. float32: some ten roundings, doubled."""
    x = scale * X
    values = evaluator(kernel("relu"))(x, x[:M], COEF, np.float32)
    exact = recursion(x, x[:M], 0.0, B)[1]
    same = coincident(x, x[:M])
    np.testing.assert_allclose(values["ntk"][same], exact[same], rtol=3e-6)


# --- the rest of the package with networks ---


def labels(x: np.ndarray) -> np.ndarray:
    return np.where(x.reshape(len(x), -1)[:, 0] > 0, 1.0, -1.0)


def test_a_deep_network_learns_from_perturbations():
    x = np.random.default_rng(17).normal(size=(N, D)).astype(np.float32)
    data = pk.Dataset(x, labels(x))  # pyright: ignore[reportArgumentType]
    learner = pk.KernelLearner(
        ArchitectureNTK(stax.serial(dense(), stax.Relu(), dense())), dynamics=pk.GradientFlow(3.0)
    )
    r = pk.learn_from_perturbations(learner, data, size=0.5, scenario="b", key=KEY)
    np.testing.assert_allclose(np.linalg.norm(r.perturbation.delta, axis=1), 0.5, rtol=1e-5)
    assert r.cosine is None
    assert r.diagnosis is not None
    outputs = np.asarray(r.g(data.inputs))
    np.testing.assert_allclose(
        3 * (r.diagnosis.signal + r.diagnosis.offset), outputs, atol=1e-4 * np.abs(outputs).max()
    )
    assert float(r.accuracy(data).f) > 0.6
    with pytest.raises(
        TypeError, match=r'frozen gates belong to TwoLayerNTK.*Use direction="gradient"'
    ):
        pk.learn_from_perturbations(learner, data, size=0.5, direction="frozen_gates", key=KEY)


def test_a_convolutional_network_from_images_to_perturbations():
    """Inputs (n, h, w, c); float32, as XLA's CPU backend can crash on float64 gradients of pooled
    convolutions.
    """
    rng = np.random.default_rng(18)
    images = rng.normal(size=(6, 4, 4, 1)).astype(np.float32)
    y = np.array([1.0, -1, 1, -1, 1, -1])
    k = ArchitectureNTK(convolution(), "convolutional")
    f: Any = pk.fit(k, images, y, dynamics=pk.GradientFlow(3.0))  # pyright: ignore[reportArgumentType]
    p: Any = pk.perturb(f, images, y, size=0.5)  # pyright: ignore[reportArgumentType]
    assert p.delta.shape == images.shape
    np.testing.assert_allclose(np.linalg.norm(p.delta.reshape(6, -1), axis=1), 0.5, rtol=1e-5)
    step = 1e-2  # a central difference in float32
    slope = (np.asarray(f(images + step * p.delta)) - np.asarray(f(images - step * p.delta))) / (
        2 * step
    )
    gradient = np.asarray(f.input_gradient(images))
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(
        slope * y, 0.5 * np.linalg.norm(gradient.reshape(6, -1), axis=1), rtol=0.05
    )
    for wrong in (images.reshape(6, -1), images[:, :, :3]):
        with pytest.raises(
            ValueError, match=r"z must have rows of shape \(4, 4, 1\), as the training inputs; got"
        ):
            f(wrong)


# --- kernels as values ---


def test_kernels_are_values_without_leaves():
    network = NETWORKS["relu"]()
    one, twin, other = (
        ArchitectureNTK(network, "a"),
        ArchitectureNTK(network, "a"),
        ArchitectureNTK(network, "b"),
    )
    assert one == twin != other
    assert hash(one) == hash(twin)
    assert jax.tree.leaves(one) == []
    assert (
        repr(one)
        == "ArchitectureNTK(a, neural_tangents.stax; every weight and bias of the network trained)"
    )
    with pytest.raises(AttributeError):
        one.name = "c"


# --- messages ---


@pytest.mark.parametrize(
    "call", [lambda k: k.phi(X), lambda k: k.phi_matmul(Z, X, COEF)], ids=["phi", "phi_matmul"]
)
def test_phi_belongs_to_the_two_layer_kernel(call):
    with pytest.raises(TypeError, match=r"is not known of this kernel.*ArchitectureNTK"):
        call(kernel("relu"))


@pytest.mark.parametrize("network", [None, "relu", lambda x: x, (1, 2, 3), (len, len)])
def test_what_is_no_network(network):
    with pytest.raises(
        TypeError,
        match=r"network must be the \(init_fn, apply_fn, kernel_fn\) that a neural_tangents",
    ):
        ArchitectureNTK(network)


@pytest.mark.parametrize(
    "options",
    [
        {"memory": 1000},
        {"memory": 2.0**21},
        {"input_shape": 4},
        {"input_shape": ()},
        {"input_shape": (4, 0)},
        {"input_shape": (4, 2.0)},
    ],
)
def test_bad_options(options):
    with pytest.raises((TypeError, ValueError), match=f"{next(iter(options))} must be"):
        ArchitectureNTK(NETWORKS["relu"](), **options)


IMAGES = np.ones((3, 4, 4, 1), np.float32)


@pytest.mark.parametrize(
    ("network", "x", "message"),
    [
        (
            lambda: stax.serial(stax.Conv(1, (3, 3)), stax.Relu()),
            IMAGES,
            r"network must have one output a point; its kernel has shape \(n, m, 2, 2, 2, 2\).*"
            r"End it with stax\.Flatten\(\) or stax\.GlobalAvgPool\(\), then stax\.Dense\(1\)",
        ),
        (
            convolution,
            IMAGES.reshape(3, -1),
            r"ArchitectureNTK\(.* cannot take inputs with rows of shape \(16,\)",
        ),
        (
            NETWORKS["relu"],
            IMAGES[0, 0, :, 0],
            r"x must have shape \(n, d\), or \(n, h, w, c\) for images, one row per point; got",
        ),
        (NETWORKS["relu"], IMAGES[:0], "x must not be empty"),
        (NETWORKS["relu"], IMAGES * np.nan, "x must be finite"),
    ],
    ids=["feature maps", "flat images", "one point", "empty", "NaN"],
)
def test_networks_and_inputs_that_do_not_fit(network, x, message):
    for name in ("ntk", "nngp"):
        with pytest.raises(ValueError, match=message):
            getattr(ArchitectureNTK(network()), name)(x)


# --- the loader ---


def test_loading_runs_neither_the_packages_init_nor_tensorflow():
    code = """
import sys
class Refuse:
    def find_spec(self, name, *_):
        assert name.split(".")[0] not in ("tensorflow", "tf2jax", "torch"), name
sys.meta_path.insert(0, Refuse())
from perturbkernel.kernels.architectures import load_neural_tangents
assert "neural_tangents" not in sys.modules
stax, predict = load_neural_tangents(), load_neural_tangents("predict")
assert stax.__name__ == "neural_tangents.stax" and predict.gradient_descent_mse
assert load_neural_tangents() is stax
import neural_tangents
assert not hasattr(neural_tangents, "__version__"), "its __init__ ran"
assert neural_tangents.stax is stax
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_a_neural_tangents_that_is_imported_already_is_left_alone(monkeypatch):
    theirs, their_stax = (
        types.ModuleType("neural_tangents"),
        types.ModuleType("neural_tangents.stax"),
    )
    monkeypatch.setitem(sys.modules, "neural_tangents", theirs)
    monkeypatch.setitem(sys.modules, "neural_tangents.stax", their_stax)
    assert load_neural_tangents() is their_stax
    assert sys.modules["neural_tangents"] is theirs


def test_without_neural_tangents_the_error_says_how_to_install_it(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "neural_tangents"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(importlib.machinery.PathFinder, "find_spec", lambda *_: None)
    with pytest.raises(
        ModuleNotFoundError,
        match="neural-tangents is not installed: pip install --no-deps neural-tangents",
    ):
        architectures.load_neural_tangents()
    assert "neural_tangents" not in sys.modules


def test_a_submodule_that_does_not_exist():
    with pytest.raises(ModuleNotFoundError, match=r"neural_tangents\.nothing"):
        load_neural_tangents("nothing")


def test_what_the_network_computes_is_not_pickled_but_predictors_are_saved(tmp_path):
    """Networks are closures: pickle refuses them; `save` writes numbers, and `load` is given the
    network again.
    """
    paper_kernel = ArchitectureNTK(paper(0.2))
    f: Any = pk.fit(paper_kernel, X, labels(X))  # pyright: ignore[reportArgumentType]
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(f)
    f.save(tmp_path / "f.npz")
    assert jnp.array_equal(
        pk.KernelPredictor.load(tmp_path / "f.npz", kernel=paper_kernel).dual_coef, f.dual_coef
    )
