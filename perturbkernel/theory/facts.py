"""Exact facts and simple limits, for sharp checks (theory: section 8)."""

import numpy as np
from jaxtyping import ArrayLike, Float

from perturbkernel.checks import check_number
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import (
    as_labels,
    as_points,
    check_kernel,
    check_statement,
    check_time,
    cone_slope,
)
from perturbkernel.theory.constants import Constants
from perturbkernel.theory.pairs import gate_matrix, tiles

WIDTH_RATES = {
    "kernel": -0.5,
    "flipped_fraction": -0.5,
    "output": -0.5,
    "gradient": -0.25,
    "initial_output": 0.0,
}
"""Exponents of width at fixed data and time: the kernel, the fraction of flipped gates,
f - f0 - T f_hat, the gradient against its limit (measured), the initial function. Theory: 8.8."""


def label_effect_bound(
    kernel: TwoLayerNTK, u: Float[ArrayLike, "n d"], z: Float[ArrayLike, "m d"], *, size: float
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """How much two label vectors can change g_hat_u in scenario (a): middle and outer, (m,) each.

        |g_hat_u - g_hat_u'| <= middle <= outer
        middle = (1/n) sum |Phi(size u_n, z) - Phi(-size u_n, z)| |<u_n, z>|
        outer = size (1 - slope)^2 / (pi sqrt(d)) (1/n) sum |<u_n, z>|

    Deterministic. Theory: 8.2.

    Example:
        >>> middle, outer = label_effect_bound(TwoLayerNTK(), [[0.6, 0.8]], [[1.0, 1.0]], size=0.1)
        >>> bool(0 < middle[0] <= outer[0])
        True
    """
    check_kernel(kernel)
    check_number(size, "size")
    u = as_points(u, "u")
    z = as_points(z, "z", like=u)
    middle = np.zeros(len(z))
    projection = np.zeros(len(z))
    above = tiles(z, size * u)
    below = tiles(z, -size * u)
    for plus, minus in zip(above, below, strict=True):
        rows = plus.rows
        along = np.abs(z[rows] @ u[plus.columns].T)
        turned = np.abs(plus.theta - minus.theta)
        middle[rows] += np.sum(turned * along, axis=1)
        projection[rows] += np.sum(along, axis=1)
    n, d = u.shape
    cone = cone_slope(kernel) / n
    rate = 2 * size * cone / np.sqrt(d)
    return cone * middle, rate * projection


def bias_offset_deviation(
    kernel: TwoLayerNTK, z: Float[ArrayLike, "m d"], *, count: int, size: float
) -> Float[np.ndarray, " m"]:
    """About the standard deviation over coin-flip targets of psi / size in scenario (a), (m,).

        Phi(0, z) / (size sqrt(count))

    Trained biases only (zero otherwise); an estimate for small size. Theory: 8.2.

    Example:
        >>> kernel = TwoLayerNTK(train_bias=True)
        >>> bias_offset_deviation(kernel, [[0.0, 0.0]], count=100, size=0.1).round(3).tolist()
        [0.5]
    """
    check_kernel(kernel)
    check_statement(1.0, count)
    check_number(size, "size", open_low=True)
    z = as_points(z, "z")
    origin = np.zeros((1, z.shape[1]))
    gates = gate_matrix(kernel, origin, z)[0]
    root = np.sqrt(count)
    return kernel.train_bias * gates / (size * root)


def linear_predictor(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
) -> Float[np.ndarray, " m"]:
    """f_hat of the linear network, slope 1, (m,): <mean of y_n x_n, z> + c mean of y_n.

    Theory: 8.7.

    Example:
        >>> linear_predictor(TwoLayerNTK(), np.eye(2), [1, -1], [[3.0, 1.0]]).tolist()
        [1.0]
    """
    check_kernel(kernel)
    x = as_points(x, "x")
    y = as_labels(y, "y", len(x))
    z = as_points(z, "z", like=x)
    offset = kernel.train_bias * y.mean()
    return z @ _labelled_mean(x, y) + offset


def _labelled_mean(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The mean of y_n x_n, (d,)."""
    return y @ x / len(x)


def linear_gap_bound(constants: Constants) -> Float[np.ndarray, " m"]:
    """A bound on |f_hat - linear_predictor|, (m,): (1 - slope) (1/n) sum |k_n(z)|.

    It holds since 0 <= 1 - Phi <= 1 - slope. Theory: 8.7.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> pk.theory.bounds.linear_gap_bound(constants).tolist()
        [1.5]
    """
    return (1 - constants.kernel.slope) * constants.absolute


def symmetric_predictor_without_bias_input(
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
    *,
    slope: float,
) -> Float[np.ndarray, " m"]:
    """f_hat of a network *without bias input* on data with (x, y) and (-x, -y), (m,).

        (1 + slope)^2/4 <mean of y_n x_n, z>

    There Phi(x, z) + Phi(-x, z) = (1 + slope)^2/2. False for the networks of this package, whose
    biases are drawn. Theory: 8.6.

    Example:
        >>> x, z = np.eye(2), [[3.0, 1.0]]
        >>> symmetric_predictor_without_bias_input(x, [1, -1], z, slope=0.0).tolist()
        [0.25]
    """
    check_number(slope, "slope", high=1.0)
    x = as_points(x, "x")
    y = as_labels(y, "y", len(x))
    z = as_points(z, "z", like=x)
    linear = z @ _labelled_mean(x, y)
    return (1 + slope) ** 2 / 4 * linear


def output_change_variance(
    constants: Constants, *, width: int, time: float
) -> Float[np.ndarray, " m"]:
    """Var[f(z; T) - f0(z)] over draws, (m,): T^2 (3 S_f^2 - f_hat^2) / width, to leading order.

    Theory: 8.9.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> pk.theory.output_change_variance(constants, width=100, time=2.0).round(4)
        array([0.02])
    """
    check_statement(1.0, width)
    check_time(time)
    variance = 3 * constants.f_second_moment - constants.f_hat**2
    variance = np.maximum(variance, 0)
    return time**2 * variance / width
