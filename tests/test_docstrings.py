"""The examples in docstrings: everything public has one, and each gives what it says."""

import doctest
import importlib
import inspect
import pkgutil
import re
import typing
from pathlib import Path
from typing import Any

import pytest
from public import public_names

import perturbkernel

# The package's own folder: tests of the benchmarks add the top of the checkout to its path.
FOLDER = str(Path(perturbkernel.__file__).parent)
FOUND = pkgutil.walk_packages([FOLDER], "perturbkernel.")
MODULES = sorted(module.name for module in FOUND if not module.name.endswith("__main__"))

_FILES = "its files are not part of the package"
_HOOK = "the package calls it; the example of `Kernel` defines what a kernel has to"
_LONG = "its cells take minutes; otherwise as `curves` and `panel`"

# What has no example, and why.
WITHOUT = {
    "ArchitectureNTK": "its constructors have",
    "EmpiricalNTK.from_features": _HOOK,
    "EmpiricalNTK.from_weights": _HOOK,
    "EmpiricalNTK.to_features": _HOOK,
    "EmpiricalNTK.to_weights": _HOOK,
    "Kernel.check_inputs": _HOOK,
    "Kernel.footprint": _HOOK,
    "Kernel.prefers_weights": _HOOK,
    "PerturbationLearning.report": "the example of `report.load` calls it",
    "Reproduction.map": _LONG,
    "Reproduction.study": _LONG,
    "TwoLayerNTK.angle_cotangents": _HOOK,
    "TwoLayerNTK.of_angles": _HOOK,
    "TwoLayerNTK.prepare": _HOOK,
    "TwoLayerNTK.quick_tile": _HOOK,
    "cifar10": _FILES,
    "fashion_mnist": _FILES,
    "mnist": _FILES,
    "use_compilation_cache": "it changes JAX for the whole process",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module)
    assert not failed


def public() -> list[Any]:
    """The public functions and classes, each once."""
    names = {}
    for module in ("perturbkernel", "perturbkernel.sklearn", "perturbkernel.verify"):
        names |= public_names(module)
    found = {}
    for defined in names.values():
        module, _, name = defined.rpartition(".")
        value = getattr(importlib.import_module(module), name)
        if inspect.isclass(value) or inspect.isfunction(value):
            found[value] = None
    return list(found)


def methods(of: type) -> list[Any]:
    """The public methods that a class of this package adds to those of its bases."""
    own = []
    for name in vars(of):
        value = getattr(of, name)
        inherited = any(name in vars(base) for base in of.__mro__[1:])
        ours = getattr(value, "__module__", "").startswith("perturbkernel")
        if inspect.isroutine(value) and ours and not inherited and not name.startswith("_"):
            own.append(value)
    return own


def example(value: Any) -> str:
    """The code of the examples in a docstring."""
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(value) or "")
    return "".join(e.source for e in examples)


def returns(function: Any, of: type) -> bool:
    annotation = inspect.signature(function).return_annotation
    return of is annotation or of in typing.get_args(annotation)


def test_everything_public_has_a_docstring():
    values = public()
    values += [method for value in values if inspect.isclass(value) for method in methods(value)]
    assert not [value.__qualname__ for value in values if not value.__doc__]


def without_example() -> set[str]:
    """What no example shows: neither its own, nor one of the same folder that calls it, nor, of a
    class, that of a function which returns it.
    """
    values = public()
    classes = [value for value in values if inspect.isclass(value)]
    values += [method for of in classes for method in methods(of)]
    code: dict[str, str] = {}
    for value in values:
        folder = value.__module__.split(".")[1]
        code[folder] = code.get(folder, "") + example(value)

    def shown(value: Any) -> bool:
        examples = code[value.__module__.split(".")[1]]
        return bool(example(value) or re.search(rf"\b{value.__name__}\(", examples))

    missing = set()
    for value in values:
        makers = [f for f in values if f not in classes and returns(f, value)]
        if not (shown(value) or any(shown(maker) for maker in makers)):
            missing.add(value.__qualname__)
    return missing


def test_everything_public_has_an_example():
    assert without_example() == set(WITHOUT)
