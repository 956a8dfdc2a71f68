"""Lazy training: how little gates move, and what the frozen-gate predictor misses (theory: section
3).

D_z = time R_z bounds the motion of a pre-activation at z per unit of |a_i|; F_z is the set of
neurons with |u_i(z; 0)| <= |a_i| D_z, outside which no gate at z ever changes. `time` is that of
gradient flow or the effective time of heavy ball (rates >= 0, momentum in [0, 1), no Nesterov,
dampening or weight decay). Losses with |l'| <= 1 only: identity, or logistic, whose R_z allows
weights in [0, 1] while the factors (1 - slope) stay.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from perturbkernel._moved import renamed
from perturbkernel.checks import check_choice, check_count, check_number
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import (
    as_labels,
    as_network,
    as_points,
    as_vector,
    check_kernel,
    check_loss,
    check_statement,
    check_time,
    neuron_blocks,
)
from perturbkernel.theory.concentration import independent_neurons
from perturbkernel.theory.constants import Constants
from perturbkernel.theory.finite import gates


def displacement(
    constants: Constants, *, time: float, loss: str = "identity"
) -> Float[np.ndarray, " m"]:
    """D_z = time R_z, (m,): |u_i(z; t) - u_i(z; 0)| <= |a_i| D_z at every t <= time, surely.
    Theory: 3.1.

    The weights themselves move by at most |w_i(t) - w_i(0)| <= |a_i| time `constants.radius`.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> pk.theory.bounds.displacement(constants, time=3.0)
        array([3.])
    """
    check_time(time)
    return time * constants.speed(loss)


def lazy_number(
    constants: Constants, *, width: int, time: float, loss: str = "identity"
) -> Float[np.ndarray, " m"]:
    """chi_z = 2 D_z / (pi s_z sqrt(width)), (m,): at least the expected fraction of gates at z that
    ever flip.

    Far above 1 training is not lazy and the bounds here say nothing. Theory: 3.1.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> pk.theory.bounds.lazy_number(constants, width=10_000, time=3.0).round(4)
        array([0.0102])
    """
    check_statement(1.0, width)
    move = displacement(constants, time=time, loss=loss)
    return 2 * move / (np.pi * constants.length * np.sqrt(width))


def flip_probability(
    constants: Constants,
    readout: Float[ArrayLike, " width"],
    *,
    time: float,
    loss: str = "identity",
) -> Float[np.ndarray, "width m"]:
    """sqrt(2/pi) |a_i| D_z / s_z, clipped at 1, (width, m): at least P(i in F_z | a_i) over w_i and
    b_i. Theory: 3.1.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> pk.theory.flip_probability(constants, [0.01, -0.1], time=3.0).round(3)
        array([[0.013],
               [0.128]])
    """
    readout = as_vector(readout, "readout", np.size(readout))
    rate = displacement(constants, time=time, loss=loss) / constants.length
    size = np.abs(readout)[:, None]
    probability = np.sqrt(2 / np.pi) * size * rate
    return np.minimum(probability, 1)


@dataclass(frozen=True)
class CertifiedGates:
    """What an initialisation alone certifies about training, surely.

    Attributes:
        bound: (m,), |f(z; T) - f_lin(z; T)| stays below it, f_lin the predictor of this network's
            own tangent kernel.
        flips: (m,), the number of neurons in F_z; all other gates at z never change.
        input_flips: (n,), the same at the training inputs.
        sets: (width, m), F_z itself, or None unless asked for.
        input_sets: (width, n), the same at the training inputs.
    """

    bound: Float[np.ndarray, " m"]
    flips: Float[np.ndarray, " m"]
    input_flips: Float[np.ndarray, " n"]
    sets: Bool[np.ndarray, "width m"] | None
    input_sets: Bool[np.ndarray, "width n"] | None


def certified_gates(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
    weights: Float[ArrayLike, "width d"],
    biases: Float[ArrayLike, " width"],
    readout: Float[ArrayLike, " width"],
    *,
    time: float,
    loss: str = "identity",
    refinements: int | None = None,
    keep_sets: bool = False,
) -> CertifiedGates:
    """The deterministic bound computable at initialisation, and the gates that can flip.

        |f - f_lin|(z; T) <= (1 - slope) sum_i a_i^2 [(D_iz - |u_i(z; 0)|/|a_i|)_+
                                                      + (T/n) sum_n |k_n(z)| 1[i in F_{x_n}]]

    with D_iz = T R_z. For the identity loss, `refinements` (3 if left out) rounds of

        D_iz <- min(D_iz, T |g_i(z)| + (1 - slope) (T/n) sum_n 1[i in F_{x_n}] |k_n(z)|),
        g_i(z) = (1/n) sum_n y_n phi'(u_i(x_n; 0)) k_n(z),

    over the training inputs, with F computed again each time, and one over z: valid at every round,
    since each F holds every flip. The logistic loss has no refinement (0). `keep_sets` returns F,
    one byte an entry.

    Cost O(width n (n + m) refinements) time; memory O(n (n + m)) plus blocks of neurons: neurons
    are independent. Theory: 3.2, 13.2, 13.3, 13.5.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 1.0]], [1.0], [[2.0, 1.0]]
        >>> weights, biases, readout = [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0], [0.1, 1.0]
        >>> gates = pk.theory.certified_gates(
        ...     pk.TwoLayerNTK(), x, y, z, weights, biases, readout, time=0.5
        ... )
        >>> gates.flips, gates.input_flips, gates.bound
        (array([1.]), array([1.]), array([2.]))
    """
    check_kernel(kernel)
    check_time(time)
    check_loss(loss)
    x = as_points(x, "x")
    n = len(x)
    y, z = as_labels(y, "y", n), as_points(z, "z", like=x)
    weights, biases, readout = as_network(weights, biases, readout, x.shape[1])
    refinements = (3 if loss == "identity" else 0) if refinements is None else refinements
    check_count(refinements, "refinements", low=0)
    if loss == "logistic" and refinements:
        raise ValueError(
            "refinements must be 0 for the logistic loss: they hold for the identity loss; "
            f"got {refinements}"
        )

    width = len(weights)
    low = kernel.slope if loss == "identity" else 0.0
    # Columns: training inputs, then queries.
    points = np.concatenate([x, z])
    factor = x @ points.T + kernel.train_bias
    signed = y[:, None] * factor / n
    positive = np.maximum(signed, 0).sum(0)
    negative = np.maximum(-signed, 0).sum(0)
    speed = np.maximum(positive - low * negative, negative - low * positive)
    a_priori = time * speed
    reach = np.abs(factor) * (time / n)

    bound = np.zeros(len(z))
    flips = np.zeros(n + len(z))
    sets = np.zeros((width, n + len(z)), bool) if keep_sets else None
    for part in neuron_blocks(width, n + len(z)):
        u = weights[part] @ points.T + biases[part, None]
        size = np.abs(readout[part])[:, None]
        room = np.abs(u)
        # per-neuron displacement at x, then at z
        moves = np.tile(a_priori, (len(u), 1))
        at_x = room[:, :n] <= size * moves[:, :n]
        if refinements:
            opened = gates(kernel, u[:, :n])
            linear = time * np.abs(opened @ signed)
            for step in range(refinements + 1):
                # The last round is over z alone, with the final F at x.
                columns = slice(0, n) if step < refinements else slice(n, None)
                flipped = at_x.astype(float) @ reach[:, columns]
                refined = linear[:, columns] + (1 - kernel.slope) * flipped
                moves[:, columns] = np.minimum(moves[:, columns], refined)
                at_x = room[:, :n] <= size * moves[:, :n]
        certified = room <= size * moves
        # a^2 (D - |u|/|a|)_+ as |a| (|a| D - |u|)_+: readouts may be zero.
        beyond = size * moves[:, n:] - room[:, n:]
        own = size * np.maximum(beyond, 0)
        squares = size[:, 0] ** 2 @ at_x
        bound += own.sum(0) + squares @ reach[:, n:]
        flips += certified.sum(0)
        if sets is not None:
            sets[part] = certified
    return CertifiedGates(
        bound=(1 - kernel.slope) * bound,
        flips=flips[n:],
        input_flips=flips[:n],
        sets=None if sets is None else sets[:, n:],
        input_sets=None if sets is None else sets[:, :n],
    )


def _moments(constants: Constants, width: int, time: float, loss: str, start: str):
    """j_z, (1 - slope) J_z and the variance bound of theory 3.3."""
    independent_neurons(width, start)
    check_time(time)
    d = time * constants.speed(loss)
    own = d**2 / (np.sqrt(2 * np.pi) * constants.length)
    at_inputs = np.sqrt(2 / np.pi) * time**2 * constants.couplings[loss]
    j = own + at_inputs
    h = 1 - constants.kernel.slope
    largest = h * (d + time * constants.absolute)
    twice = 2 if start == "doubled" else 1
    factor = twice * 2**3.5 / np.sqrt(np.pi)
    variance = factor * h * largest * j / width**1.5
    return j, largest, variance


@renamed(doubled="start")
def lazy_bound(
    constants: Constants,
    *,
    width: int,
    time: float,
    delta: float,
    loss: str = "identity",
    points: int | None = None,
    start: str = "random",
) -> Float[np.ndarray, " m"]:
    """B_lazy, (m,): with probability >= 1 - delta, |f - f_lin|(z; time) <= B_lazy(z) at all points
    at once.

    With l = log(points / delta), h = 1 - slope,

        B_lazy = 2 sqrt(2/pi) h j / sqrt(width) + sqrt(2 w l) + 2 h J l / width
        w = 2^(7/2)/sqrt(pi) h^2 J j / width^(3/2)
        j = D_z^2 / (sqrt(2 pi) s_z) + sqrt(2/pi) (T/n) sum_n |k_n(z)| D_{x_n} / s_{x_n}
        J = D_z + (T/n) sum_n |k_n(z)|

    f_lin is the predictor of the network's own tangent kernel with the realised weights. Of order
    T^2 / sqrt(width), 30 to 80 times above the actual error; increasing in T. An antisymmetrically
    doubled network (start "doubled", width counting every neuron) has w and the last term twice as
    large. Theory: 3.3, 4.4.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> pk.theory.bounds.lazy_bound(constants, width=10**6, time=1.0, delta=0.1).round(4)
        array([0.0014])
    """
    points = constants.points if points is None else points
    check_statement(delta, width, points=points)
    j, largest, variance = _moments(constants, width, time, loss, start)
    log = np.log(points / delta)
    h = 1 - constants.kernel.slope
    root_two_over_pi = np.sqrt(2 / np.pi)
    mean = 2 * root_two_over_pi * h * j / np.sqrt(width)
    gaussian = np.sqrt(2 * variance * log)
    twice = 2 if start == "doubled" else 1
    exponential = twice * 2 * largest * log / width
    return mean + gaussian + exponential


@renamed(doubled="start")
def lazy_standard_deviation(
    constants: Constants, *, width: int, time: float, start: str = "random"
) -> Float[np.ndarray, " m"]:
    """(m,), at least the standard deviation of f - f_lin over draws (identity loss):
    O(width^(-3/4)).

    sqrt(w) of `lazy_bound`. The mean is of order width^(-1/2) with a small coefficient; raw errors
    at moderate width show a rate between the two. Theory: 3.4.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> pk.theory.lazy_standard_deviation(constants, width=10**4, time=1.0).round(4)
        array([0.0033])
    """
    return np.sqrt(_moments(constants, width, time, "identity", start)[2])


def linearisation_error(
    at_inputs: Constants,
    *,
    width: int,
    time: float,
    delta: float,
    pairs: int,
    points: int,
    initial_gap: float = 0.0,
    against: str = "limit",
) -> Float[np.ndarray, " n"]:
    """epsilon_lin of `logistic_stability` at points, a priori: their supremum over t <= time is at
    `time`.

    "own": B_lazy at delta, for the network's own tangent kernel and the same initial function.
    "limit": B_lazy + (T/n) sum_n B_K(x_n, z) + initial_gap, each event at delta / 2, for the limit
    kernel. `initial_gap` is the largest |f0 - f_kernel(0)|. `pairs` is n (n + 1) / 2 + n n_z and
    `points` n + n_z for statements about n_z further points. `at_inputs` holds the constants at the
    points wanted, the training inputs for epsilon_lin. Theory: 3.5.

    Example:
        >>> import perturbkernel as pk
        >>> x, y = [[1.0, 0.0], [0.0, 1.0]], [1, -1]
        >>> at_inputs = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, x)
        >>> pk.theory.bounds.linearisation_error(
        ...     at_inputs, width=10**6, time=1.0, delta=0.1, pairs=3, points=2
        ... ).round(4)
        array([0.0024, 0.0024])
    """
    check_choice(against, "against", ("own", "limit"))
    check_statement(delta, width, points=points)
    check_count(pairs, "pairs")
    check_number(initial_gap, "initial_gap")
    if against == "own":
        return lazy_bound(
            at_inputs, width=width, time=time, delta=delta, loss="logistic", points=points
        )
    lazy = lazy_bound(
        at_inputs, width=width, time=time, delta=delta / 2, loss="logistic", points=points
    )
    rate = np.log(4 * pairs / delta) / width
    fluctuation = np.sqrt(6 * rate) * at_inputs.kernel_root
    kernels = fluctuation + 2 * rate * at_inputs.absolute
    return lazy + time * kernels + initial_gap


def logistic_stability(
    kernel_diagonal: Float[ArrayLike, " m"],
    *,
    epsilon: float,
    time: float,
    epsilon_at: Float[ArrayLike, " m"] | float = 0.0,
    step_ratio: float = 0.0,
    momentum: float = 0.0,
) -> Float[np.ndarray, " m"]:
    """(m,), how far a finite network and kernel logistic regression can be apart at z; no
    exponential in time.

    epsilon_z + sqrt(K(z, z)) epsilon sqrt(T / (8 (1 - h))).

    Example:
        >>> import perturbkernel as pk
        >>> pk.theory.bounds.logistic_stability([4.0], epsilon=0.1, time=2.0)
        array([0.1])

    Args:
        kernel_diagonal: (m,), K(z, z) of the kernel compared with.
        epsilon: at least sup_{t <= T} max_n |f(x_n; t) - f_lin(x_n; t)| with the realised weights.
        time: T; for gradient descent the sum of its rates.
        epsilon_at: (m,), the same supremum at z, initial functions' difference included.
        step_ratio: h = max rate lambda_max(K(X, X)) / (8 n), below 1; 0 is gradient flow.
        momentum: no bound is known with momentum: any but 0 gives NaN.

    Theory: 3.5, S2.
    """
    diagonal = as_vector(kernel_diagonal, "kernel_diagonal", np.size(kernel_diagonal), low=0)
    check_number(epsilon, "epsilon")
    check_time(time)
    check_number(step_ratio, "step_ratio")
    check_number(momentum, "momentum", high=1.0)
    at = as_vector(epsilon_at, "epsilon_at", len(diagonal), low=0)
    if momentum > 0 or step_ratio >= 1:
        return np.full(len(diagonal), np.nan)
    growth = np.sqrt(time / (8 * (1 - step_ratio)))
    return at + np.sqrt(diagonal) * epsilon * growth
