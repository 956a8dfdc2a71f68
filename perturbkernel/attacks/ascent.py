"""Projected steepest ascent in the ball of a norm, cut by a box: the iteration of `attacks`."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from perturbkernel.attacks.boxes import Box
from perturbkernel.attacks.crossings import or_one, where_rows
from perturbkernel.attacks.norms import lengths, normalise, project, steepest


class Settings(NamedTuple):
    """The numbers are arrays: another value is no other program."""

    size: Array
    steps: Array
    step_size: Array | None
    momentum: Array


class Evaluation(NamedTuple):
    """What is increased at m perturbations.

    Attributes:
        gain: (m,). gradient: (m, d).
        zero, finite: (m,), whether the gradient is.
    """

    gain: Float[Array, " m"]
    gradient: Float[Array, "m d"]
    zero: Bool[Array, " m"]
    finite: Bool[Array, " m"]


class _Climb(NamedTuple):
    """One start: where it is, and what was found so far.

    Attributes:
        delta, velocity: (m, d).
        best, largest: the best iterate of all starts, (m, d), and its gain, (m,).
        zero, finite: (m,), of the gradient at 0.
    """

    delta: Array
    velocity: Array
    best: Array
    largest: Array
    zero: Array
    finite: Array


def share_left(k: Array | int, steps: Array) -> Array:
    """(1 + cos(pi k / steps)) / 2, from 1 at the first step to 0 after the last.

    Example:
        >>> float(share_left(0, jnp.asarray(4)))
        1.0
    """
    done = jnp.asarray(k).astype(float)
    progress = done / steps.astype(float)
    return (1 + jnp.cos(jnp.pi * progress)) / 2


def ascend(
    evaluate: Callable,
    first_step: Callable,
    draw: Callable,
    like: Float[Array, "m d"],
    box: Box,
    norm: str,
    once: bool,
    starts: Array,
    settings: Settings,
) -> tuple[Float[Array, "m d"], Bool[Array, " m"], Bool[Array, " m"]]:
    """The best of the iterates of all starts, and whether the gradient at 0 is zero, and finite.

    Args:
        evaluate: (delta, share of the steps that is left) -> Evaluation.
        first_step: gradient at 0 -> the best step from there to first order, (m, d).
        draw: number of a start -> where it begins, (m, d); start 0 begins at 0.
        like: an array of the shape and dtype of the perturbations.
        once: a single step, which is returned whatever it gains.
    """
    size, steps, step_size, momentum = settings
    unit = _longest_step(like, size, norm, box)
    nowhere = jnp.zeros_like(like)

    def one_step(start, k, climb: _Climb) -> _Climb:
        share = share_left(k, steps).astype(like.dtype)
        here = evaluate(climb.delta, share)
        from_input = start == 0
        first = from_input & (k == 0)
        zero = jnp.where(first, here.zero, climb.zero)
        finite = jnp.where(first, here.finite, climb.finite)
        better = here.gain > climb.largest
        best = where_rows(better, climb.delta, climb.best)
        largest = jnp.where(better, here.gain, climb.largest)
        total = jnp.abs(here.gradient).sum(1, keepdims=True)
        velocity = momentum * climb.velocity + here.gradient / or_one(total)
        direction = normalise(velocity, "linf" if norm == "linf" else "l2")
        length = 2 * share * unit if step_size is None else step_size
        moved = project(climb.delta + length * direction, size, norm, box)
        if step_size is None:
            moved = lax.cond(first, lambda: first_step(here.gradient), lambda: moved)
        moved = where_rows(zero & from_input, 0, moved)
        return _Climb(
            delta=moved,
            velocity=velocity,
            best=best,
            largest=largest,
            zero=zero,
            finite=finite,
        )

    def one_start(start, climb: _Climb) -> _Climb:
        drawn = draw(start)
        begin = jnp.where(start == 0, 0, drawn)
        climb = climb._replace(delta=begin, velocity=nowhere)
        # One gradient more than steps, which evaluates the last iterate.
        return lax.fori_loop(0, steps + 1, lambda k, climb: one_step(start, k, climb), climb)

    none = jnp.zeros(len(like), bool)
    climb = _Climb(
        delta=nowhere,
        velocity=nowhere,
        best=nowhere,
        largest=jnp.full(len(like), -jnp.inf, like.dtype),
        zero=none,
        finite=~none,
    )
    if once:
        start = jnp.asarray(0)
        climb = one_step(start, start, climb)
        return climb.delta, climb.zero, climb.finite
    climb = lax.fori_loop(0, starts, one_start, climb)
    return climb.best, climb.zero, climb.finite


def _longest_step(like: Array, size: Array, norm: str, box: Box) -> Array:
    """(m, 1), the length of the longest step that the ball holds."""
    if box is None or norm in ("l2", "linf"):
        ones = jnp.ones((len(like), 1), like.dtype)
        return ones * size
    low, high = box
    furthest = jnp.where(high >= -low, high, low)
    longest = steepest(furthest, size, norm, box)
    length = lengths(longest, "l2")
    return length[:, None]
