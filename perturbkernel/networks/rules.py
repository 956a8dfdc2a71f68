"""What a training is compiled for: its data, its rules, and how members of an ensemble share it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array

from perturbkernel import meshes
from perturbkernel.networks.optimizers import Plateau
from perturbkernel.training.losses import Loss


class Data(NamedTuple):
    """Inputs (n, d), targets (n,), and what each row of the inputs is multiplied by, (n,), or None.

    Of an ensemble, targets and scale have a leading axis of members, and the inputs too unless they
    are shared.
    """

    x: Array
    y: Array
    scale: Array | None = None


class Rules(NamedTuple):
    """What is compiled into a step.

    Attributes:
        loss, batch_size, plateau: as in `train`.
        update: of the optimizer.
        takes_more: whether it has arguments beside gradient, state and parameters.
        shared: of an ensemble, whether its members see the same inputs; else None.
        mesh: the devices that an ensemble is dealt out to.
    """

    loss: Loss
    update: Callable
    takes_more: bool
    batch_size: int | None
    plateau: Plateau | None
    shared: bool | None = None
    mesh: Mesh | None = None

    def each(self, function: Callable) -> Callable:
        """The function for one network, or for every member of an ensemble.

        Its arguments are a network and its state, the initial network, data and key. Members with
        inputs of their own take turns: on a CPU a batched product costs a third more than its
        parts.
        """
        if self.shared is None:
            return function
        if self.shared:
            axes: Any = Data(None, 0, 0)  # pyright: ignore[reportArgumentType]
            return jax.vmap(function, (0, 0, axes, 0))
        return lambda *args: lax.map(lambda member: function(*member), args)

    def dealt(self, function: Callable, *specs: Any) -> Callable:
        """The function, computed on a mesh by every device for its own members.

        Without communication. `specs` say which arguments, and in the end which results, begin with
        the axis of members (True).
        """
        mesh = self.mesh
        if mesh is None:
            return function
        *arguments, results = jax.tree.map(
            lambda own: meshes.rows(mesh) if own else meshes.WHOLE, specs
        )
        return jax.shard_map(
            function, mesh=mesh, in_specs=tuple(arguments), out_specs=results, check_vma=False
        )

    @property
    def own(self) -> Data:
        """Which of the data each member has for itself."""
        return Data(not self.shared, True, True)  # pyright: ignore[reportArgumentType]

    def batches(self, n: int) -> int:
        """How many batches an epoch of n points has."""
        return 1 if self.batch_size is None else -(-n // self.batch_size)
