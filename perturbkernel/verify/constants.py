"""Checks of the constants of 6.4 and 7.3: every one evaluated a second time (`by_hand`)."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from perturbkernel import theory
from perturbkernel.verify import by_hand
from perturbkernel.verify.certificates import (
    SMALL,
    TIGHT,
    WIDE,
    Drawn,
    gap,
    lopsided,
    perturbed,
)
from perturbkernel.verify.draws import (
    Problem,
    problem,
    row_norms,
)
from perturbkernel.verify.protocol import Check, Sample, Setting


class _Parts(NamedTuple):
    """The parts of C_f, or of C_g without those of the perturbations, (m,) each."""

    initial: np.ndarray
    lazy: np.ndarray
    concentration: np.ndarray

    @property
    def total(self) -> np.ndarray:
        return np.sum(self, axis=0)

    def over(self, size: float) -> "_Parts":
        """The parts of an error of g / size."""
        return _Parts(self.initial / size, self.lazy / size, self.concentration / size)


def _error_parts(data: by_hand.Data, run: by_hand.Run, start: str) -> _Parts:
    """The parts of C_f with the identity loss."""
    return _Parts(
        _initial_part(data, run, start),
        by_hand.lazy_bound(data, run, data.slope) / run.time,
        by_hand.predictor_bound(data, run.neurons, run.level, run.points),
    )


def _initial_part(data: by_hand.Data, run: by_hand.Run, start: str) -> np.ndarray:
    if start != "random":
        return np.zeros(data.points)
    return by_hand.initial_bound(data, run) / run.time


def _has_psi(s: Setting) -> bool:
    """Whether labels alone teach the second network anything."""
    return s.bias or s.scenario == "b"


def _run(s: Setting) -> by_hand.Run:
    """The training of f, with the level that each event gets.

    Two events of each network, one more of each that does not start at zero, and that of psi.
    """
    events = 6 if s.start == "random" else 4
    if _has_psi(s) and s.targets != "fixed":
        events += 1
    return by_hand.Run(s.width, s.time, s.delta / events, s.points, s.start == "doubled")


def _options(drawn: Drawn, s: Setting) -> dict[str, Any]:
    """What `theory.match` and `theory.logistic_match` are both told."""
    return {
        "size": s.size,
        "carrier": drawn.given.carrier if s.scenario == "b" else None,
        "time_f": s.time,
        "time_g": s.time_g,
        "width_f": s.width,
        "width_g": s.width,
        "delta": s.delta,
        "rule": s.targets,
    }


def _matching(drawn: Drawn, s: Setting, p: Problem, version: str) -> theory.Matching:
    return theory.match(
        p.constants,
        drawn.gradients,
        drawn.given.targets,
        start=s.start,
        version=version,
        **_options(drawn, s),
    )


def _conditions(
    f_hat: np.ndarray, g_hat: np.ndarray, f_error: np.ndarray, g_error: np.ndarray
) -> np.ndarray:
    """Where both leading terms exceed their errors and have one sign, (m,)."""
    sure = (np.abs(f_hat) > f_error) & (np.abs(g_hat) > g_error)
    return sure & (f_hat * g_hat > 0)


def _match_by_hand(rng, s: Setting, p: Problem) -> Sample:
    """Every part of C_f and C_g, the leading terms, and where the conditions are met."""
    drawn = perturbed(rng, s, p)
    data = drawn.data
    run = _run(s)
    f_parts = _error_parts(data, run, s.start)
    g_parts = _error_parts(drawn.second, run._replace(time=s.time_g), s.start).over(s.size)
    v = by_hand.direction(data)
    r = drawn.given.points
    xi = drawn.gradients / s.time - v
    leading = by_hand.projection(data, r, v, 1 / drawn.nu).sum(0)
    costs = by_hand.projection(data, r, xi, 1 / drawn.nu)
    cost = np.abs(costs).sum(0)
    label = np.zeros(s.points)
    if _has_psi(s):
        label = by_hand.label_bound(data, drawn.given, s.targets, run) / s.size
    g_error = np.sum([*g_parts, cost, label], axis=0)
    found = _matching(drawn, s, p, "absolute")
    signed = _matching(drawn, s, p, "signed")
    parts = found.g_parts
    pairs = [
        (found.f_hat, data.f_hat),
        (found.g_hat, leading),
        (found.f_error.initial, f_parts.initial),
        (found.f_error.lazy, f_parts.lazy),
        (found.f_error.concentration, f_parts.concentration),
        (parts["initial"], g_parts.initial),
        (parts["lazy"], g_parts.lazy),
        (parts["concentration"], g_parts.concentration),
        (parts["xi"], cost),
        (signed.g_parts["xi"], np.abs(costs.sum(0))),
        (parts["psi"], label),
        (found.f_error.total, f_parts.total),
        (found.g_error, g_error),
        (found.holds, _conditions(data.f_hat, leading, f_parts.total, g_error)),
    ]
    return Sample([gap(*pair) for pair in pairs], TIGHT)


def _a_priori_by_hand(rng, s: Setting, p: Problem) -> Sample:
    """g_hat_v and C_xi of the version without measured gradients, from the theory's B_xi."""
    drawn = perturbed(rng, s, p)
    data = drawn.data
    r = drawn.given.points
    v = by_hand.direction(data)
    lengths = row_norms(v)
    level = s.delta / 5  # two events of each network and that of B_xi
    at_inputs = theory.derive_constants(p.kernel, p.x, p.y, p.x)
    bound = theory.bounds.gradient_bounds(
        at_inputs, width=s.width, time=s.time, delta=level, start="centred"
    ).total
    phi = by_hand.gate_moment(s.slope, by_hand.angles(r, p.z))
    noise = np.mean((bound / lengths) * phi.T, axis=1)
    cost = math.sqrt(2) * row_norms(p.z) * noise
    run = by_hand.Run(s.width, s.time, level, s.points)
    found = _matching(drawn, s, p, "a_priori")
    pairs = [
        (found.g_hat, by_hand.projection(data, r, v, 1 / lengths).sum(0)),
        (found.g_parts["xi"], cost),
        (found.f_error.total, _error_parts(data, run, s.start).total),
    ]
    return Sample([gap(*pair) for pair in pairs], TIGHT)


def _logistic_parts(data: by_hand.Data, run: by_hand.Run, beta: np.ndarray, start: str) -> _Parts:
    """The parts of C_f with the logistic loss and the weights beta."""
    rate = math.log(2 * data.count * run.points / run.level) / run.width
    fourth = by_hand.gate_moment(data.slope**2, data.theta)
    bound = np.sqrt(6 * fourth * rate) + 2 * rate
    return _Parts(
        _initial_part(data, run, start),
        by_hand.lazy_bound(data, run, 0.0) / run.time,
        np.mean(beta[:, None] * np.abs(data.factors) * bound, axis=0),
    )


def _logistic_label(drawn: Drawn, s: Setting, run: by_hand.Run, beta: np.ndarray) -> np.ndarray:
    """The bound on psi with the weights beta of the second network, (m,)."""
    if not _has_psi(s):
        return np.zeros(s.points)
    z = drawn.data.z
    phi = by_hand.gate_moment(s.slope, by_hand.angles(drawn.given.points, z))
    terms = phi * (drawn.given.carrier @ z.T + s.bias)
    if s.targets == "fixed":
        return np.abs((beta * drawn.given.targets) @ terms) / s.n
    # Weights are one half, and what they differ from that.
    largest = np.max(np.abs(2 * beta - 1))
    rest = largest * np.mean(np.abs(terms), axis=0)
    half = by_hand.label_bound(drawn.data, drawn.given, s.targets, run)
    return (half + rest) / 2


def _logistic_by_hand(rng, s: Setting, p: Problem) -> Sample:
    """The same for the logistic loss, with given weights beta."""
    drawn = perturbed(rng, s, p)
    data = drawn.data
    beta_f, beta_g = rng.uniform(0.2, 0.8, size=(2, s.n))
    run = _run(s)
    run_g = run._replace(time=s.time_g)
    f_parts = _logistic_parts(data, run, beta_f, s.start)
    g_parts = _logistic_parts(drawn.second, run_g, beta_g, s.start).over(s.size)
    v = by_hand.direction(data, beta_f)
    r = drawn.given.points
    xi = drawn.gradients / s.time - v
    leading = by_hand.projection(data, r, v, beta_g / drawn.nu).sum(0)
    cost = np.abs(by_hand.projection(data, r, xi, beta_g / drawn.nu).sum(0))
    label = _logistic_label(drawn, s, run, beta_g) / s.size
    f_hat = np.sum(beta_f[:, None] * data.parts * data.phi, axis=0)
    g_error = np.sum([*g_parts, cost, label], axis=0)
    found = theory.logistic_match(
        p.constants,
        drawn.gradients,
        drawn.given.targets,
        beta_f,
        beta_g,
        start=s.start,
        **_options(drawn, s),
    )
    parts = found.g_parts
    pairs = [
        (found.f_hat_beta, f_hat),
        (found.g_hat_beta, leading),
        (found.f_error, f_parts.total),
        (parts["initial"], g_parts.initial),
        (parts["lazy"], g_parts.lazy),
        (parts["concentration"], g_parts.concentration),
        (parts["xi"], cost),
        (parts["psi"], label),
        (found.g_error, g_error),
        (found.holds, _conditions(f_hat, leading, f_parts.total, g_error)),
    ]
    return Sample([gap(*pair) for pair in pairs], TIGHT)


_MATCHES = (
    replace(SMALL, slope=0.2),
    replace(SMALL, start="doubled", scenario="b", size=3.0),
    replace(SMALL, start="centred", bias=True, slope=0.2, targets="balanced", size=3.0),
    replace(WIDE, draws=4, size=30.0),
    # So long that C_f is about |f_hat|, and |g_hat| is still beyond C_g.
    replace(WIDE, draws=4, size=30.0, time=2e5),
)
_LINEAR = replace(SMALL, slope=0.97, width=10**10, shift=1.0, time=50.0, start="centred")
_LOGISTIC = (
    replace(SMALL, slope=0.2),
    replace(SMALL, start="centred", scenario="b", bias=True, slope=0.5, size=3.0),
    replace(WIDE, draws=4, size=30.0),
)
CHECKS = (
    Check(
        "6.4",
        "C_f, C_g and where the conditions hold, each evaluated a second time (relative, to 1e-8)",
        "identity",
        _match_by_hand,
        _MATCHES,
        part="constants",
        shown=("width", "start"),
        prepare=lopsided,
    ),
    Check(
        "6.4",
        "C_xi a priori, from B_xi, evaluated a second time (relative, to 1e-8)",
        "identity",
        _a_priori_by_hand,
        (_LINEAR,),
        part="a priori",
        shown=("width", "start"),
        prepare=problem,
    ),
    Check(
        "7.3",
        "C_f^log, C_g^log, where the conditions hold, evaluated a second time (relative, to 1e-8)",
        "identity",
        _logistic_by_hand,
        _LOGISTIC,
        part="constants",
        shown=("width", "start"),
        prepare=lopsided,
    ),
)
