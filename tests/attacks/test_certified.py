"""Certified sizes: against attacks inside the ball, exact answers, and a Hessian by differences."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from common import KERNELS, D, M, N, label

import perturbkernel as pk
from perturbkernel.attacks.certificates import expansion as _expansion
from perturbkernel.attacks.certificates import points as _points
from perturbkernel.attacks.certificates import quadratic as _quadratic
from perturbkernel.attacks.certificates import radius as _radius

# Any, for the type checker: NumPy arrays and numbers are welcome where signatures say Array.
certified_size: Any = pk.certified_size
expansion: Any = _expansion
points: Any = _points
quadratic: Any = _quadratic
radius: Any = _radius
RNG = np.random.default_rng(17)

# One program each, as within `certified_size`.
kernel_weights = jax.jit(expansion.kernel_weights)
initial_weights = jax.jit(expansion.initial_weights)
gradient_of = jax.jit(expansion.gradient_of)
hessian_of = jax.jit(expansion.hessian_of, static_argnums=3)
kernel_remainders = jax.jit(points.kernel_remainders)
initial_remainder = jax.jit(points.initial_remainder)
angle_reach = jax.jit(points.angle_reach)
turning_speed = jax.jit(points.turning_speed)
NORMS = ("l2", "linf", "l1")
DUAL = {"l2": 2, "linf": 1, "l1": np.inf}
ORDER = {"l2": 2, "linf": np.inf, "l1": 1}
CURVED: list[Any] = [kernel for kernel in KERNELS if kernel.slope < 1]


def predictor(kernel, x, coef, initial=None) -> Any:
    with jax.enable_x64(True):
        return pk.KernelPredictor(kernel, jnp.asarray(x), jnp.asarray(coef), initial)


def margins_at(f, z, decision) -> np.ndarray:
    """f_y - max f_k, or y f, at z (m, q, d) for decisions (m,), in float64 by NumPy alone."""
    x, coef = np.asarray(f.inputs), np.asarray(f.dual_coef)
    flat = z.reshape(-1, z.shape[-1])
    outputs = oracle.ntk(flat, x, f.kernel.slope, f.kernel.train_bias) @ coef
    if f.initial is not None:
        before, coef = np.asarray(f.initial.points), np.asarray(f.initial.coef)
        outputs = outputs + oracle.nngp(flat, before, f.kernel.slope) @ coef
    outputs = np.asarray(outputs, float).reshape(*z.shape[:2], -1)
    if outputs.shape[2] == 1:
        return decision[:, None] * outputs[..., 0]
    own = np.take_along_axis(outputs, decision[:, None, None], axis=2)[..., 0]
    is_own = np.arange(outputs.shape[2]) == decision[:, None, None]
    return own - np.where(is_own, -np.inf, outputs).max(2)


def worst_inside(f, z, sizes, decision, norm, rng, steps=6) -> np.ndarray:
    """The least margins found in the balls about z (m, d): at corners, random points, and on the
    way down from the worst of them.
    """
    m, d = z.shape
    sizes = sizes[:, None, None]
    draws = rng.normal(size=(30, d))
    draws = np.concatenate([draws, np.eye(d), -np.eye(d), np.sign(draws[:20])])
    draws = draws / np.linalg.norm(draws, ORDER[norm], axis=1, keepdims=True)
    delta = sizes * draws
    found = margins_at(f, z[:, None] + delta, decision)
    least = found.min(1)
    first = np.argsort(found, axis=1)[:, :3, None]
    delta = np.take_along_axis(delta, first, axis=1)
    for step in range(steps):
        near = delta[:, :, None] + 1e-6 * sizes[..., None] * np.eye(d)
        here = margins_at(f, z[:, None] + delta, decision)
        moved = margins_at(f, z[:, None] + near.reshape(m, -1, d), decision)
        slope = moved.reshape(m, 3, d) - here[..., None]
        slope /= np.linalg.norm(slope, axis=2, keepdims=True) + 1e-300
        delta = delta - sizes / (1 + step / 2) * slope
        if norm == "linf":
            delta = np.clip(delta, -sizes, sizes)
        elif norm == "l1":
            rows = [onto_l1(row, size) for row, size in zip(delta, sizes[:, 0, 0], strict=True)]
            delta = np.stack(rows)
        else:
            delta *= np.minimum(1, sizes / np.linalg.norm(delta, axis=2, keepdims=True))
        least = np.minimum(least, margins_at(f, z[:, None] + delta, decision).min(1))
    return least


def onto_l1(rows, size):
    """The nearest points of the l1 ball, by bisection of the threshold."""
    low, high = np.zeros(len(rows)), np.abs(rows).max(1)
    for _ in range(60):
        middle = (low + high) / 2
        outside = np.maximum(np.abs(rows) - middle[:, None], 0).sum(1) > size
        low, high = np.where(outside, middle, low), np.where(outside, high, middle)
    return np.sign(rows) * np.maximum(np.abs(rows) - high[:, None], 0) * (1 - 1e-12)


def random_case(kernel, rng, outputs=None, initial=False) -> tuple[Any, np.ndarray]:
    """Points of any scale, some queries at training points, near them, or opposite them."""
    x = rng.normal(size=(N, D)) * 10.0 ** rng.uniform(-1, 1)
    x[1] = x[0]
    z = rng.normal(size=(M, D)) * 10.0 ** rng.uniform(-1, 1)
    z[:2] = x[2:4]
    z[2] = x[4] + 1e-3 * rng.normal(size=D)
    z[3] = -3 * x[5]
    shape = (N,) if outputs is None else (N, outputs)
    coef = rng.normal(size=shape)
    f0 = None
    if initial:
        with jax.enable_x64(True):
            coef0 = rng.normal(size=shape) * 10.0 ** rng.uniform(-1, 1)
            f0 = pk.InitialFunction(kernel, jnp.asarray(x + 0.1), jnp.asarray(coef0))
    return predictor(kernel, x, coef, f0), z


# (norm, outputs, whether it has an initial function): each is a program.
PROGRAMS: list[Any] = [("l2", None, False), ("linf", None, True), ("l1", 3, False), ("l2", 3, True)]


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_no_attack_succeeds_inside(program):
    norm, outputs, initial = program
    for kernel in KERNELS:
        f, z = random_case(kernel, RNG, outputs, initial)
        found = certified_size(f, z, norm=norm)
        assert found.status == "ok" and found.size.min() > 0
        assert (margins_at(f, z[:, None], found.decision) > 0).all()
        assert (worst_inside(f, z, found.size, found.decision, norm, RNG) > 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_network_is_certified_to_its_boundary(norm):
    x, z = RNG.normal(size=(N, D)), RNG.normal(size=(M, D))
    coef = RNG.normal(size=N)
    f = predictor(pk.TwoLayerNTK(1.0, True), x, coef)
    found = certified_size(f, z, norm=norm)
    weights = coef @ x
    exact = np.abs(z @ weights + coef.sum()) / np.linalg.norm(weights, DUAL[norm])
    np.testing.assert_allclose(found.size, exact, rtol=1e-8)
    assert (found.size < exact).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_near_the_size_of_the_smallest_attack(norm):
    """High dimension, many points: the coefficients cancel, and the bound must see it."""
    x, z = RNG.normal(size=(60, 50)), RNG.normal(size=(M, 50))
    with jax.enable_x64(True):
        f: Any = pk.fit(
            pk.TwoLayerNTK(0.2, True),
            x,
            np.sign(x[:, 0] + RNG.normal(size=60)),
            loss="squared",
            dynamics=pk.GradientFlow(np.inf),
        )
        found = certified_size(f, z, norm=norm)
    # At 1.6 times the size the linear step succeeds at most points.
    gradient = np.asarray(f.input_gradient(z))
    step = gradient if norm == "l2" else np.sign(gradient)
    length = np.linalg.norm(step, ORDER[norm], axis=1, keepdims=True)
    step = -found.decision[:, None] * step / length
    attacked = z + 1.6 * found.size[:, None] * step
    left = margins_at(f, attacked[:, None], found.decision)[:, 0]
    assert (left < 0).mean() > 0.7


def seen_from(kernel, x, z, norm="l2"):
    numbers = radius.Numbers(
        cone=(1 - kernel.slope) ** 2 / (2 * np.pi),
        gate=(1 + kernel.slope**2) / 2,
        bias=float(kernel.train_bias),
        reach=1.0,
        rounding=1e-13,
    )
    d = x.shape[1]
    length = np.linalg.norm(z)
    query = points.Query(
        jnp.asarray(z), length, np.sqrt(d + length**2), np.linalg.norm(z, DUAL[norm])
    )
    seen = points.Seen(
        factor=jnp.asarray(x @ z + numbers.bias),
        theta=jnp.asarray(np.asarray(oracle.angle(z[None], x), float)[0]),
        root=jnp.asarray(np.sqrt(d + (x**2).sum(1))),
        dual=jnp.asarray(np.linalg.norm(x, DUAL[norm], axis=1)),
    )
    return query, seen, numbers


@pytest.mark.parametrize("kernel", CURVED[::3], ids=label)
def test_gradient_and_hessian_by_differences(kernel):
    with jax.enable_x64(True):
        x, z, coef = RNG.normal(size=(N, D)), RNG.normal(size=D), RNG.normal(size=N)
        query, seen, numbers = seen_from(kernel, x, z)
        tangent = kernel_weights(query, seen, coef, numbers, jnp.full(N, 2))
        initial = initial_weights(query, seen, coef, numbers)

        def value(name, z):
            if name == "ntk":
                return oracle.ntk(z, x, kernel.slope, kernel.train_bias) @ coef
            return oracle.nngp(z, x, kernel.slope) @ coef

        step, basis = 1e-5, np.eye(D)
        for name, weights in (("ntk", tangent), ("nngp", initial)):
            up, down = value(name, z + step * basis), value(name, z - step * basis)
            expected = np.asarray((up - down) / (2 * step), float)
            gradient = gradient_of(query, x, weights)
            np.testing.assert_allclose(gradient, expected, atol=1e-7)
            h = 1e-3
            corners = [
                [value(name, (z + h * (s * a + t * b))[None])[0] for a in basis for b in basis]
                for s, t in ((1, 1), (1, -1), (-1, 1), (-1, -1))
            ]
            expected = (np.array(corners).T @ [1, -1, -1, 1]).astype(float) / (4 * h * h)
            hessian = hessian_of(query, x, weights, 8) + weights.identity * basis
            np.testing.assert_allclose(hessian, expected.reshape(D, D), atol=1e-4)


def test_a_small_margin_is_spent_on_the_slope_and_half_of_the_curvature():
    with jax.enable_x64(True):
        x, z, coef = RNG.normal(size=(N, D)), RNG.normal(size=D), RNG.normal(size=N)
        query, seen, numbers = seen_from(pk.TwoLayerNTK(), x, z)
        network = radius.Network(jnp.asarray(x), jnp.asarray(coef)[:, None], None, None)
        row = radius.Row(query, seen, None, 0.0)
        losses = radius.Losses(network, numbers, row, jnp.ones(1), "l2", 2**20)
        slope, curvature = losses.expanded(jnp.full(N, 2))
        margin = 1e-4 * slope
        size = losses.radius(margin)
        # What is left for remainders is of the third order.
        np.testing.assert_allclose((margin - slope * size) / size**2, curvature() / 2, rtol=0.02)


@pytest.mark.parametrize("kernel", CURVED[1::3], ids=label)
def test_remainders_bound_every_expansion(kernel):
    """Point by point, along random lines and sizes, at coefficients of either sign."""
    largest = np.zeros(4)
    with jax.enable_x64(True):
        for _ in range(8):
            x = RNG.normal(size=(N, D)) * 10.0 ** RNG.uniform(-1, 1)
            z = RNG.normal(size=D) * 10.0 ** RNG.uniform(-1, 1)
            x[0] = z
            query, seen, numbers = seen_from(kernel, x, z)
            sign = RNG.choice([-1.0, 1.0], N)
            size = np.linalg.norm(z) * 10.0 ** RNG.uniform(-2, 0)
            bounds = kernel_remainders(query, seen, sign, numbers.cone, size, 1.0)
            delta = RNG.normal(size=(64, D))
            delta *= size / np.linalg.norm(delta, axis=1, keepdims=True)
            change = oracle.ntk(z + delta, x, kernel.slope, kernel.train_bias) - oracle.ntk(
                z[None], x, kernel.slope, kernel.train_bias
            )
            change = np.asarray(change, float) * sign
            for order in range(3):
                for n in range(0, N, 4):
                    one = np.where(np.arange(N) == n, sign, 0)
                    if not np.isfinite(bounds[order, n]):
                        continue
                    weights = kernel_weights(
                        query, seen, one, numbers, np.where(one != 0, order, 0)
                    )
                    expected = delta @ np.asarray(gradient_of(query, x, weights))
                    if order == 2:
                        hessian = hessian_of(query, x, weights, N)
                        hessian = hessian + weights.identity * np.eye(D)
                        expected += 0.5 * np.einsum("ki,ij,kj->k", delta, hessian, delta)
                    left = (change[:, n] - expected).max()
                    bound = float(bounds[order, n])
                    assert left <= bound * (1 + 1e-9) + 1e-12 * np.abs(change).max()
                    if bound > 0:
                        largest[order] = max(largest[order], left / bound)
    assert (largest[:3] > 0.2).all()  # bounds that say something


def test_the_third_derivative_of_an_angle_is_bounded_and_nearly_attained():
    """By differences in extended precision, on lines in every direction."""
    ratios = []
    size, h = 1e-6, 1e-3
    with jax.enable_x64(True):
        for _ in range(6):
            x, z = 3 * RNG.normal(size=(60, 2)), RNG.normal(size=2) * 10.0 ** RNG.uniform(-1, 1)
            query, seen, _ = seen_from(pk.TwoLayerNTK(), x, z)
            alone = seen._replace(factor=jnp.ones(60), dual=jnp.zeros(60))
            bounds = kernel_remainders(query, alone, jnp.ones(60), 1.0, size, 1.0)
            bound = np.asarray(bounds[2]) * 6 / size**3
            turns = np.linspace(0, np.pi, 60)
            delta = np.stack([np.cos(turns), np.sin(turns)], axis=1)
            steps = [oracle.angle(z + t * h * delta, x) for t in (-2, -1, 1, 2)]
            third = (steps[3] - steps[0]) / 2 - (steps[2] - steps[1])
            theta = np.asarray(seen.theta)
            apart = (theta > 0.2) & (theta < np.pi - 0.2)
            found = np.abs(np.asarray(third, float)).max(0) / h**3
            ratios.append((found / bound)[apart].max())
    assert 0.6 < max(ratios) < 1.001


def test_a_query_turns_as_far_and_as_fast_as_the_bounds_say():
    def angle(a, b):
        a, b = np.append(a, D**0.5), np.append(b, D**0.5)
        a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
        return 2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))

    with jax.enable_x64(True):
        for _ in range(10):
            z = RNG.normal(size=D) * 10.0 ** RNG.uniform(-1, 1)
            length = np.linalg.norm(z)
            root = np.sqrt(D + length**2)
            query = points.Query(jnp.asarray(z), length, root, length)
            share = RNG.uniform(0.1, 0.9)
            across = np.linalg.qr(np.stack([z, RNG.normal(size=D)], axis=1))[0][:, 1]
            # The step that turns furthest is orthogonal to where it leads.
            step = share * (np.sqrt(1 - share**2) * length * across - share * z)
            turned = angle(z, z + step)
            reach = float(angle_reach(query, share * length))
            assert turned < reach < turned * (1 + 3e-6)
            # The query turns fastest where it is nearest to the origin.
            near = (1 - share) * z
            h = 1e-4 * root
            speed = float(turning_speed(query, share * length))
            assert 0.999 < angle(near, near + h * across) / h / speed < 1


def test_the_rest_of_an_initial_function_is_bounded():
    kernel = pk.TwoLayerNTK()
    ratios = []
    with jax.enable_x64(True):
        for _ in range(40):
            x = RNG.normal(size=(1, D)) * 10.0 ** RNG.uniform(-1, 1)
            z = RNG.normal(size=D) * 10.0 ** RNG.uniform(-1, 1)
            query, seen, numbers = seen_from(kernel, x, z)
            one = np.ones(1)
            size = np.linalg.norm(z) * 10.0 ** RNG.uniform(-1.5, 0)
            bound = float(initial_remainder(query, seen, one, numbers.cone, size, 1.0))
            delta = RNG.normal(size=(200, D))
            delta *= size / np.linalg.norm(delta, axis=1, keepdims=True)
            weights = initial_weights(query, seen, one, numbers)
            gradient = np.asarray(gradient_of(query, x, weights))
            hessian = hessian_of(query, x, weights, 1) + weights.identity * np.eye(D)
            change = oracle.nngp(z + delta, x, 0.0) - oracle.nngp(z[None], x, 0.0)
            expected = delta @ gradient + 0.5 * np.einsum("ki,ij,kj->k", delta, hessian, delta)
            left = np.abs(np.asarray(change, float)[:, 0] - expected).max()
            assert left <= bound + 1e-12
            ratios.append(left / bound)
    assert max(ratios) > 0.2


@pytest.mark.parametrize("norm", NORMS)
def test_quadratic_forms_are_bounded(norm):
    with jax.enable_x64(True):
        for _ in range(20):
            matrix = RNG.normal(size=(D, D)) * RNG.exponential(size=D)
            matrix = matrix + matrix.T
            shift = RNG.normal()
            bound = float(quadratic.quadratic_bound(jnp.asarray(matrix), shift, norm))
            delta = np.concatenate([RNG.normal(size=(500, D)), np.sign(RNG.normal(size=(99, D)))])
            delta = np.concatenate([delta, np.eye(D), np.linalg.eigh(matrix)[1].T])
            delta /= np.linalg.norm(delta, ORDER[norm], axis=1, keepdims=True)
            forms = np.einsum("ki,ij,kj->k", delta, matrix + shift * np.eye(D), delta)
            assert forms.max() <= bound
            whole = np.abs(matrix + shift * np.eye(D))
            simple = {"l2": np.sqrt((whole**2).sum()), "linf": whole.sum(), "l1": whole.max()}
            assert bound <= simple[norm] + max(norm == "l2" and 2 * abs(shift), 1e-6)


def test_targets_memory_and_accuracy():
    f, z = random_case(pk.TwoLayerNTK(), RNG)
    own = certified_size(f, z)
    targets = np.where(np.arange(M) % 3 == 0, -own.decision, own.decision)
    found = certified_size(f, z, targets)
    np.testing.assert_array_equal(found.size, np.where(np.arange(M) % 3 == 0, 0, own.size))
    small = certified_size(f, z, memory=2**20)
    np.testing.assert_allclose(small.size, own.size, rtol=1e-9)
    median = np.median(own.size)
    shares = found.accuracy([0, median, own.size.max(), 1e9])
    kept = found.size[found.size > 0]
    expected = [len(kept) / M, (kept >= median).mean() * len(kept) / M]
    np.testing.assert_allclose(shares[:2], expected)
    assert shares[2] <= shares[1] and shares[3] == 0
    for bad in ([-1.0], [], 0.5):
        with pytest.raises(ValueError, match="sizes must be"):
            found.accuracy(bad)


def test_a_decision_stands_up_to_its_own_size():
    found = pk.CertifiedSize(np.array([0.5, 0.25, 0.0, 0.0]), np.ones(4, int), "l2", "ok", True)
    np.testing.assert_array_equal(found.accuracy([0, 0.25, 0.5, 0.75]), [0.5, 0.5, 0.25, 0])


def test_of_k_outputs_the_nearest_rival_counts():
    f, z = random_case(pk.TwoLayerNTK(0.2, True), RNG, outputs=3)
    found = certified_size(f, z)
    x, coef = np.asarray(f.inputs), np.asarray(f.dual_coef)
    least = np.full(M, np.inf)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        pair = certified_size(predictor(f.kernel, x, coef[:, a] - coef[:, b]), z).size
        is_rival = (found.decision == a) | (found.decision == b)
        least = np.where(is_rival, np.minimum(least, pair), least)
    np.testing.assert_allclose(found.size, least, rtol=1e-6)
    right = certified_size(f, z, found.decision)
    np.testing.assert_array_equal(right.size, found.size)


def test_a_function_before_training_is_bounded_by_its_lipschitz_number():
    slope = RNG.normal(size=D)

    def f0(z):
        return z @ jnp.asarray(slope, z.dtype)

    kernel = pk.TwoLayerNTK(1.0)
    x, coef = RNG.normal(size=(N, D)), RNG.normal(size=N)
    z = RNG.normal(size=(M, D))
    f = predictor(kernel, x, coef, f0)
    with pytest.raises(ValueError, match="lipschitz="):
        certified_size(f, z)
    length = np.linalg.norm(slope)
    found = certified_size(f, z, lipschitz=length)
    weights = coef @ x
    values = np.abs(z @ (weights + slope))
    expected = values / (np.linalg.norm(weights) + length)
    np.testing.assert_allclose(found.size, expected, rtol=1e-5)


def test_rounding_of_a_function_before_training_is_taken_off():
    x, coef = RNG.normal(size=(N, D)), RNG.normal(size=N)
    weights = coef @ x

    def f0(z):
        """In float32: all but a millionth of what training adds, of the other sign."""
        return (1e-6 - 1) * (z @ jnp.asarray(weights, z.dtype))

    f = predictor(pk.TwoLayerNTK(1.0), x, coef, f0)
    found = certified_size(f, RNG.normal(size=(M, D)), lipschitz=np.linalg.norm(weights))
    assert not found.size.any() and "rests on rounding" in found.status


def test_what_rests_on_rounding_is_not_certified():
    x = RNG.normal(size=(N, D))
    f = predictor(pk.TwoLayerNTK(), x, np.zeros(N))
    found = certified_size(f, x[:M])
    assert not found.size.any()
    assert found.status == f"the decision rests on rounding at {M} of {M} inputs"


def test_wrong_arguments_are_refused():
    f, z = random_case(pk.TwoLayerNTK(), RNG)
    with pytest.raises(TypeError, match="f must be a KernelPredictor"):
        certified_size(lambda z: z.sum(1), z)
    with pytest.raises(ValueError, match="norm must be"):
        certified_size(f, z, norm="l0")
    with pytest.raises(ValueError, match="rows of shape"):
        certified_size(f, z[:, :2])
    with pytest.raises(ValueError, match="targets"):
        certified_size(f, z, np.ones(3))
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda z: certified_size(f, z).size)(z)
