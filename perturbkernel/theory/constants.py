"""The constants of a training set at query points: one record, derived once, that every bound
reads.

With k_n(z) = <x_n, z> + c. One pass over n x n pairs and one over n x m pairs, in tiles: no such
matrix is held.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float

from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import (
    as_labels,
    as_points,
    check_kernel,
    check_loss,
    gate_mean_square,
    lengths,
)
from perturbkernel.theory.pairs import gate_fourth, phi, row_sums


@dataclass(frozen=True)
class Constants:
    """Constants of a training set (x, y) of n points at m query points z, for one kernel.

    Made by `derive_constants`.

    Attributes:
        kernel, x, y, z: what the record is about, in float64.
        norm, length: (m,), |z| and s_z = sqrt(1 + |z|^2/d).
        input_norm, input_length: (n,), the same of the training inputs.
        operator_norm: the largest singular value of x.
        radius: R = min((1/n) sum |x_n|, operator_norm / sqrt(n)); |(1/n) sum w_n y_n x_n| <= R for
            w in [0, 1]^n.
        positive, negative: (m,), P_z and M_z, the sums over n of (y_n k_n(z))_+ and (y_n k_n(z))_-.
        absolute: (m,), (1/n) sum |k_n(z)|.  absolute_apart: the same over x_n != z.
        mean_factor: (m,), (1/n) sum y_n k_n(z).
        f_hat: (m,), (1/n) sum y_n K(x_n, z).
        direction: (m, d), v(z).  input_direction: (n, d), v(x_n).
        f_second_moment: (m,), S_f^2, and direction_second_moment: (m,), S_v^2 (theory: 2.2, 2.3),
            clipped at 0.
        gate_fourth, gate_root: (m,), the means over n of Q(x_n, z) and of its square root.
        kernel_root: (m,), (1/n) sum |k_n(z)| sqrt(Q(x_n, z)).
        speeds: by loss, (m,), R_z: the most |(1/n) sum w_n y_n k_n(z)| can be over weights w in
            [slope, 1]^n (identity) or [0, 1]^n (logistic). A pre-activation at z moves by at most
            |a_i| time R_z.
        input_speeds: by loss, (n,), the same at the training inputs.
        couplings: by loss, (m,), (1/n) sum_n |k_n(z)| R_{x_n} / s_{x_n}.

    Theory: 2.2, 2.3, 3.1, 3.3.
    """

    kernel: TwoLayerNTK
    x: Float[np.ndarray, "n d"] = field(repr=False)
    y: Float[np.ndarray, " n"] = field(repr=False)
    z: Float[np.ndarray, "m d"] = field(repr=False)
    norm: Float[np.ndarray, " m"] = field(repr=False)
    length: Float[np.ndarray, " m"] = field(repr=False)
    input_norm: Float[np.ndarray, " n"] = field(repr=False)
    input_length: Float[np.ndarray, " n"] = field(repr=False)
    operator_norm: float
    radius: float
    positive: Float[np.ndarray, " m"] = field(repr=False)
    negative: Float[np.ndarray, " m"] = field(repr=False)
    absolute: Float[np.ndarray, " m"] = field(repr=False)
    absolute_apart: Float[np.ndarray, " m"] = field(repr=False)
    mean_factor: Float[np.ndarray, " m"] = field(repr=False)
    f_hat: Float[np.ndarray, " m"] = field(repr=False)
    direction: Float[np.ndarray, "m d"] = field(repr=False)
    input_direction: Float[np.ndarray, "n d"] = field(repr=False)
    f_second_moment: Float[np.ndarray, " m"] = field(repr=False)
    direction_second_moment: Float[np.ndarray, " m"] = field(repr=False)
    gate_fourth: Float[np.ndarray, " m"] = field(repr=False)
    gate_root: Float[np.ndarray, " m"] = field(repr=False)
    kernel_root: Float[np.ndarray, " m"] = field(repr=False)
    speeds: dict[str, Float[np.ndarray, " m"]] = field(repr=False)
    input_speeds: dict[str, Float[np.ndarray, " n"]] = field(repr=False)
    couplings: dict[str, Float[np.ndarray, " m"]] = field(repr=False)

    @property
    def count(self) -> int:
        """n, the number of training points."""
        return len(self.x)

    @property
    def points(self) -> int:
        """m, the number of query points."""
        return len(self.z)

    @property
    def dimension(self) -> int:
        """d, the dimension of the inputs."""
        return self.x.shape[1]

    def speed(self, loss: str = "identity") -> Float[np.ndarray, " m"]:
        """R_z, (m,): `speeds` of one loss."""
        check_loss(loss)
        return self.speeds[loss]


def _largest_singular_value(x: np.ndarray) -> float:
    # LAPACK on the smaller Gram matrix: the top eigenvalue, unlike the small ones, loses nothing by
    # squaring.
    n, d = x.shape
    gram = x @ x.T if n < d else x.T @ x
    largest = np.linalg.eigvalsh(gram)[-1]
    return float(np.sqrt(max(largest, 0)))


def _lowest_weights(kernel: TwoLayerNTK) -> dict[str, float]:
    """The least weight of a training point in a velocity: a closed gate, or no pull at all."""
    return {"identity": kernel.slope, "logistic": 0.0}


def _speeds(kernel: TwoLayerNTK, positive, negative) -> dict[str, np.ndarray]:
    """R_z by loss, from the means of the positive and negative parts of y_n k_n(z)."""
    speeds = {}
    for loss, low in _lowest_weights(kernel).items():
        upward = positive - low * negative
        downward = negative - low * positive
        speeds[loss] = np.maximum(upward, downward)
    return speeds


class _AtInputs(NamedTuple):
    """Sums over pairs of training points: parts of y_k k_k(x_n), and sum_k Phi(x_n, x_k) l_k."""

    positive: np.ndarray
    negative: np.ndarray
    weighted: np.ndarray


def _sum_at_inputs(kernel: TwoLayerNTK, x, y, labelled) -> _AtInputs:
    def terms(rows, columns, product, theta):
        signed = (product + kernel.train_bias) * y[columns]
        positive = np.maximum(signed, 0)
        negative = np.maximum(-signed, 0)
        return (
            positive.sum(1),
            negative.sum(1),
            phi(kernel, theta) @ labelled[columns],
        )

    return _AtInputs(*row_sums(x, x, terms))


class _AtQueries(NamedTuple):
    """Sums over the training points at each query, named as the attributes of `Constants`."""

    positive: np.ndarray
    negative: np.ndarray
    absolute_apart: np.ndarray
    f_hat: np.ndarray
    mean_factor: np.ndarray
    gate_fourth: np.ndarray
    gate_root: np.ndarray
    kernel_root: np.ndarray
    couplings: np.ndarray
    direction: np.ndarray


def _sum_at_queries(kernel: TwoLayerNTK, x, y, z, labelled, rates) -> _AtQueries:
    """`rates` (n, losses) are R_{x_n} / (n s_{x_n})."""

    def terms(rows, columns, product, theta):
        factor = product + kernel.train_bias
        size = np.abs(factor)
        signed = factor * y[columns]
        gates = phi(kernel, theta)
        fourth = gate_fourth(kernel.slope, theta)
        root = np.sqrt(fourth)
        positive = np.maximum(signed, 0)
        negative = np.maximum(-signed, 0)
        apart = np.where(theta > 0, size, 0)
        return (
            positive.sum(1),
            negative.sum(1),
            apart.sum(1),
            (gates * signed).sum(1),
            signed.sum(1),
            fourth.sum(1),
            root.sum(1),
            (root * size).sum(1),
            size @ rates[columns],
            gates @ labelled[columns, :-1],
        )

    return _AtQueries(*row_sums(z, x, terms))


def derive_constants(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
) -> Constants:
    """The record of constants of the training set (x, y) at the points z, which every bound reads.

    With A = (1 + g^2)/2, p = (1 + g)/2, g the slope, and F(z) = (1/n) sum y_n k_n(z),

        S_f^2(z) = (A/n^2) sum_{n,k} y_n y_k k_n k_k Phi(x_n, x_k)
                   + 4 p^2 F(z) (f_hat(z) - p^2 F(z))
        S_v^2(z) = (A/n^2) sum_{n,k} y_n y_k Phi(x_n, x_k) <x_n, x_k>
                   + 4 p^2 <yx, v(z) - p^2 yx>,  yx = mean of y_n x_n
        R_z = (1/n) max(P_z - low M_z, M_z - low P_z),
              low = slope (identity loss) or 0 (logistic loss)

    which is theory 2.2 and 2.3 with its sign covariance written as (Phi - p^2) / q^2 and B = 2 p q,
    so that slope 1 is no special case. Cost O(n^2 d + n m d) time, O(n d + m d) memory: the double
    sum over n, k is the quadratic form of one (d + 1, d + 1) matrix, because k_n(z) is linear in
    (z, c).

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> constants = pk.theory.derive_constants(pk.TwoLayerNTK(), x, y, z)
        >>> constants.f_hat.round(3), constants.speed("logistic").round(3)
        (array([0.237]), array([1.]))
    """
    check_kernel(kernel)
    x = as_points(x, "x")
    n = len(x)
    y = as_labels(y, "y", n)
    z = as_points(z, "z", like=x)
    # Rows y_n (x_n, c) / n: what a point contributes to v, and to the bias's own velocity.
    bias_column = np.full((n, 1), float(kernel.train_bias))
    labelled = y[:, None] * np.hstack([x, bias_column]) / n

    own = _sum_at_inputs(kernel, x, y, labelled)
    input_speeds = _speeds(kernel, own.positive / n, own.negative / n)
    input_length = lengths(x)
    rates = [speed / input_length / n for speed in input_speeds.values()]
    at = _sum_at_queries(kernel, x, y, z, labelled, np.stack(rates, axis=1))

    quadratic = labelled.T @ own.weighted
    f_hat = at.f_hat / n
    mean_factor = at.mean_factor / n
    input_norm = np.linalg.norm(x, axis=1)
    operator_norm = _largest_singular_value(x)
    return Constants(
        kernel=kernel,
        x=x,
        y=y,
        z=z,
        norm=np.linalg.norm(z, axis=1),
        length=lengths(z),
        input_norm=input_norm,
        input_length=input_length,
        operator_norm=operator_norm,
        radius=min(float(input_norm.mean()), operator_norm / np.sqrt(n)),
        positive=at.positive,
        negative=at.negative,
        absolute=(at.positive + at.negative) / n,
        absolute_apart=at.absolute_apart / n,
        mean_factor=mean_factor,
        f_hat=f_hat,
        direction=at.direction,
        input_direction=own.weighted[:, :-1],
        f_second_moment=_predictor_square(kernel, quadratic, z, mean_factor, f_hat),
        direction_second_moment=_direction_square(kernel, quadratic, y @ x / n, at.direction),
        gate_fourth=at.gate_fourth / n,
        gate_root=at.gate_root / n,
        kernel_root=at.kernel_root / n,
        speeds=_speeds(kernel, at.positive / n, at.negative / n),
        input_speeds=input_speeds,
        couplings={loss: at.couplings[:, i] for i, loss in enumerate(input_speeds)},
    )


def _predictor_square(kernel: TwoLayerNTK, quadratic, z, mean_factor, f_hat) -> np.ndarray:
    """S_f^2, (m,), clipped at 0."""
    ones = np.ones((len(z), 1))
    queries = np.hstack([z, ones])
    square = np.sum((queries @ quadratic) * queries, axis=1)
    a = gate_mean_square(kernel)
    p_squared = ((1 + kernel.slope) / 2) ** 2
    excess = f_hat - p_squared * mean_factor
    f_square = a * square + 4 * p_squared * mean_factor * excess
    return np.maximum(f_square, 0)


def _direction_square(kernel: TwoLayerNTK, quadratic, mean, direction) -> np.ndarray:
    """S_v^2, (m,), clipped at 0; `mean` is that of y_n x_n."""
    a = gate_mean_square(kernel)
    p_squared = ((1 + kernel.slope) / 2) ** 2
    cross = direction @ mean - p_squared * mean @ mean
    of_inputs = quadratic[:-1, :-1]
    v_square = a * np.trace(of_inputs) + 4 * p_squared * cross
    return np.maximum(v_square, 0)
