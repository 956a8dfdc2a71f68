"""The figure of accuracy under attack."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

# Matplotlib takes long to import: the function that draws does that.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = Mapping[str, Sequence[Any]]


def rows(robust: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What a run found under attack as rows of text, the first one the head.

    Example:
        >>> table = {"norm": ["l2"], "size": [1.0], "accuracy": [0.5], "certified": [0.25]}
        >>> rows({"tables": {"f": table}})
        [('norm', 'size', 'f under attack', 'f certified'), ('l2', '1', '0.500', '0.250')]
    """
    tables = robust["tables"]
    first = tables["f"]
    columns = {"norm": first["norm"], "size": [f"{size:g}" for size in first["size"]]}
    for name, table in tables.items():
        columns[f"{name} under attack"] = _shares(table["accuracy"])
        if "certified" in table:
            columns[f"{name} certified"] = _shares(table["certified"])
    return [tuple(columns), *zip(*columns.values(), strict=True)]


def _shares(values: Sequence[Any]) -> list[str]:
    known = np.asarray(values, float)
    return ["" if np.isnan(value) else f"{value:.3f}" for value in known]


def robust_accuracy(tables: Table | Mapping[str, Table], attack: str = "attack") -> "Figure":
    """Accuracy under attack against size, a panel for each norm and a curve for each predictor.

    Below a curve its certified accuracy, dashed, where the table has such a column: the truth lies
    between the two.

    Args:
        tables: `table()` of what `pk.robust_accuracy` returns, or a mapping from names of
            predictors to theirs.
        attack: what the labels call it.

    Example:
        >>> table = {"norm": ["l2", "l2"], "size": [0.0, 1.0], "accuracy": [1.0, 0.2]}
        >>> len(robust_accuracy({"f": table | {"certified": [1.0, 0.1]}}).axes[0].lines)
        2
    """
    from perturbkernel.report.drawing import styled

    named: Any = {"": tables} if "norm" in tables else tables
    return styled(_drawn)(named, attack)


def _drawn(named: Mapping[str, Table], attack: str) -> "Figure":
    from perturbkernel.report.drawing import F_COLOUR, G_COLOUR, MINUS, PLUS, figure, points

    colours = (F_COLOUR, G_COLOUR, PLUS, MINUS)
    norms = list(dict.fromkeys(norm for table in named.values() for norm in table["norm"]))
    fig = figure(1.2 + 3.8 * len(norms), 3.6)
    axes = np.ravel(fig.subplots(1, len(norms), sharey=True, squeeze=False))
    for axis, norm in zip(axes, norms, strict=True):
        for i, (name, table) in enumerate(named.items()):
            colour = colours[i % len(colours)]
            rows = np.flatnonzero(np.asarray(table["norm"]) == norm)
            sizes = np.asarray(table["size"], float)[rows]
            beginning = f"{name}, " if name else ""
            accuracy = np.asarray(table["accuracy"], float)[rows]
            label = f"{beginning}under {attack}"
            # One below the other, where they agree.
            width = 1.5 * (len(named) - i)
            axis.plot(sizes, accuracy, "o-", ms=2 * width + 1, lw=width, color=colour, label=label)
            proved = np.asarray(table.get("certified", ()), float)
            if proved.size and np.isfinite(proved[rows]).any():
                label = f"{beginning}certified"
                axis.plot(sizes, proved[rows], "--", color=colour, label=label)
        axis.set(xlabel=f"size of perturbations ({norm}, input units)", ylim=(-0.02, 1.03))
        axis.legend(loc="upper right", fontsize=points(8))
    axes[0].set_ylabel("accuracy")
    return fig
