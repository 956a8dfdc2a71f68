"""tiles.py: sums over pairs in tiles, their derivatives, memory, and compilations."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from common import (
    D,
    M,
    N,
    awkward_points,
    central_difference,
    differentiator,
    largest_row,
    matrix_gradient,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from perturbkernel.engine import sums, tiles
from perturbkernel.kernels import products
from perturbkernel.kernels.base import Kernel
from perturbkernel.kernels.two_layer import TwoLayerNTK

# Any, for the type checker: NumPy arrays are welcome where signatures say Array.
KERNEL: Any = TwoLayerNTK(0.2, True)
SIZES = [(1, 1), (1, 37), (23, 37)]
BLOCKS = [(8, 100), (100, 8), (7, 13), (1024, 1024)]


class SmallTiles(TwoLayerNTK):
    """Cuts N x M points into 3 x 2 tiles."""

    block: ClassVar[tuple[int, int]] = (8, 8)


@dataclass(frozen=True)
class Quadratic(Kernel):
    """A kernel that compiles quickly; its tile size is a field here."""

    block: tuple[int, int] = (8, 8)  # pyright: ignore[reportIncompatibleVariableOverride]

    def tile(self, name, z, x):
        return (1 + z @ x.T) ** 2


# --- tiles ---


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 1023, 1024, 1025, 4097, 10_007])
@pytest.mark.parametrize("limit", [8, 100, 1024])
def test_tile_sizes_cover_everything_and_waste_little(count, limit):
    size = tiles.tile_size(count, limit)
    number = -(-count // size)
    assert size <= limit + 7  # sizes are rounded up to whole vectors of 8
    assert (number - 1) * size < count <= number * size
    assert number * size - count < 8 * number
    assert (size == count) == (number == 1)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("m", "n"), SIZES)
def test_accumulate_is_the_same_for_every_tile_size(block, m, n):
    rng = np.random.default_rng(m + n)
    z, shift, c, b = (rng.normal(size=s) for s in ((m, 3), (m,), (n,), (n, 2)))
    x = rng.uniform(1, 2, size=n)

    def tile(query, x, weights):
        z, shift = query
        c, b = weights
        # Infinite if points were padded with zeros, and then 0 * inf is NaN.
        pairs = shift[:, None] / x
        return {
            "plain": jnp.sum(pairs * c, axis=1),
            "wide": pairs @ b,
            "rows": z * jnp.sum(pairs * c, 1)[:, None],
        }

    total = sums.accumulate(
        tile,
        (jnp.asarray(z), jnp.asarray(shift)),
        jnp.asarray(x),
        tuple(map(jnp.asarray, (c, b))),
        block,
    )
    plain = shift * (c / x).sum()
    for name, exact in (
        ("plain", plain),
        ("wide", shift[:, None] * (b / x[:, None]).sum(0)),
        ("rows", z * plain[:, None]),
    ):
        assert total[name].shape == exact.shape
        # At most n terms of size |shift| |c|: n eps of their sum, eps = 6e-8.
        np.testing.assert_allclose(total[name], exact, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("block", [(7, 13)])
@pytest.mark.parametrize(("m", "n"), SIZES)
def test_every_sum_of_a_kernel_is_the_same_for_every_tile_size(x64, block, m, n):
    rng = np.random.default_rng(m * n)
    z, x, c = rng.normal(size=(m, 3)), rng.normal(size=(n, 3)), rng.normal(size=n)
    kernel: Any = Quadratic(block)
    root = 1 + z @ x.T
    np.testing.assert_allclose(kernel.matvec(z, x, c), root**2 @ c, rtol=0, atol=1e-12)
    np.testing.assert_allclose(kernel.ntk(x, z), root.T**2, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        kernel.input_gradient(z, x, c), 2 * (root * c) @ x, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("n", [1, 8, 37])
@pytest.mark.parametrize("columns", [(), (2,)])
def test_pairs_of_the_very_same_points_are_evaluated_once(n, columns, x64):
    """Equal arrays that are not the same one go the other way: 37 points are 5 x 5 tiles, or 15 of
    them.
    """
    rng = np.random.default_rng(n)
    x, c = jnp.asarray(rng.normal(size=(n, 3))), jnp.asarray(rng.normal(size=(n, *columns)))
    kernel: Any = Quadratic()
    dense = np.asarray((1 + x @ x.T) ** 2)
    for value, exact in (
        (kernel.matvec(x, x, c), dense @ c),
        (kernel.ntk(x), dense),
        (kernel.ntk(x, x + 0), dense),
    ):
        np.testing.assert_allclose(value, exact, rtol=0, atol=1e-12 * np.abs(exact).max())
    matrix = np.asarray(kernel.ntk(np.asarray(x)))
    np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=1e-12 * dense.max())

    def total(x, c):
        return jnp.sum(jnp.sin(kernel.matvec(x, x, c))) + jnp.sum(jnp.sin(kernel.ntk(x)))

    def total_of_dense(x, c):
        return jnp.sum(jnp.sin((1 + x @ x.T) ** 2 @ c)) + jnp.sum(jnp.sin((1 + x @ x.T) ** 2))

    for bar, exact in zip(
        *(jax.jit(jax.grad(f, (0, 1)))(x, c) for f in (total, total_of_dense)), strict=True
    ):
        np.testing.assert_allclose(bar, exact, rtol=0, atol=1e-11 * np.abs(exact).max())


def test_the_same_points_are_recognised_through_every_door():
    paths: list[bool] = []

    class Seen(Quadratic):
        def tile(self, name, z, x):
            paths.append(z.shape == x.shape)
            return (1 + z @ x.T) ** 2

    kernel: Any = Seen((8, 16))  # square tiles tell the symmetric sums
    x = np.random.default_rng(3).normal(size=(37, 3)).astype(np.float32)
    for points in (x, jnp.asarray(x), x.tolist()):
        kernel.matvec(points, points, np.ones(37))
    assert all(paths)
    kernel.matvec(x, x.copy(), np.ones(37))
    assert not all(paths)


class Count:
    def __init__(self):
        self.counts: list[int] = []

    def update(self, k):
        self.counts.append(k)


@pytest.mark.parametrize("what", ["matvec", "matvec, queries = points", "input_gradient"])
def test_progress_counts_every_query_once_and_changes_nothing(what):
    rng = np.random.default_rng(4)
    x, z, c = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((37, 3), (23, 3), (37,)))
    kernel, count = Quadratic(), Count()
    call = kernel.input_gradient if what == "input_gradient" else kernel.matvec
    z = x if "=" in what else z
    np.testing.assert_array_equal(call(z, x, c, progress=count), call(z, x, c))
    assert sum(count.counts) == len(z)
    assert count.counts[:2] == [8, 8]


def test_many_tiles_make_a_hundred_steps_at_most():
    count, x = Count(), jnp.ones((2001, 2))
    Quadratic().matvec(x, x[:3], jnp.ones(3), progress=count)
    assert sum(count.counts) == 2001
    assert 50 < len(count.counts) <= 100


# --- visit_flagged ---


@jax.jit
def count_visits(flagged):
    rows = jnp.arange(flagged.shape[0])

    def visit(column, hit, state):
        visits, calls = state
        return visits.at[rows, column].add(hit.astype(int)), calls + 1

    return tiles.visit_flagged(flagged, visit, (jnp.zeros(flagged.shape, int), 0))


@given(flagged=arrays(bool, (6, 9), elements=st.booleans()))
def test_every_flagged_pair_is_visited_exactly_once(flagged):
    visits, calls = count_visits(flagged)
    np.testing.assert_array_equal(visits, flagged.astype(int))
    # One pair of every row at a time: no more calls than needed.
    assert calls == flagged.sum(axis=1).max()


# --- derivatives ---


@pytest.mark.parametrize(
    ("kernel", "columns"),
    [(KERNEL, ()), (SmallTiles(0.2, True), (3,))],
    ids=["one tile, vector", "small tiles, matrix"],
)
def test_matvec_and_its_derivatives(x64, kernel, columns):
    """In z, x and coef: against the reference, dense autodiff of the matrix, and central
    differences.
    """
    x, z = awkward_points()
    rng = np.random.default_rng(6)
    coef, cotangent = rng.normal(size=(N, *columns)), rng.normal(size=(M, *columns))

    @jax.jit
    def value_and_vjp(z, x, coef, cotangent):
        value, pull = jax.vjp(kernel.matvec, z, x, coef)
        return value, pull(cotangent)

    value, bars = value_and_vjp(z, x, coef, cotangent)
    z_bar, x_bar, coef_bar = map(np.asarray, bars)
    exact = oracle.matvec(z, x, coef, kernel.slope, kernel.train_bias)
    assert np.abs(np.asarray(value) - exact).max() < 1e-13 * np.abs(exact).max()

    w = coef.reshape(N, -1) @ cotangent.reshape(M, -1).T
    for bar, points in ((z_bar, (x, z, w)), (x_bar, (z, x, w.T))):
        exact = matrix_gradient("ntk", kernel, *points)
        assert largest_row(bar - exact) < 1e-13 * largest_row(exact)
    exact = oracle.ntk(x, z, kernel.slope, kernel.train_bias) @ cotangent
    assert np.abs(coef_bar - exact).max() < 1e-13 * np.abs(exact).max()

    x_dense, z_dense = differentiator(KERNEL, "phi", "ntk", "nngp")(x, z, w)["ntk"]
    np.testing.assert_allclose(
        z_bar, z_dense, rtol=0, atol=1e-13 * largest_row(np.asarray(z_dense))
    )
    np.testing.assert_allclose(
        x_bar, x_dense, rtol=0, atol=1e-13 * largest_row(np.asarray(x_dense))
    )

    arguments = {"z": z, "x": x, "coef": coef}
    for name, bar in (("z", z_bar), ("x", x_bar), ("coef", coef_bar)):
        direction = rng.normal(size=bar.shape)

        def along(h, name=name, direction=direction):
            moved = arguments | {name: arguments[name] + h * direction}
            return np.sum(cotangent * value_and_vjp(*moved.values(), cotangent)[0])

        assert np.sum(bar * direction) == pytest.approx(central_difference(along), rel=1e-7), name


@pytest.mark.parametrize(
    ("wanted", "used"),
    [
        ((0,), {"_query_gradient_tile"}),
        ((1,), {"_point_gradient_tile"}),
        ((2,), {"_point_gradient_tile"}),
        ((0, 1, 2), {"_query_gradient_tile", "_point_gradient_tile"}),
    ],
)
def test_only_the_cotangents_asked_for_are_computed(wanted, used, monkeypatch):
    z, x, c = jnp.ones((M, D)), jnp.full((N, D), 2.0), jnp.ones(N)
    kernel, summed = Quadratic(), set()

    def total(z, x, c):
        return jnp.sum(kernel.matvec(z, x, c))

    def counted(tile, *arguments, **options):
        summed.add(tile.__name__)
        return original(tile, *arguments, **options)

    original = sums.sums
    monkeypatch.setattr(products, "sums", counted)
    gradients = jax.grad(total, wanted)(z, x, c)
    assert summed == {"_matvec_tile"} | used
    everything = jax.grad(total, (0, 1, 2))(z, x, c)
    for position, gradient in zip(wanted, gradients, strict=True):
        np.testing.assert_array_equal(gradient, everything[position])


def test_an_unused_matvec_costs_no_gradient():
    def other(z):
        return (jnp.sum(Quadratic().matvec(z, z, jnp.ones(M))), jnp.sum(z))[1]

    np.testing.assert_array_equal(jax.grad(other)(jnp.ones((M, D))), 1)


def test_second_derivatives_where_queries_are_points(x64):
    z = np.random.default_rng(8).normal(size=(2, D))

    def total(kernel, z):
        return jnp.sum(kernel.matvec(z, z, jnp.ones(2)))

    exact = jax.hessian(lambda z: jnp.sum(Quadratic().tile("ntk", z, z)))(jnp.asarray(z))
    np.testing.assert_allclose(jax.hessian(partial(total, Quadratic()))(z), exact, rtol=1e-12)


@pytest.mark.parametrize("flat", [True, False])
def test_input_gradient_is_the_gradient_of_matvec(x64, flat):
    x, z = awkward_points()
    c = np.random.default_rng(7).normal(size=N)
    kernel: Any = Quadratic()
    if flat:
        gradient = jax.grad(lambda z: jnp.sum(kernel.matvec(z, x, c)))(jnp.asarray(z))
    else:
        gradient = jax.vmap(jax.grad(lambda p: kernel.matvec(p[None], x, c)[0]))(jnp.asarray(z))
    np.testing.assert_allclose(kernel.input_gradient(z, x, c), gradient, rtol=1e-12)


# --- memory ---


def lowered(function: Callable, n: int, m: int, d: int, *columns: int):
    shapes = ((m, d), (n, d), (n, *columns))
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(s, np.float32) for s in shapes))


def temporary_bytes(function: Callable, n: int, m: int, d: int, *columns: int) -> int:
    return lowered(function, n, m, d, *columns).compile().memory_analysis().temp_size_in_bytes  # pyright: ignore[reportOptionalMemberAccess]


BIG = 20_000
SUMS: dict[str, tuple[Callable, tuple[int, ...]]] = {
    "matvec": (lambda k, z, x, c: k.matvec(z, x, c), ()),
    "matvec, queries = points": (lambda k, z, x, c: k.matvec(x, x, c), ()),
    "phi_matmul": (lambda k, z, x, c: k.phi_matmul(z, x, c), (3,)),
    "input_gradient": (lambda k, z, x, c: k.input_gradient(z, x, c), ()),
    "gradient in points": (
        lambda k, z, x, c: jax.grad(lambda x, c: jnp.sum(k.matvec(z, x, c)), (0, 1))(x, c),
        (),
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_no_n_by_m_matrix_is_held(name):
    function, columns = SUMS[name]
    used = temporary_bytes(partial(function, KERNEL), BIG, BIG, 20, *columns)
    assert used < 2**28 < BIG * BIG * 4 / 5  # the default budget


@pytest.mark.parametrize("mebibytes, d", [(4, 20), (4, 1000), (64, 1000)])
@pytest.mark.parametrize("name", SUMS)
def test_temporaries_stay_within_the_budget(name, mebibytes, d):
    """XLA's account of what is held beside arguments and results: tiles, small ones and large ones,
    whose points are prepared, and a number or two for each point, but no copy of the points.
    """
    memory = mebibytes * 2**20
    kernel: Any = TwoLayerNTK(0.2, True, memory=memory)
    function, columns = SUMS[name]
    n, m = 100_000, 90_000
    held = temporary_bytes(partial(function, kernel), n, m, d, *columns)
    assert memory / 10 < held < memory + 4 * (n + m)


def test_the_tile_follows_from_the_budget():
    memories = 2**20, 2**23, 2**26, 2**40
    for tall, best in ((True, (4096, 256)), (False, (1024, 1024))):
        limits = [
            tiles.tile_limits(TwoLayerNTK(memory=memory), (784,), 4, tall=tall)
            for memory in memories
        ]
        assert [r * c for r, c in limits] == sorted(r * c for r, c in limits)
        assert limits[0] == (24, 24)  # where memory is short, square ones in any case
        # By default the best tile, CIFAR too.
        assert limits[-1] == best == tiles.tile_limits(KERNEL, (3072,), 4, tall=tall)
        assert tiles.tile_limits(Quadratic((8, 16)), (784,), 4, tall=tall) == (8, 16)
        for memory, limit in zip(memories[:3], limits, strict=False):
            assert tiles.tile_bytes(KERNEL, limit, (784,), 4) <= memory


def test_few_queries_meet_more_points_at_once():
    """Tiles of 1 x 256 would be 40 steps for 10,000 points."""
    assert tiles.tile_shape(1, 10_000, (4096, 256)) == (1, 3336)
    for m in (1, 100, 1000, 5000):
        rows, columns = tiles.tile_shape(m, 10_000, (4096, 256))
        assert rows * columns <= 1.05 * 2**20 and max(rows, columns) <= 4096
    assert tiles.tile_shape(1, 10_000, (8, 100)) == (1, 104)


def test_the_memory_meter_sees_a_dense_matrix():
    dense = temporary_bytes(lambda z, x, c: (1 + z @ x.T) ** 2 @ c, BIG, BIG, 20)
    assert dense >= BIG * BIG * 4


@pytest.mark.parametrize("name", SUMS)
def test_every_product_asks_for_the_highest_precision(name):
    """Accelerators round the inputs of float32 products otherwise, and theta is lost."""
    function, columns = SUMS[name]
    products = [
        line
        for line in lowered(partial(function, KERNEL), N, M, D, *columns).as_text().splitlines()
        if "dot_general" in line
    ]
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


# --- compilations ---


class Counting(TwoLayerNTK):
    """Counts how often JAX traces a tile; a cheap expression, since only the tracing matters."""

    traces: ClassVar[list[str]] = []

    def tile(self, name, z, x):
        self.traces.append(name)
        return (self.slope + z @ x.T) ** 2


CALLS: dict[str, Callable[..., Any]] = {
    "phi": lambda k, z, x, c, b: k.phi(x, z),
    "ntk": lambda k, z, x, c, b: k.ntk(x),
    "matvec": lambda k, z, x, c, b: k.matvec(z, x, c),
    "phi_matmul": lambda k, z, x, c, b: k.phi_matmul(z, x, b),
    "input_gradient": lambda k, z, x, c, b: k.input_gradient(z, x, c),
    "grad": lambda k, z, x, c, b: jax.grad(lambda z, x: jnp.sum(k.matvec(z, x, c)), (0, 1))(z, x),
}


@pytest.mark.parametrize("name", CALLS)
def test_equal_kernels_and_shapes_share_one_compilation(name):
    call, rng = CALLS[name], np.random.default_rng(8)

    def traces(kernel, m=M):
        before = len(Counting.traces)
        data = ((m, D), (N, D), (N,), (N, 3))
        call(kernel, *(jnp.asarray(rng.normal(size=s)) for s in data))
        return len(Counting.traces) - before

    first = traces(Counting(0.25, True))
    assert 0 < first <= 8
    assert traces(Counting(0.25, True)) == 0  # an equal kernel, other values
    assert traces(Counting(np.float64(0.25), True)) == 0
    assert traces(Counting(0.75, True)) == first  # another kernel is another program
    if name != "ntk":
        assert traces(Counting(0.25, True), M + 1) == first
