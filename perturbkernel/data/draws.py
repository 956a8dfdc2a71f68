"""Random labels and noise."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from perturbkernel.checks import check_choice, check_count, check_key

CLASS_RULES = ("coin_flip", "balanced", "random_other", "next")
TARGET_RULES = ("coin_flip", "balanced")
NOISES = ("uniform", "gaussian")


@partial(jax.jit, static_argnums=1)
def split_keys(key: PRNGKeyArray, count: int) -> tuple[PRNGKeyArray, ...]:
    """`jax.random.split` as a tuple, in one program."""
    return tuple(jax.random.split(key, count))


@partial(jax.jit, static_argnums=1)
def shuffled(key: PRNGKeyArray, n: int) -> Int[Array, " n"]:
    """0 .. n - 1 in the order of `jax.random.permutation`, by the first of two keys from one."""
    first, _ = jax.random.split(key)
    return jax.random.permutation(first, n)


def draw_classes(
    rule: str,
    labels: Int[Array, " n"],
    classes: int,
    *,
    key: PRNGKeyArray,
) -> Int[Array, " n"]:
    """Target classes (n,) for points of the given labels.

    "coin_flip": each uniform among all K, whatever its label. "balanced": uniform among the draws
    in which the classes' counts differ by at most one. "random_other": uniform among the K - 1
    other classes, independently. "next": (label + 1) mod K, nothing random. Source of the last two:
    Ilyas et al., Adversarial Examples Are Not Bugs, They Are Features (NeurIPS 2019), its D_rand
    and D_det; there random targets are drawn from all classes, as "coin_flip".

    Example:
        >>> draw_classes("next", jnp.asarray([0, 1, 2]), 3, key=jax.random.key(0)).tolist()
        [1, 2, 0]
    """
    check_choice(rule, "targets", CLASS_RULES)
    check_key(key)
    return _draw_classes(rule, classes, labels, key)


@partial(jax.jit, static_argnums=(0, 1))
def _draw_classes(rule: str, classes: int, labels: Array, key: PRNGKeyArray) -> Array:
    n = len(labels)
    if rule == "coin_flip":
        return jax.random.randint(key, (n,), 0, classes)
    if rule == "balanced":
        order_key, names_key = jax.random.split(key)
        order = jax.random.permutation(order_key, n)
        names = jax.random.permutation(names_key, classes)
        return names[order % classes]
    shift = 1 if rule == "next" else jax.random.randint(key, (n,), 1, classes)
    shift = jnp.asarray(shift, labels.dtype)
    return (labels + shift) % classes


def draw_targets(rule: str, n: int, *, key: PRNGKeyArray) -> Float[Array, " n"]:
    """Labels in {-1, +1}, (n,).

    "coin_flip": independent. "balanced": uniform among those with sum 0 (odd n: +-1).

    Example:
        >>> float(draw_targets("balanced", 10, key=jax.random.key(0)).sum())
        0.0
    """
    check_choice(rule, "targets", TARGET_RULES)
    check_key(key)
    return _draw_targets(rule, n, jnp.result_type(float), key)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _draw_targets(rule: str, n: int, dtype: Any, key: PRNGKeyArray) -> Array:
    if rule == "coin_flip":
        return jax.random.rademacher(key, (n,), dtype)
    order, sign = jax.random.split(key)
    # Odd n: sum +1, whose sign is then drawn.
    even = jnp.arange(n) % 2 == 0
    alternating = jnp.where(even, 1.0, -1.0).astype(dtype)
    shuffled = jax.random.permutation(order, alternating)
    return shuffled * (jax.random.rademacher(sign, (), dtype) if n % 2 else 1)


def draw_noise(
    name: str,
    m: int,
    shape: tuple[int, ...],
    dtype: Any = None,
    *,
    key: PRNGKeyArray,
) -> Array:
    """Noise to carry perturbations, (m, *shape), independent entries.

    "uniform": on [-1, 1]. "gaussian": N(0, 1).

    Example:
        >>> draw_noise("gaussian", 5, (28, 28), key=jax.random.key(0)).shape
        (5, 28, 28)
    """
    check_choice(name, "carrier", NOISES)
    check_count(m, "carrier_points")
    check_key(key)
    if dtype is None:
        dtype = jnp.result_type(float)
    whole = (m, *shape)
    if name == "uniform":
        return jax.random.uniform(key, whole, dtype, -1, 1)
    return jax.random.normal(key, whole, dtype)
