"""Finite networks given as plain arrays: outputs, gradients and tangent kernels, in float64 and
blocks of neurons.

f(z) = sum_i readout_i phi(u_i(z)), u_i(z) = <weights_i, z> + biases_i, with weights (width, d),
biases and readout (width,); phi is the leaky ReLU of the kernel's slope and phi'(0) = slope.
"""

from typing import NamedTuple

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
    """phi'(u): 1 for u > 0, else the slope.

    Example:
        >>> gates(TwoLayerNTK(0.2), np.array([3.0, 0.0, -1.0])).tolist()
        [1.0, 0.2, 0.2]
    """
    return np.where(u > 0, 1.0, kernel.slope)


class _Network(NamedTuple):
    """Weights (width, d), biases and readout (width,), checked, in float64."""

    weights: np.ndarray
    biases: np.ndarray
    readout: np.ndarray

    def gates(self, kernel: TwoLayerNTK, part: slice, points: np.ndarray) -> np.ndarray:
        """phi' of some neurons at the points, (neurons, m)."""
        u = self.before(part, points)
        return gates(kernel, u)

    def before(self, part: slice, points: np.ndarray) -> np.ndarray:
        """u of some neurons at the points, (neurons, m)."""
        products = self.weights[part] @ points.T
        return products + self.biases[part, None]

    def squared_readout(self, part: slice) -> np.ndarray:
        """a^2 of some neurons, (neurons, 1)."""
        return self.readout[part, None] ** 2


def _checked(kernel, weights, biases, readout, z) -> tuple[_Network, np.ndarray]:
    check_kernel(kernel)
    z = as_points(z, "z")
    d = z.shape[1]
    arrays = as_network(weights, biases, readout, d)
    return _Network(*arrays), z


def output(
    kernel: TwoLayerNTK,
    weights: Float[ArrayLike, "width d"],
    biases: Float[ArrayLike, " width"],
    readout: Float[ArrayLike, " width"],
    z: Float[ArrayLike, "m d"],
) -> Float[np.ndarray, " m"]:
    """The network's outputs f(z), (m,).

    Example:
        >>> network = np.eye(2), np.zeros(2), np.array([3.0, 4.0])
        >>> output(TwoLayerNTK(), *network, [[1.0, -1.0]]).tolist()
        [3.0]
    """
    net, z = _checked(kernel, weights, biases, readout, z)
    total = np.zeros(len(z))
    for part in neuron_blocks(len(net.weights), len(z)):
        u = net.before(part, z)
        active = gates(kernel, u) * u
        total += net.readout[part] @ active
    return total


def gradient(
    kernel: TwoLayerNTK,
    weights: Float[ArrayLike, "width d"],
    biases: Float[ArrayLike, " width"],
    readout: Float[ArrayLike, " width"],
    z: Float[ArrayLike, "m d"],
) -> Float[np.ndarray, "m d"]:
    """The network's input gradients, sum_i readout_i phi'(u_i(z)) weights_i, (m, d).

    Example:
        >>> network = np.eye(2), np.zeros(2), np.array([3.0, 4.0])
        >>> gradient(TwoLayerNTK(), *network, [[1.0, -1.0]]).tolist()
        [[3.0, 0.0]]
    """
    net, z = _checked(kernel, weights, biases, readout, z)
    total = np.zeros(z.shape)
    for part in neuron_blocks(len(net.weights), len(z)):
        gate = net.gates(kernel, part, z)
        weighted = net.readout[part, None] * net.weights[part]
        total += gate.T @ weighted
    return total


def gate_moment(
    kernel: TwoLayerNTK,
    weights: Float[ArrayLike, "width d"],
    biases: Float[ArrayLike, " width"],
    readout: Float[ArrayLike, " width"],
    x: Float[ArrayLike, "n d"],
    z: Float[ArrayLike, "m d"],
) -> Float[np.ndarray, "n m"]:
    """Phi_width(x_n, z_j), (n, m), whose mean over draws of the network is Phi.

        Phi_width(x, z) = sum_i readout_i^2 phi'(u_i(x)) phi'(u_i(z))

    The tangent kernel of this network is Phi_width (<x, z> + c). Theory: 0.1, 2.

    Example:
        >>> import perturbkernel as pk
        >>> network = [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0], [1.0, 2.0]  # weights, biases, readout
        >>> x, z = [[1.0, 1.0]], [[2.0, 1.0], [2.0, -1.0]]
        >>> pk.theory.gate_moment(pk.TwoLayerNTK(), *network, x, z)
        array([[5., 1.]])
    """
    net, z = _checked(kernel, weights, biases, readout, z)
    x = as_points(x, "x", like=z)
    total = np.zeros((len(x), len(z)))
    for part in neuron_blocks(len(net.weights), len(x) + len(z)):
        at_x = net.gates(kernel, part, x)
        at_z = net.gates(kernel, part, z)
        weighted = net.squared_readout(part) * at_z
        total += at_x.T @ weighted
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

        f_hat_width(z) = (1/n) sum_n y_n Phi_width(x_n, z) k_n(z)
        v_width(z) = (1/n) sum_n y_n Phi_width(x_n, z) x_n

    Cost O(width (n + m) d). Theory: 2.2, 2.3.

    Example:
        >>> import perturbkernel as pk
        >>> network = [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0], [1.0, 2.0]  # weights, biases, readout
        >>> x, y, z = [[1.0, 1.0]], [1.0], [[2.0, 1.0]]
        >>> pk.theory.tangent_predictor(pk.TwoLayerNTK(), *network, x, y, z)
        (array([15.]), array([[5., 5.]]))
    """
    net, z = _checked(kernel, weights, biases, readout, z)
    x = as_points(x, "x", like=z)
    n = len(x)
    y = as_labels(y, "y", n)
    bias_column = np.full((n, 1), float(kernel.train_bias))
    augmented = np.hstack([x, bias_column])
    shares = y / n
    labelled = augmented * shares[:, None]
    total = np.zeros((len(z), x.shape[1] + 1))
    for part in neuron_blocks(len(net.weights), n + len(z)):
        at_x = net.gates(kernel, part, x)
        at_z = net.gates(kernel, part, z)
        moved = at_x @ labelled
        total += at_z.T @ (net.squared_readout(part) * moved)
    direction = total[:, :-1]
    from_weights = np.sum(direction * z, axis=1)
    from_biases = total[:, -1]
    return from_weights + from_biases, direction


def doubled(
    weights: Float[ArrayLike, "pairs d"],
    biases: Float[ArrayLike, " pairs"],
    readout: Float[ArrayLike, " pairs"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The antisymmetric doubling: neurons (w, b, a) and (w, b, -a), whose initial function is zero.

    The doubled network has twice the rows; draw readout ~ N(0, 1/width) with the doubled width.
    Theory: 4.4.

    Example:
        >>> doubled([[1.0, 2.0]], [3.0], [4.0])[2].tolist()
        [4.0, -4.0]
    """
    w = np.asarray(weights, np.float64)
    b = np.asarray(biases, np.float64)
    a = np.asarray(readout, np.float64)
    twice_w = np.concatenate([w, w])
    twice_b = np.concatenate([b, b])
    opposite = np.concatenate([a, -a])
    return twice_w, twice_b, opposite
