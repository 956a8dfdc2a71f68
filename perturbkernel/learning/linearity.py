"""Whether the second network can only be linear, while the first is not (theory: section 15).

In scenario (a) a second network provably has the signs of one linear classifier wherever 15.1 says
so. It fails to learn what f knows where no linear classifier has f's signs.
"""

from typing import Any, cast

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perturbkernel.arrays import as_jax, on_host
from perturbkernel.checks import is_traced
from perturbkernel.kernels.base import Kernel
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.linear import linear_sums
from perturbkernel.training.predictors import KernelPredictor

#: At most this many points are looked at: shares are known to a percent or so.
_POINTS = 2000
#: Ridges of the probe, in units of the mean eigenvalue of its Gram matrix: from nearly
#: interpolation to nearly the class means.
_RIDGES = np.geomspace(1e-4, 1e2, 7)
#: "Linear here": g has the classifier's signs at nearly all points, and provably at most of them.
#: "Can only be linear here": provably at nearly all, which takes no look at g.
_EVERYWHERE = 0.95
_MOST = 0.5
#: "f is not": by how much less of f's signs than of a linear classifier's the probe must find, at
#: least, and in standard errors of such a share.
_GAP = 0.1
_ERRORS = 4


class Linearity(eqx.Module):
    """How linear the second network must be at the points of a diagnosis, and how linear f is.

    Example:
        >>> Linearity(
        ...     linear_g=1.0, certified=1.0, linear_right=0.5, f_right=1.0, linear_f=0.5,
        ...     linear_linear=0.99, points=200
        ... ).can_only_be_linear
        True

    Attributes:
        linear_g: the share of the points at which g has the signs of one linear classifier.
        certified: the share at which it provably has, by 15.1: with fixed biases and the identity
            loss whatever the targets are.
        linear_right: the share of the true labels that this classifier has.
        f_right: the share that f has.
        linear_f: the share of f's signs that a linear classifier fitted to them has on points that
            it was not fitted to, the best of several ridges.
        linear_linear: the same for signs that are linear, those of the classifier above: what can
            be found from so many points.
        points: how many were looked at.
    """

    linear_g: Float[Array, ""]
    certified: Float[Array, ""]
    linear_right: Float[Array, ""]
    f_right: Float[Array, ""]
    linear_f: Float[Array, ""]
    linear_linear: Float[Array, ""]
    points: int = eqx.field(static=True)

    @property
    def is_linear(self) -> bool:
        """Whether g is linear here: at 95 % of the points, provably at half of them."""
        return float(self.linear_g) >= _EVERYWHERE and float(self.certified) >= _MOST

    @property
    def can_only_be_linear(self) -> bool:
        """Whether it provably is at 95 % of the points."""
        return self.is_linear and float(self.certified) >= _EVERYWHERE

    @property
    def f_is_linear(self) -> bool:
        """Whether a linear classifier has f's signs about as often as linear signs are found."""
        found = float(self.linear_f)
        possible = float(self.linear_linear)
        error = np.sqrt(0.25 / self.points)
        return possible - found <= max(_GAP, _ERRORS * error)

    @property
    def says(self) -> str:
        """The finding in words."""
        share = f"at {self.linear_g:.0%} of the points g has the signs of one linear classifier "
        share += f"(provably at {self.certified:.0%}), which is right at {self.linear_right:.0%}, "
        share += f"f at {self.f_right:.0%}"
        probe = f"a linear classifier fitted to f's signs has {self.linear_f:.0%} of them at other "
        probe += f"points, of linear signs {self.linear_linear:.0%}"
        if not self.is_linear:
            return f"g need not be linear here: {share}"
        linear = "can only be" if self.can_only_be_linear else "is"
        other = "nearly is" if self.f_is_linear else "is not"
        return f"g {linear} linear here, and f {other}: {share}; {probe}"


def _explained(kernel: Kernel, perturbed: Array, targets: Array, g: Any) -> KernelPredictor | None:
    """g if it is a trained predictor, else that of the identity loss; None where 15.1 is silent."""
    if not isinstance(g, KernelPredictor):
        coef = targets / len(targets)
        g = KernelPredictor(kernel, perturbed, coef)
    if not isinstance(g.kernel, TwoLayerNTK):
        return None
    if g.initial is not None or g.num_outputs is not None:
        return None
    if is_traced(g.inputs, g.dual_coef):
        return None
    return g


def _rows(points: Array) -> np.ndarray:
    """Inputs of any shape as (n, d) in float64."""
    return np.asarray(points, float).reshape(len(points), -1)


def _signs(outputs: Array) -> np.ndarray:
    return np.sign(np.asarray(outputs, float).reshape(-1))


def assess(
    kernel: Kernel,
    perturbed: Float[Array, "n ..."],
    targets: Float[Array, " n"],
    z: Float[Array, "m ..."],
    labels: Float[Array, " m"],
    *,
    f: Any,
    g: Any = None,
) -> Linearity | None:
    """How linear g must be at z, and how linear f is there.

    None where theory 15.1 is silent: another kernel than TwoLayerNTK, an initial function, several
    outputs, tracers. g of another loss than the identity is asked for its own coefficients if it is
    a KernelPredictor. At most 2000 points, evenly spread, are looked at.
    """
    second = _explained(kernel, perturbed, targets, g)
    if second is None or is_traced(z, labels):
        return None
    count = min(len(z), _POINTS)
    places = np.linspace(0, len(z) - 1, count).astype(int)
    chosen = np.unique(places)
    z = as_jax(on_host(z)[chosen])
    outputs = f(z)
    if is_traced(outputs):
        return None
    true = np.asarray(labels, float)[chosen]
    kernel = cast(TwoLayerNTK, second.kernel)
    rows = _rows(z)
    coef = np.asarray(second.dual_coef, float)
    found = linear_sums(kernel, _rows(second.inputs), coef, rows)
    signs_linear = np.sign(found.output)
    signs_f = _signs(outputs)
    signs_g = _signs(second(z))
    bias = bool(kernel.train_bias)

    def share(agrees: Any) -> Array:
        return jnp.asarray(np.mean(agrees))

    return Linearity(
        linear_g=share(signs_g == signs_linear),
        certified=share(found.certified),
        linear_right=share(signs_linear == true),
        f_right=share(signs_f == true),
        linear_f=jnp.asarray(_probe(rows, signs_f, bias)),
        linear_linear=jnp.asarray(_probe(rows, signs_linear, bias)),
        points=len(z),
    )


def _probe(z: np.ndarray, signs: np.ndarray, bias: bool) -> float:
    """The share of signs that a ridge regression on half of the points has at the other half.

    Through the origin unless `bias`. Mean over both halves, the best of several ridges, so that
    what is not found is hardly there.
    """
    m = len(z)
    if m < 2:
        return 1.0
    column = np.full((m, 1), float(bias))
    features = np.hstack([z, column])
    gram = features @ features.T
    # Interleaved or sorted classes are in both halves.
    order = np.random.default_rng(0).permutation(m)
    one = order[::2]
    two = order[1::2]
    shares = np.zeros(len(_RIDGES))
    for fitted, other in ((one, two), (two, one)):
        values, vectors = np.linalg.eigh(gram[np.ix_(fitted, fitted)])
        values = np.maximum(values, 0)
        scale = values.mean() or 1.0
        targets = vectors.T @ signs[fitted]
        across = gram[np.ix_(other, fitted)] @ vectors
        for k, ridge in enumerate(_RIDGES):
            coef = targets / (values + ridge * scale)
            found = np.sign(across @ coef)
            shares[k] += np.mean(found == signs[other]) / 2
    return float(shares.max())
