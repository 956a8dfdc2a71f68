"""Linear functions with a transpose of their own, in every mode of differentiation.

`jax.custom_vjp` says how a function is differentiated in reverse, and thereby forbids forward mode;
`jax.custom_jvp` allows both, but makes reverse mode by transposing, operation by operation, the
program of the forward one. `linear` is what is between: a linear function that carries the program
of its transpose. As the tangent of a `jax.custom_jvp` it is evaluated in forward mode, and in
reverse mode the transpose is, as it was written:

    @f.defjvp
    def rule(primals, tangents):
        result = f(*primals)
        return result, linear(forward, backward, primals, tangents, like=result)

Derivatives of second order are those of `forward` and `backward` in the residuals.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array


def linear(
    function: Callable, transpose: Callable, residuals: Any, arguments: Any, like: Any
) -> Any:
    """function(residuals, arguments), linear in the arguments and shaped `like` that;
    transpose(residuals, cotangents) is what reverse mode evaluates, cotangents shaped like the
    result, and its own like the arguments.

    All are pytrees of arrays. Both functions are differentiated in the residuals by JAX, and so
    take forward mode, with tangents that JAX can transpose.

    Example:
        >>> import jax
        >>> def triple(x):
        ...     return linear(lambda r, x: 3 * x, lambda r, bar: 3 * bar, (), x, like=x)
        >>> triple(2.0), float(jax.jvp(triple, (2.0,), (1.0,))[1]), float(jax.grad(triple)(2.0))
        (6.0, 3.0, 3.0)
    """
    fixed, fixed_tree = jax.tree.flatten(residuals)
    moving, moving_tree = jax.tree.flatten(arguments)
    of_result, result_tree = jax.tree.flatten(like)

    # JAX evaluates both later, when a `jax.enable_x64` around this has gone out of scope.
    in_float64 = jnp.result_type(float) == np.float64

    def forward(fixed, moving):
        with jax.enable_x64(in_float64):
            result = function(fixed_tree.unflatten(fixed), moving_tree.unflatten(moving))
            return result_tree.flatten_up_to(result)

    def backward(fixed, cotangents):
        with jax.enable_x64(in_float64):
            bars = transpose(fixed_tree.unflatten(fixed), result_tree.unflatten(cotangents))
            return moving_tree.flatten_up_to(bars)

    there = _Map(forward, _shapes(of_result))
    back = _Map(backward, _shapes(moving))
    pair = _Pair(there, back, len(fixed))
    return result_tree.unflatten(_linear.bind(*fixed, *moving, pair=pair))


def _shapes(arrays: Any) -> tuple[Any, ...]:
    return tuple(jax.typeof(array).update(weak_type=False) for array in arrays)


def differentiated_as(plain: Callable) -> Callable:
    """Decorates a function, careful of rounding, whose derivatives of every order are those of
    `plain`: the same function in operations that JAX differentiates.

    Example:
        >>> import jax
        >>> square = differentiated_as(lambda x: x * x)(lambda x: x**2.0)
        >>> float(jax.grad(square)(3.0))
        6.0
    """

    def decorated(function):
        careful = jax.custom_jvp(function)

        @careful.defjvp
        def rule(primals, tangents):
            _, changes = jax.jvp(plain, primals, tangents)
            return careful(*primals), changes

        return careful

    return decorated


def no_tangent(array: Array) -> Any:
    """The tangent of what is not differentiated: zeros, or JAX's tangent of whole numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> no_tangent(jnp.ones(2)).tolist(), no_tangent(jnp.arange(2)).shape
        ([0.0, 0.0], (2,))
    """
    if jnp.issubdtype(array.dtype, jnp.floating):
        return jnp.zeros_like(array)
    return np.zeros(array.shape, jax.dtypes.float0)


class _Map(NamedTuple):
    """(residuals, arguments) -> results, lists of arrays, and the shapes of the results: JAX asks
    for them without evaluating what it then transposes.
    """

    function: Callable
    shapes: tuple[Any, ...]

    def batched(self, axes: Any, size: int) -> "_Map":
        function = jax.vmap(self.function, axes, axis_size=size)
        shapes = tuple(shape.update(shape=(size, *shape.shape)) for shape in self.shapes)
        return _Map(function, shapes)


class _Pair(NamedTuple):
    """A map and its transpose."""

    forward: _Map
    backward: _Map
    count: int  # of residuals

    def split(self, arrays: Any) -> tuple[list, list]:
        return list(arrays[: self.count]), list(arrays[self.count :])


_linear: Any = Primitive("linear_with_transpose")
_linear.multiple_results = True


@_linear.def_impl
def _evaluate(*arrays, pair):
    return pair.forward.function(*pair.split(arrays))


@_linear.def_abstract_eval
def _abstract(*_, pair):
    return list(pair.forward.shapes)


mlir.register_lowering(_linear, mlir.lower_fun(_evaluate, multiple_results=True))


def _jvp(primals, tangents, *, pair):
    fixed, moving = pair.split(primals)
    of_fixed, of_moving = pair.split(tangents)
    result = _linear.bind(*primals, pair=pair)
    changes = None
    if any(type(tangent) is not ad.Zero for tangent in of_moving):
        moved = map(ad.instantiate_zeros, of_moving)
        changes = _linear.bind(*fixed, *moved, pair=pair)
    which = [i for i, tangent in enumerate(of_fixed) if type(tangent) is not ad.Zero]
    if not which:
        return result, changes

    def of_those(*values):
        residuals = list(fixed)
        for i, value in zip(which, values, strict=True):
            residuals[i] = value
        return pair.forward.function(residuals, moving)

    at = [fixed[i] for i in which]
    along = [of_fixed[i] for i in which]
    _, others = jax.jvp(of_those, at, along)
    if changes is None:
        return result, others
    return result, list(map(jnp.add, changes, others))


ad.primitive_jvps[_linear] = _jvp


def _transpose(cotangents, *arrays, pair):
    fixed, moving = pair.split(arrays)
    cotangents = list(map(ad.instantiate_zeros, cotangents))
    turned = _Pair(pair.backward, pair.forward, pair.count)
    bars = _linear.bind(*fixed, *cotangents, pair=turned)
    unknown = map(ad.is_undefined_primal, moving)
    kept = [bar if asked else None for bar, asked in zip(bars, unknown, strict=True)]
    return [None] * pair.count + kept


ad.primitive_transposes[_linear] = _transpose


def _batch(arrays, axes, *, pair):
    fixed, moving = pair.split(arrays)
    of_fixed, of_moving = pair.split(axes)
    pairs = zip(arrays, axes, strict=True)
    size = next(array.shape[axis] for array, axis in pairs if axis is not None)
    # Each of the batch has arguments of its own, so that their cotangents are not to be added up.
    of_one = zip(moving, of_moving, strict=True)
    moving = [batching.bdim_at_front(array, axis, size) for array, axis in of_one]
    of_each = of_fixed, 0
    forward = pair.forward.batched(of_each, size)
    backward = pair.backward.batched(of_each, size)
    batched = _Pair(forward, backward, pair.count)
    result = _linear.bind(*fixed, *moving, pair=batched)
    return result, [0] * len(result)


batching.primitive_batchers[_linear] = _batch
