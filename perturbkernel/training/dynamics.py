"""How a predictor is trained, gradient flow or gradient descent with heavy-ball momentum, and what
a solver returns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from perturbkernel.arrays import quotient
from perturbkernel.checks import check_count, check_finite, check_number, is_traced


@jax.tree_util.register_static
@dataclass(frozen=True)
class GradientFlow:
    """d theta / dt = -grad L for `time` (learning rate x steps, in the limit of small rates).

    `time` may be infinite for the squared loss, and with a ridge for every loss; without one the
    others have no minimum, and f grows without end. It may be traced by JAX, and then serves `fit`
    only (docs/solvers.md): as an argument of a compiled function, dynamics are a constant.

    Example:
        >>> GradientFlow(30.0).effective_time
        30.0
    """

    time: float

    def __post_init__(self):
        check_number(self.time, "time", low=0, finite=False)
        if not is_traced(self.time):
            object.__setattr__(self, "time", float(self.time))

    @property
    def effective_time(self) -> float:
        """The time itself."""
        return self.time


@jax.tree_util.register_static
@dataclass(frozen=True, init=False)
class HeavyBall:
    """Gradient descent with momentum, as `torch.optim.SGD` and `optax.sgd` define it (no Nesterov,
    no dampening).

    v <- momentum v + grad L,  theta <- theta - learning_rate_j v,  v_0 = 0, for j = 1 .. steps.

    Example:
        >>> HeavyBall(0.1, 2, momentum=0.0).effective_time
        0.2
        >>> round(HeavyBall(0.1, 2).effective_time, 3)  # the second step repeats 0.9 of the first
        0.29

    Args:
        learning_rate: one rate >= 0, or one per step.
        steps: how many; may be left out when there is a rate per step.
        momentum: mu in [0, 1); 0 is plain gradient descent. The paper's experiments use 0.9, the
            default.
    """

    learning_rate: float | tuple[float, ...]
    steps: int
    momentum: float

    def __init__(self, learning_rate, steps: int | None = None, momentum: float = 0.9):
        if not isinstance(learning_rate, list | tuple) and np.ndim(learning_rate) == 0:
            check_number(learning_rate, "learning_rate")
            rate = float(learning_rate)
            if steps is None:
                raise ValueError("steps must be given with a constant learning_rate; got None")
        else:
            try:
                rates = np.asarray(learning_rate, dtype=float)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"learning_rate must be one number or (steps,) numbers: {error}"
                ) from None
            if rates.ndim != 1 or rates.size == 0:
                raise ValueError(
                    f"learning_rate must be one number or (steps,); got shape {rates.shape}"
                )
            check_finite(rates, "learning_rate")
            if (rates < 0).any():
                raise ValueError(f"learning_rate must be >= 0 at every step; got {rates.min():g}")
            rate = tuple(rates.tolist())
            if steps is not None and steps != len(rate):
                raise ValueError(
                    f"learning_rate must have one rate a step; got {len(rate)} rates for {steps} "
                    f"steps"
                )
            steps = len(rate)
        check_count(steps, "steps", low=0)
        check_number(momentum, "momentum", high=1)
        if momentum == 1:
            raise ValueError("momentum must be < 1; got 1")
        object.__setattr__(self, "learning_rate", rate)
        object.__setattr__(self, "steps", int(steps))
        object.__setattr__(self, "momentum", float(momentum))

    @property
    def rates(self) -> np.ndarray:
        """(steps,), one rate a step."""
        return np.broadcast_to(np.asarray(self.learning_rate, dtype=float), (self.steps,))

    @property
    def effective_time(self) -> float:
        """tau_k = sum_j rate_j (1 - mu^j) / (1 - mu): with a constant gradient, k steps are
        gradient flow for tau_k.

        Theory: 1.1. For a constant rate, rate / (1 - mu) (k - mu (1 - mu^k) / (1 - mu)).
        """
        shares = self.rates
        if self.momentum:
            j = np.arange(1, self.steps + 1)
            # 1 - mu^j without cancellation.
            shares = shares * -np.expm1(j * np.log(self.momentum))
        return float(np.sum(shares)) / (1 - self.momentum)


Dynamics = GradientFlow | HeavyBall


def is_endless(dynamics: Dynamics) -> bool:
    """Whether it leads to the minimum, in infinite time; a time that is traced is finite."""
    if not isinstance(dynamics, GradientFlow) or is_traced(dynamics.time):
        return False
    return bool(np.isinf(dynamics.time))


def to_numbers(dynamics: Dynamics) -> tuple[Any, ...]:
    """Its arguments as leaves of a pytree: unlike dynamics themselves they are no constants of
    compiled functions.
    """
    if isinstance(dynamics, GradientFlow):
        return (dynamics.time,)
    rate: Any = dynamics.learning_rate
    if isinstance(rate, tuple):
        rate = np.asarray(rate)
    return rate, dynamics.steps, dynamics.momentum


def from_numbers(numbers: Sequence[Any]) -> Dynamics:
    """The inverse of `to_numbers`."""
    if len(numbers) == 1:
        return GradientFlow(float(numbers[0]))
    rate, steps, momentum = numbers
    return HeavyBall(np.asarray(rate), int(steps), float(momentum))


class Filter(NamedTuple):
    """What heavy ball makes of an error along eigenvectors, shaped like the eigenvalues.

    Attributes:
        q: (1 - r) / eigenvalue, where r is what the steps leave of the error.
        growth: the largest |r| after any of the steps, at least 1.
    """

    q: Array
    growth: Array


@jax.jit
def heavy_ball_filter(eigenvalues: Array, rates: Array, momentum: Array) -> Filter:
    """Heavy ball on the loss h f^2 / 2 - f for curvatures h = `eigenvalues` >= 0, from f = 0.

    The recurrence is in q itself, so that nothing cancels at h = 0.
    """

    def step(carry, rate):
        q, velocity, growth = carry
        velocity = momentum * velocity + 1 - eigenvalues * q
        q = q + rate * velocity
        left = jnp.abs(1 - eigenvalues * q)
        return (q, velocity, jnp.maximum(growth, left)), None

    zero, one = jnp.zeros_like(eigenvalues), jnp.ones_like(eigenvalues)
    (q, _, growth), _ = lax.scan(step, (zero, zero, one), rates)
    return Filter(q, growth)


def of_decay(rate: float | Array, dynamics: Dynamics) -> float | Array:
    """How long a constant force would take for what it does under a decay, h' = 1 - rate h.

    (1 - exp(-rate time)) / rate for flow, and the effective time itself for no decay. Raises
    ValueError where heavy ball diverges.
    """
    if is_traced(rate):
        return _of_traced_decay(jnp.asarray(rate), dynamics)
    if rate == 0:
        return dynamics.effective_time
    if is_traced(dynamics.effective_time):
        return _of_traced_decay(jnp.asarray(rate), dynamics)
    rate = float(rate)
    if isinstance(dynamics, GradientFlow):
        return float(-np.expm1(-rate * dynamics.time) / rate)
    with jax.enable_x64(True):
        curvature = jnp.full(1, rate)
        if diverges(dynamics, curvature):
            raise ValueError(unstable_rates(dynamics, rate, "/ ridge", "the penalty"))
        rates, momentum = jnp.asarray(dynamics.rates), jnp.asarray(dynamics.momentum)
        return float(heavy_ball_filter(curvature, rates, momentum).q[0])


def _of_traced_decay(rate: Array, dynamics: Dynamics) -> Array:
    """Nothing is raised, since nothing is known."""
    if isinstance(dynamics, HeavyBall):
        rates = jnp.asarray(dynamics.rates, rate.dtype)
        momentum = jnp.asarray(dynamics.momentum, rate.dtype)
        return heavy_ball_filter(rate, rates, momentum).q
    if is_endless(dynamics):
        return 1 / rate
    done = -jnp.expm1(-rate * dynamics.time)
    return quotient(done, rate, rate > 0, otherwise=dynamics.time)


def unstable_rates(dynamics: HeavyBall, largest: float, formula: str, what: str) -> str:
    """What is said of steps that diverge on the largest curvature."""
    stable = stable_rate(dynamics, largest)
    return (
        f"learning_rate must be below 2 (1 + momentum) {formula} = {stable:.6g}, beyond which "
        f"{what} diverges on this data, or be made up for by smaller rates of other steps; got "
        f"{dynamics.rates.max():g}"
    )


def stable_formula(ridge: float) -> str:
    """Of `stable_rate`, in words, but for the factor 2 (1 + momentum)."""
    return "n / lambda_max" if ridge == 0 else "/ (lambda_max / n + ridge)"


def stable_rate(dynamics: HeavyBall, largest: float) -> float:
    """2 (1 + momentum) / h for the largest curvature h: constant rates from there on diverge."""
    return 2 * (1 + dynamics.momentum) / largest if largest > 0 else np.inf


def diverges(dynamics: HeavyBall, eigenvalues: Array) -> bool:
    """Whether the steps are unstable on curvatures `eigenvalues`.

    A schedule may exceed the stable rate for some steps, if others make up for it: what matters is
    max |r| after all of them. It may be as large as stable constant rates can make it, (1 +
    momentum) / (1 - momentum): heavy ball overshoots before it converges. A single step cannot
    diverge.
    """
    rates, mu = dynamics.rates, dynamics.momentum
    stable = stable_rate(dynamics, float(eigenvalues.max()))
    if np.count_nonzero(rates) <= 1 or rates.max() < stable:
        return False
    if rates.min() >= stable:
        return True
    found = heavy_ball_filter(eigenvalues, jnp.asarray(rates), jnp.asarray(mu))
    left = float(jnp.abs(1 - eigenvalues * found.q).max())
    # Not "left > ...": NaN diverges, too. Rounding must not decide where |r| is 1, at h = 0.
    return not left <= (1 + mu) / (1 - mu) * (1 + 1e-9)


class Solution(NamedTuple):
    """Dual coefficients, what happened in words ("ok" if nothing to say), and the numbers behind
    it. `unstable`: heavy ball may oscillate or has diverged, which `fit` warns of.
    """

    dual_coef: Float[Array, " n"]
    status: str
    stats: dict[str, float]
    unstable: bool = False
