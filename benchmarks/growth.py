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
    """The product of random points (n, m, d)."""
    x, z, coef = map(jnp.asarray, points(shape, seed))
    kernel = TwoLayerNTK(0.0, train_bias=True)
    return partial(getattr(kernel, what), z, x, coef)


def _fit(n: int, seed: int) -> Callable:
    """Training on n random points with random labels."""
    x, _, coef = map(jnp.asarray, points((n, 1, DIMENSION), seed))
    y = jnp.sign(coef)
    flow = GradientFlow(1.0)

    def train():
        return fit(TwoLayerNTK(), x, y, loss="squared", dynamics=flow).dual_coef

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
    medians = np.median(seconds, axis=0).tolist()
    curve = zip(map(float, sizes), medians, strict=True)
    return Row(
        what,
        f"{symbol} = {', '.join(map(str, sizes))}; {fixed}",
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
    calls = [_product(what, (n, QUERIES, DIMENSION), settings.seed) for n in sizes]
    fixed = f"m = {QUERIES}, d = {DIMENSION}"
    return [_row(what, "n", fixed, sizes, calls, settings.rounds(9, 3))]


def _over_d(what: str, settings: Settings) -> list[Row]:
    sizes = _doubled(128, settings)
    calls = [_product(what, (POINTS, QUERIES, d), settings.seed) for d in sizes]
    fixed = f"n = {POINTS}, m = {QUERIES}"
    return [_row(what, "d", fixed, sizes, calls, settings.rounds(9, 3))]


def _fit_over_n(settings: Settings) -> list[Row]:
    sizes = [100 * 2**k for k in range(3 if settings.quick else 6)]
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
