"""How results show themselves: tables of text and of HTML, and records that print their numbers."""

import html
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer


class Table(dict[str, list]):
    """Columns by name, all of one length: `pandas.DataFrame(table)` takes it as it is.

    Example:
        >>> print(Table(size=[0.1, 0.2], accuracy=[0.95, 0.5]))
        size  accuracy
        0.1   0.950
        0.2   0.500
    """

    @property
    def rows(self) -> list[tuple]:
        """The rows, in the order of the columns."""
        return list(zip(*self.values(), strict=True))

    def _texts(self) -> list[tuple[str, ...]]:
        return [tuple(map(cell_text, self, row)) for row in self.rows]

    def __str__(self) -> str:
        return text_table([tuple(self), *self._texts()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self._texts(), tuple(self))


# Columns whose numbers are shares, or cosines: three digits after the point line up.
_SHARES = ("accuracy", "train", "test", "agreement", "certified", "cosine")


def cell_text(column: str, value: Any) -> str:
    """A cell of a table in words.

    Example:
        >>> cell_text("accuracy", 0.5), cell_text("size", 0.140000001), cell_text("norm", "l2")
        ('0.500', '0.14', 'l2')
    """
    if not isinstance(value, float | np.floating):
        return str(value)
    first_word, *_ = column.replace("_", " ").split(" ")
    if first_word in _SHARES:
        return f"{value:.3f}"
    return f"{value:.4g}"


class Described:
    """A record that says in words what it is; a notebook shows them line by line."""

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


class Displayed:
    """A record that prints what it says in numbers, and shows it as a table in a notebook.

    A subclass supplies `_numbers`. Inside `jit`, where there are none, what Python prints of any
    object is printed.
    """

    def _numbers(self) -> Mapping[str, Any]:
        raise NotImplementedError(f"{type(self).__name__} does not say what to print")

    def _shown(self) -> dict[str, str] | None:
        fields = list(vars(self).values())
        for leaf in jax.tree.leaves(fields):
            if hasattr(leaf, "shape") and not has_values(leaf):
                return None
        return {name: number(value) for name, value in self._numbers().items()}

    def __repr__(self) -> str:
        shown = self._shown()
        if shown is None:
            return object.__repr__(self)
        said = ", ".join(f"{name} {value}" for name, value in shown.items())
        return f"{type(self).__name__}({said})"

    def _repr_html_(self) -> str | None:
        shown = self._shown()
        if shown is None:
            return None
        head = (type(self).__name__, "")
        return html_table(shown.items(), head)


def has_values(array: Any) -> bool:
    """Whether an array has numbers that can be shown: on any device, but not under `jit`.

    Example:
        >>> has_values(np.ones(2)), has_values(jax.ShapeDtypeStruct((2,), float))
        (True, False)
    """
    is_array = isinstance(array, np.ndarray | np.generic | jax.Array)
    return is_array and not isinstance(array, Tracer)


def in_short(value: Any) -> str:
    """The repr of a kernel, without the remark after it and a limit of memory that is none.

    Example:
        >>> from perturbkernel import TwoLayerNTK
        >>> in_short(TwoLayerNTK(0.5))
        'TwoLayerNTK(slope=0.5, train_bias=False)'
    """
    name, *_ = repr(value).split("  #")
    return name.replace(", memory=None", "")


def number(value: Any) -> str:
    """A number, a few numbers, or the range of many, in words.

    Example:
        >>> import numpy as np
        >>> number(0.25), number(np.array([1.0, 2.0])), number(np.arange(100.0))
        ('0.25', '[1, 2]', '0 to 99 (median 49.5)')
    """
    if isinstance(value, str | int | bool) or value is None:
        return str(value)
    values = np.asarray(value, float).ravel()
    if np.ndim(value) == 0:
        return f"{values[0]:.4g}"
    if values.size <= 10:
        each = ", ".join(f"{one:.4g}" for one in values)
        return f"[{each}]"
    known = values[~np.isnan(values)]
    if known.size == 0:
        return "nan"
    least = f"{known.min():.4g}"
    most = f"{known.max():.4g}"
    if least == most:
        return least
    return f"{least} to {most} (median {np.median(known):.4g})"


def html_table(
    rows: Iterable[Sequence[Any]], head: Sequence[str] = (), kinds: Iterable[str] = ()
) -> str:
    """A table of cells of any kind, which are escaped; `kinds` are classes, one per row.

    Example:
        >>> html_table([("n", 3)])
        '<table><tr><td>n</td><td>3</td></tr></table>'
    """
    rows = list(rows)
    kinds = list(kinds) or [""] * len(rows)
    inner = _html_row(head, "th") if head else ""
    for cells, kind in zip(rows, kinds, strict=True):
        inner += _html_row(cells, "td", kind)
    return f"<table>{inner}</table>"


def _html_row(cells: Iterable[Any], tag: str, kind: str = "") -> str:
    inner = ""
    for cell in cells:
        text = html.escape(str(cell))
        inner += f"<{tag}>{text}</{tag}>"
    attribute = f' class="{kind}"' if kind else ""
    return f"<tr{attribute}>{inner}</tr>"


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text below each other, each column as wide as its widest cell.

    Example:
        >>> print(text_table([("size", "0.1"), ("norm", "linf")]))
        size  0.1
        norm  linf
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for row in rows:
        lines += text_row(row, widths)
    return "\n".join(lines)


def text_row(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The lines of one row of a table on the terminal, each cell wrapped to its width.

    Example:
        >>> text_row(("a long name", "0.98"), (6, 4))
        ['a long  0.98', 'name']
    """
    columns = []
    for cell, width in zip(cells, widths, strict=True):
        lines = textwrap.wrap(cell, max(width, 1))
        columns.append([line.ljust(width) for line in lines])
    height = max(1, *map(len, columns))
    for column, width in zip(columns, widths, strict=True):
        missing = height - len(column)
        column += [" " * width] * missing
    rows = []
    for texts in zip(*columns, strict=True):
        line = "  ".join(texts)
        rows.append(line.rstrip())
    return rows
