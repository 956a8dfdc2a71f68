"""The manual: it builds without a warning, names everything public, and its code runs."""

import ast
import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path
from typing import NamedTuple

import pytest
from pages import assert_prints, output_after
from public import public_names

from perturbkernel import __version__
from perturbkernel.cli.main import build_parser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
FENCE = re.compile(
    r"(?:^<!-- (not run|quick|needs): (.*?) -->\n+)?^( *)```(\w+)\n(.*?)^\3```$", re.M | re.S
)


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--config-file",
        str(project / "mkdocs.yml"),
    ]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        [*command, "--site-dir", str(site)], capture_output=True, text=True, env=environment
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# --- the build ---


def test_pages_need_no_network(site):
    for page in site.glob("**/*.html"):
        assert not re.search(
            r'<(script|link|img|iframe)\b[^>]*(src|href)="(https?:)?//', text(page)
        ), page


def test_every_page_names_the_version(site):
    for page in ("index.html", "api/theory.html"):
        assert f"perturbkernel {__version__}" in text(site / page)


def test_examples_of_docstrings_are_shown_as_code(site):
    for page in (site / "api").glob("*.html"):
        assert "<blockquote>" not in text(page), page
    assert text(site / "api" / "theory.html").count("&gt;&gt;&gt; ") > 200


def test_formulas_are_drawn_by_the_browser(site):
    """In plain text too: what a docstring writes as an inner product is shown as one."""
    concepts, kernels = text(site / "concepts.html"), text(site / "api" / "kernels.html")
    assert concepts.count("<math") > 20 and "arithmatex" not in concepts
    assert "phi(&lt;w_i, x&gt; + b_i)" in kernels
    assert "(y_n k_n(z))_+ and (y_n k_n(z))_-" in text(site / "api" / "theory.html")


def test_formulas_use_letters_and_bars_that_browsers_draw(site):
    theory = text(site / "theory.html")
    assert 'mathvariant="double-struck"' not in theory and "\N{DOUBLE-STRUCK CAPITAL R}" in theory
    assert "\N{MATHEMATICAL SCRIPT CAPITAL Z}" in theory
    assert not re.search(r"<mo(?![^>]*rspace)[^>]*>(\||&#x0007C;)", theory)


def test_citations_lead_to_the_theory(site):
    """From the reference, the manual's pages, and to sections that are there."""
    theory, reference = text(site / "theory.html"), text(site / "api" / "theory.html")
    assert 'Theory: <a href="../theory.html#s12-1">12.1</a>' in reference
    assert 'href="theory.html#s3-4">3.4</a>' in text(site / "width.html")
    wanted = set(re.findall(r'theory\.html#([\w-]+)"', reference))
    assert len(wanted) > 30 and wanted <= set(re.findall(r'id="([\w-]+)"', theory))


# What a newcomer types for each of the twenty questions -> the page that answers it.
SEARCHES = {
    "What is epsilon": ("epsilon", "attacks"),
    "robust accuracy against epsilon": ("robust accuracy", "robustness"),
    "AutoAttack": ("autoattack", "attacks"),
    "certified radius": ("certified radius", "attacks"),
    "adversarial training": ("adversarial training", "robustness"),
    "Flax or Equinox model": ("flax", "own-data"),
    "attack a PyTorch model": ("pytorch", "own-data"),
    "kernel of a CNN": ("CNN", "architectures"),
    "random initialisation": ("initialisation", "finite"),
    "uncertainty": ("uncertainty", "own-data"),
    "ensemble": ("ensemble", "finite"),
    "export": ("export pytorch", "finite"),
    "learning rate": ("learning rate epochs", "solvers"),
    "CIFAR-10": ("cifar-10", "own-data"),
    "two classes": ("many classes", "classes"),
    "sweep": ("sweep", "cluster"),
    "learn nothing": ("learn nothing", "learn"),
    "NaN": ("nan", "troubleshooting"),
    "out of memory": ("out memory", "troubleshooting"),
    "GPU": ("gpu", "troubleshooting"),
}
FIRST_HITS = 8  # pages of hits that a reader looks at


@functools.cache  # the same sections for every query
def words_of(content: str, separator: str) -> list[str]:
    return re.split(separator, re.sub("<[^>]*>", " ", content).lower())


def searched_pages(index: dict, query: str) -> list[str]:
    """Pages in the order of the manual's search: sections with most of the words, those that have
    them in the title first, then those that have them most often.
    """
    separator = index["config"]["separator"]

    def rank(section: dict) -> tuple[float, ...]:
        title, body = (words_of(section[part], separator) for part in ("title", "text"))
        in_title = [sum(found.startswith(word) for found in title) for word in words]
        in_body = [sum(word in found for found in body) for word in words]
        found = sum(bool(a + b) for a, b in zip(in_title, in_body, strict=True))
        return found, sum(map(bool, in_title)), sum(in_body) / (10 + len(body))

    words = words_of(query, separator)
    ranks = [rank(section) for section in index["docs"]]
    hits = sorted(zip(ranks, index["docs"], strict=True), key=lambda hit: hit[0], reverse=True)
    pages = [section["location"].partition("#")[0] for found, section in hits if found[0] > 0]
    return list(dict.fromkeys(pages))


def test_search_answers_twenty_questions(site):
    """Each question of faq.md is found by its words, and so is the page that answers it."""
    questions = re.findall(r"^### (.+)$", text(ROOT / "docs" / "faq.md"), re.M)
    assert len(questions) == len(SEARCHES) == 20
    index = json.loads(text(site / "search" / "search_index.json"))
    for question, (part, (query, page)) in zip(questions, SEARCHES.items(), strict=True):
        assert part.lower() in question.lower()
        found = searched_pages(index, query)[:FIRST_HITS]
        assert "faq.html" in found, (query, found)
        assert f"{page}.html" in found, (query, found)


def test_an_answer_is_two_sentences_and_a_link():
    answers = re.split(r"^###? .+$", text(ROOT / "docs" / "faq.md"), flags=re.M)
    said = [re.sub(r"^```.*?^```", "", answer, flags=re.S | re.M) for answer in answers]
    for answer in (answer for answer in said[1:] if answer.strip()):
        prose, link = re.split(r"\s\[(?=[^]]+\]\([\w-]+\.md)", answer.strip(), maxsplit=1)
        sentences = re.findall(r"[.?!](?=\s|$)", re.sub(r"`[^`]*`", "", prose))
        assert len(sentences) == 2, prose
        assert link.endswith(")")


def test_entries_of_several_names_are_shown_as_such(site):
    """Neither with a name as the type of another, nor with the type of the entry before."""
    pages = (text(site / "api" / name) for name in ("kernels.html", "studies.html"))
    kernels, studies = (re.sub(r"\s+", " ", re.sub("<[^>]+>", "", page)) for page in pages)
    assert " n, m \N{EN DASH} how many" in kernels
    assert " median, worst \N{EN DASH} over draws" in studies


def test_the_build_refuses_what_is_broken(tmp_path):
    """All at once, since a build takes seconds."""
    reference = shutil.ignore_patterns("api")  # it takes most of a build and has no part in this
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=reference)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for name in ("perturbkernel", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    with open(tmp_path / "docs" / "index.md", "a") as page:
        page.write(
            "\n[a](nowhere.md) [b](concepts.md#nowhere) [c][perturbkernel.nowhere] $\\nowhere$\n"
            "\nTheory: 3.9.\n"
        )
    (tmp_path / "docs" / "orphan.md").write_text("# Not in the navigation\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    for complaint in (
        "nowhere.md",
        "#nowhere",
        "perturbkernel.nowhere",
        r"formula \\nowhere",
        "orphan.md",
        "no section 3.9",
    ):
        assert re.search(rf"WARNING.*{complaint}|- {complaint}", done.stderr), (
            complaint,
            done.stderr,
        )


# --- the API reference ---


def test_every_public_name_is_in_the_reference(site):
    names = public_names("perturbkernel") | public_names("perturbkernel.verify")
    assert len(names) > 100 and "perturbkernel.theory.bounds.kernel_bound" in names
    # The inventory by which other manuals refer to this one: four lines, then compressed lines of
    # "name role ...".
    lines = (
        zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4])
        .decode()
        .splitlines()
    )
    listed = {line.split(" ")[0] for line in lines}
    missing = {name for name, defined in names.items() if not {name, defined} & listed}
    assert not missing


# --- the gallery ---


def test_every_example_is_in_the_gallery_with_its_picture():
    gallery = text(ROOT / "docs" / "gallery.md")
    parts = re.split(r"^## ", gallery, flags=re.M)[1:]
    shown = set(re.findall(r"python examples/(\w+)\.py", gallery))
    assert shown == {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert all("](../examples/" in part and "```sh" in part for part in parts)
    code = [snippet.code for snippet in snippets(ROOT / "docs" / "gallery.md", "python")]
    assert len(code) == len(parts) + 1 and all(len(part.splitlines()) <= 40 for part in code)
    pages = gallery + "".join(text(page) for page in (ROOT / "docs").glob("*.md"))
    for picture in (ROOT / "examples").glob("*.png"):
        assert f"../examples/{picture.name})" in pages, picture.name


# --- the code on the pages ---


class Snippet(NamedTuple):
    line: int
    comment: str  # what the comment before it says
    argument: str
    code: str
    output: str | None  # in the ```text fence that follows


def snippets(page: Path, language: str) -> list[Snippet]:
    content = text(page)
    return [
        Snippet(
            content.count("\n", 0, match.start(5)),
            match[1] or "",
            match[2] or "",
            textwrap.dedent(match[5]),
            output_after(content, match.end()),
        )
        for match in FENCE.finditer(content)
        if match[4] == language
    ]


@pytest.mark.parametrize(
    "page", [p for p in PAGES[1:] if snippets(p, "python")], ids=lambda page: page.stem
)
def test_snippets_run(page, tmp_path, monkeypatch, capsys):
    """All of a page in one namespace; what the README has too, in tests/test_package.py.

    `<!-- quick: a -> b -->` before a snippet makes it smaller here, `<!-- not run: why -->` leaves
    it out. A ```text fence below a snippet is what it prints. `<!-- needs: package -->`: where
    that is installed; the output of pytest -rP says what ran.
    """
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "snippet"}
    said = []
    for line, comment, argument, code, shown in snippets(page, "python"):
        if comment == "not run" or code in text(PAGES[0]):
            continue
        if comment == "needs":
            there = importlib.util.find_spec(argument) is not None
            said.append(f"{page.name}:{line}: {argument} {'ran' if there else 'is not installed'}")
            if not there:
                ast.parse(code)
                continue
        if comment == "quick":
            for change in argument.split("; "):
                large, small = change.split(" -> ")
                assert large in code, f"{page.name}:{line}: nothing to replace by {small}"
                code = code.replace(large, small)
        # A traceback shows the page's line.
        exec(compile("\n" * line + code, str(page), "exec"), namespace)
        printed = capsys.readouterr().out
        for expected in re.findall(r"# prints (.+)", code):
            assert expected.strip() in printed, f"{page.name}:{line}"
        if shown is not None:
            assert_prints(shown, printed)
    print("\n".join(said))


@pytest.mark.parametrize(
    "page", [p for p in PAGES if snippets(p, "sh")], ids=lambda page: page.stem
)
def test_commands_exist(page):
    for line, _, _, code, _ in snippets(page, "sh"):
        for words in (shlex.split(command, comments=True) for command in code.splitlines()):
            if words[:1] == ["perturbkernel"]:
                try:
                    build_parser().parse_args(words[1:])
                except SystemExit as error:
                    assert error.code == 0, f"{page.name}:{line}: {shlex.join(words)}"
            elif words[:1] == ["python"] and words[1].endswith(".py") and "/" in words[1]:
                assert (ROOT / words[1]).is_file(), f"{page.name}:{line}: {words[1]}"
