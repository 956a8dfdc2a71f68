"""attacks.py, boundary.py, projections.py: every attack against its definition, in double precision
unless said.

Parameters of a predictor are no part of its program: tests that share norm, bounds and shapes share
a compilation."""

import functools
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from common import D, N, compilations, precision
from scipy.optimize import linprog, minimize

import perturbkernel as pk
from perturbkernel.attacks import norms as projections
from perturbkernel.attacks import problem as objectives
from perturbkernel.kernels.stax_kernels import load_neural_tangents

# Any, for the type checker: NumPy arrays and lists are welcome where signatures say Array; bad
# input is meant here.
attack: Any = pk.attack
minimum_norm: Any = pk.minimum_norm
universal: Any = pk.universal
steepest: Any = projections.steepest
NORMS = projections.NORMS
RNG = np.random.default_rng(8)
X = RNG.uniform(-1, 1, size=(N, D))
X[0] = 1.0  # a corner of the box
W = RNG.normal(size=D)
BOX = (-1.0, 1.0)
ONES = np.ones(N)


def lengths(delta: Any, norm: str) -> np.ndarray:
    flat = np.asarray(delta, float).reshape(len(delta), -1)
    return {
        "l2": lambda: np.linalg.norm(flat, axis=1),
        "linf": lambda: np.abs(flat).max(1),
        "l1": lambda: np.abs(flat).sum(1),
        "l0": lambda: (flat != 0).sum(1),
    }[norm]()


def _surface(w, b, curvature, z):
    return z @ w + b + curvature * (jnp.sin(3 * z).sum(1) + (z**2).sum(1))


def surface(w: Any = W, b: float = 0.3, curvature: float = 0.0) -> Any:
    """A linear function of the inputs, or with curvature one whose gradient turns; one program for
    all.
    """
    return jax.tree_util.Partial(_surface, jnp.asarray(w), jnp.asarray(b), jnp.asarray(curvature))


@functools.cache
def trained(classes: int = 2) -> Any:
    """Closed form, on labels that no line separates."""
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, size=(40, D))
    inner = (x**2).sum(1) < 1.6
    y = np.where(inner, 1.0, -1.0) if classes == 2 else pk.one_hot(inner + (x[:, 0] > 0), 3)
    return pk.fit(pk.TwoLayerNTK(0.1, True), x, y, loss="squared", dynamics=pk.GradientFlow(1e3))


# --- the geometry of the norms ---

M = 13
G = RNG.normal(size=(M, D))
G[0], G[1, 2:], G[2] = 0, 0, 1  # no direction, few entries, ties
LOW, HIGH = -RNG.uniform(0, 1, size=(M, D)), RNG.uniform(0, 1, size=(M, D))
# Unbounded on a side, on both; the input on faces of the box.
LOW[3:5], HIGH[4:6], HIGH[6, :3] = (
    -np.inf,
    np.inf,
    0,
)
SIZES = {"l2": 0.8, "linf": 0.4, "l1": 1.1, "l0": 2}


def best_gain(g: np.ndarray, low: np.ndarray, high: np.ndarray, size: float, norm: str) -> float:
    """max <g, d> over the ball and the box, by a general solver, or of all choices of entries."""
    if norm == "l0":
        gains = np.maximum(g * low, g * high)
        return max(
            gains[list(chosen)].sum() for chosen in itertools.combinations(range(D), int(size))
        )
    low, high = np.maximum(low, -size), np.minimum(high, size)
    if norm == "l2":
        ball = {"type": "ineq", "fun": lambda d: size**2 - d @ d, "jac": lambda d: -2 * d}
        return -minimize(
            lambda d: -g @ d,
            0.1 * size * np.sign(g),
            jac=lambda d: -g,
            bounds=list(zip(low, high, strict=True)),
            constraints=ball,
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        ).fun
    total = [size if norm == "l1" else D * size]  # of up + down, where d = up - down
    bounds = list(zip(np.zeros(2 * D), np.concatenate([high, -low]), strict=True))
    return -linprog(np.concatenate([-g, g]), np.ones((1, 2 * D)), total, bounds=bounds).fun


# SLSQP of SciPy 1.13 says so of points that are its own.
@pytest.mark.filterwarnings("ignore:Values in x were outside bounds:RuntimeWarning")
@pytest.mark.parametrize("norm", NORMS)
def test_steps_projections_and_nearest_points_are_exact(norm, x64):
    """Steps by another solver; projections and nearest points by certificates that only the exact
    ones have.
    """
    size = SIZES[norm]
    low, high = (np.clip(b, -3, 3) if norm == "l0" else b for b in (LOW, HIGH))
    box = jnp.asarray(low), jnp.asarray(high)
    climb, project, reach = (
        jax.jit(lambda a, b, f=f: f(a, b, norm, box))
        for f in (steepest, projections.project, projections.reach)
    )
    sizes = np.full((M, 1), size, float)
    step = np.asarray(climb(G, sizes))
    gains = (G * step).sum(1)
    exact = [best_gain(*row, size, norm) for row in zip(G, low, high, strict=True)]
    # SLSQP: 1e-7.
    np.testing.assert_allclose(gains, exact, rtol=1e-6 if norm == "l2" else 1e-12, atol=1e-12)
    # P is the projection of u if and only if no feasible point lies further along u - P.
    u = 2 * G
    near = np.asarray(project(u, sizes))
    if norm == "l0":  # not convex: all choices of entries
        kept = [np.isin(np.arange(D), chosen) for chosen in itertools.combinations(range(D), size)]
        each = [np.sum((u - np.where(k, np.clip(u, low, high), 0)) ** 2, axis=1) for k in kept]
        np.testing.assert_allclose(
            np.sum((u - near) ** 2, axis=1), np.min(each, axis=0), rtol=1e-14
        )
    else:
        further = ((u - near) * np.asarray(climb(u - near, sizes))).sum(1) - (
            (u - near) * near
        ).sum(1)
        assert further.max() <= 1e-13
        inside = np.asarray(project(0.01 * step, sizes))
        np.testing.assert_allclose(inside, 0.01 * step, rtol=1e-13)
    for d in (step, near):
        assert (lengths(d, norm) <= size * (1 + 1e-14)).all()
        assert ((d >= low) & (d <= high)).all()
    # The smallest d that gains as much: the best of its own size gains no more.
    wanted = 0.7 * gains
    least = np.asarray(reach(G, wanted))
    assert ((least >= low) & (least <= high)).all()
    needed = lengths(least, norm)
    assert (needed <= size * (1 + 1e-14)).all()
    if norm == "l0":
        assert ((G * least).sum(1) >= wanted).all()
        below = (G * np.asarray(climb(G, needed[:, None] - 1.0))).sum(1)
        assert ((below < wanted) | (wanted == 0)).all()
    else:
        np.testing.assert_allclose((G * least).sum(1), wanted, rtol=1e-13)
        np.testing.assert_allclose(
            (G * np.asarray(climb(G, needed[:, None]))).sum(1), wanted, rtol=1e-13
        )
    corner = np.asarray(reach(G, np.full(M, 1e9)))[7:]  # no further than the box
    np.testing.assert_array_equal(corner, np.where(G > 0, high, low)[7:])


# --- attacks of a given size ---


@pytest.mark.parametrize(("norm", "dtype"), [("l2", np.float32), ("linf", np.float64)])
def test_one_step_is_that_of_perturb(norm, dtype):
    x, targets = X.astype(dtype), np.where(np.arange(N) % 3 == 0, 1.0, -1.0)
    with precision(dtype):
        f = surface(curvature=0.5)
        p, q = (
            attack(f, x, targets, size=0.3, norm=norm, steps=1),
            pk.perturb(f, x, targets, size=0.3, norm=norm),
        )
        opposite = attack(f, x, -targets, size=0.3, norm=norm, steps=1, away=True)
    assert p.delta.dtype == dtype
    np.testing.assert_allclose(p.delta, q.delta, atol=4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(p.delta, opposite.delta)
    np.testing.assert_array_equal(p.targets, opposite.targets)


@pytest.mark.parametrize("norm", NORMS)
def test_sizes_and_bounds_are_met_and_more_steps_are_better(norm, x64):
    size = SIZES[norm]
    linear, curved = surface(), surface(curvature=0.5)
    low, high = BOX[0] - X, BOX[1] - X
    p = attack(linear, X, ONES, size=size, norm=norm, steps=7, bounds=BOX)
    exact = [best_gain(W, *row, size, norm) for row in zip(low, high, strict=True)]
    # Of the oracle.
    np.testing.assert_allclose(p.delta @ W, exact, rtol=1e-6 if norm == "l2" else 1e-12)
    # The first step from the input is the whole one, so that no number of steps is worse than it.
    one = np.asarray(steepest(curved_gradient(X), float(size), norm, (low, high)))
    at_least, means = np.maximum(curved(X), curved(X + one)), []
    for steps in (2, 20):
        p = attack(curved, X, ONES, size=size, norm=norm, steps=steps, bounds=BOX)
        assert (lengths(p.delta, norm) <= size * (1 + 1e-14)).all()
        moved = X + np.asarray(p.delta)
        assert (moved >= BOX[0]).all() and (moved <= BOX[1]).all()
        gain = np.asarray(curved(moved))
        assert (gain >= at_least - 1e-12).all()
        means.append(gain.mean())
    assert means[1] > means[0] > at_least.mean() > curved(X).mean() + 0.5


def test_bounds_are_met_to_the_last_bit():
    """In float32, whose sums with the longest step that is allowed round beyond the bounds now and
    then.
    """
    end = RNG.uniform(0.3, 0.9, size=(500, D)).astype(np.float32)
    x = (RNG.uniform(-1, 1, size=(500, D)) * end).astype(np.float32)
    for sign in (1, -1):
        delta = sign * end - x
        assert (np.abs(x + delta) > end).any()
        moved = x + np.asarray(
            projections.within(
                jnp.asarray(x), jnp.asarray(delta), (jnp.asarray(-end), jnp.asarray(end))
            )
        )
        assert (np.abs(moved) <= end).all()
        np.testing.assert_allclose(moved, sign * end, rtol=3e-7)


def curved_gradient(z: np.ndarray) -> Any:
    return W + 0.5 * (3 * np.cos(3 * z) + 2 * z)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_steps_of_a_given_size_are_projected_gradient_ascent(norm, momentum, x64):
    """The textbook loop, in NumPy; the best of its iterates."""
    size, rate, steps = 0.9, 0.25, 6
    f = surface(curvature=0.5)
    p = attack(f, X, ONES, size=size, norm=norm, steps=steps, step_size=rate, momentum=momentum)
    delta, velocity, iterates = np.zeros_like(X), np.zeros_like(X), [np.zeros_like(X)]
    for _ in range(steps):
        g = curved_gradient(X + delta)
        velocity = momentum * velocity + g / np.abs(g).sum(1, keepdims=True)
        if norm == "linf":
            delta = np.clip(delta + rate * np.sign(velocity), -size, size)
        else:
            delta = delta + rate * velocity / np.linalg.norm(velocity, axis=1, keepdims=True)
            delta = delta * np.minimum(1, size / np.linalg.norm(delta, axis=1, keepdims=True))
        iterates.append(delta)
    values = np.array([f(X + delta) for delta in iterates])
    exact = np.array(iterates)[values.argmax(0), np.arange(N)]
    np.testing.assert_allclose(p.delta, exact, atol=1e-13)


def test_random_starts_keep_the_best_and_follow_the_key(x64):
    """Two maxima at +-1 of each entry: the smaller one is where the gradient at 0 points to."""
    hills = lambda z: jnp.sum(jnp.where(z > 0, z, -3 * (z + 0.3)), axis=1)  # noqa: E731
    x = np.full((N, D), 0.01)
    options = {"size": 1.0, "norm": "linf", "steps": 5}
    once = np.asarray(attack(hills, x, ONES, **options).delta)
    np.testing.assert_array_equal(once, 1)
    p, q, other = (
        attack(hills, x, ONES, starts=6, key=jax.random.key(k), **options).delta for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(p, q)
    assert not np.array_equal(p, other)
    assert (np.asarray(hills(x + p)) > np.asarray(hills(x + once)) + 0.5).all()
    assert np.abs(p).max() <= 1


def three(w: Any, z: Any) -> Any:
    """Three linear outputs."""
    return z @ w.T + jnp.arange(3, dtype=z.dtype)[None, :]


W3 = RNG.normal(size=(3, D))


def test_classes_are_moved_toward_or_away_from(x64):
    f = jax.tree_util.Partial(three, jnp.asarray(W3))
    labels = np.asarray(f(X).argmax(1))
    q = pk.perturb(f, X, (labels + 1) % 3, size=2.0)
    toward = attack(f, X, (labels + 1) % 3, size=2.0)
    away = attack(f, X, labels, size=2.0, away=True)

    def margins(p, t):
        out = np.array(f(X + p.delta))
        own = out[np.arange(N), t]
        out[np.arange(N), t] = -np.inf
        return own - out.max(1)

    for p, t, sign in ((toward, (labels + 1) % 3, 1), (away, labels, -1)):
        np.testing.assert_allclose(lengths(p.delta, "l2"), 2, rtol=1e-14)
        assert (sign * margins(p, t) >= sign * margins(q, t) - 1e-9).all()
        assert (sign * margins(p, t) > sign * margins(q, t) + 1e-3).sum() > 3
    assert (f(X + away.delta).argmax(1) != labels).mean() > 0.7


# --- the smallest change of sign ---


def check_bracket(f: Any, x: np.ndarray, r: Any, norm: str, tolerance: float) -> None:
    """The decision has changed at delta and not just short of it, on one path."""

    def decisions(z):
        out = np.asarray(f(z))
        return np.sign(out) if out.ndim == 1 else out.argmax(1)

    found = np.asarray(r.found)
    moved = found & (np.asarray(r.size) > 0)
    np.testing.assert_array_equal(decisions(x + r.delta)[moved] != decisions(x)[moved], True)
    np.testing.assert_array_equal(decisions(x + r.inside)[found], decisions(x)[found])
    np.testing.assert_allclose(lengths(r.delta, norm)[found], r.size[found], rtol=1e-6)
    inside, outside = np.asarray(r.inside)[moved], np.asarray(r.delta)[moved]
    if norm == "l0":
        np.testing.assert_array_equal(lengths(inside, norm), lengths(outside, norm) - 1)
        assert ((inside == outside) | (inside == 0)).all()
    else:
        ratio = lengths(inside, norm) / lengths(outside, norm)
        assert (ratio >= 1 - tolerance).all() and (ratio < 1).all()
        np.testing.assert_allclose(inside, outside, atol=tolerance * np.abs(outside).max())


@pytest.mark.parametrize(
    ("norm", "bounds"), [("l2", None), ("linf", BOX), ("l1", None), ("l0", BOX)]
)
def test_the_smallest_change_of_sign(norm, bounds, x64):
    """Linear: |f| / |w|_dual, in a box by its certificate. Curved: no attack of a smaller size
    succeeds.
    """
    linear, curved = surface(), surface(0.5 * W, 0.7, 0.5)
    low, high = (
        (b - X) if bounds else np.full_like(X, s)
        for b, s in zip(BOX, (-np.inf, np.inf), strict=True)
    )
    r = minimum_norm(linear, X, norm=norm, bounds=bounds)
    values = np.asarray(linear(X))
    check_bracket(linear, X, r, norm, 1e-4)
    np.testing.assert_array_equal(r.targets, -np.sign(values))
    for i in np.flatnonzero(r.found):
        towards = -np.sign(values[i]) * W
        if norm == "l0":
            sizes = [
                s
                for s in range(1, D + 1)
                if best_gain(towards, low[i], high[i], s, norm) > abs(values[i])
            ]
            assert r.size[i] == sizes[0]
        else:
            np.testing.assert_allclose(
                best_gain(towards, low[i], high[i], float(r.size[i]), norm),
                abs(values[i]),
                rtol=1e-4,
            )
    reachable = np.maximum(
        -np.sign(values)[:, None] * W * low, -np.sign(values)[:, None] * W * high
    ).sum(1)
    np.testing.assert_array_equal(r.found, reachable > np.abs(values))
    r = minimum_norm(curved, X, norm=norm, bounds=bounds)
    check_bracket(curved, X, r, norm, 1e-4)
    assert np.asarray(r.found).sum() >= N - 4
    assert (
        bounds is None or ((X + np.asarray(r.delta) >= -1) & (X + np.asarray(r.delta) <= 1)).all()
    )


def slsqp(f: Any, x: np.ndarray, start: np.ndarray) -> float:
    """The distance of the boundary of a trained predictor from x, by SciPy from `start`, with the
    NumPy reference.
    """
    points, coef = np.asarray(f.inputs), np.asarray(f.dual_coef)
    boundary = {
        "type": "eq",
        "fun": lambda z: oracle.matvec(z[None], points, coef, 0.1, True)[0],
        "jac": lambda z: oracle.input_gradient(z[None], points, coef, 0.1, True)[0],
    }
    found = minimize(
        lambda z: np.sum((z - x) ** 2),
        start,
        jac=lambda z: 2 * (z - x),
        method="SLSQP",
        constraints=boundary,
        options={"ftol": 1e-12, "maxiter": 200},
    )
    return float(np.sqrt(found.fun)) if abs(boundary["fun"](found.x)) < 1e-6 else np.inf


def test_the_smallest_change_of_a_trained_predictor_is_not_beaten(x64):
    """By SciPy's SLSQP from the input, from our point and from random ones: to the tolerance asked
    for, 1e-4.
    """
    f, x = trained(), X[1:5]
    r = minimum_norm(f, x)
    check_bracket(f, x, r, "l2", 1e-4)
    rng = np.random.default_rng(2)
    for i in range(len(x)):
        starts = [x[i], x[i] + np.asarray(r.delta[i]), *(x[i] + rng.normal(size=(2, D)))]
        assert r.size[i] <= min(slsqp(f, x[i], start) for start in starts) * (1 + 1e-4)


def test_the_nearest_class_is_found(x64):
    """Linear outputs: the nearest of the hyperplanes between the class and another."""
    # Two outputs close to each other, whose boundary is far.
    w = np.stack([W3[0], W3[2] + 0.3 * W3[1], W3[2]])
    f = jax.tree_util.Partial(three, jnp.asarray(w))
    out, own = np.asarray(f(X)), np.asarray(f(X).argmax(1))
    r = minimum_norm(f, X)
    check_bracket(f, X, r, "l2", 1e-4)
    np.testing.assert_array_equal(r.targets, own)
    apart = np.linalg.norm(w[own][:, None] - w, axis=2)
    every = np.where(apart > 0, (out.max(1)[:, None] - out) / np.where(apart > 0, apart, 1), np.inf)
    np.testing.assert_allclose(r.size, every.min(1), rtol=1e-4)
    # Not that of the next output.
    assert (every.argmin(1) != np.where(apart > 0, out, -np.inf).argmax(1)).sum() > 1
    np.testing.assert_allclose(minimum_norm(f, X, starts=1).size, every.min(1), rtol=1e-4)
    # Toward a class: a point that has it already needs nothing.
    r = minimum_norm(f, X, np.full(N, 0), steps=10)
    there = own == 0
    assert 0 < there.sum() < N
    assert not np.asarray(r.size)[there].any() and not np.asarray(r.delta)[there].any()
    assert (f(X + r.delta).argmax(1) == 0).all()
    assert (np.asarray(r.size) >= np.where(there, 0, every[:, 0])).all()


def test_wrong_signs_need_nothing_and_flat_points_are_reported(x64):
    """Labels that the predictor misses already; a predictor without gradient on the left."""
    half = lambda z: jnp.where(z[:, 0] > 0, z[:, 0] - 5.0, -5.0)  # noqa: E731
    labels = np.where(np.arange(N) % 2 == 0, 1.0, -1.0)  # half is negative everywhere here
    right = X[:, 0] > 0
    r = minimum_norm(half, X, labels, away=True)
    missed = labels > 0
    np.testing.assert_array_equal(r.size[missed], 0)
    np.testing.assert_allclose(r.size[~missed & right], 5 - X[~missed & right, 0], rtol=1e-4)
    np.testing.assert_array_equal(r.size[~missed & ~right], np.inf)
    np.testing.assert_array_equal(r.found, missed | right)
    assert not np.asarray(r.delta)[~r.found].any() and not np.asarray(r.inside)[~r.found].any()
    p = attack(half, X, ONES, size=0.5, steps=3)
    np.testing.assert_array_equal(p.zero_gradient, ~right)
    assert not np.asarray(p.delta)[~right].any()
    np.testing.assert_allclose(p.delta[right][:, 0], 0.5, rtol=1e-14)


def test_cancelled_gradients_are_not_followed():
    """Every training point with both labels: outputs and gradients of the closed form are rounding."""
    x = RNG.normal(size=(8, D)).astype(np.float32)
    f = pk.fit(pk.TwoLayerNTK(), np.concatenate([x, x[::-1]]), np.repeat([1.0, -1.0], 8))
    p = attack(f, X, ONES, size=0.3, steps=2)
    assert np.asarray(p.zero_gradient).all() and not np.asarray(p.delta).any()


# --- one direction for all points ---


def test_one_direction_for_all(x64):
    linear, curved = surface(), surface(curvature=0.5)
    for norm in ("l2", "linf"):
        one = attack(linear, X[:1], ONES[:1], size=0.5, norm=norm, steps=1).delta[0]
        np.testing.assert_allclose(universal(linear, X, ONES, size=0.5, norm=norm), one, atol=1e-14)
    both = np.where(np.arange(N) % 2 == 0, 1.0, -1.0)
    # Cancel.
    assert not np.asarray(
        universal(surface(b=0.0), np.repeat(X[:1], 16, 0) * 0, both[:16], size=0.5)
    ).any()
    delta = np.asarray(universal(curved, X, ONES, size=0.5))
    assert delta.shape == (D,)
    np.testing.assert_allclose(np.linalg.norm(delta), 0.5, rtol=1e-14)

    unit = np.abs(curved(X)).mean()

    def loss(delta):
        return np.logaddexp(0, -np.asarray(curved(np.asarray(X + delta))) / unit).mean()

    others = RNG.normal(size=(200, D))
    others *= 0.5 / np.linalg.norm(others, axis=1, keepdims=True)
    assert loss(delta) < min(loss(other) for other in others)
    # Of the loss, in NumPy.
    mean = np.mean(curved_gradient(X) / (1 + np.exp(curved(X) / unit))[:, None], axis=0)
    np.testing.assert_allclose(
        universal(curved, X, ONES, size=0.5, steps=1), 0.5 * mean / np.linalg.norm(mean), atol=1e-14
    )


def test_one_direction_within_bounds_counts_what_is_clipped(x64):
    delta = np.asarray(universal(surface(), X, ONES, size=1.5, norm="l1", bounds=BOX))
    assert np.abs(delta).sum() <= 1.5 * (1 + 1e-14)
    mean = lambda delta: np.mean(surface()(np.clip(X + delta, *BOX)))  # noqa: E731
    alone = np.where(np.arange(D) == np.abs(W).argmax(), 1.5 * np.sign(W), 0)
    assert mean(delta) > mean(alone) > mean(0)


# --- any predictor, in parts, compiled once ---


def test_networks_are_attacked_in_parts_as_a_whole(x64):
    net: Any = pk.networks.TwoLayerNetwork.init(D, 64, 0.1, key=jax.random.key(0))
    assert objectives.rows_within(2**20, net, jnp.asarray(X), (D,)) >= N
    x = np.tile(X, (60, 1)) * np.linspace(0.5, 1.5, 60 * N)[:, None]
    rows = objectives.rows_within(2**20, net, jnp.asarray(x), (D,))
    # The preactivations and more, of all: too much.
    assert 64 * 8 * 2 * rows < 2**20 < len(x) * 64 * 8 * 4
    options = {"size": 0.5, "norm": "linf", "steps": 3}
    parts = attack(net, x, np.ones(len(x)), memory=2**20, **options)
    whole = attack(net, x, np.ones(len(x)), **options)
    np.testing.assert_allclose(parts.delta, whole.delta, atol=1e-14)
    one = 0.5 * np.sign(net.input_gradient(x))
    assert (net(x + whole.delta) >= net(x + one) - 1e-12).all()


def test_other_values_are_no_other_program(x64):
    f, g = trained(), eqx.tree_at(lambda f: f.dual_coef, trained(), -trained().dual_coef)
    g = eqx.tree_at(lambda g: g.stats, g, {"lambda_max": 1.0, "effective_time": 2.0})
    attack(f, X, ONES, size=0.3, steps=3)
    with compilations() as count:
        p = attack(g, X, -ONES, size=0.6, steps=4)
        before = count()
        attack(f, X, -ONES, size=0.7, steps=40, momentum=0.5)
    assert before == count() == 0
    np.testing.assert_allclose(lengths(p.delta, "l2"), 0.6, rtol=1e-14)


def test_other_architectures_are_attacked():
    stax: Any = load_neural_tangents()
    network = stax.serial(stax.Dense(1, W_std=1.5, b_std=0.3), stax.Relu(), stax.Dense(1))
    x = X.astype(np.float32)
    f = pk.fit(pk.ArchitectureNTK(network), x, np.sign(x[:, 0]))
    p, q = attack(f, x, ONES, size=0.3, steps=1), pk.perturb(f, x, ONES, size=0.3)
    np.testing.assert_allclose(p.delta, q.delta, atol=1e-6)


# --- messages ---


def call(function: Any, changes: dict) -> Any:
    arguments = {"predictor": surface(), "inputs": X, "targets": ONES} | changes
    if function is not minimum_norm:
        arguments = {"size": 0.1} | arguments
    positional = [arguments.pop(name) for name in ("predictor", "inputs", "targets")]
    return function(*positional, **arguments)


EVERY = [attack, universal, minimum_norm]
BAD = [
    (EVERY, {"norm": "l3"}, ValueError, "norm must be one of 'l2', 'linf', 'l1', 'l0'; got 'l3'"),
    (EVERY, {"norm": "l0", "size": 1}, ValueError, "bounds must be given for l0"),
    (
        EVERY,
        {"norm": "l0", "size": 1, "bounds": (-np.inf, 2)},
        ValueError,
        "bounds must be finite for l0",
    ),
    (
        EVERY,
        {"bounds": (0, 1)},
        ValueError,
        r"inputs must lie within bounds; 16 rows do not \(row 1\)",
    ),
    (
        EVERY,
        {"bounds": (-np.ones(3), 1)},
        ValueError,
        r"bounds must be numbers or arrays that broadcast .*\(17, 5\)",
    ),
    (EVERY, {"bounds": (1, 0)}, ValueError, "bounds must have low < high"),
    (EVERY, {"inputs": X[0]}, ValueError, r"a single point is inputs\[None\]"),
    (EVERY, {"targets": ONES[:3]}, ValueError, r"targets must have shape \(17,\)"),
    (EVERY, {"targets": 0 * ONES}, ValueError, r"targets must be -1 or \+1; found 0"),
    (EVERY, {"away": 1}, TypeError, "away must be True or False; got 1"),
    (EVERY, {"steps": 0}, ValueError, "steps must be at least 1; got 0"),
    (EVERY, {"memory": 10}, ValueError, "memory must be >= 1.04858e"),
    (
        EVERY,
        {"predictor": lambda z: jnp.sqrt(0 * z).sum(1)},
        ValueError,
        "predictor must have finite gradients",
    ),
    (EVERY, {"predictor": lambda z: z}, ValueError, "predictor must map inputs"),
    (EVERY[:2], {"targets": None}, TypeError, "targets must be labels"),
    (EVERY[:2], {"size": -1}, ValueError, "size must be >= 0 and finite; got -1"),
    (
        EVERY[:2],
        {"size": 1.5, "norm": "l0", "bounds": BOX},
        TypeError,
        "size must be a whole number; got 1.5",
    ),
    (EVERY[:2], {"step_size": 0}, ValueError, "step_size must be > 0 and finite; got 0"),
    (EVERY[:2], {"momentum": -1}, ValueError, "momentum must be >= 0 and finite; got -1"),
    ([attack, minimum_norm], {"starts": 2}, TypeError, "key must be one JAX random key"),
    ([attack, minimum_norm], {"starts": 0}, ValueError, "starts must be at least 1; got 0"),
    (
        [attack],
        {"starts": 2, "steps": 1, "key": jax.random.key(0)},
        ValueError,
        "starts must be 1 for a single step",
    ),
    (
        [minimum_norm],
        {"tolerance": 0.5},
        ValueError,
        "tolerance must be >= 1e-06 and <= 0.1; got 0.5",
    ),
]


@pytest.mark.parametrize(
    ("functions", "changes", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD]
)
def test_bad_arguments_say_what_is_wrong(functions, changes, error, message):
    for function in functions:
        with pytest.raises(error, match=message):
            call(
                function,
                {k: v for k, v in changes.items() if k != "size" or function is not minimum_norm},
            )
