"""stax_kernels.py: K(x, x) and its gradient where points coincide, masks, and what is refused.

Reference: neural-tangents in float64, which knows a ReLU's angle 0 to 1e-8 and is otherwise exact.
"""

import copy
import functools
import pickle
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import largest_row

import perturbkernel as pk
from perturbkernel.kernels.stax_kernels import diagonal, load_neural_tangents, matrix

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:neural_tangents")

# Any, for the type checker: NumPy arrays are welcome where signatures say Array.
ArchitectureNTK: Any = pk.ArchitectureNTK
stax: Any = load_neural_tangents()
N, D = 4, 5
RNG = np.random.default_rng(21)
X = RNG.normal(size=(N, D)).astype(np.float32)
IMAGES = RNG.normal(size=(N, 8, 8, 1)).astype(np.float32)
WORDS = RNG.normal(size=(N, 6, 3)).astype(np.float32)


def dense(scale: float = 1.5) -> Any:
    return stax.Dense(1, W_std=scale, b_std=0.3)


def hidden(activation: Any, depth: int = 1, scale: float = 1.5) -> Any:
    return stax.serial(*depth * (dense(scale), activation), dense(scale))


def pooled(activation: Any) -> Any:
    convolution = stax.Conv(1, (3, 3), padding="SAME", W_std=1.5, b_std=0.3)
    return stax.serial(convolution, activation, stax.GlobalSumPool(), stax.Dense(1))


def attention() -> Any:
    layer = stax.GlobalSelfAttention(1, n_chan_key=1, n_chan_val=1, n_heads=1, linear_scaling=True)
    return stax.serial(dense(), stax.Relu(), layer, stax.Flatten(), dense())


def normalised(*activations: Any) -> Any:
    layers = [layer for phi in activations for layer in (dense(), stax.LayerNorm(), phi)]
    return stax.serial(*layers, dense())


def deep(family: str, depth: int, activation: str) -> Any:
    return getattr(ArchitectureNTK, family)(depth, activation).network


@functools.cache
def programs(network: Any) -> tuple[Any, Any]:
    """K(x, x) by neural-tangents, and its diagonal; each compiled once for a network and dtype."""
    reference = jax.jit(lambda x: network[2](x, None, "ntk"))
    return reference, jax.jit(functools.partial(diagonal, network, "it", "ntk"))


def exact_diagonal(network: Any, x: np.ndarray) -> np.ndarray:
    reference, _ = programs(network)
    # The reference relies on promotions that the strict modes forbid.
    loose = jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard")
    with jax.enable_x64(True), loose[0], loose[1]:
        return np.asarray(reference(jnp.asarray(x, jnp.float64))).diagonal()


def own_diagonal(network: Any, x: np.ndarray, dtype: Any) -> np.ndarray:
    _, own = programs(network)
    with jax.enable_x64(dtype == np.float64):
        values = own(jnp.asarray(x, dtype))
    assert values.dtype == dtype
    return np.asarray(values)


# --- values ---

# Name -> (network, inputs, error in float64: that of the reference's angles for ReLUs).
NETWORKS: dict[str, Any] = {
    "residual 12 gelu": lambda: (deep("residual", 12, "gelu"), X, 1e-11),
    "residual 6 erf": lambda: (deep("residual", 6, "erf"), X, 1e-11),
    "residual 4 relu": lambda: (deep("residual", 4, "relu"), X, 1e-7),
    "4 gelu": lambda: (deep("fully_connected", 4, "gelu"), X, 1e-12),
    "12 erf": lambda: (deep("fully_connected", 12, "erf"), X, 1e-12),
    "4 leaky": lambda: (deep("fully_connected", 4, "leaky_relu"), X, 1e-7),
    "erf, W_std = 30": lambda: (hidden(stax.Erf(), 1, 30.0), X, 1e-11),
    "erf, W_std = 30, twice": lambda: (hidden(stax.Erf(), 2, 30.0), X, 1e-9),
    "sum pool": lambda: (pooled(stax.Relu()), IMAGES, 1e-7),
    "sum pool gelu": lambda: (pooled(stax.Gelu()), IMAGES, 1e-12),
    "exp": lambda: (hidden(stax.Exp(1, 2)), X, 1e-12),
    "monomial": lambda: (hidden(stax.Monomial(3), 2), X, 1e-12),
    "sin": lambda: (hidden(stax.Sin(1.0, 3.0), 2), X, 1e-11),
    "rbf": lambda: (hidden(stax.Rbf(2.0), 2), X, 1e-11),
    "gabor": lambda: (hidden(stax.Gabor()), X, 1e-12),
    "hermite": lambda: (normalised(stax.Hermite(3)), X, 1e-12),
    "normalised": lambda: (normalised(stax.Relu(), stax.Gelu()), X, 1e-7),
    "attention": lambda: (attention(), WORDS, 1e-7),
}


# Float32 holds the result, not the computation, whatever the network: here the hardest ones.
IN_FLOAT32 = "residual 12 gelu", "4 gelu", "4 leaky", "sum pool", "normalised"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_kernel_of_a_point_with_itself(name):
    network, x, tolerance = NETWORKS[name]()
    exact = exact_diagonal(network, x)
    np.testing.assert_allclose(own_diagonal(network, x, np.float64), exact, rtol=tolerance)
    if name in IN_FLOAT32:
        np.testing.assert_allclose(own_diagonal(network, x, np.float32), exact, rtol=2e-7)


def test_inputs_of_any_scale():
    """Biases alone, and biases that drown."""
    network = hidden(stax.Relu(), 3)
    for scale in (0.0, 1e-6, 1e3):
        exact = exact_diagonal(network, scale * X)
        np.testing.assert_allclose(own_diagonal(network, scale * X, np.float64), exact, rtol=1e-7)


# --- outputs and gradients at training points ---

GELU = ArchitectureNTK.residual(2, "gelu")
TWICE = np.concatenate([X[:3], X[:1]])  # a duplicate; of the shape of X, to compile no more
COEF = np.array([0.5, -1.0, 0.7, -0.4], np.float32)
STEP = 1e-6


def gradient_by_differences(network: Any, z: np.ndarray) -> np.ndarray:
    """(m, d), of sum_n COEF_n K(TWICE_n, z): central differences in float64; smooth activations."""
    steps = STEP * np.concatenate([np.eye(D), -np.eye(D)])
    around = (z[:, None].astype(float) + steps).reshape(-1, D)
    with jax.enable_x64(True):
        x = jnp.asarray(TWICE, jnp.float64)
        ntk = np.asarray(jax.jit(lambda z: network[2](x, z, "ntk"))(jnp.asarray(around)))
    sums = (COEF @ ntk).reshape(len(z), 2, D)
    return (sums[:, 0] - sums[:, 1]) / (2 * STEP)


def test_outputs_and_gradients_at_and_beside_training_points():
    beside = (TWICE + 1e-4 * RNG.normal(size=TWICE.shape)).astype(np.float32)
    exact = gradient_by_differences(GELU.network, TWICE)
    reference, _ = programs(GELU.network)
    with jax.enable_x64(True):
        outputs = COEF @ np.asarray(reference(jnp.asarray(TWICE, jnp.float64)))
    for z in (TWICE, beside):
        values = np.asarray(GELU.matvec(z, TWICE, COEF))
        assert np.abs(values - outputs).max() <= 1e-3 * np.abs(outputs).max()
        gradient = np.asarray(GELU.input_gradient(z, TWICE, COEF))
        assert np.abs(gradient - exact).max() <= 5e-3 * largest_row(exact)
    values = np.asarray(GELU.matvec(TWICE, TWICE, COEF))
    assert np.abs(values - outputs).max() <= 2e-6 * np.abs(outputs).max()


def test_an_interpolating_fit_has_its_targets():
    y = np.array([1.0, -1.0, 1.0, -1.0], np.float32)
    f: Any = pk.fit(GELU, X, y, loss="squared", dynamics=pk.GradientFlow(np.inf))  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(f(X), y, atol=1e-4)
    np.testing.assert_allclose(f(X + np.float32(1e-4)), y, atol=1e-2)


# --- masks ---

MASKED = np.where(np.arange(6)[None, :, None] < np.array([6, 4, 3, 5])[:, None, None], WORDS, 9)
MASKED = MASKED[:, :, :1].astype(np.float32)


def masked_kernels() -> dict[str, Any]:
    layers = stax.Conv(1, (3,), padding="SAME", W_std=1.5, b_std=0.3), stax.Relu()
    init, apply, kernel = stax.serial(*layers, stax.GlobalAvgPool(), dense())

    def by_hand(x, z, get):
        return kernel(x, z, get, mask_constant=9.0)

    return {
        "partial": (init, apply, functools.partial(kernel, mask_constant=9.0)),
        "function": (init, apply, by_hand),
    }


@pytest.mark.parametrize("name", ["partial", "function"])
def test_masks_reach_the_diagonal(name):
    network = masked_kernels()[name]
    k = ArchitectureNTK(network, "masked")
    exact = exact_diagonal(network, MASKED)
    np.testing.assert_allclose(np.asarray(k.ntk(MASKED)).diagonal(), exact, rtol=1e-6)
    if name == "partial":
        return  # the gradient is that of the same function
    gradient = np.asarray(k.input_gradient(MASKED, MASKED, COEF))
    assert np.isfinite(gradient).all()
    assert (gradient[MASKED == 9] == 0).all()
    assert (gradient[MASKED != 9] != 0).all()


# --- what is no kernel of two points ---


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            lambda: stax.serial(dense(), stax.Relu(), stax.Dropout(0.5), dense()),
            r'network has Dropout\(mode="train"\).*Use Dropout\(rate, mode="test"\)',
        ),
        (
            lambda: stax.serial(
                dense(),
                stax.DotGeneral(rhs=jnp.ones((N, 2)), dimension_numbers=(((0,), (0,)), ((), ()))),
            ),
            "network must treat points one by one.*along the batch axis",
        ),
        (
            lambda: stax.serial(
                stax.FanOut(2), stax.parallel(dense(), dense()), stax.FanInConcat(0)
            ),
            "network must treat points one by one.*a layer of it changes how many there are",
        ),
        (
            lambda: stax.serial(stax.Dense(1, batch_axis=1, channel_axis=0), stax.Relu()),
            "network must have its points along axis 0; got batch_axis=1",
        ),
    ],
    ids=["dropout", "contraction", "concatenation", "axis"],
)
def test_networks_that_do_not_keep_points_apart_are_refused(network, message):
    with pytest.raises(ValueError, match=message):
        ArchitectureNTK(network()).ntk(X)


def test_dropout_at_test_time_is_taken():
    layers = dense(), stax.Relu(), stax.Dropout(0.5, mode="test"), dense()
    network = stax.serial(*layers)
    np.testing.assert_allclose(
        own_diagonal(network, X, np.float32), exact_diagonal(network, X), rtol=2e-7
    )


# --- JAX's strict modes ---


def test_strict_modes():
    """neural-tangents promotes ranks and dtypes; whoever forbids that does not mean it."""
    network = hidden(stax.Gelu())
    x = jnp.asarray(X)

    def sums(x):
        return matrix(network, "it", "ntk", x, x).sum() + diagonal(network, "it", "ntk", x).sum()

    program = jax.jit(jax.value_and_grad(sums))
    usual = program(x)
    # Each mode raises errors of its own: both at once say as much. `jit` traces anew in them.
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        strict = program(x)
        without_jit = sums(x)
    for one, other in zip(usual, strict, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(usual[0], without_jit, rtol=1e-5)


# --- copies and pickles ---


@pytest.mark.parametrize(
    "make",
    [
        lambda: ArchitectureNTK.fully_connected(3, "erf", b_std=0.0, memory=2**22),
        lambda: ArchitectureNTK.residual(2, "gelu"),
        lambda: ArchitectureNTK.convolutional((6, 6, 1), 2, pooling=False, stride=2),
        lambda: ArchitectureNTK(ArchitectureNTK.residual(2).network, "mine", (D,)),
    ],
    ids=["fully connected", "residual", "convolutional", "renamed"],
)
def test_common_networks_are_pickled_and_copied(make):
    k = make()
    again = pickle.loads(pickle.dumps(k))
    assert again == k and hash(again) == hash(k) and repr(again) == repr(k)
    assert copy.copy(k) is k and copy.deepcopy([k])[0] is k


def test_a_predictor_crosses_to_another_process(tmp_path):
    f: Any = pk.fit(ArchitectureNTK.fully_connected(1), X, np.sign(X[:, 0]))
    (tmp_path / "f.pkl").write_bytes(pickle.dumps((f, X)))
    code = (
        "import pickle, sys; f, x = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(*[float(v).hex() for v in f(x)])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "f.pkl"], capture_output=True, text=True, check=True
    )
    there = [float.fromhex(value) for value in run.stdout.split()]
    # An output near 0 has the rounding of the terms that cancel in it.
    np.testing.assert_allclose(there, f(X), rtol=0, atol=1e-6 * np.abs(f(X)).max())


def test_networks_of_ones_own_are_copied_but_not_pickled():
    k = ArchitectureNTK(hidden(stax.Relu()), "mine")
    assert copy.deepcopy(k) is k
    with pytest.raises(
        pickle.PicklingError,
        match=r"ArchitectureNTK\(mine, .* cannot be pickled.*KernelPredictor\.load\(path, kernel",
    ):
        pickle.dumps(k)
