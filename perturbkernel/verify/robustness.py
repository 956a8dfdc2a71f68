"""Checks of section 17: certificates against a search, in the limit and on networks that are drawn,
label flips against all relabellings, and a network's own gradient against drawn networks. The
kernel and its gradient are written out here once more.
"""

from typing import Any, NamedTuple

import numpy as np

from perturbkernel import theory
from perturbkernel.attacks import certificates, flips
from perturbkernel.learning import split as splits
from perturbkernel.training.dynamics import GradientFlow
from perturbkernel.training.fit import fit
from perturbkernel.verify.by_hand import angles, gate_moment, lengths
from perturbkernel.verify.draws import (
    Network,
    Problem,
    gradients,
    network,
    outputs,
    problem,
    row_norms,
    train,
)
from perturbkernel.verify.protocol import Check, Sample, Setting

_NORMS = ("l2", "linf")
_ROUNDS = 30  # of the search, which is over after a few
_HALVINGS = 60
_STEPS = np.linspace(0, 1, 17)[1:]  # of a walk away from an input, in units of its length


class _Rows(NamedTuple):
    """K(z_j, x_n), (m, n), and its gradients in z, (m, n, d)."""

    values: np.ndarray
    gradients: np.ndarray


def _rows(p: Problem, z: np.ndarray) -> _Rows:
    """Of the queries z, none of which is a training point."""
    x = p.x
    slope = p.kernel.slope
    d = x.shape[1]
    s_x = lengths(x)[None]
    s_z = lengths(z)[:, None]
    products = z @ x.T
    rho = (1 + products / d) / (s_z * s_x)
    cosine = np.clip(rho, -1, 1)
    theta = np.arccos(cosine)
    cone = (1 - slope) ** 2 / (2 * np.pi)
    gates = gate_moment(slope, theta)
    factor = products + float(p.kernel.train_bias)
    turning = cone * factor / (d * np.sin(theta))
    along = gates + turning / (s_x * s_z)
    back = turning * cosine / s_z**2
    along_x = along[:, :, None] * x
    along_z = back[:, :, None] * z[:, None]
    return _Rows(gates * factor, along_x - along_z)


def _new_points(s: Setting, p: Problem) -> np.ndarray:
    return p.z[s.points // 4 :]


def _trained(s: Setting, p: Problem) -> Any:
    flow = GradientFlow(s.time)
    return fit(p.kernel, p.x, p.y, loss="squared", dynamics=flow, precision=64)


def _operator(s: Setting, p: Problem) -> np.ndarray:
    """q(K), (n, n): gradient flow on the squared loss to the time of the setting."""
    factor = p.x @ p.x.T + float(s.bias)
    gates = gate_moment(s.slope, angles(p.x, p.x))
    eigenvalues, vectors = np.linalg.eigh(gates * factor)
    learned = -np.expm1(-s.time * eigenvalues / s.n)
    q = learned / eigenvalues
    return (vectors * q) @ vectors.T


def _certified(rng, s: Setting, p: Problem) -> Sample:
    """Certified sizes against what a search for the boundary of the same predictor finds."""
    f = _trained(s, p)
    z = _new_points(s, p)
    dual = np.asarray(f.dual_coef, float)
    certified = []
    found = []
    for norm in _NORMS:
        certificate = certificates.certified_size(f, z, norm=norm)
        reached = _boundary(p, dual, z, norm)
        certified.append(certificate.size)
        found.append(reached)
    return Sample(np.array(certified), np.array(found))


def _boundary(p: Problem, dual: np.ndarray, z: np.ndarray, norm: str) -> np.ndarray:
    """The size of perturbations that change the sign, (m,): Newton's method toward the nearest
    point of the boundary, then bisection on the way there; infinite where it does not arrive.
    """
    delta = np.zeros_like(z)
    for _ in range(_ROUNDS):
        value, slopes = _of_predictor(p, dual, z + delta)
        wanted = np.sum(slopes * delta, axis=1) - value
        step = slopes if norm == "l2" else np.sign(slopes)
        gain = np.sum(slopes * step, axis=1)
        delta = (wanted / gain)[:, None] * step
    start, _ = _of_predictor(p, dual, z)

    def changes(share: np.ndarray) -> np.ndarray:
        """Whether the sign is another one after these shares of the way, (m,)."""
        value, _ = _of_predictor(p, dual, z + share[:, None] * delta)
        return value * start <= 0

    low = np.zeros(len(z))
    high = np.full(len(z), 1.5)
    arrives = changes(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        changed = changes(middle)
        low = np.where(changed, low, middle)
        high = np.where(changed, middle, high)
    size = row_norms(delta) if norm == "l2" else np.abs(delta).max(axis=1)
    return np.where(arrives, high * size, np.inf)


def _of_predictor(p: Problem, dual: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outputs, (m,), and gradients, (m, d)."""
    rows = _rows(p, z)
    slopes = np.einsum("mnd,n->md", rows.gradients, dual)
    return rows.values @ dual, slopes


def _of_every_network(rng, s: Setting, p: Problem) -> Sample:
    """Certified sizes of all networks of a width against a search on one that is trained."""
    z = _new_points(s, p)
    f = fit(p.kernel, p.x, p.y, dynamics=GradientFlow(s.time), precision=64)
    certified = certificates.certified_size(f, z, width=s.width, failure=s.delta / len(z))
    half = network(rng, s.width // 2, s.d, s.width)
    start = Network(*theory.doubled(*half))
    net = train(start, p.x, p.y, p.kernel, s, time=s.time).net
    return Sample(certified.size, _nearest(net, z, certified.decision, s.slope))


def _nearest(net: Network, z: np.ndarray, decision: np.ndarray, slope: float) -> np.ndarray:
    """The smallest l2 sizes, (m,), at which walks down the network's gradient leave the decision;
    each walk has the gradient where the one before ended. Infinite where none does.
    """
    least = np.full(len(z), np.inf)
    ends = z
    for _ in range(3):
        steep = -decision[:, None] * gradients(net, ends, slope)
        scale = 2 * row_norms(z) / row_norms(steep)
        walk = scale[:, None] * steep
        steps = _STEPS[:, None, None]
        at_steps = z[None] + steps * walk
        at_steps = at_steps.reshape(-1, z.shape[1])
        found = outputs(net, at_steps, slope).reshape(len(_STEPS), -1)
        left = decision * found <= 0
        leaves = left.any(0)
        high = np.where(leaves, _STEPS[left.argmax(0)], 1.0)
        low = high - _STEPS[0]
        for _ in range(20):
            middle = (low + high) / 2
            at_middle = z + middle[:, None] * walk
            inside = decision * outputs(net, at_middle, slope) > 0
            low = np.where(inside, middle, low)
            high = np.where(inside, high, middle)
        length = high * row_norms(walk)
        least = np.where(leaves, np.minimum(least, length), least)
        ends = z + high[:, None] * walk
    return least


def _fewest(rng, s: Setting, p: Problem) -> Sample:
    """Numbers of flips against the smallest of all 2^n relabellings."""
    z = _new_points(s, p)
    found = flips.certified_flips(_trained(s, p), z)
    weights = _rows(p, z).values @ _operator(s, p)
    # A row for each subset of the points: bit n of its number says whether y_n is flipped.
    numbers = np.arange(2**s.n)[:, None]
    subsets = (numbers >> np.arange(s.n)) % 2
    labels = p.y * (1 - 2 * subsets)
    after = labels @ weights.T
    before = weights @ p.y
    changed = after * before <= 0
    count = subsets.sum(axis=1)[:, None]
    enough = np.where(changed, count, s.n + 1)
    fewest = enough.min(axis=0)
    off = np.abs(np.asarray(found.flips) - fewest)
    return Sample(off, 0.5)


class _Own(NamedTuple):
    """A problem whose networks differ by their start.

    Attributes:
        problem: kernel, training data, queries.
        pull: (m, d, n), what the outputs at the training points take off the gradient at z.
        expected: (m,), the expected square.
    """

    problem: Problem
    pull: np.ndarray
    expected: np.ndarray


def _own_parts(rng, s: Setting) -> _Own:
    p = problem(rng, s)
    z = _new_points(s, p)
    part = splits.split(_trained(s, p), z)
    slopes = _rows(p, z).gradients
    pull = np.einsum("mnd,nl->mdl", slopes, _operator(s, p))
    return _Own(p, pull, np.asarray(part.expected_own, float))


def _own_square(rng, s: Setting, own: _Own) -> Sample:
    """|grad own|^2 of a network that starts at random, in units of its expectation."""
    p = own.problem
    start = network(rng, s.width, s.d)
    at_z = gradients(start, _new_points(s, p), s.slope)
    at_x = outputs(start, p.x, s.slope)
    left = at_z - own.pull @ at_x
    square = np.sum(left**2, axis=1)
    return Sample(square / own.expected, 1.0)


CHECKS = (
    Check(
        "17.1",
        "certified sizes (l2, linf) are below what a search for the boundary finds",
        "surely",
        _certified,
        (
            Setting(draws=10, slope=0.2, bias=True, time=30.0, shift=0.3),
            Setting(draws=10, time=3.0, shift=0.3),
        ),
        (Setting(draws=40, n=100, d=100, points=60, time=30.0, shift=0.2),),
        prepare=problem,
        shown=("time",),
    ),
    Check(
        "17.2",
        "the smallest number of label flips is that over all 2^N relabellings",
        "identity",
        _fewest,
        (Setting(draws=10, n=10, d=5, slope=0.2, bias=True, time=30.0, shift=0.3),),
        (Setting(draws=30, n=14, d=10, time=30.0, shift=0.3),),
        prepare=problem,
        shown=("time",),
    ),
    Check(
        "17.3",
        "E|grad own|^2 over networks that start at random is the closed form",
        "expectation",
        _own_square,
        (Setting(draws=400, width=500, slope=0.2, bias=True, time=30.0, shift=0.3),),
        (Setting(draws=2000, width=2000, n=50, d=50, time=30.0, shift=0.3),),
        prepare=_own_parts,
        fixed=True,
        shown=("time",),
    ),
    Check(
        "17.4",
        "no search on a trained network of that width ends inside a certified size",
        "probability",
        _of_every_network,
        (
            Setting(draws=10, width=4000, d=3, slope=0.3, bias=True, shift=1.5),
            Setting(draws=10, width=8000, d=3, time=0.1, shift=1.5),
        ),
        (Setting(draws=30, width=40_000, d=5, time=0.1),),
        prepare=problem,
        shown=("time", "width"),
    ),
)
