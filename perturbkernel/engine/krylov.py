"""Functions of a large symmetric matrix K, applied to a vector by products alone.

`lanczos` gives q(K) b, `largest_eigenvalue` lambda_max, and `conjugate_gradients` K^-1 b, with the
preconditioner that `nystrom` makes.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.arrays import or_one
from perturbkernel.engine.tiles import EXACT, exact_matmul

_CHUNK = 16  # Lanczos steps between two looks at the error
_LARGEST_STEPS = 64  # products for the largest eigenvalue, at most


class Answer(NamedTuple):
    """A vector (n,), its estimated relative error, the number of products spent, and the
    approximate eigenvalues that were met, with zeros after them.
    """

    value: Float[Array, " n"]
    error: float
    products: int
    eigenvalues: Float[np.ndarray, " most"]

    @property
    def lambda_max(self) -> float:
        return float(self.eigenvalues.max())


def lanczos(
    operator: Callable,
    b: Float[Array, " n"],
    function: Callable,
    tolerance: float,
    most: int = 512,
) -> Answer:
    """q(K) b for a function q of eigenvalues, by the Lanczos process with full reorthogonalisation.

    With V (n, k) an orthonormal basis of b, K b, ..., K^(k-1) b and T = V^T K V, the answer is

        |b| V q(T) e_1,

    exact for polynomials of degree k - 1, and for k = n. The error is estimated by the change over
    the last 16 steps, relative, in the answer and in K times it, whichever is larger. `function`
    takes eigenvalues (`most`,), zeros at the end. Stops at `tolerance`, or after `most` products.

    Source: Golub and Van Loan, Matrix Computations, sections 10.1 and 9.1; the basis takes n x most
    numbers.
    """
    most = min(most, len(b))
    norm = float(jnp.linalg.norm(b))
    if norm == 0:
        return Answer(
            value=jnp.zeros_like(b),
            error=0.0,
            products=0,
            eigenvalues=np.zeros(most),
        )
    eigenvalues = np.zeros(most)
    coordinates = np.zeros(most)  # of the answer / |b|, in the basis
    error, ritz = np.inf, None
    for ritz in _ritz(operator, b / norm, most):
        k = ritz.products
        eigenvalues[:k] = np.maximum(ritz.values, 0)
        filtered = np.asarray(function(eigenvalues))
        of_start = ritz.vectors[0]
        new = ritz.vectors @ (filtered[:k] * of_start)
        error = _change(ritz, coordinates[:k], new)
        coordinates[:k] = new
        if error <= tolerance:
            break
    assert ritz is not None
    weights = jnp.asarray(coordinates, b.dtype)
    value = norm * exact_matmul(weights, ritz.basis[:most])
    return Answer(value, float(error), ritz.products, eigenvalues)


class _Ritz(NamedTuple):
    """The Lanczos process so far, with its Ritz vectors u = basis^T vectors."""

    products: int
    basis: Float[Array, "rows n"]
    values: Float[np.ndarray, " k"]  # ascending
    vectors: Float[np.ndarray, "k k"]
    residuals: Float[np.ndarray, " k"]  # |K u - value u|
    exhausted: bool  # the values are eigenvalues


def _change(ritz: _Ritz, last: np.ndarray, new: np.ndarray) -> float:
    """The relative change of the answer's coordinates, or of those of K times it, if larger."""
    if ritz.exhausted:
        return 0.0  # exact

    def image(coordinates):
        return ritz.values * (ritz.vectors.T @ coordinates)

    change = new - last
    in_answer = _relative(change, new)
    in_image = _relative(image(change), image(new))
    return max(in_answer, in_image)


def _relative(change: np.ndarray, whole: np.ndarray) -> float:
    size = np.linalg.norm(whole)
    if size == 0:
        return 0.0
    return float(np.linalg.norm(change) / size)


def _ritz(
    operator: Callable,
    start: Float[Array, " n"],
    most: int,
) -> Iterator[_Ritz]:
    """The Lanczos process from a vector of length one, after every 16 of at most `most` <= n
    products.
    """
    basis = jnp.zeros((most + 1, len(start)), start.dtype)
    basis = basis.at[0].set(start)
    diagonal = np.zeros(most)
    off_diagonal = np.zeros(most)
    for begin in range(0, most, _CHUNK):
        end = min(begin + _CHUNK, most)
        new = slice(begin, end)
        found = _extend(operator, basis, np.int32(begin), np.int32(end))
        basis = found.rows
        diagonal[new] = np.asarray(found.diagonal)[new]
        off_diagonal[new] = np.asarray(found.off_diagonal)[new]
        ritz = _decomposed(basis, diagonal[:end], off_diagonal[:end])
        yield ritz
        if ritz.exhausted:
            return


def _decomposed(
    basis: Float[Array, "rows n"],
    diagonal: Float[np.ndarray, " k"],
    off_diagonal: Float[np.ndarray, " k"],
) -> _Ritz:
    """The Ritz values and vectors of a tridiagonal matrix.

    The last entry off the diagonal is the length of what is new in K times the last row, and
    belongs to a row below the matrix.
    """
    k = len(diagonal)
    _, n = basis.shape
    beside, new = off_diagonal[:-1], off_diagonal[-1]
    matrix = np.diag(diagonal)
    matrix += np.diag(beside, 1)
    matrix += np.diag(beside, -1)
    values, vectors = np.linalg.eigh(matrix)
    largest = max(values[-1], np.finfo(float).tiny)
    return _Ritz(
        products=k,
        basis=basis,
        values=values,
        vectors=vectors,
        residuals=abs(new * vectors[-1]),
        exhausted=k == n or new <= 1e-14 * largest,
    )


class _Basis(NamedTuple):
    """What `_extend` carries from step to step: rows, and the entries of the matrix V^T K V."""

    rows: Array
    diagonal: Array
    off_diagonal: Array


@jax.jit
def _extend(
    operator,
    basis: Array,
    start: Array,
    stop: Array,
) -> _Basis:
    """Rows start + 1 to stop of the basis, and the entries of the tridiagonal matrix that belong to
    them.
    """

    def step(k, carry: _Basis) -> _Basis:
        rows = carry.rows
        w = operator(rows[k])
        size = jnp.linalg.norm(w)
        diagonal = jnp.dot(rows[k], w, precision=EXACT)
        for _ in range(2):  # twice is enough
            coordinates = exact_matmul(rows, w)
            w = w - exact_matmul(coordinates, rows)
        norm = jnp.linalg.norm(w)
        # What rounding leaves of a space that is exhausted is no new direction.
        rounding = 8 * jnp.finfo(w.dtype).eps
        is_new = norm > rounding * size
        norm = jnp.where(is_new, norm, 0)
        divisor = or_one(norm)
        direction = w / divisor
        new = jnp.where(norm > 0, direction, 0)
        return _Basis(
            rows.at[k + 1].set(new),
            carry.diagonal.at[k].set(diagonal),
            carry.off_diagonal.at[k].set(norm),
        )

    zero = jnp.zeros(basis.shape[0] - 1, basis.dtype)
    return lax.fori_loop(start, stop, step, _Basis(basis, zero, zero))


def largest_eigenvalue(
    operator: Callable,
    like: Float[Array, " n"],
    tolerance: float = 1e-8,
) -> tuple[float, int]:
    """The largest eigenvalue, from below, and the number of products spent, at most 64.

    By the Lanczos process from a random vector. With r the residual of the Ritz vector and g the
    distance to the next Ritz value, the error is about r^2 / g, and at most r (Parlett, The
    Symmetric Eigenvalue Problem, section 11.7); it is asked to be below `tolerance`, relative.
    """
    rng = np.random.default_rng(0)
    start = jnp.asarray(rng.standard_normal(len(like)), like.dtype)
    start = start / jnp.linalg.norm(start)
    products, largest = 0, 0.0
    for ritz in _ritz(operator, start, min(_LARGEST_STEPS, len(like))):
        products = ritz.products
        largest = max(ritz.values[-1], 0.0)
        if ritz.exhausted or _error_of_largest(ritz) <= tolerance * largest:
            break
    return float(largest), products


def _error_of_largest(ritz: _Ritz) -> float:
    residual = ritz.residuals[-1]
    if len(ritz.values) == 1:
        return residual
    gap = ritz.values[-1] - ritz.values[-2]
    if gap <= 0:
        return residual
    return residual * min(1.0, residual / gap)


class Preconditioner(NamedTuple):
    """U diag(lambda) U^T, a part of K of low rank: `apply` divides by it and leaves what is
    orthogonal to U alone.
    """

    vectors: Float[Array, "n r"]
    values: Float[Array, " r"]

    def apply(self, v: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        inner = exact_matmul(self.vectors.T, v)
        change = self.values[-1] / self.values - 1
        # One for each row of `inner`, whatever the axes of v.
        columns = [1] * (v.ndim - 1)
        change = change.reshape(-1, *columns)
        return v + exact_matmul(self.vectors, change * inner)


@jax.jit
def nystrom(
    columns: Float[Array, "n r"],
    chosen: Array,
) -> Preconditioner:
    """The eigenvectors and eigenvalues of K_nr K_rr^-1 K_rn, from r columns of K, those of the
    points `chosen` (r,).

    Source: Frangella, Tropp and Udell, Randomized Nystrom preconditioning (SIAM J. Matrix Anal.
    Appl. 2023), with columns for the random test matrix, which spares products with K.
    """
    block = columns[chosen]
    block = (block + block.T) / 2
    values, vectors = jnp.linalg.eigh(block)
    limits = jnp.finfo(columns.dtype)
    largest = jnp.maximum(values[-1], limits.tiny)
    floor = len(values) * limits.eps * largest
    above = jnp.maximum(values, floor)
    inverse_root = 1 / jnp.sqrt(above)
    inverse_root = jnp.where(values > floor, inverse_root, 0)
    factor = exact_matmul(columns, vectors * inverse_root[None])
    # The columns that a cut-off eigenvalue leaves zero have singular value zero; they are given the
    # smallest of the others.
    u, s, _ = jnp.linalg.svd(factor, full_matrices=False)
    significant = s > 1e-6 * s[0]
    smallest = jnp.min(jnp.where(significant, s, jnp.inf))
    found = jnp.isfinite(smallest)
    smallest = jnp.where(found, smallest, 1)
    s = jnp.maximum(s, smallest)
    return Preconditioner(u, s**2)


class _Descent(NamedTuple):
    """The iteration of conjugate gradients; where b has k columns, sizes and products are (k,)."""

    x: Array
    residual: Array
    direction: Array
    product: Array  # <residual, preconditioned residual>
    size: Array  # |residual|; -inf where there is no descent left
    count: Array  # of products with K
    best: Array  # the iterate of the smallest residual
    best_size: Array


@jax.jit
def conjugate_gradients(
    operator,
    preconditioner: Preconditioner,
    b: Array,
    tolerance: Array,
    most: Array,
) -> tuple[Array, Array, Array]:
    """K^-1 b until |b - K x| <= tolerance |b|: the iterate of the smallest residual, that residual
    / |b|, and the number of products.

    For b (n, k), every column by itself, with products in common; the relative residuals are (k,),
    as the tolerance may be.
    """

    def dot(a, b):
        return jnp.einsum("n...,n...->...", a, b, precision=EXACT)

    def step(now: _Descent) -> _Descent:
        active = now.size > goal  # a column that is done stays as it is
        image = operator(now.direction)
        curvature = dot(now.direction, image)
        descent = active & (curvature > 0)
        divisor = jnp.where(descent, curvature, 1)
        length = jnp.where(descent, now.product / divisor, 0)
        x = now.x + length[None] * now.direction
        residual = now.residual - length[None] * image
        conditioned = preconditioner.apply(residual)
        product = dot(residual, conditioned)
        divisor = or_one(now.product)
        ratio = product / divisor
        direction = conditioned + ratio[None] * now.direction
        # No descent left: stop.
        new_size = jnp.linalg.norm(residual, axis=0)
        new_size = jnp.where(descent, new_size, -jnp.inf)
        size = jnp.where(active, new_size, now.size)
        better = (size < now.best_size) & descent
        return _Descent(
            x=x,
            residual=residual,
            direction=direction,
            product=product,
            size=size,
            count=now.count + 1,
            best=jnp.where(better[None], x, now.best),
            best_size=jnp.where(better, size, now.best_size),
        )

    def unfinished(now: _Descent) -> Array:
        active = now.size > goal
        return active.any() & (now.count < most)

    norm = jnp.linalg.norm(b, axis=0)
    goal = tolerance * norm
    conditioned = preconditioner.apply(b)
    zero = jnp.zeros_like(b)
    start = _Descent(
        x=zero,
        residual=b,
        direction=conditioned,
        product=dot(b, conditioned),
        size=norm,
        count=jnp.zeros((), int),
        best=zero,
        best_size=norm,
    )
    end = lax.while_loop(unfinished, step, start)
    relative = end.best_size / or_one(norm)
    return end.best, relative, end.count
