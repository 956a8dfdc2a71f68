"""What a computation consists of: a hash over the modules that it imports, whatever they are called
and wherever they lie in the package.

Only what is executed counts: comments, docstrings and layout do not, nor do imports that a module
passes on without using them.
"""

import ast
import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class _Import(NamedTuple):
    """`from module import name as alias`; or `import module as alias`, without a name."""

    module: str
    name: str | None
    alias: str


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

    Imports inside functions count. An import from a package is followed to the module that defines
    the name: the rest of what an `__init__` gathers does not belong to the computation.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _file(package, name)
        if name in found or file is None:
            continue
        found[name] = file
        for one in _used_imports(_tree(file, file.stat().st_mtime_ns), name, _is_init(file)):
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


def _imports(tree: ast.Module, module: str, is_init: bool) -> Iterator[_Import]:
    """Every import in the module, relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                # `import a.b` binds a.
                bound = alias.asname or alias.name.split(".")[0]
                yield _Import(alias.name, None, bound)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            up = node.level - is_init
            base = parts[: len(parts) - up] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield _Import(origin, alias.name, alias.asname or alias.name)


def _used_imports(tree: ast.Module, module: str, is_init: bool) -> Iterator[_Import]:
    """Imports whose name the module uses; `as` re-exports that it does not use cannot change what it
    computes. A string that is no docstring may be an annotation: what it mentions counts as used.
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
    return (one for one in _imports(tree, module, is_init) if one.alias in used)


def _defining(package: Path, one: _Import) -> list[str]:
    """The modules in which an imported name may be defined."""
    if one.name is None:
        return [one.module]
    submodule = f"{one.module}.{one.name}"
    if _file(package, submodule) is not None:
        return [submodule]
    file = _file(package, one.module)
    if file is None or not _is_init(file):
        return [one.module]
    tree = _tree(file, file.stat().st_mtime_ns)
    passed_on = [i for i in _imports(tree, one.module, True) if one.name == i.alias and i.name]
    # Not passed on: defined there, or found at run time; then all that the `__init__` uses counts.
    return [module for i in passed_on for module in _defining(package, i)] or [one.module]


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
