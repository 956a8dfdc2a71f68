"""Projected steepest ascent in the ball of a norm, cut by a box: the iteration of `attacks`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from perturbkernel.arrays import as_jax, namespace, on_host
from perturbkernel.attacks.boxes import Box
from perturbkernel.attacks.crossings import or_one, where_rows
from perturbkernel.attacks.host import part
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


@part("dtype")
def share_left(k: Array | int, steps: Array, dtype: Any) -> Array:
    """(1 + cos(pi k / steps)) / 2, from 1 at the first step to 0 after the last.

    Example:
        >>> float(share_left(0, jnp.asarray(4), jnp.float32))
        1.0
    """
    done = jnp.asarray(k).astype(float)
    progress = done / steps.astype(float)
    share = (1 + jnp.cos(jnp.pi * progress)) / 2
    return share.astype(dtype)


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
    steps = settings.steps

    def one_step(start, k, climb: _Climb) -> _Climb:
        share = share_left(k, steps, like.dtype)
        here = evaluate(climb.delta, share)
        climb = _moved(climb, here, start, k, share, settings, norm, box)
        if settings.step_size is not None:
            return climb
        first = _is_first(start, k)
        moved = lax.cond(first, lambda: first_step(here.gradient), lambda: climb.delta)
        return climb._replace(delta=_unless_zero(climb.zero, start, moved))

    def one_start(start, climb: _Climb) -> _Climb:
        climb = _begun(climb, draw(start), start)
        # One gradient more than steps, which evaluates the last iterate.
        return lax.fori_loop(0, steps + 1, lambda k, climb: one_step(start, k, climb), climb)

    climb = _nowhere(like)
    if once:
        start = jnp.asarray(0)
        climb = one_step(start, start, climb)
        return climb.delta, climb.zero, climb.finite
    climb = lax.fori_loop(0, starts, one_start, climb)
    return climb.best, climb.zero, climb.finite


def _nowhere(like: Array) -> _Climb:
    like = on_host(like)
    xp = namespace(like)
    zeros = xp.zeros_like(like)
    least = xp.full(len(like), -xp.inf, like.dtype)
    none = xp.zeros(len(like), bool)
    zeros, least, none, finite = map(as_jax, (zeros, least, none, ~none))
    return _Climb(
        delta=zeros,
        velocity=zeros,
        best=zeros,
        largest=least,
        zero=none,
        finite=finite,
    )


def _begun(climb: _Climb, drawn: Array, start: Array) -> _Climb:
    """Where a start begins: start 0 at 0."""
    drawn = on_host(drawn)
    xp = namespace(drawn)
    begin = xp.where(start == 0, 0, drawn)
    velocity = xp.zeros_like(drawn)
    return climb._replace(delta=as_jax(begin), velocity=as_jax(velocity))


def _is_first(start: Array, k: Array) -> Array:
    """Whether this is the step from the input."""
    return (start == 0) & (k == 0)


def _unless_zero(zero: Array, start: Array, moved: Array) -> Array:
    """`moved`, but 0 from an input where the gradient is zero."""
    zero, moved = on_host(zero, moved)
    stays = zero & (start == 0)
    return as_jax(namespace(moved).where(stays[:, None], 0, moved))


@part("norm")
def _moved(
    climb: _Climb,
    here: Evaluation,
    start: Array,
    k: Array,
    share: Array,
    settings: Settings,
    norm: str,
    box: Box,
) -> _Climb:
    """After a step along the gradient, and the best so far."""
    size, _, step_size, momentum = settings
    first = _is_first(start, k)
    zero = jnp.where(first, here.zero, climb.zero)
    better = here.gain > climb.largest
    total = jnp.abs(here.gradient).sum(1, keepdims=True)
    velocity = momentum * climb.velocity + here.gradient / or_one(total)
    direction = normalise(velocity, "linf" if norm == "linf" else "l2")
    length = step_size
    if length is None:
        length = 2 * share * _longest_step(climb.delta, size, norm, box)
    moved = project(climb.delta + length * direction, size, norm, box)
    return _Climb(
        delta=_unless_zero(zero, start, moved),
        velocity=velocity,
        best=where_rows(better, climb.delta, climb.best),
        largest=jnp.where(better, here.gain, climb.largest),
        zero=zero,
        finite=jnp.where(first, here.finite, climb.finite),
    )


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
