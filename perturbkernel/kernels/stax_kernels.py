"""Kernels of `neural_tangents.stax` networks, between points and of a point with itself.

The only module that runs neural-tangents. A network is the (init_fn, apply_fn, kernel_fn) of a stax
layer; `label` is how messages call it.
"""

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array

from perturbkernel.meshes import inside_shard_map

#: The inflation of the output's variance by which `diagonal` clips angles: far above float64
#: rounding, also behind layers that shrink it 1e4 times; its square is below rounding.
_INFLATION = 2.0**-36
#: The least inflation of the input's covariance, 64 roundings of a float64.
_ROUNDINGS = 2.0**-46
_MIXING = "network must treat points one by one, since kernels are summed over parts of the data"


def load_neural_tangents(name: str = "stax") -> ModuleType:
    """The module `neural_tangents.<name>` ("stax", "predict"), without the package's `__init__`.

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


@contextlib.contextmanager
def _as_neural_tangents_expects(float64: bool):
    """The only place where neural-tangents runs: precise products, JAX's ordinary promotion of
    ranks and dtypes whatever the user's, and float64 in or out of scope, as it computes in the
    widest dtype there is.
    """
    with (
        jax.enable_x64(float64),
        jax.default_matmul_precision("highest"),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        without_fan_in_warnings(),
    ):
        yield


@contextlib.contextmanager
def without_fan_in_warnings():
    """A context in which `FanInSum` does not say that its inputs are to be independent.

    It does so whenever it is evaluated; once, when made, is enough.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`FanIn` layers assume independent inputs", UserWarning)
        yield


# --- what a network asks of its inputs ---


def _is_stax(network: tuple) -> bool:
    """Whether the kernel function is that of a stax layer, which also takes what layers hand on to
    each other. Others take arrays.
    """
    return hasattr(network[2], "input_req")


def _requirements(network: tuple) -> dict[str, Any]:
    return getattr(network[2], "input_req", None) or {}


def check_points_are_apart(network: tuple) -> None:
    """Raises ValueError for networks whose K(x, z) is not a function of x and z alone."""
    asked = _requirements(network)
    if asked.get("use_dropout"):
        raise ValueError(
            'network has Dropout(mode="train"), under which K(x, x) has a factor 1 / rate that '
            'the kernel of x and a point beside it does not have. Use Dropout(rate, mode="test")'
        )
    if asked.get("diagonal_batch") is False:
        raise ValueError(f"{_MIXING}; a layer of it combines them along the batch axis")


# --- kernels ---


def matrix(network: tuple, label: str, name: str, z: Array, x: Array) -> Array:
    """The kernel called `name`, (rows of z, rows of x), as neural-tangents computes it.

    Raises ValueError for inputs that the network does not take, and for networks that have more
    than one output a point or do not keep points apart.
    """
    with _as_neural_tangents_expects(z.dtype == jnp.float64):
        return _evaluate(network, label, name, z, x)


def _evaluate(network: tuple, label: str, name: str, z: Array, x: Array) -> Array:
    axis = _requirements(network).get("batch_axis", 0)
    if axis % z.ndim:
        raise ValueError(f"network must have its points along axis 0; got batch_axis={axis}")
    try:
        kernel = network[2](z, x, name)
    except Exception as error:
        raise ValueError(
            f"{label} cannot take inputs with rows of shape {z.shape[1:]}: {error}"
        ) from error
    if kernel.shape[:2] != (len(z), len(x)):
        raise ValueError(f"{_MIXING}; a layer of it changes how many there are")
    if kernel.ndim > 2:
        found = ", ".join(map(str, kernel.shape[2:]))
        raise ValueError(
            f"network must have one output a point; its kernel has shape (n, m, {found}). "
            f"End it with stax.Flatten() or stax.GlobalAvgPool(), then stax.Dense(1)"
        )
    return kernel


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def diagonal(network: tuple, label: str, name: str, x: Array) -> Array:
    """K(x_n, x_n), (n,), in the dtype of x but computed in float64; differentiable once, and twice
    where x64 is enabled.

    Float32 would not do: a variance c known to eps leaves the gate of an erf or GELU, a function of
    1 + 2 c where c^2 cancels, with an error of eps c, and residual blocks double c. Derivatives and
    batches are defined here, since JAX takes them after float64 went out of scope.
    """
    at_one_point = _of_a_point(network, label, name, x)
    (values,) = _at_all_points(at_one_point, x)
    return values


@diagonal.defjvp
def _diagonal_jvp(network, label, name, primals, tangents):
    (x,) = primals
    (tangent,) = tangents
    values, gradient = _with_gradient(network, label, name, x)
    products = (gradient * tangent).reshape(len(x), -1)
    return values, jnp.sum(products, axis=1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _with_gradient(network: tuple, label: str, name: str, x: Array) -> tuple[Array, Array]:
    """K(x_n, x_n), and its gradient in x_n."""
    at_one_point = _of_a_point(network, label, name, x, gradient=True)
    values, gradient = _at_all_points(at_one_point, x)
    return values, gradient


@_with_gradient.defjvp
def _second_derivative(network, label, name, primals, tangents):
    (x,) = primals
    if x.dtype != jnp.float64:
        raise TypeError(
            f"{label} has second derivatives only in float64: give float64 inputs, with "
            'jax.config.update("jax_enable_x64", True)'
        )
    at_one_point = _of_a_point(network, label, name, x, gradient=True)
    with _as_neural_tangents_expects(True):
        results, changes = jax.jvp(jax.vmap(at_one_point), primals, tangents)
    return tuple(results), tuple(changes)


def _of_a_point(
    network: tuple, label: str, name: str, x: Array, gradient: bool = False
) -> Callable:
    """A function of one row of x: [K(x, x)], or K(x, x) and its gradient."""
    if not inside_shard_map():
        return _traced(network, label, name, x.shape[1:], x.dtype, gradient)
    # Arrays have types here that a trace made outside does not know.
    value = functools.partial(_at_one_point, network, label, name)
    return jax.value_and_grad(value) if gradient else lambda point: [value(point)]


@functools.lru_cache(maxsize=64)
def _traced(
    network: tuple,
    label: str,
    name: str,
    row: tuple[int, ...],
    dtype: Any,
    gradient: bool,
) -> Callable:
    """To trace a deep network takes longer than most sums: once, for points however many, and for
    sums and their gradients.
    """
    if gradient:
        known = _traced(network, label, name, row, dtype, False)
        function = jax.value_and_grad(lambda point: known(point)[0])
    else:
        function = functools.partial(_at_one_point, network, label, name)
    with _as_neural_tangents_expects(True):
        point = jax.ShapeDtypeStruct(row, dtype)
        program = jax.make_jaxpr(function)(point)
    return jaxpr_as_fun(program)


def _at_all_points(function: Callable[[Array], Any], x: Array) -> Any:
    """`function` at each row of x, computed in float64, in the dtype of x. Float32 rows that
    `jax.vmap` batches are computed together: nothing is traced where float64 is out of scope.
    """

    def at_all(x: Array) -> Any:
        with _as_neural_tangents_expects(True):
            found = jax.vmap(function)(x)
            return jax.tree.map(lambda array: array.astype(x.dtype), found)

    if x.dtype == jnp.float64:
        return at_all(x)
    batched = jax.custom_batching.custom_vmap(at_all)

    @batched.def_vmap
    def at_all_batches(batches: int, _: Any, x: Array) -> tuple[Any, Any]:
        found = batched(x.reshape(-1, *x.shape[2:]))
        apart = jax.tree.map(lambda array: array.reshape(batches, -1, *array.shape[1:]), found)
        return apart, jax.tree.map(lambda _: True, apart)

    return batched(x)


def _at_one_point(network: tuple, label: str, name: str, point: Array) -> Array:
    """K(x, x) in float64, free of the cusp of ReLUs, where rounding turns the angle 0 into 1e-8.

    With the input covariance of the point and itself inflated by t > 0, a ReLU's angle is clipped
    to exactly 0 and the kernel is affine in t: 2 K(t) - K(2 t) is K(0). For smooth activations the
    error is of order t^2.

    t has two parts. One is measured at the output: t dS/dt is a small part of its variance S, so
    that neither amplification makes it large nor biases, beside which inputs may be tiny, drown
    it. The other lifts the input's own covariance over its rounding.
    """
    x = point[None]
    if not _is_stax(network):
        return _evaluate(network, label, name, x, x)[0, 0]

    def inflated(name, relative, absolute):
        return _evaluate(_inflated(network, relative, absolute), label, name, x, x)[0, 0]

    def variance(absolute):
        return inflated("nngp", 0.0, absolute)

    zero = jnp.zeros((), jnp.float64)
    output, slope = jax.jvp(variance, (zero,), (zero + 1,))
    absolute = _INFLATION * output / slope
    absolute = lax.stop_gradient(jnp.where(jnp.isfinite(absolute), absolute, 0))

    def inflated_times(k):
        return inflated(name, k * _ROUNDINGS, k * absolute)

    once, twice = jax.vmap(inflated_times)(jnp.arange(1.0, 3.0))
    return 2 * once - twice


def _inflated(network: tuple, relative: Any, absolute: Any) -> tuple:
    """The network on inputs whose covariance of a place with itself, but not its variance, is
    (1 + relative) times as large, plus `absolute`.
    """
    init, apply, identity = load_neural_tangents().Identity()

    def inflate(kernel, **_):
        extra = relative * kernel.nngp + absolute
        return kernel.replace(nngp=kernel.nngp + extra * _same_place(kernel))

    # The requirements by which layers are chained.
    inflate.__dict__.update(identity.__dict__)
    return load_neural_tangents().serial((init, apply, inflate), network)


def _same_place(kernel: Any) -> Array | float:
    """Where the covariances of two images are those of one place with itself.

    Two places of one image may be alike without being equal, and then the kernel is not affine in
    what is added.
    """
    if kernel.diagonal_spatial:
        return 1.0
    shape = kernel.nngp.shape  # (1, 1, h, h, w, w)
    same: Array = jnp.ones(())
    for axis in range(2, len(shape), 2):
        # The identity in the two axes that belong to one direction of the image.
        pair = [size if other in (axis, axis + 1) else 1 for other, size in enumerate(shape)]
        same = jnp.multiply(same, jnp.eye(shape[axis]).reshape(pair))
    return same
