"""K classes: encoding, losses against neural-tangents, NumPy and the logistic loss, attacks, the
whole experiment.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from common import D, N, largest_row, representable
from scipy.integrate import solve_ivp
from scipy.special import expit, logsumexp, softmax

import perturbkernel as pk
from perturbkernel import metrics
from perturbkernel.attacks import margins
from perturbkernel.data import draws
from perturbkernel.kernels.stax_kernels import load_neural_tangents
from perturbkernel.learning import curves as studies
from perturbkernel.training import descent

# Any, for the type checker: NumPy arrays and lists are welcome where signatures say Array; bad
# input is meant here.
fit: Any = pk.fit
perturb: Any = pk.perturb
learn: Any = pk.learn_from_perturbations
one_hot: Any = pk.one_hot
Dataset: Any = pk.Dataset
from_arrays: Any = pk.data.from_arrays
draw: Any = draws.draw_classes
Flow, Ball, Learner = pk.GradientFlow, pk.HeavyBall, pk.KernelLearner
pytestmark = pytest.mark.usefixtures("x64")
KEY, K, SLOPE = jax.random.key(3), 3, 0.2
KERNEL: Any = pk.TwoLayerNTK(SLOPE, True)

RNG = np.random.default_rng(11)
# As many queries: fewer compilations.
X, Z = (representable(RNG.normal(size=(N, D)), np.float32) for _ in range(2))
CENTRES = 2 * np.eye(K, D)


def nearest(points: np.ndarray) -> np.ndarray:
    return ((points[:, None] - CENTRES) ** 2).sum(-1).argmin(1)


LABELS, QUERY_LABELS = nearest(X + RNG.normal(size=X.shape)), nearest(Z)
Y = np.eye(K)[LABELS] - 1 / K
GRAM, CROSS = oracle.ntk(X, X, SLOPE, True), oracle.ntk(Z, X, SLOPE, True)
assert set(LABELS) == set(QUERY_LABELS) == set(range(K))


def start(z):
    return jnp.stack([jnp.sin(z[:, 0]), z[:, 1] * z[:, 2], jnp.zeros(len(z))], axis=1)


def close(a, b, tolerance: float) -> None:
    """Relative to the largest entry."""
    assert np.shape(a) == np.shape(b)
    assert np.abs(np.asarray(a) - b).max() <= tolerance * np.abs(b).max()


# --- encoding, decisions ---


def test_one_hot_is_centred_and_says_the_class():
    encoded = np.asarray(one_hot(LABELS, K))
    np.testing.assert_allclose(encoded, Y, atol=1e-15)
    assert np.abs(encoded.sum(1)).max() < 1e-15
    np.testing.assert_array_equal(one_hot(LABELS, K, centred=False), np.eye(K)[LABELS])
    assert one_hot(LABELS, 5).shape == (N, 5)
    for labels, message in (
        ([0, 3], "from 0 to 2; found 3"),
        ([-1], "found -1"),
        ([0.0], "got dtype float"),
        ([[0]], r"shape \(n,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            one_hot(labels, K)


def test_ties_count_their_share():
    outputs = jnp.array([[1.0, 0, 0], [1, 1, 0], [2, 2, 2], [0, 1, 1]])
    labels = jnp.array([0, 0, 2, 0])
    np.testing.assert_allclose(metrics.right(outputs, labels), [1, 1 / 2, 1 / 3, 0])
    assert metrics.class_accuracy(outputs, labels) == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)
    np.testing.assert_allclose(metrics.class_agreement(outputs, outputs), [1, 1 / 2, 1 / 3, 1 / 2])
    np.testing.assert_allclose(
        metrics.class_agreement(outputs, outputs[::-1]), [0, 1 / 3, 1 / 3, 0]
    )
    several = jnp.stack([outputs, -outputs])
    np.testing.assert_allclose(
        metrics.class_accuracy(several, labels)[0], metrics.class_accuracy(outputs, labels)
    )


def test_two_classes_are_judged_as_by_the_sign_of_the_difference():
    f, g = jnp.array([1.0, -2, 0, 0]), jnp.array([3.0, 1, 0, -1])
    pairs = [jnp.stack([v, -v], axis=1) for v in (f, g)]
    assert metrics.class_agreement(*pairs).mean() == metrics.agreement(f, g)
    labels = jnp.array([1.0, 1, -1, 1])
    assert metrics.class_accuracy(pairs[0], jnp.where(labels > 0, 0, 1)) == metrics.accuracy(
        f, labels
    )


def test_target_rules_have_the_distributions_they_promise():
    draws, labels = 3000, np.array([0, 1, 2, 3, 0, 0, 3])
    of = {
        rule: np.asarray(draw(rule, np.tile(labels, draws), 4, key=KEY)).reshape(draws, 7)
        for rule in ("coin_flip", "random_other", "next")
    }
    keys = jax.random.split(KEY, draws)
    of["balanced"] = np.asarray(
        jax.jit(jax.vmap(lambda key: draw("balanced", labels, 4, key=key)))(keys)
    )
    # (point, class)
    shares = {rule: (t[..., None] == np.arange(4)).mean(0) for rule, t in of.items()}
    deviation = 5 * np.sqrt(0.25 / draws)
    assert np.abs(shares["coin_flip"] - 1 / 4).max() < deviation
    assert np.abs(shares["balanced"] - 1 / 4).max() < deviation
    counts = (of["balanced"][..., None] == np.arange(4)).sum(1)
    assert set(counts.ravel()) == {1, 2}  # seven points, four classes
    other = (1 - np.eye(4)[labels]) / 3
    assert (shares["random_other"][np.arange(7), labels] == 0).all()
    assert np.abs(shares["random_other"] - other).max() < deviation
    np.testing.assert_array_equal(of["next"], np.tile([1, 2, 3, 0, 1, 1, 0], (draws, 1)))
    for rule in ("coin_flip", "random_other"):  # two points are independent
        pairs = (of[rule][:, 1, None] - labels[1]) % 4 * 4 + (of[rule][:, 2, None] - labels[2]) % 4
        joint = (pairs == np.arange(16)).mean(0).reshape(4, 4)
        assert np.abs(joint - np.outer(joint.sum(1), joint.sum(0))).max() < deviation
    with pytest.raises(
        ValueError, match="targets must be one of 'coin_flip', 'balanced', 'random_other', 'next'"
    ):
        draw("random", labels, 4, key=KEY)


# --- data ---


def test_data_of_more_than_two_classes():
    names = np.array(["cat", "dog", "cow", "dog", "hen"])
    data = from_arrays(np.arange(10.0).reshape(5, 2), names, classes=("dog", "cow", "cat"))
    assert data.targets.tolist() == data.labels.tolist() == [2, 0, 1, 0]
    assert (
        data.classes == ("dog", "cow", "cat")
        and repr(data) == "Dataset(arrays: n=4, d=2, 2 x dog, 1 x cow, 1 x cat)"
    )
    np.testing.assert_array_equal(data.inputs[:, 0], [0, 2, 4, 6])
    assert (
        data[[True, False, False, True]].targets.tolist() == [2, 0]
        and data[1:].classes == data.classes
    )
    assert jax.jit(lambda data: data.labels)(data).tolist() == [2, 0, 1, 0]
    two = from_arrays(np.ones((3, 1)), [1, -1, 1])
    assert two.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize("count", [1, 7, 20, 29])
def test_splits_keep_the_proportions_of_all_classes(count):
    labels = np.repeat(np.arange(4), [1, 4, 10, 15])
    data = Dataset(np.arange(30.0)[:, None], labels, classes=tuple("abcd"))
    train, test = data.split(test=count, key=KEY)
    assert (train.n, test.n) == (30 - count, count)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([train.inputs, test.inputs])[:, 0]), np.arange(30)
    )
    for part in (train, test):
        np.testing.assert_array_equal(part.labels, labels[np.asarray(part.inputs, int)[:, 0]])
    exact = count * np.bincount(labels) / 30
    taken = np.bincount(test.labels, minlength=4)
    assert (np.abs(taken - exact) < 1).all()
    assert data.subset(count, key=KEY).n == count


def test_all_ten_digits():
    data = pk.data.mnist5k(classes=range(10))
    assert data.n == 5000 and data.classes == tuple("0123456789")
    np.testing.assert_array_equal(data.targets, np.repeat(np.arange(10), 500))
    three = pk.data.mnist5k(classes=(7, 1, 4))
    np.testing.assert_array_equal(three.targets, np.repeat([1, 2, 0], 500))
    of_three, of_all = np.asarray(three.inputs), np.asarray(data.inputs)
    np.testing.assert_array_equal(of_three[500:1000], of_all[2000:2500])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Dataset(X, LABELS * 1.0, classes=("a", "b", "c")),
            "must be integers from 0 to 2, class indices; got dtype float",
        ),
        (lambda: Dataset(X, LABELS, classes="abca"), "classes='abca': wanted two different ones"),
        (lambda: Dataset(X, LABELS + 1, classes=("a", "b", "c")), "from 0 to 2; found 3"),
        (
            lambda: Dataset(X, LABELS[:3], classes=("a", "b", "c")),
            r"targets must have shape \(17,\)",
        ),
        (lambda: from_arrays(X, LABELS, classes=(0, 1, 2, 7)), "no row has target 7"),
        (
            lambda: from_arrays(X, LABELS, classes=(0, 1, 1)),
            r"classes=\(0, 1, 1\): wanted two different ones",
        ),
        (lambda: pk.data.mnist5k((1, 2, 10)), "wanted two different integers from 0 to 9"),
    ],
)
def test_bad_data(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- training ---


def cross_entropy(outputs, targets):
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(outputs), axis=1))


def test_softmax_flow_is_that_of_neural_tangents():
    time = 4.0
    predict: Any = load_neural_tangents("predict")
    f = predict.gradient_descent(cross_entropy, jnp.asarray(GRAM), jnp.asarray(Y + 1 / K))
    expected = np.asarray(f(time, start(X), start(Z), jnp.asarray(CROSS))[1])
    ours = fit(KERNEL, X, Y, loss="softmax", dynamics=Flow(time), initial=start)
    assert ours.status == "ok" and ours.dual_coef.shape == (N, K)
    # neural-tangents integrates to a tolerance of 1.4e-8 a step.
    close(ours(Z), expected, 1e-6)
    # It is not what the identity loss gives.
    assert np.abs(fit(KERNEL, X, Y, dynamics=Flow(time), initial=start)(Z) - ours(Z)).max() > 0.1


def test_squared_flow_is_that_of_neural_tangents():
    predict: Any = load_neural_tangents("predict")
    f = predict.gradient_descent_mse(jnp.asarray(GRAM), jnp.asarray(Y))
    # Its loss is 1/(2 n K) sum |f - y|^2: the mean over the outputs too.
    expected = np.asarray(f(5.0 * K, start(X), start(Z), jnp.asarray(CROSS))[1])
    close(fit(KERNEL, X, Y, loss="squared", dynamics=Flow(5.0), initial=start)(Z), expected, 1e-9)


RATES = [0.3, 0.1, 0.2, 0.05] * 5


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("initial", [None, start], ids=["from zero", "from f0"])
@pytest.mark.parametrize("loss", ["identity", "squared", "softmax"])
def test_heavy_ball_is_the_recurrence(loss, initial, momentum):
    f0 = np.zeros((N, K)) if initial is None else np.asarray(start(X))
    descent = {
        "identity": lambda f: Y,
        "squared": lambda f: Y - f,
        "softmax": lambda f: Y + 1 / K - softmax(f, axis=1),
    }[loss]
    dual = velocity = np.zeros((N, K))
    for rate in RATES:
        velocity = momentum * velocity + descent(f0 + GRAM @ dual) / N
        dual = dual + rate * velocity
    found = fit(KERNEL, X, Y, loss=loss, dynamics=Ball(RATES, momentum=momentum), initial=initial)
    close(found.dual_coef, dual, 1e-11)
    close(found(Z), (0 if initial is None else np.asarray(start(Z))) + CROSS @ dual, 1e-11)


@pytest.mark.parametrize("dynamics", [Flow(3.0), Ball(RATES)], ids=["flow", "heavy ball"])
def test_softmax_of_two_classes_is_the_logistic_loss_with_the_doubled_kernel(dynamics):
    """a_1' = (p_1 - sigmoid(f_1 - f_2)) / n = y sigmoid(-y (f_1 - f_2)) / n with f_1 - f_2 = 2 K
    a_1, a_2 = -a_1.
    """
    sign = np.where(LABELS == 0, 1.0, -1.0)
    targets = one_hot(np.where(LABELS == 0, 0, 1), 2)
    dual = np.asarray(fit(KERNEL, X, targets, loss="softmax", dynamics=dynamics).dual_coef)

    def velocity(alpha):
        return sign * expit(-sign * (2 * GRAM @ alpha)) / N

    if isinstance(dynamics, Flow):
        solved = solve_ivp(
            lambda _, alpha: velocity(alpha), (0, 3.0), np.zeros(N), rtol=1e-11, atol=1e-14
        )
        expected = solved.y[:, -1]
    else:
        expected = speed = np.zeros(N)
        for rate in RATES:
            speed = 0.9 * speed + velocity(expected)
            expected = expected + rate * speed
    close(dual[:, 0], expected, 1e-8)
    close(dual[:, 1], -dual[:, 0], 1e-12)


@pytest.mark.parametrize(
    "dynamics", [Flow(2.0), Flow(float("inf")), Ball(RATES)], ids=["flow", "infinite", "ball"]
)
@pytest.mark.parametrize("memory", [None, 0], ids=["dense", "products"])
def test_columns_of_the_squared_loss_train_by_themselves(dynamics, memory):
    targets = np.concatenate([Y[:, :2], np.zeros((N, 1)), RNG.normal(size=(N, 1))], axis=1)
    options = {"loss": "squared", "dynamics": dynamics}
    found = fit(KERNEL, X, targets, memory=memory, tolerance=1e-11, **options)
    assert found.status == "ok" and found.dual_coef.shape == (N, 4)
    if isinstance(dynamics, Flow):
        values, vectors = np.linalg.eigh(GRAM)
        dual = vectors @ (
            (-np.expm1(-dynamics.time * values / N) / values)[:, None] * (vectors.T @ targets)
        )
    else:
        dual = velocity = np.zeros((N, 4))
        for rate in RATES:
            velocity = 0.9 * velocity + (targets - GRAM @ dual) / N
            dual = dual + rate * velocity
    for column, exact in zip(np.asarray(found.dual_coef).T, dual.T, strict=True):
        # K^-1 amplifies the residual of 1e-11 by the condition number, about 1e3.
        assert np.abs(column - exact).max() <= 1e-7 * np.abs(exact).max()


def test_columns_that_converge_late_do_not_disturb_the_others():
    """One column is an eigenvector, solved by one step; conjugate gradients go on for the others."""
    vectors = np.linalg.eigh(GRAM)[1]
    targets = np.stack([vectors[:, -1], Y[:, 0]], axis=1)
    found = fit(
        KERNEL, X, targets, loss="squared", dynamics=Flow(float("inf")), memory=0, tolerance=1e-10
    )
    close(found.dual_coef, np.linalg.solve(GRAM, targets), 1e-7)
    assert found.stats["residual"] <= 1e-10


@pytest.mark.parametrize("loss", ["squared", "softmax"])
def test_small_times_are_those_of_the_identity_loss(loss):
    first = np.asarray(fit(KERNEL, X, Y, dynamics=Flow(1e-4)).dual_coef)
    close(first, 1e-4 / N * Y, 1e-14)
    # O(time lambda_max / n)
    close(fit(KERNEL, X, Y, loss=loss, dynamics=Flow(1e-4)).dual_coef, first, 2e-3)


def test_softmax_takes_probabilities_and_what_is_trained_on_in_products():
    exact = np.asarray(fit(KERNEL, X, Y, loss="softmax", dynamics=Flow(2.0)).dual_coef)
    close(fit(KERNEL, X, Y + 1 / K, loss="softmax", dynamics=Flow(2.0)).dual_coef, exact, 1e-12)
    close(fit(KERNEL, X, Y, loss="softmax", dynamics=Flow(2.0), memory=0).dual_coef, exact, 1e-8)
    assert np.abs(exact.sum(1)).max() < 1e-15
    soft = softmax(RNG.normal(size=(N, K)), axis=1)  # its own outputs are a fixed point
    dual = fit(
        KERNEL, X, soft, loss="softmax", initial=lambda z: jnp.log(soft), dynamics=Flow(2.0)
    ).dual_coef
    assert np.abs(dual).max() < 1e-12


def test_softmax_in_float32_is_solved_in_float64():
    exact = np.asarray(fit(KERNEL, X, Y, loss="softmax", dynamics=Flow(3.0)).dual_coef)
    with jax.enable_x64(False):
        found = fit(KERNEL, X, one_hot(LABELS, K), loss="softmax", dynamics=Flow(3.0)).dual_coef
    assert found.dtype == np.float32
    close(found, exact, 1e-6)  # the targets' rounding, and the result's


def test_what_softmax_training_meets_is_said(monkeypatch):
    monkeypatch.setattr(descent, "_STEPS", 3)
    four = one_hot(LABELS, 4)  # a shape of its own, which is traced under the patch
    f = fit(KERNEL, X, four, loss="softmax", dynamics=Flow(1e3))
    assert f.status.startswith("the integration of the softmax flow stopped early, at time ")
    assert f.status.endswith("of 1000, after 3 steps") and np.isfinite(f.dual_coef).all()
    stable = 4 * 1.9 * N / np.linalg.eigvalsh(GRAM)[-1]
    assert fit(KERNEL, X, Y, loss="softmax", dynamics=Ball(0.99 * stable, 2)).status == "ok"
    with pytest.warns(
        UserWarning, match=r"beyond 4 \(1 \+ momentum\) n / lambda_max = .* softmax"
    ) as caught:
        assert (
            "may oscillate"
            in fit(KERNEL, X, Y, loss="softmax", dynamics=Ball(1.01 * stable, 2)).status
        )
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": "logistic"},
            r'loss="logistic" does not go with these targets: they are \(n, K\)',
        ),
        (
            {"loss": "softmax", "targets": np.ones(N)},
            r'loss="softmax" does not go with these targets: they are \(n,\)',
        ),
        ({"loss": "hinge"}, "loss must be one of 'identity', 'squared', 'softmax'; got 'hinge'"),
        (
            {"loss": "softmax", "targets": 2 * Y},
            r"pk\.one_hot\(labels, K\), or probabilities; row 0 is",
        ),
        (
            {"loss": "softmax", "targets": Y + 1},
            r"pk\.one_hot\(labels, K\), or probabilities; row 0 is",
        ),
        (
            {"loss": "softmax", "dynamics": Flow(float("inf"))},
            "time must be finite for the softmax loss",
        ),
        ({"targets": Y[:3]}, r"targets must have shape \(17,\) or \(17, K\)"),
        ({"targets": Y * np.nan}, "targets must be finite"),
        ({"targets": LABELS}, r"more than two are pk\.one_hot\(labels, K\)"),
        (
            {"loss": "squared", "initial": lambda z: z[:, 0]},
            r"initial must map inputs \(17, 5\) to \(17, 3\); it gave",
        ),
    ],
)
def test_bad_training(changes, message):
    with pytest.raises(ValueError, match=message):
        fit(KERNEL, X, **({"targets": Y} | changes))


# --- gradients and attacks ---


@functools.cache
def trained(kernel: Any = KERNEL, initial: Any = None, time: float = 3.0) -> Any:
    return fit(kernel, X, Y, dynamics=Flow(time), initial=initial)


@pytest.mark.parametrize("initial", [None, start], ids=["from zero", "from f0"])
def test_input_gradients_of_a_combination_of_outputs(initial):
    z = np.concatenate([X[:4], Z[4:]])
    weights = np.random.default_rng(1).normal(size=(N, K))
    f = fit(KERNEL, X, Y, dynamics=Flow(3.0), initial=initial)
    added: Any = (
        0
        if initial is None
        else np.asarray(jax.grad(lambda z: jnp.sum(weights * start(z)))(jnp.asarray(z)))
    )
    combined: Any = (
        added
        + sum(weights[:, k, None] * gradient(z, X, np.asarray(f.dual_coef)[:, k]) for k in range(K))
        for gradient in (
            lambda z, x, coef: oracle.input_gradient(z, x, coef, SLOPE, True),
            lambda z, x, coef: oracle.frozen_gate_direction(z, x, coef, SLOPE),
        )
    )
    exact, frozen = combined
    assert largest_row(np.asarray(f.input_gradient(z, weights)) - exact) <= 1e-11 * largest_row(
        exact
    )
    assert largest_row(
        np.asarray(f.frozen_gate_gradient(z, weights)) - frozen
    ) <= 1e-11 * largest_row(frozen)
    if initial is None:
        automatic = jax.grad(lambda z: jnp.sum(weights * f(z)))(jnp.asarray(z))
        assert largest_row(np.asarray(automatic) - exact) <= 1e-11 * largest_row(exact)


def test_gradients_that_cancel_are_known_as_rounding():
    """Opposite coefficients of one point twice: the gradient is rounding alone, and stays below the
    bound.
    """
    x, y = (np.concatenate([a[:8], b[:8], 0 * a[:1]]) for a, b in ((X, X), (Y, -Y)))
    p = perturb(fit(KERNEL, x, y), X, LABELS, size=1.0)
    assert p.zero_gradient.all() and (p.delta == 0).all()
    assert not perturb(trained(), X, LABELS, size=1.0).zero_gradient.any()


def test_weights_go_with_several_outputs():
    one, several = fit(KERNEL, X, np.sign(X[:, 0])), trained()
    for call in (several.input_gradient, several.frozen_gate_gradient, several.gradient_rounding):
        for weights in (None, np.ones((N, 2)), np.ones(N)):
            with pytest.raises(ValueError, match=r"weights must be of shape \(17, 3\)"):
                call(Z, weights)
    with pytest.raises(ValueError, match="weights must be left out for a single output"):
        one.input_gradient(Z, np.ones((N, 1)))
    with pytest.raises(ValueError, match=r"weights must have shape \(17, 3\)"):
        KERNEL.input_gradient(Z, X, Y, np.ones((N, 2)))


@jax.jit
def of_margins(outputs, targets):
    """The margin, its weights, and the gradients of it and of the cross-entropy."""
    by_margin = jax.grad(lambda f: margins.margin(f, targets).sum())(outputs)
    by_entropy = jax.grad(lambda f: cross_entropy(f, jnp.eye(4)[targets]) * N)(outputs)
    return (
        margins.margin(outputs, targets),
        margins.margin_weights(outputs, targets),
        by_margin,
        by_entropy,
    )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_margin_and_its_weights(scale):
    outputs = scale * RNG.normal(size=(N, 4))
    targets = RNG.integers(4, size=N)
    others = np.where(np.eye(4)[targets] > 0, -np.inf, outputs)
    exact = outputs[np.arange(N), targets] - logsumexp(others, axis=1)
    found, weights, gradient, entropy = of_margins(outputs, targets)
    close(found, exact, 1e-13)
    np.testing.assert_allclose(weights, np.eye(4)[targets] - softmax(others, axis=1), atol=1e-14)
    np.testing.assert_allclose(weights, gradient, atol=1e-14)
    # The cross-entropy's gradient is -(1 - p_t) times the same; at the largest scale the factor
    # underflows.
    left = 1 - softmax(outputs, axis=1)[np.arange(N), targets, None]
    np.testing.assert_allclose(entropy, -left * np.asarray(weights), atol=1e-13)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("direction", ["gradient", "frozen_gates"])
def test_perturbations_climb_the_margin(norm, direction):
    targets = (LABELS + 1) % K
    f = trained(time=30.0)
    dual = np.asarray(f.dual_coef)
    outputs = GRAM @ dual
    weights = np.eye(K)[targets] - softmax(
        np.where(np.eye(K)[targets] > 0, -np.inf, outputs), axis=1
    )
    oracles = {
        "gradient": lambda coef: oracle.input_gradient(X, X, coef, SLOPE, True),
        "frozen_gates": lambda coef: oracle.frozen_gate_direction(X, X, coef, SLOPE),
    }
    gradient = sum(weights[:, k, None] * oracles[direction](dual[:, k]) for k in range(K))
    exact, zero = oracle.perturb(gradient, np.ones(N), 0.3, norm)
    p = perturb(f, X, targets, size=0.3, norm=norm, direction=direction)
    np.testing.assert_allclose(p.delta, exact, atol=1e-10)
    assert not zero.any() and not p.zero_gradient.any()
    np.testing.assert_array_equal(p.targets, targets)
    small = perturb(f, X, targets, size=1e-3).delta
    moved = margins.margin(f(X + small), jnp.asarray(targets)) - margins.margin(
        f(X), jnp.asarray(targets)
    )
    assert (np.asarray(moved) > 0).all()


def test_any_function_with_several_outputs_is_attacked():
    matrix = np.random.default_rng(2).normal(size=(D, K))
    targets = (LABELS + 2) % K
    # Saturated: only the strongest rival counts.
    p = perturb(lambda x: 1e3 * x @ matrix, X, targets, size=2.0)
    outputs = np.where(np.eye(K)[targets] > 0, -np.inf, X @ matrix)
    direction = (matrix[:, targets] - matrix[:, outputs.argmax(1)]).T
    exact = 2 * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    # 20 in the exponent.
    clear = np.sort(outputs, axis=1)[:, -1] - np.sort(outputs, axis=1)[:, -2] > 0.02
    assert clear.sum() > 10
    np.testing.assert_allclose(np.asarray(p.delta)[clear], exact[clear], atol=1e-5)


def test_two_outputs_are_attacked_as_their_difference():
    def one(x):
        return jnp.tanh(x[:, 0] * x[:, 1]) + x[:, 2] ** 2

    toward = np.random.default_rng(4).choice([-1.0, 1.0], size=N)
    exact = perturb(one, X, toward, size=0.5).delta
    two = perturb(
        lambda x: jnp.stack([one(x), -one(x)], 1), X, np.where(toward > 0, 0, 1), size=0.5
    )
    np.testing.assert_allclose(two.delta, exact, atol=1e-12)


def test_bad_attacks():
    for targets, message in (
        (LABELS * 1.0, "must be integers from 0 to 2, class indices"),
        (LABELS + 1, "from 0 to 2; found 3"),
        (LABELS[:3], r"must have shape \(17,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            perturb(trained(), X, targets, size=1.0)


# --- the whole experiment ---


def data() -> Any:
    return Dataset(X, LABELS, classes=("a", "b", "c"))


def held_out() -> Any:
    return Dataset(Z, QUERY_LABELS, classes=("a", "b", "c"))


@pytest.mark.parametrize("scenario", ["a", "b"])
@pytest.mark.parametrize("rule", ["next", "random_other", "coin_flip", "balanced", "array"])
def test_the_chain_is_its_links(rule, scenario):
    targets = RNG.integers(K, size=N) if rule == "array" else rule
    learner = Learner(KERNEL, dynamics=Flow(3.0))
    r = learn(learner, data(), scenario=scenario, size=0.5, targets=targets, key=KEY)
    t = np.asarray(r.perturbation.targets)
    kept = {
        "next": t == (LABELS + 1) % K,
        "random_other": t != LABELS,
        "balanced": np.ptp(np.bincount(t, minlength=K)) <= 1,
        "array": t == targets,
    }
    assert np.all(kept.get(rule, True))
    f = fit(KERNEL, X, Y, dynamics=Flow(3.0))
    delta = np.asarray(perturb(f, X, t, size=0.5).delta)
    g = fit(KERNEL, delta + (X if scenario == "b" else 0), np.eye(K)[t] - 1 / K, dynamics=Flow(3.0))
    np.testing.assert_allclose(r.f(Z), f(Z), atol=1e-12)
    np.testing.assert_allclose(r.g(Z), g(Z), atol=1e-10)
    assert r.cosine is None and r.diagnosis is None
    decided = [np.asarray(p(Z)).argmax(1) for p in (f, g)]
    for found, decisions in zip(r.accuracy(held_out()), decided, strict=True):
        assert found == pytest.approx(np.mean(decisions == QUERY_LABELS))
    for found, decisions in zip(r.accuracy(held_out(), per_class=True), decided, strict=True):
        np.testing.assert_allclose(
            found, [np.mean(decisions[k == QUERY_LABELS] == k) for k in range(K)]
        )
    same = decided[0] == decided[1]
    assert r.agreement(Z) == r.agreement(held_out()) == pytest.approx(same.mean())
    each = [same[k == QUERY_LABELS].mean() for k in range(K)]
    np.testing.assert_allclose(r.agreement(held_out(), per_class=True), each)


def run(**options: Any) -> Any:
    return learn(
        Learner(KERNEL, "squared", Flow(5.0)),
        data(),
        **{"size": 0.5, "targets": "next", "key": KEY} | options,
    )


def test_controls_of_several_classes():
    seen: list[Any] = []

    def recorder(inputs, targets, key):
        seen.append((np.asarray(inputs), np.asarray(targets)))
        return Learner(KERNEL)(inputs, targets)

    r = run(learner_g=recorder, scenario="b")
    for name in ("unperturbed", "random", "shuffled"):
        r.control(name)
    (perturbed, encoded), (bare, same), (noisy, again), (shuffled, moved) = seen
    np.testing.assert_allclose(encoded, np.eye(K)[(LABELS + 1) % K] - 1 / K, atol=1e-7)
    np.testing.assert_array_equal(bare, r.train.inputs)
    np.testing.assert_array_equal(same, encoded)
    np.testing.assert_array_equal(again, encoded)
    np.testing.assert_allclose(np.linalg.norm(noisy - bare, axis=1), 0.5, rtol=1e-5)
    np.testing.assert_array_equal(shuffled, perturbed)
    moved_by = (moved.argmax(1) - encoded.argmax(1)) % K
    # Every shift equally often: uncorrelated.
    assert np.ptp(np.bincount(moved_by, minlength=K)) <= 1
    metrics = r.evaluate(held_out(), control_draws=2)
    assert metrics["accuracy"]["g"]["test"] == pytest.approx(float(r.accuracy(held_out()).g))
    assert metrics["agreement"] == pytest.approx(float(r.agreement(Z)))
    assert metrics["cosine"] is metrics["diagnosis"] is None
    assert [
        len(metrics["controls"][name]["train"]) for name in ("unperturbed", "random", "shuffled")
    ] == [1, 2, 2]


def test_shares_of_every_class():
    outputs = jnp.asarray([2.0, -1, 0, -3])
    two = Dataset(np.ones((4, 1)), [1, 1, -1, -1])
    share = metrics.share_right(outputs, two)
    np.testing.assert_allclose(share, [1, 0, 1 / 2, 1])
    np.testing.assert_allclose(metrics.class_means(share, two), [1 / 2, 3 / 4])
    # No row of the second.
    assert np.isnan(metrics.class_means(share[:2], two[:2])).tolist() == [
        False,
        True,
    ]


def test_studies_of_several_classes():
    r = run(scenario="b")
    curve = studies.accuracy_against_size(r, held_out(), [0.5, 2.0])
    assert curve.accuracy[0] == r.accuracy(held_out()).g and curve.expected is None
    with pytest.raises(ValueError, match="a decision map is of two classes; these are 3"):
        studies.decision_map(r)
    with pytest.raises(TypeError, match="a diagnosis is for two classes; these are 3"):
        r.diagnose(held_out())


def test_bad_experiments():
    for options, message in (
        (
            {"targets": "opposite"},
            "targets must be one of 'coin_flip', 'balanced', 'random_other', 'next'",
        ),
        ({"targets": LABELS * 1.0}, "must be integers from 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**options)
    r, two = run(), Dataset(Z, np.ones(N))
    with pytest.raises(
        ValueError, match=r"data must have the classes of the training data, \('a', 'b', 'c'\)"
    ):
        r.accuracy(two)
    with pytest.raises(TypeError, match="z must be a Dataset for agreement per class"):
        r.agreement(Z, per_class=True)


def test_a_second_network_learns_three_digits_from_wrong_labels():
    train, test = pk.data.mnist5k(classes=(0, 1, 2)).subset(450, key=KEY).split(test=150, key=KEY)
    learner = Learner(pk.TwoLayerNTK(), dynamics=Flow(10.0))
    r = learn(learner, train, scenario="a", size=0.14, targets="random_other", key=KEY)
    assert (r.perturbation.targets != train.targets).all()
    f, g = r.accuracy(test)
    # Chance is 1/3; shuffled targets teach nothing.
    assert f > 0.9 and g > 0.85 and r.agreement(test) > 0.85


# --- predictors as values ---


def test_predictors_of_several_outputs_are_saved_and_compiled(tmp_path):
    f = trained()
    f.save(tmp_path / "f.npz")
    again: Any = pk.KernelPredictor.load(tmp_path / "f.npz")
    assert again.num_outputs == K and trained(time=3.0).num_outputs == K
    np.testing.assert_array_equal(again(Z), f(Z))
    weights = jnp.ones((N, K))
    jitted = jax.jit(lambda f, z: f.input_gradient(z, weights))(f, Z)
    np.testing.assert_allclose(jitted, f.input_gradient(Z, weights), atol=1e-6)
    traced = jax.jit(lambda y: fit(KERNEL, X, y, dynamics=Flow(3.0)).dual_coef)(jnp.asarray(Y))
    np.testing.assert_allclose(traced, f.dual_coef, atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_many_points_of_half_precision_are_counted(dtype):
    outputs = jnp.eye(3, dtype=dtype)[jnp.arange(10_000) % 3]
    assert float(pk.metrics.class_accuracy(outputs, outputs.argmax(1))) == 1
    assert float(pk.metrics.class_accuracy(jnp.eye(3, dtype=dtype), [0, 1, 0])) == dtype(2 / 3)
