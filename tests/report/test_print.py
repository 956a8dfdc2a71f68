"""Figures for print: a column or a page wide, letters as letters, text that shrinks with them."""

import jax
import matplotlib
import numpy as np
from pages import assert_nothing_is_cut_off

import perturbkernel as pk
from perturbkernel import report
from perturbkernel.cli.main import main
from perturbkernel.report import drawing, plots

KEY = jax.random.key(0)


def test_every_figure_becomes_a_pdf_of_the_size_of_print(tmp_path):
    data = pk.data.shifted_gaussian(40, 6, 1.0, key=KEY)
    r = pk.learn_from_perturbations(pk.KernelLearner(pk.TwoLayerNTK()), data, size=0.5, key=KEY)
    r.report(tmp_path, control_draws=1)
    assert main(["report", str(tmp_path), "--style", "paper"]) == 0
    names = report.figures(report.load(tmp_path))
    for draw in names.values():
        assert_nothing_is_cut_off(draw())
    files = {path.stem: path.read_bytes() for path in (tmp_path / "paper").iterdir()}
    assert files.keys() == names.keys() and len(files) == 4
    for content in files.values():
        assert content.startswith(b"%PDF") and b"/Type3" not in content  # TrueType letters
        box = content.split(b"/MediaBox [ 0 0 ")[1].split()[0]
        width = float(box) / 72
        assert min(abs(width - drawing.COLUMN), abs(width - drawing.PAGE)) < 0.01


def test_text_shrinks_with_the_figure_and_the_users_settings_stay():
    arrays = {"fresh_f": np.array([1.0, -2.0]), "fresh_g": np.array([0.5, 1.0])}
    before = dict(matplotlib.rcParams)
    screen = plots.outputs(arrays, ("a", "b"), 0.5)
    with drawing.for_print():
        printed = plots.outputs(arrays, ("a", "b"), 0.5)
    assert dict(matplotlib.rcParams) == before
    shrunk = printed.get_figwidth() / screen.get_figwidth()
    assert printed.get_figwidth() == drawing.COLUMN
    label, own = (f.axes[0].xaxis.label.get_size() for f in (screen, printed))
    assert own == label * shrunk
