"""Fixtures for every test module, and how Hypothesis and compilers run."""

import os

# Read when JAX begins, and inherited by processes that tests start. Tests compile more than they
# compute: without LLVM's optimisations, with the older way of making fused loops, and without
# splitting programs among threads, that takes less than half of the time.
# `JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= make test` compiles as users do.
_PLAIN = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)

import gc
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import settings

# The first example compiles, which takes any deadline's worth; the same examples everywhere make a
# failure repeatable.
settings.register_profile("perturbkernel", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("perturbkernel")


# Image panels run on what ships, on every machine; what runs on more asks for `data_sets`.
_DATA = os.environ.get("PERTURBKERNEL_DATA")
os.environ["PERTURBKERNEL_DATA"] = "off"


# Linux allows a process 65,530 memory maps, and XLA aborts without one; each compiled program takes
# several.
_MAPS, _MANY = Path("/proc/self/maps"), 40_000


# What `make quick` and `make floors` leave out: documentation and examples, reproductions, other processes and
# devices, whole runs of commands, and everything once more in the strict modes, which the folders of
# _STRICT below are tested in anyway.
_SLOW = (
    "cli/test_bench.py",
    "cli/test_cli.py",
    "cli/test_run_inputs.py",
    "engine/test_mesh.py",
    "kernels/test_architecture_pipeline.py",
    "reproduce/",
    "test_docs.py",
    "test_examples.py",
    "test_sklearn.py",
    "test_strict_modes.py",
    "verify/",
)


# What `make quick` leaves out as well: the same properties over many kernels, norms, losses and
# dtypes, and kernels and certificates that compile much.
_THOROUGH = (
    "attacks/test_attack_invariants.py",
    "attacks/test_certified.py",
    "attacks/test_certified_width.py",
    "attacks/test_flips.py",
    "attacks/test_small_attacks.py",
    "engine/test_tiles.py",
    "kernels/test_architectures.py",
    "kernels/test_empirical.py",
    "kernels/test_peers.py",
    "kernels/test_stax_kernels.py",
    "learning/test_results.py",
    "report/test_browser.py",
    "theory/test_theory_certify.py",
    "theory/test_theory_law.py",
    "theory/test_theory_law_certify.py",
    "training/test_derivatives.py",
    "training/test_differentiable_fit.py",
    "training/test_initial_function.py",
    "training/test_precision.py",
    "training/test_ridge.py",
    "training/test_sample_weight.py",
    "training/test_smoother.py",
    "training/test_statuses.py",
)


_Generators = list[tuple[np.random.Generator, Any]]
GENERATORS = pytest.StashKey[dict[ModuleType, _Generators]]()


def generators(module: ModuleType) -> _Generators:
    """The random generators at the top of a module, each with its state."""
    found = [value for value in vars(module).values() if isinstance(value, np.random.Generator)]
    return [(generator, generator.bit_generator.state) for generator in found]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks slow and thorough tests, by file, and keeps the states that generators have before any
    test.
    """
    tests = Path(__file__).parent
    for item in items:
        file = item.path.relative_to(tests).as_posix()
        if file.startswith(_SLOW):
            item.add_marker(pytest.mark.slow)
        if file in _THOROUGH:
            item.add_marker(pytest.mark.thorough)
    functions = [item for item in items if isinstance(item, pytest.Function)]
    modules = {item.module for item in functions if isinstance(item.module, ModuleType)}
    config.stash[GENERATORS] = {module: generators(module) for module in modules}


@pytest.fixture(autouse=True)
def draws_do_not_depend_on_other_tests(request: pytest.FixtureRequest) -> None:
    """Tests run in any order, on any worker: the generator of a module begins anew in each."""
    for generator, state in request.config.stash[GENERATORS].get(request.module, []):
        generator.bit_generator.state = state


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_make_room() -> Iterator[None]:
    """A worker compiles some ten thousand programs in all; those of earlier modules are seldom
    needed again.

    Until they go, the garbage collector need not look at them: it would take a second each time.
    """
    yield
    if _MAPS.exists() and len(_MAPS.read_bytes().splitlines()) > _MANY:
        jax.clear_caches()
        gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="class")
def optimised() -> Iterator[None]:
    """Programs are compiled as users do: optimisations contract products and sums, which changes
    how they round.
    """
    if not _PLAIN:
        yield
        return
    # Programs of other tests, which JAX knows by their functions and shapes, are not those meant.
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.fixture(autouse=True)
def jax_configuration_is_left_alone() -> Iterator[None]:
    """No test, and so nothing that it calls, changes JAX's global configuration."""

    def configuration():
        return {name: getattr(jax.config, name, None) for name in jax.config.values}

    before = configuration()
    yield
    assert configuration() == before


# Where the package's own arithmetic is tested, JAX refuses implicit broadcasts and conversions, as a
# user may have told it to.
_STRICT = ("attacks", "kernels", "learning", "training")


@pytest.fixture(autouse=True)
def implicit_promotion_is_refused(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kernel, fit, attack and learning tests run in JAX's strict modes."""
    if request.path.parent.name not in _STRICT:
        yield
        return
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets are looked for where they are outside of tests."""
    if _DATA is None:
        monkeypatch.delenv("PERTURBKERNEL_DATA")
    else:
        monkeypatch.setenv("PERTURBKERNEL_DATA", _DATA)


@pytest.fixture
def x64() -> Iterator[None]:
    """The test runs in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
