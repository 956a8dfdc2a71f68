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
from typing import Any, NamedTuple

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
from perturbkernel.reproduce.studies.architectures.figure import draw as draw
from perturbkernel.reproduce.studies.architectures.figure import summarise as summarise
from perturbkernel.reproduce.studies.architectures.figure import text as text
from perturbkernel.training.dynamics import GradientFlow
from perturbkernel.training.fit import fit
from perturbkernel.training.predictors import KernelPredictor

Arrays = dict[str, np.ndarray]

#: The networks of the transfer matrix: a name, a constructor of ArchitectureNTK and its arguments.
NETWORKS: tuple[dict[str, Any], ...] = (
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
SIZES: dict[str, dict[str, Any]] = {
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


def cells(scale: str, seeds: int) -> list[dict[str, Any]]:
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
        found.append(transfer | {"first": first, "seeds": min(step, seeds - first)})
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


def _setting(n: int, test: int, side: int) -> dict[str, Any]:
    """As JSON holds it."""
    setting = dataclasses.asdict(Setting(n, test, side))
    return setting | {"digits": list(Setting.digits)}


def network(config: dict[str, Any], side: int) -> ArchitectureNTK:
    """The kernel that a config of NETWORKS describes, for images of side x side.

    network(NETWORKS[0], side=14)
    """
    options = {name: value for name, value in config.items() if name not in ("name", "family")}
    if config["family"] == "convolutional":
        options["input_shape"] = (side, side, 1)
    return getattr(ArchitectureNTK, config["family"])(**options)


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


def measure(config: dict[str, Any]) -> Arrays:
    """The numbers of one cell, a pure function of its config (see `cells`).

    Axes: k data sets, s seeds, c carriers, sources and learners, both the networks of the config.

        accuracy_f (k, s, learners): of f, trained on the data itself, on new points;
        accuracy, agreement (k, s, c, sources, learners): of the learner, trained on the source's
            perturbations added to the carrier, on new points; its agreement with the source's f;
        control_accuracy, control_agreement (k, s, c, learners): the same for random directions of
            the same size, the agreement with the learner's f;
        cosine (k, s, sources, learners): the mean cosine of their perturbations of a point.
    """
    s = Setting(**{field.name: config[field.name] for field in dataclasses.fields(Setting)})
    kernels = [network(one, s.side) for one in config["networks"]]
    seeds = range(config["first"], config["first"] + config["seeds"])
    rows = []
    for name in config["data"]:
        problems = [_problem(name, s, seed) for seed in seeds]
        rows.append([_one(kernels, config["carriers"], problem) for problem in problems])
    found = {}
    for name in rows[0][0]:
        found[name] = np.array([[row[name] for row in of_data] for of_data in rows])
    return found


def _problem(name: str, s: Setting, seed: int) -> Problem:
    check_choice(name, "data", ("digits", "gaussian"))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(2), seed), 5)
    if name == "digits":
        rest, new = datasets.mnist5k(classes=s.digits).split(test=s.test, key=keys[0])
        train = rest.subset(s.n, key=keys[1])
        x = _smaller(train.images, s.side)
        z = _smaller(new.images, s.side)
    else:
        d = s.side**2
        shift = s.separation / s.side
        train = datasets.shifted_gaussian(s.n, d, shift, key=keys[0])
        new = datasets.shifted_gaussian(s.test, d, shift, key=keys[1])
        x, z = train.inputs, new.inputs
    scale = jnp.sqrt(jnp.mean(x**2))
    carriers = {
        "alone": jnp.zeros_like(x),
        "data": x,
        "noise": scale * jax.random.normal(keys[2], x.shape),
    }
    targets = draw_targets("balanced", s.n, key=keys[3])
    size = s.size * s.side * scale
    return Problem(x, train.targets, z, new.targets, targets, carriers, size, keys[4])


def _smaller(images: Array, side: int) -> Array:
    """(n, 28, 28, 1) -> (n, side^2), means over squares of pixels."""
    n = len(images)
    block = images.shape[1] // side
    squares = images.reshape(n, side, block, side, block)
    return squares.mean((2, 4)).reshape(n, -1)


def _trained(kernel: ArchitectureNTK, x: Array, y: Array) -> KernelPredictor:
    return fit(kernel, x, y, loss="squared", dynamics=GradientFlow(np.inf))


def _one(kernels: list[ArchitectureNTK], carriers: list[str], p: Problem) -> Arrays:
    """The numbers of `measure` for one data set and seed."""
    firsts = [_trained(kernel, p.x, p.y) for kernel in kernels]
    of_f = [f(p.z) for f in firsts]
    deltas = [perturb(f, p.x, p.targets, size=float(p.size)).delta for f in firsts]
    random = p.size * normalise(jax.random.normal(p.key, p.x.shape), "l2")

    def learned(delta) -> list[list[Array]]:
        """Outputs of every learner on every carrier, (c, learners) of them."""
        outputs = []
        for carrier in carriers:
            inputs = p.carriers[carrier] + delta
            outputs.append([_trained(kernel, inputs, p.targets)(p.z) for kernel in kernels])
        return outputs

    of_g = [learned(delta) for delta in deltas]  # sources, c, learners
    accuracies, agreements = [], []
    for f, one in zip(of_f, of_g, strict=True):
        accuracies.append([[accuracy(g, p.labels) for g in row] for row in one])
        agreements.append([[agreement(f, g) for g in row] for row in one])
    control_accuracies, control_agreements = [], []
    for row in learned(random):
        control_accuracies.append([accuracy(g, p.labels) for g in row])
        control_agreements.append([agreement(f, g) for f, g in zip(of_f, row, strict=True)])
    found = {
        "accuracy_f": [accuracy(f, p.labels) for f in of_f],
        "accuracy": np.swapaxes(accuracies, 0, 1),
        "agreement": np.swapaxes(agreements, 0, 1),
        "control_accuracy": control_accuracies,
        "control_agreement": control_agreements,
        "cosine": [[cosine(source, own).mean() for own in deltas] for source in deltas],
    }
    return {name: np.array(values, float) for name, values in found.items()}
