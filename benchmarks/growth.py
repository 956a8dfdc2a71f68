"""How times grow with the number of points and the dimension: the exponent p of time ~ size^p."""

from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np

from perturbkernel import GradientFlow, TwoLayerNTK, fit

from .harness import Case, Group, Row, Settings, power, times
from .products import Shape, points

QUERIES, POINTS, DIMENSION = 1024, 2048, 100


def _product(what: str, shape: Shape, seed: int) -> Callable:
    """The product of random points (n, m, d)."""
    drawn = points(shape, seed)
    x, z, coef = map(jnp.asarray, drawn)
    kernel = TwoLayerNTK(0.0, train_bias=True)
    product = getattr(kernel, what)
    return partial(product, z, x, coef)


def _fit(n: int, seed: int) -> Callable:
    """Training on n random points with random labels."""
    drawn = points((n, 1, DIMENSION), seed)
    x = jnp.asarray(drawn.x)
    coef = jnp.asarray(drawn.coef)
    y = jnp.sign(coef)
    kernel = TwoLayerNTK()
    flow = GradientFlow(1.0)

    def train():
        f = fit(kernel, x, y, loss="squared", dynamics=flow)
        return f.dual_coef

    return train


def _row(
    what: str,
    symbol: str,
    fixed: str,
    sizes: Sequence[int],
    calls: Sequence[Callable],
    rounds: int,
) -> Row:
    """Times the calls, one a size of what `symbol` means."""
    for call in calls:
        call()
    seconds, _ = times(calls, rounds)
    medians = np.median(seconds, axis=0)
    places = [float(size) for size in sizes]
    curve = zip(places, medians.tolist(), strict=True)
    listed = ", ".join(map(str, sizes))
    return Row(
        what,
        f"{symbol} = {listed}; {fixed}",
        "perturbkernel",
        f"{symbol}^p",
        power(sizes, seconds),
        curve=tuple(curve),
    )


def _doubled(first: int, settings: Settings) -> list[int]:
    """Every size is a compilation: few of them, for quick."""
    if settings.quick:
        return [first * 4**k for k in range(3)]
    return [first * 2**k for k in range(7)]


def _over_n(what: str, settings: Settings) -> list[Row]:
    sizes = _doubled(POINTS // 2, settings)
    calls = []
    for n in sizes:
        shape = (n, QUERIES, DIMENSION)
        calls.append(_product(what, shape, settings.seed))
    fixed = f"m = {QUERIES}, d = {DIMENSION}"
    rounds = settings.rounds(9, 3)
    return [_row(what, "n", fixed, sizes, calls, rounds)]


def _over_d(what: str, settings: Settings) -> list[Row]:
    sizes = _doubled(128, settings)
    calls = []
    for d in sizes:
        shape = (POINTS, QUERIES, d)
        calls.append(_product(what, shape, settings.seed))
    fixed = f"n = {POINTS}, m = {QUERIES}"
    rounds = settings.rounds(9, 3)
    return [_row(what, "d", fixed, sizes, calls, rounds)]


def _fit_over_n(settings: Settings) -> list[Row]:
    count = 3 if settings.quick else 6
    sizes = [100 * 2**k for k in range(count)]
    calls = [_fit(n, settings.seed) for n in sizes]
    fixed = f"d = {DIMENSION}"
    rounds = settings.rounds(5, 3)
    return [_row("fit, squared loss", "n", fixed, sizes, calls, rounds)]


def _cases(settings: Settings) -> list[Case]:
    products = ("matvec",) if settings.quick else ("matvec", "input_gradient")
    over_d = () if settings.quick else products
    cost = 5 if settings.quick else 50
    cases = []
    for what in products:
        measure = partial(_over_n, what, settings)
        cases.append(Case(what, "over n", measure, cost))
    for what in over_d:
        measure = partial(_over_d, what, settings)
        cases.append(Case(what, "over d", measure, cost))
    measure = partial(_fit_over_n, settings)
    cases.append(Case("fit", "over n", measure, cost))
    return cases


GROUP = Group(
    "growth", "Growth", "exponent p of time ~ size^p, fitted over all sizes of a round", _cases
)
