"""The paths of single neurons in scaled time, for many neurons at once (theory: 14.1).

With the identity loss a neuron (w_i, b_i) of readout a_i = alpha_i / sqrt(width) follows

    v <- momentum v + G(w, b),   (w, b) <- (w, b) + alpha_i rate_j v,
    G(w, b) = (1/n) sum_n y_n phi'(<w, x_n> + b) (x_n, c),

whatever the other neurons do, with rate_j the learning rate divided by sqrt(width). Without
momentum and in small steps it is the flow of alpha_i G over scaled time r = time / sqrt(width).

A step is two matrix products, neurons by points. Where the points are few, n < d + 1, a neuron is
kept as the n coefficients of its displacement in the rows (x_n, c), and a step is one product with
their Gram matrix.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from perturbkernel import meshes
from perturbkernel.engine.memory import default_memory
from perturbkernel.engine.tiles import EXACT
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.training.dynamics import Dynamics, GradientFlow

#: Rates are padded to a multiple of this, so that few lengths are compiled for.
_RATES_AT_ONCE = 128


class Schedule(NamedTuple):
    """The steps that every neuron takes.

    Attributes:
        rates: (steps,), learning rate / sqrt(width).
        momentum: of the heavy ball; 0 for flow.
        midpoint: whether a step is one of the midpoint rule, which has order 2: flow.
    """

    rates: np.ndarray
    momentum: float
    midpoint: bool

    @classmethod
    def of(cls, dynamics: Dynamics, width: float, steps: int) -> "Schedule":
        """That of descent as it is, or of flow in `steps` equal steps, at a width."""
        root = width**0.5
        if isinstance(dynamics, GradientFlow):
            rates = np.full(steps, dynamics.time / steps / root)
            return cls(rates, 0.0, True)
        return cls(dynamics.rates / root, dynamics.momentum, False)

    @property
    def steps(self) -> int:
        return len(self.rates)

    @property
    def scaled_times(self) -> np.ndarray:
        """(steps + 1,): the effective time / sqrt(width) after 0, 1, ... steps. Theory: 1.1."""
        j = np.arange(1, self.steps + 1)
        shares = (1 - self.momentum**j) / (1 - self.momentum)
        return np.concatenate([[0.0], np.cumsum(self.rates * shares)])


class Field(NamedTuple):
    """What defines G, in the coordinates in which displacements are kept.

    Attributes:
        points: (n, d + 1), the rows (x_n, 1).
        force: (n,), y_n / n.
        slope: phi' of negative numbers.
        trained: (d + 1,), 1 for weights and c for the bias; None where displacements are n
            coefficients.
        gram: (n, n), <x_n, x_k> + c; None where displacements are weights and biases.
    """

    points: Array
    force: Array
    slope: Array
    trained: Array | None
    gram: Array | None

    @classmethod
    def of(cls, kernel: TwoLayerNTK, x: Array, y: Array) -> "Field":
        n, d = x.shape
        dtype = x.dtype
        points = jnp.concatenate([x, jnp.ones((n, 1), dtype)], axis=1)
        force = (y / n).astype(dtype)
        slope = jnp.asarray(kernel.slope, dtype)
        bias = float(kernel.train_bias)
        if n <= d:
            gram = jnp.matmul(x, x.T, precision=EXACT) + bias
            return cls(points, force, slope, None, gram)
        trained = jnp.concatenate([jnp.ones(d, dtype), jnp.full(1, bias, dtype)])
        return cls(points, force, slope, trained, None)

    @property
    def coordinates(self) -> int:
        """How many numbers a displacement is: n or d + 1."""
        return len(self.force) if self.gram is not None else self.points.shape[1]

    def begin(self, start: Array) -> Array:
        """What `drift` takes of neurons (k, d + 1): their outputs (k, n) beside a Gram matrix."""
        if self.gram is None:
            return start
        return jnp.matmul(start, self.points.T, precision=EXACT)

    def drift(self, begin: Array, moved: Array) -> Array:
        """G at neurons that were displaced by `moved`, both (k, coordinates)."""
        if self.gram is None:
            u = jnp.matmul(begin + moved, self.points.T, precision=EXACT)
        else:
            u = begin + jnp.matmul(moved, self.gram, precision=EXACT)
        force = self.force[None, :]
        gated = jnp.where(u > 0, force, self.slope * force)
        if self.trained is None:
            return gated
        return jnp.matmul(gated, self.points, precision=EXACT) * self.trained[None, :]


class Path(NamedTuple):
    """Where neurons are: displacement and velocity, (k, coordinates)."""

    moved: Array
    velocity: Array


@partial(jax.jit, static_argnames=("midpoint", "mesh"), donate_argnums=0)
def _advance(
    path: Path,
    span: tuple[Array, Array],
    begin: Array,
    readout: Array,
    field: Field,
    rates: Array,
    momentum: Array,
    *,
    midpoint: bool,
    mesh: Mesh | None,
) -> Path:
    """The path after the steps from span[0] to span[1]; every device moves its own neurons."""

    def advance(path, span, begin, readout, field, rates, momentum):
        def one_step(j, path):
            rate = readout[:, None] * rates[j]
            force = field.drift(begin, path.moved)
            if midpoint:
                force = field.drift(begin, path.moved + rate * (force / 2))
            velocity = momentum * path.velocity + force
            return Path(path.moved + rate * velocity, velocity)

        return lax.fori_loop(span[0], span[1], one_step, path)

    if mesh is not None:
        rows, whole = meshes.rows(mesh), meshes.WHOLE
        specs = (rows, whole, rows, rows, whole, whole, whole)
        advance = jax.shard_map(advance, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
    return advance(path, span, begin, readout, field, rates, momentum)


@jax.jit
def _begin(field: Field, start: Array) -> tuple[Array, Array]:
    """What `Field.drift` takes, and the drift before the first step."""
    begin = field.begin(start)
    still = jnp.zeros((len(start), field.coordinates), start.dtype)
    return begin, field.drift(begin, still)


class Tile(NamedTuple):
    """How many neurons move at once, of how many, and what they take.

    Attributes:
        neurons: in one tile; a multiple of the number of devices.
        count: tiles, of which the last may be padded.
        bytes: temporaries of one tile on each device.
    """

    neurons: int
    count: int
    bytes: int


def tile(
    neurons: int, n: int, d: int, itemsize: int, memory: int | None = None, devices: int = 1
) -> Tile:
    """The tiling of `neurons` paths within `memory` bytes a device (`default_memory` if None)."""
    coordinates = n if n <= d else d + 1
    # Outputs, gated forces and initial outputs at the points; displacement, velocity, force, start.
    numbers = 3 * n + 4 * coordinates
    each = numbers * itemsize
    at_once = max(1, (memory or default_memory()) // each) * devices
    count = -(-neurons // at_once)
    size = -(-neurons // count)
    size += -size % devices
    return Tile(size, count, each * (size // devices))


class Paths(NamedTuple):
    """What was recorded of neurons on their way.

    Attributes:
        drift: (neurons, coordinates), G at the start.
        moved: (records, neurons, coordinates), displacements. Coordinates are those of (w, b), or
            coefficients of the n rows (x_n, c).
    """

    drift: np.ndarray
    moved: np.ndarray


def simulate(
    kernel: TwoLayerNTK,
    x: Float[Array, "n d"],
    y: Float[Array, " n"],
    start: Float[np.ndarray, "neurons d+1"],
    readout: Float[np.ndarray, " neurons"],
    schedule: Schedule,
    records: Sequence[int],
    *,
    mesh: Mesh | None = None,
    progress: Any = None,
) -> Paths:
    """The displacements of neurons after the steps `records`, in the dtype of x.

    `start` are weights and biases (w, b); `readout` is alpha = sqrt(width) a. Theory: 14.1.
    """
    field = Field.of(kernel, x, y)
    dtype = x.dtype
    devices = 1 if mesh is None else mesh.size
    n, d = x.shape
    parts = tile(len(start), n, d, dtype.itemsize, kernel.memory, devices)
    shape = (len(start), field.coordinates)
    found = Paths(np.empty(shape, dtype), np.empty((len(records), *shape), dtype))
    for rows in _rows(len(start), parts.neurons):
        count = rows.stop - rows.start
        neurons = _padded(start[rows].astype(dtype), parts.neurons)
        alphas = _padded(readout[rows].astype(dtype), parts.neurons)
        begin, drift = _begin(field, neurons)
        found.drift[rows] = np.asarray(drift)[:count]
        stretches = _stretches(begin, alphas, field, schedule, records, mesh)
        done = 0
        for index, path in enumerate(stretches):
            found.moved[index, rows] = np.asarray(path)[:count]
            if progress is not None:
                progress.update((records[index] - done) * count)
            done = records[index]
    return found


def _rows(neurons: int, size: int) -> Iterator[slice]:
    for first in range(0, neurons, size):
        yield slice(first, min(first + size, neurons))


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    missing = size - len(rows)
    return np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1))


def _stretches(
    begin: Array,
    readout: np.ndarray,
    field: Field,
    schedule: Schedule,
    records: Sequence[int],
    mesh: Mesh | None,
) -> Iterator[Array]:
    """Displacements of one tile, record by record."""
    dtype = field.points.dtype
    length = schedule.steps + -schedule.steps % _RATES_AT_ONCE
    rates = jnp.asarray(_padded(schedule.rates, length), dtype)
    momentum = jnp.asarray(schedule.momentum, dtype)
    still = jnp.zeros((len(readout), field.coordinates), dtype)
    path = Path(still, jnp.zeros_like(still))
    alphas = jnp.asarray(readout)
    if mesh is not None:
        own = meshes.automatic(mesh)
        begin, alphas, path = meshes.shard(own, "constant", (begin, alphas, path))
        field, rates, momentum = meshes.replicate(own, (field, rates, momentum))
        mesh = own
    done = 0
    for record in records:
        span = (jnp.asarray(done), jnp.asarray(record))
        path = _advance(
            path,
            span,
            begin,
            alphas,
            field,
            rates,
            momentum,
            midpoint=schedule.midpoint,
            mesh=mesh,
        )
        done = record
        yield path.moved if mesh is None else meshes.collect(path.moved, len(readout))
