"""A network replaced by its tangent at its parameters."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from perturbkernel.checks import as_inputs
from perturbkernel.display import Displayed
from perturbkernel.kernels import network
from perturbkernel.kernels.empirical import EmpiricalNTK


class LinearizedNetwork(Displayed, eqx.Module):
    """f(z) = apply(origin, z) + <J(z), params - origin>: what `linearize` returns.

    A function (m, ...) -> (m,), or (m, K), and a pytree: gradients in `params` are those of a
    linear model with features J. As `initial` of `fit` it is the network at its parameters.

    Attributes:
        apply: (params, x) -> outputs.
        origin: the parameters at which J is taken.
        params: those of this function.
    """

    apply: Callable[..., Any] = eqx.field(static=True)
    origin: Any
    params: Any

    def _numbers(self) -> dict[str, Any]:
        start = jax.tree.leaves(self.origin)
        end = jax.tree.leaves(self.params)
        count = 0
        square = 0.0
        for a, b in zip(start, end, strict=True):
            count += np.size(a)
            square += np.sum(np.square(np.subtract(b, a)))
        return {
            "apply": getattr(self.apply, "__name__", type(self.apply).__name__),
            "parameters": count,
            "|params - origin|": np.sqrt(square),
        }

    def __call__(self, z: Float[ArrayLike, "m ..."]) -> Float[Array, "m ..."]:
        """Outputs (m,), or (m, K)."""
        x = as_inputs(z, "z")
        start, join = network.split(self.origin, x.dtype)
        end, _ = network.split(self.params, x.dtype)
        change = [b - a for a, b in zip(start, end, strict=True)]

        def outputs(leaves):
            return network.outputs(self.apply, join(leaves), x)

        values, tangents = jax.jvp(outputs, (start,), (change,))
        total = values + tangents
        return total[:, 0] if total.shape[1] == 1 else total

    def at(self, params: Any) -> "LinearizedNetwork":
        """The same tangent at other parameters, those of `predictor.parameters()` say."""
        params = network.checked_parameters(params)
        wanted = jax.tree.map(jnp.shape, self.origin)
        if jax.tree.map(jnp.shape, params) != wanted:
            raise ValueError("params must have the structure and shapes of the network's own")
        return LinearizedNetwork(self.apply, self.origin, params)

    def kernel(self, *, output: int | None = None, memory: int | None = None) -> EmpiricalNTK:
        """The kernel <J(z), J(x)>, an `EmpiricalNTK`.

        Example:
            >>> import jax.numpy as jnp, perturbkernel as pk
            >>> network = pk.linearize(lambda p, x: (x @ p) ** 2, jnp.array([1.0, 2.0]))
            >>> network.kernel().ntk(jnp.ones((1, 2))).tolist()
            [[72.0]]
        """
        return EmpiricalNTK(self.apply, self.origin, output=output, memory=memory)


def linearize(apply: Callable[..., Any], params: Any) -> LinearizedNetwork:
    """The network's tangent at `params`, f(z) = apply(params, z) + <J(z), p - params> for
    parameters p, at p = params; arguments as of `EmpiricalNTK`.

    Training it by gradient descent is `fit` with its kernel: from ``initial`` the network itself,

        network = pk.linearize(apply, params)
        f = pk.fit(network.kernel(), x, y, loss="squared", initial=network)
        trained = network.at(f.parameters())

    `trained` has the outputs of f. Source: Lee et al., Wide Neural Networks of Any Depth Evolve as
    Linear Models (NeurIPS 2019).

    Example:
        >>> import jax.numpy as jnp, perturbkernel as pk
        >>> network = pk.linearize(lambda p, x: (x @ p) ** 2, jnp.array([1.0, 2.0]))
        >>> z = jnp.array([[1.0, 1.0]])
        >>> network(z).tolist(), network.at(jnp.array([2.0, 2.0]))(z).tolist()
        ([9.0], [15.0])
    """
    params = network.checked_parameters(params)
    return LinearizedNetwork(network.checked_apply(apply), params, params)
