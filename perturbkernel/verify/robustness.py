"""Checks of section 17: certificates against a search, label flips against all relabellings, and a
network's own gradient against networks that are drawn. The kernel and its gradient are written out
here once more.
"""

from typing import Any, NamedTuple

import numpy as np

from perturbkernel.attacks import certificates, flips
from perturbkernel.learning import split as splits
from perturbkernel.training.dynamics import GradientFlow
from perturbkernel.training.fit import fit
from perturbkernel.verify.draws import Problem, gradients, network, outputs, problem, row_norms
from perturbkernel.verify.protocol import Check, Sample, Setting

_NORMS = ("l2", "linf")
_ROUNDS = 30  # of the search, which is over after a few
_HALVINGS = 60


class _Rows(NamedTuple):
    """K(z_j, x_n), (m, n), and its gradients in z, (m, n, d)."""

    values: np.ndarray
    gradients: np.ndarray


def _rows(p: Problem, z: np.ndarray) -> _Rows:
    """Of the queries z, none of which is a training point."""
    x, slope = p.x, p.kernel.slope
    d = x.shape[1]
    s_x = np.sqrt(1 + np.sum(x**2, axis=1) / d)[None]
    s_z = np.sqrt(1 + np.sum(z**2, axis=1) / d)[:, None]
    products = z @ x.T
    cosine = np.clip((1 + products / d) / (s_z * s_x), -1, 1)
    theta = np.arccos(cosine)
    cone = (1 - slope) ** 2 / (2 * np.pi)
    gates = (1 + slope**2) / 2 - cone * theta
    factor = products + float(p.kernel.train_bias)
    turning = cone * factor / (d * np.sin(theta))
    along = gates + turning / (s_x * s_z)
    back = turning * cosine / s_z**2
    slopes = along[:, :, None] * x - back[:, :, None] * z[:, None]
    return _Rows(gates * factor, slopes)


def _new_points(s: Setting, p: Problem) -> np.ndarray:
    return p.z[s.points // 4 :]


def _trained(s: Setting, p: Problem) -> Any:
    flow = GradientFlow(s.time)
    return fit(p.kernel, p.x, p.y, loss="squared", dynamics=flow, precision=64)


def _operator(s: Setting, p: Problem) -> np.ndarray:
    """q(K), (n, n): gradient flow on the squared loss to the time of the setting."""
    products = p.x @ p.x.T
    lengths = np.sqrt(1 + np.sum(p.x**2, axis=1) / s.d)
    cosine = np.clip((1 + products / s.d) / np.outer(lengths, lengths), -1, 1)
    np.fill_diagonal(cosine, 1.0)
    cone = (1 - s.slope) ** 2 / (2 * np.pi)
    gates = (1 + s.slope**2) / 2 - cone * np.arccos(cosine)
    eigenvalues, vectors = np.linalg.eigh(gates * (products + float(s.bias)))
    decayed = -np.expm1(-s.time * eigenvalues / s.n) / eigenvalues
    return (vectors * decayed) @ vectors.T


def _certified(rng, s: Setting, p: Problem) -> Sample:
    """Certified sizes against what a search for the boundary of the same predictor finds."""
    f = _trained(s, p)
    z = _new_points(s, p)
    dual = np.asarray(f.dual_coef, float)
    certified, found = [], []
    for norm in _NORMS:
        certificate = certificates.certified_size(f, z, norm=norm)
        certified.append(certificate.size)
        reached = _boundary(p, dual, z, norm)
        found.append(reached)
    return Sample(np.array(certified), np.array(found))


def _boundary(p: Problem, dual: np.ndarray, z: np.ndarray, norm: str) -> np.ndarray:
    """The size of perturbations that change the sign, (m,): Newton's method toward the nearest
    point of the boundary, then bisection on the way there; infinite where it does not arrive.
    """
    start, _ = _of_predictor(p, dual, z)
    delta = np.zeros_like(z)
    for _ in range(_ROUNDS):
        value, slopes = _of_predictor(p, dual, z + delta)
        wanted = np.sum(slopes * delta, axis=1) - value
        if norm == "l2":
            step, gain = slopes, np.sum(slopes**2, axis=1)
        else:
            step, gain = np.sign(slopes), np.sum(np.abs(slopes), axis=1)
        delta = (wanted / gain)[:, None] * step
    low, high = np.zeros(len(z)), np.full(len(z), 1.5)
    beyond, _ = _of_predictor(p, dual, z + high[:, None] * delta)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        value, _ = _of_predictor(p, dual, z + middle[:, None] * delta)
        changed = value * start <= 0
        low = np.where(changed, low, middle)
        high = np.where(changed, middle, high)
    lengths = row_norms(delta) if norm == "l2" else np.abs(delta).max(axis=1)
    return np.where(beyond * start <= 0, high * lengths, np.inf)


def _of_predictor(p: Problem, dual: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outputs, (m,), and gradients, (m, d)."""
    rows = _rows(p, z)
    slopes = np.einsum("mnd,n->md", rows.gradients, dual)
    return rows.values @ dual, slopes


def _fewest(rng, s: Setting, p: Problem) -> Sample:
    """Numbers of flips against the smallest of all 2^n relabellings."""
    z = _new_points(s, p)
    found = flips.certified_flips(_trained(s, p), z)
    weights = _rows(p, z).values @ _operator(s, p)
    subsets = (np.arange(2**s.n)[:, None] >> np.arange(s.n)) % 2
    labels = p.y * (1 - 2 * subsets)
    changed = (labels @ weights.T) * (weights @ p.y) <= 0
    count = subsets.sum(axis=1)[:, None]
    fewest = np.where(changed, count, s.n + 1).min(axis=0)
    return Sample(np.abs(np.asarray(found.flips) - fewest), 0.5)


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
    initial = gradients(start, _new_points(s, p), s.slope)
    left = initial - own.pull @ outputs(start, p.x, s.slope)
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
)
