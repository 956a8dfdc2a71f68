"""Training a kernel model: the dual coefficients of every loss under every dynamics, by the method
that fits.

The trained function is f(z) = f0(z) + sum_n dual_coef_n K(x_n, z). With L the mean loss over n
points (theory: 1),

- identity, l(s) = -s: the gradient never changes; dual_coef = (tau / n) y at effective time tau. No
  Gram matrix.
- squared, L = 1/(2n) sum (f - y)^2: every eigenvector of the Gram matrix evolves by itself
  (`squared`).
- logistic, l(s) = log(1 + e^-s), and exponential, l(s) = e^-s: a differential equation (flow) or
  recurrence (heavy ball) for n numbers (`logistic`).

A ridge adds ridge/2 |f - f0|^2 in the kernel's function space, and coefficients decay at that rate
(theory: 1.5). Every loss then has a minimum, at infinite time (`minimum`).

With targets (n, K) there are K outputs and n x K coefficients. Identity, L = -(1/n) sum <y, f>, and
squared treat every column by itself; softmax, the cross-entropy, couples them (`softmax`).

Up to 2,000 points all but the first hold the n x n Gram matrix in float64 and solve directly.
Beyond, or where four such matrices exceed the memory allowed, products with the matrix are all they
use: docs/solvers.md. Coefficients are always float64, whatever JAX's setting.
"""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from perturbkernel.arrays import as_jax, on_host
from perturbkernel.checks import common_dtype
from perturbkernel.engine.memory import available_memory, fits
from perturbkernel.kernels.base import Kernel
from perturbkernel.training import descent, logistic, minimum, softmax, squared
from perturbkernel.training.dynamics import (
    Dynamics,
    GradientFlow,
    Solution,
    is_endless,
    of_decay,
)
from perturbkernel.training.gram import GramOperator, Scaled, gram_operator, scale_rows
from perturbkernel.training.losses import Kind, Loss
from perturbkernel.words import joined

_DIRECT = 2000  # points up to which the Gram matrix is diagonalised or factored
_ROUNDED = 1e-6  # relative error asked of a solver that uses a float32 Gram matrix
_CONFIRMED = 1e-5  # ... and of its training outputs, by products in float64
_ROUNDING = 1e-3  # of a predictor's outputs, relative to the largest: more than that is reported
_CHECKED = 128  # training points at which that is measured


class _Problem(NamedTuple):
    """What is trained, in float64, and `kept`: the inputs as the predictor will hold them.

    `weights`: (n,), positive and of mean one; None for ones.
    """

    kernel: Kernel
    x: Array
    y: Array
    f0: Array
    loss: Loss
    dynamics: Dynamics
    kept: Array
    memory: float
    mesh: Mesh | None
    ridge: float
    weights: Array | None

    @property
    def root(self) -> Array:
        """(n,), D of the module `squared`."""
        if self.weights is None:
            return jnp.ones(len(self.y))
        return jnp.sqrt(self.weights)

    @property
    def residual(self) -> Array:
        """D (y - f0)."""
        return scale_rows(self.root, self.y - self.f0)

    def operator(self, single: bool = False, memory: float | None = None) -> GramOperator:
        """Products with the Gram matrix, in float32 if `single`."""
        x = self.x.astype(np.float32) if single else self.x
        memory = self.memory if memory is None else memory
        return gram_operator(self.kernel, x, memory, self.mesh)

    def holds_float64(self) -> bool:
        devices = 1 if self.mesh is None else self.mesh.size
        return fits(len(self.y), np.float64, self.memory, devices=devices)


def solve(
    kernel: Kernel,
    x: Array,
    y: Array,
    f0: Array | None,
    loss: Loss,
    dynamics: Dynamics,
    memory: float | None = None,
    tolerance: float | None = None,
    mesh: Mesh | None = None,
    ridge: Any = 0.0,
    weights: Any = None,
) -> Solution:
    """Dual coefficients after training on (x, y) from the initial outputs f0, (n,) or (n, K) as y,
    None for zero.

    `weights`: (n,), >= 0 and of mean one; None for ones. Points of weight zero are left out, and
    their coefficients are zero.

    `memory`: bytes that Gram matrices may take, `gram.available_memory()` if None. `tolerance`:
    relative; 1e-9, or 1e-7 for float32 data, if None. Its meaning depends on the method,
    docs/solvers.md. `mesh`: devices that share the products, and then `memory` is on each; what is
    solved directly is solved on the default device.
    """
    if loss.kind is Kind.CONSTANT:
        return _constant(y, dynamics, ridge, weights)
    if weights is not None and not np.all(weights):
        kept = np.flatnonzero(np.asarray(weights))
        fewer = np.asarray(weights)[kept]
        fewer = fewer / fewer.mean()
        f0 = None if f0 is None else f0[kept]
        options = memory, tolerance, mesh, ridge, fewer
        found = solve(kernel, x[kept], y[kept], f0, loss, dynamics, *options)
        whole = np.zeros(y.shape)
        whole[kept] = found.dual_coef
        with jax.enable_x64(True):
            return found._replace(dual_coef=jnp.asarray(whole))
    single = x.dtype == np.float32
    memory = available_memory(mesh) if memory is None else memory
    tolerance = (1e-7 if single else 1e-9) if tolerance is None else tolerance
    with jax.enable_x64(True):
        kept = x.astype(common_dtype(x, y))
        x = _in_float64(x)
        y = _in_float64(y)
        f0 = jnp.asarray(np.zeros(y.shape)) if f0 is None else _in_float64(f0)
        weights = None if weights is None else _in_float64(weights)
        problem = _Problem(
            kernel, x, y, f0, loss, dynamics, kept, memory, mesh, float(ridge), weights
        )
        small = len(y) <= _DIRECT and fits(len(y), y.dtype, memory, copies=4)
        if small:
            solution = _direct(problem._replace(mesh=None), tolerance)
        elif is_endless(dynamics):
            solution = _at_minimum(problem, tolerance)
        else:
            solution = _by_products(problem, tolerance, single)
        if solution.unstable:
            warnings.warn(solution.status, stacklevel=3)
        stats = {name: float(value) for name, value in solution.stats.items()}
        coefficients = np.asarray(solution.dual_coef)
        dual_coef = as_jax(coefficients)
        return solution._replace(dual_coef=dual_coef, stats=stats)


def _constant(y: Array, dynamics: Dynamics, ridge: Any, weights: Any) -> Solution:
    """Coefficients that grow at the constant rate w_n y_n / n, and decay at that of the ridge."""
    time = of_decay(ridge, dynamics)
    targets = on_host(y)
    if weights is not None:
        targets = scale_rows(weights, targets)
    dual_coef = as_jax(targets * (time / len(y)))
    return Solution(dual_coef, "ok", {"effective_time": dynamics.effective_time})


def _direct(problem: _Problem, tolerance: float) -> Solution:
    operator = problem.operator()
    assert operator.matrix is not None
    if problem.loss.kind is Kind.LINEAR:
        y, f0 = on_host(problem.y, problem.f0)
        residual = as_jax(y - f0)
        how = problem.dynamics, problem.ridge, problem.weights
        solution = squared.dense(operator.matrix, residual, *how)
    else:
        solution = _trained(problem, operator, tolerance)
    outputs = _training_outputs(problem, operator, solution.dual_coef)
    return _with_rounding(solution, outputs)


def _at_minimum(problem: _Problem, tolerance: float) -> Solution:
    """By products, after infinite time."""
    if problem.loss.kind is not Kind.LINEAR:
        operator = problem.operator()  # in float64, in tiles if need be
        solution = _trained(problem, operator, tolerance)
    else:
        rounded = not problem.holds_float64()
        operator = problem.operator(single=rounded)
        exact = problem.operator(memory=0) if rounded else None
        solution = _interpolated(problem, operator, exact, tolerance)
    outputs = _training_outputs(problem, operator, solution.dual_coef)
    solution = _with_rounding(solution, outputs)
    return _with_setting(solution, operator, tolerance)


def _interpolated(
    problem: _Problem, operator: GramOperator, exact: GramOperator | None, tolerance: float
) -> Solution:
    root = problem.root

    def columns(chosen: Array) -> Array:
        found = problem.kernel.ntk(problem.x, problem.x[chosen])
        return scale_rows(root, found) * root[chosen][None, :]

    solution = squared.interpolate_by_products(
        Scaled(operator, root),
        None if exact is None else Scaled(exact, root),
        columns,
        problem.residual,
        tolerance,
        problem.ridge,
    )
    return solution._replace(dual_coef=scale_rows(root, solution.dual_coef))


def _by_products(problem: _Problem, tolerance: float, single: bool) -> Solution:
    """With a float32 matrix if `single`; then again with a float64 one, if products in float64 do
    not confirm the answer, and if that matrix can be held.
    """
    goal = max(tolerance, _ROUNDED) if single else tolerance
    operator = problem.operator(single)
    solution = _trained(problem, operator, goal)
    outputs = _training_outputs(problem, operator, solution.dual_coef)
    if single and not solution.unstable:
        allowed = max(tolerance, _CONFIRMED)
        left = np.inf if outputs is None else outputs.error
        estimated = solution.stats.get("error", 0.0)
        error = max(left, estimated)
        if not error <= allowed and problem.holds_float64():
            return _by_products(problem, goal, single=False)
        solution = solution._replace(stats=solution.stats | {"error": error})
        if not left <= allowed:
            solution = _saying(
                solution,
                f"products with a float32 kernel matrix leave a relative error of {error:.2g} in "
                f"the outputs at training points, above the tolerance {allowed:g}: "
                f"fit(..., precision=64) computes them in float64",
            )
    solution = _with_rounding(solution, outputs)
    return _with_setting(solution, operator, goal)


def _trained(problem: _Problem, operator: GramOperator, tolerance: float) -> Solution:
    """By products with the Gram matrix, any loss at a finite time, any but the squared one at its
    minimum.
    """
    y = problem.y
    f0 = problem.f0
    loss = problem.loss
    dynamics = problem.dynamics
    penalty = problem.ridge, problem.weights
    if loss.kind is Kind.LINEAR:
        root = problem.root
        scaled = Scaled(operator, root)
        how = dynamics, tolerance, problem.ridge
        solution = squared.by_products(scaled, problem.residual, *how)
        return solution._replace(dual_coef=scale_rows(root, solution.dual_coef))
    if not isinstance(dynamics, GradientFlow):
        return descent.heavy_ball(operator, y, f0, dynamics, loss, *penalty)
    if is_endless(dynamics):
        return minimum.solve(operator, y, f0, loss, *penalty, tolerance)
    flow = softmax.flow if loss.kind is Kind.SOFTMAX else logistic.flow
    return flow(operator, y, f0, dynamics.time, tolerance, loss, *penalty)


class _Outputs(NamedTuple):
    """K dual_coef at training points, without f0.

    Attributes:
        exact: in float64.
        solver: as the solver computes it, whose matrix may be float32.
        predictor: as the predictor computes it, which may be float32 altogether.
    """

    exact: np.ndarray
    solver: np.ndarray
    predictor: np.ndarray

    @property
    def error(self) -> float:
        """Of the solver, relative, in norm."""
        norm = np.linalg.norm(self.exact)
        off = np.linalg.norm(self.solver - self.exact)
        return float(off / (norm if norm > 0 else 1))

    @property
    def rounding(self) -> float:
        """Of the predictor, at the worst point, relative to the largest output."""
        largest = np.abs(self.exact).max()
        off = np.abs(self.predictor - self.exact).max()
        return float(off / (largest if largest > 0 else 1))


def _checked_rows(dual: Array) -> np.ndarray | slice:
    """The training points, at most 128, where rounding is measured: half of them those with the
    largest coefficients, where terms cancel if anywhere, half spread over all.
    """
    if len(dual) <= _CHECKED:
        return slice(None)
    half = _CHECKED // 2
    coefficients = np.asarray(dual).reshape(len(dual), -1)
    sizes = np.abs(coefficients).max(axis=1)
    largest = np.argpartition(sizes, -half)[-half:]
    spread = np.linspace(0, len(sizes) - 1, half)
    return np.concatenate([largest, spread.astype(int)])


def _training_outputs(problem: _Problem, operator: GramOperator, dual: Array) -> _Outputs | None:
    """At some training points (`_checked_rows`). None where all would be the same product in
    float64, or the coefficients are not finite.
    """
    kernel = problem.kernel
    x = problem.x
    kept = problem.kept
    mesh = problem.mesh
    wide = operator.dtype == np.float64
    same = wide and kept.dtype == np.float64
    if same or not np.isfinite(dual).all():
        return None
    dual = jnp.asarray(dual)
    rows = _checked_rows(dual)
    # Rows are chosen on the host, which is quicker than JAX's indexing.
    solver = _on_host(operator(dual))[rows]
    if wide:
        queries = kept if isinstance(rows, slice) else np.asarray(kept)[rows]
        coef = as_jax(on_host(dual).astype(kept.dtype))
        outputs = kernel.matvec(queries, kept, coef, mesh=mesh)
        return _Outputs(exact=solver, solver=solver, predictor=_on_host(outputs))
    queries = np.asarray(x)[rows]
    exact = _on_host(kernel.matvec(queries, x, dual, mesh=mesh))
    predictor = solver if kept.dtype == np.float32 else exact
    return _Outputs(exact, solver, predictor)


def _on_host(array: Array) -> np.ndarray:
    return np.asarray(array, float)


def _in_float64(array: Array) -> Array:
    return as_jax(_on_host(array))


def _with_rounding(solution: Solution, outputs: _Outputs | None) -> Solution:
    if outputs is None:
        return solution
    rounding = outputs.rounding
    solution = solution._replace(stats=solution.stats | {"rounding": rounding})
    if rounding <= _ROUNDING:
        return solution
    said = (
        f"rounding: coefficients cancel, and outputs of the predictor in float32 are off by "
        f"{rounding:.2g} of the largest at training points; fit(..., precision=64) computes them "
        f"in float64"
    )
    return _saying(solution, said)


def _saying(solution: Solution, said: str) -> Solution:
    return solution._replace(status=joined(solution.status, said))


def _with_setting(solution: Solution, operator: GramOperator, tolerance: float) -> Solution:
    bits = 8.0 * operator.dtype.itemsize
    held = float(operator.matrix is not None)
    setting = {"tolerance": tolerance, "gram_bits": bits, "gram_held": held}
    return solution._replace(stats=solution.stats | setting)
