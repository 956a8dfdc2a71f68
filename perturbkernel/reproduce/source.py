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


class _Contents(NamedTuple):
    """Of a module: every import, also in its functions, with relative ones resolved; names that it
    reads; a hash of what it executes.
    """

    imports: tuple[_Import, ...]
    used: frozenset[str]
    executed: str


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
        content = _contents(file, name)
        line = f"{name}\n{content.executed}\n"
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
    followed: set[_Import] = set()
    while waiting:
        reached = waiting.pop()
        file = _file(package, reached.module)
        if reached in seen or file is None:
            continue
        seen.add(reached)
        found[reached.module] = file
        # Most modules import the same names, and each is looked for in files.
        imports = set(_imports(file, reached.module, only_used=not reached.whole))
        new = imports - followed
        followed |= new
        for one in new:
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


def _contents(file: Path, module: str) -> _Contents:
    """What the file holds now: what is cached is for one version of it."""
    modified = file.stat().st_mtime_ns
    return _read(file, modified, module)


@functools.lru_cache(maxsize=512)
def _read(file: Path, modified: int, module: str) -> _Contents:
    # The tree goes when this returns: the garbage collector would pass through all of them again
    # and again, which takes longer than parsing.
    text = file.read_bytes()
    tree = ast.parse(text, str(file))
    walk = ast.walk(tree)
    nodes = list(walk)
    is_init = file.name == "__init__.py"
    imports = _all_imports(nodes, module, is_init)
    used = _used_names(nodes)
    executed = _executed(tree)
    content = executed.encode()
    digest = hashlib.sha256(content).hexdigest()
    return _Contents(imports, used, digest)


def _imports(file: Path, module: str, only_used: bool) -> Sequence[_Import]:
    """Every import in the module; or those whose name the module uses, as what it only passes on
    cannot change what it computes.
    """
    contents = _contents(file, module)
    if not only_used:
        return contents.imports
    return [one for one in contents.imports if one.alias in contents.used]


def _all_imports(nodes: list[ast.AST], module: str, is_init: bool) -> tuple[_Import, ...]:
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            for name in node.names:
                top, *_ = name.name.split(".")  # `import a.b` binds a
                binds = name.asname or top
                found.append(_Import(name.name, None, binds))
        elif isinstance(node, ast.ImportFrom):
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


def _used_names(nodes: list[ast.AST]) -> frozenset[str]:
    """Names that a module reads. A string that is no docstring may be an annotation: what it
    mentions counts.
    """
    used = {"*"}
    bare = set()
    for node in nodes:
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


def _executed(node: Any) -> str:
    """A syntax tree in words: without positions, docstrings and fields that are empty, which differ
    between versions of Python.
    """
    if isinstance(node, list):
        entries = map(_executed, node)
        inside = ", ".join(entries)
        return f"[{inside}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    kind = type(node).__name__
    documented = _has_docstring(node)
    parts = [f"'{kind}'"]
    for name in node._fields:
        value: Any = getattr(node, name, None)
        if documented and name == "body":
            value = value[1:]
        if value in (None, []):
            continue
        executed = _executed(value)
        part = f"('{name}', {executed})"
        parts.append(part)
    inside = ", ".join(parts)
    return f"[{inside}]"


def _has_docstring(node: ast.AST) -> bool:
    if not isinstance(node, _DOCUMENTED):
        return False
    return ast.get_docstring(node, clean=False) is not None
