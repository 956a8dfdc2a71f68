"""What `perturbkernel run` reports: metrics, configuration and arrays."""

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array

from perturbkernel.attacks.robust_accuracy import robust_accuracy
from perturbkernel.cli.run.inputs import REACH
from perturbkernel.data.dataset import Dataset
from perturbkernel.learning.curves import accuracy_against_size, decision_map
from perturbkernel.learning.experiment import PerturbationLearning
from perturbkernel.training.fit import KernelLearner

_CURVE_POINTS = 13


def metrics_of(
    r: PerturbationLearning, test: Dataset, fresh: Dataset, draws: int
) -> dict[str, Any]:
    """What `evaluate` finds, how f and g were trained, and what guessing would give."""
    metrics = r.evaluate(test, fresh.inputs, control_draws=draws)
    metrics["status"] = {"f": _status(r.f), "g": _status(r.g)}
    metrics["rounding"] = _rounding(r)
    metrics["most_frequent"] = {"train": _most_frequent(r.train), "test": _most_frequent(test)}
    return metrics


def _status(predictor: Any) -> str:
    return getattr(predictor, "status", "ok")


def _most_frequent(data: Dataset) -> float:
    """The share of the most frequent class."""
    counts = np.bincount(np.asarray(data.labels))
    return float(counts.max() / data.n)


def _rounding(r: PerturbationLearning) -> float:
    """How much adding perturbations to their carrier changed them, relative to their length."""
    delta = np.asarray(r.perturbation.delta, float).reshape(len(r.carrier), -1)
    length = np.linalg.norm(delta)
    if length == 0:
        return 0.0
    added = np.asarray(r.perturbed, float) - np.asarray(r.carrier, float)
    change = added.reshape(delta.shape) - delta
    return float(np.linalg.norm(change) / length)


def configuration_of(
    args: argparse.Namespace, r: PerturbationLearning, test: Dataset, learner: KernelLearner
) -> dict[str, Any]:
    """What was asked, as a report keeps it."""
    train = r.train
    learner_g: Any = r.learner_g
    carrier = f"scenario ({args.scenario or 'a'})"
    if args.carrier is not None:
        there = ", perturbed there" if args.at == "carrier" else ""
        carrier = f"carrier {args.carrier}, {len(r.carrier)} points{there}"
    return {
        "command": shlex.join(["perturbkernel", *args.argv]),
        "data": train.name,
        "classes": list(train.classes),
        "image_shape": train.image_shape,
        "n_train": train.n,
        "n_test": test.n,
        "n_perturbed": len(r.carrier),
        "d": train.d,
        "carrier": carrier,
        "at": args.at,
        "size": args.size,
        "norm": args.norm,
        "direction": args.direction,
        "bounds": args.bounds,
        "targets": args.targets,
        "f": f"{learner.kernel!r}, {learner.loss} loss, {learner.dynamics!r}",
        "g": f"{learner_g.kernel!r}, {learner_g.loss} loss, {learner_g.dynamics!r}",
        "seed": args.seed,
        "precision": args.precision,
    }


def arrays_of(r: PerturbationLearning, test: Dataset, fresh: Dataset) -> dict[str, np.ndarray]:
    """What the figures need, and what a user would want to compute with."""
    found = _arrays_of(r, test, fresh) | _means(r)
    return {name: np.asarray(array) for name, array in found.items()}


def _arrays_of(r: PerturbationLearning, test: Dataset, fresh: Dataset) -> dict[str, Any]:
    p, train = r.perturbation, r.train
    delta, targets = np.asarray(p.delta), np.asarray(p.targets)
    # Of a carrier that was perturbed itself no true label is known.
    known = r.options["at"] == "data"
    true = np.resize(np.asarray(train.targets), len(delta))
    shown = true if known else targets
    sample = _sample(shown, len(train.classes))
    arrays = {
        "delta": delta,
        "targets": targets,
        "zero_gradient": p.zero_gradient,
        "f_dual_coef": r.f.dual_coef,
        "g_dual_coef": r.g.dual_coef,
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
    if known:
        arrays["sample_labels"] = true[sample]
    if r.cosine is not None:
        arrays["cosine"] = r.cosine
    if r.diagnosis is not None:
        names = ("signal", "offset", "offset_std", "probability")
        arrays |= {f"diagnosis_{name}": getattr(r.diagnosis, name) for name in names}
    return arrays


def _targets_of_classes(count: int) -> Sequence[int]:
    """The target of each class, in their order."""
    return (1, -1) if count == 2 else range(count)


def _sample(targets: np.ndarray, count: int) -> np.ndarray:
    """Rows to draw: eight of two classes, one of each of more, ten at most."""
    each = 4 if count == 2 else 1
    rows = [np.flatnonzero(targets == target)[:each] for target in _targets_of_classes(count)]
    return np.concatenate(rows[:10])


def _means(r: PerturbationLearning) -> dict[str, np.ndarray]:
    """The mean perturbation toward each class, and the class means it is compared with."""
    x, y = np.asarray(r.train.inputs), np.asarray(r.train.targets)
    delta, targets = np.asarray(r.perturbation.delta), np.asarray(r.perturbation.targets)
    values = _targets_of_classes(len(r.train.classes))
    toward = np.stack([_mean_where(delta, targets == value) for value in values])
    means = np.stack([_mean_where(x, y == value) for value in values])
    if len(r.train.classes) == 2:
        return {"mean_toward": toward, "mean_difference": means[0] - means[1]}
    return {"mean_toward": toward, "mean_of_class": means - x.mean(axis=0)[None]}


def _mean_where(rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    weights = chosen / max(chosen.sum(), 1)
    return np.tensordot(weights.astype(rows.dtype), rows, 1)


def robust_of(
    args: argparse.Namespace, r: PerturbationLearning, test: Dataset, key: Array
) -> dict[str, Any]:
    """Accuracy of f and g under attack on the first test points, as tables."""
    points = slice(args.robust_points)
    x, y = test.inputs[points], test.targets[points]
    bounds = None if args.bounds is None else tuple(args.bounds)
    tables = {}
    for name, predictor in (("f", r.f), ("g", r.g)):
        found = robust_accuracy(
            predictor,
            x,
            y,
            sizes=args.robust,
            norms=args.robust_norm,
            attack=args.robust_attack,
            bounds=bounds,
            key=key,
        )
        tables[name] = found.table()
    return {"attack": args.robust_attack, "points": len(x), "tables": tables}


def curve_of(
    r: PerturbationLearning, test: Dataset, size: float, status: dict[str, str]
) -> dict[str, np.ndarray]:
    """Accuracy against size; where g cannot be trained the size is left out, as status says."""
    parts = []
    for each in np.geomspace(size / REACH, size * REACH, _CURVE_POINTS):
        try:
            parts.append(accuracy_against_size(r, test, [float(each)]))
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
