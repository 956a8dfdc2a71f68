"""Infinitely wide networks as scikit-learn estimators, for cross-validation, grid searches and
pipelines.

    from perturbkernel.sklearn import NTKClassifier

`import perturbkernel` does not import this module: scikit-learn is the extra
`perturbkernel[sklearn]`.
"""

import dataclasses
import warnings
from typing import Any, Self

import jax
import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "perturbkernel.sklearn needs scikit-learn: pip install 'perturbkernel[sklearn]', "
        "or pip install scikit-learn"
    ) from error

from perturbkernel.attacks.certificates import certified_size
from perturbkernel.attacks.one_step import perturb
from perturbkernel.attacks.robust_accuracy import RobustAccuracy, robust_accuracy
from perturbkernel.checks import check_choice
from perturbkernel.data.labels import one_hot
from perturbkernel.kernels.base import Kernel
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.training.dynamics import Dynamics, GradientFlow
from perturbkernel.training.fit import fit
from perturbkernel.training.losses import LOSSES, loss_names
from perturbkernel.training.predictors import KernelPredictor


def _losses() -> tuple[str, ...]:
    """Those for two classes that have a version for more."""
    return tuple(name for name in loss_names() if LOSSES[name].of_classes is not None)


_NESTED = ("kernel", "dynamics")  # parameters that have parameters


def _split(name: str) -> tuple[str, str] | None:
    """The two names in "kernel__slope"; None for a parameter that is not nested."""
    outer, _, inner = name.partition("__")
    return (outer, inner) if inner and outer in _NESTED else None


def _fields(value: Any) -> dict[str, Any]:
    """The arguments that a kernel or dynamics, which are dataclasses, was made of."""
    if not dataclasses.is_dataclass(value):
        return {}
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _replaced(name: str, value: Any, changes: dict[str, Any]) -> Any:
    """A kernel or dynamics with other arguments."""
    if value is None:
        first, *_ = changes
        raise ValueError(f"{name}__{first} needs a {name} to change; {name} is None")
    known = _fields(value)
    for field in changes:
        if field not in known:
            raise ValueError(
                f"{name}__{field} must name one of the parameters {list(known)} of {value!r}"
            )
    return dataclasses.replace(value, **changes)


class _NTKEstimator(BaseEstimator):
    """What both estimators share. They compute in float64, whatever JAX's setting, and leave that
    setting alone.
    """

    slope: float
    train_bias: bool
    kernel: Kernel | None
    time: float
    dynamics: Dynamics | None
    tolerance: float | None
    ridge: float
    predictor_: KernelPredictor

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters; if `deep`, those of kernel and dynamics too, as `kernel__slope` and
        `dynamics__time`.
        """
        params = super().get_params(deep)
        if deep:
            for name in _NESTED:
                fields = _fields(params[name])
                params |= {f"{name}__{field}": value for field, value in fields.items()}
        return params

    def set_params(self, **params: Any) -> Self:
        """Sets parameters, nested ones by a new kernel, new dynamics: the old are values, which
        others may share.
        """
        plain, nested = {}, {}
        for name, value in params.items():
            parts = _split(name)
            if parts is None:
                plain[name] = value
            else:
                nested[parts] = value
        super().set_params(**plain)
        for name in _NESTED:
            changes = {
                parameter: value for (outer, parameter), value in nested.items() if outer == name
            }
            if changes:
                setattr(self, name, _replaced(name, getattr(self, name), changes))
        return self

    def _train(self, inputs: Any, targets: Any, loss: str, sample_weight: Any) -> None:
        kernel = TwoLayerNTK(self.slope, self.train_bias) if self.kernel is None else self.kernel
        dynamics = GradientFlow(self.time) if self.dynamics is None else self.dynamics
        f = fit(
            kernel,
            inputs,
            targets,
            loss=loss,
            dynamics=dynamics,
            tolerance=self.tolerance,
            ridge=self.ridge,
            sample_weight=sample_weight,
        )
        if f.status != "ok":
            warnings.warn(f.status, ConvergenceWarning, stacklevel=3)
        self.predictor_ = f

    def _outputs(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        inputs: Any = validate_data(self, X, dtype=np.float64, reset=False)
        with jax.enable_x64(True):
            return np.array(self.predictor_(inputs))  # a copy: arrays of JAX are read-only


class NTKClassifier(ClassifierMixin, _NTKEstimator):
    """An infinitely wide network, trained in closed form, as a classifier of two or more classes.

    Two classes are trained on -1 and +1 with one output, K > 2 classes on e_y - 1/K with K outputs
    (`pk.one_hot`); the decision is the sign, the largest output. Everything is computed in float64.

    Example:
        >>> import numpy as np
        >>> X, y = np.asarray([[1.0, 0.0], [0.0, 2.0]]), np.asarray(["cat", "dog"])
        >>> classifier = NTKClassifier(loss="logistic").fit(X, y)
        >>> classifier.predict(X).tolist(), classifier.decision_function(X).shape
        (['cat', 'dog'], (2,))
        >>> classifier.predict_proba(X).argmax(1).tolist()
        [0, 1]
        >>> perturbed = classifier.perturb(X, ["dog", "cat"], size=0.1)
        >>> perturbed.shape, classifier.certified_size(X, y).shape
        ((2, 2), (2,))
        >>> options = {"sizes": (0.1,), "norms": ("l2",), "attack": "apgd"}
        >>> classifier.robust_accuracy(X, y, **options).accuracy.tolist()
        [[1.0, 1.0]]

    Args:
        slope, train_bias: of the two-layer network, see `pk.TwoLayerNTK`. Biases are trained here
            by default.
        kernel: any other kernel on (n, d) inputs, `pk.ArchitectureNTK` say, instead of the
            two-layer network.
        loss: "squared", "logistic" (the cross-entropy of K classes for K > 2) or "identity".
        time: of gradient flow, learning rate x steps. A short time regularises; infinite, with the
            squared loss, is interpolation.
        dynamics: `pk.HeavyBall(learning_rate, steps, momentum)` in place of gradient flow for
            `time`.
        tolerance: see `pk.fit`.
        ridge: penalty on the function's norm, see `pk.fit`; with one, `time` may be infinite for
            every loss. The squared loss is then kernel ridge regression with alpha = n ridge.

    Parameters of `kernel` and `dynamics` can be searched by name: `kernel__slope`,
    `dynamics__learning_rate`.

    Attributes:
        predictor_: the `pk.KernelPredictor`, a JAX function for `jit`, `vmap` and `grad`. It
            computes in float64, and returns float32 where x64 is not enabled.
        classes_: (K,), sorted. Of two, the first is -1.
        n_features_in_: d.

    `fit` warns (ConvergenceWarning) where `predictor_.status` is not "ok", and raises ValueError
    for one class alone and for what `pk.fit` does not take. Memory and time: those of `pk.fit`,
    O(n^2) and O(n^3).
    """

    def __init__(
        self,
        *,
        slope=0.0,
        train_bias=True,
        kernel=None,
        loss="squared",
        time=100.0,
        dynamics=None,
        tolerance=None,
        ridge=0.0,
    ):
        self.ridge = ridge
        self.slope = slope
        self.train_bias = train_bias
        self.kernel = kernel
        self.loss = loss
        self.time = time
        self.dynamics = dynamics
        self.tolerance = tolerance

    def fit(self, X, y, sample_weight=None) -> "NTKClassifier":
        """Trains on X (n, d) and labels y (n,) of any type; NumPy, JAX, lists or data frames.

        `sample_weight`: (n,), >= 0, see `pk.fit`.
        """
        check_choice(self.loss, "loss", _losses())
        inputs, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        if len(self.classes_) == 1:
            raise ValueError(f"y must have at least two classes; got one class, {self.classes_[0]}")
        several = len(self.classes_) > 2
        with jax.enable_x64(True):
            targets = one_hot(indices, len(self.classes_)) if several else 2.0 * indices - 1
            loss = LOSSES[self.loss].of_classes if several else self.loss
            assert loss is not None
            self._train(inputs, targets, loss, sample_weight)
        return self

    def decision_function(self, X) -> np.ndarray:
        """The outputs of the network, (m,) for two classes, positive for the second; or (m, K)."""
        return self._outputs(X)

    def predict(self, X) -> np.ndarray:
        """The classes (m,) that the network decides for."""
        outputs = self.decision_function(X)
        if outputs.ndim == 2:
            return self.classes_[outputs.argmax(1)]
        return self.classes_[(outputs > 0).astype(int)]

    @available_if(lambda self: self.loss in _losses() and LOSSES[self.loss].of_classes == "softmax")
    def predict_proba(self, X) -> np.ndarray:
        """Probabilities (m, K): the logistic function or the softmax of the outputs. Only for
        loss="logistic".
        """
        outputs = self.decision_function(X)
        if outputs.ndim == 1:
            outputs = np.stack([np.zeros_like(outputs), outputs], axis=1)
        with jax.enable_x64(True):
            return np.array(jax.nn.softmax(outputs, axis=1))

    def perturb(self, X, y, *, size: float, norm: str = "l2") -> np.ndarray:
        """One adversarial step of length `size` from every row of X toward the class y_n: X +
        delta, (n, d).

        See `pk.perturb`, which takes `predictor_` as well and has more options. Raises ValueError
        for a y that is none of `classes_`.
        """
        inputs, targets = self._labelled(X, y)
        with jax.enable_x64(True):
            return inputs + np.asarray(
                perturb(self.predictor_, inputs, targets, size=size, norm=norm).delta
            )

    def certified_size(self, X, y, *, norm: str = "l2") -> np.ndarray:
        """(n,), sizes within which no perturbation of a row of X changes the class predicted, 0
        where it is not y_n.

        See `pk.certified_size`, which takes `predictor_` as well. Of the two-layer network alone:
        raises TypeError for another `kernel`, ValueError for a y that is none of `classes_`.
        """
        inputs, targets = self._labelled(X, y)
        return certified_size(self.predictor_, inputs, targets, norm=norm).size

    def robust_accuracy(self, X, y, *, sizes, seed: int = 0, **options: Any) -> RobustAccuracy:
        """Accuracy on X, y under attack, for every size and norm: a `pk.RobustAccuracy`.

        `options` are those of `pk.robust_accuracy` (norms, attack, bounds, steps, starts); `seed`
        is of its random starts. Raises ValueError for a y that is none of `classes_`.
        """
        inputs, targets = self._labelled(X, y)
        with jax.enable_x64(True):
            key = jax.random.key(seed)
            options = {"sizes": sizes, "key": key, **options}
            found = robust_accuracy(self.predictor_, inputs, targets, **options)
        return dataclasses.replace(found, targets=np.asarray(y))

    def _labelled(self, X: Any, y: Any) -> tuple[Any, Any]:
        """Checked inputs and the targets that the predictor knows."""
        check_is_fitted(self)
        inputs: Any = validate_data(self, X, dtype=np.float64, reset=False)
        y = np.asarray(y)
        unknown = y[~np.isin(y, self.classes_)]
        if unknown.size:
            raise ValueError(f"y must be among the classes {self.classes_}; found {unknown[0]}")
        indices = np.searchsorted(self.classes_, y)
        return inputs, indices if len(self.classes_) > 2 else 2.0 * indices - 1


class NTKRegressor(RegressorMixin, MultiOutputMixin, _NTKEstimator):
    """An infinitely wide network, trained in closed form on the squared loss, for one target or
    several.

    Outputs are not centred: with `train_bias=False` they vanish at x = 0. Everything is computed in
    float64.

    Example:
        >>> import numpy as np
        >>> X, y = np.asarray([[1.0, 0.0], [0.0, 2.0]]), np.asarray([0.5, 3.0])
        >>> NTKRegressor(time=np.inf).fit(X, y).predict(X).round(3).tolist()
        [0.5, 3.0]

    Args:
        slope, train_bias, kernel, time, dynamics, tolerance, ridge: as of `NTKClassifier`.

    Attributes:
        predictor_: the `pk.KernelPredictor`, as of `NTKClassifier`.
        n_features_in_: d.

    `fit` warns (ConvergenceWarning) where `predictor_.status` is not "ok", and raises ValueError
    for what `pk.fit` does not take. Memory and time: those of `pk.fit`, O(n^2) and O(n^3).
    """

    def __init__(
        self,
        *,
        slope=0.0,
        train_bias=True,
        kernel=None,
        time=100.0,
        dynamics=None,
        tolerance=None,
        ridge=0.0,
    ):
        self.ridge = ridge
        self.slope = slope
        self.train_bias = train_bias
        self.kernel = kernel
        self.time = time
        self.dynamics = dynamics
        self.tolerance = tolerance

    def fit(self, X, y, sample_weight=None) -> "NTKRegressor":
        """Trains on X (n, d) and targets y (n,) or (n, k); NumPy, JAX, lists or data frames.

        `sample_weight`: (n,), >= 0, see `pk.fit`.
        """
        inputs, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        y = np.asarray(y, float)
        self._column = y.ndim == 2 and y.shape[1] == 1
        with jax.enable_x64(True):
            self._train(inputs, y.ravel() if self._column else y, "squared", sample_weight)
        return self

    def predict(self, X) -> np.ndarray:
        """Outputs (m,) or (m, k), shaped as the targets were."""
        outputs = self._outputs(X)
        return outputs[:, None] if self._column else outputs
