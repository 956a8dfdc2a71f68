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
from perturbkernel.theory.targets import TARGET_RULES

#: Numbers of a joint Gaussian draw, above which its covariance is not diagonalised.
_GAUSSIAN = 6000
#: Normal numbers of the networks that are drawn at once.
_AT_ONCE = 2**20


def sign_probability(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
    *,
    times: Float[ArrayLike, "*k"] | float,
) -> Float[np.ndarray, "*k m"]:
    """The probability of a positive sign over initialisations, (k, m), or (m,) for one time.

        P(f(z; T) > 0) = N_c(T f_hat(z) / sqrt(Sigma(z, z))),  Sigma(z, z) = (1 + slope^2)/2 s_z^2

    Identity loss, infinite width. Theory: 12.1.

    Example:
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> sign_probability(TwoLayerNTK(), x, y, z, times=5.0).round(3)
        array([0.815])
    """
    check_kernel(kernel)
    x = as_points(x, "x")
    y = as_labels(y, "y", len(x))
    z = as_points(z, "z", like=x)
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
    """The mean over labelled points of P(sgn f(z; T) = label), (k,), at all times from one pass.

    Theory: 12.1.

    Example:
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> expected_accuracy(TwoLayerNTK(), x, y, z, [1], times=[0.0, 5.0]).round(3)
        array([0.5  , 0.815])
    """
    probability = np.atleast_2d(sign_probability(kernel, x, y, z, times=times))
    labels = as_labels(labels, "labels", probability.shape[1])
    curve = np.mean(np.where(labels > 0, probability, 1 - probability), axis=1)
    return curve if np.ndim(times) else curve.reshape(())


def reproducibility(probability: Float[ArrayLike, "*m"]) -> Float[np.ndarray, "*m"]:
    """The chance that two independent networks agree, each positive with chance p.

    It is p^2 + (1 - p)^2, and no ceiling for the agreement of f with g, whose training data depends
    on f0. Theory: 12.1.

    Example:
        >>> reproducibility([0.5, 0.9, 1.0]).round(3)
        array([0.5 , 0.82, 1.  ])
    """
    p = np.asarray(probability, np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError("probability must lie in [0, 1]")
    return np.asarray(p**2 + (1 - p) ** 2)


def initial_covariance(
    kernel: TwoLayerNTK, z: Float[ArrayLike, "m d"], x: Float[ArrayLike, "n d"]
) -> Float[np.ndarray, "m+n*d m+n*d"]:
    """The exact covariance of f0 at z and of its gradients at x, (m + n d, m + n d).

    Its rows are those of (f0(z_1), .., f0(z_m), grad f0(x_1), .., grad f0(x_n)), flattened.
    With xb = (x/sqrt(d), 1), f0(x) = <G(x), xb> and grad f0(x) = G(x)[:d]/sqrt(d), where the field
    G has E G(x) G(z)^T = Phi(x, z) I + (1 - slope)^2/(2 pi) sin(theta) (b b^T - c c^T), b and c the
    unit vectors along the sum and the difference of the unit augmented points. The covariance of
    f0(z) and grad f0(x) is grad_x Sigma(x, z). Theory: 0.1, 12.1.

    Example:
        >>> initial_covariance(TwoLayerNTK(), [[1.0, 1.0]], [[1.0, 1.0]]).diagonal().round(3)
        array([1.  , 0.25, 0.25])
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
        isotropic = phi(kernel, theta[i])[:, None, None] * np.eye(d + 1)
        block = isotropic + cone_slope(kernel) * _plane(unit[i], unit, theta[i])
        field[i] = np.moveaxis(block, 0, 1)
    # Rows of the linear map from the field to what is wanted: values at z, gradients at x.
    values = np.einsum("ia,iajb->ijb", augmented[:m], field[:m])
    value_value = np.einsum("ijb,jb->ij", values[:, :m], augmented[:m])
    value_gradient = values[:, m:, :d].reshape(m, n * d) / np.sqrt(d)
    gradient_gradient = field[m:, :d, m:, :d].reshape(n * d, n * d) / d
    return np.block([[value_value, value_gradient], [value_gradient.T, gradient_gradient]])


def _plane(one: np.ndarray, unit: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """sin(theta) (b b^T - c c^T) of one unit point with each of `unit` (n, k), (n, k, k).

    sin(theta) b b^T is tan(theta/2)/2 times the outer product of the sum, whose length is
    2 cos(theta/2); likewise for c, with the difference and the cotangent.
    """
    together = one + unit
    apart = one - unit
    tangent = np.tan(theta / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        cotangent = np.where(theta > 0, 1 / tangent, 0)
    plane = tangent[:, None, None] / 2 * together[:, :, None] * together[:, None, :]
    plane -= cotangent[:, None, None] / 2 * apart[:, :, None] * apart[:, None, :]
    return plane


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

    Example:
        >>> import jax, perturbkernel as pk
        >>> draws = {"draws": 3, "method": "gaussian", "key": jax.random.key(0)}
        >>> z, x = [[2.0, 1.0]], [[1.0, 0.0]]
        >>> f0, gradients = pk.theory.sample_initial(pk.TwoLayerNTK(), z, x, **draws)
        >>> f0.shape, gradients.shape
        ((3, 1), (3, 1, 2))
    """
    check_kernel(kernel)
    check_choice(method, "method", ("network", "gaussian"))
    check_count(draws, "draws")
    check_count(width, "width")
    check_key(key)
    z = as_points(z, "z")
    x = as_points(x, "x", like=z)
    if method == "gaussian":
        return _sample_gaussian(kernel, z, x, draws, key)
    m, d = z.shape
    n = len(x)
    outputs = np.empty((draws, m))
    gradients = np.empty((draws, n, d))

    def draw(one):
        return jax.random.normal(one, (width, d + 2))

    keys = jax.random.split(key, draws)
    at_once = max(1, _AT_ONCE // (width * (d + 2)))
    for start in range(0, draws, at_once):
        part = keys[start : start + at_once]
        for i, normal in enumerate(double(jax.vmap(draw), part), start):
            weights = normal[:, :d] / np.sqrt(d)
            biases = normal[:, d]
            readout = normal[:, d + 1] / np.sqrt(width)
            outputs[i] = output(kernel, weights, biases, readout, z)
            gradients[i] = gradient(kernel, weights, biases, readout, x)
    return outputs, gradients


def _sample_gaussian(
    kernel: TwoLayerNTK, z: np.ndarray, x: np.ndarray, draws: int, key: PRNGKeyArray
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the limit, by the eigenvectors of its covariance."""
    m = len(z)
    n, d = x.shape
    count = m + n * d
    if count > _GAUSSIAN:
        raise ValueError(
            f'method="gaussian" needs m + n d <= {_GAUSSIAN} numbers; got {count}. '
            'Use method="network"'
        )
    values, vectors = np.linalg.eigh(initial_covariance(kernel, z, x))
    normal = double(lambda: jax.random.normal(key, (draws, count)))
    scaled = normal * np.sqrt(np.maximum(values, 0))
    sample = scaled @ vectors.T
    return sample[:, :m], sample[:, m:].reshape(draws, n, d)


def _draw_targets(rule: str, n: int, key) -> np.ndarray:
    """Labels drawn by the rule, (n,); balanced ones of odd n have a sum of +-1."""
    if rule == "coin_flip":
        return double(lambda: jax.random.rademacher(key, (n,), float))
    order, sign = jax.random.split(key)
    odd = double(lambda: jax.random.rademacher(sign, (), float)) if n % 2 else 1.0

    def shuffled():
        alternating = jnp.where(jnp.arange(n) % 2 == 0, 1.0, -1.0)
        return jax.random.permutation(order, alternating)

    return odd * double(shuffled)


@dataclass(frozen=True)
class Agreement:
    """P(sgn f = sgn g) at each point over initialisations and targets.

    A closed form, averaged over joint draws.

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
    """The agreement of f and g at infinite width, f's initial function in the perturbations.

    Given f0 and the targets, P(agree at z) = N_c(sgn f(z; T_f) T_g g_hat_K(z) / sqrt(Sigma(z, z)))
    with f = f0 + T_f f_hat, u_n along grad f0(x_n) + T_f grad f_hat(x_n) from the same f0, g_hat_K
    = (1/n) sum target_n K(r_n, z), and a fresh g0; averaged over joint draws of f0 and targets.
    Multiplying the two sign probabilities would be wrong.

    Example:
        >>> import jax, perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> options = {"time_f": 100.0, "time_g": 100.0, "draws": 20, "key": jax.random.key(0)}
        >>> a = pk.theory.expected_agreement(pk.TwoLayerNTK(), x, y, z, size=1.0, **options)
        >>> round(a.mean, 2), bool(a.mean_standard_error < 0.1)
        (1.0, True)

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
    y = as_labels(y, "y", n)
    z = as_points(z, "z", like=x)
    if carrier is None:
        carrier = np.zeros_like(x)
    carrier = as_points(carrier, "carrier", like=x, rows=n)
    if isinstance(targets, str):
        check_choice(targets, "targets", TARGET_RULES)
    else:
        targets = as_labels(targets, "targets", n)
    check_key(key)
    mean = kernel_sum(kernel, z, x, y / n)
    slopes = input_direction(kernel, x, y) + gate_motion(kernel, x, y, x)
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
        sign = np.sign(outputs[i] + time_f * mean)
        agree[i] = double(ndtr, sign * time_g * g_hat / deviation)
    return _average(agree)


def _average(agree: np.ndarray) -> Agreement:
    """Means over draws (draws, m) with their errors; rows of NaN are draws without a direction."""
    defined = ~np.isnan(agree[:, 0])
    kept = agree[defined]
    count = len(kept)
    undefined = len(agree) - count
    nothing = np.full(agree.shape[1], np.nan)
    if not count:
        return Agreement(nothing, nothing, np.nan, np.nan, undefined)
    means = kept.mean(axis=1)
    error, mean_error = nothing, np.nan
    if count > 1:
        error = np.std(kept, axis=0, ddof=1) / np.sqrt(count)
        mean_error = float(np.std(means, ddof=1) / np.sqrt(count))
    return Agreement(
        probability=kept.mean(axis=0),
        standard_error=error,
        mean=float(means.mean()),
        mean_standard_error=mean_error,
        undefined=undefined,
    )


def expected_cosine(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
    *,
    time: float,
) -> Float[np.ndarray, " m"]:
    """The cosine of grad f(z; T) with v(z), to leading order in 1/sqrt(d), (m,).

        T <v, grad f_hat> / (|v| sqrt(T^2 |grad f_hat|^2 + (1 + slope^2)/2))

    Not a bound: off by up to .12 at d = 1, .02 at d = 50. NaN where v is zero.
    Theory: 12.2, 13.12.

    Example:
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> expected_cosine(TwoLayerNTK(), x, y, z, time=10.0).round(3)
        array([0.971])
    """
    check_time(time)
    zeta = gate_motion(kernel, x, y, z)
    x = as_points(x, "x")
    y = as_labels(y, "y", len(x))
    z = as_points(z, "z")
    v = gate_matmul(kernel, z, x, y[:, None] * x / len(x))
    limit = v + zeta
    square = time**2 * np.sum(limit**2, axis=1) + gate_mean_square(kernel)
    size = np.linalg.norm(v, axis=1) * np.sqrt(square)
    along = time * np.sum(v * limit, axis=1)
    defined = ~is_rounding(kernel, x, v)
    return np.where(defined, along / np.where(defined, size, 1), np.nan)
