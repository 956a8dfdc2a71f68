"""How many training labels must be wrong for a decision to change, exactly (theory: 17.2)."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from perturbkernel.arrays import as_jax
from perturbkernel.checks import is_traced
from perturbkernel.display import Displayed
from perturbkernel.training.predictors import KernelPredictor
from perturbkernel.training.smoother import initial_part, smoother_weights, training_of
from perturbkernel.words import joined

# Outputs that differ by less, relative to the sum of their terms, are not told apart: where all is
# float64, and in units of the last place of weights of points, or of an f0, in float32.
_ROUNDING = 1e-9
_PLACES = 8


class LabelFlips(Displayed, eqx.Module):
    """The smallest number of changed training labels that changes each decision, and which.

    Attributes:
        flips: (m,): so many changes can change the decision at z_j, or make it a tie, and no fewer
            can. n + 1: not even all of them; 0: it is a tie already.
        order: (m, n): training points, those whose change does most first. The first `flips[j]`
            change the decision at z_j.
        decision: (m,): -1 or +1, or a class; the decision that is changed.
        rival: (m,): the other sign, or the class that wins then.
        weights: (m, n): `f.weights(z)`.
        targets: (n,) or (n, K): those that f was trained on.
        status: "ok", or in words what the training of f met, what the solver of the weights met,
            and where a tie within rounding decides: the numbers are then not exact.
    """

    flips: Int[Array, " m"]
    order: Int[Array, "m n"]
    decision: Int[Array, " m"]
    rival: Int[Array, " m"]
    weights: Float[Array, "m n"]
    targets: Float[Array, "n ..."]
    status: str = eqx.field(static=True, default="ok")

    def _numbers(self) -> dict[str, Any]:
        n = self.order.shape[1]
        flips = np.asarray(self.flips)
        reached = flips[flips <= n]
        return {
            "decisions": len(flips),
            "training labels": n,
            "changed by none": len(flips) - len(reached),
            "flips": reached,
            "status": self.status,
        }

    def relabelled(self, j: int, count: int | None = None) -> Float[Array, "n ..."]:
        """The targets of f, with just those labels changed that change the decision at z_j.
        Training on them gives another decision there.

        `count`: change only the first so many of `order[j]`.

        Example:
            >>> import perturbkernel as pk
            >>> f = pk.fit(pk.TwoLayerNTK(slope=1.0), [[1.0], [2.0], [4.0], [-3.0]], [1, 1, 1, -1])
            >>> pk.certified_flips(f, [[1.0]]).relabelled(0).tolist()
            [1.0, 1.0, -1.0, 1.0]
        """
        if count is None:
            count = int(self.flips[j])
        order = np.asarray(self.order)[j]
        changed = order[:count]
        targets = np.array(self.targets)
        if targets.ndim == 1:
            targets[changed] *= -1
            return jnp.asarray(targets)
        # A point that pulls the outputs toward its label gets that of the rival; one that pushes
        # them away gets that of the decision.
        weights = np.asarray(self.weights)[j]
        pulls = weights[changed] > 0
        new = np.where(pulls, int(self.rival[j]), int(self.decision[j]))
        high = targets.max()
        targets[changed] = targets.min()
        targets[changed, new] = high
        return jnp.asarray(targets)


class _Harm(NamedTuple):
    """For each query the margin of its decision over a rival, (m,); by how much the best change of
    each label lowers it, (m, n) >= 0; and its rounding, (m,).
    """

    margin: np.ndarray
    gains: np.ndarray
    rounding: np.ndarray


class _Fewest(NamedTuple):
    """Over a rival: numbers of changes (m,), points in order (m, n), the first number after which
    the margin is rounding (m,), n + 2 where there is none, and what is changed into what, (m,)
    each.
    """

    flips: np.ndarray
    order: np.ndarray
    unsure: np.ndarray
    decision: np.ndarray
    rival: np.ndarray


def certified_flips(f: KernelPredictor, z: Float[ArrayLike, "m ..."]) -> LabelFlips:
    """The smallest number of training labels whose change changes the decision of f at z, exact
    where the `status` of the result is "ok".

    The inputs stay, labels are changed, f is trained again. Outputs are linear in the targets,
    f(z) = b(z) + sum_n w_n(z) y_n, so that a flip of y_n moves f(z) by -2 w_n(z) y_n, whatever the
    other labels are: the harmful flips, sorted and cumulated, give the smallest number. For K
    classes a label may become any other; over each rival the best change of a label is to the rival
    where w_n > 0 and to the class decided for where w_n < 0, and the smallest number is that of the
    rival which needs fewest. No choice of fewer labels changes the decision: a certificate against
    label poisoning, for these inputs.

        r = pk.certified_flips(f, z)
        print(r)
        pk.fit(kernel, x, r.relabelled(0), ...)(z[:1])  # the other decision

    Example:
        >>> import perturbkernel as pk
        >>> x = [[1.0], [2.0], [4.0], [-3.0]]
        >>> f = pk.fit(pk.TwoLayerNTK(slope=1.0), x, [1, 1, 1, -1])
        >>> r = certified_flips(f, [[1.0]])
        >>> r.flips.tolist(), r.order.tolist()
        ([2], [[2, 3, 1, 0]])

    Args:
        f: trained under the identity or the squared loss, at any time and dynamics, on labels: -1
            or +1, or `pk.one_hot(labels, K)`.
        z: (m, ...), where it decides.

    Raises:
        ValueError: another loss; targets that are no labels, or that f does not know.

    Cost: `f.weights(z)` and K sorts of m n numbers, in float64. Theory: 17.2.

    Source: exact for linear smoothers; compare Rosenfeld et al. (ICML 2020), who certify label
    flips of least squares by randomised smoothing.
    """
    if not isinstance(f, KernelPredictor):
        raise TypeError(f"f must be a KernelPredictor, as `fit` returns it; got {f!r}")
    training = training_of(f, "the number of label flips")
    targets = _labels(f)
    z = f.kernel.check_inputs(z, "z", like=f.inputs.shape[1:])
    if is_traced(z, f.inputs, f.dual_coef):
        raise TypeError("certified_flips cannot be traced; call it outside jit")
    weights, status = smoother_weights(f.kernel, f.inputs, z, training)
    status = joined(f.status, status)
    w = np.asarray(weights)
    start = np.zeros((len(z), *targets.shape[1:]))
    rounded = [] if f.sample_weight is None else [f.sample_weight]
    if f.initial is not None:
        before = f.initial(z), f.initial(f.inputs)
        rounded.extend(before)
        part = initial_part(training.loss, weights, *before)
        start = np.asarray(part).reshape(start.shape)
    count = _of_signs if targets.ndim == 1 else _of_classes
    found = count(w, targets, start, _relative_rounding(rounded))
    doubtful = int(np.sum(found.unsure <= found.flips))
    if doubtful:
        said = f"at {doubtful} points a tie within rounding decides on the number"
        status = joined(status, said)
    assert f.targets is not None
    return LabelFlips(
        flips=as_jax(found.flips),
        order=as_jax(found.order),
        decision=as_jax(found.decision),
        rival=as_jax(found.rival),
        weights=as_jax(w),
        targets=f.targets,
        status=status,
    )


def _labels(f: KernelPredictor) -> np.ndarray:
    """The targets of f in float64, after a check that they are labels."""
    if f.targets is None:
        raise ValueError(
            "f does not hold the targets that it was trained on (an older file?): fit it again"
        )
    targets = np.asarray(f.targets, float)
    if targets.ndim == 1:
        if not (np.abs(targets) == 1).all():
            raise ValueError("f must have been trained on labels -1 and +1 to have labels flipped")
        return targets
    if not _are_one_hot(targets):
        raise ValueError("f must have been trained on pk.one_hot(labels, K) to have labels changed")
    return targets


def _are_one_hot(targets: np.ndarray) -> bool:
    """Whether each row has one high entry and K - 1 low ones, the same numbers in all rows."""
    high = targets.max()
    low = targets.min()
    ones = np.sum(targets == high, axis=1)
    zeros = np.sum(targets == low, axis=1)
    classes = targets.shape[1]
    return bool(np.all(ones == 1) and np.all(zeros == classes - 1))


def _relative_rounding(arrays: list[Any]) -> float:
    """Of outputs, where these arrays of floats are rounded and all else is float64."""
    each = [float(jnp.finfo(jnp.result_type(array)).eps) for array in arrays]
    return max([_ROUNDING, *(_PLACES * eps for eps in each)])


def _of_signs(w: np.ndarray, y: np.ndarray, start: np.ndarray, relative: float) -> _Fewest:
    outputs = start + w @ y
    decision = np.where(outputs < 0, -1, 1)
    margin = decision * outputs
    # A flip of y_n moves f by -2 w_n y_n; only those count that lower the margin.
    contributions = decision[:, None] * w * y
    gains = 2 * np.maximum(contributions, 0)
    rounding = relative * (np.abs(start) + np.abs(w).sum(axis=1))
    return _fewest(_Harm(margin, gains, rounding), decision, -decision)


def _of_classes(w: np.ndarray, y: np.ndarray, start: np.ndarray, relative: float) -> _Fewest:
    """The best rival of each query."""
    m, n = w.shape
    classes = y.shape[1]
    outputs = start + w @ y
    labels = y.argmax(axis=1)
    height = y.max() - y.min()
    decision = outputs.argmax(axis=1)
    highest = outputs.max(axis=1)
    absolute = np.abs(w)
    scale = np.abs(start).max(axis=1) + height * absolute.sum(axis=1)
    rounding = relative * scale
    is_decision = (labels == decision[:, None]).astype(float)
    found = None
    for rival in range(classes):
        # The margin has height w_n times +1 of a label of the decision, -1 of one of the rival.
        # The best label for the rival makes that -|w_n|.
        sign = is_decision - (labels == rival)
        gains = height * (w * sign + absolute)
        harm = _Harm(highest - outputs[:, rival], gains, rounding)
        fewest = _fewest(harm, decision, np.full(m, rival))
        # The decision is no rival of its own: it needs more flips than any other.
        itself = decision == rival
        fewest = fewest._replace(
            flips=np.where(itself, n + 2, fewest.flips),
            unsure=np.where(itself, n + 2, fewest.unsure),
        )
        found = fewest if found is None else _fewer(found, fewest)
    assert found is not None
    return found


def _fewer(a: _Fewest, b: _Fewest) -> _Fewest:
    """Row by row the one with fewer flips, unsure from where either is."""
    better = b.flips < a.flips
    column = better[:, None]
    return _Fewest(
        flips=np.where(better, b.flips, a.flips),
        order=np.where(column, b.order, a.order),
        unsure=np.minimum(a.unsure, b.unsure),
        decision=a.decision,
        rival=np.where(better, b.rival, a.rival),
    )


def _fewest(harm: _Harm, decision: np.ndarray, rival: np.ndarray) -> _Fewest:
    """The smallest numbers of changes after which the margin is at most 0."""
    order = np.argsort(-harm.gains, axis=1, kind="stable")
    largest_first = np.take_along_axis(harm.gains, order, axis=1)
    begun = harm.margin[:, None]
    after = begun - np.cumsum(largest_first, axis=1)
    margins = np.concatenate([begun, after], axis=1)  # after 0, 1, ..., n changes; falls
    flips = np.sum(margins > 0, axis=1)
    near = np.abs(margins) <= harm.rounding[:, None]
    none = near.shape[1] + 1
    unsure = np.where(near.any(axis=1), near.argmax(axis=1), none)
    return _Fewest(flips, order, unsure, decision, rival)
