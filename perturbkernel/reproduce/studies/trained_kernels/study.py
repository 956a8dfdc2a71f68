"""What does the kernel of a trained network know, and does it predict what a second, real network
learns from perturbations?

A network of two hidden layers learns two digits. After some numbers of epochs its tangent kernel
K_t is taken, and f_t trained with it from zero, to interpolation, on the same digits. Training
digits are perturbed toward random labels, by one step of the network or of f_t; real networks then
learn from that alone, one from a fresh start and one from the checkpoint, and g is predicted in
closed form by the kernel at either start. Beside that: the attack on one against the other, and
kernels of a network that was trained on perturbed inputs.

    results = [(config, measure(config)) for config in cells("small", seeds=2)]
    print(text(results))
    draw(results).savefig("trained_kernels.png")

Everything learns by the squared loss, and time has one unit, `unit_rate`, so that no kernel is
given longer than another. The network from the checkpoint is centred, its outputs minus those at
the checkpoint: what it decides, it learned from the perturbations.

Source of the last question: Loo, Hasani, Amini, Rus, *Evolution of Neural Tangent Kernels under
Benign and Adversarial Training* (NeurIPS 2022): a kernel taken after adversarial training is
robust, even when what is trained with it afterwards is not trained to be.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from perturbkernel import data as datasets
from perturbkernel.attacks.iterated import attack
from perturbkernel.attacks.one_step import perturb
from perturbkernel.checks import check_choice, check_count
from perturbkernel.data.dataset import Dataset
from perturbkernel.data.draws import draw_targets
from perturbkernel.kernels.empirical import EmpiricalNTK
from perturbkernel.metrics import accuracy, agreement
from perturbkernel.reproduce.records import Arrays, Config, Json
from perturbkernel.reproduce.studies.settings import from_config
from perturbkernel.reproduce.studies.trained_kernels import network
from perturbkernel.reproduce.studies.trained_kernels.figure import draw as draw
from perturbkernel.reproduce.studies.trained_kernels.figure import summarise as summarise
from perturbkernel.reproduce.studies.trained_kernels.figure import text as text
from perturbkernel.reproduce.studies.trained_kernels.network import Learner
from perturbkernel.training.dynamics import GradientFlow
from perturbkernel.training.fit import fit

#: What differs between the scales: training points and new ones, width, epochs of the checkpoints.
SCALES: dict[str, Json] = {
    "small": {"n": 400, "test": 400, "width": 48, "epochs": (0, 1, 4, 16, 64, 256)},
    "paper": {
        "n": 800,
        "test": 200,
        "width": 128,
        "epochs": (0, 1, 2, 4, 8, 16, 32, 64, 256, 1024),
    },
}
#: Learning rates of first and second networks, in units of `unit_rate`. Second ones learn inputs
#: that are short, and at rate 1 some leave the kernel's regime and diverge.
FIRST_RATE, SECOND_RATE = 1.0, 0.25
#: Whose gradient perturbs: the network at the checkpoint, or f_t.
SOURCES = ("network", "kernel")
SCENARIOS = ("a", "b")
#: Where the second network starts, and at which start the kernel is taken.
STARTS = ("fresh", "checkpoint")
#: What attacks, and what is attacked.
ATTACKS = ("network", "kernel", "random")


@dataclasses.dataclass(frozen=True)
class Setting:
    """n training digits, `test` new ones; hidden layers of `width`; checkpoints after `epochs`.

    Second networks are trained for `second` epochs, in batches of `batch` as the first. `size` of
    the perturbations that teach and that are tried on others, `radius` of those of adversarial
    training and of the attack on what it gives, in l2; attacks take `steps`.
    """

    n: int = 400
    test: int = 400
    width: int = 48
    epochs: tuple[int, ...] = (0, 1, 4, 16, 64, 256)
    second: int = 32
    batch: int = 50
    digits: tuple[int, int] = (4, 9)
    size: float = 1.5
    radius: float = 1.0
    steps: int = 10


def cells(scale: str, seeds: int) -> list[Config]:
    """The work as JSON-able configs, one for each draw of data, starts and targets.

    Args:
        scale: "small"; "paper", more digits, a wider network and more checkpoints.
        seeds: how many.

    Raises ValueError or TypeError for another scale or no seeds.
    """
    check_choice(scale, "scale", tuple(SCALES))
    check_count(seeds, "seeds")
    setting = dataclasses.asdict(Setting(**SCALES[scale]))
    for name in ("epochs", "digits"):
        setting[name] = list(setting[name])
    return [setting | {"seed": seed} for seed in range(seeds)]


class Problem(NamedTuple):
    """What a seed draws: data, starts of the first network and of second ones, targets."""

    train: Dataset
    test: Dataset
    start: Any
    fresh: Any
    targets: Array
    key: PRNGKeyArray


class Checkpoint(NamedTuple):
    """A network, its kernel, and f, trained with the kernel from zero."""

    params: Any
    at: Callable[..., Any]
    kernel: EmpiricalNTK
    f: Any


def measure(config: Config) -> Arrays:
    """The numbers of one cell, a pure function of its config (see `cells`).

    Axes: t checkpoints; 2 SOURCES; 2 SCENARIOS; 2 STARTS of the second network; 2 STARTS at which
    the kernel is taken. Accuracies are on new digits.

        alignment (t,): of the kernel with the labels, <K, y y^T> / (|K| n).
        first (t, 2): accuracy of the network and of f.
        learned (t, 2, 2, 2): of second networks.
        predicted (t, 2, 2, 2): of g, by the kernel at either start.
        agreement, by_chance (t, 2, 2, 2, 2): of the signs of second network and g; and what it
            would be if the two erred independently.
        moved (t, 2, 3): of network and f on digits moved by the attack on the network, on f, and at
            random.
        clean, robust (t, 2, 2): network and f, of the network that was trained on digits as they
            are, and on perturbed ones; under attack, each by its own.
    """
    s = from_config(Setting, config)
    p = problem(s, config["seed"])
    rows = []
    for benign, hardened in zip(trajectory(s, p, None), trajectory(s, p, s.radius), strict=True):
        rows.append(_at_checkpoint(s, p, benign, hardened))
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}


def problem(s: Setting, seed: int) -> Problem:
    """What seed number `seed` draws.

    problem(Setting(n=100), seed=0).train.inputs
    """
    root = jax.random.key(7)
    key = jax.random.fold_in(root, seed)
    split_key, part_key, start_key, fresh_key, targets_key, rest_key = jax.random.split(key, 6)
    images = datasets.mnist5k(classes=s.digits)
    rest, test = images.split(test=s.test, key=split_key)
    train = rest.subset(s.n, key=part_key)
    d = train.inputs.shape[1]
    return Problem(
        train,
        test,
        network.initial_parameters(d, s.width, start_key),
        network.initial_parameters(d, s.width, fresh_key),
        draw_targets("balanced", s.n, key=targets_key),
        rest_key,
    )


def trajectory(s: Setting, p: Problem, radius: float | None) -> list[Checkpoint]:
    """The checkpoints of the first network, trained on digits moved within `radius`, or as they
    are; f is trained on digits as they are.

    trajectory(s, problem(s, seed=0), None)[0].kernel
    """
    x, y = p.train.inputs, p.train.targets
    learner = Learner(p.start, 0.0)
    state = network.begin(learner)
    rate = FIRST_RATE * network.unit_rate(p.start, x)
    found = []
    done = 0
    for epochs in s.epochs:
        if epochs > done:
            key = jax.random.fold_in(p.key, epochs)
            more = epochs - done
            state = network.train(
                learner, state, (x, y), rate, radius, key, epochs=more, batch=s.batch
            )
            done = epochs
        found.append(_checkpoint(state.params, x, y))
    return found


def _checkpoint(params: Any, x: Array, y: Array) -> Checkpoint:
    kernel = EmpiricalNTK(network.apply, params)
    f = fit(kernel, x, y, loss="squared", dynamics=GradientFlow(math.inf))
    at = jax.tree_util.Partial(network.apply, params)
    return Checkpoint(params, at, kernel, f)


def _at_checkpoint(s: Setting, p: Problem, benign: Checkpoint, hardened: Checkpoint) -> Json:
    z, labels = p.test.inputs, p.test.targets
    found = _taught(s, p, benign)
    gram = np.asarray(benign.kernel.ntk(p.train.inputs), float)
    y = np.asarray(p.train.targets, float)
    norm = np.linalg.norm(gram) * len(y)
    found["alignment"] = y @ gram @ y / norm
    found["first"] = [accuracy(f(z), labels) for f in (benign.at, benign.f)]
    found["moved"] = _moved(s, p, benign)
    found["clean"] = []
    found["robust"] = []
    for checkpoint in (benign, hardened):
        both = checkpoint.at, checkpoint.f
        found["clean"].append([accuracy(f(z), labels) for f in both])
        found["robust"].append([_under_attack(s, f, z, labels) for f in both])
    for name in ("clean", "robust"):
        found[name] = np.transpose(found[name])
    return found


def _under_attack(s: Setting, f: Any, z: Array, labels: Array) -> Array:
    delta = attack(f, z, labels, size=s.radius, steps=s.steps, away=True).delta
    return accuracy(f(z + delta), labels)


def _moved(s: Setting, p: Problem, checkpoint: Checkpoint) -> list[list[Array]]:
    """Accuracies of network and f on digits that each of ATTACKS moved."""
    z, labels = p.test.inputs, p.test.targets
    both = checkpoint.at, checkpoint.f
    moved = []
    for f in both:
        delta = attack(f, z, labels, size=s.size, steps=s.steps, away=True).delta
        moved.append(z + delta)
    noise = jax.random.normal(p.key, z.shape)
    length = jnp.linalg.norm(noise, axis=1, keepdims=True)
    moved.append(z + s.size * noise / length)
    return [[accuracy(f(there), labels) for there in moved] for f in both]


def _taught(s: Setting, p: Problem, checkpoint: Checkpoint) -> Json:
    """What second networks learn from the perturbations, and what kernels predict."""
    x = p.train.inputs
    z, labels = p.test.inputs, p.test.targets
    found: Json = {name: [] for name in ("learned", "predicted", "agreement", "by_chance")}
    for source in (checkpoint.at, checkpoint.f):
        delta = perturb(source, x, p.targets, size=s.size).delta
        of_source: Json = {name: [] for name in found}
        for carrier in (jnp.zeros_like(x), x):
            real, closed = second(s, p, checkpoint.params, carrier + delta)
            of_real = [learner(z) for learner in real]
            of_closed = [g(z) for g in closed]
            compared = _compared(of_real, of_closed, labels)
            for name, value in compared.items():
                of_source[name].append(value)
        for name, value in of_source.items():
            found[name].append(value)
    return found


def second(
    s: Setting, p: Problem, params: Any, inputs: Array
) -> tuple[list[Callable], list[Callable]]:
    """Networks trained on the inputs and the problem's targets, from the fresh start and, centred,
    from `params`; and g, by the kernels at the two starts, for as long.

    real, closed = second(s, p, p.start, p.train.inputs)
    """
    real = []
    closed = []
    time = network.flow_time(s.n, s.second, s.batch)
    for start, centred in ((p.fresh, 0.0), (params, 1.0)):
        rate = SECOND_RATE * network.unit_rate(start, inputs)
        learner = Learner(start, centred)
        state = network.train(
            learner,
            network.begin(learner),
            (inputs, p.targets),
            rate,
            None,
            p.key,
            epochs=s.second,
            batch=s.batch,
        )
        real.append(jax.tree_util.Partial(learner.outputs, state.params))
        initial = None if centred else jax.tree_util.Partial(network.apply, start)
        flow = GradientFlow(time * rate)
        kernel = EmpiricalNTK(network.apply, start)
        g = fit(kernel, inputs, p.targets, loss="squared", dynamics=flow, initial=initial)
        closed.append(g)
    return real, closed


def _compared(real: list[Array], closed: list[Array], labels: Array) -> Json:
    """Signs of every network beside those of every g."""
    agree = []
    chance = []
    for outputs in real:
        agree.append([agreement(outputs, g) for g in closed])
        chance.append([_by_chance(outputs, g, labels) for g in closed])
    return {
        "learned": [accuracy(outputs, labels) for outputs in real],
        "predicted": [accuracy(g, labels) for g in closed],
        "agreement": agree,
        "by_chance": chance,
    }


def _by_chance(f: Array, g: Array, labels: Array) -> float:
    """How often two would agree that are right as often on either digit, but independently."""
    found = 0.0
    for label in (-1, 1):
        own = np.asarray(labels) == label
        of_f = float(accuracy(f[own], labels[own]))
        of_g = float(accuracy(g[own], labels[own]))
        found += own.mean() * (of_f * of_g + (1 - of_f) * (1 - of_g))
    return found
