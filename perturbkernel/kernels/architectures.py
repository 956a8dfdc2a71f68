"""Any network of `neural_tangents.stax` as a kernel, and common networks by name."""

import functools
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from perturbkernel.checks import check_choice, check_count, check_number
from perturbkernel.engine.tiles import exact_matmul, visit_flagged
from perturbkernel.kernels.base import Kernel
from perturbkernel.kernels.products import gradient_footprint
from perturbkernel.kernels.stax_kernels import (
    check_points_are_apart,
    diagonal,
    matrix,
    without_fan_in_warnings,
)
from perturbkernel.kernels.stax_kernels import load_neural_tangents as load_neural_tangents


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

    Points that coincide get K(x, x) computed in float64, whatever their own precision, and half its
    gradient, the symmetric convention of TwoLayerNTK; for points that nearly coincide, and for
    equal patches of different images, the angles are those of neural-tangents, right to about 1e-8
    in float64 and 3e-4 in float32, in each layer. XLA's CPU backend (jaxlib 0.10.2) can crash on
    float64 input gradients of pooled convolutions, through neural-tangents alone as well; float32
    works.

    A kernel function of your own, functools.partial(kernel_fn, mask_constant=-9.0) for inputs with
    masked entries say, may stand in the triple; K(x, x) is then its value at (x, x) in float64,
    which knows the angle 0 of a ReLU to 1e-8.

    Kernels made by the constructors can be pickled, copied and sent to other processes. A network
    of your own consists of functions that pickle cannot write: make it anew in each process.

    Raises:
        TypeError: network is not such a triple.
        ValueError: network has Dropout(mode="train"), or layers that mix points.
    """

    network: tuple
    name: str = "network"
    input_shape: tuple[int, ...] | None = None
    memory: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self):
        if not _is_network(self.network):
            raise TypeError(
                "network must be the (init_fn, apply_fn, kernel_fn) that a neural_tangents.stax "
                f"layer returns; got {type(self.network).__name__}"
            )
        check_points_are_apart(self.network)
        if self.input_shape is not None:
            shape = _checked_shape(self.input_shape)
            object.__setattr__(self, "input_shape", shape)
        if self.memory is not None:
            check_count(self.memory, "memory", low=2**20)

    def __reduce__(self):
        if self.network not in _RECIPES:
            raise pickle.PicklingError(
                f"{self!r} cannot be pickled: its network consists of functions made inside other "
                "functions. Make the kernel anew where it is needed, or use a constructor such as "
                "ArchitectureNTK.fully_connected; a predictor is kept by f.save(path), and "
                "KernelPredictor.load(path, kernel=...) is given the kernel again"
            )
        recipe = _RECIPES[self.network]
        return _restored, (recipe, self.name, self.input_shape, self.memory)

    def __copy__(self) -> "ArchitectureNTK":
        return self  # immutable, and made of functions, which copies share

    def __deepcopy__(self, memo) -> "ArchitectureNTK":
        return self

    def __repr__(self) -> str:
        trained = "every weight and bias of the network trained"
        return f"ArchitectureNTK({self.name}, neural_tangents.stax; {trained})"

    @classmethod
    def fully_connected(
        cls,
        depth: int = 1,
        activation: str = "relu",
        *,
        b_std: float = 0.1,
        memory: int | None = None,
    ) -> "ArchitectureNTK":
        """The kernel of `depth` times (Dense, activation), then Dense: `depth` hidden layers, with
        every weight and bias trained.

        Args:
            depth: at least 1.
            activation: "relu", "leaky_relu" (slope 0.2), "erf" or "gelu".
            b_std: of the biases, 0 for none. Weights have the W_std that keeps a variance of one
                from layer to layer, 1 / sqrt(E phi(u)^2) for standard normal u: 2^(1/2) for ReLU
                (He initialisation).
            memory: as above.

        Raises ValueError or TypeError for another depth, activation or b_std.

        Example:
            >>> import numpy as np, perturbkernel as pk
            >>> kernel = pk.ArchitectureNTK.fully_connected(depth=2, activation="erf")
            >>> kernel.ntk(np.ones((4, 3))).shape
            (4, 4)
        """
        _check_options(depth, "depth", activation, b_std)
        network = _fully_connected(int(depth), activation, float(b_std))
        name = f"{_counted(depth, 'hidden layer')}, {activation}"
        return cls(network, name, None, memory)

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
        """The kernel of `depth` times (3 x 3 convolution, activation), then the mean over places or
        flattening, then Dense.

        Example:
            >>> import numpy as np, perturbkernel as pk
            >>> kernel = pk.ArchitectureNTK.convolutional((4, 4, 1), depth=1, pooling=False)
            >>> kernel.ntk(np.ones((4, 16))).shape
            (4, 4)

        Args:
            input_shape: (h, w, c) of an image; inputs may be flat rows (n, h w c), as in a Dataset,
                or (n, h, w, c).
            depth, activation, b_std, memory: as of `fully_connected`. Images are padded with zeros.
            pooling: the mean over all places, whose kernel compares every place with every other,
                (h w)^2 numbers a pair of images; False flattens the maps instead and takes h w of
                them.
            stride: of the first convolution; 2 leaves a quarter of the places.
        """
        _check_options(depth, "depth", activation, b_std)
        if not isinstance(pooling, bool):
            raise TypeError(f"pooling must be True or False; got {pooling!r}")
        check_count(stride, "stride")
        shape = _checked_shape(input_shape)
        if len(shape) != 3:
            raise ValueError(f"input_shape must be (h, w, c); got {shape}")
        network = _convolutional(int(depth), activation, float(b_std), pooling, int(stride))
        last = "pooled" if pooling else "flattened"
        name = f"{_counted(depth, 'convolution')}, {activation}, {last}"
        return cls(network, name, shape, memory)

    @classmethod
    def residual(
        cls,
        blocks: int = 2,
        activation: str = "relu",
        *,
        b_std: float = 0.1,
        memory: int | None = None,
    ) -> "ArchitectureNTK":
        """The kernel of Dense, `blocks` times u -> u + Dense(activation(u)), activation, Dense.

        Arguments as of `fully_connected`.

        Example:
            >>> import numpy as np, perturbkernel as pk
            >>> pk.ArchitectureNTK.residual(blocks=1).ntk(np.ones((4, 3))).shape
            (4, 4)
        """
        _check_options(blocks, "blocks", activation, b_std)
        network = _residual(int(blocks), activation, float(b_std))
        name = f"{_counted(blocks, 'residual block')}, {activation}"
        return cls(network, name, None, memory)

    def check_inputs(
        self,
        value,
        name: str,
        like: tuple[int, ...] | None = None,
    ) -> Array:
        """The inputs as an array, as of every kernel; with an `input_shape`, rows of that shape or
        flat.
        """
        array = super().check_inputs(value, name, like)
        if self.input_shape is None:
            return array
        row = array.shape[1:]
        flat = (math.prod(self.input_shape),)
        if row not in (self.input_shape, flat):
            raise ValueError(
                f"{name} must have rows of shape {self.input_shape}, or {flat} if flat; got {row}"
            )
        return array

    def footprint(self, row: tuple[int, ...]) -> tuple[float, float]:
        """(numbers a pair of points, numbers a row) of the widest sum, an input gradient."""
        return _footprint(self.network, self.input_shape, tuple(row))

    def tile(self, name: str, z: Array, x: Array) -> Array:
        """Dense "ntk" or "nngp", (rows of z, rows of x)."""
        if self.input_shape is not None:
            z = z.reshape(len(z), *self.input_shape)
            x = x.reshape(len(x), *self.input_shape)
        return self._tile(name, z, x)

    @functools.partial(jax.jit, static_argnums=(0, 1))  # traced once for a sum and its gradient
    def _tile(self, name: str, z: Array, x: Array) -> Array:
        label = repr(self)
        with jax.enable_x64(z.dtype == jnp.float64):
            kernel = matrix(self.network, label, name, z, x)
            same = _coincident(z, x)

            def replaced():
                # Half of K(z, z) and half of K(x, x), so that each gets half of the gradient.
                points = jnp.concatenate([z, x])
                half = diagonal(self.network, label, name, points) / 2
                exact = half[: len(z), None] + half[None, len(z) :]
                return jnp.where(same, exact, kernel)

            return lax.cond(jnp.any(same), replaced, lambda: kernel)


@functools.cache
def _footprint(
    network: tuple,
    input_shape: tuple[int, ...] | None,
    row: tuple[int, ...],
) -> tuple[float, float]:
    kernel = ArchitectureNTK(network, input_shape=input_shape)
    return gradient_footprint(kernel, row)


def _is_network(value: Any) -> bool:
    """Whether this is an (init_fn, apply_fn, kernel_fn)."""
    return isinstance(value, tuple) and len(value) == 3 and all(map(callable, value))


def _counted(count: int, noun: str) -> str:
    """For names: "1 layer", "2 layers"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


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


def _check_options(depth: Any, name: str, activation: Any, b_std: Any) -> None:
    check_count(depth, name)
    check_choice(activation, "activation", tuple(_ACTIVATIONS))
    check_number(b_std, "b_std")


def _layers(activation: str, b_std: float) -> tuple[Any, Any, dict[str, Any]]:
    """stax, the activation, and the scales of weights and biases."""
    stax: Any = load_neural_tangents()
    layer, second_moment = _ACTIVATIONS[activation]
    scales = {"W_std": second_moment**-0.5, "b_std": b_std or None}
    return stax, layer(stax), scales


# A network made here -> how to make it again: the name of a function below, and its arguments.
_RECIPES: dict[tuple, tuple[str, tuple]] = {}


def _made_once(build: Callable[..., tuple]) -> Callable[..., tuple]:
    """Keeps each network, so that two equal ones are one kernel, and how it was made."""

    @functools.cache
    def once(*arguments):
        network = build(*arguments)
        _RECIPES[network] = build.__name__, arguments
        return network

    return once


def _restored(
    recipe: tuple[str, tuple],
    name: str,
    input_shape: tuple[int, ...] | None,
    memory: int | None,
) -> ArchitectureNTK:
    """The kernel that `ArchitectureNTK.__reduce__` took apart."""
    build, arguments = recipe
    builders = {
        "_fully_connected": _fully_connected,
        "_convolutional": _convolutional,
        "_residual": _residual,
    }
    network = builders[build](*arguments)
    return ArchitectureNTK(network, name, input_shape, memory)


@_made_once
def _fully_connected(depth: int, activation: str, b_std: float) -> tuple:
    stax, phi, scales = _layers(activation, b_std)
    dense = stax.Dense(1, **scales)
    hidden = depth * (dense, phi)
    return stax.serial(*hidden, dense)


@_made_once
def _convolutional(
    depth: int,
    activation: str,
    b_std: float,
    pooling: bool,
    stride: int,
) -> tuple:
    stax, phi, scales = _layers(activation, b_std)
    first = stax.Conv(1, (3, 3), (stride, stride), "SAME", **scales)
    other = stax.Conv(1, (3, 3), (1, 1), "SAME", **scales)
    hidden = (first, phi) + (depth - 1) * (other, phi)
    last = stax.GlobalAvgPool() if pooling else stax.Flatten()
    return stax.serial(*hidden, last, stax.Dense(1, **scales))


@_made_once
def _residual(blocks: int, activation: str, b_std: float) -> tuple:
    stax, phi, scales = _layers(activation, b_std)
    dense = stax.Dense(1, **scales)
    with without_fan_in_warnings():
        block = (
            stax.FanOut(2),
            stax.parallel(stax.serial(phi, dense), stax.Identity()),
            stax.FanInSum(),
        )
    return stax.serial(dense, *blocks * block, phi, dense)


def _coincident(z: Array, x: Array) -> Array:
    """(rows of z, rows of x): which rows are equal in every entry."""
    z = lax.stop_gradient(z.reshape(len(z), -1))
    x = lax.stop_gradient(x.reshape(len(x), -1))
    of_z = jnp.sum(z**2, axis=1)
    of_x = jnp.sum(x**2, axis=1)
    squares = of_z[:, None] + of_x[None, :]
    distances = squares - 2 * exact_matmul(z, x.T)
    candidates = distances <= 1e-3 * squares  # far above what rounding makes of 0
    row = jnp.arange(len(z))

    def compare(column, hit, same):
        equal = hit & (z == x[column]).all(axis=1)
        return same.at[row, column].set(same[row, column] | equal)

    return visit_flagged(candidates, compare, jnp.zeros_like(candidates))
