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

from perturbkernel import data as datasets
from perturbkernel.attacks.one_step import perturb
from perturbkernel.checks import check_choice, check_count
from perturbkernel.data.draws import draw_noise, draw_targets
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.metrics import accuracy, agreement
from perturbkernel.networks.ensembles import NetworkLearner
from perturbkernel.networks.optimizers import Plateau, paper_optimizer
from perturbkernel.reproduce.studies.carriers.figure import draw as draw
from perturbkernel.reproduce.studies.carriers.figure import summarise as summarise
from perturbkernel.reproduce.studies.carriers.figure import text as text
from perturbkernel.training.dynamics import GradientFlow
from perturbkernel.training.fit import KernelLearner

Arrays = dict[str, np.ndarray]

KINDS = ("uniform", "gaussian")
LEARNERS = ("identity", "exponential", "network")
#: Training points, noise points, dimensions; of the finite network width, steps and the largest
#: dimension.
SCALES: dict[str, dict[str, Any]] = {
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


def cells(scale: str, seeds: int) -> list[dict[str, Any]]:
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
    s = SCALES[scale]
    size = RELATIVE_SIZE * np.sqrt(SCALES["paper"]["n"] / s["n"])
    noise = {"part": "noise", "n": s["n"], "m": s["m"], "relative_size": float(size), "time": TIME}
    noise |= {"width": s["width"], "steps": s["steps"]}
    found = []
    for d in s["d"]:
        learners = [name for name in LEARNERS if name != "network" or d <= s["network_d"]]
        together = {"d": d, "kinds": list(KINDS), "learners": learners, "first": 0, "seeds": seeds}
        if scale == "small":
            found.append(noise | together)
            continue
        for kind, name, seed in itertools.product(KINDS, learners, range(seeds)):
            one = {"d": d, "kinds": [kind], "learners": [name], "first": seed, "seeds": 1}
            found.append(noise | one)
    digits: dict[str, Any] = {"part": "digits", "learners": list(LEARNERS[:2])}
    for name, value in dataclasses.asdict(Digits()).items():
        digits[name] = list(value) if isinstance(value, tuple) else value
    found.append(digits | {"first": 0, "seeds": seeds})
    return found


def measure(config: dict[str, Any]) -> Arrays:
    """The numbers of one cell, a pure function of its config (see `cells`).

    accuracy_f, accuracy, control: of f, g and the control. Part "noise" (s, kinds, learners): on
    the n labelled points, which f alone has seen; labels are random, so that there are no others.
    `agreement`, `control_agreement`: with f, on new points. Part "digits", on new digits: of f (s,
    learners), of g and the control (s, learners, rides, numbers of carriers).

    Raises ValueError for an unknown part, kind or learner.
    """
    check_choice(config["part"], "part", ("noise", "digits"))
    seeds = range(config["first"], config["first"] + config["seeds"])
    rows = []
    for seed in seeds:
        if config["part"] == "digits":
            rows.append([_digits(config, name, seed) for name in config["learners"]])
            continue
        of_seed = []
        for kind in config["kinds"]:
            of_seed.append([_noise(config, kind, name, seed) for name in config["learners"]])
        rows.append(of_seed)
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
    return {name: np.array(taken(rows, name), float) for name in first}


def learner(config: dict[str, Any], name: str, slope: float) -> Any:
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


def _noise(config: dict[str, Any], kind: str, name: str, seed: int) -> dict[str, Any]:
    """As `learn_from_perturbations(carrier=kind, at="carrier")`, without the diagnosis, which
    compiles for long.
    """
    n, m, d = config["n"], config["m"], config["d"]
    keys = jax.random.split(jax.random.fold_in(jax.random.key(4), seed), 8)
    x = draw_noise(kind, n, (d,), key=keys[0])
    y = draw_targets("coin_flip", n, key=keys[1])
    carrier = draw_noise(kind, m, (d,), key=keys[2])
    targets = draw_targets("coin_flip", m, key=keys[3])
    # Labelled and new points together are as many as carriers: one compilation.
    new = draw_noise(kind, m - n, (d,), key=keys[4])
    z = jnp.concatenate([x, new])
    train = learner(config, name, SLOPE)
    f = train(x, y, keys[5])
    length = np.sqrt(d / 3 if kind == "uniform" else d)  # of a carrier
    size = config["relative_size"] * length
    bounds = (-1.0, 1.0) if kind == "uniform" else None
    delta = perturb(f, carrier, targets, size=float(size), bounds=bounds).delta
    of_f = f(z)
    of_g = train(carrier + delta, targets, keys[6])(z)
    control = train(carrier, targets, keys[7])(z)
    return {
        "accuracy_f": accuracy(of_f[:n], y),
        "accuracy": accuracy(of_g[:n], y),
        "control": accuracy(control[:n], y),
        "agreement": agreement(of_f[n:], of_g[n:]),
        "control_agreement": agreement(of_f[n:], control[n:]),
    }


def _digits(config: dict[str, Any], name: str, seed: int) -> dict[str, Any]:
    keys = jax.random.split(jax.random.fold_in(jax.random.key(5), seed), 4)
    images = datasets.mnist5k(classes=config["digits"])
    rest, test = images.split(test=config["test"], key=keys[0])
    part = rest.subset(config["n"], key=keys[1])
    x, y = part.inputs, part.targets
    n, d = x.shape
    largest = max(config["per_point"]) * n
    others = datasets.mnist5k(classes=config["others"]).inputs
    others = others[jax.random.permutation(keys[2], len(others))[:largest]]
    train = learner(config, name, 0.0)
    f = train(x, y, None)

    def toward(points):
        """Perturbations toward +1; those toward -1 are their negatives."""
        return perturb(f, points, jnp.ones(len(points)), size=config["size"]).delta

    def learned(inputs, targets):
        """The accuracy on new digits of a network that learned from the inputs."""
        return accuracy(train(inputs, targets, None)(test.inputs), test.targets)

    found = {"accuracy": [], "control": []}
    for i, (carrier, at) in enumerate(RIDES):
        points = others
        if carrier != "others":
            points = draw_noise(carrier, largest, (d,), key=keys[3])
        step = toward(points) if at == "carrier" else jnp.tile(toward(x), (largest // n, 1))
        learns, controls = [], []
        for count in config["per_point"]:
            m = count * n
            # The two ways to perturb other digits share their targets, and so their control.
            number = count if i < 2 else 100 * i + count
            key = jax.random.fold_in(keys[3], number)
            targets = draw_targets("balanced", m, key=key)
            controls.append(learned(points[:m], targets))
            learns.append(learned(points[:m] + targets[:, None] * step[:m], targets))
        found["accuracy"].append(learns)
        found["control"].append(controls)
    return {"accuracy_f": accuracy(f(test.inputs), test.targets), **found}
