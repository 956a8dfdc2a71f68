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
    """E f0(z)^2 = Sigma(z, z) = (1 + slope^2)/2 s_z^2 exactly, at every width, (m,).

    Theory: 0.1, 4.

    Example:
        >>> initial_output_variance(TwoLayerNTK(), [[1.0, 1.0]]).round(3).tolist()
        [1.0]
    """
    check_kernel(kernel)
    z = as_points(z, "z")
    squares = lengths(z) ** 2
    return gate_mean_square(kernel) * squares


def initial_gradient_second_moment(kernel: TwoLayerNTK) -> float:
    """E |grad f0(z)|^2 = (1 + slope^2)/2 exactly, at every width and point. Theory: 4.

    Example:
        >>> initial_gradient_second_moment(TwoLayerNTK())
        0.5
    """
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

        B_0 = s_z sqrt(2 l1 [(1 + g^2)/2 + sqrt(3 (1 + g^4) l2 / width) + 2 l2 / width]),
        l1 = log(4 points / delta),  l2 = log(2 points / delta)

    Theory: 4.1.

    Example:
        >>> initial_output_bound(TwoLayerNTK(), [[0.0, 0.0]], width=10**9, delta=0.1).round(2)
        array([1.92])
    """
    check_kernel(kernel)
    z = as_points(z, "z")
    points = len(z) if points is None else points
    check_statement(delta, width, points=points)
    l1 = np.log(4 * points / delta)
    l2 = np.log(2 * points / delta)
    rate = l2 / width
    fourth = 3 * (1 + kernel.slope**4)
    square = gate_mean_square(kernel) + np.sqrt(fourth * rate) + 2 * rate
    deviation = np.sqrt(2 * l1 * square)
    return lengths(z) * deviation


def initial_output_bound_measured(
    kernel: TwoLayerNTK,
    weights: Float[ArrayLike, "width d"],
    biases: Float[ArrayLike, " width"],
    z: Float[ArrayLike, "m d"],
    *,
    delta: float,
    points: int | None = None,
) -> Float[np.ndarray, " m"]:
    """A bound on |f0(z)| over the readout, given weights and biases, (m,).

        |f0(z)| <= sqrt(2 log(2 points / delta)) (mean over neurons of phi(u_i(z))^2)^(1/2)

    Theory: 4.1.

    Example:
        >>> weights, biases, z = np.eye(2), np.zeros(2), [[1.0, 1.0]]
        >>> initial_output_bound_measured(TwoLayerNTK(), weights, biases, z, delta=0.1).round(2)
        array([2.45])
    """
    check_kernel(kernel)
    z = as_points(z, "z")
    weights, biases, _ = as_network(weights, biases, biases, z.shape[1])
    points = len(z) if points is None else points
    check_statement(delta, points=points)
    square = np.zeros(len(z))
    for part in neuron_blocks(len(weights), len(z)):
        u = weights[part] @ z.T + biases[part, None]
        active = gates(kernel, u) * u
        square += np.sum(active**2, axis=0)
    log = np.log(2 * points / delta)
    return np.sqrt(2 * log * square / len(weights))


def initial_gradient_bound(
    kernel: TwoLayerNTK,
    dimension: int,
    *,
    width: int,
    delta: float,
    points: int = 1,
) -> float:
    """B_grad: |grad f0(z)| <= B_grad at `points` points of `dimension` coordinates at once.

        B_grad = sqrt((1 + g^2)/2 + (1 - g^2) sqrt(l / (2 width))
                      + 2 sqrt(l / (width d)) + 2 l / (width d))
                 + sqrt(2 l / d) (1 + sqrt(d / width) + sqrt(2 l3 / width)),
        l = log(4 points / delta),  l3 = log(4 / delta)

    Theory: 4.2.

    Example:
        >>> round(initial_gradient_bound(TwoLayerNTK(), 784, width=10**9, delta=0.1), 2)
        0.8
    """
    check_kernel(kernel)
    check_statement(delta, width, points=points)
    check_count(dimension, "dimension")
    log = np.log(4 * points / delta)
    log_norm = np.log(4 / delta)
    trace = (
        gate_mean_square(kernel)
        + (1 - kernel.slope**2) * np.sqrt(log / (2 * width))
        + 2 * np.sqrt(log / (width * dimension))
        + 2 * log / (width * dimension)
    )
    mean = 1 + np.sqrt(dimension / width)
    deviation = np.sqrt(2 * log_norm / width)
    norm = mean + deviation
    fluctuation = np.sqrt(2 * log / dimension) * norm
    return float(np.sqrt(trace) + fluctuation)


def initial_gradient_bound_measured(
    kernel: TwoLayerNTK,
    weights: Float[ArrayLike, "width d"],
    biases: Float[ArrayLike, " width"],
    z: Float[ArrayLike, "m d"],
    *,
    delta: float,
    points: int | None = None,
) -> Float[np.ndarray, " m"]:
    """A bound on |grad f0(z)| over the readout, given weights and biases, (m,).

        |grad f0(z)| <= sqrt(tr S) + sqrt(2 log(points / delta) |S|_op)
        S(z) = (1/width) sum_i phi'(u_i(z))^2 w_i w_i^T, (d, d)

    Cost O(width d^2 + d^3) a point. Theory: 4.2, 13.9.

    Example:
        >>> weights, biases, z = np.eye(2), np.zeros(2), [[1.0, -1.0]]
        >>> initial_gradient_bound_measured(TwoLayerNTK(), weights, biases, z, delta=0.1).round(2)
        array([2.22])
    """
    check_kernel(kernel)
    z = as_points(z, "z")
    weights, biases, _ = as_network(weights, biases, biases, z.shape[1])
    points = len(z) if points is None else points
    check_statement(delta, points=points)
    log = np.log(points / delta)
    bound = np.empty(len(z))
    for j, point in enumerate(z):
        u = weights @ point + biases
        rows = gates(kernel, u)[:, None] * weights
        second_moment = rows.T @ rows / len(rows)
        spectrum = np.linalg.eigvalsh(second_moment)
        trace = max(spectrum.sum(), 0)
        largest = max(spectrum[-1], 0)
        bound[j] = np.sqrt(trace) + np.sqrt(2 * log * largest)
    return bound


def initial_projection_bound(
    z: Float[ArrayLike, "m d"],
    *,
    inputs: int,
    width: int,
    delta: float,
    points: int | None = None,
) -> Float[np.ndarray, " m"]:
    """A bound on |<grad f0(x_n), z>| for all n = 1 .. inputs and all z at once, (m,).

        sqrt(2 l) |z| / sqrt(d) sqrt(1 + 2 sqrt(l2 / width) + 2 l2 / width),
        l = log(4 inputs points / delta),  l2 = log(2 points / delta)

    It is sqrt(d) smaller than |z| B_grad. Theory: 4.3.

    Example:
        >>> initial_projection_bound([[3.0, 4.0]], inputs=1, width=10**9, delta=0.1).round(2)
        array([9.6])
    """
    z = as_points(z, "z")
    points = len(z) if points is None else points
    check_statement(delta, width, points=points)
    check_count(inputs, "inputs")
    d = z.shape[1]
    log = np.log(4 * inputs * points / delta)
    rate = np.log(2 * points / delta) / width
    size = np.linalg.norm(z, axis=1) / np.sqrt(d)
    square = 1 + 2 * np.sqrt(rate) + 2 * rate
    return size * np.sqrt(2 * log * square)


def initial_projection_bound_measured(
    weights: Float[ArrayLike, "width d"],
    z: Float[ArrayLike, "m d"],
    *,
    inputs: int,
    delta: float,
    points: int | None = None,
) -> Float[np.ndarray, " m"]:
    """A bound on |<grad f0(x_n), z>| over the readout, given the weights W, (m,).

        |<grad f0(x_n), z>| <= sqrt(2 log(2 inputs points / delta)) |W z| / sqrt(width)

    Theory: 4.3.

    Example:
        >>> initial_projection_bound_measured(np.eye(2), [[3.0, 4.0]], inputs=1, delta=0.1).round(2)
        array([8.65])
    """
    z = as_points(z, "z")
    weights = as_points(weights, "weights", like=z)
    points = len(z) if points is None else points
    check_statement(delta, points=points)
    check_count(inputs, "inputs")
    width = len(weights)
    products = weights @ z.T
    size = np.linalg.norm(products, axis=0) / np.sqrt(width)
    log = np.log(2 * inputs * points / delta)
    return np.sqrt(2 * log) * size
