"""Finite networks given as plain arrays: outputs, gradients and tangent kernels, in float64 and
blocks of neurons.

f(z) = sum_i readout_i phi(u_i(z)), u_i(z) = <weights_i, z> + biases_i, with weights (width, d),
biases and readout (width,); phi is the leaky ReLU of the kernel's slope and phi'(0) = slope.
"""

import numpy as np
from jaxtyping import ArrayLike, Float

from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import (
    as_labels,
    as_network,
    as_points,
    check_kernel,
    neuron_blocks,
)


def gates(kernel: TwoLayerNTK, u: np.ndarray) -> np.ndarray:
    """phi'(u): 1 for u > 0, else the slope."""
    return np.where(u > 0, 1.0, kernel.slope)


def _network(kernel, weights, biases, readout, z):
    check_kernel(kernel)
    z = as_points(z, "z")
    return *as_network(weights, biases, readout, z.shape[1]), z


def output(
    kernel: TwoLayerNTK,
    weights: Float[ArrayLike, "width d"],
    biases: Float[ArrayLike, " width"],
    readout: Float[ArrayLike, " width"],
    z: Float[ArrayLike, "m d"],
) -> Float[np.ndarray, " m"]:
    """The network's outputs f(z), (m,)."""
    weights, biases, readout, z = _network(kernel, weights, biases, readout, z)
    total = np.zeros(len(z))
    for part in neuron_blocks(len(weights), len(z)):
        u = weights[part] @ z.T + biases[part, None]
        total += readout[part] @ (gates(kernel, u) * u)
    return total


def gradient(
    kernel: TwoLayerNTK,
    weights: Float[ArrayLike, "width d"],
    biases: Float[ArrayLike, " width"],
    readout: Float[ArrayLike, " width"],
    z: Float[ArrayLike, "m d"],
) -> Float[np.ndarray, "m d"]:
    """The network's input gradients, sum_i readout_i phi'(u_i(z)) weights_i, (m, d)."""
    weights, biases, readout, z = _network(kernel, weights, biases, readout, z)
    total = np.zeros(z.shape)
    for part in neuron_blocks(len(weights), len(z)):
        gate = gates(kernel, weights[part] @ z.T + biases[part, None])
        total += gate.T @ (readout[part, None] * weights[part])
    return total


def gate_moment(
    kernel: TwoLayerNTK,
    weights: Float[ArrayLike, "width d"],
    biases: Float[ArrayLike, " width"],
    readout: Float[ArrayLike, " width"],
    x: Float[ArrayLike, "n d"],
    z: Float[ArrayLike, "m d"],
) -> Float[np.ndarray, "n m"]:
    """Phi_width(x_n, z_j) = sum_i readout_i^2 phi'(u_i(x_n)) phi'(u_i(z_j)), (n, m); its mean over
    draws is Phi.

    The tangent kernel of this network is Phi_width (<x, z> + c). Theory: 0.1, 2.
    """
    weights, biases, readout, z = _network(kernel, weights, biases, readout, z)
    x = as_points(x, "x", like=z)
    total = np.zeros((len(x), len(z)))
    for part in neuron_blocks(len(weights), len(x) + len(z)):
        at_x, at_z = (gates(kernel, weights[part] @ p.T + biases[part, None]) for p in (x, z))
        total += at_x.T @ (readout[part, None] ** 2 * at_z)
    return total


def tangent_predictor(
    kernel: TwoLayerNTK,
    weights: Float[ArrayLike, "width d"],
    biases: Float[ArrayLike, " width"],
    readout: Float[ArrayLike, " width"],
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m d"]]:
    """f_hat and v of this network's own tangent kernel: (m,) and (m, d).

    f_hat_width(z) = (1/n) sum_n y_n Phi_width(x_n, z) k_n(z), v_width(z) = (1/n) sum_n y_n
    Phi_width(x_n, z) x_n. Cost O(width (n + m) d). Theory: 2.2, 2.3.
    """
    weights, biases, readout, z = _network(kernel, weights, biases, readout, z)
    x = as_points(x, "x", like=z)
    y = as_labels(y, "y", len(x))
    augmented = (
        np.hstack([x, np.full((len(x), 1), float(kernel.train_bias))]) * (y / len(x))[:, None]
    )
    total = np.zeros((len(z), x.shape[1] + 1))
    for part in neuron_blocks(len(weights), len(x) + len(z)):
        at_x, at_z = (gates(kernel, weights[part] @ p.T + biases[part, None]) for p in (x, z))
        total += at_z.T @ (readout[part, None] ** 2 * (at_x @ augmented))
    return np.sum(total[:, :-1] * z, axis=1) + total[:, -1], total[:, :-1]


def doubled(
    weights: Float[ArrayLike, "pairs d"],
    biases: Float[ArrayLike, " pairs"],
    readout: Float[ArrayLike, " pairs"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The antisymmetric doubling: neurons (w, b, a) and (w, b, -a), so that the initial function is
    zero.

    The doubled network has twice the rows; draw readout ~ N(0, 1/width) with the doubled width.
    Theory: 4.4.
    """
    w, b, a = (np.asarray(value, np.float64) for value in (weights, biases, readout))
    return np.concatenate([w, w]), np.concatenate([b, b]), np.concatenate([a, -a])
