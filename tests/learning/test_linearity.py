"""The diagnosis says that g is linear, and f is not, where that is so and nowhere else; and that g
can only be linear where that is proved.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturbkernel as pk
from perturbkernel.kernels.base import Kernel
from perturbkernel.learning.diagnosis import diagnose
from perturbkernel.learning.linearity import Linearity
from perturbkernel.training.predictors import KernelPredictor

FOUND = "linear here, and f is not"
KERNEL = pk.TwoLayerNTK()
KEY = jax.random.key(0)


class Linear(Kernel):
    """The inner product."""

    def tile(self, name, z, x):
        return z @ x.T


def xor(n: int, seed: int):
    """Four clusters at (+-4, +-4, 0, ...), labelled by the product of the signs, d = 8."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1, 1], size=(n, 2))
    x = rng.normal(size=(n, 8))
    x[:, :2] += 4 * signs
    return x.astype(np.float32), np.prod(signs, axis=1).astype(np.float32)


def clusters(n: int, seed: int):
    """Two classes that a plane separates, d = 8."""
    rng = np.random.default_rng(seed)
    y = rng.choice([-1, 1], size=n)
    return (rng.normal(size=(n, 8)) + 1.2 * y[:, None]).astype(np.float32), y.astype(np.float32)


def learn(data, scenario="a", size=0.1, kernel=KERNEL, loss="identity", learner_g=None) -> Any:
    learner = pk.KernelLearner(kernel, loss=loss, dynamics=pk.GradientFlow(time=5.0))
    return pk.learn_from_perturbations(
        learner,
        data,
        scenario=scenario,
        size=size,
        targets="balanced",
        learner_g=learner_g,
        key=KEY,
    )


def shares(r) -> Linearity:
    assert r.diagnosis.linearity is not None
    return r.diagnosis.linearity


@pytest.mark.parametrize("size", [0.01, 0.1, 1.0])
def test_xor_in_scenario_a(size):
    r = learn(xor(200, 0), size=size)
    found = shares(r)
    assert r.diagnosis.says.partition(":")[0].endswith(FOUND)
    assert "f at 100%" in r.diagnosis.says
    # "can only be" is said where it is proved, and there alone: not at size 1.
    proved = float(found.certified) >= 0.95
    assert r.diagnosis.says.startswith("g can only be" if proved else "g is linear")
    assert proved == (size < 1)
    assert float(found.linear_right) == pytest.approx(float(r.accuracy(r.train).g), abs=0.01)
    assert float(found.linear_f) < 0.65 < 0.85 < float(found.linear_linear)


def test_xor_of_other_losses_and_with_biases():
    assert learn(xor(200, 0), loss="logistic").diagnosis.says.partition(":")[0].endswith(FOUND)
    trained = pk.TwoLayerNTK(train_bias=True)
    assert learn(xor(200, 0), kernel=trained).diagnosis.says.partition(":")[0].endswith(FOUND)


def test_perturbed_data_teach_more_than_a_linear_classifier():
    r = learn(xor(200, 0), scenario="b", size=3.0)
    assert r.diagnosis.says.startswith("g need not be linear here")
    assert r.accuracy(r.train).g > 0.7


def test_a_linear_f_is_not_called_otherwise():
    expected = "g can only be linear here, and f nearly is"
    r = learn(clusters(200, 1))
    assert r.diagnosis.says.startswith(expected)
    # Fewer points than a linear classifier needs to be found.
    few = pk.data.from_arrays(*clusters(6, 2))
    assert r.diagnose(few).says.startswith(expected)


def test_the_certified_share_is_that_of_linear_part():
    r = learn(xor(200, 0), size=1.0)
    part = pk.theory.linear_part(r.g, r.train.inputs)
    assert float(shares(r).certified) == pytest.approx(part.share, abs=1e-6)


def test_other_points_and_the_numbers_of_evaluate():
    r = learn(xor(200, 0))
    test = pk.data.from_arrays(*xor(200, 1))
    assert r.diagnose(test).says.partition(":")[0].endswith(FOUND)
    numbers = r.evaluate()["diagnosis"]["linearity"]
    assert numbers["says"] == r.diagnosis.says
    assert numbers["certified"] == pytest.approx(float(shares(r).certified))


def test_nothing_is_said_where_the_theorem_is_silent():
    x, y = xor(200, 0)
    r = learn((x, y), learner_g=pk.KernelLearner(Linear(), dynamics=pk.GradientFlow(1.0)))
    assert r.diagnosis.linearity is None and r.diagnosis.says == ""
    carrier = jnp.zeros_like(x)
    plain = diagnose(KERNEL, carrier, carrier + 0.1, jnp.asarray(y), x, y)
    assert plain.linearity is None
    started = KernelPredictor(KERNEL, carrier + 0.1, y / 200, initial=lambda z: z[:, 0])
    options: dict[str, Any] = {"f": lambda z: z[:, 0], "g": started}
    found = diagnose(KERNEL, carrier, carrier + 0.1, jnp.asarray(y), x, y, **options)
    assert found.linearity is None


def test_the_record_is_a_pytree():
    found = shares(learn(xor(200, 0)))
    again = jax.tree.unflatten(jax.tree.structure(found), jax.tree.leaves(found))
    assert again.says == found.says
    assert len(jax.tree.leaves(found)) == 6
