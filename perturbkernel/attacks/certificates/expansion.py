"""The gradient and the Hessian of a kernel sum at one query, with what their rounding may be.

Both are bilinear in the points and the query:

    gradient = X^T a + b z,   Hessian = X^T diag(p) X + X^T q z^T + z q^T X + s z z^T + t I.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from perturbkernel.attacks.certificates.points import NEAREST, Query, Seen
from perturbkernel.engine import tiles


class Weights(NamedTuple):
    """The numbers a, b, p, q, s, t of the module's formula, and sums of absolute terms.

    Attributes:
        gradient_terms: of the gradient, in the dual norm; hessian_terms: of the Hessian, in the
            spectral norm. Rounding is so many ulps of them.
    """

    on_x: Array
    on_z: Array
    squares: Array
    mixed: Array
    own: Array
    identity: Array
    gradient_terms: Array
    hessian_terms: Array


class _Directions(NamedTuple):
    """e_n = along_x x_n - along_z z: from the query toward x_n on the sphere, first d entries."""

    along_x: Array
    along_z: Array
    sine: Array
    cosine: Array


def _directions(query: Query, seen: Seen, wanted: Array) -> _Directions:
    theta = jnp.where(wanted, seen.theta, 1)
    sine = jnp.sin(theta)
    cosine = jnp.cos(theta)
    along_x = 1 / (seen.root * sine)
    along_z = cosine / (query.root * sine)
    return _Directions(along_x, along_z, sine, cosine)


def _hessian_terms(query, seen, squares, mixed, own, sine) -> Array:
    """Sums of absolute terms; those of near points lose 1/sine of their digits."""
    of_squares = jnp.abs(squares) * seen.root**2
    of_mixed = 2 * jnp.abs(mixed) * seen.root * query.root
    of_own = jnp.abs(own) * query.root**2
    pairs = of_squares + of_mixed
    return jnp.sum(pairs / sine) + of_own


def kernel_weights(
    query: Query,
    seen: Seen,
    coef: Float[Array, " n"],
    numbers: Any,
    order: Int[Array, " n"],
) -> Weights:
    """Of sum_n coef_n K(x_n, .), each point expanded to its own order: 0, the gates frozen, 1 or 2.

    `numbers` has the fields cone, -d Phi / d theta, and gate, Phi at angle 0.
    """
    turn = 1 / query.root
    e = _directions(query, seen, order >= 1)
    slope = numbers.cone * coef
    # The gradient: of the factor, with the gates held, and of the gates.
    frozen = coef * (numbers.gate - numbers.cone * seen.theta)
    moving = jnp.where(order >= 1, slope * seen.factor * turn, 0)
    # The Hessian: of the factor and the gates once each, and of the gates twice, where the cone
    # bends around x_n and the length of the query changes.
    curved = jnp.where(order == 2, slope, 0)
    both = curved * seen.factor
    round_cone = both * e.cosine / e.sine * turn**2
    squares_of_product = 2 * turn * curved * e.along_x
    squares_of_cone = round_cone * e.along_x**2
    mixed_of_product = turn * curved * e.along_z
    mixed_of_cone = round_cone * e.along_x * e.along_z
    mixed_of_length = turn**3 * both * e.along_x
    own_of_cone = round_cone * (e.along_z**2 + turn**2)
    own_of_length = 2 * turn**3 * both * e.along_z
    own = own_of_cone + own_of_length
    # What rounding is relative to.
    absolute = _hessian_terms(
        query,
        seen,
        squares=jnp.abs(squares_of_product) + jnp.abs(squares_of_cone),
        mixed=jnp.abs(mixed_of_product) + jnp.abs(mixed_of_cone) + jnp.abs(mixed_of_length),
        own=jnp.sum(jnp.abs(own) / e.sine),
        sine=e.sine,
    )
    round_terms = jnp.abs(round_cone) / e.sine
    towards = jnp.abs(moving) / e.sine
    on_points = jnp.abs(frozen) + towards * e.along_x
    on_query = towards * jnp.abs(e.along_z)
    of_points = jnp.sum(on_points * seen.dual)
    of_query = jnp.sum(on_query) * query.dual
    return Weights(
        on_x=frozen + moving * e.along_x,
        on_z=-jnp.sum(moving * e.along_z),
        squares=squares_of_product + squares_of_cone,
        mixed=-(mixed_of_product + mixed_of_cone + mixed_of_length),
        own=jnp.sum(own),
        identity=-jnp.sum(round_cone),
        gradient_terms=of_points + of_query,
        hessian_terms=absolute + jnp.sum(round_terms),
    )


def initial_weights(query: Query, seen: Seen, coef: Float[Array, " n"], numbers: Any) -> Weights:
    """Of sum_n coef_n Sigma(x_n, .), to order 2.

    The Hessian of Sigma is cone root_x sin(theta) / (d root_z) (P + e e^T), P the projection
    orthogonal to the query.
    """
    d = len(query.point)
    is_apart = (seen.theta >= NEAREST) & (jnp.pi - seen.theta >= NEAREST)
    e = _directions(query, seen, is_apart)
    sine = jnp.sin(seen.theta)
    frozen = coef * (numbers.gate - numbers.cone * seen.theta) / d
    lifted = numbers.cone * coef * seen.root * sine / (d * query.root)
    apart = jnp.where(is_apart, lifted, 0)
    squares = apart * e.along_x**2
    mixed = apart * e.along_x * e.along_z
    own = apart * e.along_z**2 - lifted / query.root**2
    of_own = jnp.sum(jnp.abs(own) / e.sine)
    absolute = _hessian_terms(query, seen, squares, mixed, of_own, e.sine)
    # Left out of e e^T: the points that nearly coincide, of which it has next to nothing.
    largest = numbers.cone * jnp.abs(coef) * seen.root * NEAREST
    of_near = jnp.where(is_apart, 0, largest)
    left_out = jnp.sum(of_near) / (d * query.root)
    of_points = jnp.sum(jnp.abs(frozen) * seen.dual)
    total_lifted = jnp.sum(jnp.abs(lifted))
    of_query = total_lifted * query.dual
    return Weights(
        on_x=frozen,
        on_z=jnp.sum(lifted),
        squares=squares,
        mixed=-mixed,
        own=jnp.sum(own),
        identity=jnp.sum(lifted),
        gradient_terms=of_points + of_query,
        hessian_terms=absolute + total_lifted + left_out / numbers.rounding,
    )


def gradient_of(query: Query, x: Float[Array, "n d"], weights: Weights) -> Float[Array, " d"]:
    """The gradient, of orders that may differ from point to point."""
    return weights.on_x @ x + weights.on_z * query.point


def hessian_of(
    query: Query, x: Float[Array, "n d"], weights: Weights, rows: int
) -> Float[Array, "d d"]:
    """The Hessian without `weights.identity`, the sum over points in parts of so many rows."""
    n, d = x.shape
    size = tiles.tile_size(n, rows)

    def add(i: Array, total: Array) -> Array:
        own = tiles.own_rows(i, size, n)
        points, squares = tiles.part_of((x, weights.squares), i, size)
        squares = jnp.where(own, squares, 0)
        return total + (squares[:, None] * points).T @ points

    parts = -(-n // size)
    total = lax.fori_loop(0, parts, add, jnp.zeros((d, d), x.dtype))
    across = jnp.outer(weights.mixed @ x, query.point)
    along = weights.own * jnp.outer(query.point, query.point)
    return total + across + across.T + along
