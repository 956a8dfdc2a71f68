"""logistic.py: the logistic flow at many times from few products, against SciPy's Radau method in
float64.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from common import compilations, precision, representable
from scipy.integrate import solve_ivp
from scipy.special import expit

from perturbkernel.training import logistic_path

path: Any = logistic_path.logistic_path
TIMES = np.array([0.0, 1e-3, 1.0, 30.0, 1e3, 1e4])
P = 61  # points; a prime


def gram_product(gram, v):
    return jnp.matmul(gram, v, precision="highest")


def operator(gram):
    return jax.tree_util.Partial(gram_product, jnp.asarray(gram))


@functools.cache
def problem(name: str) -> Any:
    """A Gram matrix (P, P) and targets (P,), representable in float32."""
    rng = np.random.default_rng(4)
    y = np.where(rng.random(P) < 0.5, 1.0, -1.0)
    if name == "separable":
        x = rng.normal(size=(P, 30)) + 0.3 * y[:, None]
        gram = oracle.ntk(x, x, 0.2, True)
    elif name == "coin flips":
        x = rng.normal(size=(P, 3))
        gram = oracle.ntk(x, x, 0.2, True)
    else:  # eigenvalues from 300 n down to 1e-9 n, an eighth of them zero: never separated
        q = np.linalg.qr(rng.normal(size=(P, P)))[0]
        spectrum = P * 300 * np.logspace(0, -11.5, P)
        spectrum[-8:] = 0
        gram = (q * spectrum) @ q.T
    return representable(gram, np.float32), y


def start() -> np.ndarray:
    return representable(np.random.default_rng(5).normal(size=P), np.float32)


@functools.cache
def reference(name: str, initial: bool) -> Any:
    """Outputs (k, P) and alpha (k, P) at TIMES by an implicit method of SciPy; its tolerance is
    1e-9.
    """
    gram, y = problem(name)
    f0 = start() if initial else np.zeros(P)
    signed = y[:, None] * gram * y

    def velocity(_, alpha):
        return expit(-y * f0 - signed @ alpha) / P

    def jacobian(_, alpha):
        s = expit(-y * f0 - signed @ alpha)
        return -(s * (1 - s) / P)[:, None] * signed

    found = solve_ivp(
        velocity,
        (0, TIMES[-1]),
        np.zeros(P),
        "Radau",
        TIMES,
        jac=jacobian,
        rtol=1e-9,
        atol=1e-13 * TIMES[-1] / P,
    )
    assert found.success
    return f0 + found.y.T * y @ gram, found.y.T


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["separable", "coin flips", "spectrum"])
def test_the_path_is_that_of_an_implicit_runge_kutta_method(name, dtype, initial):
    gram, y = problem(name)
    outputs, alpha = reference(name, initial)
    # Local errors of rtol each add up to a few. float32 adds the rounding of products, relative to
    # terms that cancel when eigenvalues span many orders; the result's `drift` tells.
    floor = 2e-3 if (dtype, name) == (np.float32, "spectrum") else 0
    for rtol in (1e-3, 1e-4) if dtype == np.float32 else (1e-3, 1e-5, 1e-7):
        with precision(dtype):
            f0 = jnp.asarray(start(), dtype) if initial else None
            found = path(operator(jnp.asarray(gram, dtype)), jnp.asarray(y, dtype), f0, TIMES, rtol)
        assert found.dual_coef.dtype == found.outputs.dtype == dtype
        assert float(found.time) == pytest.approx(TIMES[-1], rel=1e-6)
        change = np.abs(outputs - outputs[0]).max(axis=1)
        off = np.abs(np.asarray(found.outputs, float) - outputs).max(axis=1)
        assert (off[1:] <= (4 * rtol + floor) * change[1:] + 1e-7 * initial).all(), (
            rtol,
            off[1:] / change[1:],
        )
        off = np.linalg.norm(y * np.asarray(found.dual_coef, float) - alpha, axis=1)
        assert (off <= (4 * rtol + floor) * np.linalg.norm(alpha, axis=1)).all()
        assert float(found.drift) < (1e-10 if dtype == np.float64 else 1e-2 if floor else 1e-4)
        assert not np.asarray(found.dual_coef[0]).any()


def test_few_products_are_spent(x64):
    for name, most in (("separable", 120), ("coin flips", 250), ("spectrum", 900)):
        gram, y = problem(name)
        found = path(operator(gram), y, None, TIMES, 1e-3)
        assert found.steps < found.products < most, (name, found.products)


def test_times_may_come_in_any_order_and_twice(x64):
    gram, y = problem("coin flips")
    ordered = path(operator(gram), y, None, [0, 1.0, 1.0, 2.0, 50.0, 60.0], 1e-5)
    mixed = path(operator(gram), y, None, [50.0, 60.0, 1.0, 2.0, 0, 1.0], 1e-5)
    np.testing.assert_array_equal(mixed.dual_coef, ordered.dual_coef[np.array([4, 5, 1, 3, 0, 2])])
    np.testing.assert_array_equal(ordered.dual_coef[1], ordered.dual_coef[2])


def test_times_in_between_change_nothing(x64):
    """They are read off the steps, which are the same: one integration for all."""
    gram, y = problem("coin flips")
    one, many = (
        path(operator(gram), y, None, times, 1e-5) for times in ([50.0] * 6, np.linspace(0, 50, 6))
    )
    assert (one.products, one.steps) == (many.products, many.steps)
    np.testing.assert_allclose(one.dual_coef[0], many.dual_coef[-1], rtol=1e-12)


def test_no_time_no_kernel_and_no_products():
    gram, y = (np.float32(a) for a in problem("coin flips"))
    found = path(operator(gram), y, np.float32(start()), [0.0] * 6)
    assert not np.asarray(found.dual_coef).any()
    np.testing.assert_array_equal(found.outputs, np.float32(np.stack([start()] * 6)))
    found = path(operator(0 * gram), y, None, [0.0, *[3.0] * 5])
    np.testing.assert_allclose(found.dual_coef, np.outer([0, *[1.5] * 5], y) / P, rtol=4e-4)


def test_an_integration_that_stops_says_where():
    gram, y = (np.float32(a) for a in problem("coin flips"))
    found = path(operator(gram), y, None, [1e-3, *[1e4] * 5], max_products=40)
    assert 40 <= found.products < 100 and 1e-3 < found.time < 1e4
    assert np.isfinite(found.dual_coef[0]).all() and np.isnan(found.dual_coef[1:]).all()
    found = path(operator(np.nan * gram), y, None, [1.0] * 6)
    assert found.time == 0 and np.isnan(found.dual_coef).all() and found.products < 500


def test_saturated_outputs_stay_finite():
    """Wrong by 1e4 at the start, right by 1e4: sigmoids of 1 and 0."""
    gram, y = problem("separable")
    f0 = np.float32(1e4 * y * np.where(np.arange(P) % 2, 1, -1))
    found = path(operator(np.float32(gram)), np.float32(y), f0, [10.0] * 6, 1e-4)
    np.testing.assert_allclose(
        y * found.dual_coef[0], np.where(np.arange(P) % 2, 0, 10 / P), rtol=4e-4, atol=1e-9
    )


def test_equal_shapes_compile_once():
    """Another matrix, other targets, times and tolerances; inside jit as well."""
    gram, y = (np.float32(a) for a in problem("separable"))
    times = np.arange(1, 7, dtype=np.float32)
    outside = path(operator(gram), y, None, times, 1e-3)
    with compilations() as count:
        path(operator(2 * gram), -y, np.float32(start()), 30 * times, 1e-4, max_products=500)
    assert count() == 0
    inside = jax.jit(lambda gram, y, times: path(operator(gram), y, None, times, 1e-3).dual_coef)
    np.testing.assert_allclose(inside(gram, y, times), outside.dual_coef, rtol=1e-4, atol=1e-7)
    plain = path(lambda v: gram @ v, y, None, times, 1e-3)  # a plain function is an operator, too
    np.testing.assert_allclose(plain.dual_coef, outside.dual_coef, rtol=1e-4, atol=1e-7)


BAD = [
    ({"operator": None}, TypeError, r"operator must be a function \(n,\) -> \(n,\); got None"),
    (
        {"operator": lambda v: v[1:]},
        ValueError,
        r"operator must map \(61,\) to \(61,\); it gave \(60,\)",
    ),
    ({"y": np.arange(P)}, ValueError, r"y must be -1 or \+1; found 0, 1"),
    ({"y": np.ones((P, 1))}, ValueError, r"y must have shape \(61,\)"),
    ({"f0": np.ones(P - 1)}, ValueError, r"f0 must have shape \(61,\)"),
    ({"times": 1.0}, ValueError, r"times must have shape \(k,\) with k >= 1; got \(\)"),
    ({"times": []}, ValueError, r"times must have shape \(k,\) with k >= 1; got \(0,\)"),
    ({"times": [1.0, -1.0]}, ValueError, "times must be >= 0; got -1"),
    ({"times": [np.inf]}, ValueError, "times must be finite"),
    ({"rtol": 1e-8}, ValueError, "rtol must be >= 1e-05 and <= 0.1; got 1e-08"),
    ({"rtol": None}, TypeError, "rtol must be a number; got None"),
    ({"max_products": 0}, ValueError, "max_products must be at least 1; got 0"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_arguments_say_what_is_wrong(changes, error, message):
    gram, y = (np.float32(a) for a in problem("separable"))
    arguments = {
        "operator": operator(gram),
        "y": y,
        "f0": None,
        "times": [1.0],
        "rtol": 1e-3,
    } | changes
    with pytest.raises(error, match=message):
        path(**arguments)
