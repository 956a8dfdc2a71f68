"""Networks of finite width: in ensembles, and as learners. `training` trains a single one.

The names of `two_layer`, `optimizers` and `training` that a user needs are part of this module's
interface.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from perturbkernel import meshes
from perturbkernel._moved import renamed
from perturbkernel.arrays import as_jax, namespace, on_host
from perturbkernel.checks import (
    as_float,
    as_inputs,
    check_choice,
    check_count,
    check_finite,
    check_key,
    check_mesh,
    is_traced,
)
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.networks.arguments import check_batches, checked_records, checked_targets
from perturbkernel.networks.optimizers import Plateau as Plateau
from perturbkernel.networks.optimizers import paper_optimizer as paper_optimizer
from perturbkernel.networks.rules import Data
from perturbkernel.networks.trace import Trace as Trace
from perturbkernel.networks.training import checked_rules, fit_and_record
from perturbkernel.networks.training import train as train
from perturbkernel.networks.two_layer import Centred as Centred
from perturbkernel.networks.two_layer import Mean as Mean
from perturbkernel.networks.two_layer import TwoLayerNetwork as TwoLayerNetwork
from perturbkernel.networks.two_layer import check_width
from perturbkernel.training.initial_function import STARTS
from perturbkernel.training.losses import LOSSES, Loss, loss_names


def ensemble(
    nets: TwoLayerNetwork,
    x: Float[ArrayLike, "n d"] | Float[ArrayLike, "k n d"],
    y: Float[ArrayLike, "n ..."] | Float[ArrayLike, "k n ..."],
    *,
    scale: Float[ArrayLike, "k n"] | None = None,
    learning_rate: float | Float[ArrayLike, " k"] | None = None,
    momentum: float = 0.9,
    optimizer: optax.GradientTransformation | optax.MultiSteps | None = None,
    loss: str = "identity",
    steps: int,
    batch_size: int | None = None,
    plateau: Plateau | None = None,
    trace_every: int | None = None,
    trace_at: Sequence[int] | None = None,
    observe: Callable[[TwoLayerNetwork], Any] | None = None,
    progress: Any = None,
    mesh: Mesh | None = None,
    key: PRNGKeyArray | None = None,
) -> tuple[TwoLayerNetwork, Trace]:
    """Trains k networks at once, each with its own state, rate and minibatches.

    And with its own data if need be. Each comes out as `train` gives it, to rounding. Members with
    the same inputs share every product with them, k width neurons at once; members with inputs of
    their own take turns at every step.

    Example:
        >>> import perturbkernel as pk
        >>> x, y = jnp.eye(2), jnp.asarray([1.0, -1.0])
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> nets = jax.vmap(lambda key: pk.networks.TwoLayerNetwork.init(2, 8, key=key))(keys)
        >>> trained, trace = pk.networks.ensemble(nets, x, y, learning_rate=0.1, steps=4)
        >>> trained(x).shape, trace.loss.shape[0]
        ((3, 2), 3)

    Args:
        nets: k networks as one pytree: `jax.vmap(lambda key: TwoLayerNetwork.init(d, width,
            key=key))(keys)`.
        x: the inputs, (n, d) for all members, or (k, n, d), each its own.
        y: the targets, (n,) or (k, n); of networks with K outputs (n, K) or (k, n, K).
        scale: (k, n): member j sees scale[j, n] x[n], of shared directions x (n, d), and the
            product with x stays shared. Perturbations alone (scenario (a)) differ between targets
            and sizes in this way only.
        learning_rate: SGD with `momentum`, as `paper_optimizer` gives it; one number, or one a
            network, (k,).
        optimizer: any optax optimizer instead of these two, the same for all members.
        observe: a function of the whole ensemble, `nets` as above, whose arrays begin with the axis
            k: `lambda nets: nets(test)`. Stacked in `trace.observed` as (k, r, ...).
        mesh: devices that members are dealt out to; each trains its own, without communication.
            Every process gives the same arguments and gets the whole result. `observe` is computed
            on all devices together.
        key: random key for the minibatches, split into one a network.
        loss, steps, batch_size, plateau, trace_every, trace_at, progress: as in `train`.

    Returns:
        The k trained networks, nets(z) of shape (k, m) or (k, m, K), and their Trace with a leading
        axis k.

    Raises as `train` does. Memory: two arrays of (k width, batch_size or n), a record of the trace
    (k width, n); with inputs of their own one member's share of that, and x.
    """
    _check_networks(nets)
    k, _, d = nets.weight.shape
    if (learning_rate is None) == (optimizer is None):
        raise TypeError("one of learning_rate and optimizer must be given, and not both")
    check_mesh(mesh)
    rates = None if learning_rate is None else _checked_rates(learning_rate, k)
    rule = paper_optimizer(0.0, momentum) if optimizer is None else optimizer
    outputs = nets.num_outputs
    rules = checked_rules(loss, rule, steps, batch_size, plateau, outputs is not None)
    records = checked_records(steps, trace_every, trace_at, observe, progress)
    inputs, scale = _checked_inputs(x, scale, k, d)
    targets = _checked_targets(y, k, inputs.shape[-2], outputs, rules.loss)
    data = Data(inputs, targets, scale)
    check_batches(batch_size, data.x.shape[-2], key)
    _check_observed(observe, nets)

    def init_with_rate(parameters, rate):
        return paper_optimizer(rate, momentum).init(parameters)

    def init(begin):
        if optimizer is not None:
            return jax.vmap(optimizer.init)(begin)
        return jax.vmap(init_with_rate)(begin, rates)

    own_mesh = None if mesh is None else meshes.automatic(mesh)
    return fit_and_record(
        nets,
        data,
        init,
        None if key is None else jax.random.split(key, k),
        rules=rules._replace(shared=data.x.ndim == 2, mesh=own_mesh),
        records=records,
        progress=progress,
        observe=observe,
    )


def _check_networks(nets) -> None:
    if not isinstance(nets, TwoLayerNetwork):
        got = type(nets).__name__
    elif nets.weight.ndim != 3:
        got = f"weight {nets.weight.shape}"
    else:
        return
    raise ValueError(f"nets must be a TwoLayerNetwork with weight (k, width, d); got {got}")


def _check_observed(observe, nets: TwoLayerNetwork) -> None:
    """Raises unless what is observed has an entry for each network."""
    if observe is None:
        return
    k = len(nets.weight)
    for array in jax.tree.leaves(eqx.filter_eval_shape(observe, nets)):
        if array.shape[:1] != (k,):
            raise ValueError(
                f"observe must return arrays whose first axis is that of the {k} networks; "
                f"got shape {array.shape}"
            )


def _checked_rates(learning_rate, k: int) -> Array:
    rates = as_float(learning_rate, "learning_rate")
    if rates.shape not in ((), (k,)):
        raise ValueError(
            f"learning_rate must be one number or ({k},), one a network; got shape {rates.shape}"
        )
    if not is_traced(rates):
        values = np.asarray(rates)
        if not np.isfinite(values).all() or values.min() < 0:
            raise ValueError(f"learning_rate must be >= 0 and finite; got {learning_rate!r}")
    return jnp.broadcast_to(rates, k)


def _checked_inputs(x, scale, k: int, d: int) -> tuple[Array, Array | None]:
    """Inputs (n, d) or (k, n, d), and scale (k, n) or None, checked."""
    x = as_float(x, "x")
    if x.ndim == 3:
        if len(x) != k:
            raise ValueError(
                f"x must have shape (n, {d}) or ({k}, n, {d}), for {k} networks; got {x.shape}"
            )
        as_inputs(x.reshape(-1, x.shape[-1]), "x", like=(d,))
        if scale is not None:
            raise ValueError(
                f"scale multiplies shared inputs x (n, {d}); got inputs {x.shape}, "
                "one array a network"
            )
    else:
        as_inputs(x, "x", like=(d,), flat=True)
    n = x.shape[-2]
    if scale is not None:
        scale = as_float(scale, "scale")
        if scale.shape != (k, n):
            raise ValueError(
                f"scale must have shape ({k}, {n}), a number a network and point; got {scale.shape}"
            )
        check_finite(scale, "scale")
    return x, scale


def _checked_targets(y, k: int, n: int, outputs: int | None, loss: Loss) -> Array:
    """Targets of each of k networks, (k, n) or for K outputs (k, n, K), checked."""
    y = as_float(y, "y")
    shape = (n,) if outputs is None else (n, outputs)
    if y.ndim == len(shape):
        checked_targets(y, n, outputs, loss)
    elif y.shape == (k, *shape):
        checked_targets(y.reshape(k * n, *shape[1:]), k * n, outputs, loss)
    else:
        raise ValueError(
            f"y must have shape {shape} or {(k, *shape)}, for {k} networks; got {y.shape}"
        )
    y = on_host(y)
    return as_jax(namespace(y).broadcast_to(y, (k, *shape)))


class NetworkLearner(eqx.Module):
    """Training a finite network as a function (inputs, targets, key) -> predictor.

    A learner for `learn_from_perturbations`. Every call draws a new network from its key and trains
    it with `train`; targets (n, K) draw a network of K outputs. The predictor is a TwoLayerNetwork,
    or a `Centred` one with `start="centred"` (perturbations then use grad f - grad f0). A training
    that diverges warns.

    With `members` an ensemble of that many networks, drawn and trained independently on the same
    data, and the predictor is the `Mean` of their functions: its variance over draws is that of one
    network divided by `members`.

    Example:
        >>> import perturbkernel as pk
        >>> learner = pk.networks.NetworkLearner(
        ...     8, optimizer=pk.networks.paper_optimizer(0.1), steps=4, start="centred"
        ... )
        >>> learner(jnp.eye(2), jnp.asarray([1.0, -1.0]), jax.random.key(0))(jnp.eye(2)).shape
        (2,)

    Args:
        width, slope, train_bias: of `TwoLayerNetwork.init`.
        loss, optimizer, steps, batch_size, plateau: of `train`.
        start: "random": f as drawn and trained; "centred": f - f0; "doubled": f0 = 0, by
            antisymmetric doubling.
        members: how many networks to average; None: one network, no mean.
        mesh: devices that the members are dealt out to.
    """

    width: int = eqx.field(static=True)
    slope: float = eqx.field(static=True, default=0.0)
    train_bias: bool = eqx.field(static=True, default=False)
    loss: str = eqx.field(static=True, default="identity")
    optimizer: optax.GradientTransformation | optax.MultiSteps = eqx.field(
        static=True, kw_only=True
    )
    steps: int = eqx.field(static=True, kw_only=True)
    batch_size: int | None = eqx.field(static=True, default=None, kw_only=True)
    plateau: Plateau | None = eqx.field(static=True, default=None, kw_only=True)
    start: str = eqx.field(static=True, default="random", kw_only=True)
    members: int | None = eqx.field(static=True, default=None, kw_only=True)
    mesh: Mesh | None = eqx.field(static=True, default=None, kw_only=True)

    def __check_init__(self):
        check_choice(self.start, "start", STARTS)
        check_width(self.width, self.start == "doubled")
        TwoLayerNTK(self.slope, self.train_bias)  # checks both
        several = self.loss in loss_names(several=True)
        checked_rules(self.loss, self.optimizer, self.steps, self.batch_size, self.plateau, several)
        if self.members is not None:
            check_count(self.members, "members")
        check_mesh(self.mesh)
        if self.mesh is not None and self.members is None:
            raise ValueError(
                "mesh deals out the members of an ensemble: give members=k with it; "
                "got members=None"
            )

    @property
    def kernel(self) -> TwoLayerNTK:
        """The tangent kernel in the limit of infinite width.

        Cosines and diagnoses are computed with it.
        """
        return TwoLayerNTK(self.slope, self.train_bias)

    def __call__(
        self, inputs: Float[ArrayLike, "n d"], targets: Float[ArrayLike, "n ..."], key: PRNGKeyArray
    ):
        """Draws a network from the key, trains it and returns the predictor."""
        check_key(key)
        inputs = as_inputs(inputs, "inputs", flat=True)
        outputs = np.shape(targets)[1] if np.ndim(targets) == 2 else None
        loss = LOSSES[self.loss]
        targets = checked_targets(targets, len(inputs), outputs, loss, "targets")
        init_key, batch_key = jax.random.split(key)
        d = inputs.shape[1]

        def draw(key):
            doubled = self.start == "doubled"
            return TwoLayerNetwork.init(
                d,
                self.width,
                self.slope,
                self.train_bias,
                outputs=outputs,
                doubled=doubled,
                key=key,
            )

        k = self.members
        if k is None:
            initial = draw(init_key)
            learn = train
        else:
            initial = jax.vmap(draw)(jax.random.split(init_key, k))
            learn = partial(ensemble, mesh=self.mesh)
        net, trace = learn(
            initial,
            inputs,
            targets,
            loss=self.loss,
            optimizer=self.optimizer,
            steps=self.steps,
            batch_size=self.batch_size,
            plateau=self.plateau,
            trace_at=(),
            key=batch_key,
        )
        if trace.status != "ok":
            warnings.warn(f"a network of width {self.width} {trace.status}", stacklevel=2)
        predictor = net.centred(initial) if self.start == "centred" else net
        return predictor if k is None else Mean(predictor)


# The flags of version 0.1.
NetworkLearner.__init__ = renamed(centred="start", doubled="start")(NetworkLearner.__init__)
