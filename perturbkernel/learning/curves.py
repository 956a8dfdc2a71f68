"""What one looks at after an experiment: accuracy against size, and the plane of decisions."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from perturbkernel.arrays import as_jax
from perturbkernel.attacks.one_step import perturb
from perturbkernel.checks import check_count, check_number
from perturbkernel.data.dataset import Dataset
from perturbkernel.data.labels import encoded
from perturbkernel.kernels.base import Kernel
from perturbkernel.learning.diagnosis import diagnose
from perturbkernel.learning.experiment import PerturbationLearning
from perturbkernel.learning.results import added, mean
from perturbkernel.metrics import share_right


class SizeCurve(NamedTuple):
    """Accuracy of g on clean data against perturbation size.

    `expected` is the mean over target draws (12.3).
    """

    size: Float[Array, " s"]
    accuracy: Float[Array, " s"]
    expected: Float[Array, " s"] | None


def accuracy_against_size(
    r: PerturbationLearning, data: Dataset, sizes: Sequence[float]
) -> SizeCurve:
    """Trains g again at each size, with the same f, targets and directions; accuracy on `data`.

    `expected` is None if g's learner has no infinite-width kernel, or for K > 2 classes.

    Example:
        >>> import jax, perturbkernel as pk
        >>> train = pk.data.Dataset([[2.0, 0.0], [0.0, 1.0]], [1, -1])
        >>> learner = pk.KernelLearner(pk.TwoLayerNTK())
        >>> r = pk.learn_from_perturbations(
        ...     learner, train, size=1.0, targets=[1, -1], key=jax.random.key(0)
        ... )
        >>> pk.learning.accuracy_against_size(r, train, [0.1, 1.0]).accuracy
        Array([1., 1.], dtype=float32)
    """
    for size in sizes:
        check_number(size, "sizes")
    options = {name: r.options[name] for name in ("norm", "direction", "bounds")}
    targets = r.perturbation.targets
    attacked = r.attacked
    classes = len(r.train.classes)
    kernel = getattr(r.learner_g, "kernel", None)
    measured = []
    expected = []
    for size in sizes:
        delta = perturb(r.f, attacked, targets, size=size, **options).delta
        g = r.learner_g(added(r.carrier, delta), encoded(targets, classes), r.g_key)
        measured.append(mean(share_right(g(data.inputs), data)))
        if isinstance(kernel, Kernel) and classes == 2:
            diagnosis = diagnose(
                kernel,
                r.carrier,
                delta,
                targets,
                data.inputs,
                data.targets,
                balanced=r.options["balanced"],
            )
            expected.append(diagnosis.expected_accuracy)
    return SizeCurve(
        size=as_jax(np.array(sizes, float)),
        accuracy=as_jax(np.stack(measured)),
        expected=as_jax(np.stack(expected)) if expected else None,
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
    """Outputs of f and g on the plane of DecisionMap.

    On a square grid that covers the projected training data.


    Example:
        >>> import jax, perturbkernel as pk
        >>> train = pk.data.Dataset([[2.0, 0.0], [0.0, 1.0]], [1, -1])
        >>> learner = pk.KernelLearner(pk.TwoLayerNTK())
        >>> r = pk.learn_from_perturbations(
        ...     learner, train, size=1.0, targets=[1, -1], key=jax.random.key(0)
        ... )
        >>> pk.learning.decision_map(r, resolution=11).f.shape
        (11, 11)
    """
    check_count(resolution, "resolution", low=2)
    if len(r.train.classes) > 2:
        raise ValueError(f"a decision map is of two classes; these are {len(r.train.classes)}")
    x = np.asarray(r.train.inputs, float)
    y = np.asarray(r.train.targets)
    if len(np.unique(y)) < 2:
        raise ValueError("a decision map needs training points of both classes; got one")
    flat = x.reshape(len(x), -1)
    origin, plane = _plane(flat, y)
    points = (flat - origin) @ plane.T
    reach = 1.15 * (np.abs(points).max() or 1)  # some room around the outermost points
    ticks = np.linspace(-reach, reach, resolution)
    first, second = np.meshgrid(ticks, ticks)
    grid = np.stack([first, second], axis=-1).reshape(-1, 2)
    on_plane = (origin + grid @ plane).astype(r.train.inputs.dtype)
    rows = on_plane.reshape(resolution, resolution, *x.shape[1:])
    return DecisionMap(
        first=as_jax(ticks),
        second=as_jax(ticks),
        f=_outputs(r.f, rows),
        g=_outputs(r.g, rows),
        points=as_jax(points),
        labels=r.train.targets,
    )


def _outputs(predictor: Callable, rows: np.ndarray) -> Array:
    """Row by row, which are small sums."""
    outputs = [np.asarray(predictor(as_jax(row))) for row in rows]
    return as_jax(np.stack(outputs))


def _plane(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The origin of a decision map, (d,), and its axes, (2, d)."""
    plus = x[y > 0].mean(0)
    minus = x[y < 0].mean(0)
    difference = plus - minus
    length = np.linalg.norm(difference)
    if length > 0:
        first = difference / length
    else:
        # Any direction will do.
        first = np.zeros(x.shape[1])
        first[0] = 1
    centred = x - x.mean(0)
    along = np.outer(centred @ first, first)
    second = _leading_direction(centred - along, np.abs(x).max())
    middle = (plus + minus) / 2
    return middle, np.stack([first, second])


def _leading_direction(x: np.ndarray, scale: float) -> np.ndarray:
    """The first right singular vector of x, (d,), by power iteration.

    Zero if the rows are: of data in one dimension, or on one line.
    """
    rounding = np.finfo(np.float32).eps * len(x) * scale
    if np.abs(x).max() <= rounding:
        return np.zeros(x.shape[1])
    start = jax.random.normal(jax.random.key(0), (x.shape[1],))
    v = np.asarray(start, float)
    for _ in range(200):
        v = x.T @ (x @ v)
        v /= np.linalg.norm(v)
    return v
