"""Checks of section 2: the tangent kernel of a finite network against its limit. Fresh networks, no
training.
"""

from typing import Any

import numpy as np

from perturbkernel import theory
from perturbkernel.verify.draws import Problem, network, problem, row_norms
from perturbkernel.verify.kernels import kernel_matrix
from perturbkernel.verify.protocol import Check, Sample, Setting


def _gates(rng, s: Setting, p: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Phi_m - Phi, and Phi, (n, m)."""
    limit = kernel_matrix(p.kernel, "phi", p.x, p.z)
    net = network(rng, s.width, s.d)
    return theory.gate_moment(p.kernel, *net, p.x, p.z) - limit, limit


def _within_gate_bound(drawn, s: Setting, p: Problem) -> Sample:
    error, limit = drawn
    bound = theory.bounds.gate_moment_bound(p.kernel, p.x, p.z, width=s.width, delta=s.delta)
    return Sample(np.abs(error), bound, limit)


def _within_kernel_bound(drawn, s: Setting, p: Problem) -> Sample:
    error, _ = drawn
    bound = theory.bounds.kernel_bound(p.kernel, p.x, p.z, width=s.width, delta=s.delta)
    limit = kernel_matrix(p.kernel, "ntk", p.x, p.z)
    return Sample(np.abs(error * p.factor), bound, np.abs(limit))


def _within_split_bound(drawn, s: Setting, p: Problem) -> Sample:
    error, limit = drawn
    bound = theory.bounds.gate_moment_bound_split(
        p.kernel, width=s.width, delta=s.delta, pairs=error.size
    )
    return Sample(np.abs(error), bound, limit)


def _gate_variance(drawn, s: Setting, p: Problem) -> Sample:
    """The squared error in units of the exact variance, averaged over pairs."""
    error, _ = drawn
    variance = theory.gate_moment_variance(p.kernel, p.x, p.z, width=s.width)
    return Sample(np.mean(error**2 / variance), 1.0)


def _tangent(rng, s: Setting, p: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Errors of f_hat, (m,), and of v, (m, d)."""
    net = network(rng, s.width, s.d)
    f_hat, v = theory.tangent_predictor(p.kernel, *net, p.x, p.y, p.z)
    return f_hat - p.constants.f_hat, v - p.constants.direction


def _predictor(drawn, s: Setting, p: Problem) -> Sample:
    bound = theory.bounds.predictor_bound(p.constants, width=s.width, delta=s.delta)
    return Sample(np.abs(drawn[0]), bound, np.abs(p.constants.f_hat))


def _predictor_variance(drawn, s: Setting, p: Problem) -> Sample:
    error, _ = drawn
    variance = theory.predictor_variance(p.constants, width=s.width)
    return Sample(np.mean(error**2 / variance), 1.0)


def _direction(method: str):
    def compare(drawn, s: Setting, p: Problem) -> Sample:
        bound = theory.bounds.direction_bound(
            p.constants, width=s.width, delta=s.delta, method=method
        )
        return Sample(row_norms(drawn[1]), bound, row_norms(p.constants.direction))

    return compare


def _direction_variance(drawn, s: Setting, p: Problem) -> Sample:
    square = np.sum(drawn[1] ** 2, axis=1)
    return Sample(np.mean(square / theory.direction_variance(p.constants, width=s.width)), 1.0)


_FULL = (
    Setting(draws=300, width=500),
    Setting(draws=60, width=4000, d=100, n=50),
    Setting(draws=150, width=2000, slope=0.2, bias=True),
    Setting(draws=30, width=20000, slope=0.5),
)
_DEFAULT = (Setting(draws=80, width=2000, slope=0.2, bias=True),)
_PLAIN: dict[str, Any] = {
    "settings": _DEFAULT,
    "full": _FULL,
    "prepare": problem,
    "shown": ("width",),
}
_MEAN: dict[str, Any] = {
    "settings": (Setting(draws=400, width=200, slope=0.2, bias=True),),
    "full": (Setting(draws=2000, width=500), Setting(draws=1000, width=2000, slope=0.2, bias=True)),
    "prepare": problem,
    "fixed": True,
    "shown": ("width",),
}
CHECKS = (
    Check(
        "2.1",
        "every entry of Phi_m is within B_Phi of Phi",
        "probability",
        _gates,
        compare=_within_gate_bound,
        resolves="Phi",
        **_PLAIN,
    ),
    Check(
        "2.1",
        "every entry of K_m is within B_K of K",
        "probability",
        _gates,
        compare=_within_kernel_bound,
        part="kernel",
        resolves="|K|",
        **_PLAIN,
    ),
    Check(
        "2.1",
        "m Var Phi_m = 3 Q - Phi^2: squared error in units of the variance",
        "expectation",
        _gates,
        compare=_gate_variance,
        part="variance",
        **_MEAN,
    ),
    Check(
        "2.1'",
        "every entry of Phi_m, by readouts and gates bounded apart",
        "probability",
        _gates,
        compare=_within_split_bound,
        resolves="Phi",
        **_PLAIN,
    ),
    Check(
        "2.2",
        "f_hat of the finite network is within B_pred of f_hat",
        "probability",
        _tangent,
        compare=_predictor,
        resolves="|f_hat|",
        **_PLAIN,
    ),
    Check(
        "2.2",
        "m Var f_hat_m = 3 S_f^2 - f_hat^2: squared error in units of the variance",
        "expectation",
        _tangent,
        compare=_predictor_variance,
        part="variance",
        **_MEAN,
    ),
    Check(
        "2.3",
        "direction of the finite network, by Bernstein's inequality in Hilbert space",
        "probability",
        _tangent,
        compare=_direction("bernstein"),
        part="vector",
        resolves="|v|",
        **_PLAIN,
    ),
    Check(
        "2.3",
        "direction of the finite network, by the operator norm of the data",
        "probability",
        _tangent,
        compare=_direction("operator"),
        part="operator",
        resolves="|v|",
        **_PLAIN,
    ),
    Check(
        "2.3",
        "m E|v_m - v|^2 = 3 S_v^2 - |v|^2: squared error in units of it",
        "expectation",
        _tangent,
        compare=_direction_variance,
        part="variance",
        **_MEAN,
    ),
)
