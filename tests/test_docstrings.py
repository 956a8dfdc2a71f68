"""The examples in docstrings that show what comes out: each is run, and gives what it says."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import perturbkernel

# The package's own folder: tests of the benchmarks add the top of the checkout to its path.
FOLDER = str(Path(perturbkernel.__file__).parent)
FOUND = pkgutil.walk_packages([FOLDER], "perturbkernel.")
MODULES = sorted(module.name for module in FOUND if not module.name.endswith("__main__"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module)
    assert not failed


def test_there_are_examples():
    """In modules of every kind, so that the test above has something to run."""
    for name in ("metrics", "attacks.norms", "data.synthetic", "report.plots"):
        module = importlib.import_module(f"perturbkernel.{name}")
        examples = [test.examples for test in doctest.DocTestFinder().find(module)]
        assert any(examples), name
