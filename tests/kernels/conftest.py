"""Tests of kernels evaluate the compiled programs, at sizes where NumPy would take them."""

from collections.abc import Iterator

import pytest

from perturbkernel.kernels import host


@pytest.fixture(autouse=True)
def small_sums_are_compiled(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.path.name == "test_host.py":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "PAIRS", 0)
        yield
