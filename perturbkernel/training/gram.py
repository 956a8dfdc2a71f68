"""The Gram matrix of a kernel as a linear operator: held in memory where it fits a budget, in tiles
where not.

On a mesh every device holds its rows of the matrix, or of the points, and computes its rows of each
product. Vectors, and all that a solver does with them, are whole on every device.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from perturbkernel import meshes
from perturbkernel.engine.arguments import argument_value, as_argument, has_arrays
from perturbkernel.engine.memory import available_memory, fits
from perturbkernel.engine.tiles import EXACT
from perturbkernel.kernels import products
from perturbkernel.kernels.base import Kernel


class GramOperator(eqx.Module):
    """V (n,) or (n, k) -> K v, in the dtype of v. A pytree, so that its arrays are arguments of
    compiled functions.

    Attributes:
        kernel: K.
        x: (n, ...), the points, where there is no matrix: what is compiled for a matrix knows
            nothing of their size. Products in tiles are in their dtype.
        matrix: (n, n) or None; products with it are in its dtype.
        mesh: devices that share the work; then rows of x and of the matrix are dealt out to them,
            padded to a multiple of their number, and K v is whole on every device.
    """

    kernel: Kernel
    x: Float[Array, "rows ..."] | None
    matrix: Float[Array, "rows n"] | None
    mesh: Mesh | None = eqx.field(static=True, default=None)

    @property
    def dtype(self) -> np.dtype:
        """Of products."""
        held = self.matrix if self.x is None else self.x
        assert held is not None
        return held.dtype

    def __call__(self, v: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        if self.mesh is not None:
            return _product(self, v)
        if self.x is not None:
            coef = v.astype(self.x.dtype)
            image = products.matvec(self.kernel, "ntk", self.x, self.x, coef)
            return jnp.asarray(image, v.dtype)
        assert self.matrix is not None
        coef = v.astype(self.matrix.dtype)
        image = jnp.matmul(self.matrix, coef, precision=EXACT)
        return image.astype(v.dtype)


class Scaled(eqx.Module):
    """v -> D K (D v) for D = diag(scale): what the weights of points make of the Gram matrix."""

    operator: Callable
    scale: Float[Array, " n"]

    def __call__(self, v: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        image = self.operator(scale_rows(self.scale, v))
        return scale_rows(self.scale, image)


def scale_rows(scale: Float[Array, " n"], v: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """diag(scale) v.

    Example:
        >>> import jax.numpy as jnp
        >>> scale_rows(jnp.array([1.0, 2.0]), jnp.ones((2, 1))).tolist()
        [[1.0], [2.0]]
    """
    columns = [1] * (v.ndim - 1)
    return scale.reshape(-1, *columns) * v


@jax.jit
def _product(operator: GramOperator, v: Array) -> Array:
    """K v on a mesh."""
    x = operator.x
    matrix = operator.matrix
    mesh = operator.mesh
    assert mesh is not None
    # Or the compiler would deal out the solver's vectors as well, where n can be divided.
    v = meshes.replicate(mesh, v)
    if x is not None:
        rows = (0, len(x) - len(v))
        columns = [(0, 0)] * (v.ndim - 1)
        coef = jnp.pad(v.astype(x.dtype), [rows, *columns])
        image = products.matvec(operator.kernel, "ntk", x, x, coef, mesh=mesh)
    else:
        assert matrix is not None
        specs = meshes.rows(mesh), meshes.WHOLE
        product = jax.shard_map(
            partial(jnp.matmul, precision=EXACT),
            mesh=mesh,
            in_specs=specs,
            out_specs=specs[0],
            check_vma=False,
        )
        image = product(matrix, v.astype(matrix.dtype))
    whole = meshes.replicate(mesh, image)
    return whole[: len(v)].astype(v.dtype)


@partial(jax.jit, static_argnums=1)
def _rows(argument: Any, mesh: Mesh, own: Array, x: Array) -> Array:
    """Each device's rows of the Gram matrix, from its own points and all points; zero where its
    points are padding.
    """

    def share(argument, own, x):
        kernel = argument_value(argument)
        first = lax.axis_index(mesh.axis_names) * len(own)
        row = first + jnp.arange(len(own))
        there = row < len(x)
        matrix = products.matrix(kernel, "ntk", own, x)
        return jnp.where(there[:, None], matrix, 0)

    split = meshes.rows(mesh)
    specs = meshes.WHOLE, split, meshes.WHOLE
    rows = jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
    return rows(argument, own, x)


def gram_operator(
    kernel: Kernel, x: Float[Array, "n ..."], memory: float | None = None, mesh: Mesh | None = None
) -> GramOperator:
    """Products with the Gram matrix of x, in the dtype of x, which is computed once and held if it
    fits `memory` bytes.

    `memory`: on each device of the mesh; None: `available_memory(mesh)`. A product with a matrix
    that is held reads it once; one in tiles evaluates the kernel anew, and holds one tile.
    """
    memory = available_memory(mesh) if memory is None else memory
    if mesh is None:
        if fits(len(x), x.dtype, memory):
            return GramOperator(kernel, None, kernel.ntk(x))
        return GramOperator(kernel, x, None)
    mesh = meshes.automatic(mesh)
    own = meshes.shard(mesh, "edge", x)
    if not fits(len(x), x.dtype, memory, devices=mesh.size):
        return GramOperator(kernel, own, None, mesh)
    held = meshes.replicate(mesh, kernel) if has_arrays(kernel) else kernel
    everywhere = meshes.replicate(mesh, x)
    matrix = _rows(as_argument(held), mesh, own, everywhere)
    return GramOperator(kernel, None, matrix, mesh)
