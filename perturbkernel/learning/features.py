"""The features of a kernel: eigenvectors of its Gram matrix as predictors."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from perturbkernel.attacks.iterated import attack
from perturbkernel.checks import as_class_targets, as_targets, is_traced
from perturbkernel.display import Displayed, in_short
from perturbkernel.engine.memory import available_memory, fits
from perturbkernel.kernels.base import Kernel
from perturbkernel.metrics import accuracy, class_accuracy
from perturbkernel.training.precision import as_stored
from perturbkernel.training.predictors import KernelPredictor
from perturbkernel.training.smoother import in_float64

_ROUNDING = 1e-6  # of the values of a feature, relative: more than that is reported


class KernelFeatures(Displayed, eqx.Module):
    """Eigenvectors v_i of the Gram matrix at n points, the largest eigenvalue first, as functions.

    The feature phi_i(z) = K(z, X) v_i / lambda_i takes the values v_i at the points. Interpolation
    of targets y is sum_i <v_i, y> phi_i, and training for a time weighs the terms
    (theory: 1.2).

    Attributes:
        kernel, inputs, targets: K, X and y.
        eigenvalues: (r,), descending; those that are rounding are left out.
        vectors: (n, r), float64.
        coefficients: (r,), or (r, K) for K outputs: <v_i, y>.
    """

    kernel: Kernel
    inputs: Float[Array, "n ..."]
    targets: Float[Array, "n ..."]
    eigenvalues: np.ndarray
    vectors: np.ndarray
    coefficients: np.ndarray

    def _numbers(self) -> dict[str, Any]:
        return {
            "kernel": in_short(self.kernel),
            "points": len(self.inputs),
            "features": len(self),
            "eigenvalues": self.eigenvalues,
        }

    def __len__(self) -> int:
        return len(self.eigenvalues)

    def values(self, z: Float[ArrayLike, "m ..."]) -> Float[Array, "m r"]:
        """phi_i(z), (m, r)."""
        return jnp.asarray(self._values(z), jnp.result_type(float))

    def predictor(self, features: int | Sequence[int]) -> KernelPredictor:
        """The sum of <v_i, y> phi_i over the given features, as a predictor: to evaluate, to
        attack. It computes in float64, since coefficients of small eigenvalues cancel; `status`
        says where they cancel to fewer than six digits of that.
        """
        chosen = np.atleast_1d(np.asarray(features, int))
        vectors = self.vectors[:, chosen]
        values = self.eigenvalues[chosen]
        scaled = (self.coefficients[chosen].T / values).T
        dual = vectors @ scaled
        x = np.asarray(self.inputs, float)
        rounding = np.finfo(float).eps * self.eigenvalues[0] / values.min()
        status = "ok"
        if rounding > _ROUNDING:
            status = f"rounding: values of the smallest feature are off by about {rounding:.2g}"
        return KernelPredictor(self.kernel, as_stored(x), as_stored(dual), status=status)

    def accuracy(
        self, z: Float[ArrayLike, "m ..."], labels: Float[ArrayLike, " m"] | Int[ArrayLike, " m"]
    ) -> Float[Array, " r"]:
        """(r,): how useful each feature is: the accuracy at z of <v_i, y> phi_i alone.

        labels: in {-1, +1}, or class indices for K outputs.

        Example:
            >>> import perturbkernel as pk
            >>> x, kernel = [[2.0, 0.0], [0.0, 1.0]], pk.TwoLayerNTK(slope=1.0)
            >>> features = pk.kernel_features(kernel, x, [1, -1])
            >>> features.accuracy(x, [1, -1]).tolist()  # ties count one half
            [0.75, 0.75]
        """
        values = self._values(z)
        if self.coefficients.ndim == 1:
            outputs = (values * self.coefficients).T
            return accuracy(outputs, np.asarray(labels, float))
        labels = jnp.asarray(labels)
        outputs = values.T[:, :, None] * self.coefficients[:, None, :]
        return class_accuracy(jnp.asarray(outputs), labels)

    def accuracy_under_attack(
        self,
        z: Float[ArrayLike, "m ..."],
        labels: Float[ArrayLike, " m"] | Int[ArrayLike, " m"],
        *,
        features: Sequence[int],
        size: float,
        **options: Any,
    ) -> Float[Array, " k"]:
        """(k,): how robust the given features are: each one's accuracy after `pk.attack` on it,
        away from the labels.

        `options`: norm, steps, bounds, ... of `pk.attack`.

        Example:
            >>> import perturbkernel as pk
            >>> x, kernel = [[2.0, 0.0], [0.0, 1.0]], pk.TwoLayerNTK(slope=1.0)
            >>> features = pk.kernel_features(kernel, x, [1, -1])
            >>> attacked = {"features": [0], "size": 2.0, "steps": 1}
            >>> z = [[1.0, 0.0], [3.0, 0.0]]
            >>> features.accuracy_under_attack(z, [1, 1], **attacked).tolist()
            [0.5]
        """
        z = self.kernel.check_inputs(z, "z", like=self.inputs.shape[1:])
        found = []
        for feature in features:
            one = self.predictor(int(feature))
            delta = attack(one, z, labels, size=size, away=True, **options).delta
            outputs = one(z + delta)
            right = accuracy if outputs.ndim == 1 else class_accuracy
            found.append(right(outputs, jnp.asarray(labels)))
        return jnp.stack(found)

    def of_outputs(self, g: Any) -> Float[Array, " r"]:
        """(r,): the share of each feature in what g knows at the points, <v_i, g(X)>^2 / |g(X)|^2,
        added over outputs. They add up to 1, or less where some eigenvectors are left out.

        `g`: any function (n, ...) -> (n,) or (n, K), trained on perturbations say.

        Example:
            >>> import perturbkernel as pk
            >>> x, kernel = [[2.0, 0.0], [0.0, 1.0]], pk.TwoLayerNTK(slope=1.0)
            >>> features = pk.kernel_features(kernel, x, [1, -1])
            >>> features.of_outputs(lambda z: z @ jnp.asarray([1.0, 2.0])).tolist()
            [0.5, 0.5]
        """
        outputs = np.asarray(g(self.inputs), float)
        outputs = outputs.reshape(len(self.inputs), -1)
        along = self.vectors.T @ outputs
        squares = np.sum(along**2, axis=1)
        return self._shares(squares, np.sum(outputs**2))

    def of_change(
        self,
        f: KernelPredictor,
        z: Float[ArrayLike, "m ..."],
        delta: Float[ArrayLike, "m ..."],
    ) -> Float[Array, " r"]:
        """(r,): the share of each feature in what perturbations delta change in f.

        f, trained at these points with this kernel, is sum_i a_i lambda_i phi_i + f0, a_i = <v_i,
        dual_coef>; the share is the sum over rows and outputs of |change of the term i|, over the
        sum of these over all features.

        Example:
            >>> import perturbkernel as pk
            >>> x, kernel = [[2.0, 0.0], [0.0, 1.0]], pk.TwoLayerNTK(slope=1.0)
            >>> f, features = pk.fit(kernel, x, [1, -1]), pk.kernel_features(kernel, x, [1, -1])
            >>> features.of_change(f, [[1.0, 1.0]], [[0.1, 0.2]]).round(2).tolist()
            [0.5, 0.5]
        """
        z = self.kernel.check_inputs(z, "z", like=self.inputs.shape[1:])
        dual = np.asarray(f.dual_coef, float).reshape(len(self.inputs), -1)
        a = self.vectors.T @ dual
        scale = np.abs(a).sum(axis=1) * self.eigenvalues
        before = np.asarray(z, float)
        after = before + np.asarray(delta, float)
        moved = self._values(after) - self._values(before)
        change = np.abs(moved).sum(axis=0) * scale
        return self._shares(change, change.sum())

    def _shares(self, parts: np.ndarray, whole: float) -> Array:
        share = parts / (whole if whole > 0 else 1)
        return jnp.asarray(share, jnp.result_type(float))

    def _values(self, z: Any) -> np.ndarray:
        with jax.enable_x64(True):
            z = self.kernel.check_inputs(z, "z", like=self.inputs.shape[1:])
            kernel = self.kernel.ntk(in_float64(z), in_float64(self.inputs))
            along = np.asarray(kernel) @ self.vectors
            return along / self.eigenvalues


def kernel_features(
    kernel: Kernel, inputs: Float[ArrayLike, "n ..."], targets: Float[ArrayLike, "n ..."]
) -> KernelFeatures:
    """Computes the eigenvectors of a kernel's Gram matrix as features, and their share in the
    targets.

    Example:
        >>> import perturbkernel as pk
        >>> x = [[2.0, 0.0], [0.0, 1.0]]
        >>> features = kernel_features(pk.TwoLayerNTK(slope=1.0), x, [1, -1])
        >>> features.eigenvalues.tolist(), features.values([[1.0, 0.0]]).tolist()
        ([4.0, 1.0], [[0.5, 0.0]])
        >>> features.predictor([0, 1])([[1.0, 1.0]]).tolist()
        [-0.5]

    Args:
        kernel: any kernel.
        inputs: (n, ...).
        targets: (n,), -1 or +1, or (n, K) of `pk.one_hot(labels, K)`.

    Raises:
        ValueError: more points than four n x n matrices fit for.

    Cost: O(n^3), in float64. Signs are such that every v_i has a sum >= 0.

    Source: Tsilivis and Kempe, What Can the Neural Tangent Kernel Tell Us About Adversarial
    Robustness? (NeurIPS 2022).
    """
    x = kernel.check_inputs(inputs, "inputs")
    n = len(x)
    if np.ndim(targets) == 2:
        y = as_class_targets(targets, "targets", n)
    else:
        y = as_targets(targets, "targets", n, labels=True)
    if is_traced(x, y):
        raise TypeError("kernel_features cannot be traced; call it outside jit")
    if not fits(n, np.float64, available_memory(), copies=4):
        raise ValueError(
            f"the eigenvectors of {n:,} points take four {n} x {n} matrices, more than memory has"
        )
    with jax.enable_x64(True):
        values, vectors = jnp.linalg.eigh(kernel.ntk(in_float64(x)))
    # Largest first, without those that are rounding.
    rounding = n * np.finfo(float).eps
    values = np.asarray(values)[::-1]
    vectors = np.asarray(vectors)[:, ::-1]
    keep = values > rounding * values[0]
    values = values[keep]
    vectors = vectors[:, keep]
    signs = np.where(vectors.sum(axis=0) < 0, -1, 1)
    vectors = vectors * signs
    coefficients = vectors.T @ np.asarray(y, float)
    return KernelFeatures(kernel, x, y, values, vectors, coefficients)
