"""Predictors in forward mode and at second order: against closed forms in NumPy and differences."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import perturbkernel as pk

fit: Any = pk.fit
Predictor: Any = pk.KernelPredictor
Flow: Any = pk.GradientFlow
N, D, OUTPUTS = 7, 4, 2
RNG = np.random.default_rng(8)
# What float32 holds, so that queries in it are at the points.
X = RNG.normal(size=(N, D)).astype(np.float32).astype(float)
X[5], X[6] = X[0], 0  # a duplicate, and zero
COEF, Z = RNG.normal(size=(N, OUTPUTS)), RNG.normal(size=(1, D))
WEIGHTS = np.array([1.0, -0.7])
# Far from every point; at a point that is there twice, at another, and at zero.
PLACES = np.concatenate([Z, X[:2], X[6:]])
H = 1e-5


@jax.tree_util.register_static
class Blocked(pk.TwoLayerNTK):
    """In tiles of which the last is a part of the one before."""

    block: ClassVar[Any] = (1, 3)
    tile = pk.TwoLayerNTK.tile


def along(v: Any) -> dict[str, Any]:
    """The Hessian times v, which compiles sooner than the whole; forward over forward, the number
    that v makes of that.
    """

    def forward(f):
        return lambda z: jax.jvp(f, (z,), (v,))[1]

    def reverse(f):
        return jax.grad(lambda z: f(z) @ v)

    return {
        "forward over reverse": lambda f: forward(jax.grad(f)),
        "reverse over reverse": lambda f: reverse(jax.grad(f)),
        "forward over forward": lambda f: forward(forward(f)),
        "reverse over forward": lambda f: jax.grad(forward(f)),
    }


MODES: dict[str, Any] = {
    "forward over reverse": jax.hessian,
    "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f)),
    "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f)),
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f)),
}
KERNELS: dict[str, Any] = {
    "Laplace": pk.Laplace(1.5),
    "Laplace l1": pk.Laplace(1.5, norm="l1"),
    "arc-cosine": pk.ArcCosine(0),
    "sum": pk.TwoLayerNTK(0.2) + 0.5 * pk.RBF(1.5),
    "empirical": pk.EmpiricalNTK(lambda p, x: jnp.tanh(x @ p) @ p[0], jnp.ones((D, D))),
}


def hessian(kernel: Any, z: np.ndarray, coef: np.ndarray) -> np.ndarray:
    """(D, D), of sum_n coef_n K(x_n, z), leaving points that coincide with z out (theory: 17.1)."""
    kappa = (1 - kernel.slope) ** 2 / (2 * np.pi)
    s = np.sqrt(1 + z @ z / D)
    tau, total = 1 / (D**0.5 * s), np.zeros((D, D))
    for x, c in zip(X, coef, strict=True):
        if (x == z).all():
            continue
        s_x, k = np.sqrt(1 + x @ x / D), x @ z + float(kernel.train_bias)
        rho = (1 + x @ z / D) / (s * s_x)
        theta = np.arccos(rho)
        e = (x / (D**0.5 * s_x) - rho * tau * z) / np.sin(theta)
        across = np.eye(D) - tau**2 * np.outer(z, z) - np.outer(e, e)
        turned = across / np.tan(theta) + tau * (np.outer(z, e) + np.outer(e, z))
        slope = -tau * e
        parts = np.outer(x, slope) + np.outer(slope, x) + k * tau**2 * turned
        total -= c * kappa * parts
    return total


def output(kernel: Any, coef: Any = COEF) -> Any:
    """A combination of the outputs of a predictor at one query (D,), of its inputs too."""

    def of_query(z, x=X, coef=coef):
        return Predictor(kernel, jnp.asarray(x), jnp.asarray(coef))(z[None])[0] @ WEIGHTS

    return of_query


# In one tile the other modes are tested with float64 predictors below.
@pytest.mark.parametrize(
    ("kernel", "mode"),
    [*((Blocked(0.2), mode) for mode in MODES), (pk.TwoLayerNTK(0, True), "forward over reverse")],
    ids=[*(f"W-{mode}" for mode in MODES), "W and b"],
)
def test_the_hessian_is_the_closed_form(kernel, mode, x64):
    """Also at training points, whose own second derivative, which is infinite, counts 0."""
    found = jax.jit(MODES[mode](output(kernel)))
    for z in PLACES:
        exact = hessian(kernel, z, COEF @ WEIGHTS)
        np.testing.assert_allclose(found(z), exact, rtol=0, atol=1e-13 * np.abs(exact).max())


@pytest.mark.parametrize("kernel", KERNELS)
def test_second_derivatives_are_those_of_differences(kernel, x64):
    """In the query and in the training points, and finite where they coincide."""
    f = output(KERNELS[kernel])
    gradient = jax.grad(f, (0, 1, 2))
    direction = tuple(RNG.normal(size=a.shape) for a in (Z[0], X, COEF))

    def along(parts):
        return sum(jnp.sum(a * b) for a, b in zip(parts, direction, strict=True))

    @jax.jit
    def changes(*arrays):
        _, forward = jax.jvp(f, arrays, direction)
        slope, of_gradient = jax.jvp(gradient, arrays, direction)
        again = jax.grad(lambda *arrays: along(gradient(*arrays)), (0, 1, 2))(*arrays)
        return slope, forward, of_gradient, again

    # Differences separate duplicates, and zero is no place for the arc-cosine.
    apart = X + np.where(np.arange(N)[:, None] >= 5, 0.3, 0)
    at = Z[0], apart, COEF
    slope, forward, *both = changes(*at)
    up, down = (
        changes(*(a + s * H * b for a, b in zip(at, direction, strict=True)))[0] for s in (1, -1)
    )
    for mode in both:
        for change, a, b in zip(mode, up, down, strict=True):
            exact = np.asarray(a - b) / (2 * H)
            # Errors of H^2, and of rounding over H.
            np.testing.assert_allclose(change, exact, rtol=0, atol=1e-7 * np.abs(exact).max())
    assert float(forward) == pytest.approx(float(along(slope)), rel=1e-11)
    for of_gradient, again in zip(*both, strict=True):
        atol = 1e-11 * np.abs(of_gradient).max()
        np.testing.assert_allclose(again, of_gradient, rtol=1e-9, atol=atol)
    for z in PLACES[1:]:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(changes(z, X, COEF)))


def test_second_derivatives_of_a_matrix_of_several_tiles(x64):
    """Those of the sum of squares, by the product rule."""
    kernel: Any = Blocked(0.2)
    z = X[1:2]
    found = jax.jit(jax.hessian(lambda z: jnp.sum(kernel.ntk(X[:2], z[None]) ** 2)))(z[0])
    exact = np.zeros((D, D))
    for k, one in zip(oracle.ntk(X[:2], z, 0.2, False)[:, 0], np.eye(N), strict=False):
        slope = oracle.input_gradient(z, X, one, 0.2, False)[0]
        exact += 2 * (np.outer(slope, slope) + k * hessian(kernel, z[0], one))
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-13 * np.abs(exact).max())


def test_the_gaussian_kernel_has_its_own_curvature_at_training_points(x64):
    """It is smooth there."""
    kernel: Any = pk.RBF(1.5)
    one: Any = np.concatenate([np.ones((1, OUTPUTS)), np.zeros((N - 1, OUTPUTS))])
    found = jax.jit(jax.hessian(output(kernel)))(X[0], X, one)
    np.testing.assert_allclose(found, -np.eye(D) / 1.5**2 * WEIGHTS.sum(), atol=1e-14)


@pytest.mark.parametrize("order", [1, 2])
def test_smooth_arc_cosine_kernels_have_their_own_curvature_at_training_points(order, x64):
    """On the line through a point the kernel is polynomial to second order, and 0 behind zero."""
    one: Any = np.concatenate([np.ones((1, OUTPUTS)), np.zeros((N - 1, OUTPUTS))])
    found = jax.jit(jax.hessian(output(pk.ArcCosine(order))))
    square = X[0] @ X[0]
    exact = (order - 1) * (2 * square * np.eye(D) + 4 * np.outer(X[0], X[0])) * WEIGHTS.sum()
    for along in (1.0, 2.0, -1.0):
        wanted = exact if along > 0 else 0 * exact
        np.testing.assert_allclose(found(along * X[0], X, one), wanted, atol=1e-7 * square)


def test_float64_predictors_where_jax_is_set_to_float32(x64):
    places = np.asarray(PLACES, np.float32)
    exact = [hessian(pk.TwoLayerNTK(0.2), z, COEF @ WEIGHTS) for z in places]
    f = Predictor(pk.TwoLayerNTK(0.2), jnp.asarray(X), jnp.asarray(COEF))

    def of_query(z):
        return f(z[None])[0] @ WEIGHTS.astype(np.float32)

    with jax.enable_x64(False):
        v = np.float32(RNG.normal(size=D))
        for mode in along(v).values():
            once = jax.jit(mode(of_query))
            for z, wanted in zip(places, exact, strict=True):
                found = once(z)
                assert found.dtype == np.float32
                times_v = wanted @ v if found.ndim else v @ wanted @ v
                # Queries and results are rounded, nothing else.
                atol = 1e-5 * np.abs(wanted).max()
                np.testing.assert_allclose(found, times_v, rtol=0, atol=atol)


def test_input_gradients_are_differentiated_and_go_through_vmap(x64):
    f = Predictor(pk.TwoLayerNTK(0.2), jnp.asarray(X), jnp.asarray(COEF))

    def slope(z):
        return f.input_gradient(z[None], WEIGHTS[None])[0]

    places = jnp.asarray(PLACES)
    exact = [hessian(f.kernel, z, COEF @ WEIGHTS) for z in PLACES]
    for turn in (jax.jacfwd, jax.jacrev):
        found = jax.jit(jax.vmap(turn(slope)))(places)
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-13 * np.abs(exact).max())


# --- through training ---


def trained(loss: str, y: Any, ridge: Any) -> Any:
    f = fit(pk.TwoLayerNTK(0.2, True), X[1:], y, loss=loss, dynamics=Flow(np.inf), ridge=ridge)
    return jnp.sum(f(Z) ** 2)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_second_derivatives_of_training_to_a_minimum(loss, x64):
    y = np.where(X[1:, 0] > 0, 1.0, -1.0)

    def slope(ridge):
        return jax.grad(lambda ridge: trained(loss, y, ridge))(ridge)

    found = jax.grad(slope)(0.3)
    # The tolerance 1e-11 of a minimum over H.
    assert float(found) == pytest.approx(float(slope(0.3 + H) - slope(0.3 - H)) / (2 * H), rel=1e-5)


def test_second_derivatives_through_eigenvectors_are_refused(x64):
    def score(x):
        return jnp.sum(fit(pk.TwoLayerNTK(), x, X[:, 0], loss="squared", dynamics=Flow(3.0))(Z))

    with pytest.raises(TypeError, match="training to a finite time is differentiated once"):
        jax.eval_shape(jax.hessian(score), jnp.asarray(X))
