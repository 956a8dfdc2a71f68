"""What the figures of a report show, in words that follow from the numbers."""

from collections.abc import Mapping, Sequence

import numpy as np

from perturbkernel.report.statements import Settings, labelled, trained_on


def captions(c: Settings, m: Settings, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What each figure of a report shows, by the figure's name.

    For example:

        r = pk.report.load("results")
        captions(r.configuration, r.metrics, r.arrays)["outputs"]
    """
    return {
        "perturbations": _perturbations(c, arrays),
        "growing": growing(c, arrays),
        "outputs": _outputs(c),
        "decision_map": _decision_map(c, arrays),
        "accuracy_against_size": _curve(c, arrays),
        "robust_accuracy": _robust_accuracy(m),
    }


def class_index(values: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """The class of every target: of two, 0 for +1 and 1 for -1; of more they are indices.

    Example:
        >>> class_index(np.array([1, -1]), ("cat", "dog")).tolist()
        [0, 1]
    """
    values = np.asarray(values)
    if len(classes) == 2:
        return np.where(values > 0, 0, 1)
    return values


def title_of_sample(
    arrays: Mapping[str, np.ndarray], classes: Sequence[str], i: int
) -> tuple[str, str]:
    """What a sampled point is, and the class that its perturbation aims at.

    Example:
        >>> arrays = {"sample_labels": np.array([1]), "sample_targets": np.array([-1])}
        >>> title_of_sample(arrays, ("cat", "dog"), 0)
        ('a cat', 'dog')
    """
    name = "carrier"
    if "sample_labels" in arrays:
        own = class_index(arrays["sample_labels"], classes)
        name = f"a {classes[int(own[i])]}"
    targets = class_index(arrays["sample_targets"], classes)
    return name, classes[int(targets[i])]


def _perturbations(c: Settings, arrays: Mapping[str, np.ndarray]) -> str:
    two = len(c["classes"]) == 2
    if c["image_shape"] is None:
        against = (
            "the difference of the class means of the data"
            if two
            else "the mean of that class less the mean of all data"
        )
        said = (
            f"The mean perturbation toward each class, coordinate by coordinate, against {against}."
        )
        correlations = _correlations(arrays)
        if correlations:
            said += f" Correlation: {', '.join(f'{value:.2f}' for value in correlations)}."
        return said
    what = "Points of the carrier" if c.get("at") == "carrier" else "Training points"
    means = "difference of the class means" if two else "class means less the mean of all"
    said = (
        f"{what}, their perturbations, and the mean perturbation toward each class, beside the "
        f"{means} of the data."
    )
    return said + " " + _colours(c["image_shape"])


def _correlations(arrays: Mapping[str, np.ndarray]) -> list[float]:
    """Of each mean perturbation with what it is drawn against; none where one is constant."""
    means = np.asarray(arrays["mean_toward"], float)
    means = means.reshape(len(means), -1)
    rows = np.asarray(arrays[against(arrays)], float)
    rows = rows.reshape(-1, means.shape[1])
    rows = np.resize(rows, means.shape)
    found = []
    for mean, row in zip(means, rows, strict=True):
        vary = np.ptp(mean) > 0 and np.ptp(row) > 0
        if mean.size > 2 and vary:
            correlations = np.corrcoef(mean, row)
            found.append(float(correlations[0, 1]))
    return found


def against(arrays: Mapping[str, np.ndarray]) -> str:
    """The array that mean perturbations are compared with: of two classes one difference.

    Example:
        >>> against({"mean_of_class": np.eye(3)})
        'mean_of_class'
    """
    if "mean_difference" in arrays:
        return "mean_difference"
    return "mean_of_class"


def _colours(image_shape: Sequence[int]) -> str:
    channels = 1
    if len(image_shape) == 3:
        channels = image_shape[2]
    if channels == 1:
        return "Red is above zero, blue below."
    if channels == 3:
        return (
            "Mid-grey is zero; each perturbation and each mean is scaled to its own largest entry."
        )
    return f"The mean over {channels} channels is shown; red is above zero, blue below."


def growing(c: Settings, arrays: Mapping[str, np.ndarray]) -> str:
    """From which size on both networks read the target of a perturbation that grows.

    Example:
        >>> growing({}, {})
        ''
    """
    if "growth_size" not in arrays:
        return ""
    _, aim = title_of_sample(arrays, c["classes"], arrays["growth_sample"][0])
    said = [
        f"{name} {_from_where(arrays['growth_size'], arrays[f'growth_margin_{name}'][0])}"
        for name in "fg"
    ]
    return (
        f"One of these points while its perturbation, which aims at {aim}, is scaled: "
        f"{_range(arrays['growth_size'])}. {said[0]}; {said[1]}. Pixels beyond the range of the "
        "data are drawn at its ends."
    )


def _range(sizes: np.ndarray) -> str:
    return f"sizes 0 to {sizes[-1]:.3g}"


def _from_where(sizes: np.ndarray, margin: np.ndarray) -> str:
    """From where on a network reads the target."""
    beyond = margin > 0
    if beyond.all():
        return "reads the target at every size"
    if not beyond.any():
        return "reads the target at none of them"
    if not beyond[-1]:
        return f"reads the target at some of them, first at {sizes[beyond.argmax()]:.3g}"
    last = len(beyond) - 1 - (~beyond)[::-1].argmax()
    return f"reads the target from size {sizes[last + 1]:.3g} on"


def _outputs(c: Settings) -> str:
    which = "points that f was not trained on"
    if c["carrier"].startswith("scenario"):
        which = "points that neither network was trained on"
    if not c["n_test"]:
        which = "the training points of f"
    if len(c["classes"]) > 2:
        return f"How many {which} f (rows) and g (columns) assign to each class."
    return f"Outputs of both networks on {which}. In the shaded quadrants both give the same class."


def _decision_map(c: Settings, arrays: Mapping[str, np.ndarray]) -> str:
    if "map_f" not in arrays:
        return ""
    said = "The plane through the class means and the leading orthogonal direction."
    drawn = [name for name in "fg" if _changes_sign(arrays[f"map_{name}"])]
    if "g" in drawn:
        said += f" The dashed boundary was learned from {trained_on(c)}, {labelled(c)}."
    if "f" in drawn:
        said += " The solid boundary was learned from clean data."
    for name in "fg":
        if name not in drawn:
            said += f" {name} does not change its sign on this plane."
    return said


def _changes_sign(values: np.ndarray) -> bool:
    return bool(values.min() < 0 < values.max())


def _curve(c: Settings, arrays: Mapping[str, np.ndarray]) -> str:
    said = "The second network trained again at other perturbation sizes."
    if "curve_expected" in arrays:
        said += (
            " The wide line is the mean over all draws of the target labels, in closed form, for "
            "the identity loss; where it is near chance, g learns nothing on average."
        )
    return said


def _robust_accuracy(m: Settings) -> str:
    said = (
        "The share of clean test points that each network classifies correctly whatever "
        "perturbation of at most that size the attack finds; the attack is on the network itself, "
        "away from the true label."
    )
    tables = m.get("robust", {}).get("tables", {})
    if any("certified" in table for table in tables.values()):
        said += (
            " Dashed: the share that is certified, which no attack can go below; the truth lies "
            "between the two."
        )
    return said
