"""The term of the random labels in the output of the second network, psi (theory: 6.3)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import ArrayLike, Float

from perturbkernel.checks import check_choice, check_number
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import as_points, check_kernel, check_statement, cone_slope
from perturbkernel.theory.pairs import phi, tiles

LABEL_RULES = ("coin_flip", "balanced", "fixed")


@dataclass(frozen=True)
class LabelTerm:
    """The term of the random labels, psi, (m,).

    Attributes:
        systematic: psi_sys = (1/n) sum (Phi_n^+ - Phi_n^-)/2 kappa_n, its mean over coin-flip
            targets.
        systematic_bound: size (1 - slope)^2 / (2 pi sqrt(d)) (1/n) sum |kappa_n|, at least
            |psi_sys|.
        radius: with probability >= 1 - delta over the targets |psi - psi_sys| stays below it at all
            points at once.
        bound: B_psi = |psi_sys| + radius.
    """

    systematic: Float[np.ndarray, " m"]
    systematic_bound: Float[np.ndarray, " m"]
    radius: Float[np.ndarray, " m"]

    @property
    def bound(self) -> Float[np.ndarray, " m"]:
        return np.abs(self.systematic) + self.radius


def label_term(
    kernel: TwoLayerNTK,
    carrier: Float[ArrayLike, "n d"],
    u: Float[ArrayLike, "n d"],
    z: Float[ArrayLike, "m d"],
    *,
    size: float,
    delta: float,
    rule: str = "coin_flip",
    points: int | None = None,
) -> LabelTerm:
    """The term of the random labels and its bound B_psi, for targets drawn after f was trained.

    With kappa_n = <carrier_n, z> + c, Phi_n^+- = Phi(carrier_n +- size u_n, z) and
    b_n = (Phi_n^+ + Phi_n^-)/2 kappa_n,

        |psi - psi_sys| <= sqrt(2 log(2 points / delta)) / n sqrt(S)
        S = sum b_n^2 for "coin_flip" targets
        S = 2 sum (b_n - mean b)^2 for uniformly random "balanced" ones (n even)

    Any other targets: |psi| itself (`leading.psi`). Zero in scenario (a) with c = 0. psi_sys scales
    with size, as the signal does, and does not shrink with n. Theory: 6.3.

    Example:
        >>> import perturbkernel as pk
        >>> carrier, u, z = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]], [[2.0, 1.0]]
        >>> term = pk.theory.bounds.label_term(pk.TwoLayerNTK(), carrier, u, z, size=0.1, delta=0.1)
        >>> term.systematic.round(3), term.radius.round(3), term.bound.round(3)
        (array([0.005]), array([1.117]), array([1.122]))
    """
    check_kernel(kernel)
    check_choice(rule, "rule", LABEL_RULES[:2])
    check_number(size, "size")
    carrier = as_points(carrier, "carrier")
    u = as_points(u, "u", like=carrier, rows=len(carrier))
    z = as_points(z, "z", like=carrier)
    points = len(z) if points is None else points
    check_statement(delta, points=points)
    n = len(carrier)
    if rule == "balanced" and n % 2:
        raise ValueError(
            f'rule="balanced" needs an even number of points; got {n}. Evaluate psi itself instead'
        )
    # Sums of b and b^2 about the first b: in (a) with small sizes b hardly depends on n.
    sums = np.zeros((5, len(z)))
    first = np.zeros((len(z), 1))
    above = tiles(z, carrier + size * u)
    below = tiles(z, carrier - size * u)
    for (rows, columns, _, plus), (_, _, _, minus) in zip(above, below, strict=True):
        kappa = z[rows] @ carrier[columns].T + kernel.train_bias
        phi_plus = phi(kernel, plus)
        phi_minus = phi(kernel, minus)
        b = (phi_plus + phi_minus) / 2 * kappa
        gap = (phi_plus - phi_minus) / 2 * kappa
        if columns.start == 0:
            first[rows] = b[:, :1]
        rest = b - first[rows]
        terms = (gap, b**2, rest, rest**2, np.abs(kappa))
        sums[:, rows] += [term.sum(1) for term in terms]
    systematic, square, rest, rest_square, kappa = sums / n
    # The sum of squares in the bound: of b, or of twice its deviations from the mean.
    total = n * square
    if rule == "balanced":
        total = 2 * n * np.maximum(rest_square - rest**2, 0)
    log = np.log(2 * points / delta)
    radius = np.sqrt(2 * log * total) / n
    lipschitz_times_size = size * cone_slope(kernel) / np.sqrt(carrier.shape[1])
    return LabelTerm(
        systematic=systematic,
        systematic_bound=lipschitz_times_size * kappa,
        radius=radius,
    )
