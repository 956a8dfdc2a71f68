"""What one looks at after an experiment: accuracy against size, perturbations that grow, and the
plane of decisions.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

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

# So many points in a row are evaluated at once, on a plane and on a path.
_RESOLUTION = 101
# How far a path goes beyond the last point at which a decision changes.
_BEYOND = 1.3


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

    `expected` is None if g's learner has no infinite-width kernel, or for K > 2 classes. Warns, in
    the words of the first status, where the training of a g is not "ok".

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
    said = []
    for size in sizes:
        delta = perturb(r.f, attacked, targets, size=size, **options).delta
        g = r.learner_g(added(r.carrier, delta), encoded(targets, classes), r.g_key)
        status = getattr(g, "status", "ok")
        if isinstance(status, str) and status != "ok":
            said.append(f"at size {size:g} {status}")
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
    if said:
        more = f" (the first of {len(said)} such sizes)" if said[1:] else ""
        warnings.warn(f"training g: {said[0]}{more}", stacklevel=2)
    return SizeCurve(
        size=as_jax(np.array(sizes, float)),
        accuracy=as_jax(np.stack(measured)),
        expected=as_jax(np.stack(expected)) if expected else None,
    )


class Growth(NamedTuple):
    """What both networks say of a few points whose perturbations grow.

    The perturbation of each is scaled to every size, from none. Margins are those toward the class
    that it aims at: the output of that class less the largest other; of two classes f(x) times the
    target. Decisions are indices of classes.
    """

    size: Float[np.ndarray, " s"]
    margin_f: Float[np.ndarray, "k s"]
    margin_g: Float[np.ndarray, "k s"]
    decision_f: Int[np.ndarray, "k s"]
    decision_g: Int[np.ndarray, "k s"]


def growth(r: PerturbationLearning, rows: Sequence[int] | np.ndarray, reach: float) -> Growth:
    """Outputs of f and g along the perturbations of some of the points that were attacked.

    Sizes reach a little beyond the largest at which f comes to decide for the target, of those
    below `reach` times the experiment's; up to there if there is none.

    Args:
        rows: of the points, as in `r.attacked`.
        reach: how far f's decision is looked for, in sizes of the experiment.

    For example:

        growth(learn_from_perturbations(learner, train, size=1.0, key=key), [0, 1], reach=30.0)
    """
    rows = np.asarray(rows)
    size = r.options["size"]
    bounds = r.options["bounds"]
    found = r.perturbation
    targets = np.asarray(found.targets)[rows]
    x = np.asarray(r.attacked)[rows]
    delta = np.asarray(found.delta)[rows]
    entries = [1] * (x.ndim - 1)

    def along(predictor: Callable, sizes: np.ndarray) -> np.ndarray:
        factors = sizes / size
        scale = factors.reshape(-1, *entries)
        points = x[:, None] + scale * delta[:, None]
        if bounds is not None:
            points = np.clip(points, *bounds)
        rounded = points.astype(x.dtype)
        return np.asarray(_outputs(predictor, rounded))

    looked = np.geomspace(size / reach, size * reach, _RESOLUTION)
    moved = _margins(along(r.f, looked), targets) > 0
    # Where one is beyond the target from the beginning nothing changes.
    changes = []
    for row in moved:
        if row.any() and not row[0]:
            changes.append(looked[row.argmax()])
    largest = size * reach
    if changes:
        beyond = _BEYOND * max(changes)
        largest = float(f"{beyond:.2g}")
    sizes = np.linspace(0, largest, _RESOLUTION)
    f = along(r.f, sizes)
    g = along(r.g, sizes)
    margins = _margins(f, targets), _margins(g, targets)
    return Growth(sizes, *margins, _decisions(f), _decisions(g))


def _margins(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Toward the target, (k, s), of outputs (k, s) or (k, s, K)."""
    if outputs.ndim == 2:
        return outputs * targets[:, None]
    aimed = np.arange(outputs.shape[-1]) == targets[:, None]
    others = np.where(aimed[:, None], -np.inf, outputs)
    own = np.take_along_axis(outputs, targets[:, None, None], -1)
    return own[..., 0] - others.max(-1)


def _decisions(outputs: np.ndarray) -> np.ndarray:
    """Indices of classes, of two 0 for +1."""
    if outputs.ndim == 2:
        return np.where(outputs > 0, 0, 1)
    return outputs.argmax(-1)


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


def decision_map(r: PerturbationLearning, resolution: int = _RESOLUTION) -> DecisionMap:
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
