"""Compile time: the first call at a shape that was never seen, less a later one, against
neural-tangents.
"""

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from perturbkernel import TwoLayerNTK

from . import alternatives as other
from .harness import Case, Group, Row, Settings
from .products import described, points

SHAPE = (600, 500, 100)


def _compile_seconds(call: Callable, arguments) -> float:
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        seconds.append(time.perf_counter() - began)
    return seconds[0] - float(np.median(seconds[1:]))


def _measure(what: str, settings: Settings) -> list[Row]:
    kernel = TwoLayerNTK(0.0, train_bias=True)
    mine = getattr(kernel, what)
    theirs = {"matvec": other.tangents_matvec, "input_gradient": other.tangents_input_gradient}[
        what
    ]()
    seconds = []
    n, m, d = SHAPE
    for i in range(1 + settings.rounds(7, 2)):
        # A new shape each round.
        x, z, coef = map(jnp.asarray, points((n, m + i, d), settings.seed))
        seconds.append([_compile_seconds(call, (z, x, coef)) for call in (mine, theirs)])
    kept = np.asarray(seconds[1:])  # the first round also loads what is loaded once
    row = Row(
        what,
        described(SHAPE),
        "perturbkernel",
        "neural-tangents",
        tuple((kept[:, 0] / kept[:, 1]).tolist()),
    )
    return [Row(**{**row.__dict__, "seconds": float(np.median(kept[:, 0]))})]


def _cases(settings: Settings) -> list[Case]:
    products, cost = (("matvec",), 3) if settings.quick else (("matvec", "input_gradient"), 8)
    return [
        Case(what, described(SHAPE), partial(_measure, what, settings), cost) for what in products
    ]


GROUP = Group(
    "compile",
    "Compile time",
    "compile time / that of neural-tangents, jitted",
    _cases,
    one="neural-tangents",
)
