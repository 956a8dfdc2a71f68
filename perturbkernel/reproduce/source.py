"""What a computation consists of: a hash over the modules that it imports, whatever they are called
and wherever they lie in the package.

Only what is executed counts: comments, docstrings and layout do not, nor do imports that a module
passes on without using them.
"""

import ast
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

# What may begin with a docstring.
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


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
    found = modules(package, module)
    for name in sorted(found):
        file = found[name]
        content = _content(file, _modified(file))
        line = f"{name}\n{content}\n"
        digest.update(line.encode())
    return digest.hexdigest()[:16]


def modules(package: Path, module: str) -> dict[str, Path]:
    """Name -> file of `module` and of every module of the package that it imports, directly or
    not.

    Imports inside functions count. `from package import name` is followed to the module that
    defines the name: the rest of what an `__init__` gathers does not belong to the computation,
    unless the package itself is imported.
    """
    found: dict[str, Path] = {}
    waiting = [_Reached(module, whole=False)]
    seen = set()
    while waiting:
        reached = waiting.pop()
        file = _file(package, reached.module)
        if reached in seen or file is None:
            continue
        seen.add(reached)
        found[reached.module] = file
        imports = _imports(file, reached.module, only_used=not reached.whole)
        for one in imports:
            waiting += _defining(package, one)
    return found


def _file(package: Path, module: str) -> Path | None:
    """Where a module of the package is; None for any other."""
    top, *parts = module.split(".")
    if top != package.name:
        return None
    path = package.joinpath(*parts)
    single = path.with_suffix(".py")
    if parts and single.is_file():
        return single
    init = path / "__init__.py"
    return init if init.is_file() else None


def _modified(file: Path) -> int:
    """When the file was last changed, in nanoseconds: what is cached is for this version of it."""
    return file.stat().st_mtime_ns


@functools.lru_cache(maxsize=512)
def _tree(file: Path, modified: int) -> ast.Module:
    text = file.read_bytes()
    return ast.parse(text, str(file))


def _imports(file: Path, module: str, only_used: bool) -> Sequence[_Import]:
    """Every import in the module, relative ones resolved; or those whose name the module uses, as
    what it only passes on cannot change what it computes.
    """
    modified = _modified(file)
    found = _all_imports(file, modified, module)
    if not only_used:
        return found
    used = _used_names(file, modified)
    return [one for one in found if one.alias in used]


@functools.lru_cache(maxsize=512)
def _all_imports(file: Path, modified: int, module: str) -> tuple[_Import, ...]:
    """Every import in the module, also in its functions."""
    found = []
    for node in ast.walk(_tree(file, modified)):
        if isinstance(node, ast.Import):
            for name in node.names:
                top, *_ = name.name.split(".")  # `import a.b` binds a
                binds = name.asname or top
                found.append(_Import(name.name, None, binds))
        elif isinstance(node, ast.ImportFrom):
            is_init = file.name == "__init__.py"
            origin = _origin(node, module, is_init)
            for name in node.names:
                binds = name.asname or name.name
                found.append(_Import(origin, name.name, binds))
    return tuple(found)


def _origin(node: ast.ImportFrom, module: str, is_init: bool) -> str:
    """The module that is imported from."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    # One dot is the package of a module; an `__init__` is its package itself.
    kept = len(parts) - node.level + is_init
    origin = parts[:kept]
    if node.module:
        origin.append(node.module)
    return ".".join(origin)


@functools.lru_cache(maxsize=512)
def _used_names(file: Path, modified: int) -> frozenset[str]:
    """Names that a module reads. A string that is no docstring may be an annotation: what it
    mentions counts.
    """
    used = {"*"}
    bare = set()
    for node in ast.walk(_tree(file, modified)):
        if isinstance(node, ast.Expr):
            bare.add(id(node.value))
        elif isinstance(node, ast.Name):
            used.add(node.id)
        elif isinstance(node, ast.Constant) and id(node) not in bare:
            words = node.value if isinstance(node.value, str) else ""
            mentioned = re.findall(r"\w+", words)
            used.update(mentioned)
    return frozenset(used)


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
    found = []
    for passed_on in _imports(file, one.module, only_used=False):
        if passed_on.alias == one.name:
            found += _defining(package, passed_on)
    # Not passed on: defined there, or found at run time by what is defined there.
    return found or [_Reached(one.module, False)]


@functools.lru_cache(maxsize=512)
def _content(file: Path, modified: int) -> str:
    """A hash of what the module executes."""
    tree = _tree(file, modified)
    executed = repr(_executed(tree))
    digest = hashlib.sha256(executed.encode())
    return digest.hexdigest()


def _executed(node: Any) -> Any:
    """A syntax tree as nested lists: without positions, docstrings and fields that are empty, which
    differ between versions of Python.
    """
    if isinstance(node, list):
        return [_executed(entry) for entry in node]
    if not isinstance(node, ast.AST):
        return node
    fields = dict(ast.iter_fields(node))
    if _has_docstring(node):
        fields["body"] = fields["body"][1:]
    kept = []
    for name, value in fields.items():
        if value not in (None, []):
            executed = _executed(value)
            kept.append((name, executed))
    kind = type(node).__name__
    return [kind, *kept]


def _has_docstring(node: ast.AST) -> bool:
    if not isinstance(node, _DOCUMENTED):
        return False
    return ast.get_docstring(node, clean=False) is not None
