"""The linear classifier that a network taught by short inputs is, scenario (a) for one (theory:
section 15).

g(z) = sum_n c_n Phi(r_n, z) (<r_n, z> + c). Where the r_n are short Phi hardly depends on them, and

    |g(z) - Phi(0, z) (<w, z> + b)| <= error(z),   w = sum_n c_n r_n,   b = c sum_n c_n
    error(z) = (1 - slope)^2/(2 pi) sum_n arctan(|r_n|/sqrt(d)) |c_n| |<r_n, z> + c|

Source: theory 15.1, with the proof; 15.3 for finite networks.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from perturbkernel.arrays import or_one
from perturbkernel.checks import as_inputs
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import (
    as_vector,
    check_kernel,
    check_statement,
    cone_slope,
    double,
    gate_mean_square,
)
from perturbkernel.theory.certificates import cheapest
from perturbkernel.theory.constants import derive_constants
from perturbkernel.theory.tails import derive_speeds, derive_tail, has_sign
from perturbkernel.training.predictors import KernelPredictor

#: Points of a tile: its products are near 8 MB.
_TILE = 1024


@dataclass(frozen=True)
class LinearPart:
    """The linear classifier <weights, z> + bias, and where a network provably has its signs.

    Made by `linear_part`. The classifier's value at z is output(z) / Phi(0, z).

    Attributes:
        weights: (d,), sum_n c_n r_n, of flattened inputs.
        bias: sum_n c_n if biases are trained, else 0.
        output: (m,), Phi(0, z) (<weights, z> + bias): what g is, to leading order.
        error: (m,), |g(z) - output(z)| is never larger.
        failure: (m,), at most the probability that a trained network of finite width has not the
            sign of the limit g; 0 where none was asked for.
        certified: (m,), where the sign of g provably is the classifier's: |output| > error, beyond
            rounding. With a width: of the network, at all these points at once with probability
            1 - delta.
    """

    weights: Float[np.ndarray, " d"]
    bias: float
    output: Float[np.ndarray, " m"]
    error: Float[np.ndarray, " m"]
    failure: Float[np.ndarray, " m"]
    certified: Bool[np.ndarray, " m"]

    @property
    def share(self) -> float:
        """The share of the points that are certified."""
        return float(self.certified.mean())


class LinearSums(NamedTuple):
    """`weights`, `bias`, `output` and `error` as in `LinearPart`; `certified` for the limit g."""

    weights: np.ndarray
    bias: float
    output: np.ndarray
    error: np.ndarray
    certified: np.ndarray


def _lengths(points: np.ndarray) -> np.ndarray:
    """|r_n|, (n,), of points however short."""
    largest = np.abs(points).max(axis=1)
    unit = points / or_one(largest)[:, None]
    return largest * np.linalg.norm(unit, axis=1)


def linear_sums(kernel: TwoLayerNTK, r: np.ndarray, coef: np.ndarray, z: np.ndarray) -> LinearSums:
    """The inequality of 15.1 for points r (n, d), coefficients (n,) and queries z (m, d)."""
    root = np.sqrt(r.shape[1])
    lengths = _lengths(r)
    queries = _lengths(z)
    # An angle to z changes by the angle between (r_n/sqrt(d), 1) and (0, 1) at most.
    size = np.abs(coef)
    turned = np.arctan(lengths / root)
    reach = cone_slope(kernel) * turned * size
    error = np.zeros(len(z))
    for rows in range(0, len(z), _TILE):
        queries_of_tile = z[rows : rows + _TILE]
        for columns in range(0, len(r), _TILE):
            part = slice(columns, columns + _TILE)
            factor = np.abs(queries_of_tile @ r[part].T + kernel.train_bias)
            error[rows : rows + _TILE] += factor @ reach[part]
    weights = coef @ r
    bias = float(kernel.train_bias * coef.sum())
    angles = np.arctan(queries / root)
    gates = gate_mean_square(kernel) - cone_slope(kernel) * angles
    output = gates * (z @ weights + bias)
    # A sum of n products of length d: a few ulp of its absolute terms each, added in pairs.
    terms = size @ lengths * queries + kernel.train_bias * size.sum()
    rounding = 32 * np.finfo(float).eps * gates * terms
    certified = np.abs(output) > error + rounding
    return LinearSums(weights, bias, output, error, certified)


def _checked_kernel(g: Any) -> TwoLayerNTK:
    """The kernel of g; raises for a predictor of which 15.1 does not speak."""
    if not isinstance(g, KernelPredictor):
        raise TypeError(
            "g must be a KernelPredictor, whose inputs and dual_coef say what it is; "
            f"got {type(g).__name__}"
        )
    check_kernel(g.kernel)
    if g.initial is not None:
        raise ValueError(
            "g must start from zero (initial=None): its initial function is not linear"
        )
    if g.num_outputs is not None:
        raise ValueError(f"g must have one output; it has {g.num_outputs}")
    return cast(TwoLayerNTK, g.kernel)


def _rows(value: ArrayLike, name: str, like: tuple[int, ...] | None) -> np.ndarray:
    """Inputs of any shape as rows (n, d) of float64."""
    array = double(lambda v: as_inputs(v, name, like=like), value)
    return array.reshape(len(array), -1).astype(float)


def linear_part(
    g: KernelPredictor,
    z: Float[ArrayLike, "m ..."],
    *,
    width: int | None = None,
    delta: float = 0.1,
    start: str = "centred",
) -> LinearPart:
    """The linear classifier that g is, and at which points z (m, ...) it provably is.

    sgn g(z) = sgn(<weights, z> + bias) wherever Phi(0, z) |<weights, z> + bias| > error(z), for
    coefficients of any loss. In scenario (a) the trained inputs are as short as the perturbations,
    and that is nearly everywhere; the longer they are, as in (b), the fewer points are certified.

    Args:
        g: a trained predictor with a TwoLayerNTK, zero start and one output.
        z: points, of the shape of g's inputs.
        width: also certify trained networks of this width, identity loss alone: the probability of
            another sign than g's is bounded by the tails of 6.5, and the points of smallest bounds
            with sum at most `delta` are kept.
        delta, start: of that statement, as in `certify`; the points must be independent of the
            network's initialisation.

    Raises:
        TypeError: g is no KernelPredictor, or has another kernel.
        ValueError: an initial function, several outputs, bad points; with `width`: coefficients
            that are not those of the identity loss.

    Example:
        >>> import jax.numpy as jnp
        >>> import perturbkernel as pk
        >>> g = pk.fit(pk.TwoLayerNTK(), jnp.eye(3)[:2] / 10, jnp.array([1.0, -1.0]))
        >>> part = pk.theory.linear_part(g, jnp.array([[3.0, 1.0, 0.0], [1.0, 1.0, 2.0]]))
        >>> part.certified.tolist(), part.share
        ([True, False], 0.5)

    Cost: one product of (m, d) with (d, n), in tiles. Theory: 15.1, 15.3.
    """
    kernel = _checked_kernel(g)
    r = _rows(g.inputs, "g.inputs", None)
    coef = as_vector(g.dual_coef, "g.dual_coef", len(r))
    z = _rows(z, "z", g.inputs.shape[1:])
    found = linear_sums(kernel, r, coef, z)
    failure = np.zeros(len(z))
    certified = found.certified
    if width is not None:
        check_statement(delta, width)
        failure = _failure(kernel, r, coef, z, found.output, width, start)
        certified = cheapest(failure, certified, delta)
    return LinearPart(*found[:4], failure=failure, certified=certified)


def _failure(kernel, r, coef, z, output, width: int, start: str) -> Float[np.ndarray, " m"]:
    """Bounds on the probability that a network of finite width has not the sign of g, (m,)."""
    size = np.abs(coef)
    if size.min() == 0 or np.ptp(size) > 1e-5 * size.max():  # float32 coefficients
        raise ValueError(
            "width needs a g that was trained with the identity loss, whose coefficients are "
            f"all of one size; they range from {size.min():.3g} to {size.max():.3g} here"
        )
    constants = derive_constants(kernel, r, np.sign(coef), z)
    time = float(size.mean() * len(coef))
    speeds = derive_speeds(constants)
    tail = derive_tail(constants, speeds, width=width, time=time, start=start)
    # Where the two sums differ in sign it is rounding, and nothing is claimed.
    known = has_sign(constants) & (constants.f_hat * output > 0)
    return np.where(known, np.exp(tail.log_failure()), 1.0)
