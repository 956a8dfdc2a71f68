"""Times of the tiled kernel products relative to one jitted product x @ z.T of the same shapes that stores its result.

python -m benchmarks.roofline
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

import perturbkernel as pk
from perturbkernel.architectures import load_neural_tangents

SHAPES = ((8192, 4096, 100), (4096, 4096, 784), (4096, 4096, 3072))  # n, m, d


def timed(calls: dict[str, Callable], repeats: int) -> dict[str, tuple[float, float]]:
    """Median seconds on the clock and of processor time of every call.

    The calls take turns, so that a slow moment meets all alike; on a machine with other work trust the processor time.
    """
    seconds = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            seconds[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    # The first call compiles.
    return {name: tuple(map(statistics.median, zip(*each[1:], strict=True))) for name, each in seconds.items()}


def measure(n: int, m: int, d: int, repeats: int = 5) -> dict[str, tuple[float, float]]:
    """Median seconds (clock, processor) of each quantity for n training points and m queries in dimension d; float32.

    "product" is x @ z.T, returned; "... (symmetric)" has the first m training points as queries and training points;
    "neural-tangents: ..." is the same kernel and quantity through jitted neural-tangents.
    """
    kernel = pk.TwoLayerNTK(0.0, train_bias=True)
    stax = load_neural_tangents()
    reference = stax.serial(stax.Dense(1, W_std=1, b_std=1, parameterization="standard"), stax.LeakyRelu(0.0))[2]
    x_key, z_key, c_key = jax.random.split(jax.random.key(0), 3)
    x, z, c = jax.random.normal(x_key, (n, d)), jax.random.normal(z_key, (m, d)), jax.random.normal(c_key, (n,))
    product = jax.jit(lambda x, z: x @ z.T)
    matrix = jax.jit(lambda x, z: reference(x, z, "ntk"))
    outputs = jax.jit(lambda z, x, c: reference(z, x, "ntk") @ c)
    gradient = jax.jit(jax.grad(lambda z, x, c: jnp.sum(reference(z, x, "ntk") @ c)))
    # The very same points as queries and points.
    half, c_half = x[:m], c[:m]
    return timed(
        {
            "product": lambda: product(x, z),
            "matvec": lambda: kernel.matvec(z, x, c),
            "input_gradient": lambda: kernel.input_gradient(z, x, c),
            "ntk": lambda: kernel.ntk(x, z),
            "product (symmetric)": lambda: product(half, half),
            "matvec (symmetric)": lambda: kernel.matvec(half, half, c_half),
            "input_gradient (symmetric)": lambda: kernel.input_gradient(half, half, c_half),
            "ntk (symmetric)": lambda: kernel.ntk(half),
            "neural-tangents: matvec": lambda: outputs(z, x, c),
            "neural-tangents: input_gradient": lambda: gradient(z, x, c),
            "neural-tangents: ntk": lambda: matrix(x, z),
        },
        repeats,
    )


def main() -> None:
    for n, m, d in SHAPES:
        seconds = measure(n, m, d)
        print(f"n = {n}, m = {m}, d = {d}: product {2 * n * m * d / seconds['product'][0] / 1e9:.0f} GFLOP/s")
        print(f"  {'':34} clock: ms, products   processor: ms, products")
        for name, each in seconds.items():
            unit = seconds["product (symmetric)" if "symmetric" in name else "product"]
            columns = (f"{value * 1e3:12.1f} {value / one:6.2f}" for value, one in zip(each, unit, strict=True))
            print(f"  {name:34}", *columns, flush=True)


if __name__ == "__main__":
    main()
