"""The direction of perturbations: how far a network's gradient is from v (theory: section 5).

xi(z) = grad f(z; T) / T - v(z). Everything assumes T > 0; where a gradient or v is zero there is no
direction and the result is NaN, never a number (theory: 13.1).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from perturbkernel._moved import renamed
from perturbkernel.arrays import quotient
from perturbkernel.checks import check_choice
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import (
    as_labels,
    as_network,
    as_points,
    check_kernel,
    check_statement,
    check_time,
    cone_slope,
    neuron_blocks,
)
from perturbkernel.theory.concentration import direction_bound
from perturbkernel.theory.constants import Constants
from perturbkernel.theory.finite import gates
from perturbkernel.theory.initial import initial_gradient_bound
from perturbkernel.theory.leading import direction
from perturbkernel.training.initial_function import STARTS


@dataclass(frozen=True)
class GradientDecomposition:
    """xi(z) = grad f(z; T)/T - v(z) in four parts, each (m, d).

    Attributes:
        initial: xi_1 = grad f0 / T.
        flips: xi_2 = (1/T) sum_i a_i (change of the gate at z) w_i(0): the finite-width form of
            zeta, plus noise.
        concentration: xi_3 = v_width - v.
        lazy: xi_4 = (1/T) sum_i a_i [phi'(u_i(z; T)) (w_i(T) - w_i(0)) - phi'(u_i(z; 0)) a_i T
            G_i].
        total: xi itself, from the trained network's gradient; the parts add up to it exactly.
    """

    initial: Float[np.ndarray, "m d"]
    flips: Float[np.ndarray, "m d"]
    concentration: Float[np.ndarray, "m d"]
    lazy: Float[np.ndarray, "m d"]
    total: Float[np.ndarray, "m d"]


def decompose_gradient(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
    weights: Float[ArrayLike, "width d"],
    biases: Float[ArrayLike, " width"],
    readout: Float[ArrayLike, " width"],
    trained_weights: Float[ArrayLike, "width d"],
    trained_biases: Float[ArrayLike, " width"],
    *,
    time: float,
) -> GradientDecomposition:
    """The exact decomposition of xi for a network trained with the identity loss to (effective)
    time T > 0.

    G_i = (1/n) sum_n y_n phi'(u_i(x_n; 0)) x_n; the readout is not trained. Theory: 5.1.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 1.0]], [1.0], [[2.0, 1.0]]
        >>> weights, biases, readout = [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0], [1.0, 1.0]
        >>> trained = [[1.1, 0.1], [0.1, 1.1]]  # each moved by time * readout * x
        >>> parts = pk.theory.decompose_gradient(
        ...     pk.TwoLayerNTK(), x, y, z, weights, biases, readout, trained, biases, time=0.1
        ... )
        >>> parts.initial.round(3), parts.flips.round(3), abs(parts.lazy).round(3)
        (array([[10., 10.]]), array([[0., 0.]]), array([[0., 0.]]))
    """
    check_kernel(kernel)
    check_time(time, positive=True)
    x = as_points(x, "x")
    y = as_labels(y, "y", len(x))
    z = as_points(z, "z", like=x)
    start, start_biases, readout = as_network(weights, biases, readout, x.shape[1])
    end = as_points(trained_weights, "trained_weights", like=x, rows=len(start))
    end, end_biases, _ = as_network(end, trained_biases, readout, x.shape[1])
    v = direction(kernel, x, y, z)
    initial = np.zeros(z.shape)
    flips = np.zeros(z.shape)
    concentration = np.zeros(z.shape)
    lazy = np.zeros(z.shape)
    total = np.zeros(z.shape)
    weighted = y[:, None] * x / len(x)
    for part in neuron_blocks(len(start), len(x) + 2 * len(z)):
        a = readout[part, None]
        w = start[part]
        b = start_biases[part, None]
        trained = end[part]
        before = gates(kernel, w @ z.T + b)
        after = gates(kernel, trained @ z.T + end_biases[part, None])
        pull = gates(kernel, w @ x.T + b) @ weighted  # G_i
        first_order = before.T @ (a**2 * time * pull)
        moved = after.T @ (a * (trained - w))
        initial += before.T @ (a * w)
        flips += (after - before).T @ (a * w)
        concentration += first_order
        lazy += moved - first_order
        total += after.T @ (a * trained)
    return GradientDecomposition(
        initial=initial / time,
        flips=flips / time,
        concentration=concentration / time - v,
        lazy=lazy / time,
        total=total / time - v,
    )


@dataclass(frozen=True)
class GradientBounds:
    """Bounds on |xi| and its parts, (m,): with probability >= 1 - delta all hold at all points at
    once.

    Attributes:
        initial, flips, concentration, lazy: B_1 to B_4.
        total: B_xi, their sum.
        status: "ok", or in words why the bounds are NaN.
    """

    initial: Float[np.ndarray, " m"]
    flips: Float[np.ndarray, " m"]
    concentration: Float[np.ndarray, " m"]
    lazy: Float[np.ndarray, " m"]
    total: Float[np.ndarray, " m"]
    status: str = "ok"


@renamed(centred="start", doubled="start")
def gradient_bounds(
    constants: Constants,
    *,
    width: int,
    time: float,
    delta: float,
    loss: str = "identity",
    start: str = "random",
    points: int | None = None,
) -> GradientBounds:
    """Bounds on |xi| and its parts, a priori: B_xi = B_1 + B_2 + B_3 + B_4.

    Vacuous (above |v|) at all practical widths: see `measured_cosine_bound`.

    With l = log(16 (points + n) / delta), D = T R_z, s = s_z, h = 1 - slope and, bounding sum_{F_z}
    a_i^2, #F_z, sum_{F_z} |a_i|,

        A_F^2 = 4 D/(pi s sqrt(width)) + sqrt(32 D l/(pi s width^(3/2))) + 2 l/width
        n_F   = lam + sqrt(2 lam l) + l/3,  lam = (2/pi) sqrt(width) D/s
        L_F   = sqrt(2/pi) D/s + sqrt(8 D l/(pi s sqrt(width))) + l/sqrt(width):

        B_1 = B_grad(delta/4) / T  (0 if `start` is "centred": xi of f - f0)
        B_2 = (h/T) [min{A_F (sqrt(n_F) + sqrt(d) + sqrt(2 l))/sqrt(d),
                         sqrt(2/(pi d)) L_F + A_F (2 + sqrt(2 l/d))} + D |z| A_F^2 / (d s^2)]
        B_3 = the smaller direction bound, each at delta/8
              (logistic: "operator", at delta/4, for every realised weighting)
        B_4 = h [R A_F^2(z) + min{(1/n) sum_n |x_n| A_F^2(x_n),
                                  |X|_op/sqrt(n) sqrt((1/n) sum_n A_F^4(x_n))}].

    For the logistic loss xi is around v_beta, the direction with realised weights. The points may
    contain training inputs. Not stated for doubled networks: NaN and a status. As width grows, at
    fixed T, B_xi tends to B_1 plus the size of a bound on zeta, not to 0. Theory: 5.2, 7.2, 13.2.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> b = pk.theory.bounds.gradient_bounds(
        ...     constants, width=10**6, time=1.0, delta=0.1, start="centred"
        ... )
        >>> b.total.round(2), b.flips.round(2), b.status
        (array([0.43]), array([0.43]), 'ok')
    """
    check_choice(start, "start", STARTS)
    points = constants.points if points is None else points
    check_statement(delta, width, points=points)
    check_time(time, positive=True)
    speed = constants.speed(loss)
    if start == "doubled":
        nothing = np.full(constants.points, np.nan)
        return GradientBounds(
            initial=nothing,
            flips=nothing,
            concentration=nothing,
            lazy=nothing,
            total=nothing,
            status="undefined: the a priori gradient bound is not stated for doubled networks",
        )
    d = constants.dimension
    n = constants.count
    h = 1 - constants.kernel.slope
    log = np.log(16 * (points + n) / delta)  # l
    root = np.sqrt(width)
    root_d = np.sqrt(d)
    s = constants.length

    def flipped_square(move, length):
        """A_F^2."""
        rate = move / (np.pi * length)
        fluctuation = np.sqrt(32 * rate * log / width**1.5)
        return 4 * rate / root + fluctuation + 2 * log / width

    move = time * speed  # D
    a_f_square = flipped_square(move, s)
    input_move = time * constants.input_speeds[loss]
    input_square = flipped_square(input_move, constants.input_length)
    rate = move / (np.pi * s)
    lam = 2 * root * rate
    n_f = lam + np.sqrt(2 * lam * log) + log / 3
    mean = np.sqrt(2 / np.pi) * move / s
    fluctuation = np.sqrt(8 * rate * log / root)
    l_f = mean + fluctuation + log / root
    a_f = np.sqrt(a_f_square)
    # B_2: by the spectral norm of the weights that flip, or by contraction.
    root_log = np.sqrt(2 * log)
    norm = np.sqrt(n_f) + root_d + root_log
    spectral = a_f * norm / root_d
    across_gates = 2 + root_log / root_d
    contraction = np.sqrt(2 / np.pi) * l_f / root_d + a_f * across_gates
    along = move * constants.norm * a_f_square / (d * s**2)
    across = np.minimum(spectral, contraction)
    event: dict[str, Any] = {"width": width, "delta": delta / 4, "points": points}
    initial = 0.0
    if start == "random":
        initial = initial_gradient_bound(constants.kernel, d, **event) / time
    method = "minimum" if loss == "identity" else "operator"
    # B_4: by the lengths of the points, or by their operator norm.
    by_length = float(np.mean(constants.input_norm * input_square))
    root_mean_square = float(np.sqrt(np.mean(input_square**2)))
    by_operator = constants.operator_norm / np.sqrt(n) * root_mean_square
    at_inputs = min(by_length, by_operator)
    parts = (
        np.full(constants.points, initial),
        h / time * (across + along),
        direction_bound(constants, method=method, **event),
        h * (constants.radius * a_f_square + at_inputs),
    )
    return GradientBounds(*parts, total=np.sum(parts, axis=0))


def cosine_bound(
    xi_norm: Float[ArrayLike, " m"], v_norm: Float[ArrayLike, " m"]
) -> Float[np.ndarray, " m"]:
    """sqrt(1 - r^2), (m,): cos(grad f, v) is at least this when |xi| <= xi_norm and r = xi_norm /
    |v| < 1; NaN otherwise.

    With the exact |xi| of a trained network it is deterministic and nearly tight. Theory: 5.2,
    5.4(ii), 13.9.

    Example:
        >>> import perturbkernel as pk
        >>> pk.theory.bounds.cosine_bound([0.6, 2.0], [1.0, 1.0])
        array([0.8, nan])
    """
    xi = np.asarray(xi_norm, np.float64)
    v = np.asarray(v_norm, np.float64)
    xi, v = np.broadcast_arrays(xi, v)
    claimed = (xi < v) & (xi >= 0)
    r = quotient(xi, v, claimed)
    cosine = np.sqrt((1 - r) * (1 + r))
    return np.where(claimed, cosine, np.nan)


def measured_cosine_bound(
    constants: Constants, gradients: Float[ArrayLike, "m d"], *, time: float
) -> Float[np.ndarray, " m"]:
    """`cosine_bound` for the gradients (m, d) of a trained network at the record's points:
    deterministic. Theory: 5.4(ii).

    For the centred form give grad f - grad f0. NaN where |xi| >= |v|, a zero gradient included.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> pk.theory.bounds.measured_cosine_bound(constants, [[2.2, -1.8]], time=10.0).round(3)
        array([0.999])
    """
    check_time(time, positive=True)
    gradients = as_points(gradients, "gradients", like=constants.x, rows=constants.points)
    v = constants.direction
    xi = gradients / time - v
    xi_norm = np.linalg.norm(xi, axis=1)
    v_norm = np.linalg.norm(v, axis=1)
    return cosine_bound(xi_norm, v_norm)


def flips_bound_measured(
    kernel: TwoLayerNTK,
    weights: Float[ArrayLike, "width d"],
    readout: Float[ArrayLike, " width"],
    sets: Bool[np.ndarray, "width m"] | None,
    *,
    time: float,
) -> Float[np.ndarray, " m"]:
    """(m,): |xi_2(z)| <= ((1 - slope)/T) |W_F|_op |a_F|, surely, from the initialisation alone.

    W_F, a_F are the initial weights and readouts of the neurons in F_z; `sets` (width, m) is F_z,
    from `certified_gates(..., keep_sets=True)`. Theory: 5.4(i).

    Example:
        >>> import perturbkernel as pk
        >>> weights, readout, sets = [[3.0, 4.0], [1.0, 0.0]], [0.5, 2.0], [[True], [False]]
        >>> bound = pk.theory.bounds.flips_bound_measured
        >>> bound(pk.TwoLayerNTK(), weights, readout, sets, time=1.0)
        array([2.5])
    """
    check_kernel(kernel)
    check_time(time, positive=True)
    weights = as_points(weights, "weights")
    weights, _, readout = as_network(weights, readout, readout, weights.shape[1])
    sets = np.asarray(sets)
    if sets.dtype != bool or sets.ndim != 2 or len(sets) != len(weights):
        raise ValueError(
            f"sets must be booleans (width, m) with width {len(weights)}; "
            f"got {sets.dtype} {sets.shape}"
        )
    bound = np.zeros(sets.shape[1])
    for j, flipped in enumerate(sets.T):
        rows = weights[flipped]
        if len(rows) == 0:
            continue
        count, d = rows.shape
        gram = rows @ rows.T if count < d else rows.T @ rows
        operator_norm = np.sqrt(np.linalg.eigvalsh(gram)[-1])
        bound[j] = operator_norm * np.linalg.norm(readout[flipped])
    return (1 - kernel.slope) / time * bound


def gate_motion_bound(constants: Constants) -> Float[np.ndarray, " m"]:
    """(m,): |zeta(z)| <= (1 - slope)^2 / (2 pi sqrt(d) s_z) (1/n) sum_{x_n != z} |k_n(z)|.
    Deterministic. Theory: 5.3.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> pk.theory.bounds.gate_motion_bound(constants).round(3)  # |gate_motion| there is 0.055
        array([0.09])
    """
    lipschitz = cone_slope(constants.kernel) / (np.sqrt(constants.dimension) * constants.length)
    return lipschitz * constants.absolute_apart
