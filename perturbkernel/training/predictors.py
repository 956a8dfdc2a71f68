"""Trained infinite-width networks: `fit` trains one in closed form, a `KernelPredictor` evaluates
it.
"""

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float

from perturbkernel.arrays import as_jax, on_host
from perturbkernel.checks import as_float, common_dtype, is_traced
from perturbkernel.display import Displayed, in_short
from perturbkernel.kernels.base import Kernel
from perturbkernel.kernels.empirical import EmpiricalNTK
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.training import precision as precisions
from perturbkernel.training import saving
from perturbkernel.training.dynamics import from_numbers
from perturbkernel.training.initial_function import Gaussian, trained_covariance
from perturbkernel.training.precision import KeepsPrecision, is_wider, scope, to_ambient
from perturbkernel.training.pullbacks import as_pytree, input_gradient, value_and_pullback
from perturbkernel.training.smoother import smoother_weights, training_of


class KernelPredictor(Displayed, KeepsPrecision):
    """f(z) = f0(z) + sum_n dual_coef_n K(x_n, z): an infinitely wide network after training.

    A network of K outputs has K columns of coefficients and one kernel. A pytree: pass it through
    `jit`, differentiate it, `vmap` it. Evaluation is tiled, so memory does not grow with the number
    of queries times training points.

    Inputs and coefficients that are float64 (`fit(..., precision=64)`, or trained where x64 was
    enabled) are evaluated in float64 wherever the predictor goes: to a file, into a pickle, under
    `jit`, whether or not x64 is enabled there. Outputs are float32 where it is not.

    Example:
        >>> import perturbkernel as pk
        >>> f = pk.fit(pk.TwoLayerNTK(slope=1.0), [[1.0, 0.0], [0.0, 2.0]], [1, -1])
        >>> z = [[1.0, 1.0]]
        >>> f(z).tolist(), f.input_gradient(z).tolist(), f.frozen_gate_gradient(z).tolist()
        ([-0.5], [[0.5, -1.0]], [[0.5, -1.0]])
        >>> round(float(f.distribution(z).std[0]), 3), bool(f.gradient_rounding(z)[0] < 1e-4)
        (1.414, True)

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
        targets: what it was trained on, (n,) or (n, K). None: not known.
        loss, dynamics, ridge, sample_weight: how it was trained, dynamics as the numbers they were
            made of, weights (n,) of mean one or None for equal ones; `distribution` asks. loss
            None, dynamics (): not known.
    """

    kernel: Kernel
    inputs: Float[Array, "n ..."]
    dual_coef: Float[Array, "n ..."]
    initial: Callable[..., Any] | None = None
    status: str = eqx.field(static=True, default="ok")
    stats: dict[str, Any] = eqx.field(default_factory=dict)
    mesh: Mesh | None = eqx.field(static=True, default=None)
    loss: str | None = eqx.field(static=True, default=None)
    dynamics: tuple = ()
    targets: Float[Array, "n ..."] | None = None
    ridge: float | Array = 0.0
    sample_weight: Float[Array, " n"] | None = None

    # As for any function: `jax.jit(f)` hashes f, and arrays have no hash.
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]
    __eq__ = object.__eq__  # pyright: ignore[reportAssignmentType]

    def _numbers(self) -> dict[str, Any]:
        n, *shape = self.inputs.shape
        trained = from_numbers(self.dynamics) if self.dynamics else "unknown"
        return {
            "kernel": in_short(self.kernel),
            "training points": f"{n:,} of shape {tuple(shape)}",
            "outputs": self.num_outputs or 1,
            "training": f"{self.loss} loss, {trained!r}",
            "status": self.status,
        }

    @property
    def num_outputs(self) -> int | None:
        """K, the number of outputs; None for a single one, of shape (m,)."""
        return self.dual_coef.shape[1] if self.dual_coef.ndim == 2 else None

    def __call__(
        self, z: Float[ArrayLike, "m ..."], *, progress: Any = None
    ) -> Float[Array, "m ..."]:
        """Outputs (m,), or (m, K), at queries z (m, ...).

        Differentiable in forward and in reverse mode, any number of times, and finite at training
        points, too. There a kernel with a cone, that of a ReLU network, has an infinite second
        derivative; by convention the point's own term counts with its finite part, for TwoLayerNTK
        0, as if its gate were frozen. Near a point it grows as 1 / theta, the angle between them.

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
        before, _ = value_and_pullback(self.initial, to_ambient(z), "initial", self.num_outputs)
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
        """(m,): a gradient shorter than this is rounding error, because its terms cancel (at
        conflicting duplicates, for instance).
        """
        z = self._queries(z)
        weights = self._weights(z, weights)
        with scope(self.dual_coef):
            bound = self._gradient_bound(self._matched(z), weights)
            bound = on_host(bound)
            # Nothing is known of the rounding of an initial function.
            each = 0.0
            if self.initial is None:
                each = 8 * float(jnp.finfo(bound.dtype).eps)
            rounding = as_jax(each * bound)
        return to_ambient(rounding)

    def _gradient_bound(self, z: Array, weights: Array | None) -> Array:
        """(m,): the gradient, were all its terms of one direction."""
        if weights is None:
            z, x, coef = on_host(z, self.inputs, self.dual_coef)
            return as_jax(self.kernel.gradient_bound(z, x, abs(coef)))
        size = jnp.abs(self.dual_coef)
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

        Cost, squared loss: O(n^3 + n^2 m), and n x n matrices, in float64. Warns, in the words of a
        status, where the covariance is not exact: K is singular, or its solver stopped early.

        Raises:
            ValueError: another loss, whose outputs are not Gaussian; a predictor that was trained
                from an initial function of its own (`initial`), or that does not say how it was
                trained.
        """
        training = training_of(self, "the distribution")
        if self.initial is not None:
            raise ValueError(
                "the distribution over random initial functions needs a predictor trained without "
                "initial"
            )
        z = self._queries(z)
        mean = self(z)
        covariance, status = trained_covariance(self.kernel, self.inputs, z, training)
        _warn_of(status)
        return Gaussian(mean, covariance.astype(mean.dtype))

    def weights(self, z: Float[ArrayLike, "m ..."]) -> Float[Array, "m n"]:
        """(m, n): how f(z) depends on the targets, f(z) = b(z) + sum_n w_n(z) y_n, exactly.

        w(z) = K(z, X) q(K), with q of the dynamics, and b(z) what training makes of f0: 0 without
        it. Also the derivative of f(z) in y_n; of K outputs each has these weights. The identity
        and the squared loss, any dynamics, outside `jit` only (theory: 17.2).

        Cost, squared loss: O(n^3 + n^2 m) up to 10,000 points, where memory has four n x n
        matrices; beyond, hundreds of products with K for every row of z. Warns, in the words of a
        status, where the weights are not exact: K is singular, or the products ended above the
        tolerance.

        Example:
            >>> import perturbkernel as pk
            >>> f = pk.fit(pk.TwoLayerNTK(slope=1.0), [[1.0], [2.0]], [1, -1])
            >>> f.weights([[3.0]]).tolist(), f([[3.0]]).tolist()
            ([[1.5, 3.0]], [-1.5])

        Raises:
            ValueError: another loss, whose outputs are not linear in the targets.
        """
        training = training_of(self, "the smoother")
        z = self._queries(z)
        if is_traced(z, self.inputs, self.dual_coef):
            raise TypeError("weights cannot be traced; call it outside jit")
        weights, status = smoother_weights(self.kernel, self.inputs, z, training)
        _warn_of(status)
        with scope(self.dual_coef):
            rounded = weights.astype(self.dual_coef.dtype)
        return to_ambient(rounded)

    def parameters(self) -> Any:
        """The parameters with which the linearised network equals this predictor: params + sum_n
        dual_coef_n J(x_n). For an EmpiricalNTK.

        With `initial` the network itself, ``pk.linearize(apply, params)``, f(z) = apply(params, z)
        + <J(z), parameters - params>. Without, that less apply(params, z). Raises TypeError for
        another kernel, and for several outputs.

        Example:
            >>> import jax.numpy as jnp, perturbkernel as pk
            >>> kernel = pk.EmpiricalNTK(lambda p, x: x @ p, jnp.array([1.0, 2.0]))
            >>> pk.fit(kernel, [[1.0, 0.0], [0.0, 2.0]], [1, -1]).parameters().tolist()
            [1.5, 1.0]
        """
        if not isinstance(self.kernel, EmpiricalNTK):
            raise TypeError(
                f"parameters belong to EmpiricalNTK; this predictor's kernel is {self.kernel!r}"
            )
        with scope(self.dual_coef):
            return self.kernel.moved(self.inputs, self.dual_coef)

    def _queries(self, z) -> Array:
        if z is self.inputs:
            return z
        with scope(self.dual_coef):
            return self.kernel.check_inputs(z, "z", like=self.inputs.shape[1:])

    def _matched(self, z: Array) -> Array:
        """`z` as wide as inputs and coefficients; within their `scope`."""
        widest = common_dtype(z, self.dual_coef)
        return z if z is self.inputs or z.dtype == widest else z.astype(widest)

    def _weights(self, z: Array, weights: Any) -> Array | None:
        """`weights` as (m, K), or None for a single output."""
        if weights is not None:
            weights = as_float(weights, "weights")
        found = None if weights is None else weights.shape
        wanted, said = None, "left out for a single output"
        if self.num_outputs is not None:
            wanted = (len(z), self.num_outputs)
            said = f"of shape {wanted}"
        if found != wanted:
            raise ValueError(
                f"weights must be {said}, the combination of outputs that is differentiated at "
                f"each row of z; got {found}"
            )
        return weights

    def _with_initial_gradient(self, z: Array, gradient: Array, weights: Array | None) -> Array:
        if self.initial is None:
            return gradient
        return _sum(gradient, input_gradient(self.initial, to_ambient(z), weights))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one .npz file, whole or not at all. It does not hold an initial function, nor a
        kernel that is a network; pass these to `load` again.

        Example:
            >>> import tempfile, perturbkernel as pk
            >>> f = pk.fit(pk.TwoLayerNTK(slope=1.0), [[1.0, 0.0], [0.0, 2.0]], [1, -1])
            >>> path = tempfile.mkdtemp() + "/f.npz"
            >>> f.save(path)
            >>> pk.KernelPredictor.load(path)([[1.0, 1.0]]).tolist()
            [-0.5]
        """
        contents = saving.Saved(
            self.kernel,
            self.inputs,
            self.dual_coef,
            self.status,
            self.stats,
            self.loss,
            self.dynamics,
            self.targets,
            float(self.ridge),
            self.sample_weight,
        )
        saving.write(path, contents, self.initial)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        kernel: Kernel | None = None,
        initial: Callable[..., Any] | None = None,
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
            as_pytree(initial),
            saved.status,
            saved.stats,
            loss=saved.loss,
            dynamics=saved.dynamics,
            targets=saved.targets,
            ridge=saved.ridge,
            sample_weight=saved.sample_weight,
        )


def _warn_of(status: str) -> None:
    """For a method whose result has no status; where the method is called."""
    if status != "ok":
        # Methods of Equinox's modules have a frame of their own between them and the caller.
        warnings.warn(status, stacklevel=4)


def _sum(a: Array, b: Array) -> Array:
    dtype = common_dtype(a, b)
    return a.astype(dtype) + b.astype(dtype)
