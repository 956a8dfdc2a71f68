"""Why a second network learns from perturbations, or does not: signal and random offset.

In closed form. With o_n what carries perturbation n (0 or x_n), delta_n = y_n eps u_n, and
h_n^+-(z) = K(o_n +- eps u_n, z), a second network trained on the identity loss from zero predicts,
per unit of time,

    g(z) = signal(z) + offset(z),
    signal = (1/N) sum_n (h_n^+ - h_n^-) / 2,
    offset = (1/N) sum_n y_n b_n(z),   b_n = (h_n^+ + h_n^-) / 2,

where only the offset depends on the targets y. Over coin flips it has mean 0 and variance (1/N^2)
sum b_n^2; over balanced targets the part of b_n that is constant in n drops out (theory: 12.3,
6.3). `linearity` says whether g can be anything but linear (theory: section 15).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float

from perturbkernel.arrays import as_jax, namespace, on_host, or_one
from perturbkernel.checks import as_inputs, as_targets
from perturbkernel.display import Displayed
from perturbkernel.engine.sums import sums
from perturbkernel.kernels import host, products
from perturbkernel.kernels.base import Kernel
from perturbkernel.kernels.target_sums import halves, target_sums
from perturbkernel.learning.linearity import Linearity, assess


class Diagnosis(Displayed, eqx.Module):
    """The two parts of the second network's output (per unit of time) at labelled points: the
    signal, which does not depend on the targets drawn, and the random offset, which does.

    Attributes:
        signal: (m,), the mean over target draws.
        offset: (m,), what the targets drawn added to it.
        offset_std: (m,), its standard deviation over target draws.
        probability: (m,), of the sign of the true label over target draws: N_c(label signal /
            offset_std).
        offset_radius: (m,), |offset| stays below it at one point with probability 0.9 (Hoeffding;
            coin flips only).
        assumes: in words, what the numbers hold for.
        linearity: how linear g must be at these points, and how linear f is; None where theory 15.1
            is silent, or f was not given.
    """

    signal: Float[Array, " m"]
    offset: Float[Array, " m"]
    offset_std: Float[Array, " m"]
    probability: Float[Array, " m"]
    offset_radius: Float[Array, " m"]
    assumes: str = eqx.field(static=True)
    linearity: Linearity | None = None

    def _numbers(self) -> dict[str, Any]:
        return {
            "points": len(self.signal),
            "expected accuracy": self.expected_accuracy,
            "signal": np.abs(np.asarray(self.signal)),
            "random offset": self.offset_std,
            "assumes": self.assumes,
        }

    @property
    def says(self) -> str:
        """Whether g is, or can only be, linear here, and f is not; "" without `linearity`."""
        return "" if self.linearity is None else self.linearity.says

    @property
    def expected_accuracy(self) -> Array:
        """Mean over the points of the probability of success."""
        return as_jax(on_host(self.probability).mean())


class _Sums(NamedTuple):
    """Those of `target_sums`, and the offset, (m,) each."""

    signal: Any
    b: Any
    b_squared: Any
    shift: Any
    shift_squared: Any
    offset: Any


def _sums_of_tile(tile, query, points) -> _Sums:
    """The sums over a tile's n."""
    z, reference = query
    plus, minus, (count, y) = points
    above = tile(z, plus)
    below = tile(z, minus)
    half = halves(above, below)
    found = target_sums(half, reference, count[None, :])
    offset = (half.b * y[None, :]).sum(axis=1)
    return _Sums(*found, offset)


def _prepare(kernel: Kernel, queries, points):
    """Nothing: each tile meets two sets of points."""
    return (queries, None), (points, None), None


def _terms(kernel: Kernel, name: str, shared, query, points, weights, before) -> _Sums:
    def sums(tile, query, points):
        return _sums_of_tile(tile, query, (*points, weights))

    return products.evaluate_tile(sums, kernel, name, shared, query, points, before)


def _sums(
    kernel: Kernel, z: Array, plus: Array, minus: Array, targets: Array, mesh: Mesh | None
) -> _Sums:
    if mesh is None and host.takes(kernel, "ntk", z, plus, minus, targets):
        return _sums_on_host(kernel, z, plus, minus, np.asarray(targets))
    # The variance over balanced targets is that of b around any constant; b itself would cancel in
    # float32.
    above = kernel.ntk(z, plus[:1])[:, 0]
    below = kernel.ntk(z, minus[:1])[:, 0]
    query = z, (above + below) / 2
    weights = jnp.ones_like(targets), targets
    points = plus, minus
    found = sums(_terms, _prepare, kernel, "ntk", False, query, points, weights, mesh=mesh)
    return _Sums(*found)


def _sums_on_host(
    kernel: Kernel, z: Array, plus: Array, minus: Array, targets: np.ndarray
) -> _Sums:
    tile = partial(host.tile, kernel, "ntk")
    plus, minus = on_host(plus, minus)
    above = tile(z, plus[:1])
    below = tile(z, minus[:1])
    reference = (above + below) / 2
    weights = np.ones_like(targets), targets
    return _sums_of_tile(tile, (z, reference[:, 0]), (plus, minus, weights))


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
    f: Callable[..., Any] | None = None,
    g: Callable[..., Any] | None = None,
) -> Diagnosis:
    """The diagnosis at points z with true labels.

    For perturbations delta_n = targets_n eps u_n on carrier_n. `balanced`: the targets were drawn
    with sum zero (odd n: sum +-1) instead of by independent coin flips. `mesh`: devices that share
    the work, as in `Kernel.matvec`. `f`, `g`: the trained networks; with f the diagnosis says
    whether g can only be linear here, and f is not.

    Example:
        >>> import perturbkernel as pk
        >>> carrier, delta = np.zeros((2, 2)), np.asarray([[0.1, 0.0], [0.0, -0.1]])
        >>> z, labels = [[2.0, 1.0], [1.0, 2.0]], [1, -1]
        >>> d = pk.learning.diagnose(pk.TwoLayerNTK(), carrier, delta, [1, -1], z, labels)
        >>> d.signal.round(3), float(d.expected_accuracy)
        (Array([0.051, 0.051], dtype=float32), 0.5)
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
    bare, steps, signs = on_host(carrier, delta, targets)
    sign_of_row = signs.reshape(-1, *(1,) * (steps.ndim - 1))
    toward = steps * sign_of_row
    plus = as_jax(bare + toward)
    minus = as_jax(bare - toward)
    sums_over_n = _sums(kernel, z, plus, minus, targets, mesh)
    mean = _Sums(*[total / n for total in on_host(*sums_over_n)])
    xp = namespace(mean.signal)
    variance = _offset_variance(mean, n, balanced)
    std = xp.sqrt(xp.maximum(variance, 0))
    # By Hoeffding's inequality, with probability 0.9.
    log = float(np.log(2 / 0.1))
    radius = xp.sqrt(2 * log * mean.b_squared / n)
    right = on_host(labels) if xp is np else labels
    rule = "balanced" if balanced else "coin-flip"
    linearity = None
    if f is not None:
        start, change = on_host(carrier, delta)
        linearity = assess(kernel, as_jax(start + change), targets, z, labels, f=f, g=g)
    return Diagnosis(
        signal=as_jax(mean.signal),
        offset=as_jax(mean.offset),
        offset_std=as_jax(std),
        probability=as_jax(_success(right * mean.signal, std)),
        offset_radius=as_jax(radius),
        assumes=f"identity loss, zero initial function, {rule} targets",
        linearity=linearity,
    )


def _offset_variance(mean: _Sums, n: int, balanced: bool) -> Any:
    """The variance of the offset over target draws, (m,)."""
    if not balanced:
        return mean.b_squared / n
    # E y_n y_k = (s^2 - n) / (n (n - 1)) for n != k, s the sum of the targets: 0, or +-1 for
    # odd n.
    spread = mean.shift_squared - mean.shift**2
    if n % 2 == 0:
        return spread / (n - 1)
    of_rest = (n + 1) / n * spread
    of_sum = mean.b**2 / n
    return (of_rest + of_sum) / n


def _ndtr_on_host(values: np.ndarray) -> np.ndarray:
    scaled = -values / math.sqrt(2)
    return np.array([0.5 * math.erfc(value) for value in scaled.tolist()])


def _success(toward: Any, std: Any) -> Any:
    """The probability of the right sign, for a signal `toward` it and an offset's deviation."""
    xp = namespace(toward)
    distribution = _ndtr_on_host if xp is np else ndtr
    certain = xp.where(toward == 0, 0.5, (toward > 0).astype(toward.dtype))
    random = distribution(toward / or_one(std))
    return xp.where(std > 0, random, certain).astype(toward.dtype)
