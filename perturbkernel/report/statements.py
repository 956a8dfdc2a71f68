"""What the numbers of an experiment say in words: the sentences of a report.

Every claim is made under a condition on the numbers, stated here, and on nothing else.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Settings = Mapping[str, Any]

# A direction is the theory's where no perturbation is further than 26 degrees from it.
_ALONG = 0.9
# Two vectors in many dimensions whose cosine is below this have little in common.
_UNRELATED = 0.3
# With a signal this many standard deviations of the offset its sign is hardly ever turned.
_CERTAIN = 4.0
# A perturbation that rounding changes by more than this is no longer the one that was computed.
_NOTICEABLE = 0.01
# What 95 of 100 samples keep to.
_DEVIATIONS = 2.0


def _value(number: float | None) -> float:
    """A number of a result; null in the file was not a number."""
    return math.nan if number is None else float(number)


def _points(number: int) -> str:
    if number == 1:
        return "1 point"
    return f"{number:,} points"


def trained_on(c: Settings) -> str:
    """What the second network was trained on, as a noun.

    Example:
        >>> trained_on({"carrier": "scenario (a)"})
        'the perturbations alone'
    """
    if c["carrier"] == "scenario (a)":
        return "the perturbations alone"
    if c["carrier"] == "scenario (b)":
        return "the perturbed points"
    if c.get("at") == "carrier":
        return "the perturbed carrier"
    return "the perturbations on another carrier"


def labelled(c: Settings) -> str:
    """How what it was trained on was labelled.

    Example:
        >>> labelled({"targets": "next"})
        'each labelled as the next class'
    """
    return {
        "next": "each labelled as the next class",
        "random_other": "each labelled as another class, drawn at random",
        "given": "with given labels",
    }.get(c["targets"], "with labels drawn at random")


def _aims(c: Settings) -> str:
    rules = {
        "next": "the next class",
        "random_other": "another class, drawn at random",
        "given": "given labels",
    }
    return rules.get(c["targets"], "labels drawn at random")


def introduction(c: Settings, m: Settings) -> str:
    """What was done, in four sentences; c is the configuration of a report, m its metrics."""
    attacked = c.get("n_perturbed", c["n_train"])
    left = m["zero_gradients"]
    which = "training points"
    if c.get("at") == "carrier":
        which = "points of the carrier"
    length = f"by {c['size']:g} ({c['norm']})"
    if c["bounds"] is not None:
        low, high = c["bounds"]
        length += f", clipped to [{low}, {high}],"
    how_many = f"all {attacked:,}"
    if left:
        how_many = f"{attacked - left:,} of {attacked:,}"
    return (
        f"A wide network f was trained on {_points(c['n_train'])}. Its gradient perturbed "
        f"{how_many} {which} {length} toward {_aims(c)}. A second network g was trained on "
        f"{trained_on(c)}, {labelled(c)}. {_widths(c)}"
    )


def _widths(c: Settings) -> str:
    wide = c.get("infinitely_wide", ["f", "g"])
    if len(wide) == 2:
        return "Both are infinitely wide."
    if not wide:
        return f"f is {c['f']}, g is {c['g']}."
    other = "g" if wide == ["f"] else "f"
    return f"{wide[0]} is infinitely wide, {other} is {c[other]}."


def sentences(configuration: Settings, metrics: Settings) -> list[str]:
    """What the numbers say, in words.

    Example: see `report.load`.
    """
    c = configuration
    m = metrics
    said = [
        _accuracy(c, m),
        _direction(m),
        _outcome(c, m),
        _unperturbed(c, m),
        _rounded(m),
        *_robust(m),
    ]
    statuses = m.get("status", {})
    failures = [f"{name}: {status}" for name, status in statuses.items() if status != "ok"]
    return [sentence for sentence in said if sentence] + failures


def _accuracy(c: Settings, m: Settings) -> str:
    part = "test" if "test" in m["accuracy"]["f"] else "train"
    f = m["accuracy"]["f"][part]
    g = m["accuracy"]["g"][part]
    said = (
        f"Trained on {trained_on(c)}, {labelled(c)}, g classifies {g:.1%} of the clean {part} "
        f"points correctly (f: {f:.1%}); {_against_guessing(c, m, part, g)}."
    )
    if m["agreement"] is not None:
        points = "new" if part == "test" else "training"
        said += f" On {points} points f and g agree at {m['agreement']:.1%}."
    return said


def _against_guessing(c: Settings, m: Settings, part: str, accuracy: float) -> str:
    """How an accuracy compares with always naming the most frequent class."""
    guess = m.get("most_frequent", {}).get(part)
    what = "naming the most frequent class"
    if guess is None:
        guess = 1 / len(c["classes"])
        what = "guessing"
    # The standard deviation of the share of right guesses among so many points.
    points = max(c[f"n_{part}"], 1)
    spread = math.sqrt(guess * (1 - guess) / points)
    if accuracy > guess + _DEVIATIONS * spread:
        verdict = "g does better than that"
    elif accuracy < guess - _DEVIATIONS * spread:
        verdict = "g does worse than that"
    else:
        verdict = "g is within chance of that"
    return f"{what} would give {guess:.1%}, and {verdict}"


def _direction(m: Settings) -> str:
    if m["cosine"] is None:
        return ""
    mean = _value(m["cosine"]["mean"])
    least = _value(m["cosine"]["min"])
    numbers = f"mean cosine {mean:.4f}, smallest {least:.4f}"
    if math.isnan(mean) or math.isnan(least):
        return (
            "No perturbation makes an angle with the theory's direction: one of the two is zero "
            "at every point."
        )
    if least >= _ALONG:
        return f"The perturbations point along the theory's direction: {numbers}."
    if mean >= _ALONG:
        return f"Most of the perturbations point along the theory's direction: {numbers}."
    if mean >= _UNRELATED:
        return f"The perturbations point partly along the theory's direction: {numbers}."
    if mean > -_UNRELATED:
        return f"On average the perturbations do not follow the theory's direction: {numbers}."
    return f"The perturbations point away from the theory's direction: {numbers}."


def _outcome(c: Settings, m: Settings) -> str:
    d = m["diagnosis"]
    if d is None:
        return ""
    signal = _value(d["signal_rms"])
    offset = _value(d["offset_std_rms"])
    expected = _value(d["expected_accuracy"])
    if math.isnan(signal + offset + expected) or math.isinf(signal + offset):
        return "Signal and random offset of g are not finite, so they predict nothing."
    if signal == 0 and offset == 0:
        return (
            "Signal and random offset of g are both zero, so its outputs do not depend on the data."
        )
    numbers = (
        f"Signal {signal:.3g} against a random offset of {offset:.3g} (rms over training points"
    )
    if offset > 0:
        numbers += f", ratio {signal / offset:.3g}"
    said = f"{numbers}): {_verdict(c, signal, offset)}. "
    said += (
        f"Over target draws g is expected to classify {expected:.1%} of the training points "
        f"({d['assumes']})."
    )
    if "identity loss" not in c["g"]:
        said += " g was trained under another loss; there this holds at small times only."
    linearity = d.get("linearity")
    if linearity and " linear here, and f is not" in linearity["says"]:
        said += f" What g cannot learn: {linearity['says']}."
    return said


def _verdict(c: Settings, signal: float, offset: float) -> str:
    """What decides the outcome, signal and offset not both zero."""
    if signal == 0:
        return "there is no signal, and the targets drawn decide the outcome"
    if signal > _CERTAIN * offset:
        return "the outcome hardly depends on the targets drawn"
    remedies = "a larger size, balanced targets or more data may help"
    if c["targets"] == "balanced":
        remedies = "a larger size or more data may help"
    if signal > offset:
        return f"the outcome depends on the targets drawn; {remedies}"
    return f"the targets drawn decide most of the outcome; {remedies}"


def _unperturbed(c: Settings, m: Settings) -> str:
    left = m["zero_gradients"]
    attacked = c.get("n_perturbed", c["n_train"])
    if left == 0:
        return ""
    if left == attacked:
        return "The gradient was zero at every point, so nothing was perturbed."
    were = "was" if left == 1 else "were"
    return f"{_points(left)} had a zero gradient and {were} not perturbed."


def _rounded(m: Settings) -> str:
    rounding = _value(m.get("rounding", 0.0))
    if rounding < _NOTICEABLE:
        return ""
    return (
        f"Adding the perturbations to their carrier changes them by {rounding:.0%} through "
        "rounding: take a higher precision."
    )


def _robust(m: Settings) -> list[str]:
    """Accuracy under attack, a sentence for each size."""
    if "robust" not in m:
        return []
    robust = m["robust"]
    tables = robust["tables"]
    f, g = tables["f"], tables["g"]
    said = []
    for i, (norm, size) in enumerate(zip(f["norm"], f["size"], strict=True)):
        if size > 0:
            said.append(
                f"Under attack of size {size:g} ({norm}, {robust['attack']}) f classifies "
                f"{_attacked(f, i)} of {_points(robust['points'])} correctly, g {_attacked(g, i)}."
            )
    return said


def _attacked(table: Settings, row: int) -> str:
    """Accuracy under attack, with what is certified where that is known."""
    said = f"{table['accuracy'][row]:.1%}"
    certified = _value(table.get("certified", [None] * (row + 1))[row])
    if np.isfinite(certified):
        said += f" (certified: {certified:.1%})"
    return said
