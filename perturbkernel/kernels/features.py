"""Products with a kernel of features, by its weights: K(z, x) = <phi(z), phi(x)>.

A sum over points is then a linear function of features, whose weights are made once:

    sum_n coef_n K(z, x_n) = <phi(z), w>,    w = sum_n coef_n phi(x_n).

That takes n + m evaluations of features in place of n m of the kernel, and no tile. A kernel offers
it by two methods beside its `tile`, `to_weights` and `from_weights` (`kernels.base`). Both are
evaluated for blocks of rows, so that memory does not grow with their number, and JAX differentiates
them as they stand.

A whole matrix is made of the features themselves, which a kernel offers by `to_features` and
`from_features`: those of a block of rows are held while the columns pass.
"""

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array

from perturbkernel import meshes
from perturbkernel.checks import is_traced
from perturbkernel.engine.arguments import argument_value, as_argument, has_arrays
from perturbkernel.engine.memory import default_memory, footprint
from perturbkernel.engine.tiles import (
    by_rows,
    keep_rows,
    own_rows,
    part_of,
    part_start,
    tile_size,
)
from perturbkernel.kernels.dense import defines

# Rows of a block, at most: more are no quicker.
_ROWS = 4096


def has_weights(kernel: Any) -> bool:
    """Whether a kernel has the two halves of a product: `to_weights` and `from_weights`."""
    return defines(kernel, "to_weights") and defines(kernel, "from_weights")


def takes(kernel: Any, name: str, z: Any, x: Any, coef: Any) -> bool:
    """Whether products of these are taken by weights: where the kernel has them, and says so."""
    if not has_weights(kernel):
        return False
    columns = coef.shape[1] if coef.ndim == 2 else 1
    return kernel.prefers_weights(name, len(z), len(x), columns, x.shape[1:])


# --- blocks of rows ---


def abstract(kernel: Any) -> tuple[Any, tuple]:
    """What of a kernel decides how large its arrays are: structure, and shapes and dtypes."""
    leaves, structure = jax.tree.flatten(kernel)
    return structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def like(abstract: tuple[Any, tuple]) -> Any:
    """A kernel of that structure whose arrays are zero, and take no memory."""
    structure, leaves = abstract
    zeros = [np.broadcast_to(np.zeros((), dtype), shape) for shape, dtype in leaves]
    return jax.tree.unflatten(structure, zeros)


def once_per_structure(measure: Any) -> Any:
    """measure(kernel, row), computed once for all kernels whose arrays have the same shapes."""

    @functools.lru_cache(maxsize=64)
    def measured(abstract, row):
        return measure(like(abstract), row)

    @functools.wraps(measure)
    def of_structure(kernel, row):
        return measured(abstract(kernel), tuple(row))

    return of_structure


@once_per_structure
def row_numbers(kernel: Any, row: tuple[int, ...]) -> float:
    """Numbers that a row takes in the widest product by weights, an input gradient; read off its
    trace.
    """

    def gradient(z, x):
        weights = kernel.to_weights("ntk", x, jnp.ones(len(x), x.dtype))
        outputs, pull_back = jax.vjp(lambda z: kernel.from_weights("ntk", z, weights), z)
        return pull_back(jnp.ones_like(outputs))

    _, each = footprint(gradient, row)
    return each


@once_per_structure
def row_operations(kernel: Any, row: tuple[int, ...]) -> float:
    """Floating-point operations of a pass over one row, for all outputs, as XLA counts them."""

    def weights(kernel, x):
        # The same passes; of a loop over outputs, XLA would count one.
        if has_features(kernel):
            return kernel.to_features("ntk", x)
        return kernel.to_weights("ntk", x, jnp.ones(len(x), x.dtype))

    x = jax.ShapeDtypeStruct((1, *row), jnp.float32)
    cost: Any = jax.jit(weights).lower(kernel, x).cost_analysis() or {}
    return max(1.0, cost.get("flops", 0.0))


def rows_at_once(
    kernel: Any,
    row: tuple[int, ...],
    itemsize: int,
    memory: int | None = None,
) -> int:
    """Rows of a block: what fits into the memory, left out the kernel's own."""
    numbers = (memory or kernel.memory or default_memory()) / itemsize
    rows = numbers // row_numbers(kernel, row)
    return int(np.clip(rows, 1, _ROWS))


def _limit(kernel: Any, points: Array) -> int:
    return rows_at_once(kernel, points.shape[1:], points.dtype.itemsize)


# --- the two halves, in blocks ---


def weights(kernel: Any, name: str, x: Array, coef: Array) -> Any:
    """w = sum_n coef_n phi(x_n), a pytree."""
    n = len(x)
    size = tile_size(n, _limit(kernel, x))
    if size == n:
        return kernel.to_weights(name, x, coef)

    @jax.checkpoint
    def add(i, total):
        points, own = part_of((x, coef), i, size)
        own = keep_rows(own_rows(i, size, n), own)
        part = kernel.to_weights(name, points, own)
        return jax.tree.map(jnp.add, total, part)

    def zeros_of(shape):
        return jnp.zeros_like(coef, shape=shape.shape, dtype=shape.dtype)

    to_weights = partial(kernel.to_weights, name)
    shapes = jax.eval_shape(to_weights, x[:size], coef[:size])
    zeros = jax.tree.map(zeros_of, shapes)
    parts = -(-n // size)
    return lax.fori_loop(0, parts, add, zeros)


def outputs(kernel: Any, name: str, z: Array, w: Any) -> Array:
    """<phi(z), w>, (m,) or (m, k)."""
    spread = jax.checkpoint(lambda z: kernel.from_weights(name, z, w))
    return by_rows(spread, z, _limit(kernel, z))


def _gradients(kernel: Any, name: str, z: Array, w: Any, cotangent: Array) -> Array:
    def block(rows):
        z, cotangent = rows
        _, pull_back = jax.vjp(lambda z: kernel.from_weights(name, z, w), z)
        (at_z,) = pull_back(cotangent)
        return at_z

    return by_rows(block, (z, cotangent), _limit(kernel, z))


# --- products ---


@partial(jax.jit, static_argnums=(0, 1))
def _product(name, mesh, argument, z, cotangent, x, coef):
    """What `matvec` returns, or with a cotangent `query_gradient`."""

    def share(argument, z, cotangent, x, coef):
        kernel = argument_value(argument)
        w = weights(kernel, name, x, coef)
        if mesh is not None:
            w = lax.psum(w, mesh.axis_names)
        if cotangent is None:
            return outputs(kernel, name, z, w)
        return _gradients(kernel, name, z, w, cotangent)

    if mesh is None:
        return share(argument, z, cotangent, x, coef)
    split = meshes.rows(mesh)
    specs = meshes.WHOLE, split, split, split, split
    shares = jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
    return shares(argument, z, cotangent, x, coef)


def product(
    kernel: Any,
    name: str,
    z: Array,
    x: Array,
    coef: Array,
    cotangent: Array | None = None,
    *,
    mesh: Mesh | None = None,
    progress: Any = None,
) -> Array:
    """sum_n coef_n kernel(x_n, z_j), or its gradient in z along `cotangent`, as of
    `products.matvec` and `products.query_gradient`. Differentiable, in what the kernel holds too.
    """
    m = len(z)
    if mesh is not None:
        mesh = meshes.automatic(mesh)
        kernel = meshes.replicate(mesh, kernel) if has_arrays(kernel) else kernel
        z, cotangent, x = meshes.shard(mesh, "edge", (z, cotangent, x))
        coef = meshes.shard(mesh, "constant", coef)
    elif meshes.inside_shard_map():
        z, x, coef = meshes.varying_alike(z, x, coef)
    result = _product(name, mesh, as_argument(kernel), z, cotangent, x, coef)
    if mesh is not None:
        result = meshes.collect(result, m)
    if progress is not None and not is_traced(result):
        jax.block_until_ready(result)
        progress.update(m)
    return result


# --- whole matrices ---


def has_features(kernel: Any) -> bool:
    """Whether the features of rows can be held: `to_features` and `from_features`."""
    return defines(kernel, "to_features") and defines(kernel, "from_features")


@once_per_structure
def feature_numbers(kernel: Any, row: tuple[int, ...]) -> float:
    """Numbers that the features of a row take, and what they are made of; read off their trace."""
    _, each = footprint(lambda z, x: kernel.to_features("ntk", z), row)
    return each


def block_shape(
    kernel: Any,
    n: int,
    m: int,
    row: tuple[int, ...],
    itemsize: int,
    memory: int | None = None,
) -> tuple[int, int]:
    """(rows, columns) of a block of the matrix (n, m) whose features fit into the memory.

    Columns are evaluated again for every block of rows, so that rows get what is left: where all of
    them fit, nothing is evaluated twice. With b = `feature_numbers`, a block takes

        rows columns + b (rows + columns)

    numbers.
    """
    numbers = (memory or kernel.memory or default_memory()) / itemsize
    each = feature_numbers(kernel, row)

    def limited(count: float, most: int) -> int:
        return int(np.clip(count, 1, min(most, _ROWS)))

    def beside(others: int, most: int) -> int:
        """How many rows fit beside so many columns, or the other way round."""
        fit = (numbers - each * others) / (each + others)
        return limited(fit, most)

    # Three rows for each column:  3 c^2 + 4 b c = numbers.
    discriminant = 16 * each**2 + 12 * numbers
    root = (np.sqrt(discriminant) - 4 * each) / 6
    columns = limited(root, m)
    rows = tile_size(n, beside(columns, n))
    columns = tile_size(m, beside(rows, m))
    return rows, columns


@partial(jax.jit, static_argnums=(0, 1, 2))
def _matrix(name, same, differentiable, argument, x, z):
    kernel = argument_value(argument)
    n = len(x)
    m = len(z)
    rows, columns = block_shape(kernel, n, m, x.shape[1:], x.dtype.itemsize)
    if same and rows == n:
        features = kernel.to_features(name, x)
        return kernel.from_features(name, features, features)
    down = -(-n // rows)
    across = -(-m // columns)
    # A loop from a step on that is not known before has no derivative.
    mirrored = same and not differentiable

    def of_rows(i, matrix):
        points = part_of(x, i, rows)
        own = kernel.to_features(name, points)
        top = part_start(i, rows, n)

        def fill(j, matrix):
            points = part_of(z, j, columns)
            others = kernel.to_features(name, points)
            block = kernel.from_features(name, own, others)
            left = part_start(j, columns, m)
            matrix = lax.dynamic_update_slice(matrix, block, (top, left))
            if mirrored:
                matrix = lax.dynamic_update_slice(matrix, block.T, (left, top))
            return matrix

        # What is left of the diagonal, earlier blocks of rows have written.
        first = i * rows // columns if mirrored else 0
        return _loop(first, across, fill, matrix)

    empty = jnp.zeros((n, m), x.dtype)
    return _loop(0, down, of_rows, empty)


def _loop(first: Any, end: int, body: Any, state: Any) -> Any:
    """`lax.fori_loop`, but for a single step without a loop, in which XLA's convolutions are slow
    on a CPU.
    """
    if end == 1:
        return body(0, state)
    return lax.fori_loop(first, end, body, state)


def matrix(kernel: Any, name: str, x: Array, z: Array) -> Array:
    """The whole matrix, (n, m), from features that are held for a block of rows while those of the
    columns pass. Where z is x, the very same array, one side of the diagonal is evaluated.

    Differentiable, in what the kernel holds too.
    """
    argument = as_argument(kernel)
    traced = is_traced(x, z, *jax.tree.leaves(argument))
    return _matrix(name, x is z, traced, argument, x, z)
