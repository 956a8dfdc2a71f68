"""The tangent kernel of a network of the user's own, at its parameters."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from perturbkernel.checks import check_count
from perturbkernel.engine.tiles import exact_matmul
from perturbkernel.kernels import features, network
from perturbkernel.kernels.base import Kernel
from perturbkernel.kernels.products import gradient_footprint

# Networks, and shapes of their inputs, whose rows were seen to be apart.
_SEEN: set[Any] = set()


class EmpiricalNTK(eqx.Module, Kernel):
    """The tangent kernel of your own network at its parameters, trained or not.

    With J_k(z) the gradient of output k at z in all parameters,

        K(z, x) = (1/K) sum_k <J_k(z), J_k(x)>.

    One output has K = 1. For several, this is the mean of the K x K kernel's diagonal, the one
    kernel that all K outputs of a wide network share; `output=k` is the kernel of that output
    alone.

    Products with coefficients take a pass forward and back over the points and one over the
    queries, O(n + m) evaluations of the network, whatever the number of parameters; the parameters'
    weights sum_n coef_n J(x_n) are held, K times as many numbers as there are parameters, no
    Jacobian. Where there are so many columns of coefficients, or so few points, that fewer
    operations are done by tiles, Jacobians of some rows at once are contracted leaf by leaf. For
    `ntk`, the matrix, those of as many rows as fit into `memory` are held while the columns pass.
    Parameters are arguments of compiled programs: the kernel at the next checkpoint of the same
    network compiles nothing.

    Inputs decide the dtype: the parameters are converted, to float64 for float64 inputs
    (`fit(..., precision=64)`).

    The network must treat the rows of x one by one: batch norm in the mode of inference, dropout
    off. ReLU networks have kernels that jump where a unit switches, and gradients of them in z that
    hold all units.

    Args:
        apply: (params, x) -> outputs (n,), (n, 1) or (n, K), for x (n, ...). The same function, or
            equal ones, for all checkpoints: programs are compiled for it.
        params: a pytree of arrays. Floating-point leaves are differentiated; others, such as
            counters, are handed to `apply` as they are. What should stay frozen is bound in
            `apply`.
        output: which of K outputs; left out, the mean over all.
        memory: bytes for temporaries on each device; a default for the device if left out.

    Raises:
        TypeError: apply is not a hashable function; params hold something else than real arrays.
        ValueError: where inputs are given for the first time, the network mixes rows (its values
            at two rows differ from those at each), or `output` is none of its outputs.

    Example:
        >>> import jax.numpy as jnp, perturbkernel as pk
        >>> def apply(params, x):
        ...     return jnp.tanh(x @ params["w"]) @ params["a"]
        >>> params = {"w": jnp.eye(2), "a": jnp.ones(2)}
        >>> pk.EmpiricalNTK(apply, params).ntk(jnp.zeros((1, 2)), jnp.ones((3, 2))).shape
        (1, 3)

    Theory: 1.
    """

    kernel_names: ClassVar[tuple[str, ...]] = ("ntk",)

    apply: Callable[..., Any] = eqx.field(static=True)
    params: Any
    output: int | None = eqx.field(static=True, default=None)
    memory: int | None = eqx.field(  # pyright: ignore[reportIncompatibleVariableOverride]
        static=True, default=None
    )

    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]
    __eq__ = object.__eq__  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        apply: Callable[..., Any],
        params: Any,
        *,
        output: int | None = None,
        memory: int | None = None,
    ):
        self.apply = network.checked_apply(apply)
        self.params = network.checked_parameters(params)
        if output is not None:
            check_count(output, "output", low=0)
        if memory is not None:
            check_count(memory, "memory", low=2**20)
        self.output = None if output is None else int(output)
        self.memory = memory

    def __repr__(self) -> str:
        name = getattr(self.apply, "__qualname__", type(self.apply).__name__)
        outputs = "" if self.output is None else f", output={self.output}"
        count = network.parameter_count(self.params)
        return f"EmpiricalNTK({name}{outputs})  # {count:,} parameters"

    def check_inputs(
        self,
        value,
        name: str,
        like: tuple[int, ...] | None = None,
    ) -> Array:
        """The inputs as an array, as of every kernel. The first ones try out the network."""
        x = super().check_inputs(value, name, like)
        seen = features.abstract(self), x.shape[1:], x.dtype
        if seen not in _SEEN and network.is_concrete(self.params, x):
            network.check_rows_are_apart(self.apply, self.params, x, name)
            row = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
            # Not of the method itself: JAX would compare its arrays with those of other kernels'.
            jax.eval_shape(lambda row: self._outputs_at(row), row)
            _SEEN.add(seen)
        return x

    def footprint(self, row: tuple[int, ...]) -> tuple[float, float]:
        """(numbers a pair of points, numbers a row) of the widest tile, an input gradient: the
        Jacobian of a row, several times.
        """
        return _footprint(self, row)

    def prefers_weights(
        self,
        name: str,
        m: int,
        n: int,
        columns: int,
        row: tuple[int, ...],
    ) -> bool:
        """Whether a product of so many queries, points and columns takes passes: for one column
        always.

        Tiles take the Jacobians, as many passes as one column does, and a product of them for each
        pair. With r the times that an evaluation uses each parameter (1 in dense layers, the number
        of places in convolutions) the other columns' passes are worth it up to

            (columns - 1) r (m + n) <= m n.
        """
        if columns == 1:
            return True
        return (columns - 1) * _uses(self, row) * (m + n) <= m * n

    def tile(self, name: str, z: Array, x: Array) -> Array:
        """Dense "ntk", (rows of z, rows of x)."""
        at_z = self.to_features(name, z)
        at_x = at_z if z is x else self.to_features(name, x)
        return self.from_features(name, at_z, at_x)

    def to_features(self, name: str, x: Array) -> list[Array]:
        """J(x), leaf by leaf, (rows, K, ...)."""
        self._check_has(name, name)
        trained, join = network.split(self.params, x.dtype)

        def of_row(row):
            outputs = lambda leaves: self._outputs(join(leaves), row[None])[0]  # noqa: E731
            values, pull_back = jax.vjp(outputs, trained)
            (rows,) = jax.vmap(pull_back)(jnp.eye(len(values), dtype=x.dtype))
            return rows

        return jax.vmap(of_row)(x)

    def from_features(self, name: str, at_z: list[Array], at_x: list[Array]) -> Array:
        """(rows of z, rows of x), from what `to_features` makes of them."""
        rows, columns = len(at_z[0]), len(at_x[0])
        total = jnp.zeros((rows, columns), at_z[0].dtype)
        for of_z, of_x in zip(at_z, at_x, strict=True):
            total += exact_matmul(of_z.reshape(rows, -1), of_x.reshape(columns, -1).T)
        outputs = at_z[0].shape[1]
        return total / outputs

    def to_weights(self, name: str, x: Array, coef: Array) -> list[Array]:
        """sum_n coef_n J_k(x_n), leaf by leaf, (K, ...), or (columns, K, ...) for coef (n,
        columns).
        """
        self._check_has(name, name)
        trained, join = network.split(self.params, x.dtype)
        values, pull_back = jax.vjp(lambda leaves: self._outputs(join(leaves), x), trained)
        outputs = jnp.eye(values.shape[1], dtype=x.dtype)

        def one_column(coef):
            return _each(lambda k: pull_back(coef[:, None] * k[None, :])[0], outputs)

        return one_column(coef) if coef.ndim == 1 else _each(one_column, coef.T)

    def from_weights(self, name: str, z: Array, weights: list[Array]) -> Array:
        """(1/K) sum_k <J_k(z), w_k>, (m,), or (m, columns)."""
        self._check_has(name, name)
        trained, join = network.split(self.params, z.dtype)
        values, push = jax.linearize(lambda leaves: self._outputs(join(leaves), z), trained)
        outputs = jnp.arange(values.shape[1])

        def one_output(pair):
            k, change = pair
            return lax.dynamic_index_in_dim(push(change), k, 1, keepdims=False)

        def one_column(weights):
            return _each(one_output, (outputs, weights)).sum(axis=0) / len(outputs)

        if weights[0].ndim == trained[0].ndim + 1:
            return one_column(weights)
        return _each(one_column, weights).T

    def moved(self, x: Array, coef: Array) -> Any:
        """The parameters plus sum_n coef_n J(x_n), for coef (n,): those of the linearised network
        that predicts its outputs before plus sum_n coef_n K(x_n, z).

        Raises TypeError for several outputs or columns, which no one change of parameters predicts.

        Example:
            >>> import jax.numpy as jnp, perturbkernel as pk
            >>> kernel = pk.EmpiricalNTK(lambda p, x: x @ p, jnp.array([1.0, 2.0]))
            >>> kernel.moved(jnp.array([[0.0, 3.0]]), jnp.array([0.5])).tolist()
            [1.0, 3.5]
        """
        change = features.weights(self, "ntk", x, coef) if coef.ndim == 1 else None
        if change is None or len(change[0]) > 1:
            raise TypeError(
                "parameters belong to one output: the kernel of several outputs is a mean over "
                "them, which no one change of the parameters gives; choose EmpiricalNTK(apply, "
                "params, output=k) and targets (n,)"
            )
        return network.moved(self.params, [leaf[0] for leaf in change])

    def _outputs(self, params: Any, x: Array) -> Array:
        """(n, K), or (n, 1) of the one output that is chosen."""
        values = network.outputs(self.apply, params, x)
        if self.output is None:
            return values
        if self.output >= values.shape[1]:
            raise ValueError(
                f"output must be one of the network's {values.shape[1]} outputs, counted from 0; "
                f"got {self.output}"
            )
        return values[:, self.output : self.output + 1]

    def _outputs_at(self, x: Array) -> Array:
        trained, join = network.split(self.params, x.dtype)
        return self._outputs(join(trained), x)


@features.once_per_structure
def _uses(kernel: EmpiricalNTK, row: tuple[int, ...]) -> float:
    """How often an evaluation uses each parameter: a multiplication and an addition each time."""
    x = jax.ShapeDtypeStruct((1, *row), jnp.float32)
    cost: Any = jax.jit(kernel.apply).lower(kernel.params, x).cost_analysis()
    operations = (cost or {}).get("flops", 0.0)
    return max(1.0, operations / (2 * network.parameter_count(kernel.params)))


@features.once_per_structure
def _footprint(kernel: EmpiricalNTK, row: tuple[int, ...]) -> tuple[float, float]:
    return gradient_footprint(kernel, row)


def _each(function: Callable, rows: Any) -> Any:
    """function(row) of every row of the arrays, stacked; one after the other, since together they
    take the memory of all.
    """
    if len(jax.tree.leaves(rows)[0]) == 1:
        only = function(jax.tree.map(lambda a: a[0], rows))
        return jax.tree.map(lambda a: a[None], only)
    return lax.map(function, rows)
