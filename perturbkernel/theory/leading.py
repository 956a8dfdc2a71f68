"""Leading terms: what an infinitely wide network's gradient and outputs are, per unit of time
(theory: 5.3, 6.1, 6.2).

x (n, d), y (n,) train the first network; r (n, d) are the perturbed points that train the second; z
(m, d) are queries.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import (
    as_labels,
    as_points,
    as_vector,
    check_kernel,
    cone_slope,
    double,
    gate_mean_square,
)
from perturbkernel.theory.pairs import angle_gradient, gate_matmul, phi, row_sums


def _training_set(kernel, x, y, z) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    check_kernel(kernel)
    x = as_points(x, "x")
    return x, as_labels(y, "y", len(x)), as_points(z, "z", like=x)


def f_hat(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
) -> Float[np.ndarray, " m"]:
    """The kernel predictor per unit of time, (1/n) sum_n y_n K(x_n, z), (m,).

    Identity loss, infinite width: f(z; T) = f0(z) + T f_hat(z) at every T, exactly. Theory: 1.1.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> pk.theory.f_hat(pk.TwoLayerNTK(), x, y, z).round(3)
        array([0.237])
    """
    x, y, z = _training_set(kernel, x, y, z)
    return double(kernel.matvec, z, x, y / len(x))


def direction(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
) -> Float[np.ndarray, "m d"]:
    """The paper's direction of perturbations: v(z) = (1/n) sum_n y_n Phi(x_n, z) x_n, (m, d).

    The gradient of f_hat with the gates held fixed; `limit_gradient` has the exact one. Theory:
    2.3, 5.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> pk.theory.direction(pk.TwoLayerNTK(), x, y, z).round(3)
        array([[ 0.209, -0.182]])
    """
    x, y, z = _training_set(kernel, x, y, z)
    signed = y[:, None] * x / len(x)
    return double(kernel.phi_matmul, z, x, signed)


def gate_motion(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
) -> Float[np.ndarray, "m d"]:
    """What the motion of the gates adds to the direction, zeta(z) = (1/n) sum_{x_n != z} y_n k_n(z)
    grad_z Phi(x_n, z).

    (m, d), with k_n(z) = <x_n, z> + c. It survives infinite width; zero for slope 1. Bounded by
    `bounds.gate_motion_bound`. Theory: 5.3.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> pk.theory.gate_motion(pk.TwoLayerNTK(), x, y, z).round(3)
        array([[ 0.01 , -0.054]])
    """
    x, y, z = _training_set(kernel, x, y, z)
    scale = -cone_slope(kernel) * y / len(x)
    return angle_gradient(
        z, x, lambda product, columns: scale[columns] * (product + kernel.train_bias)
    )


def limit_gradient(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
) -> Float[np.ndarray, "m d"]:
    """grad f_hat(z) = v(z) + zeta(z), (m, d): the limit of (grad f(z; T) - grad f0(z)) / T as width
    grows.

    As calculus exact; that finite networks converge to it is measured, at rate width^(-1/4).
    Theory: 5.3.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> pk.theory.limit_gradient(pk.TwoLayerNTK(), x, y, z).round(3)  # v + zeta
        array([[ 0.219, -0.236]])
    """
    x, y, z = _training_set(kernel, x, y, z)
    return double(kernel.input_gradient, z, x, y / len(x))


def gated_projection(
    kernel: TwoLayerNTK,
    r: Float[ArrayLike, "n d"],
    vectors: Float[ArrayLike, "n d"],
    z: Float[ArrayLike, "m d"],
    *,
    weights: Float[ArrayLike, " n"] | float = 1.0,
    absolute: bool = False,
) -> Float[np.ndarray, " m"]:
    """(1/n) sum_n weights_n Phi(r_n, z) <vectors_n, z>, (m,): the form of every g_hat.

    `absolute` takes |<vectors_n, z>|, which the criteria of 6.2, 6.4 and 7.3 need. Theory: 6.1,
    6.2.

    Example:
        >>> import perturbkernel as pk
        >>> r, vectors, z = [[0.1, 0.0]], [[1.0, 0.0]], [[2.0, 1.0], [-2.0, 1.0]]
        >>> pk.theory.gated_projection(pk.TwoLayerNTK(), r, vectors, z).round(3)
        array([ 0.699, -0.659])
    """
    check_kernel(kernel)
    r = as_points(r, "r")
    vectors = as_points(vectors, "vectors", like=r, rows=len(r))
    z = as_points(z, "z", like=r)
    weights = as_vector(weights, "weights", len(r)) / len(r)
    if not absolute:
        moved = gate_matmul(kernel, z, r, weights[:, None] * vectors)
        return np.sum(z * moved, axis=1)

    def sizes(rows, columns, _, theta):
        products = z[rows] @ vectors[columns].T
        terms = phi(kernel, theta) * np.abs(products)
        return (terms @ weights[columns],)

    (total,) = row_sums(z, r, sizes)
    return total


def input_direction(kernel, x, y) -> np.ndarray:
    """v(x_n), (n, d), of the training points. Theory: 5.3."""
    x, y, _ = _training_set(kernel, x, y, x)
    return gate_matmul(kernel, x, x, y[:, None] * x / len(x))


def is_rounding(kernel: TwoLayerNTK, x: np.ndarray, v: np.ndarray) -> Bool[np.ndarray, " m"]:
    """Which rows of v = (1/n) sum_n y_n Phi x_n are zero to rounding: opposite duplicates, say.
    Theory: 13.1.
    """
    scale = gate_mean_square(kernel) * np.mean(np.linalg.norm(x, axis=1))
    return np.linalg.norm(v, axis=1) <= 8 * np.finfo(float).eps * scale


def g_hat(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    r: Float[ArrayLike, "n d"],
    z: Float[ArrayLike, "m d"],
) -> Float[np.ndarray, " m"]:
    """The paper's leading term of the second network, (1/n) sum_n Phi(r_n, z) <v(x_n), z>, (m,).

    It leaves out the normalisation of the perturbations; its sign is that of `g_hat_w` under
    `spread_condition`. Theory: 6.2.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> r = [[0.1, 0.0], [0.0, -0.1]]
        >>> pk.theory.g_hat(pk.TwoLayerNTK(), x, y, r, z).round(3)
        array([0.075])
    """
    return gated_projection(kernel, r, input_direction(kernel, x, y), z)


def g_hat_u(
    kernel: TwoLayerNTK,
    r: Float[ArrayLike, "n d"],
    u: Float[ArrayLike, "n d"],
    z: Float[ArrayLike, "m d"],
) -> Float[np.ndarray, " m"]:
    """The exact leading term, (1/n) sum_n Phi(r_n, z) <u_n, z>, (m,), u_n the unit directions used.

    (1/size) (1/n) sum_n target_n K(r_n, z) = g_hat_u(z) + psi(z) / size exactly. Theory: 6.1.

    Example:
        >>> import perturbkernel as pk
        >>> r, u, z = [[0.1, 0.0], [0.0, -0.1]], [[1.0, 0.0], [0.0, -1.0]], [[2.0, 1.0]]
        >>> pk.theory.g_hat_u(pk.TwoLayerNTK(), r, u, z).round(3)
        array([0.182])
    """
    return gated_projection(kernel, r, u, z)


def g_hat_w(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    r: Float[ArrayLike, "n d"],
    nu: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
) -> Float[np.ndarray, " m"]:
    """The normalised leading term, (1/n) sum_n Phi(r_n, z) <v(x_n), z> / nu_n, (m,).

    nu_n = |grad f(x_n; T)| / T > 0. g_hat_u - g_hat_w = (1/n) sum_n Phi(r_n, z) <xi(x_n), z> / nu_n
    exactly, with xi = grad f / T - v. NaN everywhere if some nu_n is 0: the perturbation is
    undefined there. Theory: 6.2.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> r, nu = [[0.1, 0.0], [0.0, -0.1]], [0.3, 0.3]
        >>> pk.theory.g_hat_w(pk.TwoLayerNTK(), x, y, r, nu, z).round(3)
        array([0.249])
    """
    v = input_direction(kernel, x, y)
    nu = as_vector(nu, "nu", len(v), low=0)
    if not np.all(nu > 0):
        return np.full(len(as_points(z, "z", like=v)), np.nan)
    return gated_projection(kernel, r, v, z, weights=1 / nu)


def psi(
    kernel: TwoLayerNTK,
    r: Float[ArrayLike, "n d"],
    carrier: Float[ArrayLike, "n d"],
    targets: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
    *,
    weights: Float[ArrayLike, " n"] | float = 1.0,
) -> Float[np.ndarray, " m"]:
    """The term of the random labels, (1/n) sum_n target_n Phi(r_n, z) (<carrier_n, z> + c), (m,).

    `weights` (n,) multiply the targets (realised weights of the logistic loss, section 7).
    `carrier` is zero in scenario (a) and x in (b). Zero only in (a) with c = 0. Theory: 6.1, 6.3.

    Example:
        >>> import perturbkernel as pk
        >>> r, zero, z = [[0.1, 0.0], [0.0, -0.1]], [[0.0, 0.0], [0.0, 0.0]], [[2.0, 1.0]]
        >>> pk.theory.psi(pk.TwoLayerNTK(train_bias=True), r, zero, [1, 1], z).round(3)
        array([0.342])
        >>> pk.theory.psi(pk.TwoLayerNTK(train_bias=True), r, zero, [1, -1], z).round(3)
        array([0.008])
    """
    check_kernel(kernel)
    r = as_points(r, "r")
    carrier = as_points(carrier, "carrier", like=r, rows=len(r))
    z = as_points(z, "z", like=r)
    signed = as_labels(targets, "targets", len(r)) * as_vector(weights, "weights", len(r))

    def terms(rows, columns, _, theta):
        products = z[rows] @ carrier[columns].T + kernel.train_bias
        weighted = phi(kernel, theta) * products
        return (weighted @ signed[columns] / len(r),)

    (total,) = row_sums(z, r, terms)
    return total


@dataclass(frozen=True)
class Spread:
    """Whether dropping the weights 1 / nu_n can change a sign.

    Attributes:
        spread: s_omega = (max - min) / (max + min) of the weights; NaN if a weight is undefined.
        threshold: (m,), s_omega (1/n) sum_n Phi(r_n, z) |<v(x_n), z>|.
        holds: (m,), |g_hat(z)| > threshold, which implies sgn g_hat = sgn g_hat_w.
    """

    spread: float
    threshold: Float[np.ndarray, " m"]
    holds: Bool[np.ndarray, " m"]


def spread_condition(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    r: Float[ArrayLike, "n d"],
    nu: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
) -> Spread:
    """sgn g_hat(z) = sgn g_hat_w(z) wherever |g_hat(z)| > s_omega (1/n) sum_n Phi(r_n, z) |<v(x_n),
    z>|.

    `nu` (n,): |grad f(x_n; T)| / T, or |v(x_n)|; weights are 1 / nu. Undefined (NaN, holds nowhere)
    if a nu_n is 0. Sufficient, not necessary; deterministic. Theory: 6.2.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> r, nu = [[0.1, 0.0], [0.0, -0.1]], [0.3, 0.4]
        >>> s = pk.theory.spread_condition(pk.TwoLayerNTK(), x, y, r, nu, z)
        >>> round(s.spread, 3), s.threshold.round(3), s.holds
        (0.143, array([0.011]), array([ True]))
    """
    v = input_direction(kernel, x, y)
    nu = as_vector(nu, "nu", len(v), low=0)
    sizes = gated_projection(kernel, r, v, z, absolute=True)
    least = float(nu.min())
    most = float(nu.max())
    spread = np.nan
    if least > 0:
        spread = (most - least) / (most + least)
    threshold = spread * sizes
    leading = gated_projection(kernel, r, v, z)
    return Spread(spread, threshold, np.abs(leading) > threshold)
