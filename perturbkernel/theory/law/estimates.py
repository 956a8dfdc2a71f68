"""Monte Carlo estimates with their own errors, and control variates."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Estimate(NamedTuple):
    """A number for each query, with the standard error that the simulation leaves.

    Example:
        >>> Estimate(np.asarray([0.2]), np.asarray([0.01]), 0.2, 0.01).mean_standard_error
        0.01

    Attributes:
        value: (m,).
        standard_error: (m,).
        mean: of the values over the queries.
        mean_standard_error: of that mean, errors of all queries together.
    """

    value: Float[np.ndarray, " m"]
    standard_error: Float[np.ndarray, " m"]
    mean: float
    mean_standard_error: float


class Average(NamedTuple):
    """An average over neurons, and how far each neuron pulls it.

    Attributes:
        value: (m,).
        influence: (k, m), of mean zero; the error is that of the mean of k independent rows.
            Functions of averages have influences as well, by the chain rule.
    """

    value: np.ndarray
    influence: np.ndarray

    @property
    def standard_error(self) -> np.ndarray:
        return standard_error(self.influence)


def standard_error(influence: np.ndarray) -> np.ndarray:
    """That of the mean of independent rows of mean zero."""
    k = len(influence)
    if k < 2:
        return np.full(influence.shape[1:], np.nan)
    square = np.sum(influence**2, axis=0)
    return np.asarray(np.sqrt(square / (k * (k - 1))))


def averaged(samples: np.ndarray) -> Average:
    """The mean of independent rows (k, m)."""
    value = samples.mean(axis=0)
    return Average(value, samples - value)


def controlled(remainder: np.ndarray, control: np.ndarray, expectation: np.ndarray) -> Average:
    """The mean of remainder + control, rows (k, m), where the expectation of the control is known.

    expectation + mean(remainder) + s mean(control - expectation), with the s of least error,
    -cov(remainder, control) / var(control): the error is that of the remainder at most (s = 0), and
    of the plain mean (s = 1). That s is estimated biases the value by the square of its error.
    """
    mean = remainder.mean(axis=0)
    mean_control = control.mean(axis=0)
    apart = remainder - mean
    away = control - mean_control
    square = np.sum(away**2, axis=0)
    product = np.sum(away * apart, axis=0)
    share = best_share(product, square)
    offset = mean_control - expectation
    value = expectation + mean + share * offset
    return Average(value, apart + share * away)


def best_share(product: np.ndarray, square: np.ndarray) -> np.ndarray:
    """-product / square, from covariance with and variance of a control; 0 where it is constant."""
    varies = square > 0
    return np.divide(-product, square, out=np.zeros_like(square), where=varies)
