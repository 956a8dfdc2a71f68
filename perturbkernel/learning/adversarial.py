"""Adversarial training in the kernel regime: perturbed features, in closed form, or perturbed
inputs, in turn.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from perturbkernel.attacks.iterated import attack
from perturbkernel.checks import as_float, as_inputs, as_targets, check_count, check_number
from perturbkernel.kernels.base import Kernel
from perturbkernel.training.predictors import KernelPredictor

_ROUNDS = 1000
_EDGE = 1e-12  # of a weight, from 0 and from 1
_ACCURACY = 1e-9  # of the objective, relative: a round that gains less is the last


def feature_adversarial(
    kernel: Kernel,
    inputs: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, " n"],
    *,
    radius: float,
) -> KernelPredictor:
    """Trains against the worst perturbation of the kernel's features, in closed form.

    It minimises

        1/n sum_n max_{|delta| <= radius} (y_n - <f, phi(x_n) + delta>)^2
            = 1/n sum_n (|y_n - f(x_n)| + radius |f|)^2,

    phi the features of the kernel, |f| the norm of its space, by ridge regressions with other
    weights each: (a + b)^2 is the least a^2 / w + b^2 / (1 - w) for 0 < w < 1, where w = a / (a +
    b). With weights w the minimum is f = sum_n c_n K(x_n, .) with

        (K + lambda diag(w)) c = y,    lambda = radius^2 sum_n 1 / (1 - w_n),

    and the objective never rises.

    Example:
        >>> from perturbkernel.kernels.two_layer import TwoLayerNTK
        >>> x, y = np.eye(2), np.asarray([1.0, -1.0])
        >>> f = feature_adversarial(TwoLayerNTK(), x, y, radius=0.1)
        >>> f(x).round(3).tolist()  # so small a radius leaves the data fitted
        [1.0, -1.0]

    Args:
        kernel, inputs: as in `pk.fit`.
        targets: (n,), real numbers.
        radius: of the perturbations, in the units of the features, whose squared length at x is
            K(x, x); > 0.

    Returns:
        A KernelPredictor whose `status` says so where 1,000 rounds were not enough; `stats` has
        `rounds` and `objective`.

    Memory and time: O(n^2), and O(n^3) a round, tens of them.

    Raises ValueError, TypeError for bad arguments.

    Source: Ribeiro et al. (NeurIPS 2025), kernel learning with adversarial features.
    """
    check_number(radius, "radius", open_low=True)
    x = as_inputs(inputs, "inputs")
    given = as_targets(targets, "targets", len(x), labels=False)
    y = np.asarray(given, float)
    with jax.enable_x64(True):
        gram = np.asarray(kernel.ntk(np.asarray(x, float)))
    # Points that coincide have a singular matrix, and a weight of 0 where they are fitted.
    limits = np.finfo(float)
    rounding = limits.eps * max(np.trace(gram), limits.tiny)
    weights = np.full(len(y), 0.5)
    objective, status, rounds = np.inf, "ok", 0
    coef = np.zeros_like(y)
    while True:
        rounds += 1
        penalty = radius**2 * np.sum(1 / (1 - weights))
        system = gram + np.diag(np.maximum(penalty * weights, rounding))
        coef = np.linalg.solve(system, y)
        fitted = gram @ coef
        length = radius * np.sqrt(max(coef @ fitted, 0.0))
        residual = np.abs(y - fitted)
        last, objective = objective, float(np.mean((residual + length) ** 2))
        if last - objective <= _ACCURACY * objective:
            break
        if rounds == _ROUNDS:
            status = f"the rounds of ridge regression had not converged after {_ROUNDS}"
            break
        # Where nothing is left and f is 0, as of targets 0, any weight does.
        both = residual + length
        share = residual / np.where(both > 0, both, 1)
        weights = np.clip(share, _EDGE, 1 - _EDGE)
    found = as_float(coef.astype(x.dtype), "coefficients")
    stats = {"rounds": rounds, "objective": objective}
    return KernelPredictor(kernel, x, found, status=status, stats=stats)


def adversarial_training(
    learner: Any,
    inputs: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, "n ..."],
    *,
    size: float,
    norm: str = "l2",
    bounds: tuple[ArrayLike, ArrayLike] | None = None,
    rounds: int = 10,
    steps: int = 10,
) -> Any:
    """Alternates attack and training, and returns the last predictor.

    Every round attacks the present predictor at the clean inputs, away from their labels, and
    trains a new predictor on the perturbed inputs from the start. There is no guarantee that this
    converges.

        f = adversarial_training(learner, x, y, size=1.0)

    Example:
        >>> import perturbkernel as pk
        >>> learner = pk.KernelLearner(pk.TwoLayerNTK())
        >>> x, y = np.eye(2), np.asarray([1.0, -1.0])
        >>> f = adversarial_training(learner, x, y, size=0.1, rounds=2, steps=2)
        >>> np.sign(f(x)).tolist()
        [1.0, -1.0]

    Args:
        learner: (inputs, targets, key) -> predictor, such as `pk.KernelLearner`; its key is None.
        inputs, targets: (n, ...), and (n,) in {-1, +1}.
        size, norm, bounds, steps: of the attack.
        rounds: of attack and training.

    Raises as `attack` does.
    """
    check_count(rounds, "rounds")
    x = as_inputs(inputs, "inputs")
    y = as_targets(targets, "targets", len(x))
    f = learner(x, y, None)
    options: Any = {"size": size, "norm": norm, "bounds": bounds, "steps": steps}
    for _ in range(rounds):
        delta: Array = attack(f, x, y, away=True, **options).delta
        f = learner(x + delta.astype(x.dtype), y, None)
    return f
