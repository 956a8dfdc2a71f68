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
    limit = _device_memory().get("bytes_limit", 2**32)
    return min(limit // 16, 2**30)


def _device_memory() -> dict[str, int]:
    """What the default device says of its memory; nothing on a CPU."""
    device = jax.local_devices()[0]
    return device.memory_stats() or {}


# Rows of queries and of points of the traced tile: primes, so that the size of an array says what
# it is made of.
_QUERIES, _POINTS = 10_007, 10_009


def footprint(
    function: Callable,
    row: tuple[int, ...],
    dtype: Any = jnp.float32,
) -> tuple[float, float]:
    """(a, b), the numbers a pair and the numbers a row that `function(z, x)` holds at once, for z
    (r, *row) and x (c, *row) of the given dtype.

    A tile of r queries and c points then takes at most

        a r c + b (r + c)

    numbers of the width of a float32. Arrays live from the operation that makes them to the last
    that reads them, in the order of the program. XLA, which fuses operations, holds less.

    Example, of a product that holds z, x and the transpose of x:
        >>> footprint(lambda z, x: z @ x.T, (3,))
        (1.0, 9.0)
    """
    z = jax.ShapeDtypeStruct((_QUERIES, *row), dtype)
    x = jax.ShapeDtypeStruct((_POINTS, *row), dtype)
    trace = jax.make_jaxpr(function)
    pair, each = _alive(trace(z, x).jaxpr)
    return float(pair), float(each)


def _size(variable: Any) -> np.ndarray:
    """(numbers a pair, numbers a row) of one array."""
    shape = variable.aval.shape
    size = int(np.prod(shape, dtype=object))
    width = getattr(variable.aval.dtype, "itemsize", 4) / 4
    of_queries = size % _QUERIES == 0
    of_points = size % _POINTS == 0
    if of_queries and of_points:
        pairs = size // (_QUERIES * _POINTS)
        return width * np.array([pairs, 0])
    if of_queries:
        rows = _QUERIES
    elif of_points:
        rows = _POINTS
    else:
        rows = _QUERIES + _POINTS
    return width * np.array([0, size / rows])


def _alive(jaxpr: Any) -> np.ndarray:
    """The most that is alive at once, of each kind, arguments and results included."""
    last_use = _last_uses(jaxpr)
    held = _total((*jaxpr.invars, *jaxpr.constvars))
    most = held
    for index, equation in enumerate(jaxpr.eqns):
        held = held + _total(equation.outvars)
        within = [np.zeros(2)]
        for inner in _inner(equation.params):
            arguments = _total(inner.invars)
            within.append(_alive(inner) - arguments)
        most = np.maximum(most, held + np.max(within, axis=0))
        over = [v for v in _met(equation) if last_use[v] == index]
        held = held - _total(over)
    return most


def _last_uses(jaxpr: Any) -> dict[Any, int]:
    """The number of the last operation that makes or reads each variable; one more for results."""
    last = {}
    for index, equation in enumerate(jaxpr.eqns):
        last |= dict.fromkeys(_met(equation), index)
    results = _variables(jaxpr.outvars)
    return last | dict.fromkeys(results, len(jaxpr.eqns))


def _met(equation: Any) -> dict[Any, None]:
    """The variables that an operation reads or makes, each once."""
    read = _variables(equation.invars)
    return dict.fromkeys((*read, *equation.outvars))


def _total(variables: Any) -> np.ndarray:
    sizes = [_size(variable) for variable in variables]
    return sum(sizes, np.zeros(2))


def _variables(atoms: Any) -> list[Any]:
    return [a for a in atoms if not hasattr(a, "val")]  # a literal has a value


def _inner(params: dict[str, Any]) -> list[Any]:
    """The programs that an operation contains: of loops, branches and functions that it calls."""
    found = []
    for value in params.values():
        several = isinstance(value, tuple | list)
        for part in value if several else [value]:
            program = getattr(part, "jaxpr", part)
            if hasattr(program, "eqns"):
                found.append(program)
    return found


# Without a budget: a quarter of what the machine has left, at least 1 GiB and at most 64 GiB.
_SHARE, _LEAST, _MOST = 0.25, 2**30, 2**36


def fits(
    n: int,
    dtype,
    memory: float,
    copies: int = 1,
    devices: int = 1,
) -> bool:
    """Whether `copies` matrices (n, n), dealt out to devices by rows, take at most `memory` bytes
    on each.
    """
    rows = -(-n // devices)
    itemsize = jnp.dtype(dtype).itemsize
    return copies * n * rows * itemsize <= memory


def available_memory(mesh: Mesh | None = None) -> int:
    """Bytes that one Gram matrix may take: a quarter of what the default device has left, within 1
    and 64 GiB.

    On a mesh, on each device: pretended devices of a host share its memory, and all processes take
    the least of theirs.
    """
    stats = _device_memory()
    on_host = "bytes_limit" not in stats
    if on_host:
        left = _host_memory()
    else:
        used = stats.get("bytes_in_use", 0)
        left = stats["bytes_limit"] - used
    memory = int(min(max(_SHARE * left, _LEAST), _MOST))
    if mesh is None:
        return memory
    if on_host and mesh.local_devices:
        memory //= len(mesh.local_devices)
    of_processes = multihost_utils.process_allgather(np.float32(memory))
    return int(np.min(of_processes))


def _host_memory() -> int:
    """Bytes that the host has left, as far as its system tells; 0 if it does not."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        for line in lines:
            if line.startswith("MemAvailable:"):
                _, kibibytes, _ = line.split()
                return 1024 * int(kibibytes)
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return 0
