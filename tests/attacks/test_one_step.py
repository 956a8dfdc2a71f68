"""perturbations.py: sizes, directions and flags of perturbations of every kind of predictor."""

import functools
import tracemalloc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from common import DTYPES, D, N, precision, representable

import perturbkernel as pk
from perturbkernel import metrics
from perturbkernel.attacks import norms
from perturbkernel.kernels.stax_kernels import load_neural_tangents
from perturbkernel.training import predictors

# Any, for the type checker: NumPy arrays and lists are welcome where signatures say Array; bad
# input is meant here.
fit: Any = pk.fit
perturb: Any = pk.perturb
cosine: Any = metrics.cosine
normalise: Any = norms.normalise
input_gradient: Any = predictors.input_gradient
KERNEL: Any = pk.TwoLayerNTK(0.2, True)
INF, NAN = float("inf"), float("nan")

RNG = np.random.default_rng(4)
X = representable(RNG.normal(size=(N, D)), np.float32)
Y = np.where(X[:, 0] + RNG.normal(size=N) > 0, 1.0, -1.0)
TARGETS = np.where(np.arange(N) % 3 == 0, 1.0, -1.0)
# The rounding of a normalised vector; of a sum of N gradients before that.
ERROR = {np.float32: 1e-5, np.float64: 1e-12}


def trained(dtype: Any = np.float32, x: Any = X, y: Any = Y, **options) -> Any:
    with precision(dtype):
        return fit(KERNEL, np.asarray(x, dtype), y, dynamics=pk.GradientFlow(3.0), **options)


@functools.cache
def predictor(dtype: Any = np.float32) -> Any:
    return trained(dtype)


def lengths(delta: Any, norm: str) -> np.ndarray:
    flat = np.asarray(delta, float).reshape(len(delta), -1)
    return np.linalg.norm(flat, axis=1) if norm == "l2" else np.abs(flat).max(axis=1)


def wave(z):
    """A function of anything (n, ...), with outputs (n,) and a gradient that is zero nowhere."""
    flat = z.reshape(len(z), -1)
    return (
        jnp.sin(flat @ jnp.arange(1.0, flat.shape[1] + 1, dtype=z.dtype) / flat.shape[1])
        + 2 * flat[:, 0]
    )


# --- sizes and directions ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("direction", ["gradient", "frozen_gates"])
def test_perturbations_equal_the_reference(dtype, norm, direction):
    """At the training points themselves."""
    dual = 3 * Y / N
    if direction == "gradient":
        gradient = oracle.input_gradient(X, X, dual, 0.2, True)
    else:
        gradient = oracle.frozen_gate_direction(X, X, dual, 0.2)
    exact, _ = oracle.perturb(gradient, TARGETS, 0.14, norm)
    with precision(dtype):
        p = perturb(
            predictor(dtype), X.astype(dtype), TARGETS, size=0.14, norm=norm, direction=direction
        )
    assert p.delta.dtype == p.targets.dtype == dtype
    assert np.abs(np.asarray(p.delta, float) - exact).max() <= 0.14 * ERROR[dtype]
    assert not np.asarray(p.zero_gradient).any()
    np.testing.assert_array_equal(p.targets, TARGETS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(D,), (4, 3, 2)], ids=["vectors", "images"])
@pytest.mark.parametrize("size", [1e-6, 0.14, 1e3])
def test_sizes_are_met_to_rounding(dtype, shape, size):
    """A norm over all axes but the first, in the units of the inputs."""
    x = np.random.default_rng(5).normal(size=(N, *shape)).astype(dtype)
    with precision(dtype):
        for norm in ("l2", "linf"):
            p = perturb(wave, x, TARGETS, size=size, norm=norm)
            assert p.delta.shape == x.shape
            np.testing.assert_allclose(lengths(p.delta, norm), size, rtol=8 * np.finfo(dtype).eps)
        # Linf: every entry.
        np.testing.assert_allclose(np.abs(p.delta), size, rtol=np.finfo(dtype).eps)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("direction", ["gradient", "frozen_gates"])
def test_outputs_move_with_the_targets(norm, direction, x64):
    f, size = predictor(np.float64), 1e-4
    p = perturb(f, X, TARGETS, size=size, norm=norm, direction=direction)
    assert (np.asarray(f(X + p.delta) - f(X)) * TARGETS > 0).all()
    if (
        direction == "gradient"
    ):  # the best direction of its norm: the dual norm of the gradient, to first order
        gradient = np.asarray(f.input_gradient(X))
        slope = np.linalg.norm(gradient, axis=1) if norm == "l2" else np.abs(gradient).sum(axis=1)
        # A central difference, as the predictor has a cone at its training points (theory 0.4); it
        # leaves O(size).
        rise = np.asarray(f(X + p.delta) - f(X - p.delta)) / 2 * TARGETS
        np.testing.assert_allclose(rise, size * slope, rtol=1e-3)


def test_perturbations_are_linear_in_size_and_odd_in_targets(x64):
    """Theory 8.1: target times perturbation does not depend on the target."""
    f = predictor(np.float64)
    one = perturb(f, X, TARGETS, size=1.0).delta
    np.testing.assert_array_equal(perturb(f, X, -TARGETS, size=1.0).delta, -one)
    np.testing.assert_array_equal(perturb(f, X, np.ones(N), size=1.0).delta, TARGETS[:, None] * one)
    np.testing.assert_allclose(perturb(f, X, TARGETS, size=0.25).delta, one / 4, rtol=1e-15)
    none = perturb(f, X, TARGETS, size=0)
    assert not np.asarray(none.delta).any()
    assert not np.asarray(none.zero_gradient).any()


def test_the_scale_of_a_predictor_does_not_matter(x64):
    f = predictor(np.float64)
    exact = perturb(f, X, TARGETS, size=0.14).delta
    for factor in (1e-12, 7.0, 1e12):
        scaled = eqx.tree_at(lambda f: f.dual_coef, f, factor * f.dual_coef)
        np.testing.assert_allclose(
            perturb(scaled, X, TARGETS, size=0.14).delta, exact, rtol=1e-11, atol=1e-14
        )


# --- predictors of other kinds ---


def mlp() -> Any:
    return eqx.nn.MLP(D, 1, 8, 2, key=jax.random.key(1))


@pytest.mark.parametrize(
    "function",
    [
        wave,
        lambda z: wave(z)[:, None],
        jax.jit(wave),
        jax.vmap(mlp()),
        lambda z: jax.vmap(mlp())(z)[:, 0],
    ],
    ids=["function", "column", "compiled", "Equinox column", "Equinox"],
)
def test_any_differentiable_function_can_be_attacked(function):
    x = X.astype(np.float32)
    gradient = np.stack([jax.grad(lambda p: function(p[None]).reshape(()))(row) for row in x])
    exact, _ = oracle.perturb(gradient, TARGETS, 0.14, "l2")
    np.testing.assert_allclose(perturb(function, x, TARGETS, size=0.14).delta, exact, atol=1e-6)
    np.testing.assert_allclose(input_gradient(function, x), gradient, rtol=1e-4, atol=1e-6)


def test_an_initial_function_is_attacked_too(x64):
    f = trained(np.float64, initial=wave)
    for direction, reference in (("gradient", oracle.input_gradient), ("frozen_gates", None)):
        gradient = np.asarray(input_gradient(wave, jnp.asarray(X)))
        if reference is None:
            gradient = gradient + oracle.frozen_gate_direction(X, X, 3 * Y / N, 0.2)
        else:
            gradient = gradient + reference(X, X, 3 * Y / N, 0.2, True)
        exact, _ = oracle.perturb(gradient, TARGETS, 0.14, "l2")
        np.testing.assert_allclose(
            perturb(f, X, TARGETS, size=0.14, direction=direction).delta, exact, atol=1e-13
        )


def test_perturb_can_be_compiled_and_the_size_traced():
    f, x = predictor(), X.astype(np.float32)

    def traced(f, x, size):
        return perturb(f, x, TARGETS, size=size, bounds=(-2, 2))

    compiled = jax.jit(eqx.debug.assert_max_traces(traced, max_traces=1))
    for size in (0.14, 3.0):
        p, q = compiled(f, x, size), perturb(f, x, TARGETS, size=size, bounds=(-2, 2))
        np.testing.assert_allclose(p.delta, q.delta, atol=1e-5 * size)
        np.testing.assert_array_equal(p.zero_gradient, q.zero_gradient)


# --- gradients that are zero, tiny, or not finite ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("direction", ["gradient", "frozen_gates"])
def test_cancelling_gradients_are_flagged_and_left_alone(dtype, direction):
    """Every point twice, with opposite labels: the gradient is zero in theory, rounding errors in
    practice.
    """
    x = np.concatenate([X[:8], X[:8], X[:1]])
    y = np.concatenate([Y[:8], -Y[:8], Y[:1]])
    coef = np.where(np.arange(N) == N - 1, 0, y)
    rolled = np.roll(np.arange(N), 5)  # neighbours do not cancel exactly
    with precision(dtype):
        f = eqx.tree_at(
            lambda f: f.dual_coef,
            trained(dtype, x[rolled], y[rolled]),
            jnp.asarray(coef[rolled], dtype),
        )
        for norm in ("l2", "linf"):
            p = perturb(f, X.astype(dtype), TARGETS, size=0.14, norm=norm, direction=direction)
            assert np.asarray(p.zero_gradient).all()
            assert not np.asarray(p.delta).any()
            assert np.isfinite(p.delta).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("bounds", [None, (0.2, 0.3)])
def test_rows_without_gradient_are_flagged_and_left_alone(norm, bounds):
    """Bounds do not move them either."""
    flat = lambda z: jnp.where(z[:, 0] > 0, wave(z), 1.0)  # noqa: E731
    x = X.astype(np.float32)
    p = perturb(flat, x, TARGETS, size=0.14, norm=norm, bounds=bounds)
    zero = x[:, 0] <= 0
    assert 3 < zero.sum() < N - 3
    np.testing.assert_array_equal(p.zero_gradient, zero)
    assert not np.asarray(p.delta)[zero].any()
    assert (lengths(p.delta, norm)[~zero] > 0).all()
    assert np.isfinite(p.delta).all()


def test_an_untrained_predictor_has_no_direction():
    f = fit(KERNEL, X, Y, dynamics=pk.GradientFlow(0.0))
    assert np.asarray(perturb(f, X, TARGETS, size=0.14).zero_gradient).all()


@pytest.mark.parametrize("factor", [1e-34, 1e-30, 1e20, 1e34])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_tiny_and_huge_gradients_are_normalised_without_underflow(factor, norm):
    """Their squares leave float32 at 1e-23 and 1e19; entries of the gradients themselves, at 1e-38
    and 1e38, do not.
    """
    x = X.astype(np.float32)
    exact = perturb(wave, x, TARGETS, size=0.14, norm=norm).delta
    p = perturb(lambda z: jnp.float32(factor) * wave(z), x, TARGETS, size=0.14, norm=norm)
    assert not np.asarray(p.zero_gradient).any()
    np.testing.assert_allclose(p.delta, exact, atol=1e-6)
    f = predictor()
    exact = perturb(f, x, TARGETS, size=0.14, norm=norm).delta
    f = eqx.tree_at(lambda f: f.dual_coef, f, jnp.float32(factor) * f.dual_coef)
    p = perturb(f, x, TARGETS, size=0.14, norm=norm)
    assert not np.asarray(p.zero_gradient).any()
    np.testing.assert_allclose(p.delta, exact, atol=1e-4)


def test_a_saturated_loss_does_not_shorten_perturbations():
    """The gradient of a logistic loss underflows at margins of 104 in float32; the predictor's does
    not.
    """
    f = fit(KERNEL, X, Y, dynamics=pk.GradientFlow(1e4))
    assert (Y * f(X)).max() > 104
    np.testing.assert_allclose(
        lengths(perturb(f, X, TARGETS, size=0.14).delta, "l2"), 0.14, rtol=1e-6
    )


@pytest.mark.parametrize("value", [NAN, INF])
def test_gradients_that_are_not_finite_raise(value):
    broken = lambda z: wave(z) * jnp.where(jnp.arange(N) % 5 == 2, value, 1.0)  # noqa: E731
    with pytest.raises(
        ValueError, match=r"^predictor must have finite gradients; 3 rows have not \(row 2\)$"
    ):
        perturb(broken, X, TARGETS, size=0.14)
    with pytest.raises(ValueError, match=r"finite gradients; 17 rows have not \(row 0\)"):
        perturb(lambda z: jnp.sqrt(jnp.sum(0 * z, axis=1)), X, TARGETS, size=0.14)


# --- bounds ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_bounds_clip_the_perturbed_inputs(dtype, norm):
    x = np.clip(X, 0, 1).astype(dtype)
    with precision(dtype):
        f = predictor(dtype)
        free = perturb(f, x, TARGETS, size=0.5, norm=norm)
        p = perturb(f, x, TARGETS, size=0.5, norm=norm, bounds=(0, 1))
    perturbed = x + np.asarray(p.delta)
    eps = np.finfo(dtype).eps
    assert perturbed.min() >= -eps
    assert perturbed.max() <= 1 + eps
    np.testing.assert_allclose(perturbed, np.clip(x + np.asarray(free.delta), 0, 1), atol=2 * eps)
    assert (lengths(p.delta, norm) <= 0.5 + 4 * eps).all()
    assert not np.allclose(p.delta, free.delta, atol=1e-3)


def test_bounds_may_be_arrays_and_are_left_unused_when_wide():
    x, f = X.astype(np.float32), predictor()
    free = perturb(f, x, TARGETS, size=0.5).delta
    wide = perturb(f, x, TARGETS, size=0.5, bounds=(-100, 100)).delta
    np.testing.assert_allclose(wide, free, atol=1e-6)  # (x + delta) - x
    low = np.where(np.arange(D) == 0, -9.0, 0.0)
    each = perturb(f, x, TARGETS, size=0.5, bounds=(low, low + 10)).delta
    np.testing.assert_allclose(
        x + np.asarray(each), np.clip(x + np.asarray(free), low, low + 10), atol=1e-6
    )


# --- the helpers ---


def test_normalise():
    g = np.array([[3.0, 4.0], [0.0, 0.0], [-1e-30, 0.0], [1e30, -1e30]], np.float32)
    exact = [[0.6, 0.8], [0, 0], [-1, 0], [np.sqrt(0.5), -np.sqrt(0.5)]]
    np.testing.assert_allclose(normalise(g, "l2"), exact, rtol=1e-6)
    np.testing.assert_array_equal(normalise(g, "linf"), np.sign(g))


def test_cosine():
    a = np.array([[1.0, 0.0], [1e-30, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]], np.float32)
    b = np.array([[2.0, 0.0], [-1.0, 0.0], [0.0, 1e30], [1.0, 0.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(cosine(a, b), [1, -1, np.sqrt(0.5), NAN, NAN], rtol=1e-6)
    image = np.ones((2, 3, 3, 1), np.float32)
    np.testing.assert_allclose(cosine(image, -image), [-1, -1], rtol=1e-6)


# --- messages ---


def other_kernel() -> Any:
    stax: Any = load_neural_tangents()
    return fit(pk.ArchitectureNTK(stax.Dense(1)), X, Y)


BAD = [
    ({"size": -0.1}, ValueError, "size must be >= 0 and finite; got -0.1"),
    ({"size": NAN}, ValueError, "size must be >= 0 and finite; got nan"),
    ({"size": INF}, ValueError, "size must be >= 0 and finite; got inf"),
    ({"size": "1"}, TypeError, "size must be a number; got '1'"),
    ({"size": np.ones(N)}, TypeError, "size must be a number"),
    ({"norm": "l1"}, ValueError, "norm must be one of 'l2', 'linf'; got 'l1'"),
    ({"norm": 2}, ValueError, "norm must be one of 'l2', 'linf'; got 2"),
    (
        {"direction": "sign"},
        ValueError,
        "direction must be one of 'gradient', 'frozen_gates'; got 'sign'",
    ),
    ({"inputs": X[0]}, ValueError, r"inputs must have shape .*a single point is inputs\[None\]"),
    ({"inputs": X[:0]}, ValueError, "inputs must not be empty"),
    ({"inputs": X * NAN}, ValueError, "inputs must be finite"),
    (
        {"inputs": X[:, :2]},
        ValueError,
        r"must have rows of shape \(5,\), as the training inputs; got \(2,\)",
    ),
    ({"targets": TARGETS[:3]}, ValueError, r"targets must have shape \(17,\).*got \(3,\)"),
    ({"targets": TARGETS[:, None]}, ValueError, r"got \(17, 1\); use targets\.ravel\(\)"),
    ({"targets": np.zeros(N)}, ValueError, r"targets must be -1 or \+1; found 0"),
    ({"targets": TARGETS * NAN}, ValueError, "targets must be finite"),
    ({"bounds": (1, 0)}, ValueError, r"bounds must have low < high; got \(1, 0\)"),
    ({"bounds": (0, 0)}, ValueError, "bounds must have low < high"),
    ({"bounds": (0, NAN)}, ValueError, "bounds must have low < high"),
    ({"bounds": (0, 1, 2)}, ValueError, r"bounds must be \(low, high\); got \(0, 1, 2\)"),
    ({"bounds": 1}, ValueError, r"bounds must be \(low, high\); got 1"),
    ({"bounds": ("low", 1)}, ValueError, r"bounds must be \(low, high\); got"),
    (
        {"predictor": lambda z: z},
        ValueError,
        r"predictor must map inputs \(17, 5\) to one output a row, \(17,\)",
    ),
    ({"predictor": lambda z: z.sum()}, ValueError, r"to one output a row, \(17,\); it gave \(\)"),
    ({"predictor": 3}, TypeError, "callable"),
    (
        {"predictor": wave, "direction": "frozen_gates"},
        TypeError,
        r"needs a KernelPredictor .*; got function",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_arguments_say_what_is_wrong(changes, error, message):
    arguments = {"predictor": predictor(), "inputs": X, "targets": TARGETS, "size": 0.14} | changes
    positional = [arguments.pop(name) for name in ("predictor", "inputs", "targets")]
    with pytest.raises(error, match=message):
        perturb(*positional, **arguments)


def test_frozen_gates_of_another_kernel_raise():
    with pytest.raises(
        TypeError, match=r'frozen gates belong to TwoLayerNTK.*Use direction="gradient"'
    ):
        perturb(other_kernel(), X, TARGETS, size=0.14, direction="frozen_gates")


def test_the_rounding_of_a_gradient_under_jit_knows_large_arrays_of_numpy(monkeypatch):
    """As a predictor has them that came from another process."""
    monkeypatch.setattr("perturbkernel.arrays._BLOCK", 8)
    x, z, coef = X.astype(np.float32), X[:3].astype(np.float32), np.ones(N, np.float32)
    found = jax.jit(lambda coef: KERNEL.gradient_bound(z, x, coef))(coef)
    np.testing.assert_allclose(found, KERNEL.gradient_bound(z, x, coef), rtol=1e-6)


class Given(eqx.Module):
    """Whatever the inputs, this gradient."""

    gradient: Any

    def __call__(self, z: Any) -> Any:
        return jnp.sum(self.gradient * z, axis=1)

    def input_gradient(self, z: Any) -> Any:
        return self.gradient


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_perturbation_takes_the_memory_of_its_gradient_and_itself(norm, monkeypatch):
    """Not that of a row of temporaries as large; in rows at once it is the same to the bit."""
    x = np.zeros((2000, 300), np.float32)
    signs = np.where(np.arange(2000) % 3 == 0, 1.0, -1.0)
    gradient = RNG.normal(size=x.shape).astype(np.float32)
    gradient[7] = 0
    f = Given(jnp.asarray(gradient))
    at_once = perturb(f, x, signs, size=0.3, norm=norm)
    monkeypatch.setattr("perturbkernel.arrays._BLOCK", 2**14)
    tracemalloc.start()
    found = perturb(f, x, signs, size=0.3, norm=norm)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(found.delta, at_once.delta)
    np.testing.assert_array_equal(found.zero_gradient, np.arange(2000) == 7)
    assert most < 2.5 * x.nbytes  # inputs and result; JAX's own arrays are not counted
