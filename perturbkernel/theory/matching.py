"""Prediction matching: when a network trained on perturbations alone has the signs of the first
(theory: section 6).

u_n = grad f(x_n; T_f) / |grad f(x_n; T_f)|, nu_n = |grad f(x_n; T_f)| / T_f, r_n = carrier_n + size
target_n u_n. The points z must be independent of both initialisations and of the targets: training
inputs are allowed, perturbed ones are not. The two networks need independent initialisations;
times, size and widths are fixed before the draws (a scan over k values: delta / k).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from perturbkernel.checks import check_choice, check_number
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import (
    as_labels,
    as_points,
    check_kernel,
    check_statement,
    check_time,
    cone_slope,
)
from perturbkernel.theory.concentration import predictor_bound
from perturbkernel.theory.constants import Constants, derive_constants
from perturbkernel.theory.gradients import gradient_bounds
from perturbkernel.theory.initial import initial_output_bound
from perturbkernel.theory.lazy import lazy_bound
from perturbkernel.theory.leading import gated_projection, is_rounding, psi
from perturbkernel.theory.pairs import phi, row_sums, tiles

LABEL_RULES = ("coin_flip", "balanced", "fixed")
STARTS = ("random", "centred", "doubled")
XI_VERSIONS = ("signed", "absolute", "a_priori")


@dataclass(frozen=True)
class LabelTerm:
    """The term of the random labels, psi, (m,).

    Attributes:
        systematic: psi_sys = (1/n) sum (Phi_n^+ - Phi_n^-)/2 kappa_n, its mean over coin-flip
            targets.
        systematic_bound: size (1 - slope)^2 / (2 pi sqrt(d)) (1/n) sum |kappa_n|, at least
            |psi_sys|.
        radius: with probability >= 1 - delta over the targets |psi - psi_sys| stays below it at all
            points at once.
        bound: B_psi = |psi_sys| + radius.
    """

    systematic: Float[np.ndarray, " m"]
    systematic_bound: Float[np.ndarray, " m"]
    radius: Float[np.ndarray, " m"]

    @property
    def bound(self) -> Float[np.ndarray, " m"]:
        return np.abs(self.systematic) + self.radius


def label_term(
    kernel: TwoLayerNTK,
    carrier: Float[ArrayLike, "n d"],
    u: Float[ArrayLike, "n d"],
    z: Float[ArrayLike, "m d"],
    *,
    size: float,
    delta: float,
    rule: str = "coin_flip",
    points: int | None = None,
) -> LabelTerm:
    """B_psi, for targets drawn after f was trained.

    With kappa_n = <carrier_n, z> + c, Phi_n^+- = Phi(carrier_n +- size u_n, z), b_n = (Phi_n^+ +
    Phi_n^-)/2 kappa_n,

    |psi - psi_sys| <= sqrt(2 log(2 points / delta)) / n sqrt(S),  S = sum b_n^2 for "coin_flip" targets,
    S = 2 sum (b_n - mean b)^2 for uniformly random "balanced" ones (n even).

    Any other targets: |psi| itself (`leading.psi`). Zero in scenario (a) with c = 0. psi_sys scales
    with size, as the signal does, and does not shrink with n. Theory: 6.3.
    """
    check_kernel(kernel)
    check_choice(rule, "rule", LABEL_RULES[:2])
    check_number(size, "size")
    carrier = as_points(carrier, "carrier")
    u, z = as_points(u, "u", like=carrier, rows=len(carrier)), as_points(z, "z", like=carrier)
    points = len(z) if points is None else points
    check_statement(delta, points=points)
    n = len(carrier)
    if rule == "balanced" and n % 2:
        raise ValueError(
            f'rule="balanced" needs an even number of points; got {n}. Evaluate psi itself instead'
        )
    # Sums of b and b^2 about the first b: in (a) with small sizes b hardly depends on n.
    sums, first = np.zeros((5, len(z))), np.zeros((len(z), 1))
    above, below = tiles(z, carrier + size * u), tiles(z, carrier - size * u)
    for (rows, columns, _, plus), (_, _, _, minus) in zip(above, below, strict=True):
        kappa = z[rows] @ carrier[columns].T + kernel.train_bias
        b = (phi(kernel, plus) + phi(kernel, minus)) / 2 * kappa
        gap = (phi(kernel, plus) - phi(kernel, minus)) / 2 * kappa
        if columns.start == 0:
            first[rows] = b[:, :1]
        rest = b - first[rows]
        sums[:, rows] += [term.sum(1) for term in (gap, b**2, rest, rest**2, np.abs(kappa))]
    systematic, square, rest, rest_square, kappa = sums / n
    total = n * (square if rule == "coin_flip" else 2 * np.maximum(rest_square - rest**2, 0))
    radius = np.sqrt(2 * np.log(2 * points / delta) * total) / n
    return LabelTerm(
        systematic, size * cone_slope(kernel) / np.sqrt(carrier.shape[1]) * kappa, radius
    )


@dataclass(frozen=True)
class PredictorError:
    """|f(z; T)/T - f_hat(z)| <= total, (m,), with probability >= 1 - delta; the parts are divided
    by T.

    Attributes:
        initial: B_0 / T.  lazy: B_lazy / T.  concentration: B_pred.  total: C_f = their sum.
    """

    initial: Float[np.ndarray, " m"]
    lazy: Float[np.ndarray, " m"]
    concentration: Float[np.ndarray, " m"]

    @property
    def total(self) -> Float[np.ndarray, " m"]:
        return self.initial + self.lazy + self.concentration


def predictor_error(
    constants: Constants,
    *,
    width: int,
    time: float,
    delta: float,
    start: str = "random",
    points: int | None = None,
    event_delta: float | None = None,
) -> PredictorError:
    """C_f(z) = B_0/T + B_lazy/T + B_pred, (m,): a trained finite network (identity loss) against T
    f_hat, T > 0.

    `start`: "random", f0 kept; "centred", the statement is about f - f0; "doubled", f0 = 0 by
    antisymmetric doubling. The last two have no B_0 and one event less. delta is split evenly over
    the events; `event_delta` gives the level of each instead. Theory: 6.4.
    """
    check_choice(start, "start", STARTS)
    check_time(time, positive=True)
    check_statement(delta, width)
    doubled = start == "doubled"
    if event_delta is None:
        event_delta = delta / (3 if start == "random" else 2)
    zero = np.zeros(constants.points)
    c, options = constants, {"width": width, "delta": event_delta, "points": points}
    initial = initial_output_bound(c.kernel, c.z, **options) / time if start == "random" else zero
    return PredictorError(
        initial,
        lazy_bound(c, time=time, doubled=doubled, **options) / time,
        predictor_bound(c, doubled=doubled, **options),
    )


@dataclass(frozen=True)
class Matching:
    """The theorem at every point z, (m,). NaN and a status in words where it is undefined.

    Attributes:
        f_hat, g_hat: leading terms of f(z; T_f)/T_f and g(z; T_g)/(size T_g): g_hat_w, for
            "a_priori" g_hat_v.
        f_error: C_f and its parts, |f/T_f - f_hat| <= f_error.total.
        g_error: C_g, |g/(size T_g) - g_hat| <= g_error.
        g_parts: its summands: "xi", and divided by the size "psi", "initial", "lazy",
            "concentration".
        holds: |f_hat| > C_f, |g_hat| > C_g and equal signs: there sgn f(z; T_f) = sgn g(z; T_g).
        events: how many events delta was split over.
        perturbed, targets: r (n, d) and its labels, which train g.
        status: "ok", or why everything is NaN.
    """

    f_hat: Float[np.ndarray, " m"]
    g_hat: Float[np.ndarray, " m"]
    f_error: PredictorError
    g_error: Float[np.ndarray, " m"]
    g_parts: dict[str, Float[np.ndarray, " m"]]
    holds: Bool[np.ndarray, " m"]
    events: int
    perturbed: Float[np.ndarray, "n d"]
    targets: Float[np.ndarray, " n"]
    status: str = "ok"


def _xi_part(f: Constants, r, gradients, version, options) -> tuple[np.ndarray, np.ndarray, str]:
    """(leading term, C_xi, status)."""
    kernel, v, z = f.kernel, f.input_direction, f.z
    nu = np.linalg.norm(gradients, axis=1) / options["time"]
    if version != "a_priori":
        xi, absolute = gradients / options["time"] - v, version == "absolute"
        cost = gated_projection(kernel, r, xi, z, weights=1 / nu, absolute=absolute)
        return gated_projection(kernel, r, v, z, weights=1 / nu), np.abs(cost), "ok"
    at_inputs = derive_constants(kernel, f.x, f.y, f.x)
    bounds = gradient_bounds(at_inputs, **options)
    norm = np.linalg.norm(v, axis=1)
    nothing = np.full(len(z), np.nan)
    if bounds.status != "ok":
        return nothing, nothing, bounds.status
    zero = is_rounding(kernel, f.x, v)
    if zero.any():
        return nothing, nothing, f"undefined: v is zero at {int(zero.sum())} training points"
    leading = gated_projection(kernel, r, v, z, weights=1 / norm)
    if not np.all(bounds.total < norm):
        worst = float(np.max(bounds.total / norm))
        return (
            leading,
            nothing,
            f"no claim: the a priori bound on xi exceeds |v| at training points (up to {worst:.3g} times)",
        )
    weights = bounds.total / norm / len(r)
    gates = row_sums(
        z, r, lambda rows, columns, _, theta: (phi(kernel, theta) @ weights[columns],)
    )[0]
    return leading, np.sqrt(2) * f.norm * gates, "ok"


def match(
    f: Constants,
    gradients: Float[ArrayLike, "n d"],
    targets: Float[ArrayLike, " n"],
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
    version: str = "absolute",
    points: int | None = None,
) -> Matching:
    """The matching theorem for the identity loss.

    With probability >= 1 - delta, at every z with

    |f_hat(z)| > C_f(z),  |g_hat(z)| > C_g(z),  sgn f_hat(z) = sgn g_hat(z):   sgn f(z; T_f) = sgn g(z; T_g).

    C_f = B_0/T_f + B_lazy/T_f + B_pred;  C_g = C_xi + (1/size) [B_psi + B_0^g/T_g + B_lazy^g/T_g +
    B_pred^g].

    Args:
        f: `derive_constants(kernel, x, y, z)`, of the first network's training set at the points z.
        gradients: (n, d), grad f(x_n; T_f) of the trained first network (start "centred": of f -
            f0).
        targets: (n,), the labels g is trained on.
        size: length of each perturbation, > 0.
        carrier: (n, d); None is scenario (a), zero; x is scenario (b).
        time_f, time_g, width_f, width_g: effective times, > 0, and widths.
        delta: split evenly over the events used: three for f and for g (two without B_0), one for
            the labels unless psi is zero or "fixed", one for "a_priori".
        rule: how the targets were drawn: "coin_flip", "balanced" (uniformly, sum zero), or "fixed",
            any targets fixed before g was initialised, for which |psi| is evaluated exactly.
        start: of both networks, as in `predictor_error`.
        version: of C_xi. "signed": |(1/n) sum Phi(r_n, z)/nu_n <xi(x_n), z>|; "absolute": the same
            with absolute values inside; "a_priori": no measured xi, but g_hat_v with weights
            1/|v(x_n)| and sqrt(2) |z| (1/n) sum Phi(r_n, z) B_xi(x_n)/|v(x_n)|, which needs every
            B_xi < |v| (never at practical widths).
        points: how many points the statement covers at once, len(z) if left out.

    A point that fails a condition is not a counterexample; none that meets them means vacuous. To
    speak of the paper's g_hat add `leading.spread_condition`. Theory: 6.4, 13.1, 13.6 to 13.8.
    """
    check_choice(rule, "rule", LABEL_RULES)
    check_choice(version, "version", XI_VERSIONS)
    check_choice(start, "start", STARTS)
    check_number(size, "size", open_low=True)
    for value, name in ((time_f, "time_f"), (time_g, "time_g")):
        check_time(value, name, positive=True)
    check_statement(delta, width_f, points=points)
    check_statement(delta, width_g)
    kernel, z, n = f.kernel, f.z, f.count
    gradients = as_points(gradients, "gradients", like=f.x, rows=n)
    targets = as_labels(targets, "targets", n)
    carrier = (
        np.zeros_like(f.x) if carrier is None else as_points(carrier, "carrier", like=f.x, rows=n)
    )
    if rule == "balanced" and n % 2:
        raise ValueError(
            f'rule="balanced" needs an even number of points; got {n}. rule="fixed" evaluates psi itself'
        )

    has_psi = bool(kernel.train_bias or carrier.any())
    events = (
        (6 if start == "random" else 4) + (has_psi and rule != "fixed") + (version == "a_priori")
    )
    level = delta / events
    f_error = predictor_error(
        f, width=width_f, time=time_f, delta=delta, start=start, points=points, event_delta=level
    )
    norm = np.linalg.norm(gradients, axis=1)
    if not np.all(norm > 0):
        nothing = np.full(len(z), np.nan)
        status = f"undefined: zero gradient at {int(np.sum(norm == 0))} training points"
        nowhere, r = np.zeros(len(z), bool), np.full_like(f.x, np.nan)
        return Matching(f.f_hat, nothing, f_error, nothing, {}, nowhere, events, r, targets, status)
    u = gradients / norm[:, None]
    r = carrier + size * targets[:, None] * u

    options = {
        "width": width_f,
        "time": time_f,
        "delta": level,
        "centred": start == "centred",
        "doubled": start == "doubled",
    }
    g_hat, xi_cost, status = _xi_part(f, r, gradients, version, options)
    g = predictor_error(
        derive_constants(kernel, r, targets, z),
        width=width_g,
        time=time_g,
        delta=delta,
        start=start,
        points=points,
        event_delta=level,
    )
    if not has_psi:
        label = np.zeros(len(z))
    elif rule == "fixed":
        label = np.abs(psi(kernel, r, carrier, targets, z))
    else:
        label = label_term(
            kernel, carrier, u, z, size=size, delta=level, rule=rule, points=points
        ).bound
    parts = {
        "xi": xi_cost,
        "psi": label / size,
        "initial": g.initial / size,
        "lazy": g.lazy / size,
        "concentration": g.concentration / size,
    }
    g_error = np.sum(list(parts.values()), axis=0)
    holds = (np.abs(f.f_hat) > f_error.total) & (np.abs(g_hat) > g_error) & (f.f_hat * g_hat > 0)
    return Matching(f.f_hat, g_hat, f_error, g_error, parts, holds, events, r, targets, status)
