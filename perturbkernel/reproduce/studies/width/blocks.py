"""Networks of any width for the study, drawn, trained and added up BLOCK neurons at a time."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from perturbkernel.networks.optimizers import paper_optimizer
from perturbkernel.networks.training import train
from perturbkernel.networks.two_layer import TwoLayerNetwork
from perturbkernel.training.dynamics import HeavyBall

#: Neurons that are drawn and trained together; every width is a multiple.
BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Setting:
    """The fixed data and training: two Gaussian classes with means +-shift in every coordinate, d
    dimensions.

    n training points and balanced targets for g; `points` queries of the same law; T = `time` for f
    and `time_g` for g in `steps` steps of heavy ball; perturbations of length `size`.
    """

    n: int = 20
    d: int = 20
    points: int = 600
    shift: float = 0.3
    slope: float = 0.0
    time: float = 1.0
    size: float = 2.0
    time_g: float = 2.0
    steps: int = 16
    momentum: float = 0.9


def block(key, i, blocks, s: Setting) -> TwoLayerNetwork:
    """Neurons i BLOCK to (i + 1) BLOCK of a network of `blocks` BLOCK neurons."""
    of_block = jax.random.fold_in(key, i)
    net = TwoLayerNetwork.init(s.d, BLOCK, s.slope, key=of_block)
    readout = net.readout / jnp.sqrt(blocks)
    return dataclasses.replace(net, readout=readout)


def _trained(net: TwoLayerNetwork, x, y, s: Setting, time: float) -> TwoLayerNetwork:
    unit = HeavyBall(1.0, s.steps, s.momentum)
    rate = time / unit.effective_time
    optimizer = paper_optimizer(rate, s.momentum)
    steps = s.steps
    trained, _ = train(net, x, y, optimizer=optimizer, steps=steps, trace_every=steps)
    return trained


def _summed(of_block: Callable, blocks):
    """The sum of of_block(i) over i < blocks, which may be traced: one compilation for all
    widths.
    """

    def added(i, total):
        return jax.tree.map(jnp.add, total, of_block(i))

    def zeros(shape):
        return jnp.zeros(shape.shape, shape.dtype)

    shapes = jax.eval_shape(of_block, 0)
    start = jax.tree.map(zeros, shapes)
    return lax.fori_loop(0, blocks, added, start)


class First(NamedTuple):
    """A network f of m neurons before and after training: outputs (n + points,) at all points,
    gradients (n, d) at x; phi (n, n + points); gates that flipped at each point.
    """

    before: Any
    after: Any
    gradient_before: Any
    gradient_after: Any
    phi: Any
    flipped: Any


@partial(jax.jit, static_argnames="s")
def train_first(key, blocks, x, y, everywhere, *, s: Setting) -> First:
    """Trains f: its outputs and gates `everywhere`, its gradients at x, Phi_m between the two."""

    def of_block(i):
        before = block(key, i, blocks, s)
        after = _trained(before, x, y, s, s.time)
        flipped = before.active(everywhere) != after.active(everywhere)
        return First(
            before=before(everywhere),
            after=after(everywhere),
            gradient_before=before.input_gradient(x),
            gradient_after=after.input_gradient(x),
            phi=before.empirical_phi(x, everywhere),
            flipped=flipped.sum(-1, dtype=x.dtype),
        )

    return _summed(of_block, blocks)


@partial(jax.jit, static_argnames="s")
def train_second(key, blocks, perturbed, targets, z, *, s: Setting):
    """Trains g on each of the sets (k, n, d), from the same start: outputs before (m,) and after
    (k, m).
    """

    def of_block(i):
        before = block(key, i, blocks, s)

        def after(points):
            trained = _trained(before, points, targets, s, s.time_g)
            return trained(z)

        return before(z), jax.vmap(after)(perturbed)

    return _summed(of_block, blocks)


@partial(jax.jit, static_argnames="s")
def output_change(key, blocks, x, y, z, time, *, s: Setting):
    """f - f0 at z."""

    def of_block(i):
        before = block(key, i, blocks, s)
        after = _trained(before, x, y, s, time)
        return after(z) - before(z)

    return _summed(of_block, blocks)
