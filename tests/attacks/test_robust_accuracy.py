"""Accuracy under attack against exact answers: linear predictors in closed form, small ReLU networks
region by region.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from common import D, N
from scipy.optimize import linprog

import perturbkernel as pk

robust_accuracy: Any = pk.robust_accuracy
RNG = np.random.default_rng(4)
X = RNG.uniform(-0.9, 0.9, size=(N, D))
W = RNG.normal(size=D)
KEY = jax.random.key(0)
BOX = (-1.0, 1.0)
SIZES = {"linf": (0.05, 0.2, 0.5), "l2": (0.1, 0.4, 1.0), "l1": (0.2, 0.7, 1.5), "l0": (1, 2, 4)}


def _line(w, b, z):
    return z @ w + b


@pytest.mark.parametrize("norms", [("l0", "l2"), ("l2", "l0")])
def test_what_a_norm_asks_of_the_bounds_is_asked_before_any_attack(norms, monkeypatch):
    def begun(*_: Any) -> Any:
        pytest.fail("an attack has begun")

    monkeypatch.setattr("perturbkernel.attacks.robust_accuracy._curve", begun)
    with pytest.raises(ValueError, match="bounds"):
        robust_accuracy(line(), X, np.sign(X @ W), sizes=(1,), norms=norms, attack="apgd")


def line() -> Any:
    return jax.tree_util.Partial(_line, jnp.asarray(W), jnp.asarray(0.1))


def _classes(w, z):
    return z @ w


def largest_loss(x: np.ndarray, w: np.ndarray, size: float, norm: str, box: Any) -> float:
    """max -<w, d> over the ball and the box, entry by entry."""
    far = np.full(len(x), np.inf)
    room = far if box is None else np.where(w > 0, x - box[0], box[1] - x)
    gain = np.abs(w)
    if norm == "linf":
        return float(gain @ np.minimum(size, room))
    if norm == "l0":
        return float(np.sort(gain * room)[::-1][: int(size)].sum())
    if norm == "l1":
        total, left = 0.0, size
        for i in np.argsort(-gain):
            step = min(left, room[i])
            total, left = total + gain[i] * step, left - step
        return float(total)
    if box is None:
        return size * float(np.linalg.norm(w))
    low, high = 0.0, 1e6  # of t in min(t gain, room), whose length is to be the size
    for _ in range(200):
        t = (low + high) / 2
        if np.linalg.norm(np.minimum(t * gain, room)) <= size:
            low = t
        else:
            high = t
    return float(gain @ np.minimum(low * gain, room))


@pytest.mark.parametrize("attack", ["worst_case", "apgd", "minimum_norm"])
def test_linear_predictors_lose_what_they_must(attack, x64):
    """In every norm, in a box, and without one where that is allowed."""
    y = np.sign(X @ W + 0.1)
    y[0] = -y[0]  # wrong already
    clean = y * (X @ W + 0.1)
    norms = ("linf",) if attack == "worst_case" else SIZES  # a program each
    cases = [(norm, BOX) for norm in norms]
    cases += [] if attack == "worst_case" else [("l2", None)]
    options = {"attack": attack, "steps": 10, "key": KEY}
    for norm, box in cases:
        r = robust_accuracy(line(), X, y, sizes=SIZES[norm], norms=norm, bounds=box, **options)
        assert r.sizes.tolist() == [0.0, *SIZES[norm]]
        for j, size in enumerate(r.sizes):
            loss = [largest_loss(x, s * W, size, norm, box) for x, s in zip(X, y, strict=True)]
            left = clean - np.array(loss)
            assert np.abs(left).min() > 1e-4  # no tie that rounding would decide
            np.testing.assert_array_equal(r.right[0, j], left > 0)
        assert r.accuracy[0, -1] < r.accuracy[0, 0] < 1


def test_linear_classes_lose_what_they_must(x64):
    """A decision of K linear outputs is lost to the first of K - 1 single boundaries."""
    w = np.random.default_rng(5).normal(size=(D, 3))
    f = jax.tree_util.Partial(_classes, jnp.asarray(w))
    labels = (X @ w).argmax(1)
    options = {"attack": "apgd", "steps": 10, "bounds": BOX}
    r = robust_accuracy(f, X, labels, sizes=(0.1, 0.3), norms="linf", **options)
    for j, size in enumerate(r.sizes):
        for i, (x, label) in enumerate(zip(X, labels, strict=True)):
            least = min(
                x @ (w[:, label] - w[:, k])
                - largest_loss(x, w[:, label] - w[:, k], size, "linf", BOX)
                for k in range(3)
                if k != label
            )
            assert r.right[0, j, i] == (least > 0)
    shares = [r.right[0, :, labels == label].mean(0) for label in r.classes]
    np.testing.assert_allclose(r.of_class[0].T, shares)


UNITS = 5


def _network(v, b, a, z):
    return jnp.maximum(z @ v + b[None], 0) @ a


def least_margin(x: np.ndarray, y: float, net: Any, size: float, norm: str) -> float:
    """min y f over the ball, a linear programme for each pattern of active units.

    The unknowns are z and what bounds |z - x|, one an entry; linf bounds each, l1 their sum.
    """
    v, b, a = net
    d = len(x)
    unit = np.eye(d)
    ball = np.vstack([np.hstack([unit, -unit]), np.hstack([-unit, -unit])])
    limits = np.concatenate([x, -x])
    if norm == "l1":
        ball = np.vstack([ball, np.concatenate([np.zeros(d), np.ones(d)])])
        limits = np.append(limits, size)
    least = np.inf
    for active in itertools.product([0, 1], repeat=UNITS):
        active = np.array(active)
        sign = np.where(active == 1, -1, 1)  # v z + b >= 0 where active
        region = np.hstack([sign[:, None] * v.T, np.zeros((UNITS, d))])
        slope = v @ (active * a)
        found = linprog(
            np.concatenate([y * slope, np.zeros(d)]),
            A_ub=np.vstack([ball, region]),
            b_ub=np.concatenate([limits, -sign * b]),
            bounds=[(None, None)] * d + [(0, size)] * d,
        )
        if found.status == 0:
            least = min(least, found.fun + y * (b @ (active * a)))
    return least


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_small_networks_lose_what_they_must(norm, x64):
    """Nothing but the right answer in every region of a ReLU network that the ball meets."""
    rng = np.random.default_rng(6)
    net = rng.normal(size=(3, UNITS)), 0.5 * rng.normal(size=UNITS), rng.normal(size=UNITS)
    f = jax.tree_util.Partial(_network, *map(jnp.asarray, net))
    x = rng.uniform(-1, 1, size=(10, 3))
    y = np.where(np.asarray(f(jnp.asarray(x))) > 0, 1.0, -1.0)
    sizes = (0.1, 0.3) if norm == "linf" else (0.2, 0.6)
    attack = "worst_case" if norm == "linf" else "apgd"
    r = robust_accuracy(f, x, y, sizes=sizes, norms=norm, starts=5, attack=attack, key=KEY)
    for j, size in enumerate(sizes):
        exact = [least_margin(p, s, net, size, norm) for p, s in zip(x, y, strict=True)]
        np.testing.assert_array_equal(r.right[0, j + 1], np.array(exact) > 0)
    assert 0 < r.accuracy[0, -1] < 1


def _weak(predictor, inputs, targets, *, size, norm, bounds):
    """Finds something at the smallest size only."""
    step = pk.perturb(predictor, inputs, -np.asarray(targets), size=size, norm=norm).delta
    return step if size < 0.3 else jnp.zeros_like(step)


def test_a_tie_is_not_right():
    attacked = {"sizes": (0.1,), "norms": ("l2",), "attack": lambda f, x, y, **_: 0 * x}
    found = pk.robust_accuracy(lambda z: z[:, 0], np.array([[1.0], [0.0]]), np.ones(2), **attacked)
    np.testing.assert_array_equal(found.right, [[[True, False]] * 2])


def test_what_is_wrong_stays_wrong_and_tables_say_it():
    y = np.sign(X @ W + 0.1)
    r = robust_accuracy(line(), X, y, sizes=(1.0, 0.2), norms=("linf", "l2"), attack=_weak)
    assert r.sizes.tolist() == [0.0, 0.2, 1.0] and r.attack == "_weak"
    assert r.accuracy[0, 1] < 1
    np.testing.assert_array_equal(r.right[:, 1], r.right[:, 2])
    certified = np.where(np.arange(N) < 4, 0.0, 0.5)
    table = r.table({"l2": certified})
    assert {len(column) for column in table.values()} == {6}
    assert table["norm"] == ["linf"] * 3 + ["l2"] * 3 and table["size"] == [0.0, 0.2, 1.0] * 2
    np.testing.assert_array_equal(table["accuracy"], r.accuracy.ravel())
    proved = 1 - 4 / N
    np.testing.assert_allclose(table["certified"], [np.nan] * 3 + [proved, proved, 0])
    np.testing.assert_array_equal(table["accuracy of -1.0"], r.of_class[:, :, 0].ravel())
    rows = str(r).splitlines()
    assert len(rows) == 8 and rows[0].endswith("_weak")
    assert rows[2].split() == ["linf", "0", "1.000", "1.000", "1.000"]
    assert "<th>accuracy</th>" in r._repr_html_()
    assert repr(r).startswith(
        f"RobustAccuracy(attack _weak, points {N}, sizes [0, 0.2, 1], linf [1"
    )
    assert pandas.DataFrame(table).shape == (6, 6)


BAD = {
    "no sizes": ({"sizes": ()}, "sizes and norms must not be empty"),
    "no norms": ({"norms": ()}, "sizes and norms must not be empty"),
    "norm": ({"norms": ("l3",)}, "norms must be"),
    "size": ({"sizes": (-1,)}, "sizes must"),
    "attack": ({"attack": "pgd"}, "attack must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    changes, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        robust_accuracy(line(), X, np.ones(N), **{"sizes": (0.1,), "key": KEY, **changes})


def test_certified_sizes_must_fit():
    r = robust_accuracy(line(), X, np.ones(N), sizes=(0.1,), norms=("l2", "linf"), attack=_weak)
    with pytest.raises(ValueError, match="certified must be a mapping"):
        r.table(np.ones(N))
    with pytest.raises(ValueError, match=r"certified must have sizes \(17,\); got \(2,\) for l2"):
        r.table({"l2": np.ones(2)})
