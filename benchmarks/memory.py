"""Peak memory of one product with a large kernel matrix above the data, each in a fresh process."""

import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from perturbkernel import TwoLayerNTK
from perturbkernel.kernels import host

from . import alternatives as other
from .harness import Case, Group, NotHere, Row, Settings, fresh_process
from .products import described, points

METHODS = ("perturbkernel", "NumPy", "scikit-learn", "neural-tangents")


def _shape(settings: Settings) -> tuple[int, int, int]:
    return (6144, 6144, 100) if settings.quick else (16384, 16384, 100)


def kilobytes(name: str) -> int:
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
    on_device = [jnp.asarray(array) for array in (z, x, coef)]
    if method == "neural-tangents":
        return partial(other.tangents_matvec(), *on_device)
    kernel = TwoLayerNTK(0.0, train_bias=True)
    return partial(kernel.matvec, *on_device)


def child(method: str, *shape: int) -> None:
    """What the fresh process runs: prints how many kilobytes the first call adds at most."""
    n, m, d = shape
    # Libraries and compilers load what they load once: with more pairs than NumPy takes.
    side = math.isqrt(host.PAIRS) + 1
    small = _prepare(method, (side, side, d))
    jax.block_until_ready(small())
    call = _prepare(method, (n, m, d))
    before = kilobytes("VmRSS")
    if (reset := Path("/proc/self/clear_refs")).exists():
        reset.write_text("5")  # forget the peak of what came before
    jax.block_until_ready(call())
    added = kilobytes("VmHWM") - before
    print(max(0, added))


def _peak(method: str, shape: tuple[int, int, int]) -> int:
    """Bytes."""
    code = (
        f"from perturbkernel.cli.bench import suite; suite().memory.child({method!r}, *{shape!r})"
    )
    return 1024 * int(fresh_process(code))


def _measure(method: str, settings: Settings) -> list[Row]:
    shape = _shape(settings)
    if not Path("/proc/self/status").exists() or jax.default_backend() != "cpu":
        raise NotHere("peaks are read from Linux' /proc, which knows the memory of the CPU alone")
    if method == "scikit-learn":
        tiny = points((1, 1, 1), 0)
        other.sklearn_ntk(tiny.z, tiny.x)
    if method == "neural-tangents":
        other.tangents()
    n, m, _ = shape
    matrix = 4 * n * m
    rounds = settings.rounds(3, 1)
    peaks = [_peak(method, shape) for _ in range(rounds)]
    middle = sorted(peaks)[len(peaks) // 2]
    note = f"{middle / 2**20:.0f} MiB; the matrix has {matrix / 2**20:.0f} MiB"
    return [
        Row(
            "matvec",
            described(shape),
            method,
            "the matrix",
            tuple(peak / matrix for peak in peaks),
            note=note,
        )
    ]


def _cases(settings: Settings) -> list[Case]:
    sizes, cost = described(_shape(settings)), 3 if settings.quick else 20
    return [Case("matvec", sizes, partial(_measure, method, settings), cost) for method in METHODS]


GROUP = Group(
    "memory",
    "Memory",
    "peak memory above the data / size of the kernel matrix in float32",
    _cases,
    one="the kernel matrix",
)
