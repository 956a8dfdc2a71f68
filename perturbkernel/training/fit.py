"""`fit` trains a kernel model; `KernelLearner` is a recipe for it."""

import contextlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from perturbkernel.arrays import as_jax, on_host
from perturbkernel.checks import (
    as_class_targets,
    as_targets,
    check_choice,
    check_mesh,
    check_number,
    common_dtype,
    is_traced,
)
from perturbkernel.kernels.base import Kernel
from perturbkernel.training.differentiable import STATUS as TRACED
from perturbkernel.training.differentiable import traced_dual_coef
from perturbkernel.training.dynamics import (
    Dynamics,
    GradientFlow,
    HeavyBall,
    Solution,
    is_endless,
    to_numbers,
)
from perturbkernel.training.losses import LOSSES, Kind, Loss, check_probabilities, loss_names
from perturbkernel.training.precision import as_stored, scope, to_ambient
from perturbkernel.training.predictors import KernelPredictor
from perturbkernel.training.pullbacks import as_pytree, value_and_pullback
from perturbkernel.training.solve import solve


def _check_training(
    kernel: Any,
    loss: Any,
    several: bool,
    dynamics: Any,
    memory: Any,
    tolerance: Any,
    precision: Any,
    ridge: Any,
) -> Loss:
    """The record of the loss, after all checks that need no data."""
    if not isinstance(kernel, Kernel):
        raise TypeError(
            f"kernel must be a perturbkernel kernel such as TwoLayerNTK(); got {kernel!r}"
        )
    record = _record(loss, several)
    if not isinstance(dynamics, GradientFlow | HeavyBall):
        raise TypeError(f"dynamics must be a GradientFlow or a HeavyBall; got {dynamics!r}")
    check_number(ridge, "ridge")
    penalised = is_traced(ridge) or ridge > 0
    if not (record.has_minimum or penalised) and is_endless(dynamics):
        raise ValueError(
            f"time must be finite for the {loss} loss, which has no minimum without ridge; got inf"
        )
    if memory is not None:
        check_number(memory, "memory", low=0)
    if tolerance is not None:
        check_number(tolerance, "tolerance", low=1e-12, high=0.1)
    if precision not in (None, 64):
        raise ValueError(
            f"precision must be 64, or left out for that of inputs and targets; got {precision!r}"
        )
    return record


def _record(loss: Any, several: bool) -> Loss:
    """Of the loss with that name, if it is for such targets."""
    known = isinstance(loss, str) and loss in LOSSES
    if known and not LOSSES[loss].accepts(several):
        wanted = f"(n,), (n, K) of pk.one_hot(labels, K) for {loss}"
        if several:
            wanted = '(n, K), loss="softmax" for them'
        raise ValueError(f'loss="{loss}" does not go with these targets: they are {wanted}')
    check_choice(loss, "loss", loss_names(several))
    return LOSSES[loss]


def _check_weights(sample_weight: Any, n: int) -> np.ndarray | None:
    """Weights (n,) of mean one; None for equal ones."""
    if sample_weight is None:
        return None
    if is_traced(sample_weight):
        raise TypeError("sample_weight cannot be traced; give numbers to fit")
    # Numbers of NumPy have no values as arrays of JAX while it traces.
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        weights = np.asarray(as_targets(sample_weight, "sample_weight", n, labels=False), float)
    if (weights < 0).any() or not weights.any():
        row = int(weights.argmin())
        raise ValueError(
            f"sample_weight must be >= 0, and not zero for all points; got {weights[row]:g} in row "
            f"{row}"
        )
    if (weights == weights[0]).all():
        return None
    weights = weights / weights.max()
    return weights / weights.mean()


def fit(
    kernel: Kernel,
    inputs: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, "n ..."],
    *,
    loss: str = "identity",
    dynamics: Dynamics = GradientFlow(1.0),  # noqa: B008 (immutable)
    initial: Callable[..., Any] | None = None,
    memory: float | None = None,
    tolerance: float | None = None,
    mesh: Mesh | None = None,
    precision: int | None = None,
    ridge: float | Array = 0.0,
    sample_weight: Float[ArrayLike, " n"] | None = None,
) -> KernelPredictor:
    """Trains an infinitely wide network in closed form.

    Example:
        >>> import perturbkernel as pk
        >>> x, y = [[1.0, 0.0], [0.0, 2.0]], [1.0, -1.0]
        >>> forever = pk.GradientFlow(float("inf"))
        >>> f = pk.fit(pk.TwoLayerNTK(), x, y, loss="squared", dynamics=forever)
        >>> f(x).round(4).tolist(), f.status
        ([1.0, -1.0], 'ok')

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
        ridge: adds ridge/2 |f - f0|^2 to the mean loss, in the norm of the kernel's function space:
            weight decay toward the initial parameters. Every loss has a minimum then, at
            infinite time. For the squared loss that is scikit-learn's KernelRidge with
            alpha = n ridge, (K + n ridge)^-1 (y - f0).
        sample_weight: (n,), >= 0: the mean loss becomes sum_n w_n l_n / sum_n w_n. Zero is as if
            the point were left out, 2 as if it were there twice.

    Returns:
        A KernelPredictor; what training met, a tolerance that was not reached included, is in its
        `status`.

    Raises:
        ValueError: bad values or shapes; an infinite time for a loss that diverges; for the squared
            loss, steps of heavy ball that diverge: a constant rate beyond 2 (1 + momentum) n /
            lambda_max, or a schedule that does not make up for it. The logistic loss warns of
            steps beyond 8 (1 + momentum) n / lambda_max, softmax beyond half of that, the
            exponential one beyond a quarter at f0 = 0; one warning says whether they may oscillate
            or did diverge, as the status does.

    Cost: identity O(n). The others, up to 2,000 points: the n x n Gram matrix in float64, O(n^3)
    for squared; beyond, tens to hundreds of products with it, in the dtype of the inputs. Theory:
    section 1.
    """
    several = np.ndim(targets) == 2 and np.shape(targets)[1] > 1
    record = _check_training(kernel, loss, several, dynamics, memory, tolerance, precision, ridge)
    check_mesh(mesh)
    x, y = _training_data(kernel, inputs, targets, record, several, precision)
    weights = _check_weights(sample_weight, len(x))
    initial = as_pytree(initial)
    f0 = None
    # A constant force does not depend on the outputs.
    if initial is not None and record.kind is not Kind.CONSTANT:
        columns = y.shape[1] if several else None
        f0, _ = value_and_pullback(initial, to_ambient(x), "initial", columns)
    problem = kernel, x, y, f0, record, dynamics
    time = dynamics.effective_time
    if record.kind is not Kind.CONSTANT and is_traced(x, y, f0, ridge, time):
        dual_coef = traced_dual_coef(*problem, ridge, weights)
        solution = Solution(dual_coef, TRACED, {"effective_time": time})
    else:
        # The rate of a constant force may be traced.
        penalty = ridge if is_traced(ridge) else float(ridge), weights
        solution = solve(*problem, memory, tolerance, mesh, *penalty)
    with scope(x, y):
        dtype = common_dtype(x, y)
        x, y = x.astype(dtype), y.astype(dtype)
        dual_coef = as_jax(on_host(solution.dual_coef).astype(dtype))
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
        targets=y,
        ridge=ridge,
        sample_weight=None if weights is None else as_stored(weights).astype(dtype),
    )


def _training_data(
    kernel: Kernel, inputs: Any, targets: Any, loss: Loss, several: bool, precision: int | None
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
            y = as_targets(targets, "targets", len(x), labels=loss.labels)
        if precision == 64:
            x, y = x.astype(np.float64), y.astype(np.float64)
    if loss.kind is Kind.SOFTMAX:
        check_probabilities(y, "targets")
    return x, y


class KernelLearner(eqx.Module):
    """Training as a function (inputs, targets, key) -> predictor, for `learn_from_perturbations`:
    `fit`, configured with everything but data and their weights.

    Every learner has this signature; training in the limit is deterministic and ignores the key.

    Example:
        >>> import perturbkernel as pk
        >>> learner = pk.KernelLearner(pk.TwoLayerNTK(slope=1.0), dynamics=pk.GradientFlow(2.0))
        >>> learner([[1.0, 2.0]], [1.0])([[3.0, 1.0]]).tolist()
        [10.0]
    """

    kernel: Kernel
    loss: str = eqx.field(static=True, default="identity")
    dynamics: Dynamics = GradientFlow(1.0)
    memory: float | None = eqx.field(static=True, default=None)
    tolerance: float | None = eqx.field(static=True, default=None)
    mesh: Mesh | None = eqx.field(static=True, default=None)
    precision: int | None = eqx.field(static=True, default=None)
    ridge: float = eqx.field(static=True, default=0.0)

    def __call__(
        self,
        inputs: Float[ArrayLike, "n ..."],
        targets: Float[ArrayLike, "n ..."],
        key: PRNGKeyArray | None = None,
    ) -> KernelPredictor:
        """The predictor that `fit` returns; the key is not used."""
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
            ridge=self.ridge,
        )
