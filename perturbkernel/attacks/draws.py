"""Random points of a ball, one for every row, by a key each: where random starts begin."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from perturbkernel.attacks.boxes import Box, Rows


def in_cube(keys: Array, size: Array | float, box: Box, like: Rows) -> Rows:
    """Uniform in [-size, size]^d, (m, d).

    Example:
        >>> in_cube(jax.random.split(jax.random.key(0), 2), 0.5, None, jnp.ones((2, 3))).shape
        (2, 3)
    """

    def draw(key: Array) -> Array:
        direction_key, _ = jax.random.split(key)
        return jax.random.uniform(direction_key, like.shape[1:], like.dtype, -1, 1)

    u = jax.vmap(draw)(keys)
    return size * u


def in_ball(distribution: Callable, lengths: Callable) -> Callable:
    """A function like `in_cube`, uniform in the ball |u| <= size.

    Args:
        distribution: of entries, whose density depends on |u| alone: normal for l2, Laplace for l1.
        lengths: |u|, row by row.

    Example:
        >>> import numpy as np
        >>> draw = in_ball(jax.random.laplace, lambda u: jnp.abs(u).sum(1))
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> u = jax.jit(draw)(keys, 0.5, None, jnp.ones((2, 3)))
        >>> bool((abs(np.asarray(u)).sum(1) <= 0.5).all())
        True
    """

    def draw_all(keys: Array, size: Array | float, box: Box, like: Rows) -> Rows:
        d = like.shape[1]

        def draw(key: Array) -> Array:
            direction_key, radius_key = jax.random.split(key)
            draws = distribution(direction_key, (d,), like.dtype)
            volume = jax.random.uniform(radius_key, (), like.dtype)
            radius = volume ** (1 / d)
            return draws / lengths(draws[None]) * radius

        u = jax.vmap(draw)(keys)
        return size * u

    return draw_all


def in_box(keys: Array, size: Array | float, box: Box, like: Rows) -> Rows:
    """Each entry uniform on either side of 0 in the box, (m, d), whatever the size.

    Example:
        >>> import numpy as np
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> box = jnp.asarray([[0.0, 0.0, 0.0]]), jnp.asarray([[1.0, 1.0, 1.0]])
        >>> u = np.asarray(jax.jit(in_box)(keys, 1, box, jnp.ones((2, 3))))
        >>> bool(((u >= 0) & (u <= 1)).all())
        True
    """
    assert box is not None
    low, high = box
    u = in_cube(keys, 1, None, like)
    return jnp.where(u > 0, u * high, -u * low)
