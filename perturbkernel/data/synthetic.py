"""Synthetic Gaussian data."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from perturbkernel.data.dataset import Dataset, positive, split_key


def gaussian(n: int | np.integer, d: int | np.integer, *, key: PRNGKeyArray) -> Dataset:
    """Pure noise: inputs ~ N(0, I_d), targets independent fair coin flips in {-1, +1}.

    Raises ValueError or TypeError unless `n` and `d` are positive integers and `key` is a key.
    """
    shape = positive(n, "n"), positive(d, "d")
    key_inputs, key_targets = split_key(key)
    inputs = jax.random.normal(key_inputs, shape)
    targets = jax.random.rademacher(key_targets, shape[:1], inputs.dtype)
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
    """
    shape = positive(n, "n"), positive(d, "d")
    key_inputs, key_targets = split_key(key)
    if not isinstance(shift, int | float | np.number) or not math.isfinite(shift):
        raise ValueError(f"shift={shift!r}: wanted a finite number")
    noise = jax.random.normal(key_inputs, shape)
    positives = (shape[0] + 1) // 2
    targets = jnp.where(jnp.arange(shape[0]) < positives, 1, -1)
    targets = targets.astype(noise.dtype)
    targets = jax.random.permutation(key_targets, targets)
    inputs = noise + float(shift) * targets[:, None]
    return Dataset(inputs, targets, "shifted_gaussian")
