"""Results on disk: `report.json`, `arrays.npz`, figures, and one self-contained `report.html`.

A folder is written whole or not at all, and its figures and page can be drawn again without
computing anything.
"""

import base64
import html
import json
import os
import platform
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from perturbkernel import plots
from perturbkernel._version import __version__
from perturbkernel.files import write_folder as write_whole

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
    """Writes a report with its figures and page into `folder`, whole or not at all."""

    def write(aside: Path) -> None:
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in report.arrays.items()}
        np.savez(aside / "arrays.npz", **arrays)
        _draw(report, aside)
        content = {
            "configuration": report.configuration,
            "metrics": report.metrics,
            "environment": report.environment,
        }
        (aside / "report.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")

    return write_whole(folder, "report.json", write)


def load(folder: str | os.PathLike) -> Report:
    """Reads a result folder back. Raises FileNotFoundError if it holds no finished result."""
    folder = Path(folder)
    try:
        content = json.loads((folder / "report.json").read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} holds no finished result (no report.json)") from None
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        return Report(**content, arrays={name: arrays[name] for name in arrays.files})


def redraw(folder: str | os.PathLike) -> Path:
    """Draws figures and page of a saved result again, from its arrays alone."""
    return save(load(folder), folder)


# What each figure shows, in the order of the page.
_CAPTIONS = {
    "perturbations": "Training points, their perturbations, and the mean perturbation toward each class. In the kernel "
    "limit a perturbation is a class-weighted sum of the training data: what the first network saw shows in it.",
    "outputs": "Outputs of both networks on points that neither saw. In the shaded quadrants both give the same class.",
    "decision_map": "The plane through the class means and the leading orthogonal direction. The dashed boundary was "
    "learned from perturbations alone, the solid one from clean data.",
    "accuracy_against_size": "The second network trained again at other perturbation sizes. The wide line is the "
    "mean over all draws of the target labels, in closed form; where it is low, the outcome is a matter of luck.",
}


def figures(report: Report) -> dict[str, Callable[[], Figure]]:
    """The figures that the report's arrays allow, by name, each drawn when called."""
    c, arrays, m = report.configuration, report.arrays, report.metrics
    classes, shape = c["classes"], c["image_shape"]
    test = "test" if "test" in m["accuracy"]["f"] else "train"
    return {
        "perturbations": lambda: plots.perturbations(arrays, classes, shape),
        "outputs": lambda: plots.outputs(arrays, classes, m["agreement"]),
        "decision_map": lambda: plots.decision_map(arrays, classes),
        "accuracy_against_size": lambda: plots.accuracy_against_size(
            arrays, c["size"], m["accuracy"]["f"][test]
        ),
    }


def write_figure(figure: Figure, folder: Path, name: str) -> bytes:
    """Writes `name`.svg and `name`.png; returns the PNG, for a page."""
    (folder / f"{name}.svg").write_bytes(plots.render(figure, "svg"))
    picture = plots.render(figure, "png")
    (folder / f"{name}.png").write_bytes(picture)
    return picture


def _draw(report: Report, folder: Path) -> None:
    pictures = {}
    for name, draw in figures(report).items():
        figure = draw()
        pictures[name] = write_figure(figure, folder, name)
    (folder / "report.html").write_text(_page(report, pictures), encoding="utf-8")


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


def sentences(configuration: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in words."""
    said = []
    part = "test" if "test" in metrics["accuracy"]["f"] else "train"
    f, g = (metrics["accuracy"][name][part] for name in "fg")
    said.append(
        f"g never saw a clean input or a true label; it classifies {g:.1%} of the clean {part} points (f: {f:.1%})"
        + (
            "."
            if metrics["agreement"] is None
            else f" and agrees with f on {metrics['agreement']:.1%} of fresh points."
        )
    )
    if metrics["cosine"] is not None:
        said.append(
            f"The perturbations point along the theory's direction: mean cosine {metrics['cosine']['mean']:.4f}, "
            f"smallest {metrics['cosine']['min']:.4f}."
        )
    d = metrics["diagnosis"]
    if d is not None:
        ratio = d["signal_rms"] / d["offset_std_rms"] if d["offset_std_rms"] else np.inf
        verdict = (
            "the outcome hardly depends on the targets drawn"
            if ratio > 4
            else "the outcome depends on the targets drawn; a larger size, balanced targets or more data would help"
        )
        said.append(
            f"Signal {d['signal_rms']:.3g} against a random offset of {d['offset_std_rms']:.3g} (rms over training "
            f"points, ratio {ratio:.3g}): {verdict}. Over target draws g is expected to classify "
            f"{d['expected_accuracy']:.1%} of the training points ({d['assumes']})."
        )
    if metrics["zero_gradients"]:
        said.append(
            f"{metrics['zero_gradients']} points had a zero gradient and were left unperturbed."
        )
    said += [f"{name}: {status}" for name, status in metrics["status"].items() if status != "ok"]
    return said


_CSS = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { text-align: left; padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
figure { margin: 1.5rem 0; } img { max-width: 100%; } figcaption { color: #555; font-size: .9rem; max-width: 46rem; }
code { background: #f4f4f4; padding: .1rem .3rem; overflow-wrap: anywhere; } details { margin-top: 1.5rem; }
"""


def html_page(title: str, body: str, css: str = "") -> str:
    """A whole document that needs nothing beside it; `title` is text, `body` HTML."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title><style>{_CSS}{css}</style></head><body>
{body}
</body></html>
"""


def html_table(
    rows: Iterable[Sequence[Any]], head: Sequence[str] = (), kinds: Iterable[str] = ()
) -> str:
    """Cells of any kind, escaped; `kinds` are classes, one a row."""

    def row(cells, tag="td", kind=""):
        said = f' class="{kind}"' if kind else ""
        return (
            f"<tr{said}>"
            + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells)
            + "</tr>"
        )

    rows = list(rows)
    kinds = list(kinds) or [""] * len(rows)
    body = "".join(row(cells, kind=kind) for cells, kind in zip(rows, kinds, strict=True))
    return f"<table>{row(head, 'th') if head else ''}{body}</table>"


def html_figure(name: str, picture: bytes, caption: str = "") -> str:
    """A PNG inside the page."""
    said = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    encoded = base64.b64encode(picture).decode()
    return f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,{encoded}">{said}</figure>'


def text_row(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """One row of a table on the terminal, as many lines as its longest cell takes when wrapped to
    `widths`.
    """
    wrapped = [
        textwrap.wrap(cell, max(width, 1)) or [""]
        for cell, width in zip(cells, widths, strict=True)
    ]
    padded = [
        [
            (cell[i] if i < len(cell) else "").ljust(width)
            for cell, width in zip(wrapped, widths, strict=True)
        ]
        for i in range(max(map(len, wrapped)))
    ]
    return ["  ".join(line).rstrip() for line in padded]


def _page(report: Report, pictures: Mapping[str, bytes]) -> str:
    e = html.escape
    c = report.configuration
    head, *body = table(report.metrics)
    what = "every point of the carrier was" if c.get("at") == "carrier" else "every one of them was"
    settings = [
        (k, json.dumps(v) if not isinstance(v, str) else v) for k, v in c.items() if k != "command"
    ]
    shown = "".join(
        html_figure(name.replace("_", " "), picture, _CAPTIONS[name])
        for name, picture in pictures.items()
    )
    words = "".join(f"<li>{e(sentence)}</li>" for sentence in sentences(c, report.metrics))
    return html_page(
        f"perturbkernel: {c['data']}",
        f"""<h1>Learning from adversarial perturbations: {e(c["data"])}, {e(c["carrier"])}</h1>
<p>A wide network f was trained on {c["n_train"]} points, {e(what)} perturbed by {c["size"]:g}
({e(c["norm"])}) toward a random label, and
a second network g was trained on nothing but the result. All of it in closed form.</p>
<ul>{words}</ul>
{html_table(body, head)}
{shown}
<h2>What was asked</h2>
<p><code>{e(c["command"])}</code></p>
{html_table(settings)}
<details><summary>Versions and machine</summary>{html_table(report.environment.items())}</details>""",
    )
