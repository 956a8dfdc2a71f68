"""The logistic loss in the kernel limit: one integration gives all times of a training, for both
networks.
"""

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
from perturbkernel.reproduce.panels.sweep import first_networks, inner_products, kernel_of_product
from perturbkernel.training.dynamics import HeavyBall
from perturbkernel.training.gram import GramOperator, gram_operator
from perturbkernel.training.logistic import heavy_ball
from perturbkernel.training.logistic_path import logistic_path

# Accuracies are counted to 0.01: outputs right to a hundredth of the largest are enough.
_TOLERANCE = 3e-3


def _coefficients(
    operator: GramOperator, y: Array, schedules: Sequence[tuple[float, int]], dynamics: str
) -> Float[Array, "n k"]:
    """Dual coefficients after each (learning rate, steps), from zero."""
    balls = [HeavyBall(rate, steps) for rate, steps in schedules]
    if dynamics == "flow":
        times = np.array([ball.effective_time for ball in balls])
        path = logistic_path(operator, y, None, times, rtol=_TOLERANCE)
        if not np.isfinite(np.asarray(path.dual_coef)).all():
            raise RuntimeError(
                f"the logistic flow came to time {float(path.time):g} of {times.max():g}"
            )
        coef = path.dual_coef
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unstable rates are part of the result
            coef = jnp.stack(
                [heavy_ball(operator, y, jnp.zeros_like(y), ball).dual_coef for ball in balls]
            )
    return coef.T


def _stable_rate(operator: GramOperator, y: Array) -> float:
    largest, _ = largest_eigenvalue(operator, y, tolerance=1e-2)
    return 8 * (1 + HeavyBall(1.0, 1).momentum) * len(y) / largest


class _Points(NamedTuple):
    """Training points of a second network, carrier x_n + along_n delta_n, in terms of products that
    are shared.
    """

    carrier: float
    along: Array
    square: Array  # |carrier x_n + along_n delta_n|^2


@partial(jax.jit, static_argnums=0)
def _gram(
    kernel: TwoLayerNTK, products: tuple[Array, Array, Array], points: _Points, d: Array
) -> Array:
    (xx, x_delta, delta_delta), (c, s, square) = products, points
    n = len(s)
    product = (
        c * (c * xx[:n] + s * x_delta[:n] + s[:, None] * x_delta[:n].T)
        + s[:, None] * s * delta_delta
    )
    return kernel_of_product(kernel, product, square[:, None], square[None, :], d)


@partial(jax.jit, static_argnums=0)
def _outputs(
    kernel: TwoLayerNTK,
    products: tuple[Array, Array, Array],
    points: _Points,
    z_square: Array,
    coef: Array,
    d: Array,
) -> Array:
    (zx, z_delta, _), (c, s, square) = products, points

    def rows(block):
        zx, z_delta, z_square = block
        tile = kernel_of_product(
            kernel, c * zx + s * z_delta, z_square[:, None], square[None, :], d
        )
        return jnp.matmul(tile, coef, precision=EXACT)

    return by_rows(rows, (zx, z_delta, z_square), 512)


def logistic(
    kernel: TwoLayerNTK, drawn: Drawn, requests, labels: dict[str, np.ndarray], dynamics: str
):
    """The result of a cell whose loss is logistic; see `limit_cell`."""
    x, y, (n, d) = np.asarray(drawn.x), drawn.y, drawn.x.shape
    z = np.concatenate([x, drawn.fresh])
    z_square = jnp.asarray(np.sum(z**2, axis=1))
    schedules_f = list(dict.fromkeys((r.learning_rate_f, r.steps_f) for r in requests))
    operator = gram_operator(kernel, drawn.x)
    coef_f, stable = _coefficients(operator, y, schedules_f, dynamics), _stable_rate(operator, y)
    outputs_f = np.concatenate([operator(coef_f), kernel.matvec(drawn.fresh, x, coef_f)]).T
    del operator  # its matrix: that of a second network takes its place
    gradients = first_networks(kernel, x, x, coef_f).gradients
    first, second = {}, {}
    zx = jnp.asarray(inner_products(z, x))
    for k, schedule in enumerate(schedules_f):
        first[schedule] = float(accuracy(outputs_f[k, :n], y)), schedule[0] > stable
        mine = [r for r in requests if (r.learning_rate_f, r.steps_f) == schedule]
        schedules_g = list(dict.fromkeys((r.learning_rate_g, r.steps_g) for r in mine))
        f_sign = np.sign(outputs_f[k, n:])
        delta = np.asarray(normalise(jnp.asarray(gradients[k]), "l2"))
        # Every scenario, size and draw of targets is made of these products.
        products = (
            zx,
            jnp.asarray(inner_products(z, delta)),
            jnp.asarray(inner_products(delta, delta)),
        )
        for scenario, size in dict.fromkeys((r.scenario, r.size) for r in mine):
            for rule, columns in labels.items():
                for target in columns.T:
                    if scenario == "a" and size == 0:
                        # All points coincide at zero: the sign of every output is that of the
                        # majority.
                        outputs_g = jnp.full((len(z), len(schedules_g)), target.sum())
                    else:
                        carrier, along = float(scenario == "b"), np.float32(size) * target
                        square = np.sum((carrier * x + along[:, None] * delta) ** 2, axis=1)
                        points = _Points(carrier, jnp.asarray(along), jnp.asarray(square))
                        gram = GramOperator(kernel, None, _gram(kernel, products, points, d))
                        coef_g = _coefficients(gram, jnp.asarray(target), schedules_g, dynamics)
                        del gram
                        outputs_g = _outputs(kernel, products, points, z_square, coef_g, d)
                    for j, schedule_g in enumerate(schedules_g):
                        pair = (
                            float(accuracy(outputs_g[:n, j], y)),
                            float(accuracy(outputs_g[n:, j], f_sign)),
                        )
                        second.setdefault((scenario, size, schedule, schedule_g, rule), []).append(
                            pair
                        )
    result: dict[str, list] = {name: [] for name in ("standard_zero", "unstable_f")}
    result |= {
        f"{name}_zero_{rule}": [] for name in ("perturbation", "agreement") for rule in labels
    }
    for r in requests:
        schedule, schedule_g = (r.learning_rate_f, r.steps_f), (r.learning_rate_g, r.steps_g)
        for name, value in zip(("standard_zero", "unstable_f"), first[schedule], strict=True):
            result[name].append(value)
        for rule in labels:
            pairs = np.array(
                second.get((r.scenario, r.size, schedule, schedule_g, rule), [])
            ).reshape(-1, 2)
            result[f"perturbation_zero_{rule}"].append(pairs[:, 0])
            result[f"agreement_zero_{rule}"].append(pairs[:, 1])
    return {name: np.asarray(values) for name, values in result.items()}
