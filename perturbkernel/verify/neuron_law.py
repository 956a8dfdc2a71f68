"""Checks of section 14: networks of any width and time, by the law of one neuron.

Networks are trained by the loop of `draws`, far from lazily; pools of neurons by the package.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from perturbkernel import theory
from perturbkernel.training.dynamics import HeavyBall
from perturbkernel.verify.draws import (
    Network,
    Problem,
    fresh_and_trained,
    problem,
    row_cosines,
    row_norms,
    signs,
    train,
)
from perturbkernel.verify.protocol import Check, Sample, Setting

#: Standard errors of a simulated mean that are allowed for, beyond those of the draws.
_ERRORS = 4


class _Law(NamedTuple):
    """A problem, and what the law of networks trained on it says at its queries."""

    problem: Problem
    mean: theory.Estimate
    std: theory.Estimate
    centred: theory.Estimate
    cosine: theory.Estimate
    gradient: theory.GradientMoments

    @classmethod
    def of(cls, p: Problem, law: theory.NeuronLaw, width: int) -> "_Law":
        return cls(
            p,
            mean=law.mean(p.z, width=width),
            std=law.std(p.z, width=width),
            centred=law.std(p.z, width=width, start="centred"),
            cosine=law.cosine(p.z, width=width),
            gradient=law.gradient(p.z, width=width),
        )


def _simulated(rng, s: Setting, p: Problem, time: float) -> theory.NeuronLaw:
    rate = time / HeavyBall(1.0, s.steps, s.momentum).effective_time
    return theory.simulate_neurons(
        p.kernel,
        p.x,
        p.y,
        dynamics=HeavyBall(rate, s.steps, s.momentum),
        width=s.width,
        neurons=s.samples,
        records=(),
        key=jax.random.key(int(rng.integers(2**31))),
    )


def _law(rng, s: Setting) -> _Law:
    p = problem(rng, s)
    return _Law.of(p, _simulated(rng, s, p, s.time), s.width)


def _paths(rng, s: Setting, prepared) -> Sample:
    """The largest difference of a pool's neurons, both signs, from those of a trained network."""
    p = problem(rng, s)
    with jax.enable_x64(True):
        neurons = _simulated(rng, s, p, s.time).neurons()
    largest = 0.0
    for readout, found in zip(neurons.readout, neurons.trained, strict=True):
        net = Network(
            weights=neurons.start[:, :-1].copy(),
            biases=neurons.start[:, -1].copy(),
            readout=readout / s.width**0.5,
        )
        done = train(net, p.x, p.y, p.kernel, s, time=s.time).net
        expected = np.column_stack([done.weights, done.biases])
        largest = max(largest, float(np.abs(found - expected).max()))
    # Rounding of some hundred operations on numbers of order one to ten.
    return Sample(largest, 1e-9)


def _trained(rng, s: Setting, fixed: _Law) -> Any:
    p = fixed.problem
    return fresh_and_trained(rng, p, s, width=s.width, time=s.time, at=p.z)


def _mean(drawn, s: Setting, fixed: _Law) -> Sample:
    """Outputs at every point against E f, in units of the deviation."""
    std = fixed.std.value
    error = _ERRORS * fixed.mean.standard_error / std
    return Sample(drawn.after / std, fixed.mean.value / std, slack=error)


def _variance(drawn, s: Setting, fixed: _Law) -> Sample:
    """Squares about the mean, of f and of f - f0, in units of the variances; means over points."""
    mean = fixed.mean.value
    squares = [
        np.mean(((drawn.after - mean) / fixed.std.value) ** 2),
        np.mean(((drawn.change - mean) / fixed.centred.value) ** 2),
    ]
    errors = [
        2 * _ERRORS * np.mean(one.standard_error / one.value) for one in (fixed.std, fixed.centred)
    ]
    return Sample(np.array(squares), np.ones(2), slack=np.array(errors))


def _cosine(drawn, s: Setting, fixed: _Law) -> Sample:
    """The mean cosine with v, and the mean square of the gradient in units of the expected one."""
    found = drawn.gradient_after
    cosine = row_cosines(found, theory.direction(*fixed.problem.data)).mean()
    square = np.mean(row_norms(found) ** 2 / fixed.gradient.square)
    error = np.mean(fixed.gradient.square_standard_error / fixed.gradient.square)
    slack = _ERRORS * np.array([fixed.cosine.mean_standard_error, error])
    return Sample(np.array([cosine, square]), np.array([fixed.cosine.mean, 1.0]), slack=slack)


def _collapse(rng, s: Setting, fixed: _Law) -> Sample:
    """f / T at several widths and the same T / sqrt(width), by the law simulated at one width.

    Rates grow as sqrt(width), as times do. In units of the deviation of f / T at `width`.
    """
    p = fixed.problem
    mean = fixed.mean
    std = fixed.std.value / s.time
    unit = s.time * std
    rows = []
    for width in s.widths:
        time = s.time * (width / s.width) ** 0.5
        trained = fresh_and_trained(rng, p, s, width=width, time=time)
        rows.append(trained.after / time / std)
    found = np.stack(rows)
    wanted = np.broadcast_to(mean.value / unit, found.shape)
    slack = np.broadcast_to(_ERRORS * mean.standard_error / unit, found.shape)
    return Sample(found, wanted, slack=slack)


def _second(rng, s: Setting) -> _Law:
    """The law of g given one trained f, initial function and all."""
    p = problem(rng, s)
    f = fresh_and_trained(rng, p, s, width=s.width, time=s.time, at=p.x)
    u = f.gradient_after / row_norms(f.gradient_after)[:, None]
    targets = signs(rng, s.n, s.targets)
    r = s.size * targets[:, None] * u
    second = Problem(p.kernel, r, targets, p.z)
    return _Law.of(second, _simulated(rng, s, second, s.time_g), s.width)


def _trained_g(rng, s: Setting, fixed: _Law) -> Any:
    return fresh_and_trained(rng, fixed.problem, s, width=s.width, time=s.time_g)


_RICH = Setting(draws=400, width=50, d=10, shift=0.3, time=8.0, samples=8000, bias=True)
_LEAKY = replace(_RICH, slope=0.2, bias=False, d=30, time=4.0)
_G = replace(_RICH, time_g=20.0, targets="balanced", size=1.0)
_WIDTHS = replace(_RICH, draws=250, widths=(25, 50, 200))
_LAW: dict[str, Any] = {"prepare": _law, "fixed": True, "shown": ("width", "time")}
_FULL = tuple(replace(one, draws=4000, samples=40_000) for one in (_RICH, _LEAKY))
CHECKS = (
    Check(
        "14.1",
        "simulated neurons, in weights and in coefficients, are those of trained networks",
        "identity",
        _paths,
        tuple(replace(one, draws=10, samples=100) for one in (_RICH, _LEAKY)),
        shown=("width", "time"),
    ),
    Check(
        "14.2",
        "E f(z) = T Psi(r), far from lazy, in units of the deviation",
        "expectation",
        _trained,
        (_RICH, _LEAKY),
        _FULL,
        compare=_mean,
        **_LAW,
    ),
    Check(
        "14.2",
        "the variances of f and of f - f_0",
        "expectation",
        _trained,
        (_RICH, _LEAKY),
        _FULL,
        part="variance",
        compare=_variance,
        **_LAW,
    ),
    Check(
        "14.2",
        "f / T has one mean at all widths with the same T / sqrt(width)",
        "expectation",
        _collapse,
        (_WIDTHS,),
        (replace(_WIDTHS, draws=2000, samples=40_000),),
        part="collapse",
        prepare=_law,
        fixed=True,
        shown=("widths", "time"),
    ),
    Check(
        "14.3",
        "the mean cosine of grad f and v, and E |grad f|^2, at finite width",
        "expectation",
        _trained,
        (_RICH, _LEAKY),
        _FULL,
        compare=_cosine,
        **_LAW,
    ),
    Check(
        "14.4",
        "E g(z) given one trained f, (a), by the law of g, in units of the deviation",
        "expectation",
        _trained_g,
        (_G,),
        (replace(_G, draws=4000, samples=40_000),),
        compare=_mean,
        prepare=_second,
        fixed=True,
        shown=("width", "time", "time_g", "targets"),
    ),
)
