"""The paper's experiments as data: 62 panels and 8 decision maps, at the published sizes or reduced
ones.

A panel varies one setting of a study and shows, against it, what the networks do. `panels.json`
holds the settings and, for most panels, the published values, read off the figures of Kumano, Kera,
Yamasaki (NeurIPS 2024).
"""

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import numpy as np

from perturbkernel.checks import check_choice
from perturbkernel.reproduce.panels.setting import Setting as Setting
from perturbkernel.reproduce.panels.setting import as_config as as_config
from perturbkernel.reproduce.panels.setting import from_config as from_config

SCALES = ("small", "paper")
QUANTITIES = ("standard", "perturbation", "agreement")

# What the reduced scale does to a study: (n, d). Images keep d, and n is what there is, at most
# 500.
_SMALL = {
    "shifted_gaussian_a": (1000, 100),
    "shifted_gaussian_b": (400, 200),
    "gaussian_a": (250, 250),
    "gaussian_b": (250, 250),
}
_SMALL_WIDTH, _SMALL_POINTS, _SMALL_IMAGES, _SMALL_GRID = 200, 6, 500, 101


@dataclass(frozen=True)
class Panel:
    """A figure panel: `quantity` against `varies`, one Setting a value.

    `published` has a row of values for each curve; `approximate` the positions read off with an
    error of 0.03 instead of 0.01 (a value of 0.40 there: below 0.40). Both are empty where nothing
    was read off. At the reduced scale the published values belong at `axis_factor` times the
    published position.
    """

    id: str
    study: str
    quantity: str
    varies: str
    values: tuple[float, ...]
    settings: tuple[Setting, ...]
    published_values: tuple[float, ...]
    published: dict[str, tuple[float, ...]]
    approximate: dict[str, tuple[int, ...]]
    reduction: str
    axis_factor: float

    @property
    def curves(self) -> tuple[str, ...]:
        return ("cosine",) if self.quantity == "cosine" else QUANTITIES


@dataclass(frozen=True)
class Map:
    """A decision map: the plane over `limits` squared, `grid` points a side, along the class
    means.
    """

    id: str
    study: str
    setting: Setting
    limits: tuple[float, float]
    grid: int
    published_look: str
    reduction: str


@functools.cache
def _content() -> dict[str, Any]:
    folder = resources.files("perturbkernel.reproduce.panels")
    return json.loads(folder.joinpath("panels.json").read_text(encoding="utf-8"))


def recipe() -> dict[str, Any]:
    """How the published networks were trained and measured, in words."""
    return _content()["recipe"]


def panel_ids() -> tuple[str, ...]:
    return tuple(panel["id"] for panel in _content()["panels"])


def map_ids() -> tuple[str, ...]:
    return tuple(entry["id"] for entry in _content()["maps"])


def _thin(values: Sequence, count: int) -> tuple:
    """At most `count` of the values, evenly by position, both ends kept."""
    even = np.linspace(0, len(values) - 1, min(count, len(values)))
    positions = np.unique(np.round(even).astype(int))
    return tuple(values[i] for i in positions)


def _base(study: dict[str, Any], loss: str) -> Setting:
    return Setting(
        study["data"],
        study["scenario"],
        study["n"],
        study["d"],
        study["width"],
        study["slope"],
        study["size"],
        loss,
        study["steps_f"],
        study["steps_g"],
        tuple(study["learning_rates_f"]),
        tuple(study["learning_rates_g"]),
        tuple(study["classes"]) if "classes" in study else None,
    )


def _resized(setting: Setting, n: int, d: int) -> Setting:
    """Other n and d, the size of the perturbations in proportion to sqrt(d), as the paper's studies
    over d have it.
    """
    size = setting.size if d == setting.d else setting.size * np.sqrt(d / setting.d)
    six_digits = np.format_float_positional(size, 6, fractional=False)
    return replace(setting, n=int(n), d=int(d), size=float(six_digits))


def panel(panel_id: str, scale: str = "small") -> Panel:
    """One panel with its settings at the given scale.

    "paper": as published. "small": n and d reduced study by study, widths to 200, at most 6 points;
    the size of a perturbation keeps its proportion to sqrt(d), and `reduction` says in words what
    was reduced.
    """
    check_choice(scale, "scale", SCALES)
    entry = next((p for p in _content()["panels"] if p["id"] == panel_id), None)
    if entry is None:
        raise ValueError(
            f"no panel is called {panel_id!r}; `perturbkernel reproduce list` lists them"
        )
    study = _content()["studies"][entry["study"]]
    base = _base(study, entry["loss"])
    for name in ("learning_rates_f", "learning_rates_g"):
        if name in entry:
            base = replace(base, **{name: tuple(entry[name])})
    values, varies = entry["values"], entry["varies"]
    settings = []
    for position, value in enumerate(values):
        sized = {"size": entry["sizes"][position]} if varies == "d" else {}
        settings.append(replace(base, **{varies: value}, **sized))
    published = {
        name: tuple(row)
        for name, row in entry.get("published", {}).items()
        if name != "training_accuracy"
    }
    reduction, factor = "", 1.0
    if scale == "small":
        settings, reduction, factor = _reduce(settings, base, entry["study"], varies)
    shown = tuple(getattr(setting, varies) for setting in settings)
    return Panel(
        entry["id"],
        entry["study"],
        entry["quantity"],
        varies,
        shown,
        tuple(settings),
        tuple(values),
        published,
        {name: tuple(where) for name, where in entry.get("approximate", {}).items()},
        reduction,
        factor,
    )


def _reduce(
    settings: list[Setting], base: Setting, study: str, varies: str
) -> tuple[list[Setting], str, float]:
    """The reduced settings, what was reduced in words, and by what factor the varied setting
    shrank.
    """
    said, factor = [], 1.0
    if study in _SMALL:
        cap: dict[str, int] = dict(zip(("n", "d"), _SMALL[study], strict=True))
        # The varied one of n and d: published values as far as they go, shrunk only where too few
        # are left.
        few = False
        if varies in cap:
            left = sum(getattr(s, varies) <= cap[varies] for s in settings)
            few = left < _SMALL_POINTS
        if few:
            factor = cap[varies] / getattr(base, varies)
        elif varies == "size":
            factor = float(np.sqrt(cap["d"] / base.d))
        if (cap["n"], cap["d"]) != (base.n, base.d):
            n, d = f"n {base.n:,} → {cap['n']:,}", f"d {base.d:,} → {cap['d']:,}"
            said.append(f"{n}, {d}, size in proportion to √d")

        def shrink(setting: Setting) -> Setting:
            if varies not in cap:
                return _resized(setting, **cap)
            value = getattr(setting, varies)
            if few:
                value = max(2, round(value * factor))
            return _resized(setting, **(cap | {varies: value}))

        settings = [shrink(setting) for setting in settings]
        if varies in cap:
            settings = [s for s in settings if getattr(s, varies) <= cap[varies]]
    else:
        # The data decides the size: what the user has, or the digits that come with the
        # installation.
        settings = [replace(setting, n=min(setting.n, _SMALL_IMAGES)) for setting in settings]
    if varies == "width":
        settings = [setting for setting in settings if setting.width <= _SMALL_WIDTH]
        said.append(f"widths up to {_SMALL_WIDTH}")
    distinct = list(dict.fromkeys(settings))
    if len(distinct) > _SMALL_POINTS:
        said.append(f"{_SMALL_POINTS} points")
    return list(_thin(distinct, _SMALL_POINTS)), "; ".join(said), factor


def decision_map(map_id: str, scale: str = "small") -> Map:
    """One decision map with its setting at the given scale."""
    check_choice(scale, "scale", SCALES)
    entry = next((m for m in _content()["maps"] if m["id"] == map_id), None)
    if entry is None:
        raise ValueError(f"no map is called {map_id!r}; `perturbkernel reproduce list` lists them")
    base = _base(_content()["studies"][entry["study"]], entry["loss"])
    names = ("n", "d", "width", "slope", "size", "steps_f", "steps_g")
    setting = replace(
        base,
        **{name: entry[name] for name in names},
        learning_rates_f=(entry["learning_rate_f"],),
        learning_rates_g=(entry["learning_rate_g"],),
    )
    grid, reduction = entry["grid"], ""
    if scale == "small":
        n, d = _SMALL.get(entry["study"], (_SMALL_IMAGES, setting.d))
        if setting.data == "gaussian":
            # N / d places the points of pure noise in the plane of their class means.
            d = setting.d * n // setting.n
        reduced = _resized(setting, min(n, setting.n), min(d, setting.d))
        reduced = replace(reduced, width=min(setting.width, _SMALL_WIDTH))
        said = []
        for name in ("n", "d", "width"):
            before, after = getattr(setting, name), getattr(reduced, name)
            if before == after or (name == "n" and setting.is_image):
                continue
            said.append(f"{name} {before:,} → {after:,}")
        setting, grid, reduction = reduced, _SMALL_GRID, "; ".join(said)
    return Map(
        entry["id"],
        entry["study"],
        setting,
        tuple(entry["limits"]),
        grid,
        entry["published_look"],
        reduction,
    )


def select(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(panel ids, map ids) that the names stand for: whole ids or the beginning of some ("mnist_a",
    "map").

    Raises ValueError for a name that matches nothing.
    """
    chosen = []
    everything = (*panel_ids(), *map_ids())
    for name in names:
        study = name.rstrip("/") + "/"
        found = [e for e in everything if e == name]
        found = found or [e for e in everything if e.startswith(study)]
        if not found:
            near = [e for e in everything if name.split("/")[0] in e][:4]
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ValueError(
                f"no panel, map or study is called {name!r}{hint} (perturbkernel reproduce list)"
            )
        chosen += found
    panels = tuple(e for e in panel_ids() if e in chosen)
    maps = tuple(e for e in map_ids() if e in chosen)
    return panels, maps
