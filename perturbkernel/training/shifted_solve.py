"""Conjugate gradients for the Newton systems 1 + S K S of a flow (`implicit`), which keep the image
of the solution.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

_PRODUCTS = 200  # of one solve, at most


class Iteration(NamedTuple):
    """Of conjugate gradients. `last`: the largest change of the image in the last iteration."""

    q: Array
    image: Array  # half(q)
    residual: Array
    direction: Array
    square: Array  # of the residual
    last: Array
    count: Array  # of products


def conjugate_gradients(half: Callable, root: Array, right: Array, allowed: Array) -> Iteration:
    """Solves (1 + root half) q = right, until the image half(q) moves by less than `allowed` at
    every point: then `last` <= allowed.
    """
    tiny = jnp.finfo(right.dtype).tiny

    def iterate(state: Iteration) -> Iteration:
        direction = state.direction
        u = half(direction)
        product = direction + root * u
        length = state.square / jnp.maximum(jnp.sum(direction * product), tiny)
        residual = state.residual - length * product
        square = jnp.sum(residual**2)
        return Iteration(
            q=state.q + length * direction,
            image=state.image + length * u,
            residual=residual,
            direction=residual + square / jnp.maximum(state.square, tiny) * direction,
            square=square,
            last=jnp.abs(length * u).max(),
            count=state.count + 1,
        )

    def unfinished(state: Iteration) -> Array:
        return (state.last > allowed) & (state.count < _PRODUCTS)  # no longer if `last` is NaN

    start = Iteration(
        q=jnp.zeros_like(right),
        image=jnp.zeros_like(right),
        residual=right,
        direction=right,
        square=jnp.sum(right**2),
        last=jnp.array(jnp.inf, right.dtype),
        count=jnp.zeros((), int),
    )
    return lax.while_loop(unfinished, iterate, start)
