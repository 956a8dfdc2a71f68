"""Synthetic Gaussian data."""

import math

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from perturbkernel.arrays import as_jax, on_host
from perturbkernel.data.dataset import Dataset, positive, split_key


def gaussian(n: int | np.integer, d: int | np.integer, *, key: PRNGKeyArray) -> Dataset:
    """Pure noise: inputs ~ N(0, I_d), targets independent fair coin flips in {-1, +1}.

    Raises ValueError or TypeError unless `n` and `d` are positive integers and `key` is a key.

    Example:
        >>> gaussian(100, 5, key=jax.random.key(0)).inputs.shape
        (100, 5)
    """
    n = positive(n, "n")
    d = positive(d, "d")
    key_inputs, key_targets = split_key(key)
    inputs = jax.random.normal(key_inputs, (n, d))
    targets = jax.random.rademacher(key_targets, (n,), inputs.dtype)
    return Dataset(inputs, targets, "gaussian")


def shifted_gaussian(
    n: int | np.integer,
    d: int | np.integer,
    shift: float | int | np.number = 0.3,
    *,
    key: PRNGKeyArray,
) -> Dataset:
    """Two classes: input = N(0, I_d) + target * shift * (1, ..., 1), rows shuffled.

    Half the targets are +1, one more when n is odd; the class means lie 2 shift sqrt(d) apart.
    Raises as `gaussian`, and ValueError unless `shift` is finite.

    Example:
        >>> shifted_gaussian(101, 5, shift=1.0, key=jax.random.key(0))
        Dataset(shifted_gaussian: n=101, d=5, 51 x +1, 50 x -1)
    """
    n = positive(n, "n")
    d = positive(d, "d")
    key_inputs, key_targets = split_key(key)
    is_number = isinstance(shift, int | float | np.number)
    if not is_number or not math.isfinite(shift):
        raise ValueError(f"shift={shift!r}: wanted a finite number")
    noise = jax.random.normal(key_inputs, (n, d))
    positives = (n + 1) // 2
    place = np.arange(n)
    ordered = np.where(place < positives, 1, -1)
    targets = jax.random.permutation(key_targets, ordered.astype(noise.dtype))
    drawn, signs = on_host(noise, targets)
    offsets = float(shift) * signs
    inputs = as_jax(drawn + offsets[:, None])
    return Dataset(inputs, targets, "shifted_gaussian")
