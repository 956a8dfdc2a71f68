"""Some rows of an attack's problem, linearised: gradients, and steps to the nearest boundaries."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from perturbkernel.attacks.boxes import Box
from perturbkernel.attacks.crossings import where_rows
from perturbkernel.attacks.halfspaces import nearest_of_all
from perturbkernel.attacks.host import part
from perturbkernel.attacks.norms import dual_lengths, lengths, programme_of, reach
from perturbkernel.attacks.one_step import is_zero
from perturbkernel.attacks.problem import (
    Problem,
    gradient_at,
    objective,
    outputs_at,
    rival_weights,
    strongest_rivals,
)

_VISIBLE = 8  # units of rounding of the largest output: a change that can be seen


class Seen(NamedTuple):
    """What is known of m perturbations.

    Attributes:
        gap: (m,), how far beyond the boundary. gradient: of that, (m, d).
        zero: (m,), whether the gradient is zero, to rounding.
        outputs: (m,) or (m, K).
    """

    gap: Array
    gradient: Array
    zero: Array
    outputs: Array


class Linearised(NamedTuple):
    """Some rows of the problem: their values, gradients, and steps to linearised boundaries.

    Attributes:
        problem: all rows; of it only what they share is read.
        x, target: of these rows, (m, d) and (m,).
        norm, box: what is small, and where perturbations may lie.
        reachable: (m,), how far a perturbation may sensibly go.
    """

    problem: Problem
    x: Array
    target: Array
    norm: str
    box: Box
    reachable: Array

    def outputs(self, delta: Array) -> Array:
        return outputs_at(self.problem.predictor, _moved(self.x, delta), self.problem.shape)

    def gradient(self, z: Array, weights: Array | None) -> Array:
        return gradient_at(
            predictor=self.problem.predictor,
            z=z,
            shape=self.problem.shape,
            target=self.target,
            weights=weights,
        )

    def value(self, delta: Array) -> Array:
        gap, _ = gap_at(self.outputs(delta), self.target, self.x, self.problem.away)
        return gap

    def evaluate(self, delta: Array) -> Seen:
        problem = self.problem
        outputs = self.outputs(delta)
        gap, weights = gap_at(outputs, self.target, self.x, problem.away)
        z = _moved(self.x, delta)
        g = self.gradient(z, weights)
        points = z.reshape(-1, *problem.shape)
        zero = is_zero(problem.predictor, points, weights, g)
        zero = _or_invisible(zero, g, outputs, self.reachable, self.norm)
        return Seen(gap=gap, gradient=g, zero=zero, outputs=outputs)

    def nearest_beyond(self, delta: Array, seen: Seen) -> Array:
        """The smallest perturbation beyond the boundaries, linearised at delta."""
        single = _nearest_single(delta, seen.gap, seen.gradient, self.norm, self.box)
        if not several_rivals(self.problem, self.norm):
            return single
        rivals = _rivals(seen.outputs, self.target)
        z = _moved(self.x, delta)

        def boundary(rival: Array) -> tuple[Array, Array]:
            weights = _rival_weights(seen.outputs, self.target, rival)
            gradient = self.gradient(z, weights)
            return gradient, _level(gradient, delta, weights, seen.outputs)

        rows, least = lax.map(boundary, rivals)
        return _nearest_of_rivals(rows, least, single, self.norm, self.box)

    def toward(self, outputs: Array, other: Array) -> Array:
        """From the inputs to the boundary of class `other`, to first order, (m, d).

        Infinite where no step leads there.
        """
        weights = _rival_weights(outputs, other, self.target)
        gradient = self.gradient(self.x, weights)
        return _step_toward(gradient, weights, outputs, self.norm, self.box)

    def nearest_classes(self, outputs: Array, classes: int) -> Array:
        """The other classes, (K - 1, m), the one with the nearest boundary first."""
        others = _others(self.target, classes)

        def distance(other: Array) -> Array:
            step = self.toward(outputs, other)
            return _lengths(step, self.norm)

        distances = lax.map(distance, others)
        return _nearest_first(others, distances)


@part()
def _moved(x: Array, delta: Array) -> Array:
    return x + delta


@part("away")
def gap_at(outputs: Array, target: Array, x: Array, away: bool) -> tuple[Array, Array | None]:
    """`objective`, in the dtype of the inputs.

    Example:
        >>> outputs, x = jnp.asarray([[5.0, 2.0]]), jnp.ones((1, 3), jnp.float32)
        >>> gap_at(outputs, jnp.asarray([0]), x, True)[0].tolist()
        [-3.0]
    """
    gap, weights = objective(outputs, target, away)
    return gap.astype(x.dtype), weights


@part("norm")
def _or_invisible(zero: Array, g: Array, outputs: Array, reachable: Array, norm: str) -> Array:
    """Or a step as long as the data changes no more than the rounding of the outputs."""
    sizes = jnp.abs(outputs.reshape(len(g), -1))
    largest = sizes.max(1)
    visible = _VISIBLE * jnp.finfo(g.dtype).eps * largest
    steepness = dual_lengths(g, norm)
    change = steepness * reachable
    return zero | (change <= visible.astype(g.dtype))


@part("norm")
def _nearest_single(delta: Array, gap: Array, g: Array, norm: str, box: Box) -> Array:
    missing = jnp.sum(g * delta, axis=1) - gap
    missing = jnp.maximum(missing, 0)
    return reach(g, missing, norm, box)


@part()
def _rivals(outputs: Array, target: Array) -> Array:
    """(r, m), the strongest first."""
    return strongest_rivals(outputs, target).T


_rival_weights = part()(rival_weights)
_lengths = part("norm")(lengths)


@part()
def _level(gradient: Array, delta: Array, weights: Array, outputs: Array) -> Array:
    """What <gradient, d> must reach beyond the linearised boundary of a rival."""
    gap = jnp.sum(weights * outputs, axis=1)
    moved = jnp.sum(gradient * delta, axis=1)
    return moved - gap.astype(gradient.dtype)


@part("norm")
def _nearest_of_rivals(rows: Array, least: Array, single: Array, norm: str, box: Box) -> Array:
    nearest, met = nearest_of_all(jnp.swapaxes(rows, 0, 1), least.T, norm, box)
    return where_rows(met, nearest, single)


@part("norm")
def _step_toward(g: Array, weights: Array, outputs: Array, norm: str, box: Box) -> Array:
    lead = jnp.sum(weights * outputs, axis=1)
    gap = -lead.astype(g.dtype)
    step = reach(g, gap, norm, box)
    exists = (gap > 0) & step.any(1)
    return where_rows(exists, step, jnp.inf)


@part("classes")
def _others(target: Array, classes: int) -> Array:
    """The other classes of every row, (K - 1, m)."""
    shifts = jnp.arange(1, classes)
    return (target[None] + shifts[:, None]) % classes


@part()
def _nearest_first(others: Array, distances: Array) -> Array:
    order = jnp.argsort(distances, axis=0)
    return jnp.take_along_axis(others, order, axis=0)


def several_rivals(problem: Problem, norm: str) -> bool:
    """Whether a step must pass several boundaries at once: toward one of three classes or more."""
    several = problem.classes is not None and problem.classes > 2
    return several and not problem.away and programme_of(norm) is not None
