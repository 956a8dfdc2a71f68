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
    shape, (key_inputs, key_targets) = (positive(n, "n"), positive(d, "d")), split_key(key)
    inputs = jax.random.normal(key_inputs, shape)
    return Dataset(inputs, jax.random.rademacher(key_targets, shape[:1], inputs.dtype), "gaussian")


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
    shape, (key_inputs, key_targets) = (positive(n, "n"), positive(d, "d")), split_key(key)
    if not isinstance(shift, int | float | np.number) or not math.isfinite(shift):
        raise ValueError(f"shift={shift!r}: wanted a finite number")
    noise = jax.random.normal(key_inputs, shape)
    targets = jnp.where(jnp.arange(shape[0]) < (shape[0] + 1) // 2, 1, -1).astype(noise.dtype)
    targets = jax.random.permutation(key_targets, targets)
    return Dataset(noise + float(shift) * targets[:, None], targets, "shifted_gaussian")
