"""The optimizer of the paper's experiments.

SGD with heavy-ball momentum, and a rate that falls on a plateau.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from perturbkernel.checks import check_count, check_number, common_dtype, is_traced


@dataclasses.dataclass(frozen=True)
class Plateau:
    """Multiplies the learning rate by `factor` once the loss has stopped falling.

    By the rules of PyTorch's ReduceLROnPlateau in its default mode ("min", "rel", no cooldown),
    which the paper's experiments use.

    After every step (with minibatches: every epoch, with the mean loss of its batches) the loss l
    counts as better if l < best (1 - threshold), and then becomes the best; the rate falls after
    more than `patience` losses in a row that were not better, beginning with the next step.

    A negative loss, as the identity loss soon is, turns the threshold around: best (1 - threshold)
    lies *above* best, so a loss that stands still or rises by less than the fraction `threshold`
    counts as better, and lowers the bar with it. A constant negative loss never reduces the rate;
    only faster rises do.

    PyTorch leaves rates alone that would change by less than 1e-8; here they go on falling.

    Example:
        >>> rule = Plateau(factor=0.1, patience=10).transformation()
        >>> sorted(rule._fields)
        ['init', 'update']
    """

    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4

    def __post_init__(self):
        check_number(self.factor, "factor", high=1, open_low=True)
        check_count(self.patience, "patience", low=0)
        check_number(self.threshold, "threshold", high=1, open_low=True)
        if self.factor == 1:
            raise ValueError("factor must be < 1; got 1")

    def transformation(self, steps_an_epoch: int = 1) -> optax.GradientTransformationExtraArgs:
        """The rule as an optax transformation, to be chained after an optimizer."""
        # optax reduces when its count of bad values equals its patience, PyTorch when it exceeds
        # its own.
        return optax.contrib.reduce_on_plateau(
            self.factor, self.patience + 1, self.threshold, accumulation_size=steps_an_epoch
        )


class _HeavyBallState(NamedTuple):
    learning_rate: Array
    momentum: Array
    velocity: Any


def _heavy_ball_update(updates, state: Any, params=None):
    velocity = jax.tree.map(lambda v, g: state.momentum * v + g, state.velocity, updates)
    step = jax.tree.map(lambda v: -state.learning_rate * v, velocity)
    return step, state._replace(velocity=velocity)


def paper_optimizer(learning_rate: float, momentum: float = 0.9) -> optax.GradientTransformation:
    """SGD with heavy-ball momentum 0.9, as in the paper's experiments.

    Its updates are those of `optax.sgd(learning_rate, momentum=momentum)`. The numbers live in the
    optimizer's state, not in its code: `train` compiles once for all rates, and a rate may be
    traced or differ between members of an ensemble. The paper adds `Plateau()`.

    Example:
        >>> optimizer = paper_optimizer(0.1)
        >>> state = optimizer.init({"w": jnp.zeros(2)})
        >>> updates, state = optimizer.update({"w": jnp.ones(2)}, state)
        >>> updates, state = optimizer.update({"w": jnp.ones(2)}, state)
        >>> updates["w"].round(2)  # rate times 1 + 0.9
        Array([-0.19, -0.19], dtype=float32)
    """
    check_number(learning_rate, "learning_rate")
    check_number(momentum, "momentum", high=1)
    if not is_traced(momentum) and momentum == 1:
        raise ValueError("momentum must be < 1; got 1")

    def init(params):
        dtype = common_dtype(*jax.tree.leaves(params))
        still = jax.tree.map(jnp.zeros_like, params)
        return _HeavyBallState(
            jnp.asarray(learning_rate, dtype), jnp.asarray(momentum, dtype), still
        )

    return optax.GradientTransformation(init, _heavy_ball_update)
