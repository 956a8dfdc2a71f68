"""Scaling laws of learning from perturbations: accuracy in n, d, distance and size (theory:
section 16).

Inputs x = y mu + xi of two equally likely classes, xi ~ N(0, I_d), `distance` M = |mu|, half of
that between the class means. With C = M/sqrt(M^2 + d/n), x = size / critical size and the normal
distribution function N_c,

    accuracy of f = N_c(M C)
    accuracy of g = N_c(M C x / sqrt(1 + x^2))

Means over data, fresh test points and targets, to leading order in 1/sqrt(d): estimates, not
bounds. They assume the identity loss, infinite width, a zero start, l2 perturbations at the
training points along f's gradient, as many training labels +1 as -1, and M^2 and sizes that are
small against sqrt(d).
"""

import numpy as np
from jaxtyping import ArrayLike, Float

from perturbkernel.checks import check_choice
from perturbkernel.theory.arguments import ndtr
from perturbkernel.theory.targets import TARGET_RULES

SCENARIOS = ("a", "b")


def _positive(value: ArrayLike, name: str, *, zero: bool = False) -> np.ndarray:
    """Positive finite numbers of any shape; `zero` is allowed then."""
    array = np.asarray(value, float)
    low = array >= 0 if zero else array > 0
    if not (np.isfinite(array) & low).all():
        wanted = "non-negative" if zero else "positive"
        raise ValueError(f"{name} must be finite and {wanted}; got {value!r}")
    return array


def _margin(n: ArrayLike, d: ArrayLike, distance: ArrayLike) -> np.ndarray:
    """M C, the mean margin of f's direction in units of its deviation."""
    n = _positive(n, "n")
    d = _positive(d, "d")
    distance = _positive(distance, "distance", zero=True)
    length = np.sqrt(distance**2 + d / n)
    return distance**2 / length


def first_accuracy(*, n: ArrayLike, d: ArrayLike, distance: ArrayLike) -> Float[np.ndarray, "..."]:
    """The accuracy of f on fresh points, N_c(M C), M the distance and C = M/sqrt(M^2 + d/n).

    n training points of dimension d. Arguments broadcast. Raises ValueError unless n and d are
    positive and the distance is not negative. Theory: 16.1.

    Example:
        >>> import perturbkernel as pk
        >>> float(pk.theory.scaling.first_accuracy(n=400, d=100, distance=2.0).round(3))
        0.974
    """
    return ndtr(_margin(n, d, distance))


def critical_size(
    *,
    n: ArrayLike,
    d: ArrayLike,
    distance: ArrayLike,
    scenario: str = "a",
    train_bias: bool = False,
    targets: str = "coin_flip",
) -> Float[np.ndarray, "..."]:
    """The size of perturbations at which signal and random offset of g are of one size.

    | | biases fixed | biases trained |
    | --- | --- | --- |
    | (a), coin-flip targets | 0 | 1/sqrt(n) |
    | (a), balanced targets | 0 | 0 |
    | (b), coin-flip targets | sqrt(((M^2 + 1)^2 - 1 + d)/n) | sqrt(((M^2 + 1)^2 + d)/n) |
    | (b), balanced targets | as above | as with fixed biases |

    Arguments broadcast. Theory: 16.2, 16.3.

    Example:
        >>> import perturbkernel as pk
        >>> setting = {"n": 400, "d": 100, "distance": 2.0}
        >>> float(pk.theory.scaling.critical_size(scenario="b", **setting).round(3))
        0.557
    """
    check_choice(scenario, "scenario", SCENARIOS)
    check_choice(targets, "targets", TARGET_RULES)
    n = _positive(n, "n")
    d = _positive(d, "d")
    distance = _positive(distance, "distance", zero=True)
    # What n coin flips times <x_n, z> + c vary by: E (<x_n, z> + c)^2 / n.
    square = np.zeros(np.broadcast_shapes(n.shape, d.shape, distance.shape))
    if scenario == "b":
        square = square + (distance**2 + 1) ** 2 - 1 + d
    if train_bias and targets == "coin_flip":
        square = square + 1
    return np.sqrt(square / n)


def second_accuracy(
    *,
    n: ArrayLike,
    d: ArrayLike,
    distance: ArrayLike,
    size: ArrayLike,
    scenario: str = "a",
    train_bias: bool = False,
    targets: str = "coin_flip",
) -> Float[np.ndarray, "..."]:
    """The accuracy of g on fresh points, N_c(M C x/sqrt(1 + x^2)), x = size / critical size.

    N_c(M C), that of f, where the critical size is zero: scenario (a) without trained biases or
    with balanced targets. `size` > 0 is the l2 length of each perturbation. Arguments broadcast.

    Example:
        >>> import perturbkernel as pk
        >>> options = {"n": 400, "d": 100, "distance": 2.0, "size": 0.5}
        >>> float(pk.theory.scaling.second_accuracy(scenario="b", **options).round(3))
        0.903

    Theory: 16.2, 16.3.
    """
    margin = _margin(n, d, distance)
    size = _positive(size, "size")
    critical = critical_size(
        n=n, d=d, distance=distance, scenario=scenario, train_bias=train_bias, targets=targets
    )
    return ndtr(margin * size / np.hypot(size, critical))
