"""The networks of the study: plain functions of a pytree, trained by heavy ball on the squared
loss.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from perturbkernel.attacks.norms import normalise
from perturbkernel.kernels.empirical import EmpiricalNTK

MOMENTUM = 0.9
#: Of the ascent that finds the inputs of adversarial training.
ASCENT_STEPS = 3


def initial_parameters(d: int, width: int, key: PRNGKeyArray) -> Any:
    """Weights of variance 1 / fan-in and zero biases of two hidden layers and one output.

    initial_parameters(784, 48, jax.random.key(0))
    """
    layers = []
    sizes = (d, width, width, 1)
    for fan_in, fan_out in itertools.pairwise(sizes):
        key, own = jax.random.split(key)
        weight = jax.random.normal(own, (fan_in, fan_out)) / fan_in**0.5
        layers.append((weight, jnp.zeros(fan_out)))
    return layers


def apply(params: Any, x: Array) -> Array:
    """Outputs (n,): smooth units, so that the kernel has gradients everywhere."""
    for weight, bias in params[:-1]:
        x = jax.nn.gelu(x @ weight + bias)
    weight, bias = params[-1]
    output = x @ weight + bias
    return output[:, 0]


def unit_rate(params: Any, x: Array) -> float:
    """One over the mean of K(x, x) over the rows, K the kernel at these parameters: a rate, and the
    unit of training time, that does not depend on the scale of outputs or inputs.

    Heavy ball at this rate is stable while the kernel stays, since the mean of K(x, x) bounds the
    largest eigenvalue of the Gram matrix over n.
    """
    trace = _trace(EmpiricalNTK(apply, params), x)
    return float(len(x) / trace)


@jax.jit
def _trace(kernel: EmpiricalNTK, x: Array) -> Array:
    def at(row: Array) -> Array:
        alone = row[None]
        return kernel.tile("ntk", alone, alone)[0, 0]

    return jnp.sum(jax.lax.map(at, x, batch_size=50))


class Learner(NamedTuple):
    """Where a network starts, and what is subtracted of its outputs there: `centred` 1 for a
    network that starts as the function zero, 0 for the network as it is.
    """

    start: Any
    centred: Any

    def outputs(self, params: Any, x: Array) -> Array:
        return apply(params, x) - self.centred * apply(self.start, x)


class State(NamedTuple):
    """Parameters in training, and what the optimizer remembers."""

    params: Any
    memory: Any


def begin(learner: Learner) -> State:
    """The state of a network that was not trained yet."""
    return State(learner.start, optax.trace(MOMENTUM).init(learner.start))


@functools.partial(jax.jit, static_argnames=("epochs", "batch"))
def train(
    learner: Learner,
    state: State,
    data: tuple[Array, Array],
    rate: Any,
    radius: Any,
    key: PRNGKeyArray,
    *,
    epochs: int,
    batch: int,
) -> State:
    """The state after some more epochs of random batches, on the mean of (f - y)^2 / 2.

    Each batch is moved to the worst inputs within `radius` (l2) that a few steps of ascent find;
    not at all for None.
    """
    x, y = data
    batches = len(x) // batch

    def step(state: State, rows: Array) -> tuple[State, None]:
        inputs = x[rows]
        if radius is not None:
            inputs += _worst(learner, state.params, inputs, y[rows], radius)
        gradient = jax.grad(_loss, argnums=1)(learner, state.params, inputs, y[rows])
        update, memory = optax.trace(MOMENTUM).update(gradient, state.memory)
        change = jax.tree.map(lambda leaf: -rate * leaf, update)
        return State(optax.apply_updates(state.params, change), memory), None

    def epoch(state: State, key: PRNGKeyArray) -> tuple[State, None]:
        order = jax.random.permutation(key, len(x))
        kept = order[: batches * batch]
        after, _ = jax.lax.scan(step, state, kept.reshape(batches, batch))
        return after, None

    keys = jax.random.split(key, epochs)
    after, _ = jax.lax.scan(epoch, state, keys)
    return after


def _loss(learner: Learner, params: Any, x: Array, y: Array) -> Array:
    error = learner.outputs(params, x) - y
    return jnp.mean(error**2) / 2


def _worst(learner: Learner, params: Any, x: Array, y: Array, radius: Any) -> Array:
    """Perturbations of length `radius` at most that lower y f."""

    def margin(moved: Array) -> Array:
        return jnp.sum(y * learner.outputs(params, moved))

    delta = jnp.zeros_like(x)
    for _ in range(ASCENT_STEPS):
        gradient = jax.grad(margin)(x + delta)
        delta -= radius * normalise(gradient, "l2")
        length = jnp.linalg.norm(delta, axis=1, keepdims=True)
        delta *= jnp.minimum(1, radius / jnp.maximum(length, radius))
    return delta


def flow_time(points: int, epochs: int, batch: int) -> float:
    """The time of gradient flow of so many epochs at rate 1: steps / (1 - momentum)."""
    return epochs * (points // batch) / (1 - MOMENTUM)
