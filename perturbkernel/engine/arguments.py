"""What a kernel is to a compiled program: its arrays are arguments, all the rest is a constant.

A pytree goes into a program as it is. Its leaves may change without another compilation; what is
not a leaf is compared by value. An object that JAX does not know as a pytree is a constant.
"""

from dataclasses import dataclass
from typing import Any

import jax


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Constant:
    value: Any


def as_argument(value: Any) -> Any:
    """`value`, or where it is no pytree of arrays, a constant that holds it; for `argument_value`.

    Example:
        >>> argument_value(jax.jit(lambda a: a)(as_argument("a word")))
        'a word'
    """
    return _Constant(value) if jax.tree_util.all_leaves([value]) else value


def argument_value(argument: Any) -> Any:
    """What `as_argument` was given.

    Example:
        >>> argument_value(as_argument(len)) is len
        True
    """
    return argument.value if isinstance(argument, _Constant) else argument


def has_arrays(value: Any) -> bool:
    """Whether `value` is a pytree with leaves, and so more than a constant.

    Example:
        >>> has_arrays({"w": jax.numpy.ones(3)}), has_arrays(as_argument(len))
        (True, False)
    """
    return bool(jax.tree.leaves(as_argument(value)))


def check_undifferentiated(tangents: Any) -> None:
    """Raises TypeError unless the tangents of a kernel's arrays are symbolic zeros: sums over tiles
    have no derivative in what the kernel holds.
    """
    if not all(map(is_zero, jax.tree.leaves(tangents, is_leaf=is_zero))):
        raise TypeError(
            "sums over tiles are not differentiated in the arrays that a kernel holds, such as the "
            "parameters of a network; differentiate kernel.tile, or keep the kernel fixed by "
            "jax.lax.stop_gradient"
        )


def is_zero(tangent: Any) -> bool:
    """Whether a rule for derivatives with symbolic zeros has it for what does not move."""
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)
