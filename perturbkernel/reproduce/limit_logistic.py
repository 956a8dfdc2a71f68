"""The logistic loss in the kernel limit: one integration gives all times of a training, for both networks."""

import warnings
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perturbkernel.dynamics import HeavyBall
from perturbkernel.gram import gram_operator
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
    kernel: TwoLayerNTK, x: Array, y: Array, schedules: Sequence[tuple[float, int]], dynamics: str
) -> tuple[Float[Array, "n k"], np.ndarray]:
    """Dual coefficients after each (learning rate, steps), from zero, and whether each rate is above the stable one."""
    operator = gram_operator(kernel, x)
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
    largest, _ = largest_eigenvalue(operator, y, tolerance=1e-2)
    stable = 8 * (1 + balls[0].momentum) * len(y) / largest
    return coef.T, np.array([rate > stable for rate, _ in schedules])


def logistic(kernel: TwoLayerNTK, drawn: Drawn, requests, labels: dict[str, np.ndarray], dynamics: str):
    """The result of a cell whose loss is logistic; see `limit_cell`."""
    x, y, n = drawn.x, drawn.y, len(drawn.y)
    z = np.concatenate([x, drawn.fresh])
    schedules_f = list(dict.fromkeys((r.learning_rate_f, r.steps_f) for r in requests))
    coef_f, unstable = _coefficients(kernel, x, y, schedules_f, dynamics)
    outputs_f, gradients, _ = first_networks(kernel, z, x, coef_f)
    first, second = {}, {}
    for k, schedule in enumerate(schedules_f):
        first[schedule] = float(accuracy(outputs_f[k, :n], y)), bool(unstable[k])
        mine = [r for r in requests if (r.learning_rate_f, r.steps_f) == schedule]
        schedules_g = list(dict.fromkeys((r.learning_rate_g, r.steps_g) for r in mine))
        f_sign = np.sign(outputs_f[k, n:])
        for scenario, size in dict.fromkeys((r.scenario, r.size) for r in mine):
            delta = size * normalise(jnp.asarray(gradients[k, :n]), "l2")
            for rule, columns in labels.items():
                for target in jnp.asarray(columns.T):
                    if scenario == "a" and size == 0:
                        # All points coincide at zero: the sign of every output is that of the majority.
                        outputs_g = jnp.full((len(z), len(schedules_g)), target.sum())
                    else:
                        r = x * (scenario == "b") + target[:, None] * delta
                        coef_g, _ = _coefficients(kernel, r, target, schedules_g, dynamics)
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
