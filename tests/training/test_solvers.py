"""gram.py, krylov.py, squared.py and large problems of solvers.py: by products, against dense
float64 references.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import compilations, precision, representable

import perturbkernel as pk
from perturbkernel.engine import krylov, memory
from perturbkernel.training import gram, logistic_path, squared
from perturbkernel.training import solve as solvers

fit: Any = pk.fit
GradientFlow: Any = pk.GradientFlow
HeavyBall: Any = pk.HeavyBall
lanczos: Any = krylov.lanczos
KERNEL: Any = pk.TwoLayerNTK(0.2, True)
N, D = 211, 6  # a prime: no tile divides it
INF = float("inf")


@functools.cache
def problem() -> Any:
    rng = np.random.default_rng(7)
    x, z = (representable(rng.normal(size=(k, D)), np.float32) for k in (N, 9))
    return x, np.where(x[:, 0] + rng.normal(size=N) > 0, 1.0, -1.0), z


def start(z):
    return jnp.sin(z[:, 0])


def product(matrix, v):
    return jnp.matmul(matrix, v.astype(matrix.dtype), precision="highest").astype(v.dtype)


def operator(matrix):
    return jax.tree_util.Partial(product, jnp.asarray(matrix))


def prescribed(spectrum: np.ndarray, seed: int = 0) -> Any:
    """A symmetric matrix of these eigenvalues, its eigenvectors, and a right-hand side."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(len(spectrum),) * 2))[0]
    return (q * spectrum) @ q.T, q, rng.normal(size=len(spectrum))


def off(found: Any, exact: Any) -> float:
    return float(np.linalg.norm(np.asarray(found, float) - exact) / np.linalg.norm(exact))


# --- a prescribed spectrum ---

SPECTRA = {
    "geometric": 300.0 * N * np.logspace(0, -8, N),
    "power": 30.0 * N / np.arange(1, N + 1) ** 2,
    "clusters": np.repeat([1000.0, 10.0, 1.0], [3, 50, N - 53]),
    "singular": np.concatenate([np.linspace(1, 50, N - 40), np.zeros(40)]),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("time", [1.0, 1e3])
def test_lanczos_applies_the_filter_of_gradient_flow(spectrum, time, x64):
    values = SPECTRA[spectrum]
    matrix, q, b = prescribed(values)
    for tolerance in (1e-4, 1e-9):
        found = squared.by_products(operator(matrix), jnp.asarray(b), GradientFlow(time), tolerance)
        rate = time * values / N
        filters = np.where(rate > 0, -np.expm1(-rate) / np.where(rate > 0, values, 1), time / N)
        assert found.status == "ok"
        assert found.stats["error"] <= tolerance
        assert off(found.dual_coef, q @ (filters * (q.T @ b))) <= max(2 * tolerance, 1e-10)
        assert found.stats["lambda_max"] == pytest.approx(values.max(), rel=1e-4)  # from below
    if spectrum == "clusters":
        assert found.stats["products"] <= 32  # three distinct eigenvalues


def test_lanczos_that_does_not_converge_says_so(x64):
    matrix, q, b = prescribed(SPECTRA["geometric"])
    found = lanczos(
        operator(matrix),
        jnp.asarray(b),
        lambda v: np.where(v > 1e-4, 1 / np.maximum(v, 1e-4), 0),
        1e-9,
        32,
    )
    assert found.products == 32 and found.error > 1e-3
    exact = q @ (q.T @ b / SPECTRA["geometric"])
    assert off(found.value, exact) > 1e-3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(squared, "lanczos", functools.partial(lanczos, most=32))
        status = squared.by_products(
            operator(matrix), jnp.asarray(b), GradientFlow(1e6), 1e-9
        ).status
    assert status.startswith(
        "the Lanczos process stopped after 32 products at an estimated relative error of"
    )


def test_lanczos_of_nothing_and_of_one_number(x64):
    assert not np.asarray(lanczos(operator(np.eye(3)), jnp.zeros(3), np.exp, 1e-9).value).any()
    found = lanczos(operator(np.full((1, 1), 2.0)), jnp.ones(1), lambda v: v + 1, 1e-9)
    assert (float(found.value[0]), found.products) == (3.0, 1)
    assert not np.asarray(
        lanczos(operator(np.zeros((5, 5))), jnp.ones(5), lambda v: v, 1e-9).value
    ).any()


@pytest.mark.parametrize("spectrum", ["geometric", "power", "clusters"])
def test_the_largest_eigenvalue(spectrum, x64):
    matrix, _, b = prescribed(SPECTRA[spectrum])
    found, products = krylov.largest_eigenvalue(operator(matrix), jnp.asarray(b))
    assert found == pytest.approx(SPECTRA[spectrum].max(), rel=1e-6) and products <= 64


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("spectrum", ["geometric", "power", "clusters"])
def test_conjugate_gradients_interpolate(spectrum, rounded, x64):
    values = SPECTRA[spectrum] + (1e-3 * SPECTRA[spectrum].max() if rounded else 0)
    matrix, _, b = prescribed(values)
    used, exact = (
        (operator(np.float32(matrix)), operator(matrix)) if rounded else (operator(matrix), None)
    )
    tolerance = 1e-8 if values.max() / values.min() > 1e6 else 1e-10  # rounding: condition x eps
    found = squared.interpolate_by_products(
        used, exact, lambda c: jnp.asarray(matrix)[:, c], jnp.asarray(b), tolerance
    )
    assert found.status == "ok" and found.stats["residual"] <= tolerance
    assert np.linalg.norm(matrix @ found.dual_coef - b) <= 1.1 * tolerance * np.linalg.norm(b)
    assert (
        off(found.dual_coef, np.linalg.solve(matrix, b)) <= tolerance * values.max() / values.min()
    )
    assert not rounded or found.stats["refinements"] > 1


def test_the_preconditioner_spares_products(x64):
    values = SPECTRA["power"]
    matrix, _, b = prescribed(values)
    chosen = jnp.arange(0, N, 2)
    preconditioner = krylov.nystrom(jnp.asarray(matrix)[:, chosen], chosen)
    none = krylov.Preconditioner(jnp.zeros((N, 1)), jnp.ones(1))
    counts = [
        int(
            krylov.conjugate_gradients(
                operator(matrix), p, jnp.asarray(b), jnp.asarray(1e-8), jnp.asarray(2000)
            )[2]
        )
        for p in (preconditioner, none)
    ]
    assert counts[0] < counts[1] / 3, counts


def test_a_singular_matrix_is_reported(x64):
    matrix, q, b = prescribed(SPECTRA["singular"])
    found = squared.interpolate_by_products(
        operator(matrix), None, lambda c: jnp.asarray(matrix)[:, c], jnp.asarray(b), 1e-9
    )
    assert "the kernel matrix is singular or nearly so" in found.status
    left = np.linalg.norm(q[:, -40:].T @ b) / np.linalg.norm(b)  # what no coefficients can reach
    assert left <= found.stats["residual"] <= 1
    assert np.isfinite(found.dual_coef).all()


# --- kernels: in tiles and by products, against the direct solution ---

CASES: dict[str, Any] = {
    "squared flow": ("squared", GradientFlow(30.0)),
    "squared heavy ball": ("squared", HeavyBall(0.3, 40)),
    "squared rates": ("squared", HeavyBall(np.linspace(0.1, 0.4, 40), momentum=0.5)),
    "squared inf": ("squared", GradientFlow(INF)),
    "logistic flow": ("logistic", GradientFlow(30.0)),
    "logistic late": ("logistic", GradientFlow(1e4)),
    "logistic heavy ball": ("logistic", HeavyBall(0.3, 40)),
}


@functools.cache
def direct(case: str) -> np.ndarray:
    x, y, z = problem()
    loss, dynamics = CASES[case]
    with precision(np.float64):
        f = fit(KERNEL, x, y, loss=loss, dynamics=dynamics, initial=start)
        assert "gram_held" not in f.stats and f.status == "ok"
        return np.asarray(f(z))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_without_memory_the_same_predictor_comes_out(case, dtype):
    x, y, z = problem()
    loss, dynamics = CASES[case]
    with precision(dtype):
        f = fit(KERNEL, x, y, loss=loss, dynamics=dynamics, initial=start, memory=1e4)
        outputs = np.asarray(f(z), float)
    assert f.status == "ok", f.status
    assert f.stats["gram_held"] == 0
    # float64: tolerances of 1e-9, with the condition number for interpolation. float32: the
    # rounding of tiles, 1e-6 relative to terms that cancel, and of the coefficients.
    limit = 1e-7 if dtype == np.float64 else 1e-4
    assert np.abs(outputs - direct(case)).max() <= limit * np.abs(direct(case)).max()


@pytest.mark.parametrize("case", ["squared inf", "squared flow", "logistic heavy ball"])
def test_a_matrix_that_fits_is_held(case, monkeypatch):
    """As for more than 2,000 points: products with a matrix that is held, float32 for float32
    inputs.
    """
    exact = direct(case)
    monkeypatch.setattr(solvers, "_DIRECT", 0)
    x, y, z = problem()
    loss, dynamics = CASES[case]
    f = fit(KERNEL, np.float32(x), y, loss=loss, dynamics=dynamics, initial=start)
    assert f.status == "ok" and f.stats["gram_held"] == 1
    assert f.stats["gram_bits"] == (64 if case == "squared inf" else 32)
    assert np.abs(np.asarray(f(z)) - exact).max() <= 1e-4 * np.abs(exact).max()
    if case == "squared inf":  # room for float32 alone: refined by exact products
        f = fit(KERNEL, x, y, loss=loss, dynamics=dynamics, initial=start, memory=5 * N**2)
        assert f.status == "ok" and (f.stats["gram_held"], f.stats["gram_bits"]) == (1, 32)
        assert f.stats["residual"] <= f.stats["tolerance"] == 1e-7 and f.stats["refinements"] > 1


def test_conflicting_duplicates_without_memory_are_reported():
    x, y, _ = problem()
    x, y = np.concatenate([x, x[:3]]), np.concatenate([y, -y[:3]])
    f = fit(KERNEL, x, y, loss="squared", dynamics=GradientFlow(INF), memory=0)
    assert "singular or nearly so" in f.status and f.stats["residual"] > 0.01
    assert np.isfinite(f.dual_coef).all()


def test_rates_beyond_the_stable_one_without_memory():
    x, y, _ = problem()
    with pytest.raises(
        ValueError, match=r"^learning_rate must be below 2 \(1 \+ momentum\) n / lambda_max"
    ):
        fit(KERNEL, x, y, loss="squared", dynamics=HeavyBall(50.0, 10), memory=0)
    with pytest.warns(UserWarning, match="may oscillate"):
        fit(KERNEL, x, y, loss="logistic", dynamics=HeavyBall(50.0, 10), memory=0)


traced: set[tuple[int, int]] = set()
made: set[tuple[int, int]] = set()


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Recording(pk.Kernel):
    """Notes the shapes of the tiles that are evaluated, when they are traced, and of the matrices
    that are made. A kernel that compiles quickly.
    """

    scale: float = 1.0
    block = (64, 64)

    def tile(self, name, z, x):
        traced.add((len(z), len(x)))
        return jnp.exp(self.scale * (z @ x.T))

    def _matrix(self, name, x, z):
        made.add((len(x), len(x if z is None else z)))
        return super()._matrix(name, x, z)


def test_no_n_by_n_matrix_is_made_without_memory():
    x, y, _ = problem()
    for scale, case in (
        (0.1, "squared inf"),
        (0.2, "squared flow"),
        (0.3, "logistic late"),
    ):  # each is traced anew
        loss, dynamics = CASES[case]
        traced.clear()
        made.clear()
        fit(Recording(scale), x, y, loss=loss, dynamics=dynamics, memory=0)
        assert traced and max(max(shape) for shape in traced if shape not in made) <= 64, (
            case,
            traced,
        )
        # The preconditioner's columns: at most 256.
        assert made == ({(N, N // 2)} if case == "squared inf" else set()), (case, made)
    made.clear()
    fit(Recording(0.4), x, y, loss="logistic", dynamics=GradientFlow(1.0))
    assert made == {(N, N)}  # the check above can fail


def test_equal_shapes_compile_once_without_memory():
    x, y, _ = problem()
    for loss, dynamics, other in (
        ("squared", GradientFlow(3.0), GradientFlow(4.0)),
        ("squared", HeavyBall(0.1, 5), HeavyBall(0.2, 5, 0.5)),
        ("logistic", GradientFlow(3.0), GradientFlow(400.0)),
        ("logistic", HeavyBall(0.1, 5), HeavyBall(0.2, 5, 0.5)),
    ):
        fit(KERNEL, x, y, loss=loss, dynamics=dynamics, memory=0)
        with compilations() as count:
            fit(KERNEL, x + 1, -y, loss=loss, dynamics=other, memory=0, tolerance=1e-5)
        assert count() == 0, (loss, dynamics)


# --- the operator ---


def test_the_operator_is_the_gram_matrix_held_or_not(x64):
    x, y, _ = problem()
    exact = np.asarray(KERNEL.ntk(x))
    both = np.stack([y, x[:, 0]], axis=1)
    for budget, held in ((8 * N**2, True), (8 * N**2 - 1, False), (None, True)):
        k: Any = gram.gram_operator(KERNEL, jnp.asarray(x), budget)
        assert (k.matrix is not None) == held
        np.testing.assert_allclose(k(y), exact @ y, rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(k(both), exact @ both, rtol=1e-12, atol=1e-10)
        assert k(y.astype(np.float32)).dtype == np.float32
    # What it is for, among others.
    path = logistic_path.logistic_path(k, y, None, np.array([1.0, 2.0]), 1e-3)
    assert path.dual_coef.shape == (2, N)


def test_memory_is_read_from_the_machine_and_bounded(monkeypatch):
    assert 2**30 <= memory.available_memory() <= 2**36
    for left, wanted in ((0, 2**30), (2**40, 2**36), (2**34, 2**32)):
        monkeypatch.setattr(memory, "_host_memory", lambda left=left: left)
        assert memory.available_memory() == wanted


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"memory": -1}, ValueError, "memory must be >= 0 and finite; got -1"),
        ({"memory": "1 GB"}, TypeError, "memory must be a number; got '1 GB'"),
        ({"tolerance": 0}, ValueError, "tolerance must be >= 1e-12 and <= 0.1; got 0"),
        ({"tolerance": "low"}, TypeError, "tolerance must be a number; got 'low'"),
    ],
)
def test_bad_options_say_what_is_wrong(changes, error, message):
    x, y, _ = problem()
    with pytest.raises(error, match=message):
        fit(KERNEL, x, y, loss="squared", **changes)
