"""Networks of finite width in training: by any optax optimizer, in ensembles, and as learners.

`TwoLayerNetwork` and `Centred` are defined in `two_layer`; they are part of this module's interface.
"""

import dataclasses
import warnings
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from perturbkernel.checks import (
    as_float,
    as_inputs,
    as_targets,
    check_choice,
    check_count,
    check_key,
    check_number,
    is_traced,
)
from perturbkernel.kernels import TwoLayerNTK
from perturbkernel.learning import accuracy
from perturbkernel.two_layer import Centred as Centred
from perturbkernel.two_layer import TwoLayerNetwork as TwoLayerNetwork
from perturbkernel.two_layer import check_width

# Elementwise; training minimises their mean, as `predictors.fit` does.
_LOSSES = {
    "identity": lambda outputs, targets: -targets * outputs,
    "logistic": lambda outputs, targets: jax.nn.softplus(-targets * outputs),
    "squared": lambda outputs, targets: (outputs - targets) ** 2 / 2,
}


@dataclasses.dataclass(frozen=True)
class Plateau:
    """Multiplies the learning rate by `factor` once the loss has stopped falling, by the rules of PyTorch's
    ReduceLROnPlateau in its default mode ("min", "rel", no cooldown), which the paper's experiments use.

    After every step (with minibatches: every epoch, with the mean loss of its batches) the loss l counts as better if
    l < best (1 - threshold), and then becomes the best; the rate falls after more than `patience` losses in a row that
    were not better, beginning with the next step.

    A negative loss, as the identity loss soon is, turns the threshold around: best (1 - threshold) lies *above* best,
    so a loss that stands still or rises by less than the fraction `threshold` counts as better, and lowers the bar
    with it. A constant negative loss never reduces the rate; only faster rises do.

    PyTorch leaves rates alone that would change by less than 1e-8; here they go on falling.
    """

    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4

    def __post_init__(self):
        check_number(self.factor, "factor", high=1, open_low=True)
        check_count(self.patience, "patience", low=0)
        check_number(self.threshold, "threshold", high=1, open_low=True)
        if self.factor == 1:
            raise ValueError("factor must be < 1; got 1")

    def transformation(self, steps_an_epoch: int = 1) -> optax.GradientTransformationExtraArgs:
        # optax reduces when its count of bad values equals its patience, PyTorch when it exceeds its own.
        return optax.contrib.reduce_on_plateau(
            self.factor, self.patience + 1, self.threshold, accumulation_size=steps_an_epoch
        )


class _HeavyBallState(NamedTuple):
    learning_rate: Array
    momentum: Array
    velocity: Any


def _heavy_ball_update(updates, state: Any, params=None):
    velocity = jax.tree.map(lambda v, g: state.momentum * v + g, state.velocity, updates)
    return jax.tree.map(lambda v: -state.learning_rate * v, velocity), state._replace(velocity=velocity)


def paper_optimizer(learning_rate: float, momentum: float = 0.9) -> optax.GradientTransformation:
    """SGD with heavy-ball momentum 0.9, as in the paper's experiments: `optax.sgd(learning_rate, momentum=momentum)`.

    The numbers live in the optimizer's state, not in its code: `train` compiles once for all rates, and a rate may be
    traced or differ between members of an ensemble. The paper adds `Plateau()`.
    """
    check_number(learning_rate, "learning_rate")
    check_number(momentum, "momentum", high=1)
    if not is_traced(momentum) and momentum == 1:
        raise ValueError("momentum must be < 1; got 1")

    def init(params):
        dtype = jnp.result_type(*jax.tree.leaves(params))
        still = jax.tree.map(jnp.zeros_like, params)
        return _HeavyBallState(jnp.asarray(learning_rate, dtype), jnp.asarray(momentum, dtype), still)

    return optax.GradientTransformation(init, _heavy_ball_update)


class Trace(eqx.Module):
    """What happened during training; for an ensemble every array but `step` has a leading axis.

    Attributes:
        step: (r,), after how many steps the next four were taken, on all training points: 0, ..., the last.
        loss, accuracy: (r,).
        movement: (r,), |theta - theta_0| / |theta_0| over the trained parameters.
        flipped: (r,), the share of the n x width gates that differ from their initial state.
        step_loss: (steps,), the loss of the batch of every step, before that step.
        rate_scale: (steps,), what the plateau rule multiplied each step's learning rate by. The effective time of SGD
            with momentum is then `HeavyBall(learning_rate * rate_scale, momentum=momentum).effective_time`.
        status: "ok", or in words that the training diverged.
    """

    step: Int[Array | np.ndarray, "... r"]
    loss: Float[Array, "... r"]
    accuracy: Float[Array, "... r"]
    movement: Float[Array, "... r"]
    flipped: Float[Array, "... r"]
    step_loss: Float[Array, "... steps"]
    rate_scale: Float[Array, "... steps"]
    status: str = eqx.field(static=True, default="ok")


def _params(net: TwoLayerNetwork) -> dict[str, Array]:
    return {"weight": net.weight} | ({"bias": net.bias} if net.train_bias else {})


@partial(jax.jit, static_argnames="loss")
def _measure(net: TwoLayerNetwork, initial: TwoLayerNetwork, x: Array, y: Array, *, loss: str) -> tuple[Array, ...]:
    outputs = net._outputs(x)
    after, before = _params(net), _params(initial)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, after, before)) / optax.tree.norm(before)
    flipped = (net._preactivations(x) > 0) != (initial._preactivations(x) > 0)
    return _LOSSES[loss](outputs, y).mean(), accuracy(outputs, jnp.sign(y)), moved, flipped.mean(dtype=x.dtype)


@partial(jax.jit, static_argnames=("loss", "update", "takes_value", "plateau", "length", "batch_size"))
def _advance(carry, net: TwoLayerNetwork, x, y, key, *, loss, update, takes_value, plateau, length, batch_size):
    """`length` steps in one scan; returns the carry, the losses and the scales of the rate."""
    n = len(x)
    size = batch_size or n
    batches = -(-n // size)
    rule = None if plateau is None else plateau.transformation(batches)

    def batch(order, step):
        """Points and targets of a step, the share of each in the mean, and the order of the epoch."""
        if batch_size is None:
            return x, y, 1 / n, order
        position = step % batches

        def shuffle():
            shuffled = jax.random.permutation(jax.random.fold_in(key, step // batches), n)
            return jnp.pad(shuffled, (0, batches * size - n))

        order = lax.cond(position == 0, shuffle, lambda: order)
        rows = lax.dynamic_slice(order, (position * size,), (size,))
        there = (position * size + jnp.arange(size) < n).astype(x.dtype)
        return x[rows], y[rows], there / there.sum(), order

    def one_step(carry, _):
        params, state, plateau_state, order, step = carry
        x_batch, y_batch, share, order = batch(order, step)

        def objective(params):
            outputs = dataclasses.replace(net, **params)._outputs(x_batch)
            return jnp.sum(share * _LOSSES[loss](outputs, y_batch))

        value, gradient = jax.value_and_grad(objective)(params)
        extra = {"value": value, "grad": gradient, "value_fn": objective} if takes_value else {}
        updates, state = update(gradient, state, params, **extra)
        scale = jnp.ones((), x.dtype)
        if rule is not None:
            # The scale found after the step before, then the rule is told of this step's loss: PyTorch's order.
            scale = plateau_state.scale
            updates = jax.tree.map(lambda u: scale * u, updates)
            _, plateau_state = rule.update((), plateau_state, value=value)
        return (optax.apply_updates(params, updates), state, plateau_state, order, step + 1), (value, scale)

    return lax.scan(one_step, carry, length=length)


def train(
    net: TwoLayerNetwork,
    x: Float[Array, "n d"],
    y: Float[Array, " n"],
    *,
    loss: str = "identity",
    optimizer: optax.GradientTransformation,
    steps: int,
    batch_size: int | None = None,
    plateau: Plateau | None = None,
    trace_every: int | None = None,
    progress: Any = None,
    key: PRNGKeyArray | None = None,
) -> tuple[TwoLayerNetwork, Trace]:
    """Trains the weights (and the bias if `net.train_bias`) of a network; the readout stays.

    Args:
        net: the network to begin from; it is not changed.
        x: (n, d).
        y: (n,), -1 or +1; any real numbers for the squared loss.
        loss: "identity", mean of -y f; "logistic", mean of log(1 + exp(-y f)); "squared", 1/(2n) sum (f - y)^2.
        optimizer: any optax optimizer. Training is compiled once per optimizer object, so build it once and reuse it;
            `paper_optimizer` is compiled once for all its rates.
        steps: how many updates; `plateau`: reduces the rate when the loss stops falling.
        batch_size: points a step, drawn without replacement and reshuffled every epoch; the last batch of an epoch has
            what is left, and its loss is the mean over that. All points (and no key) if left out.
        trace_every: steps between the records of the trace, each of which costs about a step; a twentieth of `steps`
            if left out.
        progress: `progress.update(k)` is called after every k = trace_every steps: `tqdm.tqdm(total=steps)`, say.
        key: random key for the minibatches.

    Returns:
        The trained network and a `Trace`; a training that diverged says so in `trace.status`.

    Raises:
        ValueError, TypeError: bad arguments, before any computation.

    Memory: two arrays of (width, batch_size or n). May be traced and vmapped; `ensemble` does.
    """
    if not isinstance(net, TwoLayerNetwork):
        raise TypeError(f"net must be a TwoLayerNetwork; got {type(net).__name__}")
    if net.weight.ndim != 2:
        raise ValueError(f"net must be one network, weight (width, d); got {net.weight.shape}. `ensemble` trains many")
    _check_training(loss, optimizer, steps, batch_size, plateau)
    check_count(1 if trace_every is None else trace_every, "trace_every")
    if progress is not None and not hasattr(progress, "update"):
        raise TypeError(f"progress must have a method update(steps), as tqdm.tqdm(total=steps) has; got {progress!r}")
    x = as_inputs(x, "x", like=(net.weight.shape[1],), flat=True)
    y = as_targets(y, "y", len(x), labels=loss != "squared")
    if batch_size is not None:
        if batch_size > len(x):
            raise ValueError(f"batch_size must be at most the number of points, {len(x)}; got {batch_size}")
        if key is None:
            raise TypeError("key must be given to draw minibatches, as jax.random.key(0) makes it; got None")
        check_key(key)
    dtype = jnp.result_type(x, y, net.weight)
    net, x, y = jax.tree.map(lambda a: jnp.asarray(a, dtype), (net, x, y))
    state = jax.tree.map(_strong, optimizer.init(_params(net)))
    batches = 1 if batch_size is None else -(-len(x) // batch_size)
    plateau_state = None if plateau is None else plateau.transformation(batches).init(jnp.zeros((), dtype))
    order = None if batch_size is None else jnp.zeros(batches * batch_size, int)
    advance = partial(
        _advance, loss=loss, update=optimizer.update, plateau=plateau, batch_size=batch_size,
        takes_value=isinstance(optimizer, optax.GradientTransformationExtraArgs),
    )  # fmt: skip
    carry = (_params(net), state, plateau_state, order, jnp.zeros((), jnp.int32))

    initial, every = net, trace_every or max(1, -(-steps // 20))
    recorded, rows, logs = [0], [_measure(net, initial, x, y, loss=loss)], [(jnp.zeros(0, dtype),) * 2]
    while recorded[-1] < steps:
        length = min(every, steps - recorded[-1])
        carry, log = advance(carry, initial, x, y, key, length=length)
        net = dataclasses.replace(initial, **carry[0])
        recorded.append(recorded[-1] + length)
        rows.append(_measure(net, initial, x, y, loss=loss))
        logs.append(log)
        if progress is not None:
            jax.block_until_ready(rows[-1])
            progress.update(length)
    loss_, accuracy_, movement, flipped = (jnp.stack(column) for column in zip(*rows, strict=True))
    step_loss, rate_scale = (jnp.concatenate(column) for column in zip(*logs, strict=True))
    trace = Trace(np.asarray(recorded), loss_, accuracy_, movement, flipped, step_loss, rate_scale)
    return net, _with_status(trace)


def _strong(leaf):
    """Without a weak type, which the first chunk of steps would lose and the second be compiled anew for."""
    return jnp.asarray(leaf, jnp.result_type(leaf)) if getattr(leaf, "weak_type", True) else leaf


def _with_status(trace: Trace) -> Trace:
    if is_traced(trace.loss):
        return trace
    bad = ~np.isfinite(np.concatenate([trace.step_loss, trace.loss[..., -1:]], axis=-1))
    if not bad.any():
        return trace
    first = int(bad.reshape(-1, bad.shape[-1]).any(0).argmax())
    status = f"diverged: the loss was not finite after {first} steps; a smaller learning rate may help"
    return dataclasses.replace(trace, status=status)


def _check_training(loss, optimizer, steps, batch_size, plateau) -> None:
    check_choice(loss, "loss", tuple(_LOSSES))
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer must be an optax one, such as optax.sgd(0.01, momentum=0.9); got {optimizer!r}")
    check_count(steps, "steps", low=0)
    if batch_size is not None:
        check_count(batch_size, "batch_size")
    if plateau is not None and not isinstance(plateau, Plateau):
        raise TypeError(f"plateau must be networks.Plateau() or None; got {plateau!r}")


def ensemble(
    nets: TwoLayerNetwork, x, y, *, learning_rate, momentum: float = 0.9, key: PRNGKeyArray | None = None, **settings
) -> tuple[TwoLayerNetwork, Trace]:
    """Trains k networks on the same data by SGD with momentum, each with its own state, rate and minibatches.

    The k networks share every product with the inputs, k width neurons at once. Each comes out as `train` with
    `paper_optimizer` gives it, to rounding.

    Args:
        nets: k networks as one pytree: `jax.vmap(lambda key: TwoLayerNetwork.init(d, width, key=key))(keys)`.
        x, y: the data, (n, d) and (n,).
        learning_rate: one number, or one a network, (k,); momentum: one for all.
        key: random key for the minibatches, split into one a network.
        settings: as in `train`: loss, steps, batch_size, plateau, trace_every, progress.

    Returns:
        The k trained networks, nets(z) of shape (k, m), and their Trace with a leading axis k.

    Raises as `train` does. Memory: two arrays of (k width, batch_size or n).
    """
    if not isinstance(nets, TwoLayerNetwork) or nets.weight.ndim != 3:
        got = f"weight {nets.weight.shape}" if isinstance(nets, TwoLayerNetwork) else type(nets).__name__
        raise ValueError(f"nets must be a TwoLayerNetwork with weight (k, width, d); got {got}")
    k = len(nets.weight)
    rates = as_float(learning_rate, "learning_rate")
    if rates.shape not in ((), (k,)):
        raise ValueError(f"learning_rate must be one number or ({k},), one a network; got shape {rates.shape}")
    if not is_traced(rates) and not (np.isfinite(rates).all() and (np.asarray(rates) >= 0).all()):
        raise ValueError(f"learning_rate must be >= 0 and finite; got {learning_rate!r}")
    if key is not None:
        check_key(key)

    def one(net, rate, key):
        return train(net, x, y, optimizer=paper_optimizer(rate, momentum), key=key, **settings)

    nets, trace = jax.vmap(one)(nets, jnp.broadcast_to(rates, k), None if key is None else jax.random.split(key, k))
    return nets, _with_status(dataclasses.replace(trace, step=np.asarray(trace.step[0])))


class NetworkLearner(eqx.Module):
    """Training a finite network as a function (inputs, targets, key) -> predictor, for `learn_from_perturbations`.

    Every call draws a new network from its key and trains it with `train`. The predictor is a TwoLayerNetwork, or a
    `Centred` one with `centred=True` (perturbations then use grad f - grad f0). A training that diverges warns.

    Args:
        width, slope, train_bias, doubled: of `TwoLayerNetwork.init`.
        loss, optimizer, steps, batch_size, plateau: of `train`.
        centred: predict f - f0 instead of f.
    """

    width: int = eqx.field(static=True)
    slope: float = eqx.field(static=True, default=0.0)
    train_bias: bool = eqx.field(static=True, default=False)
    loss: str = eqx.field(static=True, default="identity")
    optimizer: optax.GradientTransformation = eqx.field(static=True, kw_only=True)
    steps: int = eqx.field(static=True, kw_only=True)
    batch_size: int | None = eqx.field(static=True, default=None, kw_only=True)
    plateau: Plateau | None = eqx.field(static=True, default=None, kw_only=True)
    doubled: bool = eqx.field(static=True, default=False, kw_only=True)
    centred: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self):
        check_width(self.width, self.doubled)
        TwoLayerNTK(self.slope, self.train_bias)  # checks both
        _check_training(self.loss, self.optimizer, self.steps, self.batch_size, self.plateau)

    @property
    def kernel(self) -> TwoLayerNTK:
        """The tangent kernel in the limit of infinite width: what cosines and diagnoses are computed with."""
        return TwoLayerNTK(self.slope, self.train_bias)

    def __call__(self, inputs: Float[ArrayLike, "n d"], targets: Float[ArrayLike, " n"], key: PRNGKeyArray):
        check_key(key)
        inputs = as_inputs(inputs, "inputs", flat=True)
        targets = as_targets(targets, "targets", len(inputs), labels=self.loss != "squared")
        init_key, batch_key = jax.random.split(key)
        d = inputs.shape[1]
        initial = TwoLayerNetwork.init(d, self.width, self.slope, self.train_bias, doubled=self.doubled, key=init_key)
        net, trace = train(
            initial, inputs, targets, loss=self.loss, optimizer=self.optimizer, steps=self.steps,
            batch_size=self.batch_size, plateau=self.plateau, trace_every=max(1, self.steps), key=batch_key,
        )  # fmt: skip
        if trace.status != "ok":
            warnings.warn(f"a network of width {self.width} {trace.status}", stacklevel=2)
        return net.centred(initial) if self.centred else net
