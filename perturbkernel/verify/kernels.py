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
    function = getattr(kernel, name)
    return arguments.double(function, x, z)


class _Pairs(NamedTuple):
    """Few points and others, the latter of many lengths, (4, d) and (5, d)."""

    x: np.ndarray
    z: np.ndarray


def _pairs(rng, s: Setting) -> _Pairs:
    x = rng.normal(size=(4, s.d))
    z = rng.normal(size=(5, s.d))
    length = rng.uniform(0.3, 2, size=(5, 1))
    return _Pairs(x, z * length)


def _spread_out(rng, s: Setting, spread: float) -> np.ndarray:
    """Twenty points whose lengths differ by orders of magnitude, (20, d)."""
    x = rng.normal(size=(20, s.d))
    scale = np.exp(spread * rng.normal(size=(20, 1)))
    return x * scale


def _moments(rng, s: Setting, pairs: _Pairs) -> Sample:
    """Averages over neurons of the products that Phi, Q and Sigma are means of."""
    x, z = pairs
    kernel = TwoLayerNTK(s.slope)
    net = network(rng, s.samples, s.d)
    u = preactivations(net, x)
    v = preactivations(net, z)
    gate_u = np.where(u > 0, 1.0, s.slope)
    gate_v = np.where(v > 0, 1.0, s.slope)
    active_u = gate_u * u
    active_v = gate_v * v
    sums = [
        gate_u.T @ gate_v,
        (gate_u**2).T @ gate_v**2,
        active_u.T @ active_v,
    ]
    means = np.array(sums) / s.samples
    phi = kernel_matrix(kernel, "phi", x, z)
    sigma = kernel_matrix(kernel, "nngp", x, z)
    variance = theory.gate_moment_variance(kernel, x, z, width=1)
    fourth = (variance + phi**2) / 3
    return Sample(means, np.array([phi, fourth, sigma]))


def _range(rng, s: Setting, _) -> Sample:
    """Slope <= Phi <= (1 + slope^2)/2, at wild and at opposite points."""
    kernel = TwoLayerNTK(s.slope)
    x = _spread_out(rng, s, 1)
    near = np.vstack([x, 30 * x])
    opposite = np.vstack([x, -30 * x])
    phi = kernel_matrix(kernel, "phi", near, opposite)
    at_zero = (1 + s.slope**2) / 2
    least = np.full(phi.shape, s.slope)
    most = np.full(phi.shape, at_zero)
    return Sample(
        observed=np.stack([least, phi]),
        bound=np.stack([phi, most]),
    )


def _angle_range(rng, s: Setting, _) -> Sample:
    x = _spread_out(rng, s, 2)
    opposite = np.vstack([x, -x])
    theta = arguments.double(_angles, x, opposite)
    own = np.diagonal(theta)
    # Below pi by the angle at which the farthest opposite points see the bias coordinate.
    squares = np.sum(x**2, 1)
    gap = 1 / np.sqrt(1 + np.max(squares) / s.d)
    largest = np.full(theta.size, np.pi - gap)
    return Sample(
        observed=np.concatenate([theta.ravel(), own]),
        bound=np.concatenate([largest, 0 * own]),
    )


def _angles(x, z):
    """The library's angles between the rows of x and of z, in the dtype of both, (n, m)."""
    _, theta = jax.jit(activations.products_and_angles)(x, z)
    return theta


def _derivative(function, z: np.ndarray, step: float = 1e-3) -> np.ndarray:
    """Central differences of sixth order of a function of single points, (m, d)."""
    columns = []
    for axis in np.eye(z.shape[1]):
        at = {}
        for k in (-3, -2, -1, 1, 2, 3):
            at[k] = function(z + k * step * axis)
        first = 45 * (at[1] - at[-1])
        second = 9 * (at[2] - at[-2])
        difference = first - second + at[3] - at[-3]
        columns.append(difference / (60 * step))
    return np.stack(columns, axis=1)


def _gradients(rng, s: Setting, p: Problem) -> Sample:
    """Gradients of f_hat = sum of kernels, and of Sigma, against finite differences.

    At points away from the training points, where both are smooth.
    """
    z = p.z + rng.normal(size=p.z.shape)
    one = p.x[:1]

    def f_hat(q: np.ndarray) -> np.ndarray:
        return theory.f_hat(p.kernel, p.x, p.y, q)

    def nngp(q: np.ndarray) -> np.ndarray:
        return kernel_matrix(p.kernel, "nngp", q, one)[:, 0]

    numeric = _derivative(f_hat, z)
    v = theory.direction(p.kernel, p.x, p.y, z)
    zeta = theory.gate_motion(p.kernel, p.x, p.y, z)
    split = v + zeta
    sigma = _derivative(nngp, z)
    covariance = theory.initial_covariance(p.kernel, one, z)
    covariance = covariance[0, 1:].reshape(z.shape)
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
        log_size = rng.uniform(-12, 1, size=(s.n, 1))
        return toward * np.exp(log_size)

    start = p.x + step()
    end = start + step()
    before = kernel_matrix(p.kernel, "phi", p.x, start)
    after = kernel_matrix(p.kernel, "phi", p.x, end)
    change = np.diagonal(before - after)
    rate = arguments.cone_slope(p.kernel) / np.sqrt(s.d)
    most = rate * row_norms(start - end)
    # Phi itself is rounded, which differences of points 1e-5 apart see.
    return Sample(np.abs(change), most + 4e-16)


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
    forward = np.abs(rise(step) + slope)
    backward = np.abs(rise(-step) + slope)
    residual = np.concatenate([forward, backward])
    residual = residual / slope.max()

    points = np.vstack([x, x])
    labels = np.tile(p.y, 2)
    twice = theory.gate_motion(p.kernel, points, labels, x)
    once = theory.gate_motion(p.kernel, x, p.y, x)
    doubled = np.abs(twice - once)
    own = np.abs([_own_motion(p, i) for i in range(3)])
    exact = np.concatenate([doubled.ravel(), own.ravel()])

    tolerance = np.repeat([1e-5, 1e-12], [len(residual), len(exact)])
    return Sample(np.concatenate([residual, exact]), tolerance)


def _own_motion(p: Problem, i: int) -> np.ndarray:
    """The motion of the gates of training point i at itself, (1, d)."""
    row = slice(i, i + 1)
    x = p.x[row]
    return theory.gate_motion(p.kernel, x, p.y[row], x)


def _cusp_slope(kernel: TwoLayerNTK, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """How fast Phi(x_n, .) falls from its cusp at x_n along h_n, (n,). Theory: 0.4."""
    n, d = x.shape
    root = np.sqrt(d)
    augmented = np.hstack([x / root, np.ones((n, 1))])
    direction = np.hstack([h / root, np.zeros((n, 1))])
    length = row_norms(augmented)
    products = np.sum(augmented * direction, axis=1)
    along = products / length
    squares = np.sum(direction**2, 1)
    across = np.sqrt(squares - along**2)
    return arguments.cone_slope(kernel) / length * across


def _stable_angles(rng, s: Setting, _) -> Sample:
    """Angles in float32 against float64, for the hard pairs of 0.5."""
    x = rng.normal(size=(12, s.d))
    noise = rng.normal(size=x.shape)
    hard = [
        (x, x),
        (x, x + 1e-4 * noise),
        (x, x + 1e-2 * noise),
        (x, noise),
        (30 * x, -30 * x),
        (30 * x, 60 * x),
    ]
    points, others = zip(*hard, strict=True)
    left = np.vstack(points).astype(np.float32)
    right = np.vstack(others).astype(np.float32)
    with jax.enable_x64(False):
        matrix = np.asarray(_angles(left, right))
    theta = np.diagonal(matrix)
    a = _unit_lifted(left)
    b = _unit_lifted(right)
    apart = row_norms(a - b)
    together = row_norms(a + b)
    exact = 2 * np.arctan2(apart, together)
    exact[: len(x)] = 0.0
    allowed = 1e-4 * exact + 1e-30
    # Of opposite points 1 + rho = 2e-3 is known to some roundings of 1, ten on some processors:
    # 10 eps / sin(theta) = 2e-5.
    largest = np.where(exact > 3, 2e-5, 1e-5)
    return Sample(np.abs(theta - exact), np.minimum(largest, allowed))


def _unit_lifted(points: np.ndarray) -> np.ndarray:
    """(x / sqrt(d), 1) as unit vectors in float64, (n, d + 1)."""
    n, d = points.shape
    scaled = points.astype(float) / np.sqrt(d)
    ones = np.ones((n, 1))
    lifted = np.hstack([scaled, ones])
    length = np.linalg.norm(lifted, axis=1, keepdims=True)
    return lifted / length


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
        "angles in float32, of near, radial and equal points, to 1e-5 and 1e-4 of the angle; of "
        "opposite points to 2e-5",
        "surely",
        _stable_angles,
        (Setting(draws=20, d=784),),
    ),
)
