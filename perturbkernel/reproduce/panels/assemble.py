"""From finished cells to the curves of a panel."""

from pathlib import Path
from typing import Any

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
    """Quantity -> curve -> {"mean", "low", "high"}, one number a value of the panel.

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
                for name, samples in collect(p, quantity, index, options, Path(folder)).items():
                    curves[quantity][name + suffix] = _curve(samples)
    return curves


def _limit(
    p: Panel, quantity: str, index: int, options: Options, folder: Path
) -> dict[str, list[np.ndarray]]:
    found: dict[str, list[np.ndarray]] = {}
    for setting in p.settings:
        values: dict[str, list[np.ndarray]] = {}
        for seed in range(options.seeds):
            cell = plan.limit_cell(setting, seed, options)
            arrays = _loaded(folder, cell)
            rows = plan.limit_rows(cell, setting, plan.factors(setting, options)[index])
            for name, kind in (("limit_zero", "_zero"), ("limit_balanced", "_zero"), ("limit", "")):
                rule = "_balanced" if name == "limit_balanced" else "_coin_flip"
                key = quantity + kind + (rule if quantity in ("perturbation", "agreement") else "")
                if key not in arrays or (name == "limit_balanced" and key.endswith("_zero")):
                    continue
                samples = arrays[key][rows].reshape(len(rows), -1)  # rates, draws
                if samples.size:
                    values.setdefault(name, []).append(samples)
        for name, parts in values.items():
            samples = np.concatenate(parts, axis=1)
            # From zero all rates agree for the identity loss; otherwise the best, by its mean over
            # draws, counts.
            found.setdefault(name, []).append(samples[samples.mean(axis=1).argmax()])
    return found


def _network(
    p: Panel, quantity: str, index: int, options: Options, folder: Path
) -> dict[str, list[np.ndarray]]:
    best, grid = [], []
    for setting in p.settings:
        seeds = [
            _network_values(p, setting, quantity, index, seed, options, folder)
            for seed in range(options.seeds)
        ]
        best.append(np.array([values.max() for values in seeds]))
        grid.append(np.concatenate(seeds))
    return {"network": best, "network_grid": grid}


def _network_values(
    p: Panel, setting: Setting, quantity: str, index: int, seed: int, options: Options, folder: Path
):
    cell = plan.network_cell(p, setting, seed, options)
    config, arrays = cell["config"], _loaded(folder, cell)
    step_f = config["steps_f"].index(setting.steps_f)
    values = arrays[quantity][:, step_f]
    if quantity in ("perturbation", "agreement"):
        size = plan.scaled(setting.size, plan.factors(setting, options)[index])
        values = values[:, config["sizes"].index(size), :, config["steps_g"].index(setting.steps_g)]
    return values.ravel()


_cache: dict[Path, dict[str, np.ndarray]] = {}


def _loaded(folder: Path, cell: plan.Cell) -> dict[str, np.ndarray]:
    """A cell's arrays; the last few files stay in memory, since a panel's values share them."""
    path = store.cell_path(folder, cell)
    if path not in _cache:
        if len(_cache) > 64:
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
    gaps = [
        abs(mean - there)
        for value, mean in zip(p.values, curve["mean"], strict=True)
        for position, there in published
        if np.isclose(value, position * p.axis_factor, rtol=1e-3, atol=1e-12)
    ]
    return (
        {"mean": float(np.mean(gaps)), "largest": float(np.max(gaps)), "points": len(gaps)}
        if gaps
        else None
    )
