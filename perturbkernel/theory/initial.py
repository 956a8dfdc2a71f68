"""The function before training: its size, its gradient, and networks in which it is zero (theory:
section 4).

A priori bounds hold with probability at least 1 - delta over the whole initialisation, at all
points at once; "measured" ones take the drawn weights and biases and hold over the readout. A
centred network (f - f0) and an antisymmetrically doubled one (`finite.doubled`) have f0 = 0 and
need none of these. The initial function does not shrink with width.
"""

import numpy as np
from jaxtyping import ArrayLike, Float

from perturbkernel.checks import check_count
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import (
    as_network,
    as_points,
    check_kernel,
    check_statement,
    gate_mean_square,
    lengths,
    neuron_blocks,
)
from perturbkernel.theory.finite import gates


def initial_output_variance(
    kernel: TwoLayerNTK, z: Float[ArrayLike, "m d"]
) -> Float[np.ndarray, " m"]:
    """E f0(z)^2 = Sigma(z, z) = (1 + slope^2)/2 s_z^2 exactly, at every width, (m,). Theory: 0.1,
    4.
    """
    check_kernel(kernel)
    return gate_mean_square(kernel) * lengths(as_points(z, "z")) ** 2


def initial_gradient_second_moment(kernel: TwoLayerNTK) -> float:
    """E |grad f0(z)|^2 = (1 + slope^2)/2 exactly, at every width and point. Theory: 4."""
    check_kernel(kernel)
    return gate_mean_square(kernel)


def initial_output_bound(
    kernel: TwoLayerNTK,
    z: Float[ArrayLike, "m d"],
    *,
    width: int,
    delta: float,
    points: int | None = None,
) -> Float[np.ndarray, " m"]:
    """B_0, (m,): |f0(z)| <= B_0(z) at all points at once.

    B_0 = s_z sqrt(2 l1 [(1 + g^2)/2 + sqrt(3 (1 + g^4) l2 / width) + 2 l2 / width]), l1 = log(4
    points / delta), l2 = log(2 points / delta). Theory: 4.1.
    """
    check_kernel(kernel)
    z = as_points(z, "z")
    points = len(z) if points is None else points
    check_statement(delta, width, points=points)
    l1, rate = np.log(4 * points / delta), np.log(2 * points / delta) / width
    square = gate_mean_square(kernel) + np.sqrt(3 * (1 + kernel.slope**4) * rate) + 2 * rate
    return lengths(z) * np.sqrt(2 * l1 * square)


def initial_output_bound_measured(
    kernel: TwoLayerNTK,
    weights: Float[ArrayLike, "width d"],
    biases: Float[ArrayLike, " width"],
    z: Float[ArrayLike, "m d"],
    *,
    delta: float,
    points: int | None = None,
) -> Float[np.ndarray, " m"]:
    """(m,): |f0(z)| <= sqrt(2 log(2 points / delta)) (mean over neurons of phi(u_i(z))^2)^(1/2),
    over the readout. Theory: 4.1.
    """
    check_kernel(kernel)
    z = as_points(z, "z")
    weights, biases, _ = as_network(weights, biases, biases, z.shape[1])
    points = len(z) if points is None else points
    check_statement(delta, points=points)
    square = np.zeros(len(z))
    for part in neuron_blocks(len(weights), len(z)):
        u = weights[part] @ z.T + biases[part, None]
        square += np.sum((gates(kernel, u) * u) ** 2, axis=0)
    return np.sqrt(2 * np.log(2 * points / delta) * square / len(weights))


def initial_gradient_bound(
    kernel: TwoLayerNTK, dimension: int, *, width: int, delta: float, points: int = 1
) -> float:
    """B_grad: |grad f0(z)| <= B_grad at `points` points of `dimension` coordinates at once.

    sqrt((1 + g^2)/2 + (1 - g^2) sqrt(l / (2 width)) + 2 sqrt(l / (width d)) + 2 l / (width d)) +
    sqrt(2 l / d) (1 + sqrt(d / width) + sqrt(2 l3 / width)), l = log(4 points / delta), l3 = log(4
    / delta). Theory: 4.2.
    """
    check_kernel(kernel)
    check_statement(delta, width, points=points)
    check_count(dimension, "dimension")
    log, log_norm = np.log(4 * points / delta), np.log(4 / delta)
    trace = (
        gate_mean_square(kernel)
        + (1 - kernel.slope**2) * np.sqrt(log / (2 * width))
        + 2 * np.sqrt(log / (width * dimension))
        + 2 * log / (width * dimension)
    )
    norm = 1 + np.sqrt(dimension / width) + np.sqrt(2 * log_norm / width)
    return float(np.sqrt(trace) + np.sqrt(2 * log / dimension) * norm)


def initial_gradient_bound_measured(
    kernel: TwoLayerNTK,
    weights: Float[ArrayLike, "width d"],
    biases: Float[ArrayLike, " width"],
    z: Float[ArrayLike, "m d"],
    *,
    delta: float,
    points: int | None = None,
) -> Float[np.ndarray, " m"]:
    """(m,): |grad f0(z)| <= sqrt(tr S) + sqrt(2 log(points / delta) |S|_op), over the readout.

    S(z) = (1/width) sum_i phi'(u_i(z))^2 w_i w_i^T, (d, d). Cost O(width d^2 + d^3) a point.
    Theory: 4.2, 13.9.
    """
    check_kernel(kernel)
    z = as_points(z, "z")
    weights, biases, _ = as_network(weights, biases, biases, z.shape[1])
    points = len(z) if points is None else points
    check_statement(delta, points=points)
    bound = np.empty(len(z))
    for j, point in enumerate(z):
        rows = gates(kernel, weights @ point + biases)[:, None] * weights
        spectrum = np.linalg.eigvalsh(rows.T @ rows / len(rows))
        bound[j] = np.sqrt(max(spectrum.sum(), 0)) + np.sqrt(
            2 * np.log(points / delta) * max(spectrum[-1], 0)
        )
    return bound


def initial_projection_bound(
    z: Float[ArrayLike, "m d"], *, inputs: int, width: int, delta: float, points: int | None = None
) -> Float[np.ndarray, " m"]:
    """(m,): |<grad f0(x_n), z>| <= bound for all n = 1 .. inputs and all z at once; sqrt(d) smaller
    than |z| B_grad.

    sqrt(2 l) |z| / sqrt(d) sqrt(1 + 2 sqrt(l2 / width) + 2 l2 / width), l = log(4 inputs points /
    delta), l2 = log(2 points / delta). Theory: 4.3.
    """
    z = as_points(z, "z")
    points = len(z) if points is None else points
    check_statement(delta, width, points=points)
    check_count(inputs, "inputs")
    log, rate = np.log(4 * inputs * points / delta), np.log(2 * points / delta) / width
    size = np.linalg.norm(z, axis=1) / np.sqrt(z.shape[1])
    return size * np.sqrt(2 * log * (1 + 2 * np.sqrt(rate) + 2 * rate))


def initial_projection_bound_measured(
    weights: Float[ArrayLike, "width d"],
    z: Float[ArrayLike, "m d"],
    *,
    inputs: int,
    delta: float,
    points: int | None = None,
) -> Float[np.ndarray, " m"]:
    """(m,): |<grad f0(x_n), z>| <= sqrt(2 log(2 inputs points / delta)) |W z| / sqrt(width), over
    the readout. Theory: 4.3.
    """
    z = as_points(z, "z")
    weights = as_points(weights, "weights", like=z)
    points = len(z) if points is None else points
    check_statement(delta, points=points)
    check_count(inputs, "inputs")
    size = np.linalg.norm(weights @ z.T, axis=0) / np.sqrt(len(weights))
    return np.sqrt(2 * np.log(2 * inputs * points / delta)) * size
