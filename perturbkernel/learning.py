"""The experiment of the paper as a function: train f, perturb its data, train g on nothing but the perturbations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from perturbkernel.checks import as_inputs, as_targets, check_choice, check_count, check_key
from perturbkernel.data import Dataset, from_arrays
from perturbkernel.diagnosis import Diagnosis, diagnose
from perturbkernel.kernels import Kernel, TwoLayerNTK
from perturbkernel.perturbations import Perturbation, check_options, cosine, normalise, perturb

SCENARIOS = ("a", "b")
TARGET_RULES = ("coin_flip", "balanced")
CONTROLS = ("unperturbed", "random", "shuffled")


class Pair(NamedTuple):
    """A number for the first and for the second network."""

    f: Array
    g: Array


def accuracy(outputs: Float[ArrayLike, "... m"], labels: Float[ArrayLike, " m"]) -> Float[Array, "..."]:
    """The share of points where the output has the sign of the label in {-1, +1}; an output of 0 counts one half.

    Several predictors' outputs at once, (..., m), give one share each.
    """
    return (1 + jnp.sign(outputs) * labels).mean(-1) / 2


def agreement(f: Float[ArrayLike, "... m"], g: Float[ArrayLike, " m"]) -> Float[Array, "..."]:
    """The share of points where two outputs have the same sign; an output of 0 counts one half."""
    return accuracy(f, jnp.sign(g))


def draw_targets(rule: str, n: int, *, key: PRNGKeyArray) -> Float[Array, " n"]:
    """Labels in {-1, +1}, (n,): "coin_flip", independent; "balanced", uniform among those with sum 0 (odd n: +-1)."""
    check_choice(rule, "targets", TARGET_RULES)
    check_key(key)
    if rule == "coin_flip":
        return jax.random.rademacher(key, (n,), jnp.result_type(float))
    order, sign = jax.random.split(key)
    alternating = jnp.where(jnp.arange(n) % 2 == 0, 1.0, -1.0)  # odd n: sum +1, whose sign is then drawn
    return jax.random.permutation(order, alternating) * (jax.random.rademacher(sign, (), float) if n % 2 else 1)


class PerturbationLearning(eqx.Module):
    """What `learn_from_perturbations` did; a pytree.

    Attributes:
        f, g: the two predictors.
        perturbation: `delta`, `targets`, `zero_gradient`.
        carrier: (n, ...), what the perturbations were added to: zero in scenario (a), the inputs in (b).
        cosine: (n,), the signed cosine of targets_n delta_n with the theory's direction
            v(x_n) = (1/N) sum_k y_k Phi(x_k, x_n) x_k; NaN where either is zero; None without a TwoLayerNTK.
        diagnosis: signal and random offset of g at the clean training points; None for learners without a kernel.
        train: the data set that f was trained on.
        options: size, norm, direction, bounds, balanced (whether the targets were).
    """

    f: Any
    g: Any
    perturbation: Perturbation
    carrier: Float[Array, "n ..."]
    cosine: Float[Array, " n"] | None
    diagnosis: Diagnosis | None
    train: Dataset
    learner_g: Callable
    options: dict[str, Any] = eqx.field(static=True)
    key: PRNGKeyArray
    g_key: PRNGKeyArray

    @property
    def perturbed(self) -> Float[Array, "n ..."]:
        """Carrier + delta: the inputs that g was trained on."""
        return self.carrier + self.perturbation.delta

    def accuracy(self, data: Dataset) -> Pair:
        """Accuracy of f and of g on clean data with its true labels."""
        return Pair(accuracy(self.f(data.inputs), data.targets), accuracy(self.g(data.inputs), data.targets))

    def agreement(self, z: Float[ArrayLike, "m ..."]) -> Array:
        """The share of points z at which f and g have the same sign."""
        return agreement(self.f(z), self.g(z))

    def diagnose(self, data: Dataset) -> Diagnosis:
        """The diagnosis at other labelled points than the training data."""
        if self.diagnosis is None:
            raise TypeError("a diagnosis needs a second learner with an infinite-width kernel (attribute `kernel`)")
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
        """The second learner trained on what should teach it nothing, a predictor; `draw` numbers independent ones.

        "unperturbed": the bare carrier with the same targets; "random": carrier plus random directions of the same
        sizes; "shuffled": the perturbed carrier with half of the targets, chosen at random, turned around, so that
        targets and perturbations are uncorrelated.
        """
        check_choice(name, "name", CONTROLS)
        noise_key, shuffle_key, learner_key = jax.random.split(jax.random.fold_in(self.key, draw), 3)
        delta, targets = self.perturbation.delta, self.perturbation.targets
        inputs = self.carrier
        if name == "random":
            # The norm that normalise() set to one: l2 lengths; a linf step has entries of one size.
            direction = jax.random.normal(noise_key, delta.shape, delta.dtype)
            length = jnp.linalg.norm(delta.reshape(len(delta), -1), axis=1)
            inputs = inputs + normalise(direction, "l2") * length.reshape(-1, *(1,) * (delta.ndim - 1))
        elif name == "shuffled":
            inputs, targets = inputs + delta, targets * draw_targets("balanced", len(targets), key=shuffle_key)
        return self.learner_g(inputs, targets, learner_key)

    def evaluate(
        self, test: Dataset | None = None, fresh: Float[ArrayLike, "m ..."] | None = None, control_draws: int = 1
    ) -> dict[str, Any]:
        """Every number of the experiment as one dictionary of floats.

        Args:
            test: clean data that neither network saw; adds accuracies "test", and agreement on its inputs.
            fresh: inputs for the agreement instead of the test inputs, new synthetic points for instance.
            control_draws: how many independent draws of each random control; a single one scatters widely, since even a
                random direction separates two classes somewhat, one way or the other.

        Returns:
            "accuracy": {"f", "g"} -> {"train", "test"}, always on clean data with true labels;
            "controls": each control -> {"train", "test"} -> accuracies, one a draw (unperturbed: one);
            "agreement": share of `fresh` (else test) points with equal signs, None without either;
            "cosine": {"mean", "min"} or None; "zero_gradients": a count; "diagnosis": means over the training points.
        """
        check_count(control_draws, "control_draws")
        sets = {"train": self.train} | ({} if test is None else {"test": test})
        if fresh is None and test is not None:
            fresh = test.inputs
        clean = jnp.concatenate([data.inputs for data in sets.values()])
        ends = np.cumsum([len(data) for data in sets.values()])[:-1]

        def accuracies(predictor) -> dict[str, float]:
            parts = jnp.split(predictor(clean), ends)
            return {name: float(accuracy(out, sets[name].targets)) for name, out in zip(sets, parts, strict=True)}

        def control(name) -> dict[str, list[float]]:
            draws = [
                accuracies(self.control(name, draw)) for draw in range(control_draws if name != "unperturbed" else 1)
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


def learn_from_perturbations(
    learner: Callable,
    train: Dataset | tuple[ArrayLike, ArrayLike],
    *,
    size: float,
    scenario: str | None = None,
    carrier: Float[ArrayLike, "n ..."] | None = None,
    targets: str | Float[ArrayLike, " n"] = "coin_flip",
    learner_g: Callable | None = None,
    norm: str = "l2",
    direction: str = "gradient",
    bounds: tuple[float, float] | None = None,
    progress: Callable[[str], None] | None = None,
    key: PRNGKeyArray,
) -> PerturbationLearning:
    """Trains f on clean data, perturbs every training point toward a random label, and trains g on the perturbations.

    delta_n = size target_n grad f(x_n) / |grad f(x_n)|; g learns carrier_n + delta_n with label target_n.

    Args:
        learner: (inputs, targets, key) -> predictor, `KernelLearner` for instance; trains f, and g unless `learner_g`.
        train: a Dataset, or a pair (inputs, targets).
        size: of each perturbation, in the units of the inputs.
        scenario: "a" (default), perturbations alone: carrier zero; "b", perturbed data: carrier = the inputs.
        carrier: (n, ...), to add the perturbations to anything else; then leave `scenario` out.
        targets: "coin_flip", "balanced" (sum zero; odd n: +-1), or an array of labels in {-1, +1}.
        learner_g: another learner for g: another kernel, loss, dynamics, or a finite network.
        norm, direction, bounds: as in `perturb`. Bounds clip x_n + delta_n.
        progress: called with the name of each stage as it begins.
        key: random key; the same key gives the same result.

    Raises:
        ValueError, TypeError: bad arguments, before any computation.

    In scenario (a) a trained bias adds an offset proportional to the sum of the targets that can drown the signal: see
    `diagnosis`, `targets="balanced"`, and `train_bias=False`. Source: Kumano, Kera, Yamasaki (NeurIPS 2024), Section 4.
    """
    data = train if isinstance(train, Dataset) else from_arrays(*train)
    x = data.inputs
    check_key(key)
    check_options(size, norm, direction, bounds)
    if carrier is not None and scenario is not None:
        raise ValueError("scenario and carrier exclude each other: a scenario names a carrier (a: zero, b: the inputs)")
    if carrier is None:
        scenario = "a" if scenario is None else scenario
        check_choice(scenario, "scenario", SCENARIOS)
        carrier = jnp.zeros_like(x) if scenario == "a" else x
    else:
        carrier = as_inputs(carrier, "carrier", like=x.shape[1:])
        if len(carrier) != len(x):
            raise ValueError(f"carrier must have one row a training point, {len(x)}; got {len(carrier)}")
    for name, value in (("learner", learner), ("learner_g", learner_g or learner)):
        if not callable(value):
            raise TypeError(f"{name} must be a function (inputs, targets, key) -> predictor; got {value!r}")
    targets_key, f_key, g_key, control_key = jax.random.split(key, 4)
    balanced = isinstance(targets, str) and targets == "balanced"
    if isinstance(targets, str):
        y_adv = draw_targets(targets, len(x), key=targets_key)
    else:
        y_adv = as_targets(targets, "targets", len(x))
    tell = progress or (lambda stage: None)

    tell("training f")
    f = learner(x, data.targets, f_key)
    tell("perturbing")
    p = perturb(f, x, y_adv, size=size, norm=norm, direction=direction, bounds=bounds)
    tell("training g")
    learner_g = learner if learner_g is None else learner_g
    g = learner_g(carrier + p.delta, y_adv, g_key)

    tell("comparing with the theory")
    kernel = getattr(learner, "kernel", None)
    along = None
    if isinstance(kernel, TwoLayerNTK):
        v = kernel.phi_matmul(x, x, data.targets[:, None] * x / len(x), mesh=getattr(learner, "mesh", None))
        along = cosine(y_adv[:, None] * p.delta, v)
    kernel_g = getattr(learner_g, "kernel", None)
    diagnosis = None
    if isinstance(kernel_g, Kernel):
        mesh = getattr(learner_g, "mesh", None)
        diagnosis = diagnose(kernel_g, carrier, p.delta, y_adv, x, data.targets, balanced=balanced, mesh=mesh)
    options = {"size": float(size), "norm": norm, "direction": direction, "bounds": bounds, "balanced": balanced}
    return PerturbationLearning(f, g, p, carrier, along, diagnosis, data, learner_g, options, control_key, g_key)
