"""What is kept of an experiment: configuration, metrics and arrays of a `report.Report`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from perturbkernel import report
from perturbkernel.arrays import as_jax, on_host
from perturbkernel.attacks.certificates.certified_size import (
    CERTIFIED_NORMS,
    CertifiedSize,
    certified_size,
)
from perturbkernel.attacks.robust_accuracy import robust_accuracy
from perturbkernel.data.dataset import Dataset
from perturbkernel.learning.curves import accuracy_against_size, decision_map, growth
from perturbkernel.learning.results import PerturbationLearning
from perturbkernel.training.dynamics import from_numbers
from perturbkernel.training.predictors import KernelPredictor

# The sizes of a curve reach from size / REACH to size REACH.
REACH = 30.0
_CURVE_POINTS = 13
# How many points are attacked where that is not said, and how many where they are certified, too.
_ATTACKED_POINTS = 500
_CERTIFIED_POINTS = 100
# Images that are kept to be shown, below each other: so many entries, and rows of entries, at most.
_ENTRIES, _ROWS = 320_000, 30_000
_ATTACK = 3  # what the experiment's key is folded with for attacks
# What a report says of how it was made, where no command made it.
_IN_PYTHON = "pk.learn_from_perturbations(...)"


def report_of(
    r: PerturbationLearning,
    test: Dataset | None = None,
    *,
    fresh: Dataset | None = None,
    control_draws: int = 10,
    asked: dict[str, Any] | None = None,
    robust: Sequence[float] | Mapping[str, Any] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> report.Report:
    """The report of an experiment, with all that its figures need.

    Args:
        r: the experiment.
        test: points that neither network saw; the training points if left out.
        fresh: points on which f and g are compared; those of `test` if left out.
        control_draws: draws of each random control.
        asked: what is to replace, or to be added to, the configuration.
        robust: sizes of perturbations, or arguments of `robust_of`, to measure accuracy under
            attack, too.
        on_stage: called with the name of each stage as it begins.

    For example:

        pk.report.save(report_of(r, test), "results")
    """
    tell = on_stage or (lambda stage: None)
    shown = r.train if test is None else test
    fresh = shown if fresh is None else fresh
    configuration = {**configuration_of(r, test), **(asked or {})}
    settings = {"control_draws": control_draws, "robust": robust, "on_stage": on_stage}
    metrics = metrics_of(r, test, fresh=fresh, **settings)
    arrays = arrays_of(r, shown, fresh)
    arrays |= growth_of(r, metrics["status"])
    tell("accuracy against size")
    arrays |= curve_of(r, shown, metrics["status"])
    tell("decision map")
    arrays |= map_of(r, metrics["status"])
    return report.Report(configuration, metrics, report.environment(), arrays)


def configuration_of(r: PerturbationLearning, test: Dataset | None) -> dict[str, Any]:
    """What was asked, as a report keeps it."""
    train = r.train
    options = r.options
    predictors = {"f": r.f, "g": r.g}
    wide = [name for name, one in predictors.items() if isinstance(one, KernelPredictor)]
    return {
        "command": _IN_PYTHON,
        "data": train.name,
        "classes": list(train.classes),
        "image_shape": train.image_shape,
        "n_train": train.n,
        "n_test": 0 if test is None else test.n,
        "n_perturbed": len(r.carrier),
        "d": train.d,
        "carrier": options["carrier"],
        "at": options["at"],
        "size": options["size"],
        "norm": options["norm"],
        "direction": options["direction"],
        "bounds": options["bounds"],
        "targets": options["targets"],
        "infinitely_wide": wide,
        "f": described(r.f),
        "g": described(r.g),
    }


def described(predictor: Any) -> str:
    """A predictor and its training in words.

    Example:
        >>> described(abs)
        'abs'
    """
    if isinstance(predictor, KernelPredictor) and predictor.dynamics:
        dynamics = from_numbers(predictor.dynamics)
        ridge = f", ridge {predictor.ridge:g}" if predictor.ridge else ""
        return f"{predictor.kernel!r}, {predictor.loss} loss, {dynamics!r}{ridge}"
    named = getattr(predictor, "__name__", type(predictor).__name__)
    width = getattr(predictor, "width", None)
    if width is None:
        return named
    return f"{named} of width {width}"


def metrics_of(
    r: PerturbationLearning,
    test: Dataset | None,
    *,
    fresh: Dataset | None,
    control_draws: int,
    robust: Sequence[float] | Mapping[str, Any] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """What `evaluate` finds, how f and g were trained, and what guessing would give."""
    tell = on_stage or (lambda stage: None)
    tell("evaluating, with controls")
    inputs = None if fresh is None else fresh.inputs
    metrics = r.evaluate(test, inputs, control_draws=control_draws)
    if robust is not None:
        tell("accuracy under attack")
        settings = robust if isinstance(robust, Mapping) else {"sizes": robust}
        attacked = r.train if test is None else test
        metrics["robust"] = robust_of(r, attacked, **settings)
    metrics["status"] = {"f": _status(r.f), "g": _status(r.g)}
    metrics["rounding"] = _rounding(r)
    metrics["most_frequent"] = {"train": _most_frequent(r.train)}
    if test is not None:
        metrics["most_frequent"]["test"] = _most_frequent(test)
    return metrics


def _status(predictor: Any) -> str:
    return getattr(predictor, "status", "ok")


def _most_frequent(data: Dataset) -> float:
    """The share of the most frequent class."""
    labels = np.asarray(data.labels)
    counts = np.bincount(labels)
    return float(counts.max() / data.n)


def _rounding(r: PerturbationLearning) -> float:
    """How much adding perturbations to their carrier changed them, relative to their length."""
    delta = np.asarray(r.perturbation.delta, float).ravel()
    length = np.linalg.norm(delta)
    if length == 0:
        return 0.0
    carrier = np.asarray(r.carrier, float).ravel()
    perturbed = np.asarray(r.perturbed, float).ravel()
    change = perturbed - carrier - delta
    return float(np.linalg.norm(change) / length)


def arrays_of(r: PerturbationLearning, test: Dataset, fresh: Dataset) -> dict[str, np.ndarray]:
    """What the figures need, and what a user would want to compute with."""
    found = _arrays_of(r, test, fresh) | _means(r)
    return {name: np.asarray(array) for name, array in found.items()}


def _arrays_of(r: PerturbationLearning, test: Dataset, fresh: Dataset) -> dict[str, Any]:
    p = r.perturbation
    delta = np.asarray(p.delta)
    targets = np.asarray(p.targets)
    # Of a carrier that was perturbed itself no true label is known.
    known = r.options["at"] == "data"
    sample = _sample(r)
    arrays = {
        "delta": delta,
        "targets": targets,
        "zero_gradient": p.zero_gradient,
        "test_f": r.f(test.inputs),
        "test_g": r.g(test.inputs),
        "test_labels": test.targets,
        "fresh_f": r.f(fresh.inputs),
        "fresh_g": r.g(fresh.inputs),
        "fresh_labels": fresh.targets,
        "sample_inputs": np.asarray(r.attacked)[sample],
        "sample_deltas": delta[sample],
        "sample_targets": targets[sample],
    }
    for name, predictor in (("f", r.f), ("g", r.g)):
        if isinstance(predictor, KernelPredictor):
            arrays[f"{name}_dual_coef"] = predictor.dual_coef
    if known:
        arrays["sample_labels"] = _labels(r)[sample]
    if r.train.image_shape is not None and len(r.train.classes) == 2:
        height = r.train.image_shape[0]
        count = min(_ENTRIES // fresh.d, _ROWS // height)
        arrays["fresh_inputs"] = fresh.inputs[:count]
    if r.cosine is not None:
        arrays["cosine"] = r.cosine
    if r.diagnosis is not None:
        for name in ("signal", "offset", "offset_std", "probability"):
            arrays[f"diagnosis_{name}"] = getattr(r.diagnosis, name)
    return arrays


def _targets_of_classes(count: int) -> Sequence[int]:
    """The target of each class, in their order."""
    return (1, -1) if count == 2 else range(count)


def _labels(r: PerturbationLearning) -> np.ndarray:
    """True labels of the points that were attacked; of a carrier, which has none, its targets."""
    targets = np.asarray(r.perturbation.targets)
    if r.options["at"] == "carrier":
        return targets
    return np.resize(np.asarray(r.train.targets), len(targets))


def _sample(r: PerturbationLearning) -> np.ndarray:
    """Rows to draw: eight of two classes, one of each of more, ten at most."""
    labels, count = _labels(r), len(r.train.classes)
    each = 4 if count == 2 else 1
    rows = []
    for target in _targets_of_classes(count)[:10]:
        of_class = np.flatnonzero(labels == target)
        rows.append(of_class[:each])
    return np.concatenate(rows)


def growth_of(r: PerturbationLearning, status: dict[str, str]) -> dict[str, np.ndarray]:
    """Of images in the sample that are moved away from their class, what `growth` finds."""
    if r.train.image_shape is None:
        return {}
    sample = _sample(r)
    targets = np.asarray(r.perturbation.targets)[sample]
    away = (targets != _labels(r)[sample]) | (r.options["at"] == "carrier")
    chosen = np.flatnonzero(away & ~np.asarray(r.perturbation.zero_gradient)[sample])
    if not len(chosen):
        return {}
    try:
        found = growth(r, sample[chosen], REACH)
    except Exception as error:  # results are worth more than their path
        status["growing perturbations"] = f"left out: {error}"
        return {}
    return {"growth_sample": chosen} | {f"growth_{k}": v for k, v in found._asdict().items()}


def _means(r: PerturbationLearning) -> dict[str, np.ndarray]:
    """The mean perturbation toward each class, and the class means it is compared with."""
    x = np.asarray(r.train.inputs)
    y = np.asarray(r.train.targets)
    delta = np.asarray(r.perturbation.delta)
    targets = np.asarray(r.perturbation.targets)
    classes = len(r.train.classes)
    toward = []
    means = []
    for value in _targets_of_classes(classes):
        toward.append(_mean_where(delta, targets == value))
        means.append(_mean_where(x, y == value))
    found = {"mean_toward": np.stack(toward)}
    if classes == 2:
        positive, negative = means
        found["mean_difference"] = positive - negative
    else:
        centre = x.mean(axis=0)
        found["mean_of_class"] = np.stack(means) - centre[None]
    return found


def _mean_where(rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    weights = chosen / max(chosen.sum(), 1)
    return np.tensordot(weights.astype(rows.dtype), rows, 1)


def robust_of(
    r: PerturbationLearning,
    data: Dataset,
    *,
    sizes: Sequence[float],
    norms: str | Sequence[str] = "l2",
    points: int | None = None,
    certified: bool = False,
    attack: str | Callable[..., Any] = "worst_case",
    key: PRNGKeyArray | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Accuracy of f and g under attack on the first points, as tables.

    Args:
        sizes, norms, attack: as in `pk.robust_accuracy`, and its other `options`.
        points: how many, at most; 500 if left out, 100 with `certified`.
        certified: a column of certified accuracy, too, in the norms that have one; for two-layer
            kernels.
        key: of the attack; left out, one that the experiment's own gives.

    For example:

        robust_of(r, test, sizes=(0.5, 1.0), certified=True)["tables"]["f"]
    """
    if points is None:
        points = _CERTIFIED_POINTS if certified else _ATTACKED_POINTS
    x = as_jax(on_host(data.inputs)[:points])
    y = as_jax(on_host(data.targets)[:points])
    if key is None:
        key = jax.random.fold_in(r.key, _ATTACK)
    if certified:
        _certified_of([norms] if isinstance(norms, str) else norms)
    asked = {"sizes": sizes, "norms": norms, "attack": attack, "key": key}
    tables = {}
    name_of_attack = ""
    for name, predictor in (("f", r.f), ("g", r.g)):
        found = robust_accuracy(predictor, x, y, **asked, **options)
        proved = _certified(predictor, x, y, found.norms) if certified else None
        tables[name] = found.table(proved)
        name_of_attack = found.attack
    return {"attack": name_of_attack, "points": len(x), "tables": tables}


def _certified(predictor: Any, x: Any, y: Any, norms: Sequence[str]) -> dict[str, CertifiedSize]:
    """Norm -> certified sizes, of those norms that have any."""
    known = _certified_of(norms)
    return {norm: certified_size(predictor, x, y, norm=norm) for norm in known}


def _certified_of(norms: Sequence[str]) -> list[str]:
    """Those norms that have certified sizes; raises where none has, before any is attacked in."""
    known = [norm for norm in norms if norm in CERTIFIED_NORMS]
    if not known:
        wanted = ", ".join(CERTIFIED_NORMS)
        raise ValueError(f"certified accuracy is known in {wanted}; got {', '.join(norms)}")
    return known


def curve_of(
    r: PerturbationLearning, test: Dataset, status: dict[str, str]
) -> dict[str, np.ndarray]:
    """Accuracy against size; where g cannot be trained the size is left out, as status says."""
    size = r.options["size"]
    sizes = np.geomspace(size / REACH, size * REACH, _CURVE_POINTS)
    parts = []
    for each in sizes.tolist():
        try:
            parts.append(accuracy_against_size(r, test, [each]))
        except Exception as error:  # results are worth more than their curve
            status["accuracy against size"] = f"left out at size {each:.3g} and others: {error}"
    if not parts:
        return {}
    curve = {}
    for name in parts[0]._fields:
        values = [getattr(part, name) for part in parts]
        if values[0] is not None:
            curve[f"curve_{name}"] = np.concatenate(values)
    return curve


def map_of(r: PerturbationLearning, status: dict[str, str]) -> dict[str, Any]:
    """The decision map, which two classes have."""
    if len(r.train.classes) > 2:
        return {}
    try:
        plane = decision_map(r)
    except Exception as error:  # results are worth more than their map
        status["decision map"] = f"left out: {error}"
        return {}
    return {f"map_{name}": np.asarray(value) for name, value in plane._asdict().items()}
