"""The study of architectures: one cell against the plain experiment, resumed and again the same,
its summary.
"""

import json

import jax
import numpy as np
import pytest
from pages import assert_nothing_is_cut_off

import perturbkernel as pk
from perturbkernel.reproduce import page, plan, store
from perturbkernel.reproduce.studies.architectures import study as architectures

TINY = {
    "n": 12,
    "test": 30,
    "side": 7,
    "digits": [3, 8],
    "separation": 1.4,
    "size": 0.3,
    "first": 0,
    "seeds": 2,
}
NETWORKS = [
    {
        "name": f"{activation} {depth}",
        "family": "fully_connected",
        "depth": depth,
        "activation": activation,
    }
    for activation, depth in (("relu", 1), ("erf", 1))
]
CELLS = [
    {
        "part": "transfer",
        "networks": NETWORKS,
        "data": ["digits"],
        "carriers": ["alone", "data"],
        **TINY,
    },
    *(
        {"part": "depth", "networks": [network], "data": ["digits", "gaussian"], **TINY}
        | {"carriers": ["alone", "data", "noise"]}
        for network in NETWORKS
    ),
]


@pytest.fixture(scope="module")
def results():
    return [(config, architectures.measure(config)) for config in CELLS]


def test_a_cell_is_learning_from_perturbations(results):
    """The second seed, ReLU's perturbations of digits, learnt by erf, by the function that
    everybody uses.
    """
    arrays = results[0][1]
    assert arrays["accuracy"].shape == arrays["agreement"].shape == (1, 2, 2, 2, 2)
    s = architectures.Setting(12, 30, 7)
    p = architectures._problem("digits", s, 1)
    assert np.asarray(p.y).sum() == np.asarray(p.targets).sum() == 0
    f_kernel, g_kernel = [architectures.network(network, 7) for network in NETWORKS]

    def learner(kernel):
        trainer = pk.KernelLearner(kernel, "squared", pk.GradientFlow(np.inf))
        return lambda x, y, key: trainer(x, y)

    for c, scenario in enumerate("ab"):
        r = pk.learn_from_perturbations(
            learner(f_kernel),
            (p.x, p.y),
            size=float(p.size),
            scenario=scenario,
            targets=p.targets,
            learner_g=learner(g_kernel),
            key=jax.random.key(0),
        )
        new = pk.Dataset(p.z, p.labels)
        f, g = r.accuracy(new)
        assert arrays["accuracy_f"][0, 1, 0] == pytest.approx(float(f), abs=1e-6)
        assert arrays["accuracy"][0, 1, c, 0, 1] == pytest.approx(float(g), abs=1e-6)
        assert arrays["agreement"][0, 1, c, 0, 1] == pytest.approx(
            float(r.agreement(p.z)), abs=1e-6
        )
    np.testing.assert_allclose(np.diagonal(arrays["cosine"], axis1=2, axis2=3), 1, rtol=1e-5)


def test_it_is_resumed_and_the_same_again(results, tmp_path, monkeypatch):
    """The runner computes the cells that are missing and no other, and gets the numbers of the
    first time.
    """
    small = {"small": {"depth": (12, 30, 7), "transfer": (12, 30, 7), "seeds": None}}
    monkeypatch.setattr(architectures, "SIZES", small)
    monkeypatch.setattr(architectures, "DEPTHS", {"small": (1,)})
    monkeypatch.setattr(architectures, "NETWORKS", tuple(NETWORKS))
    monkeypatch.setitem(
        plan.STUDIES, "architectures", plan.STUDIES["architectures"]._replace(seeds={"small": 2})
    )
    cells = plan.study_cells("architectures", plan.Options(("architectures",), seeds=1))
    assert [cell["config"] for cell in cells] == CELLS
    assert json.loads(json.dumps(cells)) == cells
    for cell, (_, arrays) in zip(cells[1:], results[1:], strict=True):
        store.save(tmp_path, cell, {name: array + 0.0 for name, array in arrays.items()}, 1.0)
    kept = {path.name for path in (tmp_path / "cells").iterdir()}
    done = pk.reproduce.reproduce("architectures", tmp_path, seeds=1, workers=0)
    assert len({path.name for path in (tmp_path / "cells").iterdir()} - kept) == 1
    again = done.study("architectures")
    for name, array in results[0][1].items():
        np.testing.assert_array_equal(again[0][1][name], array, err_msg=name)
    assert plan.STUDIES["architectures"].about[1:] in (tmp_path / "index.html").read_text()
    assert "architectures" in page.load(tmp_path).summary()["studies"]


def test_summary_and_figure(results):
    summary = architectures.summarise(results)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    relu = summary["depth"]["digits"]["relu"]
    arrays = results[1][1]
    assert relu["depths"] == [1]
    assert relu["accuracy_noise"]["mean"][0] == pytest.approx(arrays["accuracy"][0, :, 2].mean())
    gaussian = summary["depth"]["gaussian"]["relu"]["agreement_data"]
    assert gaussian["low"][0] == pytest.approx(arrays["agreement"][1, :, 1].min())
    transfer, arrays = summary["transfer"], results[0][1]
    np.testing.assert_allclose(transfer["data"]["accuracy"], arrays["accuracy"][0, :, 1].mean(0))
    np.testing.assert_allclose(
        transfer["alone"]["control_agreement"], arrays["control_agreement"][0, :, 0].mean(0)
    )
    figure = architectures.draw(results)
    assert_nothing_is_cut_off(figure)
    assert "n = 12" in "".join(part.get_suptitle() for part in figure.subfigs)
    assert f"{100 * transfer['cosine'][0][1]:7.1f}" in architectures.text(results)
    assert_nothing_is_cut_off(architectures.draw(results[1:2]))
    assert architectures.text([]) == ""


def test_bad_input():
    with pytest.raises(ValueError, match=r"scale must be .*small.*paper.*huge"):
        architectures.cells("huge", 3)
    with pytest.raises(ValueError, match="seeds must be"):
        architectures.cells("small", 0)
    with pytest.raises(ValueError, match="data must be one of"):
        architectures.measure({**CELLS[0], "data": ["cats"]})
    paper = architectures.cells("paper", 3)
    assert sorted(c["networks"][0]["depth"] for c in paper if c["part"] == "depth") == sorted(
        2 * [*range(1, 9)]
    )
    assert [c["first"] for c in paper if c["part"] == "transfer"] == [0, 1, 2]
