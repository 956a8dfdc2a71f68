"""What a person types for `perturbkernel run`: labels of any kind, by their names in the shell."""

import argparse
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from perturbkernel import report
from perturbkernel.cli.main import build_parser, main
from perturbkernel.cli.run import inputs
from perturbkernel.learning import record
from perturbkernel.learning.curves import SizeCurve

KINDS = {
    "text": (np.array(["1", "2", "cat"]), ("1", "2", "cat")),
    "whole numbers": (np.array([-3, 0, 2**60 + 1]), ("-3", "0", str(2**60 + 1))),
    "bytes of a number": (np.arange(3, dtype=np.uint8), ("0", "1.0", "2")),
    "numbers": (np.array([1.5, 2.0, -0.25]), ("1.5", "2", "-.25")),
    "narrow numbers": (np.array([0.1, 0.5], np.float32), ("0.10000000149011612", "0.5")),
    "truth": (np.array([True, False]), ("True", "False")),
    "truth in lower case": (np.array([True, False]), ("true", "false")),
    "truth as numbers": (np.array([True, False]), ("1", "0")),
    "bytes": (np.array([b"caf\xc3\xa9", b"tea"]), ("café", "tea")),
    "odd words": (np.array(["$x$", "<b>", "_y_"]), ("$x$", "<b>", "_y_")),
    "days": (np.array(["2024-01-01", "2024-01-02"], "M8[D]"), ("2024-01-01", "2024-01-02")),
    "ten": (np.arange(10), tuple(str(i) for i in range(10))),
}


@pytest.fixture
def file(tmp_path):
    def write(labels, kinds=None, shape=(4,)):
        rng = np.random.default_rng(0)
        kinds = np.unique(labels) if kinds is None else kinds
        targets = np.concatenate([kinds, rng.choice(labels, 50)])
        features = rng.normal(size=(len(targets), *shape))
        np.savez(tmp_path / "mine.npz", inputs=features, targets=targets)
        return str(tmp_path / "mine.npz"), features, targets

    return write


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("order", [1, -1])
def test_labels_of_any_kind_are_named_in_words(kind, order, file):
    kinds, words = KINDS[kind]
    path, features, targets = file(kinds, kinds)
    data = inputs._load_file(path, words[::order])
    assert len(data.classes) == len(words)
    rows, places = np.asarray(data.inputs), np.asarray(data.labels)
    for i, label in enumerate(kinds[::order]):
        np.testing.assert_allclose(rows[places == i], features[targets == label], rtol=1e-6)


@pytest.mark.parametrize("kind", list(KINDS))
def test_labels_that_need_words_get_advice_for_the_shell(kind, file):
    kinds, words = KINDS[kind]
    path, *_ = file(kinds, kinds)
    if len(kinds) > 2:
        with pytest.raises(ValueError, match=r"--classes: .*mine.npz has no label dog; it has "):
            inputs._load_file(path, [words[0], "dog"])
    with pytest.raises(
        ValueError, match=r"mine.npz: the labels are .*; say which .* --classes "
    ) as e:
        inputs._load_file(path, None)
    assert "from_arrays" not in str(e.value) and "pk." not in str(e.value)
    with pytest.raises(ValueError, match="--classes must name different labels"):
        inputs._load_file(path, [words[0], words[0]])


@pytest.mark.parametrize("dtype", [int, float, np.int8, np.float32])
def test_plus_and_minus_one_need_no_words(dtype, file):
    path, _, targets = file(np.array([-1, 1], dtype))
    np.testing.assert_array_equal(inputs._load_file(path, None).targets, targets)


def test_synthetic_data_have_their_own_shape():
    words = ["run", "--data", "gaussian", "--n", "30", "--d", "4"]
    args = build_parser().parse_args(words)
    inputs.check_options(args)
    train, test = inputs.load(args, jax.random.key(0))
    assert (train.n, test.n, train.d, train.name) == (24, 6, 4, "gaussian")


def test_digits_and_garments_have_numbers_and_names():
    assert inputs._chosen_digits(["7", "3"], "mnist") == {"classes": [7, 3]}
    assert inputs._chosen_digits(["Sandal", "9"], "fashion_mnist") == {"classes": [5, 9]}
    with pytest.raises(ValueError, match="Fashion-MNIST has no label Sock"):
        inputs._chosen_digits(["Sock", "9"], "fashion_mnist")


def loaded(*words):
    args = build_parser().parse_args(["run", "--n", "20", *words])
    inputs.check_options(args)
    return inputs.load(args, jax.random.key(0))


def test_tables_folders_and_photographs_are_data(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.resize(["cat", "dog", "bird"], 40)
    rows = [f"{a},{b},{c}" for (a, b), c in zip(rng.normal(size=(40, 2)), labels, strict=True)]
    (tmp_path / "mine.csv").write_text("\n".join(["x,y,animal", *rows]))
    table = [f"--data={tmp_path}/mine.csv", "--label", "animal"]
    train, test = loaded(*table, "--classes", "dog", "cat")
    assert train.classes == ("dog", "cat") and (train.n, test.n, train.d) == (16, 4, 2)
    assert loaded(*table)[0].classes == ("bird", "cat", "dog")
    with pytest.raises(ValueError, match=r"--classes: .*mine.csv has no label fish; it has bird"):
        loaded(*table, "--classes", "fish", "cat")
    with pytest.raises(ValueError, match=r"mine.csv needs --label COLUMN"):
        loaded(table[0])
    with pytest.raises(ValueError, match=r"--label goes with a .csv or .tsv file"):
        loaded("--data", "mnist5k", "--label", "x")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for k in range(10):
            pixels = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{k}.png")
    train, _ = loaded("--data", str(tmp_path), "--classes", "dog", "cat")
    assert train.classes == ("dog", "cat") and train.image_shape == (4, 5, 3)
    assert loaded("--data", "digits", "--classes", "3", "8")[0].classes == ("3", "8")
    records = rng.integers(0, 256, (40, 3073)).astype(np.uint8)
    records[:, 0] = np.arange(40) % 10
    for name in (*[f"data_batch_{k}" for k in range(1, 6)], "test_batch"):
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
    train, test = loaded("--data", "cifar10", "--path", str(tmp_path), "--classes", "cat", "5")
    assert train.classes == ("cat", "dog") and (train.n, test.n) == (20, 8)


def arguments(**changes) -> argparse.Namespace:
    base = {"carrier": None, "carrier_points": None, "at": "data", "precision": 32}
    return argparse.Namespace(**base | changes)


@pytest.mark.parametrize("at", ["data", "carrier"])
@pytest.mark.parametrize("m", [1, 39, 40, 80])
@pytest.mark.parametrize("shape", [(6,), (3, 2), (5,), ()])
def test_carriers_have_rows_of_the_data(at, m, shape, tmp_path):
    train = inputs.datasets.gaussian(40, 6, key=jax.random.key(0))
    np.save(tmp_path / "carrier.npy", np.ones((m, *shape)))
    args = arguments(carrier=str(tmp_path / "carrier.npy"), at=at)
    fits = np.prod(shape) == 6 and (at == "carrier" or m % 40 == 0)
    if fits:
        assert np.asarray(inputs.load_carrier(args, train)).shape == (m, 6)
    else:
        with pytest.raises(ValueError, match=r"--carrier .*(wanted rows of 6|or a multiple)"):
            inputs.load_carrier(args, train)


def program(command: str, **environment) -> subprocess.CompletedProcess:
    call = command.replace("perturbkernel", f"{sys.executable} -m perturbkernel.cli")
    shell = ["bash", "-o", "pipefail", "-c", call]
    variables = {**os.environ, **environment}
    return subprocess.run(shell, capture_output=True, text=True, env=variables, check=False)


@pytest.mark.parametrize("command", ["verify --help", "reproduce list"])
def test_a_reader_that_leaves_is_no_error(command):
    done = program(f"perturbkernel {command} | true")
    assert done.returncode == 0 and done.stderr == ""


def test_a_status_survives_a_reader_that_left():
    done = program("perturbkernel run --size 0 2>&1 | true")
    assert done.returncode == 2 and done.stdout == done.stderr == ""


@pytest.mark.parametrize("platform", ["cuda", "abacus"])
def test_a_device_that_is_not_there_is_named(platform):
    if platform == "cuda" and jax.default_backend() == "gpu":
        pytest.skip("this machine has one")
    done = program("perturbkernel run --quiet", JAX_PLATFORMS=platform)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"JAX finds no device for JAX_PLATFORMS={platform}" in done.stderr


def test_many_classes_reach_every_file(file, tmp_path, monkeypatch, capsys):
    path, *_ = file(np.arange(3), np.arange(3), (2, 2, 3))
    out = tmp_path / "result"
    run = ["run", "--quiet", "--data", path, "--classes", "2", "0", "1", "--control-draws", "1"]
    assert main([*run, "--targets", "next", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "mine: 2, 0, 1, " in printed and "each labelled as the next class" in printed
    names = {path.stem for path in out.iterdir()}
    drawn = {"perturbations", "growing", "outputs", "accuracy_against_size"}
    assert names == {"report", "arrays", *drawn}
    page = (out / "report.html").read_text()
    assert "f (rows) and g (columns)" in page and not re.search(r"quadrants|boundary", page)

    # A figure that fails loses nothing, and can be drawn when it no longer does.
    monkeypatch.setattr("perturbkernel.report.plots.outputs", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="the figure outputs could not be drawn"):
        report.redraw(out)
    assert {path.stem for path in out.iterdir()} == names - {"outputs"}
    assert "could not be drawn (ZeroDivisionError" in (out / "report.html").read_text()
    assert "figure outputs" in report.load(out).metrics["status"]
    monkeypatch.undo()
    report.redraw(out)
    assert (out / "report.html").read_text() == page


def test_results_of_another_run_are_not_given_other_figures(tmp_path, monkeypatch):
    c, m = {"classes": ["a", "b"], "image_shape": None, "size": 1}, {"accuracy": {"f": {}}}
    result = report.Report(c, m | {"agreement": None}, {}, {"delta": np.ones(2)})

    def another(*_):
        (tmp_path / "report.json").write_text("{}")
        raise ZeroDivisionError

    monkeypatch.setattr("perturbkernel.report.plots.outputs", another)
    with (
        pytest.warns(UserWarning, match="could not be drawn"),
        pytest.raises(ValueError, match="another run has written its results there meanwhile"),
    ):
        report.save(result, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "arrays.npz"}


def test_a_size_that_cannot_be_trained_at_leaves_the_others(monkeypatch):
    def measure(r, data, sizes):
        if sizes[0] > 5:
            raise ValueError("learning_rate must be below 1")
        return SizeCurve(jnp.asarray(sizes), jnp.ones(1), None)

    status = {}
    monkeypatch.setattr("perturbkernel.learning.record.accuracy_against_size", measure)
    r = SimpleNamespace(options={"size": 1.0})
    curve = record.curve_of(r, None, status)  # pyright: ignore[reportArgumentType]
    sizes = np.geomspace(1 / 30, 30, 13)
    np.testing.assert_allclose(curve["curve_size"], sizes[sizes < 5], rtol=1e-6)
    assert curve.keys() == {"curve_size", "curve_accuracy"}
    assert re.fullmatch(r"left out at size .*: learning_rate.*", status["accuracy against size"])


def test_results_of_others_are_not_overwritten(tmp_path, capsys):
    (tmp_path / "report.json").write_text('{"of": "something else"}')
    assert main(["run", "--out", str(tmp_path)]) == 2
    assert "holds report.json, which no run wrote" in capsys.readouterr().err
    assert (tmp_path / "report.json").read_text() == '{"of": "something else"}'
    (tmp_path / "report.json").unlink()
    (tmp_path / "reproduction.json").write_text("{}")
    assert main(["run", "--out", str(tmp_path)]) == 2
    assert "holds a reproduction; give another folder" in capsys.readouterr().err
    (tmp_path / "reproduction.json").unlink()
    assert main(["run", "--n", "1", "--out", str(tmp_path / "a" / "b")]) == 2
    assert not list(tmp_path.iterdir())


def only_under_attack(saved):
    """Of the figures, the one that is asked about: drawing all takes a second."""
    return {"robust_accuracy": report.figures(saved)["robust_accuracy"]}


def test_accuracy_under_attack_reaches_the_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("perturbkernel.report.results.figures", only_under_attack)
    run = "run --quiet --data shifted_gaussian --n 50 --d 6 --control-draws 2 --robust-attack apgd"
    trained = ["--loss", "squared", "--time", "inf", "--ridge", "0.1", "--ridge-g", "0"]
    attacked = ["--robust", "0.5", "0.1", "--robust-points", "7", "--certified"]
    arguments = [*run.split(), *trained, *attacked]
    assert main([*arguments, "--out", str(tmp_path / "result")]) == 0
    robust = report.load(tmp_path / "result").metrics["robust"]
    assert robust["points"] == 7 and robust["attack"] == "apgd"
    for name in "fg":
        table = robust["tables"][name]
        assert table["size"] == [0.0, 0.1, 0.5]
        for column in ("accuracy", "certified"):
            assert sorted(table[column])[::-1] == table[column]
        assert (np.array(table["certified"]) <= np.array(table["accuracy"])).all()
    assert robust["tables"]["f"]["certified"][1] > 0
    asked = report.load(tmp_path / "result").configuration
    assert "ridge 0.1" in asked["f"] and "ridge" not in asked["g"]
    printed = capsys.readouterr().out
    assert "Under attack of size 0.5 (l2, apgd) f classifies" in printed
    assert "(certified: " in printed and "of 7 points" in printed
    assert "f under attack  f certified  g under attack  g certified" in printed
    assert (tmp_path / "result" / "robust_accuracy.svg").exists()
    page = (tmp_path / "result" / "report.html").read_text()
    assert "perturbation of at most that size" in page and "<th>g certified</th>" in page
    assert "Dashed: the share that is certified" in page
