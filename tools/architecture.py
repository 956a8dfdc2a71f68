"""Draws how the package's folders import each other into ARCHITECTURE.md, from the imports.

`python tools/architecture.py` writes the drawing between its two marks; with `--check` it only
says, by exit status 1, that the drawing is out of date.
"""

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "perturbkernel"
PAGE = ROOT / "ARCHITECTURE.md"
BEGIN, END = "<!-- drawing: begin -->", "<!-- drawing: end -->"

# Folders and single modules, each level importing only from those below it.
LEVELS = (
    ("cli",),
    ("reproduce",),
    ("verify", "sklearn"),
    ("learning",),
    ("theory",),
    ("networks", "attacks"),
    ("training",),
    ("kernels", "metrics"),
    ("engine", "report", "data"),
    ("checks", "display"),
    ("arrays", "compilation_cache", "files", "interrupts", "meshes", "words"),
)


def room(module: str) -> str:
    """The folder, or single module, that a dotted module below the package belongs to."""
    return module.split(".")[1] if module.count(".") else ""


def imports_of(path: Path) -> set[str]:
    """The rooms that a file imports from, its own left out; type checkers' imports included."""
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module == "perturbkernel":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("perturbkernel."):
                found.add(room(node.module))
        elif isinstance(node, ast.Import):
            found |= {room(a.name) for a in node.names if a.name.startswith("perturbkernel.")}
    rooms = {name for level in LEVELS for name in level}
    return (found & rooms) - {own}


def edges() -> dict[str, set[str]]:
    """Room -> the rooms that it imports from."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if not own.startswith("_"):
            found[own] |= imports_of(path)
    return dict(found)


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The edges that no longer way implies: the drawing shows these."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        left = list(graph.get(start, ()))
        while left:
            here = left.pop()
            if here not in seen:
                seen.add(here)
                left += graph.get(here, ())
        return seen

    return {
        source: {t for t in targets if not any(t in reach(o) for o in targets - {t})}
        for source, targets in graph.items()
    }


def drawing() -> str:
    """The graph in Mermaid's language, which code hosts and the manual draw."""
    graph = reduced(edges())
    lines = ["```mermaid", "flowchart TD"]
    for level in LEVELS:
        lines += [f"    {name}" for name in level if name in graph]
    for source in sorted(graph):
        lines += [f"    {source} --> {target}" for target in sorted(graph[source])]
    return "\n".join([*lines, "```"])


def main(arguments: list[str]) -> int:
    """Writes the drawing, or checks it."""
    page = PAGE.read_text()
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.S)
    fresh = pattern.sub(f"{BEGIN}\n{drawing()}\n{END}", page)
    if "--check" in arguments:
        return int(fresh != page)
    PAGE.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
