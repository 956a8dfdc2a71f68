"""Losses that need solves, timed: functions that return dictionaries of numbers, and a command that prints them.

    python benchmarks/solvers.py                       # all; --only heavy_ball path flow interpolation to choose
    python benchmarks/solvers.py --only interpolation --memory 0   # nothing held: products in tiles

Times are seconds, medians over repeats that are interleaved where two things are compared; the first run of each,
which compiles, is not counted. "peak" is the growth of the process's largest resident size, in bytes.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import perturbkernel as pk
from perturbkernel.architectures import load_neural_tangents
from perturbkernel.gram import gram_operator
from perturbkernel.logistic import logistic_path

KERNEL = pk.TwoLayerNTK(0.0, train_bias=True)


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Median, least and largest seconds of each call; all of them in turn, `repeats` times, after one that compiles."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            jax.block_until_ready(call())
            if repeat:
                taken[name].append(time.perf_counter() - begin)
    return {
        name: {"median": float(np.median(t)), "least": min(t), "largest": max(t), "repeats": len(t)}
        for name, t in taken.items()
    }


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def heavy_ball(n: int = 10_000, d: int = 784, steps: int = 100, repeats: int = 3) -> dict[str, Any]:
    """Logistic heavy ball, building the Gram matrix included."""
    data = pk.data.shifted_gaussian(n, d, key=jax.random.key(0))
    dynamics = pk.HeavyBall(0.1, steps)

    def call():
        return pk.fit(KERNEL, data.inputs, data.targets, loss="logistic", dynamics=dynamics)

    return {"n": n, "d": d, "steps": steps, "fit": interleaved({"fit": call}, repeats)["fit"], "stats": call().stats}


def path(n: int = 10_000, d: int = 10, until: float = 1e5, rtol: float = 1e-3, repeats: int = 1) -> dict[str, Any]:
    """The logistic flow to a late time: products with a Gram matrix that is held."""
    data = pk.data.shifted_gaussian(n, d, key=jax.random.key(0))
    operator = gram_operator(KERNEL, data.inputs)
    times = np.array([until])
    found = logistic_path(operator, data.targets, None, times, rtol)
    seconds = interleaved({"path": lambda: logistic_path(operator, data.targets, None, times, rtol)}, repeats)
    numbers = {"products": int(found.products), "steps": int(found.steps), "drift": float(found.drift)}
    return {"n": n, "d": d, "time": until, "rtol": rtol, **numbers, **seconds}


def flow(n: int = 500, m: int = 50, d: int = 100, until: float = 3.0, repeats: int = 5) -> dict[str, Any]:
    """fit and predict against neural_tangents.predict.gradient_descent, which is given its kernel matrices.

    Its call compiles anew each time; "jitted" is the same call inside `jax.jit`, compiled once.
    """
    predict: Any = load_neural_tangents("predict")
    data = pk.data.shifted_gaussian(n + m, d, key=jax.random.key(0))
    x, y, z = data.inputs[:n], data.targets[:n], data.inputs[n:]
    train, test = KERNEL.ntk(x), KERNEL.ntk(z, x)
    theirs = predict.gradient_descent(lambda f, y: jnp.mean(jnp.logaddexp(0, -y * f)), train, y[:, None])

    def call():
        return theirs(until, jnp.zeros((n, 1)), jnp.zeros((m, 1)), test)[1][:, 0]

    def ours():
        return pk.fit(KERNEL, x, y, loss="logistic", dynamics=pk.GradientFlow(until))(z)

    calls = {"fit and predict": ours, "neural-tangents": call, "neural-tangents, jitted": jax.jit(call)}
    seconds = interleaved(calls, repeats)
    with jax.enable_x64(True):
        exact: list[Any] = [np.asarray(a, float) for a in (x, y, z)]
        reference = pk.fit(KERNEL, *exact[:2], loss="logistic", dynamics=pk.GradientFlow(until), tolerance=1e-12)(
            exact[2]
        )
    errors = {k: float(np.abs(np.asarray(f()) - reference).max() / np.abs(reference).max()) for k, f in calls.items()}
    ratio = seconds["neural-tangents"]["median"] / seconds["fit and predict"]["median"]
    return {"n": n, "m": m, "d": d, "time": until, "ratio": ratio, "errors": errors, **seconds}


def interpolation(n: int = 20_000, d: int = 100, memory: float | None = None) -> dict[str, Any]:
    """The squared loss at infinite time by conjugate gradients; one run, compiling included, with its peak memory."""
    data = pk.data.shifted_gaussian(n, d, key=jax.random.key(0))
    before, begin = peak_memory(), time.perf_counter()
    f = pk.fit(KERNEL, data.inputs, data.targets, loss="squared", dynamics=pk.GradientFlow(np.inf), memory=memory)
    jax.block_until_ready(f.dual_coef)
    seconds = time.perf_counter() - begin
    return {
        "n": n, "d": d, "memory": memory, "seconds": seconds, "peak": peak_memory() - before,
        "matrix": 4 * n**2, "status": f.status, "stats": f.stats,
    }  # fmt: skip


BENCHMARKS = {"heavy_ball": heavy_ball, "path": path, "flow": flow, "interpolation": interpolation}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--n", type=int, help="points, instead of each benchmark's own number")
    parser.add_argument("--d", type=int, help="dimension")
    parser.add_argument("--memory", type=float, help="bytes for the Gram matrix (interpolation)")
    given = parser.parse_args()
    sizes = {name: getattr(given, name) for name in ("n", "d") if getattr(given, name) is not None}
    for name in given.only:
        extra = {"memory": given.memory} if name == "interpolation" else {}
        print(json.dumps({"benchmark": name, **BENCHMARKS[name](**sizes, **extra)}, indent=1), flush=True)
