"""Whole networks cut from a pool of neurons, and averages over them (theory: 14.1, 14.3)."""

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.networks.two_layer import Centred, TwoLayerNetwork
from perturbkernel.theory.law.estimates import Estimate, averaged, standard_error
from perturbkernel.theory.law.neurons import Neurons


def ensemble(
    neurons: Neurons, kernel: TwoLayerNTK, count: int, width: int, start: str, dtype: Any
) -> TwoLayerNetwork | Centred:
    """`count` networks of consecutive neurons; both signs of a start lie in one network."""

    def grouped(values: np.ndarray) -> Array:
        """(signs, k, ...) as (count, width, ...)."""
        signs, _, *trailing = values.shape
        rows = values.reshape(signs, count, -1, *trailing)
        of_network = rows.swapaxes(0, 1)
        flat = of_network.reshape(count, width, *trailing)
        return jnp.asarray(flat, dtype)

    readout = grouped(neurons.readout / width**0.5)

    def network(parameters):
        of_signs = np.broadcast_to(parameters, neurons.moved.shape)
        weights_and_bias = grouped(of_signs)
        weight = weights_and_bias[..., :-1]
        bias = weights_and_bias[..., -1]
        return TwoLayerNetwork(weight, bias, readout, kernel.slope, kernel.train_bias)

    trained = network(neurons.trained)
    if start != "centred":
        return trained
    return Centred(trained, network(neurons.start))


def as_mean(
    parameters: Float[np.ndarray, "signs k p"],
    readout: Float[np.ndarray, "signs k"],
    width: int,
    kernel: TwoLayerNTK,
    dtype: Any,
) -> TwoLayerNetwork:
    """sqrt(width) times the average over neurons of alpha phi(<w, z> + b), as one network."""
    rows = parameters.reshape(-1, parameters.shape[-1])
    flat = jnp.asarray(rows, dtype)
    share = width**0.5 / readout.size
    shares = readout.reshape(-1) * share
    return TwoLayerNetwork(
        weight=flat[:, :-1],
        bias=flat[:, -1],
        readout=jnp.asarray(shares, dtype),
        slope=kernel.slope,
        train_bias=kernel.train_bias,
    )


def independent_neurons(width: int, start: str) -> int:
    """How many starts a network takes from a pool: half as many when they come in pairs."""
    return width // 2 if start == "doubled" else width


def groups(neurons: Neurons, width: int, start: str) -> Iterator[list[Neurons]]:
    """The independent networks of a pool, each a list of one, or of it and its mirror image.

    The mirror image of an antithetic pool has the opposite readouts, and the same law.
    """
    size = independent_neurons(width, start)
    for index in range(len(neurons.start) // size):
        own = neurons.part(slice(index * size, (index + 1) * size))
        if start == "doubled":
            yield [own]
            continue
        signs = range(len(own.readout))
        yield [own.one_sign(np.full(size, sign)) for sign in signs]


def over_networks(
    neurons: Neurons, width: int, start: str, function: Callable[[Neurons], np.ndarray]
) -> Estimate:
    """The mean of function(network), (m,), over the networks of a pool, with its error.

    NaN of the function, where something is undefined, is left out of means over queries.
    """
    rows = []
    for networks in groups(neurons, width, start):
        values = [function(network) for network in networks]
        rows.append(np.mean(values, axis=0))
    if not rows:
        size = independent_neurons(width, start)
        raise ValueError(
            f"neurons must be at least {size:,} independent ones for averages over networks of "
            f"width {width:,}; the pool has {len(neurons.start):,}"
        )
    samples = np.stack(rows)
    average = averaged(samples)
    defined = ~np.isnan(samples[0])
    per_network = np.full(len(samples), np.nan)
    if defined.any():
        per_network = samples[:, defined].mean(axis=1)
    total = float(per_network.mean())
    error = float(standard_error(per_network - total))
    return Estimate(average.value, average.standard_error, total, error)


def gradient(network: Neurons, z: Float[np.ndarray, "m d"], start: str) -> np.ndarray:
    """The input gradient of the network of all these neurons, (m, d), times sqrt(width)."""
    outputs = network.outputs(z)
    gates = outputs.gates(outputs.u + outputs.change_of_u)
    after = network.readout[:, :, None] * gates
    weights = network.trained[:, :, :-1]
    total = np.einsum("skm,skd->md", after, weights, optimize=True)
    if start != "centred":
        return total
    readout = network.readout.sum(axis=0)
    gates = outputs.gates(outputs.u)
    before = readout[:, None] * gates
    weights = network.start[:, :-1]
    return total - before.T @ weights


def output(network: Neurons, z: Float[np.ndarray, "m d"], start: str) -> np.ndarray:
    """The outputs of the network of all these neurons, (m,), times sqrt(width)."""
    centred = start == "centred"
    terms = network.terms(z, centred=centred)
    return terms.sum(axis=(0, 1))
