"""Why a second network learns from perturbations, or does not: signal and random offset, in closed
form.

With o_n what carries perturbation n (0 or x_n), delta_n = y_n eps u_n, and h_n^+-(z) = K(o_n +- eps
u_n, z), a second network trained on the identity loss from zero predicts, per unit of time,

    g(z) = signal(z) + offset(z),   signal = (1/N) sum_n (h_n^+ - h_n^-) / 2,   offset = (1/N) sum_n
    y_n b_n(z), b_n = (h_n^+ + h_n^-) / 2,

where only the offset depends on the targets y. Over coin flips it has mean 0 and variance (1/N^2)
sum b_n^2; over balanced targets the part of b_n that is constant in n drops out (theory: 12.3,
6.3).
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float

from perturbkernel.checks import as_inputs, as_targets
from perturbkernel.engine import sums
from perturbkernel.kernels import products
from perturbkernel.kernels.base import Kernel


class Diagnosis(eqx.Module):
    """Signal against offset of the second network's output (per unit of time) at labelled points.

    Attributes:
        signal: (m,), the mean over target draws.
        offset: (m,), what the targets drawn added to it.
        offset_std: (m,), its standard deviation over target draws.
        probability: (m,), of the sign of the true label over target draws: N_c(label signal /
            offset_std).
        offset_radius: (m,), |offset| stays below it at one point with probability 0.9 (Hoeffding;
            coin flips only).
        assumes: in words, what the numbers hold for.
    """

    signal: Float[Array, " m"]
    offset: Float[Array, " m"]
    offset_std: Float[Array, " m"]
    probability: Float[Array, " m"]
    offset_radius: Float[Array, " m"]
    assumes: str = eqx.field(static=True)

    @property
    def expected_accuracy(self) -> Array:
        """Mean over the points of the probability of success."""
        return self.probability.mean()


def _terms(kernel: Kernel, name: str, query, points, weights, before) -> tuple[Array, ...]:
    """Sums over a tile's n of (h+ - h-)/2, b, b^2, y b, and of b minus a reference, and its square;
    each (m,).
    """

    def sums(tile, query, points):
        (z, reference), (plus, minus, (count, y)) = query, points
        above, below = (tile(z, p) for p in (plus, minus))
        b = (above + below) / 2
        count, y = count[None, :], y[None, :]
        shifted = b - reference[:, None]
        terms = (
            (above - below) / 2 * count,
            b * count,
            b**2 * count,
            b * y,
            shifted * count,
            shifted**2 * count,
        )
        return tuple(jnp.sum(term, axis=1) for term in terms)

    return products.evaluate_tile(sums, kernel, name, query, (*points, weights), before)


def _sums(
    kernel: Kernel, z: Array, plus: Array, minus: Array, targets: Array, mesh: Mesh | None
) -> tuple[Array, ...]:
    # The variance over balanced targets is that of b around any constant; b itself would cancel in
    # float32.
    first = sum(kernel.ntk(z, p[:1])[:, 0] for p in (plus, minus)) / 2
    weights = jnp.ones_like(targets), targets
    return sums.sums(_terms, kernel, "ntk", False, (z, first), (plus, minus), weights, mesh=mesh)


def diagnose(
    kernel: Kernel,
    carrier: Float[ArrayLike, "n ..."],
    delta: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m ..."],
    labels: Float[ArrayLike, " m"],
    *,
    balanced: bool = False,
    mesh: Mesh | None = None,
) -> Diagnosis:
    """The diagnosis at points z with true labels, for perturbations delta_n = targets_n eps u_n on
    carrier_n.

    `balanced` : the targets were drawn with sum zero (odd n: sum +-1) instead of by independent
    coin flips. `mesh`: devices that share the work, as in `Kernel.matvec`.
    """
    carrier = kernel.check_inputs(carrier, "carrier")
    z = kernel.check_inputs(z, "z", like=carrier.shape[1:])
    delta = as_inputs(delta, "delta", like=carrier.shape[1:])
    if len(delta) != len(carrier):
        raise ValueError(
            f"delta must have one row a row of the carrier, {len(carrier)}; got {len(delta)}"
        )
    targets = as_targets(targets, "targets", len(carrier))
    labels = as_targets(labels, "labels", len(z))
    n = len(carrier)
    toward = delta * targets.reshape(-1, *(1,) * (delta.ndim - 1))
    signal, b, b_squared, offset, shift, shift_squared = (
        s / n for s in _sums(kernel, z, carrier + toward, carrier - toward, targets, mesh)
    )
    if balanced:
        # E y_n y_k = (s^2 - n) / (n (n - 1)) for n != k, s the sum of the targets: 0, or +-1 for
        # odd n.
        spread = shift_squared - shift**2
        variance = spread / (n - 1) if n % 2 == 0 else ((n + 1) / n * spread + b**2 / n) / n
    else:
        variance = b_squared / n
    std = jnp.sqrt(jnp.maximum(variance, 0))
    certain = jnp.where(signal == 0, 0.5, (labels * signal > 0).astype(signal.dtype))
    probability = jnp.where(std > 0, ndtr(labels * signal / jnp.where(std > 0, std, 1)), certain)
    radius = jnp.sqrt(2 * np.log(2 / 0.1) * b_squared / n)
    assumes = (
        f"identity loss, zero initial function, {'balanced' if balanced else 'coin-flip'} targets"
    )
    return Diagnosis(signal, offset, std, probability, radius, assumes)
