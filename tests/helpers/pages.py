"""What pages show: output below code, against what the code prints; figures, whole."""

import re
import textwrap

import numpy as np
from matplotlib.figure import Figure

from perturbkernel.report import drawing

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
SHOWN = re.compile(r"\n\n *```text\n(.*?)^ *```$", re.M | re.S)


def output_after(page: str, end: int) -> str | None:
    """The ```text fence that follows the fence ending at `end` of the page's text, if one does."""
    shown = SHOWN.match(page, end)
    return textwrap.dedent(shown[1]) if shown else None


def assert_prints(shown: str, printed: str) -> None:
    """Words are equal, and numbers to within one unit of their last digit: other processors round
    sums differently.
    """
    assert NUMBER.sub("#", printed.strip()) == NUMBER.sub("#", shown.strip())
    for expected, found in zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True):
        digits = len(expected.partition(".")[2])
        np.testing.assert_allclose(float(found), float(expected), rtol=0, atol=1.01 * 10**-digits)


def assert_nothing_is_cut_off(figure: Figure) -> None:
    """Titles, labels and legends lie within the figure, as a page shows it."""
    drawing.picture(figure)
    # In inches. Boxes of text are wider than its ink, by half a point with older versions of
    # Matplotlib.
    slack = 0.01
    width, height = figure.get_size_inches() + slack
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0) > -slack and box.x1 < width and box.y1 < height, box
