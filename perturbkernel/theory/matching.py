"""Prediction matching: when a network trained on perturbations alone has the signs of the first
(theory: section 6).

u_n = grad f(x_n; T_f) / |grad f(x_n; T_f)|, nu_n = |grad f(x_n; T_f)| / T_f, r_n = carrier_n + size
target_n u_n. The points z must be independent of both initialisations and of the targets: training
inputs are allowed, perturbed ones are not. The two networks need independent initialisations;
times, size and widths are fixed before the draws (a scan over k values: delta / k).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from perturbkernel.checks import check_choice, check_number
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import as_labels, as_points, check_statement, check_time
from perturbkernel.theory.concentration import predictor_bound
from perturbkernel.theory.constants import Constants, derive_constants
from perturbkernel.theory.gradients import gradient_bounds
from perturbkernel.theory.initial import initial_output_bound
from perturbkernel.theory.labels import LABEL_RULES, label_term
from perturbkernel.theory.lazy import lazy_bound
from perturbkernel.theory.leading import gated_projection, is_rounding, psi
from perturbkernel.theory.pairs import phi, row_sums
from perturbkernel.training.initial_function import STARTS

XI_VERSIONS = ("signed", "absolute", "a_priori")


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

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> error = pk.theory.bounds.predictor_error(constants, width=10**6, time=10.0, delta=0.1)
        >>> error.total.round(3), error.initial.round(3)
        (array([0.425]), array([0.411]))
    """
    check_choice(start, "start", STARTS)
    check_time(time, positive=True)
    check_statement(delta, width)
    if event_delta is None:
        event_delta = delta / (3 if start == "random" else 2)
    zero = np.zeros(constants.points)
    c = constants
    options: dict[str, Any] = {"width": width, "delta": event_delta, "points": points}
    initial = initial_output_bound(c.kernel, c.z, **options) / time if start == "random" else zero
    lazy = lazy_bound(c, time=time, start=start, **options) / time
    concentration = predictor_bound(c, start=start, **options)
    return PredictorError(initial, lazy, concentration)


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


class Perturbations(NamedTuple):
    """What the second network is trained on, and what its perturbations were made of.

    Attributes:
        gradients, norms: (n, d) and (n,), of the first network at its training inputs.
        u: (n, d), the unit directions.
        carrier, targets: (n, d) and (n,).
        points: (n, d), r_n = carrier_n + size target_n u_n.
        status: "ok", or why u and r are NaN.
    """

    gradients: np.ndarray
    norms: np.ndarray
    u: np.ndarray
    carrier: np.ndarray
    targets: np.ndarray
    points: np.ndarray
    status: str


def make_perturbations(
    f: Constants,
    gradients: Float[ArrayLike, "n d"],
    targets: Float[ArrayLike, " n"],
    carrier: Float[ArrayLike, "n d"] | None,
    size: float,
) -> Perturbations:
    """Checks what was given, and makes the points that the second network is trained on."""
    n = f.count
    gradients = as_points(gradients, "gradients", like=f.x, rows=n)
    targets = as_labels(targets, "targets", n)
    if carrier is None:
        carrier = np.zeros_like(f.x)
    carrier = as_points(carrier, "carrier", like=f.x, rows=n)
    norms = np.linalg.norm(gradients, axis=1)
    status = "ok"
    u = np.full_like(f.x, np.nan)
    if np.all(norms > 0):
        u = gradients / norms[:, None]
    else:
        status = f"undefined: zero gradient at {int(np.sum(norms == 0))} training points"
    return Perturbations(
        gradients=gradients,
        norms=norms,
        u=u,
        carrier=carrier,
        targets=targets,
        points=carrier + size * targets[:, None] * u,
        status=status,
    )


def check_request(
    rule: str,
    size: float,
    times: tuple[float, float],
    widths: tuple[int, int],
    delta: float,
    points: int | None,
) -> None:
    """Raises for what no matching theorem can be asked for; times and widths are those of f, g."""
    check_choice(rule, "rule", LABEL_RULES)
    check_number(size, "size", open_low=True)
    check_time(times[0], "time_f", positive=True)
    check_time(times[1], "time_g", positive=True)
    check_statement(delta, widths[0], points=points)
    check_statement(delta, widths[1])


def parts_of_g(xi, label, g, size: float) -> dict[str, Float[np.ndarray, " m"]]:
    """The summands of C_g by name; `g` has the parts of the second network's own error."""
    return {
        "xi": xi,
        "psi": label / size,
        "initial": g.initial / size,
        "lazy": g.lazy / size,
        "concentration": g.concentration / size,
    }


def conditions(f_hat, f_error, g_hat, g_error) -> Bool[np.ndarray, " m"]:
    """Where |f_hat| > f_error, |g_hat| > g_error, and both have the same sign."""
    f_known = np.abs(f_hat) > f_error
    g_known = np.abs(g_hat) > g_error
    agree = f_hat * g_hat > 0
    return f_known & g_known & agree


class _XiPart(NamedTuple):
    """The leading term of g and what it leaves out, C_xi; NaN where the status is not "ok"."""

    leading: Float[np.ndarray, " m"]
    cost: Float[np.ndarray, " m"]
    status: str = "ok"


def _measured_xi(f: Constants, r, gradients, time: float, absolute: bool) -> _XiPart:
    """From the gradients themselves, which give xi = grad f / T - v."""
    kernel, v, z = f.kernel, f.input_direction, f.z
    nu = np.linalg.norm(gradients, axis=1) / time
    xi = gradients / time - v
    cost = gated_projection(kernel, r, xi, z, weights=1 / nu, absolute=absolute)
    leading = gated_projection(kernel, r, v, z, weights=1 / nu)
    return _XiPart(leading, np.abs(cost))


def _a_priori_xi(f: Constants, r, options: dict[str, Any]) -> _XiPart:
    """From the bound B_xi, with the weights 1 / |v(x_n)| in place of the measured 1 / nu_n."""
    kernel, v, z = f.kernel, f.input_direction, f.z
    at_inputs = derive_constants(kernel, f.x, f.y, f.x)
    bounds = gradient_bounds(at_inputs, **options)
    norm = np.linalg.norm(v, axis=1)
    nothing = np.full(len(z), np.nan)
    if bounds.status != "ok":
        return _XiPart(nothing, nothing, bounds.status)
    zero = is_rounding(kernel, f.x, v)
    if zero.any():
        status = f"undefined: v is zero at {int(zero.sum())} training points"
        return _XiPart(nothing, nothing, status)
    leading = gated_projection(kernel, r, v, z, weights=1 / norm)
    if not np.all(bounds.total < norm):
        worst = float(np.max(bounds.total / norm))
        status = (
            "no claim: the a priori bound on xi exceeds |v| at training points "
            f"(up to {worst:.3g} times)"
        )
        return _XiPart(leading, nothing, status)
    weights = bounds.total / norm / len(r)

    def terms(rows, columns, _, theta):
        return (phi(kernel, theta) @ weights[columns],)

    gates = row_sums(z, r, terms)[0]
    return _XiPart(leading, np.sqrt(2) * f.norm * gates)


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
    """The matching theorem for the identity loss, at every point.

    With probability >= 1 - delta, sgn f(z; T_f) = sgn g(z; T_g) at every z with

        |f_hat(z)| > C_f(z),  |g_hat(z)| > C_g(z),  sgn f_hat(z) = sgn g_hat(z)
        C_f = B_0/T_f + B_lazy/T_f + B_pred
        C_g = C_xi + (1/size) [B_psi + B_0^g/T_g + B_lazy^g/T_g + B_pred^g]

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> gradients = 10.0 * constants.input_direction
        >>> networks = {"width_f": 10**8, "width_g": 10**8, "time_f": 10.0, "time_g": 10.0}
        >>> options = {"size": 0.1, "delta": 0.1, "start": "centred", "rule": "fixed"}
        >>> m = pk.theory.match(constants, gradients, y, **networks, **options)
        >>> m.g_hat.round(3), m.g_error.round(5), m.holds
        (array([0.24]), array([0.00024]), array([ True]))

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
    check_choice(version, "version", XI_VERSIONS)
    check_choice(start, "start", STARTS)
    check_request(rule, size, (time_f, time_g), (width_f, width_g), delta, points)
    given = make_perturbations(f, gradients, targets, carrier, size)
    kernel, z, r = f.kernel, f.z, given.points
    if rule == "balanced" and f.count % 2:
        raise ValueError(
            f'rule="balanced" needs an even number of points; got {f.count}. '
            'rule="fixed" evaluates psi itself'
        )

    has_psi = bool(kernel.train_bias or given.carrier.any())
    events = 6 if start == "random" else 4
    events = events + (has_psi and rule != "fixed") + (version == "a_priori")
    level = delta / events
    shared: dict[str, Any] = {
        "delta": delta,
        "start": start,
        "points": points,
        "event_delta": level,
    }
    f_error = predictor_error(f, width=width_f, time=time_f, **shared)
    if given.status != "ok":
        return _undefined(f, f_error, given, events)

    if version == "a_priori":
        options: dict[str, Any] = {"width": width_f, "time": time_f, "delta": level, "start": start}
        xi = _a_priori_xi(f, r, options)
    else:
        xi = _measured_xi(f, r, given.gradients, time_f, version == "absolute")
    second = derive_constants(kernel, r, given.targets, z)
    g = predictor_error(second, width=width_g, time=time_g, **shared)
    label = np.zeros(len(z))
    if has_psi:
        label = _label_part(kernel, given, z, size, level, rule, points)
    parts = parts_of_g(xi.cost, label, g, size)
    g_error = np.sum(list(parts.values()), axis=0)
    return Matching(
        f_hat=f.f_hat,
        g_hat=xi.leading,
        f_error=f_error,
        g_error=g_error,
        g_parts=parts,
        holds=conditions(f.f_hat, f_error.total, xi.leading, g_error),
        events=events,
        perturbed=r,
        targets=given.targets,
        status=xi.status,
    )


def _undefined(
    f: Constants, f_error: PredictorError, given: Perturbations, events: int
) -> Matching:
    """What is left to say where there are no perturbations."""
    nothing = np.full(f.points, np.nan)
    return Matching(
        f_hat=f.f_hat,
        g_hat=nothing,
        f_error=f_error,
        g_error=nothing,
        g_parts={},
        holds=np.zeros(f.points, bool),
        events=events,
        perturbed=given.points,
        targets=given.targets,
        status=given.status,
    )


def _label_part(
    kernel: TwoLayerNTK,
    given: Perturbations,
    z: np.ndarray,
    size: float,
    delta: float,
    rule: str,
    points: int | None,
) -> Float[np.ndarray, " m"]:
    """B_psi for targets drawn by the rule; |psi| itself for fixed ones."""
    if rule == "fixed":
        return np.abs(psi(kernel, given.points, given.carrier, given.targets, z))
    term = label_term(
        kernel, given.carrier, given.u, z, size=size, delta=delta, rule=rule, points=points
    )
    return term.bound
