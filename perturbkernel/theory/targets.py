"""What the random targets make of the second network at infinite width (theory: 12.3)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import ArrayLike, Float

from perturbkernel.checks import check_choice, check_number
from perturbkernel.kernels.target_sums import TargetSums, halves, target_sums
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import as_points, check_kernel, ndtr
from perturbkernel.theory.pairs import phi, tiles

TARGET_RULES = ("coin_flip", "balanced")


@dataclass(frozen=True)
class TargetMoments:
    """g_hat_K(z) = (1/n) sum_n target_n K(r_n, z) over draws of the targets, for given u.

    Attributes:
        mean: (m,), the signal (1/n) sum (h_n^+ - h_n^-)/2.
        variance: (m,), that of the offset (1/n) sum target_n b_n.
        positive: (m,), about P(g_hat_K > 0) = N_c(mean / sqrt(variance)); one half where both are
            zero.
    """

    mean: Float[np.ndarray, " m"]
    variance: Float[np.ndarray, " m"]

    @property
    def positive(self) -> Float[np.ndarray, " m"]:
        with np.errstate(divide="ignore", invalid="ignore"):
            deviation = np.sqrt(self.variance)
            ratio = np.where(self.mean == 0, 0, self.mean / deviation)
        return ndtr(ratio)


def target_moments(
    kernel: TwoLayerNTK,
    carrier: Float[ArrayLike, "n d"],
    u: Float[ArrayLike, "n d"],
    z: Float[ArrayLike, "m d"],
    *,
    size: float,
    rule: str = "coin_flip",
) -> TargetMoments:
    """Mean and variance of g_hat_K over the targets, exact.

    With h_n^+- = K(carrier_n +- size u_n, z), b_n = (h_n^+ + h_n^-)/2,

        mean     = (1/n) sum (h_n^+ - h_n^-)/2
        variance = (1/n^2) sum b_n^2                       "coin_flip" targets
                 = sum (b_n - mean b)^2 / (n (n - 1))      uniformly random "balanced" ones, n even
                 = [(n + 1)/n sum (b_n - mean b)^2 + (mean b)^2] / n^2      n odd, sum +-1

    Identity loss, zero initial function. The normal approximation of the sign: off by up to .035.
    Theory: 12.3, 6.3.

    Example:
        >>> import perturbkernel as pk
        >>> carrier, u, z = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]], [[2.0, 1.0]]
        >>> moments = pk.theory.target_moments(pk.TwoLayerNTK(), carrier, u, z, size=0.1)
        >>> moments.mean.round(3), moments.variance.round(3), moments.positive.round(3)
        (array([0.028]), array([0.209]), array([0.525]))
    """
    check_kernel(kernel)
    check_choice(rule, "rule", TARGET_RULES)
    check_number(size, "size")
    carrier = as_points(carrier, "carrier")
    n = len(carrier)
    u = as_points(u, "u", like=carrier, rows=n)
    z = as_points(z, "z", like=carrier)
    above = carrier + size * u
    below = carrier - size * u
    sums, first = _target_sums(kernel, z, above, below)
    mean = sums.signal / n
    rest = sums.shift / n
    spread = n * np.maximum(sums.shift_squared / n - rest**2, 0)
    b = rest + first
    if rule == "coin_flip":
        variance = spread / n**2 + b**2 / n
    elif n % 2:
        variance = ((n + 1) / n * spread + b**2) / n**2
    else:
        variance = spread / (n * (n - 1))
    return TargetMoments(mean, variance)


def _target_sums(
    kernel: TwoLayerNTK, z: np.ndarray, above: np.ndarray, below: np.ndarray
) -> tuple[TargetSums, np.ndarray]:
    """Those of the points moved along u, (n, d), and against it; and their reference b_1, (m,).

    b is summed about the first one, as in `labels.label_term`, since it hardly depends on n in (a)
    with small sizes.
    """
    sums = TargetSums(*np.zeros((len(TargetSums._fields), len(z))))
    first = np.zeros(len(z))

    def values(product, theta):
        return phi(kernel, theta) * (product + kernel.train_bias)

    for one, other in zip(tiles(z, above), tiles(z, below), strict=True):
        rows, columns, *up = one
        _, _, *down = other
        half = halves(values(*up), values(*down))
        if columns.start == 0:
            first[rows] = half.b[:, 0]
        parts = target_sums(half, first[rows])
        for total, part in zip(sums, parts, strict=True):
            total[rows] += part
    return sums, first
