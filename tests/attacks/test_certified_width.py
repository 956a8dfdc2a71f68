"""Certified sizes of networks of finite width: against networks that are drawn, trained and
attacked, and every constant against draws of neurons or a formula written out once more.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from scipy import integrate, stats

import perturbkernel as pk
from perturbkernel.attacks.certificates import points as _points
from perturbkernel.attacks.certificates import radius as _radius
from perturbkernel.attacks.certificates import width as _width

# Any, for the type checker: NumPy arrays and numbers are welcome where signatures say Array.
certified_size: Any = pk.certified_size
points: Any = _points
radius: Any = _radius
width: Any = _width
D, N, M = 3, 12, 6
SIGNS = np.where(np.arange(N) % 2, 1.0, -1.0)
CASES = [(pk.TwoLayerNTK(0.0), 0.1), (pk.TwoLayerNTK(0.3, True), 1.0)]
IDS = ["slope 0", "slope 0.3 with biases"]


def data(rng):
    x = rng.normal(size=(N, D)) + 1.5 * SIGNS[:, None]
    return x, SIGNS, 0.5 * rng.normal(size=(M, D)) + 1.5 * SIGNS[:M, None]


def trained(kernel, x, y, time) -> Any:
    return pk.fit(kernel, x, y, dynamics=pk.GradientFlow(time), precision=64)


def pairs(rng, count) -> tuple[np.ndarray, ...]:
    """Weights with biases (count, D + 1), readouts (count,), of a doubled network of width 2
    count."""
    w = rng.normal(size=(count, D + 1)) / np.sqrt(np.append(np.full(D, D), 1.0))
    return w, rng.normal(size=count) / np.sqrt(2 * count)


def ones(x):
    return np.hstack([x, np.ones((len(x), 1))])


def descend(w, a, kernel, x, pulls, steps=10) -> np.ndarray:
    """Weights after gradient descent on the identity loss: the sum of all rates is in `pulls`."""
    for _ in range(steps):
        gates = np.where(w @ ones(x).T > 0, 1.0, kernel.slope)
        w = w + a[:, None] * (gates @ pulls) / steps
    return w


def draw(rng, kernel, x, y, time, m) -> tuple[np.ndarray, np.ndarray]:
    """A trained doubled network: weights (m, D + 1) and readouts (m,)."""
    w, a = pairs(rng, m // 2)
    w, a = np.vstack([w, w]), np.append(a, -a)
    pulls = np.hstack([x, np.full((N, 1), float(kernel.train_bias))]) * y[:, None] * time / N
    return descend(w, a, kernel, x, pulls), a


def output(net, kernel, z):
    w, a = net
    u = ones(z) @ w.T
    return np.where(u > 0, u, kernel.slope * u) @ a


def weakest(rng, net, f, z, sizes, decision, norm="l2") -> np.ndarray:
    """The least margins found on the spheres, (M,): random perturbations, f's gradient, and some
    steps of the network's own."""
    order = {"l2": 2, "linf": np.inf}[norm]
    w, a = net
    steep = np.asarray(f.input_gradient(z))
    delta = np.concatenate(
        [rng.normal(size=(M, 40, D)), -decision[:, None, None] * steep[:, None]], 1
    )
    delta = np.concatenate([delta, np.sign(delta[:, -1:])], axis=1)
    least = np.full(M, np.inf)
    for _ in range(3):
        delta *= (sizes / np.linalg.norm(delta, order, axis=2).T).T[..., None]
        near = z[:, None] + delta
        margins = decision[:, None] * output(net, f.kernel, near.reshape(-1, D)).reshape(M, -1)
        least = np.minimum(least, margins.min(1))
        worst = near[np.arange(M), margins.argmin(1)]
        gates = np.where(ones(worst) @ w.T > 0, 1.0, f.kernel.slope)
        own = (gates * a) @ w[:, :D]
        own = own if norm == "l2" else np.sign(own)
        delta = np.concatenate([delta[:, :2], -decision[:, None, None] * own[:, None]], axis=1)
    return least


@pytest.mark.parametrize(("case", "norm"), [(0, "l2"), (1, "linf")], ids=IDS)
def test_no_attack_on_drawn_networks_succeeds_inside(case, norm):
    """Twelve networks of width 4000 with a failure of 0.1; the same attack takes most of them at
    3 times the limit's size."""
    (kernel, time), rng = CASES[case], np.random.default_rng(case)
    x, y, z = data(rng)
    f = trained(kernel, x, y, time)
    found = certified_size(f, z, norm=norm, width=4000, failure=0.1)
    limit = certified_size(f, z, norm=norm)
    assert (found.size > 0.1 * limit.size).all() and (found.size < limit.size).all()
    np.testing.assert_array_equal(found.decision, limit.decision)
    broken, fallen = np.zeros(M), np.zeros(M)
    for _ in range(12):
        net = draw(rng, kernel, x, y, time, 4000)
        broken += weakest(rng, net, f, z, found.size, found.decision, norm) <= 0
        fallen += weakest(rng, net, f, z, 3 * limit.size, found.decision, norm) <= 0
    assert stats.binom.sf(broken.max() - 1, 12, 0.1) > 1e-4
    assert fallen.mean() > 6


def test_the_limit_and_monotone():
    x, y, z = data(np.random.default_rng(2))
    f = trained(*CASES[1][:1], x, y, 1.0)

    def sizes(m, failure=0.1):
        return certified_size(f, z, width=m, failure=failure).size

    limit = certified_size(f, z).size
    rows = [sizes(m) for m in (2, 4000, 40_000, 10**6, 10**10)] + [limit]
    assert (rows[0] == 0).all() and (np.diff(rows, axis=0) >= 0).all()
    assert (np.diff(rows, axis=0)[1:] > 0).all()
    np.testing.assert_allclose(sizes(10**16), limit, rtol=1e-3)
    assert (sizes(40_000, 0.5) > rows[2]).all() and (rows[2] > sizes(40_000, 1e-6)).all()
    said = repr(certified_size(f, z, width=4000))
    assert "4,000" in said and "failure" in said and "failure" not in repr(certified_size(f, z))


def test_slope_one_loses_only_what_is_drawn_at_the_input():
    """A linear network has no gates: its sizes tend to the limit's as 1/sqrt(m)."""
    x, y, z = data(np.random.default_rng(3))
    f = trained(pk.TwoLayerNTK(1.0), x, y, 1.0)
    limit = certified_size(f, z).size
    lost = [limit - certified_size(f, z, width=m).size for m in (10**6, 10**8)]
    np.testing.assert_allclose(lost[0] / lost[1], 10, rtol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 101}, "must be even; got 101"),
        ({"width": 0}, "width must be at least 2"),
        ({"width": 100, "failure": 0.0}, "failure must be"),
        ({"failure": 2.0}, "failure must be"),
    ],
)
def test_wrong_widths_are_refused(arguments, message):
    x, y, z = data(np.random.default_rng(4))
    with pytest.raises(ValueError, match=message):
        certified_size(trained(pk.TwoLayerNTK(), x, y, 1.0), z, **arguments)


def test_other_trainings_are_refused():
    x, y, z = data(np.random.default_rng(4))
    kernel, key = pk.TwoLayerNTK(), jax.random.key(0)
    started = pk.fit(kernel, x, y, initial=pk.sample_initial(kernel, x, key=key))
    for f, message in [
        (pk.fit(kernel, x, y, loss="squared"), "identity loss, without a ridge"),
        (pk.KernelPredictor(kernel, jnp.asarray(x), jnp.asarray(y)), "got None loss"),
        (pk.fit(kernel, x, np.eye(2)[np.arange(N) % 2]), "of one output; f has 2"),
        (started, "start doubled"),
    ]:
        with pytest.raises(ValueError, match=message):
            certified_size(f, z, width=1000)


# One program each, as within `certified_size`.
wide_of = jax.jit(width.wide_of, static_argnums=6)
width_loss = jax.jit(width.width_loss)


def at(kernel, x, coef, z, m=1000, failure=0.1):
    """(wide, query, seen, numbers) of one input, by NumPy where it is not under test."""
    d = x.shape[1]
    numbers = radius.Numbers(
        cone=(1 - kernel.slope) ** 2 / (2 * np.pi),
        gate=(1 + kernel.slope**2) / 2,
        bias=float(kernel.train_bias),
        reach=1.0,
        rounding=1e-13,
    )
    length = np.linalg.norm(z)
    query = points.Query(jnp.asarray(z), length, np.sqrt(d + length**2), length)
    seen = points.Seen(
        factor=jnp.asarray(x @ z + numbers.bias),
        theta=jnp.asarray(np.asarray(oracle.angle(z[None], x), float)[0]),
        root=jnp.asarray(np.sqrt(d + (x**2).sum(1))),
        dual=jnp.asarray(np.linalg.norm(x, axis=1)),
    )
    wide = wide_of(jnp.asarray(x), coef, numbers, m, failure, kernel.slope, 2**24)
    return wide, query, seen, numbers


def loss_by_hand(kernel, x, c, z, r, m, delta) -> float:
    """A + r B + E + min F of theory 17.4, l2, from its symbols."""
    g, bias, d = kernel.slope, float(kernel.train_bias), x.shape[1]
    gram = x @ x.T
    phi = (1 + g**2) / 2 - (1 - g) ** 2 / (2 * np.pi) * np.asarray(oracle.angle(x, x), float)

    def ends(k):
        up, down = np.clip(c * k, 0, None).sum(), np.clip(-c * k, 0, None).sum()
        return max(up - g * down, 0), max(down - g * up, 0)

    k, norm = x @ z + bias, np.linalg.norm(x, axis=1)
    hi, lo = ends(k)
    h = max(hi, lo)
    size = np.abs(c)
    most = (1 + g) / 2 * np.linalg.norm(c @ x) + (1 - g) / 2 * np.sqrt(size @ np.abs(gram) @ size)
    square = (c * k) @ phi @ (c * k)
    squares = c @ (phi * gram) @ c
    pairs, level, level2 = m / 2, np.log(4 / delta), np.log(8 / delta)
    a = np.sqrt(6 * square * level / pairs) + 2 * h * level / pairs
    b = np.sqrt(6 * squares * level2 / pairs) + 27 * most * level2 / pairs
    reach = np.abs(k) + r * norm
    s_x = np.sqrt(1 + norm**2 / d)
    speeds = np.array([sum(ends(row)) for row in gram + bias])
    sides = np.where(np.abs(k) > r * norm, 1, 2)
    turned = np.sum(size * reach * sides * speeds / s_x) / (4 * np.sqrt(2 * np.pi))
    total = size @ reach
    e = 2 * np.sqrt(2 / np.pi) * turned / np.sqrt(m) + 4 * total * level / m
    e += np.sqrt(2**5.5 * total * turned * level / np.sqrt(np.pi) / m**1.5)
    beta = min(1, 2 / np.sqrt(d + 2))
    inside = integrate.quad(lambda t: (1 - t * t) ** ((d - 1) / 2), -beta, beta)[0]
    rise = integrate.quad(lambda t: (1 - t * t) ** ((d - 1) / 2), -1, 1)[0] / inside
    bar = h + r * most
    alpha = np.arcsin(min(1, r / np.sqrt(d) / np.sqrt(1 + z @ z / d)))
    alpha = alpha if r < np.sqrt(d + z @ z) else np.pi
    best = np.inf
    for share in width._SHARES.ravel():
        eps = r / share
        p = min(np.pi, alpha + eps / np.sqrt(d), np.hypot(r, eps) / np.sqrt(d)) / np.pi
        band = beta * eps * (hi + lo + 2 * (r + 2 * eps) * most)
        band += 2 * np.sqrt(2 / np.pi) * bar / np.sqrt(m) * (bar + 2 * eps * most)
        first = rise / np.sqrt(2 * np.pi) * band + 2 * eps * most * p
        first += (1 - g) / (2 * np.pi) * eps / np.sqrt(d) * total
        entropy = level + d * np.log(1 + share)
        largest = h + (r + 3 * eps) * most
        cs = width._RATES
        s = cs / rise
        plain, even = ((1 - 2 * v) ** -0.5 - 1 - v for v in (s, cs))
        odd = np.sqrt(2 / np.pi) * (1 / (1 - 2 * cs) - 1 - 2 * cs)
        rest = p * plain + np.sqrt(2 / np.pi) * (beta * eps * even + bar / np.sqrt(m) * odd)
        best = min(best, first + (largest / s * (entropy / pairs + rest)).min())
    return a + r * b + (1 - g) * (e + best)


@pytest.mark.parametrize("case", [0, 1], ids=IDS)
def test_the_loss_by_width_is_the_formula_of_theory(case):
    kernel, rng = CASES[case][0], np.random.default_rng(case)
    x, _, z = data(rng)
    coef = rng.normal(size=N)
    with jax.enable_x64(True):
        for m, r, failure in [(1000, 0.3, 0.1), (10**6, 2.0, 0.01)]:
            wide, query, seen, numbers = at(kernel, x, coef, z[0], m, failure)
            loss = float(width_loss(wide, query, seen, coef, numbers, jnp.asarray(r)))
            expected = loss_by_hand(kernel, x, coef, z[0], r, m, failure)
            np.testing.assert_allclose(loss, expected, rtol=3e-6)


def test_averages_over_balls_bound_gates():
    """P(v + t > 0) <= C P(0 < v + t <= beta + b) for v < b, t a coordinate of a point in the ball,
    and C is not larger than it must be."""
    for d in (1, 2, 3, 64, 784):
        with jax.enable_x64(True):
            beta, rise = (float(number) for number in width.band_of(d))
        law = stats.beta((d + 1) / 2, (d + 1) / 2, loc=-1, scale=2)
        for b in (0.0, 0.1 * beta, beta, 0.7):
            v = np.append(np.linspace(-1.2, b, 400), b)
            bound = rise * (law.cdf(beta + b - v) - law.cdf(-v))
            slack = bound - law.sf(-v)
            assert slack.min() > -1e-12
            if b == 0:
                assert slack.min() < 1e-12


def test_exponential_moments():
    def normal(t):
        return 2 * np.exp(-t * t / 2) / np.sqrt(2 * np.pi)

    for rate in (0.1, 0.35):

        def excess(t, rate=rate):
            return np.exp(rate * t * t) - 1 - rate * t * t

        even = integrate.quad(lambda t: excess(t) * normal(t), 0, 40)[0]
        odd = integrate.quad(lambda t: t * excess(t) * normal(t), 0, 40)[0]
        np.testing.assert_allclose(width.excess_moments(rate), [even, odd], rtol=1e-9)


@pytest.mark.parametrize("case", [0, 1], ids=IDS)
def test_moments_near_the_input_bound_those_of_drawn_neurons(case):
    """Second moments and largest values of a neuron, and what training's gates cost, by draws."""
    (kernel, time), rng = CASES[case], np.random.default_rng(7 + case)
    x, y, z = data(rng)
    coef, z = 10 * time * y / N, z[0]
    with jax.enable_x64(True):
        wide, _, seen, numbers = at(kernel, x, coef, z, m=400)
        turning, second = np.asarray(wide.turning), np.asarray(wide.second)
        high, low = map(float, width.extremes(coef * seen.factor, kernel.slope))
        factor = np.asarray(seen.factor)
    w, _ = pairs(rng, 60_000)
    a = rng.normal(size=len(w)) / np.sqrt(400)
    gates = np.where(w @ ones(x).T > 0, 1.0, kernel.slope)
    pulls = np.hstack([x, np.full((N, 1), numbers.bias)]) * coef[:, None]
    velocity = gates @ pulls
    drawn = velocity.T @ velocity / len(w)
    np.testing.assert_allclose(second, drawn, rtol=0.03, atol=0.01 * second.max())
    assert np.linalg.norm(velocity[:, :D], axis=1).max() <= float(wide.pull) * (1 + 1e-12)
    at_z = velocity @ np.append(z, 1.0)
    assert -low <= at_z.min() and at_z.max() <= high
    # What the gates at training points take from s g, for readouts of either sign.
    mean_gates = np.zeros_like(gates)
    for sign in (1, -1):
        moving = w
        for _ in range(20):
            now = np.where(moving @ ones(x).T > 0, 1.0, kernel.slope)
            mean_gates += now / 40
            moving = moving + sign * a[:, None] * (now @ pulls) / 20
    lost = np.maximum(-(mean_gates - gates) @ (coef * factor), 0)
    mean = 400 * (a**2 * lost).mean()
    bound = 2 * np.sqrt(2 / np.pi) * (1 - kernel.slope) * (turning @ np.abs(factor)) / 20
    assert 0.1 * bound < mean < bound
