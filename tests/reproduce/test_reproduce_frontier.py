"""The study of the robustness frontier: its robust accuracies against a projected gradient attack
written in NumPy.
"""

from typing import Any, NamedTuple

import numpy as np
import pytest
from pages import assert_nothing_is_cut_off

from perturbkernel.reproduce.studies.frontier import study as frontier

WAYS = {
    "early stopping": [3.0, "inf"],
    "ridge": [0.1],
    "perturbed features": [0.3],
    "perturbed inputs, stopped early": [1.0],
}
CONFIG: dict[str, Any] = {
    "n": 40,
    "test": 30,
    "digits": [3, 8],
    "sizes": [1.0, 2.0],
    "steps": 10,
    "ways": WAYS,
    "certified": {"early stopping": [3.0], "ridge": [0.1]},
    "certified_points": 6,
    "seed": 0,
}


class Measured(NamedTuple):
    """The numbers of a cell, and on the way to them: (way, value) -> network; what was certified,
    in turn, as (network, inputs, targets, norm, result).
    """

    arrays: dict[str, np.ndarray]
    networks: dict[tuple[str, Any], Any]
    certified: list[tuple[Any, Any, Any, str, Any]]


@pytest.fixture(scope="module")
def measured():
    """Certificates take a second each: they are made once."""
    networks, certified = {}, []
    trained, certified_size = frontier.trained, frontier.certified_size

    def train(train, way, value):
        f = networks[way, value] = trained(train, way, value)
        return f

    def certify(f, x, y, norm):
        result = certified_size(f, x, y, norm=norm)
        certified.append((f, x, y, norm, result))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontier, "trained", train)
        patch.setattr(frontier, "certified_size", certify)
        arrays = frontier.measure(CONFIG)
    return Measured(arrays, networks, certified)


@pytest.fixture(scope="module")
def arrays(measured):
    return measured.arrays


def kernel_sum(z: np.ndarray, x: np.ndarray, coef: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sum_n coef_n K(x_n, z), (m,), and its gradient, (m, d); K = <x, z> (1 / 2 - angle / 2 pi).

    The angle is that between (x / sqrt(d), 1) and (z / sqrt(d), 1), and z no training point.
    """
    d = x.shape[1]
    products = z @ x.T
    z_length = np.sqrt((z**2).sum(1) / d + 1)[:, None]
    x_length = np.sqrt((x**2).sum(1) / d + 1)[None]
    cosine = (products / d + 1) / (z_length * x_length)
    gate = 0.5 - np.arccos(cosine) / (2 * np.pi)
    slope = products / (
        2 * np.pi * np.sqrt(1 - cosine**2)
    )  # of the gate in the cosine, times <x, z>
    along_x = (coef * (gate + slope / (d * z_length * x_length))) @ x
    along_z = (coef * slope * cosine / (d * z_length**2)).sum(1, keepdims=True) * z
    return (products * gate) @ coef, along_x - along_z


def pgd(f: Any, x: np.ndarray, y: np.ndarray, size: float, box: tuple[float, float]) -> float:
    """Accuracy under 60 steps of a tenth of the size, in double precision.

    The clipping after the projection keeps the length: 0 is in the box.
    """
    points, coef = np.asarray(f.inputs, float), np.asarray(f.dual_coef, float)
    delta = np.zeros_like(x)
    right = np.ones(len(x), bool)
    for _ in range(61):
        outputs, gradient = kernel_sum(x + delta, points, coef)
        right &= y * outputs > 0
        g = -y[:, None] * gradient
        delta = delta + 0.1 * size * g / np.linalg.norm(g, axis=1, keepdims=True)
        length = np.linalg.norm(delta, axis=1, keepdims=True)
        delta = np.clip(x + delta * np.minimum(1, size / length), *box) - x
    return float(np.mean(right))


def _box() -> tuple[float, float]:
    parts = [np.asarray(part.inputs) for part in frontier._data(CONFIG)]
    return float(min(part.min() for part in parts)), float(max(part.max() for part in parts))


def test_another_attack_finds_no_more(measured):
    arrays = measured.arrays
    _, test = frontier._data(CONFIG)
    x, y = np.asarray(test.inputs, float), np.asarray(test.targets, float)
    box = _box()
    for way, values in WAYS.items():
        for value, row in zip(values, arrays[way], strict=True):
            f = measured.networks[way, value]
            for size, robust in zip(CONFIG["sizes"], row[1:], strict=True):
                other = pgd(f, x, y, size, box)
                # A point that hangs on the last bits of a margin.
                assert other - 2 / len(x) <= robust <= other + 1e-9 + 1 / len(x), (way, value, size)
    # The sum of this file is that of the predictor.
    outputs, gradient = kernel_sum(x, np.asarray(f.inputs, float), np.asarray(f.dual_coef, float))
    np.testing.assert_allclose(f(test.inputs), outputs, atol=1e-4)
    np.testing.assert_allclose(f.input_gradient(test.inputs), gradient, atol=1e-4)
    interpolation = arrays["early stopping"][1]
    stopped = arrays["early stopping"][0]
    assert interpolation[1] < stopped[1] and interpolation[0] <= stopped[0] + 0.1


def test_summary_figure_and_text(arrays):
    results = [(CONFIG, arrays), ({**CONFIG, "seed": 1}, arrays)]
    summary = frontier.summarise(results)
    assert summary["setting"]["seeds"] == 2
    for way, values in WAYS.items():
        scores = summary["ways"][way]["scores"]
        assert np.shape(scores["mean"]) == (len(values), 3)
        np.testing.assert_allclose(scores["mean"], arrays[way])
    drawn = frontier.draw(results)
    assert_nothing_is_cut_off(drawn)
    assert [axis.get_title() for axis in drawn.axes] == [
        "perturbations of size 1 (l2)",
        "perturbations of size 2 (l2)",
    ]
    assert "∞" in frontier.text(results) and frontier.text([]) == ""


def test_cells_are_draws():
    assert [config["seed"] for config in frontier.cells("small", 3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="scale must be"):
        frontier.cells("large", 1)


def test_what_is_certified_is_right_under_attack(measured):
    arrays = measured.arrays
    _, test = frontier._data(CONFIG)
    x, y = np.asarray(test.inputs, float)[:6], np.asarray(test.targets, float)[:6]
    asked = CONFIG["certified"].items()
    for (way, (value,)), made in zip(asked, measured.certified, strict=True):
        f, inputs, targets, norm, result = made
        assert f is measured.networks[way, value] and norm == "l2"
        np.testing.assert_array_equal(inputs, x)
        np.testing.assert_array_equal(targets, y)
        certified = result.accuracy(CONFIG["sizes"])
        # A certificate knows no pixel values: nor does the attack here.
        attacked = [pgd(f, x, y, size, (-9.0, 9.0)) for size in CONFIG["sizes"]]
        assert certified[0] > 0 and (certified <= np.array(attacked) + 1e-9).all()
        boxed = [pgd(f, x, y, size, _box()) for size in CONFIG["sizes"]]
        gap = arrays[f"undecided {way}"][0]
        np.testing.assert_allclose(gap, np.array(boxed) - certified, atol=1 / 6 + 1e-9)
        row = WAYS[way].index(value)
        summary = frontier.summarise([(CONFIG, arrays)])["certified"][way]
        assert summary["values"] == [value]
        np.testing.assert_allclose(
            summary["scores"]["mean"], [np.maximum(arrays[way][row, 1:] - gap, 0)]
        )
