"""Which cells a reproduction needs, and where in them the numbers of each panel are.

A cell is one piece of work: a function's name and a configuration that JSON holds. In the kernel
limit a cell is a data set with a kernel and a loss, and answers every panel of the paper that asks
something of it; at finite width, by training or by the law of one neuron, it is one point of a
panel with one seed, and panels that share a point share its cell.
"""

import functools
import itertools
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from perturbkernel.checks import check_choice, check_count
from perturbkernel.reproduce.panels.datasets import data_config, file_states, size_factor
from perturbkernel.reproduce.panels.limit import Request
from perturbkernel.reproduce.panels.setting import Setting, as_config
from perturbkernel.reproduce.panels.specification import (
    SCALES,
    Map,
    Panel,
    decision_map,
    map_ids,
    panel,
    panel_ids,
    select,
)
from perturbkernel.reproduce.records import Cell
from perturbkernel.reproduce.studies.architectures import study as architectures
from perturbkernel.reproduce.studies.bugs_and_features import study as bugs_and_features
from perturbkernel.reproduce.studies.carriers import study as carriers
from perturbkernel.reproduce.studies.frontier import study as frontier
from perturbkernel.reproduce.studies.trained_kernels import study as trained_kernels
from perturbkernel.reproduce.studies.width import study as width

# What each mode computes of a panel.
_PARTS = {
    "limit": ("limit",),
    "network": ("network",),
    "both": ("limit", "network"),
    "law": ("law",),
    "all": ("limit", "network", "law"),
}
MODES = tuple(_PARTS)
# Draws of target labels by coin flips and balanced ones, and of initial functions.
_IDENTITY_DRAWS = (16, 16)
_LOGISTIC_DRAWS = {"small": (2, 2), "paper": (1, 0)}
_INITIAL_DRAWS = {"small": 4, "paper": 1}
# By the law: neurons in the pools of first and second networks, how many first networks have second
# ones, and steps on a path.
LAW = {"small": (1000, 400, 2, 50), "paper": (200, 100, 1, 20)}


class Study(NamedTuple):
    """What goes beyond the paper's panels: a module with `cells`, `measure`, `summarise`, `draw`
    and `text`.

    Attributes:
        module: the study.
        about: what it is, in a line.
        seeds: scale -> independent draws for each seed that is asked for.
    """

    module: Any
    about: str
    seeds: dict[str, int]


STUDIES = {
    # Rates want intervals, and these networks are cheap.
    "theory-vs-width": Study(
        width,
        "rates at which finite networks approach the kernel limit",
        {"small": 10, "paper": 50},
    ),
    "architectures": Study(
        architectures,
        "deep, convolutional and residual networks; transfer between them",
        {"small": 2, "paper": 5},
    ),
    "carriers": Study(
        carriers,
        "perturbations on noise and on other images, beside the same carriers unperturbed",
        {"small": 2, "paper": 1},
    ),
    "bugs-and-features": Study(
        bugs_and_features,
        "the part of a perturbation that all networks share, and that of one network alone",
        {"small": 2, "paper": 5},
    ),
    "frontier": Study(
        frontier,
        "clean against robust accuracy: early stopping and adversarial training",
        {"small": 1, "paper": 2},
    ),
    "trained-kernels": Study(
        trained_kernels,
        "kernels of a network in training: what second networks learn, transfer, robustness",
        {"small": 1, "paper": 2},
    ),
}


@dataclass(frozen=True)
class Options:
    """What a reproduction was asked for; see `reproduce`."""

    names: tuple[str, ...]
    mode: str = "both"
    scale: str = "small"
    seeds: int = 2
    targets: str = "coin_flip"
    dynamics: str = "flow"
    mnist: str | None = None
    fashion_mnist: str | None = None

    def __post_init__(self):
        check_choice(self.mode, "mode", MODES)
        check_choice(self.scale, "scale", SCALES)
        check_count(self.seeds, "seeds")
        check_choice(self.targets, "targets", ("coin_flip", "balanced"))
        check_choice(self.dynamics, "dynamics", ("flow", "heavy_ball"))
        self._selected()  # raises for a name that nothing is called by

    def _selected(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Identifiers of panels and of maps."""
        return select((name for name in self.names if name not in STUDIES), STUDIES)

    @property
    def sources(self) -> dict[str, str | None]:
        return {"mnist": self.mnist, "fashion_mnist": self.fashion_mnist}

    @property
    def modes(self) -> tuple[str, ...]:
        """What is computed of panels of the identity loss."""
        return _PARTS[self.mode]

    @property
    def lawless(self) -> tuple[str, ...]:
        """What is computed of everything else: neurons that interact have no law of their own."""
        return tuple(mode for mode in self.modes if mode != "law")

    def modes_of(self, p: Panel) -> tuple[str, ...]:
        """What is computed of a panel."""
        return self.modes if p.settings[0].loss == "identity" else self.lawless

    @property
    def panels(self) -> tuple[Panel, ...]:
        panels, _ = self._selected()
        found = (panel(name, self.scale) for name in panels)
        return tuple(p for p in found if self.modes_of(p))

    @property
    def maps(self) -> tuple[Map, ...]:
        _, maps = self._selected()
        return tuple(decision_map(name, self.scale) for name in maps if self.lawless)

    @property
    def studies(self) -> tuple[str, ...]:
        return tuple(name for name in STUDIES if name in self.names and self.lawless)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names that the mode has no numbers for."""
        panels, maps = self._selected()
        studies = [name for name in STUDIES if name in self.names]
        asked = (*panels, *maps, *studies)
        there = {panel.id for panel in self.panels}
        there |= {one.id for one in self.maps}
        there |= set(self.studies)
        return tuple(name for name in asked if name not in there)


def everything() -> tuple[str, ...]:
    return (*panel_ids(), *map_ids(), *STUDIES)


def factors(setting: Setting, options: Options) -> tuple[float, ...]:
    """What sizes are multiplied by: 1, and for images with fewer points than published
    sqrt(published n / n) too.
    """
    published = published_n(setting)
    extra = size_factor(setting, data_config(setting, 0, options.sources), published)
    return (1.0,) if extra == 1.0 else (1.0, extra)


@functools.cache
def _published_panels() -> tuple[Panel, ...]:
    return tuple(panel(i, "paper") for i in panel_ids())


def published_n(setting: Setting) -> int:
    """Training points of the published experiments on the same data."""
    settings = itertools.chain.from_iterable(p.settings for p in _published_panels())
    return max(other.n for other in settings if other.data == setting.data)


def scaled(size: float, factor: float) -> float:
    """A size of perturbations as configs hold it, to six digits."""
    return float(f"{size * factor:.6g}")


# Kernel limit: (data, slope, loss) -> one cell a seed.


def _rows(setting: Setting, factor: float) -> list[Request]:
    """The grid of learning rates, f's varying slowest."""
    size = scaled(setting.size, factor)
    rows = []
    for f in setting.learning_rates_f:
        for g in setting.learning_rates_g:
            row = Request(setting.scenario, size, f, setting.steps_f, g, setting.steps_g)
            rows.append(row)
    return rows


def _limit_key(setting: Setting, options: Options) -> str:
    data = data_config(setting, 0, options.sources)
    return json.dumps([data, setting.slope, setting.loss], sort_keys=True)


@functools.cache
def _limit_requests(
    scale: str, mnist: str | None, fashion_mnist: str | None, states: Any
) -> tuple[dict[str, tuple[Request, ...]], frozenset[str]]:
    """Of each limit cell, everything that any panel asks of it, whichever panels are wanted now,
    and which of them are asked for cosines: a cell that one panel computed then serves the others.
    """
    options = Options((), "limit", scale, mnist=mnist, fashion_mnist=fashion_mnist)
    wanted: dict[str, dict[Request, None]] = {}
    cosines = set()
    for panel_id in panel_ids():
        p = panel(panel_id, scale)
        for setting in p.settings:
            key = _limit_key(setting, options)
            if p.quantity == "cosine":
                cosines.add(key)
            rows = wanted.setdefault(key, {})
            for factor in factors(setting, options):
                rows.update(dict.fromkeys(_rows(setting, factor)))
    in_order = {key: tuple(sorted(rows)) for key, rows in wanted.items()}
    return in_order, frozenset(cosines)


def limit_cell(setting: Setting, seed: int, options: Options) -> Cell:
    sources = (options.mnist, options.fashion_mnist)
    states = tuple(file_states(folder) for folder in sources)  # files may be replaced meanwhile
    everything, cosines = _limit_requests(options.scale, *sources, states)
    requests = everything[_limit_key(setting, options)]
    logistic = setting.loss == "logistic"
    config = {
        "data": data_config(setting, seed, options.sources),
        "slope": setting.slope,
        "loss": setting.loss,
        "requests": [list(request) for request in requests],
        "draws": list(_LOGISTIC_DRAWS[options.scale] if logistic else _IDENTITY_DRAWS),
    }
    # The identity loss is the same under either dynamics: heavy ball is the flow at its effective
    # time.
    if logistic:
        config["dynamics"] = options.dynamics
    else:
        config |= {
            "initial_draws": _INITIAL_DRAWS[options.scale],
            "cosine": _limit_key(setting, options) in cosines,
        }
    return {"function": "limit", "config": config}


def limit_rows(cell: Cell, setting: Setting, factor: float) -> list[int]:
    """Where in the cell the grid of a setting is, f's rates varying slowest."""
    requests = [tuple(row) for row in cell["config"]["requests"]]
    return [requests.index(tuple(row)) for row in _rows(setting, factor)]


# Finite width: one cell a point of a panel and seed; what varies within a training stays in the
# cell.

_INNER = ("size", "steps_f", "steps_g")


def network_cell(p: Panel, setting: Setting, seed: int, options: Options) -> Cell:
    inner = p.settings if p.varies in _INNER else (setting,)
    sizes = dict.fromkeys(scaled(s.size, f) for f in factors(setting, options) for s in inner)
    config = {
        "data": data_config(setting, seed, options.sources),
        "scenario": setting.scenario,
        "width": setting.width,
        "slope": setting.slope,
        "loss": setting.loss,
        "targets": options.targets,
        "learning_rates_f": list(setting.learning_rates_f),
        "learning_rates_g": list(setting.learning_rates_g),
        "steps_f": list(dict.fromkeys(s.steps_f for s in inner)),
        "steps_g": list(dict.fromkeys(s.steps_g for s in inner)),
        "sizes": [] if p.quantity == "cosine" else list(sizes),
    }
    return {"function": "network", "config": config}


def law_cell(p: Panel, setting: Setting, seed: int, options: Options) -> Cell:
    """That of `network_cell`, by the law of one neuron."""
    config = network_cell(p, setting, seed, options)["config"]
    first, second, pairs, steps = LAW[options.scale]
    del config["loss"]
    config |= {"neurons": [first, second], "first": pairs, "path_steps": steps}
    return {"function": "law", "config": config}


def map_cell(m: Map, mode: str, options: Options) -> Cell:
    config = {
        "data": data_config(m.setting, 0, options.sources),
        "setting": as_config(m.setting),
        "limits": list(m.limits),
        "grid": m.grid,
        "targets": options.targets,
    }
    return {"function": f"map_{mode}", "config": config}


def study_cells(name: str, options: Options) -> list[Cell]:
    study = STUDIES[name]
    configs = study.module.cells(options.scale, study.seeds[options.scale] * options.seeds)
    return [{"function": name, "config": config} for config in configs]


def cells(options: Options) -> list[Cell]:
    """Every cell of the reproduction, each once; cells of one shape stand together, so that they
    compile once.
    """
    found: list[Cell] = []
    for p in options.panels:
        for setting in p.settings:
            for seed in range(options.seeds):
                modes = options.modes_of(p)
                if "limit" in modes:
                    found.append(limit_cell(setting, seed, options))
                if "network" in modes:
                    found.append(network_cell(p, setting, seed, options))
                if "law" in modes:
                    found.append(law_cell(p, setting, seed, options))
    for m in options.maps:
        found += [map_cell(m, mode, options) for mode in options.lawless]
    for name in options.studies:
        found += study_cells(name, options)
    distinct = {json.dumps(cell, sort_keys=True): cell for cell in found}
    return list(distinct.values())
