"""Arguments of `train` and `ensemble`, checked before anything is computed."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array

from perturbkernel.checks import (
    as_class_targets,
    as_targets,
    check_count,
    check_key,
)
from perturbkernel.training.losses import Kind, Loss, check_probabilities


def check_batches(batch_size: int | None, n: int, key) -> None:
    """Raises unless minibatches of this size can be drawn from n points with this key."""
    if batch_size is not None:
        if batch_size > n:
            raise ValueError(
                f"batch_size must be at most the number of points, {n}; got {batch_size}"
            )
        if key is None:
            raise TypeError(
                "key must be given to draw minibatches, as jax.random.key(0) makes it; got None"
            )
    if key is not None:
        check_key(key)


def checked_records(
    steps: int,
    trace_every: int | None,
    trace_at: Sequence[int] | None,
    observe,
    progress,
) -> list[int]:
    """The steps at which the trace is recorded, 0 and the last among them."""
    if observe is not None and not callable(observe):
        raise TypeError(
            "observe must be a function of the network, such as lambda net: net(z); "
            f"got {observe!r}"
        )
    if progress is not None and not hasattr(progress, "update"):
        raise TypeError(
            "progress must have a method update(steps), as tqdm.tqdm(total=steps) has; "
            f"got {progress!r}"
        )
    if trace_at is None:
        if trace_every is None:
            trace_every = max(1, -(-steps // 20))
        check_count(trace_every, "trace_every")
        return sorted({*range(0, steps, trace_every), steps})
    if trace_every is not None:
        raise ValueError(
            f"trace_every and trace_at exclude each other; got {trace_every} and {trace_at!r}"
        )
    if not isinstance(trace_at, Sequence | np.ndarray):
        raise TypeError(
            f"trace_at must be a sequence of steps, such as (1, 10, 100); got {trace_at!r}"
        )
    for step in trace_at:
        check_count(step, "every step of trace_at", low=0)
    if list(trace_at) != sorted(set(trace_at)) or max(trace_at, default=0) > steps:
        raise ValueError(
            f"trace_at must increase and end by the last step, {steps}; got {trace_at!r}"
        )
    return sorted({0, *map(int, trace_at), steps})


def checked_targets(y, n: int, outputs: int | None, loss: Loss, name: str = "y") -> Array:
    """Targets of n points, (n,) or for K outputs (n, K), checked."""
    if outputs is None:
        return as_targets(y, name, n, labels=loss.labels)
    targets = as_class_targets(y, name, n)
    if targets.shape[1] != outputs:
        raise ValueError(
            f"{name} must have shape ({n}, {outputs}), a column for each output of the network; "
            f"got {targets.shape}"
        )
    if loss.kind is Kind.SOFTMAX:
        check_probabilities(targets, name)
    return targets
