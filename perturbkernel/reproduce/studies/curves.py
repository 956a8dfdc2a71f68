"""What the studies' summaries, figures and texts share: spreads over seeds, bands, rows in %."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from perturbkernel.reproduce.records import Json


def spread(samples: np.ndarray) -> Json:
    """Mean, least and largest over the first axis, as JSON holds them.

    spread(np.array([0.0, 1.0]))  # {"mean": 0.5, "low": 0.0, "high": 1.0}
    """
    mean = np.mean(samples, axis=0)
    low = np.min(samples, axis=0)
    high = np.max(samples, axis=0)
    return {"mean": mean.tolist(), "low": low.tolist(), "high": high.tolist()}


def curve(samples: Sequence[np.ndarray]) -> dict[str, list[Any]]:
    """The spreads of several samples: "mean", "low" and "high", an entry a sample.

    curve([np.array([0.0, 1.0]), np.array([2.0])])["mean"]  # [0.5, 2.0]
    """
    spreads = [spread(sample) for sample in samples]
    found = {}
    for name in ("mean", "low", "high"):
        found[name] = [one[name] for one in spreads]
    return found


def draw_band(axis: Axes, x: Any, values: Json, colour: str, alpha: float = 0.15) -> None:
    """The band of a curve from its least to its largest values."""
    axis.fill_between(x, values["low"], values["high"], color=colour, alpha=alpha, lw=0)


def in_percent(name: str, values: Sequence[float], width: int) -> str:
    """A name and numbers in % on a line; the name takes `width` columns.

    in_percent("f", [0.5, 1.0], width=4)  # "  f      50.0  100.0"
    """
    line = f"  {name:{width}}"
    for value in values:
        line += f"{100 * value:7.1f}"
    return line
