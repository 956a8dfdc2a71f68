"""What single training points do: leverage, degrees of freedom, leave-one-out (theory: 17.2)."""

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
from perturbkernel.training.smoother import apply_training, in_float64, training_of


class Smoother(Displayed, eqx.Module):
    """Training as a linear map of the targets, at the training points.

    Attributes:
        predictor: f, to which it belongs.
        operator: q(K), (n, n) in float64: f(z) = f0(z) + K(z, X) q(K) (y - f0(X)).
        status: "ok", or in words what was met, a singular K.
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
        outputs = np.asarray(self.predictor(self.predictor.inputs), float)
        weights = np.diagonal(np.asarray(self.weights, float))
        return self._rounded(outputs - self._moved(outputs, weights, self.predictor.inputs, True))

    def influence(self, z: Float[ArrayLike, "m ..."]) -> Float[Array, "m n ..."]:
        """(m, n) or (m, n, K): f(z_j) minus the output there of f trained without point n, exactly.

        Infinite time: w_n(z) alpha_n / q(K)_nn with alpha = q(K) (y - f0(X)). Identity loss, whose
        mean is then over n - 1 points: (n w_n(z) y_n - f(z) + f0(z)) / (n - 1).

        Example:
            >>> import perturbkernel as pk
            >>> f = pk.fit(pk.TwoLayerNTK(slope=1.0), [[1.0, 0.0], [0.0, 2.0]], [1, -1])
            >>> pk.smoother(f).influence([[1.0, 0.0]]).tolist()
            [[0.5, -0.5]]

        Raises:
            ValueError: the squared loss at a finite time, where what training makes of the other
                points is no function of these weights, or a ridge or weights of points: train
                without the point instead, by `fit`; a singular K; one training point; targets that
                f does not hold (identity loss).
        """
        f = self.predictor
        z = f.kernel.check_inputs(z, "z", like=f.inputs.shape[1:])
        weights = self._kernel(z) @ self.operator
        outputs = np.asarray(f(z), float)
        return self._rounded(self._moved(outputs, weights, z, False))

    def _moved(self, outputs: np.ndarray, weights: np.ndarray, z: Array, paired: bool) -> Any:
        """f(z) minus what it is without a point: row n without point n if `paired`, and then
        weights are w_n(x_n), (n,); otherwise every row without every point.
        """
        f = self.predictor
        training = training_of(f, "what a point does")
        if training.ridge or training.weights is not None:
            raise ValueError(
                "what f is without a point has no closed form with a ridge or weights of points, "
                "whose means are over all of them: fit it without the point"
            )
        if len(self.operator) < 2:
            raise ValueError("f must have been trained on two or more points to be without one")
        if training.constant:
            return self._moved_identity(outputs, weights, z, paired)
        if not np.isinf(training.dynamics.effective_time):
            raise ValueError(
                "what f is without a point has no closed form in its weights for the squared loss "
                "at a finite time: fit it without the point, or at GradientFlow(np.inf)"
            )
        if self.status != "ok":
            raise ValueError(f"what f is without a point is not determined: {self.status}")
        with jax.enable_x64(True):
            dual = np.asarray(self.operator @ self._residual())
        shape = (len(self.operator), *(1,) * (dual.ndim - 1))
        per_point = dual / np.diagonal(self.operator).reshape(shape)
        if paired:
            return weights.reshape(shape) * per_point
        return weights.reshape(*weights.shape, *shape[1:]) * per_point

    def _moved_identity(
        self, outputs: np.ndarray, weights: np.ndarray, z: Array, paired: bool
    ) -> np.ndarray:
        f = self.predictor
        y = self._targets()
        n = len(y)
        trained = outputs if f.initial is None else outputs - self._initial(z)
        if not paired:
            trained = trained[:, None]
        extra = weights.reshape(*weights.shape, *(1,) * (y.ndim - 1)) * y
        return (n * extra - trained) / (n - 1)

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
    status = "ok"
    if "singular" in found.status:
        status = found.status
    return Smoother(f, np.asarray(found.dual_coef, float), status)
