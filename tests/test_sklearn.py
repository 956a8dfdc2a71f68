"""sklearn.py: scikit-learn's own checks, and that the estimators are `fit` and `perturb` under
other names.
"""

import os
import pickle
import subprocess
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from common import D, M, N
from sklearn.base import clone
from sklearn.ensemble import AdaBoostClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import perturbkernel as pk
from perturbkernel.sklearn import NTKClassifier, NTKRegressor

RNG = np.random.default_rng(3)
X, Z = RNG.normal(size=(N, D)), RNG.normal(size=(M, D))
TWO = np.where(X[:, 0] > 0, "yes", "no")  # "no" comes first, and is -1
THREE = np.array(["c", "a", "b"])[np.argsort(X[:, 0]).argsort() * 3 // N]
SIGNS = np.where(TWO == "yes", 1.0, -1.0)
CODES = np.eye(3)[np.searchsorted(["a", "b", "c"], THREE)] - 1 / 3
INF = float("inf")


def test_scikit_learns_own_checks_pass_in_full():
    """In a process of its own: one of the checks is skipped unless SciPy was imported with
    SCIPY_ARRAY_API set.
    """
    code = (
        "from sklearn.utils.estimator_checks import check_estimator\n"
        "from perturbkernel.sklearn import NTKClassifier, NTKRegressor\n"
        "for estimator in NTKClassifier(), NTKRegressor():\n"
        "    results = check_estimator(estimator, on_fail='raise', on_skip=None)\n"
        "    print(len(results), {result['status'] for result in results})\n"
    )
    environment = os.environ | {"SCIPY_ARRAY_API": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr[-3000:]
    for line in run.stdout.splitlines():
        count, statuses = line.split(" ", 1)
        assert int(count) > 50
        assert statuses == "{'passed'}"
    assert len(run.stdout.splitlines()) == 2


def test_without_scikit_learn_it_says_what_to_install():
    code = "import sys; sys.modules['sklearn'] = None\nimport perturbkernel\nimport perturbkernel.sklearn"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith(
        "ModuleNotFoundError: perturbkernel.sklearn needs scikit-learn: pip"
    )


@pytest.mark.parametrize("loss", ["identity", "logistic", "squared"])
def test_two_classes_are_minus_and_plus_one(loss):
    model = NTKClassifier(slope=0.2, loss=loss, time=3.0).fit(X, TWO)
    dual = oracle.dual_coef(X, SIGNS, 0.2, True, loss, ("flow", 3.0), None)
    exact = oracle.matvec(Z, X, dual, 0.2, True)
    outputs = model.decision_function(Z)
    assert outputs.dtype == np.float64
    # float64 through and through; the logistic flow is integrated to 1e-9 a step.
    np.testing.assert_allclose(outputs, exact, rtol=0, atol=1e-7 if loss == "logistic" else 1e-12)
    np.testing.assert_array_equal(model.predict(Z), np.where(exact > 0, "yes", "no"))
    assert hasattr(model, "predict_proba") == (loss == "logistic")
    if loss == "logistic":
        np.testing.assert_allclose(
            model.predict_proba(Z)[:, 1], 1 / (1 + np.exp(-exact)), atol=1e-7
        )


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_three_classes_are_columns(loss):
    model = NTKClassifier(loss=loss, dynamics=pk.HeavyBall(0.3, 10)).fit(X, THREE)
    with jax.enable_x64(True):
        name = "softmax" if loss == "logistic" else loss
        f = pk.fit(pk.TwoLayerNTK(0.0, True), X, CODES, loss=name, dynamics=pk.HeavyBall(0.3, 10))
        exact = np.asarray(f(Z))
    outputs = model.decision_function(Z)
    np.testing.assert_allclose(outputs, exact, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(model.predict(Z), np.array(["a", "b", "c"])[exact.argmax(1)])
    assert model.score(X, THREE) > 0.8
    if loss == "logistic":
        odds = np.exp(outputs)
        np.testing.assert_allclose(
            model.predict_proba(Z), odds / odds.sum(1, keepdims=True), rtol=1e-12
        )


def test_a_regressor_takes_one_target_or_several():
    targets = np.stack([X[:, 0] + 2, np.sin(X[:, 1])], axis=1)
    dual = [oracle.dual_coef(X, y, 0.0, True, "squared", ("flow", 30.0), None) for y in targets.T]
    exact = oracle.matvec(Z, X, np.stack(dual, axis=1), 0.0, True)
    model = NTKRegressor(time=30.0)
    np.testing.assert_allclose(model.fit(X, targets).predict(Z), exact, rtol=0, atol=1e-12)
    for y, shape in ((targets[:, 0], (M,)), (targets[:, :1], (M, 1))):
        predicted = model.fit(X, y).predict(Z)
        assert predicted.shape == shape
        np.testing.assert_allclose(predicted.ravel(), exact[:, 0], rtol=0, atol=1e-12)
    assert NTKRegressor(time=INF).fit(X, targets).score(X, targets) > 1 - 1e-12  # interpolation


def test_arrays_of_every_kind_give_the_same_numbers():
    with jax.enable_x64(True):
        kinds: list[Any] = [(X, THREE), (X.tolist(), THREE.tolist()), (jnp.asarray(X), THREE)]
        codes = np.unique(THREE, return_inverse=True)[1]
        numbered = NTKClassifier().fit(jnp.asarray(X), jnp.asarray(codes))
        outputs = [NTKClassifier().fit(x, y).decision_function(x[:M]) for x, y in kinds]
        outputs.append(numbered.decision_function(jnp.asarray(X[:M])))
    assert numbered.classes_.tolist() == [0, 1, 2]
    for other in outputs[1:]:
        np.testing.assert_array_equal(other, outputs[0])


def test_cross_validation_searches_and_pipelines():
    x = np.concatenate([X, Z]) * [4, 1, 1, 1, 1]
    y = np.where(x[:, 0] > 0, "yes", "no")
    assert cross_val_score(NTKClassifier(), x, y, cv=2).mean() > 0.7
    assert cross_val_score(NTKRegressor(), x, x[:, 0], cv=2).mean() > 0.7
    grid = {
        "ntkclassifier__time": [1e-12, 10.0],
        "ntkclassifier__kernel": [None, pk.TwoLayerNTK(1.0)],
    }
    search: Any = GridSearchCV(
        make_pipeline(StandardScaler(), NTKClassifier(loss="logistic")),
        grid,
        cv=2,
        scoring="neg_log_loss",
    )
    search.fit(x, y)
    assert search.best_params_["ntkclassifier__time"] == 10.0
    assert search.score(x, y) > -0.5
    assert len(search.cv_results_["params"]) == 4


@pytest.mark.parametrize("alpha", [0.1, 10.0])
def test_a_ridge_at_infinite_time_is_kernel_ridge(alpha):
    targets = np.stack([X[:, 0] + 2, np.sin(X[:, 1])], axis=1)
    weights = np.arange(1.0, N + 1)
    gram, queries = oracle.ntk(X, X, 0.0, True), oracle.ntk(Z, X, 0.0, True)
    for weight in (None, weights):
        total = N if weight is None else weight.sum()
        model = NTKRegressor(time=INF, ridge=alpha / total).fit(X, targets, weight)
        exact = KernelRidge(alpha=alpha, kernel="precomputed")
        exact = exact.fit(gram, targets, sample_weight=weight).predict(queries)
        np.testing.assert_allclose(model.predict(Z), exact, rtol=0, atol=1e-11)


def test_boosting_weights_the_points():
    """The second network of AdaBoost is trained on the mistakes of the first, as its algorithm
    (SAMME) weights them: by the odds of a right answer."""
    x = np.random.default_rng(0).uniform(-1, 1, size=(120, 2))
    y = np.where((x > 0).all(axis=1), "in", "out")
    linear = pk.TwoLayerNTK(1.0, True)
    line = NTKClassifier(kernel=linear, loss="logistic", time=INF, ridge=0.1)
    boosted = AdaBoostClassifier(line, n_estimators=12).fit(x, y)
    assert boosted.score(x, y) > line.fit(x, y).score(x, y)
    wrong = line.predict(x) != y
    weights = np.where(wrong, (1 - wrong.mean()) / wrong.mean(), 1.0)
    second = line.fit(x, y, weights).decision_function(x)
    found = boosted.estimators_[1].decision_function(x)
    np.testing.assert_allclose(found, second, rtol=0, atol=1e-9)


def test_parameters_of_kernel_and_dynamics_have_names():
    kernel = pk.TwoLayerNTK(0.1, True)
    model = NTKRegressor(kernel=kernel, dynamics=pk.GradientFlow(3.0), ridge=0.1)
    params = model.get_params()
    assert params["kernel__slope"] == 0.1 and params["dynamics__time"] == 3.0
    assert "kernel__slope" not in model.get_params(deep=False)
    copy: Any = clone(model)
    other = copy.set_params(kernel__slope=0.5, dynamics__time=9.0, ridge=0.2)
    assert (other.kernel, other.dynamics) == (pk.TwoLayerNTK(0.5, True), pk.GradientFlow(9.0))
    assert other.ridge == 0.2 and kernel.slope == 0.1 and model.kernel == kernel
    ball = NTKRegressor().set_params(dynamics=pk.HeavyBall(0.1, 3), dynamics__steps=5)
    assert ball.dynamics == pk.HeavyBall(0.1, 5)
    grid = {"kernel__slope": [0.0, 1.0], "dynamics__time": [1e-9, 10.0]}
    search: Any = GridSearchCV(model, grid, cv=2).fit(X, np.abs(X[:, 0]))
    assert search.best_params_["dynamics__time"] == 10.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel__slope": 0.3}, "kernel__slope needs a kernel to change; kernel is None"),
        ({"kernel": pk.TwoLayerNTK(), "kernel__width": 3}, "kernel__width must name one of the"),
        ({"kernel": pk.TwoLayerNTK(), "kernel__slope": 3}, "slope must be >= 0 and <= 1; got 3"),
        ({"depth": 3}, "Invalid parameter 'depth'"),
    ],
)
def test_bad_parameters_say_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        NTKClassifier().set_params(**changes)


def test_perturb_moves_points_toward_classes():
    binary, several = NTKClassifier().fit(X, TWO), NTKClassifier().fit(X, THREE)
    other = np.where(binary.predict(X) == "yes", "no", "yes")
    moved = binary.perturb(X, other, size=3.0)
    assert (binary.predict(moved) == other).mean() > 0.9
    np.testing.assert_allclose(np.linalg.norm(moved - X, axis=1), 3.0, rtol=1e-12)
    toward = np.repeat("b", N)
    step = several.perturb(X, toward, size=0.1, norm="linf") - X
    np.testing.assert_allclose(np.abs(step), 0.1, rtol=1e-9)
    with jax.enable_x64(True):
        delta = pk.perturb(several.predictor_, X, np.ones(N, int), size=0.1, norm="linf").delta
    np.testing.assert_allclose(step, delta, atol=1e-12)
    with pytest.raises(ValueError, match=r"y must be among the classes \['a' 'b' 'c'\]; found d"):
        several.perturb(X, np.repeat("d", N), size=1.0)


def test_certified_sizes_are_those_of_the_predictor():
    for classes in (TWO, THREE):
        estimator = NTKClassifier().fit(X, classes)
        predicted = estimator.predict(X)
        labels = np.where(np.arange(N) % 2, predicted, np.roll(np.unique(classes), 1)[0])
        sizes = estimator.certified_size(X, labels, norm="linf")
        assert ((sizes > 0) == (labels == predicted)).all()
        own = pk.certified_size(estimator.predictor_, X, norm="linf").size
        np.testing.assert_array_equal(sizes, np.where(labels == predicted, own, 0))


def test_the_predictor_is_a_jax_function_and_survives_a_pickle():
    before = NTKRegressor().fit(X, X[:, 0])
    model = pickle.loads(pickle.dumps(before))
    np.testing.assert_array_equal(model.predict(Z), before.predict(Z))
    f = model.predictor_
    with jax.enable_x64(True):
        z = jnp.asarray(Z)
        np.testing.assert_allclose(jax.jit(f)(z), model.predict(Z), rtol=0, atol=1e-13)
        np.testing.assert_allclose(
            jax.grad(lambda p: f(p[None])[0])(z[0]), f.input_gradient(z)[0], atol=1e-12
        )
    assert f(Z).dtype == np.float32  # JAX's own rule
    np.testing.assert_allclose(f(Z), model.predict(Z), atol=1e-4)


def test_what_training_met_is_a_warning():
    twice = np.concatenate([X, X[:1]])
    with pytest.warns(ConvergenceWarning, match="singular kernel matrix"):
        NTKRegressor(time=INF).fit(twice, np.arange(N + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NTKRegressor().fit(twice, np.arange(N + 1))


@pytest.mark.parametrize(
    ("model", "y", "message"),
    [
        (NTKClassifier(), np.ones(N), r"y must have at least two classes; got one class, 1\.0"),
        (
            NTKClassifier(loss="softmax"),
            TWO,
            "loss must be one of 'identity', 'logistic', 'squared'; got 'softmax'",
        ),
        (
            NTKClassifier(loss="logistic", time=INF),
            TWO,
            "time must be finite for the logistic loss",
        ),
        (NTKRegressor(slope=2), SIGNS, "slope must be >= 0 and <= 1; got 2"),
        (NTKRegressor(time=-1), SIGNS, "time must be >= 0; got -1"),
    ],
)
def test_bad_choices_say_what_is_wrong(model, y, message):
    with pytest.raises(ValueError, match=message):
        model.fit(X, y)


def test_accuracy_under_attack_is_that_of_the_predictor():
    model = NTKClassifier().fit(X, TWO)
    r = model.robust_accuracy(X, TWO, sizes=(0.1, 1.0), norms="l2", attack="apgd", steps=5)
    with jax.enable_x64(True):
        options = {"sizes": (0.1, 1.0), "norms": "l2", "attack": "apgd", "steps": 5}
        own = pk.robust_accuracy(model.predictor_, X, SIGNS, **options)
    np.testing.assert_array_equal(r.right, own.right)
    assert r.accuracy[0, 0] == model.score(X, TWO)
    assert list(r.table())[3:] == ["accuracy of no", "accuracy of yes"]
    with pytest.raises(ValueError, match="y must be among the classes"):
        model.robust_accuracy(X, np.full(N, "maybe"), sizes=(0.1,))
