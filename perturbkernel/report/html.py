"""Pages: whole documents that need nothing beside them.

Their design is in `page.css`. `hover.js` shows the number of a figure that is nearest to the
pointer, from the tables below the figure, which are there without it.
"""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from perturbkernel.display import html_table

# Figures are drawn in inches, of which PNGs have 150 pixels. On a page an inch has this many at
# most; and on a phone at least so many, so that letters of nine points stay legible.
_DOTS, _MOST, _LEAST = 150, 110, 60
# A figure of more inches than this, or so many times wider than high, has a row of its own.
_WIDE_INCHES, _WIDE_RATIO = 7.5, 2.2


# Settings whose names are not words.
_WORDS = {
    "n_train": "training points",
    "n_test": "test points",
    "n_perturbed": "perturbed points",
    "d": "dimension",
    "at": "perturbed at",
    "bounds": "clipped to",
    "x64": "64 bits",
}


class Numbers(NamedTuple):
    """A table of numbers that a figure shows.

    Attributes:
        title: what is measured.
        head: names of the columns.
        rows: texts of the cells.
        places: of each cell where its mark is, in thousandths of the picture's width and height
            from the upper left corner; None of one without a mark.
        pictures: of the first rows, all (h, w) or all (h, w, 3) of eight bits; or none.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    places: Sequence[Sequence[tuple[int, int] | None]]
    pictures: Sequence[np.ndarray] = ()


class Picture(NamedTuple):
    """A figure as a PNG, and the numbers in it."""

    png: bytes
    numbers: Sequence[Numbers] = ()


def html_page(title: str, body: str, css: str = "", scripts: Sequence[str] = ()) -> str:
    """A whole document that needs nothing beside it; `title` is text, `body` HTML.

    `scripts`: names of files of this folder, beside the one that every page has.

    Example:
        >>> "<title>a &lt; b</title>" in html_page("a < b", "<p>words</p>")
        True
    """
    code = [f'<script type="module">{_file(name)}</script>' for name in ("hover.js", *scripts)]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{_file("page.css")}{css}</style></head><body>
{body}
{"".join(code)}
</body></html>
"""


def _file(name: str) -> str:
    return files("perturbkernel.report").joinpath(name).read_text(encoding="utf-8")


def html_figure(
    name: str,
    picture: Picture,
    caption: str = "",
    *,
    source: str = "",
    stage: str = "",
    below: str = "",
) -> str:
    """A picture above its caption and the tables of its numbers, which can be opened.

    `source`: the file with the picture; left out, the picture is inside the page. `stage`: HTML
    that a script may show in place of the picture; `below`: HTML after the caption.

    Example:
        >>> png = bytes(16) + (600).to_bytes(4) + (450).to_bytes(4)
        >>> html_figure("outputs", Picture(png), "What is seen.")[-47:]
        '<figcaption>What is seen.</figcaption></figure>'
    """
    said = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    if not source:
        source = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
    width = int.from_bytes(picture.png[16:20], "big")
    height = int.from_bytes(picture.png[20:24], "big")
    inches = width / _DOTS
    wide = inches > _WIDE_INCHES or width > _WIDE_RATIO * height
    size = f"width:{inches * _MOST:.0f}px;min-width:{inches * _LEAST:.0f}px"
    image = f'<img alt="{html.escape(name)}" style="{size}" src="{html.escape(source)}">'
    kind = ' class="wide"' if wide else ""
    return (
        f'<figure id="{html.escape(anchor(name))}"{kind}{_sheet(picture.numbers)}>'
        f'<div class="picture">{image}</div>'
        f"{stage}{said}{below}{_tables(picture.numbers)}</figure>"
    )


def anchor(name: str) -> str:
    """What a link to the figure of this name ends in.

    Example:
        >>> anchor("mnist_a/size/identity")
        'mnist_a_size_identity'
    """
    return re.sub(r"[^\w.-]", "_", name)


def html_contents(titles: Mapping[str, str]) -> str:
    """Links to figures, by name, a line for those whose titles share their first part; nothing for
    one figure.

    Example:
        >>> html_contents({"map/a": "map/a", "map/b": "map/b"})
        '<ul class="contents"><li>map: <a href="#map_a">a</a>, <a href="#map_b">b</a></li></ul>'
    """
    if len(titles) < 2:
        return ""
    lines: dict[str, list[str]] = {}
    for name, title in titles.items():
        group, *others = title.split("/")
        heading = f"{group}: " if others else ""
        words = html.escape(" ".join(others) or group)
        link = f'<a href="#{anchor(name)}">{words}</a>'
        lines.setdefault(heading, []).append(link)
    items = []
    for heading, links in lines.items():
        listed = ", ".join(links)
        items.append(f"<li>{html.escape(heading)}{listed}</li>")
    listed = "".join(items)
    return f'<ul class="contents">{listed}</ul>'


def _sheet(numbers: Sequence[Numbers]) -> str:
    """The pictures of all rows below each other, as an attribute: one PNG is smaller than many."""
    pictures = [picture for each in numbers for picture in each.pictures]
    if not pictures:
        return ""
    from PIL import Image  # slow to import

    height, width, *_ = pictures[0].shape
    file = io.BytesIO()
    Image.fromarray(np.concatenate(pictures)).save(file, "png")
    encoded = base64.b64encode(file.getvalue()).decode()
    return f' data-tile="{width},{height}" data-sheet="data:image/png;base64,{encoded}"'


def _tables(numbers: Sequence[Numbers]) -> str:
    if not numbers:
        return ""
    first = 0
    tables = ""
    for each in numbers:
        tables += _table(each, first)
        first += len(each.pictures)
    return f"<details><summary>Numbers of this figure</summary>{tables}</details>"


def _table(numbers: Numbers, first: int) -> str:
    """`first`: where its pictures begin on the sheet."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in numbers.head)
    rows = []
    for i, (texts, places) in enumerate(zip(numbers.rows, numbers.places, strict=True)):
        cells = "".join(map(_cell, texts, places))
        picture = f' data-picture="{first + i}"' if i < len(numbers.pictures) else ""
        rows.append(f"<tr{picture}>{cells}</tr>")
    caption = f"<caption>{html.escape(numbers.title)}</caption>" if numbers.title else ""
    return f"<table>{caption}<tr>{head}</tr>{''.join(rows)}</table>"


def _cell(text: str, place: tuple[int, int] | None) -> str:
    at = "" if place is None else f' data-at="{place[0]},{place[1]}"'
    return f"<td{at}>{html.escape(text)}</td>"


def html_settings(settings: Mapping[str, Any]) -> str:
    """A table of names and values, both in words.

    Example:
        >>> html_settings({"n_train": 800, "versions": {"jax": "0.8"}, "bounds": None})[7:58]
        '<tr><td>training points</td><td>800</td></tr><tr><t'
    """
    rows = []
    for name, value in settings.items():
        rows.append((_WORDS.get(name, name.replace("_", " ")), _in_words(value)))
    return html_table(rows)


def _in_words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_in_words(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_in_words, value)) or "none"
    return str(value)
