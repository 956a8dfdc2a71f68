"""plans.py: what a product will take, before it runs; the large benchmark at a small size."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks import large
from perturbkernel.kernels import forecast as plans
from perturbkernel.kernels.two_layer import TwoLayerNTK

KERNEL: Any = TwoLayerNTK(memory=2**20)
COUNTED: list[tuple[int, int]] = []


class Counted(TwoLayerNTK):
    """Reports every tile that is evaluated."""

    def tile(self, name, z, x):
        jax.debug.callback(lambda: COUNTED.append((len(z), len(x))))
        return 1 + z @ x.T


@pytest.mark.parametrize("m", [None, 70])
def test_the_plan_is_what_runs(m):
    kernel, n, d = Counted(memory=2**20), 200, 300
    x, z = jnp.ones((n, d)), jnp.ones((m or 1, d))
    plan = kernel.plan(n, m, d, rate=1e9)
    COUNTED.clear()
    jax.block_until_ready(kernel.matvec(x if m is None else z, x, jnp.ones(n)))
    jax.effects_barrier()
    assert len(COUNTED) == plan.tiles > 3
    assert set(COUNTED) == {plan.tile}
    assert plan.memory <= 2**20
    assert plan.data == 4 * (n * d + n + (m or 0) * d)
    assert plan.result == 4 * (m or n)


def test_operations_and_seconds():
    assert KERNEL.plan(100, 50, 10, rate=1e6).operations == 2 * 100 * 50 * 10
    assert (
        KERNEL.plan(100, 50, 10, what="input_gradient", rate=1e6).operations
        == 2 * 2 * 100 * 50 * 10
    )
    assert KERNEL.plan(100, 50, 10, what="phi_matmul", rate=1e6).operations == 2 * 2 * 100 * 50 * 10
    one, many = (KERNEL.plan(10_000, 5_000, 10, rate=1e6, devices=devices) for devices in (1, 8))
    assert one.seconds == 10_000 * 5_000 * 20 / 1e6 == 8 * many.seconds
    same, other = (
        KERNEL.plan(10_000, None, 784, rate=1e6),
        KERNEL.plan(10_000, 10_000, 784, rate=1e6),
    )
    assert 0.5 < same.seconds / other.seconds < 0.51


def test_a_plan_can_be_read():
    text = str(KERNEL.plan(60_000, None, 784, what="input_gradient", devices=8, rate=2e11))
    for part in (
        "input_gradient: 60,000 points with themselves, d = 784, on 8 devices",
        "KiB of temporaries",
        "7.06 s",
    ):
        assert part in text


def test_the_rate_is_measured():
    plan = KERNEL.plan(100, 100, 8)
    assert 1e6 < plan.rate < 1e16
    assert plan.seconds < 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"m": 1.5}, "m must be a whole number"),
        ({"what": "f"}, "what must be one"),
        ({"d": 0}, "d must be at least 1"),
        ({"devices": 0}, "devices must be"),
        ({"memory": 0}, "memory must be"),
        ({"rate": 0.0}, "rate must be > 0"),
        ({"columns": 0}, "columns must be"),
    ],
)
def test_bad_plans(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        KERNEL.plan(**({"n": 5, "m": 5, "d": 5, "rate": 1.0} | options))


@pytest.mark.parametrize("memory", [0, 2.5, 2**20 - 1])
def test_bad_budgets(memory):
    with pytest.raises((ValueError, TypeError), match="memory must be"):
        TwoLayerNTK(memory=memory)


def test_bytes_and_times_are_written_for_people():
    assert [plans.in_bytes(b) for b in (0, 1536, 2**30, 2**50)] == [
        "0 B",
        "1.5 KiB",
        "1 GiB",
        "1.02e+03 TiB",
    ]
    assert [plans.in_time(s) for s in (1e-3, 1.0, 119, 5400, 1e6)] == [
        "1 ms",
        "1 s",
        "119 s",
        "90 min",
        "11.6 d",
    ]


def test_the_large_benchmark_at_a_small_size():
    result = large.run(300, 20, progress=False)
    assert set(result["seconds"]) == {
        "f at its training points",
        "perturbations",
        "g at the clean points",
    }
    assert min(result["accuracy"]) > 0.5
    assert result["above"] > 0
    text = large.table(rate=1e11)
    assert text.startswith("Extrapolated, not measured")
    assert text.count("\n| ") == 13 + 1
