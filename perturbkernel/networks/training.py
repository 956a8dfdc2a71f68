"""Training networks of finite width by any optax optimizer, with a record of what happened.

One network and ensembles of them run through the same loop, `fit_and_record`: `train` here,
`networks.ensemble` there.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from perturbkernel import meshes
from perturbkernel.checks import (
    as_inputs,
    as_targets,
    check_choice,
    check_count,
    check_key,
    common_dtype,
    is_traced,
)
from perturbkernel.metrics import accuracy
from perturbkernel.networks.optimizers import Plateau
from perturbkernel.networks.two_layer import TwoLayerNetwork
from perturbkernel.training.losses import LOSSES, Loss, loss_names


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


class Data(NamedTuple):
    """Inputs (n, d), targets (n,), and what row n of the inputs is multiplied by, (n,), if it is to
    be.

    Of an ensemble, targets and scale have a leading axis of members, and the inputs too unless they
    are shared.
    """

    x: Array
    y: Array
    scale: Array | None = None


class Rules(NamedTuple):
    """What is compiled into a step. `shared`: of an ensemble, whether its members see the same
    inputs; else None.

    `mesh`: the devices that an ensemble is dealt out to.
    """

    loss: Loss
    update: Callable
    takes_more: bool
    batch_size: int | None
    plateau: Plateau | None
    shared: bool | None = None
    mesh: Mesh | None = None

    def updates(
        self, gradient: Any, state: Any, parameters: Any, value: Array, objective: Callable
    ) -> tuple[Any, Any]:
        """The optimizer's updates and state, given what it asks for beside the gradient."""

        # Line searches want to see all that they were given among the arguments of `value_fn`,
        # and optax.contrib.sam numbers its adversarial steps.
        def value_fn(parameters, grad_fn=None, obj_fn=None):
            return objective(parameters)

        def grad_fn(parameters, step=None):
            return jax.grad(objective)(parameters)

        extra: dict[str, Any] = {}
        if self.takes_more:
            extra = {"value": value, "grad": gradient, "value_fn": value_fn}
            extra |= {"grad_fn": grad_fn, "obj_fn": objective}
        # optax relies on promotions that the strict modes forbid.
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            updates, new = _call(self.update, (gradient, state, parameters), extra)
        if jax.tree.map(jnp.shape, updates) != jax.tree.map(jnp.shape, parameters):
            raise ValueError(
                "optimizer must return updates with the shapes of the parameters; this one does "
                "not, as optax.contrib.dpsgd, which takes one gradient per example"
            )
        return _like(updates, parameters), _like(new, state)

    def each(self, function: Callable) -> Callable:
        """`function(network and state, initial network, data, key)` for one network, or for every
        member.

        Members with inputs of their own take turns: on a CPU a batched product costs a third more
        than its parts.
        """
        if self.shared is None:
            return function
        if self.shared:
            data: list[Any] = [None, 0, 0]
            return jax.vmap(function, (0, 0, Data(*data), 0))
        return lambda *args: lax.map(lambda member: function(*member), args)

    def dealt(self, function: Callable, *specs: Any) -> Callable:
        """`function(*arguments)`, on a mesh of every device for its own members: without
        communication.

        `specs` say which arguments, and in the end which results, begin with the axis of members
        (True).
        """
        mesh = self.mesh
        if mesh is None:
            return function
        *arguments, results = jax.tree.map(
            lambda own: meshes.rows(mesh) if own else meshes.WHOLE, specs
        )
        return jax.shard_map(
            function, mesh=mesh, in_specs=tuple(arguments), out_specs=results, check_vma=False
        )

    @property
    def own(self) -> Data:
        """Which of the data each member has for itself."""
        own: list[Any] = [not self.shared, True, True]
        return Data(*own)

    def batches(self, n: int) -> int:
        return 1 if self.batch_size is None else -(-n // self.batch_size)


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


def _like(tree: Any, old: Any) -> Any:
    """The tree with the dtypes of `old`, which a loop has to keep."""

    def one(new, before):
        dtype = jnp.result_type(before)
        return new if jnp.result_type(new) == dtype else jnp.asarray(new).astype(dtype)

    return jax.tree.map(one, tree, old)


def params(net: TwoLayerNetwork) -> dict[str, Array]:
    return {"weight": net.weight} | ({"bias": net.bias} if net.train_bias else {})


@partial(jax.jit, static_argnames="rules")
def _measure(
    net: TwoLayerNetwork, initial: TwoLayerNetwork, data: Data, *, rules: Rules
) -> tuple[Array, ...]:
    def measure(net, initial, data, _):
        u, before = (f._preactivations(data.x, data.scale) for f in (net, initial))
        outputs = net._readout(u)
        moved = optax.tree.norm(jax.tree.map(jnp.subtract, params(net), params(initial)))
        flipped = ((u > 0) != (before > 0)).mean(dtype=u.dtype)
        loss = rules.loss.value(outputs, data.y).mean()
        return (
            loss,
            accuracy(outputs, jnp.sign(data.y)),
            moved / optax.tree.norm(params(initial)),
            flipped,
        )

    each = rules.dealt(rules.each(measure), True, True, rules.own, True, True)
    return each(net, initial, data, None)


@partial(jax.jit, static_argnames="rules")
def _advance(carry, stop, net: TwoLayerNetwork, data: Data, key, *, rules: Rules):
    there = (False, True, True)  # the step, and what belongs to members
    advance = rules.dealt(partial(_steps, rules), there, False, True, rules.own, True, there)
    return advance(carry, stop, net, data, key)


def _steps(rules: Rules, carry, stop, net: TwoLayerNetwork, data: Data, key):
    """Steps until `stop` of them were made. Not a scan: one compilation serves stretches of all
    lengths.
    """
    n = data.x.shape[-2]
    size, batches = rules.batch_size or n, rules.batches(n)
    rule = None if rules.plateau is None else rules.plateau.transformation(batches)

    def batch(order, data, key, step):
        """The points of a step, the share of each in the mean, and the order of the epoch."""
        if rules.batch_size is None:
            return data, 1 / n, order
        position = step % batches

        def shuffle():
            shuffled = jax.random.permutation(jax.random.fold_in(key, step // batches), n)
            return jnp.pad(shuffled, (0, batches * size - n))

        order = lax.cond(position == 0, shuffle, lambda: order)
        rows = lax.dynamic_slice(order, (position * size,), (size,))
        there = (position * size + jnp.arange(size, dtype=step.dtype) < n).astype(data.x.dtype)
        return jax.tree.map(lambda a: a[rows], data), there / there.sum(), order

    def one_step(step, member, net, data, key):
        parameters, state, plateau_state, order = member
        data, share, order = batch(order, data, key, step)

        def objective(parameters):
            outputs = dataclasses.replace(net, **parameters)._outputs(data.x, data.scale)
            return jnp.sum(share * rules.loss.value(outputs, data.y))

        value, gradient = jax.value_and_grad(objective)(parameters)
        updates, state = rules.updates(gradient, state, parameters, value, objective)
        scale = jnp.ones((), value.dtype)
        if rule is not None:
            # The scale found after the step before, then the rule is told of this step's loss:
            # PyTorch's order.
            scale = plateau_state.scale
            updates = jax.tree.map(lambda u: scale * u, updates)
            with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
                _, after = rule.update((), plateau_state, value=value)
            plateau_state = _like(after, plateau_state)
        return (optax.apply_updates(parameters, updates), state, plateau_state, order), (
            value,
            scale,
        )

    def body(carry):
        step, member, logs = carry
        member, log = rules.each(partial(one_step, step))(member, net, data, key)
        logs = jax.tree.map(
            lambda all_, new: lax.dynamic_update_index_in_dim(all_, new, step, -1), logs, log
        )
        return step + 1, member, logs

    return lax.while_loop(lambda carry: carry[0] < stop, body, carry)


def fit_and_record(
    net: TwoLayerNetwork,
    data: Data,
    init: Callable,
    key,
    *,
    rules: Rules,
    records: list[int],
    progress,
    observe,
) -> tuple[TwoLayerNetwork, Trace]:
    """`train` and `ensemble` after their checks; `init` is the optimizer's, `records` the steps to
    record at.
    """
    dtype = common_dtype(*jax.tree.leaves(data), net.weight)
    net, data = jax.tree.map(lambda a: jnp.asarray(a, dtype), (net, data))
    members, n, steps = net.weight.shape[:-2], data.x.shape[-2], records[-1]
    batches = rules.batches(n)
    plateau_state, order = None, None
    if rules.plateau is not None:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            one = rules.plateau.transformation(batches).init(jnp.zeros((), dtype))
        plateau_state = jax.tree.map(lambda a: jnp.broadcast_to(a, (*members, *a.shape)), one)
    if rules.batch_size is not None:
        order = jnp.zeros((*members, batches * rules.batch_size), int)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        state = jax.tree.map(_strong, init(params(net)))
    # Room for a power of two of steps: training for longer seldom compiles anew.
    logs = (jnp.zeros((*members, 1 << max(steps - 1, 1023).bit_length()), dtype),) * 2
    carry = (jnp.zeros((), jnp.int32), (params(net), state, plateau_state, order), logs)
    if rules.mesh is not None:
        carry, net, data, key = _dealt_out(rules, rules.mesh, carry, net, data, key)

    initial, rows = net, []
    for start, stop in itertools.pairwise([0, *records]):
        if stop > start:
            carry = _advance(carry, np.int32(stop), initial, data, key, rules=rules)
            net = dataclasses.replace(initial, **carry[1][0])
        seen = None if observe is None else _observed(observe, net, members, rules.mesh)
        rows.append((_measure(net, initial, data, rules=rules), seen))
        if progress is not None and stop > start:
            jax.block_until_ready(rows[-1])
            progress.update(stop - start)
    measured, seen = jax.tree.map(lambda *row: jnp.stack(row, axis=len(members)), *rows)
    found = net, measured, seen, [log[..., :steps] for log in carry[2]]
    if rules.mesh is not None:
        found = jax.tree.map(lambda a: meshes.collect(a, *members), found)
    net, (loss, share, moved, flipped), seen, (step_loss, rate_scale) = found
    trace = Trace(np.asarray(records), loss, share, moved, flipped, step_loss, rate_scale, seen)
    return net, _with_status(trace)


def _dealt_out(rules: Rules, mesh: Mesh, carry, net: TwoLayerNetwork, data: Data, key) -> tuple:
    """Members to the devices of the mesh, the last one repeated if need be; what they share to
    every device.
    """
    deal, share = partial(meshes.shard, mesh, "edge"), partial(meshes.replicate, mesh)
    data = Data(share(data.x) if rules.shared else deal(data.x), deal(data.y), deal(data.scale))
    if key is not None and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(
            deal(jax.random.key_data(key)), impl=jax.random.key_impl(key)
        )
    else:
        key = deal(key)
    return (share(carry[0]), *deal(carry[1:])), deal(net), data, key


@eqx.filter_jit
def _observed(
    observe: Callable, net: TwoLayerNetwork, members: tuple[int, ...], mesh: Mesh | None
) -> Any:
    """What `observe` returns, on a mesh whole on every device."""
    if mesh is None:
        return observe(net)
    return meshes.replicate(mesh, observe(jax.tree.map(lambda a: a[: members[0]], net)))


def _strong(leaf):
    """Without a weak type, which the first stretch of steps would lose and the second be compiled
    anew for.
    """
    return jnp.asarray(leaf, jnp.result_type(leaf)) if getattr(leaf, "weak_type", True) else leaf


def _with_status(trace: Trace) -> Trace:
    if is_traced(trace.loss):
        return trace
    bad = ~np.isfinite(np.concatenate([trace.step_loss, trace.loss[..., -1:]], axis=-1))
    if not bad.any():
        return trace
    first = int(bad.reshape(-1, bad.shape[-1]).any(0).argmax())
    status = (
        f"diverged: the loss was not finite after {first} steps; a smaller learning rate may help"
    )
    return dataclasses.replace(trace, status=status)


def train(
    net: TwoLayerNetwork,
    x: Float[Array, "n d"],
    y: Float[Array, " n"],
    *,
    loss: str = "identity",
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    steps: int,
    batch_size: int | None = None,
    plateau: Plateau | None = None,
    trace_every: int | None = None,
    trace_at: Sequence[int] | None = None,
    observe: Callable[[TwoLayerNetwork], Any] | None = None,
    progress: Any = None,
    key: PRNGKeyArray | None = None,
) -> tuple[TwoLayerNetwork, Trace]:
    """Trains the weights (and the bias if `net.train_bias`) of a network; the readout stays.

    Args:
        net: the network to begin from; it is not changed.
        x: (n, d).
        y: (n,), -1 or +1; any real numbers for the squared loss.
        loss: "identity", mean of -y f; "logistic", mean of log(1 + exp(-y f)); "exponential", mean
            of exp(-y f); "squared", 1/(2n) sum (f - y)^2.
        optimizer: any optax optimizer, or an object with its methods `init` and `update`, such as
            optax.MultiSteps. Line searches, optax.contrib.sam and others that ask for the loss, or
            for its gradient as a function, are given them. The network has the parameters that the
            updates lead to: of schedule-free optimizers those at which gradients are taken, of sam
            those of a search unless its period divides `steps`. Training is compiled once per
            optimizer object, so build it once and reuse it; `paper_optimizer` is compiled once for
            all its rates.
        steps: how many updates; `plateau`: reduces the rate when the loss stops falling.
        batch_size: points a step, drawn without replacement and reshuffled every epoch; the last
            batch of an epoch has what is left, and its loss is the mean over that. All points (and
            no key) if left out.
        trace_every: steps between the records of the trace, each of which costs about a step; a
            twentieth of `steps` if left out.
        trace_at: the steps to record at instead, increasing; 0 and the last are always recorded.
        observe: a function of the network that returns arrays, in any pytree; evaluated at every
            record and stacked in `trace.observed`: `lambda net: net(test)`. Compiled once per
            function object.
        progress: `progress.update(k)` is called after every k steps between two records:
            `tqdm.tqdm(total=steps)`, say.
        key: random key for the minibatches.

    Returns:
        The trained network and a `Trace`; a training that diverged says so in `trace.status`.

    Raises:
        ValueError, TypeError: bad arguments, before any computation.

    Memory: two arrays of (width, batch_size or n). May be traced and vmapped.
    """
    if not isinstance(net, TwoLayerNetwork):
        raise TypeError(f"net must be a TwoLayerNetwork; got {type(net).__name__}")
    if net.weight.ndim != 2:
        raise ValueError(
            f"net must be one network, weight (width, d); got {net.weight.shape}. `ensemble` trains many"
        )
    rules = checked_rules(loss, optimizer, steps, batch_size, plateau)
    records = checked_records(steps, trace_every, trace_at, observe, progress)
    x = as_inputs(x, "x", like=(net.weight.shape[1],), flat=True)
    y = as_targets(y, "y", len(x), labels=rules.loss.labels)
    check_batches(batch_size, len(x), key)
    settings = {"rules": rules, "records": records, "progress": progress, "observe": observe}
    return fit_and_record(net, Data(x, y), optimizer.init, key, **settings)


def checked_rules(loss, optimizer, steps, batch_size, plateau) -> Rules:
    check_choice(loss, "loss", loss_names())
    if not (
        callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))
    ):
        raise TypeError(
            f"optimizer must be an optax one, such as optax.sgd(0.01, momentum=0.9); got {optimizer!r}"
        )
    check_count(steps, "steps", low=0)
    if batch_size is not None:
        check_count(batch_size, "batch_size")
    if plateau is not None and not isinstance(plateau, Plateau):
        raise TypeError(f"plateau must be networks.Plateau() or None; got {plateau!r}")
    plain = isinstance(optimizer, optax.GradientTransformation)
    takes_more = not plain or isinstance(optimizer, optax.GradientTransformationExtraArgs)
    return Rules(LOSSES[loss], optimizer.update, takes_more, batch_size, plateau)


def check_batches(batch_size, n, key) -> None:
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


def checked_records(steps, trace_every, trace_at, observe, progress) -> list[int]:
    """The steps at which the trace is recorded, 0 and the last among them."""
    if observe is not None and not callable(observe):
        raise TypeError(
            f"observe must be a function of the network, such as lambda net: net(z); got {observe!r}"
        )
    if progress is not None and not hasattr(progress, "update"):
        raise TypeError(
            f"progress must have a method update(steps), as tqdm.tqdm(total=steps) has; got {progress!r}"
        )
    if trace_at is None:
        check_count(1 if trace_every is None else trace_every, "trace_every")
        return sorted({*range(0, steps, trace_every or max(1, -(-steps // 20))), steps})
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
