"""The front door: simulating a pool of neurons, and what that will take (theory: 14.1)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import ArrayLike, Float, PRNGKeyArray

from perturbkernel.checks import (
    as_inputs,
    as_targets,
    check_count,
    check_key,
    check_mesh,
    check_number,
    check_progress,
)
from perturbkernel.display import Described
from perturbkernel.kernels.forecast import in_bytes, in_time
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.theory.arguments import check_kernel
from perturbkernel.theory.law.law import NeuronLaw
from perturbkernel.theory.law.paths import Schedule, simulate, tile
from perturbkernel.training.dynamics import Dynamics, GradientFlow, HeavyBall

#: Records of a path, unless asked for others; denser early, where paths bend most.
_RECORDS = 8
#: Steps of the midpoint rule for flow: outputs of neurons are off by .05 % at r = .9 on digits.
_STEPS = 100


def simulate_neurons(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    *,
    dynamics: Dynamics,
    width: int,
    neurons: int = 2000,
    antithetic: bool = True,
    steps: int = _STEPS,
    records: Sequence[int] | None = None,
    mesh: Mesh | None = None,
    progress: Any = None,
    key: PRNGKeyArray,
) -> NeuronLaw:
    """Simulates a pool of neurons, and returns the law of networks trained on (x, y) with the
    identity loss.

    Neurons do not interact, so that a pool of them is as many networks as it has neurons for, and
    one pool answers for every width and time with time / sqrt(width) up to that of `dynamics` at
    `width` (`NeuronLaw` says how exactly).

    Example:
        >>> import jax, perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0]]
        >>> law = pk.theory.simulate_neurons(
        ...     pk.TwoLayerNTK(), x, y, dynamics=pk.HeavyBall(0.1, 3), width=100, neurons=400,
        ...     key=jax.random.key(0),
        ... )
        >>> law.mean(z, width=100).value.round(1), law.std(z, width=100).value.round(1)
        (array([0.1]), array([1.3]))

    Args:
        kernel: the slope, whether biases are trained, and memory for temporaries.
        x, y: the training set, (n, d) and (n,) of -1 and +1.
        dynamics: `HeavyBall`, descent as it is; or `GradientFlow`, by the midpoint rule.
        width: of the networks that `dynamics` trains.
        neurons: how many paths to follow.
        antithetic: follow each start with readouts alpha and -alpha; `neurons` // 2 of them are
            independent. Averages gain by it, and doubled networks need it; a pool from which many
            networks are to be drawn has more of them without.
        steps: of the midpoint rule, for flow.
        records: the numbers of steps after which to keep neurons, increasing; the last step is
            always kept. Eight of them if left out.
        mesh: devices that neurons are dealt out to.
        progress: `progress.update(k)` is called after every k steps of a neuron:
            `tqdm.tqdm(total=neurons * steps)`, say.
        key: random key for weights, biases and readouts.

    Raises:
        ValueError, TypeError: bad arguments, before any computation.

    Computes in the dtype of x, averages in float64. A step takes two matrix products neurons x n x
    (d + 1), or one neurons x n x n where n <= d; `plan_neurons` forecasts.

    Theory: 14.1.
    """
    check_kernel(kernel)
    x = as_inputs(x, "x", flat=True)
    y = as_targets(y, "y", len(x))
    check_dynamics(dynamics, width, steps)
    check_neurons(neurons, antithetic)
    check_mesh(mesh)
    check_progress(progress)
    check_key(key)
    schedule = Schedule.of(dynamics, width, steps)
    kept = _checked_records(records, schedule.steps)
    start, alpha = draw_neurons(neurons // 2 if antithetic else neurons, x.shape[1], key)
    readout = np.stack([alpha, -alpha]) if antithetic else alpha[None]
    signs = len(readout)
    paths = simulate(
        kernel,
        x,
        y,
        np.tile(start, (signs, 1)),
        readout.reshape(-1),
        schedule,
        kept,
        mesh=mesh,
        progress=progress,
    )
    moved = paths.moved.reshape(len(kept), signs, len(start), -1)
    double = np.asarray(x, np.float64), np.asarray(y, np.float64)
    found = paths._replace(drift=paths.drift[: len(start)], moved=moved)
    return NeuronLaw(kernel, *double, schedule, np.asarray(kept), readout, start, found)


def draw_neurons(count: int, d: int, key: PRNGKeyArray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and biases (count, d + 1) and alpha (count,): the network's initialisation."""
    drawn = np.asarray(jax.random.normal(key, (count, d + 2), dtype=jnp.float32))
    scale = np.full(d + 1, 1 / d**0.5, np.float32)
    scale[-1] = 1
    return drawn[:, :-1] * scale, drawn[:, -1]


def check_dynamics(dynamics: Any, width: Any, steps: Any) -> None:
    """Raises unless neurons can be followed by it."""
    if not isinstance(dynamics, GradientFlow | HeavyBall):
        raise TypeError(
            f"dynamics must be GradientFlow(time) or HeavyBall(learning_rate, steps); "
            f"got {dynamics!r}"
        )
    check_number(dynamics.effective_time, "dynamics.effective_time", open_low=True)
    check_count(width, "width")
    check_count(steps, "steps")


def check_neurons(neurons: Any, antithetic: Any) -> None:
    """Raises unless it is a number of neurons, even if they come in pairs."""
    if not isinstance(antithetic, bool):
        raise TypeError(f"antithetic must be True or False; got {antithetic!r}")
    check_count(neurons, "neurons", low=4)
    if antithetic and neurons % 2:
        raise ValueError(
            f"neurons must be even when antithetic, as they come in pairs; got {neurons}"
        )


def _checked_records(records, steps: int) -> list[int]:
    """Increasing numbers of steps, of which the last is `steps`."""
    if records is None:
        shares = np.arange(1, _RECORDS + 1) / _RECORDS
        records = np.ceil(steps * shares**2).astype(int).tolist()
        return sorted(set(records))
    records = list(records)
    for record in records:
        check_count(record, "records")
    if sorted(set(records)) != records or (records and records[-1] > steps):
        raise ValueError(
            f"records must be increasing numbers of steps, at most {steps}; got {records}"
        )
    return records if records and records[-1] == steps else [*records, steps]


@dataclasses.dataclass(frozen=True)
class NeuronPlan(Described):
    """A forecast of the memory and time of a simulation of neurons; `print` it.

    Attributes:
        neurons, steps, n, d: as in `simulate_neurons`.
        tile: neurons that move at once.
        memory: bytes of temporaries on each device, at most.
        result: bytes that the law holds.
        operations: floating-point operations of the matrix products.
        rate: operations a second that all devices reach together.
    """

    neurons: int
    steps: int
    n: int
    d: int
    tile: int
    memory: int
    result: int
    operations: float
    rate: float

    @property
    def seconds(self) -> float:
        return self.operations / self.rate

    def __str__(self) -> str:
        return (
            f"neurons: {self.neurons:,}, {self.steps:,} steps, {self.n:,} points, d = {self.d:,}\n"
            f"  tile         {self.tile:,} neurons\n"
            f"  memory       {in_bytes(self.memory)} of temporaries a device; result "
            f"{in_bytes(self.result)}\n"
            f"  operations   {self.operations:.3g}\n"
            f"  time         {in_time(self.seconds)} at {self.rate / 1e9:,.3g} GFLOP/s"
        )


def plan_neurons(
    kernel: TwoLayerNTK,
    n: int,
    d: int,
    *,
    dynamics: Dynamics,
    neurons: int = 2000,
    steps: int = _STEPS,
    records: int = _RECORDS,
    mesh: Mesh | None = None,
    rate: float = 2e11,
) -> NeuronPlan:
    """What `simulate_neurons` will take, before it runs: memory, operations, seconds.

    `records` is their number; `rate` the operations a second that the machine reaches in float32
    matrix products.

    Example:
        >>> import perturbkernel as pk
        >>> plan = pk.theory.plan_neurons(
        ...     pk.TwoLayerNTK(), 12_000, 784, dynamics=pk.HeavyBall(0.01, 100), neurons=1000
        ... )
        >>> f"{plan.operations:.2g} operations, {plan.seconds:.0f} s"
        '3.8e+12 operations, 19 s'
    """
    check_kernel(kernel)
    for name, value in (("n", n), ("d", d), ("steps", steps), ("records", records)):
        check_count(value, name)
    check_dynamics(dynamics, 1, steps)
    check_neurons(neurons, False)
    check_mesh(mesh)
    check_number(rate, "rate", open_low=True)
    flow = isinstance(dynamics, GradientFlow)
    taken = steps if flow else dynamics.steps
    devices = 1 if mesh is None else mesh.size
    part = tile(neurons, n, d, 4, kernel.memory, devices)
    coordinates = n if n <= d else d + 1
    products = 1 if n <= d else 2
    each = 2.0 * products * n * coordinates * (2 if flow else 1)
    return NeuronPlan(
        neurons,
        taken,
        n,
        d,
        part.neurons,
        part.bytes,
        4 * neurons * ((records + 1) * coordinates + d + 2),
        each * neurons * taken,
        rate,
    )
