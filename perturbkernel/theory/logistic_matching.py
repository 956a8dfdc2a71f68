"""Prediction matching for networks trained with the logistic loss (theory: 7.3).

Realised weights beta_n = n alpha_n / T lie in (0, 1), and e_n = 2 beta_n - 1. `matching` says what
r, u and nu are.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from perturbkernel._moved import renamed
from perturbkernel.checks import check_choice
from perturbkernel.theory.arguments import as_vector
from perturbkernel.theory.constants import Constants, derive_constants
from perturbkernel.theory.labels import label_term
from perturbkernel.theory.leading import g_hat_w, gated_projection, psi
from perturbkernel.theory.logistic import (
    LOGISTIC_STARTS,
    LogisticError,
    half_time_gap,
    logistic_predictor_error,
)
from perturbkernel.theory.matching import (
    Perturbations,
    check_request,
    conditions,
    make_perturbations,
    parts_of_g,
)
from perturbkernel.theory.pairs import gate_matmul, gate_matrix, phi, row_sums

_AT_ONCE = 256  # points whose (n, n) and (n, points) temporaries are held at once


def _half_direction_cost(kernel, x, r, weights, z) -> np.ndarray:
    """(1/n) sum_n Phi(r_n, z) weights_n (1/n) sum_k Phi(x_n, x_k) |<x_k, z>|, (m,)."""
    n = len(x)
    costs = []
    for start in range(0, len(z), _AT_ONCE):
        part = z[start : start + _AT_ONCE]
        inner = gate_matmul(kernel, x, x, np.abs(x @ part.T) / n)
        gates = gate_matrix(kernel, r, part)
        costs.append(np.mean(gates * weights[:, None] * inner, axis=0))
    return np.concatenate(costs)


@dataclass(frozen=True)
class LogisticMatching:
    """The matching theorem for the logistic loss at every point z, (m,).

    Attributes:
        f_hat_beta, g_hat_beta: leading terms with realised weights; |f/T_f - f_hat_beta| <=
            f_error, |g/(size T_g) - g_hat_beta| <= g_error.
        f_error, g_error: C_f^log and C_g^log.
        g_parts: summands of g_error: "xi", and divided by the size "psi", "initial", "lazy",
            "concentration".
        holds: both exceed their errors with equal signs: there sgn f(z; T_f) = sgn g(z; T_g).
        f_hat, g_hat: the unweighted terms, g_hat = g_hat_w with v.
        holds_unweighted: the criteria of 7.3 for them: |f_hat| > 2 f_error + e_f (1/n) sum |K|, and
            |g_hat| / 2 > 2 g_error + e_g (1/n) sum Phi |<v_beta, z>| / nu + the cost of replacing
            v_beta by v/2.
        events, status: as in `matching.Matching`. NaN where the status is not "ok".
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


@renamed(centred="start")
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
    start: str = "random",
    points: int | None = None,
) -> LogisticMatching:
    """`matching.match` for the logistic loss, with realised weights (n,) of both trained networks.

    With xi = grad f / T_f - v_beta and e_f, e_g the largest |2 beta - 1|,

        C_g^log = |(1/n) sum beta_n^g Phi(r_n, z)/nu_n <xi(x_n), z>|
            + (1/size) [B_psi_beta + B_0/T_g + B_lazy/T_g
                        + (1/n) sum beta_n^g |k_n^g(z)| B_Phi(r_n, z)]
        B_psi_beta = B_psi/2 + (e_g/2) (1/n) sum Phi(r_n, z) |kappa_n|

    The weights correlate with the labels, which the last part, which does not shrink with n, pays
    for; rule "fixed" evaluates |psi_beta| with the realised weights instead (valid for every way of
    drawing targets). delta is split evenly over three events for each network (two if `start` is
    "centred") and one for drawn labels. Theory: 7.3, 13.10.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> beta, gradients = [0.5, 0.5], 5.0 * constants.input_direction
        >>> networks = {"width_f": 10**8, "width_g": 10**8, "time_f": 10.0, "time_g": 10.0}
        >>> options = {"size": 0.1, "delta": 0.1, "start": "centred", "rule": "fixed"}
        >>> m = pk.theory.logistic_match(
        ...     constants, gradients, y, beta, beta, **networks, **options
        ... )
        >>> m.g_hat_beta.round(3), m.g_error.round(5), m.holds
        (array([0.12]), array([0.00014]), array([ True]))
    """
    check_choice(start, "start", LOGISTIC_STARTS)
    check_request(rule, size, (time_f, time_g), (width_f, width_g), delta, points)
    given = make_perturbations(f, gradients, targets, carrier, size)
    beta_f = as_vector(beta_f, "beta_f", f.count, low=0, high=1)
    beta_g = as_vector(beta_g, "beta_g", f.count, low=0, high=1)

    kernel, x, z, r = f.kernel, f.x, f.z, given.points
    has_psi = bool(kernel.train_bias or given.carrier.any())
    events = (4 if start == "centred" else 6) + (has_psi and rule != "fixed")
    level = delta / events
    shared: dict[str, Any] = {
        "delta": delta,
        "start": start,
        "points": points,
        "event_delta": level,
    }
    error_f = logistic_predictor_error(f, beta_f, width=width_f, time=time_f, **shared)
    if given.status != "ok":
        return _undefined(f, error_f, events, given.status)

    second = derive_constants(kernel, r, given.targets, z)
    error_g = logistic_predictor_error(second, beta_g, width=width_g, time=time_g, **shared)
    nu = given.norms / time_f
    weighted = (beta_f * f.y)[:, None] * x / f.count
    v_beta = gate_matmul(kernel, x, x, weighted)
    xi = given.gradients / time_f - v_beta
    cost = gated_projection(kernel, r, xi, z, weights=beta_g / nu)
    label = np.zeros(len(z))
    if has_psi:
        options: dict[str, Any] = {"size": size, "delta": level, "rule": rule, "points": points}
        label = _label_part(f, given, beta_g, options)
    parts = parts_of_g(np.abs(cost), label, error_g, size)
    g_error = np.sum(list(parts.values()), axis=0)
    g_beta = gated_projection(kernel, r, v_beta, z, weights=beta_g / nu)
    g_hat = g_hat_w(kernel, x, f.y, r, nu, z)

    # The criteria for the unweighted terms, which pay for weights other than one half.
    e_f = _largest_error(beta_f)
    e_g = _largest_error(beta_g)
    sizes = gated_projection(kernel, r, v_beta, z, weights=1 / nu, absolute=True)
    half_cost = _half_direction_cost(kernel, x, r, 1 / nu, z)
    f_margin = 2 * error_f.total + half_time_gap(kernel, x, z, e_f)
    g_margin = 2 * g_error + e_g * sizes + e_f / 2 * half_cost
    return LogisticMatching(
        f_hat_beta=error_f.f_hat,
        g_hat_beta=g_beta,
        f_error=error_f.total,
        g_error=g_error,
        g_parts=parts,
        holds=conditions(error_f.f_hat, error_f.total, g_beta, g_error),
        f_hat=f.f_hat,
        g_hat=g_hat,
        holds_unweighted=conditions(f.f_hat, f_margin, g_hat / 2, g_margin),
        events=events,
    )


def _largest_error(beta: np.ndarray) -> float:
    """The largest |e_n| = |2 beta_n - 1|."""
    return float(np.max(np.abs(2 * beta - 1)))


def _label_part(
    f: Constants, given: Perturbations, beta_g: np.ndarray, options: dict[str, Any]
) -> Float[np.ndarray, " m"]:
    """B_psi_beta for targets drawn by a rule; |psi_beta| itself for fixed ones."""
    kernel = f.kernel
    z = f.z
    r = given.points
    carrier = given.carrier
    if options["rule"] == "fixed":
        return np.abs(psi(kernel, r, carrier, given.targets, z, weights=beta_g))
    term = label_term(kernel, carrier, given.u, z, **options)

    def terms(rows, columns, _, theta):
        kappa = z[rows] @ carrier[columns].T + kernel.train_bias
        return (np.sum(phi(kernel, theta) * np.abs(kappa), axis=1),)

    # Weights are one half, and what they differ from that.
    e_g = _largest_error(beta_g)
    (row,) = row_sums(z, r, terms)
    return term.bound / 2 + e_g / 2 * row / f.count


def _undefined(f: Constants, error: LogisticError, events: int, status: str) -> LogisticMatching:
    """What is left to say where there are no perturbations."""
    nothing = np.full(f.points, np.nan)
    nowhere = np.zeros(f.points, bool)
    return LogisticMatching(
        f_hat_beta=error.f_hat,
        g_hat_beta=nothing,
        f_error=error.total,
        g_error=nothing,
        g_parts={},
        holds=nowhere,
        f_hat=f.f_hat,
        g_hat=nothing,
        holds_unweighted=nowhere,
        events=events,
        status=status,
    )
