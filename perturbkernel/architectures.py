"""Any network of `neural_tangents.stax` as a kernel; the only module that touches neural-tangents."""

import importlib
import importlib.machinery
import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from perturbkernel.checks import check_count
from perturbkernel.kernels import Kernel
from perturbkernel.tiles import EXACT, visit_flagged


def load_neural_tangents(name: str = "stax") -> ModuleType:
    """`neural_tangents.<name>` ("stax", "predict"), without running the package's own `__init__`.

    The last release (0.6.5) imports TensorFlow there, and names that JAX has since removed. A bare module with the
    package's path stands in for it; its kernels need nothing else. A neural_tangents that is already imported is used
    as it is.

    Raises:
        ModuleNotFoundError: neural-tangents is not installed.
    """
    if "neural_tangents" not in sys.modules:
        spec = importlib.machinery.PathFinder.find_spec("neural_tangents")
        if spec is None:
            raise ModuleNotFoundError("neural-tangents is not installed: pip install --no-deps neural-tangents")
        bare = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("neural_tangents", None, is_package=True))
        bare.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["neural_tangents"] = bare
    return importlib.import_module(f"neural_tangents.{name}")


@jax.tree_util.register_static
@dataclass(frozen=True, repr=False)
class ArchitectureNTK(Kernel):
    """The tangent kernel of any network of `neural_tangents.stax`: deep, convolutional, residual.

    Args:
        network: what `stax.serial(...)` returns. It must end in one output a point: flatten or pool feature maps first.
            A last `Dense` counts as trained. The paper's network, whose readout is frozen, is
            stax.serial(stax.Dense(1, W_std=1, b_std=1, parameterization="standard"), stax.LeakyRelu(slope)),
            and its kernel is that of TwoLayerNTK(slope, train_bias=True).
        name: how `repr` and reports call it.
        block: rows of queries and of points evaluated at once. Pooled convolutions hold (h w)^2 numbers a pair of
            points: choose it small for them.

    Inputs are (n, d), or (n, h, w, c) for convolutional networks. Points that coincide get the exact K(x, x) and half
    its gradient, the symmetric convention of TwoLayerNTK; for points that nearly coincide the angles are those of
    neural-tangents, right to about 1e-8 in float64 and 3e-4 in float32. XLA's CPU backend (jaxlib 0.10.2) can crash on
    float64 input gradients of pooled convolutions, through neural-tangents alone as well; float32 works.
    """

    network: tuple
    name: str = "network"
    block: tuple[int, int] = (256, 256)

    def __post_init__(self):
        if not (isinstance(self.network, tuple) and len(self.network) == 3 and all(map(callable, self.network))):
            raise TypeError(
                "network must be the (init_fn, apply_fn, kernel_fn) that a neural_tangents.stax layer returns; "
                f"got {type(self.network).__name__}"
            )
        if not (isinstance(self.block, tuple | list) and len(self.block) == 2):
            raise TypeError(f"block must be (rows of queries, rows of points); got {self.block!r}")
        object.__setattr__(self, "block", tuple(self.block))
        for size in self.block:
            check_count(size, "block")

    def __repr__(self) -> str:
        return f"ArchitectureNTK({self.name}, neural_tangents.stax; every weight and bias of the network trained)"

    def tile(self, name: str, z: Array, x: Array) -> Array:
        """Dense "ntk" or "nngp", (rows of z, rows of x)."""
        if name not in ("ntk", "nngp"):
            raise TypeError(f"{name} belongs to TwoLayerNTK; {self!r} has ntk and nngp")
        same = _coincident(z, x)
        kernel = self._evaluate(self.network, name, z, x)
        diagonal = (self._diagonal(name, z)[:, None] + self._diagonal(name, x)) / 2
        return jnp.where(same, diagonal, kernel)

    def _evaluate(self, network: tuple, name: str, z: Array, x: Array) -> Array:
        try:
            with jax.default_matmul_precision("highest"):
                kernel = network[2](z, x, name)
        except Exception as error:
            raise ValueError(f"{self!r} cannot take inputs with rows of shape {z.shape[1:]}: {error}") from error
        if kernel.shape != (len(z), len(x)):
            raise ValueError(
                f"network must have one output a point; its kernel has shape {kernel.shape}. "
                f"End it with stax.Flatten() or stax.GlobalAvgPool(), then stax.Dense(1)"
            )
        return kernel

    def _diagonal(self, name: str, x: Array) -> Array:
        """K(x_n, x_n), (n,), free of the cusp: rounding would otherwise turn the angle 0 into about 1e-8.

        With the input covariance of a point and itself inflated by t > 0, a ReLU's angle is clipped to exactly 0 and
        the kernel is affine in t: 2 K(t) - K(2 t) is K(0). For smooth activations the error is of order t^2, or eps.
        """
        t = 4 * float(jnp.finfo(x.dtype).eps) ** 0.5
        init, apply, identity = load_neural_tangents().Identity()

        def one(point, t, scale):
            def inflate(kernel, **_):
                return kernel.replace(nngp=kernel.nngp + t * scale)

            inflate.__dict__.update(identity.__dict__)  # the requirements by which layers are chained
            network = load_neural_tangents().serial((init, apply, inflate), self.network)
            return self._evaluate(network, name, point[None], point[None])[0, 0]

        def extrapolated(point):
            # Relative to the output's variance: that of the input may be zero while biases keep the rest of order one.
            scale = lax.stop_gradient(self._evaluate(self.network, "nngp", point[None], point[None])[0, 0])
            return 2 * one(point, t, scale) - one(point, 2 * t, scale)

        return jax.vmap(extrapolated)(x)


def _coincident(z: Array, x: Array) -> Array:
    """(rows of z, rows of x): which rows are equal in every entry."""
    z, x = (lax.stop_gradient(a.reshape(len(a), -1)) for a in (z, x))
    squares = jnp.sum(z**2, axis=1)[:, None] + jnp.sum(x**2, axis=1)
    candidates = squares - 2 * jnp.matmul(z, x.T, precision=EXACT) <= 1e-3 * squares
    row = jnp.arange(len(z))

    def compare(column, hit, same):
        return same.at[row, column].set(same[row, column] | (hit & (z == x[column]).all(axis=1)))

    return visit_flagged(candidates, compare, jnp.zeros(candidates.shape, bool))
