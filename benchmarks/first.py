"""The first result in a process of its own: train f, perturb every training point, train g on that,
and the accuracy of g on the clean points. Prints it, as JSON.

python -P benchmarks/first.py METHOD N D SEED

Only what the method itself needs is imported, as its import is a part of what is measured: this
file and `numpy_kernel` import nothing else of the suite.
"""

import importlib
import importlib.util
import json
import runpy
import sys
import types
from pathlib import Path
from typing import NamedTuple

import numpy as np

SIZE = 1.4


class Task(NamedTuple):
    """x (n, d), labels y (n,) and random targets t (n,), float32."""

    x: np.ndarray
    y: np.ndarray
    t: np.ndarray


def draw(n: int, d: int, seed: int) -> Task:
    """Two shifted Gaussians, and targets that have nothing to do with them."""
    rng = np.random.default_rng(seed)
    y = np.where(rng.random(n) < 0.5, 1, -1).astype(np.float32)
    t = np.where(rng.random(n) < 0.5, 1, -1).astype(np.float32)
    noise = rng.standard_normal((n, d), np.float32)
    return Task(noise + np.float32(0.3) * y[:, None], y, t)


def accuracy(outputs: np.ndarray, y: np.ndarray) -> float:
    """The share of outputs of the sign of their label."""
    right = np.sign(outputs) == y
    return float(right.mean())


def by_perturbkernel(task: Task) -> float:
    """fit, perturb, fit, accuracy."""
    import perturbkernel as pk

    kernel = pk.TwoLayerNTK(0.0, train_bias=True)
    f = pk.fit(kernel, task.x, task.y)
    found = pk.perturb(f, task.x, task.t, size=SIZE)
    g = pk.fit(kernel, task.x + np.asarray(found.delta), task.t)
    return accuracy(np.asarray(g(task.x)), task.y)


def by_perturbkernel_cached(task: Task) -> float:
    """The same with the folder of compiled programs, as a user switches it on."""
    import perturbkernel as pk

    pk.use_compilation_cache()
    return by_perturbkernel(task)


def by_numpy(task: Task) -> float:
    """Blocks of NumPy; the identity loss has dual coefficients y/n, times the time of training."""
    beside = Path(__file__).with_name("numpy_kernel.py")
    kernel = runpy.run_path(str(beside))
    n = np.float32(len(task.x))
    gradient = kernel["numpy_input_gradient"](task.x, task.x, task.y / n, at_points=True)
    moved = task.x + _step(gradient, task.t)
    outputs = kernel["numpy_matvec"](task.x, moved, task.t / n)
    return accuracy(outputs, task.y)


def by_neural_tangents(task: Task) -> float:
    """Its kernel, jitted once for outputs and once for gradients by autodiff."""
    _stand_in_for_its_package()
    stax = importlib.import_module("neural_tangents.stax")
    import jax

    dense = stax.Dense(1, W_std=1, b_std=1, parameterization="standard")
    _, _, kernel = stax.serial(dense, stax.LeakyRelu(0.0))

    def outputs(z, x, coef):
        return kernel(z, x, "ntk") @ coef

    def total(z, x, coef):
        return outputs(z, x, coef).sum()

    n = np.float32(len(task.x))
    gradient = jax.jit(jax.grad(total))(task.x, task.x, task.y / n)
    moved = task.x + _step(np.asarray(gradient), task.t)
    found = jax.jit(outputs)(task.x, moved, task.t / n)
    return accuracy(np.asarray(found), task.y)


def _step(gradient: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Of length SIZE toward the targets."""
    lengths = np.linalg.norm(gradient, axis=1)
    factors = np.float32(SIZE) * t / lengths
    return factors[:, None] * gradient


def _stand_in_for_its_package() -> None:
    """neural-tangents' own package imports TensorFlow, which its kernels do not need."""
    spec = importlib.util.find_spec("neural_tangents")
    if spec is None:
        raise SystemExit("neural-tangents is not installed")
    package = types.ModuleType("neural_tangents")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["neural_tangents"] = package


METHODS = {
    "perturbkernel": by_perturbkernel,
    "perturbkernel-cached": by_perturbkernel_cached,
    "neural-tangents": by_neural_tangents,
    "NumPy": by_numpy,
}


def main() -> None:
    """What the command line asks for."""
    _, method, *numbers = sys.argv
    n, d, seed = map(int, numbers)
    task = draw(n, d, seed)
    found = METHODS[method](task)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
