"""The figure of accuracy under attack."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
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
    norms = _norms(named.values())
    panels = len(norms)
    fig = figure(1.2 + 3.8 * panels, 3.6)
    axes = fig.subplots(1, panels, sharey=True, squeeze=False)[0]
    for axis, norm in zip(axes, norms, strict=True):
        # Curves that agree are drawn one over the other: the first the widest.
        width = 1.5 * len(named)
        for (name, table), colour in zip(named.items(), cycle(colours), strict=False):
            beginning = f"{name}, " if name else ""
            sizes = _column(table, "size", norm)
            accuracy = _column(table, "accuracy", norm)
            label = f"{beginning}under {attack}"
            marker = 2 * width + 1
            axis.plot(sizes, accuracy, "o-", ms=marker, lw=width, color=colour, label=label)
            width -= 1.5
            if "certified" not in table:
                continue
            proved = _column(table, "certified", norm)
            if np.isfinite(proved).any():
                label = f"{beginning}certified"
                axis.plot(sizes, proved, "--", color=colour, label=label)
        axis.set_xlabel(f"size of perturbations ({norm}, input units)")
        axis.set_ylim(-0.02, 1.03)
        axis.legend(loc="upper right", fontsize=points(8))
    axes[0].set_ylabel("accuracy")
    return fig


def _norms(tables: Iterable[Table]) -> list[str]:
    """The norms of all tables, in the order in which they come up."""
    found: dict[str, None] = {}
    for table in tables:
        found |= dict.fromkeys(table["norm"])
    return list(found)


def _column(table: Table, name: str, norm: str) -> np.ndarray:
    """A column of numbers, in the rows of the norm."""
    of_norm = np.asarray(table["norm"]) == norm
    column = np.asarray(table[name], float)
    return column[of_norm]
