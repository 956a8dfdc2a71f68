"""Bugs and features: what of a network, and of its perturbations, every network shares, and what is
its own (theory: 17.3).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from perturbkernel.arrays import quotient
from perturbkernel.checks import is_traced
from perturbkernel.display import Displayed
from perturbkernel.engine.memory import available_memory, fits
from perturbkernel.engine.tiles import EXACT
from perturbkernel.kernels.angles import products_and_angles
from perturbkernel.kernels.rows import lengths
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.training.precision import scope
from perturbkernel.training.predictors import KernelPredictor
from perturbkernel.training.smoother import (
    Computed,
    Training,
    apply_training,
    in_float64,
    training_of,
)
from perturbkernel.words import about, joined

# Points whose angle is smaller are taken to coincide: there the gates do not move.
_COINCIDE = 1e-7


class Split(Displayed, eqx.Module):
    """A trained network as the sum of two: f = mean + own.

    Attributes:
        mean: the mean of all trained networks, f trained from f0 = 0: the features. Perturbations
            along its gradient are `pk.perturb(s.mean, z, targets, size=...)`.
        own: what training makes of f0, this network's own: the bugs. Zero without `initial`.
        shared_gradient, own_gradient: shaped like z, the gradients of both, which add up to that of
            f.
        expected_own: (m,), E|own_gradient|^2 over initial functions, in closed form; None for
            kernels other than TwoLayerNTK.
        status: "ok", or in words what was met: by the training of f, by that of its start, which
            both parts say too, and by the solver of `expected_own`.
    """

    mean: KernelPredictor
    own: KernelPredictor
    shared_gradient: Float[Array, "m ..."]
    own_gradient: Float[Array, "m ..."]
    expected_own: Float[Array, " m"] | None
    status: str = eqx.field(static=True, default="ok")

    def _numbers(self) -> dict[str, Any]:
        return {
            "points": len(self.shared_gradient),
            "shared |gradient|": np.sqrt(_squares(self.shared_gradient)),
            "own |gradient|": np.sqrt(_squares(self.own_gradient)),
            "shared fraction": self.shared_fraction,
            "status": self.status,
        }

    @property
    def shared_fraction(self) -> Float[Array, " m"]:
        """(m,): |shared|^2 / (|shared|^2 + |own|^2), the features' share of the gradient.

        |own|^2 is the expected one where it is known, so that no draw of f0 is needed; otherwise
        that of this network.
        """
        shared = _squares(self.shared_gradient)
        own = self.expected_own
        if own is None:
            own = _squares(self.own_gradient)
        total = shared + own
        return quotient(shared, total, total > 0)


def split(
    f: KernelPredictor,
    z: Float[ArrayLike, "m ..."],
    weights: Float[ArrayLike, "m k"] | None = None,
) -> Split:
    """Writes f and its gradient at z as a sum of two parts: what all trained networks share, and
    what this network's own start adds.

    Networks differ by f0, a Gaussian process. Training is linear in f0 and the targets under the
    identity and the squared loss,

        f = K(., X) q(K) y  +  (f0 - K(., X) q(K) f0(X))        (squared)
        f = T f_hat  +  f0                                      (identity)

    The first part is the mean over f0, the same for all; the second has mean 0, and is independent
    between networks. A perturbation along the first is a feature: it moves every network, and
    teaches others; one along the second is a bug of this one. The names are those of Ilyas et al.
    (NeurIPS 2019).

    Example:
        >>> import perturbkernel as pk
        >>> f0 = lambda z: z[:, 0]
        >>> f = pk.fit(pk.TwoLayerNTK(slope=1.0), [[1.0, 0.0], [0.0, 2.0]], [1, -1], initial=f0)
        >>> s = split(f, [[1.0, 1.0]])
        >>> s.shared_gradient.tolist(), s.own_gradient.tolist(), s.expected_own.tolist()
        ([[0.5, -1.0]], [[1.0, 0.0]], [1.0])

    Args:
        f: trained under the identity or the squared loss, with any dynamics; without `initial` its
            own part is zero, and the expected one that of random initial functions.
        z: (m, ...).
        weights: (m, K) for K outputs: gradients are those of <weights_j, f(z_j)>, as in
            `f.input_gradient`.

    Raises:
        ValueError: another loss, under which f is not the sum of two networks.

    Cost, squared loss: O(n^3), and O(n^2 m) of the expected length. Theory: 17.3.
    """
    if not isinstance(f, KernelPredictor):
        raise TypeError(f"f must be a KernelPredictor, as `fit` returns it; got {f!r}")
    training = training_of(f, "the split into shared and own parts")
    z = f.kernel.check_inputs(z, "z", like=f.inputs.shape[1:])
    if is_traced(z, f.inputs, f.dual_coef):
        raise TypeError("split cannot be traced; call it outside jit")
    mean, own = _parts(f, training)
    shared_gradient = mean.input_gradient(z, weights)
    own_gradient = own.input_gradient(z, weights)
    expected = None
    status = mean.status
    if isinstance(f.kernel, TwoLayerNTK):
        square = expected_own_square(f.kernel, f.inputs, z, training)
        status = joined(status, square.status)
        length = np.asarray(square.value)
        if weights is not None:
            length = length * np.sum(np.square(weights), axis=1)
        expected = jnp.asarray(length, shared_gradient.dtype)
    return Split(mean, own, shared_gradient, own_gradient, expected, status)


def _parts(f: KernelPredictor, training: Training) -> tuple[KernelPredictor, KernelPredictor]:
    """The mean network and this one's own."""
    dual = np.asarray(f.dual_coef, float)
    of_start = np.zeros_like(dual)
    status = f.status
    if f.initial is not None and not training.constant:
        start = np.asarray(f.initial(f.inputs), float).reshape(dual.shape)
        columns = start.reshape(len(start), -1)
        found = apply_training(f.kernel, f.inputs, columns, training)
        of_start = np.asarray(found.dual_coef, float).reshape(dual.shape)
        status = joined(status, about("what training makes of f0", found.status))
    parts = []
    for coef, initial in ((dual + of_start, None), (-of_start, f.initial)):
        with scope(f.dual_coef):
            rounded = jnp.asarray(coef, f.dual_coef.dtype)
        part = KernelPredictor(
            f.kernel,
            f.inputs,
            rounded,
            initial,
            status,
            mesh=f.mesh,
            loss=f.loss,
            dynamics=f.dynamics,
            ridge=f.ridge,
            sample_weight=f.sample_weight,
        )
        parts.append(part)
    return parts[0], parts[1]


def _squares(gradient: Array) -> Array:
    """(m,), |row|^2."""
    rows = gradient.reshape(len(gradient), -1)
    return jnp.sum(rows**2, axis=1)


class _Gradients(eqx.Module):
    """The gradients in z of k(z, x_n) = along_n x_n + back_n z, (m, n) each."""

    along: Array
    back: Array


def expected_own_square(
    kernel: TwoLayerNTK,
    x: Float[Array, "n d"],
    z: Float[Array, "m d"],
    training: Training,
) -> Computed:
    """E|grad own(z)|^2 over f0, (m,), float64, and what its solver met: the trace of the mixed
    second derivative of the covariance after training. (1 + slope^2)/2 for the identity loss.
    Theory: 17.3.

    Example:
        >>> from perturbkernel import GradientFlow
        >>> from perturbkernel.training.smoother import linear_loss
        >>> x = jnp.asarray([[1.0, 2.0]])
        >>> training = Training(linear_loss("identity", "it"), GradientFlow(1.0))
        >>> found = expected_own_square(TwoLayerNTK(0.0), x, x, training)
        >>> found.value.tolist(), found.status
        ([0.5], 'ok')
    """
    n = len(x)
    if not training.constant and not fits(n, np.float64, available_memory(), copies=4):
        raise ValueError(
            f"the expected length of {n:,} training points takes four {n} x {n} matrices, more "
            f"than memory has"
        )
    with jax.enable_x64(True):
        x = in_float64(x)
        z = in_float64(z)
        initial = (1 + kernel.slope**2) / 2
        if training.constant:
            return Computed(jnp.full(len(z), initial), "ok")
        found = apply_training(kernel, x, jnp.eye(n), training)
        q = in_float64(found.dual_coef)
        prior = kernel.nngp(x)
        bias = float(kernel.train_bias)
        crossed, trained = _forms(kernel.slope, bias, q, prior, z, x)
        # Summed here: in one program with its products, a sum takes twenty times as long on CPUs.
        crossed = crossed.sum(1)
        trained = trained.sum(1)
        # Rounding must not leave a negative square.
        square = jnp.maximum(initial - 2 * crossed + trained, 0)
        return Computed(square, about("the expected square of the own gradient", found.status))


@jax.jit
def _forms(slope: Any, bias: Any, q: Array, prior: Array, z: Array, x: Array):
    """The covariance of f0 with what training adds, and of that with itself: (m, n), their rows to
    be summed.
    """
    both = _product(_product(q, prior), q.T)
    ntk, nngp = _gradients(slope, bias, z, x)
    return _form(q, ntk, nngp, z, x), _form(both, ntk, ntk, z, x)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=EXACT)


def _gradients(slope: Any, bias: Any, z: Array, x: Array) -> tuple[_Gradients, _Gradients]:
    """Of the tangent kernel and of the covariance of f0."""
    product, theta = products_and_angles(z, x)
    d = x.shape[1]
    s_z = lengths(z)[:, None]
    s_x = lengths(x)[None, :]
    cone = (1 - slope) ** 2 / (2 * np.pi)
    gates = (1 + slope**2) / 2 - cone * theta
    sine = jnp.sin(theta)
    apart = sine > _COINCIDE
    factor = cone * (product + bias)
    turning = quotient(factor, sine, apart)
    cosine = jnp.cos(theta)
    ntk = _Gradients(
        along=gates + turning / (d * s_z * s_x),
        back=-turning * cosine / (d * s_z**2),
    )
    nngp = _Gradients(along=gates / d, back=cone * sine * s_x / (s_z * d))
    return ntk, nngp


def _form(matrix: Array, a: _Gradients, b: _Gradients, z: Array, x: Array) -> Array:
    """sum_n matrix_nl <a_n(z), b_l(z)>, (m, l)."""
    products = _product(z, x.T)
    squares = _squares(z)[:, None]
    inner = _product(x, x.T)
    back = _product(a.back, matrix)
    # <x_n, x_l>, then what has z on the side of b: <x_n, z> and <z, z>; then <z, x_l>.
    total = _product(a.along, matrix * inner) * b.along
    onto_z = _product(a.along * products, matrix) + squares * back
    total += onto_z * b.back
    return total + back * (b.along * products)
