"""What stays random in the infinite-width limit: the initial function and the target labels
(theory: section 12).

f(z; T) = f0(z) + T f_hat(z) with f0 a Gaussian process of covariance Sigma. N_c is the standard
normal distribution function.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, PRNGKeyArray

from perturbkernel.arrays import quotient
from perturbkernel.checks import check_choice, check_key, check_number
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import (
    as_labels,
    as_points,
    as_vector,
    check_kernel,
    check_time,
    double,
    gate_mean_square,
    lengths,
    ndtr,
)
from perturbkernel.theory.initial_draws import sample_initial
from perturbkernel.theory.leading import gate_motion, input_direction, is_rounding
from perturbkernel.theory.pairs import gate_matmul, kernel_sum
from perturbkernel.theory.targets import TARGET_RULES


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
    f_hat = kernel_sum(kernel, z, x, y / len(x))
    grid = as_vector(times, "times", np.size(times), low=0)
    standard = grid[:, None] * (f_hat / _initial_deviation(kernel, z))
    probability = ndtr(standard)
    return probability if np.ndim(times) else probability[0]


def _initial_deviation(kernel: TwoLayerNTK, z: np.ndarray) -> np.ndarray:
    """sqrt(Sigma(z, z)), (m,)."""
    return np.sqrt(gate_mean_square(kernel)) * lengths(z)


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
    positive = sign_probability(kernel, x, y, z, times=times)
    positive = np.atleast_2d(positive)
    labels = as_labels(labels, "labels", positive.shape[1])
    right = np.where(labels > 0, positive, 1 - positive)
    curve = right.mean(axis=1)
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


def _draw_targets(rule: str, n: int, key) -> np.ndarray:
    """Labels drawn by the rule, (n,); balanced ones of odd n have a sum of +-1."""
    if rule == "coin_flip":
        return double(lambda: jax.random.rademacher(key, (n,), float))
    order, sign_key = jax.random.split(key)

    def shuffled():
        is_even = jnp.arange(n) % 2 == 0
        alternating = jnp.where(is_even, 1.0, -1.0)
        return jax.random.permutation(order, alternating)

    labels = double(shuffled)
    if n % 2 == 0:
        return labels
    # Of odd n there is one +1 more: which sign has more is a coin flip, too.
    sign = double(lambda: jax.random.rademacher(sign_key, (), float))
    return sign * labels


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
    f_hat = kernel_sum(kernel, z, x, y / n)
    slopes = input_direction(kernel, x, y) + gate_motion(kernel, x, y, x)
    deviation = _initial_deviation(kernel, z)
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
        u = total / norm
        labels = targets
        if isinstance(labels, str):
            labels = _draw_targets(labels, n, one)
        r = carrier + size * labels[:, None] * u
        g_hat = kernel_sum(kernel, z, r, labels / n)
        sign = np.sign(outputs[i] + time_f * f_hat)
        standard = sign * time_g * g_hat / deviation
        agree[i] = ndtr(standard)
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
    error = nothing
    mean_error = np.nan
    if count > 1:
        root = np.sqrt(count)
        error = np.std(kept, axis=0, ddof=1) / root
        mean_error = float(np.std(means, ddof=1) / root)
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
    signed = y[:, None] * x / len(x)
    v = gate_matmul(kernel, z, x, signed)
    limit = v + zeta
    trained = time**2 * np.sum(limit**2, axis=1)
    square = trained + gate_mean_square(kernel)
    size = np.linalg.norm(v, axis=1) * np.sqrt(square)
    along = time * np.sum(v * limit, axis=1)
    defined = ~is_rounding(kernel, x, v)
    return quotient(along, size, defined, otherwise=np.nan)
