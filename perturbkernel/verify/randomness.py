"""Checks of section 12: what is random in the infinite-width limit."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from perturbkernel import theory
from perturbkernel.verify.draws import (
    Problem,
    fresh_and_trained,
    problem,
    row_cosines,
    row_norms,
    signs,
    units,
)
from perturbkernel.verify.kernels import kernel_matrix
from perturbkernel.verify.protocol import Check, Sample, Setting


def _sign_probability(rng, s: Setting, p: Problem) -> Sample:
    """The share of likelier signs, and signs weighted by their certainty.

    The latter is in units of what is expected.
    """
    f = fresh_and_trained(rng, p, s, width=s.width, time=s.time).after
    labels = np.where(theory.f_hat(*p.data) > 0, 1.0, -1.0)
    accuracy = theory.expected_accuracy(*p.data, labels, times=s.time)
    certainty = theory.sign_probability(*p.data, times=s.time) - 0.5
    surprise = (f > 0) - 0.5
    weighted = np.sum(certainty * surprise) / np.sum(certainty**2)
    right = np.mean(f * labels > 0)
    return Sample(
        np.array([right, weighted]),
        np.array([accuracy, 1.0]),
        slack=np.array([0.01, 0.02]),
    )


class _Agreeing(NamedTuple):
    problem: Problem
    agreement: theory.Agreement


def _expected_agreement(rng, s: Setting) -> _Agreeing:
    p = problem(rng, s)
    key = jax.random.key(int(rng.integers(2**31)))
    expected = theory.expected_agreement(
        *p.data,
        size=s.size,
        time_f=s.time,
        time_g=s.time_g,
        draws=s.samples,
        width=s.width,
        key=key,
    )
    return _Agreeing(p, expected)


def _agreement(rng, s: Setting, fixed) -> Sample:
    """Trained f and g, f's initial function kept: the share of points where they agree."""
    p, expected = fixed
    f = fresh_and_trained(rng, p, s, width=s.width, time=s.time, at=p.x)
    u = f.gradient_after / row_norms(f.gradient_after)[:, None]
    targets = signs(rng, s.n)
    r = s.size * targets[:, None] * u
    second = Problem(p.kernel, r, targets, p.z)
    g = fresh_and_trained(rng, second, s, width=s.width, time=s.time_g)
    slack = 3 * expected.mean_standard_error + 0.01
    return Sample(np.mean(f.after * g.after > 0), expected.mean, slack=slack)


def _cosine(rng, s: Setting, p: Problem) -> Sample:
    after = fresh_and_trained(rng, p, s, width=s.width, time=s.time, at=p.z).gradient_after
    cosine = row_cosines(after, theory.direction(*p.data))
    expected = theory.expected_cosine(*p.data, time=s.time)
    return Sample(cosine.mean(), expected.mean(), slack=0.04)


class _Directions(NamedTuple):
    """At fixed directions: the kernel at both signs of every target, (n, m), and the moments that
    the theory gives.
    """

    plus: np.ndarray
    minus: np.ndarray
    moments: theory.TargetMoments


def _directions(rng, s: Setting) -> _Directions:
    p = problem(rng, s)
    u = units(rng, s.n, s.d)
    carrier = p.x if s.scenario == "b" else np.zeros_like(p.x)
    moments = theory.target_moments(p.kernel, carrier, u, p.z, size=s.size, rule=s.targets)
    return _Directions(
        plus=kernel_matrix(p.kernel, "ntk", carrier + s.size * u, p.z),
        minus=kernel_matrix(p.kernel, "ntk", carrier - s.size * u, p.z),
        moments=moments,
    )


def _targets(rng, s: Setting, fixed: _Directions) -> Sample:
    """Three numbers of g_hat_K over targets.

    Its square about the mean in units of the variance, its deviation from the mean (plus one, so
    that there is a number to resolve), and how often its sign is the likelier one.
    """
    moments = fixed.moments
    targets = signs(rng, s.n, s.targets)[:, None]
    g_hat = np.mean(targets * np.where(targets > 0, fixed.plus, fixed.minus), axis=0)
    standard = (g_hat - moments.mean) / np.sqrt(moments.variance)
    along = np.where(moments.mean > 0, standard, -standard).mean()
    likelier = (g_hat > 0) == (moments.positive > 0.5)
    certainty = np.maximum(moments.positive, 1 - moments.positive)
    return Sample(
        np.array([np.mean(standard**2), 1 + along, np.mean(likelier)]),
        np.array([1.0, 1.0, np.mean(certainty)]),
        slack=np.array([0.0, 0.0, 0.04]),
    )


_FIXED: dict[str, Any] = {"prepare": problem, "fixed": True, "shown": ("width", "time")}
_TARGETS = Setting(draws=2000, n=40, slope=0.2, bias=True)
_TARGETS_B = Setting(draws=2000, n=40, slope=0.2, scenario="b", shift=0.3)
_SIGNS = Setting(draws=500, width=1000, shift=0.3)
_AGREE = Setting(draws=150, width=1500, n=30, time=0.3, time_g=8.0, samples=150, shift=0.3)
CHECKS = (
    Check(
        "12.1",
        "P(f > 0) = N_c(T f_hat / sqrt(Sigma)): share of likelier signs, weighted signs",
        "expectation",
        _sign_probability,
        (_SIGNS,),
        (
            Setting(draws=150, width=20000, d=50, n=60, shift=0.2, time=0.05),
            Setting(draws=150, width=20000, d=50, n=60, shift=0.2, time=0.3),
        ),
        **_FIXED,
    ),
    Check(
        "12.1",
        "agreement of trained f and g, (a), f_0 kept: by joint draws of f_0",
        "expectation",
        _agreement,
        (_AGREE,),
        tuple(
            replace(_AGREE, draws=60, width=2500, samples=200, time=time)
            for time in (0.05, 0.3, 2.0)
        ),
        part="agreement",
        prepare=_expected_agreement,
        fixed=True,
        shown=("width", "time", "time_g"),
    ),
    Check(
        "12.2",
        "mean cosine of grad f and v (leading order in d, slack 0.04)",
        "expectation",
        _cosine,
        (Setting(draws=60, width=2000, d=50, n=30, shift=0.2, time=0.5),),
        tuple(
            Setting(draws=30, width=20000, d=50, n=30, shift=0.2, time=time)
            for time in (0.1, 0.5, 2.0)
        ),
        **_FIXED,
    ),
    Check(
        "12.3",
        "mean, variance and sign of g_hat_K over coin-flip targets",
        "expectation",
        _targets,
        (_TARGETS, _TARGETS_B),
        tuple(replace(one, draws=20000) for one in (_TARGETS, _TARGETS_B)),
        prepare=_directions,
        fixed=True,
        shown=("scenario",),
    ),
    Check(
        "12.3",
        "the same over balanced targets",
        "expectation",
        _targets,
        (replace(_TARGETS_B, targets="balanced"),),
        (replace(_TARGETS_B, targets="balanced", draws=20000),),
        part="balanced",
        prepare=_directions,
        fixed=True,
        shown=("scenario",),
    ),
)
