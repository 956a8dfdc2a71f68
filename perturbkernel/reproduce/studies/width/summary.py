"""What the study against width found: one table of quantities, their rates, and whether the
theory's are met.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from perturbkernel.reproduce.records import Arrays, Json, Results
from perturbkernel.reproduce.studies.width.rates import fit_rate
from perturbkernel.theory import WIDTH_RATES
from perturbkernel.training.dynamics import HeavyBall

CONFIDENCE = 0.95


class Quantity(NamedTuple):
    """One number of a network against width.

    statement: in words.  of: the arrays of `measure` -> errors (s, ...).  statistic: of
    `rates.STATISTICS`. theory: (low, high), the powers that the theory allows.  scale: the arrays
    -> the size it is compared with. closed: the arrays -> its value by the theory, if that is known
    with its constant.
    """

    statement: str
    of: Callable[[Arrays], np.ndarray]
    statistic: str
    theory: tuple[float, float]
    scale: Callable[[Arrays], Any] = lambda a: 1.0
    closed: Callable[[Arrays], Any] | None = None


def _rms(a: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(a))))


def _length(a: np.ndarray) -> float:
    """Root mean square length of the rows of (n, d)."""
    return _rms(a) * a.shape[-1] ** 0.5


def _vectors(a: np.ndarray) -> np.ndarray:
    """(s, n, d), so that the mean square entry is the mean squared length."""
    return a * a.shape[-1] ** 0.5


def _output(a: Arrays) -> float:
    return _rms(a["limit_output"])


def _g(name: str) -> Json:
    limit = f"limit_g_{name[-1]}"
    return {
        "of": lambda a: a[f"g_{name}"] - a[limit],
        "statistic": "rms",
        "scale": lambda a: _rms(a[limit]),
    }


def _signs(name: str) -> Json:
    own = f"g_{name}"
    limit = f"limit_g_{name[-1]}"
    return {
        "of": lambda a: (a[own] > 0) != (a[limit] > 0),
        "statistic": "mean",
    }


def _known(name: str) -> tuple[float, float]:
    return WIDTH_RATES[name], WIDTH_RATES[name]


_LAZY = (-0.9, -0.45)
_BETWEEN = (WIDTH_RATES["output"], WIDTH_RATES["gradient"])
_NONE = (0.0, 0.0)

#: The theory's rates: 8.8 (kernel, output, initial, flipped), 3.4 (lazy), 5.3 (against v). A
#: gradient's error is what moving gates do (-1/4) and that of the kernel in v (-1/2), which the
#: largest widths no longer show; an angle is such an error; g has that of f's gradients and of its
#: own output, and a sign is wrong where |g| is below its error.
QUANTITIES = {
    "kernel": Quantity(
        "entries of K_m - K",
        lambda a: a["kernel"],
        "rms",
        _known("kernel"),
        lambda a: _rms(a["limit_kernel"]),
        lambda a: a["closed_kernel"],
    ),
    "output": Quantity(
        "f - f0 - T f_hat",
        lambda a: a["output"],
        "rms",
        _known("output"),
        _output,
        lambda a: a["closed_output"],
    ),
    "initial": Quantity(
        "f0",
        lambda a: a["initial"],
        "rms",
        _known("initial_output"),
        _output,
        lambda a: a["closed_initial"],
    ),
    "lazy_test": Quantity("f - f_lin at queries", lambda a: a["lazy_test"], "rms", _LAZY, _output),
    "lazy_train": Quantity(
        "f - f_lin at training points", lambda a: a["lazy_train"], "rms", _LAZY, _output
    ),
    "lazy_spread": Quantity(
        "f - f_lin at queries, standard deviation over networks",
        lambda a: a["lazy_test"],
        "spread",
        (-0.75, -0.75),
        _output,
    ),
    "lazy_bias": Quantity(
        "f - f_lin at training points, mean over networks",
        lambda a: a["lazy_train"],
        "common",
        (-0.5, -0.5),
        _output,
    ),
    "flipped": Quantity(
        "share of gates flipped", lambda a: a["flipped"], "mean", _known("flipped_fraction")
    ),
    "gradient": Quantity(
        "(grad f - grad f0)/T - (v + zeta)",
        lambda a: _vectors(a["gradient"]),
        "rms",
        _BETWEEN,
        lambda a: _length(a["limit_gradient"]),
    ),
    "gradient_gates": Quantity(
        "the same without the concentration of v",
        lambda a: _vectors(a["gradient_gates"]),
        "rms",
        _known("gradient"),
        lambda a: _length(a["limit_gradient"]),
    ),
    "gradient_from_v": Quantity(
        "(grad f - grad f0)/T - v",
        lambda a: _vectors(a["gradient"] + a["zeta"]),
        "rms",
        (-0.25, 0.0),
        lambda a: _length(a["limit_gradient"]),
    ),
    "gradient_from_v_common": Quantity(
        "(grad f - grad f0)/T - v, mean over networks",
        lambda a: _vectors(a["gradient"] + a["zeta"]),
        "common",
        _NONE,
        lambda a: _length(a["limit_gradient"]),
        lambda a: _length(a["zeta"]),
    ),
    "angle": Quantity(
        "angle of grad f - grad f0 with v + zeta", lambda a: a["angle"], "rms", _BETWEEN
    ),
    "angle_random": Quantity(
        "angle of grad f with v + zeta", lambda a: a["angle_random"], "rms", _NONE
    ),
    "g_a": Quantity("g - the limit's g, (a), centred", theory=_BETWEEN, **_g("a")),
    "g_b": Quantity("g - the limit's g, (b), centred", theory=_BETWEEN, **_g("b")),
    "g_random_a": Quantity(
        "g - the limit's g, (a), with f0 and g0", theory=_NONE, **_g("random_a")
    ),
    "g_random_b": Quantity(
        "g - the limit's g, (b), with f0 and g0", theory=_NONE, **_g("random_b")
    ),
    "sign_a": Quantity(
        "queries where g has another sign, (a), centred", theory=_BETWEEN, **_signs("a")
    ),
    "sign_b": Quantity(
        "queries where g has another sign, (b), centred", theory=_BETWEEN, **_signs("b")
    ),
    "sign_random_a": Quantity("the same, (a), with f0 and g0", theory=_NONE, **_signs("random_a")),
    "sign_random_b": Quantity("the same, (b), with f0 and g0", theory=_NONE, **_signs("random_b")),
}


def summarise(results: Results) -> Json:
    """Every quantity against width with its rate, and the effective time, as JSON holds them. Any
    subset of cells will do.

    Returns:
        "quantities": name -> statement, statistic, widths, networks (at each width), values,
        relative_errors (of the values, one standard error), scale (the size of what the error is an
        error of), closed_form (the theory's values, None where it has only a rate), rate, interval
        (95 %), theory (lowest and highest rate), contains (whether the interval meets the theory's;
        None if there is none). "effective_time": width, networks, steps, times and errors, relative
        to the right answer, of taking the time to be "effective" tau_k, "late" rate k / (1 -
        momentum) or "naive" rate k; finite_width, the error at tau_k that the theory predicts
        (8.9). None without such cells.
    """
    by_width: dict[int, list[Arrays]] = {}
    for config, arrays in results:
        if config["part"] == "width":
            by_width.setdefault(config["width"], []).append(arrays)
    quantities = {}
    if by_width:
        quantities = {name: _against_width(q, by_width) for name, q in QUANTITIES.items()}
    return {
        "quantities": quantities,
        "effective_time": _time_summary(results),
        "confidence": CONFIDENCE,
    }


def _against_width(q: Quantity, by_width: dict[int, list[Arrays]]) -> Json:
    """The entry of one quantity in `summarise`."""
    samples = {}
    for width, found in by_width.items():
        samples[width] = np.concatenate([q.of(arrays) for arrays in found])
    rate = fit_rate(samples, q.statistic, CONFIDENCE)
    low, high = rate.interval
    # What is known in closed form is the same in all cells of a width.
    first = [by_width[width][0] for width in rate.widths.tolist()]
    closed_form = contains = None
    if q.closed is not None:
        closed_form = [float(q.closed(arrays)) for arrays in first]
    if np.isfinite(low) and np.isfinite(high):
        contains = bool(low <= q.theory[1] and high >= q.theory[0])
    return {
        "statement": q.statement,
        "statistic": q.statistic,
        "widths": rate.widths.tolist(),
        "networks": rate.networks.tolist(),
        "values": _plain(rate.values),
        "relative_errors": _plain(rate.errors),
        "scale": float(q.scale(first[0])),
        "closed_form": closed_form,
        "rate": _number(rate.rate),
        "constant": _number(rate.constant),
        "interval": _plain(rate.interval),
        "theory": list(q.theory),
        "contains": contains,
    }


def text(results: Results) -> str:
    """The powers of width as lines: found, with its interval, and what the theory allows."""
    rows = [("power of width", "found", "95 % interval", "theory")]
    for q in summarise(results)["quantities"].values():
        low, high = map(_shown, q["interval"])
        interval = f"{low} to {high}"
        theory = " to ".join(f"{power:g}" for power in sorted(set(q["theory"])))
        rows.append((q["statement"], _shown(q["rate"]), interval, theory))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _number(value: float) -> float | None:
    """A number that JSON has, or None."""
    return float(value) if np.isfinite(value) else None


def _plain(values) -> list[float | None]:
    return [_number(value) for value in np.asarray(values)]


def _time_summary(results: Results) -> Json | None:
    found = [(config, arrays) for config, arrays in results if config["part"] == "effective_time"]
    if not found:
        return None
    config, first = found[0]
    change = np.concatenate([arrays["change"] for _, arrays in found])
    steps = np.array(config["at"])
    rate = float(first["learning_rate"])
    momentum = config["momentum"]
    effective = [HeavyBall(rate, k, momentum).effective_time for k in steps.tolist()]
    times = {
        "effective": np.array(effective),
        "late": rate * steps / (1 - momentum),
        "naive": rate * steps,
    }
    limit = first["limit_output"]
    size = _rms(limit)
    errors = {}
    for name, time in times.items():
        errors[name] = []
        for i, right in enumerate(effective):
            error = _rms(change[:, i] - time[i] * limit)
            errors[name].append(error / (right * size))
    return {
        "width": config["width"],
        "networks": len(change),
        "learning_rate": rate,
        "steps": steps.tolist(),
        "times": {name: time.tolist() for name, time in times.items()},
        "errors": errors,
        "finite_width": float(first["closed_output"]) / size,
    }
