"""Checks of 14.5: certificates without laziness, against networks trained in NumPy."""

from dataclasses import replace

import jax
import numpy as np

from perturbkernel import theory
from perturbkernel.training.dynamics import HeavyBall
from perturbkernel.verify.draws import (
    Network,
    Problem,
    fresh_and_trained,
    network,
    preactivations,
    problem,
    row_norms,
    signs,
    train,
)
from perturbkernel.verify.protocol import Check, Sample, Setting


def _descent(s: Setting, time: float) -> HeavyBall:
    """The steps that `draws.train` takes."""
    rate = time / HeavyBall(1.0, s.steps, s.momentum).effective_time
    return HeavyBall(rate, s.steps, s.momentum)


def _key(rng) -> jax.Array:
    return jax.random.key(int(rng.integers(2**31)))


def _trained_outputs(rng, s: Setting, p: Problem) -> np.ndarray:
    """Outputs of `s.samples` networks of s.width, less their start if centred, (samples, m)."""
    doubled = s.start == "doubled"
    each = s.width // 2 if doubled else s.width
    net = network(rng, s.samples * each, s.d, s.width)
    total = np.zeros((s.samples, s.points))
    readouts = [net.readout]
    if doubled:
        readouts.append(-net.readout)
    for readout in readouts:
        before = Network(net.weights.copy(), net.biases.copy(), readout)
        after = train(before, p.x, p.y, p.kernel, s, time=s.time).net
        known = [(after, 1.0)]
        if s.start == "centred":
            known.append((Network(net.weights, net.biases, readout), -1.0))
        for one, sign in known:
            u = preactivations(one, p.z)
            activated = np.where(u > 0, u, s.slope * u)
            terms = sign * readout[:, None] * activated
            by_network = terms.reshape(s.samples, each, -1)
            total += by_network.sum(1)
    return total


def _broken(rng, s: Setting, p: Problem) -> Sample:
    """The share of trained networks that have another sign at any certified point."""
    found = theory.certify_network(
        *p.data,
        width=s.width,
        dynamics=_descent(s, s.time),
        delta=s.delta,
        start=s.start,
        draws=s.samples,
        pilot=s.samples // 4,
        key=_key(rng),
    )
    wrong = found.signs * _trained_outputs(rng, s, p) <= 0
    share = wrong[:, found.certified].any(axis=1).mean()
    return Sample(share, s.delta)


def _pair_breaks(rng, s: Setting, p: Problem) -> Sample:
    """Trains f and g; signs where the whole statement is certified."""
    centred = s.start == "centred"
    targets = signs(rng, s.n, s.targets)
    carrier = p.x if s.scenario == "b" else np.zeros_like(p.x)
    found = theory.certify_experiment(
        *p.data,
        width=s.width,
        dynamics=(_descent(s, s.time), _descent(s, s.time_g)),
        size=s.size,
        targets=targets,
        delta=s.delta,
        start=s.start,
        carrier=carrier,
        draws=s.samples,
        pilot=s.samples // 4,
        key=_key(rng),
    )
    f = fresh_and_trained(rng, p, s, width=s.width, time=s.time, at=p.x)
    gradient = f.gradient_after - centred * f.gradient_before
    unit = gradient / row_norms(gradient)[:, None]
    perturbed = carrier + s.size * targets[:, None] * unit
    second = Problem(p.kernel, perturbed, targets, p.z)
    g = fresh_and_trained(rng, second, s, width=s.width, time=s.time_g)
    output_f = found.signs * (f.after - centred * f.before)
    output_g = found.signs * (g.after - centred * g.before)
    wrong = (output_f <= 0) | (output_g <= 0)
    return Sample(wrong.astype(float), np.where(found.certified, 0.5, np.nan))


# Far from lazy: some half of the gates flip, and signs do go wrong.
_NETWORKS = Setting(
    draws=16, width=40, n=10, d=6, points=80, shift=0.5, time=2.0, steps=6, bias=True, samples=400
)
_PAIRS = Setting(
    draws=20,
    width=40,
    n=8,
    d=6,
    points=60,
    shift=0.8,
    time=2.0,
    time_g=8.0,
    size=2.0,
    steps=6,
    bias=True,
    samples=100,
)
CHECKS = (
    Check(
        "14.5",
        "of trained networks a share delta at most breaks a certificate",
        "expectation",
        _broken,
        tuple(replace(_NETWORKS, start=start) for start in ("random", "centred", "doubled")),
        part="networks",
        prepare=problem,
        fixed=True,
        one_sided=True,
        shown=("width", "time", "start"),
    ),
    Check(
        "14.5",
        "sgn f = sgn g wherever it is certified",
        "probability",
        _pair_breaks,
        (_PAIRS, replace(_PAIRS, start="centred", scenario="b")),
        (replace(_PAIRS, draws=200), replace(_PAIRS, draws=100, start="centred", scenario="b")),
        part="signs",
        prepare=problem,
        shown=("width", "start"),
        claim=True,
    ),
)
