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

from perturbkernel.attacks.norms import DUAL, Box, clip, lengths

_STEPS = 80  # of Newton's method; it takes 20 to 40
_CENTRING = 0.2  # complementarity aimed at, of what there is
_BOUNDARY = 0.8  # of the way to the boundary at most
_ACCURACY = 1e-6  # of the cost, and of the constraints, in units of the nearest half-space
_SHORT = 0.01  # of a half-space that still counts as met, in these units
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
    """The smallest d, in the norm, with <rows_r, d> >= least_r for all r in the box; whether met.

    Exact to 1e-3 or better in float32. False where the half-spaces have no common point in the box,
    to that accuracy, or the method failed: d is then finite, and of no other meaning.
    """
    if rows.dtype != jnp.float64:
        # Products of slack and multiplier span more than float32 resolves.
        with jax.enable_x64(True):
            wide_rows, wide_least = rows.astype(jnp.float64), least.astype(jnp.float64)
            wide_box = jax.tree.map(lambda a: a.astype(jnp.float64), box)
            d, met = nearest_of_all(wide_rows, wide_least, norm, wide_box)
            return d.astype(rows.dtype), met
    m, count, entries = rows.shape
    if box is not None:
        low, high = box
        # What cannot move takes no part.
        rows = jnp.where((high > low)[:, None, :], rows, 0)
    dual = lengths(rows.reshape(m * count, entries), DUAL[norm]).reshape(m, count)
    scale = jnp.where(dual > 0, dual, 1)
    single = least / scale
    unit = single.max(1)
    unit = jnp.where(unit > 0, unit, 1)
    # A row without a gradient is met or not, whatever d is: it takes no part in the search.
    scaled_least = jnp.where(dual > 0, single / unit[:, None], -1)
    scaled_box = jax.tree.map(lambda bound: bound / unit[:, None], box)
    programme = _programme(rows / scale[:, :, None], scaled_least, norm, scaled_box)
    d = clip(_solve(programme, norm).d, scaled_box)
    reached = jnp.sum(programme.rows * d[:, None, :], axis=2)
    enough = reached >= programme.least - _SHORT
    met = jnp.where(dual > 0, enough, least <= 0).all(1)
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
    every_sign_d = jnp.asarray(sign_d, rows.dtype).reshape(-1, 1, 1)
    every_sign_s = jnp.asarray(sign_s, rows.dtype).reshape(-1, 1, 1)
    return _Programme(rows, least, stacked, every_sign_d, every_sign_s)


def _solve(programme: _Programme, norm: str) -> _State:
    """The last state of every row whose numbers were finite."""
    m, count, entries = programme.rows.shape
    dtype = programme.rows.dtype
    begin = jnp.full((m, entries), 1 / entries if norm == "l1" else 1, dtype)
    # Slacks of the size of the solution; all products of slack and multiplier are equal.
    room = programme.sign_s * begin[None] - programme.edges
    edge_slack = jnp.maximum(room, 0.1 * begin[None])
    slack = jnp.ones((m, count), dtype)
    product = 0.5 / entries
    state = _State(
        d=jnp.zeros((m, entries), dtype),
        s=begin,
        slack=slack,
        multiplier=product / slack,
        edge_slack=edge_slack,
        edge_multiplier=product / edge_slack,
    )

    def unfinished(carry):
        i, _, done = carry
        return (i < _STEPS) & ~done.all()

    def step(carry):
        i, state, done = carry
        new, remaining = _newton_step(programme, state, norm)
        finite = jnp.isfinite(remaining)
        keep = done | ~finite
        state = jax.tree.map(lambda old, fresh: _select(keep, old, fresh), state, new)
        return i + 1, state, keep | (remaining < _ACCURACY)

    begin_all = 0, state, jnp.zeros(m, bool)
    _, state, _ = lax.while_loop(unfinished, step, begin_all)
    return state


def _select(keep: Array, old: Array, fresh: Array) -> Array:
    """Row by row; the rows are the last axis but one of all arrays but slacks."""
    keep = keep[:, None] if old.ndim == 2 else keep[None, :, None]
    return jnp.where(keep, old, fresh)


class _Gaps(NamedTuple):
    """How far the constraints are from their slacks, and the products aimed at.

    Attributes:
        gap, edge_gap: of both kinds of constraints, (m, r) and (k, m, d).
        aim: (m,), what every product of slack and multiplier shall be.
    """

    gap: Array
    edge_gap: Array
    aim: Array


def _newton_step(programme: _Programme, state: _State, norm: str) -> tuple[_State, Array]:
    """One step of Newton's method, and what remains after it, (m,).

    It goes toward the point where all products of slack and multiplier are a fifth of what they
    are. What remains are the products, and how far the constraints are from their slacks.
    """
    gaps = _gaps(programme, state)
    cost_d, cost_s = _costs(state, norm)
    move = _move(programme, state, gaps, cost_d, cost_s, norm)
    length = jnp.minimum(
        _longest(state.slack, move.slack, state.edge_slack, move.edge_slack),
        _longest(state.multiplier, move.multiplier, state.edge_multiplier, move.edge_multiplier),
    )
    new = _State(
        d=state.d + length[:, None] * move.d,
        s=state.s + length[:, None] * move.s,
        slack=state.slack + length[:, None] * move.slack,
        multiplier=state.multiplier + length[:, None] * move.multiplier,
        edge_slack=state.edge_slack + length[None, :, None] * move.edge_slack,
        edge_multiplier=state.edge_multiplier + length[None, :, None] * move.edge_multiplier,
    )
    missing = _missing(programme, state, gaps, cost_d, cost_s, length, norm)
    left = jnp.sum(new.slack * new.multiplier, 1)
    edge_left = jnp.sum(new.edge_slack * new.edge_multiplier, (0, 2))
    return new, left + edge_left + missing


def _gaps(programme: _Programme, state: _State) -> _Gaps:
    rows, least, edges, sign_d, sign_s = programme
    constraints, _, entries = state.edge_slack.shape
    count = state.slack.shape[1] + constraints * entries
    products = jnp.sum(state.slack * state.multiplier, 1)
    edge_products = jnp.sum(state.edge_slack * state.edge_multiplier, (0, 2))
    aim = _CENTRING * (products + edge_products) / count
    reached = jnp.sum(rows * state.d[:, None, :], axis=2)
    edge_reached = sign_d * state.d[None] + sign_s * state.s[None]
    gap = reached - least - state.slack
    return _Gaps(gap, edge_reached - edges - state.edge_slack, aim)


def _costs(state: _State, norm: str) -> tuple[Array, Array]:
    """The gradients of the cost in d and in s, (m, d) each."""
    d = state.d
    cost_d = d if norm == "l2" else jnp.zeros_like(d)
    share = d.shape[1] if norm == "linf" else 1
    return cost_d, jnp.ones_like(d) / share


def _move(
    programme: _Programme, state: _State, gaps: _Gaps, cost_d: Array, cost_s: Array, norm: str
) -> _State:
    """The whole Newton step."""
    rows, _, _, sign_d, sign_s = programme
    _, _, slack, multiplier, edge_slack, edge_multiplier = state
    aim, edge_aim = gaps.aim[:, None], gaps.aim[None, :, None]
    pull = (aim - multiplier * gaps.gap) / slack
    edge_pull = (edge_aim - edge_multiplier * gaps.edge_gap) / edge_slack
    right_d = jnp.sum(sign_d * edge_pull, axis=0) - cost_d
    right_d = right_d + jnp.sum(rows * pull[:, :, None], axis=1)
    right_s = jnp.sum(sign_s * edge_pull, axis=0) - cost_s
    curvature = edge_multiplier / edge_slack
    stiffness = multiplier / slack
    d, s = _directions(programme, curvature, stiffness, right_d, right_s, norm)
    move_slack = jnp.sum(rows * d[:, None, :], axis=2) + gaps.gap
    move_edge = sign_d * d[None] + sign_s * s[None] + gaps.edge_gap
    wanted = (aim - multiplier * move_slack) / slack
    edge_wanted = (edge_aim - edge_multiplier * move_edge) / edge_slack
    return _State(
        d=d,
        s=s,
        slack=move_slack,
        multiplier=wanted - multiplier,
        edge_slack=move_edge,
        edge_multiplier=edge_wanted - edge_multiplier,
    )


def _missing(
    programme: _Programme,
    state: _State,
    gaps: _Gaps,
    cost_d: Array,
    cost_s: Array,
    length: Array,
    norm: str,
) -> Array:
    """What a step of that length leaves of the unbalanced cost and of the gaps, (m,)."""
    rows, _, _, sign_d, sign_s = programme
    # How far the multipliers are from balancing the cost.
    unbalanced = cost_d - jnp.sum(sign_d * state.edge_multiplier, axis=0)
    unbalanced = unbalanced - jnp.sum(rows * state.multiplier[:, :, None], axis=1)
    left = 1 - length
    unmet = left * jnp.abs(unbalanced).sum(1)
    if norm != "l2":
        unbalanced_s = cost_s - jnp.sum(sign_s * state.edge_multiplier, axis=0)
        if norm == "linf":
            unbalanced_s = jnp.sum(unbalanced_s, axis=1, keepdims=True)
        unmet = unmet + left * jnp.abs(unbalanced_s).sum(1)
    widest = jnp.abs(gaps.gap).max(1)
    edge_widest = jnp.abs(gaps.edge_gap).max((0, 2), initial=0)
    return unmet + left * (widest + edge_widest)


def _longest(value: Array, move: Array, edge_value: Array, edge_move: Array) -> Array:
    """How much of a move, at most all of it, keeps what must stay positive so, (m,)."""
    share = (-move / value).max(1)
    edge_share = (-edge_move / edge_value).max((0, 2), initial=0)
    share = jnp.maximum(share, edge_share)
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
