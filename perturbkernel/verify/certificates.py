"""Checks of the sharper constants of section 6: one-sided tails, and certificates made of them.

Most of a bound's constants never show in simulated networks, being safe by known factors: beside
networks stand rows that evaluate every constant a second time (`by_hand`).
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from perturbkernel import theory
from perturbkernel.theory import tails
from perturbkernel.verify import by_hand
from perturbkernel.verify.draws import (
    Network,
    Problem,
    blocks,
    fresh_and_trained,
    network,
    problem,
    signs,
    train,
)
from perturbkernel.verify.matching import given
from perturbkernel.verify.protocol import Check, Sample, Setting

_TIGHT = 1e-8  # relative, of numbers computed twice in float64
_SEARCHED = 2e-3  # relative, of bounds that are the best of a grid of rates


def _second_copy(p: Problem) -> by_hand.Data:
    return by_hand.Data(p.kernel.slope, int(p.kernel.train_bias), p.x, p.y, p.z)


def _gap(found, wanted) -> np.ndarray:
    """The largest difference, relative to the largest number."""
    found, wanted = np.asarray(found, float), np.asarray(wanted, float)
    largest = np.abs(wanted).max()
    return np.max(np.abs(found - wanted)) / (largest if largest > 0 else 1.0)


def _relative_gap(found, wanted) -> np.ndarray:
    """The largest difference relative to the number itself, 0 where both are the same."""
    found, wanted = np.asarray(found, float), np.asarray(wanted, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.max(np.where(found == wanted, 0, np.abs(found - wanted) / np.abs(wanted)))


class Drawn(NamedTuple):
    """Perturbations along noisy gradients, and what is said of the network trained on them."""

    given: by_hand.Given
    nu: np.ndarray
    second: by_hand.Data
    gradients: np.ndarray


def _perturbed(rng, s: Setting, p: Problem) -> Drawn:
    r = given(rng, s, p)
    made = by_hand.Given(r.carrier, r.u, r.targets, s.size)
    second = replace(_second_copy(p), x=made.points, y=r.targets)
    return Drawn(made, r.nu, second, s.time * r.nu[:, None] * r.u)


def _error_parts(data: by_hand.Data, run: by_hand.Run, start: str) -> list[np.ndarray]:
    """The parts of C_f: initial, lazy, concentration."""
    initial = by_hand.initial_bound(data, run) if start == "random" else np.zeros(data.points)
    return [
        initial / run.time,
        by_hand.lazy_bound(data, run, data.slope) / run.time,
        by_hand.predictor_bound(data, run.neurons, run.level, run.points),
    ]


def _matching(drawn: Drawn, s: Setting, p: Problem, version: str) -> theory.Matching:
    return theory.match(
        p.constants,
        drawn.gradients,
        drawn.given.targets,
        size=s.size,
        carrier=drawn.given.carrier if s.scenario == "b" else None,
        time_f=s.time,
        time_g=s.time_g,
        width_f=s.width,
        width_g=s.width,
        delta=s.delta,
        rule=s.targets,
        start=s.start,
        version=version,
    )


def _match_by_hand(rng, s: Setting, p: Problem) -> Sample:
    """Every part of C_f and C_g, the leading terms, and where the conditions are met."""
    drawn, data = _perturbed(rng, s, p), _second_copy(p)
    has_psi = s.bias or s.scenario == "b"
    events = (6 if s.start == "random" else 4) + int(has_psi and s.targets != "fixed")
    run = by_hand.Run(s.width, s.time, s.delta / events, s.points, s.start == "doubled")
    run_g = run._replace(time=s.time_g)
    f_parts = _error_parts(data, run, s.start)
    g_parts = [part / s.size for part in _error_parts(drawn.second, run_g, s.start)]
    v, r = by_hand.direction(data), drawn.given.points
    xi = drawn.gradients / s.time - v
    leading = by_hand.projection(data, r, v, 1 / drawn.nu).sum(0)
    costs = by_hand.projection(data, r, xi, 1 / drawn.nu)
    cost = np.abs(costs).sum(0)
    label = np.zeros(s.points)
    if has_psi:
        label = by_hand.label_bound(data, drawn.given, s.targets, run) / s.size
    errors = np.sum(f_parts, axis=0), np.sum([*g_parts, cost, label], axis=0)
    holds = (np.abs(data.f_hat) > errors[0]) & (np.abs(leading) > errors[1])
    holds &= data.f_hat * leading > 0
    found, signed = (_matching(drawn, s, p, version) for version in ("absolute", "signed"))
    parts, error = found.g_parts, found.f_error
    pairs = [
        (found.f_hat, data.f_hat),
        (found.g_hat, leading),
        *zip((error.initial, error.lazy, error.concentration), f_parts, strict=True),
        *zip((parts["initial"], parts["lazy"], parts["concentration"]), g_parts, strict=True),
        (parts["xi"], cost),
        (signed.g_parts["xi"], np.abs(costs.sum(0))),
        (parts["psi"], label),
        (error.total, errors[0]),
        (found.g_error, errors[1]),
        (found.holds, holds),
    ]
    return Sample([_gap(*pair) for pair in pairs], _TIGHT)


def _a_priori_by_hand(rng, s: Setting, p: Problem) -> Sample:
    """g_hat_v and C_xi of the version without measured gradients, from the theory's B_xi."""
    drawn, data = _perturbed(rng, s, p), _second_copy(p)
    r, v = drawn.given.points, by_hand.direction(data)
    lengths = np.linalg.norm(v, axis=1)
    level = s.delta / 5  # two events of each network and that of B_xi
    at_inputs = theory.derive_constants(p.kernel, p.x, p.y, p.x)
    bound = theory.bounds.gradient_bounds(
        at_inputs, width=s.width, time=s.time, delta=level, centred=True
    ).total
    phi = by_hand.gate_moment(s.slope, by_hand.angles(r, p.z))
    cost = math.sqrt(2) * np.linalg.norm(p.z, axis=1) * np.mean((bound / lengths) * phi.T, axis=1)
    run = by_hand.Run(s.width, s.time, level, s.points)
    found = _matching(drawn, s, p, "a_priori")
    pairs = [
        (found.g_hat, by_hand.projection(data, r, v, 1 / lengths).sum(0)),
        (found.g_parts["xi"], cost),
        (found.f_error.total, np.sum(_error_parts(data, run, s.start), axis=0)),
    ]
    return Sample([_gap(*pair) for pair in pairs], _TIGHT)


def _logistic_by_hand(rng, s: Setting, p: Problem) -> Sample:
    """The same for the logistic loss, with given weights beta."""
    drawn, data = _perturbed(rng, s, p), _second_copy(p)
    beta_f, beta_g = rng.uniform(0.2, 0.8, size=(2, s.n))
    has_psi, centred = s.bias or s.scenario == "b", s.start == "centred"
    events = (4 if centred else 6) + int(has_psi and s.targets != "fixed")
    run = by_hand.Run(s.width, s.time, s.delta / events, s.points)

    def parts(data: by_hand.Data, run: by_hand.Run, beta: np.ndarray) -> list[np.ndarray]:
        rate = math.log(2 * s.n * s.points / run.level) / s.width
        fourth = by_hand.gate_moment(s.slope**2, data.theta)
        bound = np.sqrt(6 * fourth * rate) + 2 * rate
        initial = np.zeros(s.points) if centred else by_hand.initial_bound(data, run)
        concentration = np.mean(beta[:, None] * np.abs(data.factors) * bound, axis=0)
        lazy = by_hand.lazy_bound(data, run, 0.0)
        return [initial / run.time, lazy / run.time, concentration]

    f_parts = parts(data, run, beta_f)
    g_parts = [part / s.size for part in parts(drawn.second, run._replace(time=s.time_g), beta_g)]
    v, r = by_hand.direction(data, beta_f), drawn.given.points
    xi = drawn.gradients / s.time - v
    leading = by_hand.projection(data, r, v, beta_g / drawn.nu).sum(0)
    cost = np.abs(by_hand.projection(data, r, xi, beta_g / drawn.nu).sum(0))
    label = np.zeros(s.points)
    if has_psi:
        phi = by_hand.gate_moment(s.slope, by_hand.angles(r, p.z))
        terms = phi * (drawn.given.carrier @ p.z.T + s.bias)
        rest = np.max(np.abs(2 * beta_g - 1)) / 2 * np.mean(np.abs(terms), axis=0)
        label = by_hand.label_bound(data, drawn.given, s.targets, run) / 2 + rest
        if s.targets == "fixed":
            label = np.abs((beta_g * drawn.given.targets) @ terms) / s.n
    f_hat = np.sum(beta_f[:, None] * data.parts * data.phi, axis=0)
    errors = np.sum(f_parts, axis=0), np.sum([*g_parts, cost, label / s.size], axis=0)
    holds = (np.abs(f_hat) > errors[0]) & (np.abs(leading) > errors[1]) & (f_hat * leading > 0)
    found = theory.logistic_match(
        p.constants,
        drawn.gradients,
        drawn.given.targets,
        beta_f,
        beta_g,
        size=s.size,
        carrier=drawn.given.carrier if s.scenario == "b" else None,
        time_f=s.time,
        time_g=s.time_g,
        width_f=s.width,
        width_g=s.width,
        delta=s.delta,
        rule=s.targets,
        centred=centred,
    )
    named = found.g_parts
    pairs = [
        (found.f_hat_beta, f_hat),
        (found.g_hat_beta, leading),
        (found.f_error, errors[0]),
        *zip((named["initial"], named["lazy"], named["concentration"]), g_parts, strict=True),
        (named["xi"], cost),
        (named["psi"], label / s.size),
        (found.g_error, errors[1]),
        (found.holds, holds),
    ]
    return Sample([_gap(*pair) for pair in pairs], _TIGHT)


def _tail_by_hand(rng, s: Setting, p: Problem) -> Sample:
    """What the tail is made of, the probability of a wrong sign, and C at three levels."""
    data = _second_copy(p)
    wanted = by_hand.tail(data, s.width, s.time)
    speeds = tails.derive_speeds(p.constants)
    tail = tails.derive_tail(p.constants, speeds, width=s.width, time=s.time, start=s.start)
    gaps = [_gap(getattr(tail, name), getattr(wanted, name)) / _TIGHT for name in wanted._fields]
    failure = by_hand.log_failure(data, wanted, s.width, s.time, s.start)
    gaps.append(_relative_gap(tail.log_failure(), failure) / _SEARCHED)
    neurons = s.width / 2 if s.start == "doubled" else s.width
    for level in (0.1, 0.01, 1e-5):
        share = level / 2 if s.start == "random" else level
        parts = tail.constant(level)
        gaps.append(_relative_gap(parts["lazy"], wanted.lazy) / _SEARCHED)
        fluctuation = by_hand.concentration(wanted, neurons, share)
        gaps.append(_relative_gap(parts["concentration"], fluctuation) / _SEARCHED)
        if s.start == "random":
            reached = by_hand.log_initial_tail(data, parts["initial"] * s.time, s.width)
            gaps.append(_relative_gap(reached, math.log(share)) / _SEARCHED)
        else:
            gaps.append(np.max(np.abs(parts["initial"])))
    return Sample(np.array(gaps), 1.0)


class Networks(NamedTuple):
    """Many networks of one training set, (samples, m): outputs at z before and after training."""

    before: np.ndarray
    after: np.ndarray


def _many(rng, s: Setting, p: Problem) -> Networks:
    """`s.samples` independent networks at once: with the identity loss neurons do not interact."""
    before, after = np.zeros((2, s.samples, s.points))
    each = s.width // 2 if s.start == "doubled" else s.width
    for part in blocks(s.samples, each * p.x.size):
        count = part.stop - part.start
        net = network(rng, count * each, s.d, s.width)
        readouts = [net.readout, -net.readout] if s.start == "doubled" else [net.readout]
        for readout in readouts:
            start = Network(net.weights.copy(), net.biases.copy(), readout)
            done = train(start, p.x, p.y, p.kernel, s, time=s.time).net
            for total, one in ((before, start), (after, done)):
                u = one.weights @ p.z.T + one.biases[:, None]
                output = readout[:, None] * np.where(u > 0, u, s.slope * u)
                total[part] += output.reshape(count, each, -1).sum(1)
    return Networks(before, after)


def _tail(s: Setting, p: Problem) -> tails.Tail:
    speeds = tails.derive_speeds(p.constants)
    return tails.derive_tail(p.constants, speeds, width=s.width, time=s.time, start=s.start)


def _below_constant(drawn: Networks, s: Setting, p: Problem) -> Sample:
    """The share of networks and points whose one-sided error is beyond C."""
    f = drawn.after - (drawn.before if s.start == "centred" else 0)
    sign, f_hat = np.sign(p.constants.f_hat), p.constants.f_hat
    bound = np.sum(list(_tail(s, p).constant(s.delta).values()), axis=0)
    return Sample(np.mean(sign * (f_hat - f / s.time) > bound), s.delta)


def _wrong_signs(drawn: Networks, s: Setting, p: Problem) -> Sample:
    """The share of networks with another sign than f_hat, point by point."""
    f = drawn.after - (drawn.before if s.start == "centred" else 0)
    wrong = np.mean(f * np.sign(p.constants.f_hat) <= 0, axis=0)
    return Sample(wrong, np.exp(_tail(s, p).log_failure()))


@dataclass(frozen=True)
class _Gradients:
    """A trained network as far as `certify` asks: its input gradients at the training inputs."""

    at_inputs: np.ndarray

    def input_gradient(self, z):
        return self.at_inputs

    def __call__(self, z):
        raise NotImplementedError("only its gradients are known")


def _certificate(s: Setting, p: Problem, gradients, targets, carrier=None) -> theory.Certificate:
    return theory.certify(
        *p.data,
        width=s.width,
        size=s.size,
        targets=targets,
        times=(s.time, s.time_g),
        delta=s.delta,
        start=s.start,
        f=_Gradients(gradients),
        carrier=carrier,
    )


def _certificate_by_hand(rng, s: Setting, p: Problem) -> Sample:
    """Both failure probabilities, all parts, and the points within the budget of delta."""
    drawn, data = _perturbed(rng, s, p), _second_copy(p)
    carrier = drawn.given.carrier if s.scenario == "b" else None
    found = _certificate(s, p, drawn.gradients, drawn.given.targets, carrier)
    r, second = drawn.given.points, drawn.second
    tail_f = by_hand.tail(data, s.width, s.time)
    tail_g = by_hand.tail(second, s.width, s.time_g)
    p_f = np.exp(by_hand.log_failure(data, tail_f, s.width, s.time, s.start))
    p_g = np.exp(by_hand.log_failure(second, tail_g, s.width, s.time_g, s.start))
    leading = by_hand.projection(data, r, by_hand.direction(data), 1 / drawn.nu).sum(0)
    whole = by_hand.projection(data, r, drawn.given.u, np.ones(s.n)).sum(0)
    psi = by_hand.label_bound(data, drawn.given, "fixed", by_hand.Run(2, 1.0, 1.0, 1))
    agree, predicted = data.f_hat * leading > 0, second.f_hat * leading > 0
    # From the theory's own probabilities, which are compared above: at the edge of the budget a
    # difference of rounding must not change a set.
    f_alone = by_hand.within_budget(found.f.failure, data.f_hat != 0, s.delta / 2)
    g_alone = by_hand.within_budget(found.g.failure, predicted, s.delta / 2)
    allowed = f_alone & agree & predicted
    certified = by_hand.within_budget(found.g.failure, allowed, s.delta / 2)
    level = s.delta / 2 / s.points
    neurons = s.width / 2 if s.start == "doubled" else s.width
    share = level / 2 if s.start == "random" else level
    searched = [
        (found.f.failure, p_f),
        (found.g.failure, p_g),
        (found.f.parts["concentration"], by_hand.concentration(tail_f, neurons, share)),
        (found.g.parts["concentration"], by_hand.concentration(tail_g, neurons, share) / s.size),
    ]
    tight = [
        (found.g.leading, leading),
        (found.f.parts["lazy"], tail_f.lazy),
        (found.g.parts["lazy"], tail_g.lazy / s.size),
        (found.g.parts["residual"], np.abs(whole - leading)),
        (found.g.parts["random labels"], psi / s.size),
        (found.agree, agree),
        (found.f.certified, f_alone),
        (found.g.certified, g_alone),
        (found.certified, certified),
    ]
    gaps = [_gap(*pair) / _SEARCHED for pair in searched]
    gaps += [_gap(*pair) / _TIGHT for pair in tight]
    return Sample(np.array(gaps), 1.0)


def _certified_signs(rng, s: Setting, p: Problem) -> Sample:
    """Trains f and g; signs where they are certified to agree."""
    centred = s.start == "centred"
    f = fresh_and_trained(rng, p, s, width=s.width, time=s.time, at=p.x)
    gradients = f.gradient_after - centred * f.gradient_before
    targets = signs(rng, s.n, s.targets)
    carrier = p.x if s.scenario == "b" else None
    found = _certificate(s, p, gradients, targets, carrier)
    second = Problem(p.kernel, found.perturbed, targets, p.z)
    g = fresh_and_trained(rng, second, s, width=s.width, time=s.time_g)
    output_f, output_g = (one.after - centred * one.before for one in (f, g))
    wrong = output_f * output_g <= 0
    return Sample(wrong.astype(float), np.where(found.certified, 0.5, np.nan))


def _lopsided(rng, s: Setting) -> Problem:
    """Three quarters of the labels are +1: with trained biases f_hat and g_hat_w then differ in
    sign at some points, as do g_hat_w and the whole mean output of g.
    """
    p = problem(rng, s)
    y = np.where(np.arange(s.n) % 4 == 0, -1.0, 1.0)
    return Problem(p.kernel, p.x * 0.3, y, p.z * 0.3)


_SMALL = Setting(draws=2, n=16, d=6, points=8, shift=0.4, width=3000, time=0.5, time_g=2.0)
_WIDE = replace(_SMALL, width=10**12, shift=0.0, bias=True, start="centred", targets="fixed")
_MATCHES = (
    replace(_SMALL, slope=0.2),
    replace(_SMALL, start="doubled", scenario="b", size=3.0),
    replace(_SMALL, start="centred", bias=True, slope=0.2, targets="balanced", size=3.0),
    replace(_WIDE, draws=4, size=30.0),
    # So long that C_f is about |f_hat|, and |g_hat| is still beyond C_g.
    replace(_WIDE, draws=4, size=30.0, time=2e5),
)
_LINEAR = replace(_SMALL, slope=0.97, width=10**10, shift=1.0, time=50.0, start="centred")
_LOGISTIC = (
    replace(_SMALL, slope=0.2),
    replace(_SMALL, start="centred", scenario="b", bias=True, slope=0.5, size=3.0),
    replace(_WIDE, draws=4, size=30.0),
)
_TAILS = (
    replace(_SMALL, slope=0.2, bias=True, width=400, start="centred"),
    replace(_SMALL, slope=0.0, width=200, time=3.0, start="doubled"),
    replace(_SMALL, slope=0.5, width=20_000, time=4.0),
)
_CERTIFICATES = (
    replace(_SMALL, slope=0.2, bias=True, size=3.0, width=60_000, start="centred"),
    replace(_SMALL, width=20_000, start="doubled"),
    replace(_SMALL, width=10**6, time=5.0, time_g=40.0, scenario="b", size=3.0),
    replace(_WIDE, draws=4, size=0.3, time_g=1.0),
)
_FEW = {"n": 10, "d": 6, "points": 5, "steps": 2, "momentum": 0.0, "samples": 250}
_LEVEL = Setting(draws=20, width=60, shift=0.0, time=0.01, delta=0.004, **_FEW)
_FAILURE = Setting(draws=20, width=40, shift=0.3, time=0.3, **_FEW)
_STARTS = ("centred", "doubled", "random")
_LEARNT = Setting(draws=8, width=3000, time=0.1, start="centred")
_PLAIN: dict[str, Any] = {"shown": ("width", "time", "start"), "prepare": problem}
CHECKS = (
    Check(
        "6.4",
        "C_f, C_g and where the conditions hold, each evaluated a second time (relative, to 1e-8)",
        "identity",
        _match_by_hand,
        _MATCHES,
        part="constants",
        shown=("width", "start"),
        prepare=_lopsided,
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
        prepare=_lopsided,
    ),
    Check(
        "6.5",
        "the tail's constants, evaluated a second time (relative to 1e-8, or 2e-3 where searched)",
        "identity",
        _tail_by_hand,
        _TAILS,
        part="constants",
        **_PLAIN,
    ),
    Check(
        "6.5",
        "s (f/T - f_hat) <= -C at most at a share delta of networks",
        "expectation",
        _many,
        tuple(replace(_LEVEL, start=start) for start in _STARTS),
        part="level",
        compare=_below_constant,
        one_sided=True,
        fixed=True,
        **_PLAIN,
    ),
    Check(
        "6.5",
        "the share of networks with the other sign is at most the tail's bound",
        "expectation",
        _many,
        tuple(replace(_FAILURE, start=start) for start in _STARTS),
        part="failure",
        compare=_wrong_signs,
        one_sided=True,
        fixed=True,
        **_PLAIN,
    ),
    Check(
        "6.6",
        "a certificate's probabilities, parts and points, evaluated a second time",
        "identity",
        _certificate_by_hand,
        _CERTIFICATES,
        part="constants",
        shown=("width", "start"),
        prepare=_lopsided,
    ),
    Check(
        "6.6",
        "sgn f = sgn g wherever it is certified",
        "probability",
        _certified_signs,
        (_LEARNT,),
        (replace(_LEARNT, draws=60), replace(_LEARNT, draws=20, width=20_000, bias=True, size=4.0)),
        part="signs",
        claim=True,
        **_PLAIN,
    ),
)
