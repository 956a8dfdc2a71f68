"""One update of any optimizer: it is given what it asks for beside the gradient."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def updates(
    update: Callable,
    gradient: Any,
    state: Any,
    parameters: Any,
    value: Array,
    objective: Callable,
    *,
    takes_more: bool,
) -> tuple[Any, Any]:
    """The optimizer's updates and its new state, with the dtypes of what they replace.

    `takes_more`: whether its `update` has further arguments: the loss `value`, and the loss and its
    gradient as functions.
    """

    # Line searches want to see all that they were given among the arguments of `value_fn`,
    # and optax.contrib.sam numbers its adversarial steps.
    def value_fn(parameters, grad_fn=None, obj_fn=None):
        return objective(parameters)

    def grad_fn(parameters, step=None):
        return jax.grad(objective)(parameters)

    extra: dict[str, Any] = {}
    if takes_more:
        extra = {
            "value": value,
            "grad": gradient,
            "value_fn": value_fn,
            "grad_fn": grad_fn,
            "obj_fn": objective,
        }
    # optax relies on promotions that the strict modes forbid.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        found, new = _call(update, (gradient, state, parameters), extra)
    if jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, parameters):
        raise ValueError(
            "optimizer must return updates with the shapes of the parameters; this one does "
            "not, as optax.contrib.dpsgd, which takes one gradient per example"
        )
    return like(found, parameters), like(new, state)


def _call(update: Callable, arguments: tuple, extra: dict[str, Any]) -> tuple[Any, Any]:
    """update(*arguments, **extra) without those of `extra` that it does not take.

    A chain passes on all that it is given, so that its signature does not tell what its links take.
    """
    try:
        return update(*arguments, **extra)
    except TypeError as error:
        unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        missing = re.search(r"required keyword-only arguments?: (.*)", str(error))
        if missing:
            raise TypeError(
                f"optimizer asks for {missing[1]} with every gradient, which training does not have"
            ) from error
        if unexpected is None or unexpected[1] not in extra:
            raise
        rest = {name: value for name, value in extra.items() if name != unexpected[1]}
        return _call(update, arguments, rest)


def like(tree: Any, old: Any) -> Any:
    """The tree with the dtypes of `old`, which a loop has to keep."""

    def one(new, before):
        dtype = jnp.result_type(before)
        return new if jnp.result_type(new) == dtype else jnp.asarray(new).astype(dtype)

    return jax.tree.map(one, tree, old)
