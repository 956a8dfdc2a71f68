"""The paper's panels: what they ask, one pass for many experiments, storage that survives kills."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import assert_nothing_is_cut_off
from scipy.special import ndtr

import perturbkernel as pk
from perturbkernel.cli.main import main
from perturbkernel.data.draws import draw_targets
from perturbkernel.metrics import accuracy as accuracy_of
from perturbkernel.reproduce import page, plan, runner, store
from perturbkernel.reproduce.panels import assemble, datasets, figures, limit, network
from perturbkernel.reproduce.panels import specification as spec
from perturbkernel.reproduce.panels.limit import Request
from perturbkernel.reproduce.panels.sweep import Combination, Directions, second_networks

PANEL = "shifted_gaussian_a/steps_g/identity"
OPTIONS = plan.Options((PANEL,), "limit", seeds=1)


# What the paper asks.


def test_panels_are_complete():
    assert len(spec.panel_ids()) == 62
    assert len(spec.map_ids()) == 8
    for panel_id in spec.panel_ids():
        p = spec.panel(panel_id, "paper")
        assert len(p.values) == len(p.settings) == len(p.published_values)
        assert all(len(row) == len(p.values) for row in p.published.values())
        assert all(getattr(s, p.varies) == v for s, v in zip(p.settings, p.values, strict=True))
        assert all(0 <= v <= 1 for row in p.published.values() for v in row)


def test_published_settings_are_those_of_the_paper():
    p = spec.panel("shifted_gaussian_b/d/logistic", "paper")
    assert p.settings[-1].learning_rates_f == (10.0, 5.0, 1.0, 0.1, 0.01)
    assert (p.settings[-1].n, p.settings[-1].d, p.settings[-1].width) == (10_000, 5000, 100)
    assert spec.panel("mnist_a/size/identity", "paper").settings[0].classes == (1, 2)
    assert p.published["standard"][0] == pytest.approx(0.82, abs=0.2)


@pytest.mark.parametrize("panel_id", spec.panel_ids())
def test_reduced_panels_stay_within_their_limits(panel_id):
    p, whole = spec.panel(panel_id), spec.panel(panel_id, "paper")
    assert 2 <= len(p.values) <= 6
    assert list(p.values) == sorted(set(p.values))
    for s in p.settings:
        assert s.n <= 1000 and s.d <= 1000 and s.width <= 200
        if not s.is_image and p.varies != "size":
            base = whole.settings[-1]
            assert s.size / np.sqrt(s.d) == pytest.approx(base.size / np.sqrt(base.d), rel=0.03)
    reduced = any(
        getattr(a, name) != getattr(b, name)
        for name in ("n", "d", "width")
        for a, b in [(p.settings[-1], whole.settings[-1])]
        if not (a.is_image and name == "n")
    )
    assert bool(p.reduction) >= reduced  # nothing is reduced silently


def test_the_reduced_axis_carries_the_published_values():
    p = spec.panel("gaussian_b/size/identity")
    assert p.axis_factor == pytest.approx(np.sqrt(250 / 10_000))
    assert p.values[-1] == pytest.approx(p.published_values[-1] * p.axis_factor)
    assert spec.panel("shifted_gaussian_a/size/identity").axis_factor == 1


def test_select_takes_whole_names_and_beginnings():
    assert spec.select(["mnist_a"])[0] == tuple(
        i for i in spec.panel_ids() if i.startswith("mnist_a/")
    )
    assert len(spec.select(["map"])[1]) == 8
    assert spec.select(["mnist"]) == spec.select(["mnist_a", "mnist_b"])
    assert spec.select(["gaussian_a/steps"])[0] == tuple(
        f"gaussian_a/steps_{network}/identity" for network in "fg"
    )
    assert spec.select([PANEL]) == ((PANEL,), ())
    for name, near in (
        ("mnist_a/sizes", "mnist_a/size/identity"),
        ("size", "/size/identity"),
        ("frontierr", "frontier"),
    ):
        with pytest.raises(ValueError, match=f"did you mean .*{near}"):
            spec.select([name], plan.STUDIES)


def test_settings_survive_json():
    for panel_id in ("mnist_a/size/identity", "gaussian_a/d/logistic"):
        setting = spec.panel(panel_id).settings[0]
        assert spec.from_config(json.loads(json.dumps(spec.as_config(setting)))) == setting


def test_targets_follow_their_rule():
    drawn = datasets.targets({"seed": 1}, 7, {"coin_flip": 400, "balanced": 400})
    assert set(np.unique(drawn["coin_flip"])) == {-1, 1}
    assert abs(drawn["coin_flip"].mean()) < 5 / np.sqrt(7 * 400)
    sums = drawn["balanced"].sum(axis=0)
    assert set(sums) == {-1, 1} and abs(sums.mean()) < 5 / np.sqrt(400)
    again = datasets.targets({"seed": 1}, 7, {"coin_flip": 2, "balanced": 1})
    np.testing.assert_array_equal(again["coin_flip"], drawn["coin_flip"][:, :2])


# One pass for many experiments.


@pytest.fixture(scope="module")
def small():
    config = {"name": "shifted_gaussian", "n": 60, "d": 12, "seed": 3}
    return config, datasets.draw(config)


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_one_pass_equals_training_one_network_at_a_time(small, slope):
    _, drawn = small
    kernel = pk.TwoLayerNTK(slope, train_bias=True)
    x, y = drawn.x, drawn.y
    z = jnp.concatenate([x, drawn.fresh[:40]])
    gradient = pk.fit(kernel, x, y).input_gradient(x)
    key_a, key_b = jax.random.split(jax.random.key(0))
    labels = np.stack(
        [np.asarray(draw_targets("coin_flip", 60, key=k)) for k in (key_a, key_b)], axis=1
    )
    unit = 1 / np.linalg.norm(gradient, axis=1)
    zero, one = np.zeros(60), np.ones(60)
    cases = [(0.0, 0.05), (1.0, 0.7), (1.0, 0.0)]
    combinations = [
        Combination(np.stack([c * one, zero]), np.stack([zero, size * unit])) for c, size in cases
    ]
    # The same products by factors, as of the weight vectors of an untrained network.
    q, r = np.linalg.qr(np.asarray(gradient).T)
    factored = Directions(np.asarray(gradient), (np.asarray(z) @ q, r.T))
    g = second_networks(kernel, z, [Directions(np.asarray(x)), factored], combinations, labels)
    for (carrier, size), rows in zip(cases, g, strict=True):
        for column in range(2):
            target = jnp.asarray(labels[:, column])
            delta = pk.perturb(pk.fit(kernel, x, y), x, target, size=size).delta
            expected = pk.fit(kernel, carrier * x + delta, target)(z)
            # Where a point meets itself its angle is wrong by up to 5e-4, in one term of 60;
            # elsewhere by rounding.
            met = 5e-4 / (2 * np.pi) * float(jnp.sum(x**2, axis=1).max() + 1) / 60
            np.testing.assert_allclose(
                rows[:, column], expected, atol=met if carrier else 1e-6, rtol=1e-5
            )


def cell(requests, loss="identity", data=None, **options):
    config = {
        "data": data,
        "slope": 0.0,
        "loss": loss,
        "requests": [list(r) for r in requests],
        "draws": [2, 2],
    }
    return (
        config
        | ({"initial_draws": 2, "cosine": True} if loss == "identity" else {"dynamics": "flow"})
        | options
    )


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_products_with_initial_gradients_are_those_of_their_factors(small, slope, monkeypatch):
    """Of an untrained network narrower than the inputs are long."""
    _, drawn = small
    monkeypatch.setattr(limit, "_WIDTH", 7)
    z = np.concatenate([drawn.x, drawn.fresh[:40]])
    (initial,) = limit._initial_functions(pk.TwoLayerNTK(slope), drawn, z, 1)
    gradients, factors = initial.gradients
    assert factors is not None
    of_queries, of_points = factors
    assert of_queries.shape == (100, 7) and of_points.shape == (60, 7)
    np.testing.assert_allclose(of_queries @ of_points.T, z @ gradients.T, rtol=0, atol=1e-5)


def test_limit_cell_equals_learning_from_perturbations(small):
    config, drawn = small
    requests = [Request("a", 0.05, 1.0, 1000, 1.0, 1000), Request("b", 0.5, 1.0, 1000, 1.0, 1000)]
    result = limit.limit_cell(cell(requests, data=config))
    labels = datasets.targets(config, 60, {"coin_flip": 2, "balanced": 2})
    learner = pk.KernelLearner(pk.TwoLayerNTK(0.0, train_bias=True))
    for i, request in enumerate(requests):
        for rule in limit.RULES:
            for k in range(2):
                r = pk.learn_from_perturbations(
                    learner,
                    (drawn.x, drawn.y),
                    scenario=request.scenario,
                    size=request.size,
                    targets=labels[rule][:, k],
                    key=jax.random.key(0),
                )
                accuracy = r.accuracy(pk.data.from_arrays(drawn.x, drawn.y)).g
                assert result[f"perturbation_zero_{rule}"][i, k] == pytest.approx(
                    float(accuracy), abs=1e-6
                )
                agreement = float(r.agreement(drawn.fresh))
                assert result[f"agreement_zero_{rule}"][i, k] == pytest.approx(agreement, abs=2e-3)
        assert r.cosine is not None
        np.testing.assert_allclose(result["cosine_zero"][i], np.abs(r.cosine).mean(), rtol=1e-5)


def test_initial_functions_follow_the_theory(small):
    """Standard accuracy is 12.1's, and at late times the initial function does not matter."""
    config, drawn = small
    times = [(0.1, 1), (0.1, 10), (10.0, 100_000)]
    requests = [Request("a", 5.0, rate, steps, 10.0, 100_000) for rate, steps in times]
    result = limit.limit_cell(cell(requests, data=config))
    kernel = pk.TwoLayerNTK(0.0, train_bias=True)
    taus = [r.time_f for r in requests]
    expected = pk.theory.expected_accuracy(
        kernel, drawn.x, drawn.y, drawn.x, drawn.y, times=np.array(taus)
    )
    np.testing.assert_allclose(result["standard"], expected, atol=1e-5)
    cosine = [
        np.abs(pk.theory.expected_cosine(kernel, drawn.x, drawn.y, drawn.x, time=tau)).mean()
        for tau in taus
    ]
    np.testing.assert_allclose(result["cosine"], cosine, atol=1e-4)
    assert (np.diff(result["cosine"]) > 0).all()
    late = result["perturbation_coin_flip"][-1]
    np.testing.assert_allclose(late, result["perturbation_zero_coin_flip"][-1], atol=0.02)
    assert (late > result["perturbation_coin_flip"][0] + 0.1).all()


def test_initial_functions_are_drawn_networks(small):
    """Accuracy and agreement of g, from the weights of both draws of f0 and the formula of 12.1."""
    config, drawn = small
    x, y, fresh = (np.asarray(a) for a in (drawn.x, drawn.y, drawn.fresh))
    request = Request("a", 5.0, 0.1, 4, 0.1, 4)
    result = limit.limit_cell(cell([request], data=config))
    target = datasets.targets(config, 60, {"coin_flip": 2, "balanced": 2})["coin_flip"][:, 0]
    kernel = pk.TwoLayerNTK(0.0, train_bias=True)
    f = pk.fit(kernel, x, y, dynamics=pk.GradientFlow(request.time_f))
    scores = []
    for key in jax.random.split(jax.random.fold_in(drawn.key, 2), 2):
        net = pk.networks.TwoLayerNetwork.init(12, limit._WIDTH, 0.0, True, key=key)
        w, b, a = (np.asarray(part) for part in (net.weight, net.bias, net.readout))
        gradient = f.input_gradient(x) + ((x @ w.T + b > 0) * a) @ w
        unit = gradient / np.linalg.norm(gradient, axis=1)[:, None]
        delta = request.size * target[:, None] * unit
        g = pk.fit(kernel, delta, target, dynamics=pk.GradientFlow(request.time_g))
        of_f = np.sign(f(fresh) + np.maximum(fresh @ w.T + b, 0) @ a)
        for points, signs in ((x, y), (fresh, of_f)):
            deviation = np.sqrt((1 + np.sum(points**2, axis=1) / 12) / 2)
            scores.append(ndtr(signs * g(points) / deviation).mean())
    found = [result[f"{name}_coin_flip"][0, 0] for name in ("perturbation", "agreement")]
    # Of the 1,000 signs of f in either draw, one that is rounding may be the other.
    np.testing.assert_allclose(found, np.reshape(scores, (2, 2)).mean(0), rtol=0, atol=5e-4)


def test_initial_functions_agree_with_trained_wide_networks(small):
    """P(sgn g = y) in closed form against networks of width 4,000 trained on the same targets."""
    config, drawn = small
    request = Request("a", 5.0, 0.1, 4, 0.1, 4)
    # Its work grows with the square of these draws.
    result = limit.limit_cell(cell([request], data=config, initial_draws=20))
    target = datasets.targets(config, 60, {"coin_flip": 2, "balanced": 2})["coin_flip"][:, 0]
    learner = pk.networks.NetworkLearner(
        4000, 0.0, True, optimizer=pk.networks.paper_optimizer(0.1), steps=4
    )
    data = pk.data.from_arrays(drawn.x, drawn.y)
    scores = [
        float(
            pk.learn_from_perturbations(
                learner, data, scenario="a", size=5.0, targets=target, key=key
            )
            .accuracy(data)
            .g
        )
        for key in jax.random.split(jax.random.key(5), 40)
    ]
    error = np.std(scores) / np.sqrt(len(scores))
    # Of 40 draws; the other side is the mean of 20. From zero it would be 17 of these errors more.
    assert abs(np.mean(scores) - result["perturbation_coin_flip"][0, 0]) < 5 * np.sqrt(3) * error


def test_logistic_cell_equals_fit(small):
    config, drawn = small
    requests = [
        Request("b", 0.5, rate, 50, rate_g, 50) for rate in (0.1, 1.0) for rate_g in (0.1, 1.0)
    ]
    result = limit.limit_cell(cell(requests, "logistic", config))
    labels = datasets.targets(config, 60, {"coin_flip": 2, "balanced": 2})["coin_flip"]
    kernel = pk.TwoLayerNTK(0.0, train_bias=True)
    for i, request in enumerate(requests):
        learners = [
            pk.KernelLearner(kernel, "logistic", pk.GradientFlow(time))
            for time in (request.time_f, request.time_g)
        ]
        r = pk.learn_from_perturbations(
            learners[0],
            (drawn.x, drawn.y),
            scenario="b",
            size=0.5,
            targets=labels[:, 0],
            learner_g=learners[1],
            key=jax.random.key(0),
        )
        f, g = r.accuracy(pk.data.from_arrays(drawn.x, drawn.y))
        # Outputs right to 1e-3 may turn the sign of one point of 60.
        assert result["standard_zero"][i] == pytest.approx(float(f), abs=1 / 60 + 1e-6)
        assert result["perturbation_zero_coin_flip"][i, 0] == pytest.approx(
            float(g), abs=1 / 60 + 1e-6
        )


def test_heavy_ball_steps_exactly_and_names_unstable_rates(small):
    config, drawn = small
    requests = [Request("b", 0.5, rate, 20, 0.1, 20) for rate in (0.1, 1e4)]
    result = limit.limit_cell(cell(requests, "logistic", config, dynamics="heavy_ball"))
    kernel = pk.TwoLayerNTK(0.0, train_bias=True)
    f = pk.fit(kernel, drawn.x, drawn.y, loss="logistic", dynamics=pk.HeavyBall(0.1, 20))
    expected = float(accuracy_of(f(drawn.x), drawn.y))
    assert result["standard_zero"][0] == pytest.approx(expected, abs=1e-6)
    assert result["unstable_f"].tolist() == [False, True]


def test_points_that_coincide_follow_the_majority(small):
    config, _ = small
    result = limit.limit_cell(cell([Request("a", 0.0, 1.0, 50, 1.0, 50)], "logistic", config))
    assert np.isin(result["perturbation_zero_coin_flip"], [0.5]).all()  # half of the labels are +1


# Finite width.


def test_network_cell_equals_the_recipe_one_at_a_time(small):
    config, drawn = small
    asked = {
        "data": config,
        "scenario": "b",
        "width": 20,
        "slope": 0.0,
        "loss": "logistic",
        "targets": "balanced",
        "learning_rates_f": [0.3, 0.1],
        "learning_rates_g": [0.3],
        "steps_f": [5, 30],
        "steps_g": [10, 40],
        "sizes": [0.5, 2.0],
    }
    result = network.network_cell(asked)
    assert result["standard"].shape == (2, 2)
    assert result["perturbation"].shape == (2, 2, 2, 1, 2)
    key_f, key_g = jax.random.split(drawn.key)
    target = jnp.asarray(datasets.targets(config, 60, {"balanced": 1})["balanced"][:, 0])

    def trained(key, x, y, rate, steps):
        net = pk.networks.TwoLayerNetwork.init(12, 20, 0.0, True, key=key)
        optimizer = pk.networks.paper_optimizer(rate)
        return pk.networks.train(
            net,
            x,
            y,
            loss="logistic",
            optimizer=optimizer,
            steps=steps,
            plateau=pk.networks.Plateau(),
        )[0]

    f = trained(key_f, drawn.x, drawn.y, 0.1, 30)
    assert result["standard"][1, 1] == pytest.approx(
        float(accuracy_of(f(drawn.x), drawn.y)), abs=1e-6
    )
    delta = pk.perturb(f, drawn.x, target, size=2.0).delta
    g = trained(key_g, drawn.x + delta, target, 0.3, 40)
    # A point within rounding of the boundary may fall on either side.
    expected = float(accuracy_of(g(drawn.x), drawn.y))
    assert result["perturbation"][1, 1, 1, 0, 1] == pytest.approx(expected, abs=1 / 60 + 1e-6)


def test_network_sizes_of_scenario_a_share_their_directions(small):
    config, _ = small
    asked = {
        "data": config,
        "scenario": "a",
        "width": 20,
        "slope": 0.0,
        "loss": "identity",
        "targets": "balanced",
        "learning_rates_f": [1.0],
        "learning_rates_g": [1.0, 0.1],
        "steps_f": [100],
        "steps_g": [100],
        "sizes": [0.0, 0.5, 3.0],
    }
    together = network.network_cell(asked)["perturbation"]
    for i, size in enumerate(asked["sizes"]):
        alone = network.network_cell(asked | {"sizes": [size]})["perturbation"]
        np.testing.assert_allclose(together[:, :, i], alone[:, :, 0], atol=1 / 60 + 1e-6)
    assert together[0, 0, 2].max() > 0.8


# Cells, storage, runner.


def test_cells_are_json_and_distinct():
    cells = plan.cells(plan.Options(plan.everything(), "all", seeds=1))
    texts = [json.dumps(c, sort_keys=True) for c in cells]
    assert len(set(texts)) == len(texts)
    assert {c["function"] for c in cells} == set(runner.FUNCTIONS)


def test_a_limit_cell_serves_every_panel_of_its_data():
    everything = plan.cells(plan.Options(plan.everything()[:-1], "limit", seeds=1))
    for panel_id in (PANEL, "cosine/gaussian/steps_f", "mnist_b/size/logistic"):
        for one in plan.cells(plan.Options((panel_id,), "limit", seeds=1)):
            assert one in everything


def test_every_setting_finds_its_rows():
    for panel_id in spec.panel_ids():
        p = spec.panel(panel_id)
        for setting in p.settings:
            found = plan.limit_cell(setting, 0, OPTIONS)
            for factor in plan.factors(setting, OPTIONS):
                rows = plan.limit_rows(found, setting, factor)
                assert len(rows) == len(setting.learning_rates_f) * len(setting.learning_rates_g)


def test_cells_are_stored_under_configuration_and_code(tmp_path, monkeypatch):
    one, other = (
        {"function": "limit", "config": {"a": 1}},
        {"function": "limit", "config": {"a": 2}},
    )
    assert store.cell_path(tmp_path, one) != store.cell_path(tmp_path, other)
    store.save(tmp_path, one, {"x": np.arange(3.0)}, 1.5)
    assert store.is_finished(tmp_path, one) and not store.is_finished(tmp_path, other)
    np.testing.assert_array_equal(store.load(tmp_path, one)["x"], np.arange(3.0))
    assert store.seconds(tmp_path, one) == 1.5
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [
        store.cell_path(tmp_path, one).name
    ]
    monkeypatch.setattr(store, "code_version", lambda function: "another")
    assert not store.is_finished(tmp_path, one)


def run_cells(monkeypatch, tmp_path, function, executor, count=5):
    monkeypatch.setitem(runner.FUNCTIONS, "limit", function)
    cells = [{"function": "limit", "config": {"number": i}} for i in range(count)]
    told = []
    runner.run(cells, tmp_path, executor, lambda done, total: told.append((done, total)))
    return cells, told


def test_runner_computes_what_is_missing_on_any_executor(monkeypatch, tmp_path):
    calls = []

    def function(config):
        calls.append(config["number"])
        return {"square": np.array(config["number"] ** 2)}

    store.save(
        tmp_path, {"function": "limit", "config": {"number": 2}}, {"square": np.array(4)}, 0.0
    )
    with ThreadPoolExecutor(2) as pool:
        cells, told = run_cells(monkeypatch, tmp_path, function, pool)
    assert sorted(calls) == [0, 1, 3, 4]
    assert told[0] == (1, 5) and told[-1] == (5, 5)
    assert [int(store.load(tmp_path, c)["square"]) for c in cells] == [0, 1, 4, 9, 16]


def test_a_failing_cell_is_named_after_the_others_are_kept(monkeypatch, tmp_path):
    def function(config):
        if config["number"] == 1:
            raise ValueError("no such thing")
        return {"x": np.zeros(1)}

    with pytest.raises(RuntimeError, match=r"1 of 5 cells failed.*'number': 1.*no such thing"):
        run_cells(monkeypatch, tmp_path, function, runner.Here())
    assert len(list((tmp_path / "cells").glob("*.npz"))) == 4


QUICK = [PANEL, "cosine/shifted_gaussian/d"]
# Six cells of a tenth of a second each, once they are compiled.
CHEAP = "gaussian_b/n/identity"


def arguments(folder, names, workers):
    asked = ["--mode", "limit", "--seeds", "1", "--workers", str(workers), "--quiet"]
    return ["reproduce", *names, *asked, "--out", str(folder)]


def contents(folder):
    """Every array of every cell, by file."""
    found = {}
    for path in sorted((folder / "cells").glob("*.npz")):
        with np.load(path) as file:
            found[path.name] = {name: file[name] for name in file.files if name != "header"}
    return found


def draw_few(patch: pytest.MonkeyPatch) -> None:
    """Cells of the kernel limit with a fraction of the draws, which are most of their work."""
    patch.setattr(plan, "_IDENTITY_DRAWS", (4, 4))
    patch.setattr(plan, "_INITIAL_DRAWS", {"small": 2})


@pytest.fixture
def few_draws(monkeypatch) -> None:
    draw_few(monkeypatch)


@pytest.fixture
def few_points(few_draws, monkeypatch) -> Iterator[None]:
    """Panels and maps of fewer and smaller data."""
    monkeypatch.setitem(spec._SMALL, "shifted_gaussian_a", (200, 50))
    monkeypatch.setattr(spec, "_SMALL_IMAGES", 40)
    monkeypatch.setattr(spec, "_SMALL_GRID", 21)
    # What all panels ask of a cell is looked up by its data.
    plan._limit_requests.cache_clear()
    yield
    plan._limit_requests.cache_clear()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Tests that look for its cells have `few_draws` too."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        draw_few(patch)
        assert main(arguments(folder, QUICK, 0)) == 0
    return folder


@pytest.fixture(scope="module")
def cheap(tmp_path_factory):
    """What the cells of a cheap panel hold that were computed at one go, here."""
    folder = tmp_path_factory.mktemp("cheap")
    pk.reproduce.reproduce(CHEAP, folder, mode="limit", seeds=1, workers=0)
    return contents(folder)


def test_killed_and_started_again_gives_the_same(cheap, tmp_path):
    """SIGKILL in the middle; then two processes at once on the same folder finish it."""
    command = [sys.executable, "-m", "perturbkernel.cli", *arguments(tmp_path, [CHEAP], 1)]
    first = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "cells").glob("*.npz")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)  # the parent alone: its worker has to notice
    first.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").glob("*.npz")}
    if len(kept) == len(cheap):  # seen late, on a busy machine: as if killed before the last one
        last, _ = kept.popitem()
        (tmp_path / "cells" / last).unlink()
        (tmp_path / "index.html").unlink(missing_ok=True)
    assert kept
    assert not (tmp_path / "index.html").exists()
    # Without workers: each would import everything once more.
    alone = [*command[:3], *arguments(tmp_path, [CHEAP], 0)]
    both = [subprocess.Popen(alone) for _ in range(2)]
    assert [process.wait(timeout=400) for process in both] == [0, 0]
    for name, modified in kept.items():
        assert (tmp_path / "cells" / name).stat().st_mtime_ns == modified  # not computed again
    again = contents(tmp_path)
    assert again.keys() == cheap.keys()
    for name, arrays in cheap.items():
        for key, value in arrays.items():
            # Thread counts differ, and with them the order of sums: rounding, and single points at
            # a boundary.
            np.testing.assert_allclose(again[name][key], value, atol=2e-3, err_msg=key)
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in processes


def test_results_load_and_figures_rebuild_without_computing(
    finished, few_draws, monkeypatch, capsys
):
    monkeypatch.setattr(runner, "compute", lambda job: pytest.fail("computed again"))
    result = pk.reproduce.load(finished)
    curves = result.curves(PANEL)
    assert len(curves["perturbation"]["limit"]["mean"]) == len(result.panel(PANEL).values)
    picture = (finished / "figures" / f"{page.file_name(PANEL)}.png").read_bytes()
    assert main(["report", str(finished)]) == 0
    assert "index.html" in capsys.readouterr().out
    assert (finished / "figures" / f"{page.file_name(PANEL)}.png").read_bytes() == picture
    assert main(arguments(finished, QUICK, 0)) == 0
    text = (finished / "index.html").read_text()
    assert all(name in text for name in QUICK)
    # The page speaks of what it shows, in the words of the legends.
    assert "Blue: the kernel limit" in text and "Orange" not in text
    assert "Circles: published values" in text and "the paper reproduced" in text
    # The numbers of the curves are there to be read, and to be pointed at.
    value = curves["perturbation"]["limit"]["mean"][0]
    assert re.search(rf'<td data-at="\d+,\d+">{value:.4g}</td>', text)
    assert "<td>kernel limit, initial functions zero</td>" in text and "limit_zero" not in text
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["panels"][PANEL]["curves"] == curves
    with pytest.raises(FileNotFoundError, match="no finished reproduction"):
        pk.reproduce.load(finished / "cells")


def test_curves_show_what_the_theory_says(finished, few_draws):
    result = pk.reproduce.load(finished)
    curves = result.curves(PANEL)
    rising = curves["perturbation"]["limit"]["mean"]
    assert rising[-1] > rising[0] + 0.1  # training time matters from random initial functions
    flat = curves["perturbation"]["limit_zero"]["mean"]
    assert np.ptp(flat) < 1e-6  # and not from zero
    assert curves["perturbation"]["limit_balanced"]["mean"][-1] > flat[-1] + 0.1  # the bias offset
    cosine = result.curves("cosine/shifted_gaussian/d")["cosine"]
    gap = assemble.distance(cosine["limit"], result.panel("cosine/shifted_gaussian/d"), "cosine")
    assert gap is not None and gap["mean"] < 0.02


def test_both_modes_on_one_page(few_points, tmp_path):
    """A panel of each kind, a map and images, computed, drawn and read."""
    names = ["fashion_mnist_b/steps_g/identity", "map/shifted_gaussian_a"]
    result = pk.reproduce.reproduce(names, tmp_path, seeds=1, workers=0)
    curves = result.curves(names[0])
    assert {
        "limit",
        "limit_zero",
        "network",
        "network_grid",
        "limit scaled",
        "network scaled",
    } <= set(curves["agreement"])
    note = result._note(result.panel(names[0]).settings[0])
    assert "mnist5k" in note and "12,000" in note
    maps = result.map("map/shifted_gaussian_a")
    assert maps["limit"]["f"].shape == (21, 21)
    f_hat, g_hat = maps["limit"]["f_hat"], maps["limit"]["g_hat"]
    assert np.mean(np.sign(f_hat) == np.sign(g_hat)) > 0.9
    assert (tmp_path / "figures" / "map_shifted_gaussian_a.svg").is_file()
    # Named later, with the same options: the page keeps what it had.
    result = pk.reproduce.reproduce("cosine/shifted_gaussian/steps_f", tmp_path, seeds=1, workers=0)
    assert set(result.names) == {*names, "cosine/shifted_gaussian/steps_f"}


def test_idx_files_are_used_where_given(tmp_path, rng):
    for prefix in ("train", "t10k"):
        for name, content, dimensions in (
            ("images-idx3", rng.integers(0, 256, (90, 28, 28)), (90, 28, 28)),
            ("labels-idx1", np.arange(90) % 3, (90,)),
        ):
            header = bytes([0, 0, 8, len(dimensions)]) + b"".join(
                size.to_bytes(4, "big") for size in dimensions
            )
            (tmp_path / f"{prefix}-{name}-ubyte").write_bytes(
                header + content.astype(np.uint8).tobytes()
            )
    options = plan.Options(("mnist_a/size/identity",), "limit", mnist=str(tmp_path))
    setting = options.panels[0].settings[0]
    config = plan.data_config(setting, 0, options.sources)
    assert config["name"] == "mnist" and config["path"] == str(tmp_path)
    assert datasets.draw(config).x.shape == (60, 784)
    assert plan.factors(setting, options)[1] == pytest.approx(np.sqrt(12_700 / 60), abs=1e-3)


def test_panel_figures_say_what_was_reduced():
    p = spec.panel("gaussian_b/size/identity")
    flat = {"mean": [0.5] * 6, "low": [0.4] * 6, "high": [0.6] * 6}
    figure = figures.panel_figure(
        p, {q: {"limit": flat, "network": flat} for q in p.curves}, "a note"
    )
    assert_nothing_is_cut_off(figure)
    title = figure.get_suptitle()
    assert "10,000 → 250" in title and "a note" in title
    assert "scenario (b)" in title


def test_dask_computes_the_same(cheap, tmp_path):
    distributed = pytest.importorskip("dask.distributed")
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = client.get_executor()
        assert isinstance(executor, Executor)
        pk.reproduce.reproduce(CHEAP, tmp_path, mode="limit", seeds=1, executor=executor)
    found = contents(tmp_path)
    assert found.keys() == cheap.keys()
    for name, arrays in found.items():
        for key, value in arrays.items():
            np.testing.assert_allclose(value, cheap[name][key], atol=2e-3, err_msg=key)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce"], "--all"),
        (["reproduce", "nonsense"], "no panel, map or study"),
        (["reproduce", "mnist_a", "--all"], "not both"),
        (["reproduce", "map", "--seeds", "0"], "seeds must be at least 1"),
        (["reproduce", "map", "--workers", "-1"], "workers must be at least 0"),
        (["reproduce", "mnist_a", "--mnist", "/nowhere"], "/nowhere: found none of"),
    ],
)
def test_wrong_usage_is_one_line(arguments, message, capsys):
    assert main([*arguments, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_list_names_everything(capsys):
    assert main(["reproduce", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(pk.reproduce.names()) == 76
