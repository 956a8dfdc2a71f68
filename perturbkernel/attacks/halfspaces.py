"""The nearest point, in l2, linf or l1, of an intersection of a few half-spaces, in a box.

Toward one of K classes a perturbation must pass K - 1 boundaries at once. Where they are linear
that is a convex programme, solved here by an interior-point method: its systems have one unknown
for each half-space, whatever the number of entries, so that many rows are solved at once.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from perturbkernel.arrays import or_one
from perturbkernel.attacks.boxes import Box, clip
from perturbkernel.attacks.crossings import where_rows
from perturbkernel.attacks.interior_point import Programme, products, solve
from perturbkernel.attacks.norms import dual_lengths, programme_of

# Of the distance to the farthest half-space: one that is missed by less counts as met.
_SHORT = 0.01
_FAR = 1e4  # bounds further than that many times the farthest single half-space count as that far


def nearest_of_all(
    rows: Float[Array, "m r d"], least: Float[Array, "m r"], norm: str, box: Box = None
) -> tuple[Float[Array, "m d"], Bool[Array, " m"]]:
    """The smallest d, in the norm, with <rows_r, d> >= least_r for all r in the box; whether met.

    Exact to 1e-3 or better in float32. False where the half-spaces have no common point in the box,
    to that accuracy, or the method failed: d is then finite, and of no other meaning.

    Example:
        >>> rows, least = jnp.asarray([[[1.0, 0.0], [0.0, 1.0]]]), jnp.asarray([[3.0, 4.0]])
        >>> nearest = jax.jit(nearest_of_all, static_argnums=2)
        >>> d, met = nearest(rows, least, "l2")
        >>> d.round(2).tolist(), met.tolist()
        ([[3.0, 4.0]], [True])
    """
    minimised = programme_of(norm)
    if minimised is None:
        raise ValueError(f"norm must be one with a programme; got {norm!r}")
    if rows.dtype != jnp.float64:
        # Products of slack and multiplier span more than float32 resolves.
        with jax.enable_x64(True):
            wide_rows = rows.astype(jnp.float64)
            wide_least = least.astype(jnp.float64)
            wide_box = jax.tree.map(lambda bound: bound.astype(jnp.float64), box)
            d, met = nearest_of_all(wide_rows, wide_least, norm, wide_box)
            return d.astype(rows.dtype), met
    m, count, entries = rows.shape
    if box is not None:
        low, high = box
        movable = high > low
        # What cannot move takes no part.
        rows = jnp.where(movable[:, None, :], rows, 0)
    flat = rows.reshape(m * count, entries)
    dual = dual_lengths(flat, norm)
    dual = dual.reshape(m, count)
    exists = dual > 0
    scale = or_one(dual)
    single = least / scale
    unit = or_one(single.max(1))
    column = unit[:, None]
    # A row without a gradient is met or not, whatever d is: it takes no part in the search.
    scaled_least = jnp.where(exists, single / column, -1)
    scaled_box = jax.tree.map(lambda bound: bound / column, box)
    scaled_rows = rows / scale[:, :, None]
    programme = _programme(scaled_rows, scaled_least, minimised, scaled_box)
    d = solve(programme, minimised).d
    d = clip(d, scaled_box)
    reached = products(programme.rows, d)
    enough = reached >= programme.least - _SHORT
    fulfilled = least <= 0
    met = jnp.where(exists, enough, fulfilled).all(1)
    nothing = fulfilled.all(1)
    d = where_rows(nothing, 0, d * column)
    return d, met | nothing


def _programme(rows: Array, least: Array, minimised: str, box: Box) -> Programme:
    shape = rows[:, 0, :].shape
    edges: list[Array] = []
    sign_d: list[int] = []
    sign_s: list[int] = []
    if minimised != "squares":
        zero = jnp.zeros(shape, rows.dtype)
        edges += [zero, zero]
        sign_d += [-1, 1]
        sign_s += [1, 1]
    if box is not None:
        low, high = box
        lowest = jnp.maximum(low, -_FAR)
        highest = jnp.minimum(high, _FAR)
        edges += [-highest, lowest]
        sign_d += [-1, 1]
        sign_s += [0, 0]
    stacked = jnp.zeros((0, *shape), rows.dtype)
    if edges:
        stacked = jnp.stack(edges)

    def of_edges(signs):
        return jnp.asarray(signs, rows.dtype).reshape(-1, 1, 1)

    return Programme(
        rows=rows,
        least=least,
        edges=stacked,
        sign_d=of_edges(sign_d),
        sign_s=of_edges(sign_s),
    )
