"""The deterministic limit in which features move, as a predictor and as a learner (theory: 14.2,
14.4, 14.6).
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import ArrayLike, Float, PRNGKeyArray

from perturbkernel.checks import (
    as_inputs,
    as_targets,
    check_choice,
    check_key,
    check_mesh,
)
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.networks.training import train
from perturbkernel.networks.two_layer import Centred, TwoLayerNetwork
from perturbkernel.theory.arguments import check_kernel
from perturbkernel.theory.law.cuts import as_mean
from perturbkernel.theory.law.simulate import (
    check_dynamics,
    check_neurons,
    draw_neurons,
    simulate_neurons,
)
from perturbkernel.training.dynamics import Dynamics, GradientFlow
from perturbkernel.training.losses import LOSSES, loss_names


class MeanFieldLearner(eqx.Module):
    """Training in the limit of many neurons, with features that move: (inputs, targets, key) ->
    predictor, a learner for `learn_from_perturbations`.

    The predictor is the function

        F(z) = sqrt(width) E[alpha phi(u(z))]

    of a trained neuron (alpha, u), as an average over a pool of neurons that come in pairs alpha,
    -alpha: a TwoLayerNetwork, with its exact input gradient, deterministic but for the error of the
    pool, of relative order 1 / sqrt(neurons).

    identity: the mean E f_T = T Psi(r) of networks of this width, exactly, r = T / sqrt(width). It
        is also the limit of f_T sqrt(width') / sqrt(width) as width' grows at fixed r: all of f
        but a random part of relative order 1 / sqrt(width'). Small r is the kernel's predictor T
        f_hat, large r has features that moved. Width 1, the default, makes r the time.
    logistic, squared: neurons interact, through the outputs at the training points. In the pool
        they do through F, which is the limit of networks whose outputs are multiplied by sqrt(width
        / width') as their width' grows [known for smooth activations, measured here]. A network of
        this width has its own outputs f in place of F. Doubled, so that f begins at 0, it has F as
        its mean, and f - F falls with width at fixed r [measured]. From a random start f0, of order
        one at every width, is in the forces: f - F does not fall with width, and F is no limit of f
        [measured].

    Example:
        >>> import jax, perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 1.0], [1.0, 2.0]]
        >>> rich = pk.theory.MeanFieldLearner(
        ...     pk.TwoLayerNTK(), dynamics=pk.HeavyBall(0.1, 3), neurons=400
        ... )
        >>> (rich(x, y, jax.random.key(0))(z) > 0).tolist()
        [True, False]

    Args:
        kernel: slope and whether biases are trained; cosines and diagnoses are computed with it.
        dynamics: `GradientFlow` or `HeavyBall`, of networks of `width`.
        width: of the networks; sets r = time / sqrt(width) and the scale of outputs.
        neurons: in the pool.
        loss: of `fit`.
        steps: for flow: of the midpoint rule, or of plain descent for the other losses.
        mesh: devices that neurons are dealt out to; for the identity loss.

    Theory: 14.2, 14.4, 14.6.
    """

    kernel: TwoLayerNTK = eqx.field(static=True)
    dynamics: Dynamics = eqx.field(static=True, kw_only=True)
    width: int = eqx.field(static=True, default=1, kw_only=True)
    neurons: int = eqx.field(static=True, default=4000, kw_only=True)
    loss: str = eqx.field(static=True, default="identity", kw_only=True)
    steps: int = eqx.field(static=True, default=100, kw_only=True)
    mesh: Mesh | None = eqx.field(static=True, default=None, kw_only=True)

    def __check_init__(self):
        check_kernel(self.kernel)
        check_dynamics(self.dynamics, self.width, self.steps)
        check_neurons(self.neurons, True)
        check_choice(self.loss, "loss", loss_names())
        check_mesh(self.mesh)
        if self.mesh is not None and self.loss != "identity":
            raise ValueError(
                f"mesh must be None for the {self.loss} loss, in which neurons interact; "
                f"got {self.mesh!r}"
            )

    def __call__(
        self, inputs: Float[ArrayLike, "n d"], targets: Float[ArrayLike, " n"], key: PRNGKeyArray
    ) -> TwoLayerNetwork | Centred:
        """Simulates the pool and returns the predictor F."""
        check_key(key)
        inputs = as_inputs(inputs, "inputs", flat=True)
        targets = as_targets(targets, "targets", len(inputs), labels=LOSSES[self.loss].labels)
        if self.loss == "identity":
            law = simulate_neurons(
                self.kernel,
                inputs,
                targets,
                dynamics=self.dynamics,
                width=self.width,
                neurons=self.neurons,
                steps=self.steps,
                records=(),
                mesh=self.mesh,
                key=key,
            )
            return law.mean_network(width=self.width)
        start, alpha = draw_neurons(self.neurons // 2, inputs.shape[1], key)
        readout = np.stack([alpha, -alpha]).astype(np.float64)
        net = as_mean(np.stack([start, start]), readout, self.width, self.kernel, inputs.dtype)
        # The gradient of the pool's outputs is width / neurons that of a network's.
        optimizer, steps = _optimizer(self.dynamics, self.neurons / self.width, self.steps)
        trained, _ = train(
            net,
            inputs,
            targets,
            loss=self.loss,
            optimizer=optimizer,
            steps=steps,
            trace_at=(),
        )
        return trained


def _optimizer(
    dynamics: Dynamics, scale: float, steps: int
) -> tuple[optax.GradientTransformation, int]:
    """Descent with rates multiplied by `scale`, and its number of steps."""
    if isinstance(dynamics, GradientFlow):
        return optax.sgd(scale * dynamics.time / steps), steps
    rates = jnp.asarray(scale * dynamics.rates)
    momentum = dynamics.momentum or None
    return optax.sgd(lambda step: rates[step], momentum=momentum), dynamics.steps
