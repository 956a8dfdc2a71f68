"""The experiment of the paper as a function: train f, perturb its data, train g on nothing but the
perturbations.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from perturbkernel.attacks.norms import normalise
from perturbkernel.attacks.one_step import Perturbation, check_options, perturb
from perturbkernel.checks import as_inputs, as_targets, check_choice, check_count, check_key
from perturbkernel.data.arrays import from_arrays
from perturbkernel.data.dataset import Dataset
from perturbkernel.data.draws import draw_classes, draw_noise, draw_targets
from perturbkernel.data.labels import class_indices, encoded
from perturbkernel.kernels.base import Kernel
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.learning.diagnosis import Diagnosis, diagnose
from perturbkernel.metrics import class_agreement, class_means, cosine, share_right

SCENARIOS = ("a", "b")


CONTROLS = ("unperturbed", "random", "shuffled")


PLACES = ("data", "carrier")


class Pair(NamedTuple):
    """A number (or one for each class, (K,)) for the first and for the second network."""

    f: Array
    g: Array


class PerturbationLearning(eqx.Module):
    """What `learn_from_perturbations` did; a pytree.

    For K > 2 classes f and g have K outputs and decide by the largest; perturbation.targets are
    class indices; `cosine` and `diagnosis` are None, as the theory behind them is that of two
    classes.

    Attributes:
        f, g: the two predictors.
        perturbation: `delta`, `targets`, `zero_gradient`.
        carrier: (m, ...), what the perturbations were added to: zero in scenario (a), the inputs in
            (b).
        cosine: (m,), the signed cosine of targets_i delta_i with the theory's direction v(a_i) =
            (1/n) sum_k y_k Phi(x_k, a_i) x_k at the points `attacked`; NaN where either is zero;
            None without a TwoLayerNTK, and for K > 2 classes.
        diagnosis: signal and random offset of g at the clean training points; None for learners
            without a kernel, and for K > 2 classes.
        train: the data set that f was trained on.
        options: size, norm, direction, bounds, balanced (whether the targets were), at ("data" or
            "carrier").
    """

    f: Any
    g: Any
    perturbation: Perturbation
    carrier: Float[Array, "m ..."]
    cosine: Float[Array, " m"] | None
    diagnosis: Diagnosis | None
    train: Dataset
    learner_g: Callable
    options: dict[str, Any] = eqx.field(static=True)
    key: PRNGKeyArray
    g_key: PRNGKeyArray

    @property
    def attacked(self) -> Float[Array, "m ..."]:
        """The points at which f's gradient gave the perturbations: the training points, in turn, or
        the carrier.
        """
        return _attacked(self.train.inputs, self.carrier, self.options["at"])

    @property
    def perturbed(self) -> Float[Array, "m ..."]:
        """Carrier + delta: the inputs that g was trained on."""
        return self.carrier + self.perturbation.delta

    def accuracy(self, data: Dataset, *, per_class: bool = False) -> Pair:
        """Accuracy of f and of g on clean data with its true labels; `per_class`: of each class,
        (K,), NaN if empty.
        """
        self._check_classes(data)
        shares = (share_right(predictor(data.inputs), data) for predictor in (self.f, self.g))
        return Pair(*(class_means(share, data) if per_class else share.mean() for share in shares))

    def agreement(
        self, z: Float[ArrayLike, "m ..."] | Dataset, *, per_class: bool = False
    ) -> Array:
        """The share of points z at which f and g have the same sign, or decide for the same class.

        `per_class`: for the points of each true class, (K,); then z is a Dataset.
        """
        points = z.inputs if isinstance(z, Dataset) else z
        f, g = self.f(points), self.g(points)
        same = (
            class_agreement(f, g)
            if f.ndim == 2
            else (1 + jnp.sign(f) * jnp.sign(g).astype(f.dtype)) / 2
        )
        if not per_class:
            return same.mean()
        if not isinstance(z, Dataset):
            raise TypeError(f"z must be a Dataset for agreement per class; got {type(z).__name__}")
        self._check_classes(z)
        return class_means(same, z)

    def _check_classes(self, data: Dataset) -> None:
        if len(data.classes) != len(self.train.classes):
            raise ValueError(
                f"data must have the classes of the training data, {self.train.classes}; got {data!r}"
            )

    def diagnose(self, data: Dataset) -> Diagnosis:
        """The diagnosis at other labelled points than the training data."""
        if len(self.train.classes) > 2:
            raise TypeError(f"a diagnosis is for two classes; these are {len(self.train.classes)}")
        if self.diagnosis is None:
            raise TypeError(
                "a diagnosis needs a second learner with an infinite-width kernel (attribute `kernel`)"
            )
        kernel: Any = self.learner_g
        p = self.perturbation
        return diagnose(
            kernel.kernel,
            self.carrier,
            p.delta,
            p.targets,
            data.inputs,
            data.targets,
            balanced=self.options["balanced"],
            mesh=getattr(kernel, "mesh", None),
        )

    def control(self, name: str, draw: int = 0) -> Callable:
        """The second learner trained on what should teach it nothing, a predictor; `draw` numbers
        independent ones.

        "unperturbed": the bare carrier with the same targets; "random": carrier plus random
        directions of the same sizes; "shuffled": the perturbed carrier with half of the targets,
        chosen at random, turned around, so that targets and perturbations are uncorrelated (K
        classes: moved on by 0 to K - 1, each equally often).
        """
        check_choice(name, "name", CONTROLS)
        noise_key, shuffle_key, learner_key = jax.random.split(
            jax.random.fold_in(self.key, draw), 3
        )
        delta, targets = self.perturbation.delta, self.perturbation.targets
        inputs = self.carrier
        if name == "random":
            # The norm that normalise() set to one: l2 lengths; a linf step has entries of one size.
            direction = jax.random.normal(noise_key, delta.shape, delta.dtype)
            length = jnp.linalg.norm(delta.reshape(len(delta), -1), axis=1)
            inputs = inputs + normalise(direction, "l2") * length.reshape(
                -1, *(1,) * (delta.ndim - 1)
            )
        elif name == "shuffled":
            inputs, classes = inputs + delta, len(self.train.classes)
            if classes == 2:
                targets = targets * draw_targets("balanced", len(targets), key=shuffle_key).astype(
                    targets.dtype
                )
            else:
                shift = draw_classes("balanced", targets, classes, key=shuffle_key)
                targets = (targets + shift.astype(targets.dtype)) % classes
        return self.learner_g(inputs, encoded(targets, len(self.train.classes)), learner_key)

    def evaluate(
        self,
        test: Dataset | None = None,
        fresh: Float[ArrayLike, "m ..."] | None = None,
        control_draws: int = 1,
    ) -> dict[str, Any]:
        """Every number of the experiment as one dictionary of floats.

        Args:
            test: clean data that neither network saw; adds accuracies "test", and agreement on its
                inputs.
            fresh: inputs for the agreement instead of the test inputs, new synthetic points for
                instance.
            control_draws: how many independent draws of each random control; a single one scatters
                widely, since even a random direction separates two classes somewhat, one way or the
                other.

        Returns:
            "accuracy": {"f", "g"} -> {"train", "test"}, always on clean data with true labels;
            "controls": each control -> {"train", "test"} -> accuracies, one a draw (unperturbed:
            one); "agreement": share of `fresh` (else test) points with equal signs, None without
            either; "cosine": {"mean", "min"} or None; "zero_gradients": a count; "diagnosis": means
            over the training points.
        """
        check_count(control_draws, "control_draws")
        if test is not None:
            self._check_classes(test)
        sets = {"train": self.train} | ({} if test is None else {"test": test})
        if fresh is None and test is not None:
            fresh = test.inputs
        clean = jnp.concatenate([data.inputs for data in sets.values()])
        ends = np.cumsum([len(data) for data in sets.values()])[:-1]

        def accuracies(predictor) -> dict[str, float]:
            parts = jnp.split(predictor(clean), ends)
            return {
                name: float(share_right(out, sets[name]).mean())
                for name, out in zip(sets, parts, strict=True)
            }

        def control(name) -> dict[str, list[float]]:
            draws = [
                accuracies(self.control(name, draw))
                for draw in range(control_draws if name != "unperturbed" else 1)
            ]
            return {part: [draw[part] for draw in draws] for part in sets}

        return {
            "accuracy": {"f": accuracies(self.f), "g": accuracies(self.g)},
            "controls": {name: control(name) for name in CONTROLS},
            "agreement": None if fresh is None else float(self.agreement(fresh)),
            "cosine": None
            if self.cosine is None
            else {"mean": float(jnp.nanmean(self.cosine)), "min": float(jnp.nanmin(self.cosine))},
            "zero_gradients": int(self.perturbation.zero_gradient.sum()),
            "diagnosis": None
            if self.diagnosis is None
            else {
                "expected_accuracy": float(self.diagnosis.expected_accuracy),
                "signal_rms": float(jnp.sqrt((self.diagnosis.signal**2).mean())),
                "offset_rms": float(jnp.sqrt((self.diagnosis.offset**2).mean())),
                "offset_std_rms": float(jnp.sqrt((self.diagnosis.offset_std**2).mean())),
                "assumes": self.diagnosis.assumes,
            },
        }


def _attacked(x: Array, carrier: Array, at: str) -> Array:
    if at == "carrier":
        return carrier
    turns = len(carrier) // len(x)
    return x if turns == 1 else jnp.tile(x, (turns, *(1,) * (x.ndim - 1)))


def learn_from_perturbations(
    learner: Callable,
    train: Dataset | tuple[ArrayLike, ArrayLike],
    *,
    size: float,
    scenario: str | None = None,
    carrier: str | Float[ArrayLike, "m ..."] | None = None,
    carrier_points: int | None = None,
    at: str = "data",
    targets: str | Float[ArrayLike, " m"] | Int[ArrayLike, " m"] = "coin_flip",
    learner_g: Callable | None = None,
    norm: str = "l2",
    direction: str = "gradient",
    bounds: tuple[float, float] | None = None,
    progress: Callable[[str], None] | None = None,
    key: PRNGKeyArray,
) -> PerturbationLearning:
    """Trains f on clean data, perturbs every training point toward a random label, and trains g on
    the perturbations.

    delta_i = size target_i grad f(a_i) / |grad f(a_i)|; g learns carrier_i + delta_i with label
    target_i, i = 1 .. m. The attacked points a_i are the training points, m = n, or k n of them in
    k turns (`at="data"`); or the carrier itself (`at="carrier"`), any m. With K > 2 classes the
    step is toward class target_i as in `perturb`, and learners are given `one_hot` targets, (m, K).

    Args:
        learner: (inputs, targets, key) -> predictor, `KernelLearner` for instance; trains f, and g
            unless `learner_g`.
        train: a Dataset, or a pair (inputs, targets) of two classes.
        size: of each perturbation, in the units of the inputs.
        scenario: "a" (default), perturbations alone: carrier zero; "b", perturbed data: carrier =
            the inputs.
        carrier: (m, ...), to add the perturbations to anything else, images of another data set for
            instance; or "uniform" or "gaussian", noise on [-1, 1] or N(0, 1) (`draw_noise`). Then
            leave `scenario` out.
        carrier_points: m, for noise; n if left out.
        at: where f's gradient is taken. "data": at training point i mod n, and added to carrier i,
            so that m must be a multiple of n. "carrier": at carrier i, an adversarial example of
            the carrier (Kumano, Kera, Yamasaki, ICLR 2024, whose noise and images these are).
            `evaluate` puts g of the bare carriers beside either.
        targets: "coin_flip", "balanced" (sum zero; odd m: +-1), or an array of labels in {-1, +1},
            (m,). For K > 2 classes "coin_flip" (any class), "balanced" (equally often),
            "random_other" (any but the true one), "next" (the true one plus one, modulo K; both for
            `at="data"`), or class indices (`classes.draw_classes`).
        learner_g: another learner for g: another kernel, loss, dynamics, or a finite network.
        norm, direction, bounds: as in `perturb`. Bounds clip a_i + delta_i.
        progress: called with the name of each stage as it begins.
        key: random key; the same key gives the same result.

    Raises:
        ValueError, TypeError: bad arguments, before any computation.

    In scenario (a) a trained bias adds an offset proportional to the sum of the targets that can
    drown the signal: see `diagnosis`, `targets="balanced"`, and `train_bias=False`. Source: Kumano,
    Kera, Yamasaki (NeurIPS 2024), Section 4.
    """
    data = train if isinstance(train, Dataset) else from_arrays(*train)
    x, n = data.inputs, data.n
    check_key(key)
    check_options(size, norm, direction, bounds)
    check_choice(at, "at", PLACES)
    if carrier is None and at == "carrier":
        raise ValueError(
            'at="carrier" needs a carrier, an array or "uniform" or "gaussian"; got None'
        )
    if carrier is not None and scenario is not None:
        raise ValueError(
            "scenario and carrier exclude each other: a scenario names a carrier (a: zero, b: the inputs)"
        )
    if carrier_points is not None and not isinstance(carrier, str):
        raise ValueError(
            f'carrier_points is for noise, carrier="uniform" or "gaussian"; got {carrier_points}'
        )
    if carrier is None:
        scenario = "a" if scenario is None else scenario
        check_choice(scenario, "scenario", SCENARIOS)
        carrier = jnp.zeros_like(x) if scenario == "a" else x
    elif isinstance(carrier, str):
        m, noise_key = n if carrier_points is None else carrier_points, jax.random.fold_in(key, 1)
        carrier = draw_noise(carrier, m, x.shape[1:], x.dtype, key=noise_key)
    else:
        carrier = as_inputs(carrier, "carrier", like=x.shape[1:])
    if at == "data" and len(carrier) % n:
        raise ValueError(
            f"carrier must have one row a training point, {n}, or a multiple; got {len(carrier)}. Perturbed at the "
            f'carrier itself, at="carrier", it may have any number'
        )
    attacked, m = _attacked(x, carrier, at), len(carrier)
    for name, value in (("learner", learner), ("learner_g", learner_g or learner)):
        if not callable(value):
            raise TypeError(
                f"{name} must be a function (inputs, targets, key) -> predictor; got {value!r}"
            )
    targets_key, f_key, g_key, control_key = jax.random.split(key, 4)
    balanced = isinstance(targets, str) and targets == "balanced"
    classes = len(data.classes)
    if isinstance(targets, str) and classes == 2:
        y_adv = draw_targets(targets, m, key=targets_key)
    elif isinstance(targets, str):
        if at == "carrier" and targets in ("random_other", "next"):
            raise ValueError(
                f'targets="{targets}" needs a true class, which a carrier has not; got at="carrier"'
            )
        labels = jnp.resize(data.targets, (m,))
        y_adv = draw_classes(targets, labels, classes, key=targets_key)
    else:
        y_adv = (
            as_targets(targets, "targets", m)
            if classes == 2
            else class_indices(targets, "targets", m, classes)
        )
    if classes == 2:
        y_adv = y_adv.astype(x.dtype)
    tell = progress or (lambda stage: None)

    tell("training f")
    f = learner(x, encoded(data.targets, classes), f_key)
    tell("perturbing")
    p = perturb(f, attacked, y_adv, size=size, norm=norm, direction=direction, bounds=bounds)
    tell("training g")
    learner_g = learner if learner_g is None else learner_g
    g = learner_g(carrier + p.delta, encoded(y_adv, classes), g_key)

    tell("comparing with the theory")
    options: dict[str, Any] = {
        "size": float(size),
        "norm": norm,
        "direction": direction,
        "bounds": bounds,
    }
    options |= {"balanced": balanced, "at": at}
    if classes > 2:
        return PerturbationLearning(
            f, g, p, carrier, None, None, data, learner_g, options, control_key, g_key
        )
    kernel = getattr(learner, "kernel", None)
    along = None
    if isinstance(kernel, TwoLayerNTK):
        v = kernel.phi_matmul(
            attacked, x, data.targets[:, None] * x / len(x), mesh=getattr(learner, "mesh", None)
        )
        along = cosine(y_adv[:, None] * p.delta, v)
    kernel_g = getattr(learner_g, "kernel", None)
    diagnosis = None
    if isinstance(kernel_g, Kernel):
        mesh = getattr(learner_g, "mesh", None)
        diagnosis = diagnose(
            kernel_g, carrier, p.delta, y_adv, x, data.targets, balanced=balanced, mesh=mesh
        )
    return PerturbationLearning(
        f, g, p, carrier, along, diagnosis, data, learner_g, options, control_key, g_key
    )
