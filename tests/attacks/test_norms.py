"""Norms and boxes hold by construction, wherever a point lies in its box.

Steps and projections against bisection in double precision.
"""

import ast
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import DTYPES, precision

import perturbkernel as pk
from perturbkernel.attacks import norms as projections
from perturbkernel.attacks.halfspaces import nearest_of_all

attack: Any = pk.attack
# Whatever JAX takes for an array, they take; one program each, as within attacks.
project: Any = jax.jit(projections.project, static_argnums=2)
reach: Any = projections.reach
steepest: Any = jax.jit(projections.steepest, static_argnums=2)
within: Any = jax.jit(projections.within)
ROWS = 60
CONVEX = ("l2", "linf", "l1")


def hard_rows(rng: np.random.Generator, d: int, dtype: Any) -> tuple[np.ndarray, ...]:
    """Points, gradients, bounds: corners, edges, fixed entries, sparse and tiny gradients."""
    low = -rng.uniform(0.2, 1, size=(ROWS, d))
    high = rng.uniform(0.2, 1, size=(ROWS, d))
    fixed = rng.random((ROWS, d)) < 0.2
    fixed[:5] = False
    high = np.where(fixed, low, high)
    x = rng.uniform(low, high)
    kind = rng.integers(4, size=(ROWS, d))
    x = np.where(kind == 0, low, np.where(kind == 1, high, x))
    g = rng.normal(size=(ROWS, d)) * 10.0 ** rng.integers(-6, 7, size=(ROWS, 1))
    g = np.where(rng.random((ROWS, d)) < rng.choice([0, 0.6, 0.9], size=(ROWS, 1)), 0, g)
    tiny = rng.random((ROWS, d)) < 0.1
    g = np.where(tiny, g * 1e-25, g)
    low, high = np.asarray(low, dtype), np.asarray(high, dtype)
    inside = np.clip(np.asarray(x, dtype), low, high)
    return inside, np.asarray(g, dtype), low, high


def length(d: np.ndarray, norm: str) -> np.ndarray:
    order = {"l2": 2, "linf": np.inf, "l1": 1}[norm]
    return np.linalg.norm(np.asarray(d, float), order, axis=1)


def bisected(member: Any, size: np.ndarray, norm: str) -> np.ndarray:
    """member(s) (m, d) for the s in (0, 1) where its norm, which rises with s, is `size`."""
    low, high = np.zeros((ROWS, 1)), np.ones((ROWS, 1))
    for _ in range(200):
        middle = (low + high) / 2
        short = (length(member(middle), norm) <= size[:, 0])[:, None]
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return member(low)


def stretched(u: np.ndarray, low: np.ndarray, high: np.ndarray) -> Any:
    """clip(t u) for t from e^-100 at s = 0, in effect 0, to e^100 at s = 1, in effect infinite."""
    return lambda s: np.clip(np.exp(200 * (s - 0.5)) * u, low, high)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 3, 40])
def test_sizes_and_boxes_hold_wherever_the_point_is(dtype, d):
    rng = np.random.default_rng(d)
    eps = np.finfo(dtype).eps
    with precision(dtype):
        for size in (1e-3, 0.1, 1.0, 30.0):
            x, g, low, high = hard_rows(rng, d, dtype)
            bounds = jnp.asarray(low), jnp.asarray(high)
            box = bounds[0] - x, bounds[1] - x
            for norm in CONVEX:
                for step in (steepest, project):
                    delta = within(jnp.asarray(x), step(jnp.asarray(g), size, norm, box), bounds)
                    assert (length(np.asarray(delta), norm) <= size * (1 + 4 * eps)).all()
                    moved = x + np.asarray(delta)
                    assert ((moved >= low) & (moved <= high)).all()


@pytest.mark.parametrize("d", [1, 3, 40])
def test_steps_and_projections_agree_with_bisection(d, x64):
    rng = np.random.default_rng(d)
    x, g, low, high = hard_rows(rng, d, float)
    box = jnp.asarray(low - x), jnp.asarray(high - x)
    below, above = np.asarray(box[0]), np.asarray(box[1])
    for scale in (1e-3, 0.1, 1.0):
        size = np.full((ROWS, 1), scale)
        unit = g / np.maximum(np.abs(g).max(1, keepdims=True), 1e-300)
        exact = bisected(stretched(unit, below, above), size, "l2")
        gain = np.sum(unit * np.asarray(steepest(jnp.asarray(g), size, "l2", box)), axis=1)
        np.testing.assert_allclose(gain, np.sum(unit * exact, axis=1), rtol=1e-9, atol=1e-12)
        u = 2 * unit
        nearest = bisected(lambda s, u=u: np.clip(s * u, below, above), size, "l2")
        near = np.asarray(project(jnp.asarray(u), size, "l2", box))
        np.testing.assert_allclose(near, nearest, atol=1e-12)
        sparse = bisected(
            lambda s, u=u: np.clip(
                np.sign(u) * np.maximum(np.abs(u) - 2 * (1 - s), 0), below, above
            ),
            size,
            "l1",
        )
        near = np.asarray(project(jnp.asarray(u), size, "l1", box))
        np.testing.assert_allclose(near, sparse, atol=1e-12)
        wanted = 0.8 * gain
        for norm in CONVEX:  # reaches what a ball of its size reaches, and no less
            least = np.asarray(reach(jnp.asarray(unit), jnp.asarray(wanted), norm, box))
            assert ((least >= below) & (least <= above)).all()
            np.testing.assert_allclose(np.sum(unit * least, axis=1), wanted, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("norm", CONVEX)
def test_a_step_gains_at_most_the_dual_norm(norm, x64):
    """Hoelder's inequality, and where it is an equality."""
    rng = np.random.default_rng(4)
    g, d = rng.normal(size=(2, ROWS, 4))
    dual = np.asarray(projections.dual_lengths(jnp.asarray(g), norm))
    assert (np.abs(np.sum(g * d, axis=1)) <= dual * length(d, norm) * (1 + 1e-12)).all()
    best = np.asarray(steepest(jnp.asarray(g), 1.0, norm))
    np.testing.assert_allclose(np.sum(g * best, axis=1), dual, rtol=1e-12)
    # The smallest step of a gain is a multiple of the best one.
    gain = rng.uniform(0.1, 3, size=ROWS)
    least = np.asarray(reach(jnp.asarray(g), jnp.asarray(gain), norm))
    np.testing.assert_allclose(np.sum(g * least, axis=1), gain, rtol=1e-12)
    np.testing.assert_allclose(length(least, norm), gain / dual, rtol=1e-12)


def test_the_entries_that_are_kept_are_the_best_ones(x64):
    """Of all choices of two entries: the nearest point of the box that moves no others."""
    rng = np.random.default_rng(5)
    u = rng.normal(size=(ROWS, 4)) * 3
    low, high = -rng.uniform(0.2, 2, size=u.shape), rng.uniform(0.2, 2, size=u.shape)
    near = np.asarray(project(jnp.asarray(u), 2, "l0", (jnp.asarray(low), jnp.asarray(high))))
    inside = np.clip(u, low, high)
    choices = [np.isin(np.arange(4), pair) for pair in itertools.combinations(range(4), 2)]
    away = [np.sum((np.where(kept, inside, 0) - u) ** 2, axis=1) for kept in choices]
    np.testing.assert_allclose(np.sum((near - u) ** 2, axis=1), np.min(away, axis=0), rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attacks_of_binary_features_keep_their_size(dtype):
    """All points are corners, where single entries can move."""
    rng = np.random.default_rng(0)
    x = rng.integers(2, size=(200, 3)).astype(dtype)
    y = np.ones(200, dtype)
    with precision(dtype):
        for norm in CONVEX:
            w = jnp.asarray([5.0, 1.0, -0.3], dtype)
            for steps in (1, 4):
                options = {"size": 0.1, "norm": norm, "steps": steps, "bounds": (0.0, 1.0)}
                delta = np.asarray(attack(lambda z, w=w: z @ w, x, y, **options).delta)
                assert (length(delta, norm) <= 0.1 * (1 + 4 * np.finfo(dtype).eps)).all()
                assert ((x + delta >= 0) & (x + delta <= 1)).all()
        # An entry held fixed by equal bounds does not move.
        bounds = np.array([0, 0, 0.5], dtype), np.array([1, 1, 0.5], dtype)
        x[:, 2] = 0.5
        delta = np.asarray(attack(lambda z: z @ w, x, y, size=0.1, bounds=bounds).delta)
        assert not delta[:, 2].any() and delta.any(1).sum() > 100


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_one_step_in_bounds_keeps_its_size_far_from_the_origin(norm):
    """x + delta rounds to float32 at the scale of x, a thousand times the size."""
    rng = np.random.default_rng(1)
    x = (1000 + rng.uniform(-0.2, 0.2, size=(50, 7))).astype(np.float32)
    low, high = x.min() - np.float32(0.01), x.max() + np.float32(0.01)
    w = jnp.asarray(rng.normal(size=7), jnp.float32)
    options = {"size": 0.1, "norm": norm, "bounds": (low, high)}
    delta = np.asarray(pk.perturb(lambda z: z @ w, x, jnp.ones(50), **options).delta)
    assert (length(delta, norm) <= 0.1 * (1 + 1e-6)).all()
    assert ((x + delta >= low) & (x + delta <= high)).all()
    assert (length(delta, norm) >= 0.01).all()


def test_a_bit_is_taken_from_what_rounds_beyond_the_bounds():
    """Also where the input itself lies beyond them, and has to move in."""
    x = jnp.asarray([1.5, -1.5, 0.3], jnp.float32)[:, None]
    bounds = jnp.full((3, 1), -0.1, jnp.float32), jnp.full((3, 1), 0.1, jnp.float32)
    delta = within(x, jnp.clip(0 * x, bounds[0] - x, bounds[1] - x), bounds)
    assert (np.abs(x + delta) <= np.float32(0.1)).all()
    assert projections.within(x, delta, None) is delta


def test_no_attack_knows_a_norm_by_its_name():
    """A norm is its record: nowhere else is anything compared with a name of one, looked up by it, or
    called with it.
    """
    folder = Path(projections.__file__).parent
    found = []
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Compare | ast.Dict | ast.Subscript | ast.Call):
                continue
            for inner in ast.walk(node):
                if isinstance(inner, ast.Constant) and inner.value in projections.NORMS:
                    found.append((file.name, inner.value))
    assert set(found) == {("norms.py", norm) for norm in projections.NORMS}


@pytest.mark.parametrize("name", ["linf", "l0"])
def test_a_norm_under_another_name_is_the_same(name, monkeypatch):
    """A record is all that adding a norm takes."""
    record = projections._GEOMETRY[name]
    other = f"the other {name}"
    monkeypatch.setitem(projections._GEOMETRY, other, record)
    monkeypatch.setattr("perturbkernel.attacks.problem.NORMS", (*projections.NORMS, other))
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.uniform(-1, 1, size=(6, 3)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(3, 3)), jnp.float32)
    size = 2 if name == "l0" else 0.3
    bounds = (-1.0, 1.0)
    for norm in (name, other):
        p = attack(lambda z: z @ w, x, [0, 1, 2] * 2, size=size, norm=norm, bounds=bounds, steps=3)
        if norm == name:
            delta = p.delta
            continue
        np.testing.assert_array_equal(p.delta, delta)
    without = record._replace(programme=None)
    monkeypatch.setitem(projections._GEOMETRY, other, without)
    half = jnp.ones((1, 2, 3)), jnp.ones((1, 2))
    with pytest.raises(ValueError, match="norm must be one with a programme; got 'the other"):
        nearest_of_all(*half, other)
