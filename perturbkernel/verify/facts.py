"""Checks of section 8: exact facts, and rates in the width."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbkernel import theory
from perturbkernel.attacks import one_step
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.networks.two_layer import TwoLayerNetwork
from perturbkernel.verify.by_hand import gate_moment
from perturbkernel.verify.draws import (
    Problem,
    fresh_and_trained,
    network,
    outputs,
    problem,
    row_norms,
    signs,
    train,
    units,
)
from perturbkernel.verify.protocol import Check, Sample, Setting


def _independent_of_targets(rng, s: Setting, p: Problem) -> Sample:
    """Targets times perturbations of a trained network, for two label vectors."""
    begin = network(rng, s.width, s.d)
    done = train(begin, p.x, p.y, p.kernel, s, time=s.time).net
    with jax.enable_x64(True):
        arrays = [jnp.asarray(array) for array in done]
        net = TwoLayerNetwork(*arrays, slope=s.slope, train_bias=s.bias)
        deltas = []
        for _ in range(2):
            targets = jnp.asarray(signs(rng, s.n))
            made = one_step.perturb(net, jnp.asarray(p.x), targets, size=s.size)
            deltas.append(np.asarray(targets[:, None] * made.delta))
    return Sample(np.abs(deltas[0] - deltas[1]), 1e-15)


def _label_effect(rng, s: Setting, p: Problem) -> Sample:
    """The change of g_hat_u between two label vectors, against the middle and the outer bound.

    And the middle bound against the outer one.
    """
    u = units(rng, s.n, s.d)

    def g_hat() -> np.ndarray:
        targets = signs(rng, s.n)[:, None]
        return theory.g_hat_u(p.kernel, s.size * targets * u, u, p.z)

    first = g_hat()
    second = g_hat()
    middle, outer = theory.bounds.label_effect_bound(p.kernel, u, p.z, size=s.size)
    return Sample([np.abs(first - second), middle], [middle, outer])


def _bias_offset(rng, s: Setting, p: Problem) -> Sample:
    """Psi / size in (a) with trained biases: its square in units of the estimate."""
    u = units(rng, s.n, s.d)
    targets = signs(rng, s.n)
    r = s.size * targets[:, None] * u
    psi = theory.psi(p.kernel, r, 0 * u, targets, p.z) / s.size
    deviation = theory.bias_offset_deviation(p.kernel, p.z, count=s.n, size=s.size)
    square = (psi / deviation) ** 2
    return Sample(square.mean(), 1.0, slack=0.1)


def _linearity(rng, s: Setting, p: Problem) -> Sample:
    """N f_hat is additive over data; f_hat and v are odd in y."""
    half = s.n // 2
    begin, end = slice(half), slice(half, None)
    first = theory.f_hat(p.kernel, p.x[begin], p.y[begin], p.z)
    second = theory.f_hat(p.kernel, p.x[end], p.y[end], p.z)
    f_hat = theory.f_hat(*p.data)
    added = half * first + (s.n - half) * second
    turned = p.kernel, p.x, -p.y, p.z
    odd = theory.f_hat(*turned) + f_hat
    vector = theory.direction(*turned) + theory.direction(*p.data)
    additive = added / s.n - f_hat
    residuals = np.concatenate([additive, odd, vector.ravel()])
    return Sample(np.abs(residuals), 1e-12)


def _homogeneity(rng, s: Setting, p: Problem) -> Sample:
    """Scaling all weights and biases, or the point and the bias input, scales the output."""
    net = network(rng, s.width, s.d)
    factor = rng.uniform(0.2, 5)
    biases = factor * net.biases
    plain = theory.output(p.kernel, *net, p.z)
    scaled = theory.output(p.kernel, factor * net.weights, biases, net.readout, p.z)
    joint = theory.output(p.kernel, net.weights, biases, net.readout, factor * p.z)
    expected = factor * plain
    residuals = [scaled - expected, joint - expected]
    return Sample(np.abs(residuals), 1e-12 * factor)


def _symmetrised(p: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The data with (-x, -y) for every (x, y), (2n, d) and (2n,)."""
    x = np.vstack([p.x, -p.x])
    y = np.concatenate([p.y, -p.y])
    return x, y


def _oddness(rng, s: Setting, p: Problem) -> Sample:
    """Turning data and labels around turns f_hat around.

    On a set invariant under that it is odd.
    """
    turned = theory.f_hat(p.kernel, -p.x, -p.y, -p.z)
    x, y = _symmetrised(p)
    at_z = theory.f_hat(p.kernel, x, y, p.z)
    opposite = theory.f_hat(p.kernel, x, y, -p.z)
    sums = [turned + theory.f_hat(*p.data), opposite + at_z]
    return Sample(np.abs(sums), 1e-12)


def _without_bias_input(rng, s: Setting, p: Problem) -> Sample:
    """A network without bias input, on data with (x, y) and (-x, -y).

    Its f_hat from the angle of the bare points.
    """
    x, y = _symmetrised(p)
    products = x @ p.z.T
    lengths = np.outer(row_norms(x), row_norms(p.z))
    cosine = np.clip(products / lengths, -1, 1)
    phi = gate_moment(s.slope, np.arccos(cosine))
    terms = y[:, None] * phi * products
    exact = terms.mean(axis=0)
    linear = theory.symmetric_predictor_without_bias_input(x, y, p.z, slope=s.slope)
    return Sample(np.abs(exact - linear), 1e-10)


def _nearly_linear(rng, s: Setting, p: Problem) -> Sample:
    f_hat = p.constants.f_hat
    gap = np.abs(f_hat - theory.linear_predictor(*p.data))
    bound = theory.bounds.linear_gap_bound(p.constants)
    return Sample(gap, bound, scale=np.abs(f_hat))


def _linear_exactly(rng, s: Setting, p: Problem) -> Sample:
    """Slope 1: f_hat is linear, v is the mean of y x, zeta is zero.

    And training is its own linearisation.
    """
    kernel = TwoLayerNTK(1.0, p.kernel.train_bias)
    mean = p.y @ p.x / s.n
    net = network(rng, s.width, s.d)
    done = train(net, p.x, p.y, kernel, s, time=s.time).net
    own, _ = theory.tangent_predictor(kernel, *net, p.x, p.y, p.z)
    f_hat = theory.f_hat(kernel, p.x, p.y, p.z)
    direction = theory.direction(kernel, p.x, p.y, p.z)
    linear = theory.linear_predictor(kernel, p.x, p.y, p.z)
    motion = theory.gate_motion(kernel, p.x, p.y, p.z)
    change = outputs(done, p.z, 1.0) - outputs(net, p.z, 1.0)
    off_mean = direction - mean
    parts = [f_hat - linear, off_mean.ravel(), motion.ravel(), change - s.time * own]
    residuals = np.concatenate(parts)
    return Sample(np.abs(residuals), 1e-11)


def _rate(name: str):
    """Root mean square over queries at every width."""

    def error(rng, s: Setting, p: Problem, width: int) -> np.ndarray:
        if name in ("kernel", "initial_output"):
            net = network(rng, width, s.d)
            if name == "initial_output":
                return outputs(net, p.z, s.slope)
            own = theory.gate_moment(p.kernel, *net, p.x, p.z)
            return own - p.gates
        at = p.z if name == "gradient" else None
        sums = fresh_and_trained(rng, p, s, width=width, time=s.time, at=at)
        if name == "flipped_fraction":
            return sums.flipped / width
        if name == "output":
            return sums.change - s.time * p.f_hat
        change = sums.gradient_after - sums.gradient_before
        return change / s.time - p.limit_gradient

    def draw(rng, s: Setting, p: Problem) -> Sample:
        squares = [np.mean(error(rng, s, p, width) ** 2) for width in s.widths]
        return Sample(np.sqrt(squares))

    return draw


def _change_variance(rng, s: Setting, p: Problem) -> Sample:
    """Half the squared difference of two networks' changes, in units of its limit.

    The limit is T^2 (3 S_f^2 - f_hat^2) / m.
    """
    first = fresh_and_trained(rng, p, s, width=s.width, time=s.time).change
    second = fresh_and_trained(rng, p, s, width=s.width, time=s.time).change
    variance = theory.output_change_variance(p.constants, width=s.width, time=s.time)
    square = (first - second) ** 2 / 2
    return Sample(np.mean(square / variance), 1.0, slack=0.1)


def _doubling(rng, s: Setting, p: Problem) -> Sample:
    """A doubled network starts at zero; training it moves the function."""
    net = theory.doubled(*network(rng, s.width // 2, s.d, s.width))
    return Sample(np.abs(theory.output(p.kernel, *net, p.z)), 1e-12)


def _rates() -> tuple[Check, ...]:
    """The checks of 8.8.

    Quantities with much chance in them, the same in all queries, need more draws.
    """
    table = {
        "kernel": ("kernel", "Phi_m - Phi", 200),
        "flipped_fraction": ("flips", "the share of flipped gates", 25),
        "output": ("output", "f - f_0 - T f_hat", 200),
        "gradient": ("gradient", "(grad f - grad f_0)/T - v - zeta", 25),
        "initial_output": ("f_0", "f_0", 250),
    }
    made = []
    for name, (part, what, count) in table.items():
        power = theory.WIDTH_RATES[name]
        default = Setting(draws=count, widths=(200, 1000, 5000), time=0.3)
        full = Setting(draws=2 * count, widths=(500, 2000, 8000, 32000), time=1.0)
        made.append(
            Check(
                "8.8",
                f"{what} against width: power {power:g}",
                "rate",
                _rate(name),
                (default,),
                (full,),
                part=part,
                prepare=problem,
                fixed=True,
                interval=(power - 0.1, power + 0.1),
            )
        )
    return tuple(made)


_PLAIN = Setting(draws=20, slope=0.2, bias=True)
_DATA: dict[str, Any] = {"prepare": problem}
CHECKS = (
    Check(
        "8.1",
        "targets times perturbations do not depend on the targets",
        "identity",
        _independent_of_targets,
        (Setting(draws=5, width=300, slope=0.2, bias=True),),
        **_DATA,
    ),
    Check(
        "8.2",
        "two label vectors change g_hat_u by at most the middle, and that by the outer bound",
        "surely",
        _label_effect,
        (Setting(draws=40, slope=0.2), Setting(draws=40, size=0.1)),
        **_DATA,
    ),
    Check(
        "8.2",
        "(a), trained biases: (psi/eps)^2 in units of the estimated variance",
        "expectation",
        _bias_offset,
        (Setting(draws=1000, slope=0.2, bias=True, size=0.1),),
        (Setting(draws=4000, slope=0.2, bias=True, size=0.1),),
        part="offset",
        fixed=True,
        shown=("size",),
        **_DATA,
    ),
    Check(
        "8.3",
        "N f_hat is additive over data, f_hat and v odd in y (to 1e-12)",
        "identity",
        _linearity,
        (_PLAIN,),
        **_DATA,
    ),
    Check(
        "8.4",
        "the network is homogeneous in (W, b), and in (x, bias input)",
        "identity",
        _homogeneity,
        (Setting(draws=20, width=500, slope=0.2),),
        **_DATA,
    ),
    Check(
        "8.5",
        "f_hat of (-X, -y) at -z is -f_hat, with and without trained bias",
        "identity",
        _oddness,
        (_PLAIN, Setting(draws=20)),
        **_DATA,
    ),
    Check(
        "8.6",
        "without bias input, f_hat of symmetrised data is linear",
        "identity",
        _without_bias_input,
        (Setting(draws=20, slope=0.2),),
        **_DATA,
    ),
    Check(
        "8.7",
        "slope near 1: |f_hat - linear predictor| <= its bound",
        "surely",
        _nearly_linear,
        (Setting(draws=20, slope=0.8, bias=True),),
        resolves="|f_hat|",
        **_DATA,
    ),
    Check(
        "8.7",
        "slope 1: linear predictor, v the mean of y x, no zeta, no lazy error",
        "identity",
        _linear_exactly,
        (Setting(draws=10, width=500, bias=True),),
        part="exact",
        **_DATA,
    ),
    *_rates(),
    Check(
        "8.9",
        "m Var[f - f_0] / (T^2 (3 S_f^2 - f_hat^2)) tends to 1",
        "expectation",
        _change_variance,
        (Setting(draws=300, width=500, time=0.05),),
        (Setting(draws=600, width=4000, time=0.3),),
        fixed=True,
        shown=("width", "time"),
        **_DATA,
    ),
    Check(
        "8.10",
        "a doubled network starts at zero to rounding",
        "identity",
        _doubling,
        (Setting(draws=10),),
        **_DATA,
    ),
)
