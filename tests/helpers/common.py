"""What several test modules share: shapes, points that are hard for a kernel, evaluators,
references.

A new shape or kernel is a new compilation of a second or so: almost every test uses N points, M
queries in dimension D."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import oracle

from perturbkernel.kernels.two_layer import TwoLayerNTK

N, M, D = 17, 11, 5  # primes: no tile divides them
SLOPES = (0.0, 0.2, 0.5, 1.0)
KERNELS: list[Any] = [
    TwoLayerNTK(slope, train_bias) for slope in SLOPES for train_bias in (False, True)
]
DTYPES = (np.float32, np.float64)


@contextmanager
def precision(dtype: Any) -> Iterator[None]:
    """JAX computes in `dtype`; usable where a fixture is not, inside a Hypothesis test."""
    with jax.enable_x64(np.dtype(dtype) == np.float64):
        yield


def label(kernel: Any) -> str:
    """Short test ids."""
    return (
        f"slope={kernel.slope:g}-bias={kernel.train_bias}"
        if isinstance(kernel, TwoLayerNTK)
        else str(kernel)
    )


def representable(array: np.ndarray, dtype: Any) -> np.ndarray:
    """float64 values that `dtype` holds exactly, so that a reference and the code under test see
    the same points.
    """
    return np.asarray(array, dtype).astype(float)


CATEGORIES = (
    "generic",
    "duplicates",
    "near duplicates",
    "collinear",
    "antipodal",
    "zeros",
    "mixed norms",
    "far cluster",
    "all",
)


def points(
    rng: np.random.Generator, category: str, scale: float = 1.0, n: int = N, m: int = M, d: int = D
):
    """x (n, d) and z (m, d) of one kind of difficulty; float64."""
    x, z = rng.normal(size=(n, d)) * scale, rng.normal(size=(m, d)) * scale
    if category == "all":
        kinds = [points(rng, kind, scale, n, m, d) for kind in CATEGORIES[:-1]]
        pick_x, pick_z = rng.integers(len(kinds), size=n), rng.integers(len(kinds), size=m)
        x = np.stack([kinds[k][0][i] for i, k in enumerate(pick_x)])
        z = np.stack([kinds[k][1][j] for j, k in enumerate(pick_z)])
        z[: m // 3] = x[: m // 3]
    elif category == "duplicates":
        x = x[rng.integers(3, size=n) % n]
        z[: m // 2] = x[rng.integers(n, size=m // 2)]
    elif category == "near duplicates":
        x[1:] = x[0] + (x[1:] - x[0]) * 10.0 ** rng.uniform(-7, -1, size=(n - 1, 1))
        z = x[rng.integers(n, size=m)] + z * 10.0 ** rng.uniform(-7, -1, size=(m, 1))
    elif category == "collinear":
        x, z = rng.normal(size=(n, 1)) * x[:1], rng.normal(size=(m, 1)) * x[:1]
        z[-1] = x[-1]
    elif category == "antipodal":
        z = -x[rng.integers(n, size=m)]
    elif category == "zeros":
        x[::2], z[::3] = 0, 0
    elif category == "mixed norms":
        x, z = (a / scale * 10.0 ** rng.uniform(-6, 6, size=(len(a), 1)) for a in (x, z))
        z[0] = x[0]
    elif category == "far cluster":
        offset = 30 * scale * rng.normal(size=d)
        x, z = x + offset, z + offset
        z[0] = x[0]
    return x, z


def sample(seed: int, category: str, scale: float, dtype: Any, **sizes: int):
    """x, z, coef (n,) and b (n, 3), all representable in `dtype`."""
    rng = np.random.default_rng(seed)
    x, z = points(rng, category, scale, **sizes)
    coef, b = rng.normal(size=len(x)), rng.normal(size=(len(x), 3))
    return tuple(representable(a, dtype) for a in (x, z, coef, b))


def awkward_points(dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """x and z of order one: training points, duplicates, zero and opposite points; no close pairs,
    so that a central difference with a small step is right everywhere, cusps included."""
    rng = np.random.default_rng(5)
    x, z = rng.normal(size=(N, D)), rng.normal(size=(M, D))
    x[4:7], x[7] = x[3], 0
    z[:4], z[4], z[5], z[6] = x[:4], x[3], 0, -x[8]
    return representable(x, dtype), representable(z, dtype)


def coincident(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    return (x[:, None] == z[None]).all(axis=-1)


# --- evaluators: everything asked of a kernel in one compilation ---


@functools.cache
def evaluator(kernel: Any) -> Callable[..., dict[str, jax.Array]]:
    @jax.jit
    def evaluate(x, z, coef, b):
        return {
            "phi": kernel.phi(x, z),
            "ntk": kernel.ntk(x, z),
            "nngp": kernel.nngp(x, z),
            "matvec": kernel.matvec(z, x, coef),
            "phi_matmul": kernel.phi_matmul(z, x, b),
            "input_gradient": kernel.input_gradient(z, x, coef),
        }

    return evaluate


def evaluate(
    kernel: Any, x, z, coef=None, b=None, *, dtype: Any = np.float64
) -> dict[str, np.ndarray]:
    """phi, ntk, ... computed in `dtype`, returned as float64; asks that nothing changed the dtype
    on the way.
    """
    coef = np.ones(len(x)) if coef is None else coef
    b = np.ones((len(x), 3)) if b is None else b
    with precision(dtype):
        values = evaluator(kernel)(x, z, coef, b)
    assert {str(v.dtype) for v in values.values()} == {np.dtype(dtype).name}
    return {name: np.asarray(value, float) for name, value in values.items()}


@functools.cache
def differentiator(
    kernel: Any, *names: str
) -> Callable[..., dict[str, tuple[jax.Array, jax.Array]]]:
    """For weights w (n, m): the gradients in x and in z of sum(w * kernel.name(x, z)), by name of
    the matrix.
    """

    @jax.jit
    def differentiate(x, z, w):
        return {
            name: jax.grad(
                lambda x, z, name=name: jnp.sum(w * getattr(kernel, name)(x, z)), (0, 1)
            )(x, z)
            for name in names
        }

    return differentiate


# --- references ---


def reference(kernel: Any, x, z, coef, b) -> dict[str, np.ndarray]:
    slope, bias = kernel.slope, kernel.train_bias
    return {
        "phi": oracle.phi(x, z, slope),
        "ntk": oracle.ntk(x, z, slope, bias),
        "nngp": oracle.nngp(x, z, slope),
        "matvec": oracle.matvec(z, x, coef, slope, bias),
        "phi_matmul": oracle.phi_matmul(z, x, b, slope),
        "input_gradient": oracle.input_gradient(z, x, coef, slope, bias),
    }


def allowed(kernel: Any, x, z, coef, b) -> dict[str, Any]:
    """What one unit of relative error means for each quantity: its bound when nothing cancels.

    Entries of a matrix: Phi <= 1, |<x, z>| <= |x||z| (rounding of <x, z> is relative to |x||z|),
    Cauchy-Schwarz. Sums and their gradients: the largest, over the query points, of the sum of the
    lengths of the terms, with the bound of theory 0.3 on grad Phi."""
    norm_x, norm_z = (np.linalg.norm(a, axis=1) for a in (x, z))
    s_x, s_z = (np.sqrt(1 + r**2 / x.shape[1]) for r in (norm_x, norm_z))
    linear = np.outer(norm_x, norm_z) + kernel.train_bias
    cone = (1 - kernel.slope) ** 2 / (2 * np.pi)
    gradients = norm_x[:, None] + linear * cone / (np.sqrt(x.shape[1]) * s_z)
    return {
        "phi": 1.0,
        "ntk": linear,
        "nngp": np.outer(s_x, s_z) * (1 + kernel.slope**2) / 2,
        "matvec": np.max(np.abs(coef) @ linear),
        "phi_matmul": np.abs(b).sum(axis=0).max(),
        "input_gradient": np.max(np.abs(coef) @ gradients),
    }


def largest_row(a: np.ndarray) -> float:
    return float(np.linalg.norm(a, axis=-1).max())


def central_difference(f: Callable[[float], Any], step: float = 1e-5) -> float:
    """f'(0). Across a cone the plain central difference is off by O(step), elsewhere by O(step^2):
    extrapolated, both leave O(step^2) = 1e-10, and rounding of 1e-14 or so leaves 1e-9."""

    def symmetric(h):
        return float(f(h) - f(-h)) / (2 * h)

    return 2 * symmetric(step / 2) - symmetric(step)


def angle_gradients(x: np.ndarray, q: np.ndarray) -> np.ndarray:
    """d theta(x_n, q) / dq for every row of x, 0 where they coincide: (n, d). Theory 0.3, 0.4."""
    sine, _, tangent = oracle._geometry(x, q)
    apart = sine > 0
    return np.where(
        apart[:, None], -tangent / (q.size * np.where(apart, sine, 1))[:, None], 0
    ).astype(float)


def matrix_gradient(name: str, kernel: Any, x, z, w) -> np.ndarray:
    """The gradient in z of sum_nj w_nj kernel(x_n, z_j), from theory 0.3: (m, d)."""
    if name == "ntk":
        rows = [
            oracle.input_gradient(q[None], x, w[:, j], kernel.slope, kernel.train_bias)[0]
            for j, q in enumerate(z)
        ]
        return np.stack(rows)
    cone, rows = (1 - kernel.slope) ** 2 / (2 * np.pi), []
    for j, q in enumerate(z):
        if name == "phi":
            each = -cone * angle_gradients(x, q)
        else:  # grad Sigma = (Phi x + cone s_x/s_z sin(theta) z) / d
            sine = oracle._geometry(x, q)[0].astype(float)
            phi = oracle.phi(x, q[None], kernel.slope)
            each = (phi * x + cone * (sine / (1 + q @ q / q.size))[:, None] * q) / q.size
        rows.append(w[:, j] @ each)
    return np.stack(rows)


_COMPILED: list[str] = []


def _note(event: str, duration_secs: float, **_: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _COMPILED.append(event)


# For good: JAX 0.8 has no public way to take a listener away.
jax.monitoring.register_event_duration_secs_listener(_note)


@contextmanager
def compilations() -> Iterator[Callable[[], int]]:
    """Counts what XLA compiles inside the block: a function that gives the count so far."""
    before = len(_COMPILED)
    yield lambda: len(_COMPILED) - before
