"""Kernel products: the kernel matrix, its product with a vector, and the gradient of that.

Random points at three dimensions, and the hardest points in practice: the perturbations that a
second network is trained on, which all point in nearly the same or the opposite direction, so that
the angles of many pairs cancel.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturbkernel import TwoLayerNTK, data, fit, perturb
from perturbkernel.data.draws import draw_targets
from perturbkernel.engine.tiles import EXACT

from . import alternatives as other
from .harness import Builder, Case, Group, Row, Settings, compare

# (points, queries, dimension): synthetic data, MNIST, CIFAR-10
SHAPES = ((8192, 4096, 100), (4096, 4096, 784), (4096, 4096, 3072))
QUICK = ((2048, 2048, 100), (1024, 1024, 784))
PERTURBATIONS, QUICK_PERTURBATIONS = (1000, 10_000), (300,)
# Pairs up to which methods take part that hold whole matrices, several of them.
MOST_PAIRS = 2**26
# Noise on digits that are drawn more than once.
NOISE = 0.3

product = jax.jit(lambda x, z: jnp.matmul(x, z.T, precision=EXACT))


Shape = tuple[int, int, int]


class Points(NamedTuple):
    """x (n, d), z (m, d) and coef (n,)."""

    x: np.ndarray
    z: np.ndarray
    coef: np.ndarray


def points(shape: Shape, seed: int) -> Points:
    """x (n, d), z (m, d) standard normal and coef (n,) = +-1/n, float32."""
    n, m, d = shape
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d), np.float32)
    z = rng.standard_normal((m, d), np.float32)
    heads = rng.random(n) < 0.5
    signs = np.where(heads, 1, -1).astype(np.float32)
    coef = signs / np.float32(n)
    return Points(x, z, coef)


def same_points(shape: Shape, seed: int) -> Points:
    """The points of that shape as their own queries: x = z."""
    x, _, coef = points(shape, seed)
    return Points(x, x, coef)


def perturbations(n: int, seed: int) -> Points:
    """The same of perturbations of n digits, 1 against 2, x = z: scenario (a), size 1.

    Where n exceeds the digits that there are, they are drawn with repetition and noise.
    """
    key = jax.random.key(seed)
    choose, draw = jax.random.split(key)
    digits = data.mnist5k(classes=(1, 2))
    count = len(digits.inputs)
    if n <= count:
        digits = digits.subset(n, key=choose)
    f = fit(TwoLayerNTK(), digits.inputs, digits.targets)
    x = digits.inputs
    if n > count:
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((n, x.shape[1]), np.float32)
        chosen = rng.integers(count, size=n)
        x = x[chosen] + np.float32(NOISE) * noise
    targets = draw_targets("coin_flip", n, key=draw)
    found = perturb(f, x, targets, size=1)
    delta = np.asarray(found.delta)
    coef = np.asarray(targets) / np.float32(n)
    return Points(delta, delta, coef)


def described(shape: Shape) -> str:
    """As the rows say it: points x queries x dimension."""
    n, m, d = shape
    return f"{n} x {m} x {d} float32"


def _methods(what: str, x: np.ndarray, z: np.ndarray, coef: np.ndarray) -> dict[str, Builder]:
    kernel = TwoLayerNTK(0.0, train_bias=True)
    x_ = jnp.asarray(x)
    coef_ = jnp.asarray(coef)
    # Queries that are the very same object as the points: every pair once.
    z_ = x_ if z is x else jnp.asarray(z)
    on_device = (z_, x_, coef_)
    if what == "ntk":
        pair = (x_,) if z is x else (z_, x_)
        return {
            "perturbkernel": lambda: partial(kernel.ntk, *pair),
            "NumPy": lambda: partial(other.numpy_ntk, z, x),
            "scikit-learn": lambda: other.sklearn_ntk(z, x),
            "neural-tangents": lambda: partial(other.tangents_ntk(), z_, x_),
        }
    if what == "matvec":

        def sklearn():
            ntk = other.sklearn_ntk(z, x)
            return lambda: ntk() @ coef

        return {
            "perturbkernel": lambda: partial(kernel.matvec, *on_device),
            "NumPy": lambda: partial(other.numpy_matvec, z, x, coef),
            "scikit-learn": sklearn,
            "neural-tangents": lambda: partial(other.tangents_matvec(), *on_device),
        }
    return {
        "perturbkernel": lambda: partial(kernel.input_gradient, *on_device),
        "NumPy": lambda: partial(other.numpy_input_gradient, z, x, coef),
        "neural-tangents": lambda: partial(other.tangents_input_gradient(), *on_device),
    }


def _measure(what: str, sizes: str, draw, settings: Settings) -> Iterator[Row]:
    x, z, coef = draw()
    points_on_device = jnp.asarray(x)
    queries = jnp.asarray(z)
    base = partial(product, points_on_device, queries)
    methods = _methods(what, x, z, coef)
    if len(x) * len(z) > MOST_PAIRS:
        methods = {name: methods[name] for name in ("perturbkernel", "NumPy")}
    # Angles by arccos of a rounded cosine, as the alternatives take them, are right to about 3e-4.
    return compare(
        what,
        sizes,
        ("one x @ z.T", lambda: base),
        methods,
        settings.rounds(9, 3),
        tolerance=1e-2,
    )


def _cases(settings: Settings) -> list[Case]:
    counts = QUICK_PERTURBATIONS if settings.quick else PERTURBATIONS
    shapes = QUICK if settings.quick else SHAPES
    count, _, d = shapes[-1]
    same = (count, count, d)
    seed = settings.seed
    drawn: list[tuple[str, Callable[[], Points]]] = []
    for shape in shapes:
        draw = partial(points, shape, seed)
        drawn.append((described(shape), draw))
    drawn.append((f"{described(same)}, the same points", partial(same_points, same, seed)))
    for n in counts:
        draw = partial(perturbations, n, seed)
        drawn.append((f"{n} x {n} x 784, perturbations", draw))
    cases = []
    for what in ("matvec", "input_gradient", "ntk"):
        for sizes, draw in drawn:
            if what != "matvec" and "same" in sizes:
                continue  # the gradient has no shortcut there
            if what == "ntk" and "10000" in sizes:
                continue  # a matrix of 400 MB tells no more
            cost = 90 if "3072" in sizes else 30
            if settings.quick:
                cost = 3
            measure = partial(_measure, what, sizes, draw, settings)
            name = f"{what}-at-perturbations" if "perturbations" in sizes else what
            cases.append(Case(name, sizes, measure, cost))
    return cases


GROUP = Group(
    "products",
    "Kernel products",
    "time / time of one jitted float32 product x @ z.T that stores its result",
    _cases,
    one="the matrix product",
)
