"""Checks of sections 0 and 1: the kernel's closed forms, and trained predictors of the linearised
model.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from perturbkernel import theory
from perturbkernel.kernels import angles as activations
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory import arguments
from perturbkernel.training import fit
from perturbkernel.training.dynamics import GradientFlow, HeavyBall
from perturbkernel.verify.draws import Problem, network, problem
from perturbkernel.verify.protocol import Check, Sample, Setting

SLOPES = (0.0, 0.2, 0.5, 0.9)


def kernel_matrix(kernel: TwoLayerNTK, name: str, x, z) -> np.ndarray:
    """kernel.phi, .ntk or .nngp in float64, (n, m)."""
    return arguments.double(getattr(kernel, name), x, z)


def _pairs(rng, s: Setting):
    return rng.normal(size=(4, s.d)), rng.normal(size=(5, s.d)) * rng.uniform(0.3, 2, size=(5, 1))


def _moments(rng, s: Setting, pairs) -> Sample:
    """Averages over neurons of the products that Phi, Q and Sigma are means of."""
    x, z = pairs
    kernel = TwoLayerNTK(s.slope)
    net = network(rng, s.samples, s.d)
    u, v = (net.weights @ points.T + net.biases[:, None] for points in (x, z))
    gate_u, gate_v = (np.where(a > 0, 1.0, s.slope) for a in (u, v))
    means = [
        gate_u.T @ gate_v,
        (gate_u**2).T @ gate_v**2,
        (gate_u * u).T @ (gate_v * v),
    ]
    phi = kernel_matrix(kernel, "phi", x, z)
    fourth = (theory.gate_moment_variance(kernel, x, z, width=1) + phi**2) / 3
    return Sample(
        np.array(means) / s.samples, np.array([phi, fourth, kernel_matrix(kernel, "nngp", x, z)])
    )


def _range(rng, s: Setting, _) -> Sample:
    """Slope <= Phi <= (1 + slope^2)/2, at wild and at opposite points."""
    kernel = TwoLayerNTK(s.slope)
    x = rng.normal(size=(20, s.d)) * np.exp(rng.normal(size=(20, 1)))
    phi = kernel_matrix(kernel, "phi", np.vstack([x, 30 * x]), np.vstack([x, -30 * x]))
    return Sample(
        np.stack([np.full(phi.shape, s.slope), phi]),
        np.stack([phi, np.full(phi.shape, (1 + s.slope**2) / 2)]),
    )


def _angle_range(rng, s: Setting, _) -> Sample:
    x = rng.normal(size=(20, s.d)) * np.exp(2 * rng.normal(size=(20, 1)))
    theta = arguments.double(
        lambda a, b: jax.jit(activations.products_and_angles)(a, b)[1], x, np.vstack([x, -x])
    )
    own = np.diagonal(theta)
    # Below pi by the angle at which the farthest opposite points see the bias coordinate.
    gap = 1 / np.sqrt(1 + np.max(np.sum(x**2, 1)) / s.d)
    return Sample(
        np.concatenate([theta.ravel(), own]),
        np.concatenate([np.full(theta.size, np.pi - gap), 0 * own]),
    )


def _derivative(function, z: np.ndarray, step: float = 1e-3) -> np.ndarray:
    """Central differences of sixth order of a function of single points, (m, d)."""
    columns = []
    for axis in np.eye(z.shape[1]):
        at = {k: function(z + k * step * axis) for k in (-3, -2, -1, 1, 2, 3)}
        columns.append(
            (45 * (at[1] - at[-1]) - 9 * (at[2] - at[-2]) + at[3] - at[-3]) / (60 * step)
        )
    return np.stack(columns, axis=1)


def _gradients(rng, s: Setting, p: Problem) -> Sample:
    """Gradients of f_hat = sum of kernels, and of Sigma, against finite differences away from
    training points.
    """
    z = p.z + rng.normal(size=p.z.shape)
    numeric = _derivative(lambda q: theory.f_hat(p.kernel, p.x, p.y, q), z)
    split = theory.direction(p.kernel, p.x, p.y, z) + theory.gate_motion(p.kernel, p.x, p.y, z)
    one = p.x[:1]
    sigma = _derivative(lambda q: kernel_matrix(p.kernel, "nngp", q, one)[:, 0], z)
    covariance = theory.initial_covariance(p.kernel, one, z)[0, 1:].reshape(z.shape)
    residuals = [
        theory.limit_gradient(p.kernel, p.x, p.y, z) - numeric,
        split - numeric,
        covariance - sigma,
    ]
    return Sample(np.abs(residuals), 1e-9)


def _lipschitz(rng, s: Setting, p: Problem) -> Sample:
    """Phi at pairs of points near a training point, whose cusp is where Phi changes fastest."""
    start = p.x + rng.normal(size=p.x.shape) * np.exp(rng.uniform(-12, 1, size=(s.n, 1)))
    end = start + rng.normal(size=p.x.shape) * np.exp(rng.uniform(-12, 1, size=(s.n, 1)))
    change = np.diagonal(
        kernel_matrix(p.kernel, "phi", p.x, start) - kernel_matrix(p.kernel, "phi", p.x, end)
    )
    rate = arguments.cone_slope(p.kernel) / np.sqrt(s.d)
    # Phi itself is rounded, which differences of points 1e-5 apart see.
    return Sample(np.abs(change), rate * np.linalg.norm(start - end, axis=1) + 4e-16)


def _cusp(rng, s: Setting, p: Problem) -> Sample:
    """One-sided slopes at a training point, and the gradient there with and without a duplicate."""
    step, x = 1e-6, p.x
    h = rng.normal(size=x.shape)
    centre = (1 + s.slope**2) / 2
    forward, backward = (
        np.diagonal(kernel_matrix(p.kernel, "phi", x, x + sign * step * h) - centre) / step
        for sign in (1, -1)
    )
    augmented, direction = (
        np.hstack([x / np.sqrt(s.d), np.ones((s.n, 1))]),
        np.hstack([h / np.sqrt(s.d), np.zeros((s.n, 1))]),
    )
    length = np.linalg.norm(augmented, axis=1)
    along = np.sum(augmented * direction, axis=1) / length
    slope = arguments.cone_slope(p.kernel) / length * np.sqrt(np.sum(direction**2, 1) - along**2)
    doubled = theory.gate_motion(
        p.kernel, np.vstack([x, x]), np.tile(p.y, 2), x
    ) - theory.gate_motion(p.kernel, x, p.y, x)
    own = [
        theory.gate_motion(p.kernel, x[i : i + 1], p.y[i : i + 1], x[i : i + 1]) for i in range(3)
    ]
    residual = np.concatenate([np.abs(forward + slope), np.abs(backward + slope)]) / slope.max()
    exact = np.concatenate([np.abs(doubled).ravel(), np.abs(own).ravel()])
    return Sample(
        np.concatenate([residual, exact]), np.repeat([1e-5, 1e-12], [len(residual), len(exact)])
    )


def _stable_angles(rng, s: Setting, _) -> Sample:
    """Angles in float32 against float64, for the hard pairs of 0.5."""
    x = rng.normal(size=(12, s.d))
    noise = rng.normal(size=x.shape)
    others = [x, x + 1e-4 * noise, x + 1e-2 * noise, noise, -30 * x, 2 * x]
    narrow = np.asarray(np.vstack([x, x, x, x, 30 * x, 30 * x]), np.float32)
    wide = np.asarray(np.vstack([*others[:-1], 60 * x]), np.float32)
    with jax.enable_x64(False):
        theta = np.diagonal(np.asarray(jax.jit(activations.products_and_angles)(narrow, wide)[1]))
    a, b = (
        np.hstack([q.astype(float) / np.sqrt(s.d), np.ones((len(q), 1))]) for q in (narrow, wide)
    )
    a, b = (q / np.linalg.norm(q, axis=1, keepdims=True) for q in (a, b))
    exact = 2 * np.arctan2(np.linalg.norm(a - b, axis=1), np.linalg.norm(a + b, axis=1))
    exact[: len(x)] = 0.0
    return Sample(np.abs(theta - exact), np.minimum(1e-5, 1e-4 * exact + 1e-30))


def _linearised(rng, s: Setting, p: Problem) -> Sample:
    """Heavy ball, with rates that change, on the gradient at initialisation as features."""
    kernel, c = p.kernel, float(p.kernel.train_bias)
    net = network(rng, s.width, s.d)
    points = np.vstack([p.x, p.z])
    gates = np.where(points @ net.weights.T + net.biases > 0, 1.0, s.slope) * net.readout
    features = np.hstack(
        [(gates[:, :, None] * points[:, None]).reshape(len(points), -1), c * gates]
    )
    dynamics = HeavyBall(rng.uniform(0, 0.1, size=s.steps), momentum=s.momentum)
    gradient = features[: s.n].T @ p.y / s.n
    moved, velocity = np.zeros(features.shape[1]), np.zeros(features.shape[1])
    for rate in dynamics.rates:
        velocity = s.momentum * velocity + gradient
        moved += rate * velocity
    trained = features[s.n :] @ moved
    closed = dynamics.effective_time * theory.tangent_predictor(kernel, *net, p.x, p.y, p.z)[0]
    return Sample(np.abs(trained - closed), 1e-12 * np.abs(closed).max())


def _factor(p) -> tuple[np.ndarray, np.ndarray]:
    """Features of x and of z whose inner products are the kernel."""
    points = np.vstack([p.x, p.z])
    values, vectors = np.linalg.eigh(kernel_matrix(p.kernel, "ntk", points, points))
    root = vectors * np.sqrt(np.maximum(values, 0))
    return root[: len(p.x)], root[len(p.x) :]


def _squared(rng, s: Setting, p: Problem) -> Sample:
    """Squared loss of a model linear in its parameters, by steps, against the closed form, all
    three dynamics.
    """
    at_x, at_z = _factor(p)
    target = p.y - rng.normal(size=s.n)
    largest = np.linalg.norm(at_x, 2) ** 2 / s.n
    residuals = []

    def compare(parameters, dynamics):
        with jax.enable_x64(True):
            predictor = fit.fit(
                p.kernel, jnp.asarray(p.x), jnp.asarray(target), loss="squared", dynamics=dynamics
            )
            closed = np.asarray(predictor(jnp.asarray(p.z)))
        residuals.append(np.abs(at_z @ parameters - closed) / np.abs(closed).max())

    for momentum in (0.0, s.momentum):
        rates = rng.uniform(0.3, 1, size=s.steps) / largest
        parameters, velocity = np.zeros(at_x.shape[1]), np.zeros(at_x.shape[1])
        for rate in rates:
            velocity = momentum * velocity + at_x.T @ (at_x @ parameters - target) / s.n
            parameters = parameters - rate * velocity
        compare(parameters, HeavyBall(rates, momentum=momentum))
    # Gradient flow by the classical Runge-Kutta rule.
    time, count = float(20 / largest), 2500
    flow, parameters = lambda q: at_x.T @ (target - at_x @ q) / s.n, np.zeros(at_x.shape[1])
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


def _logistic_path(rng, s: Setting, p: Problem, zero: bool = False):
    """The kernel model's dual coefficients by Runge-Kutta: (time, alpha) at three times, and the
    largest |f(x_n)|.
    """
    gram = kernel_matrix(p.kernel, "ntk", p.x, p.x)
    f0 = np.zeros(s.n) if zero else rng.normal(size=s.n)
    count = 60 + int(20 * s.time * np.abs(gram).mean())

    def flow(alpha):
        return 1 / (1 + np.exp(p.y * (f0 + gram @ (p.y * alpha)))) / s.n

    alpha, path, margin = np.zeros(s.n), [], np.abs(f0).max()
    for step in range(1, count + 1):
        alpha = _runge_kutta(flow, alpha, s.time / count)
        margin = max(margin, np.abs(f0 + gram @ (p.y * alpha)).max())
        if step in (count // 10, count // 3, count):
            path.append((s.time * step / count, alpha))
    return path, margin, f0


def _coefficients(rng, s: Setting, p: Problem) -> Sample:
    path, _, f0 = _logistic_path(rng, s, p)
    observed, bounds = [], []
    for time, alpha in path:
        b = theory.bounds.coefficient_bounds(p.kernel, p.x, p.y, time=time, initial=f0)
        observed += [b.low, alpha, np.abs(2 * s.n * alpha / time - 1)]
        bounds += [alpha, b.high, b.error]
    return Sample(np.array(observed), np.array(bounds))


def _margins(rng, s: Setting, p: Problem) -> Sample:
    """|e_n| against the largest margin that was met."""
    path, margin, _ = _logistic_path(rng, s, p)
    time, alpha = path[-1]
    return Sample(
        np.abs(2 * s.n * alpha / time - 1).max(), theory.bounds.weight_error_bound(margin)
    )


def _half_time(rng, s: Setting, p: Problem) -> Sample:
    path, _, _ = _logistic_path(rng, s, p)
    time, alpha = path[-1]
    cross = kernel_matrix(p.kernel, "ntk", p.x, p.z)
    error = 2 * s.n * alpha / time - 1
    gap = np.abs(2 * (p.y * alpha) @ cross / time - theory.f_hat(*p.data))
    return Sample(
        gap,
        theory.bounds.half_time_gap(p.kernel, p.x, p.z, np.abs(error)),
        np.abs(theory.f_hat(*p.data)),
    )


def _same_sign(rng, s: Setting, p: Problem) -> Sample:
    path, _, _ = _logistic_path(rng, s, p, zero=True)
    time, alpha = path[-1]
    outputs = (p.y * alpha) @ kernel_matrix(p.kernel, "ntk", p.x, p.z)
    sure = theory.same_sign_as_identity(p.constants, np.abs(2 * s.n * alpha / time - 1))
    return Sample((outputs * theory.f_hat(*p.data) <= 0).astype(float), np.where(sure, 0.5, np.nan))


def _each(setting: Setting, **choices) -> tuple[Setting, ...]:
    """The setting once for every value of one field."""
    ((name, values),) = choices.items()
    return tuple(replace(setting, **{name: value}) for value in values)


_MC = Setting(draws=100, samples=2000, d=10)
_SMALL = Setting(draws=20, n=12, d=8, points=10, slope=0.2, bias=True)
CHECKS = (
    Check(
        "0.1",
        "Phi, Q and Sigma in closed form equal averages over random neurons",
        "expectation",
        _moments,
        _each(_MC, slope=(0.0, 0.5)),
        _each(Setting(draws=200, samples=20000, d=10), slope=SLOPES),
        prepare=_pairs,
        fixed=True,
        shown=("slope",),
    ),
    Check(
        "0.1",
        "slope <= Phi <= (1 + slope^2)/2 at all points",
        "surely",
        _range,
        (Setting(draws=20, d=10, slope=0.2),),
        part="range",
    ),
    Check(
        "0.2",
        "the angle stays below pi, and is 0 exactly for a point with itself",
        "surely",
        _angle_range,
        (Setting(draws=20, d=10),),
    ),
    Check(
        "0.3",
        "gradients of K and Sigma equal finite differences (to 1e-9)",
        "identity",
        _gradients,
        (Setting(draws=5, n=10, d=6, points=8, slope=0.2, bias=True),),
        (Setting(draws=30, n=20, d=10, slope=0.2, bias=True),),
        prepare=problem,
    ),
    Check(
        "0.3",
        "Phi is Lipschitz with (1 - slope)^2/(2 pi sqrt(d)), cusp included",
        "surely",
        _lipschitz,
        (Setting(draws=50),),
        part="Lipschitz",
        prepare=problem,
    ),
    Check(
        "0.4",
        "one-sided slopes of the cusp at a training point (to 1e-5); gradient 0 there, duplicates dropped",
        "identity",
        _cusp,
        (Setting(draws=10),),
        prepare=problem,
    ),
    Check(
        "0.5",
        "angles in float32, of near, radial, opposite and equal points, to 1e-5 and 1e-4 of the angle",
        "surely",
        _stable_angles,
        (Setting(draws=20, d=784),),
    ),
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
        _each(_SMALL, time=(0.3, 3.0)),
        _each(Setting(draws=50, slope=0.2, bias=True), time=(0.3, 3.0, 30.0)),
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
