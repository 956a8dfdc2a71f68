"""A reproduction's figures and its page, from finished cells."""

import html
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from perturbkernel.display import html_table
from perturbkernel.files import write_folder
from perturbkernel.report.html import Picture, html_contents, html_figure, html_page, html_settings
from perturbkernel.report.results import REPRODUCTION, write_figure
from perturbkernel.reproduce import plan, store
from perturbkernel.reproduce.panels import assemble
from perturbkernel.reproduce.panels.assemble import Curves
from perturbkernel.reproduce.panels.datasets import count
from perturbkernel.reproduce.panels.figures import (
    curve_label,
    describe,
    describe_map,
    map_figure,
    panel_figure,
)
from perturbkernel.reproduce.panels.setting import Setting
from perturbkernel.reproduce.panels.specification import Panel, decision_map, panel
from perturbkernel.reproduce.plan import Options
from perturbkernel.reproduce.records import Arrays, Json

# What the lines of each mode are.
_LINES = {
    "limit": "Blue: the kernel limit in closed form, with random initial functions (solid; the "
    "band is the middle 80 % over draws of data and of target labels) and without (dotted). Green: "
    "without them, with as many labels +1 as -1.",
    "network": "Orange: networks of finite width trained by the published recipe, at the best of "
    "its rates for each point and quantity, as published (solid; the band is over seeds), and "
    "their mean over the rates (dotted).",
    "law": "Purple: networks of the published width drawn from the law of one neuron, at the best "
    "of the rates for each draw (solid; the band is over networks, targets and data), and their "
    "mean over the rates (dotted).",
}
_HEADING = "Wide two-layer networks learn from adversarial perturbations: the paper reproduced"
_STUDIES_HEADING = "Beyond the paper: studies"
_PUBLISHED = (
    "Circles: published values (Kumano, Kera, Yamasaki, NeurIPS 2024; read off the figures, error "
    "about 0.01)."
)
_SCALED = "Dashed: larger perturbations, where images are fewer than published."


class Reproduction:
    """A finished reproduction in a folder: its numbers, figures and page. Nothing is computed
    again.

    Attributes:
        folder: where the cells are.
        options: what was asked for.
        environment: versions and devices of the processes that computed the cells; a list where
            they differ.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        options: Options,
        environment: Json | None = None,
    ):
        self.folder = Path(folder)
        self.options = options
        self._environment = environment

    @cached_property
    def cells(self) -> list[plan.Cell]:
        return plan.cells(self.options)

    @cached_property
    def _headers(self) -> list[Json]:
        return [store.header(self.folder, cell) for cell in self.cells]

    @property
    def environment(self) -> Json:
        if self._environment is not None:
            return self._environment
        return _merged([header["environment"] for header in self._headers])

    @property
    def names(self) -> tuple[str, ...]:
        """Panels, maps and studies, by identifier."""
        return (
            *(p.id for p in self.options.panels),
            *(m.id for m in self.options.maps),
            *self.options.studies,
        )

    def curves(self, panel_id: str) -> Curves:
        """The numbers of a panel: quantity -> curve -> {"mean", "low", "high"}; see
        `assemble.panel_curves`.
        """
        p = self.panel(panel_id)
        return assemble.panel_curves(p, self.options, self.folder)

    def panel(self, panel_id: str) -> Panel:
        """What the panel asks: values, settings, published values."""
        return panel(panel_id, self.options.scale)

    def map(self, map_id: str) -> dict[str, Arrays]:
        """Mode -> arrays of a decision map; see `maps.map_limit_cell`."""
        m = decision_map(map_id, self.options.scale)
        found = {}
        for mode in self.options.lawless:
            cell = plan.map_cell(m, mode, self.options)
            found[mode] = store.load(self.folder, cell)
        return found

    def study(self, name: str) -> list[tuple[Json, Arrays]]:
        """Configuration and arrays of every cell of a study."""
        found = []
        for cell in plan.study_cells(name, self.options):
            arrays = store.load(self.folder, cell)
            found.append((cell["config"], arrays))
        return found

    def figure(self, name: str) -> Figure:
        """The figure of a panel, map or study."""
        if name in plan.STUDIES:
            study = plan.STUDIES[name].module
            return study.draw(self.study(name))
        if name.startswith("map/"):
            m = decision_map(name, self.options.scale)
            note = self._note(m.setting)
            return map_figure(m, self.map(name), note)
        p = self.panel(name)
        notes = [self._note(p.settings[0])]
        rates = assemble.unstable_rates(p, self.options, self.folder)
        if rates:
            said = ", ".join(f"{rate:g}" for rate in rates)
            notes.append(
                f"rates {said} of the first network are beyond the stable ones in the limit of "
                "gradient descent"
            )
        note = "; ".join(filter(None, notes))
        return panel_figure(p, self.curves(name), note)

    def _draw(self, into: Path, name: str) -> Picture:
        return write_figure(self.figure(name), into, file_name(name))

    def _note(self, setting: Setting) -> str:
        """Where the images are not those of the paper."""
        if not setting.is_image:
            return ""
        data = plan.data_config(setting, 0, self.options.sources)
        n = count(data)
        which = "on the IDX files"
        if data["name"] == "mnist5k":
            which = "on the digits 1 and 2 of mnist5k"
        published = plan.published_n(setting)
        if n < published:
            return f"{which}, n = {n:,} (published: {setting.data}, n = {published:,})"
        return f"{which}, n = {n:,}"

    def seconds(self) -> float:
        """What all cells took to compute, added up."""
        return sum(float(header["seconds"]) for header in self._headers)

    def summary(self) -> Json:
        """Every number of every panel, with its distance from the published values, as JSON holds
        it.
        """
        panels = {}
        for p in self.options.panels:
            curves = self.curves(p.id)
            panels[p.id] = {
                "varies": p.varies,
                "values": list(p.values),
                "published_values": list(p.published_values),
                "published": {name: list(row) for name, row in p.published.items()},
                "curves": curves,
                "distance": _distances(p, curves),
            }
        studies = {}
        for name in self.options.studies:
            study = plan.STUDIES[name].module
            studies[name] = study.summarise(self.study(name))
        return {"panels": panels, "studies": studies}

    def save(self, executor: Executor | None = None) -> Path:
        """Draws every figure and writes `index.html`, `summary.json` and the record of what the
        folder holds.

        `executor`: draws the figures, if its workers see the folder.
        """
        write_folder(self.folder, REPRODUCTION, partial(self._write, executor))
        return self.folder / "index.html"

    def _write(self, executor: Executor | None, into: Path) -> None:
        (into / "figures").mkdir()
        draw = partial(self._draw, into / "figures")
        over = map if executor is None else executor.map
        pictures = dict(zip(self.names, over(draw, self.names), strict=True))
        summary = self.summary()
        record = {"options": asdict(self.options), "environment": self.environment}
        texts = {
            "summary.json": json.dumps(summary, indent=1),
            "index.html": self._page(summary, pictures),
            REPRODUCTION: json.dumps(record, indent=1),
        }
        for name, text in texts.items():
            (into / name).write_text(text + "\n", encoding="utf-8")

    def table(self) -> list[tuple[str, str, str]]:
        """(panel, quantity, mean distance of each curve from the published values) as text."""
        rows = []
        for p in self.options.panels:
            distances = _distances(p, self.curves(p.id))
            for quantity, gaps in distances.items():
                shown = [
                    f"{name} {gap['mean']:.3f}"
                    for name, gap in gaps.items()
                    if gap is not None and " " not in name
                ]
                said = ", ".join(shown) or "no published values here"
                rows.append((p.id, quantity, said))
        return rows

    def _page(self, summary: Json, pictures: Mapping[str, Picture]) -> str:
        figures = [self._html_figure(name, summary, pictures[name]) for name in self.names]
        contents = html_contents({name: name.removesuffix("/identity") for name in self.names})
        body = f"""<h1>{html.escape(self._heading())}</h1>
{self._legend()}{contents}
<div class="figures">{"".join(figures)}</div>
<h2>What was asked</h2>{html_settings(self._asked())}
<details><summary>Versions and machines</summary>{html_settings(self.environment)}</details>"""
        return html_page("perturbkernel reproduce", body)

    def _heading(self) -> str:
        """What the page is about: of one study what that is."""
        if self.options.panels or self.options.maps:
            return _HEADING
        if len(self.options.studies) == 1:
            return self._about(self.options.studies[0])
        return _STUDIES_HEADING

    def _about(self, name: str) -> str:
        """A study, or what a decision map is of, in a line."""
        if name in plan.STUDIES:
            about = plan.STUDIES[name].about
            return about[0].upper() + about[1:]
        return describe_map(decision_map(name, self.options.scale))

    def _legend(self) -> str:
        """What circles and lines are, where there are panels."""
        if not self.options.panels:
            return ""
        lines = " ".join(_LINES[mode] for mode in self.options.modes)
        if self.options.mode == "law" and self.options.left_out:
            lines += f" Left out, as neurons interact in them: {', '.join(self.options.left_out)}."
        return f"<p>{_PUBLISHED} {lines} {_SCALED}</p>"

    def _asked(self) -> Json:
        """The options that have a part in what is shown."""
        asked = asdict(self.options)
        if not (self.options.panels or self.options.maps):
            asked = {name: asked[name] for name in ("names", "scale", "seeds")}
        return {name: value for name, value in asked.items() if value is not None}

    def _html_figure(self, name: str, summary: Json, picture: Picture) -> str:
        """One figure, what it shows, and a panel's distances from the published values."""
        words = table = ""
        if name in summary["panels"]:
            words = describe(self.panel(name))
            table = _gaps(summary["panels"][name]["distance"])
        elif len(self.names) > 1:  # of one alone the heading says it
            words = self._about(name)
        stem = f"figures/{file_name(name)}"
        below = f'{table}<a class="file" href="{html.escape(stem)}.svg">SVG</a>'
        return html_figure(name, picture, words, source=f"{stem}.png", below=below)


def _distances(p: Panel, curves: Curves) -> dict[str, Json]:
    """Quantity -> curve -> `assemble.distance`."""
    found = {}
    for quantity, named in curves.items():
        found[quantity] = {
            name: assemble.distance(curve, p, quantity) for name, curve in named.items()
        }
    return found


def _gaps(distances: Json) -> str:
    """A table: a row a curve that has published values beside it, a column a quantity."""
    names: dict[str, None] = {}
    for named in distances.values():
        names |= dict.fromkeys(name for name, gap in named.items() if gap is not None)
    rows = []
    for name in names:
        gaps = [named.get(name) for named in distances.values()]
        shown = ["" if gap is None else f"{gap['mean']:.3f}" for gap in gaps]
        rows.append((curve_label(name), *shown))
    if not rows:
        return ""
    return html_table(rows, ("mean distance from the published values", *distances))


def file_name(name: str) -> str:
    """The name of a figure's files, without what they end in."""
    return name.replace("/", "_")


def load(folder: str | os.PathLike[str]) -> Reproduction:
    """The reproduction that a folder holds. Raises FileNotFoundError if it holds none that was
    finished.
    """
    try:
        content = json.loads((Path(folder) / REPRODUCTION).read_text())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} holds no finished reproduction (no {REPRODUCTION})"
        ) from None
    except ValueError as error:
        raise _damaged_record(folder, error) from error
    try:
        options = content["options"] | {"names": tuple(content["options"]["names"])}
        return Reproduction(folder, Options(**options), content["environment"])
    except (TypeError, KeyError, AttributeError) as error:
        raise _damaged_record(folder, error) from error


def _damaged_record(folder: str | os.PathLike[str], error: Exception) -> ValueError:
    return ValueError(
        f"{Path(folder) / REPRODUCTION} is damaged ({type(error).__name__}: {error}); give the "
        "`reproduce` command again, which computes nothing that is there"
    )


def publish(
    folder: str | os.PathLike[str], options: Options, executor: Executor | None
) -> Reproduction:
    """Writes the page of what was just computed, together with what the folder held before.

    `executor`: as in `Reproduction.save`.
    """
    found = Reproduction(folder, options)

    def write(into: Path) -> None:
        # Here no other process is between reading the record and writing it.
        found.options = together(folder, options)
        found._write(executor, into)

    write_folder(folder, REPRODUCTION, write)
    return found


def together(folder: str | os.PathLike[str], options: Options) -> Options:
    """The options with the names that the folder holds already, if everything else about them is
    the same. Those of which the code or the data changed since are left out, with a warning.
    """
    try:
        before = load(folder).options
    except (FileNotFoundError, ValueError):
        return options
    if replace(before, names=options.names) != options:
        return options
    kept, lost = [], []
    for name in before.names:
        cells = plan.cells(replace(options, names=(name,)))
        finished = name in options.names or all(store.is_finished(folder, c) for c in cells)
        (kept if finished else lost).append(name)
    if lost:
        warnings.warn(
            f"left out of the page, since the code or the data changed: {', '.join(lost)}; give "
            f"the command with these names to compute them again",
            stacklevel=2,
        )
    return replace(options, names=tuple(dict.fromkeys((*kept, *options.names))))


def _merged(environments: Sequence[Any]) -> Any:
    """One environment, where they differ the list of what there is."""
    if all(isinstance(one, dict) for one in environments):
        names = dict.fromkeys(name for one in environments for name in one)
        return {name: _merged([one.get(name) for one in environments]) for name in names}
    distinct = []
    for one in environments:
        if one not in distinct:
            distinct.append(one)
    return distinct[0] if len(distinct) == 1 else distinct
