"""Directions at the training points, in NumPy: cells have shapes of their own."""

import numpy as np


def normalised(v: np.ndarray) -> np.ndarray:
    """Rows of length one; zero where a row is zero or, after a training that diverged, not
    finite.
    """
    length = np.linalg.norm(v, axis=1, keepdims=True)
    good = np.isfinite(length) & (length > 0)
    rows = np.where(good, v, 0)
    divisor = np.where(good, length, 1)
    return rows / divisor


def direction(slope: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The paper's direction at the training points, normalised (theory: 2.1).

    sum_n y_n Phi(x_n, x) x_n
    """
    d = x.shape[1]
    products = 1 + x @ x.T / d
    s = np.sqrt(np.diagonal(products))
    rho = products / np.outer(s, s)
    theta = np.arccos(np.clip(rho, -1, 1))
    cone = (1 - slope) ** 2 / (2 * np.pi)
    phi = (1 + slope**2) / 2 - cone * theta
    signed = y[:, None] * x
    return normalised(phi @ signed)
