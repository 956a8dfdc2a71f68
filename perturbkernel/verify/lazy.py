"""Checks of section 3: training moves gates little."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from perturbkernel import theory
from perturbkernel.verify.draws import (
    Network,
    Problem,
    Trained,
    fresh_and_trained,
    network,
    outputs,
    problem,
    row_norms,
    train,
)
from perturbkernel.verify.kernels import kernel_matrix
from perturbkernel.verify.protocol import Check, Sample, Setting


class _Run(NamedTuple):
    """A network before and after training."""

    net: Network
    done: Trained


def _trained(rng, s: Setting, p: Problem, watch: np.ndarray | None = None) -> _Run:
    net = network(rng, s.width, s.d)
    done = train(net, p.x, p.y, p.kernel, s, time=s.time, watch=watch)
    return _Run(net, done)


def _movement(rng, s: Setting, p: Problem) -> Sample:
    """Pre-activations at every visited step, and the weights."""
    net, done = _trained(rng, s, p, p.z)
    size = np.abs(net.readout)
    reach = size[:, None] * theory.bounds.displacement(p.constants, time=s.time, loss=s.loss)
    moved = row_norms(done.net.weights - net.weights)
    most = size * s.time * p.constants.radius
    return Sample(
        observed=np.column_stack([done.moved, moved]),
        bound=np.column_stack([reach, most]),
    )


def _reachable(rng, s: Setting, p: Problem) -> Sample:
    """The share of gates at z within reach, whose mean the lazy number bounds."""
    net = network(rng, s.width, s.d)
    gates = theory.certified_gates(*p.data, *net, time=s.time, loss=s.loss, refinements=0)
    share = gates.flips / s.width
    number = theory.bounds.lazy_number(p.constants, width=s.width, time=s.time, loss=s.loss)
    return Sample(share, number)


def own_kernel(net: Network, p: Problem, points: np.ndarray) -> np.ndarray:
    """K_m(x_n, .), the tangent kernel of the network before training, (n, k)."""
    factor = p.x @ points.T + p.kernel.train_bias
    return theory.gate_moment(p.kernel, *net, p.x, points) * factor


def linear_error(net: Network, done: Trained, s: Setting, p: Problem) -> np.ndarray:
    """|f - f_lin| at the queries, (m,).

        f_lin = f_0 + sum_n alpha_n y_n K_m(x_n, .)

    with the realised weights.
    """
    beta = np.ones(s.n)
    if s.loss == "logistic":
        beta = theory.realised_weights(done.history, p.y, done.rates, s.momentum)
    kernel = own_kernel(net, p, p.z)
    moved = s.time / s.n * (beta * p.y) @ kernel
    linear = outputs(net, p.z, s.slope) + moved
    return np.abs(outputs(done.net, p.z, s.slope) - linear)


class _LazyError(NamedTuple):
    """The network before training, and |f - f_lin| after, (m,)."""

    net: Network
    error: np.ndarray


def _lazy_error(rng, s: Setting, p: Problem) -> _LazyError:
    net, done = _trained(rng, s, p)
    return _LazyError(net, linear_error(net, done, s, p))


def _certified(refinements: int | None):
    def compare(drawn: _LazyError, s: Setting, p: Problem) -> Sample:
        gates = theory.certified_gates(
            *p.data, *drawn.net, time=s.time, loss=s.loss, refinements=refinements
        )
        return Sample(drawn.error, gates.bound, s.time * np.abs(p.constants.f_hat))

    return compare


def _gates_outside(rng, s: Setting, p: Problem) -> Sample:
    """Flips at a visited step, and whether each was certified possible."""
    net, done = _trained(rng, s, p, np.vstack([p.x, p.z]))
    gates = theory.certified_gates(*p.data, *net, time=s.time, loss=s.loss, keep_sets=True)
    assert gates.sets is not None and gates.input_sets is not None
    certified = np.hstack([gates.input_sets, gates.sets])
    outside = np.sum(done.flipped & ~certified, axis=0)
    tried = np.any(done.flipped, axis=0)
    return Sample(outside, np.where(tried, 0.0, np.nan))


def _a_priori(drawn: _LazyError, s: Setting, p: Problem) -> Sample:
    bound = theory.bounds.lazy_bound(
        p.constants, width=s.width, time=s.time, delta=s.delta, loss=s.loss
    )
    return Sample(drawn.error, bound, s.time * np.abs(p.constants.f_hat))


def _lazy_rate(rng, s: Setting, p: Problem) -> Sample:
    """Root mean square over test points of the error at every width."""
    values = []
    for width in s.widths:
        sums = fresh_and_trained(rng, p, s, width=width, time=s.time, linear=True)
        error = sums.change - sums.linear
        test = error[s.points // 4 :]  # the first are training points
        values.append(np.sqrt(np.mean(test**2)))
    return Sample(np.array(values))


def _lazy_spread(rng, s: Setting, p: Problem) -> Sample:
    """Half the squared difference of two networks' errors has the variance as its mean."""
    errors = []
    for _ in range(2):
        sums = fresh_and_trained(rng, p, s, width=s.width, time=s.time, linear=True)
        errors.append(sums.change - sums.linear)
    limit = theory.lazy_standard_deviation(p.constants, width=s.width, time=s.time)
    return Sample((errors[0] - errors[1]) ** 2 / 2, limit**2)


def _pull(y: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Minus the derivative of the logistic loss by the margins y f, (n,)."""
    return 1 / (1 + np.exp(y * outputs))


def _stability(rng, s: Setting, p: Problem) -> Sample:
    """A finite network and kernel logistic regression with its own tangent kernel, side by side.

    By plain descent; how far they are apart at the queries, against what their measured
    linearisation errors allow.
    """
    n = s.n
    points = np.vstack([p.x, p.z])
    net, done = _trained(rng, s, p, points)
    own = own_kernel(net, p, points)
    start, *after = done.path
    realised = np.zeros(n)
    kernel = np.zeros(n)
    error = np.zeros(len(start))
    before = start
    for rate, now in zip(done.rates, after, strict=True):
        kernel_outputs = start + (kernel * p.y) @ own
        kernel = kernel + rate / n * _pull(p.y, kernel_outputs[:n])
        realised = realised + rate / n * _pull(p.y, before[:n])
        linear = start + (realised * p.y) @ own
        error = np.maximum(error, np.abs(now - linear))
        before = now
    change = before - start
    apart = np.abs(change - (kernel * p.y) @ own)
    phi = np.diagonal(theory.gate_moment(p.kernel, *net, p.z, p.z))
    squares = np.sum(p.z**2, axis=1)
    curvature = np.linalg.norm(own[:, :n], 2) / (8 * n)
    bound = theory.bounds.logistic_stability(
        phi * (squares + p.kernel.train_bias),
        epsilon=error[:n].max(),
        time=s.time,
        epsilon_at=error[n:],
        step_ratio=done.rates.max() * curvature,
    )
    return Sample(apart[n:], bound, scale=np.abs(change)[n:])


def _stability_a_priori(rng, s: Setting, p: Problem) -> Sample:
    """The supremum over times of the linearisation error at training points.

    For the limit kernel.
    """
    _, done = _trained(rng, s, p, p.x)
    limit = kernel_matrix(p.kernel, "ntk", p.x, p.x)
    realised = np.zeros(s.n)
    error = np.zeros(s.n)
    for i, rate in enumerate(done.rates):
        realised = realised + rate / s.n * _pull(p.y, done.path[i])
        linear = done.path[0] + (realised * p.y) @ limit
        error = np.maximum(error, np.abs(done.path[i + 1] - linear))
    bound = theory.bounds.linearisation_error(
        theory.derive_constants(p.kernel, p.x, p.y, p.x),
        width=s.width,
        time=s.time,
        delta=s.delta,
        pairs=s.n * (s.n + 1) // 2 + s.n * s.points,
        points=s.n + s.points,
    )
    f_hat = theory.f_hat(p.kernel, p.x, p.y, p.x)
    return Sample(error, bound, s.time / 2 * np.abs(f_hat))


_ONE = Setting(draws=30, width=2000, slope=0.2, bias=True, time=0.1)
_LOGISTIC = Setting(draws=30, width=2000, slope=0.2, loss="logistic", time=0.1)
_TIMES = (
    Setting(draws=30, width=2000, time=0.1),
    Setting(draws=20, width=4000, slope=0.2, bias=True),
    Setting(draws=20, width=16000, time=1.0),
    Setting(draws=20, width=16000, slope=0.5, time=3.0),
)
_DATA: dict[str, Any] = {"prepare": problem, "shown": ("width", "time")}
_LAZY: dict[str, Any] = {"settings": (_ONE, _LOGISTIC), "full": (*_TIMES, _LOGISTIC), **_DATA}
_DESCENT = Setting(
    draws=15, width=4000, slope=0.2, loss="logistic", time=1.0, steps=100, momentum=0.0
)
CHECKS = (
    Check(
        "3.1",
        "|u_i| moves by at most |a_i| T R_z, |w_i| by |a_i| T R, at every visited step",
        "surely",
        _movement,
        (_ONE, _LOGISTIC),
        (*_TIMES, _LOGISTIC),
        **_DATA,
    ),
    Check(
        "3.1",
        "the mean share of gates within reach is at most the lazy number",
        "expectation",
        _reachable,
        (_ONE,),
        (*_TIMES, _LOGISTIC),
        part="lazy number",
        one_sided=True,
        fixed=True,
        **_DATA,
    ),
    Check(
        "3.2",
        "|f - f_lin| <= the bound computed from the initialisation",
        "surely",
        _lazy_error,
        compare=_certified(0),
        resolves="T |f_hat|",
        **_LAZY,
    ),
    Check(
        "3.2",
        "the same with algorithm L",
        "surely",
        _lazy_error,
        (_ONE,),
        _TIMES,
        part="algorithm L",
        compare=_certified(None),
        resolves="T |f_hat|",
        **_DATA,
    ),
    Check(
        "3.2",
        "no gate outside the certified sets flips at any visited step",
        "surely",
        _gates_outside,
        (_ONE, _LOGISTIC),
        (*_TIMES, _LOGISTIC),
        part="gates",
        claim=True,
        **_DATA,
    ),
    Check(
        "3.3",
        "|f - f_lin| <= B_lazy, a priori",
        "probability",
        _lazy_error,
        compare=_a_priori,
        resolves="T |f_hat|",
        **_LAZY,
    ),
    Check(
        "3.4",
        "|f - f_lin| at test points against width, between bias (-1/2) and spread (-3/4)",
        "rate",
        _lazy_rate,
        (Setting(draws=40, widths=(500, 2000, 8000), time=1.0),),
        (Setting(draws=40, widths=(500, 2000, 8000, 32000), time=1.0),),
        prepare=problem,
        fixed=True,
        shown=("time",),
        interval=(-0.9, -0.45),
    ),
    Check(
        "3.4",
        "the variance of f - f_lin is at most that of 3.3, O(m^(-3/2))",
        "expectation",
        _lazy_spread,
        (Setting(draws=40, width=1000, time=1.0),),
        part="spread",
        one_sided=True,
        fixed=True,
        **_DATA,
    ),
    Check(
        "3.5",
        "logistic: network and kernel regression apart by at most the measured errors allow",
        "surely",
        _stability,
        (_DESCENT,),
        (_DESCENT, replace(_DESCENT, draws=48, bias=True, time=3.0)),
        resolves="|f - f_0|",
        **_DATA,
    ),
    Check(
        "3.5",
        "linearisation error at training points, all times, against the limit kernel",
        "probability",
        _stability_a_priori,
        (Setting(draws=15, width=20000, loss="logistic", momentum=0.0, time=0.1),),
        part="a priori",
        resolves="T |f_hat| / 2",
        **_DATA,
    ),
)
