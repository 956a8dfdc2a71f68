"""A handful of images that teach as much as hundreds: data-set distillation by gradients through
`pk.fit`.

    python examples/distill.py --digits 3 8 --images 4

Two images or more are trained so that a network trained on them alone, to infinite time with a
ridge, is right on real digits: the manner of KIP (Nguyen, Chen and Lee, ICLR 2021). Draws the
images before and after, and prints the accuracy on held-out digits of networks trained on either.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import perturbkernel as pk


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--digits", type=int, nargs=2, default=[3, 8], help="(default 3 8)")
    parser.add_argument("--images", type=int, default=4, help="distilled images (default 4)")
    parser.add_argument("--train", type=int, default=400, help="real digits (default 400)")
    parser.add_argument(
        "--steps", type=int, default=100, help="of signs of gradients (default 100)"
    )
    parser.add_argument("--figure", default="distill.png")
    args = parser.parse_args()

    data = pk.data.mnist5k(classes=args.digits)
    train, test = data.split(test=data.n - args.train, key=jax.random.key(0))
    labels = np.resize([1.0, -1.0], args.images)
    rows = [np.flatnonzero(train.targets == sign) for sign in (1, -1)]
    start = jnp.stack([train.inputs[rows[k % 2][k // 2]] for k in range(args.images)])
    learner = pk.KernelLearner(
        pk.TwoLayerNTK(), loss="squared", dynamics=pk.GradientFlow(float("inf")), ridge=1e-3
    )

    @jax.jit
    @jax.grad
    def slope(images, inputs, targets):
        f = learner(images, labels)
        return jnp.mean((f(inputs) - targets) ** 2)

    images = start
    darkest, brightest = train.inputs.min(), train.inputs.max()
    for step in range(args.steps):
        rate = 0.05 * (1 - step / args.steps)
        step_down = rate * jnp.sign(slope(images, train.inputs, train.targets))
        images = jnp.clip(images - step_down, darkest, brightest)

    def accuracy(f):
        return float(jnp.mean(f(test.inputs) * test.targets > 0))

    for name, taught in (("real", start), ("distilled", images)):
        print(f"{args.images} {name} images: accuracy {accuracy(learner(taught, labels)):.3f}")
    print(f"{train.n} real images: accuracy {accuracy(learner(train.inputs, train.targets)):.3f}")

    figure = Figure(figsize=(1.3 * args.images, 3), layout="constrained")
    for row, (name, drawn) in enumerate((("real", start), ("distilled", images))):
        for k, image in enumerate(drawn):
            axis = figure.add_subplot(2, args.images, row * args.images + k + 1, title=name)
            axis.imshow(
                image.reshape(28, 28), cmap="gray", vmin=float(darkest), vmax=float(brightest)
            )
            axis.axis("off")
    figure.savefig(args.figure, dpi=130)
    print(f"figure: {args.figure}")


if __name__ == "__main__":
    main()
