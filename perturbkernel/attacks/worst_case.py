"""The worst of all attacks, point by point."""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from perturbkernel.attacks.boxes import box_around, within
from perturbkernel.attacks.crossings import where_rows
from perturbkernel.attacks.host import uncompiled
from perturbkernel.attacks.iterated import attack
from perturbkernel.attacks.minimum_norm import minimum_norm
from perturbkernel.attacks.norms import project
from perturbkernel.attacks.problem import (
    RIVALS,
    Problem,
    checked_problem,
    margins_at,
    outputs_at,
    rows_within,
    strongest_rivals,
)
from perturbkernel.checks import check_count, check_key
from perturbkernel.display import Displayed
from perturbkernel.engine import tiles

# What carries a step over small dents, and averages gradients that a ripple hides.
_MOMENTUM = 0.9


class WorstCase(Displayed, eqx.Module):
    """The strongest perturbation found for every input, and what it does.

    Attributes:
        delta: (n, ...), shaped like the inputs, of norm at most the size.
        margin: (n,), of the right decision at inputs + delta: label f, or for K outputs f_label -
            max_{k != label} f_k. Negative where the decision is wrong.
        attack: (n,), which of `attacks` found it.
        attacks: their names, "none" first: the input itself.
    """

    delta: Float[Array, "n ..."]
    margin: Float[Array, " n"]
    attack: Int[Array, " n"]
    attacks: tuple[str, ...] = eqx.field(static=True)

    def _numbers(self) -> dict[str, Any]:
        counts = np.bincount(np.asarray(self.attack), minlength=len(self.attacks))
        strongest = [name for name, count in zip(self.attacks, counts, strict=True) if count]
        return {
            "points": len(self.margin),
            "accuracy": self.accuracy,
            "margin": self.margin,
            "found by": ", ".join(strongest),
        }

    @property
    def wrong(self) -> Bool[Array, " n"]:
        """(n,), whether the decision at inputs + delta is wrong; a tie is."""
        return self.margin <= 0

    @property
    def accuracy(self) -> Float[Array, ""]:
        """The share of inputs whose decision no attack made wrong."""
        return jnp.mean(~self.wrong, dtype=self.margin.dtype)


@eqx.filter_jit
def _rivals(problem: Problem, memory) -> Array:
    """(n, r), the strongest classes other than the label at the inputs, the strongest first."""
    predictor, x, shape, _, target, _, _ = problem

    def part(tree):
        x, target = tree
        outputs = outputs_at(predictor, x, shape)
        return strongest_rivals(outputs, target)

    rows = rows_within(memory, predictor, x, shape)
    return tiles.by_rows(part, (x, target), rows)


@eqx.filter_jit
def _shortened(problem: Problem, delta: Array, size: Array, norm: str) -> Array:
    """The nearest perturbations of norm at most `size`, within the bounds."""
    x = problem.x
    bounds = problem.bounds
    box = box_around(x, bounds)
    shortened = project(delta, size, norm, box)
    return within(x, shortened, bounds)


def worst_case(
    predictor: Callable[..., Any],
    inputs: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, " n"] | Int[ArrayLike, " n"],
    *,
    size: float,
    norm: str = "l2",
    bounds: tuple[ArrayLike, ArrayLike] | None = None,
    steps: int = 50,
    starts: int = 3,
    memory: float | None = None,
    key: PRNGKeyArray,
) -> WorstCase:
    """Runs every attack, and keeps the strongest perturbation of norm at most `size` for each
    input.

    They are `attack` away from the true label from the input and from random points; the same with
    momentum; for K > 2 outputs `attack` toward each of the nine strongest other classes; and
    `minimum_norm`, cut to the size where what it found is longer. Kept is the one with the smallest
    margin of the right decision. An accuracy under attack is an upper bound of the true one: no
    attack proves that there is no stronger.

        r = pk.worst_case(f, x, labels, size=0.1, norm="linf", bounds=(0, 1), key=key)
        r.accuracy, r.delta[r.wrong], [r.attacks[i] for i in r.attack]

    Example:
        >>> w, x = jnp.asarray([3.0, 4.0]), jnp.asarray([[1.0, 0.0], [0.0, 0.1]])
        >>> key = jax.random.key(0)
        >>> float(worst_case(lambda z: z @ w, x, jnp.asarray([1, 1]), size=0.2, key=key).accuracy)
        0.5

    Args:
        predictor, inputs, norm, bounds, memory: as in `attack`.
        targets: the true labels: (n,) in {-1, +1}, or class indices.
        size: the largest norm of a perturbation; for l0 the number of entries.
        steps: of every attack.
        starts: how many times the first two begin: at the input, then at random points.
        key: random key.

    Returns:
        WorstCase, in which an input that is wrong already may keep delta 0.

    Raises as `attack` does.

    Source: Croce and Hein (ICML 2020), AutoAttack, for the worst of several attacks.
    """
    check_count(steps, "steps", low=2)
    check_count(starts, "starts")
    check_key(key)
    problem = checked_problem(predictor, inputs, targets, norm, True, bounds)
    x = problem.x
    attacks = ["none"]
    with uncompiled(problem.predictor):
        worst = jnp.zeros_like(x)
        margin = margins_at(problem, worst, memory)
    which = jnp.zeros(len(x), int)
    options = {"size": size, "norm": norm, "bounds": bounds, "steps": steps, "memory": memory}
    for name, delta in _candidates(problem, predictor, inputs, targets, options, starts, key):
        with uncompiled(problem.predictor):
            here = margins_at(problem, delta, memory)
        smaller = here < margin
        worst = where_rows(smaller, delta, worst)
        which = jnp.where(smaller, len(attacks), which)
        margin = jnp.where(smaller, here, margin)
        attacks.append(name)
    return WorstCase(
        delta=worst.reshape(-1, *problem.shape),
        margin=margin,
        attack=which,
        attacks=tuple(attacks),
    )


def _candidates(
    problem: Problem,
    predictor: Any,
    inputs: Any,
    targets: Any,
    options: dict,
    starts: int,
    key: Any,
) -> Iterator[tuple[str, Array]]:
    """The name of every attack, and its perturbations (n, d)."""
    x = problem.x
    keys = jax.random.split(key)
    random = {"starts": starts, "away": True}
    found = attack(predictor, inputs, targets, **options, **random, key=keys[0])
    yield "attack", found.delta.reshape(x.shape)
    found = attack(predictor, inputs, targets, **options, **random, momentum=_MOMENTUM, key=keys[1])
    yield "attack with momentum", found.delta.reshape(x.shape)
    if problem.classes is not None and problem.classes > 2:
        with uncompiled(problem.predictor):
            rivals = _rivals(problem, options["memory"])
        for place in range(min(RIVALS, problem.classes - 1)):
            found = attack(predictor, inputs, rivals[:, place], **options)
            yield f"attack toward rival {place + 1}", found.delta.reshape(x.shape)
    names = ("norm", "bounds", "memory")
    shared = {name: options[name] for name in names}
    least = minimum_norm(predictor, inputs, targets, **shared, away=True)
    size = jnp.asarray(options["size"], x.dtype)
    with uncompiled(problem.predictor):
        delta = _shortened(problem, least.delta.reshape(x.shape), size, options["norm"])
    yield "minimum_norm", delta
