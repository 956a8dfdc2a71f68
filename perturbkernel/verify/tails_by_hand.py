"""The one-sided tails, and what they certify, written out a second time, as `by_hand`."""

import math
from typing import NamedTuple

import numpy as np

from perturbkernel.verify.by_hand import MEAN_SIZE, ROOT_TWO_PI, Data, lengths, square_bound

_TINY = 1e-300
# Logarithms of the chances that a network's variance exceeds its bound, of which the best is taken.
_VARIANCE_LOGS = (8.0, 11.0, 14.0, 18.0, 25.0)


class Tail(NamedTuple):
    """What the one-sided tail is made of, (m,) each: mean/T, its lazy part, v/T^2 and c."""

    mean: np.ndarray
    lazy: np.ndarray
    variance: np.ndarray
    scale: np.ndarray


def _smaller(plain, halved, price, readout) -> tuple[np.ndarray, np.ndarray]:
    """(coefficient of |a|, of a^2) of the bound on one moment of the time in the other state that
    is smaller at a typical |a|; root by root, as the second moments are added.
    """
    take = halved + readout * price < plain
    of_size = np.where(take, halved, plain)
    of_square = np.where(take, price, 0)
    return of_size, of_square


class _Flips(NamedTuple):
    """At one query: how often the gates at each training point flip, and what that costs, (n,)."""

    flip: np.ndarray
    price: np.ndarray


def _flips(data: Data, j: int) -> _Flips:
    """The gates at the training points, seen from query j."""
    s = lengths(data.x)
    high = data.at_inputs.high(data.slope)
    low = data.at_inputs.low(data.slope)
    sign = 1.0 if data.f_hat[j] >= 0 else -1.0
    theta = data.theta[:, j]
    helps = np.sign(sign * data.parts[:, j])
    toward = np.maximum(helps * np.cos(theta), 0)
    sine = np.maximum(np.sin(theta), _TINY)  # no division by zero at the query itself
    kappa = toward / (sine * s * ROOT_TWO_PI)
    density = 1 / (ROOT_TWO_PI * s)
    mean_speed = (high + low) / 2
    mean_square = (high**2 + low**2) / 2
    return _Flips(
        flip=density * mean_speed,
        price=density * kappa * mean_square,
    )


class _Moments(NamedTuple):
    """The moments of the lazy error at one query."""

    j1: float
    j2: float
    k1: float
    k2: float


def _moments(data: Data, j: int, width: int, time: float) -> _Moments:
    g = data.slope
    q = 1 - g
    readout = math.sqrt(8 / (np.pi * width))
    flip, price = _flips(data, j)
    first = flip * time**2 / 2
    of_size, of_square = _smaller(
        plain=first,
        halved=first * (1 + g) / 2,
        price=q * price * time**3 / 6,
        readout=readout,
    )
    second = flip * time**3 / 3
    halved = second * (1 + g**2) / 2
    second_price = (1 - g**2) * price * time**4 / 12
    root_of_size, root_of_square = _smaller(
        plain=np.sqrt(second),
        halved=np.sqrt(halved),
        price=np.sqrt(second_price),
        readout=math.sqrt(readout),
    )
    own_first, own_second = _own_flips(data, j, time)
    size = np.abs(data.parts[:, j])
    large = q * (size @ root_of_size + own_second)
    small = q * (size @ root_of_square)
    mean_large = q * (size @ of_size + own_first)
    mean_small = q * (size @ of_square)
    product = large * small
    return _Moments(
        j1=float(mean_large),
        j2=float(mean_small),
        k1=large**2 + product * width**-0.25,
        k2=small**2 + product * width**0.25,
    )


def _own_flips(data: Data, j: int, time: float) -> tuple[float, float]:
    """What gates that flip at query j itself add to both moments."""
    high = data.high(data.slope)[j]
    low = data.low(data.slope)[j]
    s = lengths(data.z)[j]
    density = 1 / (ROOT_TWO_PI * s)
    squares = high**2 + low**2
    cubes = high**3 + low**3
    first = density * time**2 * squares / 4
    second = density * time**3 * cubes / 6
    return first, math.sqrt(second)


def tail(data: Data, width: int, time: float) -> Tail:
    """The tail of every query, from the moments j1, j2, k1, k2. Source: the theorem of
    `perturbkernel.theory.tails`.
    """
    tails = [_tail_at(data, j, width, time) for j in range(data.points)]
    mean, lazy, variance, scale = np.array(tails).T
    return Tail(mean, lazy, variance, scale)


def _tail_at(data: Data, j: int, width: int, time: float) -> tuple[float, float, float, float]:
    """The four numbers of a `Tail` at query j."""
    root = math.sqrt(width)
    f_hat = data.f_hat[j]
    moments = _moments(data, j, width, time)
    lazy = 2 * MEAN_SIZE * moments.j1 / root + 3 * moments.j2 / width
    gates = 8 * MEAN_SIZE * moments.k1 / root + 15 * moments.k2 / width
    predictor = math.sqrt(3 * data.second_moment[j])
    deviation = predictor * time + math.sqrt(gates)
    mean = abs(f_hat) * time - lazy
    fastest = data.low if f_hat >= 0 else data.high
    against = fastest(data.slope)
    scale = 7 / 3 * against[j]
    variance = (deviation / time) ** 2
    return mean / time, lazy / time, variance, scale


def log_moments(one: Tail, t: np.ndarray) -> np.ndarray:
    """log of the bracket of (tail), infinite from t = 1/c on, (len(t), m)."""
    room = 1 - one.scale * t
    before = room > 0
    safe = np.where(before, room, 1)
    square = t**2 * one.variance / (2 * safe)
    bracket = 1 - t * one.mean + square
    bracket = np.maximum(bracket, _TINY)
    log = np.log(bracket)
    return np.where(before, log, np.inf)


def rates(one: Tail) -> np.ndarray:
    """A fine grid of t over twelve decades, in units of 1 / sqrt(v / T^2)."""
    grid = np.geomspace(1e-6, 1e6, 8000)
    deviation = np.sqrt(one.variance)
    return grid[:, None] / deviation


def log_initial_tail(data: Data, w: np.ndarray, width: int) -> np.ndarray:
    """log of the bound on P(s f0 <= -w), (m,), for w (m,).

    The better of two: Chernoff with the exact moments, at rates up to 0.98 sqrt(width) / s; or
    Gaussian given the weights, whose variance bound fails with probability e^-8, ..., e^-25.
    """
    s = lengths(data.z)
    best = _log_chernoff(data.slope, w, s, width)
    for log in _VARIANCE_LOGS:
        square = square_bound(data.slope, log, width)
        deviation = s * math.sqrt(square)
        chance = _normal_tail(w / deviation) + math.exp(-log)
        best = np.minimum(best, np.log(chance))
    return np.minimum(best, 0)


def _log_chernoff(slope: float, w: np.ndarray, s: np.ndarray, width: int) -> np.ndarray:
    """log of Chernoff's bound on the chance of an output beyond w, (m,)."""
    rate = np.geomspace(1e-4, 0.98, 3000)
    rate = rate[:, None]
    above = 1 - rate**2
    below = 1 - (slope * rate) ** 2
    moment = (above**-0.5 + below**-0.5) / 2
    log_moment = width * np.log(moment)
    exponent = rate * math.sqrt(width) * w / s
    return np.min(log_moment - exponent, axis=0)


def _normal_tail(standard: np.ndarray) -> np.ndarray:
    """P(a > standard) of a standard normal a."""
    scaled = standard / math.sqrt(2)
    return np.array([0.5 * math.erfc(v) for v in scaled])


def log_failure(data: Data, one: Tail, width: int, time: float, start: str) -> np.ndarray:
    """log of the bound on the probability of the other sign, (m,)."""
    t = rates(one)
    neurons = width / 2 if start == "doubled" else width
    moments = neurons * log_moments(one, t)
    if start != "random":
        return np.minimum(moments.min(0), 0)
    largest = np.maximum(one.mean, 0) * time
    shares = (0.0, *np.geomspace(1e-3, 1, 60))
    best = np.zeros(data.points)
    for share in shares:
        w = share * largest
        shifted = moments + t * width * w / time
        moved = np.minimum(shifted.min(0), 0)
        initial = log_initial_tail(data, w, width)
        either = np.logaddexp(initial, moved)
        best = np.minimum(best, either)
    return best


def concentration(one: Tail, neurons: float, level: float) -> np.ndarray:
    """mean/T - x, x the largest at which (tail) is at most the level, (m,)."""
    t = rates(one)
    wanted = math.log(level) / neurons
    missing = wanted - log_moments(one, t)
    reached = missing / t
    return one.mean - np.max(reached, axis=0)


def within_budget(p: np.ndarray, allowed: np.ndarray, budget: float) -> np.ndarray:
    """The surest of the allowed points, one by one while their sum stays within the budget."""
    chosen = np.zeros(len(p), bool)
    spent = 0.0
    candidates = np.flatnonzero(allowed)
    surest_first = sorted(candidates, key=lambda j: p[j])
    for j in surest_first:
        spent += p[j]
        if spent > budget:
            break
        chosen[j] = True
    return chosen
