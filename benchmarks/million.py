"""All N perturbations at N from 1,000 to 10^6: measured where the time allows, planned beyond.

The gradient at every point of a sum over every point, 4 N^2 d operations: what takes longest in the
limit. `kernel.plan` says beforehand how long each size takes, and so which are measured.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp

from perturbkernel import TwoLayerNTK
from perturbkernel.kernels.forecast import in_bytes, in_time

from .harness import Case, Group, Row, Settings
from .products import same_points

DIMENSION = 784
SIZES = (1_000, 3_000, 10_000, 30_000, 60_000, 100_000, 300_000, 1_000_000)
# Seconds that one size may take, twice: the first call compiles.
LONGEST, QUICK_LONGEST = 60.0, 0.5


def _seconds(kernel: TwoLayerNTK, n: int, seed: int) -> float:
    """Of all n perturbations, once compiled."""
    x, _, coef = map(jnp.asarray, same_points((n, 1, DIMENSION), seed))
    gradients = partial(kernel.input_gradient, x, x, coef)
    jax.block_until_ready(gradients())
    began = time.perf_counter()
    jax.block_until_ready(gradients())
    return time.perf_counter() - began


def row(settings: Settings) -> Row:
    """Measured and planned seconds over N, and measured / planned as the samples."""
    kernel = TwoLayerNTK(0.0, train_bias=True)
    longest = QUICK_LONGEST if settings.quick else LONGEST
    first = kernel.plan(SIZES[0], SIZES[0], DIMENSION, what="input_gradient")
    measured, planned, samples = [], [], []
    for n in SIZES:
        plan = kernel.plan(n, n, DIMENSION, what="input_gradient", rate=first.rate)
        if plan.seconds > longest:
            planned.append((float(n), plan.seconds))
            continue
        seconds = _seconds(kernel, n, settings.seed)
        measured.append((float(n), seconds))
        samples.append(seconds / plan.seconds)
    words = f"at {first.rate / 1e9:.3g} GFLOP/s"
    if planned:
        last = kernel.plan(SIZES[-1], SIZES[-1], DIMENSION, what="input_gradient", rate=first.rate)
        took = in_time(last.seconds)
        temporaries = in_bytes(last.memory)
        words = f"N = {last.n:,} planned: {took} {words}, {temporaries} of temporaries"
    listed = ", ".join(f"{n:,.0f}" for n, _ in measured)
    return Row(
        "all N perturbations",
        f"N = {listed}; d = {DIMENSION}",
        "perturbkernel",
        "the plan",
        tuple(samples),
        curve=tuple(measured),
        planned=tuple(planned),
        note=words,
    )


def _cases(settings: Settings) -> list[Case]:
    cost = 4 if settings.quick else 200
    return [Case("perturbations", "over N, to 1,000,000", lambda: [row(settings)], cost)]


GROUP = Group(
    "million",
    "To a million points",
    "time of all N perturbations / time that kernel.plan promised, one a size",
    _cases,
    one="the plan",
)
