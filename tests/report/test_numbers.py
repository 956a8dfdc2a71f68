"""Tables of a figure's numbers: every mark is where its cell says, and has its value."""

import io
import tomllib
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from perturbkernel.report import drawing, plots
from perturbkernel.report.html import html_figure, html_settings
from perturbkernel.report.numbers import name_points

ROOT = Path(__file__).parents[2]
RED = (1.0, 0.0, 0.0)


def colour_at(picture, place) -> np.ndarray:
    """Of the picture's pixel at a place in thousandths."""
    pixels = matplotlib.image.imread(io.BytesIO(picture.png))
    height, width = pixels.shape[:2]
    column, row = round(place[0] * width / 1000), round(place[1] * height / 1000)
    return pixels[row, column, :3]


def awkward() -> plots.Figure:
    """Axes that move when they are drawn: a logarithm, an equal aspect, words for places."""
    fig = plots.figure(8, 3)
    left, middle, right = fig.subplots(1, 3)
    look = {"color": RED, "ls": "", "marker": "s", "ms": 12}
    left.plot([0.01, 1, 100], [2, np.nan, 5], label="f", **look)
    left.axhline(3, label="chance")
    left.set(xscale="log", xlabel="size", ylabel="accuracy", title="two\nlines")
    middle.errorbar([1, 2], [1, 3], [0.1, 0.1], label=r"a \$", **look)
    middle.set_aspect("equal")
    middle.plot([0, 5], [7, 7], color="k")
    right.scatter([0, 1], [10, 20], s=150, marker="s", color=RED, label="cats")
    right.set_xticks([0, 1], ["one", "two"])
    name_points(right.collections[0], ["first", "second"])
    return fig


def test_marks_are_where_the_table_says():
    picture = drawing.picture(awkward())
    left, middle, right = picture.numbers
    marks = [place for table in picture.numbers for row in table.places for place in row if place]
    assert len(marks) == 6
    for place in marks:
        assert colour_at(picture, place) == pytest.approx(RED, abs=0.01)
    # Moved by less than a mark's width the colour would be another: the places are no accident.
    assert colour_at(picture, (marks[0][0] + 20, marks[0][1])) != pytest.approx(RED, abs=0.01)
    assert left.title == "two lines: accuracy" and left.head == ["size", "f"]
    assert left.rows == [["0.01", "2"], ["1", ""], ["100", "5"]] and left.places[1][1] is None
    assert middle.head[1] == "a $" and [row[1] for row in middle.rows] == ["1", "3"]
    assert right.head[0] == "cats"
    assert right.rows == [["first", "one", "10"], ["second", "two", "20"]]


def test_curves_over_the_same_places_share_a_table():
    axis = plots.figure(4, 3).add_subplot()
    for name, x in (("a", [0, 1]), ("b", [0, 1]), ("c", [0, 2])):
        axis.plot(x, [0.5, 0.75], label=name)
    axis.scatter([0], [0], label="without names")
    assert isinstance(axis.figure, plots.Figure)
    tables = drawing.picture(axis.figure).numbers
    assert [table.head[1:] for table in tables] == [["a", "b"], ["c"]]


def test_a_figure_of_many_inches_has_a_row_of_its_own_and_scrolls():
    panels, one, flat = [
        drawing.picture(plots.figure(*size)) for size in ((9.9, 4.6), (4.8, 4), (7, 3))
    ]
    assert 'class="wide"' in html_figure("frontier", panels)
    assert 'class="wide"' in html_figure("flat", flat)
    page = html_figure("a <b>", one, "said & done", source="figures/a.png", below="<p>more</p>")
    assert 'class="wide"' not in page and 'src="figures/a.png"' in page
    assert "a &lt;b&gt;" in page and "said &amp; done</figcaption><p>more</p>" in page
    # At the least width letters of nine points have 7.5 pixels.
    assert "min-width:594px" in html_figure("frontier", panels)


def test_settings_are_words():
    settings = {"bounds": None, "classes": ["1", "2"], "x64": False, "versions": {"jax": "1"}}
    text = html_settings(settings)
    assert not any(sign in text for sign in "{}[]'\"") and "None" not in text
    assert "<td>clipped to</td><td>none</td>" in text and "<td>jax 1</td>" in text


def test_every_file_beside_the_code_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = ROOT / "perturbkernel"
    installed = {
        path
        for pattern in listed["package-data"]["perturbkernel"]
        for path in package.glob(pattern)
    }
    files = {
        path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path for path in files if path.suffix not in (".py", ".pyc")} == installed
