"""Arrays on a mesh of devices: dealt out by rows, whole on every device, and ordinary again.

Every process of a run holds the same ordinary arrays and makes the same calls.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

WHOLE = PartitionSpec()


def rows(mesh: Mesh) -> PartitionSpec:
    """The specification of arrays whose rows are dealt out to all devices of a mesh.

    Example:
        >>> rows(jax.make_mesh((1, 1), ("i", "j"))) == PartitionSpec(("i", "j"))
        True
    """
    return PartitionSpec(mesh.axis_names)


def automatic(mesh: Mesh) -> Mesh:
    """A mesh of the same devices on which what is computed may be sharded in any way.

    Explicit axes would insist on a sharding of their own.

    Example:
        >>> automatic(jax.make_mesh((1,), ("i",))).axis_types == (AxisType.Auto,)
        True
    """
    return Mesh(mesh.devices, mesh.axis_names, axis_types=_automatic_types(mesh))


def _automatic_types(mesh: Any) -> tuple[AxisType, ...]:
    return (AxisType.Auto,) * len(mesh.axis_names)


def with_automatic_axes(array: Any) -> Any:
    """The array, where it lies on explicit axes (what `jax.make_mesh` makes) free of them.

    Explicit axes ask every operation for the sharding of its result, which no program that is
    written for one device says. The devices keep their shares. Where the caller insists on explicit
    axes, `jax.set_mesh`, the array becomes whole on every device, which suits any operation.

    Example:
        >>> with_automatic_axes(jnp.ones(3)).shape
        (3,)
    """
    if not isinstance(array, jax.Array):
        return array
    mesh = jax.typeof(array).sharding.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return array
    callers = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit in callers.axis_types:
        return jax.sharding.reshard(array, NamedSharding(mesh, WHOLE))
    if isinstance(array, Tracer):
        mesh = mesh.update(axis_types=_automatic_types(mesh))
        return jax.sharding.reshard(array, NamedSharding(mesh, WHOLE))
    placed: Any = array.sharding
    return jax.device_put(array, NamedSharding(automatic(placed.mesh), placed.spec))


def shard(mesh: Mesh, mode: Any, tree: Any) -> Any:
    """The arrays with their rows dealt out to the devices of a mesh, padded to a multiple of their
    number; `mode` is that of `jnp.pad`.

    Example:
        >>> shard(jax.make_mesh((1,), ("i",)), "edge", [jnp.ones((4, 2))])[0].shape
        (4, 2)
    """

    def one(array):
        missing = -len(array) % mesh.size
        of_columns = [(0, 0)] * (array.ndim - 1)
        padding = [(0, missing), *of_columns]
        if isinstance(array, Tracer):
            return jnp.pad(array, padding, mode=mode)
        host = np.asarray(array)
        if missing:
            host = np.pad(host, padding, mode=mode)
        return _place(mesh, rows(mesh), host)

    return jax.tree.map(one, tree)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The arrays, whole on every device of a mesh; inside `jit`, by communication if need be.

    Example:
        >>> replicate(jax.make_mesh((1,), ("i",)), jnp.ones(3)).is_fully_replicated
        True
    """

    def one(array):
        if isinstance(array, Tracer):
            return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, WHOLE))
        return _place(mesh, WHOLE, np.asarray(array))

    return jax.tree.map(one, tree)


def _place(
    mesh: Mesh,
    spec: PartitionSpec,
    host: np.ndarray,
) -> Array:
    def part(index):
        return host[index]

    sharding = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(host.shape, sharding, part)


def collect(array: Array, count: int) -> Array:
    """The first `count` rows of an array on a mesh, as an ordinary array in every process.

    Example:
        >>> collect(shard(jax.make_mesh((1,), ("i",)), "edge", jnp.arange(4)), 3).tolist()
        [0, 1, 2]
    """
    if isinstance(array, Tracer):
        return array[:count]
    whole = array.is_fully_addressable or array.is_fully_replicated
    if not whole:
        array = multihost_utils.process_allgather(array, tiled=True)
    host = np.asarray(array)
    return jnp.asarray(host[:count])


def inside_shard_map() -> bool:
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def varying_alike(*arrays: Array) -> tuple[Array, ...]:
    """The same arrays, all of them varying over the devices over which any of them does.

    So that `shard_map` adds up the derivatives in arrays that were the same on every device.
    """
    zero = sum(jnp.zeros_like(a, shape=()) for a in arrays)
    return tuple(a + zero for a in arrays)
