"""From 100 points to 60,000: the same sums at every size, against the bare product of that size.

Queries are as many as the points, 1,024 at most, so that the bare product, which stores its result,
fits everywhere.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import jax.numpy as jnp

from perturbkernel import TwoLayerNTK

from . import alternatives as other
from .harness import Builder, Case, Group, Row, Settings, compare
from .products import described, points, product

DIMENSION = 784
SIZES = (100, 300, 1_000, 3_000, 10_000, 30_000, 60_000)
QUICK = (100, 300, 1_000)
_QUERIES = 1024


def _methods(what: str, n: int, seed: int) -> tuple[Builder, dict[str, Builder]]:
    """The bare product, and name -> builder of what is compared with it."""
    m = min(n, _QUERIES)
    x, z, coef = points((n, m, DIMENSION), seed)
    on_device = tuple(map(jnp.asarray, (z, x, coef)))
    queries, training, _ = on_device
    kernel = TwoLayerNTK(0.0, train_bias=True)
    numpy = {"matvec": other.numpy_matvec, "input_gradient": other.numpy_input_gradient}
    tangents = {"matvec": other.tangents_matvec, "input_gradient": other.tangents_input_gradient}
    methods: dict[str, Builder] = {
        "perturbkernel": lambda: partial(getattr(kernel, what), *on_device),
        "NumPy": lambda: partial(numpy[what], z, x, coef),
        "neural-tangents": lambda: partial(tangents[what](), *on_device),
    }
    return (lambda: partial(product, training, queries)), methods


def _measure(what: str, n: int, settings: Settings) -> Iterator[Row]:
    base, methods = _methods(what, n, settings.seed)
    rounds = settings.rounds(5, 3)
    if n <= 1000:  # calls of milliseconds
        rounds = settings.rounds(21, 3)
    # As in `products`: angles by arccos of a rounded cosine are right to about 3e-4.
    compared = compare(
        what,
        _sizes(n),
        ("one x @ z.T", base),
        methods,
        rounds,
        tolerance=1e-2,
    )
    for row in compared:
        yield replace(row, size=float(n))


def _sizes(n: int) -> str:
    m = min(n, _QUERIES)
    return described((n, m, DIMENSION))


def _cases(settings: Settings) -> list[Case]:
    cases = []
    for what in ("matvec", "input_gradient"):
        for n in QUICK if settings.quick else SIZES:
            cost = 2 + n / 1000
            measure = partial(_measure, what, n, settings)
            cases.append(Case(what, _sizes(n), measure, cost))
    return cases


GROUP = Group(
    "sizes",
    "Every size",
    "time / time of one jitted float32 product x @ z.T that stores its result",
    _cases,
    one="the matrix product",
)
