"""Attacks by halved steps against Auto-PGD written in NumPy, from the paper."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import D, N

import perturbkernel as pk

attack: Any = pk.attack
RNG = np.random.default_rng(11)
X = RNG.uniform(-1, 1, size=(N, D))
W = RNG.normal(size=D)
KEY = jax.random.key(3)


def _bent(w, z):
    return z @ w + jnp.abs(jnp.sin(7 * z)).sum(1)  # with kinks


def bent() -> Any:
    return jax.tree_util.Partial(_bent, jnp.asarray(W))


def value(z: np.ndarray) -> float:
    return float(z @ W + np.abs(np.sin(7 * z)).sum())


def gradient(z: np.ndarray) -> np.ndarray:
    return W + 7 * np.cos(7 * z) * np.sign(np.sin(7 * z))


def direction(g: np.ndarray, norm: str) -> np.ndarray:
    return np.sign(g) if norm == "linf" else g / np.linalg.norm(g)


def ball(d: np.ndarray, size: float, norm: str) -> np.ndarray:
    if norm == "linf":
        return np.clip(d, -size, size)
    return d * min(1, size / np.linalg.norm(d))


def auto_pgd(x: np.ndarray, size: float, norm: str, steps: int) -> np.ndarray:
    """Algorithm 1 of Croce and Hein (2020) from 0, its first step being the whole radius."""
    places, p = [0.0, 0.22], 0.22
    while p <= 1:
        p += max(places[-1] - places[-2] - 0.03, 0.06)
        places.append(p)
    checkpoints = [math.ceil(round(place * steps, 9)) for place in places]
    eta, last_eta = 2 * size, 2 * size
    before = np.zeros_like(x)
    best, top = before, value(x)
    here = ball(size * direction(gradient(x), norm), size, norm)
    history = [top, value(x + here)]
    if history[-1] > top:
        best, top = here, history[-1]
    top_then, last = -np.inf, 0
    for k in range(1, steps):
        if k in checkpoints and k > last:
            rises = sum(
                b > a for a, b in zip(history[last:], history[last + 1 : k + 1], strict=False)
            )
            few = rises < 0.75 * (k - last)
            stalled = last_eta == eta and top <= top_then
            last_eta, top_then, last = eta, top, k
            if few or stalled:
                eta /= 2
                here = before = best
                history[-1] = top
        step = ball(here + eta * direction(gradient(x + here), norm), size, norm)
        moved = ball(here + 0.75 * (step - here) + 0.25 * (here - before), size, norm)
        before, here = here, moved
        history.append(value(x + here))
        if history[-1] > top:
            best, top = here, history[-1]
    return best


@pytest.mark.parametrize("norm, sizes", [("linf", (0.6, 3.0)), ("l2", (0.6, 1.5))])
def test_steps_are_those_of_auto_pgd(norm, sizes, x64):
    steps = 30
    for size in sizes:
        found = attack(bent(), X, np.ones(N), size=size, norm=norm, steps=steps, method="apgd")
        expected = np.array([auto_pgd(x, size, norm, steps) for x in X])
        # Rounding decides a rise between two gains that are equal; no such row here.
        np.testing.assert_allclose(found.delta, expected, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_sizes_and_bounds_hold_and_more_starts_are_no_worse(norm, x64):
    options = {"size": 0.5, "norm": norm, "steps": 12, "bounds": (-1.0, 1.0), "method": "apgd"}
    order = {"linf": np.inf, "l1": 1}[norm]
    gains = []
    for starts in (1, 3):
        p = attack(bent(), X, np.ones(N), starts=starts, key=KEY, **options)
        assert (np.linalg.norm(p.delta, order, axis=1) <= 0.5 * (1 + 1e-12)).all()
        assert (np.abs(X + p.delta) <= 1).all()
        gains.append(np.asarray(bent()(X + p.delta)))
    assert (gains[1] >= gains[0]).all() and (gains[1] > gains[0]).any()


def test_small_kernel_predictors_are_attacked_step_by_step(monkeypatch):
    rng = np.random.default_rng(3)
    x, y = jnp.asarray(rng.normal(size=(12, 4)), jnp.float32), rng.choice([-1.0, 1.0], 12)
    f = pk.fit(pk.TwoLayerNTK(), x, y, loss="squared", dynamics=pk.GradientFlow(10.0))
    found = attack(f, x, y, size=0.3, away=True, method="apgd", steps=8)
    monkeypatch.setattr("perturbkernel.attacks.host._PAIRS", 0)
    whole = attack(f, x, y, size=0.3, away=True, method="apgd", steps=8)
    # Rounding decides which of two steps that gain alike is a rise; what they gain is alike.
    np.testing.assert_allclose(f(x + found.delta), f(x + whole.delta), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "pgd"}, "method must be"),
        ({"step_size": 0.1}, "must be left out"),
        ({"momentum": 0.5}, "must be left out"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        attack(bent(), X, np.ones(N), **{"size": 0.1, "method": "apgd", **changes})
