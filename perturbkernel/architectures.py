"""Any network of `neural_tangents.stax` as a kernel; the only module that touches neural-tangents."""

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.util
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from perturbkernel.checks import check_choice, check_count, check_number
from perturbkernel.kernels import Kernel
from perturbkernel.products import gradient_footprint
from perturbkernel.tiles import EXACT, visit_flagged


def load_neural_tangents(name: str = "stax") -> ModuleType:
    """`neural_tangents.<name>` ("stax", "predict"), without running the package's own `__init__`.

    The last release (0.6.5) imports TensorFlow there, and names that JAX has since removed. A bare
    module with the package's path stands in for it; its kernels need nothing else. A
    neural_tangents that is already imported is used as it is.

    Raises:
        ModuleNotFoundError: neural-tangents is not installed.
    """
    if "neural_tangents" not in sys.modules:
        spec = importlib.machinery.PathFinder.find_spec("neural_tangents")
        if spec is None:
            raise ModuleNotFoundError(
                "neural-tangents is not installed: pip install --no-deps neural-tangents"
            )
        bare = importlib.util.module_from_spec(
            importlib.machinery.ModuleSpec("neural_tangents", None, is_package=True)
        )
        bare.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["neural_tangents"] = bare
    return importlib.import_module(f"neural_tangents.{name}")


@jax.tree_util.register_static
@dataclass(frozen=True, repr=False)
class ArchitectureNTK(Kernel):
    """The tangent kernel of any network of `neural_tangents.stax`: deep, convolutional, residual.

    Args:
        network: what `stax.serial(...)` returns. It must end in one output a point: flatten or pool
            feature maps first. A last `Dense` counts as trained. The paper's network, whose readout
            is frozen, is stax.serial(stax.Dense(1, W_std=1, b_std=1, parameterization="standard"),
            stax.LeakyRelu(slope)), and its kernel is that of TwoLayerNTK(slope, train_bias=True).
        name: how `repr` and reports call it.
        input_shape: (h, w, c) for a convolutional network on flat rows (n, h w c), which is how a
            Dataset holds images; gradients and perturbations are then flat too. Left out, a row of
            inputs has the shape that the network takes: (n, d), or (n, h, w, c).
        memory: bytes for the tiles of a sum, on each device, as of TwoLayerNTK. What a pair of
            points takes is read off the network (`footprint`): pooled convolutions hold (h w)^2
            numbers and more a pair, a dense layer a few. A tile is one pair at least, whatever the
            memory.

    `fully_connected`, `convolutional` and `residual` make common ones.

    Points that coincide get the exact K(x, x) and half its gradient, the symmetric convention of
    TwoLayerNTK; for points that nearly coincide, and for equal patches of different images, the
    angles are those of neural-tangents, right to about 1e-8 in float64 and 3e-4 in float32. XLA's
    CPU backend (jaxlib 0.10.2) can crash on float64 input gradients of pooled convolutions, through
    neural-tangents alone as well; float32 works.
    """

    network: tuple
    name: str = "network"
    input_shape: tuple[int, ...] | None = None
    memory: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self):
        if not (
            isinstance(self.network, tuple)
            and len(self.network) == 3
            and all(map(callable, self.network))
        ):
            raise TypeError(
                "network must be the (init_fn, apply_fn, kernel_fn) that a neural_tangents.stax layer returns; "
                f"got {type(self.network).__name__}"
            )
        if self.input_shape is not None:
            object.__setattr__(self, "input_shape", _checked_shape(self.input_shape))
        if self.memory is not None:
            check_count(self.memory, "memory", low=2**20)

    def __repr__(self) -> str:
        return f"ArchitectureNTK({self.name}, neural_tangents.stax; every weight and bias of the network trained)"

    @classmethod
    def fully_connected(
        cls,
        depth: int = 1,
        activation: str = "relu",
        *,
        b_std: float = 0.1,
        memory: int | None = None,
    ) -> "ArchitectureNTK":
        """`depth` times (Dense, activation), then Dense: `depth` hidden layers, every weight and
        bias trained.

        Args:
            depth: at least 1.
            activation: "relu", "leaky_relu" (slope 0.2), "erf" or "gelu".
            b_std: of the biases, 0 for none. Weights have the W_std that keeps a variance of one
                from layer to layer, 1 / sqrt(E phi(u)^2) for standard normal u: 2^(1/2) for ReLU
                (He initialisation).
            memory: as above.

        Raises ValueError or TypeError for another depth, activation or b_std.
        """
        network = _fully_connected(*_checked(depth, "depth", activation, b_std))
        return cls(network, f"{depth} hidden layer{'s' * (depth > 1)}, {activation}", None, memory)

    @classmethod
    def convolutional(
        cls,
        input_shape: tuple[int, int, int],
        depth: int = 2,
        activation: str = "relu",
        *,
        pooling: bool = True,
        stride: int = 1,
        b_std: float = 0.1,
        memory: int | None = None,
    ) -> "ArchitectureNTK":
        """`depth` times (3 x 3 convolution, activation), then the mean over places or flattening,
        then Dense.

        Args:
            input_shape: (h, w, c) of an image; inputs may be flat rows (n, h w c), as in a Dataset,
                or (n, h, w, c).
            depth, activation, b_std, memory: as of `fully_connected`. Images are padded with zeros.
            pooling: the mean over all places, whose kernel compares every place with every other,
                (h w)^2 numbers a pair of images; False flattens the maps instead and takes h w of
                them.
            stride: of the first convolution; 2 leaves a quarter of the places.
        """
        layers = _checked(depth, "depth", activation, b_std)
        if not isinstance(pooling, bool):
            raise TypeError(f"pooling must be True or False; got {pooling!r}")
        check_count(stride, "stride")
        shape = _checked_shape(input_shape)
        if len(shape) != 3:
            raise ValueError(f"input_shape must be (h, w, c); got {shape}")
        network = _convolutional(*layers, pooling, int(stride))
        last = "pooled" if pooling else "flattened"
        return cls(
            network, f"{depth} convolution{'s' * (depth > 1)}, {activation}, {last}", shape, memory
        )

    @classmethod
    def residual(
        cls,
        blocks: int = 2,
        activation: str = "relu",
        *,
        b_std: float = 0.1,
        memory: int | None = None,
    ) -> "ArchitectureNTK":
        """Dense, `blocks` times u -> u + Dense(activation(u)), activation, Dense; arguments as of
        `fully_connected`.
        """
        network = _residual(*_checked(blocks, "blocks", activation, b_std))
        return cls(
            network, f"{blocks} residual block{'s' * (blocks > 1)}, {activation}", None, memory
        )

    def check_inputs(self, value, name: str, like: tuple[int, ...] | None = None) -> Array:
        """As of every kernel; with an `input_shape`, rows of that shape or flat."""
        array = super().check_inputs(value, name, like)
        shape = self.input_shape
        if shape is not None and array.shape[1:] not in (shape, (math.prod(shape),)):
            raise ValueError(
                f"{name} must have rows of shape {shape}, or ({math.prod(shape)},) if flat; got {array.shape[1:]}"
            )
        return array

    def footprint(self, row: tuple[int, ...]) -> tuple[float, float]:
        """(numbers a pair of points, numbers a row) of the widest sum, an input gradient."""
        return _footprint(self.network, self.input_shape, tuple(row))

    def tile(self, name: str, z: Array, x: Array) -> Array:
        """Dense "ntk" or "nngp", (rows of z, rows of x)."""
        if name not in ("ntk", "nngp"):
            raise TypeError(f"{name} belongs to TwoLayerNTK; {self!r} has ntk and nngp")
        if self.input_shape is not None:
            z, x = (a.reshape(len(a), *self.input_shape) for a in (z, x))
        return self._tile(name, z, x)

    @functools.partial(jax.jit, static_argnums=(0, 1))  # traced once for a sum and its gradient
    def _tile(self, name: str, z: Array, x: Array) -> Array:
        # neural-tangents computes in the widest dtype there is.
        x64 = jax.enable_x64(z.dtype == jnp.float64)
        with x64, jax.default_matmul_precision("highest"), _without_fan_in_warnings():
            same = _coincident(z, x)
            kernel = self._evaluate(self.network, name, z, x)
            each = self._diagonal(name, jnp.concatenate([z, x])) / 2
            return jnp.where(same, each[: len(z), None] + each[len(z) :], kernel)

    def _evaluate(self, network: tuple, name: str, z: Array, x: Array) -> Array:
        try:
            kernel = network[2](z, x, name)
        except Exception as error:
            raise ValueError(
                f"{self!r} cannot take inputs with rows of shape {z.shape[1:]}: {error}"
            ) from error
        if kernel.shape != (len(z), len(x)):
            found = ", ".join(map(str, kernel.shape[2:]))
            raise ValueError(
                f"network must have one output a point; its kernel has shape (n, m, {found}). "
                f"End it with stax.Flatten() or stax.GlobalAvgPool(), then stax.Dense(1)"
            )
        return kernel

    def _diagonal(self, name: str, x: Array) -> Array:
        """K(x_n, x_n), (n,), free of the cusp: rounding would otherwise turn the angle 0 into about
        1e-8.

        With the input covariance of a point and itself inflated by t > 0, a ReLU's angle is clipped
        to exactly 0 and the kernel is affine in t: 2 K(t) - K(2 t) is K(0). For smooth activations
        the error is some hundred t^2: t = 4 eps^(2/3), small enough for that to be rounding and
        large against the rounding of a covariance.
        """
        init, apply, identity = load_neural_tangents().Identity()

        def inflated(point, extra):
            def inflate(kernel, **_):
                return kernel.replace(nngp=kernel.nngp + extra * _same_place(kernel))

            # The requirements by which layers are chained.
            inflate.__dict__.update(identity.__dict__)
            network = load_neural_tangents().serial((init, apply, inflate), self.network)
            return self._evaluate(network, name, point[None], point[None])[0, 0]

        def variance(point):
            # For ReLUs a product, without angles.
            kernel = self.network[2](point[None], None, "cov1")
            return kernel.mean()

        # Relative to the output's variance: that of the input may be zero while biases keep the
        # rest of order one.
        scale = (
            4 * float(jnp.finfo(x.dtype).eps) ** (2 / 3) * jax.vmap(variance)(lax.stop_gradient(x))
        )
        extra = jnp.stack([scale, 2 * scale], axis=1)
        once, twice = jax.vmap(jax.vmap(inflated, (None, 0)))(x, extra).T
        return 2 * once - twice


def _same_place(kernel: Any) -> Array | float:
    """Where the covariances of two images are those of one place with itself.

    Two places of one image may be alike without being equal, and then the kernel is not affine in
    what is added.
    """
    if kernel.diagonal_spatial:
        return 1.0
    shape = kernel.nngp.shape  # (1, 1, h, h, w, w)
    pairs = (
        jnp.eye(shape[a]).reshape([shape[a] if b in (a, a + 1) else 1 for b in range(len(shape))])
        for a in range(2, len(shape), 2)
    )
    return functools.reduce(jnp.multiply, pairs, jnp.ones(()))


@functools.cache
def _footprint(
    network: tuple, input_shape: tuple[int, ...] | None, row: tuple[int, ...]
) -> tuple[float, float]:
    return gradient_footprint(ArchitectureNTK(network, input_shape=input_shape), row)


def _checked_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple | list) or not shape:
        raise TypeError(f"input_shape must be a tuple such as (28, 28, 1); got {shape!r}")
    for size in shape:
        check_count(size, "input_shape")
    return tuple(map(int, shape))


# --- common networks, made once each: two equal ones are one kernel, compiled once ---

# Name -> (the layer, E phi(u)^2 for standard normal u).
_ACTIVATIONS: dict[str, tuple[Callable, float]] = {
    "relu": (lambda stax: stax.Relu(), 1 / 2),
    "leaky_relu": (lambda stax: stax.LeakyRelu(0.2), (1 + 0.2**2) / 2),
    "erf": (lambda stax: stax.Erf(), 2 / math.pi * math.asin(2 / 3)),
    "gelu": (lambda stax: stax.Gelu(), 1 / 3 + 1 / (2 * math.pi * math.sqrt(3))),
}


def _checked(depth: Any, name: str, activation: Any, b_std: Any) -> tuple[int, str, float]:
    check_count(depth, name)
    check_choice(activation, "activation", tuple(_ACTIVATIONS))
    check_number(b_std, "b_std")
    return int(depth), activation, float(b_std)


def _layers(activation: str, b_std: float) -> tuple[Any, Any, dict[str, Any]]:
    """stax, the activation, and the scales of weights and biases."""
    stax: Any = load_neural_tangents()
    layer, second_moment = _ACTIVATIONS[activation]
    return stax, layer(stax), {"W_std": second_moment**-0.5, "b_std": b_std or None}


@functools.cache
def _fully_connected(depth: int, activation: str, b_std: float) -> tuple:
    stax, phi, scales = _layers(activation, b_std)
    return stax.serial(*depth * (stax.Dense(1, **scales), phi), stax.Dense(1, **scales))


@functools.cache
def _convolutional(depth: int, activation: str, b_std: float, pooling: bool, stride: int) -> tuple:
    stax, phi, scales = _layers(activation, b_std)
    first, other = (stax.Conv(1, (3, 3), (s, s), "SAME", **scales) for s in (stride, 1))
    last = stax.GlobalAvgPool() if pooling else stax.Flatten()
    return stax.serial(first, phi, *(depth - 1) * (other, phi), last, stax.Dense(1, **scales))


@functools.cache
def _residual(blocks: int, activation: str, b_std: float) -> tuple:
    stax, phi, scales = _layers(activation, b_std)
    dense = stax.Dense(1, **scales)
    with _without_fan_in_warnings():
        block = (
            stax.FanOut(2),
            stax.parallel(stax.serial(phi, dense), stax.Identity()),
            stax.FanInSum(),
        )
    return stax.serial(dense, *blocks * block, phi, dense)


@contextlib.contextmanager
def _without_fan_in_warnings():
    """`FanInSum` says whenever it is evaluated that its inputs are to be independent; once, when
    made, is enough.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`FanIn` layers assume independent inputs", UserWarning)
        yield


def _coincident(z: Array, x: Array) -> Array:
    """(rows of z, rows of x): which rows are equal in every entry."""
    z, x = (lax.stop_gradient(a.reshape(len(a), -1)) for a in (z, x))
    squares = jnp.sum(z**2, axis=1)[:, None] + jnp.sum(x**2, axis=1)
    candidates = squares - 2 * jnp.matmul(z, x.T, precision=EXACT) <= 1e-3 * squares
    row = jnp.arange(len(z))

    def compare(column, hit, same):
        return same.at[row, column].set(same[row, column] | (hit & (z == x[column]).all(axis=1)))

    return visit_flagged(candidates, compare, jnp.zeros(candidates.shape, bool))
