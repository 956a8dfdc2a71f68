"""Certificates without laziness: exact binomial bounds, drawn networks against networks trained by
other code, and how often a certificate is wrong (theory: 14.5).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from theory_tools import draw, gradients, outputs, problem, train

import perturbkernel as pk
from perturbkernel import theory
from perturbkernel.theory.law import drawn, holdout

WIDTH = 12
DESCENT = pk.HeavyBall(0.5, 6)
SECOND = pk.HeavyBall(0.8, 6)
KEY = jax.random.key(3)
SIZE = 1.5
STARTS = ("random", "centred", "doubled")
# Both forms of a path: n coefficients where n <= d, weights where n > d.
FEW, MANY = (0.2, True, 6, 8), (0.0, True, 12, 6)


@functools.cache
def setting(slope, train_bias, n, d):
    return problem(slope, train_bias, n=n, m=7, d=d)


@pytest.mark.parametrize(("count", "level", "error"), [(400, 0.09, 0.01), (49, 0.09, 0.01)])
def test_allowed_failures_are_the_exact_binomial_test(count, level, error):
    allowed = holdout.allowed_failures(count, level, error)
    assert allowed >= 0
    assert stats.binom.cdf(allowed, count, level) <= error
    assert stats.binom.cdf(allowed + 1, count, level) > error


def test_with_fewer_draws_nothing_can_be_certified():
    fewest = holdout.least_draws(0.09, 0.01)
    assert holdout.allowed_failures(fewest, 0.09, 0.01) == 0
    assert holdout.allowed_failures(fewest - 1, 0.09, 0.01) == -1


def test_failure_bounds_are_those_of_clopper_and_pearson():
    failures = np.array([0, 1, 7, 29, 30])
    expected = stats.beta.ppf(1 - 0.02, failures + 1, 30 - failures)
    expected[-1] = 1
    np.testing.assert_allclose(holdout.failure_bounds(failures, 30, 0.02), expected, rtol=1e-9)


def test_the_largest_set_shares_failures_between_points():
    wrong = np.zeros((10, 4), bool)
    wrong[0, [0, 1]] = True  # one draw fails at two points: one failure
    wrong[1, 2] = True
    wrong[2:, 3] = True
    chosen, failed = holdout.largest_set(np.arange(4), wrong, 2)
    assert chosen.tolist() == [True, True, True, False] and failed == 2
    assert holdout.largest_set(np.arange(4), wrong, 1)[0].tolist() == [True, True, False, False]
    assert holdout.largest_set(np.array([3, 0, 1, 2]), wrong, 2)[0].sum() == 0


def test_a_certificate_is_wrong_as_seldom_as_its_confidence_says():
    """Signs of independent points whose joint probability is known. The set of three is just above
    the level, so that errors come nearly as often as they may.
    """
    right = np.array([1.0, 0.97, 0.92, 0.6])
    joint = 1 - np.cumprod(right)  # 0, .03, .108, .46
    delta, confidence, repeats = 0.2, 0.9, 400
    rng = np.random.default_rng(0)
    mistakes = 0
    for _ in range(repeats):
        # Further from 0 where surer, for the order.
        signed = np.where(rng.random((260, 4)) < right, right, -0.1)
        found = theory.certify_outputs(
            signed[:60], signed[60:], delta=delta, confidence=confidence, signs=np.ones(4)
        )
        count = int(found.certified.sum())
        mistakes += count > 0 and joint[count - 1] > found.simulation.level
    assert stats.binom.sf(mistakes - 1, repeats, 1 - confidence) > 1e-4
    assert mistakes > 0.02 * repeats  # the test could tell a smaller confidence


def single(values):
    return jnp.asarray(values, jnp.float32)


@functools.cache
def networks(case, start, count=3000, block=None):
    p = setting(*case)
    x, y, z = single(p.x), single(p.y), single(p.z)
    shape = drawn.shape_for(p.kernel, WIDTH, start, x)
    if block is not None:
        shape = shape._replace(block=block)
    training = drawn.Training.of(x, y, DESCENT)
    return drawn.draw_networks(shape, count, training, z, progress=None, key=KEY)


@functools.cache
def reference(case, start, count=3000):
    """Outputs of `count` networks trained by NumPy, all neurons at once."""
    p = setting(*case)
    rng = np.random.default_rng(5)
    each = WIDTH // 2 if start == "doubled" else WIDTH
    w, b, a = draw(rng, count * each, p.x.shape[1], total=WIDTH)
    total = 0
    for readout in (a, -a) if start == "doubled" else (a,):
        done = train((w, b, readout), p.x, p.y, p.kernel, rate=0.5, steps=6).network
        for (weights, biases, _), sign in ((done, 1), ((w, b, a), -float(start == "centred"))):
            u = weights @ p.z.T + biases[:, None]
            terms = readout[:, None] * np.where(u > 0, u, p.kernel.slope * u)
            total = total + sign * terms.reshape(count, each, -1).sum(1)
    return total


def check_same_law(found, expected):
    """Means, deviations and covariances within five of their standard errors."""
    for statistic in (lambda v: v, lambda v: v**2, lambda v: v * np.roll(v, 1, axis=1)):
        first, second = statistic(found), statistic(expected)
        error = np.sqrt(first.var(0) / len(first) + second.var(0) / len(second))
        assert (np.abs(first.mean(0) - second.mean(0)) < 5 * error).all()


@pytest.mark.parametrize("case", [FEW, MANY], ids=str)
@pytest.mark.parametrize("start", STARTS)
def test_drawn_networks_have_the_law_of_trained_ones(case, start):
    check_same_law(networks(case, start), reference(case, start))


def test_blocks_of_neurons_add_up_to_a_network():
    check_same_law(networks(FEW, "random", block=5), reference(FEW, "random"))


def test_what_moves_at_once_fits_the_memory():
    x = jnp.zeros((800, 784), jnp.float32)
    kernel = pk.TwoLayerNTK(memory=2**24)
    wide = drawn.shape_for(kernel, 10**5, "random", x)
    assert wide.together == 1 and wide.block * 800 * 4 * 8 <= 2**24 < 2 * wide.block * 800 * 4 * 8
    narrow = drawn.shape_for(pk.TwoLayerNTK(memory=2**28), 20, "random", x)
    assert narrow.block == 20 and 1 < narrow.together <= 2**28 // (5 * 800 * 784 * 4)


@functools.cache
def trained_pairs(start, count=800):
    """Outputs of f, and of g trained on its perturbations, by NumPy, pair by pair: (count, m)."""
    p = setting(*FEW)
    slope, d = p.kernel.slope, p.x.shape[1]
    targets = np.where(np.arange(len(p.x)) % 3 == 0, -1.0, 1.0)
    rng = np.random.default_rng(8)

    def network():
        if start != "doubled":
            return draw(rng, WIDTH, d)
        w, b, a = draw(rng, WIDTH // 2, d, total=WIDTH)
        return np.vstack([w, w]), np.concatenate([b, b]), np.concatenate([a, -a])

    centred = start == "centred"
    pairs = []
    for _ in range(count):
        before = network()
        f = train(before, p.x, p.y, p.kernel, rate=0.5, steps=6).network
        gradient = gradients(f, p.x, slope) - centred * gradients(before, p.x, slope)
        unit = gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
        r = SIZE * targets[:, None] * unit
        begin = network()
        g = train(begin, r, targets, p.kernel, rate=0.8, steps=6).network
        out_f = outputs(f, p.z, slope) - centred * outputs(before, p.z, slope)
        out_g = outputs(g, p.z, slope) - centred * outputs(begin, p.z, slope)
        pairs.append((out_f, out_g))
    return targets, np.array(pairs)


def experiment(start, targets, **changes):
    p = setting(*FEW)
    options = {"draws": 500, "pilot": 100, "delta": 0.3, "size": SIZE, "width": WIDTH, **changes}
    return theory.certify_experiment(
        *p.data, dynamics=(DESCENT, SECOND), targets=targets, start=start, key=KEY, **options
    )


@pytest.mark.parametrize("start", STARTS)
def test_the_whole_statement_holds_on_pairs_trained_by_other_code(start):
    targets, pairs = trained_pairs(start)
    found = experiment(start, targets)
    assert found.certified.any()
    signed = pairs * found.signs
    wrong = signed <= 0
    for certificate, which in ((found, [0, 1]), (found.f, [0]), (found.g, [1])):
        failed = wrong[:, which][..., certificate.certified]
        broken = int(np.sum(np.any(failed, axis=(1, 2))))
        assert stats.binom.sf(broken - 1, len(pairs), found.simulation.level) > 1e-4
        # What was counted in the simulation is what other networks do.
        mine = certificate.violations / 500
        error = np.sqrt((mine + 0.01) / 500 + (mine + 0.01) / len(pairs))
        assert abs(broken / len(pairs) - mine) < 5 * error
    # At every point alone too, and not by a wide margin.
    assert np.all(wrong[:, 0].mean(0) <= found.f.failure)
    assert np.all(wrong[:, 1].mean(0) <= found.g.failure)
    assert np.all(found.g.failure < wrong[:, 1].mean(0) + 0.1)


def test_pairs_have_the_joint_law_of_trained_ones():
    targets, pairs = trained_pairs("random")
    p = setting(*FEW)
    x, y, t, z = single(p.x), single(p.y), single(targets), single(p.z)
    first, later = drawn.Training.of(x, y, DESCENT), drawn.Training.of(x, t, SECOND)
    second = drawn.Second(0 * x, t, jnp.float32(SIZE), later.rates, later.momentum)
    shape = drawn.shape_for(p.kernel, WIDTH, "random", x)
    f, g = drawn.draw_experiments(shape, 600, first, second, z, progress=None, key=KEY)
    check_same_law(f, pairs[:, 0])
    check_same_law(g, pairs[:, 1])
    check_same_law(f * g, pairs[:, 0] * pairs[:, 1])


def test_a_given_network_is_agreed_with_where_certified():
    """g given f: the signs are those of f, whatever the mean of g."""
    p = setting(*FEW)
    asked = np.array([1.0, -1, 1, -1, 1, -1, 1])
    told = []
    progress = type("Progress", (), {"update": lambda self, k: told.append(k)})()
    options = {"width": WIDTH, "dynamics": DESCENT, "draws": 500, "pilot": 100, "key": KEY}
    found = theory.certify_network(
        *p.data, signs=3 * asked, delta=0.4, progress=progress, **options
    )
    assert sum(told) == 600
    assert (found.signs == asked).all() and found.certified.any()
    assert np.all((found.signs * found.leading)[found.certified] > 0)
    own = theory.certify_network(*p.data, delta=0.4, **options)
    assert own.share > found.share
    assert (own.signs == np.sign(own.leading)).all()


def test_a_zero_gradient_perturbs_nothing():
    one = jnp.ones((2, 3))
    second = drawn.Second(one, jnp.array([1.0, -1.0]), jnp.float32(2), jnp.ones(1), jnp.float32(0))
    made = second.training(jnp.array([[0.0, 0, 0], [0, 3, 0]]))
    np.testing.assert_array_equal(made.x, [[1, 1, 1], [1, -1, 1]])


def test_outputs_without_a_sign_are_wrong():
    pilot = np.ones((4, 3))
    pilot[0, 0] = 0  # less sure than the second, which never varies
    pilot[:, 2] = np.nan
    draws = np.ones((60, 3))
    draws[:, 0] = 0
    draws[:, 2] = np.nan
    found = theory.certify_outputs(pilot, draws)
    assert found.certified.tolist() == [False, True, False]
    assert found.failure[0] == found.failure[2] == 1 > found.failure[1]
    assert found.strength[1] == np.inf


def test_what_a_certificate_prints():
    targets, _ = trained_pairs("random")
    found = experiment("random", targets)
    text = str(found)
    assert f"{found.share:.1%} of 7 points" in text and "together 0.7" in text
    assert f"{found.violations} of 500 pairs" in text and found.limits in text
    assert "0.73 over the initialisation, by a simulation of confidence 0.97" in text
    assert "of 7 signs certified" in str(found.f) and "width 12, start random" in str(found.f)


BAD = [
    ({"draws": 10}, "draws must be at least 12 to certify anything"),
    ({"pilot": 1}, "pilot must be at least 2"),
    ({"delta": 0.0}, "delta must be > 0"),
    ({"confidence": 0.5}, "confidence must be above 1 - delta"),
    ({"confidence": 1.0}, "below 1"),
    ({"width": 11}, "even"),
    ({"size": 0.0}, "size must be > 0"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_arguments_are_told_before_anything_is_drawn(changes, message):
    with pytest.raises(ValueError, match=message):
        experiment("doubled", np.ones(6), **changes)


def test_flow_is_refused():
    p = setting(*FEW)
    flow: Any = pk.GradientFlow(1.0)
    with pytest.raises(TypeError, match="dynamics must be HeavyBall"):
        theory.certify_network(*p.data, width=WIDTH, dynamics=flow, key=KEY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(3), np.ones((60, 3))), "pilot must have shape"),
        ((np.ones((3, 2)), np.ones((60, 3))), "the same columns"),
    ],
)
def test_bad_outputs_are_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        theory.certify_outputs(*arguments)
    with pytest.raises(ValueError, match="no sign"):
        theory.certify_outputs(np.ones((3, 2)), np.ones((60, 2)), signs=np.zeros(2))
