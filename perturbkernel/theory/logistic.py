"""The logistic loss l(s) = log(1 + exp(-s)): dual coefficients, and sections 2 to 6 for it (theory:
1.3 and section 7).

Realised weights beta_n = n alpha_n / T lie in (0, 1); f_hat_beta = (1/n) sum beta_n y_n K(x_n, z).
With e_n = 2 beta_n - 1, beta_n = 1/2 is the identity loss at half the time. `time` is that of the
flow, or the effective time of heavy ball.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import ArrayLike, Bool, Float

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
from perturbkernel.theory.constants import Constants, derive_constants
from perturbkernel.theory.initial import initial_output_bound
from perturbkernel.theory.lazy import lazy_bound
from perturbkernel.theory.leading import g_hat_w, gated_projection, psi
from perturbkernel.theory.matching import LABEL_RULES, label_term
from perturbkernel.theory.pairs import (
    gate_fourth,
    gate_matmul,
    gate_matrix,
    kernel_sum,
    phi,
    row_sums,
)


def _softplus_gap(start: np.ndarray, step: np.ndarray) -> np.ndarray:
    """(softplus(start + step) - softplus(start)) / step for step >= 0, with its limit
    sigmoid(start) at 0.
    """
    small = np.minimum(step, 1.0)
    sigmoid = np.exp(-np.logaddexp(0, -start))
    near = np.log1p(sigmoid * np.expm1(small))
    far = np.logaddexp(0, start + step) - np.logaddexp(0, start)
    positive = step > 1e-300
    return np.where(positive, np.where(step < 1, near, far) / np.where(positive, step, 1), sigmoid)


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
    """Closed-form bounds on the dual coefficients of logistic training of the kernel model, without
    solving it.

    With A_n = y_n f0(x_n) (`initial` holds f0(x_n)), h_n^+- = (1/n) sum_k (y_n y_k K(x_n, x_k))_+-,
    h_n their sum, T = time,

        [sp(-A_n) - sp(-A_n - T h_n^+)] / (n h_n^+) <= alpha_n <= [sp(-A_n + T h_n^-) - sp(-A_n)] / (n h_n^-)
        |e_n| <= 2/(h_n T) log(cosh((|A_n| + h_n T)/2) / cosh(|A_n|/2)),   tanh(|A_n|/2) as h_n T -> 0.

    Useful while T h_n is about 1. Theory: 1.3 (i) to (iii), 13.11.
    """
    check_kernel(kernel)
    check_time(time)
    x = as_points(x, "x")
    n = len(x)
    y = as_labels(y, "y", n)
    start = y * as_vector(initial, "initial", n)

    def couplings(rows, columns, product, theta):
        terms = (
            phi(kernel, theta) * (product + kernel.train_bias) * np.outer(y[rows], y[columns] / n)
        )
        return np.maximum(terms, 0).sum(1), np.maximum(-terms, 0).sum(1)

    up, down = row_sums(x, x, couplings)
    low = time / n * _softplus_gap(-start - time * up, time * up)
    high = time / n * _softplus_gap(-start, time * down)
    reach = time * (up + down)
    # log cosh(half + step) - log cosh(half), without cancellation for small steps or overflow for
    # large ones.
    half, step = np.abs(start) / 2, reach / 2
    small = np.minimum(step, 1.0)
    near = np.log1p(2 * np.sinh(small / 2) ** 2 + np.tanh(half) * np.sinh(small))
    far = step + np.log1p(np.exp(-2 * (half + step))) - np.log1p(np.exp(-2 * half))
    positive = step > 1e-300
    ratio = np.where(
        positive, np.where(step < 1, near, far) / np.where(positive, step, 1), np.tanh(half)
    )
    return CoefficientBounds(low, high, np.minimum(ratio, 1), 2 * half + reach)


def weight_error_bound(margin: Float[ArrayLike, "*n"] | float) -> Float[np.ndarray, "*n"]:
    """tanh(M / 2): at least |e_n| = |2 beta_n - 1| if |f(x_n)| <= M at every visited time. Theory:
    1.3 (ii), 7.
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
    """beta_n = n alpha_n / tau of a heavy-ball run, (n,): alpha_n = (1/n) sum_{s<k} omega_s
    sigmoid(-y_n f(x_n; s)).

    `outputs` (steps, n) are f(x_n) before each step; omega_s = sum_{j>s} rate_j mu^(j-1-s), a
    momentum buffer per sample, not the plain sum of rates. NaN if the effective time is 0. Theory:
    13.4.
    """
    outputs = as_points(outputs, "outputs")
    steps, n = outputs.shape
    y, rates = as_labels(y, "y", n), as_vector(rates, "rates", steps, low=0)
    check_number(momentum, "momentum", high=1.0)
    alpha, velocity, tau, unit = np.zeros(n), np.zeros(n), 0.0, 0.0
    for at_step, rate in zip(outputs, rates, strict=True):
        velocity = momentum * velocity + np.exp(-np.logaddexp(0, y * at_step))
        unit = momentum * unit + 1
        alpha, tau = alpha + rate * velocity, tau + rate * unit
    return alpha / tau if tau > 0 else np.full(n, np.nan)


def _weighted_sums(kernel, z, x, weights):
    """Sums over n of w |K(x_n, z)|, w |k_n(z)| and w |k_n(z)| sqrt(Q(x_n, z))."""

    def terms(rows, columns, product, theta):
        factor, w = np.abs(product + kernel.train_bias), weights[columns]
        root = np.sqrt(gate_fourth(kernel.slope, theta))
        return (phi(kernel, theta) * factor) @ w, factor @ w, (root * factor) @ w

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
    """
    check_kernel(kernel)
    x = as_points(x, "x")
    z, error = as_points(z, "z", like=x), as_vector(error, "error", len(x), low=0)
    return _weighted_sums(kernel, z, x, error / len(x))[0]


def same_sign_as_identity(
    f: Constants, error: Float[ArrayLike, " n"] | float
) -> Bool[np.ndarray, " m"]:
    """(m,), |f_hat(z)| > max_n |e_n| (1/n) sum_n |K(x_n, z)|: there both losses give the kernel
    model (f0 = 0) the same sign.

    Sufficient, not sharp; about the kernel model, not a finite network. Theory: 1.3 (1.4), 13.11.
    """
    error = np.full(f.count, as_vector(error, "error", f.count, low=0).max())
    return np.abs(f.f_hat) > half_time_gap(f.kernel, f.x, f.z, error)


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


def logistic_predictor_error(
    f: Constants,
    beta: Float[ArrayLike, " n"],
    *,
    width: int,
    time: float,
    delta: float,
    centred: bool = False,
    points: int | None = None,
    event_delta: float | None = None,
) -> LogisticError:
    """C_f^log(z) = B_0/T + B_lazy/T + (1/n) sum_n beta_n |k_n(z)| B_Phi(x_n, z), (m,), T > 0.

    beta depends on the initialisation, so B_Phi holds for all n m pairs at once. delta is split
    over three events (two if `centred`: f - f0); `event_delta` gives the level of each instead.
    Theory: 7.1, 13.4, 13.5.
    """
    check_time(time, positive=True)
    points = f.points if points is None else points
    check_statement(delta, width, points=points)
    beta = as_vector(beta, "beta", f.count, low=0, high=1)
    level = delta / (2 if centred else 3) if event_delta is None else event_delta
    rate = np.log(2 * f.count * points / level) / width
    _, plain, root = _weighted_sums(f.kernel, f.z, f.x, beta / f.count)
    options = {"width": width, "delta": level, "points": points}
    return LogisticError(
        kernel_sum(f.kernel, f.z, f.x, beta * f.y / f.count),
        np.zeros(f.points) if centred else initial_output_bound(f.kernel, f.z, **options) / time,
        lazy_bound(f, time=time, loss="logistic", **options) / time,
        np.sqrt(6 * rate) * root + 2 * rate * plain,
    )


def weighted_direction(f: Constants, beta: Float[ArrayLike, " n"]) -> Float[np.ndarray, "m d"]:
    """v_beta(z) = (1/n) sum_n beta_n y_n Phi(x_n, z) x_n, (m, d): the direction with realised
    weights. Theory: 7.
    """
    beta = as_vector(beta, "beta", f.count, low=0, high=1)
    return gate_matmul(f.kernel, f.z, f.x, (beta * f.y)[:, None] * f.x / f.count)


def weighted_direction_gap(f: Constants, error: float) -> Float[np.ndarray, " m"]:
    """(m,): |2 v_beta(z) - v(z)| <= e |X|_op / sqrt(n) (mean over n of Phi(x_n, z)^2)^(1/2), e =
    max |e_n|. Theory: 7.2.

    Added to 2 B_xi it gives the cosine with the unweighted v.
    """
    check_number(error, "error")
    square = row_sums(
        f.z, f.x, lambda rows, columns, _, theta: (np.sum(phi(f.kernel, theta) ** 2, axis=1),)
    )[0]
    return error * f.operator_norm / f.count * np.sqrt(square)


def _parts(z: np.ndarray) -> list[np.ndarray]:
    return [z[i : i + 256] for i in range(0, len(z), 256)]


def _half_direction_cost(kernel, x, r, weights, z) -> np.ndarray:
    """(1/n) sum_n Phi(r_n, z) weights_n (1/n) sum_k Phi(x_n, x_k) |<x_k, z>|, (m,)."""
    n, costs = len(x), []
    for part in _parts(z):
        inner = gate_matmul(kernel, x, x, np.abs(x @ part.T) / n)
        costs.append(np.mean(gate_matrix(kernel, r, part) * weights[:, None] * inner, axis=0))
    return np.concatenate(costs)


@dataclass(frozen=True)
class LogisticMatching:
    """The matching theorem for the logistic loss at every point z, (m,). NaN and a status in words
    where undefined.

    Attributes:
        f_hat_beta, g_hat_beta: leading terms with realised weights; |f/T_f - f_hat_beta| <= f_error,
            |g/(size T_g) - g_hat_beta| <= g_error.
        f_error, g_error: C_f^log and C_g^log.
        g_parts: summands of g_error: "xi", and divided by the size "psi", "initial", "lazy",
            "concentration".
        holds: both exceed their errors with equal signs: there sgn f(z; T_f) = sgn g(z; T_g).
        f_hat, g_hat: the unweighted terms, g_hat = g_hat_w with v.
        holds_unweighted: the criteria of 7.3 for them: |f_hat| > 2 f_error + e_f (1/n) sum |K|, and
            |g_hat| / 2 > 2 g_error + e_g (1/n) sum Phi |<v_beta, z>| / nu + the cost of replacing v_beta by v/2.
        events, status: as in `matching.Matching`.
    """

    f_hat_beta: Float[np.ndarray, " m"]
    g_hat_beta: Float[np.ndarray, " m"]
    f_error: Float[np.ndarray, " m"]
    g_error: Float[np.ndarray, " m"]
    g_parts: dict[str, Float[np.ndarray, " m"]]
    holds: Bool[np.ndarray, " m"]
    f_hat: Float[np.ndarray, " m"]
    g_hat: Float[np.ndarray, " m"]
    holds_unweighted: Bool[np.ndarray, " m"]
    events: int
    status: str = "ok"


def logistic_match(
    f: Constants,
    gradients: Float[ArrayLike, "n d"],
    targets: Float[ArrayLike, " n"],
    beta_f: Float[ArrayLike, " n"],
    beta_g: Float[ArrayLike, " n"],
    *,
    size: float,
    carrier: Float[ArrayLike, "n d"] | None = None,
    time_f: float,
    time_g: float,
    width_f: int,
    width_g: int,
    delta: float,
    rule: str = "coin_flip",
    centred: bool = False,
    points: int | None = None,
) -> LogisticMatching:
    """`matching.match` for the logistic loss, with the realised weights beta_f, beta_g (n,) of both
    trained networks.

    C_g^log = |(1/n) sum beta_n^g Phi(r_n, z)/nu_n <xi(x_n), z>|
              + (1/size) [B_psi_beta + B_0/T_g + B_lazy/T_g + (1/n) sum beta_n^g |k_n^g(z)|
              B_Phi(r_n, z)],

    xi = grad f / T_f - v_beta. The weights correlate with the labels, so B_psi_beta = B_psi/2
    + (e_g/2) (1/n) sum Phi(r_n, z) |kappa_n|, whose last part does not shrink with n; rule "fixed" evaluates
    |psi_beta| with the realised weights instead (valid for every way of drawing targets). e_f, e_g: the largest |2
    beta - 1|.

    delta is split evenly over three events for each network (two if `centred`) and one for drawn
    labels. Theory: 7.3, 13.10.
    """
    check_choice(rule, "rule", LABEL_RULES)
    check_number(size, "size", open_low=True)
    check_time(time_f, "time_f", positive=True)
    check_time(time_g, "time_g", positive=True)
    check_statement(delta, width_f, points=points)
    check_statement(delta, width_g)
    kernel, x, z, n = f.kernel, f.x, f.z, f.count
    gradients, targets = (
        as_points(gradients, "gradients", like=x, rows=n),
        as_labels(targets, "targets", n),
    )
    beta_f, beta_g = (
        as_vector(b, name, n, low=0, high=1) for b, name in ((beta_f, "beta_f"), (beta_g, "beta_g"))
    )
    carrier = np.zeros_like(x) if carrier is None else as_points(carrier, "carrier", like=x, rows=n)

    has_psi = bool(kernel.train_bias or carrier.any())
    events = (4 if centred else 6) + (has_psi and rule != "fixed")
    options = {"delta": delta, "centred": centred, "points": points, "event_delta": delta / events}
    error_f = logistic_predictor_error(f, beta_f, width=width_f, time=time_f, **options)
    norm = np.linalg.norm(gradients, axis=1)
    if not np.all(norm > 0):
        nan, no = np.full(len(z), np.nan), np.zeros(len(z), bool)
        status = f"undefined: zero gradient at {int(np.sum(norm == 0))} training points"
        return LogisticMatching(
            error_f.f_hat, nan, error_f.total, nan, {}, no, f.f_hat, nan, no, events, status
        )
    u, nu = gradients / norm[:, None], norm / time_f
    r = carrier + size * targets[:, None] * u
    v_beta = gate_matmul(kernel, x, x, (beta_f * f.y)[:, None] * x / n)
    e_f, e_g = (float(np.max(np.abs(2 * b - 1))) for b in (beta_f, beta_g))
    error_g = logistic_predictor_error(
        derive_constants(kernel, r, targets, z), beta_g, width=width_g, time=time_g, **options
    )
    label = np.zeros(len(z))
    if has_psi and rule == "fixed":
        label = np.abs(psi(kernel, r, carrier, targets, z, weights=beta_g))
    elif has_psi:
        term = label_term(
            kernel, carrier, u, z, size=size, delta=delta / events, rule=rule, points=points
        )

        def terms(rows, columns, _, theta):
            kappa = z[rows] @ carrier[columns].T + kernel.train_bias
            return (np.sum(phi(kernel, theta) * np.abs(kappa), axis=1),)

        label = term.bound / 2 + e_g / 2 * row_sums(z, r, terms)[0] / n
    parts = {
        "xi": np.abs(
            gated_projection(kernel, r, gradients / time_f - v_beta, z, weights=beta_g / nu)
        ),
        "psi": label / size,
        "initial": error_g.initial / size,
        "lazy": error_g.lazy / size,
        "concentration": error_g.concentration / size,
    }
    g_error = np.sum(list(parts.values()), axis=0)
    g_beta = gated_projection(kernel, r, v_beta, z, weights=beta_g / nu)
    holds = (
        (np.abs(error_f.f_hat) > error_f.total)
        & (np.abs(g_beta) > g_error)
        & (error_f.f_hat * g_beta > 0)
    )

    g_hat = g_hat_w(kernel, x, f.y, r, nu, z)
    f_margin = 2 * error_f.total + half_time_gap(kernel, x, z, e_f)
    sizes = gated_projection(kernel, r, v_beta, z, weights=1 / nu, absolute=True)
    g_margin = 2 * g_error + e_g * sizes + e_f / 2 * _half_direction_cost(kernel, x, r, 1 / nu, z)
    unweighted = (
        (np.abs(f.f_hat) > f_margin) & (np.abs(g_hat) / 2 > g_margin) & (f.f_hat * g_hat > 0)
    )
    return LogisticMatching(
        error_f.f_hat,
        g_beta,
        error_f.total,
        g_error,
        parts,
        holds,
        f.f_hat,
        g_hat,
        unweighted,
        events,
    )
