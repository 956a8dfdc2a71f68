"""The nearest point, in l2, linf or l1, of an intersection of a few half-spaces, in a box.

Toward one of K classes a perturbation must pass K - 1 boundaries at once. Where they are linear
that is a convex programme, solved here by an interior-point method: its systems have one unknown
for each half-space, whatever the number of entries, so that many rows are solved at once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from perturbkernel.attacks.norms import DUAL, Box, lengths

_STEPS = 80  # of Newton's method; it takes 20 to 40
_CENTRING = 0.2  # complementarity aimed at, of what there is
_BOUNDARY = 0.8  # of the way to the boundary at most
_ACCURACY = 1e-6  # of the cost, and of the constraints, in units of the nearest half-space
_FAR = 1e4  # bounds further than that many times the nearest single half-space count as that far


class _Programme(NamedTuple):
    """min cost(d, s) such that rows d >= least, and sign_d d + sign_s s >= edges, entry by entry.

    For linf s is one number a row, |d_i| <= s, and the cost; for l1 one an entry, |d_i| <= s_i, and
    the cost its sum; for l2 it has no part, and the cost is |d|^2 / 2.

    Attributes:
        rows: (m, r, d), scaled to dual norm 1. least: (m, r), scaled such that the largest is 1.
        edges: (k, m, d), of the k constraints on every entry. sign_d, sign_s: (k, 1, 1).
    """

    rows: Array
    least: Array
    edges: Array
    sign_d: Array
    sign_s: Array


class _State(NamedTuple):
    """d (m, d), s (m, d), and slacks and multipliers of both kinds, (m, r) and (k, m, d)."""

    d: Array
    s: Array
    slack: Array
    multiplier: Array
    edge_slack: Array
    edge_multiplier: Array


def nearest_of_all(
    rows: Float[Array, "m r d"], least: Float[Array, "m r"], norm: str, box: Box = None
) -> tuple[Float[Array, "m d"], Bool[Array, " m"]]:
    """The smallest d, in the norm, with <rows_r, d> >= least_r for all r in the box; whether it is.

    Exact to 1e-3 or better in float32. False where the half-spaces have no common point in the box,
    to that accuracy, or the method failed: d is then finite, and of no other meaning.
    """
    if rows.dtype != jnp.float64:
        # Products of slack and multiplier span more than float32 resolves.
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda a: a.astype(jnp.float64), (rows, least, box))
            d, met = nearest_of_all(*wide[:2], norm, wide[2])
            return d.astype(rows.dtype), met
    m, count, entries = rows.shape
    if box is not None:  # what cannot move takes no part
        low, high = box
        rows = jnp.where((high > low)[:, None, :], rows, 0)
    dual = lengths(rows.reshape(m * count, entries), DUAL[norm]).reshape(m, count)
    scale = jnp.where(dual > 0, dual, 1)
    single = least / scale
    unit = single.max(1)
    unit = jnp.where(unit > 0, unit, 1)
    # A row without a gradient is met or not, whatever d is: it takes no part in the search.
    programme = _programme(
        rows / scale[:, :, None],
        jnp.where(dual > 0, single / unit[:, None], -1),
        norm,
        None if box is None else (box[0] / unit[:, None], box[1] / unit[:, None]),
    )
    d = _solve(programme, norm).d
    if box is not None:
        d = jnp.clip(d, box[0] / unit[:, None], box[1] / unit[:, None])
    reached = jnp.sum(programme.rows * d[:, None, :], axis=2)
    met = jnp.where(dual > 0, reached >= programme.least - 0.01, least <= 0).all(1)
    nothing = (least <= 0).all(1)
    d = jnp.where(nothing[:, None], 0, d * unit[:, None])
    return d, met | nothing


def _programme(rows: Array, least: Array, norm: str, box: Box) -> _Programme:
    shape = rows[:, 0, :].shape
    edges, sign_d, sign_s = [], [], []
    if norm != "l2":
        edges += [jnp.zeros(shape, rows.dtype)] * 2
        sign_d += [-1, 1]
        sign_s += [1, 1]
    if box is not None:
        edges += [-jnp.minimum(box[1], _FAR), jnp.maximum(box[0], -_FAR)]
        sign_d += [-1, 1]
        sign_s += [0, 0]
    stacked = jnp.stack(edges) if edges else jnp.zeros((0, *shape), rows.dtype)
    signs = [jnp.asarray(signs, rows.dtype).reshape(-1, 1, 1) for signs in (sign_d, sign_s)]
    return _Programme(rows, least, stacked, signs[0], signs[1])


def _solve(programme: _Programme, norm: str) -> _State:
    """The last state of every row whose numbers were finite."""
    m, count, entries = programme.rows.shape
    dtype = programme.rows.dtype
    begin = jnp.full((m, entries), 1 / entries if norm == "l1" else 1, dtype)
    # Slacks of the size of the solution; all products of slack and multiplier are equal.
    edge_slack = jnp.maximum(programme.sign_s * begin[None] - programme.edges, 0.1 * begin[None])
    slack = jnp.ones((m, count), dtype)
    product = 0.5 / entries
    state = _State(
        jnp.zeros((m, entries), dtype),
        begin,
        slack,
        product / slack,
        edge_slack,
        product / edge_slack,
    )

    def unfinished(carry):
        i, _, done = carry
        return (i < _STEPS) & ~done.all()

    def step(carry):
        i, state, done = carry
        new, remaining = _newton_step(programme, state, norm)
        finite = jnp.isfinite(remaining)
        keep = done | ~finite
        state = _State(*(_select(keep, old, fresh) for old, fresh in zip(state, new, strict=True)))
        return i + 1, state, keep | (remaining < _ACCURACY)

    return lax.while_loop(unfinished, step, (0, state, jnp.zeros(m, bool)))[1]


def _select(keep: Array, old: Array, fresh: Array) -> Array:
    """Row by row; the rows are the last axis but one of all arrays but slacks."""
    keep = keep[:, None] if old.ndim == 2 else keep[None, :, None]
    return jnp.where(keep, old, fresh)


def _newton_step(programme: _Programme, state: _State, norm: str) -> tuple[_State, Array]:
    """One step toward the point where all products of slack and multiplier are a fifth of what they
    are; and what remains after it, (m,): products, and how far the constraints are from their
    slacks.
    """
    rows, least, edges, sign_d, sign_s = programme
    d, s, slack, multiplier, edge_slack, edge_multiplier = state
    count = slack.shape[1] + edge_slack.shape[0] * edge_slack.shape[2]
    total = jnp.sum(slack * multiplier, 1) + jnp.sum(edge_slack * edge_multiplier, (0, 2))
    aim = _CENTRING * total / count
    gap = jnp.sum(rows * d[:, None, :], axis=2) - least - slack
    edge_gap = sign_d * d[None] + sign_s * s[None] - edges - edge_slack
    pull = (aim[:, None] - multiplier * gap) / slack
    edge_pull = (aim[None, :, None] - edge_multiplier * edge_gap) / edge_slack
    curvature = edge_multiplier / edge_slack
    cost_d = d if norm == "l2" else jnp.zeros_like(d)
    cost_s = jnp.ones_like(d) / (d.shape[1] if norm == "linf" else 1)
    right_d = jnp.sum(sign_d * edge_pull, axis=0) - cost_d
    right_d = right_d + jnp.sum(rows * pull[:, :, None], axis=1)
    right_s = jnp.sum(sign_s * edge_pull, axis=0) - cost_s
    # How far the multipliers are from balancing the cost.
    unbalanced = cost_d - jnp.sum(sign_d * edge_multiplier, axis=0)
    unbalanced = unbalanced - jnp.sum(rows * multiplier[:, :, None], axis=1)
    unbalanced_s = cost_s - jnp.sum(sign_s * edge_multiplier, axis=0)
    if norm == "linf":
        unbalanced_s = jnp.sum(unbalanced_s, axis=1, keepdims=True)
    move_d, move_s = _directions(programme, curvature, multiplier / slack, right_d, right_s, norm)
    move_slack = jnp.sum(rows * move_d[:, None, :], axis=2) + gap
    move_edge = sign_d * move_d[None] + sign_s * move_s[None] + edge_gap
    move_multiplier = (aim[:, None] - multiplier * move_slack) / slack - multiplier
    move_edge_multiplier = (
        aim[None, :, None] - edge_multiplier * move_edge
    ) / edge_slack - edge_multiplier
    moves = _State(move_d, move_s, move_slack, move_multiplier, move_edge, move_edge_multiplier)
    length = jnp.minimum(
        _longest((slack, move_slack), (edge_slack, move_edge)),
        _longest((multiplier, move_multiplier), (edge_multiplier, move_edge_multiplier)),
    )
    new = _State(
        *(
            old + (length[:, None] if old.ndim == 2 else length[None, :, None]) * move
            for old, move in zip(state, moves, strict=True)
        )
    )
    unmet = (1 - length) * jnp.abs(unbalanced).sum(1)
    if norm != "l2":
        unmet = unmet + (1 - length) * jnp.abs(unbalanced_s).sum(1)
    missing = unmet + (1 - length) * (
        jnp.abs(gap).max(1) + jnp.abs(edge_gap).max((0, 2), initial=0)
    )
    left = jnp.sum(new.slack * new.multiplier, 1)
    return new, left + jnp.sum(new.edge_slack * new.edge_multiplier, (0, 2)) + missing


def _longest(*pairs: tuple[Array, Array]) -> Array:
    """(m,), how much of a move, at most all of it, keeps what must stay positive so."""
    (value, move), (edge_value, edge_move) = pairs
    share = jnp.maximum((-move / value).max(1), (-edge_move / edge_value).max((0, 2), initial=0))
    return _BOUNDARY / jnp.maximum(share, _BOUNDARY)


def _directions(
    programme: _Programme,
    curvature: Array,
    stiffness: Array,
    right_d: Array,
    right_s: Array,
    norm: str,
) -> tuple[Array, Array]:
    """How d and s move: the solution of the Newton system, reduced to one unknown a half-space."""
    rows, _, _, sign_d, sign_s = programme
    # Sums of what carries the sign of s (|d| <= s), and of the rest (box, cost), kept apart: the
    # difference of their products, which the elimination needs, is then a sum.
    tied = jnp.abs(sign_s) * curvature
    free = jnp.sum(curvature - tied, axis=0)
    free = free + (1 if norm == "l2" else 0)
    total_s = jnp.sum(tied, axis=0)
    cross = jnp.sum(sign_d * tied, axis=0)
    both = 4 * jnp.prod(tied, axis=0, where=jnp.abs(sign_s) > 0) if norm != "l2" else 0 * free
    safe_s = jnp.where(total_s > 0, total_s, 1)
    if norm == "l1":
        diagonal = free + both / safe_s
        right_d = right_d - cross / safe_s * right_s
    else:
        diagonal = free + total_s
    inverse = 1 / diagonal
    weighted = rows * inverse[:, None, :]
    system = jnp.einsum("mrd,mqd->mrq", weighted, rows, precision=lax.Precision.HIGHEST)
    system = system + jnp.eye(rows.shape[1], dtype=rows.dtype)[None] / stiffness[:, :, None]
    answer = jnp.sum(weighted * right_d[:, None, :], axis=2)
    if norm == "linf":
        border = jnp.sum(weighted * cross[:, None, :], axis=2)
        corner = -jnp.sum((both + free * total_s) * inverse, axis=1)
        last = jnp.sum(cross * inverse * right_d - right_s, axis=1)
        top = jnp.concatenate([system, border[:, :, None]], axis=2)
        below = jnp.concatenate([border, corner[:, None]], axis=1)[:, None, :]
        system = jnp.concatenate([top, below], axis=1)
        answer = jnp.concatenate([answer, last[:, None]], axis=1)
    solution = jnp.linalg.solve(system, answer[:, :, None])[:, :, 0]
    force = solution[:, : rows.shape[1]]
    move_s = jnp.zeros_like(right_d)
    if norm == "linf":
        move_s = jnp.broadcast_to(solution[:, -1:], right_d.shape)
        right_d = right_d - cross * move_s
    move_d = inverse * (right_d - jnp.sum(rows * force[:, :, None], axis=1))
    if norm == "l1":
        move_s = (right_s - cross * move_d) / safe_s
    return move_d, move_s
