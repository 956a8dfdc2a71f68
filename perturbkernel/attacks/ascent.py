"""Projected steepest ascent in the ball of a norm, cut by a box: the iteration of `attacks`.

Steps shrink by a fixed rule, or are halved where they do not help, as in Auto-PGD (Croce and Hein,
ICML 2020).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from perturbkernel.arrays import as_jax, namespace, on_host, or_one
from perturbkernel.attacks.boxes import Box
from perturbkernel.attacks.crossings import where_rows
from perturbkernel.attacks.host import part
from perturbkernel.attacks.norms import longest_step, normalise, project

# Of Auto-PGD. Checkpoints in % of the steps: .22, then intervals shorter by .03, at least .06.
_CHECKPOINTS = (22, 41, 57, 70, 80, 87, 93, 99)
_RISES = 3, 4  # of the steps between two checkpoints, at least: else the step is halved
_STEP = 0.75  # weight of a step; the rest is that of the move before


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


class _Pace(NamedTuple):
    """What halves steps: the course of one start.

    Attributes:
        length: (m, 1), of a step.
        before, best, gradient: (m, d), the iterate before, the best one, and the gradient there.
        gain_before, largest: (m,), of `before` and of `best`.
        largest_then: (m,), `largest` at the last checkpoint.
        rises: (m,), steps since then that gained.
        halved: (m,), whether the step was then.
    """

    length: Array
    before: Array
    best: Array
    gradient: Array
    gain_before: Array
    largest: Array
    largest_then: Array
    rises: Array
    halved: Array


class _Climb(NamedTuple):
    """One start: where it is, and what was found so far.

    Attributes:
        delta, velocity: (m, d).
        best, largest: the best iterate of all starts, (m, d), and its gain, (m,).
        zero, finite: (m,), of the gradient at 0.
        pace: of a start whose steps are halved.
    """

    delta: Array
    velocity: Array
    best: Array
    largest: Array
    zero: Array
    finite: Array
    pace: _Pace | None = None


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
    halving: bool = False,
) -> tuple[Float[Array, "m d"], Bool[Array, " m"], Bool[Array, " m"]]:
    """The best of the iterates of all starts, and whether the gradient at 0 is zero, and finite.

    Args:
        evaluate: (delta, share of the steps that is left) -> Evaluation.
        first_step: gradient at 0 -> the best step from there to first order, (m, d).
        draw: number of a start -> where it begins, (m, d); start 0 begins at 0.
        like: an array of the shape and dtype of the perturbations.
        once: a single step, which is returned whatever it gains.
        halving: steps are halved as in Auto-PGD; without a step size and momentum.
    """
    steps = settings.steps

    def one_step(start, k, climb: _Climb) -> _Climb:
        share = share_left(k, steps, like.dtype)
        here = evaluate(climb.delta, share)
        if halving:
            climb = _paced(climb, here, start, k, settings, norm, box)
        else:
            climb = _moved(climb, here, start, k, share, settings, norm, box)
        if settings.step_size is not None:
            return climb
        first = _is_first(start, k)
        moved = lax.cond(first, lambda: first_step(here.gradient), lambda: climb.delta)
        return climb._replace(delta=_unless_zero(climb.zero, start, moved))

    def one_start(start, climb: _Climb) -> _Climb:
        climb = _begun(climb, draw(start), start)
        if halving:
            climb = climb._replace(pace=_first_pace(climb.delta, settings.size, norm, box))
        # One gradient more than steps, which evaluates the last iterate.
        return lax.fori_loop(0, steps + 1, lambda k, climb: one_step(start, k, climb), climb)

    climb = _nowhere(like)
    if halving:
        climb = climb._replace(pace=_first_pace(climb.delta, settings.size, norm, box))
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
    total = jnp.abs(here.gradient).sum(1, keepdims=True)
    velocity = momentum * climb.velocity + here.gradient / or_one(total)
    direction = normalise(velocity, norm)
    length = step_size
    if length is None:
        length = 2 * share * longest_step(climb.delta, size, norm, box)
    moved = project(climb.delta + length * direction, size, norm, box)
    climb = _recorded(climb, here, start, k)
    return climb._replace(delta=_unless_zero(climb.zero, start, moved), velocity=velocity)


def _recorded(climb: _Climb, here: Evaluation, start: Array, k: Array) -> _Climb:
    """The best so far, and what the gradient is at 0."""
    first = _is_first(start, k)
    better = here.gain > climb.largest
    return climb._replace(
        best=where_rows(better, climb.delta, climb.best),
        largest=jnp.where(better, here.gain, climb.largest),
        zero=jnp.where(first, here.zero, climb.zero),
        finite=jnp.where(first, here.finite, climb.finite),
    )


@part("norm")
def _first_pace(delta: Array, size: Array, norm: str, box: Box) -> _Pace:
    least = jnp.full(len(delta), -jnp.inf, delta.dtype)
    none = jnp.zeros(len(delta), bool)
    return _Pace(
        length=2 * longest_step(delta, size, norm, box),
        before=delta,
        best=delta,
        gradient=jnp.zeros_like(delta),
        gain_before=-least,  # where a start begins is no rise
        largest=least,
        largest_then=least,
        rises=jnp.zeros(len(delta), int),
        halved=none,
    )


@part("norm")
def _paced(
    climb: _Climb,
    here: Evaluation,
    start: Array,
    k: Array,
    settings: Settings,
    norm: str,
    box: Box,
) -> _Climb:
    """After a step whose length is halved at checkpoints, from the best so far where it is."""
    pace = climb.pace
    assert pace is not None
    better = here.gain > pace.largest
    best = where_rows(better, climb.delta, pace.best)
    gradient = where_rows(better, here.gradient, pace.gradient)
    largest = jnp.where(better, here.gain, pace.largest)
    gained = here.gain > pace.gain_before
    rises = pace.rises + gained.astype(pace.rises.dtype)
    checkpoint, since = _checkpoint(k, settings.steps)
    stalled = ~pace.halved & (largest <= pace.largest_then)
    wanted, of = _RISES
    few = of * rises < wanted * since
    halves = checkpoint & (stalled | few)
    length = jnp.where(halves[:, None], pace.length / 2, pace.length)
    origin = where_rows(halves, best, climb.delta)
    before = where_rows(halves, best, pace.before)
    direction = normalise(where_rows(halves, gradient, here.gradient), norm)
    stepped = project(origin + length * direction, settings.size, norm, box)
    carried = origin + _STEP * (stepped - origin) + (1 - _STEP) * (origin - before)
    carried = project(carried, settings.size, norm, box)
    moved = jnp.where(k == 0, stepped, carried)
    climb = _recorded(climb, here, start, k)
    pace = _Pace(
        length=length,
        before=origin,
        best=best,
        gradient=gradient,
        gain_before=jnp.where(halves, largest, here.gain),
        largest=largest,
        largest_then=jnp.where(checkpoint, largest, pace.largest_then),
        rises=jnp.where(checkpoint, 0, rises),
        halved=jnp.where(checkpoint, halves, pace.halved),
    )
    return climb._replace(delta=_unless_zero(climb.zero, start, moved), pace=pace)


def _checkpoint(k: Array, steps: Array) -> tuple[Array, Array]:
    """Whether step k is a checkpoint, and how many steps there were since the last."""
    percent = jnp.asarray(_CHECKPOINTS)
    places = -(-percent * steps // 100)
    last = jnp.max(jnp.where(places < k, places, 0))
    return jnp.any(places == k), k - last
