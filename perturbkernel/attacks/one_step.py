"""One-step adversarial perturbations of any differentiable predictor."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from perturbkernel.arrays import as_jax, by_rows, namespace, on_host
from perturbkernel.attacks.boxes import within
from perturbkernel.attacks.host import traced_shape
from perturbkernel.attacks.margins import margin_weights
from perturbkernel.attacks.norms import ONE_STEP
from perturbkernel.attacks.norms import normalise as normalise
from perturbkernel.checks import (
    as_float,
    as_inputs,
    as_targets,
    check_choice,
    check_number,
    common_dtype,
    is_traced,
)
from perturbkernel.data.labels import class_indices
from perturbkernel.display import Displayed
from perturbkernel.training.predictors import KernelPredictor
from perturbkernel.training.pullbacks import input_gradient

NORMS = ONE_STEP
DIRECTIONS = ("gradient", "frozen_gates")


class Perturbation(Displayed, eqx.Module):
    """Perturbations and what they aim at.

    Attributes:
        delta: (n, ...), shaped like the inputs; its size is in input units, a norm over all axes
            but the first.
        targets: (n,), the labels that `inputs + delta` moves toward: in {-1, +1}, or class indices.
        zero_gradient: (n,), True where the gradient is zero (to rounding), no direction exists, and
            delta is 0.
    """

    delta: Float[Array, "n ..."]
    targets: Float[Array, " n"] | Int[Array, " n"]
    zero_gradient: Bool[Array, " n"]

    def _numbers(self) -> dict[str, Any]:
        delta = np.asarray(self.delta, float).reshape(len(self.delta), -1)
        return {
            "points": len(delta),
            "l2 length": np.linalg.norm(delta, axis=1),
            "largest entry": np.abs(delta).max(axis=1),
            "zero gradients": int(np.asarray(self.zero_gradient).sum()),
        }


def _column(values: Any, like: Array) -> Any:
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def perturb(
    predictor: Callable[..., Any],
    inputs: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, " n"] | Int[ArrayLike, " n"],
    *,
    size: float,
    norm: str = "l2",
    direction: str = "gradient",
    bounds: tuple[float, float] | None = None,
    progress: Any = None,
) -> Perturbation:
    """Moves every input by one step of length `size` toward its target.

        delta_n = size target_n g_n / |g_n|

    g_n is the gradient of the predictor at input n (linf: its sign). The gradient of the predictor
    is normalised, not that of a loss, whose factor cancels in exact arithmetic and underflows in
    floating point when it saturates.

    For a predictor with K outputs targets are classes t_n, and delta_n = size g_n / |g_n| with g_n
    the gradient of the margin M_t = f_t - log sum_{k != t} exp f_k, that is sum_k (e_t - q)_k grad
    f_k, q the softmax over the other classes. The cross-entropy toward t, which Ilyas et al.
    (NeurIPS 2019) minimise, is log(1 + exp(-M_t)): the same direction, without the factor that
    underflows. q depends on the scale of f: it is uniform for f near 0, and all on the strongest
    other class for f large. For two classes g_n is the gradient of f_t - f_other.

    Example:
        >>> w, x = jnp.asarray([3.0, 4.0]), jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
        >>> perturb(lambda z: z @ w, x, [1, -1], size=0.5, norm="linf").delta.tolist()
        [[0.5, 0.5], [-0.5, -0.5]]

    Args:
        predictor: a KernelPredictor, or any differentiable function of JAX arrays (n, ...) -> (n,),
            (n, 1) or (n, K) that treats rows independently: a Flax or Equinox model, a lambda. One
            that has a method `input_gradient` of its own has one output, unless its attribute
            `num_outputs` says K, and takes `input_gradient(inputs, weights)` then.
        inputs: (n, ...).
        targets: (n,) in {-1, +1}: the label each input is moved toward; for K outputs class
            indices, integers.
        size: norm of each perturbation, in the units of the inputs, over all axes but the first.
        norm: "l2" or "linf".
        direction: "gradient", the true gradient; "frozen_gates", the paper's sum_n dual_coef_n
            Phi(x_n, z) x_n, which leaves out the motion of the gates (kernel predictors of
            TwoLayerNTK only).
        bounds: (low, high) to which inputs + delta is clipped; nothing is clipped without it.
        progress: `progress.update(k)` is called after every k gradients of a KernelPredictor (not
            of frozen gates).

    Raises:
        ValueError: bad values or shapes, or a predictor whose gradient is not finite.
        TypeError: frozen gates asked of another predictor.

    Source: Kumano, Kera, Yamasaki (NeurIPS 2024), equation for the perturbation; theory: section 5,
    5.3.
    """
    low, high = check_options(size, norm, direction, bounds)
    x = as_inputs(inputs, "inputs")
    classes = count_outputs(predictor, x, targets)
    if classes is None:
        y = as_targets(targets, "targets", len(x))
        weights = None
    else:
        y = class_indices(targets, "targets", len(x), classes)
        weights = margin_weights(predictor(x), y)
    if direction == "gradient":
        if progress is not None and isinstance(predictor, KernelPredictor):
            gradient = predictor.input_gradient(x, weights, progress=progress)
        else:
            gradient = input_gradient(predictor, x, weights)
    elif isinstance(predictor, KernelPredictor):
        gradient = predictor.frozen_gate_gradient(x, weights)
    else:
        raise TypeError(
            'direction="frozen_gates" needs a KernelPredictor of TwoLayerNTK; '
            f'got {type(predictor).__name__}. Use direction="gradient"'
        )
    check_gradient(gradient)
    zero = is_zero(predictor, x, weights, gradient)
    dtype = common_dtype(x, gradient)
    flat, gradient, signs = on_host(zero, gradient, y)
    flat = _column(flat, x)
    if classes is not None:  # the gradient itself points toward the class
        signs = namespace(signs).ones_like(signs, dtype)
    length = _column(size * signs, x).astype(dtype)

    def step(gradient, flat, length):
        direction = on_host(normalise(gradient, norm))
        direction = namespace(direction).where(flat, 0, direction).astype(dtype)
        return length * direction

    delta = as_jax(by_rows(step, gradient, flat, length))
    if low is not None and high is not None:
        low = jnp.broadcast_to(low, x.shape).astype(dtype)
        high = jnp.broadcast_to(high, x.shape).astype(dtype)
        x = x.astype(dtype)
        # Not clip(x + delta) - x, whose rounding is that of x and may exceed the size.
        clipped = jnp.clip(delta, low - x, high - x)
        clipped = within(x, clipped, (low, high))
        delta = jnp.where(flat, 0, clipped)
    return Perturbation(delta, y, zero)


def check_gradient(gradient: Array | np.ndarray) -> None:
    """Raises for a gradient, one row a point, that is not finite.

    Example:
        >>> check_gradient(jnp.ones((2, 3)))
    """
    if is_traced(gradient):
        return
    rows = np.asarray(gradient).reshape(len(gradient), -1)
    bad = ~by_rows(lambda rows: np.isfinite(rows).all(1), rows)
    if bad.any():
        raise ValueError(
            f"predictor must have finite gradients; {bad.sum()} rows have not (row {bad.argmax()})"
        )


def is_zero(
    predictor: Callable[..., Any], x: Array, weights: Array | None, gradient: Array
) -> Bool[Array, " n"]:
    """Where the gradient is zero, (n,).

    To rounding for kernel predictors, whose terms may cancel; exactly for others.

    Example:
        >>> x = jnp.asarray([[1.0, 0.0], [0.0, 0.0]])
        >>> is_zero(lambda z: z.sum(1) ** 2, x, None, x).tolist()
        [False, True]
    """
    flat = on_host(gradient).reshape(len(x), -1)
    longest = by_rows(_largest, flat) * flat.shape[1] ** 0.5
    if not isinstance(predictor, KernelPredictor):
        return as_jax(longest <= 0)
    rounding = predictor.gradient_rounding(x, weights)
    dtype = common_dtype(longest, rounding)
    longest, rounding = on_host(longest, rounding)
    return as_jax(longest.astype(dtype) <= rounding.astype(dtype))


def _largest(rows: Any) -> Any:
    return namespace(rows).abs(rows).max(1)


def count_outputs(predictor: Callable[..., Any], x: Array, targets: Any) -> int | None:
    """K of a predictor with outputs (n, K), K > 1; None for a single output.

    None also for targets that are no class indices.

    Example:
        >>> x = jnp.ones((2, 3))
        >>> count_outputs(lambda z: z, x, [0, 2]), count_outputs(lambda z: z, x, [1.0, -1.0])
        (3, None)
    """
    if hasattr(predictor, "num_outputs"):
        return predictor.num_outputs
    if hasattr(predictor, "input_gradient"):
        return None
    shape = getattr(traced_shape(predictor, x), "shape", ())
    if len(shape) != 2 or shape[0] != len(x) or shape[1] == 1:
        return None
    if not isinstance(targets, jax.Array):
        targets = np.asarray(targets)
    if jnp.issubdtype(targets.dtype, jnp.integer):
        return shape[1]
    return None


def check_options(size, norm, direction, bounds) -> tuple[Array | None, Array | None]:
    """Raises for what `perturb` would not take; returns the bounds as arrays.

    Example:
        >>> check_options(0.5, "l2", "gradient", None)
        (None, None)
    """
    check_choice(norm, "norm", NORMS)
    check_choice(direction, "direction", DIRECTIONS)
    check_number(size, "size")
    return checked_bounds(bounds)


def checked_bounds(bounds) -> tuple[Array | None, Array | None]:
    """The bounds as arrays of one dtype, or (None, None); raises unless low < high somewhere.

    Example:
        >>> low, high = checked_bounds((0, 1))
        >>> float(low), float(high)
        (0.0, 1.0)
    """
    if bounds is None:
        return None, None
    try:
        given_low, given_high = bounds
        low = as_float(given_low, "bounds")
        high = as_float(given_high, "bounds")
    except (TypeError, ValueError):
        raise ValueError(f"bounds must be (low, high); got {bounds!r}") from None
    if is_traced(low, high):
        return low, high
    dtype = common_dtype(low, high)
    low = low.astype(dtype)
    high = high.astype(dtype)
    # Single entries may be held fixed, by equal bounds, but not all of them.
    one, other = on_host(low, high)
    if not ((one <= other).all() and (one < other).any()):
        raise ValueError(f"bounds must have low < high; got {bounds!r}")
    return low, high
