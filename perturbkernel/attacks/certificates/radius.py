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
    points = len(network.x)
    if network.points is not None:
        points += len(network.points)
    # A query takes some 24 float64 numbers a point.
    of_query = 8 * 24 * points
    rows = max(1, int(memory // of_query))
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
    d = x.shape[1]
    squares = jnp.sum(x**2, axis=1)
    root = jnp.sqrt(d + squares)
    dual = dual_lengths(x, norm)
    return Seen(
        factor=product + bias,
        theta=theta,
        root=jnp.broadcast_to(root, theta.shape),
        dual=jnp.broadcast_to(dual, theta.shape),
    )


def _one(network, numbers, row: Row, extra, extra_rounding, norm: str, memory: int):
    """(size, decision, decided) of one query: the least size over all rivals."""
    outputs, rounding = _outputs(network, numbers, row, extra)
    rounding = rounding + extra_rounding
    single = network.coef.shape[1] == 1
    compare = _against_the_other_sign if single else _against_each_class
    decision, signs, margins = compare(outputs, rounding)

    def certify(k: Array, least: Array) -> Array:
        """The least size so far, and that of rival k."""

        def against(least):
            losses = Losses(network, numbers, row, -signs[k], norm, memory)
            size = losses.radius(margins[k])
            return jnp.minimum(least, size)

        is_rival = jnp.isfinite(margins[k])
        return lax.cond(is_rival, against, lambda least: least, least)

    unlimited = jnp.asarray(jnp.inf, outputs.dtype)
    size = lax.fori_loop(0, len(signs), certify, unlimited)
    decided = margins.min() > 0
    return jnp.where(decided, size, 0), decision, decided


class _Comparison(NamedTuple):
    """A decision and what it is compared with.

    Attributes:
        decision: the sign or the class.
        signs: (rivals, K), each row sums outputs up to the margin over a rival.
        margins: (rivals,), less what rounding may take off; inf for the decision itself.
    """

    decision: Array
    signs: Array
    margins: Array


def _against_the_other_sign(outputs: Array, rounding: Array) -> _Comparison:
    decision = jnp.where(outputs[0] > 0, 1, -1)
    sign = decision.astype(outputs.dtype)
    margins = jnp.abs(outputs) - rounding
    return _Comparison(decision, sign[None, None], margins)


def _against_each_class(outputs: Array, rounding: Array) -> _Comparison:
    classes = len(outputs)
    each = jnp.eye(classes, dtype=outputs.dtype)
    decision = outputs.argmax()
    own = jax.nn.one_hot(decision, classes, dtype=outputs.dtype)
    gaps = outputs[decision] - outputs
    margins = gaps - rounding[decision] - rounding
    margins = jnp.where(own > 0, jnp.inf, margins)
    return _Comparison(decision, own[None] - each, margins)


def _outputs(network: Network, numbers: Numbers, row: Row, extra: Array) -> tuple[Array, Array]:
    """Outputs (K,), and how far rounding may have moved each."""
    seen = row.seen
    query = row.query
    gates = numbers.gate - numbers.cone * seen.theta
    kernel = gates * seen.factor
    largest = numbers.gate * seen.root * query.root
    outputs = extra + kernel @ network.coef
    absolute = jnp.abs(extra) + largest @ jnp.abs(network.coef)
    if row.initial is not None:
        theta = row.initial.theta
        gates = numbers.gate - numbers.cone * theta
        per_length = jnp.cos(theta) * gates + numbers.cone * jnp.sin(theta)
        d = len(query.point)
        lengths = row.initial.root * query.root / d
        covariance = lengths * per_length
        outputs = outputs + covariance @ network.initial_coef
        absolute = absolute + lengths @ jnp.abs(network.initial_coef)
    return outputs, numbers.rounding * absolute


class Losses:
    """What a margin can lose within a ball: sums of the outputs with the given signs, (K,)."""

    def __init__(self, network, numbers, row: Row, signs: Array, norm: str, memory: int):
        self.x = network.x
        self.points = network.points
        self.wide = network.wide
        self.numbers = numbers
        self.row = row
        self.coef = network.coef @ signs
        if self.points is not None:
            self.initial_coef = network.initial_coef @ signs
        self.norm = norm
        self.rows = max(64, memory // (24 * self.x.shape[1]))

    def remainders(self, size: Array) -> Float[Array, "3 n"]:
        """Of every training point, to order 0, 1, 2."""
        row = self.row
        numbers = self.numbers
        return kernel_remainders(row.query, row.seen, self.coef, numbers.cone, size, numbers.reach)

    def others(self, size: Array) -> Array:
        """Of the function before training, and of networks of finite width, at most."""
        row = self.row
        numbers = self.numbers
        total = row.lipschitz * size
        if self.wide is not None:
            total += width_loss(self.wide, row.query, row.seen, self.coef, numbers, size)
        if row.initial is not None:
            total += initial_remainder(
                row.query,
                row.initial,
                self.initial_coef,
                numbers.cone,
                size,
                numbers.reach,
            )
        return total

    def expanded(self, order: Array) -> tuple[Array, Callable[[], Array]]:
        """The dual norm of the gradient, and a function that bounds the Hessian: <delta, H delta>
        <= q |delta|^2.
        """
        query = self.row.query
        numbers = self.numbers
        weights = kernel_weights(query, self.row.seen, self.coef, numbers, order)
        parts = [(self.x, weights)]
        if self.row.initial is not None:
            weights = initial_weights(query, self.row.initial, self.initial_coef, numbers)
            parts.append((self.points, weights))
        gradient: Any = 0
        terms: Any = 0
        for x, weights in parts:
            gradient = gradient + gradient_of(query, x, weights)
            terms = terms + weights.gradient_terms
        length = dual_lengths(gradient[None], self.norm)[0]
        slope = length + numbers.rounding * terms

        def curvature() -> Array:
            rest: Any = 0
            identity: Any = 0
            terms: Any = 0
            for x, weights in parts:
                rest = rest + hessian_of(query, x, weights, self.rows)
                identity = identity + weights.identity
                terms = terms + weights.hessian_terms
            bound = quadratic_bound(rest, identity, self.norm)
            rounding = numbers.rounding * terms
            return bound + rounding * numbers.reach**2

        return slope, curvature

    def radius(self, margin: Array) -> Array:
        """The largest size found at which no perturbation takes the margin away."""
        theta = self.row.seen.theta
        from_poles = jnp.minimum(theta, jnp.pi - theta)
        first_order = jnp.where(from_poles < NEAREST, 0, 1)
        slope, _ = self.expanded(first_order)
        furthest = _FURTHEST * self.row.query.root / self.numbers.reach

        # First without the curvature, to know at what size each point is to be expanded, and how.
        def optimistic(size: Array) -> Array:
            least = self.remainders(size).min(0)
            return slope * size + least.sum() + self.others(size)

        expected = largest_below(optimistic, margin, slope, furthest)
        order = self.remainders(expected).argmin(0)
        slope, curvature = self.expanded(order)
        q = curvature()

        def loss(size: Array) -> Array:
            each = self.remainders(size)
            remainders = jnp.take_along_axis(each, order[None], axis=0)
            expansion = slope * size + q * size**2 / 2
            return expansion + remainders.sum() + self.others(size)

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
        low = jnp.where(below, middle, low)
        high = jnp.where(below, high, middle)
        return low, high

    begin = jnp.zeros_like(high), high
    low, _ = lax.fori_loop(0, _HALVINGS, halve, begin)
    return low


def rounding_of(n: int, d: int) -> float:
    """Of a sum of n products of length d in float64, relative to its absolute terms."""
    return 8 * float(np.finfo(np.float64).eps) * (n + d + 100)
