"""Kernels of deep, convolutional and residual networks in NumPy float64, layer by layer; one small
function a layer.

Between layers stands what two sets of images have: `cross` (n, m, p, q), the covariance of
preactivations at place p of one and q of the other, `left` (n, p) and `right` (m, q), their
variances, and `ntk` (n, m, p, q). Fully connected networks have one place. Weights have variance
W^2 / fan-in, biases B^2; parameters are counted in the NTK parameterization, whose gradients carry
these factors."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class State(NamedTuple):
    cross: np.ndarray
    left: np.ndarray
    right: np.ndarray
    ntk: np.ndarray


def inputs(x: np.ndarray, z: np.ndarray) -> State:
    """Flat rows (one place, d channels) or images (n, h, w, c); a layer divides by the channels of
    what it takes.
    """
    x, z = (a[:, None] if a.ndim == 2 else a.reshape(len(a), -1, a.shape[-1]) for a in (x, z))
    cross = np.einsum("npc,mqc->nmpq", x, z) / x.shape[-1]
    return State(cross, (x**2).mean(-1), (z**2).mean(-1), np.zeros_like(cross))


def dense(s: State, w: float, b: float) -> State:
    cross, left, right = (w**2 * a + b**2 for a in (s.cross, s.left, s.right))
    return State(cross, left, right, w**2 * s.ntk + cross)


def convolution(s: State, w: float, b: float, side: int, stride: int = 1) -> State:
    """3 x 3 over images of side x side places, zeros around; places with the stride alone remain.

    XLA's "SAME": with stride 2 and an even side the first patch begins at the image's corner.
    """
    count = -(-side // stride)
    before = max((count - 1) * stride + 3 - side, 0) // 2

    def summed(a, pairs):
        a = a.reshape(*a.shape[: -2 if pairs else -1], *(2 if pairs else 1) * (side, side))
        axes = a.ndim - (4 if pairs else 2)
        total = 0
        padded = np.pad(a, [(0, 0)] * axes + [(3, 3)] * (a.ndim - axes))
        for i in range(3):
            for j in range(3):
                rows, columns = (
                    slice(3 - before + o, 3 - before + o + (count - 1) * stride + 1, stride)
                    for o in (i, j)
                )
                total = total + padded[(..., *(2 if pairs else 1) * (rows, columns))]
        return (
            w**2
            / 9
            * np.asarray(total).reshape(*a.shape[:axes], *(2 if pairs else 1) * (count**2,))
        )

    cross, left, right = (
        summed(a, pairs) + b**2 for a, pairs in ((s.cross, True), (s.left, False), (s.right, False))
    )
    return State(cross, left, right, summed(s.ntk, True) + cross)


def mean_over_places(s: State, pooled: bool) -> State:
    """GlobalAvgPool compares every place with every other; Flatten each with itself (and then Dense
    takes the mean).
    """

    def mean(a):
        picked = a if pooled else a[:, :, np.arange(a.shape[2]), np.arange(a.shape[2]), None]
        return picked.mean((2, 3), keepdims=True)

    # Only linear layers follow: nobody needs the variances.
    nothing = np.full((len(s.left), 1), np.nan)
    return State(mean(s.cross), nothing, nothing[: len(s.right)], mean(s.ntk))


def activation(s: State, moments: Callable) -> State:
    """`moments(cross, left, right)`: E phi(u) phi(v) and E phi'(u) phi'(v), (u, v) Gaussian."""
    left, right = (moments(a, a, a)[0] for a in (s.left, s.right))
    cross, gate = moments(s.cross, s.left[:, None, :, None], s.right[None, :, None, :])
    return State(cross, left, right, gate * s.ntk)


def leaky_relu(slope: float) -> Callable:
    def moments(cross, left, right):
        scale = np.sqrt(left * right)
        cosine = np.clip(cross / np.where(scale > 0, scale, 1), -1, 1)
        theta = np.where(cosine > 1 - 1e-14, 0, np.arccos(cosine))
        cone = (1 - slope) ** 2 / (2 * np.pi)
        gate = (1 + slope**2) / 2 - cone * theta
        return scale * (cosine * gate + cone * np.sin(theta)), gate

    return moments


def smooth(phi: Callable, derivative: Callable, nodes: int = 48) -> Callable:
    """Gauss-Hermite quadrature: for entire functions that vary over lengths of order one, right to
    1e-10 or so.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    a, b = points[:, None], points[None, :]

    def moments(cross, left, right):
        cross, left, right = np.broadcast_arrays(
            *(v[..., None, None] for v in np.broadcast_arrays(cross, left, right))
        )
        cosine = np.clip(cross / np.sqrt(left * right), -1, 1)
        u, v = np.sqrt(left) * a, np.sqrt(right) * (cosine * a + np.sqrt(1 - cosine**2) * b)
        return tuple(np.sum(weights * f(u) * f(v), axis=(-1, -2)) for f in (phi, derivative))

    return moments


def residual(s: State, branch: Callable) -> State:
    """u + branch(u), independent of each other."""
    return State(*(a + b for a, b in zip(s, branch(s), strict=True)))


def slope(
    kernel: Callable, z: np.ndarray, x: np.ndarray, coef: np.ndarray, along: np.ndarray
) -> np.ndarray:
    """(m,): the derivative of sum_n coef_n kernel(x_n, z) at each z along a direction, central: at
    a cone the mean of both sides. Exact kernels near x leave rounding of angles, 1e-16 / step, over
    step, and step^2: 1e-8 or so."""

    def symmetric(h):
        above, below = (coef @ kernel(x, z + sign * h * along) for sign in (1, -1))
        return (above - below) / (2 * h)

    # Of a cone |h| (1 + c h) the difference sees c h |h|: linear in h, and gone.
    return 2 * symmetric(5e-5) - symmetric(1e-4)
