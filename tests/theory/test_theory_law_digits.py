"""Networks of width 100 on digits, trained as in the paper, against the law of one neuron and the
kernel limit (theory: 14.2, 14.3).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturbkernel as pk
from perturbkernel import theory

WIDTH, NETWORKS = 100, 120
KERNEL = pk.TwoLayerNTK(0.0, True)


@pytest.mark.slow
def test_networks_far_from_lazy_have_the_law_and_not_the_limit():
    data = pk.data.mnist5k(classes=(1, 2))
    train, test = data.split(test=0.2, key=jax.random.key(0))
    x, y, z = train.inputs, train.targets, test.inputs
    labels = np.asarray(test.targets)
    law = theory.simulate_neurons(
        KERNEL,
        x,
        y,
        dynamics=pk.HeavyBall(0.01, 100),
        width=WIDTH,
        neurons=6000,
        records=(10, 100),
        key=jax.random.key(7),
    )
    keys = jax.random.split(jax.random.key(11), NETWORKS)
    fresh = pk.networks.TwoLayerNetwork.init
    begin = jax.vmap(lambda key: fresh(784, WIDTH, 0.0, True, key=key))(keys)
    v = theory.direction(KERNEL, x, y, z)
    f_hat = theory.f_hat(KERNEL, x, y, z)
    for steps in (10, 100):
        time = pk.HeavyBall(0.01, steps).effective_time
        trained: Any = pk.networks.ensemble(
            begin, x, y, learning_rate=0.01, steps=steps, trace_at=()
        )[0]
        f = np.asarray(trained(jnp.asarray(z)), float)
        change = f - np.asarray(begin(jnp.asarray(z)), float)
        mean = law.mean(z, width=WIDTH, time=time)
        std = law.std(z, width=WIDTH, time=time, start="centred")
        # One number a network, which tells a mean that is too large from one that is right.
        margin = np.mean(labels * change, axis=1)
        pull = np.mean(labels * mean.standard_error)
        error = np.hypot(margin.std() / NETWORKS**0.5, np.abs(pull))
        score = (margin.mean() - np.mean(labels * mean.value)) / error
        of_limit = (margin.mean() - time * np.mean(labels * f_hat)) / error
        assert abs(score) < 4
        assert steps == 10 or abs(of_limit) > 4
        assert abs(np.mean(change.std(axis=0) / std.value) - 1) < 0.15

        slopes = np.asarray(trained.input_gradient(jnp.asarray(z)), float)
        length = np.linalg.norm(slopes, axis=-1) * np.linalg.norm(v, axis=-1)
        cosines = np.mean(np.sum(slopes * v, axis=-1) / length, axis=1)
        cosine = law.cosine(z, width=WIDTH, time=time)
        error = np.hypot(cosines.std() / NETWORKS**0.5, cosine.mean_standard_error)
        assert abs(cosines.mean() - cosine.mean) < 4 * error
        limit = theory.expected_cosine(KERNEL, x, y, z, time=time).mean()
        assert steps == 10 or limit - cosines.mean() > 0.03

        shares = np.mean(np.sign(f) == labels, axis=1)
        accuracy = law.expected_accuracy(z, labels, width=WIDTH, time=time, method="networks")
        error = np.hypot(shares.std() / NETWORKS**0.5, accuracy.mean_standard_error)
        assert abs(shares.mean() - accuracy.mean) < 4 * error
