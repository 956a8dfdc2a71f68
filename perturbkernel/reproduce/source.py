"""What a computation consists of: a hash over the modules that it imports, whatever they are called
and wherever they lie in the package.

Only what is executed counts: comments, docstrings and layout do not, nor do imports that a module
passes on without using them.
"""

import ast
import functools
import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple


class _Import(NamedTuple):
    """`from module import name as alias`; or `import module as alias`, without a name."""

    module: str
    name: str | None
    alias: str


class _Reached(NamedTuple):
    """A module, and whether anything that it passes on may be used."""

    module: str
    whole: bool


def source_hash(package: Path, module: str) -> str:
    """A hash of the executable source of `module` and of what it imports, directly or not, from its
    package, whose folder is `package`; 16 hexadecimal digits.

    A module that is not in the package contributes nothing.
    """
    digest = hashlib.sha256()
    for name, file in sorted(modules(package, module).items()):
        digest.update(f"{name}\n{_content(file, file.stat().st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:16]


def modules(package: Path, module: str) -> dict[str, Path]:
    """Name -> file of `module` and of every module of the package that it imports, directly or
    not.

    Imports inside functions count. `from package import name` is followed to the module that
    defines the name: the rest of what an `__init__` gathers does not belong to the computation,
    unless the package itself is imported.
    """
    found: dict[str, Path] = {}
    waiting, seen = [_Reached(module, False)], set()
    while waiting:
        reached = waiting.pop()
        file = _file(package, reached.module)
        if reached in seen or file is None:
            continue
        seen.add(reached)
        found[reached.module] = file
        for one in _imports(file, reached.module, only_used=not reached.whole):
            waiting += _defining(package, one)
    return found


def _file(package: Path, module: str) -> Path | None:
    """Where a module of the package is; None for any other."""
    top, *parts = module.split(".")
    if top != package.name:
        return None
    path = package.joinpath(*parts)
    if parts and path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    init = path / "__init__.py"
    return init if init.is_file() else None


def _is_init(file: Path) -> bool:
    return file.name == "__init__.py"


@functools.lru_cache(maxsize=512)
def _tree(file: Path, modified: int) -> ast.Module:
    return ast.parse(file.read_bytes(), str(file))


def _imports(file: Path, module: str, only_used: bool) -> list[_Import]:
    """Every import in the module, relative ones resolved; or those whose name the module uses, as
    what it only passes on cannot change what it computes.
    """
    tree = _tree(file, file.stat().st_mtime_ns)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            # `import a.b` binds a.
            found += [_Import(a.name, None, a.asname or a.name.split(".")[0]) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(node, module, _is_init(file))
            found += [_Import(origin, a.name, a.asname or a.name) for a in node.names]
    if not only_used:
        return found
    used = _used_names(tree)
    return [one for one in found if one.alias in used]


def _origin(node: ast.ImportFrom, module: str, is_init: bool) -> str:
    """The module that is imported from."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    base = parts[: len(parts) - node.level + is_init]
    return ".".join([*base, *([node.module] if node.module else [])])


def _used_names(tree: ast.Module) -> set[str]:
    """Names that a module reads. A string that is no docstring may be an annotation: what it
    mentions counts.
    """
    used, bare = {"*"}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            bare.add(id(node.value))
        elif isinstance(node, ast.Name):
            used.add(node.id)
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare
        ):
            used.update(re.findall(r"\w+", node.value))
    return used


def _defining(package: Path, one: _Import) -> list[_Reached]:
    """Where an imported name may be defined."""
    if one.name is None or one.name == "*":
        return [_Reached(one.module, True)]
    submodule = f"{one.module}.{one.name}"
    if _file(package, submodule) is not None:
        return [_Reached(submodule, True)]
    file = _file(package, one.module)
    if file is None:
        return []
    # Not passed on: defined there, or found at run time by what is defined there.
    passed_on = [i for i in _imports(file, one.module, only_used=False) if i.alias == one.name]
    found = [reached for i in passed_on for reached in _defining(package, i)]
    return found or [_Reached(one.module, False)]


@functools.lru_cache(maxsize=512)
def _content(file: Path, modified: int) -> str:
    """A hash of what the module executes."""
    return hashlib.sha256(repr(_executed(_tree(file, modified))).encode()).hexdigest()


def _executed(node: Any) -> Any:
    """A syntax tree as nested lists: without positions, docstrings and fields that are empty, which
    differ between versions of Python.
    """
    if isinstance(node, list):
        return [_executed(entry) for entry in node]
    if not isinstance(node, ast.AST):
        return node
    fields = dict(ast.iter_fields(node))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = fields["body"][1:]
    return [
        type(node).__name__,
        *((name, _executed(value)) for name, value in fields.items() if value not in (None, [])),
    ]
