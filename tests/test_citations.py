"""Every number of the theory that the package, the manual or `verify` cites is a section of
docs/theory.md, and what that page says of its checks is true.
"""

import importlib.util
import re
from pathlib import Path

import pytest

from perturbkernel import theory, verify
from perturbkernel.display import html_table
from perturbkernel.verify import page

ROOT = Path(__file__).parent.parent
THEORY = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")


def load_hooks():
    spec = importlib.util.spec_from_file_location("manual_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = load_hooks()
ANCHORS = HOOKS.numbered_anchors()


def cited(text: str) -> list[str]:
    citations = HOOKS.CITATION.finditer(text)
    return [number for one in citations for number in HOOKS.NUMBER.findall(one[0])]


def unknown(text: str) -> list[str]:
    return [number for number in cited(text) if number not in ANCHORS]


def sections() -> dict[str, str]:
    """Number -> text of its section."""
    pieces = re.split(r"^##+ (.*)$", THEORY, flags=re.M)
    return {
        heading.split()[0]: body for heading, body in zip(pieces[1::2], pieces[2::2], strict=True)
    }


def test_every_citation_has_a_section():
    kinds = ("perturbkernel/**/*.py", "docs/**/*.md", "examples/*.py", "benchmarks/*.py", "*.md")
    files = [file for kind in kinds for file in ROOT.glob(kind) if file.name != "theory.md"]
    texts = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}
    lost = {name: numbers for name, text in texts.items() if (numbers := unknown(text))}
    assert not lost
    assert sum(len(cited(text)) for text in texts.values()) > 150


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("on the gradient. Theory:\n    5.2, 5.4(ii), 13.9.", ["5.2", "5.4", "13.9"]),
        ("(theory: sections 0.3 to 0.5).", ["0.3", "0.5"]),
        ("Theory: 1.3 (i) to (iii), 13.11.", ["1.3", "13.11"]),
        ("Theory: 1.3 (1.4), 13.11.", ["1.3", "1.4", "13.11"]),
        ("Theory: 2.1'. Theory: 3.5, S2.", ["2.1'", "3.5", "S2"]),
        ("which is theory 2.2 and 2.3 with", ["2.2", "2.3"]),
        ("(theory:\n1.3 and section 7)", ["1.3", "7"]),
        ("Checks of section 12: what is random", ["12"]),
        ("Theory: 1.1. For a rate of 0.1, 3 steps.", ["1.1"]),
        ("Matrix Computations, sections 10.1 and 9.1;", []),
        ("theory: (low, high), the powers", []),
    ],
)
def test_citations_are_read_as_they_are_written(text, numbers):
    assert cited(text) == numbers


def test_unknown_numbers_are_found():
    assert unknown("Theory: 3.2, 3.9, 2.1'. And theory: section 9, S3.") == ["3.9", "9", "S3"]


def test_results_of_verify_lead_to_the_section_that_names_them():
    found = sections()
    for check in verify.checks():
        assert page.theory_link(check.id) == "theory.html#" + ANCHORS[check.id]
        home = "1.4" if check.name == "1.3 (1.4)" else check.id
        checked = found[home].partition("*Checked by*")[2]
        assert re.search(rf"`verify` [^`]*{re.escape(check.id)}", checked), check.name


def test_the_page_of_verify_links_the_number_of_each_row_and_nothing_else():
    rows = [("3.2 gates", "no flip < 0.5", "0.44"), ("2.1'", "all entries", "0.24")]
    table = page._link_numbers(html_table(rows, ("result", "said", "ratio"), ("holds", "fails")))
    links = re.findall(r'<a href="([^"]*)">([^<]*)</a>', table)
    assert links == [("theory.html#s3-2", "3.2"), ("theory.html#s2-1-prime", "2.1&#x27;")]
    assert table.count("<td>0.44</td>") == 1


def test_the_package_says_where_its_theory_is():
    assert theory.__doc__ is not None and "docs/theory.md" in theory.__doc__


def test_tests_named_as_checks_exist():
    tests = "".join(file.read_text(encoding="utf-8") for file in ROOT.glob("tests/**/*.py"))
    named = set(re.findall(r"`(test_\w+)`", THEORY))
    assert len(named) > 20
    assert not [name for name in named if f"def {name}(" not in tests]


def test_every_section_has_a_proof_or_says_what_it_is():
    without = [
        number for number, text in sections().items() if "." in number and "*Proof.*" not in text
    ]
    conditions = [number for number in ANCHORS if number.startswith("13.")]
    estimates = ["14.6", "16.1", "16.2", "16.3"]
    assert without == ["7.4", "8.10", "12.2", *conditions, *estimates]
