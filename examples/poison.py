"""Training data that teaches nothing: clean labels, small perturbations, by gradients through
`pk.fit`.

    python examples/poison.py --digits 3 8 --size 0.3

All training images are perturbed at once, so that a network trained on them is wrong on clean
digits: the manner of NTGA (Yuan and Wu, ICML 2021). Prints the accuracy on held-out digits of
networks trained on clean images, on images with random signs as noise, and on poisoned ones.
"""

import argparse

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

import perturbkernel as pk


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--digits", type=int, nargs=2, default=[3, 8], help="(default 3 8)")
    parser.add_argument("--train", type=int, default=200, help="poisoned digits (default 200)")
    parser.add_argument("--size", type=float, default=0.3, help="of a pixel's change (default 0.3)")
    parser.add_argument("--steps", type=int, default=10, help="of signs of gradients (default 10)")
    parser.add_argument("--time", type=float, default=30.0, help="of training (default 30)")
    parser.add_argument("--figure", default="poison.png")
    args = parser.parse_args()

    data = pk.data.mnist5k(classes=args.digits).subset(2 * args.train + 500, key=jax.random.key(0))
    train, rest = data.split(test=args.train + 500, key=jax.random.key(1))
    aim, test = rest.split(test=500, key=jax.random.key(2))  # the attacker never sees the test data
    dynamics = pk.GradientFlow(args.time)
    learner = pk.KernelLearner(pk.TwoLayerNTK(), loss="squared", dynamics=dynamics)

    @jax.jit
    @jax.grad
    def slope(inputs, targets, at, wanted):
        f = learner(inputs, targets)
        return jnp.mean((f(at) - wanted) ** 2)

    poisoned = train.inputs
    for _ in range(args.steps):
        uphill = jnp.sign(slope(poisoned, train.targets, aim.inputs, aim.targets))
        moved = poisoned + 2 * args.size / args.steps * uphill
        poisoned = train.inputs + jnp.clip(moved - train.inputs, -args.size, args.size)

    noise = args.size * jax.random.rademacher(jax.random.key(3), train.inputs.shape, float)
    taught = {"clean": train.inputs, "noise": train.inputs + noise, "poisoned": poisoned}
    figure = Figure(figsize=(6, 4.4), layout="constrained")
    for row, (name, inputs) in enumerate(taught.items()):
        f = learner(inputs, train.targets)
        accuracy = float(jnp.mean(f(test.inputs) * test.targets > 0))
        own = float(jnp.mean(f(inputs) * train.targets > 0))
        print(
            f"{name}: accuracy {accuracy:.3f} on clean digits, {own:.3f} on its own training data"
        )
        for k in range(5):
            axis = figure.add_subplot(3, 5, 5 * row + k + 1)
            axis.imshow(inputs[k].reshape(28, 28), cmap="gray")
            axis.axis("off")
            if k == 2:
                axis.set_title(f"{name}: {accuracy:.0%} right on clean digits", fontsize=9)
    figure.savefig(args.figure, dpi=130)
    print(f"figure: {args.figure}")


if __name__ == "__main__":
    main()
