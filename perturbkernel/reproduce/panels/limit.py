"""One cell of the reproduction in the kernel limit: everything that the panels ask of one data set
and one kernel.

Identity loss: f(z; T) = f0(z) + T f_hat(z), so every learning rate and step count is a time, and
`second_networks` evaluates every size, time and target draw from one pass. Results come twice: from
zero initial functions, where no time matters, and with random ones, where the sign of the second
network follows in closed form (theory: 12.1),

    P(sgn g(z) = s) = N_c(s T_g g_hat(z) / sqrt(Sigma(z, z))),

given the first network's initial function f0, which is in the perturbations too and is drawn.
Logistic loss: zero initial functions; each training is integrated once, for all its times.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array
from scipy.special import ndtr

from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.networks.two_layer import TwoLayerNetwork
from perturbkernel.reproduce.panels.datasets import Drawn, accuracy, draw, targets
from perturbkernel.reproduce.panels.sweep import (
    Combination,
    first_networks,
    padded,
    second_networks,
)
from perturbkernel.training.dynamics import HeavyBall

RULES = ("coin_flip", "balanced")
# Untrained networks whose outputs and gradients stand for a draw of the initial function: their
# covariance is exact at any width, and they are Gaussian up to 1/width.
_WIDTH = 2048
# An initial gradient shorter than this fraction of the trained one turns perturbations by half a
# degree: it is left out of them (the second network's own initial function is not).
_NEGLIGIBLE = 0.01


class Request(NamedTuple):
    """One experiment on the cell's data: which perturbations, and how long either network trains."""

    scenario: str
    size: float
    learning_rate_f: float
    steps_f: int
    learning_rate_g: float
    steps_g: int

    @property
    def time_f(self) -> float:
        return HeavyBall(self.learning_rate_f, self.steps_f).effective_time

    @property
    def time_g(self) -> float:
        return HeavyBall(self.learning_rate_g, self.steps_g).effective_time


def limit_cell(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """The cell that `config` describes: data, slope, loss, requests (rows as in `Request`), draws
    of targets.

    Returns arrays with a leading axis of requests: "standard_zero", "perturbation_zero_<rule>" (r,
    draws) and "agreement_zero_<rule>" from zero initial functions; for the identity loss
    "standard", "perturbation_<rule>", "agreement_<rule>", with initial functions, averaged over
    their draws; with `cosine`, "cosine", "cosine_zero" with the theory's direction; for the
    logistic loss "unstable_f", whether the rate is above the stable one, and no cosine.
    """
    drawn = draw(config["data"])
    kernel = TwoLayerNTK(config["slope"], train_bias=True)
    requests = [Request(*row) for row in config["requests"]]
    draws: dict[str, int] = dict(zip(RULES, config["draws"], strict=True))
    labels = targets(config["data"], len(drawn.y), draws)
    if config["loss"] == "identity":
        return _identity(kernel, drawn, requests, labels, config["initial_draws"], config["cosine"])
    from perturbkernel.reproduce.panels.limit_logistic import logistic

    return logistic(kernel, drawn, requests, labels, config["dynamics"])


def _identity(
    kernel: TwoLayerNTK,
    drawn: Drawn,
    requests: list[Request],
    labels: dict[str, np.ndarray],
    initial_draws: int,
    with_cosine: bool,
):
    x, n, d = drawn.x, *drawn.x.shape
    y = np.asarray(drawn.y)
    # Fresh points after the padded training points: z has a round size too.
    z, fresh = np.concatenate([padded(x), drawn.fresh]), slice(-len(drawn.fresh), None)
    first = first_networks(kernel, z, x, (y / n)[:, None], direction=with_cosine)
    f_hat, gradient = first.outputs[0], first.gradients[0, :n]
    # Of f0(z)
    deviation = np.sqrt((1 + kernel.slope**2) / 2 * (1 + np.sum(np.square(z), axis=1) / d))
    zero, one = np.zeros(n), np.ones(n)
    # Of grad f_hat; E|grad f0|^2.
    length, square = (
        np.linalg.norm(gradient, axis=1),
        (1 + kernel.slope**2) / 2,
    )
    if np.sqrt(square) < _NEGLIGIBLE * min(r.time_f for r in requests) * np.median(length):
        initial_draws = 0
    initial = []
    for key in jax.random.split(jax.random.fold_in(drawn.key, 2), initial_draws):
        outputs, gradients = _initial_function(kernel.slope, padded(z), padded(x), key)
        initial.append((np.asarray(outputs)[: len(z)], np.asarray(gradients)[:n]))

    # Directions as coefficients of the gradient of f_hat and of the initial gradients. From zero no
    # time matters ...
    plain = list(dict.fromkeys((r.scenario, r.size) for r in requests))

    def combination(
        scenario: str, size: float, along: np.ndarray, start: dict[int, np.ndarray]
    ) -> Combination:
        starts = [size * start.get(k, zero) for k in range(initial_draws)]
        return Combination(
            np.stack([one * (scenario == "b"), zero, *[zero] * initial_draws]),
            np.stack([zero, size * along, *starts]),
        )

    combinations = [combination(scenario, size, _inverse(length), {}) for scenario, size in plain]
    # ... and with an initial function directions change with the first network's time.
    timed = list(dict.fromkeys((r.scenario, r.size, r.time_f) for r in requests))
    for number, (_, start) in enumerate(initial):
        for scenario, size, time in timed:
            unit = _inverse(np.linalg.norm(start + time * gradient, axis=1))
            combinations.append(combination(scenario, size, time * unit, {number: unit}))

    columns = np.concatenate([labels[rule] for rule in RULES], axis=1)
    g_hat = second_networks(
        kernel, z, [x, gradient, *[start for _, start in initial]], combinations, columns
    )
    g_hat = g_hat.transpose(0, 2, 1)  # (combinations, draws, m)
    from_zero = dict(zip(plain, g_hat[: len(plain)], strict=True))
    random = g_hat[len(plain) :].reshape(initial_draws, len(timed), *g_hat.shape[1:])

    result: dict[str, list] = {name: [] for name in ("standard_zero", "standard")}
    cosine = zero if first.direction is None else _cosine(gradient, first.direction[:n])
    result |= {"cosine_zero": [], "cosine": []} if with_cosine else {}
    result |= {
        f"{name}{kind}_{rule}": []
        for name in ("perturbation", "agreement")
        for kind in ("_zero", "")
        for rule in RULES
    }

    def add(name: str, values: np.ndarray) -> None:
        for rule, part in zip(RULES, np.split(values, [labels[RULES[0]].shape[1]]), strict=True):
            result[f"{name}_{rule}"].append(part)

    for r in requests:
        result["standard_zero"].append(accuracy(f_hat[:n], y))
        result["standard"].append(ndtr(y * r.time_f * f_hat[:n] / deviation[:n]).mean())
        if first.direction is not None:
            result["cosine_zero"].append(np.mean(cosine))
            # With an initial function the expected cosine to leading order in 1/sqrt(d) (theory:
            # 12.2).
            whole = np.sqrt((r.time_f * length) ** 2 + square)
            result["cosine"].append(np.mean(cosine * r.time_f * length * _inverse(whole)))
        g_zero = from_zero[r.scenario, r.size]
        add("perturbation_zero", accuracy(g_zero[:, :n], y))
        add("agreement_zero", accuracy(g_zero[:, fresh], np.sign(f_hat[fresh])))
        right, same = [], []
        moved = random[:, timed.index((r.scenario, r.size, r.time_f))] if initial else [g_zero]
        for (start, _), g in zip(initial or [(np.zeros(len(z)), None)], moved, strict=True):
            margin = r.time_g * g / deviation
            f_sign = np.sign(start[fresh] + r.time_f * f_hat[fresh])
            right.append(ndtr(y * margin[:, :n]).mean(1))
            same.append(ndtr(f_sign * margin[:, fresh]).mean(1))
        add("perturbation", np.mean(right, axis=0))
        add("agreement", np.mean(same, axis=0))
    return {name: np.asarray(values) for name, values in result.items()}


@partial(jax.jit, static_argnums=0)
def _initial_function(slope: float, z: Array, x: Array, key: Array) -> tuple[Array, Array]:
    net = TwoLayerNetwork.init(x.shape[1], _WIDTH, slope, True, key=key)
    return net(z), net.input_gradient(x)


def _inverse(length: np.ndarray) -> np.ndarray:
    return 1 / np.where(length > 0, length, np.inf)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|<a_i, b_i>| / (|a_i| |b_i|) of the rows; 0 where one is zero."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.abs(np.einsum("nd,nd->n", a, b)) * _inverse(lengths)
