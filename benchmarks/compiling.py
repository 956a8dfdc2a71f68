"""Compile time: the first call at a shape that was never seen, less a later one, against
neural-tangents.

Processor time: other programs disturb it less than the clock. Attacks are compared with a loop of
as many steps along neural-tangents' gradient, the least that an attack can be, in one program.
"""

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from perturbkernel import KernelPredictor, TwoLayerNTK, attack, minimum_norm
from perturbkernel.attacks.norms import normalise

from . import alternatives as other
from . import predictors
from .harness import Case, Group, Row, Settings
from .products import described, points

SHAPE = (600, 500, 100)
_STEPS = 10  # of an attack
_SIZE = 0.1


def _compile_seconds(call: Callable, arguments) -> float:
    seconds = []
    for _ in range(4):
        began = time.process_time()
        jax.block_until_ready(call(*arguments))
        seconds.append(time.process_time() - began)
    return seconds[0] - float(np.median(seconds[1:]))


def _descent() -> Callable:
    """(z, x, coef) -> z after steps along neural-tangents' gradient, jitted."""
    gradient = other.tangents_input_gradient()

    def steps(z, x, coef):
        def step(_, moved):
            return moved + _SIZE / _STEPS * normalise(gradient(moved, x, coef), "l2")

        return jax.lax.fori_loop(0, _STEPS, step, z)

    return jax.jit(steps)


def _calls(what: str) -> tuple[Callable, Callable]:
    """The functions (z, x, coef) of perturbkernel and of neural-tangents to call."""
    kernel = TwoLayerNTK(0.0, train_bias=True)
    if what == "matvec":
        return kernel.matvec, other.tangents_matvec()
    if what == "input_gradient":
        return kernel.input_gradient, other.tangents_input_gradient()
    if what in predictors.LOSSES:
        # Fitted to, and perturbed at, the queries, whose number is new in each round.
        def of(library: Callable) -> Callable:
            return lambda z, x, coef: library(what, "perturbations", z, _labels(z), z)()

        return of(predictors.perturbkernel_calls), of(predictors.neural_tangents_calls)

    def attacked(z, x, coef):
        f = KernelPredictor(kernel, x, coef)
        if what == "attack":
            return attack(f, z, _labels(z), size=_SIZE, steps=_STEPS).delta
        return minimum_norm(f, z).delta

    return attacked, _descent()


_NAMES = {loss: f"fit and perturbation, {loss}" for loss in predictors.LOSSES}


def _labels(z: jax.Array) -> jax.Array:
    return jnp.asarray(np.where(np.asarray(z)[:, 0] > 0, 1, -1), z.dtype)


def _measure(what: str, settings: Settings) -> list[Row]:
    mine, theirs = _calls(what)
    seconds = []
    n, m, d = SHAPE
    for i in range(1 + settings.rounds(7, 2)):
        # A new shape each round.
        x, z, coef = map(jnp.asarray, points((n, m + i, d), settings.seed))
        seconds.append([_compile_seconds(call, (z, x, coef)) for call in (mine, theirs)])
    kept = np.asarray(seconds[1:])  # the first round also loads what is loaded once
    row = Row(
        _NAMES.get(what, what),
        described(SHAPE),
        "perturbkernel",
        "neural-tangents",
        tuple((kept[:, 0] / kept[:, 1]).tolist()),
    )
    return [Row(**{**row.__dict__, "seconds": float(np.median(kept[:, 0]))})]


def _cases(settings: Settings) -> list[Case]:
    cost = 3 if settings.quick else 30
    functions = ("matvec", "input_gradient", *predictors.LOSSES, "attack", "minimum_norm")
    return [
        Case(_NAMES.get(what, what), described(SHAPE), partial(_measure, what, settings), cost)
        for what in functions
    ]


GROUP = Group(
    "compile",
    "Compile time",
    "compile time / that of neural-tangents, jitted",
    _cases,
    one="neural-tangents",
)
