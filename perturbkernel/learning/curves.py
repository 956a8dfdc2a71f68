"""What one looks at after an experiment: accuracy against perturbation size, and the plane of
decisions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perturbkernel.attacks.one_step import perturb
from perturbkernel.checks import check_count, check_number
from perturbkernel.data.dataset import Dataset
from perturbkernel.data.labels import encoded
from perturbkernel.kernels.base import Kernel
from perturbkernel.learning.diagnosis import diagnose
from perturbkernel.learning.experiment import PerturbationLearning
from perturbkernel.metrics import share_right


class SizeCurve(NamedTuple):
    """Accuracy of g on clean data against perturbation size; `expected` is the mean over target
    draws (12.3).
    """

    size: Float[Array, " s"]
    accuracy: Float[Array, " s"]
    expected: Float[Array, " s"] | None


def accuracy_against_size(
    r: PerturbationLearning, data: Dataset, sizes: Sequence[float]
) -> SizeCurve:
    """Trains g again at each size, with the same f, targets and directions; accuracy on `data`.

    `expected` is None if g's learner has no infinite-width kernel, or for K > 2 classes.
    """
    for size in sizes:
        check_number(size, "sizes")
    options, p, x = r.options, r.perturbation, r.attacked
    names = ("norm", "direction", "bounds")
    kernel = getattr(r.learner_g, "kernel", None)
    classes = len(r.train.classes)
    kernel = kernel if isinstance(kernel, Kernel) and classes == 2 else None
    measured, expected = [], []
    for size in sizes:
        delta = perturb(
            r.f, x, p.targets, size=size, **{name: options[name] for name in names}
        ).delta
        g = r.learner_g(r.carrier + delta, encoded(p.targets, classes), r.g_key)
        measured.append(share_right(g(data.inputs), data).mean())
        if kernel is not None:
            d = diagnose(
                kernel,
                r.carrier,
                delta,
                p.targets,
                data.inputs,
                data.targets,
                balanced=options["balanced"],
            )
            expected.append(d.expected_accuracy)
    return SizeCurve(
        jnp.asarray(sizes), jnp.stack(measured), jnp.stack(expected) if expected else None
    )


class DecisionMap(NamedTuple):
    """A plane through the data and both networks' outputs on it.

    Coordinates are lengths in input units: first axis along the difference of the class means, the
    second along the leading principal direction orthogonal to it, origin midway between the class
    means.
    """

    first: Float[Array, " r"]
    second: Float[Array, " r"]
    f: Float[Array, "r r"]  # rows: second axis
    g: Float[Array, "r r"]
    points: Float[Array, "n 2"]  # the training inputs, projected
    labels: Float[Array, " n"]


def decision_map(r: PerturbationLearning, resolution: int = 101) -> DecisionMap:
    """Outputs of f and g on the plane of DecisionMap, on a square grid that covers the projected
    training data.
    """
    check_count(resolution, "resolution", low=2)
    if len(r.train.classes) > 2:
        raise ValueError(f"a decision map is of two classes; these are {len(r.train.classes)}")
    x, y = np.asarray(r.train.inputs, float), np.asarray(r.train.targets)
    if len(np.unique(y)) < 2:
        raise ValueError("a decision map needs training points of both classes; got one")
    flat = x.reshape(len(x), -1)
    means = flat[y > 0].mean(0), flat[y < 0].mean(0)
    origin, first = (means[0] + means[1]) / 2, means[0] - means[1]
    length = np.linalg.norm(first)
    first = first / length if length > 0 else np.eye(flat.shape[1])[0]
    centred = flat - flat.mean(0)
    second = _leading_direction(centred - np.outer(centred @ first, first), np.abs(flat).max())
    plane = np.stack([first, second])
    points = (flat - origin) @ plane.T
    reach = 1.15 * (np.abs(points).max() or 1)
    ticks = np.linspace(-reach, reach, resolution)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    z = jnp.asarray(origin + grid @ plane, r.train.inputs.dtype).reshape(-1, *x.shape[1:])
    f, g = (predictor(z).reshape(resolution, resolution) for predictor in (r.f, r.g))
    return DecisionMap(
        jnp.asarray(ticks), jnp.asarray(ticks), f, g, jnp.asarray(points), r.train.targets
    )


def _leading_direction(x: np.ndarray, scale: float) -> np.ndarray:
    """The first right singular vector, by power iteration; zero if the rows are (one dimension, one
    line).
    """
    if np.abs(x).max() <= np.finfo(np.float32).eps * len(x) * scale:
        return np.zeros(x.shape[1])
    v = np.asarray(jax.random.normal(jax.random.key(0), (x.shape[1],)), float)
    for _ in range(200):
        v = x.T @ (x @ v)
        v /= np.linalg.norm(v)
    return v
