"""Checks of sections 6 and 7: a second network trained on nothing but the perturbations of the
first.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from perturbkernel import theory
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.verify import draws
from perturbkernel.verify.draws import (
    Problem,
    fresh_and_trained,
    network,
    outputs,
    problem,
    row_norms,
    signs,
    train,
    units,
)
from perturbkernel.verify.kernels import kernel_matrix
from perturbkernel.verify.protocol import Check, Sample, Setting


class Perturbed(NamedTuple):
    """Given directions u (n, d), gradient lengths nu (n,), carrier, targets, and perturbed points."""

    u: np.ndarray
    nu: np.ndarray
    carrier: np.ndarray
    targets: np.ndarray
    points: np.ndarray


def given(rng, s: Setting, p: Problem) -> Perturbed:
    """Perturbations along v + noise, as a trained network's would be, and fresh targets."""
    xi = 0.2 * row_norms(p.constants.input_direction)[:, None] * units(rng, s.n, s.d)
    gradient = p.constants.input_direction + xi
    nu = row_norms(gradient)
    carrier, targets = p.x if s.scenario == "b" else np.zeros_like(p.x), signs(rng, s.n, s.targets)
    return Perturbed(
        gradient / nu[:, None],
        nu,
        carrier,
        targets,
        carrier + s.size * (targets / nu)[:, None] * gradient,
    )


def _kernel_form(rng, s: Setting, p: Problem) -> Sample:
    r = given(rng, s, p)
    whole = (r.targets / s.n) @ kernel_matrix(p.kernel, "ntk", r.points, p.z) / s.size
    split = theory.g_hat_u(p.kernel, r.points, r.u, p.z)
    split = split + theory.psi(p.kernel, r.points, r.carrier, r.targets, p.z) / s.size
    return Sample(np.abs(whole - split), 1e-12 * np.abs(whole).max())


def _versions(rng, s: Setting, p: Problem) -> Sample:
    """g_hat_u - g_hat_w, from xi = nu u - v."""
    r = given(rng, s, p)
    gap = theory.g_hat_u(p.kernel, r.points, r.u, p.z) - theory.g_hat_w(
        p.kernel, p.x, p.y, r.points, r.nu, p.z
    )
    xi = r.nu[:, None] * r.u - p.constants.input_direction
    phi = kernel_matrix(p.kernel, "phi", r.points, p.z)
    return Sample(np.abs(gap - np.mean(phi * (xi @ p.z.T) / r.nu[:, None], axis=0)), 1e-12)


def _spread(rng, s: Setting, p: Problem) -> Sample:
    r = given(rng, s, p)
    sure = theory.spread_condition(p.kernel, p.x, p.y, r.points, r.nu, p.z).holds
    product = theory.g_hat(p.kernel, p.x, p.y, r.points, p.z) * theory.g_hat_w(
        p.kernel, p.x, p.y, r.points, r.nu, p.z
    )
    return Sample((product <= 0).astype(float), np.where(sure, 0.5, np.nan))


def _labels(rng, s: Setting, p: Problem) -> Sample:
    """|psi - psi_sys|, and |psi| against B_psi."""
    r = given(rng, s, p)
    psi = theory.psi(p.kernel, r.points, r.carrier, r.targets, p.z)
    term = theory.bounds.label_term(
        p.kernel, r.carrier, r.u, p.z, size=s.size, delta=s.delta, rule=s.targets
    )
    signal = s.size * np.abs(theory.g_hat_u(p.kernel, r.points, r.u, p.z))
    return Sample(
        [np.abs(psi - term.systematic), np.abs(psi)], [term.radius, term.bound], [signal, signal]
    )


def _systematic(rng, s: Setting, p: Problem) -> Sample:
    r = given(rng, s, p)
    term = theory.bounds.label_term(p.kernel, r.carrier, r.u, p.z, size=s.size, delta=s.delta)
    return Sample(
        np.abs(term.systematic),
        term.systematic_bound,
        s.size * np.abs(theory.g_hat_u(p.kernel, r.points, r.u, p.z)),
    )


class _Labels(NamedTuple):
    """At fixed directions: Phi of both signs times kappa, (n, m), and the theory's psi_sys, (m,)."""

    plus: np.ndarray
    minus: np.ndarray
    systematic: np.ndarray


def _fixed_directions(rng, s: Setting) -> _Labels:
    p = problem(rng, s)
    u = given(rng, s, p).u
    plus, minus = (
        kernel_matrix(p.kernel, "phi", p.x + sign * s.size * u, p.z) * p.factor for sign in (1, -1)
    )
    term = theory.bounds.label_term(p.kernel, p.x, u, p.z, size=s.size, delta=s.delta)
    return _Labels(plus, minus, term.systematic)


def _label_mean(rng, s: Setting, fixed: _Labels) -> Sample:
    """Psi over targets, summed over queries with weights along its mean, each in units of its own
    spread.
    """
    targets = signs(rng, s.n, s.targets)[:, None]
    psi = np.mean(targets * np.where(targets > 0, fixed.plus, fixed.minus), axis=0)
    weight = np.mean((fixed.plus - fixed.minus) / 2, axis=0) / np.mean(
        (fixed.plus + fixed.minus) ** 2, axis=0
    )
    return Sample(np.sum(weight * psi), np.sum(weight * fixed.systematic))


class Experiment(NamedTuple):
    """Everything 6.4 and 7.3 speak of, from one training of f and one of g."""

    match: theory.Matching | theory.LogisticMatching
    f: np.ndarray
    g: np.ndarray
    f_error: np.ndarray
    g_error: np.ndarray


def _experiment(rng, s: Setting, p: Problem) -> Experiment:
    """Trains f, perturbs, trains a fresh g on the perturbations, and asks for the theorem's
    constants.
    """
    centred = s.start == "centred"
    carrier = p.x if s.scenario == "b" else None
    targets = signs(rng, s.n, s.targets)
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

    def run(at: Problem, time, points):
        """(change of outputs or outputs, gradients, realised weights)."""
        if s.loss == "identity":
            sums = fresh_and_trained(rng, at, s, width=s.width, time=time, at=points)
            gradient = sums.gradient_after - centred * sums.gradient_before
            return sums.after - centred * sums.before, gradient, np.ones(s.n)
        net = network(rng, s.width, s.d)
        done = train(net, at.x, at.y, at.kernel, s, time=time)
        beta = theory.realised_weights(done.history, at.y, done.rates, s.momentum)
        out = outputs(done.net, at.z, s.slope) - centred * outputs(net, at.z, s.slope)
        slopes = draws.gradients(done.net, points, s.slope) - centred * draws.gradients(
            net, points, s.slope
        )
        return out, slopes, beta

    f, slopes, beta_f = run(p, s.time, p.x)
    u = slopes / row_norms(slopes)[:, None]
    r = (0 if carrier is None else carrier) + s.size * targets[:, None] * u
    g, _, beta_g = run(Problem(p.kernel, r, targets, p.z), s.time_g, np.empty((0, s.d)))
    f, g = f / s.time, g / (s.size * s.time_g)
    if s.loss == "identity":
        m = theory.match(p.constants, slopes, targets, start=s.start, **options)
        return Experiment(m, f, g, np.abs(f - m.f_hat), np.abs(g - m.g_hat))
    m = theory.logistic_match(
        p.constants, slopes, targets, beta_f, beta_g, centred=centred, **options
    )
    return Experiment(m, f, g, np.abs(f - m.f_hat_beta), np.abs(g - m.g_hat_beta))


def _constants(e: Experiment, s: Setting, p: Problem) -> Sample:
    """Both errors against C_f and C_g."""
    m = e.match
    if isinstance(m, theory.Matching):
        return Sample(
            [e.f_error, e.g_error], [m.f_error.total, m.g_error], np.abs([m.f_hat, m.g_hat])
        )
    return Sample(
        [e.f_error, e.g_error], [m.f_error, m.g_error], np.abs([m.f_hat_beta, m.g_hat_beta])
    )


def _theorem(e: Experiment, s: Setting, p: Problem) -> Sample:
    """Signs of f and g where the conditions are met."""
    return Sample((e.f * e.g <= 0).astype(float), np.where(e.match.holds, 0.5, np.nan))


def _logistic_predictor(rng, s: Setting, p: Problem) -> Sample:
    net = network(rng, s.width, s.d)
    done = train(net, p.x, p.y, p.kernel, s, time=s.time)
    beta = theory.realised_weights(done.history, p.y, done.rates, s.momentum)
    change = outputs(done.net, p.z, s.slope) - outputs(net, p.z, s.slope)
    error = theory.bounds.logistic_predictor_error(
        p.constants, beta, width=s.width, time=s.time, delta=s.delta, centred=True
    )
    return Sample(np.abs(change / s.time - error.f_hat), error.total, np.abs(error.f_hat))


def _logistic_direction(rng, s: Setting, p: Problem) -> Sample:
    """Xi around v_beta."""
    net = network(rng, s.width, s.d)
    done = train(net, p.x, p.y, p.kernel, s, time=s.time)
    beta = theory.realised_weights(done.history, p.y, done.rates, s.momentum)
    xi = draws.gradients(done.net, p.z, s.slope) / s.time - theory.weighted_direction(
        p.constants, beta
    )
    bounds = theory.bounds.gradient_bounds(
        p.constants, width=s.width, time=s.time, delta=s.delta, loss="logistic"
    )
    return Sample(
        row_norms(xi), bounds.total, row_norms(theory.weighted_direction(p.constants, beta))
    )


def _weighted_gap(rng, s: Setting, p: Problem) -> Sample:
    beta = rng.uniform(0.3, 0.7, size=s.n)
    gap = row_norms(2 * theory.weighted_direction(p.constants, beta) - p.constants.direction)
    bound = theory.bounds.weighted_direction_gap(p.constants, float(np.abs(2 * beta - 1).max()))
    return Sample(gap, bound, row_norms(p.constants.direction))


def _linear_networks(rng, s: Setting, p: Problem) -> Sample:
    """Slope 1, centred, (a), c = 0: signs of f and g agree at every z."""
    e = _experiment(rng, replace(s, slope=1.0), Problem(TwoLayerNTK(1.0, False), *p.data[1:]))
    return Sample((e.f * e.g <= 0).astype(float), 0.5)


_DATA: dict[str, Any] = {"prepare": problem}
_B = Setting(draws=60, n=200, slope=0.2, bias=True, scenario="b", size=4.0)
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
        "6.1",
        "g's kernel predictor is g_hat_u + psi / eps exactly (to 1e-12)",
        "identity",
        _kernel_form,
        (Setting(draws=10, slope=0.2, bias=True), replace(_B, draws=5)),
        shown=("scenario",),
        **_DATA,
    ),
    Check(
        "6.2",
        "g_hat_u - g_hat_w is the projection of xi exactly (to 1e-12)",
        "identity",
        _versions,
        (Setting(draws=10, slope=0.2),),
        shown=("scenario",),
        **_DATA,
    ),
    Check(
        "6.2",
        "where the spread condition is met, g_hat and g_hat_w have one sign",
        "surely",
        _spread,
        (Setting(draws=40, slope=0.2, shift=0.5),),
        part="spread",
        claim=True,
        **_DATA,
    ),
    Check(
        "6.3",
        "|psi - psi_sys| and |psi| within their bounds over coin-flip targets",
        "probability",
        _labels,
        (_B,),
        (replace(_B, draws=2000, n=400), replace(_B, draws=500, n=2000)),
        resolves="eps |g_hat_u|",
        **_DATA,
    ),
    Check(
        "6.3",
        "the same over balanced targets",
        "probability",
        _labels,
        (replace(_B, targets="balanced"),),
        (replace(_B, draws=1000, n=400, targets="balanced"),),
        part="balanced",
        resolves="eps |g_hat_u|",
        **_DATA,
    ),
    Check(
        "6.3",
        "|psi_sys| <= its bound",
        "surely",
        _systematic,
        (replace(_B, draws=30),),
        part="systematic",
        resolves="eps |g_hat_u|",
        **_DATA,
    ),
    Check(
        "6.3",
        "the mean of psi over targets is psi_sys (weighted over queries)",
        "expectation",
        _label_mean,
        (replace(_B, draws=4000, n=40, d=10, shift=0.3),),
        (replace(_B, draws=20000, n=40, d=10, shift=0.3),),
        part="mean",
        prepare=_fixed_directions,
        fixed=True,
    ),
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
