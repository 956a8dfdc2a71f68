"""Whole networks, drawn and trained, a block of neurons at a time (theory: 14.1).

With the identity loss a trained network is the sum of its neurons, each trained alone: what is
wanted of it, outputs at some points and input gradients at its training inputs, is added up over
blocks, and no width needs more memory than a block. Here many networks are drawn of which nothing
else is kept; `NeuronLaw` keeps neurons.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from perturbkernel.arrays import or_one
from perturbkernel.engine.memory import default_memory
from perturbkernel.engine.tiles import EXACT
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.law.paths import Field, Path
from perturbkernel.training.dynamics import HeavyBall

#: Numbers (networks by neurons by points) that move at once at small sizes.
_AT_ONCE = 2**19
#: Arrays of that shape that training holds.
_ARRAYS = 8
#: Arrays of inputs' shape that a second network holds.
_INPUTS = 4
#: Groups of networks in one call: progress is told between calls.
_GROUPS = 4


class Shape(NamedTuple):
    """What is compiled for.

    Attributes:
        kernel: slope, and whether biases are trained.
        width: neurons of a network; `start`: "random", "centred" or "doubled".
        block: neurons that move at once, pairs of them if doubled.
        together: networks that move at once.
    """

    kernel: TwoLayerNTK
    width: int
    start: str
    block: int
    together: int

    @property
    def independent(self) -> int:
        """Independent neurons, or pairs, of a network. Theory: 4.4."""
        return self.width // 2 if self.start == "doubled" else self.width


def shape_for(kernel: TwoLayerNTK, width: int, start: str, x: Array) -> Shape:
    """Blocks of neurons, and groups of networks, within the kernel's memory, for inputs (n, d)."""
    n, d = x.shape
    itemsize = x.dtype.itemsize
    memory = kernel.memory or default_memory()
    pairs = 2 if start == "doubled" else 1
    neuron = pairs * n * _ARRAYS
    shape = Shape(kernel, width, start, 1, 1)
    fitting = max(1, memory // (neuron * itemsize))
    blocks = _ceil(shape.independent, fitting)
    block = _ceil(shape.independent, blocks)
    # Inputs, gradients and Gram matrix of a network on its own inputs.
    factors = n * min(n, d)
    network = block * neuron + factors + _INPUTS * n * d
    together = min(memory // (network * itemsize), _AT_ONCE // (pairs * block * n))
    return shape._replace(block=block, together=max(1, together))


def _ceil(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


class Training(NamedTuple):
    """What a network learns and how: x (n, d), y (n,), rates (steps,), momentum."""

    x: Array
    y: Array
    rates: Array
    momentum: Array

    @classmethod
    def of(cls, x: Array, y: Array, dynamics: HeavyBall) -> "Training":
        dtype = x.dtype
        rates = jnp.asarray(dynamics.rates, dtype)
        return cls(x, y.astype(dtype), rates, jnp.asarray(dynamics.momentum, dtype))


class Second(NamedTuple):
    """What the second network learns: carrier (n, d) + size targets_n gradient_n / |gradient_n|."""

    carrier: Array
    targets: Array
    size: Array
    rates: Array
    momentum: Array

    def training(self, gradient: Array) -> Training:
        """Its training set, for the gradients (n, d) of the first. A zero gradient perturbs
        nothing.
        """
        length = jnp.linalg.norm(gradient, axis=1, keepdims=True)
        direction = gradient / or_one(length)
        step = self.size * self.targets[:, None]
        return Training(self.carrier + step * direction, self.targets, self.rates, self.momentum)


class Initial(NamedTuple):
    """Weights and biases (k, d + 1), readout (k,), variance 1 / width; 0 beyond the width."""

    start: Array
    readout: Array


def _draw(shape: Shape, block: Array, d: int, dtype, key: PRNGKeyArray) -> Initial:
    own_key = jax.random.fold_in(key, block)
    drawn = jax.random.normal(own_key, (shape.block, d + 2), dtype)
    scale = np.full((1, d + 1), 1 / d**0.5)
    scale[0, -1] = 1
    start = drawn[:, :-1] * jnp.asarray(scale, dtype)
    left = shape.independent - block * shape.block
    exists = jnp.arange(shape.block) < left
    readout = drawn[:, -1] / shape.width**0.5
    readout = jnp.where(exists, readout, 0)
    if shape.start != "doubled":
        return Initial(start, readout)
    twice = jnp.tile(start, (2, 1))
    opposite = jnp.concatenate([readout, -readout])
    return Initial(twice, opposite)


def _trained(field: Field, training: Training, neurons: Initial, bias: float) -> Array:
    """The neurons' weights and biases after training, (k, d + 1)."""
    begin = field.begin(neurons.start)

    def step(j, path: Path) -> Path:
        force = field.drift(begin, path.moved)
        velocity = training.momentum * path.velocity + force
        rate = neurons.readout[:, None] * training.rates[j]
        return Path(path.moved + rate * velocity, velocity)

    dtype = begin.dtype
    steps = len(training.rates)
    still = jnp.zeros((len(begin), field.coordinates), dtype)
    end = lax.fori_loop(0, steps, step, Path(still, still))
    if field.gram is None:
        return neurons.start + end.moved
    last = jnp.full((len(training.x), 1), bias, dtype)
    points = jnp.concatenate([training.x, last], axis=1)
    return neurons.start + jnp.matmul(end.moved, points, precision=EXACT)


class Outcome(NamedTuple):
    """Of one network, less its start if centred: outputs at the queries (m,), and input gradients
    at its training inputs (n, d), or None.
    """

    output: Array
    gradient: Array | None


def _look(field: Field, weights: Array, readout: Array, z: Array, gradients: bool) -> Outcome:
    def gated(u: Array) -> Array:
        a = readout[:, None]
        return jnp.where(u > 0, a, field.slope * a)

    inner = weights[:, :-1]
    bias = weights[:, -1:]
    u = jnp.matmul(inner, z.T, precision=EXACT) + bias
    output = jnp.sum(gated(u) * u, axis=0)
    if not gradients:
        return Outcome(output, None)
    at_inputs = jnp.matmul(weights, field.points.T, precision=EXACT)
    slopes = gated(at_inputs)
    gradient = jnp.matmul(slopes.T, inner, precision=EXACT)
    return Outcome(output, gradient)


def train_one(
    shape: Shape,
    training: Training,
    field: Field,
    z: Array,
    key: PRNGKeyArray,
    *,
    gradients: bool,
) -> Outcome:
    """One network, drawn from `key` and trained; `field` is that of its training set."""
    n, d = training.x.shape
    dtype = training.x.dtype

    def add(block, total: Outcome) -> Outcome:
        neurons = _draw(shape, block, d, dtype, key)
        weights = _trained(field, training, neurons, float(shape.kernel.train_bias))
        seen = _look(field, weights, neurons.readout, z, gradients)
        total = jax.tree.map(jnp.add, total, seen)
        if shape.start != "centred":
            return total
        before = _look(field, neurons.start, neurons.readout, z, gradients)
        return jax.tree.map(jnp.subtract, total, before)

    gradient = jnp.zeros((n, d), dtype) if gradients else None
    blocks = _ceil(shape.independent, shape.block)
    nothing = Outcome(jnp.zeros(len(z), dtype), gradient)
    return lax.fori_loop(0, blocks, add, nothing)


@partial(jax.jit, static_argnames="shape")
def _networks(shape: Shape, keys: Array, training: Training, z: Array) -> tuple[Array]:
    field = Field.of(shape.kernel, training.x, training.y)

    def one(key):
        return train_one(shape, training, field, z, key, gradients=False).output

    return (lax.map(one, keys, batch_size=shape.together),)


@partial(jax.jit, static_argnames="shape")
def _experiments(
    shape: Shape, keys: Array, training: Training, second: Second, z: Array
) -> tuple[Array, Array]:
    field = Field.of(shape.kernel, training.x, training.y)

    def one(key):
        first_key, second_key = jax.random.split(key)
        f = train_one(shape, training, field, z, first_key, gradients=True)
        assert f.gradient is not None
        made = second.training(f.gradient)
        own_field = Field.of(shape.kernel, made.x, made.y)
        g = train_one(shape, made, own_field, z, second_key, gradients=False)
        return f.output, g.output

    return lax.map(one, keys, batch_size=shape.together)


def draw_networks(
    shape: Shape, count: int, training: Training, z: Array, *, progress: Any, key: PRNGKeyArray
) -> Float[np.ndarray, "count m"]:
    """Outputs at z of `count` independent trained networks."""
    (outputs,) = _in_calls(
        shape, count, lambda keys: _networks(shape, keys, training, z), progress, key
    )
    return outputs


def draw_experiments(
    shape: Shape,
    count: int,
    training: Training,
    second: Second,
    z: Array,
    *,
    progress: Any,
    key: PRNGKeyArray,
) -> tuple[Float[np.ndarray, "count m"], Float[np.ndarray, "count m"]]:
    """Outputs at z of `count` independent pairs: f, and g trained on that f's perturbations."""

    def call(keys):
        return _experiments(shape, keys, training, second, z)

    f, g = _in_calls(shape, count, call, progress, key)
    return f, g


def _in_calls(
    shape: Shape, count: int, call: Callable, progress: Any, key: PRNGKeyArray
) -> tuple[np.ndarray, ...]:
    """What `call` gives for `count` keys, in calls of one size."""
    calls = _ceil(count, shape.together * _GROUPS)
    size = _ceil(count, calls)
    keys = jax.random.split(key, (calls, size))
    found = []
    for i in range(calls):
        outputs = call(keys[i])
        found.append(jax.tree.map(np.asarray, outputs))
        if progress is not None:
            left = count - i * size
            progress.update(max(0, min(size, left)))
    kinds = zip(*found, strict=True)
    return tuple(np.concatenate(parts)[:count] for parts in kinds)
