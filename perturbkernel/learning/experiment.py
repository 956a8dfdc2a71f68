"""The experiment of the paper as a function.

Train f, perturb its data, train g on nothing but the perturbations.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from perturbkernel._moved import renamed
from perturbkernel.arrays import as_jax, on_host
from perturbkernel.attacks.one_step import Perturbation, check_options, perturb
from perturbkernel.checks import as_inputs, as_targets, check_choice, check_key
from perturbkernel.data.arrays import from_arrays
from perturbkernel.data.dataset import Dataset
from perturbkernel.data.draws import draw_classes, draw_noise, draw_targets, split_keys
from perturbkernel.data.labels import class_indices, encoded
from perturbkernel.kernels.base import Kernel
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.learning.diagnosis import Diagnosis, diagnose
from perturbkernel.learning.results import CONTROLS as CONTROLS
from perturbkernel.learning.results import Pair as Pair
from perturbkernel.learning.results import PerturbationLearning as PerturbationLearning
from perturbkernel.learning.results import added, attacked_points, check_classes
from perturbkernel.metrics import cosine

SCENARIOS = ("a", "b")
PLACES = ("data", "carrier")


@renamed(progress="on_stage")
def learn_from_perturbations(
    learner: Callable[..., Any],
    train: Dataset | tuple[ArrayLike, ArrayLike],
    *,
    size: float,
    scenario: str | None = None,
    carrier: str | Float[ArrayLike, "m ..."] | None = None,
    carrier_points: int | None = None,
    at: str = "data",
    targets: str | Float[ArrayLike, " m"] | Int[ArrayLike, " m"] = "coin_flip",
    learner_g: Callable[..., Any] | None = None,
    norm: str = "l2",
    direction: str = "gradient",
    bounds: tuple[float, float] | None = None,
    test: Dataset | None = None,
    on_stage: Callable[[str], None] | None = None,
    key: PRNGKeyArray,
) -> PerturbationLearning:
    """Trains f on clean data, perturbs it toward random labels, trains g on the perturbations.

        delta_i = size target_i grad f(a_i) / |grad f(a_i)|

    g learns carrier_i + delta_i with label target_i, i = 1 .. m. The attacked points a_i are the
    training points, m = n, or k n of them in k turns (`at="data"`); or the carrier itself
    (`at="carrier"`), any m. With K > 2 classes the step is toward class target_i as in `perturb`,
    and learners are given `one_hot` targets, (m, K).

    Example:
        >>> import jax, perturbkernel as pk
        >>> train = pk.data.Dataset([[2.0, 0.0], [0.0, 1.0]], [1, -1])
        >>> learner = pk.KernelLearner(pk.TwoLayerNTK())
        >>> r = pk.learn_from_perturbations(
        ...     learner, train, size=1.0, targets=[1, -1], key=jax.random.key(0)
        ... )
        >>> r.accuracy(train).g.tolist(), r.agreement(train).tolist()
        (1.0, 1.0)
        >>> print(r.table())
        network  train
        f        1.000
        g        1.000
        >>> unperturbed = r.control("unperturbed")  # trained on zeros alone
        >>> unperturbed(train.inputs).tolist(), r.evaluate()["cosine"]["mean"]
        ([0.0, 0.0], 1.0)
        >>> float(r.diagnose(train).expected_accuracy)
        1.0

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
            `at="data"`), or class indices (`data.draw_classes`).
        learner_g: another learner for g: another kernel, loss, dynamics, or a finite network.
        norm, direction, bounds: as in `perturb`. Bounds clip a_i + delta_i.
        test: clean data that neither network sees, on which the result is then shown: `print(r)`,
            `r.accuracy()`, `r.report(folder)`.
        on_stage: called with the name of each stage as it begins.
        key: random key; the same key gives the same result.

    Raises:
        ValueError, TypeError: bad arguments, before any computation.

    In scenario (a) a trained bias adds an offset proportional to the sum of the targets that can
    drown the signal: see `diagnosis`, `targets="balanced"`, and `train_bias=False`. Source: Kumano,
    Kera, Yamasaki (NeurIPS 2024), Section 4.
    """
    data = train if isinstance(train, Dataset) else from_arrays(*train)
    if test is not None:
        check_classes(test, data)
    learner_g = learner if learner_g is None else learner_g
    check_key(key)
    check_options(size, norm, direction, bounds)
    check_choice(at, "at", PLACES)
    _check_choices(scenario, carrier, carrier_points, at)
    named = _named(scenario, carrier)
    carrier = _carrier(data, scenario, carrier, carrier_points, key)
    _check_turns(carrier, data, at)
    _check_learners(learner, learner_g)
    targets_key, f_key, g_key, control_key = split_keys(key, 4)
    y_adv = _targets(targets, data, len(carrier), at, targets_key)

    tell = on_stage or (lambda stage: None)
    classes = len(data.classes)
    attacked = attacked_points(data.inputs, carrier, at)
    tell("training f")
    f = learner(data.inputs, encoded(data.targets, classes), f_key)
    tell("perturbing")
    p = perturb(f, attacked, y_adv, size=size, norm=norm, direction=direction, bounds=bounds)
    tell("training g")
    g = learner_g(added(carrier, p.delta), encoded(y_adv, classes), g_key)

    tell("comparing with the theory")
    options: dict[str, Any] = {
        "size": float(size),
        "norm": norm,
        "direction": direction,
        "bounds": bounds,
        "balanced": isinstance(targets, str) and targets == "balanced",
        "at": at,
        "carrier": named,
        "targets": targets if isinstance(targets, str) else "given",
    }
    two = classes == 2
    diagnosis = None
    if two:
        diagnosis = _diagnosis(learner_g, data, carrier, p, f, g, options["balanced"])
    return PerturbationLearning(
        f=f,
        g=g,
        perturbation=p,
        carrier=carrier,
        cosine=_cosine(learner, data, attacked, p) if two else None,
        diagnosis=diagnosis,
        train=data,
        test=test,
        learner_g=learner_g,
        options=options,
        key=control_key,
        g_key=g_key,
    )


def _check_choices(scenario, carrier, carrier_points, at: str) -> None:
    """Raises where one choice excludes another."""
    if carrier is None and at == "carrier":
        raise ValueError(
            'at="carrier" needs a carrier, an array or "uniform" or "gaussian"; got None'
        )
    if carrier is not None and scenario is not None:
        raise ValueError(
            "scenario and carrier exclude each other: a scenario names a carrier (a: zero, b: the "
            "inputs)"
        )
    if carrier_points is not None and not isinstance(carrier, str):
        raise ValueError(
            f'carrier_points is for noise, carrier="uniform" or "gaussian"; got {carrier_points}'
        )


def _named(scenario, carrier) -> str:
    """What the perturbations are added to, in words."""
    if carrier is None:
        return f"scenario ({'a' if scenario is None else scenario})"
    return f"carrier {carrier}" if isinstance(carrier, str) else "a carrier that was given"


def _carrier(data: Dataset, scenario, carrier, carrier_points: int | None, key) -> Array:
    """What the perturbations are added to, (m, ...)."""
    x = data.inputs
    if carrier is None:
        scenario = "a" if scenario is None else scenario
        check_choice(scenario, "scenario", SCENARIOS)
        return as_jax(np.zeros(x.shape, x.dtype)) if scenario == "a" else x
    if isinstance(carrier, str):
        m = data.n if carrier_points is None else carrier_points
        noise_key = jax.random.fold_in(key, 1)
        return draw_noise(carrier, m, x.shape[1:], x.dtype, key=noise_key)
    return as_inputs(carrier, "carrier", like=x.shape[1:])


def _check_turns(carrier: Array, data: Dataset, at: str) -> None:
    """Raises unless training points in turn fill the carrier."""
    if at == "data" and len(carrier) % data.n:
        raise ValueError(
            f"carrier must have one row a training point, {data.n}, or a multiple; "
            f"got {len(carrier)}. Perturbed at the carrier itself, "
            'at="carrier", it may have any number'
        )


def _check_learners(learner, learner_g) -> None:
    for name, value in (("learner", learner), ("learner_g", learner_g)):
        if not callable(value):
            raise TypeError(
                f"{name} must be a function (inputs, targets, key) -> predictor; got {value!r}"
            )


def _targets(targets, data: Dataset, m: int, at: str, key) -> Array:
    """The labels of the perturbations, (m,): drawn by a rule, or checked.

    Signs in the dtype of the inputs for two classes, else class indices.
    """
    classes = len(data.classes)
    if classes == 2:
        drawn = isinstance(targets, str)
        signs = draw_targets(targets, m, key=key) if drawn else as_targets(targets, "targets", m)
        return signs.astype(data.inputs.dtype)
    if not isinstance(targets, str):
        return class_indices(targets, "targets", m, classes)
    if at == "carrier" and targets in ("random_other", "next"):
        raise ValueError(
            f'targets="{targets}" needs a true class, which a carrier has not; got at="carrier"'
        )
    labels = jnp.resize(data.targets, (m,))
    return draw_classes(targets, labels, classes, key=key)


def _cosine(learner, data: Dataset, attacked: Array, p: Perturbation) -> Array | None:
    """The cosine of the perturbations with the theory's direction v, (m,), where there is one."""
    kernel = getattr(learner, "kernel", None)
    if not isinstance(kernel, TwoLayerNTK):
        return None
    x = data.inputs
    targets, inputs, adversarial, delta = on_host(data.targets, x, p.targets, p.delta)
    weighted = as_jax(targets[:, None] * inputs / len(x))
    v = kernel.phi_matmul(attacked, x, weighted, mesh=getattr(learner, "mesh", None))
    return cosine(as_jax(adversarial[:, None] * delta), v)


def _diagnosis(
    learner_g, data: Dataset, carrier: Array, p: Perturbation, f, g, balanced: bool
) -> Diagnosis | None:
    """Signal and offset of g at the training points, where its learner has a kernel."""
    kernel = getattr(learner_g, "kernel", None)
    if not isinstance(kernel, Kernel):
        return None
    return diagnose(
        kernel,
        carrier,
        p.delta,
        p.targets,
        data.inputs,
        data.targets,
        balanced=balanced,
        mesh=getattr(learner_g, "mesh", None),
        f=f,
        g=g,
    )
