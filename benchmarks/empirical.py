"""The kernel of a network of one's own against explicit Jacobians: `jax.jacrev` row by row,
reshaped, concatenated, and multiplied.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbkernel import EmpiricalNTK

from .harness import Case, Group, NotHere, Row, Settings, compare, fresh_process
from .memory import kilobytes

SIDE = 14
REFERENCE = "explicit Jacobians"


def dense(params: Any, x: Any) -> Any:
    """A network of 196, 200, 70 and 1 units: 53,541 parameters."""
    h = x
    for w, b in params[:-1]:
        h = jnp.tanh(h @ w + b)
    w, b = params[-1]
    return (h @ w + b)[:, 0]


def convolutional(params: Any, x: Any) -> Any:
    """Two 3 x 3 convolutions of 16 and 32 channels, each of stride 2, and a readout."""
    h = x.reshape(-1, SIDE, SIDE, 1)
    for w in params[:-1]:
        h = jax.lax.conv_general_dilated(
            h, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        h = jnp.tanh(h)
    return h.reshape(len(x), -1) @ params[-1]


def _drawn(rng: np.random.Generator, shape: tuple[int, ...]) -> jax.Array:
    fan_in = np.prod(shape[:-1])
    return jnp.asarray(rng.normal(size=shape) / np.sqrt(fan_in), jnp.float32)


def _network(name: str) -> tuple[Callable[..., Any], Any]:
    rng = np.random.default_rng(0)
    if name == "cnn":
        shapes = (3, 3, 1, 16), (3, 3, 16, 32), (16 * 32,)
        return convolutional, [_drawn(rng, shape) for shape in shapes]
    widths = SIDE**2, 200, 70, 1
    layers = []
    for inputs, outputs in itertools.pairwise(widths):
        weights = _drawn(rng, (inputs, outputs))
        biases = _drawn(rng, (outputs,))
        layers.append((weights, biases))
    return dense, layers


def _jacobian(apply: Callable[..., Any], params: Any, x: jax.Array) -> jax.Array:
    def of_row(row):
        return jax.jacrev(lambda params: apply(params, row[None])[0])(params)

    # jacrev of all rows at once would pass back through the whole batch for each of them.
    gradients = jax.vmap(of_row)(x)
    rows = [leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(gradients)]
    return jnp.concatenate(rows, axis=1)


@partial(jax.jit, static_argnums=0)
def explicit_matvec(apply: Callable[..., Any], params: Any, z: Any, x: Any, coef: Any) -> Any:
    """K c from both Jacobians and their product, the matrix."""
    matrix = explicit_ntk(apply, params, z, x, coef)
    return matrix @ coef


@partial(jax.jit, static_argnums=0)
def explicit_ntk(apply: Callable[..., Any], params: Any, z: Any, x: Any, _: Any) -> Any:
    """The matrix."""
    at_z = _jacobian(apply, params, z)
    at_x = _jacobian(apply, params, x)
    return at_z @ at_x.T


def _calls(network: str, task: str, n: int) -> dict[str, Callable[[], Any]]:
    apply, params = _network(network)
    rng = np.random.default_rng(1)
    z, x = jnp.asarray(rng.normal(size=(2, n, SIDE**2)), jnp.float32)
    coef = jnp.asarray(rng.normal(size=n), jnp.float32)
    kernel = EmpiricalNTK(apply, params)
    if task == "matvec":
        ours = partial(kernel.matvec, z, x, coef)
        explicit = explicit_matvec
    else:
        ours = partial(kernel.ntk, z, x)
        explicit = explicit_ntk
    theirs = partial(explicit, apply, params, z, x, coef)
    return {"perturbkernel": ours, REFERENCE: theirs}


def child(method: str, network: str, task: str, n: int) -> None:
    """What a fresh process runs: prints how many kilobytes the first call adds at most."""
    small = _calls(network, task, 8)[method]
    jax.block_until_ready(small())  # compiles what does not depend on n
    call = _calls(network, task, n)[method]
    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    jax.block_until_ready(call())
    print(max(0, kilobytes("VmHWM") - before))


def _times(network: str, task: str, n: int, settings: Settings) -> Iterator[Row]:
    calls = _calls(network, task, n)
    yield from compare(
        task,
        f"{network}, n = m = {n}",
        (REFERENCE, lambda: calls[REFERENCE]),
        {"perturbkernel": lambda: calls["perturbkernel"]},
        settings.rounds(5, 1),
        tolerance=1e-3,
        same_result=True,
    )


def _memory(network: str, task: str, n: int) -> Iterator[Row]:
    if not Path("/proc/self/clear_refs").exists() or jax.default_backend() != "cpu":
        raise NotHere("peaks are read from Linux' /proc, which knows the memory of the CPU alone")
    peaks = {}
    for method in ("perturbkernel", REFERENCE):
        arguments = f"{method!r}, {network!r}, {task!r}, {n}"
        code = f"from perturbkernel.cli.bench import suite; suite().empirical.child({arguments})"
        peaks[method] = max(1, int(fresh_process(code)))
    ours = peaks["perturbkernel"]
    explicit = peaks[REFERENCE]
    yield Row(
        f"{task}, memory",
        f"{network}, n = m = {n}",
        "perturbkernel",
        REFERENCE,
        (ours / explicit,),
        note=f"{ours / 1024:.0f} MiB against {explicit / 1024:.0f} MiB",
    )


def _cases(settings: Settings) -> list[Case]:
    counts = (50,) if settings.quick else (200, 800)
    cases = []
    for network in ("mlp", "cnn"):
        for task in ("matvec", "ntk"):
            for n in counts:
                sizes = f"{network}, n = m = {n}"
                measure = partial(_times, network, task, n, settings)
                cases.append(Case(task, sizes, measure, 15))
        largest = counts[-1]
        measure = partial(_memory, network, "matvec", largest)
        cases.append(Case("memory", f"{network}, n = m = {largest}", measure, 20))
    return cases


GROUP = Group(
    "empirical",
    "The kernel of a trained network",
    "time, or peak memory, relative to explicit Jacobians",
    _cases,
    one="explicit Jacobians",
)
