"""Checks of section 5: the direction of perturbations."""

from typing import Any

import numpy as np

from perturbkernel import theory
from perturbkernel.verify import draws
from perturbkernel.verify.draws import (
    Problem,
    fresh_and_trained,
    network,
    problem,
    row_cosines,
    row_norms,
    train,
)
from perturbkernel.verify.protocol import Check, Sample, Setting


def _decomposed(rng, s: Setting, p: Problem):
    """The network before and after training, and the parts of xi."""
    net = network(rng, s.width, s.d)
    done = train(net, p.x, p.y, p.kernel, s, time=s.time).net
    parts = theory.decompose_gradient(*p.data, *net, done.weights, done.biases, time=s.time)
    return net, done, parts


def _decomposition(drawn, s: Setting, p: Problem) -> Sample:
    """The parts add up to the trained network's gradient over T minus v."""
    _, done, parts = drawn
    v = theory.direction(*p.data)
    xi = draws.gradients(done, p.z, s.slope) / s.time - v
    added = parts.initial + parts.flips + parts.concentration + parts.lazy
    residuals = [added - xi, parts.total - xi]
    size = max(1.0, np.abs(xi).max())
    return Sample(np.abs(residuals), 1e-10 * size)


def _part(name: str):
    def compare(drawn, s: Setting, p: Problem) -> Sample:
        _, _, parts = drawn
        bounds = theory.bounds.gradient_bounds(
            p.constants, width=s.width, time=s.time, delta=s.delta
        )
        scale = row_norms(p.constants.direction) if name == "total" else None
        return Sample(row_norms(getattr(parts, name)), getattr(bounds, name), scale)

    return compare


def _gate_motion(rng, s: Setting, p: Problem) -> Sample:
    size = row_norms(theory.gate_motion(*p.data))
    return Sample(
        size, theory.bounds.gate_motion_bound(p.constants), row_norms(p.constants.direction)
    )


def _limit(rng, s: Setting, p: Problem) -> Sample:
    """How much of zeta is in the mean gradient of networks.

    1 if they converge to v + zeta, 0 if they converge to v.
    """
    sums = fresh_and_trained(rng, p, s, width=s.width, time=s.time, at=p.z)
    zeta = theory.gate_motion(*p.data)
    mean = (sums.gradient_after - sums.gradient_before) / s.time - theory.direction(*p.data)
    return Sample(np.sum(mean * zeta) / np.sum(zeta**2), 1.0, slack=0.2)


def _flips_measured(drawn, s: Setting, p: Problem) -> Sample:
    net, _, parts = drawn
    sets = theory.certified_gates(*p.data, *net, time=s.time, keep_sets=True).sets
    assert sets is not None
    bound = theory.bounds.flips_bound_measured(
        p.kernel, net.weights, net.readout, sets, time=s.time
    )
    return Sample(row_norms(parts.flips), bound, row_norms(p.constants.direction))


def _cosine(rng, s: Setting, p: Problem) -> Sample:
    """1 - cosine against 1 - its lower bound, at points where |xi| < |v|."""
    sums = fresh_and_trained(rng, p, s, width=s.width, time=s.time, at=p.z)
    change = sums.gradient_after
    if s.start == "centred":
        change = change - sums.gradient_before
    cosine = row_cosines(change, p.constants.direction)
    bound = theory.bounds.measured_cosine_bound(p.constants, change, time=s.time)
    defined = np.where(np.isnan(bound), np.nan, 1.0)
    return Sample(1 - cosine, 1 - bound, defined)


_FULL = (
    Setting(draws=30, width=1000, time=0.3),
    Setting(draws=30, width=10000, time=1.0),
    Setting(draws=30, width=10000, slope=0.2, bias=True, time=1.0),
    Setting(draws=10, width=10000, d=100, n=50),
)
_BOUNDS: dict[str, Any] = {
    "kind": "probability",
    "draw": _decomposed,
    "settings": (Setting(draws=25, width=4000, slope=0.2, bias=True),),
    "full": _FULL,
    "prepare": problem,
    "shown": ("width", "time"),
}
_NET: dict[str, Any] = {"prepare": problem, "shown": ("width", "time")}
_COSINE = (
    Setting(draws=20, width=4000, time=1.0),
    Setting(draws=20, width=1000, slope=0.2, bias=True, start="centred"),
)
CHECKS = (
    Check(
        "5.1",
        "xi_1 + xi_2 + xi_3 + xi_4 = grad f / T - v exactly (to 1e-10)",
        "identity",
        _decomposed,
        (Setting(draws=10, width=500, slope=0.2, bias=True, time=1.0),),
        compare=_decomposition,
        **_NET,
    ),
    Check(
        "5.2",
        "|xi_1| <= B_1, the initial gradient",
        compare=_part("initial"),
        part="B_1",
        **_BOUNDS,
    ),
    Check(
        "5.2", "|xi_2| <= B_2, gates that flipped", compare=_part("flips"), part="B_2", **_BOUNDS
    ),
    Check(
        "5.2", "|xi_3| <= B_3, concentration", compare=_part("concentration"), part="B_3", **_BOUNDS
    ),
    Check("5.2", "|xi_4| <= B_4, lazy training", compare=_part("lazy"), part="B_4", **_BOUNDS),
    Check(
        "5.2",
        "|xi| <= B_xi, their sum, to show that the gradient is along v",
        compare=_part("total"),
        part="a priori",
        resolves="|v|",
        hopeless=True,
        **_BOUNDS,
    ),
    Check(
        "5.3",
        "|zeta| <= its bound",
        "surely",
        _gate_motion,
        (Setting(draws=50, slope=0.2, bias=True),),
        prepare=problem,
        resolves="|v|",
    ),
    Check(
        "5.3",
        "gradients of networks tend to v + zeta, not to v: share of zeta in their mean",
        "expectation",
        _limit,
        (Setting(draws=50, width=4000, n=10, d=10),),
        (Setting(draws=100, width=10000, n=10, d=10),),
        part="limit",
        fixed=True,
        **_NET,
    ),
    Check(
        "5.4",
        "|xi_2| <= its bound from the drawn network",
        "surely",
        _decomposed,
        (Setting(draws=10, width=4000, slope=0.2, bias=True),),
        _FULL,
        part="(i)",
        compare=_flips_measured,
        resolves="|v|",
        **_NET,
    ),
    Check(
        "5.4",
        "1 - cos(grad f, v) <= 1 - sqrt(1 - |xi|^2/|v|^2) from the trained network",
        "surely",
        _cosine,
        _COSINE,
        (*_FULL, Setting(draws=50, width=4000, start="centred")),
        part="(ii)",
        resolves="1",
        **_NET,
    ),
)
