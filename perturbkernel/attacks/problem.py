"""What an attack increases, within which limits, and how many points at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from perturbkernel.arrays import as_jax, on_host, or_one
from perturbkernel.attacks.host import (
    HostPredictor,
    traceable,
    traced_shape,
    without_statistics,
)
from perturbkernel.attacks.margins import own_and_others
from perturbkernel.attacks.norms import NORMS, counts
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
from perturbkernel.engine import tiles
from perturbkernel.engine.memory import default_memory, footprint
from perturbkernel.training.predictors import KernelPredictor
from perturbkernel.training.pullbacks import input_gradient

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
    """`own`: targets may be None, for the predictor's own decisions, away from them.

    Example:
        >>> x = jnp.ones((2, 3))
        >>> checked_problem(lambda z: z.sum(1), x, [1, -1], "l2", True, None).target.tolist()
        [-1.0, 1.0]
    """
    check_choice(norm, "norm", NORMS)
    if not isinstance(away, bool):
        raise TypeError(f"away must be True or False; got {away!r}")
    if targets is None and not own:
        raise TypeError("targets must be labels, (n,) in {-1, +1}, or class indices; got None")
    low, high = checked_bounds(bounds)
    x = as_inputs(inputs, "inputs")
    predictor = traceable(predictor, x)
    classes = _checked_outputs(predictor, x, targets)
    if targets is None:
        target = None
        away = classes is not None
    elif classes is None:
        target = as_targets(targets, "targets", len(x))
        if away:
            target = -target
        away = False
    else:
        target = class_indices(targets, "targets", len(x), classes)
    shape = x.shape[1:]
    x = x.reshape(len(x), -1)
    if isinstance(predictor, KernelPredictor):
        predictor = without_statistics(predictor)
    return Problem(
        predictor=predictor,
        x=x,
        shape=shape,
        classes=classes,
        target=target,
        away=away,
        bounds=_flat_bounds(low, high, x, shape, norm),
    )


def _checked_outputs(predictor: Any, x: Array, targets: Any) -> int | None:
    """K, or None for one output; raises ValueError for outputs of another shape."""
    n = len(x)
    if targets is None:
        targets = np.zeros(0, int)
    classes = count_outputs(predictor, x, targets)
    on_host = isinstance(predictor, HostPredictor)
    outputs = predictor(x) if on_host else traced_shape(predictor, x)
    shape = getattr(outputs, "shape", None)
    if classes is None and shape not in ((n,), (n, 1)):
        raise ValueError(
            f"predictor must map inputs {x.shape} to one output a row, ({n},), or to K with "
            f"class indices as targets; it gave {shape}"
        )
    return classes


def _flat_bounds(
    low: Array | None,
    high: Array | None,
    x: Array,
    shape: tuple[int, ...],
    norm: str,
) -> tuple[Array, Array] | None:
    if low is None or high is None:
        if counts(norm):
            raise ValueError(
                f"bounds must be given for {norm}, where nothing else limits an entry: "
                "bounds=(x - c, x + c) lets each move by c; got None"
            )
        return None
    whole = (len(x), *shape)
    try:
        whole_low = jnp.broadcast_to(low, whole)
        whole_high = jnp.broadcast_to(high, whole)
    except ValueError:
        sizes = ", ".join(map(str, whole))
        raise ValueError(
            f"bounds must be numbers or arrays that broadcast to the inputs, ({sizes}); "
            f"got shapes {jnp.shape(low)} and {jnp.shape(high)}"
        ) from None
    low = whole_low.reshape(x.shape).astype(x.dtype)
    high = whole_high.reshape(x.shape).astype(x.dtype)
    if not is_traced(x, low, high):
        _check_within(x, low, high, norm)
    return low, high


def _check_within(x: Array, low: Array, high: Array, norm: str) -> None:
    x, low, high = on_host(x, low, high)
    below = x < low
    above = x > high
    outside = np.asarray(below | above)
    if outside.any():
        rows = outside.any(1)
        raise ValueError(
            f"inputs must lie within bounds; {rows.sum()} rows do not (row {rows.argmax()})"
        )
    finite = np.isfinite(low).all() and np.isfinite(high).all()
    if counts(norm) and not finite:
        raise ValueError(f"bounds must be finite for {norm}, where nothing else limits an entry")


def objective(outputs: Array, target: Array, away: bool) -> tuple[Array, Array | None]:
    """What an attack increases, (m,), and the weights (m, K) of the outputs' gradients in its own.

    target f for one output, f_t - max_{k != t} f_k for K; `away` turns the sign around. Positive
    where the decision is as wanted, and in proportion to the outputs.

    Example:
        >>> gap, weights = objective(jnp.asarray([[5.0, 2.0, 1.0]]), jnp.asarray([2]), False)
        >>> gap.tolist(), weights.tolist()
        ([-4.0], [[-1.0, 0.0, 1.0]])
    """
    if outputs.ndim == 1:
        signs = target.astype(outputs.dtype)
        return signs * outputs, None
    rivals = strongest_rivals(outputs, target, 1)
    weights = rival_weights(outputs, target, rivals[:, 0])
    if away:
        weights = -weights
    # Between outputs that are large the difference is exact; a sum over all would not be.
    terms = jnp.where(weights != 0, weights * outputs, 0)
    return jnp.sum(terms, axis=1), weights


def rival_weights(outputs: Array, own: Array, other: Array) -> Array:
    """The weights (m, K) of f_own - f_other, classes (m,) each.

    Example:
        >>> rival_weights(jnp.ones((1, 3)), jnp.asarray([2]), jnp.asarray([0])).tolist()
        [[-1.0, 0.0, 1.0]]
    """
    classes = outputs.shape[1]
    plus = jax.nn.one_hot(own, classes, dtype=outputs.dtype)
    minus = jax.nn.one_hot(other, classes, dtype=outputs.dtype)
    return plus - minus


def strongest_rivals(outputs: Array, target: Array, count: int = RIVALS) -> Array:
    """(m, r), the classes other than the target with the largest outputs, the largest first.

    Example:
        >>> strongest_rivals(jnp.asarray([[5.0, 2.0, 9.0]]), jnp.asarray([0])).tolist()
        [[2, 1]]
    """
    _, others = own_and_others(outputs, target)
    there = outputs.shape[1] - 1
    _, rivals = jax.lax.top_k(others, min(count, there))
    return rivals


def softened_weights(outputs: Array, target: Array, share: Array) -> Array:
    """The weights (m, K) of f_t - sum_{k != t} q_k f_k, q = softmax(f / tau) over other classes.

    tau is `share` of the standard deviation of their outputs: q has no units, and as share falls to
    0 it is all on the largest.

    Example:
        >>> outputs = jnp.asarray([[5.0, 2.0, 2.0]])
        >>> softened_weights(outputs, jnp.asarray([0]), jnp.asarray(0.5)).tolist()
        [[1.0, -0.5, -0.5]]
    """
    is_own, others = own_and_others(outputs, target)
    count = outputs.shape[1] - 1
    largest = others.max(1, keepdims=True)
    below = jnp.where(is_own, 0, outputs - largest)
    mean = below.sum(1, keepdims=True) / count
    deviations = jnp.where(is_own, 0, below - mean)
    variance = jnp.sum(deviations**2, 1, keepdims=True) / count
    spread = jnp.sqrt(variance)
    share = share.astype(outputs.dtype)
    tau = jnp.maximum(share, 1e-3) * spread
    exponents = jnp.where(is_own, -jnp.inf, below / or_one(tau))
    shares = jax.nn.softmax(exponents, axis=1)
    return is_own.astype(outputs.dtype) - shares


def outputs_at(predictor: Callable[..., Any], z: Array, shape: tuple[int, ...]) -> Array:
    """Outputs (m,), or (m, K), at flat inputs.

    Example:
        >>> outputs_at(lambda images: images.sum((1, 2)), jnp.ones((5, 6)), (2, 3)).shape
        (5,)
    """
    points = z.reshape(-1, *shape)
    outputs = predictor(points)
    if outputs.size == len(z):
        return outputs.reshape(len(z))
    return outputs


@eqx.filter_jit
def margins_at(problem: Problem, delta: Array, memory: float | None) -> Array:
    """(n,), of the right decision at x + delta, (n, d), in a problem of getting away from it.

    Example:
        >>> x = jnp.asarray([[1.0, 2.0]])
        >>> problem = checked_problem(lambda z: z.sum(1), x, [1], "l2", True, None)
        >>> margins_at(problem, jnp.ones((1, 2)), None).tolist()
        [5.0]
    """
    predictor, x, shape, _, target, away, _ = problem

    def some(tree: Any) -> Array:
        x, delta, target = tree
        outputs = outputs_at(predictor, x + delta, shape)
        gain, _ = objective(outputs, target, away)
        return -gain.astype(x.dtype)

    rows = rows_within(memory, predictor, x, shape)
    return tiles.by_rows(some, (x, delta, target), rows)


def gradient_at(
    predictor: Callable[..., Any],
    z: Array,
    shape: tuple[int, ...],
    target: Array,
    weights: Array | None,
) -> Array:
    """The gradient of `objective` at flat inputs, (m, d).

    Example:
        >>> z, target = jnp.ones((1, 2)), jnp.asarray([-1.0])
        >>> gradient_at(lambda z: z @ jnp.asarray([3.0, 4.0]), z, (2,), target, None).tolist()
        [[-3.0, -4.0]]
    """
    points = z.reshape(-1, *shape)
    gradient = input_gradient(predictor, points, weights)
    gradient = gradient.reshape(z.shape).astype(z.dtype)
    if weights is not None:
        return gradient
    gradient, signs = on_host(gradient, target)
    return as_jax(signs[:, None].astype(gradient.dtype) * gradient)


def rows_within(
    memory: float | None,
    predictor: Callable[..., Any],
    x: Array,
    shape: tuple[int, ...],
    copies: int = 0,
) -> int:
    """How many points are attacked at once in `memory` bytes; None: the device's default,
    `memory.default_memory`. `copies` arrays of the size of the inputs are held beside the usual.

    A kernel predictor's own temporaries are limited by its kernel. Of another, those of one point
    are what a gradient holds at once, from its trace.

    Example:
        >>> rows_within(1e6, lambda z: z.sum(1), jnp.ones((9, 50), jnp.float32), (50,))
        192
    """
    if isinstance(predictor, HostPredictor):  # what it holds is not known
        return len(x)
    row = x.shape[1] * x.dtype.itemsize
    own = (_COPIES + copies) * row
    plain = predictor
    if isinstance(predictor, KernelPredictor):
        plain = predictor.initial
    if plain is not None:

        def gradient(z: Array, _: Array) -> Array:
            outputs, pull_back = jax.vjp(lambda z: outputs_at(plain, z, shape), z)
            return pull_back(outputs)[0]

        # Traced in the dtype of the inputs, and counted in numbers of four bytes.
        _, each = footprint(gradient, x.shape[1:], x.dtype)
        own += 4 * each
    budget = memory or default_memory()
    return max(1, int(budget // own))


def keys_of_start(keys: Array, start: Array) -> Array:
    """The keys of the rows, (m,), for the start of that number.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> keys_of_start(keys, jnp.asarray(1)).shape
        (3,)
    """

    def one(key: Array) -> Array:
        return jax.random.fold_in(key, start)

    return jax.vmap(one)(keys)


def check_memory(memory) -> None:
    """Raises for a limit that is no number of bytes, or below a mebibyte; None is the default.

    Example:
        >>> check_memory(2**30)
    """
    if memory is not None:
        check_number(memory, "memory", low=2**20)


def check_starts(starts: int, fixed: int, key) -> None:
    """More starts than those that are not random need a key.

    Example:
        >>> check_starts(3, 1, jax.random.key(0))
    """
    if starts > fixed or key is not None:
        check_key(key)


def check_result(finite: Bool[Array, " n"]) -> None:
    """Raises where a gradient at an input was not finite.

    Example:
        >>> check_result(jnp.asarray([True, True]))
    """
    if not is_traced(finite):
        check_gradient(np.where(finite, 0.0, np.nan)[:, None])
