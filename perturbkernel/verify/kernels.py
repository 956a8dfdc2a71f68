"""Checks of section 0: the kernel's closed forms."""

from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from perturbkernel import theory
from perturbkernel.kernels import angles as activations
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory import arguments
from perturbkernel.verify.draws import Problem, network, preactivations, problem, row_norms
from perturbkernel.verify.protocol import Check, Sample, Setting

SLOPES = (0.0, 0.2, 0.5, 0.9)


def kernel_matrix(kernel: TwoLayerNTK, name: str, x, z) -> np.ndarray:
    """kernel.phi, .ntk or .nngp in float64, (n, m)."""
    return arguments.double(getattr(kernel, name), x, z)


class _Pairs(NamedTuple):
    """Few points and others, the latter of many lengths, (4, d) and (5, d)."""

    x: np.ndarray
    z: np.ndarray


def _pairs(rng, s: Setting) -> _Pairs:
    x = rng.normal(size=(4, s.d))
    z = rng.normal(size=(5, s.d))
    return _Pairs(x, z * rng.uniform(0.3, 2, size=(5, 1)))


def _spread_out(rng, s: Setting, spread: float) -> np.ndarray:
    """Twenty points whose lengths differ by orders of magnitude, (20, d)."""
    x = rng.normal(size=(20, s.d))
    return x * np.exp(spread * rng.normal(size=(20, 1)))


def _moments(rng, s: Setting, pairs: _Pairs) -> Sample:
    """Averages over neurons of the products that Phi, Q and Sigma are means of."""
    x, z = pairs
    kernel = TwoLayerNTK(s.slope)
    net = network(rng, s.samples, s.d)
    u = preactivations(net, x)
    v = preactivations(net, z)
    gate_u = np.where(u > 0, 1.0, s.slope)
    gate_v = np.where(v > 0, 1.0, s.slope)
    sums = [
        gate_u.T @ gate_v,
        (gate_u**2).T @ gate_v**2,
        (gate_u * u).T @ (gate_v * v),
    ]
    phi = kernel_matrix(kernel, "phi", x, z)
    sigma = kernel_matrix(kernel, "nngp", x, z)
    fourth = (theory.gate_moment_variance(kernel, x, z, width=1) + phi**2) / 3
    return Sample(np.array(sums) / s.samples, np.array([phi, fourth, sigma]))


def _range(rng, s: Setting, _) -> Sample:
    """Slope <= Phi <= (1 + slope^2)/2, at wild and at opposite points."""
    kernel = TwoLayerNTK(s.slope)
    x = _spread_out(rng, s, 1)
    near = np.vstack([x, 30 * x])
    opposite = np.vstack([x, -30 * x])
    phi = kernel_matrix(kernel, "phi", near, opposite)
    least = np.full(phi.shape, s.slope)
    most = np.full(phi.shape, (1 + s.slope**2) / 2)
    return Sample(np.stack([least, phi]), np.stack([phi, most]))


def _angle_range(rng, s: Setting, _) -> Sample:
    x = _spread_out(rng, s, 2)
    theta = arguments.double(_angles, x, np.vstack([x, -x]))
    own = np.diagonal(theta)
    # Below pi by the angle at which the farthest opposite points see the bias coordinate.
    gap = 1 / np.sqrt(1 + np.max(np.sum(x**2, 1)) / s.d)
    largest = np.full(theta.size, np.pi - gap)
    return Sample(np.concatenate([theta.ravel(), own]), np.concatenate([largest, 0 * own]))


def _angles(x, z):
    """The library's angles between the rows of x and of z, in the dtype of both, (n, m)."""
    _, theta = jax.jit(activations.products_and_angles)(x, z)
    return theta


def _derivative(function, z: np.ndarray, step: float = 1e-3) -> np.ndarray:
    """Central differences of sixth order of a function of single points, (m, d)."""
    columns = []
    for axis in np.eye(z.shape[1]):
        at = {k: function(z + k * step * axis) for k in (-3, -2, -1, 1, 2, 3)}
        first = 45 * (at[1] - at[-1])
        second = 9 * (at[2] - at[-2])
        columns.append((first - second + at[3] - at[-3]) / (60 * step))
    return np.stack(columns, axis=1)


def _gradients(rng, s: Setting, p: Problem) -> Sample:
    """Gradients of f_hat = sum of kernels, and of Sigma, against finite differences.

    At points away from the training points, where both are smooth.
    """
    z = p.z + rng.normal(size=p.z.shape)
    numeric = _derivative(lambda q: theory.f_hat(p.kernel, p.x, p.y, q), z)
    v = theory.direction(p.kernel, p.x, p.y, z)
    zeta = theory.gate_motion(p.kernel, p.x, p.y, z)
    split = v + zeta
    one = p.x[:1]
    sigma = _derivative(lambda q: kernel_matrix(p.kernel, "nngp", q, one)[:, 0], z)
    covariance = theory.initial_covariance(p.kernel, one, z)[0, 1:].reshape(z.shape)
    residuals = [
        theory.limit_gradient(p.kernel, p.x, p.y, z) - numeric,
        split - numeric,
        covariance - sigma,
    ]
    return Sample(np.abs(residuals), 1e-9)


def _lipschitz(rng, s: Setting, p: Problem) -> Sample:
    """Phi at pairs of points near a training point, whose cusp is where Phi changes fastest."""

    def step():
        """Steps of all sizes down to e^-12, one a training point."""
        toward = rng.normal(size=p.x.shape)
        return toward * np.exp(rng.uniform(-12, 1, size=(s.n, 1)))

    start = p.x + step()
    end = start + step()
    before = kernel_matrix(p.kernel, "phi", p.x, start)
    after = kernel_matrix(p.kernel, "phi", p.x, end)
    change = np.diagonal(before - after)
    rate = arguments.cone_slope(p.kernel) / np.sqrt(s.d)
    # Phi itself is rounded, which differences of points 1e-5 apart see.
    return Sample(np.abs(change), rate * row_norms(start - end) + 4e-16)


def _cusp(rng, s: Setting, p: Problem) -> Sample:
    """One-sided slopes at a training point, and the gradient there with and without a duplicate."""
    x = p.x
    h = rng.normal(size=x.shape)
    step = 1e-6
    centre = (1 + s.slope**2) / 2

    def rise(signed_step: float) -> np.ndarray:
        """How much Phi at each training point rises over a step along h, in units of the step."""
        phi = kernel_matrix(p.kernel, "phi", x, x + signed_step * h)
        return np.diagonal(phi - centre) / step

    slope = _cusp_slope(p.kernel, x, h)
    one_sided = [np.abs(rise(step) + slope), np.abs(rise(-step) + slope)]
    residual = np.concatenate(one_sided) / slope.max()

    twice = theory.gate_motion(p.kernel, np.vstack([x, x]), np.tile(p.y, 2), x)
    doubled = twice - theory.gate_motion(p.kernel, x, p.y, x)
    alone = [slice(i, i + 1) for i in range(3)]
    own = [theory.gate_motion(p.kernel, x[row], p.y[row], x[row]) for row in alone]
    exact = np.concatenate([np.abs(doubled).ravel(), np.abs(own).ravel()])

    tolerance = np.repeat([1e-5, 1e-12], [len(residual), len(exact)])
    return Sample(np.concatenate([residual, exact]), tolerance)


def _cusp_slope(kernel: TwoLayerNTK, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """How fast Phi(x_n, .) falls from its cusp at x_n along h_n, (n,). Theory: 0.4."""
    n, d = x.shape
    augmented = np.hstack([x / np.sqrt(d), np.ones((n, 1))])
    direction = np.hstack([h / np.sqrt(d), np.zeros((n, 1))])
    length = row_norms(augmented)
    along = np.sum(augmented * direction, axis=1) / length
    across = np.sqrt(np.sum(direction**2, 1) - along**2)
    return arguments.cone_slope(kernel) / length * across


def _stable_angles(rng, s: Setting, _) -> Sample:
    """Angles in float32 against float64, for the hard pairs of 0.5."""
    x = rng.normal(size=(12, s.d))
    noise = rng.normal(size=x.shape)
    others = [x, x + 1e-4 * noise, x + 1e-2 * noise, noise, -30 * x, 2 * x]
    narrow = np.asarray(np.vstack([x, x, x, x, 30 * x, 30 * x]), np.float32)
    wide = np.asarray(np.vstack([*others[:-1], 60 * x]), np.float32)
    with jax.enable_x64(False):
        theta = np.diagonal(np.asarray(_angles(narrow, wide)))
    a = _unit_lifted(narrow)
    b = _unit_lifted(wide)
    exact = 2 * np.arctan2(row_norms(a - b), row_norms(a + b))
    exact[: len(x)] = 0.0
    return Sample(np.abs(theta - exact), np.minimum(1e-5, 1e-4 * exact + 1e-30))


def _unit_lifted(points: np.ndarray) -> np.ndarray:
    """(x / sqrt(d), 1) as unit vectors in float64, (n, d + 1)."""
    n, d = points.shape
    lifted = np.hstack([points.astype(float) / np.sqrt(d), np.ones((n, 1))])
    return lifted / np.linalg.norm(lifted, axis=1, keepdims=True)


_MC = Setting(draws=100, samples=2000, d=10)
CHECKS = (
    Check(
        "0.1",
        "Phi, Q and Sigma in closed form equal averages over random neurons",
        "expectation",
        _moments,
        tuple(replace(_MC, slope=slope) for slope in (0.0, 0.5)),
        tuple(replace(_MC, draws=200, samples=20000, slope=slope) for slope in SLOPES),
        prepare=_pairs,
        fixed=True,
        shown=("slope",),
    ),
    Check(
        "0.1",
        "slope <= Phi <= (1 + slope^2)/2 at all points",
        "surely",
        _range,
        (Setting(draws=20, d=10, slope=0.2),),
        part="range",
    ),
    Check(
        "0.2",
        "the angle stays below pi, and is 0 exactly for a point with itself",
        "surely",
        _angle_range,
        (Setting(draws=20, d=10),),
    ),
    Check(
        "0.3",
        "gradients of K and Sigma equal finite differences (to 1e-9)",
        "identity",
        _gradients,
        (Setting(draws=5, n=10, d=6, points=8, slope=0.2, bias=True),),
        (Setting(draws=30, n=20, d=10, slope=0.2, bias=True),),
        prepare=problem,
    ),
    Check(
        "0.3",
        "Phi is Lipschitz with (1 - slope)^2/(2 pi sqrt(d)), cusp included",
        "surely",
        _lipschitz,
        (Setting(draws=50),),
        part="Lipschitz",
        prepare=problem,
    ),
    Check(
        "0.4",
        "one-sided slopes of the cusp at a training point (to 1e-5); gradient 0 there, duplicates "
        "dropped",
        "identity",
        _cusp,
        (Setting(draws=10),),
        prepare=problem,
    ),
    Check(
        "0.5",
        "angles in float32, of near, radial, opposite and equal points, to 1e-5 and 1e-4 of the "
        "angle",
        "surely",
        _stable_angles,
        (Setting(draws=20, d=784),),
    ),
)
