"""Checks of section 1: trained predictors of the linearised model."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturbkernel import theory
from perturbkernel.training import fit
from perturbkernel.training.dynamics import GradientFlow, HeavyBall
from perturbkernel.verify.draws import Problem, network, problem
from perturbkernel.verify.kernels import kernel_matrix
from perturbkernel.verify.protocol import Check, Sample, Setting


def _linearised(rng, s: Setting, p: Problem) -> Sample:
    """Heavy ball, with rates that change, on the gradient at initialisation as features."""
    kernel = p.kernel
    net = network(rng, s.width, s.d)
    points = np.vstack([p.x, p.z])
    u = points @ net.weights.T + net.biases
    gates = np.where(u > 0, 1.0, s.slope) * net.readout
    by_weights = gates[:, :, None] * points[:, None]
    by_weights = by_weights.reshape(len(points), -1)
    by_biases = float(kernel.train_bias) * gates
    features = np.hstack([by_weights, by_biases])
    at_x = features[: s.n]
    at_z = features[s.n :]
    dynamics = HeavyBall(rng.uniform(0, 0.1, size=s.steps), momentum=s.momentum)
    gradient = at_x.T @ p.y / s.n
    moved = np.zeros_like(gradient)
    velocity = np.zeros_like(gradient)
    for rate in dynamics.rates:
        velocity = s.momentum * velocity + gradient
        moved += rate * velocity
    trained = at_z @ moved
    f_hat, _ = theory.tangent_predictor(kernel, *net, p.x, p.y, p.z)
    closed = dynamics.effective_time * f_hat
    return Sample(np.abs(trained - closed), 1e-12 * np.abs(closed).max())


def _factor(p: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Features of x and of z whose inner products are the kernel."""
    points = np.vstack([p.x, p.z])
    matrix = kernel_matrix(p.kernel, "ntk", points, points)
    values, vectors = np.linalg.eigh(matrix)
    root = vectors * np.sqrt(np.maximum(values, 0))
    n = len(p.x)
    return root[:n], root[n:]


def _squared(rng, s: Setting, p: Problem) -> Sample:
    """Squared loss of a model linear in its parameters: by steps, against the closed form.

    All three dynamics: gradient descent, heavy ball, gradient flow.
    """
    at_x, at_z = _factor(p)
    target = p.y - rng.normal(size=s.n)
    largest = np.linalg.norm(at_x, 2) ** 2 / s.n
    residuals = []

    def compare(parameters, dynamics):
        with jax.enable_x64(True):
            x = jnp.asarray(p.x)
            y = jnp.asarray(target)
            predictor = fit.fit(p.kernel, x, y, loss="squared", dynamics=dynamics)
            closed = np.asarray(predictor(jnp.asarray(p.z)))
        error = np.abs(at_z @ parameters - closed)
        residuals.append(error / np.abs(closed).max())

    def flow(parameters):
        """Minus the gradient of the loss."""
        left = target - at_x @ parameters
        return at_x.T @ left / s.n

    start = np.zeros(at_x.shape[1])
    for momentum in (0.0, s.momentum):
        rates = rng.uniform(0.3, 1, size=s.steps) / largest
        parameters = start
        velocity = start
        for rate in rates:
            velocity = momentum * velocity + flow(parameters)
            parameters = parameters + rate * velocity
        compare(parameters, HeavyBall(rates, momentum=momentum))

    # Gradient flow by the classical Runge-Kutta rule.
    time = float(20 / largest)
    count = 2500
    parameters = start
    for _ in range(count):
        parameters = _runge_kutta(flow, parameters, time / count)
    compare(parameters, GradientFlow(time))
    return Sample(np.array(residuals), np.array([[1e-12], [1e-12], [1e-9]]))


def _runge_kutta(flow, state, step):
    k1 = flow(state)
    k2 = flow(state + step / 2 * k1)
    k3 = flow(state + step / 2 * k2)
    k4 = flow(state + step * k3)
    return state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


class _Path(NamedTuple):
    """Logistic training of the kernel model.

    Attributes:
        coefficients: (time, alpha) at three times, the dual coefficients alpha of shape (n,).
        margin: the largest |f(x_n)| met on the way.
        initial: (n,), the outputs before training.
    """

    coefficients: list[tuple[float, np.ndarray]]
    margin: float
    initial: np.ndarray


def _logistic_path(rng, s: Setting, p: Problem, zero: bool = False) -> _Path:
    """The path by the Runge-Kutta rule; `zero`: from the initial function 0."""
    gram = kernel_matrix(p.kernel, "ntk", p.x, p.x)
    f0 = np.zeros(s.n) if zero else rng.normal(size=s.n)
    count = 60 + int(20 * s.time * np.abs(gram).mean())

    def outputs(alpha):
        return f0 + gram @ (p.y * alpha)

    def flow(alpha):
        margins = p.y * outputs(alpha)
        return 1 / (1 + np.exp(margins)) / s.n

    alpha = np.zeros(s.n)
    margin = np.abs(f0).max()
    path = []
    for step in range(1, count + 1):
        alpha = _runge_kutta(flow, alpha, s.time / count)
        margin = max(margin, np.abs(outputs(alpha)).max())
        if step in (count // 10, count // 3, count):
            path.append((s.time * step / count, alpha))
    return _Path(path, margin, f0)


def _weight_error(time: float, alpha: np.ndarray) -> np.ndarray:
    """e_n = 2 n alpha_n / T - 1, (n,): how far weights are from those of one half."""
    return 2 * len(alpha) * alpha / time - 1


def _coefficients(rng, s: Setting, p: Problem) -> Sample:
    path = _logistic_path(rng, s, p)
    observed = []
    bounds = []
    for time, alpha in path.coefficients:
        b = theory.bounds.coefficient_bounds(p.kernel, p.x, p.y, time=time, initial=path.initial)
        observed += [b.low, alpha, np.abs(_weight_error(time, alpha))]
        bounds += [alpha, b.high, b.error]
    return Sample(np.array(observed), np.array(bounds))


def _margins(rng, s: Setting, p: Problem) -> Sample:
    """|e_n| against the largest margin that was met."""
    path = _logistic_path(rng, s, p)
    error = _weight_error(*path.coefficients[-1])
    return Sample(np.abs(error).max(), theory.bounds.weight_error_bound(path.margin))


def _half_time(rng, s: Setting, p: Problem) -> Sample:
    time, alpha = _logistic_path(rng, s, p).coefficients[-1]
    trained = (p.y * alpha) @ kernel_matrix(p.kernel, "ntk", p.x, p.z)
    f_hat = theory.f_hat(*p.data)
    gap = np.abs(2 * trained / time - f_hat)
    error = np.abs(_weight_error(time, alpha))
    bound = theory.bounds.half_time_gap(p.kernel, p.x, p.z, error)
    return Sample(gap, bound, scale=np.abs(f_hat))


def _same_sign(rng, s: Setting, p: Problem) -> Sample:
    time, alpha = _logistic_path(rng, s, p, zero=True).coefficients[-1]
    outputs = (p.y * alpha) @ kernel_matrix(p.kernel, "ntk", p.x, p.z)
    error = np.abs(_weight_error(time, alpha))
    sure = theory.same_sign_as_identity(p.constants, error)
    apart = outputs * theory.f_hat(*p.data) <= 0
    return Sample(apart.astype(float), np.where(sure, 0.5, np.nan))


_SMALL = Setting(draws=20, n=12, d=8, points=10, slope=0.2, bias=True)
_LARGE = Setting(draws=50, slope=0.2, bias=True)
CHECKS = (
    Check(
        "1.1",
        "heavy ball on the linearised network is time tau_k times f_hat (to 1e-12)",
        "identity",
        _linearised,
        (Setting(draws=20, width=40, d=6, slope=0.2, bias=True, steps=60),),
        prepare=problem,
    ),
    Check(
        "1.2",
        "squared loss by steps (descent, heavy ball, flow) equals the closed form",
        "identity",
        _squared,
        (Setting(draws=3, n=12, d=6, points=8, slope=0.2, bias=True, steps=40),),
        (Setting(draws=20, n=20, d=6, slope=0.2, bias=True, steps=200),),
        prepare=problem,
    ),
    Check(
        "1.3",
        "low <= alpha_n <= high and |e_n| <= its bound along the logistic flow",
        "surely",
        _coefficients,
        tuple(replace(_SMALL, time=time) for time in (0.3, 3.0)),
        tuple(replace(_LARGE, time=time) for time in (0.3, 3.0, 30.0)),
        part="(iii)",
        prepare=problem,
        shown=("time",),
    ),
    Check(
        "1.3",
        "|e_n| <= tanh(M/2) with the largest margin met",
        "surely",
        _margins,
        (_SMALL,),
        part="(ii)",
        prepare=problem,
        shown=("time",),
    ),
    Check(
        "1.3",
        "logistic at time T against identity at T/2: |2 f/T - f_hat| <= bound",
        "surely",
        _half_time,
        (Setting(draws=20, n=12, d=8, points=10, slope=0.2, time=0.1),),
        part="(iv)",
        prepare=problem,
        shown=("time",),
        resolves="|f_hat|",
    ),
    Check(
        "1.3",
        "where (1.4) is met, both losses give the same sign",
        "surely",
        _same_sign,
        (Setting(draws=20, n=12, d=8, points=10, slope=0.2, shift=0.5, time=0.3),),
        part="(1.4)",
        prepare=problem,
        shown=("time",),
        claim=True,
    ),
)
