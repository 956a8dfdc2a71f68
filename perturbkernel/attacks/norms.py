"""The geometry of the norms l2, linf, l1 and l0: steepest steps, projections, nearest points of a
half-space, in a box.

Rows are flat, (m, d), and treated one by one. A box low <= d <= high holds 0; without one it is all
of space. Every answer is exact to rounding: each is a one-parameter family, and its parameter
solves an equation that is piecewise linear between sorted break points (`crossings`).

A norm is one record in the table at the end, which says all that the attacks ask of it: no other
module of theirs knows a norm by its name.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perturbkernel.arrays import as_jax, namespace, on_host
from perturbkernel.attacks import draws, sparse
from perturbkernel.attacks.boxes import Box, Rows, clip, headroom
from perturbkernel.attacks.boxes import within as within
from perturbkernel.attacks.crossings import (
    crossing,
    or_one,
)
from perturbkernel.attacks.stretches import shortened, stretch, stretched
from perturbkernel.metrics import unit_rows

Column = Float[Array, "m 1"]
Size = Array | float  # one number, or (m, 1)


def normalise(gradient: Float[Array | np.ndarray, "n ..."], norm: str) -> Float[Array, "n ..."]:
    """The direction of a step along a gradient; 0 for g = 0.

    sign(g) for linf, g / |g|_2 for the others: for l2 and linf what increases a function fastest
    among the directions of unit norm (`ONE_STEP`).

    Example:
        >>> normalise(jnp.asarray([[3.0, 0.0], [0.0, 0.0]]), "l2").tolist()
        [[1.0, 0.0], [0.0, 0.0]]
    """
    return _GEOMETRY[norm].direction(gradient)


def lengths(delta: Rows, norm: str) -> Float[Array, " m"]:
    """The norm of every row, (m,); l0 counts its entries that are not zero.

    Example:
        >>> lengths(jnp.asarray([[3.0, -4.0]]), "l1").tolist()
        [7.0]
    """
    return _GEOMETRY[norm].lengths(delta)


def dual_lengths(g: Rows, norm: str) -> Float[Array, " m"]:
    """What a step of norm 1 gains at most along every row, (m,): the dual norm.

    l0 has none; l2 stands in for it.

    Example:
        >>> dual_lengths(jnp.asarray([[3.0, -4.0]]), "linf").tolist()
        [7.0]
    """
    return _GEOMETRY[norm].dual_lengths(g)


def longest_step(like: Rows, size: Size, norm: str, box: Box = None) -> Column:
    """The length, as `normalise` measures it, of the longest step that the ball holds, (m, 1).

    Example:
        >>> longest_step(jnp.ones((1, 3)), 0.5, "linf").tolist()
        [[0.5]]
    """
    return _GEOMETRY[norm].longest(like, size, box)


def random_rows(keys: Array, size: Array, norm: str, box: Box, like: Array) -> Array:
    """A random point of the ball of radius `size` for every row, projected to the box.

    Uniform in its volume; for l0 in the box.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> random_rows(keys, jnp.asarray(0.5), "linf", None, jnp.ones((3, 4))).shape
        (3, 4)
    """
    drawn = _GEOMETRY[norm].draw(keys, size, box, like)
    return project(drawn, size, norm, box)


def counts(norm: str) -> bool:
    """Whether the norm counts entries, as l0 does.

    Such sizes are whole numbers, need bounds, and are not changed by a factor.

    Example:
        >>> counts("l0"), counts("l2")
        (True, False)
    """
    return _GEOMETRY[norm].counts


def programme_of(norm: str) -> "Programme | None":
    """What the nearest point of several half-spaces minimises (`halfspaces`); None: no method has.

    Example:
        >>> programme_of("linf")
        'largest'
    """
    return _GEOMETRY[norm].programme


def steepest(g: Rows, size: Size, norm: str, box: Box = None) -> Rows:
    """The d of norm at most `size` in the box with the largest <g, d>; 0 where g is 0.

    Without a box: size g / |g| (l2), size sign(g) (linf), all in the entry with the largest |g|
    (l1); l0 needs a box. In a box: clip(t g) with t such that the norm is `size`, or all entries
    saturate (l2); clip(size sign g) (linf); the largest |g| filled first (l1); the `size` entries
    with the largest gain (l0).

    Example:
        >>> steepest(jnp.asarray([[3.0, -4.0]]), 0.5, "linf").tolist()
        [[0.5, -0.5]]
    """
    return _GEOMETRY[norm].steepest(g, size, box)


def project(u: Rows, size: Size, norm: str, box: Box = None) -> Rows:
    """The point nearest to u, in Euclidean distance, of those of norm at most `size` in the box.

    clip(s u), s <= 1, such that the norm is `size` (l2); clip(clip(u, -size, size)) (linf);
    clip(sign(u) (|u| - lambda)_+) with lambda >= 0 such that the norm is `size` (l1); the `size`
    entries whose clipped values save the most distance, the others 0 (l0).

    Example:
        >>> project(jnp.asarray([[5.0, 3.0]]), 4.0, "l1").tolist()
        [[3.0, 1.0]]
    """
    return _GEOMETRY[norm].project(u, size, box)


def reach(g: Rows, gain: Float[Array, " m"], norm: str, box: Box = None) -> Rows:
    """The smallest d, in the norm, with <g, d> = gain >= 0 in the box (l0: >= gain).

    Its size is gain / |g|_dual. Where the box does not reach so far, its corner with the largest
    <g, d>; 0 where g is 0.

    Example:
        >>> reach(jnp.asarray([[2.0, 1.0]]), jnp.asarray([3.0]), "linf").tolist()
        [[1.0, 1.0]]
    """
    # In units of the largest entry: squares of the others do not underflow.
    m = jnp.abs(g)
    largest = or_one(m.max(1, keepdims=True))
    g = g / largest
    gain = gain[:, None] / largest
    return _GEOMETRY[norm].reach(g, gain, box)


def euclidean_reach(g: Rows, gain: Float[Array, " m"]) -> Rows:
    """The shortest d with <g, d> = gain >= 0, whatever the norm of the attack; 0 where g is 0.

    Example:
        >>> euclidean_reach(jnp.asarray([[2.0, 1.0]]), jnp.asarray([5.0])).tolist()
        [[2.0, 1.0]]
    """
    return reach(g, gain, "l2")


def shorten(d: Rows, size: Size, norm: str) -> Rows:
    """d, scaled down where it is longer than `size`, in a norm that is one; it stays in a box.

    The sums behind an exact answer round. After this its norm is within `size` to the rounding of
    the norm itself.

    Example:
        >>> shorten(jnp.asarray([[3.0, 1.0], [0.5, 0.5]]), 2.0, "l1").tolist()
        [[1.5, 0.5], [0.5, 0.5]]
    """
    return shortened(d, size, lengths(d, norm))


# --- l2 ---


def _direction_l2(gradient: Array | np.ndarray) -> Array:
    return unit_rows(gradient)


def _lengths_l2(d: Rows) -> Array:
    # In units of the largest entry: squares neither underflow nor overflow.
    m = jnp.abs(d)
    largest = m.max(1)
    unit = or_one(largest)
    scaled = d / unit[:, None]
    squares = jnp.sum(scaled**2, axis=1)
    return largest * jnp.sqrt(squares)


def _steepest_l2(g: Rows, size: Size, box: Box) -> Rows:
    if box is None:
        return size * unit_rows(g)
    t = stretch(g, size, box)
    d = stretched(g, t, size, box)
    return shorten(d, size, "l2")


def _project_l2(u: Rows, size: Size, box: Box) -> Rows:
    if box is None:
        return shorten(u, size, "l2")
    t = stretch(u, size, box)
    t = jnp.minimum(1, t)
    d = stretched(u, t, size, box)
    return shorten(d, size, "l2")


def _reach_l2(g: Rows, gain: Column, box: Box) -> Rows:
    if box is None:
        return _along(g, g, gain)
    m = jnp.abs(g)
    room = headroom(g, box)
    breaks = room / or_one(m)
    t = crossing(breaks, m * room, m**2, gain)
    return stretched(g, t, jnp.inf, box)


def _along(direction: Rows, g: Rows, gain: Column) -> Rows:
    """The multiple of `direction` with <g, d> = gain."""
    rise = jnp.sum(direction * g, axis=1, keepdims=True)
    length = gain / or_one(rise)
    return direction * length


# --- linf ---


def _direction_linf(gradient: Array | np.ndarray) -> Array:
    gradient = on_host(gradient)
    return as_jax(namespace(gradient).sign(gradient))


def _lengths_linf(d: Rows) -> Array:
    m = jnp.abs(d)
    return m.max(1)


def _steepest_linf(g: Rows, size: Size, box: Box) -> Rows:
    corner = size * jnp.sign(g)
    return clip(corner, box)


def _project_linf(u: Rows, size: Size, box: Box) -> Rows:
    limited = jnp.clip(u, -size, size)
    return clip(limited, box)


def _reach_linf(g: Rows, gain: Column, box: Box) -> Rows:
    if box is None:
        corner = jnp.sign(g)
        return _along(corner, g, gain)
    m = jnp.abs(g)
    room = headroom(g, box)
    # All entries move by the same amount, as far as the box lets them.
    amount = crossing(room, m * room, m, gain)
    amounts = jnp.minimum(amount, room)
    return jnp.sign(g) * amounts


# --- what a step may be as long as ---


def _radius(like: Rows, size: Size, box: Box) -> Column:
    return jnp.ones((len(like), 1), like.dtype) * size


def _longest_in(steepest: Callable) -> Callable:
    """In l2, of a ball that a box may leave little of."""

    def longest(like: Rows, size: Size, box: Box) -> Column:
        if box is None:
            return _radius(like, size, box)
        low, high = box
        furthest = jnp.where(high >= -low, high, low)
        return _lengths_l2(steepest(furthest, size, box))[:, None]

    return longest


#: |d|^2, the largest |d_i|, or the sum of the |d_i|.
Programme = Literal["squares", "largest", "sum"]


class _Norm(NamedTuple):
    """What the attacks need of a norm.

    Attributes:
        lengths, steepest, project, reach: the public functions of these names; `reach` is given g
            with a largest entry of 1.
        dual_lengths: the norm in which a gradient bounds what a step of norm 1 gains.
        direction: of a step along a gradient, (n, ...), an array of JAX or NumPy; 0 for 0.
        longest: (like, size, box) -> (m, 1), the length of the longest step, as `direction`
            measures it.
        draw: (keys, size, box, like) -> (m, d), random points, to be projected.
        one_step: whether `direction` is of unit norm and the steepest, so that `perturb` takes it.
        counts: whether sizes are numbers of entries.
        programme: what the nearest point of several half-spaces minimises; without one, an attack
            toward one of many classes passes one boundary at a time.
    """

    lengths: Callable
    dual_lengths: Callable
    steepest: Callable
    project: Callable
    reach: Callable
    direction: Callable
    longest: Callable
    draw: Callable
    one_step: bool = False
    counts: bool = False
    programme: Programme | None = None


_GEOMETRY = {
    "l2": _Norm(
        lengths=_lengths_l2,
        dual_lengths=_lengths_l2,
        steepest=_steepest_l2,
        project=_project_l2,
        reach=_reach_l2,
        direction=_direction_l2,
        longest=_radius,
        draw=draws.in_ball(jax.random.normal, _lengths_l2),
        one_step=True,
        programme="squares",
    ),
    "linf": _Norm(
        lengths=_lengths_linf,
        dual_lengths=sparse.lengths_l1,
        steepest=_steepest_linf,
        project=_project_linf,
        reach=_reach_linf,
        direction=_direction_linf,
        longest=_radius,
        draw=draws.in_cube,
        one_step=True,
        programme="largest",
    ),
    "l1": _Norm(
        lengths=sparse.lengths_l1,
        dual_lengths=_lengths_linf,
        steepest=sparse.steepest_l1,
        project=sparse.project_l1,
        reach=sparse.reach_l1,
        direction=_direction_l2,
        longest=_longest_in(sparse.steepest_l1),
        draw=draws.in_ball(jax.random.laplace, sparse.lengths_l1),
        programme="sum",
    ),
    "l0": _Norm(
        lengths=sparse.lengths_l0,
        dual_lengths=_lengths_l2,  # l0 has none; l2 stands in for it
        steepest=sparse.steepest_l0,
        project=sparse.project_l0,
        reach=sparse.reach_l0,
        direction=_direction_l2,
        longest=_longest_in(sparse.steepest_l0),
        draw=draws.in_box,
        counts=True,
    ),
}
NORMS = tuple(_GEOMETRY)
#: Norms whose steepest step is `normalise`.
ONE_STEP = tuple(name for name, norm in _GEOMETRY.items() if norm.one_step)
