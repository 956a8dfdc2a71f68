"""A network of the user's own: a function apply(params, x) and a pytree of parameters.

Leaves of floating-point numbers are its parameters, in the sense of being differentiated and moved
by training; other arrays, such as counters, go into `apply` as they are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from perturbkernel.checks import common_dtype, is_readable, is_traced

# Relative to the largest: two rows together and one by one differ by rounding.
_ROUNDING = 1e-3


def checked_apply(apply: Any) -> Callable[..., Any]:
    """`apply`, if it is a function that programs can be compiled for."""
    if not callable(apply):
        raise TypeError(
            f"apply must be a function (params, x) -> outputs; got {type(apply).__name__}"
        )
    try:
        hash(apply)
    except TypeError:
        raise TypeError(
            "apply must be hashable, as plain functions and methods of Flax modules are; wrap it: "
            "def apply(params, x): ..."
        ) from None
    return apply


def checked_parameters(params: Any) -> Any:
    """`params` with every leaf an array of JAX, float64 if it was, whatever JAX's setting."""
    checked = jax.tree.map(_as_leaf, params)
    leaves = jax.tree.leaves(checked)
    if not any(_is_parameter(leaf) for leaf in leaves):
        raise ValueError("params must hold floating-point arrays; there are none to differentiate")
    return checked


def _as_leaf(leaf: Any) -> Array:
    if isinstance(leaf, jax.Array):
        array = leaf
    elif isinstance(leaf, np.ndarray | np.generic | float | int) and _is_numeric(leaf):
        # Python's numbers take JAX's default, float64 arrays stay what they are.
        stays = isinstance(leaf, np.ndarray) and leaf.dtype == np.float64
        with jax.enable_x64(stays):
            array = jnp.asarray(leaf)
    else:
        raise TypeError(
            f"params must be a pytree of arrays; it has a leaf {type(leaf).__name__}. Of an "
            "Equinox model, eqx.partition(model, eqx.is_inexact_array) splits off the arrays"
        )
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"params must be real; it has a leaf of {array.dtype}")
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        raise TypeError(
            "params must hold numbers; it has a random key: bind it in apply, or give its numbers, "
            "jax.random.key_data(key)"
        )
    return array


def _is_numeric(leaf: Any) -> bool:
    return np.asarray(leaf).dtype.kind in "fiub" or jnp.issubdtype(leaf.dtype, jnp.floating)


def _is_parameter(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def parameter_count(params: Any) -> int:
    """How many numbers are differentiated."""
    trained = filter(_is_parameter, jax.tree.leaves(params))
    return sum(int(leaf.size) for leaf in trained)


class Split(NamedTuple):
    """`trained`: the floating-point leaves, in one dtype; `join` puts such leaves back."""

    trained: list[Array]
    join: Callable[[list[Array]], Any]


def split(params: Any, dtype: Any) -> Split:
    """The parameters in the dtype in which the network is evaluated, and all the rest."""
    leaves, structure = jax.tree.flatten(params)
    trained = [leaf.astype(dtype) for leaf in leaves if _is_parameter(leaf)]

    def join(values: list[Array]) -> Any:
        remaining = iter(values)
        joined = [next(remaining) if _is_parameter(leaf) else leaf for leaf in leaves]
        return jax.tree.unflatten(structure, joined)

    return Split(trained, join)


def outputs(apply: Callable[..., Any], params: Any, x: Array) -> Array:
    """apply(params, x), (n,) or (n, K), as (n, K) in the dtype of x; another shape raises."""
    found = apply(params, x)
    shape = np.shape(found)
    if len(shape) not in (1, 2) or shape[0] != len(x):
        raise ValueError(
            f"apply(params, x) must map inputs {x.shape} to ({len(x)},) or ({len(x)}, K); it gave "
            f"{shape if hasattr(found, 'shape') else type(found).__name__}"
        )
    return found.reshape(len(x), -1).astype(x.dtype)


def is_concrete(params: Any, x: Array) -> bool:
    """Whether the network can be tried out: nothing of it is traced."""
    return is_readable(x) and not is_traced(*jax.tree.leaves(params))


def check_rows_are_apart(apply: Callable[..., Any], params: Any, x: Array, name: str) -> None:
    """Raises ValueError where the network mixes rows: outputs and gradients in the parameters at
    two rows differ from those at each of them.
    """
    rows = _two_rows(x)
    leaves, join = split(params, x.dtype)

    def both(leaves, rows):
        def total(leaves):
            values = outputs(apply, join(leaves), rows)
            return values.sum(), values

        gradient, values = jax.grad(total, has_aux=True)(leaves)
        return values, gradient

    with jax.default_matmul_precision("highest"), jax.enable_x64(x.dtype == np.float64):
        evaluate = jax.jit(both)
        values, gradient = evaluate(leaves, rows)
        first, of_first = evaluate(leaves, rows[:1])
        second, of_second = evaluate(leaves, rows[1:])
        together = [values, *gradient]
        alone = [np.concatenate([first, second]), *map(np.add, of_first, of_second)]
        mixed = any(map(_differ, together, alone))
    if mixed:
        raise ValueError(
            f"apply(params, x) at two rows of {name} differs from apply at each of them: it mixes "
            "rows, or is random. A tangent kernel is between single inputs: batch norm in the mode "
            "of inference (running averages), dropout off"
        )


def _two_rows(x: Array) -> np.ndarray:
    """Two rows that differ."""
    host = np.asarray(x)
    first, last = host[0], host[-1]
    if (first == last).all():
        last = last / 2 + 1
    return np.stack([first, last]).astype(host.dtype)


def _differ(a: Any, b: Any) -> bool:
    a = np.asarray(a, float)
    b = np.asarray(b, float)
    largest = max(_largest(a), _largest(b))
    # NaN differs, too.
    return not _largest(a - b) <= _ROUNDING * largest


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max(initial=0))


def moved(params: Any, change: list[Array]) -> Any:
    """The parameters plus a change of the trained ones, each in the wider dtype of the two."""
    leaves, structure = jax.tree.flatten(params)
    remaining = iter(change)
    new = []
    for leaf in leaves:
        if not _is_parameter(leaf):
            new.append(leaf)
            continue
        step = next(remaining)
        dtype = common_dtype(leaf, step)
        new.append(leaf.astype(dtype) + step.astype(dtype))
    return jax.tree.unflatten(structure, new)
