"""What a report says: the text that is printed, and the page."""

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from perturbkernel.display import html_table, text_table
from perturbkernel.report import robustness
from perturbkernel.report.captions import captions
from perturbkernel.report.html import Picture, html_figure, html_page, html_settings
from perturbkernel.report.statements import introduction, sentences

if TYPE_CHECKING:
    from perturbkernel.report.results import Report

_ROW_NAMES = {
    "f": "f, trained on the data",
    "g": "g, trained on the perturbations",
    "unperturbed": "control: carrier unperturbed",
    "random": "control: random directions",
    "shuffled": "control: targets shuffled",
}


def text(configuration: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """What `perturbkernel run` prints: what was asked, the table of accuracies, and sentences.

    Example: see `load`.
    """
    c = configuration
    classes = c["classes"]
    between = " against " if len(classes) == 2 else ", "
    named = between.join(classes)
    points = f"{c['n_train']} training and {c['n_test']} test points"
    asked = (
        f"{c['data']}: {named}, {points}, d = {c['d']}; {c['carrier']}, "
        f"size {c['size']:g} ({c['norm']}), {c['targets']} targets"
    )
    tables = [text_table(table(metrics)), ""]
    if "robust" in metrics:
        rows = robustness.rows(metrics["robust"])
        tables += [text_table(rows), ""]
    return "\n".join([asked, "", *tables, *sentences(c, metrics)])


def table(metrics: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The numbers of an experiment as rows of text: name, clean training data, clean test data.

    Example:
        >>> controls = {"random": {"train": [0.4, 0.6]}}
        >>> table({"accuracy": {"f": {"train": 1.0}}, "controls": controls})[2]
        ('control: random directions', '0.500 ± 0.100')
    """
    accuracy = metrics["accuracy"]
    parts = list(accuracy["f"])
    rows = [("accuracy on clean data, true labels", *parts)]
    compared = {**accuracy, **metrics["controls"]}
    for name, scores in compared.items():
        cells = [_shares(scores[part]) for part in parts]
        rows.append((_ROW_NAMES[name], *cells))
    return rows


def _shares(values: Any) -> str:
    """A share, or the mean of several with their standard deviation."""
    values = np.atleast_1d(values)
    said = f"{values.mean():.3f}"
    if len(values) > 1:
        said += f" ± {values.std():.3f}"
    return said


def report_page(report: "Report", pictures: Mapping[str, Picture]) -> str:
    c = report.configuration
    metrics = report.metrics
    head, *body = table(metrics)
    said = captions(c, metrics, report.arrays)
    shown = []
    for name, picture in pictures.items():
        words = name.replace("_", " ")
        stage = _slider(report) if name == "growing" else ""
        shown.append(html_figure(words, picture, said[name], stage=stage))
    items = [f"<li>{html.escape(sentence)}</li>" for sentence in sentences(c, metrics)]
    title = f"Learning from adversarial perturbations: {c['data']}, {c['carrier']}"
    under_attack = ""
    if "robust" in metrics:
        attack_head, *attack_rows = robustness.rows(metrics["robust"])
        under_attack = f"\n{html_table(attack_rows, attack_head)}"
    machine = html_settings(report.environment)
    asked = {name: value for name, value in c.items() if name != "command"}
    return html_page(
        f"perturbkernel: {c['data']}",
        f"""<h1>{html.escape(title)}</h1>
<p>{html.escape(introduction(c, metrics))}</p>
<ul>{"".join(items)}</ul>
{html_table(body, head)}{under_attack}
<div class="figures">{"".join(shown)}</div>
<h2>What was asked</h2>
<p><code>{html.escape(c["command"])}</code></p>
{html_settings(asked)}
<details><summary>Versions and machine</summary>{machine}</details>""",
        scripts=("slider.js",) if "growing" in pictures else (),
    )


def _slider(report: "Report") -> str:
    from perturbkernel.report import growth

    c = report.configuration
    arrays = {name: np.asarray(array) for name, array in report.arrays.items()}
    return growth.slider(arrays, c["classes"], c["image_shape"], c["size"])
