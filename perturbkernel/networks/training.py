"""Training networks of finite width by any optax optimizer, with a record of what happened.

One network and ensembles of them run through the same loop, `fit_and_record`: `train` here,
`networks.ensemble` there.
"""

import dataclasses
import itertools
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
from jaxtyping import Array, Float, PRNGKeyArray

from perturbkernel import meshes
from perturbkernel.arrays import as_jax, namespace, on_host
from perturbkernel.checks import as_inputs, check_choice, check_count, common_dtype
from perturbkernel.metrics import accuracy, class_accuracy
from perturbkernel.networks.arguments import check_batches, checked_records, checked_targets
from perturbkernel.networks.optimizers import Plateau
from perturbkernel.networks.rules import Data, Rules
from perturbkernel.networks.trace import Trace as Trace
from perturbkernel.networks.trace import with_status
from perturbkernel.networks.two_layer import TwoLayerNetwork
from perturbkernel.networks.updates import like, updates
from perturbkernel.training.losses import LOSSES, loss_names


class Member(NamedTuple):
    """What changes while a network is trained; in an ensemble with an axis of members.

    Attributes:
        parameters: those that are trained, by name.
        optimizer: the optimizer's state.
        plateau: the state of the plateau rule, None without it.
        order: the order of the points in this epoch, None without minibatches.
    """

    parameters: dict[str, Array]
    optimizer: Any
    plateau: Any
    order: Array | None


class Log(NamedTuple):
    """What every step leaves behind: its loss, and what the plateau rule multiplied its rate by."""

    loss: Array
    scale: Array


class State(NamedTuple):
    """The state of the loop over steps. Of `log` the last axis is that of steps."""

    step: Array
    member: Member
    log: Log


def params(net: TwoLayerNetwork) -> dict[str, Array]:
    """The parameters that are trained, by name."""
    trained = {"weight": net.weight}
    return trained | {"bias": net.bias} if net.train_bias else trained


@partial(jax.jit, static_argnames="rules")
def _measure(
    net: TwoLayerNetwork, initial: TwoLayerNetwork, data: Data, *, rules: Rules
) -> tuple[Array, ...]:
    """Loss, accuracy, movement and flipped gates, as in `Trace`."""

    def measure(net, initial, data, _):
        u = net._preactivations(data.x, data.scale)
        before = initial._preactivations(data.x, data.scale)
        outputs = net._readout(u)
        difference = jax.tree.map(jnp.subtract, params(net), params(initial))
        moved = optax.tree.norm(difference)
        flipped = ((u > 0) != (before > 0)).mean(dtype=u.dtype)
        loss = rules.loss.value(outputs, data.y).mean()
        return (
            loss,
            _accuracy(outputs, data.y),
            moved / optax.tree.norm(params(initial)),
            flipped,
        )

    each = rules.dealt(rules.each(measure), True, True, rules.own, True, True)
    return each(net, initial, data, None)


def _accuracy(outputs: Array, y: Array) -> Array:
    """Of signs, or for K outputs of the largest; targets (n, K) name the class of their largest."""
    if y.ndim == 1:
        return accuracy(outputs, jnp.sign(y))
    return class_accuracy(outputs, jnp.argmax(y, axis=-1))


@partial(jax.jit, static_argnames="rules")
def _advance(state: State, stop, net: TwoLayerNetwork, data: Data, key, *, rules: Rules) -> State:
    own: Any = State(False, True, True)  # pyright: ignore[reportArgumentType]
    advance = rules.dealt(partial(_steps, rules), own, False, True, rules.own, True, own)
    return advance(state, stop, net, data, key)


def _steps(rules: Rules, state: State, stop, net: TwoLayerNetwork, data: Data, key) -> State:
    """Steps until `stop` of them were made.

    Not a scan: one compilation serves stretches of all lengths.
    """
    n = data.x.shape[-2]
    size = rules.batch_size or n
    batches = rules.batches(n)
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
        # The last batch of an epoch may have fewer points.
        places = position * size + jnp.arange(size, dtype=step.dtype)
        there = (places < n).astype(data.x.dtype)
        return jax.tree.map(lambda a: a[rows], data), there / there.sum(), order

    def one_step(step, member: Member, net, data, key):
        parameters, optimizer_state, plateau_state, order = member
        data, share, order = batch(order, data, key, step)

        def objective(parameters):
            outputs = dataclasses.replace(net, **parameters)._outputs(data.x, data.scale)
            return jnp.sum(share * rules.loss.value(outputs, data.y))

        value, gradient = jax.value_and_grad(objective)(parameters)
        changes, optimizer_state = updates(
            rules.update,
            gradient,
            optimizer_state,
            parameters,
            value,
            objective,
            takes_more=rules.takes_more,
        )
        scale = jnp.ones((), value.dtype)
        if rule is not None:
            # The scale found after the step before, then the rule is told of this step's loss:
            # PyTorch's order.
            scale = plateau_state.scale
            changes = jax.tree.map(lambda change: scale * change, changes)
            with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
                _, after = rule.update((), plateau_state, value=value)
            plateau_state = like(after, plateau_state)
        parameters: Any = optax.apply_updates(parameters, changes)
        return Member(parameters, optimizer_state, plateau_state, order), Log(value, scale)

    def body(state: State) -> State:
        step = state.step
        member, new = rules.each(partial(one_step, step))(state.member, net, data, key)

        def write(log, entry):
            return lax.dynamic_update_index_in_dim(log, entry, step, -1)

        return State(step + 1, member, jax.tree.map(write, state.log, new))

    return lax.while_loop(lambda state: state.step < stop, body, state)


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
    """`train` and `ensemble` after their checks.

    `init` is the optimizer's, `records` the steps to record at.
    """
    dtype = common_dtype(*jax.tree.leaves(data), net.weight)
    net, data = jax.tree.map(lambda a: jnp.asarray(a, dtype), (net, data))
    members = net.weight.shape[:-2]
    steps = records[-1]
    state = _initial_state(net, data, init, rules, steps)
    if rules.mesh is not None:
        state, net, data, key = _dealt_out(rules, rules.mesh, state, net, data, key)

    initial = net
    rows = []
    for start, stop in itertools.pairwise([0, *records]):
        if stop > start:
            state = _advance(state, np.int32(stop), initial, data, key, rules=rules)
            net = dataclasses.replace(initial, **state.member.parameters)
        seen = None if observe is None else _observed(observe, net, members, rules.mesh)
        rows.append((_measure(net, initial, data, rules=rules), seen))
        if progress is not None and stop > start:
            jax.block_until_ready(rows[-1])
            progress.update(stop - start)
    measured, seen = jax.tree.map(partial(_stacked, len(members)), *rows)
    logs = [as_jax(on_host(log)[..., :steps]) for log in state.log]
    found = net, measured, seen, logs
    if rules.mesh is not None:
        found = jax.tree.map(lambda a: meshes.collect(a, *members), found)
    net, (loss, share, moved, flipped), seen, (step_loss, rate_scale) = found
    trace = Trace(np.asarray(records), loss, share, moved, flipped, step_loss, rate_scale, seen)
    return net, with_status(trace)


def _stacked(axis: int, *arrays: Any) -> Array:
    found = [on_host(array) for array in arrays]
    xp = namespace(found[0])
    return as_jax(xp.stack(found, axis=axis))


def _initial_state(
    net: TwoLayerNetwork, data: Data, init: Callable, rules: Rules, steps: int
) -> State:
    """The state before the first of so many steps."""
    dtype = net.weight.dtype
    members = net.weight.shape[:-2]
    batches = rules.batches(data.x.shape[-2])
    plateau = None
    order = None
    # optax relies on promotions that the strict modes forbid.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        if rules.plateau is not None:
            one = rules.plateau.transformation(batches).init(jnp.zeros((), dtype))

            def repeated(a: Array) -> Array:
                return jnp.broadcast_to(a, (*members, *a.shape))

            plateau = jax.tree.map(repeated, one)
        optimizer = jax.tree.map(_strong, init(params(net)))
    if rules.batch_size is not None:
        order = as_jax(np.zeros((*members, batches * rules.batch_size), int))
    # Room for a power of two of steps: training for longer seldom compiles anew.
    room = 1 << max(steps - 1, 1023).bit_length()
    log = as_jax(np.zeros((*members, room), dtype))
    member = Member(params(net), optimizer, plateau, order)
    return State(as_jax(np.zeros((), np.int32)), member, Log(log, log))


def _dealt_out(
    rules: Rules, mesh: Mesh, state: State, net: TwoLayerNetwork, data: Data, key
) -> tuple[State, TwoLayerNetwork, Data, Any]:
    """Members on the devices of the mesh, the last one repeated if need be.

    What they share is on every device.
    """
    deal = partial(meshes.shard, mesh, "edge")
    share = partial(meshes.replicate, mesh)
    inputs = share(data.x) if rules.shared else deal(data.x)
    data = Data(inputs, deal(data.y), deal(data.scale))
    if key is not None and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(
            deal(jax.random.key_data(key)), impl=jax.random.key_impl(key)
        )
    else:
        key = deal(key)
    state = State(share(state.step), deal(state.member), deal(state.log))
    return state, deal(net), data, key


@eqx.filter_jit
def _observed(
    observe: Callable, net: TwoLayerNetwork, members: tuple[int, ...], mesh: Mesh | None
) -> Any:
    """What `observe` returns, on a mesh whole on every device."""
    if mesh is None:
        return observe(net)
    own = jax.tree.map(lambda a: a[: members[0]], net)  # without those repeated
    return meshes.replicate(mesh, observe(own))


def _strong(leaf):
    """The leaf without a weak type.

    The first stretch of steps would lose it, and the second be compiled anew for that.
    """
    return jnp.asarray(leaf, jnp.result_type(leaf)) if getattr(leaf, "weak_type", True) else leaf


def train(
    net: TwoLayerNetwork,
    x: Float[Array, "n d"],
    y: Float[Array, "n ..."],
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
    """Trains the weights of a network, and its biases if `net.train_bias`. The readout is never
    trained.

    Example:
        >>> import perturbkernel as pk
        >>> x, y = jnp.eye(2), jnp.asarray([1.0, -1.0])
        >>> net = pk.networks.TwoLayerNetwork.init(d=2, width=8, key=jax.random.key(0))
        >>> sgd = pk.networks.paper_optimizer(0.1)
        >>> trained, trace = pk.networks.train(net, x, y, optimizer=sgd, steps=4)
        >>> trace.status, bool(trace.loss[-1] < trace.loss[0])
        ('ok', True)

    Args:
        net: the network to begin from; it is not changed.
        x: (n, d).
        y: (n,), -1 or +1; any real numbers for the squared loss. (n, K) for a network of K
            outputs: `pk.one_hot(labels, K)`, or any real numbers.
        loss: "identity", mean of -y f; "logistic", mean of log(1 + exp(-y f)); "exponential", mean
            of exp(-y f); "squared", 1/(2n) sum (f - y)^2. Of K outputs "identity", "squared" and
            "softmax", as in `fit`.
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
            f"net must be one network, weight (width, d); got {net.weight.shape}. "
            "`ensemble` trains many"
        )
    several = net.num_outputs is not None
    rules = checked_rules(loss, optimizer, steps, batch_size, plateau, several)
    records = checked_records(steps, trace_every, trace_at, observe, progress)
    x = as_inputs(x, "x", like=(net.weight.shape[1],), flat=True)
    y = checked_targets(y, len(x), net.num_outputs, rules.loss)
    check_batches(batch_size, len(x), key)
    settings = {"rules": rules, "records": records, "progress": progress, "observe": observe}
    return fit_and_record(net, Data(x, y), optimizer.init, key, **settings)


def checked_rules(loss, optimizer, steps, batch_size, plateau, several: bool = False) -> Rules:
    """The rules of a training, after their checks; `several`: of networks with K outputs."""
    check_choice(loss, "loss", loss_names(several))
    if not (
        callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))
    ):
        raise TypeError(
            "optimizer must be an optax one, such as optax.sgd(0.01, momentum=0.9); "
            f"got {optimizer!r}"
        )
    check_count(steps, "steps", low=0)
    if batch_size is not None:
        check_count(batch_size, "batch_size")
    if plateau is not None and not isinstance(plateau, Plateau):
        raise TypeError(f"plateau must be networks.Plateau() or None; got {plateau!r}")
    plain = isinstance(optimizer, optax.GradientTransformation)
    takes_more = not plain or isinstance(optimizer, optax.GradientTransformationExtraArgs)
    return Rules(LOSSES[loss], optimizer.update, takes_more, batch_size, plateau)
