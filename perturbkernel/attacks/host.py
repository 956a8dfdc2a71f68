"""Loops that run step by step, uncompiled, around predictors that are programs of their own.

A search whose text asks for the predictor in seven places would compile it seven times. Step by
step it is compiled once, or not at all: predictors that JAX cannot trace, such as an object of
NumPy code with a gradient of its own, and small kernel predictors, whose sums are taken by NumPy
(`kernels.host`). What such a loop does between two evaluations is a `part`: NumPy's, where its
arrays are small, and else a program.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from inspect import signature
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from perturbkernel.arrays import is_at_hand
from perturbkernel.checks import is_traced
from perturbkernel.engine.by_numpy import by_numpy
from perturbkernel.kernels import host
from perturbkernel.training.predictors import KernelPredictor

# Pairs of points, over all steps, up to which a loop by NumPy is the smaller whole: at .1 us more
# for a pair than in a program it takes at most .2 s more, and compiles in 2 s less.
_PAIRS = 2**21
# Evaluations up to which a search by steps is: each takes half a millisecond more than in a program
# of the whole search, which compiles in 3 s more.
_EVALUATIONS = 1000
# Numbers in the largest array up to which a part is NumPy's. A first search is a second shorter for
# it; later ones take as long as with programs near the limit, and up to twice as long far below it,
# where that is a tenth of a second.
_SMALL = 2**18

_by_steps: ContextVar[bool] = ContextVar("_by_steps", default=False)


def _is_numpys(leaf: Any) -> bool:
    """Whether it is as small as a part is NumPy's, has a value where NumPy is, and is no key."""
    if not isinstance(leaf, jax.Array):
        return np.size(leaf) <= _SMALL
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf.size <= _SMALL and is_at_hand(leaf) and not is_key


def part(*static: str) -> Callable:
    """A decorator: in loops that run uncompiled the function is run by NumPy, or compiled by itself
    for arrays that are large; in others it is inlined.

    `static` are the names of its arguments that are no arrays.

    Example:
        >>> @part()
        ... def twice(x):
        ...     assert isinstance(x, jax.core.Tracer)
        ...     return x + x
        >>> with uncompiled(HostPredictor(np.sum, float)):
        ...     twice(jnp.ones(2)).tolist()
        [2.0, 2.0]
    """

    def decorate(function: Callable) -> Callable:
        compiled = jax.jit(function, static_argnames=static)
        names = list(signature(function).parameters)
        at_once = by_numpy(compiled, *map(names.index, static))

        @wraps(function)
        def call(*args: Any) -> Any:
            # Not where it is the user who runs everything uncompiled.
            eager = jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
            if not (eager and _by_steps.get()):
                return function(*args)
            with jax.disable_jit(False):
                run = at_once if all(map(_is_numpys, jax.tree.leaves(args))) else compiled
                return run(*args)

        return call

    return decorate


class SteppedPredictor(KernelPredictor):
    """A kernel predictor whose sums are taken as they are outside of loops: called with concrete
    arrays, in `uncompiled`.
    """

    def __call__(self, z: Array, **options: Any) -> Array:
        with jax.disable_jit(False):
            return super().__call__(z, **options)

    def input_gradient(self, z: Array, weights: Array | None = None, **options: Any) -> Array:
        with jax.disable_jit(False):
            return super().input_gradient(z, weights, **options)

    def gradient_rounding(self, z: Any, weights: Any = None) -> Array:
        with jax.disable_jit(False):
            return super().gradient_rounding(z, weights)


def without_statistics(
    predictor: Any, kind: type[KernelPredictor] = KernelPredictor
) -> KernelPredictor:
    """The kernel predictor without what differs between trainings but not between computations.

    Example:
        >>> from perturbkernel import TwoLayerNTK, fit
        >>> f = fit(TwoLayerNTK(), jnp.eye(2), jnp.asarray([1.0, -1.0]))
        >>> f.loss, without_statistics(f).loss
        ('identity', None)
    """
    return kind(
        predictor.kernel,
        predictor.inputs,
        predictor.dual_coef,
        predictor.initial,
        mesh=predictor.mesh,
    )


def stepped(predictor: Any, x: Array, evaluations: int) -> Any:
    """The predictor, for a loop that runs step by step: a kernel predictor, where so many
    evaluations are not worth a program of the whole loop, in which its sums would be compiled
    wherever the loop's text asks for them.

    Example:
        >>> stepped(jnp.sum, jnp.ones((5, 3)), 10) is jnp.sum
        True
    """
    if not isinstance(predictor, KernelPredictor) or evaluations > _EVALUATIONS:
        return predictor
    if is_traced(x, *jax.tree.leaves(predictor)):
        return predictor
    return without_statistics(predictor, SteppedPredictor)


def small(predictor: Any, x: Array, evaluations: int) -> Any:
    """The predictor, `stepped` where so many evaluations at x are not worth compiling.

    Example:
        >>> small(jnp.sum, jnp.ones((5, 3)), 10) is jnp.sum
        True
    """
    if not isinstance(predictor, KernelPredictor):
        return predictor
    inputs, coef = predictor.inputs, predictor.dual_coef
    if predictor.initial is not None or predictor.mesh is not None:
        return predictor
    float32 = x.dtype == inputs.dtype == coef.dtype == np.float32
    pairs = len(x) * len(inputs)
    fits = pairs * evaluations <= _PAIRS
    if not (float32 and fits and host.takes(predictor.kernel, "ntk", x, inputs, coef)):
        return predictor
    return stepped(predictor, x, 0)


class HostPredictor:
    """A predictor with one output and `input_gradient`, both of NumPy arrays.

    It is called with concrete arrays only: the loops around it run uncompiled, in `uncompiled`.
    """

    def __init__(self, predictor: Any, dtype: Any):
        self.predictor = predictor
        self.dtype = dtype

    def __call__(self, z: Array) -> Array:
        return self._call(self.predictor, z)

    def input_gradient(self, z: Array) -> Array:
        return self._call(self.predictor.input_gradient, z)

    def _call(self, function: Callable, z: Array) -> Array:
        with jax.disable_jit(False):  # what it compiles itself stays so
            return jnp.asarray(np.asarray(function(np.asarray(z))), self.dtype)


def traced_shape(function: Callable, x: Array) -> Any:
    """What `function` returns at x, as shapes and dtypes, without a run.

    Example:
        >>> traced_shape(lambda z: z.sum(1), jnp.ones((5, 3), jnp.float32))
        ShapeDtypeStruct(shape=(5,), dtype=float32)

    Raises:
        TypeError: where JAX cannot trace it, with the remedy; what its own code raises otherwise.
    """
    try:
        return jax.eval_shape(function, x)
    except jax.errors.JAXTypeError as error:
        raise TypeError(
            "predictor must be a function of JAX arrays (jax.numpy, not NumPy), which is "
            "differentiated by tracing it, or have a method input_gradient(z) of its own, shaped "
            f"like z, and may then be of any code; {type(function).__name__} cannot be traced: "
            f"{str(error).splitlines()[0]}"
        ) from error


def traceable(predictor: Any, x: Array) -> Any:
    """The predictor, wrapped where it has `input_gradient` and JAX cannot trace it.

    Example:
        >>> traceable(jnp.sum, jnp.ones(3)) is jnp.sum
        True
    """
    if isinstance(predictor, KernelPredictor) or not hasattr(predictor, "input_gradient"):
        return predictor
    try:
        jax.eval_shape(lambda z: (predictor(z), predictor.input_gradient(z)), x)
    except Exception:
        # Whatever it is that its code does to an array without values. A fault of its own shows
        # again when it is called with values.
        return HostPredictor(predictor, x.dtype)
    return predictor


@contextmanager
def uncompiled(predictor: Any) -> Iterator[None]:
    """Where loops around the predictor run: step by step for one that JAX cannot trace.

    Example:
        >>> with uncompiled(jnp.sum):
        ...     jax.config.jax_disable_jit
        False
    """
    if not isinstance(predictor, HostPredictor | SteppedPredictor):
        yield
        return
    token = _by_steps.set(True)
    try:
        with jax.disable_jit():
            yield
    finally:
        _by_steps.reset(token)
