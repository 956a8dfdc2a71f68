"""What an experiment says: printed, as a table, in a notebook, and as a page from Python."""

import jax
import numpy as np
import optax
import pytest

import perturbkernel as pk
from perturbkernel import report
from perturbkernel.display import Displayed

KEY = jax.random.key(0)
TRAIN, TEST = pk.data.shifted_gaussian(60, 6, 1.0, key=KEY).split(test=0.5, key=KEY)
LEARNER = pk.KernelLearner(pk.TwoLayerNTK(), dynamics=pk.GradientFlow(3.0))


def only_under_attack(saved):
    """Of the figures, the one that is asked about: drawing all takes a second."""
    return {"robust_accuracy": report.figures(saved)["robust_accuracy"]}


@pytest.fixture(scope="module")
def r():
    return pk.learn_from_perturbations(LEARNER, TRAIN, size=0.5, test=TEST, key=KEY)


def test_it_prints_what_the_command_prints(r):
    said = str(r)
    f, g = r.accuracy()
    assert said.startswith("shifted_gaussian: ") and "30 training and 30 test points" in said
    assert f"f, trained on the data               {float(r.accuracy(TRAIN).f):.3f}" in said
    assert f"{float(f):.3f}" in said and f"{float(g):.3f}" in said
    assert "control" not in said and "cosine" in said
    assert len(repr(r)) < 200 and "Array" not in repr(r)
    assert "<table>" in r._repr_html_() and "trained on the perturbations" in r._repr_html_()


def test_accuracy_is_of_the_test_data_where_there_are_any(r):
    assert float(r.accuracy().g) == float(r.accuracy(TEST).g)
    without = pk.learn_from_perturbations(LEARNER, TRAIN, size=0.5, key=KEY)
    assert float(without.accuracy().g) == float(without.accuracy(TRAIN).g)
    assert "test" not in str(without).split("\n")[2]
    np.testing.assert_array_equal(without.g.dual_coef, r.g.dual_coef)


def test_test_data_of_other_classes_are_refused():
    three = pk.data.from_arrays(np.eye(6)[:3], [0, 1, 2], classes=range(3))
    with pytest.raises(ValueError, match="must have the classes of the training data"):
        pk.learn_from_perturbations(LEARNER, TRAIN, size=0.5, test=three, key=KEY)


def test_the_table_has_columns_of_one_length(r):
    table = r.table(control_draws=2)
    assert {len(column) for column in table.values()} == {5}
    metrics = r.evaluate(control_draws=2)
    assert table["test"][0] == metrics["accuracy"]["f"]["test"]
    draws = metrics["controls"]["random"]["test"]
    row = table["network"].index("random")
    assert table["test"][row] == pytest.approx(np.mean(draws))
    assert table["test_std"][row] == pytest.approx(np.std(draws))
    assert r.table()["network"] == ["f", "g"]
    assert f"{table['test'][1]:.3f}" in str(table).splitlines()[2]
    assert table._repr_html_().count("<tr>") == 6


@pytest.mark.parametrize("finite", [False, True], ids=["limit", "networks"])
def test_a_page_is_written_from_python(finite, tmp_path):
    learner = LEARNER
    if finite:
        learner = pk.networks.NetworkLearner(8, optimizer=optax.sgd(0.1), steps=3)
    r = pk.learn_from_perturbations(learner, TRAIN, size=0.5, key=KEY)
    page = r.report(tmp_path / "results", TEST, control_draws=1)
    text = page.read_text()
    assert ("Both are infinitely wide" in text) != finite
    assert "points that neither network was trained on" in text
    assert page.name == "report.html" and "pk.learn_from_perturbations" in text
    loaded = report.load(tmp_path / "results")
    assert loaded.metrics["accuracy"] == r.evaluate(TEST)["accuracy"]
    assert ("f_dual_coef" in loaded.arrays) != finite


def test_accuracy_under_attack_on_a_page_from_python(r, tmp_path, monkeypatch):
    monkeypatch.setattr("perturbkernel.report.results.figures", only_under_attack)
    asked = {"norms": ("l2", "l0"), "attack": "apgd", "bounds": (-9, 9)}
    asked |= {"steps": 5, "points": 8, "certified": True, "sizes": [1.0]}
    r.report(tmp_path / "all", control_draws=1, robust=asked)
    robust = report.load(tmp_path / "all").metrics["robust"]
    assert robust["points"] == 8 and robust["attack"] == "apgd"
    for predictor, table in zip((r.f, r.g), robust["tables"].values(), strict=True):
        x, y = TEST.inputs[:8], TEST.targets[:8]
        assert table["norm"] == ["l2", "l2", "l0", "l0"]
        shares = pk.certified_size(predictor, x, y).accuracy([0, 1])
        assert table["certified"] == [*shares, None, None]
        assert table["accuracy"][0] == np.mean(np.asarray(predictor(x) * y) > 0)
        assert (shares <= table["accuracy"][:2]).all()
    page = r.report(tmp_path / "sizes", control_draws=1, robust=[0.3]).read_text()
    assert "Under attack of size 0.3 (l2, worst_case)" in page and "Dashed" not in page
    with pytest.raises(ValueError, match="certified accuracy is known in l2, linf, l1; got l0"):
        r.report(tmp_path / "l0", robust=asked | {"norms": "l0"})


def test_many_classes_have_a_page_too(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    data = pk.data.from_arrays(
        3 * np.eye(3)[labels] + rng.normal(size=(30, 3)), labels, classes=range(3)
    )
    r = pk.learn_from_perturbations(LEARNER, data, size=0.5, targets="next", key=KEY)
    assert "next targets" in str(r)
    text = r.report(tmp_path, control_draws=1).read_text()
    # Without test data nothing is said of new points.
    assert "the training points of f" in text
    assert "neither network" not in text and "new points" not in text and "Fresh" not in text


def test_records_print_numbers_and_show_a_table(r):
    x, y = TEST.inputs, TEST.targets  # as on the page above, whose programs are taken again
    records = (
        r.perturbation,
        r.diagnosis,
        r.f,
        pk.minimum_norm(r.f, x, y, away=True),
        pk.worst_case(r.f, x, y, size=0.1, steps=5, key=KEY),
    )
    for record in records:
        assert isinstance(record, Displayed)
        assert "Array" not in repr(record) and len(repr(record)) < 400
        assert "<table>" in str(record._repr_html_())
        seen = []
        jax.eval_shape(lambda a, seen=seen: seen.append(repr(a)), record)
        assert type(record).__name__ in seen[0]  # without numbers, under jit
