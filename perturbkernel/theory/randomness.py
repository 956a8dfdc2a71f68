"""What stays random in the infinite-width limit: the initial function and the target labels
(theory: section 12).

f(z; T) = f0(z) + T f_hat(z) with f0 a Gaussian process of covariance Sigma. N_c is the standard
normal distribution function.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import ArrayLike, Float, PRNGKeyArray

from perturbkernel.checks import check_choice, check_count, check_key, check_number
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import (
    as_labels,
    as_points,
    as_vector,
    check_kernel,
    check_time,
    cone_slope,
    double,
    gate_mean_square,
    lengths,
)
from perturbkernel.theory.finite import gradient, output
from perturbkernel.theory.leading import gate_motion, input_direction, is_rounding
from perturbkernel.theory.pairs import gate_matmul, kernel_sum, phi, tiles

TARGET_RULES = ("coin_flip", "balanced")


def sign_probability(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
    *,
    times: Float[ArrayLike, "*k"] | float,
) -> Float[np.ndarray, "*k m"]:
    """P(f(z; T) > 0) = N_c(T f_hat(z) / sqrt(Sigma(z, z))) over initialisations, (k, m) for times
    (k,), (m,) for one time.

    Sigma(z, z) = (1 + slope^2)/2 s_z^2. Identity loss, infinite width. Theory: 12.1.
    """
    check_kernel(kernel)
    x = as_points(x, "x")
    y, z = as_labels(y, "y", len(x)), as_points(z, "z", like=x)
    mean = kernel_sum(kernel, z, x, y / len(x))
    grid = as_vector(times, "times", np.size(times), low=0)
    deviation = np.sqrt(gate_mean_square(kernel)) * lengths(z)
    probability = double(ndtr, grid[:, None] * (mean / deviation))
    return probability if np.ndim(times) else probability[0]


def expected_accuracy(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
    labels: Float[ArrayLike, " m"],
    *,
    times: Float[ArrayLike, "*k"] | float,
) -> Float[np.ndarray, "*k"]:
    """Mean over labelled points of P(sgn f(z; T) = label), (k,): the whole curve over training time
    from one pass. Theory: 12.1.
    """
    probability = np.atleast_2d(sign_probability(kernel, x, y, z, times=times))
    labels = as_labels(labels, "labels", probability.shape[1])
    curve = np.mean(np.where(labels > 0, probability, 1 - probability), axis=1)
    return curve if np.ndim(times) else curve.reshape(())


def reproducibility(probability: Float[ArrayLike, "*m"]) -> Float[np.ndarray, "*m"]:
    """p^2 + (1 - p)^2: the chance that two independently initialised networks agree where each is
    positive with chance p.

    Not a ceiling for the agreement of f with g, whose training data depends on f0. Theory: 12.1.
    """
    p = np.asarray(probability, np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError("probability must lie in [0, 1]")
    return np.asarray(p**2 + (1 - p) ** 2)


def initial_covariance(
    kernel: TwoLayerNTK, z: Float[ArrayLike, "m d"], x: Float[ArrayLike, "n d"]
) -> Float[np.ndarray, "m+n*d m+n*d"]:
    """The exact covariance of (f0(z_1), .., f0(z_m), grad f0(x_1), .., grad f0(x_n)), gradients
    flattened, (m + n d, m + n d).

    With xb = (x/sqrt(d), 1), f0(x) = <G(x), xb> and grad f0(x) = G(x)[:d]/sqrt(d), where the field
    G has E G(x) G(z)^T = Phi(x, z) I + (1 - slope)^2/(2 pi) sin(theta) (b b^T - c c^T), b and c the
    unit vectors along the sum and the difference of the unit augmented points. The covariance of
    f0(z) and grad f0(x) is grad_x Sigma(x, z). Theory: 0.1, 12.1.
    """
    check_kernel(kernel)
    z = as_points(z, "z")
    x = as_points(x, "x", like=z)
    m, n, d = len(z), len(x), z.shape[1]
    points = np.concatenate([z, x])
    augmented = np.hstack([points / np.sqrt(d), np.ones((m + n, 1))])
    unit = augmented / lengths(points)[:, None]
    theta = np.empty((m + n, m + n))
    for rows, columns, _, part in tiles(points, points):
        theta[rows, columns] = part
    field = np.zeros((m + n, d + 1, m + n, d + 1))
    for i in range(m + n):
        together, apart = unit[i] + unit, unit[i] - unit
        # sin(theta) b b^T = tan(theta/2)/2 times the outer product of the sum (|sum| = 2
        # cos(theta/2)), likewise for c.
        half = theta[i] / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            cotangent = np.where(half > 0, 1 / np.tan(half), 0)
        plane = np.tan(half)[:, None, None] / 2 * together[:, :, None] * together[:, None, :]
        plane -= cotangent[:, None, None] / 2 * apart[:, :, None] * apart[:, None, :]
        block = phi(kernel, theta[i])[:, None, None] * np.eye(d + 1) + cone_slope(kernel) * plane
        field[i] = np.moveaxis(block, 0, 1)
    # Rows of the linear map from the field to what is wanted: values at z, gradients at x.
    values = np.einsum("ia,iajb->ijb", augmented[:m], field[:m])
    value_value = np.einsum("ijb,jb->ij", values[:, :m], augmented[:m])
    value_gradient = values[:, m:, :d].reshape(m, n * d) / np.sqrt(d)
    gradient_gradient = field[m:, :d, m:, :d].reshape(n * d, n * d) / d
    return np.block([[value_value, value_gradient], [value_gradient.T, gradient_gradient]])


def sample_initial(
    kernel: TwoLayerNTK,
    z: Float[ArrayLike, "m d"],
    x: Float[ArrayLike, "n d"],
    *,
    draws: int = 1,
    method: str = "network",
    width: int = 4096,
    key: PRNGKeyArray,
) -> tuple[Float[np.ndarray, "draws m"], Float[np.ndarray, "draws n d"]]:
    """Joint draws of (f0(z), grad f0(x)): (draws, m) and (draws, n, d).

    "network": a fresh untrained network of `width` for every draw; its covariance is exact at any
    width and it is Gaussian to order 1/width. "gaussian": the limit itself, from
    `initial_covariance`; needs m + n d of a few thousand at most. Theory: 12.1.
    """
    check_kernel(kernel)
    check_choice(method, "method", ("network", "gaussian"))
    check_count(draws, "draws")
    check_count(width, "width")
    check_key(key)
    z = as_points(z, "z")
    x = as_points(x, "x", like=z)
    (m, d), n = z.shape, len(x)
    if method == "gaussian":
        if m + n * d > 6000:
            raise ValueError(
                f'method="gaussian" needs m + n d <= 6000 numbers; got {m + n * d}. Use method="network"'
            )
        values, vectors = np.linalg.eigh(initial_covariance(kernel, z, x))
        normal = double(lambda: jax.random.normal(key, (draws, m + n * d)))
        sample = (normal * np.sqrt(np.maximum(values, 0))) @ vectors.T
        return sample[:, :m], sample[:, m:].reshape(draws, n, d)
    outputs, gradients = np.empty((draws, m)), np.empty((draws, n, d))
    keys, at_once = jax.random.split(key, draws), max(1, 2**20 // (width * (d + 2)))
    for start in range(0, draws, at_once):
        part = keys[start : start + at_once]
        for i, normal in enumerate(
            double(jax.vmap(lambda k: jax.random.normal(k, (width, d + 2))), part), start
        ):
            network = normal[:, :d] / np.sqrt(d), normal[:, d], normal[:, d + 1] / np.sqrt(width)
            outputs[i], gradients[i] = output(kernel, *network, z), gradient(kernel, *network, x)
    return outputs, gradients


def _draw_targets(rule: str, n: int, key) -> np.ndarray:
    if rule == "coin_flip":
        return double(lambda: jax.random.rademacher(key, (n,), float))
    order, sign = jax.random.split(key)
    odd = double(lambda: jax.random.rademacher(sign, (), float)) if n % 2 else 1.0
    return odd * double(
        lambda: jax.random.permutation(order, jnp.where(jnp.arange(n) % 2 == 0, 1.0, -1.0))
    )


@dataclass(frozen=True)
class Agreement:
    """P(sgn f = sgn g) at each point over initialisations and targets, by averaging a closed form
    over joint draws.

    Attributes:
        probability: (m,), the mean over draws.
        standard_error: (m,), of that mean; NaN for one draw.
        mean, mean_standard_error: over the points (draws are dependent across points: the error is
            that of draw means).
        undefined: draws left out because a gradient was zero.
    """

    probability: Float[np.ndarray, " m"]
    standard_error: Float[np.ndarray, " m"]
    mean: float
    mean_standard_error: float
    undefined: int = 0


def expected_agreement(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
    *,
    size: float,
    carrier: Float[ArrayLike, "n d"] | None = None,
    time_f: float,
    time_g: float,
    targets: str | Float[ArrayLike, " n"] = "coin_flip",
    draws: int = 100,
    method: str = "network",
    width: int = 4096,
    key: PRNGKeyArray,
) -> Agreement:
    """The agreement of f and g at infinite width, minding that f's initial function is in the
    perturbations.

    Given f0 and the targets, P(agree at z) = N_c(sgn f(z; T_f) T_g g_hat_K(z) / sqrt(Sigma(z, z)))
    with f = f0 + T_f f_hat, u_n along grad f0(x_n) + T_f grad f_hat(x_n) from the same f0, g_hat_K
    = (1/n) sum target_n K(r_n, z), and a fresh g0; averaged over joint draws of f0 and targets.
    Multiplying the two sign probabilities would be wrong.

    Args:
        carrier: (n, d); None is scenario (a), zero; x is scenario (b).
        targets: "coin_flip", "balanced", or an array of labels.
        draws, method, width, key: as in `sample_initial`.

    Identity loss. Cost: draws times n m d. Theory: 12.1.
    """
    check_number(size, "size", open_low=True)
    check_time(time_f, "time_f")
    check_time(time_g, "time_g")
    x = as_points(x, "x")
    n = len(x)
    y, z = as_labels(y, "y", n), as_points(z, "z", like=x)
    carrier = np.zeros_like(x) if carrier is None else as_points(carrier, "carrier", like=x, rows=n)
    if isinstance(targets, str):
        check_choice(targets, "targets", TARGET_RULES)
    else:
        targets = as_labels(targets, "targets", n)
    check_key(key)
    mean, slopes = (
        kernel_sum(kernel, z, x, y / n),
        input_direction(kernel, x, y) + gate_motion(kernel, x, y, x),
    )
    deviation = np.sqrt(gate_mean_square(kernel)) * lengths(z)
    initial_key, target_key = jax.random.split(key)
    outputs, gradients = sample_initial(
        kernel, z, x, draws=draws, method=method, width=width, key=initial_key
    )
    agree = np.full((draws, len(z)), np.nan)
    for i, one in enumerate(jax.random.split(target_key, draws)):
        total = gradients[i] + time_f * slopes
        norm = np.linalg.norm(total, axis=1, keepdims=True)
        if not np.all(norm > 0):
            continue
        labels = _draw_targets(targets, n, one) if isinstance(targets, str) else targets
        r = carrier + size * labels[:, None] * total / norm
        g_hat = kernel_sum(kernel, z, r, labels / n)
        agree[i] = double(ndtr, np.sign(outputs[i] + time_f * mean) * time_g * g_hat / deviation)
    kept = agree[~np.isnan(agree[:, 0])]
    if not len(kept):
        nothing = np.full(len(z), np.nan)
        return Agreement(nothing, nothing, np.nan, np.nan, draws)
    error = (
        np.std(kept, axis=0, ddof=1) / np.sqrt(len(kept))
        if len(kept) > 1
        else np.full(len(z), np.nan)
    )
    means = kept.mean(axis=1)
    mean_error = float(np.std(means, ddof=1) / np.sqrt(len(kept))) if len(kept) > 1 else np.nan
    return Agreement(kept.mean(axis=0), error, float(means.mean()), mean_error, draws - len(kept))


def expected_cosine(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
    *,
    time: float,
) -> Float[np.ndarray, " m"]:
    """The cosine of grad f(z; T) with v(z), to leading order in 1/sqrt(d), (m,).

    T <v, grad f_hat> / (|v| sqrt(T^2 |grad f_hat|^2 + (1 + slope^2)/2)).

    Not a bound: off by up to .12 at d = 1, .02 at d = 50. NaN where v is zero.
    Theory: 12.2, 13.12.
    """
    check_time(time)
    zeta, x, z = gate_motion(kernel, x, y, z), as_points(x, "x"), as_points(z, "z")
    v = gate_matmul(kernel, z, x, as_labels(y, "y", len(x))[:, None] * x / len(x))
    limit, defined = v + zeta, ~is_rounding(kernel, x, v)
    size = np.linalg.norm(v, axis=1) * np.sqrt(
        time**2 * np.sum(limit**2, axis=1) + gate_mean_square(kernel)
    )
    return np.where(defined, time * np.sum(v * limit, axis=1) / np.where(defined, size, 1), np.nan)


@dataclass(frozen=True)
class TargetMoments:
    """g_hat_K(z) = (1/n) sum_n target_n K(r_n, z) over draws of the targets, given the directions
    u.

    Attributes:
        mean: (m,), the signal (1/n) sum (h_n^+ - h_n^-)/2.
        variance: (m,), that of the offset (1/n) sum target_n b_n.
        positive: (m,), about P(g_hat_K > 0) = N_c(mean / sqrt(variance)); one half where both are
            zero.
    """

    mean: Float[np.ndarray, " m"]
    variance: Float[np.ndarray, " m"]

    @property
    def positive(self) -> Float[np.ndarray, " m"]:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(self.mean == 0, 0, self.mean / np.sqrt(self.variance))
        return double(ndtr, ratio)


def target_moments(
    kernel: TwoLayerNTK,
    carrier: Float[ArrayLike, "n d"],
    u: Float[ArrayLike, "n d"],
    z: Float[ArrayLike, "m d"],
    *,
    size: float,
    rule: str = "coin_flip",
) -> TargetMoments:
    """Mean and variance of g_hat_K over the targets, exact.

    With h_n^+- = K(carrier_n +- size u_n, z), b_n = (h_n^+ + h_n^-)/2,

    mean = (1/n) sum (h_n^+ - h_n^-)/2;  variance = (1/n^2) sum b_n^2 for "coin_flip" targets, and
    sum (b_n - mean b)^2 / (n (n - 1)) for uniformly random "balanced" ones (odd n, sum +-1:
    [(n + 1)/n sum (b_n - mean b)^2 + (mean b)^2] / n^2).

    Identity loss, zero initial function. The normal approximation of the sign: off by up to .035.
    Theory: 12.3, 6.3.
    """
    check_kernel(kernel)
    check_choice(rule, "rule", TARGET_RULES)
    check_number(size, "size")
    carrier = as_points(carrier, "carrier")
    u, z = as_points(u, "u", like=carrier, rows=len(carrier)), as_points(z, "z", like=carrier)
    n = len(carrier)
    # Sums of b and b^2 about the first b, as in `labels.label_term`.
    sums, first = np.zeros((3, len(z))), np.zeros((len(z), 1))
    for above, below in zip(
        tiles(z, carrier + size * u), tiles(z, carrier - size * u), strict=True
    ):
        plus, minus = (
            phi(kernel, theta) * (product + kernel.train_bias)
            for _, _, product, theta in (above, below)
        )
        b, rows = (plus + minus) / 2, above[0]
        if above[1].start == 0:
            first[rows] = b[:, :1]
        rest = b - first[rows]
        sums[:, rows] += [term.sum(1) for term in ((plus - minus) / 2, rest, rest**2)]
    mean, rest, square = sums / n
    spread, b = n * np.maximum(square - rest**2, 0), rest + first[:, 0]
    if rule == "coin_flip":
        variance = spread / n**2 + b**2 / n
    elif n % 2:
        variance = ((n + 1) / n * spread + b**2) / n**2
    else:
        variance = spread / (n * (n - 1))
    return TargetMoments(mean, variance)
