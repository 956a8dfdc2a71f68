"""The closed form against training the network, for the same deliverable.

Deliverable: the accuracy, on held-out digits, 1 against 2, of a network g trained on nothing but
the perturbations of another, f (scenario (a), coin-flip targets). The closed form gives it for
infinite width; training draws two networks and runs gradient descent on each.
"""

from collections.abc import Iterator
from functools import partial

import jax
import optax

from perturbkernel import HeavyBall, KernelLearner, TwoLayerNTK, data, perturb
from perturbkernel.data.draws import draw_targets
from perturbkernel.metrics import accuracy
from perturbkernel.networks.ensembles import NetworkLearner

from .harness import Case, Group, Row, Settings, compare

RATE, MOMENTUM, SIZE = 0.01, 0.9, 1.0


def _sizes(settings: Settings) -> tuple[int, int, int]:
    """Digits, width and steps."""
    return (500, 200, 50) if settings.quick else (1000, 1000, 100)


def _described(settings: Settings) -> str:
    n, width, steps = _sizes(settings)
    return f"{n} digits, width {width}, {steps} steps"


def _measure(loss: str, settings: Settings) -> Iterator[Row]:
    n, width, steps = _sizes(settings)
    subset_key, split_key, targets_key, f_key, g_key = jax.random.split(
        jax.random.key(settings.seed), 5
    )
    train, test = (
        data.mnist5k(classes=(1, 2)).subset(n, key=subset_key).split(test=0.2, key=split_key)
    )
    targets = draw_targets("coin_flip", train.n, key=targets_key)

    def accuracy_of_g(learner):
        f = learner(train.inputs, train.targets, f_key)
        g = learner(perturb(f, train.inputs, targets, size=SIZE).delta, targets, g_key)
        return accuracy(g(test.inputs), test.targets)

    closed = KernelLearner(TwoLayerNTK(), loss, HeavyBall(RATE, steps, MOMENTUM))
    network = NetworkLearner(
        width, loss=loss, optimizer=optax.sgd(RATE, momentum=MOMENTUM), steps=steps, start="centred"
    )
    return compare(
        f"accuracy of g, {loss} loss",
        _described(settings),
        ("training two networks", lambda: partial(accuracy_of_g, network)),
        {"perturbkernel": lambda: partial(accuracy_of_g, closed)},
        settings.rounds(7, 2),
        remark=lambda mine, theirs: (
            f"accuracy {float(mine):.3f} (trained network {float(theirs):.3f})"
        ),
    )


def _cases(settings: Settings) -> list[Case]:
    cost = 4 if settings.quick else 40
    return [
        Case(loss, _described(settings), partial(_measure, loss, settings), cost)
        for loss in ("identity", "logistic")
    ]


GROUP = Group(
    "closed-form",
    "Closed form against training",
    "time / time of training both networks by gradient descent",
    _cases,
    one="training",
)
