"""What certificates of drawn networks say (theory: 14.5)."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from perturbkernel.display import Described
from perturbkernel.theory.law.holdout import failure_bounds


@dataclass(frozen=True)
class Simulation(Described):
    """How much was drawn, and what the statement pays for it.

    Example:
        >>> simulation = Simulation(pilot=100, draws=400, delta=0.1, confidence=0.99, allowed=24)
        >>> round(simulation.level, 3)
        0.09

    Attributes:
        pilot: networks (or pairs) that chose signs and points; draws: others, which were held
            against the choice.
        delta: the probability that the whole statement may fail.
        confidence: that of the simulation; 1 - confidence is a part of delta.
        allowed: of the draws so many may fail.
    """

    pilot: int
    draws: int
    delta: float
    confidence: float
    allowed: int

    @property
    def level(self) -> float:
        """delta - (1 - confidence): what is left for the network to fail with."""
        return self.delta - (1 - self.confidence)

    def __str__(self) -> str:
        return (
            f"with probability {1 - self.level:.6g} over the initialisation, "
            f"by a simulation of confidence {self.confidence:.6g}: together {1 - self.delta:.6g}"
        )


@dataclass(frozen=True)
class SignCertificate(Described):
    """At which points a network's signs are known before it is drawn. `certify_network` makes it.

    Attributes:
        signs: (m,), +1 and -1: the signs that the statement is about.
        certified: (m,), where it is made.
        leading, deviation: (m,), mean and standard deviation of the pilot's outputs.
        failure: (m,), upper bounds on the probability of the other sign at each point, all of them
            together with the simulation's confidence.
        violations: how many draws had another sign at any certified point.
        simulation: what was drawn, and the levels.
        width, start, time: of the network, its time the effective one; None for `certify_outputs`.
    """

    signs: Float[np.ndarray, " m"]
    certified: Bool[np.ndarray, " m"]
    leading: Float[np.ndarray, " m"] = field(repr=False)
    deviation: Float[np.ndarray, " m"] = field(repr=False)
    failure: Float[np.ndarray, " m"] = field(repr=False)
    violations: int
    simulation: Simulation
    width: int | None = None
    start: str | None = None
    time: float | None = None

    @property
    def share(self) -> float:
        """The fraction of points certified."""
        return float(self.certified.mean())

    @property
    def strength(self) -> Float[np.ndarray, " m"]:
        """sign times mean over standard deviation, (m,); infinite where nothing varies."""
        return strength(self.signs, self.leading, self.deviation)

    def __str__(self) -> str:
        s = self.simulation
        return (
            f"{self.share:.1%} of {len(self.certified)} signs certified, all at once, {s}\n"
            f"{self._network()}{self.violations} of {s.draws} draws had another sign at one of "
            f"them ({s.allowed} allowed); signs chosen by {s.pilot} others"
        )

    def _network(self) -> str:
        if self.width is None:
            return ""
        return f"width {self.width:,}, start {self.start}, T = {self.time:.4g}; "


@dataclass(frozen=True)
class ExperimentCertificate(Described):
    """At which points f, and g trained on f's perturbations, have one sign that is known before
    either is drawn. `certify_experiment` makes it.

    Attributes:
        signs: (m,), the signs that both have: those of f's mean output.
        certified: (m,), where they are certified for both networks, all at once.
        f, g: the statements about each alone, with the whole of delta; g's is that it has the sign
            of f's mean output, over draws of both.
        violations: how many pairs of draws had another sign at any certified point.
        simulation: what was drawn, and the levels.
        targets: (n,), what g is trained on; size: the length of each perturbation.
    """

    signs: Float[np.ndarray, " m"]
    certified: Bool[np.ndarray, " m"]
    f: SignCertificate = field(repr=False)
    g: SignCertificate = field(repr=False)
    violations: int
    simulation: Simulation
    targets: Float[np.ndarray, " n"] = field(repr=False)
    size: float

    @property
    def share(self) -> float:
        """The fraction of points certified."""
        return float(self.certified.mean())

    @property
    def limits(self) -> str:
        """In words, which network keeps the other points from being certified."""
        left = ~self.certified
        if not left.any():
            return "nothing is left to certify"
        f = self.f.strength[left]
        g = self.g.strength[left]
        weaker = f <= g
        said = [_less_sure("f", f[weaker]), _less_sure("g", g[~weaker])]
        reasons = "; ".join(filter(None, said))
        return f"of {int(left.sum())} points not certified: {reasons}"

    def __str__(self) -> str:
        s = self.simulation
        return (
            f"{self.share:.1%} of {len(self.certified)} points certified to agree, all at once, "
            f"{s} (f alone {self.f.share:.1%}, g alone {self.g.share:.1%})\n"
            f"width {self.f.width:,}, start {self.f.start}, T_f = {self.f.time:.4g}, "
            f"T_g = {self.g.time:.4g}, size {self.size:g}; {self.violations} of {s.draws} pairs "
            f"had another sign at one of them ({s.allowed} allowed); signs chosen by {s.pilot} "
            f"others\n{self.limits}"
        )


def _less_sure(name: str, strengths: np.ndarray) -> str:
    if not len(strengths):
        return ""
    typical = float(np.median(strengths))
    return (
        f"{name} is the less sure at {len(strengths)} "
        f"(median mean / standard deviation {typical:.2g})"
    )


def strength(signs: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """signs * mean / deviation; where nothing varies, infinite, or -infinite for a wrong sign."""
    signed = signs * mean
    still = np.where(signed > 0, np.inf, -np.inf)
    return np.divide(signed, deviation, out=still, where=deviation > 0)


def point_failures(wrong: Bool[np.ndarray, "draws m"], confidence: float) -> np.ndarray:
    """Upper bounds on the probability of a wrong sign at each point, right at all of them."""
    draws, points = wrong.shape
    failures = wrong.sum(axis=0)
    error = (1 - confidence) / points
    return failure_bounds(failures, draws, error)
