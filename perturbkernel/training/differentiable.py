"""Training that JAX traces: under `jit`, and differentiated in inputs, targets, ridge and time.

Dual coefficients as functions of the Gram matrix, whose derivative is the kernel's own:

- squared: q(K) (y - f0) by eigenvectors. The derivative of q(K) along dK is V (Q o V^T dK V) V^T
  with the divided differences Q of q (Daleckii and Krein), which are smooth where eigenvalues
  coincide, as derivatives of single eigenvectors are not. At infinite time a linear solve.
- logistic, exponential and softmax at the minimum that a ridge gives them, by the implicit function
  theorem: one solve with the matrix of Newton's last step (`minimum`).
- heavy ball on these losses: the steps themselves.

All in float64 (theory: 1.6).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from perturbkernel.arrays import quotient
from perturbkernel.checks import common_dtype
from perturbkernel.engine.tiles import EXACT
from perturbkernel.kernels.base import Kernel
from perturbkernel.training import descent, squared
from perturbkernel.training.dynamics import Dynamics, GradientFlow, HeavyBall, is_endless
from perturbkernel.training.gram import GramOperator, scale_rows
from perturbkernel.training.losses import Kind, Loss
from perturbkernel.training.minimum import curvature_root, minimise, shifted_matrix
from perturbkernel.training.precision import in_float64

_POINTS = 2000  # at most, and coefficients of a loss that has no closed form
_TOLERANCE = 1e-11  # asked of Newton's method
# Eigenvalues closer than this, relative, have the derivative of q at their mean for a divided
# difference: its error is of the order of the square, that of the quotient eps over it.
_CLOSE = 1e-5

STATUS = "traced by JAX: what training met is not known"


class Recipe(NamedTuple):
    """What is constant while JAX traces. `dynamics` None: a flow, whose time is an input."""

    kernel: Kernel
    loss: Loss
    dynamics: Dynamics | None


class Inputs(NamedTuple):
    """What may be traced. `f0`, `weights`: like y, and (n,) of mean one; None for zero and ones."""

    x: Array
    y: Array
    f0: Array | None
    ridge: Any
    time: Any
    weights: Any


def traced_dual_coef(
    kernel: Kernel,
    x: Array,
    y: Array,
    f0: Array | None,
    loss: Loss,
    dynamics: Dynamics,
    ridge: Any,
    weights: Any,
) -> Array:
    """Dual coefficients in the common dtype of x and y, zero at points of weight zero.

    Forward- and reverse-mode differentiable where x64 is enabled; reverse-mode where it is not.

    Raises:
        TypeError: more points than are solved for directly; a nonlinear flow at a finite time.
    """
    if weights is not None and not np.all(weights):
        kept = np.flatnonzero(weights)
        fewer = weights[kept] / weights[kept].mean()
        f0 = None if f0 is None else f0[kept]
        how = loss, dynamics, ridge, fewer
        found = traced_dual_coef(kernel, x[kept], y[kept], f0, *how)
        return jnp.zeros(y.shape, found.dtype).at[kept].set(found)
    _check(y, loss, dynamics)
    flows = isinstance(dynamics, GradientFlow) and not is_endless(dynamics)
    recipe = Recipe(kernel, loss, None if flows else dynamics)
    time = dynamics.effective_time if flows else 0.0
    inputs = Inputs(x, y, f0, jnp.asarray(ridge), jnp.asarray(time), weights)
    dtype = common_dtype(x, y)
    return in_float64(partial(_trained, recipe), inputs).astype(dtype)


def _check(y: Array, loss: Loss, dynamics: Dynamics) -> None:
    if len(y) > _POINTS:
        raise TypeError(
            f"fit can be traced for up to {_POINTS:,} points, for which it solves directly; got "
            f"{len(y):,}: call it outside jit and grad"
        )
    if loss.kind is Kind.LINEAR or isinstance(dynamics, HeavyBall):
        return
    if not is_endless(dynamics):
        raise TypeError(
            f'fit(loss="{loss.name}") integrates a flow to a finite time, which cannot be traced; '
            f"call it outside jit and grad, or give it ridge > 0 and infinite time, or a HeavyBall"
        )
    if y.size > _POINTS:
        raise TypeError(
            f'fit(loss="{loss.name}") can be traced for up to {_POINTS:,} coefficients, points '
            f"times classes; got {y.size:,}"
        )


def _trained(recipe: Recipe, inputs: Inputs) -> Array:
    kernel, loss, dynamics = recipe
    x, y, f0, ridge, time, weights = inputs
    n = len(y)
    gram = kernel.ntk(x)
    f0 = jnp.zeros_like(y) if f0 is None else f0
    weights = jnp.ones(n) if weights is None else weights
    if loss.kind is Kind.LINEAR:
        root = jnp.sqrt(weights)
        gram = scale_rows(root, gram) * root[None, :]
        residual = scale_rows(root, y - f0)
        if dynamics is not None and is_endless(dynamics):
            identity = jnp.eye(n)
            shifted = gram + n * ridge * identity
            dual = jax.scipy.linalg.solve(shifted, residual, assume_a="pos")
        else:
            dual = _filtered(dynamics, gram, residual, ridge, time)
        return scale_rows(root, dual)
    if isinstance(dynamics, HeavyBall):
        force = descent.weighted_force(loss, y, weights)
        operator = GramOperator(kernel, None, gram)
        rates = jnp.asarray(dynamics.rates)
        momentum = jnp.asarray(dynamics.momentum)
        return descent.iterate(operator, force, f0, rates, momentum, ridge)
    return _at_minimum(kernel, loss, gram, y, f0, ridge, weights / n)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _filtered(dynamics: Dynamics | None, gram, residual, ridge, time) -> Array:
    """q(K) residual for a symmetric K."""
    eigenvalues, vectors = _eigenbasis(gram)
    values = _filter(dynamics, len(gram), eigenvalues, ridge, time)
    return _product(vectors, scale_rows(values, _product(vectors.T, residual)))


@jax.custom_jvp
def _eigenbasis(gram: Array) -> tuple[Array, Array]:
    eigenvalues, vectors = jnp.linalg.eigh(gram)
    return jnp.maximum(eigenvalues, 0), vectors


@_eigenbasis.defjvp
def _eigenbasis_jvp(primals, tangents):
    """Eigenvectors of eigenvalues that coincide have no derivative: duplicates would give NaN."""
    raise TypeError(
        "training to a finite time is differentiated once in the inputs, by divided differences "
        "of eigenvalues; for second derivatives take infinite time with a ridge"
    )


def _filter(dynamics: Dynamics | None, n: int, eigenvalues, ridge, time) -> Array:
    """q at each of the eigenvalues."""
    if dynamics is None:
        return squared.flow_filter(eigenvalues / n + ridge, time) / n
    return squared.filtered(eigenvalues, n, dynamics, ridge).q


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=EXACT)


@_filtered.defjvp
def _filtered_jvp(dynamics, primals, tangents):
    gram, residual, ridge, time = primals
    d_gram, d_residual, d_ridge, d_time = tangents
    eigenvalues, vectors = _eigenbasis(gram)
    at = partial(_filter, dynamics, len(gram))
    values, d_values = jax.jvp(partial(at, eigenvalues), (ridge, time), (d_ridge, d_time))
    differences = _divided_differences(lambda v: at(v, ridge, time), eigenvalues)
    # In the basis of the eigenvectors: what the residual, q itself and the matrix change.
    inner = _product(vectors.T, residual)
    d_inner = _product(vectors.T, d_residual)
    symmetric = (d_gram + d_gram.T) / 2
    rotated = _product(_product(vectors.T, symmetric), vectors)
    by_residual = scale_rows(values, d_inner)
    by_filter = scale_rows(d_values, inner)
    by_matrix = _product(differences * rotated, inner)
    dual = _product(vectors, scale_rows(values, inner))
    change = by_residual + by_filter + by_matrix
    return dual, _product(vectors, change)


def _divided_differences(function: Any, eigenvalues: Array) -> Array:
    """(n, n): (q_i - q_j) / (lambda_i - lambda_j), or q' where that is 0 / 0."""
    values = function(eigenvalues)
    change = values[:, None] - values[None, :]
    gap = eigenvalues[:, None] - eigenvalues[None, :]
    mean = (eigenvalues[:, None] + eigenvalues[None, :]) / 2
    flat = mean.ravel()
    at_mean, slope = jax.jvp(function, (flat,), (jnp.ones_like(flat),))
    slope = slope.reshape(mean.shape)
    # q changes by its own size over lambda + 1 / q(0) or so.
    largest = jnp.abs(at_mean).max()
    largest = jnp.maximum(largest, jnp.finfo(mean.dtype).tiny)
    scale = mean + 1 / largest
    apart = jnp.abs(gap) > _CLOSE * scale
    return quotient(change, gap, apart, otherwise=slope)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _at_minimum(kernel: Kernel, loss: Loss, gram, y, f0, ridge, shares) -> Array:
    """Where ridge dual_coef = shares force(f0 + K dual_coef)."""
    operator = GramOperator(kernel, None, gram)
    tolerance = jnp.asarray(_TOLERANCE)
    weights = shares * len(y)
    return minimise(operator, y, f0, ridge, weights, tolerance, loss=loss).dual_coef


@_at_minimum.defjvp
def _at_minimum_jvp(kernel, loss, primals, tangents):
    dual = _at_minimum(kernel, loss, *primals)

    def left(gram, y, f0, ridge, shares):
        outputs = f0 + _product(gram, dual)
        return ridge * dual - scale_rows(shares, loss.force(y, outputs))

    _, moved = jax.jvp(left, primals, tangents)
    gram, y, f0, ridge, shares = primals
    root = curvature_root(loss, y, f0 + _product(gram, dual), shares)
    matrix = shifted_matrix(gram, root, dual, ridge)
    right = root.adjoint(_product(gram, moved))
    inner = jax.scipy.linalg.solve(matrix, right.ravel(), assume_a="pos")
    across = root.apply(inner.reshape(right.shape))
    return dual, (across - moved) / ridge
