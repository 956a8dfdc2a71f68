"""The losses, one record for each, which solvers, networks, estimators and the command line read.

Training minimises the mean of `Loss.value` over the points. Adding a loss is one record of
_RECORDS; one that depends on the margin y f alone needs no more than its value and two derivatives
(`margin_loss`).
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from perturbkernel.checks import is_traced

Function = Callable[[Array], Array]
# Of two arrays; which one comes first, the attributes of `Loss` say.
PairFunction = Callable[[Array, Array], Array]


class Kind(enum.Enum):
    """How the force depends on the outputs, which decides what solves for the coefficients."""

    CONSTANT = enum.auto()  # not at all: coefficients grow at a constant rate
    LINEAR = enum.auto()  # every eigenvector of the Gram matrix evolves by itself: `squared`
    MARGIN = enum.auto()  # one nonlinear equation a point: `logistic`
    SOFTMAX = enum.auto()  # the outputs of a point are coupled: `softmax`


class Margin(NamedTuple):
    """A convex loss l as a function of the margin s = y f.

    Attributes:
        value: l.
        speed: -l', which is >= 0.
        bend: l''. The implicit method for long flows expects |l'''| <= l'': where that fails, its
            Newton iteration may take more steps.
    """

    value: Function
    speed: Function
    bend: Function


@dataclass(frozen=True)
class Loss:
    """What training needs to know of a loss.

    Attributes:
        name: of the argument `loss` of `fit` and others.
        formula: what is minimised, for help and manual.
        kind: decides the solver.
        value: of outputs and targets, (n,) or (n, K) each: (n,), the loss of every point.
        force: of targets and outputs, shaped like both: minus the derivative of `value` in the
            outputs.
        curvature: of targets and the outputs before training: a bound of the second derivative of
            `value` along the training.
        one_output, many_outputs: whether targets may be (n,), and (n, K).
        labels: whether targets (n,) must be -1 and +1.
        has_minimum: whether infinite time leads to a minimum, which the solver can find.
        of_classes: the loss of K outputs that does for K classes what this one does for two; None
            if there is none.
        margin: the loss as a function of the margin, if `kind` is MARGIN.
    """

    name: str
    formula: str
    kind: Kind
    value: PairFunction
    force: PairFunction
    curvature: Callable[[Array, Array], Array | float]
    one_output: bool = True
    many_outputs: bool = False
    labels: bool = True
    has_minimum: bool = False
    of_classes: str | None = None
    margin: Margin | None = None

    def accepts(self, several: bool) -> bool:
        """Whether it is for targets (n, K), or if not `several` for (n,)."""
        return self.many_outputs if several else self.one_output


def margin_loss(
    name: str,
    formula: str,
    margin: Margin,
    *,
    curvature: float | None = None,
    of_classes: str | None = None,
) -> Loss:
    """The record of a loss that depends on the margin alone, for one output and labels -1 and +1.

    `curvature`: a bound of `margin.bend`; None if there is none but that at the start, as for a
    loss whose bend falls with its value.

    Example:
        margin_loss("squared_hinge", "mean of max(0, 1 - y f)^2 / 2", margin, curvature=1.0)
    """

    def value(outputs, targets):
        return margin.value(targets * outputs)

    def force(targets, outputs):
        return targets * margin.speed(targets * outputs)

    def bound(targets, outputs):
        if curvature is None:
            return margin.bend(targets * outputs).max()
        return curvature

    return Loss(
        name, formula, Kind.MARGIN, value, force, bound, of_classes=of_classes, margin=margin
    )


def _over_outputs(terms: Array) -> Array:
    """(n,): sums over the outputs of each point, if it has several."""
    return terms if terms.ndim < 2 else terms.sum(axis=1)


def _identity_value(outputs: Array, targets: Array) -> Array:
    return _over_outputs(-targets * outputs)


def _identity_force(targets: Array, outputs: Array) -> Array:
    return targets


def _squared_value(outputs: Array, targets: Array) -> Array:
    return _over_outputs((outputs - targets) ** 2 / 2)


def _squared_force(targets: Array, outputs: Array) -> Array:
    return targets - outputs


def _probabilities(targets: Array) -> Array:
    """(n, K), from targets that are centred, p - 1/K, or p itself."""
    missing = 1 - targets.sum(axis=1, keepdims=True)
    return targets + missing / targets.shape[1]


def _softmax_value(outputs: Array, targets: Array) -> Array:
    return -jnp.sum(_probabilities(targets) * jax.nn.log_softmax(outputs, axis=1), axis=1)


def _softmax_force(targets: Array, outputs: Array) -> Array:
    return _probabilities(targets) - jax.nn.softmax(outputs, axis=1)


def _logistic_bend(s: Array) -> Array:
    speed = jax.nn.sigmoid(-s)
    return speed * (1 - speed)


def _falling(s: Array) -> Array:
    """exp(-s): the exponential loss, and its derivatives but for signs."""
    return jnp.exp(-s)


_RECORDS = (
    Loss(
        "identity",
        "mean of -y f",
        Kind.CONSTANT,
        _identity_value,
        _identity_force,
        lambda targets, outputs: 0.0,
        many_outputs=True,
        of_classes="identity",
    ),
    margin_loss(
        "logistic",
        "mean of log(1 + exp(-y f))",
        Margin(lambda s: jax.nn.softplus(-s), lambda s: jax.nn.sigmoid(-s), _logistic_bend),
        curvature=1 / 4,
        of_classes="softmax",
    ),
    # Its second derivative is the loss itself. The mean of that falls from the start, that of one
    # point may rise: the start is an estimate.
    margin_loss("exponential", "mean of exp(-y f)", Margin(_falling, _falling, _falling)),
    Loss(
        "squared",
        "1/(2n) sum (f - y)^2",
        Kind.LINEAR,
        _squared_value,
        _squared_force,
        lambda targets, outputs: 1.0,
        many_outputs=True,
        labels=False,
        has_minimum=True,
        of_classes="squared",
    ),
    Loss(
        "softmax",
        "-(1/n) sum_n <p_n, log softmax f(x_n)>",
        Kind.SOFTMAX,
        _softmax_value,
        _softmax_force,
        # The covariance of a distribution over classes: twice the logistic bound.
        lambda targets, outputs: 1 / 2,
        one_output=False,
        many_outputs=True,
        labels=False,
        of_classes="softmax",
    ),
)

LOSSES: dict[str, Loss] = {loss.name: loss for loss in _RECORDS}


def loss_names(several: bool = False) -> tuple[str, ...]:
    """The names of the losses for one output, or for `several`."""
    return tuple(name for name, loss in LOSSES.items() if loss.accepts(several))


def check_probabilities(targets: Array, name: str) -> None:
    """Raises ValueError unless rows are probabilities, or those minus 1/K, as softmax asks.

    Example:
        >>> check_probabilities(jnp.asarray([[0.25, 0.75], [0.5, -0.5]]), "targets")
    """
    if is_traced(targets):
        return
    y = np.asarray(targets, float)
    outputs = y.shape[1]
    sums = y.sum(axis=1)
    eps = float(jnp.finfo(targets.dtype).eps)
    allowed = 8 * float(np.sqrt(outputs)) * eps
    off = np.minimum(np.abs(sums), np.abs(sums - 1))
    missing = (1 - sums) / outputs
    probabilities = y + missing[:, None]
    wrong = (off > allowed) | (probabilities.min(axis=1) < -allowed)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{name} of the softmax loss must be pk.one_hot(labels, K), or probabilities; row "
            f"{row} is {y[row]}"
        )
