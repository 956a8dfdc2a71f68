"""What an attack increases, within which limits, and how many points at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from perturbkernel.attacks.host import HostPredictor, traceable, traced_shape
from perturbkernel.attacks.norms import NORMS, Box, lengths, project
from perturbkernel.attacks.one_step import check_gradient, checked_bounds, count_outputs
from perturbkernel.checks import (
    as_inputs,
    as_targets,
    check_choice,
    check_key,
    check_number,
    is_traced,
)
from perturbkernel.data.labels import class_indices
from perturbkernel.engine.memory import default_memory, footprint
from perturbkernel.training.predictors import KernelPredictor, input_gradient

# Arrays of the size of the inputs that an attack holds at once: at most 22 (l0, l1), by XLA's
# account on a CPU.
_COPIES = 24
# Other classes that are looked at one by one, the strongest: all of ten.
RIVALS = 9


class Problem(NamedTuple):
    """Checked arguments, with flat inputs: what the attacks have in common.

    Attributes:
        predictor: without what differs between trainings but not between computations, so that it
            compiles once.
        x: (n, d). shape: of one input.
        classes: K, or None for one output.
        target: (n,), the sign to increase, or a class. None: the predictor's own decision.
        away: whether it is a class to get away from.
        bounds: low and high, (n, d) each, or None.
    """

    predictor: Any
    x: Array
    shape: tuple[int, ...]
    classes: int | None
    target: Array | None
    away: bool
    bounds: tuple[Array, Array] | None


def checked_problem(
    predictor: Any, inputs: Any, targets: Any, norm: Any, away: Any, bounds: Any, own: bool = False
) -> Problem:
    """`own`: targets may be None, for the predictor's own decisions, away from them."""
    check_choice(norm, "norm", NORMS)
    if not isinstance(away, bool):
        raise TypeError(f"away must be True or False; got {away!r}")
    if targets is None and not own:
        raise TypeError("targets must be labels, (n,) in {-1, +1}, or class indices; got None")
    low, high = checked_bounds(bounds)
    x = as_inputs(inputs, "inputs")
    predictor = traceable(predictor, x)
    classes = count_outputs(predictor, x, np.zeros(0, int) if targets is None else targets)
    on_host = isinstance(predictor, HostPredictor)
    outputs = predictor(x) if on_host else traced_shape(predictor, x)
    shape = getattr(outputs, "shape", None)
    if classes is None and shape not in ((len(x),), (len(x), 1)):
        raise ValueError(
            f"predictor must map inputs {x.shape} to one output a row, ({len(x)},), or to K with "
            f"class indices as targets; it gave {shape}"
        )
    if targets is None:
        target, away = None, classes is not None
    elif classes is None:
        target = as_targets(targets, "targets", len(x))
        target, away = (-target if away else target), False
    else:
        target = class_indices(targets, "targets", len(x), classes)
    if isinstance(predictor, KernelPredictor):
        predictor = KernelPredictor(
            predictor.kernel,
            predictor.inputs,
            predictor.dual_coef,
            predictor.initial,
            mesh=predictor.mesh,
        )
    shape = x.shape[1:]
    x = x.reshape(len(x), -1)
    flat_bounds = _flat_bounds(low, high, x, shape, norm)
    return Problem(predictor, x, shape, classes, target, away, flat_bounds)


def _flat_bounds(
    low, high, x: Array, shape: tuple[int, ...], norm: str
) -> tuple[Array, Array] | None:
    if low is None or high is None:
        if norm == "l0":
            raise ValueError(
                "bounds must be given for l0, where nothing else limits an entry: "
                "bounds=(x - c, x + c) lets each move by c; got None"
            )
        return None
    whole = (len(x), *shape)
    try:
        whole_low, whole_high = jnp.broadcast_to(low, whole), jnp.broadcast_to(high, whole)
    except ValueError:
        sizes = ", ".join(map(str, whole))
        raise ValueError(
            f"bounds must be numbers or arrays that broadcast to the inputs, ({sizes}); "
            f"got shapes {jnp.shape(low)} and {jnp.shape(high)}"
        ) from None
    low = whole_low.reshape(x.shape).astype(x.dtype)
    high = whole_high.reshape(x.shape).astype(x.dtype)
    if not is_traced(x, low, high):
        outside = np.asarray((x < low) | (x > high))
        if outside.any():
            rows = outside.any(1)
            raise ValueError(
                f"inputs must lie within bounds; {rows.sum()} rows do not (row {rows.argmax()})"
            )
        if norm == "l0" and not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError("bounds must be finite for l0, where nothing else limits an entry")
    return low, high


def objective(outputs: Array, target: Array, away: bool) -> tuple[Array, Array | None]:
    """What an attack increases, (m,), and the weights (m, K) of the outputs' gradients in its own.

    target f for one output, f_t - max_{k != t} f_k for K; `away` turns the sign around. Positive
    where the decision is as wanted, and in proportion to the outputs.
    """
    if outputs.ndim == 1:
        return target.astype(outputs.dtype) * outputs, None
    rival = strongest_rivals(outputs, target, 1)[:, 0]
    weights = rival_weights(outputs, target, rival)
    if away:
        weights = -weights
    # Between outputs that are large the difference is exact; a sum over all would not be.
    return jnp.sum(jnp.where(weights != 0, weights * outputs, 0), axis=1), weights


def rival_weights(outputs: Array, own: Array, other: Array) -> Array:
    """The weights (m, K) of f_own - f_other, classes (m,) each."""
    classes = outputs.shape[1]
    plus = jax.nn.one_hot(own, classes, dtype=outputs.dtype)
    return plus - jax.nn.one_hot(other, classes, dtype=outputs.dtype)


def strongest_rivals(outputs: Array, target: Array, count: int = RIVALS) -> Array:
    """(m, r), the classes other than the target with the largest outputs, the largest first."""
    chosen = jax.nn.one_hot(target, outputs.shape[1], dtype=bool)
    others = jnp.where(chosen, -jnp.inf, outputs)
    return jax.lax.top_k(others, min(count, outputs.shape[1] - 1))[1]


def softened_weights(outputs: Array, target: Array, share: Array) -> Array:
    """The weights (m, K) of f_t - sum_{k != t} q_k f_k, q = softmax(f / tau) over other classes.

    tau is `share` of the standard deviation of their outputs: q has no units, and as share falls to
    0 it is all on the largest.
    """
    chosen = jax.nn.one_hot(target, outputs.shape[1], dtype=bool)
    count = outputs.shape[1] - 1
    largest = jnp.where(chosen, -jnp.inf, outputs).max(1, keepdims=True)
    below = jnp.where(chosen, 0, outputs - largest)
    mean = below.sum(1, keepdims=True) / count
    spread = jnp.sqrt(jnp.sum(jnp.where(chosen, 0, below - mean) ** 2, 1, keepdims=True) / count)
    tau = jnp.maximum(share.astype(outputs.dtype), 1e-3) * spread
    exponents = jnp.where(chosen, -jnp.inf, below / jnp.where(tau > 0, tau, 1))
    return chosen.astype(outputs.dtype) - jax.nn.softmax(exponents, axis=1)


def outputs_at(predictor: Callable, z: Array, shape: tuple[int, ...]) -> Array:
    """Outputs (m,), or (m, K), at flat inputs."""
    outputs = predictor(z.reshape(-1, *shape))
    return outputs.reshape(len(z)) if outputs.size == len(z) else outputs


def gradient_at(
    predictor: Callable, z: Array, shape: tuple[int, ...], target: Array, weights: Array | None
) -> Array:
    """The gradient of `objective` at flat inputs, (m, d)."""
    gradient = input_gradient(predictor, z.reshape(-1, *shape), weights)
    gradient = gradient.reshape(z.shape).astype(z.dtype)
    if weights is not None:
        return gradient
    return target[:, None].astype(gradient.dtype) * gradient


def rows_within(
    memory: float | None, predictor: Callable, x: Array, shape: tuple[int, ...], copies: int = 0
) -> int:
    """How many points are attacked at once in `memory` bytes; None: the device's default,
    `memory.default_memory`. `copies` arrays of the size of the inputs are held beside the usual.

    A kernel predictor's own temporaries are limited by its kernel. Of another, those of one point
    are what a gradient holds at once, from its trace.
    """
    if isinstance(predictor, HostPredictor):  # what it holds is not known
        return len(x)
    own = (_COPIES + copies) * x.shape[1] * x.dtype.itemsize
    plain = predictor.initial if isinstance(predictor, KernelPredictor) else predictor
    if plain is not None:

        def gradient(z: Array, _: Array) -> Array:
            outputs, pull_back = jax.vjp(lambda z: outputs_at(plain, z, shape), z)
            return pull_back(outputs)[0]

        # Traced in the dtype of the inputs, and counted in numbers of four bytes.
        own += 4 * footprint(gradient, x.shape[1:], x.dtype)[1]
    return max(1, int((memory or default_memory()) // own))


def random_rows(keys: Array, size: Array, norm: str, box: Box, like: Array) -> Array:
    """A random point of the ball of radius `size` for every row, projected to the box."""

    def draw(key):
        direction_key, radius_key = jax.random.split(key)
        d = like.shape[1]
        if norm in ("linf", "l0"):
            return jax.random.uniform(direction_key, (d,), like.dtype, -1, 1)
        distribution = jax.random.normal if norm == "l2" else jax.random.laplace
        draws = distribution(direction_key, (d,), like.dtype)
        # Uniform in the volume of the ball.
        share = jax.random.uniform(radius_key, (), like.dtype) ** (1 / d)
        return draws / lengths(draws[None], norm) * share

    u = jax.vmap(draw)(keys)
    if norm != "l0":
        return project(size * u, size, norm, box)
    assert box is not None
    return project(jnp.where(u > 0, u * box[1], -u * box[0]), size, norm, box)


def check_memory(memory) -> None:
    if memory is not None:
        check_number(memory, "memory", low=2**20)


def check_starts(starts: int, fixed: int, key) -> None:
    """More starts than those that are not random need a key."""
    if starts > fixed or key is not None:
        check_key(key)


def check_result(finite: Bool[Array, " n"]) -> None:
    """Raises where a gradient at an input was not finite."""
    if not is_traced(finite):
        check_gradient(jnp.where(finite, 0, jnp.nan)[:, None])
