"""Pages: whole documents that need nothing beside them."""

import base64
import html
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from perturbkernel.report.statements import sentences as sentences

_CSS = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { text-align: left; padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid #ddd;
  vertical-align: top; }
figure { margin: 1.5rem 0; } img { max-width: 100%; }
figcaption { color: #555; font-size: .9rem; max-width: 46rem; }
code { background: #f4f4f4; padding: .1rem .3rem; overflow-wrap: anywhere; }
details { margin-top: 1.5rem; }
"""


def html_page(title: str, body: str, css: str = "") -> str:
    """A whole document that needs nothing beside it; `title` is text, `body` HTML."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title><style>{_CSS}{css}</style></head><body>
{body}
</body></html>
"""


def html_table(
    rows: Iterable[Sequence[Any]], head: Sequence[str] = (), kinds: Iterable[str] = ()
) -> str:
    """Cells of any kind, escaped; `kinds` are classes, one a row."""

    def row(cells, tag="td", kind=""):
        said = f' class="{kind}"' if kind else ""
        return (
            f"<tr{said}>"
            + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells)
            + "</tr>"
        )

    rows = list(rows)
    kinds = list(kinds) or [""] * len(rows)
    body = "".join(row(cells, kind=kind) for cells, kind in zip(rows, kinds, strict=True))
    return f"<table>{row(head, 'th') if head else ''}{body}</table>"


def html_figure(name: str, picture: bytes, caption: str = "") -> str:
    """A PNG inside the page."""
    said = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    encoded = base64.b64encode(picture).decode()
    image = f'<img alt="{html.escape(name)}" src="data:image/png;base64,{encoded}">'
    return f"<figure>{image}{said}</figure>"


def text_row(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """One row of a table on the terminal, as many lines as its longest cell takes when wrapped to
    `widths`.
    """
    wrapped = [
        textwrap.wrap(cell, max(width, 1)) or [""]
        for cell, width in zip(cells, widths, strict=True)
    ]
    padded = [
        [
            (cell[i] if i < len(cell) else "").ljust(width)
            for cell, width in zip(wrapped, widths, strict=True)
        ]
        for i in range(max(map(len, wrapped)))
    ]
    return ["  ".join(line).rstrip() for line in padded]
