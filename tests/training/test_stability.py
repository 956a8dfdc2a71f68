"""Heavy ball at rates that change: which schedules are stable, against the steps themselves in
NumPy.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturbkernel as pk
from perturbkernel.training import squared

fit: Any = pk.fit
HeavyBall: Any = pk.HeavyBall
KERNEL: Any = pk.TwoLayerNTK(0.2, True)
N = 24
X = np.random.default_rng(1).normal(size=(N, 4))
Y = np.where(np.random.default_rng(2).normal(size=N) > 0, 1.0, -1.0)
PATHS = {"direct": None, "by products": 0}


def gram() -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(KERNEL.ntk(X))


def stable(momentum: float, curvature: float = 1.0) -> float:
    return 2 * (1 + momentum) * N / (curvature * np.linalg.eigvalsh(gram())[-1])


def steps(rates: Any, momentum: float, pull: Any) -> np.ndarray:
    """Dual coefficients by the definition of heavy ball."""
    k, dual, velocity = gram(), np.zeros(N), np.zeros(N)
    for rate in rates:
        velocity = momentum * velocity + pull(k @ dual) / N
        dual = dual + rate * velocity
    return dual


SCHEDULES = {
    "made up for": [0.9, 0.9, 1.2, 0.3],
    "one step": [1.7],
    "one step and rests": [0.0, 1.7, 0.0, 0.0],
    "a long first step": [2.5, *[0.45] * 60],
    "warm restarts": [1.1, 1.1, *[0.3] * 40] * 3,
}


@pytest.mark.parametrize("memory", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_that_converge_are_those_steps(name, momentum, memory, x64):
    rates = stable(momentum) * np.array(SCHEDULES[name])
    f = fit(KERNEL, X, Y, loss="squared", dynamics=HeavyBall(rates, None, momentum), memory=memory)
    assert f.status == "ok"
    exact = steps(rates, momentum, lambda outputs: Y - outputs)
    np.testing.assert_allclose(f.dual_coef, exact, atol=1e-9 * np.abs(exact).max())
    assert f.stats["growth"] >= 1


@pytest.mark.parametrize("memory", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    "name, rates",
    {
        "constant": [1.001] * 2,
        "too long at the end": [0.5] * 5 + [1.5] * 40,
        "not made up for": [1.3] * 30 + [0.01],
        "overflow": [0.1] + [1e3] * 200,
    }.items(),
)
def test_schedules_that_diverge_are_refused(name, rates, momentum, memory, x64):
    limit = stable(momentum)
    message = (
        rf"^learning_rate must be below .* = {limit:.6g}.*diverges.*got {max(rates) * limit:g}"
    )
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        fit(
            KERNEL,
            X,
            Y,
            loss="squared",
            dynamics=HeavyBall(limit * np.array(rates), None, momentum),
            memory=memory,
        )


def test_steps_that_amplify_rounding_say_so(x64):
    """Rates that are right for the small eigenvalue, before one that mends the large one."""
    gram, residual = jnp.diag(2 * jnp.array([1.0, 0.01])), jnp.ones(2)
    for count, said in ((2, False), (6, True)):
        dynamics = HeavyBall([100.0] * count + [1.0], None, 0.0)
        found = squared.dense(gram, residual, dynamics)
        assert found.stats["growth"] == pytest.approx(99.0**count)
        assert ("amplify errors" in found.status) == said


@pytest.mark.parametrize("loss, curvature", [("logistic", 0.25), ("exponential", 1.0)])
@pytest.mark.parametrize("name", ["made up for", "one step"])
def test_other_losses_warn_of_unstable_schedules_only(loss, curvature, name, x64):
    limit = stable(0.0, curvature)

    def train(rates):
        dynamics = HeavyBall(limit * np.array(rates), None, 0.0)
        return fit(KERNEL, X, Y, loss=loss, dynamics=dynamics)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        f = train(SCHEDULES[name])
    assert f.status == "ok"
    speed = {"logistic": lambda s: 1 / (1 + np.exp(s)), "exponential": lambda s: np.exp(-s)}[loss]
    exact = steps(limit * np.array(SCHEDULES[name]), 0.0, lambda outputs: Y * speed(Y * outputs))
    np.testing.assert_allclose(f.dual_coef, exact, rtol=1e-8)
    with pytest.warns(UserWarning, match=f"heavy ball on the {loss} loss may oscillate"):
        train([1.3] * 5)
