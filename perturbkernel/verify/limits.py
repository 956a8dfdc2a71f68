"""Checks of sections 15 and 16: what perturbations alone can teach, and how much of it."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturbkernel import theory
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.training.predictors import KernelPredictor
from perturbkernel.verify.draws import Problem, fresh_and_trained, problem, row_norms, signs, units
from perturbkernel.verify.kernels import kernel_matrix
from perturbkernel.verify.protocol import Check, Sample, Setting


def _directions(p: Problem) -> np.ndarray:
    """The unit gradients of the limit at the training points, (n, d)."""
    gradients = theory.limit_gradient(p.kernel, p.x, p.y, p.x)
    return gradients / row_norms(gradients)[:, None]


class _Taught(NamedTuple):
    """A network taught by short inputs: its predictor, g(z), and what the theory says."""

    predictor: KernelPredictor
    outputs: np.ndarray
    part: theory.LinearPart


def _taught(p: Problem, r: np.ndarray, coef: np.ndarray, z: np.ndarray, **options) -> _Taught:
    with jax.enable_x64(True):
        predictor = KernelPredictor(p.kernel, jnp.asarray(r), jnp.asarray(coef))
    outputs = coef @ kernel_matrix(p.kernel, "ntk", r, z)
    return _Taught(predictor, outputs, theory.linear_part(predictor, z, **options))


def _scenario_a(rng, s: Setting, p: Problem) -> _Taught:
    """Perturbations of the data alone, and coefficients as any loss gives them."""
    targets = signs(rng, s.n)
    r = s.size * targets[:, None] * _directions(p)
    return _taught(p, r, targets * rng.uniform(size=s.n), p.z)


def _any_inputs(rng, s: Setting, p: Problem) -> _Taught:
    """Short inputs in random directions, so that many outputs nearly cancel."""
    inputs = s.size * units(rng, s.n, s.d)
    coef = rng.normal(size=s.n)
    return _taught(p, inputs, coef, p.z)


def _error(g: _Taught, s: Setting, p: Problem) -> Sample:
    gap = np.abs(g.outputs - g.part.output)
    return Sample(gap, g.part.error, np.abs(g.part.output))


def _signs(g: _Taught, s: Setting, p: Problem) -> Sample:
    wrong = np.sign(g.outputs) != np.sign(g.part.output)
    return Sample(wrong.astype(float), np.where(g.part.certified, 0.5, np.nan))


def _even_labels(rng, s: Setting, p: Problem) -> Sample:
    """|accuracy - 1/2| on points z and -z of one label, such as XOR."""
    z = np.concatenate([p.z, -p.z])
    labels = np.sign(z[:, 0] * z[:, 1])
    r = s.size * units(rng, s.n, s.d)
    found = _taught(p, r, signs(rng, s.n) / s.n, z)
    accuracy = np.mean(found.outputs * labels > 0)
    return Sample(np.abs(accuracy - 0.5), (1 - found.part.share) / 2, scale=0.5)


def _network(rng, s: Setting, p: Problem) -> Sample:
    """Trained networks of finite width, centred: their signs where they are certified."""
    targets = signs(rng, s.n)
    r = s.size * units(rng, s.n, s.d)
    coef = s.time_g * targets / s.n
    part = _taught(p, r, coef, p.z, width=s.width, delta=s.delta).part
    second = Problem(p.kernel, r, targets, p.z)
    change = fresh_and_trained(rng, second, s, width=s.width, time=s.time_g).change
    wrong = (np.sign(change) != np.sign(part.output)).astype(float)
    return Sample(wrong, np.where(part.certified, 0.5, np.nan))


class _Classes(NamedTuple):
    """Two Gaussian classes: a training set, fresh points and their labels."""

    problem: Problem
    labels: np.ndarray


def _classes(rng, s: Setting) -> _Classes:
    """As many training points of either class; d, n, and shift per coordinate as set."""
    y = np.where(np.arange(s.n) % 2 == 0, 1.0, -1.0)
    labels = signs(rng, s.points)
    noise = rng.normal(size=(s.n, s.d))
    x = s.shift * y[:, None] + noise
    noise = rng.normal(size=(s.points, s.d))
    z = s.shift * labels[:, None] + noise
    return _Classes(Problem(TwoLayerNTK(s.slope, s.bias), x, y, z), labels)


def _law(s: Setting) -> dict[str, Any]:
    return {"n": s.n, "d": s.d, "distance": s.shift * np.sqrt(s.d)}


#: What leading order in 1/sqrt(d) may be off by in an accuracy.
_LEADING = 0.015


def _first(rng, s: Setting, data: _Classes) -> Sample:
    right = theory.f_hat(*data.problem.data) * data.labels > 0
    law = theory.scaling.first_accuracy(**_law(s))
    return Sample(np.mean(right), law, slack=_LEADING)


def _second(rng, s: Setting, data: _Classes) -> Sample:
    """The accuracy of g, its mean over targets in closed form (12.3)."""
    p = data.problem
    carrier = p.x if s.scenario == "b" else np.zeros_like(p.x)
    u = _directions(p)
    moments = theory.target_moments(p.kernel, carrier, u, p.z, size=s.size, rule=s.targets)
    right = np.where(data.labels > 0, moments.positive, 1 - moments.positive)
    law = theory.scaling.second_accuracy(
        size=s.size, scenario=s.scenario, train_bias=s.bias, targets=s.targets, **_law(s)
    )
    return Sample(np.mean(right), law, slack=_LEADING)


_PLAIN = Setting(draws=40, n=60, points=40, slope=0.2, size=0.3)
_XOR = Setting(draws=40, n=60, d=20, points=40, shift=0.0, size=0.02)
_NETWORK = Setting(draws=20, width=500, n=30, points=200, size=0.5, time_g=0.3)
_LAWS = Setting(draws=30, n=100, d=100, points=400, shift=0.15, size=0.1)
_MORE = replace(_LAWS, n=400, shift=0.08, size=0.3)
_SCALING: dict[str, Any] = {"prepare": _classes, "shown": ("size", "scenario", "bias")}
CHECKS = (
    Check(
        "15.1",
        "(a): |g - Phi(0, z) (<w, z> + b)| <= error, any coefficients",
        "surely",
        _scenario_a,
        (_PLAIN, replace(_PLAIN, bias=True), replace(_PLAIN, slope=0.0, size=3.0)),
        compare=_error,
        prepare=problem,
        resolves="|g|",
        shown=("size",),
    ),
    Check(
        "15.1",
        "where |its linear part| > error g has the signs of one linear classifier",
        "surely",
        _any_inputs,
        (_PLAIN, replace(_PLAIN, bias=True)),
        part="signs",
        claim=True,
        compare=_signs,
        prepare=problem,
        shown=("size",),
    ),
    Check(
        "15.2",
        "labels that z and -z share (XOR): |accuracy of g - 1/2| <= half of what is not certified",
        "surely",
        _even_labels,
        (_XOR,),
        prepare=problem,
        resolves="1/2",
        shown=("size",),
    ),
    Check(
        "15.3",
        "trained networks have the classifier's signs wherever they are certified",
        "probability",
        _network,
        (_NETWORK,),
        (replace(_NETWORK, draws=200), replace(_NETWORK, draws=60, width=5000, bias=True)),
        claim=True,
        prepare=problem,
        shown=("width", "time_g", "size"),
    ),
    Check(
        "16.1",
        "accuracy of f on Gaussian classes (leading order, slack 0.015)",
        "expectation",
        _first,
        (_LAWS, _MORE),
        prepare=_classes,
    ),
    Check(
        "16.2",
        "accuracy of g in (a)",
        "expectation",
        _second,
        (_LAWS, replace(_LAWS, bias=True), replace(_MORE, bias=True, size=0.05)),
        **_SCALING,
    ),
    Check(
        "16.3",
        "accuracy of g in (b)",
        "expectation",
        _second,
        (replace(_LAWS, scenario="b", size=1.0), replace(_MORE, scenario="b", bias=True)),
        **_SCALING,
    ),
)
