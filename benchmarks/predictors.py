"""Trained predictors and attacks on them, against neural-tangents' `predict` with autodiff for
input gradients.

perturbkernel trains in float64 whatever the data (squared, logistic); neural-tangents in the
precision of its kernel, float32 here. Its fit for the squared loss cannot be traced, so it runs
eagerly; kernels, their derivatives and the differential equations of the other losses are jitted,
once.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from perturbkernel import GradientFlow, TwoLayerNTK, data, fit, perturb
from perturbkernel.attacks.norms import normalise

from . import alternatives as other
from .harness import Case, Group, Row, Settings, compare

TIME, SIZE = 1.0, 0.1
LOSSES: dict[str, Callable[..., Any]] = {
    "identity": lambda outputs, targets: -jnp.mean(targets * outputs),
    "squared": lambda outputs, targets: jnp.mean((outputs - targets) ** 2) / 2,
    "logistic": lambda outputs, targets: jnp.mean(jax.nn.softplus(-targets * outputs)),
}
TASKS = {
    "outputs": "fit and outputs at new points",
    "gradients": "input gradients at new points",
    "perturbations": "fit and perturbation of every training point",
}


def neural_tangents_calls(loss: str, task: str, x, y, z) -> Callable[[], Any]:
    """The task by neural-tangents, to be called."""
    kernel = other.tangents()
    predict = other.neural_tangents("predict")

    @jax.jit
    def matrix(z, x):
        return kernel(z, x, "ntk")

    @jax.jit
    def pull_back(z, x, cotangent):
        _, pullback = jax.vjp(lambda z: kernel(z, x, "ntk"), z)
        (gradient,) = pullback(cotangent)
        return gradient

    def trained(gram, y):
        """Trains; the function from K(z, x) to outputs at z."""
        targets = y[:, None]
        if loss == "squared":
            f = predict.gradient_descent_mse(gram, targets)
        else:
            f = predict.gradient_descent(LOSSES[loss], gram, targets)

        def outputs(queries):
            _, found = f(TIME, 0.0, 0.0, queries)
            return found[:, 0]

        return outputs

    def evaluate(gram, y, queries):
        outputs = trained(gram, y)
        return outputs(queries)

    def cotangent(gram, y, queries):
        def total(queries):
            outputs = trained(gram, y)
            return jnp.sum(outputs(queries))

        return jax.grad(total)(queries)

    if loss != "squared":
        evaluate = jax.jit(evaluate)
        cotangent = jax.jit(cotangent)
    if task == "outputs":
        return lambda: evaluate(matrix(x, x), y, matrix(z, x))
    if task == "perturbations":

        def attack():
            gram = matrix(x, x)
            of_entries = cotangent(gram, y, gram)
            gradient = pull_back(x, x, of_entries)
            return SIZE * y[:, None] * normalise(gradient, "l2")

        return attack
    gram = matrix(x, x)
    if loss == "squared":
        of_trained = trained(gram, y)
        differentiate = jax.grad(lambda queries: jnp.sum(of_trained(queries)))
        return lambda: pull_back(z, x, differentiate(matrix(z, x)))
    return lambda: pull_back(z, x, cotangent(gram, y, matrix(z, x)))


def perturbkernel_calls(loss: str, task: str, x, y, z) -> Callable[[], Any]:
    """The task by perturbkernel, to be called."""
    kernel = TwoLayerNTK(0.0, train_bias=True)
    flow = GradientFlow(TIME)
    train = partial(fit, kernel, x, y, loss=loss, dynamics=flow)
    if task == "outputs":
        return lambda: train()(z)
    if task == "perturbations":
        return lambda: perturb(train(), x, y, size=SIZE).delta
    return partial(train().input_gradient, z)


def _sizes(settings: Settings) -> tuple[int, int, int]:
    return (300, 300, 100) if settings.quick else (1000, 1000, 784)


def _measure(loss: str, task: str, settings: Settings) -> Iterator[Row]:
    n, m, d = _sizes(settings)
    key = jax.random.key(settings.seed)
    drawn = data.shifted_gaussian(n + m, d, 0.1, key=key)
    x = drawn.inputs[:n]
    y = drawn.targets[:n]
    z = drawn.inputs[n:]
    return compare(
        TASKS[task],
        _described(loss, settings),
        ("neural-tangents", partial(neural_tangents_calls, loss, task, x, y, z)),
        {"perturbkernel": partial(perturbkernel_calls, loss, task, x, y, z)},
        settings.rounds(7, 3),
        tolerance=1e-2,
        same_result=True,
    )


def _described(loss: str, settings: Settings) -> str:
    n, m, d = _sizes(settings)
    return f"{loss}, n = {n}, m = {m}, d = {d}"


def _cases(settings: Settings) -> list[Case]:
    cases = []
    for task in TASKS:
        if settings.quick and task == "gradients":
            continue
        for loss in LOSSES:
            measure = partial(_measure, loss, task, settings)
            cost = 3 if settings.quick else 30
            cases.append(Case(task, _described(loss, settings), measure, cost))
    return cases


GROUP = Group(
    "predictors",
    "Predictors and attacks",
    "time / time of neural-tangents' predict with autodiff, for the same result",
    _cases,
    one="neural-tangents",
)
