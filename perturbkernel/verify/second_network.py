"""Checks of 6.4 and section 7: a network trained on nothing but another's perturbations."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from perturbkernel import theory
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.verify import draws
from perturbkernel.verify.draws import (
    Network,
    Problem,
    Trained,
    fresh_and_trained,
    network,
    outputs,
    problem,
    row_norms,
    signs,
    train,
)
from perturbkernel.verify.protocol import Check, Sample, Setting


class Experiment(NamedTuple):
    """Everything 6.4 and 7.3 speak of, from one training of f and one of g, (m,) each."""

    match: theory.Matching | theory.LogisticMatching
    f: np.ndarray
    g: np.ndarray
    f_error: np.ndarray
    g_error: np.ndarray


def _experiment(rng, s: Setting, p: Problem) -> Experiment:
    """Trains f, perturbs, trains a fresh g on the perturbations.

    Then asks the theorem for its constants.
    """
    targets = signs(rng, s.n, s.targets)
    first = _learnt(rng, s, p, s.time, p.x)
    u = first.gradients / row_norms(first.gradients)[:, None]
    delta = s.size * targets[:, None] * u
    carrier = p.x if s.scenario == "b" else None
    r = delta if carrier is None else carrier + delta
    perturbed = Problem(p.kernel, r, targets, p.z)
    second = _learnt(rng, s, perturbed, s.time_g, np.empty((0, s.d)))
    f = first.outputs / s.time
    g = second.outputs / (s.size * s.time_g)
    options: dict[str, Any] = {
        "size": s.size,
        "carrier": carrier,
        "time_f": s.time,
        "time_g": s.time_g,
        "width_f": s.width,
        "width_g": s.width,
        "delta": s.delta,
        "rule": s.targets,
    }
    if s.loss == "identity":
        m = theory.match(p.constants, first.gradients, targets, start=s.start, **options)
        f_error = np.abs(f - m.f_hat)
        g_error = np.abs(g - m.g_hat)
        return Experiment(m, f, g, f_error, g_error)
    m = theory.logistic_match(
        p.constants,
        first.gradients,
        targets,
        first.weights,
        second.weights,
        start=s.start,
        **options,
    )
    f_error = np.abs(f - m.f_hat_beta)
    g_error = np.abs(g - m.g_hat_beta)
    return Experiment(m, f, g, f_error, g_error)


class _Learnt(NamedTuple):
    """What one training gave: outputs and gradients, or their change if centred.

    Attributes:
        outputs: (m,), at the queries.
        gradients: (k, d), at the points asked for.
        weights: (n,), the realised weights beta; 1 with the identity loss.
    """

    outputs: np.ndarray
    gradients: np.ndarray
    weights: np.ndarray


def _learnt(rng, s: Setting, p: Problem, time: float, points: np.ndarray) -> _Learnt:
    """Trains a fresh network on p to the given time."""
    centred = s.start == "centred"
    if s.loss == "identity":
        sums = fresh_and_trained(rng, p, s, width=s.width, time=time, at=points)
        return _Learnt(
            outputs=sums.after - centred * sums.before,
            gradients=sums.gradient_after - centred * sums.gradient_before,
            weights=np.ones(s.n),
        )
    net, done, beta = _logistic_network(rng, s, p, time)
    outputs_before = outputs(net, p.z, s.slope)
    outputs_after = outputs(done.net, p.z, s.slope)
    gradients_before = draws.gradients(net, points, s.slope)
    gradients_after = draws.gradients(done.net, points, s.slope)
    return _Learnt(
        outputs=outputs_after - centred * outputs_before,
        gradients=gradients_after - centred * gradients_before,
        weights=beta,
    )


class _LogisticNetwork(NamedTuple):
    """A network before and after logistic training, and its realised weights beta, (n,)."""

    before: Network
    after: Trained
    weights: np.ndarray


def _logistic_network(rng, s: Setting, p: Problem, time: float) -> _LogisticNetwork:
    net = network(rng, s.width, s.d)
    done = train(net, p.x, p.y, p.kernel, s, time=time)
    beta = theory.realised_weights(done.history, p.y, done.rates, s.momentum)
    return _LogisticNetwork(net, done, beta)


def _constants(e: Experiment, s: Setting, p: Problem) -> Sample:
    """Both errors against C_f and C_g."""
    m = e.match
    if isinstance(m, theory.Matching):
        bounds = [m.f_error.total, m.g_error]
        leading = [m.f_hat, m.g_hat]
    else:
        bounds = [m.f_error, m.g_error]
        leading = [m.f_hat_beta, m.g_hat_beta]
    return Sample([e.f_error, e.g_error], bounds, np.abs(leading))


def _theorem(e: Experiment, s: Setting, p: Problem) -> Sample:
    """Signs of f and g where the conditions are met."""
    apart = e.f * e.g <= 0
    allowed = np.where(e.match.holds, 0.5, np.nan)
    return Sample(apart.astype(float), allowed)


def _logistic_predictor(rng, s: Setting, p: Problem) -> Sample:
    net, done, beta = _logistic_network(rng, s, p, s.time)
    change = outputs(done.net, p.z, s.slope) - outputs(net, p.z, s.slope)
    error = theory.bounds.logistic_predictor_error(
        p.constants, beta, width=s.width, time=s.time, delta=s.delta, start="centred"
    )
    gap = np.abs(change / s.time - error.f_hat)
    return Sample(gap, error.total, scale=np.abs(error.f_hat))


def _logistic_direction(rng, s: Setting, p: Problem) -> Sample:
    """Xi around v_beta."""
    _, done, beta = _logistic_network(rng, s, p, s.time)
    v_beta = theory.weighted_direction(p.constants, beta)
    xi = draws.gradients(done.net, p.z, s.slope) / s.time - v_beta
    bounds = theory.bounds.gradient_bounds(
        p.constants, width=s.width, time=s.time, delta=s.delta, loss="logistic"
    )
    return Sample(row_norms(xi), bounds.total, row_norms(v_beta))


def _weighted_gap(rng, s: Setting, p: Problem) -> Sample:
    beta = rng.uniform(0.3, 0.7, size=s.n)
    v_beta = theory.weighted_direction(p.constants, beta)
    gap = row_norms(2 * v_beta - p.constants.direction)
    error = float(np.abs(2 * beta - 1).max())
    bound = theory.bounds.weighted_direction_gap(p.constants, error)
    return Sample(gap, bound, row_norms(p.constants.direction))


def _linear_networks(rng, s: Setting, p: Problem) -> Sample:
    """Slope 1, centred, (a), c = 0: signs of f and g agree at every z."""
    linear = Problem(TwoLayerNTK(1.0, False), p.x, p.y, p.z)
    e = _experiment(rng, replace(s, slope=1.0), linear)
    return Sample((e.f * e.g <= 0).astype(float), 0.5)


_DATA: dict[str, Any] = {"prepare": problem}
_CENTRED = Setting(draws=30, width=5000, time=0.1, start="centred")
_FULL = (
    replace(_CENTRED, draws=200),
    replace(_CENTRED, draws=30, width=20000),
    replace(_CENTRED, draws=10, width=20000, bias=True, size=4.0),
    Setting(draws=8, width=20000, time=1.5, time_g=4.0),
    Setting(draws=20, width=200000, time=1.5, time_g=4.0),
    Setting(draws=3, width=1000000, time=2.5, time_g=8.0),
)
_CENTRED_B = Setting(draws=4, width=10000, n=600, time=0.1, size=4.0, scenario="b", start="centred")
_FULL_B = (
    replace(_CENTRED_B, draws=6, width=20000),
    replace(_CENTRED_B, draws=6, n=2000, width=10000),
    replace(_CENTRED_B, draws=3, n=2000, width=10000, bias=True),
)
_NETS: dict[str, Any] = {"prepare": problem, "shown": ("width", "time", "time_g", "scenario")}
_LOGISTIC = Setting(draws=15, width=20000, time=0.1, time_g=0.2, loss="logistic", start="centred")
_LOGISTIC_B = Setting(
    draws=4,
    width=10000,
    n=300,
    time=0.1,
    time_g=0.05,
    size=4.0,
    scenario="b",
    loss="logistic",
    start="centred",
)
_LOGISTIC_FULL = (
    replace(_LOGISTIC, draws=60, width=5000, time_g=0.3),
    _LOGISTIC,
    replace(_LOGISTIC_B, draws=10),
)
CHECKS = (
    Check(
        "6.4",
        "|f/T_f - f_hat| <= C_f and |g/(eps T_g) - g_hat_w| <= C_g in (a)",
        "probability",
        _experiment,
        (_CENTRED,),
        _FULL,
        part="(a)",
        compare=_constants,
        resolves="|f_hat|, |g_hat_w|",
        **_NETS,
    ),
    Check(
        "6.4",
        "sgn f = sgn g wherever the three conditions are met, in (a)",
        "probability",
        _experiment,
        (_CENTRED,),
        _FULL,
        part="(a) signs",
        claim=True,
        compare=_theorem,
        **_NETS,
    ),
    Check(
        "6.4",
        "|f/T_f - f_hat| <= C_f and |g/(eps T_g) - g_hat_w| <= C_g in (b)",
        "probability",
        _experiment,
        (_CENTRED_B,),
        _FULL_B,
        part="(b)",
        compare=_constants,
        resolves="|f_hat|, |g_hat_w|",
        **_NETS,
    ),
    Check(
        "6.4",
        "sgn f = sgn g wherever the three conditions are met, in (b)",
        "probability",
        _experiment,
        (_CENTRED_B,),
        _FULL_B,
        part="(b) signs",
        claim=True,
        compare=_theorem,
        **_NETS,
    ),
    Check(
        "7.1",
        "|(f - f_0)/T - f_hat_beta| <= C_f^log",
        "probability",
        _logistic_predictor,
        (Setting(draws=30, width=5000, time=0.1, slope=0.2, loss="logistic"),),
        (Setting(draws=60, width=5000, time=0.1, slope=0.2, loss="logistic"),),
        prepare=problem,
        shown=("width", "time"),
        resolves="|f_hat_beta|",
    ),
    Check(
        "7.2",
        "|grad f / T - v_beta| <= B_xi with realised weights",
        "probability",
        _logistic_direction,
        (Setting(draws=20, width=5000, slope=0.2, loss="logistic"),),
        prepare=problem,
        shown=("width", "time"),
        resolves="|v_beta|",
        hopeless=True,
    ),
    Check(
        "7.2",
        "|2 v_beta - v| <= its bound, any weights",
        "surely",
        _weighted_gap,
        (Setting(draws=50, slope=0.2),),
        part="weights",
        resolves="|v|",
        **_DATA,
    ),
    Check(
        "7.3",
        "errors of f and g against C_f^log and C_g^log, realised weights, in (a)",
        "probability",
        _experiment,
        (_LOGISTIC,),
        _LOGISTIC_FULL[:2],
        part="(a)",
        compare=_constants,
        resolves="|f_hat_beta|, |g_hat_beta|",
        **_NETS,
    ),
    Check(
        "7.3",
        "sgn f = sgn g where the weighted conditions are met (a)",
        "probability",
        _experiment,
        (_LOGISTIC,),
        _LOGISTIC_FULL[:2],
        part="(a) signs",
        claim=True,
        compare=_theorem,
        **_NETS,
    ),
    Check(
        "7.3",
        "errors of f and g against C_f^log and C_g^log, in (b)",
        "probability",
        _experiment,
        (_LOGISTIC_B,),
        _LOGISTIC_FULL[2:],
        part="(b)",
        compare=_constants,
        resolves="|f_hat_beta|, |g_hat_beta|",
        **_NETS,
    ),
    Check(
        "8.7",
        "slope 1, centred, (a) without bias: f and g agree at every point",
        "surely",
        _linear_networks,
        (Setting(draws=10, width=500, start="centred"),),
        part="linear networks",
        claim=True,
        **_DATA,
    ),
)
