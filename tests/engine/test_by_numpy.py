"""Functions run by NumPy return what compiled programs do: values, dtypes and shapes."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from perturbkernel.engine.by_numpy import by_numpy

RNG = np.random.default_rng(3)
X = RNG.normal(size=(7, 5))
X[0, :3], X[1] = (np.inf, -np.inf, np.nan), 0
X[2] = [1, -1, 1, -0.0, 0.0]  # ties


def powers(x):
    return x**2, x**3, jnp.abs(x) ** 0.3, 2.0 ** jnp.arange(5), jnp.exp2(x), jnp.square(x)


def ordered(x):
    order = jnp.argsort(-x, axis=1, stable=True)
    kept = jnp.take_along_axis(x, order, 1)
    return order, kept, jnp.sort(x), jnp.cumsum(kept[3:], axis=1), lax.cumsum(x[3:], reverse=True)


def reduced(x):
    whole = x[3:]
    sums = whole.sum(1), whole.sum(), jnp.linalg.norm(whole, axis=1), whole.mean(0)
    return sums, x.max(1), x.min(), (x > 0).all(1), (x > 0).any(0), (x > 0).sum(1)


def shaped(x):
    beside = jnp.concatenate([x, x[:, 1:3]], axis=1)
    column = x[:, 0][:, None]
    return beside, column, x.T, x.reshape(-1), x[::2, 1:4], jnp.broadcast_to(column, x.shape)


def chosen(x):
    large = ~(x < 0.5) & jnp.isfinite(x)
    return jnp.where(large | (x == 0), x, -1), jnp.clip(x, -1, 1), jnp.sign(x), x.argmax(1), x != x


def converted(x):
    whole = x[3:]
    rounded = jnp.floor(x), jnp.ceil(x), jnp.nextafter(x, jnp.inf), jax.nn.relu(x)
    return whole.astype(jnp.int32), (whole > 0).astype(x.dtype), lax.stop_gradient(x), rounded


def looped(x):
    return lax.fori_loop(0, 3, lambda i, total: total + jnp.sin(x[i]), x[3])


def some_rows(x):
    return x[jnp.asarray([4, 2])]


def multiplied(x):
    return x @ x.T


def sorted_by_two(x):
    return lax.sort((x, -x), num_keys=2)[1]


FUNCTIONS: Any = [powers, ordered, reduced, shaped, chosen, converted]


def assert_same(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (np.shape(a), jax.typeof(a).dtype) == (b.shape, b.dtype)
        # Sums and powers of few terms, in another order.
        rounding = 8 * np.finfo(b.dtype).eps if jnp.issubdtype(b.dtype, jnp.floating) else 0
        np.testing.assert_allclose(a, b, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_every_operation_is_that_of_a_program(function, wide):
    with jax.enable_x64(wide):
        x = jnp.asarray(X)
        program = jax.jit(function)
        found = by_numpy(program)(x)
        assert all(isinstance(array, np.ndarray) for array in jax.tree.leaves(found))
        assert_same(found, program(x))


@pytest.mark.parametrize("function", [looped, some_rows, multiplied, sorted_by_two])
def test_a_function_with_another_operation_is_compiled(function):
    x = jnp.asarray(X, jnp.float32)
    program = jax.jit(function)
    found = by_numpy(program)(x)
    assert isinstance(found, jax.Array)
    np.testing.assert_array_equal(found, program(x))


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_numbers_take_the_dtype_of_arrays(wide):
    """Python's numbers give way to float32 arrays in either mode, and NumPy's do not."""

    def function(x, number, count):
        return x * number, x + count, count / 2, jnp.full(3, number)

    with jax.enable_x64(wide):
        for x in (np.ones(3, np.float32), np.ones(3, np.float64), np.arange(3)):
            for numbers in ((0.1, 2), (np.float64(0.1), np.int32(2)), (jnp.float32(0.1), True)):
                program = jax.jit(function)
                assert_same(by_numpy(program)(x, *numbers), program(x, *numbers))


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_what_gives_way_does_so_in_the_next_function(wide):
    with jax.enable_x64(wide), jax.numpy_dtype_promotion("strict"):
        count = by_numpy(jax.jit(lambda: jnp.asarray(3)))()
        assert type(count) is int
        assert by_numpy(jax.jit(lambda x, n: 2.0**n * x))(np.ones(1, np.float32), count) == 8


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_sums_of_half_precision_are_those_of_a_program(dtype):
    x = jnp.ones(10_000, dtype)
    assert by_numpy(jax.jit(jnp.sum))(x) == jnp.sum(x)
    assert by_numpy(jax.jit(jnp.cumsum))(x)[-1] == jnp.cumsum(x)[-1]


def test_each_precision_has_its_trace():
    run = by_numpy(jax.jit(lambda x: x.astype(float)))
    x = np.ones(2, np.float32)
    found = []
    for wide in (False, True, False):
        with jax.enable_x64(wide):
            found.append(run(x).dtype)
    assert found == [np.float32, np.float64, np.float32]


def test_trees_and_static_arguments():
    traces = []

    def function(name, pair, nothing, axis):
        traces.append(name)
        return {"sum": pair[0].sum(axis), "none": nothing, name: pair[1]}

    run = by_numpy(jax.jit(function, static_argnums=(0, 3)), 0, 3)
    x = np.ones((2, 3), np.float32)
    for _ in range(2):
        found = run("other", (x, 2.0), None, 1)
        assert found["sum"].tolist() == [3, 3] and found["none"] is None and found["other"] == 2
    assert traces == ["other"]
    assert run("other", (x, 2.0), None, 0)["sum"].tolist() == [2, 2, 2]
    assert run("another", (x[:1], 2.0), None, 1)["another"] == 2
    assert traces == ["other", "other", "another"]


def test_an_argument_is_not_written_to():
    x = np.ones(3, np.float32)
    y = by_numpy(jax.jit(partial(jnp.where, np.ones(3, bool))))(x, x)
    y += 1
    assert x.tolist() == [1, 1, 1]
