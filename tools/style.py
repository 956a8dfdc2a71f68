"""How readable the text is, in numbers: `python tools/style.py [FOLDER ...]`, or `make style`.

For each folder: expressions and statements per line of code, lines over 100 characters, comments,
functions over 60 lines of code, files over 400 lines, and tuples unpacked from a generator.
Docstrings count neither as code nor toward the length of a function. Exit status 1 if a limit is
exceeded.
"""

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

NODES_A_LINE = 5.5
LINE, FUNCTION, FILE = 100, 60, 400

_NOT_CODE = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}


@dataclass
class Style:
    """What was counted in one folder, and what exceeds a limit."""

    lines: int = 0
    code: int = 0
    nodes: int = 0
    comments: int = 0
    excesses: list[str] = field(default_factory=list)

    @property
    def nodes_a_line(self) -> float:
        return self.nodes / max(self.code, 1)


def docstrings(tree: ast.Module) -> Iterator[ast.Expr]:
    """The statements that are docstrings."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            assert isinstance(first, ast.Expr)
            yield first


def code_lines(source: str, tree: ast.Module) -> tuple[set[int], int]:
    """The numbers of the lines that hold code, and how many comments there are."""
    used: set[int] = set()
    comments = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments += 1
        if token.type not in _NOT_CODE:
            used |= set(range(token.start[0], token.end[0] + 1))
    for docstring in docstrings(tree):
        used -= set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return used, comments


def measure(folder: Path) -> Style:
    """Counts every Python file below `folder`."""
    style = Style()
    for path in sorted(folder.rglob("*.py")):
        source = path.read_text()
        tree = ast.parse(source)
        lines = source.splitlines()
        used, comments = code_lines(source, tree)
        style.lines += len(lines)
        style.code += len(used)
        style.comments += comments
        if len(lines) > FILE:
            style.excesses.append(f"{path}: {len(lines)} lines")
        for number, line in enumerate(lines, 1):
            if len(line) > LINE:
                style.excesses.append(f"{path}:{number}: {len(line)} characters")
        for node in ast.walk(tree):
            style.nodes += isinstance(node, ast.expr | ast.stmt)
            style.excesses += _excesses(node, used, path)
    return style


def _excesses(node: ast.AST, used: set[int], path: Path) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        body = range(node.body[0].lineno, (node.end_lineno or 0) + 1)
        length = len(used.intersection(body))
        if length > FUNCTION:
            return [f"{path}:{node.lineno}: {node.name} has {length} lines of code"]
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.GeneratorExp):
        return []
    if any(isinstance(target, ast.Tuple) for target in node.targets):
        return [f"{path}:{node.lineno}: a tuple is unpacked from a generator"]
    return []


def main(folders: list[str]) -> int:
    """Prints a row for each folder, then what exceeds a limit."""
    failed = False
    for name in folders or ["perturbkernel"]:
        style = measure(Path(name))
        failed |= bool(style.excesses) or style.nodes_a_line >= NODES_A_LINE
        comments = 100 * style.comments / max(style.lines, 1)
        print(
            f"{name}: {style.nodes_a_line:.2f} expressions and statements a line of code "
            f"(below {NODES_A_LINE}), {comments:.1f} % comments, {len(style.excesses)} excesses"
        )
        print(*style.excesses, sep="\n", end="\n" if style.excesses else "")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
