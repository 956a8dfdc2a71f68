"""Attacks of decisions: units of the outputs, ties between rivals, flat starts.

Also code that JAX cannot trace, and JAX's strict modes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import D, N
from scipy.optimize import linprog, nnls

import perturbkernel as pk
from perturbkernel.attacks.halfspaces import nearest_of_all

attack: Any = pk.attack
minimum_norm: Any = pk.minimum_norm
universal: Any = pk.universal
worst_case: Any = pk.worst_case
KEY = jax.random.key(0)
ORDERS = {"l2": 2, "linf": np.inf, "l1": 1}
RNG = np.random.default_rng(3)
X = RNG.uniform(-1, 1, size=(N, D))
CLASSES = 4
V = RNG.normal(size=(7, D))
A = RNG.normal(size=(CLASSES, 7))


def _bent(scale: Any, shift: Any, z: Any) -> Any:
    """K smooth outputs."""
    return scale * (jnp.tanh(z @ V.T.astype(z.dtype)) @ A.T.astype(z.dtype)) + shift


def bent(scale: float = 1.0, shift: float = 0.0) -> Any:
    return jax.tree_util.Partial(_bent, jnp.asarray(scale), jnp.asarray(shift))


def _single(scale: Any, z: Any) -> Any:
    return scale * jnp.tanh(z @ V.T.astype(z.dtype)) @ A[0].astype(z.dtype)


def single(scale: float = 1.0) -> Any:
    return jax.tree_util.Partial(_single, jnp.asarray(scale))


def size_of(delta: Any, norm: str) -> np.ndarray:
    return np.linalg.norm(np.asarray(delta, float), ORDERS[norm], axis=1)


# --- units of the outputs ---


@pytest.mark.parametrize("away", [True, False])
def test_units_of_the_outputs_do_not_matter(away, x64):
    labels = np.asarray(bent()(X).argmax(1))
    targets = labels if away else (labels + 1) % CLASSES
    signs = np.sign(np.asarray(single()(X)))

    def perturbations(function, predictor, targets, options):
        result = function(predictor, X, targets, away=away, **options)
        return np.asarray(getattr(result, "delta", result))

    for function, options in (
        (attack, {"size": 0.4, "norm": "linf", "starts": 2, "key": KEY}),
        (universal, {"size": 0.4}),
        (minimum_norm, {"starts": 2, "key": KEY}),
    ):
        found = perturbations(function, bent(), targets, options)
        one = perturbations(function, single(), signs, options)
        for scale, shift in ((1e-6, 0.0), (0.3, 2.0), (1e7, -1e6)):
            scaled = perturbations(function, bent(scale, shift), targets, options)
            np.testing.assert_allclose(found, scaled, atol=1e-6)
            one_scaled = perturbations(function, single(scale), signs, options)
            np.testing.assert_allclose(one, one_scaled, atol=1e-6)


def test_attacks_succeed_where_a_smaller_change_is_known():
    """At a size 3 % above the smallest found: digits of ten classes, in the box of their pixels."""
    data = pk.data.mnist5k(classes=range(10))
    train, test = data.split(test=0.2, key=KEY)
    few = train.subset(300, key=KEY)
    f = pk.fit(
        pk.TwoLayerNTK(),
        few.inputs,
        pk.one_hot(few.targets, 10),
        loss="squared",
        dynamics=pk.GradientFlow(1e3),
    )
    x, labels = test.inputs[:30], np.asarray(test.targets[:30])
    options = {"norm": "linf", "bounds": (float(data.inputs.min()), float(data.inputs.max()))}
    least = minimum_norm(f, x, labels, away=True, **options)
    sizes = np.asarray(least.size)
    assert np.isfinite(sizes).all()
    for size in np.quantile(sizes[sizes > 0], [0.3, 0.7]):
        moved = x + attack(f, x, labels, away=True, size=float(size), **options).delta
        survives = np.asarray(f(moved).argmax(1)) == labels
        assert not survives[sizes * 1.03 <= size].any()


def test_the_first_step_looks_at_all_rivals(x64):
    """Linear outputs: one step reaches the class whose boundary lies within the ball."""
    w = RNG.normal(size=(10, D))
    f = jax.tree_util.Partial(lambda w, z: z @ w.T, jnp.asarray(w))
    out = np.asarray(f(X))
    own = out.argmax(1)
    far = np.linalg.norm(w[own][:, None] - w[None], axis=2)
    distance = np.where(far > 0, (out.max(1)[:, None] - out) / np.where(far > 0, far, 1), np.inf)
    for size in np.quantile(distance.min(1), [0.22, 0.53, 0.84]):
        p = attack(f, X, own, away=True, size=float(size), steps=1)
        wrong = np.asarray(f(X + p.delta)).argmax(1) != own
        np.testing.assert_array_equal(wrong, distance.min(1) < size)


def test_the_worst_case_is_the_worst(x64):
    f, labels = bent(), np.array(bent()(X).argmax(1))
    labels[:2] = (labels[:2] + 1) % CLASSES  # wrong already
    for norm in ("linf",):  # l2 below
        options = {"size": 0.3, "norm": norm, "bounds": (-1.0, 1.0)}
        worst = worst_case(f, X, labels, key=KEY, **options)
        out = np.asarray(f(X + worst.delta))
        rivals = np.where(np.arange(CLASSES) == labels[:, None], -np.inf, out).max(1)
        np.testing.assert_allclose(worst.margin, out[np.arange(N), labels] - rivals, atol=1e-12)
        assert (size_of(worst.delta, norm) <= 0.3 * (1 + 1e-14)).all()
        assert (np.abs(X + worst.delta) <= 1).all()
        assert worst.wrong[:2].all()
        assert float(worst.accuracy) == np.mean(np.asarray(worst.margin) > 0)
        alone = np.asarray(f(X + attack(f, X, labels, away=True, **options).delta))
        others = np.where(np.arange(CLASSES) == labels[:, None], -np.inf, alone).max(1)
        assert (worst.margin <= alone[np.arange(N), labels] - others + 1e-12).all()
        least = minimum_norm(f, X, labels, away=True, norm=norm, bounds=(-1.0, 1.0))
        assert worst.wrong[np.asarray(least.size) <= 0.3].all()
    assert worst.attacks[0] == "none" and "minimum_norm" in worst.attacks
    signs = np.sign(np.asarray(single()(X)))
    worst = worst_case(single(), X, signs, size=0.3, key=KEY)
    np.testing.assert_allclose(worst.margin, signs * single()(X + worst.delta), atol=1e-12)
    with pytest.raises(ValueError, match="steps must be at least 2"):
        worst_case(single(), X, signs, size=0.3, steps=1, key=KEY)


# --- several rivals at once ---

ROWS, ENTRIES, RIVALS = 40, 20, 9


def exact_size(rows: Any, least: Any, norm: str, low: Any, high: Any) -> float:
    """The smallest norm with rows d >= least and low <= d <= high, by SciPy; inf if none has."""
    entries = rows.shape[1]
    if norm == "l2":
        # The least-distance programme as non-negative least squares, Lawson and Hanson.
        within = np.vstack([-np.eye(entries)[np.isfinite(high)], np.eye(entries)[np.isfinite(low)]])
        edges = np.concatenate([-high[np.isfinite(high)], low[np.isfinite(low)]])
        all_rows, all_least = np.vstack([rows, within]), np.concatenate([least, edges])
        system = np.vstack([all_rows.T, all_least[None]])
        wanted = np.append(np.zeros(entries), 1.0)
        residual = system @ nnls(system, wanted, maxiter=10_000)[0] - wanted
        feasible = abs(residual[-1]) > 1e-9
        return float(np.linalg.norm(residual[:-1] / residual[-1])) if feasible else np.inf
    if norm == "linf":
        one = np.ones((entries, 1))
        sides = np.vstack([np.hstack([np.eye(entries), -one]), np.hstack([-np.eye(entries), -one])])
        a = np.vstack([np.hstack([-rows, np.zeros((len(rows), 1))]), sides])
        b = np.append(-least, np.zeros(2 * entries))
        cost = np.append(np.zeros(entries), 1.0)
        found = linprog(cost, a, b, bounds=[*zip(low, high, strict=True), (0, None)])
    else:
        limits = np.concatenate([high, -low])
        bounds = list(zip(np.zeros(2 * entries), limits, strict=True))
        found = linprog(np.ones(2 * entries), np.hstack([-rows, rows]), -least, bounds=bounds)
    return float(found.fun) if found.status == 0 else np.inf


def rival_problem() -> tuple[np.ndarray, ...]:
    """Weights of ten linear outputs, points, and a class for each that is not its own."""
    rng = np.random.default_rng(5)
    w, x = rng.normal(size=(RIVALS + 1, ENTRIES)), rng.normal(size=(ROWS, ENTRIES))
    own = (x @ w.T).argmax(1)
    return w, x, (own + rng.integers(1, RIVALS + 1, size=ROWS)) % (RIVALS + 1)


def half_spaces(w: Any, x: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    others = np.array([[k for k in range(len(w)) if k != t] for t in target])
    rows = w[target][:, None] - w[others]
    return rows, -np.einsum("mrd,md->mr", rows, x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_the_region_of_a_class_is_reached_by_the_shortest_way(norm, dtype):
    """Linear outputs: linear programmes, non-negative least squares. In float64 without a box, in
    float32, which is widened inside, in one.
    """
    w, x, target = rival_problem()
    rng = np.random.default_rng(6)
    low, high, bounds = x - np.inf, x + np.inf, None
    if dtype == np.float32:
        spread = 6.0 if norm == "l1" else 2.5
        low = x - rng.uniform(0, spread, size=x.shape)
        high = x + rng.uniform(0, spread, size=x.shape)
        bounds = low.astype(dtype), high.astype(dtype)
    rows, least = half_spaces(w, x, target)
    every = zip(rows, least, low - x, high - x, strict=True)
    exact = np.array([exact_size(r, b, norm, lo, hi) for r, b, lo, hi in every])
    with jax.enable_x64(dtype == np.float64):
        f = jax.tree_util.Partial(lambda w, z: z @ w.T, jnp.asarray(w, dtype))
        found = minimum_norm(f, x.astype(dtype), target, norm=norm, bounds=bounds)
    moved = x + np.asarray(found.delta)
    assert ((moved @ w.T).argmax(1) == target).mean() > 0.9
    feasible = np.isfinite(exact)
    np.testing.assert_array_equal(np.isfinite(found.size), feasible)
    ratio = np.asarray(found.size, float)[feasible] / exact[feasible]
    assert ratio.max() <= 1.01 and ratio.min() >= 1 - 1e-3


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_half_spaces_without_a_common_point_are_said_to_have_none(norm):
    rows = np.zeros((3, 2, D), np.float32)
    rows[:, 0, 0], rows[:, 1, 0], rows[1, 1, 0] = 1, -1, 0
    least = np.asarray([[1, 1], [1, 1], [-1, -1]], np.float32)
    d, met = jax.jit(nearest_of_all, static_argnums=2)(rows, least, norm)
    # Opposite; one without a gradient; both met by 0.
    np.testing.assert_array_equal(met, [False, False, True])
    assert np.isfinite(d).all() and not np.asarray(d)[2].any()


def test_smooth_predictors_are_not_beaten_by_long_descents(x64):
    """Toward a class: attacks of 300 steps do not succeed at a size 2 % smaller."""
    f, labels = bent(), np.asarray(bent()(X).argmax(1))
    target = (labels + 1) % CLASSES
    for norm in ("l2", "linf"):
        found = minimum_norm(f, X, target, norm=norm, starts=6, key=KEY)
        reached = np.asarray(found.found)
        assert reached.mean() > 0.6
        shares = 0.98 * np.asarray(found.size)
        beaten = 0
        for i in np.flatnonzero(reached):
            z, wanted = X[i : i + 1], target[i : i + 1]
            p = attack(f, z, wanted, size=float(shares[i]), norm=norm, steps=300)
            beaten += np.asarray(f(z + p.delta)).argmax(1)[0] == wanted[0]
        assert beaten == 0


# --- flat starts ---


@pytest.mark.parametrize("bounds", [None, (-4.0, 4.0)])
def test_random_starts_leave_flat_places(bounds, x64):
    """Outputs clipped on both sides: the gradient at the inputs is zero, the boundary is near."""
    x = RNG.normal(size=(12, 3))
    x = 3 * x / np.linalg.norm(x, axis=1, keepdims=True)
    w = np.array([1.0, 0.5, -0.5])
    x = x[np.abs(x @ w) > 0.7]
    f = lambda z: jnp.clip(z @ w, -0.5, 0.5)  # noqa: E731
    options = {"norm": "l2", "bounds": bounds}
    assert not np.asarray(minimum_norm(f, x, **options).found).any()
    found = minimum_norm(f, x, starts=100, key=KEY, **options)
    assert np.asarray(found.found).all()
    exact = np.abs(x @ w) / np.linalg.norm(w)
    assert (np.asarray(found.size) >= exact * (1 - 1e-9)).all()
    if bounds is None:
        np.testing.assert_allclose(found.size, exact, rtol=1e-3)


SATURATED = np.random.default_rng(4).normal(size=(CLASSES, D)).astype(np.float32)


def _probabilities(temperature: Any, z: Any) -> Any:
    return jax.nn.softmax(temperature * z @ SATURATED.T)


@pytest.mark.parametrize("temperature", [1.0, 10.0, 40.0, 1e3])
def test_saturated_probabilities_are_found_or_said_not_to_be(temperature):
    """Never a size far beyond the true distance."""
    f = jax.tree_util.Partial(_probabilities, np.float32(temperature))
    x = X.astype(np.float32)
    out = x @ SATURATED.T
    own = out.argmax(1)
    apart = np.linalg.norm(SATURATED[own][:, None] - SATURATED[None], axis=2)
    gap = out.max(1, keepdims=True) - out
    exact = np.where(apart > 0, gap / np.where(apart > 0, apart, 1), np.inf).min(1)
    for options in ({}, {"starts": 10, "key": KEY}):
        found = minimum_norm(f, x, own, away=True, **options)
        size = np.asarray(found.size)[np.asarray(found.found)]
        assert (size <= 3 * exact[np.asarray(found.found)] + 1e-3).all()
    # Where even the largest change within reach is lost in the rounding, "not found" is right.
    assert np.asarray(found.found).mean() > (0.9 if temperature < 100 else 0.5)


# --- code that JAX cannot trace ---


class Plain:
    """NumPy code with a gradient of its own."""

    def __call__(self, z: Any) -> Any:
        assert isinstance(z, np.ndarray)
        return np.tanh(z @ V.T.astype(z.dtype)) @ A[0].astype(z.dtype)

    def input_gradient(self, z: Any) -> Any:
        hidden = np.tanh(z @ V.T.astype(z.dtype))
        return ((1 - hidden**2) * A[0].astype(z.dtype)) @ V.astype(z.dtype)


def test_numpy_predictors_are_attacked_as_traced_ones(x64):
    signs = np.sign(np.asarray(single()(X)))
    # What is away is a part of the worst case, whose programs it shares.
    for function, options in (
        (attack, {"size": 0.4, "away": True, "starts": 2, "key": KEY, "steps": 5}),
        (attack, {"size": 0.4, "norm": "linf", "steps": 5, "bounds": (-1, 1)}),
        (universal, {"size": 0.4, "steps": 5}),
        (minimum_norm, {"steps": 5, "away": True}),
        (worst_case, {"size": 0.4, "steps": 4, "key": KEY}),
    ):
        plain = function(Plain(), X, signs, **options)
        traced = function(single(), X, signs, **options)
        plain = getattr(plain, "delta", plain)
        traced = getattr(traced, "delta", traced)
        np.testing.assert_allclose(plain, traced, atol=1e-9)


@pytest.mark.parametrize("function", [attack, universal, minimum_norm, pk.perturb])
def test_code_without_a_gradient_is_told_the_remedy(function):
    options = {} if function is minimum_norm else {"size": 0.1}
    with pytest.raises(TypeError, match=r"jax.numpy, not NumPy.*input_gradient\(z\)"):
        function(lambda z: np.tanh(np.asarray(z)).sum(1), X, np.ones(N), **options)


# --- JAX's strict modes ---


@pytest.mark.parametrize("norm", ["l2", "linf", "l1", "l0"])
def test_strict_modes(norm):
    x, single_targets = X.astype(np.float32), np.ones(N, np.float32)
    low, high = np.float32(-1), np.float32(1)
    size = 2 if norm == "l0" else 0.5
    options = {"norm": norm, "bounds": (low, high), "steps": 2}
    v = V.T.astype(np.float32)
    a = A.T.astype(np.float32)
    one = lambda z: jnp.tanh(z @ v) @ a[:, 0]  # noqa: E731
    several = lambda z: jnp.tanh(z @ v) @ a  # noqa: E731
    labels = np.zeros(N, np.int32)

    def trace(function, predictor, targets, **more):
        """Promotions are refused while tracing: nothing need be compiled."""
        jax.eval_shape(lambda x, y: function(predictor, x, y, **options, **more), x, targets)

    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        for predictor, targets in ((one, single_targets), (several, labels)):
            trace(attack, predictor, targets, size=size)
            trace(universal, predictor, targets, size=size)
            trace(minimum_norm, predictor, targets, starts=2, key=KEY)
            trace(minimum_norm, predictor, targets, away=True)


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-np.ones((N, D)), np.ones((N, D)))])
@pytest.mark.parametrize("function", [attack, pk.perturb])
def test_bounds_and_targets_of_another_dtype_in_strict_modes(function, bounds, x64):
    """Float32 inputs, Python floats and float64 beside them."""
    x, v = X.astype(np.float32), V.T.astype(np.float32)
    predictor = lambda z: jnp.tanh(z @ v).sum(1)  # noqa: E731
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        found = function(predictor, x, np.ones(N), size=0.1, bounds=bounds)
    assert found.delta.dtype == np.float32
