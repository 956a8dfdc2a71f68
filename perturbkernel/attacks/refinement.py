"""How `boundary` searches one row: closer and closer points beyond the boundary, and a bracket."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from perturbkernel.attacks.norms import Box, clip, headroom, lengths, rank, reach, shorten

_LINE = 5  # values along a line, for every gradient
_SHRINK = 4.0  # of a step that does not get closer
# Times the scale of the data: the longest first step into the unknown. Later ones double.
_FAR = 10.0


def path(p: Array, order: Array, t: Array, norm: str, box: Box) -> Array:
    """From 0 at t = 0 to p at t = 1: t p, or for l0 the first entries of p in their order."""
    if norm == "l0":
        return jnp.where(order.astype(t.dtype) < jnp.ceil(t * lengths(p, "l0"))[:, None], p, 0)
    return clip(t[:, None] * p, box)


def _order(score: Array, p: Array) -> Array:
    """The order in which the entries of p are kept: the largest score first, entries that are 0
    last.
    """
    return rank(jnp.where(p != 0, jnp.abs(score), -1.0))


def refine(
    evaluate: Callable,
    nearest_beyond: Callable,
    value: Callable,
    start: Array,
    at_zero: Array,
    scale: Array,
    norm: str,
    box: Box,
    steps,
    tolerance,
):
    """Closer and closer points beyond the boundary, from the perturbation `start`: (delta, order,
    size), inf if none.

    Until one is found: to the nearest point of the linearised boundary; where that is not beyond,
    Euclidean steps to the boundary from point to point; each also twice, four times as far, and so
    on. From then on the gradient at the boundary gives the nearest point of the linearised
    boundary; a part of the way there, as much as gets closer, and back along the line from the
    input to the boundary.

    Args:
        evaluate: delta -> how far beyond the boundary (m,), gradient (m, d), whether that is zero.
        nearest_beyond: (delta, those three) -> the smallest perturbation beyond the boundary of the
            predictor linearised at delta.
        value: delta -> how far beyond the boundary.
        start, at_zero: where to begin, (m, d), and the value at 0.
        scale: (m,), of the data, in the norm; a step into the unknown is at most so many times as
            long as it is likely to make sense.
    """

    def body(carry):
        i, delta, order, size, part, _ = carry
        found = jnp.isfinite(size)
        gap, g, zero = evaluate(delta)
        still = zero | (gap > 0)
        nearest = jnp.where(zero[:, None], 0, nearest_beyond(delta, gap, g))
        # Beyond the linearised boundary: where the first step falls short, more so from step to
        # step.
        outward = jnp.where(
            still[:, None], 0, reach(g, jnp.maximum(-gap, 0) * (1.02 + 0.1 * i), "l2")
        )
        if norm != "l0":
            furthest = _FAR * scale * 2.0**i
            nearest = jnp.where(found[:, None], nearest, shorten(nearest, furthest[:, None], norm))
            outward = shorten(outward, furthest[:, None], norm)
        own = ((i == 0) & ~still)[:, None]
        limit = size * (1 - tolerance / 4)

        def proposal(j, part):
            if norm == "l0":
                score = jnp.abs(g) * headroom(g, box) * jnp.where(delta != 0, 1 / part[:, None], 1)
                corner = jnp.sign(g) * headroom(g, box)
                moved = jnp.where(delta != 0, delta + part[:, None] * (corner - delta), corner)
                here = jnp.where(rank(score).astype(size.dtype) < size[:, None] - 1, moved, 0)
            else:
                here = delta + part[:, None] * (nearest - delta)
                length = lengths(here, norm)
                here = clip(here * (limit / jnp.where(length > 0, length, 1))[:, None], box)
                score = here
            there = clip(
                2.0**j * jnp.where(own, 1.02 * nearest, outward) + jnp.where(own, 0, delta), box
            )
            p = jnp.where(found[:, None], here, there)
            return p, _order(
                jnp.where(found[:, None], score, g * there), p
            ) if norm == "l0" else order

        def line(j, carry):
            p, order, part, hit, low, high, gap_low, gap_high = carry
            new, new_order = proposal(j, part)
            p = jnp.where(hit[:, None], p, new)
            order = jnp.where(hit[:, None], order, new_order)
            share = -gap_low / (gap_high - gap_low) if norm != "l0" else jnp.full_like(low, 0.5)
            t = jnp.where(hit, low + (high - low) * jnp.clip(share, 0.02, 0.98), 1.0)
            here = value(path(p, order, t, norm, box))
            beyond = here > 0
            # Illinois: the end that stays is given half its weight.
            gap_low, gap_high = (
                jnp.where(hit & beyond, gap_low / 2, jnp.where(hit, here, gap_low)),
                jnp.where(beyond, here, jnp.where(hit, gap_high / 2, gap_high)),
            )
            low, high = jnp.where(hit & ~beyond, t, low), jnp.where(beyond, t, high)
            part = jnp.where(hit | beyond | ~found, part, part / _SHRINK)
            return p, order, part, hit | beyond, low, high, gap_low, gap_high

        none = jnp.zeros_like(size)
        begin = delta, order, part, none > 0, none, none + 1, at_zero, none + 1
        p, p_order, part, hit, _, high, _, _ = lax.fori_loop(0, _LINE, line, begin)
        closer = path(p, p_order, high, norm, box)
        first_step = jnp.where(own, delta, clip(delta + outward, box))
        stationary = (
            found & (size - lengths(nearest, norm) <= tolerance * size)
            if norm != "l0"
            else size <= 1
        )
        delta = jnp.where(hit[:, None], closer, jnp.where(found[:, None], delta, first_step))
        order = jnp.where(hit[:, None], p_order, order)
        size = jnp.where(hit, lengths(closer, norm), size)
        part = jnp.where(hit, jnp.minimum(1, 2 * part), part)
        return (
            i + 1,
            delta,
            order,
            size,
            part,
            (stationary & ~hit) | (part < tolerance) | (at_zero >= 0),
        )

    size = jnp.full(len(start), jnp.inf, start.dtype)
    order = jnp.zeros(start.shape if norm == "l0" else (len(start), 1), int)
    begin = 0, start, order, size, jnp.ones_like(size), at_zero >= 0
    _, delta, order, size, _, _ = lax.while_loop(
        lambda carry: (carry[0] < steps) & ~carry[-1].all(), body, begin
    )
    return delta, order, size


def bracket(value: Callable, p: Array, order: Array, wanted: Array, norm: str, box: Box, tolerance):
    """(outside, inside): two points of the path to p, beyond the boundary and short of it, by
    bisection, where wanted.

    They differ by `tolerance` of their size, or one entry. What is in between is cut down to a
    third, and widened on both sides: a value that rounds differently elsewhere has the same sign.
    """
    one = jnp.ones(len(p), p.dtype)
    allowed = 0.99 / jnp.maximum(lengths(p, "l0"), 1) if norm == "l0" else tolerance / 3 * one

    def wide(low, high):
        return wanted & (high - low > (allowed if norm == "l0" else allowed * high))

    def narrow(carry):
        i, low, high = carry
        t = (low + high) / 2
        beyond = value(path(p, order, t, norm, box)) > 0
        low, high = (
            jnp.where(wide(low, high) & ~beyond, t, low),
            jnp.where(wide(low, high) & beyond, t, high),
        )
        return i + 1, low, high

    def unfinished(carry):
        i, low, high = carry
        return (i < 60) & jnp.any(wide(low, high))

    _, low, high = lax.while_loop(unfinished, narrow, (0, 0 * one, one))
    if norm != "l0":
        width = high - low

        def widen(side, carry):
            low, high = carry
            t = jnp.where(side == 0, high + width, low - width)
            beyond = value(path(p, order, t, norm, box)) > 0
            return jnp.where((side == 1) & ~beyond & (t > 0), t, low), jnp.where(
                (side == 0) & beyond, t, high
            )

        low, high = lax.fori_loop(0, 2, widen, (low, high))
    return path(p, order, high, norm, box), path(p, order, low, norm, box)
