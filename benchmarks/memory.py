"""Peak memory of one product with a large kernel matrix, above the data, each in a fresh process."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

import perturbkernel

from . import alternatives as other
from .harness import Case, Group, NotHere, Row, Settings
from .products import described, points

METHODS = ("perturbkernel", "NumPy", "scikit-learn", "neural-tangents")


def _shape(settings: Settings) -> tuple[int, int, int]:
    return (8192, 8192, 100) if settings.quick else (16384, 16384, 100)


def _kilobytes(name: str) -> int:
    """VmRSS, what is resident now, or VmHWM, the most that ever was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise NotHere(f"the system does not tell {name}")


def _prepare(method: str, shape: tuple[int, int, int]):
    x, z, coef = points(shape, 0)
    if method == "NumPy":
        return partial(other.numpy_matvec, z, x, coef)
    if method == "scikit-learn":
        ntk = other.sklearn_ntk(z, x)
        return lambda: ntk() @ coef
    on_device = jnp.asarray(z), jnp.asarray(x), jnp.asarray(coef)
    if method == "neural-tangents":
        return partial(other.tangents_matvec(), *on_device)
    return partial(perturbkernel.TwoLayerNTK(0.0, train_bias=True).matvec, *on_device)


def child(method: str, *shape: int) -> None:
    """What the fresh process runs: prints how many kilobytes the first call adds at most."""
    n, m, d = shape
    jax.block_until_ready(_prepare(method, (64, 64, d))())  # libraries load what they load once
    call = _prepare(method, (n, m, d))
    before = _kilobytes("VmRSS")
    if (reset := Path("/proc/self/clear_refs")).exists():
        reset.write_text("5")  # forget the peak of what came before
    jax.block_until_ready(call())
    print(max(0, _kilobytes("VmHWM") - before))


def _peak(method: str, shape: tuple[int, int, int]) -> int:
    """Bytes."""
    code = f"from perturbkernel.bench import suite; suite().memory.child({method!r}, *{shape!r})"
    # The package that runs here is found there first, wherever that process starts.
    paths = [str(Path(perturbkernel.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the process ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return 1024 * int(done.stdout.split()[-1])


def _measure(method: str, settings: Settings) -> list[Row]:
    shape = _shape(settings)
    if not Path("/proc/self/status").exists() or jax.default_backend() != "cpu":
        raise NotHere("peaks are read from Linux' /proc, which knows the memory of the CPU alone")
    if method == "scikit-learn":
        other.sklearn_ntk(*points((1, 1, 1), 0)[:2])
    if method == "neural-tangents":
        other.tangents()
    matrix = 4 * shape[0] * shape[1]
    peaks = [_peak(method, shape) for _ in range(settings.rounds(3, 1))]
    note = f"{sorted(peaks)[len(peaks) // 2] / 2**20:.0f} MiB; the matrix has {matrix / 2**20:.0f} MiB"
    return [Row("matvec", described(shape), method, "the matrix", tuple(peak / matrix for peak in peaks), note=note)]


def _cases(settings: Settings) -> list[Case]:
    return [Case("matvec", described(_shape(settings)), partial(_measure, method, settings)) for method in METHODS]


GROUP = Group(
    "memory",
    "Memory",
    "peak memory above the data / size of the kernel matrix in float32",
    _cases,
    one="the kernel matrix",
)
