"""Does learning from perturbations need two layers? Depth 1 to 8, convolutions, residual blocks,
and across kernels.

A network f of one architecture learns data, every training point is perturbed toward a random
label, and a network g of the same architecture, or of another, learns nothing but the
perturbations.

    results = [(config, measure(config)) for config in cells("small", seeds=4)]
    print(text(results))
    draw(results).savefig("architectures.png")

Everything is infinitely wide and trained on the squared loss from zero to the end: kernels of
different architectures differ in scale, and no finite time means the same for all. Targets are
balanced, since all of these networks train biases (see `diagnosis`).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from perturbkernel import data as datasets
from perturbkernel.attacks.norms import normalise
from perturbkernel.attacks.one_step import perturb
from perturbkernel.checks import check_choice, check_count
from perturbkernel.data.draws import draw_targets
from perturbkernel.kernels.architectures import ArchitectureNTK
from perturbkernel.metrics import accuracy, agreement, cosine
from perturbkernel.reproduce.records import Arrays, Config, Json
from perturbkernel.reproduce.studies.architectures.figure import draw as draw
from perturbkernel.reproduce.studies.architectures.figure import summarise as summarise
from perturbkernel.reproduce.studies.architectures.figure import text as text
from perturbkernel.reproduce.studies.settings import from_config
from perturbkernel.training.dynamics import GradientFlow
from perturbkernel.training.fit import fit
from perturbkernel.training.predictors import KernelPredictor

#: The networks of the transfer matrix: a name, a constructor of ArchitectureNTK and its arguments.
NETWORKS: tuple[Json, ...] = (
    {"name": "ReLU 1", "family": "fully_connected", "depth": 1, "activation": "relu"},
    {"name": "ReLU 6", "family": "fully_connected", "depth": 6, "activation": "relu"},
    {"name": "leaky 2", "family": "fully_connected", "depth": 2, "activation": "leaky_relu"},
    {"name": "erf 2", "family": "fully_connected", "depth": 2, "activation": "erf"},
    {"name": "GELU 2", "family": "fully_connected", "depth": 2, "activation": "gelu"},
    {"name": "residual 3", "family": "residual", "blocks": 3},
    {
        "name": "conv 2, flattened",
        "family": "convolutional",
        "depth": 2,
        "stride": 2,
        "pooling": False,
    },
    {"name": "conv 2, pooled", "family": "convolutional", "depth": 2, "stride": 2, "pooling": True},
)
ACTIVATIONS = ("relu", "erf")
DEPTHS = {"small": (1, 2, 3, 5, 8), "paper": tuple(range(1, 9))}
#: Part -> training points, new points, side of the images; and seeds computed in one cell (None:
#: all of them).
SIZES: dict[str, Json] = {
    "small": {"depth": (200, 400, 14), "transfer": (100, 150, 7), "seeds": None},
    "paper": {"depth": (500, 400, 14), "transfer": (200, 200, 14), "seeds": 1},
}
#: What perturbations are added to: nothing, scenario (a); the training points, (b); Gaussian noise
#: of their size.
CARRIERS = ("alone", "data", "noise")


@dataclasses.dataclass(frozen=True)
class Setting:
    """n training points, `test` new ones, of side^2 numbers each; perturbations of length `size`
    times the data's.

    Data: the digits `digits` of mnist5k, means over squares of pixels; or two Gaussian classes,
    identity covariance, whose means lie 2 `separation` apart along (1, .., 1). A data set's length
    is the root mean square of its rows'.
    """

    n: int
    test: int
    side: int
    digits: tuple[int, int] = (3, 8)
    separation: float = 1.4
    size: float = 0.3


def cells(scale: str, seeds: int) -> list[Config]:
    """The work as JSON-able configs: networks that learn from each other, data sets, seeds.

    Args:
        scale: "small"; "paper", more points and depths.
        seeds: draws of data, targets and noise.

    Raises ValueError or TypeError for another scale or no seeds.
    """
    check_choice(scale, "scale", tuple(SIZES))
    check_count(seeds, "seeds")
    sizes = SIZES[scale]
    step = sizes["seeds"] or seeds
    transfer = {
        "part": "transfer",
        "networks": list(NETWORKS),
        "data": ["digits"],
        "carriers": ["alone", "data"],
        **_setting(*sizes["transfer"]),
    }
    found = []
    for first in range(0, seeds, step):
        count = min(step, seeds - first)
        found.append(transfer | {"first": first, "seeds": count})
    for activation in ACTIVATIONS:
        for count in DEPTHS[scale]:
            layers = {"family": "fully_connected", "depth": count, "activation": activation}
            depth = {
                "part": "depth",
                "networks": [{"name": f"{activation} {count}", **layers}],
                "data": ["digits", "gaussian"],
                "carriers": list(CARRIERS),
                **_setting(*sizes["depth"]),
            }
            found.append(depth | {"first": 0, "seeds": seeds})
    return found


def _setting(n: int, test: int, side: int) -> Json:
    """As JSON holds it."""
    setting = dataclasses.asdict(Setting(n, test, side))
    return setting | {"digits": list(Setting.digits)}


def network(config: Config, side: int) -> ArchitectureNTK:
    """The kernel that a config of NETWORKS describes, for images of side x side.

    network(NETWORKS[0], side=14)
    """
    options = dict(config)
    del options["name"]
    family = options.pop("family")
    if family == "convolutional":
        options["input_shape"] = (side, side, 1)
    construct = getattr(ArchitectureNTK, family)
    return construct(**options)


# --- one cell ---


class Problem(NamedTuple):
    """Training points with labels, new points with labels, and what is random about g."""

    x: Array
    y: Array
    z: Array
    labels: Array
    targets: Array
    carriers: dict[str, Array]
    size: Array  # of perturbations, in the units of the inputs
    key: PRNGKeyArray  # of random directions


def measure(config: Config) -> Arrays:
    """The numbers of one cell, a pure function of its config (see `cells`).

    Axes: k data sets, s seeds, c carriers, sources and learners, both the networks of the config.

        accuracy_f (k, s, learners): of f, trained on the data itself, on new points;
        accuracy, agreement (k, s, c, sources, learners): of the learner, trained on the source's
            perturbations added to the carrier, on new points; its agreement with the source's f;
        control_accuracy, control_agreement (k, s, c, learners): the same for random directions of
            the same size, the agreement with the learner's f;
        cosine (k, s, sources, learners): the mean cosine of their perturbations of a point.
    """
    s = from_config(Setting, config)
    kernels = [network(one, s.side) for one in config["networks"]]
    first = config["first"]
    seeds = range(first, first + config["seeds"])
    rows = []
    for name in config["data"]:
        problems = [_problem(name, s, seed) for seed in seeds]
        of_data = [_one(kernels, config["carriers"], problem) for problem in problems]
        rows.append(of_data)
    found = {}
    for name in rows[0][0]:
        values = [[row[name] for row in of_data] for of_data in rows]
        found[name] = np.array(values)
    return found


def _problem(name: str, s: Setting, seed: int) -> Problem:
    check_choice(name, "data", ("digits", "gaussian"))
    root = jax.random.key(2)
    key = jax.random.fold_in(root, seed)
    first_key, second_key, noise_key, targets_key, random_key = jax.random.split(key, 5)
    if name == "digits":
        images = datasets.mnist5k(classes=s.digits)
        rest, new = images.split(test=s.test, key=first_key)
        train = rest.subset(s.n, key=second_key)
        x = _smaller(train.images, s.side)
        z = _smaller(new.images, s.side)
    else:
        d = s.side**2
        shift = s.separation / s.side
        train = datasets.shifted_gaussian(s.n, d, shift, key=first_key)
        new = datasets.shifted_gaussian(s.test, d, shift, key=second_key)
        x = train.inputs
        z = new.inputs
    scale = jnp.sqrt(jnp.mean(x**2))
    noise = jax.random.normal(noise_key, x.shape)
    return Problem(
        x=x,
        y=train.targets,
        z=z,
        labels=new.targets,
        targets=draw_targets("balanced", s.n, key=targets_key),
        carriers={"alone": jnp.zeros_like(x), "data": x, "noise": scale * noise},
        size=s.size * s.side * scale,
        key=random_key,
    )


def _smaller(images: Array, side: int) -> Array:
    """(n, 28, 28, 1) -> (n, side^2), means over squares of pixels."""
    n = len(images)
    block = images.shape[1] // side
    squares = images.reshape(n, side, block, side, block)
    means = squares.mean((2, 4))
    return means.reshape(n, -1)


def _trained(kernel: ArchitectureNTK, x: Array, y: Array) -> KernelPredictor:
    return fit(kernel, x, y, loss="squared", dynamics=GradientFlow(np.inf))


def _one(kernels: list[ArchitectureNTK], carriers: list[str], p: Problem) -> Arrays:
    """The numbers of `measure` for one data set and seed."""
    firsts = [_trained(kernel, p.x, p.y) for kernel in kernels]
    of_f = [f(p.z) for f in firsts]
    size = float(p.size)
    deltas = [perturb(f, p.x, p.targets, size=size).delta for f in firsts]
    normal = jax.random.normal(p.key, p.x.shape)
    random = p.size * normalise(normal, "l2")

    def learned(delta) -> list[list[Array]]:
        """Outputs of every learner on every carrier, (c, learners) of them."""
        outputs = []
        for carrier in carriers:
            inputs = p.carriers[carrier] + delta
            learners = [_trained(kernel, inputs, p.targets) for kernel in kernels]
            outputs.append([g(p.z) for g in learners])
        return outputs

    def accuracies_of(row: list[Array]) -> list[Array]:
        return [accuracy(outputs, p.labels) for outputs in row]

    def mean_cosines(source: Array) -> list[Array]:
        return [cosine(source, own).mean() for own in deltas]

    of_g = [learned(delta) for delta in deltas]  # sources, c, learners
    accuracies = []
    agreements = []
    for f, of_source in zip(of_f, of_g, strict=True):
        accuracies.append([accuracies_of(row) for row in of_source])
        agreements.append([[agreement(f, g) for g in row] for row in of_source])
    control_accuracies = []
    control_agreements = []
    for row in learned(random):
        pairs = zip(of_f, row, strict=True)
        control_accuracies.append(accuracies_of(row))
        control_agreements.append([agreement(f, g) for f, g in pairs])
    found = {
        "accuracy_f": accuracies_of(of_f),
        "accuracy": np.swapaxes(accuracies, 0, 1),
        "agreement": np.swapaxes(agreements, 0, 1),
        "control_accuracy": control_accuracies,
        "control_agreement": control_agreements,
        "cosine": [mean_cosines(source) for source in deltas],
    }
    return {name: np.array(values, float) for name, values in found.items()}
