"""What an evaluation says of the points of an experiment, as a few numbers."""

from typing import Any

import numpy as np
from jaxtyping import Array

from perturbkernel.learning.diagnosis import Diagnosis
from perturbkernel.learning.linearity import Linearity


def cosine_numbers(cosine: Array | None) -> dict[str, float] | None:
    """Mean and least cosine, of those that exist.

    Example:
        >>> cosine_numbers(np.array([0.5, np.nan, 1.0]))
        {'mean': 0.75, 'min': 0.5}
    """
    if cosine is None:
        return None
    known = np.asarray(cosine)
    known = known[~np.isnan(known)]
    if known.size == 0:
        return {"mean": np.nan, "min": np.nan}
    return {"mean": float(known.mean()), "min": float(known.min())}


def diagnosis_numbers(diagnosis: Diagnosis | None) -> dict[str, Any] | None:
    """Root mean squares over the points, the expected accuracy, and the finding in words.

    Example:
        >>> diagnosis_numbers(None)
    """
    if diagnosis is None:
        return None
    return {
        "expected_accuracy": float(diagnosis.expected_accuracy),
        "signal_rms": _rms(diagnosis.signal),
        "offset_rms": _rms(diagnosis.offset),
        "offset_std_rms": _rms(diagnosis.offset_std),
        "assumes": diagnosis.assumes,
        "linearity": _linearity_numbers(diagnosis.linearity),
    }


def _linearity_numbers(linearity: Linearity | None) -> dict[str, Any] | None:
    if linearity is None:
        return None
    names = ("linear_g", "certified", "linear_right", "f_right", "linear_f", "linear_linear")
    numbers = {name: float(getattr(linearity, name)) for name in names}
    return {**numbers, "says": linearity.says}


def _rms(values: Array) -> float:
    squares = np.asarray(values) ** 2
    return float(np.sqrt(squares.mean()))
