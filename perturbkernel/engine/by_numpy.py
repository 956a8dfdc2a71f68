"""Small functions of arrays run by NumPy, one operation after the other, without a program.

To compile a function takes a tenth of a second, and to evaluate it on some thousand numbers a
tenth of a millisecond. What is traced once, in a few milliseconds, NumPy evaluates as often as it
is asked for. Functions with an operation that is not in the tables below are compiled.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.extend.core as core
import jax.numpy as jnp
import numpy as np

_HALVES = jnp.float16, jnp.bfloat16
_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "and": np.bitwise_and,
    "ceil": np.ceil,
    "div": np.divide,
    "eq": np.equal,
    "exp": np.exp,
    "exp2": np.exp2,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "log": np.log,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "nextafter": np.nextafter,
    "not": np.invert,
    "or": np.bitwise_or,
    "pow": np.power,
    "sign": np.sign,
    "sqrt": np.sqrt,
    "square": np.square,
    "stop_gradient": np.asarray,
    "sub": np.subtract,
}


def _argmax(x, axes, **_):
    return np.argmax(x, axes[0])


def _broadcast_in_dim(x, shape, broadcast_dimensions, **_):
    aligned = np.ones(len(shape), int)
    aligned[list(broadcast_dimensions)] = np.shape(x)
    return np.broadcast_to(np.reshape(x, aligned), shape)


def _clamp(low, x, high):
    return np.minimum(np.maximum(x, low), high)


def _concatenate(*arrays, dimension):
    return np.concatenate(arrays, dimension)


def _convert(x, new_dtype, **_):
    return np.asarray(x).astype(new_dtype)


def _cumsum(x, axis, reverse):
    if reverse:
        return np.flip(np.cumsum(np.flip(x, axis), axis), axis)
    return np.cumsum(x, axis)


def _gather(x, indices, **_):
    """`jnp.take_along_axis` along rows."""
    return np.take_along_axis(x, indices[..., 0], 1)


def _integer_pow(x, y):
    # A product, as in a program: NumPy's power rounds otherwise.
    return x * x if y == 2 else np.power(x, np.asarray(y, x.dtype))


def _iota(dtype, shape, dimension, **_):
    places = np.arange(shape[dimension], dtype=dtype)
    return _broadcast_in_dim(places, shape, (dimension,))


def _reduced(reduce: Callable[..., Any]) -> Callable[..., Any]:
    def apply(x, axes, **_):
        return reduce(x, axis=axes)

    return apply


def _reshape(x, new_sizes, **_):
    return np.reshape(x, new_sizes)


def _select(which, at_false, at_true):
    return np.where(which, at_true, at_false)


def _slice(x, start_indices, limit_indices, strides):
    steps = strides or (1,) * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, steps))]


def _sort(*arrays, dimension, is_stable, num_keys):
    order = np.argsort(arrays[0], dimension, kind="stable")
    return [np.take_along_axis(array, order, dimension) for array in arrays]


def _squeeze(x, dimensions):
    return np.squeeze(x, dimensions)


def _transpose(x, permutation):
    return np.transpose(x, permutation)


_BY_NUMPY: dict[str, Callable[..., Any]] = {
    **_ELEMENTWISE,
    # With parameters of theirs.
    "argmax": _argmax,
    "broadcast_in_dim": _broadcast_in_dim,
    "clamp": _clamp,
    "concatenate": _concatenate,
    "convert_element_type": _convert,
    "cumsum": _cumsum,
    "gather": _gather,
    "integer_pow": _integer_pow,
    "iota": _iota,
    "reduce_and": _reduced(np.all),
    "reduce_max": _reduced(np.max),
    "reduce_min": _reduced(np.min),
    "reduce_or": _reduced(np.any),
    "reduce_sum": _reduced(np.sum),
    "reshape": _reshape,
    "select_n": _select,
    "slice": _slice,
    "sort": _sort,
    "squeeze": _squeeze,
    "transpose": _transpose,
}


def _is_along_rows(step: Any) -> bool:
    numbers = step.params["dimension_numbers"]
    batch = numbers.collapsed_slice_dims, numbers.operand_batching_dims
    return batch == ((1,), (0,)) and step.invars[0].aval.ndim == 2


def _inner(step: Any) -> core.ClosedJaxpr | None:
    """The function that an operation calls, and does nothing else."""
    name = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr"}
    return step.params.get(name.get(step.primitive.name))


def _is_known(program: core.ClosedJaxpr) -> bool:
    """Whether NumPy has all of the operations, in dtypes whose sums it takes as JAX does."""
    for step in program.jaxpr.eqns:
        outputs: Any = step.outvars
        if any(var.aval.dtype in _HALVES for var in outputs):
            return False
        inner = _inner(step)
        known = _is_known(inner) if inner is not None else step.primitive.name in _BY_NUMPY
        if step.primitive.name == "gather":
            known = _is_along_rows(step)
        if not known or step.params.get("num_keys", 1) > 1:
            return False
    return True


def by_numpy(function: Callable[..., Any], *static: int) -> Callable[..., Any]:
    """The function, one of `jax.jit` and of trees of arrays, run by NumPy where it can be; it then
    returns NumPy arrays, and Python's numbers where those of JAX give way to the dtype of arrays.

    `static` are the places of arguments that are no arrays. The function is traced for every set of
    shapes.

    Example:
        >>> by_numpy(jax.jit(lambda x: (x + 1, x.sum())))(np.ones(2, np.float32))
        (array([2., 2.], dtype=float32), array(2., dtype=float32))
    """

    @lru_cache(maxsize=256)
    def traced(fixed: Any, tree: Any, avals: tuple[Any, ...], of_floats: Any) -> Any:
        def of_moving(*moving: Any) -> Any:
            arguments = list(moving)
            for place, value in fixed:
                arguments.insert(place, value)
            return function(*arguments)

        shapes = [
            jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type) for aval in avals
        ]
        moving = jax.tree.unflatten(tree, shapes)
        program, out = jax.make_jaxpr(of_moving, return_shape=True)(*moving)
        return (program, jax.tree.structure(out)) if _is_known(program) else None

    def run(*arguments: Any) -> Any:
        fixed = tuple((place, arguments[place]) for place in static if place < len(arguments))
        moving = [a for place, a in enumerate(arguments) if place not in static]
        leaves, tree = jax.tree.flatten(moving)
        avals = tuple(map(jax.typeof, leaves))
        found = traced(fixed, tree, avals, jnp.result_type(float))
        if found is None:
            return function(*arguments)
        program, structure = found
        with np.errstate(all="ignore"):
            values = _evaluate(program, leaves)
        given = [
            value.item() if var.aval.weak_type and not value.ndim else value
            for value, var in zip(values, program.jaxpr.outvars, strict=True)
        ]
        return jax.tree.unflatten(structure, given)

    return run


def _evaluate(program: core.ClosedJaxpr, arrays: list[Any]) -> list[np.ndarray]:
    values = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    values.update(zip(program.jaxpr.invars, arrays, strict=True))

    def read(atom: Any) -> np.ndarray:
        aval: Any = atom.aval
        value = atom.val if isinstance(atom, core.Literal) else values[atom]
        return np.asarray(value, aval.dtype)

    for step in program.jaxpr.eqns:
        found = _operation(step, list(map(read, step.invars)))
        values.update(zip(step.outvars, found, strict=True))
    return [read(atom) for atom in program.jaxpr.outvars]


def _operation(step: Any, arguments: list[Any]) -> list[Any]:
    inner = _inner(step)
    if inner is not None:
        return _evaluate(inner, arguments)
    name = step.primitive.name
    options = {} if name in _ELEMENTWISE else step.params
    found = _BY_NUMPY[name](*arguments, **options)
    return found if step.primitive.multiple_results else [found]
