"""The kernel of a network while it trains: what it knows, and what its attacks do to the network.

    python examples/trained_network.py                              # digits 4 and 9; a minute or two
    python examples/trained_network.py --classes 3,8 --epochs 0,4,16,64

A network of three layers learns to tell two digits apart. At some epochs its tangent kernel
(`pk.EmpiricalNTK`) is taken, and in closed form f is trained with it from zero, attacked, and g
trained on nothing but f's perturbations. Draws, over epochs:

- the alignment of the kernel with the labels, <K, y y^T> / (|K| n), which grows while features are
  learned;
- the accuracy of the network, of f and of g at new digits;
- the accuracy of the network at digits that were moved by an attack on f, which never saw it, and
  at digits moved as far in random directions.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure

import perturbkernel as pk

WIDTHS = 64, 64, 1
BATCH = 50
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def initial_parameters(d: int, key: Any) -> Any:
    layers = []
    for fan_in, width in zip((d, *WIDTHS), WIDTHS, strict=False):
        key, own = jax.random.split(key)
        weight = jax.random.normal(own, (fan_in, width)) / fan_in**0.5
        layers.append((weight, jnp.zeros(width)))
    return layers


def network(params: Any, x: jax.Array) -> jax.Array:
    for weight, bias in params[:-1]:
        x = jax.nn.gelu(x @ weight + bias)
    weight, bias = params[-1]
    return (x @ weight + bias)[:, 0]


def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean(jax.nn.softplus(-y * network(params, x)))


@jax.jit
def epoch(params: Any, state: Any, x: jax.Array, y: jax.Array, key: Any) -> tuple[Any, Any]:
    """One pass over the data in random batches."""
    batches = len(x) // BATCH
    order = jax.random.permutation(key, len(x))[: batches * BATCH].reshape(batches, BATCH)

    def step(carry, rows):
        params, state = carry
        gradient = jax.grad(loss)(params, x[rows], y[rows])
        update, state = OPTIMIZER.update(gradient, state, params)
        return (optax.apply_updates(params, update), state), None

    return jax.lax.scan(step, (params, state), order)[0]


def accuracy(outputs: Any, y: Any) -> float:
    return float(np.mean(np.sign(outputs) == np.asarray(y)))


def alignment(gram: Any, y: Any) -> float:
    gram, y = np.asarray(gram, float), np.asarray(y, float)
    return float(y @ gram @ y / (np.linalg.norm(gram) * len(y)))


def measure(params: Any, train: pk.Dataset, test: pk.Dataset, args: Any) -> dict[str, float]:
    kernel = pk.EmpiricalNTK(network, params)
    learner = pk.KernelLearner(kernel, loss="squared", dynamics=pk.GradientFlow(args.time))
    learned = pk.learn_from_perturbations(
        learner, train, scenario="b", size=args.size, key=jax.random.key(1)
    )
    f, g = learned.f, learned.g
    x, y = test.inputs, test.targets
    moved = pk.attack(f, x, y, size=args.size, away=True)
    random = jax.random.normal(jax.random.key(2), x.shape)
    random *= args.size / jnp.linalg.norm(random, axis=1, keepdims=True)
    at = partial(network, params)
    return {
        "alignment of the kernel with the labels": alignment(
            kernel.ntk(train.inputs), train.targets
        ),
        "network": accuracy(at(x), y),
        "f, trained with its kernel": accuracy(f(x), y),
        "g, from f's perturbations alone": accuracy(g(x), y),
        "network under the attack on f": accuracy(at(x + moved.delta), y),
        "network under random directions": accuracy(at(x + random), y),
    }


def draw(epochs: list[int], rows: list[dict[str, float]], path: str) -> None:
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for name in rows[0]:
        dashed = "--" if name.startswith("alignment") else "-"
        axes.plot(range(len(epochs)), [row[name] for row in rows], dashed, marker="o", label=name)
    axes.set_xticks(range(len(epochs)), [str(e) for e in epochs])
    axes.set_xlabel("epochs that the network was trained")
    axes.set_ylim(0, 1.02)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    numbers = partial(str.split, sep=",")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=numbers, default=["4", "9"], help="two digits")
    parser.add_argument("--epochs", type=numbers, default=["0", "1", "4", "16", "64"])
    parser.add_argument("--digits", type=int, default=1000, help="how many, test digits included")
    parser.add_argument("--size", type=float, default=1.5, help="of perturbations, in l2")
    parser.add_argument("--time", type=float, default=100.0, help="for which f and g are trained")
    parser.add_argument("--figure", default="trained_network.png")
    args = parser.parse_args()
    matplotlib.use("agg")
    first, second = map(int, args.classes)
    digits = pk.data.mnist5k(classes=(first, second))
    if args.digits < digits.n:
        digits = digits.subset(args.digits, key=jax.random.key(0))
    train, test = digits.split(test=0.2, key=jax.random.key(0))
    params = initial_parameters(digits.inputs.shape[1], jax.random.key(3))
    state = OPTIMIZER.init(params)
    wanted = sorted({int(number) for number in args.epochs})
    rows = []
    for done in range(wanted[-1] + 1):
        if done in wanted:
            rows.append(measure(params, train, test, args))
            said = "; ".join(f"{name} {value:.3f}" for name, value in rows[-1].items())
            print(f"epoch {done}: {said}", flush=True)
        key = jax.random.fold_in(jax.random.key(4), done)
        params, state = epoch(params, state, train.inputs, train.targets, key)
    draw(wanted, rows, args.figure)


if __name__ == "__main__":
    main()
