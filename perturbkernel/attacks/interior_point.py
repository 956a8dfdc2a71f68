"""The interior-point method behind `halfspaces`: a few half-spaces, in a norm and a box.

Its systems have one unknown for each half-space, whatever the number of entries.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from perturbkernel.arrays import or_one
from perturbkernel.attacks.crossings import where_rows

_STEPS = 80  # of Newton's method; it takes 20 to 40
_CENTRING = 0.2  # complementarity aimed at, of what there is
_BOUNDARY = 0.8  # of the way to the boundary at most
_ACCURACY = 1e-6  # of the cost, and of the constraints, in units of the farthest half-space


class Programme(NamedTuple):
    """min cost(d, s) such that rows d >= least, and sign_d d + sign_s s >= edges, entry by entry.

    What is minimised: "largest" (linf): s is one number a row, |d_i| <= s, and the cost; "sum"
    (l1): s is one an entry, |d_i| <= s_i, and the cost its sum; "squares" (l2): s has no part, and
    the cost is |d|^2 / 2.

    Attributes:
        rows: (m, r, d), scaled to dual norm 1. least: (m, r), scaled such that the largest is 1.
        edges: (k, m, d), of the k constraints on every entry. sign_d, sign_s: (k, 1, 1).
    """

    rows: Array
    least: Array
    edges: Array
    sign_d: Array
    sign_s: Array

    def edge_values(self, d: Array, s: Array) -> Array:
        """sign_d d + sign_s s, (k, m, d)."""
        return self.sign_d * d[None] + self.sign_s * s[None]


class State(NamedTuple):
    """d (m, d), s (m, d), and slacks and multipliers of both kinds, (m, r) and (k, m, d)."""

    d: Array
    s: Array
    slack: Array
    multiplier: Array
    edge_slack: Array
    edge_multiplier: Array


class _Gaps(NamedTuple):
    """How far the constraints are from their slacks, and the products aimed at.

    Attributes:
        gap, edge_gap: of both kinds of constraints, (m, r) and (k, m, d).
        aim: (m,), what every product of slack and multiplier shall be.
    """

    gap: Array
    edge_gap: Array
    aim: Array


class _Cost(NamedTuple):
    """The gradients of the cost in d and in s, (m, d) each."""

    d: Array
    s: Array


class _Curvature(NamedTuple):
    """The second derivatives of the barrier in d and s, entry by entry, (m, d) each.

    Sums of what carries the sign of s (|d| <= s), and of the rest (box, cost), are kept apart: the
    difference of their products, which the elimination of s needs, is then a sum.

    Attributes:
        free: in d, of the rest. tied: in d and in s, of what carries the sign of s.
        cross: in d and s together.
        both: tied^2 - cross^2.
    """

    free: Array
    tied: Array
    cross: Array
    both: Array


def solve(programme: Programme, minimised: str) -> State:
    """The last state of every row whose numbers were finite."""
    state = _first(programme, minimised)

    def unfinished(carry):
        i, _, done = carry
        return (i < _STEPS) & ~done.all()

    def step(carry):
        i, state, done = carry
        new, remaining = _newton_step(programme, state, minimised)
        finite = jnp.isfinite(remaining)
        keep = done | ~finite
        state = jax.tree.map(lambda old, fresh: _select(keep, old, fresh), state, new)
        arrived = remaining < _ACCURACY
        return i + 1, state, keep | arrived

    none = jnp.zeros(len(state.d), bool)
    _, state, _ = lax.while_loop(unfinished, step, (0, state, none))
    return state


def _first(programme: Programme, minimised: str) -> State:
    """Slacks of the size of the solution; all products of slack and multiplier are equal."""
    m, count, entries = programme.rows.shape
    dtype = programme.rows.dtype
    share = 1
    if minimised == "sum":
        share = 1 / entries
    s = jnp.full((m, entries), share, dtype)
    room = programme.sign_s * s[None] - programme.edges
    edge_slack = jnp.maximum(room, 0.1 * s[None])
    slack = jnp.ones((m, count), dtype)
    product = 0.5 / entries
    return State(
        d=jnp.zeros((m, entries), dtype),
        s=s,
        slack=slack,
        multiplier=product / slack,
        edge_slack=edge_slack,
        edge_multiplier=product / edge_slack,
    )


def _select(keep: Array, old: Array, fresh: Array) -> Array:
    """Row by row; the rows are the last axis but one of all arrays but slacks."""
    if old.ndim == 2:
        return where_rows(keep, old, fresh)
    return jnp.where(keep[None, :, None], old, fresh)


def _newton_step(programme: Programme, state: State, minimised: str) -> tuple[State, Array]:
    """One step of Newton's method, and what remains after it, (m,).

    It goes toward the point where all products of slack and multiplier are a fifth of what they
    are. What remains are the products, and how far the constraints are from their slacks.
    """
    gaps = _gaps(programme, state)
    cost = _cost(state, minimised)
    move = _move(programme, state, gaps, cost, minimised)
    length = jnp.minimum(
        _longest(state.slack, move.slack, state.edge_slack, move.edge_slack),
        _longest(state.multiplier, move.multiplier, state.edge_multiplier, move.edge_multiplier),
    )
    new = _moved(state, move, length)
    missing = _missing(programme, state, gaps, cost, length, minimised)
    return new, _complementarity(new) + missing


def _moved(state: State, move: State, length: Array) -> State:
    """The state after so much of a move, (m,)."""
    share = length[:, None]
    edge_share = length[None, :, None]
    return State(
        d=state.d + share * move.d,
        s=state.s + share * move.s,
        slack=state.slack + share * move.slack,
        multiplier=state.multiplier + share * move.multiplier,
        edge_slack=state.edge_slack + edge_share * move.edge_slack,
        edge_multiplier=state.edge_multiplier + edge_share * move.edge_multiplier,
    )


def _complementarity(state: State) -> Array:
    """The sum of all products of slack and multiplier, (m,)."""
    products = state.slack * state.multiplier
    edge_products = state.edge_slack * state.edge_multiplier
    return jnp.sum(products, 1) + jnp.sum(edge_products, (0, 2))


def _gaps(programme: Programme, state: State) -> _Gaps:
    constraints, _, entries = state.edge_slack.shape
    half_spaces = state.slack.shape[1]
    count = half_spaces + constraints * entries
    aim = _CENTRING * _complementarity(state) / count
    reached = products(programme.rows, state.d)
    edge_reached = programme.edge_values(state.d, state.s)
    return _Gaps(
        gap=reached - programme.least - state.slack,
        edge_gap=edge_reached - programme.edges - state.edge_slack,
        aim=aim,
    )


def _cost(state: State, minimised: str) -> _Cost:
    d = state.d
    ones = jnp.ones_like(d)
    if minimised == "squares":
        return _Cost(d, ones)
    zeros = jnp.zeros_like(d)
    if minimised == "largest":
        return _Cost(zeros, ones / d.shape[1])  # of the one s, which every entry repeats
    return _Cost(zeros, ones)  # the sum


def _move(
    programme: Programme,
    state: State,
    gaps: _Gaps,
    cost: _Cost,
    minimised: str,
) -> State:
    """The whole Newton step."""
    slack = state.slack
    multiplier = state.multiplier
    edge_slack = state.edge_slack
    edge_multiplier = state.edge_multiplier
    aim = gaps.aim[:, None]
    edge_aim = gaps.aim[None, :, None]
    pull = (aim - multiplier * gaps.gap) / slack
    edge_pull = (edge_aim - edge_multiplier * gaps.edge_gap) / edge_slack
    right_d = jnp.sum(programme.sign_d * edge_pull, axis=0) - cost.d
    right_d = right_d + _combined(programme.rows, pull)
    right_s = jnp.sum(programme.sign_s * edge_pull, axis=0) - cost.s
    curvature = _curvature(programme, edge_multiplier / edge_slack, minimised)
    stiffness = multiplier / slack
    d, s = _directions(programme.rows, curvature, stiffness, right_d, right_s, minimised)
    move_slack = products(programme.rows, d) + gaps.gap
    move_edge = programme.edge_values(d, s) + gaps.edge_gap
    wanted = (aim - multiplier * move_slack) / slack
    edge_wanted = (edge_aim - edge_multiplier * move_edge) / edge_slack
    return State(
        d=d,
        s=s,
        slack=move_slack,
        multiplier=wanted - multiplier,
        edge_slack=move_edge,
        edge_multiplier=edge_wanted - edge_multiplier,
    )


def _missing(
    programme: Programme,
    state: State,
    gaps: _Gaps,
    cost: _Cost,
    length: Array,
    minimised: str,
) -> Array:
    """What a step of that length leaves of the unbalanced cost and of the gaps, (m,)."""
    # How far the multipliers are from balancing the cost.
    unbalanced = cost.d - jnp.sum(programme.sign_d * state.edge_multiplier, axis=0)
    unbalanced = unbalanced - _combined(programme.rows, state.multiplier)
    left = 1 - length
    unmet = left * jnp.abs(unbalanced).sum(1)
    if minimised != "squares":
        unbalanced_s = cost.s - jnp.sum(programme.sign_s * state.edge_multiplier, axis=0)
        if minimised == "largest":
            unbalanced_s = jnp.sum(unbalanced_s, axis=1, keepdims=True)
        unmet = unmet + left * jnp.abs(unbalanced_s).sum(1)
    widest = jnp.abs(gaps.gap).max(1)
    edge_widest = jnp.abs(gaps.edge_gap).max((0, 2), initial=0)
    return unmet + left * (widest + edge_widest)


def _longest(value: Array, move: Array, edge_value: Array, edge_move: Array) -> Array:
    """How much of a move, at most all of it, keeps what must stay positive so, (m,)."""
    share = -move / value
    edge_share = -edge_move / edge_value
    largest = share.max(1)
    edge_largest = edge_share.max((0, 2), initial=0)
    largest = jnp.maximum(largest, edge_largest)
    return _BOUNDARY / jnp.maximum(largest, _BOUNDARY)


def _curvature(programme: Programme, curvature: Array, minimised: str) -> _Curvature:
    """From the curvature of every constraint on an entry, (k, m, d)."""
    sign_s = jnp.abs(programme.sign_s)
    tied = sign_s * curvature
    free = jnp.sum(curvature - tied, axis=0)
    total = jnp.sum(tied, axis=0)
    cross = jnp.sum(programme.sign_d * tied, axis=0)
    if minimised == "squares":
        # The cost's own is 1.
        free = free + 1
        return _Curvature(free, total, cross, 0 * free)
    both = 4 * jnp.prod(tied, axis=0, where=sign_s > 0)
    return _Curvature(free, total, cross, both)


def _directions(
    rows: Array,
    curvature: _Curvature,
    stiffness: Array,
    right_d: Array,
    right_s: Array,
    minimised: str,
) -> tuple[Array, Array]:
    """How d and s move: the solution of the Newton system, reduced to one unknown a half-space."""
    free, tied, cross, both = curvature
    safe_s = or_one(tied)
    if minimised == "sum":
        diagonal = free + both / safe_s
        right_d = right_d - cross / safe_s * right_s
    else:
        diagonal = free + tied
    inverse = 1 / diagonal
    weighted = rows * inverse[:, None, :]
    system = jnp.einsum("mrd,mqd->mrq", weighted, rows, precision=lax.Precision.HIGHEST)
    unit = jnp.eye(rows.shape[1], dtype=rows.dtype)
    system = system + unit[None] / stiffness[:, :, None]
    answer = products(weighted, right_d)
    if minimised == "largest":
        border = products(weighted, cross)
        corner = (both + free * tied) * inverse
        last = cross * inverse * right_d - right_s
        system = _bordered(system, border, -jnp.sum(corner, axis=1))
        last = jnp.sum(last, axis=1)
        answer = jnp.concatenate([answer, last[:, None]], axis=1)
    solution = jnp.linalg.solve(system, answer[:, :, None])
    solution = solution[:, :, 0]
    force = solution[:, : rows.shape[1]]
    move_s = jnp.zeros_like(right_d)
    if minimised == "largest":
        move_s = jnp.broadcast_to(solution[:, -1:], right_d.shape)
        right_d = right_d - cross * move_s
    move_d = inverse * (right_d - _combined(rows, force))
    if minimised == "sum":
        move_s = (right_s - cross * move_d) / safe_s
    return move_d, move_s


def _bordered(system: Array, border: Array, corner: Array) -> Array:
    """The systems (m, r, r) with one more row and column, `border` (m, r) and `corner` (m,)."""
    column = border[:, :, None]
    top = jnp.concatenate([system, column], axis=2)
    last = jnp.concatenate([border, corner[:, None]], axis=1)
    below = last[:, None, :]
    return jnp.concatenate([top, below], axis=1)


def products(rows: Array, d: Array) -> Array:
    """<rows_r, d>, (m, r).

    Example:
        >>> products(jnp.ones((1, 2, 3)), jnp.asarray([[1.0, 2.0, 3.0]])).tolist()
        [[6.0, 6.0]]
    """
    return jnp.sum(rows * d[:, None, :], axis=2)


def _combined(rows: Array, weights: Array) -> Array:
    """sum_r weights_r rows_r, (m, d)."""
    return jnp.sum(rows * weights[:, :, None], axis=1)
