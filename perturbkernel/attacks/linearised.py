"""Some rows of an attack's problem, linearised: gradients, and steps to the nearest boundaries."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from perturbkernel.attacks.boxes import Box
from perturbkernel.attacks.crossings import where_rows
from perturbkernel.attacks.halfspaces import nearest_of_all
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
        z = self.x + delta
        return outputs_at(self.problem.predictor, z, self.problem.shape)

    def gradient(self, z: Array, weights: Array | None) -> Array:
        return gradient_at(
            predictor=self.problem.predictor,
            z=z,
            shape=self.problem.shape,
            target=self.target,
            weights=weights,
        )

    def value(self, delta: Array) -> Array:
        outputs = self.outputs(delta)
        gap, _ = objective(outputs, self.target, self.problem.away)
        return gap.astype(self.x.dtype)

    def evaluate(self, delta: Array) -> tuple[Array, Array, Array]:
        """The value (m,), its gradient (m, d), and whether that is zero to rounding (m,)."""
        x = self.x
        problem = self.problem
        outputs = self.outputs(delta)
        gap, weights = objective(outputs, self.target, problem.away)
        z = x + delta
        g = self.gradient(z, weights)
        points = z.reshape(-1, *problem.shape)
        zero = is_zero(problem.predictor, points, weights, g)
        # Or a step as long as the data changes no more than the rounding of the outputs.
        sizes = jnp.abs(outputs.reshape(len(x), -1))
        largest = sizes.max(1)
        visible = _VISIBLE * jnp.finfo(x.dtype).eps * largest
        visible = visible.astype(x.dtype)
        steepness = dual_lengths(g, self.norm)
        change = steepness * self.reachable
        zero = zero | (change <= visible)
        return gap.astype(x.dtype), g, zero

    def nearest_beyond(self, delta: Array, gap: Array, g: Array) -> Array:
        """The smallest perturbation beyond the boundaries, linearised at delta."""
        missing = jnp.sum(g * delta, axis=1) - gap
        missing = jnp.maximum(missing, 0)
        single = reach(g, missing, self.norm, self.box)
        if not several_rivals(self.problem, self.norm):
            return single
        outputs = self.outputs(delta)
        rivals = strongest_rivals(outputs, self.target)

        def boundary(rival):
            weights = rival_weights(outputs, self.target, rival)
            gradient = self.gradient(self.x + delta, weights)
            gap = jnp.sum(weights * outputs, axis=1)
            gap = gap.astype(self.x.dtype)
            moved = jnp.sum(gradient * delta, axis=1)
            return gradient, moved - gap

        rows, least = lax.map(boundary, rivals.T)
        rows = jnp.swapaxes(rows, 0, 1)
        nearest, met = nearest_of_all(rows, least.T, self.norm, self.box)
        return where_rows(met, nearest, single)

    def toward(self, outputs: Array, other: Array) -> Array:
        """From the inputs to the boundary of class `other`, to first order, (m, d).

        Infinite where no step leads there.
        """
        weights = rival_weights(outputs, other, self.target)
        lead = jnp.sum(weights * outputs, axis=1)
        gap = -lead.astype(self.x.dtype)
        gradient = self.gradient(self.x, weights)
        step = reach(gradient, gap, self.norm, self.box)
        exists = (gap > 0) & step.any(1)
        return where_rows(exists, step, jnp.inf)

    def nearest_classes(self, outputs: Array, classes: int) -> Array:
        """The other classes, (K - 1, m), the one with the nearest boundary first."""
        shifts = jnp.arange(1, classes)

        def distance(shift):
            other = (self.target + shift) % outputs.shape[1]
            step = self.toward(outputs, other)
            return lengths(step, self.norm)

        distances = lax.map(distance, shifts)
        order = jnp.argsort(distances, axis=0)
        nearest_first = shifts[order]
        return (self.target[None] + nearest_first) % outputs.shape[1]


def several_rivals(problem: Problem, norm: str) -> bool:
    """Whether a step must pass several boundaries at once: toward one of three classes or more."""
    several = problem.classes is not None and problem.classes > 2
    return several and not problem.away and programme_of(norm) is not None
