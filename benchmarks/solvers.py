"""Losses that need solves, against what one would write instead; docs/solvers.md holds measured
numbers.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from perturbkernel import GradientFlow, HeavyBall, TwoLayerNTK, data, fit
from perturbkernel.training import logistic
from perturbkernel.training.gram import gram_operator
from perturbkernel.training.logistic_path import logistic_path

from . import alternatives as other
from .harness import Builder, Case, Group, Row, Settings, compare, difference

KERNEL = TwoLayerNTK(0.0, train_bias=True)
RATE, STEPS, MOMENTUM = 0.1, 100, 0.9
FLOW, LATE, RTOL = 3.0, 1e5, 1e-3
# Local: the error at the end, which the row says, is below that of neural-tangents in float32.
_TOLERANCE = 1e-5


def numpy_heavy_ball(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Dual coefficients of the logistic loss: a <- a + RATE v, v <- MOMENTUM v + y sigma(-y K a) /
    n; float32, (n,).
    """
    gram = other.numpy_ntk(x, x)
    n = np.float32(len(y))
    rate = np.float32(RATE)
    momentum = np.float32(MOMENTUM)
    a = v = np.zeros_like(y)
    for _ in range(STEPS):
        margin = y * (gram @ a)
        force = y / (1 + np.exp(margin)) / n
        v = momentum * v + force
        a = a + rate * v
    return a


def _shifted(count: int, d: int, settings: Settings) -> data.Dataset:
    return data.shifted_gaussian(count, d, key=jax.random.key(settings.seed))


def _heavy_ball(sizes: str, n: int, d: int, settings: Settings) -> Iterator[Row]:
    drawn = _shifted(n, d, settings)
    dynamics = HeavyBall(RATE, STEPS, MOMENTUM)
    x = np.asarray(drawn.inputs)
    y = np.asarray(drawn.targets)

    def ours():
        f = fit(KERNEL, drawn.inputs, drawn.targets, loss="logistic", dynamics=dynamics)
        return f.dual_coef

    return compare(
        f"logistic heavy ball, {STEPS} steps",
        sizes,
        ("NumPy, float32", lambda: partial(numpy_heavy_ball, x, y)),
        {"perturbkernel": lambda: ours},
        settings.rounds(3, 2),
        tolerance=1e-2,
        same_result=True,
    )


def _flow(sizes: str, n: int, d: int, settings: Settings) -> Iterator[Row]:
    m = n // 10
    drawn = _shifted(n + m, d, settings)
    x = drawn.inputs[:n]
    y = drawn.targets[:n]
    z = drawn.inputs[n:]

    def theirs():
        predict: Any = other.neural_tangents("predict")
        kernel = other.tangents_ntk()
        train = kernel(x, x)
        test = kernel(z, x)

        def loss(f, y):
            losses = jnp.logaddexp(0, -y * f)
            return jnp.mean(losses)

        trained = predict.gradient_descent(loss, train, y[:, None])

        def outputs():
            at_points = jnp.zeros((n, 1))
            at_queries = jnp.zeros((m, 1))
            _, found = trained(FLOW, at_points, at_queries, test)
            return found[:, 0]

        return outputs

    def given():
        """The same task as theirs, in float64: both kernel matrices are there."""
        with jax.enable_x64(True):
            exact = jnp.asarray(np.asarray(x), float)
            queries = jnp.asarray(np.asarray(z), float)
            targets = jnp.asarray(np.asarray(y), float)
            operator = gram_operator(KERNEL, exact)
            test = KERNEL.ntk(queries, exact)
            none = jnp.zeros_like(targets)

        def run(tolerance=_TOLERANCE):
            with jax.enable_x64(True):
                found = logistic.flow(operator, targets, none, FLOW, tolerance)
                return test @ found.dual_coef

        truth["outputs"] = run(1e-12)
        return run

    def from_points():
        f = fit(KERNEL, x, y, loss="logistic", dynamics=GradientFlow(FLOW))
        return f(z)

    def errors(ours, others) -> str:
        wanted = truth["outputs"]
        own = difference(ours, wanted)
        theirs = difference(others, wanted)
        return f"errors {own:.0e} and {theirs:.0e}"

    truth: dict[str, Any] = {}

    return compare(
        "logistic flow and outputs, kernel matrices given",
        f"{sizes}, {m} queries, time {FLOW:g}",
        ("neural-tangents, which compiles anew", theirs),
        {
            "perturbkernel": given,
            "perturbkernel, matrices included": lambda: from_points,
        },
        settings.rounds(5, 1),
        tolerance=1e-2,
        same_result=True,
        remark=errors,
    )


def _path(sizes: str, n: int, d: int, settings: Settings) -> Iterator[Row]:
    drawn = _shifted(n, d, settings)
    operator = gram_operator(KERNEL, drawn.inputs)
    product = jax.jit(lambda operator, v: operator(v))
    times = np.array([LATE])

    def path():
        return logistic_path(operator, drawn.targets, None, times, RTOL)

    def cost(path, _) -> str:
        return f"{int(path.products)} products, drift {float(path.drift):.0e}"

    return compare(
        f"logistic flow to time {LATE:g}",
        f"{sizes}, rtol {RTOL:g}",
        ("one product K v, K held", lambda: partial(product, operator, drawn.targets)),
        {"perturbkernel": lambda: path},
        settings.rounds(3, 3),
        remark=cost,
    )


def _interpolation(sizes: str, n: int, d: int, held: bool, settings: Settings) -> Iterator[Row]:
    drawn = _shifted(n, d, settings)
    x = drawn.inputs
    y = drawn.targets
    # Enough for the matrix and too little for a factorisation, or for nothing: the kernel anew for
    # each product.
    memory = 16.0 * n**2 if held else 0.0

    def train():
        f = fit(KERNEL, x, y, loss="squared", dynamics=GradientFlow(np.inf), memory=memory)
        stats.update(f.stats)
        return f.dual_coef

    def cholesky():
        exact = np.asarray(x, float)
        targets = np.asarray(y, float)
        gram = other.numpy_ntk(exact, exact)
        return scipy.linalg.solve(gram, targets, assume_a="pos")

    def numbers(*_) -> str:
        said = [f"{name} {value:.3g}" for name, value in stats.items()]
        return ", ".join(said)

    stats: dict[str, Any] = {}
    reference: tuple[str, Builder] = ("Cholesky in float64, SciPy", lambda: cholesky)
    if not held:
        reference = ("one matvec", lambda: partial(KERNEL.matvec, x, x, y))
    return compare(
        "interpolation, conjugate gradients",
        sizes if held else f"{sizes}, in tiles",
        reference,
        {"perturbkernel": lambda: train},
        settings.rounds(3, 1) if held else settings.rounds(1, 1),
        tolerance=1e-2 if held else None,
        same_result=held,
        remark=numbers,
    )


def _cases(settings: Settings) -> list[Case]:
    def case(name, measure, full, quick, *more):
        n, d, cost = quick if settings.quick else full
        sizes = f"n = {n}, d = {d}"
        return Case(name, sizes, partial(measure, sizes, n, d, *more, settings), cost=cost)

    cases = [
        case("heavy-ball", _heavy_ball, (10_000, 784, 90), (1_000, 784, 5)),
        case("flow", _flow, (500, 100, 30), (200, 100, 10)),
        case("interpolation", _interpolation, (8_000, 100, 120), (1_000, 100, 4), True),
    ]
    if settings.quick:
        return cases
    path, tiles = (10_000, 10, 150), (20_000, 100, 900)
    return [
        *cases,
        case("path", _path, path, path),
        case("tiles", _interpolation, tiles, tiles, False),
    ]


GROUP = Group(
    "solvers",
    "Losses that need solves",
    "time / time of the reference",
    _cases,
    one="the reference",
)
