"""Pages: whole documents that need nothing beside them."""

import base64
import html

# A picture wider than this many times its height gets a row of its own.
_WIDE = 2.2
# One design for every page: readable at 390 and at 1,400 pixels, light and dark. Pictures keep the
# white ground that they were drawn on.
_CSS = """
:root { color-scheme: light dark; --ground: #fff; --text: #1f2328; --soft: #59636e;
  --line: #d1d9e0; --code: #f3f4f6; --good: #00694c; --bad: #b34700; }
@media (prefers-color-scheme: dark) { :root { --ground: #15181c; --text: #e6e9ec;
  --soft: #a3adb8; --line: #3a424b; --code: #23282e; --good: #3fcf9f; --bad: #ff9257; } }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto;
  padding: 0 1rem; color: var(--text); background: var(--ground); }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p, li { max-width: 48rem; }
a { color: inherit; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem;
  display: block; max-width: 100%; overflow-x: auto; }
th, td { text-align: left; padding: .3rem 1.2rem .3rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }
.figures { display: grid; gap: 1.5rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
figure { margin: 1.5rem 0; } .figures figure { margin: 0; }
.figures { margin-top: 1.5rem; } .figures .wide { grid-column: 1 / -1; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 46rem; margin-top: .4rem; }
code { background: var(--code); padding: .1rem .3rem; border-radius: 4px;
  overflow-wrap: anywhere; }
details { margin-top: 1.5rem; } summary { cursor: pointer; }
"""


def html_page(title: str, body: str, css: str = "") -> str:
    """A whole document that needs nothing beside it; `title` is text, `body` HTML.

    Example:
        >>> "<title>a &lt; b</title>" in html_page("a < b", "<p>words</p>")
        True
    """
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{_CSS}{css}</style></head><body>
{body}
</body></html>
"""


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
    kind = ' class="wide"' if _is_wide(picture) else ""
    return f"<figure{kind}>{image}{said}</figure>"


def _is_wide(picture: bytes) -> bool:
    """Whether a PNG is so wide that it needs the whole page; its header has width and height."""
    width = int.from_bytes(picture[16:20], "big")
    height = int.from_bytes(picture[20:24], "big")
    return width > _WIDE * height
