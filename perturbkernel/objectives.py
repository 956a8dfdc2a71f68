"""What an attack increases, within which limits, and how many points at once: shared by `attacks`
and `boundary`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from perturbkernel import tiles
from perturbkernel.checks import (
    as_inputs,
    as_targets,
    check_choice,
    check_key,
    check_number,
    is_traced,
)
from perturbkernel.classes import class_indices, margin, margin_weights
from perturbkernel.footprints import footprint
from perturbkernel.perturbations import check_gradient, checked_bounds, count_outputs
from perturbkernel.predictors import KernelPredictor, input_gradient
from perturbkernel.projections import NORMS, Box, lengths, project

# Arrays of the size of the inputs that an attack holds at once: at most 22 (l0, l1), by XLA's
# account on a CPU.
_COPIES = 24


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
    classes = count_outputs(predictor, x, np.zeros(0, int) if targets is None else targets)
    shape = getattr(jax.eval_shape(predictor, x), "shape", None)
    if classes is None and shape not in ((len(x),), (len(x), 1)):
        raise ValueError(
            f"predictor must map inputs {x.shape} to one output a row, ({len(x)},), or to K with class indices as "
            f"targets; it gave {shape}"
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
    x, shape = x.reshape(len(x), -1), x.shape[1:]
    return Problem(
        predictor, x, shape, classes, target, away, _flat_bounds(low, high, x, shape, norm)
    )


def _flat_bounds(
    low, high, x: Array, shape: tuple[int, ...], norm: str
) -> tuple[Array, Array] | None:
    if low is None or high is None:
        if norm == "l0":
            raise ValueError(
                "bounds must be given for l0, where nothing else limits an entry: bounds=(x - c, x + c) lets each move "
                "by c; got None"
            )
        return None
    try:
        low, high = (
            jnp.broadcast_to(b, (len(x), *shape)).reshape(x.shape).astype(x.dtype)
            for b in (low, high)
        )
    except ValueError:
        raise ValueError(
            f"bounds must be numbers or arrays that broadcast to the inputs, ({len(x)}, {', '.join(map(str, shape))}); "
            f"got shapes {jnp.shape(low)} and {jnp.shape(high)}"
        ) from None
    if not is_traced(x, low, high):
        outside = np.asarray((x < low) | (x > high))
        if outside.any():
            raise ValueError(
                f"inputs must lie within bounds; {outside.any(1).sum()} rows do not (row {outside.any(1).argmax()})"
            )
        if norm == "l0" and not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError("bounds must be finite for l0, where nothing else limits an entry")
    return low, high


def objective(
    outputs: Array, target: Array, away: bool, *, hard: bool
) -> tuple[Array, Array | None]:
    """What an attack increases at each row, (m,), and the weights (m, K) of its gradient in those
    of the outputs.

    target f for one output. For K the margin M_t = f_t - log sum_{k != t} exp f_k or, `hard`, f_t -
    max_{k != t} f_k; `away` turns the sign around.
    """
    if outputs.ndim == 1:
        return target * outputs, None
    if hard:
        chosen = jax.nn.one_hot(target, outputs.shape[1], dtype=bool)
        other = jnp.where(chosen, -jnp.inf, outputs).argmax(1)
        weights = chosen.astype(outputs.dtype) - jax.nn.one_hot(
            other, outputs.shape[1], dtype=outputs.dtype
        )
        gain = jnp.sum(weights * outputs, axis=1)
    else:
        gain, weights = margin(outputs, target), margin_weights(outputs, target)
    return (-gain, -weights) if away else (gain, weights)


def outputs_at(predictor: Callable, z: Array, shape: tuple[int, ...]) -> Array:
    """Outputs (m,), or (m, K), at flat inputs."""
    outputs = predictor(z.reshape(-1, *shape))
    return outputs.reshape(len(z)) if outputs.size == len(z) else outputs


def gradient_at(
    predictor: Callable, z: Array, shape: tuple[int, ...], target: Array, weights: Array | None
) -> Array:
    """The gradient of `objective` at flat inputs, (m, d)."""
    gradient = (
        input_gradient(predictor, z.reshape(-1, *shape), weights).reshape(z.shape).astype(z.dtype)
    )
    return gradient if weights is not None else target[:, None] * gradient


def rows_within(memory: float | None, predictor: Callable, x: Array, shape: tuple[int, ...]) -> int:
    """How many points are attacked at once in `memory` bytes; None: the device's default,
    `tiles.default_memory`.

    A kernel predictor's own temporaries are limited by its kernel. Of another, those of one point
    are what a gradient holds at once, from its trace.
    """
    own = _COPIES * x.shape[1] * x.dtype.itemsize
    plain = predictor.initial if isinstance(predictor, KernelPredictor) else predictor
    if plain is not None:

        def gradient(z: Array, _: Array) -> Array:
            outputs, pull_back = jax.vjp(lambda z: outputs_at(plain, z, shape), z)
            return pull_back(outputs)[0]

        own += footprint(gradient, x.shape[1:])[1] * x.dtype.itemsize
    return max(1, int((memory or tiles.default_memory()) // own))


def random_rows(keys: Array, size: Array, norm: str, box: Box, like: Array) -> Array:
    """A random point of the ball of radius `size`, for every row; projected to the box, where it is
    not the whole.
    """

    def draw(key):
        direction_key, radius_key = jax.random.split(key)
        d = like.shape[1]
        if norm in ("linf", "l0"):
            return jax.random.uniform(direction_key, (d,), like.dtype, -1, 1)
        draws = (jax.random.normal if norm == "l2" else jax.random.laplace)(
            direction_key, (d,), like.dtype
        )
        return (
            draws
            / lengths(draws[None], norm)
            * jax.random.uniform(radius_key, (), like.dtype) ** (1 / d)
        )

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
