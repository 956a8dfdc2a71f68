"""Certificates without laziness: which signs published networks have, before they are drawn.

A pilot of simulated networks chooses signs s(z) and an order of the points, the surest first. Other
networks, drawn afresh, fail a set of points if any of them has another sign there. The set is the
longest beginning of the order that at most V of K fail, where V is so small that a set which fails
more often than `level` would pass with probability at most 1 - confidence. So, with that confidence
over the simulation,

    P(the network has the signs s at every certified point) >= 1 - level,

and with the simulation's own error counted in, >= 1 - delta, delta = level + (1 - confidence).
Nothing is assumed of the width or the time, and points share their failures instead of adding them
up: the initial function is nearly the same at all of them. Theory: 14.5, with the proof.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, PRNGKeyArray

from perturbkernel.checks import (
    as_inputs,
    as_targets,
    check_choice,
    check_count,
    check_key,
    check_number,
    check_progress,
)
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.networks.two_layer import check_width
from perturbkernel.theory.arguments import as_points, as_vector, check_kernel, log_ndtr
from perturbkernel.theory.law.certificates import (
    ExperimentCertificate,
    SignCertificate,
    Simulation,
    point_failures,
    strength,
)
from perturbkernel.theory.law.drawn import (
    Second,
    Training,
    draw_experiments,
    draw_networks,
    shape_for,
)
from perturbkernel.theory.law.holdout import allowed_failures, largest_set, least_draws
from perturbkernel.theory.matching import STARTS
from perturbkernel.training.dynamics import HeavyBall

#: The part of delta that pays for the simulation, unless a confidence is given.
_SIMULATION = 0.1
_FEWEST_PILOTS = 2


def _simulation(pilot: int, draws: int, delta, confidence) -> Simulation:
    """The levels, checked."""
    check_number(delta, "delta", high=1.0, open_low=True)
    if confidence is None:
        confidence = 1 - _SIMULATION * delta
    check_number(confidence, "confidence", high=1.0)
    error = 1 - confidence
    if not 0 < error < delta:
        raise ValueError(
            f"confidence must be above 1 - delta, which pays for it, and below 1; got {confidence} "
            f"for delta = {delta}"
        )
    check_count(pilot, "pilot", low=_FEWEST_PILOTS)
    check_count(draws, "draws")
    fewest = least_draws(delta - error, error)
    if draws < fewest:
        raise ValueError(
            f"draws must be at least {fewest} to certify anything with delta = {delta:g} and "
            f"confidence = {confidence:g}; got {draws}"
        )
    allowed = allowed_failures(draws, delta - error, error)
    return Simulation(int(pilot), int(draws), float(delta), float(confidence), allowed)


class _Seen(NamedTuple):
    """One network's outputs: mean and deviation over the pilot (m,), and the signs asked about;
    which draws have another sign, (draws, m).
    """

    signs: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    wrong: np.ndarray

    @property
    def log_failure(self) -> np.ndarray:
        """log of the Gaussian estimate of a wrong sign: only the order of points rests on it."""
        sureness = strength(self.signs, self.mean, self.deviation)
        return log_ndtr(-sureness)


def _see(pilot: np.ndarray, draws: np.ndarray, signs: np.ndarray | None) -> _Seen:
    mean = pilot.mean(axis=0, dtype=np.float64)
    deviation = pilot.std(axis=0, ddof=1, dtype=np.float64)
    if signs is None:
        signs = np.where(mean < 0, -1.0, 1.0)
    # An output of 0, or none at all (NaN), has no sign.
    wrong = ~(signs * draws > 0)
    return _Seen(signs, mean, deviation, wrong)


def _certificate(seen: _Seen, simulation: Simulation, **network: Any) -> SignCertificate:
    order = np.argsort(seen.log_failure, kind="stable")
    certified, violations = largest_set(order, seen.wrong, simulation.allowed)
    return SignCertificate(
        signs=seen.signs,
        certified=certified,
        leading=seen.mean,
        deviation=seen.deviation,
        failure=point_failures(seen.wrong, simulation.confidence),
        violations=violations,
        simulation=simulation,
        **network,
    )


def certify_outputs(
    pilot: Float[ArrayLike, "p m"],
    draws: Float[ArrayLike, "k m"],
    *,
    delta: float = 0.1,
    confidence: float | None = None,
    signs: Float[ArrayLike, " m"] | None = None,
) -> SignCertificate:
    """At which of m points the signs of a random function are known, from draws of it.

    Of any loss, architecture or optimizer: all that counts is that the rows are independent and
    drawn as the function will be.

    Args:
        pilot: (p, m), outputs of p draws, which choose signs and the order of points.
        draws: (k, m), outputs of k others, which decide how many of the points are certified.
        delta: the probability that the statement may fail.
        confidence: of the simulation, above 1 - delta; 1 - delta / 10 if left out.
        signs: (m,), numbers whose signs are asked about; those of the pilot's mean if left out.

    Example:
        >>> import numpy as np, perturbkernel as pk
        >>> outputs = np.random.default_rng(0).normal([0.0, 2.0, 9.0], size=(500, 3))
        >>> pk.theory.certify_outputs(outputs[:100], outputs[100:]).certified.tolist()
        [False, True, True]

    Theory: 14.5.
    """
    first = _as_outputs(pilot, "pilot")
    second = _as_outputs(draws, "draws")
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"pilot and draws must have the same columns, one a point; got {first.shape} and "
            f"{second.shape}"
        )
    simulation = _simulation(len(first), len(second), delta, confidence)
    return _certificate(_see(first, second, _as_signs(signs, first.shape[1])), simulation)


def _as_outputs(value: Any, name: str) -> np.ndarray:
    array = np.asarray(value, np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name} must have shape (networks, points); got {array.shape}")
    return array


def _as_signs(signs: Any, points: int) -> np.ndarray | None:
    if signs is None:
        return None
    array = np.sign(as_vector(signs, "signs", points))
    if not array.all():
        count = int((array == 0).sum())
        raise ValueError(f"signs must not be 0, which is no sign; got {count} of {points}")
    return array


def _check_descent(dynamics: Any, name: str = "dynamics") -> None:
    if not isinstance(dynamics, HeavyBall):
        raise TypeError(
            f"{name} must be HeavyBall(learning_rate, steps): what is certified is the network "
            f"that these steps make; got {dynamics!r}"
        )


class _Asked(NamedTuple):
    """What both front doors are asked, checked; arrays in the dtype of x."""

    x: jax.Array
    y: jax.Array
    z: jax.Array
    simulation: Simulation


def _asked(kernel, x, y, z, width, start, simulation: Simulation, progress, key) -> _Asked:
    check_kernel(kernel)
    x = as_inputs(x, "x", flat=True)
    y = as_targets(y, "y", len(x))
    points = as_points(z, "z", like=np.asarray(x))
    check_choice(start, "start", STARTS)
    check_width(width, start == "doubled")
    check_progress(progress)
    check_key(key)
    return _Asked(x, y, jnp.asarray(points, x.dtype), simulation)


def certify_network(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
    *,
    width: int,
    dynamics: HeavyBall,
    delta: float = 0.1,
    confidence: float | None = None,
    start: str = "random",
    signs: Float[ArrayLike, " m"] | None = None,
    draws: int = 400,
    pilot: int = 100,
    progress: Any = None,
    key: PRNGKeyArray,
) -> SignCertificate:
    """At which points a network's signs are known before it is drawn: no laziness assumed.

    The statement: with probability 1 - delta over the simulation and the initialisation, the
    network of this width, trained by these steps on (x, y) with the identity loss, has the signs
    `signs` at every certified point. `simulation` on the result says what of delta is which.

    For g, given a trained f: x and y its perturbations and their targets, signs=f(z); then g is
    certified to agree with that f.

    Example:
        >>> import jax, perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 0.0], [1.0, 1.0]]
        >>> training = {"width": 100, "start": "centred", "dynamics": pk.HeavyBall(0.1, 3)}
        >>> draws = {"pilot": 20, "draws": 100, "key": jax.random.key(0)}
        >>> c = pk.theory.certify_network(pk.TwoLayerNTK(), x, y, z, **training, **draws)
        >>> c.certified.tolist(), c.share
        ([True, False], 0.5)

    Args:
        kernel: of the network: slope, and whether biases are trained.
        x, y: (n, d), (n,) in {-1, +1}: the training set. z: (m, d), points chosen before.
        width: of the network; even if doubled.
        dynamics: the steps, `HeavyBall`: momentum 0 is plain gradient descent.
        delta: the probability that the statement may fail.
        confidence: of the simulation, above 1 - delta; 1 - delta / 10 if left out.
        start: "random"; "centred", f - f0; "doubled", antisymmetric.
        signs: (m,), numbers whose signs are asked about; of the mean output if left out.
        draws: networks that decide how many points are certified; more of them certify a little
            more. pilot: networks that choose signs and the order of the points.
        progress: `progress.update(k)` is called after every k networks.
        key: random key of the simulation.

    Raises:
        ValueError, TypeError: bad arguments; too few draws to certify anything.

    Computes in the dtype of x. Cost: (draws + pilot) trainings of a network, neuron by neuron in
    blocks within the kernel's memory.

    Theory: 14.5.
    """
    simulation = _simulation(pilot, draws, delta, confidence)
    _check_descent(dynamics)
    asked = _asked(kernel, x, y, z, width, start, simulation, progress, key)
    wanted = _as_signs(signs, len(asked.z))
    shape = shape_for(kernel, width, start, asked.x)
    training = Training.of(asked.x, asked.y, dynamics)
    outputs = draw_networks(shape, pilot + draws, training, asked.z, progress=progress, key=key)
    seen = _see(outputs[:pilot], outputs[pilot:], wanted)
    time = dynamics.effective_time
    return _certificate(seen, simulation, width=width, start=start, time=time)


def certify_experiment(
    kernel: TwoLayerNTK,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    z: Float[ArrayLike, "m d"],
    *,
    width: int,
    dynamics: HeavyBall | tuple[HeavyBall, HeavyBall],
    size: float,
    targets: Float[ArrayLike, " n"],
    delta: float = 0.1,
    confidence: float | None = None,
    start: str = "random",
    carrier: Float[ArrayLike, "n d"] | None = None,
    draws: int = 400,
    pilot: int = 100,
    progress: Any = None,
    key: PRNGKeyArray,
) -> ExperimentCertificate:
    """At which points f, and g trained on f's perturbations, have one sign that is known before
    either is drawn: the whole theorem, no laziness assumed.

    The statement: with probability 1 - delta over the simulation and both initialisations,
    sgn f = sgn g at every certified point, and both are `signs`. In the simulation f is drawn and
    trained, its input gradients make the perturbations, and a fresh g is trained on these, pair by
    pair: whatever f's start does to g is in it.

    Example:
        >>> import jax, perturbkernel as pk
        >>> x, y, z = [[1.0, 0.0], [0.0, 1.0]], [1, -1], [[2.0, 0.0], [1.0, 1.0]]
        >>> training = {"width": 100, "start": "centred", "dynamics": pk.HeavyBall(0.1, 3)}
        >>> options = {"size": 3.0, "targets": y, "draws": 100, "pilot": 20}
        >>> c = pk.theory.certify_experiment(
        ...     pk.TwoLayerNTK(), x, y, z, **training, **options, key=jax.random.key(0)
        ... )
        >>> c.certified.tolist(), c.f.share, c.g.share
        ([True, False], 0.5, 0.5)

    Args:
        kernel, x, y, z, width, delta, confidence, start, progress, key: as in `certify_network`;
            start "centred": f - f0, g - g0, and perturbations along grad f - grad f0.
        dynamics: the steps of both networks, or (those of f, those of g).
        size: l2 length of each perturbation, > 0.
        targets: (n,) in {-1, +1}, what g is trained on.
        carrier: (n, d); None is scenario (a), zero; x is scenario (b).
        draws, pilot: as in `certify_network`, in pairs of networks.

    Where f's gradient at a training point is 0 the carrier stays as it is.

    Raises:
        ValueError, TypeError: bad arguments; too few draws to certify anything.

    Theory: 14.5.
    """
    simulation = _simulation(pilot, draws, delta, confidence)
    check_number(size, "size", open_low=True)
    descents = dynamics if isinstance(dynamics, tuple) else (dynamics, dynamics)
    if len(descents) != 2:
        raise ValueError(f"dynamics must be one HeavyBall or two, (f, g); got {len(descents)}")
    for descent in descents:
        _check_descent(descent)
    asked = _asked(kernel, x, y, z, width, start, simulation, progress, key)
    n = len(asked.x)
    dtype = asked.x.dtype
    targets = as_targets(targets, "targets", n).astype(dtype)
    if carrier is None:
        carrier = jnp.zeros_like(asked.x)
    points = as_points(carrier, "carrier", like=np.asarray(asked.x), rows=n)
    first = Training.of(asked.x, asked.y, descents[0])
    later = Training.of(asked.x, targets, descents[1])
    second = Second(
        jnp.asarray(points, dtype),
        targets,
        jnp.asarray(size, dtype),
        later.rates,
        later.momentum,
    )
    shape = shape_for(kernel, width, start, asked.x)
    total = pilot + draws
    f, g = draw_experiments(shape, total, first, second, asked.z, progress=progress, key=key)
    seen_f = _see(f[:pilot], f[pilot:], None)
    seen_g = _see(g[:pilot], g[pilot:], seen_f.signs)
    either = np.logaddexp(seen_f.log_failure, seen_g.log_failure)
    order = np.argsort(either, kind="stable")
    wrong = seen_f.wrong | seen_g.wrong
    certified, violations = largest_set(order, wrong, simulation.allowed)
    network = {"width": width, "start": start}
    time_f = descents[0].effective_time
    time_g = descents[1].effective_time
    return ExperimentCertificate(
        signs=seen_f.signs,
        certified=certified,
        f=_certificate(seen_f, simulation, time=time_f, **network),
        g=_certificate(seen_g, simulation, time=time_g, **network),
        violations=violations,
        simulation=simulation,
        targets=np.asarray(targets, np.float64),
        size=float(size),
    )
