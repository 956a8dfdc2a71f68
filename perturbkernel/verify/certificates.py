"""Checks of 6.5 and 6.6: one-sided tails, and certificates made of them.

Most of a bound's constants never show in simulated networks, being safe by known factors: beside
networks stand rows that evaluate every constant a second time (`by_hand`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from perturbkernel import theory
from perturbkernel.theory import tails
from perturbkernel.verify import by_hand, tails_by_hand
from perturbkernel.verify.draws import (
    Network,
    Problem,
    blocks,
    fresh_and_trained,
    network,
    preactivations,
    problem,
    signs,
    train,
)
from perturbkernel.verify.matching import given
from perturbkernel.verify.protocol import Check, Sample, Setting

TIGHT = 1e-8  # relative, of numbers computed twice in float64
SEARCHED = 2e-3  # relative, of bounds that are the best of a grid of rates


def second_copy(p: Problem) -> by_hand.Data:
    return by_hand.Data(p.kernel.slope, int(p.kernel.train_bias), p.x, p.y, p.z)


def gap(found, wanted) -> np.ndarray:
    """The largest difference, relative to the largest number."""
    found = np.asarray(found, float)
    wanted = np.asarray(wanted, float)
    largest = np.abs(wanted).max()
    difference = np.max(np.abs(found - wanted))
    return difference / (largest if largest > 0 else 1.0)


def _relative_gap(found, wanted) -> np.ndarray:
    """The largest difference relative to the number itself, 0 where both are the same."""
    found = np.asarray(found, float)
    wanted = np.asarray(wanted, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.abs(found - wanted) / np.abs(wanted)
    return np.max(np.where(found == wanted, 0, relative))


class Drawn(NamedTuple):
    """Perturbations along noisy gradients, and what is said of the network trained on them.

    Attributes:
        given: the perturbations.
        nu: (n,), the lengths of the gradients over T.
        data: the first network's training set.
        second: that of the second network.
        gradients: (n, d), those of the first network at its training points.
    """

    given: by_hand.Given
    nu: np.ndarray
    data: by_hand.Data
    second: by_hand.Data
    gradients: np.ndarray


def perturbed(rng, s: Setting, p: Problem) -> Drawn:
    r = given(rng, s, p)
    made = by_hand.Given(r.carrier, r.u, r.targets, s.size)
    data = second_copy(p)
    second = replace(data, x=made.points, y=r.targets)
    gradients = s.time * r.nu[:, None] * r.u
    return Drawn(made, r.nu, data, second, gradients)


def _tail_by_hand(rng, s: Setting, p: Problem) -> Sample:
    """What the tail is made of, the probability of a wrong sign, and C at three levels."""
    data = second_copy(p)
    wanted = tails_by_hand.tail(data, s.width, s.time)
    tail = _tail(s, p)
    tight = [gap(getattr(tail, name), getattr(wanted, name)) for name in wanted._fields]
    failure = tails_by_hand.log_failure(data, wanted, s.width, s.time, s.start)
    searched = [_relative_gap(tail.log_failure(), failure)]
    exact = []
    for level in (0.1, 0.01, 1e-5):
        share = _share(s, level)
        parts = tail.constant(level)
        fluctuation = tails_by_hand.concentration(wanted, _neurons(s), share)
        searched.append(_relative_gap(parts["lazy"], wanted.lazy))
        searched.append(_relative_gap(parts["concentration"], fluctuation))
        if s.start == "random":
            reached = tails_by_hand.log_initial_tail(data, parts["initial"] * s.time, s.width)
            searched.append(_relative_gap(reached, math.log(share)))
        else:
            exact.append(np.max(np.abs(parts["initial"])))
    return _within_tolerances(tight, searched, exact)


def _within_tolerances(
    tight: Sequence[np.ndarray], searched: Sequence[np.ndarray], exact: Sequence[np.ndarray] = ()
) -> Sample:
    """Gaps in units of what is allowed of them."""
    gaps = [np.array(tight) / TIGHT, np.array(searched) / SEARCHED, np.array(exact)]
    return Sample(np.concatenate(gaps), 1.0)


def _neurons(s: Setting) -> float:
    """Independent summands of a network. Theory: 4.4."""
    return s.width / 2 if s.start == "doubled" else s.width


def _share(s: Setting, level: float) -> float:
    """The part of a level that training gets; the initial function gets the rest."""
    return level / 2 if s.start == "random" else level


class Networks(NamedTuple):
    """Many networks of one training set, (samples, m): outputs at z before and after training."""

    before: np.ndarray
    after: np.ndarray


def _many(rng, s: Setting, p: Problem) -> Networks:
    """`s.samples` independent networks at once: with the identity loss neurons do not interact."""
    doubled = s.start == "doubled"
    before = np.zeros((s.samples, s.points))
    after = np.zeros((s.samples, s.points))
    each = s.width // 2 if doubled else s.width
    for part in blocks(s.samples, each * p.x.size):
        count = part.stop - part.start
        net = network(rng, count * each, s.d, s.width)
        readouts = [net.readout, -net.readout] if doubled else [net.readout]
        for readout in readouts:
            start = Network(net.weights.copy(), net.biases.copy(), readout)
            done = train(start, p.x, p.y, p.kernel, s, time=s.time).net
            for total, one in ((before, start), (after, done)):
                u = preactivations(one, p.z)
                activation = np.where(u > 0, u, s.slope * u)
                output = readout[:, None] * activation
                of_networks = output.reshape(count, each, -1)
                total[part] += of_networks.sum(1)
    return Networks(before, after)


def _learnt(drawn: Networks, s: Setting) -> np.ndarray:
    """The outputs that the theorem speaks of: after training, or their change if centred."""
    return drawn.after - drawn.before if s.start == "centred" else drawn.after


def _tail(s: Setting, p: Problem) -> tails.Tail:
    speeds = tails.derive_speeds(p.constants)
    return tails.derive_tail(p.constants, speeds, width=s.width, time=s.time, start=s.start)


def _below_constant(drawn: Networks, s: Setting, p: Problem) -> Sample:
    """The share of networks and points whose one-sided error is beyond C."""
    f_hat = p.constants.f_hat
    shortfall = np.sign(f_hat) * (f_hat - _learnt(drawn, s) / s.time)
    parts = _tail(s, p).constant(s.delta)
    bound = np.sum(list(parts.values()), axis=0)
    return Sample(np.mean(shortfall > bound), s.delta)


def _wrong_signs(drawn: Networks, s: Setting, p: Problem) -> Sample:
    """The share of networks with another sign than f_hat, point by point."""
    signed = _learnt(drawn, s) * np.sign(p.constants.f_hat)
    wrong = np.mean(signed <= 0, axis=0)
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
    drawn = perturbed(rng, s, p)
    data = drawn.data
    second = drawn.second
    carrier = drawn.given.carrier if s.scenario == "b" else None
    found = _certificate(s, p, drawn.gradients, drawn.given.targets, carrier)
    tail_f = tails_by_hand.tail(data, s.width, s.time)
    tail_g = tails_by_hand.tail(second, s.width, s.time_g)
    log_f = tails_by_hand.log_failure(data, tail_f, s.width, s.time, s.start)
    log_g = tails_by_hand.log_failure(second, tail_g, s.width, s.time_g, s.start)
    r = drawn.given.points
    leading = by_hand.projection(data, r, by_hand.direction(data), 1 / drawn.nu).sum(0)
    whole = by_hand.projection(data, r, drawn.given.u, np.ones(s.n)).sum(0)
    # Of fixed targets psi is known: the run does not matter.
    psi = by_hand.label_bound(data, drawn.given, "fixed", by_hand.Run(2, 1.0, 1.0, 1))
    agree = data.f_hat * leading > 0
    predicted = second.f_hat * leading > 0
    # From the theory's own probabilities, which are compared above: at the edge of the budget a
    # difference of rounding must not change a set.
    f_alone = tails_by_hand.within_budget(found.f.failure, data.f_hat != 0, s.delta / 2)
    g_alone = tails_by_hand.within_budget(found.g.failure, predicted, s.delta / 2)
    allowed = f_alone & agree & predicted
    certified = tails_by_hand.within_budget(found.g.failure, allowed, s.delta / 2)
    share = _share(s, s.delta / 2 / s.points)
    fluctuation_f = tails_by_hand.concentration(tail_f, _neurons(s), share)
    fluctuation_g = tails_by_hand.concentration(tail_g, _neurons(s), share)
    searched = [
        (found.f.failure, np.exp(log_f)),
        (found.g.failure, np.exp(log_g)),
        (found.f.parts["concentration"], fluctuation_f),
        (found.g.parts["concentration"], fluctuation_g / s.size),
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
    return _within_tolerances(
        [gap(*pair) for pair in tight],
        [gap(*pair) for pair in searched],
    )


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
    output_f = f.after - centred * f.before
    output_g = g.after - centred * g.before
    wrong = output_f * output_g <= 0
    return Sample(wrong.astype(float), np.where(found.certified, 0.5, np.nan))


def lopsided(rng, s: Setting) -> Problem:
    """A problem with three quarters of the labels +1.

    With trained biases f_hat and g_hat_w then differ in sign at some points, as do g_hat_w and the
    whole mean output of g.
    """
    p = problem(rng, s)
    y = np.where(np.arange(s.n) % 4 == 0, -1.0, 1.0)
    return Problem(p.kernel, p.x * 0.3, y, p.z * 0.3)


SMALL = Setting(draws=2, n=16, d=6, points=8, shift=0.4, width=3000, time=0.5, time_g=2.0)
WIDE = replace(SMALL, width=10**12, shift=0.0, bias=True, start="centred", targets="fixed")
_TAILS = (
    replace(SMALL, slope=0.2, bias=True, width=400, start="centred"),
    replace(SMALL, slope=0.0, width=200, time=3.0, start="doubled"),
    replace(SMALL, slope=0.5, width=20_000, time=4.0),
)
_CERTIFICATES = (
    replace(SMALL, slope=0.2, bias=True, size=3.0, width=60_000, start="centred"),
    replace(SMALL, width=20_000, start="doubled"),
    replace(SMALL, width=10**6, time=5.0, time_g=40.0, scenario="b", size=3.0),
    replace(WIDE, draws=4, size=0.3, time_g=1.0),
)
# Many small networks at once.
_FEW = {"n": 10, "d": 6, "points": 5, "steps": 2, "momentum": 0.0, "samples": 250}
_LEVEL = Setting(draws=20, width=60, shift=0.0, time=0.01, delta=0.004, **_FEW)
_FAILURE = Setting(draws=20, width=40, shift=0.3, time=0.3, **_FEW)
_STARTS = ("centred", "doubled", "random")
_LEARNT = Setting(draws=8, width=3000, time=0.1, start="centred")
_PLAIN: dict[str, Any] = {"shown": ("width", "time", "start"), "prepare": problem}
CHECKS = (
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
        prepare=lopsided,
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
