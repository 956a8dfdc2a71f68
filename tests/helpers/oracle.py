"""Independent NumPy reference for the closed forms, written from the formulas of theory.md alone.

Slow and plain on purpose: it shares no code with the package it checks. Inputs are float64 and are
taken as exact; per-pair geometry is done in ``np.longdouble`` and results are returned as float64.
Notation: x (n, d) training points, z (m, d) queries, g the slope of the leaky ReLU, c = 1 if the
bias is trained and 0 if not, xbar = (x / sqrt(d), 1) with length s_x, t the angle between xbar and
zbar. With an 80-bit ``longdouble`` and norms up to 1e6, angles are good to 1e-13 relative and the
gradient of Phi to 1e-12 of its bound in 0.3; where ``longdouble`` is float64, to 1e-9 or so.
"""

import itertools
import math

import numpy as np
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.special import expit

LONG = np.longdouble
PI = 4 * np.arctan(LONG(1))


def _long(a):
    """Widen to longdouble (exact)."""
    return np.asarray(a, LONG)


def _float(a):
    """Round to float64."""
    return np.asarray(a, np.float64)


def _geometry(x, q):
    """Pair geometry of every row of x with ONE query q, without avoidable cancellation.

    With e = x - q = sqrt(d) (xbar - qbar) = ratio q + side, side orthogonal to q:
      sine    = s_x s_q sin t = sqrt((ratio^2 |q|^2 + s_q^2 |side|^2) / d)    (n,)
      cosine  = s_x s_q cos t = 1 + <x, q>/d                                  (n,)
      tangent = sqrt(d) (first d entries of xbar minus its projection on qbar)
              = side + ratio q / s_q^2                                        (n, d)
    (Notation; 0.2-0.4.) Identical rows give sine == 0 and a zero tangent exactly.
    """
    x, q = _long(x), _long(q)
    square = np.sum(q**2)
    s_squared = 1 + square / q.size
    e = x - q
    square_or_one = square if square > 0 else LONG(1)
    ratio = np.sum(e * q, axis=1) / square_or_one
    short = np.where(np.sum(x**2, axis=1) < np.sum(e**2, axis=1), x.T, e.T).T  # same side part
    side = short - (np.sum(short * q, axis=1) / square_or_one)[:, None] * q
    sine = np.sqrt((ratio**2 * square + s_squared * np.sum(side**2, axis=1)) / q.size)
    cosine = 1 + np.sum(x * q, axis=1) / q.size
    return sine, cosine, side + (ratio / s_squared)[:, None] * q


def _cone(slope):
    """(1 - g)^2 / (2 pi), the slope of Phi in the angle (0.1)."""
    return (1 - LONG(slope)) ** 2 / (2 * PI)


def _phi(sine, cosine, slope):
    """Phi from the angle (0.1), counted from 0 or from pi, whichever is nearer."""
    slope, cone = LONG(slope), _cone(slope)
    near = (1 + slope**2) / 2 - cone * np.arctan2(sine, cosine)
    far = slope + cone * np.arctan2(sine, -cosine)
    return np.where(cosine > 0, near, far)


def _pairs(x, z):
    """sine and cosine of _geometry for every pair: (n, m), (n, m)."""
    sine, cosine = zip(*(_geometry(x, q)[:2] for q in z), strict=True)
    return np.stack(sine, axis=1), np.stack(cosine, axis=1)


def _phi_long(x, z, slope):
    """Phi before rounding to float64: (n, m)."""
    return _phi(*_pairs(x, z), slope)


def _ntk_long(x, z, slope, train_bias):
    """K before rounding to float64: (n, m)."""
    return _phi_long(x, z, slope) * (_long(x) @ _long(z).T + int(train_bias))


def angle(x, z):
    """Angle t = arccos(<xbar, zbar>/(s_x s_z)) in [0, pi), by atan2(sine, cosine): (n, m). (0.5)"""
    return _float(np.arctan2(*_pairs(x, z)))


def phi(x, z, slope):
    """Phi = E[gate(x) gate(z)] = (1 + g^2)/2 - (1 - g)^2 t / (2 pi): (n, m). (0.1)"""
    return _float(_phi_long(x, z, slope))


def ntk(x, z, slope, train_bias):
    """K(x, z) = Phi(x, z) (<x, z> + c): (n, m). (0.1)"""
    return _float(_ntk_long(x, z, slope, train_bias))


def nngp(x, z, slope):
    """Sigma = s_x s_z [cos t Phi + (1 - g)^2 / (2 pi) sin t]: (n, m). (0.1)

    Evaluated as s_x s_z [g cos t + (1 - g)^2 / (2 pi) (sin r - r cos r)], r = pi - t, with the
    power series of the last bracket for small r (nearly antipodal pairs).
    """
    sine, cosine = _pairs(x, z)
    r = np.arctan2(sine, -cosine)
    terms = ((-1) ** (k + 1) * 2 * k / LONG(math.factorial(2 * k + 1)) for k in range(1, 9))
    series = sum(term * r ** (2 * k + 1) for k, term in enumerate(terms, 1))
    bracket = np.where(r < 0.25, np.hypot(sine, cosine) * series, sine + cosine * r)
    return _float(LONG(slope) * cosine + _cone(slope) * bracket)


def matvec(z, x, coef, slope, train_bias):
    """sum_n coef_n K(x_n, z_j); coef (n,) gives (m,), coef (n, k) gives (m, k). (0.1, 1)"""
    return _float(_ntk_long(x, z, slope, train_bias).T @ _long(coef))


def phi_matmul(z, x, b, slope):
    """sum_n Phi(x_n, z_j) b_n, b (n, k): (m, k). (0.1)"""
    return _float(_phi_long(x, z, slope).T @ _long(b))


def input_gradient(z, x, coef, slope, train_bias):
    """Gradient in z of sum_n coef_n K(x_n, z), coef (n,): (m, d). (0.3, 0.4, 5.3)

    grad_z K = Phi x + (<x, z> + c) grad_z Phi with grad_z Phi = 0 for every x_n equal to z, else
    (1 - g)^2/(2 pi) tangent / (d sine).
    """
    x, coef = _long(x), _long(coef)
    rows = []
    for q in _long(z):
        sine, cosine, tangent = _geometry(x, q)
        apart = sine > 0
        scale = np.where(apart, _cone(slope) / (q.size * np.where(apart, sine, 1)), 0)
        grad_phi = scale[:, None] * tangent
        factor = np.sum(x * q, axis=1) + int(train_bias)
        grad = _phi(sine, cosine, slope)[:, None] * x + factor[:, None] * grad_phi
        rows.append(np.sum(coef[:, None] * grad, axis=0))
    return _float(np.stack(rows))


def frozen_gate_direction(z, x, coef, slope):
    """sum_n coef_n Phi(x_n, z) x_n: (m, d); v of 2.3 for coef = y/n, without zeta of 5.3."""
    return phi_matmul(z, x, _long(coef)[:, None] * _long(x), slope)


def monte_carlo_phi(x, z, slope, samples, seed):
    """Phi as a mean over random gates: w ~ N(0, I/d), b ~ N(0, 1), gate(0) = g: (n, m). (0.1)"""
    rng = np.random.default_rng(seed)
    x, z = np.asarray(x, float), np.asarray(z, float)
    total, left = np.zeros((len(x), len(z))), samples
    while left > 0:
        size = min(left, 20_000)
        w = rng.standard_normal((x.shape[1], size)) / np.sqrt(x.shape[1])
        b = rng.standard_normal(size)
        gate_x, gate_z = (np.where(p @ w + b > 0, 1.0, slope) for p in (x, z))
        total += gate_x @ gate_z.T
        left -= size
    return total / samples


def effective_time(rates, momentum):
    """tau_k = sum_j rate_j (1 - mu^j)/(1 - mu): the displacement under a unit gradient. (1.1)"""
    velocity = tau = 0.0
    for rate in np.asarray(rates, float):
        velocity = momentum * velocity + 1.0
        tau += rate * velocity
    return tau


def _loss_slope(loss, outputs, y):
    """dL/df_n: -y/n, -y sigmoid(-y f)/n, or (f - y)/n for L = (1/2n) sum (f - y)^2. (1.1-1.3)"""
    if loss == "identity":
        return -y / len(y)
    if loss == "logistic":
        return -y * expit(-y * outputs) / len(y)
    if loss == "squared":
        return (outputs - y) / len(y)
    raise ValueError(f"unknown loss {loss!r}")


def dual_coef(x, y, slope, train_bias, loss, dynamics, f0=None):
    """Dual coefficients a of the trained predictor f(z) = f0(z) + sum_n a_n K(x_n, z): (n,). (1)

    dynamics = ("flow", time): a' = -dL/df along f(X) = f0(X) + K a, from a = 0; time may be inf for
    the squared loss (minimum-norm solution: any null part of a leaves f unchanged).
    dynamics = ("heavy_ball", rates, momentum): v = mu v + dL/df, a = a - rate v, step by step.
    ``f0`` holds the initial function at x (None: zero). Targets y are inside a.
    """
    y = np.asarray(y, float)
    start = np.zeros(len(y)) if f0 is None else np.asarray(f0, float)
    gram = ntk(x, x, slope, train_bias)
    if dynamics[0] == "heavy_ball":
        _, rates, momentum = dynamics
        dual, velocity = np.zeros(len(y)), np.zeros(len(y))
        for rate in np.asarray(rates, float):
            velocity = momentum * velocity + _loss_slope(loss, start + gram @ dual, y)
            dual = dual - rate * velocity
        return dual
    time = dynamics[1]
    if dynamics[0] != "flow" or (np.isinf(time) and loss != "squared"):
        raise ValueError(f"no dynamics {dynamics!r} for the loss {loss!r}")
    if loss == "identity":
        return time * y / len(y)
    if loss == "squared":
        if np.isinf(time):
            return np.linalg.pinv(gram, rcond=1e-12, hermitian=True) @ (y - start)
        # (a, 1)' = [[-K/n, (y - f0)/n], [0, 0]] (a, 1)
        linear = np.zeros((len(y) + 1, len(y) + 1))
        linear[:-1, :-1], linear[:-1, -1] = -gram / len(y), (y - start) / len(y)
        return expm(time * linear)[:-1, -1]
    solution = solve_ivp(
        lambda _, dual: -_loss_slope(loss, start + gram @ dual, y),
        (0.0, time),
        np.zeros(len(y)),
        method="DOP853",
        rtol=1e-11,
        atol=1e-14,
    )
    if not solution.success:
        raise RuntimeError(solution.message)
    return solution.y[:, -1]


def perturb(gradient, targets, size, norm):
    """Perturbation and zero-gradient flag: (n, ...), (n,). (5, 13.1)

    delta = size target grad/|grad| ("l2") or size target sign(grad) ("linf"). Lengths run over
    all axes but the first. Rows with a zero gradient get delta = 0 and the flag True.
    """
    gradient = np.asarray(gradient, float)
    flat = gradient.reshape(len(gradient), -1)
    peak = np.max(np.abs(flat), axis=1, keepdims=True)
    zero = peak[:, 0] == 0
    scaled = flat / np.where(peak == 0, 1, peak)  # no overflow or underflow in the squares
    if norm == "l2":
        unit = scaled / np.where(peak == 0, 1, np.linalg.norm(scaled, axis=1, keepdims=True))
    elif norm == "linf":
        unit = np.sign(scaled)
    else:
        raise ValueError(f"unknown norm {norm!r}")
    return (size * np.asarray(targets, float)[:, None] * unit).reshape(gradient.shape), zero


def target_parts(o, u, size, z, slope, train_bias):
    """Parts (h+ - h-)/2 and b = (h+ + h-)/2, both (n, m), h+- = K(o_n +- size u_n, z). (12.3)

    ghat_K(z) = (1/n) sum_n (h+ - h-)/2 + (1/n) sum_n target_n b_n exactly.
    """
    up, down = (_ntk_long(o + s * size * u, z, slope, train_bias) for s in (1, -1))
    return _float((up - down) / 2), _float((up + down) / 2)


def balanced_offset_moments(b):
    """Mean and variance of (1/n) sum_n target_n b_n over uniform balanced targets, b (n, m). (6.3)

    n even (sum zero): E[target_i target_j] = -1/(n - 1), variance sum (b - mean b)^2 / (n (n - 1)).
    n odd (|sum| = 1): E[target_i target_j] = -1/n,
    variance [(n + 1)/n sum (b - mean b)^2 + (mean b)^2] / n^2. The mean is 0 in both.
    """
    n, centre = len(b), np.mean(b, axis=0)
    spread = np.sum((b - centre) ** 2, axis=0)
    if n % 2 == 0:
        return np.zeros_like(spread), spread / (n * (n - 1))
    return np.zeros_like(spread), ((n + 1) / n * spread + centre**2) / n**2


def target_moments(o, u, size, z, slope, train_bias, balanced=False):
    """E and Var of ghat_K(z) over coin-flip (or balanced) targets: (m,), (m,). (12.3, 6.3)

    E = (1/n) sum (h+ - h-)/2; Var = (1/n^2) sum b^2 for coin flips.
    """
    signal, b = target_parts(o, u, size, z, slope, train_bias)
    variance = balanced_offset_moments(b)[1] if balanced else np.sum(b**2, axis=0) / len(b) ** 2
    return np.mean(signal, axis=0), variance


def enumerated_moments(o, u, size, z, slope, train_bias, balanced=False):
    """target_moments by brute force: ghat_K = (1/n) sum target_n K(r_n, z), r = o + size target u,
    over all 2^n targets (balanced: those of smallest |sum|). For n up to about 12. (6.1)
    """
    targets = np.array(list(itertools.product((-1.0, 1.0), repeat=len(u))))
    if balanced:
        targets = targets[np.abs(targets.sum(axis=1)) == len(u) % 2]
    values = [matvec(z, o + size * t[:, None] * u, t / len(u), slope, train_bias) for t in targets]
    return np.mean(values, axis=0), np.var(values, axis=0)
