"""The one-sided tails against a second copy of their formulas, against simulated networks, and
against changes of units that must not matter.
"""

import dataclasses

import numpy as np
import pytest
from scipy.stats import norm
from theory_tools import Problem, problem

from perturbkernel import theory
from perturbkernel.theory import tails
from perturbkernel.verify import by_hand, tails_by_hand

STARTS = ("centred", "doubled", "random")
# (slope, biases trained, shift of the classes, width, time): short and long, narrow and wide.
SETTINGS = [
    (0.0, False, 1.0, 50, 0.3),
    (0.0, True, 0.2, 400, 3.0),
    (0.2, False, 0.5, 10_000, 1.0),
    (0.2, True, 0.0, 2_000, 0.05),
    (0.9, False, 0.0, 1_000, 10.0),
    (0.9, True, 1.0, 10**6, 100.0),
    (0.0, False, 0.0, 10**8, 1.0),
]


def second_copy(p: Problem) -> by_hand.Data:
    return by_hand.Data(p.kernel.slope, int(p.kernel.train_bias), p.x, p.y, p.z)


def prepared(p: Problem) -> tuple[theory.Constants, tails.Speeds]:
    constants = theory.derive_constants(*p.data)
    return constants, tails.derive_speeds(constants)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("start", STARTS)
def test_against_a_second_copy(setting, start):
    slope, train_bias, shift, width, time = setting
    p = problem(slope, train_bias, n=10, m=6, shift=shift, seed=width % 1000)
    constants, speeds = prepared(p)
    tail = tails.derive_tail(constants, speeds, width=width, time=time, start=start)
    data = second_copy(p)
    wanted = tails_by_hand.tail(data, width, time)
    for name in wanted._fields:
        np.testing.assert_allclose(
            getattr(tail, name), getattr(wanted, name), rtol=1e-9, atol=1e-12, err_msg=name
        )
    np.testing.assert_allclose(
        tail.log_failure(), tails_by_hand.log_failure(data, wanted, width, time, start), rtol=1e-3
    )
    neurons = width / 2 if start == "doubled" else width
    for level in (0.2, 0.01, 1e-6):
        share = level / 2 if start == "random" else level
        parts = tail.constant(level)
        np.testing.assert_allclose(parts["lazy"], wanted.lazy, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            parts["concentration"], tails_by_hand.concentration(wanted, neurons, share), rtol=1e-3
        )
        if start == "random":
            w = parts["initial"] * time
            np.testing.assert_allclose(
                tails_by_hand.log_initial_tail(data, w, width), np.log(share), rtol=1e-3
            )
        else:
            assert not parts["initial"].any()


@pytest.mark.parametrize("width", [300, 10_000, 10**6])
def test_the_initial_functions_tail_against_a_second_copy(width):
    """Between one and six standard deviations, where the event of a large variance is paid for."""
    p = problem(0.2, m=6)
    constants, data = theory.derive_constants(*p.data), second_copy(p)
    for quantile in (1.0, 2.0, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0):
        w = quantile * np.sqrt(0.52) * constants.length
        found = tails.log_initial_tail(constants, w[None], width=width)[0]
        np.testing.assert_allclose(found, tails_by_hand.log_initial_tail(data, w, width), rtol=1e-3)


def stretched(p: Problem, factor: int) -> Problem:
    """The same network in other units: inputs times sqrt(factor), with zeros appended up to factor
    times as many dimensions. Lengths and angles stay, so do gates; the kernel grows by the factor.
    """
    zeros = (factor - 1) * p.x.shape[1]
    x, z = (np.pad(points, ((0, 0), (0, zeros))) for points in (p.x, p.z))
    return dataclasses.replace(p, x=np.sqrt(factor) * x, z=np.sqrt(factor) * z)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("factor", [9, 100])
def test_units_of_the_kernel_do_not_matter(start, factor):
    p = problem(0.2, n=8, m=5, shift=0.3)
    other = stretched(p, factor)
    targets = np.where(np.arange(8) % 3 == 0, 1.0, -1.0)
    options = {"width": 3_000, "targets": targets, "start": start}
    one = theory.certify(*p.data, size=1.0, times=(0.5, 2.0), **options)
    times = (0.5 / factor, 2.0 / factor)
    two = theory.certify(*other.data, size=np.sqrt(factor), times=times, **options)
    for left, right, unit in ((one.f, two.f, factor), (one.g, two.g, np.sqrt(factor))):
        np.testing.assert_allclose(left.failure, right.failure, rtol=1e-6)
        np.testing.assert_array_equal(left.certified, right.certified)
        for name, part in left.parts.items():
            # Phi is computed from unit vectors whose rounding differs.
            np.testing.assert_allclose(
                unit * part, right.parts[name], rtol=1e-6, atol=1e-12 * unit, err_msg=name
            )
    assert one.half_width == two.half_width
    np.testing.assert_array_equal(one.certified, two.certified)
    best = [theory.best_time(*q.data, width=3_000, delta=0.1, start=start) for q in (p, other)]
    np.testing.assert_allclose(best[0], factor * best[1], rtol=1e-6)


@pytest.mark.parametrize("start", ["centred", "doubled"])
@pytest.mark.parametrize("unit", [1e-10, 1e-5, 1e5, 1e10])
def test_a_tail_is_homogeneous(start, unit):
    """mean, lazy and c times a unit, v times its square: probabilities stay, constants grow."""
    constants, speeds = prepared(problem(0.2, True, shift=0.3))
    tail = tails.derive_tail(constants, speeds, width=2_000, time=1.0, start=start)
    other = dataclasses.replace(
        tail,
        mean=unit * tail.mean,
        lazy=unit * tail.lazy,
        variance=unit**2 * tail.variance,
        scale=unit * tail.scale,
    )
    np.testing.assert_allclose(other.log_failure(), tail.log_failure(), rtol=1e-10)
    for name, part in tail.constant(0.01).items():
        np.testing.assert_allclose(other.constant(0.01)[name], unit * part, rtol=1e-10)


@pytest.mark.parametrize("train_bias", [False, True])
def test_certificates_settle_as_inputs_grow_or_shrink(train_bias):
    """Inputs times c are another network, whose biases count for less and whose gates move less: no
    invariance, but a limit at either end: that without biases, and a linear network.
    """
    p = problem(0.0, train_bias, n=16, m=9, shift=0.7)
    targets = np.where(np.arange(16) % 4 < 2, 1.0, -1.0)

    def certificate(c):
        scaled = p.kernel, c * p.x, p.y, c * p.z
        return theory.certify(*scaled, width=2_000, size=c, targets=targets)

    far = [certificate(c) for c in (1e4, 1e5, 1e6)]
    near = [certificate(c) for c in (1e-5, 1e-4)] if not train_bias else []
    for group in (far, near):
        for one in group:
            assert one.f.certified.any()
            np.testing.assert_array_equal(one.f.certified, group[0].f.certified)
            logs = np.log(one.f.failure), np.log(group[0].f.failure)
            np.testing.assert_allclose(*logs, rtol=0.03)


@pytest.mark.parametrize("slope", [0.0, 0.5])
@pytest.mark.parametrize("start", ["centred", "doubled"])
def test_very_wide_networks_are_gaussian(slope, start):
    """Without lazy loss C is Chernoff's bound for a normal variable of the exact variance."""
    constants, speeds = prepared(problem(slope, n=30, shift=0.2))
    width = 10**12
    tail = tails.derive_tail(constants, speeds, width=width, time=1e-9, start=start)
    variance = theory.predictor_variance(constants, width=width, start=start)
    for level in (1e-2, 1e-6, 1e-30):
        ratio = tail.constant(level)["concentration"] / np.sqrt(variance)
        assert (ratio > norm.isf(level)).all()
        np.testing.assert_allclose(ratio, np.sqrt(-2 * np.log(level)), rtol=1e-3)


@pytest.mark.parametrize("level", [0.1, 0.01, 1e-6])
def test_a_doubled_network_counts_for_half_of_its_width(level):
    """As time tends to 0 a pair is one neuron with twice the contribution."""
    constants, speeds = prepared(problem(0.2, True, shift=0.3))
    pairs, plain = (
        tails.derive_tail(constants, speeds, width=width, time=1e-12, start=start)
        for width, start in ((200, "doubled"), (100, "centred"))
    )
    np.testing.assert_allclose(pairs.log_failure(), plain.log_failure(), rtol=1e-5)
    found, wanted = (tail.constant(level)["concentration"] for tail in (pairs, plain))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_an_odd_doubled_width_is_refused():
    p = problem(0.0)
    constants, speeds = prepared(p)
    with pytest.raises(ValueError, match="width of a doubled network must be even; got 1501"):
        tails.derive_tail(constants, speeds, width=1501, time=1.0, start="doubled")
    for function in (theory.best_time, theory.certified_share):
        times = [np.ones(1)] if function is theory.certified_share else []
        with pytest.raises(ValueError, match="must be even"):
            function(*p.data, *times, width=31, delta=0.1, start="doubled")


def test_no_sign_is_predicted_where_opposite_labels_cancel():
    p = problem(0.0, n=12)
    x, y = np.vstack([p.x, p.x]), np.concatenate([p.y, -p.y])
    constants = theory.derive_constants(p.kernel, x, y, p.z)
    assert not tails.has_sign(constants).any()
    assert tails.has_sign(theory.derive_constants(*p.data)).all()
    shares, _ = theory.certified_share(p.kernel, x, y, p.z, np.array([0.1]), width=10**6, delta=0.1)
    assert (shares == 0).all()
