"""The logistic loss in the kernel limit: one integration gives all times of a training, for both
networks.
"""

import itertools
import warnings
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perturbkernel.attacks.norms import normalise
from perturbkernel.engine.krylov import largest_eigenvalue
from perturbkernel.engine.tiles import EXACT, by_rows
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.metrics import accuracy
from perturbkernel.reproduce.panels.datasets import Drawn
from perturbkernel.reproduce.panels.limit import Request, by_name
from perturbkernel.reproduce.panels.sweep import first_networks, inner_products, kernel_of_product
from perturbkernel.reproduce.records import Arrays, Json
from perturbkernel.training.dynamics import HeavyBall
from perturbkernel.training.gram import GramOperator, gram_operator
from perturbkernel.training.logistic import heavy_ball
from perturbkernel.training.logistic_path import logistic_path

# Accuracies are counted to 0.01: outputs right to a hundredth of the largest are enough.
_TOLERANCE = 3e-3
# Rows of queries at a time.
_ROWS = 512


def _coefficients(
    operator: GramOperator, y: Array, schedules: Sequence[tuple[float, int]], dynamics: str
) -> Float[Array, "n k"]:
    """Dual coefficients after each (learning rate, steps), from zero."""
    balls = [HeavyBall(rate, steps) for rate, steps in schedules]
    if dynamics == "flow":
        times = np.array([ball.effective_time for ball in balls])
        path = logistic_path(operator, y, None, times, rtol=_TOLERANCE)
        finite = np.isfinite(np.asarray(path.dual_coef))
        if not finite.all():
            reached = float(path.time)
            raise RuntimeError(f"the logistic flow came to time {reached:g} of {times.max():g}")
        return path.dual_coef.T
    zero = jnp.zeros_like(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unstable rates are part of the result
        coef = [heavy_ball(operator, y, zero, ball).dual_coef for ball in balls]
        return jnp.stack(coef).T


def _stable_rate(operator: GramOperator, y: Array) -> float:
    """The largest learning rate at which heavy ball does not oscillate, to a hundredth."""
    largest, _ = largest_eigenvalue(operator, y, tolerance=1e-2)
    momentum = HeavyBall(1.0, 1).momentum
    n = len(y)
    return 8 * (1 + momentum) * n / largest


class _Products(NamedTuple):
    """Inner products of queries z, training points x and directions delta: every scenario, size and
    draw of targets is made of these. z begins with x.
    """

    z_x: Array
    z_delta: Array
    delta_delta: Array


class _Points(NamedTuple):
    """Training points of a second network, carrier x_n + along_n delta_n, in terms of products that
    are shared.
    """

    carrier: float
    along: Array
    square: Array  # |carrier x_n + along_n delta_n|^2


@partial(jax.jit, static_argnums=0)
def _gram(kernel: TwoLayerNTK, products: _Products, points: _Points, d: Array) -> Array:
    """The kernel of the points with each other, (n, n)."""
    c, s, square = points
    n = len(s)
    column = s[:, None]
    x_x = products.z_x[:n]
    x_delta = products.z_delta[:n]
    delta_x = x_delta.T
    with_carrier = c * (c * x_x + s * x_delta + column * delta_x)
    product = with_carrier + column * s * products.delta_delta
    return kernel_of_product(kernel, product, square[:, None], square[None, :], d)


@partial(jax.jit, static_argnums=0)
def _outputs(
    kernel: TwoLayerNTK,
    products: _Products,
    points: _Points,
    z_square: Array,
    coef: Array,
    d: Array,
) -> Array:
    """Outputs (m, k) at z of networks with the dual coefficients (n, k)."""
    c, s, square = points

    def rows(block):
        z_x, z_delta, z_square = block
        product = c * z_x + s * z_delta
        z_column = z_square[:, None]
        x_row = square[None, :]
        tile = kernel_of_product(kernel, product, z_column, x_row, d)
        return jnp.matmul(tile, coef, precision=EXACT)

    queries = (products.z_x, products.z_delta, z_square)
    return by_rows(rows, queries, _ROWS)


# --- one cell ---


class _Cell(NamedTuple):
    """What all trainings of a cell share; z (m, d) are the training points and then the fresh
    ones.
    """

    kernel: TwoLayerNTK
    dynamics: str
    x: np.ndarray
    y: Array
    z: np.ndarray
    z_square: Array


class _First(NamedTuple):
    """First networks, k of them: their outputs at z, gradients at x, and the stable rate."""

    outputs: Float[np.ndarray, "k m"]
    gradients: Float[np.ndarray, "k n d"]
    stable_rate: float


def logistic(
    kernel: TwoLayerNTK,
    drawn: Drawn,
    requests: Sequence[Request],
    labels: Arrays,
    dynamics: str,
) -> Arrays:
    """The result of a cell whose loss is logistic; see `limit_cell`."""
    x = np.asarray(drawn.x)
    z = np.concatenate([x, drawn.fresh])
    z_square = np.sum(z**2, axis=1)
    cell = _Cell(kernel, dynamics, x, drawn.y, z, jnp.asarray(z_square))
    schedules = list(dict.fromkeys(_schedule_f(r) for r in requests))
    first = _first_networks(cell, drawn, schedules)

    n = len(x)
    standard = {}
    pairs = {}
    z_x = jnp.asarray(inner_products(z, x))
    for k, schedule in enumerate(schedules):
        outputs = first.outputs[k]
        standard[schedule] = float(accuracy(outputs[:n], drawn.y))
        gradients = jnp.asarray(first.gradients[k])
        delta = np.asarray(normalise(gradients, "l2"))
        z_delta = inner_products(z, delta)
        delta_delta = inner_products(delta, delta)
        products = _Products(z_x, jnp.asarray(z_delta), jnp.asarray(delta_delta))
        mine = [r for r in requests if _schedule_f(r) == schedule]
        pairs[schedule] = _second_networks(cell, mine, labels, products, delta, outputs)

    rows = []
    for r in requests:
        schedule = _schedule_f(r)
        row: Json = {
            "standard_zero": standard[schedule],
            "unstable_f": r.learning_rate_f > first.stable_rate,
        }
        for rule in labels:
            key = (r.scenario, r.size, _schedule_g(r), rule)
            of_draws = pairs[schedule].get(key, [])
            pairs_of_draws = np.array(of_draws).reshape(-1, 2)
            right, same = pairs_of_draws.T
            row[f"perturbation_zero_{rule}"] = right
            row[f"agreement_zero_{rule}"] = same
        rows.append(row)
    return by_name(rows)


def _schedule_f(request: Request) -> tuple[float, int]:
    return request.learning_rate_f, request.steps_f


def _schedule_g(request: Request) -> tuple[float, int]:
    return request.learning_rate_g, request.steps_g


def _first_networks(cell: _Cell, drawn: Drawn, schedules: Sequence[tuple[float, int]]) -> _First:
    operator = gram_operator(cell.kernel, drawn.x)
    coef = _coefficients(operator, cell.y, schedules, cell.dynamics)
    stable = _stable_rate(operator, cell.y)
    at_fresh = cell.kernel.matvec(drawn.fresh, cell.x, coef)
    outputs = np.concatenate([operator(coef), at_fresh]).T
    del operator  # its matrix: that of a second network takes its place
    found = first_networks(cell.kernel, cell.x, cell.x, coef)
    return _First(outputs, found.gradients, stable)


def _second_networks(
    cell: _Cell,
    requests: Sequence[Request],
    labels: Arrays,
    products: _Products,
    delta: np.ndarray,
    outputs_f: np.ndarray,
) -> dict[tuple, list[tuple[float, float]]]:
    """(scenario, size, schedule, rule) -> for every draw of targets, the accuracy at the training
    points and the agreement with the first network at the fresh ones.
    """
    n = len(cell.x)
    schedules = list(dict.fromkeys(_schedule_g(r) for r in requests))
    f_sign = np.sign(outputs_f[n:])
    perturbed = dict.fromkeys((r.scenario, r.size) for r in requests)
    found: dict[tuple, list[tuple[float, float]]] = {}
    for (scenario, size), rule in itertools.product(perturbed, labels):
        columns = labels[rule]
        for target in columns.T:
            outputs = _trained(cell, scenario, size, target, products, delta, schedules)
            for j, schedule in enumerate(schedules):
                mine = outputs[:, j]
                right = float(accuracy(mine[:n], cell.y))
                same = float(accuracy(mine[n:], f_sign))
                of_draws = found.setdefault((scenario, size, schedule, rule), [])
                of_draws.append((right, same))
    return found


def _trained(
    cell: _Cell,
    scenario: str,
    size: float,
    target: np.ndarray,
    products: _Products,
    delta: np.ndarray,
    schedules: Sequence[tuple[float, int]],
) -> Array:
    """Outputs (m, schedules) of second networks."""
    if scenario == "a" and size == 0:
        # All points coincide at zero: the sign of every output is that of the majority.
        shape = (len(cell.z), len(schedules))
        return jnp.full(shape, target.sum())
    d = cell.x.shape[1]
    carrier = float(scenario == "b")
    along = np.float32(size) * target
    step = along[:, None] * delta
    perturbed = carrier * cell.x + step
    square = np.sum(perturbed**2, axis=1)
    points = _Points(carrier, jnp.asarray(along), jnp.asarray(square))
    matrix = _gram(cell.kernel, products, points, d)
    gram = GramOperator(cell.kernel, None, matrix)
    del matrix
    coef = _coefficients(gram, jnp.asarray(target), schedules, cell.dynamics)
    del gram  # its matrix, before the outputs need memory
    return _outputs(cell.kernel, products, points, cell.z_square, coef, d)
