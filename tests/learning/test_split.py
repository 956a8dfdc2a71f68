"""`pk.split`: bugs and features, against training on either part alone, and drawn networks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from common import D, M, N, compilations, precision

import perturbkernel as pk
from perturbkernel.learning.split import expected_own_square
from perturbkernel.training.smoother import Training, linear_loss

RNG = np.random.default_rng(31)
KERNEL: Any = pk.TwoLayerNTK(0.2, True)
X, Z = RNG.normal(size=(N, D)), RNG.normal(size=(M, D))
Z[:2] = X[:2]
Y = np.where(X[:, 0] > 0, 1.0, -1.0)
INF = float("inf")
CASES: dict[str, Any] = {
    "identity": ("identity", pk.GradientFlow(3.0)),
    "flow": ("squared", pk.GradientFlow(20.0)),
    "infinite": ("squared", pk.GradientFlow(INF)),
    "heavy ball": ("squared", pk.HeavyBall(0.1, 25)),
}
fit: Any = pk.fit


def start(z: Any) -> Any:
    return 2 * z[:, 0] * z[:, 1] - 1


def starts(z: Any) -> Any:
    return start(z)[:, None] * np.array([[1.0, -2.0, 0.5]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_parts_add_up_and_are_what_they_are_called(case, dtype):
    """The shared part is training from zero; the own part training on targets of zero."""
    loss, dynamics = CASES[case]
    options = {"loss": loss, "dynamics": dynamics}
    eps = 1e3 * np.finfo(dtype).eps
    with precision(dtype):
        x, y, z = (array.astype(dtype) for array in (X, Y, Z))
        f = fit(KERNEL, x, y, initial=start, **options)
        s = pk.split(f, z)
        from_zero = fit(KERNEL, x, y, **options)
        scale = float(jnp.abs(f(z)).max())
        np.testing.assert_allclose(s.mean(z), from_zero(z), rtol=0, atol=eps * scale)
        np.testing.assert_allclose(s.mean(z) + s.own(z), f(z), rtol=0, atol=eps * scale)
        gradient = f.input_gradient(z)
        both = s.shared_gradient + s.own_gradient
        scale = float(jnp.abs(gradient).max())
        np.testing.assert_allclose(both, gradient, rtol=0, atol=eps * scale)
        exact = from_zero.input_gradient(z)
        np.testing.assert_allclose(s.shared_gradient, exact, rtol=0, atol=eps * scale)
        if loss == "squared":
            nothing = fit(KERNEL, x, np.zeros_like(y), initial=start, **options)
            np.testing.assert_allclose(s.own(z), nothing(z), rtol=0, atol=eps * scale)
        assert s.shared_gradient.dtype == dtype
        # Without a start of its own a network has no bugs, and others have those expected.
        without = pk.split(from_zero, z)
        assert not without.own_gradient.any()
        np.testing.assert_array_equal(without.expected_own, s.expected_own)


def test_parts_say_what_training_met(x64):
    """A duplicate, of another label than the point."""
    # In the last point's place: programs of N points are there.
    x, y = np.concatenate([X[:-1], X[:1]]), np.append(Y[:-1], -Y[0])
    f = fit(KERNEL, x, y, loss="squared", dynamics=pk.GradientFlow(INF), initial=start)
    s = pk.split(f, Z)
    assert f.status != "ok" and s.mean.status == s.own.status
    assert s.mean.status.startswith(f.status) and s.status.startswith(s.own.status)


def test_outputs_of_several_classes(x64):
    targets = np.asarray(pk.one_hot(np.arange(N) % 3, 3))
    f = fit(KERNEL, X, targets, loss="squared", dynamics=pk.GradientFlow(20.0), initial=starts)
    weights = RNG.normal(size=(M, 3))
    s = pk.split(f, Z, weights)
    both = s.shared_gradient + s.own_gradient
    np.testing.assert_allclose(both, f.input_gradient(Z, weights), rtol=0, atol=1e-10)
    assert s.expected_own is not None
    one = fit(KERNEL, X, Y, loss="squared", dynamics=pk.GradientFlow(20.0))
    single = pk.split(one, Z).expected_own
    assert single is not None
    exact = np.asarray(single) * (weights**2).sum(1)
    np.testing.assert_allclose(s.expected_own, exact, rtol=1e-12)


@pytest.mark.parametrize(
    ("case", "slope", "bias"), [("flow", 0.0, False), *((case, 0.2, True) for case in CASES)]
)
def test_expected_square_is_that_of_drawn_networks(case, slope, bias, x64):
    """2,000 networks of 30 neurons in NumPy, whose second moments are those of every width; A(z)
    by differences of NumPy's kernel.
    """
    loss, dynamics = CASES[case]
    kernel = pk.TwoLayerNTK(slope, bias)
    z = Z[2:]  # training points are cusps of K, where differences mean nothing
    training = Training(linear_loss(loss, "it"), dynamics)
    exact = expected_own_square(kernel, jnp.asarray(X), jnp.asarray(z), training).value
    rng = np.random.default_rng(1)
    count, width = 2000, 30
    w = rng.normal(size=(count, width, D)) / np.sqrt(D)
    b = rng.normal(size=(count, width))
    a = rng.normal(size=(count, width)) / np.sqrt(width)

    def neurons(points):
        u = np.einsum("kid,jd->kji", w, points) + b[:, None]
        return u, np.where(u > 0, 1.0, slope)

    u, gates = neurons(X)
    at_x = np.einsum("kji,ki->kj", u * gates, a)
    _, gates = neurons(z)
    own = np.einsum("kji,ki,kid->kjd", gates, a, w)
    if loss == "squared":
        weights = _weights(kernel, z, dynamics)
        own -= np.einsum("jnd,kn->kjd", weights, at_x)
    found = (own**2).sum(-1).mean(0)
    # Four standard errors of such means; their common error is most of it.
    error = (own**2).sum(-1).std(0) / np.sqrt(count)
    assert (np.abs(found - exact) < 4 * error).all()
    assert (4 * error < 0.3 * np.asarray(exact)).all()


def _weights(kernel, z, dynamics):
    """The derivative of A(z) in z, (m, n, d)."""
    f = fit(kernel, X, Y, loss="squared", dynamics=dynamics)
    q = np.linalg.solve(oracle.ntk(X, X, kernel.slope, kernel.train_bias), np.asarray(f.weights(X)))
    step = 1e-5
    found = []
    for i in range(D):
        moved = step * np.eye(D)[i]
        ahead = oracle.ntk(z + moved, X, kernel.slope, kernel.train_bias)
        behind = oracle.ntk(z - moved, X, kernel.slope, kernel.train_bias)
        if ahead.shape != (len(z), N):
            ahead, behind = ahead.T, behind.T
        found.append((ahead - behind) / (2 * step) @ q)
    return np.stack(found, axis=-1)


def test_a_second_call_compiles_nothing():
    """Loops outside of a compiled function would be compiled again each time."""
    f = pk.fit(pk.TwoLayerNTK(0.2), X, Y, loss="squared", dynamics=pk.GradientFlow(3.0))
    pk.split(f, Z)
    with compilations() as count:
        pk.split(f, Z)
    assert count() == 0


def test_other_kernels_and_wrong_arguments():
    s = pk.split(fit(pk.RBF(2.0), X, Y, loss="squared", initial=start), Z)
    assert s.expected_own is None
    share = np.asarray(s.shared_fraction)
    features, bugs = (
        np.sum(np.square(g, dtype=float), axis=1) for g in (s.shared_gradient, s.own_gradient)
    )
    np.testing.assert_allclose(share, features / (features + bugs), rtol=1e-5)
    assert (share > 0).all() and (share < 1).all()
    with pytest.raises(ValueError, match=r"split .* known for loss .* not for 'logistic'"):
        pk.split(fit(KERNEL, X, Y, loss="logistic"), Z)
    with pytest.raises(TypeError, match="KernelPredictor"):
        pk.split(start, Z)  # pyright: ignore[reportArgumentType]
    f = fit(KERNEL, X, Y)
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda z: pk.split(f, z).own_gradient)(Z)
    with pytest.raises(ValueError, match="weights must be left out"):
        pk.split(f, Z, np.ones((M, 2)))
