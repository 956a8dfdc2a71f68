"""What the manual needs beside MkDocs: its version, formulas, as MathML and in plain text, the
pictures of examples/, and links from every citation of the theory to its place in theory.md.
"""

import html
import logging
import re
import unicodedata
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.extensions.toc import slugify
from markdown.inlinepatterns import SimpleTextInlineProcessor
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).parent.parent
NO_BREAK = "\N{NO-BREAK SPACE}"
FORMULA = re.compile(r'<(?:span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</(?:span|div)>', re.S)
log = logging.getLogger("mkdocs.hooks")  # its warnings count

# Numbers of theory.md: "3", "3.2", "2.1'", "S1"; and "Theory: 1.3 (ii), 7.2 and 13.5" or "section
# 8" in a docstring or page. ", section 9" is that of a book.
NUMBER = re.compile(r"(?<![\w.])(?:S\d|\d{1,2}(?:\.\d{1,2}'?)?)(?!\w)")
_PART = r"(?:\s?\((?:\d\.\d|[iv]+)\)(?:\s+to\s+\([iv]+\))?)?"
_CITED = NUMBER.pattern + _PART
CITATION = re.compile(
    r"(?:\b[Tt]heory:?\s+(?:sections?\s+)?|(?<!,\s)\bsections?\s+)"
    rf"{_CITED}(?:(?:,|,?\s+and|\s+to)\s+(?:sections?\s+)?{_CITED})*"
)


def anchor(number: str) -> str:
    """Of a numbered heading in theory.md: "3.2" has s3-2, "2.1'" s2-1-prime, "S1" structure-1."""
    kind = "structure-" if number.startswith("S") else "s"
    return kind + number.removeprefix("S").replace(".", "-").replace("'", "-prime")


def numbered_anchors() -> dict[str, str]:
    """Number -> anchor, of all headings of theory.md that have a number."""
    text = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    headings = re.findall(rf"^##+ ({NUMBER.pattern}) ", text, re.M)
    return {number: anchor(number) for number in headings}


def _heading_anchor(heading: str, separator: str) -> str:
    number = NUMBER.match(heading)
    return anchor(number[0]) if number else slugify(heading, separator)


class PlainFormulas(Extension):
    """In docstrings and pages <x, z> is an inner product and no tag, and (a)_+ (b)_+ is not
    emphasised.
    """

    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.deregister("html")
        # Emphasis has 60.
        md.inlinePatterns.register(SimpleTextInlineProcessor("(_)"), "underscore", 65)


class SharedEntries(griffe.Extension):
    """An entry "n, m: how many" describes both: its name is "n, m", m is no type of n, and () is
    none either. What "Example:" heads is code, as the plural says to the parser.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
            shared = re.compile(r"^( +)([a-z]\w*(?:, \w+)+):", re.M)
            obj.docstring.value = shared.sub(
                lambda m: m[1] + m[2].replace(" ", NO_BREAK) + " ():", text
            )


def _mathml(formula: str, display: str) -> str:
    """MathML as browsers take it: they know no letter variants but the Unicode ones, and set a bar
    as an operator between two terms.
    """

    def letter(match: re.Match[str]) -> str:
        variant = match[2].upper()
        name = unicodedata.name(match[3]).removeprefix("LATIN ").replace("LETTER ", "")
        try:
            drawn = unicodedata.lookup(f"MATHEMATICAL {variant} {name}")
        except KeyError:  # the few that are older
            drawn = unicodedata.lookup(f"{variant} {name}")
        return f"<{match[1]}>{drawn}</{match[1]}>"

    drawn = convert(formula, display=display)
    variants = r'<(m[in]) mathvariant="(double-struck|script|bold)">(\w)</\1>'
    drawn = re.sub(variants, letter, drawn)
    return re.sub(r"<mo([^>]*)>(&#x0007C;|\|)", r'<mo\1 lspace="0" rspace="0">\2', drawn)


def version() -> str:
    """Of the package beside this folder."""
    source = (ROOT / "perturbkernel" / "_version.py").read_text(encoding="utf-8")
    return source.split('"')[1]


@event_priority(100)  # before mkdocstrings takes the list
def on_config(config):
    """The header of every page, and its title, name the version that the manual is for."""
    config.site_name = f"{config.site_name} {version()}"
    config.markdown_extensions.append(PlainFormulas())
    config.mdx_configs["toc"]["slugify"] = _heading_anchor
    return config


def on_files(files, config):
    """Pictures that examples write stay beside them, and so does the notebook; pages name them as
    ../examples/x.png, which GitHub shows too.
    """
    folder = ROOT / "examples"
    for path in sorted([*folder.glob("*.png"), *folder.glob("*.ipynb")]):
        files.append(File.generated(config, f"examples/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    return markdown.replace("](../examples/", "](examples/")


def _link_citations(content: str, page) -> str:
    """Cited numbers of the theory lead to their sections. Only text is touched, no tags."""
    known = numbered_anchors()
    manual = get_relative_url("theory.html", page.url)

    def link(number: re.Match[str]) -> str:
        if number[0] not in known:
            log.warning(f"{page.file.src_uri}: theory.md has no section {number[0]}")
            return number[0]
        return f'<a href="{manual}#{known[number[0]]}">{number[0]}</a>'

    parts = re.split(r"(<[^>]*>)", content)
    parts[::2] = [
        CITATION.sub(lambda cited: NUMBER.sub(link, cited[0]), text) for text in parts[::2]
    ]
    return "".join(parts)


def on_page_content(content, page, config, files):
    r"""\(inline\) and \[displayed\] LaTeX as MathML, which browsers draw themselves; citations of
    the theory as links.
    """
    if page.file.src_uri != "theory.md":
        content = _link_citations(content, page)

    def formula(match: re.Match[str]) -> str:
        kind = "block" if match[1] == "[" else "inline"
        drawn = _mathml(html.unescape(match[2]).strip(), kind)
        if "\\" in drawn:
            log.warning(f"{page.file.src_uri}: a command in the formula {match[2]} is not known")
        return drawn

    return FORMULA.sub(formula, content)
