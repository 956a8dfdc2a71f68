"""Bugs and features: what a network's own part of a perturbation does, what the part does that all
networks share, and what each teaches (theory: 17.3).

A network f is trained on two digits under the squared loss for a time T, from an initial function
f0 of finite but large width. `split` takes it apart. New digits are moved away from their labels
along the own part of the gradient (the bug), along the shared part (the feature), and along the
whole, by the same length; then f decides, and another network, trained on the same data from
another f0. Training digits are moved likewise toward random targets, and g learns from these
perturbations alone, with the identity loss, whose signs do not depend on its time.

    results = [(config, measure(config)) for config in cells("small", seeds=2)]
    print(text(results))
    draw(results).savefig("bugs_and_features.png")

All against T for the two-layer kernel; against the number of training points; and against depth,
for fully connected ReLU networks, with T in units in which the mean of K(x, x) is that of the
two-layer kernel.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from perturbkernel import data as datasets
from perturbkernel.attacks.one_step import perturb
from perturbkernel.checks import check_choice, check_count
from perturbkernel.data.dataset import Dataset
from perturbkernel.data.draws import draw_targets
from perturbkernel.kernels.architectures import ArchitectureNTK
from perturbkernel.kernels.base import Kernel
from perturbkernel.kernels.stax_kernels import load_neural_tangents
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.learning.split import split
from perturbkernel.metrics import accuracy
from perturbkernel.networks.two_layer import TwoLayerNetwork
from perturbkernel.reproduce.records import Arrays, Config, Json
from perturbkernel.reproduce.studies.bugs_and_features.figure import draw as draw
from perturbkernel.reproduce.studies.bugs_and_features.figure import summarise as summarise
from perturbkernel.reproduce.studies.bugs_and_features.figure import text as text
from perturbkernel.reproduce.studies.settings import from_config
from perturbkernel.training.dynamics import GradientFlow
from perturbkernel.training.fit import fit
from perturbkernel.training.predictors import KernelPredictor

#: Times; numbers of training points; hidden layers; width of the initial functions; new digits;
#: seeds computed in one cell (None: all of them).
SCALES: dict[str, Json] = {
    "small": {
        "times": (0.1, 1.0, 10.0, 100.0),
        "n": (50, 200, 600),
        "depth": (1, 3),
        "width": 4096,
        "deep_width": 1024,
        "test": 300,
        "seeds": None,
    },
    "paper": {
        "times": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0),
        "n": (50, 100, 200, 400, 600),
        "depth": (1, 2, 4, 8),
        "width": 32_768,
        "deep_width": 4096,
        "test": 400,
        "seeds": 1,
    },
}
#: Of the cells whose time does not vary.
TIME = 10.0
#: Of stax's ReLU layers in `ArchitectureNTK.fully_connected`.
_SCALES = {"W_std": 2**0.5, "b_std": 0.1}


@dataclasses.dataclass(frozen=True)
class Setting:
    """n training digits, `test` new ones; perturbations of l2 length `size`; f0 of `width` neurons,
    in each of `depth` hidden layers, or None for the two-layer kernel.
    """

    n: int = 200
    test: int = 300
    width: int = 4096
    times: tuple[float, ...] = (TIME,)
    depth: int | None = None
    digits: tuple[int, int] = (1, 2)
    size: float = 1.5


def cells(scale: str, seeds: int) -> list[Config]:
    """The work as JSON-able configs: against time, numbers of points, and depth.

    Args:
        scale: "small"; "paper", wider, with more times, points and depths.
        seeds: draws of data, initial functions and targets.

    Raises ValueError or TypeError for another scale or no seeds.
    """
    check_choice(scale, "scale", tuple(SCALES))
    check_count(seeds, "seeds")
    s = SCALES[scale]
    common = {"test": s["test"], "width": s["width"]}
    settings = [("time", Setting(times=s["times"], **common))]
    settings += [("n", Setting(n=n, **common)) for n in s["n"]]
    common["width"] = s["deep_width"]
    settings += [("depth", Setting(depth=depth, **common)) for depth in s["depth"]]
    step = s["seeds"] or seeds
    found = []
    for part, setting in settings:
        config = {"part": part, **_as_json(setting)}
        for first in range(0, seeds, step):
            found.append(config | {"first": first, "seeds": min(step, seeds - first)})
    return found


def _as_json(setting: Setting) -> Json:
    found = dataclasses.asdict(setting)
    return found | {"times": list(setting.times), "digits": list(setting.digits)}


class Problem(NamedTuple):
    """What a seed draws: data, targets of training points, two initial functions."""

    train: Dataset
    test: Dataset
    targets: Array
    starts: list[Callable]


def measure(config: Config) -> Arrays:
    """The numbers of one cell, a pure function of its config (see `cells`).

    Axes: s seeds, t times, 3 parts: own, shared, whole.

        accuracy_f (s, t): of f on new digits.
        itself, others (s, t, 3): of f, and of another network, on new digits moved by `size` along
            the part of f's gradient away from their label.
        learned (s, t, 3): of g on new digits, trained on the perturbations alone of training digits
            toward random targets.
        share (s, t): the mean over new digits of the shared part's share of the squared gradient.
    """
    check_choice(config["part"], "part", ("time", "n", "depth"))
    s = from_config(Setting, config)
    kernel, time_unit = TwoLayerNTK(), 1.0
    rows = []
    for seed in range(config["first"], config["first"] + config["seeds"]):
        drawn = problem(s, seed)
        if s.depth is not None:
            kernel = ArchitectureNTK.fully_connected(s.depth)
            time_unit = _time_unit(kernel, drawn.train.inputs)
        of_seed = [_one(kernel, s, drawn, time * time_unit) for time in s.times]
        rows.append(of_seed)
    found = {}
    for name in rows[0][0]:
        found[name] = np.array([[row[name] for row in of_seed] for of_seed in rows], float)
    return found


def problem(s: Setting, seed: int) -> Problem:
    """What seed number `seed` draws.

    problem(Setting(n=100), seed=0).train.inputs
    """
    root = jax.random.key(6)
    key = jax.random.fold_in(root, seed)
    split_key, part_key, targets_key, *start_keys = jax.random.split(key, 5)
    images = datasets.mnist5k(classes=s.digits)
    rest, test = images.split(test=s.test, key=split_key)
    train = rest.subset(s.n, key=part_key)
    d = train.inputs.shape[1]
    starts = [_start(s, d, key) for key in start_keys]
    targets = draw_targets("balanced", s.n, key=targets_key)
    return Problem(train, test, targets, starts)


def _start(s: Setting, d: int, key: PRNGKeyArray) -> Callable:
    """An initial function, of finite width: its gradients are those of a network."""
    if s.depth is None:
        return TwoLayerNetwork.init(d, s.width, key=key)
    init, apply, _ = network(s.depth, s.width)
    _, parameters = init(key, (-1, d))
    return jax.tree_util.Partial(apply, parameters)


def network(depth: int, width: int) -> tuple[Callable, Callable, Callable]:
    """The network, of finite width, whose kernel is `ArchitectureNTK.fully_connected(depth)`:
    initialisation, function and kernel function.

    init, apply, _ = network(depth=2, width=100)
    """
    stax = load_neural_tangents()
    hidden = depth * (stax.Dense(width, **_SCALES), stax.Relu())
    return stax.serial(*hidden, stax.Dense(1, **_SCALES))


def _time_unit(kernel: Kernel, x: Array) -> float:
    """By how much longer training takes than with the two-layer kernel."""
    few = x[:50]
    of_two_layers = jnp.trace(TwoLayerNTK().ntk(few))
    return float(of_two_layers / jnp.trace(kernel.ntk(few)))


def _one(kernel: Kernel, s: Setting, p: Problem, time: float) -> Json:
    x, y = p.train.inputs, p.train.targets
    z, labels = p.test.inputs, p.test.targets
    options: dict[str, Any] = {"loss": "squared", "dynamics": GradientFlow(time)}
    f, other = [fit(kernel, x, y, initial=start, **options) for start in p.starts]
    parts = split(f, z)
    found: Json = {"itself": [], "others": [], "learned": []}
    for part in (parts.own, parts.mean, f):
        away = perturb(part, z, -labels, size=s.size).delta
        moved = z + away
        found["itself"].append(accuracy(f(moved), labels))
        found["others"].append(accuracy(other(moved), labels))
        g = _learned(kernel, part, x, p.targets, s.size)
        found["learned"].append(accuracy(g(z), labels))
    share = jnp.mean(parts.shared_fraction)
    return found | {"accuracy_f": accuracy(f(z), labels), "share": share}


def _learned(
    kernel: Kernel, part: KernelPredictor, x: Array, targets: Array, size: float
) -> KernelPredictor:
    """g, of the perturbations along the part alone."""
    toward = perturb(part, x, targets, size=size).delta
    return fit(kernel, toward, targets)
