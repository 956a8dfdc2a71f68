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
    signs = rng.choice([-1, 1], (2, n))
    y, t = signs.astype(np.float32)
    noise = rng.standard_normal((n, d), np.float32)
    shift = np.float32(0.3)
    x = noise + shift * y[:, None]
    return Task(x, y, t)


def accuracy(outputs: np.ndarray, y: np.ndarray) -> float:
    """The share of outputs of the sign of their label."""
    right = np.sign(outputs) == y
    return float(right.mean())


def by_perturbkernel(task: Task) -> float:
    """fit, perturb, fit, accuracy."""
    import perturbkernel as pk

    kernel = pk.TwoLayerNTK(0.0, train_bias=True)
    x, y, t = task
    f = pk.fit(kernel, x, y)
    found = pk.perturb(f, x, t, size=SIZE)
    moved = x + np.asarray(found.delta)
    g = pk.fit(kernel, moved, t)
    outputs = np.asarray(g(x))
    return accuracy(outputs, y)


def by_perturbkernel_cached(task: Task) -> float:
    """The same with the folder of compiled programs, as a user switches it on."""
    import perturbkernel as pk

    pk.use_compilation_cache()
    return by_perturbkernel(task)


def by_numpy(task: Task) -> float:
    """Blocks of NumPy; the identity loss has dual coefficients y/n, times the time of training."""
    beside = Path(__file__).with_name("numpy_kernel.py")
    kernel = runpy.run_path(str(beside))
    gradient_of = kernel["numpy_input_gradient"]
    outputs_of = kernel["numpy_matvec"]
    x, y, t = task
    n = np.float32(len(x))
    gradient = gradient_of(x, x, y / n, at_points=True)
    moved = x + _step(gradient, t)
    outputs = outputs_of(x, moved, t / n)
    return accuracy(outputs, y)


def by_neural_tangents(task: Task) -> float:
    """Its kernel, jitted once for outputs and once for gradients by autodiff."""
    _stand_in_for_its_package()
    stax = importlib.import_module("neural_tangents.stax")
    import jax

    dense = stax.Dense(1, W_std=1, b_std=1, parameterization="standard")
    relu = stax.LeakyRelu(0.0)
    _, _, kernel = stax.serial(dense, relu)

    def matvec(z, x, coef):
        return kernel(z, x, "ntk") @ coef

    def total(z, x, coef):
        outputs = matvec(z, x, coef)
        return outputs.sum()

    outputs_of = jax.jit(matvec)
    gradient_of = jax.jit(jax.grad(total))
    x, y, t = task
    n = np.float32(len(x))
    gradient = np.asarray(gradient_of(x, x, y / n))
    moved = x + _step(gradient, t)
    outputs = np.asarray(outputs_of(x, moved, t / n))
    return accuracy(outputs, y)


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
