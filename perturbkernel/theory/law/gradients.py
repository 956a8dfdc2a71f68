"""Input gradients of trained networks, from a pool of neurons (theory: 14.3).

A neuron adds alpha phi'(u) w / sqrt(width) to the gradient of f. Its weights are the initial ones
plus what training added, so that for every neuron the gradient at any query is a combination of
few vectors: lengths and products take numbers (k, m) and no array (k, m, d).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from perturbkernel.theory.law.estimates import Average, averaged, best_share, controlled
from perturbkernel.theory.law.neurons import Neurons


class GradientMoments(NamedTuple):
    """Moments of grad f_T(z) over initialisations.

    Attributes:
        mean: (m, d), E grad f_T(z) = T grad Psi_z(r).
        standard_error: (m,), the root of the expected squared length of the error of `mean`.
        square: (m,), E |grad f_T(z)|^2.
        square_standard_error: (m,).
    """

    mean: Float[np.ndarray, "m d"]
    standard_error: Float[np.ndarray, " m"]
    square: Float[np.ndarray, " m"]
    square_standard_error: Float[np.ndarray, " m"]


class Vectors(NamedTuple):
    """One vector for each neuron and query, as coefficients of a few vectors of the neuron.

    Attributes:
        coef: (j, k, m).
        basis: (j, k, d).
    """

    coef: np.ndarray
    basis: np.ndarray

    def mean(self) -> np.ndarray:
        """Over neurons, (m, d)."""
        k = self.basis.shape[1]
        return np.einsum("jkm,jkd->md", self.coef, self.basis, optimize=True) / k

    def along(self, v: np.ndarray) -> np.ndarray:
        """The product with v (m, d), (k, m)."""
        return np.sum(self.coef * (self.basis @ v.T), axis=0)

    def products(self, other: "Vectors") -> np.ndarray:
        """The products with others of the same neurons, (k, m)."""
        gram = np.einsum("ikd,jkd->ijk", self.basis, other.basis)
        return np.einsum("ikm,ijk,jkm->km", self.coef, gram, other.coef, optimize=True)


def vectors(neurons: Neurons, z: np.ndarray) -> tuple[Vectors, Vectors]:
    """A neuron's share of grad Psi, split in (remainder, control), averages over its signs.

    The control alpha^2 phi'(u(0)) G_w(theta) has the paper's direction v as its mean. The gradient
    at the start, of mean zero, is left out.
    """
    outputs = neurons.outputs(z)
    before = outputs.gates(outputs.u)
    after = outputs.gates(outputs.u + outputs.change_of_u)
    signs = len(neurons.readout)
    share = neurons.readout[:, :, None] / (neurons.scaled_time * signs)
    opened = after - before
    of_start = (share * opened).sum(axis=0)
    squares = np.mean(neurons.readout**2, axis=0)
    of_drift = squares[:, None] * before
    weights = neurons.start[:, :-1]
    drift = neurons.drift[:, :-1]
    of_moved = share * after
    moved = neurons.moved[:, :, :-1]
    coef = np.stack([of_start, -of_drift, *of_moved])
    basis = np.stack([weights, drift, *moved])
    remainder = Vectors(coef, basis)
    control = Vectors(of_drift[None], drift[None])
    return remainder, control


class MeanGradient(NamedTuple):
    """grad Psi at queries, and what it was averaged from.

    Attributes:
        value: (m, d).
        square_error: (m,), the expected squared length of its error.
        v: (m, d), the mean of the control.
        remainder, control: of every neuron.
        share: (m,), of the control's own error that is left in.
    """

    value: np.ndarray
    square_error: np.ndarray
    v: np.ndarray
    remainder: Vectors
    control: Vectors
    share: np.ndarray

    def along(self, direction: np.ndarray) -> Average:
        """The product with a direction (m, d), (m,)."""
        expected = np.sum(self.v * direction, axis=1)
        away = self.control.along(direction) - expected
        own = self.remainder.along(direction)
        samples = expected + own + self.share * away
        return averaged(samples)


def mean_gradient(neurons: Neurons, z: np.ndarray, v: np.ndarray) -> MeanGradient:
    """grad_z Psi_z(r), (m, d), with v (m, d), the paper's direction, for a control variate."""
    remainder, control = vectors(neurons, z)
    mean = remainder.mean()
    mean_control = control.mean()

    def spread(one, other, mean_one, mean_other):
        products = one.products(other)
        of_means = np.sum(mean_one * mean_other, axis=1)
        return products.mean(axis=0) - of_means

    of_control = spread(control, control, mean_control, mean_control)
    product = spread(remainder, control, mean, mean_control)
    share = best_share(product, of_control)
    away = mean_control - v
    left = spread(remainder, remainder, mean, mean) + share * product
    others = max(len(neurons.start) - 1, 1)
    return MeanGradient(
        value=v + mean + share[:, None] * away,
        square_error=np.maximum(left, 0) / others,
        v=v,
        remainder=remainder,
        control=control,
        share=share,
    )


def square(neurons: Neurons, z: np.ndarray, lazy: float, mean: MeanGradient, width: int) -> Average:
    """E |grad f|^2, (m,), for the mean gradient of Psi; `lazy` is its value before training.

    E |alpha phi'(u) w|^2 + (width - 1) |r grad Psi|^2: neurons are independent.
    """
    outputs = neurons.outputs(z)
    alpha = neurons.readout[:, :, None]
    after = alpha * outputs.gates(outputs.u + outputs.change_of_u)
    before = alpha * outputs.gates(outputs.u)
    trained = neurons.trained[:, :, :-1]
    start = neurons.start[:, :-1]
    lengths = np.sum(trained**2, axis=-1)
    initial_lengths = np.sum(start**2, axis=-1)
    # The neuron's own part, with its value before training for a control.
    squares = after**2 * lengths[:, :, None]
    squares = squares.mean(axis=0)
    control = before**2 * initial_lengths[:, None]
    control = control.mean(axis=0)
    expected = np.full(len(z), lazy)
    own = controlled(squares - control, control, expected)
    # That of all others.
    scale = (width - 1) * neurons.scaled_time**2
    square_of_mean = np.sum(mean.value**2, axis=1) - mean.square_error
    value = own.value + scale * np.maximum(square_of_mean, 0)
    along = mean.along(mean.value)
    influence = own.influence + 2 * scale * along.influence
    return Average(value, influence)
