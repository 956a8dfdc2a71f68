"""How close the tangent kernel of a finite network is to its limit at initialisation (theory:
section 2).

"With probability at least 1 - delta" is over the initialisation w_i ~ N(0, I/d), b_i ~ N(0, 1), a_i
~ N(0, 1/width). Points are fixed independently of it. An antisymmetrically doubled network counts
with half its width (`start="doubled"`; the other two starts are alike here).
"""

import numpy as np
from jaxtyping import ArrayLike, Float

from perturbkernel._moved import renamed
from perturbkernel.checks import check_choice
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import as_points, check_kernel, check_statement
from perturbkernel.theory.constants import Constants
from perturbkernel.theory.pairs import gate_fourth, phi, tiles
from perturbkernel.training.initial_function import STARTS


def independent_neurons(width: int, start: str) -> int:
    """The number of i.i.d. summands: width, or the width / 2 pairs of a doubled network. Theory:
    4.4, 13.13.
    """
    check_statement(1.0, width)
    check_choice(start, "start", STARTS)
    if start != "doubled":
        return width
    if width % 2:
        raise ValueError(f"width of a doubled network must be even; got {width}")
    return width // 2


def _moments(kernel, x, z):
    """Phi and Q, (n, m)."""
    check_kernel(kernel)
    x = as_points(x, "x")
    z = as_points(z, "z", like=x)
    theta = np.empty((len(x), len(z)))
    for rows, columns, _, part in tiles(x, z):
        theta[rows, columns] = part
    product = x @ z.T + kernel.train_bias
    return phi(kernel, theta), gate_fourth(kernel.slope, theta), product


def _bernstein(fourth, log_term: float, neurons: int):
    return np.sqrt(6 * fourth * log_term / neurons) + 2 * log_term / neurons


def gate_moment_variance(
    kernel: TwoLayerNTK, x: Float[ArrayLike, "n d"], z: Float[ArrayLike, "m d"], *, width: int
) -> Float[np.ndarray, "n m"]:
    """Var Phi_width(x_n, z_j) = (3 Q - Phi^2) / width exactly, (n, m). Theory: 2.

    Example:
        >>> import perturbkernel as pk
        >>> x, z = [[1.0, 0.0]], [[2.0, 1.0]]
        >>> pk.theory.gate_moment_variance(pk.TwoLayerNTK(), x, z, width=100).round(4)
        array([[0.0108]])
    """
    check_statement(1.0, width)
    mean, fourth, _ = _moments(kernel, x, z)
    return (3 * fourth - mean**2) / width


@renamed(doubled="start")
def gate_moment_bound(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    z: Float[ArrayLike, "m d"],
    *,
    width: int,
    delta: float,
    pairs: int | None = None,
    start: str = "random",
) -> Float[np.ndarray, "n m"]:
    """B_Phi, (n, m): with probability >= 1 - delta, |Phi_width - Phi| <= B_Phi at all pairs at
    once.

    B_Phi = sqrt(6 Q l / width) + 2 l / width, l = log(2 pairs / delta); `pairs` is n m if left out
    (for a symmetric matrix n (n + 1) / 2 suffice). Theory: 2.1.

    Example:
        >>> import perturbkernel as pk
        >>> kernel, x, z = pk.TwoLayerNTK(), [[1.0, 0.0]], [[2.0, 1.0]]
        >>> pk.theory.bounds.gate_moment_bound(kernel, x, z, width=10**4, delta=0.1).round(3)
        array([[0.028]])
    """
    _, fourth, _ = _moments(kernel, x, z)
    pairs = fourth.size if pairs is None else pairs
    check_statement(delta, width, points=pairs)
    return _bernstein(fourth, np.log(2 * pairs / delta), independent_neurons(width, start))


@renamed(doubled="start")
def kernel_bound(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    z: Float[ArrayLike, "m d"],
    *,
    width: int,
    delta: float,
    pairs: int | None = None,
    start: str = "random",
) -> Float[np.ndarray, "n m"]:
    """B_K = |<x_n, z_j> + c| B_Phi, (n, m): |K_width - K| <= B_K at all pairs at once, as
    `gate_moment_bound`. Theory: 2.1.

    Example:
        >>> import perturbkernel as pk
        >>> x, z = [[1.0, 0.0]], [[2.0, 1.0]]
        >>> pk.theory.bounds.kernel_bound(pk.TwoLayerNTK(), x, z, width=10**4, delta=0.1).round(3)
        array([[0.056]])
    """
    bound = gate_moment_bound(kernel, x, z, width=width, delta=delta, pairs=pairs, start=start)
    return np.abs(_moments(kernel, x, z)[2]) * bound


@renamed(doubled="start")
def gate_moment_bound_split(
    kernel: TwoLayerNTK, *, width: int, delta: float, pairs: int, start: str = "random"
) -> float:
    """One number for all pairs, about twice `gate_moment_bound`: the cross-check of readouts and
    gates bounded apart.

    2 sqrt(l / width) + 2 l / width + (1 - slope^2) sqrt(l / (2 width)), l = log(4 pairs / delta).
    Theory: 2.1'.

    Example:
        >>> import perturbkernel as pk
        >>> kernel, claim = pk.TwoLayerNTK(), {"width": 10**4, "delta": 0.1}
        >>> round(pk.theory.bounds.gate_moment_bound_split(kernel, pairs=1, **claim), 3)
        0.053
    """
    check_kernel(kernel)
    check_statement(delta, width, points=pairs)
    rate = np.log(4 * pairs / delta) / independent_neurons(width, start)
    of_readouts = 2 * np.sqrt(rate) + 2 * rate
    of_gates = (1 - kernel.slope**2) * np.sqrt(rate / 2)
    return float(of_readouts + of_gates)


@renamed(doubled="start")
def predictor_bound(
    constants: Constants,
    *,
    width: int,
    delta: float,
    points: int | None = None,
    start: str = "random",
) -> Float[np.ndarray, " m"]:
    """B_pred, (m,): with probability >= 1 - delta, |f_hat_width(z) - f_hat(z)| <= B_pred(z) at all
    points at once.

    B_pred = sqrt(6 S_f^2 l / width) + 2 R_z l / width, l = log(2 points / delta), for fixed weights
    y_n / n (identity loss); 2 to 2.5 times smaller than the sum of entrywise errors. `points`:
    len(z) if left out. Theory: 2.2.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> pk.theory.bounds.predictor_bound(constants, width=10**4, delta=0.1).round(3)
        array([0.019])
    """
    points = constants.points if points is None else points
    check_statement(delta, width, points=points)
    rate = np.log(2 * points / delta) / independent_neurons(width, start)
    fluctuation = np.sqrt(6 * constants.f_second_moment * rate)
    largest = 2 * constants.speeds["identity"]
    return fluctuation + largest * rate


@renamed(doubled="start")
def predictor_variance(
    constants: Constants, *, width: int, start: str = "random"
) -> Float[np.ndarray, " m"]:
    """Var f_hat_width(z) = (3 S_f^2 - f_hat^2) / width exactly, (m,); clipped at 0. Theory: 2.2.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> pk.theory.predictor_variance(constants, width=100).round(4)
        array([0.005])
    """
    neurons = independent_neurons(width, start)
    return np.maximum(3 * constants.f_second_moment - constants.f_hat**2, 0) / neurons


METHODS = ("minimum", "bernstein", "operator")


@renamed(doubled="start")
def direction_bound(
    constants: Constants,
    *,
    width: int,
    delta: float,
    points: int | None = None,
    method: str = "minimum",
    start: str = "random",
) -> Float[np.ndarray, " m"]:
    """(m,): with probability >= 1 - delta, |v_width(z) - v(z)| <= bound at all points at once.

    "bernstein": sqrt(6 S_v^2 l / width) + 27 R l / width, l = log(2 points / delta); "operator":
    |X|_op / sqrt(n) times the root mean square over n of B_Phi(x_n, z), l = log(2 n points /
    delta), valid for all weights in [0, 1]^n at once too; "minimum": the smaller, each at delta /
    2. Theory: 2.3.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> pk.theory.bounds.direction_bound(constants, width=10**4, delta=0.1).round(3)
        array([0.023])
    """
    check_choice(method, "method", METHODS)
    points = constants.points if points is None else points
    check_statement(delta, width, points=points)
    if method == "minimum":
        both = (
            direction_bound(
                constants, width=width, delta=delta / 2, points=points, method=one, start=start
            )
            for one in METHODS[1:]
        )
        return np.minimum(*both)
    neurons = independent_neurons(width, start)
    if method == "bernstein":
        rate = np.log(2 * points / delta) / neurons
        return np.sqrt(6 * constants.direction_second_moment * rate) + 27 * constants.radius * rate
    rate = np.log(2 * constants.count * points / delta) / neurons
    # The mean over n of B_Phi^2 = 6 Q rate + 4 rate sqrt(6 Q rate) + 4 rate^2.
    square = (
        6 * constants.gate_fourth * rate
        + 4 * rate * np.sqrt(6 * rate) * constants.gate_root
        + 4 * rate**2
    )
    return constants.operator_norm / np.sqrt(constants.count) * np.sqrt(square)


@renamed(doubled="start")
def direction_variance(
    constants: Constants, *, width: int, start: str = "random"
) -> Float[np.ndarray, " m"]:
    """E|v_width(z) - v(z)|^2 = (3 S_v^2 - |v|^2) / width exactly, (m,), clipped at 0.

    Theory: 2.3.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> pk.theory.direction_variance(constants, width=100).round(4)
        array([0.0051])
    """
    neurons = independent_neurons(width, start)
    square = np.sum(constants.direction**2, axis=1)
    return np.maximum(3 * constants.direction_second_moment - square, 0) / neurons
