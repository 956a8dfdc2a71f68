"""From finished cells to the curves of a panel."""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from perturbkernel.reproduce import plan, store
from perturbkernel.reproduce.panels.limit import Request
from perturbkernel.reproduce.panels.setting import Setting
from perturbkernel.reproduce.panels.specification import Panel
from perturbkernel.reproduce.plan import Options
from perturbkernel.reproduce.records import Arrays, Json

# Of what varies over seeds and target draws: the middle 80 %.
_BAND = (0.1, 0.9)

Curve = dict[str, list[float]]
#: Quantity -> name -> curve.
Curves = dict[str, dict[str, Curve]]
#: Name -> the samples of a curve, an array for each value of the panel.
Samples = dict[str, list[np.ndarray]]


def _curve(samples: list[np.ndarray]) -> Curve:
    """Mean and band of the samples at each value of the panel."""
    mean = []
    low = []
    high = []
    for of_value in samples:
        flat = np.asarray(of_value, float).ravel()
        band = np.quantile(flat, _BAND)
        mean.append(float(flat.mean()))
        low.append(float(band[0]))
        high.append(float(band[1]))
    return {"mean": mean, "low": low, "high": high}


def panel_curves(p: Panel, options: Options, folder: str | Path) -> Curves:
    """Returns quantity -> curve -> {"mean", "low", "high"}, one number a value of the panel.

    Curves of the kernel limit: "limit_zero" and "limit_balanced", zero initial functions, coin-flip
    and balanced targets, over seeds and draws; "limit", random initial functions and coin flips,
    the best of the learning rates. Of finite networks: "network", the best of the grid of learning
    rates for each seed and quantity, as published; "network_grid", over seeds and the whole grid.
    By the law of one neuron: "law" and "law_grid", likewise, over networks drawn from the law.
    Names end in " scaled" where images are fewer than published and sizes were scaled up.
    """
    curves: Curves = {quantity: {} for quantity in p.curves}
    factors = 1
    if p.quantity == "accuracy":
        first = p.settings[0]
        factors = len(plan.factors(first, options))
    indices = range(factors)
    for index, mode, quantity in itertools.product(indices, options.modes_of(p), p.curves):
        if index and quantity == "standard":
            continue  # the first network does not know the size
        suffix = " scaled" if index else ""
        collect = {"limit": _limit, "network": _network, "law": _law}[mode]
        wanted = _Wanted(p, quantity, index, options, Path(folder))
        for name, samples in collect(wanted).items():
            suffixed = name + suffix
            curves[quantity][suffixed] = _curve(samples)
    return curves


class _Wanted(NamedTuple):
    """A quantity of a panel at the sizes of one of its factors (see `plan.factors`)."""

    panel: Panel
    quantity: str
    index: int
    options: Options
    folder: Path

    @property
    def has_targets(self) -> bool:
        """Whether the quantity depends on the targets of the second network."""
        return self.quantity in ("perturbation", "agreement")

    def factor(self, setting: Setting) -> float:
        factors = plan.factors(setting, self.options)
        return factors[self.index]


def _limit(wanted: _Wanted) -> Samples:
    found: Samples = {}
    for setting in wanted.panel.settings:
        values: Samples = {}
        for seed in range(wanted.options.seeds):
            of_seed = _limit_values(wanted, setting, seed)
            for name, samples in of_seed.items():
                parts = values.setdefault(name, [])
                parts.append(samples)
        for name, parts in values.items():
            samples = np.concatenate(parts, axis=1)
            # From zero all rates agree for the identity loss; otherwise the best, by its mean over
            # draws, counts.
            means = samples.mean(axis=1)
            best = means.argmax()
            of_settings = found.setdefault(name, [])
            of_settings.append(samples[best])
    return found


def _limit_values(wanted: _Wanted, setting: Setting, seed: int) -> Arrays:
    """Curve -> (rates, draws) of one cell, for the curves that it has."""
    quantity = wanted.quantity
    if wanted.has_targets:
        keys = {
            "limit_zero": f"{quantity}_zero_coin_flip",
            "limit_balanced": f"{quantity}_zero_balanced",
            "limit": f"{quantity}_coin_flip",
        }
    else:
        keys = {"limit_zero": f"{quantity}_zero", "limit": quantity}
    cell = plan.limit_cell(setting, seed, wanted.options)
    arrays = _loaded(wanted.folder, cell)
    factor = wanted.factor(setting)
    rows = plan.limit_rows(cell, setting, factor)
    found = {}
    for name, key in keys.items():
        if key not in arrays:
            continue
        of_rows = arrays[key][rows]
        samples = of_rows.reshape(len(rows), -1)
        if samples.size:
            found[name] = samples
    return found


def _network(wanted: _Wanted) -> Samples:
    seeds = range(wanted.options.seeds)
    best = []
    grid = []
    for setting in wanted.panel.settings:
        values = [_network_values(wanted, setting, seed) for seed in seeds]
        largest = [of_seed.max() for of_seed in values]
        best.append(np.array(largest))
        grid.append(np.concatenate(values))
    return {"network": best, "network_grid": grid}


def _network_values(wanted: _Wanted, setting: Setting, seed: int) -> np.ndarray:
    """One number for every pair of learning rates, or rate of the first network."""
    cell = plan.network_cell(wanted.panel, setting, seed, wanted.options)
    arrays = _loaded(wanted.folder, cell)
    values = arrays[wanted.quantity][None]
    return _on_grid(wanted, setting, cell["config"], values).ravel()


def _law(wanted: _Wanted) -> Samples:
    seeds = range(wanted.options.seeds)
    best = []
    grid = []
    for setting in wanted.panel.settings:
        parts = [_law_values(wanted, setting, seed) for seed in seeds]
        values = np.concatenate(parts)
        best.append(values.max(axis=1))
        grid.append(values.mean(axis=1))
    return {"law": best, "law_grid": grid}


def _law_values(wanted: _Wanted, setting: Setting, seed: int) -> np.ndarray:
    """A row a draw, of one number for every pair of learning rates, or rate of the first
    network.
    """
    cell = plan.law_cell(wanted.panel, setting, seed, wanted.options)
    arrays = _loaded(wanted.folder, cell)
    values = arrays[wanted.quantity]
    return _on_grid(wanted, setting, cell["config"], values)


def _on_grid(wanted: _Wanted, setting: Setting, config: Json, values: np.ndarray) -> np.ndarray:
    """(draws, grid of learning rates) at the steps and the size of a setting, from (draws, rates_f,
    steps_f) or (draws, rates_f, steps_f, sizes, rates_g, steps_g).
    """
    step_f = config["steps_f"].index(setting.steps_f)
    values = values[:, :, step_f]
    if wanted.has_targets:
        factor = wanted.factor(setting)
        size = plan.scaled(setting.size, factor)
        place = config["sizes"].index(size)
        step_g = config["steps_g"].index(setting.steps_g)
        values = values[:, :, place, :, step_g]
    return values.reshape(len(values), -1)


# Files in memory, at most.
_FILES = 64
_cache: dict[Path, Arrays] = {}


def _loaded(folder: Path, cell: plan.Cell) -> Arrays:
    """A cell's arrays; the last few files stay in memory, since a panel's values share them."""
    path = store.cell_path(folder, cell)
    if path not in _cache:
        if len(_cache) >= _FILES:
            _cache.clear()
        _cache[path] = store.load(folder, cell)
    return _cache[path]


def unstable_rates(p: Panel, options: Options, folder: str | Path) -> list[float]:
    """Published learning rates beyond 8 (1 + momentum) n / lambda_max, where gradient descent on
    the logistic loss may oscillate in the kernel limit, while the flow does not.
    """
    loss = p.settings[0].loss
    if loss != "logistic" or "limit" not in options.modes:
        return []
    found = set()
    for setting in p.settings:
        cell = plan.limit_cell(setting, 0, options)
        requests = cell["config"]["requests"]
        arrays = _loaded(Path(folder), cell)
        unstable = arrays["unstable_f"]
        for row in plan.limit_rows(cell, setting, 1.0):
            if unstable[row]:
                request = Request(*requests[row])
                found.add(request.learning_rate_f)
    return sorted(found)


def distance(curve: Curve, p: Panel, quantity: str) -> Json | None:
    """Mean and largest |curve - published| at the values that both have; None without any."""
    read_off = p.published.get(quantity, ())
    published = list(zip(p.published_values, read_off, strict=False))
    gaps = []
    for value, mean in zip(p.values, curve["mean"], strict=True):
        for position, there in published:
            shown = position * p.axis_factor
            if np.isclose(value, shown, rtol=1e-3, atol=1e-12):
                gap = abs(mean - there)
                gaps.append(gap)
    if not gaps:
        return None
    mean = float(np.mean(gaps))
    largest = float(np.max(gaps))
    return {"mean": mean, "largest": largest, "points": len(gaps)}
