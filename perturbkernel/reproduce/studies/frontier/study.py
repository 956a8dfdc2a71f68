"""What does robustness cost, and what buys it: stopping early, a ridge, or adversarial training?

Clean and robust accuracy of wide networks on two digits, along five ways to make them more robust:
a shorter training, a ridge, perturbed features in closed form, and training on perturbed inputs in
turn, to the end and stopped early.

    results = [(config, measure(config)) for config in cells("small", seeds=2)]
    print(text(results))
    draw(results).savefig("frontier.png")

Robust accuracy is that under `pk.robust_accuracy`, an upper bound; tests hold it to a projected
gradient attack that is written in NumPy. For some of the networks the lower bound is there, too:
below it by the share of points that are right under attack and whose `pk.certified_size` is
smaller, on the first new points, since certificates take long.
"""

import math
from typing import Any

import jax
import numpy as np

from perturbkernel import data as datasets
from perturbkernel.attacks.certificates.certified_size import certified_size
from perturbkernel.attacks.robust_accuracy import RobustAccuracy, robust_accuracy
from perturbkernel.checks import check_choice, check_count
from perturbkernel.data.dataset import Dataset
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.learning.adversarial import adversarial_training, feature_adversarial
from perturbkernel.reproduce.records import Arrays, Config, Json
from perturbkernel.reproduce.studies.frontier.figure import draw as draw
from perturbkernel.reproduce.studies.frontier.figure import summarise as summarise
from perturbkernel.reproduce.studies.frontier.figure import text as text
from perturbkernel.training.dynamics import GradientFlow
from perturbkernel.training.fit import KernelLearner

#: Training points and new ones.
SCALES: dict[str, Json] = {
    "small": {"n": 300, "test": 200},
    "paper": {"n": 800, "test": 200},
}
DIGITS = (3, 8)
#: Of the attack, in l2; an image has about 9.
SIZES = (1.0, 1.5)
STEPS = 20
#: What each way varies: training time, the ridge, the radius of perturbed features, the size of
#: perturbed inputs. "inf" is interpolation.
WAYS: dict[str, list[Any]] = {
    "early stopping": [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, "inf"],
    "ridge": [0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0],
    "perturbed features": [0.03, 0.1, 0.2, 0.3, 0.6, 1.0],
    "perturbed inputs": [0.5, 1.0, 1.5, 2.0],
    "perturbed inputs, stopped early": [0.5, 1.0, 1.5, 2.0],
}
#: Way -> the values whose networks have certified sizes, too, and on how many new points.
CERTIFIED: dict[str, list[Any]] = {
    "early stopping": [0.3, 3.0, 30.0, "inf"],
    "ridge": [0.01, 0.1, 1.0],
}
CERTIFIED_POINTS = 30
_EARLY = 3.0
_ROUNDS = 10


def cells(scale: str, seeds: int) -> list[Config]:
    """The work as JSON-able configs, one for each draw of training and new points.

    Raises ValueError or TypeError for another scale or no seeds.
    """
    check_choice(scale, "scale", tuple(SCALES))
    check_count(seeds, "seeds")
    shared: Json = {
        "digits": list(DIGITS),
        "sizes": list(SIZES),
        "steps": STEPS,
        "ways": WAYS,
        "certified": CERTIFIED,
        "certified_points": CERTIFIED_POINTS,
    }
    return [SCALES[scale] | shared | {"seed": seed} for seed in range(seeds)]


def measure(config: Config) -> Arrays:
    """The numbers of one cell, a pure function of its config (see `cells`).

    Way -> (values, 1 + sizes): clean accuracy on the new points, and under attack of each size.
    "undecided WAY" -> (values that `certified` names, sizes): the share of the first new points
    that no perturbation was found for and no certificate holds for.

    Raises ValueError for an unknown way.
    """
    train, test = _data(config)
    found = {}
    for way, values in config["ways"].items():
        check_choice(way, "ways", tuple(WAYS))
        attacked, undecided = [], []
        for value in values:
            f = trained(train, way, value)
            r = _attacked(config, f, train, test)
            attacked.append(r.accuracy[0])
            if value in config["certified"].get(way, ()):
                share = _undecided(config, f, test, r)
                undecided.append(share)
        found[way] = np.array(attacked)
        if undecided:
            found[f"undecided {way}"] = np.array(undecided)
    return found


def trained(train: Dataset, way: str, value: Any) -> Any:
    """The predictor that a way gives with one value of what it varies.

    trained(train, "early stopping", 3.0)
    """
    x, y = train.inputs, train.targets
    kernel = TwoLayerNTK()
    if way == "perturbed features":
        return feature_adversarial(kernel, x, y, radius=value)
    if way == "early stopping":
        return _learner(math.inf if value == "inf" else value)(x, y, None)
    if way == "ridge":
        return _learner(math.inf, ridge=value)(x, y, None)
    learner = _learner(_EARLY if way.endswith("early") else math.inf)
    box = _box(train)
    return adversarial_training(learner, x, y, size=value, bounds=box, rounds=_ROUNDS)


def _learner(time: float, ridge: float = 0.0) -> KernelLearner:
    return KernelLearner(TwoLayerNTK(), "squared", GradientFlow(time), ridge=ridge)


def _data(config: Config) -> tuple[Dataset, Dataset]:
    root = jax.random.key(6)
    key = jax.random.fold_in(root, config["seed"])
    split_key, part_key = jax.random.split(key)
    images = datasets.mnist5k(classes=config["digits"])
    rest, test = images.split(test=config["test"], key=split_key)
    return rest.subset(config["n"], key=part_key), test


def _box(data: Dataset) -> tuple[float, float]:
    """What pixels may be: black to white."""
    return float(data.inputs.min()), float(data.inputs.max())


def _attacked(config: Config, f: Any, train: Dataset, test: Dataset) -> RobustAccuracy:
    x, y = test.inputs, test.targets
    low, high = _box(train)
    # New images may have a pixel that is whiter than all others.
    lowest, highest = float(x.min()), float(x.max())
    bounds = min(low, lowest), max(high, highest)
    options: Json = {"sizes": config["sizes"], "norms": "l2", "attack": "ascent"}
    return robust_accuracy(f, x, y, bounds=bounds, steps=config["steps"], **options)


def _undecided(config: Config, f: Any, test: Dataset, r: RobustAccuracy) -> list[float]:
    """The share of the first new points that are right under attack, and not certified."""
    count = config["certified_points"]
    certified = certified_size(f, test.inputs[:count], test.targets[:count], norm="l2")
    shares = []
    for size, right in zip(config["sizes"], r.right[0, 1:, :count], strict=True):
        open_points = right & (certified.size < size)
        share = open_points.mean()
        shares.append(float(share))
    return shares
