"""What an experiment found: both predictors, the perturbations, and what they say of each other."""

import html
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from perturbkernel.arrays import as_jax, namespace, on_host
from perturbkernel.attacks.norms import normalise
from perturbkernel.attacks.one_step import Perturbation
from perturbkernel.checks import check_choice, check_count
from perturbkernel.data.dataset import Dataset
from perturbkernel.data.draws import draw_classes, draw_targets
from perturbkernel.data.labels import encoded
from perturbkernel.display import Table, has_values, html_table, number
from perturbkernel.learning.diagnosis import Diagnosis, diagnose
from perturbkernel.learning.summaries import cosine_numbers, diagnosis_numbers
from perturbkernel.metrics import class_agreement, class_means, share_right

CONTROLS = ("unperturbed", "random", "shuffled")


class Pair(NamedTuple):
    """A number (or one for each class, (K,)) for the first and for the second network.

    Example:
        >>> Pair(0.97, 0.95).g
        0.95
    """

    f: Array
    g: Array

    def __repr__(self) -> str:
        if not (has_values(self.f) and has_values(self.g)):
            return object.__repr__(self)
        return f"Pair(f={number(self.f)}, g={number(self.g)})"


class PerturbationLearning(eqx.Module):
    """The result of `learn_from_perturbations`, a pytree.

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
        test: clean data that neither network saw, or None.
        options: size, norm, direction, bounds, balanced (whether the targets were), at ("data" or
            "carrier"), carrier and targets in words.
    """

    f: Any
    g: Any
    perturbation: Perturbation
    carrier: Float[Array, "m ..."]
    cosine: Float[Array, " m"] | None
    diagnosis: Diagnosis | None
    train: Dataset
    test: Dataset | None
    learner_g: Callable
    options: dict[str, Any] = eqx.field(static=True)
    key: PRNGKeyArray
    g_key: PRNGKeyArray

    @property
    def attacked(self) -> Float[Array, "m ..."]:
        """The points at which f's gradient gave the perturbations, (m, ...).

        The training points, in turn, or the carrier.
        """
        return attacked_points(self.train.inputs, self.carrier, self.options["at"])

    @property
    def perturbed(self) -> Float[Array, "m ..."]:
        """Carrier + delta: the inputs that g was trained on."""
        return added(self.carrier, self.perturbation.delta)

    def accuracy(self, data: Dataset | None = None, *, per_class: bool = False) -> Pair:
        """Accuracy of f and of g on clean data with its true labels.

        `data`: left out, the test data of the experiment, or its training data where there are
        none. `per_class`: of each class, (K,), NaN if empty.
        """
        if data is None:
            data = self.train if self.test is None else self.test
        check_classes(data, self.train)

        def accuracy(predictor) -> Array:
            share = share_right(predictor(data.inputs), data)
            return class_means(share, data) if per_class else mean(share)

        return Pair(accuracy(self.f), accuracy(self.g))

    def agreement(
        self, z: Float[ArrayLike, "m ..."] | Dataset, *, per_class: bool = False
    ) -> Array:
        """The share of points z at which f and g have the same sign, or decide for the same class.

        `per_class`: for the points of each true class, (K,); then z is a Dataset.
        """
        points = z.inputs if isinstance(z, Dataset) else z
        f, g = self.f(points), self.g(points)
        same = class_agreement(f, g) if f.ndim == 2 else _same_sign(f, g)
        if not per_class:
            return mean(same)
        if not isinstance(z, Dataset):
            raise TypeError(f"z must be a Dataset for agreement per class; got {type(z).__name__}")
        check_classes(z, self.train)
        return class_means(same, z)

    def diagnose(self, data: Dataset) -> Diagnosis:
        """The diagnosis at other labelled points than the training data."""
        if len(self.train.classes) > 2:
            raise TypeError(f"a diagnosis is for two classes; these are {len(self.train.classes)}")
        if self.diagnosis is None:
            raise TypeError(
                "a diagnosis needs a second learner with an infinite-width kernel "
                "(attribute `kernel`)"
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
            f=self.f,
            g=self.g,
        )

    def control(self, name: str, draw: int = 0) -> Callable:
        """A second predictor, trained on data that should teach it nothing.

        `draw` numbers independent ones. "unperturbed": the bare carrier with the same targets;
        "random": carrier plus random directions of the same sizes; "shuffled": the perturbed
        carrier with half of the targets, chosen at random, turned around, so that targets and
        perturbations are uncorrelated (K classes: moved on by 0 to K - 1, each equally often).
        """
        check_choice(name, "name", CONTROLS)
        noise_key, shuffle_key, learner_key = _control_keys(self.key, np.uint32(draw))
        delta, targets = self.perturbation.delta, self.perturbation.targets
        inputs = self.carrier
        classes = len(self.train.classes)
        if name == "random":
            inputs = added(inputs, _random_directions(delta, noise_key))
        elif name == "shuffled":
            inputs = added(inputs, delta)
            targets = _shuffled(targets, classes, shuffle_key)
        return self.learner_g(inputs, encoded(targets, classes), learner_key)

    def table(self, test: Dataset | None = None, *, control_draws: int = 0) -> Table:
        """Accuracies on clean data as columns, which `print` and `pandas.DataFrame` take.

        A row for each of f and g, and with `control_draws` for each control, whose mean over draws
        and standard deviation (`train_std`, `test_std`) it has. `test` as in `evaluate`.
        """
        metrics = self.evaluate(test, control_draws=control_draws)
        scores = {**metrics["accuracy"], **metrics["controls"]}
        parts = list(metrics["accuracy"]["f"])
        columns = Table(network=list(scores))
        for part in parts:
            draws = [score[part] for score in scores.values()]
            columns[part] = [float(np.mean(shares)) for shares in draws]
        if control_draws:
            for part in parts:
                draws = [score[part] for score in scores.values()]
                columns[f"{part}_std"] = [float(np.std(shares)) for shares in draws]
        return columns

    def report(
        self,
        folder: str | os.PathLike[str],
        test: Dataset | None = None,
        *,
        control_draws: int = 10,
        robust: Sequence[float] | Mapping[str, Any] | None = None,
    ) -> Path:
        """Writes the page, its figures and its numbers to a folder, as `perturbkernel run --out`
        does.

        Args:
            folder: where the page goes.
            test, control_draws: as in `evaluate`.
            robust: sizes of perturbations (l2), for accuracy of f and g under attack; or a
                dictionary of `sizes` and other arguments of `pk.robust_accuracy`, of `points`, how
                many are attacked, and of `certified`, True for certified accuracy beside it.

        Raises ValueError if the folder is a file or holds other files of the same names.

        Example: `r.report("results", test, robust={"sizes": [0.5, 1.0], "certified": True})`
        """
        from perturbkernel import report
        from perturbkernel.learning.record import report_of

        test = self.test if test is None else test
        page = report_of(self, test, control_draws=control_draws, robust=robust)
        report.save(page, folder)
        return Path(folder) / "report.html"

    def _said(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Configuration and metrics without controls, for `str` and notebooks."""
        from perturbkernel.learning.record import configuration_of, metrics_of

        metrics = metrics_of(self, self.test, fresh=self.test, control_draws=0)
        return configuration_of(self, self.test), metrics

    def __str__(self) -> str:
        """What `perturbkernel run` prints, without controls: those are in `table` and `report`."""
        from perturbkernel import report

        return report.text(*self._said())

    def __repr__(self) -> str:
        made = f"{self.options['carrier']}, size {self.options['size']:g}"
        return f"PerturbationLearning({self.train!r}, {made}; print(r) shows what was learned)"

    def _repr_html_(self) -> str:
        from perturbkernel import report

        configuration, metrics = self._said()
        head, *rows = report.table(metrics)
        said = " ".join(report.sentences(configuration, metrics))
        return f"{html_table(rows, head)}<p>{html.escape(said)}</p>"

    def evaluate(
        self,
        test: Dataset | None = None,
        fresh: Float[ArrayLike, "m ..."] | None = None,
        control_draws: int = 1,
    ) -> dict[str, Any]:
        """Every number of the experiment as one dictionary of floats.

        Args:
            test: clean data that neither network saw; adds accuracies "test", and agreement on its
                inputs. Left out, that of the experiment.
            fresh: inputs for the agreement instead of the test inputs, new synthetic points for
                instance.
            control_draws: how many independent draws of each random control, 0 for no controls at
                all; a single one scatters
                widely, since even a random direction separates two classes somewhat, one way or the
                other.

        Returns:
            "accuracy": {"f", "g"} -> {"train", "test"}, always on clean data with true labels;
            "controls": each control -> {"train", "test"} -> accuracies, one a draw (unperturbed:
            one); "agreement": share of `fresh` (else test) points with equal signs, None without
            either; "cosine": {"mean", "min"} or None; "zero_gradients": a count; "diagnosis": means
            over the training points.
        """
        check_count(control_draws, "control_draws", low=0)
        test = self.test if test is None else test
        if test is not None:
            check_classes(test, self.train)
        sets = {"train": self.train}
        if test is not None:
            sets["test"] = test
            fresh = test.inputs if fresh is None else fresh
        # Each network is evaluated once, on all points together.
        clean = _concatenated([data.inputs for data in sets.values()])
        *ends, _ = np.cumsum([len(data) for data in sets.values()])

        def accuracies(predictor) -> dict[str, float]:
            outputs = on_host(predictor(clean))
            parts = namespace(outputs).split(outputs, ends)
            found = {}
            for (name, data), of_part in zip(sets.items(), parts, strict=True):
                right = share_right(as_jax(of_part), data)
                found[name] = float(mean(right))
            return found

        def control(name) -> dict[str, list[float]]:
            count = 1 if name == "unperturbed" else control_draws
            draws = [accuracies(self.control(name, draw)) for draw in range(count)]
            return {part: [draw[part] for draw in draws] for part in sets}

        controls = {}
        if control_draws:
            controls = {name: control(name) for name in CONTROLS}
        zero_gradients = np.asarray(self.perturbation.zero_gradient)
        return {
            "accuracy": {"f": accuracies(self.f), "g": accuracies(self.g)},
            "controls": controls,
            "agreement": None if fresh is None else float(self.agreement(fresh)),
            "cosine": cosine_numbers(self.cosine),
            "zero_gradients": int(zero_gradients.sum()),
            "diagnosis": diagnosis_numbers(self.diagnosis),
        }


def _random_directions(delta: Array, key: PRNGKeyArray) -> Any:
    """As long as the perturbations, row by row."""
    direction = jax.random.normal(key, delta.shape, delta.dtype)
    unit, delta = on_host(normalise(direction, "l2"), delta)
    # The norm that normalise() set to one: l2 lengths; a linf step has entries of one size.
    rows = delta.reshape(len(delta), -1)
    length = namespace(delta).linalg.norm(rows, axis=1)
    each = length.reshape(-1, *(1,) * (delta.ndim - 1))
    return unit * each


def _shuffled(targets: Array, classes: int, key: PRNGKeyArray) -> Array:
    """The targets, turned around or moved on by draws that are uncorrelated with them."""
    if classes == 2:
        turn = draw_targets("balanced", len(targets), key=key)
        targets, turn = on_host(targets, turn)
        return as_jax(targets * turn.astype(targets.dtype))
    shift = draw_classes("balanced", targets, classes, key=key)
    return (targets + shift.astype(targets.dtype)) % classes


def check_classes(data: Dataset, train: Dataset) -> None:
    """Raises ValueError unless data have as many classes as the training data."""
    if len(data.classes) != len(train.classes):
        raise ValueError(
            f"data must have the classes of the training data, {train.classes}; got {data!r}"
        )


def _same_sign(f: Array, g: Array) -> Array:
    """1 where two outputs have the same sign, 0 where they have not, 1/2 where one is 0."""
    f, g = on_host(f, g)
    xp = namespace(f)
    sign_f = xp.sign(f)
    sign_g = xp.sign(g).astype(f.dtype)
    return as_jax((1 + sign_f * sign_g) / 2)


@jax.jit
def _control_keys(key: PRNGKeyArray, draw: Array) -> tuple[PRNGKeyArray, ...]:
    key = jax.random.fold_in(key, draw)
    return tuple(jax.random.split(key, 3))


def _concatenated(arrays: list[Array]) -> Array:
    arrays = [on_host(array) for array in arrays]
    # By NumPy where all are at hand.
    first, *others = map(namespace, arrays)
    xp = first if all(other is first for other in others) else jnp
    return as_jax(xp.concatenate(arrays))


def mean(values: Array) -> Array:
    """The mean of all values."""
    return as_jax(on_host(values).mean())


def added(carrier: Any, delta: Any) -> Array:
    """carrier + delta."""
    carrier, delta = on_host(carrier, delta)
    return as_jax(carrier + delta)


def attacked_points(x: Array, carrier: Array, at: str) -> Array:
    """The training points in turns, as many as there are rows of the carrier; or the carrier."""
    if at == "carrier":
        return carrier
    turns = len(carrier) // len(x)
    if turns == 1:
        return x
    once = (1,) * (x.ndim - 1)
    return jnp.tile(x, (turns, *once))
