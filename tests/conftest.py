"""Fixtures for every test module, and how Hypothesis runs."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest
from hypothesis import settings

# The first example compiles, which takes any deadline's worth; the same examples everywhere make a failure repeatable.
settings.register_profile("perturbkernel", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("perturbkernel")


@pytest.fixture(autouse=True)
def jax_configuration_is_left_alone() -> Iterator[None]:
    """No test, and so nothing that it calls, changes JAX's global configuration."""

    def configuration():
        return {name: getattr(jax.config, name, None) for name in jax.config.values}

    before = configuration()
    yield
    assert configuration() == before


@pytest.fixture
def x64() -> Iterator[None]:
    """The test runs in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
