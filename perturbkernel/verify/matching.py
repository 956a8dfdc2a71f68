"""Checks of 6.1 to 6.3: the kernel predictor of the second network, at given directions."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from perturbkernel import theory
from perturbkernel.verify.draws import (
    Problem,
    problem,
    row_norms,
    signs,
    units,
)
from perturbkernel.verify.kernels import kernel_matrix
from perturbkernel.verify.protocol import Check, Sample, Setting


class Perturbed(NamedTuple):
    """Perturbations whose directions are given.

    Attributes:
        u: (n, d), the directions.
        nu: (n,), the lengths of the gradients.
        carrier: (n, d), what is perturbed.
        targets: (n,).
        points: (n, d), the perturbed points.
    """

    u: np.ndarray
    nu: np.ndarray
    carrier: np.ndarray
    targets: np.ndarray
    points: np.ndarray


def given(rng, s: Setting, p: Problem) -> Perturbed:
    """Perturbations along v + noise, as a trained network's would be, and fresh targets."""
    v = p.constants.input_direction
    length = row_norms(v)[:, None]
    xi = 0.2 * length * units(rng, s.n, s.d)
    gradient = v + xi
    nu = row_norms(gradient)
    u = gradient / nu[:, None]
    carrier = p.x if s.scenario == "b" else np.zeros_like(p.x)
    targets = signs(rng, s.n, s.targets)
    steps = s.size * targets[:, None]
    return Perturbed(
        u=u,
        nu=nu,
        carrier=carrier,
        targets=targets,
        points=carrier + steps * u,
    )


def _kernel_form(rng, s: Setting, p: Problem) -> Sample:
    r = given(rng, s, p)
    matrix = kernel_matrix(p.kernel, "ntk", r.points, p.z)
    whole = r.targets @ matrix / (s.n * s.size)
    psi = theory.psi(p.kernel, r.points, r.carrier, r.targets, p.z)
    split = theory.g_hat_u(p.kernel, r.points, r.u, p.z) + psi / s.size
    return Sample(np.abs(whole - split), 1e-12 * np.abs(whole).max())


def _versions(rng, s: Setting, p: Problem) -> Sample:
    """g_hat_u - g_hat_w, from xi = nu u - v."""
    r = given(rng, s, p)
    measured = theory.g_hat_u(p.kernel, r.points, r.u, p.z)
    limit = theory.g_hat_w(p.kernel, p.x, p.y, r.points, r.nu, p.z)
    gap = measured - limit
    xi = r.nu[:, None] * r.u - p.constants.input_direction
    phi = kernel_matrix(p.kernel, "phi", r.points, p.z)
    terms = phi * (xi @ p.z.T) / r.nu[:, None]
    projection = terms.mean(axis=0)
    return Sample(np.abs(gap - projection), 1e-12)


def _spread(rng, s: Setting, p: Problem) -> Sample:
    r = given(rng, s, p)
    sure = theory.spread_condition(p.kernel, p.x, p.y, r.points, r.nu, p.z).holds
    unweighted = theory.g_hat(p.kernel, p.x, p.y, r.points, p.z)
    weighted = theory.g_hat_w(p.kernel, p.x, p.y, r.points, r.nu, p.z)
    product = unweighted * weighted
    return Sample((product <= 0).astype(float), np.where(sure, 0.5, np.nan))


def _labels(rng, s: Setting, p: Problem) -> Sample:
    """|psi - psi_sys|, and |psi| against B_psi."""
    r = given(rng, s, p)
    psi = theory.psi(p.kernel, r.points, r.carrier, r.targets, p.z)
    term = theory.bounds.label_term(
        p.kernel, r.carrier, r.u, p.z, size=s.size, delta=s.delta, rule=s.targets
    )
    signal = _signal(s, p, r)
    return Sample(
        observed=[np.abs(psi - term.systematic), np.abs(psi)],
        bound=[term.radius, term.bound],
        scale=[signal, signal],
    )


def _signal(s: Setting, p: Problem, r: Perturbed) -> np.ndarray:
    """|g_hat_u| size, (m,): what psi adds to."""
    g_hat = theory.g_hat_u(p.kernel, r.points, r.u, p.z)
    return s.size * np.abs(g_hat)


def _systematic(rng, s: Setting, p: Problem) -> Sample:
    r = given(rng, s, p)
    term = theory.bounds.label_term(p.kernel, r.carrier, r.u, p.z, size=s.size, delta=s.delta)
    systematic = np.abs(term.systematic)
    return Sample(systematic, term.systematic_bound, scale=_signal(s, p, r))


class _Labels(NamedTuple):
    """At fixed directions: Phi of both signs times kappa, (n, m), and the psi_sys of the theory,
    (m,).
    """

    plus: np.ndarray
    minus: np.ndarray
    systematic: np.ndarray


def _fixed_directions(rng, s: Setting) -> _Labels:
    p = problem(rng, s)
    u = given(rng, s, p).u
    step = s.size * u
    plus = kernel_matrix(p.kernel, "phi", p.x + step, p.z)
    minus = kernel_matrix(p.kernel, "phi", p.x - step, p.z)
    term = theory.bounds.label_term(p.kernel, p.x, u, p.z, size=s.size, delta=s.delta)
    return _Labels(plus * p.factor, minus * p.factor, term.systematic)


def _label_mean(rng, s: Setting, fixed: _Labels) -> Sample:
    """Psi over targets, summed over queries.

    Weights are along its mean, each in units of its own spread.
    """
    targets = signs(rng, s.n, s.targets)[:, None]
    psi = np.mean(targets * np.where(targets > 0, fixed.plus, fixed.minus), axis=0)
    mean = np.mean((fixed.plus - fixed.minus) / 2, axis=0)
    spread = np.mean((fixed.plus + fixed.minus) ** 2, axis=0)
    weight = mean / spread
    return Sample(np.sum(weight * psi), np.sum(weight * fixed.systematic))


_DATA: dict[str, Any] = {"prepare": problem}
_B = Setting(draws=60, n=200, slope=0.2, bias=True, scenario="b", size=4.0)
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
)
