"""The identity loss on as many points as a data set has: one network, every perturbation, a second
network.

python -m benchmarks.large run [N]      trains, perturbs and evaluates on N points (60,000), d = 784
python -m benchmarks.large table [RATE] extrapolates time and memory to larger N and more devices
"""

import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from tqdm import tqdm

import perturbkernel as pk
from perturbkernel.data.draws import draw_targets
from perturbkernel.kernels.forecast import in_bytes, in_time
from perturbkernel.metrics import accuracy

SIZE = 1.4


def resident() -> int:
    """Bytes of memory that this process holds now; of an accelerator's, where it computes there."""
    held = _of_accelerator("bytes_in_use")
    if held is not None:
        return held
    with open("/proc/self/statm") as file:
        _, pages, *_ = file.read().split()
    return int(pages) * resource.getpagesize()


def peak() -> int:
    """The most bytes that this process ever held, as `resident`."""
    held = _of_accelerator("peak_bytes_in_use")
    if held is not None:
        return held
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_maxrss * 1024


def _of_accelerator(what: str) -> int | None:
    """Of what its runtime counts, in bytes; None on a CPU, whose runtime counts nothing."""
    device, *_ = jax.devices()
    counted = device.memory_stats() or {}
    return counted.get(what)


def run(
    n: int = 60_000, d: int = 784, memory: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """f on n synthetic points, all n perturbations, g trained on perturbed data, and both
    accuracies on all points.

    Args:
        n, d: points and dimension of a shifted Gaussian.
        memory: bytes for the tiles, as in TwoLayerNTK.
        progress: show a bar for each stage, on standard error.

    Returns:
        "seconds" a stage; "accuracy" of f and g; "data", the bytes of the data set; "above", the
        peak of the resident memory above what was held with JAX started and the data there.
    """
    data_key = jax.random.key(0)
    targets_key = jax.random.key(1)
    train = pk.data.shifted_gaussian(n, d, shift=0.1, key=data_key)
    x = train.inputs
    jax.block_until_ready(x)
    targets = draw_targets("coin_flip", n, key=targets_key)
    kernel = pk.TwoLayerNTK(memory=memory)
    flow = pk.GradientFlow(10.0)
    stages = _Stages(n, progress)
    held = resident()

    f = pk.fit(kernel, x, train.targets, dynamics=flow)
    at_points = partial(f, x)
    outputs_f = stages.timed("f at its training points", at_points)
    attack = partial(pk.perturb, f, x, targets, size=SIZE)
    p = stages.timed("perturbations", attack)
    g = pk.fit(kernel, x + p.delta, targets, dynamics=flow)
    del p
    at_points = partial(g, x)
    outputs_g = stages.timed("g at the clean points", at_points)
    of_f = accuracy(outputs_f, train.targets)
    of_g = accuracy(outputs_g, train.targets)
    return {
        "seconds": stages.seconds,
        "accuracy": (float(of_f), float(of_g)),
        "data": x.nbytes,
        "above": peak() - held,
    }


class _Stages:
    """Runs stages with a bar for each, if wanted; `seconds` a stage."""

    def __init__(self, points: int, progress: bool):
        self.points = points
        self.progress = progress
        self.seconds: dict[str, float] = {}

    def timed(self, stage: str, call: Callable[..., Any]) -> Any:
        """What `call(progress=bar)` returns."""
        with tqdm(
            total=self.points,
            desc=stage,
            unit="points",
            disable=not self.progress,
            mininterval=5,
        ) as bar:
            began = time.perf_counter()
            value = jax.block_until_ready(call(progress=bar))
            self.seconds[stage] = time.perf_counter() - began
        return value


def table(rate: float | None = None, d: int = 784) -> str:
    """Extrapolated from one device's rate (measured here if left out): the time of `run` and memory
    a device.
    """
    kernel = pk.TwoLayerNTK()
    rates = {}
    for what in ("matvec", "input_gradient"):
        if rate:
            rates[what] = rate
            continue
        measured = kernel.plan(4096, 4096, d, what=what)
        rates[what] = measured.rate
    named = [f"{what} {value / 1e9:.0f} GFLOP/s" for what, value in rates.items()]
    said = ", ".join(named)
    lines = [
        f"Extrapolated, not measured, from one device's rate: {said}.",
        "",
        "| N | devices | time | memory a device | data a host |",
        "| --- | --- | --- | --- | --- |",
    ]
    for n in (10**4, 10**5, 10**6, 10**7):
        for devices in (1, 8, 64):
            row = _table_row(kernel, n, d, devices, rates)
            lines.append(row)
    return "\n".join(lines)


def _table_row(
    kernel: pk.TwoLayerNTK, n: int, d: int, devices: int, rates: dict[str, float]
) -> str:
    def planned(what: Any, m: int | None) -> pk.Plan:
        return kernel.plan(n, m, d, what=what, devices=devices, rate=rates[what])

    same = planned("matvec", None)
    gradient = planned("input_gradient", None)
    other = planned("matvec", n)
    seconds = same.seconds + gradient.seconds + other.seconds
    shared = gradient.data * 2 + gradient.result
    memory = gradient.memory + shared / devices
    took = in_time(seconds)
    cells = (f"{n:,}", devices, took, in_bytes(memory), in_bytes(same.data))
    row = " | ".join(map(str, cells))
    return f"| {row} |"


def main() -> None:
    arguments = sys.argv[1:] or ["run"]
    command, *rest = arguments
    if command == "table":
        rate = float(rest[0]) if rest else None
        print(table(rate))
        return
    kernel = pk.TwoLayerNTK()
    n = int(rest[0]) if rest else 60_000
    for m, what in ((None, "matvec"), (None, "input_gradient"), (n, "matvec")):
        plan = kernel.plan(n, m, 784, what=what)
        print(plan, flush=True)
    result = run(n)
    for stage, seconds in result["seconds"].items():
        print(f"{stage:28} {seconds:8.1f} s")
    of_f, of_g = result["accuracy"]
    above = in_bytes(result["above"])
    data = in_bytes(result["data"])
    print(f"accuracy of f {of_f:.4f}, of g {of_g:.4f}")
    print(f"peak memory {above} above the data ({data})")


if __name__ == "__main__":
    main()
