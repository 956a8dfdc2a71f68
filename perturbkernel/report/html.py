"""Pages: whole documents that need nothing beside them."""

import base64
import html
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

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
    """A whole document that needs nothing beside it; `title` is text, `body` HTML.

    Example:
        >>> "<title>a &lt; b</title>" in html_page("a < b", "<p>words</p>")
        True
    """
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title><style>{_CSS}{css}</style></head><body>
{body}
</body></html>
"""


def html_table(
    rows: Iterable[Sequence[Any]], head: Sequence[str] = (), kinds: Iterable[str] = ()
) -> str:
    """A table of cells of any kind, which are escaped; `kinds` are classes, one per row.

    Example:
        >>> html_table([("n", 3)])
        '<table><tr><td>n</td><td>3</td></tr></table>'
    """
    rows = list(rows)
    kinds = list(kinds) or [""] * len(rows)
    body = [_html_row(cells, "td", kind) for cells, kind in zip(rows, kinds, strict=True)]
    top = _html_row(head, "th") if head else ""
    return f"<table>{top}{''.join(body)}</table>"


def _html_row(cells: Iterable[Any], tag: str, kind: str = "") -> str:
    texts = [html.escape(str(cell)) for cell in cells]
    inner = [f"<{tag}>{text}</{tag}>" for text in texts]
    attribute = f' class="{kind}"' if kind else ""
    return f"<tr{attribute}>{''.join(inner)}</tr>"


def html_figure(name: str, picture: bytes, caption: str = "") -> str:
    """A PNG inside the page, above its caption.

    Example:
        >>> html_figure("outputs", b"bytes of a PNG", "What is seen.")[-47:]
        '<figcaption>What is seen.</figcaption></figure>'
    """
    said = ""
    if caption:
        said = f"<figcaption>{html.escape(caption)}</figcaption>"
    encoded = base64.b64encode(picture).decode()
    image = f'<img alt="{html.escape(name)}" src="data:image/png;base64,{encoded}">'
    return f"<figure>{image}{said}</figure>"


def text_row(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The lines of one row of a table on the terminal, each cell wrapped to its width.

    Example:
        >>> text_row(("a long name", "0.98"), (6, 4))
        ['a long  0.98', 'name']
    """
    wrapped = []
    for cell, width in zip(cells, widths, strict=True):
        lines = textwrap.wrap(cell, max(width, 1))
        wrapped.append(lines)
    height = max(1, *map(len, wrapped))
    columns = []
    for lines, width in zip(wrapped, widths, strict=True):
        filled = lines + [""] * (height - len(lines))
        columns.append([line.ljust(width) for line in filled])
    return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
