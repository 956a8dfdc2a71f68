"""The two-layer kernel of the paper in closed form."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from perturbkernel.arrays import by_rows, namespace
from perturbkernel.checks import (
    as_inputs,
    check_count,
    check_number,
)
from perturbkernel.kernels.angles import products_and_angles, quick_products_and_angles
from perturbkernel.kernels.base import Kernel
from perturbkernel.kernels.rows import Rows, common_direction, lengths, numbers_of_rows

AnyArray = Array | np.ndarray


@jax.tree_util.register_static
@dataclass(frozen=True)
class TwoLayerNTK(Kernel):
    """The tangent kernel of the paper's two-layer network with leaky ReLUs, as its width grows.

    The network is, with phi the leaky ReLU,

        f(x) = sum_i a_i phi(<w_i, x> + b_i),

    w_i ~ N(0, I/d), b_i ~ N(0, 1), readout a_i ~ N(0, 1/width) frozen; gradients with respect to W
    itself ("standard" parameterization). With theta the angle between (x/sqrt(d), 1) and
    (z/sqrt(d), 1),

        K(x, z) = Phi(x, z) (<x, z> + c),
        Phi = (1 + slope^2)/2 - (1 - slope)^2 theta / (2 pi).

    Args:
        slope: of the leaky ReLU for negative inputs, in [0, 1]; 0 is ReLU, 1 a linear network.
        train_bias: False (c = 0): only W is trained, the paper's theory. True (c = 1): the biases
            too, the paper's published code; the kernel gains Phi.
        memory: bytes for the temporaries of a sum, on each device; a default for the device if left
            out.

    Example:
        >>> import perturbkernel as pk
        >>> pk.TwoLayerNTK(slope=1.0).ntk([[1.0, 2.0]], [[3.0, 1.0]]).tolist()
        [[5.0]]

    Source: Kumano, Kera, Yamasaki (NeurIPS 2024), Section 4; theory 0.1.
    """

    kernel_names: ClassVar[tuple[str, ...]] = ("ntk", "nngp", "phi")

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

    def check_inputs(
        self,
        value,
        name: str,
        like: tuple[int, ...] | None = None,
    ) -> Array:
        """The inputs (n, d), as an array; images are to be flattened."""
        return as_inputs(value, name, like=like, flat=True)

    def tile(self, name: str, z: Array, x: Array) -> Array:
        """Dense "phi", "ntk" or "nngp", (rows of z, rows of x)."""
        product, theta = products_and_angles(z, x)
        return self.of_angles(name, z, x, product, theta)

    def prepare(self, z: Array, x: Array) -> tuple[Rows, Rows, Array]:
        """Lengths and the like of all points, and the direction along which most of them lie."""
        v = common_direction(z)
        of_z = numbers_of_rows(z, v)
        of_x = of_z if z is x else numbers_of_rows(x, v)
        return of_z, of_x, v

    def quick_tile(self, name: str, z: Array, x: Array, *prepared: Any) -> Array:
        """The same but NaN where points nearly coincide, or are opposite."""
        prepared = prepared or self.prepare(z, x)
        product, theta = quick_products_and_angles(z, x, *prepared)
        return self.of_angles(name, z, x, product, theta)

    @property
    def _cone(self) -> float:
        """-d Phi / d theta."""
        return (1 - self.slope) ** 2 / (2 * np.pi)

    def of_angles(
        self,
        name: str,
        z: Any,
        x: Any,
        product: Any,
        theta: Any,
    ) -> Any:
        """The tile from <z, x> and theta, arrays of JAX, or of NumPy unless it is "nngp"."""
        cone = self._cone
        phi = (1 + self.slope**2) / 2 - cone * theta
        if name == "phi":
            return phi
        if name == "ntk":
            return phi * (product + float(self.train_bias))
        d = x.shape[1]
        s_z = lengths(z)[:, None]
        s_x = lengths(x)[None, :]
        along = phi * (1 + product / d)
        across = cone * (s_z * s_x) * jnp.sin(theta)
        return along + across

    def angle_cotangents(
        self,
        name: str,
        product: Any,
        theta: Any,
        cotangent: Any,
    ) -> tuple[Any, Any]:
        """The cotangents of <z, x> and theta, from that of a tile "ntk" or "phi"."""
        phi = self.of_angles("phi", None, None, product, theta)
        to_phi = cotangent if name == "phi" else cotangent * (float(self.train_bias) + product)
        to_product = 0.0 if name == "phi" else cotangent * phi
        return to_product, -self._cone * to_phi

    def gradient_bound(self, z: AnyArray, x: AnyArray, coef: AnyArray) -> AnyArray:
        """(m,), at least sum_n coef_n |grad_z K(x_n, z)| for coef >= 0.

        From |grad Phi| <= (1 - slope)^2 / (2 pi sqrt(d) s_z) and Phi <= (1 + slope^2) / 2 (theory:
        0.1, 0.3).
        """
        d = x.shape[1]
        xp = namespace(coef)
        norm_of_rows = partial(xp.linalg.norm, axis=1)
        norm_x = by_rows(norm_of_rows, x)
        norm_z = norm_x if z is x else by_rows(norm_of_rows, z)
        s_z = xp.sqrt(1 + norm_z**2 / d)
        lipschitz = (1 - self.slope) ** 2 / (2 * np.pi * d**0.5 * s_z)
        sum_norms = xp.sum(coef * norm_x)
        of_product = (1 + self.slope**2) / 2 * sum_norms
        factor = norm_z * sum_norms + float(self.train_bias) * xp.sum(coef)
        return of_product + lipschitz * factor
