"""What single training points do: leverage, degrees of freedom, leave-one-out (theory: 17.2)."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from perturbkernel.checks import is_traced
from perturbkernel.display import Displayed
from perturbkernel.engine.memory import available_memory, fits
from perturbkernel.training.predictors import KernelPredictor
from perturbkernel.training.smoother import (
    Training,
    apply_training,
    in_float64,
    training_of,
)


class Smoother(Displayed, eqx.Module):
    """Training as a linear map of the targets, at the training points.

    Attributes:
        predictor: f, to which it belongs.
        operator: q(K), (n, n) in float64: f(z) = f0(z) + K(z, X) q(K) (y - f0(X)).
        status: "ok", or in words what the solver met: a singular K, steps that amplify rounding,
            products that ended above the tolerance (beyond 10,000 points).
    """

    predictor: KernelPredictor
    operator: np.ndarray
    status: str = eqx.field(static=True, default="ok")

    def _numbers(self) -> dict[str, Any]:
        return {
            "training points": len(self.operator),
            "degrees of freedom": self.degrees_of_freedom,
            "leverage": self.leverage,
            "status": self.status,
        }

    @cached_property
    def weights(self) -> Float[Array, "n n"]:
        """H = K q(K), (n, n): row j has the weights of the targets in f(x_j).

        Example:
            >>> import perturbkernel as pk
            >>> f = pk.fit(pk.TwoLayerNTK(slope=1.0), [[1.0, 0.0], [0.0, 2.0]], [1, -1])
            >>> pk.smoother(f).weights.tolist()
            [[0.5, 0.0], [0.0, 2.0]]
        """
        return self._rounded(self._kernel(self.predictor.inputs) @ self.operator)

    @property
    def leverage(self) -> Float[Array, " n"]:
        """(n,): H_nn, how much f(x_n) moves with its own target."""
        return jnp.diagonal(self.weights)

    @property
    def degrees_of_freedom(self) -> float:
        """The trace of H: as many targets training fits, 0 at time 0 and n at infinite time under
        the squared loss.
        """
        return float(jnp.sum(self.leverage))

    @property
    def leave_one_out(self) -> Float[Array, "n ..."]:
        """(n,) or (n, K): the output at x_n of f trained without point n, exactly.

        Raises as `influence` does.
        """
        x = self.predictor.inputs
        kernel = self._kernel(x)
        moved = [np.einsum("nj,jn->n", kernel, change) for change in self._changes()]
        outputs = np.asarray(self.predictor(x), float)
        return self._rounded(outputs - self._as_outputs(moved))

    def influence(self, z: Float[ArrayLike, "m ..."]) -> Float[Array, "m n ..."]:
        """(m, n) or (m, n, K): f(z_j) minus the output there of f trained without point n, exactly.

        Infinite time, without a ridge: w_n(z) alpha_n / q(K)_nn with alpha = q(K) (y - f0(X)).
        Identity loss, whose mean is then over n - 1 points: (n w_n(z) y_n - f(z) + f0(z)) / (n -
        1). With a ridge and weights of points as `fit` takes them for the others.

        Example:
            >>> import perturbkernel as pk
            >>> f = pk.fit(pk.TwoLayerNTK(slope=1.0), [[1.0, 0.0], [0.0, 2.0]], [1, -1])
            >>> pk.smoother(f).influence([[1.0, 0.0]]).tolist()
            [[0.5, -0.5]]

        Raises:
            ValueError: the squared loss at a finite time, where what training makes of the other
                points is no function of these weights: train without the point instead, by `fit`; a
                singular K; one training point (of positive weight); targets that f does not hold
                (identity loss).
        """
        f = self.predictor
        z = f.kernel.check_inputs(z, "z", like=f.inputs.shape[1:])
        kernel = self._kernel(z)
        moved = [kernel @ change for change in self._changes()]
        return self._rounded(self._as_outputs(moved))

    def _as_outputs(self, columns: list[np.ndarray]) -> np.ndarray:
        """One array an output, as the last axis of one where f has K."""
        if self.predictor.num_outputs is None:
            return columns[0]
        return np.stack(columns, axis=-1)

    def _changes(self) -> Iterator[np.ndarray]:
        """For every output (n, n): column n has the coefficients of f minus those without point
        n.
        """
        training = training_of(self.predictor, "what a point does")
        n = len(self.operator)
        weights = np.ones(n)
        if training.weights is not None:
            weights = np.asarray(training.weights, float)
        if np.count_nonzero(weights) < 2:
            raise ValueError("f must have been trained on two or more points to be without one")
        if not training.constant:
            yield from self._squared_changes(weights, training)
            return
        coefficients = self.operator @ self._targets().reshape(n, -1)
        for alpha in coefficients.T:
            change = -np.outer(alpha, weights / (n - weights))
            np.fill_diagonal(change, alpha)
            yield change

    def _squared_changes(self, weights: np.ndarray, training: Training) -> Iterator[np.ndarray]:
        """At infinite time, from the eigenvectors of D K D, D = diag(sqrt(weights))."""
        if not np.isinf(training.dynamics.effective_time):
            raise ValueError(
                "what f is without a point has no closed form in its weights for the squared loss "
                "at a finite time: fit it without the point, or at GradientFlow(np.inf)"
            )
        if self.status != "ok":
            raise ValueError(f"what f is without a point is not determined: {self.status}")
        n, trained = len(weights), weights > 0
        weights = weights[trained]
        root = np.sqrt(weights)
        kernel = self._kernel(self.predictor.inputs)[np.ix_(trained, trained)]
        eigenvalues, vectors = np.linalg.eigh(root[:, None] * kernel * root)
        # The mean over the others divides by n - w_n, so that their ridge weighs less.
        shifts = training.ridge * (n - weights)
        inverse = 1 / (eigenvalues[:, None] + shifts)
        leverage = np.einsum("nk,nk,kn->n", vectors, vectors, inverse)
        for residual in self._residual().reshape(n, -1)[trained].T:
            along = vectors.T @ (root * residual)
            left = np.einsum("nk,k,kn->n", vectors, along, inverse) / leverage
            weighed = along / (eigenvalues + n * training.ridge)
            parts = vectors.T * left - training.ridge * np.outer(weighed, weights)
            change = np.zeros((n, n))
            coefficients = root[:, None] * (vectors @ (parts * inverse))
            change[np.ix_(trained, trained)] = coefficients
            yield change

    def _targets(self) -> np.ndarray:
        targets = self.predictor.targets
        if targets is None:
            raise ValueError(
                "f does not hold the targets that it was trained on (an older file?): fit it again"
            )
        return np.asarray(targets, float)

    def _residual(self) -> np.ndarray:
        """y - f0(X)."""
        y = self._targets()
        return y if self.predictor.initial is None else y - self._initial(self.predictor.inputs)

    def _initial(self, z: Array) -> np.ndarray:
        f = self.predictor
        assert f.initial is not None
        columns = () if f.num_outputs is None else (f.num_outputs,)
        return np.asarray(f.initial(z), float).reshape(len(z), *columns)

    def _kernel(self, z: Array) -> np.ndarray:
        """K(z, X) in float64."""
        f = self.predictor
        with jax.enable_x64(True):
            return np.asarray(f.kernel.ntk(in_float64(z), in_float64(f.inputs)))

    def _rounded(self, array: np.ndarray) -> Array:
        dtype = jnp.result_type(float)
        return jnp.asarray(np.asarray(array), dtype)


def smoother(f: KernelPredictor) -> Smoother:
    """Computes how f depends on its training targets and points: weights, leverage, degrees of
    freedom, and the exact outputs of f trained without a point.

    For every dynamics of the identity and the squared loss; what f is without a point for the
    identity loss, and for the squared loss at infinite time. The weights anywhere are
    `f.weights(z)`, with no n x n inverse beyond 10,000 points.

    Example:
        >>> import perturbkernel as pk
        >>> x, flow = [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], pk.GradientFlow(np.inf)
        >>> f = pk.fit(pk.TwoLayerNTK(), x, [1, -1, 1], loss="squared", dynamics=flow)
        >>> s = smoother(f)
        >>> round(s.degrees_of_freedom, 3)
        3.0
        >>> without = pk.fit(pk.TwoLayerNTK(), x[1:], [-1, 1], loss="squared", dynamics=flow)
        >>> bool(jnp.allclose(s.leave_one_out[0], without(x[:1])[0], atol=1e-5))
        True

    Raises:
        ValueError: another loss; more points than n x n matrices fit for.

    Cost: O(n^3), four n x n matrices. Theory: 17.2.
    """
    if not isinstance(f, KernelPredictor):
        raise TypeError(f"f must be a KernelPredictor, as `fit` returns it; got {f!r}")
    training = training_of(f, "the smoother")
    if is_traced(f.inputs, f.dual_coef):
        raise TypeError("smoother cannot be traced; call it outside jit")
    n = len(f.inputs)
    if not fits(n, np.float64, available_memory(), copies=4):
        raise ValueError(
            f"the smoother of {n:,} training points takes four {n} x {n} matrices, more than "
            f"memory has; f.weights(z) has some of its rows"
        )
    found = apply_training(f.kernel, f.inputs, np.eye(n), training)
    return Smoother(f, np.asarray(found.dual_coef, float), found.status)
