"""The squared loss 1/(2n) sum (f - y)^2, by functions of the Gram matrix (theory: 1.2).

    dual_coef = q(K) (y - f0),    q(lambda) = (1 - r(lambda)) / lambda.

r is what training leaves of an eigenvector: exp(-time lambda / n) for gradient flow, 0 for infinite
time, a polynomial for heavy ball. A ridge raises every eigenvalue by n ridge; with weights w and
D = diag(sqrt(w)), dual_coef = D q(D K D) D (y - f0) (theory: 1.5). A small K is diagonalised or
factored; for a large one q(K) is applied by products. With targets (n, k) every column is a problem
of its own with the same K, and shares its factors.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from perturbkernel.arrays import as_jax, namespace, on_host, or_one, quotient
from perturbkernel.engine.krylov import Preconditioner, conjugate_gradients, lanczos, nystrom
from perturbkernel.engine.tiles import EXACT
from perturbkernel.training.dynamics import (
    Dynamics,
    Filter,
    HeavyBall,
    Solution,
    diverges,
    heavy_ball_filter,
    is_endless,
    stable_formula,
    unstable_rates,
)
from perturbkernel.training.gram import scale_rows
from perturbkernel.words import joined

_RANK = 256  # of the preconditioner
_SOLVES = 12  # refinements
_PRODUCTS = 2000  # of one solve by conjugate gradients
_RESIDUAL = 1e-6  # of a direct solve, relative: more than that is reported


def dense(
    gram: Array,
    residual: Array,
    dynamics: Dynamics,
    ridge: float = 0.0,
    weights: Array | None = None,
) -> Solution:
    """By the eigenvectors of the Gram matrix; infinite time by its Cholesky factor.

    `weights`: (n,), of mean one; None for ones.
    """
    if weights is not None:
        root = jnp.sqrt(weights)
        scaled = scale_rows(root, gram) * root[None, :]
        found = dense(scaled, scale_rows(root, residual), dynamics, ridge)
        return found._replace(dual_coef=scale_rows(root, found.dual_coef))
    n = len(residual)
    if is_endless(dynamics):
        if ridge > 0:
            diagonal = jnp.full(n, n * ridge, gram.dtype)
            gram = gram + jnp.diag(diagonal)
        return _interpolate(gram, residual)
    eigenvalues, vectors = jnp.linalg.eigh(gram)
    eigenvalues = on_host(eigenvalues)
    eigenvalues = namespace(eigenvalues).maximum(eigenvalues, 0)
    found = filtered(eigenvalues, n, dynamics, ridge)
    status, stats = _stability(dynamics, n, as_jax(eigenvalues), found, ridge)
    stats["lambda_max"] = float(eigenvalues[-1])
    stats["effective_time"] = dynamics.effective_time
    dual = _apply(vectors, found.q, residual)
    return Solution(dual, status, stats)


def by_products(
    operator: Callable,
    residual: Array,
    dynamics: Dynamics,
    tolerance: float,
    ridge: float = 0.0,
) -> Solution:
    """At a finite time: the Lanczos process, for flow and heavy ball alike, up to 512 products and
    vectors a column.
    """
    n = len(residual)

    def of_ritz_values(eigenvalues: np.ndarray) -> Array:
        return filtered(jnp.asarray(eigenvalues), n, dynamics, ridge).q

    columns = residual.reshape(n, -1)
    found = [lanczos(operator, column, of_ritz_values, tolerance) for column in columns.T]
    errors = [one.error for one in found]
    error = float(np.max(errors))  # NaN if one is
    products = sum(one.products for one in found)
    eigenvalues = np.concatenate([one.eigenvalues for one in found])
    met = jnp.asarray(eigenvalues)
    of_met = filtered(met, n, dynamics, ridge)
    status, stats = _stability(dynamics, n, met, of_met, ridge)
    if not error <= tolerance:
        stopped = (
            f"the Lanczos process stopped after {products} products at an estimated relative "
            f"error of {error:.2g}, above the tolerance {tolerance:g}"
        )
        status = joined(stopped, status)
    stats["lambda_max"] = max(one.lambda_max for one in found)
    stats["products"] = products
    stats["error"] = error
    stats["effective_time"] = dynamics.effective_time
    values = jnp.stack([one.value for one in found], axis=1)
    return Solution(values.reshape(residual.shape), status, stats)


def interpolate_by_products(
    operator: Callable,
    exact: Callable | None,
    columns: Callable[[Array], Array],
    residual: Array,
    tolerance: float,
    ridge: float = 0.0,
) -> Solution:
    """(K + n ridge)^-1 (y - f0) by conjugate gradients, preconditioned by columns of K at points
    chosen at random.

    `operator` may be rounded (a float32 matrix): then `exact` is K in float64, and the solution is
    refined until the exact residual is small; each refinement takes one exact product. `columns`
    maps indices (r,) to K[:, indices].
    """
    n = len(residual)
    shift = jnp.asarray(n * ridge, residual.dtype)
    preconditioner = _preconditioner(columns, n)
    preconditioner = preconditioner._replace(values=preconditioner.values + shift)
    operator = _Shifted(operator, shift)
    exact = None if exact is None else _Shifted(exact, shift)
    # A rounded operator is not worth solving with beyond three digits a time.
    finest = 0.0 if exact is None else 1e-3
    true_operator = operator if exact is None else exact
    norm = np.linalg.norm(residual, axis=0)
    norm = or_one(norm)
    dual = jnp.zeros_like(residual)
    left = residual
    size = 1.0
    products = 0
    refinements = 0
    most = jnp.asarray(_PRODUCTS)
    while size > tolerance and refinements < _SOLVES:
        wanted = 0.5 * tolerance / size
        goal = max(wanted, finest)
        step, reached, spent = conjugate_gradients(
            operator, preconditioner, left, jnp.asarray(goal), most
        )
        products += int(spent)
        refinements += 1
        new = dual + step
        new_left = residual - true_operator(new)
        new_sizes = np.linalg.norm(new_left, axis=0) / norm
        new_size = float(new_sizes.max())
        if not new_size < size:
            break
        stalled = new_size > 0.5 * size
        solved = float(reached.max()) <= goal
        dual, left, size = new, new_left, new_size
        if stalled or not solved:
            break
    status = "ok"
    if not size <= tolerance:
        status = (
            f"conjugate gradients stopped after {products} products at a relative residual of "
            f"{size:.2g}, above the tolerance {tolerance:g}: the kernel matrix is singular or "
            f"nearly so"
        )
    stats = {
        "products": products + refinements,
        "refinements": refinements,
        "residual": size,
        "effective_time": np.inf,
    }
    return Solution(dual, status, stats)


class _Shifted(eqx.Module):
    """v -> K v + shift v."""

    operator: Callable
    shift: Array

    def __call__(self, v: Array) -> Array:
        return self.operator(v) + self.shift * v


def _preconditioner(columns: Callable[[Array], Array], n: int) -> Preconditioner:
    """From columns of K at points chosen at random, the same ones every time."""
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(n)
    rank = min(_RANK, n // 2)
    if rank == 0:
        return Preconditioner(jnp.zeros((n, 1)), jnp.ones(1))
    ascending = np.sort(shuffled[:rank])
    chosen = jnp.asarray(ascending)
    return nystrom(columns(chosen), chosen)


def _stability(
    dynamics: Dynamics, n: int, eigenvalues: Array, found: Filter, ridge: float
) -> tuple[str, dict[str, float]]:
    """Raises if heavy ball diverges; otherwise what rounding its steps may have amplified, as
    status and stats.
    """
    if not isinstance(dynamics, HeavyBall):
        return "ok", {}
    curvatures = eigenvalues / n + ridge
    if diverges(dynamics, curvatures):
        largest = float(curvatures.max())
        formula = stable_formula(ridge)
        raise ValueError(unstable_rates(dynamics, largest, formula, "the squared loss"))
    growth = float(found.growth.max())
    error = growth * np.finfo(float).eps
    status = "ok"
    if not error <= _RESIDUAL:
        status = (
            f"the steps of heavy ball amplify errors {growth:.2g} times before they reduce them: "
            f"rounding leaves a relative error of about {error:.2g}"
        )
    return status, {"growth": growth}


def filtered(
    eigenvalues: Array | np.ndarray, n: int, dynamics: Dynamics, ridge: float | Array
) -> Filter:
    """q at eigenvalues >= 0, at a finite time."""
    curvatures = eigenvalues / n + ridge
    if isinstance(dynamics, HeavyBall):
        rates = jnp.asarray(dynamics.rates)
        momentum = jnp.asarray(dynamics.momentum)
        found = heavy_ball_filter(as_jax(curvatures), rates, momentum)
        return found._replace(q=found.q / n)
    q = flow_filter(curvatures, dynamics.time) / n
    growth = namespace(eigenvalues).ones_like(eigenvalues)
    return Filter(as_jax(q), as_jax(growth))


def flow_filter(curvatures: Array | np.ndarray, time: float | Array) -> Any:
    """(1 - exp(-time h)) / h for curvatures h >= 0: what flow makes of the loss h f^2 / 2 - f."""
    rate = time * curvatures
    done = -namespace(rate).expm1(-rate)
    return quotient(done, curvatures, rate > 0, otherwise=time)


def _interpolate(gram: Array, residual: Array) -> Solution:
    """The limit of infinite time, K^-1 (y - f0), K with the ridge; for a singular K it is the
    pseudo-inverse, and the status says so.
    """
    n = len(residual)
    rounding = n * np.finfo(float).eps
    factor = jax.scipy.linalg.cho_factor(gram, lower=True)
    dual = jax.scipy.linalg.cho_solve(factor, residual)
    largest = _power_iteration(gram)
    condition = largest * _power_iteration(factor)
    if jnp.isfinite(condition) and condition < 1 / rounding:
        return _with_residual(gram, residual, dual, float(condition))
    # The pseudo-inverse leaves out what is rounding.
    eigenvalues, vectors = jnp.linalg.eigh(gram)
    keep = eigenvalues > rounding * eigenvalues[-1]
    kept = jnp.where(keep, eigenvalues, 1)
    inverse = jnp.where(keep, 1 / kept, 0)
    dual = _apply(vectors, inverse, residual)
    found = _with_residual(gram, residual, dual, np.inf)
    largest_target = float(jnp.abs(residual).max())
    left = found.stats["residual"] * largest_target
    status = (
        f"singular kernel matrix (numerical rank {int(keep.sum())} of {n}): the limit of gradient "
        f"flow, by the pseudo-inverse, leaves a largest training error of {left:.3g}"
    )
    return found._replace(status=status)


def _with_residual(gram: Array, residual: Array, dual: Array, condition: float) -> Solution:
    """With the largest training error in `stats`, relative to the largest entry of `residual`."""
    outputs = jnp.matmul(gram, dual, precision=EXACT)
    outputs, residual = on_host(outputs, residual)
    left = abs(outputs - residual).max()
    largest = max(float(abs(residual).max()), np.finfo(float).tiny)
    size = float(left / largest)
    status = "ok"
    if not size <= _RESIDUAL:
        status = (
            f"nearly singular kernel matrix (condition number {condition:.2g}): rounding leaves a "
            f"largest training error of {float(left):.3g}"
        )
    stats = {"condition_number": condition, "residual": size, "effective_time": np.inf}
    return Solution(dual, status, stats)


@jax.jit
def _apply(vectors: Array, values: Array, b: Array) -> Array:
    """V diag(values) V^T b."""
    inner = jnp.matmul(vectors.T, b, precision=EXACT)
    if b.ndim == 2:
        values = values[:, None]
    return jnp.matmul(vectors, values * inner, precision=EXACT)


@jax.jit
def _power_iteration(operator) -> Array:
    """Of a symmetric matrix, or of the inverse of a Cholesky-factored one: 100 power iterations,
    from below.
    """
    factored = isinstance(operator, tuple)
    matrix = operator[0] if factored else operator

    def apply(v):
        if factored:
            return jax.scipy.linalg.cho_solve((matrix, True), v)
        return jnp.matmul(matrix, v, precision=EXACT)

    n = len(matrix)
    start = jax.random.normal(jax.random.key(0), (n,))

    def step(v, _):
        w = apply(v)
        norm = jnp.linalg.norm(w)
        return w / or_one(norm), norm

    _, norms = lax.scan(step, start / jnp.linalg.norm(start), length=100)
    return norms[-1]
