"""The programs in examples/, run as a person runs them, on small settings; and the notebook."""

import copy
import runpy
import sys
import warnings
from pathlib import Path

import matplotlib
import nbclient
import nbformat
import pytest
from matplotlib.image import imread
from pages import assert_prints

EXAMPLES = Path(__file__).parent.parent / "examples"
# What each prints: a number that would not be there if its point were lost.
QUICK = {
    "certified_size": (["--train", "60", "--test", "5"], "0 certificates above an attack"),
    "certified_width": (["--test", "5"], "0 sizes above the limit's or an attack"),
    "certify_digits": (["--width", "1000", "--digits", "100", "--no-training"], "certified"),
    "certify_law": (
        ["--digits", "60", "--draws", "50", "--pilot", "10", "--check", "10"],
        "f and g: 75.0% certified; 0 of 10 trained networks break it",
    ),
    "certify_pairs": (
        ["--pairs", "1,2", "4,9", "--digits", "100", "--width", "10000"],
        "width 10,000: 42.5% certified on average, 10.0% at the hardest pair",
    ),
    "kernel_features": (
        ["--train", "60", "--test", "60", "--features", "3"],
        "share of the first 3 eigenvectors in labels: 0.",
    ),
    "lazy_to_rich": (
        ["--times", "10", "--neurons", "100", "--points", "50", "400", "--draws", "1"],
        "XOR of two coordinates: r = 10: f 0.",
    ),
    "learned_metric": (
        ["--points", "100", "--rounds", "1", "--draws", "1", "--noise", "200"],
        "digits 3 and 8, 0 updates: f 0.9",
    ),
    "distill": (["--train", "100", "--steps", "20"], "4 distilled images: accuracy 0.9"),
    "learn_from_noise": (
        ["--noise", "1000", "--draws", "1"],
        "size 3.000, noise of length 16: accuracy 0.9",
    ),
    "neuron_law": (["--neurons", "200", "--digits", "40"], "width 100, rate 0.01: 4 networks"),
    "perturbations_are_training_data": (["--pairs", "21"], "difference of the means 0.999"),
    "poison": (["--train", "60", "--steps", "4"], "poisoned: accuracy 0.6"),
    "scaling_laws": (
        ["--settings", "0", "--draws", "1"],
        "distance of a law from the kernel limit 0.00",
    ),
    "sklearn_grid_search": (["--train", "100", "--times", "2"], "cross-validated accuracy 0.4"),
    "ten_digits": (
        ["--train", "100", "--test", "200", "--width", "16"],
        "networks of width 16, 10 steps",
    ),
    "trained_network": (
        ["--digits", "100", "--epochs", "0,8"],
        "epoch 8: alignment of the kernel with the labels 0.",
    ),
    "uncertainty": (["--times", "inf"], "at the data off by 0.000 at most"),
}


def test_every_program_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(QUICK)


@pytest.mark.parametrize("name", QUICK)
def test_a_program_ends_in_a_picture(name, tmp_path, monkeypatch, capsys):
    arguments, expected = QUICK[name]
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--figure", str(picture)])
    with matplotlib.rc_context():
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert expected in capsys.readouterr().out
    assert imread(picture).std() > 0.01  # something is drawn


def outputs_of(cells) -> list:
    return [output for cell in cells for output in cell.outputs]


def test_the_notebook_prints_what_is_stored_in_it(tmp_path, monkeypatch):
    """It is stored with its outputs, so that pictures are seen where nothing runs."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    # This checkout, wherever the kernel starts.
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    stored = copy.deepcopy(outputs_of(cells))
    with warnings.catch_warnings():  # of the protocol's own packages
        warnings.simplefilter("ignore")
        nbclient.NotebookClient(
            notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
        ).execute()
    now = outputs_of(cells)
    for outputs in (stored, now):
        assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    printed = "".join(output.get("text", "") for output in now)
    assert_prints("".join(output.get("text", "") for output in stored), printed)
    assert "certificates above an attack: 0" in printed
