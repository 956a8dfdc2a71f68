"""Averages over a pool of neurons, with the closed forms of the lazy limit as control variates
(theory: 14.2).

X = alpha phi(u(alpha r; theta, z)) is the output of one neuron, so that f(z) is sqrt(width) times
the mean of width of them. Every function takes a pool and a block of queries.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from perturbkernel.theory.law.estimates import Average, averaged, best_share, controlled
from perturbkernel.theory.law.neurons import Neurons, Outputs


class Queries(NamedTuple):
    """Query points and what the lazy limit says there.

    Attributes:
        z: (m, d).
        f_hat: (m,), the mean of f per unit of time, at r = 0.
        variance: (m,), Sigma(z, z), that of f at r = 0.
    """

    z: np.ndarray
    f_hat: np.ndarray
    variance: np.ndarray

    def part(self, rows: slice) -> "Queries":
        return Queries(self.z[rows], self.f_hat[rows], self.variance[rows])


def psi(neurons: Neurons, queries: Queries) -> Average:
    """Psi_z(r) = E[X] / r, (m,). The initial function, of mean zero, is left out."""
    return _psi(neurons, queries, neurons.outputs(queries.z))


def _psi(neurons: Neurons, queries: Queries, outputs: Outputs) -> Average:
    r = neurons.scaled_time
    if r == 0:
        return Average(queries.f_hat, np.zeros(outputs.u.shape))
    weight = neurons.readout[:, :, None] / r
    remainder = weight * outputs.remainder
    control = weight * outputs.first_order
    return controlled(remainder.mean(axis=0), control.mean(axis=0), queries.f_hat)


def variance(neurons: Neurons, queries: Queries, start: str) -> tuple[Average, Average]:
    """The mean of f per unit of time, and its variance over initialisations.

    start: "random", f itself; "centred", f - f0; "doubled", of antisymmetric pairs of neurons.
    """
    outputs = neurons.outputs(queries.z)
    mean = _psi(neurons, queries, outputs)
    second = second_moment(neurons, queries, outputs, start)
    r = neurons.scaled_time
    # A pair has twice the mean of a neuron, and there are half as many of them.
    times = 2 if start == "doubled" else 1
    share = times * r**2
    square = mean.value**2 - mean.standard_error**2
    pull = 2 * mean.value * mean.influence
    value = second.value - share * square
    influence = second.influence - share * pull
    return mean, Average(value, influence)


def second_moment(neurons: Neurons, queries: Queries, outputs: Outputs, start: str) -> Average:
    """E X^2, or that of what a start makes of it: alpha (phi(u) - phi(u(0))) when centred, the sum
    of the two of a pair over sqrt(2) when doubled.
    """
    readout = neurons.readout[:, :, None]
    change = readout * outputs.change
    if start == "doubled":
        total = change.sum(axis=0)
        return averaged(total**2 / 2)
    if start == "centred":
        squares = change**2
        return averaged(squares.mean(axis=0))
    before = readout * outputs.before
    remainder = change * (2 * before + change)
    control = before**2
    return controlled(remainder.mean(axis=0), control.mean(axis=0), queries.variance)


def root(average: Average) -> Average:
    """The square root of an average, clipped at 0."""
    value = np.sqrt(np.maximum(average.value, 0))
    safe = np.where(value > 0, value, np.inf)
    return Average(value, average.influence / (2 * safe))


def ratio(numerator: Average, denominator: Average) -> Average:
    """The quotient of two averages."""
    value = numerator.value / denominator.value
    influence = numerator.influence - value * denominator.influence
    return Average(value, influence / denominator.value)


def covariance(
    neurons: Neurons, z: Float[np.ndarray, "m d"], lazy: np.ndarray, mean: np.ndarray, start: str
) -> tuple[np.ndarray, np.ndarray]:
    """Cov(f(z), f(z')), (m, m), and its standard error; `lazy` is Sigma, `mean` is E X, (m,).

    All moments of products over neurons are products of matrices, so that nothing of size (k, m, m)
    is held.
    """
    terms = neurons.terms(z, centred=start != "random")
    if start == "doubled":
        root_two = np.sqrt(2)
        terms = terms.sum(axis=0, keepdims=True) / root_two
        mean = mean * root_two
    _, k, m = terms.shape
    second = _gram(terms.reshape(-1, m))
    # The squares of products, over all pairs of signs.
    of_signs = [a * b for a in terms for b in terms]
    spread = _gram(np.concatenate(of_signs)) - second**2
    if start == "random":
        # The control has the covariance before training, which is known.
        outputs = neurons.outputs(z)
        before = neurons.readout[0][:, None] * outputs.before
        control = _gram(before)
        square = _gram(before**2) - control**2
        mixed = terms * before
        product = _gram(mixed.reshape(-1, m)) - second * control
        share = best_share(product, square)
        second = second + share * (control - lazy)
        spread = spread + share * product
    variance = np.maximum(spread, 0) / max(k - 1, 1)
    return second - np.outer(mean, mean), np.sqrt(variance)


def _gram(rows: np.ndarray) -> np.ndarray:
    """The mean over rows of their outer products."""
    return rows.T @ rows / len(rows)
