"""What a kernel product will take, before it runs: tiles, memory, floating-point operations,
seconds.
"""

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturbkernel.checks import check_choice, check_count, check_number
from perturbkernel.display import Described
from perturbkernel.engine import tiles
from perturbkernel.kernels import features

MATRICES = ("ntk", "nngp", "phi")
# Name -> how many matrix products of size n x m x d it takes.
PRODUCTS = {
    "matvec": 1,
    "phi_matmul": 1,
    "input_gradient": 2,
    "ntk": 1,
    "nngp": 1,
    "phi": 1,
}
# Operations of the passes whose rate is measured.
_MEASURED = 1e9
# Seconds of each unit, longest first.
_UNITS = {"d": 86400, "h": 3600, "min": 60, "s": 1, "ms": 1e-3}


@dataclasses.dataclass(frozen=True)
class Plan(Described):
    """A forecast of the memory and time of one kernel product; `print` it.

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

    Example:
        >>> import perturbkernel as pk
        >>> plan = pk.TwoLayerNTK().plan(60_000, 10_000, 784, rate=1e11)
        >>> f"{plan.operations:.2g} operations, {plan.seconds:.0f} s"
        '9.4e+11 operations, 9 s'
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
        points = f"{self.n:,} points"
        points += " with themselves" if self.symmetric else f", {self.m:,} queries"
        devices = f"{self.devices} device{'s' * (self.devices > 1)}"
        rows, columns = self.tile
        temporaries = in_bytes(self.memory)
        data, result = in_bytes(self.data), in_bytes(self.result)
        return (
            f"{self.what}: {points}, d = {self.d:,}, on {devices}\n"
            f"  tiles        {self.tiles:,} of {rows} x {columns}\n"
            f"  memory       {temporaries} of temporaries a device; data {data}, result {result}\n"
            f"  operations   {self.operations:.3g}\n"
            f"  time         {in_time(self.seconds)} at {self.rate / 1e9:,.3g} GFLOP/s a device"
        )


def in_bytes(count: float) -> str:
    """A number of bytes in words: three digits and a unit.

    Example:
        >>> in_bytes(1536)
        '1.5 KiB'
    """
    units = "B", "KiB", "MiB", "GiB", "TiB"
    power = int(np.log2(max(count, 1)) // 10)
    power = min(power, len(units) - 1)
    return f"{count / 1024**power:.3g} {units[power]}"


def in_time(seconds: float) -> str:
    """A time in words: three digits and a unit.

    Example:
        >>> in_time(7200)
        '2 h'
    """
    for unit, length in _UNITS.items():
        # 90 minutes are read more easily than 1.5 hours.
        least = 2 * length if length > 1 else length
        if seconds >= least:
            return f"{seconds / length:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms"


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
    """The `Plan` of one product; arguments as of `Kernel.plan`."""
    check_choice(what, "what", tuple(PRODUCTS))
    row = (d,) if isinstance(d, int | np.integer) else tuple(d)
    numbers = int(np.prod(row))
    if columns is None:
        columns = numbers if what == "phi_matmul" else 1
    _check_counts(n, m, row, columns, devices, memory)
    symmetric = m is None
    queries = n if m is None else m
    passes = _takes_passes(kernel, what, queries, n, columns, row)
    if rate is None:
        rate = _measured_rate(kernel, row, what, columns, passes)
    check_number(rate, "rate", open_low=True)
    itemsize = jnp.result_type(float).itemsize
    product = kernel, n, queries, row, what, columns, devices, memory
    tiling = _of_passes(*product) if passes else _tiling(*product, symmetric)
    # A matrix has no coefficients.
    coefficients = 0 if what in MATRICES else n * columns
    inputs = n if symmetric else n + queries
    return Plan(
        what=what,
        n=n,
        m=queries,
        d=numbers,
        symmetric=symmetric,
        devices=devices,
        tile=tiling.tile,
        tiles=tiling.tiles,
        memory=tiling.memory,
        data=itemsize * (inputs * numbers + coefficients),
        result=itemsize * _result_numbers(what, n, queries, numbers, columns),
        operations=tiling.operations,
        rate=float(rate),
    )


def _check_counts(
    n: Any,
    m: Any,
    row: tuple[Any, ...],
    columns: Any,
    devices: Any,
    memory: Any,
) -> None:
    check_count(n, "n")
    check_count(columns, "columns")
    check_count(devices, "devices")
    for size in row:
        check_count(size, "d")
    if m is not None:
        check_count(m, "m")
    if memory is not None:
        check_count(memory, "memory")


class _Tiling(NamedTuple):
    """How a product is cut: the tile, how many, bytes of temporaries, and floating-point operations
    of the pairs that are evaluated.
    """

    tile: tuple[int, int]
    tiles: int
    memory: int
    operations: float


def _takes_passes(
    kernel: Any,
    what: str,
    m: int,
    n: int,
    columns: int,
    row: tuple[int, ...],
) -> bool:
    """Whether a product is taken by weights, without tiles, as `features.takes` says."""
    return (
        what not in MATRICES
        and features.has_weights(kernel)
        and kernel.prefers_weights("ntk", m, n, columns, row)
    )


def _tiling(
    kernel: Any,
    n: int,
    m: int,
    row: tuple[int, ...],
    what: str,
    columns: int,
    devices: int,
    memory: int | None,
    symmetric: bool,
) -> _Tiling:
    """The tiles that `products` would use for n points and m queries."""
    is_sum = what in ("matvec", "phi_matmul")
    each_pair_once = is_sum and symmetric and devices == 1
    tall = is_sum and columns <= tiles.TALL and not each_pair_once
    itemsize = jnp.result_type(float).itemsize
    operations = _operations(what, n, m, int(np.prod(row)), columns)
    own_n, own_m = -(-n // devices), -(-m // devices)
    if what in MATRICES and features.has_features(kernel):
        rows, across = features.block_shape(kernel, n, m, row, itemsize, memory)
        numbers = rows * across + features.feature_numbers(kernel, row) * (rows + across)
        count = -(-n // rows) * -(-m // across)
        return _Tiling((across, rows), count, int(itemsize * numbers), operations)
    limits = tiles.tile_limits(kernel, row, itemsize, memory, tall=tall)
    if each_pair_once:
        most_rows, _ = limits
        side = tiles.tile_size(own_m, most_rows)
        down = -(-own_m // side)
        # Those on and above the diagonal.
        count, share = down * (down + 1) // 2, (down + 1) / (2 * down)
        held = tiles.tile_bytes(kernel, (side, side), row, itemsize)
        return _Tiling((side, side), count, held, operations * share)
    tile = tiles.tile_shape(own_m, own_n, limits)
    rows_of_tile, columns_of_tile = tile
    down, across = -(-own_m // rows_of_tile), -(-own_n // columns_of_tile)
    # Each device meets the points of every device.
    count = down * across * devices**2
    return _Tiling(tile, count, tiles.tile_bytes(kernel, tile, row, itemsize), operations)


def _of_passes(
    kernel: Any,
    n: int,
    m: int,
    row: tuple[int, ...],
    what: str,
    columns: int,
    devices: int,
    memory: int | None,
) -> _Tiling:
    """The blocks of rows of a product by weights, one after the other: first points, then
    queries.
    """
    itemsize = jnp.result_type(float).itemsize
    most = features.rows_at_once(kernel, row, itemsize, memory)
    own_n, own_m = -(-n // devices), -(-m // devices)
    points, queries = tiles.tile_size(own_n, most), tiles.tile_size(own_m, most)
    count = devices * (-(-own_n // points) + -(-own_m // queries))
    held = features.row_numbers(kernel, row) * max(points, queries)
    # The gradient passes back over the queries once more.
    rows = n + (2 if what == "input_gradient" else 1) * m
    operations = features.row_operations(kernel, row) * columns * rows
    return _Tiling((queries, points), count, int(itemsize * held), operations)


def _result_numbers(
    what: str,
    n: int,
    m: int,
    numbers: int,
    columns: int,
) -> int:
    """How many numbers the result has."""
    if what in MATRICES:
        return n * m
    return m * (numbers if what == "input_gradient" else columns)


def _operations(
    what: str,
    n: int,
    m: int,
    numbers: int,
    columns: int,
) -> float:
    """Floating-point operations of the matrix products, with every pair evaluated."""
    a_pair = 2 * numbers * PRODUCTS[what]
    if columns > 1:  # their products with a tile
        a_pair += 2 * columns
    return float(n) * m * a_pair


def _measured_rate(
    kernel: Any,
    row: tuple[int, ...],
    what: str,
    columns: int,
    passes: bool,
) -> float:
    """Operations a second of the very product, the best of three runs: on two tiles by one, or for
    passes on a block of rows, or so many that take a second or so.
    """
    itemsize = jnp.result_type(float).itemsize
    if passes:
        most = features.rows_at_once(kernel, row, itemsize)
        n = m = int(np.clip(_MEASURED // features.row_operations(kernel, row), 1, most))
    else:
        rows_of_tile, n = tiles.tile_limits(kernel, row, itemsize, tall=False)
        m = 2 * rows_of_tile
    if _takes_passes(kernel, what, m, n, columns, row) != passes:
        # So few points go the other way: one column, or tiles alone, run like the product.
        what, columns = (what, 1) if passes else ("ntk", 1)
    key_z, key_x, key_coef = jax.random.split(jax.random.key(0), 3)
    z = jax.random.normal(key_z, (m, *row))
    x = jax.random.normal(key_x, (n, *row))
    coef = jax.random.normal(key_coef, (n, columns) if columns > 1 else (n,))
    arguments = (x, z) if what in MATRICES else (z, x, coef)
    product = getattr(kernel, what)
    seconds = []
    for _ in range(4):  # the first compiles
        began = time.perf_counter()
        jax.block_until_ready(product(*arguments))
        seconds.append(time.perf_counter() - began)
    plan = make_plan(kernel, n, m, row, what, columns, 1, None, 1.0)
    return plan.operations / min(seconds[1:])
