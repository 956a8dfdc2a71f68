"""Checks of section 4: the function before training."""

from typing import Any

import numpy as np

from perturbkernel import theory
from perturbkernel.verify.draws import (
    Network,
    Problem,
    gradients,
    network,
    outputs,
    problem,
    row_norms,
    train,
)
from perturbkernel.verify.lazy import linear_error
from perturbkernel.verify.protocol import Check, Sample, Setting


def _fresh(rng, s: Setting, p: Problem) -> Network:
    return network(rng, s.width, s.d)


def _largest_projection(net: Network, s: Setting, p: Problem) -> np.ndarray:
    """The largest |<grad f_0(x_n), z>| over training points, (m,)."""
    projections = gradients(net, p.x, s.slope) @ p.z.T
    return np.abs(projections).max(0)


def _initial(net, s: Setting, p: Problem) -> Sample:
    bound = theory.bounds.initial_output_bound(p.kernel, p.z, width=s.width, delta=s.delta)
    return Sample(np.abs(outputs(net, p.z, s.slope)), bound)


def _initial_measured(net, s: Setting, p: Problem) -> Sample:
    bound = theory.bounds.initial_output_bound_measured(
        p.kernel, net.weights, net.biases, p.z, delta=s.delta
    )
    return Sample(np.abs(outputs(net, p.z, s.slope)), bound)


def _initial_gradient(net, s: Setting, p: Problem) -> Sample:
    bound = theory.bounds.initial_gradient_bound(
        p.kernel, s.d, width=s.width, delta=s.delta, points=s.points
    )
    return Sample(row_norms(gradients(net, p.z, s.slope)), bound)


def _initial_gradient_measured(net, s: Setting, p: Problem) -> Sample:
    bound = theory.bounds.initial_gradient_bound_measured(
        p.kernel, net.weights, net.biases, p.z, delta=s.delta
    )
    return Sample(row_norms(gradients(net, p.z, s.slope)), bound)


def _projection(net, s: Setting, p: Problem) -> Sample:
    bound = theory.bounds.initial_projection_bound(p.z, inputs=s.n, width=s.width, delta=s.delta)
    return Sample(_largest_projection(net, s, p), bound)


def _projection_measured(net, s: Setting, p: Problem) -> Sample:
    bound = theory.bounds.initial_projection_bound_measured(
        net.weights, p.z, inputs=s.n, delta=s.delta
    )
    return Sample(_largest_projection(net, s, p), bound)


def _initial_moments(net, s: Setting, p: Problem) -> Sample:
    variance = theory.initial_output_variance(p.kernel, p.z)
    square = outputs(net, p.z, s.slope) ** 2 / variance
    slopes = np.mean(np.sum(gradients(net, p.z, s.slope) ** 2, axis=1))
    expected = theory.initial_gradient_second_moment(p.kernel)
    return Sample(np.array([square.mean(), slopes]), np.array([1.0, expected]))


def _doubled_net(rng, s: Setting) -> Network:
    half = network(rng, s.width // 2, s.d, s.width)
    return Network(*theory.doubled(*half))


def _doubled_zero(rng, s: Setting, p: Problem) -> Sample:
    net = _doubled_net(rng, s)
    output = theory.output(p.kernel, *net, p.z)
    gradient = theory.gradient(p.kernel, *net, p.z)
    return Sample(np.abs([output, *gradient.T]), 1e-12)


def _doubled_lazy(rng, s: Setting, p: Problem) -> Sample:
    net = _doubled_net(rng, s)
    done = train(net, p.x, p.y, p.kernel, s, time=s.time)
    error = linear_error(net, done, s, p)
    bound = theory.bounds.lazy_bound(
        p.constants, width=s.width, time=s.time, delta=s.delta, start="doubled"
    )
    return Sample(error, bound, s.time * np.abs(p.constants.f_hat))


def _doubled_predictor(rng, s: Setting, p: Problem) -> Sample:
    net = _doubled_net(rng, s)
    found, _ = theory.tangent_predictor(p.kernel, *net, p.x, p.y, p.z)
    f_hat = p.constants.f_hat
    bound = theory.bounds.predictor_bound(
        p.constants, width=s.width, delta=s.delta, start="doubled"
    )
    return Sample(np.abs(found - f_hat), bound, np.abs(f_hat))


_DATA: dict[str, Any] = {"prepare": problem, "shown": ("width", "time")}
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
