"""Certificates: at which points of real data two finite networks are proven to agree, with
constants and no pictures.

Theorem. Let p_f(z) bound the probability that f has not the sign of f_hat at z, and Z_f be the
points of smallest p_f with sum p_f <= delta/2: a set fixed by the data. Given f and the targets,
let p_g(z) bound the probability that the fresh network g has not the sign of g_hat_w at z, and Z_g
be points of Z_f where the two signs agree, again those of smallest p_g with sum p_g <= delta/2.
With probability >= 1 - delta over both initialisations, sgn f = sgn g at every point of Z_g. Proof.
A union bound over Z_f; given f, one over Z_g, since g is drawn afresh; integrate over f. QED

The bounds p are those of `tails`. They depend on the data only, so times may be chosen for the
largest Z_f or Z_g before the network concerned is drawn, at no cost in delta. The points z must be
independent of f's initialisation and the targets: training inputs are allowed, perturbed ones are
not.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from perturbkernel.checks import check_choice, check_number
from perturbkernel.dynamics import GradientFlow
from perturbkernel.kernels import TwoLayerNTK
from perturbkernel.predictors import fit, input_gradient
from perturbkernel.theory.arguments import (
    as_labels,
    as_points,
    check_kernel,
    check_statement,
    check_time,
    double,
)
from perturbkernel.theory.constants import Constants, derive_constants
from perturbkernel.theory.leading import g_hat_u, g_hat_w, psi
from perturbkernel.theory.matching import STARTS
from perturbkernel.theory.tails import Speeds, Tail, derive_speeds, derive_tail


def _smallest(p: np.ndarray, allowed: np.ndarray, budget: float) -> Bool[np.ndarray, " m"]:
    """The allowed points of smallest p whose sum stays within the budget."""
    order = np.argsort(np.where(allowed, p, np.inf), kind="stable")
    chosen = np.zeros(len(p), bool)
    chosen[order[np.cumsum(np.where(allowed, p, np.inf)[order]) <= budget]] = True
    return chosen


@dataclass(frozen=True)
class SideCertificate:
    """One network's half of a certificate, at every query point.

    Attributes:
        leading: (m,), f_hat, or the normalised g_hat_w: the predicted output per unit of time (and
            size).
        failure: (m,), the bound p on the probability of the other sign.
        parts: what C consists of, (m,) each, at the level delta / (2 m) for every point: "initial",
            "lazy", "concentration", and for g "residual" (C_xi) and "random labels" (psi), all in
            the units of `leading`.
        certified: (m,), the set Z of the theorem for this network alone.
        time, width: as used.
    """

    leading: Float[np.ndarray, " m"]
    failure: Float[np.ndarray, " m"]
    parts: dict[str, Float[np.ndarray, " m"]]
    certified: Bool[np.ndarray, " m"]
    time: float
    width: int

    @property
    def constant(self) -> Float[np.ndarray, " m"]:
        """C(z), the sum of the parts. |leading| > C is enough at a point, whatever the other points
        are.
        """
        return np.sum(list(self.parts.values()), axis=0)

    @property
    def margin(self) -> Float[np.ndarray, " m"]:
        """|leading| - C, positive where the condition of the theorem holds with constants at an
        even split of delta.
        """
        return np.abs(self.leading) - self.constant


@dataclass(frozen=True)
class Certificate:
    """What `certify` found.

    Attributes:
        f, g: each network's half.
        progress: medians over the points of T_f |f_hat| and T_g size |g_hat_w|: what training has
            done. Without it a certificate proves little, since every sign is certified as T tends
            to 0.
        agree: (m,), where f_hat and g_hat_w have the same sign.
        certified: (m,), where sgn f = sgn g is proven, with probability 1 - delta at all of them
            together.
        share: the fraction certified.
        half_width: the smallest width of both networks at which half of the points would be
            certified, or None.
        limits: in words, what keeps the other points from being certified.
        perturbed, targets: (n, d) and (n,), the training set of g.
        delta, size, start: as asked.
    """

    f: SideCertificate
    g: SideCertificate
    progress: tuple[float, float]
    agree: Bool[np.ndarray, " m"]
    certified: Bool[np.ndarray, " m"]
    half_width: int | None
    limits: str
    perturbed: Float[np.ndarray, "n d"] = field(repr=False)
    targets: Float[np.ndarray, " n"] = field(repr=False)
    delta: float
    size: float
    start: str

    @property
    def share(self) -> float:
        return float(self.certified.mean())

    def __str__(self) -> str:
        half = "none up to 10^12" if self.half_width is None else f"{self.half_width:,}"
        return (
            f"{self.share:.1%} of {len(self.certified)} points certified to agree with probability {1 - self.delta:g} "
            f"(f alone {self.f.certified.mean():.1%}, g alone {self.g.certified.mean():.1%})\n"
            f"widths {self.f.width:,} and {self.g.width:,}, start {self.start}, T_f = {self.f.time:.4g}, "
            f"T_g = {self.g.time:.4g}: median T_f |f_hat| = {self.progress[0]:.3g}, "
            f"T_g size |g_hat_w| = {self.progress[1]:.3g}\n"
            f"smallest width that certifies half of the points: {half}\n{self.limits}"
        )


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
    """The share of points at which one network's sign is certified, and its progress, median T
    |f_hat|, against time.

    The share tends to 1 as T tends to 0, which proves nothing (start "random": to 0); read it
    beside the progress.
    """
    constants, speeds = _prepare(kernel, x, y, z, width, delta, start)
    times = np.atleast_1d(np.asarray(times, float))
    for time in times:
        check_time(time, "times", positive=True)
    shares = [_share(constants, speeds, width, float(time), delta, start) for time in times]
    return np.array(shares), times * np.median(np.abs(constants.f_hat))


def best_time(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
    *,
    width: int,
    delta: float,
    start: str = "centred",
    progress: float = 1.0,
) -> float:
    """The time with median T |f_hat| >= progress that certifies the sign of one network at most
    points.

    It depends on the data alone, so nothing is paid for the choice.
    """
    check_number(progress, "progress", open_low=True)
    return _best_time(
        *_prepare(kernel, x, y, z, width, delta, start), width, delta, start, progress
    )


def _prepare(kernel, x, y, z, width, delta, start) -> tuple[Constants, Speeds]:
    check_statement(delta, width)
    check_choice(start, "start", STARTS)
    constants = derive_constants(kernel, x, y, z)
    return constants, derive_speeds(constants)


def _share(constants, speeds, width, time, delta, start) -> float:
    p = np.exp(derive_tail(constants, speeds, width=width, time=time, start=start).log_failure())
    return float(_smallest(p, constants.f_hat != 0, delta / 2).mean())


def _best_time(constants, speeds, width, delta, start, progress) -> float:
    least = progress / np.median(np.abs(constants.f_hat)) * (1 + 1e-12)
    times = [least] if start != "random" else least * 2 ** (np.arange(17) / 2)
    return float(max(times, key=lambda time: _share(constants, speeds, width, time, delta, start)))


def certify(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
    *,
    width: int,
    size: float,
    targets: Float[ArrayLike, " n"],
    times: tuple[float, float | str] | str = "best",
    delta: float = 0.1,
    start: str = "centred",
    f: Callable | None = None,
    carrier: Float[ArrayLike, "n d"] | None = None,
    progress: float = 1.0,
) -> Certificate:
    """At which points the signs of f, trained on (x, y), and of g, trained on f's perturbations,
    are proven equal.

    Args:
        kernel: of both networks: slope, and whether biases are trained.
        x, y: (n, d), (n,) in {-1, +1}: the training set of f. z: (m, d), the points.
        width: of both networks.
        size: l2 length of each perturbation, > 0.
        targets: (n,) in {-1, +1}, what g is trained on; any labels drawn before g.
        times: (T_f, T_g), effective times; or "best": those that certify most points among times
            with median T_f |f_hat| and T_g size |g_hat_w| at least `progress`.
        delta: the probability that the statement may fail, over both initialisations.
        start: "centred" (f - f0, g - g0, perturbations from grad f - grad f0), "doubled"
            (antisymmetric), or "random".
        f: the trained first network, whose input gradients make the perturbations; `times` is then
            (T_f, T_g or "best"). None: its infinite-width limit stands in (start "random": without
            initial function), to plan with.
        carrier: (n, d); None is scenario (a), zero; x is scenario (b).

    Raises:
        ValueError: bad arguments; a zero gradient, where the perturbation is undefined.

    Source: theory 6.4, with the one-sided bounds of `tails` in place of 2.2, 3.3 and 4.1.
    """
    check_kernel(kernel)
    check_number(size, "size", open_low=True)
    check_number(progress, "progress", open_low=True)
    constants, speeds = _prepare(kernel, x, y, z, width, delta, start)
    n = constants.count
    targets = as_labels(targets, "targets", n)
    carrier = (
        np.zeros_like(constants.x)
        if carrier is None
        else as_points(carrier, "carrier", like=constants.x, rows=n)
    )
    time_f, time_g = ("best", "best") if isinstance(times, str) and times == "best" else times
    if isinstance(time_f, str):
        if f is not None:
            raise ValueError(
                "times must be (T_f, T_g) with the time f was trained to; `best_time` finds one beforehand"
            )
        time_f = _best_time(constants, speeds, width, delta, start, progress)
    check_time(time_f, "times", positive=True)

    if f is None:
        train = partial(fit, kernel, constants.x, constants.y, dynamics=GradientFlow(time_f))
        gradients = double(lambda: train().input_gradient(constants.x))
    else:
        gradients = np.asarray(input_gradient(f, jnp.asarray(constants.x)), float)
    lengths = np.linalg.norm(gradients, axis=1)
    if not (lengths > 0).all():
        raise ValueError(
            f"undefined: f has a zero gradient at {int((lengths == 0).sum())} training points"
        )
    u = gradients / lengths[:, None]
    r = carrier + size * targets[:, None] * u
    second = derive_constants(kernel, r, targets, constants.z)
    second_speeds = derive_speeds(second)
    g_hat = g_hat_w(kernel, constants.x, constants.y, r, lengths / time_f, constants.z)
    residual = np.abs(g_hat_u(kernel, r, u, constants.z) - g_hat)
    labels = np.abs(psi(kernel, r, carrier, targets, constants.z)) / size
    # The mean output of g is size (g_hat_u + psi/size), known exactly; g_hat_w must predict its
    # sign.
    predicted = second.f_hat * g_hat > 0
    free = {"f": isinstance(times, str), "g": isinstance(time_g, str)}
    progress_g = progress * _median_ratio(second.f_hat, size * g_hat)
    if free["g"]:
        time_g = _best_time(second, second_speeds, width, delta, start, progress_g)
    check_time(time_g, "times", positive=True)

    agree = constants.f_hat * g_hat > 0

    def half(width: int, name: str) -> tuple[Tail, np.ndarray]:
        """The tail bound of one network at a width, at the best time there if times are free, and
        p.
        """
        data, rate, time, least = {
            "f": (constants, speeds, time_f, progress),
            "g": (second, second_speeds, time_g, progress_g),
        }[name]
        if free[name] and start == "random":
            time = _best_time(data, rate, width, delta, start, least)
        tail = derive_tail(data, rate, width=width, time=time, start=start)
        return tail, np.exp(tail.log_failure())

    def certified(p_f: np.ndarray, p_g: np.ndarray) -> Bool[np.ndarray, " m"]:
        first = _smallest(p_f, constants.f_hat != 0, delta / 2)
        return _smallest(p_g, first & agree & predicted, delta / 2)

    (tail_f, p_f), (tail_g, p_g) = half(width, "f"), half(width, "g")
    level = delta / 2 / constants.points
    parts_g = {name: part / size for name, part in tail_g.constant(level).items()}
    parts_g |= {"residual": residual, "random labels": labels}
    alone_f, alone_g = (
        _smallest(p_f, constants.f_hat != 0, delta / 2),
        _smallest(p_g, predicted, delta / 2),
    )
    f_half = SideCertificate(
        constants.f_hat, p_f, tail_f.constant(level), alone_f, tail_f.time, width
    )
    g_half = SideCertificate(g_hat, p_g, parts_g, alone_g, tail_g.time, width)
    proven = certified(p_f, p_g)
    return Certificate(
        f=f_half,
        g=g_half,
        progress=(
            float(np.median(tail_f.time * np.abs(constants.f_hat))),
            float(np.median(tail_g.time * size * np.abs(g_hat))),
        ),
        agree=agree,
        certified=proven,
        half_width=_smallest_width(
            lambda w: certified(half(w, "f")[1], half(w, "g")[1]).mean() >= 0.5
        ),
        limits=_limits(f_half, g_half, agree, proven),
        perturbed=r,
        targets=targets,
        delta=delta,
        size=size,
        start=start,
    )


def _median_ratio(numerator: np.ndarray, denominator: np.ndarray) -> float:
    return float(np.median(np.abs(numerator)) / np.median(np.abs(denominator)))


def _smallest_width(enough: Callable[[int], bool]) -> int | None:
    """By bisection in the logarithm, to two digits; the share certified grows with the width."""
    widths = np.unique(np.round(10 ** (np.arange(10, 121) / 10), -1).astype(int))
    low, high = 0, len(widths)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(int(widths[middle])) else (middle + 1, high)
    return int(widths[low]) if low < len(widths) else None


def _limits(
    f: SideCertificate, g: SideCertificate, agree: np.ndarray, certified: np.ndarray
) -> str:
    """Which part of which constant stands in the way at most of the points that are not certified."""
    left = ~certified
    if not left.any():
        return "nothing is left to certify"
    said = []
    if (left & ~agree).any():
        said.append(f"f_hat and g_hat_w differ in sign at {int((left & ~agree).sum())}")
    for name, side in (("f", f), ("g", g)):
        blocked = left & agree & ~side.certified
        if blocked.any():
            shares = {
                part: np.median(values[blocked] / np.abs(side.leading[blocked]))
                for part, values in side.parts.items()
            }
            largest = max(shares, key=lambda part: shares[part])
            said.append(
                f"{name} is not certified at {int(blocked.sum())}, mostly by its {largest} "
                f"({shares[largest]:.2g} of |{'f_hat' if name == 'f' else 'g_hat_w'}|, median)"
            )
    if not said:
        said.append("f and g are each certified, but not within one budget of delta")
    return f"of {int(left.sum())} points not certified: " + "; ".join(said)
