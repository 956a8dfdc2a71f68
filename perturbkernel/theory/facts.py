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
    """How much two label vectors can change g_hat_u in scenario (a): |g_hat_u - g_hat_u'| <= middle
    <= outer, (m,) each.

    middle = (1/n) sum |Phi(size u_n, z) - Phi(-size u_n, z)| |<u_n, z>|,
    outer = size (1 - slope)^2 / (pi sqrt(d)) (1/n) sum |<u_n, z>|. Deterministic. Theory: 8.2.
    """
    check_kernel(kernel)
    check_number(size, "size")
    u = as_points(u, "u")
    z = as_points(z, "z", like=u)
    middle = np.zeros(len(z))
    projection = np.zeros(len(z))
    above = tiles(z, size * u)
    below = tiles(z, -size * u)
    for (rows, columns, _, plus), (_, _, _, minus) in zip(above, below, strict=True):
        along = np.abs(z[rows] @ u[columns].T)
        middle[rows] += np.sum(np.abs(plus - minus) * along, axis=1)
        projection[rows] += np.sum(along, axis=1)
    cone = cone_slope(kernel) / len(u)
    return cone * middle, 2 * size * cone / np.sqrt(u.shape[1]) * projection


def bias_offset_deviation(
    kernel: TwoLayerNTK, z: Float[ArrayLike, "m d"], *, count: int, size: float
) -> Float[np.ndarray, " m"]:
    """Phi(0, z) / (size sqrt(count)), (m,): about the standard deviation over coin-flip targets of
    psi / size in scenario (a).

    Trained biases only (zero otherwise); an estimate for small size. Theory: 8.2.
    """
    check_kernel(kernel)
    check_statement(1.0, count)
    check_number(size, "size", open_low=True)
    z = as_points(z, "z")
    gates = gate_matrix(kernel, np.zeros((1, z.shape[1])), z)[0]
    return kernel.train_bias * gates / (size * np.sqrt(count))


def linear_predictor(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
) -> Float[np.ndarray, " m"]:
    """<mean of y_n x_n, z> + c mean of y_n, (m,): f_hat of the linear network, slope 1. Theory:
    8.7.
    """
    check_kernel(kernel)
    x = as_points(x, "x")
    y, z = as_labels(y, "y", len(x)), as_points(z, "z", like=x)
    return z @ (y @ x / len(x)) + kernel.train_bias * y.mean()


def linear_gap_bound(constants: Constants) -> Float[np.ndarray, " m"]:
    """(1 - slope) (1/n) sum |k_n(z)|, (m,): at least |f_hat - linear_predictor|, since 0 <= 1 - Phi
    <= 1 - slope. Theory: 8.7.
    """
    return (1 - constants.kernel.slope) * constants.absolute


def symmetric_predictor_without_bias_input(
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
    *,
    slope: float,
) -> Float[np.ndarray, " m"]:
    """(1 + slope)^2/4 <mean of y_n x_n, z>, (m,): f_hat of a network *without bias input* on data
    with (x, y) and (-x, -y).

    There Phi(x, z) + Phi(-x, z) = (1 + slope)^2/2. False for the networks of this package, whose
    biases are drawn. Theory: 8.6.
    """
    check_number(slope, "slope", high=1.0)
    x = as_points(x, "x")
    y, z = as_labels(y, "y", len(x)), as_points(z, "z", like=x)
    return (1 + slope) ** 2 / 4 * (z @ (y @ x / len(x)))


def output_change_variance(
    constants: Constants, *, width: int, time: float
) -> Float[np.ndarray, " m"]:
    """Var[f(z; T) - f0(z)] over draws, (m,): T^2 (3 S_f^2 - f_hat^2) / width, to leading order.

    Theory: 8.9.
    """
    check_statement(1.0, width)
    check_time(time)
    variance = 3 * constants.f_second_moment - constants.f_hat**2
    return time**2 * np.maximum(variance, 0) / width
