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
    """Returns z (M, D), x (N, D), coef (N,), float32.

    Tiny: both are, as when a network trains on perturbations alone.
    """
    rng = np.random.default_rng(seed)
    scale = 1e-3 / np.sqrt(D) if kind.startswith("tiny") else 1
    x = rng.standard_normal((N, D)) * scale
    x = x.astype(np.float32).astype(float)
    coef = np.where(rng.random(N) < 0.5, 1, -1) / N
    z = POINTS[kind](x, rng)
    return z.astype(np.float32), x.astype(np.float32), coef.astype(np.float32)


def reference(z: np.ndarray, x: np.ndarray, coef: np.ndarray) -> dict[str, np.ndarray]:
    """The "angles" (M, N), "outputs" (M,) and "gradients" (M, D) of the kernel with trained biases,
    in float64.
    """
    x, coef = x.astype(float), coef.astype(float)
    d = x.shape[1]
    angles, outputs, gradients = [], [], []
    for q in z.astype(float):
        square = q @ q
        e = x - q
        ratio = e @ q / square
        side = e - ratio[:, None] * q
        s_squared = 1 + square / d
        # S_x s_q sin(theta)
        across = np.sum(side**2, axis=1)
        sine = np.sqrt((ratio**2 * square + s_squared * across) / d)
        theta = np.arctan2(sine, 1 + x @ q / d)
        phi = 0.5 - theta / (2 * np.pi)
        linear = x @ q + 1
        tangent = side + (ratio / s_squared)[:, None] * q
        turns = sine > 0
        divisor = 2 * np.pi * d * np.where(turns, sine, 1)
        turn = np.where(turns, coef * linear / divisor, 0)
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
        true = wanted[name]
        off = np.abs(np.asarray(value, float) - true)
        if name == "angles":
            error = np.max(off / np.where(true > 0, true, 1))
        elif name == "outputs":
            error = off.max() / np.abs(true).max()
        else:
            longest = np.linalg.norm(true, axis=1).max()
            error = np.linalg.norm(off, axis=1).max() / longest
        out[name] = float(error)
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
        s_z = jnp.sqrt(1 + jnp.sum(z * z, axis=1) / D)
        s_x = jnp.sqrt(1 + jnp.sum(x * x, axis=1) / D)
        product = jnp.matmul(z, x.T, precision="highest")
        rho = (1 + product / D) / (s_z[:, None] * s_x)
        return product, jnp.arccos(jnp.clip(rho, -1, 1))

    def outputs(z, x, coef):
        product, theta = angle(z, x)
        return ((0.5 - theta / (2 * np.pi)) * (product + 1)) @ coef

    def total(z, x, coef):
        return jnp.sum(outputs(z, x, coef))

    gradients = jax.jit(jax.grad(total))
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
            method = build()
            found = []
            for seed in draws:
                z, x, coef = draw(kind, seed)
                got = method(jnp.asarray(z), jnp.asarray(x), jnp.asarray(coef))
                found.append(errors(got, reference(z, x, coef)))
            for name in found[0]:
                samples = tuple(one[name] for one in found)
                bad = int(np.sum(~np.isfinite(samples)))
                note = f"NaN in {bad} of {len(samples)} draws" if bad else ""
                yield Row(name, kind, subject, "NumPy float64", samples, note=note)
        except Exception as error:
            yield Row("all", kind, subject, "NumPy float64").but(error)


def _cases(settings: Settings) -> list[Case]:
    cases = []
    for kind in POINTS:
        name = kind.split(",")[0].replace(" ", "-")
        cases.append(Case(name, kind, partial(_measure, kind, settings), cost=1))
    return cases


GROUP = Group(
    "precision",
    "Precision of float32",
    f"largest relative error in a draw of n = {N}, m = {M}, d = {D}, against float64",
    _cases,
)
