"""The identity loss on as many points as a data set has: one network, every perturbation, a second
network.

python -m benchmarks.large run [N]      trains, perturbs and evaluates on N points (60,000), d = 784
python -m benchmarks.large table [RATE] extrapolates time and memory to larger N and more devices
"""

import resource
import sys
import time
from typing import Any

import jax
from tqdm import tqdm

import perturbkernel as pk
from perturbkernel.data.draws import draw_targets
from perturbkernel.kernels.forecast import in_bytes, in_time
from perturbkernel.metrics import accuracy

SIZE = 1.4


def resident() -> int:
    """Bytes of memory that this process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def peak() -> int:
    """The most bytes that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(
    n: int = 60_000, d: int = 784, memory: int | None = None, bars: bool = True
) -> dict[str, Any]:
    """f on n synthetic points, all n perturbations, g trained on perturbed data, and both
    accuracies on all points.

    Args:
        n, d: points and dimension of a shifted Gaussian.
        memory: bytes for the tiles, as in TwoLayerNTK.
        bars: show one for each stage, on standard error.

    Returns:
        "seconds" a stage; "accuracy" of f and g; "data", the bytes of the data set; "above", the
        peak of the resident memory above what was held with JAX started and the data there.
    """
    train = pk.data.shifted_gaussian(n, d, shift=0.1, key=jax.random.key(0))
    jax.block_until_ready(train.inputs)
    data = train.inputs.nbytes
    kernel = pk.TwoLayerNTK(memory=memory)
    seconds, held = {}, resident()

    def bar(stage: str) -> tqdm:
        return tqdm(total=n, desc=stage, unit="points", disable=not bars, mininterval=5)

    def timed(stage: str, call) -> Any:
        with bar(stage) as each:
            began = time.perf_counter()
            value = jax.block_until_ready(call(each))
            seconds[stage] = time.perf_counter() - began
        return value

    f = pk.fit(kernel, train.inputs, train.targets, dynamics=pk.GradientFlow(10.0))
    outputs_f = timed("f at its training points", lambda each: f(train.inputs, progress=each))
    targets = draw_targets("coin_flip", n, key=jax.random.key(1))

    def perturbed(each: tqdm) -> pk.Perturbation:
        return pk.perturb(f, train.inputs, targets, size=SIZE, progress=each)

    p = timed("perturbations", perturbed)
    g = pk.fit(kernel, train.inputs + p.delta, targets, dynamics=pk.GradientFlow(10.0))
    del p
    outputs_g = timed("g at the clean points", lambda each: g(train.inputs, progress=each))
    return {
        "seconds": seconds,
        "accuracy": (
            float(accuracy(outputs_f, train.targets)),
            float(accuracy(outputs_g, train.targets)),
        ),
        "data": data,
        "above": peak() - held,
    }


def table(rate: float | None = None, d: int = 784) -> str:
    """Extrapolated from one device's rate (measured here if left out): the time of `run` and memory
    a device.
    """
    kernel = pk.TwoLayerNTK()
    rates = {}
    for what in ("matvec", "input_gradient"):
        rates[what] = rate or kernel.plan(4096, 4096, d, what=what).rate
    said = ", ".join(f"{what} {value / 1e9:.0f} GFLOP/s" for what, value in rates.items())
    lines = [
        f"Extrapolated, not measured, from one device's rate: {said}.",
        "",
        "| N | devices | time | memory a device | data a host |",
        "| --- | --- | --- | --- | --- |",
    ]
    for n in (10**4, 10**5, 10**6, 10**7):
        for devices in (1, 8, 64):
            lines.append(_table_row(kernel, n, d, devices, rates))
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
    memory = gradient.memory + (gradient.data * 2 + gradient.result) / devices
    cells = (f"{n:,}", devices, in_time(seconds), in_bytes(memory), in_bytes(same.data))
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    command, *rest = sys.argv[1:] or ["run"]
    if command == "table":
        print(table(float(rest[0]) if rest else None))
        return
    kernel = pk.TwoLayerNTK()
    n = int(rest[0]) if rest else 60_000
    for m, what in ((None, "matvec"), (None, "input_gradient"), (n, "matvec")):
        print(kernel.plan(n, m, 784, what=what), flush=True)
    result = run(n)
    for stage, seconds in result["seconds"].items():
        print(f"{stage:28} {seconds:8.1f} s")
    print(f"accuracy of f {result['accuracy'][0]:.4f}, of g {result['accuracy'][1]:.4f}")
    print(f"peak memory {in_bytes(result['above'])} above the data ({in_bytes(result['data'])})")


if __name__ == "__main__":
    main()
