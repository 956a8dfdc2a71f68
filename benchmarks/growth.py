"""How times grow with the number of points and the dimension: the exponent p of time ~ size^p."""

from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np

from perturbkernel import GradientFlow, TwoLayerNTK, fit

from .harness import Case, Group, Row, Settings, power, times
from .products import points

QUERIES, POINTS, DIMENSION = 1024, 2048, 100


def _product(what: str, shape: tuple[int, int, int], seed: int) -> Callable:
    x, z, coef = map(jnp.asarray, points(shape, seed))
    return partial(getattr(TwoLayerNTK(0.0, train_bias=True), what), z, x, coef)


def _fit(n: int, seed: int) -> Callable:
    x, _, coef = map(jnp.asarray, points((n, 1, DIMENSION), seed))
    train = partial(
        fit, TwoLayerNTK(), x, jnp.sign(coef), loss="squared", dynamics=GradientFlow(1.0)
    )
    return lambda: train().dual_coef


def _row(
    what: str, symbol: str, fixed: str, sizes: Sequence[int], calls: Sequence[Callable], rounds: int
) -> Row:
    for call in calls:
        call()
    seconds, _ = times(calls, rounds)
    described = f"{symbol} = {', '.join(map(str, sizes))}; {fixed}"
    curve = tuple(zip(map(float, sizes), np.median(seconds, axis=0).tolist(), strict=True))
    return Row(what, described, "perturbkernel", f"{symbol}^p", power(sizes, seconds), curve=curve)


def _doubled(first: int, settings: Settings) -> list[int]:
    """Every size is a compilation: few of them, for quick."""
    return [first * 4**k for k in range(3)] if settings.quick else [first * 2**k for k in range(7)]


def _over_n(what: str, settings: Settings) -> list[Row]:
    sizes = _doubled(POINTS // 2, settings)
    calls = [_product(what, (n, QUERIES, DIMENSION), settings.seed) for n in sizes]
    return [_row(what, "n", f"m = {QUERIES}, d = {DIMENSION}", sizes, calls, settings.rounds(9, 3))]


def _over_d(what: str, settings: Settings) -> list[Row]:
    sizes = _doubled(128, settings)
    calls = [_product(what, (POINTS, QUERIES, d), settings.seed) for d in sizes]
    return [_row(what, "d", f"n = {POINTS}, m = {QUERIES}", sizes, calls, settings.rounds(9, 3))]


def _fit_over_n(settings: Settings) -> list[Row]:
    sizes = [100 * 2**k for k in (range(3) if settings.quick else range(6))]
    calls = [_fit(n, settings.seed) for n in sizes]
    return [_row("fit, squared loss", "n", f"d = {DIMENSION}", sizes, calls, settings.rounds(5, 3))]


def _cases(settings: Settings) -> list[Case]:
    products = ("matvec",) if settings.quick else ("matvec", "input_gradient")
    over_d = () if settings.quick else products
    cost = 5 if settings.quick else 50
    return [
        *(Case(what, "over n", partial(_over_n, what, settings), cost) for what in products),
        *(Case(what, "over d", partial(_over_d, what, settings), cost) for what in over_d),
        Case("fit", "over n", partial(_fit_over_n, settings), cost),
    ]


GROUP = Group(
    "growth", "Growth", "exponent p of time ~ size^p, fitted over all sizes of a round", _cases
)
