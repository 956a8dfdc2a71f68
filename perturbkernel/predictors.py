"""Trained infinite-width networks: `fit` trains one in closed form, a `KernelPredictor` evaluates
it.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from perturbkernel.checks import (
    as_class_targets,
    as_float,
    as_targets,
    check_choice,
    check_mesh,
    check_number,
    is_traced,
)
from perturbkernel.dynamics import Dynamics, GradientFlow, HeavyBall, from_numbers, to_numbers
from perturbkernel.files import write_whole
from perturbkernel.gaussian_process import Gaussian, trained_covariance
from perturbkernel.kernels import Kernel, TwoLayerNTK
from perturbkernel.solvers import CLASS_LOSSES, LOSSES, solve


def _value_and_pullback(
    function: Callable, z: Array, name: str, columns: int | None = None
) -> tuple[Array, Callable]:
    """function(z) as (m,), or (m, columns), checked, and the vector-Jacobian product from there to
    the shape of z.
    """
    outputs, pullback = jax.vjp(function, z)
    if columns is not None:
        if outputs.shape != (len(z), columns):
            raise ValueError(
                f"{name} must map inputs {z.shape} to ({len(z)}, {columns}); it gave {outputs.shape}"
            )
        return outputs, lambda cotangent: pullback(cotangent)[0]
    if outputs.shape not in ((len(z),), (len(z), 1)):
        raise ValueError(
            f"{name} must map inputs {z.shape} to one output a row, ({len(z)},); it gave {outputs.shape}"
        )
    return outputs.reshape(len(z)), lambda cotangent: pullback(cotangent.reshape(outputs.shape))[0]


def input_gradient(
    predictor: Callable, z: Float[Array, "m ..."], weights: Float[Array, "m k"] | None = None
) -> Float[Array, "m ..."]:
    """The gradient of each row's output with respect to that row, shaped like z; of K outputs, of
    <weights_j, f(z_j)>.

    For a predictor with a method `input_gradient` that is it; otherwise one reverse pass, for any
    function of JAX arrays that treats rows independently and returns (m,) or (m, 1), or with
    `weights` (m, K) returns (m, K).
    """
    if hasattr(predictor, "input_gradient"):
        return (
            predictor.input_gradient(z) if weights is None else predictor.input_gradient(z, weights)
        )
    columns = None if weights is None else weights.shape[1]
    outputs, pullback = _value_and_pullback(predictor, z, "predictor", columns)
    return pullback(jnp.ones_like(outputs) if weights is None else weights.astype(outputs.dtype))


class KernelPredictor(eqx.Module):
    """f(z) = f0(z) + sum_n dual_coef_n K(x_n, z): an infinitely wide network after training.

    A network of K outputs has K columns of coefficients and one kernel. A pytree: pass it through
    `jit`, differentiate it, `vmap` it. Evaluation is tiled, so memory does not grow with the number
    of queries times training points.

    Attributes:
        kernel: the tangent kernel K.
        inputs: the training inputs x, (n, ...).
        dual_coef: (n,), or (n, K) for K outputs.
        initial: f0, a function from (m, ...) to (m,) or (m, K), or None for zero.
        status: "ok", or in words what training met (a singular matrix, an integration that stopped
            early).
        stats: numbers of the training: effective_time, and where known lambda_max,
            condition_number, solver_steps; of an iterative method products, tolerance, and what was
            reached: residual, error or drift (docs/solvers.md).
        mesh: the devices that it is evaluated on; every process gets the whole result. None: the
            default device.
        loss, dynamics: how it was trained, dynamics as the numbers they were made of;
            `distribution` asks. None, (): not known.
    """

    kernel: Kernel
    inputs: Float[Array, "n ..."]
    dual_coef: Float[Array, "n ..."]
    initial: Callable | None = None
    status: str = eqx.field(static=True, default="ok")
    stats: dict[str, Any] = eqx.field(default_factory=dict)
    mesh: Mesh | None = eqx.field(static=True, default=None)
    loss: str | None = eqx.field(static=True, default=None)
    dynamics: tuple = ()

    # As for any function: `jax.jit(f)` hashes f, and arrays have no hash.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    @property
    def num_outputs(self) -> int | None:
        """K, the number of outputs; None for a single one, of shape (m,)."""
        return self.dual_coef.shape[1] if self.dual_coef.ndim == 2 else None

    def __call__(
        self, z: Float[ArrayLike, "m ..."], *, progress: Any = None
    ) -> Float[Array, "m ..."]:
        """Outputs (m,), or (m, K), at queries z (m, ...). Reverse-mode differentiable, at training
        points too.

        `progress` as in `Kernel.matvec`.
        """
        z = self._queries(z)
        outputs = self.kernel.matvec(
            z, self.inputs, self.dual_coef, mesh=self.mesh, progress=progress
        )
        if self.initial is None:
            return outputs
        return outputs + _value_and_pullback(self.initial, z, "initial", self.num_outputs)[0]

    def input_gradient(
        self,
        z: Float[ArrayLike, "m ..."],
        weights: Float[ArrayLike, "m k"] | None = None,
        *,
        progress: Any = None,
    ) -> Float[Array, "m ..."]:
        """The gradient of f at every row of z, shaped like z: (v + zeta) time for the identity loss
        (theory: 5.3).

        Of K outputs, the gradient of <weights_j, f(z_j)> at z_j, for `weights` (m, K), in one pass.
        """
        z = self._queries(z)
        weights = self._weights(z, weights)
        gradient = self.kernel.input_gradient(
            z, self.inputs, self.dual_coef, weights, mesh=self.mesh, progress=progress
        )
        return self._with_initial_gradient(z, gradient, weights)

    def frozen_gate_gradient(
        self, z: Float[ArrayLike, "m d"], weights: Float[ArrayLike, "m k"] | None = None
    ) -> Float[Array, "m d"]:
        """The gradient with the gates held fixed, the paper's: grad f0(z) + sum_n dual_coef_n
        Phi(x_n, z) x_n.

        Of K outputs, that of <weights_j, f(z_j)>, in one pass a class.

        It leaves out the motion of the gates, which stays in the limit (zeta of theory 5.3).
        TwoLayerNTK only.
        """
        z = self._queries(z)
        weights = self._weights(z, weights)
        if not isinstance(self.kernel, TwoLayerNTK):
            raise TypeError(
                f"frozen gates belong to TwoLayerNTK; this predictor's kernel is {self.kernel!r}. "
                f'Use direction="gradient"'
            )
        gradient = jnp.zeros_like(z)
        for k, coef in enumerate(self.dual_coef.reshape(len(self.inputs), -1).T):
            part = self.kernel.phi_matmul(
                z, self.inputs, coef[:, None] * self.inputs, mesh=self.mesh
            )
            gradient = part if weights is None else gradient + weights[:, k, None] * part
        return self._with_initial_gradient(z, gradient, weights)

    def gradient_rounding(
        self, z: Float[ArrayLike, "m ..."], weights: Float[ArrayLike, "m k"] | None = None
    ) -> Float[Array, " m"]:
        """(m,): a gradient shorter than this is rounding error, its terms cancel (conflicting
        duplicates, say).
        """
        z = self._queries(z)
        weights = self._weights(z, weights)
        size = jnp.abs(self.dual_coef)
        if weights is None:
            bound = self.kernel.gradient_bound(z, self.inputs, size)
        else:
            each = jax.vmap(lambda size: self.kernel.gradient_bound(z, self.inputs, size), 1, 1)(
                size
            )
            bound = jnp.sum(jnp.abs(weights) * each, axis=1)
        return (
            jnp.zeros(len(z), bound.dtype)
            if self.initial is not None
            else 8 * jnp.finfo(bound.dtype).eps * bound
        )

    def distribution(self, z: Float[ArrayLike, "m ..."]) -> Gaussian:
        """Mean and covariance of the outputs at z (m, ...) over random initial functions, in closed
        form.

        The mean is f(z), trained from f0 = 0. With S = `kernel.nngp` the covariance is S(z, z') for
        the identity loss; for the squared loss (I - A) S (I - A)^T in short, with A(z) = K(z, X)
        q(K(X, X)) what training makes of the targets (theory: 1.2, 12.1). K outputs are
        independent, and each has that covariance. Outside `jit` only.

        Cost, squared loss: O(n^3 + n^2 m), and n x n matrices, in float64.

        Raises:
            ValueError: another loss, whose outputs are not Gaussian; a predictor that was trained
                from an initial function of its own (`initial`), or that does not say how it was
                trained.
        """
        if self.loss not in ("identity", "squared"):
            loss = (
                "which this predictor does not say"
                if self.loss is None
                else f"not for {self.loss!r}"
            )
            raise ValueError(f"the distribution is known for loss 'identity' and 'squared', {loss}")
        if self.initial is not None:
            raise ValueError(
                "the distribution over random initial functions needs a predictor trained without initial"
            )
        z = self._queries(z)
        mean = self(z)
        covariance = trained_covariance(
            self.kernel, self.inputs, z, self.loss, from_numbers(self.dynamics)
        )
        return Gaussian(mean, covariance.astype(mean.dtype))

    def _queries(self, z) -> Array:
        if z is self.inputs:
            return z
        return self.kernel.check_inputs(z, "z", like=self.inputs.shape[1:])

    def _weights(self, z: Array, weights: Any) -> Array | None:
        """`weights` as (m, K), or None for a single output."""
        if weights is not None:
            weights = as_float(weights, "weights")
        found, wanted = (
            None if weights is None else weights.shape,
            self.num_outputs and (len(z), self.num_outputs),
        )
        if found != wanted:
            raise ValueError(
                f"weights must be {'left out for a single output' if wanted is None else f'of shape {wanted}'}, the "
                f"combination of outputs that is differentiated at each row of z; got {found}"
            )
        return weights

    def _with_initial_gradient(self, z: Array, gradient: Array, weights: Array | None) -> Array:
        return (
            gradient
            if self.initial is None
            else gradient + input_gradient(self.initial, z, weights)
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes one .npz file (whole or not at all). An initial function is not saved: give it to
        `load` again.
        """
        kernel = {"class": type(self.kernel).__name__}
        if isinstance(self.kernel, TwoLayerNTK):
            kernel |= {"slope": self.kernel.slope, "train_bias": self.kernel.train_bias}
        header = {
            "format": 1,
            "kernel": kernel,
            "initial": self.initial is not None,
            "status": self.status,
            "stats": {name: float(value) for name, value in self.stats.items()},
            "loss": self.loss,
            "dynamics": [np.asarray(number).tolist() for number in self.dynamics],
        }
        arrays: dict[str, Any] = {
            "inputs": np.asarray(self.inputs),
            "dual_coef": np.asarray(self.dual_coef),
        }
        write_whole(
            path, lambda file: np.savez(file, header=np.array(json.dumps(header)), **arrays)
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        kernel: Kernel | None = None,
        initial: Callable | None = None,
    ) -> "KernelPredictor":
        """Reads what `save` wrote. `kernel` is needed for an ArchitectureNTK (a network is code,
        not data), `initial` if the predictor had an initial function.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                inputs, dual_coef = file["inputs"], file["dual_coef"]
            saved, status, stats, has_initial = (
                header[k] for k in ("kernel", "status", "stats", "initial")
            )
            loss, dynamics = header.get("loss"), header.get("dynamics", ())  # older files lack them
            numbers = to_numbers(from_numbers(dynamics)) if dynamics else ()
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                f"{path} is not a predictor that KernelPredictor.save wrote: {error}"
            ) from None
        name = saved.pop("class")
        if kernel is None:
            if name != "TwoLayerNTK":
                raise ValueError(
                    f"{path} was trained with a kernel of class {name}; give it as kernel=..."
                )
            kernel = TwoLayerNTK(**saved)
        if has_initial and initial is None:
            raise ValueError(f"{path} was trained from an initial function; give it as initial=...")
        return cls(
            kernel,
            jnp.asarray(inputs),
            jnp.asarray(dual_coef),
            _as_pytree(initial),
            status,
            stats,
            loss=loss,
            dynamics=numbers,
        )


def _as_pytree(function: Callable | None) -> Callable | None:
    """A plain function is wrapped so that a predictor that holds it passes through `jit` as an
    argument.
    """
    is_leaf = function is not None and jax.tree.structure(function) == jax.tree.structure(0)
    return jax.tree_util.Partial(function) if is_leaf else function


def _check_training(
    kernel: Any, loss: Any, several: bool, dynamics: Any, memory: Any, tolerance: Any
) -> None:
    if not isinstance(kernel, Kernel):
        raise TypeError(
            f"kernel must be a perturbkernel kernel such as TwoLayerNTK(); got {kernel!r}"
        )
    if loss in ("logistic", "exponential", "softmax") and several != (loss == "softmax"):
        wanted = (
            '(n, K), loss="softmax" for them'
            if several
            else "(n,), (n, K) of pk.one_hot(labels, K) for softmax"
        )
        raise ValueError(f'loss="{loss}" does not go with these targets: they are {wanted}')
    check_choice(loss, "loss", CLASS_LOSSES if several else LOSSES)
    if not isinstance(dynamics, GradientFlow | HeavyBall):
        raise TypeError(f"dynamics must be a GradientFlow or a HeavyBall; got {dynamics!r}")
    if loss != "squared" and np.isinf(dynamics.effective_time):
        raise ValueError(f"time must be finite for the {loss} loss, which has no minimum; got inf")
    if memory is not None:
        check_number(memory, "memory", low=0)
    if tolerance is not None:
        check_number(tolerance, "tolerance", low=1e-12, high=0.1)


def _check_probabilities(targets: Array) -> None:
    """Rows that are probabilities, or those minus 1/K."""
    if is_traced(targets):
        return
    y = np.asarray(targets, float)
    sums = y.sum(1)
    allowed = 8 * float(np.sqrt(y.shape[1])) * float(jnp.finfo(targets.dtype).eps)
    wrong = np.minimum(np.abs(sums), np.abs(sums - 1)) > allowed
    wrong |= (y + (1 - sums[:, None]) / y.shape[1]).min(1) < -allowed
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"targets of the softmax loss must be pk.one_hot(labels, K), or probabilities; row {row} is {y[row]}"
        )


def fit(
    kernel: Kernel,
    inputs: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, "n ..."],
    *,
    loss: str = "identity",
    dynamics: Dynamics = GradientFlow(1.0),  # noqa: B008 (immutable)
    initial: Callable | None = None,
    memory: float | None = None,
    tolerance: float | None = None,
    mesh: Mesh | None = None,
) -> KernelPredictor:
    """Trains an infinitely wide network in closed form.

    Args:
        kernel: the tangent kernel of the network.
        inputs: (n, d) training points ((n, h, w, c) for convolutional kernels).
        targets: (n,), -1 or +1; any real numbers for the squared loss. (n, K) for K outputs:
            `pk.one_hot(labels, K)`, e_y - 1/K, for K classes; any real numbers for the identity and
            squared losses.
        loss: "identity", mean of -y f; "logistic", mean of log(1 + exp(-y f)); "exponential", mean
            of exp(-y f); "squared", 1/(2n) sum (f - y)^2. For targets (n, K): "identity", -(1/n)
            sum_n <y_n, f(x_n)>; "squared", 1/(2n) sum_n |f(x_n) - y_n|^2; "softmax", -(1/n) sum_n
            <p_n, log softmax f(x_n)> with p_n = y_n + 1/K, or rows y_n = p_n that are
            probabilities.
        dynamics: `GradientFlow(time)` or `HeavyBall(learning_rate, steps, momentum)`.
        initial: the function f0 before training, (m, ...) -> (m,) or (m, K); zero if left out.
        memory: bytes that the Gram matrix may take; left out, a quarter of what the device has left
            (1 to 64 GiB). Where it does not fit, products are computed in tiles.
        tolerance: relative error asked of an iterative method (docs/solvers.md); left out, 1e-9, or
            1e-7 for float32 inputs. What was reached is in `stats`.
        mesh: devices that share the products with the Gram matrix and on which the predictor is
            evaluated, a `jax.sharding.Mesh`; every process gives the same data, and `memory` is on
            each device.

    Returns:
        A KernelPredictor; what training met, a tolerance that was not reached included, is in its
        `status`.

    Raises:
        ValueError: bad values or shapes; an infinite time for a loss that diverges; for the squared
            loss a rate beyond 2 (1 + momentum) n / lambda_max. The logistic loss warns beyond 8 (1
            + momentum) n / lambda_max, softmax beyond half of that, the exponential one beyond a
            quarter at f0 = 0.

    Cost: identity O(n). The others, up to 2,000 points: the n x n Gram matrix in float64, O(n^3)
    for squared; beyond, tens to hundreds of products with it, in the dtype of the inputs. Theory:
    section 1.
    """
    several = np.ndim(targets) == 2 and np.shape(targets)[1] > 1
    _check_training(kernel, loss, several, dynamics, memory, tolerance)
    check_mesh(mesh)
    x = kernel.check_inputs(inputs, "inputs")
    if several:
        y = as_class_targets(targets, "targets", len(x))
    else:
        y = as_targets(targets, "targets", len(x), labels=loss != "squared")
    if loss == "softmax":
        _check_probabilities(y)
    if loss != "identity" and is_traced(x, y):
        raise TypeError(
            f'fit(loss="{loss}") runs its own float64 solver and cannot be traced; call it outside jit'
        )
    initial = _as_pytree(initial)
    columns = y.shape[1] if several else None
    f0 = (
        None
        if initial is None or loss == "identity"
        else _value_and_pullback(initial, x, "initial", columns)[0]
    )
    solution = solve(kernel, x, y, f0, loss, dynamics, memory, tolerance, mesh)
    dtype = jnp.result_type(x, y)
    return KernelPredictor(
        kernel,
        x.astype(dtype),
        jnp.asarray(solution.dual_coef, dtype),
        initial,
        solution.status,
        solution.stats,
        mesh,
        loss,
        to_numbers(dynamics),
    )


class KernelLearner(eqx.Module):
    """Training as a function (inputs, targets, key) -> predictor, for `learn_from_perturbations`:
    `fit`, configured.

    Every learner has this signature; training in the limit is deterministic and ignores the key.
    """

    kernel: Kernel
    loss: str = eqx.field(static=True, default="identity")
    dynamics: Dynamics = GradientFlow(1.0)
    memory: float | None = eqx.field(static=True, default=None)
    tolerance: float | None = eqx.field(static=True, default=None)
    mesh: Mesh | None = eqx.field(static=True, default=None)

    def __call__(
        self,
        inputs: Float[Array, "n ..."],
        targets: Float[Array, "n ..."],
        key: PRNGKeyArray | None = None,
    ) -> KernelPredictor:
        return fit(
            self.kernel,
            inputs,
            targets,
            loss=self.loss,
            dynamics=self.dynamics,
            memory=self.memory,
            tolerance=self.tolerance,
            mesh=self.mesh,
        )
