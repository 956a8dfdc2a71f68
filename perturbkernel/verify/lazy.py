"""Checks of sections 3 and 4: training moves gates little, and the function before training."""

from dataclasses import replace
from typing import Any

import numpy as np

from perturbkernel import theory
from perturbkernel.verify.draws import (
    Network,
    Problem,
    Trained,
    fresh_and_trained,
    gradients,
    network,
    outputs,
    problem,
    row_norms,
    train,
)
from perturbkernel.verify.kernels import kernel_matrix
from perturbkernel.verify.protocol import Check, Sample, Setting


def _trained(rng, s: Setting, p: Problem, watch=None):
    net = network(rng, s.width, s.d)
    return net, train(net, p.x, p.y, p.kernel, s, time=s.time, watch=watch)


def _movement(rng, s: Setting, p: Problem) -> Sample:
    """Pre-activations at every visited step, and the weights."""
    net, done = _trained(rng, s, p, p.z)
    size = np.abs(net.readout)
    reach = size[:, None] * theory.bounds.displacement(p.constants, time=s.time, loss=s.loss)
    moved = row_norms(done.net.weights - net.weights)
    return Sample(
        np.hstack([done.moved, moved[:, None]]),
        np.hstack([reach, (size * s.time * p.constants.radius)[:, None]]),
    )


def _reachable(rng, s: Setting, p: Problem) -> Sample:
    """The share of gates at z within reach, whose mean the lazy number bounds."""
    net = network(rng, s.width, s.d)
    gates = theory.certified_gates(*p.data, *net, time=s.time, loss=s.loss, refinements=0)
    return Sample(
        gates.flips / s.width,
        theory.bounds.lazy_number(p.constants, width=s.width, time=s.time, loss=s.loss),
    )


def _linear_part(net: Network, done: Trained, s: Setting, p: Problem, points) -> np.ndarray:
    """f_0 + sum_n alpha_n y_n K_m(x_n, .) with the realised weights."""
    beta = np.ones(s.n)
    if s.loss == "logistic":
        beta = theory.realised_weights(done.history, p.y, done.rates, s.momentum)
    own = theory.gate_moment(p.kernel, *net, p.x, points) * (p.x @ points.T + p.kernel.train_bias)
    return outputs(net, points, s.slope) + s.time / s.n * (beta * p.y) @ own


def _lazy_error(rng, s: Setting, p: Problem):
    """The network before training, and |f - f_lin| after."""
    net, done = _trained(rng, s, p)
    return net, np.abs(outputs(done.net, p.z, s.slope) - _linear_part(net, done, s, p, p.z))


def _certified(refinements: int | None):
    def compare(drawn, s: Setting, p: Problem) -> Sample:
        net, error = drawn
        bound = theory.certified_gates(
            *p.data, *net, time=s.time, loss=s.loss, refinements=refinements
        ).bound
        return Sample(error, bound, s.time * np.abs(p.constants.f_hat))

    return compare


def _gates_outside(rng, s: Setting, p: Problem) -> Sample:
    """Flips at a visited step, and whether each was certified possible."""
    net, done = _trained(rng, s, p, np.vstack([p.x, p.z]))
    gates = theory.certified_gates(*p.data, *net, time=s.time, loss=s.loss, keep_sets=True)
    assert gates.sets is not None and gates.input_sets is not None
    certified = np.hstack([gates.input_sets, gates.sets])
    return Sample(
        np.sum(done.flipped & ~certified, axis=0),
        np.where(np.sum(done.flipped, axis=0) > 0, 0.0, np.nan),
    )


def _a_priori(drawn, s: Setting, p: Problem) -> Sample:
    bound = theory.bounds.lazy_bound(
        p.constants, width=s.width, time=s.time, delta=s.delta, loss=s.loss
    )
    return Sample(drawn[1], bound, s.time * np.abs(p.constants.f_hat))


def _lazy_rate(rng, s: Setting, p: Problem) -> Sample:
    """Root mean square over test points of the error at every width."""
    values = []
    for width in s.widths:
        sums = fresh_and_trained(rng, p, s, width=width, time=s.time, linear=True)
        values.append(np.sqrt(np.mean((sums.change - sums.linear)[s.points // 4 :] ** 2)))
    return Sample(np.array(values))


def _lazy_spread(rng, s: Setting, p: Problem) -> Sample:
    """Half the squared difference of two networks' errors has the variance as its mean."""
    errors = []
    for _ in range(2):
        sums = fresh_and_trained(rng, p, s, width=s.width, time=s.time, linear=True)
        errors.append(sums.change - sums.linear)
    limit = theory.lazy_standard_deviation(p.constants, width=s.width, time=s.time)
    return Sample((errors[0] - errors[1]) ** 2 / 2, limit**2)


def _logistic_pair(rng, s: Setting, p: Problem):
    """A finite network and kernel logistic regression with its own tangent kernel, side by side
    (plain descent).
    """
    points = np.vstack([p.x, p.z])
    net = network(rng, s.width, s.d)
    done = train(net, p.x, p.y, p.kernel, s, time=s.time, watch=points)
    own = theory.gate_moment(p.kernel, *net, p.x, points) * (p.x @ points.T + p.kernel.train_bias)
    realised, kernel, start = np.zeros(s.n), np.zeros(s.n), done.path[0]
    error = np.zeros(len(points))
    for i, rate in enumerate(done.rates):
        kernel_outputs = start + (kernel * p.y) @ own
        kernel = kernel + rate / s.n / (1 + np.exp(p.y * kernel_outputs[: s.n]))
        realised = realised + rate / s.n / (1 + np.exp(p.y * done.path[i, : s.n]))
        error = np.maximum(error, np.abs(done.path[i + 1] - start - (realised * p.y) @ own))
    apart = np.abs(done.path[-1] - start - (kernel * p.y) @ own)[s.n :]
    return net, done, own, error, apart, np.abs(done.path[-1] - start)[s.n :]


def _stability(rng, s: Setting, p: Problem) -> Sample:
    net, done, own, error, apart, change = _logistic_pair(rng, s, p)
    step = done.rates.max() * np.linalg.norm(own[:, : s.n], 2) / (8 * s.n)
    diagonal = np.diagonal(theory.gate_moment(p.kernel, *net, p.z, p.z)) * (
        np.sum(p.z**2, 1) + p.kernel.train_bias
    )
    bound = theory.bounds.logistic_stability(
        diagonal, epsilon=error[: s.n].max(), time=s.time, epsilon_at=error[s.n :], step_ratio=step
    )
    return Sample(apart, bound, change)


def _stability_a_priori(rng, s: Setting, p: Problem) -> Sample:
    """The supremum over times of the linearisation error at training points, for the limit kernel."""
    points = np.vstack([p.x, p.z])
    net = network(rng, s.width, s.d)
    done = train(net, p.x, p.y, p.kernel, s, time=s.time, watch=p.x)
    limit = kernel_matrix(p.kernel, "ntk", p.x, p.x)
    realised, error = np.zeros(s.n), np.zeros(s.n)
    for i, rate in enumerate(done.rates):
        realised = realised + rate / s.n / (1 + np.exp(p.y * done.path[i]))
        error = np.maximum(
            error, np.abs(done.path[i + 1] - done.path[0] - (realised * p.y) @ limit)
        )
    bound = theory.bounds.linearisation_error(
        theory.derive_constants(p.kernel, p.x, p.y, p.x),
        width=s.width,
        time=s.time,
        delta=s.delta,
        pairs=s.n * (s.n + 1) // 2 + s.n * s.points,
        points=len(points),
    )
    return Sample(error, bound, s.time / 2 * np.abs(theory.f_hat(p.kernel, p.x, p.y, p.x)))


def _fresh(rng, s: Setting, p: Problem) -> Network:
    return network(rng, s.width, s.d)


def _initial(net, s: Setting, p: Problem) -> Sample:
    bound = theory.bounds.initial_output_bound(p.kernel, p.z, width=s.width, delta=s.delta)
    return Sample(np.abs(outputs(net, p.z, s.slope)), bound)


def _initial_measured(net, s: Setting, p: Problem) -> Sample:
    bound = theory.bounds.initial_output_bound_measured(
        p.kernel, net.weights, net.biases, p.z, delta=s.delta
    )
    return Sample(np.abs(outputs(net, p.z, s.slope)), bound)


def _initial_gradient(net, s: Setting, p: Problem) -> Sample:
    size = row_norms(gradients(net, p.z, s.slope))
    return Sample(
        size,
        theory.bounds.initial_gradient_bound(
            p.kernel, s.d, width=s.width, delta=s.delta, points=s.points
        ),
    )


def _initial_gradient_measured(net, s: Setting, p: Problem) -> Sample:
    bound = theory.bounds.initial_gradient_bound_measured(
        p.kernel, net.weights, net.biases, p.z, delta=s.delta
    )
    return Sample(row_norms(gradients(net, p.z, s.slope)), bound)


def _projection(net, s: Setting, p: Problem) -> Sample:
    size = np.abs(gradients(net, p.x, s.slope) @ p.z.T).max(0)
    return Sample(
        size, theory.bounds.initial_projection_bound(p.z, inputs=s.n, width=s.width, delta=s.delta)
    )


def _projection_measured(net, s: Setting, p: Problem) -> Sample:
    size = np.abs(gradients(net, p.x, s.slope) @ p.z.T).max(0)
    return Sample(
        size,
        theory.bounds.initial_projection_bound_measured(
            net.weights, p.z, inputs=s.n, delta=s.delta
        ),
    )


def _initial_moments(net, s: Setting, p: Problem) -> Sample:
    square = outputs(net, p.z, s.slope) ** 2 / theory.initial_output_variance(p.kernel, p.z)
    slopes = np.mean(np.sum(gradients(net, p.z, s.slope) ** 2, axis=1))
    return Sample(
        np.array([square.mean(), slopes]),
        np.array([1.0, theory.initial_gradient_second_moment(p.kernel)]),
    )


def _doubled_net(rng, s: Setting):
    return theory.doubled(*network(rng, s.width // 2, s.d, s.width))


def _doubled_zero(rng, s: Setting, p: Problem) -> Sample:
    net = _doubled_net(rng, s)
    parts = [theory.output(p.kernel, *net, p.z), *theory.gradient(p.kernel, *net, p.z).T]
    return Sample(np.abs(parts), 1e-12)


def _doubled_lazy(rng, s: Setting, p: Problem) -> Sample:
    net = Network(*_doubled_net(rng, s))
    done = train(net, p.x, p.y, p.kernel, s, time=s.time)
    error = np.abs(outputs(done.net, p.z, s.slope) - _linear_part(net, done, s, p, p.z))
    bound = theory.bounds.lazy_bound(
        p.constants, width=s.width, time=s.time, delta=s.delta, doubled=True
    )
    return Sample(error, bound, s.time * np.abs(p.constants.f_hat))


def _doubled_predictor(rng, s: Setting, p: Problem) -> Sample:
    error = (
        theory.tangent_predictor(p.kernel, *_doubled_net(rng, s), p.x, p.y, p.z)[0]
        - p.constants.f_hat
    )
    bound = theory.bounds.predictor_bound(p.constants, width=s.width, delta=s.delta, doubled=True)
    return Sample(np.abs(error), bound, np.abs(p.constants.f_hat))


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
_START: dict[str, Any] = {
    "settings": (Setting(draws=60, width=1000, slope=0.2),),
    "full": (
        Setting(draws=300, width=500),
        Setting(draws=60, width=4000, d=100, n=50),
        Setting(draws=150, slope=0.2),
    ),
    "prepare": problem,
    "shown": ("width",),
}
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
    Check("4.1", "|f_0| <= B_0, a priori", "probability", _fresh, compare=_initial, **_START),
    Check(
        "4.1",
        "|f_0| <= its bound for the drawn weights",
        "probability",
        _fresh,
        part="measured",
        compare=_initial_measured,
        **_START,
    ),
    Check(
        "4.1",
        "E f_0^2 = Sigma and E |grad f_0|^2 = (1 + slope^2)/2 at every width",
        "expectation",
        _fresh,
        (Setting(draws=600, width=50, slope=0.2),),
        (Setting(draws=5000, width=50, slope=0.2),),
        part="moments",
        compare=_initial_moments,
        prepare=problem,
        fixed=True,
        shown=("width",),
    ),
    Check(
        "4.2",
        "|grad f_0| <= its bound, a priori",
        "probability",
        _fresh,
        compare=_initial_gradient,
        **_START,
    ),
    Check(
        "4.2",
        "|grad f_0| <= its bound for the drawn weights",
        "probability",
        _fresh,
        part="measured",
        compare=_initial_gradient_measured,
        **_START,
    ),
    Check(
        "4.3",
        "|<grad f_0(x_n), z>| <= its bound, a priori",
        "probability",
        _fresh,
        compare=_projection,
        **_START,
    ),
    Check(
        "4.3",
        "|<grad f_0(x_n), z>| <= its bound for the drawn weights",
        "probability",
        _fresh,
        part="measured",
        compare=_projection_measured,
        **_START,
    ),
    Check(
        "4.4",
        "a doubled network and its gradient are zero before training (to 1e-12)",
        "identity",
        _doubled_zero,
        (Setting(draws=10),),
        prepare=problem,
        shown=("width",),
    ),
    Check(
        "4.4",
        "doubled: |f - f_lin| <= B_lazy adjusted",
        "probability",
        _doubled_lazy,
        (Setting(draws=30, width=4000, time=0.1, slope=0.2),),
        (Setting(draws=60, width=4000),),
        part="lazy",
        resolves="T |f_hat|",
        **_DATA,
    ),
    Check(
        "4.4",
        "doubled: f_hat of the network within B_pred at m/2",
        "probability",
        _doubled_predictor,
        (Setting(draws=60, width=2000, slope=0.2),),
        part="predictor",
        resolves="|f_hat|",
        prepare=problem,
        shown=("width",),
    ),
)
