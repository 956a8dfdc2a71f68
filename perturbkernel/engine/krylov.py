"""Functions of a large symmetric matrix, applied to a vector by products alone: q(K) b, K^-1 b,
lambda_max.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.engine.tiles import EXACT

_CHUNK = 16  # Lanczos steps between two looks at the error


class Answer(NamedTuple):
    """A vector (n,), its estimated relative error, the products spent, the approximate eigenvalues
    that were met, zeros after them.
    """

    value: Float[Array, " n"]
    error: float
    products: int
    eigenvalues: Float[np.ndarray, " most"]

    @property
    def lambda_max(self) -> float:
        return float(self.eigenvalues.max())


def lanczos(
    operator: Callable, b: Float[Array, " n"], function: Callable, tolerance: float, most: int = 512
) -> Answer:
    """q(K) b for a function q of eigenvalues, by the Lanczos process with full reorthogonalisation.

    With V (n, k) an orthonormal basis of b, K b, ..., K^(k-1) b and T = V^T K V, the answer is |b|
    V q(T) e_1: exact for polynomials of degree k - 1, and for k = n. The error is estimated by the
    change over the last 16 steps, relative, in the answer and in K times it, whichever is larger.
    `function` takes eigenvalues (`most`,), zeros at the end. Stops at `tolerance`, or after `most`
    products.

    Source: Golub and Van Loan, Matrix Computations, sections 10.1 and 9.1; the basis takes n x most
    numbers.
    """
    most = min(most, len(b))
    norm = float(jnp.linalg.norm(b))
    if norm == 0:
        return Answer(jnp.zeros_like(b), 0.0, 0, np.zeros(most))
    known, error, eigenvalues, ritz = np.zeros(most), np.inf, np.zeros(most), None
    for ritz in _ritz(operator, b / norm, most):
        k, vectors = ritz.products, ritz.vectors
        eigenvalues[:k] = np.maximum(ritz.values, 0)
        filtered = np.asarray(function(eigenvalues))[:k]
        last, known = known, np.zeros(most)
        known[:k] = vectors @ (filtered * vectors[0])
        change = known[:k] - last[:k]
        images = [np.linalg.norm(ritz.values * (vectors.T @ part)) for part in (change, known[:k])]
        sizes = np.linalg.norm(change), np.linalg.norm(known)
        pairs = ((sizes[0], sizes[1]), (images[0], images[1]))
        error = 0.0 if ritz.exhausted else max(size / of if of > 0 else 0.0 for size, of in pairs)
        if error <= tolerance:
            break
    assert ritz is not None
    value = norm * jnp.matmul(jnp.asarray(known, b.dtype), ritz.basis[:most], precision=EXACT)
    return Answer(value, float(error), ritz.products, eigenvalues)


class _Ritz(NamedTuple):
    """The Lanczos process so far. `residuals`: |K u - value u| of the Ritz vectors u = basis^T
    vectors.
    """

    products: int
    basis: Float[Array, "rows n"]
    values: Float[np.ndarray, " k"]  # ascending
    vectors: Float[np.ndarray, "k k"]
    residuals: Float[np.ndarray, " k"]
    exhausted: bool  # the values are eigenvalues


def _ritz(operator: Callable, start: Float[Array, " n"], most: int) -> Iterator[_Ritz]:
    """The Lanczos process from a vector of length one, after every 16 of at most `most` <= n
    products.
    """
    n = len(start)
    basis = jnp.zeros((most + 1, n), start.dtype).at[0].set(start)
    diagonal, off, k = np.zeros(most), np.zeros(most), 0
    while k < most:
        stop = min(k + _CHUNK, most)
        basis, new_diagonal, new_off = _extend(operator, basis, np.int32(k), np.int32(stop))
        diagonal[k:stop], off[k:stop] = (
            np.asarray(new_diagonal)[k:stop],
            np.asarray(new_off)[k:stop],
        )
        k = stop
        values, vectors = np.linalg.eigh(
            np.diag(diagonal[:k]) + np.diag(off[: k - 1], 1) + np.diag(off[: k - 1], -1)
        )
        exhausted = k == n or off[k - 1] <= 1e-14 * max(values[-1], np.finfo(float).tiny)
        yield _Ritz(k, basis, values, vectors, abs(off[k - 1] * vectors[-1]), exhausted)
        if exhausted:
            return


@jax.jit
def _extend(operator, basis: Array, start: Array, stop: Array) -> tuple[Array, Array, Array]:
    """Rows start + 1 to stop of the basis, and the entries of the tridiagonal matrix belonging to
    them.
    """

    def step(k, carry):
        basis, diagonal, off = carry
        w = operator(basis[k])
        size = jnp.linalg.norm(w)
        first = jnp.dot(basis[k], w, precision=EXACT)
        for _ in range(2):  # twice is enough
            w = w - jnp.matmul(jnp.matmul(basis, w, precision=EXACT), basis, precision=EXACT)
        norm = jnp.linalg.norm(w)
        # What rounding leaves of a space that is exhausted is no new direction.
        norm = jnp.where(norm > 8 * jnp.finfo(w.dtype).eps * size, norm, 0)
        new = jnp.where(norm > 0, w / jnp.where(norm > 0, norm, 1), 0)
        return basis.at[k + 1].set(new), diagonal.at[k].set(first), off.at[k].set(norm)

    zero = jnp.zeros(basis.shape[0] - 1, basis.dtype)
    return lax.fori_loop(start, stop, step, (basis, zero, zero))


def largest_eigenvalue(
    operator: Callable, like: Float[Array, " n"], tolerance: float = 1e-8
) -> tuple[float, int]:
    """From below, by the Lanczos process from a random vector, and the products spent, at most 64.

    With r the residual of the Ritz vector and g the distance to the next Ritz value, the error is
    about r^2 / g, and at most r (Parlett, The Symmetric Eigenvalue Problem, section 11.7); it is
    asked to be below `tolerance`, relative.
    """
    start = jnp.asarray(np.random.default_rng(0).standard_normal(len(like)), like.dtype)
    k, largest = 0, 0.0
    for ritz in _ritz(operator, start / jnp.linalg.norm(start), min(64, len(start))):
        k, values, residual = ritz.products, ritz.values, ritz.residuals[-1]
        largest, gap = max(values[-1], 0.0), values[-1] - values[-2] if k > 1 else 0.0
        if (
            ritz.exhausted
            or residual * min(1.0, residual / gap if gap > 0 else 1.0) <= tolerance * largest
        ):
            break
    return float(largest), k


class Preconditioner(NamedTuple):
    """U diag(lambda) U^T, a part of K of low rank: `apply` divides by it and leaves what is
    orthogonal to U alone.
    """

    vectors: Float[Array, "n r"]
    values: Float[Array, " r"]

    def apply(self, v: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        inner = jnp.matmul(self.vectors.T, v, precision=EXACT)
        change = (self.values[-1] / self.values - 1).reshape(-1, *[1] * (v.ndim - 1))
        return v + jnp.matmul(self.vectors, change * inner, precision=EXACT)


@jax.jit
def nystrom(columns: Float[Array, "n r"], chosen: Array) -> Preconditioner:
    """From r columns of K, those of the points `chosen` (r,): the eigenvectors of K_nr K_rr^-1
    K_rn.

    Source: Frangella, Tropp and Udell, Randomized Nystrom preconditioning (SIAM J. Matrix Anal.
    Appl. 2023), with columns for the random test matrix, which spares products with K.
    """
    block = columns[chosen]
    values, vectors = jnp.linalg.eigh((block + block.T) / 2)
    floor = (
        len(values)
        * jnp.finfo(columns.dtype).eps
        * jnp.maximum(values[-1], jnp.finfo(columns.dtype).tiny)
    )
    root = jnp.where(values > floor, 1 / jnp.sqrt(jnp.maximum(values, floor)), 0)
    factor = jnp.matmul(columns, vectors * root[None], precision=EXACT)
    # The columns that a cut-off eigenvalue leaves zero have singular value zero; they are given the
    # smallest one.
    u, s, _ = jnp.linalg.svd(factor, full_matrices=False)
    smallest = jnp.min(jnp.where(s > 1e-6 * s[0], s, jnp.inf))
    return Preconditioner(u, jnp.maximum(s, jnp.where(jnp.isfinite(smallest), smallest, 1)) ** 2)


@jax.jit
def conjugate_gradients(
    operator, preconditioner: Preconditioner, b: Array, tolerance: Array, most: Array
) -> tuple[Array, Array, Array]:
    """K^-1 b until |b - K x| <= tolerance |b|: the iterate of the smallest residual, that residual
    / |b|, products.

    b (n, k): every column by itself, products in common; the relative residuals are (k,), as may be
    the tolerance.
    """

    def dot(a, b):
        return jnp.einsum("n...,n...->...", a, b, precision=EXACT)

    def step(carry):
        x, residual, direction, product, size, count, best, best_size = carry
        active = size > goal  # a column that is done stays as it is
        image = operator(direction)
        curvature = dot(direction, image)
        descent = active & (curvature > 0)
        length = jnp.where(descent, product / jnp.where(descent, curvature, 1), 0)
        x, residual = x + length[None] * direction, residual - length[None] * image
        conditioned = preconditioner.apply(residual)
        new = dot(residual, conditioned)
        ratio = new / jnp.where(product > 0, product, 1)
        direction = conditioned + ratio[None] * direction
        # No descent left: stop.
        size = jnp.where(
            active, jnp.where(descent, jnp.linalg.norm(residual, axis=0), -jnp.inf), size
        )
        better = (size < best_size) & descent
        best = jnp.where(better[None], x, best)
        best_size = jnp.where(better, size, best_size)
        return x, residual, direction, new, size, count + 1, best, best_size

    def unfinished(carry):
        *_, size, count, _, _ = carry
        return (size > goal).any() & (count < most)

    norm = jnp.linalg.norm(b, axis=0)
    goal = tolerance * norm
    conditioned = preconditioner.apply(b)
    zero = jnp.zeros_like(b)
    start = dot(b, conditioned)
    carry = (zero, b, conditioned, start, norm, jnp.zeros((), int), zero, norm)
    *_, count, best, best_size = lax.while_loop(unfinished, step, carry)
    return best, best_size / jnp.where(norm > 0, norm, 1), count
