"""The one-sided tails against a second copy of their formulas, against simulated networks, and
against changes of units that must not matter.
"""

import numpy as np
import pytest
from theory_tools import Problem, problem

from perturbkernel import theory
from perturbkernel.theory import tails
from perturbkernel.verify import by_hand

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
    wanted = by_hand.tail(data, width, time)
    for name in wanted._fields:
        np.testing.assert_allclose(
            getattr(tail, name), getattr(wanted, name), rtol=1e-9, atol=1e-12, err_msg=name
        )
    np.testing.assert_allclose(
        tail.log_failure(), by_hand.log_failure(data, wanted, width, time, start), rtol=1e-3
    )
    neurons = width / 2 if start == "doubled" else width
    for level in (0.2, 0.01, 1e-6):
        share = level / 2 if start == "random" else level
        parts = tail.constant(level)
        np.testing.assert_allclose(parts["lazy"], wanted.lazy, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            parts["concentration"], by_hand.concentration(wanted, neurons, share), rtol=1e-3
        )
        if start == "random":
            w = parts["initial"] * time
            np.testing.assert_allclose(
                by_hand.log_initial_tail(data, w, width), np.log(share), rtol=1e-3
            )
        else:
            assert not parts["initial"].any()
