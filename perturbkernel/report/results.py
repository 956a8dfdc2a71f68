"""Results on disk: `report.json`, `arrays.npz`, figures, and one self-contained `report.html`.

Results are written whole or not at all, before the figures and the page, which can be drawn again
without computing anything.
"""

import dataclasses
import html
import json
import math
import os
import platform
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from perturbkernel._version import __version__
from perturbkernel.files import write_folder as write_whole
from perturbkernel.report import plots
from perturbkernel.report.html import html_figure, html_page, html_table
from perturbkernel.report.statements import captions, introduction
from perturbkernel.report.statements import sentences as sentences

_FIGURES = ("perturbations", "outputs", "decision_map", "accuracy_against_size")


# The file that makes a folder a result, and those that are drawn from the results.
_MARKER = "report.json"


_DRAWN = ("report.html", *(f"{name}.{kind}" for name in _FIGURES for kind in ("png", "svg")))


_PACKAGES = ("jax", "jaxlib", "numpy", "neural-tangents", "optax", "equinox", "diffrax")


@dataclass(frozen=True)
class Report:
    """One experiment: what was asked (`configuration`), what came out (`metrics`), on what, and the
    arrays.
    """

    configuration: dict[str, Any]
    metrics: dict[str, Any]
    environment: dict[str, Any]
    arrays: Mapping[str, np.ndarray]


def environment(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Versions, those of further `packages` included, device, processor and Python, for a result
    file.
    """

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "perturbkernel": __version__,
        "versions": {name: installed(name) for name in (*_PACKAGES, *packages)},
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "x64": bool(jax.config.jax_enable_x64),  # pyright: ignore[reportAttributeAccessIssue]
    }


def _processor() -> str:
    """The processor's model where the system names one, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def save(report: Report, folder: str | os.PathLike) -> Path:
    """Writes a report into `folder`, then its figures and page.

    `arrays.npz` and `report.json` are complete before the first figure is drawn. A figure that
    cannot be drawn is left out: a warning, `metrics["status"]` in the file and the page say so.
    Raises ValueError if `folder` is a file or holds other files of the same names.
    """
    folder = Path(folder)
    check_folder(folder)

    def write_results(aside: Path) -> None:
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in report.arrays.items()}
        np.savez(aside / "arrays.npz", **arrays)
        (aside / _MARKER).write_text(as_json(report), encoding="utf-8")
        for name in _DRAWN:  # of an earlier result
            (folder / name).unlink(missing_ok=True)

    def draw(aside: Path) -> None:
        shown, pictures = report, {}
        for name, function in figures(report).items():
            try:
                pictures[name] = write_figure(function(), aside, name)
            except Exception as error:
                said = f"the figure {name} could not be drawn ({type(error).__name__}: {error})"
                warnings.warn(said, stacklevel=4)
                shown = _with_status(shown, f"figure {name}", said)
        if (folder / _MARKER).read_text(encoding="utf-8") != as_json(report):
            raise ValueError(f"{folder}: another run has written its results there meanwhile")
        (aside / _MARKER).write_text(as_json(shown), encoding="utf-8")
        (aside / "report.html").write_text(_page(shown, pictures), encoding="utf-8")

    write_whole(folder, _MARKER, write_results)
    return write_whole(folder, "report.html", draw)


def _with_status(report: Report, name: str, status: str) -> Report:
    statuses = {**report.metrics.get("status", {}), name: status}
    return dataclasses.replace(report, metrics={**report.metrics, "status": statuses})


def as_json(report: Report) -> str:
    parts = (report.configuration, report.metrics, report.environment)
    names = ("configuration", "metrics", "environment")
    content = {name: _strict(part) for name, part in zip(names, parts, strict=True)}
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    """`value` in strict JSON, which has no NaN (null) and no infinity (a word)."""
    if isinstance(value, Mapping):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def check_folder(folder: str | os.PathLike) -> None:
    """Raises ValueError if files that a report writes are there and no report wrote them."""
    folder = Path(folder)
    there = [name for name in (_MARKER, "arrays.npz", *_DRAWN) if (folder / name).exists()]
    if not there:
        return
    try:
        content = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        ours = isinstance(content, dict) and {"configuration", "metrics"} <= content.keys()
    except (OSError, ValueError):
        # A run that was killed while it replaced an earlier result has removed the marker.
        ours = not (folder / _MARKER).exists() and "arrays.npz" in there
    if not ours:
        raise ValueError(
            f"{folder} holds {there[0]}, which no run wrote; results need another folder"
        )


def load(folder: str | os.PathLike) -> Report:
    """Reads a result folder back. Raises FileNotFoundError if it holds no finished result, and
    ValueError if that is damaged.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
            return Report(**content, arrays={name: arrays[name] for name in arrays.files})
    except (FileNotFoundError, NotADirectoryError) as error:
        missing = Path(error.filename).name
        raise FileNotFoundError(f"{folder} holds no finished result (no {missing})") from None
    except (ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{folder} holds a damaged result ({error})") from error


def redraw(folder: str | os.PathLike) -> Path:
    """Draws figures and page of a saved result again, from its arrays alone."""
    report = load(folder)
    kept = {
        k: v for k, v in report.metrics.get("status", {}).items() if not k.startswith("figure ")
    }
    metrics = {**report.metrics, "status": kept}
    return save(dataclasses.replace(report, metrics=metrics), folder)


def figures(report: Report) -> dict[str, Callable[[], Figure]]:
    """The figures that the report's arrays allow, by name, each drawn when called."""
    c, arrays, m = report.configuration, report.arrays, report.metrics
    classes, shape = c["classes"], c["image_shape"]
    test = "test" if "test" in m["accuracy"]["f"] else "train"
    drawn = {
        "perturbations": lambda: plots.perturbations(arrays, classes, shape),
        "outputs": lambda: plots.outputs(arrays, classes, m["agreement"]),
        "decision_map": lambda: plots.decision_map(arrays, classes),
        "accuracy_against_size": lambda: plots.accuracy_against_size(
            arrays, c["size"], m["accuracy"]["f"][test], 1 / len(classes)
        ),
    }
    needed = {"decision_map": "map_f", "accuracy_against_size": "curve_accuracy"}
    return {name: draw for name, draw in drawn.items() if needed.get(name, "delta") in arrays}


def write_figure(figure: Figure, folder: Path, name: str) -> bytes:
    """Writes `name`.svg and `name`.png; returns the PNG, for a page."""
    (folder / f"{name}.svg").write_bytes(plots.render(figure, "svg"))
    picture = plots.render(figure, "png")
    (folder / f"{name}.png").write_bytes(picture)
    return picture


def table(metrics: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The numbers of an experiment as rows of text: name, clean training data, clean test data."""

    def shares(values) -> str:
        values = np.atleast_1d(values)
        spread = f" ± {values.std():.3f}" if len(values) > 1 else ""
        return f"{values.mean():.3f}{spread}"

    parts = list(metrics["accuracy"]["f"])
    rows = [("accuracy on clean data, true labels", *parts)]
    names = {
        "f": "f, trained on the data",
        "g": "g, trained on the perturbations",
        "unperturbed": "control: carrier unperturbed",
        "random": "control: random directions",
        "shuffled": "control: targets shuffled",
    }
    for name, scores in {**metrics["accuracy"], **metrics["controls"]}.items():
        rows.append((names[name], *(shares(scores[part]) for part in parts)))
    return rows


def _page(report: Report, pictures: Mapping[str, bytes]) -> str:
    e = html.escape
    c = report.configuration
    head, *body = table(report.metrics)
    settings = [
        (k, json.dumps(v) if not isinstance(v, str) else v) for k, v in c.items() if k != "command"
    ]
    said = captions(c, report.metrics, report.arrays)
    shown = "".join(
        html_figure(name.replace("_", " "), picture, said[name])
        for name, picture in pictures.items()
    )
    machine = html_table(report.environment.items())
    words = "".join(f"<li>{e(sentence)}</li>" for sentence in sentences(c, report.metrics))
    return html_page(
        f"perturbkernel: {c['data']}",
        f"""<h1>Learning from adversarial perturbations: {e(c["data"])}, {e(c["carrier"])}</h1>
<p>{e(introduction(c, report.metrics))}</p>
<ul>{words}</ul>
{html_table(body, head)}
{shown}
<h2>What was asked</h2>
<p><code>{e(c["command"])}</code></p>
{html_table(settings)}
<details><summary>Versions and machine</summary>{machine}</details>""",
    )
