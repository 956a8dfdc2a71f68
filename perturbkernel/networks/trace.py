"""The record of a training: losses, accuracy, how far parameters moved, and what was observed."""

import dataclasses
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int

from perturbkernel.checks import is_traced


class Trace(eqx.Module):
    """What happened during training; for an ensemble every array but `step` has a leading axis.

    Attributes:
        step: (r,), after how many steps the next four, and `observed`, were taken, on all training
            points: 0, ..., the last.
        loss, accuracy: (r,).
        movement: (r,), |theta - theta_0| / |theta_0| over the trained parameters.
        flipped: (r,), the share of the n x width gates that differ from their initial state.
        step_loss: (steps,), the loss of the batch of every step, before that step.
        rate_scale: (steps,), what the plateau rule multiplied each step's learning rate by. The
            effective time of SGD with momentum is then `HeavyBall(learning_rate * rate_scale,
            momentum=momentum).effective_time`.
        observed: what `observe` returned, stacked: arrays (r, ...), for an ensemble (k, r, ...);
            None without it.
        status: "ok", or in words that the training diverged.
    """

    step: Int[Array | np.ndarray, "... r"]
    loss: Float[Array, "... r"]
    accuracy: Float[Array, "... r"]
    movement: Float[Array, "... r"]
    flipped: Float[Array, "... r"]
    step_loss: Float[Array, "... steps"]
    rate_scale: Float[Array, "... steps"]
    observed: Any = None
    status: str = eqx.field(static=True, default="ok")


def with_status(trace: Trace) -> Trace:
    """The trace, saying so if the training diverged."""
    if is_traced(trace.loss):
        return trace
    last = np.asarray(trace.loss)[..., -1:]
    losses = np.concatenate([trace.step_loss, last], axis=-1)
    bad = ~np.isfinite(losses)
    if not bad.any():
        return trace
    of_any = bad.reshape(-1, bad.shape[-1]).any(0)
    first = int(of_any.argmax())
    status = (
        f"diverged: the loss was not finite after {first} steps; a smaller learning rate may help"
    )
    return dataclasses.replace(trace, status=status)
