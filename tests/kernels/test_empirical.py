"""The tangent kernel of a network of one's own, against explicit Jacobians in NumPy, descent on
parameters and the infinite width; and what the protocol asks of such kernels.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import D, M, N, compilations
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose

import perturbkernel as pk
from perturbkernel.kernels import features, network
from perturbkernel.networks import TwoLayerNetwork

RNG = np.random.default_rng(3)
X = RNG.normal(size=(N, D)).astype(np.float32)
Z = RNG.normal(size=(M, D)).astype(np.float32)
Y = np.sign(RNG.normal(size=N)).astype(np.float32)
COEF = RNG.normal(size=(N, 2)).astype(np.float32)
WEIGHTS = RNG.normal(size=(M, 2)).astype(np.float32)


def mlp(params: Any, x: Any) -> Any:
    """Two layers of a width of 6, any number of outputs; a counter among the parameters."""
    u = jnp.tanh(x @ params["first"]["w"] + params["first"]["b"][None, :])
    return u @ params["last"] * params["scale"]


def scalar(params: Any, x: Any) -> Any:
    return mlp(params, x)[:, 0]


def parameters(outputs: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    first = {"w": rng.normal(size=(D, 6)) / 2, "b": rng.normal(size=6)}
    drawn = {"first": first, "last": rng.normal(size=(6, outputs)) / 2, "scale": np.array(0.7)}
    leaves = jax.tree.map(lambda a: jnp.asarray(a, np.float32), drawn)
    return leaves | {"steps": jnp.asarray(7, jnp.int32)}


def jacobian(params: Any, x: np.ndarray) -> np.ndarray:
    """(n, K, P) in float64, by hand."""
    first, last = params["first"], np.asarray(params["last"], float)
    scale = float(params["scale"])
    x = x.astype(float)
    u = np.tanh(x @ np.asarray(first["w"], float) + np.asarray(first["b"], float))
    outputs = last.shape[1]
    rows = []
    for k in range(outputs):
        to_u = scale * last[:, k] * (1 - u**2)
        to_w = np.einsum("nd,nh->ndh", x, to_u).reshape(len(x), -1)
        to_last = np.zeros((len(x), *last.shape))
        to_last[:, :, k] = scale * u
        to_scale = u @ last[:, k]
        rows.append(np.hstack([to_u, to_w, to_last.reshape(len(x), -1), to_scale[:, None]]))
    return np.stack(rows, axis=1)


def dense(params: Any, z: np.ndarray, x: np.ndarray, output: int | None = None) -> np.ndarray:
    at_z, at_x = jacobian(params, z), jacobian(params, x)
    if output is not None:
        at_z, at_x = at_z[:, output : output + 1], at_x[:, output : output + 1]
    return np.einsum("mkp,nkp->mn", at_z, at_x) / at_z.shape[1]


def input_gradient(params: Any, z: np.ndarray, x: np.ndarray, coef: np.ndarray) -> np.ndarray:
    """(m, d), by central differences in float64."""
    step = 1e-5
    columns = []
    for direction in step * np.eye(D):
        above = dense(params, z + direction, x) @ coef
        below = dense(params, z - direction, x) @ coef
        columns.append((above - below) / (2 * step))
    return np.stack(columns, axis=1)


# --- values, products, gradients ---


@pytest.mark.parametrize(("outputs", "output"), [(1, None), (3, None), (3, 2)])
def test_matrix_and_products_are_those_of_jacobians(outputs, output):
    params = parameters(outputs)
    kernel = pk.EmpiricalNTK(mlp, params, output=output)
    expected = dense(params, Z, X, output)
    size = np.abs(expected).max()
    assert_allclose(kernel.ntk(Z, X), expected, atol=1e-5 * size)
    for coef in (COEF[:, 0], COEF):
        found = kernel.matvec(Z, X, coef)
        assert_allclose(found, expected @ coef, atol=1e-4 * size)


class InTiles(pk.EmpiricalNTK):
    """Takes no passes."""

    def prefers_weights(self, *_):
        return False


class InBlocks(pk.EmpiricalNTK):
    """Other programs than those of its parent."""


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("kind", [pk.EmpiricalNTK, InTiles])
def test_input_gradients_are_those_of_differences(outputs, kind):
    params = parameters(outputs)
    kernel = kind(mlp, params)
    expected = input_gradient(params, Z, X, COEF[:, 0])
    size = np.abs(expected).max()
    assert_allclose(kernel.input_gradient(Z, X, COEF[:, 0]), expected, atol=1e-5 * size)
    both = expected * WEIGHTS[:, :1]
    both += input_gradient(params, Z, X, COEF[:, 1]) * WEIGHTS[:, 1:]
    found = kernel.input_gradient(Z, X, COEF, WEIGHTS)
    assert_allclose(found, both, atol=1e-5 * np.abs(both).max())


def test_passes_are_taken_unless_columns_are_many():
    kernel = pk.EmpiricalNTK(mlp, parameters(1))
    takes = partial(kernel.prefers_weights, "ntk")
    assert takes(1, 1, 1, (D,)) and takes(800, 800, 100, (D,))
    assert not takes(800, 800, 800, (D,))
    many = RNG.normal(size=(N, 40)).astype(np.float32)
    assert not features.takes(kernel, "ntk", Z, X, many)
    expected = dense(parameters(1), Z, X) @ many
    assert_allclose(kernel.matvec(Z, X, many), expected, atol=1e-4 * np.abs(expected).max())


def test_blocks_of_rows_change_nothing(monkeypatch):
    """Sums, and their derivatives in what they are made of, cut into parts of four rows."""

    def results(kernel):
        value, pull_back = jax.vjp(kernel.matvec, jnp.asarray(Z), jnp.asarray(X), COEF[:, 0])
        gradient = kernel.input_gradient(Z, X, COEF[:, 0])
        return value, gradient, *pull_back(jnp.asarray(WEIGHTS[:, 0]))

    whole = results(pk.EmpiricalNTK(mlp, parameters(1)))
    monkeypatch.setattr(features, "rows_at_once", lambda *_: 4)
    parts = results(InBlocks(mlp, parameters(1)))
    for in_blocks, at_once in zip(parts, whole, strict=True):
        assert_allclose(in_blocks, at_once, atol=2e-6 * np.abs(at_once).max())


class MatrixInBlocks(pk.EmpiricalNTK):
    """Other programs than those of its parent."""


@pytest.mark.parametrize("shape", [(4, 3), (5, 11), (17, 3)])
def test_blocks_of_the_matrix_change_nothing(shape, monkeypatch):
    """Whether one side of the diagonal is evaluated or all, and their derivatives."""
    params = parameters(3)
    # Structures are compared: another output for another shape of blocks.
    output = [(4, 3), (5, 11), (17, 3)].index(shape)
    expected = dense(params, X, X, output)
    size = np.abs(expected).max()
    monkeypatch.setattr(features, "block_shape", lambda *_: shape)
    kernel = MatrixInBlocks(mlp, params, output=output)
    x = jnp.asarray(X)
    assert_allclose(kernel.ntk(x), expected, atol=1e-5 * size)
    assert_allclose(kernel.ntk(x, Z), dense(params, X, Z, output), atol=1e-5 * size)

    def quadratic(x):
        return COEF[:, 0] @ kernel.ntk(x) @ COEF[:, 0]

    step = 1e-5 * RNG.normal(size=X.shape)
    ends = [
        COEF[:, 0] @ dense(params, X + sign * step, X + sign * step, output) @ COEF[:, 0]
        for sign in (1, -1)
    ]
    expected = (ends[0] - ends[1]) / 2
    found = np.sum(np.asarray(jax.grad(quadratic)(x), float) * step)
    assert_allclose(found, expected, rtol=2e-3, atol=1e-5 * size * np.abs(step).max())


def test_blocks_fit_into_the_memory_and_hold_all_where_they_can():
    kernel = pk.EmpiricalNTK(mlp, parameters(1))
    each = features.feature_numbers(kernel, (D,))
    for memory in (2**20, 2**24, 2**30):
        for n, m in ((5000, 3000), (3000, 5000), (10, 5000), (1, 1)):
            rows, columns = features.block_shape(kernel, n, m, (D,), 4, memory)
            # Sizes are rounded up to whole vectors.
            slack = (rows + 8) / rows * (columns + 8) / columns
            assert 4 * (rows * columns + each * (rows + columns)) <= slack * memory
    assert features.block_shape(kernel, 500, 300, (D,), 4, 2**30) == (500, 300)


def test_float64_inputs_convert_the_parameters():
    params = parameters(1)
    with jax.enable_x64(True):
        found = pk.EmpiricalNTK(mlp, params).ntk(Z.astype(float), X.astype(float))
    expected = dense(params, Z, X)
    assert found.dtype == np.float64
    assert_allclose(found, expected, rtol=1e-12, atol=1e-13 * np.abs(expected).max())


def test_float64_parameters_keep_their_digits_whatever_jaxs_setting():
    given = {"w": RNG.normal(size=(2, 3)), "steps": np.arange(2)}
    with jax.enable_x64(False):
        held = pk.EmpiricalNTK(mlp, given).params
    assert held["w"].dtype == np.float64
    np.testing.assert_array_equal(held["w"], given["w"])


def test_a_convolution_is_its_jacobian():
    def convolution(params, x):
        h = jnp.tanh(jax.lax.conv_general_dilated(x, params[0], (1, 1), "SAME", **layout))
        return h.reshape(len(x), -1) @ params[1]

    layout: Any = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    params = [jnp.asarray(RNG.normal(size=s), np.float32) for s in ((3, 3, 1, 2), (24,))]
    x = RNG.normal(size=(5, 4, 3, 1)).astype(np.float32)
    flat, restore = ravel_pytree(params)
    rows = np.asarray(jax.jacrev(lambda p: convolution(restore(p), x))(flat), float)
    kernel = pk.EmpiricalNTK(convolution, params)
    assert_allclose(kernel.ntk(x), rows @ rows.T, rtol=1e-5)
    coef = COEF[:5, 0]
    assert_allclose(kernel.matvec(x, x, coef), rows @ rows.T @ coef, rtol=1e-4, atol=1e-4)


# --- parameters are arguments ---


def test_the_next_checkpoint_compiles_nothing():
    """Fits, outputs, gradients and attacks at other parameters are programs that are there."""

    def everything(seed):
        kernel = pk.EmpiricalNTK(scalar, parameters(1, seed))
        f = pk.fit(kernel, X, Y, loss="squared")
        pk.attack(f, Z, Y[:M], size=0.1, steps=2)
        return np.asarray(f(Z)), np.asarray(kernel.ntk(X))

    first = everything(0)
    with compilations() as compiled:
        second = everything(1)
        assert compiled() == 0
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(first, second, strict=True))


def test_predictors_are_pytrees_with_the_parameters_as_leaves():
    params = parameters(1)
    f = pk.fit(pk.EmpiricalNTK(mlp, params), X, Y)
    held = [id(leaf) for leaf in jax.tree.leaves(f)]
    assert id(f.kernel.params["last"]) in held  # pyright: ignore[reportAttributeAccessIssue]
    inside = jax.jit(lambda f, z: f(z))(f, jnp.asarray(Z))
    assert_allclose(inside, f(Z), rtol=1e-6)
    with jax.enable_x64(False):
        wide = pk.fit(pk.EmpiricalNTK(mlp, params), X, Y, loss="squared", precision=64)
        traced = jax.jit(lambda f, z: f(z))(wide, jnp.asarray(Z))
    assert wide.dual_coef.dtype == np.float64
    assert_allclose(traced, wide(Z), rtol=1e-6)


def test_products_are_differentiated_in_the_parameters_and_tiles_say_that_they_are_not():
    def total(params, coef):
        return pk.EmpiricalNTK(scalar, params).matvec(Z, X, coef).sum()

    params = parameters(1)
    rest = {k: v for k, v in params.items() if k != "last"}
    last = params["last"]
    direction = RNG.normal(size=last.shape).astype(np.float32)
    coef = COEF[:, 0]
    gradient = jax.grad(lambda last: total(rest | {"last": last}, coef))(last)
    step = 1e-4
    ends = [np.asarray(last, float) + sign * step * direction for sign in (1, -1)]
    above, below = (dense(rest | {"last": end}, Z, X) @ coef for end in ends)
    expected = (above - below).sum() / (2 * step)
    assert_allclose(np.sum(gradient * direction), expected, rtol=1e-4)
    many = jnp.asarray(RNG.normal(size=(N, 40)), np.float32)
    with pytest.raises(TypeError, match="not differentiated in the arrays that a kernel holds"):
        jax.grad(lambda last: total(rest | {"last": last}, many))(last)


# --- training gives weights back ---


@pytest.mark.parametrize("loss", ["identity", "squared", "logistic"])
@pytest.mark.parametrize("start", [True, False])
def test_fit_is_descent_on_the_linearised_network(loss, start):
    """Heavy ball on parameters, step by step: the same outputs, and the same parameters."""
    losses = {
        "identity": lambda f, y: -jnp.mean(y * f),
        "squared": lambda f, y: jnp.mean((f - y) ** 2) / 2,
        "logistic": lambda f, y: jnp.mean(jnp.log1p(jnp.exp(-y * f))),
    }
    rate, steps, momentum = 0.05, 40, 0.6
    y = Y.astype(float)
    with jax.enable_x64(True):
        params = jax.tree.map(
            lambda a: a.astype(float) if a.dtype == np.float32 else a, parameters(1)
        )
        steps_left = params.pop("steps")
        network = pk.linearize(mlp, params)
        before = network(X.astype(float)) if start else None
        zero = 0.0 if start else network(X.astype(float))

        @jax.jit
        def gradient(p):
            return jax.grad(lambda p: losses[loss](network.at(p)(X.astype(float)) - zero, y))(p)

        p, last = params, params
        for _ in range(steps):
            slope = gradient(p)
            step = jax.tree.map(lambda a, b, g: momentum * (a - b) - rate * g, p, last, slope)
            p, last = jax.tree.map(jnp.add, p, step), p
        dynamics = pk.HeavyBall(rate, steps, momentum)
        f = pk.fit(
            network.kernel(),
            X.astype(float),
            y,
            loss=loss,
            dynamics=dynamics,
            initial=network if start else None,
        )
        found = f.parameters()
        for name, leaf in jax.tree.leaves_with_path(p):
            own = dict(jax.tree.leaves_with_path(found))[name]
            assert_allclose(own, leaf, rtol=1e-9, atol=1e-10)
        z = Z.astype(float)
        shift = 0.0 if start else np.asarray(network(z))
        assert_allclose(f(z) + shift, network.at(found)(z), rtol=1e-9, atol=1e-10)
    assert before is None or np.abs(before).max() > 0.1
    assert int(steps_left) == 7


def test_wide_networks_have_the_kernel_of_infinite_width():
    """Width 10^4: entries deviate by some hundredths, as 1 / sqrt(width) says."""
    net = TwoLayerNetwork.init(D, 10_000, 0.3, True, key=jax.random.key(1))

    def apply(params, x):
        u = x @ params["weight"].T + params["bias"][None, :]
        return jnp.where(u > 0, u, net.slope * u) @ net.readout

    trained = {"weight": net.weight, "bias": net.bias}
    found = np.asarray(pk.EmpiricalNTK(apply, trained).ntk(X))
    limit = np.asarray(net.kernel.ntk(X))
    assert np.abs(found - limit).max() < 6 / 100 * np.abs(limit).max()
    assert np.abs(found - limit).max() > 1e-4


# --- the rest of the package on it ---


def test_a_second_network_learns_from_perturbations():
    kernel = pk.EmpiricalNTK(scalar, parameters(1))
    learner = pk.KernelLearner(kernel, loss="logistic", dynamics=pk.GradientFlow(10.0))
    f = learner(jnp.asarray(X), jnp.asarray(Y))
    closest = pk.minimum_norm(f, X, Y)
    assert np.isfinite(np.asarray(closest.size)).any()
    delta = pk.perturb(f, X, Y, size=0.3, norm="l2").delta
    assert np.mean(f(X + delta) * Y) > np.mean(f(X) * Y)
    learned = pk.learn_from_perturbations(
        learner, (X, Y), size=0.3, scenario="b", key=jax.random.key(0)
    )
    assert learned.g.kernel is kernel and np.isfinite(np.asarray(learned.g(Z))).all()
    assert learned.diagnosis is not None


def test_a_file_is_read_with_the_kernel_given_again(tmp_path):
    kernel = pk.EmpiricalNTK(mlp, parameters(1))
    f = pk.fit(kernel, X, Y, loss="squared")
    f.save(tmp_path / "f.npz")
    again = pk.KernelPredictor.load(tmp_path / "f.npz", kernel=kernel)
    assert_allclose(again(Z), f(Z), rtol=1e-6)
    with pytest.raises(ValueError, match="another kernel than EmpiricalNTK"):
        other = pk.EmpiricalNTK(mlp, parameters(1, seed=5))
        pk.KernelPredictor.load(tmp_path / "f.npz", kernel=other)
    with pytest.raises(ValueError, match="class EmpiricalNTK; give it as kernel="):
        pk.KernelPredictor.load(tmp_path / "f.npz")


@pytest.mark.parametrize("columns", [1, 40])
def test_a_mesh_of_one_device_changes_nothing(columns):
    """With passes and with tiles."""
    mesh = jax.make_mesh((1,), ("i",))
    kernel = pk.EmpiricalNTK(mlp, parameters(1))
    coef = RNG.normal(size=(N, columns)).astype(np.float32)
    weights = RNG.normal(size=(M, columns)).astype(np.float32)
    for call in (
        partial(kernel.matvec, Z, X, coef),
        partial(kernel.input_gradient, Z, X, coef, weights),
    ):
        alone = call()
        assert_allclose(call(mesh=mesh), alone, atol=1e-5 * np.abs(alone).max())


def test_progress_and_plan():
    class Progress:
        done = 0

        def update(self, count):
            self.done += count

    kernel = pk.EmpiricalNTK(mlp, parameters(1))
    kernel.matvec(Z, X, COEF[:, 0], progress=(seen := Progress()))
    assert seen.done == M


def test_plans_count_passes_and_blocks():
    kernel = pk.EmpiricalNTK(mlp, parameters(1), memory=2**20)
    forecast = partial(kernel.plan, d=D, rate=1e9)
    small, large = forecast(10_000, 5_000), forecast(40_000, 20_000)
    assert large.operations == 4 * small.operations and small.memory <= 2**20
    rows = features.rows_at_once(kernel, (D,), 4)
    assert max(large.tile) <= rows + 8 and large.tiles >= 60_000 / (rows + 8)
    # A pass forward and back, of two operations a parameter or more, less those of no product.
    count = network.parameter_count(kernel.params)
    assert 2 * count * 15_000 < small.operations < 20 * count * 15_000
    # Each output takes a pass back of its own.
    of_one, of_all = (
        pk.EmpiricalNTK(mlp, parameters(9), output=k).plan(100, 50, D, rate=1e9).operations
        for k in (0, None)
    )
    assert 4 * of_one < of_all < 12 * of_one
    gradient = forecast(10_000, 5_000, what="input_gradient")
    assert small.operations < gradient.operations < 2 * small.operations
    # Many columns for few points go by tiles, each pair by itself.
    tiles = [forecast(n, n, columns=400).operations for n in (100, 200)]
    assert tiles[1] == 4 * tiles[0]
    matrix = forecast(3000, 2000, what="ntk")
    assert matrix.tile[::-1] == features.block_shape(kernel, 3000, 2000, (D,), 4)
    assert matrix.memory <= 1.1 * 2**20 and "ntk" in str(matrix)
    assert kernel.plan(1000, 500, D).rate > 0


# --- what is refused ---

wrong: Any = None


def mean_of_rows(params, x):
    return mlp(params, x - x.mean(axis=0, keepdims=True))


def hidden_mixing(params, x):
    """Whose outputs are zero: only gradients tell."""
    return mlp(params, x - x.mean(axis=0, keepdims=True)) * 0 + mean_of_rows(params, x) * 1e-12


def dropout(params, x):
    mask = jax.random.bernoulli(jax.random.key(0), 0.5, (len(x), D))
    return mlp(params, jnp.where(mask, x, 0))


@pytest.mark.parametrize("apply", [mean_of_rows, hidden_mixing, dropout])
def test_networks_that_mix_rows_are_refused(apply):
    with pytest.raises(ValueError, match=r"two rows of inputs .* mixes rows, or is random"):
        pk.fit(pk.EmpiricalNTK(apply, parameters(1)), X, Y)


@pytest.mark.parametrize(
    ("error", "match", "make"),
    [
        (TypeError, "apply must be a function", lambda p: pk.EmpiricalNTK(wrong, p)),
        (TypeError, "leaf str", lambda p: pk.EmpiricalNTK(mlp, {"w": "relu"})),
        (TypeError, "must be real", lambda p: pk.EmpiricalNTK(mlp, jnp.ones(2, complex))),
        (TypeError, "random key", lambda p: pk.EmpiricalNTK(mlp, p | {"key": jax.random.key(0)})),
        (ValueError, "hold floating-point", lambda p: pk.EmpiricalNTK(mlp, [jnp.arange(2)])),
        (ValueError, "output must be", lambda p: pk.EmpiricalNTK(mlp, p, output=-1)),
        (ValueError, "1 outputs", lambda p: pk.EmpiricalNTK(mlp, p, output=1).ntk(X)),
        (ValueError, "memory must", lambda p: pk.EmpiricalNTK(mlp, p, memory=10)),
        (
            ValueError,
            r"apply\(params, x\) must map inputs",
            lambda p: pk.EmpiricalNTK(lambda p, x: p["last"].sum(), p).ntk(X),
        ),
        (TypeError, "nngp", lambda p: pk.EmpiricalNTK(mlp, p).nngp(X)),
    ],
)
def test_wrong_input_is_told_in_words(error, match, make):
    with pytest.raises(error, match=match):
        make(parameters(1))


def test_parameters_belong_to_one_output():
    several = pk.fit(pk.EmpiricalNTK(mlp, parameters(3)), X, Y)
    with pytest.raises(TypeError, match="parameters belong to one output"):
        several.parameters()
    one = pk.fit(pk.EmpiricalNTK(mlp, parameters(3), output=1), X, Y)
    shift = one.parameters()["last"] - parameters(3)["last"]
    assert np.abs(shift[:, 1]).max() > 0 and np.abs(shift[:, 0]).max() == 0
    with pytest.raises(TypeError, match="parameters belong to EmpiricalNTK"):
        pk.fit(pk.TwoLayerNTK(), X, Y).parameters()
