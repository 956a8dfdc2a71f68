"""What the manual needs beside MkDocs: formulas, as MathML and in plain text, and the pictures of
examples/.
"""

import html
import logging
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import SimpleTextInlineProcessor
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
NO_BREAK = "\N{NO-BREAK SPACE}"
FORMULA = re.compile(r'<(?:span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</(?:span|div)>', re.S)
log = logging.getLogger("mkdocs.hooks")  # its warnings count


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
    none either.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            shared = re.compile(r"^( +)([a-z]\w*(?:, \w+)+):", re.M)
            obj.docstring.value = shared.sub(
                lambda m: m[1] + m[2].replace(" ", NO_BREAK) + " ():", obj.docstring.value
            )


@event_priority(100)  # before mkdocstrings takes the list
def on_config(config):
    config.markdown_extensions.append(PlainFormulas())
    return config


def on_files(files, config):
    """Pictures that examples write stay beside them; pages name them as ../examples/x.png, which
    GitHub shows too.
    """
    for path in sorted((ROOT / "examples").glob("*.png")):
        files.append(File.generated(config, f"examples/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    return markdown.replace("](../examples/", "](examples/")


def on_page_content(content, page, config, files):
    r"""\(inline\) and \[displayed\] LaTeX as MathML, which browsers draw themselves."""

    def formula(match: re.Match[str]) -> str:
        drawn = convert(
            html.unescape(match[2]).strip(), display="block" if match[1] == "[" else "inline"
        )
        if "\\" in drawn:
            log.warning(f"{page.file.src_uri}: a command in the formula {match[2]} is not known")
        return drawn

    return FORMULA.sub(formula, content)
