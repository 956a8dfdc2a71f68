"""The initial function of an infinitely wide network, a Gaussian process, and what training makes
of it.

Before training f0 ~ GP(0, S), S = `kernel.nngp`; K outputs are K independent draws. Training is
linear in f0 for two of the losses, so that the outputs stay Gaussian over random initial functions
(theory: 1.1, 1.2, 12.1):

- identity: f(z) = f0(z) + T f_hat(z), with covariance S(z, z').
- squared: f(z) = f0(z) + A(z) (y - f0(X)), A(z) = K(z, X) q(K(X, X)) and q of the dynamics
  (`smoother`), with covariance S(z, z') - A(z) S(X, z') - S(z, X) A(z')^T + A(z) S(X, X) A(z')^T.

Source of the second: Lee et al., Wide Neural Networks of Any Depth Evolve as Linear Models (NeurIPS
2019), for flow.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from perturbkernel.checks import check_count, check_key, common_dtype
from perturbkernel.engine.memory import available_memory, fits
from perturbkernel.engine.tiles import EXACT
from perturbkernel.kernels import products
from perturbkernel.kernels.base import Kernel
from perturbkernel.training.precision import KeepsPrecision, is_wider, matvec, scope
from perturbkernel.training.smoother import Computed, Training, in_float64, smoother_weights

# What becomes of the initial function: it stays; it is subtracted (f - f0); it is zero, because
# neurons come in pairs (w, b, a) and (w, b, -a).
STARTS = ("random", "centred", "doubled")


class Gaussian(eqx.Module):
    """Joint distribution of outputs at m points over random initial functions.

    Example:
        >>> g = Gaussian(jnp.zeros(2), jnp.asarray([[4.0, 0.0], [0.0, 1.0]]))
        >>> g.std.tolist(), g.sample(3, key=jax.random.key(0)).shape
        ([2.0, 1.0], (3, 2))

    Attributes:
        mean: (m,), or (m, K) for K outputs.
        covariance: (m, m); of each of the K outputs, which are independent of one another.
    """

    mean: Float[Array, "m ..."]
    covariance: Float[Array, "m m"]

    @property
    def std(self) -> Float[Array, " m"]:
        """Standard deviation at each point, (m,)."""
        return jnp.sqrt(jnp.maximum(jnp.diagonal(self.covariance), 0))

    def sample(self, count: int, *, key: PRNGKeyArray) -> Float[Array, "count m ..."]:
        """Joint draws, (count, m) or (count, m, K)."""
        check_count(count, "count")
        check_key(key)
        with jax.enable_x64(True):
            values, vectors = _eigenbasis(self.covariance)
            deviations = jnp.sqrt(values)
            root = deviations[:, None] * vectors.T
            normal = jax.random.normal(key, (count, *self.mean.shape))
            drawn = jnp.tensordot(normal, root, ((1,), (0,)), precision=EXACT)
            if drawn.ndim == 3:
                drawn = jnp.moveaxis(drawn, -1, 1)
            mean = self.mean.astype(drawn.dtype)
            drawn = mean[None] + drawn
            return drawn.astype(self.mean.dtype)


class InitialFunction(KeepsPrecision):
    """A draw of the initial function, given by its values at some points: f0(z) = sum_n coef_n
    S(x_n, z).

    For `fit(initial=...)`. At its points it has the joint distribution of f0; anywhere else it is
    f0's expectation given the values there, which varies less than f0.

    Attributes:
        kernel: S is its `nngp`.
        points: x, (n, ...).
        coef: (n,), or (n, K) for K independent draws.
    """

    kernel: Kernel
    points: Float[Array, "n ..."]
    coef: Float[Array, "n ..."]

    def __call__(self, z: Float[ArrayLike, "m ..."]) -> Float[Array, "m ..."]:
        """Values (m,) or (m, K) at z. Reverse-mode differentiable."""
        with scope(self.coef):
            z = self.kernel.check_inputs(z, "z", like=self.points.shape[1:])
        if is_wider(self.coef):
            return matvec(self.kernel, "nngp", z, self.points, self.coef)
        dtype = common_dtype(z, self.points)
        z = z.astype(dtype)
        points = self.points.astype(dtype)
        coef = self.coef.astype(dtype)
        return products.matvec(self.kernel, "nngp", z, points, coef)


def sample_initial(
    kernel: Kernel,
    points: Float[ArrayLike, "n ..."],
    outputs: int | None = None,
    *,
    key: PRNGKeyArray,
) -> InitialFunction:
    """Draws the initial function jointly at `points`, such as training and query points in one
    array.

    Example:
        >>> import perturbkernel as pk
        >>> x, z = [[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0]]
        >>> f0 = pk.sample_initial(pk.TwoLayerNTK(), [*x, *z], key=jax.random.key(0))
        >>> f = pk.fit(pk.TwoLayerNTK(), x, [1, -1], initial=f0)
        >>> f0(z).shape, bool(jnp.allclose(f(z) - f0(z), pk.fit(pk.TwoLayerNTK(), x, [1, -1])(z)))
        ((1,), True)

    Args:
        kernel: of the network; its `nngp` is the covariance S.
        points: (n, ...), all points at which the draw is wanted. They may coincide.
        outputs: K, for a network of K outputs, or for K draws at once; left out: one, of shape
            (n,).

    Coefficients are V Lambda^(-1/2) e for S = V Lambda V^T and e standard normal. Eigenvalues below
    n eps lambda_max, eps of the dtype of the points, are left out: values are right to sqrt(n eps),
    about 1e-3 in float32, and points that coincide have one value. Cost O(n^3), in float64.
    """
    x = kernel.check_inputs(points, "points")
    check_key(key)
    if outputs is not None:
        check_count(outputs, "outputs")
    n = len(x)
    shape = (n,) if outputs is None else (n, outputs)
    with jax.enable_x64(True):
        covariance = kernel.nngp(in_float64(x))
        values, vectors = _eigenbasis(covariance)
        rounding = n * float(jnp.finfo(x.dtype).eps)
        keep = values > rounding * values[-1]
        kept = jnp.where(keep, values, 1)
        scale = jnp.where(keep, 1 / jnp.sqrt(kept), 0)
        drawn = jax.random.normal(key, shape)
        if drawn.ndim == 2:
            scale = scale[:, None]
        coef = jnp.matmul(vectors, scale * drawn, precision=EXACT)
        return InitialFunction(kernel, x, coef.astype(x.dtype))


def trained_covariance(
    kernel: Kernel,
    x: Float[Array, "n ..."],
    z: Float[Array, "m ..."],
    training: Training,
) -> Computed:
    """The covariance (m, m) of the outputs at z after training at x, in float64, and what its
    solver met.
    """
    n = len(x)
    constant = training.constant
    if not constant and not fits(n, np.float64, available_memory(), copies=4):
        raise ValueError(
            f"the covariance of {n:,} training points takes four {n} x {n} matrices, more than "
            f"memory has"
        )
    with jax.enable_x64(True):
        x = in_float64(x)
        z = in_float64(z)
        prior = kernel.nngp(z)
        if constant:
            return Computed(prior, "ok")
        weights, status = smoother_weights(kernel, x, z, training)  # A(z), (m, n)
        cross = kernel.nngp(x, z)
        covariance = _after_training(prior, kernel.nngp(x), cross, weights)
        return Computed(covariance, status)


@jax.jit
def _after_training(prior: Array, gram: Array, cross: Array, weights: Array) -> Array:
    half = jnp.matmul(gram, weights.T, precision=EXACT) / 2 - cross
    change = jnp.matmul(weights, half, precision=EXACT)
    return prior + change + change.T


def _eigenbasis(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues, ascending and >= 0 (rounding leaves tiny negative ones), and eigenvectors;
    float64.
    """
    values, vectors = jnp.linalg.eigh(in_float64(matrix))
    return jnp.maximum(values, 0), vectors
