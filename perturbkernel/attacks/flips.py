"""How many training labels must be wrong for a decision to change, exactly (theory: 17.2)."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from perturbkernel.checks import is_traced
from perturbkernel.display import Displayed
from perturbkernel.training.predictors import KernelPredictor
from perturbkernel.training.smoother import initial_part, smoother_weights, training_of

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
        status: "ok", or what was met in words.
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
        """The targets of f with the labels changed that change the decision at z_j: with these
        `fit` gives another decision there.

        `count`: change only the first so many of `order[j]`.
        """
        count = int(self.flips[j]) if count is None else count
        changed = np.asarray(self.order)[j, :count]
        targets = np.array(self.targets)
        if targets.ndim == 1:
            targets[changed] *= -1
            return jnp.asarray(targets)
        high = targets.max()
        targets[changed] = targets.min()
        positive = np.asarray(self.weights)[j, changed] > 0
        new = np.where(positive, int(self.rival[j]), int(self.decision[j]))
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
    """Over a rival: numbers of changes (m,), points in order (m, n), and the first number after
    which the margin is rounding (m,), n + 2 where there is none.
    """

    flips: np.ndarray
    order: np.ndarray
    unsure: np.ndarray


def certified_flips(f: KernelPredictor, z: Float[ArrayLike, "m ..."]) -> LabelFlips:
    """The exact smallest number of training labels whose change changes the decision of f at z.

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
    weights = smoother_weights(f.kernel, f.inputs, z, training)
    start = np.zeros((len(z), *targets.shape[1:]))
    rounded = [] if f.sample_weight is None else [f.sample_weight]
    if f.initial is not None:
        before = f.initial(z), f.initial(f.inputs)
        rounded.extend(before)
        start = np.asarray(initial_part(training.loss, weights, *before))
        start = start.reshape(len(z), *targets.shape[1:])
    w = np.asarray(weights)
    count = _of_signs if targets.ndim == 1 else _of_classes
    found = count(w, targets, start, _relative_rounding(rounded))
    assert f.targets is not None
    status = f.status
    doubtful = int((found["unsure"] <= found["flips"]).sum())
    if doubtful:
        said = f"at {doubtful} points a tie within rounding decides on the number"
        status = said if status == "ok" else f"{status}; {said}"
    return LabelFlips(
        flips=jnp.asarray(found["flips"]),
        order=jnp.asarray(found["order"]),
        decision=jnp.asarray(found["decision"]),
        rival=jnp.asarray(found["rival"]),
        weights=jnp.asarray(w),
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
    high = targets.max(axis=1, keepdims=True)
    low = targets.min(axis=1, keepdims=True)
    ones = (targets == high).sum(axis=1)
    zeros = (targets == low).sum(axis=1)
    alike = np.ptp(high) == 0 and np.ptp(low) == 0
    if not (alike and (ones == 1).all() and (zeros == targets.shape[1] - 1).all()):
        raise ValueError("f must have been trained on pk.one_hot(labels, K) to have labels changed")
    return targets


def _relative_rounding(arrays: list[Any]) -> float:
    """Of outputs, where these arrays of floats are rounded and all else is float64."""
    each = [float(jnp.finfo(jnp.result_type(array)).eps) for array in arrays]
    return max([_ROUNDING, *(_PLACES * eps for eps in each)])


def _of_signs(w: np.ndarray, y: np.ndarray, start: np.ndarray, relative: float) -> dict[str, Any]:
    outputs = start + w @ y
    decision = np.where(outputs < 0, -1, 1)
    gains = 2 * decision[:, None] * w * y
    rounding = relative * (np.abs(start) + np.abs(w).sum(axis=1))
    fewest = _fewest(_Harm(decision * outputs, np.maximum(gains, 0), rounding))
    return fewest._asdict() | {"decision": decision, "rival": -decision}


def _of_classes(w: np.ndarray, y: np.ndarray, start: np.ndarray, relative: float) -> dict[str, Any]:
    """The best rival of each query."""
    outputs = start + w @ y
    classes = y.shape[1]
    labels = y.argmax(axis=1)
    height = y[0].max() - y[0].min()
    decision = outputs.argmax(axis=1)
    rows = np.arange(len(w))
    scale = np.abs(start).max(axis=1) + height * np.abs(w).sum(axis=1)
    rounding = relative * scale
    found: dict[str, Any] = {}
    for rival in range(classes):
        # That of the decision itself is never chosen.
        margin = outputs[rows, decision] - outputs[:, rival]
        own = (labels == decision[:, None]).astype(float)
        sign = own - (labels == rival)
        gains = height * (w * sign + np.abs(w))
        fewest = _fewest(_Harm(margin, gains, rounding))._asdict()
        fewest |= {"decision": decision, "rival": np.full(len(w), rival)}
        is_rival = decision != rival
        for name in ("flips", "unsure"):
            fewest[name] = np.where(is_rival, fewest[name], w.shape[1] + 2)
        found = _fewer(found, fewest) if found else fewest
    return found


def _fewer(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Row by row the one with fewer flips, unsure from where either is."""
    better = b["flips"] < a["flips"]
    kept = {}
    for name, of_a in a.items():
        choose = better.reshape(-1, *(1,) * (of_a.ndim - 1))
        kept[name] = np.where(choose, b[name], of_a)
    return kept | {"unsure": np.minimum(a["unsure"], b["unsure"])}


def _fewest(harm: _Harm) -> _Fewest:
    """The smallest numbers of changes after which the margin is at most 0."""
    order = np.argsort(-harm.gains, axis=1, kind="stable")
    sorted_gains = np.take_along_axis(harm.gains, order, axis=1)
    begun = harm.margin[:, None]
    after = begun - np.cumsum(sorted_gains, axis=1)
    margins = np.concatenate([begun, after], axis=1)  # after 0, 1, ..., n changes; falls
    flips = np.sum(margins > 0, axis=1)
    near = np.abs(margins) <= harm.rounding[:, None]
    none = near.shape[1] + 1
    unsure = np.where(near.any(axis=1), near.argmax(axis=1), none)
    return _Fewest(flips, order, np.asarray(unsure))
