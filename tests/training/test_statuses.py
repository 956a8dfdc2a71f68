"""A solver that stops early is said by everything that is computed with it: in its status, or in a
warning where the result has none.
"""

import ast
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from common import D, M, N

import perturbkernel as pk
from perturbkernel.engine import krylov
from perturbkernel.training import smoother as smoothers
from perturbkernel.training import solve as solvers
from perturbkernel.training import squared

PACKAGE = Path(pk.__file__).parent
RNG = np.random.default_rng(5)
KERNEL: Any = pk.TwoLayerNTK(0.2, True)
X, Z = RNG.normal(size=(N, D)), RNG.normal(size=(M, D))
Y = np.where(X[:, 0] > 0, 1.0, -1.0)
WEIGHTS = np.arange(N) % 5 + 0.0  # some of them zero
fit: Any = pk.fit


def start(z: Any) -> Any:
    return 2 * z[:, 0] * z[:, 1] - 1


def warned(method: str, f: Any) -> list[str]:
    """The warnings of a method whose result has no status, which point at its caller."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        getattr(f, method)(Z)
    assert {warning.filename for warning in found} <= {__file__}
    return [str(warning.message) for warning in found] or ["ok"]


def said_by_split(f: Any) -> list[str]:
    started = pk.KernelPredictor(
        f.kernel,
        f.inputs,
        f.dual_coef,
        start,
        loss=f.loss,
        dynamics=f.dynamics,
        ridge=f.ridge,
        sample_weight=f.sample_weight,
    )
    s = pk.split(started, Z)
    # Without a start the parts are those of f, and the expected square alone has a solver.
    return [s.status, s.mean.status, s.own.status, pk.split(f, Z).status]


# What a user calls, by the function of the package that asks the solver.
SAID: dict[str, Any] = {
    "training/predictors.weights": lambda f: warned("weights", f),
    "training/initial_function.trained_covariance": lambda f: warned("distribution", f),
    "training/influence.smoother": lambda f: [pk.smoother(f).status],
    "attacks/flips.certified_flips": lambda f: [pk.certified_flips(f, Z).status],
    "learning/split._parts": said_by_split,
    "learning/split.expected_own_square": said_by_split,
}
SOLVERS = ("apply_training", "smoother_weights")
DYNAMICS: dict[str, Any] = {
    "flow": pk.GradientFlow(20.0),
    "heavy ball": pk.HeavyBall(0.1, 25),
    "infinite": pk.GradientFlow(np.inf),
}


def callers(path: Path) -> set[str]:
    """The functions of a file that ask for q(K), and may drop what its solver says."""
    home = path.relative_to(PACKAGE).with_suffix("").as_posix()
    found = set()
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef) or function.name in SOLVERS:
            continue
        called = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
        if {name.id for name in called if isinstance(name, ast.Name)} & set(SOLVERS):
            found.add(f"{home}.{function.name}")
    return found


def test_every_caller_of_the_smoother_is_here():
    found = set().union(*(callers(path) for path in PACKAGE.rglob("*.py")))
    assert found == set(SAID)


@pytest.fixture
def by_products(monkeypatch):
    """As for many points."""
    monkeypatch.setattr(smoothers, "_DIRECT", 0)
    monkeypatch.setattr(solvers, "_DIRECT", 0)


@pytest.fixture
def stopping(by_products, monkeypatch):
    """Solvers that may spend few products."""
    monkeypatch.setattr(squared, "_PRODUCTS", 1)
    monkeypatch.setattr(squared, "lanczos", partial(krylov.lanczos, most=4))


def trained(dynamics: Any, **options: Any) -> Any:
    """Without a solver's help, so that what is said later is not of this training."""
    return fit(KERNEL, X, Y, loss="squared", dynamics=dynamics, **options)


@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=["", "weights"])
@pytest.mark.parametrize("name", DYNAMICS)
def test_what_a_solver_does_not_reach_is_said(name, weight, request):
    f = trained(DYNAMICS[name], sample_weight=weight)
    assert f.status == "ok"
    request.getfixturevalue("stopping")
    stopped = {
        "infinite": "conjugate gradients stopped after",
    }.get(name, "the Lanczos process stopped after")
    assert stopped in trained(DYNAMICS[name], sample_weight=weight).status
    for caller, said in SAID.items():
        for status in said(f):
            assert stopped in status, caller


@pytest.mark.parametrize("name", DYNAMICS)
def test_what_a_solver_reaches_is_ok_in_float32(name, request):
    """Products are in float64, and no remark on rounding in float32 arises."""
    f = trained(DYNAMICS[name])
    direct = pk.smoother(f).operator
    request.getfixturevalue("by_products")
    assert f.inputs.dtype == np.float32
    for caller, said in SAID.items():
        assert set(said(f)) == {"ok"}, caller
    scale = np.abs(direct).max()
    np.testing.assert_allclose(pk.smoother(f).operator, direct, rtol=0, atol=1e-8 * scale)


def test_steps_that_amplify_rounding_are_said():
    """Rates that are right for the small eigenvalue, before one that mends the large one."""
    x = np.eye(2, D)
    x[1] /= 10
    dynamics = pk.HeavyBall([200.0] * 6 + [2.0], momentum=0.0)
    f = fit(pk.TwoLayerNTK(1.0), x, [1, -1], loss="squared", dynamics=dynamics)
    assert "amplify errors" in f.status
    for said in SAID.values():
        for status in said(f):
            assert "amplify errors" in status


def test_a_singular_matrix_is_said():
    """A duplicate."""
    x = np.concatenate([X[:-1], X[:1]])
    f = fit(KERNEL, x, Y, loss="squared", dynamics=DYNAMICS["infinite"])
    for said in SAID.values():
        for status in said(f):
            assert "singular kernel matrix" in status


def test_a_column_that_is_not_finite_is_said(x64, monkeypatch):
    """Whichever of the columns it is."""
    errors = [0.0, np.nan]

    def answer(*_: Any) -> krylov.Answer:
        return krylov.Answer(jnp.ones(N), errors.pop(0), 1, np.ones(N))

    monkeypatch.setattr(squared, "lanczos", answer)
    found = squared.by_products(answer, jnp.ones((N, 2)), pk.GradientFlow(1.0), 1e-9)
    assert "stopped after" in found.status
