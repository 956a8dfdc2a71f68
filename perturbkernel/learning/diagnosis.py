"""Why a second network learns from perturbations, or does not: signal and random offset.

In closed form. With o_n what carries perturbation n (0 or x_n), delta_n = y_n eps u_n, and
h_n^+-(z) = K(o_n +- eps u_n, z), a second network trained on the identity loss from zero predicts,
per unit of time,

    g(z) = signal(z) + offset(z),
    signal = (1/N) sum_n (h_n^+ - h_n^-) / 2,
    offset = (1/N) sum_n y_n b_n(z),   b_n = (h_n^+ + h_n^-) / 2,

where only the offset depends on the targets y. Over coin flips it has mean 0 and variance (1/N^2)
sum b_n^2; over balanced targets the part of b_n that is constant in n drops out (theory: 12.3,
6.3).
"""

from typing import NamedTuple

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
from perturbkernel.kernels.target_sums import halves, target_sums


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


class _Sums(NamedTuple):
    """Those of `target_sums`, and the offset, (m,) each."""

    signal: Array
    b: Array
    b_squared: Array
    shift: Array
    shift_squared: Array
    offset: Array


def _terms(kernel: Kernel, name: str, query, points, weights, before) -> _Sums:
    """The sums over a tile's n."""

    def sums(tile, query, points):
        z, reference = query
        plus, minus, (count, y) = points
        above = tile(z, plus)
        below = tile(z, minus)
        half = halves(above, below)
        found = target_sums(half, reference, count[None, :])
        offset = jnp.sum(half.b * y[None, :], axis=1)
        return _Sums(*found, offset)

    return products.evaluate_tile(sums, kernel, name, query, (*points, weights), before)


def _sums(
    kernel: Kernel, z: Array, plus: Array, minus: Array, targets: Array, mesh: Mesh | None
) -> _Sums:
    # The variance over balanced targets is that of b around any constant; b itself would cancel in
    # float32.
    above = kernel.ntk(z, plus[:1])[:, 0]
    below = kernel.ntk(z, minus[:1])[:, 0]
    query = z, (above + below) / 2
    weights = jnp.ones_like(targets), targets
    found = sums.sums(_terms, kernel, "ntk", False, query, (plus, minus), weights, mesh=mesh)
    return _Sums(*found)


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
    """The diagnosis at points z with true labels.

    For perturbations delta_n = targets_n eps u_n on carrier_n. `balanced`: the targets were drawn
    with sum zero (odd n: sum +-1) instead of by independent coin flips. `mesh`: devices that share
    the work, as in `Kernel.matvec`.
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
    sums_over_n = _sums(kernel, z, carrier + toward, carrier - toward, targets, mesh)
    mean = _Sums(*[total / n for total in sums_over_n])
    std = jnp.sqrt(jnp.maximum(_offset_variance(mean, n, balanced), 0))
    rule = "balanced" if balanced else "coin-flip"
    return Diagnosis(
        signal=mean.signal,
        offset=mean.offset,
        offset_std=std,
        probability=_success(labels * mean.signal, std),
        offset_radius=jnp.sqrt(2 * np.log(2 / 0.1) * mean.b_squared / n),
        assumes=f"identity loss, zero initial function, {rule} targets",
    )


def _offset_variance(mean: _Sums, n: int, balanced: bool) -> Array:
    """The variance of the offset over target draws, (m,)."""
    if not balanced:
        return mean.b_squared / n
    # E y_n y_k = (s^2 - n) / (n (n - 1)) for n != k, s the sum of the targets: 0, or +-1 for
    # odd n.
    spread = mean.shift_squared - mean.shift**2
    if n % 2 == 0:
        return spread / (n - 1)
    return ((n + 1) / n * spread + mean.b**2 / n) / n


def _success(toward: Array, std: Array) -> Array:
    """The probability of the right sign, for a signal `toward` it and an offset's deviation."""
    certain = jnp.where(toward == 0, 0.5, (toward > 0).astype(toward.dtype))
    random = ndtr(toward / jnp.where(std > 0, std, 1))
    return jnp.where(std > 0, random, certain)
