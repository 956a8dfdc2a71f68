"""Results on disk: `report.json`, `arrays.npz`, figures, and one self-contained `report.html`.

Results are written whole or not at all, before the figures and the page, which can be drawn again
without computing anything.
"""

import dataclasses
import json
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perturbkernel.files import write_folder as write_whole
from perturbkernel.report import robustness
from perturbkernel.report.html import Picture
from perturbkernel.report.machine import environment as environment
from perturbkernel.report.page import report_page

# Matplotlib takes long to import: the functions that draw do that.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIGURES = (
    "perturbations",
    "growing",
    "outputs",
    "decision_map",
    "accuracy_against_size",
    "robust_accuracy",
)
# The file that makes a folder a result, and those that are drawn from the results; and the one that
# makes a folder a reproduction.
_MARKER = "report.json"
REPRODUCTION = "reproduction.json"
_DRAWN = ("report.html", *(f"{name}.{kind}" for name in _FIGURES for kind in ("png", "svg")))
# The parts of a report that are numbers and words, which `report.json` holds.
_WORDS = ("configuration", "metrics", "environment")


@dataclass(frozen=True)
class Report:
    """One experiment: its `configuration`, its results (`metrics`), its `environment`, and its
    arrays.
    """

    configuration: dict[str, Any]
    metrics: dict[str, Any]
    environment: dict[str, Any]
    arrays: Mapping[str, np.ndarray]


def save(report: Report, folder: str | os.PathLike[str]) -> Path:
    """Writes a report into `folder`, then its figures and page; returns the folder.

    `arrays.npz` and `report.json` are complete before the first figure is drawn. A figure that
    cannot be drawn is left out: a warning, `metrics["status"]` in the file and the page say so.
    Raises ValueError if `folder` is a file or holds other files of the same names.

    Example: see `load`.
    """
    folder = Path(folder)
    check_folder(folder)

    def write_results(aside: Path) -> None:
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in report.arrays.items()}
        np.savez(aside / "arrays.npz", **arrays)
        _write_text(aside / _MARKER, as_json(report))
        for name in _DRAWN:
            earlier = folder / name
            earlier.unlink(missing_ok=True)

    def write_page(aside: Path) -> None:
        shown, pictures = _drawn(report, aside)
        written = (folder / _MARKER).read_text(encoding="utf-8")
        if written != as_json(report):
            raise ValueError(f"{folder}: another run has written its results there meanwhile")
        _write_text(aside / _MARKER, as_json(shown))
        _write_text(aside / "report.html", report_page(shown, pictures))

    write_whole(folder, _MARKER, write_results)
    return write_whole(folder, "report.html", write_page)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _drawn(report: Report, folder: Path) -> tuple[Report, dict[str, Picture]]:
    """Writes the figures; returns the report, which says what could not be drawn, and pictures."""
    pictures = {}
    for name, draw in figures(report).items():
        try:
            figure = draw()
            pictures[name] = write_figure(figure, folder, name)
        except Exception as error:
            said = f"the figure {name} could not be drawn ({type(error).__name__}: {error})"
            warnings.warn(said, stacklevel=5)
            report = _with_status(report, f"figure {name}", said)
    return report, pictures


def _with_status(report: Report, name: str, status: str) -> Report:
    statuses = {**report.metrics.get("status", {}), name: status}
    return _with_statuses(report, statuses)


def _with_statuses(report: Report, statuses: dict[str, str]) -> Report:
    metrics = {**report.metrics, "status": statuses}
    return dataclasses.replace(report, metrics=metrics)


def as_json(report: Report) -> str:
    """What `report.json` holds: everything but the arrays.

    Example:
        >>> json.loads(as_json(Report({}, {"agreement": math.nan}, {}, {})))["metrics"]
        {'agreement': None}
    """
    content = {name: _strict(getattr(report, name)) for name in _WORDS}
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    """`value` in strict JSON, which has no NaN (null) and no infinity (a word)."""
    if isinstance(value, Mapping):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    if math.isnan(value):
        return None
    return str(value)


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Raises ValueError if the folder holds a reproduction, or files that a report writes and no
    report wrote.

    Example:
        >>> check_folder("a folder that does not exist")
    """
    folder = Path(folder)
    if (folder / REPRODUCTION).exists():
        raise ValueError(f"{folder} holds a reproduction; give another folder")
    names = (_MARKER, "arrays.npz", *_DRAWN)
    there = [name for name in names if (folder / name).exists()]
    if there and not _is_ours(folder, there):
        raise ValueError(
            f"{folder} holds {there[0]}, which no run wrote; results need another folder"
        )


def _is_ours(folder: Path, there: Sequence[str]) -> bool:
    """Whether a run wrote the files that are there."""
    marker = folder / _MARKER
    try:
        text = marker.read_text(encoding="utf-8")
        content = json.loads(text)
    except (OSError, ValueError):
        # A run that was killed while it replaced an earlier result has removed the marker.
        return not marker.exists() and "arrays.npz" in there
    return isinstance(content, dict) and {"configuration", "metrics"} <= content.keys()


def load(folder: str | os.PathLike[str]) -> Report:
    """The report that a folder holds.

    Raises FileNotFoundError if it holds no finished result, and ValueError if that is damaged.

    Example:
        >>> import jax, tempfile, perturbkernel as pk
        >>> train, key = pk.data.Dataset([[2.0, 0.0], [0.0, 1.0]], [1, -1]), jax.random.key(0)
        >>> learner = pk.KernelLearner(pk.TwoLayerNTK())
        >>> r = pk.learn_from_perturbations(learner, train, size=1.0, targets=[1, -1], key=key)
        >>> page = r.report(tempfile.mkdtemp(), control_draws=0)
        >>> saved = pk.report.load(page.parent)
        >>> figures = pk.report.figures(saved)
        >>> saved.metrics["accuracy"]["g"]["train"], list(figures)
        (1.0, ['perturbations', 'outputs', 'decision_map', 'accuracy_against_size'])
        >>> outputs = {"outputs": figures["outputs"]}
        >>> pk.report.write_for_print(outputs, page.parent / "print")[0].name
        'outputs.pdf'
        >>> said = pk.report.text(saved.configuration, saved.metrics)
        >>> pk.report.sentences(saved.configuration, saved.metrics)[0] in said
        True
        >>> copy = pk.report.save(saved, page.parent / "copy")
        >>> pk.report.redraw(copy) == copy
        True
    """
    folder = Path(folder)
    try:
        text = (folder / _MARKER).read_text(encoding="utf-8")
        content = json.loads(text)
        with np.load(folder / "arrays.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return Report(**content, arrays=arrays)
    except (FileNotFoundError, NotADirectoryError) as error:
        missing = Path(error.filename).name
        raise FileNotFoundError(f"{folder} holds no finished result (no {missing})") from None
    except (ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{folder} holds a damaged result ({error})") from error


def redraw(folder: str | os.PathLike[str]) -> Path:
    """Draws figures and page of a saved result again, from its arrays alone; returns the folder.

    Example: see `load`.
    """
    report = load(folder)
    statuses = report.metrics.get("status", {})
    kept = {}
    for name, said in statuses.items():
        if not name.startswith("figure "):
            kept[name] = said
    report = _with_statuses(report, kept)
    return save(report, folder)


def figures(report: Report) -> dict[str, Callable[[], "Figure"]]:
    """The figures that the report's arrays allow, by name, each drawn when called.

    Example: see `load`.
    """
    from perturbkernel.report import growth, plots

    c = report.configuration
    m = report.metrics
    # JAX would compile a program for every small operation on them.
    arrays = {name: np.asarray(array) for name, array in report.arrays.items()}
    classes = c["classes"]

    def perturbations() -> "Figure":
        return plots.perturbations(arrays, classes, c["image_shape"])

    def growing() -> "Figure":
        return growth.growing(arrays, classes, c["image_shape"], c["size"])

    def outputs() -> "Figure":
        return plots.outputs(arrays, classes, m["agreement"], c["image_shape"])

    def decision_map() -> "Figure":
        return plots.decision_map(arrays, classes)

    def curve() -> "Figure":
        accuracy = m["accuracy"]["f"]
        part = "test" if "test" in accuracy else "train"
        chance = 1 / len(classes)
        return plots.accuracy_against_size(arrays, c["size"], accuracy[part], chance)

    def robust_accuracy() -> "Figure":
        return robustness.robust_accuracy(m["robust"]["tables"], m["robust"]["attack"])

    drawn = {}
    if "delta" in arrays:
        drawn["perturbations"] = perturbations
    if "growth_size" in arrays:
        drawn["growing"] = growing
    if "delta" in arrays:
        drawn["outputs"] = outputs
    if "map_f" in arrays:
        drawn["decision_map"] = decision_map
    if "curve_accuracy" in arrays:
        drawn["accuracy_against_size"] = curve
    if "robust" in m:
        drawn["robust_accuracy"] = robust_accuracy
    return drawn


def write_for_print(
    drawings: Mapping[str, Callable[[], "Figure"]], folder: str | os.PathLike[str]
) -> list[Path]:
    """Writes each figure as a PDF in print size; returns the files.

    A column is 3.25 inches wide, a page 6.75; text is 5 to 8 points.

    Example: see `load`.
    """
    from perturbkernel.report import drawing

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with drawing.for_print():
        for name, draw in drawings.items():
            file = folder / f"{name}.pdf"
            file.write_bytes(drawing.render(draw(), "pdf"))
            files.append(file)
    return files


def write_figure(figure: "Figure", folder: Path, name: str) -> Picture:
    """Writes `name`.svg and `name`.png; returns the PNG, for a page, with its numbers.

    For example:

        write_figure(plots.figure(4, 3), Path("results"), "empty")
    """
    from perturbkernel.report import plots

    picture = plots.picture(figure)
    drawing = plots.render(figure, "svg")
    (folder / f"{name}.svg").write_bytes(drawing)
    (folder / f"{name}.png").write_bytes(picture.png)
    return picture
