"""The logistic loss in the kernel limit: one integration gives all times of a training, for both networks."""

import warnings
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perturbkernel.dynamics import HeavyBall
from perturbkernel.gram import GramOperator, gram_operator
from perturbkernel.kernels import TwoLayerNTK
from perturbkernel.krylov import largest_eigenvalue
from perturbkernel.learning import accuracy
from perturbkernel.logistic import heavy_ball, logistic_path
from perturbkernel.perturbations import normalise
from perturbkernel.reproduce.datasets import Drawn
from perturbkernel.reproduce.sweep import first_networks

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
            raise RuntimeError(f"the logistic flow came to time {float(path.time):g} of {times.max():g}")
        coef = path.dual_coef
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unstable rates are part of the result
            coef = jnp.stack([heavy_ball(operator, y, jnp.zeros_like(y), ball).dual_coef for ball in balls])
    return coef.T


def _stable_rate(operator: GramOperator, y: Array) -> float:
    largest, _ = largest_eigenvalue(operator, y, tolerance=1e-2)
    return 8 * (1 + HeavyBall(1.0, 1).momentum) * len(y) / largest


def logistic(kernel: TwoLayerNTK, drawn: Drawn, requests, labels: dict[str, np.ndarray], dynamics: str):
    """The result of a cell whose loss is logistic; see `limit_cell`."""
    x, y, n = drawn.x, drawn.y, len(drawn.y)
    z = np.concatenate([x, drawn.fresh])
    schedules_f = list(dict.fromkeys((r.learning_rate_f, r.steps_f) for r in requests))
    operator = gram_operator(kernel, x)
    coef_f, stable = _coefficients(operator, y, schedules_f, dynamics), _stable_rate(operator, y)
    outputs_f = np.concatenate([operator(coef_f), kernel.matvec(drawn.fresh, x, coef_f)]).T
    del operator  # its matrix: that of a second network takes its place
    gradients = first_networks(kernel, x, x, coef_f).gradients
    first, second = {}, {}
    for k, schedule in enumerate(schedules_f):
        first[schedule] = float(accuracy(outputs_f[k, :n], y)), schedule[0] > stable
        mine = [r for r in requests if (r.learning_rate_f, r.steps_f) == schedule]
        schedules_g = list(dict.fromkeys((r.learning_rate_g, r.steps_g) for r in mine))
        f_sign = np.sign(outputs_f[k, n:])
        for scenario, size in dict.fromkeys((r.scenario, r.size) for r in mine):
            delta = size * normalise(jnp.asarray(gradients[k]), "l2")
            for rule, columns in labels.items():
                for target in jnp.asarray(columns.T):
                    if scenario == "a" and size == 0:
                        # All points coincide at zero: the sign of every output is that of the majority.
                        outputs_g = jnp.full((len(z), len(schedules_g)), target.sum())
                    else:
                        r = x * (scenario == "b") + target[:, None] * delta
                        coef_g = _coefficients(gram_operator(kernel, r), target, schedules_g, dynamics)
                        outputs_g = kernel.matvec(z, r, coef_g)
                    for j, schedule_g in enumerate(schedules_g):
                        pair = float(accuracy(outputs_g[:n, j], y)), float(accuracy(outputs_g[n:, j], f_sign))
                        second.setdefault((scenario, size, schedule, schedule_g, rule), []).append(pair)
    result: dict[str, list] = {name: [] for name in ("standard_zero", "unstable_f")}
    result |= {f"{name}_zero_{rule}": [] for name in ("perturbation", "agreement") for rule in labels}
    for r in requests:
        schedule, schedule_g = (r.learning_rate_f, r.steps_f), (r.learning_rate_g, r.steps_g)
        for name, value in zip(("standard_zero", "unstable_f"), first[schedule], strict=True):
            result[name].append(value)
        for rule in labels:
            pairs = np.array(second.get((r.scenario, r.size, schedule, schedule_g, rule), [])).reshape(-1, 2)
            result[f"perturbation_zero_{rule}"].append(pairs[:, 0])
            result[f"agreement_zero_{rule}"].append(pairs[:, 1])
    return {name: np.asarray(values) for name, values in result.items()}
