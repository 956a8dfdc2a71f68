"""From finished cells to the curves of a panel."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perturbkernel.reproduce import plan, store
from perturbkernel.reproduce.panels.setting import Setting
from perturbkernel.reproduce.panels.specification import Panel
from perturbkernel.reproduce.plan import Options

# Of what varies over seeds and target draws: the middle 80 %.
_BAND = (0.1, 0.9)

Curve = dict[str, list[float]]


def _curve(samples: list[np.ndarray]) -> Curve:
    """Mean and band of the samples at each value of the panel."""
    flat = [np.asarray(s, float).ravel() for s in samples]
    return {
        "mean": [float(s.mean()) for s in flat],
        "low": [float(np.quantile(s, _BAND[0])) for s in flat],
        "high": [float(np.quantile(s, _BAND[1])) for s in flat],
    }


def panel_curves(p: Panel, options: Options, folder: str | Path) -> dict[str, dict[str, Curve]]:
    """Returns quantity -> curve -> {"mean", "low", "high"}, one number a value of the panel.

    Curves of the kernel limit: "limit_zero" and "limit_balanced", zero initial functions, coin-flip
    and balanced targets, over seeds and draws; "limit", random initial functions and coin flips,
    the best of the learning rates. Of finite networks: "network", the best of the grid of learning
    rates for each seed and quantity, as published; "network_grid", over seeds and the whole grid.
    Names end in " scaled" where images are fewer than published and sizes were scaled up.
    """
    curves: dict[str, dict[str, Curve]] = {quantity: {} for quantity in p.curves}
    count = len(plan.factors(p.settings[0], options)) if p.quantity == "accuracy" else 1
    for index in range(count):
        suffix = " scaled" if index else ""
        for mode in options.modes:
            collect = _limit if mode == "limit" else _network
            for quantity in p.curves:
                if index and quantity == "standard":
                    continue  # the first network does not know the size
                wanted = _Wanted(p, quantity, index, options, Path(folder))
                for name, samples in collect(wanted).items():
                    curves[quantity][name + suffix] = _curve(samples)
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
        return plan.factors(setting, self.options)[self.index]


def _limit(wanted: _Wanted) -> dict[str, list[np.ndarray]]:
    found: dict[str, list[np.ndarray]] = {}
    for setting in wanted.panel.settings:
        values: dict[str, list[np.ndarray]] = {}
        for seed in range(wanted.options.seeds):
            for name, samples in _limit_values(wanted, setting, seed).items():
                values.setdefault(name, []).append(samples)
        for name, parts in values.items():
            samples = np.concatenate(parts, axis=1)
            # From zero all rates agree for the identity loss; otherwise the best, by its mean over
            # draws, counts.
            best = samples.mean(axis=1).argmax()
            found.setdefault(name, []).append(samples[best])
    return found


def _limit_values(wanted: _Wanted, setting: Setting, seed: int) -> dict[str, np.ndarray]:
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
    rows = plan.limit_rows(cell, setting, wanted.factor(setting))
    found = {}
    for name, key in keys.items():
        if key not in arrays:
            continue
        samples = arrays[key][rows].reshape(len(rows), -1)
        if samples.size:
            found[name] = samples
    return found


def _network(wanted: _Wanted) -> dict[str, list[np.ndarray]]:
    best, grid = [], []
    for setting in wanted.panel.settings:
        seeds = range(wanted.options.seeds)
        values = [_network_values(wanted, setting, seed) for seed in seeds]
        best.append(np.array([of_seed.max() for of_seed in values]))
        grid.append(np.concatenate(values))
    return {"network": best, "network_grid": grid}


def _network_values(wanted: _Wanted, setting: Setting, seed: int) -> np.ndarray:
    """One number for every pair of learning rates, or rate of the first network."""
    cell = plan.network_cell(wanted.panel, setting, seed, wanted.options)
    config = cell["config"]
    step_f = config["steps_f"].index(setting.steps_f)
    values = _loaded(wanted.folder, cell)[wanted.quantity][:, step_f]
    if wanted.has_targets:
        size = config["sizes"].index(plan.scaled(setting.size, wanted.factor(setting)))
        step_g = config["steps_g"].index(setting.steps_g)
        values = values[:, size, :, step_g]
    return values.ravel()


# Files in memory, at most.
_FILES = 64
_cache: dict[Path, dict[str, np.ndarray]] = {}


def _loaded(folder: Path, cell: plan.Cell) -> dict[str, np.ndarray]:
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
    if p.settings[0].loss != "logistic" or "limit" not in options.modes:
        return []
    found = set()
    for setting in p.settings:
        cell = plan.limit_cell(setting, 0, options)
        flags = _loaded(Path(folder), cell)["unstable_f"]
        for row in plan.limit_rows(cell, setting, 1.0):
            if flags[row]:
                found.add(cell["config"]["requests"][row][2])
    return sorted(found)


def distance(curve: Curve, p: Panel, quantity: str) -> dict[str, Any] | None:
    """Mean and largest |curve - published| at the values that both have; None without any."""
    published = list(zip(p.published_values, p.published.get(quantity, ()), strict=False))
    gaps = []
    for value, mean in zip(p.values, curve["mean"], strict=True):
        for position, there in published:
            if np.isclose(value, position * p.axis_factor, rtol=1e-3, atol=1e-12):
                gaps.append(abs(mean - there))
    if not gaps:
        return None
    return {"mean": float(np.mean(gaps)), "largest": float(np.max(gaps)), "points": len(gaps)}
