"""What a kernel product will take, before it runs: tiles, memory, floating-point operations,
seconds.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbkernel.checks import check_choice, check_count, check_number
from perturbkernel.engine import tiles

MATRICES = ("ntk", "nngp", "phi")
# Of size n x m x d.
PRODUCTS = {"matvec": 1, "phi_matmul": 1, "input_gradient": 2} | dict.fromkeys(MATRICES, 1)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one kernel product will take; `print` it.

    Attributes:
        what: the product.
        n, m, d: training points, queries, numbers an input.
        symmetric: the queries are the training points, the very same array. Sums on one device then
            evaluate each pair once.
        devices: how many share the work.
        tile: (rows of queries, rows of points) evaluated at once.
        tiles: how many, on all devices together.
        memory: bytes of temporaries on each device, at most.
        data, result: bytes of inputs and coefficients, and of the result, in all.
        operations: floating-point operations of the matrix products.
        rate: operations a second at which one device runs this product, everything included.
    """

    what: str
    n: int
    m: int
    d: int
    symmetric: bool
    devices: int
    tile: tuple[int, int]
    tiles: int
    memory: int
    data: int
    result: int
    operations: float
    rate: float

    @property
    def seconds(self) -> float:
        """Expected, if the devices run in parallel without loss."""
        return self.operations / self.rate / self.devices

    def __str__(self) -> str:
        points = (
            f"{self.n:,} points with themselves"
            if self.symmetric
            else f"{self.n:,} points, {self.m:,} queries"
        )
        return (
            f"{self.what}: {points}, d = {self.d:,}, on {self.devices} device{'s' * (self.devices > 1)}\n"
            f"  tiles        {self.tiles:,} of {self.tile[0]} x {self.tile[1]}\n"
            f"  memory       {in_bytes(self.memory)} of temporaries a device; data {in_bytes(self.data)}, "
            f"result {in_bytes(self.result)}\n"
            f"  operations   {self.operations:.3g}\n"
            f"  time         {in_time(self.seconds)} at {self.rate / 1e9:,.3g} GFLOP/s a device"
        )


def in_bytes(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    power = min(int(np.log2(max(count, 1)) // 10), 4)
    return f"{count / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def in_time(seconds: float) -> str:
    """5400 -> "1.5 h"."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3)):
        if seconds >= (2 * length if length > 1 else length) or unit == "ms":
            return f"{seconds / length:.3g} {unit}"
    raise AssertionError


def make_plan(
    kernel: Any,
    n: int,
    m: int | None,
    d: int | tuple[int, ...],
    what: str,
    columns: int | None,
    devices: int,
    memory: int | None,
    rate: float | None,
) -> Plan:
    """`Kernel.plan`."""
    check_choice(what, "what", tuple(PRODUCTS))
    row = (d,) if isinstance(d, int | np.integer) else tuple(d)
    numbers = int(np.prod(row))
    if columns is None:
        columns = numbers if what == "phi_matmul" else 1
    counts = [("n", n), ("columns", columns), ("devices", devices), *(("d", size) for size in row)]
    for name, value in (
        counts
        + ([] if m is None else [("m", m)])
        + ([] if memory is None else [("memory", memory)])
    ):
        check_count(value, name)
    if rate is None:
        rate = _measured_rate(kernel, row, what, columns)
    check_number(rate, "rate", open_low=True)
    itemsize = jnp.result_type(float).itemsize
    symmetric = m is None
    sums = what in ("matvec", "phi_matmul")
    halved = sums and symmetric and devices == 1
    tall = sums and columns <= tiles.TALL and not halved
    m = n if m is None else m
    own_n, own_m = -(-n // devices), -(-m // devices)
    limits = tiles.tile_limits(kernel, row, itemsize, memory, tall=tall)
    side = tiles.tile_size(own_m, limits[0])
    tile = (side, side) if halved else tiles.tile_shape(own_m, own_n, limits)
    rows, columns_of_tiles = -(-own_m // tile[0]), -(-own_n // tile[1])
    count = rows * (rows + 1) // 2 if halved else rows * columns_of_tiles * devices**2
    operations = float(n) * m * (2 * numbers * PRODUCTS[what] + (2 * columns if columns > 1 else 0))
    result = {"input_gradient": m * numbers} | dict.fromkeys(MATRICES, n * m)
    return Plan(
        what,
        n,
        m,
        numbers,
        symmetric,
        devices,
        tile,
        count,
        tiles.tile_bytes(kernel, tile, row, itemsize),
        itemsize
        * ((n if symmetric else n + m) * numbers + (0 if what in MATRICES else n * columns)),
        itemsize * result.get(what, m * columns),
        operations * (rows + 1) / (2 * rows) if halved else operations,
        float(rate),
    )


def _measured_rate(kernel: Any, row: tuple[int, ...], what: str, columns: int) -> float:
    """Operations a second of the very product on two tiles by one, the best of three runs."""
    itemsize = jnp.result_type(float).itemsize
    m, n = tiles.tile_limits(kernel, row, itemsize, tall=False)
    keys = jax.random.split(jax.random.key(0), 3)
    z, x = (
        jax.random.normal(key, (count, *row)) for key, count in zip(keys, (2 * m, n), strict=False)
    )
    coef = jax.random.normal(keys[2], (n, columns) if columns > 1 else (n,))
    arguments = (x, z) if what in MATRICES else (z, x, coef)
    seconds = []
    for _ in range(4):  # the first compiles
        began = time.perf_counter()
        jax.block_until_ready(getattr(kernel, what)(*arguments))
        seconds.append(time.perf_counter() - began)
    return make_plan(kernel, n, 2 * m, row, what, columns, 1, None, 1.0).operations / min(
        seconds[1:]
    )
