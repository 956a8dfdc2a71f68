"""Many devices and many points, each in a fresh process.

The number of devices of a CPU has to be set before JAX starts, and the peak of the memory is that
of a whole process.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from perturbkernel import TwoLayerNTK
from perturbkernel.kernels.forecast import in_bytes, in_time

from .harness import Case, Group, Row, Settings, fresh_process, ratios, times
from .products import described, points

COUNTS = (1, 2, 4, 8)
DIMENSION = 784
STAGES = {
    "f at its training points": "matvec",
    "perturbations": "input_gradient",
    "g at the clean points": "matvec",
}


def devices_child(
    what: str, shape: Sequence[int], counts: Sequence[int], rounds: int, seed: int
) -> None:
    """What the fresh process with max(counts) devices runs: prints the fields of a row for each
    count, as JSON.
    """
    n, m, d = shape
    x, z, coef = map(jnp.asarray, points((n, m, d), seed))
    kernel = TwoLayerNTK(0.0, train_bias=True)
    product = partial(getattr(kernel, what), z, x, coef)
    calls = [product]
    for count in counts:
        some = jax.devices()[:count]
        mesh = jax.make_mesh((count,), ("devices",), devices=some)
        calls.append(partial(product, mesh=mesh))
    for call in calls:
        jax.block_until_ready(call())
    seconds = times(calls, rounds)
    subjects = range(1, len(calls))
    print(json.dumps([ratios(seconds, subject=subject, reference=0) for subject in subjects]))


def _over_devices(what: str, settings: Settings) -> Iterator[Row]:
    shape, rounds = _shape(settings), settings.rounds(9, 3)
    before = os.environ.get("XLA_FLAGS", "")
    flags = f"{before} --xla_force_host_platform_device_count={max(COUNTS)}"
    code = (
        "from perturbkernel.cli.bench import suite; "
        f"suite().scale.devices_child({what!r}, {shape}, {COUNTS}, {rounds}, "
    )
    printed = fresh_process(f"{code}{settings.seed})", XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    note = f"virtual devices that share {os.cpu_count()} cores: what dividing costs, no speed-up"
    for k, fields in zip(COUNTS, json.loads(printed), strict=True):
        row = Row(
            what,
            f"{k} device{'s' * (k > 1)}, {described(shape)}",
            "perturbkernel",
            "no mesh",
            note=note,
        )
        yield replace(row, **{**fields, "samples": tuple(fields["samples"])})


def _shape(settings: Settings) -> tuple[int, int, int]:
    return (2048, 2048, 100) if settings.quick else (8192, 4096, 784)


def _device_cases(settings: Settings) -> list[Case]:
    sizes, cost = (
        f"1 to 8 virtual devices, {described(_shape(settings))}",
        9 if settings.quick else 60,
    )
    products = ("matvec",) if settings.quick else ("matvec", "input_gradient")
    return [
        Case(what, sizes, partial(_over_devices, what, settings), cost=cost) for what in products
    ]


DEVICES = Group(
    "devices",
    "Several devices",
    "time on a mesh of virtual CPU devices / time without a mesh",
    _device_cases,
    "no mesh",
)


def large_child(n: int) -> None:
    """What the fresh process runs: prints what the plan promises and what `large.run` measures, as
    JSON.
    """
    from . import large  # here, so that `python -m benchmarks.large` is not imported before it runs

    kernel = TwoLayerNTK()
    # The last stage has other points than queries; the plan's rate is measured on two tiles.
    sizes = dict(zip(STAGES, (None, None, n), strict=True))
    plans = {
        stage: kernel.plan(n, sizes[stage], DIMENSION, what=what).seconds
        for stage, what in STAGES.items()
    }
    print(json.dumps({"planned": plans, **large.run(n, DIMENSION, progress=False)}))


def _large(n: int, settings: Settings) -> Iterator[Row]:
    code = f"from perturbkernel.cli.bench import suite; suite().scale.large_child({n})"
    # Every run compiles: a large part of the time of a few thousand points.
    rounds = settings.rounds(1, 1)
    runs = [json.loads(fresh_process(code)) for _ in range(rounds)]
    first, *_ = runs
    f, g = first["accuracy"]
    above = in_bytes(first["above"])
    data = in_bytes(first["data"])
    notes = {
        "f at its training points": f"accuracy of f {f:.4f}",
        "perturbations": f"in all {above} above the data's {data}",
        "g at the clean points": f"accuracy of g {g:.4f}",
    }
    for stage in STAGES:
        seconds = [run["seconds"][stage] for run in runs]
        planned = [run["planned"][stage] for run in runs]
        samples = tuple(a / b for a, b in zip(seconds, planned, strict=True))
        note = f"{notes[stage]}; planned: {in_time(planned[0])}"
        yield Row(
            stage,
            _described(n),
            "perturbkernel",
            "the plan",
            samples,
            seconds=sorted(seconds)[-1],
            note=note,
        )


def _described(n: int) -> str:
    return f"N = {n:,}, d = {DIMENSION}"


def _large_cases(settings: Settings) -> list[Case]:
    n, cost = (5_000, 14) if settings.quick else (60_000, 360)
    return [Case("identity", _described(n), partial(_large, n, settings), cost=cost)]


LARGE = Group(
    "large",
    "As many points as a data set has",
    "time, compiling included / time that kernel.plan promised",
    _large_cases,
    one="the plan",
)
