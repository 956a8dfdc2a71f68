"""The study of bugs and features, on few digits."""

import json
from typing import Any

import numpy as np
import pytest
from pages import assert_nothing_is_cut_off

import perturbkernel as pk
from perturbkernel.reproduce import plan, store
from perturbkernel.reproduce.studies.bugs_and_features import study

COMMON: Any = {
    "n": 30,
    "test": 30,
    "width": 128,
    "times": [10.0],
    "depth": None,
    "digits": [1, 2],
    "size": 1.5,
    "first": 0,
    "seeds": 2,
}
TIME: Any = COMMON | {"part": "time", "times": [1.0, 10.0]}
DEPTH: Any = COMMON | {"part": "depth", "depth": 2, "seeds": 1}


@pytest.fixture(scope="module")
def results():
    return [(config, study.measure(config)) for config in (TIME, DEPTH)]


def test_what_is_measured(results):
    arrays = results[0][1]
    assert arrays["share"].shape == (2, 2) and arrays["learned"].shape == (2, 2, 3)
    for config, found in results:
        for name, values in found.items():
            assert ((values >= 0) & (values <= 1)).all(), name
        # The whole gradient harms at least as much as nothing does, and own parts spare others.
        assert (found["itself"][..., 2] < found["accuracy_f"]).all(), config["part"]
        assert (found["others"][..., 0] > found["itself"][..., 0]).all(), config["part"]
        assert (found["learned"][..., 1] > found["learned"][..., 0]).all(), config["part"]
    # Training writes features over the start.
    assert (arrays["share"][:, 1] > arrays["share"][:, 0]).all()


def test_one_seed_and_time_against_training_by_hand(results):
    """The own part's row, f itself and what its whole gradient teaches, from the definition."""
    config, arrays = results[0]
    s = study.Setting(n=30, test=30, width=128)
    p = study.problem(s, 1)
    options: Any = {"loss": "squared", "dynamics": pk.GradientFlow(10.0)}
    x, y = p.train.inputs, p.train.targets
    kernel = pk.TwoLayerNTK()
    f, other = (pk.fit(kernel, x, y, initial=start, **options) for start in p.starts)
    mean = pk.fit(kernel, x, y, **options)
    z, labels = np.asarray(p.test.inputs), np.asarray(p.test.targets)
    own = np.asarray(f.input_gradient(z)) - np.asarray(mean.input_gradient(z))
    length = np.linalg.norm(own, axis=1)[:, None]
    moved = z - config["size"] * labels[:, None] * own / length
    g = pk.fit(kernel, pk.perturb(f, x, p.targets, size=config["size"]).delta, p.targets)
    outputs = [f(moved), other(moved), f(z), g(z)]
    right = [(np.sign(np.asarray(each)) == labels).mean() for each in outputs]
    found = [arrays[name][1, 1, 0] for name in ("itself", "others")]
    found += [arrays["accuracy_f"][1, 1], arrays["learned"][1, 1, 2]]
    # A digit whose output is rounding may count either way.
    np.testing.assert_allclose(found, right, rtol=0, atol=1.5 / 30)


def test_the_deep_start_is_that_of_the_kernel(x64):
    """The kernel of the finite network's layers is the one that f is trained with."""
    x = np.random.default_rng(0).normal(size=(4, 5))
    own = pk.ArchitectureNTK(study.network(2, 7))
    wanted = pk.ArchitectureNTK.fully_connected(2)
    np.testing.assert_allclose(own.ntk(x), wanted.ntk(x), rtol=1e-10)
    np.testing.assert_allclose(own.nngp(x), wanted.nngp(x), rtol=1e-10)


def test_it_is_resumed_and_summarised(results, tmp_path, monkeypatch):
    name = "bugs-and-features"
    cells = [{"function": name, "config": config} for config in (TIME, DEPTH)]
    monkeypatch.setattr(study, "cells", lambda scale, seeds: [TIME, DEPTH])
    for cell, (_, arrays) in zip(cells, results, strict=True):
        store.save(tmp_path, cell, arrays, 1.0)
    done = pk.reproduce.reproduce([name], tmp_path, workers=0)
    summary = study.summarise(done.study(name))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary == study.summarise(results)
    arrays = results[0][1]
    assert summary["time"]["x"] == [1.0, 10.0] and summary["depth"]["x"] == [2]
    bug = summary["time"]["itself"][0]
    np.testing.assert_allclose(bug["mean"], arrays["itself"][..., 0].mean(0))
    np.testing.assert_allclose(bug["high"], arrays["itself"][..., 0].max(0))
    assert_nothing_is_cut_off(study.draw(results))
    assert_nothing_is_cut_off(study.draw([]))
    assert f"{100 * bug['mean'][1]:7.1f}" in study.text(results) and study.text([]) == ""
    assert plan.STUDIES[name].about[1:] in (tmp_path / "index.html").read_text()


def test_the_plan_of_the_study():
    with pytest.raises(ValueError, match=r"scale must be .*small.*paper.*huge"):
        study.cells("huge", 3)
    with pytest.raises(ValueError, match="seeds must be"):
        study.cells("small", 0)
    with pytest.raises(ValueError, match="part must be one of"):
        study.measure({**TIME, "part": "cats"})
    small = study.cells("small", 2)
    assert json.loads(json.dumps(small)) == small
    assert {config["part"] for config in small} == {"time", "n", "depth"}
    paper = study.cells("paper", 2)
    assert len(paper) == 2 * (1 + 5 + 4) and {config["seeds"] for config in paper} == {1}
