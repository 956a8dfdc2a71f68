"""One cell of the reproduction in the kernel limit: all that panels ask of one data set and kernel.

Identity loss: f(z; T) = f0(z) + T f_hat(z), so every learning rate and step count is a time, and
`second_networks` evaluates every size, time and target draw from one pass. Results come twice: from
zero initial functions, where no time matters, and with random ones, where the sign of the second
network follows in closed form (theory: 12.1),

    P(sgn g(z) = s) = N_c(s T_g g_hat(z) / sqrt(Sigma(z, z))),

given the first network's initial function f0, which is in the perturbations too and is drawn.
Logistic loss: zero initial functions; each training is integrated once, for all its times.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import ndtr

from perturbkernel.engine.tiles import EXACT
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.networks.two_layer import TwoLayerNetwork
from perturbkernel.reproduce.panels.datasets import Drawn, accuracy, draw, targets
from perturbkernel.reproduce.panels.sweep import (
    Combination,
    Directions,
    first_networks,
    padded,
    second_networks,
)
from perturbkernel.reproduce.records import Arrays, Config, Json
from perturbkernel.training.dynamics import HeavyBall

RULES = ("coin_flip", "balanced")
# Untrained networks whose outputs and gradients stand for a draw of the initial function: their
# covariance is exact at any width, and they are Gaussian up to 1/width.
_WIDTH = 2048
# An initial gradient shorter than this fraction of the trained one turns perturbations by half a
# degree: it is left out of them (the second network's own initial function is not).
_NEGLIGIBLE = 0.01


class Request(NamedTuple):
    """One experiment on the cell's data: the perturbations, and how long either network trains."""

    scenario: str
    size: float
    learning_rate_f: float
    steps_f: int
    learning_rate_g: float
    steps_g: int

    @property
    def time_f(self) -> float:
        dynamics = HeavyBall(self.learning_rate_f, self.steps_f)
        return dynamics.effective_time

    @property
    def time_g(self) -> float:
        dynamics = HeavyBall(self.learning_rate_g, self.steps_g)
        return dynamics.effective_time


def limit_cell(config: Config) -> Arrays:
    """Returns the numbers of the cell that `config` describes.

    Args:
        config: data, slope, loss, requests (rows as in `Request`), draws of targets by each rule;
            with the identity loss initial_draws and cosine, with the logistic one dynamics.

    Returns:
        Arrays with a leading axis of requests: "standard_zero", "perturbation_zero_<rule>" (r,
        draws) and "agreement_zero_<rule>" from zero initial functions; for the identity loss
        "standard", "perturbation_<rule>", "agreement_<rule>", with initial functions, averaged over
        their draws; with `cosine`, "cosine", "cosine_zero" with the theory's direction; for the
        logistic loss "unstable_f", whether the rate is above the stable one, and no cosine.
    """
    drawn = draw(config["data"])
    kernel = TwoLayerNTK(config["slope"], train_bias=True)
    requests = [Request(*row) for row in config["requests"]]
    n = len(drawn.y)
    draws: dict[str, int] = dict(zip(RULES, config["draws"], strict=True))
    labels = targets(config["data"], n, draws)
    if config["loss"] == "identity":
        initial_draws = config["initial_draws"]
        return _identity(kernel, drawn, requests, labels, initial_draws, config["cosine"])
    from perturbkernel.reproduce.panels.limit_logistic import logistic

    return logistic(kernel, drawn, requests, labels, config["dynamics"])


# --- the identity loss ---


class _Initial(NamedTuple):
    """One initial function f0 of the first network: outputs at z, gradients at training points."""

    outputs: Float[np.ndarray, " m"]
    gradients: Directions


class _First(NamedTuple):
    """The first network, a unit of time from zero.

    z: the training points, padded to a round number, then the fresh ones.
    deviation: of f0(z), its standard deviation.
    square: E |grad f0|^2.
    cosine: of the gradients with the theory's direction, if asked for.
    """

    y: Float[np.ndarray, " n"]
    z: Float[np.ndarray, "m d"]
    fresh: slice
    f_hat: Float[np.ndarray, " m"]
    gradient: Float[np.ndarray, "n d"]
    length: Float[np.ndarray, " n"]
    deviation: Float[np.ndarray, " m"]
    square: float
    cosine: Float[np.ndarray, " n"] | None
    initial: list[_Initial]


class _Second(NamedTuple):
    """Second networks, a unit of time from zero, (draws of targets, m) each: by (scenario, size)
    without f0; by (scenario, size, time of f) with each of its draws.
    """

    without: dict[tuple[str, float], np.ndarray]
    with_initial: dict[tuple[str, float, float], np.ndarray]


def _identity(
    kernel: TwoLayerNTK,
    drawn: Drawn,
    requests: list[Request],
    labels: Arrays,
    initial_draws: int,
    with_cosine: bool,
) -> Arrays:
    """The result of a cell whose loss is the identity; see `limit_cell`."""
    x = np.asarray(drawn.x)
    first = _first_network(kernel, drawn, requests, initial_draws, with_cosine)
    second = _second_networks(kernel, x, first, requests, labels)
    count = labels[RULES[0]].shape[1]
    rows = []
    for request in requests:
        row = _of_first(first, request)
        found = _of_second(first, second, request)
        for name, values in found.items():
            parts = np.split(values, [count])
            for rule, part in zip(RULES, parts, strict=True):
                row[f"{name}_{rule}"] = part
        rows.append(row)
    return by_name(rows)


def by_name(rows: list[Json]) -> Arrays:
    """Rows with the same names as arrays with a leading axis of rows.

    by_name([{"size": 1.0}, {"size": 2.0}])  # {"size": array([1., 2.])}
    """
    found = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        found[name] = np.asarray(values)
    return found


def _first_network(
    kernel: TwoLayerNTK,
    drawn: Drawn,
    requests: list[Request],
    initial_draws: int,
    with_cosine: bool,
) -> _First:
    x = drawn.x
    y = np.asarray(drawn.y)
    n, d = x.shape
    # Fresh points after the padded training points: z has a round size too.
    z = np.concatenate([padded(x), drawn.fresh])
    coef = y / n
    found = first_networks(kernel, z, x, coef[:, None], direction=with_cosine)
    gradient = found.gradients[0, :n]
    length = np.linalg.norm(gradient, axis=1)
    cosine = None
    if found.direction is not None:
        cosine = _cosine(gradient, found.direction[:n])
    square = (1 + kernel.slope**2) / 2
    lengths = np.sum(np.square(z), axis=1)
    variance = square * (1 + lengths / d)

    first_time = min(request.time_f for request in requests)
    shortest = first_time * np.median(length)
    if np.sqrt(square) < _NEGLIGIBLE * shortest:
        initial_draws = 0
    return _First(
        y=y,
        z=z,
        fresh=slice(-len(drawn.fresh), None),
        f_hat=found.outputs[0],
        gradient=gradient,
        length=length,
        deviation=np.sqrt(variance),
        square=square,
        cosine=cosine,
        initial=_initial_functions(kernel, drawn, z, initial_draws),
    )


def _initial_functions(
    kernel: TwoLayerNTK, drawn: Drawn, z: np.ndarray, count: int
) -> list[_Initial]:
    key = jax.random.fold_in(drawn.key, 2)
    queries = padded(z)
    points = padded(drawn.x)
    initial = []
    at_z = slice(len(z))
    at_x = slice(len(drawn.x))
    is_shorter = z.shape[1] > _WIDTH
    for one in jax.random.split(key, count):
        found = _initial_function(kernel.slope, is_shorter, queries, points, one)
        outputs, gradients, factors = jax.tree.map(np.asarray, found)
        if factors is not None:
            of_queries, of_points = factors
            factors = of_queries[at_z], of_points[at_x]
        directions = Directions(gradients[at_x], factors)
        initial.append(_Initial(outputs[at_z], directions))
    return initial


def _second_networks(
    kernel: TwoLayerNTK,
    x: np.ndarray,
    first: _First,
    requests: list[Request],
    labels: Arrays,
) -> _Second:
    """All second networks that the requests ask for, from one pass over the data."""
    plain = list(dict.fromkeys((r.scenario, r.size) for r in requests))
    of_initial = [initial.gradients for initial in first.initial]
    matrices = [Directions(first.gradient), *of_initial]
    if any(scenario == "b" for scenario, _ in plain):
        matrices.append(Directions(x))
    # Directions as coefficients of the gradient of f_hat and of the initial gradients. From zero no
    # time matters ...
    along = _inverse(first.length)
    combinations = []
    for scenario, size in plain:
        deltas = {0: size * along}
        combinations.append(_combination(scenario, deltas, matrices))
    # ... and with an initial function directions change with the first network's time.
    timed = list(dict.fromkeys((r.scenario, r.size, r.time_f) for r in requests))
    for number, initial in enumerate(of_initial):
        for scenario, size, time in timed:
            direction = initial.rows + time * first.gradient
            unit = _inverse(np.linalg.norm(direction, axis=1))
            deltas = {0: size * time * unit, 1 + number: size * unit}
            combinations.append(_combination(scenario, deltas, matrices))
    columns = np.concatenate([labels[rule] for rule in RULES], axis=1)
    g_hat = second_networks(kernel, first.z, matrices, combinations, columns)
    g_hat = g_hat.transpose(0, 2, 1)  # (combinations, draws, m)
    from_zero = g_hat[: len(plain)]
    rest = g_hat[len(plain) :]
    draws, points = rest.shape[1:]
    moved = rest.reshape(len(first.initial), len(timed), draws, points)
    without = dict(zip(plain, from_zero, strict=True))
    with_initial = {}
    for place, key in enumerate(timed):
        with_initial[key] = moved[:, place]
    return _Second(without, with_initial)


def _combination(
    scenario: str, deltas: dict[int, np.ndarray], matrices: list[Directions]
) -> Combination:
    """Perturbations with the coefficients `deltas` of some matrices, of x itself, the last matrix,
    in scenario (b).
    """
    shape = len(matrices), len(matrices[0].rows)
    carrier = np.zeros(shape)
    delta = np.zeros(shape)
    if scenario == "b":
        carrier[-1] = 1
    for matrix, coefficients in deltas.items():
        delta[matrix] = coefficients
    return Combination(carrier, delta)


def _of_first(first: _First, request: Request) -> Json:
    """What the request asks of the first network."""
    n = len(first.y)
    time = request.time_f
    f_hat = first.f_hat[:n]
    deviation = first.deviation[:n]
    margin = first.y * time * f_hat / deviation
    right = ndtr(margin)
    found = {
        "standard_zero": accuracy(f_hat, first.y),
        "standard": right.mean(),
    }
    if first.cosine is not None:
        found["cosine_zero"] = np.mean(first.cosine)
        # With an initial function the expected cosine to leading order in 1/sqrt(d) (theory:
        # 12.2).
        trained = time * first.length
        whole = np.sqrt(trained**2 + first.square)
        cosines = first.cosine * time * first.length * _inverse(whole)
        found["cosine"] = np.mean(cosines)
    return found


class _Pair(NamedTuple):
    """An initial function f0 (k,) at the k fresh points, and the g (draws, m) that learned from it,
    a unit of time from zero.
    """

    start: np.ndarray
    g_hat: np.ndarray


def _pairs(first: _First, second: _Second, request: Request) -> list[_Pair]:
    """A pair for each initial function; where those are negligible, one with zero."""
    if not first.initial:
        start = np.zeros_like(first.f_hat[first.fresh])
        g_zero = second.without[request.scenario, request.size]
        return [_Pair(start, g_zero)]
    moved = second.with_initial[request.scenario, request.size, request.time_f]
    pairs = []
    for initial, g_hat in zip(first.initial, moved, strict=True):
        start = initial.outputs[first.fresh]
        pairs.append(_Pair(start, g_hat))
    return pairs


def _of_second(first: _First, second: _Second, request: Request) -> Arrays:
    """What the request asks of the second network, for every draw of targets by all rules."""
    y = first.y
    fresh = first.fresh
    n = len(y)
    f_hat = first.f_hat[fresh]
    g_zero = second.without[request.scenario, request.size]
    zero_at_training = g_zero[:, :n]
    zero_at_fresh = g_zero[:, fresh]
    right = []
    same = []
    for start, g_hat in _pairs(first, second, request):
        margin = request.time_g * g_hat / first.deviation
        f_sign = np.sign(start + request.time_f * f_hat)
        at_training = margin[:, :n]
        at_fresh = margin[:, fresh]
        of_label = ndtr(y * at_training)
        of_f = ndtr(f_sign * at_fresh)
        right.append(of_label.mean(1))
        same.append(of_f.mean(1))
    return {
        "perturbation_zero": accuracy(zero_at_training, y),
        "agreement_zero": accuracy(zero_at_fresh, np.sign(f_hat)),
        "perturbation": np.mean(right, axis=0),
        "agreement": np.mean(same, axis=0),
    }


@partial(jax.jit, static_argnums=(0, 1))
def _initial_function(
    slope: float, factored: bool, z: Array, x: Array, key: Array
) -> tuple[Array, Array, tuple[Array, Array] | None]:
    """Of an untrained network the outputs at z, the gradients at x, and, if `factored`, <z, w_i>
    and the gradients' coefficients a_i phi'(u_i(x)) of the w_i.
    """
    d = x.shape[1]
    net = TwoLayerNetwork.init(d, _WIDTH, slope, True, key=key)
    factors = None
    if factored:
        of_neurons = jnp.matmul(z, net.weight.T, precision=EXACT)
        gates = jnp.where(net.active(x), 1, slope)
        factors = of_neurons, gates * net.readout
    return net(z), net.input_gradient(x), factors


def _inverse(length: np.ndarray) -> np.ndarray:
    """1 / length, and 0 for 0."""
    divisor = np.where(length > 0, length, np.inf)
    return 1 / divisor


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|<a_i, b_i>| / (|a_i| |b_i|) of the rows; 0 where one is zero."""
    of_a = np.linalg.norm(a, axis=1)
    of_b = np.linalg.norm(b, axis=1)
    products = np.einsum("nd,nd->n", a, b)
    return np.abs(products) * _inverse(of_a * of_b)
