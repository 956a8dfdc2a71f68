"""The logistic loss l(s) = log(1 + exp(-s)): dual coefficients, predictor, direction (theory: 1.3
and section 7).

Realised weights beta_n = n alpha_n / T lie in (0, 1); f_hat_beta = (1/n) sum beta_n y_n K(x_n, z).
With e_n = 2 beta_n - 1, beta_n = 1/2 is the identity loss at half the time. `time` is that of the
flow, or the effective time of heavy ball.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from perturbkernel._moved import renamed
from perturbkernel.arrays import quotient
from perturbkernel.checks import check_choice, check_number
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import (
    as_labels,
    as_points,
    as_vector,
    check_kernel,
    check_statement,
    check_time,
)
from perturbkernel.theory.constants import Constants
from perturbkernel.theory.initial import initial_output_bound
from perturbkernel.theory.lazy import lazy_bound
from perturbkernel.theory.pairs import gate_fourth, gate_matmul, kernel_sum, phi, row_sums

#: Below which a step counts as zero, and the limit of a difference quotient is taken.
_NO_STEP = 1e-300


def _quotient(near, far, step: np.ndarray, limit) -> np.ndarray:
    """near / step for steps below 1, far / step for longer ones, and the limit for no step."""
    positive = step > _NO_STEP
    change = np.where(step < 1, near, far)
    return quotient(change, step, positive, otherwise=limit)


def _softplus_gap(start: np.ndarray, step: np.ndarray) -> np.ndarray:
    """(softplus(start + step) - softplus(start)) / step, step >= 0; sigmoid(start) for step 0."""
    small = np.minimum(step, 1.0)
    sigmoid = np.exp(-_softplus(-start))
    near = np.log1p(sigmoid * np.expm1(small))
    far = _softplus(start + step) - _softplus(start)
    return _quotient(near, far, step, sigmoid)


def _softplus(u: np.ndarray) -> np.ndarray:
    """log(1 + e^u)."""
    return np.logaddexp(0, u)


def _log_cosh_gap(half: np.ndarray, step: np.ndarray) -> np.ndarray:
    """log(cosh(half + step) / cosh(half)) / step for step >= 0; tanh(half) for step 0.

    Without cancellation for small steps or overflow for large ones.
    """
    small = np.minimum(step, 1.0)
    slope = np.tanh(half)
    # cosh(half + step) / cosh(half) - 1 = cosh(step) - 1 + tanh(half) sinh(step).
    even = 2 * np.sinh(small / 2) ** 2
    growth = even + slope * np.sinh(small)
    near = np.log1p(growth)
    # log cosh(u) = u + log(1 + e^(-2 u)) - log 2.
    after = _softplus(-2 * (half + step))
    before = _softplus(-2 * half)
    far = step + after - before
    return _quotient(near, far, step, slope)


@dataclass(frozen=True)
class CoefficientBounds:
    """What the margins at the start say about alpha_n(t), each (n,), surely. The kernel model's
    dual_coef is y_n alpha_n.

    Attributes:
        low, high: low <= alpha_n(time) <= high, inside (0, time / n).
        error: at least |e_n| where alpha_n = time / (2 n) (1 + e_n).
        margin: M_n = |A_n| + time h_n, at least |f(x_n; s)| for s <= time; error <= tanh(M_n / 2).
    """

    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]
    error: Float[np.ndarray, " n"]
    margin: Float[np.ndarray, " n"]


def coefficient_bounds(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    *,
    time: float,
    initial: Float[ArrayLike, " n"] | float = 0.0,
) -> CoefficientBounds:
    """Bounds on the dual coefficients of logistic training of the kernel model, in closed form.

    With A_n = y_n f0(x_n) (`initial` holds f0(x_n)), h_n^+- = (1/n) sum_k (y_n y_k K(x_n, x_k))_+-,
    h_n their sum, T = time and sp(s) = log(1 + e^s),

        alpha_n >= [sp(-A_n) - sp(-A_n - T h_n^+)] / (n h_n^+)
        alpha_n <= [sp(-A_n + T h_n^-) - sp(-A_n)] / (n h_n^-)
        |e_n| <= 2/(h_n T) log(cosh((|A_n| + h_n T)/2) / cosh(|A_n|/2))

    where the last is tanh(|A_n|/2) in the limit of h_n T = 0.
    Useful while T h_n is about 1. Theory: 1.3 (i) to (iii), 13.11.

    Example:
        >>> import perturbkernel as pk
        >>> x, y = [[1.0, 0.0], [0.0, 1.0]], [1, -1]
        >>> b = pk.theory.bounds.coefficient_bounds(pk.TwoLayerNTK(), x, y, time=1.0)
        >>> b.low.round(3), b.high.round(3), b.error.round(3)
        (array([0.234, 0.234]), array([0.25, 0.25]), array([0.062, 0.062]))
    """
    check_kernel(kernel)
    check_time(time)
    x = as_points(x, "x")
    n = len(x)
    y = as_labels(y, "y", n)
    start = y * as_vector(initial, "initial", n)

    def couplings(rows, columns, product, theta):
        kernel_values = phi(kernel, theta) * (product + kernel.train_bias)
        terms = kernel_values * np.outer(y[rows], y[columns] / n)
        toward = np.maximum(terms, 0)
        against = np.maximum(-terms, 0)
        return toward.sum(1), against.sum(1)

    h_plus, h_minus = row_sums(x, x, couplings)
    up = time * h_plus
    down = time * h_minus
    reach = up + down
    half = np.abs(start) / 2
    error = _log_cosh_gap(half, reach / 2)
    return CoefficientBounds(
        low=time / n * _softplus_gap(-start - up, up),
        high=time / n * _softplus_gap(-start, down),
        error=np.minimum(error, 1),
        margin=2 * half + reach,
    )


def weight_error_bound(margin: Float[ArrayLike, "*n"] | float) -> Float[np.ndarray, "*n"]:
    """tanh(M / 2): at least |e_n| = |2 beta_n - 1| if |f(x_n)| <= M at every visited time. Theory:
    1.3 (ii), 7.

    Example:
        >>> import perturbkernel as pk
        >>> pk.theory.bounds.weight_error_bound([0.0, 2.0]).round(3)
        array([0.   , 0.762])
    """
    margin = np.asarray(margin, np.float64)
    if not np.all(margin >= 0):
        raise ValueError(f"margin must be >= 0; got {margin.min():g}")
    return np.asarray(np.tanh(margin / 2))


def realised_weights(
    outputs: Float[ArrayLike, "steps n"],
    y: Float[ArrayLike, " n"],
    rates: Float[ArrayLike, " steps"],
    momentum: float,
) -> Float[np.ndarray, " n"]:
    """The weights beta_n = n alpha_n / tau of a heavy-ball run, (n,).

        alpha_n = (1/n) sum_{s<k} omega_s sigmoid(-y_n f(x_n; s))

    `outputs` (steps, n) are f(x_n) before each step; omega_s = sum_{j>s} rate_j mu^(j-1-s), a
    momentum buffer per sample, not the plain sum of rates. NaN if the effective time is 0. Theory:
    13.4.

    Example:
        >>> import perturbkernel as pk
        >>> outputs, y = [[0.0, 0.0], [1.0, -3.0]], [1, -1]  # before each of two steps
        >>> pk.theory.realised_weights(outputs, y, [0.1, 0.1], 0.0).round(3)
        array([0.384, 0.274])
    """
    outputs = as_points(outputs, "outputs")
    steps, n = outputs.shape
    y = as_labels(y, "y", n)
    rates = as_vector(rates, "rates", steps, low=0)
    check_number(momentum, "momentum", high=1.0)
    alpha = np.zeros(n)
    velocity = np.zeros(n)
    # The same recurrence for a pull of 1: the effective time.
    tau = 0.0
    unit = 0.0
    for at_step, rate in zip(outputs, rates, strict=True):
        pull = np.exp(-_softplus(y * at_step))
        velocity = momentum * velocity + pull
        unit = momentum * unit + 1
        alpha = alpha + rate * velocity
        tau = tau + rate * unit
    if tau == 0:
        return np.full(n, np.nan)
    return alpha / tau


def _weighted_sums(kernel, z, x, weights):
    """Sums over n of w |K(x_n, z)|, w |k_n(z)| and w |k_n(z)| sqrt(Q(x_n, z))."""

    def terms(rows, columns, product, theta):
        factor = np.abs(product + kernel.train_bias)
        kernel_sizes = phi(kernel, theta) * factor
        roots = np.sqrt(gate_fourth(kernel.slope, theta)) * factor
        w = weights[columns]
        return kernel_sizes @ w, factor @ w, roots @ w

    return row_sums(z, x, terms)


def half_time_gap(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    z: Float[ArrayLike, "m d"],
    error: Float[ArrayLike, " n"] | float,
) -> Float[np.ndarray, " m"]:
    """(1/n) sum_n |e_n| |K(x_n, z)|, (m,): at least |2 (f_log(z; T) - f0(z)) / T - f_hat(z)| for
    the kernel model.

    `error` (n,) or one number, at least |e_n|. Theory: 1.3 (iv).

    Example:
        >>> import perturbkernel as pk
        >>> x, z = [[1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0]]
        >>> pk.theory.bounds.half_time_gap(pk.TwoLayerNTK(), x, z, 0.1).round(3)
        array([0.06])
    """
    check_kernel(kernel)
    x = as_points(x, "x")
    z = as_points(z, "z", like=x)
    error = as_vector(error, "error", len(x), low=0)
    return _weighted_sums(kernel, z, x, error / len(x))[0]


def same_sign_as_identity(
    f: Constants, error: Float[ArrayLike, " n"] | float
) -> Bool[np.ndarray, " m"]:
    """(m,), |f_hat(z)| > max_n |e_n| (1/n) sum_n |K(x_n, z)|: there both losses give the kernel
    model (f0 = 0) the same sign.

    Sufficient, not sharp; about the kernel model, not a finite network. Theory: 1.3 (1.4), 13.11.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> [pk.theory.same_sign_as_identity(constants, error) for error in (0.1, 0.5)]
        [array([ True]), array([False])]
    """
    largest = as_vector(error, "error", f.count, low=0).max()
    gap = half_time_gap(f.kernel, f.x, f.z, np.full(f.count, largest))
    return np.abs(f.f_hat) > gap


@dataclass(frozen=True)
class LogisticError:
    """|f(z; T)/T - f_hat_beta(z)| <= total, (m,), with probability >= 1 - delta.

    Attributes:
        f_hat: f_hat_beta, with the realised weights.
        initial: B_0/T.  lazy: B_lazy/T.  concentration: (1/n) sum beta_n |k_n(z)| B_Phi(x_n, z).
            total: C_f^log.
    """

    f_hat: Float[np.ndarray, " m"]
    initial: Float[np.ndarray, " m"]
    lazy: Float[np.ndarray, " m"]
    concentration: Float[np.ndarray, " m"]

    @property
    def total(self) -> Float[np.ndarray, " m"]:
        return self.initial + self.lazy + self.concentration


# 7.1 and 7.3 are not stated for doubled networks.
LOGISTIC_STARTS = ("random", "centred")


@renamed(centred="start")
def logistic_predictor_error(
    f: Constants,
    beta: Float[ArrayLike, " n"],
    *,
    width: int,
    time: float,
    delta: float,
    start: str = "random",
    points: int | None = None,
    event_delta: float | None = None,
) -> LogisticError:
    """C_f^log(z) = B_0/T + B_lazy/T + (1/n) sum_n beta_n |k_n(z)| B_Phi(x_n, z), (m,), T > 0.

    beta depends on the initialisation, so B_Phi holds for all n m pairs at once. delta is split
    over three events (two if `start` is "centred": f - f0); `event_delta` gives the level of each
    instead. Theory: 7.1, 13.4, 13.5.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> error = pk.theory.bounds.logistic_predictor_error(
        ...     constants, [0.5, 0.4], width=10**6, time=10.0, delta=0.1, start="centred"
        ... )
        >>> error.f_hat.round(3), error.total.round(3)
        (array([0.137]), array([0.014]))
    """
    check_choice(start, "start", LOGISTIC_STARTS)
    check_time(time, positive=True)
    points = f.points if points is None else points
    check_statement(delta, width, points=points)
    beta = as_vector(beta, "beta", f.count, low=0, high=1)
    events = 2 if start == "centred" else 3
    level = delta / events if event_delta is None else event_delta
    rate = np.log(2 * f.count * points / level) / width
    _, plain, root = _weighted_sums(f.kernel, f.z, f.x, beta / f.count)
    options: dict[str, Any] = {"width": width, "delta": level, "points": points}
    initial = np.zeros(f.points)
    if start == "random":
        initial = initial_output_bound(f.kernel, f.z, **options) / time
    return LogisticError(
        f_hat=kernel_sum(f.kernel, f.z, f.x, beta * f.y / f.count),
        initial=initial,
        lazy=lazy_bound(f, time=time, loss="logistic", **options) / time,
        concentration=np.sqrt(6 * rate) * root + 2 * rate * plain,
    )


def weighted_direction(f: Constants, beta: Float[ArrayLike, " n"]) -> Float[np.ndarray, "m d"]:
    """The direction with realised weights, (m, d): (1/n) sum_n beta_n y_n Phi(x_n, z) x_n.

    Theory: 7.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> pk.theory.weighted_direction(constants, [0.5, 0.4]).round(3)
        array([[ 0.105, -0.073]])
    """
    beta = as_vector(beta, "beta", f.count, low=0, high=1)
    weighted = (beta * f.y)[:, None] * f.x / f.count
    return gate_matmul(f.kernel, f.z, f.x, weighted)


def weighted_direction_gap(f: Constants, error: float) -> Float[np.ndarray, " m"]:
    """A bound on |2 v_beta(z) - v(z)|, (m,), where `error` is at least every |e_n|.

        error |X|_op / sqrt(n) (mean over n of Phi(x_n, z)^2)^(1/2)

    Added to 2 B_xi it gives the cosine with the unweighted v. Theory: 7.2.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> pk.theory.bounds.weighted_direction_gap(constants, 0.1).round(3)
        array([0.028])
    """
    check_number(error, "error")

    def squares(rows, columns, _, theta):
        return (np.sum(phi(f.kernel, theta) ** 2, axis=1),)

    square = row_sums(f.z, f.x, squares)[0]
    return error * f.operator_norm / f.count * np.sqrt(square)
