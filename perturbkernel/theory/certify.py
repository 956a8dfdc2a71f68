"""Certificates: at which points of real data two finite networks are proven to agree.

Let p_f(z) bound the probability that f has not the sign of f_hat at z, and Z_f be the points of
smallest p_f with sum p_f <= delta/2. Given f and the targets, let p_g(z) bound the probability that
the fresh network g has not the sign of g_hat_w at z, and Z_g be the points of Z_f where the two
signs agree, again those of smallest p_g with sum p_g <= delta/2. With probability >= 1 - delta over
both initialisations, sgn f = sgn g at every point of Z_g.

The bounds p are those of `tails`, and depend on the data only: times may be chosen for the largest
Z_f or Z_g at no cost in delta. The points z must be independent of f's initialisation and the
targets: training inputs are allowed, perturbed ones are not. Theory: 6.6, with the proof.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from perturbkernel._moved import renamed
from perturbkernel.checks import check_number
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import (
    as_labels,
    as_points,
    check_kernel,
    check_statement,
    check_time,
    double,
)
from perturbkernel.theory.certificates import (
    Certificate,
    SideCertificate,
    cheapest,
    describe_limits,
)
from perturbkernel.theory.concentration import independent_neurons
from perturbkernel.theory.constants import Constants, derive_constants
from perturbkernel.theory.leading import g_hat_u, g_hat_w, is_rounding, psi
from perturbkernel.theory.tails import Speeds, Tail, derive_speeds, derive_tail, has_sign
from perturbkernel.training.dynamics import GradientFlow
from perturbkernel.training.fit import fit
from perturbkernel.training.pullbacks import input_gradient


def certified_share(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
    times: Float[ArrayLike, " t"],
    *,
    width: int,
    delta: float,
    start: str = "centred",
) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"]]:
    """The share of points at which one network's sign is certified, and how far training is then.

    Two arrays, (t,) each; the second holds the medians of T |f_hat| over the points.

    The share tends to 1 as T tends to 0, which proves nothing (start "random": to 0); read it
    beside the second.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0], [1.0, 0.9]]
        >>> kernel, claim = pk.TwoLayerNTK(), {"width": 10**6, "delta": 0.1}
        >>> share, median = pk.theory.certified_share(kernel, x, y, z, [0.1, 1.0, 1000.0], **claim)
        >>> share, median.round(2)
        (array([1. , 1. , 0.5]), array([1.000e-02, 1.300e-01, 1.313e+02]))
    """
    constants, speeds = _prepare(kernel, x, y, z, width, delta, start)
    times = np.atleast_1d(np.asarray(times, float))
    for time in times:
        check_time(time, "times", positive=True)
    shares = [_share(constants, speeds, width, float(time), delta, start) for time in times]
    return np.array(shares), times * np.median(np.abs(constants.f_hat))


@renamed(progress="min_output")
def best_time(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
    *,
    width: int,
    delta: float,
    start: str = "centred",
    min_output: float = 1.0,
) -> float:
    """The time with median T |f_hat| >= min_output that certifies most signs of one network.

    It depends on the data alone, so this choice costs nothing in delta.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> round(pk.theory.best_time(pk.TwoLayerNTK(), x, y, z, width=10**6, delta=0.1), 2)
        4.22
    """
    check_number(min_output, "min_output", open_low=True)
    constants, speeds = _prepare(kernel, x, y, z, width, delta, start)
    return _best_time(constants, speeds, width, delta, start, min_output)


def _prepare(kernel, x, y, z, width, delta, start) -> tuple[Constants, Speeds]:
    check_statement(delta, width)
    independent_neurons(width, start)
    constants = derive_constants(kernel, x, y, z)
    return constants, derive_speeds(constants)


def _failure(constants, speeds, width, time, start) -> Float[np.ndarray, " m"]:
    tail = derive_tail(constants, speeds, width=width, time=time, start=start)
    return np.exp(tail.log_failure())


def _share(constants, speeds, width, time, delta, start) -> float:
    p = _failure(constants, speeds, width, time, start)
    return float(cheapest(p, has_sign(constants), delta / 2).mean())


def _best_time(constants, speeds, width, delta, start, min_output) -> float:
    sizes = np.where(has_sign(constants), np.abs(constants.f_hat), 0)
    typical = np.median(sizes)
    if typical == 0:
        raise ValueError(
            "undefined: opposite labels cancel, so that the predicted output is zero at half of "
            "the points or more and no time makes progress there; a time must be given in place "
            'of "best"'
        )
    least = min_output / typical * (1 + 1e-12)
    times = [least]
    if start == "random":
        times = least * 2 ** (np.arange(17) / 2)
    return float(max(times, key=lambda time: _share(constants, speeds, width, time, delta, start)))


def _check_times(times: Any, f_is_given: bool) -> tuple[float | str, float | str]:
    """(T_f, T_g), each a positive number or "best"."""
    wanted = 'times must be "best" or a pair (T_f, T_g), each a number > 0 or "best"'
    if isinstance(times, str):
        pair = (times, times)
    else:
        try:
            pair = tuple(times)
        except TypeError:
            raise TypeError(f"{wanted}; got {times!r}") from None
    if len(pair) != 2:
        raise ValueError(f"{wanted}; got {len(pair)} values: {times!r}")
    for time in pair:
        if not isinstance(time, str):
            check_time(time, "times", positive=True)
        elif time != "best":
            raise ValueError(f"{wanted}; got {times!r}")
    if f_is_given and pair[0] == "best":
        raise ValueError(
            "times must be (T_f, T_g) with the time f was trained to; `best_time` finds one "
            "beforehand"
        )
    return pair


class _Side(NamedTuple):
    """One network before its width is chosen: its training set and its time.

    `is_free`: the time is the best one at every width.
    """

    constants: Constants
    speeds: Speeds
    time: float
    is_free: bool
    min_output: float

    def tail(self, width: int, delta: float, start: str) -> Tail:
        time = self.time
        if self.is_free and start == "random":  # otherwise the best time does not depend on it
            time = _best_time(self.constants, self.speeds, width, delta, start, self.min_output)
        return derive_tail(self.constants, self.speeds, width=width, time=time, start=start)


def _perturbation_directions(constants: Constants, f, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (n, d) and lengths (n,) of f's gradients at the training inputs.

    Without f, those of the limit trained to `time`.
    """
    c = constants
    if f is None:
        trained = double(lambda: fit(c.kernel, c.x, c.y, dynamics=GradientFlow(time)))
        gradients = double(lambda: trained.input_gradient(c.x))
        zero = is_rounding(c.kernel, c.x, gradients / time)
    else:
        gradients = np.asarray(input_gradient(f, jnp.asarray(c.x)), float)
        zero = ~gradients.any(axis=1)
    lengths = np.linalg.norm(gradients, axis=1)
    if not np.isfinite(lengths).all():
        count = int((~np.isfinite(lengths)).sum())
        raise ValueError(f"undefined: f has no finite gradient at {count} training points")
    zero |= lengths == 0
    if zero.any():
        raise ValueError(f"undefined: f has a zero gradient at {int(zero.sum())} training points")
    return gradients / lengths[:, None], lengths


class _Leading(NamedTuple):
    """What g is, per unit of time and size, and what g_hat_w leaves out of it, (m,) each."""

    g_hat: Float[np.ndarray, " m"]
    residual: Float[np.ndarray, " m"]
    labels: Float[np.ndarray, " m"]


def _leading(constants: Constants, r, u, nu, carrier, targets, size: float) -> _Leading:
    c = constants
    g_hat = g_hat_w(c.kernel, c.x, c.y, r, nu, c.z)
    residual = np.abs(g_hat_u(c.kernel, r, u, c.z) - g_hat)
    labels = np.abs(psi(c.kernel, r, carrier, targets, c.z)) / size
    return _Leading(g_hat, residual, labels)


@renamed(progress="min_output")
def certify(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
    *,
    width: int,
    size: float,
    targets: Float[ArrayLike, " n"],
    times: tuple[float | str, float | str] | str = "best",
    delta: float = 0.1,
    start: str = "centred",
    f: Callable[..., Any] | None = None,
    carrier: Float[ArrayLike, "n d"] | None = None,
    min_output: float = 1.0,
) -> Certificate:
    """Finds the points at which f, trained on (x, y), and g, trained on f's perturbations, provably
    agree.

    Example:
        >>> import perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0], [1.0, 1.0]]
        >>> claim = {"width": 10**12, "size": 0.1, "targets": [1, -1], "times": (100.0, 100.0)}
        >>> c = pk.theory.certify(pk.TwoLayerNTK(), x, y, z, **claim)
        >>> c.certified.tolist(), c.share
        ([True, False], 0.5)

    Args:
        kernel: of both networks: slope, and whether biases are trained.
        x, y: (n, d), (n,) in {-1, +1}: the training set of f. z: (m, d), the points.
        width: of both networks; even if they are doubled.
        size: l2 length of each perturbation, > 0.
        targets: (n,) in {-1, +1}, what g is trained on; any labels drawn before g.
        times: (T_f, T_g), effective times, either of which may be "best": the one that certifies
            most points among times with median T_f |f_hat| and T_g size |g_hat_w| at least
            `min_output`; "best" alone: both.
        delta: the probability that the statement may fail, over both initialisations.
        start: "centred" (f - f0, g - g0, perturbations from grad f - grad f0), "doubled"
            (antisymmetric), or "random".
        f: the trained first network, whose input gradients make the perturbations; `times` is then
            (T_f, T_g or "best"). None: its infinite-width limit stands in (start "random": without
            initial function), to plan with.
        carrier: (n, d); None is scenario (a), zero; x is scenario (b).

    Raises:
        ValueError: bad arguments; a zero gradient, where the perturbation is undefined; a time
            "best" where opposite labels cancel at half of the points or more.

    Inputs and size times c are another network, since biases start at the same scale: pixels in
    [0, 255] get a certificate of their own (a better one: gates move less). Only with c^2 times as
    many dimensions, the new ones zero, is everything the same (trained weights alone), at times
    that are c^2 times shorter.

    For networks so narrow or trained so long that they are not lazy there is `certify_experiment`.

    Source: theory 6.4, with the one-sided bounds of `tails` in place of 2.2, 3.3 and 4.1.
    """
    check_kernel(kernel)
    check_number(size, "size", open_low=True)
    check_number(min_output, "min_output", open_low=True)
    wanted_f, wanted_g = _check_times(times, f is not None)
    constants, speeds = _prepare(kernel, x, y, z, width, delta, start)
    n = constants.count
    targets = as_labels(targets, "targets", n)
    carrier = np.zeros_like(constants.x) if carrier is None else carrier
    carrier = as_points(carrier, "carrier", like=constants.x, rows=n)

    def side(constants: Constants, speeds: Speeds, wanted, min_output: float) -> _Side:
        if not isinstance(wanted, str):
            return _Side(constants, speeds, float(wanted), False, min_output)
        time = _best_time(constants, speeds, width, delta, start, min_output)
        return _Side(constants, speeds, time, True, min_output)

    side_f = side(constants, speeds, wanted_f, min_output)
    u, lengths = _perturbation_directions(constants, f, side_f.time)
    r = carrier + size * targets[:, None] * u
    leading = _leading(constants, r, u, lengths / side_f.time, carrier, targets, size)
    second = derive_constants(kernel, r, targets, constants.z)
    # min_output speaks of g_hat_w, the time of the tail bound is chosen by its whole mean output.
    min_output_g = min_output
    if wanted_g == "best":
        min_output_g = min_output * _median_ratio(second.f_hat, size * leading.g_hat)
    side_g = side(second, derive_speeds(second), wanted_g, min_output_g)
    return _certificate(side_f, side_g, leading, r, width, size, delta, start)


def _certificate(
    side_f: _Side,
    side_g: _Side,
    leading: _Leading,
    perturbed: np.ndarray,
    width: int,
    size: float,
    delta: float,
    start: str,
) -> Certificate:
    f, g, g_hat = side_f.constants, side_g.constants, leading.g_hat
    agree = f.f_hat * g_hat > 0
    # The mean output of g is size (g_hat_u + psi/size), known exactly; g_hat_w must predict its
    # sign.
    predicted = has_sign(g) & (g.f_hat * g_hat > 0)

    def certified(p_f: np.ndarray, p_g: np.ndarray) -> Bool[np.ndarray, " m"]:
        first = cheapest(p_f, has_sign(f), delta / 2)
        return cheapest(p_g, first & agree & predicted, delta / 2)

    def share(width: int) -> float:
        tails = [side.tail(width, delta, start) for side in (side_f, side_g)]
        failures = [np.exp(tail.log_failure()) for tail in tails]
        return certified(*failures).mean()

    tail_f = side_f.tail(width, delta, start)
    tail_g = side_g.tail(width, delta, start)
    p_f = np.exp(tail_f.log_failure())
    p_g = np.exp(tail_g.log_failure())
    level = delta / 2 / f.points
    parts_g = {name: part / size for name, part in tail_g.constant(level).items()}
    parts_g |= {"residual": leading.residual, "random labels": leading.labels}
    f_half = SideCertificate(
        leading=f.f_hat,
        failure=p_f,
        parts=tail_f.constant(level),
        certified=cheapest(p_f, has_sign(f), delta / 2),
        time=tail_f.time,
        width=width,
    )
    g_half = SideCertificate(
        leading=g_hat,
        failure=p_g,
        parts=parts_g,
        certified=cheapest(p_g, predicted, delta / 2),
        time=tail_g.time,
        width=width,
    )
    proven = certified(p_f, p_g)
    return Certificate(
        f=f_half,
        g=g_half,
        median_outputs=(
            float(np.median(tail_f.time * np.abs(f.f_hat))),
            float(np.median(tail_g.time * size * np.abs(g_hat))),
        ),
        agree=agree,
        certified=proven,
        half_width=_smallest_width(lambda width: share(width) >= 0.5),
        limits=describe_limits(f_half, g_half, agree, proven),
        perturbed=perturbed,
        targets=g.y,
        delta=delta,
        size=size,
        start=start,
    )


def _median_ratio(numerator: np.ndarray, denominator: np.ndarray) -> float:
    """Of the medians of the absolute values; 1 if the second is 0."""
    above = float(np.median(np.abs(numerator)))
    below = float(np.median(np.abs(denominator)))
    return above / below if below > 0 else 1.0


def _smallest_width(enough: Callable[[int], bool]) -> int | None:
    """By bisection in the logarithm, to two digits; the share certified grows with the width."""
    powers = 10 ** (np.arange(10, 121) / 10)
    widths = np.unique(np.round(powers, -1).astype(int)).tolist()
    low = 0
    high = len(widths)
    while low < high:
        middle = (low + high) // 2
        if enough(widths[middle]):
            high = middle
        else:
            low = middle + 1
    return widths[low] if low < len(widths) else None
