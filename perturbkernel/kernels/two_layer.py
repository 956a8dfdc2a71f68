"""The two-layer kernel of the paper in closed form."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float

from perturbkernel.checks import (
    as_inputs,
    check_count,
    check_number,
)
from perturbkernel.kernels import products
from perturbkernel.kernels.angles import products_and_angles, quick_products_and_angles
from perturbkernel.kernels.base import Kernel


@jax.tree_util.register_static
@dataclass(frozen=True)
class TwoLayerNTK(Kernel):
    """The tangent kernel of the paper's network f(x) = sum_i a_i phi(<w_i, x> + b_i), phi a leaky
    ReLU, as width grows.

    w_i ~ N(0, I/d), b_i ~ N(0, 1), readout a_i ~ N(0, 1/width) frozen; gradients with respect to W
    itself ("standard" parameterization). With theta the angle between (x/sqrt(d), 1) and
    (z/sqrt(d), 1),

        K(x, z) = Phi(x, z) (<x, z> + c),    Phi = (1 + slope^2)/2 - (1 - slope)^2 theta / (2 pi).

    Args:
        slope: of the leaky ReLU for negative inputs, in [0, 1]; 0 is ReLU, 1 a linear network.
        train_bias: False (c = 0): only W is trained, the paper's theory. True (c = 1): the biases
            too, the paper's published code; the kernel gains Phi.
        memory: bytes for the temporaries of a sum, on each device; a default for the device if left
            out.

    Source: Kumano, Kera, Yamasaki (NeurIPS 2024), Section 4; theory 0.1.
    """

    slope: float = 0.0
    train_bias: bool = False
    memory: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self):
        if self.memory is not None:
            check_count(self.memory, "memory", low=2**20)
        check_number(self.slope, "slope", low=0, high=1)
        if not isinstance(self.train_bias, bool | np.bool_):
            raise TypeError(f"train_bias must be True or False; got {self.train_bias!r}")
        object.__setattr__(self, "slope", float(self.slope))
        object.__setattr__(self, "train_bias", bool(self.train_bias))

    def __repr__(self) -> str:
        trained = "W and b" if self.train_bias else "W"
        memory = "" if self.memory is None else f", memory={self.memory}"
        return (
            f"TwoLayerNTK(slope={self.slope:g}, train_bias={self.train_bias}{memory})  "
            f"# trains {trained}; readout frozen; standard parameterization"
        )

    def check_inputs(self, value, name: str, like: tuple[int, ...] | None = None) -> Array:
        """(n, d) arrays; images are to be flattened."""
        return as_inputs(value, name, like=like, flat=True)

    def tile(self, name: str, z: Array, x: Array) -> Array:
        """Dense "phi", "ntk" or "nngp", (rows of z, rows of x)."""
        return self._tile(name, z, x, *products_and_angles(z, x))

    def quick_tile(self, name: str, z: Array, x: Array) -> Array:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The same but NaN where points nearly coincide, or are opposite."""
        return self._tile(name, z, x, *quick_products_and_angles(z, x))

    def _tile(self, name: str, z: Array, x: Array, product: Array, theta: Array) -> Array:
        cone = (1 - self.slope) ** 2 / (2 * np.pi)
        phi = (1 + self.slope**2) / 2 - cone * theta
        if name == "phi":
            return phi
        if name == "ntk":
            return phi * (product + float(self.train_bias))
        s_z, s_x = (jnp.sqrt(1 + jnp.sum(points**2, axis=1) / points.shape[1]) for points in (z, x))
        return phi * (1 + product / x.shape[1]) + cone * (s_z[:, None] * s_x[None, :]) * jnp.sin(
            theta
        )

    def gradient_bound(self, z: Array, x: Array, coef: Array) -> Array:
        """From |grad Phi| <= (1 - slope)^2 / (2 pi sqrt(d) s_z) and Phi <= (1 + slope^2) / 2
        (theory: 0.1, 0.3).
        """
        d = x.shape[1]
        norm_x, norm_z = jnp.linalg.norm(x, axis=1), jnp.linalg.norm(z, axis=1)
        lipschitz = (1 - self.slope) ** 2 / (2 * np.pi * d**0.5 * jnp.sqrt(1 + norm_z**2 / d))
        sum_norms = jnp.sum(coef * norm_x)
        return (1 + self.slope**2) / 2 * sum_norms + lipschitz * (
            norm_z * sum_norms + float(self.train_bias) * jnp.sum(coef)
        )

    def phi(
        self, x: Float[ArrayLike, "n d"], z: Float[ArrayLike, "m d"] | None = None
    ) -> Float[Array, "n m"]:
        """The gate moment Phi(x_n, z_m) = E[phi'(u(x_n)) phi'(u(z_m))], (n, m), between slope and
        (1 + slope^2)/2.

        `z` omitted: between the rows of x; the diagonal is exactly (1 + slope^2)/2. Theory: 0.1.
        """
        return self._matrix("phi", x, z)

    def phi_matmul(
        self,
        z: Float[ArrayLike, "m d"],
        x: Float[ArrayLike, "n d"],
        b: Float[ArrayLike, "n k"],
        *,
        mesh: Mesh | None = None,
        progress: Any = None,
    ) -> Float[Array, "m k"]:
        """sum_n Phi(x_n, z_j) b_n, (m, k) for b (n, k), in tiles; b_n = y_n x_n / n gives the
        paper's direction v.

        `mesh` and `progress` as in `matvec`.
        """
        arguments = self._sum_arguments(z, x, b, "b", (1, 2), mesh, progress)
        return products.matvec(self, "phi", *arguments, mesh=mesh, progress=progress)
