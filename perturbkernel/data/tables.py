"""Tables in text: a column of labels, and columns of numbers."""

import csv
import math
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perturbkernel.data.array_files import check_memory

_MISSING = {"", "na", "n/a", "nan", "null", "?"}


class Table(NamedTuple):
    """Numbers (n, d), the label of each row, and the names of the columns of numbers."""

    inputs: np.ndarray
    labels: np.ndarray
    names: list[str]


def read_table(path: str | Path, label: str | int, delimiter: str = ",") -> Table:
    """The table of a CSV file in UTF-8: `label`, a name or a position, is the column of labels.

    The first line names the columns where `label` is a name, or where one of its fields in a column
    of numbers is none. Labels are numbers where all of them are, and words otherwise. Raises
    FileNotFoundError, or a ValueError that names the file and the line. For example:

        table = read_table("mine.csv", label="species")
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; wanted a CSV file")
    try:
        # A number takes two characters at least, and eight bytes here.
        check_memory(4 * file.stat().st_size, "its numbers")
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            return _table(reader, label)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not text in UTF-8 ({error})") from None
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file}: {error}") from None


def _table(reader: Any, label: str | int) -> Table:
    first = next(filter(None, reader), None)
    if first is None:
        raise ValueError("found no line; wanted columns of numbers and one of labels")
    width = len(first)
    if width < 2:
        raise ValueError("found one column; wanted columns of numbers and one of labels")
    place = _place(label, first)
    names = [field.strip() for field in first]
    numbers, labels = array("d"), []
    if not isinstance(label, str) and not _is_header(first, place):
        names = [str(column) for column in range(width)]
        _add(first, 1, place, names, numbers, labels)
    for fields in reader:
        if not fields:  # an empty line
            continue
        if len(fields) != width:
            raise ValueError(
                f"line {reader.line_num} has {len(fields)} fields; wanted {width}, as in the first"
            )
        _add(fields, reader.line_num, place, names, numbers, labels)
    if not labels:
        raise ValueError("found no row below the names of the columns")
    inputs = np.frombuffer(numbers, float).reshape(len(labels), width - 1)
    del names[place]
    return Table(inputs, _as_labels(labels), names)


def _place(label: str | int, first: list[str]) -> int:
    """The position of the column of labels."""
    width = len(first)
    if isinstance(label, str):
        names = [field.strip() for field in first]
        count = names.count(label)
        if count != 1:
            shown = ", ".join(names[:10])
            if width > 10:
                shown += ", ..."
            raise ValueError(f"{count} columns are called {label!r}; the first line is {shown}")
        return names.index(label)
    if not -width <= label < width:
        raise ValueError(f"label={label}: there are {width} columns, from 0 to {width - 1}")
    return label % width


def _is_header(first: list[str], place: int) -> bool:
    for column, field in enumerate(first):
        is_word = _number(field) is None and not _is_missing(field)
        if column != place and is_word:
            return True
    return False


def _is_missing(field: str) -> bool:
    return field.strip().lower() in _MISSING


def _number(field: str) -> float | None:
    """The number that a field is; Python's own spelling 1_000 is none."""
    try:
        return None if "_" in field else float(field)
    except ValueError:
        return None


def _add(
    fields: list[str], line: int, place: int, names: list[str], numbers: Any, labels: list[str]
) -> None:
    """Appends the numbers and the label of one line."""
    for column, field in enumerate(fields):
        where = f"line {line}, column {names[column]}"
        if _is_missing(field):
            raise ValueError(
                f"{where}: a value is missing ({field!r}); drop such rows, or fill them, first"
            )
        if column == place:
            labels.append(field.strip())
            continue
        number = _number(field)
        if number is None or not math.isfinite(number):
            raise ValueError(f"{where}: {field[:40]!r} is no finite number")
        numbers.append(number)


def _as_labels(labels: list[str]) -> np.ndarray:
    """Whole numbers where all labels are, numbers where all are, words otherwise."""
    values = []
    for label in labels:
        value = _number(label)
        if value is None or not math.isfinite(value):
            return np.array(labels, str)
        values.append(value)
    found = np.array(values)
    # Beyond 2^53 float64 does not hold every whole number.
    largest = np.abs(found).max()
    rounded = np.round(found)
    is_whole = np.all(found == rounded) and largest < 2**53
    return found.astype(int) if is_whole else found
