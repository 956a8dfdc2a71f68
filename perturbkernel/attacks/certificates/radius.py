"""The certified size at one query: the largest r at which the bound is below the margin."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.attacks.certificates.expansion import (
    gradient_of,
    hessian_of,
    initial_weights,
    kernel_weights,
)
from perturbkernel.attacks.certificates.points import (
    NEAREST,
    Query,
    Seen,
    initial_remainder,
    kernel_remainders,
)
from perturbkernel.attacks.certificates.quadratic import quadratic_bound
from perturbkernel.attacks.certificates.width import width_loss
from perturbkernel.attacks.norms import dual_lengths
from perturbkernel.engine import tiles
from perturbkernel.kernels.angles import products_and_angles

# Halvings of the interval in which a size lies: the rest of it is 1e-12 of the linear bound.
_HALVINGS = 40
# Sizes are searched up to so many times sqrt(d + |z|^2), where a linear bound sets no limit.
_FURTHEST = 1e3


class Numbers(NamedTuple):
    """Numbers of the kernel: other values are no other program.

    Attributes:
        cone: -d Phi / d theta. gate: Phi at angle 0. bias: c, 1 where biases are trained.
        reach: |delta|_2 <= reach |delta|. rounding: of a sum, relative to its absolute terms.
    """

    cone: Array
    gate: Array
    bias: Array
    reach: Array
    rounding: Array


class Network(NamedTuple):
    """f = f0 + sum_n coef_n K(x_n, .), with flat points.

    Attributes:
        x: (n, d). coef: (n, K), one column for one output.
        points, initial_coef: (p, d) and (p, K), of f0 = sum_n coef_n Sigma(points_n, .), or None.
        wide: a `Wide`, where networks of one width are meant and not their limit, or None.
    """

    x: Float[Array, "n d"]
    coef: Float[Array, "n k"]
    points: Any
    initial_coef: Any
    wide: Any = None


class Row(NamedTuple):
    """One query, as `_seen_from` makes it.

    Attributes:
        seen: the training points. initial: the points of f0, or None.
        lipschitz: of what else is in f0.
    """

    query: Query
    seen: Seen
    initial: Seen | None
    lipschitz: Array


def sizes_of(
    network: Network,
    numbers: Numbers,
    z: Float[Array, "m d"],
    extra: Float[Array, "m k"],
    extra_rounding: Array,
    lipschitz: Float[Array, " m"],
    norm: str,
    memory: int,
) -> tuple[Array, Array, Array]:
    """(size, decision, whether the margin is more than rounding) of every query, in tiles.

    Args:
        extra: values of the part of f0 that is no kernel sum, known up to `extra_rounding`, which
            changes by at most lipschitz |delta|.
    """
    n = len(network.x)
    initial = 0 if network.points is None else len(network.points)
    rows = max(1, int(memory // (8 * 24 * (n + initial))))
    own = partial(_tile, network, numbers, norm=norm, memory=memory)
    return tiles.by_rows(own, (z, extra, extra_rounding, lipschitz), rows)


def _tile(network: Network, numbers: Numbers, tree: Any, *, norm: str, memory: int):
    z, extra, extra_rounding, lipschitz = tree
    seen = _seen_from(z, network.x, numbers.bias, norm)
    initial = None
    if network.points is not None:
        initial = _seen_from(z, network.points, numbers.bias, norm)
    length = jnp.linalg.norm(z, axis=1)
    root = jnp.sqrt(z.shape[1] + length**2)
    query = Query(z, length, root, dual_lengths(z, norm))
    rows = Row(query, seen, initial, lipschitz)

    def one(arguments):
        row, extra, rounding = arguments
        return _one(network, numbers, row, extra, rounding, norm, memory)

    return lax.map(one, (rows, extra, extra_rounding))


def _seen_from(z: Array, x: Array, bias: Array, norm: str) -> Seen:
    """The points as each query sees them, all with a leading axis of queries."""
    product, theta = products_and_angles(z, x)
    root = jnp.sqrt(x.shape[1] + jnp.sum(x**2, axis=1))
    dual = dual_lengths(x, norm)
    of_points = jnp.broadcast_to(root, theta.shape), jnp.broadcast_to(dual, theta.shape)
    return Seen(product + bias, theta, *of_points)


def _one(network, numbers, row: Row, extra, extra_rounding, norm: str, memory: int):
    """(size, decision, decided) of one query: the least size over all rivals."""
    outputs, rounding = _outputs(network, numbers, row, extra)
    rounding = rounding + extra_rounding
    single = network.coef.shape[1] == 1
    if single:
        decision = jnp.where(outputs[0] > 0, 1, -1)
        signs = decision[None, None].astype(outputs.dtype)
        margins = jnp.abs(outputs) - rounding
    else:
        decision = outputs.argmax()
        one_hot = jax.nn.one_hot(decision, len(outputs), dtype=outputs.dtype)
        signs = one_hot[None] - jnp.eye(len(outputs), dtype=outputs.dtype)
        is_own = one_hot > 0
        gaps = outputs[decision] - outputs - rounding[decision] - rounding
        margins = jnp.where(is_own, jnp.inf, gaps)

    def certify(k: Array, least: Array) -> Array:
        """The least size so far, and that of rival k."""

        def against(least):
            losses = Losses(network, numbers, row, -signs[k], norm, memory)
            return jnp.minimum(least, losses.radius(margins[k]))

        return lax.cond(jnp.isfinite(margins[k]), against, lambda least: least, least)

    size = lax.fori_loop(0, len(signs), certify, jnp.asarray(jnp.inf, outputs.dtype))
    decided = margins.min() > 0
    return jnp.where(decided, size, 0), decision, decided


def _outputs(network: Network, numbers: Numbers, row: Row, extra: Array) -> tuple[Array, Array]:
    """Outputs (K,), and how far rounding may have moved each."""
    seen, query = row.seen, row.query
    gates = numbers.gate - numbers.cone * seen.theta
    outputs = extra + (gates * seen.factor) @ network.coef
    terms = numbers.gate * (seen.root * query.root)
    absolute = terms @ jnp.abs(network.coef)
    if row.initial is not None:
        theta = row.initial.theta
        gates = numbers.gate - numbers.cone * theta
        d = len(query.point)
        lengths = row.initial.root * query.root / d
        value = jnp.cos(theta) * gates + numbers.cone * jnp.sin(theta)
        outputs = outputs + (lengths * value) @ network.initial_coef
        absolute = absolute + lengths @ jnp.abs(network.initial_coef)
    return outputs, numbers.rounding * (absolute + jnp.abs(extra))


class Losses:
    """What a margin can lose within a ball: sums of the outputs with the given signs, (K,)."""

    def __init__(self, network, numbers, row: Row, signs: Array, norm: str, memory: int):
        self.x, self.points, self.wide = network.x, network.points, network.wide
        self.numbers, self.row = numbers, row
        self.coef = network.coef @ signs
        if self.points is not None:
            self.initial_coef = network.initial_coef @ signs
        self.norm = norm
        self.rows = max(64, memory // (24 * self.x.shape[1]))

    def remainders(self, size: Array) -> Float[Array, "3 n"]:
        """Of every training point, to order 0, 1, 2."""
        row, numbers = self.row, self.numbers
        return kernel_remainders(row.query, row.seen, self.coef, numbers.cone, size, numbers.reach)

    def others(self, size: Array) -> Array:
        """Of the function before training, and of networks of finite width, at most."""
        row, numbers = self.row, self.numbers
        total = row.lipschitz * size
        if self.wide is not None:
            total += width_loss(self.wide, row.query, row.seen, self.coef, numbers, size)
        if row.initial is not None:
            total += initial_remainder(
                row.query, row.initial, self.initial_coef, numbers.cone, size, numbers.reach
            )
        return total

    def expanded(self, order: Array) -> tuple[Array, Callable[[], Array]]:
        """The dual norm of the gradient, and a function that bounds the Hessian: <delta, H delta>
        <= q |delta|^2.
        """
        query, numbers = self.row.query, self.numbers
        parts = [(self.x, kernel_weights(query, self.row.seen, self.coef, numbers, order))]
        if self.row.initial is not None:
            weights = initial_weights(query, self.row.initial, self.initial_coef, numbers)
            parts.append((self.points, weights))
        gradient: Any = sum(gradient_of(query, x, weights) for x, weights in parts)
        terms = sum(weights.gradient_terms for _, weights in parts)
        slope = dual_lengths(gradient[None], self.norm)[0] + numbers.rounding * terms

        def curvature() -> Array:
            rest: Any = sum(hessian_of(query, x, weights, self.rows) for x, weights in parts)
            identity: Any = sum(weights.identity for _, weights in parts)
            terms = sum(weights.hessian_terms for _, weights in parts)
            bound = quadratic_bound(rest, identity, self.norm)
            return bound + numbers.rounding * terms * numbers.reach**2

        return slope, curvature

    def radius(self, margin: Array) -> Array:
        """The largest size found at which no perturbation takes the margin away."""
        row = self.row
        poles = jnp.minimum(row.seen.theta, jnp.pi - row.seen.theta)
        slope, _ = self.expanded(jnp.where(poles < NEAREST, 0, 1))
        furthest = _FURTHEST * row.query.root / self.numbers.reach

        # First without the curvature, to know at what size each point is to be expanded, and how.
        def optimistic(size: Array) -> Array:
            return slope * size + self.remainders(size).min(0).sum() + self.others(size)

        expected = largest_below(optimistic, margin, slope, furthest)
        order = self.remainders(expected).argmin(0)
        slope, curvature = self.expanded(order)
        bound = curvature()

        def loss(size: Array) -> Array:
            remainders = jnp.take_along_axis(self.remainders(size), order[None], axis=0)
            return slope * size + bound * size**2 / 2 + remainders.sum() + self.others(size)

        return largest_below(loss, margin, slope, furthest)


def largest_below(
    bound: Callable[[Array], Array], margin: Array, slope: Array, furthest: Array
) -> Array:
    """A size at which an increasing bound, at least slope * size, is below the margin: the largest
    to a part in 1e12 of margin / slope, or of `furthest`; 0 where there is none.

    Example:
        >>> size = largest_below(lambda r: r + r**2, jnp.asarray(2.0), jnp.asarray(1.0), 9.0)
        >>> round(float(size), 3)
        1.0
    """
    limit = jnp.where(slope > 0, margin / slope, jnp.inf)
    high = jnp.clip(limit, 0, furthest)

    def halve(_, interval):
        low, high = interval
        middle = (low + high) / 2
        below = bound(middle) < margin
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    begin = jnp.zeros_like(high), high
    low, _ = lax.fori_loop(0, _HALVINGS, halve, begin)
    return low


def rounding_of(n: int, d: int) -> float:
    """Of a sum of n products of length d in float64, relative to its absolute terms."""
    return 8 * float(np.finfo(np.float64).eps) * (n + d + 100)
