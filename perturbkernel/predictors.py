"""Trained infinite-width networks: `fit` trains one in closed form, a `KernelPredictor` evaluates
it.
"""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from perturbkernel import precision as precisions
from perturbkernel import saving
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
from perturbkernel.gaussian_process import Gaussian, trained_covariance
from perturbkernel.kernels import Kernel, TwoLayerNTK
from perturbkernel.precision import KeepsPrecision, is_wider, scope, to_ambient
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


class KernelPredictor(KeepsPrecision):
    """f(z) = f0(z) + sum_n dual_coef_n K(x_n, z): an infinitely wide network after training.

    A network of K outputs has K columns of coefficients and one kernel. A pytree: pass it through
    `jit`, differentiate it, `vmap` it. Evaluation is tiled, so memory does not grow with the number
    of queries times training points.

    Inputs and coefficients that are float64 (`fit(..., precision=64)`, or trained where x64 was
    enabled) are evaluated in float64 wherever the predictor goes: to a file, into a pickle, under
    `jit`, whether or not x64 is enabled there. Outputs are float32 where it is not.

    Attributes:
        kernel: the tangent kernel K.
        inputs: the training inputs x, (n, ...).
        dual_coef: (n,), or (n, K) for K outputs.
        initial: f0, a function from (m, ...) to (m,) or (m, K), or None for zero.
        status: "ok", or in words what training met (a singular matrix, an integration that stopped
            early).
        stats: numbers of the training: effective_time, and where known lambda_max,
            condition_number, solver_steps; of an iterative method products, tolerance, and what was
            reached: residual, error or drift (docs/solvers.md). rounding: how far outputs that are
            computed in float32 are off at training points, relative to the largest.
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
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]
    __eq__ = object.__eq__  # pyright: ignore[reportAssignmentType]

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
        x, coef = self.inputs, self.dual_coef
        options: dict[str, Any] = {"mesh": self.mesh, "progress": progress}
        if is_wider(x, coef):
            outputs = precisions.matvec(self.kernel, "ntk", z, x, coef, **options)
        else:
            outputs = self.kernel.matvec(z, x, coef, **options)
        if self.initial is None:
            return outputs
        before, _ = _value_and_pullback(self.initial, to_ambient(z), "initial", self.num_outputs)
        return _sum(outputs, before)

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
        with scope(self.dual_coef):
            gradient = self.kernel.input_gradient(
                self._matched(z),
                self.inputs,
                self.dual_coef,
                weights,
                mesh=self.mesh,
                progress=progress,
            )
        return self._with_initial_gradient(z, to_ambient(gradient), weights)

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
        gradient = None
        with scope(self.dual_coef):
            matched, x = self._matched(z), self.inputs
            for k, coef in enumerate(self.dual_coef.reshape(len(x), -1).T):
                part = self.kernel.phi_matmul(matched, x, coef[:, None] * x, mesh=self.mesh)
                if weights is not None:
                    part = weights[:, k, None].astype(part.dtype) * part
                gradient = part if gradient is None else gradient + part
        assert gradient is not None
        return self._with_initial_gradient(z, to_ambient(gradient), weights)

    def gradient_rounding(
        self, z: Float[ArrayLike, "m ..."], weights: Float[ArrayLike, "m k"] | None = None
    ) -> Float[Array, " m"]:
        """(m,): a gradient shorter than this is rounding error, its terms cancel (conflicting
        duplicates, say).
        """
        z = self._queries(z)
        weights = self._weights(z, weights)
        with scope(self.dual_coef):
            bound = self._gradient_bound(self._matched(z), weights)
            rounding = 8 * jnp.finfo(bound.dtype).eps * bound
        # Nothing is known of the rounding of an initial function.
        return to_ambient(rounding if self.initial is None else jnp.zeros_like(rounding))

    def _gradient_bound(self, z: Array, weights: Array | None) -> Array:
        """(m,): the gradient, were all its terms of one direction."""
        size = jnp.abs(self.dual_coef)
        if weights is None:
            return self.kernel.gradient_bound(z, self.inputs, size)
        bound = partial(self.kernel.gradient_bound, z, self.inputs)
        each = jax.vmap(bound, 1, 1)(size)
        return jnp.sum(jnp.abs(weights).astype(each.dtype) * each, axis=1)

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
        with scope(self.dual_coef):
            return self.kernel.check_inputs(z, "z", like=self.inputs.shape[1:])

    def _matched(self, z: Array) -> Array:
        """`z` as wide as inputs and coefficients; within their `scope`."""
        widest = np.promote_types(z.dtype, self.dual_coef.dtype)
        return z if z is self.inputs or z.dtype == widest else z.astype(widest)

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
        if self.initial is None:
            return gradient
        return _sum(gradient, input_gradient(self.initial, to_ambient(z), weights))

    def save(self, path: str | os.PathLike) -> None:
        """Writes one .npz file, whole or not at all. An initial function is not saved, nor a kernel
        that is a network: give them to `load` again.
        """
        contents = saving.Saved(
            self.kernel,
            self.inputs,
            self.dual_coef,
            self.status,
            self.stats,
            self.loss,
            self.dynamics,
        )
        saving.write(path, contents, self.initial)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        kernel: Kernel | None = None,
        initial: Callable | None = None,
    ) -> "KernelPredictor":
        """The predictor that `save` wrote, in its own precision whether or not x64 is enabled.

        Args:
            path: the file.
            kernel: the kernel it was trained with; needed for an ArchitectureNTK, since a network
                is code, not data.
            initial: the initial function, if it had one.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged or of a newer format; `kernel` or `initial` is not the one
                that the predictor was trained with, by its values at some training points.
        """
        saved = saving.read(path, kernel, initial)
        return cls(
            saved.kernel,
            saved.inputs,
            saved.dual_coef,
            _as_pytree(initial),
            saved.status,
            saved.stats,
            loss=saved.loss,
            dynamics=saved.dynamics,
        )


def _sum(a: Array, b: Array) -> Array:
    dtype = np.promote_types(a.dtype, b.dtype)
    return a.astype(dtype) + b.astype(dtype)


def _as_pytree(function: Callable | None) -> Callable | None:
    """A plain function is wrapped so that a predictor that holds it passes through `jit` as an
    argument.
    """
    is_leaf = function is not None and jax.tree.structure(function) == jax.tree.structure(0)
    return jax.tree_util.Partial(function) if is_leaf else function


def _check_training(
    kernel: Any,
    loss: Any,
    several: bool,
    dynamics: Any,
    memory: Any,
    tolerance: Any,
    precision: Any,
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
    if precision not in (None, 64):
        raise ValueError(
            f"precision must be 64, or left out for that of inputs and targets; got {precision!r}"
        )


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
    precision: int | None = None,
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
        precision: 64 for inputs, products and coefficients in float64, and outputs that are
            computed in float64, whether or not x64 is enabled: for coefficients that cancel, as
            `status` says and `stats["rounding"]` measures. Outputs are float32 where x64 is not
            enabled. Left out: JAX's own rules.

    Returns:
        A KernelPredictor; what training met, a tolerance that was not reached included, is in its
        `status`.

    Raises:
        ValueError: bad values or shapes; an infinite time for a loss that diverges; for the squared
            loss, steps of heavy ball that diverge: a constant rate beyond 2 (1 + momentum) n /
            lambda_max, or a schedule that does not make up for it. The logistic loss warns of
            steps beyond 8 (1 + momentum) n / lambda_max, softmax beyond half of that, the
            exponential one beyond a quarter at f0 = 0.

    Cost: identity O(n). The others, up to 2,000 points: the n x n Gram matrix in float64, O(n^3)
    for squared; beyond, tens to hundreds of products with it, in the dtype of the inputs. Theory:
    section 1.
    """
    several = np.ndim(targets) == 2 and np.shape(targets)[1] > 1
    _check_training(kernel, loss, several, dynamics, memory, tolerance, precision)
    check_mesh(mesh)
    x, y = _training_data(kernel, inputs, targets, loss, several, precision)
    initial = _as_pytree(initial)
    f0 = None
    if initial is not None and loss != "identity":
        columns = y.shape[1] if several else None
        f0, _ = _value_and_pullback(initial, to_ambient(x), "initial", columns)
    solution = solve(kernel, x, y, f0, loss, dynamics, memory, tolerance, mesh)
    with scope(x, y):
        dtype = np.promote_types(x.dtype, y.dtype)
        x, dual_coef = x.astype(dtype), jnp.asarray(solution.dual_coef, dtype)
    return KernelPredictor(
        kernel,
        x,
        dual_coef,
        initial,
        solution.status,
        solution.stats,
        mesh,
        loss,
        to_numbers(dynamics),
    )


def _training_data(
    kernel: Kernel, inputs: Any, targets: Any, loss: str, several: bool, precision: int | None
) -> tuple[Array, Array]:
    """Inputs and targets, checked; float64 if `precision` is 64."""
    traced = is_traced(inputs, targets)
    if traced and precision == 64:
        raise TypeError("fit(precision=64) cannot be traced; call it outside jit")
    with jax.enable_x64(True) if precision == 64 else contextlib.nullcontext():
        x = kernel.check_inputs(inputs, "inputs")
        if several:
            y = as_class_targets(targets, "targets", len(x))
        else:
            y = as_targets(targets, "targets", len(x), labels=loss != "squared")
        if precision == 64:
            x, y = x.astype(np.float64), y.astype(np.float64)
    if loss == "softmax":
        _check_probabilities(y)
    if loss != "identity" and traced:
        raise TypeError(
            f'fit(loss="{loss}") runs its own float64 solver and cannot be traced; call it outside '
            f"jit"
        )
    return x, y


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
    precision: int | None = eqx.field(static=True, default=None)

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
            precision=self.precision,
        )
