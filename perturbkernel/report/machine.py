"""Versions and machine, which every result names."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from perturbkernel._version import __version__

_PACKAGES = ("jax", "jaxlib", "numpy", "neural-tangents", "optax", "equinox", "diffrax")


def environment(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Versions, those of further `packages` included, device, processor and Python.

    Example:
        >>> import perturbkernel as pk
        >>> sorted(pk.report.environment())
        ['backend', 'cores', 'device', 'perturbkernel', 'processor', 'python', 'versions', 'x64']
    """
    names = (*_PACKAGES, *packages)
    return {
        "perturbkernel": __version__,
        "versions": {name: _installed(name) for name in names},
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "processor": _processor(),
        "cores": _cores(),
        "x64": bool(jax.config.jax_enable_x64),  # pyright: ignore[reportAttributeAccessIssue]
    }


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cores() -> int | None:
    """The cores that this process may use, where the system says so, else those there are."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count()
    allowed = os.sched_getaffinity(0)
    return len(allowed)


def _processor() -> str:
    """The processor's model where the system names one, else its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.startswith("model name"):
            return value.strip()
    return platform.processor() or platform.machine()
