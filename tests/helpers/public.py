"""What is public: the names of a module that other files may import from it."""

import ast
import itertools
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def module_file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    found = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in found if file.exists()), None)


def public_names(module: str) -> dict[str, str]:
    """Name -> where it is defined, of a module and of the public modules in it: `X as X` imports
    and definitions.
    """
    file, names = module_file(module), {}
    assert file is not None, module
    body = ast.parse(file.read_text(encoding="utf-8")).body
    # What loads when it is first used is imported for type checkers alone.
    branches = [node.body for node in body if isinstance(node, ast.If)]
    for node in [*body, *itertools.chain(*branches)]:
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith("perturbkernel")
        ):
            for alias in node.names:
                if alias.asname == alias.name and not alias.name.startswith("_"):
                    target = f"{node.module}.{alias.name}"
                    is_module = module_file(target) is not None and node.module == module
                    names |= (
                        public_names(target) if is_module else {f"{module}.{alias.name}": target}
                    )
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            names[f"{module}.{node.name}"] = f"{module}.{node.name}"
    return names
