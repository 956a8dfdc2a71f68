"""What do perturbations need to ride on? Noise, or images of another data set, beside the same
carriers unperturbed.

The artificial experiment of Kumano, Kera, Yamasaki, *Theoretical Understanding of Learning from
Adversarial Perturbations* (ICLR 2024, arXiv 2402.10470): f learns N noise points with random
labels, other noise is perturbed along f's gradient there toward random targets, and g, trained on
that noise alone, decides as the labels of points that it never saw. The control is trained on the
same noise, with the same targets, unperturbed. Part "digits" does so with real images.

    results = [(config, measure(config)) for config in cells("small", seeds=2)]
    print(text(results))
    draw(results).savefig("carriers.png")

To leading order the kernel is linear, with f's gradient along sum_n y_n x_n, and with the identity
loss

    accuracy = N_c(sqrt(d / N) / sqrt(1 + s^2 d / (M size^2)))

on the N points for M carriers with entries of variance s^2: it depends on d / N, and on N / M (size
/ s)^2. So a reduced experiment has a tenth of the published N, M and d, and perturbations sqrt(10)
times as long for their carriers.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from perturbkernel import data as datasets
from perturbkernel.attacks.one_step import perturb
from perturbkernel.checks import check_choice, check_count
from perturbkernel.data.draws import draw_noise, draw_targets
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.metrics import accuracy, agreement
from perturbkernel.networks.ensembles import NetworkLearner
from perturbkernel.networks.optimizers import Plateau, paper_optimizer
from perturbkernel.reproduce.records import Arrays, Config, Json
from perturbkernel.reproduce.studies.carriers.figure import draw as draw
from perturbkernel.reproduce.studies.carriers.figure import summarise as summarise
from perturbkernel.reproduce.studies.carriers.figure import text as text
from perturbkernel.training.dynamics import GradientFlow
from perturbkernel.training.fit import KernelLearner

KINDS = ("uniform", "gaussian")
LEARNERS = ("identity", "exponential", "network")
#: Training points, noise points, dimensions; of the finite network width, steps and the largest
#: dimension.
SCALES: dict[str, Json] = {
    "small": {
        "n": 100,
        "m": 1000,
        "d": (10, 100, 500, 1000),
        "width": 256,
        "steps": 500,
        "network_d": 100,
    },
    "paper": {
        "n": 1000,
        "m": 10_000,
        "d": (100, 300, 1000, 3000, 5000, 10_000),
        "width": 1000,
        "steps": 100_000,
        "network_d": 10_000,
    },
}
#: Perturbation over carrier, in length, at the published N; `docs/carriers.md` says where it comes
#: from.
RELATIVE_SIZE = 0.25 * np.sqrt(3 / 784)
#: Of the predecessor's networks and training: slope .01, learning rate .01, momentum .9, 100,000
#: steps.
SLOPE, RATE, MOMENTUM, TIME = 0.01, 0.01, 0.9, 1e4


@dataclasses.dataclass(frozen=True)
class Digits:
    """Two digits, n of them to learn and `test` new ones; `others` carry, `per_point` times n of
    them.

    Perturbations of length `size`, identity loss or `time` of the exponential one.
    """

    n: int = 250
    test: int = 400
    digits: tuple[int, int] = (3, 8)
    others: tuple[int, int] = (0, 1)
    per_point: tuple[int, ...] = (1, 2, 4)
    size: float = 0.3
    time: float = 1e3


#: What carries the perturbations of digits, and where they are computed.
RIDES = (("others", "carrier"), ("others", "data"), ("uniform", "carrier"), ("gaussian", "carrier"))


def cells(scale: str, seeds: int) -> list[Config]:
    """The work as JSON-able configs: noise of a dimension, or digits.

    Args:
        scale: "small", a tenth of the published numbers, all kinds, learners and seeds of a
            dimension in one cell, as they share their compilations; "paper", the published numbers,
            in a cell each.
        seeds: draws of everything.

    Raises ValueError or TypeError for another scale or no seeds.
    """
    check_choice(scale, "scale", tuple(SCALES))
    check_count(seeds, "seeds")
    found = []
    for d in SCALES[scale]["d"]:
        found += _noise_cells(scale, d, seeds)
    return [*found, _digits_cell(seeds)]


def _noise_cells(scale: str, d: int, seeds: int) -> list[Config]:
    """The cells of a dimension."""
    s = SCALES[scale]
    published = SCALES["paper"]
    fewer = published["n"] / s["n"]
    size = RELATIVE_SIZE * np.sqrt(fewer)
    noise = {
        "part": "noise",
        "n": s["n"],
        "m": s["m"],
        "relative_size": float(size),
        "time": TIME,
        "width": s["width"],
        "steps": s["steps"],
        "d": d,
    }
    learners = list(LEARNERS)
    if d > s["network_d"]:
        learners.remove("network")
    if scale == "small":
        together = {"kinds": list(KINDS), "learners": learners, "first": 0, "seeds": seeds}
        return [noise | together]
    found = []
    for kind, name, seed in itertools.product(KINDS, learners, range(seeds)):
        one = {"kinds": [kind], "learners": [name], "first": seed, "seeds": 1}
        found.append(noise | one)
    return found


def _digits_cell(seeds: int) -> Config:
    losses = list(LEARNERS[:2])
    digits: Json = {"part": "digits", "learners": losses}
    for name, value in dataclasses.asdict(Digits()).items():
        digits[name] = list(value) if isinstance(value, tuple) else value
    return digits | {"first": 0, "seeds": seeds}


def measure(config: Config) -> Arrays:
    """The numbers of one cell, a pure function of its config (see `cells`).

    accuracy_f, accuracy, control: of f, g and the control. Part "noise" (s, kinds, learners): on
    the n labelled points, which f alone has seen; labels are random, so that there are no others.
    `agreement`, `control_agreement`: with f, on new points. Part "digits", on new digits: of f (s,
    learners), of g and the control (s, learners, rides, numbers of carriers).

    Raises ValueError for an unknown part, kind or learner.
    """
    check_choice(config["part"], "part", ("noise", "digits"))
    first = config["first"]
    learners = config["learners"]
    rows = []
    for seed in range(first, first + config["seeds"]):
        if config["part"] == "digits":
            of_seed = [_digits(config, name, seed) for name in learners]
            rows.append(of_seed)
            continue
        of_kinds = []
        for kind in config["kinds"]:
            of_kind = [_noise(config, kind, name, seed) for name in learners]
            of_kinds.append(of_kind)
        rows.append(of_kinds)
    return _by_name(rows)


def _by_name(rows: Any) -> Arrays:
    """Nested lists of records as a record of arrays."""

    def taken(rows: Any, name: str) -> Any:
        if isinstance(rows, list):
            return [taken(row, name) for row in rows]
        return rows[name]

    first = rows
    while isinstance(first, list):
        first = first[0]
    found = {}
    for name in first:
        found[name] = np.array(taken(rows, name), float)
    return found


def learner(config: Config, name: str, slope: float) -> Any:
    """What trains both networks: in the kernel limit, or of finite width by the predecessor's
    recipe.

        learner({"time": 100.0}, "exponential", slope=0.0)(x, y, key)  # f

    Raises ValueError for another name than those of LEARNERS.
    """
    check_choice(name, "learners", LEARNERS)
    if name == "network":
        return NetworkLearner(
            config["width"],
            slope,
            loss="exponential",
            optimizer=paper_optimizer(RATE, MOMENTUM),
            steps=config["steps"],
            plateau=Plateau(),
        )
    time = config["time"] if name == "exponential" else 1.0
    return KernelLearner(TwoLayerNTK(slope), name, GradientFlow(time))


def _noise(config: Config, kind: str, name: str, seed: int) -> Json:
    """As `learn_from_perturbations(carrier=kind, at="carrier")`, without the diagnosis, which
    compiles for long.
    """
    n = config["n"]
    m = config["m"]
    d = config["d"]
    root = jax.random.key(4)
    key = jax.random.fold_in(root, seed)
    x_key, y_key, carrier_key, targets_key, new_key, *learner_keys = jax.random.split(key, 8)
    x = draw_noise(kind, n, (d,), key=x_key)
    y = draw_targets("coin_flip", n, key=y_key)
    carrier = draw_noise(kind, m, (d,), key=carrier_key)
    targets = draw_targets("coin_flip", m, key=targets_key)
    # Labelled and new points together are as many as carriers: one compilation.
    rest = m - n
    new = draw_noise(kind, rest, (d,), key=new_key)
    z = jnp.concatenate([x, new])

    f_key, g_key, control_key = learner_keys
    train = learner(config, name, SLOPE)
    f = train(x, y, f_key)
    delta = _perturbations(config, kind, f, carrier, targets)
    g = train(carrier + delta, targets, g_key)
    control = train(carrier, targets, control_key)
    of_f = f(z)
    of_g = g(z)
    of_control = control(z)
    labelled = slice(n)
    unseen = slice(n, None)
    f_unseen = of_f[unseen]
    return {
        "accuracy_f": accuracy(of_f[labelled], y),
        "accuracy": accuracy(of_g[labelled], y),
        "control": accuracy(of_control[labelled], y),
        "agreement": agreement(f_unseen, of_g[unseen]),
        "control_agreement": agreement(f_unseen, of_control[unseen]),
    }


def _perturbations(config: Config, kind: str, f: Any, carrier: Array, targets: Array) -> Array:
    """Of noise, inside the cube where noise is uniform."""
    d = carrier.shape[1]
    length = np.sqrt(d)
    bounds = None
    if kind == "uniform":
        length = np.sqrt(d / 3)
        bounds = (-1.0, 1.0)
    size = config["relative_size"] * length
    found = perturb(f, carrier, targets, size=float(size), bounds=bounds)
    return found.delta


def _digits(config: Config, name: str, seed: int) -> Json:
    root = jax.random.key(5)
    key = jax.random.fold_in(root, seed)
    split_key, part_key, others_key, ride_key = jax.random.split(key, 4)
    images = datasets.mnist5k(classes=config["digits"])
    rest, test = images.split(test=config["test"], key=split_key)
    part = rest.subset(config["n"], key=part_key)
    x = part.inputs
    n, d = x.shape
    largest = max(config["per_point"]) * n
    others = datasets.mnist5k(classes=config["others"]).inputs
    shuffled = jax.random.permutation(others_key, len(others))
    others = others[shuffled[:largest]]
    train = learner(config, name, 0.0)
    f = train(x, part.targets, None)

    def toward(points: Array) -> Array:
        """Perturbations toward +1; those toward -1 are their negatives."""
        plus = jnp.ones(len(points))
        return perturb(f, points, plus, size=config["size"]).delta

    def learned(inputs: Array, targets: Array) -> Array:
        """The accuracy on new digits of a network that learned from the inputs."""
        g = train(inputs, targets, None)
        return accuracy(g(test.inputs), test.targets)

    found = {"accuracy": [], "control": []}
    for i, (carrier, at) in enumerate(RIDES):
        points = others
        if carrier != "others":
            points = draw_noise(carrier, largest, (d,), key=ride_key)
        where = points if at == "carrier" else x
        step = toward(where)
        if len(step) < largest:
            step = jnp.tile(step, (largest // n, 1))
        learns = []
        controls = []
        for count in config["per_point"]:
            m = count * n
            # The two ways to perturb other digits share their targets, and so their control.
            number = count if i < 2 else 100 * i + count
            key = jax.random.fold_in(ride_key, number)
            targets = draw_targets("balanced", m, key=key)
            delta = targets[:, None] * step[:m]
            carriers = points[:m]
            controls.append(learned(carriers, targets))
            learns.append(learned(carriers + delta, targets))
        found["accuracy"].append(learns)
        found["control"].append(controls)
    of_f = f(test.inputs)
    return {"accuracy_f": accuracy(of_f, test.targets), **found}
