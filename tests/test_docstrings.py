"""The examples in docstrings: everything public has one, and each gives what it says."""

import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import perturbkernel

# The package's own folder: tests of the benchmarks add the top of the checkout to its path.
FOLDER = str(Path(perturbkernel.__file__).parent)
FOUND = pkgutil.walk_packages([FOLDER], "perturbkernel.")
MODULES = sorted(module.name for module in FOUND if not module.name.endswith("__main__"))

# Where users find names; the names of the package itself are added.
PUBLIC = ("data", "learning", "networks", "report", "reproduce", "sklearn", "theory")
PUBLIC += ("theory.bounds", "theory.law", "theory.scaling", "verify")

# What has no example, and why.
WITHOUT: dict[str, str] = {}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module)
    assert not failed


def public() -> dict[str, Callable[..., Any]]:
    """The public functions and classes, each once, by module and name."""
    values = [getattr(perturbkernel, name) for name in perturbkernel.__all__]
    for name in PUBLIC:
        module = importlib.import_module(f"perturbkernel.{name}")
        values += [getattr(module, name) for name in dir(module) if not name.startswith("_")]
    functions = [v for v in values if inspect.isfunction(v) or inspect.isclass(v)]
    named = {f"{v.__module__}.{v.__qualname__}": v for v in functions}
    return {name: v for name, v in named.items() if name.startswith("perturbkernel.")}


def example(value: Any) -> str:
    """The code of the examples in a docstring."""
    parser = doctest.DocTestParser()
    return "".join(e.source for e in parser.get_examples(inspect.getdoc(value) or ""))


def methods(of: type) -> Iterator[tuple[str, Any]]:
    """The public methods that a class adds to those of its bases."""
    for name in vars(of):
        inherited = any(name in vars(base) for base in of.__mro__[1:])
        if inspect.isroutine(getattr(of, name)) and not inherited and not name.startswith("_"):
            yield name, getattr(of, name)


def without_example() -> set[str]:
    """A class is shown by a function that returns it, and a method by a call in either's example."""
    missing = set()
    everything = public()
    functions = [value for value in everything.values() if inspect.isfunction(value)]
    for name, value in everything.items():
        shown = example(value)
        if inspect.isclass(value):
            makers = [f for f in functions if inspect.signature(f).return_annotation is value]
            shown += "".join(example(f) for f in makers)
            for method, of_class in methods(value):
                called = re.search(rf"\.{method}\(", shown)
                if not called and not example(of_class):
                    missing.add(f"{name}.{method}")
        if not shown:
            missing.add(name)
    return missing


def test_everything_public_has_an_example():
    assert without_example() == set(WITHOUT)
