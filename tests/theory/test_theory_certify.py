"""One-sided tail bounds and certificates: moments against simulated neurons, probabilities against
trained networks.
"""

import dataclasses
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from theory_tools import (
    act,
    check_protocol,
    draw,
    gate,
    gradients,
    outputs,
    problem,
    train,
    unit_gradients,
)

import perturbkernel as pk
from perturbkernel import theory
from perturbkernel.theory import tails
from perturbkernel.verify import tails_by_hand

SIZES = [(0.0, False), (0.2, True)]


def lazy_losses(p, time, readout, count, rng, steps=60):
    """(s T V - s Y / a^2)_+ of simulated neurons of one |readout|, (count, m): what X of the
    theorem majorises.
    """
    kernel, sign = p.kernel, np.sign(theory.f_hat(*p.data))
    w, b, _ = draw(rng, count, p.x.shape[1])
    a = readout * rng.choice([-1.0, 1.0], count)
    slope = kernel.slope
    before = w @ p.z.T + b[:, None]
    frozen = gate(before, slope) * (
        (gate(w @ p.x.T + b[:, None], slope) * p.y / len(p.x)) @ p.factor
    )
    after = train((w, b, a), p.x, p.y, kernel, rate=time / steps, steps=steps, momentum=0.0).network
    contribution = (act(after[0] @ p.z.T + after[1][:, None], slope) - act(before, slope)) / a[
        :, None
    ]
    return np.maximum(sign * (time * frozen - contribution), 0)


@pytest.mark.parametrize(("slope", "train_bias"), SIZES)
@pytest.mark.parametrize("readout", [0.02, 0.3])
def test_lazy_moments_bound_those_of_simulated_neurons(slope, train_bias, readout, rng):
    p, time, width = problem(slope, train_bias), 1.0, 500
    constants = theory.derive_constants(*p.data)
    j1, j2, k1, k2 = tails.lazy_moments(
        constants, tails.derive_speeds(constants), width=width, time=time
    )
    losses = lazy_losses(p, time, readout, 20_000, rng)
    error = 4 / np.sqrt(len(losses))  # four standard errors of the two means
    mean, square = readout * j1 + readout**2 * j2, readout * k1 + readout**2 * k2
    assert (losses.mean(0) <= mean + error * losses.std(0)).all()
    assert ((losses**2).mean(0) <= square + error * (losses**2).std(0)).all()
    # Not vacuous either: the bound on the mean is within a factor of 40 of what is seen at the most
    # affected point.
    assert (losses.mean(0) / mean).max() > 1 / 40


def test_speeds_are_the_extremes_over_gates(rng):
    p = problem(0.2, True)
    speeds = tails.derive_speeds(theory.derive_constants(*p.data))
    gates = rng.uniform(p.kernel.slope, 1, size=(2000, len(p.x)))
    for points, high, low in (
        (p.z, speeds.high, speeds.low),
        (p.x, speeds.input_high, speeds.input_low),
    ):
        signed = p.y[:, None] * (p.x @ points.T + p.kernel.train_bias) / len(p.x)
        seen = gates @ signed
        assert (seen <= high + 1e-12).all() and (-seen <= low + 1e-12).all()
        best = np.where(signed > 0, signed, p.kernel.slope * signed).sum(0)
        np.testing.assert_allclose(high, np.maximum(best, 0), rtol=1e-12)


@pytest.mark.parametrize("start", ["centred", "doubled", "random"])
def test_constants_hold_on_trained_networks(start, rng):
    """One-sided errors of f / T at all points at once, by protocol, level delta / points."""
    p, width, delta = problem(0.0, n=10, m=5), 1500, 0.1
    constants = theory.derive_constants(*p.data)
    speeds, sign, ratios = tails.derive_speeds(constants), np.sign(constants.f_hat), []
    for _ in range(40):
        network = draw(rng, width, p.x.shape[1])
        if start == "doubled":
            w, b, a = draw(rng, width // 2, p.x.shape[1], total=width)
            network = np.vstack([w, w]), np.concatenate([b, b]), np.concatenate([a, -a])
        trained = train(network, p.x, p.y, p.kernel, rate=0.05, steps=6)
        f0 = outputs(network, p.z, 0.0)
        f = outputs(trained.network, p.z, 0.0) - (0 if start == "random" else f0)
        tail = tails.derive_tail(constants, speeds, width=width, time=trained.time, start=start)
        bound = sum(tail.constant(delta / len(p.z)).values())
        ratios.append(np.max(sign * (constants.f_hat - f / trained.time) / bound))
    # Without f0 the fluctuation is Gaussian with the variance that the bound uses, so it cannot be
    # far below the bound.
    check_protocol(ratios, delta, low=0.1, high=1.0)


def test_failure_probability_bounds_the_share_of_wrong_signs(rng):
    """At a width so small that signs do go wrong: a bound that dropped its lazy or variance term
    would be seen.
    """
    p, width, draws = problem(0.0, n=10, m=5, shift=0.3), 40, 300
    constants = theory.derive_constants(*p.data)
    time = 0.3  # three steps of 0.1 below
    tail = tails.derive_tail(
        constants, tails.derive_speeds(constants), width=width, time=time, start="random"
    )
    bound = np.exp(tail.log_failure())
    wrong = np.zeros(len(p.z))
    for _ in range(draws):
        network = draw(rng, width, 6)
        f = outputs(
            train(network, p.x, p.y, p.kernel, rate=0.1, steps=3, momentum=0.0).network, p.z, 0.0
        )
        wrong += np.sign(f) != np.sign(constants.f_hat)
    assert (wrong / draws <= bound + 4 * np.sqrt(bound * (1 - bound) / draws) + 1e-12).all()
    assert wrong.max() > 0.1 * draws


def test_a_wide_network_fails_with_the_gaussian_exponent():
    """As the width grows the exponent tends to -m f_hat^2 / (2 (3 S^2)), that of the fluctuation
    alone.
    """
    p = problem(0.0, n=30, m=5)
    constants = theory.derive_constants(*p.data)
    speeds, width = tails.derive_speeds(constants), 10**10
    margin = 1e-3 * np.abs(constants.f_hat)  # far inside, where Bernstein's scale does not matter
    small = dataclasses.replace(constants, f_hat=np.sign(constants.f_hat) * margin)
    tail = tails.derive_tail(small, speeds, width=width, time=1e-6)
    exponent = -width * margin**2 / 2 / (3 * constants.f_second_moment)
    # The grid of t costs up to a few per cent.
    np.testing.assert_allclose(tail.log_failure(), exponent, rtol=0.05)


def test_initial_tail_holds_and_its_radius_inverts_it(rng):
    p, width = problem(0.2, m=4), 60
    constants = theory.derive_constants(*p.data)
    f0 = np.array([outputs(draw(rng, width, 6), p.z, 0.2) for _ in range(4000)])
    for quantile in (0.5, 1.0, 2.0):
        w = quantile * constants.length[None, :]
        bound = np.exp(tails.log_initial_tail(constants, w, width=width)[0])
        assert ((f0 <= -w).mean(0) <= bound + 4 * np.sqrt(bound / len(f0))).all()
    radius = tails.initial_tail_radius(constants, 0.01, width=width)
    at_radius = tails.log_initial_tail(constants, radius[None, :], width=width)[0]
    assert (at_radius <= np.log(0.01) + 1e-6).all()


def test_smallest_takes_the_surest_points_within_the_budget():
    from perturbkernel.theory.certificates import cheapest

    p = np.array([0.02, 0.5, 0.001, 0.03, 0.0])
    assert cheapest(p, np.ones(5, bool), 0.05).tolist() == [True, False, True, False, True]
    assert cheapest(p, np.array([0, 1, 1, 1, 0], bool), 0.05).tolist() == [
        False,
        False,
        True,
        True,
        False,
    ]


@pytest.fixture(scope="module")
def digits():
    train_set, test = pk.data.mnist5k(classes=(1, 2)).split(test=0.2, key=jax.random.key(0))
    targets = np.asarray(jax.random.rademacher(jax.random.key(7), (400,)), float)
    return train_set, test, targets


def test_the_whole_theorem_on_real_digits(digits):
    """Width 10,000: most held-out digits are certified, and every certified sign holds on really
    trained networks.
    """
    data, test, targets = digits
    kernel, width, steps = pk.TwoLayerNTK(), 10_000, 3
    x, y, z = data.inputs[:400], data.targets[:400], test.inputs
    time_f = theory.best_time(kernel, x, y, z, width=width, delta=0.1)

    def learner(time):
        return pk.networks.NetworkLearner(
            width, optimizer=optax.sgd(time / steps), steps=steps, start="centred"
        )

    f = learner(time_f)(x, y, jax.random.key(1))
    certificate = theory.certify(
        kernel,
        x,
        y,
        z,
        width=width,
        size=1.0,
        targets=targets,
        times=(time_f, "best"),
        f=f,
        delta=0.1,
    )
    assert min(certificate.median_outputs) > 1 - 1e-3
    assert certificate.share > 0.9
    g = learner(certificate.g.time)(certificate.perturbed, targets, jax.random.key(2))
    f_sign, g_sign = np.sign(f(z)), np.sign(g(z))
    assert (f_sign == g_sign)[certificate.certified].all()
    assert (f_sign == np.sign(certificate.f.leading))[certificate.f.certified].all()
    assert (g_sign == np.sign(certificate.g.leading))[certificate.g.certified].all()
    assert certificate.half_width is not None and certificate.half_width < width
    assert "certified to agree" in str(certificate)


def small_certificate(p, **options):
    targets = np.where(np.arange(len(p.x)) % 3 == 0, 1.0, -1.0)
    settings = {"width": 20_000, "size": 1.0, "targets": targets, "times": (0.1, 0.3)} | options
    return theory.certify(*p.data, **settings)


def test_the_limit_stands_in_for_f_with_its_own_gradients():
    p = problem(0.0, n=16, m=9)
    certificate = small_certificate(p)
    targets = certificate.targets
    np.testing.assert_allclose(
        certificate.perturbed, targets[:, None] * unit_gradients(p), atol=1e-12
    )
    np.testing.assert_allclose(certificate.f.leading, theory.f_hat(*p.data), rtol=1e-10)
    assert (
        certificate.certified
        <= (certificate.f.certified & certificate.g.certified & certificate.agree)
    ).all()
    assert set(certificate.g.parts) == {
        "initial",
        "lazy",
        "concentration",
        "residual",
        "random labels",
    }
    assert (certificate.g.parts["random labels"] == 0).all()  # scenario (a) without trained bias


def test_a_condition_with_constants_implies_the_failure_probability():
    p = problem(0.0, n=16, m=9)
    c = small_certificate(p)
    met = c.f.margin > 0
    assert met.any()
    assert (c.f.failure[met] <= c.delta / 2 / len(p.z) * (1 + 1e-9)).all()


def test_more_width_certifies_more_and_the_initial_function_costs():
    p = problem(0.0, n=16, m=9)
    shares = [small_certificate(p, width=width).share for width in (100, 2_000, 10**6)]
    assert shares == sorted(shares) and shares[0] < shares[-1]
    assert small_certificate(p, start="random").share <= small_certificate(p).share
    assert (small_certificate(p, start="random").f.parts["initial"] > 0).all()


def test_trained_biases_and_data_as_carrier_bring_the_random_labels_in():
    p = problem(0.0, True, n=16, m=9)
    assert (small_certificate(p).g.parts["random labels"] > 0).all()
    p = problem(0.0, n=16, m=9)
    assert (small_certificate(p, carrier=p.x).g.parts["random labels"] > 0).any()


def test_certified_share_tends_to_one_as_time_tends_to_zero():
    p = problem(0.0, n=16, m=9)
    shares, outputs = theory.certified_share(
        *p.data, np.array([1e-3, 0.3, 30.0]), width=20_000, delta=0.1
    )
    assert shares[0] == 1 and shares[0] >= shares[1] >= shares[2]
    np.testing.assert_allclose(outputs / outputs[0], [1, 300, 30_000], rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width"),
        ({"size": 0.0}, "size must be > 0"),
        ({"delta": 0.0}, "delta"),
        ({"start": "warm"}, "start must be one of"),
        ({"times": (-1.0, 1.0)}, "times"),
        ({"targets": np.ones(3)}, "targets must have shape"),
        ({"f": lambda z: z.sum(1), "times": "best"}, "best_time"),
        ({"f": lambda z: z.sum(1), "times": ("best", 1.0)}, "best_time"),
        ({"times": "worst"}, r"pair \(T_f, T_g\), each a number > 0 or \"best\"; got 'worst'"),
        ({"times": ("bset", "best")}, r"or \"best\"; got \('bset', 'best'\)"),
        ({"times": (0.1, "bset")}, "bset"),
        ({"times": (0.1, 0.2, 0.3)}, "got 3 values"),
        ({"times": (0.1, 0.0)}, "times must be > 0"),
        ({"start": "doubled", "width": 1501}, "must be even; got 1501"),
        ({"f": lambda z: jnp.nan * z.sum(1)}, "no finite gradient at 16 training points"),
        ({"f": lambda z: 0 * z.sum(1)}, "zero gradient at 16 training points"),
        ({"min_output": 0}, "min_output must be > 0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        small_certificate(problem(0.0, n=16, m=9), **options)


def test_what_cannot_be_is_refused_before_anything_is_computed(monkeypatch):
    p = problem(0.0, n=16, m=9)

    def computed(*data):
        raise AssertionError

    module = importlib.import_module("perturbkernel.theory.certify")  # not its function
    monkeypatch.setattr(module, "derive_constants", computed)
    for options in ({"start": "doubled", "width": 1501}, {"width": 0}, {"delta": 2.0}):
        settings: Any = {"width": 10, "delta": 0.1, **options}
        with pytest.raises(ValueError, match=r"even|width|delta"):
            theory.best_time(p.kernel, p.x, p.y, p.z, **settings)


def test_each_network_spends_half_of_delta():
    """At values of delta of which two thirds, but not one half, would pay for one more point."""
    p = problem(0.0, n=16, m=9, shift=0.3)
    options = {"width": 400, "times": (0.1, 1.0)}
    first = small_certificate(p, **options)
    sums = [np.cumsum(np.sort(side.failure)) for side in (first.f, first.g)]
    deltas = [1.5 * total for total in np.concatenate(sums) if 1e-12 < total < 0.6]
    assert len(deltas) > 4
    for delta in deltas:
        c = small_certificate(p, delta=delta, **options)
        f = tails_by_hand.within_budget(c.f.failure, c.f.leading != 0, delta / 2)
        np.testing.assert_array_equal(c.f.certified, f)
        both = tails_by_hand.within_budget(c.g.failure, f & c.agree, delta / 2)
        np.testing.assert_array_equal(c.certified, both)


def test_a_single_time_is_refused():
    with pytest.raises(TypeError, match=r"times must be \"best\" or a pair .*; got 0.1"):
        small_certificate(problem(0.0, n=16, m=9), times=0.1)


@pytest.mark.parametrize("start", ["centred", "random"])
def test_each_time_may_be_the_best_one(start):
    p = problem(0.0, n=16, m=9)
    both = small_certificate(p, times="best", start=start)
    pair = small_certificate(p, times=("best", "best"), start=start)
    assert (pair.f.time, pair.g.time) == (both.f.time, both.g.time)
    assert pair.half_width == both.half_width
    mixed = small_certificate(p, times=("best", 0.3), start=start)
    assert mixed.f.time == both.f.time and mixed.g.time == 0.3


@pytest.mark.filterwarnings("error")
def test_opposite_labels_that_cancel_are_named():
    p = problem(0.0, n=16, m=9)
    p = dataclasses.replace(p, x=np.vstack([p.x, p.x]), y=np.concatenate([p.y, -p.y]))
    with pytest.raises(ValueError, match="undefined: opposite labels cancel"):
        small_certificate(p, times="best")
    with pytest.raises(ValueError, match="undefined: opposite labels cancel"):
        theory.best_time(*p.data, width=1_000, delta=0.1)
    with pytest.raises(ValueError, match="zero gradient at 32 training points"):
        small_certificate(p)
    some = dataclasses.replace(p, x=p.x[:20], y=p.y[:20])  # four of sixteen pairs cancel
    assert small_certificate(some, times="best").f.certified.any()


def test_gradients_of_a_given_network_are_used(rng):
    p = problem(0.0, n=16, m=9)
    network = draw(rng, 50, 6)
    w, b, a = map(jnp.asarray, network)
    f = pk.networks.TwoLayerNetwork(w, b, a)
    u = gradients(network, p.x, 0.0)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    c = small_certificate(p, f=f)
    np.testing.assert_allclose(c.perturbed, c.targets[:, None] * u, atol=1e-5)  # float32 network
