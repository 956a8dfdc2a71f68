"""Joint draws of the function before training and of its gradients, and their covariance (theory:
section 12).

f0 is a Gaussian process of covariance Sigma, or a network that has not been trained.
"""

import jax
import numpy as np
from jaxtyping import ArrayLike, Float, PRNGKeyArray

from perturbkernel.arrays import quotient
from perturbkernel.checks import check_choice, check_count, check_key
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import as_points, check_kernel, cone_slope, double, lengths
from perturbkernel.theory.finite import gradient, output
from perturbkernel.theory.pairs import phi, tiles

#: Numbers of a joint Gaussian draw, above which its covariance is not diagonalised.
_GAUSSIAN = 6000
#: Normal numbers of the networks that are drawn at once.
_AT_ONCE = 2**20


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
    m, d = z.shape
    n = len(x)
    points = np.concatenate([z, x])
    count = m + n
    root_d = np.sqrt(d)
    ones = np.ones((count, 1))
    augmented = np.hstack([points / root_d, ones])
    field = _field_covariance(kernel, points, augmented)
    # Rows of the linear map from the field to what is wanted: values at z, gradients at x.
    of_z = augmented[:m]
    values = np.einsum("ia,iajb->ijb", of_z, field[:m])
    value_value = np.einsum("ijb,jb->ij", values[:, :m], of_z)
    value_gradient = values[:, m:, :d] / root_d
    gradient_gradient = field[m:, :d, m:, :d] / d
    numbers = n * d
    across = value_gradient.reshape(m, numbers)
    below = gradient_gradient.reshape(numbers, numbers)
    return np.block([[value_value, across], [across.T, below]])


def _field_covariance(kernel: TwoLayerNTK, points: np.ndarray, augmented: np.ndarray) -> np.ndarray:
    """E G(x) G(z)^T for all pairs of points, (k, d + 1, k, d + 1)."""
    count, size = augmented.shape
    unit = augmented / lengths(points)[:, None]
    theta = np.empty((count, count))
    for rows, columns, _, part in tiles(points, points):
        theta[rows, columns] = part
    identity = np.eye(size)
    field = np.zeros((count, size, count, size))
    for i in range(count):
        gates = phi(kernel, theta[i])
        plane = _plane(unit[i], unit, theta[i])
        block = gates[:, None, None] * identity + cone_slope(kernel) * plane
        field[i] = np.moveaxis(block, 0, 1)
    return field


def _plane(one: np.ndarray, unit: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """sin(theta) (b b^T - c c^T) of one unit point with each of `unit` (n, k), (n, k, k).

    sin(theta) b b^T is tan(theta/2)/2 times the outer product of the sum, whose length is
    2 cos(theta/2); likewise for c, with the difference and the cotangent.
    """
    together = one + unit
    apart = one - unit
    tangent = np.tan(theta / 2)
    cotangent = quotient(1, tangent, theta > 0)

    def outer(v: np.ndarray) -> np.ndarray:
        return v[:, :, None] * v[:, None, :]

    of_b = tangent[:, None, None] / 2 * outer(together)
    of_c = cotangent[:, None, None] / 2 * outer(apart)
    return of_b - of_c


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
        >>> draws = {"draws": 3, "method": "gaussian", "key": jax.random.key(0)}
        >>> z, x = [[2.0, 1.0]], [[1.0, 0.0]]
        >>> f0, gradients = sample_initial(TwoLayerNTK(), z, x, **draws)
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
    outputs = np.empty((draws, m))
    gradients = np.empty((draws, *x.shape))

    def draw(one):
        return jax.random.normal(one, (width, d + 2))

    keys = jax.random.split(key, draws)
    numbers = width * (d + 2)
    at_once = max(1, _AT_ONCE // numbers)
    for start in range(0, draws, at_once):
        part = keys[start : start + at_once]
        drawn = double(jax.vmap(draw), part)
        for i, normal in enumerate(drawn, start):
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
    covariance = initial_covariance(kernel, z, x)
    values, vectors = np.linalg.eigh(covariance)
    deviations = np.sqrt(np.maximum(values, 0))
    normal = double(lambda: jax.random.normal(key, (draws, count)))
    sample = (normal * deviations) @ vectors.T
    outputs = sample[:, :m]
    gradients = sample[:, m:].reshape(draws, n, d)
    return outputs, gradients
