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
from typing import NamedTuple

import numpy as np

from perturbkernel.checks import check_choice
from perturbkernel.reproduce.panels.setting import Setting as Setting
from perturbkernel.reproduce.panels.setting import as_config as as_config
from perturbkernel.reproduce.panels.setting import from_config as from_config
from perturbkernel.reproduce.records import Json
from perturbkernel.words import did_you_mean

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
def _content() -> Json:
    folder = resources.files("perturbkernel.reproduce.panels")
    return json.loads(folder.joinpath("panels.json").read_text(encoding="utf-8"))


def panel_ids() -> tuple[str, ...]:
    return tuple(panel["id"] for panel in _content()["panels"])


def map_ids() -> tuple[str, ...]:
    return tuple(entry["id"] for entry in _content()["maps"])


def _thin(values: Sequence, count: int) -> tuple:
    """At most `count` of the values, evenly by position, both ends kept."""
    last = len(values) - 1
    kept = min(count, len(values))
    even = np.linspace(0, last, kept)
    rounded = np.round(even)
    positions = np.unique(rounded.astype(int))
    return tuple(values[i] for i in positions)


def _base(study: Json, loss: str) -> Setting:
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
    size = setting.size
    if d != setting.d:
        size = size * np.sqrt(d / setting.d)
    six_digits = np.format_float_positional(size, 6, fractional=False)
    return replace(setting, n=int(n), d=int(d), size=float(six_digits))


def _entry(kind: str, name: str) -> Json | None:
    """The panel or map of that identifier; None if there is none."""
    for entry in _content()[kind]:
        if entry["id"] == name:
            return entry
    return None


def _base_of(entry: Json) -> Setting:
    """The setting of the study that a panel or map belongs to."""
    study = _content()["studies"][entry["study"]]
    return _base(study, entry["loss"])


def panel(panel_id: str, scale: str = "small") -> Panel:
    """One panel with its settings at the given scale.

    "paper": as published. "small": n and d reduced study by study, widths to 200, at most 6 points;
    the size of a perturbation keeps its proportion to sqrt(d), and `reduction` says in words what
    was reduced.

    Example:
        >>> import perturbkernel as pk
        >>> p = pk.reproduce.panel("mnist_a/size/identity", scale="paper")
        >>> p.varies, len(p.settings), sorted(p.published)
        ('size', 9, ['agreement', 'perturbation', 'standard'])
    """
    check_choice(scale, "scale", SCALES)
    entry = _entry("panels", panel_id)
    if entry is None:
        raise ValueError(
            f"no panel is called {panel_id!r}; `perturbkernel reproduce list` lists them"
        )
    base = _base_of(entry)
    for name in ("learning_rates_f", "learning_rates_g"):
        if name in entry:
            rates = {name: tuple(entry[name])}
            base = replace(base, **rates)
    values = entry["values"]
    varies = entry["varies"]
    settings = []
    for position, value in enumerate(values):
        changed = {varies: value}
        if varies == "d":
            changed["size"] = entry["sizes"][position]
        settings.append(replace(base, **changed))
    published = _as_tuples(entry.get("published", {}))
    published.pop("training_accuracy", None)
    reduced = _Reduced(settings, "", 1.0)
    if scale == "small":
        reduced = _reduce(settings, base, entry["study"], varies)
    shown = [getattr(setting, varies) for setting in reduced.settings]
    return Panel(
        id=entry["id"],
        study=entry["study"],
        quantity=entry["quantity"],
        varies=varies,
        values=tuple(shown),
        settings=tuple(reduced.settings),
        published_values=tuple(values),
        published=published,
        approximate=_as_tuples(entry.get("approximate", {})),
        reduction=reduced.words,
        axis_factor=reduced.factor,
    )


def _as_tuples(rows: dict[str, list]) -> dict[str, tuple]:
    return {name: tuple(row) for name, row in rows.items()}


class _Reduced(NamedTuple):
    """The reduced settings, what was reduced in words, and by what factor the varied setting
    shrank.
    """

    settings: list[Setting]
    words: str
    factor: float


def _reduce(settings: list[Setting], base: Setting, study: str, varies: str) -> _Reduced:
    if study in _SMALL:
        reduced = _reduce_synthetic(settings, base, _SMALL[study], varies)
    else:
        # The data decides the size: what the user has, or the digits that come with the
        # installation.
        fewer = [replace(setting, n=min(setting.n, _SMALL_IMAGES)) for setting in settings]
        reduced = _Reduced(fewer, "", 1.0)
    left = reduced.settings
    said = [reduced.words] if reduced.words else []
    if varies == "width":
        left = [setting for setting in left if setting.width <= _SMALL_WIDTH]
        said.append(f"widths up to {_SMALL_WIDTH}")
    distinct = list(dict.fromkeys(left))
    if len(distinct) > _SMALL_POINTS:
        said.append(f"{_SMALL_POINTS} points")
    kept = _thin(distinct, _SMALL_POINTS)
    return _Reduced(list(kept), "; ".join(said), reduced.factor)


def _reduce_synthetic(
    settings: list[Setting], base: Setting, small: tuple[int, int], varies: str
) -> _Reduced:
    """Other n and d, as `small` says."""
    n, d = small
    cap = {"n": n, "d": d}
    factor = 1.0
    # The varied one of n and d: published values as far as they go, shrunk only where too few are
    # left.
    few = False
    if varies in cap:
        published = [getattr(setting, varies) for setting in settings]
        left = [value for value in published if value <= cap[varies]]
        few = len(left) < _SMALL_POINTS
    if few:
        factor = cap[varies] / getattr(base, varies)
    elif varies == "size":
        factor = float(np.sqrt(d / base.d))

    def shrink(setting: Setting) -> Setting:
        changed = dict(cap)
        if varies in cap:
            value = getattr(setting, varies)
            if few:
                value = max(2, round(value * factor))
            changed[varies] = value
        return _resized(setting, **changed)

    settings = [shrink(setting) for setting in settings]
    if varies in cap:
        settings = [setting for setting in settings if getattr(setting, varies) <= cap[varies]]
    words = ""
    if (n, d) != (base.n, base.d):
        of_n = f"n {base.n:,} → {n:,}"
        of_d = f"d {base.d:,} → {d:,}"
        words = f"{of_n}, {of_d}, size in proportion to √d"
    return _Reduced(settings, words, factor)


def decision_map(map_id: str, scale: str = "small") -> Map:
    """One decision map with its setting at the given scale."""
    check_choice(scale, "scale", SCALES)
    entry = _entry("maps", map_id)
    if entry is None:
        raise ValueError(f"no map is called {map_id!r}; `perturbkernel reproduce list` lists them")
    base = _base_of(entry)
    names = ("n", "d", "width", "slope", "size", "steps_f", "steps_g")
    setting = replace(
        base,
        **{name: entry[name] for name in names},
        learning_rates_f=(entry["learning_rate_f"],),
        learning_rates_g=(entry["learning_rate_g"],),
    )
    grid = entry["grid"]
    reduction = ""
    if scale == "small":
        published = setting
        setting = _reduced_map(published, entry["study"])
        grid = _SMALL_GRID
        reduction = _map_reduction(published, setting)
    return Map(
        id=entry["id"],
        study=entry["study"],
        setting=setting,
        limits=tuple(entry["limits"]),
        grid=grid,
        published_look=entry["published_look"],
        reduction=reduction,
    )


def _reduced_map(setting: Setting, study: str) -> Setting:
    n, d = _SMALL.get(study, (_SMALL_IMAGES, setting.d))
    if setting.data == "gaussian":
        # N / d places the points of pure noise in the plane of their class means.
        d = setting.d * n // setting.n
    n = min(n, setting.n)
    d = min(d, setting.d)
    width = min(setting.width, _SMALL_WIDTH)
    resized = _resized(setting, n, d)
    return replace(resized, width=width)


def _map_reduction(published: Setting, reduced: Setting) -> str:
    """What was reduced, in words."""
    said = []
    for name in ("n", "d", "width"):
        if name == "n" and published.is_image:
            continue  # as many images as there are
        before = getattr(published, name)
        after = getattr(reduced, name)
        if before != after:
            said.append(f"{name} {before:,} → {after:,}")
    return "; ".join(said)


def select(
    names: Iterable[str], others: Iterable[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(panel ids, map ids) that the names stand for: whole ids or the first words of some ("mnist",
    "mnist_a", "map").

    Raises ValueError for a name that matches nothing, and offers what is near, of `others` too.
    """
    chosen = []
    everything = (*panel_ids(), *map_ids())
    for name in names:
        found = [name] if name in everything else []
        if not found:
            beginning = name.rstrip("/")
            whole_words = beginning + "/", beginning + "_"
            found = [identifier for identifier in everything if identifier.startswith(whole_words)]
        if not found:
            beginnings = dict.fromkeys(identifier.split("/")[0] for identifier in everything)
            hint = did_you_mean(name, [*everything, *beginnings, *others], most=3)
            raise ValueError(
                f"no panel, map or study is called {name!r}{hint} (perturbkernel reproduce list)"
            )
        chosen += found
    panels = tuple(e for e in panel_ids() if e in chosen)
    maps = tuple(e for e in map_ids() if e in chosen)
    return panels, maps
