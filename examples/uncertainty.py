"""How certain is a trained network? Its outputs over random initial functions, in closed form.

    python examples/uncertainty.py

An infinitely wide network starts at a Gaussian random function; the squared loss keeps it Gaussian.
Draws its mean, two standard deviations and some members of the ensemble, before, during and after
training on eight points.
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import perturbkernel as pk


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=float, nargs="+", default=[0, 5, 100, float("inf")])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="uncertainty.png")
    args = parser.parse_args()

    x = jnp.array([-2.6, -2.2, -1.9, -0.4, 0.2, 0.7, 1.0, 2.4])[:, None]
    y = jnp.sin(1.5 * x[:, 0])
    z = jnp.linspace(-4, 4, 161)[:, None]
    kernel = pk.TwoLayerNTK(train_bias=True)

    matplotlib.rcParams.update({"font.size": 9, "axes.titlesize": 9})
    figure = Figure(figsize=(2.4 * len(args.times), 2.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(args.times), sharey=True))
    with jax.enable_x64(True):  # interpolation inverts the kernel matrix
        for axis, time in zip(axes, args.times, strict=True):
            f = pk.fit(kernel, x, y, loss="squared", dynamics=pk.GradientFlow(time))
            d = f.distribution(z)
            print(
                f"time {time:g}: at the data off by {jnp.abs(f(x) - y).max():.3f} at most; std at 0 {d.std[80]:.3f}"
            )
            axis.fill_between(
                z[:, 0], d.mean - 2 * d.std, d.mean + 2 * d.std, color="#0072b2", alpha=0.18, lw=0
            )
            axis.plot(
                z[:, 0],
                d.sample(4, key=jax.random.key(args.seed)).T,
                color="#0072b2",
                lw=0.6,
                alpha=0.7,
            )
            axis.plot(z[:, 0], d.mean, color="#333333", lw=1.5)
            axis.plot(x[:, 0], y, "o", color="#d55e00", ms=4)
            axis.set(title=f"time {time:g}", xlabel="input", ylim=(-3.2, 3.2))
            axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("output: mean, 2 std, 4 draws")
    figure.savefig(args.figure, dpi=130)
    print(f"figure: {args.figure}")


if __name__ == "__main__":
    main()
