"""How right float32 is: largest errors of angles, outputs and input gradients against NumPy in
float64.

The reference takes the angle of each pair from its sine and cosine, the sine from the difference of
the points, so that nothing cancels (theory: 0.2 to 0.5). Inputs are float32 numbers, taken as
exact.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbkernel import TwoLayerNTK
from perturbkernel.kernels.angles import products_and_angles

from . import alternatives as other
from .harness import Case, Group, Row, Settings

N, M, D = 256, 64, 100
POINTS = {
    "new points": lambda x, rng: rng.standard_normal((M, D)),
    "training points": lambda x, rng: x[:M],
    "near training points, 1e-4": lambda x, rng: (
        x[:M] + 1e-4 * rng.standard_normal((M, D)) / np.sqrt(D)
    ),
    "tiny inputs, norm 1e-3": lambda x, rng: 1e-3 * rng.standard_normal((M, D)) / np.sqrt(D),
}


def draw(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z (M, D), x (N, D), coef (N,), float32. Tiny: both are, as when a network trains on
    perturbations alone.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, D)) * (1e-3 / np.sqrt(D) if kind.startswith("tiny") else 1)
    x = x.astype(np.float32).astype(float)
    coef = np.where(rng.random(N) < 0.5, 1, -1) / N
    return POINTS[kind](x, rng).astype(np.float32), x.astype(np.float32), coef.astype(np.float32)


def reference(z: np.ndarray, x: np.ndarray, coef: np.ndarray) -> dict[str, np.ndarray]:
    """The "angles" (M, N), "outputs" (M,) and "gradients" (M, D) of the kernel with trained biases,
    in float64.
    """
    z, x, coef = (a.astype(float) for a in (z, x, coef))
    d, angles, outputs, gradients = x.shape[1], [], [], []
    for q in z:
        square, e = q @ q, x - q
        ratio = e @ q / square
        side = e - ratio[:, None] * q
        s_squared = 1 + square / d
        # S_x s_q sin(theta)
        sine = np.sqrt((ratio**2 * square + s_squared * np.sum(side**2, axis=1)) / d)
        theta = np.arctan2(sine, 1 + x @ q / d)
        phi, linear = 0.5 - theta / (2 * np.pi), x @ q + 1
        tangent = side + (ratio / s_squared)[:, None] * q
        turn = np.where(sine > 0, coef * linear / (2 * np.pi * d * np.where(sine > 0, sine, 1)), 0)
        angles.append(theta)
        outputs.append(coef @ (phi * linear))
        gradients.append((coef * phi) @ x + turn @ tangent)
    return {
        "angles": np.stack(angles),
        "outputs": np.stack(outputs),
        "gradients": np.stack(gradients),
    }


def errors(got: dict[str, Any], wanted: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest error: of an angle, relative to it (an angle 0: absolute); of outputs, to the
    largest; of gradients, to the longest. NaN stays NaN.
    """
    out = {}
    for name, value in got.items():
        off, true = np.abs(np.asarray(value, float) - wanted[name]), wanted[name]
        if name == "angles":
            out[name] = float(np.max(off / np.where(true > 0, true, 1)))
        elif name == "outputs":
            out[name] = float(off.max() / np.abs(true).max())
        else:
            out[name] = float(
                np.linalg.norm(off, axis=1).max() / np.linalg.norm(true, axis=1).max()
            )
    return out


@cache
def _perturbkernel() -> Callable[..., dict[str, Any]]:
    kernel = TwoLayerNTK(0.0, train_bias=True)
    return lambda z, x, coef: {
        "angles": jax.jit(products_and_angles)(z, x)[1],
        "outputs": kernel.matvec(z, x, coef),
        "gradients": kernel.input_gradient(z, x, coef),
    }


@cache
def _textbook() -> Callable[..., dict[str, Any]]:
    """The formula as it is written, arccos of a clipped cosine, and autodiff."""

    def angle(z, x):
        s_z, s_x = (jnp.sqrt(1 + jnp.sum(a * a, axis=1) / D) for a in (z, x))
        product = jnp.matmul(z, x.T, precision="highest")
        return product, jnp.arccos(jnp.clip((1 + product / D) / (s_z[:, None] * s_x), -1, 1))

    def outputs(z, x, coef):
        product, theta = angle(z, x)
        return ((0.5 - theta / (2 * np.pi)) * (product + 1)) @ coef

    gradients = jax.jit(jax.grad(lambda z, x, coef: jnp.sum(outputs(z, x, coef))))
    return lambda z, x, coef: {
        "angles": jax.jit(angle)(z, x)[1],
        "outputs": jax.jit(outputs)(z, x, coef),
        "gradients": gradients(z, x, coef),
    }


@cache
def _neural_tangents() -> Callable[..., dict[str, Any]]:
    outputs, gradients = other.tangents_matvec(), other.tangents_input_gradient()
    return lambda z, x, coef: {"outputs": outputs(z, x, coef), "gradients": gradients(z, x, coef)}


# Cached, so that all kinds of points share one compilation.
METHODS = {
    "perturbkernel": _perturbkernel,
    "arccos and autodiff": _textbook,
    "neural-tangents": _neural_tangents,
}


def _measure(kind: str, settings: Settings) -> Iterator[Row]:
    draws = range(settings.seed, settings.seed + settings.rounds(9, 5))
    for subject, build in METHODS.items():
        try:
            method, found = build(), []
            for seed in draws:
                z, x, coef = draw(kind, seed)
                found.append(errors(method(*map(jnp.asarray, (z, x, coef))), reference(z, x, coef)))
            for name in found[0]:
                samples = tuple(one[name] for one in found)
                bad = int(np.sum(~np.isfinite(samples)))
                note = f"NaN in {bad} of {len(samples)} draws" if bad else ""
                yield Row(name, kind, subject, "NumPy float64", samples, note=note)
        except Exception as error:
            yield Row("all", kind, subject, "NumPy float64").but(error)


def _cases(settings: Settings) -> list[Case]:
    return [
        Case(kind.split(",")[0].replace(" ", "-"), kind, partial(_measure, kind, settings), cost=1)
        for kind in POINTS
    ]


GROUP = Group(
    "precision",
    "Precision of float32",
    f"largest relative error in a draw of n = {N}, m = {M}, d = {D}, against float64",
    _cases,
)
