"""Finite networks: against the theory's exact moments and NumPy loops; training, ensembles,
learners.

Sharp comparisons run in double precision; statistical ones allow five standard errors, estimated
from the draws."""

import dataclasses
import pickle
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

import perturbkernel as pk
from perturbkernel import networks
from perturbkernel.networks import training

# Untyped: the tests hand over NumPy arrays, and wrong arguments on purpose.
ensemble: Any = networks.ensemble
learn: Any = pk.learn_from_perturbations
paper_optimizer: Any = networks.paper_optimizer
train: Any = networks.train
NetworkLearner: Any = networks.NetworkLearner
Plateau: Any = networks.Plateau
TwoLayerNetwork: Any = networks.TwoLayerNetwork

# Every new shape, length or static setting is a compilation of about half a second: tests share
# these where they can.
N, M, D, WIDTH = 17, 5, 4, 12
ONCE = {"steps": 20, "trace_every": 20}
BATCHED = {"steps": 8, "trace_every": 8, "batch_size": 5}  # two epochs
KEY = jax.random.key(3)


def problem(seed: int = 0, n: int = N, d: int = D) -> Any:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    return x, np.where(x[:, 0] + 0.3 * rng.normal(size=n) > 0, 1.0, -1.0), rng.normal(size=(M, d))


def network(slope=0.2, train_bias=True, width=WIDTH, seed=0) -> Any:
    net = drawn(1, width, seed)
    return TwoLayerNetwork(net.weight[0], net.bias[0], net.readout[0], slope, train_bias)


def drawn(k: int, width: int, seed: int = 0) -> Any:
    """k networks of the right distribution, without the compilation that `init` needs for every
    width.
    """
    rng = np.random.default_rng(seed)
    weight, bias, readout = (
        rng.normal(size=(k, width, D)),
        rng.normal(size=(k, width)),
        rng.normal(size=(k, width)),
    )
    return TwoLayerNetwork(
        *(jnp.asarray(p) for p in (weight / D**0.5, bias, readout / width**0.5)), 0.2, True
    )


def initialised(k: int, width: int, slope: float, doubled: bool = False) -> Any:
    keys = jax.random.split(KEY, k)
    return jax.vmap(
        lambda key: TwoLayerNetwork.init(D, width, slope, True, doubled=doubled, key=key)
    )(keys)


class TorchPlateau:
    """torch.optim.lr_scheduler.ReduceLROnPlateau(mode="min", threshold_mode="rel"), its logic line
    by line.
    """

    def __init__(self, factor=0.1, patience=10, threshold=1e-4):
        self.factor, self.patience, self.threshold = factor, patience, threshold
        self.best, self.num_bad_epochs, self.scale = float("inf"), 0, 1.0

    def step(self, loss: float) -> float:
        if loss < self.best * (1.0 - self.threshold):
            self.best, self.num_bad_epochs = loss, 0
        else:
            self.num_bad_epochs += 1
        if self.num_bad_epochs > self.patience:
            self.scale *= self.factor
            self.num_bad_epochs = 0
        return self.scale


def descend(net, x, y, loss, rate, steps, momentum=0.9, plateau=None):
    """Training written out: weight, bias, losses before each step, scales of the rate."""
    weight, bias, a = (np.asarray(p, float) for p in (net.weight, net.bias, net.readout))
    v_weight, v_bias, losses, scales, scale = 0.0, 0.0, [], [], 1.0
    for _ in range(steps):
        u = x @ weight.T + bias
        gate = np.where(u > 0, 1.0, net.slope)
        f = (gate * u) @ a
        if loss == "identity":
            value, r = -y * f, -y
        elif loss == "logistic":
            value, r = np.log1p(np.exp(-y * f)), -y / (1 + np.exp(y * f))
        else:
            value, r = (f - y) ** 2 / 2, f - y
        back = (gate * a * (r / len(x))[:, None]).T
        v_weight, v_bias = momentum * v_weight + back @ x, momentum * v_bias + back.sum(1)
        weight = weight - rate * scale * v_weight
        bias = bias - rate * scale * v_bias * net.train_bias
        losses.append(value.mean())
        scales.append(scale)
        scale = plateau.step(losses[-1]) if plateau else 1.0
    return weight, bias, np.array(losses), np.array(scales)


def assert_close(got, wanted, tolerance=1e-11):
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def assert_mean(samples, wanted, resolution: float):
    """The mean over axis 0 is `wanted` within 5 standard errors, which must be small enough to mean
    something.
    """
    samples = np.asarray(samples, float)
    error = samples.std(0) / np.sqrt(len(samples))
    assert (error < resolution * np.abs(wanted).max()).all()
    assert (np.abs(samples.mean(0) - wanted) < 5 * error).all(), (samples.mean(0), wanted, error)


# --- the initial distribution ---


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_initial_moments(slope):
    _, _, z = problem()
    nets = initialised(20_000, 10, slope)
    f0, gradient = np.asarray(nets(z), float), np.asarray(nets.input_gradient(z), float)
    covariance = oracle.nngp(z, z, slope)
    assert_mean(f0[:, :, None] * f0[:, None], covariance, 0.02)
    np.testing.assert_allclose(
        np.diag(covariance), (1 + slope**2) / 2 * (1 + (z**2).sum(1) / D), rtol=1e-12
    )
    assert_mean((gradient**2).sum(-1), np.full(M, (1 + slope**2) / 2), 0.02)


@pytest.mark.parametrize(("doubled", "pairs"), [(False, 1), (True, 2)])
def test_empirical_kernel_moments(doubled, pairs):
    x, _, z = problem()
    x, slope, width = x[:3], 0.3, 10
    nets = initialised(20_000, width, slope, doubled)
    phi, q = oracle.phi(x, z, slope), oracle.phi(x, z, slope**2)
    got = np.asarray(nets.empirical_phi(x, z), float)
    assert_mean(got, phi, 0.02)
    # A doubled network is width / 2 independent pairs of neurons.
    assert_mean((got - phi) ** 2, pairs * (3 * q - phi**2) / width, 0.1)
    ntk = np.asarray(nets.empirical_ntk(x, z), float)
    np.testing.assert_allclose(ntk, got * (x @ z.T + 1), rtol=0, atol=1e-5 * np.abs(ntk).max())


def test_empirical_kernel_is_the_product_of_gradients(x64):
    x, _, z = problem()
    net = network(0.2)

    @jax.jit
    @partial(jax.vmap, in_axes=0)
    def gradients(point):
        parameters = lambda n: (n.weight, n.bias)  # noqa: E731
        output = lambda p: eqx.tree_at(parameters, net, p)(point[None])[0]  # noqa: E731
        return jax.grad(output)(parameters(net))

    (weight, bias) = gradients(np.concatenate([x, z]))
    for train_bias in (False, True):
        wanted = (
            jnp.einsum("nij,mij->nm", weight[:N], weight[N:]) + train_bias * bias[:N] @ bias[N:].T
        )
        net = TwoLayerNetwork(net.weight, net.bias, net.readout, 0.2, train_bias)
        assert_close(net.empirical_ntk(x, z), wanted)
        assert net.kernel == pk.TwoLayerNTK(0.2, train_bias)
    assert_close(net.empirical_ntk(x), net.empirical_ntk(x, x), 0)


def test_doubled_network_starts_at_zero():
    x, y, z = problem()
    net = TwoLayerNetwork.init(D, WIDTH, 0.2, True, doubled=True, key=KEY)
    assert net.weight.shape == (WIDTH, D)
    single = first_half(net)
    eps = np.finfo(np.float32).eps
    # Cancellation leaves the rounding of a dozen terms.
    terms = np.abs(np.asarray(net.readout)) @ np.abs(
        np.asarray(net.weight) @ z.T + np.asarray(net.bias)[:, None]
    )
    assert (np.abs(net(z)) <= WIDTH * eps * terms).all()
    assert np.abs(net.input_gradient(z)).max() <= WIDTH * eps * np.abs(
        net.readout
    ) @ np.linalg.norm(net.weight, axis=1)
    assert np.abs(single(z)).max() > 0.05  # either half alone does not vanish
    trained, _ = train(net, x, y, optimizer=paper_optimizer(0.1), **ONCE)
    assert np.abs(trained(z)).max() > 1e-3


def first_half(net) -> Any:
    half = len(net.readout) // 2
    return TwoLayerNetwork(
        net.weight[:half], net.bias[:half], net.readout[:half], net.slope, net.train_bias
    )


# --- the function ---


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
def test_input_gradient(x64, slope):
    _, _, z = problem()
    net, initial = network(slope), network(slope, seed=1)
    for f in (net, net.centred(initial)):
        # Far from the kinks at these points: checked by the accuracy itself.
        step = 1e-6 * np.eye(D)
        wanted = np.stack([(f(z + s) - f(z - s)) / 2e-6 for s in step], axis=-1)
        assert_close(f.input_gradient(z), wanted, 1e-8)
        assert_close(jax.vmap(jax.grad(lambda p, f=f: f(p[None])[0]))(z), wanted, 1e-8)
    assert_close(net.centred(initial)(z), net(z) - initial(z), 0)
    u = z @ np.asarray(net.weight).T + np.asarray(net.bias)
    assert_close(net(z), np.where(u > 0, u, slope * u) @ np.asarray(net.readout))
    np.testing.assert_array_equal(net.active(z), u > 0)


def test_gate_at_the_kink_is_the_slope(x64):
    net = TwoLayerNetwork(jnp.ones((1, 2)), jnp.zeros(1), jnp.full(1, 2.0), 0.25, True)
    zero = jnp.zeros((1, 2))
    np.testing.assert_array_equal(net.input_gradient(zero), [[0.5, 0.5]])
    np.testing.assert_array_equal(jax.grad(lambda z: net(z)[0])(zero), [[0.5, 0.5]])
    np.testing.assert_array_equal(net.empirical_phi(zero), [[4 * 0.25**2]])
    assert not net.active(zero).any()
    trained, _ = train(net, zero, jnp.ones(1), optimizer=optax.sgd(1.0), steps=1)
    np.testing.assert_array_equal(trained.bias, [0.5])


# --- training ---


@pytest.mark.parametrize(
    ("loss", "train_bias"),
    [("identity", False), ("identity", True), ("logistic", True), ("squared", False)],
)
def test_training_matches_the_written_out_loop(x64, loss, train_bias):
    x, y, _ = problem()
    net = network(0.2, train_bias)
    weight, bias, losses, _ = descend(net, x, y, loss, 0.3, 20)
    assert (
        np.abs(weight - net.weight).max() > 0.1
        and (np.asarray(net.bias) == bias).all() != train_bias
    )
    trained, trace = train(net, x, y, loss=loss, optimizer=paper_optimizer(0.3), **ONCE)
    assert_close(trained.weight, weight)
    assert_close(trained.bias, bias)
    assert_close(trace.step_loss, losses)
    np.testing.assert_array_equal(trained.readout, net.readout)
    assert trace.status == "ok" and trained.weight.dtype == np.float64


def test_paper_optimizer_is_optax_sgd(x64):
    x, y, _ = problem()
    net = network()
    ours, theirs = (
        train(net, x, y, loss="logistic", optimizer=optimizer, **ONCE)[0]
        for optimizer in (paper_optimizer(0.3), optax.sgd(0.3, momentum=0.9))
    )
    assert_close(ours.weight, theirs.weight)
    assert_close(ours.bias, theirs.bias)


@pytest.mark.parametrize(("slope", "train_bias"), [(0.2, False), (0.2, True), (0.0, False)])
def test_identity_loss_is_the_closed_form_while_no_gate_flips(x64, slope, train_bias):
    """f = f0 + (tau_k / N) sum y_n K_m(x_n, .) exactly (theory: 1.1); rounding 1e-16 against a
    change of 1e-6.
    """
    x, y, z = problem()
    net = network(slope, train_bias)
    trained, trace = train(net, x, y, optimizer=paper_optimizer(1e-8), **ONCE)
    assert trace.flipped[-1] == 0
    tau = pk.HeavyBall(1e-8, 20, 0.9).effective_time
    change = np.asarray(trained(z) - net(z))
    assert_close(change / tau, y @ np.asarray(net.empirical_ntk(x, z)) / N, 1e-7)


def test_wide_networks_approach_the_kernel_predictor():
    """The rms error falls like width^-1/2: 80 networks a width determine each rms to about 10 %,
    the power to 0.05.
    """
    x, y, z = problem()
    dynamics = pk.HeavyBall(0.02, 20, 0.9)
    f = pk.fit(pk.TwoLayerNTK(0.2, True), x, y, dynamics=dynamics)
    widths, errors = (40, 640), []
    for width in widths:
        nets = drawn(80, width)
        trained, trace = ensemble(nets, x, y, learning_rate=0.02, **ONCE)
        assert trace.status == "ok"
        errors.append(float(jnp.sqrt(jnp.mean((trained(z) - nets(z) - f(z)) ** 2))))
    power = np.log(errors[1] / errors[0]) / np.log(widths[1] / widths[0])
    assert -0.7 < power < -0.35, (power, errors)
    assert errors[-1] < 0.15 * float(jnp.sqrt(jnp.mean(f(z) ** 2)))


def test_neurons_decouple_under_the_identity_loss_only(x64):
    x, y, _ = problem()
    net = network()
    part = first_half(net)
    differences = {}
    for loss in ("identity", "logistic"):
        settings = {"loss": loss, "optimizer": paper_optimizer(0.5), **ONCE}
        whole, alone = (train(n, x, y, **settings)[0] for n in (net, part))
        differences[loss] = np.abs(whole.weight[: WIDTH // 2] - alone.weight).max()
    assert differences["identity"] < 1e-12 < 1e-3 < differences["logistic"]


def test_minibatches_visit_every_point_once_an_epoch():
    """A linear network on one-hot points: a step moves column n of W by rate a y_n / (size of its
    batch), once.
    """
    n, size = 10, 4
    net = TwoLayerNetwork.init(n, 3, 1.0, key=KEY)
    y = np.where(np.arange(n) % 3 == 0, 1.0, -1.0)
    optimizer = optax.sgd(1.0)
    visits = []
    for steps in (3, 6):
        trained, _ = train(
            net,
            np.eye(n),
            y,
            optimizer=optimizer,
            steps=steps,
            batch_size=size,
            key=KEY,
            trace_every=3,
        )
        moved = np.asarray((trained.weight - net.weight) / net.readout[:, None] * y)
        np.testing.assert_allclose(moved, np.broadcast_to(moved[:1], moved.shape), rtol=1e-4)
        visits.append(moved.mean(0))
    second = visits[1] - visits[0]
    for epoch in (visits[0], second):
        np.testing.assert_allclose(np.sort(epoch), [0.25] * 8 + [0.5] * 2, rtol=1e-4)
    # With this key the two epochs leave different points for the last batch: they are shuffled
    # anew.
    assert not np.allclose(visits[0], second, rtol=1e-3)


def test_minibatch_loss_is_the_mean_over_the_batch():
    x, y, _ = problem()
    net = network()
    _, trace = train(net, x, y, optimizer=paper_optimizer(0.0), **BATCHED, key=KEY)
    per_point = -y * np.asarray(net(x))
    for epoch in np.asarray(trace.step_loss).reshape(2, 4):
        np.testing.assert_allclose(epoch @ [5, 5, 5, 2], per_point.sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", [optax.adam(0.05), optax.lbfgs()], ids=["adam", "lbfgs"])
def test_any_optax_optimizer(optimizer):
    x, y, _ = problem()
    _, trace = train(
        network(), x, y, loss="logistic", optimizer=optimizer, steps=12, trace_every=12
    )
    assert trace.status == "ok"
    assert trace.loss[-1] < 0.8 * trace.loss[0]


# --- the plateau rule ---


def sequences() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    k = np.arange(60)
    falling = 2.0 * 0.9**k
    return {
        "falls, then flat": np.maximum(falling, 0.5),
        "flat": np.ones(60),
        "zero": np.zeros(60),
        "negative and flat": np.full(60, -1.0),
        "negative, rises by less than the threshold": -1.0 * (1 - 5e-5) ** k,
        "negative, rises by more": -1.0 * (1 - 3e-4) ** k,
        "negative, falls": -(0.1 * k),
        "noise": rng.normal(size=60),
        "falls through zero, then flat": np.maximum(1 - 0.1 * k, -2.0),
        "negative noise": -1 + 0.1 * rng.normal(size=60),
        "positive, falls by less than the threshold": (1 - 5e-5) ** k,
        "not a number": np.where(k < 5, falling, np.nan),
    }


@pytest.mark.parametrize(
    "rule", [Plateau(), Plateau(0.5, 0, 1e-2), Plateau(0.3, 3)], ids=["default", "eager", "short"]
)
def test_plateau_rule_is_pytorchs(x64, rule):
    transformation = rule.transformation()

    @jax.jit
    @jax.vmap
    def scales(losses):
        step = lambda s, v: (new := transformation.update((), s, value=v)[1], new.scale)  # noqa: E731
        return jax.lax.scan(step, transformation.init(jnp.zeros(())), losses)[1]

    given = sequences()
    for (name, losses), got in zip(
        given.items(), scales(np.stack(list(given.values()))), strict=True
    ):
        torch = TorchPlateau(rule.factor, rule.patience, rule.threshold)
        wanted = [torch.step(loss) for loss in losses]
        np.testing.assert_allclose(got, wanted, rtol=1e-12, err_msg=name)
        if rule == Plateau():
            falls = {
                "falls, then flat",
                "flat",
                "zero",
                "negative, rises by more",
                "noise",
                "not a number",
                "negative noise",
            }
            # Losses that fall by 5e-5 each are better than the best of three steps before by 1e-4:
            # the rate stays.
            assert (wanted[-1] < 1) == (name in falls), name


def test_training_with_a_plateau_matches_the_written_out_loop(x64):
    x, y, _ = problem()
    net = network()
    rate = 30.0  # far too large: the loss jumps about and the rule has work to do
    weight, _, losses, scales = descend(
        net, x, y, "logistic", rate, 40, plateau=TorchPlateau(0.5, 0)
    )
    settings = {"steps": 40, "trace_every": 20, "plateau": Plateau(0.5, 0)}
    trained, trace = train(net, x, y, loss="logistic", optimizer=paper_optimizer(rate), **settings)
    assert len(np.unique(scales)) > 3
    np.testing.assert_allclose(trace.rate_scale, scales, rtol=1e-12)
    assert_close(trace.step_loss, losses, 1e-8)
    assert_close(trained.weight, weight, 1e-8)


@pytest.mark.parametrize(("loss", "falls"), [("logistic", True), ("identity", False)])
def test_plateau_with_a_loss_that_stands_still(loss, falls):
    """Rate 0: the first loss is the best, eleven that are not better follow, the rate falls for the
    thirteenth step.
    """
    x, _, _ = problem(n=18)
    net = network()
    y = np.where(net(x) > 0, 1.0, -1.0)  # so that the identity loss is negative
    settings = {"loss": loss, "optimizer": paper_optimizer(0.0), "plateau": Plateau()}
    factor = 0.1 if falls else 1.0
    _, trace = train(net, x, y, steps=24, trace_every=24, **settings)
    np.testing.assert_allclose(
        trace.rate_scale, [1.0] * 12 + [factor] * 11 + [factor**2], rtol=1e-6
    )
    if falls:
        # 3 batches an epoch.
        _, trace = train(net, x, y, steps=39, trace_every=39, batch_size=6, key=KEY, **settings)
        np.testing.assert_allclose(trace.rate_scale, [1.0] * 36 + [factor] * 3, rtol=1e-6)


# --- the trace ---


def test_trace():
    x, y, _ = problem()
    net = network(train_bias=True)
    calls = []
    progress = type("Progress", (), {"update": lambda self, k: calls.append(k)})()
    settings = {"optimizer": paper_optimizer(0.5), "loss": "logistic", "progress": progress}
    trained, trace = train(net, x, y, steps=23, trace_every=10, **settings)
    assert calls == [10, 10, 3]
    np.testing.assert_array_equal(trace.step, [0, 10, 20, 23])
    for row, f in ((0, net), (-1, trained)):
        outputs = np.asarray(f(x), float)
        np.testing.assert_allclose(
            trace.loss[row], np.log1p(np.exp(-y * outputs)).mean(), rtol=1e-5
        )
        np.testing.assert_allclose(trace.accuracy[row], (np.sign(outputs) == y).mean(), rtol=1e-6)
        np.testing.assert_allclose(
            trace.flipped[row], (f.active(x) != net.active(x)).mean(), rtol=1e-6
        )
        both = [np.concatenate([f_.weight, f_.bias[:, None]], axis=1) for f_ in (f, net)]
        moved = np.linalg.norm(both[0] - both[1]) / np.linalg.norm(both[1])
        np.testing.assert_allclose(trace.movement[row], moved, rtol=1e-5)
    assert trace.flipped[-1] > 0 and trace.movement[-1] > 0.1
    np.testing.assert_allclose(trace.step_loss[10], trace.loss[1], rtol=1e-5)
    assert (
        trace.step_loss.shape == trace.rate_scale.shape == (23,) and (trace.rate_scale == 1).all()
    )


def test_records_where_they_are_asked_for():
    """What is seen on the way is what shorter trainings end with."""
    x, y, z = problem()
    calls = []
    progress = type("Progress", (), {"update": lambda self, k: calls.append(k)})()
    settings = {"optimizer": paper_optimizer(0.5), "loss": "logistic"}
    observe = lambda f: (f(z), {"gradient": f.input_gradient(x)})  # noqa: E731
    asked = {"trace_at": (0, 1, 2, 5, 11), "observe": observe, "progress": progress}
    _, trace = train(network(), x, y, steps=20, **asked, **settings)
    assert calls == [1, 1, 3, 6, 9]
    np.testing.assert_array_equal(trace.step, [0, 1, 2, 5, 11, 20])
    assert trace.observed[0].shape == (6, M) and trace.observed[1]["gradient"].shape == (6, N, D)
    for row, steps in enumerate(trace.step):
        alone, own = train(network(), x, y, steps=int(steps), trace_at=[], **settings)
        np.testing.assert_array_equal(own.step, [0, steps] if steps else [0])
        np.testing.assert_allclose(trace.observed[0][row], alone(z), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            trace.observed[1]["gradient"][row], alone.input_gradient(x), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(trace.loss[row], own.loss[-1], rtol=1e-5)
        np.testing.assert_allclose(trace.step_loss[:steps], own.step_loss, rtol=1e-5)
    assert train(network(), x, y, steps=3, **settings)[1].observed is None


def test_no_steps():
    x, y, _ = problem()
    net, trace = train(network(), x, y, optimizer=optax.sgd(0.1), steps=0)
    assert (
        eqx.tree_equal(net, network())
        and trace.step_loss.shape == (0,)
        and trace.loss.shape == (1,)
    )


def test_divergence_is_reported():
    x, y, _ = problem()
    settings = {"loss": "squared", "optimizer": optax.sgd(1e12), "steps": 20}
    _, trace = train(network(), x, y, trace_every=20, **settings)
    first = int(np.argmin(np.isfinite(trace.step_loss)))
    assert (
        first > 0 and trace.status.startswith("diverged") and f"after {first} steps" in trace.status
    )
    with pytest.warns(UserWarning, match="diverged"):
        NetworkLearner(WIDTH, 0.2, True, **settings)(x, y, KEY)


# --- ensembles ---


INPUTS = [  # bias trained, minibatches: every pair with the inputs that members share, scale, or have to themselves
    ("shared", True, True),
    ("scaled", False, True),
    ("scaled", True, False),
    ("own", True, True),
    ("own", False, False),
]


@pytest.mark.parametrize(("inputs", "train_bias", "batched"), INPUTS)
def test_ensemble_equals_its_members(x64, inputs, train_bias, batched):
    x, y, z = problem()
    rng = np.random.default_rng(1)
    nets, rates, scale = drawn(3, WIDTH), np.array([0.01, 0.3, 30.0]), rng.normal(size=(3, N))
    nets = TwoLayerNetwork(nets.weight, nets.bias, nets.readout, 0.2, train_bias)
    own_x = {
        "shared": np.stack([x] * 3),
        "scaled": scale[:, :, None] * x,
        "own": rng.normal(size=(3, N, D)),
    }[inputs]
    own_y = np.stack([y] * 3) if inputs == "shared" else rng.choice([-1.0, 1.0], size=(3, N))
    data = {"shared": (x, y), "scaled": (x, own_y), "own": (own_x, own_y)}[inputs]
    settings = {"loss": "logistic", "steps": 12, "plateau": Plateau(0.5, 0), "trace_at": (4, 5)}
    settings |= {"observe": lambda f: {"outputs": f(z), "gradient": f.input_gradient(z)}}
    settings |= {"batch_size": 5} if batched else {}
    scales = {"scale": scale} if inputs == "scaled" else {}
    trained, trace = ensemble(
        nets, *data, **scales, learning_rate=rates, momentum=0.8, key=KEY, **settings
    )
    np.testing.assert_array_equal(trace.step, [0, 4, 5, 12])
    assert trained(z).shape == (3, M) and trained.input_gradient(z).shape == (3, M, D)
    assert trained.empirical_ntk(x, z).shape == (3, N, M) and trained.active(z).shape == (
        3,
        M,
        WIDTH,
    )
    assert trace.observed["outputs"].shape == (3, 4, M) and trace.loss.shape == (3, 4)
    close = partial(assert_close, tolerance=1e-9)  # at the largest rate rounding grows
    for i, key in enumerate(jax.random.split(KEY, 3)):
        member = jax.tree.map(lambda a, i=i: a[i], nets)
        alone, own = train(
            member,
            own_x[i],
            own_y[i],
            optimizer=paper_optimizer(rates[i], 0.8),
            key=key,
            **settings,
        )
        close(trained.weight[i], alone.weight)
        close(trained.bias[i], alone.bias)
        close(trained(z)[i], alone(z))
        close(trained.input_gradient(z)[i], alone.input_gradient(z))
        close(trained.empirical_ntk(x, z)[i], alone.empirical_ntk(x, z))
        of_member = jax.tree.map(lambda a, i=i: a if a is trace.step else a[i], trace)
        for name in ("loss", "accuracy", "movement", "flipped", "step_loss", "rate_scale"):
            close(getattr(of_member, name), getattr(own, name))
        jax.tree.map(close, of_member.observed, own.observed)
    assert len(np.unique(trace.rate_scale)) > 1  # the plateau rule had work to do


def test_one_member_diverges():
    x, y, _ = problem()
    trace = ensemble(drawn(3, WIDTH), x, y, learning_rate=[0.1, 0.1, 1e38], loss="squared", **ONCE)[
        1
    ]
    assert trace.status.startswith("diverged") and np.isfinite(trace.loss[:2]).all()


def test_ensemble_with_any_optimizer(x64):
    x, y, z = problem()
    nets, optimizer = drawn(2, WIDTH), optax.adam(0.1)
    settings = {"optimizer": optimizer, "loss": "logistic", **ONCE}
    trained, _ = ensemble(nets, x, y, **settings)
    for i in range(2):
        alone, _ = train(jax.tree.map(lambda a, i=i: a[i], nets), x, y, **settings)
        assert_close(trained(z)[i], alone(z))


# --- learners ---


def two_clouds() -> Any:
    y = np.where(np.arange(40) % 2, 1.0, -1.0)
    return np.random.default_rng(1).normal(size=(40, 10)) + 0.7 * y[:, None], y


ENSEMBLES = [{"members": 3}, {"members": 2, "start": "doubled"}]


@pytest.mark.parametrize(
    "options",
    [{}, {"start": "doubled"}, {"start": "centred", "train_bias": True}, *ENSEMBLES],
    ids=str,
)
def test_learner_in_the_experiment(options):
    x, y = two_clouds()
    learner = NetworkLearner(200, optimizer=paper_optimizer(0.2), steps=60, **options)
    assert learner.kernel == pk.TwoLayerNTK(0.0, options.get("train_bias", False))
    setting = {"size": 1.0, "targets": "balanced", "key": KEY}
    r = learn(learner, (x, y), **setting)
    kind = networks.Centred if options.get("start") == "centred" else TwoLayerNetwork
    f, g = (p.networks if "members" in options else p for p in (r.f, r.g))
    assert isinstance(f, kind) and isinstance(g, kind)
    gradient = np.asarray(r.f.input_gradient(x))
    wanted = (
        gradient
        / np.linalg.norm(gradient, axis=1, keepdims=True)
        * np.asarray(r.perturbation.targets)[:, None]
    )
    np.testing.assert_allclose(r.perturbation.delta, wanted, atol=1e-5)
    assert r.accuracy(r.train).f > 0.9 and np.nanmean(r.cosine) > 0.8
    assert r.accuracy(r.train).g > 0.9
    assert r.diagnosis is not None and 0 < r.diagnosis.expected_accuracy <= 1
    # f and g are different networks, and the same key gives the same ones again.
    again = learn(learner, (x, y), **setting)
    np.testing.assert_array_equal(again.g(x), r.g(x))
    first, second = (p.initial if isinstance(p, networks.Centred) else p for p in (f, g))
    assert not np.array_equal(first.readout, second.readout)


@pytest.mark.parametrize("start", ["random", "centred"])
def test_ensemble_learner_is_the_mean_of_its_networks(start):
    x, y, z = problem()
    optimizer = paper_optimizer(0.3)
    settings = {"steps": 8, "batch_size": 5, "loss": "logistic"}
    f = NetworkLearner(
        WIDTH,
        0.2,
        True,
        optimizer=optimizer,
        members=3,
        start=start,
        **settings,
    )(x, y, KEY)
    init_key, batch_key = jax.random.split(KEY)
    outputs, gradients = [], []
    for init, batch in zip(
        jax.random.split(init_key, 3), jax.random.split(batch_key, 3), strict=True
    ):
        initial = TwoLayerNetwork.init(D, WIDTH, 0.2, True, key=init)
        net, _ = train(initial, x, y, optimizer=optimizer, key=batch, trace_every=8, **settings)
        net = net.centred(initial) if start == "centred" else net
        outputs.append(net(z))
        gradients.append(net.input_gradient(z))
    assert np.std(outputs, axis=0).min() > 1e-3
    np.testing.assert_allclose(f(z), np.mean(outputs, axis=0), atol=1e-5)
    np.testing.assert_allclose(f.input_gradient(z), np.mean(gradients, axis=0), atol=1e-5)
    assert f(z).shape == (M,) and f.input_gradient(z).shape == (M, D)


@pytest.mark.parametrize("first", [False, True])
def test_ensemble_learner_beside_a_kernel(first):
    """Twenty networks of 100 neurons are near the kernel's predictor, in either place."""
    x, y = two_clouds()
    limit = pk.KernelLearner(pk.TwoLayerNTK(), dynamics=pk.HeavyBall(0.02, 30))
    networks_ = NetworkLearner(
        100, optimizer=paper_optimizer(0.02), steps=30, start="doubled", members=20
    )
    setting = {"size": 1.0, "scenario": "b", "targets": "balanced", "key": KEY}
    learners = (networks_, limit) if first else (limit, networks_)
    mixed = learn(learners[0], (x, y), learner_g=learners[1], **setting)
    wanted = learn(limit, (x, y), **setting)
    assert isinstance(mixed.f if first else mixed.g, networks.Mean)
    for got, expected in ((mixed.f, wanted.f), (mixed.g, wanted.g)):
        expected = np.asarray(expected(x))
        # 1000 pairs in all, as below.
        assert np.abs(got(x) - expected).max() < 0.25 * np.abs(expected).max()


def test_network_as_second_learner_only():
    x, y = two_clouds()
    kernel = pk.TwoLayerNTK()
    learner = pk.KernelLearner(kernel, dynamics=pk.GradientFlow(5.0))
    optimizer = paper_optimizer(0.01)  # effective time 5
    network_learner = NetworkLearner(2000, optimizer=optimizer, steps=59, start="doubled")
    assert abs(pk.HeavyBall(0.01, 59).effective_time - 5) < 0.1
    setting = {"size": 0.5, "scenario": "b", "targets": "balanced", "key": KEY}
    finite = learn(learner, (x, y), learner_g=network_learner, **setting)
    limit = learn(learner, (x, y), **setting)
    assert isinstance(finite.g, TwoLayerNetwork) and isinstance(finite.f, pk.KernelPredictor)
    np.testing.assert_array_equal(finite.perturbation.delta, limit.perturbation.delta)
    # 1000 pairs: the relative error is a few times 1000^-1/2.
    scale = float(jnp.abs(limit.g(x)).max())
    assert np.abs(finite.g(x) - limit.g(x)).max() < 0.25 * scale


def test_network_as_initial_function():
    x, y, z = problem()
    net = network()
    f = pk.fit(net.kernel, x, y, dynamics=pk.GradientFlow(1.0), initial=net)
    zero = pk.fit(net.kernel, x, y, dynamics=pk.GradientFlow(1.0))
    np.testing.assert_allclose(f(z), zero(z) + net(z), atol=1e-5)
    np.testing.assert_allclose(
        f.input_gradient(z), zero.input_gradient(z) + net.input_gradient(z), atol=1e-5
    )


# --- determinism, transformations, compilations ---


def test_same_key_same_result():
    x, y, z = problem()
    learner = NetworkLearner(
        WIDTH, 0.2, True, optimizer=paper_optimizer(0.1), steps=8, batch_size=5
    )
    first, again, other = (learner(x, y, jax.random.key(seed))(z) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    settings = {"optimizer": paper_optimizer(0.1), **BATCHED}
    one, same, shuffled = (
        train(network(), x, y, key=jax.random.key(s), **settings)[0].weight for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, shuffled)


def test_every_object_survives_flattening_jit_and_pickling():
    x, y, z = problem()
    net = network()
    trained, trace = train(net, x, y, optimizer=paper_optimizer(0.1), **ONCE)
    learner = NetworkLearner(WIDTH, optimizer=paper_optimizer(0.1), steps=3)
    for thing in (trained, trained.centred(net), trace, learner):
        leaves, structure = jax.tree.flatten(thing)
        assert eqx.tree_equal(jax.tree.unflatten(structure, leaves), thing)
        if thing is not learner:
            jitted = jax.jit(lambda t: t)(thing)
            assert jax.tree.structure(jitted) == structure
            assert eqx.tree_equal(pickle.loads(pickle.dumps(thing)), thing)
    for f in (trained, trained.centred(net)):
        np.testing.assert_allclose(jax.jit(lambda f, z: f(z))(f, z), f(z), atol=1e-6)
    inside = jax.jit(
        lambda n: train(n, jnp.asarray(x), jnp.asarray(y), optimizer=paper_optimizer(0.1), **ONCE)[
            0
        ]
    )(net)
    np.testing.assert_allclose(inside.weight, trained.weight, atol=1e-6)


def test_no_second_compilation(monkeypatch):
    traced = []
    loss = training.LOSSES["identity"]

    def value(outputs, targets):
        traced.append(0)
        return loss.value(outputs, targets)

    counting = dataclasses.replace(loss, value=value)
    monkeypatch.setitem(training.LOSSES, "identity", counting)
    x, y, _ = problem(n=N + 1)  # a shape of its own: nothing is compiled yet
    for rate, seed in ((0.1, 0), (0.2, 1)):
        _, trace = train(network(seed=seed), x, y, optimizer=paper_optimizer(rate), steps=20)
        assert len(trace.step) == 21
        counts = len(traced) if rate == 0.1 else counts
    assert 0 < counts == len(traced) <= 4  # the measurement and the steps, each with its shapes

    train(network(), x, y, optimizer=paper_optimizer(0.1), steps=30, trace_at=(1, 2, 5, 12, 29))
    assert len(traced) == counts  # stretches of 1, 2, 3, 4, 7 and 17 steps

    # A state that begins with JAX's weak type, as jnp.asarray(0.0) has, and loses it in the first
    # step.
    def update(updates, state, params=None):
        return jax.tree.map(lambda g: -0.1 * g, updates), state + jnp.ones((), jnp.float32)

    added = []
    for optimizer in (
        optax.sgd(0.1),
        optax.GradientTransformation(lambda params: jnp.asarray(0.0), update),
    ):
        before = len(traced)
        train(network(), x, y, optimizer=optimizer, steps=20)
        added.append(len(traced) - before)
        train(network(seed=1), x, y, optimizer=optimizer, steps=40, trace_every=1)
        assert len(traced) == before + added[-1]
    assert 0 < added[0] == added[1]


def test_dtypes():
    x, y, _ = problem()
    settings = {"optimizer": paper_optimizer(0.1), "plateau": Plateau(), **ONCE}
    net, trace = train(network(), x, y, **settings)
    assert net.weight.dtype == trace.loss.dtype == trace.rate_scale.dtype == np.float32
    with jax.enable_x64(True):
        wide, trace = train(net, x, y, **settings)
        assert wide.weight.dtype == wide.readout.dtype == trace.loss.dtype == np.float64
        narrow, trace = train(net, x.astype(np.float32), y.astype(np.float32), **settings)
        assert narrow.weight.dtype == trace.rate_scale.dtype == np.float32


# --- bad arguments ---

X, Y, _ = problem()
SGD = optax.sgd(0.1)
OPTIONS = {"optimizer": SGD, "steps": 2}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TwoLayerNetwork.init(0, 3, key=KEY), "d must be at least 1; got 0"),
        (lambda: TwoLayerNetwork.init(3, 2.0, key=KEY), "width must be a whole number; got 2.0"),
        (lambda: TwoLayerNetwork.init(3, 5, doubled=True, key=KEY), "width must be even .* got 5"),
        (
            lambda: TwoLayerNetwork.init(3, 4, slope=1.5, key=KEY),
            "slope must be >= 0 and <= 1; got 1.5",
        ),
        (
            lambda: TwoLayerNetwork.init(3, 4, train_bias=1, key=KEY),
            "train_bias must be True or False; got 1",
        ),
        (lambda: TwoLayerNetwork.init(3, 4, key=0), "key must be one JAX random key"),
        (
            lambda: TwoLayerNetwork(jnp.ones(3), jnp.ones(3), jnp.ones(3)),
            r"weight must have shape \(width, d\)",
        ),
        (
            lambda: TwoLayerNetwork(jnp.ones((3, 2)), jnp.ones(2), jnp.ones(3)),
            r"bias must have .*got \(2,\)",
        ),
        (lambda: network()(np.ones((2, D + 1))), "z must have rows of shape"),
        (lambda: network()(np.full((2, D), np.nan)), "z must be finite"),
        (lambda: network().input_gradient(np.ones(D)), r"z must have shape \(n, d\)"),
        (lambda: train(None, X, Y, **OPTIONS), "net must be a TwoLayerNetwork; got NoneType"),
        (lambda: train(drawn(2, 4), X, Y, **OPTIONS), r"net must be one network.*\(2, 4, 4\)"),
        (lambda: train(network(), X[:, 1:], Y, **OPTIONS), "x must have rows of shape"),
        (lambda: train(network(), X, Y[1:], **OPTIONS), r"y must have shape \(17,\)"),
        (lambda: train(network(), X, Y * 2, **OPTIONS), r"y must be -1 or \+1; found -2, 2"),
        (
            lambda: train(network(), X, Y, loss="hinge", **OPTIONS),
            "loss must be one of .* got 'hinge'",
        ),
        (
            lambda: train(network(), X, Y, optimizer=0.1, steps=2),
            "optimizer must be an optax one.* got 0.1",
        ),
        (
            lambda: train(network(), X, Y, optimizer=SGD, steps=-1),
            "steps must be at least 0; got -1",
        ),
        (
            lambda: train(network(), X, Y, batch_size=18, key=KEY, **OPTIONS),
            "batch_size must be at most .* 17; got 18",
        ),
        (
            lambda: train(network(), X, Y, batch_size=0, key=KEY, **OPTIONS),
            "batch_size must be at least 1; got 0",
        ),
        (lambda: train(network(), X, Y, batch_size=4, **OPTIONS), "key must be given"),
        (
            lambda: train(network(), X, Y, plateau=True, **OPTIONS),
            "plateau must be .*Plateau.* got True",
        ),
        (
            lambda: train(network(), X, Y, trace_every=0, **OPTIONS),
            "trace_every must be at least 1; got 0",
        ),
        (
            lambda: train(network(), X, Y, trace_every=1, trace_at=(1,), **OPTIONS),
            r"trace_every and trace_at exclude each other; got 1 and \(1,\)",
        ),
        (
            lambda: train(network(), X, Y, trace_at=(2, 1), **OPTIONS),
            r"trace_at must increase.* got \(2, 1\)",
        ),
        (
            lambda: train(network(), X, Y, trace_at=(1, 3), **OPTIONS),
            r"trace_at must .* last step, 2; got \(1, 3\)",
        ),
        (
            lambda: train(network(), X, Y, trace_at=(0.5,), **OPTIONS),
            "every step of trace_at must be a whole number",
        ),
        (
            lambda: train(network(), X, Y, trace_at=(-1,), **OPTIONS),
            "every step of trace_at must be at least 0",
        ),
        (
            lambda: train(network(), X, Y, trace_at=1, **OPTIONS),
            "trace_at must be a sequence .* got 1",
        ),
        (
            lambda: train(network(), X, Y, observe=1, **OPTIONS),
            "observe must be a function.* got 1",
        ),
        (
            lambda: train(network(), X, Y, progress=print, **OPTIONS),
            "progress must have a method update",
        ),
        (lambda: paper_optimizer(-1.0), "learning_rate must be >= 0 and finite; got -1"),
        (lambda: paper_optimizer(1.0, 1.0), "momentum must be < 1; got 1"),
        (lambda: Plateau(factor=1.0), "factor must be < 1; got 1"),
        (lambda: Plateau(patience=-1), "patience must be at least 0; got -1"),
        (lambda: Plateau(threshold=0.0), "threshold must be > 0"),
        (
            lambda: ensemble(network(), X, Y, learning_rate=0.1, steps=2),
            r"nets must be .*\(k, width, d\); got .*12, 4",
        ),
        (
            lambda: ensemble(drawn(2, 4), X, Y, learning_rate=[0.1] * 3, steps=2),
            r"learning_rate must be .*\(2,\)",
        ),
        (
            lambda: ensemble(drawn(2, 4), X, Y, learning_rate=[0.1, -1], steps=2),
            "learning_rate must be >= 0",
        ),
        (lambda: ensemble(drawn(2, 4), X, Y, steps=2), "one of learning_rate and optimizer"),
        (
            lambda: ensemble(drawn(2, 4), X, Y, learning_rate=0.1, **OPTIONS),
            "one of learning_rate and optimizer",
        ),
        (
            lambda: ensemble(drawn(2, 4), [X] * 3, Y, **OPTIONS),
            r"x must have shape .*\(2, n, 4\).* got \(3, 17, 4\)",
        ),
        (
            lambda: ensemble(drawn(2, 4), X[:, 1:], Y, **OPTIONS),
            r"x must have rows of shape \(4,\)",
        ),
        (lambda: ensemble(drawn(2, 4), X[0], Y, **OPTIONS), r"x must have shape \(n, d\)"),
        (
            lambda: ensemble(drawn(2, 4), X, [Y] * 3, **OPTIONS),
            r"y must have shape .*\(2, 17\).* got \(3, 17\)",
        ),
        (
            lambda: ensemble(drawn(2, 4), X, [Y, 2 * Y], **OPTIONS),
            r"y must be -1 or \+1; found -2, -1, 1, 2",
        ),
        (
            lambda: ensemble(drawn(2, 4), X, Y, scale=Y, **OPTIONS),
            r"scale must have shape \(2, 17\).* got \(17,\)",
        ),
        (
            lambda: ensemble(drawn(2, 4), X, Y, scale=[Y, Y * np.nan], **OPTIONS),
            "scale must be finite",
        ),
        (
            lambda: ensemble(drawn(2, 4), [X] * 2, Y, scale=[Y] * 2, **OPTIONS),
            "scale multiplies shared inputs",
        ),
        (
            lambda: ensemble(drawn(2, 4), X, Y, batch_size=18, key=KEY, **OPTIONS),
            "batch_size must be at most .* 17",
        ),
        (
            lambda: ensemble(drawn(2, 4), X, Y, observe=lambda f: f(X).mean(0), **OPTIONS),
            r"observe must return arrays whose first axis .* 2 networks; got shape \(17,\)",
        ),
        (lambda: NetworkLearner(4, members=0, **OPTIONS), "members must be at least 1; got 0"),
        (lambda: NetworkLearner(5, start="doubled", **OPTIONS), "width must be even"),
        (lambda: NetworkLearner(4, slope=-1.0, **OPTIONS), "slope must be"),
        (lambda: NetworkLearner(4, loss="hinge", **OPTIONS), "loss must be one of"),
        (lambda: NetworkLearner(4, **OPTIONS)(X, Y, None), "key must be one JAX random key"),
        (lambda: NetworkLearner(4, **OPTIONS)(X, Y + 1, KEY), r"targets must be -1 or \+1"),
        (
            lambda: NetworkLearner(4, **OPTIONS)(X[:, :, None], Y, KEY),
            r"inputs must have shape \(n, d\)",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
