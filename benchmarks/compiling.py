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
_LEFT_OUT = 450  # queries, of attacks, whose steps would take longer than to compile them


def _compile_seconds(call: Callable) -> float:
    seconds = []
    for _ in range(4):
        began = time.process_time()
        jax.block_until_ready(call())
        seconds.append(time.process_time() - began)
    first, *later = seconds
    return first - float(np.median(later))


def _descent() -> Callable:
    """(z, x, coef) -> z after steps along neural-tangents' gradient, jitted."""
    gradient = other.tangents_input_gradient()

    length = _SIZE / _STEPS

    def steps(z, x, coef):
        def step(_, moved):
            direction = normalise(gradient(moved, x, coef), "l2")
            return moved + length * direction

        return jax.lax.fori_loop(0, _STEPS, step, z)

    return jax.jit(steps)


def _calls(what: str, z, x, coef) -> tuple[Callable, Callable]:
    """What perturbkernel and neural-tangents do, to be called."""
    kernel = TwoLayerNTK(0.0, train_bias=True)
    if what == "matvec":
        return partial(kernel.matvec, z, x, coef), partial(other.tangents_matvec(), z, x, coef)
    if what == "input_gradient":
        theirs = other.tangents_input_gradient()
        return partial(kernel.input_gradient, z, x, coef), partial(theirs, z, x, coef)
    if what in predictors.LOSSES:
        # Fitted to, and perturbed at, the queries, whose number is new in each round.
        task = what, "perturbations", z, _labels(z), z
        return predictors.perturbkernel_calls(*task), predictors.neural_tangents_calls(*task)
    f = KernelPredictor(kernel, x, coef)
    few = z[-(len(z) - _LEFT_OUT) :]

    def attacked():
        if what == "attack":
            return attack(f, few, _labels(few), size=_SIZE, steps=_STEPS).delta
        return minimum_norm(f, few).delta

    return attacked, partial(_descent(), few, x, coef)


_NAMES = {loss: f"fit and perturbation, {loss}" for loss in predictors.LOSSES}


def _labels(z: jax.Array) -> jax.Array:
    first = np.asarray(z)[:, 0]
    signs = np.where(first > 0, 1, -1)
    return jnp.asarray(signs, z.dtype)


def _measure(what: str, settings: Settings) -> list[Row]:
    seconds = []
    n, m, d = SHAPE
    for i in range(1 + settings.rounds(7, 2)):
        # A new shape each round.
        drawn = points((n, m + i, d), settings.seed)
        x, z, coef = map(jnp.asarray, drawn)
        calls = _calls(what, z, x, coef)
        seconds.append([_compile_seconds(call) for call in calls])
    kept = np.asarray(seconds[1:])  # the first round also loads what is loaded once
    own, others = kept.T
    ratios = own / others
    row = Row(
        _NAMES.get(what, what),
        described(SHAPE),
        "perturbkernel",
        "neural-tangents",
        tuple(ratios.tolist()),
        seconds=float(np.median(own)),
    )
    return [row]


def _cases(settings: Settings) -> list[Case]:
    cost = 3 if settings.quick else 30
    functions = ("matvec", "input_gradient", *predictors.LOSSES, "attack", "minimum_norm")
    sizes = described(SHAPE)
    cases = []
    for what in functions:
        name = f"fit-{what}" if what in _NAMES else what  # no comma: `--only` separates names by it
        measure = partial(_measure, what, settings)
        cases.append(Case(name, sizes, measure, cost))
    return cases


GROUP = Group(
    "compile",
    "Compile time",
    "compile time / that of neural-tangents, jitted",
    _cases,
    one="neural-tangents",
)
