"""How much memory there is, and how much a tile takes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh


def default_memory() -> int:
    """Bytes for the temporaries of a sum: 256 MiB on a CPU; a sixteenth of an accelerator's memory,
    at most 1 GiB.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    return min(stats.get("bytes_limit", 2**32) // 16, 2**30)


# Rows of queries and of points of the traced tile: primes, so that the size of an array says what
# it is made of.
_QUERIES, _POINTS = 10_007, 10_009


def footprint(function: Callable, row: tuple[int, ...]) -> tuple[float, float]:
    """(numbers a pair, numbers a row) that `function(z, x)` holds at once, with z (r, *row) and x
    (c, *row).

    A tile of r queries and c points then takes at most  a r c + b (r + c)  numbers of the width of
    a float32. Arrays live from the operation that makes them to the last that reads them, in the
    order of the program. XLA, which fuses operations, holds less.
    """
    z, x = (jax.ShapeDtypeStruct((count, *row), jnp.float32) for count in (_QUERIES, _POINTS))
    pair, each = _alive(jax.make_jaxpr(function)(z, x).jaxpr)
    return float(pair), float(each)


def _size(variable: Any) -> np.ndarray:
    """(numbers a pair, numbers a row) of one array."""
    size = int(np.prod(variable.aval.shape, dtype=object))
    width = getattr(variable.aval.dtype, "itemsize", 4) / 4
    over = [size % count == 0 for count in (_QUERIES, _POINTS)]
    if all(over):
        return width * np.array([size // (_QUERIES * _POINTS), 0])
    return width * np.array(
        [0, size / (_QUERIES if over[0] else _POINTS if over[1] else _QUERIES + _POINTS)]
    )


def _alive(jaxpr: Any) -> np.ndarray:
    """The most that is alive at once, of each kind, arguments and results included."""
    used = {}
    for index, equation in enumerate(jaxpr.eqns):
        used |= dict.fromkeys((*equation.outvars, *_variables(equation.invars)), index)
    used |= dict.fromkeys(_variables(jaxpr.outvars), len(jaxpr.eqns))
    held = _total((*jaxpr.invars, *jaxpr.constvars))
    most = held
    for index, equation in enumerate(jaxpr.eqns):
        held = held + _total(equation.outvars)
        within = [_alive(inner) - _total(inner.invars) for inner in _inner(equation.params)]
        most = np.maximum(most, held + np.max([np.zeros(2), *within], axis=0))
        met = dict.fromkeys((*_variables(equation.invars), *equation.outvars))
        held = held - _total(v for v in met if used[v] == index)
    return most


def _total(variables: Any) -> np.ndarray:
    return sum((_size(v) for v in variables), np.zeros(2))


def _variables(atoms: Any) -> list[Any]:
    return [a for a in atoms if not hasattr(a, "val")]  # a literal has a value


def _inner(params: dict[str, Any]) -> list[Any]:
    """The programs that an operation contains: of loops, of branches, of functions that are called."""
    found = []
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            part = getattr(part, "jaxpr", part)
            found += [part] if hasattr(part, "eqns") else []
    return found


# Without a budget: a quarter of what the machine has left, at least 1 GiB and at most 64 GiB.
_SHARE, _LEAST, _MOST = 0.25, 2**30, 2**36


def fits(n: int, dtype, memory: float, copies: int = 1, devices: int = 1) -> bool:
    """Whether `copies` matrices (n, n), dealt out to devices by rows, take at most `memory` bytes
    on each.
    """
    return copies * n * -(-n // devices) * jnp.dtype(dtype).itemsize <= memory


def available_memory(mesh: Mesh | None = None) -> int:
    """Bytes that one Gram matrix may take: a quarter of what the default device has left, within 1
    and 64 GiB.

    On a mesh, on each device: pretended devices of a host share its memory, and all processes take
    the least of theirs.
    """
    stats = jax.local_devices()[0].memory_stats() or {}  # None on a CPU
    limit = stats.get("bytes_limit")
    left = _host_memory() if limit is None else limit - stats.get("bytes_in_use", 0)
    memory = int(min(max(_SHARE * left, _LEAST), _MOST))
    if mesh is None:
        return memory
    memory //= len(mesh.local_devices) if limit is None and mesh.local_devices else 1
    return int(np.min(multihost_utils.process_allgather(np.float32(memory))))


def _host_memory() -> int:
    """Bytes that the host has left, as far as its system tells; 0 if it does not."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return 0
