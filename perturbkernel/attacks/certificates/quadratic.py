"""The largest value of a quadratic form over a ball, bounded from above without eigenvalues."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from perturbkernel.arrays import or_one

_ROUNDED_UP = 1 + 1e-9


def spectral_bound(matrix: Float[Array, "d d"]) -> Array:
    """At least the spectral norm of a symmetric matrix: the 8-norm of its eigenvalues, which is
    at most d^(1/8) times as large.

    Example:
        >>> round(float(spectral_bound(jnp.asarray([[3.0, 0.0], [0.0, -1.0]]))), 3)
        3.0
    """
    largest = jnp.abs(matrix).max()
    unit = or_one(largest)
    scaled = matrix / unit
    squared = scaled @ scaled
    fourth = squared @ squared
    # The sum of the 8th powers of the eigenvalues, its columns by a product: a sum right after two
    # products of matrices is made one program with them on CPUs, which takes twenty times as long.
    ones = jnp.ones(len(matrix), matrix.dtype)
    columns = ones @ fourth**2
    total = jnp.sum(columns)
    root = total ** (1 / 8)
    return unit * root * _ROUNDED_UP


def quadratic_bound(rest: Float[Array, "d d"], identity: Array, norm: str) -> Array:
    """q >= 0 with <delta, (rest + identity I) delta> <= q |delta|^2 in "l2", "linf" or "l1".

    For linf the form is bounded by its spectral norm after a rescaling of the entries, D^(-1/2) H
    D^(-1/2), times the trace of D, for two D, and by the sum of all |H_ij|, whichever is least.

    Example:
        >>> import jax
        >>> matrix = jnp.asarray([[0.0, 1.0], [1.0, 0.0]])
        >>> bound = jax.jit(quadratic_bound, static_argnums=2)
        >>> [round(float(bound(matrix, 0.0, norm)), 2) for norm in ("l2", "linf", "l1")]
        [1.09, 2.0, 1.0]
    """
    d = len(rest)
    if norm == "l2":
        spectral = identity + spectral_bound(rest)
        return jnp.maximum(spectral, 0)
    unit = jnp.eye(d, dtype=rest.dtype)
    whole = rest + identity * unit
    if norm == "l1":
        spectral = identity + spectral_bound(rest)
        entry = jnp.abs(whole).max()
        least = jnp.minimum(entry, spectral)
        return jnp.maximum(least, 0) * _ROUNDED_UP
    entries = jnp.abs(whole)
    row_lengths = jnp.linalg.norm(whole, axis=1)
    ones = jnp.ones(d, rest.dtype)
    bounds = [jnp.sum(entries), _rescaled_bound(whole, row_lengths), _rescaled_bound(whole, ones)]
    least = jnp.min(jnp.stack(bounds))
    return least * _ROUNDED_UP


def _rescaled_bound(matrix: Array, weights: Array) -> Array:
    """The spectral norm of D^(-1/2) H D^(-1/2) times the trace of D = diag(weights)."""
    floor = 1e-6 * jnp.mean(weights)
    weights = jnp.where(floor > 0, weights + floor, 1)
    roots = jnp.sqrt(weights)
    scaled = matrix / jnp.outer(roots, roots)
    trace = jnp.sum(weights)
    return spectral_bound(scaled) * trace
