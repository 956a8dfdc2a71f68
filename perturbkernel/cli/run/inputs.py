"""What `perturbkernel run` is given: options, data and labels, checked before anything is computed.

Messages are in the words of the shell.
"""

import argparse
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from perturbkernel import data as datasets
from perturbkernel.attacks.certificates.certified_size import CERTIFIED_NORMS
from perturbkernel.cli import options
from perturbkernel.data.array_files import check_memory, read_labelled, read_npy
from perturbkernel.data.dataset import Dataset
from perturbkernel.data.draws import NOISES, TARGET_RULES
from perturbkernel.data.image_files import FAMILIES, MNIST, standard_folder
from perturbkernel.data.labels import class_name
from perturbkernel.data.tables import read_table
from perturbkernel.learning.record import REACH
from perturbkernel.report.results import check_folder
from perturbkernel.training.losses import loss_names

SYNTHETIC = ("gaussian", "shifted_gaussian")
SYNTHETIC_POINTS = 1000
_DIMENSION = 100
_TEST = 0.2
_DIGITS = ("mnist5k", "digits")  # without a test set of their own
_WITH_LABELS = {".csv": ",", ".tsv": "\t"}
_SHOWN = 10  # labels that a message lists


def check_options(args: argparse.Namespace) -> None:
    """Raises ValueError for options that contradict each other, or are out of reach."""
    _check_data(args)
    if args.bounds is not None:
        low, high = args.bounds
        if not low < high:
            raise ValueError(f"--bounds needs LOW < HIGH; got {low:g} {high:g}")
    if args.certified:
        _check_certified(args)
    if args.carrier is None and args.at == "carrier":
        raise ValueError("--at carrier needs --carrier: a file, uniform or gaussian")
    if args.carrier is not None and args.scenario is not None:
        raise ValueError("--scenario and --carrier exclude each other: a scenario is a carrier")
    if args.carrier_points is not None and args.carrier not in NOISES:
        raise ValueError("--carrier-points goes with --carrier uniform or --carrier gaussian")
    _check_size(args.size, args.precision)
    options.check_out(args.out)
    if args.out is not None:
        check_folder(args.out)


def _check_data(args: argparse.Namespace) -> None:
    """Raises ValueError for options that do not go with --data."""
    data = args.data
    is_family = data in FAMILIES
    is_synthetic = data in SYNTHETIC
    is_table = Path(data).suffix in _WITH_LABELS
    if args.path is not None and not is_family:
        known = ", ".join(FAMILIES)
        raise ValueError(f"--path goes with --data {known}; got --data {data}")
    if args.path is None and is_family and standard_folder(FAMILIES[data]) is None:
        raise ValueError(f"--data {data} needs --path DIR, the folder with its files")
    if args.label is not None and not is_table:
        raise ValueError(f"--label goes with a .csv or .tsv file; got --data {data}")
    if args.label is None and is_table:
        raise ValueError(f"--data {data} needs --label COLUMN, the name of its labels' column")
    if args.classes is not None and is_synthetic:
        raise ValueError(f"--classes does not apply to {data}")
    if args.d is not None and not is_synthetic:
        raise ValueError(f"--d is of synthetic data; --data {data} has a dimension of its own")
    if args.shift is not None and data != "shifted_gaussian":
        raise ValueError(f"--shift goes with --data shifted_gaussian; got --data {data}")
    if args.test is not None and is_family:
        raise ValueError(f"--test does not apply to {data}, which has a test set of its own")
    if args.classes is not None and len(args.classes) < 2:
        raise ValueError(f"--classes needs two labels or more; got {args.classes[0]}")


def _check_certified(args: argparse.Namespace) -> None:
    """Raises ValueError where nothing can be certified."""
    if args.robust is None:
        raise ValueError("--certified goes with --robust SIZE ..., at which it is certified")
    if set(args.robust_norm).isdisjoint(CERTIFIED_NORMS):
        known = ", ".join(CERTIFIED_NORMS)
        raise ValueError(f"--certified goes with --robust-norm {known}; l0 has no certificates")


def _check_size(size: float, precision: int) -> None:
    """Raises ValueError unless the squares of the curve's sizes are within floating point."""
    limits = np.finfo(np.float64 if precision == 64 else np.float32)
    low = REACH * math.sqrt(limits.tiny)
    high = math.sqrt(limits.max) / REACH**2
    if not low <= size <= high:
        raise ValueError(
            f"--size must be from {low:.0e} to {high:.0e} in float{precision}; got {size:g}"
        )


def load(args: argparse.Namespace, key) -> tuple[Dataset, Dataset]:
    """Training and test data, every class among the training points."""
    if args.data in FAMILIES:
        train, test = _load_family(args, key)
    else:
        train, test = _load_split(args, key)
    _check_every_class_is_there(train)
    return train, test


def _load_family(args: argparse.Namespace, key) -> tuple[Dataset, Dataset]:
    """Images that come with a test set."""
    chosen = _chosen_digits(args.classes, args.data)
    read = getattr(datasets, args.data)
    train = read(args.path, split="train", **chosen)
    test = read(args.path, split="test", **chosen)
    if args.n is not None:
        train = _subset(train, args.n, key)
    return train, test


def _load_split(args: argparse.Namespace, key) -> tuple[Dataset, Dataset]:
    """Everything else, of which a share is put aside."""
    data_key = jax.random.fold_in(key, 1)
    data = _load_whole(args, data_key)
    if args.n is not None and args.data not in SYNTHETIC:
        data = _subset(data, args.n, data_key)
    share = _TEST if args.test is None else args.test
    if not 0 < round(share * data.n) < data.n:
        raise ValueError(
            f"--test {share:g} of {data.n} points leaves none to train or none to test on"
        )
    return data.split(test=share, key=key)


def _check_every_class_is_there(train: Dataset) -> None:
    labels = np.asarray(train.labels)
    counts = np.bincount(labels, minlength=len(train.classes))
    if counts.min() == 0:
        rarest = int(counts.argmin())
        missing = train.classes[rarest]
        raise ValueError(
            f"none of the {train.n} training points has the label {missing}; more of them, "
            "with --n, or another --seed may have"
        )


def _load_whole(args: argparse.Namespace, key) -> Dataset:
    if args.data in SYNTHETIC:
        return draw(args, args.n or SYNTHETIC_POINTS, key)
    if args.data in _DIGITS:
        read = getattr(datasets, args.data)
        return read(**_chosen_digits(args.classes, args.data))
    path = Path(args.data)
    if path.suffix == ".npz":
        return _load_file(args.data, args.classes)
    if path.suffix in _WITH_LABELS:
        return _load_table(args.data, args.label, args.classes)
    if path.is_dir():
        return datasets.folder(args.data, args.classes)
    known = ", ".join((*_DIGITS, *SYNTHETIC, *FAMILIES))
    raise ValueError(
        f"--data must be one of {known}, a .npz or .csv file, or a folder of images; "
        f"got {args.data!r}"
    )


def draw(args: argparse.Namespace, n: int, key) -> Dataset:
    """`n` points of the synthetic data."""
    d = _DIMENSION if args.d is None else args.d
    size = n * d * args.precision // 8
    check_memory(size, f"--n {n} --d {d}: the data alone")
    shift = {} if args.shift is None else {"shift": args.shift}
    drawn = getattr(datasets, args.data)
    return drawn(n, d, **shift, key=key)


def _subset(data: Dataset, n: int, key) -> Dataset:
    if n > data.n:
        raise ValueError(f"--n {n} is more than the {data.n} points of these classes")
    return data.subset(n, key=key)


def _load_file(path: str, words: Sequence[str] | None) -> Dataset:
    """The data set of an .npz file, of the labels that the words name."""
    inputs, targets = read_labelled(path)
    file = Path(path).expanduser()
    all_labels = targets.ravel().tolist()
    labels = list(dict.fromkeys(all_labels))  # each once, in the order of the file
    are_signs = targets.dtype.kind in "iuf" and set(labels) <= {-1, 1}
    classes = None
    if words is not None:
        classes = _named(words, labels, str(file))
    elif not are_signs:
        raise ValueError(_ask_for_classes(file, labels))
    try:
        return datasets.from_arrays(inputs, targets, classes=classes, name=file.stem)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error


def _ask_for_classes(file: Path, labels: list[Any]) -> str:
    some = [class_name(label) for label in labels[:_SHOWN]]
    listed = ", ".join(some)
    others = len(labels) - len(some)
    if others:
        listed += f", and {others:,} others"
    advice = shlex.join(["--classes", *some[:2]])
    return (
        f"{file}: the labels are {listed}; say which to keep, such as {advice} "
        "(the first becomes +1, the second -1), or more than two"
    )


def _load_table(path: str, label: str, words: Sequence[str] | None) -> Dataset:
    """The data set of a table, of the labels that the words name."""
    delimiter = _WITH_LABELS[Path(path).suffix]
    if words is None:
        return datasets.csv(path, label, delimiter=delimiter)
    table = read_table(path, label, delimiter)
    labels = np.unique(table.labels).tolist()
    classes = _named(words, labels, path)
    name = Path(path).expanduser().stem
    return datasets.from_arrays(table.inputs, table.labels, classes=classes, name=name)


def _chosen_digits(words: Sequence[str] | None, data: str) -> dict[str, list[int]]:
    """The classes of images that the words name, by number or name, as an argument."""
    if words is None:
        return {}
    family = FAMILIES.get(data, MNIST)
    names = {name: number for number, name in enumerate(family.class_names)}
    numbers = [str(names.get(word, word)) for word in words]
    chosen = _named(numbers, list(range(10)), family.name)
    return {"classes": chosen}


def _named(words: Sequence[str], labels: Sequence[Any], where: str) -> list[Any]:
    """The labels that words of the shell name: text as it is, numbers by their value."""
    chosen = []
    for word in words:
        found = [label for label in labels if _is_named(label, word)]
        if not found:
            some = ", ".join(class_name(label) for label in labels[:_SHOWN])
            more = ", ..." if len(labels) > _SHOWN else ""
            raise ValueError(f"--classes: {where} has no label {word}; it has {some}{more}")
        label, *_ = found
        if label in chosen:
            raise ValueError(f"--classes must name different labels; got {' '.join(words)}")
        chosen.append(label)
    return chosen


def _is_named(label: Any, word: str) -> bool:
    if class_name(label) == word:
        return True
    lower = word.lower()
    if isinstance(label, bool) and lower in ("true", "false"):
        return label == (lower == "true")
    if not isinstance(label, int | float):
        return False
    for kind in (int, float):  # as whole numbers first: floats round large ones
        try:
            return kind(word) == label
        except ValueError:
            continue
    return False


def check_classes(args: argparse.Namespace, train: Dataset) -> None:
    """Raises ValueError for losses and targets that do not go with the number of classes."""
    count = len(train.classes)
    losses = loss_names(several=count > 2)
    given = {"--loss": args.loss, "--loss-g": args.loss_g}
    for name, loss in given.items():
        if loss is not None and loss not in losses:
            wanted = ", ".join(losses)
            raise ValueError(f"{name} {loss} is not for {count} classes; give one of {wanted}")
    if count == 2 and args.targets not in TARGET_RULES:
        wanted = " or ".join(TARGET_RULES)
        raise ValueError(f"--targets {args.targets} is for more than two classes; give {wanted}")
    if args.at == "carrier" and args.targets not in TARGET_RULES:
        raise ValueError(
            f"--targets {args.targets} needs a true class, which a perturbed carrier has not"
        )


def load_carrier(args: argparse.Namespace, train: Dataset) -> str | np.ndarray | None:
    """What --carrier asks for, with a number of points that fits."""
    if args.carrier is None:
        return None
    if args.carrier in NOISES:
        carrier = args.carrier
        m = train.n if args.carrier_points is None else args.carrier_points
        size = m * train.d * args.precision // 8
        check_memory(size, f"--carrier-points {m}: the carrier alone")
    else:
        carrier = _read_carrier(args.carrier, train.d)
        m = len(carrier)
    if args.at == "data" and m % train.n:
        raise ValueError(
            f"--carrier must have as many points as there are training points, {train.n}, or a "
            f"multiple; got {m}. With --at carrier it may have any number"
        )
    return carrier


def _read_carrier(file: str, d: int) -> np.ndarray:
    """Rows of d numbers, (m, d)."""
    rows = read_npy(file)
    m = len(rows) if rows.ndim > 1 else 0
    if m == 0 or rows.size != m * d:
        raise ValueError(f"--carrier {file}: its shape is {rows.shape}; wanted rows of {d} numbers")
    return rows.reshape(m, d)
